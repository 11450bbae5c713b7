"""The layout of ``data=hydrocephalus_mri``: one folder of axial MR series per patient, and a table of labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hemlearn.phantom.anatomy import Head, Triple, draw_head
from hemlearn.phantom.head import (
    MASK_SHARE,
    SHOWN_MM2,
    HeadVolume,
    Streams,
    draw_conspicuity,
    image_position,
    orientation,
    slice_truth,
)
from hemlearn.phantom.lesions import SUBTYPES, Intraparenchymal, Lesion
from hemlearn.phantom.mr_scan import Coil, MRExam, MRSeries, draw_exam
from hemlearn.phantom.placement import draw_lesion, texture
from hemlearn.phantom.slab import Grid, Slab, acquire, draw_scanner, draw_slab
from hemlearn.phantom.writers.common import (
    MR_IMAGE,
    Job,
    PhantomSummary,
    Row,
    decimal,
    each_patient,
    patient_name,
    place,
    plain_header,
    save,
    store_hu,
    store_signal,
    summarize,
    write_label_table,
    write_truth,
)
from hemlearn.util.errors import ConfigError

# --- The layout of ``data=basal_ganglia``: one DICOM series of head CT per patient, and a table of sides.


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


NIFTI_SHARE = 0.25  # of the patients
_DESCRIPTION = {"T2": "AX T2 TSE", "T1": "AX T1 SE"}


def _corner(exam: MRExam, k: int, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """ImagePositionPatient of slice ``k``, mm."""
    rows, cols = exam.series[0].signal.shape[1:]
    middle = np.array([(cols - 1) / 2, (rows - 1) / 2, 0.0]) * exam.pixel_mm
    return np.asarray(np.array([0.0, 0.0, exam.z_mm[k]]) - middle + offset)


def _elements(coil: Coil) -> dict[str, object]:
    return {
        "ScanningSequence": "SE",
        "SequenceVariant": "SK" if coil.contrast == "T2" else "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "2D",
        "RepetitionTime": decimal(coil.repetition_ms, 1),
        "EchoTime": decimal(coil.echo_ms, 1),
        "EchoTrainLength": 15 if coil.contrast == "T2" else 1,
        "MagneticFieldStrength": "1.5",
        "ProtocolName": _DESCRIPTION[coil.contrast],
    }


def _write_dicom(
    folder: Path,
    exam: MRExam,
    series: MRSeries,
    keys: tuple[int, int, str],
    name: str,
    offset: NDArray[np.float64],
    descending: bool,
) -> list[Path]:
    """Write one file per slice; returns the files, the lowest slice first."""
    folder.mkdir(parents=True)
    count, files = len(exam.z_mm), []
    for k in range(count):
        number = count - k if descending else k + 1
        dataset = plain_header("MR", name, keys, number, _DESCRIPTION[series.coil.contrast])
        for keyword, value in _elements(series.coil).items():
            setattr(dataset, keyword, value)
        place(dataset, _corner(exam, k, offset), exam.pixel_mm, exam.thickness_mm)
        dataset.SpacingBetweenSlices = decimal(exam.spacing_mm, 3)
        store_signal(dataset, series.signal[k])
        files.append(folder / f"IM{number:04d}.dcm")
        save(dataset, files[-1], sop_class=MR_IMAGE)
    return files


def _write_nifti(file: Path, exam: MRExam, series: MRSeries, offset: NDArray[np.float64]) -> None:
    """Write a volume whose axes run left, anterior and superior, as converters store it."""
    rows = series.signal.shape[1]
    x, y, z = _corner(exam, 0, offset)
    affine = np.diag([-exam.pixel_mm, exam.pixel_mm, exam.spacing_mm, 1.0])
    affine[:3, 3] = -x, -(y + (rows - 1) * exam.pixel_mm), z
    image = nib.Nifti1Image(np.ascontiguousarray(series.signal[:, ::-1].transpose(2, 1, 0)).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)


def _mr_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    exam = draw_exam(seed, patient, grid)
    rng = np.random.default_rng(np.random.SeedSequence([seed, patient, 11]))
    offset = np.array([0.0, *np.round(rng.uniform((-25, -60), (25, 60)), 2)])
    volume, descending = bool(rng.uniform() < NIFTI_SHARE), bool(rng.integers(2))
    name = f"P{patient:04d}"
    person, rows = exam.person, []
    measures = person.measures
    for series in exam.series:
        contrast = series.coil.contrast
        if volume:
            file = out / name / f"{contrast}.nii.gz"
            _write_nifti(file, exam, series, offset)
            files = [file] * len(exam.z_mm)
        else:
            files = _write_dicom(
                out / name / contrast, exam, series, (seed, patient, contrast), name, offset, descending
            )
        for k, path in enumerate(files):
            truth: Row = {
                "file": path.relative_to(out).as_posix(),
                "patient": patient_name(seed, patient),
                "patient_id": name,
                "contrast": contrast,
                "slice": k,
                "z_mm": round(exam.z_mm[k] + float(offset[2]), 3),
                "hydrocephalus": int(measures.hydrocephalus),
                "state": person.state,
                "evans_index": round(measures.evans, 4),
                "frontal_horns_mm": round(measures.frontal_mm, 1),
                "inner_skull_mm": round(measures.skull_mm, 1),
                "third_ventricle_mm": round(measures.third_mm, 1),
                "temporal_horn_mm": round(measures.temporal_mm, 1),
                "halo": round(person.halo, 3),
                "left_to_right": round(person.head.ventricle_sides[0] / person.head.ventricle_sides[1], 3),
                "age": round(person.head.age, 1),
                "repetition_ms": series.coil.repetition_ms,
                "echo_ms": series.coil.echo_ms,
                "noise": round(series.coil.noise, 4),
                "scale": round(series.coil.scale, 1),
                "seed": seed,
            }
            rows.append(truth)
    return rows


def write_hydrocephalus_mri(job: Job) -> PhantomSummary:
    """labels.csv and P0000/T2/IM0001.dcm or P0000/T2.nii.gz; some patients have T1 as well.

    phantom.csv holds the truth of every slice, the Evans index of its patient among it.
    """
    rows = [row for patient in each_patient(_mr_patient, job) for row in patient]
    labels = dict.fromkeys((str(row["patient_id"]), row["hydrocephalus"]) for row in rows)
    write_label_table(job.out / "labels.csv", ("patient_id", "hydrocephalus"), list(labels))
    write_truth(job.out / "phantom.csv", rows)
    states = [str(row["state"]) for row in rows]
    positives = sum(int(str(row["hydrocephalus"])) for row in rows)
    return PhantomSummary(
        "hydrocephalus_mri",
        job.out,
        job.patients,
        len(rows),
        positives,
        job.seed,
        {state: states.count(state) for state in sorted(set(states))},
        "of patients with hydrocephalus",
    )
