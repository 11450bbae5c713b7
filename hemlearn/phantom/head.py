"""A whole head as a scanned volume: what every layout writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hemlearn.errors import ConfigError
from hemlearn.phantom.anatomy import AIR_HU, Head, draw_head
from hemlearn.phantom.brain import paint_brain
from hemlearn.phantom.lesions import SUBTYPES, Lesion, Points, Scene, mass_effect
from hemlearn.phantom.placement import draw_lesions
from hemlearn.phantom.scanner import Scanner, acquire, draw_scanner
from hemlearn.phantom.shapes import Array, cover, ellipsoid
from hemlearn.phantom.skull import VAULT_CENTRE_Z, Vault, floor_height, paint_outside, vault

MASK_SHARE = 0.4
SHOWN_MM2 = 14.0
ATTEMPTS = 20


@dataclass(frozen=True)
class Grid:
    """Where the volume is sampled.

    Attributes:
        rows: Rows of a slice, along world y.
        cols: Columns of a slice, along world x.
        pixel_mm: In-plane spacing.
        thickness_mm: Slice thickness and spacing.
        z_mm: World z of the slice centres, ascending; None for ``slices`` of them down from the vertex.
        slices: Number of slices when ``z_mm`` is None.
        samples: Thin planes averaged over the thickness of a slice (partial volume).
    """

    rows: int = 256
    cols: int = 256
    pixel_mm: float = 0.9
    thickness_mm: float = 5.0
    z_mm: tuple[float, ...] | None = None
    slices: int = 28
    samples: int = 3

    def __post_init__(self) -> None:
        sizes = {"rows": self.rows, "cols": self.cols, "slices": self.slices, "samples": self.samples}
        lengths = {"pixel_mm": self.pixel_mm, "thickness_mm": self.thickness_mm}
        for key, value in (sizes | lengths).items():
            if not value > 0:
                raise ConfigError(f"phantom grid: {key}={value} is not positive", remedy=f"give a positive {key}")

    def centres(self, head: Head) -> tuple[float, ...]:
        """World z (mm) of the slice centres; by default the topmost lies at the vertex of the scalp."""
        if self.z_mm is not None:
            return self.z_mm
        vertex = (0.0, 0.0, VAULT_CENTRE_Z + head.height + 1.2 * head.skull_mm + head.scalp_mm)
        top = float(head.to_world(vertex)[2])
        return tuple(top - self.thickness_mm * k for k in reversed(range(self.slices)))


@dataclass
class HeadVolume:
    """One scanned head with its truth.

    Attributes:
        hu: int16 attenuation, shape (slices, rows, cols); slice 0 is the lowest, row 0 anterior, column 0 the
            patient's right.
        spacing: Spacing in mm along (slices, rows, cols).
        z_mm: World z of the slice centres, length slices.
        masks: Subtype -> bool, shape of ``hu``; all five subtypes are present.
        head: The anatomy.
        lesions: The hemorrhages, empty in a normal head.
        scanner: Kernel and dose.
        seed: Seed and patient index that reproduce it.
    """

    hu: NDArray[np.int16]
    spacing: tuple[float, float, float]
    z_mm: tuple[float, ...]
    masks: dict[str, NDArray[np.bool_]]
    head: Head
    lesions: tuple[Lesion, ...]
    scanner: Scanner
    seed: tuple[int, int]

    def labels(self) -> dict[str, NDArray[np.bool_]]:
        """Truth per slice: subtype -> whether the slice shows it, shape (slices,), and ``any``."""
        area = self.spacing[1] * self.spacing[2]
        shown = {name: mask.sum(axis=(1, 2)) * area >= SHOWN_MM2 for name, mask in self.masks.items()}
        return shown | {"any": np.any(list(shown.values()), axis=0)}


@dataclass
class Slab:
    """Ideal attenuation and coverage of one slice before the scanner, each of shape (rows, cols)."""

    hu: Array
    blood: dict[str, Array]
    spaces: dict[str, Array]


def _artefacts(head: Head, hu: Array, place: Points, depth: Array) -> None:
    """Add beam hardening in place: dark bands between the petrous bones, brightening under the vault."""
    x, y, z = place
    if float(z.min()) < -2.0:
        level = np.exp(-(((z + 31.0) / 11.0) ** 2))
        band = np.square((y - 12.0) / 7.0)
        fan = 0.8 * np.exp(-band) + 0.2 * np.sin(0.55 * (y - 12.0) + 0.13 * x) / (1.0 + 0.25 * band)
        hu -= head.petrous_streak_hu * level * fan / (1.0 + np.square(np.square(x / 40.0)))
    hu += head.cupping_hu * np.exp(-np.maximum(depth, 0.0) / 6.0)


def _draw_inside(head: Head, lesions: tuple[Lesion, ...], place: Points, back: Array, shell: Vault,
                 floor: Points) -> Scene:
    """Draw what lies in the cranial cavity: brain, calcifications, blood, beam hardening; points (M,)."""
    came = mass_effect(lesions, place, shell)
    if came is None:
        brain = paint_brain(head, *place, shell, floor)
    else:
        brain = paint_brain(head, *came, vault(head, *came), floor_height(came[0], came[1]))
    hu, z = brain.hu, place[2]
    for spot in head.calcifications:
        if np.any(np.abs(z - spot.centre[2]) < spot.radii[2] + 1.0):
            share = cover(ellipsoid(*place, spot.centre, spot.radii), 1.6)
            hu += share * (spot.hu - hu)
    scene = Scene(place, back, shell, np.minimum(-shell.distance, 0.75 * (z - floor[0])), brain)
    for lesion in lesions:
        share = lesion.paint(hu, scene)
        scene.blood[lesion.subtype] = np.maximum(scene.blood.get(lesion.subtype, 0.0), share)
    _artefacts(head, hu, place, scene.depth)
    return scene


def _draw_points(head: Head, lesions: tuple[Lesion, ...], place: Points,
                 back: Array) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Attenuation, blood coverage and spaces of head points (N,)."""
    x, y, z = place
    shell = vault(head, x, y, z)
    base, behind, ridge = floor_height(x, y)
    hu = np.zeros_like(x)
    blood = {lesion.subtype: np.zeros_like(x) for lesion in lesions}
    spaces = {name: np.zeros_like(x) for name in ("csf", "ventricle", "cavity")}
    spaces["depth"] = np.full_like(x, -99.0)
    inner = np.flatnonzero((shell.distance < 2.0) & (z - base > -3.0))
    if inner.size:
        floor = (base[inner], behind[inner], ridge[inner])
        scene = _draw_inside(head, lesions, (x[inner], y[inner], z[inner]), back[inner], shell.take(inner), floor)
        hu[inner], spaces["depth"][inner] = scene.spaces.hu, scene.depth
        spaces["csf"][inner], spaces["ventricle"][inner] = scene.spaces.csf, scene.spaces.ventricle
        for name, share in scene.blood.items():
            blood[name][inner] = share
    spaces["cavity"][inner] = 1.0
    outer = np.flatnonzero((shell.distance > -8.0) | (z - base < 9.0))
    if outer.size:
        outer_hu = hu[outer]
        floor = (base[outer], behind[outer], ridge[outer])
        place = (x[outer], y[outer], z[outer])
        spaces["cavity"][outer] = paint_outside(head, outer_hu, place, shell.take(outer), floor)
        hu[outer] = outer_hu
    for share in blood.values():
        share *= spaces["cavity"]
    return hu, blood, spaces


