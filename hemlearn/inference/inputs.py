"""What a path holds for a run to predict: a file, a folder of mixed files, a zip archive or a table of files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.data.archives import extract
from hemlearn.data.discover import discover
from hemlearn.data.geometry import arrange
from hemlearn.data.readers import reader_for
from hemlearn.data.readers.header import read_headers
from hemlearn.data.series import usable_headers
from hemlearn.datamodules.dicom import nifti, slice_ids
from hemlearn.errors import DataError
from hemlearn.inference.choice import choose
from hemlearn.schema import GeometryConfig

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
_ROW = ["slice_id", "path", "frame", "z_mm", "modality"]
_KIND = {"ct": "CT", "mr": "MR"}


@dataclass(frozen=True)
class Series:
    """The slices that are predicted together.

    Args:
        patient_id: Whose they are.
        study_id: Their study.
        series_id: Their series.
        root: Folder that ``path`` starts from.
        rows: One row per slice, in order: slice_id, path, frame, z_mm (mm; NaN: unknown), modality.
        stamp: What tells that the files are the same as in an earlier call; "": their sizes and times do.
        pixel_mm: Row and column spacing; None: unknown.
    """

    patient_id: str
    study_id: str
    series_id: str
    root: Path
    rows: pd.DataFrame
    stamp: str = ""
    pixel_mm: tuple[float, float] | None = None


@dataclass
class Found:
    """What there is to predict, and what is not predicted.

    Args:
        series: In the order they were found.
        failures: (item, reason): files and series that should have been predicted and cannot be.
        left_out: (item, reason): files and series that are no head slices, or not the chosen ones.
        remarks: What a reader should know: patients, chosen series and why.
        chosen: Series id -> why it is the one of its study that is predicted.
        problems: Series id -> what is odd about its slices (gaps, tilt ...); "" where nothing is.
    """

    series: list[Series] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What the run asks of its input.

    Args:
        kind: ``ct`` or ``mr``.
        geometry: What it did about gaps, tilt and repeated positions in training.
        spacing_mm: Median slice distance of its own data, mm; NaN: unknown.
        every: Predict every series of a study, not the chosen one.
        cache_dir: Where headers are kept.
    """

    kind: str
    geometry: GeometryConfig
    spacing_mm: float
    every: bool
    cache_dir: Path


def find_input(path: Path, wanted: Wanted, scratch: Path) -> Found:
    """Find the series at a path.

    Args:
        path: DICOM, NIfTI or picture file, folder, zip archive, or table (CSV, Parquet) of files.
        wanted: What the run asks for.
        scratch: Folder that does not exist yet, where an archive is unpacked.

    Raises:
        DataError: There is nothing that can be predicted; the reason names the commonest fault.
    """
    from hemlearn.inference.tables_in import read_table  # needs this module's classes

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
    pictures = [name for name, _ in listed.left_out
                if name.lower().endswith(PICTURES) and not Path(name).name.startswith(".")]  # fmt: skip
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


def add_pictures(found: Found, names: list[str], root: Path) -> None:
    """Every picture is a series of one slice."""
    for name in names:
        rows = pd.DataFrame({"slice_id": [name], "path": [name], "frame": [0], "z_mm": [np.nan], "modality": ["CT"]})
        found.series.append(Series(name, name, name, root, rows))


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
    headers["modality"] = headers["modality"].where(~nifti(headers["path"]), _KIND[wanted.kind])
    add_arranged(found, headers, root, wanted, every=wanted.every, stamp=stamp)


def add_lost(found: Found, lost: pd.DataFrame, root: Path) -> None:
    """Tell files that cannot be read from those that are no slices."""
    names = list(dict.fromkeys(lost["item"]))
    broken = read_headers(names, root, progress=False) if names else None
    unreadable = set() if broken is None else set(broken.loc[broken["reason"] != "", "path"])
    for item, reason in lost[["item", "reason"]].itertuples(index=False):
        (found.failures if item in unreadable else found.left_out).append((item, reason))


def add_arranged(found: Found, headers: pd.DataFrame, root: Path, wanted: Wanted, *, every: bool, stamp: str = "",
                 named: bool = False) -> None:  # fmt: skip
    """Add the series of a table of headers (columns of ``readers.header.Header``).

    A series of another modality is left out where it was merely found, and a failure where it was ``named``.
    """
    kind = _KIND[wanted.kind]
    other = headers["modality"] != kind
    for name, rows in headers[other].groupby("series_id", sort=False):
        (found.failures if named else found.left_out).append(
            (str(name), f"refused: {len(rows)} slices of modality {rows['modality'].iloc[0]} (first "
                        f"{rows['path'].iloc[0]}), but the run has learnt from {kind}"))  # fmt: skip
    headers = headers[~other].reset_index(drop=True)
    if headers.empty:
        return
    geometry = arrange(headers, wanted.geometry)
    for item, reason in geometry.skipped[["item", "reason"]].itertuples(index=False):
        (found.failures if reason.startswith("two patients") else found.left_out).append((item, reason))
    table = geometry.rows
    if table.empty:
        return
    if "slice_id" not in table:
        table["slice_id"] = slice_ids(table)
    groups = dict(list(table.groupby("series_id", sort=False)))
    taken = list(groups)
    if not every:
        choices = choose(geometry.series, table, wanted.spacing_mm)
        taken = [choice.series_id for choice in choices]
        for choice in choices:
            found.left_out += choice.others
            found.chosen[choice.series_id] = choice.reason
            if choice.others or len(choices) <= 3:
                found.remarks.append(f"patient {choice.patient_id}: series {choice.series_id}, {choice.reason}")
    problems = geometry.series.set_index("series_id")["problems"]
    for name in taken:
        rows = groups[name]
        found.problems[str(name)] = problems[name]
        if problems[name] and len(taken) <= 3:
            found.remarks.append(f"series {name}: {problems[name]}")
        first = rows.iloc[0]
        found.series.append(Series(str(first["patient_id"]), str(first["study_id"]), str(name), root,
                                   rows[_ROW].reset_index(drop=True), stamp, first.get("pixel_mm")))  # fmt: skip
