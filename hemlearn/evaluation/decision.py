"""What a decision by probability is worth: decision curves, a rate at the other, likelihood ratios, predictive values.

* **Net benefit** of treating whoever has at least the threshold probability t: ``TP / n - FP / n * t / (1 - t)``,
  beside treating all and none (0). It assumes calibrated probabilities: scores have none, and those that are not
  calibrated are judged as they are. Bands: patients drawn freely, pointwise.
* **Sensitivity at a specificity** (and the reverse): the best one among the cuts that keep it on these cases; interval
  by drawing patients, each draw with its own cut.
* **Likelihood ratios** ``LR+ = sensitivity / (1 - specificity)`` and ``LR- = (1 - sensitivity) / specificity`` with
  intervals on the log scale; from them the **predictive values** at any prevalence, ``logit PPV = logit(prevalence) +
  log LR+`` and ``logit NPV = -logit(prevalence) - log LR-``, with the same intervals.

Sources: Vickers and Elkin 2006, Med. Decis. Making 26:565; Simel, Samsa and Matchar 1991, J. Clin. Epidemiol. 44:763;
Mercaldo, Lau and Zhou 2007, Stat. Med. 26:2170.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri

from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats
from hemlearn.evaluation.bootstrap import draws as resamples
from hemlearn.evaluation.bootstrap import ratio, tail_of, units_of

THRESHOLDS = np.linspace(0.01, 0.99, 99)
DRAWS = 500
_MASS = 4_000_000  # numbers of one block of draws


class DecisionCurve(NamedTuple):
    """Net benefit at threshold probabilities."""

    threshold: Floats  # (T,)
    model: Floats  # (T,)
    low: Floats  # (T,) lower end of the 95 % band; NaN without one
    high: Floats  # (T,) upper end
    treat_all: Floats  # (T,) of treating everybody; of treating nobody it is 0


def _known(
    y: npt.ArrayLike, p: npt.ArrayLike, patient: npt.ArrayLike | None
) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    truth, prob = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    who = np.arange(len(truth)) if patient is None else np.asarray(patient)
    if not truth.shape == prob.shape == who.shape or truth.ndim != 1:
        raise ValueError(f"y has shape {truth.shape}, p {prob.shape}, patient {who.shape}: expected (N,)")
    known = ~np.isnan(truth)
    return truth[known], prob[known], np.unique(who[known], return_inverse=True)[1].astype(np.intp)


def _draws(patients: int, draws: int, seed: int) -> Floats:
    """(R, G) how often each patient is drawn."""
    return next(resamples(patients, draws, seed, draws))


def _tail(truth: Floats, who: npt.NDArray[np.intp]) -> float:
    """Share of draws to cut off at either end, less for few patients; NaN where a class has too few of them."""
    units, refused = units_of(truth, who)
    return NAN if refused or units < 2 else tail_of(units)


def decision_curve(
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    patient: npt.ArrayLike | None = None,
    thresholds: Floats = THRESHOLDS,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> DecisionCurve:
    """Net benefit of treating at each threshold, with a band by patient.

    Args:
        y: (N,) labels 0, 1 or NaN, which are left out.
        p: (N,) probabilities.
        patient: (N,) identifiers; None: each case is a patient.
        thresholds: (T,) between 0 and 1.
        draws: Of the band; 0: none.
        seed: Of the draws.

    Raises:
        ValueError: Shapes that do not fit, a threshold or a probability outside its range.

    >>> decision_curve([1, 1, 0, 0], [0.9, 0.4, 0.6, 0.1], thresholds=np.array([0.5]), draws=0).model
    array([0.])
    """
    truth, prob, who = _known(y, p, patient)
    thresholds = np.asarray(thresholds, dtype=float)
    if not ((thresholds > 0) & (thresholds < 1)).all():
        raise ValueError("thresholds lie strictly between 0 and 1")
    if not ((prob >= 0) & (prob <= 1)).all():
        raise ValueError("p holds values outside [0, 1], or NaN")
    patients, odds = int(who.max()) + 1 if len(who) else 0, thresholds / (1 - thresholds)
    called = prob[:, None] >= thresholds
    gain = truth[:, None] * called - (1 - truth[:, None]) * called * odds
    sums = np.zeros((patients, len(thresholds) + 1))
    np.add.at(sums, who, np.column_stack([gain, np.ones(len(truth))]))
    prevalence = float(truth.mean()) if len(truth) else NAN
    low = high = np.full(len(thresholds), NAN)
    tail = _tail(truth, who)
    if draws and tail == tail:
        drawn = _draws(patients, draws, seed) @ sums
        low, high = np.quantile(drawn[:, :-1] / drawn[:, -1:], [tail, 1 - tail], axis=0)
    model = sums[:, :-1].sum(axis=0) / max(len(truth), 1) if len(truth) else np.full(len(thresholds), NAN)
    return DecisionCurve(thresholds, model, low, high, prevalence - (1 - prevalence) * odds)


class Rate(NamedTuple):
    """A figure with its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float


