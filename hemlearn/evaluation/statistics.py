"""Closed-form statistics: intervals of proportions, DeLong's covariance of AUROCs, and what clustering does to them.

Every function returns NaN where a statistic is not defined (no positive, no negative, no row); none of them guesses.

Sources: Wilson 1927 (interval of a proportion); Rao and Scott 1992 (design effect of clustered proportions);
DeLong, DeLong and Clarke-Pearson 1988 with the O(n log n) algorithm of Sun and Xu 2014; Newcombe 2006, method 5
(interval of an AUROC that stays sensible at 0 and 1).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95
NAN = math.nan


class Interval(NamedTuple):
    """A two-sided confidence interval; NaN where it is not defined."""

    low: float
    high: float


class Auroc(NamedTuple):
    """An area under the ROC curve with its DeLong variance and interval."""

    value: float
    variance: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """Difference of two AUROCs on the same cases (first minus second), its z statistic and two-sided p."""

    difference: float
    z: float
    p: float


def wilson(successes: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson score interval of ``successes / trials``; NaN without trials.

    ``trials`` may be fractional (an effective sample size).
    """
    from statsmodels.stats.proportion import proportion_confint

    if not trials > 0:
        return Interval(NAN, NAN)
    low, high = proportion_confint(successes, trials, alpha=1 - confidence, method="wilson")
    # At 0 and at `trials` the bound is exact; rounding would leave 1 - 1e-16.
    return Interval(0.0 if successes == 0 else float(low), 1.0 if successes == trials else float(high))


def clustered_wilson(
    success: npt.ArrayLike, cluster: npt.ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Interval, float]:
    """Wilson interval of a proportion whose trials come in clusters (slices of a patient).

    The number of trials is divided by the design effect, the ratio of the between-cluster (ratio estimator) variance
    to the binomial one, never below 1. Where all trials agree that ratio is 0/0, and each cluster counts as one trial:
    fifty right slices of one patient are no more evidence about patients than one.

    Args:
        success: (N,) booleans or 0/1.
        cluster: (N,) identifiers.
        confidence: Coverage aimed at.

    Returns:
        The interval and the effective number of trials. With a single cluster of several trials the variance between
        clusters is unknown, and the interval is NaN.
    """
    hit = np.asarray(success, dtype=float)
    _, code = np.unique(np.asarray(cluster), return_inverse=True)
    n, groups = len(hit), int(code.max()) + 1 if len(code) else 0
    if n == groups:
        return wilson(float(hit.sum()), n, confidence), float(n)
    if groups < 2:
        return Interval(NAN, NAN), NAN
    sums, sizes = np.bincount(code, weights=hit), np.bincount(code).astype(float)
    rate = hit.mean()
    between = groups / (groups - 1) * float(((sums - rate * sizes) ** 2).sum()) / n**2
    binomial = rate * (1 - rate) / n
    effective = float(groups) if binomial == 0 else n / max(1.0, between / binomial)
    return wilson(float(rate * effective), effective, confidence), effective


