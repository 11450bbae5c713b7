"""Calibration of probabilities on validation patients: temperature, Platt, isotonic, one map per label; its curve.

Validation sets of volumes are small (seven patients, two of them with a rare subtype), so every map is shrunk towards
leaving the probabilities alone, the less it knows the more:

* slices of a patient are not independent: a patient counts as at most five cases;
* **temperature** ``z' = z / T`` and **platt** ``z' = c + a (z - c) + b`` (z: log odds; c: log odds of the label's mean
  prediction, so that the slope a alone leaves the overall level) are estimates under normal priors: log slope around
  the slope shared by all labels, which itself lies around 0, and shift b around 0;
* a label with fewer than two validation patients on either side tells nothing of its own: it takes the shared slope
  about its mean prediction and no shift;
* **isotonic** needs ten slices and five patients on either side, else platt takes its place; it is averaged with
  platt, with a weight that falls with the number of patients, which keeps it strictly increasing and off 0 and 1.

Multiclass tasks know temperature alone, on the log-probabilities. Maps of binary labels are increasing: AUROC stays,
up to ties. Whatever is replaced is noted in the map.

Sources: Guo et al. 2017, arXiv 1706.04599 (temperature); Platt 1999; Zadrozny and Elkan 2002 (isotonic).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import CONFIDENCE, Floats, clustered_wilson
from hemlearn.evaluation.bootstrap import CLIP, equal_mass_bins
from hemlearn.evaluation.predictions import SERIES, aggregate, has_family, label_array, prob_array
from hemlearn.util.errors import ConfigError, RunError, count

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
    def centre(self) -> float:
        """Log odds of the mean prediction."""
        p = np.average(expit(self.z), weights=self.weight) if len(self.z) else 0.5
        return float(_log_odds(np.array([p]))[0])


def _case_weights(patient: npt.ArrayLike, most: float) -> Floats:
    _, code = np.unique(np.asarray(patient), return_inverse=True)
    return np.asarray(np.minimum(1.0, most / np.bincount(code)[code]) if len(code) else np.zeros(0))


def fit_maps(df: pd.DataFrame, task: TaskConfig, most: float) -> dict[str, LabelMap]:
    """Maps of all labels."""
    y, p = label_array(df, task.labels), prob_array(df, task.labels)
    patient = df["patient_id"].to_numpy(dtype=object)
    if task.kind == "multiclass":
        return _fit_multiclass(y, p, patient, task.labels, most)
    cases = []
    for j in range(len(task.labels)):
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
    linear = _fit_linear(cases, shifts=task.calibration != "temperature")
    if task.calibration != "isotonic":
        return dict(zip(task.labels, linear, strict=True))
    return {c: _fit_isotonic(case, m) for c, case, m in zip(task.labels, cases, linear, strict=True)}


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


def _fit_multiclass(
    y: Floats, p: Floats, patient: npt.NDArray[Any], labels: Sequence[str], most: float
) -> dict[str, LabelMap]:
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


_CASES = 5.0  # cases that a patient's slices count as, at most
_FAMILY = {"slice": "prob", "series": SERIES}


@dataclass(frozen=True)
class Calibration:
    """Fitted maps of a run."""

    method: str  # none | temperature | platt | isotonic
    kind: str  # binary | multiclass | multilabel
    labels: tuple[str, ...]  # labels of the task
    # ``slice`` (columns ``prob_*``) and, with series outputs, ``series`` (``series_prob_*``): each label -> map
    maps: Mapping[str, Mapping[str, LabelMap]]

    @classmethod
    def fit(cls, df: pd.DataFrame, task: TaskConfig) -> Calibration:
        """Fit the maps that ``task.calibration`` asks for."""
        if task.kind == "multiclass" and task.calibration not in ("none", "temperature"):
            raise ConfigError(
                f"task.calibration={task.calibration}: exclusive classes are calibrated together",
                remedy="use task.calibration=temperature",
            )
        if "split" in df and (df["split"] != "val").any():
            raise ValueError(f"calibration is fitted on validation rows only, got split {set(df['split'])}")
        maps: dict[str, dict[str, LabelMap]] = {}
        if task.calibration != "none":
            per_patient = _CASES if task.level == "slice" else 1.0
            maps["slice"] = fit_maps(df, task, per_patient)
            if has_family(df, SERIES):
                maps["series"] = fit_maps(aggregate(df, "series", "model", task.kind), task, _CASES)
        return cls(task.calibration, task.kind, tuple(task.labels), maps)

    def apply(self, df: pd.DataFrame) -> pd.DataFrame:
        """``df`` with calibrated ``prob_*`` and ``series_prob_*``; all other columns as they are."""
        out = df.copy()
        if self.method == "none":
            return out
        for level, family in _FAMILY.items():
            if level == "series" and not has_family(df, SERIES):
                continue
            if level not in self.maps:
                raise RunError(
                    f"calibration: no map for the columns {family}_*; it was fitted on predictions without",
                    remedy="fit it on validation predictions of the same model",
                )
            p = prob_array(df, self.labels, family)
            if self.kind == "multiclass":
                slope = self.maps[level][self.labels[0]].slope
                mapped = np.exp(log_softmax(slope * np.log(np.clip(p, CLIP, 1.0)), axis=1))
            else:
                mapped = np.column_stack([self.maps[level][c](p[:, j]) for j, c in enumerate(self.labels)])
            for j, name in enumerate(self.labels):
                out[f"{family}_{name}"] = np.clip(mapped[:, j], 0.0, 1.0)
        return out

    def notes(self) -> list[str]:
        """What was replaced, a line per label and level."""
        levels = self.maps.items()
        return [f"{level} {label}: {m.note}" for level, maps in levels for label, m in maps.items() if m.note]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dump`` or a checkpoint."""
        maps = {level: {label: _plain(m) for label, m in found.items()} for level, found in self.maps.items()}
        return {"method": self.method, "kind": self.kind, "labels": list(self.labels), "maps": maps}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "calibration") -> Calibration:
        """What :meth:`to_dict` wrote; ``where``: the file, for messages."""
        try:
            maps = {
                str(level): {str(label): _map(m) for label, m in found.items()}
                for level, found in content["maps"].items()
            }
            made = cls(str(content["method"]), str(content["kind"]), tuple(map(str, content["labels"])), maps)
            fits = all(set(found) == set(made.labels) for found in maps.values())
            if (
                made.method not in ("none", "temperature", "platt", "isotonic")
                or not fits
                or (made.method != "none" and "slice" not in maps)
            ):
                raise ValueError(f"method {made.method!r}, labels {list(made.labels)}, maps of {sorted(maps)}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"{where}: not what hemlearn wrote ({type(error).__name__}: {error})", remedy="train the run again"
            ) from error
        return made


