"""The comparison in plain words: what was compared, is one really better on patients, could a shortcut explain it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hemlearn.compare.contrasts import Contrast
from hemlearn.compare.formats import difference_text, endpoint_name, interval_text, p_text
from hemlearn.compare.paired import Endpoint, best, endpoints, primary
from hemlearn.compare.pooling import Entry
from hemlearn.compare.result import Comparison, Headline

_NAMED = 4  # groups told by name in one sentence
_CHANCE = 0.5


def headline(result: Comparison) -> Headline:
    """Put a comparison into words."""
    tasks = list(dict.fromkeys(entry.group.task for entry in result.entries))
    warnings = []
    if result.synthetic:
        where = (
            "" if len(result.synthetic) == result.groups else f" in {len(result.synthetic)} of {result.groups} groups"
        )
        warnings.append(f"synthetic data{where}: those figures say nothing about patients")
    if result.leaky:
        warnings.append(
            f"split by slice in {len(result.leaky)} of {result.groups} groups: patients stand in training "
            "and test, and those figures are too good"
        )
    if result.seen:
        warnings.append(
            f"in {len(result.seen)} of {result.groups} groups the weights a run started from had seen its "
            "test patients, and those figures are too good"
        )
    better, shortcut = [], []
    for task in tasks:
        entries = [entry for entry in result.entries if entry.group.task == task]
        end = primary(endpoints(entries))
        named = f"{task[0]} {', '.join(task[1])}: " if len(tasks) > 1 else ""
        better.append(named + _better(result, entries, end))
        shortcut.append(named + _shortcut(result, entries, end))
    return Headline(_compared(result), " ".join(better), " ".join([*shortcut, *_leak(result)]), warnings)


def _compared(result: Comparison) -> str:
    first = result.entries[0]
    level, cases = list(first.cases.items())[-1]
    many = {"slice": "slices", "series": "series", "patient": "patients"}[level]
    size = f"{len(cases.unit)} {many}" + ("" if level == "patient" else f" of {_patients(first)} patients")
    differ = ", ".join(key.removesuffix(".name") for key in result.keys)
    groups = f"{result.groups} groups of runs that differ in {differ}" if result.groups > 1 else "one group of runs"
    return f"{groups}; {result.runs} runs, folds and seeds pooled; the first group was tested on {size}."


def _patients(entry: Entry) -> int:
    return len(set(next(iter(entry.cases.values())).patient.tolist()))


def _row(entry: Entry, end: Endpoint) -> dict[str, Any] | None:
    label = end.label if len(entry.group.labels) > 1 else ""
    return next((row for row in entry.rows if row["level"] == end.level and row["label"] == label), None)


def _ranked(entries: list[Entry], end: Endpoint) -> list[tuple[float, Entry, dict[str, Any]]]:
    rows = [(entry, _row(entry, end)) for entry in entries]
    found = [(float(row["auroc"]), entry, row) for entry, row in rows if row is not None]
    return sorted((item for item in found if item[0] == item[0]), key=lambda item: -item[0])


def _better(result: Comparison, entries: list[Entry], end: Endpoint) -> str:
    honest = [entry for entry in entries if not entry.group.leaky] or entries
    ranked = _ranked(honest, end)
    where = endpoint_name(end.level, end.label, len(entries[0].group.labels) > 1)
    if not ranked:
        return f"Undefined: no group has an AUROC on {where}; a class is absent."
    if len(honest) == 1:
        return f"Nothing to compare it with: one group, AUROC {interval_text(ranked[0][2], 'auroc')} on {where}."
    anchor = next((entry for entry in honest if entry.name == result.tested_against), None)
    top = anchor or ranked[0][1]
    row = _row(top, end)
    value = interval_text(row, "auroc") if row is not None else "undefined"
    mine = [c for c in _tests(result, end, ("paired",)) if top.name in (c.first, c.second)]
    tests, refused = [c for c in mine if c.made], [c.refused for c in mine if c.refused]
    if not tests:
        reason = refused[0] if refused else "no test is defined"
        return (
            f"Not known: {top.name} has AUROC {value} on {where}, but it could not be tested against another group "
            f"({reason})."
        )
    lead = f"{top.name} has AUROC {value} on {where}"
    lead = lead + (", the highest. " if top is ranked[0][1] else ". ")
    ahead = [c for c in tests if c.differs and _ahead(c, top.name)]
    behind = [c for c in tests if c.differs and not _ahead(c, top.name)]
    rest = len(tests) - len(ahead) - len(behind)
    parts = []
    if ahead:
        parts.append(f"It is better than {_names(ahead, top.name)} ({_p_range(ahead)}, corrected for all comparisons)")
    if behind:
        parts.append(f"it is worse than {_names(behind, top.name)} ({_p_range(behind)})")
    if rest:
        others = [c for c in tests if not c.differs]
        nearest = min(others, key=lambda c: c.p_holm)
        told = f"from {_names(others, top.name)} the difference may be chance"
        shown = nearest if len(others) > 1 else others[0]
        smallest = "smallest " if len(others) > 1 else ""
        told += f" ({_difference(shown, top.name)}; {smallest}p {p_text(shown.p_holm)})"
        parts.append(told if parts else told[0].upper() + told[1:])
    apart = sum(reason.startswith("tested on") for reason in refused)
    if apart:
        parts.append(
            f"{apart} {'group was' if apart == 1 else 'groups were'} tested on other cases and cannot be paired"
        )
    answer = "Not shown: "
    if ahead:
        answer = "In part: " if rest or behind else "Yes, on these patients: "
    return answer + lead + "; ".join(parts) + "."


def _tests(result: Comparison, end: Endpoint, kinds: tuple[str, ...]) -> list[Contrast]:
    return [
        c
        for c in result.contrasts
        if c.kind in kinds and c.metric == "auroc" and (c.level, c.label) == (end.level, end.label)
    ]


def _ahead(contrast: Contrast, name: str) -> bool:
    return (contrast.difference > 0) == (contrast.first == name)


def _other(contrast: Contrast, name: str) -> str:
    return contrast.second if contrast.first == name else contrast.first


def _names(contrasts: list[Contrast], name: str) -> str:
    others = [_other(c, name) for c in contrasts]
    if len(others) > _NAMED:
        return f"{len(others)} other groups"
    return ", ".join(others[:-1]) + (" and " if len(others) > 1 else "") + others[-1]


def _p_range(contrasts: list[Contrast]) -> str:
    return f"p {p_text(max(c.p_holm for c in contrasts))}" + (" at most" if len(contrasts) > 1 else "")


def _difference(contrast: Contrast, name: str) -> str:
    if contrast.first == name:
        return difference_text(contrast)
    turned = Contrast(
        contrast.kind,
        contrast.level,
        contrast.label,
        contrast.metric,
        name,
        contrast.first,
        difference=-contrast.difference,
        low=-contrast.high,
        high=-contrast.low,
    )
    return difference_text(turned)


def _shortcut(result: Comparison, entries: list[Entry], end: Endpoint) -> str:
    top = next((entry for entry in entries if entry.name == result.tested_against), None) or best(entries)
    tests = [c for c in _tests(result, end, ("null",)) if c.first == top.name]
    where = endpoint_name(end.level, end.label, len(entries[0].group.labels) > 1)
    if not tests:
        return (
            "Not known: these runs hold no predictions of a model that sees no pixel (position, metadata or border "
            "only)."
        )
    label = end.label if len(entries[0].group.labels) > 1 else ""
    sentences, grave = [], False
    for c in tests:
        row = _null_row(result, c.second, end.level, label, top)
        near = not (c.differs and c.difference > 0)
        told = row is not None and row["auroc_low"] > _CHANCE
        grave |= near
        value = interval_text(row, "auroc") if row is not None else "undefined"
        text = f"{c.second} reaches {value} on {where}"
        text += ", above chance: read every result beside it" if told else ""
        text += f"; {top.name} minus that: {difference_text(c)}, p {p_text(c.p_holm)}"
        sentences.append(text)
    answer = "It cannot be ruled out: " if grave else "Not by what was tried: "
    return answer + ". ".join(sentences) + "."


def _null_row(result: Comparison, null: str, level: str, label: str, top: Entry) -> dict[Any, Any] | None:
    table = result.table
    rows = table[(table["source"] == null) & (table["level"] == level) & (table["label"] == label)]
    rows = rows[rows["task"] == top.rows[0]["task"]]
    return None if rows.empty else rows.iloc[0].to_dict()


def _leak(result: Comparison) -> Iterator[str]:
    for c in result.contrasts:
        if c.kind == "leak" and c.metric == "auroc" and c.difference == c.difference and c.level == "slice":
            where = endpoint_name(c.level, c.label)
            yield (
                f"Splitting by slice in the place of patients changes the AUROC on {where} by {difference_text(c)}, "
                f"p {p_text(c.p_holm)} ({c.first})."
            )
