"""Two groups over the folds and seeds they share: does training again give the same answer?

Where both groups were trained on the same splits, each split gives a difference of their AUROCs. The training sets of
different splits share most of their patients; Nadeau and Bengio's correction allows for that. Seeds of one split are
averaged first. Where all runs share one split, the seeds themselves are compared, which tells of training alone.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from hemlearn.evaluation.significance import Test, corrected_resampled
from hemlearn.evaluation.statistics import CONFIDENCE, NAN
from hemlearn.reports.comparison.contrasts import Contrast
from hemlearn.reports.comparison.rows import Entry
from hemlearn.reports.comparison.runs import Run

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
