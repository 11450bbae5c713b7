"""The header of a NIfTI volume: how it lies in the patient, its scale, and how much of a file may be unpacked."""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hemlearn.data.readers.headers import LEFT_RIGHT
from hemlearn.util.errors import DataError, printable

logging.getLogger("nibabel").setLevel(logging.CRITICAL)  # its remarks name no file; ours do
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
MAX_TILT = 35.0  # degrees; a CT gantry tilts by 30 at most, and an axial slice is no longer axial far beyond
MAX_VOXELS = 1 << 28  # 1024 slices of 512 x 512; more is a damaged header, not a head
SPARE = 64 << 20  # bytes of extensions before the voxels, and of whatever follows them
MAX_RATIO = 200  # unpacked to packed bytes; heads reach 10, a volume of one value 1000
FREE = 256 << 20  # bytes up to which a volume may be packed to any ratio
_PIXEL_MM = (0.05, 20.0)  # a head is imaged with neither smaller nor larger pixels,
_SLICE_MM = (0.05, 60.0)  # nor with slices closer or farther apart
_SAME_DEG = 1.0  # directions that differ by less are one
_SAME_SIZE = 1.05  # the same of voxel sizes
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, metre, mm, micrometre
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class NiftiGeometry:
    """How a volume lies.

    Args:
        shape: Slices, rows, columns as they are read.
        pixel_mm: Row and column spacing, mm.
        spacing_mm: Distance of two slices along the slice normal, mm.
        z_mm: Position of frame 0 along the normal, mm; frame i lies at ``z_mm + i * spacing_mm``.
        normal: Slice normal in DICOM's patient axes (left, posterior, superior), towards the head's top.
        tilt_deg: Angle between the normal and the body axis, signed as DICOM (0018,1120) is for a head-first supine
            patient.
        orientation: nibabel's orientation array: for each array axis its anatomical axis and direction.
        description: The header's own text.
        remark: What is odd about the header, and what was done; "" where nothing is.
    """

    shape: tuple[int, int, int]
    pixel_mm: tuple[float, float]
    spacing_mm: float
    z_mm: float
    normal: tuple[float, float, float]
    tilt_deg: float
    orientation: NDArray[np.float64]
    description: str
    remark: str

    def frame_of(self, index: int) -> int:
        """Return the frame of a slice that is counted along the array's own slice axis, as label tables often do."""
        axis = int(np.flatnonzero(self.orientation[:, 0] == 2)[0])
        return index if self.orientation[axis, 1] > 0 else self.shape[0] - 1 - index


def open_nifti(path: Path, raw: bytes | None = None, *, voxels: bool = True) -> Any:
    """Open a volume; no more is unpacked than its header says, and a compressed file's checksum is compared.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        raw: The file's bytes where they are read already.
        voxels: False reads the header alone.

    Returns:
        nibabel's image.

    Raises:
        DataError: No or truncated or damaged NIfTI, impossible sizes, a compressed file that unpacks to much more than
            its header says, a scale that is none.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    try:
        with _unpacked(path, raw) as (file, size):
            head = file.read(540)
            kind = next((kind for kind in kinds if kind.header_class.may_contain_header(head)), None)
            if kind is None:
                raise ValueError(f"no NIfTI header (first bytes {head[:8]!r})" if head else "empty file: 0 bytes")
            header = kind.header_class(head[: kind.header_class.template_dtype.itemsize])
            size_told, size_real = head[:4], kind.header_class.template_dtype.itemsize  # nibabel mends sizeof_hdr
            if size_real not in (int.from_bytes(size_told, "little"), int.from_bytes(size_told, "big")):
                raise ValueError(f"its header does not say that it has {size_real} bytes (sizeof_hdr)")
            offset = int(header.get_data_offset())
            if not size_real <= offset <= SPARE:
                raise ValueError(f"vox_offset {offset}: no place behind the header")
            _check_scale(path, header)
            needed = _check_sizes(path, header) if voxels else 0
            if needed > max(FREE, MAX_RATIO * size):
                raise _bomb(path, f"{size} bytes would unpack to {needed}, more than {MAX_RATIO} to 1")
            whole = head + file.read(offset + needed - len(head)) if offset + needed > len(head) else head
            if voxels and isinstance(file, gzip.GzipFile):
                _to_the_end(path, file, offset + needed)
        return kind.from_bytes(whole)
    except FileNotFoundError as error:
        raise DataError(f"{path}: cannot be opened: no such file", remedy="check the path") from error
    except (*BROKEN, ImageFileError, HeaderDataError) as error:
        raise DataError(
            f"{path}: not a NIfTI file, or a truncated or damaged one: {words(error)}",
            remedy="copy or export the volume again",
        ) from error


@contextmanager
def _unpacked(path: Path, raw: bytes | None) -> Iterator[tuple[BinaryIO | gzip.GzipFile, int]]:
    """The file's content as a stream, and the number of its bytes as they lie on disk."""
    size = path.stat().st_size if raw is None else len(raw)
    with path.open("rb") if raw is None else BytesIO(raw) as packed:
        compressed = packed.read(2) == b"\x1f\x8b"  # not every .nii.gz is, and some .nii are
        packed.seek(0)
        if not compressed:
            yield packed, size
            return
        with gzip.GzipFile(fileobj=packed) as file:
            yield file, size


