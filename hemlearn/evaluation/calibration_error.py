"""How far probabilities are from frequencies: calibration error, the parts of the Brier score, reliability curves.

All three cut the sorted probabilities into bins of equal mass, equal probabilities staying together.

Sources: Naeini, Cooper and Hauskrecht 2015 (expected calibration error); Murphy 1973 (reliability, resolution and
uncertainty); Stephenson, Coelho and Jolliffe 2008, Weather and Forecasting 23:752 (what is left inside the bins).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats, clustered_wilson
from hemlearn.evaluation.bootstrap import BINS, brier_terms, equal_mass_bins


class BrierParts(NamedTuple):
    """The Brier score and its parts: ``brier = reliability - resolution + uncertainty + within_bin``, exactly."""

    brier: float  # mean squared difference of probability and label
    reliability: float  # mean squared difference of a bin's mean probability and its observed rate; 0 is perfect
    resolution: float  # mean squared difference of a bin's observed rate and the overall rate; more is better
    uncertainty: float  # variance of the label, which no model changes
    within_bin: float  # what the bins hide


class ReliabilityBin(NamedTuple):
    """One point of a reliability curve."""

    mean_p: float  # mean probability
    observed: float  # share of positives
    low: float  # lower end of the interval of that share; NaN where one patient alone fills the bin
    high: float  # upper end
    n: int  # cases
    clusters: int  # patients


def _cases(y: npt.ArrayLike, p: npt.ArrayLike, bins: int) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    truth, prob = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    if truth.shape != prob.shape or truth.ndim != 1:
        raise ValueError(f"y has shape {truth.shape}, p {prob.shape}: expected two of (N,)")
    if bins < 1:
        raise ValueError(f"bins {bins}: at least 1")
    if not ((prob >= 0) & (prob <= 1)).all():
        raise ValueError("p holds values outside [0, 1], or NaN")
    known = ~np.isnan(truth)
    truth, prob = truth[known], prob[known]
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("y holds values other than 0, 1 and NaN")
    return truth, prob, equal_mass_bins(prob, bins)


def ece(y: npt.ArrayLike, p: npt.ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal mass: mean of abs(mean probability - observed rate).

    Shapes: y (N,), p (N,).
    """
    truth, prob, code = _cases(y, p, bins)
    return float(np.abs(np.bincount(code, weights=prob - truth)).sum() / len(truth)) if len(truth) else NAN


def brier_parts(y: npt.ArrayLike, p: npt.ArrayLike, bins: int = BINS) -> BrierParts:
    """The Brier score and its decomposition over bins of equal mass. Shapes: y (N,), p (N,)."""
    truth, prob, code = _cases(y, p, bins)
    cases, predicted, positive = (
        np.bincount(code, weights=v, minlength=bins)[None].astype(float) for v in (np.ones_like(truth), prob, truth)
    )
    brier = np.array([((prob - truth) ** 2).mean() if len(truth) else NAN])
    parts = brier_terms(brier, cases, predicted, positive)
    return BrierParts(float(brier[0]), *(float(parts[name][0]) for name in parts))


def reliability_curve(
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    bins: int = BINS,
    confidence: float = CONFIDENCE,
) -> list[ReliabilityBin]:
    """Observed against predicted rate per bin of equal mass, with Wilson intervals clustered by patient.

    Shapes: y (N,), p (N,), cluster (N,).
    """
    truth, prob, code = _cases(y, p, bins)
    who = np.arange(np.size(y)) if cluster is None else np.asarray(cluster)
    if who.shape != np.shape(y):
        raise ValueError(f"cluster has shape {who.shape}: expected {np.shape(y)}")
    who = who[~np.isnan(np.asarray(y, dtype=float))]
    found = []
    for number in np.unique(code):
        inside = code == number
        (low, high), _ = clustered_wilson(truth[inside], who[inside], confidence)
        found.append(
            ReliabilityBin(
                float(prob[inside].mean()),
                float(truth[inside].mean()),
                low,
                high,
                int(inside.sum()),
                len(np.unique(who[inside])),
            )
        )
    return found
