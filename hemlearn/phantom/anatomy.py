"""One person's head: the random draw that describes it, and the shapes in which it is drawn.

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
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Points = tuple[Array, Array, Array]  # x, y and z in mm, each (N,)
Triple = tuple[float, float, float]
_TURNS_DEG = ((5.0, 14), (5.0, 13), (2.5, 7))  # usual and largest: in the plane, pitch, roll


def single(x: float, y: float, z: float) -> Points:
    """One position (mm) as points, N = 1."""
    return np.array([x], dtype=np.float32), np.array([y], dtype=np.float32), np.array([z], dtype=np.float32)


def pick(points: Points, index: NDArray[np.intp]) -> Points:
    """Some of the points."""
    x, y, z = points
    return x[index], y[index], z[index]


def cover(distance: Array, soft: float = 1.0) -> Array:
    """Coverage in [0, 1] of a shape at signed ``distance`` (mm), with an edge ``soft`` mm wide."""
    return np.asarray(np.clip(0.5 - distance / soft, 0.0, 1.0))


def sigmoid(value: Array) -> Array:
    """Logistic function, safe for large arguments."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * value)))


def ellipsoid(x: Array, y: Array, z: Array, centre: Triple, radii: Triple) -> Array:
    """First-order signed distance (mm) to an axis-aligned ellipsoid with its ``centre`` and ``radii`` in mm."""
    u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    k0 = np.sqrt(u * u + v * v + w * w)
    u, v, w = u / radii[0], v / radii[1], w / radii[2]
    k1 = np.sqrt(u * u + v * v + w * w) + 1e-6
    return np.asarray(k0 * (k0 - 1.0) / k1)


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


def union(*distances: Array) -> Array:
    """Signed distance to the union of shapes (the pointwise minimum)."""
    return reduce(np.minimum, distances)


def most(*values: Array) -> Array:
    """Pointwise maximum, of coverages or of distances to an intersection."""
    return reduce(np.maximum, values)


def smooth_min(a: Array, b: Array, blend: float) -> Array:
    """Minimum of two distances with its crease rounded over ``blend`` mm."""
    h = np.maximum(blend - np.abs(a - b), 0.0) / blend
    return np.asarray(np.minimum(a, b) - h * h * blend * 0.25)


class Waves:
    """A smooth random function of position: ``count`` plane waves of random length (mm), zero mean, unit variance.

    It needs no grid, so any slab of a head sees exactly the values that the whole head would.
    """

    def __init__(self, rng: Generator, wavelength: tuple[float, float], count: int) -> None:
        direction = rng.normal(size=(3, count))
        direction /= np.linalg.norm(direction, axis=0)
        k = 2.0 * np.pi / rng.uniform(*wavelength, size=count)
        phase = rng.uniform(0.0, 2.0 * np.pi, size=count)
        self._waves = list(zip(*(direction * k).astype(np.float32), phase.astype(np.float32), strict=True))
        self._scale = np.float32(np.sqrt(2.0 / count))

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """Value at the positions (mm)."""
        total: Array = np.zeros(x.shape, dtype=np.float32)
        angle, term = np.empty_like(total), np.empty_like(total)  # reused: fresh memory costs as much as the cosine
        # A loop, not a matrix product: small threaded products stall when several processes draw heads.
        for wave in self._waves:
            total += np.cos(self._phase(wave, (x, y, z), angle, term), out=angle)
        return total * self._scale

    def crease(self, x: Array, y: Array, z: Array) -> Array:
        """Distance (mm, first order, >= 0) from the positions to the nearest zero of the function."""
        value, gx, gy, gz = (np.zeros(x.shape, dtype=np.float32) for _ in range(4))
        angle, term = np.empty_like(value), np.empty_like(value)
        for wave in self._waves:
            self._phase(wave, (x, y, z), angle, term)
            value += np.cos(angle, out=term)
            slope = np.sin(angle, out=angle)
            for total, k in zip((gx, gy, gz), wave, strict=False):
                total += np.multiply(slope, k, out=term)
        return np.asarray(np.abs(value) / (np.sqrt(gx * gx + gy * gy + gz * gz) + np.float32(1e-3)))

    @staticmethod
    def _phase(wave: tuple[np.float32, ...], place: Points, angle: Array, term: Array) -> Array:
        """Write the angle of one wave (three components, phase) into ``angle`` and return it; ``term`` is scratch."""
        np.multiply(place[0], wave[0], out=angle)
        angle += np.multiply(place[1], wave[1], out=term)
        angle += np.multiply(place[2], wave[2], out=term)
        angle += wave[3]
        return angle


