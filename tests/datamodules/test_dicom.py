"""Folders of mixed DICOM and NIfTI files, and tables that name such files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hemlearn.commands.data import index
from hemlearn.config.compose import compose
from hemlearn.data.manifest import Manifest
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import DataError
from tests.conftest import real_data
from tests.datamodules.slices import module, reasons, write_slice, write_volume


def test_a_mixed_folder_becomes_series(tmp_path: Path) -> None:
    for k, z in enumerate((10, 0, 5)):
        write_slice(tmp_path / "a" / f"IM{k}", z, patient="A", series="1.1", number=k)  # no ending
        write_slice(tmp_path / "b" / f"{k}.dcm", z, patient="B", series="1.2", number=k)
    write_volume(tmp_path / "c.nii.gz", 4)
    write_slice(tmp_path / "scout.dcm", 0, patient="A", series="1.3", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (tmp_path / "readme.txt").write_text("x")
    manifest = module("dicom", tmp_path).read(tmp_path)
    table = manifest.table
    assert table["slice_id"].tolist() == [
        "a/IM1",
        "a/IM2",
        "a/IM0",
        "b/1.dcm",
        "b/2.dcm",
        "b/0.dcm",
        "c.nii.gz#0",
        "c.nii.gz#1",
        "c.nii.gz#2",
        "c.nii.gz#3",
    ]
    assert table["z_mm"].tolist()[:6] == [0, 5, 10] * 2
    assert manifest.labels == ()
    assert manifest.series["kept"].tolist() == [3, 3, 4]
    assert (table["modality"] == "CT").all()
    assert sorted(reasons(manifest)) == ["readme.txt", "scout.dcm"]


def test_ids_that_are_missing_come_from_the_folder(tmp_path: Path) -> None:
    for name in ("x", "y"):
        for k in range(2):
            write_slice(tmp_path / name / f"{k}.dcm", 5.0 * k, patient="", series="", StudyInstanceUID="")
    manifest = module("dicom", tmp_path).read(tmp_path)
    assert manifest.table["patient_id"].unique().tolist() == ["folder:x", "folder:y"]


def test_faulty_series_are_told(tmp_path: Path) -> None:
    for k in range(3):
        write_slice(tmp_path / f"nopos{k}.dcm", None, patient="A", series="1.1", number=3 - k)
        write_slice(tmp_path / f"dup{k}.dcm", 5.0 * min(k, 1), patient="B", series="1.2", number=k, seed=k)
        write_slice(tmp_path / f"size{k}.dcm", 5.0 * k, patient="C", series="1.3", size=32 + 8 * (k == 1))
    write_slice(tmp_path / "single.dcm", 0, patient="D", series="1.4")
    write_slice(tmp_path / "e0.dcm", 0, patient="E", series="1.5")
    write_slice(tmp_path / "f0.dcm", 5, patient="F", series="1.5")
    manifest = module("dicom", tmp_path).read(tmp_path)
    table = manifest.table.set_index("slice_id")
    assert [item for item in table.index if item.startswith("nopos")] == ["nopos2.dcm", "nopos1.dcm", "nopos0.dcm"]
    assert table.filter(like="nopos", axis=0)["z_mm"].isna().all()
    assert table.filter(like="size", axis=0)["height"].tolist() == [32, 40, 32]
    found = reasons(manifest)
    assert found["dup2.dcm"] == "duplicate position: z = 5.00 mm, as dup1.dcm"
    assert "'E', 'F'" in found["e0.dcm"]
    assert sorted(found) == ["dup2.dcm", "e0.dcm", "f0.dcm"]
    assert manifest.summary()["geometry"] == {
        "duplicate positions": 1,
        "missing positions": 1,
        "single slice": 1,
        "mixed matrix size": 1,
    }
    assert manifest.series.set_index("patient_id")["kept"].to_dict() == {"A": 3, "B": 2, "C": 3, "D": 1, "E": 0}


def test_nothing_usable_tells_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no DICOM or NIfTI file"):
        module("dicom", tmp_path).read(tmp_path)
    write_slice(tmp_path / "x.dcm", 0)
    with pytest.raises(DataError, match=r"every image was left out \(1 item\); most often: short series"):
        module("dicom", tmp_path, "data.geometry.min_slices=5").read(tmp_path)


def test_index_of_the_real_series_reads_as_a_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = real_data("ge_head_ct_series")
    assert index(["data=dicom", f"data.root={root}", f"out={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    for part in (
        "28 slices, 1 series, 1 patient",
        "labels: none",
        "spacing 1.14 to 7.38 mm",
        "13 x 4.22",
        "gantry tilt 18.5 degrees",
        "GE MEDICAL SYSTEMS",
        "skipped: 0",
    ):
        assert part in text
    loaded = Manifest.load(tmp_path / "out")
    assert loaded.table["path"].tolist() == [f"{k:02d}.dcm" for k in range(1, 29)]
    assert loaded.series["tilt_deg"].tolist() == pytest.approx([18.5], abs=1e-3)


def table_module(file: Path, *overrides: str):  # type: ignore[no-untyped-def]
    return build_datamodule(compose(["data=table", f"data.manifest={file}", "task.labels=[bleed]", *overrides]))


def test_table_of_dicom_files_takes_geometry_from_headers(tmp_path: Path) -> None:
    for k, z in enumerate((10, 0, 5)):
        write_slice(tmp_path / f"{k}.dcm", z, series="1.1")
    (tmp_path / "t.csv").write_text("path,patient_id,bleed\n0.dcm,ann,1\n1.dcm,ann,0\n2.dcm,ann,\nno.dcm,bob,1\n")
    manifest = table_module(tmp_path / "t.csv").read(tmp_path)
    table = manifest.table
    assert table["slice_id"].tolist() == ["1.dcm", "2.dcm", "0.dcm"]
    assert table["z_mm"].tolist() == [0, 5, 10]
    assert table["series_id"].unique().tolist() == ["1.1"]
    assert table["patient_id"].unique().tolist() == ["ann"]
    assert np.array_equal(table["bleed"], [0, np.nan, 1], equal_nan=True)
    assert manifest.label_level == "slice"
    assert reasons(manifest) == {"no.dcm": "label without image: no.dcm does not exist"}


def test_table_of_volumes_labels_series_and_with_frames_slices(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", 3)
    write_volume(tmp_path / "b.nii", 2)
    (tmp_path / "v.csv").write_text("path,patient_id,bleed\na.nii,ann,1\nb.nii,bob,0\n")
    whole = table_module(tmp_path / "v.csv").read(tmp_path)
    assert whole.label_level == "series"
    assert whole.table["slice_id"].tolist() == ["a.nii", "a.nii#1", "a.nii#2", "b.nii", "b.nii#1"]
    assert whole.table["bleed"].tolist() == [1, 1, 1, 0, 0]
    (tmp_path / "f.csv").write_text("path,frame,patient_id,bleed\na.nii,0,ann,1\na.nii,2,ann,0\na.nii,7,ann,0\n")
    sliced = table_module(tmp_path / "f.csv").read(tmp_path)
    assert sliced.label_level == "slice"
    assert sliced.table["frame"].tolist() == [0, 2]
    assert reasons(sliced) == {"a.nii#7": "label without image: the file has no such frame"}
    (tmp_path / "g.csv").write_text("path,frame,patient_id,bleed\na.nii,first,ann,1\n")
    with pytest.raises(DataError, match=r"g\.csv: frame of row 2 \('a\.nii'\) is 'first'"):
        table_module(tmp_path / "g.csv").read(tmp_path)


def test_table_refuses_a_series_number_that_patients_share(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("path,patient_id,series_id,bleed\na.png,ann,1,1\nb.png,bob,1,0\n")
    with pytest.raises(DataError, match=r"two patients in one series: series_id '1' stands with patients 'ann', 'bob'"):
        table_module(tmp_path / "t.csv").read(tmp_path)


def test_what_files_say_of_themselves_cannot_steer_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEMLEARN_CACHE", str(tmp_path / "cache"))
    evil = "P\x1b]0;x\x07\r\u202e1"
    for k in range(3):
        told = dict.fromkeys(("PatientID", "SeriesDescription", "Manufacturer"), evil)
        told["SpecificCharacterSet"] = "ISO_IR 192"
        write_slice(tmp_path / "set" / f"{k}.dcm", 5.0 * k, series="1.2.3\x1b[31m", **told)
    write_slice(tmp_path / "set" / "us.dcm", Modality="U\x1b[5mS")
    write_slice(tmp_path / "set" / "bad\r\x1b[31m.dcm")
    assert index(["data=dicom", f"data.root={tmp_path / 'set'}", f"out={tmp_path / 'out'}"]) == 0
    out = "".join(capsys.readouterr())
    assert not set(out) & set("\x1b\x07\r\u202e")
    shown = r"P\x1b]0;x\x07\r\u202e1"
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.table["patient_id"].unique().tolist() == [shown]
    assert manifest.table["series_id"].unique().tolist() == [r"1.2.3\x1b[31m"]
    assert reasons(manifest) == {
        r"bad\r\x1b[31m.dcm": "its name holds a control character: rename it",
        "us.dcm": r"modality U\x1b[5MS: neither CT nor MR",
    }


def test_headers_tell_sex_and_age(tmp_path: Path) -> None:
    told = {"PatientSex": "F", "PatientAge": "018M"}
    for k in range(2):
        write_slice(tmp_path / "a" / f"{k}.dcm", 5.0 * k, patient="A", series="1.1", number=k, **told)
        write_slice(tmp_path / "b" / f"{k}.dcm", 5.0 * k, patient="B", series="1.2", number=k, PatientAge="old")
    found = module("dicom", tmp_path).read(tmp_path)
    known = found.covariates.assign(patient=found.table["patient_id"]).drop_duplicates("patient").set_index("patient")
    assert known.loc["A", ["sex", "age"]].tolist() == ["F", 1.5]
    assert known.loc["B", "sex"] == ""
    assert np.isnan(known.loc["B", "age"])
    for k in range(2):
        odd: dict[str, Any] = {"PatientAge": "999Y", "SliceThickness": "-1"}
        write_slice(tmp_path / "b" / f"{k}.dcm", 5.0 * k, patient="B", series="1.2", number=k, **odd)
    found = module("dicom", tmp_path).read(tmp_path)
    assert [note for note in found.notes if "impossible" in note] == [
        "PatientAge of 2 of 4 files is impossible, such as 999 (plausible: 0 to 120 years): unknown",
        "SliceThickness of 2 of 4 files is impossible, such as -1 (plausible: above 0, up to 100 mm): unknown",
    ]
    of_b = found.covariates[found.table["patient_id"] == "B"]
    assert of_b[["age", "thickness_mm"]].isna().all().all()
    (tmp_path / "t.csv").write_text("path,patient_id,bleed,sex\na/0.dcm,A,1,male\na/1.dcm,A,0,male\n")
    table = table_module(tmp_path / "t.csv", "data.covariates=[sex]").read(tmp_path)
    assert table.covariates["sex"].tolist() == ["male", "male"]  # the table's word, not the header's
    assert table.covariates["age"].tolist() == [1.5, 1.5]
