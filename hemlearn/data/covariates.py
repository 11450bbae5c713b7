"""Covariates: what is known of patients, series and slices beside their labels, such as age, sex and manufacturer.

No run learns them: they are there to ask whether it does as well in every group. A manifest holds them as columns
``covariate_NAME``, numbers or texts, of which its checksum takes no account; a run folder keeps those of its validation
and test slices in ``covariates.parquet``, so that it can answer without its data.

Those with a physical range (:data:`RANGES`) are held to it. A table that says -1 or 999 where it should say nothing is
refused, with the row; a DICOM header that does is nobody's to correct: its value counts as unknown, with a note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hemlearn.data.readers.dicom_values import age_years
from hemlearn.data.rows import unknown_values
from hemlearn.util.errors import DataError, RunError, count, hint, printable
from hemlearn.util.files import whole_file, writing
from hemlearn.util.run_files import COVARIATES
from hemlearn.util.tables import read_csv, refuse_rows, row_number

PREFIX = "covariate_"
IDS = ("slice_id", "series_id", "study_id", "patient_id")  # the finest first
_OF_SERIES = ("manufacturer", "kernel", "thickness_mm", "spacing_mm", "pixel_mm", "tilt_deg")  # of a manifest's series


class Range(NamedTuple):
    """What a covariate of some name can be."""

    names: str  # regular expression of its names, in lower case
    low: float
    high: float
    unit: str
    above: bool = False  # ``low`` itself is impossible

    @property
    def text(self) -> str:
        """Such as ``0 to 120 years``."""
        return (
            f"above {self.low:g}, up to {self.high:g} {self.unit}"
            if self.above
            else (f"{self.low:g} to {self.high:g} {self.unit}")
        )

    def refuses(self, values: pd.Series[Any]) -> pd.Series[bool]:
        """Which of the numbers are impossible; what is unknown is not."""
        low = values <= self.low if self.above else values < self.low
        return low | (values > self.high)


RANGES = (
    Range(r"(patient_?)?age(_?(in_)?(years?|yrs?|y)|_at_[a-z]+)?", 0, 120, "years"),
    Range(r"((slice|pixel)_?)?(thickness|spacing)(_?mm)?|pixel(_?size)?_?mm", 0, 100, "mm", above=True),
    Range(r"(gantry_?)?tilt(_?deg(rees)?)?", -90, 90, "degrees"),
    Range(r"gcs(_(total|score|at_[a-z]+))?|glasgow_coma_(scale|score)", 3, 15, "points"),
)
_PARTS_OF_A_YEAR = (("months", 12.0, "M"), ("days", 365.25, "D"))  # how many, and their letter in DICOM


def range_of(name: str) -> Range | None:
    """The range of a covariate, by its name.

    >>> range_of("Age (years)").text, range_of("SliceThickness").text, range_of("dose")
    ('0 to 120 years', 'above 0, up to 100 mm', None)
    """
    plain = re.sub(r"\W+", "_", name.lower()).strip("_")
    return next((own for own in RANGES if re.fullmatch(own.names, plain)), None)


def within_range(headers: pd.DataFrame, columns: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Headers with impossible values as unknown (NaN), and a note on each column that had some.

    Args:
        headers: A row per slice, with the column path.
        columns: Column -> the DICOM element it comes from.
    """
    notes = []
    for column, element in columns.items():
        own = range_of(column)
        assert own is not None, column
        wrong = own.refuses(headers[column])
        if wrong.any():
            files = f"{headers.loc[wrong, 'path'].nunique()} of {count(headers['path'].nunique(), 'file')}"
            first = headers.loc[wrong, column].iloc[0]
            notes.append(f"{element} of {files} is impossible, such as {first:g} (plausible: {own.text}): unknown")
            headers = headers.assign(**{column: headers[column].mask(wrong)})
    return headers, notes


