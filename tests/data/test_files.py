"""Cache files: the lock, and memory maps that do not pile up in a process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from hemlearn.data.batches import SliceDataset
from hemlearn.util.files import PageBudget, hash_range, write_json


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
