"""An adapter's rows, checked and brought to the manifest's types."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.ids import NOBODY
from hemlearn.data.readers import NIFTI_SUFFIXES
from hemlearn.util.errors import DataError, count, printable
from hemlearn.util.tables import row_number

MODALITIES = ("CT", "MR", "OT")  # DICOM (0008,0060)
_LONGEST = 4096  # characters of an id or path; file systems end there
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


def with_slice_ids(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a slice_id: where the table has none the path, with the frame if that is not the first."""
    if "slice_id" in rows or "path" not in rows:
        return rows
    frame = rows["frame"] if "frame" in rows else pd.Series(0, index=rows.index)
    number, wrong, _ = read_numbers(frame, whole=True)
    frame = number.where(~wrong, 0.0).fillna(0).astype(np.int64)
    return rows.assign(slice_id=rows["path"].where(frame == 0, rows["path"].astype(str) + "#" + frame.astype(str)))


@dataclass(frozen=True)
class _Place:
    """Where rows come from, for messages: a folder, or a table whose header is row 1."""

    path: Path
    table: bool

    def row(self, position: int, slice_id: str) -> str:
        return f"row {row_number(self.path, position)} ({slice_id!r})" if self.table else f"row {slice_id!r}"


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
        stand = count(len(repeated), "slice id stands", "slice ids stand")
        named = ", ".join(map(repr, repeated[:5])) + (", ..." if len(repeated) > 5 else "")
        which = (slice_id == repeated[0]).to_numpy().nonzero()[0][:5].tolist()
        lines = f"; {repeated[0]!r} in rows {', '.join(str(row_number(file, k)) for k in which)}" if file else ""
        raise DataError(
            f"{place.path}: duplicate id: {stand} in more than one row: {named}{lines}",
            remedy="give every image one row with an id of its own",
        )
    patient_id = _ids(rows, "patient_id", place)
    if place.table and (nobody := patient_id.str.casefold().isin(NOBODY)).any():
        row = int(nobody.to_numpy().argmax())
        raise DataError(
            f"{place.path}: patient_id of {place.row(row, slice_id.iloc[row])} is {patient_id.iloc[row]!r}, "
            f"which names nobody ({count(int(nobody.sum()), 'such row')})",
            remedy="name the patient; an unknown one is better left out of the table",
        )
    out = {"slice_id": slice_id, "patient_id": patient_id}
    for name in ("study_id", "series_id"):
        out[name] = _ids(rows, name, place) if name in rows else patient_id
    one_patient_each(out["series_id"], patient_id, place.path)
    for name, default in (("z_mm", np.nan), ("frame", 0)):
        given = rows[name] if name in rows else pd.Series(default, index=rows.index)
        number, wrong, remedy = read_numbers(given, whole=name == "frame")
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise DataError(
                f"{place.path}: {name} of {place.row(row, slice_id.iloc[row])} is {given.iloc[row]!r}", remedy=remedy
            )
        out[name] = number if name == "z_mm" else number.fillna(0).astype(np.int64)
    path = rows["path"].where(~unknown_values(rows["path"]), "").astype(str).str.replace("\\", "/", regex=False)
    absolute = path.str.startswith("/") | path.str.match(r"[A-Za-z]:/")
    if absolute.any():
        relative = [Path(os.path.relpath(item, root)).as_posix() for item in path[absolute]]
        path[absolute] = np.array(relative, dtype=object)
    _one_row_per_image(path, out["frame"], slice_id, root, place)
    out |= {"path": path, "modality": _modality(rows, modality, slice_id, place)}
    out |= {label: _label(rows, label, slice_id, place) for label in labels}
    return pd.DataFrame(out).reset_index(drop=True)


def read_numbers(given: pd.Series[Any], *, whole: bool = False) -> tuple[pd.Series[float], pd.Series[bool], str]:
    """Values of a table's column as numbers (NaN: not known), which of them are none, and what they ought to be.

    Args:
        given: As it stands in the table.
        whole: Only whole numbers from 0 will do; else every finite one.
    """
    number = pd.to_numeric(given.where(~unknown_values(given)), errors="coerce").astype(float)
    wrong = ~np.isfinite(number) & ~unknown_values(given)
    if whole:
        wrong |= (number < 0) | (number % 1 > 0) | (number >= 2**31)
    return number, wrong, "give a whole number from 0" if whole else "give a number, or leave it empty (unknown)"


def same_file(path: pd.Series[str], root: Path) -> pd.Series[str]:
    """Paths below ``root`` in one spelling: ``./a.png``, ``x/../a.png`` and ``../root/a.png`` are ``a.png``."""
    odd = path.str.contains(r"(?:^|/)\.{1,2}(?:/|$)|//|^/", regex=True)
    if not odd.any():
        return path
    base = os.path.realpath(root)

    def plain(item: str) -> str:
        folder, name = os.path.split(os.path.normpath(os.path.join(base, item)))  # noqa: PTH118
        return Path(os.path.relpath(os.path.join(os.path.realpath(folder), name), base)).as_posix()  # noqa: PTH118

    return path.where(~odd, path.map(plain))


