"""Files to pixels: one reader per kind of file, found by the end of its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hemlearn.data.readers.image import read_image
from hemlearn.errors import DataError

Unit = Literal["display", "HU"]
DTYPES: dict[str, str] = {"display": "|u1", "HU": "<i2"}  # as stored; little-endian on every machine
AIR: dict[str, int] = {"display": 0, "HU": -1000}  # what surrounds the head, used for padding
_DISPLAY_WINDOW = (40.0, 80.0)  # brain window, centre and width in HU


@dataclass(frozen=True)
class Reader:
    """How one kind of file is decoded.

    Args:
        name: Short name, part of cache keys.
        version: To be raised whenever the same file would give other pixels, so that old caches are not read.
        unit: ``display`` (uint8 grey as on a screen) or ``HU`` (int16).
        read: ``read(path, frame)`` returns one slice (H, W); raises DataError for a file it cannot take.
    """

    name: str
    version: int
    unit: Unit
    read: Callable[[Path, int], NDArray[Any]]

    @property
    def key(self) -> str:
        """Name and version, as used in cache keys."""
        return f"{self.name}:{self.version}"


_READERS: dict[str, Reader] = {}


def register(reader: Reader, suffixes: Sequence[str]) -> None:
    """Let ``reader`` decode files whose names end with one of ``suffixes`` (lower case, with the dot)."""
    for suffix in suffixes:
        _READERS[suffix] = reader


def suffixes() -> tuple[str, ...]:
    """Return the file endings that can be read."""
    return tuple(sorted(_READERS))


def reader_for(path: str | Path) -> Reader:
    """Return the reader of a file, by the end of its name; the longest ending wins (``.nii.gz``).

    Raises:
        DataError: No reader takes such a name.
    """
    name = Path(path).name.lower()
    endings = [suffix for suffix in _READERS if name.endswith(suffix)]
    if not endings:
        raise DataError(
            f"{path}: unknown kind of file", remedy=f"use files that end with one of {', '.join(suffixes())}"
        )
    return _READERS[max(endings, key=len)]


def to_display(pixels: NDArray[Any], unit: str) -> NDArray[np.uint8]:
    """Return a slice as uint8 grey: itself, or HU through the brain window (centre 40, width 80)."""
    if unit == "display":
        return np.asarray(pixels, dtype=np.uint8)
    centre, width = _DISPLAY_WINDOW
    scaled = (pixels.astype(np.float32) - (centre - width / 2)) * (255.0 / width)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def _read_image(path: Path, frame: int) -> NDArray[np.uint8]:
    if frame != 0:
        raise DataError(
            f"{path}: no frame {frame}: an image file holds one slice", remedy="set its frame to 0 in the table"
        )
    return read_image(path)


register(
    Reader("image", 1, "display", _read_image),
    (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"),
)
