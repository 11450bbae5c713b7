"""The written series are what the real sets are, open with the field's libraries, and say what was drawn."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from hemlearn.phantom.archives import FINDINGS, LABELS, ORIGINS, READERS, TEST_PATIENTS, read_once, scramble
from hemlearn.phantom.files import window_8bit
from hemlearn.phantom.layouts import phantom_version, write_phantom
from hemlearn.phantom.lesions import SUBTYPES
from hemlearn.phantom.pictures import FIRST_PATIENT
from tests.conftest import real_data
from tests.phantom.conftest import COARSE, SETS, prunable

VOLUMES = ("rsna", "ct_ich", "ct_ich_nifti", "cq500")  # public sets of whole series, with look-alikes of blood
RSNA_KEYWORDS = [
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "PixelData",
]
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")


def _hu(dataset):
    return dataset.pixel_array.astype(int) * int(float(dataset.RescaleSlope)) + int(float(dataset.RescaleIntercept))


def _digest(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize(("layout", "processes"), [*((layout, 1) for layout in SETS), ("cq500", 2)])
def test_same_seed_same_files_whatever_the_number_of_patients_and_processes(write, tmp_path, layout, processes):
    out, summary, rows = write(layout)
    few_patients, (patients, grid) = 2, SETS[layout]
    write_phantom(layout, tmp_path / "again", patients=few_patients, seed=2, n_jobs=processes, grid=grid)
    many, few = _digest(out), _digest(tmp_path / "again")
    shared = {name for name in few if not name.endswith((".csv", ".txt"))}
    assert len(shared) >= few_patients
    assert {name: few[name] for name in shared} == {name: many[name] for name in shared}
    assert (summary.layout, summary.images) == (layout, len([row for row in rows if row["file"]]))
    assert summary.patients == patients + 2 * (layout == "rsna")
    assert summary.images > summary.positives > 0


@pytest.mark.parametrize("layout", VOLUMES)
def test_truth_tells_blood_from_look_alikes(write, layout):
    _, _, rows = write(layout)
    series = defaultdict(list)
    for row in rows:
        assert bool(row["subtypes"]) == (row["hemorrhage"] == "1")
        series[row["patient"]].append(row)
    bleeding = [any(row["hemorrhage"] == "1" for row in own) for own in series.values()]
    assert 0.4 <= np.mean(bleeding) <= 0.6
    busy = [own for own in series.values() if any(row["distractor"] for row in own)]
    assert sum(any(row["hemorrhage"] == "1" for row in own) for own in busy) >= 2
    for own in series.values():
        assert [int(row["slice"]) for row in own] == list(range(len(own)))
        decoys = [int(row["slice"]) for row in own if row["distractor"]]
        # A head full of blood has no slice left for a look-alike.
        assert len(decoys) >= 2 or any(row["hemorrhage"] == "1" for row in own)
        assert all(own[k]["hemorrhage"] == "0" for k in decoys)


# RSNA ---------------------------------------------------------------------------------------------------------------


def test_rsna_labels_equal_the_truth_and_one_image_is_doubled(write):
    out, summary, rows = write("rsna")
    table = pd.read_csv(out / "stage_2_train.csv")
    assert list(table.columns) == ["ID", "Label"]
    train = [row for row in rows if row["split"] == "train"]
    counts = Counter(table["ID"])
    doubled = {name.rsplit("_", 1)[0] for name, count in counts.items() if count == 2}
    assert len(doubled) == 1
    assert len(table) == 6 * (len(train) + 1)
    labels = dict(zip(table["ID"], table["Label"], strict=True))
    for row in train:
        shown = {name for name in SUBTYPES if labels[f"{row['image']}_{name}"]}
        assert shown == set(filter(None, row["subtypes"].split("|")))
        assert labels[f"{row['image']}_any"] == int(row["hemorrhage"])
    assert [name.rsplit("_", 1)[1] for name in table["ID"][:6]] == list(LABELS)
    assert list(table["ID"].str[:12].drop_duplicates()) != [row["image"] for row in train]
    tests = [row for row in rows if row["split"] == "test"]
    assert len({row["patient"] for row in tests}) == 2
    submission = pd.read_csv(out / "stage_2_sample_submission.csv")
    assert set(submission["ID"]) == {f"{row['image']}_{label}" for row in tests for label in LABELS}
    assert set(submission["Label"]) == {0.5}
    assert summary.patients == 10
    assert summary.images == len(rows)


def test_rsna_files_have_the_elements_of_the_genuine_ones(write):
    out, _, rows = write("rsna")
    real = sorted(real_data("rsna").glob("stage_2_train/*.dcm"))
    genuine = [element.keyword for element in pydicom.dcmread(real[0])]
    for row in rows[::7]:
        dataset = pydicom.dcmread(out / row["file"])
        assert [element.keyword for element in dataset] == genuine == RSNA_KEYWORDS
        assert row["file"].endswith(f"{dataset.SOPInstanceUID}.dcm")
        assert (dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID) == (
            row["patient_id"],
            row["study_id"],
            row["series_id"],
        )
        assert [len(row[key]) for key in ("image", "patient_id", "study_id", "series_id")] == [12, 11, 13, 13]


def test_rsna_values_round_trip_to_hu(write, drawn_once):
    out, _, rows = write("rsna")
    by_patient = defaultdict(list)
    for row in rows:
        by_patient[row["patient"]].append(row)
    signs, padded, implicit, several = set(), 0, set(), set()
    for name, own in by_patient.items():
        volume = drawn_once["draw_volume"](2, int(name.rsplit("-", 1)[1]), COARSE)
        for k in (0, 13):
            dataset = pydicom.dcmread(out / own[k]["file"])
            got, want = _hu(dataset), volume.hu[k]
            outside = got < -1024
            padded += bool(outside.any())
            assert np.array_equal(got[~outside], want[~outside])
            assert np.median(want[outside]) < -900 if outside.any() else True
            assert not outside[32, 32]
            signs.add((dataset.PixelRepresentation, dataset.BitsStored))
            implicit.add(dataset.file_meta.TransferSyntaxUID)
            several.add(type(dataset.WindowCenter).__name__)
    assert signs == {(0, 12), (1, 16)}
    assert padded
    assert len(implicit) == 2
    assert len(several) == 2


def test_rsna_order_comes_from_headers_alone(write):
    out, _, rows = write("rsna")
    tilts, orders = set(), []
    own = defaultdict(list)
    for row in rows:
        own[row["series_id"]].append(row)
    for series in own.values():
        heights = []
        for row in series:
            dataset = pydicom.dcmread(out / row["file"], stop_before_pixels=True)
            directions = np.array(dataset.ImageOrientationPatient, dtype=float)
            position = np.array(dataset.ImagePositionPatient, dtype=float)
            height = float(position @ np.cross(directions[:3], directions[3:]))
            assert height == pytest.approx(float(row["z_mm"]), abs=0.02)
            heights.append(height)
        tilts.add(float(series[0]["tilt_deg"]))
        assert np.allclose(np.diff(heights), 5.0, atol=0.02)
        names = [row["image"] for row in series]
        orders.append(abs(np.corrcoef(np.argsort(np.argsort(names)), np.arange(len(names)))[0, 1]))
    assert 0.0 in tilts
    assert len(tilts) > 2
    assert np.mean(orders) < 0.4


def test_rsna_origins_are_those_of_the_genuine_files():
    genuine = set()
    for path in real_data("rsna").glob("stage_2_*/*.dcm"):
        dataset = pydicom.dcmread(path)
        several = isinstance(dataset.WindowCenter, pydicom.multival.MultiValue)
        genuine.add(
            (
                dataset.file_meta.TransferSyntaxUID.is_implicit_VR,
                dataset.file_meta.ImplementationVersionName,
                bool(dataset.PixelRepresentation),
                several,
            )
        )
    ours = {(o.implicit, o.version, o.signed, isinstance(o.centre, list)) for o in ORIGINS}
    assert ours == genuine


def test_scrambled_names_never_collide():
    numbers = [*range(5000), *range(64 * TEST_PATIENTS, 64 * TEST_PATIENTS + 5000)]
    names = [scramble(number, 3, 9) for number in numbers]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {12}
    assert scramble(1, 0, 8) != scramble(1, 1, 8)


# CT-ICH -------------------------------------------------------------------------------------------------------------


def _diagnosis(path):
    raw = path.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfPatientNumber,SliceNumber,")
    assert b"\r\n" in raw
    return pd.read_csv(path, encoding="utf-8-sig")


def _check_diagnosis(table, rows):
    assert len(table) == len(rows)
    for cells, row in zip(table.itertuples(index=False), rows, strict=True):
        shown = {name for name in SUBTYPES if getattr(cells, name.capitalize())}
        assert shown == set(filter(None, row["subtypes"].split("|")))
        assert cells.No_Hemorrhage == 1 - int(row["hemorrhage"])
        assert (cells.PatientNumber, cells.SliceNumber) == (int(row["patient_number"]), int(row["slice_number"]))
        assert cells.SliceNumber == int(row["slice"]) + 1, "slice 1 is the lowest"


def test_ct_ich_pictures_and_labels(write, drawn_once):
    out, summary, rows = write("ct_ich")
    table = _diagnosis(out / "hemorrhage_diagnosis.csv")
    genuine = real_data("ct_ich")
    assert list(table.columns) == list(pd.read_csv(genuine / "hemorrhage_diagnosis.csv", encoding="utf-8-sig").columns)
    _check_diagnosis(table, rows)
    absent = [row for row in rows if not row["file"]]
    assert [row["slice_number"] for row in absent] == ["1", "1"]
    assert summary.images == len(rows) - 2 == len(list(out.glob("Patients_CT/*/brain/*.jpg")))
    volume = drawn_once["draw_volume"](2, 1, COARSE, tilted=False)
    with Image.open(out / "Patients_CT" / f"{FIRST_PATIENT + 1:03d}" / "brain" / "14.jpg") as image:
        with Image.open(genuine / "Patients_CT" / "049" / "brain" / "14.jpg") as other:
            assert (image.size, image.mode) == (other.size, other.mode)
            assert image.quantization == other.quantization
        small = np.asarray(image.resize((64, 64), Image.Resampling.BOX)).astype(float)
    want = window_8bit(volume.hu[13], 40, 120).astype(float)
    assert np.abs(small - want).mean() < 6.0
    assert np.abs(small - window_8bit(volume.hu[3], 40, 120)).mean() > 12.0


def test_ct_ich_counts_slices_from_the_neck_as_the_genuine_set_does(write):
    out, _, rows = write("ct_ich")

    def bone_share(path):
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
        return float((grey > 8).mean())

    last = max(int(row["slice_number"]) for row in rows if row["patient_number"] == "50")
    ours = out / "Patients_CT" / "050" / "brain"
    genuine = real_data("ct_ich") / "Patients_CT" / "060" / "brain"
    count = len(list(genuine.glob("*.jpg")))
    # The vertex is the small end of the head.
    assert bone_share(ours / f"{last}.jpg") < 0.5 * bone_share(ours / "8.jpg")
    assert bone_share(genuine / f"{count}.jpg") < bone_share(genuine / "8.jpg")


def test_ct_ich_nifti_holds_hu_masks_and_geometry(write, drawn_once):
    out, _, rows = write("ct_ich_nifti")
    _check_diagnosis(_diagnosis(out / "hemorrhage_diagnosis_raw_ct.csv"), rows)
    volume = drawn_once["draw_volume"](2, 0, COARSE, tilted=False)
    image, mask = (nib.load(out / folder / f"{FIRST_PATIENT:03d}.nii") for folder in ("ct_scans", "masks"))
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert image.header.get_zooms() == pytest.approx((3.6, 3.6, 5.0))
    assert image.get_data_dtype() == np.int16
    assert np.array_equal(image.affine, mask.affine)
    canonical = nib.as_closest_canonical(image).get_fdata()  # x to the right, y anterior, z superior
    want = volume.hu.transpose(2, 1, 0)[::-1, ::-1]
    assert np.array_equal(canonical, want)
    blood = np.asarray(mask.dataobj)
    labels = [row["hemorrhage"] == "1" for row in rows if row["patient_number"] == str(FIRST_PATIENT)]
    assert blood.any(axis=(0, 1)).tolist() == labels
    heights = [float(row["z_mm"]) for row in rows if row["patient_number"] == str(FIRST_PATIENT)]
    assert image.affine[2, 3] == pytest.approx(heights[0], abs=1e-3)


def test_both_releases_of_ct_ich_hold_the_same_people(write):
    jpg, nifti = write("ct_ich")[2], write("ct_ich_nifti")[2]
    assert [(r["patient_number"], r["slice_number"], r["subtypes"]) for r in jpg] == [
        (r["patient_number"], r["slice_number"], r["subtypes"]) for r in nifti
    ]


# CQ500 --------------------------------------------------------------------------------------------------------------


def test_cq500_reads_follow_the_truth_by_majority(write):
    out, _, rows = write("cq500")
    reads = pd.read_csv(out / "reads.csv")
    assert list(reads.columns) == ["name", "Category", *(f"{r}:{f}" for r in READERS for f in FINDINGS)]
    assert list(reads["name"]) == [f"CQ500-CT-{k}" for k in range(8)]
    shown = defaultdict(set)
    for row in rows:
        shown[row["name"]] |= set(filter(None, row["subtypes"].split("|")))
    agree = total = 0
    names = {
        "IPH": "intraparenchymal",
        "IVH": "intraventricular",
        "SDH": "subdural",
        "EDH": "epidural",
        "SAH": "subarachnoid",
        "ICH": "",
    }
    for read in reads.to_dict("records"):
        for short, name in names.items():
            majority = sum(read[f"{reader}:{short}"] for reader in READERS) >= 2
            agree += majority == ((name in shown[read["name"]]) if name else bool(shown[read["name"]]))
            total += 1
        for reader in READERS:
            assert read[f"{reader}:ICH"] == max(read[f"{reader}:{short}"] for short in names if short != "ICH")
    assert agree / total > 0.9


def test_cq500_radiologists_disagree_now_and_then():
    truth = dict.fromkeys(FINDINGS, False) | {"ICH": True, "SDH": True}
    faint = np.mean([read_once(np.random.default_rng(k), truth, 0.05)["ICH"] for k in range(400)])
    plain = np.mean([read_once(np.random.default_rng(k), truth, 0.9)["ICH"] for k in range(400)])
    assert 0.6 < faint < 0.95 < plain < 1.0


def test_cq500_series_are_full_dicom_and_one_is_the_plain_one(write, drawn_once):
    out, _, rows = write("cq500")
    kinds = defaultdict(set)
    for path in out.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert path.parent.parent.name == "Unknown Study"
        name = dataset.PatientID.replace("-", "")
        assert path.parents[2].name == f"{name} {name}"
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.pixel_array.size
        kinds[name].add((path.parent.name, dataset.SeriesInstanceUID))
    folders = {folder for own in kinds.values() for folder, _ in own}
    assert {"CT SCOUT", "CT CORONAL REFORMAT", "CT PLAIN THIN", "CT BONE", "CT D3D"} <= folders
    assert [len(kinds[f"CQ500CT{k}"]) for k in range(4)] == [3, 2, 3, 1]
    volume = drawn_once["draw_volume"](2, 0, COARSE)
    own = [row for row in rows if row["name"] == "CQ500-CT-0"]
    for k in (0, 13, 25):
        dataset = pydicom.dcmread(out / own[k]["file"])
        assert list(dataset.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
        assert float(dataset.SliceThickness) == 5.0
        assert float(dataset.GantryDetectorTilt) == volume.tilt_deg
        assert float(dataset.SliceLocation) == pytest.approx(float(own[k]["z_mm"]), abs=1e-2)
        got = _hu(dataset)
        inside = got >= -1024
        assert np.array_equal(got[inside], volume.hu[k][inside])
    first = [int(next(row for row in rows if row["name"] == f"CQ500-CT-{k}")["file"][-10:-4]) for k in range(8)]
    assert len(set(first)) > 1, "in some series the files run from the vertex down"


def test_cq500_set_aside_series_say_what_they_are(write):
    out, _, _ = write("cq500")

    def one(folder):
        return pydicom.dcmread(sorted(out.glob(f"*/Unknown Study/{folder}/*.dcm"))[0])

    assert "LOCALIZER" in one("CT SCOUT").ImageType
    coronal = one("CT CORONAL REFORMAT")
    assert coronal.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert [round(float(v)) for v in coronal.ImageOrientationPatient] == [1, 0, 0, 0, 0, -1]
    colour = one("CT D3D")
    assert (colour.PhotometricInterpretation, colour.SamplesPerPixel) == ("RGB", 3)
    assert colour.pixel_array.shape == (64, 64, 3)
    thin, bone, plain = one("CT PLAIN THIN"), one("CT BONE"), one("CT P*[nN]")
    assert float(thin.SliceThickness) == 2.5
    assert bone.ConvolutionKernel in {"BONE", "H60s", "D"}
    assert plain.ConvolutionKernel not in {"BONE", "H60s", "D"}
    thin_folder = next(out.glob("*/Unknown Study/CT PLAIN THIN"))
    assert len(list(thin_folder.iterdir())) == 52


def test_the_versions_of_cached_sets_are_unchanged():
    assert {phantom_version(layout) for layout in ("head_ct", "ct_ich", "rsna", "cq500", "six_class")} == {2}
    assert phantom_version("hydrocephalus_mri") == 3


def test_no_two_pictures_are_the_same(write):
    # A slice of nothing but air would make all patients duplicates of each other.
    out, _, _ = write("ct_ich")
    pictures = [path.read_bytes() for path in out.rglob("*.jpg")]
    assert len(set(pictures)) == len(pictures)
    for path in out.glob("Patients_CT/*/brain/*.jpg"):
        with Image.open(path) as image:
            assert np.asarray(image).max() > 60


@pytest.mark.parametrize("layout", VOLUMES)
def test_prune_knows_every_file(write, layout, tmp_path):
    assert prunable(write(layout)[0], layout, tmp_path)