def _one_row_per_image(
    path: pd.Series[str], frame: pd.Series[int], slice_id: pd.Series[str], root: Path, place: _Place
) -> None:
    files = pd.DataFrame({"path": same_file(path, root), "frame": frame.to_numpy()})
    again = files.duplicated() & (files["path"] != "")
    if again.any():
        row = int(again.to_numpy().argmax())
        first = int((files == files.iloc[row]).all(axis=1).to_numpy().argmax())
        raise DataError(
            f"{place.path}: duplicate image: {place.row(first, slice_id.iloc[first])} and "
            f"{place.row(row, slice_id.iloc[row])} name the same file, {files['path'].iloc[row]!r} "
            f"({count(int(again.sum()), 'such row')})",
            remedy="give every image one row",
        )


def slice_ids(rows: pd.DataFrame) -> pd.Series[str]:
    """The path of each slice, with ``#frame`` where its file holds several."""
    several = rows["path"].duplicated(keep=False) | (rows["frame"] > 0)
    return rows["path"].where(~several, rows["path"] + "#" + rows["frame"].astype(str))


def is_nifti(paths: pd.Series[str]) -> pd.Series[bool]:
    """Which paths name NIfTI files."""
    return paths.str.lower().str.endswith(NIFTI_SUFFIXES)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Series in order of appearance, slices of a series by position; without positions they stay as given."""
    series = pd.factorize(table["series_id"])[0]
    # A series that knows only some of its positions keeps the given order: NaN would sort to one end.
    partial = table["z_mm"].isna().groupby(series).transform("any")
    z_mm = table["z_mm"].where(~partial, 0.0)
    order = np.lexsort((np.arange(len(table)), z_mm, series))
    return table.iloc[order].reset_index(drop=True)


def one_patient_each(series_id: pd.Series[Any], patient_id: pd.Series[Any], where: object) -> None:
    """Refuse a series id that several patients share."""
    pairs = pd.DataFrame({"series": series_id, "patient": patient_id}).drop_duplicates()
    twice = pairs["series"].duplicated(keep=False)
    if twice.any():
        name = pairs.loc[twice, "series"].iloc[0]
        who = ", ".join(map(repr, pairs.loc[pairs["series"] == name, "patient"].head(5)))
        raise DataError(
            f"{where}: two patients in one series: series_id {name!r} stands with patients {who} "
            f"({pairs.loc[twice, 'series'].nunique()} such series)",
            remedy="make series ids unique, for example patient_id and series number joined",
        )


def _modality(rows: pd.DataFrame, default: str, slice_id: pd.Series[Any], place: _Place) -> pd.Series[Any]:
    if "modality" not in rows:
        return pd.Series(default, index=rows.index)
    given = rows["modality"].where(~unknown_values(rows["modality"]), default).astype(str).str.strip().str.upper()
    wrong = ~given.isin(MODALITIES)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"{place.path}: modality of {place.row(row, slice_id.iloc[row])} is {given.iloc[row]!r}",
            remedy=f"use one of {', '.join(MODALITIES)}",
        )
    return given


def unknown_values(values: pd.Series[Any]) -> pd.Series[bool]:
    """Which values are spellings of "not known"."""
    return values.isna() | values.astype(str).str.strip().str.lower().isin(UNKNOWN)


def _ids(rows: pd.DataFrame, column: str, place: _Place) -> pd.Series[Any]:
    absent = rows[column].isna() | (rows[column].astype(str).str.strip() == "")
    if absent.any():
        raise DataError(
            f"{place.path}: {column} is empty in row {row_number(place.path, int(absent.to_numpy().argmax()))} "
            f"({count(int(absent.sum()), 'row')})",
            remedy="give every row a slice and a patient; an unknown patient is better left out of the table",
        )
    given = rows[column].astype(str).str.strip().map(printable)
    long = given.str.len() > _LONGEST
    if long.any():
        row = int(long.to_numpy().argmax())
        raise DataError(
            f"{place.path}: {column} of row {row_number(place.path, row)} is too long: "
            f"{len(given.iloc[row])} characters, {given.iloc[row][:20]!r}...",
            remedy="correct the row; a quote may be missing",
        )
    return given


def _label(rows: pd.DataFrame, label: str, slice_id: pd.Series[Any], place: _Place) -> pd.Series[float]:
    given = rows[label]
    number = pd.to_numeric(given.where(~unknown_values(given)), errors="coerce").astype(float)
    wrong = ~unknown_values(given) & ~number.isin((0.0, 1.0))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"{place.path}: label {label!r} of {place.row(row, slice_id.iloc[row])} is {given.iloc[row]!r} "
            f"({int(wrong.sum())} such rows)",
            remedy="labels are 0, 1 or empty (unknown)",
        )
    return number


# --- What of a data set is skipped, by kind of reason: counted, the gravest first, and how to mend it.


BAND = "outside the band"  # a cut that the configuration asks for, no loss
_SHOWN = 6  # kinds named in one line
# Kind -> rank; what is not listed here is a file that cannot be read, and the gravest.
_RANKS = {
    "label without image": 1,
    "no patient": 1,
    "no slice in the band": 1,
    "mixed contrasts": 1,
    "short series": 1,
    "two patients in one series": 1,
    "duplicate positions": 1,
    "uneven spacing": 1,
    "gantry tilt": 1,
    "modality": 2,
    "image without label": 2,
    "duplicate position": 2,
    "other orientation": 2,
    "not axial": 3,
    "localiser": 3,
    "secondary capture": 3,
    "derived": 3,
    "screen capture": 3,
    "derived map": 3,
    "colour": 3,
    "1-bit image": 3,
    "non-image object": 3,
    "no pixels": 3,
    "another series of this patient is used": 3,
    "neither DICOM nor NIfTI": 4,
    "no DICOM mark in a file without an ending": 4,
    "a hidden file": 4,
    "a table of contents": 4,
    BAND: 5,
}
_BESIDE = ("image without label", "label without image")  # never the only reason that nothing is left
_REMEDIES = {
    BAND: "widen data.band (null: all slices)",
    "no slice in the band": "widen data.band (null: all slices)",
    "short series": "lower data.geometry.min_slices",
    "duplicate positions": "set data.geometry.duplicates=first",
    "uneven spacing": "set data.geometry.gaps=keep",
    "gantry tilt": "set data.geometry.tilt=keep",
    "modality": "give images of the modality that the data set has, or choose the data set (data=NAME) of these images",
    "mixed contrasts": "export every contrast as a series of its own",
    "two patients in one series": "give the series of each patient an id of their own (0020,000E)",
    "no patient": "name the patients in labels.csv, or set data.patient_pattern",
    "label without image": "name images or patients in the table as the files are named",
    "image without label": "add these images to the table of labels",
}
_MEND = "copy or export the files again"
_AXIAL = "export the axial slices as CT or MR images"


def kind_of(reason: str) -> str:
    """The kind of a reason that reads ``kind: particulars``; for example ``short series`` or ``modality MR``."""
    return re.split(r": | \(| than most of series ", reason, maxsplit=1)[0]


def by_kind(skipped: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Kind -> its rows, the gravest kind first, of equal ones the commoner."""
    kinds = skipped["reason"].astype(str).map(kind_of)
    groups = {str(kind): rows for kind, rows in skipped.groupby(kinds, sort=False)}
    return dict(sorted(groups.items(), key=lambda pair: (_rank(pair[0]), -len(pair[1]))))


