"""One slice of a head, drawn where the scanner's grid samples it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.phantom.anatomy import AIR_HU, Array, Head, cover, ellipsoid
from hemlearn.phantom.brain import paint_brain
from hemlearn.phantom.lesions import Lesion, Points, Scene, mass_effect
from hemlearn.phantom.placement import Distractor
from hemlearn.phantom.skull import VAULT_CENTRE_Z, Vault, floor_height, paint_outside, vault
from hemlearn.util.errors import ConfigError

TILT_PIVOT_MM = 12.0  # world z at which a tilted stack is centred on the head


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
        tilt_deg: Gantry tilt, as in DICOM (0018,1120). The slices stay planes of constant z of the tilted gantry;
            the table moves horizontally, so that from slice to slice the head shifts along the rows' axis y.
        drop_mm: How far below the vertex the topmost slice lies when ``z_mm`` is None.
    """

    rows: int = 256
    cols: int = 256
    pixel_mm: float = 0.9
    thickness_mm: float = 5.0
    z_mm: tuple[float, ...] | None = None
    slices: int = 28
    samples: int = 3
    tilt_deg: float = 0.0
    drop_mm: float = 0.0

    def __post_init__(self) -> None:
        sizes = {"rows": self.rows, "cols": self.cols, "slices": self.slices, "samples": self.samples}
        lengths = {"pixel_mm": self.pixel_mm, "thickness_mm": self.thickness_mm}
        for key, value in (sizes | lengths).items():
            if not value > 0:
                raise ConfigError(f"phantom grid: {key}={value} is not positive", remedy=f"give a positive {key}")
        if not abs(self.tilt_deg) < 45.0:
            raise ConfigError(f"phantom grid: tilt_deg={self.tilt_deg} is no gantry tilt", remedy="keep it within 45")

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


def _draw_inside(
    head: Head,
    lesions: tuple[Lesion, ...],
    place: Points,
    back: Array,
    shell: Vault,
    floor: Points,
    distractors: tuple[Distractor, ...],
) -> tuple[Scene, Array]:
    """Draw what lies in the cranial cavity: brain, calcifications, blood, beam hardening; points (M,).

    Returns:
        The scene, and the coverage of the distractors (M,).
    """
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
    decoy = np.zeros_like(hu)
    for distractor in distractors:
        decoy = np.maximum(decoy, distractor.paint(hu, scene))
    _artefacts(head, hu, place, scene.depth)
    return scene, decoy


def _draw_points(
    head: Head, lesions: tuple[Lesion, ...], place: Points, back: Array, distractors: tuple[Distractor, ...]
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Attenuation, blood coverage and spaces of head points (N,)."""
    x, y, z = place
    shell = vault(head, x, y, z)
    base, behind, ridge = floor_height(x, y)
    hu = np.zeros_like(x)
    blood = {lesion.subtype: np.zeros_like(x) for lesion in lesions}
    spaces = {name: np.zeros_like(x) for name in ("csf", "ventricle", "cavity", "decoy")}
    spaces["depth"] = np.full_like(x, -99.0)
    inner = np.flatnonzero((shell.distance < 2.0) & (z - base > -3.0))
    if inner.size:
        floor = (base[inner], behind[inner], ridge[inner])
        scene, spaces["decoy"][inner] = _draw_inside(
            head, lesions, (x[inner], y[inner], z[inner]), back[inner], shell.take(inner), floor, distractors
        )
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
    for share in (*blood.values(), spaces["decoy"]):
        share *= spaces["cavity"]
    return hu, blood, spaces


def draw_slab(
    head: Head, lesions: tuple[Lesion, ...], grid: Grid, z_mm: float, distractors: tuple[Distractor, ...] = ()
) -> Slab:
    """Draw one slice, averaged over its thickness.

    Args:
        head: The anatomy.
        lesions: The hemorrhages.
        grid: Sampling.
        z_mm: World z of the slice centre.
        distractors: What only looks like blood, and only in this slice.

    Returns:
        Ideal attenuation in HU, coverage of blood per subtype, of the spaces and (``decoy``) of the distractors.
    """
    xs = (np.arange(grid.cols, dtype=np.float32) - np.float32((grid.cols - 1) / 2)) * np.float32(grid.pixel_mm)
    ys = (np.arange(grid.rows, dtype=np.float32) - np.float32((grid.rows - 1) / 2)) * np.float32(grid.pixel_mm)
    ys = ys + np.float32(grid.centre_y(z_mm))
    wy, wx = (a.ravel() for a in np.meshgrid(ys, xs, indexing="ij"))
    size = wx.size
    hu = np.zeros(size, dtype=np.float32)
    blood = {lesion.subtype: np.zeros(size, dtype=np.float32) for lesion in lesions}
    spaces = {name: np.zeros(size, dtype=np.float32) for name in ("csf", "ventricle", "cavity", "depth", "decoy")}
    part = np.float32(1.0 / grid.samples)
    for k in range(grid.samples):
        offset = (k - (grid.samples - 1) / 2) * grid.thickness_mm / grid.samples
        x, y, z = head.to_head(wx, wy, np.full(size, z_mm + offset, dtype=np.float32))
        reach = (head.half_width * 1.12 + 17.0, head.half_length * 1.04 + 17.0)
        span = (x / reach[0]) ** 2 + (y / reach[1]) ** 2
        keep = np.flatnonzero((span < 1.0) & (z < head.height + 45.0))
        place = (x[keep], y[keep], z[keep])
        plane_hu, plane_blood, plane_spaces = _draw_points(head, lesions, place, wy[keep], distractors)
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


# --- The scanner: point spread, correlated noise, rings, and storage as int16.


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
