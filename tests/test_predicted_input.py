"""What ``predict`` is given, before a network sees it: what is odd about it is told, refused, or made good."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import JPEGLSNearLossless, MRImageStorage

from hemlearn.config.requests import ExplainRequest, PredictRequest
from hemlearn.config.schema import GeometryConfig
from hemlearn.data.ids import id_notes
from hemlearn.data.readers import reader_for
from hemlearn.data.readers.nifti import read_geometry
from hemlearn.reading.find import find_input
from hemlearn.reading.series import Found, InputRules
from hemlearn.reading.stacks import Preprocessing, Stack, read_stack
from hemlearn.util.errors import ConfigError
from tests.attack import series
from tests.attack.series import SIDE, SLICES
from tests.data.readers.files import ct, nifti_head, write

AIR = np.full((SIDE, SIDE), 24, np.uint16)  # -1000 HU as stored


def found_in(folder: Path, path: Path, modality: str = "CT") -> Found:
    """What a run that has learnt from a modality finds at a path."""
    rules = InputRules(modality, modality, GeometryConfig(), math.nan, folder / "cache")
    return find_input(path, rules, folder / "unpacked")


def decoded(folder: Path, path: Path, modality: str = "CT", *, volume: bool = False) -> Stack:
    """The first series at a path."""
    unit = {"CT": "HU", "MR": "signal"}[modality]
    wanted = Preprocessing(64, "letterbox", unit, None, modality.lower(), volume)
    return read_stack(found_in(folder, path, modality).series[0], [wanted])


def stored(values: np.ndarray[Any, Any], **elements: Any) -> Callable[[Dataset], None]:
    """Put other pixels in, and other elements."""

    def edit(data: Dataset) -> None:
        data.PixelData = np.ascontiguousarray(values).tobytes()
        for name, value in elements.items():
            setattr(data, name, value)

    return edit


def at(places: range | tuple[int, ...], edit: Callable[[Dataset], None]) -> series.Change:
    return lambda data, i: edit(data) if i in places else None


def as_mr(signal: Callable[[int], np.ndarray[Any, Any]], **elements: Any) -> series.Change:
    """Slices of MR with the pixels that a function makes of their number."""

    def change(data: Dataset, i: int) -> None:
        stored(signal(i), Modality="MR", SOPClassUID=MRImageStorage, **elements)(data)
        del data.RescaleSlope, data.RescaleIntercept

    return change


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (None, ()),
        (at(range(1, SLICES, 2), stored(AIR)), ("6 of 12 slices (first 001.dcm) show nothing",)),
        (at((0, SLICES - 1), stored(AIR)), ("2 of 12 slices (first 000.dcm) show nothing",)),
        (
            at((5, 6, 7), stored((series.head()[6] + 1024).astype(np.uint16))),
            ("2 of 12 slices (first 006.dcm) hold the same picture as the slice before",),
        ),
    ],
)
def test_slices_without_a_head_and_copies_are_counted(
    tmp_path: Path, change: series.Change | None, remark: tuple[str, ...]
) -> None:
    series.dicom(tmp_path / "in", change=change)
    stack = decoded(tmp_path, tmp_path / "in")
    assert not stack.refused
    assert tuple(text.split(":")[0] for text in stack.remarks) == remark


def test_air_beyond_the_head_is_a_part_of_a_volume(tmp_path: Path) -> None:
    head = stored((series.head()[6] + 1024).astype(np.uint16))
    changes = (at((0, 1, 2, SLICES - 1), stored(AIR)), at((5, 6), head))
    series.dicom(tmp_path / "in", change=lambda data, i: [change(data, i) for change in changes] and None)
    of_slices, of_a_volume = (decoded(tmp_path, tmp_path / "in", volume=volume).remarks for volume in (False, True))
    assert [text.split(":")[0] for text in of_slices] == [
        "4 of 12 slices (first 000.dcm) show nothing",
        "1 of 12 slices (first 006.dcm) hold the same picture as the slice before",
    ]
    assert of_a_volume == of_slices[1:]


def test_mr_of_noise_and_hounsfield_units_as_mr_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 9, (SLICES, SIDE, SIDE)).astype(np.uint16)
    brain = (np.clip(series.head(), -20, 200) + 20).astype(np.uint16) * 5
    signed = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}
    series.dicom(tmp_path / "good", change=as_mr(lambda i: brain[i]))
    series.dicom(tmp_path / "noise", change=as_mr(lambda i: noise[i]))
    series.dicom(tmp_path / "beside", change=as_mr(lambda i: brain[i] if i < 9 else noise[i]))
    series.dicom(tmp_path / "hu", change=as_mr(lambda i: series.head()[i], **signed))
    assert decoded(tmp_path, tmp_path / "good", "MR").refused == ""
    assert decoded(tmp_path, tmp_path / "noise", "MR").refused == "refused: no head in it: noise alone"
    assert "as air does in HU" in decoded(tmp_path, tmp_path / "hu", "MR").refused
    (remark,) = decoded(tmp_path, tmp_path / "beside", "MR").remarks
    assert remark.startswith("3 of 12 slices (first 009.dcm) show nothing")


def test_the_next_best_series_stands_in_for_one_that_cannot_be_read(tmp_path: Path) -> None:
    for name, text in (("a", "HEAD PLAIN"), ("b", "HEAD"), ("c", "HEAD CECT")):
        series.dicom(
            tmp_path / "in" / name,
            StudyInstanceUID="1.2.8",
            SeriesInstanceUID=f"1.2.9.{ord(name)}",
            SeriesDescription=text,
        )
    found = found_in(tmp_path, tmp_path / "in")
    assert [item.series_id for item in found.series] == ["1.2.9.97"]
    for name, after in (("1.2.9.97", "1.2.9.98"), ("1.2.9.98", "1.2.9.99")):
        (item,) = found.instead([(name, "none of 12 slices can be read")])
        assert item.series_id == after
        assert len(item.rows) == SLICES
        assert found.notes[-1].startswith(f"patient P1: series {after} is predicted instead of {name}: none of 12")
        assert after not in dict(found.skip_reasons)
    assert found.instead([("1.2.9.99", "")]) == []


def remarks(path: Path) -> str:
    return reader_for(path).open(path, pixels=False).headers(path.name)[0].remark


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        ({"BodyPartExamined": "LSPINE"}, "BodyPartExamined (0018,0015) LSPINE: not the head"),
        ({"BodyPartExamined": "HEAD"}, ""),
        ({"ContrastBolusAgent": "Iomeprol"}, "ContrastBolusAgent (0018,0010) Iomeprol: contrast medium was given"),
        ({"ContrastBolusAgent": "NONE"}, ""),
        ({"SOPClassUID": MRImageStorage}, "is that of MR images, Modality (0008,0060) says CT"),
        (
            {"PixelSpacing": None, "ImagerPixelSpacing": ["1", "0.5"]},
            "beside ImagerPixelSpacing 1\\0.5: taken for square",
        ),
        ({"PixelSpacing": None, "PixelAspectRatio": [2, 1]}, "beside PixelAspectRatio 2\\1: taken for square"),
        ({"LossyImageCompression": "01", "LossyImageCompressionRatio": "30"}, "lossy compression (0028,2110), 30 to 1"),
        ({"PerFrameFunctionalGroupsSequence": Items([Dataset(), Dataset()])}, "2 items in PerFrameFunctionalGroups"),
    ],
)
def test_a_header_that_speaks_of_other_pictures_is_told(tmp_path: Path, elements: dict[str, Any], told: str) -> None:
    plane = (series.head()[6] + 1024).astype(np.uint16)
    found = remarks(write(tmp_path / "a.dcm", ct(plane, BitsStored=12, HighBit=11, **elements)))
    assert told in found if told else not found


def test_a_lossy_syntax_is_told(tmp_path: Path) -> None:
    data = ct((series.head()[6] + 1024).astype(np.uint16))
    data.compress(JPEGLSNearLossless, encoding_plugin="", jls_error=2)
    assert "lossy compression" in remarks(write(tmp_path / "a.dcm", data))


def test_contrast_and_body_part_of_headers_count_in_the_choice(tmp_path: Path) -> None:
    given: dict[str, dict[str, Any]] = {
        "a": {"ContrastBolusAgent": "Iomeprol"},
        "b": {},
        "c": {"BodyPartExamined": "CSPINE"},
    }
    for name, elements in given.items():
        series.dicom(
            tmp_path / "in" / name, StudyInstanceUID="1.2.8", SeriesInstanceUID=f"1.2.9.{ord(name)}",
            SeriesDescription="5mm", **elements,
        )  # fmt: skip
    found = found_in(tmp_path, tmp_path / "in")
    assert [item.series_id for item in found.series] == ["1.2.9.98"]
    reasons = dict(found.skip_reasons)
    assert "contrast medium (Iomeprol)" in reasons["1.2.9.97"]
    assert "body part cspine" in reasons["1.2.9.99"]


def test_a_series_longer_than_a_head_is_told(tmp_path: Path) -> None:
    for step, told in ((25, ""), (60, "660 mm covered, more than a head has")):

        def change(data: Dataset, i: int, step: int = step) -> None:
            data.ImagePositionPatient = [-100, -100, step * i]

        series.dicom(tmp_path / str(step), change=change)
        (reason,) = found_in(tmp_path, tmp_path / str(step)).chosen.values()
        assert reason.partition("BUT ")[2] == told


def test_one_inverted_slice_and_an_odd_frame_are_named(tmp_path: Path) -> None:
    inverted = at((7,), lambda data: setattr(data, "PhotometricInterpretation", "MONOCHROME1"))
    series.dicom(tmp_path / "in", change=inverted)
    assert any(
        "MONOCHROME1" in note and "1 slice, first 007.dcm" in note for note in found_in(tmp_path, tmp_path / "in").notes
    )
    frames = [Dataset() for _ in range(SLICES)]
    for i, frame in enumerate(frames):
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Items([Dataset()]), Items([Dataset()])
        frame.PlanePositionSequence[0].ImagePositionPatient = [-100, -100, 8 * i]
        values = frame.PixelValueTransformationSequence[0]
        values.RescaleIntercept, values.RescaleSlope = -1024, 2 if i == SLICES - 1 else 1
    data = ct((series.head() + 1024).astype(np.uint16), PerFrameFunctionalGroupsSequence=Items(frames))
    write(tmp_path / "frames/e.dcm", data)
    notes = found_in(tmp_path, tmp_path / "frames").notes
    assert any("RescaleSlope 2" in note and "1 slice, first e.dcm#11" in note for note in notes)


def test_what_a_table_says_against_the_headers_is_told(tmp_path: Path) -> None:
    names = [path.name for path in series.dicom(tmp_path)]
    table = tmp_path / "rows.csv"

    def notes(header: str, lines: list[str]) -> str:
        table.write_text("\n".join([header, *lines]) + "\n", "utf-8")
        return "\n".join(found_in(tmp_path, table).notes)

    told = "is not what the headers say"
    assert told in notes("path,z_mm", [f"{name},{-8 * i}" for i, name in enumerate(names)])
    assert told not in notes("path,z_mm", [f"{name},{8 * i + 100}" for i, name in enumerate(names)])
    parted = [f"{name},{'ab'[i % 2]},{i % 2}" for i, name in enumerate(names)]
    assert "2 patients of rows.csv, but one, 'P1', by the headers" in notes("path,patient_id,series_id", parted)
    assert "by the headers" not in notes("path,patient_id", [f"{name},x" for name in names])
    notes("path,modality", [f".\\{name},ct" for name in names])  # Windows' folders, small letters
    assert len(found_in(tmp_path, table).series[0].rows) == SLICES


def test_a_frame_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    write(tmp_path / "e.dcm", ct((series.head()[:2] + 1024).astype(np.uint16)))
    (tmp_path / "rows.csv").write_text("path,frame\ne.dcm,0\ne.dcm,1\ne.dcm,2\n")
    found = found_in(tmp_path, tmp_path / "rows.csv")
    assert found.failures == [("e.dcm#2", "no frame 2 that can be used")]
    assert found.series[0].rows["frame"].tolist() == [0, 1]


def test_ids_that_look_alike_and_formulas_are_told() -> None:
    for other in ("P1\u200b", "\ufeffP1", "\u03a11", "\u04201"):  # Greek and Cyrillic capitals
        (note,) = id_notes(["P1", other])
        assert "look-alike or invisible letters" in note
        assert note.isascii()  # or nobody would see the difference
    (note,) = id_notes(["=cmd()", "-1", "P1"])
    assert note.startswith("patient ids that a spreadsheet takes for formulas: '=cmd()':")


def test_results_are_not_written_among_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "run").mkdir()
    for out, told in (("in", "the folder that is predicted"), ("in/../run", "is the run")):
        with pytest.raises(ConfigError, match=told):
            PredictRequest(runs=tmp_path / "run", input=tmp_path / "in", out=tmp_path / out)
    with pytest.raises(ConfigError, match="is the run"):
        ExplainRequest(run=tmp_path / "run", out=tmp_path / "run")
    assert PredictRequest(runs=tmp_path / "run", input=tmp_path / "in", out=tmp_path / "in/out")


def test_sheared_axes_are_told(tmp_path: Path) -> None:
    plain = np.diag([2.0, 2.0, 5.0, 1.0])
    for row, column, told in (
        (0, 1, "its rows and columns stand 75 degrees"),
        (1, 2, "shifted against each other by 15"),
    ):
        sheared = plain.copy()
        sheared[row, column] = math.tan(math.radians(15)) * plain[column, column]
        found = read_geometry(nifti_head(tmp_path / f"{row}.nii", sform=sheared, qform_code=0))
        assert told in found.remark
    assert read_geometry(nifti_head(tmp_path / "plain.nii")).remark == ""
    assert "intent_code 1002" in read_geometry(nifti_head(tmp_path / "labels.nii", intent_code=1002)).remark


@pytest.mark.parametrize(
    ("scan", "mask"), [("head_ct/head_ct/1.png", "masks/1.png"), ("049/brain/1.png", "049/brain/1_HGE_Seg.png")]
)
def test_lesion_masks_beside_the_scans_are_no_patients(tmp_path: Path, scan: str, mask: str) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    for name in (scan, mask):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(tmp_path / "set" / name)
    found = found_in(tmp_path, tmp_path / "set", "")
    assert [item.series_id for item in found.series] == [scan]
    assert f"1 lesion mask beside the scans (first {mask}): left out" in found.notes
    assert not found.failures
