"""The tests of a comparison: pairs of groups on the same cases, over folds and seeds, against models without pixels.

Two groups are a pair when they were tested on the same cases, with the same labels for them. AUROCs are compared by
DeLong's test, or Obuchowski's where a patient has several cases; accuracies by McNemar's test, patient-clustered
likewise. Where groups share their splits, the runs' own AUROCs are compared as well (Nadeau and Bengio): that is about
training again, not about other patients. Groups split by slice are held against those split by patient.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hemlearn.compare.cases import Pooled
from hemlearn.compare.contrasts import Contrast, Endpoint, Pair
from hemlearn.compare.groups import Entry
from hemlearn.compare.runs import ComparedRun, canonical, covers
from hemlearn.evaluation.auroc import (
    CONFIDENCE,
    NAN,
    Floats,
    degrees_of_freedom,
    effective,
    macro_auroc_covariance,
    obuchowski_covariance,
    quantile,
    too_few,
    two_sided,
)
from hemlearn.evaluation.significance import (
    Test,
    corrected_resampled,
    mcnemar,
    non_inferiority,
    paired_auroc_matrix,
    paired_macro_matrix,
    unpaired_auroc,
)
from hemlearn.util.console import NOTICED, track
from hemlearn.util.errors import count

PATIENTS = "other patients like these; the trained models and the split are taken as they are"
LEAST_UNITS = 4  # effective patients, below which nothing is said about the inflation by a leak
_SPLIT = ("split.by", "split.allow_leak", "split.checksum")  # in which a leaky group and its twin may differ
_COVERS = "other patients; the trained models are taken as they are"
_Mask = npt.NDArray[np.bool_]


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
    entries: Sequence[Entry], ends: Sequence[Endpoint], pairs: Sequence[Pair], common: bool = False
) -> list[Contrast]:
    """The tests of all pairs at all endpoints, refused ones among them."""
    found: list[Contrast] = []
    for end in track(ends, "Testing groups", after=NOTICED):
        ready: dict[tuple[str, str], list[Contrast]] = {}
        for same in same_cases([e for e in entries if end.level in e.cases], end):
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
                found += ready.get((a.name, b.name)) or [c.turned() for c in ready[b.name, a.name]]
                if end.label == "":
                    found += over_shared_splits(a, b, end.level)
            elif common and overlap and apart:
                found += _on_common(a, b, end, refusal)
            else:
                found += [refusal, _unpaired(a, b, end, overlap)] if apart else [refusal]
    return found


def same_cases(entries: Sequence[Entry], end: Endpoint) -> list[list[Entry]]:
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
    note = f"on the {count(len(units), 'case')} both were tested on, of {sizes[0]} and {sizes[1]}"
    tests = _set_of_tests(pair, end)[a.name, b.name]
    return [replace(c, note="; ".join(filter(None, [note, c.note]))) for c in tests]


def _unpaired(a: Entry, b: Entry, end: Endpoint, overlap: int) -> Contrast:
    """Two groups as two samples of patients."""
    columns = _columns(a, b, end)
    (area1, var1, df1, n1, who1), (area2, var2, df2, n2, who2) = (_area_of(e.cases[end.level], columns) for e in (a, b))
    patients = len(who1) + len(who2)
    test = unpaired_auroc(area1, var1, area2, var2, df=(df1, df2), n=n1 + n2, clusters=patients)
    note = "made in place of a paired test; the groups also differ in their patients" + _of_some(a, columns, end)
    both = len(who1 & who2)
    if both or overlap:
        note += f"; {count(both, 'patient is', 'patients are')} in both samples: as a rule the p is then too large"
    blank = Contrast("unpaired", end.level, end.label, "auroc", a.name, b.name, note=note)
    return blank.take(test, "two samples of patients")


def _columns(a: Entry, b: Entry, end: Endpoint) -> list[int]:
    """The labels over which groups with other cases are compared: of a mean those that have both classes in either."""
    labels, both = a.group.labels, [entry.cases[end.level].y for entry in (a, b)]
    if end.label:
        return [labels.index(end.label)]
    every = list(range(len(labels)))
    return [j for j in every if all({0.0, 1.0} <= set(y[:, j].tolist()) for y in both)] or every


def _of_some(entry: Entry, columns: Sequence[int], end: Endpoint) -> str:
    lacking = [] if end.label else [c for j, c in enumerate(entry.group.labels) if j not in columns]
    return f"; without {', '.join(lacking)}, of which a class is absent in one" if lacking else ""


def _area_of(cases: Pooled, columns: list[int]) -> tuple[float, float, float, int, set[str]]:
    """AUROC of a group, its variance and degrees of freedom, the number of cases and the patients."""
    y, p = cases.y[:, columns], cases.p[:, columns]
    known = ~np.isnan(y).all(axis=1)
    n, who = int(known.sum()), set(cases.patient[known])
    if len(columns) > 1:
        found = macro_auroc_covariance(y, p, cases.code)
        return float(found.macro[0]), float(found.covariance[0, 0]), found.df, n, who
    truth, code = y[known, 0], cases.code[known]
    areas, covariance = obuchowski_covariance(truth, p[known, 0], code)
    refused = too_few(*(len(np.unique(code[truth == c])) for c in (1, 0)))
    df = degrees_of_freedom(truth, code)
    return float(areas[0]), NAN if refused else float(covariance[0, 0]), min(df, n - 1), n, who


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
        scope = f"{count(len(both), 'seed')} on one split: initialisation and order of training; "
        scope += "neither new patients nor new splits"
        return [blank.take(corrected_resampled(next(iter(by_split.values())), None), scope)]
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
    scope = f"{len(differences)} splits of the same patients{averaged}: training and test sets; not new patients"
    return [blank.take(corrected_resampled(differences, share), scope)]


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
        test = Test(c.method, c.difference, c.low, c.high, c.statistic, c.p, c.n, c.patients, "")
        judged = non_inferiority(test, margin)
        verdict = {True: "non-inferior", False: "not shown", None: "undefined"}[judged.non_inferior]
        c = replace(c, kind="non-inferiority", margin=margin, verdict=verdict)
        found.append(replace(c, statistic=NAN, p=judged.p, p_holm=NAN))
    return found


# --- What a split by slice pretends: leaky groups beside those that differ from them in nothing but the split.


def twins(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Each leaky group with the group split by patient that has the same settings otherwise."""

    def settings(entry: Entry) -> tuple[object, ...]:
        values = entry.group.values.items()
        return *((key, canonical(value)) for key, value in values if not covers(_SPLIT, key)), entry.group.task

    honest = {settings(entry): entry for entry in entries if not entry.group.leaky}
    pairs = [(entry, honest.get(settings(entry))) for entry in entries if entry.group.leaky]
    return [(entry, twin) for entry, twin in pairs if twin is not None]


