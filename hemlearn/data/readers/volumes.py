"""The last few files of several slices, kept in memory so that none is decoded once per slice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from hemlearn.util.errors import DataError

T = TypeVar("T")
LIMIT = 96 << 20  # bytes per process; the latest volume is kept even when it alone is larger


@dataclass
class _Entry(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    value: T | None = None
    size: int = 0


class VolumeCache(Generic[T]):
    """Least recently used files, by path, size and modification time; safe to share between threads.

    Args:
        limit: Bytes kept at most (the latest entry may exceed it alone).
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._entries: OrderedDict[tuple[str, int, int], _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, load: Callable[[Path], tuple[T, int]]) -> T:
        """Return what ``load`` makes of a file; threads that ask for the same file wait for one load.

        Args:
            path: The file.
            load: Returns the value and its bytes; 0 bytes: the value is not kept.

        Raises:
            DataError: The file cannot be opened; and whatever ``load`` raises.
        """
        try:
            info = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be opened: {error.strerror or error}", remedy="check the path and its permissions"
            ) from error
        key = (str(path), info.st_size, info.st_mtime_ns)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.value is not None:
                return entry.value
            try:
                value, entry.size = load(path)
            except BaseException:
                self._drop(key)
                raise
            if entry.size == 0:
                self._drop(key)
                return value
            entry.value = value
        self._trim()
        return value

    def _drop(self, key: tuple[str, int, int]) -> None:
        with self._lock:
            self._entries.pop(key, None)

    def _trim(self) -> None:
        with self._lock:
            total = sum(entry.size for entry in self._entries.values())
            while total > self.limit and len(self._entries) > 1:
                total -= self._entries.popitem(last=False)[1].size

    def __len__(self) -> int:
        return len(self._entries)
