"""What the baselines reach on a whole data set: repeated cross-validation, and the same with labels that were permuted.

One partition into folds decides much (on CT-ICH the border alone has AUROC 0.2 to 0.5 for any hemorrhage), and training
and test patients are complements, so that the interval of pooled predictions is far too narrow. Here ten partitions are
drawn; scores are compared only within a fold, where one model made them; and chance is what the same procedure gives
when the labels of patients are exchanged, slices of a series in their order but from a random start.

The model is a ridge regression on the features and on Gaussian bumps around the training slices: its scores are a
matrix times the labels, so that 99 permutations in ten partitions cost 4 s for the three baselines and six labels of
CT-ICH. On Kaggle Head-CT it comes near the forest of :mod:`hemlearn.audits.baselines`: 0.79 for
image size (0.80), 0.84 for file facts (0.85), 0.80 for the border (0.82).

Sources: Westfall and Young 1993, Resampling-Based Multiple Testing (the largest statistic of each permutation); Bengio
and Grandvalet 2004, JMLR 5:1089 (no unbiased variance of k-fold cross-validation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from hemlearn.audits.baselines import CASES, FEW, encoded
from hemlearn.data.splits import draw_folds, ranks, strata
from hemlearn.evaluation.auroc import NAN, Floats, none_if_nan
from hemlearn.util.console import NOTICED, track
from hemlearn.util.errors import DataError, count

Rows = NDArray[np.int64]
PARTITIONS, PERMUTATIONS, FOLDS = 10, 99, 5
_ROWS = 1500  # slices looked at, about: five to ten of a patient, of very many patients some
_RIDGE = 1.0


def some_rows(patients: NDArray[Any]) -> Rows:
    """Rows that are looked at: evenly spaced ones of each patient, and of very many patients those drawn by name."""
    names, code, sizes = np.unique(patients.astype(str), return_inverse=True, return_counts=True)
    most = min(10, max(int(CASES), _ROWS // len(names)))
    kept = ranks(names, "baselines") < max(2, _ROWS // min(most, int(sizes.max())))
    place, own = places(code), sizes[code]
    spaced = (own <= most) | (place * most // own != (place - 1) * most // own)
    return np.flatnonzero(kept[code] & spaced).astype(np.int64)


def places(code: Rows) -> Rows:
    """(N,) how many rows of the same group come before each row."""
    order = np.argsort(code, kind="stable")
    out = np.empty(len(code), dtype=np.int64)
    out[order] = np.arange(len(code)) - np.searchsorted(code[order], code[order])
    return out


def folds_of(y: Floats, patients: NDArray[Any], units: Rows, folds: int = FOLDS, salt: str = "nulls") -> Rows:
    """(N,) fold of every slice: whole units (patients joined by duplicates), labels spread evenly."""
    number = int(units.max()) + 1 if len(units) else 0
    if number < 2:
        raise DataError(f"shortcut baselines: {count(number, 'patient')}", remedy="cross-validation needs two or more")
    names, member = np.unique(patients.astype(str), return_inverse=True)
    home = np.empty(len(names), dtype=np.int64)
    home[member] = units
    first: NDArray[Any] = names[np.unique(home, return_index=True)[1]]
    part = draw_folds(*strata(units, member.astype(np.int64), y, salt), first, min(folds, number), salt)
    return part[units]


def permuted(units: Rows, seed: int) -> Rows:
    """(N,) row whose label each row takes: those of another unit, evenly spaced and from a random start.

    ``units``: (N,) numbers 0 to U-1; rows of a unit in their order.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(units)
    other, start = rng.permutation(len(sizes))[units], rng.random(len(sizes))[units]
    theirs = sizes[other]
    shift = (start * theirs).astype(np.int64)
    order = np.argsort(units, kind="stable")
    first = np.searchsorted(units[order], np.arange(len(sizes)))
    chosen: Rows = order[first[other] + (places(units) * theirs // sizes[units] + shift) % theirs]
    return chosen


@dataclass(frozen=True)
class _Level:
    """Cases of one level, and their labels in each column: as they are, then permuted."""

    case: Rows  # (N,) case of each slice
    unit: Rows  # (C,) unit of each case
    y: Floats  # (C, 1 + P, L)
    few: NDArray[np.bool_]  # (L,) fewer than five patients with the label, or without


def _levels(table: pd.DataFrame, y: Floats, units: Rows, levels: Sequence[str], permutations: int) -> dict[str, _Level]:
    found = {}
    for level in levels:
        case = pd.factorize(table[f"{level}_id"])[0].astype(np.int64)
        truth = pd.DataFrame(y).groupby(case).max().to_numpy(dtype=np.float64)
        unit, who = (pd.Series(codes).groupby(case).first().to_numpy() for codes in (units, table["patient_id"]))
        order = [np.arange(len(truth)), *(permuted(unit, seed) for seed in range(permutations))]
        sides = [[len(set(who[column == value])) for column in truth.T] for value in (0, 1)]
        few = np.min(sides, axis=0) < FEW
        found[level] = _Level(case, unit, np.stack([truth[rows] for rows in order], axis=1), few)
    return found


def _kernel(features: pd.DataFrame) -> Floats:
    """(N, N) likeness of slices: of their features, standardised over all, and of the bumps around them."""
    if not features.shape[1]:
        return np.zeros((len(features), len(features)))
    x = encoded(features, features, least=3)[0]
    inner = x @ x.T / x.shape[1]
    square = np.diag(inner)
    return np.asarray(inner + np.exp(2 * inner - square[:, None] - square))


def _scores(kernel: Floats, y: Floats, learnt: Rows, target: Rows, weight: Floats) -> Floats:
    """(M, ...) scores of ``target`` for labels y (N, ...): all columns by one matrix."""
    labels = y[learnt].reshape(len(learnt), -1)
    known, share = ~np.isnan(labels), weight[learnt][:, None]
    rate = (share * np.where(known, labels, 0)).sum(axis=0) / np.maximum((share * known).sum(axis=0), 1e-9)
    labels = np.where(known, labels - rate, 0)  # unknown: as likely as the others'
    root = np.sqrt(share)
    inner = kernel[np.ix_(learnt, learnt)] * root * root.T + _RIDGE * np.eye(len(learnt))
    smoother = np.linalg.solve(inner, root * kernel[np.ix_(learnt, target)]).T * root.T
    return np.asarray((smoother @ labels).reshape(len(target), *y.shape[1:]))


def _pairs(y: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """(...) pairs of a positive and a negative case ranked rightly, ties one half, and all pairs. Shapes (C, ...)."""
    known = ~np.isnan(y)
    rank = rankdata(np.where(known, scores, np.inf), axis=0)  # unknown ones above all others
    positive, negative = (y == 1).sum(axis=0), (y == 0).sum(axis=0)
    above = np.where(y == 1, rank, 0).sum(axis=0) - positive * (positive + 1) / 2
    return above, (positive * negative).astype(np.float64)


def within_folds(
    features: pd.DataFrame, patients: NDArray[Any], labels: Floats, folds: Sequence[Rows], levels: Mapping[str, _Level]
) -> dict[str, Floats]:
    """(R, 1 + P, L) AUROC of pairs within a fold, for each level, partition and column of labels (N, 1 + P, L)."""
    code, sizes = np.unique(patients.astype(str), return_inverse=True, return_counts=True)[1:]
    weight, kernel = np.minimum(1.0, CASES / sizes)[code], _kernel(features)
    found: dict[str, list[Floats]] = {level: [] for level in levels}
    for fold in track(folds, "Cross-validating models without the brain", after=NOTICED):
        right = {level: np.zeros(labels.shape[1:]) for level in levels}
        pairs = {level: np.zeros(labels.shape[1:]) for level in levels}
        for k in np.unique(fold):
            target = np.flatnonzero(fold == k)
            scores = _scores(kernel, labels, np.flatnonzero(fold != k), target, weight)
            for level, cases in levels.items():
                case = cases.case[target]  # in ascending order, as the rows are
                first = np.flatnonzero(np.diff(case, prepend=-1))
                mean = np.add.reduceat(scores, first) / np.diff(first, append=len(case))[:, None, None]
                one, two = _pairs(cases.y[case[first]], mean.round(12))
                right[level] += one
                pairs[level] += two
        for level, areas in found.items():
            every = np.divide(right[level], pairs[level], out=np.full(pairs[level].shape, NAN), where=pairs[level] > 0)
            areas.append(every)
    return {level: np.stack(areas) for level, areas in found.items()}


def repeated(
    features: Mapping[str, pd.DataFrame],
    table: pd.DataFrame,
    y: Floats,
    units: Rows,
    labels: Sequence[str],
    levels: Sequence[str],
    partitions: int = PARTITIONS,
    permutations: int = PERMUTATIONS,
) -> dict[str, dict[str, Any]]:
    """AUROC of each baseline over random partitions, and p of the same procedure on permuted labels.

    Args:
        features: Name of a baseline -> its columns, a row per slice.
        table: (N,) slices with slice_id, series_id, patient_id, z_mm.
        y: (N, L) 0, 1 or NaN.
        units: (N,) patients joined by duplicates.
        labels: L names.
        levels: slice, series, patient.
        partitions: Random partitions into five folds.
        permutations: Of labels over units; the smallest p is 1 / (permutations + 1).

    Returns:
        name -> level -> ``auroc`` (mean over labels) and ``labels`` -> label -> ``auroc``: value (mean over
        partitions), low and high (the partitions' own range, no interval), n, method, p (one-sided), and p_adjusted for
        all labels and baselines of the level; both None for a label with fewer than five patients with it, or without.
    """
    patients = table["patient_id"].to_numpy(dtype=object)
    order = np.lexsort(
        (table["z_mm"].to_numpy(np.float64), table["series_id"].astype(str), patients.astype(str), units)
    )
    table, y, units = (
        table.iloc[order].reset_index(drop=True),
        y[order],
        np.unique(units[order], return_inverse=True)[1],
    )
    patients = patients[order]
    folds = [folds_of(y, patients, units, salt=f"partition {item}") for item in range(partitions)]
    rows = [np.arange(len(y)), *(permuted(units, seed) for seed in range(permutations))]
    columns = np.stack([y[item] for item in rows], axis=1)
    cases = _levels(table, y, units, levels, permutations)
    areas = {
        name: within_folds(part.iloc[order].reset_index(drop=True), patients, columns, folds, cases)
        for name, part in features.items()
    }
    found: dict[str, dict[str, Any]] = {name: {} for name in features}
    for level, own in cases.items():
        mean = np.stack([areas[name][level].mean(axis=0) for name in features])  # (B, 1 + P, L)
        one, adjusted = _chance(mean, own.few)
        for b, name in enumerate(features):
            every = areas[name][level][:, 0]
            known = (~np.isnan(own.y[:, 0])).sum(axis=0)
            each = {
                label: {"auroc": _entry(every[:, j], known[j], one[b, j], adjusted[b, j])}
                for j, label in enumerate(labels)
            }
            defined = ~np.isnan(every).any(axis=0)
            over = np.full(len(every), NAN) if not defined.any() else every[:, defined].mean(axis=1)
            top = each[labels[0]]["auroc"] if len(labels) == 1 else _entry(over, len(own.y), NAN, NAN)
            found[name][level] = {"auroc": top, "labels": each}
    return found


def _chance(areas: Floats, few: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(B, L) p of each area among its permutations (B, 1 + P, L), and the same of the largest one of all."""
    own, drawn = areas[:, 0], areas[:, 1:]
    total = drawn.shape[1] + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (areas - areas.mean(axis=1, keepdims=True)) / areas.std(axis=1, keepdims=True)
    z = np.where(np.isfinite(z) & ~few, z, -np.inf)
    largest = z[:, 1:].max(axis=(0, 2))
    single = (1 + (drawn >= own[:, None]).sum(axis=1)) / total
    adjusted = (1 + (largest[None, :, None] >= z[:, :1]).sum(axis=1)) / total
    told = ~few & ~np.isnan(own)
    return np.where(told, single, NAN), np.where(told, np.maximum(single, adjusted), NAN)


def _entry(areas: Floats, n: int, p: float, adjusted: float) -> dict[str, Any]:
    told: dict[str, Any] = {
        "value": float(areas.mean()),
        "low": float(areas.min()),
        "high": float(areas.max()),
        "n": int(n),
    }
    told |= {"method": f"range over {count(len(areas), 'partition')}", "p": float(p), "p_adjusted": float(adjusted)}
    return {key: none_if_nan(value) for key, value in told.items()}
