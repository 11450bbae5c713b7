"""Patient-clustered bootstrap of every metric of a label, vectorised over replicates.

Patients are drawn freely, not within strata of the outcome: the next study's share of positive patients is as much
chance as their scores, and figures that depend on it (Brier score, log loss, accuracy, precision) vary with it. Held
fixed, their intervals would be far too narrow (coverage 0.81 to 0.84 with 20 to 200 patients).

A replicate is a vector of weights: how often each patient was drawn. All metrics are then weighted sums, so one
matrix product (or one cumulative sum along the sorted scores) evaluates a whole block of replicates. With weights of
one the same code gives the point estimate, so a value and its interval cannot come from different formulas.

Sources: Efron and Tibshirani 1993 (percentile interval); Field and Welsh 2007 (resampling whole clusters); Hesterberg
2015, Am. Stat. 69:371 (tails of the percentile interval for few units).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats, Interval, effective, too_few
from hemlearn.util.errors import ConfigError, count

REPLICATES = 1000
BINS = 10  # of the calibration error, of equal mass
ECE_CASES = 20 * BINS  # below which an ECE has no interval: most of it is then the noise inside its bins
_BLOCK = 4_000_000  # elements of one block of replicates: 32 MB as float64
CLIP = 1e-7  # probabilities are clipped to [1e-7, 1 - 1e-7] in the log loss and before calibration
WEIGHTED_TINY = 1e-15  # and to [1e-15, 1 - 1e-15] in the weighted log loss, as the RSNA 2019 competition did
RANKED = ("auroc", "ap")
BRIER_PARTS = ("brier_reliability", "brier_resolution", "brier_uncertainty", "brier_within_bin")


def draws(patients: int, replicates: int, seed: int, block: int) -> Iterator[Floats]:
    """Blocks of weights (<= block, patients): patients drawn with replacement, as many as there are."""
    rng = np.random.default_rng(seed)
    for start in range(0, replicates, block):
        rows = min(block, replicates - start)
        drawn = rng.integers(0, patients, (rows, patients)) + patients * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(float)


def equal_mass_bins(p: Floats, bins: int = BINS) -> npt.NDArray[np.intp]:
    """Bin of each score when the sorted scores are cut into parts of equal size; equal scores stay together.

    The cuts are those of the package uncertainty-calibration (Kumar et al. 2019): where ``bins`` does not divide the
    number of scores the first parts hold one more, and a cut lies in the middle between two parts.
    """
    parts = [part for part in np.array_split(np.sort(p), bins) if len(part)]
    cuts = [(below[-1] + above[0]) / 2 for below, above in pairwise(parts)]
    return np.searchsorted(np.asarray(cuts), p, side="left").astype(np.intp)


def brier_terms(brier: Floats, cases: Floats, predicted: Floats, positive: Floats) -> dict[str, Floats]:
    """Parts of the Brier score, which is reliability - resolution + uncertainty + within_bin.

    Shapes: brier (R,), cases (R, B), predicted (R, B), positive (R, B).
    """
    n = cases.sum(axis=1)
    rate = ratio(positive.sum(axis=1), n)
    gap = np.divide((predicted - positive) ** 2, cases, out=np.zeros_like(cases), where=cases > 0).sum(axis=1)
    spread = np.divide((positive - rate[:, None] * cases) ** 2, cases, out=np.zeros_like(cases), where=cases > 0)
    reliability, resolution, uncertainty = ratio(gap, n), ratio(spread.sum(axis=1), n), rate * (1 - rate)
    inside = brier - (reliability - resolution + uncertainty)
    return dict(zip(BRIER_PARTS, (reliability, resolution, uncertainty, inside), strict=True))


def ratio(top: Floats, bottom: Floats) -> Floats:
    """``top / bottom``, NaN where the bottom is not positive."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(bottom), NAN), where=bottom > 0))


