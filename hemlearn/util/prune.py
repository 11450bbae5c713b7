"""What can be made again and may go: ``hemlearn prune`` shows and frees it, ``hemlearn doctor`` counts it.

A thing is known by where it lies, by its name and by what is in it, never by one of these alone; a folder that holds a
file under another name is left alone, and so is whatever a process of this machine makes or reads. No link is followed.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hemlearn.util.block_file import MARKER
from hemlearn.util.disk import is_open, used
from hemlearn.util.errors import HemlearnError
from hemlearn.util.files import is_abandoned
from hemlearn.util.run_files import BEST, JOURNAL, LAST, STATUS, SUMMARY, read_json, read_provenance, tested

KINDS = {  # kind -> how it is made again
    "stores": "by whatever reads the data set at that size; `hemlearn prepare`",
    "embeddings": "by the next run that needs them",
    "squares": "by the next reading of the data set",
    "tables": "by the next reading of the data set, which opens every file once more",
    "phantoms": "by the next command without data.root",
    "checkpoints": "by the command that made the run, with force=true; only `Run.history` reads them",
    "journals": "by `hemlearn predict`, which then predicts every series again",
    "leftovers": "by nobody: nothing reads them",
}
RECENT = 3600  # seconds in which what has no lock may still be written
_HEX = "[0-9a-f]"
_DRAFT = r"\.[^/]*\.part\."
_BLOCK = re.compile(rf"({_DRAFT})?((slices|vectors)\.bin|complete\.json|stamps\.json|part-\d{{8,}}\.json)")
_SQUARES = re.compile(rf"({_DRAFT})?{_HEX}{{32}}\.(bin|parquet)")
_NOTES = re.compile(rf"{_HEX}{{32}}-\d+-of-\d+")
_ANEW = re.compile(rf"\.({_HEX}{{12}})\.(old|anew)")


@dataclass(frozen=True)
class Item:
    """Something that may go.

    Args:
        kind: One of :data:`KINDS`.
        path: The file or folder.
        look: Looks at ``path`` again.
        lock: Lock file of whoever makes it; None: it has none, and must not have been written just now.
        busy: Why it is left alone; "": it is not.
    """

    kind: str
    path: Path
    look: Callable[[Path], Item | None]
    lock: Path | None = None
    busy: str = ""

    @cached_property
    def bytes(self) -> int:
        """What it takes on the disk."""
        return used(self.path)


def find(folder: Path, kinds: Collection[str] = KINDS) -> list[Item]:
    """Everything below a folder that may go, the largest first."""
    found = [item for item in _walk(folder) if item.kind in kinds]
    return sorted(found, key=lambda item: (-item.bytes, str(item.path)))


def _walk(folder: Path) -> Iterator[Item]:
    for name, folders, files in os.walk(folder):
        here = Path(name)
        run = STATUS in files and "config.yaml" in files
        looks = [_abandoned, _replaced, *_CACHES.get(here.name, ())]
        for other in [*folders, *files]:
            path = here / other
            item = None if path.is_symlink() else next(filter(None, (look(path) for look in looks)), None)
            if item is not None:
                yield item
            if item is not None or (run and other != "checkpoints") or _ANEW.fullmatch(other):
                folders[:] = [inner for inner in folders if inner != other]
        for own in (here / LAST if run else None, here / JOURNAL if SUMMARY in files else None):
            if own is not None and (item := (_last if run else _journal)(own)) is not None:
                yield item


# --- what a thing is known by -------------------------------------------------------------------------------------


def _block(kind: str) -> Callable[[Path], Item | None]:
    def look(path: Path) -> Item | None:
        key = path.name.removesuffix(".building")
        if not re.fullmatch(f"{_HEX}{{32}}", key) or not _holds_only(path, _BLOCK):
            return None
        data = [file for file in path.iterdir() if file.suffix == ".bin" and not file.name.startswith(".")]
        busy = "a running command reads it" if any(map(is_open, data)) else ""
        return Item(kind, path, look, path.with_name(f"{key}.lock"), busy) if data else None

    return look


def _squares(path: Path) -> Item | None:
    known = re.fullmatch(rf"{_HEX}{{16}}-v\d+-\d+-\w+", path.name) and _holds_only(path, _SQUARES)
    return _unlocked("squares", path, _squares) if known else None


def _table(path: Path) -> Item | None:
    known = re.fullmatch(rf"({_HEX}{{16}}-v\d+|{_HEX}{{32}})\.parquet", path.name) and _is_file(path)
    known = known or (re.fullmatch(rf"{_HEX}{{16}}-v\d+\.shards", path.name) and _holds_only(path, _NOTES))
    return _unlocked("tables", path, _table) if known else None


def _phantom(path: Path) -> Item | None:
    known = re.fullmatch(r"\w+-v\d+-\d+-\d+", path.name) and _is_file(path / "PHANTOM.txt")
    return Item("phantoms", path, _phantom, path.with_name(f".{path.name}.lock")) if known else None


def _journal(path: Path) -> Item | None:
    known = _is_file(path) and _is_file(path.with_name(SUMMARY))
    return Item("journals", path, _journal, path.with_name(".lock")) if known else None


def _abandoned(path: Path) -> Item | None:
    return Item("leftovers", path, _abandoned) if is_abandoned(path) else None


def _last(path: Path) -> Item | None:
    """The last checkpoint of a complete run that has kept the tested one."""
    run = path.parent.parent
    if not _is_file(path) or path.parent.is_symlink() or _state(run) != "complete" or not _is_file(run / BEST):
        return None
    with suppress(HemlearnError):
        if tested(read_provenance(run)) == BEST:
            return Item("checkpoints", path, _last, run / ".lock")
    return None


def _replaced(path: Path) -> Item | None:
    """What ``force=true`` has left beside a complete run; without that it is the only copy."""
    found = _ANEW.fullmatch(path.name)
    if found is None or not path.is_dir() or _state(path.with_name(found[1])) != "complete":
        return None
    if found[2] == "anew" and path.with_name(f".{found[1]}.old").exists():
        return None  # `hemlearn train` puts it into place
    return Item("leftovers", path, _replaced, path / ".lock")


_CACHES: dict[str, tuple[Callable[[Path], Item | None], ...]] = {
    "stores": (_block("stores"),),
    "embeddings": (_block("embeddings"),),
    "squares": (_squares,),
    "phantom": (_phantom,),
    **dict.fromkeys(("scan", "duplicates", "facts", "headers", "index"), (_table,)),
}


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _holds_only(folder: Path, names: re.Pattern[str]) -> bool:
    """Whether a folder holds plain files of these names and nothing else."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as inside:
        return all(item.is_file(follow_symlinks=False) and names.fullmatch(item.name) for item in inside)


