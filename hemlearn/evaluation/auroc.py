"""Covariance of AUROCs where one patient has several cases, so that slices are not counted as independent.

DeLong's structural components are summed within a cluster first, and it is the clusters that vary. With one case per
cluster the covariance is DeLong's, to the last digit: Obuchowski's factors I / (I - 1) are then DeLong's, and the term
between a patient's positive and negative slices is empty.

Where patients have several cases the variance rests on few units of unequal size: a t distribution then takes the
place of the normal one, its degrees of freedom those of the class with fewer patients (:func:`degrees_of_freedom`).
Independent cases keep the normal distribution, as pROC has it: DeLong's test errs on the safe side there.

Sources: Obuchowski 1997, Biometrics 53:567 (clustered ROC data); DeLong, DeLong and Clarke-Pearson 1988.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import rankdata

from hemlearn.util.errors import count

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95
CHANCE, WEAK = 0.5, 0.8  # AUROC that says nothing, and below which pages and tables call a model weak
FEWEST = 3  # patients of either class that an interval or a test of a label needs
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
    method: str = ""  # delong | obuchowski | newcombe; empty without an interval
    note: str = ""  # why there is no interval


class PairedTest(NamedTuple):
    """Difference of two AUROCs on the same cases (first minus second), its z statistic and two-sided p."""

    difference: float
    z: float
    p: float


def quantile(confidence: float, df: float = math.inf) -> float:
    """Standard errors on either side of an estimate: 1.96 for 0.95, more with few degrees of freedom."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: strictly between 0 and 1")
    return float(ndtri(0.5 + confidence / 2) if df == math.inf else stdtrit(df, 0.5 + confidence / 2))


def two_sided(statistic: float, df: float = math.inf) -> float:
    """Two-sided p of a standard normal statistic, or of one that follows t."""
    return float(2 * (ndtr(-abs(statistic)) if df == math.inf else stdtr(df, -abs(statistic))))


def too_few(positives: int, negatives: int) -> str:
    """Why a label has no interval and no test; empty where it has patients enough.

    >>> too_few(2, 40)
    'positive cases of 2 patients only: no interval below 3'
    """
    for n, word in ((positives, "positive"), (negatives, "negative")):
        if not n:
            return f"no {word} case: undefined"
        if n < FEWEST:
            return f"{word} cases of {count(n, 'patient')} only: no interval below {FEWEST}"
    return ""


def effective(code: npt.NDArray[np.intp]) -> float:
    """Patients of equal weight that are worth as much as these: (sum s)^2 / sum s^2 of their numbers of cases s."""
    sizes = np.bincount(code).astype(float) if len(code) else np.zeros(1)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


def degrees_of_freedom(y: npt.ArrayLike, code: npt.NDArray[np.intp]) -> float:
    """Of an AUROC: effective patients of the class with fewer of them, less 1; infinite for independent cases.

    Shapes: y (N,), code (N,).
    """
    if len(np.unique(code)) == len(code):
        return math.inf
    truth = np.asarray(y)
    return max(min(effective(code[truth == c]) for c in (0, 1)) - 1, 1.0)


def wilson(successes: float, trials: float, confidence: float = CONFIDENCE, df: float = math.inf) -> Interval:
    """Wilson score interval of ``successes / trials``; NaN without trials.

    ``trials`` may be fractional (an effective sample size); with ``df`` the quantile is that of t.
    """
    if not trials > 0:
        return Interval(NAN, NAN)
    rate, square = successes / trials, quantile(confidence, df) ** 2 / trials
    centre = (rate + square / 2) / (1 + square)
    reach = math.sqrt(square * (rate * (1 - rate) + square / 4)) / (1 + square)
    # At 0 and at `trials` the bound is exact; rounding would leave 1 - 1e-16.
    return Interval(0.0 if successes == 0 else centre - reach, 1.0 if successes == trials else centre + reach)


