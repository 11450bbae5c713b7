"""Opening DICOM files and decoding their stored values, whatever their transfer syntax (DICOM PS3.5, PS3.10)."""

from __future__ import annotations

import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from hemlearn.data.readers.codestream import CodeStream, code_stream, is_start
from hemlearn.util.errors import DataError

# Ids such as RSNA's ID_000012eaf are no valid UIDs, and a warning per file and tag would bury what matters. What a
# damaged pixel data element means is decided here, by errors instead of warnings.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\..*")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

# What pydicom and its decoders raise for broken files, gathered by feeding them cut and altered ones.
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
    BytesLengthException,
    InvalidDicomError,
)
_META = 2048  # bytes within which a file names its transfer syntax
_FREE = 64 << 20  # bytes up to which a deflated data set may be packed to any ratio
_MAX_RATIO = 20  # unpacked to packed bytes; slices reach 4


class PixelError(ValueError):
    """Pixels of a whole file that cannot be read as they are.

    Args:
        problem: What is the matter, without the file's name.
        remedy: What to do about it.
    """

    def __init__(self, problem: str, remedy: str = "copy or export the file again") -> None:
        super().__init__(problem)
        self.remedy = remedy


_PIXELS = (0x7FE0, 0x0010)
_PER_FRAME, _SHARED = Tag("PerFrameFunctionalGroupsSequence"), Tag("SharedFunctionalGroupsSequence")
_GE_PRIVATE = UID("1.2.840.113619.5.2")  # implicit VR little endian, but for big-endian pixels
_NATIVE = {  # transfer syntax -> whether its pixels are little-endian
    ImplicitVRLittleEndian: True,
    ExplicitVRLittleEndian: True,
    DeflatedExplicitVRLittleEndian: True,
    ExplicitVRBigEndian: False,
    _GE_PRIVATE: False,
}


def open_dicom(
    path: Path, raw: bytes | None = None, *, pixels: bool = True, tags: Sequence[str] | None = None
) -> FileDataset:
    """Parse a DICOM file, with or without its preamble and file meta information.

    Args:
        path: The file.
        raw: Its bytes where they are read already.
        pixels: False stops before the pixel data; whether there are any is then told by ``has_pixels``.
        tags: Keywords of the elements to keep; None: all.

    Returns:
        The data set; its attribute ``has_pixels`` says whether a pixel data element follows, ``file_bytes`` how
        large the file is.

    Raises:
        DataError: The file cannot be opened, is empty, truncated or no DICOM file.
    """
    try:
        with path.open("rb") if raw is None else BytesIO(raw) as file:
            head = file.read(132)
            if not head:
                raise DataError(f"{path}: empty file: 0 bytes", remedy="copy or export the file again")
            # Without the preamble a data set starts with group 0002 or 0008, in either byte order.
            if head[128:] != b"DICM" and head[:2] not in (b"\x02\0", b"\0\x02", b"\x08\0", b"\0\x08"):
                raise DataError(
                    f"{path}: not a DICOM file: neither the DICM mark nor a DICOM element at its start "
                    f"(first bytes {head[:8]!r})",
                    remedy="give DICOM files, or name the file by what it is",
                )
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            _check_inflated(path, file)
            # A specific tag list leaves out the pixel data too, and every value that is not read costs nothing.
            data = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels, specific_tags=list(tags or ()))
            if pixels:
                found = any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
            else:
                found = _stands_at_pixels(file, data)
    except DataError:
        raise
    except BROKEN as error:
        missing = isinstance(error, OSError) and error.errno is not None
        kind = "cannot be opened" if missing else "damaged DICOM file"
        remedy = "check the path and its permissions" if missing else "copy or export the file again"
        raise DataError(f"{path}: {kind}: {describe(error)}", remedy=remedy) from error
    if len(data) == 0:
        raise DataError(
            f"{path}: no DICOM elements: the file ends within or before its first one",
            remedy="copy or export the file again",
        )
    object.__setattr__(data, "has_pixels", found)
    object.__setattr__(data, "file_bytes", size)
    return data


