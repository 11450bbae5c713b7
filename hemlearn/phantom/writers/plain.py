"""DICOM files as a research archive keeps them: the usual elements, names and dates removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from hemlearn.phantom.dicom import CT_IMAGE, decimal, decimals, derived_uid

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