def typed(given: pd.Series[Any], name: str, file: object, place: Callable[[int], str]) -> pd.Series[Any]:
    """A column as numbers (NaN: unknown), or as texts ("": unknown) where most of its values are no numbers.

    Ages as DICOM writes them (``063Y``) are numbers of years.

    Args:
        given: As it stands in a table.
        name: The covariate.
        file: Where it comes from, for messages.
        place: A row in words, from its index.

    Raises:
        DataError: A text among numbers, an infinite number, numbers with a decimal comma, or one that cannot be
            (:data:`RANGES`).
    """
    known = ~unknown_values(given)
    text = given.astype(str).str.strip()
    number = pd.to_numeric(given.where(known), errors="coerce").astype(float)
    number = number.where(number.notna(), text.where(known, "").map(age_years))
    wrong = known & ~np.isfinite(number)
    if not wrong.any():
        own = range_of(name)
        if own is not None and (odd := own.refuses(number)).any():
            row = int(odd.to_numpy().argmax())
            more = f"; {count(int(odd.sum()), 'such row')}" if odd.sum() > 1 else ""
            shown = printable(str(given.iloc[row]))
            raise DataError(
                f"{file}: {name} of {place(row)} is {shown!r}, which cannot be (plausible: {own.text}){more}",
                remedy="correct the row, or leave it empty (unknown)" + _other_unit(number, own),
            )
        return number.reset_index(drop=True)
    if (comma := text.str.fullmatch(r"[+-]?\d+,\d+"))[wrong].all():
        row = int(comma.to_numpy().argmax())
        problem = f"{file}: {name} of {place(row)} is {given.iloc[row]!r}, with a decimal comma"
        raise DataError(problem, remedy="write numbers with a point")
    if int(wrong.sum()) * 2 < int(known.sum()):
        row = int(wrong.to_numpy().argmax())
        others = count(int((known & ~wrong).sum()), "other value is a number", "other values are numbers")
        raise DataError(
            f"{file}: {name} of {place(row)} is {printable(str(given.iloc[row]))!r}, and {others}",
            remedy="correct the row, or leave it empty (unknown)",
        )
    return text.where(known, "").map(printable).reset_index(drop=True)


def _other_unit(number: pd.Series[Any], own: Range) -> str:
    """What to do where numbers too large for years are all such that they may be months, or days."""
    if own.unit == "years" and number.max() > own.high and number.min() >= own.low:
        for unit, each, letter in _PARTS_OF_A_YEAR:
            if number.max() <= own.high * each:
                return f"; if these are {unit}, divide them by {each:g}, or write them as 009{letter}"
    return ""


def with_covariates(table: pd.DataFrame, rows: pd.DataFrame, root: object) -> pd.DataFrame:
    """A manifest's rows with the columns ``covariate_*`` of the adapter's rows that they were made of, where known."""
    found = {
        str(name): typed(
            rows[name], str(name).removeprefix(PREFIX), root, lambda row: f"row {table['slice_id'].iloc[row]!r}"
        )
        for name in rows
        if str(name).startswith(PREFIX) and not unknown_values(rows[name]).all()
    }
    return table.assign(**found)


def covariates_of(table: pd.DataFrame, series: pd.DataFrame) -> pd.DataFrame:
    """(N, C) covariates of a manifest's slices by name: its columns, and what its table of series tells.

    Those of which nothing is known are left out.
    """
    found = pd.DataFrame(index=table.index)
    by_series = series.set_index("series_id")
    for name in _OF_SERIES if len(by_series) else ():
        found[name] = table["series_id"].map(by_series[name])
    for name in (name for name in table if str(name).startswith(PREFIX)):
        found[str(name).removeprefix(PREFIX)] = table[name]
    return found[[name for name in found if not unknown_values(found[name]).all()]]


# --- Tables of covariates.


