"""Run folders as training leaves them, made without training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from hemlearn.config.schema import Config, to_dict
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.predictions import write_predictions
from tests.conftest import chromium, seal


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = chromium()
    with sync.sync_playwright() as tool:
        made = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


def configuration(**changes):
    """A Config with dotted keys changed: ``backbone__pretrained=False``."""
    config = Config()
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = getattr(node, part)
        setattr(node, last, value)
    return config


def predictions(config, patients, slices=1, noise=1.0, seed=0, split="test"):
    """Rows of a split: labels follow the patient's number alone, scores the run's seed."""
    labels = config.task.labels
    who = np.repeat(np.asarray(patients), slices)
    rng = np.random.default_rng([seed, config.seed, config.split.fold])
    truth = np.stack([np.random.default_rng(j).random(1000)[who] < 0.5 for j in range(len(labels))], axis=1)
    p = 1 / (1 + np.exp(-(4 * (truth - 0.5) + noise * rng.normal(size=truth.shape))))
    df = pd.DataFrame({"split": split, "patient_id": [f"p{i:03}" for i in who]})
    df["series_id"] = df["patient_id"]
    df["slice_id"] = [f"p{i:03}-{k % slices}" for k, i in enumerate(who)]
    df["z_mm"] = np.nan
    for j, label in enumerate(labels):
        df[f"label_{label}"] = truth[:, j].astype(float)
    for j, label in enumerate(labels):
        df[f"prob_{label}"] = p[:, j]
    return df


def write_run(root, run_hash, config, frame, state="complete", provenance=None):
    """One run folder ``root/run_hash``."""
    folder = root / run_hash
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    error = {"error": "TrainingError: loss is NaN\n  Fix: ..."} if state == "failed" else {}
    (folder / "status.json").write_text(json.dumps({"state": state, "hash": run_hash, **error}))
    (folder / "provenance.json").write_text(json.dumps({"checksums": {"manifest": "m"}, **(provenance or {})}))
    if state == "complete":
        write_predictions(frame, folder / "predictions.parquet")
        metrics = evaluate(frame, config.task, replicates=0)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        seal(folder)
    return folder


def kfold_run(root, run_hash, fold, slices=1, noise=1.0, patients=100, provenance=None, **changes):
    """A run of a 5-fold split over ``patients`` patients: test is every fifth, validation the next fifth."""
    config = configuration(split__name="kfold", split__fold=fold, **changes)
    numbers = np.arange(patients)
    test = predictions(config, numbers[numbers % 5 == fold], slices, noise)
    val = predictions(config, numbers[numbers % 5 == (fold + 1) % 5], slices, noise, seed=1, split="val")
    folder = write_run(root, run_hash, config, pd.concat([val, test], ignore_index=True), provenance=provenance)
    parts = {fold: "test", (fold + 1) % 5: "val"}
    lines = [f"p{i:03},{parts.get(i % 5, 'train')}" for i in numbers]
    (folder / "split.csv").write_text("\n".join(["patient_id,split", *lines]) + "\n")
    seal(folder)
    return folder


@pytest.fixture(scope="session")
def four_cells(tmp_path_factory):
    """Pretrained x augmentation, five folds each; shared, so tests write elsewhere."""
    root = tmp_path_factory.mktemp("four_cells") / "sweep"
    for c, (pretrained, augmentation) in enumerate([(t, a) for t in (True, False) for a in ("none", "flips")]):
        for fold in range(5):
            steps = [{"_target_": "x.Flip", "p": 0.5}] if augmentation == "flips" else []
            noise = (1.0 if pretrained else 4.0) + (0.5 if augmentation == "flips" else 0.0)
            kfold_run(
                root,
                f"{c}{fold}" * 6,
                fold,
                noise=noise,
                backbone__pretrained=pretrained,
                augmentation__name=augmentation,
                augmentation__steps=steps,
            )
    return root
