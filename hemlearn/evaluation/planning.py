"""How many patients a study of AUROCs needs.

The width of an interval comes from Hanley and McNeil's variance, which assumes exponential scores and is somewhat on
the safe side for areas near 1; the power of a paired test from normal scores, with the correlation of the two models'
scores. What the test set of a finished run can resolve stands here as well.

Sources: Hanley and McNeil 1982, Radiology 143:29 (variance); Hanley and McNeil 1983, Radiology 148:839 (correlated
areas); Obuchowski and McClish 1997, Statist. Med. 16:1529 (binormal scores); Kish 1965 (design effect 1 + (m - 1) x
intraclass correlation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from hemlearn.evaluation.auroc import (
    CONFIDENCE,
    NAN,
    NOTHING,
    Auroc,
    Floats,
    auroc_interval,
    codes,
    degrees_of_freedom,
    macro_auroc_covariance,
)
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.predictions import LEVELS, aggregate, label_array, prob_array
from hemlearn.util.errors import ConfigError

CORRELATION = 0.5  # between the scores of two models on the same cases, within a class
POWER, ALPHA = 0.8, 0.05
FEW = 10  # patients of a class, below which normal intervals are rough
_MOST = 10**9  # cases; what needs more is not planned


class _Reach(NamedTuple):
    """What a difference that is found must reach."""

    power: float
    alpha: float
    correlation: float  # of the scores

    def errors(self, df: float) -> float:
        """Standard errors of that difference: the quantile of the test, and that of the power, of t as the test is."""
        shares = (1 - self.alpha / 2, self.power)
        return sum(float(ndtri(share) if df == math.inf else stdtrit(df, share)) for share in shares)


class Size(NamedTuple):
    """Cases that a study needs."""

    positives: int  # cases with the finding
    negatives: int  # cases without
    patients: int  # patients that give them: as many as cases, unless a patient gives several
    reached: float  # what that many cases reach: the half-width of the interval, or the power


def hanley_mcneil_variance(auroc: float, positives: float, negatives: float) -> float:
    """Variance of an AUROC from its value and the class sizes (which may be fractional)."""
    if not (positives > 0 and negatives > 0):
        return NAN
    q1, q2, square = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc), auroc**2
    parts = auroc * (1 - auroc) + (positives - 1) * (q1 - square) + (negatives - 1) * (q2 - square)
    return max(parts, 0.0) / (positives * negatives)


def design_effect(slices_per_patient: float, icc: float) -> float:
    """By how much m slices of a patient, correlated by ``icc``, widen a variance against independent ones."""
    return 1 + (slices_per_patient - 1) * icc


def _between(key: str, value: float, low: float, high: float, example: float) -> None:
    if not low < value < high:
        raise ConfigError(f"{key}={value:g}: not between {low:g} and {high:g}", remedy=f"such as {key}={example:g}")


def check_study(auroc: float, prevalence: float, slices_per_patient: float, icc: float) -> None:
    """Refuse (ConfigError) numbers of a study that are out of range."""
    _between("auroc", auroc, 0, 1, 0.9)
    _between("prevalence", prevalence, 0, 1, 0.3)
    if not (slices_per_patient >= 1 and math.isfinite(slices_per_patient)):
        raise ConfigError(f"slices_per_patient={slices_per_patient:g}: below 1", remedy="give 1 or more")
    if not 0 <= icc <= 1:
        raise ConfigError(f"icc={icc:g}: not from 0 to 1", remedy="the correlation of a patient's slices: icc=0.5")


def _size(
    prevalence: float,
    slices_per_patient: float,
    icc: float,
    reached: Callable[[float, float], float],
    suffices: Callable[[float], bool],
) -> Size:
    """Smallest number of cases that reaches enough; each of them counts for one over the design effect."""
    effect = design_effect(slices_per_patient, icc)

    def enough(cases: float) -> bool:
        return suffices(reached(cases * prevalence / effect, cases * (1 - prevalence) / effect))

    high = 2
    while not enough(high):
        high *= 2
        if high > _MOST:
            raise ConfigError(f"more than {_MOST:.0e} cases would be needed", remedy="ask for less precision or power")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    patients = math.ceil(high / slices_per_patient)
    while True:  # whole patients, and whole cases of either class
        cases = math.ceil(patients * slices_per_patient - 1e-9)
        rarer = max(1, math.ceil(cases * min(prevalence, 1 - prevalence) - 1e-9))
        positives = rarer if prevalence <= 0.5 else cases - rarer
        found = reached(positives / effect, (cases - positives) / effect)
        if 0 < positives < cases and suffices(found):
            return Size(positives, cases - positives, patients, found)
        patients += 1


def half_width(auroc: float, positives: float, negatives: float, confidence: float = CONFIDENCE) -> float:
    """Half-width of the normal interval of an AUROC that Hanley and McNeil's variance foretells."""
    return float(ndtri(0.5 + confidence / 2)) * math.sqrt(hanley_mcneil_variance(auroc, positives, negatives))


