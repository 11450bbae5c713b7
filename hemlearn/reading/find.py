"""What a path holds for a run to predict: a file, a folder of mixed files, a zip archive or a table of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.ids import id_notes
from hemlearn.data.readers import reader_for
from hemlearn.data.rows import UNKNOWN, read_numbers, same_file
from hemlearn.data.sources import discover, extract
from hemlearn.data.store import named_masks
from hemlearn.reading.series import (
    ROW,
    Found,
    InputRules,
    Series,
    add_arranged,
    add_headers,
    add_pictures,
    found_headers,
    in_band,
    note_unsaid,
)
from hemlearn.util.documents import load_json
from hemlearn.util.errors import DataError, count, hint, name_problem, printable
from hemlearn.util.files import file_stamp, special_file
from hemlearn.util.tables import read_csv, refuse_rows, row_number

MAX_BYTES = 1 << 30  # a table of ten million files
_IDS = ("patient_id", "study_id", "series_id", "slice_id", "z_mm", "modality")
_APART_MM = 0.5  # positions of a table that differ by more from those of the headers are others
_REMEDY = "one row per file: column path, and patient_id, series_id, z_mm, frame, modality where they are known"


def find_input(path: Path, rules: InputRules, scratch: Path) -> Found:
    """Find the series at a path.

    Args:
        path: DICOM, NIfTI or picture file, folder, zip archive, or table (CSV, Parquet) of files.
        rules: What the run asks for.
        scratch: Folder that does not exist yet, where an archive is unpacked.

    Raises:
        DataError: There is nothing that can be predicted; the reason names the commonest fault.
    """
    kind = special_file(path.stat().st_mode) if path.exists() else "no such file or folder"
    if kind:
        raise DataError(f"input={path}: {kind}", remedy="give a file, a folder, a zip or a table")
    suffix, found = path.suffix.lower(), Found()
    if path.is_dir():
        _add_folder(found, path, rules)
    elif suffix == ".zip":
        names = [item.relative_to(scratch.resolve()).as_posix() for item in extract(path, scratch)]
        add_headers(found, names, scratch, rules, stamp=f"{path.resolve()}:{file_stamp(path.stat())}")
    elif suffix in (".csv", ".parquet"):
        _add_table(found, path, rules)
    elif problem := name_problem(path.name):
        found.failures.append((printable(path.name), problem))
    elif reader_for(path).name == "image":
        add_pictures(found, [path.name], path.parent, rules)
    else:
        add_headers(found, [path.name], path.parent, replace(rules, every=True))
    if not found.series:
        reasons = pd.Series([reason for _, reason in found.failures or found.skip_reasons], dtype=object).value_counts()
        most = f": {reasons.index[0]} ({count(reasons.iloc[0], 'time')})" if len(reasons) else ""
        remedy = "give axial slices of the run's modality"
        if len(reasons) and str(reasons.index[0]) == "no such file":
            remedy = "give paths relative to the table's folder, or absolute ones"
        if len(reasons) and str(reasons.index[0]).startswith("two patients"):
            remedy = "give each patient's slices a series id of their own, or a table with patient_id and series_id"
        raise DataError(f"input={path}: nothing to predict{most}", remedy=remedy)
    patients = len({item.patient_id for item in found.series})
    if not found.patients_known:
        what = "each image, or series, is predicted on its own and counts as one"
        found.notes.insert(0, f"{path.name or path} does not say whose the images are: {what}")
    elif patients > 1:
        found.notes.insert(0, f"{patients} patients in {path.name or path}: each is predicted on its own")
    return found


def _add_folder(found: Found, path: Path, rules: InputRules) -> None:
    """The series of a folder; pictures count where it holds no DICOM or NIfTI file, each on its own."""
    listed = discover(path)
    if not listed.files and not listed.skipped:
        raise DataError(f"input={path}: an empty folder", remedy="give a folder with DICOM, NIfTI or PNG/JPG files")
    masks = named_masks([*listed.files, *listed.pictures])
    if masks:
        found.notes.append(f"{count(len(masks), 'lesion mask')} beside the scans (first {min(masks)}): left out")
    files, pictures = ([name for name in names if name not in masks] for names in (listed.files, listed.pictures))
    found.failures += [item for item in listed.skipped if item[1].startswith("its name")]
    others = [item for item in listed.skipped if not item[1].startswith("its name")]
    if files or not pictures:
        found.skip_reasons += others
        if files or not found.failures:
            add_headers(found, files, path, rules)
        return
    found.skip_reasons += [item for item in others if item[0] not in {*pictures, *masks}]
    add_pictures(found, pictures, path, rules)
    if len(pictures) > 1:
        found.notes.append(
            f"{len(pictures)} pictures, each taken for a patient of its own: a table with patient_id, series_id "
            "and z_mm joins them"
        )


# --- tables of files ----------------------------------------------------------------------------------------------


def _add_table(found: Found, path: Path, rules: InputRules) -> None:
    """The series that a table names; all of them are predicted.

    Columns: ``path`` (relative to the table's folder, or absolute); optional ``frame`` (without it a file of several
    slices stands for all of them), and patient_id, study_id, series_id, slice_id, z_mm, modality, which DICOM and
    NIfTI files bring along themselves. Pictures without a series_id are series of their own. The slices of a saved
    manifest are taken as they are: ``data.band`` has been applied to them.

    Raises:
        DataError: No table, too large a one, no column ``path``, a value that is none.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes: too large for a table of files", remedy=_REMEDY)
    root = path.parent
    if path.suffix.lower() == ".csv":
        table = read_csv(path)
    else:
        table, meta = _parquet(path)
        if "root" in meta:
            root, rules = Path(meta["root"]), replace(rules, band=None)
    if "path" not in table:
        columns = [str(name) for name in table.columns]
        raise DataError(f"{path}: no column 'path'{hint('path', columns)}; found: {', '.join(columns)}", remedy=_REMEDY)
    table = table[["path", *(name for name in ("frame", *_IDS) if name in table)]]
    table = table.astype(object).where(table.notna(), "").astype(str)
    table = table.assign(**{name: table[name].map(printable) for name in _IDS if name in table})
    table["path"] = table["path"].str.replace("\\", "/", regex=False)
    if "modality" in table:
        table["modality"] = table["modality"].str.strip().str.upper()
    for name in ("frame", "z_mm"):
        if name in table:
            given = table[name]
            table[name], wrong, remedy = read_numbers(given, whole=name == "frame")
            refuse_rows(wrong, path, lambda row, name=name, given=given: f"{name}={given.iloc[row]!r}", remedy)  # type: ignore[misc]
    table = _each_once(found, table, path, root)
    if "patient_id" in table:
        found.notes += id_notes(table["patient_id"][table["patient_id"] != ""])
    kinds = [_kind(found, root, name) for name in table["path"]]
    table = table[[bool(kind) for kind in kinds]].reset_index(drop=True)
    picture = pd.Series([kind == "image" for kind in kinds if kind], dtype=bool)
    if (~picture).any():
        _with_headers(found, table[~picture].reset_index(drop=True), root, rules, path)
    if picture.any():
        _join_pictures(found, table[picture].reset_index(drop=True), root, rules)


