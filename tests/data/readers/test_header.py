from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from hemlearn.data import scan as module
from hemlearn.data.readers import reader_for
from hemlearn.data.readers.headers import COLUMNS, Header
from hemlearn.data.scan import read_headers
from hemlearn.util.errors import DataError
from tests.conftest import real_data
from tests.data.conftest import Counts
from tests.data.readers.files import WHEEL, ct, nifti, slice_hu, write


def read(root: Path, *paths: str, **options: Any) -> pd.DataFrame:
    return read_headers(paths, root, **({"progress": False} | options))


def one(tmp_path: Path, **elements: Any) -> Any:
    return read_header(write(tmp_path / "a.dcm", ct(slice_hu(), **elements)))[0]


def test_the_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", ct(slice_hu(), ConvolutionKernel="H30s", Manufacturer="M", SeriesDescription="Head"))
    table = read(tmp_path, "a.dcm")
    assert tuple(table) == (*COLUMNS, "reason")
    row = table.iloc[0]
    assert (row.path, row.frame, row.modality, row.patient_id, row.study_id) == ("a.dcm", 0, "CT", "p", "1.2")
    assert (row.series_id, row.z_mm, row.normal, row.instance_number) == ("1.2.3", 12.5, (0, 0, 1), 1)
    assert (row.pixel_mm, row.thickness_mm, row.tilt_deg, row.rows, row["columns"]) == ((0.5, 0.5), 5, 0, 32, 32)
    assert (row.image_type, row.kernel, row.manufacturer) == ("ORIGINAL\\PRIMARY\\AXIAL", "H30s", "M")
    assert (row.description, row.set_aside, row.reason) == ("Head", "", "")


def test_the_real_ge_series() -> None:
    root = real_data("ge_head_ct_series")
    table = read(root, *sorted(path.name for path in root.glob("*.dcm")))
    assert (table["set_aside"] == "").all()
    assert np.allclose(table["tilt_deg"], 18.5, atol=0.01)
    gaps = np.diff(table["z_mm"])
    # The table moved by 4.22, 1.14 and 7.38 mm; along the normal of the tilted slices that is cos(18.5 deg) of it.
    assert np.allclose(gaps[:13], 4.22 * np.cos(np.radians(18.5)), atol=0.01)
    assert gaps[13] == pytest.approx(1.14 * np.cos(np.radians(18.5)), abs=0.01)
    assert np.allclose(gaps[14:], 7.38 * np.cos(np.radians(18.5)), atol=0.01)
    assert table["series_id"].nunique() == 1


