import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.data import scan as fingerprints
from hemlearn.data.geometry import series_geometry
from hemlearn.data.manifest import Manifest
from hemlearn.util.errors import DataError, StoreError
from hemlearn.util.files import cache_dir
from tests.data.conftest import Counts
from tests.data.heads import build, folder_of_heads, head, save


def test_rows_become_a_manifest(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 6)
    rows["bleed"] = ["0", "1", "", "null", "1.0", "0"]
    rows["z_mm"] = ["1.5", "", "3", "4", "5", "6"]
    manifest = build(tmp_path, rows)
    table = manifest.table
    assert table["slice_id"].tolist() == rows["slice_id"].tolist()
    assert table["path"].tolist() == rows["path"].tolist()
    assert np.array_equal(table["bleed"], [0, 1, np.nan, np.nan, 1, 0], equal_nan=True)
    assert np.array_equal(table["z_mm"], [1.5, np.nan, 3, 4, 5, 6], equal_nan=True)
    assert table[["height", "width"]].iloc[1].tolist() == [101, 91]
    assert (table["series_id"] == table["patient_id"]).all()
    assert table["content"].nunique() == 6
    assert (table["phash"].str.len() == 64).all()
    summary = manifest.summary()
    assert summary["labels"]["bleed"] == {"positive": 2, "negative": 2, "unknown": 2}
    assert (summary["slices"], summary["patients"], summary["skipped"]) == (6, 6, {})


def test_numeric_labels_and_absolute_and_windows_paths(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 3)
    rows["bleed"] = [0, 1.0, np.nan]
    rows["path"] = [str(tmp_path / rows["path"][0]), "img\\001.png", rows["path"][2]]
    manifest = build(tmp_path, rows)
    assert manifest.table["path"].tolist() == ["img/000.png", "img/001.png", "img/002.png"]
    assert manifest.table["bleed"].isna().tolist() == [False, False, True]


def test_nothing_is_lost(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 6)
    (tmp_path / "img/001.png").unlink()
    (tmp_path / "img/002.png").write_bytes(b"")
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "img/003.png")
    rows.loc[4, "path"] = None
    save(tmp_path / "img/stray.png", head(99))
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    given = pd.DataFrame([{"item": "row 7", "reason": "no patient"}])
    manifest = build(tmp_path, rows, images=found, skipped=given)
    assert manifest.table["slice_id"].tolist() == ["000", "005"]
    reasons = manifest.skipped.set_index("item")["reason"]
    assert reasons["row 7"] == "no patient"
    assert reasons["img/stray.png"] == "image without label"
    assert reasons["img/001.png"] == "label without image: img/001.png does not exist"
    assert reasons["img/002.png"].startswith("empty file: 0 bytes")
    assert reasons["img/003.png"].startswith("ambiguous pixel scale: I;16")
    assert reasons["004"].startswith("label without image")
    # 004 names no file, so its image is one without a label as well.
    assert reasons["img/004.png"] == "image without label"
    assert len(reasons) == 7
    assert manifest.summary()["skipped"]["label without image"] == 2


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"bleed": ["0", "2", "1", "0"]}, ["'bleed'", "'001'", "'2'", "0, 1 or empty"]),
        ({"bleed": ["0", "yes", "1", "no"]}, ["'001'", "'yes'", "2 such rows"]),
        ({"bleed": [0, 1, 0.5, 0]}, ["'002'", "0.5"]),
        ({"bleed": ["0", "inf", "1", "0"]}, ["'001'", "'inf'"]),
        ({"slice_id": ["a", "b", "a", "b"]}, ["duplicate id", "'a', 'b'"]),
        ({"slice_id": ["a", "", "c", "d"]}, ["slice_id is empty in row 3"]),
        ({"patient_id": ["a", None, "c", None]}, ["patient_id is empty in row 3", "2 rows"]),
        ({"z_mm": ["1", "2", "top", "4"]}, ["z_mm", "'002'", "'top'"]),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, list[object]], parts: list[str]) -> None:
    rows = folder_of_heads(tmp_path, 4).assign(**change)
    with pytest.raises(DataError) as caught:
        build(tmp_path, rows)
    for part in parts:
        assert part in str(caught.value)


