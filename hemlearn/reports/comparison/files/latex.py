"""A comparison as LaTeX tables that need the package booktabs and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hemlearn.reports.comparison.paired import endpoints, primary
from hemlearn.reports.comparison.text import difference_text, endpoint_name, metric_name, p_text

if TYPE_CHECKING:
    from hemlearn.reports.comparison.result import Comparison

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
