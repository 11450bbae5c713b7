"""What the test set of a finished run can tell: the widths of its intervals, and the differences it would find.

The variances are the run's own, clustered by patient (:mod:`hemlearn.evaluation.clustered`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri

from hemlearn.evaluation.clustered import clustered_auroc, macro_auroc_covariance
from hemlearn.evaluation.planning import ALPHA, CORRELATION, FEW, POWER, check_test
from hemlearn.evaluation.predictions import LEVELS, aggregate, label_array, prob_array
from hemlearn.evaluation.statistics import CONFIDENCE, NAN, Floats, Interval, auroc_delong, logit_interval


class Resolution(NamedTuple):
    """What the test set of a finished run can tell for one label at one level.

    Attributes:
        level: slice, series or patient; several joined by `` = `` where their cases are the same.
        label: Label, or ``mean`` over the labels.
        positives: Cases with it.
        negatives: Cases without.
        patients: Patients with a known case.
        auroc: As measured; NaN where a class is absent.
        low: Lower end of its interval.
        high: Upper end.
        half_width: Half the length of that interval.
        design_effect: Variance over that of as many independent cases; NaN where that is 0.
        detectable: Smallest difference from a second model on the same cases that is found with the power asked for.
        note: Why something is NaN or rough.
    """

    level: str
    label: str
    positives: int
    negatives: int
    patients: int
    auroc: float
    low: float
    high: float
    half_width: float
    design_effect: float
    detectable: float
    note: str


def resolution(
    df: pd.DataFrame,
    labels: Sequence[str],
    kind: str = "binary",
    how: str = "mean",
    levels: Sequence[str] = LEVELS,
    *,
    correlation: float = CORRELATION,
    power: float = POWER,
    alpha: float = ALPHA,
) -> list[Resolution]:
    """What the test cases of a predictions table can resolve, per level and label.

    Args:
        df: Predictions of one split, see :mod:`hemlearn.evaluation.predictions`.
        labels: Labels of the task.
        kind: binary | multiclass | multilabel.
        how: Of aggregation: mean | max | model.
        levels: Some of slice, series, patient.
        correlation: Between the AUROCs of the run and of a second model on the same cases.
        power: Of finding their difference.
        alpha: Of the two-sided test.

    Raises:
        ConfigError: ``correlation``, ``power`` or ``alpha`` out of range.
    """
    check_test(0.5, 0.1, correlation, power, alpha)
    reach = float(ndtri(1 - alpha / 2) + ndtri(power)) * math.sqrt(2 * (1 - correlation))
    found: list[Resolution] = []
    for level in levels:
        units = aggregate(df, level, how, kind)
        y, p, who = label_array(units, labels), prob_array(units, labels), units["patient_id"].to_numpy()
        rows = [_of_label(level, label, y[:, j], p[:, j], who, reach) for j, label in enumerate(labels)]
        if len(labels) > 1:
            rows.append(_of_mean(level, y, p, who, reach))
        if [a._replace(level="") for a in rows] == [b._replace(level="") for b in found[-len(rows) :]]:
            rows = [
                row._replace(level=f"{before.level} = {level}")
                for row, before in zip(rows, found[-len(rows) :], strict=True)
            ]
            del found[-len(rows) :]
        found += rows
    return found


def _of_label(level: str, label: str, y: Floats, p: Floats, who: npt.NDArray[Any], reach: float) -> Resolution:
    known = ~np.isnan(y)
    y, p, who = y[known], p[known], who[known]
    positives, patients = int(y.sum()), len(np.unique(who))
    negatives = len(y) - positives
    area = clustered_auroc(y, p, who)
    independent = auroc_delong(y, p).variance
    note = ""
    if not positives or not negatives:
        note = f"no {'negative' if positives else 'positive'}: AUROC undefined"
    elif area.low != area.low:
        note = "a class comes from a single patient: no interval"
    elif not area.variance > 1e-15:
        note = "perfect separation: interval from the class sizes alone"
    elif (few := min(len(np.unique(who[y == c])) for c in (0, 1))) < FEW:
        note = f"a class comes from {few} patients: interval and design effect are rough"
    effect = area.variance / independent if independent > 1e-15 else NAN
    return _row(
        level,
        label,
        (positives, negatives, patients),
        area.value,
        area.variance,
        (area.low, area.high),
        effect,
        reach,
        note,
    )


def _of_mean(level: str, y: Floats, p: Floats, who: npt.NDArray[Any], reach: float) -> Resolution:
    area = macro_auroc_covariance(y, p, who)
    value, variance = float(area.macro[0]), float(area.covariance[0, 0])
    independent = float(macro_auroc_covariance(y, p).covariance[0, 0])
    inside = variance > 1e-15 and 0 < value < 1
    low, high = logit_interval(value, variance) if inside else Interval(NAN, NAN)
    note = "" if area.n_defined == y.shape[1] else f"mean over {area.n_defined} of {y.shape[1]} labels"
    positives = int((y == 1).any(axis=1).sum())
    effect = variance / independent if independent > 1e-15 else NAN
    return _row(
        level, "mean", (positives, area.n - positives, area.clusters), value, variance, (low, high), effect, reach, note
    )


def _row(
    level: str,
    label: str,
    counts: tuple[int, int, int],
    area: float,
    variance: float,
    bounds: tuple[float, float],
    effect: float,
    reach: float,
    note: str,
) -> Resolution:
    half = (bounds[1] - bounds[0]) / 2
    # Without a variance the interval's own half-width stands for 1.96 standard errors.
    error = math.sqrt(variance) if variance > 1e-15 else half / float(ndtri(0.5 + CONFIDENCE / 2))
    return Resolution(level, label, *counts, area, *bounds, half, effect, reach * error, note)