def _check_inflated(path: Path, file: BinaryIO) -> None:
    """Refuse a deflated data set that unpacks to far more than slices do; pydicom would hold it whole, several times.

    It is unpacked here in parts, none of which is kept.
    """
    head = file.read(_META)
    file.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return
    read_preamble(file, True)
    read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)  # the file meta information
    start, unpacked, unpacker = file.tell(), 0, zlib.decompressobj(-zlib.MAX_WBITS)
    while not unpacker.eof and (part := unpacker.unconsumed_tail or file.read(1 << 16)):
        unpacked += len(unpacker.decompress(part, 1 << 20))
        packed = file.tell() - start
        if unpacked > max(_FREE, _MAX_RATIO * packed):
            raise DataError(
                f"{path}: {packed} bytes of deflated data unpack to more than {unpacked - 1}, over {_MAX_RATIO} to 1",
                remedy="do not trust this file; ask its sender for another",
            )
    file.seek(0)


def describe(error: BaseException) -> str:
    """Return an error's own words in one line, or its kind where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _stands_at_pixels(file: Any, data: Dataset) -> bool:
    if syntax(data) == DeflatedExplicitVRLittleEndian:
        return "Rows" in data  # the position in the inflated stream is lost
    head = file.read(4)
    return len(head) == 4 and _PIXELS in (struct.unpack("<HH", head), struct.unpack(">HH", head))


def syntax(data: Dataset) -> UID | None:
    """Return the transfer syntax that the file names, if it names one."""
    found = getattr(data, "file_meta", FileMetaDataset()).get("TransferSyntaxUID", None)
    return UID(found) if found else None


def number_of_frames(data: Dataset) -> int:
    """Return the number of frames, DICOM (0028,0008); 1 where absent.

    Raises:
        ValueError: A negative number, or one of which the file could not hold half: a list of them would never end.
    """
    frames = int(data.get("NumberOfFrames", None) or 1)
    if frames < 0:
        raise ValueError(f"NumberOfFrames {frames}")
    size = getattr(data, "file_bytes", None)
    if frames == 1 or size is None:
        return frames
    named = syntax(data)
    least = 8  # bytes: the item of an encapsulated frame
    if named is None or named in _NATIVE:
        sides = [int(data.get(name, 0) or 0) for name in ("Rows", "Columns", "BitsAllocated")]
        least = max(least, math.prod(sides) // 8)
    most = size * 1032 if named == DeflatedExplicitVRLittleEndian else size  # deflate's largest ratio
    if frames * least > 2 * most:
        raise ValueError(f"NumberOfFrames {frames} does not fit a file of {size} bytes")
    return frames


def functional_group(data: Dataset, frame: int, name: str) -> Dataset | None:
    """Return a functional group of one frame of an enhanced object (DICOM C.7.6.16), or None where it has none."""
    for tag, item in ((_PER_FRAME, frame), (_SHARED, 0)):
        groups = data[tag].value if tag in data else None  # a tag is found sooner than a keyword
        if groups is not None and item < len(groups):
            inner = groups[item].get(name, None)
            if inner is not None and len(inner):
                found: Dataset = inner[0]
                return found
    return None


def transfer_syntax(data: Dataset) -> UID:
    """Return the transfer syntax of the pixels, by the bytes where the file names none or another.

    Raises:
        PixelError: It cannot be read.
        ValueError: It cannot be inferred.
    """
    named = syntax(data)
    element = data["PixelData"]
    if not element.is_undefined_length:
        if named in _NATIVE:
            return named
        if named is not None and len(element.value) < _expected(data):
            return _readable(named)  # compressed without the encapsulation's item; the decoder says what is wrong
        # A compressed syntax with an element of known and sufficient length: the pixels were left uncompressed.
        implicit, little = getattr(data, "original_encoding", (None, None))
        if implicit:
            return ImplicitVRLittleEndian
        return ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
    fragment = _first_fragment(element.value)
    told = code_stream(fragment).syntaxes
    if named in told or (named is not None and named not in _NATIVE and not is_start(fragment)):
        return _readable(named)
    if told:  # what the stream is written in is certain, whatever name it is given
        return told[0]
    if named is not None:
        return _readable(named)
    raise ValueError(f"no transfer syntax is named, and pixels that start with {fragment[:4]!r} do not tell it")


def _readable(named: UID) -> UID:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        known = named in _NATIVE or get_decoder(named).is_available
    except NotImplementedError:
        known = False
    if not known:
        what = f"{named.name} ({named})" if named.name != named else str(named)
        remedy = "convert the file with gdcmconv --raw, or with dcmdjpeg (DCMTK)"
        raise PixelError(f"transfer syntax not supported: {what}", remedy)
    return named


def _first_fragment(value: bytes) -> bytes:
    table = int.from_bytes(value[4:8], "little")  # the Basic Offset Table item comes first
    return value[8 + table + 8 :]


def _expected(data: Dataset) -> int:
    return int(data.Rows) * int(data.Columns) * int(data.BitsAllocated) // 8 * number_of_frames(data)


def stored_values(data: Dataset, frame: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Decode the stored values of one frame of a monochrome image.

    Args:
        data: A parsed file with 8, 16 or 32 bits allocated and one sample per pixel.
        frame: Index of the frame.

    Returns:
        (H, W) integers as BitsStored, HighBit and PixelRepresentation say (a code stream that contradicts the
        latter is put right), and where these are padding (None: nowhere).

    Raises:
        PixelError: Truncated pixels, more frames than NumberOfFrames says, a transfer syntax without a decoder.
        ValueError: Undecodable pixels, or whatever the decoder raises.
    """
    chosen = transfer_syntax(data)
    if chosen in _NATIVE:
        raw = _native(data, frame, little=_NATIVE[chosen])
        values = _used_bits(data, raw)
        # Padding such as 63536 with 12 bits stored lies in the unused bits, so it is sought before those go.
        return values, _padding(data, values, raw)
    raw, precision = _encapsulated(data, frame, chosen)
    values = _stored_bits(data, raw, precision)
    return values, _padding(data, values, raw)


