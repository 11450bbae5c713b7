"""A run's test predictions as arrays, put together per series and patient, and pooled over the runs of a group.

Ten thousand small files are read: a file of a run that this user made was checked when it was written, and is taken
as it is once its checksum fits; any other goes through :func:`~hemlearn.evaluation.predictions.read_predictions`,
which names what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemlearn.compare.runs import ComparedRun, Skipped
from hemlearn.evaluation.auroc import Floats
from hemlearn.evaluation.pooling import Pool, places, unit_probs
from hemlearn.evaluation.predictions import IDS, OPTIONAL, SERIES, mixes, read_predictions, unit_labels
from hemlearn.evaluation.scoring import Scorer, decide
from hemlearn.util.errors import RunError

if TYPE_CHECKING:
    from hemlearn.compare.groups import Group
    from hemlearn.evaluation.calibration import Calibration

# Models that see no pixel inside the head, or measure it without a network, and their columns in a predictions file.
BASELINES = {
    "position only": "position_prob",
    "metadata only": "metadata_prob",
    "size only": "size_prob",
    "border only": "border_prob",
    "CSF share": "csf_prob",
    "Evans index": "evans_prob",
}
PER_RUN = ("accuracy", "auroc")  # metrics whose mean and spread over runs are shown
_AGAIN = "train that run again"
_Names = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Cases:
    """Cases of one level."""

    unit: _Names  # (N,) identifiers of slices, series or patients
    patient: _Names  # (N,) identifiers
    y: Floats  # (N, L) labels 0, 1 or NaN
    p: dict[str, Floats]  # column family (``prob``, ``position_prob`` ...) -> (N, L) probabilities
    scores: frozenset[str] = frozenset()  # families that are no probabilities: means or maxima over slices


@dataclass(frozen=True)
class Rows(Cases):
    """Test slices of a run, and the series each belongs to."""

    series: _Names = field(kw_only=True)
    z_mm: Floats = field(kw_only=True)

    @property
    def several(self) -> bool:
        """Whether a patient has several slices."""
        return len(set(self.patient.tolist())) < len(self.patient)

    def at(self, level: str, how: str, kind: str, calibration: Calibration | None = None) -> Cases:
        """The cases of a level, as :meth:`~hemlearn.evaluation.calibration.Calibration.aggregate` makes them.

        Models without pixels have no series output of their own: where the task takes that (``model``), theirs is the
        mean.
        """
        if level == "slice":
            return self
        pool = Pool() if calibration is None else calibration.pool(level)
        group = pd.factorize(self.patient)[0]
        if level == "series" or how == "logistic":
            series = pd.factorize(self.series)[0]
            series = pd.factorize(group * (series.max() + 1) + series)[0]
            group = series if level == "series" else group
        place = places(series, self.z_mm) if how == "logistic" else None
        first = np.unique(group, return_index=True)[1]
        y = unit_labels(self.y, group, kind)
        p: dict[str, Floats] = {}
        scores = set()
        for family, values in self.p.items():
            own = how if family == "prob" or how == "max" else "mean"
            if family != SERIES:
                taken = self.p[SERIES] if own == "model" else values
                p[family] = np.clip(unit_probs(taken, group, own, kind, pool, place), 0.0, 1.0)
                if family == "prob" and calibration is not None and level in calibration.units:
                    p[family] = calibration.of_units(p[family], level)
                elif own != "model" and mixes(values, group):
                    scores.add(family)
        unit = self.series[first] if level == "series" else self.patient[first]
        return Cases(unit, self.patient[first], y, p, frozenset(scores))


def read_rows(path: Path, labels: Sequence[str], how: str, *, checked: bool = False) -> Rows:
    """The test rows of a predictions file; ``checked`` where it is byte for byte as its run wrote it."""
    columns = _columns(path, checked)
    missing = [c for c in labels if not {f"prob_{c}", f"label_{c}"} <= set(columns)]
    if missing:
        raise RunError(f"{path}: no column prob_{missing[0]}", remedy=_AGAIN)
    if how == "model" and f"{SERIES}_{labels[0]}" not in columns:
        raise RunError(f"{path}: task.aggregate=model, but no column {SERIES}_{labels[0]}", remedy=_AGAIN)
    test = columns["split"] == "test"
    if not test.any():
        raise RunError(f"{path}: no test rows", remedy=_AGAIN)

    def numbers(family: str) -> Floats:
        values = [np.asarray(columns[f"{family}_{c}"], dtype=np.float64)[test] for c in labels]
        return np.stack(values, axis=1)

    families = ("prob", *(family for family in OPTIONAL if f"{family}_{labels[0]}" in columns))
    p = {family: numbers(family) for family in families}
    unit, patient, series = (columns[name][test] for name in ("slice_id", "patient_id", "series_id"))
    z_mm = np.asarray(columns["z_mm"], dtype=np.float64)[test]
    return Rows(unit, patient, numbers("label"), p, series=series, z_mm=z_mm)


def _columns(path: Path, checked: bool) -> dict[str, npt.NDArray[Any]]:
    """The columns of a predictions file; without a data frame where nothing has to be checked, which is faster."""
    if not checked:
        frame = read_predictions(path)
        return {str(name): frame[name].to_numpy(dtype=object if name in IDS else None) for name in frame}
    import pyarrow.parquet as pq

    with path.open("rb") as file:  # small files: no threads, no data set discovery
        table = pq.ParquetFile(file).read(use_threads=False)
    found = {name: table.column(name) for name in table.column_names}
    return {
        name: np.asarray(column.to_pylist(), dtype=object) if name in IDS else column.to_numpy()
        for name, column in found.items()
    }


# --- The runs of a group together.


@dataclass(eq=False)
class Pooled:
    """Test cases of a group at one level, one row per slice, series or patient, sorted by identifier."""

    unit: npt.NDArray[Any]  # (N,) identifiers
    patient: npt.NDArray[Any]  # (N,) identifiers
    y: Floats  # (N, L) labels 0, 1 or NaN
    p: Floats  # (N, L) probabilities; averaged where several runs predicted the case
    decision: npt.NDArray[np.bool_]  # (N, L) calls, by each run's own threshold (averaged likewise)
    repeats: int  # largest number of runs that predicted one case
    per_run: dict[str, list[float]]  # metric -> value of each run on its own test cases
    used: list[ComparedRun]  # runs that contributed
    baselines: dict[str, Floats] = field(default_factory=dict)  # name of a model without pixels
    scores: frozenset[str] = frozenset()  # ``prob`` and names of ``baselines`` that are no probabilities

    @cached_property
    def code(self) -> npt.NDArray[np.intp]:
        """(N,) patients as numbers from 0."""
        return np.unique(self.patient, return_inverse=True)[1].astype(np.intp)

    @property
    def person(self) -> str:
        """Whose cases these are: ``patient``, or ``image`` where a run's data have no patient ids."""
        return "patient" if all(run.patients_known for run in self.used) else "image"

    @property
    def clustered(self) -> bool:
        """Whether a patient has several cases."""
        return len(self.code) > 0 and int(self.code.max()) + 1 < len(self.code)

    def restricted(self, units: npt.NDArray[np.object_]) -> Pooled:
        """The cases with these identifiers, sorted by them; the runs' own values no longer apply."""
        rows = np.flatnonzero(np.isin(self.unit, units))
        columns = {name: getattr(self, name)[rows] for name in ("unit", "patient", "y", "p", "decision")}
        baselines = {name: p[rows] for name, p in self.baselines.items()}
        return replace(self, **columns, per_run={name: [] for name in self.per_run}, baselines=baselines)