def size_for_half_width(
    auroc: float,
    prevalence: float,
    half: float,
    confidence: float = CONFIDENCE,
    *,
    slices_per_patient: float = 1,
    icc: float = 0,
) -> Size:
    """Cases and patients for an interval of an AUROC no wider than ``half`` on either side."""
    check_study(auroc, prevalence, slices_per_patient, icc)
    _between("half_width", half, 0, 0.5, 0.03)
    cases = (prevalence, slices_per_patient, icc)
    return _size(*cases, lambda m, n: half_width(auroc, m, n, confidence), lambda width: width <= half)


def area_covariance(first: float, second: float, correlation: float, positives: float, negatives: float) -> float:
    """Covariance of the AUROCs of two models on the same cases, whose scores are normal in either class.

    ``correlation`` is that of the two models' scores within a class; with 1 and equal areas it is the variance of one.
    """
    a, b = float(ndtri(first)), float(ndtri(second))
    pair, half = _excess(a, b, correlation), _excess(a, b, correlation / 2)
    return (pair + (positives + negatives - 2) * half) / (positives * negatives)


def _excess(a: float, b: float, correlation: float) -> float:
    """P(X < a, Y < b) - P(X < a) P(Y < b) of standard normal X and Y: an integral over correlations from 0."""
    end = math.asin(correlation)
    angle = (_NODES + 1) * end / 2
    density = np.exp(-(a * a + b * b - 2 * a * b * np.sin(angle)) / (2 * np.cos(angle) ** 2))
    return float((_WEIGHTS * density).sum() * end / 2 / (2 * math.pi))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def power_for_difference(
    auroc: float,
    difference: float,
    positives: float,
    negatives: float,
    correlation: float = CORRELATION,
    alpha: float = ALPHA,
) -> float:
    """Power of DeLong's two-sided test between ``auroc`` and ``auroc + difference`` on the same cases.

    Scores are normal in either class, and ``correlation`` ties those of the two models. The test estimates its standard
    error from the same cases, and the larger the difference comes out the smaller that error: both the variance of the
    estimate and its covariance with the difference are allowed for. Simulated power is then within 0.03 of this one
    (Hanley and McNeil's formula: 0.89 to 0.97 where it says 0.80).
    """
    low, high = sorted((auroc, auroc + difference))
    parts = [area_covariance(area, area, 1.0, positives, negatives) for area in (low, high)]
    variance = sum(parts) - 2 * area_covariance(low, high, correlation, positives, negatives)
    gap, quantile = high - low, -float(ndtri(alpha / 2))
    if not variance > 0:
        return float(gap > 0)
    square, third, fourth = _component_moments(low, high, correlation)
    skew = third * (1 / positives**2 + 1 / negatives**2)  # covariance of the difference with its estimated variance
    unsure = (fourth - square**2) * (1 / positives**3 + 1 / negatives**3)  # variance of the estimated variance
    # Bounded: an expansion that says more than this says nothing.
    error = math.sqrt(variance) * max(1 - unsure / (8 * variance**2), 0.9)
    spread = variance + quantile**2 * unsure / (4 * variance) - quantile * skew / math.sqrt(variance)
    spread = min(max(spread, 0.45 * variance), variance)
    return float(ndtr((gap - quantile * error) / math.sqrt(spread)))


