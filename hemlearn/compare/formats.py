"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hemlearn.compare.contrasts import KINDS, Contrast
from hemlearn.compare.paired import endpoints, primary

if TYPE_CHECKING:
    from hemlearn.compare.page import Material
    from hemlearn.compare.result import Comparison


# --- How figures, intervals and p values read in every file and on the page.


PERCENT = ("accuracy", "sensitivity", "specificity")
UNDEFINED = "undefined"
NAMES = {
    "auroc": "AUROC",
    "ap": "average precision",
    "ece": "ECE",
    "brier": "Brier score",
    "log_loss": "log loss",
    "weighted_log_loss": "weighted log loss",
    "f1": "F1",
}


def interval_text(row: Mapping[Any, Any], metric: str) -> str:
    """``0.953 (0.921-0.976)``, rates in percent, ``undefined`` where a metric has no value."""
    low, high = (row.get(f"{metric}_{side}", float("nan")) for side in ("low", "high"))
    return span(float(row[metric]), low, high, metric)


def span(value: float, low: float, high: float, metric: str) -> str:
    """A value with its interval, in the unit of its metric."""
    if value != value:
        return UNDEFINED
    scale, digits = (100, 1) if metric in PERCENT else (1, 3)
    bounds = f" ({low * scale:.{digits}f}-{high * scale:.{digits}f})" if low == low else ""
    return f"{value * scale:.{digits}f}{bounds}"


def p_text(p: float) -> str:
    """``0.032``, ``<0.001``, ``undefined``."""
    if p != p:
        return UNDEFINED
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference_text(contrast: Contrast, bounds: bool = True) -> str:
    """``+0.031 (-0.004 to +0.066)``; differences of rates in percentage points."""
    if contrast.difference != contrast.difference:
        return UNDEFINED
    scale, digits = (100, 1) if contrast.metric in PERCENT else (1, 3)
    text, low, high = (_signed(v * scale, digits) for v in (contrast.difference, contrast.low, contrast.high))
    return f"{text} ({low} to {high})" if bounds and contrast.low == contrast.low else text


def _signed(value: float, digits: int) -> str:
    """A number with its sign; 0 has none."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def metric_name(metric: str) -> str:
    """``AUROC`` for ``auroc``."""
    return NAMES.get(metric, metric)


def endpoint_name(level: str, label: str, several: bool = False) -> str:
    """``patients, any`` or ``slices, mean over labels``."""
    unit = {"slice": "slices", "series": "series", "patient": "patients"}.get(level, level)
    return unit + (f", {label}" if label else ", mean over labels" if several else "")


def count(number: float) -> str:
    """``3.45 M``, ``12.3 k`` or the number itself."""
    if number != number:
        return ""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def seconds(value: float) -> str:
    """``41 s``, ``12 min``, ``3.4 h``."""
    if value != value:
        return ""
    if value < 120:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


# --- A comparison as LaTeX tables that need the package booktabs and nothing else.


_ROWS = 40  # rows of one table: what a page holds
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "µ": r"$\mu$",
    "\n": " ",
    "\t": " ",
}


def escape(text: str) -> str:
    """Text as LaTeX prints it; what pdfLaTeX's fonts lack is written as its code point."""
    out = []
    for char in text:
        if char in _SPECIAL:
            out.append(_SPECIAL[char])
        elif char.isascii():
            out.append(char if char.isprintable() else "?")
        elif "À" <= char <= "ÿ":
            out.append(char)
        else:
            out.append(f"U+{ord(char):04X}")
    return "".join(out)


def latex(result: Comparison) -> str:
    r"""Tables to ``\input`` into a paper whose preamble has ``\usepackage{booktabs}``."""
    out = ["% Written by hemlearn compare. The preamble needs \\usepackage{booktabs}.", ""]
    for title, header, lines in result.tables():
        first = header.index("runs")
        caption = f"Test results of {result.runs} runs in {result.groups} groups, folds and seeds pooled"
        caption += f" ({title})" if title else ""
        out += _table(header, lines, first, f"{caption}; 95 % intervals in parentheses.")
    tests = sorted(
        (c for c in result.contrasts if c.made and _wanted(result, c.kind, c.level, c.label)), key=lambda c: c.p_holm
    )
    if tests:
        header = ["test", "where", "metric", "first", "second", "difference", "p", "corrected"]
        lines = [
            [
                c.kind,
                endpoint_name(c.level, c.label),
                metric_name(c.metric),
                c.first,
                c.second,
                difference_text(c),
                p_text(c.p),
                p_text(c.p_holm),
            ]
            for c in tests
        ]
        total = sum(c.made for c in result.contrasts)
        out += _table(
            header,
            lines,
            5,
            f"Comparisons: first minus second, with 95 % interval; p corrected by Holm for all {total} p values.",
        )
    return "\n".join(out) + "\n"


def _wanted(result: Comparison, kind: str, level: str, label: str) -> bool:
    """Tests a paper prints: those at the endpoint of the headline, and leaks and published figures wherever."""
    if kind in ("leak", "published"):
        return True
    main = primary(endpoints(result.entries))
    return (level, label) == (main.level, main.label)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], first: int, caption: str) -> list[str]:
    """One ``table`` environment, settings left and figures right, at most a page long."""
    if len(lines) > _ROWS:
        caption += f" The first {_ROWS} of {len(lines)} rows."
    columns = "l" * first + "r" * (len(header) - first)
    body = [" & ".join(escape(cell) for cell in line) + r" \\" for line in lines[:_ROWS]]
    return [
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escape, header)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]


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
        out += [*_markdown_table(header, lines, first), ""]
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
    out += ["## Cost", "", *_markdown_table(header, costs, 1), ""]
    if result.notes:
        out += ["## Notes", "", *(f"- {note}" for note in result.notes), ""]
    if result.skipped:
        out += [f"## Skipped ({len(result.skipped)})", ""]
        out += [f"- `{item.folder}`: {item.reason}" for item in result.skipped]
    return "\n".join(out).rstrip() + "\n"


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], first: int) -> list[str]:
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
        out += _markdown_table(header, lines, 5)
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
    out += [*_markdown_table(header, lines, 6), ""]
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
