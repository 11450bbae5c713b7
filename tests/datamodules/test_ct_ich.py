"""CT-ICH as pictures and as NIfTI volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import reader_for
from hemlearn.datamodules.rsna import LABELS
from hemlearn.util.errors import DataError
from tests.conftest import real_data
from tests.datamodules.slices import module, reasons, write_volume

_HEADER = (
    "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,"
    "No_Hemorrhage,Fracture_Yes_No"
)


def write_labels(file: Path, rows: list[tuple[int, int, str]]) -> None:
    """(patient, slice, subtype or "") per row, with a byte-order mark and DOS line ends as on PhysioNet."""
    names = _HEADER.split(",")[2:7]
    lines = [
        f"{patient},{number},{','.join(str(int(name == kind)) for name in names)},{int(not kind)},0"
        for patient, number, kind in rows
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\ufeff" + "\r\n".join([_HEADER, *lines]) + "\r\n", encoding="utf-8", newline="")


def write_picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40), dtype=np.uint8)).save(path)


def jpg_folder(root: Path) -> Path:
    rows = [(49, k, "Epidural" if k == 2 else "") for k in range(1, 12)]
    write_labels(root / "hemorrhage_diagnosis.csv", [*rows, (50, 1, ""), (50, 2, "Subdural")])
    for patient, count in ((49, 11), (50, 2)):
        for number in range(1, count + 1):
            write_picture(root / "Patients_CT" / f"{patient:03d}" / "brain" / f"{number}.jpg", 100 * patient + number)
    return root


def nifti_folder(root: Path, **options: object) -> Path:
    write_labels(root / "hemorrhage_diagnosis_raw_ct.csv", [(49, k, "Subdural" if k == 2 else "") for k in range(1, 6)])
    write_volume(root / "ct_scans" / "049.nii", 5, **options)  # type: ignore[arg-type]
    write_volume(root / "masks" / "049.nii", 5)
    return root


def test_pictures_are_ordered_by_number_from_below(tmp_path: Path) -> None:
    manifest = module("ct_ich", jpg_folder(tmp_path)).manifest
    table = manifest.table
    assert table["slice_id"].tolist() == [f"049_{k:02d}" for k in range(1, 12)] + ["050_01", "050_02"]
    assert table["patient_id"].tolist() == ["049"] * 11 + ["050"] * 2
    assert table["z_mm"].tolist() == [5.0 * k for k in range(11)] + [0.0, 5.0]
    assert table["path"].iloc[9] == "Patients_CT/049/brain/10.jpg"
    assert table.loc[table["any"] == 1, "slice_id"].tolist() == ["049_02", "050_02"]
    assert table[list(LABELS)].sum().to_dict() == {
        "epidural": 1,
        "intraparenchymal": 0,
        "intraventricular": 0,
        "subarachnoid": 0,
        "subdural": 1,
        "any": 2,
    }
    assert manifest.series["spacing_mm"].tolist() == [5.0, 5.0]
    assert any("5 mm apart" in note for note in manifest.notes)


def test_other_windows_and_segmentations_are_left_alone_and_told(tmp_path: Path) -> None:
    root = jpg_folder(tmp_path)
    write_picture(root / "Patients_CT" / "049" / "bone" / "1.jpg")
    write_picture(root / "Patients_CT" / "049" / "brain" / "2_HGE_Seg.jpg")
    manifest = module("ct_ich", root).manifest
    assert len(manifest.table) == 13
    assert manifest.skipped.empty
    told = " ".join(manifest.notes)
    assert "1 segmentation (" in told
    assert "1 picture of other windows (bone)" in told


def test_missing_and_stray_pictures_are_recorded_and_make_a_gap(tmp_path: Path) -> None:
    root = jpg_folder(tmp_path)
    (root / "Patients_CT" / "049" / "brain" / "5.jpg").unlink()
    write_picture(root / "Patients_CT" / "050" / "brain" / "3.jpg", 7)
    manifest = module("ct_ich", root).manifest
    assert reasons(manifest) == {
        "Patients_CT/049/brain/5.jpg": "label without image: Patients_CT/049/brain/5.jpg does not exist",
        "Patients_CT/050/brain/3.jpg": "image without label",
    }
    row = manifest.series.iloc[0]
    assert (row["slices"], row["gaps"], row["spacing_max"]) == (10, 1, 10.0)
    assert manifest.summary()["geometry"] == {"uneven spacing": 1}


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("49,3,", "49,x,", ["row 4", "SliceNumber='x'"]),
        ("49,3,", "0,3,", ["row 4", "PatientNumber='0'"]),
        ("49,3,0", "49,3,2", ["row 4", "Intraventricular='2'"]),
        ("49,3,", "49,2,", ["row 4", "049_02", "has a row already"]),
        ("No_Hemorrhage", "Bleed", ["no column 'No_Hemorrhage'"]),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    root = jpg_folder(tmp_path)
    file = root / "hemorrhage_diagnosis.csv"
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        module("ct_ich", root).read(root)
    for part in parts:
        assert part in str(caught.value)


def test_a_row_with_and_without_hemorrhage_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = jpg_folder(tmp_path)
    file = root / "hemorrhage_diagnosis.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("49,2,0,0,0,1,0,0", "49,2,0,0,0,1,0,1"), encoding="utf-8")
    module("ct_ich", root).read(root)
    assert "1 of 13 rows state no hemorrhage (any = 0) beside a subtype; the first is 049_02" in caplog.text


@pytest.mark.parametrize("flipped", [False, True])
def test_slice_numbers_follow_the_array_and_positions_the_affine(tmp_path: Path, flipped: bool) -> None:
    root = nifti_folder(tmp_path, flipped=flipped)
    manifest = module("ct_ich", root).manifest
    table = manifest.table
    numbers = [5, 4, 3, 2, 1] if flipped else [1, 2, 3, 4, 5]
    assert table["slice_id"].tolist() == [f"049_{number:02d}" for number in numbers]  # from below
    assert np.diff(table["z_mm"]).tolist() == [5.0] * 4
    for row, number in zip(table.itertuples(), numbers, strict=True):
        # Plane k of the array holds k HU: each label stands on the plane that its number counts.
        pixels = reader_for(row.path).decode(root / row.path, row.frame, "CT")
        assert np.median(pixels) == number - 1
    assert table.loc[table["subdural"] == 1, "slice_id"].tolist() == ["049_02"]
    assert (table["modality"] == "CT").all()
    assert manifest.series["spacing_mm"].tolist() == [5.0]
    assert "segmentations (masks/) are not read" in manifest.notes


def test_volumes_and_labels_that_do_not_match_are_recorded(tmp_path: Path) -> None:
    root = nifti_folder(tmp_path)
    rows = [(49, k, "") for k in (1, 2, 3, 4, 9)] + [(60, 1, "")]
    write_labels(root / "hemorrhage_diagnosis_raw_ct.csv", rows)
    write_volume(root / "ct_scans" / "070.nii", 3)
    manifest = module("ct_ich", root).manifest
    assert len(manifest.table) == 4
    assert reasons(manifest) == {
        "ct_scans/070.nii": "image without label",
        "ct_scans/049.nii#4": "image without label",
        "049_09": "label without image: ct_scans/049.nii has no slice 9",
        "060_01": "label without image: no ct_scans/060.nii",
    }


def test_neither_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds neither"):
        module("ct_ich", tmp_path).read(tmp_path)


def test_real_pictures() -> None:
    root = real_data("ct_ich")
    manifest = module("ct_ich", root, "split.duplicates=none").manifest
    summary = manifest.summary()
    assert (summary["patients"], summary["slices"], summary["series"]) == (57, 1712, 57)
    assert summary["skipped"] == {"label without image": 18}
    assert summary["labels"]["any"]["unknown"] == 0
    assert manifest.series["slices"].sum() == 1712
    ordered = manifest.table.groupby("series_id")["z_mm"].agg(lambda z: z.is_monotonic_increasing)
    assert ordered.all()
    # Of the 18 absent pictures two are the first of their series and leave no gap.
    assert (manifest.series["gaps"].sum(), (manifest.series["spacing_max"] == 10).sum()) == (16, 13)


def test_ages_and_sexes_are_covariates_that_change_no_run(tmp_path: Path) -> None:
    before = module("ct_ich", jpg_folder(tmp_path)).manifest
    assert list(before.covariates) == ["thickness_mm", "spacing_mm"]
    (tmp_path / "patient_demographics.csv").write_text("patient,age,sex\n49,35.0,Male\n99,5.0,Female\n")
    after = module("ct_ich", tmp_path).manifest
    assert after.checksum == before.checksum
    known = after.covariates.groupby(after.table["patient_id"]).first()
    assert known.loc["049", ["age", "sex"]].tolist() == [35.0, "Male"]
    assert np.isnan(known.loc["050", "age"])
    assert known.loc["050", "sex"] == ""
    after.save(tmp_path / "saved")
    assert Manifest.load(tmp_path / "saved").covariates.equals(after.covariates)
    (tmp_path / "patient_demographics.csv").write_text("patient,age,sex\n49,35.0,Male\n49,36.0,Male\n")
    with pytest.raises(DataError, match=r"patient='49' has two values of age: '35.0' in row 2, '36.0' in row 3"):
        _ = module("ct_ich", tmp_path).manifest
