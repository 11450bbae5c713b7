"""``hemlearn predict`` on real files of every kind, good and bad, with small trained runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from hemlearn.__main__ import main as hemlearn
from hemlearn.commands import apply
from hemlearn.data.choice import choose
from hemlearn.data.readers.headers import LEFT_RIGHT
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.reading.engine import Predictor
from hemlearn.reading.find import find_input
from hemlearn.reading.predict import predict_manifest
from hemlearn.reading.series import InputRules, Series
from hemlearn.reading.stacks import Preprocessing, read_stack
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import Run, load
from hemlearn.util.errors import ConfigError, DataError, HemlearnError, RunError
from hemlearn.util.privacy import Pseudonyms
from hemlearn.util.run_files import JOURNAL as NAME
from tests.conftest import real_data, seal
from tests.data.heads import head, save
from tests.data.readers.files import nifti_head
from tests.datamodules.slices import write_slice

COARSE = Grid(rows=64, cols=64, pixel_mm=3.6, slices=14, thickness_mm=10, samples=1)
SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=16",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
    "trainer.max_epochs=1",
    "task.threshold=0.5",
    "augmentation=none",
]


class Made:
    """A data set of the RSNA layout, and runs: of its slices, of its series (with calibration), of pictures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rsna, self.heads = root / "rsna", root / "heads"
        write_phantom("rsna", self.rsna, patients=10, seed=0, grid=COARSE)
        write_phantom("head_ct", self.heads, patients=20, seed=0, grid=Grid(rows=72, cols=72, pixel_mm=3.2, samples=1))
        half = ["split.val_fraction=0.3", "split.test_fraction=0.3"]
        stage = ["stage.set.trainer.max_epochs=1", "stage.set.augmentation.steps=[]"]
        call = [
            "train",
            "experiment=rsna",
            f"data.root={self.rsna}",
            *SMALL,
            *half,
            "sequence.hidden=8",
            "task.calibration=platt",
            "checkpoints.whole=true",  # copies are tried without the slice run
            *stage,
        ]
        assert hemlearn(call) == 0
        assert hemlearn([*call, "seed=1"]) == 0
        assert hemlearn(["train", f"data.root={self.heads}", *SMALL, "name=pictures"]) == 0
        (self.slices, _), self.series, (self.pictures,) = (
            sorted(path.parent for path in Path("runs").glob(f"{name}/*/status.json"))
            for name in ("rsna_slices", "rsna", "pictures")
        )

    def files(self, patient: int) -> list[Path]:
        """The DICOM files of one of its series, lowest first."""
        config = load(self.series[0]).config
        table = build_datamodule(config).manifest.table
        chosen = table[table["series_id"] == table["series_id"].unique()[patient]]
        return [self.rsna / path for path in chosen["path"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(root / "cache"))
        patch.chdir(root)
        found = Made(root)
        found.slices, found.pictures = (path.resolve() for path in (found.slices, found.pictures))
        found.series = [path.resolve() for path in found.series]
        return found


def series_folder(made: Made, out: Path, patient: int = 0) -> Path:
    """A copy of one series; names do not tell the order."""
    out.mkdir(parents=True, exist_ok=True)
    for place, file in enumerate(made.files(patient)):
        shutil.copy(file, out / f"{(place * 7) % 100:02d}_{patient}.dcm")
    return out


def uncalibrated(folder: Path) -> Run:
    """The run without its calibration maps."""
    run = load(folder)
    run.calibration = None
    return run


def call(*arguments: object) -> int:
    return apply.predict([str(text) for text in arguments])


def table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / f"{name}.csv", dtype={"patient_id": str, "series_id": str, "item": str, "reason": str})


# --- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["slices", "series"])
def test_a_folder_is_predicted_as_the_run_itself_predicts(made: Made, tmp_path: Path, kind: str) -> None:
    run = made.slices if kind == "slices" else made.series[0]
    folder = series_folder(made, tmp_path / "in", 1)
    assert call(f"run={run}", f"input={folder}", f"out={tmp_path / 'out'}") == 0
    found = table(tmp_path / "out", "slices")
    config = load(run).config
    own = predict_manifest(uncalibrated(run), build_datamodule(config).manifest)
    own = own[own["series_id"] == found["series_id"].iloc[0]]
    np.testing.assert_allclose(found["z_mm"], own["z_mm"], atol=1e-5)
    for label in config.task.labels:
        np.testing.assert_allclose(found[f"prob_{label}"], own[f"prob_{label}"], atol=1e-5)
    whole = table(tmp_path / "out", "series").iloc[0]
    assert whole["n_slices"] == len(own)
    # The mean of the slices, which the run itself brings to a probability, whatever is asked of its slices.
    maps, every = load(run).calibration, predict_manifest(load(run), build_datamodule(config).manifest)
    assert "series" in maps.units
    own = every[every["series_id"] == own["series_id"].iloc[0]]
    expected = maps.aggregate(own, "series", config.task.aggregate).iloc[0]
    assert whole["prob_any"] == pytest.approx(expected["prob_any"], abs=1e-5)
    assert len(table(tmp_path / "out", "patients")) == 1
    told = json.loads((tmp_path / "out" / "predict.json").read_text())
    chosen = json.loads((run / "metrics.json").read_text())["thresholds"]["series"]
    assert told["thresholds"]["series"] == {label: item["value"] for label, item in chosen.items()}
    if kind == "slices":  # not calibrated: probability and operating point are on one scale
        assert whole["call_any"] == (whole["prob_any"] >= chosen["any"]["value"])
    assert told["runs"][0]["hash"] == run.name
    assert told["counts"]["slices"] == len(own)


