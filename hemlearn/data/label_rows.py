"""Tables of labels by an id: the column of ids, each id once, labels of 0, 1 and nothing, and whose id is whose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn.data.ids import plain_id
from hemlearn.data.readers import reader_for
from hemlearn.data.readers.dicom_file import open_dicom
from hemlearn.data.rows import UNKNOWN, unknown_values
from hemlearn.util.errors import DataError, HemlearnError, count
from hemlearn.util.tables import refuse_rows, row_number

_SCIENTIFIC = r"\d(?:[.,]\d+)?[eE]\+\d\d+"
ACCESSION, ACCESSION_TAG = "accession_number", "AccessionNumber (0008,0050)"
# Whom the rows of a table may be about, the finest first -> how it may call its column of ids (:func:`plain_name`).
SPELLINGS = {
    "slice_id": ("sliceid", "slice"),
    "path": ("path", "file", "filename", "image", "id"),
    "series_id": ("seriesinstanceuid", "seriesuid", "seriesid", "series"),
    "study_id": ("studyinstanceuid", "studyuid", "studyid", "study"),
    ACCESSION: ("accessionnumber", "accession", "accessionno"),
    "patient_id": ("patientid", "patient", "patid"),
}
FLAGS = ("0", "1", "0.0", "1.0", *UNKNOWN)  # what a column of labels holds


def plain_name(name: object) -> str:
    """The name of a column without case, blanks and signs.

    >>> plain_name("Patient ID"), plain_name("patient_id")
    ('patientid', 'patientid')
    """
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())


def column_of(table: pd.DataFrame, file: Path, spellings: Iterable[str], what: str) -> str | None:
    """The column whose :func:`plain_name` is the first of some spellings that a table has; None: it has none.

    Raises:
        DataError: Two columns are called so.
    """
    for spelling in spellings:
        fit = [str(name) for name in table if plain_name(name) == spelling]
        if len(fit) > 1:
            raise DataError(f"{file}: columns {' and '.join(map(repr, fit))} both name {what}", remedy="remove one")
        if fit:
            return fit[0]
    return None


def flag_columns(table: pd.DataFrame) -> list[str]:
    """Columns that hold nothing but 0, 1 and unknown."""
    return [str(name) for name in table if table[name].str.lower().isin(FLAGS).all()]


def label_rows(table: pd.DataFrame, column: str, labels: Sequence[str], file: Path) -> pd.DataFrame:
    """Labels (0, 1, NaN) indexed by id, in the order of the file.

    Args:
        table: As :func:`hemlearn.util.tables.read_table` gives it.
        column: Its column of ids.
        labels: Its columns of labels.
        file: Where it comes from, for messages.

    Raises:
        DataError: An empty id, a number that has lost digits, an id in two rows, or a label that is none; with the row.
    """
    ids = table[column]
    refuse_rows(unknown_values(ids), file, lambda _: f"{column} is empty", "name whom the row is about")
    refuse_rows(
        ids.str.fullmatch(_SCIENTIFIC),
        file,
        lambda row: f"{column}={ids.iloc[row]!r} is a number that a spreadsheet has shortened",
        "format the column as text and write the ids again",
    )
    known = pd.DataFrame({name: _flags(table, name, file) for name in labels})
    _refuse_twice(table, column, known, file)
    return known.set_index(pd.Index(ids, dtype=object))


def _flags(table: pd.DataFrame, name: str, file: Path) -> pd.Series[float]:
    given = table[name]
    number = pd.to_numeric(given.where(~unknown_values(given)), errors="coerce").astype(float)
    wrong = ~unknown_values(given) & ~number.isin((0.0, 1.0))
    such = f" ({count(int(wrong.sum()), 'such row')})" if wrong.sum() > 1 else ""
    text = "labels are 0, 1 or empty (unknown)"
    refuse_rows(wrong, file, lambda row: f"{name}={given.iloc[row]!r}{such}", text)
    return number


def _refuse_twice(table: pd.DataFrame, column: str, known: pd.DataFrame, file: Path) -> None:
    """Refuse an id that stands in two rows, with both rows and, where they contradict each other, in which label."""
    again = table[column].duplicated()
    if not again.any():
        return

    def problem(row: int) -> str:
        first = int((table[column] == table[column].iloc[row]).to_numpy().argmax())
        differ = [name for name in known if not known[name].iloc[[first, row]].duplicated().iloc[1]]
        told = f"{column}={table[column].iloc[row]!r} stands in row {row_number(file, first)} too"
        if not differ:
            return f"{told}, with the same labels ({count(int(again.sum()), 'such row')})"
        name = differ[0]
        return f"{told} and contradicts it: {name}={table[name].iloc[first]!r} there, {table[name].iloc[row]!r} here"

    contrary = again & known.groupby(table[column]).transform("nunique", dropna=False).gt(1).any(axis=1)
    refuse_rows(contrary if contrary.any() else again, file, problem, "give every id one row")


def placed(rows: Iterable[str], ids: pd.Series[Any]) -> tuple[pd.Series[Any], list[tuple[str, str]]]:
    """Of each case the id that its row has in the table (NaN: it has none), and the :func:`owners` that are alike.

    Args:
        rows: Ids of the table.
        ids: Of each case; "": it has none.
    """
    owner, alike = owners(list(rows), list(dict.fromkeys(name for name in ids if name)))
    return ids.map(owner), alike


def unplaced(file: Path, rows: Iterable[str], place: pd.Series[Any], why: str) -> list[tuple[str, str]]:
    """(item, reason) of rows that no case has; ``why`` is said before the id."""
    used = set(place.dropna())
    return [
        (f"{file.name}, row {row_number(file, row)}", f"{why} {name!r}")
        for row, name in enumerate(rows)
        if name not in used
    ]


def element_of(path: Path, keyword: str) -> str:
    """What a DICOM file says of itself under a keyword; "" where it says nothing, or is none."""
    try:
        if reader_for(path).name != "dicom":
            return ""
        return str(open_dicom(path, pixels=False, tags=(keyword,)).get(keyword, "") or "").strip()
    except HemlearnError:  # it is told where the series is read
        return ""


def owners(rows: Sequence[str], ids: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Id in the files -> id in the table; and the pairs of them that differ in what spreadsheets change.

    >>> owners(["7", "A1", "b"], ["007", "A1", "c"])
    ({'A1': 'A1', '007': '7'}, [('007', '7')])
    """
    known = set(rows)
    found = {name: name for name in ids if name in known}
    left, asked = _by_plain(rows, found), _by_plain(ids, found)
    alike = [
        (theirs[0], left[plain][0])
        for plain, theirs in asked.items()
        if len(theirs) == 1 and len(left.get(plain, ())) == 1
    ]
    return found | dict(alike), alike


