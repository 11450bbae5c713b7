"""How one label's probability is mapped in calibration, and how such maps are fitted on few validation patients.

See :mod:`hemlearn.evaluation.calibration` for what they are and why they are shrunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import Floats
from hemlearn.evaluation.bootstrap import CLIP
from hemlearn.evaluation.pooling import Pool, features, fit_weights, places
from hemlearn.evaluation.predictions import label_array, prob_array, unit_groups, unit_labels
from hemlearn.util.errors import count

_SHARED_SD, _SLOPE_SD, _SHIFT_SD = 0.5, 0.25, 0.5  # of the priors: shared log slope, a label's, a label's shift
_OWN_PATIENTS = 2  # on either side, below which a label has no map of its own
_ISOTONIC_SLICES, _ISOTONIC_PATIENTS = 10, 5


def _log_odds(p: Floats) -> Floats:
    return np.asarray(logit(np.clip(p, CLIP, 1 - CLIP)))


@dataclass(frozen=True)
class LabelMap:
    """How one label's probability is mapped."""

    slope: float = 1.0  # a of ``z' = centre + slope (z - centre) + shift`` on log odds
    centre: float = 0.0  # c
    shift: float = 0.0  # b
    steps: tuple[tuple[float, float], ...] = ()  # isotonic only: (probability, frequency) pairs, linear between them
    share: float = 0.0  # isotonic only: weight of the steps beside the linear map
    positives: int = 0  # validation cases that have the label
    patients: int = 0  # validation patients with such a case
    note: str = ""  # what was replaced and why; "" where nothing was

    def __call__(self, p: Floats) -> Floats:
        """Map (N,) probabilities."""
        if self.slope == 1 and self.shift == 0 and not self.steps:
            return p
        z = _log_odds(p)
        smooth = np.asarray(expit(self.centre + self.slope * (z - self.centre) + self.shift))
        if not self.steps:
            return smooth
        x, y = np.array(self.steps).T
        return np.asarray(self.share * np.interp(p, x, y) + (1 - self.share) * smooth)


@dataclass(frozen=True)
class _Cases:
    """Known validation cases of one label: truth, log odds, weight, and their numbers."""

    y: Floats
    z: Floats
    weight: Floats
    positives: int
    negatives: int
    patients: tuple[int, int]  # with a positive, with a negative case

    @property
    def tells(self) -> bool:
        """Whether there are patients enough for a map of the label's own."""
        return min(self.patients) >= _OWN_PATIENTS

    @property
    def rate(self) -> float:
        """Weighted share of positives, kept off 0 and 1."""
        return float(((self.weight * self.y).sum() + 0.5) / (self.weight.sum() + 1))

    @property
    def centre(self) -> float:
        """Log odds of the mean prediction."""
        p = np.average(expit(self.z), weights=self.weight) if len(self.z) else 0.5
        return float(_log_odds(np.array([p]))[0])


def _case_weights(patient: npt.ArrayLike, most: float) -> Floats:
    _, code = np.unique(np.asarray(patient), return_inverse=True)
    return np.asarray(np.minimum(1.0, most / np.bincount(code)[code]) if len(code) else np.zeros(0))


def fit_maps(df: pd.DataFrame, task: TaskConfig, most: float) -> dict[str, LabelMap]:
    """Maps of all labels."""
    if task.kind == "multiclass":
        return _fit_multiclass(df, task.labels, most)
    cases = _cases_of(df, task.labels, most)
    linear = _fit_linear(cases, shifts=task.calibration != "temperature")
    if task.calibration != "isotonic":
        return dict(zip(task.labels, linear, strict=True))
    return {c: _fit_isotonic(case, m) for c, case, m in zip(task.labels, cases, linear, strict=True)}


def _cases_of(df: pd.DataFrame, labels: Sequence[str], most: float) -> list[_Cases]:
    y, p, patient = label_array(df, labels), prob_array(df, labels), df["patient_id"].to_numpy(dtype=object)
    cases = []
    for j in range(len(labels)):
        known = ~np.isnan(y[:, j])
        truth, who = y[known, j], patient[known]
        people = tuple(len(set(who[truth == side])) for side in (1, 0))
        cases.append(
            _Cases(
                truth,
                _log_odds(p[known, j]),
                _case_weights(who, most),
                int((truth == 1).sum()),
                int((truth == 0).sum()),
                (people[0], people[1]),
            )
        )
    return cases


# --- Series and patients whose value is put together from slices.