def draw_slab(head: Head, lesions: tuple[Lesion, ...], grid: Grid, z_mm: float) -> Slab:
    """Draw one slice, averaged over its thickness.

    Args:
        head: The anatomy.
        lesions: The hemorrhages.
        grid: Sampling.
        z_mm: World z of the slice centre.

    Returns:
        Ideal attenuation in HU, coverage of blood per subtype and of the spaces.
    """
    xs = (np.arange(grid.cols, dtype=np.float32) - np.float32((grid.cols - 1) / 2)) * np.float32(grid.pixel_mm)
    ys = (np.arange(grid.rows, dtype=np.float32) - np.float32((grid.rows - 1) / 2)) * np.float32(grid.pixel_mm)
    wy, wx = (a.ravel() for a in np.meshgrid(ys, xs, indexing="ij"))
    size = wx.size
    hu = np.zeros(size, dtype=np.float32)
    blood = {lesion.subtype: np.zeros(size, dtype=np.float32) for lesion in lesions}
    spaces = {name: np.zeros(size, dtype=np.float32) for name in ("csf", "ventricle", "cavity", "depth")}
    part = np.float32(1.0 / grid.samples)
    for k in range(grid.samples):
        offset = (k - (grid.samples - 1) / 2) * grid.thickness_mm / grid.samples
        x, y, z = head.to_head(wx, wy, np.full(size, z_mm + offset, dtype=np.float32))
        reach = (head.half_width * 1.12 + 17.0, head.half_length * 1.04 + 17.0)
        span = (x / reach[0]) ** 2 + (y / reach[1]) ** 2
        keep = np.flatnonzero((span < 1.0) & (z < head.height + 45.0))
        plane_hu, plane_blood, plane_spaces = _draw_points(head, lesions, (x[keep], y[keep], z[keep]), wy[keep])
        plane = np.full(size, AIR_HU, dtype=np.float32)
        plane[keep] = plane_hu
        hu += part * plane
        for name, share in plane_blood.items():
            blood[name][keep] += part * share
        for name, share in plane_spaces.items():
            spaces[name][keep] += part * share
    shape = (grid.rows, grid.cols)
    return Slab(
        hu.reshape(shape),
        {name: share.reshape(shape) for name, share in blood.items()},
        {name: share.reshape(shape) for name, share in spaces.items()},
    )


