"""What a reader must be told to read a comparison rightly, collected over its groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemlearn.compare.pooling import Entry, Pooled
from hemlearn.compare.runs import Run
from hemlearn.evaluation.auroc import NAN

# --- What each group cost: training time, speed and size, from what its runs wrote down.


COLUMNS = (
    "group",
    "runs",
    "fit_seconds",
    "fit_seconds_total",
    "wall_seconds",
    "images_per_second",
    "parameters",
    "epochs",
    "device",
)


def cost_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row per group: means over its runs, the sum of their training times, and what they ran on.

    ``fit_seconds`` is the time inside the fit loop, ``wall_seconds`` that of the whole run (reading, training, testing,
    figures); ``images_per_second`` that of training. What no run wrote down is NaN.
    """
    rows = []
    for entry in entries:
        runs = next(iter(entry.cases.values())).used if entry.cases else entry.group.runs
        told = [cost for cost in (run.provenance.get("cost") for run in runs) if isinstance(cost, dict)]
        fit = _numbers(told, "fit_seconds")
        devices = {str(run.provenance["device"]) for run in runs if run.provenance.get("device")}
        rows.append(
            {
                "group": entry.name,
                "runs": len(runs),
                "fit_seconds": _mean(fit),
                "fit_seconds_total": float(sum(fit)) if fit else NAN,
                "wall_seconds": _mean(_wall(runs)),
                "images_per_second": _mean(_numbers(told, "slices_per_second")),
                "parameters": _mean(_numbers(told, "parameters")),
                "epochs": _mean(_numbers(told, "epochs")),
                "device": "; ".join(sorted(devices)),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _numbers(told: Iterable[dict[str, Any]], key: str) -> list[float]:
    values = [cost.get(key) for cost in told]
    return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else NAN


def _wall(runs: Iterable[Run]) -> list[float]:
    """Seconds from start to end of each run whose status tells both."""
    found = []
    for run in runs:
        try:
            start, end = (datetime.fromisoformat(str(run.status[key])) for key in ("started", "finished"))
        except (KeyError, ValueError):
            continue  # a run that was not told when it began: the mean is over the others
        found.append((end - start).total_seconds())
    return found


# --- Where to look: the most confident errors of each group, as identifiers, without a picture.


SIDES = ("missed", "false alarm")
PER_SIDE = 20  # errors listed per group, label and side
ERROR_COLUMNS = ("group", "level", "label", "error", "rank", "case", "patient", "probability", "groups_wrong", "groups")


def failure_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """The most confident errors at each group's first level.

    A missed case was called negative, a false alarm positive; the first are those whose probability contradicts the
    label most. In a multiclass task a missed case is one whose own class was not called.

    Args:
        entries: Groups with their cases.

    Returns:
        Rows sorted by group, label, side and rank. ``groups_wrong`` of ``groups`` made the same error on the case: what
        every group gets wrong is hard, or labelled wrongly.
    """
    rows: list[dict[str, object]] = []
    for entry in entries:
        level, cases = next(iter(entry.cases.items()))
        for j, label in enumerate(entry.group.labels):
            for side in SIDES:
                found = np.flatnonzero(_wrong(cases, j, side))
                p = cases.p[found, j] * (-1 if side == "false alarm" else 1)
                first = found[np.lexsort((cases.unit[found].astype(str), p))][:PER_SIDE]
                rows += [
                    {
                        "group": entry.name,
                        "level": level,
                        "label": label,
                        "error": side,
                        "rank": rank + 1,
                        "case": cases.unit[i],
                        "patient": cases.patient[i],
                        "probability": float(cases.p[i, j]),
                    }
                    for rank, i in enumerate(first)
                ]
    _count(rows, entries)
    return pd.DataFrame(rows, columns=list(ERROR_COLUMNS))


def _wrong(cases: Pooled, label: int, side: str) -> npt.NDArray[np.bool_]:
    truth, called = cases.y[:, label], cases.decision[:, label]
    return np.asarray((truth == 1) & ~called if side == "missed" else (truth == 0) & called)


def _count(rows: Sequence[dict[str, object]], entries: Sequence[Entry]) -> None:
    """Set how many groups judged each listed case, and how many made the same error."""
    for row in rows:
        row |= {"groups_wrong": 0, "groups": 0}
    for entry in entries:
        level, cases = next(iter(entry.cases.items()))
        place = {label: j for j, label in enumerate(entry.group.labels)}
        wrong = {(c, side): _wrong(cases, j, side) for c, j in place.items() for side in SIDES}
        where = {unit: i for i, unit in enumerate(cases.unit)}
        for row in rows:
            label, i = str(row["label"]), where.get(row["case"])
            if i is None or row["level"] != level or label not in place or np.isnan(cases.y[i, place[label]]):
                continue
            row["groups"] = int(str(row["groups"])) + 1
            row["groups_wrong"] = int(str(row["groups_wrong"])) + int(wrong[label, str(row["error"])][i])


# --- What the runs' own audits say: duplicates, label counts, verdicts; put together for a comparison.


DUPLICATES = ("exact", "near", "straddling")


@dataclass
class Audits:
    """What the runs of a comparison wrote under ``audits`` in their ``metrics.json``.

    Attributes:
        runs: Runs asked.
        told: Runs that have audits.
        duplicates: Largest count of each sort over the runs; None where no run tells.
        labels: Data source -> split -> label -> counts, of the first run of each source.
        verdicts: Sentence and the number of runs that say it, the most frequent first.
        features: What the metadata null was given.
    """

    runs: int = 0
    told: int = 0
    duplicates: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(DUPLICATES))
    labels: dict[str, dict[str, dict[str, dict[str, int]]]] = field(default_factory=dict)
    verdicts: list[tuple[str, int]] = field(default_factory=list)
    features: list[str] = field(default_factory=list)


def audits_of(entries: Sequence[Entry]) -> Audits:
    """The audits of all runs that a comparison used; runs of versions without audits are counted, not guessed."""
    found = Audits()
    said: Counter[str] = Counter()
    features: dict[str, None] = {}
    for run in _used(entries):
        found.runs += 1
        audit = run.metrics.get("audits")
        if not isinstance(audit, dict):
            continue
        found.told += 1
        duplicates = audit.get("duplicates")
        for name, known in found.duplicates.items():
            count = duplicates.get(name) if isinstance(duplicates, dict) else None
            if isinstance(count, int):
                found.duplicates[name] = max(count, known or 0)
        verdict = audit.get("verdict")
        said.update(str(text) for text in (verdict if isinstance(verdict, list) else [verdict] if verdict else []))
        labels = audit.get("labels")
        if isinstance(labels, dict):
            found.labels.setdefault(_source(run), labels)
        metadata = audit.get("metadata")
        if isinstance(metadata, dict):
            features |= dict.fromkeys(map(str, metadata.get("features") or []))
    found.verdicts = sorted(said.items(), key=lambda item: (-item[1], item[0]))
    found.features = list(features)
    return found


def _used(entries: Sequence[Entry]) -> Iterable[Run]:
    for entry in entries:
        if entry.cases:
            yield from next(iter(entry.cases.values())).used


def _source(run: Run) -> str:
    data: Any = run.provenance.get("data") or {}
    return str(data.get("source") or run.keys.get("data.name"))


_LISTED = 10  # incomplete groups told by name
_NULLS = {
    "position only": "a model that knows where in its series a slice lies, and sees no pixel",
    "metadata only": "a model that knows image size, file size and header fields, and sees no pixel",
    "size only": "a model that knows the picture's height, width and aspect, and sees no pixel",
    "border only": "a model that sees a ring at the picture's border, and nothing inside the head",
}


class Notes:
    """Collects, over groups, what a reader must be told."""

    def __init__(self) -> None:
        self.clustered = self.repeats = self.pooled_folds = self.several_labels = False
        self.tested: set[int] = set()
        self.tasks: set[tuple[str, tuple[str, ...]]] = set()
        self.missing: list[str] = []
        self.leaky: list[str] = []
        self.seen: list[str] = []
        self.synthetic: list[str] = []
        self.undefined: list[str] = []
        self.nulls: list[str] = []
        self.kinds: list[str] = []
        self.more: list[str] = []

    def add(self, entry: Entry, level: str, cases: Pooled) -> None:
        """Take note of one group at one level."""
        group, name = entry.group, entry.name
        self.clustered |= cases.clustered
        self.several_labels |= len(group.labels) > 1
        self.repeats |= cases.repeats > 1
        if np.isnan(cases.y).all() or any(len(np.unique(c[~np.isnan(c)])) < 2 for c in cases.y.T):
            self.undefined.append(f"{name} ({level})")
        self.tested.add(hash(tuple(np.unique(cases.patient))))
        self.tasks.add(group.task)
        if level != next(iter(entry.cases)):
            return
        settings = cases.used[0].keys
        folds = {run.keys["split.fold"] for run in cases.used}
        # An evaluation on another data set tests all of it, whichever fold the run has learnt.
        if settings["split.name"] == "kfold" and cases.used[0].provenance.get("evaluated") != "external":
            self.pooled_folds |= len(folds) > 1
            lacking = sorted(set(range(int(settings["split.folds"]))) - folds)
            if lacking:
                named = ", ".join(map(str, lacking))
                self.missing.append(f"{name}: no result of fold {named} of {settings['split.folds']}")
        if group.leaky:
            self.leaky.append(name)
        elif any(_seen(run) for run in cases.used):
            self.seen.append(name)
        if any(run.provenance.get("data", {}).get("synthetic") for run in cases.used[:1]):
            self.synthetic.append(name)

    def lines(self, pool_keys: Sequence[str]) -> list[str]:
        """The notes, the gravest first."""
        lines = [
            f"pooled over {', '.join(pool_keys)}; sensitivity, specificity and accuracy at each run's own "
            "threshold, chosen on its validation patients"
        ]
        if self.leaky:
            told = f"LEAKY: split by slice, patients stand in training and test: {some(self.leaky)}"
            lines.insert(0, f"{told}; judged on slices alone")
        if self.seen:
            lines.insert(0, f"LEAKY: the weights a run started from had seen its test patients: {some(self.seen)}")
        if self.synthetic:
            lines.insert(0, f"SYNTHETIC data: {some(self.synthetic)}")
        if self.pooled_folds:
            lines.append("AUROC over folds ranks the scores of different models together")
        if self.clustered:
            lines.append(
                "patients have several cases: slice intervals are clustered by patient (design effect for "
                "rates, patient bootstrap for AUROC)"
            )
        if self.repeats:
            lines.append(
                "cases predicted by several runs: probabilities averaged, which is an ensemble; `by run` is "
                "the mean and standard deviation of the runs' own values"
            )
        if self.several_labels:
            lines.append("several labels: means over the labels on which a metric is defined; compare.csv has each")
        lines += [f"{name}: {_NULLS[name]}; fitted on each run's training patients" for name in self.nulls]
        if self.kinds:
            lines.append(
                f"sequence=none are runs over slices; beside the sequence model they also differ in "
                f"{', '.join(self.kinds)}"
            )
        lines += [f"incomplete: {text}" for text in self.missing[:_LISTED]]
        if len(self.missing) > _LISTED:
            lines.append(f"incomplete: {len(self.missing) - _LISTED} more groups lack folds")
        if len(self.tasks) > 1:
            lines.append(
                f"{len(self.tasks)} different sets of labels: each has a table of its own, and no test is "
                "made between them"
            )
        elif len(self.tested) > 1:
            lines.append("groups were tested on different patients: read them as separate samples, not as pairs")
        if self.undefined:
            lines.append(f"a class is absent, AUROC undefined for a label: {some(self.undefined)}")
        return lines + self.more


def _seen(run: Run) -> bool:
    """Whether a run's audits say that test patients had trained the weights it started from."""
    audits = run.metrics.get("audits")
    split = audits.get("split") if isinstance(audits, dict) else None
    return bool(isinstance(split, dict) and split.get("seen_by_weights"))


def some(names: Sequence[str]) -> str:
    """The first five names and how many more there are."""
    return "; ".join(names[:5]) + (f"; and {len(names) - 5} more" if len(names) > 5 else "")