def test_missing_folder_columns_and_rows(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 2)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        build(tmp_path / "nowhere", rows)
    with pytest.raises(DataError, match="not a folder"):
        build(tmp_path / "img/000.png", rows)
    with pytest.raises(DataError, match="no column 'bleed'; it has slice_id"):
        build(tmp_path, rows.drop(columns="bleed"))
    with pytest.raises(DataError, match="no rows"):
        build(tmp_path, rows.iloc[:0])


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 3)
    for path in rows["path"]:
        (tmp_path / path).write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 3 images can be used.*empty file") as caught:
        build(tmp_path, rows)
    assert "data.root" in caught.value.remedy


def test_checksum_is_of_content_not_of_place(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path / "a", 4)
    first = build(tmp_path / "a", rows)
    (tmp_path / "a").rename(tmp_path / "b")
    os.utime(tmp_path / "b/img/000.png", (1, 1))
    assert build(tmp_path / "b", rows.iloc[::-1]).checksum == first.checksum
    assert build(tmp_path / "b", rows.assign(bleed=["1", "1", "0", "1"])).checksum != first.checksum
    assert build(tmp_path / "b", rows.assign(patient_id="x")).checksum != first.checksum
    save(tmp_path / "b/img/002.png", head(77))
    assert build(tmp_path / "b", rows).checksum != first.checksum


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 4)
    (tmp_path / "img/003.png").unlink()
    manifest = build(tmp_path, rows, synthetic=True)
    manifest.save(tmp_path / "out")
    loaded = Manifest.load(tmp_path / "out")
    pd.testing.assert_frame_equal(loaded.table, manifest.table)
    assert loaded.skipped.to_dict("list") == manifest.skipped.to_dict("list")
    assert (loaded.labels, loaded.root, loaded.source, loaded.synthetic) == (("bleed",), tmp_path, "table", True)
    assert loaded.checksum == manifest.checksum


def test_a_damaged_or_edited_manifest_is_refused(tmp_path: Path) -> None:
    manifest = build(tmp_path, folder_of_heads(tmp_path, 4))
    with pytest.raises(DataError, match="no readable manifest"):
        Manifest.load(tmp_path)
    manifest.save(tmp_path / "out")
    import pyarrow.parquet as pq

    path = tmp_path / "out/manifest.parquet"
    arrow = pq.read_table(path)
    edited = arrow.set_column(arrow.column_names.index("bleed"), "bleed", [[1.0, 1.0, 1.0, 1.0]])
    pq.write_table(edited.replace_schema_metadata(arrow.schema.metadata), path)
    with pytest.raises(DataError, match="does not match its checksum"):
        Manifest.load(tmp_path / "out")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="no readable manifest"):
        Manifest.load(tmp_path / "out")


def test_the_schema_guards_the_table(tmp_path: Path) -> None:
    manifest = build(tmp_path, folder_of_heads(tmp_path, 3))
    for column, value, name in (("bleed", 0.5, "bleed"), ("modality", "XA", "modality"), ("slice_id", "x", "slice_id")):
        broken = manifest.table.assign(**{column: value})
        with pytest.raises(DataError, match=f"column '{name}'"):
            Manifest(broken, manifest.skipped, ("bleed",), tmp_path, "table")


