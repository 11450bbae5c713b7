"""A whole MR examination: one head, its stack of slices, and one series per contrast."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.phantom.anatomy import Array
from hemlearn.phantom.head import Streams
from hemlearn.phantom.mr_head import SHARES, MRHead, draw_mr_head, tissue_shares
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.writers.common import is_abnormal

# --- The MR scanner: spin-echo contrast, coil sensitivity, Rician noise and a scale that means nothing.


# Tissue -> T1 and T2 in ms, proton density. Fat has the long T2 that a train of echoes shows; altered white matter
# holds more water.
TISSUES = {
    "fluid": (2569.0, 329.0, 1.0),
    "grey": (833.0, 83.0, 0.86),
    "white": (500.0, 70.0, 0.77),
    "marrow": (430.0, 60.0, 0.55),
    "fat": (350.0, 105.0, 0.95),
    "muscle": (900.0, 47.0, 0.9),
    "halo": (1100.0, 130.0, 0.9),
}
CONTRASTS = ("T2", "T1")
_TIMES = {"T2": ((3600.0, 6000.0), (88.0, 112.0)), "T1": ((450.0, 620.0), (9.0, 15.0))}  # repetition, echo; ms
LARGEST = 4095


@dataclass(frozen=True)
class Coil:
    """How one series was taken.

    Attributes:
        contrast: One of :data:`CONTRASTS`.
        repetition_ms: Repetition time.
        echo_ms: (Effective) echo time.
        scale: Stored value of a signal of 1.
        noise: Standard deviation of the noise in each channel, as a share of the grey matter's signal.
        bias: (9,) coefficients of the logarithm of the sensitivity over x, y, z, their squares and products.
        blur_mm: Standard deviation of the in-plane point spread.
    """

    contrast: str
    repetition_ms: float
    echo_ms: float
    scale: float
    noise: float
    bias: tuple[float, ...]
    blur_mm: float

    def signal(self, tissue: str) -> float:
        """Spin-echo signal of a tissue: density x (1 - exp(-TR / T1)) x exp(-TE / T2)."""
        t1, t2, density = TISSUES[tissue]
        return density * (1.0 - math.exp(-self.repetition_ms / t1)) * math.exp(-self.echo_ms / t2)

    def sensitivity(self, x: Array, y: Array, z: float) -> Array:
        """Receiver sensitivity at positions in mm, about 1."""
        u, v = (np.asarray(place / 100.0, dtype=np.float32) for place in (x, y))
        w = z / 100.0
        terms = (u, v, np.full_like(u, w), u * u, v * v, np.full_like(u, w * w), u * v, u * w, v * w)
        total = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=np.float32)
        for coefficient, term in zip(self.bias, terms, strict=True):
            total += np.float32(coefficient) * term
        return np.asarray(np.exp(total))


def draw_coil(rng: np.random.Generator, contrast: str) -> Coil:
    """Draw times, scale, noise and sensitivity at random."""
    repetition, echo = (float(round(rng.uniform(*span))) for span in _TIMES[contrast])
    bias = (*rng.normal(0.0, 0.12, size=3), *rng.normal(0.0, 0.16, size=6))
    # The brightest common tissue is stored somewhere between 300 and 2500: no two scanners agree.
    coil = Coil(
        contrast,
        repetition,
        echo,
        1.0,
        float(rng.uniform(0.03, 0.11)),
        tuple(map(float, bias)),
        float(rng.uniform(0.4, 0.9)),
    )
    level = 300.0 * float(2.0 ** rng.uniform(0.0, 3.0)) / coil.signal("fluid" if contrast == "T2" else "fat")
    return Coil(contrast, repetition, echo, level, coil.noise, coil.bias, coil.blur_mm)


def acquire_mr(
    coil: Coil, rng: np.random.Generator, shares: dict[str, Array], halo: Array, pixel_mm: float, z_mm: float
) -> NDArray[np.uint16]:
    """The magnitude image of one slice.

    Args:
        coil: The scanner.
        rng: Source of the noise.
        shares: Tissue -> share of each pixel (rows, cols).
        halo: Share of the white matter that is altered, (rows, cols).
        pixel_mm: Pixel spacing.
        z_mm: World z of the slice.

    Returns:
        uint16 signal, shape (rows, cols), at most :data:`LARGEST`.
    """
    image = np.zeros_like(halo)
    for tissue in TISSUES:
        if tissue == "halo":
            image += shares["white"] * halo * np.float32(coil.signal("halo") - coil.signal("white"))
        else:
            image += shares[tissue] * np.float32(coil.signal(tissue))
    rows, cols = image.shape
    y = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2)[:, None] * pixel_mm
    x = (np.arange(cols, dtype=np.float32) - (cols - 1) / 2)[None, :] * pixel_mm
    image = ndimage.gaussian_filter(image, coil.blur_mm / pixel_mm, truncate=3.0) * coil.sensitivity(x, y, z_mm)
    deviation = coil.noise * coil.signal("grey")
    real, imaginary = rng.standard_normal((2, rows, cols), dtype=np.float32) * np.float32(deviation)
    magnitude = np.sqrt((image + real) ** 2 + imaginary**2) * np.float32(coil.scale)
    stored: NDArray[np.uint16] = np.clip(np.rint(magnitude), 0, LARGEST).astype(np.uint16)
    return stored


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
