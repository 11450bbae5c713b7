"""Series whose slices do not agree: what becomes of them, and that it is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemlearn.config.schema import GeometryConfig
from hemlearn.data.geometry import arrange
from hemlearn.data.series import usable_headers
from tests.data.readers.files import ct_series


def read(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.dcm"))
    return usable_headers(names, root, cache_dir=None, progress=False, n_jobs=1)


def in_slice(index: int, **elements: Any) -> Any:
    def change(data: Any, item: int) -> None:
        if item == index:
            for name, value in elements.items():
                setattr(data, name, value)

    return change


def problems(headers: pd.DataFrame) -> list[str]:
    return arrange(headers, GeometryConfig()).series["problems"].tolist()


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        ({"RescaleSlope": 2}, "slope 2, intercept -1024"),
        ({"RescaleSlope": 0.5}, "slope 0.5, intercept -1024"),
        ({"RescaleIntercept": -1000}, "slope 1, intercept -1000"),
        ({"BitsStored": 12, "HighBit": 11}, "12 bits unsigned, slope 1, intercept -1024"),
        ({"PixelRepresentation": 1}, "16 bits signed, slope 1, intercept -1024"),
        (
            {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]},
            "16 bits unsigned, orientation R/P, slope 1, intercept -1024",
        ),
        (
            {"ImageOrientationPatient": [0, -1, 0, 1, 0, 0]},
            "16 bits unsigned, orientation A/L, slope 1, intercept -1024",
        ),
    ],
)
def test_a_slice_that_is_stored_otherwise_is_named(
    tmp_path: Path, elements: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    ct_series(tmp_path, change=in_slice(2, **elements))
    headers, lost = read(tmp_path)
    assert (len(headers), len(lost)) == (6, 0)
    (text,) = problems(headers)
    assert f"{told}, most of the series as 16 bits unsigned, slope 1, intercept -1024 (1 slice, first 002.dcm)" in text
    assert told in caplog.text


def test_the_slope_of_an_mr_slice_is_its_own(tmp_path: Path) -> None:
    """Philips scales each slice as it needs."""

    def scale(data: Any, item: int) -> None:
        data.RescaleSlope, data.RescaleIntercept = 1 + 0.1 * item, 0

    ct_series(tmp_path, Modality="MR", change=scale)
    assert problems(read(tmp_path)[0]) == [""]


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "MR"}, "modality MR in series 1.2.3, of which 5 slices have CT"),
        ({"StudyInstanceUID": "1.9"}, "StudyInstanceUID 1.9 in series 1.2.3, of which 5 slices have 1.2"),
        ({"FrameOfReferenceUID": "1.7"}, "FrameOfReferenceUID 1.7 in series 1.2.3, of which 5 slices have 1.4"),
    ],
)
def test_a_slice_that_belongs_elsewhere_is_left_out(
    tmp_path: Path, elements: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    ct_series(tmp_path, FrameOfReferenceUID="1.4", change=in_slice(3, **elements))
    headers, lost = read(tmp_path)
    assert headers["path"].tolist() == ["000.dcm", "001.dcm", "002.dcm", "004.dcm", "005.dcm"]
    assert lost.to_numpy().tolist() == [["003.dcm", reason]]
    assert reason in caplog.text


def test_two_studies_under_one_series_id_are_two_series(tmp_path: Path) -> None:
    ct_series(tmp_path / "a", StudyInstanceUID="1.1")
    ct_series(tmp_path / "b", StudyInstanceUID="1.2", slices=4)
    headers, lost = read(tmp_path)
    assert lost.empty
    assert headers.groupby("series_id")["path"].size().to_dict() == {"1.2.3": 6, "1.2.3-1.2": 4}


@pytest.mark.parametrize("element", ["AcquisitionNumber", "TemporalPositionIdentifier"])
def test_interleaved_acquisitions_are_a_series_each(
    tmp_path: Path, element: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3):
        ct_series(tmp_path / str(number), **{element: number})
    geometry = arrange(read(tmp_path)[0], GeometryConfig())
    assert geometry.skipped.empty
    parts = geometry.rows.groupby("series_id", sort=False)
    assert {name: sorted(set(rows["path"].str[0])) for name, rows in parts} == {
        "1.2.3": ["1"],
        "1.2.3-2": ["2"],
        "1.2.3-3": ["3"],
    }
    assert all(rows["z_mm"].tolist() == [0, 5, 10, 15, 20, 25] for _, rows in parts)
    assert "holds 3 acquisitions" in caplog.text


def test_acquisitions_that_follow_one_another_are_one_stack(tmp_path: Path) -> None:
    """A head in two parts, base and vertex, that overlap by one slice; and a number for every slice."""

    def halves(data: Any, item: int) -> None:
        data.AcquisitionNumber = 1 + item // 3
        data.ImagePositionPatient = [-100, -100, 5.0 * (item - item // 3)]

    ct_series(tmp_path / "a", change=halves)
    headers, _ = read(tmp_path / "a")
    assert headers["series_id"].unique().tolist() == ["1.2.3"]

    def each(data: Any, item: int) -> None:
        data.AcquisitionNumber = item

    ct_series(tmp_path / "b", change=each)
    assert read(tmp_path / "b")[0]["series_id"].nunique() == 1


def test_one_instance_uid_twice_is_named(tmp_path: Path) -> None:
    ct_series(tmp_path, SOPInstanceUID="1.5")
    (text,) = problems(read(tmp_path)[0])
    assert text == "SOPInstanceUID (0008,0018) of another slice (5 slices, first 001.dcm)"


def test_slices_without_an_orientation_stand_by_their_height(tmp_path: Path) -> None:
    paths = ct_series(tmp_path, ImageOrientationPatient=None, InstanceNumber=None)
    for item, path in enumerate(paths):  # names that rise as the head falls
        path.rename(tmp_path / f"slice{9 - item}.dcm")
    geometry = arrange(read(tmp_path)[0], GeometryConfig())
    assert geometry.rows["path"].tolist() == [f"slice{9 - item}.dcm" for item in range(6)]
    assert geometry.rows["z_mm"].tolist() == [0, 5, 10, 15, 20, 25]
    (text,) = geometry.series["problems"]
    assert text == "no ImageOrientationPatient (0020,0037): taken for axial, its sides as stored"


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation (0028,0301) YES"),
        ({"RescaleSlope": 2}, "RescaleSlope 2, CT scanners write 1"),
        ({"RescaleIntercept": 0}, "no air, all of it 0 HU or above, perhaps HU + 1024"),
        ({"RescaleIntercept": 0, "BitsStored": 12, "HighBit": 11}, "taken for RSNA's, wrapped at 4096"),
        ({"RescaleType": "US"}, "RescaleType (0028,1054) US, unspecified: taken for HU"),
        ({"PixelSpacing": [0, 0]}, "PixelSpacing 0.0\\0.0 is no size"),
        ({"PixelSpacing": [-0.5, 0.5]}, "PixelSpacing -0.5\\0.5 is no size"),
        ({"PixelSpacing": [1, 0.5]}, "oblong pixels of 1 x 0.5 mm, resampled to square ones"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, "ImageType DERIVED/SECONDARY: not as it was acquired"),
    ],
)
def test_what_is_odd_about_every_slice_is_told_once(
    tmp_path: Path, elements: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    ct_series(tmp_path, **elements)
    headers, _ = read(tmp_path)
    (text,) = problems(headers)
    assert told in text
    warnings = [item.getMessage() for item in caplog.records if item.levelno == logging.WARNING]
    assert len([line for line in warnings if told in line]) == 1


def test_a_good_series_has_nothing_odd(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ct_series(tmp_path, FrameOfReferenceUID="1.4", AcquisitionNumber=1)
    assert problems(read(tmp_path)[0]) == [""]
    arrange(read(tmp_path)[0], GeometryConfig())
    assert caplog.text == ""
