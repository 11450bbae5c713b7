"""The five subtypes of intracranial hemorrhage, placed where they occur and graded by conspicuity.

Fresh clot measures 50-80 HU on unenhanced CT; blood that is scant, diluted or some days old approaches the
attenuation of grey matter and disappears. ``conspicuity`` runs from 0 (barely visible: small and nearly
isodense) to 1 (large and dense).

A lesion can be asked to meet a given slice. The slice is then chosen first and the lesion after it, so that the
position of a slice says nothing about whether it shows blood.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from hemlearn.phantom.anatomy import Array, Head, Points, Triple, Waves, cover, single
from hemlearn.phantom.tissue import VAULT_CENTRE_Z, Spaces, Vault, vault

TRIES = 60
# Site, how often, where (mm; x to either side), spread of it (mm).
Sites = tuple[tuple[str, float, Triple, float], ...]
_PARENCHYMA: Sites = (
    ("putamen", 0.26, (26.0, -2.0, 5.0), 3.0),
    ("thalamus", 0.15, (11.0, 9.0, 6.0), 2.0),
    ("frontal lobe", 0.17, (27.0, -42.0, 24.0), 11.0),
    ("parietal lobe", 0.15, (32.0, 28.0, 38.0), 11.0),
    ("temporal lobe", 0.1, (46.0, 6.0, -16.0), 7.0),
    ("occipital lobe", 0.07, (27.0, 56.0, 14.0), 7.0),
    ("cerebellum", 0.07, (21.0, 46.0, -34.0), 6.0),
    ("pons", 0.03, (0.0, 13.0, -30.0), 2.0),
)
_CISTERNS: Sites = (
    ("suprasellar cistern", 0.3, (0.0, -6.0, -15.0), 3.0),
    ("Sylvian fissure", 0.24, (40.0, -8.0, 3.0), 4.0),
    ("perimesencephalic cistern", 0.08, (0.0, 18.0, -10.0), 2.0),
    ("interhemispheric fissure", 0.1, (0.0, -52.0, 18.0), 8.0),
)


@dataclass
class Scene:
    """What a lesion sees of the points (N,) inside the head."""

    place: Points  # head coordinates in mm
    back: Array  # world y in mm: blood settles toward it when the patient lies supine
    shell: Vault  # inner table at place
    depth: Array  # depth in mm under the inner table and over the base at place
    spaces: Spaces  # brain and its spaces, already displaced by mass effect


@dataclass(frozen=True)
class Lesion(ABC):
    """One hemorrhage."""

    subtype: ClassVar[str] = ""

    site: str  # anatomical site, for the record
    centre: Triple  # head coordinates in mm
    conspicuity: float  # 0 (barely visible) to 1
    hu: float  # attenuation of the blood
    texture: Waves = field(repr=False)  # makes the outline irregular and the clot uneven
    reach_mm: float = 4.0  # how far from its centre along z it is still plainly there

    @classmethod
    def _draw(cls, rng: Generator, head: Head, c: float) -> Lesion | None:
        """Draw one of conspicuity ``c`` at random; None where the place that was drawn has no room for it."""
        raise NotImplementedError

    @abstractmethod
    def _coverage(self, scene: Scene) -> Array:
        """Share in [0, 1] of each point that is blood, shape (N,)."""

    def _push(self, place: Points, shell: Vault) -> Points | None:
        """Where the tissue now at ``place`` came from, as an offset in mm; None without mass effect."""
        del place, shell
        return None

    def paint(self, hu: Array, scene: Scene) -> Array:
        """Draw the blood over ``hu`` (N,) in place and return its coverage."""
        blood = self._coverage(scene)
        dense = self.hu + 2.5 * self.texture(*scene.place)
        hu += blood * (np.maximum(dense, hu * (hu < 90.0)) - hu) * (hu < 90.0)
        return blood

    def _gap(self, place: Points) -> Array:
        x, y, z = (p - c for p, c in zip(place, self.centre, strict=True))
        return np.asarray(np.sqrt(x**2 + y**2 + z**2))


@dataclass(frozen=True)
class Epidural(Lesion):
    """Lens under the inner table, bounded by the sutures of its bone."""

    subtype = "epidural"

    thickness: float = 10.0
    radius: float = 30.0
    normal: Triple = (1.0, 0.0, 0.0)

    @classmethod
    def _draw(cls, rng: Generator, head: Head, c: float) -> Lesion | None:
        centre = _convexity(rng, head, -12.0, 58.0)
        radius = min(float(rng.uniform(0.85, 1.15)) * (15.0 + 31.0 * c), suture_gap(*centre))
        if radius < 9.0 + 8.0 * c:
            return None
        thickness = min(float(rng.uniform(0.8, 1.2)) * (2.6 + 23.0 * c), 0.75 * radius)
        normal = np.array([centre[0], centre[1], centre[2] - VAULT_CENTRE_Z])
        nx, ny, nz = (float(v) for v in normal / np.linalg.norm(normal))
        hu = 49.0 + 25.0 * c + float(rng.normal(0, 3))
        return cls("convexity", centre, c, hu, texture(rng), 0.45 * radius, thickness, radius, (nx, ny, nz))

    def _bulge(self, shell: Vault) -> Array:
        rho = self._gap(shell.surface) / self.radius
        same = bone_plate(shell.surface) == bone_plate(single(*self.centre))
        return np.asarray(self.thickness * np.clip(1.0 - rho * rho, 0.0, 1.0) * same)

    def _coverage(self, scene: Scene) -> Array:
        bulge = self._bulge(scene.shell)
        return np.asarray(cover(-scene.shell.distance - bulge) * cover(-scene.depth) * np.clip(bulge / 0.6, 0, 1))

    def _push(self, place: Points, shell: Vault) -> Points | None:
        near = 0.6 * self.thickness * np.exp(-self._gap(place) / 34.0)
        amount = 0.9 * np.maximum(self._bulge(shell) * np.exp(shell.distance / 30.0), near)
        nx, ny, nz = self.normal
        return amount * nx, amount * ny, amount * nz


@dataclass(frozen=True)
class Intraparenchymal(Lesion):
    """Irregular clot in the tissue with a rim of edema."""

    subtype = "intraparenchymal"

    radii: Triple = (10.0, 10.0, 10.0)
    edema_mm: float = 5.0

    @classmethod
    def _draw(cls, rng: Generator, head: Head, c: float) -> Lesion | None:
        del head
        site, centre = _pick_site(rng, _PARENCHYMA)
        limit = 9.0 if site == "pons" else 15.0 if site in ("cerebellum", "thalamus") else 28.0
        radius = min((2.8 + 22.0 * c) * float(rng.uniform(0.85, 1.15)), limit)
        rx, ry, rz = (float(radius * s) for s in rng.uniform(0.75, 1.3, size=3))
        hu = 47.0 + 29.0 * c + float(rng.normal(0, 3))
        edema = 1.5 + (2.0 + 6.0 * c) * float(rng.uniform(0.3, 1.0))
        return cls(site, centre, c, hu, texture(rng), 0.45 * rz, (rx, ry, rz), edema)

    def _distance(self, place: Points) -> Array:
        u, v, w = ((p - c) / r for p, c, r in zip(place, self.centre, self.radii, strict=True))
        mean = float(np.mean(self.radii))
        rho = np.sqrt(u * u + v * v + w * w)
        return np.asarray((rho - 1.0) * mean + 0.10 * mean * self.texture(*place))

    def _coverage(self, scene: Scene) -> Array:
        soft = 1.2 + 2.0 * (1.0 - self.conspicuity)
        return np.asarray(cover(self._distance(scene.place), soft) * cover(1.0 - scene.depth))

    def _push(self, place: Points, shell: Vault) -> Points | None:
        mean = float(np.mean(self.radii))
        gap = self._gap(place) + 1e-3
        amount = -0.42 * mean * np.exp(-np.maximum(gap - mean, 0.0) / 20.0) * np.clip(gap / mean, 0, 1)
        amount = amount * np.clip(-shell.distance / 14.0, 0.0, 1.0) / gap
        x, y, z = (p - c for p, c in zip(place, self.centre, strict=True))
        return amount * x, amount * y, amount * z

    def paint(self, hu: Array, scene: Scene) -> Array:
        """Draw edema, which lowers the tissue around the clot, then the blood."""
        distance = self._distance(scene.place)
        rim = cover(distance - self.edema_mm, 0.6 * self.edema_mm) * (1 - scene.spaces.csf) * (hu < 60.0) * (hu > 18.0)
        hu -= 9.0 * rim * cover(1.0 - scene.depth)
        return super().paint(hu, scene)


@dataclass(frozen=True)
class Intraventricular(Lesion):
    """Blood in the ventricles: a level in the dependent horns, or a cast of one side."""

    subtype = "intraventricular"

    level: float = 50.0

    @classmethod
    def _draw(cls, rng: Generator, head: Head, c: float) -> Lesion | None:
        hu = 42.0 + 32.0 * c + float(rng.normal(0, 3))
        side = draw_side(rng)
        if rng.uniform() < 0.65:
            centre = (side * 24.0, 50.0, float(rng.uniform(-1.0, 13.0)))
            level = float(head.to_world((side * 22.0, 60.0, 4.0))[1]) - (4.0 + 30.0 * c)
            return cls("layering", centre, c, hu, texture(rng), level=level)
        y = float(rng.uniform(-28.0, 34.0))
        centre = (side * (8.0 + 0.4 * max(y, 0.0)), y, float(rng.uniform(8.0, 22.0)))
        return cls("cast", centre, c, hu, texture(rng))

    def _coverage(self, scene: Scene) -> Array:
        x, y, z = scene.place
        if self.site == "layering":
            part: Array = cover(self.level - scene.back, 1.5) * ((np.abs(x) > 10.0) & (y > 20.0))
        else:
            side = np.float32(np.sign(self.centre[0]))
            reach = 15.0 + 80.0 * self.conspicuity
            part = cover(self._gap(scene.place) - reach, 4.0) * (side * x > -3.0) * (z > -26.0)
        part *= scene.spaces.ventricle
        return part


@dataclass(frozen=True)
class Subarachnoid(Lesion):
    """Blood that replaces the fluid of sulci, fissures and cisterns within reach of its source."""

    subtype = "subarachnoid"

    reach: float = 40.0
    swell_mm: float = 0.3

    @classmethod
    def _draw(cls, rng: Generator, head: Head, c: float) -> Lesion | None:
        hu = 40.0 + 36.0 * c + float(rng.normal(0, 3))
        if rng.uniform() < 0.34:
            site, outer = "convexity sulci", _convexity(rng, head, 5.0, 60.0)
            centre = (0.9 * outer[0], 0.9 * outer[1], 0.9 * (outer[2] - VAULT_CENTRE_Z) + VAULT_CENTRE_Z)
            reach = 14.0 + 30.0 * c
        else:
            site, centre = _pick_site(rng, _CISTERNS)
            reach = 18.0 + 55.0 * c
        return cls(site, centre, c, hu, texture(rng), min(0.35 * reach, 14.0), reach, 0.2 + 1.1 * c)

    def _coverage(self, scene: Scene) -> Array:
        spaces = scene.spaces
        near = np.clip(1.6 * (1.0 - self._gap(scene.place) / self.reach), 0.0, 1.0)
        patchy = np.clip(0.85 + 0.35 * self.texture(*scene.place), 0.0, 1.0)
        filled = cover(spaces.csf_mm - self.swell_mm) * cover(0.8 - scene.depth) * (1 - spaces.ventricle)
        return np.asarray(filled * near * patchy)


@dataclass(frozen=True)
class Subdural(Lesion):
    """Crescent along the convexity, or a sheet along falx or tentorium; it crosses sutures, never the falx."""

    subtype = "subdural"

    thickness: float = 6.0
    extent: tuple[float, float] = (60.0, 40.0)

    @classmethod
    def _draw(cls, rng: Generator, head: Head, c: float) -> Lesion | None:
        site = str(rng.choice(("convexity", "falx", "tentorium"), p=(0.84, 0.1, 0.06)))
        hu = 44.0 + 28.0 * c + float(rng.normal(0, 3))
        if site == "convexity":
            centre = _convexity(rng, head, 0.0, 45.0)
            thickness = float(rng.uniform(0.8, 1.2)) * (2.0 + 15.0 * c)
            extent = (float(rng.uniform(32, 50)) + 35.0 * c, float(rng.uniform(20, 32)) + 22.0 * c)
            return cls(site, centre, c, hu, texture(rng), 0.45 * extent[1], thickness, extent)
        side = draw_side(rng)
        thickness = float(rng.uniform(0.8, 1.2)) * (1.6 + 5.5 * c)
        extent = (float(rng.uniform(14, 22)) + 16.0 * c, float(rng.uniform(14, 22)) + 12.0 * c)
        if site == "falx":
            front = rng.uniform() < 0.45
            y, z = (rng.uniform(-62, -44), rng.uniform(10, 50)) if front else (rng.uniform(35, 62), rng.uniform(18, 55))
            centre = (side * 2.0, float(y), float(z))
        else:
            y = float(rng.uniform(38, 62))
            centre = (side * 18.0, y, -0.5 * float(np.hypot(0.95 * 18.0, 0.74 * (y - 27.0))))
        return cls(site, centre, c, hu, texture(rng), 0.45 * extent[1] if site == "falx" else 5.0, thickness, extent)

    def _beside(self, y: Array, z: Array) -> tuple[Array, Array]:
        """Distance from the centre along both extents, in units of these."""
        return (y - self.centre[1]) / self.extent[0], (z - self.centre[2]) / self.extent[1]

    def _bulge(self, surface: Points) -> Array:
        sx, sy, sz = surface
        v, w = self._beside(sy, sz)
        wavy = 1.0 + 0.15 * self.texture(0.35 * sx, 0.35 * sy, 0.35 * sz)
        bulge: Array = self.thickness * wavy * np.sqrt(np.clip(1.0 - v * v - w * w, 0, 1))
        bulge *= np.clip((np.float32(np.sign(self.centre[0])) * sx - 4.0) / 8.0, 0, 1)
        return bulge

    def _coverage(self, scene: Scene) -> Array:
        x, y, z = scene.place
        spaces, half = scene.spaces, 0.5 * self.thickness
        side = np.float32(np.sign(self.centre[0]))
        if self.site == "convexity":
            bulge = self._bulge(scene.shell.surface)
            inside = cover(-scene.depth) * (spaces.supratentorial > 0.5)
            return np.asarray(cover(-scene.shell.distance - bulge) * inside * np.clip(bulge / 0.6, 0, 1))
        v, w = self._beside(y, z)
        if self.site == "falx":
            taper = np.sqrt(np.clip(1.0 - v * v - w * w, 0, 1))
            sheet: Array = cover(np.abs(side * x - 0.6 - half * taper) - half * taper) * np.clip(taper / 0.2, 0, 1)
            sheet *= cover(spaces.midline - self.thickness - 4.0) * cover(1.0 - scene.depth)
            return sheet
        taper = np.sqrt(np.clip(1.0 - v**2, 0, 1))
        sheet = cover(np.abs(spaces.tentorium - half * taper - 0.4) - half * taper) * np.clip(taper / 0.2, 0, 1)
        sheet *= (side * x > 2.0) * (y > 8.0 + 0.5 * np.abs(x)) * cover(1.0 - scene.depth)
        return sheet

    def _push(self, place: Points, shell: Vault) -> Points | None:
        if self.site != "convexity":
            return None
        v, w = self._beside(place[1], place[2])
        side = float(np.sign(self.centre[0]))
        amount = self.thickness * np.exp(shell.distance / 38.0 - 0.5 * (v * v + w * w))
        # The far hemisphere is held by the falx.
        return amount * side * np.clip(0.55 + side * place[0] / 50.0, 0.0, 1.0), 0.0 * amount, 0.0 * amount


# How often each is the first hemorrhage of a head.
_KINDS: dict[type[Lesion], float] = {
    Epidural: 0.14,
    Intraparenchymal: 0.42,
    Intraventricular: 0.08,
    Subarachnoid: 0.11,
    Subdural: 0.25,
}
_BY_NAME = {kind.subtype: kind for kind in _KINDS}
SUBTYPES = tuple(_BY_NAME)


def texture(rng: Generator) -> Waves:
    """The waves that make an outline irregular and a clot uneven."""
    return Waves(rng, (12.0, 38.0), 8)


def draw_side(rng: Generator) -> float:
    """-1 for the right or 1 for the left half."""
    return float(rng.choice((-1.0, 1.0)))


def inner_table(head: Head, direction: Triple) -> Triple:
    """The point (mm) of the inner table in ``direction`` from the centre of the vault."""
    dx, dy, dz = direction
    x, y, z = single(40.0 * dx, 40.0 * dy, 40.0 * dz)
    sx, sy, sz = (float(s[0]) for s in vault(head, (x, y, z + np.float32(VAULT_CENTRE_Z))).surface)
    return sx, sy, sz


def _pick_site(rng: Generator, table: Sites) -> tuple[str, Triple]:
    weights = np.array([row[1] for row in table])
    name, _, (x, y, z), jitter = table[int(rng.choice(len(table), p=weights / weights.sum()))]
    jx, jy, jz = rng.normal(0.0, jitter, size=3)
    return name, (draw_side(rng) * x + float(jx), y + float(jy), z + float(jz))


def _convexity(rng: Generator, head: Head, low: float, high: float) -> Triple:
    """A random point of the lateral inner table, in mm, with z between ``low`` and ``high``."""
    azimuth = rng.uniform(-0.42, 0.42) * np.pi
    side = draw_side(rng)
    z = rng.uniform(low, high) - VAULT_CENTRE_Z
    flat = 62.0 * np.sqrt(max(1.0 - (z / 75.0) ** 2, 0.05))
    return inner_table(head, (side * float(np.cos(azimuth)) * flat / 60, float(np.sin(azimuth)) * flat / 50, z / 60))


def bone_plate(surface: Points) -> Array:
    """Which bone a point of the inner table belongs to: side times (1 frontal, 2 parietotemporal, 3 occipital).

    The coronal suture runs from the bregma forward and down to the pterion, the lambdoid from the lambda
    forward and down to the asterion, the sagittal along the midline.
    """
    sx, sy, sz = surface
    frontal, occipital = sy < -8.0 - 0.36 * (70.0 - sz), sy > 40.0 + 0.5 * (sz + 20.0)
    return np.asarray(np.sign(sx) * (2.0 - frontal + occipital))


def suture_gap(x: float, y: float, z: float) -> float:
    """Distance (mm) from a point of the inner table to the nearest of those sutures."""
    coronal = abs(y + 8.0 + 0.36 * (70.0 - z)) / np.hypot(1.0, 0.36)
    lambdoid = abs(y - 40.0 - 0.5 * (z + 20.0)) / np.hypot(1.0, 0.5)
    return float(min(abs(x), coronal, lambdoid))


def mass_effect(lesions: Sequence[Lesion], place: Points, shell: Vault) -> Points | None:
    """Undisplaced coordinates (mm) of the tissue now at ``place``; None when nothing is displaced."""
    offsets = [offset for lesion in lesions if (offset := lesion._push(place, shell)) is not None]
    if not offsets:
        return None
    x, y, z = ((p + sum(o[axis] for o in offsets)).astype(np.float32, copy=False) for axis, p in enumerate(place))
    return x, y, z


def draw_lesion(
    rng: Generator, head: Head, subtype: str, conspicuity: float, meet_z: float | None = None
) -> Lesion | None:
    """Draw one hemorrhage; None when its subtype cannot meet the slice at world z ``meet_z`` (mm)."""
    for _ in range(TRIES):
        lesion = _BY_NAME[subtype]._draw(rng, head, conspicuity)
        if lesion is None:
            continue
        if meet_z is None or abs(float(head.to_world(lesion.centre)[2]) - meet_z) <= lesion.reach_mm:
            return lesion
    return None


def draw_lesions(
    rng: Generator, head: Head, conspicuity: float, meet_z: float | None = None, first: str | None = None
) -> tuple[Lesion, ...]:
    """Draw the hemorrhages of one head: one in most, two or three in some, of different subtypes.

    The first is of ``conspicuity``, of the subtype ``first`` when given, and meets the slice ``meet_z`` when given;
    the others are about as visible.
    """
    weights = np.array(list(_KINDS.values()))
    order = [SUBTYPES[i] for i in rng.choice(len(weights), size=len(weights), replace=False, p=weights / weights.sum())]
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
