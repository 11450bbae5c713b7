"""A comparison in plain words: its headline, and what a reader must know to read the tables rightly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hemlearn.audits.baselines import ALPHA, FEW, READ_BESIDE, chance_p
from hemlearn.compare.cases import Pooled
from hemlearn.compare.contrasts import PRIMARY, Contrast, Endpoint, best, endpoints, primary
from hemlearn.compare.groups import Entry
from hemlearn.compare.runs import ComparedRun
from hemlearn.evaluation.auroc import CHANCE, NAN, WEAK, auroc_interval
from hemlearn.evaluation.significance import FEW_CLUSTERS, holm
from hemlearn.reports.tables import UNDEFINED, in_people, interval_text, p_text, render
from hemlearn.util.errors import count

if TYPE_CHECKING:
    from hemlearn.compare.comparison import Comparison

_NAMED = 4  # groups named in one sentence
_BASELINES = {
    "position only": "a model that knows where in its series a slice lies, and sees no pixel",
    "metadata only": "a model that knows image size, file size and header fields, and sees no pixel",
    "size only": "a model that knows the picture's height, width and aspect, and sees no pixel",
    "border only": "a model that sees a ring at the picture's border, and nothing inside the head",
    "CSF share": "the share of fluid around the centre of the head, measured without a network",
    "Evans index": "width of the frontal horns over that of the skull, by a plain segmentation without a network",
}


# --- The headline: what was compared, is one really better on patients, could a shortcut explain it.


@dataclass(frozen=True)
class Headline:
    """The sentences at the top of the page."""

    compared: str  # what was compared
    better: str  # whether one group is better than the others, on patients where they are judged
    shortcut: str  # whether something that sees no pixel inside the head comes near
    warnings: list[str]  # what forbids to read the rest at face value

    def lines(self) -> list[str]:
        """For a terminal, a line each; the warnings stand above the table."""
        return [f"compared: {self.compared}", f"better? {self.better}", f"shortcut? {self.shortcut}"]


def headline(result: Comparison) -> Headline:
    """Put a comparison into words."""
    notes, groups = result.about, result.groups
    warnings = []

    def among(named: Sequence[str]) -> tuple[str, str]:
        """Of which groups it is said, "" of all; how their figures are called."""
        few = len(named) < groups
        return f" in {len(named)} of {count(groups, 'group')}" if few else "", "those" if few else "these"

    if notes.synthetic:
        where, these = among(notes.synthetic)
        warnings.append(f"synthetic data{where}: {these} figures say nothing about patients")
    if notes.nameless:
        where, _ = among(notes.nameless)
        people = "people there" if where else "people"
        warnings.append(
            f"no patient ids{where}: images count as {people}, so that one person may stand on two sides and intervals "
            "and tests are of images, not of patients"
        )
    if notes.leaky:
        where, these = among(notes.leaky)
        warnings.append(
            f"split by slice{where}: {notes.person}s are in both training and test, and {these} figures are too good"
        )
    if notes.seen:
        where, these = among(notes.seen)
        warnings.append(
            f"the weights a run started from{where} had seen its test {notes.person}s, and {these} figures are too good"
        )
    warnings += _limits(result)
    better, shortcut = [], []
    tasks = list(dict.fromkeys(entry.group.task for entry in result.entries))
    for task in tasks:
        answers = _Answers(result, [entry for entry in result.entries if entry.group.task == task])
        named = f"{task[0]} {', '.join(task[1])}: " if len(tasks) > 1 else ""
        better.append(named + answers.better())
        shortcut.append(named + answers.shortcut())
    return Headline(_compared(result), " ".join(better), " ".join([*shortcut, *_leak(result)]), warnings)


def _limits(result: Comparison) -> Iterator[str]:
    """Few patients, or a best group that is weak: neither is made good by what follows."""
    task = best(result.entries).group.task
    entries = [entry for entry in result.entries if entry.group.task == task]
    end = primary(endpoints(entries))
    top = best(entries, end)
    cases = top.cases[end.level]
    few = f"few {cases.person}s"
    column = top.group.labels.index(end.label) if end.label else 0
    if end.label or len(top.group.labels) == 1:
        sides = [len(set(cases.patient[cases.y[:, column] == c].tolist())) for c in (1, 0)]
        if min(sides) < FEW_CLUSTERS:
            name = top.group.labels[column]
            yield f"{few}: {sides[0]} with {name}, {sides[1]} without; intervals are wide and tests are rough"
    else:
        people = len(set(cases.patient.tolist()))
        if people < 2 * FEW_CLUSTERS:
            yield f"{few}: {people}; intervals are wide and tests are rough"
    row = top.row(end.level, end.label)
    if row is None or row["auroc"] != row["auroc"]:
        return
    value, where = interval_text(row, "auroc"), end.name(len(top.group.labels) > 1)
    if row["auroc_low"] <= CHANCE:
        yield f"weak model: the best AUROC, {value} on {where}, is not clearly above chance"
    elif row["auroc"] < WEAK:
        yield f"weak model: the best AUROC is {value} on {where}"


def _compared(result: Comparison) -> str:
    first = result.entries[0]
    level, cases = list(first.cases.items())[-1]
    patients = len(set(first.first[1].patient.tolist()))
    known = cases.person == "patient"
    level = cases.person if level == "patient" else level
    size = count(len(cases.unit), level) + (f" of {count(patients, 'patient')}" if known and level != "patient" else "")
    differ = ", ".join(key.removesuffix(".name") for key in result.keys)
    groups = f"{result.groups} groups of runs that differ in {differ}" if result.groups > 1 else "one group of runs"
    return f"{groups}; {count(result.runs, 'run')}, folds and seeds pooled; the first group was tested on {size}."


class _Answers:
    """The answers for the groups of one task, at its primary endpoint."""

    def __init__(self, result: Comparison, entries: list[Entry]) -> None:
        self.entries = entries
        self.end = primary(endpoints(entries))
        self.where = self.end.name(len(entries[0].group.labels) > 1)
        self.anchor = next((entry for entry in entries if entry.name == result.tested_against), None)
        self.table = result.table
        at = (self.end.level, self.end.label)
        self.contrasts = [c for c in result.contrasts if c.metric == "auroc" and (c.level, c.label) == at]
        self.family = count(result.families.get(PRIMARY, 0), "comparison of groups", "comparisons of groups")

    def better(self) -> str:
        honest = [entry for entry in self.entries if not entry.group.leaky] or self.entries
        rows = [(entry, entry.row(self.end.level, self.end.label)) for entry in honest]
        known = [(entry, row) for entry, row in rows if row is not None and row["auroc"] == row["auroc"]]
        ranked = sorted(known, key=lambda item: -item[1]["auroc"])
        if not ranked:
            return f"Undefined: no group has an AUROC on {self.where}; a class is absent."
        if len(honest) == 1:
            value = interval_text(ranked[0][1], "auroc")
            return f"Nothing to compare it with: one group, AUROC {value} on {self.where}."
        top = self.anchor if self.anchor in honest else ranked[0][0]
        row = top.row(self.end.level, self.end.label)
        value = interval_text(row, "auroc") if row is not None else UNDEFINED
        mine = [c for c in self.contrasts if c.kind == "paired" and top.name in (c.first, c.second)]
        tests = [c if c.first == top.name else c.turned() for c in mine if c.made]
        refused = [c.refused for c in mine if c.refused]
        lead = f"{top.name} has AUROC {value} on {self.where}"
        if not tests:
            reason = refused[0] if refused else "no test is defined"
            return f"Not known: {lead}, but it could not be tested against another group ({reason})."
        lead += ", the highest. " if top is ranked[0][0] else ". "
        ahead = [c for c in tests if c.differs and c.difference > 0]
        behind = [c for c in tests if c.differs and not c.difference > 0]
        others = [c for c in tests if not c.differs]
        parts = []
        if ahead:
            parts.append(f"It is better than {_names(ahead)} ({_largest_p(ahead)}, of {self.family})")
        if behind:
            parts.append(f"it is worse than {_names(behind)} ({_largest_p(behind)})")
        if others:
            nearest = min(others, key=lambda c: c.p_holm)
            named = f"{nearest.second}: " if len(others) > 1 else ""
            text = f"from {_names(others)} the difference may be chance ({named}{nearest.text()}, {nearest.p_words})"
            parts.append(text if parts else text[0].upper() + text[1:])
        apart = sum(reason.startswith("tested on") for reason in refused)
        if apart:
            were = "group was" if apart == 1 else "groups were"
            parts.append(f"{apart} {were} tested on other cases and cannot be paired")
        answer = "Not shown: "
        if ahead:
            answer = "In part: " if others or behind else f"Yes, on these {top.first[1].person}s: "
        return answer + lead + "; ".join(parts) + "."

    def shortcut(self) -> str:
        anchor, at = self.anchor, (self.end.level, self.end.label)
        top = anchor if anchor is not None and anchor.row(*at) is not None else best(self.entries, self.end)
        tests = [c for c in self.contrasts if c.kind == "null" and c.first == top.name]
        if not tests:
            blind = "a model that sees no pixel (position, metadata or border only)"
            return f"Not known: these runs hold no predictions of {blind}."
        label = self.end.label if len(self.entries[0].group.labels) > 1 else ""
        table = self.table[(self.table["level"] == self.end.level) & (self.table["label"] == label)]
        table = table[table["task"] == top.rows[0]["task"]]
        sentences, chance = [], self._chance(top)
        for c in tests:
            rows = table[table["source"] == c.second].to_dict("records")
            text = f"{c.second} reaches {interval_text(rows[0], 'auroc') if rows else UNDEFINED} on {self.where}"
            p, named = chance.get(c.second, (NAN, ""))
            if p != p:
                text += f" (not judged: fewer than {FEW} {top.first[1].person}s of a class)"
            elif p < ALPHA:
                text += f", above chance{named} (corrected p {p_text(p)}): read every result beside it"
            sentences.append(f"{text}; {top.name} minus that: {c.text()}, {c.p_words}")
        near = any(not (c.differs and c.difference > 0) for c in tests)
        answer = "It cannot be ruled out: " if near else "None of the baselines explains it: "
        return answer + ". ".join(sentences) + "."

    def _chance(self, top: Entry) -> dict[str, tuple[float, str]]:
        """Name of each baseline -> p of an AUROC of 0.5, corrected for all labels and baselines, and of which label.

        Of several labels the clearest of those whose own AUROC is at least 0.6: a mean over labels can hide one, and a
        label below chance is no shortcut. 1 where none is; NaN where none can be judged.

        Where a run's test patients have trained others, the folds are not independent, and the variance is that of
        Nadeau and Bengio (2003): larger by 1 + 1 / (1 - tested share).
        """
        cases, labels = top.cases[self.end.level], top.group.labels
        columns = [labels.index(self.end.label)] if self.end.label else list(range(len(labels)))
        keys = cases.used[0].keys
        drawn = {"kfold": 1 / int(keys["split.folds"]), "monte_carlo": float(keys["split.test_fraction"])}
        share = drawn.get(str(keys["split.name"]))
        several = share is not None and len({run.keys["split.fold"] for run in cases.used}) > 1
        inflation = 1 + 1 / (1 - share) if several and share is not None else 1.0
        found = np.full((len(cases.baselines), len(columns)), NAN)
        high = np.zeros(found.shape, dtype=bool)
        for i, p in enumerate(cases.baselines.values()):
            for place, j in enumerate(columns):
                known = ~np.isnan(cases.y[:, j])
                found[i, place] = chance_p(cases.y[known, j], p[known, j], cases.code[known], inflation)
                if found[i, place] == found[i, place]:
                    high[i, place] = auroc_interval(cases.y[known, j], p[known, j]).value >= READ_BESIDE
        adjusted = holm(found.ravel()).reshape(found.shape)
        told = {}
        for i, name in enumerate(cases.baselines):
            least = int(np.where(high[i], adjusted[i], 2.0).argmin())
            judged = (float(adjusted[i, least]) if high[i].any() else 1.0) if (found[i] == found[i]).any() else NAN
            told[name] = (judged, f" for {labels[columns[least]]}" if len(columns) > 1 else "")
        return told


def _names(contrasts: list[Contrast]) -> str:
    others = [c.second for c in contrasts]
    if len(others) > _NAMED:
        return f"{len(others)} other groups"
    between = "; " if any(", " in name for name in others) else ", "  # a name of several settings holds commas
    return between.join(others[:-1]) + (" and " if len(others) > 1 else "") + others[-1]


def _largest_p(contrasts: list[Contrast]) -> str:
    return f"adjusted p {p_text(max(c.p_holm for c in contrasts))}" + (" at most" if len(contrasts) > 1 else "")


def _leak(result: Comparison) -> Iterator[str]:
    for c in result.contrasts:
        if c.kind == "leak" and c.metric == "auroc" and c.difference == c.difference and c.level == "slice":
            yield (
                f"Splitting by slice instead of by {result.about.person} changes the AUROC on "
                f"{Endpoint(c.level, c.label).name()} by {c.text()}, "
                f"{c.p_words if c.made else f'without a test: {c.note}'} ({c.first})."
            )


# --- Notes, collected over groups.


class Notes:
    """Collects, over groups, what a reader must know."""

    def __init__(self) -> None:
        self.groups = 0
        self.clustered = self.repeats = self.pooled_folds = self.several_labels = False
        self.tested: set[int] = set()
        self.tasks: set[tuple[str, tuple[str, ...]]] = set()
        self.missing: dict[str, list[str]] = {}  # what is lacking -> groups
        self.leaky: list[str] = []
        self.seen: list[str] = []
        self.synthetic: list[str] = []
        self.nameless: list[str] = []
        self.undefined: list[str] = []
        self.scores: list[str] = []
        self.baselines: list[str] = []
        self.kinds: list[str] = []
        self.more: list[str] = []

    def add(self, entry: Entry, level: str, cases: Pooled) -> None:
        """Take note of one group at one level."""
        group, name = entry.group, entry.name
        self.clustered |= cases.clustered
        self.several_labels |= len(group.labels) > 1
        self.repeats |= cases.repeats > 1
        if np.isnan(cases.y).all() or any(len(np.unique(c[~np.isnan(c)])) < 2 for c in cases.y.T):
            self.undefined.append(f"{name} ({level})")
        if "prob" in cases.scores:
            self.scores.append(f"{name} ({level})")
        self.tested.add(hash(tuple(np.unique(cases.patient))))
        self.tasks.add(group.task)
        if level != entry.first[0]:
            return
        self.groups += 1
        settings = cases.used[0].keys
        folds = {run.keys["split.fold"] for run in cases.used}
        # An evaluation on another data set tests all of it, whichever fold the run has learnt.
        if settings["split.name"] == "kfold" and cases.used[0].provenance.get("evaluated") != "external":
            self.pooled_folds |= len(folds) > 1
            lacking = sorted(set(range(int(settings["split.folds"]))) - folds)
            if lacking:
                named = ", ".join(map(str, lacking))
                self.missing.setdefault(f"no result of fold {named} of {settings['split.folds']}", []).append(name)
        if group.leaky:
            self.leaky.append(name)
        elif any(seen(run) for run in cases.used):
            self.seen.append(name)
        if cases.used[0].provenance.get("data", {}).get("synthetic"):
            self.synthetic.append(name)
        if cases.person != "patient":
            self.nameless.append(name)

    @property
    def person(self) -> str:
        """What the figures count: ``patient``, or ``image`` where no group has patient ids."""
        return "image" if self.groups and len(self.nameless) == self.groups else "patient"

    def said(self, text: str) -> str:
        """A text on patients, in the word for what the figures count."""
        return in_people(text, self.person)

    def lines(self, pool: Sequence[str]) -> list[str]:
        """The notes, the gravest first."""
        values = {"notes": self, "pool": pool, "described": _BASELINES}
        return render("hemlearn.compare", "notes.txt.j2", str, **values).splitlines()


def seen(run: ComparedRun) -> bool:
    """Whether a run's audits say that test patients had trained the weights it started from."""
    audits: Any = run.metrics.get("audits")
    split = audits.get("split") if isinstance(audits, dict) else None
    return bool(isinstance(split, dict) and split.get("seen_by_weights"))
