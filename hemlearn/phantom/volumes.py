"""Whole series with their truth: what the layouts of volumes write."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hemlearn.phantom.head import HeadVolume, Streams, draw_conspicuity, make_head
from hemlearn.phantom.lesions import mass_effect
from hemlearn.phantom.shapes import Triple
from hemlearn.phantom.skull import vault
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.writers.common import Row, is_abnormal, patient_name

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
