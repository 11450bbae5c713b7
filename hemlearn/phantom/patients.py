"""The layouts of a research archive: patients, or classes, in folders of DICOM files with plain headers.

``basal_ganglia``: one CT series per patient and a table of sides. ``six_class``: single CT slices, one folder per
class. ``hydrocephalus_mri``: axial MR series per patient and a table of labels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from hemlearn.phantom import files
from hemlearn.phantom.anatomy import Head, Triple, draw_head
from hemlearn.phantom.files import Job, PhantomSummary, Row
from hemlearn.phantom.lesions import Intraparenchymal, Lesion, draw_lesion, texture
from hemlearn.phantom.mr import MRExam, MRSeries, draw_exam
from hemlearn.phantom.slab import SHOWN_MM2, Grid, draw_slab
from hemlearn.phantom.volume import HeadVolume, Streams, draw_conspicuity, draw_scanner, orientation
from hemlearn.util.errors import ConfigError


def _save_slice(path: Path, volume: HeadVolume, k: int, number: int, description: str, offset: Triple) -> float:
    """Write slice ``k`` of a CT series as image ``number``; returns its position along z (mm)."""
    dataset = files.plain_header("CT", f"P{volume.seed[1]:04d}", (*volume.seed, "CT"), number, description)
    position = volume.position(k, offset)
    files.save_ct(dataset, path, volume.hu[k], position, orientation(volume.tilt_deg), volume.spacing)
    return round(float(position[2]), 3)


def _label_table(job: Job, rows: list[Row], column: str) -> None:
    labels = dict.fromkeys((row["patient_id"], row[column]) for row in rows)
    files.write_rows(job.out / "labels.csv", [{"patient_id": name, column: value} for name, value in labels])


# --- basal_ganglia.

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
    order = default_rng(SeedSequence([seed, patient // 3, 23])).permutation(3)
    return SIDES[int(order[patient % 3])]


def _ganglia(rng: Generator, side: str, grade: float) -> Lesion:
    """A hemorrhage of the putamen or the head of the caudate; x runs to the patient's left."""
    site, _, centre = _GANGLIA[int(rng.choice(len(_GANGLIA), p=[row[1] for row in _GANGLIA]))]
    x, y, z = (c + float(j) for c, j in zip(centre, rng.normal(0.0, (1.8, 3.0, 2.0)), strict=True))
    radius = min(4.5 + 15.0 * grade, 16.0) * float(rng.uniform(0.85, 1.15)) * (0.75 if site != "putamen" else 1.0)
    shape = (float(radius * rng.uniform(0.65, 0.9)), float(radius * rng.uniform(1.0, 1.35)), radius)
    hu = 48.0 + 26.0 * grade + float(rng.normal(0, 3))
    edema, place = 1.5 + (2.0 + 5.0 * grade) * float(rng.uniform(0.3, 1.0)), (x if side == "left" else -x, y, z)
    return Intraparenchymal(site, place, grade, hu, texture(rng), radii=shape, edema_mm=edema)


def _ganglia_lesions(rng: Generator, head: Head, side: str) -> tuple[Lesion, ...]:
    """Half of the heads without a hemorrhage of the ganglia bleed elsewhere, as do a fifth of the others."""
    grade = draw_conspicuity(rng)
    found: list[Lesion] = [] if side == "none" else [_ganglia(rng, side, grade)]
    if rng.uniform() < (0.5 if side == "none" else 0.2):
        for _ in range(20):
            other = draw_lesion(rng, head, str(rng.choice(_ELSEWHERE)), grade)
            if other is not None and other.site not in _DEEP:
                return (*found, other)
    return tuple(found)


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
        lesions = _ganglia_lesions(default_rng(child), head, side)
        slabs = [draw_slab(head, lesions, grid, z) for z in levels]
        if side == "none" or sum(grid.area_mm2(slab.blood["intraparenchymal"]) >= SHOWN_MM2 for slab in slabs) >= 2:
            return streams.scan(head, scanner, grid, slabs, lesions)
    raise ConfigError(
        "phantom patient: no hemorrhage of the basal ganglia shows in two slices of this grid",
        remedy="use slices of at most 6 mm that cover world z from -10 to 25 mm",
    )


def _ganglia_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_ganglia(seed, patient, grid)
    rng = default_rng(SeedSequence([seed, patient, 11]))
    offset, name, count, descending = files.draw_offset(rng), f"P{patient:04d}", len(volume.hu), bool(rng.integers(2))
    (out / name).mkdir()
    rows: list[Row] = []
    for k in range(count):
        number = count - k if descending else k + 1
        file = f"{name}/IM{number:04d}.dcm"
        row: Row = {"file": file, "patient_id": name, "side": side_of(seed, patient)}
        row["z_mm"] = _save_slice(out / file, volume, k, number, "HEAD 5MM", offset)
        rows.append(row | volume.truth(k))
    return rows


