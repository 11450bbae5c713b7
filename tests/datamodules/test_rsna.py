"""The RSNA 2019 layout, with the faults of its label file and of its DICOM headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hemlearn.datamodules.rsna import LABELS, read_labels
from hemlearn.util.errors import DataError
from tests.conftest import real_data
from tests.datamodules.slices import module, reasons, write_slice


def label_lines(image: str, positive: str = "") -> list[str]:
    hits = {positive, "any"} if positive else set()
    return [f"{image}_{label},{int(label in hits)}" for label in LABELS]


def write_labels(file: Path, lines: list[str]) -> Path:
    file.write_text("ID,Label\n" + "\n".join(lines) + "\n")
    return file


def rsna_folder(root: Path) -> Path:
    """Two patients with three slices each, in no order of names; one test slice."""
    lines = []
    for k, (patient, z) in enumerate([("a", 10), ("b", 0), ("a", 0), ("b", 5), ("a", 5), ("b", 10)]):
        image = f"ID_00000000{k}"
        write_slice(root / "stage_2_train" / f"{image}.dcm", z, patient=f"ID_{patient}", series=f"1.{ord(patient)}")
        lines += label_lines(image, "subdural" if patient == "a" and z == 5 else "")
    write_slice(root / "stage_2_test" / "ID_0000000ff.dcm", 0, patient="ID_c", series="1.50")
    write_labels(root / "stage_2_train.csv", lines)
    return root


def test_train_folder_becomes_ordered_series(tmp_path: Path) -> None:
    manifest = module("rsna", rsna_folder(tmp_path)).manifest
    table = manifest.table
    assert table["slice_id"].tolist() == [f"ID_00000000{k}" for k in (2, 4, 0, 1, 3, 5)]
    assert table["patient_id"].tolist() == ["ID_a"] * 3 + ["ID_b"] * 3
    assert table["z_mm"].tolist() == [0, 5, 10] * 2
    assert table[list(LABELS)].sum().to_dict() == dict.fromkeys(LABELS, 0) | {"subdural": 1, "any": 1}
    assert table.loc[table["subdural"] == 1, "slice_id"].tolist() == ["ID_000000004"]
    assert manifest.labels == LABELS
    assert manifest.label_level == "slice"
    assert manifest.series[["slices", "kept", "spacing_mm"]].to_numpy().tolist() == [[3, 3, 5.0]] * 2
    assert manifest.summary()["series"] == 2


def test_the_test_folder_has_no_labels_and_loses_no_slice(tmp_path: Path) -> None:
    root = rsna_folder(tmp_path)
    write_slice(root / "stage_2_test" / "ID_0000000fe.dcm", 0, patient="ID_c", series="1.50", seed=3)
    data = module("rsna", root, "data.geometry.duplicates=refuse", "data.geometry.min_slices=3")
    manifest = data.test_manifest()
    assert sorted(manifest.table["slice_id"]) == ["ID_0000000fe", "ID_0000000ff"]
    assert manifest.table[list(LABELS)].isna().all(axis=None)
    assert manifest.table["path"].str.startswith("stage_2_test/").all()


def test_files_one_level_deeper_are_found(tmp_path: Path) -> None:
    rsna_folder(tmp_path / "rsna-intracranial-hemorrhage-detection")
    assert len(module("rsna", tmp_path).manifest.table) == 6


def test_rows_without_files_and_files_without_rows_are_recorded(tmp_path: Path) -> None:
    root = rsna_folder(tmp_path)
    (root / "stage_2_train" / "ID_000000000.dcm").unlink()
    (root / "stage_2_train" / "ID_000000001.dcm").write_text("no image")
    write_slice(root / "stage_2_train" / "ID_0000000aa.dcm", 0, patient="ID_z", series="1.9")
    manifest = module("rsna", root).manifest
    found = reasons(manifest)
    assert found["ID_000000000"] == "label without image: stage_2_train/ID_000000000.dcm does not exist"
    assert found["stage_2_train/ID_0000000aa.dcm"] == "image without label"
    assert "stage_2_train/ID_000000001.dcm" in found
    assert len(found) == 3
    assert len(manifest.table) == 4


def test_two_patients_under_one_series_id_are_left_out(tmp_path: Path) -> None:
    root = rsna_folder(tmp_path)
    write_slice(root / "stage_2_train" / "ID_000000000.dcm", 10, patient="ID_x", series=f"1.{ord('a')}")
    manifest = module("rsna", root).manifest
    assert manifest.table["patient_id"].unique().tolist() == ["ID_b"]
    told = {reason for item, reason in reasons(manifest).items() if item.endswith(("0.dcm", "2.dcm", "4.dcm"))}
    assert told == {"two patients in one series: series '1.97' holds slices of 'ID_x', 'ID_a'"}


def test_repeated_rows_that_agree_count_once(tmp_path: Path) -> None:
    lines = label_lines("ID_1", "epidural") + label_lines("ID_2") + label_lines("ID_1", "epidural")
    table, notes = read_labels(write_labels(tmp_path / "x.csv", lines))
    assert table.index.tolist() == ["ID_1", "ID_2"]
    assert table.loc["ID_1"].to_dict() == dict.fromkeys(LABELS, 0) | {"epidural": 1, "any": 1}
    assert notes == ["x.csv: 6 repeated rows (1 image) agree and count once"]


def test_missing_and_empty_labels_are_unknown(tmp_path: Path) -> None:
    lines = [*label_lines("ID_1")[:5], "ID_2_any,", *label_lines("ID_3")]
    table, notes = read_labels(write_labels(tmp_path / "x.csv", lines))
    assert np.isnan(table.loc["ID_1", "any"])
    assert table.loc["ID_2"].isna().all()
    assert table.loc["ID_3"].notna().all()
    assert "6 of 18 labels are missing, the first is ID_" in notes[0]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("ID_1_epidural,1", ["row 14", "ID_1_epidural is 1 here and 0 in an earlier row"]),
        ("\nID_1_epidural,1", ["row 15", "ID_1_epidural is 1 here"]),
        ("\n\nID_7_any,2", ["row 16", "Label='2'"]),
        ("ID_1_stroke,1", ["row 14", "'ID_1_stroke'"]),
        ("000012_any,1", ["row 14", "'000012_any'"]),
        ("ID_7_any,2", ["row 14", "Label='2'", "ID_7_any"]),
        ("ID_7_any,1,5", ["Expected 2 columns, got 3"]),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, parts: list[str]) -> None:
    lines = label_lines("ID_1") + label_lines("ID_2")
    with pytest.raises(DataError) as caught:
        read_labels(write_labels(tmp_path / "x.csv", [*lines, line]))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "ID,Label\n", "id;label\nID_1_any;0\n"])
def test_files_that_are_no_label_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=r"x\.csv"):
        read_labels(tmp_path / "x.csv")


def test_any_that_contradicts_its_subtypes_is_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = rsna_folder(tmp_path)
    text = (root / "stage_2_train.csv").read_text()
    text = text.replace("ID_000000004_any,1", "ID_000000004_any,0").replace("ID_000000001_any,0", "ID_000000001_any,1")
    (root / "stage_2_train.csv").write_text(text)
    manifest = module("rsna", root).manifest
    assert "1 of 6 rows state no hemorrhage (any = 0) beside a subtype; the first is ID_000000004" in caplog.text
    assert len(manifest.notes) == 2
    assert manifest.table.set_index("slice_id")["any"]["ID_000000001"] == 1  # used as given


def test_no_label_file_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage_2_train\.csv: no such file"):
        module("rsna", tmp_path).read(tmp_path)
    write_labels(tmp_path / "stage_2_train.csv", label_lines("ID_1"))
    with pytest.raises(DataError, match="holds none of the 1 image that"):
        module("rsna", tmp_path).read(tmp_path)


def test_large_label_file_is_read_in_blocks(tmp_path: Path) -> None:
    images = np.array([f"ID_{k:09x}" for k in range(30_000)])
    ids = pd.Series(np.repeat(images, 6)) + "_" + pd.Series(list(LABELS) * len(images))
    lines = pd.DataFrame({"ID": ids, "Label": np.arange(len(ids)) % 6 // 5})  # any = 1, about 4.5 MB
    lines.to_csv(tmp_path / "x.csv", index=False)
    table, _ = read_labels(tmp_path / "x.csv")
    assert table["any"].eq(1).all()
    assert table.index.tolist() == images.tolist()
    with (tmp_path / "x.csv").open("a") as file:
        file.write("oops,0\n")
    with pytest.raises(DataError, match="row 180002"):
        read_labels(tmp_path / "x.csv")


def test_real_slices() -> None:
    root = real_data("rsna")
    data = module("rsna", root)
    manifest = data.manifest
    assert (len(manifest.table), manifest.table["patient_id"].nunique()) == (10, 10)
    assert manifest.skipped.empty
    assert manifest.table["patient_id"].str.match("ID_").all()
    assert manifest.series["problems"].str.startswith("a single slice").all()
    hits = manifest.table.set_index("slice_id")
    assert hits.loc["ID_07c9bea25", ["subdural", "any"]].tolist() == [1, 1]
    assert len(data.test_manifest().table) == 4


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read(tmp_path: Path, encoding: str, sign: str) -> None:
    text = "ID,Label\n" + "\n".join(label_lines("ID_1", "subdural")) + "\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (tmp_path / "x.csv").write_bytes(mark + text.replace(",", sign).encode(encoding))
    table, _ = read_labels(tmp_path / "x.csv")
    assert table.loc["ID_1"].to_dict() == dict.fromkeys(LABELS, 0.0) | {"subdural": 1.0, "any": 1.0}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("ID,Label\nID_1_any,1\n".encode("utf-16-le"), r"no column 'ID'|cannot be read"),
        (b"ID,Label\nID_1_any\xff,1\n", "cannot be read as a table"),
        (b"I\xffD,Label\nID_1_any,1\n", "cannot be read as a table"),
        (b"ID,Label,Label\nID_1_any,1,1\n", "names a column twice"),
        (b"ID,Label\nID_1_a\0ny,1\n", "is not ID_<image>_<label>"),
        (b'ID,Label\n"ID_1_any,1\n', "cannot be read|is not ID_|no rows"),
        (b"\xef\xbb\xbf", "cannot be read"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "x.csv").write_bytes(raw)
    with pytest.raises(DataError, match=words):
        read_labels(tmp_path / "x.csv")


def test_the_places_of_test_slices_are_known_without_their_pixels(tmp_path: Path) -> None:
    root = rsna_folder(tmp_path)
    broken = write_slice(root / "stage_2_test" / "ID_0000000fe.dcm", 5, patient="ID_c", series="1.50")
    broken.write_bytes(broken.read_bytes()[:-500])
    data = module("rsna", root)
    manifest = data.test_manifest()
    assert manifest.table["slice_id"].tolist() == ["ID_0000000ff"]
    assert reasons(manifest).keys() == {"stage_2_test/ID_0000000fe.dcm"}
    assert data.test_slices[0][["slice_id", "z_mm"]].to_numpy().tolist() == [["ID_0000000ff", 0], ["ID_0000000fe", 5]]