def test_calibrated_and_ensemble(made: Made, tmp_path: Path) -> None:
    folder = series_folder(made, tmp_path / "in")
    two = made.series[1]
    one = tmp_path / "runs" / "rsna" / made.series[0].name
    shutil.copytree(made.series[0], one)
    maps = json.loads((one / "calibration.json").read_text())  # few patients: fitted maps change next to nothing
    for label in maps["labels"]:
        maps["maps"]["slice"][label] |= {"slope": 2.0, "shift": 0.5}
    (one / "calibration.json").write_text(json.dumps(maps))
    seal(one)
    outs = {}
    for name, runs, calibrated in (
        ("one", f"{one}", False),
        ("two", f"{two}", False),
        ("both", f"{one},{two}", False),
        ("calibrated", f"{one}", True),
    ):
        outs[name] = tmp_path / name
        assert call(f"run={runs}", f"input={folder}", f"out={outs[name]}", f"calibrated={calibrated}".lower()) == 0
    first, second, both, calibrated_table = (table(out, "slices") for out in outs.values())
    np.testing.assert_allclose(both["prob_any"], (first["prob_any"] + second["prob_any"]) / 2, atol=1e-6)
    assert not np.allclose(first["prob_any"], second["prob_any"])
    low, high = np.minimum(first["prob_any"], second["prob_any"]), np.maximum(first["prob_any"], second["prob_any"])
    np.testing.assert_allclose(both["low_any"], low, atol=1e-6)
    np.testing.assert_allclose(both["high_any"], high, atol=1e-6)
    assert "low_any" not in first
    calibration = load(one).calibration
    assert calibration is not None
    mapped = calibration.maps["slice"]["any"](first["prob_any"].to_numpy())
    np.testing.assert_allclose(calibrated_table["prob_any"], mapped, atol=5e-6)  # of what is written to six decimals
    assert not np.allclose(mapped, first["prob_any"], atol=1e-4)
    # The run chose its operating points on calibrated probabilities: the calls do not depend on what is shown.
    assert table(outs["one"], "series")["call_any"].equals(table(outs["calibrated"], "series")["call_any"])


def test_a_zip_a_file_and_a_table_give_what_the_folder_gives(made: Made, tmp_path: Path) -> None:
    folder = series_folder(made, tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"study/{file.name}")
    pd.DataFrame({"path": [f"in/{file.name}" for file in folder.iterdir()]}).to_csv(tmp_path / "in.csv", index=False)
    pd.DataFrame({"path": sorted(f"in/{file.name}" for file in folder.iterdir()), "patient_id": "me"}).to_parquet(
        tmp_path / "in.parquet"
    )
    probs = []
    for name in ("in", "in.zip", "in.csv", "in.parquet"):
        out = tmp_path / f"out_{name}"
        assert call(f"run={made.series[0]}", f"input={tmp_path / name}", f"out={out}") == 0
        probs.append(table(out, "slices")["prob_any"].to_numpy())
        np.testing.assert_allclose(probs[-1], probs[0], atol=1e-6)
        assert not (out / ".unpacked").exists()
    assert table(out, "slices")["patient_id"].unique().tolist() == ["me"]
    out = tmp_path / "one"
    lowest = min(folder.iterdir(), key=lambda file: file.name)
    assert call(f"run={made.slices}", f"input={lowest}", f"out={out}") == 0
    assert table(out, "slices")["path"].tolist() == [lowest.name]


def test_nifti_equals_dicom(made: Made, tmp_path: Path) -> None:
    folder = series_folder(made, tmp_path / "in")
    run = load(made.series[0])
    steps, config = [Preprocessing.of(run)], run.config
    own = build_datamodule(config).manifest.table
    own = own[own["series_id"] == own["series_id"].unique()[0]].reset_index(drop=True)
    stack = read_stack(Series("p", "s", "x", made.rsna, own), steps, keep=True)
    volume = np.stack(stack.pixels)[:, ::-1, ::-1].transpose(2, 1, 0)  # slices, rows, columns -> right, anterior, up
    spacing = float(np.median(np.diff(own["z_mm"])))
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume), np.diag([3.6, 3.6, spacing, 1.0]))
    nibabel.save(image, tmp_path / "ct.nii.gz")
    for name in ("in", "ct.nii.gz"):
        assert call(f"run={made.series[0]}", f"input={tmp_path / name}", f"out={tmp_path / ('out_' + name)}") == 0
    dicom, nifti = (table(tmp_path / f"out_{name}", "slices") for name in ("in", "ct.nii.gz"))
    np.testing.assert_allclose(dicom["prob_any"], nifti["prob_any"], atol=1e-4)
    assert folder.exists()


def test_rsna_submission_and_parquet(made: Made, tmp_path: Path) -> None:
    test_folder = made.rsna / "stage_2_test"
    out = tmp_path / "out"
    assert call(f"run={made.slices}", f"input={test_folder}", f"out={out}", "format=rsna", "series=all") == 0
    submission, sample = pd.read_csv(out / "submission.csv"), pd.read_csv(made.rsna / "stage_2_sample_submission.csv")
    assert set(submission["ID"]) == set(sample["ID"])
    assert submission["Label"].between(0, 1).all()
    assert call(f"run={made.slices}", f"input={test_folder}", f"out={out}", "format=parquet", "series=all") == 0
    slices = pd.read_parquet(out / "slices.parquet").set_index("slice_id")
    first = submission[submission["ID"].str.endswith("_any")].iloc[0]
    (row,) = [name for name in slices.index if Path(name).stem == first["ID"].removesuffix("_any")]
    assert slices.loc[row, "prob_any"] == pytest.approx(first["Label"], abs=1e-6)
    for patient in (0, 1):  # files of the same names
        for k, file in enumerate(made.files(patient)):
            (tmp_path / "in" / f"p{patient}").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / "in" / f"p{patient}" / f"{k}.dcm")
    assert call(f"run={made.slices}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'both'}", "format=rsna") == 0
    both = pd.read_csv(tmp_path / "both" / "submission.csv")
    assert both["ID"].is_unique
    assert {"p0/3_any", "p1/3_any"} <= set(both["ID"])
    with pytest.raises(ConfigError, match="format=rsna"):
        call(f"run={made.pictures}", f"input={test_folder}", f"out={out}", "format=rsna")


def test_pictures_and_a_table_that_joins_them(made: Made, tmp_path: Path) -> None:
    folder = made.heads / "head_ct" / "head_ct"
    out = tmp_path / "out"
    assert call(f"run={made.pictures}", f"input={folder}", f"out={out}") == 0
    found = table(out, "series").set_index("series_id")
    assert len(found) == 20
    own = pd.read_parquet(made.pictures / "predictions.parquet").set_index("slice_id")["prob_hemorrhage"]
    for name, prob in own.items():
        assert found.loc[f"{name}.png", "prob_hemorrhage"] == pytest.approx(prob, abs=1e-5)
    rows = pd.DataFrame(
        {"path": ["001.png", "000.png", "002.png"], "series_id": ["a", "a", "b"], "patient_id": "x", "z_mm": [5, 0, 0]}
    )
    rows.to_csv(folder / "rows.csv", index=False)
    assert call(f"run={made.pictures}", f"input={folder / 'rows.csv'}", f"out={tmp_path / 'joined'}") == 0
    (folder / "rows.csv").unlink()
    assert table(tmp_path / "joined", "slices")["path"].tolist() == ["000.png", "001.png", "002.png"]
    assert table(tmp_path / "joined", "series")["n_slices"].tolist() == [2, 1]
    assert len(table(tmp_path / "joined", "patients")) == 1


