"""Cache files: the lock, and memory maps that do not pile up in a process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from hemlearn.data.batches import SliceDataset
from hemlearn.util.errors import DataError
from hemlearn.util.files import PageBudget, hash_range, nothing_left, write_json


@pytest.mark.parametrize(
    ("before", "made", "left"),
    [
        (None, "metrics.json", None),  # neither the folder nor the one above it
        ("", "metrics.json", ""),  # an empty folder stays one
        ("mine.txt", "metrics.json", "metrics.json mine.txt"),  # one that is in use is left alone
        (None, "journal", "journal"),  # work that the next call goes on with
    ],
)
def test_a_refused_call_leaves_nothing(tmp_path: Path, before: str | None, made: str, left: str | None) -> None:
    folder = tmp_path / "above" / "out"
    if before is not None:
        folder.mkdir(parents=True)
    if before:
        (folder / before).write_text("x")

    def call() -> None:
        with nothing_left(folder, "journal"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / made).write_text("x")
            raise DataError("no", remedy="none")

    with pytest.raises(DataError):
        call()
    if left is None:
        assert not folder.parent.exists()
    else:
        assert " ".join(sorted(item.name for item in folder.iterdir())) == left


def test_walking_through_a_large_map_keeps_private_memory_small(tmp_path: Path) -> None:
    size = (3000, 200, 200)
    np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.int16, shape=size).flush()  # 240 MB
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = np.arange(len(array))
    data = SliceDataset(array, rows[:, None], np.zeros((len(array), 1), np.float32), rows)
    data.pages = PageBudget(array, limit=16 << 20)
    process = psutil.Process()
    before = process.memory_full_info().uss
    for start in range(0, len(array), 50):
        assert data.__getitems__(range(start, start + 50))["image"].shape == (50, 1, 200, 200)
    assert process.memory_full_info().uss - before < 80 << 20


def test_files_are_whole_and_hashed_by_range(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    assert (tmp_path / "a.json").read_text() == '{"x": 1}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b").write_bytes(b"0123456789")
    assert hash_range(tmp_path / "b", 2, 3) != hash_range(tmp_path / "b", 3, 3)
