"""Runs grouped by what differs between them, and their test predictions pooled over folds and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hemlearn.errors import RunError
from hemlearn.evaluation.predictions import LEVELS
from hemlearn.evaluation.scoring import Scorer, decide
from hemlearn.evaluation.statistics import Floats
from hemlearn.reports.comparison.cases import Rows, read_rows
from hemlearn.reports.comparison.keys import canonical
from hemlearn.reports.comparison.runs import SEQUENCE_ONLY, Run, Skipped

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
