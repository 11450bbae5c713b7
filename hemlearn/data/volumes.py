"""Series as volumes in mm: how large a stored pixel is, what makes a series too thin, and resampling to a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hemlearn.data.manifest import Manifest
from hemlearn.data.preprocess import HEAD, head_squares, shown_box
from hemlearn.util.errors import DataError, count

THINNEST = 4  # voxels that a series must cover in depth: a network halves them at least twice


def stored_pixel_mm(manifest: Manifest, size: int, fit: str) -> NDArray[np.float32]:
    """(N, 2) height and width in mm of a pixel of each slice's stored square; NaN where the files tell none.

    Args:
        manifest: The slices.
        size: Side of the squares, pixels.
        fit: How slices became squares, see :class:`hemlearn.data.preprocess.Preprocess`.
    """
    table = manifest.table
    known = manifest.series.set_index("series_id")["pixel_mm"] if len(manifest.series) else None
    pixel = np.full(len(table), np.nan) if known is None else table["series_id"].map(known).to_numpy(dtype=np.float64)
    if fit == HEAD:
        sides = np.array([(cut[2], cut[2]) for cut in head_squares(table)], dtype=np.float64).reshape(-1, 2)
    else:
        shapes = zip(table["height"], table["width"], strict=True)
        sides = np.array([shown_box(shape, fit)[2:] for shape in shapes], dtype=np.float64).reshape(-1, 2)
    return np.asarray(sides / size * pixel[:, None], dtype=np.float32)


def volume_problem(z_mm: NDArray[np.floating], pixel_mm: NDArray[np.floating], spacing: Sequence[float] | None) -> str:
    """Why a series (S,), (S, 2) cannot become a volume of voxels of ``spacing`` mm, or ""."""
    slices = count(len(z_mm), "slice")
    if spacing is None:
        return f"{slices}: thinner than the {THINNEST} voxels of a volume" if len(z_mm) < THINNEST else ""
    if len(z_mm) > 1 and not (np.isfinite(z_mm).all() and np.isfinite(pixel_mm).all()):
        lacks = "positions of slices in mm are" if not np.isfinite(z_mm).all() else "size of a pixel in mm is"
        return f"no spacing: the {lacks} not known"
    extent = float(np.ptp(z_mm)) if len(z_mm) > 1 else 0.0
    if extent / spacing[0] + 1 < THINNEST:
        return f"{slices} over {extent:g} mm: thinner than the {THINNEST} voxels of {spacing[0]:g} mm of a volume"
    return ""


def check_volumes(
    title: str,
    series: Sequence[NDArray[np.int64]],
    table: pd.DataFrame,
    pixel_mm: NDArray[np.floating],
    spacing: Sequence[float] | None,
) -> None:
    """Refuse series (rows of a manifest's ``table`` each) that cannot become volumes.

    Raises:
        DataError: The data set holds single slices; or how many series fail, the first by name, and why.
    """
    if all(len(rows) == 1 for rows in series):
        raise DataError(
            f"data={title}: its series hold one slice each, no volumes",
            remedy="a 3D network needs whole series; use a 2D backbone for pictures",
        )
    z_mm = table["z_mm"].to_numpy(dtype=np.float64)
    found = [(rows[0], text) for rows in series if (text := volume_problem(z_mm[rows], pixel_mm[rows], spacing))]
    if found:
        row, text = found[0]
        unknown = text.startswith("no spacing")
        raise DataError(
            f"data={title}: {count(len(found), 'series cannot', 'series cannot')} become a volume; the first, "
            f"{table['series_id'].iloc[row]!r}: {text}",
            remedy="set volume.spacing=null to take slices as they stand, or give files that tell it"
            if unknown
            else f"leave short series out (data.geometry.min_slices={THINNEST} or more), or take thinner voxels "
            "(volume.spacing)",
        )


def resample(
    images: Tensor, z_mm: Tensor, pixel_mm: Tensor, *, spacing: Sequence[float] | None, size: Sequence[int]
) -> Tensor:
    """A series on a regular grid around its middle: (C, D, H, W), 0 (air) beyond it.

    Args:
        images: (S, C, h, w) slices, lowest first, in [0, 1].
        z_mm: (S,) their positions in mm.
        pixel_mm: (S, 2) height and width of their pixels in mm; those of the first count.
        spacing: Depth, height and width of a voxel in mm; None: slices as they stand, each drawn to H x W.
        size: D, H and W, voxels.

    Example:
        >>> images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 4, 4)
        >>> z, pixel = torch.arange(5) * 4.0, torch.ones(5, 2)
        >>> resample(images, z, pixel, spacing=(2.0, 1.0, 1.0), size=(3, 2, 2))[0, :, 0, 0].tolist()
        [1.5, 2.0, 2.5]
    """
    depth, (height, width) = len(images), images.shape[2:]
    steps = [torch.arange(length, device=images.device) - (length - 1) / 2 for length in size]
    if spacing is None:
        deep = steps[0] + (depth - 1) / 2
        scales = (height / size[1], width / size[2])
    else:
        z = z_mm.float().contiguous()
        wanted = (z[0] + z[-1]) / 2 + steps[0] * spacing[0]
        above = torch.searchsorted(z, wanted.contiguous()).clamp(1, depth - 1)
        below = z[above - 1]
        deep = above - 1 + (wanted - below) / (z[above] - below).clamp_min(1e-3)
        scales = (spacing[1] / float(pixel_mm[0, 0]), spacing[2] / float(pixel_mm[0, 1]))
    rows, columns = (
        step * scale + (length - 1) / 2 for step, scale, length in zip(steps[1:], scales, (height, width), strict=True)
    )
    places = [2 * place / max(length - 1, 1) - 1 for place, length in ((deep, depth), (rows, height), (columns, width))]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij")[::-1], -1)[None].to(images.dtype)
    return F.grid_sample(images.transpose(0, 1)[None], grid, padding_mode="zeros", align_corners=True)[0]