def _each_once(found: Found, table: pd.DataFrame, path: Path, root: Path) -> pd.DataFrame:
    """The table without rows whose image, or whose slice id, an earlier row has; these are failures."""
    keys = pd.DataFrame({"image": same_file(table["path"], root) + "#" + _frame(table).astype(str)})
    keys["image"] = keys["image"].where(table["path"] != "")
    if "slice_id" in table:
        keys["slice id"] = table["slice_id"].where(table["slice_id"] != "")
    line = pd.Series(np.arange(len(table)), table.index)
    for what in keys:
        key = keys.loc[line.index, what]
        first = line.groupby(key).transform("first")  # NaN where nothing is named
        for k in line.index[first < line]:
            rows = [row_number(path, int(place)) for place in (line[k], first[k])]
            reason = f"duplicate: {path.name}, row {rows[0]} has the {what} of row {rows[1]}"
            found.failures.append((str(table.loc[k, "path"]), reason))
        line = line[~(first < line)]
    return table.loc[line.index].reset_index(drop=True)


def _frame(table: pd.DataFrame) -> pd.Series[int]:
    return table["frame"].fillna(0).astype(np.int64) if "frame" in table else pd.Series(0, table.index)


def _parquet(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows of a Parquet file, and what a saved manifest says of itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.read_table(path)
        return arrow.to_pandas(), load_json((arrow.schema.metadata or {}).get(b"hemlearn", b"{}"))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path}: not a Parquet file, or a damaged one: {str(error).splitlines()[0]}", remedy=_REMEDY
        ) from error


def _kind(found: Found, root: Path, name: str) -> str:
    """``image``, ``dicom`` or ``nifti``; "" for a row that is a failure."""
    kind, problem = "", name_problem(name) if name else "a row without a path"
    try:
        kind = reader_for(root / name).name if name and not problem else ""
    except DataError as error:
        problem = error.problem.removeprefix(f"{root / name}: ")
    if kind and not (root / name).is_file():
        problem = "no such file"
    if problem:
        found.failures.append((printable(name), problem))
    return "" if problem else kind


