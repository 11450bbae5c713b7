"""Files that several processes share: whole or absent, built by one of them only; and where the cache is."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import mmap
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn.util.errors import ConfigError, HemlearnError, RunError, StoreError

if TYPE_CHECKING:  # the command line waits for neither
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)
VARIABLE = "HEMLEARN_CACHE"
_TICK = 2_000_000_000  # ns; no file system counts more coarsely
_HERE = platform.node()[:32]


def hold_lock(folder: Path) -> Any:
    """The held lock of a cache folder or table (a context manager); waits for another process that makes the same."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    return acquire(FileLock(folder.with_name(f"{folder.name}.lock")), f"another process builds {folder}")


def acquire(lock: Any, busy: str) -> Any:
    """Acquire a ``FileLock``; where another process holds it, ``busy`` and that it is waited for is told."""
    from filelock import Timeout

    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s; waiting for it", busy)
        return lock.acquire()


def special_file(mode: int) -> str:
    """What a path is that is neither a file nor a folder, by its ``st_mode``; "" for these two.

    Reading it may never end: a pipe waits for somebody who writes.
    """
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    kinds = {stat.S_IFIFO: "a named pipe (FIFO)", stat.S_IFSOCK: "a socket"}
    return f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file"


def file_stamp(info: os.stat_result) -> str:
    """What tells a file from another that had its path before: size, times of its content and inode, and the inode.

    Size and modification time alone do not: archives and de-identifiers set one time for all files, and uncompressed
    slices are equally long. The time of the last change of the inode cannot be set.
    """
    return f"{info.st_size}:{info.st_mtime_ns}:{info.st_ctime_ns}:{info.st_ino}"


