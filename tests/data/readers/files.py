"""DICOM and NIfTI files made for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

WHEEL = Path(pydicom.__file__).parent / "data" / "test_files"


def slice_hu(seed: int = 0, side: int = 32) -> NDArray[np.int16]:
    """A disc of tissue in air, -1000 to 1500 HU."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    inside = np.hypot(rows, columns) < 0.8
    return np.where(inside, rng.integers(-100, 1500, (side, side)), -1000).astype(np.int16)


def ct(stored: NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """A CT data set of uncompressed ``stored`` values; ``elements`` set or (None) take away others."""
    frames = stored.shape[0] if stored.ndim == 3 else 1
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta = meta
    bits = stored.dtype.itemsize * 8
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "PatientID": "p",
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.3",
        "InstanceNumber": 1,
        "ImagePositionPatient": [-100, -100, 12.5],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.5],
        "SliceThickness": 5,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    }
    if frames > 1:
        values["NumberOfFrames"] = frames
    if elements.get("Modality") == "MR":
        elements = {"SOPClassUID": MRImageStorage, "RescaleSlope": None, "RescaleIntercept": None} | elements
    for name, value in (values | elements).items():
        if value is not None:
            setattr(data, name, value)
    order = ">" if syntax == pydicom.uid.ExplicitVRBigEndian else "<"
    data.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OW"
    return data


def write(path: Path, data: Dataset) -> Path:
    """Write a data set and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, voxels: NDArray[Any], affine: NDArray[Any] | None = None, **header: Any) -> Path:
    """Write a volume; the affine is 1 mm, right-anterior-superior, unless it is given."""
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path
