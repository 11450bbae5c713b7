"""One comparison from many runs: groups by the keys that differ, folds and seeds pooled, tests between the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hemlearn.compare.cases import BASELINES, pool
from hemlearn.compare.contrasts import (
    ALL_PAIRS,
    Contrast,
    adjust,
    as_table,
    best,
    chosen_pairs,
    endpoints,
    is_main,
    primary,
)
from hemlearn.compare.decisions import at_prevalence, decision_rows
from hemlearn.compare.factors import Factors, study_factors
from hemlearn.compare.groups import (
    Entry,
    Group,
    Sheet,
    baseline_rows,
    differing_keys,
    group_runs,
    kind_keys,
    metric_rows,
    short_key,
    show,
    text_sheet,
)
from hemlearn.compare.pairs import baseline_contrasts, inflations, non_inferior, paired_contrasts, twins
from hemlearn.compare.printed import plain_text, rich_tables
from hemlearn.compare.readers import ReaderStudy, beside_readers, read_readings
from hemlearn.compare.reference import Published, Study, beside, read_studies
from hemlearn.compare.runs import Skipped, canonical, find_runs
from hemlearn.compare.subgroups import SubgroupStudy, study_subgroups
from hemlearn.compare.transfer import Transfer, study_transfer
from hemlearn.compare.triage import triage_rows
from hemlearn.compare.words import Headline, Notes, headline
from hemlearn.config.requests import POOLED, CompareRequest, Subgrouping
from hemlearn.evaluation.bootstrap import REPLICATES
from hemlearn.reports.triage import triage_text
from hemlearn.training.run import unsigned
from hemlearn.util.console import NOTICED, track
from hemlearn.util.documents import load_yaml
from hemlearn.util.errors import ConfigError, RunError, count, hint
from hemlearn.util.files import nothing_left

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FULL = 80  # groups with intervals by resampling, and with tests; of more, those of highest AUROC
_LISTED = 10  # skipped runs printed by name


@dataclass
class Comparison:
    """Result of :func:`compare`."""

    table: pd.DataFrame  # a row per group, level and label ("": over all labels), then the models without pixels
    keys: list[str]  # the differing keys, columns of ``table``
    skipped: list[Skipped]  # run folders that were not used, with the reason
    groups: int  # number of groups
    runs: int  # number of runs used
    entries: list[Entry]  # the groups that have tests and figures, with their cases
    contrasts: list[Contrast]  # every test, also refused ones
    about: Notes  # what a reader must know, as collected over the groups
    notes: list[str]  # the same in sentences
    baseline: Entry | None = None  # the group named as baseline, if one was
    tested_against: str = ""  # the one group that the others were tested against; empty where every pair was tested
    published: list[Published] = field(default_factory=list)  # published figures beside ours
    studies: list[Study] = field(default_factory=list)  # the publications
    prevalence: float | None = None  # of patients, at which predictive values are told; None: as tested
    readers: ReaderStudy | None = None  # readers of the same cases, if there are any
    subgroups: SubgroupStudy | None = None  # groups of patients, if they were asked for
    transfer: Transfer | None = None  # trained on one data set, tested on another, if runs were
    families: dict[str, int] = field(default_factory=dict)  # p values of each family, corrected together
    factors: list[Factors] = field(default_factory=list)  # of each task whose groups differ in several settings
    files: list[Path] = field(default_factory=list)  # files written
    headline: Headline = field(init=False)  # what was compared, is a group better, could a shortcut explain it

    @cached_property
    def decisions(self) -> list[dict[str, Any]]:
        """What each group's decisions are worth, a row per level (:func:`hemlearn.compare.decisions.decision_rows`)."""
        return decision_rows(self.ranked, self.prevalence)

    @cached_property
    def triage(self) -> list[dict[str, Any]]:
        """What the answers of each run's triage were worth (:func:`hemlearn.compare.triage.triage_rows`)."""
        return triage_rows(self.ranked)

    @property
    def tests(self) -> pd.DataFrame:
        """Every test as a row, in the columns of ``tests.csv``."""
        return as_table(self.contrasts)

    def write(self, out: Path | str, **options: Any) -> list[Path]:
        """Write every file of the comparison into a folder; ``options`` of :func:`hemlearn.compare.files.write`."""
        from hemlearn.compare.files import write

        with nothing_left(Path(out)):
            self.files = write(self, Path(out), **options)
        return self.files

    @cached_property
    def order(self) -> list[str]:
        """Names of all groups by their AUROC at the primary endpoint, the highest first; leaky groups come last."""
        leaky = {entry.name for entry in self.entries if entry.group.leaky}
        keys: dict[str, tuple[Any, ...]] = {}
        for task, rows in self.table[self.table["source"] == "runs"].groupby("task", sort=False):
            own = [entry for entry in self.entries if entry.rows[0]["task"] == task]
            end = primary(endpoints(own)) if own else None
            for name, rows_of in rows.groupby("group", sort=False):
                at = rows_of[(rows_of["level"] == end.level) & (rows_of["label"] == end.label)] if end else rows_of[:0]
                value = float((at if len(at) else rows_of)["auroc"].iloc[0])
                keys[str(name)] = (len(at) == 0, value != value, -value if value == value else 0.0)
        return sorted(keys, key=lambda name: (name in leaky, *keys[name]))

    @property
    def ranked(self) -> list[Entry]:
        """The groups with tests and figures, in that order."""
        place = {name: i for i, name in enumerate(self.order)}
        return sorted(self.entries, key=lambda entry: place[entry.name])

    def sheets(self) -> list[Sheet]:
        """The printed table of each task, groups in :attr:`order`, models without pixels below them.

        Rows are over labels; series and patients stand in one where they are the same.
        """
        tasks = list(dict.fromkeys(self.table["task"]))
        place = {name: i for i, name in enumerate(self.order)}
        blind = self.table["source"] != "runs"
        rank = self.table["group"].map(place).where(~blind, len(place))
        table = self.table.loc[rank.sort_values(kind="stable").index]
        return [text_sheet(table, self.keys, task, len(tasks) > 1) for task in tasks]

    def rich_tables(self, console: Console) -> list[Table]:
        """The tables for a terminal, see :mod:`hemlearn.compare.printed`."""
        return rich_tables(self, console)

    def text(self) -> str:
        """The tables in aligned columns of plain text."""
        return plain_text(self)

    def summary(self) -> str:
        """The headline, notes and skipped runs, a line each."""
        lines = self.headline.lines()
        lines += [f"readers? {self.readers.line}"] if self.readers else []
        lines += [f"triage? {triage_text(row)}" for row in self.triage[:_LISTED]]
        if len(self.triage) > _LISTED:
            lines.append(f"  ... and {len(self.triage) - _LISTED} more rows, all in triage.csv")
        lines += at_prevalence(self.decisions, self.prevalence) if self.prevalence is not None else []
        lines += [f"subgroups? {self.subgroups.line}"] if self.subgroups else []
        lines += self.transfer.lines() if self.transfer else []
        lines += [f"note: {note}" for note in self.notes]
        if self.skipped:
            lines.append(f"skipped: {count(len(self.skipped), 'run folder')}")
            lines += [f"  {item.folder}: {item.reason}" for item in self.skipped[:_LISTED]]
            if len(self.skipped) > _LISTED:
                lines.append(f"  ... and {len(self.skipped) - _LISTED} more, all in compare.md")
        return "\n".join(lines)


