"""What the writers of all layouts share: patients in parallel, tables, DICOM files (PS3.10) as scanners leave them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import pydicom
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from hemlearn.phantom.slab import Grid

T = TypeVar("T")
Row = dict[str, object]
Progress = Callable[[int, int], None]
CT_IMAGE, MR_IMAGE = UID("1.2.840.10008.5.1.4.1.1.2"), UID("1.2.840.10008.5.1.4.1.1.4")
SECONDARY_CAPTURE = UID("1.2.840.10008.5.1.4.1.1.7")
INTERCEPT = -1024
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Job:
    """What a writer is asked for."""

    out: Path  # an empty folder
    patients: int  # number of patients
    seed: int  # seed
    n_jobs: int = 1  # processes
    progress: Progress | None = None  # called with (patients done, patients) after each
    grid: Grid | None = None  # sampling to use instead of the layout's own

    def each_patient(self, work: Callable[..., T], patients: Sequence[int] | None = None) -> Iterator[T]:
        """Yield ``work(out, seed, patient, grid)`` for every patient, in order, from ``n_jobs`` processes.

        ``work`` is a module-level function; patients are 0 to ``self.patients`` - 1 unless others are named.
        """
        calls = [(self.out, self.seed, k, self.grid) for k in patients or range(self.patients)]
        if self.n_jobs == 1:
            results: Generator[T, None, None] = (work(*call) for call in calls)
        else:
            from joblib import Parallel, delayed

            results = Parallel(n_jobs=self.n_jobs, return_as="generator")(delayed(work)(*call) for call in calls)
        # Closing stops the workers when the caller is interrupted, so that none writes into a folder being removed.
        with closing(results):
            for done, result in enumerate(results, start=1):
                if self.progress is not None:
                    self.progress(done, len(calls))
                yield result

    def finish(
        self,
        layout: str,
        rows: Sequence[Row],
        patients: int | None = None,
        *,
        label: str = "hemorrhage",
        kinds: str = "subtypes",
        finding: str = "with blood",
    ) -> PhantomSummary:
        """Write phantom.csv, the truth of every image, and count the ``rows`` that have a file."""
        write_rows(self.out / "phantom.csv", rows)
        shown = [row for row in rows if row.get("file", True)]
        names = Counter(name for row in shown for name in str(row[kinds]).split("|") if name)
        positives = sum(int(str(row[label])) for row in shown)
        counts = dict(sorted(names.items()))
        return PhantomSummary(
            layout, self.out, patients or self.patients, len(shown), positives, self.seed, counts, finding
        )


@dataclass
class PhantomSummary:
    """What was written."""

    layout: str  # name of the layout
    out: Path  # folder
    patients: int  # number of patients
    images: int  # number of images
    positives: int  # number of images that show blood, or are of a patient with the finding
    seed: int  # seed
    # subtype (or class, or kind of patient) -> number of images that show it
    subtypes: dict[str, int] = field(default_factory=dict)
    finding: str = "with blood"  # what positives are, in words


def window_8bit(hu: NDArray[np.int16], centre: float, width: float) -> NDArray[np.uint8]:
    """HU to 8-bit grey through a window of ``centre`` and ``width`` HU."""
    grey = (hu.astype(np.float32) - (centre - width / 2)) * (255.0 / width)
    return np.asarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))


def is_abnormal(seed: int, patient: int) -> bool:
    """Whether this patient has the finding: exactly one of each pair (2k, 2k + 1), which of them by chance."""
    first = bool(default_rng(SeedSequence([seed, patient // 2, 7])).integers(2))
    return first == (patient % 2 == 0)


def patient_name(seed: int, patient: int) -> str:
    """What the truth calls a patient."""
    return f"phantom-{seed}-{patient:05d}"


def draw_offset(rng: np.random.Generator) -> tuple[float, float, float]:
    """Where the origin of a CT scanner lies, mm."""
    return 0.0, round(float(rng.uniform(-30, 30)), 3), round(float(rng.uniform(-200, 250)), 3)


def write_rows(path: Path, rows: Sequence[Mapping[str, object]], encoding: str = "utf-8", end: str = "\n") -> None:
    """Write a table as CSV; the first row names the columns."""
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)


def write_nifti(path: Path, voxels: NDArray[Any], corner: Sequence[float], spacing: Sequence[float]) -> None:
    """Write ``voxels`` (slices, rows, cols) with axes that run left, anterior and superior, as converters store them.

    ``corner`` is the DICOM position (mm) of the first pixel of the lowest slice; NIfTI's x and y run the other way.
    ``spacing`` is in mm along (slices, rows, cols).
    """
    x, y, z = corner
    affine = np.diag([-spacing[2], spacing[1], spacing[0], 1.0])
    affine[:3, 3] = -x, -(y + (voxels.shape[1] - 1) * spacing[1]), z
    image = nib.Nifti1Image(np.ascontiguousarray(voxels[:, ::-1].transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


# --- DICOM.


def decimal(value: float, digits: int = 6) -> str:
    """A DS value: at most 16 characters."""
    text = f"{value:.{digits}f}"
    return text if len(text) <= 16 else f"{value:.9g}"


def decimals(values: Sequence[float] | NDArray[np.float64], digits: int = 6) -> list[str]:
    """Several DS values."""
    return [decimal(float(value), digits) for value in values]


def derived_uid(*parts: object) -> UID:
    """A UID that depends on nothing but ``parts``."""
    return generate_uid(entropy_srcs=["hemlearn phantom", *map(str, parts)])


def plain_header(modality: str, name: str, keys: Sequence[object], number: int, description: str) -> Dataset:
    """The elements that do not depend on the pixels, as a research archive keeps them: names and dates removed.

    UIDs are derived from ``keys``: data set, patient and series.
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


