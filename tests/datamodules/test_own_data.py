"""A researcher's own files as they come: a PACS folder beside a spreadsheet, folders in a table, no patient ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemlearn.__main__ import main
from hemlearn.config.compose import compose
from hemlearn.config.identity import run_hash
from hemlearn.data.manifest import Manifest
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import ConfigError, DataError
from hemlearn.util.tables import read_table
from tests.datamodules.slices import reasons, write_slice, write_volume
from tests.datamodules.test_table import pictures

PARTS = ("data=multi", "task.labels=[any]", "data.parts.ct_ich.root=null")
PATIENTS = ("0071", "A12", "B7", "C3")


def pacs(root: Path) -> Path:
    """Four patients as a PACS exports them: no endings, two series of each study, a localiser, a reformat, a report."""
    for k, patient in enumerate(PATIENTS):
        tags: dict[str, Any] = {"AccessionNumber": f"ACC{k}", "StudyInstanceUID": f"1.{k}"}
        for z in range(12):
            own = tags | {"patient": patient, "number": z + 1, "seed": 100 * k + z, "size": 16}
            soft = {"SeriesDescription": "Head 5.0 H31", "ConvolutionKernel": "H31", "PixelSpacing": [14, 14]}
            bone = {"SeriesDescription": "Head 5.0 H70", "ConvolutionKernel": "H70", "PixelSpacing": [14, 14]}
            write_slice(root / f"DIR{k}" / f"IM{z:03d}", 10.0 * z, series=f"1.{k}.1", **own | soft)
            write_slice(root / f"DIR{k}" / f"IM{100 + z}", 10.0 * z, series=f"1.{k}.2", **own | bone)
        odd = tags | {"patient": patient, "size": 16}
        write_slice(
            root / f"DIR{k}" / "IM900", 0, series=f"1.{k}.3", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **odd
        )
        write_slice(
            root / f"DIR{k}" / "IM901", 0, series=f"1.{k}.4", ImageOrientationPatient=[0, 1, 0, 0, 0, -1], **odd
        )
    return root


def sheet(file: Path, rows: list[list[Any]]) -> Path:
    """A spreadsheet of these rows."""
    from openpyxl import Workbook

    book = Workbook()
    for row in rows:
        book.active.append(row)
    book.save(file)
    return file


def words(root: Path, labels: Path, key: str = "PatientID", *more: str) -> list[str]:
    return [
        *("data=dicom", f"data.root={root}", f"data.labels={labels}", f"data.label_key={key}", "task.level=series"),
        *("task.labels=[bleed]", "data.image_size=32", *more),
    ]


def read(*arguments: Any) -> Manifest:
    return build_datamodule(compose(words(*arguments))).manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pacs(tmp_path_factory.mktemp("pacs"))


def test_a_pacs_folder_and_a_spreadsheet_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["Patient ID", "bleed", "fracture"], [71, 1, 0], ["A12", 0, None], ["B7", 1, 1], ["X9", 0, 0]]
    file = sheet(tmp_path / "labels.xlsx", rows)
    asked = words(folder, file, "PatientID", "task.labels=[bleed,fracture]", "task.kind=multilabel")
    assert main(["index", *asked, f"out={tmp_path / 'out'}", "page=true"]) == 0
    said = capsys.readouterr().out
    assert "labels.xlsx: 3 of 4 rows label 6 of 8 series by PatientID" in said
    assert "1 PatientID is matched without leading zeros, case and '.0': '0071' in the files, '71' in the table" in said
    assert "1 x label without image" in said
    assert "2 x image without label" in said
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.label_level == "series"
    found = manifest.table.groupby("patient_id")[["bleed", "fracture"]].first()
    assert found["bleed"].to_dict() == {"0071": 1, "A12": 0, "B7": 1}
    assert found["fracture"].isna().to_dict() == {"0071": False, "A12": True, "B7": False}
    assert set(manifest.table["series_id"]) == {"1.0.1", "1.1.1", "1.2.1"}, "the soft-tissue series of each study"
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv").set_index("item")["reason"]
    assert skipped["labels.xlsx, row 5"] == "label without image: no series has PatientID 'X9'"
    assert skipped["1.3.1"] == "image without label: no row of PatientID 'C3' in labels.xlsx"
    assert "localiser" in skipped["DIR0/IM900"]
    assert "not axial" in skipped["DIR0/IM901"]
    assert skipped["1.0.2"].startswith("another series of this study is used: 1.0.1; here a sharp kernel (H70)")


def test_labels_of_accessions_and_of_series(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("accession number;bleed\nACC0;1\nACC2;0\n", encoding="utf-8")
    found = read(folder, file, "AccessionNumber").table.groupby("series_id")["bleed"].first().to_dict()
    assert found == {"1.0.1": 1, "1.2.1": 0}
    every = read(folder, file, "AccessionNumber", "data.series=all").table.groupby("series_id")["bleed"].first()
    assert every.to_dict() == {"1.0.1": 1, "1.0.2": 1, "1.2.1": 0, "1.2.2": 0}
    file.write_text("SeriesInstanceUID,bleed\n1.0.2,1\n1.3.2,0\n", encoding="utf-8")
    assert read(folder, file, "SeriesInstanceUID").table.groupby("series_id")["bleed"].first().to_dict() == {
        "1.0.2": 1,
        "1.3.2": 0,
    }


def test_the_band_and_geometry_hold_for_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("PatientID,bleed\nA12,1\n")
    table = read(folder, tmp_path / "l.csv", "PatientID", "data.band=[0.4,0.6]").table
    assert table["z_mm"].tolist() == [50, 60]
    with pytest.raises(DataError, match="short series"):
        read(folder, tmp_path / "l.csv", "PatientID", "data.geometry.min_slices=13")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["PatientID,bleed", "A12,1", "B7,0", "A12,0"], r"l\.csv, row 4: PatientID='A12' stands in row 2 too and "
         r"contradicts it: bleed='1' there, '0' here"),
        (["PatientID,bleed", "A12,1", "A12,1"], r"l\.csv, row 3: PatientID='A12' stands in row 2 too, with the same"),
        (["PatientID,bleed", "A12,1", "B7,yes"], r"l\.csv, row 3: bleed='yes'"),
        (["PatientID,bleed", "A12,1", "1.23457E+08,0"], r"l\.csv, row 3: PatientID='1\.23457E\+08' is a number that a "
         r"spreadsheet has shortened"),
        (["PatientID,bleed", "", "A12,1", "", "B7,0", "A12,0"], r"l\.csv, row 6: PatientID='A12' stands in row 3 too"),
        (["PatientID,bleed", "A12,1", ",0"], r"l\.csv, row 3: PatientID is empty"),
        (["PatientID,blood", "A12,1"], r"no column 'bleed', did you mean 'blood'\?.*|no column 'bleed'"),
        (["A12,1", "B7,0"], r"its first row holds '1', a number: a table begins with a row that names its columns"),
        (["name,bleed", "A12,1"], r"no column 'PatientID'"),
        (["PatientID,bleed", "Q1,1", "Q2,0"], r"none of its 2 rows belongs to one of 8 series by PatientID "
         r"\(0010,0020\): the table has 'Q1', 'Q2'; the files have '0071', 'A12', 'B7', \.\.\."),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_named_by_row(
    folder: Path, tmp_path: Path, rows: list[str], problem: str
) -> None:
    (tmp_path / "l.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match=problem):
        read(folder, tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda page: page.cell(3, 1, 12345678901234567), "cell A3: a number of more than 15 digits"),
        (lambda page: page.cell(2, 2, "=1/0"), "cell B2: a formula without a value"),
        (lambda page: page.merge_cells("A2:A3"), "merged cells A2:A3"),
        (lambda page: page.cell(6, 1, "Z"), "row 4 is empty"),
        (lambda page: page.cell(2, 1, __import__("datetime").date(2024, 1, 2)), "cell A2: 2024-01-02.* is a date"),
    ],
)
def test_cells_of_a_spreadsheet_are_named(tmp_path: Path, change: Callable[[Any], Any], problem: str) -> None:
    from openpyxl import load_workbook

    file = sheet(tmp_path / "l.xlsx", [["PatientID", "bleed"], ["A", 1], ["B", 0.0]])
    assert read_table(file).to_numpy().tolist() == [["A", "1"], ["B", "0"]]
    book = load_workbook(file)
    change(book.active)
    book.save(file)
    with pytest.raises(DataError, match=problem):
        read_table(file)
    (tmp_path / "no.xlsx").write_text("PatientID,bleed\n")
    with pytest.raises(DataError, match="no spreadsheet"):
        read_table(tmp_path / "no.xlsx")


def test_cells_of_columns_that_nobody_asked_for_are_not_refused(folder: Path, tmp_path: Path) -> None:
    when = __import__("datetime").datetime(2024, 1, 2)
    rows = [["PatientID", "StudyDate", "note", "bleed"], ["A12", when, "#N/A", 1], ["B7", "=1/0", 10**17, 0]]
    file = sheet(tmp_path / "l.xlsx", rows)
    found = read(folder, file).table.drop_duplicates("patient_id").set_index("patient_id")["bleed"]
    assert found.to_dict() == {"A12": 1, "B7": 0}
    with pytest.raises(DataError, match=r"cell B2: 2024-01-02.* is a date"):
        read(folder, sheet(tmp_path / "d.xlsx", [["PatientID", "bleed"], ["A12", when], ["B7", 0]]))


def test_a_spreadsheet_with_a_damaged_part_is_refused(tmp_path: Path) -> None:
    import zipfile

    whole = sheet(tmp_path / "whole.xlsx", [["PatientID", "bleed"], ["A", 1]])
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / "cut.xlsx", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[: 200 if "sheet1" in name else None])
    with pytest.raises(DataError, match=r"cut\.xlsx: no spreadsheet \(\.xlsx\), or a damaged one"):
        read_table(tmp_path / "cut.xlsx")


def test_rows_that_are_too_alike_to_be_matched_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("PatientID,bleed\nA12,1\n71,0\n071,1\n")
    manifest = read(folder, tmp_path / "l.csv")
    assert set(manifest.table["patient_id"]) == {"A12"}  # whether 71 or 071 is 0071, nobody can say
    assert any("matched only as they are: '71' and '071'" in note for note in manifest.notes)


def test_keys_that_do_not_fit_are_refused() -> None:
    for words_, problem in (
        (["data=dicom", "data.root=.", "data.labels=x.csv"], "data.label_key"),
        (["data=dicom", "data.root=.", "data.label_key=PatientID"], "data.labels=FILE"),
        (["data=head_ct", "data.labels=x.csv", "data.label_key=PatientID"], "data=head_ct does not read it"),
        (["data=dicom", "data.root=.", "data.labels=x.csv", "data.label_key=PatientId"], "PatientID"),
        (["data=head_ct", "data.band=[0.2,0.8]"], "single slices"),
        (["data=multi", "data.labels=x.csv"], r"data\.parts\.NAME=\{data: dicom, root: DIR, label_file: FILE"),
        (
            [*PARTS, "data.parts.pacs={data: dicom, root: ., label_file: x.csv}"],
            r"data\.parts\.pacs\.label_key=None: say "
            r"what the ids of label_file are",
        ),
        (
            [*PARTS, "data.parts.pacs={data: dicom, root: ., label_key: PatientID}"],
            r"data\.parts\.pacs\.label_file=None: "
            r"label_key is of a table of labels: label_file=FILE",
        ),
        (
            [*PARTS, "data.parts.pacs={data: table, manifest: m.csv, label_file: x.csv}"],
            r"pacs\.label_file='x\.csv': "
            r"data=table does not read it; data=dicom does",
        ),
        (
            [*PARTS, "data.parts.pacs={data: dicom, root: ., labels: x.csv}"],
            r"a table of labels \(data: dicom\) is "
            r"label_file: FILE, with label_key",
        ),
    ):
        with pytest.raises(ConfigError, match=problem):
            compose(words_)


def test_a_part_of_several_data_sets_has_a_table_of_labels(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("PatientID,bleed,fracture\nA12,1,0\n\n71,0,1\n")
    write_volume(tmp_path / "v.nii", 3)
    (tmp_path / "m.csv").write_text("path,patient_id,any\nv.nii,p,1\n")
    own = f"data: dicom, root: {folder}, label_file: {tmp_path / 'l.csv'}, label_key: PatientID, labels: {{bleed: any}}"
    call = ["data=multi", "task.labels=[any]", "task.level=series", f"data.parts.pacs={{{own}}}"]
    call.append(f"data.parts.ours={{data: table, manifest: {tmp_path / 'm.csv'}}}")
    config = compose(call)
    manifest = build_datamodule(config).manifest
    found = manifest.table.groupby("patient_id")["any"].first()
    assert found.to_dict() == {"ours/p": 1, "pacs/0071": 0, "pacs/A12": 1}
    assert manifest.labels == ("any",)  # a table's columns that the part does not name are none of its labels
    assert set(manifest.table["series_id"]) == {"ours/v.nii", "pacs/1.0.1", "pacs/1.1.1"}
    assert any(note.startswith("pacs: l.csv: 2 of 2 rows label 4 of 8 series by PatientID") for note in manifest.notes)
    moved = compose([word.replace("l.csv", "elsewhere.csv") for word in call])
    hashes = [run_hash(one, manifest="m", weights=None, split_file=None) for one in (config, moved)]
    assert hashes[0] == hashes[1]


def test_where_labels_come_from_is_no_part_of_the_hash() -> None:
    plain = compose(["data=dicom", "data.root=."])
    told = compose(["data=dicom", "data.root=.", "data.labels=x.csv", "data.label_key=PatientID", "data.series=all"])
    assert run_hash(plain, manifest="m", weights=None, split_file=None) == run_hash(
        told, manifest="m", weights=None, split_file=None
    )


# --- tables ---------------------------------------------------------------------------------------------------------


def table(file: Path, *overrides: str) -> Any:
    return build_datamodule(compose(["data=table", f"data.manifest={file}", "task.labels=[bleed]", *overrides]))


def test_folders_in_a_tables_path_column(folder: Path, tmp_path: Path) -> None:
    file = sheet(tmp_path / "rows.xlsx", [["path", "patient_id", "bleed"], ["DIR0", "x", 1], ["DIR1/", "y", 0]])
    data = table(file, f"data.root={folder}")
    manifest = data.manifest
    assert manifest.label_level == "series"
    assert manifest.table.groupby("patient_id")["series_id"].unique().map(sorted).to_dict() == {
        "x": ["1.0.1", "1.0.2"],
        "y": ["1.1.1", "1.1.2"],
    }
    assert (manifest.table["bleed"] == (manifest.table["patient_id"] == "x")).all()
    assert manifest.table.groupby("series_id")["z_mm"].apply(list).map(lambda z: z == sorted(z)).all()
    assert "DIR0/IM900" in reasons(manifest)
    (tmp_path / "empty").mkdir()
    sheet(file, [["path", "patient_id", "bleed"], [str(folder / "DIR0"), "x", 1], [str(tmp_path / "empty"), "y", 0]])
    found = reasons(table(file).manifest)
    assert any("the folder holds no DICOM, NIfTI or picture file" in reason for reason in found.values())
    sheet(file, [["path", "patient_id", "bleed", "z_mm"], ["DIR0", "x", 1, 5]])
    with pytest.raises(DataError, match=r"rows\.xlsx, row 2: path='DIR0' is a folder, whose files have z_mms"):
        _ = table(file, f"data.root={folder}").manifest


def test_folders_of_pictures_are_series_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures(tmp_path / name, 12)
        (tmp_path / name / "my.csv").unlink()
    (tmp_path / "rows.csv").write_text("path,patient_id,bleed\na,A,1\nb,B,0\n")
    found = table(tmp_path / "rows.csv", "data.modality=CT").manifest.table
    assert found["series_id"].unique().tolist() == ["a", "b"]
    assert found["path"].tolist()[:12] == [f"a/p{k}.png" for k in range(12)], "p2 stands before p10"


def test_geometry_and_band_of_pictures_with_positions(tmp_path: Path) -> None:
    file = pictures(tmp_path, 12, series_id=["s"] * 6 + ["t"] * 6, patient_id=["s"] * 6 + ["t"] * 6, bleed=1)
    rows = pd.read_csv(file)
    rows["z_mm"] = [25, 20, 15, 10, 5, 0, 0, 5, 5, 10, 15, 20]
    rows.to_csv(file, index=False)
    manifest = table(file, "data.modality=CT").manifest
    assert manifest.table.groupby("series_id")["z_mm"].apply(list).to_dict() == {
        "s": [0, 5, 10, 15, 20, 25],
        "t": [0, 5, 10, 15, 20],
    }
    assert "duplicate position" in reasons(manifest)["p8.png"]
    assert manifest.series.set_index("series_id")["spacing_mm"].to_dict() == {"s": 5, "t": 5}
    cut = table(file, "data.modality=CT", "data.band=[0.0,0.4]").manifest.table
    assert cut.groupby("series_id")["z_mm"].apply(list).to_dict() == {"s": [0, 5, 10], "t": [0, 5]}
    assert table(file, "data.modality=CT", "data.band=[0.0,0.4]").manifest.series["kept"].tolist() == [3, 2]


def test_without_a_header_the_first_row_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "bare.csv").write_text("p0.png,p0,1\np1.png,p1,0\n")
    with pytest.raises(DataError, match="its first row holds '1', a number"):
        _ = table(tmp_path / "bare.csv").manifest


def test_a_table_without_patients_is_named_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pictures(tmp_path, 30)
    rows = pd.read_csv(file).drop(columns="patient_id")
    rows.to_csv(file, index=False)
    with pytest.raises(DataError, match=r"no column 'patient_id'.*") as caught:
        _ = table(file).manifest
    assert "data.patient_column=null" in caught.value.remedy
    data = table(file, "data.patient_column=null")
    assert not data.manifest.patients_known
    assert data.manifest.summary()["patients"] == 30  # images count as patients, and the key stays
    assert data.manifest.summary()["patients_known"] is False
    assert data.manifest.table["patient_id"].tolist() == rows["path"].tolist()
    given = ["data=table", f"data.manifest={file}", "data.patient_column=null", "task.labels=[bleed]"]
    capsys.readouterr()
    assert main(["index", *given, f"out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert said.count("no patient ids: each of 30 images is taken for a person") == 1  # not as a log line too
    assert "30 patients" not in said
    assert not Manifest.load(tmp_path / "out").patients_known


def test_patients_of_dicom_files_come_from_their_headers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("path,bleed\nDIR0,1\nDIR1,0\n")
    manifest = table(tmp_path / "rows.csv", f"data.root={folder}", "data.patient_column=null").manifest
    assert manifest.patients_known
    assert set(manifest.table["patient_id"]) == {"0071", "A12"}
    write_volume(tmp_path / "v.nii.gz", 4)
    (tmp_path / "rows.csv").write_text("path,bleed\nv.nii.gz,1\n")
    assert not table(tmp_path / "rows.csv", "data.patient_column=null").manifest.patients_known
