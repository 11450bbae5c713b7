"""What a split by slice pretends: leaky groups beside the groups that differ from them in nothing but the split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from hemlearn.compare.cases import Pooled
from hemlearn.compare.contrasts import Contrast, Endpoint, accuracy_test, auroc_tests
from hemlearn.compare.groups import Entry
from hemlearn.compare.runs import canonical, covers
from hemlearn.evaluation.auroc import CONFIDENCE, NAN, Floats
from hemlearn.evaluation.bootstrap import LabelCases, block_size, draws, percentile, ratio, strata_of, units_of
from hemlearn.evaluation.proportions import two_sided
from hemlearn.evaluation.significance import Test

REPLICATES = 1000
_SPLIT = ("split.by", "split.allow_leak", "split.checksum")  # in which a leaky group and its twin may differ
_COVERS = "other patients; the trained models are taken as they are"


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
    values = [_metrics(cases, who, size, labels, kind, label) for cases, who in zip((a, b), parts, strict=True)]
    strata = strata_of(np.concatenate([a.y, b.y]), np.concatenate(parts))
    block = block_size(max(len(a.y), len(b.y), size))
    point = [v(np.ones((1, size))) for v in values]
    drawn: dict[str, list[Floats]] = {metric: [] for metric in point[0]}
    for weights in draws(strata, replicates if size > 1 else 0, seed, block):
        one, two = (v(weights) for v in values)
        for metric, parts_drawn in drawn.items():
            parts_drawn.append(one[metric] - two[metric])
    both = len(set(a.patient.tolist()) & set(b.patient.tolist()))
    note = f"other cases of {both} shared patients: {replicates} resamples of the patients of both sets together"
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


def _metrics(
    cases: Pooled, code: npt.NDArray[np.intp], size: int, labels: Sequence[str], kind: str, label: str
) -> Callable[[Floats], dict[str, Floats]]:
    """AUROC and accuracy as functions of how often each of ``size`` patients counts."""
    columns = [labels.index(label)] if label else range(len(labels))
    each = []
    for j in columns:
        k = ~np.isnan(cases.y[:, j])
        each.append(LabelCases.build(cases.y[k, j], cases.p[k, j], cases.decision[k, j], code[k], size))
    joint: Floats | None = None
    if kind == "multiclass" and not label:
        k = np.asarray(~np.isnan(cases.y).any(axis=1))
        hit = np.asarray((cases.decision[k] & (cases.y[k] == 1)).any(axis=1), dtype=float)
        joint = np.column_stack([np.bincount(code[k], weights=w, minlength=size) for w in (hit, np.ones(len(hit)))])

    def values(weights: Floats) -> dict[str, Floats]:
        found = [item.values(weights) for item in each]
        areas = np.stack([v["auroc"] for v in found])
        defined = (~np.isnan(areas)).sum(axis=0).astype(float)
        out = {"auroc": ratio(np.nansum(areas, axis=0), defined)}
        if joint is not None:
            hits, n = (weights @ joint).T
            out["accuracy"] = ratio(hits, n)
        elif len(found) == 1:
            out["accuracy"] = found[0]["accuracy"]
        return out

    return values
