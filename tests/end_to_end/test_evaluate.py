"""``hemlearn evaluate``: finished runs on data sets of another origin, and on those they must not be judged by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hemlearn.__main__ import main as hemlearn
from hemlearn.commands import apply
from hemlearn.config.compose import compose
from hemlearn.config.schema import TaskConfig
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.reading.external import match_labels, narrowed, parse_map
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import load
from hemlearn.util.errors import ConfigError, DataError, HemlearnError, SplitError
from tests.conftest import seal
from tests.end_to_end.conftest import status_of

SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=16",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
    "trainer.max_epochs=1",
    "augmentation=none",
    "split.val_fraction=0.3",
    "split.test_fraction=0.3",
]
FLAT = Grid(rows=72, cols=72, pixel_mm=3.2, samples=1)
COARSE = Grid(rows=64, cols=64, pixel_mm=3.6, slices=12, thickness_mm=12, samples=1)


class Made:
    """Runs: of pictures with one label, of volumes in HU with six; and data sets."""

    def __init__(self, root: Path) -> None:
        self.heads, self.others, self.jpg, self.nifti = (root / name for name in ("heads", "others", "jpg", "nifti"))
        write_phantom("head_ct", self.heads, patients=30, seed=0, grid=FLAT)
        write_phantom("head_ct", self.others, patients=12, seed=5, grid=FLAT)
        write_phantom("ct_ich", self.jpg, patients=5, seed=1, grid=COARSE)
        write_phantom("ct_ich_nifti", self.nifti, patients=8, seed=2, grid=COARSE)
        assert hemlearn(["train", f"data.root={self.heads}", *SMALL, "name=pictures", "task.calibration=platt"]) == 0
        call = ["data=ct_ich", f"data.root={self.nifti}", *SMALL, "task=subtypes", "name=volumes"]
        assert hemlearn(["train", *call]) == 0
        self.pictures, self.volumes = (
            next((root / "runs" / name).glob("*/status.json")).parent for name in ("pictures", "volumes")
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(root / "cache"))
        patch.chdir(root)
        return Made(root)


@pytest.fixture(autouse=True)
def cache(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the user who has made the runs."""
    monkeypatch.setenv("HEMLEARN_CACHE", str(made.heads.parent / "cache"))


def call(run: Path, *arguments: object) -> int:
    return apply.evaluate([f"run={run}", *(str(text) for text in arguments)])


def read(folder: Path, name: str) -> dict:  # type: ignore[type-arg]
    found: dict = json.loads((folder / f"{name}.json").read_text())  # type: ignore[type-arg]
    return found


def test_labels_match_by_name_or_by_the_map(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data=ct_ich", f"data.root={made.jpg}", f"out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError) as caught:
        call(made.pictures, *data)
    for part in ("the run predicts hemorrhage", "data=ct_ich holds", "subdural", "labels=hemorrhage:"):
        assert part in str(caught.value)
    assert call(made.pictures, *data, "labels=hemorrhage:any") == 0
    assert "auroc" in capsys.readouterr().out
    folder = tmp_path / "out"
    frame = pd.read_parquet(folder / "predictions.parquet")
    manifest = build_datamodule(compose(["data=ct_ich", f"data.root={made.jpg}", "task=subtypes"])).manifest.table
    assert len(frame) == len(manifest)
    np.testing.assert_array_equal(
        frame.set_index("slice_id")["label_hemorrhage"], manifest.set_index("slice_id").loc[frame["slice_id"], "any"]
    )
    assert set(frame["split"]) == {"test"}
    assert "position_prob_hemorrhage" not in frame  # the run's pictures have no position in a series
    metrics = read(folder, "metrics")
    assert set(metrics["test"]) == {"slice", "series", "patient"}
    assert "val" not in metrics
    assert metrics["thresholds"] == read(made.pictures, "metrics")["thresholds"]  # chosen then, not now
    told = read(folder, "provenance")
    assert told["evaluated"] == "external"
    assert told["run"]["hash"] == made.pictures.name
    assert told["labels"] == {"hemorrhage": "any"}
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"roc", "pr", "reliability", "confusion"}
    assert status_of(folder)["state"] == "complete"
    assert not (folder / "checkpoints").exists()
    assert call(made.pictures, *data, "labels=hemorrhage:any") == 0
    assert "is complete: skipped" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds run"):
        call(made.pictures, "data=head_ct", f"data.root={made.others}", f"out={folder}")


