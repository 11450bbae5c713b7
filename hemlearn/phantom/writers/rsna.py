"""The layout of the RSNA 2019 Intracranial Hemorrhage Detection challenge (stage 2, Kaggle).

Its files carry 22 elements and no more: identifiers of the form ``ID_xxxxxxxxx`` in place of UIDs, the geometry, the
description of the pixels, the window. There is no slice thickness and no instance number: the order of the slices
follows from ImagePositionPatient alone, and file names are random.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from hemlearn.phantom.dicom import decimal, decimals, derived_uid, save, store_hu
from hemlearn.phantom.head import HeadVolume
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.volumes import draw_volume, image_position, orientation, slice_truth
from hemlearn.phantom.writers.common import Job, PhantomSummary, Row, each_patient, summarize, write_truth

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
