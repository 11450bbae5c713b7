"""What is known of every image file: content hash, perceptual hash and size, kept between runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from hemlearn.data.preprocess import head_box
from hemlearn.data.readers import reader_for, to_display
from hemlearn.util.console import run_parallel, track
from hemlearn.util.errors import DataError
from hemlearn.util.files import kept_file, load_kept, save_kept

# --- A hash of what a slice shows, the same for a re-export at another size, crop or window.


VERSION = 1  # of hash and criterion together; part of cache keys
HASH_SIDE = 16
SIDE = 64  # pixels of the thumbnails


def perceptual_hash(display: NDArray[np.uint8]) -> str:
    """Return the 256-bit hash of a slice as 64 hexadecimal digits; "" where nothing is to be seen.

    Args:
        display: (H, W) uint8 grey.
    """
    import imagehash

    thumbnail = head_thumbnail(display)
    if thumbnail is None:
        return ""
    return str(imagehash.phash(Image.fromarray(thumbnail), hash_size=HASH_SIDE))


def head_thumbnail(display: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return the head, cut out and equalised, at 64 x 64; None where the slice is flat.

    The head is the largest bright component (the skull on CT): unlike the whole image it does not depend on
    margins, letters or the head rest. Equalisation takes out the window.
    """
    image = Image.fromarray(np.ascontiguousarray(display))
    step = max(1, max(image.size) // 128)  # the skull is found on a coarse copy: ten times as fast
    coarse = np.asarray(image.reduce(step))
    bright = coarse > 0.4 * float(np.percentile(coarse, 99.5))
    if not bright.any() or bright.all():
        return None
    labels, count = ndimage.label(ndimage.binary_opening(bright))
    if count:
        largest = int(np.argmax(np.bincount(labels.ravel())[1:]))
        down, right = ndimage.find_objects(labels)[largest]
        if down.stop - down.start >= 0.2 * len(coarse) and right.stop - right.start >= 0.2 * len(coarse[0]):
            box = (right.start * step, down.start * step, right.stop * step, down.stop * step)
            image = image.crop((box[0], box[1], min(box[2], image.width), min(box[3], image.height)))
    head = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(ImageOps.equalize(head), dtype=np.uint8)


_KEY = ["path", "frame", "size", "mtime_ns", "reader"]
_VALUES = ["content", "phash", "head_box", "height", "width"]
_TABLE = 10 * VERSION + 1  # of the kept table: raised when a column comes or its meaning changes
_CHUNK = 64  # files per task
_MANY = 2000  # files from which worker processes pay for their start


def file_hash(path: Path) -> str:
    """Return the 128-bit BLAKE2b hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def content_of(path: Path, frame: int) -> str:
    """Return the hash of a file; that of a volume is remembered while its slices are worked through in parts."""
    if frame == 0:
        return file_hash(path)
    info = path.stat()
    return _volume_hash(path, (info.st_size, info.st_mtime_ns))


@lru_cache(maxsize=16)
def _volume_hash(path: Path, _stamp: tuple[int, int]) -> str:
    return file_hash(path)


def fingerprints(
    table: pd.DataFrame, root: Path, *, n_jobs: int | None, cache_dir: str | os.PathLike[str] | None, progress: bool
) -> pd.DataFrame:
    """Open every file once, decode it and hash it.

    Args:
        table: Columns path (relative to ``root``, "": no file) and frame; modality (CT, MR, OT) where it is not CT.
        root: Folder of the data set.
        n_jobs: Workers; None: all cores.
        cache_dir: Where results are kept by path, size, modification time, reader version and unit; None: nowhere.
        progress: Show progress.

    Returns:
        Indexed like ``table``: content (hash of the bytes), phash, head_box, height, width (0 where unusable) and
        reason ("" or why the file cannot be used).
    """
    out = _stat(table, root)
    cache = None if cache_dir is None else kept_file(cache_dir, "index", root, _TABLE)
    known = load_kept(cache, _KEY + _VALUES)
    merged = out[_KEY].merge(known, on=_KEY, how="left") if known is not None else out[_KEY].assign(content=None)
    hit = merged["content"].notna().to_numpy()
    for name in _VALUES:
        out[name] = merged[name].to_numpy() if known is not None else None
    todo = np.flatnonzero((out["reason"] == "").to_numpy() & ~hit)
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    columns = [out[name].to_numpy(dtype=object) for name in ("path", "frame", "modality")]
    tasks = [(root, chunk.tolist(), *(column[chunk].tolist() for column in columns)) for chunk in chunks]
    results = run_parallel(_open_files, tasks, n_jobs=n_jobs, processes=len(todo) > _MANY)
    found: list[tuple[Any, ...]] = []
    for part in track(results, "Reading images", len(todo), size=len, show=progress and len(todo) > 0):
        found += part
    if found:
        fresh = pd.DataFrame(found, columns=["row", *_VALUES, "reason"]).set_index("row")
        out = out.astype(dict.fromkeys([*_VALUES, "reason"], object))
        for name in (*_VALUES, "reason"):
            out.loc[fresh.index, name] = fresh[name].astype(object)
    out = out.fillna({"content": "", "phash": "", "head_box": "", "height": 0, "width": 0})
    out = out.astype(
        {"height": np.int64, "width": np.int64, "content": str, "phash": str, "head_box": str, "reason": str}
    )
    if cache is not None and found:
        fresh = out.loc[out["reason"] == "", _KEY + _VALUES]
        keep = fresh if known is None else pd.concat([fresh, known])
        save_kept(cache, keep.drop_duplicates(["path", "frame"]))
    return out[[*_VALUES, "reason"]]


def _stat(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Return path, frame, modality, size, modification time, reader (with unit) and reason of every row."""
    found: dict[tuple[str, str], tuple[int, int, str, str]] = {}
    base = os.fspath(root)
    modalities = table["modality"] if "modality" in table else pd.Series("CT", index=table.index)
    pairs = pd.MultiIndex.from_arrays([table["path"], modalities])
    for path, modality in pairs.unique():  # one stat call per file
        if not path:
            found[path, modality] = (0, 0, "", "label without image: the row names no file")
            continue
        try:
            info = os.stat(os.path.join(base, path))  # noqa: PTH116, PTH118 - hundreds of thousands of files
            reader = reader_for(path)
            key = f"{reader.key}:{reader.unit_of(modality)}"
            found[path, modality] = (info.st_size, info.st_mtime_ns, key, "")
        except FileNotFoundError:
            found[path, modality] = (0, 0, "", f"label without image: {path} does not exist")
        except OSError as error:
            found[path, modality] = (0, 0, "", f"cannot be opened: {error.strerror or error}")
        except DataError as error:
            found[path, modality] = (0, 0, "", error.problem.removeprefix(f"{path}: "))
    facts = pd.DataFrame([found[pair] for pair in pairs], columns=["size", "mtime_ns", "reader", "reason"])
    named = pd.DataFrame({"path": table["path"], "frame": table["frame"], "modality": modalities})
    return pd.concat([named, facts.set_axis(table.index, axis=0)], axis=1)


def _open_files(
    root: Path, rows: Sequence[int], paths: Sequence[str], frames: Sequence[int], modalities: Sequence[str]
) -> list[tuple[int, str, str, str, int, int, str]]:
    """Return (row, content, phash, head_box, height, width, reason) of some files; runs in a worker."""
    out = []
    last, content = "", ""
    for row, name, frame, modality in zip(rows, paths, frames, modalities, strict=True):
        path = root / name
        try:
            reader = reader_for(path)
            pixels = reader.decode(path, frame, modality)
            if name != last:  # slices of one volume file share its hash
                last, content = name, content_of(path, frame)
        except DataError as error:
            out.append((row, "", "", "", 0, 0, error.problem.removeprefix(f"{path}: ")))
            continue
        height, width = pixels.shape
        display = to_display(pixels, reader.unit_of(modality))
        box = " ".join(map(str, head_box(display) or ()))
        out.append((row, content, perceptual_hash(display), box, height, width, ""))
    return out