def test_a_second_look_opens_only_what_changed(tmp_path: Path, counts: Counts) -> None:
    rows = folder_of_heads(tmp_path / "set", 5)
    (tmp_path / "set/img/004.png").write_bytes(b"broken")
    counts.clear()
    first = build(tmp_path / "set", rows, cache_dir=tmp_path / "set/cache")
    assert {name: counts.opened[name] for name in rows["path"].str[4:]} == {f"{item:03d}.png": 1 for item in range(5)}
    counts.clear()
    again = build(tmp_path / "set", rows, cache_dir=tmp_path / "set/cache")
    assert not [name for name in counts.opened if name.endswith(".png")]
    pd.testing.assert_frame_equal(again.table, first.table)
    assert again.skipped.to_dict("list") == first.skipped.to_dict("list")
    time.sleep(0.02)  # a clock tick of the coarsest common file system clocks
    save(tmp_path / "set/img/002.png", head(55))
    counts.clear()
    changed = build(tmp_path / "set", rows, cache_dir=tmp_path / "set/cache")
    assert [name for name in counts.opened if name.endswith(".png")] == ["002.png"]
    same = changed.table["content"] == first.table["content"]
    assert same.tolist() == [True, True, False, True]
    assert changed.table["height"].tolist() == [100, 101, 120, 103]


