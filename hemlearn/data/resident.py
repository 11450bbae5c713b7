"""Where the slices of a store lie while batches are taken from them: the device's memory, this process's, or the disk.

All three hold the same numbers, so that a run's result does not depend on the place.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor

from hemlearn.util.files import PageBudget, size_text

logger = logging.getLogger(__name__)
PLACES = ("auto", "device", "memory", "disk")
RESERVE = 0.25  # of the memory of a device or machine, left for network, activations and workspace
_CHUNK = 64 << 20  # bytes copied at once
_WORKERS = 8  # loader processes at most
Pixels = NDArray[Any] | Tensor

# What was decided for each store's file, as long as something uses it: the loaders of a run, and the next run of a
# sweep on the same slices, share one copy and one line in the log.
_HELD: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


def reside(array: NDArray[Any], asked: str, device: torch.device) -> Pixels:
    """The slices of a store in the place that ``data.resident`` asks for.

    A copy is made only where it leaves :data:`RESERVE` of the memory there free; else the memory map stays, and one
    line in the log says why. With several devices each process holds the whole store on its own.

    Args:
        array: ``(N, S, S)`` memory map of the store.
        asked: ``device``, ``memory``, ``disk``; ``auto``: the device where it is a GPU and they fit, else the disk.
        device: Of this process.

    Returns:
        A tensor on ``device``, an array in memory, or ``array`` itself.

    Example:
        >>> squares = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
        >>> reside(squares, "auto", torch.device("cpu")) is squares
        True
        >>> copy = reside(squares, "memory", torch.device("cpu"))
        >>> copy is squares, bool((copy == squares).all())
        (False, True)
    """
    if asked == "disk" or (asked == "auto" and free_memory(device) is None):
        return array
    file = getattr(array, "filename", None)
    if file is None:
        return _copied(array, asked, device)
    key = (file, array.shape, array.dtype.str, asked, device)
    if (held := _HELD.get(key)) is None:
        held = _HELD[key] = _copied(array, asked, device)
    return held


def _copied(array: NDArray[Any], asked: str, device: torch.device) -> Pixels:
    where, found = ("memory", _machine_memory()) if asked == "memory" else (str(device), free_memory(device, tidy=True))
    size = size_text(array.nbytes)
    if found is None:
        why = f"there is no GPU to hold them ({device})"
    else:
        room = int(found[0] - RESERVE * found[1])
        why = "" if array.nbytes <= room else f"{where} has room for {size_text(max(room, 0))} beside its reserve"
    if not why:
        began = time.perf_counter()
        try:
            held = _copy(array, None if asked == "memory" else device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            why = f"{where} refused it: {str(error).partition(chr(10))[0] or type(error).__name__}"
        else:
            seconds = time.perf_counter() - began
            logger.info("data.resident=%s: %s of slices in %s after %.1f s", asked, size, where, seconds)
            return held
    logger.warning("data.resident=%s: %s of slices are read from the disk, since %s", asked, size, why)
    return array


def _copy(array: NDArray[Any], device: torch.device | None) -> Pixels:
    """A copy on a device, or (None) in memory; the pages of the map are given back on the way."""
    pages = PageBudget(array)
    out: Any = np.empty_like(array, subok=False)
    if device is not None:
        out = torch.empty(array.shape, dtype=torch.from_numpy(out[:0]).dtype, device=device)
    rows = max(1, _CHUNK // max(array[:1].nbytes, 1))
    for start in range(0, len(array), rows):
        block = np.array(array[start : start + rows])  # a copy: torch takes no read-only array
        pages.spend(block.nbytes)
        out[start : start + rows] = block if device is None else torch.from_numpy(block)
    return out  # type: ignore[no-any-return]


def free_memory(device: torch.device, *, tidy: bool = False) -> tuple[int, int] | None:
    """Free and total bytes of a device; None where it tells none (CPU, MPS).

    Args:
        device: Any.
        tidy: First give back what nothing uses, such as the store of the run before.
    """
    if device.type != "cuda":
        return None
    if tidy:
        gc.collect()
        torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return free, total


def _machine_memory() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def loader_workers(asked: int | None, device: torch.device, processes: int = 1) -> int:
    """Processes that load batches.

    Args:
        asked: ``data.num_workers``; None: none for a CPU, which they would compete for; for a GPU one per core but
            one, at most 8, shared among the training processes of the machine.
        device: That the batches are for.
        processes: Training processes on this machine.

    Example:
        >>> loader_workers(None, torch.device("cpu")), loader_workers(3, torch.device("cpu"))
        (0, 3)
    """
    if asked is not None:
        return asked
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_WORKERS, cores // max(processes, 1) - 1))