def _unlocked(kind: str, path: Path, look: Callable[[Path], Item | None]) -> Item:
    busy = "written within the last hour" if time.time() - path.lstat().st_mtime < RECENT else ""
    return Item(kind, path, look, None, busy)


def _state(run: Path) -> str:
    """State of a run folder; "" where it is none, or of another name."""
    with suppress(HemlearnError):
        status = read_json(run / STATUS)
        return str(status.get("state", "")) if status.get("hash") == run.name else ""
    return ""


# --- removal ------------------------------------------------------------------------------------------------------


def free(items: Iterable[Item]) -> tuple[list[Item], dict[Item, str]]:
    """Remove items, each under the lock of whoever would make it; one that cannot be removed stops nothing.

    On a full disk a lock may need the room that other items give, so what failed is tried once more at the end.

    Returns:
        The items that are gone, and those still there with the reason.
    """
    waiting, gone = {item: item.busy for item in items}, []
    for _ in range(2):
        for item in list(waiting):
            waiting[item] = item.busy or _remove(item)
            if not waiting[item]:
                gone.append(item)
                del waiting[item]
    return gone, waiting


def _remove(item: Item) -> str:
    """Remove one item; why not, or ""."""
    from filelock import FileLock, Timeout

    size = item.bytes  # which is told when it is gone
    lock: Any = nullcontext() if item.lock is None else FileLock(item.lock, timeout=0)
    try:
        with lock:
            now = None if item.path.is_symlink() else item.look(item.path)
            if now is None or now.busy:  # made, taken or removed since
                return now.busy if now else "is something else now" if size and item.path.exists() else ""
            if item.path.is_dir():
                (item.path / MARKER).unlink(missing_ok=True)  # first: half a store is none
                shutil.rmtree(item.path)
            else:
                item.path.unlink()
    except Timeout:
        return "a running command holds it"
    except OSError as error:
        return f"cannot be removed: {error.strerror or error}"
    return ""
