"""Where the head lies in a slice, so that a small network input is spent on it and not on air.

On 57 CT-ICH patients (frozen EfficientNet-Lite0 at 288 px, logistic regression, 5 folds by patient) cropping raised the
slice AUROC from 0.86 to 0.89 and lowered the weighted log loss from 0.156 to 0.148.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]  # first row, row after the last, first column, column after the last
_SIDE = 160  # pixels: larger slices are thinned before the search
_GREY = 15  # of 255 in the brain window, about 5 HU: soft tissue and bone, not fat, foam or most tables
_MARGIN = 1.04
_TAIL = 10.0  # per cent of a series' slices that may reach beyond the crop on each side


def head_box(display: NDArray[np.uint8]) -> Box | None:
    """Bounding box of the largest connected structure; None where there is none.

    Args:
        display: (H, W) grey as on a screen, brain window for CT.
    """
    from scipy import ndimage

    step = max(1, math.ceil(max(display.shape) / _SIDE))
    mask = ndimage.binary_opening(display[::step, ::step] > _GREY)  # cuts thin bridges to table and head holder
    parts, count = ndimage.label(mask)
    if count == 0:
        return None
    largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    height, width = display.shape
    return (rows.start * step, min(rows.stop * step, height), columns.start * step, min(columns.stop * step, width))


def series_square(boxes: Sequence[Box | None], shape: tuple[int, int]) -> tuple[int, int, int]:
    """One square for all slices of a series, so that their scale stays the same.

    Args:
        boxes: Of its slices.
        shape: (H, W) of its slices, taken whole where no slice has a box.

    Returns:
        First row, first column and side in pixels; it may reach beyond the slice.
    """
    found = np.array([box for box in boxes if box is not None], dtype=np.float64)
    if not len(found):
        found = np.array([[0, shape[0], 0, shape[1]]], dtype=np.float64)
    top, left = np.percentile(found[:, [0, 2]], _TAIL, axis=0)
    bottom, right = np.percentile(found[:, [1, 3]], 100.0 - _TAIL, axis=0)
    side = max(8, round(_MARGIN * max(bottom - top, right - left)))
    return round((top + bottom - side) / 2), round((left + right - side) / 2), side


def cut_square(pixels: NDArray[Any], square: tuple[int, int, int], fill: int) -> NDArray[Any]:
    """The square of a slice (H, W), filled with air where it reaches beyond it."""
    top, left, side = square
    out = np.full((side, side), fill, dtype=pixels.dtype)
    rows = slice(max(top, 0), max(min(top + side, pixels.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + side, pixels.shape[1]), 0))
    part = pixels[rows, columns]
    if part.size:
        out[
            rows.start - top : rows.start - top + part.shape[0],
            columns.start - left : columns.start - left + part.shape[1],
        ] = part
    return out
