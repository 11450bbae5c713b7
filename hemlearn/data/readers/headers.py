"""What the headers of DICOM and NIfTI files say: ids, position, spacing, kind of image; no pixels are decoded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hemlearn.data.readers import FileFacts
from hemlearn.data.readers.dicom_file import BROKEN, describe, functional_group, number_of_frames
from hemlearn.util.errors import DataError, printable

# --- One slice as the header of its file describes it.


_NAN = float("nan")
LEFT_RIGHT = "its sform and qform contradict each other about left and right"


@dataclass(frozen=True)
class Header:
    """One slice: a DICOM file, a frame of one, or an axial slice of a NIfTI volume.

    Args:
        path: The file, as it was asked for.
        frame: Index of the slice in the file.
        modality: CT, MR or OT, DICOM (0008,0060); OT for NIfTI, which does not say.
        patient_id: DICOM (0010,0020); "" where absent, as for the next ones.
        study_id: DICOM (0020,000D).
        series_id: DICOM (0020,000E); for NIfTI the path.
        instance_id: DICOM (0008,0018).
        z_mm: Position along the slice normal, mm, rising towards the head's top; NaN: unknown.
        normal: Unit vector of the slice normal (left, posterior, superior), its largest part positive; None: unknown.
        instance_number: DICOM (0020,0013), the frame's number in a file of several; None: unknown.
        pixel_mm: Spacing of rows and of columns, mm; None: unknown.
        thickness_mm: DICOM (0018,0050); NaN: unknown; for NIfTI the slice spacing.
        tilt_deg: Gantry tilt: the angle between normal and body axis, or DICOM (0018,1120) where that is unknown (the
            element is often left at 0, and its sign differs between manufacturers); NaN: unknown.
        rows: Height, pixels.
        columns: Width, pixels.
        plane: Index along the array's own slice axis; another than ``frame`` in NIfTI volumes that begin at the top.
        echo_ms: DICOM (0018,0081) of MR; NaN: unknown, as for the next two.
        repetition_ms: DICOM (0018,0080).
        inversion_ms: DICOM (0018,0082).
        image_type: DICOM (0008,0008), values joined by a backslash.
        manufacturer: DICOM (0008,0070).
        kernel: DICOM (0018,1210).
        description: DICOM (0008,103E).
        remark: What is odd about the file although it is used, and what was done; "" where nothing is.
        set_aside: "" for an axial slice that can be used, else why not.
    """

    path: str
    frame: int = 0
    modality: str = "OT"
    patient_id: str = ""
    study_id: str = ""
    series_id: str = ""
    instance_id: str = ""
    z_mm: float = _NAN
    normal: tuple[float, float, float] | None = None
    instance_number: int | None = None
    pixel_mm: tuple[float, float] | None = None
    thickness_mm: float = _NAN
    tilt_deg: float = _NAN
    rows: int = 0
    columns: int = 0
    plane: int = 0
    echo_ms: float = _NAN
    repetition_ms: float = _NAN
    inversion_ms: float = _NAN
    image_type: str = ""
    manufacturer: str = ""
    kernel: str = ""
    description: str = ""
    remark: str = ""
    set_aside: str = ""


COLUMNS = tuple(item.name for item in fields(Header))


# --- What the header of a DICOM file says of each of its slices, and whether they are axial CT or MR slices at all.


# Keyword in a file of one slice; sequence and keyword in an enhanced file (DICOM PS3.3 C.8.13.5).
_TIMES = {
    "echo_ms": ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    "repetition_ms": ("RepetitionTime", "MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "inversion_ms": ("InversionTime", "MRModifierSequence", "InversionTimes"),
}
TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "ImageType",
    "Manufacturer",
    "SeriesDescription",
    "ProtocolName",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ConvolutionKernel",
    "SliceThickness",
    "GantryDetectorTilt",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "NumberOfFrames",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "BurnedInAnnotation",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "BitsStored",
    "PixelRepresentation",
    *(plain for plain, _, _ in _TIMES.values()),
)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LOCALISER = re.compile(r"\b(locali[sz]er|scout|topogram|scanogram|surview|scout.?view|three.?plane.?loc)\b", re.I)
# Values of ImageType (0008,0008) that tell a picture made from slices, not a slice: reformats and projections,
# screens, and maps whose numbers are neither HU nor the signal.
_REFORMATTED = {
    "MPR",
    "CSA MPR",
    "REFORMATTED",
    "CURVED",
    "PROJECTION IMAGE",
    "MIP",
    "MINIP",
    "MIN IP",
    "MAX IP",
    "VRT",
    "SSD",
    "VOLREND",
    "3D RENDERING",
}
_SCREEN = {"SCREEN SAVE", "SCREENSHOT", "SCREEN CAPTURE", "CAPTURE", "DOSE", "DOSE_INFO", "PASTED", "REPORT"}
_MAP = {"CBF", "CBV", "MTT", "TTP", "TMAX", "PERFUSION", "PBV", "ADC", "FA", "PHASE", "SUBTRACTION", "SUBTRACT"}
_NOT_AXIAL = math.cos(math.radians(45))


def dicom_headers(path: Path, data: Any, name: str) -> list[Header]:
    """The header of each frame of a DICOM file.

    Args:
        path: The file.
        data: What :func:`dicom_file.open_dicom` returns for ``TAGS``.
        name: What ``Header.path`` shall say.

    Raises:
        DataError: The file is damaged.
    """
    with _damaged(path, "copy or export the file again"):
        return [_header(data, name, frame) for frame in range(number_of_frames(data))]


def dicom_facts(path: Path, data: Any) -> FileFacts:
    """What a DICOM file tells of itself, from the same elements.

    Raises:
        DataError: The file is damaged.
    """
    with _damaged(path, "export the file again"):
        measures = functional_group(data, 0, "PixelMeasuresSequence") or data
        signed = "signed" if data.get("PixelRepresentation", 0) else "unsigned"
        return FileFacts(
            f"{data.get('PhotometricInterpretation', '')} {data.get('BitsStored', '?')} bit {signed}",
            _text(data.get("Manufacturer")),
            _text(data.get("ConvolutionKernel")),
            _first_number(measures.get("SliceThickness")),
            _first_number(measures.get("PixelSpacing")),
            _first_number(data.get("GantryDetectorTilt")),
        )


@contextmanager
def _damaged(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise DataError(f"{path}: damaged DICOM file: {describe(error)}", remedy=remedy) from error


def _first_number(value: Any, *, positive: bool = False) -> float:
    """The first number of an element; NaN where there is none, or where it is not above 0 and ``positive``."""
    items = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    try:
        found = float(next(iter(items), _NAN))
    except (TypeError, ValueError):  # empty, or text that is no number: as good as absent
        return _NAN
    return found if math.isfinite(found) and (found > 0 or not positive) else _NAN


def _header(data: Any, name: str, frame: int) -> Header:
    several = number_of_frames(data) > 1

    def element(keyword: str, group: str = "") -> Any:
        inner = functional_group(data, frame, group) if group else None
        found = None if inner is None else inner.get(keyword, None)
        if found in (None, "") and not (several and keyword == "ImagePositionPatient"):
            found = data.get(keyword, None)  # one position cannot be that of every frame
        return found

    position = _numbers(element("ImagePositionPatient", "PlanePositionSequence"), 3)
    orientation = slice_orientation(data, frame)
    spacing = _numbers(element("PixelSpacing", "PixelMeasuresSequence"), 2)
    normal, angle = _normal(orientation)
    sides = ("Rows", "Columns")
    if view(orientation)[0]:
        sides, spacing = sides[::-1], None if spacing is None else spacing[::-1]
    tilt = _numbers(element("GantryDetectorTilt"), 1)
    thickness = _numbers(element("SliceThickness", "PixelMeasuresSequence"), 1)
    number = _numbers(element("InstanceNumber"), 1)
    kinds = [functional_group(data, frame, f"{kind}ImageFrameTypeSequence") for kind in ("CT", "MR")]
    own = next((found.get("FrameType", None) for found in kinds if found is not None), None)
    image_type = _text(own or data.get("ImageType", ""))
    modality = printable(str(data.get("Modality", "") or "").strip().upper())
    return Header(
        path=name,
        frame=frame,
        modality=modality if modality in ("CT", "MR") else "OT",
        patient_id=_text(data.get("PatientID", "")),
        study_id=_text(data.get("StudyInstanceUID", "")),
        series_id=_text(data.get("SeriesInstanceUID", "")),
        instance_id=_text(data.get("SOPInstanceUID", "")),
        z_mm=float(np.dot(normal, position)) if normal is not None and position is not None else _NAN,
        normal=normal,
        instance_number=frame + 1 if several else None if number is None else int(number[0]),
        pixel_mm=None if spacing is None else (spacing[0], spacing[1]),
        thickness_mm=_NAN if thickness is None else thickness[0],
        tilt_deg=tilt[0] if normal is None and tilt is not None else angle,
        rows=int(data.get(sides[0], 0) or 0),
        columns=int(data.get(sides[1], 0) or 0),
        plane=frame,
        **{name: _time(data, frame, *where) for name, where in _TIMES.items()},
        image_type=image_type,
        manufacturer=_text(data.get("Manufacturer", "")),
        kernel=_text(data.get("ConvolutionKernel", "")),
        description=_text(data.get("SeriesDescription", "")),
        remark="",
        set_aside=_set_aside(data, modality, normal, image_type),
    )


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers, or None where the element is absent, empty or has other than so many."""
    if value in (None, ""):
        return None
    items = [value] if isinstance(value, str | int | float) else list(value)
    if count == 1:
        items = items[:1]
    try:
        found = tuple(float(item) for item in items)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def view(orientation: Sequence[float] | None) -> tuple[bool, bool, bool]:
    """How an axial slice is turned so that rows run from anterior to posterior, columns from the right to the left.

    The nearest anatomical axes are taken; nothing is interpolated. As in a NIfTI volume read by hemlearn.

    Args:
        orientation: ImageOrientationPatient (0020,0037): directions in which columns and rows are counted; None:
            unknown.

    Returns:
        Whether it is transposed, and whether its rows and its columns are then reversed.

    Example:
        >>> view((1, 0, 0, 0, 1, 0)), view((-1, 0, 0, 0, -1, 0)), view((0, 1, 0, 1, 0, 0))
        ((False, False, False), (False, True, True), (True, False, False))
    """
    if orientation is None:
        return False, False, False
    across, down = orientation[:3], orientation[3:]
    if max(abs(across[2]), abs(down[2])) > _NOT_AXIAL:
        return False, False, False  # sagittal or coronal: set aside elsewhere
    transposed = abs(across[0]) + abs(down[1]) < abs(across[1]) + abs(down[0])
    if transposed:
        across, down = down, across
    return transposed, down[1] < 0, across[0] < 0


