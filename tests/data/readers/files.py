"""DICOM and NIfTI files made for tests."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

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
    if data.file_meta.TransferSyntaxUID.is_private:  # GE's, whose elements are implicit and little-endian
        data.save_as(path, implicit_vr=True, little_endian=True)
    else:
        data.save_as(path, enforce_file_format=True)
    return path


def head_hu(slices: int = 12, side: int = 64) -> NDArray[np.int16]:
    """(slices, side, side) HU: skull and brain in air, seen as on a screen, slice 0 the lowest; a bleed on the left."""
    z = np.linspace(-1, 1, slices)[:, None, None]
    y, x = np.mgrid[-1.2 : 1.2 : side * 1j, -1.35 : 1.35 : side * 1j]
    radius = np.hypot(x, y) / np.sqrt(1 - (0.8 * z) ** 2)
    out = np.where(radius < 0.9, 32, np.where(radius < 1, 900, -1000))
    out[(out == 32) & (np.hypot(x - 0.4, y - 0.1) < 0.17)] = 70
    return out.astype(np.int16)


def nifti_head(
    path: Path,
    sform: NDArray[Any] | None = None,
    qform: NDArray[Any] | None = None,
    voxels: NDArray[Any] | None = None,
    **header: Any,
) -> Path:
    """``head_hu`` (or other values, in its axes) as a volume; further header fields are set as they are, unchecked."""
    plain = np.diag([2.0, 2.0, 5.0, 1.0])
    plain[:3, 3] = -54, -54, -50
    seen = head_hu() if voxels is None else voxels
    image = nibabel.Nifti1Image(np.ascontiguousarray(seen.transpose(2, 1, 0)[::-1, ::-1]), plain)
    image.set_sform(plain if sform is None else sform, 1)
    image.set_qform(plain if qform is None else qform, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    block = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in header.items():
        block[name] = value
    raw[:348] = block.binaryblock
    path.write_bytes(raw)
    return path


def gzip_bomb(path: Path, unpacked: int = 1 << 31) -> Path:
    """``nifti_head`` compressed, followed by zeros that unpack to so many bytes."""
    whole = gzip.compress(nifti_head(path.with_suffix("")).read_bytes())
    path.with_suffix("").unlink()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 24)
    with path.open("wb") as file:
        file.write(whole)
        for _ in range(unpacked // len(block)):
            file.write(packer.compress(block))
        file.write(packer.flush())
    return path


def deflated_bomb(path: Path, unpacked: int = 3 << 30) -> Path:
    """A deflated slice with a private element of so many zeros behind its pixels."""
    whole = write(path, ct(slice_hu(), DeflatedExplicitVRLittleEndian)).read_bytes()
    with path.open("rb") as file:
        read_preamble(file, True)
        read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        start = file.tell()
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = bytes(1 << 20)
    with path.open("wb") as file:
        file.write(whole[:start] + packer.compress(zlib.decompress(whole[start:], -zlib.MAX_WBITS)))
        count = unpacked // len(block)
        file.write(packer.compress(struct.pack("<HH2sHI", 0x7FE1, 0x1010, b"OB", 0, count * len(block))))
        for _ in range(count):
            file.write(packer.compress(block))
        file.write(packer.flush())
    return path


def nifti(path: Path, voxels: NDArray[Any], affine: NDArray[Any] | None = None, **header: Any) -> Path:
    """Write a volume; the affine is 1 mm, right-anterior-superior, unless it is given."""
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def ct_series(
    folder: Path, slices: int = 6, *, change: Callable[[Dataset, int], None] | None = None, **elements: Any
) -> list[Path]:
    """A CT series 5 mm apart, lowest first; ``elements`` as for :func:`ct`, ``change(data, index)`` edits each file."""
    paths = []
    for item in range(slices):
        place = {"ImagePositionPatient": [-100, -100, 5.0 * item], "InstanceNumber": item + 1}
        data = ct((slice_hu(item) + 1024).astype(np.uint16), **(place | elements))
        if change is not None:
            change(data, item)
        paths.append(write(folder / f"{item:03d}.dcm", data))
    return paths


def encapsulated(data: Dataset, syntax: UID, *streams: bytes) -> Dataset:
    """The data set with compressed pixels, one stream per frame."""
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate(list(streams))
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    return data


def turned_head() -> NDArray[np.int16]:
    """(5, 24, 20) HU, lowest first, rows anterior to posterior, columns right to left; no symmetry."""
    return np.stack([slice_hu(seed)[:24, :20] for seed in range(5)])


def stored_head(
    folder: Path,
    head: NDArray[np.int16],
    orientation: Sequence[float],
    position: str,
    *,
    downwards: bool = False,
    **elements: Any,
) -> None:
    """Store a head as its ImageOrientationPatient says, 4 mm between slices, pixels of 0.5 mm.

    Args:
        folder: Where.
        head: (S, H, W) HU, lowest first, rows anterior to posterior, columns right to left.
        orientation: Directions (left, posterior, superior) in which columns and rows are counted.
        position: PatientPosition (0018,5100).
        downwards: Names and numbers count from the top.
        **elements: As for :func:`ct`.
    """
    across, down = np.array(orientation[:3], dtype=float), np.array(orientation[3:], dtype=float)
    axes = np.abs(across[:2]).argmax(), np.abs(down[:2]).argmax()  # 0 left, 1 posterior
    frame = generate_uid()
    for item, pixels in enumerate(head):
        stored = pixels if axes == (0, 1) else pixels.T
        if across[axes[0]] < 0:
            stored = stored[:, ::-1]
        if down[axes[1]] < 0:
            stored = stored[::-1]
        # Centres of slices lie above one another, whichever pixel comes first.
        corner = np.array([0.0, 0.0, 4.0 * item])
        corner -= 0.5 * ((stored.shape[1] - 1) / 2 * across + (stored.shape[0] - 1) / 2 * down)
        number = len(head) - item if downwards else item + 1
        data = ct(
            np.ascontiguousarray(stored),
            ImageOrientationPatient=[*orientation],
            ImagePositionPatient=[round(float(value), 4) for value in corner],
            PatientPosition=position,
            InstanceNumber=number,
            RescaleIntercept=0,
            FrameOfReferenceUID=frame,
            **elements,
        )
        write(folder / f"{number:03d}.dcm", data)
