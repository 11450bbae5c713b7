"""Files to pixels: one reader per kind of file, found by the end of its name.

What the pixels mean depends on the reader and, for DICOM and NIfTI, on the modality: HU for CT, signal for MR. A
:class:`SliceFile` is one file opened once: hash, headers, facts and pixels come from the same bytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hemlearn.data.readers.image import image_encoding, read_image
from hemlearn.util.errors import DataError
from hemlearn.util.files import file_stamp, special_file

if TYPE_CHECKING:
    from hemlearn.data.readers.headers import Header

Unit = Literal["display", "HU", "signal"]
DTYPES: dict[str, str] = {"display": "|u1", "HU": "<i2", "signal": "<i2"}  # as stored; little-endian everywhere
AIR: dict[str, int] = {"display": 0, "HU": -1000, "signal": 0}  # what surrounds the head, used for padding
_DISPLAY_WINDOW = (40.0, 80.0)  # brain window, centre and width in HU
_DISPLAY_PERCENTILES = (1.0, 99.0)  # of the MR signal that is not 0


class FileFacts(NamedTuple):
    """What a file tells of itself without its pixels; "" and NaN: unknown.

    Args:
        encoding: For example ``PNG RGBA``, ``MONOCHROME2 12 bit unsigned``, ``NIfTI int16``.
        manufacturer: DICOM (0008,0070).
        kernel: DICOM (0018,1210).
        thickness_mm: DICOM (0018,0050); for NIfTI the slice spacing.
        pixel_mm: Row spacing.
        tilt_deg: DICOM (0018,1120); for NIfTI the angle between slice normal and body axis.
    """

    encoding: str = ""
    manufacturer: str = ""
    kernel: str = ""
    thickness_mm: float = float("nan")
    pixel_mm: float = float("nan")
    tilt_deg: float = float("nan")


class SliceFile:
    """One file, opened once.

    Args:
        path: The file.
        reader: How it is decoded.
        raw: Its bytes; None: they were not or could not be read, and the header is read from the path.
    """

    def __init__(self, path: Path, reader: Reader, raw: bytes | None) -> None:
        self.path = path
        self.reader = reader
        self.raw = raw

    @cached_property
    def content(self) -> str:
        """128-bit BLAKE2b hash of the file's bytes, hexadecimal."""
        return hashlib.blake2b(self.raw or b"", digest_size=16).hexdigest()

    def headers(self, name: str) -> list[Header]:
        """One item per slice, ``name`` as their path; a file without a header is one slice of which nothing is known.

        Raises:
            DataError: The header cannot be read.
        """
        raise DataError(f"{self.path}: an image file without a header", remedy="give DICOM or NIfTI files")

    def facts(self) -> FileFacts:
        """What the file tells of itself.

        Raises:
            DataError: It cannot be read.
        """
        return FileFacts()

    def decode(self, frame: int, modality: str) -> NDArray[Any]:
        """One slice (H, W), see :meth:`Reader.decode`."""
        assert self.reader.read is not None
        return self.reader.read(self.path, frame)


class _ImageFile(SliceFile):
    def facts(self) -> FileFacts:
        return FileFacts(image_encoding(self.path, self.raw))

    def decode(self, frame: int, modality: str) -> NDArray[Any]:
        if frame != 0:
            raise DataError(
                f"{self.path}: no frame {frame}: an image file holds one slice",
                remedy="set its frame to 0 in the table",
            )
        return read_image(self.path, self.raw)


