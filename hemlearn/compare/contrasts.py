"""Which groups differ: every pair tested on the same test cases, or refused with the reason; one record per test.

Two groups are a pair when they were tested on the same cases, with the same labels for them. AUROCs are compared by
DeLong's test, or Obuchowski's where a patient has several cases; accuracies by McNemar's test, patient-clustered
likewise. Where groups share their splits, the runs' own AUROCs are compared as well (Nadeau and Bengio): that is about
training again, not about other patients.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import t as student

from hemlearn.compare.cases import Pooled
from hemlearn.compare.groups import ANY, Entry
from hemlearn.compare.runs import ComparedRun
from hemlearn.evaluation.auroc import CONFIDENCE, NAN, macro_auroc_covariance, obuchowski_covariance
from hemlearn.evaluation.significance import (
    Test,
    corrected_resampled,
    holm,
    mcnemar,
    non_inferiority,
    paired_auroc_matrix,
    paired_macro_matrix,
    unpaired_auroc,
)
from hemlearn.reports.tables import UNDEFINED, UNITS, scale_of, signed

LEVEL = 1 - CONFIDENCE  # below it, an adjusted p is called a difference
ALL_PAIRS = 12  # groups of which every pair is tested; beyond, each is tested against one
PATIENTS = "other patients like these; the trained models and the split are taken as they are"
KINDS = {
    "paired": "two groups on the same test cases",
    "unpaired": "two groups on different test cases",
    "resampled": "two groups over folds or seeds",
    "null": "a group against a model that sees no pixel inside the head",
    "leak": "split by slice against split by patient",
    "published": "a group against a published figure",
    "non-inferiority": "a group against the baseline, one-sided, with the margin",
}
_Pair = tuple[Entry, Entry]
_Mask = npt.NDArray[np.bool_]


@dataclass
class Contrast:
    """One comparison: made, undefined or refused. A row of ``tests.csv``, in this order of columns."""

    kind: str  # one of :data:`KINDS`
    level: str  # slice | series | patient
    label: str  # label compared; ``""`` is the mean over labels, or the only one
    metric: str  # auroc | accuracy | sensitivity | specificity
    first: str  # name of the first group
    second: str  # name of the second group, baseline model or published figure
    method: str = ""  # what was computed
    difference: float = NAN  # first minus second
    low: float = NAN  # lower end of its 95 % interval
    high: float = NAN  # upper end
    statistic: float = NAN  # z or t
    p: float = NAN  # two-sided (one-sided for non-inferiority)
    p_holm: float = NAN  # corrected for all p values of the comparison
    n: int = 0  # cases it rests on (resamples, for kind ``resampled``)
    patients: int = 0  # patients it rests on; 0 where that does not apply
    margin: float = NAN  # of a non-inferiority test
    verdict: str = ""  # of a non-inferiority test
    covers: str = ""  # which variation it speaks of
    refused: str = ""  # why it was not made; empty where it was
    note: str = ""  # what a reader must know

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
        return replace(
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

    def turned(self) -> Contrast:
        """The same comparison, second minus first."""
        note = self.note
        if note.startswith("discordant pairs "):
            counts, _, rest = note.removeprefix("discordant pairs ").partition(";")
            note = f"discordant pairs {':'.join(reversed(counts.split(':')))}" + (f";{rest}" if rest else "")
        return replace(
            self,
            first=self.second,
            second=self.first,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            statistic=-self.statistic,
            note=note,
        )

    @property
    def where(self) -> str:
        """Its endpoint in words, such as ``patients, any``."""
        return Endpoint(self.level, self.label).name()

    def text(self, bounds: bool = True) -> str:
        """``+0.031 (-0.004 to +0.066)``; differences of rates in percentage points."""
        if self.difference != self.difference:
            return UNDEFINED
        scale, digits = scale_of(self.metric)
        text, low, high = (signed(v * scale, digits) for v in (self.difference, self.low, self.high))
        return f"{text} ({low} to {high})" if bounds and self.low == self.low else text


def adjust(contrasts: Sequence[Contrast]) -> int:
    """Set the Holm-corrected p of every comparison made, all of them together; returns their number."""
    for contrast, p in zip(contrasts, holm([c.p for c in contrasts]), strict=True):
        contrast.p_holm = float(p)
    return sum(contrast.made for contrast in contrasts)


def as_table(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """One row per comparison."""
    names = [field.name for field in dataclasses.fields(Contrast)]
    return pd.DataFrame([dataclasses.asdict(c) for c in contrasts], columns=names)


# --- What is compared.


@dataclass(frozen=True)
class Endpoint:
    """A level and a label (``""``: the only one, or the mean over labels)."""

    level: str
    label: str

    def name(self, several: bool = False) -> str:
        """``patients, any`` or ``slices, mean over labels``."""
        unit = UNITS.get(self.level, self.level)
        return unit + (f", {self.label}" if self.label else ", mean over labels" if several else "")


def endpoints(entries: Sequence[Entry], wanted: Sequence[str] = ()) -> list[Endpoint]:
    """Levels and labels to be tested: the label itself; of several their mean, ``any`` and those ``wanted``.

    A level whose cases and probabilities are those of another level is left out: nothing new would be compared.
    """
    found: list[Endpoint] = []
    for level in dict.fromkeys(level for entry in entries for level in entry.cases):
        at = [entry for entry in entries if level in entry.cases]
        if level == "series" and all(_same_as_patient(entry) for entry in at):
            continue
        several = [entry.group.labels for entry in at if len(entry.group.labels) > 1]
        labels = dict.fromkeys(label for labels in several for label in labels)
        found += [Endpoint(level, name) for name in ("", *(c for c in labels if c == ANY or c in wanted))]
    return found


def primary(ends: Sequence[Endpoint]) -> Endpoint:
    """The endpoint of the headline: patients where they are judged, and label ``any`` where there is one."""
    level = "patient" if any(end.level == "patient" for end in ends) else ends[0].level
    at = [end for end in ends if end.level == level]
    return next((end for end in at if end.label == ANY), at[0])


def _same_as_patient(entry: Entry) -> bool:
    """Whether every patient has one series, called alike."""
    series, patient = entry.cases["series"], entry.cases.get("patient")
    if patient is None or series.p.shape != patient.p.shape or series.clustered:
        return False
    order = np.argsort(series.patient, kind="stable")
    return bool((series.decision[order] == patient.decision).all() and (series.p[order] == patient.p).all())


def chosen_pairs(entries: Sequence[Entry], anchor: Entry) -> list[_Pair]:
    """Every pair of up to twelve groups; of more, each group with the ``anchor``."""
    if len(entries) <= ALL_PAIRS:
        return list(combinations(entries, 2))
    return [(entry, anchor) for entry in entries if entry is not anchor]


def best(entries: Iterable[Entry]) -> Entry:
    """The group of highest AUROC; leaky ones only where there is no other, the first among equals."""
    listed = list(entries)
    honest = [entry for entry in listed if not entry.group.leaky] or listed
    return max(honest, key=lambda entry: entry.auroc if entry.auroc == entry.auroc else -1.0)


def why_not_paired(first: Entry, second: Entry, level: str) -> str:
    """Why two groups are no pair at a level; empty where they are."""
    if first.group.task != second.group.task:
        one, other = (f"{e.group.kind} {', '.join(e.group.labels)}" for e in (first, second))
        return f"different labels: {one}; and {other}"
    if first.group.leaky != second.group.leaky:
        return "one was split by slice, the other by patient: see the inflation by the leak"
    a, b = first.cases[level], second.cases[level]
    if not np.array_equal(a.unit, b.unit):
        return f"tested on different cases: {len(a.unit)} and {len(b.unit)}, of which {_shared(a, b)} are the same"
    return _contradiction(a, b, level)


def _shared(first: Pooled, second: Pooled) -> int:
    return len(set(first.unit.tolist()) & set(second.unit.tolist()))


def _contradiction(a: Pooled, b: Pooled, level: str) -> str:
    wrong = ~((a.y == b.y) | (np.isnan(a.y) & np.isnan(b.y))).all(axis=1) | (a.patient != b.patient)
    if wrong.any():
        return f"{level} {a.unit[int(wrong.argmax())]!r} has other labels or another patient in the second group"
    return ""


# --- The tests of two groups.


def paired_contrasts(
    entries: Sequence[Entry], ends: Sequence[Endpoint], pairs: Sequence[_Pair], common: bool = False
) -> list[Contrast]:
    """The tests of all pairs at all endpoints, refused ones among them."""
    found: list[Contrast] = []
    for end in ends:
        ready: dict[tuple[str, str], list[Contrast]] = {}
        for same in _same_cases([e for e in entries if end.level in e.cases], end):
            ready |= _set_of_tests(same, end)
        for a, b in pairs:
            if not (end.level in a.cases and end.level in b.cases):
                continue
            if end.label and end.label not in a.group.labels + b.group.labels:
                continue
            reason = why_not_paired(a, b, end.level)
            overlap = _shared(a.cases[end.level], b.cases[end.level]) if reason else 0
            apart = reason.startswith("tested on")
            refusal = Contrast("paired", end.level, end.label, "auroc", a.name, b.name, refused=reason)
            if not reason:
                found += ready[a.name, b.name] if (a.name, b.name) in ready else _turned(ready[b.name, a.name])
                if end.label == "":
                    found += over_shared_splits(a, b, end.level)
            elif common and overlap and apart:
                found += _on_common(a, b, end, refusal)
            else:
                found += [refusal, _unpaired(a, b, end, overlap)] if apart else [refusal]
    return found


def _turned(contrasts: Iterable[Contrast]) -> list[Contrast]:
    return [c.turned() for c in contrasts]


def _same_cases(entries: Sequence[Entry], end: Endpoint) -> list[list[Entry]]:
    """Groups that may be paired, put together."""
    sets: list[list[Entry]] = []
    for entry in entries:
        if end.label and end.label not in entry.group.labels:
            continue
        for same in sets:
            if not why_not_paired(same[0], entry, end.level):
                same.append(entry)
                break
        else:
            sets.append([entry])
    return sets


def _set_of_tests(entries: Sequence[Entry], end: Endpoint) -> dict[tuple[str, str], list[Contrast]]:
    """Names of every pair of groups on the same cases -> their tests."""
    cases = [entry.cases[end.level] for entry in entries]
    found: dict[tuple[str, str], list[Contrast]] = {}
    for (i, j), area in auroc_tests(cases, entries[0].group.labels, end.label).items():
        first, second = entries[i], entries[j]
        tests = {"auroc": area} | accuracy_test(first, cases[i], second, cases[j], end.label)
        blank = Contrast("paired", end.level, end.label, "", first.name, second.name)
        found[first.name, second.name] = [replace(blank, metric=m).take(test, PATIENTS) for m, test in tests.items()]
    return found


def auroc_tests(cases: Sequence[Pooled], labels: Sequence[str], label: str) -> dict[tuple[int, int], Test]:
    """Tests of every pair of sets of scores on the same cases, of one label or of the mean over labels."""
    y, code = cases[0].y, cases[0].code
    scores = np.stack([item.p for item in cases])
    if label == "" and len(labels) > 1:
        return paired_macro_matrix(y, scores, code)
    j = labels.index(label) if label else 0
    known = ~np.isnan(y[:, j])
    return paired_auroc_matrix(y[known, j], scores[:, known, j], code[known])


def accuracy_test(first: Entry, a: Pooled, second: Entry, b: Pooled, label: str) -> dict[str, Test]:
    """McNemar's test of the calls on the same cases; none for a mean over labels that do not exclude each other."""
    one, two = _right_calls(first, a, label), _right_calls(second, b, label)
    return {} if one is None or two is None else {"accuracy": mcnemar(one[0], two[0], a.code[one[1]])}