def _to_the_end(path: Path, file: gzip.GzipFile, told: int) -> None:
    """Read a compressed file to its end, where the checksum stands."""
    rest = 0
    while part := file.read(1 << 20):
        rest += len(part)
        if rest > SPARE:
            raise _bomb(path, f"unpacks to more than {told + SPARE} bytes, its header says {told}")


def _bomb(path: Path, problem: str) -> DataError:
    return DataError(f"{path}: {problem}", remedy="do not trust this file; ask its sender for another")


def words(error: BaseException) -> str:
    """An error's own words in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_sizes(path: Path, header: Any) -> int:
    """The bytes of the voxels; refused where no head has so many."""
    sizes = [int(size) for size in header.get_data_shape()]
    if not sizes or min(sizes) < 1 or math.prod(sizes) > MAX_VOXELS:
        raise DataError(
            f"{path}: impossible size {' x '.join(map(str, sizes))}: a damaged header",
            remedy="copy or export the volume again",
        )
    return math.prod(sizes) * int(header.get_data_dtype().itemsize)


def _check_scale(path: Path, header: Any) -> None:
    """Refuse a scale under which programs, or the standard, do not agree about the values.

    A slope of 0 or NaN means that there is none (NIfTI-1, scl_slope), so that an intercept beside it is applied by some
    programs and not by others.
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        good = intercept == 0 or math.isnan(intercept)
    else:
        good = 0 < slope < math.inf and math.isfinite(intercept)
    if not good:
        raise DataError(
            f"{path}: scl_slope {slope:g} and scl_inter {intercept:g} are no scale",
            remedy="save the volume again with the values that are meant, its scl_slope 1 and scl_inter 0",
        )


def geometry_of(path: Path, image: Any) -> NiftiGeometry:
    """How an open volume lies.

    Raises:
        DataError: See :func:`hemlearn.data.readers.nifti.read_nifti`.
    """
    import nibabel

    header = image.header
    sizes = tuple(int(size) for size in image.shape)
    if len(sizes) < 2 or any(size != 1 for size in sizes[3:]):
        raise DataError(
            f"{path}: {len(sizes)}D volume of {' x '.join(map(str, sizes))}: only one 3D volume is read",
            remedy="save each time point or channel as a volume of its own",
        )
    _check_sizes(path, header)
    sizes = (*sizes[:3], 1)[:3]
    if image.get_data_dtype().kind not in "iufb":
        raise DataError(
            f"{path}: voxels of type {image.get_data_dtype()}: colour or complex, not grey",
            remedy="give the grey volume",
        )
    plain, remarks = _affine(path, header)
    code = int(header["xyzt_units"]) & 7
    if code not in _UNITS_MM:
        remarks.append(f"the unit code {code} of its header is none: lengths are taken for mm")
    affine = plain[:3] * _UNITS_MM.get(code, 1.0)
    matrix = affine[:, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    orientation = np.asarray(nibabel.orientations.io_orientation(plain), dtype=np.float64)
    axes = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]  # array axis of R, A, S
    signs = orientation[axes, 1]
    units = matrix[:, axes] * signs / lengths[axes]  # columns: unit vectors towards R, A, S
    normal = np.cross(units[:, 0], units[:, 1])
    normal /= np.linalg.norm(normal)
    off = np.degrees(np.arccos(np.clip([units[0, 0], units[1, 1], normal[2]], -1, 1)))
    if off.max() > MAX_TILT:
        raise DataError(
            f"{path}: oblique: its axes lie {', '.join(f'{angle:.0f}' for angle in off)} degrees from right, anterior "
            f"and superior; at most {MAX_TILT:g} are read as axial slices",
            remedy="resample the volume to axial slices",
        )
    remarks += _sheared(units)
    # DICOM's axes are left, posterior, superior: the first two turn round.
    flip = np.array([-1.0, -1.0, 1.0])
    corner = affine[:, 3] + sum(
        matrix[:, axis] * (0 if sign > 0 else sizes[axis] - 1) for axis, sign in zip(axes, signs, strict=True)
    )
    spacing = float(normal @ (matrix[:, axes[2]] * signs[2]))
    pixel = (float(lengths[axes[1]]), float(lengths[axes[0]]))
    _check_lengths(path, pixel, spacing, flat=sizes[axes[2]] == 1)
    lps = normal * flip
    tilt = math.copysign(float(np.degrees(np.arccos(np.clip(normal[2], -1, 1)))), float(lps[1]))
    return NiftiGeometry(
        (sizes[axes[2]], sizes[axes[1]], sizes[axes[0]]),
        pixel,
        spacing,
        float(normal @ corner),
        (float(lps[0]), float(lps[1]), float(lps[2])),
        tilt,
        orientation,
        printable(bytes(header["descrip"].tobytes()).split(b"\0")[0].decode("latin-1").strip()),
        "; ".join(remarks),
    )


