"""One slice as the header of its file describes it."""

from __future__ import annotations

from dataclasses import dataclass, fields

_NAN = float("nan")


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
        tilt_deg: Gantry tilt, DICOM (0018,1120), or where absent the angle between normal and body axis; NaN: unknown.
        rows: Height, pixels.
        columns: Width, pixels.
        image_type: DICOM (0008,0008), values joined by a backslash.
        manufacturer: DICOM (0008,0070).
        kernel: DICOM (0018,1210).
        description: DICOM (0008,103E).
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
    image_type: str = ""
    manufacturer: str = ""
    kernel: str = ""
    description: str = ""
    set_aside: str = ""


COLUMNS = tuple(item.name for item in fields(Header))
