"""Cache files that several processes share: whole or absent, and built by one of them only."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import mmap
import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

LOGGER = logging.getLogger(__name__)


def hold_lock(folder: Path) -> Any:
    """The held lock of a cache folder (a context manager); waits for another process that builds the same one."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        LOGGER.info("another process builds %s; waiting for it", folder)
        return lock.acquire()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small file whole or not at all, and not before what was written earlier."""
    part = path.with_name(f".{path.name}")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def hash_range(path: Path, offset: int, count: int) -> str:
    """SHA-256 of ``count`` bytes of a file from ``offset``."""
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.sha256(file.read(count)).hexdigest()


class PageBudget:
    """Gives the pages of a memory map back after so many bytes were read.

    They stay in the system's page cache. Otherwise a process that walks through a large file is charged for all of it.
    """

    def __init__(self, array: NDArray[Any], limit: int = 128 << 20) -> None:
        self.array = array
        self.limit = limit
        self.read = 0

    def spend(self, count: int) -> None:
        """Account for ``count`` bytes just copied out of the map."""
        self.read += count
        mapped = getattr(self.array, "_mmap", None)
        if self.read > self.limit and mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
            self.read = 0


def is_full(error: OSError) -> bool:
    """Whether the disk or the user's share of it is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