def test_ct_is_shown_as_a_picture_to_a_run_of_pictures_but_not_the_other_way_round(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = series_folder(made, tmp_path / "in")
    assert call(f"run={made.pictures}", f"input={folder}", f"out={tmp_path / 'out'}") == 0
    assert "window of centre 40 and width 80 HU" in capsys.readouterr().out
    assert "pictures of grey levels" in refuse(made, made.heads / "head_ct" / "head_ct" / "000.png", tmp_path / "no")
    assert Preprocessing.of(load(made.pictures)).window == (40.0, 80.0)


# --- how it goes on -----------------------------------------------------------------------------------------------


def test_only_what_is_new_or_changed_is_predicted_again(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = series_folder(made, tmp_path / "in", 0)
    wanted = [f"run={made.series[0]}", f"input={folder}", f"out={tmp_path / 'out'}"]
    assert call(*wanted) == 0
    series_folder(made, folder, 1)
    journal = tmp_path / "out" / NAME
    with journal.open("ab") as file:  # as a killed call leaves it
        file.write(b'{"key": "abc", "slices": [[0.1')
    assert call(*wanted) == 0
    assert "1 series predicted now, 1 before" in capsys.readouterr().out
    assert len(journal.read_text().splitlines()) == 2
    monkeypatch.setattr(Predictor, "__call__", lambda *_: pytest.fail("predicted again"))
    assert call(*wanted, "calibrated=true") == 0
    assert "0 series predicted now, 2 before" in capsys.readouterr().out
    assert table(tmp_path / "out", "patients")["n_slices"].tolist() == [14, 14]
    monkeypatch.undo()
    file = next(folder.iterdir())
    os.utime(file, ns=(1, 1))
    monkeypatch.chdir(tmp_path)
    assert call(*wanted) == 0
    assert "1 series predicted now, 1 before" in capsys.readouterr().out


def test_a_probability_does_not_depend_on_what_else_is_predicted(made: Made, tmp_path: Path) -> None:
    folder, out = made.heads / "head_ct" / "head_ct", tmp_path / "out"
    wanted = [f"run={made.pictures}", f"input={folder}"]
    assert call(*wanted, f"out={out}") == 0
    journal, whole = out / NAME, (out / "slices.csv").read_bytes()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[1::3]) + lines[0][:40])  # killed
    assert call(*wanted, f"out={out}") == 0
    assert (out / "slices.csv").read_bytes() == whole
    assert sorted(journal.read_bytes().splitlines(keepends=True)) == sorted(lines)  # every digit
    content = json.loads(lines[0])
    content["slices"][0][0][0] = 0.01  # by another hand
    journal.write_bytes(b"".join([json.dumps(content).encode() + b"\n", *lines[1:]]))
    assert call(*wanted, f"out={out}") == 0
    assert (out / "slices.csv").read_bytes() == whole
    assert call(wanted[0], f"input={folder / '003.png'}", f"out={tmp_path / 'alone'}") == 0
    alone, among = table(tmp_path / "alone", "slices"), table(out, "slices")
    assert alone["prob_hemorrhage"].tolist() == among.query("path == '003.png'")["prob_hemorrhage"].tolist()
    assert call(*wanted, f"out={tmp_path / 'other'}", "batch_size=3") == 0
    gap = (table(tmp_path / "other", "slices")["prob_hemorrhage"] - among["prob_hemorrhage"]).abs().max()
    assert gap <= 1.001e-6  # one in the last digit written
    assert call(*wanted, f"out={tmp_path / 'many'}", "batch_size=100") == 0
    assert (tmp_path / "many" / "slices.csv").read_bytes() == whole


