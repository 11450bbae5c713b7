"""What the headers of DICOM and NIfTI files say: ids, position, spacing, kind of image; no pixels are decoded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.readers import reader_for
from hemlearn.data.readers.dicom_file import BROKEN, describe, functional_group, number_of_frames, open_dicom
from hemlearn.util.console import run_parallel, track
from hemlearn.util.errors import DataError
from hemlearn.util.files import kept_file, load_kept, save_kept

# --- One slice as the header of its file describes it.


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


# --- What the header of a DICOM file says of each of its slices, and whether they are axial CT or MR slices at all.


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


VERSION = 1  # raised whenever the same file would give another row
_CHUNK = 128  # files per task
_MANY = 1500  # files from which worker processes pay for their start
_STRETCHED = 3.0  # row spacing over column spacing, beyond which an axial cut is a reformat of other slices
_KEY = ["path", "size", "mtime_ns", "reader"]
_VECTORS = {"normal": 3, "pixel_mm": 2}


def read_header(path: Path, name: str = "") -> list[Header]:
    """Read the header of one file.

    Args:
        path: A DICOM or NIfTI file.
        name: What ``Header.path`` shall say; "": the path.

    Returns:
        One item per frame, in the file's order; of a NIfTI volume per axial slice from below.

    Raises:
        DataError: The file cannot be read, or is of another kind.
    """
    reader = reader_for(path)
    if reader.name == "nifti":
        return _nifti(path, name or str(path))
    if reader.name != "dicom":
        raise DataError(f"{path}: an image file without a header", remedy="give DICOM or NIfTI files")
    from hemlearn.data.readers.headers import dicom_headers

    return dicom_headers(path, name or str(path))


def _nifti(path: Path, name: str) -> list[Header]:
    from hemlearn.data.readers.nifti import read_geometry

    found = read_geometry(path)
    slices, rows, columns = found.shape
    ratio = max(found.pixel_mm) / min(found.pixel_mm)
    why = (
        ""
        if ratio <= _STRETCHED
        else (f"not axial: voxels of {found.pixel_mm[0]:.2f} x {found.pixel_mm[1]:.2f} mm in the axial plane")
    )
    return [
        Header(
            name,
            frame,
            series_id=name,
            z_mm=found.z_mm + frame * found.spacing_mm,
            normal=found.normal,
            instance_number=frame + 1,
            pixel_mm=found.pixel_mm,
            thickness_mm=found.spacing_mm,
            tilt_deg=found.tilt_deg,
            rows=rows,
            columns=columns,
            description=found.description,
            set_aside=why,
        )
        for frame in range(slices)
    ]


def read_headers(
    paths: Sequence[str],
    root: Path,
    *,
    n_jobs: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Read the headers of many files, in parallel.

    Args:
        paths: Files, POSIX paths relative to ``root``.
        root: Folder of the data set.
        n_jobs: Workers; None: all cores.
        cache_dir: Where headers are kept by path, size, modification time and reader version; None: nowhere.
        progress: Show progress.

    Returns:
        One row per slice, files in the given order: the columns of :class:`Header`, and reason ("" or why the file
        cannot be read at all; such a file has one row).
    """
    out, flat = _stat(paths, root), _flat_columns()
    cache = None if cache_dir is None else kept_file(cache_dir, "headers", root, VERSION)
    known = load_kept(cache, [*_KEY, *flat[1:]])
    readable = out.loc[out["reason"] == "", [*_KEY, "order"]]
    hits = readable.iloc[:0] if known is None else readable.merge(known, on=_KEY, how="inner")
    todo = readable.loc[~readable["order"].isin(hits["order"])]
    names, orders = todo["path"].tolist(), todo["order"].tolist()
    tasks = [(root, names[at : at + _CHUNK], orders[at : at + _CHUNK]) for at in range(0, len(names), _CHUNK)]
    results = run_parallel(_read_files, tasks, n_jobs=n_jobs, processes=len(names) > _MANY)
    length: Callable[[Any], int] = lambda part: part[1]  # noqa: E731
    rows: list[tuple[Any, ...]] = []
    for part, _ in track(results, "Reading headers", len(names), size=length, show=progress and len(names) > 0):
        rows += part
    fresh = pd.DataFrame(rows, columns=["order", "reason", *flat])
    lost = out.loc[out["reason"] != "", ["path", "order", "reason"]]
    lost = lost.merge(pd.DataFrame([_flat(Header(name)) for name in lost["path"].unique()], columns=flat), on="path")
    parts = [part for part in (hits.assign(reason=""), fresh, lost) if len(part)]
    if cache is not None and len(fresh):
        good = fresh.loc[fresh["reason"] == "", ["order", *flat]].merge(out[["order", *_KEY[1:]]], on="order")
        keep = good if known is None else pd.concat([good, known])
        save_kept(cache, keep.drop_duplicates(["path", "frame"])[[*_KEY, *flat[1:]]])
    table = pd.concat(parts, ignore_index=True) if parts else fresh
    return _unflatten(table.sort_values(["order", "frame"], kind="stable").reset_index(drop=True))


