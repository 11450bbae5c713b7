"""What a ruler and one threshold tell of the ventricles on brain MRI: no network, nothing learnt.

Two measures of a series stand beside every result for hydrocephalus, as position stands beside hemorrhage:

* ``csf``: the share of cerebrospinal fluid, enclosed by brain, in an ellipse around the centre of the head;
* ``evans``: the Evans index, the width of the frontal horns over the inner width of the skull.

Fluid is what lies beyond the midpoint between the brain's usual signal and the signal's extreme around the centre of
the head: dark (T1) or bright (T2), whichever leaves more of it enclosed by brain. Sulci, cisterns and sinuses reach the
edge of the ellipse; ventricles do not. The skull and scalp are taken as a fixed share of the head's width.

Sources: Evans 1942, Arch Neurol Psychiatry 47:931 (the index); Otsu 1979 (the threshold that finds the head).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.data.store import SliceStore

# Half axes of ellipses around the centre, as shares of the head's length and width: of the fluid's share, and of the
# search for ventricles.
_CENTRE, _EVANS = (0.28, 0.18), (0.38, 0.36)
_MIDLINE = 0.2  # share of the width within which the middle of a ventricle lies
_FRONT = -0.04  # last row of the frontal horns, from the centre, as share of the length
_TOP = 0.85  # section of the head, over its largest, up to which ventricles are sought
_INNER = 0.86  # inner width of the skull over the width of the head
_AREA = 0.002  # share of the head below which a piece of fluid is no ventricle
_BIAS = 0.25  # width of the neighbourhood that a slice is evened out over, of that of the head
_TAIL = 1.0  # per cent


def head_masks(stack: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(S, H, W) where the head is: above Otsu's threshold of the root of the signal, largest piece, holes filled."""
    root = np.sqrt(np.maximum(stack, 0.0))
    counts, edges = np.histogram(root[root > 0], bins=128) if (root > 0).any() else (np.ones(1), np.zeros(2))
    middle = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    cut = edges[1:][np.nanargmax(np.nan_to_num(between))]
    out = np.zeros(stack.shape, dtype=bool)
    for index, plane in enumerate(root > cut):
        parts, number = ndimage.label(ndimage.binary_closing(plane, iterations=2))
        if number:
            largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            out[index] = ndimage.binary_fill_holes(parts == largest)
    return out


def measure_ventricles(stack: NDArray[np.float32]) -> tuple[float, float]:
    """Share of enclosed fluid around the centre of the head, and Evans index, of one series.

    Looked at are the slices from the largest section of the head upwards, as long as it fills :data:`_TOP` of that:
    the skull base has air and fluid enough of its own.

    Args:
        stack: (S, H, W) MR signal of axial slices, lowest first, the forehead in row 0.

    Returns:
        Two numbers in [0, 1]; 0 where there is no head.

    Example:
        >>> rows, columns = np.mgrid[-40:40, -40:40]
        >>> head = 100.0 * (np.hypot(rows / 38, columns / 30) < 1)
        >>> horns = (np.abs(rows + 8) < 6) & (np.abs(np.abs(columns) - 6) < 4)
        >>> share, evans = measure_ventricles(np.where(horns, 10.0, head)[None].astype(np.float32))
        >>> round(share, 3), round(evans, 2)
        (0.213, 0.37)
    """
    masks = head_masks(stack)
    sections = masks.sum(axis=(1, 2))
    if not len(sections) or not sections.max():
        return 0.0, 0.0
    first = int(sections.argmax())
    last = int(np.flatnonzero(sections >= _TOP * sections[first])[-1])
    chosen = [index for index in range(first, last + 1) if sections[index]]  # a slice between may be blank
    boxes = {index: _box(masks[index]) for index in chosen}
    inside = {index: _ellipse(boxes[index], masks[index].shape, _EVANS) & masks[index] for index in chosen}
    planes = {index: _even(stack[index], inside[index], boxes[index]) for index in chosen}
    centre = {index: _ellipse(boxes[index], masks[index].shape, _CENTRE) for index in chosen}
    # Of slices, medians. Around the centre is no fat, but where ventricles are large more fluid than brain.
    tails = [np.percentile(planes[index][centre[index]], (_TAIL, 100.0 - _TAIL)) for index in chosen]
    low, high = np.median(tails, axis=0)
    usual = np.median([np.median(planes[index][inside[index]]) for index in chosen])
    readings = []
    for end in (low, high):  # fluid is dark or bright
        shares, areas, horns = [], [], []
        for index, plane in planes.items():
            fluid = np.sign(end - usual) * (plane - (usual + end) / 2) > 0
            found = _enclosed(fluid & inside[index], inside[index], boxes[index])
            columns = np.flatnonzero(found[: round(boxes[index][0] + _FRONT * boxes[index][2])].any(axis=0))
            shares.append(fluid[centre[index]].mean())
            areas.append(int(found.sum()))
            horns.append(float(np.ptp(columns)) + 1 if len(columns) else 0.0)
        # The frontal horns lie where ventricles are large; what is wide elsewhere is a cistern.
        width = max(horn for horn, area in zip(horns, areas, strict=True) if 2 * area >= max(areas))
        readings.append((sum(areas), float(np.mean(shares)), width))
    _, share, width = max(readings)
    widest = max(box[3] for box in boxes.values()) * _INNER
    return share, float(min(1.0, width / widest))


