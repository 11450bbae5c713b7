"""Runs grouped by what differs between them, and their test predictions pooled over folds and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hemlearn.compare.cases import Rows, read_rows
from hemlearn.compare.runs import SEQUENCE_ONLY, Run, Skipped, canonical
from hemlearn.evaluation.auroc import NAN, Floats
from hemlearn.evaluation.bootstrap import REPLICATES
from hemlearn.evaluation.predictions import LEVELS
from hemlearn.evaluation.scoring import METRICS, WEIGHTED, Scorer, decide, summarise
from hemlearn.util.errors import RunError

# Models that see no pixel inside the head, and their columns in a predictions file.
NULLS = {
    "position only": "position_prob",
    "metadata only": "metadata_prob",
    "size only": "size_prob",
    "border only": "border_prob",
}
PER_RUN = ("accuracy", "auroc")  # metrics whose mean and spread over runs are told


@dataclass(frozen=True)
class Group:
    """Runs that differ in pooled keys only.

    Attributes:
        values: Value of each differing key.
        runs: In order of their hash.
    """

    values: dict[str, Any]
    runs: list[Run]

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
    def label_weights(self) -> list[float] | None:
        """Weights of the weighted log loss."""
        weights = self.runs[0].keys["task.label_weights"]
        return None if weights is None else [float(w) for w in weights]

    def cell(self, key: str) -> str:
        """Value of a differing key; a dash where the key means nothing to these runs."""
        idle = key != "sequence.name" and key.partition(".")[0] in SEQUENCE_ONLY and not self.runs[0].of_series
        return "-" if idle else show(self.values[key])

    @property
    def leaky(self) -> bool:
        """Whether slices were split, so that patients stand in training and test."""
        return any(run.keys["split.by"] == "slice" or bool(run.provenance.get("leaky_split")) for run in self.runs[:1])

    @property
    def task(self) -> tuple[str, tuple[str, ...]]:
        """Kind and labels: groups of another task share no table."""
        return self.kind, tuple(self.labels)

    @cached_property
    def name(self) -> str:
        """Short name for legends and notes."""
        tails = [short_key(key) for key in self.values]
        unique = len(set(tails)) == len(tails)
        names = tails if unique else list(self.values)
        cells = {k: self.cell(key) for k, key in zip(names, self.values, strict=True)}
        return ", ".join(f"{k}={v}" for k, v in cells.items() if v != "-") or "all runs"


@dataclass
class Pooled:
    """Test cases of a group at one level, one row per slice, series or patient, sorted by identifier.

    Attributes:
        unit: (N,) identifiers.
        patient: (N,) identifiers.
        y: (N, L) labels 0, 1 or NaN.
        p: (N, L) probabilities; averaged where several runs predicted the case.
        decision: (N, L) calls, by each run's own threshold (averaged likewise).
        repeats: Largest number of runs that predicted one case.
        per_run: Metric -> value of each run on its own test cases.
        used: Runs that contributed.
        nulls: Name of a null (:data:`NULLS`) -> (N, L) probabilities, where every run has it.
    """

    unit: npt.NDArray[Any]
    patient: npt.NDArray[Any]
    y: Floats
    p: Floats
    decision: npt.NDArray[np.bool_]
    repeats: int
    per_run: dict[str, list[float]]
    used: list[Run]
    nulls: dict[str, Floats] = field(default_factory=dict)

    @cached_property
    def code(self) -> npt.NDArray[np.intp]:
        """(N,) patients as numbers from 0."""
        return np.unique(self.patient, return_inverse=True)[1].astype(np.intp)

    @property
    def clustered(self) -> bool:
        """Whether a patient has several cases."""
        return len(self.code) > 0 and int(self.code.max()) + 1 < len(self.code)


@dataclass
class _Part:
    unit: list[npt.NDArray[Any]] = field(default_factory=list)
    patient: list[npt.NDArray[Any]] = field(default_factory=list)
    y: list[Floats] = field(default_factory=list)
    p: list[Floats] = field(default_factory=list)
    threshold: list[Floats] = field(default_factory=list)
    nulls: dict[str, list[Floats]] = field(default_factory=dict)
    per_run: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PER_RUN})


def short_key(key: str) -> str:
    """``augmentation`` for ``augmentation.name``, ``pretrained`` for ``backbone.pretrained``."""
    section, _, rest = key.partition(".")
    return section if rest in ("", "name") else rest.rpartition(".")[2]


def show(value: Any) -> str:
    """A configuration value as YAML would show it on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return value if isinstance(value, str) else canonical(value)


def _sort_key(value: Any) -> tuple[int, float, str]:
    if isinstance(value, bool):
        return (0, -float(value), "")  # true, the feature switched on, first
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, show(value))


def group_runs(runs: Sequence[Run], keys: Sequence[str]) -> list[Group]:
    """Runs with equal values of ``keys`` together; groups sorted by those values, numbers by size."""
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        identity = tuple(canonical(run.keys.get(key)) for key in keys)
        groups.setdefault(identity, Group({key: run.keys.get(key) for key in keys}, [])).runs.append(run)
    ordered = sorted(groups.items(), key=lambda item: item[0])
    return [g for _, g in sorted(ordered, key=lambda item: [_sort_key(v) for v in item[1].values.values()])]


