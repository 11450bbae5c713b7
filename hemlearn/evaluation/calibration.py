"""Calibration of probabilities on validation patients: temperature, Platt, isotonic, one map per label.

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

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from hemlearn.errors import ConfigError, RunError
from hemlearn.evaluation.calibration_maps import CLIP, LabelMap, fit_maps
from hemlearn.evaluation.predictions import SERIES, aggregate, has_family, prob_array
from hemlearn.schema import TaskConfig

METHODS = ("none", "temperature", "platt", "isotonic")
_CASES = 5.0  # cases that a patient's slices count as, at most
_FAMILY = {"slice": "prob", "series": SERIES}


@dataclass(frozen=True)
class Calibration:
    """Fitted maps of a run.

    Attributes:
        method: none | temperature | platt | isotonic.
        kind: binary | multiclass | multilabel.
        labels: Labels of the task.
        maps: ``slice`` (columns ``prob_*``) and, where the run has series outputs, ``series`` (``series_prob_*``), each
            label -> map. In multiclass tasks all labels share one slope.
    """

    method: str
    kind: str
    labels: tuple[str, ...]
    maps: Mapping[str, Mapping[str, LabelMap]]

    @classmethod
    def fit(cls, df: pd.DataFrame, task: TaskConfig) -> Calibration:
        """Fit the maps that ``task.calibration`` asks for.

        Args:
            df: Predictions of validation rows, see :mod:`hemlearn.evaluation.predictions`.
            task: Method, kind, labels and level.

        Raises:
            ConfigError: An unknown method, or platt or isotonic in a multiclass task.
            ValueError: ``df`` holds rows of another split than ``val``.
        """
        if task.calibration not in METHODS:
            raise ConfigError(
                f"task.calibration={task.calibration!r}: unknown method", remedy=f"use one of {', '.join(METHODS)}"
            )
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
        """``df`` with calibrated ``prob_*`` and ``series_prob_*``; all other columns as they are.

        Raises:
            RunError: The table has series outputs, but validation had none to fit a map on.
        """
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
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """What :meth:`to_dict` wrote.

        Raises:
            RunError: The content is not that.
        """
        try:
            maps = {
                str(level): {str(label): _map(m) for label, m in found.items()}
                for level, found in content["maps"].items()
            }
            made = cls(str(content["method"]), str(content["kind"]), tuple(map(str, content["labels"])), maps)
            fits = all(set(found) == set(made.labels) for found in maps.values())
            if made.method not in METHODS or not fits or (made.method != "none" and "slice" not in maps):
                raise ValueError(f"method {made.method!r}, labels {list(made.labels)}, maps of {sorted(maps)}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"calibration: not what hemlearn wrote ({type(error).__name__}: {error})", remedy="train the run again"
            ) from error
        return made


def _plain(item: LabelMap) -> dict[str, Any]:
    return asdict(item) | {"steps": [list(pair) for pair in item.steps]}


def _map(content: Mapping[str, Any]) -> LabelMap:
    steps = tuple((float(x), float(y)) for x, y in content["steps"])
    return LabelMap(**{**content, "steps": steps})
