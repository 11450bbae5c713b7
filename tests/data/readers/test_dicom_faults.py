"""DICOM files that contradict themselves: read right where the meaning is certain, else refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from hemlearn.data.readers import reader_for
from hemlearn.data.readers.dicom import read_dicom
from hemlearn.data.readers.headers import Header
from hemlearn.data.scan import read_headers
from hemlearn.util.errors import DataError
from tests.data.readers.files import ct, encapsulated, slice_hu, write
from tests.data.readers.jpeg_lossless import encode
from tests.data.readers.streams import HTJ2K_UNSIGNED

HU = slice_hu()
STORED = (HU + 1024).astype(np.uint16)
BITS = {"BitsStored": 12, "HighBit": 11}


def j2k(codes: Any, precision: int) -> bytes:
    utils = pytest.importorskip("openjpeg.utils")
    return bytes(utils.encode_array(codes, bits_stored=precision, photometric_interpretation=2, use_mct=False))


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_dicom(path, 0)
    return caught.value


@pytest.mark.parametrize(
    "named", [JPEG2000, JPEGLosslessSV1, JPEGLSLossless, RLELossless, ExplicitVRLittleEndian, UID("1.2.3.4")]
)
def test_a_stream_is_read_as_what_it_is_whatever_it_is_called(tmp_path: Path, named: UID) -> None:
    for name, stream in {"j2k": j2k(STORED, 12), "jpeg": encode(STORED.astype(np.int64), 12)}.items():
        data = encapsulated(ct(STORED, **BITS), JPEG2000, stream)
        path = write(tmp_path / f"{name}.dcm", data)
        raw = path.read_bytes()
        old = b"1.2.840.10008.1.2.4.91\0\0"[:22]
        assert raw.count(old) == 1
        path.write_bytes(raw.replace(old, named.encode().ljust(22, b"\0")))
        assert np.array_equal(read_dicom(path, 0), HU)
    small = slice_hu(0, 16)
    data = encapsulated(ct((small + 1024).astype(np.uint16)), HTJ2KLossless, HTJ2K_UNSIGNED)
    data.file_meta.TransferSyntaxUID = JPEG2000
    assert np.array_equal(read_dicom(write(tmp_path / "ht.dcm", data), 0), small)


@pytest.mark.parametrize(
    "uid", ["1.2.840.10008.1.2.4.55", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.62", "1.2.3.4"]
)
def test_a_syntax_without_a_decoder_is_called_so(tmp_path: Path, uid: str) -> None:
    """JPEG processes 10/12, 6/8 and 11/13, and one that nobody knows."""
    data = encapsulated(
        ct(STORED, **BITS), JPEG2000, b"\xff\xd8\xff\xc2\0\x0b\x0c\0\x20\0\x20\1\1\x11\0" + bytes(90) + b"\xff\xd9"
    )
    path = write(tmp_path / "a.dcm", data)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"1.2.840.10008.1.2.4.91", uid.encode().ljust(22, b"\0")))
    error = refusal(path)
    name = UID(uid).name
    shown = uid if name == uid else f"{name} ({uid})"
    assert error.problem == f"{path}: transfer syntax not supported: {shown}"
    assert error.remedy == "convert the file with gdcmconv --raw, or with dcmdjpeg (DCMTK)"


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_a_precision_that_disagrees_with_bits_stored(tmp_path: Path, bits: int, signed: bool) -> None:
    """The stream is believed: BitsStored cannot hold its values, or holds them and more."""
    packed = ((HU.astype(int) + (0 if signed else 1024)) & 0xFFF).astype(np.uint16)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed)}
    data = ct(packed, RescaleIntercept=0 if signed else -1024, **tags)
    path = write(tmp_path / "a.dcm", encapsulated(data, JPEG2000Lossless, j2k(packed, 12)))
    assert np.array_equal(read_dicom(path, 0), HU)


def test_a_stream_of_eight_bits_is_no_ct_of_twelve(tmp_path: Path) -> None:
    windowed = np.clip(HU.astype(int) * 255 // 80, 0, 255).astype(np.uint8)
    data = encapsulated(ct(STORED, **BITS), JPEG2000Lossless, j2k(windowed, 8))
    assert "a code stream of 8 bits, but BitsStored (0028,0101) is 12" in str(refusal(write(tmp_path / "a.dcm", data)))


@pytest.mark.parametrize("elements", [{"PixelRepresentation": 2}, {"NumberOfFrames": -1}])
def test_numbers_without_a_meaning(tmp_path: Path, elements: dict[str, int]) -> None:
    ((name, value),) = elements.items()
    data = ct(STORED, **BITS, **elements)
    assert f"{name} {value}" in refusal(write(tmp_path / "a.dcm", data)).problem


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_negative_slope_is_refused(tmp_path: Path, modality: str) -> None:
    data = ct(STORED, Modality=modality, RescaleSlope=-1, RescaleIntercept=-1024)
    problem = refusal(write(tmp_path / "a.dcm", data)).problem
    assert problem.endswith("RescaleSlope -1 and RescaleIntercept -1024 are no rescale")


@pytest.mark.parametrize(
    ("stored", "elements", "reason"),
    [
        (STORED, {}, "RescaleIntercept 0, no air: stored as HU + 1024"),
        (np.minimum(STORED, 4095), BITS, "RescaleIntercept 0, no air: stored as HU + 1024"),
        (np.clip(HU * 3, 0, 255).astype(np.uint8), {}, "8-bit grey levels, windowed already"),
    ],
)
def test_unsigned_ct_with_intercept_0_is_no_hu(
    tmp_path: Path, stored: Any, elements: dict[str, int], reason: str
) -> None:
    assert reason in refusal(write(tmp_path / "a.dcm", ct(stored, RescaleIntercept=0, **elements))).problem


def test_a_brain_without_its_surroundings_is_kept(tmp_path: Path) -> None:
    brain = np.clip(HU, 0, 90).astype(np.uint16)
    assert np.array_equal(read_dicom(write(tmp_path / "a.dcm", ct(brain, RescaleIntercept=0)), 0), brain)


@pytest.mark.parametrize("told", [None, 1, 3])
def test_frames_that_would_be_lost_are_told(tmp_path: Path, told: int | None) -> None:
    frames = np.stack([STORED] * 4)
    codes = [j2k(STORED, 12)] * 4
    for name, data in {
        "raw": ct(frames, **BITS),
        "j2k": encapsulated(ct(STORED, **BITS), JPEG2000Lossless, *codes),
    }.items():
        data.pop("NumberOfFrames", None)
        if told is not None:
            data.NumberOfFrames = told
        error = refusal(write(tmp_path / f"{name}.dcm", data))
        assert f"pixels of 4 frames, but NumberOfFrames (0028,0008) says {told or 1}" in error.problem
        assert error.remedy == "correct its NumberOfFrames, or export the slices one by one"


def outcome(path: Path) -> str:
    """Why a file is refused, "" where it is read; any other error is the test's."""
    try:
        read_dicom(path, 0)
    except DataError as error:
        return error.problem
    return ""


