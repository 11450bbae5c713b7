"""One slice in every transfer syntax that is read, with the HU it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from tests.data.readers.files import ct, encapsulated, slice_hu
from tests.data.readers.jpeg_lossless import encode
from tests.data.readers.streams import HTJ2K_LOSSY, HTJ2K_SIGNED, HTJ2K_UNSIGNED, JPEG_12

SIDE, SMALL = 32, 16  # pixels; SMALL of streams that are kept
GE_PRIVATE = UID("1.2.840.113619.5.2")


class PixelCase(NamedTuple):
    """A slice.

    Args:
        syntax: Its transfer syntax.
        bits: BitsStored.
        signed: Whether its stored values are.
        precision: Bits of the code stream's values; 0: as they are stored.
        make: Makes the data set.
        hu: What it holds (lossy: before it was compressed).
        off: Largest difference from ``hu``; 0 for a lossless syntax.
    """

    syntax: UID
    bits: int
    signed: bool
    precision: int
    make: Callable[[], Dataset]
    hu: NDArray[np.int64]
    off: float = 0.0

    @property
    def name(self) -> str:
        """For a table and for test ids."""
        sign = "signed" if self.signed else "unsigned"
        return f"{self.syntax.name}, {self.bits} bits {sign}" + (f" in {self.precision}" if self.precision else "")


def smooth_codes(side: int) -> NDArray[np.uint16]:
    """A bright middle, 11 bits, that lossy codes keep well."""
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return np.rint(1024 * (1 + np.cos(2 * rows) * np.cos(2 * columns))).astype(np.uint16)


def _values(bits: int, signed: bool) -> tuple[NDArray[Any], NDArray[np.int64], int]:
    """Stored values, their HU and the intercept; the full range of ``bits`` is used."""
    hu = slice_hu(0, SIDE).astype(np.int64)
    intercept = 0 if signed else -1024
    stored = hu - intercept
    half = 1 << (bits - 1)
    stored[0, :2] = (-half, half - 1) if signed else (0, 2 * half - 1)
    stored = np.clip(stored, -32768 - intercept, 32767 - intercept)  # HU that 16 bits hold
    return stored.astype(np.int16 if signed else np.uint16), stored + intercept, intercept


def _tags(bits: int, signed: bool, intercept: int) -> dict[str, int]:
    return {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed), "RescaleIntercept": intercept}


def _bytes(data: Dataset) -> Dataset:
    """Pixels as bytes, not as words of two."""
    data["PixelData"].VR = "OB"
    return data


def _ge_private(data: Dataset) -> Dataset:
    """Implicit little-endian elements, big-endian pixels."""
    data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    data.file_meta.TransferSyntaxUID = GE_PRIVATE
    return data


def _jpeg_ls(packed: NDArray[np.uint16], near: int = 0) -> bytes:
    import jpeg_ls

    return bytes(jpeg_ls.encode_array(packed, lossy_error=near))


def _j2k(packed: NDArray[Any], precision: int, **options: Any) -> bytes:
    import openjpeg.utils

    more: dict[str, Any] = {"photometric_interpretation": 2, "use_mct": False} | options
    return bytes(openjpeg.utils.encode_array(packed, bits_stored=precision, **more))


def pixel_cases() -> Iterator[PixelCase]:
    """Every case."""
    for bits in (12, 14, 16):
        for signed in (False, True):
            yield from _native(bits, signed)
            yield from _compressed(bits, signed)
    yield from _eight_bits()
    yield _lossy(JPEGExtended12Bit, SMALL, lambda _: JPEG_12, 4)
    yield _lossy(JPEGLSNearLossless, SIDE, lambda codes: _jpeg_ls(codes, 3), 3, 16)
    yield _lossy(JPEG2000, SIDE, lambda codes: _j2k(codes, 12, compression_ratios=[4]), 40)
    yield _lossy(HTJ2K, SMALL, lambda _: HTJ2K_LOSSY, 200, 16)
    for signed, stream in ((False, HTJ2K_UNSIGNED), (True, HTJ2K_SIGNED)):
        yield _kept(signed, stream)


def _lossy(
    syntax: UID, side: int, code: Callable[[NDArray[np.uint16]], bytes], off: float, precision: int = 0
) -> PixelCase:
    codes, tags = smooth_codes(side), _tags(12, False, -1024)
    return PixelCase(
        syntax,
        12,
        False,
        precision,
        lambda: encapsulated(ct(codes, **tags), syntax, code(codes)),
        codes.astype(np.int64) - 1024,
        off,
    )


def _kept(signed: bool, stream: bytes) -> PixelCase:
    hu, intercept = slice_hu(0, SMALL), 0 if signed else -1024
    stored = (hu - intercept).astype(np.int16 if signed else np.uint16)
    data = ct(stored, **_tags(16, signed, intercept))
    return PixelCase(
        HTJ2KLossless, 16, signed, 0, lambda: encapsulated(data, HTJ2KLossless, stream), hu.astype(np.int64)
    )


def _native(bits: int, signed: bool) -> Iterator[PixelCase]:
    stored, hu, intercept = _values(bits, signed)
    tags = _tags(bits, signed, intercept)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        yield PixelCase(syntax, bits, signed, 0, lambda syntax=syntax: ct(stored, syntax, **tags), hu)
    yield PixelCase(GE_PRIVATE, bits, signed, 0, lambda: _ge_private(ct(stored, ImplicitVRLittleEndian, **tags)), hu)

    def rle() -> Dataset:
        data = ct(stored, **tags)
        data.compress(RLELossless)
        return data

    yield PixelCase(RLELossless, bits, signed, 0, rle, hu)


def _compressed(bits: int, signed: bool) -> Iterator[PixelCase]:
    """Codes of the stored bits, as encoders pack them; and of 16, the bits above the stored ones left 0."""
    stored, hu, intercept = _values(bits, signed)
    tags = _tags(bits, signed, intercept)
    packed = (stored.astype(np.int64) & ((1 << bits) - 1)).astype(np.uint16)
    codes: dict[UID, Callable[[int], bytes]] = {
        JPEGLossless: lambda precision: encode(packed.astype(np.int64), precision, selection=2),
        JPEGLosslessSV1: lambda precision: encode(packed.astype(np.int64), precision),
        JPEGLSLossless: lambda _: _jpeg_ls(packed),
        JPEG2000Lossless: lambda precision: _j2k(packed, precision),
    }
    for syntax, code in codes.items():
        for precision in dict.fromkeys((bits, 16)):
            if syntax == JPEGLSLossless and precision != 16:
                continue  # the encoder takes the bits that are allocated
            yield PixelCase(
                syntax,
                bits,
                signed,
                precision if precision != bits else 0,
                lambda syntax=syntax, code=code, precision=precision: encapsulated(
                    ct(packed, **tags), syntax, code(precision)
                ),
                hu,
            )


def _eight_bits() -> Iterator[PixelCase]:
    """CT of 8 bits, 12 HU a step."""
    stored = np.clip((slice_hu(0, SIDE).astype(int) + 1024) // 12, 0, 255).astype(np.uint8)
    hu = stored.astype(np.int64) * 12 - 1024
    tags = {"RescaleSlope": 12}
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        yield PixelCase(syntax, 8, False, 0, lambda syntax=syntax: _bytes(ct(stored, syntax, **tags)), hu)
    yield PixelCase(
        JPEG2000Lossless, 8, False, 0, lambda: encapsulated(ct(stored, **tags), JPEG2000Lossless, _j2k(stored, 8)), hu
    )
    smooth = (smooth_codes(SIDE) // 9).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", quality=95)
    yield PixelCase(
        JPEGBaseline8Bit,
        8,
        False,
        0,
        lambda: encapsulated(ct(smooth, **tags), JPEGBaseline8Bit, file.getvalue()),
        smooth.astype(np.int64) * 12 - 1024,
        40,
    )