def inflations(entries: Sequence[Entry], ends: Sequence[Endpoint]) -> list[Contrast]:
    """By how much a leaky group seems better than its twin: differences of AUROC and accuracy.

    The test sets hold the same cases (all folds of both pooled), or other slices of partly the same patients: neither a
    paired nor an unpaired test fits both, see :func:`difference_over_patients`.
    """
    found: list[Contrast] = []
    for leaky, honest in twins(entries):
        for end in ends:
            if end.level not in leaky.cases or end.level not in honest.cases:
                continue
            if end.label and end.label not in honest.group.labels:
                continue
            found += [
                Contrast("leak", end.level, end.label, metric, leaky.name, honest.name).take(test, _COVERS)
                for metric, test in difference_over_patients(leaky, honest, end).items()
            ]
    return found


def difference_over_patients(first: Entry, second: Entry, end: Endpoint) -> dict[str, Test]:
    """Differences of AUROC and accuracy between test sets that may share patients, by t over all patients of both.

    Each patient's pulls on the two figures are subtracted before they are squared, so that what the sets have in common
    is allowed for. Degrees of freedom: the effective patients of the set with fewer (of AUROC, those of the rarer
    class), less 1; p and interval are of that one statistic.
    """
    a, b = first.cases[end.level], second.cases[end.level]
    patients = np.union1d(a.patient, b.patient)
    both = count(len(set(a.patient.tolist()) & set(b.patient.tolist())), "shared patient")
    same = np.array_equal(a.unit, b.unit) and np.array_equal(a.y, b.y, equal_nan=True)
    note = "the same cases, paired" if same else f"other cases of {both}"
    columns, found = _columns(first, second, end), {}
    pulls: dict[str, list[_Pulls | None]] = {
        "auroc": [_auroc_pulls(entry.cases[end.level], columns) for entry in (first, second)],
        "accuracy": [_accuracy_pulls(entry, entry.cases[end.level], end.label) for entry in (first, second)],
    }
    for metric, parts in pulls.items():
        if None in parts:
            continue
        (one, pull1, units1, why1), (two, pull2, units2, why2) = (part for part in parts if part is not None)
        pull = np.zeros(len(patients))
        for sign, cases, own in ((1, a, pull1), (-1, b, pull2)):
            pull[np.searchsorted(patients, np.unique(cases.patient))] += sign * own
        test = t_of_pulls(one - two, pull, min(units1, units2), why1 or why2)
        some = _of_some(first, columns, end) if metric == "auroc" else ""
        told = "; ".join(filter(None, (note + some, test.note)))
        found[metric] = test._replace(n=len(a.y) + (0 if same else len(b.y)), clusters=len(patients), note=told)
    return found


