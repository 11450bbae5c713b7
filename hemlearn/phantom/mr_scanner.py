"""The MR scanner: spin-echo contrast, coil sensitivity, Rician noise and a scale that means nothing.

Relaxation times and proton densities are those of the BrainWeb phantom at 1.5 T (Collins et al. 1998, IEEE Trans Med
Imaging 17:463); magnitudes of noisy complex images follow the Rice distribution (Gudbjartsson and Patz 1995, Magn Reson
Med 34:910).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.phantom.shapes import Array

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
