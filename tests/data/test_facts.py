from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.audits.facts import FACTS, slice_facts
from hemlearn.data.manifest import Manifest, build_manifest
from tests.data.conftest import Counts
from tests.data.heads import build, folder_of_heads, head
from tests.datamodules.slices import write_slice, write_volume


def pictures(root: Path) -> Manifest:
    """Six heads; one is RGBA, one a JPEG."""
    rows = folder_of_heads(root, 6)
    Image.fromarray(head(50)).convert("RGBA").save(root / "img/001.png")
    Image.fromarray(head(51)).save(root / "img/002.jpg")
    rows.loc[2, "path"] = "img/002.jpg"
    return build(root, rows)


def volume(root: Path, **tags: Any) -> Manifest:
    """Two DICOM series of three slices from two scanners."""
    rows = []
    for patient, own in (("P1", {"Manufacturer": "GE", "SliceThickness": 5}), ("P2", tags)):
        for z in range(3):
            name = f"{patient}/{z}.dcm"
            write_slice(root / name, float(z), patient=patient, series=f"1.{patient[1]}", **own)
            rows.append((f"{patient}-{z}", patient, name, float(z), z % 2))
    table = pd.DataFrame(rows, columns=["slice_id", "patient_id", "path", "z_mm", "bleed"])
    return build_manifest(table, root=root, labels=["bleed"], source="table", progress=False)


def test_facts_of_pictures(tmp_path: Path) -> None:
    manifest = pictures(tmp_path)
    found = slice_facts(manifest, cache_dir=None)
    assert tuple(found) == FACTS
    assert found["encoding"].tolist() == ["PNG L", "PNG RGBA", "JPEG L", "PNG L", "PNG L", "PNG L"]
    sizes = [(tmp_path / path).stat().st_size for path in manifest.table["path"]]
    assert found["bytes"].tolist() == sizes
    with Image.open(tmp_path / manifest.table["path"][4]) as image:
        assert (found["width"][4], found["height"][4]) == image.size
        assert found["aspect"][4] == pytest.approx(image.width / image.height)
    np.testing.assert_allclose(found["bytes_per_pixel"], found["bytes"] / (found["height"] * found["width"]))
    assert (found["manufacturer"] == "").all()
    assert found["thickness_mm"].isna().all()
    assert (found["slices"] == 1).all()


def test_facts_of_dicom_headers(tmp_path: Path) -> None:
    tags = {
        "Manufacturer": "SIEMENS",
        "ConvolutionKernel": ["H31s", "H60s"],
        "SliceThickness": 1.5,
        "GantryDetectorTilt": -12,
        "PixelSpacing": [0.4, 0.4],
        "BitsStored": 12,
        "HighBit": 11,
    }
    found = slice_facts(volume(tmp_path, **tags), cache_dir=None)
    assert found["manufacturer"].tolist() == ["GE"] * 3 + ["SIEMENS"] * 3
    assert found["kernel"].tolist() == [""] * 3 + ["H31s\\H60s"] * 3
    assert found["thickness_mm"].tolist() == [5.0] * 3 + [1.5] * 3
    assert found["pixel_mm"].tolist() == [0.5] * 3 + [0.4] * 3
    assert found["tilt_deg"].iloc[3:].tolist() == [-12.0] * 3
    assert found["encoding"].iloc[[0, 5]].tolist() == ["MONOCHROME2 16 bit signed", "MONOCHROME2 12 bit signed"]
    assert (found["slices"] == 3).all()


def test_a_header_without_values_is_unknown_not_wrong(tmp_path: Path) -> None:
    found = slice_facts(volume(tmp_path, SliceThickness=None, PixelSpacing=None), cache_dir=None)
    assert found.loc[3:, ["thickness_mm", "pixel_mm", "tilt_deg"]].isna().all(axis=None)


def test_the_slices_of_a_volume_file_share_its_bytes(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", 4)
    rows = pd.DataFrame(
        {
            "slice_id": [f"a{k}" for k in range(4)],
            "patient_id": "a",
            "path": "a.nii.gz",
            "frame": range(4),
            "z_mm": [0.0, 5.0, 10.0, 15.0],
            "bleed": [0, 1, 0, 1],
        }
    )
    manifest = build_manifest(rows, root=tmp_path, labels=["bleed"], source="table", progress=False)
    found = slice_facts(manifest, cache_dir=None)
    assert found["bytes"].sum() == (tmp_path / "a.nii.gz").stat().st_size
    assert set(found["encoding"]) == {"NIfTI int16"}
    assert set(found["thickness_mm"]) == {5.0}
    part = slice_facts(manifest, cache_dir=None, rows=np.array([2, 0]))
    pd.testing.assert_frame_equal(part, found.iloc[[2, 0]].reset_index(drop=True))


def test_kept_facts_are_not_read_again_unless_a_file_changes(tmp_path: Path, own_cache: Path, counts: Counts) -> None:
    manifest = pictures(tmp_path)
    first = slice_facts(manifest, cache_dir=own_cache)
    counts.clear()
    pd.testing.assert_frame_equal(slice_facts(manifest, cache_dir=own_cache), first)
    assert not counts.opened
    Image.fromarray(head(60)).convert("RGB").save(tmp_path / "img/003.png")
    counts.clear()
    again = slice_facts(manifest, cache_dir=own_cache)
    assert counts.opened == {"003.png": 1}
    assert again["encoding"][3] == "PNG RGB"
    slice_facts(manifest, cache_dir=own_cache)
    assert counts.opened == {"003.png": 1}


def test_a_file_that_has_gone_costs_its_facts_and_is_told(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = pictures(tmp_path)
    (tmp_path / "img/000.png").unlink()
    (tmp_path / "img/005.png").write_bytes(b"no picture any more")
    with caplog.at_level(logging.WARNING):
        found = slice_facts(manifest, cache_dir=own_cache)
    assert "2 of 6 files cannot be read again" in caplog.text
    assert "000.png" in caplog.text
    assert np.isnan(found["bytes"][0])
    assert found["encoding"].iloc[[0, 5]].tolist() == ["", ""]
    assert found["height"].notna().all()


def test_a_damaged_cache_is_made_again(tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = pictures(tmp_path)
    first = slice_facts(manifest, cache_dir=own_cache)
    (kept,) = (own_cache / "scan").glob("*.parquet")
    kept.write_bytes(os.urandom(200))
    pd.testing.assert_frame_equal(slice_facts(manifest, cache_dir=own_cache), first)
    assert "made again" in caplog.text