def test_a_damaged_fingerprint_cache_is_made_again(
    tmp_path: Path, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    rows = folder_of_heads(tmp_path / "set", 3)
    build(tmp_path / "set", rows, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache/scan").glob("*.parquet")
    file.write_bytes(b"PAR1 no more")
    counts.clear()
    build(tmp_path / "set", rows, cache_dir=tmp_path / "cache")
    assert len([name for name in counts.opened if name.endswith(".png")]) == 3
    assert "made again" in caplog.text


def test_worker_processes_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = folder_of_heads(tmp_path, 70)
    threads = build(tmp_path, rows, n_jobs=2)
    monkeypatch.setattr(fingerprints, "_MANY", 10)
    processes = build(tmp_path, rows, n_jobs=2)
    pd.testing.assert_frame_equal(threads.table, processes.table)


def test_many_rows_without_files_are_quick(tmp_path: Path) -> None:
    names = [f"{item:06d}" for item in range(50_000)]
    rows = pd.DataFrame({"slice_id": names, "patient_id": names, "path": names, "bleed": "1"})
    rows["path"] = "gone/" + rows["path"] + ".png"
    rows.loc[0, "path"] = "here.png"
    save(tmp_path / "here.png", head(0))
    started = time.perf_counter()
    manifest = build(tmp_path, rows)
    assert time.perf_counter() - started < 15  # about 1 s alone on a core
    assert len(manifest.skipped) == 49_999


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEMLEARN_CACHE", str(tmp_path / "env"))
    assert cache_dir(None) == tmp_path / "env"
    assert cache_dir(str(tmp_path / "given")) == tmp_path / "given"
    assert (tmp_path / "given").is_dir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HEMLEARN_CACHE")
    assert cache_dir(None) == tmp_path / ".cache/hemlearn"
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/below cannot be made.*") as caught:
        cache_dir(str(tmp_path / "file/below"))
    assert "data.cache_dir" in caught.value.remedy


def test_real_head_ct(head_ct: Manifest) -> None:
    assert head_ct.summary() == {
        "slices": 200,
        "patients": 200,
        "series": 200,
        "geometry": {},
        "skipped": {},
        "labels": {"hemorrhage": {"positive": 100, "negative": 100, "unknown": 0}},
    }
    assert head_ct.table[["height", "width"]].drop_duplicates().shape[0] >= 190


def test_slices_stand_in_order_of_position_within_their_series(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 5).assign(patient_id=["b", "a", "b", "a", "b"], z_mm=["5", "9", "0", "1", "2"])
    table = build(tmp_path, rows.assign(series_id=rows["patient_id"])).table
    assert table["slice_id"].tolist() == ["002", "004", "000", "003", "001"]


def test_series_level_notes_and_geometry_are_kept(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 4).assign(patient_id=["a", "a", "b", "b"], bleed=["1", "1", "0", "0"])
    (tmp_path / "img/003.png").unlink()
    headers = rows.assign(series_id=rows["patient_id"], z_mm=[0.0, 5.0, 0.0, 5.0], tilt_deg=12.0)
    series = series_geometry(headers)
    manifest = build(tmp_path, headers, series=series, label_level="series", notes=["made up"])
    assert manifest.series["kept"].tolist() == [2, 1]
    assert manifest.summary()["geometry"] == {"gantry tilt": 2}
    manifest.save(tmp_path / "out")
    loaded = Manifest.load(tmp_path / "out")
    pd.testing.assert_frame_equal(loaded.series, manifest.series)
    assert (loaded.label_level, loaded.notes) == ("series", ("made up",))
    assert loaded.checksum == manifest.checksum
    assert build(tmp_path, headers, series=series).checksum != manifest.checksum
    (tmp_path / "out/series.csv").unlink()
    with pytest.raises(DataError, match=r"no readable manifest.*series\.csv"):
        Manifest.load(tmp_path / "out")


def test_labels_of_a_series_may_not_differ_between_its_slices(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 4).assign(patient_id=["a", "a", "b", "b"])
    with pytest.raises(DataError, match="series 'a': its slices differ in label 'bleed'"):
        build(tmp_path, rows, label_level="series")
    with pytest.raises(DataError, match="label_level='volume'"):
        build(tmp_path, rows, label_level="volume")


def test_order_counts_for_the_checksum_only_where_it_stands_for_position(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 4).assign(patient_id="a")
    turned = rows.iloc[::-1].reset_index(drop=True)
    assert build(tmp_path, rows).checksum != build(tmp_path, turned).checksum
    z = {"z_mm": [0.0, 1.0, 2.0, 3.0]}
    turned_z = turned.assign(z_mm=z["z_mm"][::-1])
    assert build(tmp_path, rows.assign(**z)).checksum == build(tmp_path, turned_z).checksum


def test_modality_may_differ_by_row_and_must_be_known(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 3).assign(modality=["mr", "", "CT"])
    assert build(tmp_path, rows, modality="OT").table["modality"].tolist() == ["MR", "OT", "CT"]
    with pytest.raises(DataError, match="modality of row '001' is 'PET'"):
        build(tmp_path, rows.assign(modality=["CT", "PET", "CT"]))


def test_nothing_left_tells_the_commonest_reason(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 1)
    lost = pd.DataFrame({"item": ["a", "b"], "reason": ["short series: x", "short series: x"]})
    with pytest.raises(DataError, match=r"every image was left out \(2 items\); most often: short series: x"):
        build(tmp_path, rows.iloc[:0], skipped=lost)


def test_losses_are_told_by_kind_and_before_the_band(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    band = [(f"P{k}/0.dcm", "outside the band: data.band=[0.25, 0.75]") for k in range(30)]
    other = [("readme.txt", "neither DICOM nor NIfTI: *.txt"), ("P8", "label without image: no file of this name")]
    lost = pd.DataFrame([*band, *other], columns=["item", "reason"])
    rows = folder_of_heads(tmp_path, 3)
    (tmp_path / "img/001.png").write_bytes(b"")
    manifest = build(tmp_path, rows, skipped=lost)
    assert manifest.skipped["item"].tolist()[:4] == ["img/001.png", "P8", "readme.txt", "P0/0.dcm"]
    assert list(manifest.summary()["skipped"]) == [
        "empty file",
        "label without image",
        "neither DICOM nor NIfTI",
        "outside the band",
    ]
    (line,) = [text for text in caplog.messages if "left out" in text]
    assert line.startswith(f"{tmp_path}: 3 items left out: 1 x empty file, e.g. img/001.png (empty file: 0 bytes")
    assert "; 1 x label without image, e.g. P8 (" in line
    assert line.endswith("; besides 30 slices outside the band")


def test_slices_outside_the_band_alone_are_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = pd.DataFrame({"item": ["a", "b"], "reason": "outside the band: data.band=[0.25, 0.75]"})
    with caplog.at_level("INFO"):
        build(tmp_path, folder_of_heads(tmp_path, 1), skipped=lost)
    (record,) = [item for item in caplog.records if "band" in item.getMessage()]
    assert record.levelname == "INFO"
    assert record.getMessage().endswith("nothing left out but 2 slices outside the band")


@pytest.mark.parametrize(
    ("reasons", "remedy"),
    [
        (["no slice in the band: none of the 2 of series 'x'"] * 2, "widen data.band (null: all slices)"),
        (["modality MR: six_class is CT", "modality PT: neither"], "give images of the modality"),
        (["mixed contrasts: echo time 12 and 100 ms"], "export every contrast as a series of its own"),
        (["short series: 'x' has 2 slices"], "lower data.geometry.min_slices"),
        (
            ["not axial: sagittal", "neither DICOM nor NIfTI: *.txt", "neither DICOM nor NIfTI: *.md"],
            "export the axial",
        ),
        (["truncated pixels: 3 of 9 bytes", *["image without label"] * 4], "copy or export the files again"),
        (
            ["other orientation than most of series 'a'", "short series: 'x'", "short series: 'y'"],
            "lower data.geometry.min_slices; export the axial",
        ),
    ],
)
def test_the_remedy_names_the_key_that_left_nothing(tmp_path: Path, reasons: list[str], remedy: str) -> None:
    rows = folder_of_heads(tmp_path, 1)
    lost = pd.DataFrame({"item": [f"P{k}" for k in range(len(reasons))], "reason": reasons})
    with pytest.raises(DataError, match=r"every image was left out.*times?, first 'P\d'\)") as caught:
        build(tmp_path, rows.iloc[:0], skipped=lost)
    assert caught.value.remedy.startswith(remedy)
    assert ("data.geometry" in caught.value.remedy) == ("geometry" in remedy)


def test_a_series_of_nothing_is_noted(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 4).assign(patient_id=["a", "a", "b", "b"])
    for name in ("001", "002", "003"):  # one blank slice is nothing strange
        save(tmp_path / f"img/{name}.png", np.zeros((90, 90), np.uint8))
    (note,) = build(tmp_path, rows).notes
    assert note.startswith("1 series shows nothing")
    assert note.endswith("of patient 'b': img/002.png")


def test_many_slices_of_nothing_within_a_series_are_noted(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 12).assign(patient_id="a", series_id=["1"] * 6 + ["2"] * 6)
    for name in ("001", "003", "005", "010", "011"):  # half of one series; two slices of the other
        save(tmp_path / f"img/{name}.png", np.zeros((90, 90), np.uint8))
    (note,) = build(tmp_path, rows).notes
    assert note.startswith("3 slices show nothing in 1 series")
    assert note.endswith("of patient 'a': img/001.png")


def test_two_patients_in_one_series_are_named(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 3).assign(series_id=["1", "1", "2"])
    with pytest.raises(DataError, match="series_id '1' stands with patients '000', '001'"):
        build(tmp_path, rows)


def test_ids_and_paths_that_a_terminal_would_obey(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 4)
    save(tmp_path / "img/a\rb.png", head(9))
    rows["patient_id"] = ["P\x1b[31m1", "P2", "P\u202e3", "P4"]
    rows.loc[3, "path"] = "img/a\rb.png"
    manifest = build(tmp_path, rows)
    assert manifest.table["patient_id"].tolist() == [r"P\x1b[31m1", "P2", r"P\u202e3"]
    assert manifest.skipped.to_dict("records") == [
        {"item": r"img/a\rb.png", "reason": "its name holds a control character: rename it"}
    ]
    manifest.save(tmp_path / "saved")
    assert Manifest.load(tmp_path / "saved").table["patient_id"].tolist() == manifest.table["patient_id"].tolist()
