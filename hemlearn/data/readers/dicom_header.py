"""What the header of a DICOM file says of each of its slices, and whether they are axial CT or MR slices at all."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from hemlearn.data.readers.dicom_file import BROKEN, describe, functional_group, number_of_frames, open_dicom
from hemlearn.data.readers.slice_header import Header
from hemlearn.errors import DataError

_NAN = float("nan")
_TAGS = (
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


def dicom_headers(path: Path, name: str) -> list[Header]:
    """Read the header of each frame of a DICOM file; ``name`` becomes their path.

    Raises:
        DataError: The file cannot be opened or is damaged, or no DICOM file.
    """
    data = open_dicom(path, pixels=False, tags=_TAGS)
    try:
        return [_header(data, name, frame) for frame in range(number_of_frames(data))]
    except BROKEN as error:
        raise DataError(
            f"{path}: damaged DICOM file: {describe(error)}", remedy="copy or export the file again"
        ) from error


def _header(data: Any, name: str, frame: int) -> Header:
    several = number_of_frames(data) > 1

    def element(keyword: str, group: str = "") -> Any:
        inner = functional_group(data, frame, group) if group else None
        found = None if inner is None else inner.get(keyword, None)
        if found in (None, "") and not (several and keyword == "ImagePositionPatient"):
            found = data.get(keyword, None)  # one position cannot be that of every frame
        return found

    position = _numbers(element("ImagePositionPatient", "PlanePositionSequence"), 3)
    orientation = _numbers(element("ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    spacing = _numbers(element("PixelSpacing", "PixelMeasuresSequence"), 2)
    normal, angle = _normal(orientation)
    tilt = _numbers(element("GantryDetectorTilt"), 1)
    thickness = _numbers(element("SliceThickness", "PixelMeasuresSequence"), 1)
    number = _numbers(element("InstanceNumber"), 1)
    kinds = [functional_group(data, frame, f"{kind}ImageFrameTypeSequence") for kind in ("CT", "MR")]
    own = next((found.get("FrameType", None) for found in kinds if found is not None), None)
    image_type = _text(own or data.get("ImageType", ""))
    modality = str(data.get("Modality", "") or "").strip().upper()
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
        tilt_deg=angle if tilt is None else tilt[0],
        rows=int(data.get("Rows", 0) or 0),
        columns=int(data.get("Columns", 0) or 0),
        image_type=image_type,
        manufacturer=_text(data.get("Manufacturer", "")),
        kernel=_text(data.get("ConvolutionKernel", "")),
        description=_text(data.get("SeriesDescription", "")),
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


def _text(value: Any) -> str:
    if value is None:
        return ""
    items = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
    return "\\".join(str(item).strip(" \0") for item in items)


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
