"""What is known of every image file: content hash, perceptual hash and size, kept between runs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.perceptual import VERSION, perceptual_hash
from hemlearn.data.readers import reader_for, to_display
from hemlearn.errors import DataError
from hemlearn.progress import run_parallel, track

LOGGER = logging.getLogger(__name__)
_KEY = ["path", "frame", "size", "mtime_ns", "reader"]
_VALUES = ["content", "phash", "height", "width"]
_CHUNK = 64  # files per task
_MANY = 2000  # files from which worker processes pay for their start


def file_hash(path: Path) -> str:
    """Return the 128-bit BLAKE2b hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def fingerprints(
    table: pd.DataFrame,
    root: Path,
    *,
    n_jobs: int | None,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> pd.DataFrame:
    """Open every file once, decode it and hash it.

    Args:
        table: Columns path (relative to ``root``, "": no file) and frame.
        root: Folder of the data set.
        n_jobs: Workers; None: all cores.
        cache_dir: Where results are kept by path, size, modification time and reader version; None: nowhere.
        progress: Show progress.

    Returns:
        Indexed like ``table``: content (hash of the bytes), phash, height, width (pixels; 0 where unusable) and
        reason ("" or why the file cannot be used).
    """
    out = _stat(table, root)
    cache = None if cache_dir is None else _cache_file(Path(cache_dir), root)
    known = _load(cache)
    merged = out[_KEY].merge(known, on=_KEY, how="left") if known is not None else out[_KEY].assign(content=None)
    hit = merged["content"].notna().to_numpy()
    for name in _VALUES:
        out[name] = merged[name].to_numpy() if known is not None else None
    todo = np.flatnonzero((out["reason"] == "").to_numpy() & ~hit)
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    paths, frames = out["path"].to_numpy(dtype=object), out["frame"].to_numpy()
    tasks = [(root, chunk.tolist(), paths[chunk].tolist(), frames[chunk].tolist()) for chunk in chunks]
    results = run_parallel(_open_files, tasks, n_jobs=n_jobs, processes=len(todo) > _MANY)
    found: list[tuple[Any, ...]] = []
    for part in track(results, "Reading images", len(todo), size=len, show=progress and len(todo) > 0):
        found += part
    if found:
        fresh = pd.DataFrame(found, columns=["row", *_VALUES, "reason"]).set_index("row")
        out = out.astype(dict.fromkeys([*_VALUES, "reason"], object))
        for name in (*_VALUES, "reason"):
            out.loc[fresh.index, name] = fresh[name].astype(object)
    out = out.fillna({"content": "", "phash": "", "height": 0, "width": 0})
    out = out.astype({"height": np.int64, "width": np.int64, "content": str, "phash": str, "reason": str})
    if cache is not None and found:
        _save(cache, out.loc[out["reason"] == "", _KEY + _VALUES], known)
    return out[[*_VALUES, "reason"]]


def _stat(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Return path, frame, size, modification time, reader and reason of every row; one stat call per file."""
    found: dict[str, tuple[int, int, str, str]] = {}
    base = os.fspath(root)
    for path in table["path"].unique():
        if not path:
            found[path] = (0, 0, "", "label without image: the row names no file")
            continue
        try:
            info = os.stat(os.path.join(base, path))  # noqa: PTH116, PTH118 - hundreds of thousands of files
            found[path] = (info.st_size, info.st_mtime_ns, reader_for(path).key, "")
        except FileNotFoundError:
            found[path] = (0, 0, "", f"label without image: {path} does not exist")
        except OSError as error:
            found[path] = (0, 0, "", f"cannot be opened: {error.strerror or error}")
        except DataError as error:
            found[path] = (0, 0, "", error.problem.removeprefix(f"{path}: "))
    facts = pd.DataFrame.from_dict(found, orient="index", columns=["size", "mtime_ns", "reader", "reason"])
    joined = facts.loc[table["path"]].set_axis(table.index, axis=0)
    return pd.concat([table[["path", "frame"]], joined], axis=1)


def _open_files(
    root: Path, rows: Sequence[int], paths: Sequence[str], frames: Sequence[int]
) -> list[tuple[int, str, str, int, int, str]]:
    """Return (row, content, phash, height, width, reason) of some files; runs in a worker."""
    out = []
    last, content = "", ""
    for row, name, frame in zip(rows, paths, frames, strict=True):
        path = root / name
        try:
            reader = reader_for(path)
            pixels = reader.read(path, frame)
            if name != last:  # slices of one volume file share its hash
                last, content = name, file_hash(path)
        except DataError as error:
            out.append((row, "", "", 0, 0, error.problem.removeprefix(f"{path}: ")))
            continue
        height, width = pixels.shape
        out.append((row, content, perceptual_hash(to_display(pixels, reader.unit)), height, width, ""))
    return out


def _cache_file(folder: Path, root: Path) -> Path:
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return folder / "index" / f"{place}-v{VERSION}.parquet"


def _load(cache: Path | None) -> pd.DataFrame | None:
    if cache is None or not cache.is_file():
        return None
    try:
        known = pd.read_parquet(cache)[_KEY + _VALUES]
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        LOGGER.warning("%s cannot be used and is made again: %s", cache, error)
        return None
    return known


def _save(cache: Path, fresh: pd.DataFrame, known: pd.DataFrame | None) -> None:
    keep = fresh if known is None else pd.concat([fresh, known])
    keep = keep.drop_duplicates(["path", "frame"])
    part = cache.with_name(f".{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        keep.to_parquet(part, index=False)
        part.replace(cache)
    except OSError as error:  # the run can go on; the next one reads the files again
        LOGGER.warning("%s cannot be written, so the next run opens every file again: %s", cache, error)
        part.unlink(missing_ok=True)
