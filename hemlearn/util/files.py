"""Cache files that several processes share: whole or absent, and built by one of them only."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from hemlearn.util.errors import StoreError

logger = logging.getLogger(__name__)


def hold_lock(folder: Path) -> Any:
    """The held lock of a cache folder (a context manager); waits for another process that builds the same one."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process builds %s; waiting for it", folder)
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


# --- Where hemlearn keeps what it can make again: slice stores, file fingerprints and phantoms.


VARIABLE = "HEMLEARN_CACHE"


def cache_dir(configured: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder, made if it is missing.

    Args:
        configured: The key ``data.cache_dir``; None: ``$HEMLEARN_CACHE``, else ``~/.cache/hemlearn``.

    Returns:
        An absolute path.

    Raises:
        StoreError: The folder cannot be made.
    """
    chosen = os.fspath(configured) if configured else os.environ.get(VARIABLE, "")
    # Made absolute here, since a run may change its working folder after this.
    folder = Path(chosen or "~/.cache/hemlearn").expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the cache folder {folder} cannot be made: {error.strerror or error}",
            remedy=f"set data.cache_dir or ${VARIABLE} to a folder that can be written",
        ) from error
    return folder


# --- Tables of what is known of files, kept between runs in the cache folder.


def kept_file(folder: str | os.PathLike[str], kind: str, root: Path, version: int) -> Path:
    """Return where a table about the files under ``root`` is kept."""
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return Path(folder) / kind / f"{place}-v{version}.parquet"


def load_kept(file: Path | None, columns: Sequence[str]) -> pd.DataFrame | None:
    """Return a kept table; None where there is none, or where it is damaged (which is told)."""
    if file is None or not file.is_file():
        return None
    try:
        return pd.read_parquet(file)[list(columns)]
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        logger.warning("%s cannot be used and is made again: %s", file, error)
        return None


def save_kept(file: Path, table: pd.DataFrame) -> None:
    """Write a table at once or not at all; where that fails it is told, and the run goes on."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(part, index=False)
        part.replace(file)
    except OSError as error:  # the run can go on; the next one reads the files again
        logger.warning("%s cannot be written, so the next run opens every file again: %s", file, error)
        part.unlink(missing_ok=True)
