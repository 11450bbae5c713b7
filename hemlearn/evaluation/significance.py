"""Tests between classifiers, on patients: paired and unpaired AUROCs, proportions, intervals, folds; Holm; margins.

Every test gives the difference (first minus second) with its interval, the statistic, a two-sided p, and on how many
cases and patients it rests. p and interval come from one statistic: the interval holds exactly the differences that
the test does not reject. What has no answer is NaN, and its note says why.

Sources: DeLong et al. 1988 and Obuchowski 1997 (paired AUROCs); McNemar 1947, whose test Tango's interval inverts
(Statist. Med. 17:891, 1998); Obuchowski 1998 (Statist. Med. 17:1495) for clustered pairs; Miettinen and Nurminen 1985
(Statist. Med. 4:213) for independent proportions; Welch 1947 (two samples); Zou and Donner 2008 (Statist. Med.
27:1693), interval of a difference from two intervals; Nadeau and Bengio 2003 (resampled t); Holm 1979; Piaggio et al.
2012, JAMA 308:2594 (non-inferiority).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import t as student

from hemlearn.evaluation.auroc import (
    CONFIDENCE,
    NAN,
    Floats,
    Interval,
    codes,
    contrast,
    degrees_of_freedom,
    is_clustered,
    macro_auroc_covariance,
    obuchowski_covariance,
    quantile,
    too_few,
    two_sided,
    variance_of_difference,
)
from hemlearn.util.errors import ConfigError, count

FEW_CLUSTERS = 20  # with fewer patients on a side, a normal reference distribution is rough


class Test(NamedTuple):
    """One comparison."""

    name: str  # what was done, such as ``DeLong``
    difference: float  # first minus second
    low: float  # lower end of the interval of the difference
    high: float  # upper end
    statistic: float  # z, or t of :func:`corrected_resampled`; NaN where there is none
    p: float  # two-sided
    n: int  # cases, or resamples, it rests on
    clusters: int  # patients among them; 0 where that does not apply
    note: str  # what a reader must know; empty where there is nothing
    confidence: float = CONFIDENCE  # coverage of the interval


Test.__test__ = False  # type: ignore[attr-defined]  # not a test case for pytest


def difference_of_intervals(
    first: tuple[float, float, float], second: tuple[float, float, float], confidence: float = CONFIDENCE
) -> Test:
    """Two independent estimates of anything, each given as (value, low, high), such as a published figure and ours.

    The interval joins the two by squares (Zou and Donner 2008), which keeps their asymmetry and works at 0 and 1. The p
    takes the arm that points to no difference as 1.96 standard errors.
    """
    for value, low, high in (first, second):
        if not (low <= value <= high) and value == value and low == low:
            raise ConfigError(
                f"value {value:g} lies outside its interval {low:g} to {high:g}",
                remedy="give value, low and high of the same figure, on the same scale",
            )
    (value1, low1, high1), (value2, low2, high2) = first, second
    difference = value1 - value2
    below, above = math.hypot(value1 - low1, high2 - value2), math.hypot(high1 - value1, value2 - low2)
    arm = below if difference > 0 else above
    z = difference / (arm / quantile(confidence)) if arm > 0 else NAN
    note = "" if difference == difference and below == below and above == above else "a figure has no interval"
    bounds, name = (difference - below, difference + above), "difference of independent estimates"
    return Test(name, difference, *bounds, z, two_sided(z), 0, 0, note, confidence)


def mcnemar(
    one: npt.ArrayLike, two: npt.ArrayLike, cluster: npt.ArrayLike | None = None, confidence: float = CONFIDENCE
) -> Test:
    """Paired accuracies of two classifiers (or sensitivities, on the positives alone).

    Independent cases: McNemar's test, which is the score test of no difference, and the interval that inverts it
    (Tango 1998). Several cases per patient: Obuchowski's adjusted test, which sums the discordance within patients, and
    the interval that inverts it. Shapes: one, two (N,) whether each is right, cluster (N,).
    """
    first, second = np.asarray(one, dtype=float), np.asarray(two, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"shapes {first.shape} and {second.shape}: expected two of (N,)")
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("calls hold values other than 0 and 1")
    n = len(first)
    code = codes(cluster, n)
    groups = len(np.unique(code))
    if n == 0:
        return Test("McNemar", NAN, NAN, NAN, NAN, NAN, 0, 0, "no case", confidence)
    if groups < n:
        return _clustered_mcnemar(first, second, code, groups, confidence)
    only_first, only_second = float((first > second).sum()), float((first < second).sum())
    bounds, z = _tango(only_first, only_second, n, confidence)
    note = f"discordant pairs {only_first:.0f}:{only_second:.0f}"
    difference = (only_first - only_second) / n
    return Test("McNemar", difference, *bounds, z, two_sided(z), n, groups, note, confidence)


def _inverted(z: Callable[[float], float], estimate: float, confidence: float) -> tuple[Interval, float]:
    """The differences that a score test does not reject, and its statistic at no difference; ``z`` falls."""
    reach, edge = quantile(confidence), 1 - 1e-12
    low, high = -1.0, 1.0
    if estimate > -edge and z(-edge) > reach:
        low = float(brentq(lambda d: z(d) - reach, -edge, estimate, xtol=1e-13))
    if estimate < edge and z(edge) < -reach:
        high = float(brentq(lambda d: z(d) + reach, estimate, edge, xtol=1e-13))
    return Interval(low, high), z(0.0)


def _tango(first: float, second: float, n: float, confidence: float) -> tuple[Interval, float]:
    """Interval and z of the difference of paired proportions, from the discordant pairs of either kind among n.

    At no difference z is McNemar's. Numbers may be fractional.
    """

    def z(d: float) -> float:
        b, c = (2 * n - first + second) * d - first - second, -second * d * (1 - d)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # of the second kind, given the difference
        spread = n * (2 * share + d * (1 - d))
        return _standardised(first - second - n * d, spread)

    return _inverted(z, (first - second) / n, confidence)


def _standardised(lead: float, variance: float) -> float:
    if variance > 1e-14:
        return lead / math.sqrt(variance)
    return 0.0 if abs(lead) < 1e-9 else math.copysign(math.inf, lead)


def _clustered_mcnemar(
    first: Floats, second: Floats, code: npt.NDArray[np.intp], groups: int, confidence: float
) -> Test:
    name, n = "McNemar, clustered by patient", len(first)
    code = np.unique(code, return_inverse=True)[1]
    sums, sizes = np.bincount(code, weights=first - second), np.bincount(code).astype(float)
    difference = float(sums.sum() / n)
    if groups < 2:
        return Test(name, difference, NAN, NAN, NAN, NAN, n, groups, "one patient: no variance", confidence)
    note = f"discordant pairs {int((first > second).sum())}:{int((first < second).sum())}"
    if groups < FEW_CLUSTERS:
        note += f"; only {count(groups, 'patient')}: p and interval are rough"
    scale = groups / (groups - 1) / n**2
    if scale * float(((sums - sizes * difference) ** 2).sum()) < 1e-24:
        # The two never differ, or differ alike everywhere: a patient then counts as one case.
        one, other = (float((side > 0).mean()) * groups for side in (first - second, second - first))
        bounds, z = _tango(one, other, groups, confidence)
        return Test(name, difference, *bounds, z, two_sided(z), n, groups, note, confidence)
    square, cross, size = (scale * float((a * b).sum()) for a, b in ((sums, sums), (sums, sizes), (sizes, sizes)))
    z = difference / math.sqrt(square) if square > 0 else 0.0
    # The differences d with (difference - d)^2 <= reach^2 x (variance of the sums were d true): a parabola in d.
    reach = quantile(confidence) ** 2
    a, b, c = 1 - reach * size, difference - reach * cross, difference**2 - reach * square
    root = math.sqrt(max(b * b - a * c, 0.0))
    low, high = -1.0, 1.0
    if a > 0:
        low, high = (b - root) / a, (b + root) / a
    elif c > 0:  # so few patients that the test rejects differences between two bounds alone, none among them
        low, high = (max(0.0, (b - root) / a), 1.0) if difference > 0 else (-1.0, min(0.0, (b + root) / a))
    low, high = max(-1.0, low), min(1.0, high)
    return Test(name, difference, low, high, z, two_sided(z), n, groups, note, confidence)


def two_proportions(x1: int, n1: int, x2: int, n2: int, confidence: float = CONFIDENCE) -> Test:
    """Two independent proportions, such as a published accuracy and ours: Miettinen and Nurminen's score test.

    The interval inverts the test, which at no difference is Pearson's chi-squared times (N - 1) / N.
    """
    for x, n in ((x1, n1), (x2, n2)):
        whole = all(isinstance(v, int | np.integer | float) and float(v).is_integer() for v in (x, n))
        if not whole or not 0 <= x <= n or n < 1:
            raise ConfigError(
                f"{x} of {n}: not a count of successes among trials",
                remedy="give whole numbers with 0 <= x <= n, such as 192 of 200",
            )
    total, difference = n1 + n2, x1 / n1 - x2 / n2

    def z(d: float) -> float:
        second = _restricted(x1, n1, x2, n2, d)
        first = min(max(second + d, 0.0), 1.0)
        variance = (first * (1 - first) / n1 + second * (1 - second) / n2) * total / (total - 1)
        return _standardised(difference - d, variance)

    bounds, statistic = _inverted(z, difference, confidence)
    p = two_sided(statistic)
    return Test("two proportions", difference, *bounds, statistic, p, int(total), 0, "", confidence)


def _restricted(x1: float, n1: float, x2: float, n2: float, d: float) -> float:
    """Most likely second proportion were the first larger by ``d``: a root of a cubic, by its trigonometric form."""
    total, hits = n1 + n2, x1 + x2
    l2, l1, l0 = (n1 + 2 * n2) * d - total - hits, (n2 * d - total - 2 * x2) * d + hits, x2 * d * (1 - d)
    third = l2 / (3 * total)
    q = third**3 - l1 * l2 / (6 * total**2) + l0 / (2 * total)
    r = math.copysign(math.sqrt(max(third**2 - l1 / (3 * total), 0.0)), q)
    angle = (math.pi + math.acos(max(-1.0, min(1.0, q / r**3 if r else 0.0)))) / 3
    return min(max(2 * r * math.cos(angle) - third, max(0.0, -d)), min(1.0, 1 - d))


# --- Over folds, repeated splits and seeds.


def corrected_resampled(
    differences: Sequence[float] | Floats, test_share: float | None, confidence: float = CONFIDENCE
) -> Test:
    """T test of two algorithms over splits (Nadeau and Bengio 2003) or, without ``test_share``, seeds of one split.

    Training sets of different folds share most of their patients, so the plain t test takes chance for a difference;
    the variance of the mean is (1 / k + test share) times the variance over k resamples, the share being that of test
    cases over training cases (5 folds: 0.25). Seeds of one split are independent trainings.
    """
    if test_share is not None and not 0 < test_share < math.inf:
        raise ValueError(f"test_share {test_share}: test cases over training cases, above 0")
    values = np.asarray(differences, dtype=float).reshape(-1)
    known = values[~np.isnan(values)]
    k, mean = len(known), float(known.mean()) if len(known) else NAN
    name, notes = "paired t over seeds", []
    if test_share is not None:
        name = "corrected resampled t"
        notes.append(f"variation over {k} training and test sets drawn from the same patients; not over new patients")
        if k < len(values):
            notes.append(f"{len(values) - k} undefined differences left out")
    low = high = statistic = p = NAN
    if k < 2:
        notes.append("fewer than two differences: no variance")
    elif np.ptp(known) == 0:
        notes.append("no difference varies")
        if mean == 0:
            low, high, statistic, p = 0.0, 0.0, 0.0, 1.0
    else:
        plain = float(known.std(ddof=1)) / math.sqrt(k)
        spread = plain if test_share is None else math.sqrt((1 / k + test_share) * float(known.var(ddof=1)))
        reach = float(student.ppf(0.5 + confidence / 2, k - 1)) * spread
        statistic, low, high = mean / spread, mean - reach, mean + reach
        p = float(2 * student.sf(abs(statistic), k - 1))
    return Test(name, mean, low, high, statistic, p, k, 0, "; ".join(notes), confidence)


# --- AUROCs.


def paired_auroc_matrix(
    y: npt.ArrayLike, scores: npt.ArrayLike, cluster: npt.ArrayLike | None = None, confidence: float = CONFIDENCE
) -> dict[tuple[int, int], Test]:
    """Every pair of M models on the same N cases, from one covariance.

    DeLong's test where every patient has one case; Obuchowski's, by the t distribution, where some have several.
    Shapes: y (N,), scores (M, N), cluster (N,).
    """
    truth = np.asarray(y)
    areas, covariance = obuchowski_covariance(truth, scores, cluster)
    code = codes(cluster, len(truth))
    sides = [len(np.unique(code[truth == c])) for c in (1, 0)]
    note = too_few(*sides)
    if note:
        covariance = np.full_like(covariance, NAN)
    elif min(sides) < FEW_CLUSTERS:
        note = f"only {min(sides)} patients on one side: p and interval are rough"
    name = "Obuchowski, clustered by patient" if is_clustered(cluster, len(truth)) else "DeLong"
    df = degrees_of_freedom(truth, code)
    return _pairs(name, areas, covariance, note, len(truth), len(np.unique(code)), df, confidence)


def paired_macro_matrix(
    y: npt.ArrayLike, scores: npt.ArrayLike, cluster: npt.ArrayLike | None = None, confidence: float = CONFIDENCE
) -> dict[tuple[int, int], Test]:
    """Every pair of M models by their macro AUROC over L labels (one-versus-rest for exclusive classes).

    Shapes: y (N, L), scores (M, N, L), cluster (N,).
    """
    truth = np.asarray(y, dtype=float)
    found = macro_auroc_covariance(truth, scores, cluster)
    name = "macro AUROC, DeLong" + (", clustered by patient" if is_clustered(cluster, len(truth)) else "")
    return _pairs(name, found.macro, found.covariance, found.note, found.n, found.clusters, found.df, confidence)


def _pairs(
    name: str, areas: Floats, covariance: Floats, note: str, n: int, clusters: int, df: float, confidence: float
) -> dict[tuple[int, int], Test]:
    z, found = quantile(confidence, df), {}
    for i in range(len(areas)):
        for j in range(i + 1, len(areas)):
            test = contrast(areas, covariance, i, j)
            reach = z * math.sqrt(max(variance_of_difference(covariance, i, j), 0.0))
            told = note
            if reach == 0:
                separable = areas[i] in (0.0, 1.0) or areas[j] in (0.0, 1.0)
                told = "perfect separation: the variance is 0" if separable else "both rank every case alike"
                told, reach = "; ".join(filter(None, [note, told])), NAN if separable else 0.0
            low, high = test.difference - reach, test.difference + reach
            p = two_sided(test.z, df)
            found[i, j] = Test(name, test.difference, low, high, test.z, p, n, clusters, told, confidence)
    return found


def auroc_contrasts(
    y: npt.ArrayLike,
    scores: npt.ArrayLike,
    weights: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> list[Test]:
    """Weighted sums of the AUROCs of M models on the same N cases, such as a difference of two means over models.

    The variance is that of the joint covariance of :func:`paired_auroc_matrix`; of several labels (2D ``y``) that of
    :func:`paired_macro_matrix`. The two-sided test is of a sum of 0.

    Shapes: y (N,) or (N, L), scores (M, N) or (M, N, L), weights (K, M), cluster (N,). Returns K tests.

    >>> y, scores = [0, 0, 0, 1, 1, 1], [[0.1, 0.4, 0.6, 0.5, 0.8, 0.9], [0.5, 0.2, 0.7, 0.3, 0.6, 0.8]]
    >>> one = auroc_contrasts(y, scores, [[1, -1]])[0]
    >>> two = paired_auroc_matrix(y, scores)[0, 1]
    >>> round(one.difference, 3), abs(one.p - two.p) < 1e-12, abs(one.low - two.low) < 1e-12
    (0.222, True, True)
    """
    truth, rows, sums = np.asarray(y, dtype=float), np.asarray(scores, dtype=float), np.asarray(weights, dtype=float)
    code = codes(cluster, len(truth))
    clustered = is_clustered(cluster, len(truth))
    if truth.ndim == 2:
        found = macro_auroc_covariance(truth, rows, cluster)
        areas, covariance, df, note = found.macro, found.covariance, found.df, found.note
        name = "macro AUROC, DeLong" + (", clustered by patient" if clustered else "")
        n = found.n
    else:
        areas, covariance = obuchowski_covariance(truth, rows, cluster)
        df, n = degrees_of_freedom(truth, code), len(truth)
        note = too_few(*(len(np.unique(code[truth == c])) for c in (1, 0)))
        covariance = np.full_like(covariance, NAN) if note else covariance
        name = "Obuchowski, clustered by patient" if clustered else "DeLong"
    made = []
    for row in sums:
        difference, variance = float(row @ areas), float(row @ covariance @ row)
        if variance <= 1e-15:  # both sides rank every case alike, or separate the classes
            told = "; ".join(filter(None, [note, "the variance is 0"]))
            made.append(Test(name, difference, NAN, NAN, NAN, NAN, n, len(np.unique(code)), told, confidence))
            continue
        z = difference / math.sqrt(variance)
        reach = quantile(confidence, df) * math.sqrt(variance)
        bounds = (difference - reach, difference + reach)
        made.append(Test(name, difference, *bounds, z, two_sided(z, df), n, len(np.unique(code)), note, confidence))
    return made


def unpaired_auroc(
    area1: float,
    var1: float,
    area2: float,
    var2: float,
    confidence: float = CONFIDENCE,
    *,
    df: tuple[float, float] = (math.inf, math.inf),
    n: int = 0,
    clusters: int = 0,
) -> Test:
    """Two AUROCs from different patients, by their variances (DeLong's or Obuchowski's) and Welch's t.

    ``df`` are the degrees of freedom of either variance: cases less 1, as pROC's ``roc.test(paired = FALSE)`` has them,
    or of patients with several cases :func:`~hemlearn.evaluation.auroc.degrees_of_freedom`.

    Where one area is exactly 1 its variance is 0 and says nothing; :func:`difference_of_intervals` then serves.
    """
    difference, variance = area1 - area2, var1 + var2
    if not variance > 0:
        note = "no variance: an area is undefined, or both separate perfectly"
        return Test("unpaired AUROC", difference, NAN, NAN, NAN, NAN, n, clusters, note, confidence)
    spread = math.sqrt(variance)
    welch = variance**2 / (var1**2 / df[0] + var2**2 / df[1]) if math.isfinite(min(df)) else math.inf
    reach, t = quantile(confidence, welch) * spread, difference / spread
    note = "an area without variance (perfect separation)" if min(var1, var2) <= 0 else ""
    low, high = difference - reach, difference + reach
    return Test("unpaired AUROC", difference, low, high, t, two_sided(t, welch), n, clusters, note, confidence)


# --- many comparisons, margins ------------------------------------------------------------------------------------


def holm(p: Sequence[float] | Floats) -> Floats:
    """Holm's step-down adjusted p of all comparisons made.

    An undefined comparison (NaN) stays NaN and is not counted as one.
    """
    values = np.asarray(p, dtype=float).reshape(-1)
    known = ~np.isnan(values)
    if not ((values[known] >= 0) & (values[known] <= 1)).all():
        raise ValueError(f"p values outside [0, 1]: {values[known]}")
    order = np.flatnonzero(known)[np.argsort(values[known])]
    adjusted = np.full(len(values), NAN)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


class NonInferiority(NamedTuple):
    """Whether the first is worse than the second by less than a margin."""

    non_inferior: bool | None  # the lower end of the interval lies above ``-margin``; None where there is no interval
    margin: float  # as stated beforehand, above 0
    low: float  # lower end of the two-sided interval of first minus second
    p: float  # one-sided, of a deficit of the whole margin; below (1 - confidence) / 2 exactly when ``non_inferior``


def non_inferiority(test: Test, margin: float, confidence: float = CONFIDENCE) -> NonInferiority:
    """Judge a comparison of figures of which more is better (AUROC, accuracy) against a margin stated beforehand.

    The lower arm of the test's interval is taken as its standard error, so that p and interval cannot disagree.
    ``margin`` is the largest deficit of the first that does not matter (0.02: two points of AUROC); ``confidence`` that
    of the two-sided interval: 0.95 makes it a one-sided test at 0.025.
    """
    if not (margin > 0 and math.isfinite(margin)):
        raise ConfigError(
            f"margin={margin}: a non-inferiority margin is a number above 0",
            remedy="state the largest loss that does not matter, such as 0.02 of AUROC",
        )
    if not math.isclose(test.confidence, confidence):
        raise ValueError(f"the test's interval has confidence {test.confidence}, not {confidence}")
    if test.low != test.low or test.difference != test.difference:
        return NonInferiority(None, margin, NAN, NAN)
    arm = (test.difference - test.low) / quantile(confidence)
    lead = test.difference + margin
    p = float(ndtr(-lead / arm)) if arm > 0 else float(lead <= 0)
    return NonInferiority(test.low > -margin, margin, test.low, p)