def test_another_process_in_the_same_folder_is_waited_for(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    out, folder, told = tmp_path / "out", series_folder(made, tmp_path / "in"), []
    out.mkdir()
    lock = FileLock(out / ".lock")
    lock.acquire()

    def tell(text: str, *values: object) -> None:
        told.append(text % values)
        lock.release()

    monkeypatch.setattr("hemlearn.util.files.logger.info", tell)
    assert call(f"run={made.series[0]}", f"input={folder}", f"out={out}") == 0
    assert told == [f"out={out}: another process predicts into it now; waiting for it"]


@pytest.mark.parametrize("kind", ["slices", "series"])
def test_the_batch_is_halved_until_memory_suffices(
    made: Made, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = made.slices if kind == "slices" else made.series[0]
    members = [load(run)]
    rows = build_datamodule(members[0].config).manifest.table
    rows = rows[rows["series_id"] == rows["series_id"].iloc[0]].reset_index(drop=True)
    series = Series("p", "s", "x", made.rsna, rows)
    whole = Predictor(members, torch.device("cpu"), 14)
    stack = next(whole.read([series]))
    expected = whole([stack])[0].slices
    seen: list[int] = []
    backbone = members[0].model.backbone
    forward = backbone.forward

    def short(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return forward(images)

    monkeypatch.setattr(backbone, "forward", short)
    halved = Predictor(members, torch.device("cpu"), 12)
    np.testing.assert_allclose(halved([stack])[0].slices, expected, atol=1e-6)
    assert halved.batch == 2
    assert seen[:3] == [8, 4, 2]
    monkeypatch.setattr(backbone, "forward", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(DataError, match="a single slice"):
        Predictor(members, torch.device("cpu"), 4)([stack])
    monkeypatch.setattr(backbone, "forward", forward)
    alone = Predictor(members, torch.device("cpu"))
    np.testing.assert_allclose(alone([stack])[0].slices, expected, atol=1e-6)
    assert 1 <= alone.batch <= 8


def test_pages_name_no_patient_and_escape_file_names(made: Made, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>.png"
    save(tmp_path / "in" / evil, head(3))
    wanted = [f"run={made.pictures}", f"input={tmp_path / 'in' / evil}", f"out={tmp_path / 'out'}", "page=true"]
    assert call(*wanted) == 0
    (page,) = (tmp_path / "out" / "pages").glob("*.html")
    text = page.read_text(encoding="utf-8")
    assert "onerror=alert" not in text.replace("\\u003cimg src=x onerror=alert(1)\\u003e", "")
    assert "<img src=x" not in text
    assert table(tmp_path / "out", "slices")["path"].tolist() == [evil]
    folder = series_folder(made, tmp_path / "dicom")
    out = tmp_path / "named"
    assert call(f"run={made.series[0]}", f"input={folder}", f"out={out}", "page=true") == 0
    (page,) = (out / "pages").glob("*.html")
    patient = table(out, "patients")["patient_id"].iloc[0]
    told = page.read_text(encoding="utf-8") + (out / "predict.json").read_text(encoding="utf-8")
    assert not any(text in told for text in (patient, table(out, "series")["series_id"].iloc[0], str(tmp_path)))
    assert page_of(out)["patient"] == Pseudonyms(out).of(patient)
    assert call(f"run={made.series[0]}", f"input={folder}", f"out={out}", "page=true", "show_patient=true") == 0
    assert any(patient in file.read_text(encoding="utf-8") for file in (out / "pages").glob("*.html"))
    assert table(out, "pages")["page"].str.endswith(".html").all()


def page_of(out: Path) -> dict[str, Any]:
    """What the only page of a folder shows."""
    (page,) = (out / "pages").glob("*.html")
    found = re.search(r'<script type="application/json" id="case">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    content: dict[str, Any] = json.loads(found.group(1))
    return content


def with_points(run: Path, copy: Path, points: dict[str, dict[str, float | None]]) -> Path:
    """A copy of a run with other operating points, level -> label -> value; None: validation could not choose one."""
    shutil.copytree(run, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    for level, found in points.items():
        for label, value in found.items():
            entry = {"value": 0.5, "note": "a class is absent"} if value is None else {"value": value, "note": None}
            metrics["thresholds"][level][label] |= entry
    (copy / "metrics.json").write_text(json.dumps(metrics))
    seal(copy)
    return copy


def test_pages_show_operating_points_that_were_chosen_and_what_is_odd_about_the_series(
    made: Made, tmp_path: Path
) -> None:
    folder = series_folder(made, tmp_path / "in")
    sorted(folder.iterdir(), key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])[5].unlink()
    points = {"series": {"any": 1e-6, "subdural": None}, "slice": {"any": 0.31, "subdural": None}}
    run = with_points(made.slices, tmp_path / "runs" / "a" / made.slices.name, points)
    out = tmp_path / "out"
    assert call(f"run={run}", f"input={folder}", f"out={out}", "page=true") == 0
    shown = page_of(out)
    assert shown["thresholds"]["any"] == pytest.approx(1e-6)
    assert shown["slice_thresholds"]["any"] == 0.31
    assert "subdural" not in shown["thresholds"] | shown["slice_thresholds"]
    assert re.search(r"No operating point could be chosen for [\w, ]*subdural", shown["calibration"])
    row = table(out, "series").iloc[0]
    assert shown["calls"] == {label: bool(row[f"call_{label}"]) for label in shown["labels"]}
    assert shown["calls"]["any"]
    assumed = json.loads((out / "predict.json").read_text())["thresholds_assumed"]["series"]
    assert "subdural" in assumed
    assert "any" not in assumed
    assert shown["facts"]["Chosen"].startswith("the only axial series")
    assert any(text.startswith("Slices: spacing") for text in shown["warnings"])  # the slice that is not there
    assert not any("the only axial series" in text for text in shown["warnings"])


def test_operating_points_are_averaged_over_the_runs_that_chose_one(made: Made, tmp_path: Path) -> None:
    first = with_points(
        made.series[0],
        tmp_path / "runs" / "a" / made.series[0].name,
        {"series": {"any": None, "epidural": 0.2, "subdural": None}},
    )
    second = with_points(
        made.series[1],
        tmp_path / "runs" / "b" / made.series[1].name,
        {"series": {"any": 0.3, "epidural": 0.4, "subdural": None}},
    )
    out = tmp_path / "out"
    folder = series_folder(made, tmp_path / "in")
    assert call(f"run={first},{second}", f"input={folder}", f"out={out}", "page=true") == 0
    told = json.loads((out / "predict.json").read_text())
    points = told["thresholds"]["series"]
    assert [points[label] for label in ("any", "epidural", "subdural")] == pytest.approx([0.3, 0.3, 0.5])
    assert told["thresholds_assumed"]["series"] == ["subdural"]
    shown = page_of(out)
    assert [shown["thresholds"][label] for label in ("any", "epidural")] == pytest.approx([0.3, 0.3])
    assert "subdural" not in shown["thresholds"]
    assert shown["slice_thresholds"] == {}  # calibrated points do not belong beside probabilities that are not
    assert "those of its slices are not" in shown["calibration"]
    row = table(out, "series").iloc[0]
    assert shown["calls"] == {label: bool(row[f"call_{label}"]) for label in shown["labels"]}


def test_triage_of_one_run(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = with_points(made.slices, tmp_path / "runs" / made.slices.name, {})
    metrics = json.loads((run / "metrics.json").read_text())
    told = {"error": 0.05, "value": None, "positives": 40, "negatives": 40, "note": ""}
    few = {**told, "negative_below": None, "positive_above": None, "positives": 3, "note": "needs 19"}
    cuts = {}
    for level, low, high in (("series", 0.0, 0.0), ("patient", 0.0, 1.0), ("slice", 0.1, 0.9)):
        cuts[level] = dict.fromkeys(metrics["thresholds"][level], few)
        cuts[level]["any"] = {**told, "negative_below": low, "positive_above": high}
    metrics["triage"] = {"cuts": cuts}
    (run / "metrics.json").write_text(json.dumps(metrics))
    seal(run)
    folder, out = series_folder(made, tmp_path / "in"), tmp_path / "out"
    assert call(f"run={run}", f"input={folder}", f"out={out}", "page=true") == 0
    assert table(out, "series")["triage_any"].tolist() == ["positive"]
    assert table(out, "patients")["triage_any"].tolist() == ["undecided"]
    assert "triage_any" not in table(out, "slices")
    assert "triage_epidural" not in table(out, "series")  # too few patients: no answer
    said = "of patients with the finding at most 5 % are called negative"
    assert f"triage of patients, any: 0 positive, 1 undecided, 0 negative ({said}" in capsys.readouterr().out
    shown = page_of(out)
    assert shown["triage"] == {"any": "positive"}
    assert said in shown["triage_note"]


# --- mixed and bad input ------------------------------------------------------------------------------------------


def write_series(
    folder: Path,
    count: int,
    *,
    patient: str = "P",
    series: str = "1.1",
    study: str = "1.9",
    step: float = 5.0,
    **tags: object,
) -> None:
    for k in range(count):
        write_slice(
            folder / f"{patient}_{series}_{k}.dcm",
            step * k,
            patient=patient,
            series=series,
            number=k,
            size=64,
            PixelSpacing=tags.get("PixelSpacing", [3.6, 3.6]),
            StudyInstanceUID=study,
            **{key: value for key, value in tags.items() if key != "PixelSpacing"},
        )


def test_the_axial_head_series_is_chosen_with_its_reason(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    write_series(folder, 3, series="1.0", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(folder, 20, series="1.1", SeriesDescription="head bone", ConvolutionKernel="BONEPLUS")
    write_series(folder, 18, series="1.2", SeriesDescription="HEAD STD")
    write_series(folder, 90, series="1.3", step=1.25, SeriesDescription="head thin")
    write_series(folder, 30, series="1.4", SeriesDescription="neck soft", PixelSpacing=[5.0, 5.0])
    write_series(folder, 20, series="1.5", SeriesDescription="head c+ post contrast")
    out = tmp_path / "out"
    assert call(f"run={made.slices}", f"input={folder}", f"out={out}") == 0
    printed = capsys.readouterr().out
    assert table(out, "series")["series_id"].tolist() == ["1.2"]
    assert "series 1.2, the best of 5 axial series: 18 slices every 5.0 mm" in printed
    reasons = table(out, "left_out").set_index("item")["reason"]
    assert "sharp kernel" in reasons["1.1"]
    assert "90 slices every 1.2 mm" in reasons["1.3"]
    assert "described as neck" in reasons["1.4"]
    assert "contrast" in reasons["1.5"]
    assert (reasons[reasons.index.str.contains("_1.0_")] == "localiser").all()
    assert call(f"run={made.slices}", f"input={folder}", f"out={out}", "series=all") == 0
    assert len(table(out, "series")) == 5


def test_choice_without_positions_or_sizes_still_chooses() -> None:
    series = pd.DataFrame(
        [
            {
                "series_id": name,
                "patient_id": "p",
                "study_id": "s",
                "kept": kept,
                "spacing_mm": np.nan,
                "pixel_mm": np.nan,
                "rows": 64,
                "columns": 64,
                "description": "",
                "kernel": "",
            }
            for name, kept in (("a", 12), ("b", 30))
        ]
    )
    rows = pd.DataFrame({"series_id": ["a", "b"], "z_mm": np.nan, "image_type": "", "path": ["x", "y"]})
    (found,) = choose(series, rows, float("nan"))
    assert found.series_id == "b"
    assert found.others[0][0] == "a"


def test_two_patients_in_one_folder_are_predicted_apart(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = series_folder(made, series_folder(made, tmp_path / "in", 0), 1)
    assert call(f"run={made.series[0]}", f"input={folder}", f"out={tmp_path / 'both'}") == 0
    assert "2 patients in in: each is predicted on its own" in capsys.readouterr().out
    both = table(tmp_path / "both", "patients").set_index("patient_id")["prob_any"]
    for patient in (0, 1):
        alone = series_folder(made, tmp_path / str(patient), patient)
        assert call(f"run={made.series[0]}", f"input={alone}", f"out={tmp_path / f'out{patient}'}") == 0
        row = table(tmp_path / f"out{patient}", "patients").iloc[0]
        assert both[row["patient_id"]] == pytest.approx(row["prob_any"], abs=1e-6)


def test_a_corrupt_slice_in_the_middle_is_reported_and_the_rest_read(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = series_folder(made, tmp_path / "in")
    middle, headless = sorted(folder.iterdir())[6:8]
    middle.write_bytes(middle.read_bytes()[:-1000])
    headless.write_bytes(b"no DICOM at all" * 20)
    wanted = [f"run={made.series[0]}", f"input={folder}", f"out={tmp_path / 'out'}"]
    for _ in range(2):  # the second call predicts nothing and tells the same
        assert call(*wanted) == 1
        printed = capsys.readouterr().out
        assert "2 could not be predicted" in printed
        assert "truncated pixels" in printed
        failures = table(tmp_path / "out", "failures")
        assert sorted(failures["item"]) == sorted([middle.name, headless.name])
        assert table(tmp_path / "out", "series")["n_slices"].tolist() == [12]
    assert "0 series predicted now" in printed


def refuse(made: Made, path: Path, out: Path, *, run: Path | None = None) -> str:
    """Why a path is not predicted: from the error, or from failures.csv."""
    try:
        status = call(f"run={run or made.series[0]}", f"input={path}", f"out={out}")
    except HemlearnError as error:
        return error.problem
    assert status == 1
    assert not len(table(out, "series"))
    return str(table(out, "failures")["reason"].iloc[0])


def test_folders_without_head_slices_are_refused_with_the_reason(made: Made, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in refuse(made, tmp_path / "empty", tmp_path / "out")
    write_series(tmp_path / "scouts", 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert "localiser" in refuse(made, tmp_path / "scouts", tmp_path / "out")
    with pytest.raises(DataError) as caught:
        call(f"run={made.slices}", f"input={tmp_path / 'scouts'}", f"out={tmp_path / 'out'}")
    assert "data.root" not in str(caught.value)  # predict has no such key
    write_series(tmp_path / "mixed", 6, patient="A")
    for k, file in enumerate(sorted((tmp_path / "mixed").iterdir())):
        data = pydicom.dcmread(file)
        data.PatientID = "AB"[k % 2]
        data.save_as(file)
    assert "two patients in one series" in refuse(made, tmp_path / "mixed", tmp_path / "out")
    colour = np.zeros((64, 64, 3), dtype=np.uint8)
    for k in range(2):
        write_slice(
            tmp_path / "captures" / f"{k}.dcm",
            5.0 * k,
            size=64,
            SamplesPerPixel=3,
            PlanarConfiguration=0,
            PhotometricInterpretation="RGB",
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelRepresentation=0,
            PixelData=colour.tobytes(),
            SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
        )
    assert "colour: RGB" in refuse(made, tmp_path / "captures", tmp_path / "out")
    assert "no such file" in refuse(made, tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "notes.docx").write_bytes(b"PK")
    assert "unknown kind of file" in refuse(made, tmp_path / "notes.docx", tmp_path / "out")


def test_archives_that_cannot_be_trusted_are_refused(made: Made, tmp_path: Path) -> None:
    folder = series_folder(made, tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as archive:
        archive.write(next(folder.iterdir()), "a.dcm")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.write(tmp_path / "inner.zip", "inner.zip")
    assert "archive within the archive" in refuse(made, tmp_path / "nested.zip", tmp_path / "out")
    raw = bytearray((tmp_path / "inner.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # bit 0 of the flags: encrypted
        raw[raw.find(mark) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(raw)
    assert "encrypted" in refuse(made, tmp_path / "locked.zip", tmp_path / "out")
    assert not (tmp_path / "out" / ".unpacked").exists()


@pytest.mark.parametrize(
    "name", ["huge.dcm", "real.dcm", "huge.nii", "huge.nii.gz", "huge.png", "huge.csv", "huge.zip"]
)
def test_a_file_of_3_gb_is_refused_unread(made: Made, tmp_path: Path, name: str) -> None:
    import resource

    path = tmp_path / name
    if name == "real.dcm":  # a slice with 3 GB of zeros behind its pixels
        shutil.copy(made.files(0)[0], path)
    with path.open("ab") as file:
        file.truncate(3 << 30)  # sparse
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem = refuse(made, path, tmp_path / "out", run=made.pictures if name == "huge.png" else made.slices)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 1000, f"{grown:.0f} MB more memory: {problem}"
    if name in ("real.dcm", "huge.png", "huge.csv"):
        assert str(path.stat().st_size) in problem


def test_mr_is_refused_by_a_ct_run(made: Made, tmp_path: Path) -> None:
    write_series(tmp_path / "mr", 12, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    assert "modality MR" in refuse(made, tmp_path / "mr", tmp_path / "out")
    rng = np.random.default_rng(0)
    signal = np.zeros((64, 64, 12), dtype=np.int16)
    signal[8:56, 8:56] = rng.integers(100, 900, (48, 48, 12))
    out = tmp_path / "out"
    for name, values in (("signal", signal), ("scaled", signal.astype(np.float32) / 900)):
        nibabel.save(nibabel.Nifti1Image(values, np.diag([3.6, 3.6, 5.0, 1.0])), tmp_path / f"{name}.nii.gz")
        reason = refuse(made, tmp_path / f"{name}.nii.gz", out)
        assert ("no CT in HU" if name == "signal" else "no HU") in reason


def test_a_volume_that_shows_nothing_is_refused(made: Made, tmp_path: Path) -> None:
    bone = np.random.default_rng(0).integers(300, 900, (64, 64, 12)).astype(np.int16)  # above the brain window
    nibabel.save(nibabel.Nifti1Image(bone, np.diag([3.6, 3.6, 5.0, 1.0])), tmp_path / "bone.nii.gz")
    assert "every pixel alike, in the brain window" in refuse(made, tmp_path / "bone.nii.gz", tmp_path / "out")


def test_air_is_no_head(made: Made, tmp_path: Path) -> None:
    air = np.random.default_rng(0).normal(-1000, 20, (12, 64, 64)).round().astype(np.int16)
    table = air.copy()
    table[:, 60, 24:40] = 40  # 0.4 % of it: the head rest
    for name, volume in (("air", air), ("table", table), ("even", np.full_like(air, -1000))):
        nifti_head(tmp_path / f"{name}.nii", voxels=volume)
        for k, own in enumerate((volume + 1024).clip(0)):
            write_slice(tmp_path / name / f"{k}.dcm", 5.0 * k, number=k, size=64, PixelData=own.tobytes())
        for path in (tmp_path / f"{name}.nii", tmp_path / name):
            reason = refuse(made, path, tmp_path / "out" / path.name)
            assert ("no head in it: 0.39 %" if name == "table" else "every pixel alike") in reason


def test_sides_that_a_header_contradicts_are_refused_where_they_count(made: Made, tmp_path: Path) -> None:
    right = np.diag([2.0, 2.0, 5.0, 1.0])
    nifti_head(tmp_path / "in" / "a.nii", right, right @ np.diag([-1.0, 1, 1, 1]))
    rules = InputRules.of(load(made.slices))
    found = find_input(tmp_path / "in", rules, tmp_path / "scratch")
    assert any("contradict each other about left and right" in note for note in found.notes)
    nifti_head(tmp_path / "in" / "b.nii")
    found = find_input(tmp_path / "in", replace(rules, sides=True, every=True), tmp_path / "scratch")
    assert found.failures == [("a.nii", f"refused: {LEFT_RIGHT}")]
    assert [series.series_id for series in found.series] == ["b.nii"]


def test_runs_that_cannot_be_used_say_why(made: Made, tmp_path: Path) -> None:
    folder = series_folder(made, tmp_path / "in")
    assert "no run folder" in refuse(made, folder, tmp_path / "out", run=tmp_path)

    def damaged(name: str) -> Path:
        copy = tmp_path / "runs" / name / made.series[0].name
        shutil.copytree(made.series[0], copy)
        return copy

    incomplete = damaged("incomplete")
    (incomplete / "checkpoints" / "best.ckpt").unlink()
    assert "best.ckpt" in refuse(made, folder, tmp_path / "out", run=incomplete)
    cut = damaged("cut")
    file = cut / "checkpoints" / "best.ckpt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "changed after" in refuse(made, folder, tmp_path / "out", run=cut)
    seal(cut)
    assert "damaged" in refuse(made, folder, tmp_path / "out", run=cut)
    other = damaged("other")
    file = other / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    content["state_dict"] = {f"old.{name}": value for name, value in content["state_dict"].items()}
    torch.save(content, file)
    seal(other)
    assert "does not fit the network of this run" in refuse(made, folder, tmp_path / "out", run=other)
    newer = damaged("newer")
    (newer / "config.yaml").write_text((newer / "config.yaml").read_text() + "quantum:\n  name: entangled\n")
    status = json.loads((newer / "status.json").read_text())
    (newer / "status.json").write_text(json.dumps({**status, "version": "99.0"}))
    seal(newer)
    found = refuse(made, folder, tmp_path / "out", run=newer)
    assert "of another version" in found
    assert "quantum" in found
    with pytest.raises(RunError, match="hemorrhage"):
        call(f"run={made.series[0]},{made.pictures}", f"input={folder}", f"out={tmp_path / 'out'}")
    with pytest.raises(ConfigError, match="the same run"):
        call(f"run={made.series[0]},{made.series[0]}", f"input={folder}", f"out={tmp_path / 'out'}")
    with pytest.raises(ConfigError, match="does not calibrate slices"):
        call(f"run={made.slices}", f"input={folder}", f"out={tmp_path / 'out'}", "calibrated=true")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run=x"], "input is not set"),
        (["rnu=x"], "did you mean 'run'"),
        (["calibrated=maybe"], "calibrated"),
        (["page=1"], "page=1"),
        (["series=some"], "series=some"),
        (["batch_size=0"], "batch_size=0: at least 1"),
    ],
)
def test_wrong_calls_say_what(arguments: list[str], wanted: str) -> None:
    full = {"run": "x", "input": "y", "out": "z"} if wanted != "input is not set" else {}
    with pytest.raises(ConfigError, match=wanted):
        apply.predict([*(f"{key}={value}" for key, value in full.items()), *arguments])


def test_a_name_that_is_no_text_is_a_failure_and_the_rest_is_predicted(made: Made, tmp_path: Path) -> None:
    for name in (b"good.png", b"b\xff\xfe.png"):
        save(tmp_path / "in" / os.fsdecode(name), head(1))
    assert call(f"run={made.pictures}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'out'}") == 1
    assert "not UTF-8" in table(tmp_path / "out", "failures")["reason"].iloc[0]
    assert table(tmp_path / "out", "slices")["path"].tolist() == ["good.png"]


def test_equal_names_sizes_and_times_elsewhere_are_other_files(made: Made, tmp_path: Path) -> None:
    probs = []
    for patient in (0, 1):
        folder = series_folder(made, tmp_path / f"in{patient}", patient)
        for k, file in enumerate(sorted(folder.iterdir())):
            data = pydicom.dcmread(file)
            data.PatientID = data.SeriesInstanceUID = data.StudyInstanceUID = "1.2.3"
            data.save_as(folder / f"{k}.dcm")
            file.unlink()
            os.utime(folder / f"{k}.dcm", ns=(10**18, 10**18))
        assert call(f"run={made.slices}", f"input={folder}", f"out={tmp_path / 'out'}") == 0
        probs.append(table(tmp_path / "out", "slices")["prob_any"].to_numpy())
    assert not np.array_equal(*probs)


def test_nobody_elses_table_is_replaced(made: Made, tmp_path: Path) -> None:
    mine = "path\n" + "\n".join(str(path) for path in made.files(0)) + "\n"
    for name, other in (("series.csv", "series.csv"), ("rows.csv", "patients.csv")):
        folder = tmp_path / name.removesuffix(".csv")
        folder.mkdir()
        for file in (folder / name, folder / other):
            file.write_text(mine)
        words = (f"run={made.slices}", f"input={folder / name}", f"out={folder}")
        with pytest.raises(ConfigError, match=f"{other}: would be replaced"):
            call(*words)
        assert {file.name: file.read_text() for file in folder.iterdir()} == {name: mine, other: mine}
    (folder / other).unlink()
    assert call(*words) == 0
    assert call(*words) == 0, "a command replaces its own tables"


def test_rows_that_name_nothing_are_failures(made: Made, tmp_path: Path) -> None:
    folder = series_folder(made, tmp_path / "in")
    names = [f"in/{file.name}" for file in folder.iterdir()]
    pd.DataFrame({"path": [*names, "in/gone.dcm", "in/what.docx"]}).to_csv(tmp_path / "in.csv", index=False)
    assert call(f"run={made.series[0]}", f"input={tmp_path / 'in.csv'}", f"out={tmp_path / 'out'}") == 1
    failures = table(tmp_path / "out", "failures").set_index("item")["reason"]
    assert failures["in/gone.dcm"] == "no such file"
    assert "unknown kind" in failures["in/what.docx"]
    assert table(tmp_path / "out", "series")["n_slices"].tolist() == [14]


def test_a_real_series_is_read_in_order(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = real_data("ge_head_ct_series")
    assert call(f"run={made.series[0]}", f"input={folder}", f"out={tmp_path / 'out'}") == 0
    slices = table(tmp_path / "out", "slices")
    assert slices["path"].tolist() == [f"{k:02d}.dcm" for k in range(1, 29)]
    assert (np.diff(slices["z_mm"]) > 0).all()
    printed = capsys.readouterr().out
    assert "gantry tilt 18.5 degrees" in printed


# --- predictions that are scored ------------------------------------------------------------------------------------


def test_labels_score_the_predictions_of_pictures(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``labels.csv`` of the data set itself: ids without folders and zeros."""
    folder, labels = made.heads / "head_ct" / "head_ct", made.heads / "labels.csv"
    call = [f"run={made.pictures}", f"input={folder}", f"out={tmp_path / 'out'}", f"labels={labels}"]
    assert apply.predict(call) == 0
    said = capsys.readouterr().out
    assert "against labels.csv, 95 % interval" in said
    assert "note: labels.csv: files are matched by their names, whatever their folders" in said
    assert "20 patients" not in said
    slices, metrics = table(tmp_path / "out", "slices"), json.loads((tmp_path / "out" / "metrics.json").read_text())
    truth = pd.read_csv(labels, skipinitialspace=True).set_index("id")["hemorrhage"]
    y = slices["path"].str.removesuffix(".png").astype(int).map(truth)
    entry = metrics["test"]["slice"]["auroc"]
    # Tables are rounded, which makes ties: a pair of 100 may count half.
    assert entry["value"] == pytest.approx(roc_auc_score(y, slices["prob_hemorrhage"]), abs=0.0151)
    assert entry["low"] < entry["value"] < entry["high"]
    assert entry["n"] == 20
    called = slices["prob_hemorrhage"] >= metrics["about"]["thresholds"]["slice"]["hemorrhage"]
    assert metrics["test"]["slice"]["accuracy"]["value"] == pytest.approx((called == (y == 1)).mean())
    assert metrics["about"]["rows_used"] == 20
    learnt = (load(made.pictures).split.assignment["split"] != "test").sum()
    assert 0 < learnt < 20
    assert metrics["leaky"] is True
    assert (metrics["about"]["files"], metrics["about"]["files_seen"]) == (20, learnt)
    assert f"note: LEAKY: {learnt} of 20 files scored trained or validated the run" in said
    (tmp_path / "new").mkdir()
    with Image.open(next(folder.glob("*.png"))) as image:
        image.save(tmp_path / "new" / "000.png", compress_level=1)  # saved anew: other bytes
    assert apply.predict([call[0], f"input={tmp_path / 'new'}", f"out={tmp_path / 'anew'}", call[3]]) == 0
    assert json.loads((tmp_path / "anew" / "metrics.json").read_text())["leaky"] is False
    assert apply.predict(call[:-1]) == 0, "without labels the old figures are gone"
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_labels_of_patients_score_an_ensemble(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for patient in range(6):
        series_folder(made, tmp_path / "in", patient)
    runs = ",".join(map(str, made.series))
    call = [f"run={runs}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'out'}"]
    assert apply.predict(call) == 0
    ids = table(tmp_path / "out", "patients")["patient_id"].tolist()
    rows = pd.DataFrame({"Patient ID": [*ids[:5], "nobody"], "any": [1, 0, 1, 0, 1, 0], "age": 50})
    rows.to_excel(tmp_path / "truth.xlsx", index=False)
    assert apply.predict([*call, f"labels={tmp_path / 'truth.xlsx'}"]) == 0
    said = capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["test"]) == ["patient"]
    both = table(tmp_path / "out", "patients").set_index("patient_id").loc[ids[:5]]
    y = rows["any"].to_numpy()[:5]
    assert metrics["test"]["patient"]["auroc"]["value"] == pytest.approx(roc_auc_score(y, both["prob_any"]))
    assert metrics["test"]["patient"]["accuracy"]["value"] == pytest.approx((both["call_any"] == y).mean())
    unmatched = pd.read_csv(tmp_path / "out" / "unmatched.csv").set_index("item")["reason"]
    assert unmatched["truth.xlsx, row 7"] == "label without prediction: no patient_id 'nobody'"
    assert unmatched[ids[5]] == "prediction without label: no such patient_id in truth.xlsx"
    assert "labels of the run that truth.xlsx does not hold are left out: epidural" in said
    assert "2 items without a counterpart (unmatched.csv)" in said


def test_labels_of_accessions_are_those_of_the_headers(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for patient in range(4):
        folder = series_folder(made, tmp_path / "in", patient)
        for file in folder.glob(f"*_{patient}.dcm") if patient < 3 else ():
            header = pydicom.dcmread(file)
            header.AccessionNumber = f"00{patient}"
            header.save_as(file)
    call = [f"run={made.series[0]}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'out'}"]
    (tmp_path / "truth.csv").write_text("Accession No,any\n0,1\n\n001,0\n7,1\n")
    assert apply.predict([*call, f"labels={tmp_path / 'truth.csv'}"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["test"]) == ["series", "patient"]
    assert metrics["about"]["key"] == "accession_number"
    assert metrics["test"]["series"]["accuracy"]["n"] == 2
    assert "1 accession_number is matched without leading zeros" in " ".join(capsys.readouterr().out.split())
    unmatched = pd.read_csv(tmp_path / "out" / "unmatched.csv", dtype=str)
    assert unmatched["item"].tolist()[:2] == ["truth.csv, row 5", "002"]
    assert unmatched["reason"].tolist()[2] == (
        "prediction without label: its files have no AccessionNumber (0008,0050)"
    )
    (tmp_path / "truth.csv").write_text("AccessionNumber,any\n9,1\n")
    with pytest.raises(DataError, match=r"its accession_number are '9'; predicted were '000', '001'") as caught:
        apply.predict([*call, f"labels={tmp_path / 'truth.csv'}"])
    assert caught.value.remedy == "write the ids as they stand in the files, AccessionNumber (0008,0050)"


def test_pictures_have_no_accession_and_match_by_the_other_ids(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made.heads / "head_ct" / "head_ct"
    call = [f"run={made.pictures}", f"input={folder}", f"out={tmp_path / 'out'}"]
    assert apply.predict(call) == 0
    ids = table(tmp_path / "out", "patients")["patient_id"].tolist()[:4]
    rows = pd.DataFrame({"AccessionNumber": range(4), "patient": ids, "hemorrhage": [0, 1, 0, 1]})
    rows.to_csv(tmp_path / "truth.csv", index=False)
    assert apply.predict([*call, f"labels={tmp_path / 'truth.csv'}"]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["about"]["key"] == "patient_id"
    assert "no file has an AccessionNumber (0008,0050)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,hemorrhage\n000.png,1\n000.png,0\n", r"row 3: path='000\.png' stands in row 2 too and contradicts it"),
        ("path,hemorrhage\n000.png,2\n", r"row 2: hemorrhage='2'"),
        ("path,hemorrhage\n\n000.png,2\n", r"row 3: hemorrhage='2'"),
        ("path,bleed\n000.png,1\n", r"no column of the run's label 'hemorrhage'; its columns of 0 and 1 are: bleed"),
        ("name,hemorrhage\n000.png,1\n", "no column of ids"),
        ("path,hemorrhage\nx.png,1\n", r"none of its 1 row is about what was predicted: its path are 'x\.png'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(made: Made, tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    input_ = sorted((made.heads / "head_ct" / "head_ct").glob("*.png"))[0]
    with pytest.raises(DataError, match=problem):
        apply.predict(
            [f"run={made.pictures}", f"input={input_}", f"out={tmp_path / 'out'}", f"labels={tmp_path / 'labels.csv'}"]
        )


def test_an_index_lists_every_series_with_its_page(made: Made, tmp_path: Path) -> None:
    for patient in range(3):
        series_folder(made, tmp_path / "in", patient)
    call = [f"run={made.slices}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'out'}", "page=true"]
    assert apply.predict(call) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    pages = table(tmp_path / "out", "pages")
    assert sorted(re.findall(r'href="([^"]+)"', text)) == sorted(pages["page"]), "nothing but links to the pages"
    assert not [name for name in (*pages["patient_id"], *pages["series_id"]) if name in text], "pseudonyms alone"
    above, _, below = text.partition("<main")
    assert "SYNTHETIC" in above
    assert "FEW PATIENTS: its data set holds 10 patients" in above
    assert "WEAK MODEL: test AUROC" in above
    assert text.count('<canvas data-thumb="') == 3
    shown = {float(value) for value in re.findall(r'data-value="([0-9.]+)"', below)}
    values = table(tmp_path / "out", "series")[[f"prob_{label}" for label in load(made.slices).config.task.labels]]
    np.testing.assert_allclose(sorted(shown), sorted(set(values.to_numpy().ravel())), atol=1e-6)
    for page in pages["page"]:
        case = (tmp_path / "out" / page).read_text()
        assert '"sides":true,"upward":true' in case
        assert case.index("SYNTHETIC") < case.index("<header>")
    assert apply.predict(call) == 0
    assert (tmp_path / "out" / "index.html").read_text() == text, "made again, the same"


def test_sides_of_pictures_are_not_known(made: Made, tmp_path: Path) -> None:
    image = sorted((made.heads / "head_ct" / "head_ct").glob("*.png"))[0]
    assert apply.predict([f"run={made.pictures}", f"input={image}", f"out={tmp_path / 'out'}", "page=true"]) == 0
    (page,) = (tmp_path / "out" / "pages").glob("*.html")
    assert '"sides":false,"upward":false' in page.read_text()
