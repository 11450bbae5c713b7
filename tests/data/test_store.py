import errno
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hemlearn.data import readers, store
from hemlearn.data.manifest import Manifest
from hemlearn.data.preprocess import resize_square
from hemlearn.data.readers import Reader, register
from hemlearn.data.readers.image import read_image
from hemlearn.data.store import SliceStore, open_store
from hemlearn.util import block_file
from hemlearn.util.errors import ConfigError, DataError, StoreError
from hemlearn.util.files import file_stamp
from tests.data.heads import build, folder_of_heads, head, save


def opened(manifest: Manifest, cache: Path, **keys: Any) -> SliceStore:
    return open_store(manifest, **({"size": 32, "fit": "letterbox", "cache_dir": cache, "progress": False} | keys))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return build(tmp_path / "set", folder_of_heads(tmp_path / "set", 10))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slices per part, decoded one after the other."""
    monkeypatch.setattr(store, "PART_BYTES", 2 * 32 * 32)


def decoded(
    monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None, error: BaseException | None = None
) -> list[int]:
    """First rows of the parts that are decoded from here on; part number ``fail_at`` raises."""
    seen: list[int] = []
    real = store._write_part

    def spy(file: Any, step: Any, root: Path, squares: Any, start: int, sources: Any) -> Any:
        if fail_at is not None and len(seen) == fail_at:
            assert error is not None
            raise error
        seen.append(start)
        return real(file, step, root, squares, start, sources)

    monkeypatch.setattr(store, "_write_part", spy)
    return seen


def test_a_store_holds_every_slice(manifest: Manifest, tmp_path: Path) -> None:
    built = opened(manifest, tmp_path)
    assert built.array.shape == (10, 32, 32)
    assert built.array.dtype == np.uint8
    assert built.unit == "display"
    assert not built.array.flags.writeable
    assert isinstance(built.array, np.memmap)
    for name, row in built.rows.items():
        pixels = read_image(manifest.root / f"img/{name}.png")
        assert np.array_equal(built.array[row], resize_square(pixels, 32, "letterbox", 0))
    built.verify()
    assert sorted(path.name for path in built.folder.iterdir()) == ["complete.json", "slices.bin", "stamps.json"]


def test_a_second_opening_decodes_nothing(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(manifest, tmp_path)
    seen = decoded(monkeypatch)
    assert opened(manifest, tmp_path).key == first.key
    assert seen == []


def test_the_key_follows_content_and_settings(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {opened(manifest, tmp_path).key}
    keys.add(opened(manifest, tmp_path, size=40).key)
    keys.add(opened(manifest, tmp_path, fit="crop").key)
    save(manifest.root / "img/004.png", head(44))
    changed = build(manifest.root, folder_of_heads(tmp_path / "other", 10))
    keys.add(opened(changed, tmp_path).key)
    reader = readers._READERS[".png"]
    monkeypatch.setitem(readers._READERS, ".png", replace(reader, version=reader.version + 1))
    keys.add(opened(changed, tmp_path).key)
    assert len(keys) == 5


def test_the_same_content_elsewhere_shares_a_store(manifest: Manifest, tmp_path: Path) -> None:
    first = opened(manifest, tmp_path)
    rows = folder_of_heads(tmp_path / "copy", 10)
    rows["slice_id"] = "x" + rows["slice_id"]
    second = opened(build(tmp_path / "copy", rows), tmp_path)
    assert second.folder == first.folder
    assert second.rows["x003"] == 3


def test_hu_slices_are_stored_as_int16_with_air_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_READERS", dict(readers._READERS))

    def volume(path: Path, frame: int) -> np.ndarray[Any, Any]:
        return np.full((20, 40), 10 * frame - 5, np.int16) + np.arange(40, dtype=np.int16)

    register(Reader("test", 1, "HU", volume), [".vol.gz"])
    (tmp_path / "a.vol.gz").write_bytes(b"volume")
    rows = folder_of_heads(tmp_path, 3).assign(path="a.vol.gz", patient_id="one", frame=[0, 1, 2])
    built = opened(build(tmp_path, rows), tmp_path / "cache", size=20)
    assert (built.unit, built.array.dtype) == ("HU", np.int16)
    assert (built.array[:, 0] == -1000).all()
    assert (np.diff(built.array[:, 10, 7]) == 10).all()
    # Beside a screen image HU cannot be kept: all are shown through the brain window then.
    mixed = rows.assign(path=["a.vol.gz", "a.vol.gz", "img/002.png"], frame=[0, 30, 0])
    shown = opened(build(tmp_path, mixed), tmp_path / "cache", size=20)
    assert (shown.unit, shown.array.dtype) == ("display", np.uint8)
    assert shown.array[0].max() < 128
    assert shown.array[1].max() == 255


def test_a_killed_build_goes_on_where_it_was(
    manifest: Manifest, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        decoded(patch, fail_at=3, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            opened(manifest, tmp_path, n_jobs=1)
    (building,) = (tmp_path / "stores").glob("*.building")
    # One finished part was damaged on disk, one journal cut short: both are noticed.
    with (building / "slices.bin").open("r+b") as file:
        file.write(b"\xff" * 9)
    (building / "part-00000002.json").write_text('{"start": 2, "st')
    (building / "part-00000003.json").write_text(
        '{"start": "a", "stop": null, "offset": -5, "bytes": 1e99, "sha256": 3}'
    )
    seen = decoded(monkeypatch)
    resumed = opened(manifest, tmp_path, n_jobs=1)
    assert seen == [0, 2, 6, 8]
    assert np.array_equal(resumed.array, opened(manifest, tmp_path / "fresh").array)
    assert not building.exists()


def slow_build(root: str, cache: str, log: str) -> None:
    rows = folder_of_heads_rows(Path(root))
    real = store._write_part

    def slow(file: Any, step: Any, root: Path, squares: Any, start: int, sources: Any) -> Any:
        with Path(log).open("a") as text:
            text.write(f"{start}\n")
        time.sleep(0.05)
        return real(file, step, root, squares, start, sources)

    store._write_part = slow  # type: ignore[assignment]
    store.PART_BYTES = 2 * 32 * 32
    opened(build(Path(root), rows), Path(cache), n_jobs=1)


def folder_of_heads_rows(root: Path) -> Any:
    import pandas as pd

    names = sorted(path.stem for path in (root / "img").glob("*.png"))
    return pd.DataFrame(
        {"slice_id": names, "patient_id": names, "path": [f"img/{name}.png" for name in names], "bleed": 0}
    )


def start(manifest: Manifest, cache: Path, log: Path) -> Any:
    # Forked, so that the modules need not be imported again; the child runs no threads of the parent.
    process = multiprocessing.get_context("fork").Process(
        target=slow_build, args=(str(manifest.root), str(cache), str(log))
    )
    process.start()
    return process


def test_two_processes_build_once(manifest: Manifest, tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [start(manifest, tmp_path, log) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(map(int, log.read_text().split())) == [0, 2, 4, 6, 8]


def test_after_kill_9_the_next_process_completes(manifest: Manifest, tmp_path: Path, small_parts: None) -> None:
    log = tmp_path / "log"
    process = start(manifest, tmp_path, log)
    deadline = time.monotonic() + 60
    while not (log.exists() and len(log.read_text().split()) >= 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    (building,) = (tmp_path / "stores").glob("*.building")
    assert len(list(building.glob("part-*.json"))) >= 2
    finished = opened(manifest, tmp_path, n_jobs=1)
    finished.verify()
    assert np.array_equal(finished.array, opened(manifest, tmp_path / "fresh").array)


def test_a_disk_that_fills_up(
    manifest: Manifest, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded(monkeypatch, fail_at=2, error=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StoreError) as caught:
        opened(manifest, tmp_path, n_jobs=1)
    assert f"needs {10 * 32 * 32} bytes" in caught.value.problem
    assert "data.cache_dir" in caught.value.remedy
    assert [path.suffix for path in (tmp_path / "stores").iterdir()] == [".lock"]


def test_a_disk_that_is_full_already(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    seen = decoded(monkeypatch)
    with pytest.raises(StoreError, match=r"1000 bytes are free.*needs 10240 bytes"):
        opened(manifest, tmp_path)
    assert seen == []
    assert not list((tmp_path / "stores").glob("*.building"))


def test_a_cache_that_cannot_be_written(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written") as caught:
        opened(manifest, tmp_path / "file")
    assert "HEMLEARN_CACHE" in caught.value.remedy


@pytest.mark.parametrize("harm", ["marker", "list", "parts missing", "no marker", "no data"])
def test_a_store_without_a_usable_marker_is_built_again(
    manifest: Manifest, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened(manifest, tmp_path)
    expected = np.array(first.array)
    data, marker = first.folder / "slices.bin", first.folder / "complete.json"
    if harm == "marker":
        marker.write_text("{")
    elif harm == "list":
        marker.write_text("[1]")
    elif harm == "parts missing":
        marker.write_text(json.dumps(first.file.marker | {"parts": []}))
    else:
        (marker if harm == "no marker" else data).unlink()
    again = opened(manifest, tmp_path)
    assert np.array_equal(again.array, expected)
    assert ("complete.json is damaged" in caplog.text) == (harm in ("marker", "list", "parts missing"))


def _flipped(raw: bytearray) -> None:
    raw[5000] ^= 0x7F


def _zeroed(raw: bytearray) -> None:
    raw[4100:6000] = bytes(1900)


def _swapped(raw: bytearray) -> None:
    raw[4096:8192] = raw[6144:8192] + raw[4096:6144]


def _cut(raw: bytearray) -> None:
    del raw[8500:]


def _longer(raw: bytearray) -> None:
    raw += bytes(9)


HARM = {_flipped: [4], _zeroed: [4], _swapped: [4, 6], _cut: [8], _longer: []}  # -> first rows of what is made again


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: str(harm.__name__))
def test_a_damaged_store_is_refused_and_its_bad_parts_are_made_again(
    manifest: Manifest, tmp_path: Path, harm: Any, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened(manifest, tmp_path, n_jobs=1).folder
    data, marker = folder / "slices.bin", folder / "complete.json"
    before, told = data.read_bytes(), marker.read_bytes()
    raw, info = bytearray(before), data.stat()
    harm(raw)
    data.write_bytes(raw)
    os.utime(data, ns=(info.st_atime_ns, info.st_mtime_ns))
    first = (HARM[harm] or [8])[0]
    with pytest.raises(
        StoreError, match=rf"slices\.bin: \d part.? of 5 changed since written \(rows {first} to "
    ) as caught:
        opened(manifest, tmp_path)
    assert "hemlearn prepare" in caught.value.remedy
    seen = decoded(monkeypatch)
    opened(manifest, tmp_path, n_jobs=1, repair=True)
    assert seen == HARM[harm]
    assert (data.read_bytes(), marker.read_bytes()) == (before, told)
    opened(manifest, tmp_path).verify()


def test_an_index_that_was_changed_is_written_again(manifest: Manifest, tmp_path: Path, small_parts: None) -> None:
    built = opened(manifest, tmp_path, n_jobs=1)
    marker, told = built.file.marker, (built.folder / "complete.json").read_bytes()
    marker["parts"][1]["sha256"], marker["parts"][2]["sha256"] = (marker["parts"][i]["sha256"] for i in (2, 1))
    (built.folder / "complete.json").write_text(json.dumps(marker))
    with pytest.raises(StoreError, match=r"2 parts of 5 changed since written \(rows 2 to 3, 4 to 5\)"):
        opened(manifest, tmp_path)
    opened(manifest, tmp_path, n_jobs=1, repair=True)
    assert (built.folder / "complete.json").read_bytes() == told


def test_what_no_time_tells_is_found_by_the_sample_and_by_verify(
    manifest: Manifest, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk forgets: the bytes change, and nothing of the file's record does."""
    built = opened(manifest, tmp_path, n_jobs=1)
    raw = bytearray((built.folder / "slices.bin").read_bytes())
    _flipped(raw)
    (built.folder / "slices.bin").write_bytes(raw)
    stamps = {name: file_stamp((built.folder / name).stat()) for name in ("slices.bin", "complete.json")}
    (built.folder / "stamps.json").write_text(json.dumps(stamps))
    with pytest.raises(StoreError, match="rows 4 to 5"):
        opened(manifest, tmp_path)
    monkeypatch.setattr(block_file, "_holds", lambda data, part: part.start != 4 or only_sampled[0])
    monkeypatch.setattr(block_file, "SAMPLE", 1)
    only_sampled = [True]
    opened(manifest, tmp_path)
    only_sampled[0] = False
    with pytest.raises(StoreError, match="rows 4 to 5"):
        opened(manifest, tmp_path, verify=True)