def _native(data: Dataset, frame: int, *, little: bool) -> NDArray[Any]:
    rows, columns, allocated = int(data.Rows), int(data.Columns), int(data.BitsAllocated)
    kind = "i" if int(data.PixelRepresentation) else "u"
    element = data["PixelData"]
    raw, count = element.value, rows * columns
    have, need = len(raw), _expected(data)
    if have < need:
        raise PixelError(f"truncated pixels: {have} of {need} bytes")
    _check_frames(data, have * number_of_frames(data) // need)
    dtype = np.dtype(f"{'<' if little else '>'}{kind}{allocated // 8}")
    if allocated == 8 and not little and element.VR == "OW":  # bytes are swapped in pairs (PS3.5 8.1.1)
        raw = np.frombuffer(raw, ">u2", len(raw) // 2).astype("<u2").tobytes()
    out = np.frombuffer(raw, dtype, count, offset=frame * count * dtype.itemsize)
    return out.reshape(rows, columns).astype(dtype.newbyteorder("="))


def _used_bits(data: Dataset, raw: NDArray[Any]) -> NDArray[Any]:
    """Drop the bits above HighBit and below the stored ones; signs are extended (PS3.5 8.1.1)."""
    allocated, stored = int(data.BitsAllocated), int(data.BitsStored)
    high = int(data.get("HighBit", stored - 1))
    if not stored - 1 <= high < allocated:
        raise ValueError(f"HighBit {high} does not fit BitsStored {stored} and BitsAllocated {allocated}")
    if stored == allocated:
        return raw
    return np.asarray((raw << (allocated - 1 - high)) >> (allocated - stored))


def _check_frames(data: Dataset, found: int) -> None:
    """Refuse pixels of more frames than the file says: they would be lost without a word."""
    told = number_of_frames(data)
    if found > told:
        raise PixelError(
            f"pixels of {found} frames, but NumberOfFrames (0028,0008) says {told}",
            "correct its NumberOfFrames, or export the slices one by one",
        )


def _stored_bits(data: Dataset, raw: NDArray[Any], precision: int) -> NDArray[Any]:
    """Signed values of a code stream whose precision exceeds BitsStored, with the sign that their stored bits hold.

    Encoders pack such values without extending the sign, and decoders return what was packed. Values that need more
    bits than BitsStored say that this is wrong; they are what the stream says, as for GDCM.
    """
    bits = int(data.BitsStored)
    if bits > 8 >= precision > 0:
        raise PixelError(
            f"a code stream of {precision} bits, but BitsStored (0028,0101) is {bits}: pixels that were windowed",
            "give the original slices",
        )
    if not int(data.PixelRepresentation):
        return raw
    signed = raw.view(np.dtype(f"i{raw.dtype.itemsize}"))
    low, high, half = int(signed.min()), int(signed.max()), 1 << (bits - 1)
    spare = 8 * raw.dtype.itemsize - bits
    if spare <= 0 or high < half or low < 0 or high >= 2 * half:
        return signed
    return np.asarray((signed << spare) >> spare)


def _encapsulated(data: Dataset, frame: int, chosen: UID) -> tuple[NDArray[Any], int]:
    """A decoded frame, and the precision of its stream (0: it does not tell)."""
    from pydicom.encaps import generate_fragments, get_frame
    from pydicom.pixels.decoders.base import get_decoder

    if syntax(data) != chosen:
        data.file_meta = getattr(data, "file_meta", FileMetaDataset())
        data.file_meta.TransferSyntaxUID = chosen
    frames = number_of_frames(data)
    fragments = [part[:4] for part in generate_fragments(data.PixelData)][1:]  # after the Basic Offset Table
    _check_frames(data, len(fragments) if chosen == RLELossless else sum(map(is_start, fragments)))
    stream = get_frame(data.PixelData, frame, number_of_frames=frames)
    # Some decoders fill what is missing with grey, so the end mark (EOI, EOC) is asked for first.
    if chosen != RLELossless and b"\xff\xd9" not in stream[-64:]:
        raise PixelError(f"truncated pixels: the compressed stream of {len(stream)} bytes has no end mark")
    told = code_stream(stream) if chosen != RLELossless else CodeStream()
    rows, columns = told.size
    if min(told.size) > 0 and told.size != (int(data.Rows), int(data.Columns)):  # a decoder would take its word first
        raise PixelError(f"its stream holds {columns} x {rows} pixels, its header says {data.Columns} x {data.Rows}")
    try:
        return np.asarray(get_decoder(chosen).as_array(data, index=frame, raw=True)[0]), told.precision
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pylibjpeg-rle, on damaged segments; no Exception at all
            raise
        raise ValueError(f"the decoder gave up: {error}") from error


def _padding(data: Dataset, values: NDArray[Any], raw: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return where the pixels are padding: PixelPaddingValue (0028,0120) to PixelPaddingRangeLimit (0028,0121)."""
    value = data.get("PixelPaddingValue", None)
    if value is None or value == "":
        return None
    limit = data.get("PixelPaddingRangeLimit", None)
    # The value is written signed or unsigned, whatever the pixels are; both are the same bits.
    ends = (value, value if limit in (None, "") else limit)
    first, last = (int(np.array(int(item)).astype(values.dtype)) for item in ends)
    low, high = min(first, last), max(first, last)
    found = (values >= low) & (values <= high)
    if raw is not values:
        found |= (raw >= low) & (raw <= high)
    return found if found.any() else None
