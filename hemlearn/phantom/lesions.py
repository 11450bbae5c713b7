"""The five subtypes of intracranial hemorrhage, placed where they occur and graded by conspicuity.

Fresh clot measures 50-80 HU on unenhanced CT; blood that is scant, diluted or some days old approaches the
attenuation of grey matter and disappears. ``conspicuity`` runs from 0 (barely visible: small and nearly
isodense) to 1 (large and dense).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from hemlearn.phantom.anatomy import Array, Triple, Waves, cover
from hemlearn.phantom.brain import Spaces
from hemlearn.phantom.skull import Vault

Points = tuple[Array, Array, Array]
SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


@dataclass
class Scene:
    """What a lesion sees of the points (N,) inside the head.

    Attributes:
        place: Head coordinates in mm.
        back: World y in mm: blood settles toward it when the patient lies supine.
        shell: Inner table at ``place``.
        depth: Depth in mm under the inner table and over the base at ``place``.
        spaces: Brain and its spaces, already displaced by mass effect.
        blood: Coverage of blood per subtype, filled as the lesions are painted.
    """

    place: Points
    back: Array
    shell: Vault
    depth: Array
    spaces: Spaces
    blood: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesion(ABC):
    """One hemorrhage.

    Attributes:
        subtype: One of :data:`SUBTYPES`.
        site: Anatomical site, for the record.
        centre: Head coordinates in mm.
        conspicuity: 0 (barely visible) to 1.
        hu: Attenuation of the blood.
        texture: Makes the outline irregular and the clot uneven.
    """

    subtype: str
    site: str
    centre: Triple
    conspicuity: float
    hu: float
    texture: Waves = field(repr=False)

    @abstractmethod
    def coverage(self, scene: Scene) -> Array:
        """Share in [0, 1] of each point that is blood, shape (N,)."""

    def push(self, place: Points, shell: Vault) -> Points | None:
        """Where the tissue now at ``place`` came from, as an offset in mm; None without mass effect."""
        del place, shell
        return None

    def paint(self, hu: Array, scene: Scene) -> Array:
        """Draw the blood over ``hu`` (N,) in place and return its coverage."""
        blood = self.coverage(scene)
        dense = self.hu + 2.5 * self.texture(*scene.place)
        hu += blood * (np.maximum(dense, hu * (hu < 90.0)) - hu) * (hu < 90.0)
        return blood


def _gap(place: Points, centre: Triple) -> Array:
    x, y, z = place
    gap: Array = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    return gap


@dataclass(frozen=True)
class Epidural(Lesion):
    """Lens under the inner table, bounded by the sutures of its bone."""

    thickness: float = 10.0
    radius: float = 30.0
    normal: Triple = (1.0, 0.0, 0.0)

    def _bulge(self, shell: Vault) -> Array:
        rho = _gap(shell.surface, self.centre) / self.radius
        plate = np.float32(bone_plate(*self.centre))
        same = bone_plate_of(shell.surface) == plate
        lens: Array = self.thickness * np.clip(1.0 - rho * rho, 0.0, 1.0) * same
        return lens

    def coverage(self, scene: Scene) -> Array:
        """See :meth:`Lesion.coverage`."""
        bulge = self._bulge(scene.shell)
        blood: Array = cover(-scene.shell.distance - bulge) * cover(-scene.depth) * np.clip(bulge / 0.6, 0, 1)
        return blood

    def push(self, place: Points, shell: Vault) -> Points | None:
        """See :meth:`Lesion.push`."""
        rho = _gap(place, self.centre)
        amount = 0.9 * np.maximum(
            self._bulge(shell) * np.exp(shell.distance / 30.0), 0.6 * self.thickness * np.exp(-rho / 34.0)
        )
        nx, ny, nz = self.normal
        return amount * nx, amount * ny, amount * nz


@dataclass(frozen=True)
class Subdural(Lesion):
    """Crescent along the convexity, or a sheet along falx or tentorium; it crosses sutures, never the falx."""

    thickness: float = 6.0
    extent: tuple[float, float] = (60.0, 40.0)

    def _bulge(self, surface: Points) -> Array:
        sx, sy, sz = surface
        side = np.float32(np.sign(self.centre[0]))
        v, w = (sy - self.centre[1]) / self.extent[0], (sz - self.centre[2]) / self.extent[1]
        wavy = 1.0 + 0.15 * self.texture(0.35 * sx, 0.35 * sy, 0.35 * sz)
        bulge: Array = self.thickness * wavy * np.sqrt(np.clip(1.0 - v * v - w * w, 0, 1))
        bulge *= np.clip((side * sx - 4.0) / 8.0, 0, 1)
        return bulge

    def coverage(self, scene: Scene) -> Array:
        """See :meth:`Lesion.coverage`."""
        x, y, z = scene.place
        spaces, half = scene.spaces, 0.5 * self.thickness
        side = np.float32(np.sign(self.centre[0]))
        if self.site == "convexity":
            bulge = self._bulge(scene.shell.surface)
            inside = cover(-scene.depth) * (spaces.supratentorial > 0.5)
            sheet: Array = cover(-scene.shell.distance - bulge) * inside * np.clip(bulge / 0.6, 0, 1)
            return sheet
        if self.site == "falx":
            v, w = (y - self.centre[1]) / self.extent[0], (z - self.centre[2]) / self.extent[1]
            taper = np.sqrt(np.clip(1.0 - v * v - w * w, 0, 1))
            sheet = cover(np.abs(side * x - 0.6 - half * taper) - half * taper) * np.clip(taper / 0.2, 0, 1)
            sheet *= cover(spaces.midline - self.thickness - 4.0) * cover(1.0 - scene.depth)
            return sheet
        taper = np.sqrt(np.clip(1.0 - ((y - self.centre[1]) / self.extent[0]) ** 2, 0, 1))
        sheet = cover(np.abs(spaces.tentorium - half * taper - 0.4) - half * taper) * np.clip(taper / 0.2, 0, 1)
        sheet *= (side * x > 2.0) * (y > 8.0 + 0.5 * np.abs(x)) * cover(1.0 - scene.depth)
        return sheet

    def push(self, place: Points, shell: Vault) -> Points | None:
        """See :meth:`Lesion.push`."""
        if self.site != "convexity":
            return None
        v, w = (place[1] - self.centre[1]) / self.extent[0], (place[2] - self.centre[2]) / self.extent[1]
        side = float(np.sign(self.centre[0]))
        amount = self.thickness * np.exp(shell.distance / 38.0 - 0.5 * (v * v + w * w))
        # The far hemisphere is held by the falx.
        return amount * side * np.clip(0.55 + side * place[0] / 50.0, 0.0, 1.0), 0.0 * amount, 0.0 * amount


@dataclass(frozen=True)
class Intraparenchymal(Lesion):
    """Irregular clot in the tissue with a rim of edema."""

    radii: Triple = (10.0, 10.0, 10.0)
    edema_mm: float = 5.0

    def _distance(self, place: Points) -> Array:
        u, v, w = ((p - c) / r for p, c, r in zip(place, self.centre, self.radii, strict=True))
        mean = float(np.mean(self.radii))
        rho = np.sqrt(u * u + v * v + w * w)
        distance: Array = (rho - 1.0) * mean + 0.10 * mean * self.texture(*place)
        return distance

    def coverage(self, scene: Scene) -> Array:
        """See :meth:`Lesion.coverage`."""
        soft = 1.2 + 2.0 * (1.0 - self.conspicuity)
        clot: Array = cover(self._distance(scene.place), soft) * cover(1.0 - scene.depth)
        return clot

    def push(self, place: Points, shell: Vault) -> Points | None:
        """See :meth:`Lesion.push`."""
        mean = float(np.mean(self.radii))
        gap = _gap(place, self.centre) + 1e-3
        amount = -0.42 * mean * np.exp(-np.maximum(gap - mean, 0.0) / 20.0) * np.clip(gap / mean, 0, 1)
        amount = amount * np.clip(-shell.distance / 14.0, 0.0, 1.0) / gap
        x, y, z = (p - c for p, c in zip(place, self.centre, strict=True))
        return amount * x, amount * y, amount * z

    def paint(self, hu: Array, scene: Scene) -> Array:
        """See :meth:`Lesion.paint`; edema first lowers the tissue around the clot."""
        distance = self._distance(scene.place)
        rim = cover(distance - self.edema_mm, 0.6 * self.edema_mm) * (1 - scene.spaces.csf) * (hu < 60.0) * (hu > 18.0)
        hu -= 9.0 * rim * cover(1.0 - scene.depth)
        return super().paint(hu, scene)


@dataclass(frozen=True)
class Intraventricular(Lesion):
    """Blood in the ventricles: a level in the dependent horns, or a cast of one side."""

    level: float = 50.0

    def coverage(self, scene: Scene) -> Array:
        """See :meth:`Lesion.coverage`."""
        x, y, z = scene.place
        if self.site == "layering":
            lateral = (np.abs(x) > 10.0) & (y > 20.0)
            part: Array = cover(self.level - scene.back, 1.5) * lateral
        else:
            side = np.float32(np.sign(self.centre[0]))
            reach = 15.0 + 80.0 * self.conspicuity
            part = cover(_gap(scene.place, self.centre) - reach, 4.0) * (side * x > -3.0) * (z > -26.0)
        part *= scene.spaces.ventricle
        return part


@dataclass(frozen=True)
class Subarachnoid(Lesion):
    """Blood that replaces the fluid of sulci, fissures and cisterns within reach of its source."""

    reach: float = 40.0
    swell_mm: float = 0.3

    def coverage(self, scene: Scene) -> Array:
        """See :meth:`Lesion.coverage`."""
        spaces = scene.spaces
        near = np.clip(1.6 * (1.0 - _gap(scene.place, self.centre) / self.reach), 0.0, 1.0)
        patchy = np.clip(0.85 + 0.35 * self.texture(*scene.place), 0.0, 1.0)
        filled = cover(spaces.csf_mm - self.swell_mm) * cover(0.8 - scene.depth) * (1 - spaces.ventricle)
        blood: Array = filled * near * patchy
        return blood


def bone_plate_of(surface: Points) -> Array:
    """Which bone a point of the inner table belongs to: side times (1 frontal, 2 parietotemporal, 3 occipital).

    The coronal suture runs from the bregma forward and down to the pterion, the lambdoid from the lambda
    forward and down to the asterion, the sagittal along the midline.
    """
    sx, sy, sz = surface
    frontal, occipital = sy < -8.0 - 0.36 * (70.0 - sz), sy > 40.0 + 0.5 * (sz + 20.0)
    plate: Array = np.sign(sx) * (2.0 - frontal + occipital)
    return plate


def bone_plate(x: float, y: float, z: float) -> float:
    """:func:`bone_plate_of` for one point."""
    point = tuple(np.array([v], dtype=np.float32) for v in (x, y, z))
    return float(bone_plate_of((point[0], point[1], point[2]))[0])


def suture_gap(x: float, y: float, z: float) -> float:
    """Distance (mm) from a point of the inner table to the nearest of those sutures."""
    coronal = abs(y + 8.0 + 0.36 * (70.0 - z)) / np.hypot(1.0, 0.36)
    lambdoid = abs(y - 40.0 - 0.5 * (z + 20.0)) / np.hypot(1.0, 0.5)
    return float(min(abs(x), coronal, lambdoid))


def mass_effect(lesions: tuple[Lesion, ...], place: Points, shell: Vault) -> Points | None:
    """Undisplaced coordinates (mm) of the tissue now at ``place``; None when nothing is displaced."""
    offsets = [offset for lesion in lesions if (offset := lesion.push(place, shell)) is not None]
    if not offsets:
        return None
    x, y, z = ((p + sum(o[axis] for o in offsets)).astype(np.float32, copy=False) for axis, p in enumerate(place))
    return x, y, z
