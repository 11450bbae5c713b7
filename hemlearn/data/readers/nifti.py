"""NIfTI volumes as stacks of axial slices, seen as on a radiological screen.

The header says how voxels lie in the patient (sform, else qform; NIfTI-1 standard, "method 2" and "method 3").
The nearest anatomical axes are taken: no voxel is interpolated. Frame 0 is the lowest slice; rows run from anterior
to posterior and columns from the patient's right to left, as in an axial DICOM slice.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemlearn.data.readers import FileFacts, SliceFile, VolumeCache
from hemlearn.data.readers.headers import Header
from hemlearn.data.readers.image import MIN_SIDE
from hemlearn.util.errors import DataError, count

MAX_TILT = 35.0  # degrees; a CT gantry tilts by 30 at most, and an axial slice is no longer axial far beyond
_STRETCHED = 3.0  # row spacing over column spacing, beyond which an axial cut is a reformat of other slices
MAX_BYTES = 4 << 30  # of voxels as float32; more is a damaged header, not a head
_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_BROKEN = (
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
    """

    shape: tuple[int, int, int]
    pixel_mm: tuple[float, float]
    spacing_mm: float
    z_mm: float
    normal: tuple[float, float, float]
    tilt_deg: float
    orientation: NDArray[np.float64]
    description: str

    def frame_of(self, index: int) -> int:
        """Return the frame of a slice that is counted along the array's own slice axis, as label tables often do."""
        axis = int(np.flatnonzero(self.orientation[:, 0] == 2)[0])
        return index if self.orientation[axis, 1] > 0 else self.shape[0] - 1 - index


@dataclass(frozen=True)
class _Volume:
    """(slices, rows, columns) voxels; slices that hold NaN or infinity by their number."""

    voxels: NDArray[Any]
    undefined: dict[int, int]


_VOLUMES: dict[bool, VolumeCache[_Volume]] = {signal: VolumeCache() for signal in (False, True)}


def read_nifti(path: Path, frame: int, modality: str = "") -> NDArray[np.int16]:
    """Read one axial slice.

    Scaling (scl_slope, scl_inter) is applied and values are rounded. Signal has no unit, so an MR volume whose
    values do not fit 16 bits, or would lose its grey levels by rounding, is scaled as a whole to 20,000 at most.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        frame: Slice number, 0 the lowest.
        modality: CT: the values are HU; MR or OT: signal; "": CT.

    Returns:
        (H, W): rows anterior to posterior, columns right to left; HU or signal.

    Raises:
        DataError: No or truncated or damaged NIfTI, no orientation, an axis more than 35 degrees from the anatomical
            one, more than three dimensions, colour or complex numbers, no such frame, NaN or infinity in the slice,
            values that int16 cannot hold, a CT volume of one value or scaled to [0, 1].
    """
    signal = modality in ("MR", "OT")
    return _slice(path, _VOLUMES[signal].get(path, lambda file: _load(file, signal)), frame)


class NiftiFile(SliceFile):
    """A NIfTI file, opened once; what its bytes do not yield is asked of the path, which tells what is wrong."""

    @cached_property
    def _inside(self) -> Any:
        return None if self.raw is None else _from_bytes(self.path, self.raw)

    @cached_property
    def _image(self) -> Any:
        return _open(self.path) if self._inside is None else self._inside

    @cached_property
    def _geometry(self) -> NiftiGeometry:
        return _geometry(self.path, self._image)

    @cached_property
    def _volumes(self) -> dict[bool, _Volume]:
        return {}

    def headers(self, name: str) -> list[Header]:
        """One item per slice."""
        found = self._geometry
        slices, rows, columns = found.shape
        ratio = max(found.pixel_mm) / min(found.pixel_mm)
        apart = f"voxels of {found.pixel_mm[0]:.2f} x {found.pixel_mm[1]:.2f} mm in the axial plane"
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
                plane=found.frame_of(frame),
                description=found.description,
                set_aside="" if ratio <= _STRETCHED else f"not axial: {apart}",
            )
            for frame in range(slices)
        ]

    def facts(self) -> FileFacts:
        """What the header says."""
        found = self._geometry
        encoding = f"NIfTI {self._image.get_data_dtype()}"
        return FileFacts(encoding, "", "", found.spacing_mm, found.pixel_mm[0], found.tilt_deg)

    def decode(self, frame: int, modality: str) -> NDArray[np.int16]:
        """One slice (H, W), HU or signal."""
        if self.raw is None:
            return read_nifti(self.path, frame, modality)
        signal = modality in ("MR", "OT")
        if signal not in self._volumes:
            try:
                inside = self._inside
                volume = None if inside is None else _volume(self.path, inside, self._geometry, signal)
            except _BROKEN:
                volume = None
            self._volumes[signal] = _load(self.path, signal)[0] if volume is None else volume
        return _slice(self.path, self._volumes[signal], frame)


