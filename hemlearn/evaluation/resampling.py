"""Patient-clustered, stratified bootstrap of any metric, and of the difference of two models in it.

The metrics of :class:`~hemlearn.evaluation.bootstrap.LabelCases` are named and evaluated for a block of replicates at
once; any other is a function of labels and probabilities and is called once per replicate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats, codes
from hemlearn.evaluation.bootstrap import (
    BRIER_PARTS,
    COUNTED,
    RANKED,
    REPLICATES,
    LabelCases,
    block_size,
    draws,
    percentile,
    strata_of,
    units_of,
)
from hemlearn.evaluation.proportions import FEW_CLUSTERS, Test

Metric = str | Callable[[Floats, Floats], float]
NAMED = (*COUNTED, *RANKED, *BRIER_PARTS)


class Estimate(NamedTuple):
    """A metric with its bootstrap interval.

    Attributes:
        value: On the cases themselves.
        low: Lower end; NaN where resampling tells nothing (one patient, no variation, mostly undefined).
        high: Upper end.
        n: Cases.
        clusters: Patients.
        undefined: Replicates in which the metric was undefined.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    undefined: int


def _replicates(
    metric: Metric,
    y: Floats,
    models: list[Floats],
    calls: list[npt.NDArray[np.bool_]],
    code: npt.NDArray[np.intp],
    replicates: int,
    seed: int,
) -> Floats:
    """(M, 1 + R) values of each model: on the cases themselves, then in each replicate, the same draws for all."""
    groups = int(code.max()) + 1 if len(code) else 0
    if isinstance(metric, str) and metric not in NAMED:
        raise ValueError(f"metric {metric!r}: expected a function or one of {', '.join(NAMED)}")
    cases = [LabelCases.build(y, p, called, code, groups) for p, called in zip(models, calls, strict=True)]

    def values(weights: Floats) -> Floats:
        if isinstance(metric, str):
            return np.stack([case.values(weights, metric in RANKED)[metric] for case in cases])
        found = np.empty((len(models), len(weights)))
        for r, weight in enumerate(weights[:, code].astype(np.intp)):
            rows = np.repeat(np.arange(len(y)), weight)
            found[:, r] = [metric(y[rows], p[rows]) for p in models]
        return found

    parts = [values(np.ones((1, groups)))]
    if groups > 1:
        size = block_size(max(len(y), groups))
        parts += [values(w) for w in draws(strata_of(y[:, None], code), replicates, seed, size)]
    return np.concatenate(parts, axis=1)


def _prepare(
    y: npt.ArrayLike, models: list[npt.ArrayLike], calls: list[npt.ArrayLike | None], cluster: npt.ArrayLike | None
) -> tuple[Floats, list[Floats], list[npt.NDArray[np.bool_]], npt.NDArray[np.intp]]:
    truth, probs = np.asarray(y, dtype=float), [np.asarray(p, dtype=float) for p in models]
    if truth.ndim != 1 or any(p.shape != truth.shape for p in probs):
        raise ValueError(f"y has shape {truth.shape}, p {[p.shape for p in probs]}: expected (N,)")
    if not all(np.isfinite(p).all() for p in probs):
        raise ValueError("p holds NaN or infinity")
    known = ~np.isnan(truth)
    if not np.isin(truth[known], (0, 1)).all():
        raise ValueError("y holds values other than 0, 1 and NaN")
    code = codes(cluster, len(truth))[known]
    called = [p >= 0.5 if c is None else np.asarray(c, dtype=bool) for p, c in zip(probs, calls, strict=True)]
    code = np.unique(code, return_inverse=True)[1].astype(np.intp)
    return truth[known], [p[known] for p in probs], [c[known] for c in called], code


def _units(metric: Metric, y: Floats, code: npt.NDArray[np.intp]) -> float:
    """Patients on which the spread rests; of a function nothing is known, so the rarer class counts."""
    return units_of(metric if isinstance(metric, str) else "auroc", y, code)


def bootstrap_metric(
    metric: Metric,
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    *,
    decision: npt.ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A metric with its percentile interval over patients.

    Args:
        metric: Name in ``NAMED``, or a function of labels and probabilities that returns NaN where it is undefined.
        y: (N,) labels 0, 1 or NaN (left out).
        p: (N,) probabilities.
        cluster: (N,) patients; None where cases are independent.
        decision: (N,) calls, for metrics that need them; None calls from 0.5.
        replicates: How many.
        seed: Of the draws.
        confidence: Of the interval.

    Raises:
        ValueError: An unknown name, shapes disagree, or a value out of range.
    """
    truth, models, calls, code = _prepare(y, [p], [decision], cluster)
    values = _replicates(metric, truth, models, calls, code, replicates, seed)[0]
    point, drawn = float(values[0]), values[1:]
    shift = isinstance(metric, str) and metric in ("ece", *BRIER_PARTS[:2])
    low, high = percentile(drawn, point, shift_bias=shift, confidence=confidence, units=_units(metric, truth, code))
    return Estimate(point, low, high, len(truth), len(np.unique(code)), int(np.isnan(drawn).sum()))


def bootstrap_difference(
    metric: Metric,
    y: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    cluster: npt.ArrayLike | None = None,
    *,
    decisions: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Test:
    """Paired difference of two models in any metric, first minus second, on the same draws of patients.

    The p is twice the smaller share of replicates on one side of 0, never below 2 / (replicates + 1).

    Args:
        metric: As in :func:`bootstrap_metric`.
        y: (N,) labels 0, 1 or NaN (left out).
        first: (N,) probabilities.
        second: (N,) probabilities.
        cluster: (N,) patients; None where cases are independent.
        decisions: Calls of both, for metrics that need them; None calls from 0.5.
        replicates: How many.
        seed: Of the draws.
        confidence: Of the interval.

    Raises:
        ValueError: An unknown name, shapes disagree, or a value out of range.
    """
    asked = (None, None) if decisions is None else decisions
    truth, models, calls, code = _prepare(y, [first, second], list(asked), cluster)
    values = _replicates(metric, truth, models, calls, code, replicates, seed)
    difference = values[0] - values[1]
    point, drawn = float(difference[0]), difference[1:]
    known = drawn[~np.isnan(drawn)]
    patients = len(np.unique(code))
    low, high = percentile(drawn, point, confidence=confidence, units=_units(metric, truth, code))
    notes = [f"only {patients} patients: p and interval are rough"] if 1 < patients < FEW_CLUSTERS else []
    if len(known) < len(drawn):
        notes.append(f"undefined in {len(drawn) - len(known)} of {len(drawn)} replicates")
    p = NAN
    if low == low:
        sides = [(1 + int((known * sign <= 0).sum())) / (len(known) + 1) for sign in (1, -1)]
        p = min(1.0, 2 * min(sides))
    elif point == 0 and len(known) and np.ptp(known) == 0:
        p, low, high = 1.0, 0.0, 0.0
        notes.append("the two never differ")
    else:
        notes.append("one patient: no variance" if patients == 1 else "no variance: undefined, or no replicate varies")
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    return Test(
        f"patient bootstrap of {name}", point, low, high, NAN, p, len(truth), patients, "; ".join(notes), confidence
    )
