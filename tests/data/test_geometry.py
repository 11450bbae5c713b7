"""Order, gaps, tilt and duplicates of made-up and real series."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hemlearn.config.schema import GeometryConfig
from hemlearn.data.geometry import SERIES_COLUMNS, apply_geometry, arrange, no_series, series_geometry
from hemlearn.data.scan import read_headers
from hemlearn.data.series import usable_headers
from hemlearn.util.errors import ConfigError
from tests.conftest import real_data
from tests.data.readers.files import ct, slice_hu, write


def stack(z: list[float], series: str = "s", patient: str = "p", **columns: object) -> pd.DataFrame:
    count = len(z)
    table = pd.DataFrame(
        {
            "path": [f"{series}/{k}.dcm" for k in range(count)],
            "frame": 0,
            "patient_id": patient,
            "series_id": series,
            "study_id": "t",
            "z_mm": z,
            "normal": [(0.0, 0.0, 1.0)] * count,
            "instance_number": range(1, count + 1),
            "pixel_mm": [(0.5, 0.5)] * count,
            "thickness_mm": 5.0,
            "tilt_deg": 0.0,
            "rows": 512,
            "columns": 512,
            "modality": "CT",
            "manufacturer": "GE",
            "kernel": "STD",
        }
    )
    return table.assign(**columns)


def one(table: pd.DataFrame) -> pd.Series:  # type: ignore[type-arg]
    found = series_geometry(table)
    assert len(found) == 1
    assert list(found) == list(SERIES_COLUMNS)
    return found.iloc[0]


def test_regular_series_in_any_order_of_files() -> None:
    z = [0.0, 15.0, 5.0, 10.0, -5.0]
    row = one(stack(z))
    assert (row["slices"], row["gaps"], row["overlaps"], row["duplicates"]) == (5, 0, 0, 0)
    assert (row["spacing_mm"], row["pixel_mm"], row["thickness_mm"], row["rows"]) == (5.0, 0.5, 5.0, 512)
    assert row["problems"] == ""
    kept, skipped = apply_geometry(stack(z), GeometryConfig())
    assert kept["z_mm"].tolist() == sorted(z)
    assert kept["path"].tolist() == ["s/4.dcm", "s/0.dcm", "s/2.dcm", "s/3.dcm", "s/1.dcm"]
    assert skipped.empty


def test_series_keep_their_order_of_appearance() -> None:
    table = pd.concat([stack([5, 0], "b"), stack([5, 0], "a")]).iloc[[0, 2, 1, 3]].reset_index(drop=True)
    kept, _ = apply_geometry(table, GeometryConfig())
    assert kept["series_id"].tolist() == ["b", "b", "a", "a"]
    assert series_geometry(table)["series_id"].tolist() == ["b", "a"]


def test_a_missing_slice_is_a_gap_and_may_be_refused() -> None:
    table = stack([0, 5, 10, 20, 25])
    row = one(table)
    assert (row["gaps"], row["overlaps"], row["spacing_max"]) == (1, 0, 10.0)
    assert "spacing 5.00 to 10.00 mm (in order: 2 x 5.00, 1 x 10.00, 1 x 5.00)" in row["problems"]
    kept, skipped = apply_geometry(table, GeometryConfig(gaps="refuse"))
    assert kept.empty
    assert skipped["reason"].str.startswith("uneven spacing: 5.00 to 10.00 mm in series 's'").tolist() == [True] * 5


def test_irregular_spacing_is_summed_up() -> None:
    row = one(stack(np.cumsum([0, 5, 3, 6, 2, 5, 9, 4, 12, 5]).tolist()))
    assert "median 5.00 mm, 2 intervals above 1.5 times that" in row["problems"]


@pytest.mark.parametrize(("choice", "left"), [("first", 3), ("keep", 5), ("refuse", 0)])
def test_duplicate_positions(choice: str, left: int) -> None:
    table = stack([0, 5, 5.004, 10, 10], instance_number=[1, 3, 2, 4, 5])
    assert one(table)["duplicates"] == 2
    assert one(table)["spacing_min"] == pytest.approx(5, abs=0.01)  # a repeated position is no distance
    assert "2 slices at a position that another slice has" in one(table)["problems"]
    kept, skipped = apply_geometry(table, GeometryConfig(duplicates=choice))
    assert (len(kept), len(skipped)) == (left, 5 - left)
    if choice == "first":
        assert kept["instance_number"].tolist() == [1, 3, 4]
        assert dict(skipped.to_numpy())["s/4.dcm"] == "duplicate position: z = 10.00 mm, as s/3.dcm"


def test_tilt_is_told_with_table_travel_and_may_be_refused() -> None:
    step = 5 * np.cos(np.deg2rad(20))
    table = stack([0, step, 3 * step], tilt_deg=-20.0)
    problems = one(table)["problems"]
    assert "spacing 5.00 to 10.00 mm" in problems
    assert "of table travel, 4.70 to 9.40 mm along the slice normal" in problems
    assert "gantry tilt -20.0 degrees" in problems
    kept, skipped = apply_geometry(table, GeometryConfig(tilt="refuse"))
    assert kept.empty
    assert "-20.0 degrees" in skipped["reason"].iloc[0]


def test_without_positions_the_instance_number_orders_and_z_is_unknown() -> None:
    table = stack([np.nan] * 3, instance_number=[3, 1, 2])
    kept, skipped = apply_geometry(table, GeometryConfig())
    assert kept["path"].tolist() == ["s/1.dcm", "s/2.dcm", "s/0.dcm"]
    assert kept["z_mm"].isna().all()
    assert skipped.empty
    row = one(table)
    assert "3 slices without a position of their own: ordered by instance number, z unknown" in row["problems"]
    assert np.isnan(row["spacing_mm"])
    assert (row["missing_position"], row["duplicates"]) == (3, 0)


def test_one_missing_position_leaves_no_half_axis() -> None:
    kept, _ = apply_geometry(stack([10, np.nan, 0], instance_number=[3, 2, 1]), GeometryConfig())
    assert kept["instance_number"].tolist() == [1, 2, 3]
    assert kept["z_mm"].isna().all()


def test_without_instance_numbers_file_names_count_as_people_read_them() -> None:
    table = stack([np.nan] * 3, instance_number=np.nan, path=["s/10.dcm", "s/2.dcm", "s/1.dcm"])
    kept, _ = apply_geometry(table, GeometryConfig())
    assert kept["path"].tolist() == ["s/1.dcm", "s/2.dcm", "s/10.dcm"]
    assert "ordered by file name" in one(table)["problems"]


def test_two_patients_in_one_series_are_refused_by_name() -> None:
    table = pd.concat([stack([0, 5], patient="ann"), stack([10], patient="bob"), stack([0], "t", "eve")])
    kept, skipped = apply_geometry(table.reset_index(drop=True), GeometryConfig())
    assert kept["patient_id"].tolist() == ["eve"]
    assert set(skipped["reason"]) == {"two patients in one series: series 's' holds slices of 'ann', 'bob'"}
    assert "slices of 2 patients (ann, bob)" in series_geometry(table.reset_index(drop=True))["problems"].iloc[0]


def test_the_rarer_orientation_is_left_out() -> None:
    tilted = (0.0, np.sin(np.deg2rad(15)), np.cos(np.deg2rad(15)))
    table = stack([0, 5, 10, 2, 15], normal=[(0.0, 0.0, 1.0)] * 3 + [tilted, None])
    kept, skipped = apply_geometry(table, GeometryConfig())
    assert kept["z_mm"].tolist() == [0, 5, 10, 15]
    assert skipped["item"].tolist() == ["s/3.dcm"]
    assert one(table)["mixed_orientation"] == 1
    assert one(table)["slices"] == 5


def test_short_series() -> None:
    table = pd.concat([stack([0]), stack([0, 5, 10], "t")]).reset_index(drop=True)
    assert series_geometry(table)["problems"].tolist() == ["a single slice", ""]
    assert len(apply_geometry(table, GeometryConfig())[0]) == 4
    kept, skipped = apply_geometry(table, GeometryConfig(min_slices=2))
    assert kept["series_id"].unique().tolist() == ["t"]
    assert skipped["reason"].tolist() == ["short series: 's' has 1 slice, data.geometry.min_slices=2"]


def test_mixed_sizes_are_kept_and_told() -> None:
    table = stack([0, 5, 10], rows=[512, 256, 512], columns=[512, 256, 512], thickness_mm=[4, 7, 7])
    row = one(table)
    assert (row["rows"], bool(row["mixed_size"]), row["thickness_mm"]) == (512, True, 7)
    assert "mixed matrix sizes (256 x 256, 512 x 512)" in row["problems"]
    assert "slice thickness 4 to 7 mm" in row["problems"]
    assert len(apply_geometry(table, GeometryConfig())[0]) == 3


def test_long_and_many_series_take_no_time() -> None:
    rng = np.random.default_rng(0)
    long = stack((rng.permutation(2000) * 0.5).tolist())
    many = pd.concat([stack([0, 5, 10], f"s{k}", f"p{k}") for k in range(300)], ignore_index=True)
    started = time.process_time()
    kept, _ = apply_geometry(long, GeometryConfig())
    assert kept["z_mm"].is_monotonic_increasing
    assert one(long)["slices"] == 2000
    assert len(series_geometry(many)) == 300
    assert time.process_time() - started < 5


def test_nothing_gives_nothing_and_a_wrong_choice_is_named() -> None:
    empty = stack([]).iloc[:0]
    assert series_geometry(empty).dtypes.equals(no_series().dtypes)
    assert arrange(empty, GeometryConfig()).rows.empty
    with pytest.raises(ConfigError, match=r"data\.geometry\.gaps='drop'"):
        apply_geometry(stack([0]), GeometryConfig(gaps="drop"))


def test_columns_that_no_header_gave_are_unknown() -> None:
    table = pd.DataFrame({"path": ["a", "b"], "series_id": "s", "patient_id": "p", "z_mm": [5.0, 0.0]})
    row = one(table)
    assert (row["spacing_mm"], row["problems"]) == (5.0, "")
    assert np.isnan([row["tilt_deg"], row["thickness_mm"], row["pixel_mm"]]).all()


def test_real_ge_series() -> None:
    root = real_data("ge_head_ct_series")
    names = sorted((path.name for path in root.glob("*.dcm")), reverse=True)
    headers = read_headers(names, root, progress=False, n_jobs=1)
    geometry = arrange(headers, GeometryConfig())
    assert geometry.rows["path"].tolist() == names[::-1]
    assert geometry.skipped.empty
    row = geometry.series.iloc[0]
    assert (row["slices"], row["kept"], row["gaps"], row["overlaps"]) == (28, 28, 13, 1)
    assert row["tilt_deg"] == pytest.approx(18.5)
    assert (row["spacing_min"], row["spacing_max"]) == pytest.approx((1.081, 6.999), abs=0.001)
    for part in (
        "spacing 1.14 to 7.38 mm (in order: 13 x 4.22, 1 x 1.14, 13 x 7.38) of table travel",
        "gantry tilt 18.5 degrees",
        "slice thickness 4 to 7 mm",
    ):
        assert part in row["problems"]


def test_positions_that_are_all_alike_are_no_positions() -> None:
    table = stack([0.0] * 5, instance_number=[5, 4, 3, 2, 1])
    assert "5 slices without a position of their own: ordered by instance number, z unknown" in one(table)["problems"]
    kept, skipped = apply_geometry(table, GeometryConfig())
    assert kept["instance_number"].tolist() == [1, 2, 3, 4, 5]
    assert kept["z_mm"].isna().all()
    assert skipped.empty


def test_two_slices_at_every_position_without_a_patient_id_may_be_two_people() -> None:
    table = stack([0.0, 0.0, 5.0, 5.0, 10.0, 10.0], instance_number=[1, 1, 2, 2, 3, 3])
    kept, skipped = apply_geometry(table.assign(patient_id="folder:a"), GeometryConfig())
    assert kept.empty
    assert len(skipped) == 6
    assert skipped["reason"].iloc[-1].startswith("two slices at every position of 's' and no patient id")
    kept, _ = apply_geometry(table, GeometryConfig())
    assert len(kept) == 3  # one person's, by their id: exported twice


def test_a_series_id_for_every_slice_is_one_series(tmp_path: Path) -> None:
    for k in range(4):
        place = {"ImagePositionPatient": [-100, -100, 5.0 * k], "SeriesInstanceUID": f"1.2.{k}"}
        write(tmp_path / f"{k}.dcm", ct(slice_hu(k), InstanceNumber=k + 1, **place))
    write(tmp_path / "other.dcm", ct(slice_hu(9), SeriesInstanceUID="1.9", StudyInstanceUID="1.8"))
    names = [path.name for path in sorted(tmp_path.glob("*.dcm"))]
    headers, _ = usable_headers(names, tmp_path, cache_dir=None, progress=False)
    assert headers["series_id"].tolist() == ["1.2.0"] * 4 + ["1.9"]
