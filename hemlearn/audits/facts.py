"""What files tell of a slice without its pixels: size, length, encoding, and how the scanner was set.

A classifier can learn a hospital, a scanner or an export program instead of the disease wherever these differ between
the classes. They are read here to be judged by :mod:`hemlearn.audits.baselines`, and never reach a network.
"""

from __future__ import annotations

import logging
import os

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import FileFacts
from hemlearn.data.scan import file_facts
from hemlearn.data.store import SliceStore
from hemlearn.util.errors import count
from hemlearn.util.files import PageBudget

logger = logging.getLogger(__name__)
SIZE = ("height", "width", "aspect")
FACTS = (*SIZE, "bytes", "bytes_per_pixel", *FileFacts._fields, "slices")


def slice_facts(
    manifest: Manifest,
    *,
    cache_dir: str | os.PathLike[str] | None,
    rows: NDArray[np.int64] | None = None,
    n_jobs: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Facts about every slice that need no pixel.

    They were read when the files were scanned; of a file that was not, the header is read. A file that has gone or
    changed beyond reading since the manifest was made
    leaves its facts unknown, which is told: an audit must not cost a finished training.

    Args:
        manifest: The data set.
        cache_dir: Where facts are kept by path, size and modification time; None: nowhere.
        rows: Rows of ``manifest.table`` that are wanted; None: all.
        n_jobs: Workers; None: all cores.
        progress: Show progress.

    Returns:
        One row per wanted slice: height, width (pixels); aspect (width / height); bytes (of the file, divided
        by its slices); bytes_per_pixel; encoding (``PNG RGBA``, ``MONOCHROME2 12 bit unsigned``, ``NIfTI int16``);
        manufacturer (0008,0070); kernel (0018,1210); thickness_mm (0018,0050); pixel_mm (row spacing of
        (0028,0030)); tilt_deg (0018,1120); slices (of the series, in the manifest). Unknown is "" or NaN.
    """
    every = manifest.table
    counted = every["path"].value_counts()
    slices = every.groupby("series_id")["slice_id"].transform("size").to_numpy(dtype=np.float64)
    table = every if rows is None else every.iloc[rows]
    paths = table["path"].to_numpy(dtype=object)
    names = list(dict.fromkeys(paths))
    files = file_facts(names, manifest.root, n_jobs=n_jobs, cache_dir=cache_dir, progress=progress)
    lost = files[files["reason"] != ""]
    if len(lost):
        logger.warning(
            "%d of %s cannot be read again, their facts are unknown; the first is %s (%s)",
            len(lost),
            count(len(files), "file"),
            lost["path"].iloc[0],
            lost["reason"].iloc[0],
        )
    row = pd.Series(np.arange(len(files)), index=files["path"].to_numpy(dtype=object))
    found = files.iloc[row.loc[paths].to_numpy(np.int64)].reset_index(drop=True)
    frames = table["path"].map(counted).to_numpy(dtype=np.float64)
    height, width = (table[name].to_numpy(dtype=np.float64) for name in ("height", "width"))
    size = np.where(found["bytes"] > 0, found["bytes"], np.nan) / frames
    out = {
        "height": height,
        "width": width,
        "aspect": width / height,
        "bytes": size,
        "bytes_per_pixel": size / (height * width),
    }
    out |= {name: found[name].to_numpy() for name in FileFacts._fields}
    out["slices"] = slices if rows is None else slices[rows]
    return pd.DataFrame(out)[list(FACTS)]


# --- What the outermost ring of every slice looks like: pixels that show no brain, and sometimes the hospital.


SHARE = 1 / 16  # width of the ring, of the shorter side
SEGMENTS = 8  # parts that each side of the ring is cut into
_SIDES = ("top", "bottom", "left", "right")
COLUMNS = tuple(f"{side}_{part}" for side in _SIDES for part in (*range(SEGMENTS), "spread"))
_HU = (-200.0, 200.0)  # what the windows of a head CT tell apart; below and above, air is air and bone is bone
_BLOCK = 16 << 20  # bytes read at a time


def border_features(store: SliceStore, table: pd.DataFrame, rows: NDArray[np.int64], fit: str) -> pd.DataFrame:
    """Mean brightness of 32 segments of the ring around each slice, and the spread along its four sides.

    The ring lies on the image itself: the bars that ``letterbox`` adds would tell its aspect, which is a fact of the
    file. HU are bounded to -200..200; signal is given relative to the slice's own mean, since MR has no unit.

    Args:
        store: Decoded slices.
        table: The manifest's table: slice_id, height, width of each row.
        rows: (N,) rows of ``table`` wanted.
        fit: How slices were made square (``data.fit``).

    Returns:
        (N, 36) float64 in the order of ``rows``, columns ``COLUMNS``.
    """
    array = store.array
    pages = PageBudget(array)
    place = np.array([store.rows[item] for item in table["slice_id"].to_numpy(dtype=object)[rows]], dtype=np.int64)
    side = store.shape[1]
    inside = _inside(table["height"].to_numpy()[rows], table["width"].to_numpy()[rows], side, fit)
    shapes, group = np.unique(inside, axis=0, return_inverse=True)
    out = np.empty((len(rows), len(COLUMNS)))
    step = max(1, _BLOCK // (side * side * array.itemsize))
    order = np.lexsort((place, group))
    ends = np.flatnonzero(np.diff(group[order])) + 1
    for members in np.split(order, ends) if len(order) else []:
        height, width = shapes[group[members[0]]]
        top, left = (side - height) // 2, (side - width) // 2
        for start in range(0, len(members), step):
            chosen = members[start : start + step]
            block = array[place[chosen]]
            pages.spend(block.nbytes)
            out[chosen] = _ring(block[:, top : top + height, left : left + width].astype(np.float32), store.unit)
    return pd.DataFrame(out, columns=list(COLUMNS))


def _inside(height: NDArray[np.int64], width: NDArray[np.int64], side: int, fit: str) -> NDArray[np.int64]:
    """(N, 2) rows and columns that the image fills in the square."""
    if fit != "letterbox":
        return np.full((len(height), 2), side, dtype=np.int64)
    scale = side / np.maximum(height, width)
    filled = np.stack([height * scale, width * scale], axis=1)  # rounded as resize_square does, halves to even
    return np.maximum(np.rint(filled), 1).astype(np.int64)


def _ring(pixels: NDArray[np.float32], unit: str) -> NDArray[np.float64]:
    """(B, 36) features of slices (B, H, W)."""
    if unit == "HU":
        pixels = np.clip(pixels, *_HU)
    elif unit == "signal":
        pixels = pixels / np.maximum(pixels.mean(axis=(1, 2), keepdims=True), 1.0)
    depth = max(1, round(SHARE * min(pixels.shape[1:])))
    found = []
    strips = ((pixels[:, :depth], 1), (pixels[:, -depth:], 1), (pixels[:, :, :depth], 2), (pixels[:, :, -depth:], 2))
    for strip, across in strips:
        profile = strip.mean(axis=across, dtype=np.float64)
        edges = np.linspace(0, profile.shape[1], SEGMENTS + 1).astype(np.int64)
        widths = np.maximum(np.diff(edges), 1)
        found.append(np.add.reduceat(profile, np.minimum(edges[:-1], profile.shape[1] - 1), axis=1) / widths)
        found.append(strip.std(axis=(1, 2), dtype=np.float64)[:, None])
    return np.concatenate(found, axis=1)
