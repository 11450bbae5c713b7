"""DICOM slices as Hounsfield units (CT) or signal (MR); what cannot be read rightly is refused with its reason."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from hemlearn.data.readers import AIR, FileFacts, SliceFile, VolumeCache
from hemlearn.data.readers.aspect import STRETCHED, square_pixels
from hemlearn.data.readers.dicom_file import (
    BROKEN,
    PixelError,
    describe,
    functional_group,
    number_of_frames,
    open_dicom,
    stored_values,
)
from hemlearn.data.readers.dicom_header import TAGS, dicom_facts, dicom_headers, view
from hemlearn.data.readers.dicom_remarks import NO_AIR
from hemlearn.data.readers.dicom_values import pixel_spacing, rescale, slice_orientation
from hemlearn.data.readers.headers import Header
from hemlearn.data.readers.hounsfield import no_hounsfield
from hemlearn.data.readers.image import MAX_PIXELS, MIN_SIDE
from hemlearn.util.errors import DataError, count

_INT16 = np.iinfo(np.int16)
_BLANK_ABOVE = -900  # HU; a slice of one value above this holds no air and no head
_TISSUE = (-200, 3000)  # HU; padding with a value in this range is told from tissue by where it lies
_REMEDY = "export the series again with its rescale; without it the pixels have no unit"
_FILES: VolumeCache[Dataset] = VolumeCache()


def read_dicom(path: Path, frame: int, modality: str = "") -> NDArray[np.int16]:
    """Decode one slice.

    CT: Modality LUT or rescale (DICOM C.11.1) to HU. Slices of 12 bits, unsigned, with an intercept above -100 are
    those of the RSNA 2019 competition whose signed values were stored as unsigned: values + 1000 wrap at 4096 and
    the intercept is -1000. Padding (0028,0120) becomes air, -1000 HU. HU do not depend on MONOCHROME1 (a matter of
    display, C.7.6.3.1.2); only where it would leave the image's edge dense, and inverting the stored values makes
    it air, they had been stored inverted and are put right.

    An axial slice is turned, and mirrored where it is stored so, until its rows run from anterior to posterior and its
    columns from the patient's right to the left (ImageOrientationPatient (0020,0037); the nearest axes, nothing is
    interpolated). One without that element stays as it is stored. Oblong pixels (PixelSpacing (0028,0030)) are
    resampled linearly to square ones of the finer spacing.

    MR: the rescaled signal where a rescale is given; padding becomes 0, MONOCHROME1 is inverted.

    Args:
        path: The file; any transfer syntax, with or without file meta information.
        frame: Index of the frame, 0 in a file of one slice.
        modality: CT or MR: what the table says the file is; "": whatever it says itself.

    Returns:
        (H, W), HU or signal, seen as on a radiological screen.

    Raises:
        DataError: No or truncated or damaged DICOM, a transfer syntax that cannot be decoded, no pixels, more pixels
            than frames, no such frame, colour, fewer than 8 bits, neither CT nor MR or another modality than the
            table's, CT without a rescale or in another unit than HU, a negative slope, values that int16 cannot hold,
            fewer than 8 pixels on a side, or one value in every pixel that is not air.
    """
    return _decode(path, _FILES.get(path, _load), frame, modality)


class DicomFile(SliceFile):
    """A DICOM file, opened once."""

    @cached_property
    def _header(self) -> Dataset:
        # Bytes that are at hand are parsed once for header and pixels; where that fails the header may still be whole.
        if self.raw is not None:
            try:
                if "PixelData" in self._data and "Rows" in self._data:
                    return self._data
            except DataError:
                pass
        return open_dicom(self.path, self.raw, pixels=False, tags=TAGS)

    @cached_property
    def _data(self) -> Dataset:
        return _FILES.get(self.path, _load) if self.raw is None else _load(self.path, self.raw)[0]

    def headers(self, name: str) -> list[Header]:
        """One item per slice."""
        return dicom_headers(self.path, self._header, name)

    def facts(self) -> FileFacts:
        """What the header says."""
        return dicom_facts(self.path, self._header)

    def decode(self, frame: int, modality: str) -> NDArray[np.int16]:
        """One slice (H, W), HU or signal."""
        return _decode(self.path, self._data, frame, modality)


def _decode(path: Path, data: Dataset, frame: int, modality: str) -> NDArray[np.int16]:
    try:
        kind = _check(path, data, frame, modality)
        stored, padding = stored_values(data, frame)
        out = _hounsfield(path, data, frame, stored, padding) if kind == "CT" else _signal(data, frame, stored, padding)
        transposed, up, leftward = view(slice_orientation(data, frame))
        spacing = pixel_spacing(data, frame)
    except PixelError as error:
        raise _refuse(path, str(error), error.remedy) from error
    except BROKEN as error:
        raise _refuse(path, f"damaged DICOM file: {describe(error)}", "copy or export the file again") from error
    low, high = float(out.min()), float(out.max())
    if not (low >= _INT16.min and high <= _INT16.max):
        told = f"values from {low:g} to {high:g} do not fit 16 bits: RescaleSlope, RescaleIntercept or sign are wrong"
        raise _refuse(path, told, "correct these elements, or export the file again")
    if low == high and (low > _BLANK_ABOVE if kind == "CT" else low != 0):
        raise _refuse(path, f"blank: every pixel is {low:g}", "export the slice again, or leave it out")
    if spacing is not None and max(spacing) > STRETCHED * min(spacing):
        raise _refuse(path, f"pixels of {spacing[0]:g} x {spacing[1]:g} mm: no axial slice", "give the axial series")
    whole = np.rint(out).astype(np.int16) if out.dtype.kind == "f" else out.astype(np.int16)
    whole = square_pixels(whole, spacing)
    seen = (whole.T if transposed else whole)[:: -1 if up else 1, :: -1 if leftward else 1]
    return np.ascontiguousarray(seen)


def _load(path: Path, raw: bytes | None = None) -> tuple[Dataset, int]:
    data = open_dicom(path, raw)
    try:
        several = number_of_frames(data) > 1
        return data, len(data.get("PixelData", b"")) if several else 0
    except BROKEN as error:
        raise DataError(
            f"{path}: damaged DICOM file: {describe(error)}", remedy="copy or export the file again"
        ) from error


def _refuse(path: Path, problem: str, remedy: str) -> DataError:
    return DataError(f"{path}: {problem}", remedy=remedy)


def _check(path: Path, data: Dataset, frame: int, wanted: str) -> str:
    """Return CT or MR; raise for what is no such slice."""
    modality = str(data.get("Modality", "") or "").strip().upper()
    if "PixelData" not in data:
        float_pixels = "FloatPixelData" in data or "DoubleFloatPixelData" in data
        told = "float pixels (a parametric map)" if float_pixels else "no pixels"
        raise _refuse(path, f"{told}: modality {modality or 'not given'}", "give CT or MR images")
    if modality not in ("CT", "MR"):
        raise _refuse(
            path, f"modality {modality or 'not given'}: neither CT nor MR", "give CT or MR images, DICOM (0008,0060)"
        )
    if wanted not in ("", modality):
        raise _refuse(path, f"modality {modality}, but the table says {wanted}", "correct the table's modality")
    samples, photometric = int(data.get("SamplesPerPixel", 1)), str(data.get("PhotometricInterpretation", ""))
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise _refuse(
            path,
            f"colour: {photometric or 'no photometric interpretation'}, {count(samples, 'sample')} per pixel",
            "give the original grey slices instead of a screen capture",
        )
    absent = [
        name
        for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
        if data.get(name, None) in (None, "")
    ]
    if absent:
        raise _refuse(path, f"incomplete DICOM file: no {', '.join(absent)}", "export the file again")
    allocated = int(data.BitsAllocated)
    if allocated not in (8, 16, 32) or not 2 <= int(data.BitsStored) <= allocated:
        raise _refuse(
            path,
            f"{data.BitsStored} bits stored of {allocated} allocated: no grey image",
            "give the slices, not an overlay or segmentation",
        )
    if int(data.PixelRepresentation) not in (0, 1):
        raise _refuse(
            path, f"PixelRepresentation {data.PixelRepresentation} is neither 0 nor 1", "export the file again"
        )
    rows, columns, frames = int(data.Rows), int(data.Columns), number_of_frames(data)
    if min(rows, columns) < MIN_SIDE:
        raise _refuse(
            path,
            f"too small: {columns} x {rows} pixels, at least {MIN_SIDE} x {MIN_SIDE} needed",
            "export the slice at its full size",
        )
    if rows * columns > MAX_PIXELS:
        raise _refuse(path, f"impossible size: {columns} x {rows} pixels", "copy or export the file again")
    if not 0 <= frame < frames:
        raise _refuse(path, f"no frame {frame}: the file holds {frames}", "correct the frame in the table")
    return modality


def _rescale(data: Dataset, frame: int) -> tuple[float, float] | None:
    """Slope and intercept of a frame, or None where they are not given.

    Raises:
        PixelError: They are no rescale, or a negative slope; scanners write none, save for pixels that are inverted.
    """
    slope, intercept = rescale(data, frame)
    if intercept is None:
        return None
    slope = 1.0 if slope is None else slope
    inverted = str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1"
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0 or (slope < 0 and not inverted):
        raise PixelError(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} are no rescale", _REMEDY)
    return slope, intercept


def _hounsfield(
    path: Path, data: Dataset, frame: int, stored: NDArray[Any], padding: NDArray[np.bool_] | None
) -> NDArray[Any]:
    if len(data.get("ModalityLUTSequence", None) or ()):
        from pydicom.pixels.processing import apply_modality_lut

        unit = str(data.ModalityLUTSequence[0].get("ModalityLUTType", "") or "")
        if unit not in ("HU", "US", ""):
            raise _refuse(path, f"pixels in {unit}, not HU", "give the CT series itself")
        out = np.asarray(apply_modality_lut(stored, data)).astype(np.float64)
        return _fill(out, padding)
    given = _rescale(data, frame)
    if given is None:
        raise _refuse(path, "CT without RescaleIntercept: its pixels are not in HU", _REMEDY)
    slope, intercept = given
    source = functional_group(data, frame, "PixelValueTransformationSequence") or data
    unit = str(source.get("RescaleType", "") or "")
    if unit.upper() not in ("HU", "US", ""):  # US: unspecified, as written by older scanners
        raise _refuse(path, f"pixels in {unit}, not HU", "give the CT series itself, not a map derived from it")
    signed = bool(int(data.PixelRepresentation))
    bits = int(data.BitsStored)
    airless = not signed and intercept > NO_AIR and slope > 0
    if bits == 12 and airless:
        stored, intercept = (stored.astype(np.int32) + 1000) % 4096, -1000.0
    out = _apply(stored, slope, intercept)
    if airless and (text := no_hounsfield(float(out.min()), float(out.max()), eight_bit=stored.itemsize == 1)):
        raise PixelError(f"no CT in HU: unsigned pixels with RescaleIntercept {given[1]:g}, {text}", _REMEDY)
    if str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1" and not _edge_is_air(out):
        inverted = _apply(_inverted(stored, bits, signed), slope, intercept)
        if _edge_is_air(inverted):
            out = inverted
    return _fill(out, padding)


def _apply(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    if slope == 1 and intercept == int(intercept):
        return np.asarray(stored.astype(np.int64 if stored.itemsize > 2 else np.int32) + int(intercept))
    return np.asarray(stored * slope + intercept, dtype=np.float64)


def _inverted(stored: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    return -1 - stored.astype(np.int64) if signed else (1 << bits) - 1 - stored.astype(np.int64)


def _edge_is_air(hounsfield: NDArray[Any]) -> bool:
    edge = np.concatenate([hounsfield[0], hounsfield[-1], hounsfield[:, 0], hounsfield[:, -1]])
    return bool(np.median(edge) < -500)


def _fill(hounsfield: NDArray[Any], padding: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Set padding to air; a padding value that tissue has too counts only where it touches the image's edge."""
    if padding is None:
        return hounsfield
    value = hounsfield[padding]
    if ((value > _TISSUE[0]) & (value < _TISSUE[1])).any():
        from scipy import ndimage

        labels, _ = ndimage.label(padding)
        edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        padding = np.isin(labels, edge[edge > 0])
    return np.where(padding, np.asarray(AIR["HU"], dtype=hounsfield.dtype), hounsfield)


def _signal(data: Dataset, frame: int, stored: NDArray[Any], padding: NDArray[np.bool_] | None) -> NDArray[Any]:
    given = _rescale(data, frame)
    signed, bits = bool(int(data.PixelRepresentation)), int(data.BitsStored)
    if str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        stored = _inverted(stored, bits, signed)
    slope, intercept = (1.0, 0.0) if given is None else given
    out = _apply(stored, slope, intercept)
    if np.ptp(out) < min(64, np.ptp(stored)):  # e.g. a map of diffusion in mm2/s: rounding would blank it
        told = f"signal from {out.min():g} to {out.max():g} has too few whole levels"
        raise PixelError(told, "give the series with its stored signal, not a map derived from it")
    return out if padding is None else np.where(padding, np.zeros((), dtype=out.dtype), out)