@dataclass(frozen=True)
class Calcification:
    """A calcified spot, bright and no blood: where it lies, centre and half axes (mm), HU at its core."""

    name: str
    centre: Triple
    radii: Triple
    hu: float


# How a field of a head is drawn: from the source of chance and the fields before it.
Draw = Callable[[Generator, Any], Any]


def _between(low: float, high: float) -> Draw:
    return lambda rng, _: float(rng.uniform(low, high))


def _about(mean: Callable[[Any], float], spread: float, low: float, high: float) -> Draw:
    return lambda rng, head: float(np.clip(mean(head) + rng.normal(0.0, spread), low, high))


def _half_axis(mm: float) -> Draw:
    return lambda rng, head: mm * head.size * float(rng.normal(1.0, 0.03))


def _waves(shortest: float, longest: float, count: int) -> Draw:
    return lambda rng, _: Waves(rng, (shortest, longest), count)


@dataclass(frozen=True)
class Head:
    """Everything that describes one head, and how it is drawn. Lengths in mm, attenuation in HU, angles in radians.

    ``half_width``, ``half_length`` and ``height`` are the half axes of the inner table; ``atrophy`` runs from 0
    (young) to 1 (severe); ``rotation`` maps head to world coordinates, then ``shift`` is added.
    """

    age: Annotated[float, _between(18, 92)]
    size: Annotated[float, lambda rng, _: float(np.clip(rng.normal(1.0, 0.035), 0.9, 1.1))]
    atrophy: Annotated[float, _about(lambda head: (head.age - 45.0) / 55.0, 0.16, 0.0, 1.0)]
    rotation: Annotated[NDArray[np.float64], lambda rng, _: _draw_posture(rng)]
    half_width: Annotated[float, _half_axis(66.0)]
    half_length: Annotated[float, _half_axis(82.0)]
    height: Annotated[float, _half_axis(71.0)]
    squareness: Annotated[float, _between(2.1, 2.5)]
    egg: Annotated[float, _between(0.02, 0.09)]
    skew: Annotated[float, lambda rng, _: float(rng.normal(0.0, 0.02))]
    skull_mm: Annotated[float, _between(4.2, 10.8)]
    scalp_mm: Annotated[float, _between(3.5, 8.0)]
    sulcus_mm: Annotated[float, lambda rng, head: 0.42 + 1.15 * head.atrophy + float(rng.uniform(0.0, 0.4))]
    subarachnoid_mm: Annotated[float, lambda rng, head: 0.5 + 2.6 * head.atrophy + float(rng.uniform(0.0, 0.6))]
    ventricles: Annotated[float, _about(lambda head: 0.72 + 0.75 * head.atrophy, 0.14, 0.45, 1.7)]
    ventricle_sides: Annotated[tuple[float, float], lambda rng, _: tuple(rng.uniform(0.88, 1.12, size=2).tolist())]
    grey_hu: Annotated[float, _between(36.0, 39.5)]
    white_hu: Annotated[float, _between(26.5, 30.0)]
    csf_hu: Annotated[float, _between(4.0, 10.0)]
    falx_hu: Annotated[float, _between(42.0, 58.0)]
    sinus_hu: Annotated[float, _between(44.0, 60.0)]
    frontal_sinus_mm: Annotated[float, _between(0.0, 9.0)]
    small_vessel: Annotated[float, _about(lambda head: (head.age - 55.0) / 40.0, 0.25, 0.0, 1.0)]
    petrous_streak_hu: Annotated[float, _between(3.0, 16.0)]
    cupping_hu: Annotated[float, _between(0.0, 5.0)]
    calcifications: Annotated[tuple[Calcification, ...], lambda rng, head: _draw_calcifications(rng, head.age)]
    shift: Annotated[NDArray[np.float64], lambda rng, _: rng.normal(0, (4, 4, 2))]
    sulci: Annotated[Waves, _waves(19.0, 34.0, 20)]
    relief: Annotated[Waves, _waves(55.0, 110.0, 6)]
    wander: Annotated[Waves, _waves(14.0, 34.0, 7)]
    grain: Annotated[Waves, _waves(9.0, 40.0, 8)]

    def to_head(self, x: Array, y: Array, z: Array) -> Points:
        """World coordinates (mm) to head coordinates."""
        r = self.rotation.astype(np.float32)
        dx, dy, dz = (value - np.float32(s) for value, s in zip((x, y, z), self.shift, strict=True))
        hx, hy, hz = (r[0, axis] * dx + r[1, axis] * dy + r[2, axis] * dz for axis in range(3))
        return hx, hy, hz

    def to_world(self, point: Triple) -> NDArray[np.float64]:
        """One head position (mm) to world coordinates, shape (3,)."""
        return np.asarray(self.rotation @ np.asarray(point, dtype=np.float64) + self.shift)

    def within(self, x: Array, y: Array, z: Array) -> NDArray[np.intp]:
        """Indices of the head positions (mm) that head or scalp may reach; all others are air."""
        reach = (self.half_width * 1.12 + 17.0, self.half_length * 1.04 + 17.0)
        near = ((x / reach[0]) ** 2 + (y / reach[1]) ** 2 < 1.0) & (z < self.height + 45.0)
        return np.flatnonzero(near)


