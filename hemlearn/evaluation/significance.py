"""Tests between classifiers, on patients: paired and unpaired AUROCs, proportions, intervals, folds; Holm; margins.

Every test gives the difference (first minus second) with its interval, the statistic, a two-sided p, and on how many
cases and patients it rests. What has no answer is NaN, and its note says why.

Sources: DeLong et al. 1988 and Obuchowski 1997 (paired AUROCs); McNemar 1947, with the interval of Newcombe 1998
(Statist. Med. 17:2635, method 10); Obuchowski 1998 (Statist. Med. 17:1495) for clustered pairs; Newcombe 1998 (Statist.
Med. 17:873) for independent proportions; Zou and Donner 2008 (Statist. Med. 27:1693), interval of a difference from two
intervals; Nadeau and Bengio 2003 (resampled t); Holm 1979; Piaggio et al. 2012, JAMA 308:2594 (non-inferiority).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from hemlearn.evaluation.auroc import (
    CONFIDENCE,
    NAN,
    Floats,
    Interval,
    codes,
    contrast,
    is_clustered,
    macro_auroc_covariance,
    obuchowski_covariance,
    variance_of_difference,
    wilson,
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


def quantile(confidence: float) -> float:
    """Standard errors on either side of an estimate: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: strictly between 0 and 1")
    return float(ndtri(0.5 + confidence / 2))


def two_sided(z: float) -> float:
    """Two-sided p of a standard normal statistic."""
    return float(2 * ndtr(-abs(z)))


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

    Independent cases: McNemar's exact binomial test on the discordant pairs and Newcombe's interval. Several cases per
    patient: Obuchowski's adjusted test, which sums the discordance within patients, and a ratio-estimator interval.
    Shapes: one, two (N,) whether each is right, cluster (N,).
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
        return Test("McNemar, exact", NAN, NAN, NAN, NAN, NAN, 0, 0, "no case", confidence)
    if groups < n:
        return _clustered_mcnemar(first, second, code, groups, confidence)
    from statsmodels.stats.contingency_tables import mcnemar as exact

    both, neither = float((first * second).sum()), float(((1 - first) * (1 - second)).sum())
    only_first, only_second = float((first > second).sum()), float((first < second).sum())
    p = float(exact([[both, only_first], [only_second, neither]], exact=True).pvalue)
    discordant = only_first + only_second
    statistic = (only_first - only_second) / math.sqrt(discordant) if discordant else 0.0
    low, high = _newcombe_paired(both, only_first, only_second, neither, confidence)
    note = f"discordant pairs {only_first:.0f}:{only_second:.0f}"
    difference = (only_first - only_second) / n
    return Test("McNemar, exact", difference, low, high, statistic, min(p, 1.0), n, groups, note, confidence)


