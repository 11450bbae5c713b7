"""What a reader must be told to read a comparison rightly, collected over its groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hemlearn.reports.comparison.pooling import Pooled
from hemlearn.reports.comparison.rows import Entry
from hemlearn.reports.comparison.runs import Run

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