_Box = tuple[float, float, float, float]


def _box(mask: NDArray[np.bool_]) -> _Box:
    """Centre row and column, length and width of a head."""
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    length, width = rows.stop - rows.start, columns.stop - columns.start
    return rows.start + (length - 1) / 2, columns.start + (width - 1) / 2, length, width


def _ellipse(box: _Box, shape: tuple[int, ...], half: tuple[float, float]) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    away = ((rows - box[0]) / (half[0] * box[2])) ** 2 + ((columns - box[1]) / (half[1] * box[3])) ** 2
    return np.asarray(away < 1)


def _even(plane: NDArray[np.float32], middle: NDArray[np.bool_], box: _Box) -> NDArray[np.float32]:
    """A slice over what it is on average nearby, which takes out the sensitivity of the coil."""
    spread = _BIAS * box[3]
    near = ndimage.gaussian_filter(np.where(middle, plane, 0.0), spread, truncate=2.0)
    share = ndimage.gaussian_filter(middle.astype(np.float32), spread, truncate=2.0)
    return np.asarray(plane * share / np.maximum(near, 1e-6), dtype=np.float32)


def _enclosed(fluid: NDArray[np.bool_], middle: NDArray[np.bool_], box: _Box) -> NDArray[np.bool_]:
    """The pieces of fluid near the midline that do not reach the edge of the ellipse; thin bridges are cut."""
    parts, number = ndimage.label(ndimage.binary_opening(fluid))
    edge = middle & ~ndimage.binary_erosion(middle, iterations=2)
    sizes, reach = np.bincount(parts.ravel(), minlength=number + 1), np.zeros(number + 1, dtype=bool)
    reach[parts[edge]] = True
    keep = ~reach & (sizes >= _AREA * box[2] * box[3])
    keep[0] = False
    for label, place in enumerate(ndimage.find_objects(parts), start=1):
        keep[label] &= abs((place[1].start + place[1].stop - 1) / 2 - box[1]) < _MIDLINE * box[3]
    return np.asarray(keep[parts])


def ventricle_features(store: SliceStore, table: pd.DataFrame, rows: NDArray[np.int64]) -> pd.DataFrame:
    """(N, 2) ``csf`` and ``evans`` of the series of each slice, in the order of ``rows``.

    Args:
        store: Decoded slices.
        table: The manifest's table: slice_id, series_id, z_mm.
        rows: (N,) rows of ``table`` wanted; a series is measured on those of its slices that are among them.
    """
    wanted = table.iloc[rows].assign(at=np.arange(len(rows))).sort_values("z_mm", kind="stable")
    out = np.zeros((len(rows), 2))
    for _, part in wanted.groupby("series_id", sort=False):
        place = np.array([store.rows[item] for item in part["slice_id"]], dtype=np.int64)
        own = part["at"].to_numpy()
        out[own] = measure_ventricles(store.array[place].astype(np.float32))
    return pd.DataFrame(out, columns=["csf", "evans"])
