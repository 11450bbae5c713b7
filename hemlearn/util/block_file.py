"""A large array in one file: written in parts by many processes, resumable, whole or absent, read as a memory map.

A block file lies in ``FOLDER/NAME`` beside ``complete.json``, which is written last. While it is built the folder is
called ``FOLDER.building`` and holds one journal per finished part; a build that was killed goes on from the parts
whose checksum still holds. ``stamps.json`` tells by which sizes and times of the two files they were read whole and
found good: while these stay, opening reads a sample; after a copy, a restored backup or a change, everything once.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hemlearn.util.disk import VARIABLE, hold_open, over_limit
from hemlearn.util.documents import load_json, read_document
from hemlearn.util.errors import StoreError, count
from hemlearn.util.files import file_stamp, full_disk, hash_range, hold_lock, remove_drafts, size_text, write_json
from hemlearn.util.shards import Shard, ShardsMissing

logger = logging.getLogger(__name__)
MARKER, STAMPS = "complete.json", "stamps.json"
SAMPLE = 8 << 20  # bytes read on each opening, in whole parts, at least one


@dataclass(frozen=True)
class Part:
    """A finished run of rows: first row, row after the last, place and length in bytes, checksum."""

    start: int
    stop: int
    offset: int
    bytes: int
    sha256: str

    @classmethod
    def read(cls, told: Any) -> Part:
        """A part as JSON holds it.

        Raises:
            ValueError: It holds something else.
        """
        numbers = {name: told[name] for name in ("start", "stop", "offset", "bytes")}
        if not all(type(number) is int and number >= 0 for number in numbers.values()):
            raise ValueError(f"{told!r:.80}: no part")
        return cls(**numbers, sha256=str(told["sha256"]))


def _holds(data: Path, part: Part) -> bool:
    """Whether the bytes of a part are as they were written."""
    return hash_range(data, part.offset, part.bytes) == part.sha256


@dataclass(frozen=True)
class BlockFile:
    """An array on disk that is built once and then only read.

    Args:
        folder: Where it lies; its name should be a hash of everything that determines the content.
        name: Name of the data file in it.
        shape: Shape of the array; rows run along its first axis.
        dtype: numpy dtype with byte order, for example ``<i2``.
        identity: Entries of ``complete.json`` that must match for a file to be used.

    Example:
        >>> import numpy as np, tempfile
        >>> file = BlockFile(Path(tempfile.mkdtemp()) / "squares", "data.bin", (5, 2), "<i2")
        >>> file.build(lambda missing: [file.write(rows.start, np.ones((len(rows), 2), "<i2")) for rows in missing],
        ...            step=2, what="the example")
        >>> file.is_complete(), int(file.array.sum()), len(file.marker["parts"])
        (True, 10, 3)
    """

    folder: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    identity: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def array(self) -> NDArray[Any]:
        """The whole array, a read-only memory map; ``hemlearn prune`` leaves it alone while it is held."""
        found = np.memmap(self.folder / self.name, dtype=self.dtype, mode="r", shape=self.shape)
        found.held = hold_open(self.folder / self.name)  # type: ignore[attr-defined] # every view knows its base
        return found

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry all its bytes to every process.
        return {name: value for name, value in self.__dict__.items() if name != "array"}

    @property
    def marker(self) -> dict[str, Any]:
        """Content of ``complete.json``."""
        found: dict[str, Any] = load_json(read_document(self.folder / MARKER))
        return found

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def _building(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.building")

    def is_complete(self, *, whole: bool = False, mend: str | None = None) -> bool:
        """Whether the file is there and as it was written.

        Args:
            whole: Read all of it; else a few parts while size and times are those of the last whole reading.
            mend: What to do about damage, for its error; None: it is reported, and :meth:`build` makes it good.

        Raises:
            StoreError: It is damaged.
        """
        parts = self._parts(self.folder)
        if parts is None:
            return False
        bad = self._damaged(parts, whole)
        if not bad:
            return True
        rows = ", ".join(f"{part.start} to {part.stop - 1}" for part in bad[:3])
        text = (
            f"{self.folder / self.name}: {count(len(bad), 'part')} of {len(parts)} changed since written (rows {rows}"
            f"{', ...' if len(bad) > 3 else ''})"
        )
        if mend is not None:
            raise StoreError(text, remedy=mend)
        logger.warning("%s: made again", text)
        return False

    def _parts(self, folder: Path) -> list[Part] | None:
        """The parts that a finished file is made of; None where there is none, or none that could be used."""
        try:
            marker = load_json(read_document(folder / MARKER))
            parts = [Part.read(item) for item in marker["parts"]]
            if not (folder / self.name).is_file():  # lost, or a folder or a pipe in its place
                return None
            wrong = any(marker.get(key) != value for key, value in self.identity.items())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            wrong, parts = True, []
        rows = [row for part in parts for row in (part.start, part.stop)]
        tiled = rows[1:-1:2] == rows[2::2] and rows[:1] == [0] and rows[-1:] == [self.shape[0]]
        sizes = ((part.offset, part.bytes, part.start, part.stop - part.start) for part in parts)
        off = any((at, size) != (first * self.row_bytes, number * self.row_bytes) for at, size, first, number in sizes)
        if wrong or off or not tiled:
            logger.warning("%s is damaged: all is made again", folder / MARKER)
            return None
        return parts

    def _damaged(self, parts: Sequence[Part], whole: bool) -> list[Part]:
        """The parts whose bytes are others; what was read whole is remembered by the stamps of its files."""
        data, known = self.folder / self.name, self.folder / STAMPS
        stamps = {file.name: file_stamp(file.stat()) for file in (data, self.folder / MARKER)}
        try:
            seen = load_json(read_document(known)) == stamps
        except (OSError, ValueError):
            seen = False
        if seen and not whole:
            few = max(1, min(len(parts), SAMPLE // max(part.bytes for part in parts)))
            if all(_holds(data, part) for part in random.SystemRandom().sample(parts, few)):
                return []
        bad = [part for part in parts if not _holds(data, part)]
        if not bad and data.stat().st_size != self.shape[0] * self.row_bytes:
            return [parts[-1]]  # bytes behind the last row
        if not (bad or seen):
            with suppress(OSError):  # a cache that cannot be written is read whole each time
                write_json(known, stamps)
        return bad

    def write(self, start: int, block: NDArray[Any]) -> Part:
        """Write some rows into their place and journal them; to be called by what :meth:`build` calls, in any process.

        Args:
            start: First row.
            block: ``(rows, ...)`` of this file's dtype.
        """
        raw = np.ascontiguousarray(block, dtype=self.dtype).tobytes()
        offset = start * self.row_bytes
        # Plain writes, not a memory map: on a full disk those fail with an error instead of killing the process.
        with (self._building / self.name).open("r+b") as file:
            file.seek(offset)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        part = Part(start, start + len(block), offset, len(raw), hashlib.sha256(raw).hexdigest())
        write_json(self._building / f"part-{start:08d}.json", asdict(part))
        return part

    def build(
        self,
        fill: Callable[[Sequence[range]], Iterable[Part]],
        *,
        step: int,
        what: str,
        extra: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None = None,
        remedy: str = "",
        keep: bool = False,
        whole: bool = False,
        mend: str | None = None,
        shard: Shard | None = None,
    ) -> None:
        """Build the file unless it is complete; another process that builds it already is waited for.

        Of a damaged one the bad parts alone are made again. A shard writes its own parts beside the others, which it
        does not wait for, and the one that finds all parts there puts the file together. The lock is held while the
        folder is looked at and put together, not meanwhile: where a file system has none that holds between machines
        (``flock``), the same parts could be written twice, with the same bytes.

        Args:
            fill: Writes the given runs of rows with :meth:`write` and yields their parts, in any order.
            step: Rows per part.
            what: Name of the content for messages, for example ``the slice store``.
            extra: Further entries of ``complete.json``; a function is called when all rows are written.
            remedy: What else helps when the disk is full, appended to the usual advice.
            keep: Whether finished parts stay when the disk is full; else they make room.
            whole: As in :meth:`is_complete`.
            mend: As in :meth:`is_complete`.
            shard: The parts that are this process's; None: all of them.

        Raises:
            StoreError: The disk is full, the folder cannot be written, or the file is damaged and not to be mended.
            ShardsMissing: The shard's parts are there, others are not.
        """
        try:
            if self.is_complete(whole=whole, mend=mend):
                return
            with hold_lock(self.folder):
                if self.is_complete(whole=whole, mend=mend):  # another process may have built it meanwhile
                    return
                done = self._begin(step, what, remedy, shard)
                if shard is None:
                    done |= {part.start: part for part in fill(self._missing(step, done))}
                    self._finish(done, extra)
                    return
            self._fill_shard(fill, self._missing(step, done, shard))
            with hold_lock(self.folder):
                if not self.is_complete():
                    self._finish_shards(step, shard, what, extra)
        except OSError as error:
            if (full := self._full(error, what, remedy)) is not None:
                if not (keep or shard):
                    shutil.rmtree(self._building, ignore_errors=True)
                raise full from error
            raise StoreError(
                f"{self.folder}: cannot be written: {error.strerror or error}",
                remedy="set data.cache_dir or $HEMLEARN_CACHE to a folder that can be written",
            ) from error

    def _owner(self, start: int, step: int, shard: Shard) -> int:
        return shard.owner(start // step, -(-self.shape[0] // step))

    def _missing(self, step: int, done: Mapping[int, Part], shard: Shard | None = None) -> list[range]:
        """Runs of rows, all or those of a shard, that are not there yet."""
        rows = self.shape[0]
        own = (at for at in range(0, rows, step) if shard is None or self._owner(at, step, shard) == shard.number)
        return [range(at, min(at + step, rows)) for at in own if at not in done]

    def _begin(self, step: int, what: str, remedy: str, shard: Shard | None) -> dict[int, Part]:
        """Make the folder in which it is built; the parts, of a shard its own, that are there already."""
        building, rows = self._building, self.shape[0]
        if self._parts(self.folder) is not None:  # damaged: what is good of it stays
            shutil.rmtree(building, ignore_errors=True)
            self.folder.replace(building)
        building.mkdir(parents=True, exist_ok=True)
        remove_drafts(building)
        done = {part.start: part for part in self._finished(step, shard)}
        if done:
            there = sum(part.stop - part.start for part in done.values())
            logger.info("%s: going on after %d of %d slices", building, there, rows)
        total = rows * self.row_bytes
        needed = sum(map(len, self._missing(step, done, shard))) * self.row_bytes
        free = shutil.disk_usage(building).free
        too_much = over_limit(self.folder.parents[1], needed)
        if not (done or shard) and (too_much or free < needed):
            shutil.rmtree(building)
        if too_much:
            raise StoreError(
                f"{too_much}, and {what} needs {size_text(needed)} more",
                remedy=f"`hemlearn prune {self.folder.parents[1]}` shows what can go, apply=true frees it; or raise "
                f"data.cache_limit (or ${VARIABLE}){remedy}",
            )
        if free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (building / self.name).open("ab") as file:  # made where missing, kept where a killed build left it
            file.truncate(total)
        return done

    def _fill_shard(self, fill: Callable[[Sequence[range]], Iterable[Part]], missing: Sequence[range]) -> None:
        """Write a shard's parts while no lock is held; the open file keeps ``hemlearn prune`` away."""
        try:
            with hold_open(self._building / self.name):
                for _ in fill(missing):
                    pass
        except FileNotFoundError:  # a process without shard has built all of it meanwhile
            if not self.is_complete():
                raise

    def _finish_shards(self, step: int, shard: Shard, what: str, extra: Any) -> None:
        """Put the file together where the parts of all shards are there.

        Raises:
            ShardsMissing: They are not.
        """
        there = {int(journal.stem.removeprefix("part-")) for journal in self._building.glob("part-*.json")}
        there |= {part.start for part in self._parts(self._building) or ()}
        wanted = set(range(0, self.shape[0], step))
        done = {part.start: part for part in self._finished(step)} if wanted <= there else {}
        left = wanted - (set(done) if done else there)
        if left:
            raise ShardsMissing(shard, {self._owner(start, step, shard) for start in left}, what)
        self._finish(done, extra)

    def _finish(
        self, done: Mapping[int, Part], extra: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None
    ) -> None:
        """Write the marker and give the finished file its name."""
        building = self._building
        more = extra() if callable(extra) else extra
        marker = {
            **self.identity,
            "shape": list(self.shape),
            **(more or {}),
            "parts": [asdict(done[start]) for start in sorted(done)],
        }
        write_json(building / MARKER, marker)
        write_json(building / STAMPS, {name: file_stamp((building / name).stat()) for name in (self.name, MARKER)})
        for journal in building.glob("part-*.json"):
            journal.unlink()
        if self.folder.exists():  # without a marker that could be used
            shutil.rmtree(self.folder)
        building.replace(self.folder)

    def _finished(self, step: int, shard: Shard | None = None) -> list[Part]:
        """Parts, all or those of a shard, of an interrupted build whose bytes are as they were journalled."""
        data, rows = self._building / self.name, self.shape[0]
        told = {part.start: part for part in self._parts(self._building) or ()}  # it was whole once
        for journal in sorted(self._building.glob("part-*.json")):
            try:
                part = Part.read(load_json(read_document(journal)))
            except (ValueError, TypeError, KeyError):  # cut short by the kill
                logger.warning("%s is damaged; its slices are made again", journal)
            else:
                told[part.start] = part
        out = []
        for part in told.values():
            if shard is not None and self._owner(part.start, step, shard) != shard.number:
                continue
            fits = part.start % step == 0 and part.stop == min(part.start + step, rows)
            fits = fits and part.offset == part.start * self.row_bytes and data.exists()
            if fits and _holds(data, part):
                out.append(part)
            else:
                logger.warning("%s: rows %d to %d are made again", data, part.start, part.stop - 1)
        return out

    def _full(self, error: OSError, what: str, remedy: str) -> StoreError | None:
        needed = self.shape[0] * self.row_bytes
        full = full_disk(
            error,
            StoreError,
            self.folder.parent,
            needs=f"{what} needs {size_text(needed)}",
            remedy=f", or set data.cache_dir or $HEMLEARN_CACHE to another disk{remedy}",
        )
        return cast("StoreError | None", full)
