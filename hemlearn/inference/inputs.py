"""What a path holds for a run to predict: a file, a folder of mixed files, a zip archive or a table of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from hemlearn.data.archives import extract
from hemlearn.data.discover import discover
from hemlearn.data.readers import reader_for
from hemlearn.data.series import usable_headers
from hemlearn.datamodules.dicom import nifti
from hemlearn.errors import DataError
from hemlearn.inference.series import KINDS, Found, Wanted, add_arranged, add_lost, add_pictures
from hemlearn.inference.tables_in import read_table

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
    headers["modality"] = headers["modality"].where(~nifti(headers["path"]), KINDS[wanted.kind])
    add_arranged(found, headers, root, wanted, every=wanted.every, stamp=stamp)