def test_the_real_rsna_slices() -> None:
    root = real_data("rsna")
    table = read(root, *sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.dcm")))
    assert len(table) == 14
    assert (table[["set_aside", "reason"]] == "").all(axis=None)
    assert table["patient_id"].nunique() == 14
    assert table["instance_number"].isna().all()
    assert table["z_mm"].notna().all()
    assert table["tilt_deg"].between(-30, 30).all()


def test_every_file_of_pydicoms_wheel_has_a_row() -> None:
    names = sorted(path.relative_to(WHEEL).as_posix() for path in WHEEL.rglob("*") if path.is_file())
    table = read(WHEEL, *names)
    assert table["path"].drop_duplicates().tolist() == names
    rows = table.drop_duplicates("path").set_index("path")
    good = rows[(rows["reason"] == "") & (rows["set_aside"] == "")]
    assert {"CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"} <= set(good.index)
    assert set(good["modality"]) == {"CT", "MR"}
    for name, why in {
        "examples_overlay.dcm": "derived: CSA MPR",
        "rtplan.dcm": "non-image object: RTPLAN",
        "test-SR.dcm": "non-image object: SR",
        "SC_rgb_rle.dcm": "modality OT",
        "liver_1frame.dcm": "modality SEG",
    }.items():
        assert rows.loc[name, "set_aside"].startswith(why), name
    assert rows.loc["README.txt", "reason"].startswith("unknown kind of file")
    assert rows.loc["no_meta.dcm", "reason"].startswith("not a DICOM file")
    assert (table["path"] == "rtdose.dcm").sum() == 15


@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localiser"),
        ({"ImageType": ["DERIVED", "SECONDARY", "3D"]}, "derived: 3D"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MIP"]}, "derived: MIP"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE REPORT"]}, "screen capture: DOSE REPORT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"], "Modality": "MR"}, "derived map: P"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "SE"], "Modality": "MR"}, "derived map: P"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "I_FFE", "I"], "Modality": "MR"}, "derived map: I"),
        ({"ComplexImageComponent": "PHASE", "Modality": "MR"}, "derived map: ComplexImageComponent PHASE"),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "Modality": "MR"},
            "several slices in one picture",
        ),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], "Modality": "MR"}, "derived map: ADC"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "FA"], "Modality": "MR"}, "derived map: FA"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SUBTRACTION"], "Modality": "MR"}, "derived map: SUBTRACTION"),
        ({"PixelSpacing": [3.4, 0.5]}, "not axial: pixels of 3.4 x 0.5 mm"),
        ({"ImageType": ["ORIGINAL", "PRIMARY"], "SeriesDescription": "Lateral Scout"}, "localiser: described as scout"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "derived: MPR"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen capture: SCREEN SAVE"),
        ({"ImageType": ["DERIVED", "SECONDARY", "CBF"]}, "derived map: CBF"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour: RGB"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "1-bit image"),
        ({"Rows": None}, "no pixels"),
        ({"Modality": "SR", "Rows": None}, "non-image object: SR"),
        ({"Modality": "PT"}, "modality PT: neither CT nor MR"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "not axial: sagittal"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "not axial: coronal"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "RescaleIntercept": None}, "secondary capture"),
        ({"SOPClassUID": SecondaryCaptureImageStorage, "ImageOrientationPatient": None}, "secondary capture"),
        # Good data that must not be lost:
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "Modality": "MR"}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M_SE", "M", "SE"], "Modality": "MR"}, ""),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"], "Modality": "MR"}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "P"]}, ""),
        ({"PixelSpacing": [1, 0.5]}, ""),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, ""),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, ""),
        ({"ImageType": None}, ""),
        ({"SeriesDescription": "Head after scout"}, ""),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, ""),
        ({"ImagePositionPatient": None, "ImageOrientationPatient": None}, ""),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.866, -0.5]}, ""),
    ],
)
def test_what_is_set_aside(tmp_path: Path, elements: dict[str, Any], why: str) -> None:
    found = one(tmp_path, **elements).set_aside
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_a_file_without_pixels(tmp_path: Path) -> None:
    data = ct(slice_hu())
    del data.PixelData
    assert read_header(write(tmp_path / "a.dcm", data))[0].set_aside == "no pixels"


def test_positions_rise_towards_the_head(tmp_path: Path) -> None:
    assert one(tmp_path, ImagePositionPatient=[0, 0, 40]).z_mm == 40
    # Seen from above instead of from below, and prone: the normal still points up.
    for orientation in ([-1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [1, 0, 0, 0, -1, 0]):
        found = one(tmp_path, ImagePositionPatient=[0, 0, 40], ImageOrientationPatient=orientation)
        assert (found.normal, found.z_mm) == ((0, 0, 1), 40)
    tilted = one(tmp_path, ImagePositionPatient=[7, 10, 40], ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6])
    assert tilted.normal == pytest.approx((0, 0.6, 0.8))
    assert tilted.z_mm == pytest.approx(38)
    assert tilted.tilt_deg == pytest.approx(36.87, abs=0.01)


def test_the_tilt_is_that_of_the_geometry_where_it_is_known(tmp_path: Path) -> None:
    cos, sin = np.cos(np.radians(15)), np.sin(np.radians(15))
    leaning = [1, 0, 0, 0, float(cos), float(-sin)]
    for tag in (None, 0, 15, -15):  # left at zero, and the signs of GE and Philips
        found = one(tmp_path, ImageOrientationPatient=leaning, GantryDetectorTilt=tag)
        assert found.tilt_deg == pytest.approx(15, abs=0.01)
    assert one(tmp_path, GantryDetectorTilt=15).tilt_deg == 0
    assert one(tmp_path, ImageOrientationPatient=None, GantryDetectorTilt=-12).tilt_deg == -12


