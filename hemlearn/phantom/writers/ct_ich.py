"""The two layouts of PhysioNet's CT-ICH: v1.0.0 with windowed JPG slices, v1.3.1 with NIfTI volumes in HU.

The same seed draws the same patients in both, as the two releases hold the same people. Slices are counted from 1
upward, the lowest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemlearn.phantom.head import HeadVolume
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.volumes import draw_volume, image_position, slice_truth
from hemlearn.phantom.writers.common import Job, PhantomSummary, Row, each_patient, summarize, window_8bit, write_truth

FIRST_PATIENT = 49
WINDOW = (40.0, 120.0)  # the window of the published brain pictures
SIZE = 650
COLUMNS = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")


def _rows(volume: HeadVolume, patient: int) -> list[Row]:
    number = FIRST_PATIENT + patient
    return [
        {"patient_number": number, "slice_number": k + 1} | slice_truth(volume, patient, k)
        for k in range(len(volume.hu))
    ]


def _jpg_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_volume(seed, patient, grid, tilted=False)
    folder = Path("Patients_CT") / f"{FIRST_PATIENT + patient:03d}" / "brain"
    (out / folder).mkdir(parents=True)
    rows = _rows(volume, patient)
    for k, row in enumerate(rows):
        row["file"] = ""
        # A few labelled slices have no picture, as in the release.
        if k == 0 and patient % 5 == 0:
            continue
        row["file"] = (folder / f"{k + 1}.jpg").as_posix()
        picture = Image.fromarray(window_8bit(volume.hu[k], *WINDOW))
        picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(out / str(row["file"]), quality=75)
    return rows


def nifti_image(volume: HeadVolume, voxels: NDArray[np.generic]) -> nib.Nifti1Image:
    """``voxels`` (slices, rows, cols) as an image whose axes run left, anterior and superior, as converters store.

    World coordinates are those of NIfTI: x to the right, y anterior, z superior, in mm.
    """
    thickness, dy, dx = volume.spacing
    array = np.ascontiguousarray(voxels[:, ::-1, :].transpose(2, 1, 0))
    x, y, z = image_position(volume, 0)
    affine = np.array(
        [
            [-dx, 0.0, 0.0, -x],
            [0.0, dy, 0.0, -(y + (voxels.shape[1] - 1) * dy)],
            [0.0, 0.0, thickness, z],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    return image


def _nifti_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_volume(seed, patient, grid, tilted=False)
    name = f"{FIRST_PATIENT + patient:03d}.nii"
    blood = np.any(np.stack(list(volume.masks.values())), axis=0)
    # Blood that no label counts, too little to be seen, is in no mask either.
    blood &= volume.labels()["any"][:, None, None]
    nib.save(nifti_image(volume, volume.hu), out / "ct_scans" / name)
    nib.save(nifti_image(volume, blood.astype(np.uint8)), out / "masks" / name)
    return [
        row | {"file": f"ct_scans/{name}", "z_mm": round(volume.z_mm[k], 3)}
        for k, row in enumerate(_rows(volume, patient))
    ]


def _write_diagnosis(path: Path, rows: Sequence[Row]) -> None:
    """The label table, with the byte order mark and line ends of the release; no fracture is ever drawn."""
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        file.write(f"PatientNumber,SliceNumber,{','.join(COLUMNS)},No_Hemorrhage,Fracture_Yes_No\r\n")
        for row in rows:
            shown = str(row["subtypes"]).split("|")
            values = [int(column.lower() in shown) for column in COLUMNS]
            cells = [row["patient_number"], row["slice_number"], *values, 1 - int(any(values)), 0]
            file.write(",".join(str(cell) for cell in cells) + "\r\n")


def write_ct_ich(job: Job) -> PhantomSummary:
    """v1.0.0: hemorrhage_diagnosis.csv and Patients_CT/049/brain/1.jpg, 650 x 650, brain window."""
    rows = [row for patient in each_patient(_jpg_patient, job) for row in patient]
    _write_diagnosis(job.out / "hemorrhage_diagnosis.csv", rows)
    write_truth(job.out / "phantom.csv", rows)
    return summarize("ct_ich", job, [row for row in rows if row["file"]])


def write_ct_ich_nifti(job: Job) -> PhantomSummary:
    """v1.3.1: hemorrhage_diagnosis_raw_ct.csv, ct_scans/049.nii in HU and masks/049.nii."""
    for folder in ("ct_scans", "masks"):
        (job.out / folder).mkdir(parents=True)
    rows = [row for patient in each_patient(_nifti_patient, job) for row in patient]
    _write_diagnosis(job.out / "hemorrhage_diagnosis_raw_ct.csv", rows)
    write_truth(job.out / "phantom.csv", rows)
    return summarize("ct_ich_nifti", job, rows)
