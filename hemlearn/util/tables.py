"""CSV files and spreadsheets as they come, and checks that name their rows.

CSV: byte-order marks, semicolons, tabs, spaces in the header. Spreadsheets (``.xlsx``): what a cell holds, as text.
"""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn.util.errors import DataError, count, hint, printable

logger = logging.getLogger(__name__)
DELIMITERS = (",", ";", "\t")
# What a spreadsheet takes for a formula: text that begins with one of these signs and is no number. An apostrophe
# before it says that it is text; one that was there already gets another, so that reading gives back what was written.
_FORMULA = re.compile(r"'*[=+\-@\t\r].+", re.DOTALL)
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?")
_NUMBER = re.compile(r"[+-](?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def escaped(text: str) -> str:
    """The text of a CSV cell that no spreadsheet runs as a formula.

    >>> escaped("=HYPERLINK(0)"), escaped("-1.5"), escaped("-a"), escaped("a-b")
    ("'=HYPERLINK(0)", '-1.5', "'-a", 'a-b')
    """
    return f"'{text}" if _is_formula(text) else text


def unescaped(text: str) -> str:
    """The text of which :func:`escaped` made a cell."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    return bool(_FORMULA.fullmatch(text)) and not _NUMBER.fullmatch(text)


def csv_text(table: pd.DataFrame, *, decimals: str | None = None) -> str:
    """A table as CSV, its texts :func:`escaped`; lines end with a line feed.

    Args:
        table: The table; its index is left out.
        decimals: Format of numbers with a fraction, such as ``%.9g``; None: all digits.
    """
    out = table.rename(columns=lambda name: escaped(str(name)))
    for name in out.columns:
        if not pd.api.types.is_numeric_dtype(out[name]):
            out[name] = [escaped(item) if isinstance(item, str) else item for item in out[name]]
    return str(out.to_csv(index=False, float_format=decimals, lineterminator="\n"))


def read_csv(path: str | PathLike[str]) -> pd.DataFrame:
    """Read a CSV file as text; nothing is guessed about the values.

    Fields are separated by commas, semicolons or tabs, whichever the header holds most of. A UTF-8 byte-order
    mark and spaces around header names and values are removed, and so is the apostrophe before a text that a
    spreadsheet would take for a formula. An empty field is an empty string.

    Args:
        path: The file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Returns:
        One column of strings per header name, in the order of the file.

    Raises:
        DataError: The file is missing, empty, not UTF-8, without rows, has a header name twice, or a row with
            more or fewer fields than the header.
    """
    path = Path(path)
    text = read_text(path)
    delimiter = _delimiter(path, text)
    try:
        # The header is read as a row, so that the number of columns is its own: pandas would otherwise take
        # the first fields of rows that are too long for an index.
        table = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            header=None,
            dtype=str,
            keep_default_na=False,
            na_values=[],
            skipinitialspace=True,
        )
    except pd.errors.ParserError as error:
        first = next(line for line in text.splitlines() if line.strip())
        raise DataError(
            f"{path}: a row does not fit the header {first[:80]!r} ({str(error).strip()})",
            remedy="begin with the names of the columns, give every row as many fields, quote those with the delimiter",
        ) from error
    given, table = [str(name).strip() for name in table.iloc[0]], table.iloc[1:].reset_index(drop=True)
    header = _names(path, given, table)
    if table.empty:
        raise DataError(f"{path}: a header but no rows", remedy="add at least one row below the header")
    if (table.iloc[:, -1] == "").any():  # else no row can be short: pandas fills those up with ""
        _refuse_short_rows(path, text, delimiter, len(given))
    return pd.DataFrame({unescaped(name): table[at].str.strip().map(unescaped) for at, name in header.items()})


# --- Spreadsheets: every cell as the text that a CSV file would have, or refused by its place.

SHEETS = (".xlsx", ".xlsm")
_CONTAINERS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")  # first bytes: zip (.xlsx, .ods); .xls
_DIGITS = 15  # of a number that a spreadsheet keeps; a longer id has lost its end


def read_table(path: str | PathLike[str], used: Callable[[str], bool] | None = None) -> pd.DataFrame:
    """A CSV file or the first sheet of a spreadsheet (``.xlsx``) as text: see :func:`read_csv`, whose rules hold.

    Args:
        path: The file.
        used: Whether a column of this name is used: no other one is refused for what a cell holds; None: all are.

    Raises:
        DataError: As :func:`read_csv`; of a spreadsheet also a damaged file, merged cells, an empty row among others,
            and a cell that holds an error, a date, a formula without a value, or a number of more than 15 digits.
    """
    path = Path(path)
    return _read_sheet(path, used) if path.suffix.lower() in SHEETS else read_csv(path)


def _read_sheet(path: Path, used: Callable[[str], bool] | None) -> pd.DataFrame:
    from openpyxl import load_workbook

    if not path.is_file():
        raise DataError(f"{path}: no such file", remedy="check the path")
    try:
        values, formulas = (load_workbook(path, data_only=only) for only in (True, False))
        sheet, told = values.worksheets[0], formulas.worksheets[0]
    except Exception as error:  # of a damaged file it raises whatever its parsers do
        raise DataError(
            f"{path}: no spreadsheet (.xlsx), or a damaged one: {str(error)[:200]}", remedy="save it again, or as CSV"
        ) from error
    others = [other.title for other in values.worksheets[1:] if other.max_row > 1]
    if others:
        logger.warning("%s: the sheet %r is read, not %s", path, sheet.title, ", ".join(map(repr, others)))
    if merged := sorted(map(str, sheet.merged_cells.ranges)):
        raise DataError(f"{path}, {sheet.title}: merged cells {merged[0]}", remedy="give each row a value of its own")
    rows: list[list[str]] = []
    for row, below in zip(sheet.iter_rows(), told.iter_rows(), strict=True):
        strict = [used is None or not rows or used(name) for name in (rows[0] if rows else row)]
        rows.append([_cell_text(path, *cell) for cell in zip(row, below, strict, strict=True)])
    while rows and not any(rows[-1]):
        rows.pop()
    if len(rows) < 2:
        what = "a header but no rows" if rows else "an empty sheet"
        raise DataError(f"{path}, {sheet.title}: {what}", remedy="add at least one row below the header")
    if empty := next((number for number, row in enumerate(rows, 1) if not any(row)), 0):
        raise DataError(
            f"{path}, {sheet.title}: row {empty} is empty", remedy="remove the row; the first one names columns"
        )
    table = pd.DataFrame(rows[1:], dtype=object)
    header = _names(path, rows[0], table)
    return table[list(header)].set_axis(list(header.values()), axis=1)


def _cell_text(path: Path, cell: Any, source: Any, strict: bool) -> str:
    """What a cell holds, as text.

    Args:
        path: The file, for messages.
        cell: The cell, with its value.
        source: The same cell, with its formula.
        strict: Whether it is refused if its text may not be what was meant; else it is that text.

    Raises:
        DataError: It is refused.
    """
    value, place = cell.value, f"{path}, cell {cell.coordinate}"
    if not strict and not isinstance(value, int | float):
        return "" if value is None else str(value).strip()
    if value is None and source.data_type == "f":
        raise DataError(
            f"{place}: a formula without a value", remedy="open the file, save it, or write the value itself"
        )
    if cell.data_type == "e":
        raise DataError(f"{place}: the error {value}", remedy="correct the cell, or leave it empty (unknown)")
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        if strict and abs(value) >= 10**_DIGITS:
            raise DataError(
                f"{place}: a number of more than {_DIGITS} digits, of which a spreadsheet keeps no more than these",
                remedy="format the column as text and write the id again",
            )
        return str(int(value)) if value == int(value) else repr(value)
    if not isinstance(value, str):
        raise DataError(
            f"{place}: {value} is a {type(value).__name__}", remedy="format the cell as text or as a number"
        )
    return value.strip()


def _names(path: Path, given: list[str], table: pd.DataFrame) -> dict[int, str]:
    """Place and name of columns, each name once; a column without a name and a value is none."""
    names = {
        place: name
        for place, name in enumerate(given)
        if name or table.iloc[:, place].map(lambda cell: str(cell).strip()).any()
    }
    header = list(names.values())
    if header.count("") > 1:
        places = ", ".join(str(place + 1) for place, name in names.items() if not name)
        raise DataError(f"{path}: columns {places} have no name", remedy="give every column its own name, or remove it")
    repeated = [name for name, number in Counter(header).items() if number > 1]
    if repeated:
        raise DataError(
            f"{path}: the header names {', '.join(map(repr, repeated))} more than once",
            remedy="give every column its own name",
        )
    if odd := [name for name in header if printable(name) != name]:
        raise DataError(f"{path}: the header name {odd[0]!r} holds a control character", remedy="rename the column")
    return names


def no_header(columns: Iterable[str]) -> str:
    """A half sentence where the first row of a table looks like data; "" where it may be a header.

    >>> no_header(["a.png", "P1", "0"])
    "; its first row holds '0', a number: a table begins with a row that names its columns"
    """
    found = next((name for name in columns if _PLAIN_NUMBER.fullmatch(str(name).strip())), "")
    return (
        f"; its first row holds {found!r}, a number: a table begins with a row that names its columns" if found else ""
    )


def _refuse_short_rows(path: Path, text: str, delimiter: str, width: int) -> None:
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        short = next((len(row) for row in lines if row and len(row) < width and any(map(str.strip, row))), None)
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: {error}", remedy="correct that line") from error
    if short is not None:
        raise DataError(
            f"{path}: line {lines.line_num} has {short} fields, the header {width}",
            remedy="give every row as many fields as the header",
        )


def read_text(path: Path) -> str:
    """The text of a table: UTF-8, or what its byte-order mark says.

    Raises:
        DataError: The file cannot be read, is empty, not UTF-8, or holds zero bytes.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror or error})"
        raise DataError(problem, remedy="check the path and its permissions") from error
    if not raw.strip():
        remedy = "export the table again, with a header line"
        raise DataError(f"{path}: an empty file ({len(raw)} bytes)", remedy=remedy)
    if raw.startswith(_CONTAINERS):
        remedy = "save it as .xlsx, with that ending, or as 'CSV UTF-8'"
        raise DataError(
            f"{path}: no CSV file; it looks like a spreadsheet (.xls, .ods, .xlsx) or an archive", remedy=remedy
        )
    try:
        text = raw.decode(encoding_of(raw))
    except UnicodeDecodeError as error:
        # A guessed code page would turn names into other names without a word, so it is refused.
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: not {error.encoding.upper()}: byte 0x{raw[error.start]:02x} at offset {error.start} "
            f"(line {line})",
            remedy="save it as UTF-8 (spreadsheets: 'CSV UTF-8'), or: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from error
    if not text.strip():
        raise DataError(f"{path}: no text in it", remedy="export the table again, with a header line")
    if "\0" in text:
        raise DataError(
            f"{path}: holds a zero byte at offset {raw.index(0)}; this is not a CSV file in UTF-8",
            remedy="save it as UTF-8 text (UTF-16 without its byte-order mark and spreadsheet files are not read)",
        )
    return text