# --- Making one.


def compare(
    folders: Sequence[Path | str] | Path | str,
    out: Path | str | None = None,
    *,
    pool: Sequence[str] = POOLED,
    level: str | None = None,
    margin: float | None = None,
    baseline: str | None = None,
    labels: Sequence[str] = (),
    common: bool = False,
    reference: Sequence[Path | str] | Path | str = (),
    readers: Path | str | None = None,
    report: Sequence[str] = (),
    subgroups: Sequence[Subgrouping | str] = (),
    covariates: Path | str | None = None,
    show_patient: bool = False,
    prevalence: float | None = None,
    figures: Sequence[str] = (),
) -> Comparison:
    """Compare the finished runs below ``folders`` on their test cases.

    Runs that differ in pooled keys only form a group. Within it, out-of-fold predictions are pooled and repeated ones
    averaged (:func:`.groups.pool`); the mean and standard deviation over the runs' own values
    stand beside the pooled ones, since they answer another question: how one model varies, not what the average of
    several models does.

    Every pair of groups tested on the same cases is tested (:mod:`.contrasts`), every group against the
    models without pixels of its runs, leaky groups against their twins; p values are corrected within the family of
    tests that answer one question (:func:`.contrasts.adjust`). Beyond eighty groups, intervals that need resampling are
    computed for the eighty of highest AUROC, and beyond twelve each is tested against one alone; the notes say so.

    Args:
        folders: Searched for run folders.
        out: Where all files are written (:meth:`Comparison.write`); None writes nothing.
        pool: Configuration keys that are repetitions, not differences.
        level: slice | series | patient; None takes slices, and series and patients too where a patient has several
            slices.
        margin: Non-inferiority margin of AUROC, above 0; None makes no such test.
        baseline: Settings of the group the others are held against, such as ``backbone.pretrained=false``.
        labels: Labels that get tests of their own beside the mean and ``any``; ``all`` takes every one.
        common: Test groups with different cases on those they share.
        reference: YAML files with published figures, see :mod:`.reference`.
        readers: CSV file of readers' decisions or scores, see :mod:`.readers`.
        report: ``("claim",)`` writes the study's facts with the items of CLAIM 2024 and TRIPOD+AI too.
        subgroups: Covariates whose groups are judged apart, such as ``["sex", "age=18|65"]``, see :mod:`.subgroups`.
        covariates: CSV file of further covariates; without ``subgroups`` all of its columns.
        prevalence: Of patients, at which predictive values per patient are told; None: that of the test cases.
        show_patient: Name cases by their ids in what is written, and readers; False: by pseudonyms.
        figures: ``pdf`` and ``svg``: the figures in these formats too, beside the PNG.

    Raises:
        RunError: No complete run, contradictory runs in a group, or ``out`` cannot be written.
        ConfigError: An unknown key or level, a ``baseline``, margin, label, reference or readers' file that fits no
            group.
        DataError: The file of readers or of covariates cannot be read.

    Example:
        >>> from pathlib import Path
        >>> compare("runs/ablation", baseline="pretrained=false").table  # doctest: +SKIP
    """
    folders, reference = ([g] if isinstance(g, str | Path) else list(g) for g in (folders, reference))
    asked: dict[str, Any] = {"folders": folders, "level": level, "pool": pool, "baseline": baseline, "margin": margin}
    CompareRequest(**asked, labels=labels, reference=[str(path) for path in reference], report=report)
    wanted = CompareRequest(folders=folders, subgroups=subgroups).subgroups
    studies = [study for path in reference for study in read_studies(path)]  # before any long work
    reads = read_readings(readers, show=show_patient) if readers is not None else []
    found = find_runs(folders)
    skipped = list(found.skipped)
    levels = [level] if level else None
    keys = differing_keys(found.runs, pool)
    notes = Notes()
    entries = _entries(group_runs(found.runs, keys), levels, notes, skipped)
    if not entries:
        first = f"{skipped[0].folder}: {skipped[0].reason}"
        raise RunError(f"no run could be read; the first: {first}", remedy="train these runs again")
    anchor = select(baseline, entries) if baseline else None
    detailed = _detail(entries, anchor, levels, notes)
    blind = _baselines(detailed, notes)
    notes.kinds = kind_keys(found.runs, pool)
    notes.more += [text] if (text := unsigned(found.runs)) else []
    contrasts, tested_against = _contrasts(detailed, anchor, margin, labels, common, notes)
    published, alone = beside(studies, entries)
    notes.more += alone
    contrasts += [item.contrast for item in published]
    study = None
    if readers is not None:
        one = [entry for entry in detailed if entry.name == tested_against]
        study = beside_readers(readers, reads, one or detailed, common)
        contrasts += study.contrasts
        notes.more += study.notes
    groups = None
    if wanted or covariates is not None:
        groups = study_subgroups(wanted, covariates, detailed, labels)
        notes.more += groups.notes
    table = pd.DataFrame([row for entry in entries for row in entry.rows] + blind)
    factors = study_factors(table, detailed, keys, anchor)
    contrasts += [c for found in factors for c in found.contrasts]
    families = adjust(contrasts, lambda c: is_main(c, detailed))
    for c in contrasts:
        if c.kind != "published":  # where the others are patients
            c.covers, c.refused, c.note = map(notes.said, (c.covers, c.refused, c.note))
    if families:
        refused = sum(bool(c.refused) for c in contrasts)
        more = f"; {count(refused, 'comparison')} refused, with the reason" if refused else ""
        named = ", ".join(f"{name} ({size})" for name, size in families.items())
        notes.more.append(
            f"{sum(families.values())} p values in tests.csv, corrected within each family (Holm): {named}{more}"
        )
    result = Comparison(
        table,
        keys,
        sorted(skipped),
        len(entries),
        sum(entry.used for entry in entries),
        detailed,
        contrasts,
        notes,
        notes.lines(pool),
        *(anchor, tested_against, published, studies, prevalence, study, groups, study_transfer(detailed)),
        families=families,
        factors=factors,
    )
    result.headline = headline(result)
    if out is not None:
        result.write(out, show_patient=show_patient, report=report, figures=figures)
    return result


