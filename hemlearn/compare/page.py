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
from hemlearn.compare.curves import curves_at, drawn, metric_of, panel_of, with_bands
from hemlearn.compare.paired import best
from hemlearn.compare.pooling import ANY, NULLS
from hemlearn.compare.sections import (
    Keys,
    audit_section,
    confusion_section,
    cost_section,
    failure_section,
    labels_section,
    leak_section,
    published_section,
    table,
    tests_section,
)
from hemlearn.reports.figures import COLOURS, Curve, pr_figure, reliability_figure, roc_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from hemlearn.compare.notes import Audits
    from hemlearn.compare.result import Comparison


# --- Style of the comparison's page: laptop, phone and paper.


STYLE = """
:root { --ink: #1a1f24; --soft: #59636e; --line: #d5dae0; --pale: #f4f6f8; --mark: #0b5cad; --bad: #a3281b;
  --good: #12653a; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 76rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.2; margin: 0 0 .8rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .7rem; border-top: 1px solid var(--line); }
h3 { font-size: .98rem; margin: 1.2rem 0 .4rem; }
p, ul { margin: .4rem 0 .7rem; max-width: 62rem; }
ul { padding-left: 1.2rem; }
a { color: var(--mark); }
.small, figcaption { font-size: .84rem; color: var(--soft); }
nav { font-size: .88rem; margin: .9rem 0 0; line-height: 1.9; }
nav a { margin-right: .9rem; white-space: nowrap; }
.headline { border: 1px solid var(--line); border-left: 5px solid var(--mark); background: var(--pale);
  padding: .7rem 1rem .3rem; border-radius: 4px; }
.headline dt { font-weight: 650; }
.headline dd { margin: 0 0 .6rem; overflow-wrap: anywhere; }
.warning { border: 1px solid var(--bad); color: var(--bad); background: #fdf3f1; padding: .5rem .8rem;
  border-radius: 4px; font-weight: 600; margin: 0 0 .8rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: .4rem 0 .8rem; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .32rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
thead th { background: var(--pale); font-weight: 600; white-space: nowrap; vertical-align: bottom; }
tbody th { font-weight: 600; }
.n { text-align: right; white-space: nowrap; }
.setting { min-width: 5rem; max-width: 20rem; overflow-wrap: anywhere; }
.null td, .null th { color: var(--soft); font-style: italic; }
.yes { background: #e7f2ea; color: var(--good); font-weight: 600; }
.no { color: var(--soft); }
.self { background: var(--pale); }
.name { display: inline-block; margin-right: .9rem; max-width: 100%; overflow-wrap: anywhere; }
td .named { display: block; min-width: 9.5rem; max-width: 26rem; }
.how { display: block; min-width: 11rem; }
.line { white-space: nowrap; }
td .small { font-size: .92em; }
.key { display: inline-block; min-width: 1.45em; padding: 0 .3em; border-radius: 3px; color: #fff; background: #6a737d;
  font-weight: 650; text-align: center; font-size: .82em; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .8rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 4px; padding: .5rem; break-inside: avoid; }
figure img { width: 100%; height: auto; display: block; }
.confusions { display: flex; flex-wrap: wrap; gap: .8rem; }
.confusions > div { border: 1px solid var(--line); border-radius: 4px; padding: .5rem .6rem; max-width: 100%;
  overflow-x: auto; }
.confusions table { width: auto; }
.confusions h3 { margin: 0 0 .3rem; font-size: .84rem; max-width: 22rem; overflow-wrap: anywhere; }
details > summary { cursor: pointer; color: var(--mark); margin: .3rem 0; }
code { font-size: .92em; overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .6rem; }
@media (max-width: 40rem) {
  body { padding: .8rem .7rem 2rem; font-size: 14.5px; }
  h1 { font-size: 1.3rem; }
  .setting { max-width: 11rem; }
  th, td { padding: .3rem .45rem; }
}
@page { size: A4 landscape; margin: 11mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  h2 { break-after: avoid; margin-top: 1.2rem; }
  h3 { break-after: avoid; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7.4pt; }
  th, td { padding: .12rem .3rem; }
  thead { display: table-header-group; }
  thead th, .n { white-space: normal; }
  tr, figure, .confusions > div, .headline { break-inside: avoid; }
  .figures { grid-template-columns: repeat(3, 1fr); }
  .setting { max-width: 12rem; min-width: 0; }
  td .named, .how { min-width: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


# Nothing may be fetched, whatever a name of a run or patient contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass
class Material:
    """What the files share and is computed once.

    Attributes:
        curves: Panels of the best groups at their first level, with bands.
        audits: Of the runs.
        costs: See :func:`hemlearn.compare.notes.cost_table`.
        failures: See :func:`hemlearn.compare.notes.failure_table`.
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