def pool(group: Group, levels: Sequence[str] | None, baselines: bool = True) -> tuple[dict[str, Pooled], list[Skipped]]:
    """Pool the test predictions of a group.

    Out-of-fold predictions are put side by side. A case that several runs predicted (seeds, Monte-Carlo repetitions)
    gets the mean of its probabilities, and is called by the mean of those runs' thresholds.
    """
    if group.leaky:
        if levels is not None and "slice" not in levels:
            reason = f"split by slice: no result per {levels[0]}, whose slices stand in training and test"
            return {}, [Skipped(run.shown, reason) for run in group.runs]
        levels = ["slice"]
    how = str(group.runs[0].keys["task.aggregate"])
    read: list[tuple[ComparedRun, Rows]] = []
    skipped: list[Skipped] = []
    for run in group.runs:
        try:
            run.verify("config.yaml", "predictions.parquet", "metrics.json")
            _ = run.calibration
            run.checksum("manifest")  # without it runs on other data would look alike
            rows = read_rows(run.path / "predictions.parquet", group.labels, how, checked=run.ours)
            for level in levels or group.levels:
                _thresholds(run, level, group)
        except RunError as error:
            skipped.append(Skipped(run.shown, error.problem))
            continue
        read.append((run, rows))
    if not read:
        return {}, skipped
    if levels is None:
        levels = group.levels if any(rows.several for _, rows in read) else group.levels[:1]
    return {level: _pool_level(read, level, group, how, baselines) for level in levels}, skipped


