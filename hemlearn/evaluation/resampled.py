"""Intervals and tests over folds, repeated splits and seeds, which say what variation they cover.

Source: Nadeau and Bengio 2003, Machine Learning 52:239 (variance of a mean over overlapping training sets).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from hemlearn.evaluation.outcome import Test
from hemlearn.evaluation.statistics import CONFIDENCE, NAN, Floats


def _resampled(values: Floats, test_share: float) -> tuple[Floats, float, float]:
    """Defined values, their mean and its corrected standard error (NaN below two values)."""
    if not (test_share > 0 and math.isfinite(test_share)):
        raise ValueError(f"test_share {test_share}: test cases over training cases, above 0")
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return known, float(known.mean()) if len(known) else NAN, NAN
    spread = math.sqrt((1 / len(known) + test_share) * float(known.var(ddof=1)))
    return known, float(known.mean()), 0.0 if np.ptp(known) == 0 else spread


def corrected_resampled(
    differences: Sequence[float] | Floats, test_share: float, confidence: float = CONFIDENCE
) -> Test:
    """Corrected resampled t test of two algorithms over folds or repeated splits (Nadeau and Bengio 2003).

    Training sets of different folds share most of their patients, so the plain t test takes chance for a difference;
    the variance of the mean is (1 / k + test share) times the variance over k resamples.

    Args:
        differences: (k,) first minus second, on the same splits. NaN is left out and told.
        test_share: Test cases over training cases of a split (5 folds: 0.25).
        confidence: Of the interval.

    Raises:
        ValueError: ``test_share`` is not above 0.
    """
    values = np.asarray(differences, dtype=float).reshape(-1)
    known, mean, spread = _resampled(values, test_share)
    k = len(known)
    notes = [f"variation over {k} training and test sets drawn from the same patients; not over new patients"]
    if k < len(values):
        notes.append(f"{len(values) - k} undefined differences left out")
    low = high = statistic = p = NAN
    if k < 2:
        notes.append("fewer than two differences: no variance")
    elif spread == 0:
        notes.append("no difference varies")
        if mean == 0:
            low, high, statistic, p = 0.0, 0.0, 0.0, 1.0
    else:
        reach = float(student.ppf(0.5 + confidence / 2, k - 1)) * spread
        statistic, low, high = mean / spread, mean - reach, mean + reach
        p = float(2 * student.sf(abs(statistic), k - 1))
    return Test("corrected resampled t", mean, low, high, statistic, p, k, 0, "; ".join(notes), confidence)


class Spread(NamedTuple):
    """A metric over the runs of one configuration.

    Attributes:
        mean: Over the runs in which it is defined.
        low: Lower end of the interval of the mean.
        high: Upper end.
        sd: Standard deviation over those runs.
        n: Runs that define it.
        undefined: Runs that do not.
        covers: Which variation the interval speaks of.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int
    undefined: int
    covers: str


def over_runs(
    values: Sequence[float] | Floats, test_share: float | None = None, confidence: float = CONFIDENCE
) -> Spread:
    """Mean of a metric over folds or seeds, with the interval that their dependence allows.

    Args:
        values: (k,) one per run; NaN where the metric is undefined.
        test_share: Test cases over training cases where the runs differ in their split (Nadeau and Bengio's
            correction); None where they differ in the seed alone, on one split.
        confidence: Of the interval.

    Raises:
        ValueError: ``test_share`` is not above 0.
    """
    numbers = np.asarray(values, dtype=float).reshape(-1)
    known, mean, spread = _plain(numbers) if test_share is None else _resampled(numbers, test_share)
    k, undefined = len(known), len(numbers) - len(known)
    if test_share is None:
        covers = f"{k} seeds on one split: initialisation and order of training; neither new patients nor new splits"
    else:
        covers = f"{k} splits of the same patients: training and test sets; not new patients"
    reach = float(student.ppf(0.5 + confidence / 2, k - 1)) * spread if k > 1 else NAN
    sd = float(known.std(ddof=1)) if k > 1 else NAN
    return Spread(mean, mean - reach, mean + reach, sd, k, undefined, covers)


def _plain(values: Floats) -> tuple[Floats, float, float]:
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else NAN
    return known, mean, float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else NAN
