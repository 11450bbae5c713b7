"""A whole head as a scanned series with its truth: what the layouts of CT write.

The scanner has a point spread, correlated noise and rings, and stores int16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.phantom.anatomy import Array, Head, Triple, draw_head
from hemlearn.phantom.files import Row, is_abnormal, patient_name
from hemlearn.phantom.lesions import SUBTYPES, Lesion, draw_lesions, mass_effect
from hemlearn.phantom.slab import MASK_SHARE, SHOWN_MM2, Distractor, Grid, Slab, draw_look_alike, draw_slab
from hemlearn.phantom.tissue import vault
from hemlearn.util.errors import ConfigError

HU_RANGE = (-1024, 3071)
ATTEMPTS = 20  # to draw hemorrhages that show
DRAWS = 25  # tries per distractor
MIN_SLICES = 2  # every hemorrhage of a series shows in at least so many neighbouring slices, a look-alike in one only
# The main hemorrhage of one bleeding patient after the other, so that a small set has all subtypes.
_COMMON = ("intraparenchymal", "subdural", "subarachnoid")
ROUND = (*_COMMON, "epidural", "intraventricular", *_COMMON)


def draw_conspicuity(rng: Generator) -> float:
    """How visible the blood of a series, or what only looks like it, is: moderately to plainly.

    Tens of series must be enough to learn from; fainter blood is drawn with ``make_head(conspicuity=...)``.
    """
    return float(0.55 + 0.43 * rng.uniform())


def orientation(tilt_deg: float) -> tuple[float, ...]:
    """ImageOrientationPatient (0020,0037) of a supine axial slice with gantry tilt: row and column direction."""
    angle = math.radians(tilt_deg)
    return 1.0, 0.0, 0.0, 0.0, math.cos(angle), -math.sin(angle)


@dataclass(frozen=True)
class Scanner:
    """How one series was taken."""

    psf_mm: float  # standard deviation of the in-plane point spread
    noise_hu: float  # standard deviation of the noise inside the head; it falls with the square root of the dose
    grain_mm: float  # correlation length of the noise, set by the reconstruction kernel
    sharpen: float  # edge enhancement of the kernel, 0 for a smooth one
    ring_hu: float  # amplitude of ring artefacts, 0 for none
    offset_hu: float = 0.0  # calibration error of soft tissue; scanners and tube voltages differ by a few HU


def draw_scanner(rng: Generator) -> Scanner:
    """Draw kernel, dose and artefacts at random."""
    return Scanner(
        psf_mm=float(rng.uniform(0.45, 0.85)),
        noise_hu=float(rng.uniform(1.5, 3.8)),
        grain_mm=float(rng.uniform(0.5, 0.95)),
        sharpen=float(rng.choice((0.0, rng.uniform(0.1, 0.5)))),
        ring_hu=float(rng.choice((0.0, rng.uniform(0.4, 1.2)), p=(0.8, 0.2))),
        offset_hu=float(np.clip(rng.normal(0.0, 2.5), -5.0, 5.0)),
    )


def pixel_axes(shape: tuple[int, int], pixel_mm: float) -> tuple[Array, Array]:
    """Positions (mm, from the middle) of the rows (rows, 1) and columns (1, cols) of a slice."""
    y, x = ((np.arange(size, dtype=np.float32) - (size - 1) / 2) * pixel_mm for size in shape)
    return y[:, None], x[None, :]


def acquire(scanner: Scanner, rng: Generator, hu: Array, pixel_mm: float) -> NDArray[np.int16]:
    """Turn the ideal attenuation (rows, cols) of one slice into what is stored: int16 within :data:`HU_RANGE`."""

    def blur(image: Array, width_mm: float) -> Array:
        return np.asarray(ndimage.gaussian_filter(image, width_mm / pixel_mm, truncate=3.0))

    image = blur(hu + scanner.offset_hu * (hu > -500.0), scanner.psf_mm)
    if scanner.sharpen > 0:
        image += scanner.sharpen * (image - blur(image, 1.1))
    # Filtered back projection leaves no slow noise: the grain is a band, not a blur.
    fine = blur(rng.standard_normal(size=hu.shape, dtype=np.float32), scanner.grain_mm)
    grain = fine - 0.75 * blur(fine, 2.2 * scanner.grain_mm)
    grain *= scanner.noise_hu / max(float(grain.std()), 1e-6)
    y, x = pixel_axes(hu.shape, pixel_mm)
    radius = np.sqrt(x * x + y * y)
    # The longest paths cross the centre, so it is the noisiest.
    image += grain * (0.75 + 0.4 * np.exp(-((radius / 75.0) ** 2)))
    if scanner.ring_hu > 0:
        profile = rng.normal(0.0, scanner.ring_hu, size=160).astype(np.float32)
        image += np.interp(radius.ravel(), np.arange(160, dtype=np.float32), profile).reshape(hu.shape)
    return np.asarray(np.clip(np.rint(image), *HU_RANGE).astype(np.int16))


@dataclass
class HeadVolume:
    """One scanned head with its truth."""

    # int16 attenuation, shape (slices, rows, cols); slice 0 is the lowest, row 0 anterior, column 0 the patient's
    # right
    hu: NDArray[np.int16]
    spacing: Triple  # spacing in mm along (slices, rows, cols)
    z_mm: tuple[float, ...]  # world z of the slice centres, length slices
    masks: dict[str, NDArray[np.bool_]]  # subtype -> bool, shape of hu; all five subtypes are present
    head: Head  # the anatomy
    lesions: tuple[Lesion, ...]  # the hemorrhages, empty in a normal head
    scanner: Scanner  # kernel and dose
    seed: tuple[int, int]  # seed and patient index that reproduce it
    tilt_deg: float = 0.0  # gantry tilt
    # what looks like blood in one slice and is none; labels knows nothing of them
    distractors: tuple[Distractor, ...] = ()

    def labels(self) -> dict[str, NDArray[np.bool_]]:
        """Truth per slice: subtype -> whether the slice shows it, shape (slices,), and ``any``."""
        area = self.spacing[1] * self.spacing[2]
        shown = {name: mask.sum(axis=(1, 2)) * area >= SHOWN_MM2 for name, mask in self.masks.items()}
        return shown | {"any": np.any(list(shown.values()), axis=0)}

    def blood(self) -> NDArray[np.bool_]:
        """Blood of any subtype, shape of ``hu``."""
        return np.asarray(np.any(np.stack(list(self.masks.values())), axis=0))

    def position(self, k: int, offset: Triple = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
        """ImagePositionPatient (0020,0032) of slice ``k``, 0 the lowest: the centre of its first pixel, mm, shape (3,).

        ``offset`` is where the scanner's origin lies, mm.
        """
        rows, cols = self.hu.shape[1:]
        x = -(cols - 1) / 2 * self.spacing[2]
        y = Grid(tilt_deg=self.tilt_deg).centre_y(self.z_mm[k]) - (rows - 1) / 2 * self.spacing[1]
        along = np.array(orientation(self.tilt_deg)[3:])
        up = np.array([0.0, -along[2], along[1]])
        return np.asarray(np.array([x, 0.0, 0.0]) + y * along + self.z_mm[k] * up + np.array(offset))

    def truth(self, k: int) -> Row:
        """What is drawn in slice ``k``: the columns of phantom.csv that all layouts of CT series share."""
        labels = {name: bool(shown[k]) for name, shown in self.labels().items()}
        area = self.spacing[1] * self.spacing[2]
        return {
            "patient": patient_name(*self.seed),
            "slice": k,
            "hemorrhage": int(labels.pop("any")),
            "subtypes": "|".join(name for name, shown in labels.items() if shown),
            "area_mm2": round(float(sum(mask[k].sum() for mask in self.masks.values()) * area), 1),
            "distractor": "|".join(item.kind for item in self.distractors if abs(item.z_mm - self.z_mm[k]) < 1e-6),
            "sites": "|".join(lesion.site for lesion in self.lesions),
            "conspicuity": "|".join(f"{lesion.conspicuity:.3f}" for lesion in self.lesions),
            "tilt_deg": self.tilt_deg,
            "age": round(self.head.age, 1),
            "noise_hu": round(self.scanner.noise_hu, 2),
            "seed": self.seed[0],
        }

    def displacement(self) -> tuple[float, float]:
        """How far (mm) the hemorrhages push the brain at most: anywhere, and the midline sideways."""
        axes = (np.arange(-60, 61, 10), np.arange(-70, 71, 10), np.arange(-10, 61, 10))
        x, y, z = (axis.ravel().astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij"))
        shell = vault(self.head, (x, y, z))
        came = mass_effect(self.lesions, (x, y, z), shell)
        if came is None:
            return 0.0, 0.0
        inside = shell.distance < -4.0
        moved = np.sqrt(sum((a - b) ** 2 for a, b in zip(came, (x, y, z), strict=True)))
        return float(moved[inside].max()), float(np.abs(came[0] - x)[inside & (x == 0)].max())


@dataclass(frozen=True)
class Streams:
    """Independent sources of chance of one patient, so that blood does not change the anatomy or the noise."""

    seed: tuple[int, int]
    anatomy: Generator
    lesions: SeedSequence
    scanner: Generator
    layout: Generator
    distractors: Generator

    @classmethod
    def of(cls, seed: int, patient: int) -> Streams:
        """The streams of one patient; they depend on nothing but these two numbers."""
        anatomy, lesions, *others = SeedSequence([seed, patient]).spawn(5)
        return cls((seed, patient), default_rng(anatomy), lesions, *map(default_rng, others))

    def scan(
        self,
        head: Head,
        scanner: Scanner,
        grid: Grid,
        slabs: Sequence[Slab],
        lesions: tuple[Lesion, ...],
        distractors: tuple[Distractor, ...] = (),
    ) -> HeadVolume:
        """Take the pictures of drawn slices."""
        hu = np.stack([acquire(scanner, self.scanner, slab.hu, grid.pixel_mm) for slab in slabs])
        none = np.zeros(hu.shape[1:], dtype=np.float32)
        masks = {name: np.stack([slab.blood.get(name, none) >= MASK_SHARE for slab in slabs]) for name in SUBTYPES}
        levels = grid.centres(head)
        return HeadVolume(
            hu, grid.spacing, levels, masks, head, lesions, scanner, self.seed, grid.tilt_deg, distractors
        )


def make_head(
    seed: int,
    patient: int,
    *,
    conspicuity: float | None = None,
    grid: Grid | None = None,
    meet_z: float | None = None,
    first: str | None = None,
    min_slices: int = 1,
    distractors: int = 0,
) -> HeadVolume:
    """Draw and scan one head; it depends on nothing but ``seed`` and ``patient``.

    Args:
        seed: Seed of the data set, >= 0.
        patient: Index of the patient, >= 0.
        conspicuity: None for a head without blood, else 0 (barely visible) to 1; at least one slice shows it.
        grid: Sampling; the default covers the head with 28 slices of 5 mm.
        meet_z: World z (mm) of a slice of the grid that must show blood, or None for any.
        first: Subtype of the main hemorrhage, or None for any.
        min_slices: In how many neighbouring slices every hemorrhage must show. Above 1, a hemorrhage too small for
            that is replaced by one a little more conspicuous.
        distractors: How many single-slice look-alikes to add; fewer when the head has no room for them: they keep a
            slice's distance from each other and from blood.
    """
    grid = grid or Grid()
    streams = Streams.of(seed, patient)
    head, scanner = draw_head(streams.anatomy), draw_scanner(streams.scanner)
    if conspicuity is None:
        lesions: tuple[Lesion, ...] = ()
        slabs = [draw_slab(head, (), grid, z) for z in grid.centres(head)]
    else:
        lesions, slabs = _bleed(streams.lesions, head, conspicuity, grid, meet_z, first, min_slices)
    added = _distract(streams.distractors, head, lesions, grid, slabs, distractors)
    return streams.scan(head, scanner, grid, slabs, lesions, added)


def _spans(slabs: Sequence[Slab], grid: Grid, min_slices: int) -> bool:
    """Whether blood shows, and each hemorrhage that does so shows in ``min_slices`` neighbouring slices."""
    longest = []
    for name in slabs[0].blood:
        shown = (grid.area_mm2(slab.blood[name]) >= SHOWN_MM2 for slab in slabs)
        longest.append(max((len(list(run)) for on, run in groupby(shown) if on), default=0))
    return any(longest) and all(run == 0 or run >= min_slices for run in longest)


def _bleed(
    source: SeedSequence,
    head: Head,
    conspicuity: float,
    grid: Grid,
    meet_z: float | None,
    first: str | None,
    min_slices: int,
) -> tuple[tuple[Lesion, ...], list[Slab]]:
    """Draw lesions until blood is really shown; each attempt has its own stream."""
    centres, draft = grid.centres(head), grid.draft()
    for attempt, child in enumerate(source.spawn(ATTEMPTS)):
        grade = conspicuity if min_slices == 1 else min(1.0, conspicuity + 0.04 * attempt)
        lesions = draw_lesions(default_rng(child), head, grade, meet_z, first)
        if min_slices > 1 and not _spans([draw_slab(head, lesions, draft, z) for z in centres], draft, min_slices):
            continue
        slabs = [draw_slab(head, lesions, grid, z) for z in centres]
        there = [slab for z, slab in zip(centres, slabs, strict=True) if meet_z is None or abs(z - meet_z) < 1e-6]
        if _spans(slabs, grid, min_slices) and any(_spans([slab], grid, 1) for slab in there):
            return lesions, slabs
    raise ConfigError(
        f"phantom patient: no hemorrhage of conspicuity {conspicuity} can be shown at z = {meet_z} mm",
        remedy="let meet_z name a slice of the grid that crosses the brain, between about -45 and 70 mm",
    )


def _distract(
    rng: Generator, head: Head, lesions: tuple[Lesion, ...], grid: Grid, slabs: list[Slab], count: int
) -> tuple[Distractor, ...]:
    """Redraw ``count`` of the ``slabs``, in place, with a look-alike in each.

    A look-alike lies where a hemorrhage of its outline could lie, so that neither its place nor its level tells.
    """
    centres = grid.centres(head)
    bloody = [k for k, slab in enumerate(slabs) if any(float(share.max()) > 0.1 for share in slab.blood.values())]
    taken = {k + step for k in bloody for step in (-1, 0, 1)}
    added: list[Distractor] = []
    for _ in range(DRAWS * count):
        if len(added) == count:
            break
        drawn = draw_look_alike(rng, head, draw_conspicuity(rng))
        if drawn is None:
            continue
        kind, shape = drawn
        level = float(head.to_world(shape.centre)[2])
        k = int(np.argmin(np.abs(np.array(centres) - level)))
        if k in taken or abs(centres[k] - level) > grid.thickness_mm:
            continue
        distractor = Distractor(kind, centres[k], shape)
        slab = draw_slab(head, lesions, grid, centres[k], (distractor,))
        if grid.area_mm2(slab.spaces["decoy"]) >= SHOWN_MM2:
            slabs[k] = slab
            added.append(distractor)
            taken |= {k - 1, k, k + 1}
    return tuple(sorted(added, key=lambda item: item.z_mm))


def draw_volume(
    seed: int, patient: int, grid: Grid | None = None, *, tilted: bool = True, abnormal: bool | None = None
) -> HeadVolume:
    """One patient's series: blood in about half of the patients, single-slice look-alikes in all.

    Args:
        seed: Seed of the data set.
        patient: Index of the patient.
        grid: Sampling; None for 256 x 256 pixels of about 0.9 mm and 25 to 32 slices of 5 mm.
        tilted: Whether about half of the series are taken with gantry tilt.
        abnormal: Whether the patient bleeds; None for :func:`is_abnormal`. All else is the same.
    """
    rng = Streams.of(seed, patient).layout
    # Everything about the series is drawn before, and without regard to, the label.
    slices, pixel = int(rng.integers(25, 33)), round(float(rng.uniform(0.86, 0.96)), 6)
    tilt = round(float(rng.uniform(-6.0, 22.0)), 1) if rng.uniform() < 0.5 else 0.0
    distractors = int(rng.integers(3, 7))
    grade = draw_conspicuity(rng)
    # The topmost slice shows some of the head: pictures of nothing but air are equal in all patients.
    drop = round(float(rng.uniform(5.0, 11.0)), 2)
    bleeds = is_abnormal(seed, patient) if abnormal is None else abnormal
    grid = grid or Grid(pixel_mm=pixel, slices=slices, samples=2)
    return make_head(
        seed,
        patient,
        conspicuity=grade if bleeds else None,
        grid=replace(grid, z_mm=None, drop_mm=drop, tilt_deg=tilt if tilted else 0.0),
        first=ROUND[patient // 2 % len(ROUND)],
        min_slices=MIN_SLICES,
        distractors=distractors,
    )