def _plain(item: LabelMap) -> dict[str, Any]:
    return asdict(item) | {"steps": [list(pair) for pair in item.steps]}


def _map(content: Mapping[str, Any]) -> LabelMap:
    steps = tuple((float(x), float(y)) for x, y in content["steps"])
    numbers = {name: float(content[name]) for name in ("slope", "centre", "shift", "share")}
    if not np.isfinite([*numbers.values(), *(value for pair in steps for value in pair)]).all():
        raise ValueError(f"{numbers}: not finite")
    return LabelMap(**{**content, **numbers, "steps": steps})


# --- How far probabilities are from frequencies.


class ReliabilityBin(NamedTuple):
    """One point of a reliability curve."""

    mean_p: float  # mean probability
    observed: float  # share of positives
    low: float  # lower end of the interval of that share; NaN where one patient alone fills the bin
    high: float  # upper end
    n: int  # cases
    clusters: int  # patients


def reliability_curve(
    y: npt.ArrayLike, p: npt.ArrayLike, cluster: npt.ArrayLike | None = None, confidence: float = CONFIDENCE
) -> list[ReliabilityBin]:
    """Observed against predicted rate per bin of equal mass, with Wilson intervals clustered by patient.

    By ascending probability; fewer than ``BINS`` where probabilities are equal. Shapes: y (N,), p (N,), cluster (N,).
    """
    truth, prob = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    who = np.arange(truth.size) if cluster is None else np.asarray(cluster)
    if truth.ndim != 1 or not truth.shape == prob.shape == who.shape:
        raise ValueError(f"y has shape {truth.shape}, p {prob.shape}, cluster {who.shape}: expected (N,)")
    if not ((prob >= 0) & (prob <= 1)).all():
        raise ValueError("p holds values outside [0, 1], or NaN")
    known = ~np.isnan(truth)
    truth, prob, who = truth[known], prob[known], who[known]
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("y holds values other than 0, 1 and NaN")
    found, code = [], equal_mass_bins(prob)
    for number in np.unique(code):
        t, q, own = (values[code == number] for values in (truth, prob, who))
        bounds = clustered_wilson(t, own, confidence)[0]
        found.append(ReliabilityBin(float(q.mean()), float(t.mean()), *bounds, len(t), len(np.unique(own))))
    return found