def _thresholds(run: ComparedRun, level: str, group: Group) -> Floats:
    if group.kind == "multiclass":
        return np.zeros(len(group.labels))
    try:
        table = run.thresholds[level]
        return np.array([table[label] for label in group.labels])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.path / 'metrics.json'}: no threshold of level {level} ({error!r})",
            remedy="train that run again with this version",
        ) from error


def _pool_level(
    read: Sequence[tuple[ComparedRun, Rows]], level: str, group: Group, how: str, baselines: bool
) -> Pooled:
    kind = group.kind
    parts = [rows.at(level, how, kind, run.calibration) for run, rows in read]
    limits = [
        np.broadcast_to(_thresholds(run, level, group), part.y.shape)
        for (run, _), part in zip(read, parts, strict=True)
    ]
    per_run: dict[str, list[float]] = {name: [] for name in PER_RUN}
    for part, limit in zip(parts, limits, strict=True) if len(read) > 1 else ():
        p = part.p["prob"]
        scorer = Scorer(part.y, p, decide(p, limit, kind), np.zeros(len(p), dtype=np.intp), kind)
        top, _ = scorer.values(np.ones((1, 1)))
        for name, values in per_run.items():
            values.append(float(top[name][0]))
    patient, y = np.concatenate([part.patient for part in parts]), np.concatenate([part.y for part in parts])
    wanted = {"prob": "prob", **(BASELINES if baselines else {})}
    tables = {
        name: np.concatenate([part.p[family] for part in parts])
        for name, family in wanted.items()
        if all(family in part.p for part in parts)
    }
    tables["threshold"] = np.concatenate(limits)
    names = np.concatenate([part.unit for part in parts])
    unit, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    same = (y == y[first][inverse]) | (np.isnan(y) & np.isnan(y[first][inverse]))
    wrong = ~same.all(axis=1) | (patient != patient[first][inverse])
    if wrong.any():
        raise RunError(
            f"{level} {unit[inverse[int(wrong.argmax())]]!r} has different labels or patients in runs of one group "
            f"({read[0][0].shown} and others)",
            remedy="the data changed between these runs: train them again on one version",
        )
    counts = np.bincount(inverse)
    once = counts.max() == 1
    merged = {name: values[first] if once else unit_probs(values, inverse, "mean") for name, values in tables.items()}
    p, threshold = merged.pop("prob"), merged.pop("threshold")
    runs = [run for run, _ in read]
    decision = decide(p, threshold, kind)
    ranks = frozenset(name for name, family in wanted.items() if any(family in part.scores for part in parts))
    return Pooled(unit, patient[first], y[first], p, decision, int(counts.max()), per_run, runs, merged, ranks)
