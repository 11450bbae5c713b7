"""CSV files as they come: byte-order marks, semicolons, tabs, spaces in the header."""

from __future__ import annotations

import csv
import io
from collections import Counter
from os import PathLike
from pathlib import Path

import pandas as pd

from hemlearn.util.errors import DataError

DELIMITERS = (",", ";", "\t")


def read_csv(path: str | PathLike[str]) -> pd.DataFrame:
    """Read a CSV file as text; nothing is guessed about the values.

    Fields are separated by commas, semicolons or tabs, whichever the header holds most of. A UTF-8 byte-order
    mark and spaces around header names and values are removed. An empty field is an empty string.

    Args:
        path: The file, UTF-8.

    Returns:
        One column of strings per header name, in the order of the file.

    Raises:
        DataError: The file is missing, empty, not UTF-8, without rows, has a header name twice, or a row with
            more or fewer fields than the header.
    """
    path = Path(path)
    text = _decode(path)
    delimiter = _delimiter(text)
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
        raise DataError(
            f"{path}: a row does not fit the header ({str(error).strip()})",
            remedy="give every row as many fields as the header; quote fields that hold the delimiter",
        ) from error
    header = [str(name).strip() for name in table.iloc[0]]
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: the header names {', '.join(map(repr, repeated))} more than once",
            remedy="give every column its own name",
        )
    table = table.iloc[1:].reset_index(drop=True)
    table.columns = pd.Index(header)
    if table.empty:
        raise DataError(f"{path}: a header but no rows", remedy="add at least one row below the header")
    if (table.iloc[:, -1] == "").any():  # else no row can be short: pandas fills those up with ""
        _refuse_short_rows(path, text, delimiter, len(header))
    return pd.DataFrame({name: table[name].str.strip() for name in header})


def _refuse_short_rows(path: Path, text: str, delimiter: str, width: int) -> None:
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    for fields in lines:
        if fields and len(fields) < width and any(field.strip() for field in fields):
            raise DataError(
                f"{path}: line {lines.line_num} has {len(fields)} fields, the header {width}",
                remedy="give every row as many fields as the header",
            )


def _decode(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error})", remedy="check the path and its permissions"
        ) from error
    if not raw.strip():
        raise DataError(
            f"{path}: an empty file ({len(raw)} bytes)", remedy="export the table again, with a header line"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A guessed code page would turn names into other names without a word, so it is refused.
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} (line {line})",
            remedy="save it as UTF-8 (spreadsheets: 'CSV UTF-8'), or: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from error
    if "\0" in text:
        raise DataError(
            f"{path}: holds a zero byte at offset {raw.index(0)}; this is not a CSV file in UTF-8",
            remedy="save it as UTF-8 text (UTF-16 and spreadsheet files are not read)",
        )
    return text


def _delimiter(text: str) -> str:
    """Return the delimiter that splits the header into most fields; quoted ones do not count."""
    header = next(line for line in text.splitlines() if line.strip())
    return max(DELIMITERS, key=lambda sign: len(next(csv.reader([header], delimiter=sign))))
