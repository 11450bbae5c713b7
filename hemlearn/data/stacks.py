"""Headers sorted into series, and each series into a stack of slices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SAME_MM = 0.01  # positions this close are one position; no scanner steps less
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
        missing: Number of slices without a position.
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
        # Square pixels throughout: one number tells the size; oblong ones are told by their mean.
        self._arrays["pixel"] = self._vectors("pixel_mm", 2).mean(axis=1)
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
        if not missing:
            order = np.lexsort((np.nan_to_num(instance), z_mm))
            return Stack(name, patients, rows[order], z_mm[order], aside, 0, "position")
        unknown = np.full(len(rows), np.nan)
        if not np.isnan(instance).any() and len(np.unique(instance)) == len(instance):
            return Stack(name, patients, rows[np.argsort(instance)], unknown, aside, missing, "instance number")
        order = np.array(sorted(range(len(rows)), key=lambda k: _natural(self.item(int(rows[k])))), dtype=np.int64)
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


def _natural(text: str) -> list[Any]:
    """Sort key under which slice2 stands before slice10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
