"""One table from many runs: groups by the keys that differ, folds and seeds pooled, intervals beside every figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hemlearn.errors import RunError
from hemlearn.evaluation.scoring import METRICS, decide, summarise
from hemlearn.evaluation.statistics import NAN, Floats
from hemlearn.reports.comparison import ANY, DRAWN, INTERVALS, POSITION_ONLY, Comparison
from hemlearn.reports.differences import differing_keys, kind_keys
from hemlearn.reports.pooling import PER_RUN, Group, Pooled, group_runs, pool
from hemlearn.reports.runs import POOLED, find_runs

if TYPE_CHECKING:
    from hemlearn.reports.figures import Curve

_LISTED = 10  # incomplete groups told by name


def compare(
    folders: Sequence[Path | str],
    out: Path | str | None = None,
    pool_keys: Sequence[str] = POOLED,
    level: str | None = None,
) -> Comparison:
    """Compare the finished runs below ``folders`` on their test cases.

    Runs that differ in pooled keys only form a group. Within it, out-of-fold predictions are pooled and repeated ones
    averaged (see :func:`hemlearn.reports.pooling.pool`); the mean and standard deviation over the runs' own values
    stand beside the pooled ones, since they answer another question: how one model varies, not what the average of
    several models does.

    Args:
        folders: Searched for run folders.
        out: Where to write ``compare.csv``, ``compare.md`` and ``roc.png``; None writes nothing.
        pool_keys: Keys that are repetitions, not differences.
        level: slice | series | patient; None takes slices, and series and patients too where a patient has several
            slices.

    The position-only null of the runs, pooled over the same folds, stands in rows of its own below the runs.

    Raises:
        RunError: No complete run, contradictory runs in a group, or ``out`` cannot be written.
    """
    found = find_runs(folders)
    skipped = list(found.skipped)
    keys = differing_keys(found.runs, pool_keys)
    rows: list[dict[str, Any]] = []
    notes = _Notes()
    nulls: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    best: list[tuple[float, int, Group, Pooled, list[dict[str, Any]]]] = []
    used = 0
    groups = group_runs(found.runs, keys)
    counted = 0
    for index, group in enumerate(groups):
        pooled, unread = pool(group, None if level is None else [level])
        skipped += unread
        if not pooled:
            continue
        counted += 1
        used += len(next(iter(pooled.values())).used)
        for depth, (name, cases) in enumerate(pooled.items()):
            made = _rows(group, name, cases)
            rows += made
            notes.add(group, name, cases)
            same = (name, tuple(group.labels), hash(tuple(cases.unit)))
            if cases.null is not None and same not in nulls:
                nulls[same] = _null_rows(group, name, cases, cases.null)
            if depth == 0:
                best.append((made[0]["auroc"], index, group, cases, made))
        best = sorted(best, key=lambda item: (-item[0] if item[0] == item[0] else 9.0, item[1]))[:DRAWN]
    if not rows:
        raise RunError(f"no run could be read; the first: {skipped[0].folder}: {skipped[0].reason}",
                       remedy="train these runs again")  # fmt: skip
    rows += [row for made in nulls.values() for row in made]
    notes.null = bool(nulls)
    notes.kinds = kind_keys(found.runs, pool_keys)
    curves = _curves(sorted(best, key=lambda item: item[1]))
    result = Comparison(pd.DataFrame(rows), keys, notes.lines(pool_keys), sorted(skipped), counted, used, curves, [])
    if out is not None:
        result.write(Path(out))
    return result


def _null_rows(group: Group, level: str, cases: Pooled, null: Floats) -> list[dict[str, Any]]:
    """Rows of the position-only null on a group's cases; what needs a threshold is left open."""
    calls = decide(null, np.full(null.shape[1], 0.5), group.kind)
    empty: dict[str, list[float]] = {metric: [] for metric in PER_RUN}
    rows = _rows(group, level, dataclasses.replace(cases, p=null, decision=calls, per_run=empty, repeats=1))
    for row in rows:
        row["source"] = POSITION_ONLY
        row |= {key: POSITION_ONLY if i == 0 else "" for i, key in enumerate(group.values)}
        row |= {name: NAN for name in row if name.partition("_")[0] in ("accuracy", "sensitivity", "specificity", "f1")}
        row["rate_interval"] = ""
    return rows


