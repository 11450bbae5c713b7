"""Tests between classifiers: paired and unpaired, on patients, with their intervals and the correction for many.

Every test tells what it compared, the difference (first minus second) with its interval, the statistic, a two-sided p,
and on how many cases and patients it rests. What has no answer is NaN, and its note says why. The tests of proportions
are those of :mod:`hemlearn.evaluation.proportions`, those over folds of :mod:`hemlearn.evaluation.proportions`.

Sources: DeLong et al. 1988 and Obuchowski 1997 (paired AUROCs); Holm 1979; Piaggio et al. 2012, JAMA 308:2594
(non-inferiority).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from hemlearn.evaluation.auroc import (
    CONFIDENCE,
    NAN,
    Floats,
    codes,
    contrast,
    is_clustered,
    macro_auroc_covariance,
    obuchowski_covariance,
    variance_of_difference,
)
from hemlearn.evaluation.proportions import (
    FEW_CLUSTERS,
    Spread,
    Test,
    corrected_resampled,
    difference_of_intervals,
    mcnemar,
    over_runs,
    quantile,
    two_proportions,
    two_sided,
)
from hemlearn.util.errors import ConfigError

__all__ = [
    "NonInferiority",
    "Spread",
    "Test",
    "corrected_resampled",
    "difference_of_intervals",
    "holm",
    "macro_auroc_covariance",
    "mcnemar",
    "non_inferiority",
    "over_runs",
    "paired_auroc_matrix",
    "paired_macro_matrix",
    "two_proportions",
    "unpaired_auroc",
]


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
    note = "" if found.n_defined == labels else f"mean over {found.n_defined} of {labels} labels: others lack a class"
    if found.n_defined and np.isnan(found.covariance).any():
        note = "; ".join(filter(None, [note, "a class of some label comes from a single patient: no variance"]))
    name = "macro AUROC, DeLong" + (", clustered by patient" if is_clustered(cluster, len(truth)) else "")
    return _pairs(name, found.macro, found.covariance, note, found.n, found.clusters, confidence)


def _auroc_note(y: npt.NDArray[np.generic], sides: Sequence[int]) -> str:
    for side, word in zip(sides, ("positive", "negative"), strict=True):
        if side == 0:
            return f"no {word} among {len(y)} cases: AUROC undefined"
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
    adjusted = np.full(len(values), NAN)
    if known.any():
        from statsmodels.stats.multitest import multipletests

        adjusted[known] = multipletests(values[known], method="holm")[1]
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

    Args:
        test: First minus second, its interval at ``confidence``.
        margin: Largest deficit of the first that does not matter, above 0 (0.02: two points of AUROC).
        confidence: Of the two-sided interval; 0.95 makes it a one-sided test at 0.025.

    Raises:
        ConfigError: The margin is not a number above 0.
        ValueError: The test's interval has another confidence.
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