def _right_calls(entry: Entry, cases: Pooled, label: str) -> tuple[_Mask, _Mask] | None:
    """Which known cases were called rightly, and which are known."""
    labels = entry.group.labels
    if label == "" and len(labels) > 1:
        if entry.group.kind != "multiclass":
            return None
        known = ~np.isnan(cases.y).any(axis=1)
        return np.asarray((cases.decision[known] & (cases.y[known] == 1)).any(axis=1)), np.asarray(known)
    j = labels.index(label) if label else 0
    known = ~np.isnan(cases.y[:, j])
    return np.asarray(cases.decision[known, j] == (cases.y[known, j] == 1)), np.asarray(known)


def _on_common(a: Entry, b: Entry, end: Endpoint, refusal: Contrast) -> list[Contrast]:
    """Tests on the cases that two groups share."""
    sizes = [len(e.cases[end.level].unit) for e in (a, b)]
    units = np.intersect1d(a.cases[end.level].unit, b.cases[end.level].unit)
    pair = [replace(entry, cases={end.level: entry.cases[end.level].restricted(units)}) for entry in (a, b)]
    reason = _contradiction(pair[0].cases[end.level], pair[1].cases[end.level], end.level)
    if reason:
        return [replace(refusal, refused=reason)]
    note = f"on the {len(units)} cases both were tested on, of {sizes[0]} and {sizes[1]}"
    tests = _set_of_tests(pair, end)[a.name, b.name]
    return [replace(c, note="; ".join(filter(None, [note, c.note]))) for c in tests]


