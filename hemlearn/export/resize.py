"""Resizing of slices as tensor operations: the numbers of :func:`hemlearn.data.readers.image.resize_square`.

Training resizes with Pillow, one axis at a time: by averaging pixels where an axis shrinks (box filter), linearly where
it grows. Each axis is thus a matrix product. The matrix depends on height and width alone and is made inside the graph,
from them, so that an exported model takes slices of any size. Everything is computed in float64, in Pillow's own order
and with its rounding, because one HU of difference is a visible step in a window 80 HU wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hemlearn.data.readers import AIR
from hemlearn.data.readers.image import FITS
from hemlearn.errors import ConfigError

_LIMITS = {"HU": (-32768, 32767), "signal": (-32768, 32767), "display": (0, 255)}  # of the slice store's types
_FIXED_POINT = 2.0**22  # Pillow resamples 8-bit images with whole numbers of this scale
_Place = tuple[Tensor, Tensor]  # first position and number of positions


class SquareResize(nn.Module):
    """Slices of any size to ``(..., size, size)``, as the slice store holds them.

    Args:
        size: Side of the result, pixels.
        fit: ``letterbox``, ``squash`` or ``crop``, or ``head``: the square around the head is cut out before, so what
            remains is to stretch it.
        unit: ``HU``, ``signal`` or ``display``.

    Raises:
        ConfigError: ``fit`` is none of these.
    """

    def __init__(self, size: int, fit: str, unit: str) -> None:
        super().__init__()
        if fit not in (*FITS, "head"):
            raise ConfigError(f"data.fit is {fit!r}", remedy=f"use one of {', '.join(FITS)}, head")
        self.size, self.fit, self.unit = size, fit, unit

    def forward(self, x: Tensor) -> Tensor:
        """``(..., H, W)`` of any type to ``(..., size, size)`` float32 holding whole numbers.

        Values are first rounded and limited as in the store (int16 for HU and signal, uint8 for display).
        """
        values = x.to(torch.float64).round().clamp(*_LIMITS[self.unit])
        rows, columns = (torch.arange(values.shape[axis], dtype=torch.float64, device=x.device) for axis in (-2, -1))
        height, width = rows[-1] + 1, columns[-1] + 1
        down, used_rows = self._matrix(
            rows, *self._places(height, torch.maximum(height, width), torch.minimum(height, width))
        )
        across, used_columns = self._matrix(
            columns, *self._places(width, torch.maximum(height, width), torch.minimum(height, width))
        )
        if self.unit == "display":
            out = _eight_bit(down, _eight_bit(across, values.mT).mT)
        else:
            # Pillow keeps float32 between its two passes.
            out = torch.matmul(values, across.mT).to(torch.float32).to(torch.float64)
            out = torch.matmul(down, out).to(torch.float32).round().clamp(*_LIMITS[self.unit])
        inside = used_rows[:, None] & used_columns[None, :]
        return torch.where(inside, out.to(torch.float32), float(AIR[self.unit]))

    def _places(self, length: Tensor, longest: Tensor, shortest: Tensor) -> tuple[_Place, _Place]:
        """What is taken of an axis of the slice, and where it lies in the result."""
        zero, whole = torch.zeros_like(length), torch.full_like(length, float(self.size))
        if self.fit == "letterbox":
            count = (length * (whole / longest)).round().clamp_min(1.0)
            return (zero, length), (((whole - count) / 2).floor(), count)
        if self.fit == "crop":
            return (((length - shortest) / 2).floor(), shortest), (zero, whole)
        return (zero, length), (zero, whole)

    def _matrix(self, place: Tensor, taken: _Place, put: _Place) -> tuple[Tensor, Tensor]:
        """Weights ``(size, n)`` of one axis, and which rows ``(size,)`` hold image and not padding."""
        target = torch.arange(self.size, dtype=torch.float64, device=place.device) - put[0]
        source = (place - taken[0])[None, :]
        scale = taken[1] / put[1]
        shrinks = scale > 1
        filter_scale = scale.clamp_min(1.0)
        support = torch.where(shrinks, 0.5, 1.0) * filter_scale
        centre = ((target + 0.5) * scale)[:, None]
        near = (source >= (centre - support + 0.5).trunc().clamp_min(0.0)) & (
            source < torch.minimum((centre + support + 0.5).trunc(), taken[1])
        )
        away = (source - centre + 0.5) * (1.0 / filter_scale)
        box = ((away > -0.5) & (away <= 0.5)).to(torch.float64)
        triangle = (1.0 - away.abs()).clamp_min(0.0)
        used = (target >= 0) & (target < put[1])
        weight = torch.where(near & used[:, None], torch.where(shrinks, box, triangle), 0.0)
        total = weight.sum(1, keepdim=True)
        return weight / torch.where(total > 0, total, 1.0), used


def _eight_bit(matrix: Tensor, values: Tensor) -> Tensor:
    """One pass of Pillow over 8-bit pixels: weights and sums are whole numbers, exact in float64."""
    whole = torch.matmul((matrix * _FIXED_POINT + 0.5).floor(), values)
    return ((whole + _FIXED_POINT / 2) / _FIXED_POINT).floor().clamp(0.0, 255.0)
