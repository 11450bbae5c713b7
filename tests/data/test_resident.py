"""Where slices lie: the same batches from the device, from memory and from the disk, and why a store stays there."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from hemlearn.data import resident
from hemlearn.data.batches import SeriesDataset, SliceDataset, batch_loader
from hemlearn.datamodules import HeadCTDataModule
from hemlearn.util.errors import ConfigError

CPU = torch.device("cpu")
COUNT, SIDE = 12, 4


@pytest.fixture
def array(tmp_path: Path) -> np.ndarray:
    """A store's memory map."""
    values = np.random.default_rng(0).integers(-1000, 2000, (COUNT, SIDE, SIDE)).astype("<i2")
    values.tofile(tmp_path / "slices.bin")
    return np.memmap(tmp_path / "slices.bin", dtype="<i2", mode="r", shape=values.shape)


def slices(array: np.ndarray) -> SliceDataset:
    """With one neighbour on each side."""
    rows = np.arange(COUNT)
    stack = np.clip(rows[:, None] + np.arange(-1, 2), 0, COUNT - 1)
    return SliceDataset(array, stack, (rows[:, None] % 2).astype(np.float32), rows)


def a_gpu(monkeypatch: pytest.MonkeyPatch, free: int, total: int) -> None:
    """The CPU passes for a GPU of so many bytes."""
    monkeypatch.setattr(resident, "free_memory", lambda device, tidy=False: (free, total))


@pytest.mark.parametrize("asked", ["auto", "device", "memory", "disk"])
def test_batches_are_equal_to_the_bit(asked: str, array: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = slices(array).__getitems__([7, 0, 11, 7])
    a_gpu(monkeypatch, 10**6, 10**6)
    data = slices(array)
    loader = batch_loader(data, CPU, resident=asked, num_workers=None, pin_memory=False, batch_sampler=[[7, 0, 11, 7]])
    there = asked in ("auto", "device")
    assert isinstance(data.array, torch.Tensor) == there
    assert np.shares_memory(np.asarray(data.array), array) == (asked == "disk")
    (found,) = loader
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    series, used = [np.array([3, 4]), np.array([9])], np.ones(COUNT, dtype=bool)
    whole = SeriesDataset(series, np.zeros((COUNT, 1), "f4"), used, np.zeros(COUNT), slices=slices(array))
    assert whole.reside(asked, CPU) == there
    assert torch.equal(whole[0]["image"], slices(array).__getitems__([3, 4])["image"])


def test_batches_on_the_device_need_no_processes(array: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, 10**6, 10**6)
    loader = batch_loader(slices(array), CPU, resident="device", num_workers=2, pin_memory=True, batch_size=4)
    assert (loader.num_workers, loader.pin_memory) == (0, False)
    loader = batch_loader(slices(array), CPU, resident="disk", num_workers=2, pin_memory=True, batch_size=4)
    assert (loader.num_workers, loader.pin_memory) == (2, True)


@pytest.mark.parametrize(
    ("asked", "free", "why"),
    [
        ("auto", 400, "cpu has room for 150 bytes beside its reserve"),  # 384 bytes; a quarter of 1000 stays free
        ("device", 400, "cpu has room for 150 bytes beside its reserve"),
        ("device", None, "there is no GPU to hold them"),
        ("device", 2000, "cpu refused it: CUDA out of memory"),
        ("memory", 400, "memory has room for 150 bytes beside its reserve"),
    ],
)
def test_a_store_that_finds_no_room_stays_on_the_disk(
    asked: str,
    free: int | None,
    why: str,
    array: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    if free is not None:
        a_gpu(monkeypatch, free, 1000)
        monkeypatch.setattr(resident, "_machine_memory", lambda: (free, 1000))
    if why.endswith("out of memory"):
        monkeypatch.setattr(torch, "empty", full)
    with caplog.at_level(logging.INFO):
        for _ in range(3):  # the loaders of training, validation and test
            assert resident.reside(array, asked, CPU) is array
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"data.resident={asked}: 384 bytes of slices are read from the disk, since")
    assert why in caplog.messages[0]


def test_the_next_run_on_the_same_store_takes_the_copy_of_the_last(array: np.ndarray, tmp_path: Path) -> None:
    first, again = slices(array), slices(np.memmap(tmp_path / "slices.bin", dtype="<i2", mode="r", shape=array.shape))
    first.reside("memory", CPU)
    again.reside("memory", CPU)
    assert first.array is again.array is not array


def test_workers_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident.os, "sched_getaffinity", lambda _: range(16), raising=False)
    gpu = torch.device("cuda", 0)
    assert [resident.loader_workers(None, *how) for how in ((CPU, 1), (gpu, 1), (gpu, 4))] == [0, 8, 3]
    assert resident.loader_workers(0, gpu) == 0


def test_a_bad_word_is_refused_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"data\.resident='vram': expected one of auto, device, memory, disk"):
        HeadCTDataModule(resident="vram")
