"""The weighting of MR slices, as far as their headers tell: echo, repetition and inversion time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.kept import kept_file, load_kept, save_kept
from hemlearn.data.readers import NIFTI_SUFFIXES
from hemlearn.errors import DataError
from hemlearn.progress import run_parallel, track

TIMES = {"echo time": "echo_ms", "repetition time": "repetition_ms", "inversion time": "inversion_ms"}
# Keyword in a file of one slice; sequence and keyword in an enhanced file (DICOM PS3.3 C.8.13.5).
_ELEMENTS = {
    "echo_ms": ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    "repetition_ms": ("RepetitionTime", "MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "inversion_ms": ("InversionTime", "MRModifierSequence", "InversionTimes"),
}
_SAME = 1.2  # times of one acquisition agree within a fifth; two contrasts differ by a factor of two or more
_VERSION, _CHUNK, _MANY = 1, 128, 1500
_KEY = ["path", "size", "mtime_ns"]


def read_times(
    paths: Sequence[str], root: Path, *, cache_dir: str | os.PathLike[str] | None, progress: bool = True
) -> pd.DataFrame:
    """Read (0018,0081), (0018,0080) and (0018,0082) of DICOM files.

    Args:
        paths: Files relative to ``root``; NIfTI volumes, which do not tell, have no rows.
        root: Folder of the data set.
        cache_dir: Where the times are kept by path, size and modification time; None: nowhere.
        progress: Show progress.

    Returns:
        path, frame and three times in ms, NaN where the header has none.
    """
    columns = ["frame", *TIMES.values()]
    kinds = {"path": object, "frame": np.int64} | dict.fromkeys(TIMES.values(), float)
    named = [path for path in dict.fromkeys(paths) if not path.lower().endswith(NIFTI_SUFFIXES)]
    if not named:
        return pd.DataFrame(columns=["path", *columns]).astype(kinds)
    stats = [(root / path).stat() for path in named]
    files = pd.DataFrame(
        {"path": named, "size": [item.st_size for item in stats], "mtime_ns": [item.st_mtime_ns for item in stats]}
    )
    cache = None if cache_dir is None else kept_file(cache_dir, "contrasts", root, _VERSION)
    known = load_kept(cache, [*_KEY, *columns])
    hits = pd.DataFrame(columns=[*_KEY, *columns]) if known is None else files.merge(known, on=_KEY)
    todo = [path for path in named if path not in set(hits["path"])]
    tasks = [(root, todo[at : at + _CHUNK]) for at in range(0, len(todo), _CHUNK)]
    results = run_parallel(_read_files, tasks, n_jobs=None, processes=len(todo) > _MANY)
    length: Callable[[Any], int] = lambda part: part[1]  # noqa: E731
    rows: list[tuple[Any, ...]] = []
    for part, _ in track(results, "Reading MR timing", len(todo), size=length, show=progress and len(todo) > 0):
        rows += part
    fresh = pd.DataFrame(rows, columns=["path", *columns]).merge(files, on="path")
    if cache is not None and len(fresh):
        save_kept(cache, (fresh if known is None else pd.concat([known, fresh]))[[*_KEY, *columns]])
    parts = [part for part in (hits, fresh) if len(part)]
    out = pd.concat(parts, ignore_index=True) if parts else fresh
    return out[["path", *columns]].astype(kinds)


def mixed_contrasts(rows: pd.DataFrame, times: pd.DataFrame) -> dict[str, str]:
    """Series whose slices were not taken with one contrast.

    Args:
        rows: Columns path, frame, series_id.
        times: From :func:`read_times`.

    Returns:
        Series id -> what differs, for example ``echo time 12 and 98 ms``; more than two values are given as a range.
    """
    both = rows[["path", "frame", "series_id"]].merge(times, on=["path", "frame"])
    found: dict[str, str] = {}
    for name, group in both.groupby("series_id", sort=False):
        told = []
        for word, column in TIMES.items():
            values = np.unique(group[column].dropna().to_numpy(dtype=np.float64))
            if len(values) and values[-1] > _SAME * values[0]:
                joined = (
                    " and ".join(f"{value:g}" for value in values)
                    if len(values) == 2
                    else (f"{values[0]:g} to {values[-1]:g}")
                )
                told.append(f"{word} {joined} ms")
        if told:
            found[str(name)] = ", ".join(told)
    return found


def _read_files(root: Path, names: Sequence[str]) -> tuple[list[tuple[Any, ...]], int]:
    """Rows of some files, and the number of files; runs in a worker."""
    from hemlearn.data.readers.dicom_file import BROKEN, describe, functional_group, number_of_frames, open_dicom

    tags = ["NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    tags += [plain for plain, _, _ in _ELEMENTS.values()]
    rows: list[tuple[Any, ...]] = []
    for name in names:
        data = open_dicom(root / name, pixels=False, tags=tags)
        try:
            for frame in range(number_of_frames(data)):
                values = []
                for plain, group, keyword in _ELEMENTS.values():
                    inner = functional_group(data, frame, group)
                    given = data.get(plain, None) if inner is None else inner.get(keyword, None)
                    values.append(_number(given))
                rows.append((name, frame, *values))
        except BROKEN as error:
            raise DataError(
                f"{root / name}: damaged DICOM file: {describe(error)}", remedy="copy or export the file again"
            ) from error
    return rows, len(names)


def _number(value: Any) -> float:
    """The value in ms; NaN where there is none. Scanners without inversion pulse may write 0."""
    if value in (None, ""):
        return float("nan")
    first = value if isinstance(value, str | int | float) else next(iter(value), None)
    found = float("nan") if first in (None, "") else float(str(first))
    return found if found > 0 else float("nan")
