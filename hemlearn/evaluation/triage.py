"""Triage with a guarantee: each label of a patient positive, negative or undecided, by cuts from validation patients.

**Error rate** (``task.triage_error``): split conformal prediction by class (Mondrian). With n validation patients of a
class, at most a share ``error`` of its new patients is called the other class, on average over draws of the validation
patients: in one run the share may be larger (with n = 19 and 0.05 it is above 0.1 in one run of seven). Cuts are the
``floor(error (n + 1))``-th lowest value of the positives and highest of the negatives, so that n is at least
``1 / error - 1``. A patient with several cases of a class (slices, series) counts by the worst: the share is that of
patients with any such error.

**Predictive value** (``task.triage_value``): learn-then-test. Of the patients called positive (negative) at least a
share ``value`` has (lacks) the finding, with confidence 0.95 over the choice of validation patients: at one of five
numbers of called validation patients, which their count alone decides, the binomial test of the errors among them must
reject a lower value (Bonferroni). It needs one case per patient.

What both rest on: new patients are drawn as the validation patients were, and these have not trained the network. The
predictive value holds at their share of positives alone, the error rates at any. An epoch or a calibration that was
chosen on the same validation patients makes both approximate; ``task.monitor=last`` avoids the first.

Sources: Vovk, Lindsay, Nouretdinov and Gammerman 2003 (Mondrian); Angelopoulos, Bates, Candes, Jordan and Lei 2021,
arXiv 2110.01052 (learn then test).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binom

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats, clustered_wilson
from hemlearn.evaluation.predictions import label_array, prob_array
from hemlearn.evaluation.scoring import as_entry

ANSWERS = ("negative", "undecided", "positive")
_CUTS = 5  # numbers of called patients that are tested for a predictive value
_EXACT = 1e-9  # 1 / 0.05 is not 20 in every rounding


def patients_for_error(error: float) -> int:
    """Validation patients of each class that an error rate needs.

    >>> patients_for_error(0.05), patients_for_error(0.1)
    (19, 9)
    """
    return math.ceil(min(1 / error, 1e18) - _EXACT) - 1  # 1 / 1e-320 is infinite


def patients_for_value(value: float) -> int:
    """Validation patients that must be called without an error before a predictive value can be shown.

    >>> patients_for_value(0.9), patients_for_value(0.95)
    (44, 90)
    """
    return math.ceil(math.log((1 - CONFIDENCE) / _CUTS) / math.log(value) - _EXACT)


def unsupported(positives: int, negatives: int, task: TaskConfig) -> str:
    """Why validation patients cannot give what is asked, with the number needed; "" where they may."""
    error, value = task.triage_error, task.triage_value
    if error is not None and min(positives, negatives) < (needed := patients_for_error(error)):
        told = f"an error rate of {error:.10g} needs {needed} validation patients with the finding and {needed} without"
        return f"{told}; there are {positives} and {negatives}"
    if value is not None and positives + negatives < (needed := patients_for_value(value)):
        told = f"a predictive value of {value:.10g} needs {needed} validation patients called without an error"
        return f"{told}; there are {positives + negatives} in all"
    return ""


def fit_triage(units: pd.DataFrame, task: TaskConfig) -> dict[str, dict[str, Any]]:
    """Cuts of each label at one level.

    Args:
        units: Validation cases of the level, with their probabilities or scores.
        task: ``triage_error`` and ``triage_value``, of which one at least is set.

    Returns:
        Label -> ``error``, ``value`` (as asked), ``positives`` and ``negatives`` (validation patients), and the cuts
        ``negative_below`` and ``positive_above``; null, with the reason in ``note``, where validation cannot give one.
    """
    y, p, who = label_array(units, task.labels), prob_array(units, task.labels), units["patient_id"].to_numpy()
    found = {}
    for j, label in enumerate(task.labels):
        known = ~np.isnan(y[:, j])
        found[label] = _fit(y[known, j], p[known, j], who[known], task)
    return found


def _fit(y: Floats, p: Floats, who: npt.NDArray[Any], task: TaskConfig) -> dict[str, Any]:
    positives, negatives = (len(np.unique(who[y == side])) for side in (1, 0))
    told: dict[str, Any] = {"error": task.triage_error, "value": task.triage_value}
    told |= {"positives": positives, "negatives": negatives, "negative_below": None, "positive_above": None}
    clustered = len(np.unique(who)) < len(y)
    note = unsupported(positives, negatives, task)
    if not note and task.triage_value is not None and clustered:
        note = "a predictive value needs one case per patient: those of one patient err together"
    if note:
        return told | {"note": note}
    low, high = math.inf, -math.inf
    if task.triage_error is not None:
        low, high = conformal_cuts(y, p, who, task.triage_error)
    if task.triage_value is None:
        if low > high:  # they overlap: each point between keeps both error rates, and nobody is undecided
            low = high = (low + high) / 2
        return told | {"negative_below": low, "positive_above": high, "note": ""}
    # Only cuts that were tested hold the value; of those that keep the error rate the one that calls most patients.
    above = min((cut for cut in value_cuts(y, p, task.triage_value) if cut >= high), default=None)
    limit = low if above is None else min(low, above)
    below = max((-cut for cut in value_cuts(1 - y, -p, task.triage_value) if -cut <= limit), default=None)
    lacking = [name for name, cut in (("positive", above), ("negative", below)) if cut is None]
    if lacking:
        told["note"] = (
            f"no cut keeps a predictive value of {task.triage_value:g} in {positives + negatives} validation patients: "
            f"nobody is called {' or '.join(lacking)}; {patients_for_value(task.triage_value)} must be called so "
            "without an error, more with errors"
        )
    return {"note": "", **told, "negative_below": below, "positive_above": above}


def conformal_cuts(y: Floats, p: Floats, who: npt.NDArray[Any], error: float) -> tuple[float, float]:
    """``(negative_below, positive_above)`` of an error rate; shapes: y (N,) 0 or 1, p (N,), who (N,) patients.

    A case is called negative (positive) when its value is strictly below (above).

    Raises:
        ValueError: Fewer patients of a class than the rate needs.
    """
    cuts = []
    for side, sign in ((1, 1.0), (0, -1.0)):
        mine = y == side
        _, code = np.unique(who[mine], return_inverse=True)
        worst = np.full(int(code.max()) + 1 if len(code) else 0, np.inf)
        np.minimum.at(worst, code, sign * p[mine])
        rank = math.floor(error * (len(worst) + 1) + _EXACT)
        if not rank:
            raise ValueError(f"{len(worst)} patients of class {side}: an error of {error} needs more")
        cuts.append(sign * float(np.sort(worst)[rank - 1]))
    return cuts[0], cuts[1]


def value_cuts(y: Floats, p: Floats, value: float) -> list[float]:
    """The cuts above which at least a share ``value`` of all patients is positive, with confidence 0.95 for all cuts.

    Given the value of the next case, those above it are independent draws of the patients above it.
    Shapes: y (N,) 0 or 1, p (N,).
    """
    order = np.argsort(-p, kind="stable")
    truth, score, least = y[order], p[order], patients_for_value(value)
    found = []
    for called in np.unique(np.linspace(least, len(y), _CUTS, endpoint=False).astype(int)) if least < len(y) else ():
        cut = float(score[called])
        above = truth[score > cut]  # fewer than `called` where values are equal
        wrong = len(above) - float(above.sum())
        if len(above) and binom.cdf(wrong, len(above), 1 - value) <= (1 - CONFIDENCE) / _CUTS:
            found.append(cut)
    return found


def answers(p: Floats, cut: Mapping[str, Any]) -> npt.NDArray[np.intp]:
    """(N,) places in :data:`ANSWERS` of values (N,); ``cut``: of :func:`fit_triage`."""
    below, above = cut["negative_below"], cut["positive_above"]
    negative = p < (-math.inf if below is None else below)
    positive = p > (math.inf if above is None else above)
    return np.asarray(1 + positive.astype(np.intp) - negative.astype(np.intp))


def triage_metrics(y: Floats, p: Floats, patient: npt.ArrayLike, cut: Mapping[str, Any]) -> dict[str, Any]:
    """What the cuts are worth on cases of any group of patients; cases without a label do not count.

    Shapes: y (N,) labels 0, 1 or NaN, p (N,), patient (N,) identifiers.

    Returns:
        Entries as in ``metrics.json``: ``missed`` (share of patients with a positive case of which one was called
        negative), ``false_alarm`` (with a negative case, one called positive), ``undecided``, ``undecided_positive``,
        ``undecided_negative`` (shares of cases), ``ppv`` and ``npv``.
    """
    known = ~np.isnan(y)
    truth, who, said = y[known], np.asarray(patient)[known], answers(p[known], cut)
    undecided = said == 1
    cases = {
        "undecided": (undecided, truth == truth),
        "undecided_positive": (undecided, truth == 1),
        "undecided_negative": (undecided, truth == 0),
        "ppv": (truth == 1, said == 2),
        "npv": (truth == 0, said == 0),
    }
    found = {}
    for name, side, wrong in (("missed", 1, 0), ("false_alarm", 0, 2)):
        people, code = np.unique(who[truth == side], return_inverse=True)
        any_wrong = np.bincount(code, weights=said[truth == side] == wrong, minlength=len(people)) > 0
        found[name] = _entry(any_wrong, np.arange(len(people)))
    return found | {name: _entry(hit[rows], who[rows]) for name, (hit, rows) in cases.items()}


def _entry(hit: npt.NDArray[np.bool_], who: npt.NDArray[Any]) -> dict[str, Any]:
    value = float(hit.mean()) if len(hit) else NAN
    single = len(np.unique(who)) == len(who)
    return as_entry(value, clustered_wilson(hit, who)[0], len(hit), "wilson" if single else "clustered wilson")


def triage_cuts(metrics: Mapping[str, Any], labels: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Level -> label -> cut, of a ``metrics.json``; empty where the run was not asked for triage.

    Raises:
        ValueError: A label has none, or one that is no number.
    """
    found = (metrics.get("triage") or {}).get("cuts") or {}
    for level, own in found.items():
        for label in labels:
            try:
                values = [own[label][name] for name in ("negative_below", "positive_above")]
            except (KeyError, TypeError, IndexError):
                values = ["missing"]
            for value in values:
                if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                    raise ValueError(f"triage, {level}, {label}: {value!r:.40} is no cut")
    return dict(found)


