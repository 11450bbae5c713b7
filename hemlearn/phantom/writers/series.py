"""The two layouts of PhysioNet's CT-ICH: v1.0.0 with windowed JPG slices, v1.3.1 with NIfTI volumes in HU.

The same seed draws the same patients in both, as the two releases hold the same people. Slices are counted from 1
upward, the lowest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from hemlearn.phantom.head import HeadVolume, draw_volume, image_position, orientation, slice_truth
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.writers.common import (
    Job,
    PhantomSummary,
    Row,
    decimal,
    decimals,
    derived_uid,
    each_patient,
    save,
    store_hu,
    summarize,
    window_8bit,
    write_truth,
)

# --- The layout of the RSNA 2019 Intracranial Hemorrhage Detection challenge (stage 2, Kaggle).


LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
TEST_PATIENTS = 1_000_000  # index of the first test patient: the train patients never depend on how many there are


@dataclass(frozen=True)
class Origin:
    """How one kind of scanner and de-identification tool left its files, as seen in the genuine set.

    Attributes:
        implicit: Implicit VR little endian.
        version: Implementation version name.
        signed: 16-bit signed pixels, else 12-bit unsigned.
        outside: Stored value outside the circular field of view; None where the square is filled.
        centre: WindowCenter, one value or several.
        width: WindowWidth, as many.
        digits: Decimals of positions.
        intercept: RescaleIntercept as written.
        slope: RescaleSlope as written.
    """

    implicit: bool
    version: str
    signed: bool
    outside: int | None
    centre: str | list[str]
    width: str | list[str]
    digits: int
    intercept: str = "-1024"
    slope: str = "1"


ORIGINS = (
    Origin(False, "dcm4che-1.4.35", True, -2000, "30", "80", 6),
    Origin(False, "dcm4che-1.4.38", False, None, ["00040", "00040"], ["00080", "00080"], 7),
    Origin(True, "RSNA Challenge 2019", False, None, ["00036", "00036"], ["00080", "00080"], 6),
    Origin(False, "dcm4che-1.4.38", True, -1024, "40", "150", 3, slope="1.0"),
    Origin(False, "dcm4che-1.4.38", True, None, "35.000000", "135.000000", 6, "-1024.000000", "1.000000"),
)
SHARES = (0.36, 0.2, 0.2, 0.14, 0.1)


def scramble(number: int, seed: int, digits: int) -> str:
    """``ID_`` and ``digits`` hexadecimal digits: different for different numbers, in no order."""
    bits = 4 * digits
    mask = (1 << bits) - 1
    value = (number + 0x632BE5AB * (seed + 1)) & mask
    for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F):  # odd, hence each step is one to one
        value = (value * factor) & mask
        value ^= value >> (bits // 2)
    return f"ID_{value:0{digits}x}"


def _dataset(
    volume: HeadVolume, k: int, origin: Origin, names: tuple[str, str, str, str], offset: tuple[float, float, float]
) -> Dataset:
    """The 22 elements of one slice."""
    dataset = Dataset()
    dataset.SOPInstanceUID, dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = names
    dataset.Modality = "CT"
    dataset.StudyID = ""
    dataset.ImagePositionPatient = decimals(image_position(volume, k, offset), origin.digits)
    dataset.ImageOrientationPatient = decimals(orientation(volume.tilt_deg), max(6, origin.digits))
    dataset.PixelSpacing = [decimal(volume.spacing[1]), decimal(volume.spacing[2])]
    dataset.WindowCenter, dataset.WindowWidth = origin.centre, origin.width
    dataset.RescaleIntercept, dataset.RescaleSlope = origin.intercept, origin.slope
    store_hu(dataset, volume.hu[k], signed=origin.signed, outside=origin.outside)
    return dataset


def _patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_volume(seed, patient, grid)
    rng = np.random.default_rng(np.random.SeedSequence([seed, patient, 11]))
    origin = ORIGINS[int(rng.choice(len(ORIGINS), p=SHARES))]
    offset = (0.0, round(float(rng.uniform(-30, 30)), 3), round(float(rng.uniform(-200, 250)), 3))
    part = "test" if patient >= TEST_PATIENTS else "train"
    owner, study, series = (scramble(3 * patient + n, seed, digits) for n, digits in enumerate((8, 10, 10)))
    rows: list[Row] = []
    for k in range(len(volume.hu)):
        image = scramble(64 * patient + k, seed, 9)
        file = f"stage_2_{part}/{image}.dcm"
        with disable_value_validation():  # identifiers that are no UIDs, a version name of 19 characters
            dataset = _dataset(volume, k, origin, (image, owner, study, series), offset)
            save(
                dataset, out / file, instance=derived_uid(seed, image), implicit=origin.implicit, version=origin.version
            )
        up = np.cross(orientation(volume.tilt_deg)[:3], orientation(volume.tilt_deg)[3:])
        level = float(image_position(volume, k, offset) @ up)
        row: Row = {"file": file, "split": part, "patient_id": owner, "study_id": study, "series_id": series}
        rows.append(row | {"image": image, "z_mm": round(level, 3)} | slice_truth(volume, patient, k))
    return rows


def write_rsna(job: Job) -> PhantomSummary:
    """stage_2_train.csv with stage_2_train/, and stage_2_sample_submission.csv with stage_2_test/.

    ``job.patients`` series for training and a fifth as many, at least two, for testing; one series per patient. As in
    the original the rows are in no order and one image stands there twice.
    """
    for part in ("train", "test"):
        (job.out / f"stage_2_{part}").mkdir(parents=True)
    tests = max(2, job.patients // 5)
    patients = [*range(job.patients), *range(TEST_PATIENTS, TEST_PATIENTS + tests)]
    rows = [row for series in each_patient(_patient, job, patients) for row in series]
    train = [row for row in rows if row["split"] == "train"]
    rng = np.random.default_rng(np.random.SeedSequence([job.seed, 13]))
    order = [train[i] for i in rng.permutation(len(train))]
    order.insert(int(rng.integers(len(order) // 2, len(order))), order[0])
    with (job.out / "stage_2_train.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("ID,Label\n")
        for row in order:
            shown = {*str(row["subtypes"]).split("|"), "any" if row["hemorrhage"] else ""}
            file.writelines(f"{row['image']}_{label},{int(label in shown)}\n" for label in LABELS)
    images = sorted(str(row["image"]) for row in rows if row["split"] == "test")
    with (job.out / "stage_2_sample_submission.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("ID,Label\n")
        file.writelines(f"{image}_{label},0.5\n" for image in images for label in LABELS)
    write_truth(job.out / "phantom.csv", rows)
    return summarize("rsna", job, rows, len(patients))


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
