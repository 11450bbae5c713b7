"""Files with headers (DICOM, NIfTI) to usable slices with ids of patient, study and series."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.data.scan import read_headers
from hemlearn.data.series_parts import SAME_MM, true_series
from hemlearn.util.errors import DataError, count, printable

logger = logging.getLogger(__name__)

# --- Headers sorted into series, and each series into a stack of slices.


_ANGLE_DEG = 5.0  # normals that differ by more are two orientations


@dataclass(frozen=True)
class Stack:
    """The slices of one series.

    Args:
        series_id: Its id.
        patients: Every patient id found in it, in order of appearance.
        rows: Rows of the headers, in the order of the stack.
        z_mm: Their positions along the slice normal, mm, rising; all NaN where any is unknown.
        aside: Rows that lie otherwise than most.
        missing: Number of slices without a position, or that all have the same one.
        order: What ``rows`` are ordered by: ``position``, ``instance number`` or ``file name``.
    """

    series_id: str
    patients: list[str]
    rows: NDArray[np.int64]
    z_mm: NDArray[np.float64]
    aside: NDArray[np.int64]
    missing: int
    order: str

    @cached_property
    def repeats(self) -> NDArray[np.bool_]:
        """Slices at a position that an earlier one has; all False where positions are unknown."""
        out = np.zeros(len(self.rows), dtype=bool)
        if self.order == "position":
            out[1:] = np.diff(self.z_mm) <= SAME_MM
        return out

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """Distances between neighbouring positions, mm; empty where positions are unknown."""
        if self.order != "position":
            return np.empty(0)
        return np.asarray(np.diff(self.z_mm[~self.repeats]), dtype=np.float64)


class Stacks:
    """All series of a table of headers, as arrays; iterating gives a :class:`Stack` each, in order of appearance.

    Args:
        headers: One row per slice; series_id and patient_id are needed, other columns may be absent.
    """

    def __init__(self, headers: pd.DataFrame) -> None:
        self.headers = headers
        self._arrays: dict[str, NDArray[np.float64]] = {}
        self._texts: dict[str, NDArray[np.object_]] = {}
        self.codes, self.names = pd.factorize(headers["series_id"].astype(str), sort=False)
        self.normals = self._vectors("normal", 3)
        self._arrays["pixel"] = self._vectors("pixel_mm", 2).mean(axis=1)  # readers give square ones
        self._patients = headers["patient_id"].astype(str).to_numpy(dtype=object)

    def __iter__(self) -> Iterator[Stack]:
        order = np.argsort(self.codes, kind="stable")
        bounds = np.searchsorted(self.codes[order], np.arange(len(self.names) + 1))
        for code, name in enumerate(self.names):
            yield self._stack(str(name), order[bounds[code] : bounds[code + 1]].astype(np.int64))

    def _stack(self, name: str, rows: NDArray[np.int64]) -> Stack:
        patients = list(dict.fromkeys(self._patients[rows]))
        other = _minority(self.normals[rows])
        aside, rows = rows[other], rows[~other]
        z_mm, instance = self.array("z_mm")[rows], self.array("instance_number")[rows]
        missing = int(np.isnan(z_mm).sum())
        numbered = not np.isnan(instance).any() and len(np.unique(instance)) == len(instance)
        if numbered and len(rows) > 2 and np.ptp(z_mm) <= SAME_MM:
            missing = len(rows)  # positions that some archive has lost; no scanner takes as many slices at one place
        if not missing:
            order = np.lexsort((np.nan_to_num(instance), z_mm))
            return Stack(name, patients, rows[order], z_mm[order], aside, 0, "position")
        unknown = np.full(len(rows), np.nan)
        if numbered:
            return Stack(name, patients, rows[np.argsort(instance)], unknown, aside, missing, "instance number")
        order = np.array(sorted(range(len(rows)), key=lambda k: natural(self.item(int(rows[k])))), dtype=np.int64)
        return Stack(name, patients, rows[order], unknown, aside, missing, "file name")

    def item(self, row: int) -> str:
        """Path of a slice, with its frame where that is not the first."""
        path = str(self.strings("path")[row])
        frame = self.array("frame")[row]
        return path if np.isnan(frame) or frame == 0 else f"{path}#{int(frame)}"

    def array(self, column: str) -> NDArray[np.float64]:
        """A column as numbers; NaN where it is absent or unknown."""
        if column not in self._arrays:
            given = self.headers.get(column, pd.Series(np.nan, index=self.headers.index))
            self._arrays[column] = pd.to_numeric(given, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        return self._arrays[column]

    def strings(self, column: str) -> NDArray[np.object_]:
        """A column as text; "" where it is absent."""
        if column not in self._texts:
            given = self.headers.get(column, pd.Series("", index=self.headers.index, dtype=object))
            self._texts[column] = given.fillna("").astype(str).to_numpy(dtype=object)
        return self._texts[column]

    def numbers(self, column: str, stack: Stack) -> NDArray[np.float64]:
        """The known values of a column in one stack."""
        values = self.array(column)[stack.rows]
        return np.asarray(values[~np.isnan(values)], dtype=np.float64)

    def middle(self, column: str, stack: Stack) -> float:
        """Median of a column in one stack; NaN: unknown."""
        values = self.numbers(column, stack)
        return float(np.median(values)) if len(values) else float("nan")

    def text(self, column: str, stack: Stack) -> str:
        """The different values of a text column in one stack, joined by `` / ``."""
        return " / ".join(dict.fromkeys(value for value in self.strings(column)[stack.rows] if value))

    def _vectors(self, column: str, width: int) -> NDArray[np.float64]:
        out = np.full((len(self.headers), width), np.nan)
        if column in self.headers:
            for row, value in enumerate(self.headers[column].to_numpy(dtype=object)):
                if isinstance(value, tuple | list | np.ndarray) and len(value) == width:
                    out[row] = value
        return out


def _minority(normals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Slices whose normal lies away from that of most; slices without a normal count with the most."""
    known = ~np.isnan(normals).any(axis=1)
    out = np.zeros(len(normals), dtype=bool)
    near = np.cos(np.deg2rad(_ANGLE_DEG))
    best = out
    rest = known.copy()
    while rest.sum() > best.sum():  # a group larger than the best so far may still be among the rest
        alike = known & (normals @ normals[int(rest.argmax())] >= near)
        alike[int(rest.argmax())] = True
        if alike.sum() > best.sum():
            best = alike
        rest &= ~alike
    if best.any():
        out = known & ~best
    return out