def supported(cuts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The cuts of series and patients that call anybody at all."""
    return {
        level: {
            c: dict(cut) for c, cut in own.items() if (cut["negative_below"], cut["positive_above"]) != (None, None)
        }
        for level, own in cuts.items()
        if level != "slice"
    }


def asked_text(cut: Mapping[str, Any]) -> str:
    """What was asked, in words.

    >>> print(asked_text({"error": None, "value": 0.9}).partition("; ")[0])
    of those called positive (negative) at least 90 % have (lack) it, with 95 % confidence
    """
    told = []
    if cut["error"] is not None:
        share = f"{100 * cut['error']:g} %"
        told.append(
            f"of patients with the finding at most {share} are called negative, of those without it at most {share} "
            "positive, on average over sets of validation patients"
        )
    if cut["value"] is not None:
        share = f"{100 * cut['value']:g} %"
        told.append(f"of those called positive (negative) at least {share} have (lack) it, with 95 % confidence")
    return "; ".join([*told, "for patients like those of validation"])


def triage_table(
    units: pd.DataFrame, labels: Sequence[str], cuts: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """:func:`triage_metrics` of each label at one level."""
    y, p, who = label_array(units, labels), prob_array(units, labels), units["patient_id"].to_numpy()
    return {c: triage_metrics(y[:, j], p[:, j], who, cuts[c]) for j, c in enumerate(labels)}
