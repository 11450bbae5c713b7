"""Where hemorrhages are put: a random draw of sites that are anatomically possible.

A lesion can be asked to meet a given slice. The slice is then chosen first and the lesion after it, so that
the position of a slice says nothing about whether it shows blood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hemlearn.phantom.anatomy import Array, Head, Triple, Waves, cover, ellipsoid
from hemlearn.phantom.lesions import (
    Epidural,
    Intraparenchymal,
    Intraventricular,
    Lesion,
    Scene,
    Subarachnoid,
    Subdural,
    suture_gap,
)
from hemlearn.phantom.skull import VAULT_CENTRE_Z, floor_height, vault

TRIES = 60
SUBTYPE_WEIGHTS = {
    "epidural": 0.14,
    "intraparenchymal": 0.42,
    "intraventricular": 0.08,
    "subarachnoid": 0.11,
    "subdural": 0.25,
}
_PARENCHYMA: tuple[tuple[str, float, Triple, float], ...] = (
    ("putamen", 0.26, (26.0, -2.0, 5.0), 3.0),
    ("thalamus", 0.15, (11.0, 9.0, 6.0), 2.0),
    ("frontal lobe", 0.17, (27.0, -42.0, 24.0), 11.0),
    ("parietal lobe", 0.15, (32.0, 28.0, 38.0), 11.0),
    ("temporal lobe", 0.1, (46.0, 6.0, -16.0), 7.0),
    ("occipital lobe", 0.07, (27.0, 56.0, 14.0), 7.0),
    ("cerebellum", 0.07, (21.0, 46.0, -34.0), 6.0),
    ("pons", 0.03, (0.0, 13.0, -30.0), 2.0),
)
_CISTERNS: tuple[tuple[str, float, Triple, float], ...] = (
    ("suprasellar cistern", 0.3, (0.0, -6.0, -15.0), 3.0),
    ("Sylvian fissure", 0.24, (40.0, -8.0, 3.0), 4.0),
    ("perimesencephalic cistern", 0.08, (0.0, 18.0, -10.0), 2.0),
    ("interhemispheric fissure", 0.1, (0.0, -52.0, 18.0), 8.0),
)


def texture(rng: np.random.Generator) -> Waves:
    """The waves that make an outline irregular and a clot uneven."""
    return Waves(rng, (12.0, 38.0), 8)


def inner_table(head: Head, direction: Triple) -> Triple:
    """The point (mm) of the inner table in ``direction`` from the centre of the vault."""
    x, y, z = (np.array([40.0 * d], dtype=np.float32) for d in direction)
    shell = vault(head, x, y, z + np.float32(VAULT_CENTRE_Z))
    sx, sy, sz = (float(s[0]) for s in shell.surface)
    return sx, sy, sz


def _pick(rng: np.random.Generator, table: tuple[tuple[str, float, Triple, float], ...]) -> tuple[str, Triple]:
    weights = np.array([row[1] for row in table])
    name, _, (x, y, z), jitter = table[int(rng.choice(len(table), p=weights / weights.sum()))]
    jx, jy, jz = rng.normal(0.0, jitter, size=3)
    side = float(rng.choice((-1.0, 1.0)))
    return name, (side * x + float(jx), y + float(jy), z + float(jz))


def _convexity(rng: np.random.Generator, head: Head, low: float, high: float) -> Triple:
    """A random point of the lateral inner table, in mm, with z between ``low`` and ``high``."""
    azimuth = rng.uniform(-0.42, 0.42) * np.pi
    side = float(rng.choice((-1.0, 1.0)))
    z = rng.uniform(low, high) - VAULT_CENTRE_Z
    flat = 62.0 * np.sqrt(max(1.0 - (z / 75.0) ** 2, 0.05))
    return inner_table(head, (side * float(np.cos(azimuth)) * flat / 60, float(np.sin(azimuth)) * flat / 50, z / 60))


def _epidural(rng: np.random.Generator, head: Head, c: float) -> Lesion | None:
    centre = _convexity(rng, head, -12.0, 58.0)
    radius = min(float(rng.uniform(0.85, 1.15)) * (15.0 + 31.0 * c), suture_gap(*centre))
    if radius < 9.0 + 8.0 * c:
        return None
    thickness = min(float(rng.uniform(0.8, 1.2)) * (2.6 + 23.0 * c), 0.75 * radius)
    normal = np.array([centre[0], centre[1], centre[2] - VAULT_CENTRE_Z])
    nx, ny, nz = (float(v) for v in normal / np.linalg.norm(normal))
    hu = 49.0 + 25.0 * c + float(rng.normal(0, 3))
    return Epidural("epidural", "convexity", centre, c, hu, texture(rng), thickness, radius, (nx, ny, nz))


def _subdural(rng: np.random.Generator, head: Head, c: float) -> Lesion | None:
    site = str(rng.choice(("convexity", "falx", "tentorium"), p=(0.84, 0.1, 0.06)))
    hu = 44.0 + 28.0 * c + float(rng.normal(0, 3))
    if site == "convexity":
        centre = _convexity(rng, head, 0.0, 45.0)
        thickness = float(rng.uniform(0.8, 1.2)) * (2.0 + 15.0 * c)
        extent = (float(rng.uniform(32, 50)) + 35.0 * c, float(rng.uniform(20, 32)) + 22.0 * c)
        return Subdural("subdural", site, centre, c, hu, texture(rng), thickness, extent)
    side = float(rng.choice((-1.0, 1.0)))
    thickness = float(rng.uniform(0.8, 1.2)) * (1.6 + 5.5 * c)
    extent = (float(rng.uniform(14, 22)) + 16.0 * c, float(rng.uniform(14, 22)) + 12.0 * c)
    if site == "falx":
        front = rng.uniform() < 0.45
        y, z = (rng.uniform(-62, -44), rng.uniform(10, 50)) if front else (rng.uniform(35, 62), rng.uniform(18, 55))
        centre = (side * 2.0, float(y), float(z))
    else:
        y = float(rng.uniform(38, 62))
        centre = (side * 18.0, y, -0.5 * float(np.hypot(0.95 * 18.0, 0.74 * (y - 27.0))))
    return Subdural("subdural", site, centre, c, hu, texture(rng), thickness, extent)


def _intraparenchymal(rng: np.random.Generator, head: Head, c: float) -> Lesion | None:
    del head
    site, centre = _pick(rng, _PARENCHYMA)
    limit = 9.0 if site == "pons" else 15.0 if site in ("cerebellum", "thalamus") else 28.0
    radius = min((2.8 + 22.0 * c) * float(rng.uniform(0.85, 1.15)), limit)
    rx, ry, rz = (float(radius * s) for s in rng.uniform(0.75, 1.3, size=3))
    hu = 47.0 + 29.0 * c + float(rng.normal(0, 3))
    edema = 1.5 + (2.0 + 6.0 * c) * float(rng.uniform(0.3, 1.0))
    return Intraparenchymal("intraparenchymal", site, centre, c, hu, texture(rng), (rx, ry, rz), edema)


def _intraventricular(rng: np.random.Generator, head: Head, c: float) -> Lesion | None:
    hu = 42.0 + 32.0 * c + float(rng.normal(0, 3))
    side = float(rng.choice((-1.0, 1.0)))
    if rng.uniform() < 0.65:
        centre = (side * 24.0, 50.0, float(rng.uniform(-1.0, 13.0)))
        level = float(head.to_world((side * 22.0, 60.0, 4.0))[1]) - (4.0 + 30.0 * c)
        return Intraventricular("intraventricular", "layering", centre, c, hu, texture(rng), level)
    y = float(rng.uniform(-28.0, 34.0))
    centre = (side * (8.0 + 0.4 * max(y, 0.0)), y, float(rng.uniform(8.0, 22.0)))
    return Intraventricular("intraventricular", "cast", centre, c, hu, texture(rng))


def _subarachnoid(rng: np.random.Generator, head: Head, c: float) -> Lesion | None:
    hu = 40.0 + 36.0 * c + float(rng.normal(0, 3))
    if rng.uniform() < 0.34:
        site, outer = "convexity sulci", _convexity(rng, head, 5.0, 60.0)
        centre = (0.9 * outer[0], 0.9 * outer[1], 0.9 * (outer[2] - VAULT_CENTRE_Z) + VAULT_CENTRE_Z)
        reach = 14.0 + 30.0 * c
    else:
        site, centre = _pick(rng, _CISTERNS)
        reach = 18.0 + 55.0 * c
    swell = 0.2 + 1.1 * c
    return Subarachnoid("subarachnoid", site, centre, c, hu, texture(rng), reach, swell)


_DRAW: dict[str, Callable[[np.random.Generator, Head, float], Lesion | None]] = {
    "epidural": _epidural,
    "intraparenchymal": _intraparenchymal,
    "intraventricular": _intraventricular,
    "subarachnoid": _subarachnoid,
    "subdural": _subdural,
}


def _reach_mm(lesion: Lesion) -> float:
    """How far (mm) from its centre along z a lesion is still plainly there."""
    match lesion:
        case Epidural():
            return 0.45 * lesion.radius
        case Subdural():
            return 0.45 * lesion.extent[1] if lesion.site != "tentorium" else 5.0
        case Intraparenchymal():
            return 0.45 * lesion.radii[2]
        case Subarachnoid():
            return min(0.35 * lesion.reach, 14.0)
        case _:
            return 4.0


def draw_lesion(
    rng: np.random.Generator, head: Head, subtype: str, conspicuity: float, meet_z: float | None = None
) -> Lesion | None:
    """Draw one hemorrhage of ``subtype``.

    Args:
        rng: Source of chance.
        head: The head it is put into.
        subtype: A key of :data:`SUBTYPE_WEIGHTS`.
        conspicuity: 0 (barely visible) to 1.
        meet_z: World z (mm) of a slice that must show it, or None.

    Returns:
        The lesion, or None when this subtype cannot meet that slice.
    """
    for _ in range(TRIES):
        lesion = _DRAW[subtype](rng, head, conspicuity)
        if lesion is None:
            continue
        if meet_z is None or abs(float(head.to_world(lesion.centre)[2]) - meet_z) <= _reach_mm(lesion):
            return lesion
    return None


def draw_lesions(
    rng: np.random.Generator, head: Head, conspicuity: float, meet_z: float | None = None, first: str | None = None
) -> tuple[Lesion, ...]:
    """Draw the hemorrhages of one head: one in most, two or three in some, of different subtypes.

    The first is of ``conspicuity``, of the subtype ``first`` when given, and meets the slice ``meet_z`` when given;
    the others are about as visible.
    """
    names = list(SUBTYPE_WEIGHTS)
    weights = np.array(list(SUBTYPE_WEIGHTS.values()))
    order = [names[i] for i in rng.choice(len(names), size=len(names), replace=False, p=weights / weights.sum())]
    if first is not None:
        order = [first, *(name for name in order if name != first)]
    wanted = int(rng.choice((1, 2, 3), p=(0.76, 0.18, 0.06)))
    found: list[Lesion] = []
    for subtype in order:
        grade = conspicuity if not found else float(np.clip(conspicuity * rng.uniform(0.6, 1.2), 0.02, 1.0))
        lesion = draw_lesion(rng, head, subtype, grade, meet_z if not found else None)
        if lesion is not None:
            found.append(lesion)
        if len(found) == wanted:
            break
    return tuple(found)


# --- What looks like blood in a single slice and is none.


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
