"""Writing of DICOM files (PS3.10) as scanners and de-identification tools leave them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

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
