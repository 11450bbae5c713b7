"""Runs grouped by what differs between them, and their rows of the table: every metric at one level, of each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hemlearn.compare.cases import BASELINES, PER_RUN, Pooled
from hemlearn.compare.runs import BOOKKEEPING, CONTENT, LOCATION, SEQUENCE_ONLY, ComparedRun, canonical, covers
from hemlearn.config.requests import POOLED
from hemlearn.evaluation.auroc import NAN, Floats
from hemlearn.evaluation.bootstrap import REPLICATES
from hemlearn.evaluation.predictions import LEVELS
from hemlearn.evaluation.scoring import METRICS, PROBABILISTIC, WEIGHTED, decide, summarise
from hemlearn.reports.tables import PERCENT, UNDEFINED, interval_text, scale_of
from hemlearn.util.files import sha256

INTERVALS = ("accuracy", "auroc", WEIGHTED, "sensitivity", "specificity")  # of the printed table, with intervals
ANY = "any"  # the label of any hemorrhage, whose AUROC stands beside the mean over labels
COUNTS = ("tp", "fn", "fp", "tn")


# --- The configuration keys in which runs differ: what their comparison is about.


def differing_keys(runs: Sequence[ComparedRun], pool: Sequence[str] = POOLED) -> list[str]:
    """Keys whose values differ among runs, in the order of the schema.

    Left out are the pooled keys, bookkeeping, and the place of the data when the runs' provenance says that their
    content is the same. A key that merely follows from its group's name (``augmentation.steps`` from
    ``augmentation.name``) is left out too; one that follows only partly stays. Data, weights or a split file whose
    content changed under the same name count as a differing key of their own.

    Runs over slices and runs of a sequence model are trained in different ways throughout. Beside each other they are
    told apart by ``sequence.name``; of the other keys only those count that differ among runs of one kind
    (:func:`kind_keys` has the rest).
    """
    if not runs:
        return []
    first = runs[0].keys
    kinds = [part for part in ([r for r in runs if not r.of_series], [r for r in runs if r.of_series]) if part]
    differ = _varying(runs, pool)
    if len(kinds) > 1:
        inside = {"sequence.name"} | {key for part in kinds for key in _varying(part, pool)}
        differ = [key for key in differ if key in inside]
    if len({run.keys["data.checksum"] for run in runs}) == 1 and first["data.checksum"] is not None:
        differ = [key for key in differ if not covers(LOCATION, key)]
    differ = [key for key in differ if not _follows(key, differ, runs)]
    for key in CONTENT:
        if covers(pool, key):  # pool=backbone: what its weights are is asked as little
            continue
        cells: dict[tuple[str, ...], set[str]] = {}
        for run in runs:
            cells.setdefault(tuple(canonical(run.keys.get(k)) for k in differ), set()).add(canonical(run.keys[key]))
        if any(len(values) > 1 for values in cells.values()):
            differ.append(key)
    return differ


def _varying(runs: Sequence[ComparedRun], pool: Sequence[str]) -> list[str]:
    """Keys with more than one value, without pooled ones, bookkeeping and checksums."""
    first = runs[0].keys
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.keys):
        if covers(pool, key) or covers(BOOKKEEPING, key) or key in CONTENT:
            continue
        reference = first.get(key)
        if any(run.keys.get(key) != reference for run in runs) and len({canonical(r.keys.get(key)) for r in runs}) > 1:
            found.append(key)
    return found


def kind_keys(runs: Sequence[ComparedRun], pool: Sequence[str] = POOLED) -> list[str]:
    """Keys in which runs over slices and sequence runs differ, beyond those of the sequence model itself."""
    if len({run.of_series for run in runs}) < 2:
        return []
    shown, varying = differing_keys(runs, pool), _varying(runs, pool)
    hidden = [key for key in varying if not covers((*shown, *LOCATION), key) and not _follows(key, varying, runs)]
    return [
        key
        for key in hidden
        if not covers((*SEQUENCE_ONLY, "stage", "backbone.weights", "task.aggregate", "task.top_k"), key)
    ]


def _follows(key: str, differ: Sequence[str], runs: Sequence[ComparedRun]) -> bool:
    """Whether ``key`` is a function of the ``name`` of a section around it, which differs as well."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        leader = ".".join([*parts[:depth], "name"])
        if key == leader or leader not in differ:
            continue
        pairs = {(canonical(run.keys.get(leader)), canonical(run.keys.get(key))) for run in runs}
        if len(pairs) == len({name for name, _ in pairs}):
            return True
    return False


