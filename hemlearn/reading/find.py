"""Tables of files to predict: CSV, Parquet, or a saved manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.data.readers import reader_for
from hemlearn.data.rows import is_nifti
from hemlearn.data.series import usable_headers
from hemlearn.data.sources import discover, extract
from hemlearn.reading.select_series import KINDS, Found, Series, Wanted, add_arranged, add_lost, add_pictures
from hemlearn.util.errors import DataError, hint
from hemlearn.util.tables import read_csv

MAX_BYTES = 1 << 30  # a table of ten million files
_IDS = ("patient_id", "study_id", "series_id", "slice_id", "z_mm", "modality")
_REMEDY = "one row per file: column path, and patient_id, series_id, z_mm, frame, modality where they are known"


def read_table(path: Path, wanted: Wanted) -> Found:
    """The series that a table names; all of them are predicted.

    Columns: ``path`` (relative to the table's folder, or absolute); optional ``frame`` (without it a file of several
    slices stands for all of them), and patient_id, study_id, series_id, slice_id, z_mm, modality, which DICOM and
    NIfTI files bring along themselves. Pictures without a series_id are series of their own.

    Raises:
        DataError: No table, too large a one, no column ``path``, a value that is none.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes: too large for a table of files", remedy=_REMEDY)
    root, table = path.parent, pd.DataFrame()
    if path.suffix.lower() == ".csv":
        table = read_csv(path)
    else:
        root, table = _parquet(path)
    if "path" not in table:
        columns = [str(name) for name in table.columns]
        raise DataError(f"{path}: no column 'path'{hint('path', columns)}; found: {', '.join(columns)}", remedy=_REMEDY)
    found = Found()
    table = table[["path", *(name for name in ("frame", *_IDS) if name in table)]].astype(str).replace("nan", "")
    kinds = [_kind(found, root, name) for name in table["path"]]
    table = table[[bool(kind) for kind in kinds]].reset_index(drop=True)
    picture = pd.Series([kind == "image" for kind in kinds if kind], dtype=bool)
    for name in ("frame", "z_mm"):
        if name in table:
            table[name] = _numbers(table[name], name, path)
    if (~picture).any():
        _with_headers(found, table[~picture].reset_index(drop=True), root, wanted, path)
    if picture.any():
        _pictures(found, table[picture].reset_index(drop=True), root)
    return found