def read_covariates(file: Path, key: str | None = None) -> tuple[str, pd.DataFrame]:
    """A table of covariates.

    Args:
        file: CSV file: a column of ids, and a column per covariate.
        key: The column of ids; None: the finest there is of slice_id, series_id, study_id, patient_id.

    Returns:
        The name of the column of ids, and the covariates by id.

    Raises:
        DataError: No such column, a column without a name, no covariate, an empty id, an id with different values, or
            values that are not numbers throughout (:func:`typed`).
    """
    table = read_csv(file)
    columns = [str(name) for name in table]
    key = key or next((name for name in IDS if name in columns), None)
    if key not in columns or key is None:
        wanted = " or ".join(IDS) if key is None else key
        raise DataError(
            f"{file}: no column {wanted}{hint(key or 'patient_id', columns)} (found: {', '.join(columns)})",
            remedy="say whom each row is about",
        )
    names = [name for name in columns if name not in (key, *IDS)]
    if "" in names:
        remedy = "name it, or remove it (pandas writes such a column of row numbers without index=False)"
        raise DataError(f"{file}: column {columns.index('') + 1} has no name", remedy=remedy)
    if not names:
        raise DataError(f"{file}: no column beside {key}", remedy="add a column per covariate, such as sex")
    refuse_rows(table[key] == "", file, lambda _: f"{key} is empty", "name whom the row is about")
    made = pd.DataFrame({n: typed(table[n], n, file, lambda row: f"row {row_number(file, row)}") for n in names})
    for name in names:
        known = made[name].where(made[name] != "")  # an empty cell contradicts nothing
        differ = known.notna() & (known != known.groupby(table[key]).transform("first"))
        if differ.any():
            row = int(differ.to_numpy().argmax())
            who = table[key].iloc[row]
            before = int(((table[key] == who) & known.notna()).to_numpy().argmax())
            raise DataError(
                f"{file}: {key}={who!r} has two values of {name}: {table[name].iloc[before]!r} in row "
                f"{row_number(file, before)}, {table[name].iloc[row]!r} in row {row_number(file, row)}",
                remedy=f"remove one, or give a row per series or slice ({', '.join(IDS[:2])})",
            )
    texts = dict.fromkeys((name for name in names if made[name].dtype == object), "")
    found = made.replace("", np.nan).groupby(table[key].rename(key), sort=False).first()
    return key, found.fillna(texts)


# --- In a run folder.


def write_covariates(table: pd.DataFrame, series: pd.DataFrame, slices: Iterable[str], folder: Path) -> None:
    """Write the covariates of some slices into a run folder, with their ids; nothing where none is known.

    Args:
        table: The manifest's rows.
        series: Its table of series.
        slices: Ids of the slices.
        folder: The run folder.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = covariates_of(table, series)
    kept = table["slice_id"].isin(set(slices))
    if not len(found.columns):
        (folder / COVARIATES).unlink(missing_ok=True)  # of an earlier try
        return
    found = found[[name for name in found if name not in IDS]].rename(columns=lambda name: PREFIX + str(name))
    made = pd.concat([table[list(IDS)], found], axis=1)[kept].reset_index(drop=True)
    file = folder / COVARIATES
    with writing(file, "choose a writable folder with free space: output_dir=DIR"), whole_file(file) as draft:
        pq.write_table(pa.Table.from_pandas(made, preserve_index=False), draft)


def load_covariates(folder: Path) -> pd.DataFrame:
    """What :func:`write_covariates` has written: ids, then covariates by name; no columns where there is no file.

    Raises:
        RunError: The file is damaged, or holds other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / COVARIATES
    if not file.is_file():
        return pd.DataFrame()
    try:
        with file.open("rb") as opened:
            found: pd.DataFrame = pq.ParquetFile(opened).read(use_threads=False).to_pandas(use_threads=False)
    except (OSError, pa.ArrowException, TypeError, ValueError, KeyError) as error:
        raise RunError(f"{file}: not a readable Parquet file ({error})", remedy="copy the run folder again") from error
    names = [str(name) for name in found]
    odd = [name for name in names if name not in IDS and not name.startswith(PREFIX)]
    if odd or set(IDS) - set(names) or found["slice_id"].duplicated().any():
        raise RunError(
            f"{file}: no table of covariates: columns {', '.join(names)}", remedy="copy the run folder again"
        )
    found = found.rename(columns=lambda name: printable(str(name)).removeprefix(PREFIX))
    texts = [name for name in found if name not in IDS and not pd.api.types.is_numeric_dtype(found[name])]
    return found.assign(**{name: found[name].map(lambda value: printable(str(value))) for name in texts})
