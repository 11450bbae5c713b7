"""The layout of ``data=six_class``: one folder per class with single slices of head CT."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hemlearn.errors import ConfigError
from hemlearn.phantom.anatomy import Head, draw_head
from hemlearn.phantom.dicom import save, store_hu
from hemlearn.phantom.head import MASK_SHARE, SHOWN_MM2, HeadVolume, Streams, draw_conspicuity
from hemlearn.phantom.lesions import SUBTYPES, Lesion
from hemlearn.phantom.placement import draw_lesion
from hemlearn.phantom.scanner import acquire, draw_scanner
from hemlearn.phantom.slab import Grid, draw_slab
from hemlearn.phantom.volumes import image_position, orientation, slice_truth
from hemlearn.phantom.writers.common import Job, PhantomSummary, Row, each_patient, summarize, write_truth
from hemlearn.phantom.writers.plain import place, plain_header

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


def _patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
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
    rows = [row for patient in each_patient(_patient, job) for row in patient]
    write_truth(job.out / "phantom.csv", rows)
    return summarize("six_class", job, rows)
