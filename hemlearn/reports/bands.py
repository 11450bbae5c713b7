"""Pointwise bands of ROC and precision-recall curves, by resampling patients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hemlearn.evaluation.bootstrap import block_size, draws, strata_of
from hemlearn.evaluation.statistics import CONFIDENCE, Floats

REPLICATES = 500
GRID = np.linspace(0.0, 1.0, 101)
_CUTS = 2000  # thresholds at which a replicate is evaluated, at most


class Band(NamedTuple):
    """Pointwise 95 % bounds: of sensitivity at each false positive rate, or of precision at each recall."""

    x: Floats
    low: Floats
    high: Floats


def curve_bands(
    y: Floats, p: Floats, cluster: npt.NDArray[np.intp], replicates: int = REPLICATES, seed: int = 0
) -> tuple[Band, Band] | None:
    """Bands of the ROC and of the precision-recall curve from the same resamples, stratified by outcome.

    Args:
        y: (N,) labels 0 or 1, no NaN.
        p: (N,) probabilities.
        cluster: (N,) patient codes; patients are drawn, never single cases.
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.

    Returns:
        Both bands; None where a class is absent or comes from fewer than two patients.
    """
    _, code = np.unique(cluster, return_inverse=True)
    if any(len(np.unique(code[y == side])) < 2 for side in (0, 1)):
        return None
    order = np.argsort(-p, kind="stable")
    truth, score, who = y[order], p[order], code[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    if len(ends) > _CUTS:  # beyond what a figure can show
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, _CUTS).round().astype(int))]
    roc, pr = [], []
    strata = strata_of(y[:, None], code.astype(np.intp))
    for weights in draws(strata, replicates, seed, block_size(len(y))):
        drawn = weights[:, who]
        true = np.cumsum(drawn * truth, axis=1)[:, ends]
        called = np.cumsum(drawn, axis=1)[:, ends]
        for tp, all_called in zip(true, called, strict=True):
            fp = all_called - tp
            if tp[-1] > 0 and fp[-1] > 0:
                roc.append(_sensitivity_at(fp / fp[-1], tp / tp[-1]))
                pr.append(_precision_at(tp / tp[-1], tp, all_called))
    if len(roc) * 2 < replicates:
        return None
    tail = (1 - CONFIDENCE) / 2
    roc_low, roc_high = np.quantile(roc, [tail, 1 - tail], axis=0)
    pr_low, pr_high = np.quantile(pr, [tail, 1 - tail], axis=0)
    return Band(GRID, roc_low, roc_high), Band(GRID, pr_low, pr_high)


def _sensitivity_at(false: Floats, true: Floats) -> Floats:
    """Sensitivity at each false positive rate of the grid, the upper end of a vertical step."""
    x, y = np.append(0.0, false), np.append(0.0, true)
    left = np.searchsorted(x, GRID, side="right") - 1
    right = np.minimum(left + 1, len(x) - 1)
    run = x[right] - x[left]
    share = np.divide(GRID - x[left], run, out=np.zeros_like(GRID), where=run > 0)
    return np.asarray(y[left] + share * (y[right] - y[left]))


def _precision_at(recall: Floats, true: Floats, called: Floats) -> Floats:
    """Precision at the highest threshold that reaches each recall of the grid."""
    first = int(np.argmax(called > 0))
    at = np.maximum(np.minimum(np.searchsorted(recall, GRID - 1e-12, side="left"), len(recall) - 1), first)
    return np.asarray(true[at] / called[at])
