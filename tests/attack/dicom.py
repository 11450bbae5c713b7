"""DICOM series: headers that disagree, orders, orientations, syntaxes, damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.attack import series
from tests.attack.case import Case, Judge, Trained, refused, same, same_or_told, silent, told
from tests.attack.fuzz import as_others
from tests.attack.series import PIXEL, SIDE, SLICES, SPACING, both_commands, head

ODD = 4  # the slice that differs
ESCAPE = "\x1b[31mred\x1b[0m"


def only(change: Callable[[Dataset], object], at: int = ODD) -> series.Change:
    """The change of one slice."""

    def edit(data: Dataset, i: int) -> None:
        if i == at:
            change(data)

    return edit


def put(**elements: Any) -> Callable[..., None]:
    """Set elements (None: take away), whatever pydicom thinks of the values."""

    def edit(data: Dataset, *_: object) -> None:
        for name, value in elements.items():
            if value is None:
                data.pop(name, None)
            elif isinstance(value, str | list):
                element = pydicom.DataElement(
                    pydicom.datadict.tag_for_keyword(name), _vr(name), None, already_converted=True
                )
                element._value = MultiValue(str, value) if isinstance(value, list) else value
                data[name] = element
            else:
                setattr(data, name, value)

    return edit


def _vr(name: str) -> str:
    return str(pydicom.datadict.dictionary_VR(pydicom.datadict.tag_for_keyword(name)))


def stored(data: Dataset) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns)


def _set(data: Dataset, values: np.ndarray[Any, Any], **elements: Any) -> None:
    data.PixelData = np.ascontiguousarray(values).tobytes()
    for name, value in elements.items():
        setattr(data, name, value)


# --- what must not change the answer ------------------------------------------------------------------------------


def harmless() -> dict[str, Callable[[Path], object]]:
    """Series that say the same in another way."""

    def with_change(change: series.Change) -> Callable[[Path], object]:
        return lambda root: series.dicom(root, change=change)

    def compressed(uid: UID, **options: Any) -> Callable[[Path], object]:
        return with_change(lambda data, i: data.compress(uid, encoding_plugin="", **options))

    def syntax(uid: UID) -> Callable[[Path], object]:
        def change(data: Dataset, i: int) -> None:
            data.file_meta.TransferSyntaxUID = uid
            if uid == ExplicitVRBigEndian:
                data.PixelData = stored(data).astype(">u2").tobytes()

        return with_change(change)

    def turned(turns: int, mirrored: bool, prone: bool = False) -> Callable[[Path], object]:
        return lambda root: in_plane(root, turns, mirrored)

    def signed(data: Dataset, i: int) -> None:
        _set(data, stored(data).astype(np.int32).astype(np.int16) - 1024, PixelRepresentation=1, RescaleIntercept=0,
             BitsStored=16, HighBit=15)  # fmt: skip

    def halved(data: Dataset, i: int) -> None:
        _set(data, stored(data).astype(np.uint16) * 2, RescaleSlope="0.5", BitsStored=13, HighBit=12)

    def nested(data: Dataset, i: int) -> None:
        item = Dataset()
        item.CodeValue = "end"
        for _ in range(60):
            outer = Dataset()
            outer.ReferencedImageSequence = Items([item])
            item = outer
        data.ReferencedImageSequence = Items([item])

    def padded(data: Dataset, i: int) -> None:
        values = stored(data).astype(np.int32).astype(np.int16) - 1024
        values[:2] = -2000
        _set(
            data, values, PixelRepresentation=1, RescaleIntercept=0, BitsStored=16, HighBit=15, PixelPaddingValue=-2000
        )

    def beside(name: str, content: bytes) -> Callable[[Path], object]:
        def make(root: Path) -> None:
            series.dicom(root)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

        return make

    def report(root: Path) -> None:
        first = pydicom.dcmread(series.dicom(root)[0])
        for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
            del first[name]
        first.Modality, first.SeriesInstanceUID = "SR", generate_uid()
        first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.88.33")
        first.save_as(root / "sr.dcm")

    def localizer(root: Path) -> None:
        files = series.dicom(root)
        scout = pydicom.dcmread(files[0])
        scout.SeriesInstanceUID, scout.ImageType = generate_uid(), ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        scout.ImageOrientationPatient, scout.SeriesDescription = [0, 1, 0, 0, 0, -1], "SCOUT"
        scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        scout.save_as(root / "scout.dcm")

    def renamed(root: Path) -> None:
        for place, file in enumerate(series.dicom(root)):
            file.rename(root / f"IM{(place * 7) % SLICES:04d}")

    def nested_folders(root: Path) -> None:
        for place, file in enumerate(series.dicom(root)):
            (root / str(place % 3) / "x y").mkdir(parents=True, exist_ok=True)
            file.rename(root / str(place % 3) / "x y" / file.name.upper())

    return {
        "as exported": lambda root: series.dicom(root),
        "file names against the order": lambda root: series.dicom(root, names="{:03d}.dcm") and _reverse_names(root),
        "no instance numbers": with_change(put(InstanceNumber=None)),
        "instance numbers shuffled": with_change(lambda data, i: setattr(data, "InstanceNumber", (i * 5) % SLICES)),
        "PACS names": renamed,
        "folders in folders": nested_folders,
        "implicit VR": syntax(ImplicitVRLittleEndian),
        "deflated": syntax(DeflatedExplicitVRLittleEndian),
        "big endian": syntax(ExplicitVRBigEndian),
        "RLE": compressed(RLELossless),
        "JPEG 2000 lossless": compressed(JPEG2000Lossless),
        "JPEG-LS": compressed(JPEGLSLossless),
        "signed, intercept 0": with_change(signed),
        "slope a half in all slices": with_change(halved),
        "sequences 60 deep": with_change(nested),
        "padding value": with_change(padded),
        "several windows": lambda root: series.dicom(root, WindowCenter=[40, 500], WindowWidth=[80, 3000]),
        "no windows": lambda root: series.dicom(root, WindowCenter=None, WindowWidth=None),
        "thickness that is wrong": lambda root: series.dicom(root, SliceThickness=1),
        "spacing between slices that is wrong": lambda root: series.dicom(root, SpacingBetweenSlices=-1),
        "slice location against the position": with_change(lambda data, i: setattr(data, "SliceLocation", -i)),
        "Japanese name": lambda root: series.dicom(root, SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎"),
        "no patient name": lambda root: series.dicom(root, PatientName=None),
        "unknown character set": lambda root: series.dicom(root, SpecificCharacterSet="ISO_IR 999", PatientName="x"),
        "text beside": beside("notes.txt", b"no image"),
        "DICOMDIR beside": beside("DICOMDIR", b"\0" * 128 + b"DICM"),
        "hidden file beside": beside(".DS_Store", b"\0\0\0\1Bud1"),
        "thumbnails beside": beside("Thumbs.db", b"\xd0\xcf\x11\xe0"),
        "structured report beside": report,
        "localizer beside": localizer,
        **{
            f"in-plane {turns * 90} degrees{', mirrored' if mirrored else ''}": turned(turns, mirrored)
            for turns in range(4)
            for mirrored in (False, True)
        },
    }


def _reverse_names(root: Path) -> None:
    files = sorted(root.iterdir())
    for file in files:
        file.rename(root / f"x{file.name}")
    for place, file in enumerate(files):
        (root / f"x{file.name}").rename(root / f"{len(files) - place:03d}.dcm")


def in_plane(root: Path, turns: int, mirrored: bool) -> None:
    """The same head with its rows and columns stored otherwise, and the orientation that says so."""
    volume = head()
    row, column = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])  # directions of increasing column and row index
    corner = np.array([-PIXEL * SIDE / 2, -PIXEL * SIDE / 2])
    reach = PIXEL * (SIDE - 1)
    if mirrored:
        volume, corner = volume[:, :, ::-1], corner + row[:2] * reach
        row = -row
    for _ in range(turns):  # np.rot90: the first row becomes the last column of before, read downwards
        volume, corner = np.rot90(volume, axes=(1, 2)), corner + row[:2] * reach
        row, column = column, -row
    positions = [[*corner, -44 + SPACING * i] for i in range(SLICES)]

    def change(data: Dataset, i: int) -> None:
        data.ImagePositionPatient = positions[i]

    series.dicom(root, volume, change, ImageOrientationPatient=[*row, *column])


# --- what has to be told ------------------------------------------------------------------------------------------

# Name: change of one slice, of all; the patterns that a user must read, or that the answer is the same.
Told = tuple[series.Change, Judge]


def disagreeing() -> dict[str, Told]:
    """One slice, or all, say what cannot be or what differs."""
    one, lot = only, lambda change: lambda data, i: change(data)
    other = generate_uid()
    huge = "1" * 30

    def flipped_pair(data: Dataset) -> None:
        data.SOPInstanceUID = UID("1.2.3.4.5")

    def twice(data: Dataset, i: int) -> None:
        if i in (3, 4):
            data.SOPInstanceUID = UID("1.2.3.4.5")

    def scaled(data: Dataset) -> None:
        _set(data, (stored(data) // 2).astype(np.uint16), RescaleSlope=2)

    return {
        "slope -1 in one slice": (one(put(RescaleSlope="-1")), told("slope")),
        "slope 2 in one slice": (one(put(RescaleSlope="2")), told("slope")),
        "slope a half in one slice": (one(put(RescaleSlope="0.5")), told("slope")),
        "slope 2 in one slice, its pixels too": (one(scaled), same_or_told("slope")),
        "slope 0 in one slice": (one(put(RescaleSlope="0")), told("slope|damaged")),
        "slope 0 in all": (lot(put(RescaleSlope="0")), told("slope")),
        "slope -1 in all": (lot(put(RescaleSlope="-1")), told("slope")),
        "slope NaN in all": (lot(put(RescaleSlope="NaN")), told("slope")),
        "slope text": (lot(put(RescaleSlope="one")), told("slope")),
        "slope 1e30": (lot(put(RescaleSlope="1e30")), told("slope|HU")),
        "slope empty": (lot(put(RescaleSlope="")), same_or_told("slope")),
        "intercept 0 in one slice": (one(put(RescaleIntercept="0")), told("intercept")),
        "intercept 0 in all, unsigned": (lot(put(RescaleIntercept="0")), told("intercept|HU|air")),
        "intercept missing in one slice": (one(put(RescaleIntercept=None)), told("intercept|rescale")),
        "intercept missing in all": (lot(put(RescaleIntercept=None, RescaleSlope=None)), told("intercept|rescale|HU")),
        "intercept 1e9": (lot(put(RescaleIntercept="1e9")), told("intercept|HU")),
        "intercept NaN": (lot(put(RescaleIntercept="NaN")), told("intercept|HU")),
        "rescale type US": (lot(put(RescaleType="US")), told("RescaleType|HU")),
        "bits stored 8 in one slice": (one(put(BitsStored=8, HighBit=7)), told("bits")),
        "bits stored 17": (lot(put(BitsStored=17, HighBit=16)), told("bits|damaged|pixel")),
        "bits stored 0": (lot(put(BitsStored=0, HighBit=0)), told("bits|damaged|pixel")),
        "bits allocated 12": (lot(put(BitsAllocated=12)), told("bits|damaged|pixel")),
        "bits allocated 8": (lot(put(BitsAllocated=8, BitsStored=8, HighBit=7)), told("bits|length|pixel|HU")),
        "bits allocated 32": (lot(put(BitsAllocated=32, BitsStored=32, HighBit=31)), told("bits|length|pixel")),
        "high bit 3": (lot(put(HighBit=3)), same_or_told("HighBit|bits")),
        "signed in one slice": (one(put(PixelRepresentation=1)), same_or_told("signed|PixelRepresentation|bits")),
        "pixel representation 2": (lot(put(PixelRepresentation=2)), told("PixelRepresentation|pixel|damaged")),
        "samples 3": (lot(put(SamplesPerPixel=3)), told("samples|colour|pixel|length")),
        "samples 0": (lot(put(SamplesPerPixel=0)), told("samples|pixel|damaged")),
        "photometric unknown": (lot(put(PhotometricInterpretation="GREEN")), told("photometric|GREEN")),
        "photometric MONOCHROME1": (lot(put(PhotometricInterpretation="MONOCHROME1")), same_or_told("MONOCHROME1")),
        "photometric missing": (lot(put(PhotometricInterpretation=None)), same_or_told("photometric")),
        "rows 0": (lot(put(Rows=0)), told("rows|pixel|damaged")),
        "rows missing": (lot(put(Rows=None)), told("rows|image|pixel")),
        "rows twice in one slice": (one(put(Rows=128)), told("rows|length|pixel|size")),
        "rows half in one slice": (one(put(Rows=32)), told("rows|length|pixel|size|frames")),
        "columns 65535": (lot(put(Columns=65535)), told("columns|length|pixel")),
        "no pixel data in one slice": (one(put(PixelData=None)), told("pixel|image")),
        "no pixel data": (lot(put(PixelData=None)), told("pixel|image")),
        "half the pixel data in one slice": (
            one(lambda d: _set(d, stored(d)[:32])),
            told("length|pixel|damaged|trunc"),
        ),
        "twice the pixel data in one slice": (
            one(lambda d: setattr(d, "PixelData", d.PixelData * 2)),
            told("length|frames|pixel"),
        ),
        "frames 0": (lot(put(NumberOfFrames="0")), same_or_told("frames")),
        "frames -1": (lot(put(NumberOfFrames="-1")), told("frames")),
        "frames 99999999": (one(put(NumberOfFrames="99999999")), told("frames")),
        "frames text": (lot(put(NumberOfFrames="many")), told("frames")),
        "frames 1e400": (lot(put(NumberOfFrames="9" * 400)), told("frames")),
        "modality MR in one slice": (one(put(Modality="MR")), told("MR")),
        "modality MR in all": (lot(put(Modality="MR")), told("MR")),
        "modality PT in all": (lot(put(Modality="PT")), told("PT")),
        "modality missing": (lot(put(Modality=None)), told("modality")),
        "modality OT": (lot(put(Modality="OT")), told("OT|modality")),
        "another study in one slice": (one(put(StudyInstanceUID=other)), told("stud")),
        "another frame of reference in one slice": (
            one(put(FrameOfReferenceUID=other)),
            told("frame of reference|FrameOfReference"),
        ),
        "another series in one slice": (one(put(SeriesInstanceUID=other)), told("series")),
        "another patient in one slice": (one(put(PatientID="P2")), told("patient|P2")),
        "one SOPInstanceUID in two slices": (twice, told("SOPInstanceUID")),
        "SOPInstanceUID missing": (lot(put(SOPInstanceUID=None)), same_or_told("SOPInstanceUID")),
        "burned-in annotation": (lot(put(BurnedInAnnotation="YES")), told("burned")),
        "burned-in annotation in one slice": (one(put(BurnedInAnnotation="YES")), told("burned")),
        "spacing 0": (lot(put(PixelSpacing=["0", "0"])), told("spacing")),
        "spacing 0 in one slice": (one(put(PixelSpacing=["0", "0"])), told("spacing")),
        "spacing negative": (lot(put(PixelSpacing=["-3.4", "3.4"])), told("spacing")),
        "spacing NaN": (lot(put(PixelSpacing=["NaN", "NaN"])), told("spacing")),
        "spacing of one number": (lot(put(PixelSpacing="3.4")), told("spacing")),
        "spacing text": (lot(put(PixelSpacing=["a", "b"])), told("spacing")),
        "spacing twice in one slice": (one(put(PixelSpacing=["6.8", "6.8"])), told("spacing|pixel size")),
        "spacing of a metre": (lot(put(PixelSpacing=["1000", "1000"])), told("spacing|pixel size|mm")),
        "spacing missing": (lot(put(PixelSpacing=None)), same_or_told("spacing")),
        "oblong pixels": (lot(put(PixelSpacing=["6.8", "3.4"])), told("oblong|not square|spacing")),
        "orientation missing": (lot(put(ImageOrientationPatient=None)), same_or_told("orientation")),
        "orientation missing in one slice": (one(put(ImageOrientationPatient=None)), same_or_told("orientation")),
        "orientation zero": (lot(put(ImageOrientationPatient=["0"] * 6)), told("orientation")),
        "orientation of five numbers": (
            lot(put(ImageOrientationPatient=["1", "0", "0", "0", "1"])),
            told("orientation"),
        ),
        "orientation NaN": (lot(put(ImageOrientationPatient=["NaN"] * 6)), told("orientation")),
        "orientation not orthogonal": (
            lot(put(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"])),
            told("orientation"),
        ),
        "orientation mirrored in one slice": (
            one(put(ImageOrientationPatient=["-1", "0", "0", "0", "1", "0"])),
            told("orientation"),
        ),
        "coronal": (
            lot(put(ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"])),
            told("coronal|axial|orientation"),
        ),
        "sagittal": (
            lot(put(ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])),
            told("sagittal|axial|orientation"),
        ),
        "position missing in one slice": (one(put(ImagePositionPatient=None)), told("position")),
        "position missing": (lot(put(ImagePositionPatient=None)), told("position|order")),
        "position of two numbers": (lot(put(ImagePositionPatient=["0", "0"])), told("position")),
        "position NaN in one slice": (one(put(ImagePositionPatient=["0", "0", "NaN"])), told("position")),
        "position 1e300 in one slice": (
            one(put(ImagePositionPatient=["0", "0", "1e300"])),
            told("position|gap|spacing"),
        ),
        "position text": (lot(put(ImagePositionPatient=["a", "b", "c"])), told("position")),
        "the same position everywhere": (lot(put(ImagePositionPatient=["0", "0", "0"])), told("position")),
        "two slices at one position": (
            one(lambda d: setattr(d, "ImagePositionPatient", [-108.8, -108.8, -44 + SPACING * 3])),
            told("position"),
        ),
        "in-plane shift in one slice": (
            one(lambda d: setattr(d, "ImagePositionPatient", [0, 0, -44 + SPACING * ODD])),
            same_or_told("position|shift"),
        ),
        "instance number huge": (lot(put(InstanceNumber=huge)), same_or_told("InstanceNumber")),
        "instance number text": (lot(put(InstanceNumber="first")), same_or_told("InstanceNumber")),
        "acquisition number huge": (lot(put(AcquisitionNumber=huge)), same_or_told("AcquisitionNumber")),
        "series number huge": (lot(put(SeriesNumber=huge)), same_or_told("SeriesNumber")),
        "series number text": (lot(put(SeriesNumber="two")), same_or_told("SeriesNumber")),
        "thickness text": (lot(put(SliceThickness="thin")), same_or_told("thickness")),
        "thickness NaN": (lot(put(SliceThickness="NaN")), same_or_told("thickness")),
        "tilt text": (lot(put(GantryDetectorTilt="none")), same_or_told("tilt")),
        "series UID empty": (lot(put(SeriesInstanceUID="")), told("SeriesInstanceUID|series")),
        "series UID with letters": (lot(put(SeriesInstanceUID="abc.def")), same_or_told("SeriesInstanceUID")),
        "series UID of 200 characters": (lot(put(SeriesInstanceUID="1." * 100)), same_or_told("SeriesInstanceUID")),
        "series UID with escapes": (lot(put(SeriesInstanceUID=ESCAPE)), same_or_told("SeriesInstanceUID")),
        "series UID that climbs": (lot(put(SeriesInstanceUID="../../../x")), same_or_told("SeriesInstanceUID")),
        "study UID with escapes": (lot(put(StudyInstanceUID=ESCAPE)), same_or_told("StudyInstanceUID")),
        "patient id with escapes": (lot(put(PatientID=ESCAPE)), same_or_told("patient")),
        "patient id with a line break": (lot(put(PatientID="a\r\nb")), same_or_told("patient")),
        "patient id empty": (lot(put(PatientID="")), same_or_told("patient")),
        "patient id N/A": (lot(put(PatientID="N/A")), same_or_told("patient")),
        "patient id of the anonymiser": (lot(put(PatientID="ANONYMOUS")), same_or_told("patient")),
        "patient id like a path": (lot(put(PatientID="../../x")), same()),
        "patient id with a comma and quotes": (lot(put(PatientID='a,"b"')), same()),
        "patient id =cmd": (lot(put(PatientID="=cmd|' /C calc'!A0")), same()),
        "description with escapes": (lot(put(SeriesDescription=ESCAPE)), same()),
        "manufacturer with escapes": (lot(put(Manufacturer=ESCAPE)), same()),
        "kernel of many values": (lot(put(ConvolutionKernel=["a", "b", "c"])), same()),
        "image type MIP": (lot(put(ImageType=["DERIVED", "SECONDARY", "MIP"])), told("MIP|derived|ImageType")),
        "image type localizer": (lot(put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), told("localizer|scout")),
        "image type screen save": (
            lot(put(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])),
            told("SCREEN|derived|ImageType"),
        ),
        "image type empty": (lot(put(ImageType="")), same_or_told("ImageType")),
        "image type missing": (lot(put(ImageType=None)), same()),
        "secondary capture": (
            lot(put(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")),
            same_or_told("secondary|SOPClass|capture"),
        ),
        "a spine": (lot(put(BodyPartExamined="LSPINE", SeriesDescription="L SPINE")), told("spine")),
        "with contrast": (
            lot(put(ContrastBolusAgent="Iomeprol", SeriesDescription="HEAD CECT")),
            same_or_told("contrast"),
        ),
        "air alone": (
            lambda d, i: _set(d, np.full((SIDE, SIDE), 24, np.uint16)),
            told("brain|air|tissue|window|nothing"),
        ),
        "water alone": (
            lambda d, i: _set(d, np.full((SIDE, SIDE), 1024, np.uint16)),
            told("brain|tissue|window|nothing|constant|one value|blank"),
        ),
        "metal alone": (
            lambda d, i: _set(d, np.full((SIDE, SIDE), 4095, np.uint16)),
            told("brain|tissue|window|nothing|blank"),
        ),
        "half of the slices air": (
            lambda d, i: _set(d, np.full((SIDE, SIDE), 24, np.uint16)) if i % 2 else None,
            told("slices.* show nothing"),
        ),
    }


def gone(root: Path, *numbers: int) -> None:
    """The series without some of its slices."""
    files = series.dicom(root)
    for number in numbers:
        files[number].unlink()


def arrangements() -> dict[str, tuple[Callable[[Path], object], Judge]]:
    """Folders that are not one stack."""

    def interleaved(root: Path) -> None:
        series.dicom(root, change=_uid("1.2.3.9", AcquisitionNumber=1), names="a{:03d}.dcm")
        series.dicom(root, head(1), _uid("1.2.3.9", AcquisitionNumber=2), names="b{:03d}.dcm")

    def two_people(root: Path) -> None:
        nothing = {"SeriesInstanceUID": None, "StudyInstanceUID": None, "PatientID": None, "FrameOfReferenceUID": None}
        series.dicom(root, names="a{:03d}.dcm", **nothing)
        series.dicom(root, head(1)[:, :, ::-1], names="b{:03d}.dcm", **nothing)

    def per_slice(root: Path) -> None:
        series.dicom(root, change=lambda data, i: setattr(data, "SeriesInstanceUID", f"1.2.3.4.{i + 1}"))

    def copied(root: Path) -> None:
        for file in series.dicom(root):
            shutil.copy(file, root / f"copy_{file.name}")

    def one_file_twice(root: Path) -> None:
        shutil.copy(series.dicom(root)[ODD], root / "again.dcm")

    def linked(root: Path) -> None:
        series.dicom(root / "a")
        (root / "b").symlink_to(root)

    def pipe(root: Path) -> None:
        series.dicom(root)
        os.mkfifo(root / "pipe.dcm")

    def zero(root: Path) -> None:
        series.dicom(root)[ODD].write_bytes(b"")

    def truncated(share: float) -> Callable[[Path], object]:
        def make(root: Path) -> None:
            file = series.dicom(root)[ODD]
            raw = file.read_bytes()
            file.write_bytes(raw[: int(len(raw) * share)])

        return make

    def syntax_of_one(uid: str) -> Callable[[Path], object]:
        def make(root: Path) -> None:
            file = series.dicom(root)[ODD]
            file.write_bytes(series.with_syntax(file.read_bytes(), uid))

        return make

    def no_meta(root: Path) -> None:
        for file in series.dicom(root):
            raw = file.read_bytes()
            data = pydicom.dcmread(file)
            start = len(raw) - len(_body(data))
            file.write_bytes(raw[start:])

    def other_size(root: Path) -> None:
        files = series.dicom(root)
        small = pydicom.dcmread(files[ODD])
        _set(small, stored(small)[::2, ::2], Rows=32, Columns=32)
        small.save_as(files[ODD])

    def unreadable(root: Path) -> None:
        series.dicom(root)
        (root / "gone.dcm").symlink_to(root / "nowhere")

    return {
        "two acquisitions of one series": (interleaved, told("acquisition|position")),
        "two people without ids": (two_people, told("position|patient|series")),
        "one series UID a slice": (per_slice, same_or_told("series")),
        "every file twice": (copied, same_or_told("duplicate|position|twice|copies")),
        "one file twice": (one_file_twice, same_or_told("duplicate|position|twice|copies")),
        "a link to the folder itself": (linked, same_or_told("link|loop")),
        "a pipe": (pipe, same_or_told("pipe.dcm")),
        "an empty file": (zero, told("004.dcm")),
        **{f"cut at {share:.0%}": (truncated(share), told("004.dcm")) for share in (0.01, 0.1, 0.5, 0.99)},
        "says JPEG": (syntax_of_one("1.2.840.10008.1.2.4.50"), same_or_told("004.dcm")),
        "says JPEG 2000": (syntax_of_one("1.2.840.10008.1.2.4.90"), same_or_told("004.dcm")),
        "says deflated": (syntax_of_one("1.2.840.10008.1.2.1.99"), told("004.dcm")),
        "says big endian": (syntax_of_one("1.2.840.10008.1.2.2"), told("004.dcm")),
        "an unknown syntax": (syntax_of_one("1.2.3.4"), same_or_told("004.dcm", "syntax")),
        "no file meta information": (no_meta, same_or_told("meta")),
        "one slice of another size": (other_size, told("32|size")),
        "a link to nowhere": (unreadable, same_or_told("gone.dcm")),
        "two slices missing": (lambda root: gone(root, 5, 6), told("gap|missing|spac")),
        "one slice alone": (lambda root: gone(root, *range(1, SLICES)), told("one slice|1 slice|single")),
        "an empty folder": (lambda root: root.mkdir(), refused("no|empty")),
    }


def damaged_stream(root: Path) -> None:
    """JPEG 2000 has no checksum: a decoder makes something of nearly every stream, and nothing tells what it was."""
    for place, file in enumerate(series.dicom(root)):
        data = pydicom.dcmread(file)
        data.compress(JPEG2000Lossless)
        if place == ODD:
            stream = bytearray(next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)))
            middle = len(stream) // 2
            stream[middle : middle + 64] = bytes(64)
            data.PixelData = encapsulate([bytes(stream)])
            data["PixelData"].VR = "OB"
        data.save_as(file)


def _body(data: Dataset) -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, data)
    return buffer.getvalue()


def _uid(uid: str, **elements: Any) -> series.Change:
    def change(data: Dataset, i: int) -> None:
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = uid, f"{uid}.1", f"{uid}.2"
        for name, value in elements.items():
            setattr(data, name, value)

    return change


def quiet_or_right(got: Any) -> str:
    """``index`` of a harmless series: done, and nothing refused."""
    if got.status:
        return f"exit status {got.status}: {(got.err or got.out)[-300:]!r}"
    return f"{silent(got, '12 slices')!r} not said" if silent(got, "12 slices|slices +12|12 +slices") else ""


def cases() -> list[Case]:
    """All of them."""
    found: list[Case] = []
    for name, make in harmless().items():
        found += both_commands("DICOM", name, make, same(), quiet_or_right)
    for name, (change, judge) in disagreeing().items():

        def make_changed(root: Path, change: series.Change = change) -> object:
            return series.dicom(root, change=change)

        found += both_commands("DICOM", name, make_changed, judge, judge)
    for name, (make, judge) in arrangements().items():
        found += both_commands("DICOM", name, make, judge, judge)

    def damaged(folder: Path, trained: Trained) -> list[str]:
        damaged_stream(folder / "in")
        return series.index(folder)

    name = "a JPEG 2000 stream damaged in its middle, as others read it"
    return [*found, Case("DICOM", name, damaged, as_others, pixels=True)]