# --- Runs of one recipe together.


def short_key(key: str) -> str:
    """``loss`` for ``loss.name`` and ``loss._target_``, ``pretrained`` for ``backbone.pretrained``."""
    section, _, rest = key.partition(".")
    return section if rest in ("", "name", "_target_") else rest.rpartition(".")[2]


def show(value: Any) -> str:
    """A configuration value as YAML would show it on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return value if isinstance(value, str) else canonical(value)


@dataclass(frozen=True)
class Group:
    """Runs that differ in pooled keys only."""

    values: dict[str, Any]  # value of each differing key
    runs: list[ComparedRun]  # in order of their hash

    @property
    def labels(self) -> list[str]:
        """Labels of the task."""
        return list(self.runs[0].keys["task.labels"])

    @property
    def kind(self) -> str:
        """Kind of the task: binary | multiclass | multilabel."""
        return str(self.runs[0].keys["task.kind"])

    @property
    def levels(self) -> list[str]:
        """Levels at which the labels can be judged."""
        return list(LEVELS if self.runs[0].keys["task.level"] == "slice" else LEVELS[1:])

    @property
    def leaky(self) -> bool:
        """Whether slices were split, so that patients stand in training and test."""
        run = self.runs[0]
        return bool(run.keys["split.by"] == "slice" or run.provenance.get("leaky_split"))

    @property
    def task(self) -> tuple[str, tuple[str, ...]]:
        """Kind and labels: groups of another task share no table."""
        return self.kind, tuple(self.labels)

    @cached_property
    def name(self) -> str:
        """Short name for legends and notes."""
        tails = [short_key(key) for key in self.values]
        names = tails if len(set(tails)) == len(tails) else list(self.values)
        cells = {k: self.cell(key) for k, key in zip(names, self.values, strict=True)}
        return ", ".join(f"{k}={v}" for k, v in cells.items() if v != "-") or "all runs"

    def cell(self, key: str) -> str:
        """Value of a differing key; a dash where the key means nothing to these runs.

        Of an absolute path, its last part and a digest, which tells two files of one name apart. Beside a class of
        somebody's own, the name of the shipped part.
        """
        run, (section, _, rest) = self.runs[0], key.partition(".")
        idle = key != "sequence.name" and section in SEQUENCE_ONLY and not run.of_series
        idle |= key not in run.keys and rest != "_target_"  # an argument of a class that these runs do not have
        value = self.values[key]
        text = show(run.keys.get(f"{section}.name") if value is None and rest == "_target_" else value)
        if Path(text).is_absolute():
            return f"{Path(text).name}#{sha256(text)[:6]}"
        return "-" if idle else text


def group_runs(runs: Sequence[ComparedRun], keys: Sequence[str]) -> list[Group]:
    """Runs with equal values of ``keys`` together; groups sorted by those values, numbers by size."""
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        identity = tuple(canonical(run.keys.get(key)) for key in keys)
        groups.setdefault(identity, Group({key: run.keys.get(key) for key in keys}, [])).runs.append(run)

    def rank(value: Any) -> tuple[int, float, str]:
        if isinstance(value, bool):
            return (0, -float(value), "")  # true, the feature switched on, first
        return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, show(value))

    return [g for _, g in sorted(groups.items(), key=lambda i: ([rank(v) for v in i[1].values.values()], i[0]))]


# --- Rows of the comparison's table: every metric of a group at one level, over labels and per label.


@dataclass(eq=False)
class Entry:
    """One group in the comparison."""

    name: str  # unique among the groups
    group: Group  # its runs
    cases: dict[str, Pooled]  # level -> pooled test cases
    rows: list[dict[str, Any]] = field(default_factory=list)  # its rows of the table
    used: int = 0  # runs that contributed

    @property
    def auroc(self) -> float:
        """AUROC at the first level, by which groups are ranked: of label ``any`` where there is one."""
        first = [row for row in self.rows if row["level"] == self.first_level]
        wanted = [row for row in first if row["label"] == ANY] or first[:1]
        return float(wanted[0]["auroc"]) if wanted else NAN

    @property
    def first_level(self) -> str:
        """The level at which the group is ranked."""
        return str(self.rows[0]["level"]) if self.rows else ""

    @property
    def first(self) -> tuple[str, Pooled]:
        """The first level and its cases."""
        return next(iter(self.cases.items()))

    def row(self, level: str, label: str) -> dict[str, Any] | None:
        """Its row of the table; the only label of a task has the row of no label."""
        label = "" if len(self.group.labels) == 1 and label == self.group.labels[0] else label
        return next((row for row in self.rows if (row["level"], row["label"]) == (level, label)), None)


def metric_rows(
    group: Group, name: str, level: str, cases: Pooled, replicates: int = REPLICATES
) -> list[dict[str, Any]]:
    """The rows of one group at one level: over labels (label ``""``), then each label where there are several."""
    labels, weights = group.labels, group.runs[0].keys["task.label_weights"]
    weights = None if weights is None else [float(w) for w in weights]
    given = (cases.y, cases.p, cases.decision, cases.patient, labels, group.kind)
    options: Any = {"label_weights": weights, "replicates": replicates, "scores": "prob" in cases.scores}
    scores = summarise(*given, intervals=INTERVALS, **options)
    tables = {"": scores} | (scores["labels"] if len(labels) > 1 else {})
    any_of = scores["labels"].get(ANY) if len(labels) > 1 else None
    rows = []
    for label, table in tables.items():
        y = cases.y if not label else cases.y[:, [labels.index(label)]]
        row: dict[str, Any] = {"group": name, **{key: group.cell(key) for key in group.values}}
        row |= {"source": "runs", "level": level, "label": label, "runs": len(cases.used)}
        row["n"] = table["accuracy"]["n"]
        people = len(np.unique(cases.code[~np.isnan(y).all(axis=1)]))
        row["patients"] = people if cases.person == "patient" else NAN
        row["positives"] = int((y == 1).any(axis=1).sum())
        for metric in (*INTERVALS, *(m for m in METRICS if m not in INTERVALS)):
            row |= _numbers(metric, table.get(metric), metric in INTERVALS)
        if any_of is not None:  # beside the mean over labels, in the same row
            row |= _numbers("auroc_any", None if label else any_of["auroc"], True)
        row["rate_interval"] = table["accuracy"]["method"] or ""
        row["auroc_interval"] = table["auroc"]["method"] or ""
        row["predictions_per_case"] = cases.repeats
        for metric in PER_RUN:
            values = [v for v in cases.per_run[metric] if v == v] if not label else []
            row[f"{metric}_run_mean"] = float(np.mean(values)) if values else NAN
            row[f"{metric}_run_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else NAN
        row |= dict.fromkeys(COUNTS, NAN)
        if label or len(labels) == 1:
            column = labels.index(label) if label else 0
            known = ~np.isnan(cases.y[:, column])
            truth, call = cases.y[known, column] == 1, cases.decision[known, column]
            counts = (truth & call, truth & ~call, ~truth & call, ~truth & ~call)
            row |= {key: int(c.sum()) for key, c in zip(COUNTS, counts, strict=True)}
        row["task"] = f"{group.kind}: {', '.join(labels)}"
        rows.append(row)
    return rows


def _numbers(metric: str, entry: dict[str, Any] | None, bounds: bool) -> dict[str, float]:
    """``auroc``, ``auroc_low``, ``auroc_high`` of an entry; NaN for what is undefined."""
    names = {metric: "value"} | ({f"{metric}_low": "low", f"{metric}_high": "high"} if bounds else {})
    values = {name: (entry or {}).get(key) for name, key in names.items()}
    return {name: NAN if value is None else value for name, value in values.items()}


def baseline_rows(
    group: Group, name: str, level: str, cases: Pooled, p: Floats, replicates: int
) -> list[dict[str, Any]]:
    """Rows of a model without pixels on a group's cases; what needs a threshold is left open."""
    calls = decide(p, np.full(p.shape[1], 0.5), group.kind)
    scores = frozenset(["prob"] if name in cases.scores else [])
    blind = replace(cases, p=p, decision=calls, per_run={metric: [] for metric in PER_RUN}, repeats=1, scores=scores)
    rows = metric_rows(group, name, level, blind, replicates)
    for row in rows:
        row["source"] = name
        row |= {key: name if i == 0 else "" for i, key in enumerate(group.values)}
        row |= {k: NAN for k in row if k.partition("_")[0] in ("accuracy", "sensitivity", "specificity", "f1")}
        row |= dict.fromkeys(COUNTS, NAN)
        row["rate_interval"] = ""
    return rows


