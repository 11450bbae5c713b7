"""The comparison as one HTML page that needs nothing outside itself: no script, no font, no picture, no request."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import matplotlib as mpl

from hemlearn import __version__
from hemlearn.reports.comparison.files.overlays import curves_at, drawn, metric_of, panel_of, with_bands
from hemlearn.reports.comparison.files.page_parts import Keys, table
from hemlearn.reports.comparison.files.page_style import STYLE
from hemlearn.reports.comparison.files.page_tables import (
    audit_section,
    confusion_section,
    cost_section,
    failure_section,
    labels_section,
)
from hemlearn.reports.comparison.files.page_tests import leak_section, published_section, tests_section
from hemlearn.reports.comparison.paired import best
from hemlearn.reports.comparison.pooling import NULLS
from hemlearn.reports.comparison.rows import ANY
from hemlearn.reports.figures import COLOURS, Curve, pr_figure, reliability_figure, roc_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from hemlearn.reports.comparison.result import Comparison
    from hemlearn.reports.comparison.shortcuts import Audits

# Nothing may be fetched, whatever a name of a run or patient contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass
class Material:
    """What the files share and is computed once.

    Attributes:
        curves: Panels of the best groups at their first level, with bands.
        audits: Of the runs.
        costs: See :func:`hemlearn.reports.comparison.cost.cost_table`.
        failures: See :func:`hemlearn.reports.comparison.failures.failure_table`.
    """

    curves: dict[str, list[Curve]]
    audits: Audits
    costs: pd.DataFrame
    failures: pd.DataFrame


def page(result: Comparison, material: Material) -> str:
    """The whole page."""
    shown = drawn(result.entries)
    colours = {entry.name: COLOURS[i % len(COLOURS)] for i, entry in enumerate(shown)}
    keys = Keys({entry.name: (_letter(i), colours.get(entry.name)) for i, entry in enumerate(result.entries)})
    sections = [
        ("results", "Results", _results(result, keys)),
        ("tests", "Which groups differ", tests_section(result, keys)),
        ("leak", "What the leak pretends", leak_section(result, keys)),
        ("published", "Beside published figures", published_section(result, keys)),
        ("curves", "Curves", _curves(result, material, keys)),
        ("labels", "Each label", labels_section(result, keys)),
        ("confusion", "Confusion", confusion_section(result, keys)),
        ("audits", "Shortcuts and audits", audit_section(result, material.audits, keys)),
        ("failures", "Where to look", failure_section(result, material.failures, keys)),
        ("cost", "Cost", cost_section(material.costs, keys)),
        ("notes", "How to read this", _notes(result)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{escape(title)}</a> ' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{escape(title)}</h2>{text}</section>\n' for name, title, text in sections)
    title = "Comparison: " + (", ".join(key.removesuffix(".name") for key in result.keys) or "one group")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{_headline(result)}\n<nav>{links}</nav>\n{body}"
        f'<footer class="small">hemlearn {escape(__version__)} compare. Research software, not a medical device.'
        "</footer>\n"
        "</body>\n</html>\n"
    )


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"G{index + 1}"


def _headline(result: Comparison) -> str:
    head = result.headline
    warnings = "".join(f'<p class="warning">{escape(text[0].upper() + text[1:])}.</p>' for text in head.warnings)
    asked = (
        ("What was compared?", head.compared),
        ("Is one really better?", head.better),
        ("Could a shortcut explain it?", head.shortcut),
    )
    items = "".join(f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>" for question, answer in asked)
    return f'{warnings}<dl class="headline">{items}</dl>'


def _results(result: Comparison, keys: Keys) -> str:
    out = [
        '<p class="small">Test cases, folds and seeds pooled; 95 % intervals in parentheses. Accuracy, sensitivity '
        "and specificity in percent, at each run's own threshold.</p>"
    ]
    for title, header, lines in result.tables():
        rows = result.rows(title or None).to_dict("records")
        first = header.index("runs")
        if len(lines) > len(result.entries) * 4:  # thousands of rows do not belong on a page
            names = {entry.name for entry in result.entries}
            kept = [i for i, row in enumerate(rows) if row["group"] in names or row["source"] in NULLS]
            lines, rows = [lines[i] for i in kept], [rows[i] for i in kept]
        marked = [[keys.chip(r["group"]), *map(escape, line)] for r, line in zip(rows, lines, strict=True)]
        classes = ["null" if row["source"] in NULLS else "" for row in rows]
        out += [f"<h3>{escape(title)}</h3>"] if title else []
        out.append(table(["", *header], marked, first + 1, classes))
    return "".join(out)


def _curves(result: Comparison, material: Material, keys: Keys) -> str:
    """Curves on patients where they are judged, then at the first level; of several labels all but ``any`` folded."""
    shown = drawn(result.entries)
    first = next(iter(shown[0].cases))
    chosen = {best(shown).name, *([result.baseline.name] if result.baseline else [])}
    levels: list[tuple[str, dict[str, list[Curve]], str | None]] = []
    if first != "patient" and any("patient" in entry.cases for entry in shown):
        levels.append(("patient", with_bands(panel_of(curves_at(shown, "patient")), sorted(chosen)), "patient"))
    levels.append((first, material.curves, None))
    told = (
        "Shaded: pointwise 95 % band from resampling patients. Dots: calls of all runs, each at its own threshold. "
        "Calibration: observed frequency in ten bins of equal mass, with intervals clustered by patient."
    )
    out = [f'<p class="small">{told}</p>{keys.legend(entry.name for entry in shown)}']
    if len(shown) < len(result.entries):
        out.append(f'<p class="small">{len(shown)} of {result.groups} groups, those of highest AUROC.</p>')
    for level, panels, at in levels:
        many = {"slice": "Slices", "series": "Series", "patient": "Patients"}[level]
        pictures = _pictures(result, panels, at, many.lower(), keys)
        main = list(panel_of(panels)) if ANY in panels else list(panels)[:1]
        folded = [name for name in panels if name not in main]
        out.append(f'<h3>{many}</h3><div class="figures">{"".join(pictures[name] for name in main)}</div>')
        if folded:
            inside = "".join(pictures[name] for name in folded)
            out.append(
                f'<details><summary>{len(folded)} more labels</summary><div class="figures">{inside}</div></details>'
            )
    return "".join(out)


def _pictures(
    result: Comparison, panels: dict[str, list[Curve]], at: str | None, many: str, keys: Keys
) -> dict[str, str]:
    """Label -> its ROC, precision-recall and calibration figures."""
    named = {label: [_short(curve, keys) for curve in curves] for label, curves in panels.items()}
    ap, ece = (
        {label: [_short(curve, keys) for curve in curves] for label, curves in found.items()}
        for found in (metric_of(panels, result.entries, metric, at) for metric in ("ap", "ece"))
    )
    return {
        label: _picture(roc_figure({label: named[label]}), f"ROC curves, {many}, {label}")
        + _picture(pr_figure({label: ap[label]}), f"Precision-recall curves, {many}, {label}")
        + _picture(reliability_figure({label: ece[label]}), f"Calibration, {many}, {label}")
        for label in named
    }


def _short(curve: Curve, keys: Keys) -> Curve:
    """The curve under its group's letter, since the page tells the settings beside it."""
    return dataclasses.replace(curve, name=keys.letter(curve.name))


