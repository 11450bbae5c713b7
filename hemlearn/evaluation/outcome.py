"""The outcome of one comparison, and the normal quantiles that every test shares."""

from __future__ import annotations

from typing import NamedTuple

from scipy.special import ndtr, ndtri

from hemlearn.evaluation.statistics import CONFIDENCE

FEW_CLUSTERS = 20  # with fewer patients on a side, a normal reference distribution is rough


class Test(NamedTuple):
    """One comparison.

    Attributes:
        name: What was done, such as ``DeLong``.
        difference: First minus second.
        low: Lower end of the interval of the difference.
        high: Upper end.
        statistic: z, or t of :func:`corrected_resampled`; NaN where there is none.
        p: Two-sided.
        n: Cases, or resamples, it rests on.
        clusters: Patients among them; 0 where that does not apply.
        note: What a reader must know; empty where there is nothing.
        confidence: Coverage of the interval.
    """

    name: str
    difference: float
    low: float
    high: float
    statistic: float
    p: float
    n: int
    clusters: int
    note: str
    confidence: float = CONFIDENCE


Test.__test__ = False  # type: ignore[attr-defined]  # not a test case for pytest


def quantile(confidence: float) -> float:
    """Standard errors on either side of an estimate: 1.96 for 0.95.

    Raises:
        ValueError: ``confidence`` is not strictly between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: strictly between 0 and 1")
    return float(ndtri(0.5 + confidence / 2))


def two_sided(z: float) -> float:
    """Two-sided p of a standard normal statistic."""
    return float(2 * ndtr(-abs(z)))
