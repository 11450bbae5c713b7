"""A large array in one file: written in parts by many processes, resumable, whole or absent, read as a memory map.

A block file lies in ``FOLDER/NAME`` beside ``complete.json``, which is written last. While it is built the folder is
called ``FOLDER.building`` and holds one journal per finished part; a build that was killed goes on from the parts
whose checksum still holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemlearn.util.errors import StoreError
from hemlearn.util.files import hash_range, hold_lock, is_full, write_json

logger = logging.getLogger(__name__)
MARKER = "complete.json"


@dataclass(frozen=True)
class Part:
    """A finished run of rows: first row, row after the last, place and length in bytes, checksum."""

    start: int
    stop: int
    offset: int
    bytes: int
    sha256: str


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
        """The whole array, a read-only memory map."""
        return np.memmap(self.folder / self.name, dtype=self.dtype, mode="r", shape=self.shape)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry all its bytes to every process.
        return {name: value for name, value in self.__dict__.items() if name != "array"}

    @property
    def marker(self) -> dict[str, Any]:
        """Content of ``complete.json``."""
        found: dict[str, Any] = json.loads((self.folder / MARKER).read_text(encoding="utf-8"))
        return found

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def _building(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.building")

    def is_complete(self) -> bool:
        """Whether the file is there and whole; one of another size or identity is reported and not used."""
        try:
            marker = self.marker
            size = (self.folder / self.name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return False
        except ValueError:
            marker, size = {}, -1
        expected = self.shape[0] * self.row_bytes
        if size == expected and all(marker.get(key) == value for key, value in self.identity.items()):
            return True
        logger.warning("%s is damaged (%d bytes, expected %d) and is built again", self.folder, size, expected)
        return False

    def verify(self) -> None:
        """Read the whole file and compare it with the checksums taken when it was built.

        Raises:
            StoreError: A part has changed.
        """
        for part in self.marker["parts"]:
            if hash_range(self.folder / self.name, part["offset"], part["bytes"]) != part["sha256"]:
                raise StoreError(
                    f"{self.folder / self.name}: rows {part['start']} to {part['stop'] - 1} have changed since they "
                    "were decoded",
                    remedy=f"delete {self.folder}; it is built again",
                )

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
    ) -> None:
        """Build the file unless it is complete; another process that builds it already is waited for.

        Args:
            fill: Writes the given runs of rows with :meth:`write` and yields their parts, in any order.
            step: Rows per part.
            what: Name of the content for messages, for example ``the slice store``.
            extra: Further entries of ``complete.json``; a function is called when all rows are written.
            remedy: What else helps when the disk is full, appended to the usual advice.
            keep: Whether finished parts stay when the disk is full; else they make room.

        Raises:
            StoreError: The disk is full or the folder cannot be written.
        """
        try:
            if self.is_complete():
                return
            with hold_lock(self.folder):
                if not self.is_complete():  # another process may have built it meanwhile
                    self._build(fill, step, what, extra, remedy)
        except OSError as error:
            if is_full(error):
                if not keep:
                    shutil.rmtree(self._building, ignore_errors=True)
                raise self._full(what, None, remedy) from error
            raise StoreError(
                f"{self.folder}: cannot be written: {error.strerror or error}",
                remedy="set data.cache_dir or $HEMLEARN_CACHE to a folder that can be written",
            ) from error

    def _build(
        self,
        fill: Callable[[Sequence[range]], Iterable[Part]],
        step: int,
        what: str,
        extra: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None,
        remedy: str,
    ) -> None:
        building, count = self._building, self.shape[0]
        building.mkdir(parents=True, exist_ok=True)
        done = {part.start: part for part in self._finished(step)}
        if done:
            rows = sum(part.stop - part.start for part in done.values())
            logger.info("%s: going on after %d of %d slices", building, rows, count)
        total = count * self.row_bytes
        free = shutil.disk_usage(building).free
        if free < total - sum(part.bytes for part in done.values()):
            if not done:
                shutil.rmtree(building)
            raise self._full(what, free, remedy)
        with (building / self.name).open("ab") as file:  # made where missing, kept where a killed build left it
            file.truncate(total)
        missing = [range(at, min(at + step, count)) for at in range(0, count, step) if at not in done]
        for part in fill(missing):
            done[part.start] = part
        more = extra() if callable(extra) else extra
        marker = {
            **self.identity,
            "shape": list(self.shape),
            **(more or {}),
            "parts": [asdict(done[start]) for start in sorted(done)],
        }
        write_json(building / MARKER, marker)
        for journal in building.glob("part-*.json"):
            journal.unlink()
        if self.folder.exists():  # damaged, see is_complete
            shutil.rmtree(self.folder)
        building.replace(self.folder)

    def _finished(self, step: int) -> list[Part]:
        """Parts of an interrupted build whose bytes are as they were journalled."""
        data, count, out = self._building / self.name, self.shape[0], []
        for journal in sorted(self._building.glob("part-*.json")):
            try:
                part = Part(**json.loads(journal.read_text(encoding="utf-8")))
            except (ValueError, TypeError):  # cut short by the kill
                logger.warning("%s is damaged; its slices are made again", journal)
                continue
            fits = part.start % step == 0 and part.stop == min(part.start + step, count)
            fits = fits and part.offset == part.start * self.row_bytes and data.exists()
            if fits and hash_range(data, part.offset, part.bytes) == part.sha256:
                out.append(part)
            else:
                logger.warning("%s does not match its slices; they are made again", journal)
        return out

    def _full(self, what: str, free: int | None, remedy: str) -> StoreError:
        needed = self.shape[0] * self.row_bytes
        seen = "" if free is None else f", {free} bytes are free"
        return StoreError(
            f"{self.folder.parent}: the disk is full: {what} needs {needed} bytes ({needed / 1e9:.2f} GB){seen}",
            remedy=f"free some space, or set data.cache_dir or $HEMLEARN_CACHE to another disk{remedy}",
        )
