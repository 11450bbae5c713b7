"""Metrics of a predictions table, per split and level: what ``metrics.json`` holds, and the fast validation metrics.

Which interval each metric has, and what is null, stands in :mod:`hemlearn.evaluation.scoring`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric

from hemlearn.config.schema import TaskConfig, threshold_problem
from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats, Interval
from hemlearn.evaluation.bootstrap import REPLICATES, WEIGHTED_TINY
from hemlearn.evaluation.bootstrap import label_weights as check_label_weights
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.decision import DRAWS, decision_curve
from hemlearn.evaluation.predictions import (
    LEVELS,
    POSITION,
    SPLITS,
    aggregate,
    as_predictions,
    check_predictions,
    has_family,
    is_aggregate,
    label_array,
    levels_of,
    prob_array,
)
from hemlearn.evaluation.scoring import METRICS, WEIGHTED, Scorer, as_entry, decide, summarise
from hemlearn.evaluation.triage import fit_triage, triage_table
from hemlearn.util.errors import ConfigError

FALLBACK_THRESHOLD = 0.5  # where validation cannot answer the rule
_HIGHEST = 1 + 1e-6  # of a threshold: just above 1 where nothing is to be called positive
NET_BENEFIT_AT = (0.05, 0.1, 0.2, 0.3, 0.5)  # threshold probabilities
BASELINE_METRICS = ("auroc", "ap", "log_loss", WEIGHTED)  # those that need no threshold


# --- Thresholds, chosen on validation cases only. A case is called positive when its probability is at least that.
# Sources: Youden 1950; Metz 1978, Semin. Nucl. Med. 8:283 (the operating point that costs least).


def choose_threshold(y: npt.ArrayLike, p: npt.ArrayLike, rule: Any) -> float:
    """The threshold that a rule prefers.

    Every cut between two neighbouring scores, below the lowest and above the highest is judged. A cut is placed in
    the middle of its gap, where it is least sensitive to new cases; among equally good cuts the one nearest to 0.5
    wins. Cases with a null label are left out. Shapes: y (N,), p (N,).
    """
    problem = threshold_problem(rule)
    if problem:
        remedy = "use a number, youden, accuracy, f1, sensitivity:0.95, specificity:0.9 or cost:5"
        raise ConfigError(f"task.threshold={rule!r}: {problem}", remedy=remedy)
    if not isinstance(rule, str):
        return float(rule)
    name, _, text = rule.partition(":")
    target = float(text) if text else NAN
    truth, score = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    known = ~np.isnan(truth)
    truth, score = truth[known], score[known]
    if not np.isfinite(score).all():
        raise ValueError("scores hold NaN or infinity")
    positives = float(truth.sum())
    negatives = len(truth) - positives
    rests_on = {"accuracy": (), "f1": (positives,), "sensitivity": (positives,), "specificity": (negatives,)}
    if not len(truth) or not all(rests_on.get(name, (positives, negatives))):
        return NAN
    values, inverse = np.unique(score, return_inverse=True)
    at = np.bincount(inverse, minlength=len(values)).astype(float)
    positive_at = np.bincount(inverse, weights=truth, minlength=len(values))
    # Cut k calls values[k:] positive; cut len(values) calls none.
    tp = np.append(np.cumsum(positive_at[::-1])[::-1], 0.0)
    fp = np.append(np.cumsum((at - positive_at)[::-1])[::-1], 0.0)
    middle = _middles(values)
    if name == "sensitivity":
        return float(middle[np.flatnonzero(tp >= target * positives * (1 - 1e-12))[-1]])
    if name == "specificity":
        return float(middle[np.flatnonzero(negatives - fp >= target * negatives * (1 - 1e-12))[0]])
    if name == "youden":
        gain = tp * negatives - fp * positives  # times a constant, in whole numbers: ties are exact
    elif name == "accuracy":
        gain = tp - fp
    elif name == "cost":
        gain = target * tp - fp
    else:
        gain = 2 * tp / (positives + tp + fp)
    best = np.flatnonzero(gain >= gain.max() - 1e-12 * max(1.0, abs(gain.max())))
    return float(middle[best[np.argmin(np.abs(middle[best] - 0.5))]])


def _middles(values: Floats) -> Floats:
    """(K + 1,) thresholds of the cuts below, between and above K ascending scores."""
    edges = np.concatenate([[min(0.0, values[0])], values, [max(1.0, values[-1])]])
    middle = (edges[:-1] + edges[1:]) / 2
    # A middle must lie above the lower score, or rounding between neighbouring floats would change the decision.
    middle[1:-1] = np.where(middle[1:-1] > values[:-1], middle[1:-1], values[1:])
    if values[-1] >= 1:
        middle[-1] = np.nextafter(values[-1], 2.0)  # nothing is called positive
    return np.asarray(middle)


def fit_thresholds(df: pd.DataFrame, task: TaskConfig) -> dict[str, dict[str, Any]]:
    """Thresholds of each label from the rows of one split (validation), at one level."""
    if task.kind == "multiclass":
        return {}
    found: dict[str, dict[str, Any]] = {}
    y, p = label_array(df, task.labels), prob_array(df, task.labels)
    for j, label in enumerate(task.labels):
        value = choose_threshold(y[:, j], p[:, j], task.threshold)
        note = None
        if value != value:
            value = FALLBACK_THRESHOLD
            note = f"validation cannot answer {task.threshold!r} (a class is absent): {FALLBACK_THRESHOLD} taken"
        n = int((~np.isnan(y[:, j])).sum())
        found[label] = {"value": value, "rule": task.threshold, "n": n, "note": note}
    return found


def operating_points(metrics: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Level -> label -> operating point, of a ``metrics.json`` and of the task in its ``config.yaml``.

    Raises:
        ValueError: A label has none, or one that is no probability.
    """
    found: Any = metrics.get("thresholds")
    labels = () if task.get("kind") == "multiclass" else task.get("labels") or ()
    for level in LEVELS if task.get("level") != "series" else LEVELS[1:]:
        for label in labels:
            try:
                value = found[level][label]["value"]
            except (KeyError, TypeError, IndexError):  # what is no table has no entry
                value = "missing"
            if not isinstance(value, int | float) or not 0 <= value <= _HIGHEST:
                raise ValueError(f"thresholds, {level}, {label}: {value!r:.40} is no threshold")
    return found if isinstance(found, dict) else {}


