"""Rows of the comparison's table: every metric of a group at one level, over labels and per label."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hemlearn.evaluation.bootstrap import REPLICATES
from hemlearn.evaluation.scoring import METRICS, WEIGHTED, decide, summarise
from hemlearn.evaluation.statistics import NAN, Floats
from hemlearn.reports.comparison.pooling import PER_RUN, Group, Pooled

INTERVALS = ("accuracy", "auroc", WEIGHTED, "sensitivity", "specificity")  # of the printed table, with intervals
ANY = "any"  # the label of any hemorrhage, whose AUROC stands beside the mean over labels
COUNTS = ("tp", "fn", "fp", "tn")


@dataclass
class Entry:
    """One group in the comparison.

    Attributes:
        name: Unique among the groups.
        group: Its runs.
        cases: Level -> pooled test cases; empty where they were let go (see :func:`.compare.compare`).
        rows: Its rows of the table.
        used: Runs that contributed.
    """

    name: str
    group: Group
    cases: dict[str, Pooled]
    rows: list[dict[str, Any]] = field(default_factory=list)
    used: int = 0

    @property
    def auroc(self) -> float:
        """AUROC at the first level, by which groups are ranked: of label ``any`` where there is one."""
        first = [row for row in self.rows if row["level"] == self.rows[0]["level"]]
        wanted = [row for row in first if row["label"] == ANY] or first[:1]
        return float(wanted[0]["auroc"]) if wanted else NAN


def metric_rows(
    group: Group, name: str, level: str, cases: Pooled, replicates: int = REPLICATES
) -> list[dict[str, Any]]:
    """The rows of one group at one level: over labels (label ``""``), then each label where there are several.

    Args:
        group: Settings, labels and kind.
        name: What the group is called.
        level: slice | series | patient.
        cases: Its test cases.
        replicates: Of the bootstrap; 0 leaves intervals that need resampling undefined.
    """
    scores = summarise(
        cases.y,
        cases.p,
        cases.decision,
        cases.patient,
        group.labels,
        group.kind,
        intervals=INTERVALS,
        label_weights=group.label_weights,
        replicates=replicates,
    )
    tables = {"": scores} | (scores["labels"] if len(group.labels) > 1 else {})
    any_of = scores["labels"].get(ANY) if len(group.labels) > 1 else None
    known = ~np.isnan(cases.y)
    rows = []
    for label, table in tables.items():
        column = group.labels.index(label) if label else slice(None)
        y = cases.y[:, column].reshape(len(cases.y), -1)
        row: dict[str, Any] = {"group": name, **{key: group.cell(key) for key in group.values}}
        row |= {"source": "runs", "level": level, "label": label, "runs": len(cases.used)}
        row["n"] = table["accuracy"]["n"]
        row["patients"] = len(np.unique(cases.code[~np.isnan(y).all(axis=1)]))
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
        single = 0 if len(group.labels) == 1 else (group.labels.index(label) if label else None)
        row |= dict.fromkeys(COUNTS, NAN)
        if single is not None:
            rows_known = known[:, single]
            truth, call = cases.y[rows_known, single] == 1, cases.decision[rows_known, single]
            counts = (truth & call, truth & ~call, ~truth & call, ~truth & ~call)
            row |= {key: int(c.sum()) for key, c in zip(COUNTS, counts, strict=True)}
        row["task"] = task_name(group)
        rows.append(row)
    return rows


def task_name(group: Group) -> str:
    """Kind and labels of a group's task, as the title of the tables it shares."""
    return f"{group.kind}: {', '.join(group.labels)}"


def null_rows(group: Group, null: str, level: str, cases: Pooled, p: Floats, replicates: int) -> list[dict[str, Any]]:
    """Rows of a null on a group's cases; what needs a threshold is left open.

    Args:
        group: Labels and kind.
        null: Name of the null, such as ``position only``.
        level: slice | series | patient.
        cases: The cases.
        p: (N, L) probabilities of the null.
        replicates: Of the bootstrap.
    """
    calls = decide(p, np.full(p.shape[1], 0.5), group.kind)
    empty: dict[str, list[float]] = {metric: [] for metric in PER_RUN}
    blind = dataclasses.replace(cases, p=p, decision=calls, per_run=empty, repeats=1)
    rows = metric_rows(group, null, level, blind, replicates)
    for row in rows:
        row["source"] = null
        row |= {key: null if i == 0 else "" for i, key in enumerate(group.values)}
        row |= {name: NAN for name in row if name.partition("_")[0] in ("accuracy", "sensitivity", "specificity", "f1")}
        row |= dict.fromkeys(COUNTS, NAN)
        row["rate_interval"] = ""
    return rows


def confusion(group: Group, cases: Pooled) -> dict[str, Any]:
    """Confusion counts of a group: ``{"names": [...], "counts": [[...]]}`` per label, or one of all classes.

    Returns:
        Label -> names and (K, K) counts, true classes in rows; the key is ``""`` for exclusive classes.
    """
    if group.kind == "multiclass":
        known = ~np.isnan(cases.y).any(axis=1)
        counts = np.zeros((len(group.labels), len(group.labels)), dtype=np.int64)
        np.add.at(counts, (cases.y[known].argmax(axis=1), cases.decision[known].argmax(axis=1)), 1)
        return {"": {"names": group.labels, "counts": counts.tolist()}}
    found = {}
    for j, label in enumerate(group.labels):
        known = ~np.isnan(cases.y[:, j])
        counts = np.zeros((2, 2), dtype=np.int64)
        np.add.at(counts, (cases.y[known, j].astype(int), cases.decision[known, j].astype(int)), 1)
        found[label] = {"names": ["no", "yes"], "counts": counts.tolist()}
    return found
