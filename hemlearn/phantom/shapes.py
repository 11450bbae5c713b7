"""Soft geometric primitives in millimetres: the vocabulary in which the head is drawn.

All functions take flat float arrays of one common length (float32 in practice) and return *signed distances* in
mm, negative inside. :func:`cover` turns a distance into a coverage in [0, 1], so that an edge is a ramp of about
one voxel and not a staircase.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Triple = tuple[float, float, float]


def cover(distance: Array, soft: float = 1.0) -> Array:
    """Coverage in [0, 1] of a shape at signed ``distance`` (mm), with an edge ``soft`` mm wide."""
    share: Array = np.clip(0.5 - distance / soft, 0.0, 1.0)
    return share


def sigmoid(value: Array) -> Array:
    """Logistic function, safe for large arguments."""
    share: Array = 0.5 * (1.0 + np.tanh(0.5 * value))
    return share


def ellipsoid(x: Array, y: Array, z: Array, centre: Triple, radii: Triple) -> Array:
    """First-order signed distance (mm) to an axis-aligned ellipsoid with its ``centre`` and ``radii`` in mm."""
    u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    k0 = np.sqrt(u * u + v * v + w * w)
    u, v, w = u / radii[0], v / radii[1], w / radii[2]
    k1 = np.sqrt(u * u + v * v + w * w) + 1e-6
    distance: Array = k0 * (k0 - 1.0) / k1
    return distance


def chain(x: Array, y: Array, z: Array, knots: Sequence[tuple[float, float, float, float]]) -> Array:
    """Signed distance (mm) to a tube along ``knots`` (x, y, z, radius), its radius linear between them."""
    best: Array = np.full(x.shape, np.inf, dtype=np.float32)
    for (ax, ay, az, ar), (bx, by, bz, br) in pairwise(knots):
        dx, dy, dz = bx - ax, by - ay, bz - az
        length2 = dx * dx + dy * dy + dz * dz
        t = np.clip(((x - ax) * dx + (y - ay) * dy + (z - az) * dz) / length2, 0.0, 1.0)
        gap = np.sqrt((x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2 + (z - az - t * dz) ** 2)
        best = np.minimum(best, gap - (ar + t * (br - ar)))
    return best


def union(first: Array, *others: Array) -> Array:
    """Signed distance to the union of shapes (the pointwise minimum)."""
    for other in others:
        first = np.minimum(first, other)
    return first


def most(first: Array, *others: Array) -> Array:
    """Pointwise maximum, of coverages or of distances to an intersection."""
    for other in others:
        first = np.maximum(first, other)
    return first


def smooth_min(a: Array, b: Array, blend: float) -> Array:
    """Minimum of two distances with its crease rounded over ``blend`` mm."""
    h = np.maximum(blend - np.abs(a - b), 0.0) / blend
    distance: Array = np.minimum(a, b) - h * h * blend * 0.25
    return distance


def _phase(
    angle: Array, term: Array, place: tuple[Array, Array, Array], k: Sequence[np.float32], phase: np.float32
) -> Array:
    """Write ``k . place + phase`` into ``angle`` and return it; ``term`` is scratch."""
    np.multiply(place[0], k[0], out=angle)
    for axis in (1, 2):
        angle += np.multiply(place[axis], k[axis], out=term)
    angle += phase
    return angle


class Waves:
    """A smooth random function of position: a sum of plane waves, about zero mean and unit variance.

    It needs no grid, so any slab of a head sees exactly the values that the whole head would.

    Args:
        rng: Source of the wave vectors and phases.
        wavelength: Shortest and longest wavelength in mm.
        count: Number of waves.
    """

    def __init__(self, rng: np.random.Generator, wavelength: tuple[float, float], count: int) -> None:
        direction = rng.normal(size=(3, count))
        direction /= np.linalg.norm(direction, axis=0)
        k = 2.0 * np.pi / rng.uniform(*wavelength, size=count)
        self._k = (direction * k).astype(np.float32)
        self._phase = rng.uniform(0.0, 2.0 * np.pi, size=count).astype(np.float32)
        self._scale = np.float32(np.sqrt(2.0 / count))

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """Value at the positions (mm)."""
        total: Array = np.zeros(x.shape, dtype=np.float32)
        angle, term = np.empty_like(total), np.empty_like(total)  # reused: fresh memory costs as much as the cosine
        # A loop, not a matrix product: small threaded products stall when several processes draw heads.
        for (kx, ky, kz), phase in zip(self._k.T, self._phase, strict=True):
            total += np.cos(_phase(angle, term, (x, y, z), (kx, ky, kz), phase), out=angle)
        return total * self._scale

    def crease(self, x: Array, y: Array, z: Array) -> Array:
        """Distance (mm, first order, >= 0) from the positions to the nearest zero of the function."""
        value, gx, gy, gz = (np.zeros(x.shape, dtype=np.float32) for _ in range(4))
        angle, term = np.empty_like(value), np.empty_like(value)
        for (kx, ky, kz), phase in zip(self._k.T, self._phase, strict=True):
            _phase(angle, term, (x, y, z), (kx, ky, kz), phase)
            value += np.cos(angle, out=term)
            slope = np.sin(angle, out=angle)
            for total, k in ((gx, kx), (gy, ky), (gz, kz)):
                total += np.multiply(slope, k, out=term)
        steep = np.sqrt(gx * gx + gy * gy + gz * gz) + np.float32(1e-3)
        crease: Array = np.abs(value) / steep
        return crease
