"""A small phantom and the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemlearn.__main__ import main
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid

# Small images, drawn about ten times as fast as those of the layout itself.
FLAT = Grid(rows=72, cols=72, pixel_mm=3.2, samples=1)
# A real but tiny network and few small images: the whole path in about two seconds.
SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=8",
    "trainer.max_epochs=2",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
]


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "head_ct"
    write_phantom("head_ct", out, patients=40, seed=1, grid=FLAT)
    return out


@pytest.fixture
def train(phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run ``hemlearn train`` on the phantom in this process; returns its exit status."""
    monkeypatch.setenv("HEMLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, root: Path = phantom_root, small: bool = True) -> int:
        flags = [text for text in arguments if text.startswith("-")]
        rest = [text for text in arguments if not text.startswith("-")]
        return main(["train", *flags, f"data.root={root}", *(SMALL if small else []), *rest])

    return call


def status_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


def check_complete(folder: Path, labels: Sequence[str]) -> None:
    """A run has ended and has scored every slice of its validation and test patients for each label."""
    assert status_of(folder)["state"] == "complete"
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert set(frame["split"]) >= {"val", "test"}
    scores = frame.filter(regex="^prob_")
    assert list(scores.columns) == [f"prob_{label}" for label in labels]
    assert scores.notna().all(axis=None)


def run_folders(output_dir: Path) -> list[Path]:
    return sorted(path.parent for path in output_dir.glob("*/*/status.json"))