def select(text: str, entries: Sequence[Entry]) -> Entry:
    """The one group that ``text`` names."""
    named = [entry for entry in entries if entry.name == text]
    if named:
        return named[0]
    parts: list[str] = []
    for piece in text.split(","):  # a part without `=` belongs to the value before it, as in a list
        parts = [*parts, piece] if "=" in piece or not parts else [*parts[:-1], f"{parts[-1]},{piece}"]
    left, keys = list(entries), list(entries[0].group.values)
    for part in filter(None, map(str.strip, parts)):
        key, equals, value = part.partition("=")
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


def _equal(entry: Entry, key: str, value: str) -> bool:
    if value in (entry.group.cell(key), show(entry.group.values[key])):
        return True
    try:
        return canonical(load_yaml(value)) == canonical(entry.group.values[key])
    except ValueError:
        return False


def _entries(
    groups: Sequence[Group], levels: Sequence[str] | None, notes: Notes, skipped: list[Skipped]
) -> list[Entry]:
    """Every group with its rows; its cases as well where there are few groups."""
    full = len(groups) <= FULL
    entries: list[Entry] = []
    names: dict[str, int] = {}
    for group in track(groups, "Pooling groups", after=NOTICED):
        pooled, unread = pool(group, levels or (None if full else group.levels[:1]), baselines=full)
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


