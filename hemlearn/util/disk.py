"""What lies on the disk: sizes, the limit of a cache folder, and which files are being read."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from hemlearn.util.errors import ConfigError
from hemlearn.util.files import size_text

try:
    import fcntl
except ImportError:  # Windows keeps a file that is open
    fcntl = None  # type: ignore[assignment]

VARIABLE = "HEMLEARN_CACHE_LIMIT"
_UNITS: dict[str, float] = {"": 1, "b": 1} | {
    f"{letter}{end}": base**power for power, letter in enumerate("kmgt", 1) for end, base in (("b", 1000), ("ib", 1024))
}
_limits: dict[Path, int] = {}  # cache folder -> bytes, of folders whose configuration names a limit


def parse_size(text: str) -> int:
    """Bytes of a size as people write it.

    Raises:
        ValueError: It is none.

    >>> parse_size("20GB"), parse_size("1.5 GiB"), parse_size("4096")
    (20000000000, 1610612736, 4096)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b|b?)\s*", text.lower(), re.ASCII)
    if found is None or len(text) > 40:
        raise ValueError(f"{text!r:.40}: no size; write it as 500MB, 20GB or 1.5TiB")
    return int(float(found[1]) * _UNITS[found[2]])


def used(path: Path) -> int:
    """Bytes that a file, or everything below a folder, takes on the disk; links are not followed."""
    try:
        info = path.lstat()
    except OSError:  # gone meanwhile
        return 0
    own = info.st_blocks * 512 if hasattr(info, "st_blocks") else info.st_size
    if not path.is_dir() or path.is_symlink():
        return own
    total = own
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                inner = os.lstat(f"{folder}/{name}")
                total += inner.st_blocks * 512 if hasattr(inner, "st_blocks") else inner.st_size
    return total


def set_limit(cache: Path, text: str | None) -> None:
    """Let ``cache`` hold no more than ``text`` (``data.cache_limit``) in this process; None: as the variable says."""
    if text is None:
        _limits.pop(cache, None)
    else:
        _limits[cache] = parse_size(text)


def limit_of(cache: Path) -> int | None:
    """Bytes that a cache folder may hold: ``data.cache_limit``, else ``$HEMLEARN_CACHE_LIMIT``; None: no limit.

    Raises:
        ConfigError: The variable is no size.
    """
    if cache in _limits:
        return _limits[cache]
    text = os.environ.get(VARIABLE, "").strip()
    try:
        return parse_size(text) if text else None
    except ValueError as error:
        raise ConfigError(f"${VARIABLE}={error}", remedy="write it as 500MB or 20GB, or leave it unset") from error


def room(cache: Path) -> int:
    """Bytes that may still be written to a cache folder: what the disk and its limit leave."""
    free = shutil.disk_usage(cache).free
    limit = limit_of(cache)
    return free if limit is None else min(free, max(limit - used(cache), 0))


def over_limit(cache: Path, needed: int) -> str:
    """Why ``needed`` further bytes are too many for a cache folder; "" where its limit allows them."""
    limit = limit_of(cache)
    if limit is None or (now := used(cache)) + needed <= limit:
        return ""
    return f"{cache} holds {size_text(now)} of the {size_text(limit)} that data.cache_limit allows"


def hold_open(path: Path) -> Any:
    """Tell :func:`is_open` that this process reads a file, as long as what is returned lives."""
    file = path.open("rb")
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


def is_open(path: Path) -> bool:
    """Whether a process of this machine holds a file open by :func:`hold_open`."""
    if fcntl is None:
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # none there, or a file system without locks
        return False
    return False
