"""What every test of a comparison leaves behind, and the correction for how many there are."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from hemlearn.compare.pooling import Entry, Pooled
from hemlearn.compare.runs import Run
from hemlearn.evaluation.auroc import CONFIDENCE, NAN
from hemlearn.evaluation.significance import Test, corrected_resampled, holm

LEVEL = 1 - CONFIDENCE  # below it, an adjusted p is called a difference
KINDS = {
    "paired": "two groups on the same test cases",
    "unpaired": "two groups on different test cases",
    "resampled": "two groups over folds or seeds",
    "null": "a group against a model that sees no pixel inside the head",
    "leak": "split by slice against split by patient",
    "published": "a group against a published figure",
    "non-inferiority": "a group against the baseline, one-sided, with the margin",
}


@dataclass
class Contrast:
    """One comparison: made, undefined or refused.

    Attributes:
        kind: One of :data:`KINDS`.
        level: slice | series | patient.
        label: Label compared; ``""`` is the mean over labels, or the only one.
        metric: auroc | accuracy | sensitivity | specificity ...
        first: Name of the first group.
        second: Name of the second group, null or published figure.
        method: What was computed.
        difference: First minus second.
        low: Lower end of its 95 % interval.
        high: Upper end.
        statistic: z or t.
        p: Two-sided (one-sided for non-inferiority).
        p_holm: Corrected for all p values of the comparison.
        n: Cases it rests on (resamples, for kind ``resampled``).
        patients: Patients it rests on; 0 where that does not apply.
        margin: Of a non-inferiority test.
        verdict: Of a non-inferiority test.
        covers: Which variation it speaks of.
        refused: Why it was not made; empty where it was.
        note: What a reader must know.
    """

    kind: str
    level: str
    label: str
    metric: str
    first: str
    second: str
    method: str = ""
    difference: float = NAN
    low: float = NAN
    high: float = NAN
    statistic: float = NAN
    p: float = NAN
    p_holm: float = NAN
    n: int = 0
    patients: int = 0
    margin: float = NAN
    verdict: str = ""
    covers: str = ""
    refused: str = ""
    note: str = ""

    @property
    def made(self) -> bool:
        """Whether there is a p value."""
        return self.p == self.p

    @property
    def differs(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p_holm < LEVEL

    def take(self, test: Test, covers: str = "") -> Contrast:
        """This comparison with the outcome of a test."""
        return dataclasses.replace(
            self,
            method=test.name,
            difference=test.difference,
            low=test.low,
            high=test.high,
            statistic=test.statistic,
            p=test.p,
            n=test.n,
            patients=test.clusters,
            note="; ".join(filter(None, [self.note, test.note])),
            covers=covers or self.covers,
        )


def adjust(contrasts: Sequence[Contrast]) -> int:
    """Set the Holm-corrected p of every comparison made, all of them together; returns their number."""
    for contrast, p in zip(contrasts, holm([c.p for c in contrasts]), strict=True):
        contrast.p_holm = float(p)
    return sum(contrast.made for contrast in contrasts)


def as_table(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """One row per comparison, the columns in the order of :class:`Contrast`."""
    names = [f.name for f in dataclasses.fields(Contrast)]
    return pd.DataFrame([dataclasses.asdict(c) for c in contrasts], columns=names)


def shared(first: Pooled, second: Pooled) -> int:
    """Number of cases that both hold."""
    return len(set(first.unit.tolist()) & set(second.unit.tolist()))


def record(contrast: Contrast) -> dict[str, Any]:
    """Plain values of a comparison."""
    return dataclasses.asdict(contrast)


# --- Two groups over the folds and seeds they share: does training again give the same answer?


_Split = tuple[object, ...]


def over_shared_splits(first: Entry, second: Entry, level: str) -> list[Contrast]:
    """The comparison of two groups over their runs; empty where no two runs of each share split and seed."""
    one, two = (_values(entry, level) for entry in (first, second))
    both = sorted(set(one) & set(two), key=str)
    by_split: dict[_Split, list[float]] = defaultdict(list)
    for key in both:
        by_split[key[:-1]].append(one[key][0] - two[key][0])
    if len(both) < 2:
        return []
    blank = Contrast("resampled", level, "", "auroc", first.name, second.name)
    if len(by_split) == 1:
        covers = f"{len(both)} seeds on one split: initialisation and order of training; "
        covers += "neither new patients nor new splits"
        return [blank.take(_over_seeds(next(iter(by_split.values()))), covers)]
    shares = [_share(one[key][1]) for key in both]
    unknown = [one[key][1].hash for key, share in zip(both, shares, strict=True) if share is None]
    if unknown:
        blank.refused = f"run {unknown[0]} has no split.csv that tells how many patients trained and tested"
        return [blank]
    share = float(np.mean([value for value in shares if value is not None]))
    if not share > 0:
        blank.refused = "no patient is told to be tested in split.csv"
        return [blank]
    differences = [float(np.mean(values)) for values in by_split.values()]
    seeds = max(map(len, by_split.values()))
    averaged = f", {seeds} seeds of each averaged" if seeds > 1 else ""
    covers = f"{len(differences)} splits of the same patients{averaged}: training and test sets; not new patients"
    return [blank.take(corrected_resampled(differences, share), covers)]


def _values(entry: Entry, level: str) -> dict[_Split, tuple[float, Run]]:
    """(split, seed) of each run -> its AUROC and itself; runs whose key is not unique tell nothing and are left out."""
    cases = entry.cases[level]
    found: dict[_Split, tuple[float, Run]] = {}
    twice = set()
    for run, value in zip(cases.used, cases.per_run["auroc"], strict=False):
        names = ("split.name", "split.by", "split.fold", "split.folds", "split.seed", "split.file", "seed")
        sums = run.provenance.get("checksums") or {}
        key: _Split = (sums.get("split"), *(str(run.keys[name]) for name in names))
        twice |= {key} & set(found)
        found[key] = (value, run)
    return {key: item for key, item in found.items() if key not in twice}


def _share(run: Run) -> float | None:
    """Tested over trained patients (or slices, where they were split) of a run."""
    return _share_of(run.path / "split.csv")


@lru_cache(maxsize=4096)
def _share_of(file: Path) -> float | None:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            parts = [row.get("split") for row in csv.DictReader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    return parts.count("test") / parts.count("train") if parts.count("train") else None


def _over_seeds(differences: list[float]) -> Test:
    """Paired t test over seeds of one split, which are independent trainings."""
    values = np.asarray(differences, dtype=float)
    known = values[~np.isnan(values)]
    k, mean = len(known), float(known.mean()) if len(known) else NAN
    name, note = "paired t over seeds", "" if k > 1 else "fewer than two differences: no variance"
    if k < 2:
        return Test(name, mean, NAN, NAN, NAN, NAN, k, 0, note)
    spread = float(known.std(ddof=1)) / math.sqrt(k)
    if spread == 0:
        same = mean == 0
        low, p = (0.0, 1.0) if same else (NAN, NAN)
        return Test(name, mean, low, low, low, p, k, 0, "no difference varies")
    statistic = mean / spread
    reach = float(student.ppf(0.5 + CONFIDENCE / 2, k - 1)) * spread
    p = float(2 * student.sf(abs(statistic), k - 1))
    return Test(name, mean, mean - reach, mean + reach, statistic, p, k, 0, note)
