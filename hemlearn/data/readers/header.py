"""What the headers of DICOM and NIfTI files say: ids, position, spacing, kind of image; no pixels are decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.kept import kept_file, load_kept, save_kept
from hemlearn.data.readers import reader_for
from hemlearn.data.readers.slice_header import COLUMNS, Header
from hemlearn.errors import DataError
from hemlearn.progress import run_parallel, track

VERSION = 1  # raised whenever the same file would give another row
_CHUNK = 128  # files per task
_MANY = 1500  # files from which worker processes pay for their start
_NAN = float("nan")
_STRETCHED = 3.0  # row spacing over column spacing, beyond which an axial cut is a reformat of other slices
_KEY = ["path", "size", "mtime_ns", "reader"]
_VECTORS = {"normal": 3, "pixel_mm": 2}


def read_header(path: Path, name: str = "") -> list[Header]:
    """Read the header of one file.

    Args:
        path: A DICOM or NIfTI file.
        name: What ``Header.path`` shall say; "": the path.

    Returns:
        One item per frame, in the file's order; of a NIfTI volume per axial slice from below.

    Raises:
        DataError: The file cannot be read, or is of another kind.
    """
    reader = reader_for(path)
    if reader.name == "nifti":
        return _nifti(path, name or str(path))
    if reader.name != "dicom":
        raise DataError(f"{path}: an image file without a header", remedy="give DICOM or NIfTI files")
    from hemlearn.data.readers.dicom_header import dicom_headers

    return dicom_headers(path, name or str(path))


def _nifti(path: Path, name: str) -> list[Header]:
    from hemlearn.data.readers.nifti import read_geometry

    found = read_geometry(path)
    slices, rows, columns = found.shape
    ratio = max(found.pixel_mm) / min(found.pixel_mm)
    why = (
        ""
        if ratio <= _STRETCHED
        else (f"not axial: voxels of {found.pixel_mm[0]:.2f} x {found.pixel_mm[1]:.2f} mm in the axial plane")
    )
    return [
        Header(
            name,
            frame,
            series_id=name,
            z_mm=found.z_mm + frame * found.spacing_mm,
            normal=found.normal,
            instance_number=frame + 1,
            pixel_mm=found.pixel_mm,
            thickness_mm=found.spacing_mm,
            tilt_deg=found.tilt_deg,
            rows=rows,
            columns=columns,
            description=found.description,
            set_aside=why,
        )
        for frame in range(slices)
    ]


def read_headers(
    paths: Sequence[str],
    root: Path,
    *,
    n_jobs: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Read the headers of many files, in parallel.

    Args:
        paths: Files, POSIX paths relative to ``root``.
        root: Folder of the data set.
        n_jobs: Workers; None: all cores.
        cache_dir: Where headers are kept by path, size, modification time and reader version; None: nowhere.
        progress: Show progress.

    Returns:
        One row per slice, files in the given order: the columns of :class:`Header`, and reason ("" or why the file
        cannot be read at all; such a file has one row).
    """
    out, flat = _stat(paths, root), _flat_columns()
    cache = None if cache_dir is None else kept_file(cache_dir, "headers", root, VERSION)
    known = load_kept(cache, [*_KEY, *flat[1:]])
    readable = out.loc[out["reason"] == "", [*_KEY, "order"]]
    hits = readable.iloc[:0] if known is None else readable.merge(known, on=_KEY, how="inner")
    todo = readable.loc[~readable["order"].isin(hits["order"])]
    names, orders = todo["path"].tolist(), todo["order"].tolist()
    tasks = [(root, names[at : at + _CHUNK], orders[at : at + _CHUNK]) for at in range(0, len(names), _CHUNK)]
    results = run_parallel(_read_files, tasks, n_jobs=n_jobs, processes=len(names) > _MANY)
    length: Callable[[Any], int] = lambda part: part[1]  # noqa: E731
    rows: list[tuple[Any, ...]] = []
    for part, _ in track(results, "Reading headers", len(names), size=length, show=progress and len(names) > 0):
        rows += part
    fresh = pd.DataFrame(rows, columns=["order", "reason", *flat])
    lost = out.loc[out["reason"] != "", ["path", "order", "reason"]]
    lost = lost.merge(pd.DataFrame([_flat(Header(name)) for name in lost["path"].unique()], columns=flat), on="path")
    parts = [part for part in (hits.assign(reason=""), fresh, lost) if len(part)]
    if cache is not None and len(fresh):
        good = fresh.loc[fresh["reason"] == "", ["order", *flat]].merge(out[["order", *_KEY[1:]]], on="order")
        keep = good if known is None else pd.concat([good, known])
        save_kept(cache, keep.drop_duplicates(["path", "frame"])[[*_KEY, *flat[1:]]])
    table = pd.concat(parts, ignore_index=True) if parts else fresh
    return _unflatten(table.sort_values(["order", "frame"], kind="stable").reset_index(drop=True))


def _stat(paths: Sequence[str], root: Path) -> pd.DataFrame:
    base, rows = os.fspath(root), []
    for order, path in enumerate(paths):
        size, mtime, key, reason = 0, 0, "", ""
        try:
            info = os.stat(os.path.join(base, path))  # noqa: PTH116, PTH118 - hundreds of thousands of files
            size, mtime, key = info.st_size, info.st_mtime_ns, reader_for(path).key
        except OSError as error:
            reason = f"cannot be opened: {error.strerror or error}"
        except DataError as error:
            reason = error.problem.removeprefix(f"{path}: ")
        rows.append((order, path, size, mtime, key, reason))
    return pd.DataFrame(rows, columns=["order", *_KEY, "reason"])


def _read_files(root: Path, names: Sequence[str], orders: Sequence[int]) -> tuple[list[tuple[Any, ...]], int]:
    """Return flat rows of some files, and the number of files; runs in a worker."""
    rows: list[tuple[Any, ...]] = []
    for name, order in zip(names, orders, strict=True):
        path = root / name
        try:
            rows += [(order, "", *_flat(header)) for header in read_header(path, name)]
        except DataError as error:
            rows.append((order, error.problem.removeprefix(f"{path}: "), *_flat(Header(name))))
    return rows, len(names)


def _flat_columns() -> list[str]:
    """Columns with one number or text each, as a Parquet file keeps them."""
    return [f"{name}_{axis}" if name in _VECTORS else name for name in COLUMNS for axis in range(_VECTORS.get(name, 1))]


def _flat(header: Header) -> tuple[Any, ...]:
    row: list[Any] = []
    for name in COLUMNS:
        value = getattr(header, name)
        if name in _VECTORS:
            row += [_NAN] * _VECTORS[name] if value is None else list(value)
        else:
            row.append(_NAN if name == "instance_number" and value is None else value)
    return tuple(row)


def _unflatten(table: pd.DataFrame) -> pd.DataFrame:
    whole = {"frame": np.int64, "rows": np.int64, "columns": np.int64, "z_mm": float, "thickness_mm": float}
    out: dict[str, Any] = {}
    for name in COLUMNS:
        if name in _VECTORS:
            values = table[[f"{name}_{axis}" for axis in range(_VECTORS[name])]].to_numpy(dtype=np.float64)
            items = [None if np.isnan(row[0]) else tuple(row.tolist()) for row in values]
            out[name] = pd.Series(items, index=table.index, dtype=object)
        elif name == "instance_number":
            out[name] = table[name].astype(float).astype("Int64")
        else:
            out[name] = table[name].astype(whole.get(name, float if name == "tilt_deg" else str))
    return pd.DataFrame(out | {"reason": table["reason"].astype(str)})