def natural(text: str) -> list[Any]:
    """Sort key under which slice2 stands before slice10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def usable_headers(
    paths: Sequence[str],
    root: Path,
    *,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool = True,
    n_jobs: int | None = None,
    nifti: str = "OT",
    whole: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read headers and keep what is an axial image.

    De-identified files may lack ids. Without a SeriesInstanceUID (0020,000E) the files of one folder are one series,
    without a StudyInstanceUID (0020,000D) the series is its own study, and without a PatientID (0010,0020) the study
    stands for the patient: better one patient taken for two studies than two patients taken for one. Series ids that
    do not stand for one stack are put right (:func:`hemlearn.data.series_parts.true_series`).

    Args:
        paths: Files, relative to ``root``, POSIX.
        root: Folder of the data set.
        cache_dir: Where headers are kept between calls; None: nowhere.
        progress: Show progress.
        n_jobs: Workers; None: all cores.
        nifti: Modality of NIfTI volumes (CT, MR or OT), which do not tell.
        whole: Every usable slice will be used, so that it may be decoded in the same opening; False for a data set
            that chooses among them by their headers.

    Returns:
        The usable rows (columns of ``readers.headers.Header``, ids filled in), and a table (item, reason) of the
        others.

    Raises:
        DataError: There is no file, or none that can be used; the commonest reason is told.
    """
    if not paths:
        raise DataError(f"{root}: no DICOM or NIfTI file", remedy="check data.root")
    headers = read_headers(paths, root, cache_dir=cache_dir, progress=progress, n_jobs=n_jobs, nifti=nifti, whole=whole)
    why = headers["reason"].where(headers["reason"] != "", headers["set_aside"])
    out = headers.loc[why == ""].reset_index(drop=True)
    lost = pd.DataFrame({"item": headers["path"].map(printable), "reason": why}).loc[why != ""].drop_duplicates()
    if out.empty:
        reasons = lost["reason"].value_counts()
        raise DataError(
            f"{root}: none of {count(len(paths), 'file')} is an axial image that can be read; "
            f"most often: {reasons.index[0]} ({count(reasons.iloc[0], 'time')}, first {lost['item'].iloc[0]!r})",
            remedy="check data.root and that the folder holds the images of this layout",
        )
    folder = out["path"].map(lambda path: f"folder:{PurePosixPath(path).parent}")
    series = out["series_id"].where(out["series_id"] != "", folder)
    study = out["study_id"].where(out["study_id"] != "", series)
    patient = out["patient_id"].where(out["patient_id"] != "", study)
    out, strange = true_series(out.assign(series_id=series, study_id=study, patient_id=patient))
    return out, pd.concat([lost, strange], ignore_index=True)


# --- The weighting of MR slices, as far as their headers tell: echo, repetition and inversion time.


TIMES = {"echo time": "echo_ms", "repetition time": "repetition_ms", "inversion time": "inversion_ms"}
_SAME = 1.2  # times of one acquisition agree within a fifth; two contrasts differ by a factor of two or more


def mixed_contrasts(headers: pd.DataFrame) -> dict[str, str]:
    """Series whose slices were not taken with one contrast.

    Args:
        headers: One row per slice, columns of ``Header``.

    Returns:
        Series id -> what differs, for example ``echo time 12 and 98 ms``; more than two values are given as a range.
    """
    found: dict[str, str] = {}
    for name, group in headers.groupby("series_id", sort=False):
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
