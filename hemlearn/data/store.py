"""The slice store: every slice decoded once into one memory-mapped array.

A store lives in ``CACHE/stores/KEY``: ``slices.bin`` (N x S x S), and ``complete.json``, written last. The key is
a hash of the slices' contents in order and of everything that decides about their pixels, so that a stale store
is never found. While it is built it is called ``KEY.building`` and holds one journal file per finished part; a
build that was killed goes on from those whose checksum still holds.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemlearn.data.manifest import Manifest
from hemlearn.data.preprocess import cut_square, series_square
from hemlearn.data.readers import AIR, DTYPES, reader_for, to_display
from hemlearn.data.readers.image import FITS, resize_square
from hemlearn.data.scan import content_of
from hemlearn.util.console import run_parallel, track
from hemlearn.util.errors import ConfigError, DataError, StoreError
from hemlearn.util.files import hash_range, hold_lock, is_full, sha256, write_json

logger = logging.getLogger(__name__)
FORMAT = 1
HEAD = "head"  # the fit that cuts a square around the head first
PART_BYTES = 4 << 20  # about this much is decoded, written and journalled at a time
_DATA, _MARKER = "slices.bin", "complete.json"
_MANY = 1500  # slices from which worker processes pay for their start


@dataclass(frozen=True)
class SliceStore:
    """Decoded slices on disk.

    Args:
        folder: Where the store lies.
        key: Its content key.
        unit: ``HU`` or ``signal`` (int16), or ``display`` (uint8).
        shape: (N, S, S).
        slice_ids: Slice id of each row.
    """

    folder: Path
    key: str
    unit: str
    shape: tuple[int, int, int]
    slice_ids: tuple[str, ...]

    @cached_property
    def array(self) -> NDArray[Any]:
        """(N, S, S) read-only memory map, uint8 (display) or int16 (HU, signal)."""
        return np.memmap(self.folder / _DATA, dtype=DTYPES[self.unit], mode="r", shape=self.shape)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each slice id."""
        return {slice_id: row for row, slice_id in enumerate(self.slice_ids)}

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry all its pixels to every loader process.
        return {name: value for name, value in self.__dict__.items() if name not in ("array", "rows")}

    def verify(self) -> None:
        """Read the whole store and compare it with the checksums taken when it was built.

        Raises:
            StoreError: A part has changed.
        """
        marker = json.loads((self.folder / _MARKER).read_text(encoding="utf-8"))
        for part in marker["parts"]:
            if hash_range(self.folder / _DATA, part["offset"], part["bytes"]) != part["sha256"]:
                raise StoreError(
                    f"{self.folder / _DATA}: rows {part['start']} to {part['stop'] - 1} have changed since they "
                    "were decoded",
                    remedy=f"delete {self.folder}; it is built again",
                )


Square = tuple[int, int, int]  # first row, first column, side: what is cut from a slice before it is resized
Source = tuple[str, int, str, str, Square | None]  # path, frame, content hash, modality of one slice


@dataclass(frozen=True)
class _Plan:
    """Everything a worker needs to know."""

    root: Path
    size: int
    fit: str
    unit: str

    @property
    def row_bytes(self) -> int:
        return self.size * self.size * np.dtype(DTYPES[self.unit]).itemsize


@dataclass(frozen=True)
class _Part:
    """A finished run of rows."""

    start: int
    stop: int
    offset: int
    bytes: int
    sha256: str


