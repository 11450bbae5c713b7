from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.audits.baselines import baseline_aurocs
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.metrics import evaluate
from hemlearn.reports import figures
from hemlearn.reports.figures import write_run_figures
from hemlearn.reports.tables import print_run

from .conftest import configuration, predictions

LABELS = ["subdural", "any"]


def volume(level="slice", **changes):
    config = configuration(
        task__kind="multilabel", task__labels=LABELS, task__label_weights=[1.0, 2.0], task__level=level, **changes
    )
    parts = [
        predictions(config, numbers, 4, split=split) for numbers, split in ((range(30), "test"), (range(30, 60), "val"))
    ]
    frame = pd.concat(parts, ignore_index=True)
    for label in LABELS:
        frame[f"position_prob_{label}"] = 0.2 + 0.1 * frame["slice_id"].str[-1].astype(float)
    return config.task, frame


def test_a_volume_run_shows_levels_weighted_loss_and_null(tmp_path, capsys):
    task, frame = volume()
    metrics = evaluate(frame, task, replicates=50)
    print_run(tmp_path, metrics)
    out = capsys.readouterr().out
    assert "slice (n=120)" in out
    assert "series = patient (n=30)" in out
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    weighted = metrics["test"]["slice"]["weighted_log_loss"]
    assert f"{weighted['value']:.3f} ({weighted['low']:.3f}-{weighted['high']:.3f})" in lines["weighted_log_loss"]
    blind = metrics["nulls"]["position"]["test"]
    assert f"{blind['slice']['auroc']['value']:.3f}" in lines["position only: auroc"]
    assert f"{blind['slice']['weighted_log_loss']['value']:.3f}" in lines["position only: weighted_log_loss"]
    assert "weighted_log_loss" not in blind["patient"]  # a mean over slices is no probability
    assert "series, patient: scores (put together from slices or series)" in out
    assert "sees no pixel" in out


def test_series_labels_are_shown_and_drawn_per_series(tmp_path, capsys):
    task, frame = volume("series", task__aggregate="max")
    maps = Calibration.fit(frame[frame["split"] == "val"], task)
    metrics = evaluate(frame, task, calibration=maps, replicates=0)
    print_run(tmp_path, metrics)
    out = capsys.readouterr().out
    assert "series = patient (n=30)" in out
    assert "slice" not in out.splitlines()[1]
    assert "subdural" in out
    history = pd.DataFrame({"epoch": [0, 1], "val/weighted_log_loss": [0.6, 0.5], "train/loss": [0.7, 0.4]})
    write_run_figures(frame, task, metrics, history, tmp_path, maps)
    assert {p.stem for p in tmp_path.iterdir()} == {"roc", "pr", "reliability", "confusion", "learning_curves"}
    (tmp_path / "reliability.png").unlink()
    write_run_figures(frame, task, evaluate(frame, task, replicates=0), history, tmp_path)
    assert not (tmp_path / "reliability.png").exists()  # maxima over slices are no probabilities by themselves


def test_a_binary_run_is_as_before(tmp_path, capsys):
    config = configuration()
    frame = pd.concat([predictions(config, range(30)), predictions(config, range(30, 60), split="val")])
    print_run(tmp_path, evaluate(frame.reset_index(drop=True), config.task, replicates=0))
    out = capsys.readouterr().out
    assert "slice = series = patient (n=30)" in out
    assert "weighted" not in out
    assert "position" not in out
    assert np.isfinite(float(out.split("auroc")[1].split()[0]))


def audited(task, frame, **changes):
    """Metrics with the nulls of a run, as training leaves them."""
    metrics, audits, levels = evaluate(frame, task, replicates=0), {}, ["slice", "series", "patient"]
    for seed, name in enumerate(("metadata", "border")):
        for label in task.labels:
            frame[f"{name}_prob_{label}"] = np.random.default_rng(seed).random(len(frame))
        test = frame[frame["split"] == "test"]
        audits[name] = {"test": baseline_aurocs(test, task.labels, task.kind, "mean", levels, f"{name}_prob")}
    return metrics | {"leaky": False, "audits": audits | {"verdict": ["read [every] result beside it"]}} | changes


def test_nulls_and_verdict_stand_below_the_metrics(tmp_path, capsys):
    task, frame = volume()
    metrics = audited(task, frame)
    print_run(tmp_path, metrics)
    out = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    area = metrics["audits"]["border"]["test"]["slice"]
    assert f"{area['auroc']['value']:.3f} ({area['auroc']['low']:.3f}-" in lines["border only: auroc"]
    assert f"{area['labels']['subdural']['auroc']['value']:.3f} (" in lines["border only: auroc"]
    assert "metadata only: auroc" in lines
    assert "size only: auroc" not in lines  # the images of this set have one size
    assert "audit: read [every] result beside it" in lines
    assert "LEAKY" not in out


@pytest.mark.parametrize("known", [True, False])
def test_figures_count_patients_where_their_ids_are_known(tmp_path, monkeypatch, known):
    task, frame = volume()
    notes = []
    real = figures.roc_figure
    monkeypatch.setattr(figures, "roc_figure", lambda *given, note, **own: notes.append(note) or real(*given, **own))
    metrics = audited(task, frame, leaky=False)
    write_run_figures(frame, task, metrics, pd.DataFrame({"epoch": [0]}), tmp_path, patients_known=known)
    assert (" patients" in notes[0]) is known


def test_a_leaky_run_is_marked_in_table_and_pictures(tmp_path, capsys):
    task, frame = volume()
    metrics = audited(task, frame, leaky=True)
    print_run(tmp_path, metrics)
    assert capsys.readouterr().out.splitlines()[0].startswith("LEAKY test")
    history = pd.DataFrame({"epoch": [0, 1], "val/weighted_log_loss": [0.6, 0.5]})
    for leaky in (True, False):
        folder = tmp_path / str(leaky)
        folder.mkdir()
        write_run_figures(frame, task, metrics | {"leaky": leaky}, history, folder)
        pictures = sorted(folder.glob("*.png"))
        assert len(pictures) == 5
        for path in pictures:
            with Image.open(path) as picture:
                assert picture.info.get("Title", "").startswith("LEAKY") == leaky, path
    heights = [Image.open(tmp_path / side / "roc.png").height for side in ("True", "False")]
    assert heights[0] > heights[1]  # the mark has a line of its own