def _draw_posture(rng: Generator) -> NDArray[np.float64]:
    """Rotation in the plane, pitch and roll."""
    turns = [np.clip(rng.normal(0.0, usual), -limit, limit) * (np.pi / 180.0) for usual, limit in _TURNS_DEG]
    (ci, si), (cp, sp), (cr, sr) = ((np.cos(turn), np.sin(turn)) for turn in turns)
    about_z = np.array([[ci, -si, 0], [si, ci, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    return np.asarray(about_z @ about_x @ about_y, dtype=np.float64)


def _draw_calcifications(rng: Generator, age: float) -> tuple[Calcification, ...]:
    """Physiological calcifications; each becomes commoner with age."""
    old = np.clip((age - 15.0) / 60.0, 0.0, 1.0)
    found: list[Calcification] = []

    def add(name: str, chance: float, centre: Triple, size: tuple[float, float], hu: tuple[float, float]) -> None:
        mm, value = rng.uniform(*size), float(rng.uniform(*hu))
        if rng.uniform() < chance:
            x, y, z = (float(c + j) for c, j in zip(centre, rng.normal(0.0, 0.8, size=3), strict=True))
            rx, ry, rz = (float(mm * s) for s in rng.uniform(0.7, 1.35, size=3))
            found.append(Calcification(name, (x, y, z), (rx, ry, rz), value))

    add("pineal", 0.25 + 0.5 * old, (0.0, 26.0, 1.0), (1.5, 3.2), (70, 350))
    add("habenula", 0.1 + 0.2 * old, (0.0, 20.0, 3.0), (1.0, 1.8), (60, 200))
    plexus = 0.85 if rng.uniform() < 0.1 + 0.45 * old else 0.0
    for side in (-1.0, 1.0):
        add("choroid plexus", plexus, (side * 24.0, 36.0, 9.0), (1.4, 3.6), (55, 400))
    ganglia = 0.9 if rng.uniform() < 0.05 + 0.25 * old else 0.0
    for side in (-1.0, 1.0):
        add("basal ganglia", ganglia, (side * 19.0, 0.0, 2.0), (1.8, 4.5), (48, 110))
    for _ in range(2):
        y, z = rng.uniform(-62, -30), rng.uniform(25, 60)
        if rng.uniform() < 0.05 + 0.25 * old:
            radii = (float(rng.uniform(0.9, 2.2)), float(rng.uniform(3, 9)), float(rng.uniform(3, 8)))
            found.append(Calcification("falx", (0.0, float(y), float(z)), radii, float(rng.uniform(90, 600))))
    for side in (-1.0, 1.0):
        add("carotid siphon", 0.1 + 0.4 * old, (side * 11.0, -12.0, -24.0), (1.2, 2.0), (50, 160))
        add("middle cerebral artery", 0.5, (side * 20.0, -9.0, -13.0), (1.2, 1.9), (42, 58))
    add("basilar artery", 0.6, (0.0, -4.0, -20.0), (1.3, 2.2), (42, 62))
    return tuple(found)


_FIELDS = get_type_hints(Head, globals(), include_extras=True)


def draw_head(rng: Generator) -> Head:
    """Draw one head at random: its size, shape, age, posture and normal variants."""
    values = SimpleNamespace()
    for name, kind in _FIELDS.items():
        setattr(values, name, kind.__metadata__[0](rng, values))
    return Head(**vars(values))
