"""Where the network's square input lies in a slice, and the lesion masks of a data set in that square."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.data.crop import cut_square, series_square
from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import NIFTI_SUFFIXES
from hemlearn.data.readers.image import resize_square
from hemlearn.data.readers.nifti import read_nifti
from hemlearn.data.store import HEAD
from hemlearn.errors import DataError
from hemlearn.progress import track

SCANS, MASKS = "ct_scans", "masks"  # folders of CT-ICH v1.3.1
TRUTH = "phantom.csv"  # what the phantom drew


def input_squares(manifest: Manifest, fit: str) -> NDArray[np.float64]:
    """What of each slice the network sees.

    Args:
        manifest: The slices.
        fit: ``data.fit``.

    Returns:
        ``(N, 4)``: first row, first column, height and width in the slice's pixels; it reaches beyond the slice where
        the input was padded.
    """
    table = manifest.table
    height, width = (table[name].to_numpy(dtype=np.float64) for name in ("height", "width"))
    if fit == HEAD:
        out = np.empty((len(table), 4))
        for (_, rows, columns), group in table.groupby(["series_id", "height", "width"], sort=False)["head_box"]:
            boxes = [tuple(map(int, text.split())) if text else None for text in group]
            top, left, side = series_square(boxes, (int(rows), int(columns)))  # type: ignore[arg-type]
            out[table.index.get_indexer(group.index)] = top, left, side, side
        return out
    if fit == "squash":
        return np.stack([0 * height, 0 * width, height, width], axis=1)
    side = np.maximum(height, width) if fit == "letterbox" else np.minimum(height, width)
    return np.stack([(height - side) / 2, (width - side) / 2, side, side], axis=1)


def has_masks(manifest: Manifest) -> bool:
    """Whether lesion masks are to be had: of CT-ICH v1.3.1, or of the phantom's single slices."""
    if _is_phantom(manifest):
        return True
    return all(_mask_path(manifest.root, path) is not None for path in manifest.table["path"].unique())


def lesion_masks(manifest: Manifest, rows: NDArray[np.int64], size: int, fit: str) -> NDArray[np.bool_]:
    """Lesions of some slices, as the network's input shows them.

    CT-ICH v1.3.1 has ``masks/049.nii`` beside ``ct_scans/049.nii``; the phantom in the layout of Head-CT has none on
    disk, and its heads are drawn once more.

    Args:
        manifest: The slices.
        rows: Rows of the manifest.
        size: ``data.image_size``.
        fit: ``data.fit``.

    Returns:
        ``(len(rows), S, S)``: True where at least half of a pixel is lesion. A lesion smaller than that vanishes.

    Raises:
        DataError: There is no mask, or it is of another size than the slice.
    """
    squares = input_squares(manifest, fit)
    table: pd.DataFrame = manifest.table
    draw = _drawn(manifest) if _is_phantom(manifest) else lambda row: _stored(manifest, row)
    out = np.zeros((len(rows), size, size), dtype=bool)
    for place, row in enumerate(track((int(row) for row in rows), "Reading lesion masks", len(rows))):
        lesion = draw(row)
        shape = int(table["height"].iloc[row]), int(table["width"].iloc[row])
        if lesion.shape != shape:
            raise DataError(
                f"{manifest.root / table['path'].iloc[row]}: its mask has {lesion.shape[0]} x "
                f"{lesion.shape[1]} pixels, the slice {shape[0]} x {shape[1]}",
                remedy="give the mask of this slice",
            )
        grey = lesion.astype(np.uint8) * np.uint8(255)
        if fit == HEAD:
            top, left, side, _ = (int(value) for value in squares[row])
            grey = resize_square(cut_square(grey, (top, left, side), 0), size, "squash", 0)
        else:
            grey = resize_square(grey, size, fit, 0)
        out[place] = grey >= 128
    return out


def _stored(manifest: Manifest, row: int) -> NDArray[np.bool_]:
    name, frame = str(manifest.table["path"].iloc[row]), int(manifest.table["frame"].iloc[row])
    path = _mask_path(manifest.root, name)
    if path is None:
        where = f"{MASKS}/NAME.nii beside {SCANS}/NAME.nii (CT-ICH v1.3.1)"
        raise DataError(f"{manifest.root / name}: no lesion mask", remedy=f"masks lie in {where}")
    return np.asarray(read_nifti(path, frame, "OT") > 0)


def _mask_path(root: Path, name: str) -> Path | None:
    path = PurePosixPath(name)
    if path.parent.name != SCANS or not name.lower().endswith(NIFTI_SUFFIXES):
        return None
    stem = path.name.split(".")[0]
    folder = root / path.parent.parent / MASKS
    found = [folder / f"{stem}{suffix}" for suffix in NIFTI_SUFFIXES]
    return next((file for file in found if file.is_file()), None)


def _is_phantom(manifest: Manifest) -> bool:
    return manifest.synthetic and manifest.source == "head_ct" and (manifest.root / TRUTH).is_file()


def _drawn(manifest: Manifest) -> Callable[[int], NDArray[np.bool_]]:
    from hemlearn.phantom.head_ct_masks import head_ct_mask

    seed = int(pd.read_csv(manifest.root / TRUTH, usecols=["seed"])["seed"].iloc[0])
    paths = manifest.table["path"]
    return lambda row: head_ct_mask(seed, int(PurePosixPath(paths.iloc[row]).stem))
