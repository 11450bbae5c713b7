"""Metrics of a predictions table, per split and level: what ``metrics.json`` holds, and the fast validation metrics.

Which interval each metric has, and what is null, is told in :mod:`hemlearn.evaluation.scoring`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemlearn.evaluation.bootstrap import REPLICATES
from hemlearn.evaluation.predictions import LEVELS, SPLITS, aggregate, check_predictions, label_array, prob_array
from hemlearn.evaluation.scoring import METRICS, Scorer, decide, summarise
from hemlearn.evaluation.statistics import CONFIDENCE, NAN
from hemlearn.evaluation.thresholds import choose_threshold
from hemlearn.schema import TaskConfig

FALLBACK_THRESHOLD = 0.5  # where validation cannot answer the rule


def fit_thresholds(df: pd.DataFrame, task: TaskConfig) -> dict[str, dict[str, Any]]:
    """Thresholds of each label from the rows of one split (validation), at one level.

    Returns:
        Label -> ``{"value", "rule", "n", "note"}``. Where the rule has no answer the value is 0.5 and the note says so.
        Empty for multiclass tasks, which call the most probable class.
    """
    if task.kind == "multiclass":
        return {}
    found: dict[str, dict[str, Any]] = {}
    y, p = label_array(df, task.labels), prob_array(df, task.labels)
    for j, label in enumerate(task.labels):
        value = choose_threshold(y[:, j], p[:, j], task.threshold)
        note = None
        if value != value:
            value = FALLBACK_THRESHOLD
            note = f"validation cannot answer {task.threshold!r} (a class is absent): {FALLBACK_THRESHOLD} taken"
        n = int((~np.isnan(y[:, j])).sum())
        found[label] = {"value": value, "rule": task.threshold, "n": n, "note": note}
    return found


def evaluate(
    df: pd.DataFrame,
    task: TaskConfig,
    *,
    thresholds: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of a predictions table: the content of ``metrics.json``.

    Args:
        df: One row per slice, see :mod:`hemlearn.evaluation.predictions`.
        task: Labels, kind, aggregation and threshold rule.
        thresholds: ``evaluate(...)["thresholds"]`` of a finished run, to keep its operating points on other data; None
            fits them on the rows of split ``val``.
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.

    Returns:
        ``{split: {level: metrics}, "thresholds": {level: {label: ...}}, "about": {...}}`` for the splits present and
        the levels slice, series and patient; ``metrics`` as in :func:`~hemlearn.evaluation.scoring.summarise`.
        ``about`` counts cases, patients and, in multiclass tasks, units whose slices disagree on the class (left
        out). Ready for ``json.dump``: undefined is None.

    Raises:
        RunError: The table breaks the schema.
    """
    check_predictions(df, "predictions", task.labels)
    about: dict[str, Any] = {"confidence": CONFIDENCE, "replicates": replicates, "seed": seed, "counts": {}}
    used: dict[str, Any] = {}
    found: dict[str, Any] = {split: {} for split in SPLITS if (df["split"] == split).any()}
    about["counts"] = {split: {} for split in found}
    rows_at: dict[tuple[str, str], pd.DataFrame] = {}
    at_slices: list[float] = []
    for level in LEVELS:
        units = aggregate(df, level, task.aggregate, task.kind)
        for split in found:
            rows_at[level, split] = units[units["split"] == split]
        validation = rows_at.get((level, "val"), units.iloc[:0])
        used[level] = copy.deepcopy(dict(thresholds[level])) if thresholds else fit_thresholds(validation, task)
        values = [used[level][label]["value"] for label in task.labels] if used[level] else []
        at_slices = values if level == "slice" else at_slices
        for split in found:
            rows = rows_at[level, split]
            y, p = label_array(rows, task.labels), prob_array(rows, task.labels)
            about["counts"][split][level] = {"n": len(rows), "patients": int(rows["patient_id"].nunique())}
            if level != "slice" and task.kind == "multiclass":
                unclear = int(np.isnan(y).any(axis=1).sum())
                about["counts"][split][level]["without_one_class"] = unclear
            same = len(rows) == len(rows_at["slice", split]) and values == at_slices
            if level != "slice" and same:  # one slice per unit and the same threshold: nothing new to compute
                found[split][level] = copy.deepcopy(found[split]["slice"])
                continue
            found[split][level] = summarise(
                y, p, decide(p, values, task.kind), rows["patient_id"].to_numpy(), task.labels, task.kind,
                replicates=replicates, seed=seed,
            )  # fmt: skip
    return {**found, "thresholds": used, "about": about}


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The defined values of :func:`evaluate` for loggers, as ``test/slice/auroc`` and ``test/slice/auroc/LABEL``."""
    found: dict[str, float] = {}
    for split, level in ((s, lv) for s in SPLITS if s in metrics for lv in LEVELS if lv in metrics[s]):
        entries = metrics[split][level]
        tables = {"": entries}
        if len(entries["labels"]) > 1:
            tables |= {f"/{label}": table for label, table in entries["labels"].items()}
        for suffix, table in tables.items():
            values = {name: table[name]["value"] for name in METRICS}
            found |= {f"{split}/{level}/{name}{suffix}": v for name, v in values.items() if v is not None}
    return found


def fast_metrics(y: npt.ArrayLike, p: npt.ArrayLike, kind: str) -> dict[str, float]:
    """Point estimates for validation after each epoch: auroc, ap, accuracy, log_loss, brier; NaN where undefined.

    Accuracy is taken at 0.5 (multiclass: the most probable class). Several labels are put together as in
    :class:`~hemlearn.evaluation.scoring.Scorer`. Probabilities that are not finite make all of them NaN.

    Args:
        y: (N, L) labels 0, 1 or NaN.
        p: (N, L) probabilities.
        kind: binary | multiclass | multilabel.
    """
    names = ("auroc", "ap", "accuracy", "log_loss", "brier")
    truth, prob = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if not len(truth) or not np.isfinite(prob).all():
        return dict.fromkeys(names, NAN)
    decision = decide(prob, np.full(prob.shape[1], 0.5), kind)
    scorer = Scorer(truth, prob, decision, np.zeros(len(truth), dtype=np.intp), kind)
    top, _ = scorer.values(np.ones((1, 1)))
    return {name: float(top[name][0]) for name in names}