def _from_bytes(path: Path, raw: bytes) -> Any:
    """The image in a file's bytes, decompressed to the end, where its checksum stands; None where there is none."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(BytesIO(raw)) if packed else BytesIO(raw) as file:
            head = file.read(540)
            kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
            kind = next((kind for kind in kinds if kind.header_class.may_contain_header(head)), None)
            if kind is None:
                return None
            header = kind.header_class(head[: kind.header_class.template_dtype.itemsize])
            voxels = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
            if voxels > 2 * MAX_BYTES:
                return None
            whole = raw
            if packed:
                whole = head + file.read(int(header.get_data_offset()) + voxels - len(head))
                while file.read(1 << 20):
                    pass
        return kind.from_bytes(whole)
    except (*_BROKEN, ImageFileError, HeaderDataError):
        return None


def _slice(path: Path, volume: _Volume, frame: int) -> NDArray[np.int16]:
    if not 0 <= frame < len(volume.voxels):
        raise DataError(
            f"{path}: no frame {frame}: the volume holds {len(volume.voxels)} axial slices",
            remedy="correct the frame in the table",
        )
    if frame in volume.undefined:
        bad = int(volume.undefined[frame])
        raise DataError(
            f"{path}: {count(bad, 'voxel')} of slice {frame} {'is' if bad == 1 else 'are'} NaN or infinite",
            remedy="find out what they stand for and replace them: air is -1000 HU in CT and 0 in MR",
        )
    return np.array(volume.voxels[frame], dtype=np.int16)


def read_geometry(path: Path) -> NiftiGeometry:
    """Read how a volume lies, from its header alone.

    Raises:
        DataError: See :func:`read_nifti`.
    """
    return _geometry(path, _open(path))


def _open(path: Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        return nibabel.load(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: cannot be opened: no such file", remedy="check the path") from error
    except (*_BROKEN, ImageFileError, HeaderDataError) as error:
        raise DataError(
            f"{path}: not a NIfTI file, or a damaged one: {_words(error)}", remedy="copy or export the volume again"
        ) from error


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _geometry(path: Path, image: Any) -> NiftiGeometry:
    import nibabel

    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a kind of it
        raise DataError(f"{path}: {type(image).__name__}, not NIfTI", remedy="save it as .nii or .nii.gz")
    sizes = tuple(int(size) for size in image.shape)
    if len(sizes) < 2 or any(size != 1 for size in sizes[3:]):
        raise DataError(
            f"{path}: {len(sizes)}D volume of {' x '.join(map(str, sizes))}: only one 3D volume is read",
            remedy="save each time point or channel as a volume of its own",
        )
    sizes = (*sizes[:3], 1)[:3]
    if min(sizes) < 1 or math.prod(sizes) * 4 > MAX_BYTES:
        raise DataError(
            f"{path}: impossible size {' x '.join(map(str, sizes))}: a damaged header",
            remedy="copy or export the volume again",
        )
    if image.get_data_dtype().kind not in "iufb":
        raise DataError(
            f"{path}: voxels of type {image.get_data_dtype()}: colour or complex, not grey",
            remedy="give the grey volume",
        )
    if int(image.header["sform_code"]) <= 0 and int(image.header["qform_code"]) <= 0:
        raise DataError(
            f"{path}: no orientation: sform_code and qform_code are 0, so left, right, top and bottom are unknown",
            remedy="convert it again from DICOM, or set its sform once you know how it lies",
        )
    affine = np.asarray(image.affine, dtype=np.float64)[:3] * _MM.get(image.header.get_xyzt_units()[0], 1.0)
    matrix = affine[:, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or (lengths <= 0).any() or abs(np.linalg.det(matrix / lengths)) < 0.1:
        raise DataError(
            f"{path}: its orientation is no orientation: {matrix.round(3).tolist()}",
            remedy="convert it again from DICOM",
        )
    orientation = np.asarray(nibabel.orientations.io_orientation(image.affine), dtype=np.float64)
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
    # DICOM's axes are left, posterior, superior: the first two turn round.
    flip = np.array([-1.0, -1.0, 1.0])
    corner = affine[:, 3] + sum(
        matrix[:, axis] * (0 if sign > 0 else sizes[axis] - 1) for axis, sign in zip(axes, signs, strict=True)
    )
    spacing = float(normal @ (matrix[:, axes[2]] * signs[2]))
    lps = normal * flip
    tilt = math.copysign(float(np.degrees(np.arccos(np.clip(normal[2], -1, 1)))), float(lps[1]))
    text = bytes(image.header["descrip"].tobytes()).split(b"\0")[0].decode("latin-1").strip()
    return NiftiGeometry(
        (sizes[axes[2]], sizes[axes[1]], sizes[axes[0]]),
        (float(lengths[axes[1]]), float(lengths[axes[0]])),
        spacing,
        float(normal @ corner),
        (float(lps[0]), float(lps[1]), float(lps[2])),
        tilt,
        orientation,
        text,
    )


def _load(path: Path, signal: bool) -> tuple[_Volume, int]:
    image = _open(path)
    geometry = _geometry(path, image)
    try:
        volume = _volume(path, _whole_file(path, image), geometry, signal)
    except _BROKEN as error:
        raise DataError(
            f"{path}: truncated or damaged voxels: {_words(error)}", remedy="copy or export the volume again"
        ) from error
    return volume, volume.voxels.nbytes


def _volume(path: Path, image: Any, geometry: NiftiGeometry, signal: bool) -> _Volume:
    from nibabel.orientations import apply_orientation

    if min(geometry.shape[1:]) < MIN_SIDE:
        raise DataError(
            f"{path}: too small: axial slices of {geometry.shape[2]} x {geometry.shape[1]} voxels, at least "
            f"{MIN_SIDE} x {MIN_SIDE} needed",
            remedy="give the volume at its full size",
        )
    voxels = np.asanyarray(image.dataobj)
    voxels = apply_orientation(voxels.reshape((*image.shape[:3], 1)[:3]), geometry.orientation)
    # Right-anterior-superior becomes slices from below, rows from anterior, columns from the patient's right.
    voxels = voxels[::-1, ::-1].transpose(2, 1, 0)
    undefined: dict[int, int] = {}
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels)
        bad = np.count_nonzero(~finite, axis=(1, 2))
        undefined = {int(item): int(bad[item]) for item in np.flatnonzero(bad)}
        if undefined:
            voxels = np.where(finite, voxels, 0)
    return _Volume(np.ascontiguousarray(_whole(path, voxels, signal), dtype=np.int16), undefined)


def _whole_file(path: Path, image: Any) -> Any:
    """Return the volume with its compressed file read to the end, where its checksum stands."""
    if path.suffix.lower() != ".gz":
        return image
    size = int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize
    with gzip.open(path) as file:
        raw = file.read(size)
        while file.read(1 << 20):  # extensions after the voxels; nothing in most files
            pass
    return type(image).from_bytes(raw)


def _whole(path: Path, voxels: NDArray[Any], signal: bool) -> NDArray[Any]:
    """Return the volume as whole numbers that int16 holds."""
    low, high = float(voxels.min()), float(voxels.max())
    limits = np.iinfo(np.int16)
    fits = low >= limits.min and high <= limits.max
    coarse = voxels.dtype.kind == "f" and high - low < 256 and not np.array_equal(voxels, np.rint(voxels))
    if signal:
        if low == high and low != 0:
            raise DataError(f"{path}: blank: every voxel is {low:g}", remedy="export the volume again")
        if not fits or coarse:
            voxels = voxels * (20_000.0 / max(abs(low), abs(high)))
    elif not fits:
        raise DataError(
            f"{path}: values from {low:g} to {high:g} are no HU: they do not fit 16 bits",
            remedy="check its scl_slope and scl_inter, or give the volume in HU",
        )
    elif low == high and low > -900:
        raise DataError(f"{path}: blank: every voxel is {low:g} HU", remedy="export the volume again")
    elif coarse and low >= -1 and high <= 1:
        raise DataError(
            f"{path}: values from {low:g} to {high:g} are no HU: the volume was scaled",
            remedy="give the volume in HU, before any normalisation",
        )
    return np.rint(voxels) if voxels.dtype.kind == "f" else voxels