def encoding_of(raw: bytes) -> str:
    """Encoding of a table by its byte-order mark: UTF-8, UTF-16 or UTF-32; UTF-8 without one."""
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # before UTF-16, whose mark begins alike
        return "utf-32"
    return "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def delimiter_of(header: str) -> str:
    """The delimiter that splits a header into most fields; quoted ones do not count."""
    return max(DELIMITERS, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


def _delimiter(path: Path, text: str) -> str:
    try:
        return delimiter_of(next(line for line in text.splitlines() if line.strip()))
    except csv.Error as error:
        raise DataError(
            f"{path}: not a table: {error} in its header", remedy="give a CSV file with a header"
        ) from error


def label_table(file: Path, columns: Iterable[str], *, layout: str, header: str) -> pd.DataFrame:
    """Read a table that must be there and have some columns.

    Args:
        file: The table.
        columns: Columns that are needed.
        layout: What to do where there is no such file.
        header: What to do where a column is missing.

    Raises:
        DataError: No such file, no such column (naming the nearest), or a table that cannot be read.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file", remedy=layout)
    table = read_csv(file)
    need_columns(table, columns, file, header)
    return table


def need_columns(table: pd.DataFrame, columns: Iterable[str], file: Path, remedy: str) -> None:
    """Refuse a table without one of some columns, with the nearest name that it has."""
    known = [str(name) for name in table.columns]
    for name in columns:
        if name not in table:
            found = f"(found: {', '.join(known)}){no_header(known)}"
            raise DataError(f"{file}: no column {name!r}{hint(name, known)} {found}", remedy=remedy)


def row_number(file: str | PathLike[str], position: int) -> int:
    """The number of a row as an editor shows it: the header is row 1, and empty lines count, which reading skips.

    Args:
        file: Where the rows come from: a CSV file, or a spreadsheet, which has no empty rows.
        position: Of the row among those that were read, from 0.
    """
    path = Path(file)
    text = path.is_file() and path.suffix.lower() not in SHEETS
    empty = _empty_lines(path, path.stat().st_mtime_ns) if text else []
    return position + 2 + bisect_right(empty, position + 1)


@lru_cache(maxsize=2)  # a message may name many rows
def _empty_lines(path: Path, _changed: int) -> list[int]:
    """Of each empty line of a CSV file how many others stand above it, the header among them."""
    above, found = 0, []
    try:
        text = read_text(path)
        for fields in csv.reader(io.StringIO(text), delimiter=_delimiter(path, text), skipinitialspace=True):
            if fields in ([], [""]):
                found.append(above)
            else:
                above += 1
    except (DataError, csv.Error):  # another format, or a field of very great length: its own reader has read it
        logger.debug("%s: empty lines cannot be counted", path)
    return found


def refuse_rows(wrong: pd.Series[bool], file: Path, problem: Callable[[int], str], remedy: str) -> None:
    """Raise for the first row that is wrong; ``problem`` says of its index what is."""
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(f"{file}, row {row_number(file, row)}: {problem(row)}", remedy=remedy)


def read_flags(
    table: pd.DataFrame, column: str, file: Path, remedy: str = "labels are 0, 1 or empty (unknown)"
) -> pd.Series[float]:
    """A column of 0, 1 and nothing as numbers; nothing is NaN.

    Raises:
        DataError: Another value, naming its row.
    """
    given = table[column]
    refuse_rows(~given.isin(("0", "1", "")), file, lambda row: f"{column}={given.iloc[row]!r}", remedy)
    return pd.to_numeric(given.where(given != "")).astype(float)


def one_row_each(keys: pd.Series[str], words: pd.Series[str], file: Path, column: str, what: str) -> list[str]:
    """Check that a table gives each patient (or image) one label.

    Args:
        keys: Whom each row is about, in the column ``column``.
        words: Its label, as messages give it.
        file: The table.
        column: Name of the key's column.
        what: What the label is called.

    Returns:
        A note where rows are repeated that agree.

    Raises:
        DataError: An empty key, or two rows that disagree.
    """
    refuse_rows(keys == "", file, lambda _: f"{column} is empty", "name whom the row is about")
    differ = words != words.groupby(keys).transform("first")
    if differ.any():
        row = int(differ.to_numpy().argmax())
        key = keys.iloc[row]
        before = int((keys == key).to_numpy().argmax())
        raise DataError(
            f"{file}: {column}={key!r} has two labels: {what}={words.iloc[before]!r} in row "
            f"{row_number(file, before)}, {what}={words.iloc[row]!r} in row {row_number(file, row)}",
            remedy="decide for one label and remove the other row",
        )
    repeated = int(keys.duplicated().sum())
    told = count(repeated, "repeated row agrees and counts once", "repeated rows agree and count once")
    return [f"{file.name}: {told}"] if repeated else []