@dataclass(frozen=True)
class Reader:
    """How one kind of file is decoded.

    Args:
        name: Short name, part of cache keys.
        version: To be raised whenever the same file would give other pixels, so that old caches are not read.
        unit: ``display`` (uint8 grey as on a screen), ``HU`` (int16) or ``signal`` (int16, MR).
        read: ``read(path, frame)`` returns one slice (H, W); raises DataError for a file it cannot take. Not needed
            with a ``file`` of its own.
        units: Unit by modality (CT, MR, OT) where it is not ``unit`` for all of them.
        file: ``file(path, reader, raw)`` makes the :class:`SliceFile` that reads everything in one opening.
        largest: Bytes of a file that is opened at most.
    """

    name: str
    version: int
    unit: Unit
    read: Callable[[Path, int], NDArray[Any]] | None = None
    units: Mapping[str, Unit] = field(default_factory=dict)
    file: Callable[[Path, Reader, bytes | None], SliceFile] = SliceFile
    largest: int = 2 << 30

    @property
    def key(self) -> str:
        """Name and version, as used in cache keys."""
        return f"{self.name}:{self.version}"

    def too_large(self, size: int) -> str:
        """Why a file of ``size`` bytes is not opened; "" where it is."""
        return f"{size} bytes: too large for one {self.name} file of a head" if size > self.largest else ""

    def unit_of(self, modality: str) -> Unit:
        """Return the unit of a slice of this modality (CT, MR, OT)."""
        return self.units.get(modality, self.unit)

    def open(self, path: Path, *, pixels: bool = True) -> SliceFile:
        """Open a file once for everything that is asked of it; without ``pixels`` only its header is read.

        A file that cannot be opened is told by whatever is asked first.
        """
        raw = None
        if pixels:
            try:
                raw = path.read_bytes()
            except OSError:
                raw = None
        return self.file(path, self, raw)

    def decode(self, path: Path, frame: int, modality: str, opened: SliceFile | None = None) -> NDArray[Any]:
        """Return one slice (H, W) in :meth:`unit_of` ``modality``.

        Args:
            path: The file.
            frame: Index of the slice in it.
            modality: CT, MR or OT.
            opened: The file where it is open already.

        Raises:
            DataError: The file cannot be taken, or is of another modality.
        """
        return (self.file(path, self, None) if opened is None else opened).decode(frame, modality)


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
    file on scanners' media. A file with an ending that nobody takes is one where its content says so.

    Raises:
        DataError: No reader takes such a file.
    """
    name = Path(path).name.lower()
    endings = [suffix for suffix in _READERS if name.endswith(suffix)]
    if endings:
        return _READERS[max(endings, key=len)]
    if is_bare(name) or is_dicom(first_bytes(path)):
        return _READERS[DICOM_SUFFIXES[0]]
    raise DataError(f"{path}: unknown kind of file", remedy=f"use files that end with one of {', '.join(suffixes())}")


def kind_of(name: str, head: bytes = b"") -> str:
    """Name of the reader that takes a file: ``image``, ``dicom``, ``nifti`` or a plug-in's; "": none.

    Args:
        name: The file; a known ending decides (see :func:`undecided`).
        head: Its first 132 bytes, which decide for every other name.
    """
    last = name.replace("\\", "/").rpartition("/")[2].lower()
    if last.startswith("._") or last == "dicomdir":  # another system's notes beside a file; a table of contents
        return ""
    if undecided(last):
        return "dicom" if is_dicom(head) and not last.startswith(".") else ""
    return reader_for(last).name


def undecided(name: str) -> bool:
    """Tell whether a file's content must say what it is, since its name has no ending that a reader takes."""
    return not name.lower().endswith(tuple(_READERS))


def is_dicom(head: bytes) -> bool:
    """Tell whether the DICM mark follows the 128 bytes of the preamble (PS3.10 7.1)."""
    return head[128:132] == b"DICM"


def first_bytes(path: str | Path) -> bytes:
    """The 132 bytes that tell a DICOM file; b"" where there are none."""
    path = Path(path)
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            return b""
        with path.open("rb") as file:
            return file.read(132)
    except OSError:
        return b""


def has_header(paths: Iterable[str], root: Path) -> list[bool]:
    """Which files (relative to ``root``) are DICOM or NIfTI by :func:`reader_for`; the others are pictures, or none."""
    out = []
    for path in paths:
        try:
            out.append(bool(path) and reader_for(root / path).name in ("dicom", "nifti"))
        except DataError:
            out.append(False)
    return out


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


# pydicom and nibabel load only where there are such files.
def _dicom(path: Path, reader: Reader, raw: bytes | None) -> SliceFile:
    from hemlearn.data.readers.dicom import DicomFile

    return DicomFile(path, reader, raw)


def _nifti(path: Path, reader: Reader, raw: bytes | None) -> SliceFile:
    from hemlearn.data.readers.nifti import NiftiFile

    return NiftiFile(path, reader, raw)


_BY_MODALITY: dict[str, Unit] = {"CT": "HU", "MR": "signal", "OT": "signal"}
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
register(Reader("image", 2, "display", file=_ImageFile, largest=256 << 20), PICTURES)
register(Reader("dicom", 4, "HU", units=_BY_MODALITY, file=_dicom), DICOM_SUFFIXES)
register(Reader("nifti", 4, "HU", units=_BY_MODALITY, file=_nifti), NIFTI_SUFFIXES)


# --- The last few files of several slices, kept in memory so that none is decoded once per slice.


T = TypeVar("T")
LIMIT = 96 << 20  # bytes per process; the latest volume is kept even when it alone is larger


@dataclass
class _Entry(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: T | None = None
    size: int = 0


class VolumeCache(Generic[T]):
    """Least recently used files, by path, size and modification time; safe to share between threads.

    Args:
        limit: Bytes kept at most (the latest entry may exceed it alone).
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._entries: OrderedDict[tuple[str, str], _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, load: Callable[[Path], tuple[T, int]]) -> T:
        """Return what ``load`` makes of a file; threads that ask for the same file wait for one load.

        Args:
            path: The file.
            load: Returns the value and its bytes; 0 bytes: the value is not kept.

        Raises:
            DataError: The file cannot be opened; and whatever ``load`` raises.
        """
        try:
            info = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be opened: {error.strerror or error}", remedy="check the path and its permissions"
            ) from error
        if odd := special_file(info.st_mode):
            raise DataError(f"{path}: {odd}", remedy="give a file")
        key = (str(path), file_stamp(info))
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.value is not None:
                return entry.value
            try:
                value, entry.size = load(path)
            except BaseException:
                self._drop(key)
                raise
            if entry.size == 0:
                self._drop(key)
                return value
            entry.value = value
        self._trim()
        return value

    def _drop(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._entries.pop(key, None)

    def _trim(self) -> None:
        with self._lock:
            total = sum(entry.size for entry in self._entries.values())
            while total > self.limit and len(self._entries) > 1:
                total -= self._entries.popitem(last=False)[1].size

    def __len__(self) -> int:
        return len(self._entries)