def log_loss_terms(y: Floats, p: Floats) -> Floats:
    """Negative log-likelihood of each binary label, probabilities clipped at 1e-7."""
    q = np.clip(p, CLIP, 1 - CLIP)
    return np.asarray(-(y * np.log(q) + (1 - y) * np.log1p(-q)))


def label_weights(weights: Sequence[float] | None, labels: Sequence[str]) -> Floats:
    """(L,) weights of the weighted log loss; None means equal ones."""
    if weights is None:
        return np.ones(len(labels))
    fits = len(weights) == len(labels) and all(math.isfinite(w) and w >= 0 for w in weights) and any(weights)
    if not fits:
        problem = f"{count(len(weights), 'number')} for {count(len(labels), 'label')}"
        problem += "; needs finite ones of 0 or more, not all 0"
        remedy = f"give one for each of {', '.join(labels)}; RSNA 2019 has 2 for any and 1 for each subtype"
        raise ConfigError(f"task.label_weights={list(weights)}: {problem}", remedy=remedy)
    return np.asarray(weights, dtype=np.float64)


def weighted_log_loss_terms(y: Floats, p: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted log loss of each case, as a sum over its known labels, and the summed weight of those labels.

    Probabilities are clipped at 1e-15. The bounds are put on the logarithms, which float64 and float32 both hold.
    Shapes: y (N, L), p (N, L), weights (L,).
    """
    known = ~np.isnan(y)
    bound = math.log(WEIGHTED_TINY)
    with np.errstate(divide="ignore"):
        right, wrong = np.maximum(np.log(p), bound), np.maximum(np.log1p(-p), bound)
    truth = np.where(known, y, 0.0)
    loss = np.where(known, -(truth * right + (1 - truth) * wrong), 0.0)
    return loss @ weights, known @ weights


@dataclass(frozen=True)
class LabelCases:
    """The known cases of one label, summed per patient where sums suffice and sorted by score where ranks count."""

    patients: int  # G, length of a weight vector
    # (G, 5 + 2 + 3 * BINS) per patient: true positives, false negatives, false positives, true negatives, cases,
    # squared error, log loss, and per calibration bin the cases, the sum of p and the positives
    sums: Floats
    order: npt.NDArray[np.intp]  # patient of each case, by ascending score
    positive: Floats  # (n,) label of each case in that order
    ends: npt.NDArray[np.intp]  # index of the last case of each run of equal scores

    @classmethod
    def build(
        cls, y: Floats, p: Floats, decision: npt.NDArray[np.bool_], cluster: npt.NDArray[np.intp], patients: int
    ) -> LabelCases:
        """Prepare the cases of one label."""
        counts = [y * decision, y * ~decision, (1 - y) * decision, (1 - y) * ~decision, np.ones_like(y)]
        errors = [(p - y) ** 2, log_loss_terms(y, p)]
        sums = [np.bincount(cluster, weights=v, minlength=patients) for v in (*counts, *errors)]
        cell = cluster * BINS + equal_mass_bins(p)
        size = patients * BINS
        binned = [np.bincount(cell, weights=v, minlength=size).reshape(patients, BINS) for v in (np.ones_like(y), p, y)]
        rank = np.argsort(p, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(p[rank])), len(rank) - 1) if len(rank) else rank
        return cls(patients, np.column_stack([*sums, *binned]), cluster[rank], y[rank], ends)

    def values(self, weights: Floats, ranked: bool = True) -> dict[str, Floats]:
        """Every metric under each weight vector. Shapes: weights (R, G)."""
        total = weights @ self.sums
        tp, fn, fp, tn, n, squared, loss = total[:, :7].T
        cases, predicted, positive = np.split(total[:, 7:], 3, axis=1)
        found = {
            "accuracy": ratio(tp + tn, n),
            "sensitivity": ratio(tp, tp + fn),
            "specificity": ratio(tn, tn + fp),
            "f1": np.where(tp + fn > 0, ratio(2 * tp, 2 * tp + fp + fn), NAN),
            "brier": ratio(squared, n),
            "ece": ratio(np.abs(predicted - positive).sum(axis=1), n),
            "log_loss": ratio(loss, n),
        }
        found |= brier_terms(found["brier"], cases, predicted, positive)
        if ranked and len(self.order):
            found |= self._ranked(weights)
        elif ranked:
            found |= {name: np.full(len(weights), NAN) for name in RANKED}
        return found

    def _ranked(self, weights: Floats) -> dict[str, Floats]:
        """AUROC (ties one half) and average precision (a step per distinct score), both from cumulative weights."""
        w = weights[:, self.order]
        every = np.cumsum(w, axis=1)
        w *= self.positive
        positive = np.cumsum(w, axis=1, out=w)
        if len(self.ends) < w.shape[1]:
            every, positive = every[:, self.ends], positive[:, self.ends]
        all_positive, all_cases = positive[:, -1].copy(), every[:, -1].copy()
        all_negative = all_cases - all_positive
        gained = np.diff(positive, axis=1, prepend=0.0)
        # Called positive at this score: everything from it upwards.
        called_true = all_positive[:, None] - positive + gained
        called = all_cases[:, None] - every + np.diff(every, axis=1, prepend=0.0)
        precision = np.divide(called_true, called, out=np.zeros_like(called), where=called > 0)
        average = np.einsum("ij,ij->i", gained, precision)
        negative = np.subtract(every, positive, out=every)
        below = np.einsum("ij,ij->i", gained, negative)
        tied = np.einsum("ij,ij->i", gained, np.diff(negative, axis=1, prepend=0.0))
        defined = (all_positive > 0) & (all_negative > 0)
        area = ratio(below - tied / 2, all_positive * all_negative)
        return {"auroc": np.where(defined, area, NAN), "ap": np.where(defined, ratio(average, all_positive), NAN)}


def block_size(cases: int) -> int:
    """Replicates evaluated at once, so that a block's largest array stays near 32 MB."""
    return max(1, _BLOCK // max(cases, 1))


def units_of(y: Floats, cluster: npt.NDArray[np.intp]) -> tuple[float, str]:
    """Patients of equal weight on which the spread of a label's metrics rests, and why they are too few if they are.

    They are those of the class with fewer of them, each patient weighing as much as it has cases of that class; where
    one class is absent, those of the other.
    """
    sides = [cluster[y == c] for c in (1, 0)]
    why = too_few(*(len(np.unique(side)) for side in sides)) if all(map(len, sides)) else ""
    return min((effective(side) for side in sides if len(side)), default=0.0), why


def tail_of(units: float | None, confidence: float = CONFIDENCE) -> float:
    """Share of replicates to cut off at either end: 0.025 for many units, less for few (Hesterberg 2015).

    Resampling G units shows (G - 1) / G of their variance, and knows it no better than a t with G - 1 degrees of
    freedom.
    """
    tail = (1 - confidence) / 2
    return tail if units is None else float(ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, tail)))


def percentile(
    values: Floats,
    point: float,
    *,
    shift_bias: bool = False,
    confidence: float = CONFIDENCE,
    units: float | None = None,
) -> Interval:
    """Percentile interval of bootstrap replicates, its tails moved outwards (:func:`tail_of`).

    With ``shift_bias`` the figure is one that noise makes larger (ECE): the replicates lie above the value printed by
    as much as that lies above the truth, so that the lower end is moved down twice. Shapes: values (R,).
    """
    known = values[~np.isnan(values)]
    if point != point or len(known) * 2 < len(values) or len(known) == 0 or np.ptp(known) < 1e-12:
        return Interval(NAN, NAN)
    if units is not None and units < 2:
        return Interval(NAN, NAN)
    tail = tail_of(units, confidence)
    low, high = np.quantile(known, [tail, 1 - tail])
    if shift_bias:
        bias = float(known.mean()) - point
        low, high = max(0.0, low - 2 * bias), max(0.0, high - bias)
    return Interval(float(low), float(high))
