"""Whether maps point at the lesion: the pointing game and the overlap, beside priors that see no image.

Pointing game (Zhang et al. 2018, IJCV 126:1084): a map hits where its largest value lies on the lesion, or within a
tolerance of 15 pixels at 224. Overlap: the share of the map's energy inside the lesion (Wang et al. 2020,
arXiv 1910.01279). Lesions are not anywhere in a head, so both are given for a map that always points at the image's
centre, and for the mean mask of all other patients, a harder prior: it knows where lesions use to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hemlearn.data.manifest import Manifest
from hemlearn.data.preprocess import HEAD, Preprocess, head_squares
from hemlearn.data.readers import NIFTI_SUFFIXES
from hemlearn.data.readers.nifti import read_nifti
from hemlearn.evaluation.auroc import clustered_wilson, none_if_nan
from hemlearn.util.console import track
from hemlearn.util.errors import DataError

# --- The lesion masks of a data set in the network's square input.


# Where scans lie -> how their masks end; the folder masks/ lies beside the first of them. CT-ICH v1.3.1, and the
# phantom in the layout of Head-CT.
MASKS = {"ct_scans": NIFTI_SUFFIXES, "head_ct/head_ct": (".png",)}


def has_masks(manifest: Manifest) -> bool:
    """Whether every file of the data set has its lesion mask beside it."""
    return all(_mask_path(manifest.root, path) is not None for path in manifest.table["path"].unique())


def lesion_masks(manifest: Manifest, rows: NDArray[np.int64], size: int, fit: str) -> NDArray[np.bool_]:
    """Lesions of some slices, as the network's input shows them.

    They lie beside the scans (:data:`MASKS`).

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
    table: pd.DataFrame = manifest.table
    step = Preprocess(size, fit, "display")
    cuts = head_squares(table) if fit == HEAD else None
    out = np.zeros((len(rows), size, size), dtype=bool)
    for place, row in enumerate(track((int(row) for row in rows), "Reading lesion masks", len(rows))):
        lesion = _lesion(manifest, row)
        shape = int(table["height"].iloc[row]), int(table["width"].iloc[row])
        if lesion.shape != shape:
            raise DataError(
                f"{manifest.root / table['path'].iloc[row]}: its mask has {lesion.shape[0]} x "
                f"{lesion.shape[1]} pixels, the slice {shape[0]} x {shape[1]}",
                remedy="give the mask of this slice",
            )
        grey = lesion.astype(np.uint8) * np.uint8(255)
        out[place] = step.square(grey, "display", None if cuts is None else cuts[row]) >= 128
    return out


def _lesion(manifest: Manifest, row: int) -> NDArray[np.bool_]:
    name, frame = str(manifest.table["path"].iloc[row]), int(manifest.table["frame"].iloc[row])
    path = _mask_path(manifest.root, name)
    if path is None:
        remedy = "CT-ICH 1.3.1 has masks/NAME.nii beside ct_scans/NAME.nii, a Head-CT phantom masks/NAME.png"
        raise DataError(f"{manifest.root / name}: no lesion mask", remedy=remedy)
    if path.suffix == ".png":
        with Image.open(path) as image:
            return np.asarray(image) >= 128
    return np.asarray(read_nifti(path, frame, "OT") > 0)


def _mask_path(root: Path, name: str) -> Path | None:
    path = PurePosixPath(name)
    for scans, suffixes in MASKS.items():
        if path.parent.match(scans):
            folder, stem = root / path.parents[scans.count("/") + 1] / "masks", path.name.split(".")[0]
            return next((file for end in suffixes if (file := folder / f"{stem}{end}").is_file()), None)
    return None


Floats = NDArray[np.float64]
TOLERANCE = 15 / 224  # of the image's side
_SPREAD = 0.25  # standard deviation of the centre prior, of the image's side
_BLUR = 0.05  # of the mean mask