def open_store(
    manifest: Manifest,
    *,
    size: int,
    fit: str,
    cache_dir: str | os.PathLike[str],
    n_jobs: int | None = None,
    progress: bool = True,
) -> SliceStore:
    """Return the store of a data set at one size; build it first where it is missing.

    Args:
        manifest: The data set; row i of the store is row i of its table.
        size: Side of the square slices, pixels.
        fit: ``letterbox``, ``squash``, ``crop`` (see :func:`hemlearn.data.readers.image.resize_square`) or ``head``:
            one square around the head for all slices of a series (see :mod:`hemlearn.data.preprocess`).
        cache_dir: Cache folder.
        n_jobs: Workers; None: all cores.
        progress: Show progress.

    Raises:
        ConfigError: ``size`` or ``fit`` is impossible.
        DataError: A file has changed since the manifest was made, or cannot be read any more.
        StoreError: The disk is full or the folder cannot be written.
    """
    if size < 1 or fit not in (*FITS, HEAD):
        raise ConfigError(
            f"data.image_size={size}, data.fit={fit!r}",
            remedy=f"use a positive size and one of {', '.join((*FITS, HEAD))}",
        )
    names = ("path", "frame", "content", "modality", "slice_id")
    paths, frames, contents, modalities, ids = (manifest.table[name].tolist() for name in names)
    readers = [reader_for(path) for path in paths]
    own = [reader.unit_of(modality) for reader, modality in zip(readers, modalities, strict=True)]
    units = sorted(set(own))
    # A set that mixes screen images, HU and MR signal can only be shown as on a screen: HU cannot be won back.
    plan = _Plan(manifest.root, size, fit, units[0] if len(units) == 1 else "display")
    slices = [f"{content}:{frame}" for content, frame in zip(contents, frames, strict=True)]
    if len(units) > 1:
        slices = [f"{item}:{unit}" for item, unit in zip(slices, own, strict=True)]
    squares = _head_squares(manifest) if fit == HEAD else [None] * len(paths)
    if fit == HEAD:
        slices = [f"{item}:{square}" for item, square in zip(slices, squares, strict=True)]
    key = _key(plan, sorted({reader.key for reader in readers}), slices)
    folder = Path(cache_dir) / "stores" / key
    shape = (len(paths), size, size)
    store = SliceStore(folder, key, plan.unit, shape, tuple(ids))
    if _is_complete(store):
        return store
    sources = list(zip(paths, frames, contents, modalities, squares, strict=True))
    try:
        with hold_lock(folder):
            if not _is_complete(store):  # another process may have built it meanwhile
                _build(store, plan, sources, n_jobs, progress)
    except OSError as error:
        if is_full(error):
            shutil.rmtree(_building(folder), ignore_errors=True)
            raise _full(store, plan, None) from error
        raise StoreError(
            f"{folder}: cannot be written: {error.strerror or error}",
            remedy="set data.cache_dir or $HEMLEARN_CACHE to a folder that can be written",
        ) from error
    return store


def _key(plan: _Plan, readers: Sequence[str], slices: Sequence[str]) -> str:
    content = sha256("\n".join(slices))
    recipe = [FORMAT, plan.size, plan.fit, plan.unit, list(readers), content]
    return sha256(json.dumps(recipe))[:32]


