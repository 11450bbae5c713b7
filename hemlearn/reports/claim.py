"""What a study of finished runs must report, as far as their folders know: CLAIM 2024 and TRIPOD+AI.

Every answer is a fact of a run folder (configuration, provenance, metrics, split) or of the comparison; what no folder
holds is called unknown, and what only the author knows is left to be filled in (:mod:`.guidelines` has the items).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hemlearn.reports.guidelines import CLAIM, TRIPOD, Item
from hemlearn.reports.statements import merged
from hemlearn.reports.study_facts import ALWAYS, FACTS, PARTS, Group, cases_of, people_of, range_text
from hemlearn.reports.tables import in_people, interval_text, markdown, render
from hemlearn.reports.triage import TRIAGE_HEADER, triage_cells

UNKNOWN = "unknown: the run folders do not say"


def claim_markdown(
    groups: Sequence[Group],
    tests: Mapping[str, tuple[int, Sequence[str]]],
    p_values: int,
    notes: Sequence[str] = (),
    subgroups: str = "",
) -> str:
    """The report as Markdown.

    Args:
        groups: The groups of a comparison.
        tests: What was tested -> number of tests, and methods.
        p_values: How many were corrected together.
        notes: What the comparison itself says against trusting its figures, such as folds that are missing.
        subgroups: What was found in subgroups of patients, where they were judged.
    """
    facts = ALWAYS | {name: _merged([(group.name, of(group)) for group in groups]) for name, of in FACTS.items()}
    person = "image" if all(people_of(group) == "image" for group in groups) else "patient"
    facts["flow"] = in_people(facts["flow"], person)
    facts["tests"] = _tests(tests, p_values)
    if subgroups:
        facts["results"] += f"; by subgroup (subgroups.csv): {subgroups}"

    def answered(items: Sequence[Item]) -> list[tuple[str, str, str]]:
        told = [(item, " ".join(_sentence(facts[name]) for name in item.facts)) for item in items if item.facts]
        return [(item.number, item.asks, text) for item, text in told]

    lists = (("CLAIM 2024", CLAIM), ("TRIPOD+AI", TRIPOD))
    return render(
        "hemlearn.reports",
        "claim.md.j2",
        markdown,
        lists=[(name, answered(items), [item for item in items if item.author]) for name, items in lists],
        flow=[line for group in groups for line in _flow_lines(group, len(groups) > 1)],
        results=[line for group in groups for line in _result_lines(group)],
        triage_header=TRIAGE_HEADER,
        triage=[triage_cells(row) for group in groups for row in group.triage],
        promises=list(dict.fromkeys(row["promise"] for group in groups for row in group.triage)),
        notes=notes,
        person=person,
        limits=_limits(groups),
    )


def _sentence(text: str) -> str:
    return (text or UNKNOWN)[0].upper() + (text or UNKNOWN)[1:].rstrip(".") + "."


def _merged(told: Sequence[tuple[str, str]]) -> str:
    """One text where all groups share it, else each with the names of its groups."""
    by_text: dict[str, list[str]] = {}
    for name, text in told:
        by_text.setdefault(text, []).append(name)
    if len(by_text) == 1:
        return next(iter(by_text))
    return "; ".join(f"({' / '.join(names)}) {text or UNKNOWN}" for text, names in by_text.items())


def _tests(tests: Mapping[str, tuple[int, Sequence[str]]], p_values: int) -> str:
    if not p_values:
        return "no test was made"
    told = [f"{what}: {', '.join(methods)} ({n})" for what, (n, methods) in tests.items()]
    return f"two-sided, {p_values} p values, corrected within each question (Holm): {'; '.join(told)}"


# --- Its tables.


def _flow_lines(group: Group, named: bool) -> list[list[str]]:
    """Step, patients, slices and what is known of them; one line per step, ranges over the runs."""

    def over(values: Sequence[Any]) -> str:
        known = [float(value) for value in values if value is not None]
        return range_text(known) if known else "unknown"

    data = [run.card["data"] for run in group.runs]
    reasons = dict.fromkeys(reason for own in data for reason in own.get("skipped") or {})
    read = [None if own.get("patients_known") is False else own.get("patients") for own in data]
    lines = [["read", over(read), over([own.get("slices") for own in data]), ""]]
    for reason in reasons:
        lost = over([(own.get("skipped") or {}).get(reason, 0) for own in data])
        lines.append(["left out while reading", "unknown", "unknown", f"{lost}: {reason}"])
    for part, word in PARTS.items():
        audits = [run.card["audits"] for run in group.runs]
        sizes = [((audit.get("split") or {}).get("parts") or {}).get(part) or {} for audit in audits]
        known = [run.card["data"].get("patients_known") is not False for run in group.runs]
        people = [(run.card["split"].get("patients") or {}).get(part) for run in group.runs]
        patients = [number if told else None for number, told in zip(people, known, strict=True)]
        counts = [(audit.get("labels") or {}).get(part) or {} for audit in audits]
        labels = dict.fromkeys(label for own in counts for label in own)
        told = [f"{c} {over([own.get(c, {}).get('positive') for own in counts])}" for c in labels]
        note = f"positive slices: {', '.join(told)}" if told else ""
        lines.append([word, over(patients), over([size.get("slices") for size in sizes]), note])
    lines += [
        [f"tested, all runs together, {cases_of(row)}", _whose(row), "", f"{row['n']} cases"]
        for row in group.rows
        if not row["label"]
    ]
    several = f"; ranges over {len(group.runs)} runs" if len(group.runs) > 1 else ""
    lines[0][3] = f"before splitting{several}"
    return [[group.name if named else "", *line] for line in lines]


def _whose(row: Mapping[str, Any]) -> str:
    """How many patients, where they are known."""
    return str(row["patients"]) if row["patients"] == row["patients"] else "unknown"


def _result_lines(group: Group) -> list[list[str]]:
    return [
        [group.name, row["level"], row["label"] or "all", _whose(row), str(row["n"]), str(row["positives"])]
        + [interval_text(row, metric) for metric in ("auroc", "sensitivity", "specificity")]
        for row in group.rows
    ]


def _limits(groups: Sequence[Group]) -> list[tuple[str, int, int]]:
    """What the cards say against trusting the figures too far, the number of runs that say it, and of all."""
    runs = [run for group in groups for run in group.runs]
    return [(text, n, len(runs)) for text, n in merged([run.card["limits"] for run in runs])]
