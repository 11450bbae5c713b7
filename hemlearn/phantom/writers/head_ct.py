"""The layout of Kaggle's Head-CT collection: one windowed slice per patient, as PNG."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemlearn.phantom.head import HeadVolume, Streams, make_head
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.writers.common import (
    Job,
    PhantomSummary,
    Row,
    each_patient,
    is_abnormal,
    patient_name,
    summarize,
    window_8bit,
    write_truth,
)

BRAIN_WINDOW = (40.0, 80.0)


def _conspicuity(rng: np.random.Generator) -> float:
    """How visible the blood is: mostly plain, as in a collection of teaching figures, with a tail of faint cases."""
    return float(0.02 + 0.98 * rng.uniform() ** 0.36)


def head_ct_slice(
    seed: int, patient: int, grid: Grid | None = None, abnormal: bool | None = None
) -> tuple[NDArray[np.uint8], HeadVolume]:
    """One patient of the ``head_ct`` layout.

    Args:
        seed: Seed of the data set.
        patient: Index of the patient.
        grid: Sampling before the resampling to a picture; its slice position is not used.
        abnormal: Whether the patient bleeds; None for :func:`is_abnormal`. The same slice of the same head with
            and without blood differs in nothing else.

    Returns:
        The windowed image, uint8 (height, width), cropped and resampled as a figure in a collection would be;
        and the single-slice volume it was made of.
    """
    rng = Streams.of(seed, patient).layout
    # Everything about the image is drawn before, and without regard to, the label.
    z = float(rng.uniform(-12.0, 46.0))
    width = int(rng.integers(180, 321))
    margins = rng.uniform(0.0, 0.36, size=4) * rng.uniform()
    squash = float(rng.uniform(0.94, 1.06))
    grade = _conspicuity(rng)
    bleeds = is_abnormal(seed, patient) if abnormal is None else abnormal
    conspicuity = grade if bleeds else None
    grid = replace(grid or Grid(), z_mm=(z,))
    volume = make_head(seed, patient, conspicuity=conspicuity, grid=grid, meet_z=z)
    image = window_8bit(volume.hu[0], *BRAIN_WINDOW)
    box = _skull_box(volume.hu[0], margins)
    height = max(2, round(width * squash * (box[3] - box[1]) / (box[2] - box[0])))
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(picture), volume


def _skull_box(hu: NDArray[np.int16], margins: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Box (left, top, right, bottom) around the bone, widened by ``margins`` as shares of its size."""
    rows, cols = np.nonzero(hu > 300)
    top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
    high, wide = bottom - top, right - left
    limit_y, limit_x = hu.shape
    return (
        float(max(0.0, left - margins[0] * wide)),
        float(max(0.0, top - margins[1] * high)),
        float(min(limit_x, right + margins[2] * wide)),
        float(min(limit_y, bottom + margins[3] * high)),
    )


def _patient(out: Path, seed: int, patient: int, grid: Grid | None) -> Row:
    image, volume = head_ct_slice(seed, patient, grid)
    name = f"{patient:03d}.png"
    Image.fromarray(image).save(out / "head_ct" / "head_ct" / name)
    labels = volume.labels()
    shown = [key for key, seen in labels.items() if key != "any" and bool(seen[0])]
    return {
        "id": patient,
        "patient": patient_name(seed, patient),
        "hemorrhage": int(bool(labels["any"][0])),
        "subtypes": "|".join(shown),
        "sites": "|".join(lesion.site for lesion in volume.lesions),
        "conspicuity": "|".join(f"{lesion.conspicuity:.3f}" for lesion in volume.lesions),
        "area_mm2": round(float(sum(m.sum() for m in volume.masks.values()) * volume.spacing[1] ** 2), 1),
        "z_mm": round(volume.z_mm[0], 2),
        "age": round(volume.head.age, 1),
        "noise_hu": round(volume.scanner.noise_hu, 2),
        "seed": seed,
    }


def write_head_ct(job: Job) -> PhantomSummary:
    """The Kaggle Head-CT layout: labels.csv and head_ct/head_ct/NNN.png, one slice per patient."""
    (job.out / "head_ct" / "head_ct").mkdir(parents=True)
    rows = list(each_patient(_patient, job))
    with (job.out / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("id, hemorrhage\n")
        file.writelines(f"{row['id']},{row['hemorrhage']}\n" for row in rows)
    write_truth(job.out / "phantom.csv", rows)
    return summarize("head_ct", job, rows)