def _stat(paths: Sequence[str], root: Path) -> pd.DataFrame:
    base, rows = os.fspath(root), []
    for order, path in enumerate(paths):
        size, mtime, key, reason = 0, 0, "", ""
        try:
            info = os.stat(os.path.join(base, path))  # noqa: PTH116, PTH118 - hundreds of thousands of files
            size, mtime, key = info.st_size, info.st_mtime_ns, reader_for(path).key
        except OSError as error:
            reason = f"cannot be opened: {error.strerror or error}"
        except DataError as error:
            reason = error.problem.removeprefix(f"{path}: ")
        rows.append((order, path, size, mtime, key, reason))
    return pd.DataFrame(rows, columns=["order", *_KEY, "reason"])


def _read_files(root: Path, names: Sequence[str], orders: Sequence[int]) -> tuple[list[tuple[Any, ...]], int]:
    """Return flat rows of some files, and the number of files; runs in a worker."""
    rows: list[tuple[Any, ...]] = []
    for name, order in zip(names, orders, strict=True):
        path = root / name
        try:
            rows += [(order, "", *_flat(header)) for header in read_header(path, name)]
        except DataError as error:
            rows.append((order, error.problem.removeprefix(f"{path}: "), *_flat(Header(name))))
    return rows, len(names)


def _flat_columns() -> list[str]:
    """Columns with one number or text each, as a Parquet file keeps them."""
    return [f"{name}_{axis}" if name in _VECTORS else name for name in COLUMNS for axis in range(_VECTORS.get(name, 1))]


def _flat(header: Header) -> tuple[Any, ...]:
    row: list[Any] = []
    for name in COLUMNS:
        value = getattr(header, name)
        if name in _VECTORS:
            row += [_NAN] * _VECTORS[name] if value is None else list(value)
        else:
            row.append(_NAN if name == "instance_number" and value is None else value)
    return tuple(row)


def _unflatten(table: pd.DataFrame) -> pd.DataFrame:
    whole = {"frame": np.int64, "rows": np.int64, "columns": np.int64, "z_mm": float, "thickness_mm": float}
    out: dict[str, Any] = {}
    for name in COLUMNS:
        if name in _VECTORS:
            values = table[[f"{name}_{axis}" for axis in range(_VECTORS[name])]].to_numpy(dtype=np.float64)
            items = [None if np.isnan(row[0]) else tuple(row.tolist()) for row in values]
            out[name] = pd.Series(items, index=table.index, dtype=object)
        elif name == "instance_number":
            out[name] = table[name].astype(float).astype("Int64")
        else:
            out[name] = table[name].astype(whole.get(name, float if name == "tilt_deg" else str))
    return pd.DataFrame(out | {"reason": table["reason"].astype(str)})
