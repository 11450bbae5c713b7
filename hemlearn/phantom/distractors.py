"""What looks like blood in a single slice and is none.

Radiologists meet these daily: the slice grazes the vault, the petrous ridge or the tentorium and averages bone with
brain, beam hardening brightens a patch, a streak crosses the brain, a vessel or a calcified plexus lies in the plane.
In one slice they cannot be told from hemorrhage; the slices above and below, which show nothing, tell. They are
therefore drawn with the outlines and the attenuation of real hemorrhages, in one slice only, and displace nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hemlearn.phantom.anatomy import Head
from hemlearn.phantom.lesions import Lesion, Scene
from hemlearn.phantom.placement import draw_lesion, inner_table, texture
from hemlearn.phantom.shapes import Array, Triple, cover, ellipsoid
from hemlearn.phantom.skull import floor_height

# Kind -> how often, and the subtype whose outline it borrows (None: an outline of its own).
KINDS: dict[str, tuple[float, str | None]] = {
    "beam hardening": (0.30, "intraparenchymal"),
    "partial volume of the vault": (0.13, "epidural"),
    "partial volume of vault or tentorium": (0.22, "subdural"),
    "vessel": (0.10, "subarachnoid"),
    "plexus calcification": (0.07, "intraventricular"),
    "petrous ridge": (0.05, None),
    "vertex": (0.03, None),
    "streak": (0.05, None),
    "calcification": (0.05, None),
}


@dataclass(frozen=True)
class Spot(Lesion):
    """A round or oval patch."""

    radii: Triple = (4.0, 4.0, 4.0)

    def coverage(self, scene: Scene) -> Array:
        """See :meth:`Lesion.coverage`."""
        x, y, z = scene.place
        distance = ellipsoid(x, y, z, self.centre, self.radii) + 0.1 * min(self.radii) * self.texture(x, y, z)
        patch: Array = cover(distance, 1.5) * cover(-scene.depth)
        return patch


@dataclass(frozen=True)
class Streak(Lesion):
    """A straight bright band across the brain."""

    angle: float = 0.0
    half_length: float = 30.0
    half_width: float = 2.0

    def coverage(self, scene: Scene) -> Array:
        """See :meth:`Lesion.coverage`."""
        x, y, _ = scene.place
        dx, dy = x - self.centre[0], y - self.centre[1]
        along = dx * np.float32(np.cos(self.angle)) + dy * np.float32(np.sin(self.angle))
        across = dy * np.float32(np.cos(self.angle)) - dx * np.float32(np.sin(self.angle))
        taper = np.sqrt(np.clip(1.0 - (along / self.half_length) ** 2, 0.0, 1.0))
        band: Array = cover(np.abs(across) - self.half_width * taper, 1.2) * np.clip(taper / 0.3, 0, 1)
        return band * cover(0.5 - scene.depth)


@dataclass(frozen=True)
class Distractor:
    """One look-alike.

    Attributes:
        kind: A key of :data:`KINDS`.
        z_mm: World z of the centre of the only slice that shows it.
        shape: Its outline and attenuation; its subtype means nothing.
    """

    kind: str
    z_mm: float
    shape: Lesion

    def paint(self, hu: Array, scene: Scene) -> Array:
        """Draw it over ``hu`` (N,) in place and return its coverage; no edema, no mass effect."""
        return Lesion.paint(self.shape, hu, scene)


def draw_shape(rng: np.random.Generator, head: Head, conspicuity: float) -> tuple[str, Lesion] | None:
    """Draw the kind and outline of a look-alike; None when this kind cannot be placed in this head.

    Args:
        rng: Source of chance.
        head: The head it is put into.
        conspicuity: 0 (barely visible) to 1, as of hemorrhages.
    """
    weights = np.array([weight for weight, _ in KINDS.values()])
    kind = list(KINDS)[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
    like = KINDS[kind][1]
    shape = draw_lesion(rng, head, like, conspicuity) if like is not None else _own(rng, head, kind, conspicuity)
    return None if shape is None else (kind, shape)


def _own(rng: np.random.Generator, head: Head, kind: str, c: float) -> Lesion:
    side = float(rng.choice((-1.0, 1.0)))
    hu = 50.0 + 24.0 * c + float(rng.normal(0, 3))
    waves = texture(rng)
    if kind == "petrous ridge":
        x = side * float(rng.uniform(22, 46))
        y = 2.0 + 0.62 * (abs(x) - 10.0) + float(rng.uniform(0, 6))
        floor = floor_height(*(np.array([v], dtype=np.float32) for v in (x, y)))[0]
        radii = (5.0 + 9.0 * c, 3.5 + 5.0 * c, 8.0)
        return Spot("", kind, (x, y, float(floor[0]) + 5.0), c, hu, waves, radii)
    if kind == "vertex":
        x, y, z = inner_table(head, (side * float(rng.uniform(0.1, 0.35)), float(rng.uniform(-0.3, 0.3)), 1.0))
        return Spot("", kind, (x, y, z - 7.0), c, hu, waves, (4.0 + 10.0 * c, 5.0 + 12.0 * c, 8.0))
    middle = (side * float(rng.uniform(5, 45)), float(rng.uniform(-45, 50)), float(rng.uniform(-28, 48)))
    if kind == "streak":
        angle, half_length = float(rng.uniform(0, np.pi)), float(rng.uniform(14, 24)) + 26.0 * c
        return Streak("", kind, middle, c, hu, waves, angle, half_length, 1.2 + 2.5 * c)
    radius = float(rng.uniform(2.3, 3.2)) + 2.5 * c
    return Spot("", kind, middle, c, max(hu, 60.0), waves, (radius, radius, radius))
