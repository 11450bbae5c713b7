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
from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats, macro_auroc_covariance, obuchowski_covariance
from hemlearn.evaluation.bootstrap import block_size, draws, percentile, strata_of, units_of
from hemlearn.evaluation.scoring import Scorer
from hemlearn.evaluation.significance import (
    Test,
    corrected_resampled,
    mcnemar,
    non_inferiority,
    paired_auroc_matrix,
    paired_macro_matrix,
    two_sided,
    unpaired_auroc,
)
from hemlearn.util.errors import count

PATIENTS = "other patients like these; the trained models and the split are taken as they are"
REPLICATES = 1000
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
                found += ready.get((a.name, b.name)) or [c.turned() for c in ready[b.name, a.name]]
                if end.label == "":
                    found += over_shared_splits(a, b, end.level)
            elif common and overlap and apart:
                found += _on_common(a, b, end, refusal)
            else:
                found += [refusal, _unpaired(a, b, end, overlap)] if apart else [refusal]
    return found


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
    note = f"on the {count(len(units), 'case')} both were tested on, of {sizes[0]} and {sizes[1]}"
    tests = _set_of_tests(pair, end)[a.name, b.name]
    return [replace(c, note="; ".join(filter(None, [note, c.note]))) for c in tests]


def _unpaired(a: Entry, b: Entry, end: Endpoint, overlap: int) -> Contrast:
    """Two groups as two samples of patients."""
    (area1, var1, n1, who1), (area2, var2, n2, who2) = (area_of(e, e.cases[end.level], end.label) for e in (a, b))
    test = unpaired_auroc(area1, var1, area2, var2, n=n1 + n2, clusters=len(who1) + len(who2))
    note = "made in place of a paired test; the groups also differ in their patients"
    both = len(who1 & who2)
    if both or overlap:
        note += f"; {count(both, 'patient is', 'patients are')} in both samples: as a rule the p is then too large"
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

    Where both were tested on the same cases (all folds of both pooled), the paired tests are taken, clustered by
    patient. Else the test sets hold other slices of partly the same patients: neither a paired nor an unpaired test
    fits, and the patients of both are resampled together.
    """
    found: list[Contrast] = []
    for leaky, honest in twins(entries):
        for end in ends:
            a, b = leaky.cases.get(end.level), honest.cases.get(end.level)
            if a is None or b is None or (end.label and end.label not in honest.group.labels):
                continue
            labels, note = leaky.group.labels, ""
            if np.array_equal(a.unit, b.unit) and np.array_equal(a.y, b.y, equal_nan=True):
                tests = {"auroc": auroc_tests([a, b], labels, end.label)[0, 1]}
                tests |= accuracy_test(leaky, a, honest, b, end.label)
                note = "the same cases, paired"
            else:
                tests = bootstrap_difference(a, b, labels, leaky.group.kind, end.label)
            found += [
                Contrast("leak", end.level, end.label, metric, leaky.name, honest.name, note=note).take(test, _COVERS)
                for metric, test in tests.items()
            ]
    return found


def _units(metric: str, a: Pooled, b: Pooled, code: npt.NDArray[np.intp]) -> float:
    """Patients that the spread of the difference rests on, as for the intervals of each set."""
    y = np.concatenate([a.y, b.y])
    known = ~np.isnan(y)
    return min(units_of(metric, y[known[:, j], j], code[known[:, j]]) for j in range(y.shape[1]))


def bootstrap_difference(
    a: Pooled, b: Pooled, labels: Sequence[str], kind: str, label: str = "", replicates: int = REPLICATES, seed: int = 0
) -> dict[str, Test]:
    """Differences of AUROC and accuracy between test sets that may share patients.

    The patients of both sets together are resampled; a patient who stands in both is drawn for both, so that what the
    sets have in common is allowed for. The p is that of the difference over its bootstrap standard error.
    """
    patients, code = np.unique(np.concatenate([a.patient, b.patient]), return_inverse=True)
    size = len(patients)
    parts = (code[: len(a.patient)].astype(np.intp), code[len(a.patient) :].astype(np.intp))
    columns = [labels.index(label)] if label else list(range(len(labels)))
    own = "binary" if len(columns) == 1 else kind
    scorers = [
        Scorer(cases.y[:, columns], cases.p[:, columns], cases.decision[:, columns], who, own, patients=size)
        for cases, who in zip((a, b), parts, strict=True)
    ]
    strata = strata_of(np.concatenate([a.y, b.y]), np.concatenate(parts))
    block = block_size(max(len(a.y), len(b.y), size))
    point = [scorer.values(np.ones((1, size)))[0] for scorer in scorers]
    metrics = ("auroc",) if own == "multilabel" else ("auroc", "accuracy")
    drawn: dict[str, list[Floats]] = {metric: [] for metric in metrics}
    for weights in draws(strata, replicates if size > 1 else 0, seed, block):
        one, two = (scorer.values(weights)[0] for scorer in scorers)
        for metric, parts_drawn in drawn.items():
            parts_drawn.append(one[metric] - two[metric])
    both = count(len(set(a.patient.tolist()) & set(b.patient.tolist())), "shared patient")
    note = f"other cases of {both}: {count(replicates, 'resample')} of the patients of both sets together"
    found = {}
    for metric, pieces in drawn.items():
        difference = float(point[0][metric][0] - point[1][metric][0])
        every = np.concatenate(pieces) if pieces else np.full(1, NAN)
        low, high = percentile(every, difference, units=_units(metric, a, b, np.concatenate(parts)))
        known = every[~np.isnan(every)]
        spread = float(known.std(ddof=1)) if len(known) > 1 else NAN
        z = difference / spread if spread > 0 and low == low else NAN
        n = len(a.y) + len(b.y)
        found[metric] = Test("patient bootstrap", difference, low, high, z, two_sided(z), n, size, note, CONFIDENCE)
    return found
