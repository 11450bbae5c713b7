"""What the header of a DICOM file says of each of its slices, and whether they are axial CT or MR slices at all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hemlearn.data.readers import FileFacts
from hemlearn.data.readers.aspect import STRETCHED, square_shape, square_spacing
from hemlearn.data.readers.dicom_file import BROKEN, describe, functional_group, number_of_frames
from hemlearn.data.readers.dicom_personal import PERSONAL, personal
from hemlearn.data.readers.dicom_remarks import REMARKED, remarks_of, storage_of
from hemlearn.data.readers.dicom_values import (
    Elements,
    age_years,
    first_number,
    numbers,
    pixel_spacing,
    rescale,
    slice_orientation,
    text_of,
    whole,
)
from hemlearn.data.readers.headers import Header
from hemlearn.util.errors import DataError, printable

_NAN = float("nan")

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
    "PatientSex",
    "PatientAge",
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
    "RescaleSlope",
    "RescaleType",
    "ModalityLUTSequence",
    "FrameOfReferenceUID",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "ComplexImageComponent",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "BitsStored",
    "PixelRepresentation",
    *REMARKED,
    *PERSONAL,
    "PatientIdentityRemoved",
    *(plain for plain, _, _ in _TIMES.values()),
)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LOCALISER = re.compile(r"\b(locali[sz]er|scout|topogram|scanogram|surview|scout.?view|three.?plane.?loc)\b", re.I)
# Values of ImageType (0008,0008) that tell a picture made from slices, not a slice: reformats and projections,
# screens, mosaics, and maps whose numbers are neither HU nor the signal.
_KINDS = {
    "derived": {
        *("MPR", "CSA MPR", "REFORMATTED", "CURVED", "PROJECTION IMAGE", "MIP", "MINIP", "MNIP", "MIN IP", "MAX IP"),
        *("VRT", "SSD", "VOLREND", "3D RENDERING"),
    },
    "screen capture": {
        *("SCREEN SAVE", "SCREENSHOT", "SCREEN CAPTURE", "CAPTURE", "PASTED", "REPORT"),
        *("DOSE", "DOSE_INFO", "DOSE REPORT", "DOSE_REPORT"),
    },
    "derived map": {
        *("CBF", "CBV", "MTT", "TTP", "TMAX", "PERFUSION", "PBV", "RELCBF", "RELCBV", "RELMTT", "RCBF", "RCBV"),
        *("ADC", "ADC_UNSPECIFIED", "EADC", "FA", "TENSOR", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP"),
        *("REAL", "IMAGINARY", "FIELD_MAP", "FIELD MAP", "B0 MAP", "T1 MAP", "T2 MAP", "T2_STAR MAP", "R2 MAP"),
        *("R2_STAR MAP", "SUBTRACTION", "SUBTRACT", "IODINE", "ZEFF"),
    },
    "several slices in one picture": {"MOSAIC"},
}
_KINDS_OF = {  # values that tell so in one modality alone; P, R, I: phase, real and imaginary part
    "MR": {"derived map": {"P", "R", "I"}},
    "CT": {"derived": {"3D"}},
}
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
        data = Elements(data)
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
            text_of(data.get("Manufacturer")),
            text_of(data.get("ConvolutionKernel")),
            first_number(measures.get("SliceThickness")),
            first_number(measures.get("PixelSpacing")),
            first_number(data.get("GantryDetectorTilt")),
        )


@contextmanager
def _damaged(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise DataError(f"{path}: damaged DICOM file: {describe(error)}", remedy=remedy) from error


def _header(data: Any, name: str, frame: int) -> Header:
    several = number_of_frames(data) > 1

    def element(keyword: str, group: str = "") -> Any:
        inner = functional_group(data, frame, group) if group else None
        found = None if inner is None else inner.get(keyword, None)
        if found in (None, "") and not (several and keyword == "ImagePositionPatient"):
            found = data.get(keyword, None)  # one position cannot be that of every frame
        return found

    position = numbers(element("ImagePositionPatient", "PlanePositionSequence"), 3)
    orientation = slice_orientation(data, frame)
    normal, angle = _normal(orientation)
    shape, stored_mm = (whole(data.get("Rows", None)), whole(data.get("Columns", None))), pixel_spacing(data, frame)
    spacing, turn, scale = stored_mm, view(orientation), rescale(data, frame)
    if turn[0]:
        shape, spacing = shape[::-1], None if spacing is None else spacing[::-1]
    tilt = numbers(element("GantryDetectorTilt"), 1)
    thickness = numbers(element("SliceThickness", "PixelMeasuresSequence"), 1)
    kinds = [functional_group(data, frame, f"{kind}ImageFrameTypeSequence") for kind in ("CT", "MR")]
    own = next((found.get("FrameType", None) for found in kinds if found is not None), None)
    image_type = text_of(own or data.get("ImageType", ""))
    modality = printable(str(data.get("Modality", "") or "").strip().upper())
    rows, columns = square_shape((shape[0] or 0, shape[1] or 0), spacing)
    z_mm = _NAN
    if position is not None:  # along the body where the orientation is not given
        z_mm = position[2] if normal is None else float(np.dot(normal, position))
    content: Any = functional_group(data, frame, "FrameContentSequence") or {}
    times = (
        content.get("FrameAcquisitionNumber", None) or data.get("AcquisitionNumber", None),
        content.get("TemporalPositionIndex", None) or data.get("TemporalPositionIdentifier", None),
    )
    return Header(
        path=name,
        frame=frame,
        modality=modality if modality in ("CT", "MR") else "OT",
        patient_id=text_of(data.get("PatientID", "")),
        study_id=text_of(data.get("StudyInstanceUID", "")),
        series_id=text_of(data.get("SeriesInstanceUID", "")),
        instance_id=text_of(data.get("SOPInstanceUID", "")),
        z_mm=z_mm,
        normal=normal,
        instance_number=frame + 1 if several else whole(element("InstanceNumber")),
        pixel_mm=square_spacing(spacing),
        thickness_mm=_NAN if thickness is None else thickness[0],
        tilt_deg=tilt[0] if normal is None and tilt is not None else angle,
        rows=rows,
        columns=columns,
        plane=frame,
        **{name: _time(data, frame, *where) for name, where in _TIMES.items()},
        image_type=image_type,
        manufacturer=text_of(data.get("Manufacturer", "")),
        sex=text_of(data.get("PatientSex", "")).upper(),
        age_years=age_years(text_of(data.get("PatientAge", ""))),
        kernel=text_of(data.get("ConvolutionKernel", "")),
        description=text_of(data.get("SeriesDescription", "")),
        set_aside=_set_aside(data, modality, normal, image_type, spacing),
        frame_id=text_of(data.get("FrameOfReferenceUID", "")),
        acquisition="/".join(map(text_of, times)).strip("/"),
        storage=storage_of(data, modality, turn, scale),
        personal="/".join(personal(data)) if frame == 0 else "",
        remark="; ".join(remarks_of(data, frame, modality, image_type, normal is not None, stored_mm, scale)),
    )


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


def _set_aside(
    data: Any,
    modality: str,
    normal: tuple[float, float, float] | None,
    image_type: str,
    spacing: tuple[float, float] | None,
) -> str:
    """Return why an object is no axial CT or MR slice, or "" where nothing speaks against it."""
    if not data.get("Rows", None) or not data.get("Columns", None):
        return f"non-image object: {modality}" if modality not in ("CT", "MR") else "no pixels"
    if not data.has_pixels:
        return "no pixels"
    if modality not in ("CT", "MR"):
        return f"modality {modality or 'not given'}: neither CT nor MR"
    photometric = text_of(data.get("PhotometricInterpretation", ""))
    if (whole(data.get("SamplesPerPixel", None)) or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        return f"colour: {photometric or 'no photometric interpretation'}"
    if whole(data.get("BitsAllocated", None)) == 1:
        return "1-bit image: an overlay or segmentation"
    values = {item.strip().upper() for item in image_type.split("\\")}
    if values & {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}:
        return "localiser"
    told = _LOCALISER.search(text_of(data.get("SeriesDescription", "")))
    if told and "AXIAL" not in values:
        return f"localiser: described as {told.group().lower()}"
    for word, kinds in (*_KINDS.items(), *_KINDS_OF[modality].items()):
        if found := sorted(values & kinds):
            return f"{word}: {found[0]}"
    component = text_of(data.get("ComplexImageComponent", "")).upper()
    if component in ("PHASE", "REAL", "IMAGINARY"):
        return f"derived map: ComplexImageComponent {component}"
    captured = str(data.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
    rescaled = data.get("RescaleIntercept", None) not in (None, "") or data.get("ModalityLUTSequence", None)
    # Some archives rewrite slices as secondary captures; those keep their place in the patient and their rescale.
    if captured and (normal is None or (modality == "CT" and not rescaled)):
        return "secondary capture: no position in the patient or no rescale"
    if normal is not None and abs(normal[2]) < _NOT_AXIAL:
        return f"not axial: {'sagittal' if abs(normal[0]) > abs(normal[1]) else 'coronal'}"
    if spacing is not None and max(spacing) > STRETCHED * min(spacing):
        return f"not axial: pixels of {spacing[0]:g} x {spacing[1]:g} mm"
    return ""


def _time(data: Any, frame: int, plain: str, group: str, keyword: str) -> float:
    """A time of an MR acquisition, ms; scanners without inversion pulse may write 0, which is none."""
    inner = functional_group(data, frame, group)
    return first_number(data.get(plain) if inner is None else inner.get(keyword), positive=True)
