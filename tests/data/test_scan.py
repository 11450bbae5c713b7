"""Every file is opened once and decoded once for index, prepare and audits together."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemlearn.audits.facts import border_features, slice_facts
from hemlearn.config.schema import GeometryConfig
from hemlearn.data import scan as module
from hemlearn.data.duplicates import kept_duplicate_pairs
from hemlearn.data.geometry import arrange
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.scan import keeping_squares
from hemlearn.data.scan_cache import Squares
from hemlearn.data.series import usable_headers
from hemlearn.data.store import SliceStore, open_store
from tests.data.conftest import Counts
from tests.data.heads import head, save
from tests.data.readers.files import ct, nifti, slice_hu, write

SIZE = 24


def dicom_set(root: Path) -> list[str]:
    for series in range(2):
        for number in range(4):
            data = ct(
                slice_hu(10 * series + number, 40),
                SeriesInstanceUID=f"1.{series}",
                PatientID=f"p{series}",
                ImagePositionPatient=[0, 0, 5.0 * number],
                InstanceNumber=number,
            )
            write(root / f"{number}{series}.dcm", data)  # series lie mixed in one folder, as in RSNA
    return sorted(path.name for path in root.glob("*.dcm"))


def nifti_set(root: Path) -> list[str]:
    for item in range(2):
        voxels = np.stack([slice_hu(10 * item + number, 40) for number in range(5)], axis=-1)
        nifti(root / f"v{item}.nii.gz", voxels, np.diag([1.0, 1.0, 5.0, 1.0]))
    return ["v0.nii.gz", "v1.nii.gz"]


def picture_set(root: Path) -> list[str]:
    for item in range(6):
        save(root / f"{item}.png", head(item))
    save(root / "6.png", head(2)[4:-4, 4:-4])  # a copy to be compared by its pixels
    return [f"{item}.png" for item in range(7)]


def index(root: Path, names: list[str], cache: Path | None) -> Manifest:
    """What a data module does between files and manifest."""
    if names[0].endswith(".png"):
        ids = [Path(name).stem for name in names]
        rows = pd.DataFrame({"slice_id": ids, "patient_id": ids, "path": names})
    else:
        headers, _ = usable_headers(names, root, cache_dir=cache, progress=False, nifti="CT")
        rows = arrange(headers, GeometryConfig()).rows
        rows["slice_id"] = rows["path"] + "#" + rows["frame"].astype(str)
    return build_manifest(rows, root=root, labels=[], source="x", cache_dir=cache, progress=False)


def everything(root: Path, names: list[str], cache: Path, fit: str) -> tuple[Manifest, SliceStore]:
    """Index, audits and prepare."""
    with keeping_squares(SIZE, fit):
        manifest = index(root, names, cache)
    kept_duplicate_pairs(manifest, "near", cache)
    slice_facts(manifest, cache_dir=cache)
    store = open_store(manifest, size=SIZE, fit=fit, cache_dir=cache, progress=False)
    border_features(store, manifest.table, np.arange(len(manifest.table)), fit)
    return manifest, store


@pytest.mark.parametrize("fit", ["letterbox", "head"])
@pytest.mark.parametrize("make", [dicom_set, nifti_set, picture_set])
def test_one_opening_and_one_decode(tmp_path: Path, counts: Counts, make: Any, fit: str) -> None:
    names = make(tmp_path)
    counts.clear()
    manifest, store = everything(tmp_path, names, tmp_path / "cache", fit)
    assert {name: counts.opened[name] for name in names} == dict.fromkeys(names, 1)
    assert len(counts.decoded) == len(manifest.table)
    assert set(counts.decoded.values()) == {1}
    # Nothing is left to be read by a later command, and a store made from the files alone is the same.
    counts.clear()
    everything(tmp_path, names, tmp_path / "cache", fit)
    assert not set(names) & set(counts.opened)
    plain = index(tmp_path, names, tmp_path / "plain")
    assert plain.checksum == manifest.checksum
    pd.testing.assert_frame_equal(plain.table, manifest.table)
    alone = open_store(plain, size=SIZE, fit=fit, cache_dir=tmp_path / "plain", progress=False)
    assert alone.key == store.key
    assert np.array_equal(alone.array, store.array)
    assert not list((tmp_path / "cache/squares").iterdir())


def test_a_scan_that_was_killed_goes_on(tmp_path: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    names = dicom_set(tmp_path)
    monkeypatch.setattr(module, "_CHUNK", 2)
    real, seen = module._open_files, []

    def killed(*task: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*task)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_open_files", killed)
        with pytest.raises(KeyboardInterrupt), keeping_squares(SIZE, "letterbox"):
            index(tmp_path, names, tmp_path / "cache")
    done = {name for name in names if counts.opened[name]}
    counts.clear()
    everything(tmp_path, names, tmp_path / "cache", "letterbox")
    assert {name for name in names if counts.opened[name]} == set(names) - done


def test_squares_that_changed_on_disk_are_decoded_again(tmp_path: Path, counts: Counts) -> None:
    names = dicom_set(tmp_path)
    with keeping_squares(SIZE, "letterbox"):
        manifest = index(tmp_path, names, tmp_path / "cache")
    squares = Squares.of(manifest.root, tmp_path / "cache", SIZE, "letterbox")
    (part,) = squares.folder.glob("*.bin")
    with part.open("r+b") as file:
        file.write(b"\xff\xff")
    counts.clear()
    store = open_store(manifest, size=SIZE, fit="letterbox", cache_dir=tmp_path / "cache", progress=False)
    assert sum(counts.decoded.values()) == 1
    plain = open_store(manifest, size=SIZE, fit="letterbox", cache_dir=tmp_path / "other", progress=False)
    assert np.array_equal(store.array, plain.array)


def test_without_room_for_squares_the_store_decodes_again(
    tmp_path: Path, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = dicom_set(tmp_path)
    monkeypatch.setattr(module, "_room", lambda *_: False)
    counts.clear()
    everything(tmp_path, names, tmp_path / "cache", "letterbox")
    assert {name: counts.opened[name] for name in names} == dict.fromkeys(names, 2)


def test_without_a_cache_the_manifest_is_the_same(tmp_path: Path) -> None:
    names = dicom_set(tmp_path)
    with keeping_squares(SIZE, "letterbox"):
        pd.testing.assert_frame_equal(
            index(tmp_path, names, None).table, index(tmp_path, names, tmp_path / "cache").table
        )


@pytest.mark.parametrize("make", [dicom_set, nifti_set, picture_set])
def test_another_file_of_the_same_name_size_and_time_is_another_file(tmp_path: Path, make: Any) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    names = make(root)
    first, second = root / names[0], root / names[1]
    if make is not dicom_set:  # slices of DICOM are equally long as they are
        packed = [file.read_bytes() for file in (first, second)]
        size = max(map(len, packed))
        for file, raw in zip((first, second), packed, strict=True):
            file.write_bytes(raw + bytes(size - len(raw)))
    for file in root.iterdir():
        os.utime(file, (315532800, 315532800))  # 1980-01-01, as zip writers leave it
    before = index(root, names, cache).table.set_index("path")
    first.write_bytes(second.read_bytes())
    os.utime(first, (315532800, 315532800))
    after = index(root, names, cache).table.set_index("path")
    assert set(before.loc[[names[0]], "content"]) != set(after.loc[[names[0]], "content"])
    assert set(after.loc[[names[0]], "content"]) == set(before.loc[[names[1]], "content"])
