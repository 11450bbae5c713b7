"""A third-party package with one part of each kind, through the real command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.__main__ import main

HERE = Path(__file__).parent
Call = Callable[..., int]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 32 pictures of 16 patients in ``pictures``."""
    folder = tmp_path_factory.mktemp("headlab")
    (folder / "pictures").mkdir()
    rng, rows = np.random.default_rng(0), []
    for index in range(32):
        bleeds = index // 2 % 2
        grey = rng.integers(0, 120, (40, 40), dtype=np.uint8)
        grey[10:20, 10:20] += np.uint8(120 * bleeds)
        Image.fromarray(grey).save(folder / "pictures" / f"{index:02d}.png")
        rows.append((f"s{index:02d}", f"p{index // 2:02d}", f"{index:02d}.png", bleeds))
    table = pd.DataFrame(rows, columns=["slice_id", "patient_id", "path", "bleed"])
    table.to_csv(folder / "pictures" / "mine.csv", index=False)
    return folder


def environment(place: Path) -> dict[str, str]:
    """The package on the path, a cache of its own, and no network."""
    own = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return own | {"HEMLEARN_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def call(place: Path) -> Call:
    """Run ``hemlearn ARGUMENTS`` in this process and return its exit status."""

    def run(*arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment(place).items():
                patch.setenv(key, value)
            patch.syspath_prepend(str(HERE))
            patch.chdir(place)
            return main(list(arguments))

    return run


OWN = ["plugins=[headlab]", "data.root=pictures", "trainer.threads=1"]


def only(folder: Path) -> Path:
    (found,) = [path.parent for path in folder.glob("*/status.json")]
    return found


def content(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def finished(call: Call, place: Path) -> Path:
    """A run that was killed in a process of its own after two of three epochs, then resumed in this one."""
    words = ["train", *OWN, "experiment=headlab"]
    own = {**os.environ, **environment(place), "HEADLAB_KILL": "2"}
    killed = subprocess.run([sys.executable, "-m", "hemlearn", *words], cwd=place, env=own, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    folder = only(place / "runs" / "headlab")
    assert content(folder, "status.json")["state"] == "running"
    assert call(*words) == 0
    return folder


def test_a_run_of_foreign_parts_is_resumed_and_complete(finished: Path) -> None:
    assert content(finished, "status.json")["state"] == "complete"
    metrics = content(finished, "metrics.json")
    assert -1 <= metrics["test"]["slice"]["spread"]["value"] <= 1
    lines = [json.loads(line) for line in (finished / "lines.jsonl").read_text().splitlines()]
    assert {"about": "train"} in lines
    epochs = [line["epoch"] for line in lines if "val/spread" in line]
    assert sorted(set(epochs)) == [0, 1, 2]
    last = next(line for line in reversed(lines) if "test/slice/auroc" in line)
    assert {"test/slice/spread", "best/val/spread", "best/epoch"} <= set(last)
    assert any(name.startswith("baseline/") for name in last)


def test_the_policy_changed_the_backbone_and_trained_its_adapters_alone(finished: Path) -> None:
    import torch

    state = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert float(state["backbone.model.lift.up.weight"].abs().sum()) > 0
    assert {"backbone.model.lift.base.weight", "backbone.model.lift.down.weight"} <= set(state)


def test_provenance_names_the_code(finished: Path) -> None:
    text = (finished / "provenance.json").read_text()
    assert "headlab.parts.Net" in text
    assert "0.3.0" in text


def test_changed_source_is_another_run(
    call: Call, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(HERE / "headlab", tmp_path / "headlab")
    file = tmp_path / "headlab" / "parts.py"
    before = file.read_text()
    file.write_text(before.replace("gap = (logits.sigmoid()", "gap = 1.0 * (logits.sigmoid()"))
    assert file.read_text() != before
    monkeypatch.setattr(sys.modules["headlab"], "__path__", [str(file.parent)])
    assert call("train", *OWN, "experiment=headlab", f"output_dir={tmp_path / 'runs'}") == 0
    assert only(tmp_path / "runs" / "headlab").name != finished.name


def test_a_sweep_in_processes_of_joblib_makes_the_same_runs_and_a_comparison(call: Call, place: Path) -> None:
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    words = [*OWN, "experiment=headlab", "name=sweep", "trainer.max_epochs=1"]
    assert call("train", "-m", *launcher, *words, "seed=0,1") == 0
    assert len(list((place / "runs" / "sweep").glob("*/metrics.json"))) == 2
    assert call("train", *words, "seed=1", "output_dir=alone") == 0
    alone = only(place / "alone" / "sweep")
    frames = [
        pd.read_parquet(folder / "sweep" / alone.name / "predictions.parquet")
        for folder in (place / "runs", place / "alone")
    ]
    pd.testing.assert_frame_equal(*frames, check_exact=False, rtol=0, atol=1e-6)
    assert call("compare", "runs/sweep") == 0


def test_predict_evaluate_and_export(call: Call, place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemlearn.reading.export.parity._SECONDS", 0.05)
    assert call("predict", f"run={finished}", "input=pictures/00.png", "out=predicted") == 0
    words = ["data._target_=headlab.parts.Pictures", "data.root=pictures", "overlap=allow"]
    assert call("evaluate", f"run={finished}", *words, "out=evaluated") == 0  # the run's own patients, and it says so
    assert len(pd.read_parquet(place / "evaluated" / "predictions.parquet")) == 32
    assert any("OPTIMISTIC" in note for note in content(place / "evaluated", "provenance.json")["notes"])
    assert call("evaluate", f"run={finished}", *words, "labels=bleed") == 1  # no pair RUN_LABEL:DATA_LABEL
    assert call("export", f"run={finished}", "out=net.onnx") == 0
    assert (place / "net.onnx").stat().st_size > 1000


def test_features_and_a_sequence_model_over_series(call: Call, place: Path) -> None:
    assert call("train", *OWN, "experiment=headlab_series") == 0
    assert "the mean of" in (only(place / "runs" / "headlab_series") / "train.log").read_text()


def test_registered_parts_by_name(call: Call, place: Path) -> None:
    parts = ["backbone.name=headlab_squares", "backbone.pretrained=false", "loss=headlab_hinge"]
    data = ["data._target_=headlab.parts.Pictures", "data.image_size=32", "task.labels=[bleed]", "logger=none"]
    own = ["metrics=[mcc,headlab_gap]", "metrics.twice.name=headlab_gap", "metrics.twice.scale=2"]
    own += ["task.monitor=twice", "callbacks.note=headlab_note"]
    assert call("train", *OWN, *data, *parts, *own, "name=registered", "trainer.max_epochs=1") == 0
    folder = only(place / "runs" / "registered")
    assert content(folder, "status.json")["state"] == "complete"
    metrics = content(folder, "metrics.json")
    found = metrics["test"]["slice"]
    assert found["twice"]["value"] == pytest.approx(2 * found["headlab_gap"]["value"])
    assert metrics["monitor"] == {"name": "twice", "mode": "min"}
    assert "a note of 1 epochs" in (folder / "train.log").read_text()
    assert {"metrics=headlab_gap", "loss=headlab_hinge"} <= set(content(folder, "provenance.json")["code"])
    assert call("runs", "runs/registered") == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["backbone._target_=headlab.parts.Wrong.Map"], "gives (1, 4, 30, 30) for one image"),
        (["loss._target_=headlab.parts.Wrong.VectorLoss"], "gives (8,), not one number"),
        (["loss._target_=headlab.parts.Wrong.NaNLoss"], "the training loss is nan"),
        (["loss._target_=headlab.parts.Wrong.DeadLoss"], "has no gradient"),
        (["metrics.odd._target_=headlab.parts.Wrong.RaisingMetric"], "metrics.odd (RaisingMetric) raised"),
        (["data._target_=headlab.parts.Wrong.RaisingData"], "Wrong.RaisingData.read raised OSError: the archive is"),
        (["data._target_=headlab.parts.Wrong.Closed"], "Closed): PermissionError: no licence (parts.py, line"),
        (["split._target_=headlab.parts.Wrong.RaisingSplit"], "Wrong.RaisingSplit.split raised IndexError"),
        (["callbacks.odd._target_=headlab.parts.Wrong.RaisingCallback"], "the diary is lost"),
    ],
)
def test_a_part_that_misbehaves_fails_its_run_with_the_reason(
    words: list[str], problem: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("HEMLEARN_CACHE", str(place / "cache"))
    small = ["backbone.name=test_efficientnet", "backbone.pretrained=false", "logger=none", "augmentation=none"]
    data = ["data._target_=headlab.parts.Pictures", f"data.root={place / 'pictures'}", "data.image_size=32"]
    more = ["data.batch_size=8", "task.labels=[bleed]", "trainer.max_epochs=1", f"output_dir={tmp_path}"]
    assert main(["train", *small, *data, *more, "plugins=[headlab]", *words]) == 1
    folder = only(tmp_path / "default")
    status = content(folder, "status.json")
    assert status["state"] == "failed"
    assert problem in status["error"]
    log = (folder / "train.log").read_text()
    assert "Traceback" in log
    assert problem in log