@lru_cache(maxsize=4096)
def _component_moments(low: float, high: float, correlation: float) -> tuple[float, float, float]:
    """Central moments 2 to 4 of the difference of a case's structural components, the same in either class."""
    first, second = (math.sqrt(2) * float(ndtri(area)) for area in (high, low))
    x, y = _NORMAL[:, None], correlation * _NORMAL[:, None] + math.sqrt(1 - correlation**2) * _NORMAL[None, :]
    weights = _MASS[:, None] * _MASS[None, :]
    lead = ndtr(first + x) - ndtr(second + y)
    lead = lead - (weights * lead).sum()
    square, third, fourth = (float((weights * lead**k).sum()) for k in (2, 3, 4))
    return square, third, fourth


_NORMAL, _MASS = np.polynomial.hermite_e.hermegauss(40)
_MASS = _MASS / _MASS.sum()


def check_test(auroc: float, difference: float, correlation: float, power: float, alpha: float) -> None:
    """Refuse (ConfigError) numbers of a test that are out of range."""
    if difference == 0 or not 0 < auroc + difference < 1:
        raise ConfigError(
            f"difference={difference:g} with auroc={auroc:g}: the second AUROC would be {auroc + difference:g}",
            remedy="give the difference of the second model from the first, such as auroc=0.90 difference=0.03",
        )
    if not 0 <= correlation < 1:
        raise ConfigError(f"correlation={correlation:g}: not from 0 to below 1", remedy="0.5 is usual; 0: two samples")
    _between("alpha", alpha, 0, 1, ALPHA)
    _between("power", power, alpha, 1, POWER)


def size_for_difference(
    auroc: float,
    difference: float,
    prevalence: float,
    correlation: float = CORRELATION,
    power: float = POWER,
    alpha: float = ALPHA,
    *,
    slices_per_patient: float = 1,
    icc: float = 0,
) -> Size:
    """Cases and patients to find a difference between two AUROCs on the same cases."""
    check_study(auroc, prevalence, slices_per_patient, icc)
    check_test(auroc, difference, correlation, power, alpha)

    def reached(m: float, n: float) -> float:
        return power_for_difference(auroc, difference, m, n, correlation, alpha)

    return _size(prevalence, slices_per_patient, icc, reached, lambda found: found >= power)


def detectable_difference(
    auroc: float,
    positives: float,
    negatives: float,
    correlation: float = CORRELATION,
    power: float = POWER,
    alpha: float = ALPHA,
) -> float:
    """Smallest gain over ``auroc`` that so many cases find with the power asked for; NaN where none below 1 is."""
    edge = (1 - auroc) * (1 - 1e-9)
    if not power_for_difference(auroc, edge, positives, negatives, correlation, alpha) >= power:
        return NAN
    return float(
        brentq(lambda d: power_for_difference(auroc, d, positives, negatives, correlation, alpha) - power, 0.0, edge)
    )


# --- What the test set of a finished run can tell: the widths of its intervals, and the differences it would find.


class Resolution(NamedTuple):
    """What the test set of a finished run can tell for one label at one level."""

    level: str  # slice, series or patient; several joined by `` = `` where their cases are the same
    label: str  # label, or ``mean`` over the labels
    positives: int  # cases with it
    negatives: int  # cases without
    patients: int  # patients with a known case
    auroc: float  # as measured; NaN where a class is absent
    low: float  # lower end of its interval
    high: float  # upper end
    half_width: float  # half the length of that interval
    design_effect: float  # variance over that of as many independent cases; NaN where that is 0
    detectable: float  # smallest difference from a second model found with the power asked for
    note: str  # why something is NaN or rough