def write_basal_ganglia(job: Job) -> PhantomSummary:
    """labels.csv (patient_id,side) and P0000/IM0001.dcm; phantom.csv holds the truth of every slice."""
    rows = [row for patient in job.each_patient(_ganglia_patient) for row in patient]
    _label_table(job, rows, "side")
    return job.finish("basal_ganglia", rows)


# --- six_class.

CLASSES = ("normal", "epidural", "subdural", "intraventricular", "intraparenchymal", "subarachnoid")
IMAGES = (7, 9)  # per patient
_SCAN_MM = 3.0
_SPAN_MM = 9.0  # shortest stretch of slices that show the blood
_FEW_MM = (-30.0, 64.0)  # world z that is searched


def class_of_patient(seed: int, patient: int) -> str:
    """The class of most images: each of six neighbours (6k to 6k + 5) another of :data:`CLASSES`, by chance."""
    order = default_rng(SeedSequence([seed, patient // 6, 29])).permutation(len(CLASSES))
    return CLASSES[int(order[patient % len(CLASSES)])]


def _area(head: Head, lesion: Lesion, grid: Grid, z: float) -> float:
    """Area (mm2) of the lesion in a slice."""
    return grid.area_mm2(draw_slab(head, (lesion,), grid, z).blood[lesion.subtype])


def _find(source: SeedSequence, head: Head, subtype: str, grid: Grid) -> tuple[Lesion, float, float]:
    """Draw a hemorrhage that enough slices show, and the world z (mm) from which to which they do."""
    draft = grid.draft(least=32)
    levels = np.arange(*_FEW_MM, _SCAN_MM)
    for attempt, child in enumerate(source.spawn(60)):
        rng = default_rng(child)
        # What stays too small for several slices is replaced by something larger in the end.
        lesion = draw_lesion(rng, head, subtype, min(1.0, draw_conspicuity(rng) + 0.03 * attempt))
        if lesion is None:
            continue
        near = levels[np.abs(levels - float(head.to_world(lesion.centre)[2])) < 40.0]
        shown = [float(z) for z in near if _area(head, lesion, draft, float(z)) >= 1.5 * SHOWN_MM2]
        if shown and shown[-1] - shown[0] >= _SPAN_MM:
            return lesion, shown[0], shown[-1]
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
    lesion, low, high = _find(streams.lesions, head, borrowed if word == "normal" else word, grid)
    levels = np.linspace(low, high, count)
    if beside and word != "normal":
        thin = replace(grid, samples=1)
        far = [float(z) for z in np.arange(*_FEW_MM) if not low - 9.0 <= z <= high + 9.0]
        free = [z for z in far if _area(head, lesion, thin, z) == 0]
        levels = np.sort([*levels, *(rng.choice(free, size=2, replace=False) if len(free) > 1 else ())])
    grid = replace(grid, z_mm=tuple(round(float(z), 3) for z in levels))
    lesions = () if word == "normal" else (lesion,)
    return streams.scan(head, scanner, grid, [draw_slab(head, lesions, grid, z) for z in grid.centres(head)], lesions)


def _class_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_images(seed, patient, grid)
    offset, name = files.draw_offset(default_rng(SeedSequence([seed, patient, 11]))), f"P{patient:04d}"
    bled = np.any(volume.blood(), axis=(1, 2))
    rows: list[Row] = []
    for k in range(len(volume.hu)):
        truth = volume.truth(k)
        if bled[k] and not truth["hemorrhage"]:  # too little blood to be called either
            continue
        word, number = str(truth["subtypes"]) or "normal", len(rows) + 1
        file = f"{word}/{name}_{number:02d}.dcm"
        row: Row = {"file": file, "patient_id": name, "class": word}
        row["z_mm"] = _save_slice(out / file, volume, k, number, "HEAD", offset)
        rows.append(row | truth | {"slice": len(rows)})
    return rows


def write_six_class(job: Job) -> PhantomSummary:
    """normal/P0000_01.dcm and so on, about 8 images per patient; phantom.csv holds the truth of every image."""
    for name in CLASSES:
        (job.out / name).mkdir()
    return job.finish("six_class", [row for patient in job.each_patient(_class_patient) for row in patient])


# --- hydrocephalus_mri.

NIFTI_SHARE = 0.25  # of the patients
_DESCRIPTION = {"T2": "AX T2 TSE", "T1": "AX T1 SE"}
_PREPARED = "AX T1 MPR"  # reformatted from a volume


def _corner(exam: MRExam, k: int, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """ImagePositionPatient of slice ``k``, mm."""
    rows, cols = exam.series[0].signal.shape[1:]
    middle = np.array([(cols - 1) / 2, (rows - 1) / 2, 0.0]) * exam.pixel_mm
    return np.asarray(np.array([0.0, 0.0, exam.z_mm[k]]) - middle + offset)


def _write_mr_series(
    folder: Path, exam: MRExam, series: MRSeries, keys: tuple[int, int, str], offset: NDArray[np.float64], down: bool
) -> list[Path]:
    """Write one file per slice, numbered from the vertex ``down`` or up; returns the files, the lowest slice first."""
    folder.mkdir(parents=True)
    coil, count, paths = series.coil, len(exam.z_mm), []
    turbo, prepared = coil.contrast == "T2", coil.inversion_ms > 0
    described = _PREPARED if prepared else _DESCRIPTION[coil.contrast]
    for k, signal in enumerate(series.signal):
        number = count - k if down else k + 1
        dataset = files.plain_header("MR", f"P{keys[1]:04d}", keys, number, described)
        dataset.ScanningSequence = ["GR", "IR"] if prepared else "SE"
        dataset.SequenceVariant, dataset.ScanOptions = "MP" if prepared else "SK" if turbo else "NONE", ""
        dataset.MRAcquisitionType = "3D" if prepared else "2D"
        if prepared:
            dataset.InversionTime = files.decimal(coil.inversion_ms, 1)
        dataset.RepetitionTime, dataset.EchoTime = files.decimal(coil.repetition_ms, 1), files.decimal(coil.echo_ms, 1)
        dataset.EchoTrainLength, dataset.MagneticFieldStrength = 15 if turbo else 1, "1.5"
        dataset.ProtocolName = described
        files.set_geometry(
            dataset, _corner(exam, k, offset), files.AXIAL, (exam.thickness_mm, exam.pixel_mm, exam.pixel_mm)
        )
        dataset.SpacingBetweenSlices = files.decimal(exam.spacing_mm, 3)
        used = signal[signal > 0]
        low, high = (int(value) for value in np.percentile(used, (1.0, 99.0))) if used.size else (0, 1)
        dataset.WindowCenter, dataset.WindowWidth = str((low + high) // 2), str(max(high - low, 1))
        files.set_pixels(dataset, signal)
        paths.append(folder / f"IM{number:04d}.dcm")
        files.save(dataset, paths[-1])
    return paths


def _mr_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    exam = draw_exam(seed, patient, grid)
    rng = default_rng(SeedSequence([seed, patient, 11]))
    offset = np.array([0.0, *np.round(rng.uniform((-25, -60), (25, 60)), 2)])
    volume, descending = bool(rng.uniform() < NIFTI_SHARE), bool(rng.integers(2))
    name, person, measures, rows = f"P{patient:04d}", exam.person, exam.person.measures, []
    for series in exam.series:
        coil, contrast = series.coil, series.coil.contrast
        if volume:
            paths = [out / name / f"{contrast}.nii.gz"] * len(exam.z_mm)
            spacing = (exam.spacing_mm, exam.pixel_mm, exam.pixel_mm)
            files.write_nifti(paths[0], series.signal.astype(np.int16), _corner(exam, 0, offset).tolist(), spacing)
        else:
            keys = (seed, patient, contrast)
            paths = _write_mr_series(out / name / contrast, exam, series, keys, offset, descending)
        for k, path in enumerate(paths):
            truth: Row = {
                "file": path.relative_to(out).as_posix(),
                "patient": files.patient_name(seed, patient),
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
                "repetition_ms": coil.repetition_ms,
                "echo_ms": coil.echo_ms,
                "inversion_ms": coil.inversion_ms,
                "noise": round(coil.noise, 4),
                "scale": round(coil.scale, 1),
                "seed": seed,
            }
            rows.append(truth)
    return rows


def write_hydrocephalus_mri(job: Job) -> PhantomSummary:
    """labels.csv and P0000/T2/IM0001.dcm or P0000/T2.nii.gz; some patients have T1 instead, or as well.

    phantom.csv holds the truth of every slice, the Evans index of its patient among it.
    """
    rows = [row for patient in job.each_patient(_mr_patient) for row in patient]
    _label_table(job, rows, "hydrocephalus")
    finding = "of patients with hydrocephalus"
    return job.finish("hydrocephalus_mri", rows, label="hydrocephalus", kinds="state", finding=finding)