def gravest_first(skipped: pd.DataFrame) -> pd.DataFrame:
    """The same rows, kind by kind as in :func:`by_kind`."""
    parts = list(by_kind(skipped).values())
    return pd.concat(parts, ignore_index=True) if parts else skipped


def skip_reasons(skipped: pd.DataFrame) -> str:
    """One sentence: each kind of loss with its number and an example, and the slices outside the band as a number."""
    groups = by_kind(skipped)
    band = len(groups.pop(BAND, ()))
    parts = [
        f"{len(rows)} x {kind}, e.g. {rows['item'].iloc[0]} ({rows['reason'].iloc[0]})" for kind, rows in groups.items()
    ]
    more = sum(len(rows) for rows in list(groups.values())[_SHOWN:])
    parts = parts[:_SHOWN] + ([f"{more} more for {count(len(groups) - _SHOWN, 'other reason')}"] if more else [])
    lost = len(skipped) - band
    text = f"{count(lost, 'item')} left out: {'; '.join(parts)}" if lost else "nothing left out"
    return f"{text}{'; besides ' if lost else ' but '}{count(band, 'slice')} outside the band" if band else text


def why_nothing_is_left(skipped: pd.DataFrame) -> tuple[str, str]:
    """The commonest kind, with a reason and an item of it, and what to do about the kinds that left nothing.

    Files that are no images, and rows and files without each other, explain it only where nothing else does.
    """
    groups = by_kind(skipped)
    causes = {kind: rows for kind, rows in groups.items() if _rank(kind) < 4 and kind not in _BESIDE} or groups
    common = sorted(causes, key=lambda kind: -len(causes[kind]))
    first = causes[common[0]].iloc[0]
    problem = f"most often: {first['reason']} ({count(len(causes[common[0]]), 'time')}, first {first['item']!r})"
    return problem, "; ".join(dict.fromkeys(_remedies(common[:3])))


def _remedies(kinds: Sequence[str]) -> list[str]:
    ranks = [(kind, _rank(kind)) for kind in kinds]
    return [_REMEDIES.get(_plain(kind), _AXIAL if rank in (2, 3) else _MEND) for kind, rank in ranks]


def _rank(kind: str) -> int:
    return _RANKS.get(_plain(kind), 0)


def _plain(kind: str) -> str:
    """``modality MR`` and ``modality CT`` are one kind to mend."""
    return "modality" if kind.startswith("modality ") else kind
