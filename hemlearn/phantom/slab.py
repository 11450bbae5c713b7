"""One slice of a head, drawn where the scanner's grid samples it, with what looks like blood there and is none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from hemlearn.phantom.anatomy import Array, Head, Points, Triple, cover, ellipsoid, pick, single
from hemlearn.phantom.lesions import Lesion, Scene, draw_lesion, draw_side, inner_table, mass_effect, texture
from hemlearn.phantom.tissue import VAULT_CENTRE_Z, Vault, floor_height, paint_brain, paint_outside, vault
from hemlearn.util.errors import ConfigError

AIR_HU = -1000.0
MASK_SHARE = 0.4  # coverage from which a pixel counts as blood
SHOWN_MM2 = 14.0  # area from which a slice is said to show blood
_SPACES = ("csf", "ventricle", "cavity", "depth", "decoy")
TILT_PIVOT_MM = 12.0  # world z at which a tilted stack is centred on the head


@dataclass(frozen=True)
class Grid:
    """Where the volume is sampled."""

    rows: int = 256  # rows of a slice, along world y
    cols: int = 256  # columns of a slice, along world x
    pixel_mm: float = 0.9  # in-plane spacing
    thickness_mm: float = 5.0  # slice thickness and spacing
    # world z of the slice centres, ascending; None for slices of them down from the vertex
    z_mm: tuple[float, ...] | None = None
    slices: int = 28  # number of slices when z_mm is None
    samples: int = 3  # thin planes averaged over the thickness of a slice (partial volume)
    # gantry tilt, as in DICOM (0018,1120). The slices stay planes of constant z of the tilted gantry; the table moves
    # horizontally, so that from slice to slice the head shifts along the rows' axis y
    tilt_deg: float = 0.0
    drop_mm: float = 0.0  # how far below the vertex the topmost slice lies when z_mm is None

    def __post_init__(self) -> None:
        for key in ("rows", "cols", "slices", "samples", "pixel_mm", "thickness_mm"):
            if not getattr(self, key) > 0:
                problem = f"phantom grid: {key}={getattr(self, key)} is not positive"
                raise ConfigError(problem, remedy=f"give a positive {key}")
        if not abs(self.tilt_deg) < 45.0:
            raise ConfigError(f"phantom grid: tilt_deg={self.tilt_deg} is no gantry tilt", remedy="keep it within 45")

    @property
    def spacing(self) -> Triple:
        """Spacing in mm along (slices, rows, cols)."""
        return self.thickness_mm, self.pixel_mm, self.pixel_mm

    def area_mm2(self, share: Array) -> float:
        """Area (mm2) that a coverage (rows, cols) shows."""
        return float((share >= MASK_SHARE).sum()) * self.pixel_mm**2

    def draft(self, least: int = 1) -> Grid:
        """A grid of a third of the pixels over the same field: it tells cheaply what is surely too small."""
        rows, cols = (max(least, size // 3) for size in (self.rows, self.cols))
        return replace(self, rows=rows, cols=cols, pixel_mm=3 * self.pixel_mm, samples=1)

    def centre_y(self, z_mm: float) -> float:
        """World y (mm) of the middle of the slice at world z ``z_mm``; 0 without gantry tilt."""
        return -(z_mm - TILT_PIVOT_MM) * math.tan(math.radians(self.tilt_deg))

    def centres(self, head: Head) -> tuple[float, ...]:
        """World z (mm) of the slice centres; by default the topmost lies ``drop_mm`` below the vertex of the scalp."""
        if self.z_mm is not None:
            return self.z_mm
        vertex = (0.0, 0.0, VAULT_CENTRE_Z + head.height + 1.2 * head.skull_mm + head.scalp_mm)
        top = float(head.to_world(vertex)[2]) - self.drop_mm
        return tuple(top - self.thickness_mm * k for k in reversed(range(self.slices)))

    def planes(
        self, head: Head, z_mm: float, thickness_mm: float, samples: int
    ) -> Iterator[tuple[NDArray[np.intp], Points, Array]]:
        """The thin planes that are averaged for the slice at world z ``z_mm``.

        Yields flat indices of the M pixels that the head may reach, their head coordinates and their world y (mm).
        """
        xs, ys = (
            (np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)) * np.float32(self.pixel_mm)
            for size in (self.cols, self.rows)
        )
        ys = ys + np.float32(self.centre_y(z_mm))
        wy, wx = (axis.ravel() for axis in np.meshgrid(ys, xs, indexing="ij"))
        for k in range(samples):
            offset = (k - (samples - 1) / 2) * thickness_mm / samples
            place = head.to_head(wx, wy, np.full(wx.size, z_mm + offset, dtype=np.float32))
            keep = head.within(*place)
            yield keep, pick(place, keep), wy[keep]


@dataclass
class Slab:
    """Ideal attenuation and coverage of one slice before the scanner, each of shape (rows, cols)."""

    hu: Array
    blood: dict[str, Array]
    spaces: dict[str, Array]


# --- What looks like blood in a single slice and is none.

# Kind -> how often, and the subtype whose outline it borrows (None: an outline of its own).
LOOK_ALIKES: dict[str, tuple[float, str | None]] = {
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

    def _coverage(self, scene: Scene) -> Array:
        distance = ellipsoid(*scene.place, self.centre, self.radii) + 0.1 * min(self.radii) * self.texture(*scene.place)
        return np.asarray(cover(distance, 1.5) * cover(-scene.depth))


@dataclass(frozen=True)
class Streak(Lesion):
    """A straight bright band across the brain."""

    angle: float = 0.0
    half_length: float = 30.0
    half_width: float = 2.0

    def _coverage(self, scene: Scene) -> Array:
        x, y, _ = scene.place
        dx, dy = x - self.centre[0], y - self.centre[1]
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
        taper = np.sqrt(np.clip(1.0 - (along / self.half_length) ** 2, 0.0, 1.0))
        band: Array = cover(np.abs(across) - self.half_width * taper, 1.2) * np.clip(taper / 0.3, 0, 1)
        return band * cover(0.5 - scene.depth)


@dataclass(frozen=True)
class Distractor:
    """One look-alike."""

    kind: str  # a key of LOOK_ALIKES
    z_mm: float  # world z of the centre of the only slice that shows it
    shape: Lesion  # its outline and attenuation; its subtype means nothing

    def paint(self, hu: Array, scene: Scene) -> Array:
        """Draw it over ``hu`` (N,) in place and return its coverage; no edema, no mass effect."""
        return Lesion.paint(self.shape, hu, scene)


def draw_look_alike(rng: Generator, head: Head, conspicuity: float) -> tuple[str, Lesion] | None:
    """Draw kind and outline of a look-alike; None when this kind cannot be placed in this head."""
    weights = np.array([weight for weight, _ in LOOK_ALIKES.values()])
    kind = list(LOOK_ALIKES)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    like = LOOK_ALIKES[kind][1]
    shape = _own_outline(rng, head, kind, conspicuity) if like is None else draw_lesion(rng, head, like, conspicuity)
    return None if shape is None else (kind, shape)


def _own_outline(rng: Generator, head: Head, kind: str, c: float) -> Lesion:
    side = draw_side(rng)
    hu = 50.0 + 24.0 * c + float(rng.normal(0, 3))
    waves = texture(rng)
    if kind == "petrous ridge":
        x = side * float(rng.uniform(22, 46))
        y = 2.0 + 0.62 * (abs(x) - 10.0) + float(rng.uniform(0, 6))
        floor = float(floor_height(*single(x, y, 0.0)[:2])[0][0])
        return Spot(kind, (x, y, floor + 5.0), c, hu, waves, radii=(5.0 + 9.0 * c, 3.5 + 5.0 * c, 8.0))
    if kind == "vertex":
        x, y, z = inner_table(head, (side * float(rng.uniform(0.1, 0.35)), float(rng.uniform(-0.3, 0.3)), 1.0))
        return Spot(kind, (x, y, z - 7.0), c, hu, waves, radii=(4.0 + 10.0 * c, 5.0 + 12.0 * c, 8.0))
    middle = (side * float(rng.uniform(5, 45)), float(rng.uniform(-45, 50)), float(rng.uniform(-28, 48)))
    if kind == "streak":
        angle, half_length = float(rng.uniform(0, np.pi)), float(rng.uniform(14, 24)) + 26.0 * c
        return Streak(kind, middle, c, hu, waves, 4.0, angle, half_length, 1.2 + 2.5 * c)
    radius = float(rng.uniform(2.3, 3.2)) + 2.5 * c
    return Spot(kind, middle, c, max(hu, 60.0), waves, radii=(radius, radius, radius))


# --- Drawing.


def _artefacts(head: Head, hu: Array, place: Points, depth: Array) -> None:
    """Add beam hardening in place: dark bands between the petrous bones, brightening under the vault."""
    x, y, z = place
    if float(z.min()) < -2.0:
        level = np.exp(-(((z + 31.0) / 11.0) ** 2))
        band = np.square((y - 12.0) / 7.0)
        fan = 0.8 * np.exp(-band) + 0.2 * np.sin(0.55 * (y - 12.0) + 0.13 * x) / (1.0 + 0.25 * band)
        hu -= head.petrous_streak_hu * level * fan / (1.0 + np.square(np.square(x / 40.0)))
    hu += head.cupping_hu * np.exp(-np.maximum(depth, 0.0) / 6.0)


def _draw_inside(
    head: Head,
    lesions: Sequence[Lesion],
    distractors: Sequence[Distractor],
    place: Points,
    back: Array,
    shell: Vault,
    floor: Points,
) -> dict[str, Array]:
    """What lies in the cranial cavity (M,): brain, calcifications, blood, beam hardening."""
    came = mass_effect(lesions, place, shell)
    brain = paint_brain(head, place, shell, floor) if came is None else paint_brain(head, came)
    hu, z = brain.hu, place[2]
    for spot in head.calcifications:
        if np.any(np.abs(z - spot.centre[2]) < spot.radii[2] + 1.0):
            hu += cover(ellipsoid(*place, spot.centre, spot.radii), 1.6) * (spot.hu - hu)
    scene = Scene(place, back, shell, np.minimum(-shell.distance, 0.75 * (z - floor[0])), brain)
    drawn = {"hu": hu, "csf": brain.csf, "ventricle": brain.ventricle, "depth": scene.depth, "decoy": np.zeros_like(hu)}
    for lesion in lesions:
        share = lesion.paint(hu, scene)
        drawn[lesion.subtype] = np.maximum(drawn.get(lesion.subtype, 0.0), share)
    for distractor in distractors:
        drawn["decoy"] = np.maximum(drawn["decoy"], distractor.paint(hu, scene))
    _artefacts(head, hu, place, scene.depth)
    return drawn


def _draw_points(
    head: Head, lesions: Sequence[Lesion], distractors: Sequence[Distractor], place: Points, back: Array
) -> dict[str, Array]:
    """Attenuation (``hu``), coverage of spaces and of blood (by subtype) of head points, each (N,)."""
    z = place[2]
    shell, floor = vault(head, place), floor_height(*place[:2])
    subtypes = [lesion.subtype for lesion in lesions]
    drawn: dict[str, Array] = {name: np.zeros_like(z) for name in ("hu", *_SPACES, *subtypes)}
    drawn["depth"] = np.full_like(z, -99.0)
    inner = np.flatnonzero((shell.distance < 2.0) & (z - floor[0] > -3.0))
    if inner.size:
        seen = (pick(place, inner), back[inner], shell.take(inner), pick(floor, inner))
        for name, value in _draw_inside(head, lesions, distractors, *seen).items():
            drawn[name][inner] = value
    drawn["cavity"][inner] = 1.0
    outer = np.flatnonzero((shell.distance > -8.0) | (z - floor[0] < 9.0))
    if outer.size:
        hu = drawn["hu"][outer]
        free = paint_outside(head, hu, pick(place, outer), shell.take(outer), pick(floor, outer))
        drawn["cavity"][outer], drawn["hu"][outer] = free, hu
    for name in dict.fromkeys((*subtypes, "decoy")):
        drawn[name] *= drawn["cavity"]
    return drawn


def draw_slab(
    head: Head, lesions: Sequence[Lesion], grid: Grid, z_mm: float, distractors: Sequence[Distractor] = ()
) -> Slab:
    """Draw the slice at world z ``z_mm``, averaged over its thickness; it alone shows the ``distractors``.

    Returns ideal attenuation in HU, coverage of blood per subtype, of the spaces and (``decoy``) of the distractors.
    """
    shape = (grid.rows, grid.cols)
    size, part = grid.rows * grid.cols, np.float32(1.0 / grid.samples)
    subtypes = dict.fromkeys(lesion.subtype for lesion in lesions)
    total = {name: np.zeros(size, dtype=np.float32) for name in ("hu", *_SPACES, *subtypes)}
    for keep, place, back in grid.planes(head, z_mm, grid.thickness_mm, grid.samples):
        drawn = _draw_points(head, lesions, distractors, place, back)
        plane = np.full(size, AIR_HU, dtype=np.float32)
        plane[keep] = drawn.pop("hu")
        total["hu"] += part * plane
        for name, share in drawn.items():
            total[name][keep] += part * share
    shaped: dict[str, Array] = {name: share.reshape(shape) for name, share in total.items()}
    return Slab(shaped["hu"], {name: shaped[name] for name in subtypes}, {name: shaped[name] for name in _SPACES})
