"""What the writers of all layouts share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from hemlearn.phantom.slab import Grid

T = TypeVar("T")
Row = dict[str, object]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What a writer is asked for.

    Attributes:
        out: An empty folder.
        patients: Number of patients.
        seed: Seed.
        n_jobs: Processes.
        progress: Called with (patients done, patients) after each.
        grid: Sampling to use instead of the layout's own.
    """

    out: Path
    patients: int
    seed: int
    n_jobs: int = 1
    progress: Progress | None = None
    grid: Grid | None = None


@dataclass
class PhantomSummary:
    """What was written.

    Attributes:
        layout: Name of the layout.
        out: Folder.
        patients: Number of patients.
        images: Number of images.
        positives: Number of images that show blood, or are of a patient with the finding.
        seed: Seed.
        subtypes: Subtype (or class, or kind of patient) -> number of images that show it.
        finding: What ``positives`` are, in words.
    """

    layout: str
    out: Path
    patients: int
    images: int
    positives: int
    seed: int
    subtypes: dict[str, int] = field(default_factory=dict)
    finding: str = "with blood"


Writer = Callable[[Job], PhantomSummary]


def window_8bit(hu: NDArray[np.int16], centre: float, width: float) -> NDArray[np.uint8]:
    """HU to 8-bit grey through a window of ``centre`` and ``width`` HU."""
    grey = (hu.astype(np.float32) - (centre - width / 2)) * (255.0 / width)
    picture: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return picture