def _building(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.building")


def _is_complete(store: SliceStore) -> bool:
    """Tell whether the store is there and whole; one of the wrong size is reported and not used."""
    try:
        marker = json.loads((store.folder / _MARKER).read_text(encoding="utf-8"))
        size = (store.folder / _DATA).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:
        marker, size = {}, -1
    expected = int(np.prod(store.shape)) * np.dtype(DTYPES[store.unit]).itemsize
    if marker.get("key") == store.key and size == expected:
        return True
    logger.warning("%s is damaged (%d bytes, expected %d) and is built again", store.folder, size, expected)
    return False


def _head_squares(manifest: Manifest) -> list[Square | None]:
    """The square of each slice: that of its series, among the slices of its size."""
    groups = manifest.table.groupby(["series_id", "height", "width"], sort=False)
    found: list[Square] = []
    for (_, height, width), texts in groups["head_box"]:
        boxes = [tuple(map(int, text.split())) if text else None for text in texts]
        found.append(series_square(boxes, (int(height), int(width))))  # type: ignore[arg-type]
    return [found[code] for code in groups.ngroup()]


def _build(store: SliceStore, plan: _Plan, sources: Sequence[Source], n_jobs: int | None, progress: bool) -> None:
    building = _building(store.folder)
    building.mkdir(parents=True, exist_ok=True)
    total = len(sources) * plan.row_bytes
    step = max(1, min(PART_BYTES // plan.row_bytes, 256))
    done = {part.start: part for part in _finished(building, plan, len(sources), step)}
    if done:
        logger.info("%s: going on after %d of %d slices", building, step * len(done), len(sources))
    missing = total - sum(part.bytes for part in done.values())
    free = shutil.disk_usage(building).free
    if free < missing:
        if not done:
            shutil.rmtree(building)
        raise _full(store, plan, free)
    with (building / _DATA).open("ab") as file:  # made where missing, kept where a killed build left it
        file.truncate(total)
    tasks = [
        (plan, building, start, sources[start : start + step])
        for start in range(0, len(sources), step)
        if start not in done
    ]
    results = run_parallel(_write_part, tasks, n_jobs=n_jobs, processes=len(tasks) * step > _MANY)
    length: Callable[[_Part], int] = lambda part: part.stop - part.start  # noqa: E731
    pixels = sum(len(task[3]) for task in tasks)
    for part in track(results, "Decoding slices", pixels, size=length, show=progress):
        done[part.start] = part
    marker = {
        "format": FORMAT,
        "key": store.key,
        "unit": store.unit,
        "shape": list(store.shape),
        "fit": plan.fit,
        "parts": [asdict(done[start]) for start in sorted(done)],
    }
    write_json(building / _MARKER, marker)
    for journal in building.glob("part-*.json"):
        journal.unlink()
    if store.folder.exists():  # damaged, see _is_complete
        shutil.rmtree(store.folder)
    building.replace(store.folder)


def _finished(building: Path, plan: _Plan, count: int, step: int) -> list[_Part]:
    """Return the parts of an interrupted build whose bytes are as they were journalled."""
    data = building / _DATA
    out = []
    for journal in sorted(building.glob("part-*.json")):
        try:
            part = _Part(**json.loads(journal.read_text(encoding="utf-8")))
        except (ValueError, TypeError):  # cut short by the kill
            logger.warning("%s is damaged; its slices are decoded again", journal)
            continue
        fits = part.start % step == 0 and part.stop == min(part.start + step, count)
        fits = fits and part.offset == part.start * plan.row_bytes and data.exists()
        if fits and hash_range(data, part.offset, part.bytes) == part.sha256:
            out.append(part)
        else:
            logger.warning("%s does not match its slices; they are decoded again", journal)
    return out


def _write_part(plan: _Plan, building: Path, start: int, sources: Sequence[Source]) -> _Part:
    """Decode some slices into their place in the file, then journal them; runs in a worker."""
    block = np.empty((len(sources), plan.size, plan.size), dtype=DTYPES[plan.unit])
    last = ""
    for row, (name, frame, content, modality, square) in enumerate(sources):
        path = plan.root / name
        reader = reader_for(path)
        pixels = reader.decode(path, frame, modality)
        if name != last and content_of(path, frame) != content:
            raise DataError(
                f"{path}: its content has changed since the manifest was made", remedy="run hemlearn index again"
            )
        last = name
        unit = reader.unit_of(modality)
        if unit != plan.unit:
            pixels = to_display(pixels, unit)
        if square is not None:
            pixels = cut_square(pixels, square, AIR[plan.unit])
        block[row] = resize_square(pixels, plan.size, "squash" if square else plan.fit, AIR[plan.unit])
    raw = block.tobytes()
    offset = start * plan.row_bytes
    # Plain writes, not a memory map: on a full disk those fail with an error instead of killing the process.
    with (building / _DATA).open("r+b") as file:
        file.seek(offset)
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    part = _Part(start, start + len(sources), offset, len(raw), sha256(raw))
    write_json(building / f"part-{start:08d}.json", asdict(part))
    return part


def _full(store: SliceStore, plan: _Plan, free: int | None) -> StoreError:
    needed = store.shape[0] * plan.row_bytes
    seen = "" if free is None else f", {free} bytes are free"
    return StoreError(
        f"{store.folder.parent}: the disk is full: the slice store needs {needed} bytes ({needed / 1e9:.2f} GB){seen}",
        remedy="free some space, set data.cache_dir or $HEMLEARN_CACHE to another disk, or lower data.image_size",
    )
