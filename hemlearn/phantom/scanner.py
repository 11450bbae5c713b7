"""The scanner: point spread, correlated noise, rings, and storage as int16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.phantom.shapes import Array

HU_RANGE = (-1024, 3071)


@dataclass(frozen=True)
class Scanner:
    """How one series was taken.

    Attributes:
        psf_mm: Standard deviation of the in-plane point spread.
        noise_hu: Standard deviation of the noise inside the head; it falls with the square root of the dose.
        grain_mm: Correlation length of the noise, set by the reconstruction kernel.
        sharpen: Edge enhancement of the kernel, 0 for a smooth one.
        ring_hu: Amplitude of ring artefacts, 0 for none.
        offset_hu: Calibration error of soft tissue; scanners and tube voltages differ by a few HU.
    """

    psf_mm: float
    noise_hu: float
    grain_mm: float
    sharpen: float
    ring_hu: float
    offset_hu: float = 0.0


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw kernel, dose and artefacts at random."""
    return Scanner(
        psf_mm=float(rng.uniform(0.45, 0.85)),
        noise_hu=float(rng.uniform(1.5, 3.8)),
        grain_mm=float(rng.uniform(0.5, 0.95)),
        sharpen=float(rng.choice((0.0, rng.uniform(0.1, 0.5)))),
        ring_hu=float(rng.choice((0.0, rng.uniform(0.4, 1.2)), p=(0.8, 0.2))),
        offset_hu=float(np.clip(rng.normal(0.0, 2.5), -5.0, 5.0)),
    )


def acquire(scanner: Scanner, rng: np.random.Generator, hu: Array, pixel_mm: float) -> NDArray[np.int16]:
    """Turn the ideal attenuation of one slice into what the scanner stores.

    Args:
        scanner: Kernel and dose.
        rng: Source of the noise.
        hu: Ideal attenuation, shape (rows, cols), HU.
        pixel_mm: Pixel spacing.

    Returns:
        int16 HU, shape (rows, cols), within :data:`HU_RANGE`.
    """
    image = ndimage.gaussian_filter(hu + scanner.offset_hu * (hu > -500.0), scanner.psf_mm / pixel_mm, truncate=3.0)
    if scanner.sharpen > 0:
        image += scanner.sharpen * (image - ndimage.gaussian_filter(image, 1.1 / pixel_mm, truncate=3.0))
    white = rng.standard_normal(size=hu.shape, dtype=np.float32)
    # Filtered back projection leaves no slow noise: the grain is a band, not a blur.
    fine = ndimage.gaussian_filter(white, scanner.grain_mm / pixel_mm, truncate=3.0)
    grain = fine - 0.75 * ndimage.gaussian_filter(fine, 2.2 * scanner.grain_mm / pixel_mm, truncate=3.0)
    grain *= scanner.noise_hu / max(float(grain.std()), 1e-6)
    rows, cols = hu.shape
    y = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2)[:, None] * pixel_mm
    x = (np.arange(cols, dtype=np.float32) - (cols - 1) / 2)[None, :] * pixel_mm
    radius = np.sqrt(x * x + y * y)
    # The longest paths cross the centre, so it is the noisiest.
    image += grain * (0.75 + 0.4 * np.exp(-((radius / 75.0) ** 2)))
    if scanner.ring_hu > 0:
        profile = rng.normal(0.0, scanner.ring_hu, size=160).astype(np.float32)
        image += np.interp(radius.ravel(), np.arange(160, dtype=np.float32), profile).reshape(hu.shape)
    stored: NDArray[np.int16] = np.clip(np.rint(image), *HU_RANGE).astype(np.int16)
    return stored