def test_on_its_own_data_it_is_refused_and_without_the_seen_patients_it_is_the_run_s_own_test(
    made: Made, tmp_path: Path
) -> None:
    data = ["data=head_ct", f"data.root={made.heads}"]
    with pytest.raises(SplitError, match="data set the run was made from"):
        call(made.pictures, *data)
    assert call(made.pictures, *data, "overlap=exclude", f"out={tmp_path / 'own'}") == 0
    own, then = read(tmp_path / "own", "metrics")["test"], read(made.pictures, "metrics")["test"]
    for name, entry in then["slice"].items():
        if name != "labels":
            for key in ("value", "low", "high"):
                assert own["slice"][name][key] == pytest.approx(entry[key], abs=1e-5), name
    frame = pd.read_parquet(tmp_path / "own" / "predictions.parquet").set_index("slice_id")["prob_hemorrhage"]
    recorded = pd.read_parquet(made.pictures / "predictions.parquet").query("split == 'test'").set_index("slice_id")
    np.testing.assert_allclose(frame.loc[recorded.index], recorded["prob_hemorrhage"], atol=1e-5)  # calibrated alike
    assert call(made.pictures, *data, "overlap=allow", f"out={tmp_path / 'all'}") == 0
    assert len(pd.read_parquet(tmp_path / "all" / "predictions.parquet")) == 30
    told = read(tmp_path / "all", "provenance")
    assert any("OPTIMISTIC" in note for note in told["notes"])
    assert told["overlap"]["patients"] == 30 - len(recorded)
    assert "metadata_prob_hemorrhage" in pd.read_parquet(tmp_path / "own" / "predictions.parquet")


