"""A small head CT series, and ways to write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.attack.case import Trained
from tests.data.readers.files import ct, nifti, write

SLICES, SIDE, PIXEL, SPACING = 12, 64, 3.4, 8.0
Change = Callable[[Dataset, int], Dataset | None]  # edits slice i; another data set in its place where it returns one


def head(seed: int = 0) -> NDArray[np.int16]:
    """(12, 64, 64) HU: skull, brain, ventricles, a bleed beside the middle; rows run to the back, slice 0 is lowest."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[-1 : 1 : SLICES * 1j, -1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    radius = np.sqrt((x / 0.72) ** 2 + (y / 0.86) ** 2) / np.sqrt(np.clip(1 - (0.8 * z) ** 2, 0.05, 1))
    hu = np.where(radius < 1, 900.0, -1000.0)
    hu[radius < 0.9] = 32
    hu[(np.hypot(x - 0.1, (y + 0.1) / 2) < 0.12) & (abs(z) < 0.4)] = 6
    hu[(np.hypot(x - 0.35, y - 0.1) < 0.16) & (abs(z - 0.1) < 0.35)] = 70
    return np.clip(hu + rng.normal(0, 4, hu.shape), -1000, 3000).round().astype(np.int16)


def dicom(
    folder: Path,
    hu: NDArray[Any] | None = None,
    change: Change | None = None,
    *,
    names: str = "{:03d}.dcm",
    patient: str = "P1",
    **elements: Any,
) -> list[Path]:
    """Write a series, one file a slice; ``elements`` go into every one, ``change`` edits each."""
    volume = head() if hu is None else hu
    uid, study, frame = generate_uid(), generate_uid(), generate_uid()
    paths = []
    for i, plane in enumerate(volume):
        stored = (plane.astype(np.int32) + 1024).astype(np.uint16)
        data = ct(stored, ExplicitVRLittleEndian)
        half = PIXEL * SIDE / 2
        for name, value in {
            "PatientID": patient,
            "SeriesInstanceUID": uid,
            "StudyInstanceUID": study,
            "FrameOfReferenceUID": frame,
            "SeriesNumber": 2,
            "SeriesDescription": "HEAD 5mm",
            "BodyPartExamined": "HEAD",
            "AcquisitionNumber": 1,
            "InstanceNumber": i + 1,
            "ImagePositionPatient": [-half, -half, -44 + SPACING * i],
            "PixelSpacing": [PIXEL, PIXEL],
            "SliceThickness": SPACING,
            "BitsStored": 12,
            "HighBit": 11,
            **elements,
        }.items():
            if value is None:
                data.pop(name, None)
            else:
                setattr(data, name, value)
        if change is not None:
            data = change(data, i) or data
        data.file_meta.MediaStorageSOPInstanceUID = data.get("SOPInstanceUID", generate_uid())
        paths.append(write(folder / names.format(i), data))
    return paths


def with_syntax(raw: bytes, uid: str) -> bytes:
    """The file with another transfer syntax in its meta information, whatever its pixels are."""
    at = raw.find(b"\x02\x00\x10\x00UI")
    old = int.from_bytes(raw[at + 6 : at + 8], "little")
    value = uid.encode() + b"\0" * (len(uid) % 2)
    group = int.from_bytes(raw[140:144], "little") + len(value) - old  # (0002,0000) follows the preamble and DICM
    meta = raw[:140] + group.to_bytes(4, "little") + raw[144 : at + 6]
    return meta + len(value).to_bytes(2, "little") + value + raw[at + 8 + old :]


def volume(path: Path, hu: NDArray[Any] | None = None, **header: Any) -> Path:
    """The same head as NIfTI, RAS: (x to the left is index down, y to the front, z up)."""
    planes = head() if hu is None else hu
    affine = np.diag([PIXEL, PIXEL, SPACING, 1.0])
    affine[:3, 3] = -PIXEL * (SIDE / 2 - 1), -PIXEL * (SIDE / 2 - 1), -44
    return nifti(path, np.ascontiguousarray(planes.transpose(2, 1, 0)[::-1, ::-1]), affine, **header)


def predict(trained: Trained, folder: Path, run: str = "ct", *words: str) -> list[str]:
    """``hemlearn predict`` of the folder's ``in``."""
    return ["predict", f"run={trained.runs[run]}", f"input={folder / 'in'}", "out=out", *words]


def index(folder: Path, *words: str) -> list[str]:
    """``hemlearn index`` of the folder's ``in``."""
    return ["index", "data=dicom", f"data.root={folder / 'in'}", "data.image_size=64", "data.fit=letterbox", *words]


def both_commands(
    kind: str, name: str, make: Callable[[Path], object], of_predict: Any, of_index: Any
) -> Sequence[Any]:
    """The case as ``predict`` and as ``index``."""
    from tests.attack.case import Case

    def predicted(folder: Path, trained: Trained) -> list[str]:
        make(folder / "in")
        return predict(trained, folder)

    def indexed(folder: Path, trained: Trained) -> list[str]:
        make(folder / "in")
        return index(folder)

    cases = []
    if of_predict is not None:
        cases.append(Case(kind, f"{name}: predict", predicted, of_predict))
    if of_index is not None:
        cases.append(Case(kind, f"{name}: index", indexed, of_index))
    return cases
