"""All metrics of one set of cases, with their intervals, per label and over labels.

=======================  =============================================================================================
metric                   interval
=======================  =============================================================================================
accuracy, sensitivity,   Wilson; where patients have several cases, Wilson on the effective number of cases, with the
specificity              quantile of t
auroc, also the mean     DeLong on the logit scale; where patients have several cases, Obuchowski's variance and the
over labels              quantile of t; Newcombe where the scores separate or are constant
all others, and means    bootstrap of patients drawn freely, percentile widened for few patients of the rarer class;
over labels              none for brier_uncertainty and brier_within_bin, nor for the ECE of fewer than 200 cases
=======================  =============================================================================================

What is not defined (AUROC without a negative, sensitivity without a positive) is None, never 0, beside the number of
cases ``n`` it would have rested on. A label of which either class comes from one or two patients has no interval but
that of a rate, nor has a mean over labels with such a label among them.

The weighted log loss is that of the RSNA 2019 competition: per case the sum over labels of weight x log loss, divided
by the sum of the weights; over cases the mean. Cases with unknown labels are neither dropped nor filled in: the loss
summed over all known entries is divided by the summed weight of those entries, which for fully known cases is the
competition's formula.

The parts of the Brier score stand beside it and add up to it: reliability - resolution + uncertainty + within_bin.
Over labels they are put together as the Brier score is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hemlearn.evaluation import bootstrap
from hemlearn.evaluation.auroc import (
    NAN,
    Auroc,
    Floats,
    Interval,
    auroc_interval,
    clustered_wilson,
    macro_auroc_covariance,
    none_if_nan,
)
from hemlearn.evaluation.bootstrap import BRIER_PARTS, ECE_CASES, REPLICATES, LabelCases
from hemlearn.util.console import NOTICED, track

METRICS = ("accuracy", "sensitivity", "specificity", "auroc", "ap", "f1", "brier", "ece", "log_loss")
NAMES = (*METRICS, *BRIER_PARTS)  # every entry of a label
WEIGHTED = "weighted_log_loss"  # over all labels of a multilabel task; a single label has none
SHIFTED = ("ece", "brier_reliability", "brier_resolution")  # resampling adds its own noise to every bin of these
_OF_A_CLASS = ("sensitivity", "specificity", "f1", "ap")  # a mean over labels hangs on the label with fewest patients
PROBABILISTIC = ("brier", "ece", "log_loss", WEIGHTED, *BRIER_PARTS)  # those that only probabilities have
LOWER_IS_BETTER = ("brier", "ece", "log_loss", WEIGHTED)


def decide(p: Floats, thresholds: Sequence[float] | Floats, kind: str) -> npt.NDArray[np.bool_]:
    """(N, L) calls: the most probable class alone (multiclass), else every label at or above its threshold."""
    if kind == "multiclass":
        return np.asarray(np.arange(p.shape[1]) == p.argmax(axis=1)[:, None])
    return np.asarray(p >= np.asarray(thresholds, dtype=float))


class Scorer:
    """All metrics of one set of cases, as functions of how often each patient counts.

    Shapes: y (N, L), p (N, L), decision (N, L), cluster (N,), weights (L,).
    """

    def __init__(
        self,
        y: Floats,
        p: Floats,
        decision: npt.NDArray[np.bool_],
        cluster: npt.NDArray[np.intp],
        kind: str,
        weights: Floats | None = None,
        patients: int | None = None,
    ) -> None:
        self.known = ~np.isnan(y)
        if kind == "multiclass":
            self.known &= self.known.all(axis=1, keepdims=True)
        self.patients = patients or (int(cluster.max()) + 1 if len(cluster) else 0)
        self.labels = [
            LabelCases.build(y[k, j], p[k, j], decision[k, j], cluster[k], self.patients)
            for j, k in enumerate(self.known.T)
        ]
        self.joint: Floats | None = None
        self.weighted: Floats | None = None
        if kind == "multilabel":
            terms = bootstrap.weighted_log_loss_terms(y, p, np.ones(y.shape[1]) if weights is None else weights)
            self.weighted = np.column_stack([np.bincount(cluster, weights=t, minlength=self.patients) for t in terms])
        if kind == "multiclass":
            rows = self.known[:, 0]
            truth, prob = y[rows], p[rows]
            hit = (decision[rows] & (truth == 1)).any(axis=1)
            loss = bootstrap.log_loss_terms(np.ones(len(truth)), (prob * truth).sum(axis=1))
            columns = [hit, ((prob - truth) ** 2).sum(axis=1), loss, np.ones(len(truth))]
            self.joint = np.column_stack(
                [np.bincount(cluster[rows], weights=c, minlength=self.patients) for c in columns]
            )

    def values(self, weights: Floats, ranked: bool = True) -> tuple[dict[str, Floats], list[dict[str, Floats]]]:
        """Metrics over labels and per label.

        Over labels means: the label itself when there is one; else the mean over the labels on which the metric is
        defined. In a multiclass task accuracy is that of the most probable class, log loss the cross-entropy and Brier
        the sum over classes, like its parts. A multilabel task has the weighted log loss too, over labels only.
        Shapes: weights (R, G).
        """
        each = [label.values(weights, ranked) for label in self.labels]
        if len(each) == 1:
            return each[0] | self._weighted(weights), each
        top = self._weighted(weights)
        for name in each[0]:
            stack = np.stack([values[name] for values in each])
            defined = (~np.isnan(stack)).sum(axis=0)
            top[name] = bootstrap.ratio(np.nansum(stack, axis=0), defined.astype(float))
        if self.joint is not None:
            hits, squared, loss, n = (weights @ self.joint).T
            top |= {"accuracy": bootstrap.ratio(hits, n), "brier": bootstrap.ratio(squared, n)}
            top["log_loss"] = bootstrap.ratio(loss, n)
            top |= {name: np.sum([values[name] for values in each], axis=0) for name in BRIER_PARTS}
        return top, each

    def _weighted(self, weights: Floats) -> dict[str, Floats]:
        if self.weighted is None:
            return {}
        loss, total = (weights @ self.weighted).T
        return {WEIGHTED: bootstrap.ratio(loss, total)}


def as_entry(value: float, interval: Interval, n: int, method: str | None, **more: Any) -> dict[str, Any]:
    """An entry of ``metrics.json``; without an interval it has no method, and NaN is null."""
    if value != value or interval.low != interval.low:
        method = None
    found = {"value": float(value), "low": interval.low, "high": interval.high, "n": int(n), "method": method, **more}
    return {key: none_if_nan(item) for key, item in found.items()}


def _rate(success: npt.NDArray[np.bool_], cluster: npt.NDArray[np.intp]) -> tuple[Interval, str]:
    single = len(np.unique(cluster)) == len(cluster)
    return clustered_wilson(success, cluster)[0], "wilson" if single else "clustered wilson"


def _closed_form(
    name: str, y: Floats, p: Floats, decision: npt.NDArray[np.bool_], cluster: npt.NDArray[np.intp]
) -> tuple[Interval, str] | None:
    """Interval that needs no resampling, or None."""
    if name == "accuracy":
        return _rate(decision == (y == 1), cluster)
    if name in ("sensitivity", "specificity"):
        wanted = 1 if name == "sensitivity" else 0
        return _rate(decision[y == wanted] == wanted, cluster[y == wanted])
    if name == "auroc":
        return _bounds(auroc_interval(y, p, cluster))
    return None


def _bounds(area: Auroc) -> tuple[Interval, str]:
    return Interval(area.low, area.high), area.method


def summarise(
    y: Floats,
    p: Floats,
    decision: npt.NDArray[np.bool_],
    patient: npt.ArrayLike,
    labels: Sequence[str],
    kind: str,
    *,
    label_weights: Sequence[float] | None = None,
    intervals: Sequence[str] = (*METRICS, *BRIER_PARTS[:2], WEIGHTED),
    replicates: int = REPLICATES,
    seed: int = 0,
    scores: bool = False,
) -> dict[str, Any]:
    """Every metric of one set of cases, with intervals.

    ``y`` (N, L) labels 0, 1 or NaN, ``p`` (N, L) probabilities, ``decision`` (N, L) calls (:func:`decide`), ``patient``
    (N,) identifiers: cases of one patient are never treated as independent. ``label_weights`` (L,) are those of the
    weighted log loss; None: equal ones. Metrics outside ``intervals`` have none. ``scores``: ``p`` ranks the cases and
    is no probability (a mean over slices): ``PROBABILISTIC`` metrics are left out then.

    Returns:
        ``{metric: {"value", "low", "high", "n", "method"}, "labels": {label: the same}}`` for ``METRICS`` and
        ``BRIER_PARTS``. With several labels the metrics above ``labels`` also carry ``n_defined`` and ``n_labels``.
        Multilabel tasks have ``weighted_log_loss`` beside them, but not inside ``labels``.
    """
    left_out = PROBABILISTIC if scores else ()
    intervals = [m for m in intervals if m not in left_out]
    _, cluster = np.unique(np.asarray(patient), return_inverse=True)
    scorer = Scorer(y, p, decision, cluster, kind, bootstrap.label_weights(label_weights, labels))
    point, each = scorer.values(np.ones((1, scorer.patients)))
    ready: list[dict[str, tuple[Interval, str]]] = []
    for j, known in enumerate(scorer.known.T):
        asked = [m for m in intervals if m in NAMES]
        forms = {m: _closed_form(m, y[known, j], p[known, j], decision[known, j], cluster[known]) for m in asked}
        ready.append({m: form for m, form in forms.items() if form is not None})
    single = len(labels) == 1
    needed = {m for m in intervals if m in point and m != "auroc" and (not single or m not in ready[0])}
    top_draws: dict[str, Floats] = {}
    each_draws: list[dict[str, Floats]] = [{} for _ in labels]
    if needed and scorer.patients > 1 and replicates > 0:
        size = bootstrap.block_size(max(len(y), scorer.patients))
        weights = bootstrap.draws(scorer.patients, replicates, seed, size)
        told = track(weights, "Resampling patients", -(-replicates // size), after=NOTICED)
        blocks = [scorer.values(w, "ap" in needed) for w in told]
        top_draws = {m: np.concatenate([top[m] for top, _ in blocks]) for m in needed}
        own = [m for m in needed if m in NAMES]
        each_draws = [{m: np.concatenate([b[1][j][m] for b in blocks]) for m in own} for j in range(len(labels))]
        for m in own:  # a replicate that lost a label says nothing about the mean over all of them
            here = [drawn[m] for drawn, values in zip(each_draws, each, strict=True) if not np.isnan(values[m][0])]
            top_draws[m][np.isnan(here).any(axis=0)] = NAN

    def interval(name: str, value: float, draws: dict[str, Floats], units: float) -> tuple[Interval, str]:
        if name not in draws:
            return Interval(NAN, NAN), ""
        bounds = bootstrap.percentile(draws[name], value, shift_bias=name in SHIFTED, units=units)
        return bounds, "patient bootstrap"

    units = [bootstrap.units_of(y[known, j], cluster[known]) for j, known in enumerate(scorer.known.T)]
    found: dict[str, Any] = {"labels": {}}
    for j, label in enumerate(labels):
        known = scorer.known[:, j]
        truth = y[known, j]
        counts = {"sensitivity": int((truth == 1).sum()), "specificity": int((truth == 0).sum())}
        entries = found["labels"][label] = {}
        for name in (m for m in NAMES if m not in left_out):
            value = float(each[j][name][0])
            worth, refused = units[j]
            own_draws = {} if refused or (name == "ece" and len(truth) < ECE_CASES) else each_draws[j]
            bounds, method = ready[j].get(name) or interval(name, value, own_draws, worth)
            entries[name] = as_entry(value, bounds, counts.get(name, len(truth)), method)
    rows = scorer.known.any(axis=1)
    mean_units = float(np.mean([worth for worth, _ in units]))
    if WEIGHTED in point and not scores:
        value = float(point[WEIGHTED][0])
        bounds, method = interval(WEIGHTED, value, top_draws, mean_units)
        found[WEIGHTED] = as_entry(value, bounds, int(rows.sum()), method)
    if single:
        return {**copy.deepcopy(found["labels"][labels[0]]), **found}
    areas = macro_auroc_covariance(np.where(scorer.known, y, NAN), p, cluster).interval()
    poor = any(why for _, why in units)
    for name in (m for m in NAMES if m not in left_out):
        value = float(point[name][0])
        none = (poor and name in _OF_A_CLASS) or (name == "ece" and rows.sum() < ECE_CASES)
        bounds, method = interval(name, value, {} if none else top_draws, mean_units)
        if name == "auroc" and name in intervals:
            bounds, method = _bounds(areas)
        if name == "accuracy" and kind == "multiclass" and name in intervals:
            hit = (decision[rows] & (y[rows] == 1)).any(axis=1)
            bounds, method = _rate(hit, cluster[rows])
        defined = sum(not np.isnan(values[name][0]) for values in each)
        found[name] = as_entry(value, bounds, int(rows.sum()), method, n_defined=defined, n_labels=len(labels))
    return found
