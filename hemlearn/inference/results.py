"""Predictions per slice, series and patient, averaged over the members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.evaluation.predictions import SERIES, aggregate, prob_array
from hemlearn.evaluation.scoring import decide
from hemlearn.inference.loading import Member

_IDS = ["patient_id", "study_id", "series_id"]


@dataclass(frozen=True)
class Results:
    """What is written.

    Args:
        slices: patient_id, study_id, series_id, slice_id, path, frame, z_mm; ``prob_<c>``; with several runs
            ``low_<c>`` and ``high_<c>``, the least and the largest of their probabilities.
        series: patient_id, study_id, series_id, n_slices, the same, and ``call_<c>``: whether the probability reaches
            the operating point that the run chose on its validation patients (multiclass: ``call``, the class).
        patients: patient_id, n_series, n_slices, and the same.
        thresholds: Level -> label -> operating point, the mean over the runs that could choose one; on the scale of
            ``calibrated`` ones where the runs are calibrated.
        assumed: Level -> labels for which no run could: a default stands in ``thresholds``.
    """

    slices: pd.DataFrame
    series: pd.DataFrame
    patients: pd.DataFrame
    thresholds: dict[str, dict[str, float]]
    assumed: dict[str, list[str]] = field(default_factory=dict)


def member_frames(lines: Sequence[dict[str, Any]], members: Sequence[Member], calibrated: bool) -> list[pd.DataFrame]:
    """One table per member in the columns of ``predictions.parquet``, without labels.

    Args:
        lines: Of the journal.
        members: The runs, in the order of the arrays of ``lines``.
        calibrated: Apply each run's own calibration.
    """
    sizes = [len(line["slice_id"]) for line in lines]
    ids = pd.DataFrame(
        {
            "split": "test",
            **{name: np.repeat(np.array([line[name] for line in lines], dtype=object), sizes) for name in _IDS},
            **{name: [item for line in lines for item in line[name]] for name in ("slice_id", "path", "frame", "z_mm")},
        }
    )
    frames = []
    for k, member in enumerate(members):
        labels = member.run.config.task.labels
        frame = ids.copy()
        own = np.concatenate([line["slices"][k] for line in lines])
        for j, label in enumerate(labels):
            frame[f"label_{label}"] = np.nan
            frame[f"prob_{label}"] = own[:, j]
        if member.of_series:
            whole = np.repeat(np.stack([line["whole"][k] for line in lines]), sizes, axis=0)
            for j, label in enumerate(labels):
                frame[f"{SERIES}_{label}"] = whole[:, j]
        frames.append(member.run.calibration.apply(frame) if calibrated and member.run.calibration else frame)
    return frames


def combine(lines: Sequence[dict[str, Any]], members: Sequence[Member], calibrated: bool) -> Results:
    """Average the members at every level, and call what reaches their operating points.

    The interval is the range over the members: it tells how far the runs disagree and is no confidence interval.

    Args:
        lines: Of the journal, in the order of the tables.
        members: The runs.
        calibrated: Whether the probabilities written are calibrated. The calls are always made on the scale on which
            the runs chose their operating points.
    """
    task = members[0].run.config.task
    labels = list(task.labels)
    shown, judged = (member_frames(lines, members, choice) for choice in (calibrated, True))
    study = {line["series_id"]: line["study_id"] for line in lines}
    tables: dict[str, pd.DataFrame] = {}
    points: dict[str, dict[str, float]] = {}
    for level in ("slice", "series", "patient"):
        units = [
            aggregate(frame, level, member.run.config.task.aggregate, task.kind)
            for frame, member in zip(shown, members, strict=True)
        ]
        table = _averaged(units, labels)
        if level == "series":
            table.insert(1, "study_id", table["series_id"].map(study))
        if level == "patient":
            counts = shown[0].groupby("patient_id", sort=False)["series_id"].nunique()
            table.insert(1, "n_series", table["patient_id"].map(counts).to_numpy())
        points[level] = _points(members, level, labels)
        if level != "slice":
            exact = [
                aggregate(frame, level, member.run.config.task.aggregate, task.kind)
                for frame, member in zip(judged, members, strict=True)
            ]
            p = np.mean([prob_array(unit, labels) for unit in exact], axis=0)
            _call(table, p, points[level], labels, task.kind)
        tables[level] = table
    assumed = {
        level: [label for label in found if not _chosen(members, level, label)] for level, found in points.items()
    }
    return Results(
        tables["slice"],
        tables["series"],
        tables["patient"],
        {k: v for k, v in points.items() if v},
        {level: found for level, found in assumed.items() if found},
    )


def _averaged(units: Sequence[pd.DataFrame], labels: Sequence[str]) -> pd.DataFrame:
    first = units[0]
    names = [c for c in first if c != "split" and not c.startswith(("label_", "prob_", f"{SERIES}_"))]
    table = first[names].reset_index(drop=True).copy()
    p: NDArray[np.float64] = np.stack([prob_array(unit, labels) for unit in units])
    for j, label in enumerate(labels):
        table[f"prob_{label}"] = p[:, :, j].mean(axis=0)
    if len(units) > 1:
        for j, label in enumerate(labels):
            table[f"low_{label}"], table[f"high_{label}"] = p[:, :, j].min(axis=0), p[:, :, j].max(axis=0)
    return table


def _points(members: Sequence[Member], level: str, labels: Sequence[str]) -> dict[str, float]:
    """Mean operating point of each label over the runs that could choose it; none where a run has none at all.

    A run whose validation patients lacked a class took a default, which says nothing about the others' choice.
    """
    every = [member.thresholds.get(level, {}) for member in members]
    if not all(set(labels) <= set(found) for found in every):
        return {}
    found = {label: _chosen(members, level, label) or members for label in labels}
    return {label: float(np.mean([member.thresholds[level][label] for member in found[label]])) for label in labels}


def _chosen(members: Sequence[Member], level: str, label: str) -> list[Member]:
    """The runs that chose this operating point on their validation patients."""
    return [member for member in members if label not in member.assumed.get(level, ())]


def _call(
    table: pd.DataFrame, p: NDArray[np.float64], points: dict[str, float], labels: Sequence[str], kind: str
) -> None:
    if kind == "multiclass":
        table["call"] = np.array(labels, dtype=object)[p.argmax(axis=1)] if len(p) else []
    elif points:
        calls = decide(p, [points[label] for label in labels], kind)
        for j, label in enumerate(labels):
            table[f"call_{label}"] = calls[:, j].astype(np.int64)