def slice_orientation(data: Any, frame: int) -> tuple[float, ...] | None:
    """ImageOrientationPatient (0020,0037) of a frame; None where it is absent or not six numbers."""
    inner = functional_group(data, frame, "PlaneOrientationSequence")
    found = None if inner is None else inner.get("ImageOrientationPatient", None)
    return _numbers(data.get("ImageOrientationPatient", None) if found in (None, "") else found, 6)


def _text(value: Any) -> str:
    if value is None:
        return ""
    items = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
    return "\\".join(printable(str(item).strip(" \0")) for item in items)


def _normal(orientation: tuple[float, ...] | None) -> tuple[tuple[float, float, float] | None, float]:
    """Return the slice normal and its angle to the body axis, degrees, positive where the normal leans back.

    The sign of (0018,1120) itself differs between manufacturers; that of GE agrees with this one.
    """
    if orientation is None:
        return None, _NAN
    cross = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(cross))
    if length < 0.5:  # the two directions are none, or the same
        return None, _NAN
    cross = cross / length
    cross = cross * np.sign(cross[np.argmax(np.abs(cross))]) + 0.0  # adding 0 turns -0.0 into 0.0
    angle = math.degrees(math.acos(min(1.0, abs(float(cross[2])))))
    normal = (float(cross[0]), float(cross[1]), float(cross[2]))
    return normal, math.copysign(angle, normal[1]) if angle else 0.0