def now() -> str:
    """The present time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(content: Path | bytes | str) -> str:
    """Hexadecimal SHA-256 of a file, of bytes or of a text as UTF-8.

    >>> sha256("hemlearn")[:12]
    '234a123464f1'
    """
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def known_sha256(path: Path) -> str:
    """:func:`sha256` of a file, computed once in a process while the file stays as it is.

    One that was changed just now is read again: a second change may fall into the same tick of the clock.
    """
    info = path.stat()
    if abs(time.time_ns() - info.st_ctime_ns) < _TICK:
        return sha256(path)
    return _sha256_of(str(path), file_stamp(info))


@lru_cache(maxsize=4096)
def _sha256_of(path: str, _stamp: str) -> str:
    return sha256(Path(path))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a draft's path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    Its content is on the disk before it has its name: readers, and whoever comes after a power loss, find the old file
    or the new one, never half of it.
    """
    draft = draft_of(path)
    try:
        yield draft
        settle(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def draft_of(path: Path) -> Path:
    """The path beside ``path`` at which this process writes it; the suffix is that of ``path``."""
    return path.with_name(f".{_HERE}-{os.getpid()}.part.{path.name}")


def settle(draft: Path, path: Path) -> None:
    """Give a finished file its name, its content and then the name being on the disk."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_drafts(*folders: Path) -> None:
    """Remove what killed processes of this machine have left at :func:`draft_of` paths."""
    for folder in folders:
        for old in folder.glob(f".{glob.escape(_HERE)}-*.part.*"):
            if is_abandoned(old):
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether a path is a draft of a process of this machine that has ended."""
    import psutil  # type: ignore[import-untyped]

    pid = path.name.removeprefix(f".{_HERE}-").partition(".part.")[0]
    return f".{_HERE}-{pid}.part." in path.name and pid.isdecimal() and not psutil.pid_exists(int(pid))


@contextmanager
def writing(
    place: object, remedy: str = "choose a writable folder with free space", kind: type[HemlearnError] = RunError
) -> Iterator[None]:
    """What is written to ``place`` inside: an OSError becomes an error of ``kind`` that says why it cannot be."""
    try:
        yield
    except OSError as error:
        if (full := full_disk(error, kind, Path(str(place).rpartition("=")[2]))) is not None:
            raise full from error
        raise kind(f"{place}: cannot be written ({error.strerror or error})", remedy=remedy) from error


def check_writable(folder: Path, place: object, kind: type[HemlearnError] = RunError) -> None:
    """Make a folder, and say before long work, not after it, that nothing can be written there.

    Args:
        folder: Where the command will write.
        place: What it is called in the message, such as ``out=DIR``.
        kind: Of the error.

    Raises:
        HemlearnError: Of ``kind``: the folder cannot be made, or takes no file.
    """
    with writing(place, "choose a writable folder with free space", kind):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def nothing_left(folder: Path, work: str = "") -> Iterator[None]:
    """What a call inside makes in a new or empty folder is removed again where it is refused (a HemlearnError).

    Args:
        folder: The folder; one that held anything before is left alone.
        work: A file in it; where that has content there is work that the next call goes on with, and all is kept.
    """
    above = [place for place in (folder, *folder.parents) if not place.exists()]
    empty = bool(above)
    with suppress(OSError):  # what cannot be read is said by whoever writes
        empty = empty or not any(folder.iterdir())
    try:
        yield
    except HemlearnError:
        done = folder / work
        kept = work != "" and done.is_file() and done.stat().st_size > 0
        with suppress(OSError):  # another call may be using it
            for item in folder.iterdir() if empty and not kept else ():
                shutil.rmtree(item, ignore_errors=True) if item.is_dir() and not item.is_symlink() else item.unlink()
            for place in above if not kept else ():
                place.rmdir()
        raise


def full_disk(
    error: BaseException, kind: type[HemlearnError], *places: Path, needs: str = "", remedy: str = ""
) -> HemlearnError | None:
    """What is said of a full disk: the folder, its free space and what helps; None where that is not what is wrong.

    Args:
        error: What was raised, by a library perhaps, for another one's reason.
        kind: Of the error.
        places: Files or folders that were written to; of several disks the fullest is named.
        needs: What the content takes, such as ``the store needs 3.1 GB``.
        remedy: What else helps than to free some space.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    found = next((item for item in chain if isinstance(item, OSError) and is_full(item)), None)
    if found is None:
        return None
    if isinstance(found.filename, str | os.PathLike):
        places = (Path(found.filename),)
    folders = dict.fromkeys(
        next(p for p in (place.absolute(), *place.absolute().parents) if p.is_dir()) for place in places
    )
    folder = min(folders, key=lambda item: shutil.disk_usage(item).free)
    free = shutil.disk_usage(folder).free
    what = "the disk is full" if found.errno == errno.ENOSPC else (found.strerror or str(found))
    return kind(
        f"{folder}: {what}: {size_text(free)} are free{needs and f', {needs}'}",
        remedy=f"free some space{remedy}; the same command goes on from what is there",
    )


def size_text(count: int) -> str:
    """A number of bytes as people read it.

    >>> size_text(10240), size_text(3_120_000_000)
    ('10240 bytes', '3.12 GB')
    """
    return f"{count} bytes" if count < 1e6 else f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def disk_error(error: OSError, *places: Path) -> HemlearnError | None:
    """A disk that is full or may not be written, wherever it showed; None: another error, which is a defect.

    Args:
        error: What no command has caught.
        places: What the command line names; the working folder, the cache and temporary files count too.
    """
    cache = Path(os.environ.get(VARIABLE) or "~/.cache/hemlearn").expanduser()
    remedy = f", or choose another disk with out=, output_dir=, data.cache_dir, ${VARIABLE} or $TMPDIR"
    full = full_disk(error, RunError, *places, Path.cwd(), cache, Path(tempfile.gettempdir()), remedy=remedy)
    if full is not None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or error.filename is None:
        return full
    return RunError(
        f"{os.fsdecode(error.filename)}: {error.strerror}", remedy="choose a folder that this user may read and write"
    )


def refuse_to_replace(folder: Path, names: Iterable[str], mark: str, source: Path | None = None) -> None:
    """Refuse an output folder that holds files of somebody else's under the names of a command's own.

    Args:
        folder: Where the command writes.
        names: Of its files.
        mark: The file by which an earlier call of the same command is known: written first, since it may be killed.
        source: What the command reads: it is never replaced.

    Raises:
        ConfigError: A file would be lost.
    """
    remove_drafts(folder)
    for name in names:
        file = folder / name
        if not file.exists():
            continue
        own = source is not None and source.exists() and file.samefile(source)
        if own or not (folder / mark).exists():
            what = "the input itself" if own else f"not written by this command (no {mark} beside it)"
            raise ConfigError(f"{file}: would be replaced, and is {what}", remedy="give another folder with out=DIR")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing (see :func:`whole_file`)."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


FIGURE_FORMATS = ("png", "pdf", "svg")


def save_figure(figure: Figure, path: Path, dpi: float | None = None, metadata: dict[str, str] | None = None) -> None:
    """A matplotlib figure as a whole file; the ending of ``path`` says which of :data:`FIGURE_FORMATS`.

    A PNG is drawn once, where ``savefig`` does so twice for an equal picture. PDF and SVG hold no time, so that equal
    figures are equal files; text stays text in a PDF, and becomes paths in an SVG, which then needs no font.
    """
    if dpi is not None:
        figure.set_dpi(dpi)
    with whole_file(path) as draft:
        if path.suffix == ".png":
            from matplotlib.backends.backend_agg import FigureCanvasAgg

            FigureCanvasAgg(figure).print_png(draft, metadata=metadata)  # type: ignore[no-untyped-call]
            return
        import matplotlib as mpl

        none: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None}
        with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "hemlearn"}):
            figure.savefig(draft, format=path.suffix[1:], metadata={**none, **(metadata or {})})


def write_json(path: Path, content: Any, **options: Any) -> None:
    """:func:`write_text` of ``content`` and a line end; ``options`` as ``json.dumps`` takes them."""
    write_text(path, json.dumps(content, **options) + "\n")


def made_once(file: Path, content: Callable[[], bytes]) -> None:
    """Make a file that its owner alone can read, whole, where there is none; of several processes the first counts.

    Raises:
        OSError: It cannot be written.
    """
    if file.exists():
        if file.stat().st_size:
            return
        file.unlink()  # what a power loss has left
    remove_drafts(file.parent)
    part = draft_of(file)
    try:
        part.touch(mode=0o600)
        part.write_bytes(content())
        with part.open("rb") as written:
            os.fsync(written.fileno())
        try:
            os.link(part, file)
        except FileExistsError:  # another process was faster
            return
        except OSError:  # a file system without links
            part.replace(file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


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
    """Whether the disk or the user's share of it is full, or a file may not be larger."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_dir(configured: str | os.PathLike[str] | None = None) -> Path:
    """The folder, made if it is missing, of what can be made again: slice stores, tables of files, phantoms.

    It is ``configured`` (``data.cache_dir``), else ``$HEMLEARN_CACHE``, else ``~/.cache/hemlearn``; always absolute.

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


def table_cache(folder: str | os.PathLike[str], kind: str, root: Path, version: int) -> Path:
    """Where a table of what is known of the files under ``root`` is kept between runs, in the cache ``folder``."""
    return Path(folder) / kind / f"{sha256(os.fsencode(root.resolve()))[:16]}-v{version}.parquet"


def load_table(file: Path | None, columns: Sequence[str]) -> pd.DataFrame | None:
    """A table that was kept; None where there is none, or, with a warning, where it is damaged."""
    if file is None or not file.is_file():
        return None
    import pandas as pd

    try:
        return pd.read_parquet(file, columns=list(columns))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        logger.warning("%s cannot be used and is made again: %s", file, error)
        return None


def save_table(file: Path, table: pd.DataFrame, join: Callable[[pd.DataFrame], pd.DataFrame] | None = None) -> None:
    """Keep a table, whole or not at all; where that fails the run goes on with a warning.

    ``join`` makes of it what is kept, with what is there already: of several processes one does this at a time.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(file.parent)
        with hold_lock(file) if join else nullcontext(), whole_file(file) as draft:
            (join(table) if join else table).to_parquet(draft, index=False)
    except OSError as error:
        logger.warning("%s cannot be written, so the next run opens every file again: %s", file, error)
