"""The tables of a comparison as they are printed: for a terminal, as wide as it is, and as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hemlearn.compare.cases import BASELINES
from hemlearn.compare.groups import Sheet, letter
from hemlearn.util.errors import count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hemlearn.compare.comparison import Comparison

_SHOWN = 50  # rows printed; the files hold all
_LETTER = "group"  # title of the column of letters, where a terminal is too narrow for the settings
_FOLDED = 12  # columns of a terminal that a setting has at least, where it needs them


def rich_tables(result: Comparison, console: Console) -> list[Table]:
    """The tables for a terminal; where it is too narrow for all figures, those of AUROC come first."""
    return [_rich_table(result, sheet, console) for sheet in result.sheets()]


def _rich_table(result: Comparison, sheet: Sheet, console: Console) -> Table:
    """In full; else with letters for the groups, listed below; else also without the last figures."""
    from rich.measure import Measurement

    title = "\n".join(filter(None, (_title(result), sheet.title)))
    more = _shown(sheet)[1]
    left: list[str] = []
    legend: list[str] = []
    shown, told = sheet, more or ""
    while True:
        table = _table_of(shown, _shown(shown)[0], title, told)
        width = Measurement.get(console, console.options.update(width=10_000), table).minimum
        if width <= console.width or len(shown.header) == shown.first + 1:
            return table
        if shown.header[0] != _LETTER:
            shown, legend = _lettered(result, sheet)
        else:
            left.append(shown.header[-1])
            shown = shown._replace(header=shown.header[:-1], lines=[line[:-1] for line in shown.lines])
        dropped = f"too narrow for {', '.join(reversed(left))}: see compare.csv" if left else ""
        told = "\n".join(filter(None, (more, dropped, *legend)))


def _lettered(result: Comparison, sheet: Sheet) -> tuple[Sheet, list[str]]:
    """A table with a letter in the place of each group's settings, and what the letters mean."""
    place = {name: i for i, name in enumerate(result.order)}
    begin = sheet.header.index("level") if "level" in sheet.header else sheet.first
    kept = [i for i in range(begin, len(sheet.header)) if sheet.header[i] != "runs"]
    lines: list[list[str]] = []
    legend: dict[str, str] = {}
    for line, row in zip(sheet.lines, sheet.rows, strict=True):
        mark = row["source"] if row["source"] in BASELINES else letter(place[row["group"]])
        if row["source"] not in BASELINES:
            legend[mark] = f"{mark}: {row['group']}"
        lines.append([mark, *(line[i] for i in kept)])
    header = [_LETTER, *(sheet.header[i] for i in kept)]
    first = 1 + sum(i < sheet.first for i in kept)
    return sheet._replace(header=header, lines=lines, first=first), list(legend.values())


def _table_of(sheet: Sheet, lines: list[list[str]], title: str, caption: str) -> Table:
    """A table for a terminal."""
    from rich.table import Table

    table = Table(title=title, caption=caption or None, caption_justify="left")
    for index, name in enumerate(sheet.header):
        # Settings are folded, never cut: two long values may differ at their end only. Figures stay whole.
        figures = index >= sheet.first
        longest = max(len(cell) for cell in [name, *(line[index] for line in lines)])
        justify: Any = "right" if figures else "left"
        least = None if figures else min(longest, _FOLDED)
        table.add_column(name, justify=justify, no_wrap=figures, overflow="fold", min_width=least)
    for line in lines:
        table.add_row(*(cell.replace(" (", "\n(") if i >= sheet.first else cell for i, cell in enumerate(line)))
    return table


def plain_text(result: Comparison) -> str:
    """The tables in aligned columns of plain text."""
    out = [_title(result)]
    for sheet in result.sheets():
        lines, more = _shown(sheet)
        widths = [max(map(len, column)) for column in zip(sheet.header, *lines, strict=True)]
        out += ["", sheet.title] if sheet.title else []
        for line in [sheet.header, ["-" * width for width in widths], *lines]:
            left = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)][: sheet.first]
            right = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)][sheet.first :]
            out.append("  ".join(left + right).rstrip())
        out += [more] if more else []
    return "\n".join(out)


def _shown(sheet: Sheet) -> tuple[list[list[str]], str | None]:
    """What is printed of a table: beyond 50 rows the best by AUROC, with a line that says so."""
    lines = sheet.lines
    if len(lines) <= _SHOWN:
        return lines, None
    areas = [row["auroc"] if row["auroc"] == row["auroc"] else -1.0 for row in sheet.rows]
    order = sorted(range(len(lines)), key=lambda i: -areas[i])[:_SHOWN]
    return [lines[i] for i in order], f"the {_SHOWN} rows of highest AUROC; {len(lines)} are in compare.csv"


def _title(result: Comparison) -> str:
    return f"test, {count(result.runs, 'run')} in {count(result.groups, 'group')}, 95 % intervals"