def _with_headers(found: Found, given: pd.DataFrame, root: Path, rules: InputRules, path: Path) -> None:
    try:
        headers = found_headers(found, list(dict.fromkeys(given["path"])), root, rules)
    except DataError as error:
        found.failures.append((path.name, error.problem))
        return
    keys = ["path"]
    if "frame" in given:
        given["frame"] = _frame(given)
        keys.append("frame")
        held = pd.MultiIndex.from_frame(headers[keys])
        absent = given[given["path"].isin(headers["path"]) & ~pd.MultiIndex.from_frame(given[keys]).isin(held)]
        found.failures += [
            (f"{name}#{frame}", f"no frame {frame} that can be used")
            for name, frame in absent[keys].itertuples(index=False, name=None)
        ]
    both = headers.merge(given, on=keys, how="inner" if "frame" in given else "left", suffixes=("", "_given"))
    _against_headers(found, both, path)
    for name in _IDS:
        if f"{name}_given" in both:
            told = both[f"{name}_given"]
            both[name] = told.where(told.notna() & (told.astype(str) != ""), both[name])
    if "slice_id" in both:  # a row may stand for all slices of its file
        several = both["path"].duplicated(keep=False) & ("frame" not in given)
        both["slice_id"] = both["slice_id"].where(both["slice_id"] != "", both["path"])
        both["slice_id"] = both["slice_id"].where(~several, both["slice_id"] + "#" + both["frame"].astype(str))
    add_arranged(found, both, root, rules, named=True)


def _against_headers(found: Found, both: pd.DataFrame, path: Path) -> None:
    """Notes on what a table says against the headers: other positions, patients parted or joined; the table holds."""
    if "z_mm_given" in both:
        off = both["z_mm_given"] - both["z_mm"]
        odd = both["path"][(off - off.groupby(both["series_id"]).transform("median")).abs() > _APART_MM]
        if len(odd):
            found.notes.append(
                f"{path.name}: z_mm of {count(len(odd), 'slice')} (first {odd.iloc[0]}) is not what the headers say: "
                "the slices stand as in the table"
            )
    if "patient_id_given" in both:
        named = both[
            (both["patient_id_given"] != "") & ~both["patient_id"].isin([*both["study_id"], *both["series_id"]])
        ]
        for one, other, text in (
            ("patient_id", "patient_id_given", "{} patients of {}, but one, {!r}, by the headers"),
            ("patient_id_given", "patient_id", "{} patients by the headers, but one in {}, {!r}"),
        ):
            several = named.groupby(one)[other].nunique()
            found.notes += [text.format(*((n, path.name, who))) for who, n in several[several > 1].items()]


def _join_pictures(found: Found, table: pd.DataFrame, root: Path, rules: InputRules) -> None:
    if "patient_id" not in table or (table["patient_id"] == "").any():
        found.patients_known = False
    if "series_id" not in table:
        if "patient_id" not in table:
            table["patient_id"] = table["path"]
        table["series_id"] = table["path"]  # nothing tells that a patient's pictures are slices of one series
    path, series = table["path"], table["series_id"]
    names = ("series_id", "patient_id", "study_id", "slice_id")
    for name, default in zip(names, (path, series, series, path), strict=True):
        given = table.get(name, default)
        table[name] = given.where(given != "", default)
    told = table["modality"] if "modality" in table else pd.Series("", table.index)
    if (unsaid := told.str.lower().isin(UNKNOWN)).any():
        note_unsaid(found, rules)
    table = table.assign(z_mm=table.get("z_mm", np.nan), modality=told.where(~unsaid, rules.default), frame=0)
    for name, rows in table.groupby("series_id", sort=False):
        wrong = rows["modality"][rows["modality"] != rules.modality] if rules.modality else rows["modality"][:0]
        if len(wrong):
            reason = f"refused: pictures of {wrong.iloc[0]} by the table, but the run has learnt from {rules.modality}"
            found.failures.append((str(name), reason))
            continue
        patients = rows["patient_id"].unique()
        if len(patients) > 1:
            found.failures.append((str(name), f"two patients in one series: {', '.join(patients[:5])}"))
            continue
        if rows["z_mm"].isna().any():
            rows = rows.assign(z_mm=np.nan)  # half an axis misleads: the table's order stands
        rows = rows.sort_values("z_mm", kind="stable").reset_index(drop=True)
        rows = in_band(found, rows, rules.band, tell=False)
        if len(rows):
            ids = (str(patients[0]), str(rows["study_id"].iloc[0]), str(name))
            found.series.append(Series(*ids, root, rows[ROW].reset_index(drop=True)))