def _unpaired(a: Entry, b: Entry, end: Endpoint, overlap: int) -> Contrast:
    """Two groups as two samples of patients."""
    (area1, var1, n1, who1), (area2, var2, n2, who2) = (area_of(e, e.cases[end.level], end.label) for e in (a, b))
    test = unpaired_auroc(area1, var1, area2, var2, n=n1 + n2, clusters=len(who1) + len(who2))
    note = "made in place of a paired test; the groups also differ in their patients"
    both = len(who1 & who2)
    if both or overlap:
        note += f"; {both} patients are in both samples: as a rule the p is then too large"
    blank = Contrast("unpaired", end.level, end.label, "auroc", a.name, b.name, note=note)
    return blank.take(test, "two samples of patients")


def area_of(entry: Entry, cases: Pooled, label: str) -> tuple[float, float, int, set[str]]:
    """AUROC of a group with its patient-clustered variance, the number of cases and the patients."""
    labels, y = entry.group.labels, cases.y
    if label == "" and len(labels) > 1:
        found = macro_auroc_covariance(y, cases.p, cases.code)
        known = ~np.isnan(y).all(axis=1)
        return float(found.macro[0]), float(found.covariance[0, 0]), int(known.sum()), set(cases.patient[known])
    j = labels.index(label) if label else 0
    known = ~np.isnan(y[:, j])
    areas, covariance = obuchowski_covariance(y[known, j], cases.p[known, j], cases.code[known])
    return float(areas[0]), float(covariance[0, 0]), int(known.sum()), set(cases.patient[known])