def _by_plain(names: Sequence[str], found: Mapping[str, str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name in names:
        if name not in found:
            out.setdefault(plain_id(name), []).append(name)
    return out


def alike_note(file: Path, what: str, alike: Sequence[tuple[str, str]], rows: Iterable[str]) -> list[str]:
    """Notes on ids that were matched without what spreadsheets change, and on rows that are too alike for that.

    >>> alike_note(Path("a.csv"), "PatientID", [], ["7", "007", "8"])
    ["a.csv: ids that differ in leading zeros, case and '.0' alone are matched only as they are: '7' and '007'"]
    """
    twins = [names for names in _by_plain(list(rows), {}).values() if len(names) > 1]
    told = "; ".join(" and ".join(map(repr, names)) for names in twins[:3]) + ("; ..." if len(twins) > 3 else "")
    doubt = [f"{file.name}: ids that differ in leading zeros, case and '.0' alone are matched only as they are: {told}"]
    return _matched_note(file, what, alike) + (doubt if twins else [])


def _matched_note(file: Path, what: str, alike: Sequence[tuple[str, str]]) -> list[str]:
    if not alike:
        return []
    told = "; ".join(f"{theirs!r} in the files, {ours!r} in the table" for theirs, ours in alike[:3])
    are = count(len(alike), f"{what} is", f"{what}s are")
    return [f"{file.name}: {are} matched without leading zeros, case and '.0': {told}"]


def some_ids(ids: Iterable[str]) -> str:
    """The first of some ids, for a message."""
    names = list(ids)
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