def _picture(figure: Figure, caption: str) -> str:
    """A figure as an SVG inside the page; glyphs are paths, so that no font is needed."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "hemlearn"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = base64.b64encode(file.getvalue()).decode()
    alt = escape(caption, quote=True)
    picture = f'<img alt="{alt}" src="data:image/svg+xml;base64,{text}">'
    return f"<figure>{picture}<figcaption>{alt}</figcaption></figure>"


def _notes(result: Comparison) -> str:
    out = [_items(result.notes)]
    methods = [
        "AUROCs on the same cases: DeLong, or Obuchowski's clustered test where patients have several cases. "
        "Accuracies: McNemar, likewise. Groups tested on other patients are never paired.",
        "p corrected: Holm, over every p value on this page and in tests.csv together.",
        "Test results speak of other patients like these; the trained models are taken as they are. Comparisons over "
        "folds and seeds speak of training again, and say so.",
        "An undefined figure (a class without a case) is left undefined, never counted as 0.",
    ]
    out.append(_items(methods))
    if result.skipped:
        shown = [f"{item.folder}: {item.reason}" for item in result.skipped[:200]]
        more = len(result.skipped) - len(shown)
        items = _items([*shown, *([f"and {more} more, in compare.md"] if more else [])])
        out.append(f"<h3>Skipped run folders ({len(result.skipped)})</h3>{items}")
    return "".join(out)


def _items(texts: Iterable[str]) -> str:
    listed: Sequence[str] = [f"<li>{escape(text)}</li>" for text in texts]
    return f"<ul>{''.join(listed)}</ul>" if listed else ""
