"""The configuration keys in which runs differ: what their comparison is about."""

from __future__ import annotations

from collections.abc import Sequence

from hemlearn.reports.comparison.keys import canonical, covers
from hemlearn.reports.comparison.runs import BOOKKEEPING, CONTENT, LOCATION, POOLED, SEQUENCE_ONLY, Run


def differing_keys(runs: Sequence[Run], pool: Sequence[str] = POOLED) -> list[str]:
    """Keys whose values differ among runs, in the order of the schema.

    Left out are the pooled keys, bookkeeping, and the place of the data when the runs' provenance says that their
    content is the same. A key that merely follows from its group's name (``augmentation.steps`` from
    ``augmentation.name``) is left out too; one that follows only partly stays. Data, weights or a split file whose
    content changed under the same name count as a differing key of their own.

    Runs over slices and runs of a sequence model are trained in different ways throughout. Beside each other they are
    told apart by ``sequence.name``; of the other keys only those count that differ among runs of one kind
    (:func:`kind_keys` has the rest).
    """
    if not runs:
        return []
    first = runs[0].keys
    kinds = [part for part in ([r for r in runs if not r.of_series], [r for r in runs if r.of_series]) if part]
    differ = _varying(runs, pool)
    if len(kinds) > 1:
        inside = {"sequence.name"} | {key for part in kinds for key in _varying(part, pool)}
        differ = [key for key in differ if key in inside]
    if len({run.keys["data.checksum"] for run in runs}) == 1 and first["data.checksum"] is not None:
        differ = [key for key in differ if key not in LOCATION]
    differ = [key for key in differ if not _follows(key, differ, runs)]
    for key in CONTENT:
        cells: dict[tuple[str, ...], set[str]] = {}
        for run in runs:
            cells.setdefault(tuple(canonical(run.keys.get(k)) for k in differ), set()).add(canonical(run.keys[key]))
        if any(len(values) > 1 for values in cells.values()):
            differ.append(key)
    return differ


def _varying(runs: Sequence[Run], pool: Sequence[str]) -> list[str]:
    """Keys with more than one value, without pooled ones, bookkeeping and checksums."""
    first = runs[0].keys
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.keys):
        if covers(pool, key) or covers(BOOKKEEPING, key) or key in CONTENT:
            continue
        reference = first.get(key)
        if any(run.keys.get(key) != reference for run in runs) and len({canonical(r.keys.get(key)) for r in runs}) > 1:
            found.append(key)
    return found


def kind_keys(runs: Sequence[Run], pool: Sequence[str] = POOLED) -> list[str]:
    """Keys in which runs over slices and sequence runs differ, beyond those of the sequence model itself."""
    if len({run.of_series for run in runs}) < 2:
        return []
    shown, varying = differing_keys(runs, pool), _varying(runs, pool)
    hidden = [key for key in varying if key not in (*shown, *LOCATION) and not _follows(key, varying, runs)]
    return [key for key in hidden if not covers((*SEQUENCE_ONLY, "backbone.weights", "task.aggregate"), key)]


def _follows(key: str, differ: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether ``key`` is a function of the ``name`` of a section around it, which differs as well."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        leader = ".".join([*parts[:depth], "name"])
        if key == leader or leader not in differ:
            continue
        pairs = {(canonical(run.keys.get(leader)), canonical(run.keys.get(key))) for run in runs}
        if len(pairs) == len({name for name, _ in pairs}):
            return True
    return False
