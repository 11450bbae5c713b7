"""data=table: kinds of file by content, and what its pictures show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.audits.audit import audit_manifest
from hemlearn.config.compose import compose
from hemlearn.config.identity import run_hash
from hemlearn.config.schema import GeometryConfig
from hemlearn.datamodules.table import TableDataModule
from hemlearn.reading.find import find_input
from hemlearn.reading.series import InputRules
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import Run
from hemlearn.util.errors import ConfigError, DataError
from hemlearn.util.files import write_json, write_text
from tests.conftest import seal
from tests.datamodules.slices import reasons, write_slice, write_volume


def table(file: Path, *overrides: str) -> Any:
    """The data module of a CSV with the label ``bleed``."""
    return build_datamodule(compose(["data=table", f"data.manifest={file}", "task.labels=[bleed]", *overrides]))


def pacs_folder(root: Path, name: str) -> Path:
    """Six slices, a reformat in another plane and a localiser named like ``name``; the CSV of their labels."""
    paths = [name.format(k) for k in range(8)]
    for k in range(6):
        write_slice(root / paths[k], 5.0 * (5 - k), number=k + 1)
    write_slice(root / paths[6], 0.0, series="1.2.4", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    write_slice(root / paths[7], 0.0, series="1.2.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    pd.DataFrame({"path": paths, "patient_id": "p", "bleed": 1}).to_csv(root / "my.csv", index=False)
    return root / "my.csv"


def pictures(root: Path, count: int = 4, **columns: Any) -> Path:
    """Grey PNG files of as many patients and their CSV, with further columns."""
    rng = np.random.default_rng(0)
    paths = [f"p{k}.png" for k in range(count)]
    root.mkdir(parents=True, exist_ok=True)
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(root / path)
    rows = {"path": paths, "patient_id": [f"p{k}" for k in range(count)], "bleed": [k % 2 for k in range(count)]}
    pd.DataFrame(rows | columns).to_csv(root / "my.csv", index=False)
    return root / "my.csv"


def copies(root: Path, paths: list[str], **columns: Any) -> Path:
    """A CSV of rows that name the pictures p0.png ... in these spellings."""
    pictures(root)
    rows = {
        "path": paths,
        "patient_id": [f"x{k}" for k in range(len(paths))],
        "bleed": [k % 2 for k in range(len(paths))],
    }
    pd.DataFrame(rows | columns).to_csv(root / "my.csv", index=False)
    return root / "my.csv"


def rules(modality: str, tmp_path: Path) -> InputRules:
    return InputRules(modality, modality or "CT", GeometryConfig(min_slices=1), float("nan"), tmp_path / "cache")


@pytest.mark.parametrize("name", ["IM{:04d}", "{}.ima", "1.2.840.{}", "slice{}.dat", "{}.dcm"])
def test_dicom_files_are_told_by_content_whatever_their_name(tmp_path: Path, name: str) -> None:
    file = pacs_folder(tmp_path / "in", name)
    manifest = table(file).manifest
    assert manifest.table["z_mm"].tolist() == [0, 5, 10, 15, 20, 25]
    assert manifest.table["path"].tolist() == [name.format(k) for k in (5, 4, 3, 2, 1, 0)]
    found = {path: reason.partition(":")[0].partition(" (")[0] for path, reason in reasons(manifest).items()}
    assert found == {name.format(6): "not axial", name.format(7): "localiser"}
    for path in (file, file.parent):  # predict finds the same slices, by the table and in the folder
        (series,) = find_input(path, rules("CT", tmp_path), tmp_path / "zip").series
        assert series.rows["path"].tolist() == manifest.table["path"].tolist()


def test_pictures_have_no_modality_until_somebody_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = pictures(tmp_path)
    unknown = table(file).manifest
    assert set(unknown.table["modality"]) == {"OT"}
    note = "my.csv: 4 pictures do not say whether CT or MR: data.modality=CT or MR"
    assert note in caplog.text
    assert unknown.notes[0].startswith(note)
    told = table(file, "data.modality=CT").manifest
    assert set(told.table["modality"]) == {"CT"}
    assert told.checksum == unknown.checksum  # the same pictures: the same run
    assert set(table(file, "data.modality=MR").manifest.table["modality"]) == {"MR"}
    assert set(table(file, "channels=mr").manifest.table["modality"]) == {"MR"}
    column = table(pictures(tmp_path, modality=["mr", "", "CT", "MR"])).manifest
    assert column.table["modality"].tolist() == ["MR", "OT", "CT", "MR"]


def test_a_blank_modality_of_a_volume_comes_from_the_data(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii.gz", 3)
    (tmp_path / "my.csv").write_text("path,patient_id,bleed,modality\nv.nii.gz,p,1,\n")
    assert set(table(tmp_path / "my.csv").manifest.table["modality"]) == {"CT"}


def test_modality_is_for_data_that_do_not_say(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.modality='CT'.*data=rsna does not read it"):
        compose(["data=rsna", "data.modality=CT"])


@pytest.mark.parametrize(
    ("kind", "told", "modality"),
    [("ct", ["OT"], ""), ("ct", ["MR"], "MR"), ("ct", ["CT", "MR"], ""), ("mr", ["OT"], "MR"), ("ct", None, "CT")],
)
def test_a_run_knows_what_it_has_learnt_from(tmp_path: Path, kind: str, told: list[str] | None, modality: str) -> None:
    write_text(tmp_path / "config.yaml", f"channels: {{kind: {kind}}}\n")
    write_json(tmp_path / "provenance.json", {"data": {} if told is None else {"modality": told}})
    seal(tmp_path)
    assert Run(tmp_path).modality == modality


def test_a_run_refuses_what_it_has_not_learnt_from(tmp_path: Path) -> None:
    write_slice(tmp_path / "ct" / "a.dcm")
    found = find_input(tmp_path / "ct", rules("", tmp_path), tmp_path / "zip")
    assert len(found.series) == 1
    assert any("did not say whether they showed CT or MR; these are CT" in note for note in found.notes)
    with pytest.raises(DataError, match=r"of modality CT .* the run has learnt from MR"):
        find_input(tmp_path / "ct", rules("MR", tmp_path), tmp_path / "zip")
    file = pictures(tmp_path / "png", modality=["MR", "", "CT", "CT"])
    found = find_input(file, rules("CT", tmp_path), tmp_path / "zip")
    assert [series.series_id for series in found.series] == ["p1.png", "p2.png", "p3.png"]
    assert found.failures == [("p0.png", "refused: pictures of MR by the table, but the run has learnt from CT")]
    assert "pictures do not say whether they show CT or MR; the run has learnt from CT" in found.notes


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (["7", "07", "8", "9"], "'7' and '07'"),
        (["7", "7.0", "007", "9"], "'7' and '7.0' and '007'"),
        (["pat1", "PAT1", "PAT 1", "pat2"], "'pat1' and 'PAT1' and 'PAT 1'"),
        (["M\u00fcller", "Mu\u0308ller", "a", "b"], r"'M\xfcller' and 'Mu\u0308ller'"),
        (["p0", "p10", "p100", "p01a"], ""),
        (["1.2.840.1", "1.2.840.10", "ID_0a1", "ID_a01"], ""),
    ],
)
def test_ids_that_may_be_one_patient_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ids: list[str], told: str
) -> None:
    file = pictures(tmp_path, patient_id=ids)
    manifest = table(file, "data.modality=CT").manifest
    assert manifest.table["patient_id"].nunique() == 4
    assert [note.partition(": ")[0] for note in manifest.notes] == (
        ["1 group of patient ids differs in zeros, case, '.0', blanks, look-alike or invisible letters alone"]
        if told
        else []
    )
    assert told in caplog.text
    notes = find_input(file, rules("CT", tmp_path), tmp_path / "zip").notes  # predict tells it too
    assert any(told in note for note in notes if "alone: " in note) == bool(told)


@pytest.mark.parametrize("word", ["N/A", "na", "None", "null", "-", "unknown", "Anonymous"])
def test_a_patient_called_nobody_is_refused(tmp_path: Path, word: str) -> None:
    file = pictures(tmp_path, patient_id=["a", word, "b", word])
    with pytest.raises(DataError, match=rf"my\.csv: patient_id of row 3 \('p1\.png'\) is '{word}'.*\(2 such rows\)"):
        _ = table(file).manifest


@pytest.mark.parametrize(
    ("again", "columns"),
    [
        ("./p0.png", {}),
        ("x/../p0.png", {}),
        ("../set/p0.png", {}),
        ("../link/p0.png", {}),
        (".//p0.png", {}),
        ("p0.png", {"slice_id": ["a", "b"]}),
        ("ROOT/p0.png", {}),
    ],
)
def test_one_file_in_two_spellings_is_one_image(tmp_path: Path, again: str, columns: dict[str, Any]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "set")
    file = copies(tmp_path / "set", ["p0.png", again.replace("ROOT", str(tmp_path / "set"))], **columns)
    with pytest.raises(DataError, match=r"duplicate image: row 2 .* and row 3 .* name the same file, 'p0\.png'"):
        _ = table(file).manifest


def test_empty_lines_count_among_the_rows_that_predict_names(tmp_path: Path) -> None:
    file = copies(tmp_path, ["p0.png", "./p0.png"])
    file.write_text(file.read_text().replace("./p0.png", "\n\n./p0.png"))
    found = find_input(file, rules("CT", tmp_path), tmp_path / "zip")
    assert found.failures == [("./p0.png", "duplicate: my.csv, row 5 has the image of row 2")]


def test_predict_takes_the_first_of_rows_that_repeat_an_image_or_an_id(tmp_path: Path) -> None:
    file = copies(tmp_path, ["p0.png", "./p0.png", "p1.png", "p2.png"], slice_id=["a", "b", "c", "a"])
    found = find_input(file, rules("CT", tmp_path), tmp_path / "zip")
    assert [series.rows["slice_id"].tolist() for series in found.series] == [["a"], ["c"]]
    assert found.failures == [
        ("./p0.png", "duplicate: my.csv, row 3 has the image of row 2"),
        ("p2.png", "duplicate: my.csv, row 5 has the slice id of row 2"),
    ]


@pytest.mark.parametrize(
    ("column", "value"),
    [("z_mm", "inf"), ("z_mm", "-Infinity"), ("z_mm", "1e999"), ("frame", "1.5"), ("frame", "inf"), ("frame", "-1")],
)
def test_positions_and_frames_that_cannot_be(tmp_path: Path, column: str, value: str) -> None:
    file = pictures(tmp_path, **{column: ["0", value, "1", "2"]})
    with pytest.raises(DataError, match=rf"my\.csv: {column} of row 3 \('p1\.png.*'\) is '{value}'"):
        _ = table(file).manifest
    with pytest.raises(DataError, match=rf"my\.csv, row 3: {column}='{value}'"):
        find_input(file, rules("CT", tmp_path), tmp_path / "zip")


@pytest.mark.parametrize("value", ["0.5", "2", "yes", "True", "inf"])
def test_labels_that_are_none(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=rf"label 'bleed' of row 3 \('p1\.png'\) is '{value}'"):
        _ = table(pictures(tmp_path, bleed=["0", value, "1", ""])).manifest


def test_one_picture_with_two_labels_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = pictures(tmp_path, 24)
    (tmp_path / "p1.png").write_bytes((tmp_path / "p0.png").read_bytes())
    data = table(file)
    _ = data.split
    assert "'p0.png' and 'p1.png' are the same picture with opposite labels 'bleed'" in caplog.text
    assert audit_manifest(data)["duplicates"]["opposite_labels"] == [["p0.png", "p1.png", "bleed"]]


def test_patients_of_a_folder_that_may_be_one_or_are_nobody_are_told(tmp_path: Path) -> None:
    for k, who in enumerate(("7", "007", "ANONYMOUS")):
        write_slice(tmp_path / "in" / f"{k}.dcm", patient=who, series=f"1.{k}")
    notes = find_input(tmp_path / "in", rules("CT", tmp_path), tmp_path / "zip").notes
    assert any("alone: '7' and '007'; each counts as one patient" in note for note in notes)
    assert any("patient ids that name nobody: 'ANONYMOUS'" in note for note in notes)


def test_an_id_of_megabytes_is_refused(tmp_path: Path) -> None:
    file = pictures(tmp_path, patient_id=["a", "p" * 5_000_000, "b", "c"])
    with pytest.raises(DataError, match="patient_id of row 3 is too long: 5000000 characters"):
        _ = table(file).manifest


def test_columns_named_as_covariates_are_no_labels_and_change_no_run(tmp_path: Path) -> None:
    file = pictures(tmp_path, smoker=[0, 1, 1, 0], age=["34", "", "071Y", "2"])
    found = TableDataModule(file, covariates=["smoker", "age"], cache_dir=tmp_path)  # all other flags are labels
    plain = table(file)
    assert found.manifest.labels == plain.manifest.labels == ("bleed",)
    assert found.manifest.checksum == plain.manifest.checksum
    assert found.manifest.covariates["age"].fillna(-1).tolist() == [34, -1, 71, 2]
    assert found.manifest.covariates["smoker"].tolist() == [0, 1, 1, 0]
    asked = ["data=table", f"data.manifest={file}", "task.labels=[bleed]"]
    hashes = [
        run_hash(compose([*asked, *more]), manifest="m", weights=None, split_file=None)
        for more in ([], ["data.covariates=[age]"])
    ]
    assert hashes[0] == hashes[1]


def test_covariates_that_are_missing_or_no_numbers_are_told(tmp_path: Path) -> None:
    file = pictures(tmp_path, age=["34", "old", "71", "2"])
    with pytest.raises(DataError, match=r"no column 'agee' \(data.covariates\); did you mean 'age'"):
        table(file, "data.covariates=[agee]").read(tmp_path)
    with pytest.raises(DataError, match=r"my.csv: age of row 3 is 'old', and 3 other values are numbers"):
        table(file, "data.covariates=[age]").read(tmp_path)
    with pytest.raises(ConfigError, match="data=head_ct does not read them"):
        compose(["data=head_ct", "data.covariates=[age]"])