def test_without_the_run_s_own_data_no_shortcut_is_judged(made: Made, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "pictures" / made.pictures.name
    shutil.copytree(made.pictures, run)
    seal(run, ours=True, data={**read(run, "provenance")["data"], "root": str(tmp_path / "gone")})
    assert call(run, "data=head_ct", f"data.root={made.others}", f"out={tmp_path / 'out'}", "duplicates=none") == 0
    metrics = read(tmp_path / "out", "metrics")
    assert "metadata" not in metrics["audits"]
    assert "duplicates" not in metrics["audits"]
    assert metrics["audits"]["verdict"] == []
    assert any("are not at" in note for note in read(tmp_path / "out", "provenance")["notes"])


def test_pictures_of_the_training_are_found_under_other_names(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = pd.read_csv(made.pictures / "split.csv", dtype=str)
    seen = sides.loc[sides["split"] == "train", "patient_id"].tolist()[:2]
    rows = []
    for number, file in enumerate(sorted((made.others / "head_ct" / "head_ct").glob("*.png"))):
        shutil.copy(file, tmp_path / f"new{number}.png")
        rows.append((f"new{number}.png", f"n{number}", number % 2))
    for name in seen:
        shutil.copy(made.heads / "head_ct" / "head_ct" / f"{name}.png", tmp_path / f"copy{name}.png")
        rows.append((f"copy{name}.png", f"c{name}", 1))
    pd.DataFrame(rows, columns=["path", "patient_id", "bleed"]).to_csv(tmp_path / "rows.csv", index=False)
    data = ["data=table", f"data.manifest={tmp_path / 'rows.csv'}", "labels=hemorrhage:bleed"]
    with pytest.raises(SplitError, match="2 pictures are among those the run has learnt from"):
        call(made.pictures, *data)
    assert call(made.pictures, *data, "overlap=exclude", f"out={tmp_path / 'out'}") == 0
    frame = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert sorted(frame["patient_id"]) == sorted(f"n{k}" for k in range(12))
    pairs = pd.read_csv(tmp_path / "out" / "overlap.csv", dtype=str)
    assert sorted(pairs["slice_run"]) == sorted(seen)
    assert call(made.pictures, *data, "duplicates=none", f"out={tmp_path / 'unseen'}") == 0
    assert "pictures were not compared" in capsys.readouterr().out


def test_other_data_of_the_same_layout_are_fine_and_compare_reads_the_folder(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(made.pictures, "data=head_ct", f"data.root={made.others}") == 0
    (folder,) = (made.pictures.parent.parent / "pictures_on_head_ct").iterdir()
    capsys.readouterr()
    out = folder.parent / "compare"
    assert hemlearn(["compare", str(folder.parent), f"out={out}"]) == 0
    assert "12" in capsys.readouterr().out
    # The page has what that of a run has: models that see no brain stand beside the result.
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert frame["metadata_prob_hemorrhage"].between(0, 1).all()
    audits = read(folder, "metrics")["audits"]
    assert audits["metadata"]["test"]["slice"]["auroc"]["n"] == 12
    positive = int(frame["label_hemorrhage"].sum())
    assert audits["labels"]["test"]["hemorrhage"] == {"positive": positive, "negative": 12 - positive, "unknown": 0}
    assert audits["duplicates"]["straddling"] == 0
    assert any("file facts alone" in text and "run's training slices" in text for text in audits["verdict"])
    page = (out / "compare.html").read_text()
    assert "file facts alone" in page
    assert "hold no predictions of a model that sees no pixel" not in page


def test_a_run_of_many_labels_on_one(made: Made, tmp_path: Path) -> None:
    data = ["data=head_ct", f"data.root={made.others}", f"out={tmp_path / 'out'}"]
    with pytest.raises(ConfigError, match="labels do not match"):
        call(made.volumes, *data)
    # Volumes in HU cannot be had back from pictures.
    with pytest.raises(DataError, match="pictures of grey levels"):
        call(made.volumes, *data, "labels=any:hemorrhage")
    assert not (tmp_path / "out").exists()  # a refused call leaves nothing
    out = tmp_path / "jpg"
    assert (
        call(made.pictures, "data=ct_ich", f"data.root={made.nifti}", "labels=hemorrhage:subdural", f"out={out}") == 0
    )
    assert any("window of centre 40" in note for note in read(out, "provenance")["notes"])


def test_labels_of_series_judge_series(made: Made, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_phantom("ct_ich_nifti", other, patients=4, seed=9, grid=COARSE)
    files = sorted((other / "ct_scans").glob("*.nii*"))
    rows = pd.DataFrame(
        {
            "path": [f"ct_scans/{file.name}" for file in files],
            "patient_id": [f"q{file.name[:3]}" for file in files],
            "bleed": [0, 1, 0, 1],
        }
    )
    rows.to_csv(other / "rows.csv", index=False)
    out = tmp_path / "out"
    data = ["data=table", f"data.manifest={other / 'rows.csv'}", "labels=any:bleed", f"out={out}"]
    assert call(made.volumes, *data) == 0
    metrics = read(out, "metrics")
    assert set(metrics["test"]) == {"series", "patient"}
    assert metrics["test"]["series"]["accuracy"]["n"] == 4
    frame = pd.read_parquet(out / "predictions.parquet")
    assert [c for c in frame if c.startswith("prob_")] == ["prob_any"]
    assert "position_prob_any" in frame  # fitted on the run's training patients
    assert any("left out: epidural" in note for note in read(out, "provenance")["notes"])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["data.root=x"], "data is not set"),
        (["data=head_ct", "data.image_size=32"], "taken from the run"),
        (["data=head_ct", "data.rot=x"], "did you mean 'data.root'"),
        (["data=head_ct", "seed=3"], "unknown key 'seed'"),
        (["data=head_ct", "overlap=ok"], "overlap=ok"),
        (["data=head_ct", "duplicates=all"], "duplicates=all"),
        (["data=head_ct", "labels=hemorrhage"], "RUN_LABEL:DATA_LABEL"),
        (["data=head_ct", "labels=hemorage:any"], "did you mean 'hemorrhage'"),
        (["data=head_ct", "labels=hemorrhage:bleed"], "no label 'bleed'"),
    ],
)
def test_wrong_calls_say_what(made: Made, arguments: list[str], wanted: str) -> None:
    root = [] if any(text.startswith("data.ro") for text in arguments) else [f"data.root={made.others}"]
    with pytest.raises(HemlearnError, match=wanted):
        call(made.pictures, *arguments, *root)


def test_an_evaluation_is_no_run_to_predict_with(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(made.pictures, "data=head_ct", f"data.root={made.others}", f"out={out}") == 0
    with pytest.raises(HemlearnError, match=r"best\.ckpt"):
        load(out)


def test_maps_of_labels() -> None:
    task = TaskConfig(
        kind="multilabel",
        labels=["epidural", "subdural", "any"],
        label_weights=[1.0, 1.0, 2.0],
        monitor="weighted_log_loss",
    )
    assert parse_map(None, task) == {}
    assert parse_map("[any:bleed, subdural:sdh]", task) == {"any": "bleed", "subdural": "sdh"}
    assert match_labels({}, task, ["any", "subdural", "epidural", "x"], "d") == {label: label for label in task.labels}
    assert match_labels({"any": "bleed"}, task, ["bleed", "subdural"], "d") == {"subdural": "subdural", "any": "bleed"}
    one = narrowed(task, ["any"], "slice")
    assert (one.kind, one.labels, one.label_weights, one.monitor) == ("binary", ["any"], None, "log_loss")
    two = narrowed(task, ["subdural", "any"], "series")
    assert (two.kind, two.label_weights, two.level) == ("multilabel", [1.0, 2.0], "series")
    classes = TaskConfig(kind="multiclass", labels=["a", "b"])
    with pytest.raises(ConfigError, match="without a partner: b"):
        match_labels({"a": "x"}, classes, ["x"], "d")
    with pytest.raises(ConfigError, match="twice"):
        parse_map("any:x,any:y", task)
