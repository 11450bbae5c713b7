"""The layouts of pictures: Kaggle's Head-CT collection, and PhysioNet's CT-ICH with its later release as NIfTI.

Head-CT: one windowed slice per patient, as PNG. CT-ICH: v1.0.0 with windowed JPG slices, v1.3.1 with volumes in HU;
the same seed draws the same patients in both, as the two releases hold the same people. Slices are counted from 1
upward, the lowest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemlearn.phantom.files import Job, PhantomSummary, Row, is_abnormal, window_8bit, write_nifti, write_rows
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.volume import HeadVolume, Streams, draw_volume, make_head

BRAIN_WINDOW = (40.0, 80.0)


def head_ct_slice(
    seed: int, patient: int, grid: Grid | None = None, abnormal: bool | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], HeadVolume]:
    """One patient of the ``head_ct`` layout.

    The same slice of the same head with and without blood (``abnormal``; None: by chance) differs in nothing else.

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
    # Mostly plain, as in a collection of teaching figures, with a tail of faint cases.
    grade = float(0.02 + 0.98 * rng.uniform() ** 0.36)
    bleeds = is_abnormal(seed, patient) if abnormal is None else abnormal
    grid = replace(grid or Grid(), z_mm=(z,))
    volume = make_head(seed, patient, conspicuity=grade if bleeds else None, grid=grid, meet_z=z)
    image = window_8bit(volume.hu[0], *BRAIN_WINDOW)
    left, top, right, bottom = box = _skull_box(volume.hu[0], margins)
    size = (width, max(2, round(width * squash * (bottom - top) / (right - left))))
    picture, mask = (
        np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC, box=box))
        for part in (image, _grey(volume.blood()[0]))
    )
    return picture, mask >= 128, volume


def _grey(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return mask.astype(np.uint8) * np.uint8(255)


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


def _head_ct_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> Row:
    image, blood, volume = head_ct_slice(seed, patient, grid)
    Image.fromarray(image).save(out / "head_ct" / "head_ct" / f"{patient:03d}.png")
    Image.fromarray(_grey(blood)).save(out / "masks" / f"{patient:03d}.png")
    truth = {"id": patient} | volume.truth(0) | {"z_mm": round(volume.z_mm[0], 2)}
    columns = "id patient hemorrhage subtypes sites conspicuity area_mm2 z_mm age noise_hu seed"
    return {name: truth[name] for name in columns.split()}


def write_head_ct(job: Job) -> PhantomSummary:
    """The Kaggle Head-CT layout: labels.csv and head_ct/head_ct/NNN.png, one slice per patient.

    masks/NNN.png, which the real set has not, shows the blood in 255.
    """
    for folder in ("head_ct/head_ct", "masks"):
        (job.out / folder).mkdir(parents=True)
    rows = list(job.each_patient(_head_ct_patient))
    write_rows(job.out / "labels.csv", [{"id": row["id"], " hemorrhage": row["hemorrhage"]} for row in rows])
    return job.finish("head_ct", rows)


# --- CT-ICH.

FIRST_PATIENT = 49
WINDOW = (40.0, 120.0)  # the window of the published brain pictures
SIZE = 650
COLUMNS = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")


def _rows(volume: HeadVolume, patient: int) -> list[Row]:
    numbers: Row = {"patient_number": FIRST_PATIENT + patient}
    return [numbers | {"slice_number": k + 1} | volume.truth(k) for k in range(len(volume.hu))]


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


def _nifti_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_volume(seed, patient, grid, tilted=False)
    name = f"{FIRST_PATIENT + patient:03d}.nii"
    # Blood that no label counts, too little to be seen, is in no mask either.
    blood = volume.blood() & volume.labels()["any"][:, None, None]
    for folder, voxels in (("ct_scans", volume.hu), ("masks", blood.astype(np.uint8))):
        write_nifti(out / folder / name, voxels, volume.position(0).tolist(), volume.spacing)
    return [
        row | {"file": f"ct_scans/{name}", "z_mm": round(volume.z_mm[k], 3)}
        for k, row in enumerate(_rows(volume, patient))
    ]


def _write_diagnosis(path: Path, rows: Sequence[Row]) -> None:
    """The label table, with the byte order mark and line ends of the release; no fracture is ever drawn."""
    table = []
    for row in rows:
        shown = str(row["subtypes"]).split("|")
        labels = {column: int(column.lower() in shown) for column in COLUMNS}
        numbers = {"PatientNumber": row["patient_number"], "SliceNumber": row["slice_number"]}
        table.append(numbers | labels | {"No_Hemorrhage": 1 - max(labels.values()), "Fracture_Yes_No": 0})
    write_rows(path, table, encoding="utf-8-sig", end="\r\n")


def write_ct_ich(job: Job) -> PhantomSummary:
    """v1.0.0: hemorrhage_diagnosis.csv and Patients_CT/049/brain/1.jpg, 650 x 650, brain window."""
    rows = [row for patient in job.each_patient(_jpg_patient) for row in patient]
    _write_diagnosis(job.out / "hemorrhage_diagnosis.csv", rows)
    return job.finish("ct_ich", rows)


def write_ct_ich_nifti(job: Job) -> PhantomSummary:
    """v1.3.1: hemorrhage_diagnosis_raw_ct.csv, ct_scans/049.nii in HU and masks/049.nii."""
    rows = [row for patient in job.each_patient(_nifti_patient) for row in patient]
    _write_diagnosis(job.out / "hemorrhage_diagnosis_raw_ct.csv", rows)
    return job.finish("ct_ich_nifti", rows)
