"""The figures of one run folder, drawn from its predictions on test and its history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import NAN
from hemlearn.evaluation.predictions import aggregate, label_array, levels_of, prob_array
from hemlearn.evaluation.scoring import LOWER_IS_BETTER, decide
from hemlearn.reports.figures import (
    DPI,
    Curve,
    confusion_counts,
    confusion_figure,
    learning_curves,
    pr_figure,
    reliability_figure,
    roc_figure,
)

LEAKY = "LEAKY: test patients are also in training"
_MANY = {"slice": "slices", "series": "series", "patient": "patients"}


def write_run_figures(
    frame: pd.DataFrame, task: TaskConfig, metrics: dict[str, Any], history: pd.DataFrame, folder: Path
) -> None:
    """Write ROC, PR, reliability, confusion and learning curves as PNG into ``folder``; a leaky run's say so.

    Args:
        frame: Predictions; the rows of split ``test`` are drawn, one per slice, or one per series where the labels
            describe series.
        task: Labels, kind, level and aggregation.
        metrics: What :func:`hemlearn.evaluation.metrics.evaluate` returned for ``frame``, with ``leaky`` where known.
        history: One row per epoch with ``epoch`` and the logged metrics.
        folder: Where the pictures go.
    """
    level = levels_of(task)[0]
    rows = aggregate(frame[frame["split"] == "test"], level, task.aggregate, task.kind)
    y, p = label_array(rows, task.labels), prob_array(rows, task.labels)
    thresholds = {label: item["value"] for label, item in metrics["thresholds"][level].items()}
    scores = metrics["test"][level]["labels"]

    def curves(metric: str) -> list[Curve]:
        made = []
        for j, label in enumerate(task.labels):
            known = ~np.isnan(y[:, j])
            entry = {key: NAN if value is None else value for key, value in scores[label][metric].items()}
            made.append(
                Curve(
                    label,
                    y[known, j],
                    p[known, j],
                    entry["value"],
                    entry["low"],
                    entry["high"],
                    thresholds.get(label, NAN),
                )
            )
        return made

    note = f"test, {len(rows)} {_MANY[level]} of {rows['patient_id'].nunique()} patients"
    # A picture is passed on without its run: the mark stands in each.
    title = LEAKY if metrics.get("leaky") else None
    best = None if task.monitor == "last" else task.monitor
    figures = {
        "roc": roc_figure(curves("auroc"), note=note, title=title),
        "pr": pr_figure(curves("ap"), note=note, title=title),
        "reliability": reliability_figure(curves("ece"), note=note, title=title),
        "confusion": _confusion(task, y, p, thresholds, title),
        "learning_curves": learning_curves(history, monitor=best, lower_is_better=best in LOWER_IS_BETTER, title=title),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Title": title} if title else None)


def _confusion(
    task: TaskConfig, y: np.ndarray[Any, Any], p: np.ndarray[Any, Any], thresholds: dict[str, float], title: str | None
) -> Any:
    calls = decide(p, [thresholds[label] for label in task.labels] if thresholds else [], task.kind)
    found = confusion_counts(y, calls, task.labels, task.kind)
    names = next(iter(found.values()))["names"]
    return confusion_figure({c: np.array(item["counts"]) for c, item in found.items()}, names, title=title)