def raw_element(data: Dataset, keyword: str, vr: str, value: str) -> Dataset:
    """Set an element to text that pydicom would not take."""
    tag = Tag(keyword)
    element = DataElement(tag, vr, None, already_converted=True)
    element._value = value
    data[tag] = element
    return data


@pytest.mark.parametrize("value", ["9" * 30, "-" + "9" * 25, "1e400", "NaN", "inf", "12x", "1\\2", "", " "])
@pytest.mark.parametrize(
    ("keyword", "vr"),
    [
        ("InstanceNumber", "IS"),
        ("AcquisitionNumber", "IS"),
        ("TemporalPositionIdentifier", "IS"),
        ("NumberOfFrames", "IS"),
        ("SliceThickness", "DS"),
        ("GantryDetectorTilt", "DS"),
        ("RescaleSlope", "DS"),
        ("RescaleIntercept", "DS"),
        ("EchoTime", "DS"),
        ("RepetitionTime", "DS"),
        ("InversionTime", "DS"),
        ("PixelSpacing", "DS"),
        ("ImagePositionPatient", "DS"),
        ("ImageOrientationPatient", "DS"),
    ],
)
def test_numbers_that_cannot_be_are_no_traceback(tmp_path: Path, keyword: str, vr: str, value: str) -> None:
    path = write(tmp_path / "a.dcm", raw_element(ct(STORED, **BITS), keyword, vr, value))
    table = read_headers(["a.dcm"], tmp_path, cache_dir=tmp_path / "cache", progress=False, n_jobs=1)
    again = read_headers(["a.dcm"], tmp_path, cache_dir=tmp_path / "cache", progress=False, n_jobs=1)
    assert len(table) == len(again) == 1
    problem = outcome(path)
    assert not problem or keyword in problem or "damaged DICOM file" in problem


def header(path: Path) -> Header:
    return reader_for(path).open(path, pixels=False).headers(path.name)[0]


def test_an_instance_number_beyond_64_bits_is_taken_for_absent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", raw_element(ct(STORED), "InstanceNumber", "IS", "9" * 30))
    found = header(path)
    assert found.instance_number is None
    assert "InstanceNumber (0020,0013) is no number of 32 bits" in found.remark
