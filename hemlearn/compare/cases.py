"""A run's test rows as plain arrays, read and put together per series and patient without a data frame.

Reading ten thousand small files through pandas takes minutes, nearly all of it overhead. Here the same rules are
applied on arrays; a file that looks wrong in any way is given to
:func:`~hemlearn.evaluation.predictions.read_predictions`, which names what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hemlearn.evaluation.auroc import Floats
from hemlearn.evaluation.predictions import IDS, OPTIONAL, SERIES, SPLITS, read_predictions
from hemlearn.util.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa


_AGAIN = "train that run again"


@dataclass(frozen=True)
class Cases:
    """Cases of one level.

    Attributes:
        unit: (N,) identifiers of slices, series or patients.
        patient: (N,) identifiers.
        y: (N, L) labels 0, 1 or NaN.
        p: Column family (``prob``, ``position_prob`` ...) -> (N, L) probabilities.
    """

    unit: npt.NDArray[np.object_]
    patient: npt.NDArray[np.object_]
    y: Floats
    p: dict[str, Floats]


@dataclass(frozen=True)
class Rows(Cases):
    """Test slices of a run, and the series each belongs to."""

    series: npt.NDArray[np.object_]

    @property
    def several(self) -> bool:
        """Whether a patient has several slices."""
        return len(set(self.patient.tolist())) < len(self.patient)

    def at(self, level: str, how: str, kind: str) -> Cases:
        """The cases of a level, as :func:`~hemlearn.evaluation.predictions.aggregate` makes them.

        Nulls have no series output of their own: where the task takes that (``model``), theirs is the mean.

        Args:
            level: slice | series | patient.
            how: mean | max | model.
            kind: binary | multiclass | multilabel.
        """
        if level == "slice":
            return self
        pairs = self.patient.tolist()
        keys: Sequence[Any] = list(zip(pairs, self.series.tolist(), strict=True)) if level == "series" else pairs
        places: dict[Any, int] = {}
        group = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.intp)
        units = len(places)
        first = np.full(units, len(group), dtype=np.intp)
        np.minimum.at(first, group, np.arange(len(group)))
        best = np.full((units, self.y.shape[1]), -1.0)
        np.maximum.at(best, group, np.where(np.isnan(self.y), -1.0, self.y))
        y = np.where(best < 0, np.nan, best)
        if kind == "multiclass":
            y[np.nansum(y, axis=1) > 1] = np.nan
        p: dict[str, Floats] = {}
        for family, values in self.p.items():
            if family == SERIES:
                continue
            own = how if family == "prob" else ("max" if how == "max" else "mean")
            p[family] = _put_together(self.p[SERIES] if own == "model" else values, group, units, own, kind)
        return Cases(self.series[first] if level == "series" else self.patient[first], self.patient[first], y, p)


def _put_together(values: Floats, group: npt.NDArray[np.intp], units: int, how: str, kind: str) -> Floats:
    if how == "mean":
        sums = [np.bincount(group, weights=column, minlength=units) for column in values.T]
        return np.clip(np.stack(sums, axis=1) / np.bincount(group, minlength=units)[:, None], 0.0, 1.0)
    out = np.zeros((units, values.shape[1]))
    np.maximum.at(out, group, values)
    if kind == "multiclass":
        out /= np.maximum(out.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return np.clip(out, 0.0, 1.0)


def read_rows(path: Path, labels: Sequence[str], how: str) -> Rows:
    """The test rows of a predictions file.

    Args:
        path: The Parquet file.
        labels: Labels wanted.
        how: Aggregation of the task; ``model`` needs series outputs.

    Raises:
        RunError: See :func:`~hemlearn.evaluation.predictions.read_predictions`; no test row, no column of a label, or
            no series output where the task needs one.
    """
    table = _table(path)
    missing = [c for c in labels if not {f"prob_{c}", f"label_{c}"} <= set(table.column_names)]
    if missing:
        raise RunError(f"{path}: no column prob_{missing[0]}", remedy=_AGAIN)
    if how == "model" and f"{SERIES}_{labels[0]}" not in table.column_names:
        raise RunError(f"{path}: task.aggregate=model, but no column {SERIES}_{labels[0]}", remedy=_AGAIN)
    ids = {name: _objects(table, name) for name in IDS}
    test = ids["split"] == "test"
    if not test.any():
        raise RunError(f"{path}: no test rows", remedy=_AGAIN)
    families = ["prob", *(f for f in OPTIONAL if f"{f}_{labels[0]}" in table.column_names)]
    p = {family: _numbers(table, family, labels)[test] for family in families}
    return Rows(
        ids["slice_id"][test],
        ids["patient_id"][test],
        _numbers(table, "label", labels)[test],
        p,
        ids["series_id"][test],
    )


def _table(path: Path) -> pa.Table:
    """The file's columns, checked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:  # small files: no threads, no data set discovery
            table = pq.ParquetFile(file).read(use_threads=False)
        sound = _sound(table)
    except (OSError, KeyError, ValueError, pa.ArrowException):
        sound = False
    if not sound:
        read_predictions(path)  # raises, and says what is wrong; what it allows is read as it is
    return table


def _sound(table: pa.Table) -> bool:
    """Whether the table keeps every rule of a predictions file."""
    names = table.column_names
    labels = [name.removeprefix("label_") for name in names if name.startswith("label_")]
    if not labels or any(table.column(name).null_count for name in IDS):
        return False
    slices, splits = _objects(table, "slice_id").tolist(), set(_objects(table, "split").tolist())
    y = _numbers(table, "label", labels)
    families = [f for f in OPTIONAL if any(name.startswith(f"{f}_") for name in names)]
    p = {family: _numbers(table, family, labels) for family in ("prob", *families)}
    ok = "z_mm" in names and len(set(slices)) == len(slices) and splits <= set(SPLITS)
    ok &= bool((np.isnan(y) | (y == 0) | (y == 1)).all())
    ok &= all(bool(((values >= 0) & (values <= 1)).all()) for values in p.values())
    return ok and (SERIES not in p or _constant(table, p[SERIES]))


def _constant(table: pa.Table, values: Floats) -> bool:
    """Whether a series' own output is the same on every slice of it."""
    keys = zip(*(_objects(table, name).tolist() for name in ("split", "patient_id", "series_id")), strict=True)
    first: dict[Any, int] = {}
    start = [first.setdefault(key, row) for row, key in enumerate(keys)]
    return bool((np.abs(values - values[start]) <= 1e-9).all())


def _objects(table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    return np.asarray(table.column(name).to_pylist(), dtype=object)


def _numbers(table: pa.Table, family: str, labels: Sequence[str]) -> Floats:
    columns = [np.asarray(table.column(f"{family}_{c}").to_numpy(), dtype=np.float64) for c in labels]
    return np.stack(columns, axis=1)
