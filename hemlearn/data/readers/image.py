"""Screen images (PNG, JPEG, ...) as 8-bit grey."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hemlearn.util.errors import DataError
from hemlearn.util.files import special_file

MIN_SIDE = 8  # pixels; below this there is no anatomy, only a broken export
MAX_PIXELS = 1 << 26  # 8192 x 8192; what is larger is no slice, and some bytes of PNG unpack to gigabytes
_PHOTOMETRIC = 262  # TIFF: 0 WhiteIsZero, 1 BlackIsZero
_SAMPLE_FORMAT = 339  # TIFF: 1 unsigned, 2 signed; Pillow reads both as unsigned
_EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"})
# What Pillow's decoders raise for broken files, gathered from its plugins.
_DECODING = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: str | PathLike[str], raw: bytes | None = None) -> NDArray[np.uint8]:
    """Decode an 8-bit image as grey.

    Colours become ITU-R BT.601 luminance, transparency is composited on black, EXIF's orientation is applied as
    viewers do, a palette is looked up, and 0 is white where a TIFF says so (PhotometricInterpretation WhiteIsZero).
    Programs do not agree about the latter, so that some files say it of values with black at 0: only where it would
    make the image's edge bright, and the values as they are stored make it dark, they are taken as they are stored.

    Args:
        path: PNG, JPEG or another still image.
        raw: Its bytes where they are read already.

    Returns:
        (H, W), 0 black to 255 white as on the screen; the unit is ``display``, not HU.

    Raises:
        DataError: The file is missing, empty, truncated, no image, smaller than 8 pixels on a side, larger than 8192 x
            8192, deeper than 8 bits per channel or signed (its scale is ambiguous), or holds several pictures.
    """
    path = Path(path)
    try:
        info = path.stat() if raw is None else None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened: {error.strerror or error}", remedy="check the path and its permissions"
        ) from error
    if info is not None and (odd := special_file(info.st_mode)):
        raise DataError(f"{path}: {odd}", remedy="give a file")
    if (len(raw or b"") if info is None else info.st_size) == 0:
        raise DataError(f"{path}: empty file: 0 bytes", remedy="copy or export the image again")
    try:
        with Image.open(path if raw is None else BytesIO(raw)) as image:
            _check_kind(path, image)
            image.load()
            shown = _grey(ImageOps.exif_transpose(image))
            if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 and _edge(shown) > 127:
                return np.asarray(255 - shown)
            return shown
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: not an image: no decoder recognises its content", remedy="export it again as 8-bit PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from error
    except _DECODING as error:
        kind = "truncated image" if "truncated" in str(error) else "damaged image"
        raise DataError(f"{path}: {kind}: {error}", remedy="copy or export the image again") from error


def _too_large(path: Path, told: str) -> DataError:
    return DataError(f"{path}: too large for a slice: {told}", remedy="export the slice at its own size")


def _check_kind(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(
            f"{path}: animated image, or one of several pages: {frames} frames",
            remedy="export each slice as a still image of its own",
        )
    # Pillow reduces 16-bit colour to 8 bits silently; only the raw mode of its tiles tells.
    raw = " ".join(str(tile.args) for tile in getattr(image, "tile", ()))
    if image.mode not in _EIGHT_BIT or ";16" in raw:
        raise DataError(
            f"{path}: ambiguous pixel scale: {image.mode} pixels of more than 8 bits",
            remedy="export it as 8-bit PNG through a fixed window, or give the DICOM or NIfTI file with its HU",
        )
    tags = getattr(image, "tag_v2", {})
    if any(kind != 1 for kind in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1))):
        raise DataError(
            f"{path}: ambiguous pixel scale: signed samples", remedy="export it as 8-bit PNG through a fixed window"
        )
    if min(image.size) < MIN_SIDE:
        raise DataError(
            f"{path}: too small: {image.width} x {image.height} pixels, at least {MIN_SIDE} x {MIN_SIDE} needed",
            remedy="export the slice at its full size",
        )


def _edge(shown: NDArray[np.uint8]) -> float:
    """The median grey level of a slice's edge, which is black around a head."""
    return float(np.median(np.concatenate([shown[0], shown[-1], shown[:, 0], shown[:, -1]])))


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
    return np.asarray(image.convert("L"), dtype=np.uint8)


def image_encoding(path: Path, raw: bytes | None) -> str:
    """Format and colours of an image file, for example ``PNG RGBA``; only its header is read.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with Image.open(path if raw is None else BytesIO(raw)) as image:
            return f"{image.format} {image.mode}"
    except _DECODING as error:
        raise DataError(f"{path}: {error}", remedy="copy or export the image again") from error