def fit_pool(df: pd.DataFrame, level: str, task: TaskConfig, most: float) -> Pool:
    """What ``task.aggregate`` needs at a level; the weights of ``logistic`` are fitted on validation slices ``df``."""
    if task.aggregate != "logistic":
        return Pool(task.top_k)
    group, place = unit_groups(df, level), places(unit_groups(df, "series"), df["z_mm"].to_numpy(dtype=np.float64))
    first = np.unique(group, return_index=True)[1]
    who = df["patient_id"].to_numpy(dtype=object)[first]
    x = features(prob_array(df, task.labels), group, task.top_k, place)
    y = unit_labels(label_array(df, task.labels), group, task.kind)
    return Pool(task.top_k, fit_weights(x, y, _case_weights(who, most), who))


def unit_counts(train: pd.DataFrame, level: str, task: TaskConfig) -> Floats:
    """(2, L) positive and known units of the training rows: patient_id, series_id and ``label_*`` of each slice."""
    y = unit_labels(label_array(train, task.labels), unit_groups(train.assign(split="train"), level), task.kind)
    return np.stack([(y == 1).sum(axis=0), (~np.isnan(y)).sum(axis=0)]).astype(float)


def fit_units(units: pd.DataFrame, task: TaskConfig, most: float, seen: Floats) -> dict[str, LabelMap]:
    """Maps of the values that series or patients have as aggregates of their slices.

    Args:
        units: Validation units, of :func:`~hemlearn.evaluation.predictions.aggregate`.
        task: Labels and kind.
        most: Units that those of one patient count as, at most.
        seen: (2, L) positive and known units in training.
    """
    if task.kind == "multiclass":
        return _fit_multiclass(units, task.labels, most)
    cases = _cases_of(units, task.labels, most)
    every = _log_odds(prob_array(units, task.labels))
    telling = [case for case in cases if case.tells]
    shared = _log_slope(telling, 0.0, _SHARED_SD)
    found = {}
    for j, (label, case) in enumerate(zip(task.labels, cases, strict=True)):
        known = seen[1, j] + len(case.y)
        note = (
            ""
            if case.tells
            else "too few validation patients on a side: "
            + ("the slope shared by all labels" if telling else "a shift alone")
        )
        if not known:
            found[label] = LabelMap(note="no patient known: as is")
            continue
        slope = float(np.exp(_log_slope([case], shared, _SLOPE_SD) if case.tells else shared))
        rate = (seen[0, j] + case.positives + 0.5) / (known + 1)
        if len(case.y):
            shift = _level(case, slope) + logit(rate) - logit(case.rate)
        else:  # no label known: all units' values move to the rate in training
            shift = _to_mean(slope * every[:, j], np.ones(len(every)), rate)
        found[label] = LabelMap(
            slope, shift=float(shift), positives=case.positives, patients=case.patients[0], note=note
        )
    return found


def _to_mean(z: Floats, weight: Floats, mean: float) -> float:
    """The shift b with which the weighted mean of ``expit(z + b)`` is ``mean``."""
    reach = float(np.abs(z).max()) + 40
    return float(brentq(lambda b: np.average(expit(z + b), weights=weight) - mean, -reach, reach))


def _level(case: _Cases, slope: float) -> float:
    return _to_mean(slope * case.z, case.weight, case.rate)


def _log_slope(cases: Sequence[_Cases], centre: float, spread: float) -> float:
    """Log slope of the lowest penalised loss, each label's shift following from its rate."""

    def loss(x: float) -> float:
        slope = float(np.exp(x))
        losses = (_loss(case, x, 0.0, _level(case, slope))[0] for case in cases)
        return sum(losses) + (x - centre) ** 2 / (2 * spread**2)

    return float(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x) if cases else centre


def _loss(case: _Cases, log_slope: float, centre: float, shift: float) -> tuple[float, float, float]:
    """Weighted log loss of a linear map, and its derivatives by log slope and shift."""
    steep = np.exp(log_slope) * (case.z - centre)
    z = centre + steep + shift
    error = case.weight * (expit(z) - case.y)
    loss = float((case.weight * (np.logaddexp(0.0, z) - case.y * z)).sum())
    return loss, float((error * steep).sum()), float(error.sum())


