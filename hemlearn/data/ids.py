"""Ids of patients that may be one person written in several ways, and words that name nobody."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hemlearn.util.errors import count

if TYPE_CHECKING:
    import pandas as pd

SAFE = (
    "safe to share: pages, predict.json, comparisons, explanations, exported models, model cards, trackers; not: "
    "tables of ids (CSV, Parquet), journals, stores, caches (`hemlearn doctor run=DIR share=true` looks into a folder)"
)

# What spreadsheets, databases and de-identification put in the place of an id.
NOBODY = ("n/a", "na", "nan", "none", "null", "<na>", "-", "?", "unknown", "anonymous", "anonymised", "anonymized")
_NUMBERED = re.compile(r"(\D*?)0*(\d+?)(\.0+)?")
# Letters of Greek and Cyrillic that look like Latin ones, in capitals at least.
_ALIKE = str.maketrans("αβεικνορτυχавекмнорстух", "abeikvoptyxabekmhopctyx")
_SHOWN = 5


def plain_id(text: str) -> str:
    """An id without what programs change when they rewrite it, and what nobody sees.

    That is case, leading zeros, ``.0``, blanks, the Unicode form, characters without a shape and letters of another
    alphabet. Only the zeros of a number at the end count: those within a longer code tell patients apart.

    Example:
        >>> [plain_id(text) for text in ("7", "007", "7.0", "PAT_07 ", "pat_7", "ID_0a1")]
        ['7', '7', '7', 'pat_7', 'pat_7', 'id_0a1']
    """
    shaped = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    folded = "".join(unicodedata.normalize("NFKC", shaped).split()).casefold().translate(_ALIKE)
    found = _NUMBERED.fullmatch(folded)
    return f"{found[1]}{found[2]}" if found else folded


def id_notes(ids: Iterable[str], what: str = "patient") -> list[str]:
    """Notes on ids that are told apart and may be one, and on words that name nobody.

    Args:
        ids: As they stand in the data.
        what: Whose ids they are.
    """
    groups: dict[str, list[str]] = {}
    given = list(dict.fromkeys(map(str, ids)))
    for item in given:
        groups.setdefault(plain_id(item), []).append(item)
    alike = [group for group in groups.values() if len(group) > 1]
    notes = []
    if alike:
        named = "; ".join(" and ".join(map(ascii, group)) for group in alike[:_SHOWN])
        more = f"; and {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else ""
        notes.append(
            f"{count(len(alike), f'group of {what} ids differs', f'groups of {what} ids differ')} in zeros, case, "
            f"'.0', blanks, look-alike or invisible letters alone: {named}{more}; each counts as one {what}: if "
            "they are one person, write them alike, or training and test share a person"
        )
    if nobody := [item for item in given if item.strip().casefold() in NOBODY]:
        notes.append(
            f"{what} ids that name nobody: {', '.join(map(repr, nobody))}: each is taken for one {what}; give the real "
            "ones, or several people count as one"
        )
    if formulas := [item for item in given if item.startswith(("=", "@"))]:
        notes.append(
            f"{what} ids that a spreadsheet takes for formulas: {', '.join(map(repr, formulas[:_SHOWN]))}: CSV "
            "files that are written have an apostrophe before them, which hemlearn takes away again; take it away too "
            "where you join such a table to your own, or give other ids"
        )
    return notes


def header_notes(headers: pd.DataFrame) -> list[str]:
    """A note on headers that tell who a person is: how many files, in which elements, never what they say.

    Args:
        headers: Columns path and personal (see :class:`hemlearn.data.readers.headers.Header`).
    """
    told = headers.loc[headers["personal"] != "", ["path", "personal"]].drop_duplicates("path")
    if told.empty:
        return []
    number: dict[str, int] = {}
    for names, files in told["personal"].value_counts().items():
        for name in str(names).split("/"):
            number[name] = number.get(name, 0) + int(files)
    listed = ", ".join(f"{name} ({files})" for name, files in sorted(number.items(), key=lambda item: -item[1]))
    files = f"{len(told)} of {count(headers['path'].nunique(), 'file')}"
    return [
        f"headers of {files} tell who people are: {listed}; hemlearn writes none of it. {SAFE[0].upper()}{SAFE[1:]}"
    ]