def _rows(group: Group, level: str, cases: Pooled) -> list[dict[str, Any]]:
    scores = summarise(cases.y, cases.p, cases.decision, cases.patient, group.labels, group.kind, intervals=INTERVALS,
                       label_weights=group.label_weights)  # fmt: skip
    tables = {"": scores} | (scores["labels"] if len(group.labels) > 1 else {})
    any_of = scores["labels"].get(ANY) if len(group.labels) > 1 else None
    rows = []
    for label, table in tables.items():
        column = group.labels.index(label) if label else slice(None)
        y = cases.y[:, column].reshape(len(cases.y), -1)
        row: dict[str, Any] = {key: group.cell(key) for key in group.values}
        row |= {"source": "runs", "level": level, "label": label, "runs": len(cases.used)}
        row["n"] = table["accuracy"]["n"]
        row["patients"] = len(np.unique(cases.patient[~np.isnan(y).all(axis=1)]))
        row["positives"] = int((y == 1).any(axis=1).sum())
        for metric in (*INTERVALS, *(m for m in METRICS if m not in INTERVALS)):
            parts = ("value", "low", "high") if metric in INTERVALS else ("value",)
            for part in parts:
                number = table[metric][part] if metric in table else None
                row[metric if part == "value" else f"{metric}_{part}"] = NAN if number is None else number
        if any_of is not None:  # beside the mean over labels, in the same row
            row |= {f"auroc_any{part}": NAN for part in ("", "_low", "_high")}
            if not label:
                values = [any_of["auroc"][part] for part in ("value", "low", "high")]
                keys = ("auroc_any", "auroc_any_low", "auroc_any_high")
                row |= {key: NAN if v is None else v for key, v in zip(keys, values, strict=True)}
        row["rate_interval"] = table["accuracy"]["method"] or ""
        row["auroc_interval"] = table["auroc"]["method"] or ""
        row["predictions_per_case"] = cases.repeats
        for metric in PER_RUN:
            values = [v for v in cases.per_run[metric] if v == v] if not label else []
            row[f"{metric}_run_mean"] = float(np.mean(values)) if values else NAN
            row[f"{metric}_run_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else NAN
        rows.append(row)
    return rows


def _curves(best: Sequence[tuple[float, int, Group, Pooled, list[dict[str, Any]]]]) -> dict[str, list[Curve]]:
    from hemlearn.reports.figures import Curve

    curves: dict[str, list[Curve]] = {}
    for _, _, group, cases, rows in best:
        by_label = {row["label"]: row for row in rows}
        for j, label in enumerate(group.labels):
            row = by_label.get(label, rows[0])
            known = ~np.isnan(cases.y[:, j])
            spot = (1 - row["specificity"], row["sensitivity"])
            curve = Curve(group.name, cases.y[known, j], cases.p[known, j], row["auroc"], row["auroc_low"],
                          row["auroc_high"], point=spot if spot == spot and NAN not in spot else None)  # fmt: skip
            curves.setdefault(label, []).append(curve)
    return curves


class _Notes:
    """Collects, over groups, what a reader must be told."""

    def __init__(self) -> None:
        self.clustered = self.repeats = self.pooled_folds = False
        self.tested: set[int] = set()
        self.missing: list[str] = []
        self.leaky: list[str] = []
        self.synthetic: list[str] = []
        self.undefined: list[str] = []
        self.several_labels = False
        self.null = False
        self.kinds: list[str] = []

    def add(self, group: Group, level: str, cases: Pooled) -> None:
        self.clustered |= cases.clustered
        self.several_labels |= len(group.labels) > 1
        self.repeats |= cases.repeats > 1
        if np.isnan(cases.y).all() or any(len(np.unique(c[~np.isnan(c)])) < 2 for c in cases.y.T):
            self.undefined.append(f"{group.name} ({level})")
        self.tested.add(hash(tuple(np.unique(cases.patient))))
        if group.name in self.missing + self.leaky:
            return
        settings = cases.used[0].keys
        folds = {run.keys["split.fold"] for run in cases.used}
        if settings["split.name"] == "kfold":
            self.pooled_folds |= len(folds) > 1
            lacking = sorted(set(range(int(settings["split.folds"]))) - folds)
            text = f"{group.name}: no result of fold {', '.join(map(str, lacking))} of {settings['split.folds']}"
            if lacking and text not in self.missing:
                self.missing.append(text)
        if settings["split.by"] == "slice" and group.name not in self.leaky:
            self.leaky.append(group.name)
        synthetic = any(run.provenance.get("data", {}).get("synthetic") for run in cases.used[:1])
        if synthetic and group.name not in self.synthetic:
            self.synthetic.append(group.name)

    def lines(self, pool_keys: Sequence[str]) -> list[str]:
        lines = [f"pooled over {', '.join(pool_keys)}; sensitivity, specificity and accuracy at each run's own "
                 "threshold, chosen on its validation patients"]  # fmt: skip
        if self.leaky:
            lines.insert(0, f"LEAKY: split by slice, patients stand in training and test: {_some(self.leaky)}")
        if self.synthetic:
            lines.insert(0, f"SYNTHETIC data: {_some(self.synthetic)}")
        if self.pooled_folds:
            lines.append("AUROC over folds ranks the scores of different models together")
        if self.clustered:
            lines.append("patients have several cases: slice intervals are clustered by patient (design effect for "
                         "rates, patient bootstrap for AUROC)")  # fmt: skip
        if self.repeats:
            lines.append("cases predicted by several runs: probabilities averaged, which is an ensemble; `by run` is "
                         "the mean and standard deviation of the runs' own values")  # fmt: skip
        if self.several_labels:
            lines.append("several labels: means over the labels on which a metric is defined; compare.csv has each")
        if self.null:
            lines.append(f"{POSITION_ONLY}: a model that knows where in its series a slice lies, and sees no pixel; "
                         "fitted on each run's training patients")  # fmt: skip
        if self.kinds:
            lines.append(f"sequence=none are runs over slices; beside the sequence model they also differ in "
                         f"{', '.join(self.kinds)}")  # fmt: skip
        lines += [f"incomplete: {text}" for text in self.missing[:_LISTED]]
        if len(self.missing) > _LISTED:
            lines.append(f"incomplete: {len(self.missing) - _LISTED} more groups lack folds")
        if len(self.tested) > 1:
            lines.append("groups were tested on different patients: read them as separate samples, not as pairs")
        if self.undefined:
            lines.append(f"a class is absent, AUROC undefined for a label: {_some(self.undefined)}")
        return lines


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:5]) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")