def _newcombe_paired(both: float, first: float, second: float, neither: float, confidence: float) -> Interval:
    """Interval of the difference of two paired proportions: Wilson intervals joined with their correlation."""
    n = both + first + second + neither
    rates = (both + first) / n, (both + second) / n
    (low1, high1), (low2, high2) = (wilson(rate * n, n, confidence) for rate in rates)
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross
    phi = cross / math.sqrt(product) if product else 0.0

    def joined(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = rates[0] - rates[1]
    below = joined(rates[0] - low1, high2 - rates[1])
    above = joined(high1 - rates[0], rates[1] - low2)
    return Interval(difference - below, difference + above)


def _clustered_mcnemar(
    first: Floats, second: Floats, code: npt.NDArray[np.intp], groups: int, confidence: float
) -> Test:
    name, n = "McNemar, clustered by patient", len(first)
    sums = np.bincount(code, weights=first - second)
    sizes = np.bincount(code).astype(float)
    difference = float(sums.sum() / n)
    if groups < 2:
        return Test(name, difference, NAN, NAN, NAN, NAN, n, groups, "one patient: no variance", confidence)
    note = f"discordant pairs {int((first > second).sum())}:{int((first < second).sum())}"
    if groups < FEW_CLUSTERS:
        note += f"; only {count(groups, 'patient')}: p and interval are rough"
    scale = groups / (groups - 1) / n**2
    under_null = scale * float((sums**2).sum())
    reach = quantile(confidence) * math.sqrt(scale * float(((sums - sizes * difference) ** 2).sum()))
    z = difference / math.sqrt(under_null) if under_null > 0 else 0.0
    low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    if reach < 1e-12:  # the two never differ, or differ alike everywhere: a patient then counts as one case
        table = (first * second, first * (1 - second), (1 - first) * second, (1 - first) * (1 - second))
        both, one, other, neither = (float(cell.mean()) * groups for cell in table)
        low, high = _newcombe_paired(both, one, other, neither, confidence)
    return Test(name, difference, low, high, z, two_sided(z), n, groups, note, confidence)


def two_proportions(x1: int, n1: int, x2: int, n2: int, confidence: float = CONFIDENCE) -> Test:
    """Two independent proportions, such as a published accuracy and ours: score test and Newcombe's interval.

    Where a count expected under equality is below 5, Fisher's exact test gives the p.
    """
    for x, n in ((x1, n1), (x2, n2)):
        whole = all(isinstance(v, int | np.integer | float) and float(v).is_integer() for v in (x, n))
        if not whole or not 0 <= x <= n or n < 1:
            raise ConfigError(
                f"{x} of {n}: not a count of successes among trials",
                remedy="give whole numbers with 0 <= x <= n, such as 192 of 200",
            )
    from scipy.stats import fisher_exact
    from statsmodels.stats.proportion import confint_proportions_2indep

    first, second, pooled = x1 / n1, x2 / n2, (x1 + x2) / (n1 + n2)
    low, high = confint_proportions_2indep(x1, n1, x2, n2, compare="diff", method="newcomb", alpha=1 - confidence)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    z = (first - second) / spread if spread > 0 else 0.0
    note, p = "", two_sided(z)
    if min(pooled, 1 - pooled) * min(n1, n2) < 5:
        table = [[int(x1), int(n1 - x1)], [int(x2), int(n2 - x2)]]
        note, p = "small counts: Fisher's exact p", float(fisher_exact(table)[1])
    bounds, n = (float(low), float(high)), int(n1 + n2)
    return Test("two proportions", first - second, *bounds, z, min(p, 1.0), n, 0, note, confidence)


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

    DeLong's test where every patient has one case, Obuchowski's where some have several.
    Shapes: y (N,), scores (M, N), cluster (N,).
    """
    truth = np.asarray(y)
    areas, covariance = obuchowski_covariance(truth, scores, cluster)
    clustered = is_clustered(cluster, len(truth))
    code = codes(cluster, len(truth))
    sides = [len(np.unique(code[truth == c])) for c in (1, 0)]
    name = "Obuchowski, clustered by patient" if clustered else "DeLong"
    return _pairs(name, areas, covariance, _auroc_note(truth, sides), len(truth), len(np.unique(code)), confidence)


def paired_macro_matrix(
    y: npt.ArrayLike, scores: npt.ArrayLike, cluster: npt.ArrayLike | None = None, confidence: float = CONFIDENCE
) -> dict[tuple[int, int], Test]:
    """Every pair of M models by their macro AUROC over L labels (one-versus-rest for exclusive classes).

    Shapes: y (N, L), scores (M, N, L), cluster (N,).
    """
    truth = np.asarray(y, dtype=float)
    found = macro_auroc_covariance(truth, scores, cluster)
    labels = truth.shape[1]
    some = f"mean over {found.n_defined} of {count(labels, 'label')}: others lack a class"
    note = "" if found.n_defined == labels else some
    if found.n_defined and np.isnan(found.covariance).any():
        note = "; ".join(filter(None, [note, "a class of some label comes from a single patient: no variance"]))
    name = "macro AUROC, DeLong" + (", clustered by patient" if is_clustered(cluster, len(truth)) else "")
    return _pairs(name, found.macro, found.covariance, note, found.n, found.clusters, confidence)


def _auroc_note(y: npt.NDArray[np.generic], sides: Sequence[int]) -> str:
    for side, word in zip(sides, ("positive", "negative"), strict=True):
        if side == 0:
            return f"no {word} among {count(len(y), 'case')}: AUROC undefined"
        if side == 1:
            return f"every {word} case is of one patient: no variance"
    few = min(sides)
    return f"only {few} patients on one side: p and interval are rough" if few < FEW_CLUSTERS else ""


def _pairs(
    name: str, areas: Floats, covariance: Floats, note: str, n: int, clusters: int, confidence: float
) -> dict[tuple[int, int], Test]:
    z, found = quantile(confidence), {}
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
            found[i, j] = Test(name, test.difference, low, high, test.z, test.p, n, clusters, told, confidence)
    return found


def unpaired_auroc(
    area1: float,
    var1: float,
    area2: float,
    var2: float,
    confidence: float = CONFIDENCE,
    *,
    n: int = 0,
    clusters: int = 0,
) -> Test:
    """Two AUROCs from different patients, by their variances (DeLong's or Obuchowski's).

    Where one area is exactly 1 its variance is 0 and says nothing; :func:`difference_of_intervals` then serves.
    """
    difference, variance = area1 - area2, var1 + var2
    if not variance > 0:
        note = "no variance: an area is undefined, or both separate perfectly"
        return Test("unpaired AUROC", difference, NAN, NAN, NAN, NAN, n, clusters, note, confidence)
    spread = math.sqrt(variance)
    reach, z = quantile(confidence) * spread, difference / spread
    note = "an area without variance (perfect separation)" if min(var1, var2) <= 0 else ""
    low, high = difference - reach, difference + reach
    return Test("unpaired AUROC", difference, low, high, z, two_sided(z), n, clusters, note, confidence)


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