# --- All metrics of a table.


def evaluate(
    df: pd.DataFrame,
    task: TaskConfig,
    *,
    thresholds: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    calibration: Calibration | None = None,
    triage: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    levels: Sequence[str] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of a predictions table: the content of ``metrics.json``.

    Args:
        df: One row per slice, see :mod:`hemlearn.evaluation.predictions`.
        task: Labels, kind, level, aggregation, label weights and threshold rule.
        thresholds: ``evaluate(...)["thresholds"]`` of a finished run, to keep its operating points on other data; None
            fits them on the rows of split ``val``.
        calibration: That of the run, already applied to ``df``: it brings series and patients to probabilities. Where
            they are means or maxima over slices and it has no map of them, they are scores: there is no log loss, Brier
            score or ECE, and ``about["scores"]`` names the level.
        triage: ``evaluate(...)["triage"]["cuts"]`` of a finished run; None fits them on the rows of split ``val`` where
            the task asks for triage.
        levels: Levels wanted; None takes slice, series and patient, without slice where the labels describe series
            (``task.level``).
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.

    Returns:
        ``{split: {level: metrics}, "thresholds": {level: {label: ...}}, "about": {...}}`` for the splits present;
        ``metrics`` as in :func:`~hemlearn.evaluation.scoring.summarise`. A table with ``position_prob_*`` adds
        ``"nulls": {"position": {"test": {level: metrics}}}`` (see :func:`baseline_metrics`).
        ``"net_benefit": {"test": {level: {label: [...]}}}`` are points of the decision curves of levels that have
        probabilities (see :func:`net_benefits`).
        A task that asks for triage adds ``"triage": {"cuts": {level: {label: ...}}, split: {level: {label: ...}}}``
        (see :mod:`hemlearn.evaluation.triage`).
        ``about`` counts cases, patients and, in multiclass tasks, units whose slices disagree on the class (left
        out). Ready for ``json.dump``: undefined is None.
    """
    wanted = levels_of(task) if levels is None else tuple(level for level in LEVELS if level in levels)
    if not wanted or (levels is not None and set(levels) - set(LEVELS)):
        raise ValueError(f"levels {levels}: expected some of {LEVELS}")
    check_predictions(df, "predictions", task.labels)
    maps = calibration or Calibration.none(task)
    about: dict[str, Any] = {
        "confidence": CONFIDENCE,
        "replicates": replicates,
        "seed": seed,
        "scores": [],
        "counts": {},
    }
    used: dict[str, Any] = {}
    found: dict[str, Any] = {split: {} for split in SPLITS if (df["split"] == split).any()}
    about["counts"] = {split: {} for split in found}
    rows_at: dict[tuple[str, str], pd.DataFrame] = {}
    at_slices: list[float] = []
    asked = (task.triage_error, task.triage_value) != (None, None)
    cuts: dict[str, Any] = {}
    options: Any = {"label_weights": task.label_weights, "replicates": replicates, "seed": seed}
    for level in wanted:
        units = maps.aggregate(df, level, task.aggregate)
        score = maps.only_ranks(df, level, task.aggregate)
        about["scores"] += [level] if score else []
        for split in found:
            rows_at[level, split] = units[units["split"] == split]
        validation = rows_at.get((level, "val"), units.iloc[:0])
        if level == "slice" and task.trained_level == "series" and len(validation):  # no labels of slices were seen
            validation = maps.aggregate(df[df["split"] == "val"], "series", task.aggregate)
        used[level] = copy.deepcopy(dict(thresholds[level])) if thresholds else fit_thresholds(validation, task)
        if asked:
            cuts[level] = fit_triage(validation, task) if triage is None else {c: triage[level][c] for c in task.labels}
        values = [used[level][label]["value"] for label in task.labels] if used[level] else []
        at_slices = values if level == "slice" else at_slices
        for split in found:
            rows = rows_at[level, split]
            y, p = label_array(rows, task.labels), prob_array(rows, task.labels)
            about["counts"][split][level] = {"n": len(rows), "patients": int(rows["patient_id"].nunique())}
            if level != "slice" and task.kind == "multiclass":
                unclear = int(np.isnan(y).any(axis=1).sum())
                about["counts"][split][level]["without_one_class"] = unclear
            # One slice per unit, with the same value and threshold.
            same = values == at_slices and len(rows) == len(rows_at.get(("slice", split), ()))
            same &= level != "slice" and task.aggregate != "model" and level not in maps.units and not score
            if same:
                found[split][level] = copy.deepcopy(found[split]["slice"])
                continue
            calls, who = decide(p, values, task.kind), rows["patient_id"].to_numpy()
            found[split][level] = summarise(y, p, calls, who, task.labels, task.kind, scores=score, **options)
    result = {**found, "thresholds": used, "about": about}
    if asked:
        result["triage"] = {"cuts": cuts}
        for split in found:
            own = {level: triage_table(rows_at[level, split], task.labels, cuts[level]) for level in wanted}
            result["triage"][split] = own
    if "test" in found:
        judged = {level: rows_at[level, "test"] for level in wanted if level not in about["scores"]}
        drawn = {"draws": min(replicates, DRAWS), "seed": seed}
        result["net_benefit"] = {"test": {k: net_benefits(rows, task.labels, **drawn) for k, rows in judged.items()}}
    if "test" in found and has_family(df, POSITION):
        result["nulls"] = {"position": {"test": baseline_metrics(df, task, wanted, replicates=replicates, seed=seed)}}
    return result


def net_benefits(
    units: pd.DataFrame, labels: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Label -> net benefit at ``NET_BENEFIT_AT``, entries as in ``metrics.json``.

    Beside value, low, high, n and method each has its ``threshold`` and ``treat_all``, the net benefit of treating
    everybody; of treating nobody it is 0 (:mod:`hemlearn.evaluation.decision`).
    """
    y, p, who = label_array(units, labels), prob_array(units, labels), pd.factorize(units["patient_id"])[0]
    found = {}
    for j, label in enumerate(labels):
        curve = decision_curve(y[:, j], p[:, j], who, np.array(NET_BENEFIT_AT), draws=draws, seed=seed)
        n = int((~np.isnan(y[:, j])).sum())
        found[label] = [
            as_entry(value, Interval(low, high), n, "patient bootstrap", threshold=at, treat_all=every)
            for at, value, low, high, every in zip(*(part.tolist() for part in curve), strict=True)
        ]
    return found


def baseline_metrics(
    df: pd.DataFrame, task: TaskConfig, levels: Sequence[str], *, replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Any]:
    """Test metrics of the position-only baseline, per level: AUROC, AP, log loss, weighted log loss of several labels.

    Slices are averaged over a series or patient, unless the task takes their maximum; such a score has no log loss.
    AUROC and the weighted log loss
    have intervals, as those of the run beside which they stand.
    """
    rows = as_predictions(df[df["split"] == "test"], task.labels, POSITION)
    options: Any = {"label_weights": task.label_weights, "replicates": replicates, "seed": seed}
    found: dict[str, Any] = {}
    for level in levels:
        how = "max" if task.aggregate == "max" else "mean"
        units, score = aggregate(rows, level, how, task.kind), is_aggregate(rows, level, how)
        y, p = label_array(units, task.labels), prob_array(units, task.labels)
        calls = decide(p, np.full(p.shape[1], FALLBACK_THRESHOLD), task.kind)
        who = units["patient_id"].to_numpy()
        some: Any = {"intervals": ("auroc", WEIGHTED), "scores": score, **options}
        every = summarise(y, p, calls, who, task.labels, task.kind, **some)
        tables = every["labels"]
        kept = {name: every[name] for name in BASELINE_METRICS if name in every}
        kept["labels"] = {c: {n: tables[c][n] for n in BASELINE_METRICS if n in tables[c]} for c in task.labels}
        found[level] = kept
    return found


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The defined values of :func:`evaluate` for loggers, as ``test/slice/auroc`` and ``test/slice/auroc/LABEL``."""
    found: dict[str, float] = {}
    for split, level in ((s, lv) for s in SPLITS if s in metrics for lv in LEVELS if lv in metrics[s]):
        entries = metrics[split][level]
        tables = {"": entries}
        if len(entries["labels"]) > 1:
            tables |= {f"/{label}": table for label, table in entries["labels"].items()}
        for suffix, table in tables.items():
            values = {name: table[name]["value"] for name in (*METRICS, WEIGHTED) if name in table}
            found |= {f"{split}/{level}/{name}{suffix}": v for name, v in values.items() if v is not None}
    return found


def fast_metrics(
    y: npt.ArrayLike, p: npt.ArrayLike, kind: str, label_weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Point estimates for validation after each epoch: auroc, ap, accuracy, log_loss, brier; NaN where undefined.

    Multilabel tasks have ``weighted_log_loss`` too. Accuracy is taken at 0.5 (multiclass: the most probable class).
    Several labels are put together as in :class:`~hemlearn.evaluation.scoring.Scorer`. Probabilities that are not
    finite make all of them NaN. Shapes: y (N, L), p (N, L), label_weights (L,).
    """
    names = ("auroc", "ap", "accuracy", "log_loss", "brier", *([WEIGHTED] if kind == "multilabel" else []))
    truth, prob = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if not len(truth) or not np.isfinite(prob).all():
        return dict.fromkeys(names, NAN)
    decision = decide(prob, np.full(prob.shape[1], 0.5), kind)
    weights = None
    if label_weights is not None:
        weights = check_label_weights(label_weights, [f"label {j}" for j in range(prob.shape[1])])
    scorer = Scorer(truth, prob, decision, np.zeros(len(truth), dtype=np.intp), kind, weights)
    top, _ = scorer.values(np.ones((1, 1)))
    return {name: float(top[name][0]) for name in names}


# --- The weighted log loss of the RSNA 2019 challenge.


class WeightedLogLoss(Metric):
    """The weighted log loss of the RSNA 2019 intracranial hemorrhage challenge over batches and processes.

    The states are two sums (loss, weight), so that processes with different numbers of cases add up rightly. They are
    float64, which every device but Apple's ``mps`` has; there the metric belongs on the CPU.

    Args:
        labels: L names, for messages.
        weights: L weights; None: equal ones.
        options: Further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ConfigError: The weights do not fit the labels.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    weights: Tensor
    loss: Tensor
    total: Tensor

    def __init__(self, labels: Sequence[str], weights: Sequence[float] | None = None, **options: Any) -> None:
        super().__init__(**options)
        factors = torch.from_numpy(check_label_weights(weights, labels).copy())
        self.register_buffer("weights", factors, persistent=False)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("loss", default=zero.clone(), dist_reduce_fx="sum")
        self.add_state("total", default=zero.clone(), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch. Shapes: preds (B, L), target (B, L)."""
        if preds.shape != target.shape or preds.ndim != 2 or preds.shape[1] != len(self.weights):
            raise ValueError(
                f"preds {tuple(preds.shape)} and target {tuple(target.shape)} must be equal (B, L) shapes "
                f"with L={len(self.weights)}"
            )
        p = preds.detach().to(torch.float64)
        if not bool(((p >= 0) & (p <= 1)).all()):
            raise ValueError("preds holds values outside [0, 1]")
        known = ~torch.isnan(target)
        truth = torch.where(known, target, 0.0).to(torch.float64)
        bound = float(np.log(WEIGHTED_TINY))
        right, wrong = p.log().clamp_min(bound), torch.log1p(-p).clamp_min(bound)
        loss = torch.where(known, -(truth * right + (1 - truth) * wrong), 0.0)
        self.loss += (loss * self.weights).sum()
        self.total += (known * self.weights).sum()

    def compute(self) -> Tensor:
        """The loss of everything added; NaN before the first known label."""
        return self.loss / self.total
