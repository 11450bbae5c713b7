"""One slice as the header of its file, DICOM or NIfTI, describes it: ids, position, spacing, kind of image."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
        pixel_mm: Spacing of rows and of columns as they are read, mm; None: unknown.
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
        sex: DICOM (0010,0040).
        age_years: DICOM (0010,1010) in years; NaN: unknown.
        kernel: DICOM (0018,1210).
        description: DICOM (0008,103E).
        remark: What is odd about a slice that is used, and what was done, joined by semicolons; "" where nothing is.
        set_aside: "" for an axial slice that can be used, else why not.
        frame_id: DICOM (0020,0052): the frame of reference that positions are given in.
        acquisition: DICOM (0020,0012) and the temporal position (0020,0100), as far as they are given.
        storage: How its pixels are stored, alike throughout a series: bits and sign, for CT slope and intercept too.
        personal: Keywords of DICOM elements that tell who a person is, joined by a slash; never their values.
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
    sex: str = ""
    age_years: float = _NAN
    kernel: str = ""
    description: str = ""
    remark: str = ""
    set_aside: str = ""
    frame_id: str = ""
    acquisition: str = ""
    storage: str = ""
    personal: str = ""


COLUMNS = tuple(item.name for item in fields(Header))