def test_what_is_not_known(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        SliceThickness=None,
        InstanceNumber=None,
        PatientID=None,
    )
    assert np.isnan([found.z_mm, found.thickness_mm, found.tilt_deg]).all()
    assert (found.normal, found.pixel_mm, found.instance_number, found.patient_id) == (None, None, None, "")
    # A position tells the height without an orientation; which way the slice faces is not known then.
    for absent in (None, [1, 0, 0, 1, 0, 0]):
        found = one(tmp_path, ImageOrientationPatient=absent)
        assert (found.z_mm, found.normal) == (12.5, None)
        assert "no ImageOrientationPatient" in found.remark
    table = read(tmp_path, "a.dcm")
    assert table["normal"].item() is None


def test_frames_of_an_enhanced_object(tmp_path: Path) -> None:
    data = ct(
        np.stack([slice_hu(seed) for seed in range(3)]),
        PixelSpacing=None,
        SliceThickness=None,
        ImageOrientationPatient=None,
    )
    groups = []
    for frame in range(3):
        place = Dataset()
        place.ImagePositionPatient = [0, 0, 10 - 5 * frame]
        group = Dataset()
        group.PlanePositionSequence = [place]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.4, 0.4], 5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    data.SharedFunctionalGroupsSequence = [shared]
    write(tmp_path / "a.dcm", data)
    table = read(tmp_path, "a.dcm")
    assert table["z_mm"].tolist() == [10, 5, 0]
    assert table["frame"].tolist() == [0, 1, 2]
    assert table["instance_number"].tolist() == [1, 2, 3]
    assert table["pixel_mm"].tolist() == [(0.4, 0.4)] * 3
    del data.PerFrameFunctionalGroupsSequence
    write(tmp_path / "b.dcm", data)
    assert read(tmp_path, "b.dcm")["z_mm"].isna().all()  # one position cannot be that of every frame


def test_a_second_look_reads_only_what_changed(tmp_path: Path, counts: Counts) -> None:
    for item in range(4):
        write(tmp_path / f"{item}.dcm", ct(slice_hu(), InstanceNumber=item, NumberOfFrames=None))
    nifti(tmp_path / "v.nii.gz", np.zeros((9, 9, 3), np.int16))
    (tmp_path / "text.dcm").write_text("no")
    names = ["3.dcm", "v.nii.gz", "text.dcm", "absent.dcm", *(f"{item}.dcm" for item in range(3))]
    counts.clear()
    first = read(tmp_path, *names, cache_dir=tmp_path / "cache", n_jobs=1)
    assert first["path"].drop_duplicates().tolist() == names
    assert first["frame"].tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 0]
    assert first.set_index("path")["reason"]["absent.dcm"].startswith("cannot be opened: No such file")
    images = {name: times for name, times in counts.opened.items() if not name.endswith(".lock")}  # of the kept table
    assert images == dict.fromkeys((*(f"{item}.dcm" for item in range(4)), "text.dcm", "v.nii.gz"), 1)
    write(tmp_path / "1.dcm", ct(slice_hu(), InstanceNumber=77, SeriesDescription="longer than before"))
    counts.clear()
    again = read(tmp_path, *names, cache_dir=tmp_path / "cache", n_jobs=1)
    assert {name for name in counts.opened if ".parquet" not in name} == {"text.dcm", "1.dcm"}
    same = again["path"] != "1.dcm"
    pd.testing.assert_frame_equal(again[same], first[same])
    assert again.set_index("path")["instance_number"]["1.dcm"] == 77
    counts.clear()
    part = read(tmp_path, "2.dcm", cache_dir=tmp_path / "cache")
    assert (len(part), counts.opened["2.dcm"]) == (1, 0)


def test_headers_are_read_by_several_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    for item in range(5):
        write(tmp_path / f"{item}.dcm", ct(slice_hu(), InstanceNumber=item))
    table = read(tmp_path, *(f"{item}.dcm" for item in range(5)), n_jobs=2)
    assert table["instance_number"].tolist() == [0, 1, 2, 3, 4]


def read_header(path: Path) -> list[Header]:
    return reader_for(path).open(path, pixels=False).headers(str(path))


def test_files_without_headers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    with pytest.raises(DataError, match="an image file without a header"):
        read_header(tmp_path / "a.png")
    assert read(tmp_path).empty
    assert tuple(read(tmp_path)) == (*COLUMNS, "reason")
