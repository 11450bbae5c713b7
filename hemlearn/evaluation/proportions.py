"""Comparisons of proportions and of published figures: McNemar, two proportions, two intervals.

Sources: McNemar 1947, with the interval of Newcombe 1998 (Statist. Med. 17:2635, method 10); Obuchowski 1998 (Statist.
Med. 17:1495) for clustered pairs; Newcombe 1998 (Statist. Med. 17:873) for independent proportions; Zou and Donner 2008
(Statist. Med. 27:1693), interval of a difference from two intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats, Interval, codes, wilson
from hemlearn.util.errors import ConfigError

# --- The outcome of one comparison, and the normal quantiles that every test shares.


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
    return Test(
        "difference of independent estimates",
        difference,
        difference - below,
        difference + above,
        z,
        two_sided(z),
        0,
        0,
        note,
        confidence,
    )


def mcnemar(
    right_first: npt.ArrayLike,
    right_second: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    confidence: float = CONFIDENCE,
) -> Test:
    """Paired accuracies of two classifiers (or sensitivities, on the positives alone).

    Independent cases: McNemar's exact binomial test on the discordant pairs and Newcombe's interval. Several cases per
    patient: Obuchowski's adjusted test, which sums the discordance within patients, and a ratio-estimator interval.
    Shapes: right_first (N,), right_second (N,), cluster (N,).
    """
    first, second = np.asarray(right_first, dtype=float), np.asarray(right_second, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"shapes {first.shape} and {second.shape}: expected two of (N,)")
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("right_first and right_second hold values other than 0 and 1")
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
        note += f"; only {groups} patients: p and interval are rough"
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
    return Test(
        "two proportions", first - second, float(low), float(high), z, min(p, 1.0), int(n1 + n2), 0, note, confidence
    )


# --- Intervals and tests over folds, repeated splits and seeds, which say what variation they cover.


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
    """A metric over the runs of one configuration."""

    mean: float  # over the runs in which it is defined
    low: float  # lower end of the interval of the mean
    high: float  # upper end
    sd: float  # standard deviation over those runs
    n: int  # runs that define it
    undefined: int  # runs that do not
    covers: str  # which variation the interval speaks of


def over_runs(
    values: Sequence[float] | Floats, test_share: float | None = None, confidence: float = CONFIDENCE
) -> Spread:
    """Mean of a metric over folds or seeds, with the interval that their dependence allows."""
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