def is_abnormal(seed: int, patient: int) -> bool:
    """Whether this patient bleeds: exactly one of each pair (2k, 2k + 1), which of them by chance."""
    first = bool(np.random.default_rng(np.random.SeedSequence([seed, patient // 2, 7])).integers(2))
    return first == (patient % 2 == 0)


def patient_name(seed: int, patient: int) -> str:
    """What the truth calls a patient."""
    return f"phantom-{seed}-{patient:05d}"


def summarize(layout: str, job: Job, rows: Sequence[Row], patients: int | None = None) -> PhantomSummary:
    """Count the rows of the truth."""
    names = [name for row in rows for name in str(row["subtypes"]).split("|") if name]
    positives = sum(int(str(row["hemorrhage"])) for row in rows)
    counts = {name: names.count(name) for name in sorted(set(names))}
    return PhantomSummary(layout, job.out, patients or job.patients, len(rows), positives, job.seed, counts)


def write_truth(path: Path, rows: list[dict[str, object]]) -> None:
    """Write the table of what was drawn, one row per image, as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def each_patient(work: Callable[..., T], job: Job, patients: Sequence[int] | None = None) -> Iterator[T]:
    """Run ``work(job.out, job.seed, patient, job.grid)`` for every patient, in order, in ``job.n_jobs`` processes.

    Args:
        work: A module-level function.
        job: What to write; each patient done is reported to its ``progress``.
        patients: Indices of the patients; by default 0 to ``job.patients`` - 1.
    """
    every = range(job.patients) if patients is None else patients
    if job.n_jobs == 1:
        results: Generator[T, None, None] = (work(job.out, job.seed, k, job.grid) for k in every)
    else:
        from joblib import Parallel, delayed

        parallel = Parallel(n_jobs=job.n_jobs, return_as="generator")
        results = parallel(delayed(work)(job.out, job.seed, k, job.grid) for k in every)
    # Closing stops the workers when the caller is interrupted, so that none writes into a folder being removed.
    with closing(results):
        for done, row in enumerate(results, start=1):
            if job.progress is not None:
                job.progress(done, len(every))
            yield row


# --- Writing of DICOM files (PS3.10) as scanners and de-identification tools leave them.


CT_IMAGE = UID("1.2.840.10008.5.1.4.1.1.2")
SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
INTERCEPT = -1024


def decimal(value: float, digits: int = 6) -> str:
    """A DS value: at most 16 characters."""
    text = f"{value:.{digits}f}"
    return text if len(text) <= 16 else f"{value:.9g}"


def decimals(values: Sequence[float] | NDArray[np.float64], digits: int = 6) -> list[str]:
    """Several DS values."""
    return [decimal(float(value), digits) for value in values]


def derived_uid(*parts: object) -> UID:
    """A UID that depends on nothing but ``parts``."""
    return generate_uid(entropy_srcs=["hemlearn phantom", *(str(part) for part in parts)])


def store_hu(dataset: Dataset, hu: NDArray[np.int16], *, signed: bool, outside: int | None = None) -> None:
    """Put the pixels of one slice and what describes them into ``dataset``.

    Args:
        dataset: Changed in place.
        hu: Attenuation, shape (rows, cols), within -1024 to 3071 HU.
        signed: True for 16-bit signed values, False for 12-bit unsigned ones; the intercept is -1024 in both.
        outside: Stored value outside the circular field of view, None where the scanner fills the square; it needs
            ``signed`` when negative.
    """
    stored = hu.astype(np.int32) - INTERCEPT
    if outside is not None:
        rows, cols = hu.shape
        y, x = np.ogrid[:rows, :cols]
        beyond = (y - (rows - 1) / 2) ** 2 + (x - (cols - 1) / 2) ** 2 > (min(rows, cols) / 2) ** 2
        stored = np.where(beyond, outside, stored)
    bits = 16 if signed else 12
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.add_new("PixelData", "OW", stored.astype("<i2" if signed else "<u2").tobytes())


def save(
    dataset: Dataset,
    path: Path,
    *,
    sop_class: UID = CT_IMAGE,
    instance: str | None = None,
    implicit: bool = False,
    version: str = "HEMLEARN PHANTOM",
) -> None:
    """Write ``dataset`` with its file meta information.

    Args:
        dataset: The data set.
        path: File to write.
        sop_class: Kind of object.
        instance: UID in the file meta information; None for the data set's own.
        implicit: Implicit instead of explicit VR little endian.
        version: Implementation version name (0002,0013).
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = UID(instance or str(dataset.SOPInstanceUID))
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.826.0.1.3680043.8.498.1")
    meta.ImplementationVersionName = version
    dataset.file_meta = meta
    dataset.preamble = b"\0" * 128
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=True)


# --- DICOM files as a research archive keeps them: the usual elements, names and dates removed.


MR_IMAGE = UID("1.2.840.10008.5.1.4.1.1.4")
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def plain_header(modality: str, name: str, keys: Sequence[object], number: int, description: str) -> Dataset:
    """The elements that do not depend on the pixels.

    Args:
        modality: CT or MR.
        name: PatientID.
        keys: What the UIDs are derived from: data set, patient and series.
        number: InstanceNumber.
        description: SeriesDescription.
    """
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    dataset.SOPClassUID = CT_IMAGE if modality == "CT" else MR_IMAGE
    dataset.SOPInstanceUID = derived_uid(*keys, number)
    for key in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"):
        setattr(dataset, key, "")
    dataset.Modality = modality
    dataset.SeriesDescription = description
    dataset.PatientName = dataset.PatientID = name
    dataset.PatientIdentityRemoved = "YES"
    dataset.BodyPartExamined = "HEAD"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = derived_uid(*keys[:2])
    dataset.SeriesInstanceUID = derived_uid(*keys)
    dataset.FrameOfReferenceUID = derived_uid(*keys[:2], "frame")
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    return dataset


def place(
    dataset: Dataset,
    position: Sequence[float] | NDArray[np.float64],
    pixel_mm: float,
    thickness_mm: float,
    directions: Sequence[float] = AXIAL,
) -> None:
    """Add the geometry: centre of the first pixel (mm), spacing, thickness, row and column direction."""
    dataset.ImagePositionPatient = decimals(position)
    dataset.ImageOrientationPatient = decimals(directions)
    dataset.PixelSpacing = [decimal(pixel_mm), decimal(pixel_mm)]
    dataset.SliceThickness = decimal(thickness_mm, 3)


def store_signal(dataset: Dataset, signal: NDArray[np.uint16]) -> None:
    """Put the pixels of one MR slice, 12 bits unsigned, and what describes them into ``dataset``."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = signal.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    used = signal[signal > 0]
    low, high = (int(value) for value in np.percentile(used, (1.0, 99.0))) if used.size else (0, 1)
    dataset.WindowCenter, dataset.WindowWidth = str((low + high) // 2), str(max(high - low, 1))
    dataset.add_new("PixelData", "OW", signal.astype("<u2").tobytes())


def write_label_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a label table as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(header) + "\n")
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