def clustered_wilson(
    success: npt.ArrayLike, cluster: npt.ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Interval, float]:
    """Wilson interval of a proportion whose trials come in clusters (slices of a patient).

    The number of trials is divided by the design effect, the ratio of the between-cluster (ratio estimator) variance
    to the binomial one, never below 1. Where all trials agree that ratio is 0/0, and each cluster counts as one trial:
    fifty right slices of one patient are no more evidence about patients than one. In place of the normal quantile
    stands that of t with the effective patients less 1. Shapes: success (N,), cluster (N,).
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
    trials = float(groups) if binomial == 0 else n / max(1.0, between / binomial)
    df = max(effective(code) - 1, 1.0)
    # An effective number of trials is not whole: whether all agree is asked of the trials themselves.
    successes = trials if rate == 1 else float(rate * trials)
    return wilson(successes, trials, confidence, df), trials


def components(y: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """AUROCs and DeLong's structural components of M models on the same N cases.

    A component is the share of the other class that a case is ranked right against, ties one half.
    Shapes: y (N,), scores (M, N).
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


def logit_interval(area: float, variance: float, confidence: float = CONFIDENCE, df: float = math.inf) -> Interval:
    """Interval of an area strictly between 0 and 1, symmetric on the logit scale."""
    centre = math.log(area / (1 - area))
    reach = quantile(confidence, df) * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-max(-700.0, bound))) for bound in (centre - reach, centre + reach))
    return Interval(low, high)


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


NOTHING = 1e-15  # a variance that rounding makes
_SAME = 1e-12  # variance of a difference, relative to the variances of its parts, that is rounding alone


class ClusterSums(NamedTuple):
    """What one set of labels and M scores says about each of G clusters."""

    areas: Floats  # (M,) AUROCs
    positive: Floats  # (M, G) sums of (component - area) over a cluster's positives, over the number of positives
    negative: Floats  # (M, G) the same over its negatives
    with_positive: int  # number of clusters that hold a positive
    with_negative: int  # number of clusters that hold a negative
    clusters: int  # G, those without a case among them left out


def codes(cluster: npt.ArrayLike | None, n: int) -> npt.NDArray[np.intp]:
    """(n,) codes 0..G-1 of cluster identifiers; None makes every case its own cluster."""
    if cluster is None:
        return np.arange(n)
    names = np.asarray(cluster)
    if names.shape != (n,):
        raise ValueError(f"cluster has shape {names.shape}: expected ({n},)")
    return np.unique(names, return_inverse=True)[1].astype(np.intp)


def is_clustered(cluster: npt.ArrayLike | None, n: int) -> bool:
    """Whether some cluster holds more than one case."""
    return cluster is not None and len(np.unique(np.asarray(cluster))) < n


def _totals(values: Floats, code: npt.NDArray[np.intp], groups: int) -> Floats:
    """(M, G) sums of (M, N) values over the cases of each cluster."""
    return np.stack([np.bincount(code, weights=row, minlength=groups) for row in values])


def cluster_sums(
    y: npt.ArrayLike, scores: npt.ArrayLike, code: npt.NDArray[np.intp], groups: int | None = None
) -> ClusterSums:
    """Each cluster's pull on the AUROCs of M models. Shapes: y (N,), scores (M, N), code (N,)."""
    areas, v10, v01 = components(y, scores)
    positive = np.asarray(y) == 1
    groups = (int(code.max()) + 1 if len(code) else 0) if groups is None else groups
    with_positive, with_negative = (len(np.unique(code[side])) for side in (positive, ~positive))
    present = len(np.unique(code))
    m, n = v10.shape[1], v01.shape[1]
    if m == 0 or n == 0:
        empty = np.full((len(areas), groups), NAN)
        return ClusterSums(areas, empty, empty, with_positive, with_negative, present)
    pull10 = _totals((v10 - areas[:, None]) / m, code[positive], groups)
    pull01 = _totals((v01 - areas[:, None]) / n, code[~positive], groups)
    return ClusterSums(areas, pull10, pull01, with_positive, with_negative, present)