@dataclass(frozen=True)
class Streams:
    """Independent sources of chance of one patient, so that blood does not change the anatomy or the noise."""

    anatomy: np.random.Generator
    lesions: np.random.SeedSequence
    scanner: np.random.Generator
    layout: np.random.Generator

    @classmethod
    def of(cls, seed: int, patient: int) -> Streams:
        """The streams of one patient; they depend on nothing but these two numbers."""
        anatomy, lesions, scanner, layout = np.random.SeedSequence([seed, patient]).spawn(4)
        return cls(
            np.random.default_rng(anatomy), lesions, np.random.default_rng(scanner), np.random.default_rng(layout)
        )


def make_head(seed: int, patient: int, *, conspicuity: float | None = None, grid: Grid | None = None,
              meet_z: float | None = None) -> HeadVolume:
    """Draw and scan one head.

    Args:
        seed: Seed of the data set, >= 0.
        patient: Index of the patient, >= 0; the head depends on nothing else but ``seed``.
        conspicuity: None for a head without blood, else 0 (barely visible) to 1.
        grid: Sampling; the default covers the head with 28 slices of 5 mm.
        meet_z: World z (mm) of a slice of the grid that must show blood, or None for any.

    Returns:
        The volume with its truth. With blood, at least one slice shows it (that at ``meet_z`` when given).
    """
    grid = grid or Grid()
    streams = Streams.of(seed, patient)
    head, scanner = draw_head(streams.anatomy), draw_scanner(streams.scanner)
    centres = grid.centres(head)
    lesions: tuple[Lesion, ...] = ()
    slabs: list[Slab] | None = None
    if conspicuity is not None:
        lesions, slabs = _bleed(streams.lesions, head, conspicuity, grid, meet_z)
    if slabs is None:
        slabs = [draw_slab(head, (), grid, z) for z in centres]
    hu = np.stack([acquire(scanner, streams.scanner, slab.hu, grid.pixel_mm) for slab in slabs])
    masks = {name: np.zeros(hu.shape, dtype=np.bool_) for name in SUBTYPES}
    for k, slab in enumerate(slabs):
        for name, share in slab.blood.items():
            masks[name][k] = share >= MASK_SHARE
    spacing = (grid.thickness_mm, grid.pixel_mm, grid.pixel_mm)
    return HeadVolume(hu, spacing, centres, masks, head, lesions, scanner, (seed, patient))


def _bleed(source: np.random.SeedSequence, head: Head, conspicuity: float, grid: Grid,
           meet_z: float | None) -> tuple[tuple[Lesion, ...], list[Slab]]:
    """Draw lesions until blood is really shown; each attempt has its own stream."""
    centres = grid.centres(head)
    for child in source.spawn(ATTEMPTS):
        lesions = draw_lesions(np.random.default_rng(child), head, conspicuity, meet_z)
        slabs: list[Slab] = []
        for z in centres:
            slab = draw_slab(head, lesions, grid, z)
            slabs.append(slab)
        shown = [
            z for z, slab in zip(centres, slabs, strict=True)
            if any((b >= MASK_SHARE).sum() * grid.pixel_mm**2 >= SHOWN_MM2 for b in slab.blood.values())
        ]
        if shown and (meet_z is None or any(abs(z - meet_z) < 1e-6 for z in shown)):
            return lesions, slabs
    raise ConfigError(
        f"phantom patient: no hemorrhage of conspicuity {conspicuity} can be shown at z = {meet_z} mm",
        remedy="let meet_z name a slice of the grid that crosses the brain, between about -45 and 70 mm",
    )
