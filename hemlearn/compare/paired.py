"""Which groups differ: every pair tested on the same test cases, or refused with the reason.

Two groups are a pair when they were tested on the same cases, with the same labels for them. AUROCs are compared by
DeLong's test, or Obuchowski's where a patient has several cases; accuracies by McNemar's test, patient-clustered
likewise. Where groups share their splits, the runs' own AUROCs are compared as well (Nadeau and Bengio): that is about
training again, not about other patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from hemlearn.compare.contrasts import Contrast, over_shared_splits, shared
from hemlearn.compare.pooling import ANY, Entry, Pooled
from hemlearn.evaluation.auroc import macro_auroc_covariance, obuchowski_covariance
from hemlearn.evaluation.significance import (
    Test,
    mcnemar,
    non_inferiority,
    paired_auroc_matrix,
    paired_macro_matrix,
    unpaired_auroc,
)

ALL_PAIRS = 12  # groups of which every pair is tested; beyond, each is tested against one
PATIENTS = "other patients like these; the trained models and the split are taken as they are"
_Pair = tuple[Entry, Entry]


@dataclass(frozen=True)
class Endpoint:
    """What is compared: a level and a label (``""``: the only one, or the mean over labels)."""

    level: str
    label: str


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
        names = [""]
        if several:
            names += [c for c in dict.fromkeys(c for labels in several for c in labels) if c == ANY or c in wanted]
        found += [Endpoint(level, name) for name in names]
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


# --- which pairs ----------------------------------------------------------------------------------------------------


def chosen_pairs(entries: Sequence[Entry], baseline: Entry | None) -> list[_Pair]:
    """Every pair of up to twelve groups; of more, each group with the baseline, else with the one of best AUROC."""
    if len(entries) <= ALL_PAIRS:
        return list(combinations(entries, 2))
    anchor = baseline or best(entries)
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
        return f"tested on different cases: {len(a.unit)} and {len(b.unit)}, of which {shared(a, b)} are the same"
    return _contradiction(a, b, level)


def _contradiction(a: Pooled, b: Pooled, level: str) -> str:
    same = (a.y == b.y) | (np.isnan(a.y) & np.isnan(b.y))
    wrong = ~same.all(axis=1) | (a.patient != b.patient)
    if wrong.any():
        return f"{level} {a.unit[int(wrong.argmax())]!r} has other labels or another patient in the second group"
    return ""


def restricted(cases: Pooled, units: npt.NDArray[np.object_]) -> Pooled:
    """The cases with these identifiers, sorted by them; the runs' own values no longer apply."""
    rows = np.flatnonzero(np.isin(cases.unit, units))
    nulls = {name: p[rows] for name, p in cases.nulls.items()}
    return Pooled(
        cases.unit[rows],
        cases.patient[rows],
        cases.y[rows],
        cases.p[rows],
        cases.decision[rows],
        cases.repeats,
        {name: [] for name in cases.per_run},
        cases.used,
        nulls,
    )


# --- the tests ------------------------------------------------------------------------------------------------------


def paired_contrasts(
    entries: Sequence[Entry], ends: Sequence[Endpoint], pairs: Sequence[_Pair], common: bool = False
) -> list[Contrast]:
    """The tests of all pairs at all endpoints, refused ones among them.

    Args:
        entries: Groups with their cases.
        ends: What to compare.
        pairs: Which groups.
        common: Test groups with different cases on those they share.
    """
    found: list[Contrast] = []
    for end in ends:
        at = [(a, b) for a, b in pairs if end.level in a.cases and end.level in b.cases]
        ready: dict[tuple[str, str], dict[str, Test]] = {}
        for members in _same_cases([e for e in entries if end.level in e.cases], end):
            ready |= _set_of_tests(members, end)
        for a, b in at:
            if end.label and end.label not in a.group.labels + b.group.labels:
                continue
            blank = Contrast("paired", end.level, end.label, "auroc", a.name, b.name)
            reason = why_not_paired(a, b, end.level)
            overlap = shared(a.cases[end.level], b.cases[end.level]) if reason else 0
            if not reason:
                tests = ready[a.name, b.name]
                found += [replace(blank, metric=metric).take(test, PATIENTS) for metric, test in tests.items()]
                if end.label == "":
                    found += over_shared_splits(a, b, end.level)
            elif common and overlap and reason.startswith("tested on"):
                found += _on_common(a, b, end, blank)
            else:
                found.append(replace(blank, refused=reason))
                if reason.startswith("tested on"):
                    found.append(_unpaired(a, b, end, overlap))
    return found


def _same_cases(entries: Sequence[Entry], end: Endpoint) -> list[list[Entry]]:
    """Groups that may be paired, put together."""
    sets: list[list[Entry]] = []
    for entry in entries:
        if end.label and end.label not in entry.group.labels:
            continue
        for members in sets:
            if not why_not_paired(members[0], entry, end.level):
                members.append(entry)
                break
        else:
            sets.append([entry])
    return sets