# --- The table as text.


def letter(place: int) -> str:
    """What a group is called where its name is too long: by its place in the order of the table.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', 'G27')
    """
    return chr(ord("A") + place) if place < 26 else f"G{place + 1}"


class Sheet(NamedTuple):
    """A table as text, which every format shows."""

    title: str  # kind and labels of the task; empty where there is one alone
    header: list[str]  # column titles
    lines: list[list[str]]  # rows of cells
    first: int  # columns from here on hold figures
    rows: list[dict[Any, Any]]  # the rows of the comparison's table behind ``lines``


def text_sheet(every: pd.DataFrame, columns: Sequence[str], task: str, several: bool) -> Sheet:
    """The printed table of one task: rows over labels, series and patients in one where they are the same."""
    table = every[(every["label"] == "") & (every["task"] == task)]
    rows = _merged(table.to_dict("records"))
    keys = [key for key in columns if not several or key not in ("task.labels", "task.kind")]
    levels = len({row["level"] for row in rows}) > 1
    metrics = [metric for metric in INTERVALS if metric != WEIGHTED or table[metric].notna().any()]
    titles = {"auroc": "AUROC", WEIGHTED: "weighted log loss"}
    if "auroc_any" in table and table["auroc_any"].notna().any():
        metrics.insert(metrics.index("auroc"), "auroc_any")
        titles |= {"auroc_any": f"AUROC {ANY}", "auroc": "mean AUROC"}
    repeated = any(row["predictions_per_case"] > 1 for row in rows)
    header = [key.removesuffix(".name") for key in keys] or ["group"]
    header += ["level"] * levels + ["runs", "n"]
    header += [f"{titles.get(m, m)}{' %' if m in PERCENT else ''}" for m in metrics]
    by_run = {"accuracy": "accuracy % by run"} if repeated else {}
    if any(row["auroc_run_mean"] == row["auroc_run_mean"] for row in rows):
        by_run["auroc"] = "AUROC by run"  # also of folds: pooled, the scores of several models are compared
    header += by_run.values()
    lines = []
    for row in rows:
        blind = row["source"] in BASELINES
        line = [str(row[key]) for key in keys] or ["all runs"]
        line[0] = row["source"] if blind else line[0]
        line += [str(row["level"])] * levels + [str(row["runs"]), str(row["n"])]
        line += ["" if blind and metric in PERCENT else figure_text(row, metric) for metric in metrics]
        line += ["" if blind else _spread_text(row, metric) for metric in by_run]
        lines.append(line)
    return Sheet(task if several else "", header, lines, header.index("runs"), rows)


def figure_text(row: Mapping[Any, Any], metric: str) -> str:
    """A figure with its interval; nothing where scores in the place of probabilities have none."""
    return "" if metric in PROBABILISTIC and row[metric] != row[metric] else interval_text(row, metric)


def _merged(rows: Sequence[dict[Any, Any]]) -> list[dict[Any, Any]]:
    """One row in place of two where series and patients are the same cases with the same figures."""
    kept: list[dict[Any, Any]] = []
    for row in rows:
        last = kept[-1] if kept else {}
        if (row["level"], last.get("level")) == ("patient", "series") and all(
            last[name] == value or (last[name] != last[name] and value != value)
            for name, value in row.items()
            if name != "level"
        ):
            kept[-1] = last | {"level": "series = patient"}
        else:
            kept.append(row)
    return kept


def _spread_text(row: Mapping[Any, Any], metric: str) -> str:
    mean, sd = row[f"{metric}_run_mean"], row[f"{metric}_run_sd"]
    if mean != mean:
        return UNDEFINED
    scale, digits = scale_of(metric)
    return f"{mean * scale:.{digits}f}" + (f" ± {sd * scale:.{digits}f}" if sd == sd else "")
