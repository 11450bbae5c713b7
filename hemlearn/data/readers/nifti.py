"""NIfTI volumes as stacks of axial slices, seen as on a radiological screen.

The header says how voxels lie in the patient (sform, else qform; NIfTI-1 standard, "method 2" and "method 3").
The nearest anatomical axes are taken: no voxel is interpolated. Frame 0 is the lowest slice; rows run from anterior
to posterior and columns from the patient's right to left, as in an axial DICOM slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemlearn.data.readers import FileFacts, SliceFile, VolumeCache
from hemlearn.data.readers.aspect import STRETCHED, oblong, square_pixels, square_shape, square_spacing
from hemlearn.data.readers.headers import Header
from hemlearn.data.readers.hounsfield import AIR_HU, no_hounsfield
from hemlearn.data.readers.image import MIN_SIDE
from hemlearn.data.readers.nifti_header import BROKEN, NiftiGeometry, geometry_of, open_nifti, words
from hemlearn.util.errors import DataError, count


@dataclass(frozen=True)
class _Volume:
    """(slices, rows, columns) voxels; slices that hold NaN or infinity by their number; row and column spacing, mm."""

    voxels: NDArray[Any]
    undefined: dict[int, int]
    pixel_mm: tuple[float, float]


_VOLUMES: dict[bool, VolumeCache[_Volume | DataError]] = {signal: VolumeCache() for signal in (False, True)}


def read_nifti(path: Path, frame: int, modality: str = "", *, labels: bool = False) -> NDArray[np.int16]:
    """Read one axial slice; oblong voxels are resampled to square ones of the finer spacing.

    Scaling (scl_slope, scl_inter) is applied and values are rounded. Signal has no unit, so an MR volume whose
    values do not fit 16 bits, or would lose its grey levels by rounding, is scaled as a whole to 20,000 at most.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        frame: Slice number, 0 the lowest.
        modality: CT: the values are HU; MR or OT: signal; "": CT.
        labels: The values are labels: the nearest is taken where voxels are resampled.

    Returns:
        (H, W): rows anterior to posterior, columns right to left; HU or signal.

    Raises:
        DataError: No or truncated or damaged NIfTI, no orientation, an axis more than 35 degrees from the anatomical
            one, more than three dimensions, colour or complex numbers, no such frame, NaN or infinity in the slice,
            values that int16 cannot hold, a CT volume of one value, scaled to [0, 1], of 8-bit grey levels or without
            air (HU + 1024), a file that unpacks to more than its header says, a scale or voxels that cannot be.
    """
    signal = modality in ("MR", "OT")
    return _slice(path, _VOLUMES[signal].get(path, lambda file: _tried(file, signal)), frame, labels)


class NiftiFile(SliceFile):
    """A NIfTI file, opened once."""

    @cached_property
    def _image(self) -> Any:
        return open_nifti(self.path, self.raw, voxels=False)

    @cached_property
    def _geometry(self) -> NiftiGeometry:
        return geometry_of(self.path, self._image)

    @cached_property
    def _volumes(self) -> dict[bool, _Volume | DataError]:
        return {}

    def headers(self, name: str) -> list[Header]:
        """One item per slice."""
        found = self._geometry
        rows, columns = square_shape(found.shape[1:], found.pixel_mm)
        ratio = max(found.pixel_mm) / min(found.pixel_mm)
        resampled = f"oblong voxels of {found.pixel_mm[0]:g} x {found.pixel_mm[1]:g} mm, resampled to square ones"
        resampled = resampled if oblong(found.pixel_mm) else ""
        apart = f"voxels of {found.pixel_mm[0]:.2f} x {found.pixel_mm[1]:.2f} mm in the axial plane"
        return [
            Header(
                name,
                frame,
                series_id=name,
                z_mm=found.z_mm + frame * found.spacing_mm,
                normal=found.normal,
                instance_number=frame + 1,
                pixel_mm=square_spacing(found.pixel_mm),
                thickness_mm=found.spacing_mm,
                tilt_deg=found.tilt_deg,
                rows=rows,
                columns=columns,
                plane=found.frame_of(frame),
                description=found.description,
                remark="; ".join(filter(None, (found.remark, resampled))),
                set_aside="" if ratio <= STRETCHED else f"not axial: {apart}",
            )
            for frame in range(found.shape[0])
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
            self._volumes[signal] = _tried(self.path, signal, self.raw)[0]
        return _slice(self.path, self._volumes[signal], frame)


def read_geometry(path: Path) -> NiftiGeometry:
    """Read how a volume lies, from its header alone.

    Raises:
        DataError: See :func:`read_nifti`.
    """
    return geometry_of(path, open_nifti(path, voxels=False))


def _slice(path: Path, volume: _Volume | DataError, frame: int, labels: bool = False) -> NDArray[np.int16]:
    if isinstance(volume, DataError):
        raise volume
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
    return square_pixels(np.array(volume.voxels[frame], dtype=np.int16), volume.pixel_mm, nearest=labels)


def _tried(path: Path, signal: bool, raw: bytes | None = None) -> tuple[_Volume | DataError, int]:
    """The volume, or why there is none: a bad one is unpacked once, not for each of its slices."""
    try:
        return _load(path, signal, raw)
    except DataError as error:
        return error, 1


def _load(path: Path, signal: bool, raw: bytes | None = None) -> tuple[_Volume, int]:
    image = open_nifti(path, raw)
    geometry = geometry_of(path, image)
    try:
        volume = _volume(path, image, geometry, signal)
    except BROKEN as error:
        raise DataError(
            f"{path}: truncated or damaged voxels: {words(error)}", remedy="copy or export the volume again"
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
    return _Volume(np.ascontiguousarray(_whole(path, voxels, signal), dtype=np.int16), undefined, geometry.pixel_mm)


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
        raise DataError(
            f"{path}: blank: every voxel is {low:g} HU, one value throughout", remedy="export the volume again"
        )
    elif coarse and low >= -1 and high <= 1:
        raise DataError(
            f"{path}: values from {low:g} to {high:g} are no HU: the volume was scaled",
            remedy="give the volume in HU, before any normalisation",
        )
    elif low > AIR_HU and (text := no_hounsfield(low, high, eight_bit=voxels.dtype.itemsize == 1)):
        raise DataError(
            f"{path}: no CT in HU: values from {low:g} to {high:g}, {text}",
            remedy="give the volume in HU: air -1000, water 0",
        )
    return np.rint(voxels) if voxels.dtype.kind == "f" else voxels