def obuchowski_covariance(
    y: npt.ArrayLike, scores: npt.ArrayLike, cluster: npt.ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """AUROCs of M models on the same N cases, and the covariance matrix of those AUROCs for clustered cases.

    Shapes: y (N,), scores (M, N), cluster (N,).
    """
    found = cluster_sums(y, scores, codes(cluster, np.size(y)))
    size = len(found.areas)
    if min(found.with_positive, found.with_negative) < 2:
        return found.areas, np.full((size, size), NAN)
    inside = found.positive @ found.negative.T  # a patient with both kinds of slices ties the two parts together
    covariance = (
        found.positive @ found.positive.T * _factor(found.with_positive)
        + found.negative @ found.negative.T * _factor(found.with_negative)
        + (inside + inside.T) * _factor(found.clusters)
    )
    return found.areas, covariance


def _factor(clusters: int) -> float:
    return clusters / (clusters - 1)


def auroc_interval(
    y: npt.ArrayLike, p: npt.ArrayLike, cluster: npt.ArrayLike | None = None, confidence: float = CONFIDENCE
) -> Auroc:
    """AUROC with its variance and an interval on the logit scale: the one that every command prints.

    The variance is DeLong's (1988) where every case is a patient of its own, Obuchowski's (1997), with the quantile of
    t, where patients have several. The logit keeps the bounds inside [0, 1] and covers better than the plain interval
    near 1 (2,000 simulated binormal sets, 30 positives and 170 negatives, true area 0.97: 0.92 against 0.86). Where the
    variance is 0 (separable or constant scores) :func:`newcombe` takes the patients that hold a class as its cases.

    All NaN where a class is absent; without an interval where a class has fewer than ``FEWEST`` patients.
    Shapes: y (N,), p (N,) finite, cluster (N,) or None where every case is its own.

    Examples:
        >>> found = auroc_interval([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.7, 0.9])
        >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
        (0.889, 0.261, 0.995)
    """
    areas, covariance = obuchowski_covariance(y, p, cluster)
    area, variance = float(areas[0]), float(covariance[0, 0])
    truth, code = np.asarray(y), codes(cluster, np.size(y))
    positives, negatives = (len(np.unique(code[truth == c])) for c in (1, 0))
    if note := too_few(positives, negatives):
        return Auroc(area, variance, NAN, NAN, note=note)
    if variance > NOTHING and 0 < area < 1:
        bounds = logit_interval(area, variance, confidence, degrees_of_freedom(truth, code))
        return Auroc(area, variance, *bounds, method_of(cluster, len(truth)))
    return Auroc(area, variance, *newcombe(area, positives, negatives, confidence), "newcombe")


def method_of(cluster: npt.ArrayLike | None, n: int) -> str:
    """Whose variance an AUROC of n cases has."""
    return "obuchowski" if is_clustered(cluster, n) else "delong"


def contrast(areas: Floats, covariance: Floats, i: int, j: int) -> PairedTest:
    """Test of area ``i`` against area ``j`` from their joint covariance, by the normal distribution."""
    difference = float(areas[i] - areas[j])
    variance = variance_of_difference(covariance, i, j)
    if difference != difference or variance != variance:
        return PairedTest(difference, NAN, NAN)
    if variance == 0:
        return PairedTest(difference, 0.0, 1.0) if abs(difference) < _SAME else PairedTest(difference, NAN, NAN)
    z = difference / math.sqrt(variance)
    return PairedTest(difference, z, two_sided(z))


def variance_of_difference(covariance: Floats, i: int, j: int) -> float:
    """Variance of estimate ``i`` minus estimate ``j``; exactly 0 where only rounding is left."""
    both = float(covariance[i, i] + covariance[j, j])
    variance = both - 2 * float(covariance[i, j])
    return 0.0 if variance <= _SAME * both else variance


class MacroAuroc(NamedTuple):
    """One-versus-rest AUROCs of M models on L labels and their mean over the defined labels."""

    macro: Floats  # (M,) mean over the labels that have a positive and a negative
    covariance: Floats  # (M, M) of ``macro``; NaN where a defined label has too few patients of a class
    areas: Floats  # (M, L) one-versus-rest areas, NaN where undefined
    each: Floats  # (L, M, M) covariance of the areas of each label
    n_defined: int  # labels that enter the mean
    n: int  # cases with a known label
    clusters: int  # patients among them
    pulls: Floats  # (M, G) each patient's pull on ``macro``, whose squares add up to the variances
    units: float  # effective patients of a label's rarer class, mean over the labels
    df: float  # degrees of freedom of the variance: one less, or infinite for one label of independent cases
    note: str  # why there is no variance, or on how many labels the mean rests

    def interval(self, confidence: float = CONFIDENCE, model: int = 0) -> Auroc:
        """The mean of one model's areas with its interval on the logit scale."""
        value, variance = float(self.macro[model]), float(self.covariance[model, model])
        if not (variance > NOTHING and 0 < value < 1):
            return Auroc(value, variance, NAN, NAN, note=self.note)
        method = "delong" if self.clusters == self.n else "obuchowski"
        return Auroc(value, variance, *logit_interval(value, variance, confidence, self.df), method, self.note)


def macro_auroc_covariance(y: npt.ArrayLike, scores: npt.ArrayLike, cluster: npt.ArrayLike | None = None) -> MacroAuroc:
    """One-versus-rest and macro AUROCs of M models with their covariance over patients.

    The labels share their cases, so their areas are correlated: each patient's pulls on all labels are added before
    they are squared. A single label without clusters gives DeLong's variance; with clusters it differs from
    :func:`obuchowski_covariance` in the small-sample factor of the term between a patient's positives and negatives
    (geometric mean of the two instead of I / (I - 1)), which keeps the joint covariance positive semidefinite.

    Degrees of freedom: the mean over the labels of the effective patients of each one's rarer class, less 1. All
    patients would be too many, since the rare labels carry most of the variance; those of the rarest label alone too
    few (simulated: experiments/benchmarks/README.md).
    Shapes: y (N, L), scores (M, N, L), cluster (N,).
    """
    truth, rows = np.asarray(y, dtype=float), np.asarray(scores, dtype=float)
    rows = rows[None] if rows.ndim == 2 else rows
    if truth.ndim != 2 or rows.shape[1:] != truth.shape:
        raise ValueError(f"y has shape {truth.shape}, scores {rows.shape}: expected (N, L) and (M, N, L)")
    code = codes(cluster, len(truth))
    groups = int(code.max()) + 1 if len(code) else 0
    models, labels = len(rows), truth.shape[1]
    areas, each = np.full((models, labels), NAN), np.full((labels, models, models), NAN)
    pull, known_rows, defined = np.zeros((models, groups)), ~np.isnan(truth).all(axis=1), 0
    notes, units = [], []
    for j in range(labels):
        known = ~np.isnan(truth[:, j])
        found = cluster_sums(truth[known, j], rows[:, known, j], code[known], groups)
        areas[:, j] = found.areas
        if np.isnan(found.areas).any():
            continue
        defined += 1
        if why := too_few(found.with_positive, found.with_negative):
            notes.append(f"label {j + 1}: {why}" if labels > 1 else why)
            continue
        positive = truth[known, j] == 1
        units.append(min(effective(code[known][side]) for side in (positive, ~positive)))
        own = found.positive * math.sqrt(_factor(found.with_positive))
        own += found.negative * math.sqrt(_factor(found.with_negative))
        each[j] = own @ own.T
        pull += own
    macro, covariance = np.full(models, NAN), np.full((models, models), NAN)
    if defined:
        macro, pull = np.nansum(areas, axis=1) / defined, pull / defined
    if defined and not notes:
        covariance = pull @ pull.T
    n, patients = int(known_rows.sum()), len(np.unique(code[known_rows]))
    mean = float(np.mean(units or [0.0]))
    df = math.inf if labels == 1 and n == patients else max(mean - 1, 1.0)
    if defined < labels:
        notes.insert(0, f"mean over {defined} of {count(labels, 'label')}: others lack a class")
    return MacroAuroc(macro, covariance, areas, each, defined, n, patients, pull, mean, df, "; ".join(notes))
