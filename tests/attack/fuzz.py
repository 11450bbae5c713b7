"""Seeded damage of DICOM headers and pixels, judged by what SimpleITK (GDCM) or pydicom reads of the same file."""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.attack import series
from tests.attack.case import Case, Outcome, Trained

KIND = "DICOM fuzzed"
SEEDS = 120
SLICES = 3  # of the series, one of which is damaged
HEADER = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceThickness", "InstanceNumber", "Modality", "PatientID", "SeriesInstanceUID",
    "StudyInstanceUID", "SOPInstanceUID", "ImageType", "SOPClassUID", "PixelData",
)  # fmt: skip
TEXTS = (
    b"",
    b"\0\0",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"\\",
    b"1\\2\\3\\4\\5\\6\\7",
    b"\xff\xfe",
    b"A" * 300,
    b"\x1b[2J",
)
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
            JPEG2000Lossless, JPEGLSLossless, RLELossless)  # fmt: skip


def damaged(raw: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One kind of damage and what it leaves of a file."""
    start = raw.rfind(b"\xe0\x7f\x10\x00")  # the pixel data's tag
    kinds: dict[str, Callable[[], bytes]] = {
        "header bytes": lambda: _bytes(raw, rng, 132, start),
        "pixel bytes": lambda: _bytes(raw, rng, start + 12, len(raw)),
        "length of an element": lambda: _length(raw, rng),
        "value of an element": lambda: _value(raw, rng),
        "an element taken away": lambda: _without(raw, rng),
        "cut": lambda: raw[: rng.randrange(len(raw))],
        "bytes put in": lambda: _inserted(raw, rng),
        "another transfer syntax named": lambda: series.with_syntax(raw, str(rng.choice(SYNTAXES))),
    }
    name = rng.choice(sorted(kinds))
    return name, kinds[name]()


def _bytes(raw: bytes, rng: random.Random, start: int, end: int) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 4, 32))):
        out[rng.randrange(start, end)] = rng.randrange(256)
    return bytes(out)


def _elements(raw: bytes, rng: random.Random) -> tuple[int, bytes]:
    """Offset and tag of an element that matters, as explicit little-endian bytes hold it."""
    places = []
    for name in HEADER:
        tag = pydicom.datadict.tag_for_keyword(name)
        assert tag is not None
        code = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
        at = raw.find(code, 132)
        if at > 0:
            places.append((at, code))
    return rng.choice(places)


def _length(raw: bytes, rng: random.Random) -> bytes:
    at, _ = _elements(raw, rng)
    out = bytearray(raw)
    out[at + 6 : at + 8] = rng.choice((0, 1, 3, 0xFFFF, rng.randrange(1 << 16))).to_bytes(2, "little")
    return bytes(out)


def _value(raw: bytes, rng: random.Random) -> bytes:
    at, _ = _elements(raw, rng)
    size = int.from_bytes(raw[at + 6 : at + 8], "little")
    text = rng.choice(TEXTS)
    text += b" " * (len(text) % 2)
    return raw[: at + 6] + len(text).to_bytes(2, "little") + text + raw[at + 8 + size :]


def _without(raw: bytes, rng: random.Random) -> bytes:
    at, code = _elements(raw, rng)
    if code == b"\xe0\x7f\x10\x00":
        return raw[:at]
    return raw[:at] + raw[at + 8 + int.from_bytes(raw[at + 6 : at + 8], "little") :]


def _inserted(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(132, len(raw))
    return raw[:at] + rng.randbytes(rng.choice((1, 2, 8, 100))) + raw[at:]


def independent(file: Path) -> list[NDArray[np.float64]]:
    """What other programs make of the file, in HU: SimpleITK in its orientation LPS and as stored, pydicom as stored.

    Each reads in a process of its own: a broken stream can kill a decoder.
    """
    found = []
    for reader in (_simple_itk, _pydicom):
        kept = file.with_suffix(".npz")
        pid = os.fork()
        if not pid:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                np.savez(kept, *reader(file))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        if kept.is_file():
            with np.load(kept) as arrays:
                found += [arrays[name] for name in arrays.files]
            kept.unlink()
    return found


def _simple_itk(file: Path) -> list[NDArray[np.float64]]:
    image = SimpleITK.ReadImage(str(file))
    if image.GetNumberOfComponentsPerPixel() > 1:
        return []
    images = (SimpleITK.DICOMOrient(image, "LPS"), image)
    return [SimpleITK.GetArrayFromImage(each).astype(np.float64)[0] for each in images]


def _pydicom(file: Path) -> list[NDArray[np.float64]]:
    data = pydicom.dcmread(file, force=True)
    if "TransferSyntaxUID" not in data.file_meta:
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = data.pixel_array.astype(np.float64)
    return [values * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))]


def as_others(got: Outcome) -> str:
    """Every slice that was accepted without a word has the pixels that another program reads."""
    if got.status:
        return ""
    kept = np.load(got.folder / "pixels.npz")
    for row, path in enumerate(kept["path"].tolist()):
        file = got.folder / "in" / path
        if re.search(re.escape(file.name), got.told):
            continue
        pixels = kept["array"][row].astype(np.float64)
        read = [np.clip(values, -32768, 32767) for values in independent(file) if values.ndim == 2]
        if not read:
            return f"{path}: accepted; neither SimpleITK nor pydicom reads it"
        same = [v for v in read if v.shape == pixels.shape and np.abs(v.round() - pixels).max() <= 1]
        if not same and all(v.shape == pixels.shape for v in read):
            return f"{path}: off by up to {min(np.abs(v - pixels).max() for v in read):.0f} HU, without a word"
        if not same and max(max(v.shape) for v in read) == pixels.shape[0]:
            return f"{path}: another image than SimpleITK and pydicom read, without a word"
    return ""


def cases() -> list[Case]:
    """One per seed; the damage is told by the name."""
    found = []
    for seed in range(SEEDS):
        kind, _ = damaged(_sample(), random.Random(seed))

        def build(folder: Path, trained: Trained, seed: int = seed) -> list[str]:
            rng = random.Random(seed)
            files = series.dicom(folder / "in", series.head()[4 : 4 + SLICES])
            files[1].write_bytes(damaged(files[1].read_bytes(), rng)[1])
            return series.index(folder)

        found.append(Case(KIND, f"{seed:03d} {kind}", build, as_others, pixels=True))
    return found


@cache
def _sample() -> bytes:
    """Bytes laid out as a slice's, to learn which damage a seed means."""
    with tempfile.TemporaryDirectory() as folder:
        return series.dicom(Path(folder), series.head()[4:5])[0].read_bytes()
