"""Oblong pixels: slices whose rows lie farther apart than their columns, or the reverse, become slices of squares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRETCHED = 3.0  # ratio of the spacings beyond which an axial cut is a reformat of other slices
_SAME = 1.01  # up to this ratio pixels count as square

Spacing = tuple[float, float]  # of rows and of columns, mm


def oblong(spacing: Spacing | None) -> bool:
    """Whether pixels are resampled: neither square, nor so long that the slice is no axial one."""
    return spacing is not None and _SAME < max(spacing) / min(spacing) <= STRETCHED


def square_spacing(spacing: Spacing | None) -> Spacing | None:
    """Spacing after :func:`square_pixels`, mm: the finer of the two."""
    return (min(spacing), min(spacing)) if spacing is not None and oblong(spacing) else spacing


def square_shape(shape: tuple[int, int], spacing: Spacing | None) -> tuple[int, int]:
    """Rows and columns after :func:`square_pixels`.

    Example:
        >>> square_shape((256, 256), (0.5, 1.0)), square_shape((256, 256), (0.5, 0.5))
        ((256, 512), (256, 256))
    """
    if spacing is None or not oblong(spacing):
        return shape
    rows, columns = (max(1, round(side * mm / min(spacing))) for side, mm in zip(shape, spacing, strict=True))
    return rows, columns


def square_pixels(pixels: NDArray[Any], spacing: Spacing | None, *, nearest: bool = False) -> NDArray[Any]:
    """A slice (H, W) of oblong pixels as one of square pixels, the finer side of the oblong.

    Args:
        pixels: uint8 or int16.
        spacing: Of rows and of columns, mm; None: unknown, taken for square.
        nearest: Take the nearest pixel, as for labels, instead of interpolating linearly.
    """
    shape = square_shape((pixels.shape[0], pixels.shape[1]), spacing)
    if shape == pixels.shape:
        return pixels
    image = Image.fromarray(pixels.astype(np.float32))
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(np.rint(np.asarray(image.resize(shape[::-1], how))), dtype=pixels.dtype)
