"""The layout of ``data=basal_ganglia``: one DICOM series of head CT per patient, and a table of sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hemlearn.errors import ConfigError
from hemlearn.phantom.anatomy import Head, draw_head
from hemlearn.phantom.dicom import save, store_hu
from hemlearn.phantom.head import MASK_SHARE, SHOWN_MM2, HeadVolume, Streams, draw_conspicuity
from hemlearn.phantom.lesions import SUBTYPES, Intraparenchymal, Lesion
from hemlearn.phantom.placement import draw_lesion, texture
from hemlearn.phantom.scanner import acquire, draw_scanner
from hemlearn.phantom.shapes import Triple
from hemlearn.phantom.slab import Grid, Slab, draw_slab
from hemlearn.phantom.volumes import image_position, orientation, slice_truth
from hemlearn.phantom.writers.common import Job, PhantomSummary, Row, each_patient, summarize, write_truth
from hemlearn.phantom.writers.plain import place, plain_header, write_label_table

SIDES = ("none", "left", "right")
_GANGLIA: tuple[tuple[str, float, Triple], ...] = (
    ("putamen", 0.72, (26.0, -2.0, 5.0)),
    ("caudate head", 0.28, (14.5, -20.0, 9.0)),
)
_ELSEWHERE = ("subdural", "epidural", "subarachnoid", "intraparenchymal")
_DEEP = ("putamen", "thalamus")  # sites of other hemorrhages that would be too near
_LOWEST_MM, _SLICES = -27.0, 15


def side_of(seed: int, patient: int) -> str:
    """What this patient has: each of three neighbours (3k to 3k + 2) another of :data:`SIDES`, by chance."""
    order = np.random.default_rng(np.random.SeedSequence([seed, patient // 3, 23])).permutation(3)
    return SIDES[int(order[patient % 3])]


def _ganglia(rng: np.random.Generator, side: str, grade: float) -> Lesion:
    """A hemorrhage of the putamen or the head of the caudate; x runs to the patient's left."""
    site, _, centre = _GANGLIA[int(rng.choice(len(_GANGLIA), p=[row[1] for row in _GANGLIA]))]
    x, y, z = (c + float(j) for c, j in zip(centre, rng.normal(0.0, (1.8, 3.0, 2.0)), strict=True))
    radius = min(4.5 + 15.0 * grade, 16.0) * float(rng.uniform(0.85, 1.15)) * (0.75 if site != "putamen" else 1.0)
    shape = (float(radius * rng.uniform(0.65, 0.9)), float(radius * rng.uniform(1.0, 1.35)), radius)
    hu = 48.0 + 26.0 * grade + float(rng.normal(0, 3))
    edema = 1.5 + (2.0 + 5.0 * grade) * float(rng.uniform(0.3, 1.0))
    return Intraparenchymal(
        "intraparenchymal", site, (x if side == "left" else -x, y, z), grade, hu, texture(rng), shape, edema
    )


def _elsewhere(rng: np.random.Generator, head: Head, grade: float) -> Lesion | None:
    """A hemorrhage of another place."""
    lesion = draw_lesion(rng, head, str(rng.choice(_ELSEWHERE)), grade)
    return None if lesion is None or lesion.site in _DEEP else lesion


def _lesions(rng: np.random.Generator, head: Head, side: str) -> tuple[Lesion, ...]:
    """Half of the heads without a hemorrhage of the ganglia bleed elsewhere, as do a fifth of the others."""
    grade = draw_conspicuity(rng)
    found: list[Lesion] = [] if side == "none" else [_ganglia(rng, side, grade)]
    if rng.uniform() < (0.5 if side == "none" else 0.2):
        for _ in range(20):
            other = _elsewhere(rng, head, grade)
            if other is not None:
                return (*found, other)
    return tuple(found)


def _shown(slabs: list[Slab], grid: Grid) -> bool:
    """Whether two slices show blood of the parenchyma."""
    areas = [float((slab.blood["intraparenchymal"] >= MASK_SHARE).sum()) * grid.pixel_mm**2 for slab in slabs]
    return sum(area >= SHOWN_MM2 for area in areas) >= 2


def draw_ganglia(seed: int, patient: int, grid: Grid | None = None) -> HeadVolume:
    """One patient's series through the basal ganglia, 15 slices of 5 mm unless ``grid`` says otherwise."""
    streams = Streams.of(seed, patient)
    head, scanner = draw_head(streams.anatomy), draw_scanner(streams.scanner)
    pixel, start = round(float(streams.layout.uniform(0.86, 0.96)), 6), float(streams.layout.uniform(-4.0, 4.0))
    grid = grid or Grid(pixel_mm=pixel, slices=_SLICES, samples=2)
    lowest = _LOWEST_MM + start + float(head.shift[2])
    levels = tuple(round(lowest + grid.thickness_mm * k, 4) for k in range(grid.slices))
    grid = replace(grid, z_mm=levels, tilt_deg=0.0)
    side = side_of(seed, patient)
    for child in streams.lesions.spawn(60):
        lesions = _lesions(np.random.default_rng(child), head, side)
        slabs = [draw_slab(head, lesions, grid, z) for z in levels]
        if side == "none" or _shown(slabs, grid):
            break
    else:
        raise ConfigError(
            "phantom patient: no hemorrhage of the basal ganglia shows in two slices of this grid",
            remedy="use slices of at most 6 mm that cover world z from -10 to 25 mm",
        )
    hu = np.stack([acquire(scanner, streams.scanner, slab.hu, grid.pixel_mm) for slab in slabs])
    none = np.zeros(hu.shape[1:], dtype=np.float32)
    masks = {name: np.stack([slab.blood.get(name, none) >= MASK_SHARE for slab in slabs]) for name in SUBTYPES}
    spacing = (grid.thickness_mm, grid.pixel_mm, grid.pixel_mm)
    return HeadVolume(hu, spacing, levels, masks, head, lesions, scanner, (seed, patient))


def _patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_ganglia(seed, patient, grid)
    rng = np.random.default_rng(np.random.SeedSequence([seed, patient, 11]))
    offset = (0.0, round(float(rng.uniform(-30, 30)), 3), round(float(rng.uniform(-200, 250)), 3))
    name, count, descending = f"P{patient:04d}", len(volume.hu), bool(rng.integers(2))
    (out / name).mkdir()
    rows: list[Row] = []
    for k in range(count):
        number = count - k if descending else k + 1
        dataset = plain_header("CT", name, (seed, patient, "CT"), number, "HEAD 5MM")
        position = image_position(volume, k, offset)
        place(dataset, position, volume.spacing[1], volume.spacing[0], orientation(0.0))
        dataset.WindowCenter, dataset.WindowWidth = "40", "80"
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"
        store_hu(dataset, volume.hu[k], signed=False)
        file = f"{name}/IM{number:04d}.dcm"
        save(dataset, out / file)
        rows.append(
            {"file": file, "patient_id": name, "side": side_of(seed, patient), "z_mm": round(float(position[2]), 3)}
            | slice_truth(volume, patient, k)
        )
    return rows


def write_basal_ganglia(job: Job) -> PhantomSummary:
    """labels.csv (patient_id,side) and P0000/IM0001.dcm; phantom.csv holds the truth of every slice."""
    rows = [row for patient in each_patient(_patient, job) for row in patient]
    labels = dict.fromkeys((str(row["patient_id"]), row["side"]) for row in rows)
    write_label_table(job.out / "labels.csv", ("patient_id", "side"), list(labels))
    write_truth(job.out / "phantom.csv", rows)
    return summarize("basal_ganglia", job, rows)
