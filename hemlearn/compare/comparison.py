"""A group named by its settings on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from hemlearn.compare.contrasts import Contrast, adjust
from hemlearn.compare.headline import headline
from hemlearn.compare.leak import inflations, twins
from hemlearn.compare.notes import Notes
from hemlearn.compare.paired import (
    ALL_PAIRS,
    best,
    chosen_pairs,
    endpoints,
    non_inferior,
    null_contrasts,
    paired_contrasts,
)
from hemlearn.compare.pooling import (
    NULLS,
    Entry,
    Group,
    Pooled,
    group_runs,
    metric_rows,
    null_rows,
    pool,
    short_key,
    show,
)
from hemlearn.compare.reference import beside, read_studies
from hemlearn.compare.result import Comparison
from hemlearn.compare.runs import POOLED, Skipped, canonical, differing_keys, find_runs, kind_keys
from hemlearn.evaluation.bootstrap import REPLICATES
from hemlearn.util.errors import ConfigError, RunError, hint

# --- What is asked of a comparison.


@dataclass(frozen=True)
class Options:
    """What is asked of a comparison.

    Attributes:
        pool: Keys that are repetitions, not differences.
        level: slice | series | patient; None takes slices, and series and patients too where a patient has several
            slices.
        margin: Non-inferiority margin of AUROC, above 0; None makes no such test.
        baseline: Settings of the group the others are held against, such as ``backbone.pretrained=false``.
        labels: Labels that get tests of their own beside the mean and ``any``.
        common: Test groups with different cases on those they share.
        references: Files with published figures.
    """

    pool: tuple[str, ...] = POOLED
    level: str | None = None
    margin: float | None = None
    baseline: str | None = None
    labels: tuple[str, ...] = ()
    common: bool = False
    references: tuple[Path, ...] = field(default_factory=tuple)


def select(text: str, entries: Sequence[Entry]) -> Entry:
    """The one group that ``text`` names.

    Args:
        text: The group's name as the table shows it (``augmentation=none, pretrained=true``), or settings
            ``KEY=VALUE[,KEY=VALUE]`` with full keys or their last parts, as many as make it one group.
        entries: All groups.

    Raises:
        ConfigError: A key or value fits no group, or several groups are left; names key and value.
    """
    named = [entry for entry in entries if entry.name == text]
    if named:
        return named[0]
    left = list(entries)
    for part in filter(None, (part.strip() for part in _parts(text))):
        key, equals, value = part.partition("=")
        keys = list(entries[0].group.values)
        full = [k for k in keys if key in (k, short_key(k), k.removesuffix(".name"))]
        if not equals or len(full) != 1:
            raise ConfigError(
                f"baseline={text}: no key '{key}' by which the groups differ{hint(key, keys)}",
                remedy=f"the groups differ in {', '.join(keys) or 'nothing'}",
            )
        kept = [e for e in left if _equal(e, full[0], value)]
        if not kept:
            there = ", ".join(dict.fromkeys(show(entry.group.values[full[0]]) for entry in left))
            raise ConfigError(f"baseline={text}: {key}={value} fits no group", remedy=f"there are {there}")
        left = kept
    if len(left) > 1:
        raise ConfigError(
            f"baseline={text}: {len(left)} groups fit: {'; '.join(e.name for e in left[:4])}",
            remedy="add settings until one is left",
        )
    return left[0]


def _parts(text: str) -> list[str]:
    """Settings between commas; a part without ``=`` belongs to the value before it, as in a list."""
    parts: list[str] = []
    for piece in text.split(","):
        if "=" in piece or not parts:
            parts.append(piece)
        else:
            parts[-1] += f",{piece}"
    return parts


def _equal(entry: Entry, key: str, value: str) -> bool:
    if value in (entry.group.cell(key), show(entry.group.values[key])):
        return True
    try:
        return canonical(yaml.safe_load(value)) == canonical(entry.group.values[key])
    except yaml.YAMLError:
        return False


# --- One comparison from many runs: groups by the keys that differ, folds and seeds pooled, tests between the groups.


FULL = 50  # groups with intervals by resampling, and with tests; of more, those of highest AUROC


def compare(
    folders: Sequence[Path | str],
    out: Path | str | None = None,
    pool_keys: Sequence[str] = POOLED,
    level: str | None = None,
    options: Options | None = None,
) -> Comparison:
    """Compare the finished runs below ``folders`` on their test cases.

    Runs that differ in pooled keys only form a group. Within it, out-of-fold predictions are pooled and repeated ones
    averaged (:func:`.pooling.pool`); the mean and standard deviation over the runs' own values
    stand beside the pooled ones, since they answer another question: how one model varies, not what the average of
    several models does.

    Every pair of groups tested on the same cases is tested (:mod:`.paired`), every group against the
    nulls of its runs, leaky groups against their twins, and all p values are corrected together. Beyond fifty groups,
    intervals that need resampling are computed for the fifty of highest AUROC, and beyond twelve each is tested against
    one alone; the notes say so.

    Args:
        folders: Searched for run folders.
        out: Where all files are written (:func:`.files.writing.write`); None writes nothing.
        pool_keys: As in :class:`Options`.
        level: As in :class:`Options`.
        options: Everything else; its ``pool`` and ``level`` give way to the arguments above when those are set.

    Raises:
        RunError: No complete run, contradictory runs in a group, or ``out`` cannot be written.
        ConfigError: ``baseline``, a margin, a label or a reference file that fits no group.
    """
    options = options or Options()
    options = replace(
        options, pool=tuple(pool_keys) if tuple(pool_keys) != POOLED else options.pool, level=level or options.level
    )
    studies = [study for path in options.references for study in read_studies(path)]  # before any long work
    found = find_runs(folders)
    skipped = list(found.skipped)
    keys = differing_keys(found.runs, options.pool)
    groups = group_runs(found.runs, keys)
    notes = Notes()
    entries = _entries(groups, options, notes, skipped)
    if not entries:
        raise RunError(
            f"no run could be read; the first: {skipped[0].folder}: {skipped[0].reason}",
            remedy="train these runs again",
        )
    baseline = select(options.baseline, entries) if options.baseline else None
    detailed = _detail(entries, baseline, options, notes)
    nulls = _nulls(detailed, notes)
    notes.kinds = kind_keys(found.runs, options.pool)
    contrasts, pairs = _contrasts(detailed, baseline, options, notes)
    published, alone = beside(studies, entries)
    notes.more += alone
    contrasts += [item["contrast"] for item in published]
    made = adjust(contrasts)
    if made:
        refused = sum(bool(c.refused) for c in contrasts)
        told = f"; {refused} comparisons refused, with the reason" if refused else ""
        notes.more.append(f"{made} p values in tests.csv, corrected together (Holm){told}")
    table = pd.DataFrame([row for entry in entries for row in entry.rows] + nulls)
    result = Comparison(
        table=table,
        keys=keys,
        notes=notes.lines(options.pool),
        skipped=sorted(skipped),
        groups=len(entries),
        runs=sum(entry.used for entry in entries),
        entries=detailed,
        contrasts=contrasts,
        baseline=baseline,
        tested_against=pairs,
        published=published,
        studies=studies,
        leaky=notes.leaky,
        seen=notes.seen,
        synthetic=notes.synthetic,
        options=options,
    )
    result.headline = headline(result)
    if out is not None:
        from hemlearn.compare.files import write

        result.files = write(result, Path(out))
    return result


def _entries(groups: Sequence[Group], options: Options, notes: Notes, skipped: list[Skipped]) -> list[Entry]:
    """Every group with its rows; its cases as well where there are few groups."""
    full = len(groups) <= FULL
    entries: list[Entry] = []
    names: dict[str, int] = {}
    for group in groups:
        levels = [options.level] if options.level else None if full else group.levels[:1]
        pooled, unread = pool(group, levels, nulls=full)
        skipped += unread
        if not pooled:
            continue
        names[group.name] = names.get(group.name, 0) + 1
        name = group.name if names[group.name] == 1 else f"{group.name} ({names[group.name]})"
        entry = Entry(name, group, pooled, used=len(next(iter(pooled.values())).used))
        for at, cases in pooled.items():
            entry.rows += metric_rows(group, name, at, cases, REPLICATES if full else 0)
            notes.add(entry, at, cases)
        if not full:
            entry.cases = {}  # thousands of groups would not fit into memory
        entries.append(entry)
    return entries


def _detail(entries: list[Entry], baseline: Entry | None, options: Options, notes: Notes) -> list[Entry]:
    """The groups that get tests, figures and every interval, in the order of the table."""
    if all(entry.cases for entry in entries):
        return entries
    areas = [entry.auroc for entry in entries]
    ranked = sorted(range(len(entries)), key=lambda i: -areas[i] if areas[i] == areas[i] else 9.0)
    chosen = set(ranked[:FULL])
    chosen |= {i for i, entry in enumerate(entries) if entry is baseline}
    chosen |= {entries.index(twin) for leaky, twin in twins(entries)[:FULL] if entries.index(leaky) in chosen}
    kept = [entries[i] for i in sorted(chosen)]
    for entry in kept:
        entry.cases, _ = pool(entry.group, [options.level] if options.level else None)
        if any(cases.clustered for cases in entry.cases.values()) or len(entry.group.labels) > 1:
            entry.rows = [
                row
                for level, cases in entry.cases.items()
                for row in metric_rows(entry.group, entry.name, level, cases)
            ]
    notes.more.append(
        f"{len(entries)} groups: intervals by resampling, further levels, tests and figures for the "
        f"{len(kept)} of highest AUROC alone; choosing them by their result favours them"
    )
    return kept


def _nulls(entries: Sequence[Entry], notes: Notes) -> list[dict[str, Any]]:
    """Rows of each null on each set of cases, once; in the order of the nulls."""
    rows: dict[str, list[dict[str, Any]]] = {}
    seen: set[tuple[Any, ...]] = set()
    for entry in entries:
        for level, cases in entry.cases.items():
            for null, p in cases.nulls.items():
                same = (null, level, entry.group.task, _digest(cases))
                if same not in seen:
                    seen.add(same)
                    rows.setdefault(null, []).extend(null_rows(entry.group, null, level, cases, p, REPLICATES))
    order = [null for null in NULLS if null in rows]
    notes.nulls = order
    return [row for null in order for row in rows[null]]


def _digest(cases: Pooled) -> int:
    return hash(tuple(cases.unit))


def _contrasts(
    entries: Sequence[Entry], baseline: Entry | None, options: Options, notes: Notes
) -> tuple[list[Contrast], str]:
    """All tests, and the name of the one group that the others are tested against (empty: every pair is tested)."""
    known = list(dict.fromkeys(label for entry in entries for label in entry.group.labels))
    unknown = [label for label in options.labels if label not in (*known, "all")]
    if unknown:
        raise ConfigError(
            f"labels={','.join(options.labels)}: unknown label '{unknown[0]}'{hint(unknown[0], known)}",
            remedy=f"these runs have {', '.join(known)}",
        )
    ends = endpoints(entries, known if "all" in options.labels else options.labels)
    anchor = baseline or best(entries)
    many = len(entries) > ALL_PAIRS
    contrasts = paired_contrasts(entries, ends, chosen_pairs(entries, baseline), options.common)
    contrasts += null_contrasts([anchor] if many else entries, ends)
    contrasts += inflations(entries, ends)
    if options.margin is not None:
        contrasts += non_inferior(contrasts, options.margin, anchor)
        if baseline is None and len(entries) > 1:
            notes.more.append(
                f"margin={options.margin:g}: no baseline was named, so non-inferiority is judged against "
                f"the group of highest AUROC, {anchor.name}"
            )
    if many:
        which = "the baseline" if baseline else "the group of highest AUROC, which chance has favoured"
        notes.more.append(f"{len(entries)} groups: not every pair is tested, but each against {which}: {anchor.name}")
    return contrasts, anchor.name if many else ""
