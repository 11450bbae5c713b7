"""How the probabilities of slices become a score of their series or patient.

* ``mean`` and ``max``;
* ``top_k``: the mean of the k largest (``task.top_k``), as of a lesion that fills a few slices;
* ``noisy_or``: ``1 - prod(1 - p)``, the probability that any slice is positive if slices were independent. They are
  not, so it lies near 1 in long series;
* ``logistic``: ``1 / (1 + exp(-sum(w_i f_i)))`` of four features of the slices' log odds, :data:`FEATURES`. The
  weights are not negative, and equal unless validation patients show out of fold that others predict better;
* ``model``: a sequence model's own output for the series.

None but the last is a probability of the unit; :mod:`hemlearn.evaluation.calibration` maps each to one.

Sources: Viola, Platt and Zhang 2005, NIPS 18 (noisy-or); Li and Vasconcelos 2015, CVPR (top instances).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit

from hemlearn.evaluation.auroc import Floats
from hemlearn.evaluation.bootstrap import CLIP

HOW = ("mean", "max", "top_k", "noisy_or", "logistic", "model")
FEATURES = ("largest", "mean of the k largest", "mean", "largest after smoothing over neighbouring slices")
EVEN = (0.25, 0.25, 0.25, 0.25)
TOP_K = 3
_TINY = np.finfo(float).tiny
_SPREADS = (0.0, 0.1, 0.3)  # of the prior of the weights around equal ones, of which one is chosen out of fold
_SLOPE_SD = 0.5  # of the prior of the log slope common to all weights
_FOLDS, _SIDE = 10, 3  # folds of that choice; patients on either side of a label below which it does not take part

Groups = npt.NDArray[np.intp]


class Pool(NamedTuple):
    """What an aggregate needs beside its name."""

    k: int = TOP_K  # slices that ``top_k`` averages
    weights: tuple[float, ...] = EVEN  # of :data:`FEATURES`


def described(how: str, k: int = TOP_K) -> str:
    """An aggregate in words that "of the slices" may follow.

    Example:
        >>> described("top_k", 5)
        'mean of the 5 largest'
    """
    words = {"top_k": f"mean of the {k} largest", "noisy_or": "noisy-or", "logistic": "logistic model"}
    return words.get(how, how)


def recipe(how: str, k: int = TOP_K) -> str:
    """What somebody does who has the slices' probabilities p alone."""
    return {
        "mean": "take the mean p over its slices",
        "max": "take the max p over its slices",
        "top_k": f"take the mean of the {k} largest p of its slices",
        "noisy_or": "take 1 - (product of 1 - p) over its slices",
        "logistic": "take p = 1 / (1 + exp(-sum of weights times features)), with the weights in `pooling` and the "
        f"features of log(p / (1 - p)) of its slices: the largest, the mean of the {k} largest, the mean, and the "
        "largest after averaging each slice with its neighbours at half weight",
    }[how]


def unit_probs(
    p: Floats,
    group: Groups,
    how: str,
    kind: str = "binary",
    pool: Pool = Pool(),  # noqa: B008 - a constant
    place: Groups | None = None,
) -> Floats:
    """(U, L) scores of units from (N, L) probabilities of their slices; exclusive classes share out what is no mean.

    Args:
        p: Of slices.
        group: (N,) the unit of each slice, 0..U-1.
        how: One of :data:`HOW` but ``model``.
        kind: Of the task.
        pool: Number of slices and weights.
        place: (N,) of :func:`places`, for ``logistic``; None: the slices of a unit are neighbours in their order.

    Example:
        >>> p, who = np.array([[0.2], [0.8], [0.6], [0.1]]), np.array([0, 0, 0, 1])
        >>> unit_probs(p, who, "top_k", pool=Pool(k=2)).round(3).tolist(), unit_probs(p, who, "noisy_or").tolist()[0]
        ([[0.7], [0.1]], [0.936])
    """
    sizes = np.bincount(group)
    if how == "mean":
        return np.stack([np.bincount(group, weights=c, minlength=len(sizes)) for c in p.T], axis=1) / sizes[:, None]
    if how == "logistic":
        return np.asarray(expit(features(p, group, pool.k, place) @ np.array(pool.weights)))
    if how == "top_k":
        out = _largest_mean(p, group, pool.k)
    elif how == "noisy_or":
        none = [np.bincount(group, weights=np.log1p(-np.minimum(c, 1 - CLIP)), minlength=len(sizes)) for c in p.T]
        out = -np.expm1(np.stack(none, axis=1))
    else:
        out = np.zeros((len(sizes), p.shape[1]))
        np.maximum.at(out, group, p)
    return out / np.maximum(out.sum(axis=1, keepdims=True), _TINY) if kind == "multiclass" else out


