"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hemlearn.reports.comparison.contrasts import KINDS, Contrast
from hemlearn.reports.comparison.text import count, difference_text, endpoint_name, metric_name, p_text, seconds, span

if TYPE_CHECKING:
    from hemlearn.reports.comparison.files.page import Material
    from hemlearn.reports.comparison.result import Comparison

_TESTS = 60  # tests listed; tests.csv has all


def markdown(result: Comparison, material: Material) -> str:
    """Headline, tables, tests, published figures, cost, notes and every skipped run."""
    head = result.headline
    out = ["# Comparison", "", f"{result.runs} runs in {result.groups} groups; test cases; 95 % intervals.", ""]
    out += [f"**Warning: {text}.**\n" for text in head.warnings]
    out += [
        f"**What was compared?** {head.compared}",
        "",
        f"**Is one really better?** {head.better}",
        "",
        f"**Could a shortcut explain it?** {head.shortcut}",
        "",
    ]
    for title, header, lines in result.tables():
        out += [f"## {title}", ""] if title else []
        first = header.index("runs")
        out += [*_table(header, lines, first), ""]
    out += _tests(result.contrasts)
    out += _published(result)
    out += _audits(material)
    costs = [
        [
            row["group"],
            str(row["runs"]),
            seconds(row["fit_seconds"]),
            seconds(row["fit_seconds_total"]),
            count(row["images_per_second"]),
            count(row["parameters"]),
            row["device"],
        ]
        for row in material.costs.to_dict("records")
    ]
    header = ["group", "runs", "training per run", "together", "images per second", "parameters", "device"]
    out += ["## Cost", "", *_table(header, costs, 1), ""]
    if result.notes:
        out += ["## Notes", "", *(f"- {note}" for note in result.notes), ""]
    if result.skipped:
        out += [f"## Skipped ({len(result.skipped)})", ""]
        out += [f"- `{item.folder}`: {item.reason}" for item in result.skipped]
    return "\n".join(out).rstrip() + "\n"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], first: int) -> list[str]:
    """Rows of a Markdown table; columns from ``first`` on are aligned right."""
    rule = ["---" if index < first else "---:" for index in range(len(header))]
    return ["| " + " | ".join(_cell(c) for c in line) + " |" for line in [header, rule, *lines]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _tests(contrasts: Sequence[Contrast]) -> list[str]:
    made = sorted((c for c in contrasts if c.made), key=lambda c: c.p_holm)
    refused = list(dict.fromkeys(f"{c.first} / {c.second} ({c.level}): {c.refused}" for c in contrasts if c.refused))
    if not made and not refused:
        return []
    out = ["## Tests", ""]
    if made:
        out += [f"p corrected by Holm for all {len(made)} p values. Difference: first minus second.", ""]
        header = ["test", "where", "metric", "first", "second", "difference (95 %)", "p", "p corrected"]
        lines = [
            [
                c.kind + (f" ({c.verdict})" if c.verdict else ""),
                endpoint_name(c.level, c.label),
                metric_name(c.metric),
                c.first,
                c.second,
                difference_text(c),
                p_text(c.p),
                p_text(c.p_holm),
            ]
            for c in made[:_TESTS]
        ]
        out += _table(header, lines, 5)
        out += ["", *([f"{len(made) - _TESTS} more are in tests.csv.", ""] if len(made) > _TESTS else [])]
        out += [f"- {kind}: {KINDS[kind]}" for kind in dict.fromkeys(c.kind for c in made)] + [""]
    if refused:
        out += ["### Refused", "", *(f"- {text}" for text in refused[:_TESTS])]
        out += [f"- and {len(refused) - _TESTS} more, in tests.csv"] if len(refused) > _TESTS else []
        out += [""]
    return out


def _published(result: Comparison) -> list[str]:
    if not result.published:
        return []
    out = ["## Published figures", ""]
    lines = []
    for item in result.published:
        figure, row, test = item["figure"], item["row"], item["contrast"]
        theirs = span(figure.value, figure.interval.low, figure.interval.high, figure.metric)
        theirs += f" [{figure.x}/{figure.n}]" if figure.x is not None else ""
        ours = span(
            row[figure.metric],
            row.get(f"{figure.metric}_low", float("nan")),
            row.get(f"{figure.metric}_high", float("nan")),
            figure.metric,
        )
        p = p_text(test.p_holm) if test.made else test.refused
        lines.append([figure.study, metric_name(figure.metric), theirs, row["group"], ours, difference_text(test), p])
    header = ["study", "metric", "published", "group", "ours", "ours minus theirs", "p corrected"]
    out += [*_table(header, lines, 6), ""]
    out += [f"- {s.title}: {s.citation}" + (f" ({s.note})" if s.note else "") for s in result.studies if s.citation]
    return [*out, ""]


def _audits(material: Material) -> list[str]:
    audits = material.audits
    if not audits.told:
        return ["## Audits", "", f"None of the {audits.runs} runs holds audits.", ""]
    out = ["## Audits", "", f"From {audits.told} of {audits.runs} runs.", ""]
    out += [f"- {text} ({runs} runs)" for text, runs in audits.verdicts]
    told = [f"{name} {n}" for name, n in audits.duplicates.items() if n is not None]
    return [*out, *([f"- duplicates: {', '.join(told)}"] if told else []), ""]
