"""The layout of ``data=hydrocephalus_mri``: one folder of axial MR series per patient, and a table of labels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hemlearn.phantom.dicom import decimal, save
from hemlearn.phantom.mr_scanner import Coil
from hemlearn.phantom.mr_volume import MRExam, MRSeries, draw_exam
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.writers.common import Job, PhantomSummary, Row, each_patient, patient_name, write_truth
from hemlearn.phantom.writers.plain import MR_IMAGE, place, plain_header, store_signal, write_label_table

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


def _patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
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
    rows = [row for patient in each_patient(_patient, job) for row in patient]
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