def _fit_linear(cases: Sequence[_Cases], shifts: bool) -> list[LabelMap]:
    """Shared slope first, then each label's own slope (and shift) around it."""
    centres = [case.centre if shifts else 0.0 for case in cases]
    telling = [case for case in cases if case.tells]
    # A slope that may not shift answers a wrong level with a wrong slope; labels without cases shall not inherit that.
    log_moved = _shared_slope(telling, shifts=True)
    log_shared = log_moved if shifts else _shared_slope(telling, shifts=False)
    found = []
    for j, case in enumerate(cases):
        plain = LabelMap(positives=case.positives, patients=case.patients[0])
        if not case.tells:
            side = "with" if case.patients[0] < _OWN_PATIENTS else "without"
            few = case.patients[side == "without"]
            note = f"{few} validation patients {side} it: " + ("the slope shared by all labels" if telling else "as is")
            found.append(replace(plain, slope=float(np.exp(log_moved)), centre=case.centre, note=note))
            continue

        def own(x: Floats, case: _Cases = case, centre: float = centres[j]) -> tuple[float, Floats]:
            shift = float(x[1]) if shifts else 0.0
            loss, by_slope, by_shift = _loss(case, float(x[0]), centre, shift)
            away = x[0] - log_shared
            value = loss + away**2 / (2 * _SLOPE_SD**2) + shift**2 / (2 * _SHIFT_SD**2)
            slope = [by_slope + away / _SLOPE_SD**2, by_shift + shift / _SHIFT_SD**2]
            return float(value), np.array(slope[: 1 + shifts])

        best = _minimum(own, 1 + shifts, log_shared)
        shift = float(best[1]) if shifts else 0.0
        found.append(replace(plain, slope=float(np.exp(best[0])), centre=centres[j], shift=shift))
    return found


def _shared_slope(cases: Sequence[_Cases], shifts: bool) -> float:
    """Log slope that serves all labels best, beside a shift of each label's own."""
    if not cases:
        return 0.0

    def loss(x: Floats) -> tuple[float, Floats]:
        value, slope = x[0] ** 2 / (2 * _SHARED_SD**2), np.zeros(len(x))
        slope[0] = x[0] / _SHARED_SD**2
        for j, case in enumerate(cases, start=1):
            centre, shift = (case.centre, float(x[j])) if shifts else (0.0, 0.0)
            one, by_slope, by_shift = _loss(case, float(x[0]), centre, shift)
            value, slope[0] = value + one, slope[0] + by_slope
            if shifts:
                value += shift**2 / (2 * _SHIFT_SD**2)
                slope[j] = by_shift + shift / _SHIFT_SD**2
        return float(value), slope

    return float(_minimum(loss, 1 + len(cases) * shifts)[0])


def _minimum(function: Any, size: int, first: float = 0.0) -> Floats:
    """Where a smooth function with a gradient is lowest; log slopes stay within a factor of e^3."""
    start = np.zeros(size)
    start[0] = first
    bounds = [(-3.0, 3.0)] + [(-5.0, 5.0)] * (size - 1)
    return np.asarray(minimize(function, start, jac=True, method="L-BFGS-B", bounds=bounds).x, dtype=np.float64)


def _fit_isotonic(case: _Cases, linear: LabelMap) -> LabelMap:
    """Isotonic regression averaged with the linear map; the linear map alone where there are too few cases."""
    from sklearn.isotonic import IsotonicRegression

    slices, patients = min(case.positives, case.negatives), min(case.patients)
    if slices < _ISOTONIC_SLICES or patients < _ISOTONIC_PATIENTS:
        note = f"{count(slices, 'case')} of {count(patients, 'patient')} on the rarer side: platt in place of isotonic"
        return replace(linear, note="; ".join(filter(None, (note, linear.note))))
    p = expit(case.z)
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(p, case.y, sample_weight=case.weight)
    steps = tuple((float(x), float(y)) for x, y in zip(model.X_thresholds_, model.y_thresholds_, strict=True))
    return replace(linear, steps=steps, share=patients / (patients + _ISOTONIC_PATIENTS))


def _fit_multiclass(df: pd.DataFrame, labels: Sequence[str], most: float) -> dict[str, LabelMap]:
    y, p, patient = label_array(df, labels), prob_array(df, labels), df["patient_id"].to_numpy(dtype=object)
    known = ~np.isnan(y).any(axis=1)
    truth, logp, weight = y[known], np.log(np.clip(p[known], CLIP, 1.0)), _case_weights(patient[known], most)

    def loss(x: Floats) -> tuple[float, Floats]:
        steep = np.exp(x[0]) * logp
        found = log_softmax(steep, axis=1)
        value = -float((weight[:, None] * truth * found).sum()) + x[0] ** 2 / (2 * _SHARED_SD**2)
        gradient = float((weight[:, None] * (np.exp(found) - truth) * steep).sum()) + x[0] / _SHARED_SD**2
        return float(value), np.array([gradient])

    slope = float(np.exp(_minimum(loss, 1)[0])) if len(truth) else 1.0
    note = "" if len(truth) else "no validation case: as is"
    people = [len(set(patient[known][truth[:, j] == 1])) for j in range(len(labels))]
    return {
        c: LabelMap(slope, positives=int((truth[:, j] == 1).sum()), patients=people[j], note=note)
        for j, c in enumerate(labels)
    }