def test_a_copied_store_is_read_whole_once(
    manifest: Manifest, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(manifest, tmp_path / "here", n_jobs=1)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    read: list[int] = []
    real = block_file._holds
    monkeypatch.setattr(block_file, "_holds", lambda data, part: read.append(part.start) or real(data, part))
    monkeypatch.setattr(block_file, "SAMPLE", 1)
    counts = []
    for _ in range(2):
        opened(manifest, tmp_path / "there")
        counts.append(len(read))
    assert counts == [5, 6]


def test_an_image_that_changed_after_indexing_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    save(manifest.root / "img/004.png", head(44))
    with pytest.raises(DataError, match=r"004\.png: its content has changed") as caught:
        opened(manifest, tmp_path)
    assert "hemlearn index" in caught.value.remedy


def test_an_image_that_vanished_is_named(manifest: Manifest, tmp_path: Path) -> None:
    (manifest.root / "img/004.png").unlink()
    with pytest.raises(DataError, match=r"004\.png"):
        opened(manifest, tmp_path)


def test_impossible_settings(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.fit='stretch'"):
        opened(manifest, tmp_path, fit="stretch")
    with pytest.raises(ConfigError, match=r"data\.image_size=0"):
        opened(manifest, tmp_path, size=0)


def test_a_pickled_store_carries_no_pixels(manifest: Manifest, tmp_path: Path) -> None:
    built = opened(manifest, tmp_path, size=256)
    assert built.array.nbytes > 600_000
    text = pickle.dumps(built)
    assert len(text) < 2000
    copy = pickle.loads(text)
    assert np.array_equal(copy.array, built.array)
    assert copy.rows == built.rows


def test_parallel_builds_give_the_same(
    manifest: Manifest,
    tmp_path: Path,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    one = opened(manifest, tmp_path / "one", n_jobs=1)
    threads = opened(manifest, tmp_path / "two", n_jobs=2, progress=True)
    monkeypatch.setattr(store, "_MANY", 0)
    processes = opened(manifest, tmp_path / "three", n_jobs=2)
    assert np.array_equal(one.array, threads.array)
    assert np.array_equal(one.array, processes.array)
    assert "Decoding slices: 10/10" in caplog.text
    assert json.loads((processes.folder / "complete.json").read_text())["shape"] == [10, 32, 32]