def _set_aside(data: Any, modality: str, normal: tuple[float, float, float] | None, image_type: str) -> str:
    """Return why an object is no axial CT or MR slice, or "" where nothing speaks against it."""
    if not data.get("Rows", None) or not data.get("Columns", None):
        return f"non-image object: {modality}" if modality not in ("CT", "MR") else "no pixels"
    if not data.has_pixels:
        return "no pixels"
    if modality not in ("CT", "MR"):
        return f"modality {modality or 'not given'}: neither CT nor MR"
    photometric = _text(data.get("PhotometricInterpretation", ""))
    if int(data.get("SamplesPerPixel", 1) or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        return f"colour: {photometric or 'no photometric interpretation'}"
    if int(data.get("BitsAllocated", 16) or 16) == 1:
        return "1-bit image: an overlay or segmentation"
    values = {item.strip().upper() for item in image_type.split("\\")}
    if values & {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}:
        return "localiser"
    told = _LOCALISER.search(_text(data.get("SeriesDescription", "")))
    if told and "AXIAL" not in values:
        return f"localiser: described as {told.group().lower()}"
    for kinds, word in ((_REFORMATTED, "derived"), (_SCREEN, "screen capture"), (_MAP, "derived map")):
        if found := sorted(values & kinds):
            return f"{word}: {found[0]}"
    captured = str(data.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
    rescaled = data.get("RescaleIntercept", None) not in (None, "") or data.get("ModalityLUTSequence", None)
    # Some archives rewrite slices as secondary captures; those keep their place in the patient and their rescale.
    if captured and (normal is None or (modality == "CT" and not rescaled)):
        return "secondary capture: no position in the patient or no rescale"
    if normal is not None and abs(normal[2]) < _NOT_AXIAL:
        return f"not axial: {'sagittal' if abs(normal[0]) > abs(normal[1]) else 'coronal'}"
    return ""


def _time(data: Any, frame: int, plain: str, group: str, keyword: str) -> float:
    """A time of an MR acquisition, ms; scanners without inversion pulse may write 0, which is none."""
    inner = functional_group(data, frame, group)
    return _first_number(data.get(plain) if inner is None else inner.get(keyword), positive=True)
