"""Pieces of the comparison's page. Every text of a run is escaped where it enters a tag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

LISTED = 80  # rows of one table on the page; the CSV files have all


@dataclass
class Keys:
    """Letters and colours of the groups.

    Attributes:
        known: Name -> letter and colour (None where the group is in no figure).
    """

    known: Mapping[str, tuple[str, str | None]]

    def letter(self, name: str) -> str:
        """The letter of a group; other names as they are."""
        return self.known[name][0] if name in self.known else name

    def chip(self, name: str) -> str:
        """The letter on its colour, as HTML; empty for what is no group."""
        if name not in self.known:
            return ""
        letter, colour = self.known[name]
        style = f' style="background:{colour}"' if colour else ""
        return f'<span class="key"{style} title="{escape(name, quote=True)}">{escape(letter)}</span>'

    def named(self, name: str) -> str:
        """Letter and name, as HTML."""
        return f'<span class="named">{self.chip(name)} {escape(name)}</span>'

    def legend(self, names: Iterable[str]) -> str:
        """Which letter is which group."""
        return (
            '<p class="small">' + " ".join(f'<span class="name">{self.named(name)}</span>' for name in names) + "</p>"
        )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], first: int, classes: Sequence[str] = ()) -> str:
    """A table that scrolls inside its own box. Cells are HTML already; the header is text.

    Args:
        header: Column titles.
        rows: Cells.
        first: Columns from here on hold figures.
        classes: Of the rows.
    """
    head = "".join(f"<th{_class('n') if i >= first else ''}>{escape(name)}</th>" for i, name in enumerate(header))
    lines = []
    for index, row in enumerate(rows):
        kinds = ["n" if i >= first else "setting" if i else "" for i in range(len(row))]
        cells = "".join(f"<td{_class(kind)}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr{_class(classes[index] if classes else '')}>{cells}</tr>")
    body = "".join(lines)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
