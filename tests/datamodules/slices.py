"""Small DICOM and NIfTI files for the tests of data modules."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from hemlearn.config.compose import compose
from hemlearn.training.build import build_datamodule

SIDE = 32


def write_slice(
    path: Path,
    z_mm: float | None = 0.0,
    *,
    patient: str = "P1",
    series: str = "1.2.3",
    number: int = 1,
    size: int = SIDE,
    seed: int | None = None,
    **tags: Any,
) -> Path:
    """One CT slice in HU (intercept -1024); ``z_mm`` None writes no position; further DICOM keywords as ``tags``."""
    rng = np.random.default_rng(zlib.crc32(str(path).encode()) if seed is None else seed)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PatientID = "CT", patient
    data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = f"{series}.9", series, number
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [0.5, 0.5], 5
    if z_mm is not None:
        data.ImagePositionPatient = [-8, -8, z_mm]
    data.Rows = data.Columns = size
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleIntercept, data.RescaleSlope = -1024, 1
    data.PixelData = rng.integers(1000, 1100, (size, size), dtype=np.int16).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_volume(path: Path, slices: int, *, flipped: bool = False, spacing: float = 5.0) -> Path:
    """A NIfTI volume whose plane k along the array's slice axis holds k HU; ``flipped``: the array runs downwards."""
    import nibabel

    voxels = np.empty((SIDE, SIDE, slices), dtype=np.int16)
    voxels[:] = np.arange(slices)
    voxels[0, 0] = -1000
    affine = np.diag([0.5, 0.5, -spacing if flipped else spacing, 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def module(name: str, root: Path, *overrides: str) -> Any:
    """The data module ``name`` on ``root``."""
    return build_datamodule(compose([f"data={name}", f"data.root={root}", "task=subtypes", *overrides]))


def reasons(manifest: Any) -> dict[str, str]:
    """Skipped item -> reason."""
    return dict(zip(manifest.skipped["item"], manifest.skipped["reason"], strict=True))
