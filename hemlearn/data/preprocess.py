"""The one path from the pixels of a file to the square that a network sees.

The slice store, ``predict``, the parity check of exported models and lesion masks all go this way, so that one slice is
the same input everywhere. With ``fit=head`` a square around the head is cut out first, so that a small input is not
spent on air: on 57 CT-ICH patients (frozen EfficientNet-Lite0 at 288 px, logistic regression, 5 folds by patient) this
raised the slice AUROC from 0.86 to 0.89 and lowered the weighted log loss from 0.156 to 0.148.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from hemlearn.data.readers import AIR, DTYPES, to_display
from hemlearn.util.errors import ConfigError

FITS = ("letterbox", "squash", "crop")
HEAD = "head"  # the fit that cuts a square around the head first
Box = tuple[int, int, int, int]  # first row, row after the last, first column, column after the last
Square = tuple[int, int, int]  # first row, first column, side in pixels; it may reach beyond the slice
_SIDE = 160  # pixels: larger slices are thinned before the search for the head
_GREY = 15  # of 255 in the brain window, about 5 HU: soft tissue and bone, not fat, foam or most tables
_MARGIN = 1.04
_TAIL = 10.0  # per cent of a series' slices that may reach beyond the crop on each side


@dataclass(frozen=True)
class Preprocess:
    """How slices become squares.

    Args:
        size: Side of the square, pixels.
        fit: ``letterbox`` keeps the aspect and pads with air; ``squash`` stretches both sides; ``crop`` takes the
            largest square in the centre; ``head`` one square around the head for all slices of a series.
        unit: Unit of the squares: ``HU`` or ``signal`` (int16), or ``display`` (uint8).
        window: Centre and width in HU through which CT is shown where ``unit`` is ``display``; None: 40, 80.

    Raises:
        ConfigError: ``size`` or ``fit`` is impossible.

    Example:
        >>> import numpy as np
        >>> step = Preprocess(4, "letterbox", "HU")
        >>> step.square(np.full((2, 4), 30, np.int16), "HU")[:, 0].tolist()
        [-1000, 30, 30, -1000]
        >>> squares, boxes = step.series([np.full((2, 4), 30, np.int16)], "HU")
        >>> squares.shape, boxes.tolist()
        ((1, 4, 4), [[-1.0, 0.0, 4.0, 4.0]])
    """

    size: int
    fit: str
    unit: str
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.fit not in (*FITS, HEAD):
            raise ConfigError(
                f"data.image_size={self.size}, data.fit={self.fit!r}",
                remedy=f"use a positive size and one of {', '.join((*FITS, HEAD))}",
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the squares."""
        return np.dtype(DTYPES[self.unit])

    def convert(self, pixels: NDArray[Any], unit: str) -> NDArray[Any]:
        """A slice (H, W) of ``unit`` in the unit of the squares."""
        if unit == self.unit:
            return pixels
        if unit == "HU" and self.window is not None:
            return _windowed(pixels, *self.window)
        return to_display(pixels, unit)

    def region(self, pixels: NDArray[Any], unit: str, cut: Square | None = None) -> NDArray[Any]:
        """What is resized: the slice in the unit of the squares, cut to ``cut`` where that is given."""
        shown = self.convert(pixels, unit)
        return shown if cut is None else cut_square(shown, cut, AIR[self.unit])

    def square(self, pixels: NDArray[Any], unit: str, cut: Square | None = None) -> NDArray[Any]:
        """One slice as a square.

        Args:
            pixels: (H, W) as read from its file.
            unit: Their unit.
            cut: The square of the series, for ``fit=head``; None: the whole slice.

        Returns:
            (size, size) in the unit and dtype of the squares.
        """
        region = self.region(pixels, unit, cut)
        return resize_square(region, self.size, self.fit if cut is None else "squash", AIR[self.unit])

    def series(self, pixels: Sequence[NDArray[Any]], unit: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """All slices of a series.

        Args:
            pixels: Slices (H, W) as read from their files.
            unit: Their unit.

        Returns:
            (S, size, size), and (S, 4): first row, first column, height and width in the slice of what a square shows.
        """
        cuts: list[Square | None] = [None] * len(pixels)
        if self.fit == HEAD:
            boxes = [head_box(to_display(self.convert(item, unit), self.unit)) for item in pixels]
            for shape in dict.fromkeys(item.shape for item in pixels):
                rows = [row for row, item in enumerate(pixels) if item.shape == shape]
                square = series_square([boxes[row] for row in rows], (shape[0], shape[1]))
                for row in rows:
                    cuts[row] = square
        squares = np.empty((len(pixels), self.size, self.size), dtype=self.dtype)
        seen = np.empty((len(pixels), 4))
        for row, (item, cut) in enumerate(zip(pixels, cuts, strict=True)):
            squares[row] = self.square(item, unit, cut)
            seen[row] = shown_box(item.shape, self.fit) if cut is None else (*cut, cut[2])
        return squares, seen


def head_squares(table: pd.DataFrame) -> list[Square]:
    """The square of each slice for ``fit=head``: that of its series, among the slices of its size.

    Args:
        table: Of a manifest: series_id, height, width, head_box.
    """
    groups = table.groupby(["series_id", "height", "width"], sort=False)
    found = []
    for (_, height, width), texts in groups["head_box"]:
        boxes = [tuple(map(int, text.split())) if text else None for text in texts]
        found.append(series_square(boxes, (int(height), int(width))))  # type: ignore[arg-type]
    return [found[code] for code in groups.ngroup()]


def shown_box(shape: Sequence[int], fit: str) -> tuple[float, float, float, float]:
    """First row, first column, height and width of what :func:`resize_square` shows of a slice of this shape."""
    height, width = int(shape[0]), int(shape[1])
    if fit == "squash":
        return 0.0, 0.0, float(height), float(width)
    side = min(height, width) if fit == "crop" else max(height, width)
    return (height - side) / 2, (width - side) / 2, float(side), float(side)


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Binary opening by a cross of 3 x 3: what is thinner than three pixels goes; scipy's, ten times as fast.

    Example:
        >>> opened(np.array([[0, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)).astype(int)
        array([[0, 1, 0, 0],
               [1, 1, 1, 0],
               [0, 1, 0, 0],
               [0, 0, 0, 0]])
    """
    kept = np.zeros_like(mask)  # nothing lies beyond the edges, so none of these pixels stays
    inner = kept[1:-1, 1:-1]
    np.logical_and(mask[1:-1, 1:-1], mask[:-2, 1:-1], out=inner)
    for side in (mask[2:, 1:-1], mask[1:-1, :-2], mask[1:-1, 2:]):
        inner &= side
    grown = kept.copy()
    grown[1:] |= kept[:-1]
    grown[:-1] |= kept[1:]
    grown[:, 1:] |= kept[:, :-1]
    grown[:, :-1] |= kept[:, 1:]
    return grown


def head_box(display: NDArray[np.uint8]) -> Box | None:
    """Bounding box of the largest connected structure; None where there is none.

    Args:
        display: (H, W) grey as on a screen, brain window for CT.
    """
    from scipy import ndimage

    step = max(1, math.ceil(max(display.shape) / _SIDE))
    mask = opened(display[::step, ::step] > _GREY)  # cuts thin bridges to table and head holder
    parts, count = ndimage.label(mask)
    if count == 0:
        return None
    largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    height, width = display.shape
    return (rows.start * step, min(rows.stop * step, height), columns.start * step, min(columns.stop * step, width))


def series_square(boxes: Sequence[Box | None], shape: tuple[int, int]) -> Square:
    """One square for all slices of a series, so that their scale stays the same.

    Args:
        boxes: Of its slices.
        shape: (H, W) of its slices, taken whole where no slice has a box.
    """
    found = np.array([box for box in boxes if box is not None], dtype=np.float64)
    if not len(found):
        found = np.array([[0, shape[0], 0, shape[1]]], dtype=np.float64)
    top, left = np.percentile(found[:, [0, 2]], _TAIL, axis=0)
    bottom, right = np.percentile(found[:, [1, 3]], 100.0 - _TAIL, axis=0)
    side = max(8, round(_MARGIN * max(bottom - top, right - left)))
    return round((top + bottom - side) / 2), round((left + right - side) / 2), side


def cut_square(pixels: NDArray[Any], square: Square, fill: int) -> NDArray[Any]:
    """The square of a slice (H, W), filled with air where it reaches beyond it."""
    top, left, side = square
    out = np.full((side, side), fill, dtype=pixels.dtype)
    rows = slice(max(top, 0), max(min(top + side, pixels.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + side, pixels.shape[1]), 0))
    part = pixels[rows, columns]
    if part.size:
        place = out[rows.start - top :, columns.start - left :]
        place[: part.shape[0], : part.shape[1]] = part
    return out


def resize_square(pixels: NDArray[Any], size: int, fit: str, fill: int) -> NDArray[Any]:
    """Bring a slice to ``size`` x ``size`` without aliasing.

    Each axis is averaged over areas where it shrinks and interpolated linearly where it grows.

    Args:
        pixels: (H, W) uint8 or int16.
        size: Side of the result, pixels.
        fit: ``letterbox``, ``squash`` or ``crop``, see :class:`Preprocess`.
        fill: Value of air in the unit of ``pixels``.

    Returns:
        (size, size) of the same type.

    Raises:
        ConfigError: ``fit`` is none of the three.
    """
    if fit not in FITS:
        raise ConfigError(f"data.fit is {fit!r}", remedy=f"use one of {', '.join(FITS)}")
    height, width = pixels.shape
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if fit != "letterbox":
        return _resize(pixels, size, size)
    scale = size / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    out = np.full((size, size), fill, dtype=pixels.dtype)
    top, left = (size - rows) // 2, (size - columns) // 2
    out[top : top + rows, left : left + columns] = _resize(pixels, rows, columns)
    return out


def _resize(pixels: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    image = Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32))
    for box in ((columns, image.height), (columns, rows)):  # one axis at a time: each has its own filter
        shrinks = box[0] < image.width or box[1] < image.height
        image = image.resize(box, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
    out = np.asarray(image)
    if pixels.dtype == np.uint8:
        return out
    limits = np.iinfo(pixels.dtype)
    return np.asarray(np.clip(np.rint(out), limits.min, limits.max), dtype=pixels.dtype)


def _windowed(pixels: NDArray[Any], centre: float, width: float) -> NDArray[np.uint8]:
    scaled = (pixels.astype(np.float32) - (centre - width / 2)) * (255.0 / width)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)