def set_geometry(
    dataset: Dataset,
    position: Sequence[float] | NDArray[np.float64],
    directions: Sequence[float],
    spacing: Sequence[float],
) -> None:
    """Add the centre of the first pixel (mm), row and column direction, thickness and spacing of rows and columns."""
    dataset.ImagePositionPatient = decimals(position)
    dataset.ImageOrientationPatient = decimals(directions)
    dataset.PixelSpacing = decimals(spacing[1:])
    dataset.SliceThickness = decimal(spacing[0], 3)


def set_pixels(dataset: Dataset, stored: NDArray[Any], *, bits: int = 12, signed: bool = False) -> None:
    """Put stored values (rows, cols) of 16 bits, ``bits`` of them used, and what describes them into ``dataset``."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.add_new("PixelData", "OW", stored.astype("<i2" if signed else "<u2").tobytes())


def set_hu(dataset: Dataset, hu: NDArray[np.int16], *, signed: bool = False, outside: int | None = None) -> None:
    """Put the pixels of one CT slice (rows, cols), within -1024 to 3071 HU, into ``dataset``.

    ``signed`` stores 16 bits, else 12 bits unsigned, with the intercept -1024 in both. ``outside`` is stored beyond the
    circular field of view; None where the scanner fills the square.
    """
    stored = hu.astype(np.int32) - INTERCEPT
    if outside is not None:
        rows, cols = hu.shape
        y, x = np.ogrid[:rows, :cols]
        beyond = (y - (rows - 1) / 2) ** 2 + (x - (cols - 1) / 2) ** 2 > (min(rows, cols) / 2) ** 2
        stored = np.where(beyond, outside, stored)
    set_pixels(dataset, stored, bits=16 if signed else 12, signed=signed)


def save(
    dataset: Dataset,
    path: Path,
    *,
    instance: str | None = None,
    implicit: bool = False,
    version: str = "HEMLEARN PHANTOM",
) -> None:
    """Write ``dataset`` with its file meta information.

    That names ``instance`` (None: the data set's own UID) and ``version``, the implementation (0002,0013).
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CT_IMAGE)
    meta.MediaStorageSOPInstanceUID = UID(instance or str(dataset.SOPInstanceUID))
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.826.0.1.3680043.8.498.1")
    meta.ImplementationVersionName = version
    dataset.file_meta = meta
    dataset.preamble = b"\0" * 128
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=True)


def save_ct(
    dataset: Dataset,
    path: Path,
    hu: NDArray[np.int16],
    position: Sequence[float] | NDArray[np.float64],
    directions: Sequence[float],
    spacing: Sequence[float],
    *,
    window: tuple[int, int] = (40, 80),
    signed: bool = False,
    outside: int | None = None,
) -> None:
    """Write a CT image: header, geometry (``spacing``: thickness, rows, columns in mm), window, pixels."""
    set_geometry(dataset, position, directions, spacing)
    dataset.WindowCenter, dataset.WindowWidth = map(str, window)
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = str(INTERCEPT), "1", "HU"
    set_hu(dataset, hu, signed=signed, outside=outside)
    save(dataset, path)
