"""A whole head as a scanned volume: what every layout writes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hemlearn.phantom.anatomy import Array, Head, Triple, draw_head
from hemlearn.phantom.lesions import SUBTYPES, Lesion, mass_effect
from hemlearn.phantom.placement import Distractor, draw_lesions, draw_shape
from hemlearn.phantom.skull import vault
from hemlearn.phantom.slab import Grid, Scanner, Slab, acquire, draw_scanner, draw_slab
from hemlearn.phantom.writers.common import Row, is_abnormal, patient_name
from hemlearn.util.errors import ConfigError

MASK_SHARE = 0.4
SHOWN_MM2 = 14.0
ATTEMPTS = 20
DRAWS = 25  # tries per distractor


def draw_conspicuity(rng: np.random.Generator) -> float:
    """How visible the blood of a series, or what only looks like it, is: moderately to plainly.

    Tens of series must be enough to learn from; fainter blood is drawn with ``make_head(conspicuity=...)``.
    """
    return float(0.55 + 0.43 * rng.uniform())


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
        tilt_deg: Gantry tilt.
        distractors: What looks like blood in one slice and is none; ``labels`` knows nothing of them.
    """

    hu: NDArray[np.int16]
    spacing: tuple[float, float, float]
    z_mm: tuple[float, ...]
    masks: dict[str, NDArray[np.bool_]]
    head: Head
    lesions: tuple[Lesion, ...]
    scanner: Scanner
    seed: tuple[int, int]
    tilt_deg: float = 0.0
    distractors: tuple[Distractor, ...] = ()

    def labels(self) -> dict[str, NDArray[np.bool_]]:
        """Truth per slice: subtype -> whether the slice shows it, shape (slices,), and ``any``."""
        area = self.spacing[1] * self.spacing[2]
        shown = {name: mask.sum(axis=(1, 2)) * area >= SHOWN_MM2 for name, mask in self.masks.items()}
        return shown | {"any": np.any(list(shown.values()), axis=0)}


