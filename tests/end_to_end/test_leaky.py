"""Runs that leak on purpose: every output says so, and an honest run's do not."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.__main__ import main
from hemlearn.evaluation.predictions import is_leaky, read_predictions
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from tests.end_to_end.conftest import run_folders

SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=16",
    "channels=brain",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
    "split.val_fraction=0.3",
    "split.test_fraction=0.3",
    "trainer.max_epochs=1",
    "task=subtypes",
    "task.threshold=0.5",
]
COARSE = Grid(rows=64, cols=64, pixel_mm=3.6, slices=12, thickness_mm=12, samples=1)
LEAK = ["split.by=slice", "split.allow_leak=true"]
SUBTYPES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train, once per module and list of arguments, and return the run folder, its metrics and what was printed."""
    root = tmp_path_factory.mktemp("leaky")
    write_phantom("rsna", root / "rsna", patients=8, seed=0, grid=COARSE)
    finished: dict[tuple[str, ...], tuple[Path, dict[str, Any], str]] = {}

    def call(*arguments: str) -> tuple[Path, dict[str, Any], str]:
        if arguments not in finished:
            before, printed = set(run_folders(root / "runs")), io.StringIO()
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
                patch.setenv("HEMLEARN_CACHE", str(root / "cache"))
                patch.chdir(root)
                assert main(["train", "data=rsna", f"data.root={root / 'rsna'}", *SMALL, *arguments]) == 0
            (folder,) = set(run_folders(root / "runs")) - before
            finished[arguments] = (folder, json.loads((folder / "metrics.json").read_text()), printed.getvalue())
        return finished[arguments]

    return call


def stamps(folder: Path, metrics: dict[str, Any]) -> dict[str, bool]:
    """What each output of a run says."""
    pictures = [Image.open(path).info.get("Title", "") for path in (folder / "figures").glob("*.png")]
    assert len(pictures) == 5
    assert len(set(pictures)) == 1
    return {
        "metrics": metrics["leaky"],
        "audits": metrics["audits"]["split"]["leaky"],
        "verdict": metrics["audits"]["verdict"][0].startswith("LEAKY"),
        "predictions": is_leaky(folder / "predictions.parquet"),
        "split": "leaky" in pd.read_csv(folder / "split.csv"),
        "figures": "LEAKY" in pictures[0],
        "provenance": json.loads((folder / "provenance.json").read_text())["leaky_split"],
        "log": "optimistic" in (folder / "train.log").read_text(),
    }


def test_every_output_of_a_leaky_run_says_so(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics, out = made(*LEAK)
    root = folder.parents[2]
    monkeypatch.setenv("HEMLEARN_CACHE", str(root / "cache"))
    picture = next((root / "rsna").rglob("*.dcm"))
    assert main(["predict", f"run={folder}", f"input={picture}", f"out={tmp_path / 'read'}"]) == 0
    assert f"LEAKY run {folder.name}" in capsys.readouterr().out
    assert json.loads((tmp_path / "read" / "predict.json").read_text())["runs"][0]["leaky"] is True
    assert set(stamps(folder, metrics).values()) == {True}
    assert "LEAKY test, 95 % interval" in out
    assert "audit: LEAKY" in out
    assert "border only: auroc" in out
    both = metrics["audits"]["split"]["patients_on_two_sides"]
    assert both == metrics["audits"]["split"]["patients"] > 4
    frame = read_predictions(folder / "predictions.parquet")
    assert {f"{family}_prob_{c}" for family in ("metadata", "border", "position") for c in SUBTYPES} <= set(frame)
    # The honest twin: no stamp anywhere, the same audits.
    folder, metrics, out = made()
    assert set(stamps(folder, metrics).values()) == {False}
    assert "test, 95 % interval" in out
    assert "LEAKY" not in out
    audits = metrics["audits"]
    assert (audits["split"]["patients_on_two_sides"], audits["duplicates"]["straddling"]) == (0, 0)
    assert set(audits["labels"]) == {"train", "val", "test"}
    total = sum(sum(audits["labels"][part]["any"].values()) for part in audits["labels"])
    assert total == json.loads((folder / "provenance.json").read_text())["data"]["slices"]
    for null in ("metadata", "border", "position"):
        for level in ("slice", "series", "patient"):
            found = audits[null]["test"][level]
            assert set(found["labels"]) == set(SUBTYPES)
            assert found["auroc"]["n"] == metrics["test"][level]["auroc"]["n"]
    # One figure has one interval: the verdict's position null is that of the table.
    audit, table = (found["position"]["test"]["slice"]["auroc"] for found in (audits, metrics["nulls"]))
    assert audit == pytest.approx(table, nan_ok=True)


def test_a_sequence_model_can_leak_too(made: Any) -> None:
    """Its series stand on all sides; each slice is predicted on its own side only."""
    folder, metrics, _ = made(*LEAK, "freeze=head", "sequence=lstm", "sequence.hidden=8", "augmentation=none")
    assert set(stamps(folder, metrics).values()) == {True}
    frame = read_predictions(folder / "predictions.parquet")
    sides = pd.read_csv(folder / "split.csv", dtype=str).set_index("slice_id")["split"]
    assert (sides.loc[frame["slice_id"]].to_numpy() == frame["split"].to_numpy()).all()
    assert frame.groupby("series_id")["split"].nunique().max() == 2
    assert np.isfinite(frame["series_prob_any"]).all()


def test_weights_that_have_seen_the_test_patients_make_a_run_leaky(made: Any, tmp_path: Path) -> None:
    weights, _, _ = made()
    sides = pd.read_csv(weights / "split.csv", dtype=str)
    sides["split"] = sides["split"].map({"train": "test", "test": "train", "val": "val"})
    sides.to_csv(tmp_path / "turned.csv", index=False)
    use = [
        f"backbone.weights={weights}",
        "backbone.pretrained=true",
        "split=file",
        f"split.file={tmp_path / 'turned.csv'}",
    ]
    folder, metrics, _ = made(*use, "split.allow_leak=true", "name=again")
    assert metrics["leaky"] is True
    assert is_leaky(folder / "predictions.parquet")
    seen = metrics["audits"]["split"]["seen_by_weights"]
    assert seen == (sides["split"] == "test").sum()
    assert f"learnt from {seen} of the patients" in metrics["audits"]["verdict"][0]
