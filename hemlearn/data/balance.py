"""Sharing units (patients, joined by duplicates) among parts so that every label is spread evenly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SWEEPS = 4  # passes of the refinement; it stops earlier when nothing moves
_MAX_REFINED = 3000  # units; larger sets are balanced well enough by the first pass


def unit_features(unit: NDArray[np.int64], patients: NDArray[np.int64], labels: Floats) -> Floats:
    """Describe every unit by what should be spread evenly.

    Args:
        unit: (N,) unit of each slice, 0 to U-1.
        patients: (N,) patient of each slice, as a number.
        labels: (N, L), 0, 1 or NaN.

    Returns:
        (U, D): patients, half the share of slices, for each label patients with and without it, and patients of
        each combination of labels (a stratum). A patient has a label when one of the slices has it.
    """
    count = int(unit.max()) + 1
    frame = pd.DataFrame(labels).groupby(patients).max()  # NaN only where every slice is unknown
    home = pd.Series(unit).groupby(patients).first().to_numpy()
    known = frame.to_numpy(dtype=np.float64)
    codes = pd.factorize(pd.Series(map(bytes, np.nan_to_num(known, nan=2.0).astype(np.uint8))))[0]
    columns = [np.ones(len(home)), *(known == 1).T, *(known == 0).T]
    columns += [codes == code for code in range(codes.max() + 1)] if codes.max() < 200 else []
    features = np.zeros((count, len(columns) + 1))
    for index, column in enumerate(columns):
        features[:, index] = np.bincount(home, weights=np.asarray(column, dtype=float), minlength=count)
    slices = np.bincount(unit, minlength=count)
    features[:, -1] = slices * (0.5 * len(home) / slices.sum())
    return features


def ranks(names: Sequence[str], salt: str) -> NDArray[np.int64]:
    """Return a shuffled rank of each name, the same on every platform and whatever the order of names.

    Hashes are used rather than a random generator, whose stream may change between versions of numpy.
    """
    digests = [hashlib.sha256(f"{salt}\0{name}".encode()).digest() for name in names]
    order = sorted(range(len(names)), key=digests.__getitem__)
    out = np.empty(len(names), dtype=np.int64)
    out[order] = np.arange(len(names))
    return out


def share(features: Floats, fractions: Sequence[float], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Assign every unit to one of the parts, each feature in proportion to ``fractions``.

    Units of the rarest features and the largest units are placed first, each where it is wanted most (as in
    iterative stratification, Sechidis et al. 2011); then single moves and exchanges are kept while they lower
    the chi-square distance from the wanted counts.

    Args:
        features: (U, D) non-negative.
        fractions: Wanted share of each part; they sum to 1.
        rank: (U,) order among equals.

    Returns:
        (U,) part of each unit.
    """
    totals = features.sum(axis=0)
    used = totals > 0
    features, totals = features[:, used], totals[used]
    wanted = np.outer(np.asarray(fractions, dtype=np.float64), totals)
    # What cannot be shared (one patient of a rare combination) must not outweigh what can: every such patient would
    # stand in the largest part, and a small validation set would hold hardly any positive patient.
    scale = np.maximum(wanted, 1.0)
    rarest = np.where(features > 0, totals, np.inf).min(axis=1)
    order = np.lexsort((rank, -features.sum(axis=1).round(9), rarest.round(9)))
    have = np.zeros_like(wanted)
    part = np.empty(len(features), dtype=np.int64)
    for unit in order:
        x = features[unit]
        # Growth of sum((have - wanted)^2 / scale); rounded so that ties fall the same way on every machine.
        cost = ((x**2 + 2 * x * (have - wanted)) / scale).sum(axis=1).round(9)
        part[unit] = int(np.argmin(cost))
        have[part[unit]] += x
    if len(features) <= _MAX_REFINED:
        _refine(features, wanted, scale, have, part, order)
    return part


def _refine(
    features: Floats, wanted: Floats, scale: Floats, have: Floats, part: NDArray[np.int64], order: NDArray[np.int64]
) -> None:
    """Move or exchange units, in place, while that lowers the chi-square distance."""
    for _ in range(_SWEEPS):
        changed = False
        for unit in order:
            here, x = part[unit], features[unit]
            error = have - wanted
            # Moving `unit` to another part, alone or against one unit `y` of that part: `delta` leaves `here`.
            others = np.flatnonzero(part != here)
            deltas = np.concatenate([np.tile(x, (len(wanted), 1)), x - features[others]])
            targets = np.concatenate([np.arange(len(wanted)), part[others]])
            gain = ((deltas**2 - 2 * deltas * error[here]) / scale[here]).sum(axis=1)
            gain += ((deltas**2 + 2 * deltas * error[targets]) / scale[targets]).sum(axis=1)
            gain[here] = 0.0  # a move to where it is
            gain = gain.round(9)
            best = int(np.argmin(gain))
            if gain[best] >= -1e-6:
                continue
            changed = True
            target = targets[best]
            have[here] -= deltas[best]
            have[target] += deltas[best]
            part[unit] = target
            if best >= len(wanted):
                part[others[best - len(wanted)]] = here
        if not changed:
            return
