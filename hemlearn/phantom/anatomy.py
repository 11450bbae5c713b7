"""One person's head: the random draw that describes it and the drawing of it in Hounsfield units.

Head coordinates are millimetres with x to the patient's left, y posterior and z superior (the axes of DICOM's
patient system, PS3.3 C.7.6.2.1.1); z = 0 lies near the plane through the anterior and posterior commissures.
World coordinates are those of the scanner: the head stands in them rotated and shifted. Every structure is an
analytic function of position, so a single slice can be drawn without the rest and equals the same slice of the
whole volume.

HU of tissues follow the usual ranges on unenhanced CT: cerebrospinal fluid 0-15, white matter 20-32, grey
matter 35-42, muscle 40-60, fat -120 to -60, cortical bone above 1000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# --- Soft geometric primitives in millimetres: the vocabulary in which the head is drawn.


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


AIR_HU = -1000.0
Displacement = Callable[[Array, Array, Array], tuple[Array, Array, Array]]


@dataclass(frozen=True)
class Calcification:
    """A calcified spot: a normal finding that is bright and no blood.

    Attributes:
        name: Where it lies, for example ``pineal``.
        centre: Head coordinates in mm.
        radii: Half axes in mm.
        hu: Attenuation at the core.
    """

    name: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: float


@dataclass(frozen=True)
class Head:
    """Everything that describes one head. Lengths in mm, attenuation in HU, angles in radians.

    ``half_width``, ``half_length`` and ``height`` are the half axes of the inner table; ``atrophy`` runs from 0
    (young) to 1 (severe); ``rotation`` maps head to world coordinates, then ``shift`` is added.
    """

    age: float
    half_width: float
    half_length: float
    height: float
    squareness: float
    egg: float
    skew: float
    skull_mm: float
    scalp_mm: float
    atrophy: float
    sulcus_mm: float
    subarachnoid_mm: float
    ventricles: float
    ventricle_sides: tuple[float, float]
    grey_hu: float
    white_hu: float
    csf_hu: float
    falx_hu: float
    sinus_hu: float
    frontal_sinus_mm: float
    small_vessel: float
    petrous_streak_hu: float
    cupping_hu: float
    calcifications: tuple[Calcification, ...]
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    sulci: Waves = field(repr=False)
    relief: Waves = field(repr=False)
    wander: Waves = field(repr=False)
    grain: Waves = field(repr=False)

    def to_head(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """World coordinates (mm) to head coordinates."""
        r = self.rotation.astype(np.float32)
        dx, dy, dz = (value - np.float32(s) for value, s in zip((x, y, z), self.shift, strict=True))
        return (
            r[0, 0] * dx + r[1, 0] * dy + r[2, 0] * dz,
            r[0, 1] * dx + r[1, 1] * dy + r[2, 1] * dz,
            r[0, 2] * dx + r[1, 2] * dy + r[2, 2] * dz,
        )

    def to_world(self, point: tuple[float, float, float]) -> NDArray[np.float64]:
        """One head position (mm) to world coordinates, shape (3,)."""
        world: NDArray[np.float64] = self.rotation @ np.asarray(point, dtype=np.float64) + self.shift
        return world


def _rotation(in_plane: float, pitch: float, roll: float) -> NDArray[np.float64]:
    ci, si, cp, sp, cr, sr = (f(a) for a in (in_plane, pitch, roll) for f in (np.cos, np.sin))
    about_z = np.array([[ci, -si, 0], [si, ci, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    return np.asarray(about_z @ about_x @ about_y, dtype=np.float64)


def _calcifications(rng: np.random.Generator, age: float) -> tuple[Calcification, ...]:
    """Physiological calcifications; each becomes commoner with age."""
    old = np.clip((age - 15.0) / 60.0, 0.0, 1.0)
    found: list[Calcification] = []

    def add(name: str, chance: float, centre: tuple[float, float, float], size: float, hu: float) -> None:
        if rng.uniform() < chance:
            jitter = rng.normal(0.0, 0.8, size=3)
            x, y, z = (float(c + j) for c, j in zip(centre, jitter, strict=True))
            rx, ry, rz = (float(size * s) for s in rng.uniform(0.7, 1.35, size=3))
            found.append(Calcification(name, (x, y, z), (rx, ry, rz), hu))

    add("pineal", 0.25 + 0.5 * old, (0.0, 26.0, 1.0), rng.uniform(1.5, 3.2), rng.uniform(70, 350))
    add("habenula", 0.1 + 0.2 * old, (0.0, 20.0, 3.0), rng.uniform(1.0, 1.8), rng.uniform(60, 200))
    plexus = rng.uniform() < 0.1 + 0.45 * old
    for side in (-1.0, 1.0):
        size, hu = rng.uniform(1.4, 3.6), rng.uniform(55, 400)
        add("choroid plexus", 0.85 if plexus else 0.0, (side * 24.0, 36.0, 9.0), size, hu)
    ganglia = rng.uniform() < 0.05 + 0.25 * old
    for side in (-1.0, 1.0):
        size, hu = rng.uniform(1.8, 4.5), rng.uniform(48, 110)
        add("basal ganglia", 0.9 if ganglia else 0.0, (side * 19.0, 0.0, 2.0), size, hu)
    for _ in range(2):
        y, z = rng.uniform(-62, -30), rng.uniform(25, 60)
        if rng.uniform() < 0.05 + 0.25 * old:
            radii = (float(rng.uniform(0.9, 2.2)), float(rng.uniform(3, 9)), float(rng.uniform(3, 8)))
            found.append(Calcification("falx", (0.0, float(y), float(z)), radii, float(rng.uniform(90, 600))))
    for side in (-1.0, 1.0):
        size, hu = rng.uniform(1.2, 2.0), rng.uniform(50, 160)
        add("carotid siphon", 0.1 + 0.4 * old, (side * 11.0, -12.0, -24.0), size, hu)
        size, hu = rng.uniform(1.2, 1.9), rng.uniform(42, 58)
        add("middle cerebral artery", 0.5, (side * 20.0, -9.0, -13.0), size, hu)
    add("basilar artery", 0.6, (0.0, -4.0, -20.0), rng.uniform(1.3, 2.2), rng.uniform(42, 62))
    return tuple(found)


def draw_head(rng: np.random.Generator) -> Head:
    """Draw one head at random: its size, shape, age, posture and normal variants."""
    age = float(rng.uniform(18, 92))
    size = float(np.clip(rng.normal(1.0, 0.035), 0.9, 1.1))
    atrophy = float(np.clip((age - 45.0) / 55.0 + rng.normal(0.0, 0.16), 0.0, 1.0))
    degrees = np.pi / 180.0
    tilt = _rotation(
        float(np.clip(rng.normal(0.0, 5.0), -14, 14)) * degrees,
        float(np.clip(rng.normal(0.0, 5.0), -13, 13)) * degrees,
        float(np.clip(rng.normal(0.0, 2.5), -7, 7)) * degrees,
    )
    return Head(
        age=age,
        half_width=66.0 * size * float(rng.normal(1.0, 0.03)),
        half_length=82.0 * size * float(rng.normal(1.0, 0.03)),
        height=71.0 * size * float(rng.normal(1.0, 0.03)),
        squareness=float(rng.uniform(2.1, 2.5)),
        egg=float(rng.uniform(0.02, 0.09)),
        skew=float(rng.normal(0.0, 0.02)),
        skull_mm=float(rng.uniform(4.2, 10.8)),
        scalp_mm=float(rng.uniform(3.5, 8.0)),
        atrophy=atrophy,
        sulcus_mm=0.42 + 1.15 * atrophy + float(rng.uniform(0.0, 0.4)),
        subarachnoid_mm=0.5 + 2.6 * atrophy + float(rng.uniform(0.0, 0.6)),
        ventricles=float(np.clip(0.72 + 0.75 * atrophy + rng.normal(0.0, 0.14), 0.45, 1.7)),
        ventricle_sides=(float(rng.uniform(0.88, 1.12)), float(rng.uniform(0.88, 1.12))),
        grey_hu=float(rng.uniform(36.0, 39.5)),
        white_hu=float(rng.uniform(26.5, 30.0)),
        csf_hu=float(rng.uniform(4.0, 10.0)),
        falx_hu=float(rng.uniform(42.0, 58.0)),
        sinus_hu=float(rng.uniform(44.0, 60.0)),
        frontal_sinus_mm=float(rng.uniform(0.0, 9.0)),
        small_vessel=float(np.clip((age - 55.0) / 40.0 + rng.normal(0.0, 0.25), 0.0, 1.0)),
        petrous_streak_hu=float(rng.uniform(3.0, 16.0)),
        cupping_hu=float(rng.uniform(0.0, 5.0)),
        calcifications=_calcifications(rng, age),
        rotation=tilt,
        shift=np.array([rng.normal(0, 4), rng.normal(0, 4), rng.normal(0, 2)], dtype=np.float64),
        sulci=Waves(rng, (19.0, 34.0), 20),
        relief=Waves(rng, (55.0, 110.0), 6),
        wander=Waves(rng, (14.0, 34.0), 7),
        grain=Waves(rng, (9.0, 40.0), 8),
    )
