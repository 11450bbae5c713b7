"""CQ500: three votes per finding, one series per patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.cq500.series import read, report
from hemlearn.data.choice import rank_series
from hemlearn.datamodules.cq500 import majority, patient_of
from hemlearn.util.errors import DataError
from tests.conftest import real_data
from tests.datamodules.slices import module, reasons, write_slice

_FINDINGS = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "Fracture")


def write_reads(root: Path, votes: dict[str, dict[str, str]]) -> Path:
    """``{"CQ500-CT-0": {"SDH": "110"}}``: one sign per radiologist, ``-`` for no vote; others vote 0."""
    lines = ["name,Category," + ",".join(f"R{reader}:{name}" for reader in (1, 2, 3) for name in _FINDINGS)]
    for name, given in votes.items():
        cells = [given.get(finding, "000")[reader].replace("-", "") for reader in range(3) for finding in _FINDINGS]
        lines.append(f"{name},B1,{','.join(cells)}")
    root.mkdir(parents=True, exist_ok=True)
    (root / "reads.csv").write_text("\n".join(lines) + "\n")
    return root


def write_series(root: Path, patient: int, name: str, count: int, **tags: object) -> str:
    """A series folder of CQ500; returns its path."""
    folder = root / f"CQ500CT{patient} CQ500CT{patient}" / "Unknown Study" / name
    series = f"1.{patient}.{sum(map(ord, name))}"
    for k in range(count):
        write_slice(
            folder / f"CT{k:06d}.dcm",
            9.0 * (count - k),
            patient=f"CQ500-CT-{patient}",
            series=series,
            number=k + 1,
            SeriesDescription=name,
            **{"PixelSpacing": [7.0, 7.0], **tags},
        )
    return folder.relative_to(root).as_posix()


def cq500_folder(root: Path) -> Path:
    write_reads(root, {"CQ500-CT-0": {"ICH": "111", "SDH": "110", "EDH": "010"}, "CQ500-CT-1": {"IPH": "1-0"}})
    write_series(root, 0, "CT Plain", 12)
    write_series(root, 1, "CT PRE CONTRAST 5MM STD", 10)
    return root


def test_majority_of_the_votes_given() -> None:
    nan = np.nan
    votes = np.array([[1, 1, 0], [0, 0, 1], [1, nan, nan], [1, 0, nan], [nan, nan, nan], [0, 0, nan]])
    assert np.array_equal(majority(votes), [1, 0, 1, nan, nan, 0], equal_nan=True)


def test_labels_describe_patients_and_slices_repeat_them(tmp_path: Path) -> None:
    manifest = module("cq500", cq500_folder(tmp_path), "task.level=series").read(tmp_path)
    assert manifest.label_level == "series"
    table = manifest.table
    assert table["patient_id"].value_counts().to_dict() == {"CQ500-CT-0": 12, "CQ500-CT-1": 10}
    first = table[table["patient_id"] == "CQ500-CT-0"]
    assert first["z_mm"].is_monotonic_increasing
    assert first[["any", "subdural", "epidural"]].drop_duplicates().to_numpy().tolist() == [[1, 1, 0]]
    assert table.loc[table["patient_id"] == "CQ500-CT-1", "intraparenchymal"].isna().all()  # one against one
    assert manifest.skipped.empty


@pytest.mark.parametrize(
    ("other", "count", "tags", "why"),
    [
        ("CT Thin Bone", 14, {"ConvolutionKernel": "BONE"}, "a sharp kernel (BONE)"),
        ("CT 2", 14, {"ConvolutionKernel": "H70h"}, "a sharp kernel (H70)"),
        ("CT POST CONTRAST", 14, {}, "contrast medium (POST)"),
        ("CT 4cc sec 150cc", 14, {}, "contrast medium (4cc)"),
        ("CT C-2", 14, {}, "contrast medium (C)"),
        ("CT 3D CT HEADORBIT", 14, {}, "described as headorbit"),
        ("CT 5mm", 14, {}, "not said to be plain, as the other is"),
        ("CT other", 14, {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, "derived from other images"),
        ("CT few", 4, {}, "4 slices, only 27 mm covered"),
        ("CT Plain short", 11, {}, "11 slices every 9.0 mm, the other has 12 slices every 9.0 mm"),
    ],
)
def test_series_choice_and_its_reasons(
    tmp_path: Path, other: str, count: int, tags: dict[str, object], why: str
) -> None:
    root = cq500_folder(tmp_path)
    folder = write_series(root, 0, other, count, **tags)
    manifest = module("cq500", root).read(root)
    assert (manifest.table["patient_id"] == "CQ500-CT-0").sum() == 12
    assert reasons(manifest) == {folder: f"another series of this patient is used: {why}"}


def test_more_slices_win_among_equals(tmp_path: Path) -> None:
    root = cq500_folder(tmp_path)
    write_series(root, 0, "CT Plain Thin", 15)
    manifest = module("cq500", root).read(root)
    assert (manifest.table["patient_id"] == "CQ500-CT-0").sum() == 15
    assert len(manifest.series) == 2


def test_a_faulty_series_is_used_where_there_is_no_other_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = cq500_folder(tmp_path)
    write_reads(root, {"CQ500-CT-2": {}})
    write_series(root, 2, "CT POST CONTRAST", 12)
    assert set(module("cq500", root).read(root).table["patient_id"]) == {"CQ500-CT-2"}
    expected = "1 patient has no faultless plain head series: CQ500-CT-2 (CT POST CONTRAST: contrast medium (POST))"
    assert expected in caplog.text


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("CT Plain", []),
        ("CT PRE CONTRAST 5MM STD", []),
        ("CT HEAD WITHOUT IV CONTRAST", []),
        ("CT HEAD W/O", []),
        ("CT NON-CONTRAST", []),
        ("CT C- ", []),
        ("CT POST FOSSA 2mm", []),
        ("CT HEAD post-op", []),
        ("CCT nativ", []),
        ("CCT nach KM", ["contrast medium (KM)"]),
        ("CT HEAD WITHOUT AND WITH CONTRAST", ["contrast medium (CONTRAST)"]),
        ("CT C", ["contrast medium (C)"]),
        ("CT C THIN", ["contrast medium (C)"]),
        ("CT HEAD C+", ["contrast medium (C)"]),
        ("CT CECT THIN", ["contrast medium (CECT)"]),
        ("CT ORAL IV", ["contrast medium (ORAL)"]),
        ("CT ANGIO HEAD", ["contrast medium (ANGIO)"]),
        ("CT HRCT", ["described as hrct"]),
        ("CT THIN BONE PNS", ["described as pns", "a sharp kernel (BONE)"]),
        ("CT NECK", ["described as neck"]),
        ("CT HEAD AND NECK", []),
        ("CT Axial 0.625 HiResVS40", ["a sharp kernel (HiRes)"]),
    ],
)
def test_faults_of_a_name(name: str, faults: list[str]) -> None:
    item = {"description": name, "kernel": "", "kept": 30}
    assert rank_series([item], checks=("anatomy", "contrast", "kernel"))[1] == [faults]


def test_names_agree_with_a_persons_choice() -> None:
    lines = report(read(real_data("cq500_tables")))
    assert "488 patients: same series 411 (84.2 %), same but for thickness 477 (97.7 %)" in lines[0]
    assert "419 of them with series of several names: same series 342 (81.6 %), same but" in lines[1]
    assert lines[4].startswith("without a fault by name: the person's series of 485, hemlearn's of 488 of 488")
    reasons = [line.rpartition(": ")[2] for line in lines[5:]]
    assert reasons.count("hemlearn's says that it is plain, the person's does not") == 8
    assert len(reasons) == 11


def test_what_cannot_be_used_is_recorded(tmp_path: Path) -> None:
    root = cq500_folder(tmp_path)
    write_reads(root, {"CQ500-CT-0": {}, "CQ500-CT-1": {}, "CQ500-CT-2": {}, "CQ500-CT-3": {}})
    scout = write_series(root, 1, "Scout", 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    short = write_series(root, 2, "CT Plain", 3)
    stray = write_series(root, 9, "CT Plain", 1)
    write_slice(root / "other" / "x.dcm")
    found = reasons(module("cq500", root).read(root))
    assert found.pop(f"{scout}/CT000000.dcm") == "localiser"
    assert found.pop(short) == "no series of 10 to 600 slices: CQ500-CT-2, here 3"
    assert found.pop(f"{stray}/CT000000.dcm") == "image without label"
    assert found.pop("other/x.dcm") == "no patient: no folder is named CQ500CT<number>"
    assert found.pop("CQ500-CT-3") == "label without image: no folder of this patient holds images"
    assert not found


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("CQ500-CT-1", "CQ500-CT-0", ["row 3", "has a row already"]),
        ("CQ500-CT-1", "patient 1", ["row 3", "'patient 1' is no patient"]),
        ("R2:IVH", "R2:IV", ["no column 'R2:IVH'"]),
        ("CQ500-CT-1,B1,0", "CQ500-CT-1,B1,3", ["row 3", "R1:ICH='3'"]),
    ],
)
def test_bad_reads_are_named(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    root = cq500_folder(tmp_path)
    file = root / "reads.csv"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError) as caught:
        module("cq500", root).read(root)
    for part in parts:
        assert part in str(caught.value)


def test_contradicting_reads_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = cq500_folder(tmp_path)
    write_reads(root, {"CQ500-CT-0": {"SDH": "111"}, "CQ500-CT-1": {}})
    module("cq500", root).read(root)
    assert "1 of 2 rows state no hemorrhage (any = 0) beside a subtype; the first is CQ500-CT-0" in caplog.text


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"reads\.csv: no such file"):
        module("cq500", tmp_path).read(tmp_path)
    write_reads(tmp_path, {"CQ500-CT-0": {}})
    with pytest.raises(DataError, match="no image of the 1 patient in"):
        module("cq500", tmp_path).read(tmp_path)


def test_patients_are_named_by_their_folder() -> None:
    assert patient_of("CQ500CT12 CQ500CT12/Unknown Study/CT/CT000001.dcm") == "CQ500-CT-12"
    assert patient_of("qct01/CQ500CT012/x.dcm") == "CQ500-CT-12"
    assert patient_of("CQ500CT12.dcm") == ""