def components(y: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """AUROCs and DeLong's structural components of M models on the same N cases.

    A component is the share of the other class that a case is ranked right against, ties one half.

    Args:
        y: (N,) labels 0 or 1, of m positives and n negatives.
        scores: (M, N) or (N,) finite scores, higher meaning positive.

    Returns:
        (M,) areas, (M, m) components of the positives and (M, n) of the negatives, both in the order of ``y``; NaN when
        one class is absent.

    Raises:
        ValueError: Shapes disagree, a label is neither 0 nor 1, or a score is not finite.
    """
    truth = np.asarray(y)
    rows = np.atleast_2d(np.asarray(scores, dtype=float))
    if truth.ndim != 1 or rows.shape[1] != len(truth):
        raise ValueError(f"y has shape {truth.shape}, scores {rows.shape}: expected (N,) and (M, N)")
    if not np.isfinite(rows).all():
        raise ValueError("scores hold NaN or infinity")
    positive = truth == 1
    if not (positive | (truth == 0)).all():
        raise ValueError("y holds values other than 0 and 1")
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        return np.full(len(rows), NAN), np.full((len(rows), m), NAN), np.full((len(rows), n), NAN)
    high, low = rows[:, positive], rows[:, ~positive]
    # A rank among all minus the rank inside one's own class counts the other class below (ties one half).
    joint = rankdata(np.concatenate([high, low], axis=1), axis=1)
    v10 = (joint[:, :m] - rankdata(high, axis=1)) / n
    v01 = 1.0 - (joint[:, m:] - rankdata(low, axis=1)) / m
    return v10.mean(axis=1), v10, v01


def delong_covariance(y: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """AUROCs of M models on the same N cases, and the covariance matrix of those AUROCs.

    Args:
        y: (N,) labels 0 or 1.
        scores: (M, N) or (N,) finite scores, higher meaning positive.

    Returns:
        (M,) areas and their (M, M) covariance. All NaN when one class is absent; the covariance alone is NaN when a
        class has a single case.

    Raises:
        ValueError: Shapes disagree, a label is neither 0 nor 1, or a score is not finite.
    """
    areas, v10, v01 = components(y, scores)
    m, n = v10.shape[1], v01.shape[1]
    if m < 2 or n < 2:
        return areas, np.full((len(areas), len(areas)), NAN)
    covariance = np.cov(v10).reshape(len(areas), -1) / m + np.cov(v01).reshape(len(areas), -1) / n
    return areas, covariance


def newcombe(area: float, positives: float, negatives: float, confidence: float = CONFIDENCE) -> Interval:
    """Score-type interval of an AUROC from its value and the class sizes alone (Newcombe 2006, method 5).

    It inverts Hanley and McNeil's variance under exponential scores, so that it keeps a width at areas of 0 and 1,
    where DeLong's variance is 0.
    """
    if not (positives > 0 and negatives > 0 and area == area):
        return Interval(NAN, NAN)
    z = float(ndtri(0.5 + confidence / 2))
    half = (positives + negatives) / 2 - 1

    def spread(a: float) -> float:
        variance = a * (1 - a) * (1 + half * ((1 - a) / (2 - a) + a / (1 + a))) / (positives * negatives)
        return z * math.sqrt(max(variance, 0.0))

    edge = 1e-12
    low = 0.0 if area <= edge else float(brentq(lambda a: area - a - spread(a), 0.0, min(area, 1 - edge)))
    high = 1.0 if area >= 1 - edge else float(brentq(lambda a: a - area - spread(a), max(area, edge), 1.0))
    return Interval(low, high)


def auroc_delong(y: npt.ArrayLike, p: npt.ArrayLike, confidence: float = CONFIDENCE) -> Auroc:
    """AUROC with DeLong's variance and an interval on the logit scale.

    The logit keeps the bounds inside [0, 1] and covers better than the plain interval near 1 (2,000 simulated binormal
    sets, 30 positives and 170 negatives, true area 0.97: 0.92 against 0.86). Where the variance is 0 (separable or
    constant scores) or undefined (a class with one case), :func:`newcombe` gives the interval.

    Args:
        y: (N,) labels 0 or 1.
        p: (N,) finite scores.
        confidence: Coverage aimed at.

    Raises:
        ValueError: See :func:`delong_covariance`.
    """
    areas, covariance = delong_covariance(y, p)
    area, variance = float(areas[0]), float(covariance[0, 0])
    if area != area:
        return Auroc(NAN, NAN, NAN, NAN)
    if not variance > 1e-15 or not 0 < area < 1:
        positives = int((np.asarray(y) == 1).sum())
        return Auroc(area, variance, *newcombe(area, positives, np.size(y) - positives, confidence))
    return Auroc(area, variance, *logit_interval(area, variance, confidence))


def logit_interval(area: float, variance: float, confidence: float = CONFIDENCE) -> Interval:
    """Interval of an area strictly between 0 and 1, symmetric on the logit scale."""
    centre = math.log(area / (1 - area))
    reach = float(ndtri(0.5 + confidence / 2)) * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-max(-700.0, bound))) for bound in (centre - reach, centre + reach))
    return Interval(low, high)


def delong_test(y: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike) -> PairedTest:
    """Two-sided test that two scores of the same cases have one AUROC.

    Identical scores give z = 0 and p = 1. A difference without variance (both separable in opposite directions)
    has no test: z and p are NaN.
    """
    areas, covariance = delong_covariance(y, np.stack([np.asarray(first, float), np.asarray(second, float)]))
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if difference != difference or variance != variance:
        return PairedTest(difference, NAN, NAN)
    if variance <= 1e-15:
        return PairedTest(difference, 0.0, 1.0) if abs(difference) < 1e-12 else PairedTest(difference, NAN, NAN)
    z = difference / math.sqrt(variance)
    return PairedTest(difference, z, float(2 * ndtr(-abs(z))))


def roc_points(y: npt.ArrayLike, p: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Corners of the ROC curve from (0, 0) to (1, 1): false and true positive rates, equal scores in one step."""
    truth, score = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    true, false = np.cumsum(truth)[last], np.cumsum(1 - truth)[last]
    return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])


def none_if_nan(value: Any) -> Any:
    """JSON's null for NaN."""
    return None if isinstance(value, float) and value != value else value
