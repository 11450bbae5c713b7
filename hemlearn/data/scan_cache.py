"""What a scan keeps of a slice: its row, hashes of what it shows, and its pixels until the slice store takes them."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from hemlearn.data.preprocess import HEAD, Preprocess, opened
from hemlearn.data.readers import DTYPES, FileFacts
from hemlearn.data.readers.headers import COLUMNS, Header
from hemlearn.util.errors import ConfigError, count
from hemlearn.util.files import load_table, save_table, table_cache
from hemlearn.util.shards import Shard

logger = logging.getLogger(__name__)

# --- A hash of what a slice shows, the same for a re-export at another size, crop or window.


VERSION = 2  # of hash and criterion together; part of cache keys
HASH_SIDE = 16
SIDE = 64  # pixels of the thumbnails
PIECE = 0.1  # of the largest bright component: what is smaller is no part of the head


def perceptual_hash(display: NDArray[np.uint8]) -> str:
    """Return the 256-bit hash of a slice as 64 hexadecimal digits; "" where nothing is to be seen.

    Args:
        display: (H, W) uint8 grey.
    """
    return phash_of(head_thumbnail(display))


def phash_of(thumbnail: NDArray[np.uint8] | None) -> str:
    """:func:`perceptual_hash` of a thumbnail."""
    import imagehash

    if thumbnail is None:
        return ""
    return str(imagehash.phash(Image.fromarray(thumbnail), hash_size=HASH_SIDE))


def head_thumbnail(display: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return the head, cut out and equalised, at 64 x 64; None where the slice is flat.

    The head is where the large bright components lie (the skull on CT, in one piece or several): unlike the whole image
    it does not depend on margins, letters or the head rest. Equalisation takes out the window.
    """
    image = Image.fromarray(np.ascontiguousarray(display))
    step = max(1, max(image.size) // 128)  # the skull is found on a coarse copy: ten times as fast
    coarse = np.asarray(image.reduce(step))
    bright = coarse > 0.4 * float(np.percentile(coarse, 99.5))
    if not bright.any() or bright.all():
        return None
    labels, count = ndimage.label(opened(bright))
    if count:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0  # the background
        # One component alone would be half a skull as soon as a crop or a window parts it.
        head = (sizes >= PIECE * sizes.max())[labels]
        down, right = ndimage.find_objects(head.astype(np.int8))[0]
        if down.stop - down.start >= 0.2 * len(coarse) and right.stop - right.start >= 0.2 * len(coarse[0]):
            box = (right.start * step, down.start * step, right.stop * step, down.stop * step)
            image = image.crop((box[0], box[1], min(box[2], image.width), min(box[3], image.height)))
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(ImageOps.equalize(small), dtype=np.uint8)


def shown_hash(display: NDArray[np.uint8]) -> str:
    """Hash of a slice as on a screen (H, W); equal only for equal pictures."""
    return digest_of(repr(display.shape).encode() + display.tobytes())


def digest_of(raw: bytes) -> str:
    """128-bit BLAKE2b hash, hexadecimal."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


# --- A slice's row.

KEY = ["path", "size", "stamp", "reader"]
_VECTORS = {"normal": 3, "pixel_mm": 2}
FLAT = [f"{name}_{axis}" if name in _VECTORS else name for name in COLUMNS for axis in range(_VECTORS.get(name, 1))]
FACTS = [f"file_{name}" for name in FileFacts._fields]
TABLE = 10 * VERSION + 6  # of the kept table: raised when a column comes or its meaning changes


class Pixels(NamedTuple):
    """What a slice's pixels say.

    Args:
        asked: The modality it was decoded as; "": it was not decoded.
        content: Hash of the file's bytes.
        phash: Perceptual hash; "" where nothing is to be seen.
        head_box: Four numbers as text; "": no head found.
        height: Pixels.
        width: Pixels.
        shown: Hash of the slice as on a screen.
        thumbnail: (64 x 64) bytes of the equalised head; empty: nothing to be seen, or not kept.
        why: "" or why the slice cannot be used.
    """

    asked: str = ""
    content: str = ""
    phash: str = ""
    head_box: str = ""
    height: int = 0
    width: int = 0
    shown: str = ""
    thumbnail: bytes = b""
    why: str = ""


class Place(NamedTuple):
    """Where the pixels of a slice lie in the squares folder; ``part`` is "" where they do not."""

    part: str = ""
    offset: int = 0
    kept_height: int = 0
    kept_width: int = 0
    digest: str = ""


PIXELS, PLACE = list(Pixels._fields), list(Place._fields)
ROW = [*FLAT, "header", *FACTS, *PIXELS]  # header: whether the header was read
SAVED = [*KEY, *ROW[1:]]


def flat(header: Header) -> tuple[Any, ...]:
    """A header as columns with one number or text each, as a Parquet file keeps them."""
    row: list[Any] = []
    for name in COLUMNS:
        value = getattr(header, name)
        if name in _VECTORS:
            row += [float("nan")] * _VECTORS[name] if value is None else list(value)
        else:
            row.append(float("nan") if name == "instance_number" and value is None else value)
    return tuple(row)


def unflatten(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of :class:`Header`, and reason, from those of :func:`flat`."""
    kinds: dict[str, Any] = {item.name: item.type for item in fields(Header)}
    out: dict[str, Any] = {}
    for name in COLUMNS:
        if name in _VECTORS:
            values = table[[f"{name}_{axis}" for axis in range(_VECTORS[name])]].to_numpy(dtype=np.float64)
            items = [None if np.isnan(row[0]) else tuple(row.tolist()) for row in values]
            out[name] = pd.Series(items, index=table.index, dtype=object)
        elif name == "instance_number":
            out[name] = table[name].astype(float).astype("Int64")
        else:
            out[name] = table[name].astype({"int": np.int64, "float": float}.get(kinds[name], str))
    return pd.DataFrame(out | {"reason": table["reason"].fillna("").astype(str) if "reason" in table else ""})


# --- Which shards have read their files.


@dataclass(frozen=True)
class ShardMarks:
    """Notes of shards that have read their share of a list of files, beside the table of the scan.

    A file that cannot be read never comes into the table; by the notes a shard that is done is known all the same.

    Args:
        files: Columns :data:`KEY`: the list that is divided.
        table: Where its scan is kept.
    """

    files: pd.DataFrame
    table: Path

    @property
    def folder(self) -> Path:
        """Where the notes lie."""
        return self.table.with_suffix(".shards")

    @cached_property
    def ordered(self) -> pd.DataFrame:
        """The list by path, each file once."""
        return self.files[KEY].drop_duplicates("path").sort_values("path", kind="stable")

    @cached_property
    def key(self) -> str:
        """Hash of the list: other files, or changed ones, have other notes."""
        return digest_of(pd.util.hash_pandas_object(self.ordered, index=False).to_numpy().tobytes())

    def owners(self, shards: int) -> dict[str, int]:
        """Path -> number of the shard that reads it.

        Raises:
            ConfigError: There are fewer files than shards.
        """
        total = len(self.ordered)
        if shards > total:
            raise ConfigError(
                f"shard=K/{shards}: there are {count(total, 'file')} to divide",
                remedy=f"divide them into at most {total} shards, or leave shard out",
            )
        return {path: Shard(1, shards).owner(place, total) for place, path in enumerate(self.ordered["path"])}

    def note(self, shard: Shard) -> None:
        """Write down that a shard is done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.key}-{shard.number}-of-{shard.of}").touch()

    def done(self) -> dict[int, set[int]]:
        """Number of shards -> those that are done."""
        found: dict[int, set[int]] = {}
        if not self.folder.is_dir():
            return found
        for note in self.folder.glob(f"{self.key}-*-of-*"):
            number, _, shards = note.name.removeprefix(f"{self.key}-").partition("-of-")
            found.setdefault(int(shards), set()).add(int(number))
        return found


# --- Pixels.


@dataclass(frozen=True)
class Squares:
    """What of the decoded slices is kept until the slice store takes it.

    Args:
        folder: Under ``CACHE/squares``.
        size: ``data.image_size``.
        fit: ``data.fit``; for ``head`` whole slices are kept, since the square follows from all of a series.
    """

    folder: Path
    size: int
    fit: str

    @classmethod
    def of(cls, root: Path, cache_dir: str | os.PathLike[str], size: int, fit: str) -> Squares:
        """Those of a data set."""
        place = table_cache(cache_dir, "squares", root, TABLE)
        return cls(place.with_name(f"{place.stem}-{size}-{fit}"), size, fit)

    def table(self) -> pd.DataFrame:
        """Rows of finished parts: the columns of the scan, with their places."""
        found = [load_table(file, [*SAVED, *PLACE]) for file in sorted(self.folder.glob("*.parquet"))]
        good = [table for table in found if table is not None]
        return pd.concat(good, ignore_index=True) if good else pd.DataFrame(columns=[*SAVED, *PLACE])

    def read(self, place: Place, unit: str) -> NDArray[Any] | None:
        """The pixels at a place, (size, size) or whole, in ``unit``; None where they are not as they were written."""
        dtype = np.dtype(DTYPES[unit])
        try:
            with (self.folder / f"{place.part}.bin").open("rb") as file:
                file.seek(place.offset)
                raw = file.read(place.kept_height * place.kept_width * dtype.itemsize)
        except OSError:
            return None
        if digest_of(raw) != place.digest:
            return None
        return np.frombuffer(raw, dtype).reshape(place.kept_height, place.kept_width)

    def remove(self) -> None:
        """Forget them: the store has them."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Writer:
    """Appends pixels to one part of the squares; gives up where the disk is full."""

    def __init__(self, squares: Squares) -> None:
        self.squares = squares
        self.part = uuid.uuid4().hex
        self.offset = 0
        self.file: Any = None

    def write(self, pixels: NDArray[Any], unit: str) -> Place:
        """Keep a slice."""
        step = self.squares
        kept = pixels if step.fit == HEAD else Preprocess(step.size, step.fit, unit).square(pixels, unit)
        raw = np.ascontiguousarray(kept, dtype=DTYPES[unit]).tobytes()
        try:
            if self.file is None:
                self.file = (step.folder / f"{self.part}.bin").open("wb")
            self.file.write(raw)
        except OSError as error:
            logger.debug("%s: %s", step.folder, error)
            return Place()
        place = Place(self.part, self.offset, kept.shape[0], kept.shape[1], digest_of(raw))
        self.offset += len(raw)
        return place

    def finish(self, rows: pd.DataFrame) -> None:
        """Close the part and write what is in it."""
        try:
            if self.file is not None:
                self.file.close()
            save_table(self.squares.folder / f"{self.part}.parquet", rows)
        except OSError as error:
            logger.debug("%s: %s", self.squares.folder, error)