def _set_of_tests(members: Sequence[Entry], end: Endpoint) -> dict[tuple[str, str], dict[str, Test]]:
    """Both orders of every pair of groups on the same cases -> metric -> test."""
    cases = [entry.cases[end.level] for entry in members]
    areas = auroc_tests(cases, members[0].group.labels, end.label)
    found: dict[tuple[str, str], dict[str, Test]] = {}
    for (i, j), test in areas.items():
        first, second = members[i], members[j]
        tests = {"auroc": test}
        right = [right_calls(e, e.cases[end.level], end.label) for e in (first, second)]
        if right[0] is not None and right[1] is not None:
            (one, known), (two, _) = right[0], right[1]
            tests["accuracy"] = mcnemar(one, two, cases[0].code[known])
        found[first.name, second.name] = tests
        found[second.name, first.name] = {metric: _turned(t) for metric, t in tests.items()}
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


def right_calls(entry: Entry, cases: Pooled, label: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None:
    """Which known cases were called rightly, and which are known; None for a mean over labels that do not exclude."""
    labels, kind = entry.group.labels, entry.group.kind
    if label == "" and len(labels) > 1:
        if kind != "multiclass":
            return None
        known = ~np.isnan(cases.y).any(axis=1)
        return np.asarray((cases.decision[known] & (cases.y[known] == 1)).any(axis=1)), np.asarray(known)
    j = labels.index(label) if label else 0
    known = ~np.isnan(cases.y[:, j])
    return np.asarray(cases.decision[known, j] == (cases.y[known, j] == 1)), np.asarray(known)


def _turned(test: Test) -> Test:
    """The same test of second minus first."""
    note = test.note
    if note.startswith("discordant pairs "):
        counts, _, rest = note.removeprefix("discordant pairs ").partition(";")
        note = f"discordant pairs {':'.join(reversed(counts.split(':')))}" + (f";{rest}" if rest else "")
    return test._replace(
        difference=-test.difference, low=-test.high, high=-test.low, statistic=-test.statistic, note=note
    )


def _on_common(a: Entry, b: Entry, end: Endpoint, blank: Contrast) -> list[Contrast]:
    """Tests on the cases that two groups share."""
    one, two = a.cases[end.level], b.cases[end.level]
    units = np.intersect1d(one.unit, two.unit)
    pair = [replace(entry, cases={end.level: restricted(entry.cases[end.level], units)}) for entry in (a, b)]
    reason = _contradiction(pair[0].cases[end.level], pair[1].cases[end.level], end.level)
    if reason:
        return [replace(blank, refused=reason)]
    tests = _set_of_tests(pair, end)[a.name, b.name]
    note = f"on the {len(units)} cases both were tested on, of {len(one.unit)} and {len(two.unit)}"
    return [replace(blank, metric=metric, note=note).take(test, PATIENTS) for metric, test in tests.items()]


def _unpaired(a: Entry, b: Entry, end: Endpoint, overlap: int) -> Contrast:
    """Two groups as two samples of patients."""
    (area1, var1, n1, who1), (area2, var2, n2, who2) = (area_of(e, e.cases[end.level], end.label) for e in (a, b))
    test = unpaired_auroc(area1, var1, area2, var2, n=n1 + n2, clusters=len(who1) + len(who2))
    note = "offered in the place of a paired test; groups also differ in their patients"
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


# --- what needs no pair of groups -----------------------------------------------------------------------------------


def null_contrasts(entries: Sequence[Entry], ends: Sequence[Endpoint]) -> list[Contrast]:
    """Every group against the models that see no pixel, on the same cases."""
    found = []
    for end in ends:
        for entry in entries:
            cases = entry.cases.get(end.level)
            if cases is None or (end.label and end.label not in entry.group.labels):
                continue
            for name, p in cases.nulls.items():
                blind = replace(cases, p=p)
                test = auroc_tests([cases, blind], entry.group.labels, end.label)[0, 1]
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
        test = Test(c.method, c.difference, c.low, c.high, c.statistic, c.p, c.n, c.patients, "")
        if c.first == baseline.name:
            test = _turned(test)
        judged = non_inferiority(test, margin)
        other = c.second if c.first == baseline.name else c.first
        verdict = {True: "non-inferior", False: "not shown", None: "undefined"}[judged.non_inferior]
        blank = Contrast(
            "non-inferiority",
            c.level,
            c.label,
            "auroc",
            other,
            baseline.name,
            margin=margin,
            verdict=verdict,
            note=c.note,
        )
        found.append(replace(blank.take(test, c.covers), statistic=float("nan"), p=judged.p))
    return found