def _largest_mean(values: Floats, group: Groups, k: int) -> Floats:
    """(U, L) mean of the k largest values of each unit, of all where it has fewer."""
    sizes = np.bincount(group)
    first, found = np.cumsum(sizes) - sizes, []
    for column in values.T:
        order = np.lexsort((-column, group))
        kept = order[np.arange(len(order)) - first[group[order]] < k]
        found.append(np.bincount(group[kept], weights=column[kept], minlength=len(sizes)))
    return np.stack(found, axis=1) / np.minimum(sizes, k)[:, None]


def places(series: Groups, z_mm: Floats) -> Groups:
    """(N,) whole numbers that differ by one between neighbouring slices and by more between series.

    ``series`` (N,) are codes; where a position is not known, slices keep their order.

    Example:
        >>> places(np.array([0, 0, 1, 1]), np.array([5.0, 0.0, np.nan, np.nan])).tolist()
        [1, 0, 3, 4]
    """
    order = np.lexsort((np.nan_to_num(z_mm), series))
    rank = np.empty(len(series), dtype=np.intp)
    rank[order] = np.arange(len(series))
    return rank + series


def features(p: Floats, group: Groups, k: int = TOP_K, place: Groups | None = None) -> Floats:
    """(U, L, 4) :data:`FEATURES` of the slices' log odds; smoothing weighs the neighbours by a half."""
    z = np.asarray(logit(np.clip(p, CLIP, 1 - CLIP)))
    place = places(group, np.zeros(len(group))) if place is None else place
    order = np.argsort(place)
    ordered, joined = z[order], (np.diff(place[order]) == 1)[:, None] * 0.5
    total, weight = ordered.copy(), np.ones((len(z), 1))
    total[1:] += joined * ordered[:-1]
    total[:-1] += joined * ordered[1:]
    weight[1:] += joined
    weight[:-1] += joined
    smooth = np.empty_like(z)
    smooth[order] = total / weight
    found = [_largest_mean(values, group, n) for values, n in ((z, 1), (z, k), (z, len(z)), (smooth, 1))]
    return np.stack(found, axis=2)


def fit_weights(x: Floats, y: Floats, weight: Floats, patient: npt.NDArray[np.object_]) -> tuple[float, ...]:
    """Weights of the features for all labels together, fitted on validation units.

    Each weight has a normal prior around an equal share. How narrow it is, is chosen out of fold among validation
    patients; with few of them the weights stay equal. The common slope and the labels' intercepts are fitted beside
    them and left to the unit maps that follow.

    Args:
        x: (U, L, 4) features.
        y: (U, L) labels 0, 1 or NaN.
        weight: (U,) of units.
        patient: (U,) whose unit it is.
    """
    _, code = np.unique(np.asarray(patient, dtype=str), return_inverse=True)
    sides = [[len(set(code[y[:, j] == side])) for side in (0, 1)] for j in range(y.shape[1])]
    telling = [j for j, both in enumerate(sides) if min(both) >= _SIDE]
    if not telling:
        return EVEN
    x, y = x[:, telling], y[:, telling]
    fold = code % min(_FOLDS, code.max() + 1)
    best, least = 0.0, np.inf
    for spread in _SPREADS:
        loss = 0.0
        for part in range(fold.max() + 1):
            out = fold == part
            fitted = _fitted(x[~out], y[~out], weight[~out], spread)
            loss += _loss(fitted, x[out], y[out], weight[out])[0]
        if loss < least:
            best, least = spread, loss
    found = EVEN + _fitted(x, y, weight, best)[1:5]
    return tuple(float(w) for w in found / found.sum())


def _loss(at: Floats, x: Floats, y: Floats, weight: Floats) -> tuple[float, Floats]:
    """Weighted log loss over known labels at (log slope, four deviations, intercepts), and its gradient."""
    steep, mixed = np.exp(at[0]), x @ (np.array(EVEN) + at[1:5])
    z, known = steep * mixed + at[5:], ~np.isnan(y)
    truth, w = np.where(known, y, 0.0), np.where(known, weight[:, None], 0.0)
    error = w * (expit(z) - truth)
    slope = [(error * steep * mixed).sum(), *(steep * np.einsum("ul,ulf->f", error, x)), *error.sum(axis=0)]
    return float((w * (np.logaddexp(0.0, z) - truth * z)).sum()), np.array(slope)


def _fitted(x: Floats, y: Floats, weight: Floats, spread: float) -> Floats:
    """(1 + 4 + L,) parameters of the lowest penalised loss."""
    size = y.shape[1]
    ridge = np.array([_SLOPE_SD, *[max(spread, 1e-3)] * 4, *[5.0] * size]) ** -2.0

    def penalised(at: Floats) -> tuple[float, Floats]:
        loss, slope = _loss(at, x, y, weight)
        return loss + float((ridge * at**2).sum()) / 2, slope + ridge * at

    limits = [(-3.0, 3.0), *[(-w, 1.0) if spread else (0.0, 0.0) for w in EVEN], *[(-20.0, 20.0)] * size]
    return np.asarray(minimize(penalised, np.zeros(5 + size), jac=True, method="L-BFGS-B", bounds=limits).x)
