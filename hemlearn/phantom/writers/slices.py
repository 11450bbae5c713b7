"""The layout of ``data=six_class``: one folder per class with single slices of head CT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemlearn.phantom.anatomy import Head, draw_head
from hemlearn.phantom.head import (
    MASK_SHARE,
    SHOWN_MM2,
    HeadVolume,
    Streams,
    draw_conspicuity,
    image_position,
    make_head,
    orientation,
    slice_truth,
)
from hemlearn.phantom.lesions import SUBTYPES, Lesion
from hemlearn.phantom.placement import draw_lesion
from hemlearn.phantom.slab import Grid, acquire, draw_scanner, draw_slab
from hemlearn.phantom.writers.common import (
    Job,
    PhantomSummary,
    Row,
    each_patient,
    is_abnormal,
    patient_name,
    place,
    plain_header,
    save,
    store_hu,
    summarize,
    window_8bit,
    write_truth,
)
from hemlearn.util.errors import ConfigError

# --- The layout of Kaggle's Head-CT collection: one windowed slice per patient, as PNG.


BRAIN_WINDOW = (40.0, 80.0)


def _conspicuity(rng: np.random.Generator) -> float:
    """How visible the blood is: mostly plain, as in a collection of teaching figures, with a tail of faint cases."""
    return float(0.02 + 0.98 * rng.uniform() ** 0.36)


def head_ct_slice(
    seed: int, patient: int, grid: Grid | None = None, abnormal: bool | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], HeadVolume]:
    """One patient of the ``head_ct`` layout.

    Args:
        seed: Seed of the data set.
        patient: Index of the patient.
        grid: Sampling before the resampling to a picture; its slice position is not used.
        abnormal: Whether the patient bleeds; None for :func:`is_abnormal`. The same slice of the same head with
            and without blood differs in nothing else.

    Returns:
        The windowed image, uint8 (height, width), cropped and resampled as a figure in a collection would be; where
        it shows blood, bool of the same shape; and the single-slice volume it was made of.
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
    blood = np.any(np.stack([mask[0] for mask in volume.masks.values()]), axis=0).astype(np.uint8) * np.uint8(255)
    picture, mask = (
        np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC, box=box))
        for part in (image, blood)
    )
    return picture, mask >= 128, volume


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
    image, blood, volume = head_ct_slice(seed, patient, grid)
    name = f"{patient:03d}.png"
    Image.fromarray(image).save(out / "head_ct" / "head_ct" / name)
    Image.fromarray(blood.astype(np.uint8) * np.uint8(255)).save(out / "masks" / name)
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
    """The Kaggle Head-CT layout: labels.csv and head_ct/head_ct/NNN.png, one slice per patient.

    masks/NNN.png, which the real set has not, shows the blood in 255.
    """
    for folder in ("head_ct/head_ct", "masks"):
        (job.out / folder).mkdir(parents=True)
    rows = list(each_patient(_patient, job))
    with (job.out / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("id, hemorrhage\n")
        file.writelines(f"{row['id']},{row['hemorrhage']}\n" for row in rows)
    write_truth(job.out / "phantom.csv", rows)
    return summarize("head_ct", job, rows)


CLASSES = ("normal", "epidural", "subdural", "intraventricular", "intraparenchymal", "subarachnoid")
IMAGES = (7, 9)  # per patient
_SCAN_MM = 3.0
_SPAN_MM = 9.0  # shortest stretch of slices that show the blood
_FEW_MM = (-30.0, 64.0)  # world z that is searched


@dataclass(frozen=True)
class _Site:
    """A hemorrhage and the world z (mm) from which to which slices show it."""

    lesion: Lesion
    low: float
    high: float


def class_of_patient(seed: int, patient: int) -> str:
    """The class of most images: each of six neighbours (6k to 6k + 5) another of :data:`CLASSES`, by chance."""
    order = np.random.default_rng(np.random.SeedSequence([seed, patient // 6, 29])).permutation(len(CLASSES))
    return CLASSES[int(order[patient % len(CLASSES)])]


def _area(head: Head, lesion: Lesion, grid: Grid, z: float) -> float:
    """Area (mm2) of the lesion in a slice."""
    slab = draw_slab(head, (lesion,), grid, z)
    return float((slab.blood[lesion.subtype] >= MASK_SHARE).sum()) * grid.pixel_mm**2


def _find(source: np.random.SeedSequence, head: Head, subtype: str, grid: Grid) -> _Site:
    """Draw a hemorrhage that enough slices show."""
    draft = replace(
        grid, rows=max(32, grid.rows // 3), cols=max(32, grid.cols // 3), pixel_mm=3 * grid.pixel_mm, samples=1
    )
    levels = np.arange(_FEW_MM[0], _FEW_MM[1], _SCAN_MM)
    for attempt, child in enumerate(source.spawn(60)):
        rng = np.random.default_rng(child)
        # What stays too small for several slices is replaced by something larger in the end.
        grade = min(1.0, draw_conspicuity(rng) + 0.03 * attempt)
        lesion = draw_lesion(rng, head, subtype, grade)
        if lesion is None:
            continue
        near = levels[np.abs(levels - float(head.to_world(lesion.centre)[2])) < 40.0]
        shown = [float(z) for z in near if _area(head, lesion, draft, float(z)) >= 1.5 * SHOWN_MM2]
        if shown and shown[-1] - shown[0] >= _SPAN_MM:
            return _Site(lesion, shown[0], shown[-1])
    raise ConfigError(
        f"phantom patient: no {subtype} hemorrhage spans {_SPAN_MM:g} mm on this grid",
        remedy="use pixels of 4 mm at most and at least 64 rows and columns",
    )


def draw_images(seed: int, patient: int, grid: Grid | None = None) -> HeadVolume:
    """The images of one patient as a volume of slices at uneven distances, the lowest first.

    Normal patients are cut at the levels at which a hemorrhage that they do not have would show, so that the level of a
    slice says nothing of its class. A third of the bleeding patients have two normal slices as well.
    """
    streams = Streams.of(seed, patient)
    head, scanner = draw_head(streams.anatomy), draw_scanner(streams.scanner)
    rng = streams.layout
    pixel, count = round(float(rng.uniform(0.86, 0.96)), 6), int(rng.integers(IMAGES[0], IMAGES[1] + 1))
    beside, borrowed = bool(rng.uniform() < 1 / 3), str(rng.choice(CLASSES[1:]))
    grid = grid or Grid(pixel_mm=pixel, samples=2)
    word = class_of_patient(seed, patient)
    site = _find(streams.lesions, head, borrowed if word == "normal" else word, grid)
    levels = np.linspace(site.low, site.high, count)
    if beside and word != "normal":
        far = np.arange(_FEW_MM[0], _FEW_MM[1])
        free = [
            float(z)
            for z in far
            if not site.low - 9.0 <= z <= site.high + 9.0
            and _area(head, site.lesion, replace(grid, samples=1), float(z)) == 0
        ]
        levels = np.sort([*levels, *(rng.choice(free, size=2, replace=False) if len(free) > 1 else ())])
    centres = tuple(round(float(z), 3) for z in levels)
    lesions = () if word == "normal" else (site.lesion,)
    slabs = [draw_slab(head, lesions, grid, z) for z in centres]
    hu = np.stack([acquire(scanner, streams.scanner, slab.hu, grid.pixel_mm) for slab in slabs])
    none = np.zeros(hu.shape[1:], dtype=np.float32)
    masks = {name: np.stack([slab.blood.get(name, none) >= MASK_SHARE for slab in slabs]) for name in SUBTYPES}
    spacing = (grid.thickness_mm, grid.pixel_mm, grid.pixel_mm)
    return HeadVolume(hu, spacing, centres, masks, head, lesions, scanner, (seed, patient))


def _class_slices(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_images(seed, patient, grid)
    rng = np.random.default_rng(np.random.SeedSequence([seed, patient, 11]))
    offset = (0.0, round(float(rng.uniform(-30, 30)), 3), round(float(rng.uniform(-200, 250)), 3))
    name = f"P{patient:04d}"
    rows: list[Row] = []
    for k in range(len(volume.hu)):
        truth = slice_truth(volume, patient, k)
        bled = any(bool(mask[k].any()) for mask in volume.masks.values())
        if bled and not truth["hemorrhage"]:  # too little blood to be called either
            continue
        word = str(truth["subtypes"]) or "normal"
        number = len(rows) + 1
        dataset = plain_header("CT", name, (seed, patient, "CT"), number, "HEAD")
        position = image_position(volume, k, offset)
        place(dataset, position, volume.spacing[1], volume.spacing[0], orientation(0.0))
        dataset.WindowCenter, dataset.WindowWidth = "40", "80"
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"
        store_hu(dataset, volume.hu[k], signed=False)
        file = f"{word}/{name}_{number:02d}.dcm"
        save(dataset, out / file)
        rows.append(
            {"file": file, "patient_id": name, "class": word, "z_mm": round(float(position[2]), 3)}
            | truth
            | {"slice": len(rows)}
        )
    return rows


def write_six_class(job: Job) -> PhantomSummary:
    """normal/P0000_01.dcm and so on, about 8 images per patient; phantom.csv holds the truth of every image."""
    for name in CLASSES:
        (job.out / name).mkdir()
    rows = [row for patient in each_patient(_class_slices, job) for row in patient]
    write_truth(job.out / "phantom.csv", rows)
    return summarize("six_class", job, rows)
