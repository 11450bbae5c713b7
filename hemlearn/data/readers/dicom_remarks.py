"""What a reader should know of a DICOM slice that is used nevertheless, and how it is stored."""

from __future__ import annotations

import math
import re
from typing import Any

from hemlearn.data.readers.aspect import square_spacing
from hemlearn.data.readers.dicom_file import functional_group, number_of_frames, syntax
from hemlearn.data.readers.dicom_values import Scale, text_of, whole

_SLOPE = 0.01  # a CT slope that is off by less is 1
# BodyPartExamined of what lies elsewhere, in the words of PS3.16 annex L and of technicians.
_ELSEWHERE = re.compile(
    r"([CTLS]{1,2}[ -]?)?SPINE|NECK|CHEST|THORAX|LUNG|HEART|BREAST|ABDOMEN\w*|LIVER|KIDNEY|PELVIS|HIP|KNEE|LEG"
    r"|FOOT|ANKLE|SHOULDER|ARM|ELBOW|WRIST|HAND|EXTREMITY|WHOLEBODY",
    re.I,
)
_NO_AGENT = ("", "NO", "NONE", "N", "0", "N/A", "WITHOUT")
_CLASSES = {"2": "CT", "4": "MR", "20": "NM", "128": "PT"}  # the storage class after its stem, its modality
_LOSSY = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81))  # JPEG, JPEG-LS; JPEG 2000 may be either
_STEM = "1.2.840.10008.5.1.4.1.1."
NO_AIR = -100  # HU; unsigned pixels with an intercept above this hold no air
_OTHER_SIZES = ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
REMARKED = (  # elements that are read for their sake alone
    "BodyPartExamined",
    "BurnedInAnnotation",
    "ContrastBolusAgent",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    *_OTHER_SIZES,
)


def storage_of(data: Any, modality: str, turn: tuple[bool, bool, bool], scale: Scale) -> str:
    """Bits, sign, inverted grey and a turned orientation; for CT slope and intercept, which differ among MR slices."""
    stored, signed = whole(data.get("BitsStored", None)), whole(data.get("PixelRepresentation", None))
    text = f"{'?' if stored is None else stored} bits {'signed' if signed else 'unsigned'}"
    transposed, up, leftward = turn
    if transposed or up or leftward:  # as PatientOrientation (0020,0020) tells it
        sides = ["R" if leftward else "L", "A" if up else "P"]
        text += f", orientation {'/'.join(reversed(sides) if transposed else sides)}"
    if text_of(data.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        text += ", MONOCHROME1"
    if modality != "CT" or data.get("ModalityLUTSequence", None):
        return text
    slope, intercept = scale
    return (
        f"{text}, slope {1.0 if slope is None else slope:g}, intercept {math.nan if intercept is None else intercept:g}"
    )


def remarks_of(
    data: Any,
    frame: int,
    modality: str,
    image_type: str,
    oriented: bool,
    spacing: tuple[float, float] | None,
    scale: Scale,
) -> list[str]:
    """What a reader should know of a slice that is used nevertheless."""
    found = []
    if not oriented:
        found.append("no ImageOrientationPatient (0020,0037): taken for axial, its sides as stored")
    measures = functional_group(data, frame, "PixelMeasuresSequence") or data
    given = measures.get("PixelSpacing", None)
    if given not in (None, "") and spacing is None:
        found.append(f"PixelSpacing {text_of(given)} is no size: taken for square pixels of unknown size")
    elif spacing is not None and square_spacing(spacing) != spacing:
        found.append(f"oblong pixels of {spacing[0]:g} x {spacing[1]:g} mm, resampled to square ones")
    found += _of_file(data, modality, sized=given not in (None, ""))
    number = data.get("InstanceNumber", None)
    if number not in (None, "") and whole(number) is None:
        found.append("InstanceNumber (0020,0013) is no number of 32 bits: taken for absent")
    if text_of(data.get("BurnedInAnnotation", "")).upper() == "YES":
        found.append("BurnedInAnnotation (0028,0301) YES: text in it may name the patient or give the label away")
    kinds = [item.strip().upper() for item in image_type.split("\\")][:2]
    if "DERIVED" in kinds or "SECONDARY" in kinds:
        found.append(f"ImageType {'/'.join(kinds)}: not as it was acquired".replace(";", ","))
    slope, intercept = scale
    if modality == "CT" and not data.get("ModalityLUTSequence", None) and intercept is not None:
        if slope is not None and abs(slope - 1) > _SLOPE:
            found.append(f"RescaleSlope {slope:g}, CT scanners write 1")
        source = functional_group(data, frame, "PixelValueTransformationSequence") or data
        if text_of(source.get("RescaleType", "")).upper() == "US":
            found.append("RescaleType (0028,1054) US, unspecified: taken for HU")
        unsigned = not whole(data.get("PixelRepresentation", None))
        if unsigned and intercept > NO_AIR and (slope is None or slope > 0):
            wrapped = whole(data.get("BitsStored", None)) == 12
            taken = "taken for RSNA's, wrapped at 4096" if wrapped else "no air, all of it 0 HU or above"
            found.append(f"unsigned pixels with RescaleIntercept {intercept:g}: {taken}, perhaps HU + 1024")
    return found


def _of_file(data: Any, modality: str, *, sized: bool) -> list[str]:
    """What the elements say that stand once in a file."""
    found = []
    if not sized:
        others = [
            f"{name} {text_of(data.get(name))}" for name in _OTHER_SIZES if data.get(name, None) not in (None, "")
        ]
        if others:
            found.append(
                f"no PixelSpacing (0028,0030) beside {', '.join(others)}: taken for square pixels of unknown size"
            )
    told = _CLASSES.get(text_of(data.get("SOPClassUID", "")).removeprefix(_STEM).split(".")[0], modality)
    if told != modality:
        found.append(f"SOPClassUID (0008,0016) is that of {told} images, Modality (0008,0060) says {modality}")
    part = text_of(data.get("BodyPartExamined", ""))
    if _ELSEWHERE.fullmatch(part):
        found.append(f"BodyPartExamined (0018,0015) {part}: not the head")
    agent = text_of(data.get("ContrastBolusAgent", ""))
    if agent.upper() not in _NO_AGENT:
        found.append(f"ContrastBolusAgent (0018,0010) {agent}: contrast medium was given")
    if text_of(data.get("LossyImageCompression", "")) == "01" or str(syntax(data)) in _LOSSY:
        ratio = text_of(data.get("LossyImageCompressionRatio", ""))
        found.append(f"lossy compression (0028,2110){ratio and f', {ratio} to 1'}: details may be lost")
    groups = data.get("PerFrameFunctionalGroupsSequence", None)
    if groups is not None and len(groups) != (frames := number_of_frames(data)):
        found.append(f"{len(groups)} items in PerFrameFunctionalGroupsSequence (5200,9230), {frames} frames")
    return [item.replace(";", ",") for item in found]