# --- Two groups over the folds and seeds they share: does training again give the same answer?


def over_shared_splits(first: Entry, second: Entry, level: str) -> list[Contrast]:
    """The comparison of two groups over their runs; empty where no two runs of each share split and seed."""
    one, two = (_values(entry, level) for entry in (first, second))
    both = sorted(set(one) & set(two), key=str)
    by_split: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for key in both:
        by_split[key[:-1]].append(one[key][0] - two[key][0])
    if len(both) < 2:
        return []
    blank = Contrast("resampled", level, "", "auroc", first.name, second.name)
    if len(by_split) == 1:
        covers = f"{len(both)} seeds on one split: initialisation and order of training; "
        covers += "neither new patients nor new splits"
        return [blank.take(_over_seeds(next(iter(by_split.values()))), covers)]
    shares = [_tested_share(one[key][1].path / "split.csv") for key in both]
    if None in shares:
        unknown = one[both[shares.index(None)]][1].hash
        return [replace(blank, refused=f"run {unknown} has no split.csv with its training and test patients")]
    share = float(np.mean([value for value in shares if value is not None]))
    if not share > 0:
        return [replace(blank, refused="split.csv lists no test patient")]
    differences = [float(np.mean(values)) for values in by_split.values()]
    seeds = max(map(len, by_split.values()))
    averaged = f", {seeds} seeds of each averaged" if seeds > 1 else ""
    covers = f"{len(differences)} splits of the same patients{averaged}: training and test sets; not new patients"
    return [blank.take(corrected_resampled(differences, share), covers)]