@dataclass(frozen=True)
class Streams:
    """Independent sources of chance of one patient, so that blood does not change the anatomy or the noise."""

    anatomy: np.random.Generator
    lesions: np.random.SeedSequence
    scanner: np.random.Generator
    layout: np.random.Generator
    distractors: np.random.Generator

    @classmethod
    def of(cls, seed: int, patient: int) -> Streams:
        """The streams of one patient; they depend on nothing but these two numbers."""
        anatomy, lesions, scanner, layout, distractors = np.random.SeedSequence([seed, patient]).spawn(5)
        return cls(
            np.random.default_rng(anatomy),
            lesions,
            np.random.default_rng(scanner),
            np.random.default_rng(layout),
            np.random.default_rng(distractors),
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
    """Draw and scan one head.

    Args:
        seed: Seed of the data set, >= 0.
        patient: Index of the patient, >= 0; the head depends on nothing else but ``seed``.
        conspicuity: None for a head without blood, else 0 (barely visible) to 1.
        grid: Sampling; the default covers the head with 28 slices of 5 mm.
        meet_z: World z (mm) of a slice of the grid that must show blood, or None for any.
        first: Subtype of the main hemorrhage, or None for any.
        min_slices: In how many neighbouring slices every hemorrhage must show. Above 1, a hemorrhage too small for
            that is replaced by one a little more conspicuous.
        distractors: How many single-slice look-alikes to add, with or without blood; fewer when the head has no
            room for them: they keep a slice's distance from each other and from blood.

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
        lesions, slabs = _bleed(streams.lesions, head, conspicuity, grid, meet_z, first, min_slices)
    if slabs is None:
        slabs = [draw_slab(head, (), grid, z) for z in centres]
    added = _distract(streams.distractors, head, lesions, grid, slabs, distractors)
    hu = np.stack([acquire(scanner, streams.scanner, slab.hu, grid.pixel_mm) for slab in slabs])
    masks = {name: np.zeros(hu.shape, dtype=np.bool_) for name in SUBTYPES}
    for k, slab in enumerate(slabs):
        for name, share in slab.blood.items():
            masks[name][k] = share >= MASK_SHARE
    spacing = (grid.thickness_mm, grid.pixel_mm, grid.pixel_mm)
    return HeadVolume(hu, spacing, centres, masks, head, lesions, scanner, (seed, patient), grid.tilt_deg, added)


def _area(share: Array, grid: Grid) -> float:
    """Area (mm2) that a coverage (rows, cols) shows."""
    return float((share >= MASK_SHARE).sum()) * grid.pixel_mm**2


def _spans(slabs: list[Slab], grid: Grid, min_slices: int) -> bool:
    """Whether blood shows, and each hemorrhage that does so shows in ``min_slices`` neighbouring slices."""
    seen = False
    for name in {name for slab in slabs for name in slab.blood}:
        longest = run = 0
        for slab in slabs:
            run = run + 1 if _area(slab.blood[name], grid) >= SHOWN_MM2 else 0
            longest = max(longest, run)
        if 0 < longest < min_slices:
            return False
        seen = seen or longest > 0
    return seen


def _bleed(
    source: np.random.SeedSequence,
    head: Head,
    conspicuity: float,
    grid: Grid,
    meet_z: float | None,
    first: str | None,
    min_slices: int,
) -> tuple[tuple[Lesion, ...], list[Slab]]:
    """Draw lesions until blood is really shown; each attempt has its own stream."""
    centres = grid.centres(head)
    # A coarse drawing tells cheaply what is surely too small.
    rows, cols = (max(1, size // 3) for size in (grid.rows, grid.cols))
    draft = replace(grid, rows=rows, cols=cols, pixel_mm=3 * grid.pixel_mm, samples=1)
    for attempt, child in enumerate(source.spawn(ATTEMPTS)):
        grade = conspicuity if min_slices == 1 else min(1.0, conspicuity + 0.04 * attempt)
        lesions = draw_lesions(np.random.default_rng(child), head, grade, meet_z, first)
        if min_slices > 1 and not _spans([draw_slab(head, lesions, draft, z) for z in centres], draft, min_slices):
            continue
        slabs: list[Slab] = []
        for z in centres:
            slab = draw_slab(head, lesions, grid, z)
            slabs.append(slab)
        shown = [
            z
            for z, slab in zip(centres, slabs, strict=True)
            if any(_area(share, grid) >= SHOWN_MM2 for share in slab.blood.values())
        ]
        if not _spans(slabs, grid, min_slices):
            continue
        if shown and (meet_z is None or any(abs(z - meet_z) < 1e-6 for z in shown)):
            return lesions, slabs
    raise ConfigError(
        f"phantom patient: no hemorrhage of conspicuity {conspicuity} can be shown at z = {meet_z} mm",
        remedy="let meet_z name a slice of the grid that crosses the brain, between about -45 and 70 mm",
    )


def _distract(
    rng: np.random.Generator, head: Head, lesions: tuple[Lesion, ...], grid: Grid, slabs: list[Slab], count: int
) -> tuple[Distractor, ...]:
    """Redraw ``count`` of the ``slabs``, in place, with a look-alike in each.

    A look-alike lies where a hemorrhage of its outline could lie, so that neither its place nor its level tells.
    """
    centres = grid.centres(head)
    taken: set[int] = set()

    def close(k: int) -> None:
        taken.update((k - 1, k, k + 1))

    for k, slab in enumerate(slabs):
        if any(float(share.max()) > 0.1 for share in slab.blood.values()):
            close(k)
    added: list[Distractor] = []
    for _ in range(DRAWS * count):
        if len(added) == count:
            break
        drawn = draw_shape(rng, head, draw_conspicuity(rng))
        if drawn is None:
            continue
        kind, shape = drawn
        level = float(head.to_world(shape.centre)[2])
        k = int(np.argmin(np.abs(np.array(centres) - level)))
        if k in taken or abs(centres[k] - level) > grid.thickness_mm:
            continue
        distractor = Distractor(kind, centres[k], shape)
        slab = draw_slab(head, lesions, grid, centres[k], (distractor,))
        if _area(slab.spaces["decoy"], grid) >= SHOWN_MM2:
            slabs[k] = slab
            added.append(distractor)
            close(k)
    return tuple(sorted(added, key=lambda item: item.z_mm))


# --- Whole series with their truth: what the layouts of volumes write.


MIN_SLICES = 2  # every hemorrhage shows in at least so many neighbouring slices, a look-alike in one only
# The main hemorrhage of one bleeding patient after the other, so that a small set has all subtypes.
ROUND = (
    "intraparenchymal",
    "subdural",
    "subarachnoid",
    "epidural",
    "intraventricular",
    "intraparenchymal",
    "subdural",
    "subarachnoid",
)


def draw_volume(
    seed: int, patient: int, grid: Grid | None = None, *, tilted: bool = True, abnormal: bool | None = None
) -> HeadVolume:
    """One patient's series.

    Args:
        seed: Seed of the data set.
        patient: Index of the patient.
        grid: Sampling; None for 256 x 256 pixels of about 0.9 mm and 25 to 32 slices of 5 mm.
        tilted: Whether about half of the series are taken with gantry tilt.
        abnormal: Whether the patient bleeds; None for :func:`is_abnormal`. The same head with and without blood has
            the same scanner, noise and geometry.

    Returns:
        The volume with its truth: blood in about half of the patients, single-slice look-alikes in all.
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
    grid = replace(grid, z_mm=None, drop_mm=drop, tilt_deg=tilt if tilted else 0.0)
    return make_head(
        seed,
        patient,
        conspicuity=grade if bleeds else None,
        grid=grid,
        first=ROUND[patient // 2 % len(ROUND)],
        min_slices=MIN_SLICES,
        distractors=distractors,
    )


def slice_truth(volume: HeadVolume, patient: int, k: int) -> Row:
    """What is drawn in slice ``k`` (0 is the lowest) of a series: the columns that all layouts of volumes share."""
    labels = volume.labels()
    area = volume.spacing[1] * volume.spacing[2]
    level = volume.z_mm[k]
    seed = volume.seed[0]
    return {
        "patient": patient_name(seed, patient),
        "slice": k,
        "hemorrhage": int(bool(labels["any"][k])),
        "subtypes": "|".join(name for name, shown in labels.items() if name != "any" and bool(shown[k])),
        "area_mm2": round(float(sum(mask[k].sum() for mask in volume.masks.values()) * area), 1),
        "distractor": "|".join(item.kind for item in volume.distractors if abs(item.z_mm - level) < 1e-6),
        "sites": "|".join(lesion.site for lesion in volume.lesions),
        "conspicuity": "|".join(f"{lesion.conspicuity:.3f}" for lesion in volume.lesions),
        "tilt_deg": volume.tilt_deg,
        "age": round(volume.head.age, 1),
        "noise_hu": round(volume.scanner.noise_hu, 2),
        "seed": seed,
    }


def orientation(tilt_deg: float) -> tuple[float, ...]:
    """ImageOrientationPatient (0020,0037) of a supine axial slice with gantry tilt: row and column direction."""
    angle = math.radians(tilt_deg)
    return 1.0, 0.0, 0.0, 0.0, math.cos(angle), -math.sin(angle)


def image_position(volume: HeadVolume, k: int, offset: Triple = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    """ImagePositionPatient (0020,0032) of slice ``k``: the centre of its first pixel, mm, shape (3,).

    Args:
        volume: The series.
        k: Index of the slice, 0 the lowest.
        offset: Where the scanner's origin lies, mm.
    """
    rows, cols = volume.hu.shape[1:]
    grid = Grid(tilt_deg=volume.tilt_deg)
    x = -(cols - 1) / 2 * volume.spacing[2]
    y = grid.centre_y(volume.z_mm[k]) - (rows - 1) / 2 * volume.spacing[1]
    angle = math.radians(volume.tilt_deg)
    along, up = np.array([0.0, math.cos(angle), -math.sin(angle)]), np.array([0.0, math.sin(angle), math.cos(angle)])
    place: NDArray[np.float64] = np.array([x, 0.0, 0.0]) + y * along + volume.z_mm[k] * up + np.array(offset)
    return place


def displacement(volume: HeadVolume) -> tuple[float, float]:
    """How far (mm) the hemorrhages push the brain at most: anywhere, and the midline sideways."""
    axes = (np.arange(-60, 61, 10), np.arange(-70, 71, 10), np.arange(-10, 61, 10))
    x, y, z = (axis.ravel().astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij"))
    shell = vault(volume.head, x, y, z)
    came = mass_effect(volume.lesions, (x, y, z), shell)
    if came is None:
        return 0.0, 0.0
    inside = shell.distance < -4.0
    moved = np.sqrt(sum((a - b) ** 2 for a, b in zip(came, (x, y, z), strict=True)))
    return float(moved[inside].max()), float(np.abs(came[0] - x)[inside & (x == 0)].max())