def resolution(
    df: pd.DataFrame,
    labels: Sequence[str],
    kind: str = "binary",
    how: str = "mean",
    levels: Sequence[str] = LEVELS,
    *,
    calibration: Calibration | None = None,
    correlation: float = CORRELATION,
    power: float = POWER,
    alpha: float = ALPHA,
) -> list[Resolution]:
    """What the test cases of a predictions table can resolve, per level and label.

    ``calibration`` is the run's: of exclusive classes its maps of series and patients change the order of cases.
    """
    check_test(0.5, 0.1, correlation, power, alpha)
    reach = _Reach(power, alpha, correlation)
    found: list[Resolution] = []
    for level in levels:
        units = aggregate(df, level, how, kind) if calibration is None else calibration.aggregate(df, level, how)
        y, p, who = label_array(units, labels), prob_array(units, labels), units["patient_id"].to_numpy()
        rows = [_of_label(level, label, y[:, j], p[:, j], who, reach) for j, label in enumerate(labels)]
        if len(labels) > 1:
            rows.append(_of_mean(level, y, p, who, reach))
        if [a._replace(level="") for a in rows] == [b._replace(level="") for b in found[-len(rows) :]]:
            joined = f"{found[-1].level} = {level}"
            del found[-len(rows) :]
            rows = [row._replace(level=joined) for row in rows]
        found += rows
    return found


def _of_label(level: str, label: str, y: Floats, p: Floats, who: npt.NDArray[Any], reach: _Reach) -> Resolution:
    known = ~np.isnan(y)
    y, p, who = y[known], p[known], who[known]
    positives = int(y.sum())
    counts = positives, len(y) - positives, len(np.unique(who))
    area = auroc_interval(y, p, who)
    note = ""
    if area.note:
        note = area.note
    elif not area.variance > NOTHING:
        note = "perfect separation: interval from the class sizes alone"
    elif (few := min(len(np.unique(who[y == c])) for c in (0, 1))) < FEW:
        note = f"a class comes from {few} patients: interval and design effect are rough"
    errors = reach.errors(degrees_of_freedom(y, codes(who, len(y))) if min(counts[:2]) else math.inf)
    return _resolved(level, label, counts, area, auroc_interval(y, p).variance, errors, reach.correlation, note)


def _of_mean(level: str, y: Floats, p: Floats, who: npt.NDArray[Any], reach: _Reach) -> Resolution:
    found = macro_auroc_covariance(y, p, who)
    area, note = found.interval(), found.note
    positives = int((y == 1).any(axis=1).sum())
    independent = float(macro_auroc_covariance(y, p).covariance[0, 0])
    counts = positives, found.n - positives, found.clusters
    return _resolved(level, "mean", counts, area, independent, reach.errors(found.df), reach.correlation, note)


def _resolved(
    level: str,
    label: str,
    counts: tuple[int, int, int],
    area: Auroc,
    independent: float,
    errors: float,
    correlation: float,
    note: str,
) -> Resolution:
    half = (area.high - area.low) / 2
    effect = area.variance / independent if independent > NOTHING else NAN
    # Without a variance the interval's own half-width stands for 1.96 standard errors.
    error = math.sqrt(area.variance) if area.variance > NOTHING else half / float(ndtri(0.5 + CONFIDENCE / 2))
    detectable = NAN
    if counts[0] and counts[1] and area.value == area.value:
        near = min(max(area.value, 0.5), 0.99), min(max(area.value, 0.5), 0.99)
        alike, alone = (area_covariance(*near, r, *counts[:2]) for r in (correlation, 1.0))
        detectable = errors * math.sqrt(2 * (1 - alike / alone)) * error
    return Resolution(level, label, *counts, area.value, area.low, area.high, half, effect, detectable, note)