def _sheared(units: NDArray[np.float64]) -> list[str]:
    """A remark on axes (3, 3, columns towards right, anterior, superior) that do not stand at right angles."""
    angles = 90 - np.degrees(np.arccos(np.clip((units[:, [0, 0, 1]] * units[:, [1, 2, 2]]).sum(axis=0), -1, 1)))
    across, along = abs(float(angles[0])), float(np.abs(angles[1:]).max())
    if across > _SAME_DEG:
        return [f"its rows and columns stand {90 - across:.0f} degrees to each other: shown as squares, distorted"]
    return (
        [f"its slices are shifted against each other by {along:.0f} degrees: taken as they are"]
        if along > _SAME_DEG
        else []
    )


def _check_lengths(path: Path, pixel: tuple[float, float], spacing: float, *, flat: bool) -> None:
    """Refuse voxels that no head is imaged with: their unit is not what the header says."""
    pairs = ((min(pixel), _PIXEL_MM), (max(pixel), _PIXEL_MM), *(() if flat else ((spacing, _SLICE_MM),)))
    if any(not low <= value <= high for value, (low, high) in pairs):
        raise DataError(
            f"{path}: impossible voxels of {pixel[0]:.4g} x {pixel[1]:.4g} x {spacing:.4g} mm: the unit of its header "
            "(xyzt_units) is not that of its lengths",
            remedy="correct xyzt_units, or sform, qform and pixdim, to mm",
        )


def _affine(path: Path, header: Any) -> tuple[NDArray[np.float64], list[str]]:
    """The (4, 4) affine that holds, in the header's unit, and remarks where sform and qform tell two stories.

    The sform holds where there is one, as in nibabel and FSL, but for an identity matrix that was never set: there the
    qform does, as in ITK.
    """
    sform = header.get_sform() if int(header["sform_code"]) > 0 else None
    qform: Any = None
    if int(header["qform_code"]) > 0:
        try:
            qform = header.get_qform()
        except ValueError:
            if sform is None:
                raise _no_orientation(path, "its quaternion is none") from None
    chosen = qform if sform is None else sform
    if chosen is None:
        raise DataError(
            f"{path}: no orientation: sform_code and qform_code are 0, so left, right, top and bottom are unknown",
            remedy="convert it again from DICOM, or set its sform once you know how it lies",
        )
    remarks = []
    if int(header["intent_code"]):
        remarks.append(f"intent_code {int(header['intent_code'])}: statistics, labels or vectors, no plain picture")
    if sform is not None and qform is not None and not _singular(qform):
        if np.array_equal(sform, np.eye(4)) and not np.allclose(qform, sform, atol=1e-4):
            chosen = qform
            remarks.append("its sform is the identity, its qform is not: the qform is used")
        elif not _singular(sform):
            remarks += _compared(path, sform, qform)
    if _singular(chosen):
        raise _no_orientation(path, str(np.asarray(chosen)[:3, :3].round(3).tolist()))
    sizes, told = np.linalg.norm(chosen[:3, :3], axis=0), np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    told = np.where(told > 0, told, sizes)
    if not remarks and (np.maximum(sizes / told, told / sizes) > _SAME_SIZE).any():
        size, given = (" x ".join(f"{value:.4g}" for value in values) for values in (sizes, told))
        remarks.append(f"voxels of {size} by its sform, of {given} by its pixdim: the sform is used")
    return np.asarray(chosen, dtype=np.float64), remarks


def _singular(affine: Any) -> bool:
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or (lengths <= 0).any():
        return True
    return bool(abs(np.linalg.det(matrix / lengths)) < 0.1)


def _no_orientation(path: Path, told: str) -> DataError:
    return DataError(f"{path}: its orientation is no orientation: {told}", remedy="convert it again from DICOM")


def _compared(path: Path, sform: NDArray[Any], qform: NDArray[Any]) -> list[str]:
    """What to remark where the directions of sform and qform differ."""
    from nibabel.orientations import aff2axcodes, io_orientation

    first, second = (matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0) for matrix in (sform, qform))
    angle = float(np.degrees(np.arccos(np.clip((first * second).sum(axis=0), -1, 1))).max())
    if angle < _SAME_DEG:
        return []
    ours, theirs = io_orientation(sform), io_orientation(qform)
    if np.array_equal(ours, theirs):
        return [f"its sform and qform lie {angle:.0f} degrees apart: the sform is used"]
    mirrored = np.where(ours[:, :1] == 0, ours * [1, -1], ours)
    if np.array_equal(mirrored, theirs):
        return [f"{LEFT_RIGHT}: the sform is used"]
    codes = ["".join(aff2axcodes(matrix)) for matrix in (sform, qform)]
    raise DataError(
        f"{path}: its sform says that the axes run towards {codes[0]}, its qform {codes[1]}",
        remedy="convert it again from DICOM, or set both to the one that is right",
    )
