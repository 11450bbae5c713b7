"""A whole MR examination: one head, its stack of slices, and one series per contrast."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.phantom.head import Streams
from hemlearn.phantom.mr_head import SHARES, MRHead, draw_mr_head, tissue_shares
from hemlearn.phantom.mr_scanner import Coil, acquire_mr, draw_coil
from hemlearn.phantom.shapes import Array
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.writers.common import is_abnormal

SAMPLES = 2  # planes averaged over the thickness of a slice
_BOTTOM_MM = -44.0  # world z where a stack ends at the latest
_HALO_MM = 9.0


@dataclass
class MRSeries:
    """One contrast.

    Attributes:
        signal: uint16, shape (slices, rows, cols); slice 0 is the lowest, row 0 anterior, column 0 the patient's right.
        coil: How it was taken.
    """

    signal: NDArray[np.uint16]
    coil: Coil


@dataclass
class MRExam:
    """One examination with its truth.

    Attributes:
        person: The head.
        series: One per contrast, T2 first.
        z_mm: World z of the slice centres.
        pixel_mm: In-plane spacing.
        thickness_mm: Slice thickness; the spacing is larger by the gap.
        spacing_mm: Distance of neighbouring slices.
    """

    person: MRHead
    series: list[MRSeries]
    z_mm: tuple[float, ...]
    pixel_mm: float
    thickness_mm: float
    spacing_mm: float


def draw_exam(seed: int, patient: int, grid: Grid | None = None) -> MRExam:
    """One patient's examination: T2 in all, T1 as well in some.

    Args:
        seed: Seed of the data set.
        patient: Index of the patient; :func:`hemlearn.phantom.writers.common.is_abnormal` tells whether it has
            hydrocephalus.
        grid: Rows, columns, pixel spacing and number of slices instead of the protocol's own.
    """
    streams = Streams.of(seed, patient)
    rng = streams.layout
    # Everything about the examination is drawn before, and without regard to, the label.
    thickness, gap = float(rng.choice((5.0, 6.0))), float(rng.choice((0.5, 1.0, 1.5)))
    pixel, both = round(float(rng.uniform(1.43, 1.53)), 3), bool(rng.uniform() < 0.3)
    spacing, drop = thickness + gap, float(rng.uniform(4.0, 12.0))
    person = draw_mr_head(streams.anatomy, is_abnormal(seed, patient))
    sizes = grid or Grid(rows=160, cols=160, pixel_mm=pixel)
    sizes = replace(sizes, thickness_mm=spacing, drop_mm=drop, slices=1, z_mm=None)
    top = sizes.centres(person.head)[0]
    count = int((top - _BOTTOM_MM) / spacing) + 1 if grid is None else grid.slices
    spacing = spacing if grid is None else (top - _BOTTOM_MM) / (count - 1)
    levels = tuple(round(top - spacing * k, 4) for k in reversed(range(count)))
    coils = [draw_coil(streams.scanner, contrast) for contrast in (("T2", "T1") if both else ("T2",))]
    slices = [_slice(person, sizes, z, thickness) for z in levels]
    series = []
    for coil in coils:
        images = [
            acquire_mr(coil, streams.scanner, shares, halo, sizes.pixel_mm, z)
            for (shares, halo), z in zip(slices, levels, strict=True)
        ]
        series.append(MRSeries(np.stack(images), coil))
    return MRExam(person, series, levels, sizes.pixel_mm, thickness, spacing)


def _slice(person: MRHead, grid: Grid, z_mm: float, thickness: float) -> tuple[dict[str, Array], Array]:
    """Tissue shares of one slice, averaged over its thickness, and the altered share of its white matter."""
    head = person.head
    xs = (np.arange(grid.cols, dtype=np.float32) - np.float32((grid.cols - 1) / 2)) * np.float32(grid.pixel_mm)
    ys = (np.arange(grid.rows, dtype=np.float32) - np.float32((grid.rows - 1) / 2)) * np.float32(grid.pixel_mm)
    wy, wx = (a.ravel() for a in np.meshgrid(ys, xs, indexing="ij"))
    shares = {name: np.zeros(wx.size, dtype=np.float32) for name in SHARES}
    for k in range(SAMPLES):
        offset = (k - (SAMPLES - 1) / 2) * thickness / SAMPLES
        x, y, z = head.to_head(wx, wy, np.full(wx.size, z_mm + offset, dtype=np.float32))
        reach = (head.half_width * 1.12 + 17.0, head.half_length * 1.04 + 17.0)
        keep = np.flatnonzero(((x / reach[0]) ** 2 + (y / reach[1]) ** 2 < 1.0) & (z < head.height + 45.0))
        for name, share in tissue_shares(person, x[keep], y[keep], z[keep]).items():
            shares[name][keep] += share / SAMPLES
    shape = (grid.rows, grid.cols)
    shaped: dict[str, Array] = {name: share.reshape(shape) for name, share in shares.items()}
    halo = np.zeros(shape, dtype=np.float32)
    fluid = shaped["ventricle"] >= 0.5
    if fluid.any() and person.halo > 0:
        gap = ndimage.distance_transform_edt(~fluid).astype(np.float32) * np.float32(grid.pixel_mm)
        halo = np.float32(0.6 * person.halo) * np.clip(1.0 - gap / _HALO_MM, 0.0, 1.0)
    return shaped, halo