def _detail(entries: list[Entry], baseline: Entry | None, levels: Sequence[str] | None, notes: Notes) -> list[Entry]:
    """The groups that get tests, figures and every interval, in the order of the table."""
    if all(entry.cases for entry in entries):
        return entries
    areas = [entry.auroc for entry in entries]
    chosen = set(sorted(range(len(entries)), key=lambda i: -areas[i] if areas[i] == areas[i] else 9.0)[:FULL])
    chosen |= {i for i, entry in enumerate(entries) if entry is baseline}
    chosen |= {entries.index(twin) for leaky, twin in twins(entries)[:FULL] if entries.index(leaky) in chosen}
    kept = [entries[i] for i in sorted(chosen)]
    for entry in track(kept, "Intervals of groups", after=NOTICED):
        entry.cases, _ = pool(entry.group, levels)
        if any(cases.clustered for cases in entry.cases.values()) or len(entry.group.labels) > 1:
            pooled = entry.cases.items()
            entry.rows = [row for at, cases in pooled for row in metric_rows(entry.group, entry.name, at, cases)]
    notes.more.append(
        f"{len(entries)} groups: intervals by resampling, further levels, tests and figures for the "
        f"{len(kept)} of highest AUROC only; selection by result favours them"
    )
    return kept


def _baselines(entries: Sequence[Entry], notes: Notes) -> list[dict[str, Any]]:
    """Rows of each model without pixels on each set of cases, once; in the order of :data:`BASELINES`."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in BASELINES}
    seen: set[tuple[Any, ...]] = set()
    for entry in entries:
        for level, cases in entry.cases.items():
            for name, p in cases.baselines.items():
                same = (name, level, entry.group.task, tuple(cases.unit))
                if same not in seen:
                    seen.add(same)
                    rows[name] += baseline_rows(entry.group, name, level, cases, p, REPLICATES)
    notes.baselines = [name for name in rows if rows[name]]
    return [row for own in rows.values() for row in own]


def _contrasts(
    entries: Sequence[Entry],
    baseline: Entry | None,
    margin: float | None,
    labels: Sequence[str],
    common: bool,
    notes: Notes,
) -> tuple[list[Contrast], str]:
    """All tests, and the name of the one group that the others are tested against (empty: every pair is tested)."""
    known = list(dict.fromkeys(label for entry in entries for label in entry.group.labels))
    unknown = [label for label in labels if label not in (*known, "all")]
    if unknown:
        raise ConfigError(
            f"labels={','.join(labels)}: unknown label '{unknown[0]}'{hint(unknown[0], known)}",
            remedy=f"these runs have {', '.join(known)}",
        )
    ends = endpoints(entries, known if "all" in labels else labels)
    anchor, many = baseline or best(entries), len(entries) > ALL_PAIRS
    contrasts = paired_contrasts(entries, ends, chosen_pairs(entries, anchor), common)
    contrasts += baseline_contrasts([anchor] if many else entries, ends)
    contrasts += inflations(entries, ends)
    if margin is not None:
        contrasts += non_inferior(contrasts, margin, anchor)
        if baseline is None and len(entries) > 1:
            notes.more.append(
                f"margin={margin:g}: no baseline was named, so non-inferiority is judged against "
                f"the group of highest AUROC, {anchor.name}"
            )
    if many:
        which = "the baseline" if baseline else "the group of highest AUROC, which chance has favoured"
        notes.more.append(f"{len(entries)} groups: not every pair is tested, but each against {which}: {anchor.name}")
    return contrasts, anchor.name if many else ""
