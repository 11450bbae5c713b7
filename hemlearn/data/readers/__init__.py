"""Files to pixels: one reader per kind of file, found by the end of its name.

What the pixels mean depends on the reader and, for DICOM and NIfTI, on the modality: HU for CT, signal for MR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hemlearn.data.readers.image import read_image
from hemlearn.util.errors import DataError

Unit = Literal["display", "HU", "signal"]
DTYPES: dict[str, str] = {"display": "|u1", "HU": "<i2", "signal": "<i2"}  # as stored; little-endian everywhere
AIR: dict[str, int] = {"display": 0, "HU": -1000, "signal": 0}  # what surrounds the head, used for padding
_DISPLAY_WINDOW = (40.0, 80.0)  # brain window, centre and width in HU
_DISPLAY_PERCENTILES = (1.0, 99.0)  # of the MR signal that is not 0


@dataclass(frozen=True)
class Reader:
    """How one kind of file is decoded.

    Args:
        name: Short name, part of cache keys.
        version: To be raised whenever the same file would give other pixels, so that old caches are not read.
        unit: ``display`` (uint8 grey as on a screen), ``HU`` (int16) or ``signal`` (int16, MR).
        read: ``read(path, frame)`` returns one slice (H, W); raises DataError for a file it cannot take. Where
            there are ``units``, ``read(path, frame, modality)`` checks that the file is of that modality.
        units: Unit by modality (CT, MR, OT) where it is not ``unit`` for all of them.
    """

    name: str
    version: int
    unit: Unit
    read: Callable[..., NDArray[Any]]
    units: Mapping[str, Unit] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name and version, as used in cache keys."""
        return f"{self.name}:{self.version}"

    def unit_of(self, modality: str) -> Unit:
        """Return the unit of a slice of this modality (CT, MR, OT)."""
        return self.units.get(modality, self.unit)

    def decode(self, path: Path, frame: int, modality: str) -> NDArray[Any]:
        """Return one slice (H, W) in :meth:`unit_of` ``modality``.

        Raises:
            DataError: The file cannot be taken, or is of another modality.
        """
        return self.read(path, frame, modality) if self.units else self.read(path, frame)


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

    A name without an ending, or with a number for one (``IM000001``, ``1.2.840.10008.7``), is that of a DICOM
    file on scanners' media.

    Raises:
        DataError: No reader takes such a name.
    """
    name = Path(path).name.lower()
    endings = [suffix for suffix in _READERS if name.endswith(suffix)]
    if not endings and is_bare(name):
        return _READERS[DICOM_SUFFIXES[0]]
    if not endings:
        raise DataError(
            f"{path}: unknown kind of file", remedy=f"use files that end with one of {', '.join(suffixes())}"
        )
    return _READERS[max(endings, key=len)]


def is_bare(name: str) -> bool:
    """Tell whether a file name has no ending, or a number for one, as DICOM files on media have."""
    suffix = Path(name).suffix
    return suffix[1:].isdigit() if suffix else not name.startswith(".")


def to_display(pixels: NDArray[Any], unit: str) -> NDArray[np.uint8]:
    """Return a slice as uint8 grey.

    ``display`` is kept, ``HU`` is shown through the brain window (centre 40, width 80), ``signal`` between the 1st
    and 99th percentile of what is not 0.
    """
    if unit == "display":
        return np.asarray(pixels, dtype=np.uint8)
    centre, width = _DISPLAY_WINDOW
    low, span = centre - width / 2, width
    if unit == "signal":
        used = pixels[pixels != 0]
        low, high = np.percentile(used, _DISPLAY_PERCENTILES).tolist() if used.size else (0.0, 1.0)
        span = max(high - low, 1.0)
    scaled = (pixels.astype(np.float32) - low) * (255.0 / span)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def _read_image(path: Path, frame: int) -> NDArray[np.uint8]:
    if frame != 0:
        raise DataError(
            f"{path}: no frame {frame}: an image file holds one slice", remedy="set its frame to 0 in the table"
        )
    return read_image(path)


register(
    Reader("image", 1, "display", _read_image), (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
)


def _read_dicom(path: Path, frame: int, modality: str = "") -> NDArray[np.int16]:
    from hemlearn.data.readers.dicom import read_dicom  # pydicom loads only where there are DICOM files

    return read_dicom(path, frame, modality)


def _read_nifti(path: Path, frame: int, modality: str = "") -> NDArray[np.int16]:
    from hemlearn.data.readers.nifti import read_nifti

    return read_nifti(path, frame, modality)


_BY_MODALITY: dict[str, Unit] = {"CT": "HU", "MR": "signal", "OT": "signal"}
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
register(Reader("dicom", 1, "HU", _read_dicom, _BY_MODALITY), DICOM_SUFFIXES)
register(Reader("nifti", 1, "HU", _read_nifti, _BY_MODALITY), NIFTI_SUFFIXES)