def _parquet(path: Path) -> tuple[Path, pd.DataFrame]:
    """Root and rows of a Parquet file; that of a saved manifest names its root."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.read_table(path)
        meta = json.loads((arrow.schema.metadata or {}).get(b"hemlearn", b"{}"))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path}: not a Parquet file, or a damaged one: {str(error).splitlines()[0]}", remedy=_REMEDY
        ) from error
    return Path(meta.get("root", path.parent)), arrow.to_pandas()


def _kind(found: Found, root: Path, name: str) -> str:
    """``image``, ``dicom`` or ``nifti``; "" for a row that is a failure."""
    if not name:
        found.failures.append(("", "a row without a path"))
        return ""
    try:
        kind = reader_for(name).name
    except DataError as error:
        found.failures.append((name, error.problem.removeprefix(f"{name}: ")))
        return ""
    if not (root / name).is_file():
        found.failures.append((name, "no such file"))
        return ""
    return kind


def _numbers(values: pd.Series[str], name: str, path: Path) -> pd.Series[float]:
    number = pd.to_numeric(values.where(values != ""), errors="coerce")
    wrong = number.isna() & (values != "")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(f"{path}, row {row + 2}: {name}={values.iloc[row]!r}", remedy="give a number or leave it empty")
    return number.astype(float)


def _with_headers(found: Found, given: pd.DataFrame, root: Path, wanted: Wanted, path: Path) -> None:
    try:
        headers, lost = usable_headers(list(dict.fromkeys(given["path"])), root, cache_dir=wanted.cache_dir)
    except DataError as error:
        found.failures.append((path.name, error.problem))
        return
    add_lost(found, lost, root)
    headers["modality"] = headers["modality"].where(~is_nifti(headers["path"]), "CT" if wanted.kind == "ct" else "MR")
    keys = ["path"]
    if "frame" in given:
        given["frame"] = given["frame"].fillna(0).astype(np.int64)
        keys.append("frame")
    both = headers.merge(given, on=keys, how="inner" if "frame" in given else "left", suffixes=("", "_given"))
    for name in _IDS:
        if f"{name}_given" in both:
            told = both[f"{name}_given"]
            both[name] = told.where(told.notna() & (told.astype(str) != ""), both[name])
    if "slice_id" in both:  # a row may stand for all slices of its file
        several = both["path"].duplicated(keep=False) & ("frame" not in given)
        both["slice_id"] = both["slice_id"].where(both["slice_id"] != "", both["path"])
        both["slice_id"] = both["slice_id"].where(~several, both["slice_id"] + "#" + both["frame"].astype(str))
    add_arranged(found, both, root, wanted, every=True, named=True)


def _pictures(found: Found, table: pd.DataFrame, root: Path) -> None:
    if "series_id" not in table:
        if "patient_id" not in table:
            add_pictures(found, table["path"].tolist(), root)
            return
        table["series_id"] = table["path"]  # nothing tells that a patient's pictures are slices of one series
    for name, default in (
        ("series_id", table["path"]),
        ("patient_id", table["series_id"]),
        ("study_id", table["series_id"]),
        ("slice_id", table["path"]),
    ):
        given = table.get(name, default)
        table[name] = given.where(given != "", default)
    table["z_mm"] = table.get("z_mm", np.nan)
    table["modality"] = "CT"
    table["frame"] = 0
    for name, rows in table.groupby("series_id", sort=False):
        patients = rows["patient_id"].unique()
        if len(patients) > 1:
            found.failures.append((str(name), f"two patients in one series: {', '.join(patients[:5])}"))
            continue
        if rows["z_mm"].isna().any():
            rows = rows.assign(z_mm=np.nan)  # half an axis misleads: the table's order stands
        rows = rows.sort_values("z_mm", kind="stable")
        found.series.append(
            Series(
                str(patients[0]),
                str(rows["study_id"].iloc[0]),
                str(name),
                root,
                rows[["slice_id", "path", "frame", "z_mm", "modality"]].reset_index(drop=True),
            )
        )


# --- What a path holds for a run to predict: a file, a folder of mixed files, a zip archive or a table of files.


PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")


def find_input(path: Path, wanted: Wanted, scratch: Path) -> Found:
    """Find the series at a path.

    Args:
        path: DICOM, NIfTI or picture file, folder, zip archive, or table (CSV, Parquet) of files.
        wanted: What the run asks for.
        scratch: Folder that does not exist yet, where an archive is unpacked.

    Raises:
        DataError: There is nothing that can be predicted; the reason names the commonest fault.
    """
    if not path.exists():
        raise DataError(f"input={path}: no such file or folder", remedy="give a file, a folder, a zip or a table")
    suffix = path.suffix.lower()
    if path.is_dir():
        found = folder(path, wanted)
    elif suffix == ".zip":
        info = path.stat()
        found = Found()
        names = [item.relative_to(scratch.resolve()).as_posix() for item in extract(path, scratch)]
        add_headers(found, names, scratch, wanted, stamp=f"{path.resolve()}:{info.st_size}:{info.st_mtime_ns}")
    elif suffix in (".csv", ".parquet"):
        found = read_table(path, wanted)
    else:
        found = Found()
        names = _named(found, [path.name])
        if names and reader_for(path).name == "image":
            add_pictures(found, names, path.parent)
        elif names:
            add_headers(found, names, path.parent, replace(wanted, every=True))
    if not found.series:
        reasons = pd.Series([reason for _, reason in found.failures or found.left_out], dtype=object).value_counts()
        most = f": {reasons.index[0]} ({reasons.iloc[0]} times)" if len(reasons) else ""
        remedy = "give axial slices of the run's modality"
        if len(reasons) and str(reasons.index[0]).startswith("two patients"):
            remedy = "give each patient's slices a series id of their own, or a table with patient_id and series_id"
        raise DataError(f"input={path}: nothing to predict{most}", remedy=remedy)
    patients = len({item.patient_id for item in found.series})
    if patients > 1:
        found.remarks.insert(0, f"{patients} patients in {path.name or path}: each is predicted on its own")
    return found


def folder(path: Path, wanted: Wanted) -> Found:
    """The series of a folder; pictures count where it holds no DICOM or NIfTI file, each on its own."""
    listed = discover(path)
    if not listed.files and not listed.left_out:
        raise DataError(f"input={path}: an empty folder", remedy="give a folder with DICOM, NIfTI or PNG/JPG files")
    found = Found()
    files = _named(found, list(listed.files))
    others = [(_readable(name), reason) for name, reason in listed.left_out]
    pictures = [
        name for name, _ in listed.left_out if name.lower().endswith(PICTURES) and not Path(name).name.startswith(".")
    ]
    if files or not pictures:
        found.left_out += others
        if files or not found.failures:
            add_headers(found, files, path, wanted)
    else:
        pictures = _named(found, pictures)
        found.left_out += [item for item in others if not item[0].lower().endswith(PICTURES)]
        add_pictures(found, sorted(pictures), path)
        if len(pictures) > 1:
            found.remarks.append(
                f"{len(pictures)} pictures, each taken for a patient of its own: a table with patient_id, series_id "
                "and z_mm joins them"
            )
    return found


def _named(found: Found, names: list[str]) -> list[str]:
    """The names that are text; a table cannot hold others, so those files are failures."""
    good = []
    for name in names:
        if _readable(name) == name:
            good.append(name)
        else:
            found.failures.append((_readable(name), "its name is not UTF-8: rename it"))
    return good


def _readable(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def add_headers(found: Found, names: list[str], root: Path, wanted: Wanted, *, stamp: str = "") -> None:
    """Group DICOM and NIfTI files into series, and choose among those of a study.

    Raises:
        DataError: None of the files is an axial image.
    """
    try:
        headers, lost = usable_headers(names, root, cache_dir=wanted.cache_dir)
    except DataError as error:  # its remedy is for data sets
        raise DataError(error.problem, remedy="give axial slices of the run's modality") from error
    add_lost(found, lost, root)
    headers["modality"] = headers["modality"].where(~is_nifti(headers["path"]), KINDS[wanted.kind])
    add_arranged(found, headers, root, wanted, every=wanted.every, stamp=stamp)