def _values(entry: Entry, level: str) -> dict[tuple[object, ...], tuple[float, ComparedRun]]:
    """(split, seed) of each run -> its AUROC and itself; runs whose key is not unique say nothing and are left out."""
    cases = entry.cases[level]
    found: dict[tuple[object, ...], tuple[float, ComparedRun]] = {}
    twice = set()
    for run, value in zip(cases.used, cases.per_run["auroc"], strict=False):
        names = ("split.name", "split.by", "split.fold", "split.folds", "split.seed", "split.file", "seed")
        sums = run.provenance.get("checksums") or {}
        key = (sums.get("split"), *(str(run.keys[name]) for name in names))
        twice |= {key} & set(found)
        found[key] = (value, run)
    return {key: item for key, item in found.items() if key not in twice}


@lru_cache(maxsize=4096)
def _tested_share(file: Path) -> float | None:
    """Tested over trained patients (or slices, where they were split) of a run."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            splits = [row.get("split") for row in csv.DictReader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    return splits.count("test") / splits.count("train") if splits.count("train") else None


def _over_seeds(differences: list[float]) -> Test:
    """Paired t test over seeds of one split, which are independent trainings."""
    known = np.asarray(differences, dtype=float)
    known = known[~np.isnan(known)]
    k, mean = len(known), float(known.mean()) if len(known) else NAN
    name = "paired t over seeds"
    if k < 2:
        return Test(name, mean, NAN, NAN, NAN, NAN, k, 0, "fewer than two differences: no variance")
    spread = float(known.std(ddof=1)) / math.sqrt(k)
    if spread == 0:
        low, p = (0.0, 1.0) if mean == 0 else (NAN, NAN)
        return Test(name, mean, low, low, low, p, k, 0, "no difference varies")
    statistic, reach = mean / spread, float(student.ppf(0.5 + CONFIDENCE / 2, k - 1)) * spread
    p = float(2 * student.sf(abs(statistic), k - 1))
    return Test(name, mean, mean - reach, mean + reach, statistic, p, k, 0, "")


# --- What needs no pair of groups.


def baseline_contrasts(entries: Sequence[Entry], ends: Sequence[Endpoint]) -> list[Contrast]:
    """Every group against the models that see no pixel, on the same cases."""
    found = []
    for end in ends:
        for entry in entries:
            cases = entry.cases.get(end.level)
            if cases is None or (end.label and end.label not in entry.group.labels):
                continue
            for name, p in cases.baselines.items():
                test = auroc_tests([cases, replace(cases, p=p)], entry.group.labels, end.label)[0, 1]
                found.append(Contrast("null", end.level, end.label, "auroc", entry.name, name).take(test, PATIENTS))
    return found


def non_inferior(contrasts: Sequence[Contrast], margin: float, baseline: Entry) -> list[Contrast]:
    """Non-inferiority to the baseline, from the paired tests of AUROC (or unpaired where there are none)."""
    found = []
    for c in contrasts:
        if c.kind not in ("paired", "unpaired") or c.metric != "auroc" or c.refused:
            continue
        if baseline.name not in (c.first, c.second):
            continue
        c = c.turned() if c.first == baseline.name else c
        judged = non_inferiority(
            Test(c.method, c.difference, c.low, c.high, c.statistic, c.p, c.n, c.patients, ""), margin
        )
        verdict = {True: "non-inferior", False: "not shown", None: "undefined"}[judged.non_inferior]
        found.append(
            replace(c, kind="non-inferiority", margin=margin, verdict=verdict, statistic=NAN, p=judged.p, p_holm=NAN)
        )
    return found