def rate_at(
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    at: float,
    patient: npt.ArrayLike | None = None,
    *,
    of: str = "sensitivity",
    draws: int = DRAWS,
    seed: int = 0,
) -> Rate:
    """Sensitivity where specificity is at least ``at``; with ``of="specificity"`` the reverse.

    Raises:
        ValueError: ``at`` is not above 0 and up to 1, or shapes that do not fit.

    >>> rate_at([1, 1, 0, 0], [0.9, 0.4, 0.6, 0.1], 1.0, draws=0).value
    0.5
    """
    if of not in ("sensitivity", "specificity") or not 0 < at <= 1:
        raise ValueError(f"of={of}, at={at}: a share above 0 and up to 1 of sensitivity or specificity")
    truth, score, who = _known(y, p, patient)
    if of == "specificity":  # the same question with the classes exchanged
        truth, score = 1 - truth, -score
    order = np.argsort(-score, kind="stable")
    truth, score, who = truth[order], score[order], who[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1) if len(score) else np.zeros(0, dtype=np.intp)

    def best(weights: Floats) -> Floats:
        drawn = weights[:, who]
        true, false = (np.cumsum(drawn * side, axis=1) for side in (truth, 1 - truth))
        positives, negatives = true[:, -1:], false[:, -1:]
        kept = false[:, ends] <= (1 - at) * negatives + 1e-9
        found = np.where(kept, true[:, ends], 0.0).max(axis=1, initial=0.0)
        return np.where(negatives[:, 0] > 0, ratio(found, positives[:, 0]), NAN)

    patients = int(who.max()) + 1 if len(who) else 0
    if not patients:
        return Rate(NAN, NAN, NAN)
    value = float(best(np.ones((1, patients)))[0])
    tail = _tail(truth, who)
    if value != value or not draws or tail != tail:
        return Rate(value, NAN, NAN)
    block = max(1, _MASS // len(truth))
    weights = _draws(patients, draws, seed)
    values = np.concatenate([best(weights[start : start + block]) for start in range(0, draws, block)])
    return Rate(value, *map(float, np.nanquantile(values, [tail, 1 - tail])))


class Ratios(NamedTuple):
    """Likelihood ratios of a positive and of a negative call."""

    positive: Rate
    negative: Rate

    def predictive_values(self, prevalence: float) -> tuple[Rate, Rate]:
        """PPV and NPV at a stated prevalence.

        Raises:
            ValueError: A prevalence that is not strictly between 0 and 1.
        """
        if not 0 < prevalence < 1:
            raise ValueError(f"prevalence={prevalence}: a share strictly between 0 and 1")
        prior = float(logit(prevalence))
        with np.errstate(divide="ignore"):
            ppv = Rate(*(float(expit(prior + np.log(value))) for value in self.positive))
            npv = Rate(*(float(expit(-prior - np.log(value))) for value in self.negative))
        return ppv, Rate(npv.value, npv.high, npv.low)


def likelihood_ratios(
    y: npt.ArrayLike, called: npt.ArrayLike, patient: npt.ArrayLike | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Ratios:
    """Likelihood ratios of calls; intervals of Simel, where patients have several cases by drawing patients.

    A ratio with a zero in it has a value (0 or infinity) and no interval; one of 0 to 0 is undefined. Nor is there an
    interval where a class has fewer than three patients.
    Shapes: y (N,) labels 0, 1 or NaN, called (N,) 0 or 1, patient (N,).

    >>> found = likelihood_ratios([1] * 100 + [0] * 100, [1] * 90 + [0] * 10 + [1] * 20 + [0] * 80)
    >>> round(found.positive.value, 2), round(found.positive.low, 2), round(found.positive.high, 2)
    (4.5, 3.02, 6.7)
    """
    truth, call, who = _known(y, np.asarray(called, dtype=float), patient)
    cells = np.column_stack([truth * call, truth * (1 - call), (1 - truth) * call, (1 - truth) * (1 - call)])
    patients = int(who.max()) + 1 if len(who) else 0
    sums = np.zeros((patients, 4))
    np.add.at(sums, who, cells)
    tp, fn, fp, tn = (float(cell) for cell in cells.sum(axis=0))
    drawn = _draws(patients, draws, seed) @ sums if 0 < patients < len(truth) and draws else None
    tail = _tail(truth, who)

    def of(top: float, other: float, bottom: float, rest: float, columns: tuple[int, ...]) -> Rate:
        """``top / (top + other)`` over ``bottom / (bottom + rest)``."""
        if not top + other or not bottom + rest or not (top or bottom):
            return Rate(NAN, NAN, NAN)
        upper, lower = top / (top + other), bottom / (bottom + rest)
        value = upper / lower if lower else math.inf
        if not top or not bottom or tail != tail:
            return Rate(value, NAN, NAN)
        if drawn is None:
            spread = float(ndtri(0.5 + CONFIDENCE / 2)) * math.sqrt((1 - upper) / top + (1 - lower) / bottom)
            return Rate(value, value * math.exp(-spread), value * math.exp(spread))
        a, b, c, d = drawn[:, columns].T
        values = ratio(a, a + b) / np.where(c > 0, c / np.maximum(c + d, 1), np.nan)
        return Rate(value, *map(float, np.nanquantile(values, [tail, 1 - tail])))

    return Ratios(of(tp, fn, fp, tn, (0, 1, 2, 3)), of(fn, tp, tn, fp, (1, 0, 3, 2)))
