"""An adapter's rows, checked and brought to the manifest's types."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.errors import DataError

MODALITIES = ("CT", "MR", "OT")  # DICOM (0008,0060)
LEVELS = ("slice", "series")  # what labels describe
UNKNOWN = ("", "nan", "na", "n/a", "null", "none", "<na>")  # label spellings for "not known", in any case


def check_rows(rows: pd.DataFrame, root: Path, labels: Sequence[str], modality: str) -> None:
    """Refuse a folder, modality or table that no manifest can be made of.

    Raises:
        DataError: Missing folder, unknown modality, missing column, no rows.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: {'not a folder' if root.exists() else 'no such folder'}",
            remedy="set data.root to the folder of the data set",
        )
    if modality not in MODALITIES:
        raise DataError(f"modality {modality!r}", remedy=f"use one of {', '.join(MODALITIES)}")
    missing = [name for name in ("slice_id", "patient_id", "path", *labels) if name not in rows]
    if missing:
        raise DataError(
            f"{root}: the table has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, rows))}",
            remedy="name the columns as the task and the data set expect them",
        )
    if rows.empty:
        raise DataError(f"{root}: no rows: the folder or table is empty", remedy="check data.root")


@dataclass(frozen=True)
class _Place:
    """Where rows come from, for messages: a folder, or a table whose header is row 1."""

    path: Path
    table: bool

    def row(self, position: int, slice_id: str) -> str:
        return f"row {position + 2} ({slice_id!r})" if self.table else f"row {slice_id!r}"


def normalise(
    rows: pd.DataFrame, root: Path, labels: Sequence[str], modality: str, file: Path | None = None
) -> pd.DataFrame:
    """Return the rows with all columns but those that need the files, each of its type.

    Args:
        rows: As for ``manifest.build_manifest``.
        root: Folder that paths start from.
        labels: Names of the label columns.
        modality: Of rows that do not say.
        file: The table whose rows these are, all of them in order: messages then name it and the row.

    Raises:
        DataError: An id that is empty or given twice; a label, position, frame or modality that is none; a
            series id that several patients share.
    """
    place = _Place(root if file is None else file, file is not None)
    slice_id = _ids(rows, "slice_id", place)
    repeated = slice_id[slice_id.duplicated()].unique()
    if len(repeated):
        named = ", ".join(map(repr, repeated[:5])) + (", ..." if len(repeated) > 5 else "")
        which = (slice_id == repeated[0]).to_numpy().nonzero()[0] + 2
        lines = f"; {repeated[0]!r} in rows {', '.join(map(str, which[:5]))}" if place.table else ""
        raise DataError(
            f"{place.path}: duplicate id: {len(repeated)} slice ids stand in more than one row: {named}{lines}",
            remedy="give every image one row with an id of its own",
        )
    patient_id = _ids(rows, "patient_id", place)
    out = {"slice_id": slice_id, "patient_id": patient_id}
    for name in ("study_id", "series_id"):
        out[name] = _ids(rows, name, place) if name in rows else patient_id
    _one_patient_each(out["series_id"], patient_id, place.path)
    for name, default in (("z_mm", np.nan), ("frame", 0)):
        given = rows[name] if name in rows else pd.Series(default, index=rows.index)
        number = pd.to_numeric(given, errors="coerce")
        wrong = number.isna() & ~_unknown(given)
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise DataError(
                f"{place.path}: {name} of {place.row(row, slice_id.iloc[row])} is {given.iloc[row]!r}",
                remedy="give a number",
            )
        out[name] = number.astype(float) if name == "z_mm" else number.fillna(0).astype(np.int64)
    path = rows["path"].where(~_unknown(rows["path"]), "").astype(str).str.replace("\\", "/", regex=False)
    absolute = path.str.startswith("/") | path.str.match(r"[A-Za-z]:/")
    if absolute.any():
        relative = [Path(os.path.relpath(item, root)).as_posix() for item in path[absolute]]
        path[absolute] = np.array(relative, dtype=object)
    out |= {"path": path, "modality": _modality(rows, modality, slice_id, place)}
    out |= {label: _label(rows, label, slice_id, place) for label in labels}
    return pd.DataFrame(out).reset_index(drop=True)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Series in order of appearance, slices of a series by position; without positions they stay as given."""
    series = pd.factorize(table["series_id"])[0]
    # A series that knows only some of its positions keeps the given order: NaN would sort to one end.
    partial = table["z_mm"].isna().groupby(series).transform("any")
    z_mm = table["z_mm"].where(~partial, 0.0)
    order = np.lexsort((np.arange(len(table)), z_mm, series))
    return table.iloc[order].reset_index(drop=True)


def _one_patient_each(series_id: pd.Series[Any], patient_id: pd.Series[Any], root: Path) -> None:
    pairs = pd.DataFrame({"series": series_id, "patient": patient_id}).drop_duplicates()
    twice = pairs["series"].duplicated(keep=False)
    if twice.any():
        name = pairs.loc[twice, "series"].iloc[0]
        who = ", ".join(map(repr, pairs.loc[pairs["series"] == name, "patient"].head(5)))
        raise DataError(
            f"{root}: two patients in one series: series_id {name!r} stands with patients {who} "
            f"({pairs.loc[twice, 'series'].nunique()} such series)",
            remedy="make series ids unique, for example patient_id and series number joined",
        )


def _modality(rows: pd.DataFrame, default: str, slice_id: pd.Series[Any], place: _Place) -> pd.Series[Any]:
    if "modality" not in rows:
        return pd.Series(default, index=rows.index)
    given = rows["modality"].where(~_unknown(rows["modality"]), default).astype(str).str.strip().str.upper()
    wrong = ~given.isin(MODALITIES)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"{place.path}: modality of {place.row(row, slice_id.iloc[row])} is {given.iloc[row]!r}",
            remedy=f"use one of {', '.join(MODALITIES)}",
        )
    return given


def _unknown(values: pd.Series[Any]) -> pd.Series[bool]:
    return values.isna() | values.astype(str).str.strip().str.lower().isin(UNKNOWN)


def _ids(rows: pd.DataFrame, column: str, place: _Place) -> pd.Series[Any]:
    absent = rows[column].isna() | (rows[column].astype(str).str.strip() == "")
    if absent.any():
        raise DataError(
            f"{place.path}: {column} is empty in row {int(absent.to_numpy().argmax()) + 2} ({int(absent.sum())} rows)",
            remedy="give every row a slice and a patient; an unknown patient is better left out of the table",
        )
    return rows[column].astype(str).str.strip()


def _label(rows: pd.DataFrame, label: str, slice_id: pd.Series[Any], place: _Place) -> pd.Series[float]:
    given = rows[label]
    number = pd.to_numeric(given.where(~_unknown(given)), errors="coerce").astype(float)
    wrong = ~_unknown(given) & ~number.isin((0.0, 1.0))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"{place.path}: label {label!r} of {place.row(row, slice_id.iloc[row])} is {given.iloc[row]!r} "
            f"({int(wrong.sum())} such rows)",
            remedy="labels are 0, 1 or empty (unknown)",
        )
    return number
