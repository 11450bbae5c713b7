"""What the registry, the fingerprints and the slice store make of units that depend on the modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemlearn.data import store
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.readers import VolumeCache, reader_for, to_display
from hemlearn.data.scan import content_of
from hemlearn.data.store import SliceStore, open_store
from hemlearn.util.errors import DataError
from tests.data.conftest import Counts
from tests.data.readers.files import ct, nifti, slice_hu, write


def rows(*items: tuple[str, int]) -> pd.DataFrame:
    names = [f"s{item}" for item in range(len(items))]
    return pd.DataFrame(
        {
            "slice_id": names,
            "patient_id": "p",
            "path": [path for path, _ in items],
            "frame": [frame for _, frame in items],
            "bleed": 0,
        }
    )


def build(root: Path, table: pd.DataFrame, modality: str = "CT", **options: Any) -> Manifest:
    return build_manifest(
        table, root=root, labels=["bleed"], source="table", modality=modality, progress=False, **options
    )


def opened(manifest: Manifest, tmp_path: Path) -> SliceStore:
    return open_store(manifest, size=32, fit="letterbox", cache_dir=tmp_path / "cache", n_jobs=1, progress=False)


def test_units_follow_the_modality() -> None:
    for name in ("a.dcm", "A.IMA", "v.nii", "v.nii.gz", "IM0001", "1.2.840.3"):
        reader = reader_for(name)
        assert (reader.unit_of("CT"), reader.unit_of("MR")) == ("HU", "signal")
    assert reader_for("a.png").unit_of("MR") == "display"
    assert reader_for("x/v.nii.gz").name == "nifti"
    assert reader_for("x/IM0001").name == "dicom"
    for name in ("scan.docx", ".hidden", "v.gz"):
        with pytest.raises(DataError, match="unknown kind of file"):
            reader_for(name)


def test_signal_is_displayed_between_percentiles() -> None:
    signal = np.zeros((20, 20), np.int16)
    signal[5:15, 5:15] = np.arange(1000, 1100).reshape(10, 10)
    shown = to_display(signal, "signal")
    assert shown[0, 0] == 0
    assert shown.max() == 255
    assert 120 < shown[9, 14] < 135
    assert (to_display(signal * 0, "signal") == 0).all()


def test_ct_is_stored_in_hu_and_mr_as_signal(tmp_path: Path) -> None:
    ct_pixels, mr_pixels = slice_hu(1), (slice_hu(2) + 1000).astype(np.uint16)
    write(tmp_path / "a/ct.dcm", ct(ct_pixels, RescaleIntercept=0))
    write(tmp_path / "b/mr.dcm", ct(mr_pixels, Modality="MR"))
    hounsfield = opened(build(tmp_path / "a", rows(("ct.dcm", 0))), tmp_path)
    assert (hounsfield.unit, hounsfield.array.dtype) == ("HU", np.int16)
    assert np.array_equal(hounsfield.array[0], ct_pixels)
    signal = opened(build(tmp_path / "b", rows(("mr.dcm", 0)), "MR"), tmp_path)
    assert (signal.unit, signal.array.dtype) == ("signal", np.int16)
    assert np.array_equal(signal.array[0], mr_pixels)


def test_a_wide_mr_slice_has_zeros_around(tmp_path: Path) -> None:
    write(tmp_path / "mr.dcm", ct(np.full((16, 32), 500, np.uint16) + np.arange(32, dtype=np.uint16), Modality="MR"))
    built = opened(build(tmp_path, rows(("mr.dcm", 0)), "MR"), tmp_path)
    assert (built.array[0, :8] == 0).all()
    assert (built.array[0, 8:24] >= 500).all()


def test_a_file_of_another_modality_is_recorded(tmp_path: Path) -> None:
    write(tmp_path / "ct.dcm", ct(slice_hu()))
    write(tmp_path / "mr.dcm", ct(slice_hu(), Modality="MR"))
    found = build(tmp_path, rows(("ct.dcm", 0), ("mr.dcm", 0)))
    assert found.table["path"].tolist() == ["ct.dcm"]
    assert found.skipped["reason"].tolist() == ["modality MR, but the table says CT"]


def test_broken_slices_are_recorded_and_never_blank(tmp_path: Path) -> None:
    good = write(tmp_path / "good.dcm", ct(slice_hu())).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(good[:-100])
    (tmp_path / "text.dcm").write_text("patient,any\n")
    found = build(tmp_path, rows(("good.dcm", 0), ("cut.dcm", 0), ("text.dcm", 0), ("absent.dcm", 0)))
    assert found.table["path"].tolist() == ["good.dcm"]
    reasons = found.skipped.set_index("item")["reason"]
    assert reasons["cut.dcm"].startswith("truncated pixels")
    assert reasons["text.dcm"].startswith("not a DICOM file")
    assert "does not exist" in reasons["absent.dcm"]


def test_one_volume_file_under_two_modalities_has_two_units(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).uniform(0, 100, (12, 12, 2)).astype(np.float32)
    nifti(tmp_path / "v.nii.gz", voxels)
    table = rows(("v.nii.gz", 0), ("v.nii.gz", 1))
    as_ct = opened(build(tmp_path, table, "CT", cache_dir=tmp_path / "kept"), tmp_path)
    as_mr = opened(build(tmp_path, table, "MR", cache_dir=tmp_path / "kept"), tmp_path)
    assert (as_ct.unit, as_mr.unit) == ("HU", "signal")
    assert as_ct.key != as_mr.key
    assert as_ct.array.max() <= 100
    assert as_mr.array.max() > 15_000  # signal below 256 levels is scaled


def test_a_volume_is_hashed_and_decompressed_once_by_parts_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: Counts
) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 12)).astype(np.int16)
    nifti(tmp_path / "v.nii.gz", voxels)
    counts.clear()
    monkeypatch.setattr(store, "PART_BYTES", 4 * 32 * 32 * 2)
    manifest = build(tmp_path, rows(*(("v.nii.gz", frame) for frame in range(12))), n_jobs=1)
    assert counts.opened["v.nii.gz"] == 1
    built = opened(manifest, tmp_path / "elsewhere")
    assert counts.opened["v.nii.gz"] <= 5  # header, voxels and hash once for the store; not once per part or slice
    assert len(built.array) == 12
    nifti(tmp_path / "v.nii.gz", voxels + 1)
    assert content_of(tmp_path / "v.nii.gz") != manifest.table["content"][0]


def test_a_volume_that_changed_is_noticed(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 3)).astype(np.int16)
    nifti(tmp_path / "v.nii.gz", voxels)
    manifest = build(tmp_path, rows(*(("v.nii.gz", frame) for frame in range(3))), n_jobs=1)
    nifti(tmp_path / "v.nii.gz", voxels + 1)
    with pytest.raises(DataError, match="its content has changed"):
        opened(manifest, tmp_path)


def test_the_volume_cache_is_bounded(tmp_path: Path) -> None:
    cache: VolumeCache[str] = VolumeCache(limit=100)
    loaded: list[str] = []

    def load(path: Path) -> tuple[str, int]:
        loaded.append(path.name)
        return path.name, 0 if path.name == "single" else 40

    for name in ("a", "b", "a", "c", "a", "b", "single", "single"):
        if not (tmp_path / name).exists():
            (tmp_path / name).touch()
        assert cache.get(tmp_path / name, load) == name
    assert loaded == ["a", "b", "c", "b", "single", "single"]
    assert len(cache) == 2
    with pytest.raises(DataError, match="cannot be opened"):
        cache.get(tmp_path / "absent", load)

    def fail(path: Path) -> tuple[str, int]:
        raise DataError("broken", remedy="none")

    (tmp_path / "d").touch()
    with pytest.raises(DataError, match="broken"):
        cache.get(tmp_path / "d", fail)
    assert cache.get(tmp_path / "d", load) == "d"
