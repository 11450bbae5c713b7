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

What a patient's slices give together (:mod:`hemlearn.evaluation.pooling`) is no probability of the patient. Whatever
the method, each level that is such an aggregate has a map ``z' = a z + b`` of its own: the slope a is an estimate under
the same priors, and b moves the validation units' mean to their rate of positives, then by the log odds between that
rate and the one of training and validation together, which few validation patients show badly. On CT-ICH (seven
validation patients) the log loss of a patient's ``any`` falls from 0.94 to 0.36; a constant has 0.69.

Sources: Guo et al. 2017, arXiv 1706.04599 (temperature); Platt 1999; Zadrozny and Elkan 2002 (isotonic); Prentice and
Pyke 1979, Biometrika 66:403 (intercept of a logistic model under another rate of positives).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_softmax

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import CONFIDENCE, Floats, clustered_wilson
from hemlearn.evaluation.bootstrap import CLIP, equal_mass_bins
from hemlearn.evaluation.label_maps import LabelMap, fit_maps, fit_pool, fit_units, unit_counts
from hemlearn.evaluation.pooling import EVEN, TOP_K, Pool
from hemlearn.evaluation.predictions import SERIES, aggregate, has_family, is_aggregate, prob_array
from hemlearn.util.errors import ConfigError, RunError

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
    # ``series`` and ``patient``, where their values are put together from slices: each label -> map of these
    units: Mapping[str, Mapping[str, LabelMap]] = field(default_factory=dict)
    top_k: int = TOP_K  # of ``task.aggregate``
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # the same levels, ``logistic``: fitted

    @classmethod
    def fit(cls, df: pd.DataFrame, task: TaskConfig, train: pd.DataFrame | None = None) -> Calibration:
        """Fit the maps that ``task.calibration`` asks for, and those of levels that aggregate slices.

        Args:
            df: Validation predictions.
            task: Labels, kind, method and aggregation.
            train: ``patient_id``, ``series_id`` and ``label_*`` of the training slices, whose rates of positives those
                of the few validation patients are put together with.
        """
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
        made = cls(task.calibration, task.kind, tuple(task.labels), maps, top_k=task.top_k)
        after, units, weights = made.apply(df), {}, {}
        for level, most in (("series", _CASES), ("patient", 1.0)):
            if is_aggregate(after, level, task.aggregate):
                nothing = np.zeros((2, len(task.labels)))
                seen = nothing if train is None else unit_counts(train, level, task)
                pool = fit_pool(after, level, task, most)
                if task.aggregate == "logistic":
                    weights[level] = pool.weights
                units[level] = fit_units(aggregate(after, level, task.aggregate, task.kind, pool), task, most, seen)
        return replace(made, units=units, weights=weights)

    @classmethod
    def none(cls, task: TaskConfig) -> Calibration:
        """No map at all: probabilities of slices as the network gives them, scores of what aggregates them."""
        return cls("none", task.kind, tuple(task.labels), {}, top_k=task.top_k)

    @property
    def empty(self) -> bool:
        """Whether it changes nothing at all."""
        return self.method == "none" and not self.units and self.top_k == TOP_K

    def pool(self, level: str) -> Pool:
        """What the aggregate of a level needs."""
        return Pool(self.top_k, tuple(self.weights.get(level, EVEN)))

    def narrowed(self, labels: Sequence[str], kind: str) -> Calibration:
        """The maps of some of its labels."""
        maps, units = (
            {level: {c: own[c] for c in labels} for level, own in found.items()} for found in (self.maps, self.units)
        )
        return replace(self, kind=kind, labels=tuple(labels), maps=maps, units=units)

    def aggregate(self, df: pd.DataFrame, level: str, how: str) -> pd.DataFrame:
        """:func:`~hemlearn.evaluation.predictions.aggregate` of calibrated slices, brought to probabilities."""
        out = aggregate(df, level, how, self.kind, self.pool(level))
        if level in self.units:
            p = self.of_units(prob_array(out, self.labels), level)
            for j, name in enumerate(self.labels):
                out[f"prob_{name}"] = p[:, j]
        return out

    def only_ranks(self, df: pd.DataFrame, level: str, how: str) -> bool:
        """Whether the values of a level are scores: aggregates of slices that no map makes probabilities."""
        return level not in self.units and is_aggregate(df, level, how)

    def of_units(self, p: Floats, level: str) -> Floats:
        """(U, L) probabilities of series or patients from what their slices give together; unchanged without a map."""
        return self._mapped(p, self.units[level]) if level in self.units else p

    def _mapped(self, p: Floats, maps: Mapping[str, LabelMap]) -> Floats:
        if self.kind == "multiclass":
            slope = maps[self.labels[0]].slope
            mapped = np.exp(log_softmax(slope * np.log(np.clip(p, CLIP, 1.0)), axis=1))
        else:
            mapped = np.column_stack([maps[c](p[:, j]) for j, c in enumerate(self.labels)])
        return np.asarray(np.clip(mapped, 0.0, 1.0))

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
            mapped = self._mapped(prob_array(df, self.labels, family), self.maps[level])
            for j, name in enumerate(self.labels):
                out[f"{family}_{name}"] = mapped[:, j]
        return out

    def notes(self) -> list[str]:
        """What was replaced, a line per label and level."""
        levels = [*self.maps.items(), *((f"{level} of slices,", maps) for level, maps in self.units.items())]
        return [f"{level} {label}: {m.note}" for level, maps in levels for label, m in maps.items() if m.note]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for ``json.dump`` or a checkpoint."""
        told = {"maps": self.maps, "units": self.units}
        plain: dict[str, Any] = {
            name: {level: {label: _plain(m) for label, m in own.items()} for level, own in found.items()}
            for name, found in told.items()
        }
        pooling = {"top_k": self.top_k, "weights": {level: list(own) for level, own in self.weights.items()}}
        plain |= {"pooling": pooling} if self.weights or self.top_k != TOP_K else {}
        return {"method": self.method, "kind": self.kind, "labels": list(self.labels), **plain}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "calibration") -> Calibration:
        """What :meth:`to_dict` wrote; ``where``: the file, for messages."""
        try:
            # Runs made before have no maps of units: their series and patients have scores.
            maps, units = (
                {str(level): {str(label): _map(m) for label, m in found.items()} for level, found in levels.items()}
                for levels in (content["maps"], content.get("units", {}))
            )
            pooling = content.get("pooling", {})
            weights = {str(level): tuple(map(float, own)) for level, own in pooling.get("weights", {}).items()}
            words = str(content["method"]), str(content["kind"]), tuple(map(str, content["labels"]))
            made = cls(*words, maps, units, int(pooling.get("top_k", TOP_K)), weights)
            fits = all(set(found) == set(made.labels) for found in (*maps.values(), *units.values()))
            fits &= set(units) <= {"series", "patient"} and set(weights) <= set(units) and made.top_k >= 1
            fits &= all(len(own) == len(EVEN) and np.isfinite(own).all() and min(own) >= 0 for own in weights.values())
            if (
                made.method not in ("none", "temperature", "platt", "isotonic")
                or not fits
                or (made.method != "none" and "slice" not in maps)
            ):
                raise ValueError(
                    f"method {made.method!r}, labels {list(made.labels)}, maps of {sorted(maps)}, {pooling}"
                )
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