def t_of_pulls(difference: float, pull: Floats, units: float, why: str = "") -> Test:
    """T test of a difference from each patient's pull on it; ``why`` says that it has no answer."""
    name, spread = "t over patients", float(np.sqrt((pull**2).sum()))
    if not why and not units >= LEAST_UNITS:
        why = f"worth {count(round(units, 1), 'patient')} of equal weight: no test below {LEAST_UNITS}"
    if why or difference != difference:
        return Test(name, difference, NAN, NAN, NAN, NAN, 0, 0, why)
    if not spread > 1e-9:
        same = abs(difference) < 1e-9
        low, high, t, p = (0.0, 0.0, 0.0, 1.0) if same else (NAN, NAN, NAN, NAN)
        return Test(name, difference, low, high, t, p, 0, 0, "no patient varies")
    t, reach = difference / spread, quantile(CONFIDENCE, units - 1) * spread
    return Test(name, difference, difference - reach, difference + reach, t, two_sided(t, units - 1), 0, 0, "")


_Pulls = tuple[float, Floats, float, str]  # a figure, (G,) pulls on it, effective patients, why it has no variance


def _auroc_pulls(cases: Pooled, columns: list[int]) -> _Pulls:
    found = macro_auroc_covariance(cases.y[:, columns], cases.p[:, columns], cases.patient)
    why = found.note if np.isnan(found.covariance).any() else ""
    return float(found.macro[0]), found.pulls[0], found.units, why


def _accuracy_pulls(entry: Entry, cases: Pooled, label: str) -> _Pulls | None:
    calls = _right_calls(entry, cases, label)
    if calls is None:
        return None
    right, known = calls[0].astype(float), calls[1]
    code = np.unique(cases.patient, return_inverse=True)[1]
    rate, own = float(right.mean()) if len(right) else NAN, code[known]
    pull = np.bincount(own, weights=right - rate, minlength=int(code.max()) + 1) / max(len(right), 1)
    groups = len(np.unique(own))
    return rate, pull * np.sqrt(groups / max(groups - 1, 1)), effective(own), "" if groups > 1 else "one patient"