@dataclass(frozen=True)
class Pointing:
    """One way to point, over N slices.

    Attributes:
        name: ``map``, ``centre`` or ``mean_mask``.
        hit: ``(N,)`` whether the largest value lies on the lesion or within the tolerance; False for a blank map.
        exact: ``(N,)`` the same without tolerance.
        inside: ``(N,)`` share of the energy inside the lesion; NaN for a blank map (0 everywhere).
    """

    name: str
    hit: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    inside: Floats

    @property
    def blank(self) -> int:
        """Maps that are 0 everywhere."""
        return int(np.isnan(self.inside).sum())

    def of(self, chosen: NDArray[np.bool_]) -> Pointing:
        """The same over some of the slices."""
        return Pointing(self.name, self.hit[chosen], self.exact[chosen], self.inside[chosen])

    def summary(self, patients: NDArray[Any]) -> dict[str, Any]:
        """Rates with 95 % intervals that count patients, not slices; null where undefined."""
        (low, high), _ = clustered_wilson(self.hit, patients)
        known = self.inside[~np.isnan(self.inside)]
        found = {
            "hit_rate": self.hit.mean() if len(self.hit) else np.nan,
            "low": low,
            "high": high,
            "hit_rate_exact": self.exact.mean() if len(self.exact) else np.nan,
            "energy_inside": known.mean() if len(known) else np.nan,
        }
        return {
            **{key: none_if_nan(float(value)) for key, value in found.items()},
            "n": len(self.hit),
            "patients": len(np.unique(patients)),
            "blank": self.blank,
        }


def pointing_game(name: str, maps: Floats, masks: NDArray[np.bool_], tolerance: float = TOLERANCE) -> Pointing:
    """Play it.

    Args:
        name: Of the way to point.
        maps: ``(N, S, S)``, at least 0, at the size of the masks.
        masks: ``(N, S, S)`` lesions; each slice has one.
        tolerance: As a share of S.

    Raises:
        ValueError: Numbers or sizes of maps and masks differ, or a mask is empty: no pair is left out silently.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps {maps.shape} and masks {masks.shape} differ")
    if not masks.any(axis=(1, 2)).all():
        raise ValueError(f"mask {int(np.argmin(masks.any(axis=(1, 2))))} is empty")
    reach = tolerance * maps.shape[-1]
    hit, exact = np.zeros(len(maps), dtype=bool), np.zeros(len(maps), dtype=bool)
    inside = np.full(len(maps), np.nan)
    for k, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        if not values.max(initial=0) > 0:
            continue
        # Ties (a plateau) are settled by the middle of the places that tie, not by the first in reading order.
        tied = np.argwhere(values >= values.max())
        row, column = tied[np.argmin(np.linalg.norm(tied - tied.mean(axis=0), axis=1))]
        hit[k] = ndimage.distance_transform_edt(~mask)[row, column] <= reach
        exact[k] = mask[row, column]
        inside[k] = values[mask].sum() / values.sum()
    return Pointing(name, hit, exact, inside)


def centre_prior(count: int, size: int) -> Floats:
    """``(N, S, S)``: a Gaussian at the centre of every image."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    line = np.exp(-0.5 * (axis / _SPREAD) ** 2)
    return np.broadcast_to(np.outer(line, line), (count, size, size))


def mean_mask_prior(masks: NDArray[np.bool_], patients: NDArray[Any]) -> Floats:
    """``(N, S, S)``: for each slice the mean lesion of all other patients, smoothed; blank where there is no other."""
    size = masks.shape[-1]
    codes = np.unique(patients, return_inverse=True)[1]
    totals = np.stack([masks[codes == code].sum(axis=0, dtype=np.float64) for code in range(codes.max() + 1)])
    others = [ndimage.gaussian_filter(totals.sum(axis=0) - own, _BLUR * size) for own in totals]
    return np.stack([np.maximum(others[code], 0) for code in codes])


def play(maps: Floats, masks: NDArray[np.bool_], patients: NDArray[Any]) -> list[Pointing]:
    """The maps, the centre prior and the mean mask of the others, on the same slices."""
    return [
        pointing_game("map", maps, masks),
        pointing_game("centre", centre_prior(*masks.shape[:2]), masks),
        pointing_game("mean_mask", mean_mask_prior(masks, patients), masks),
    ]