def _thresholds(run: Run, level: str, labels: Sequence[str], kind: str) -> Floats:
    if kind == "multiclass":
        return np.zeros(len(labels))
    try:
        table = run.metrics["thresholds"][level]
        return np.array([float(table[label]["value"]) for label in labels])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.path / 'metrics.json'}: no threshold of level {level} ({error!r})",
            remedy="train that run again with this version",
        ) from error


def pool(group: Group, levels: Sequence[str] | None, nulls: bool = True) -> tuple[dict[str, Pooled], list[Skipped]]:
    """Pool the test predictions of a group.

    Out-of-fold predictions are put side by side. A case that several runs predicted (seeds, Monte-Carlo repetitions)
    gets the mean of its probabilities, and is called by the mean of those runs' thresholds.

    Args:
        group: Runs of one task.
        levels: slice, series, patient; None takes slices, and series and patients too where a patient has several
            slices. A group whose labels describe series has no slice level, one split by slice no other: its folds hold
            different slices of the same patients.
        nulls: Pool the nulls too.

    Returns:
        Level -> cases (empty when no run could be read), and the runs that could not be read.

    Raises:
        RunError: Two runs disagree on a label or the patient of the same case.
    """
    labels, kind = group.labels, group.kind
    how = str(group.runs[0].keys["task.aggregate"])
    if group.leaky:
        if levels is not None and "slice" not in levels:
            reason = f"split by slice: no result per {levels[0]}, whose slices stand in training and test"
            return {}, [Skipped(run.shown, reason) for run in group.runs]
        levels = ["slice"]
    read: list[tuple[Run, Rows]] = []
    skipped: list[Skipped] = []
    for run in group.runs:
        try:
            run.check_files()
            rows = read_rows(run.path / "predictions.parquet", labels, how)
            for level in levels or group.levels:
                _thresholds(run, level, labels, kind)
        except RunError as error:
            skipped.append(Skipped(run.shown, error.problem))
            continue
        read.append((run, rows))
    if not read:
        return {}, skipped
    if levels is None:
        levels = group.levels if any(rows.several for _, rows in read) else group.levels[:1]
    wanted = list(NULLS.items()) if nulls else []
    return {level: _pool_level(read, level, labels, kind, how, wanted) for level in levels}, skipped


def _pool_level(
    read: Sequence[tuple[Run, Rows]],
    level: str,
    labels: Sequence[str],
    kind: str,
    how: str,
    wanted: Sequence[tuple[str, str]],
) -> Pooled:
    part = _Part()
    for run, rows in read:
        cases = rows.at(level, how, kind)
        y, p = cases.y, cases.p["prob"]
        threshold = _thresholds(run, level, labels, kind)
        part.unit.append(cases.unit)
        part.patient.append(cases.patient)
        part.y.append(y)
        part.p.append(p)
        part.threshold.append(np.broadcast_to(threshold, p.shape))
        for name, family in wanted:
            if family in cases.p:
                part.nulls.setdefault(name, []).append(cases.p[family])
        if len(read) > 1:
            scorer = Scorer(y, p, decide(p, threshold, kind), np.zeros(len(y), dtype=np.intp), kind)
            top, _ = scorer.values(np.ones((1, 1)))
            for name in PER_RUN:
                part.per_run[name].append(float(top[name][0]))
    patient, y = np.concatenate(part.patient), np.concatenate(part.y)
    p, threshold = np.concatenate(part.p), np.concatenate(part.threshold)
    nulls = {name: np.concatenate(made) for name, made in part.nulls.items() if len(made) == len(read)}
    unit, first, inverse = np.unique(np.concatenate(part.unit), return_index=True, return_inverse=True)
    same = (y == y[first][inverse]) | (np.isnan(y) & np.isnan(y[first][inverse]))
    wrong = ~same.all(axis=1) | (patient != patient[first][inverse])
    if wrong.any():
        case = unit[inverse[int(wrong.argmax())]]
        raise RunError(
            f"{level} {case!r} has different labels or patients in runs of one group ({read[0][0].shown} and others)",
            remedy="the data changed between these runs: train them again on one version",
        )
    counts = np.bincount(inverse)
    if counts.max() == 1:
        p, threshold, nulls = p[first], threshold[first], {name: values[first] for name, values in nulls.items()}
    else:
        p, threshold = (_mean_by(values, inverse, counts) for values in (p, threshold))
        nulls = {name: _mean_by(values, inverse, counts) for name, values in nulls.items()}
    decision = decide(p, threshold, kind)
    runs = [run for run, _ in read]
    return Pooled(unit, patient[first], y[first], p, decision, int(counts.max()), part.per_run, runs, nulls)


def _mean_by(values: Floats, code: npt.NDArray[np.intp], counts: npt.NDArray[np.intp]) -> Floats:
    sums = [np.bincount(code, weights=column) for column in values.T]
    return np.asarray(np.stack(sums, axis=1) / counts[:, None], dtype=np.float64)


# --- Rows of the comparison's table: every metric of a group at one level, over labels and per label.


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
