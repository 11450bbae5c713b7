"""The same slice under two names: exact copies and re-exports (other size, crop, window or compression).

Candidates come from a 256-bit perceptual hash (DCT signs of the equalised head; imagehash, after Zauner 2010,
"Implementation and benchmarking of perceptual image hash functions"). A candidate counts only when its pixels
agree: both heads are registered by an affine Gauss-Newton search (Lucas and Kanade 1981) and the fine detail
inside the skull is correlated. Re-exports share even the noise; two heads, or two levels of one head, do not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, sparse

from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import reader_for, to_display
from hemlearn.data.scan import thumbnails
from hemlearn.data.scan_cache import HASH_SIDE, SIDE, VERSION, head_thumbnail, shown_hash
from hemlearn.util.console import run_parallel, track
from hemlearn.util.errors import ConfigError
from hemlearn.util.files import load_table, save_table, sha256

logger = logging.getLogger(__name__)
LEVELS = ("near", "exact", "none")
Pair = tuple[int, int]  # rows of the manifest, the lower first
_VERSION = 3  # of the comparison: raised when the same pictures would give other pairs

# The three limits were set on Kaggle Head-CT, where every pair of the 200 images was registered: re-exports
# differ in at most 38 bits and correlate at 0.85 and more; the next-best pair (adjacent levels) at 0.79.
MAX_BITS = 56  # of 256
MIN_DETAIL = 0.82  # Pearson correlation of band-passed, registered detail
FEW, SHARED = 5, 0.2  # series of at least so many slices are near copies when such a share of slices agrees
# Of two CT-ICH patients' slices 0.12 % lie within 56 bits and none within 30: among 750,000 slices that is 300 million
# pairs. There two series are noticed by slices within FAR_BITS, which most slices of a copy are.
LARGE = 20_000  # images
FAR_BITS = 40
SURE_BITS = 30
NEAREST = 2  # slices of a series that may be another slice's copy: it, and a neighbouring level
MAX_CONFIRM = (
    10_000  # candidate pairs whose pixels are compared, closest hashes first; in larger sets a tenth of the images
)
_BLOCK = 65_536  # hashes sought at a time


def duplicate_pairs(
    manifest: Manifest,
    level: str = "near",
    *,
    n_jobs: int | None = None,
    progress: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Find slices that are the same picture.

    Exact pairs have the same file content or the same decoded pixels. Near pairs are re-exports of one slice;
    they are sought between different patients only, since one patient's slices stay together anyway; two series of
    five slices or more must share a fifth of them. Every hash is compared with every other (faiss), within 56 of 256
    bits; above 20,000 images within 40, and of two series that share a fifth of their slices so, again within 56, each
    slice's two closest. In series found to be copies, slices of like place are compared whatever their hashes.
    At most 10,000 candidates or a tenth of the images, the closest first, are compared by pixels, and a warning says
    when that was not all.

    Args:
        manifest: The data set.
        level: ``near`` (exact and near pairs), ``exact`` or ``none``.
        n_jobs: Workers; None: all cores.
        progress: Show the comparison of pixels.
        cache_dir: Where the scan keeps pictures of the slices; without them files are decoded once more.

    Returns:
        Columns slice_a, slice_b (in manifest order), kind (``exact`` or ``near``), similarity (0 to 1;
        correlation of registered detail, 1 for exact pairs).

    Raises:
        ConfigError: ``level`` is unknown.
        DataError: A file can no longer be read.
    """
    if level not in LEVELS:
        raise ConfigError(f"split.duplicates is {level!r}", remedy=f"use one of {', '.join(LEVELS)}")
    table = manifest.table
    found: dict[Pair, tuple[str, float]] = {}
    if level != "none":

        def compare(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, bool, float]]:
            tasks = _tasks(manifest, pairs, cache_dir)
            results = run_parallel(_compare, tasks, n_jobs=n_jobs, processes=len(pairs) > 2000)
            for result in track(results, "Comparing similar slices", len(tasks), show=progress and len(tasks) > 20):
                yield from result

        copies = _within(table.groupby(["content", "frame"], sort=False).ngroup().to_numpy())
        close = _candidates(table, copies, progress=progress) if level == "near" else _equal(table)
        found = confirmed(table, copies, close, compare, near=level == "near")
    pairs = sorted(_credible(table, found))
    ids = table["slice_id"].to_numpy(dtype=object)
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return pd.DataFrame(
        {
            "slice_a": ids[first],
            "slice_b": ids[second],
            "kind": [found[pair][0] for pair in pairs],
            "similarity": np.array([found[pair][1] for pair in pairs], dtype=np.float64),
        }
    )


def confirmed(
    table: pd.DataFrame,
    copies: Iterable[Pair],
    candidates: Iterable[Pair],
    compare: Callable[[Sequence[Pair]], Iterable[tuple[Pair, bool, float]]],
    *,
    near: bool = True,
) -> dict[Pair, tuple[str, float]]:
    """What the comparison of pixels leaves of the candidates, and of the slices that lie beside copies of whole series.

    Args:
        table: The manifest's.
        copies: (lower, higher) rows with equal content.
        candidates: Rows that may show the same.
        compare: Gives for each pair whether the decoded pixels are equal, and the correlation of detail.
        near: Near copies too, not only equal pixels.

    Returns:
        Pair -> (``exact`` or ``near``, similarity).
    """
    found = dict.fromkeys(copies, ("exact", 1.0))
    for by_place in (False, True) if near else (False,):
        sought = _counterparts(table, found) if by_place else candidates
        for pair, same, detail in compare([pair for pair in sought if pair not in found]):
            if same:
                found[pair] = ("exact", 1.0)
            elif near and detail >= MIN_DETAIL:
                found[pair] = ("near", detail)
    return found


def _counterparts(table: pd.DataFrame, found: Mapping[Pair, Any]) -> list[Pair]:
    """Pairs to be compared although their hashes differ: of two series that are copies, slices of like place.

    Through another window or cut elsewhere a slice near the skull base may have quite another hash; its neighbours tell
    where its copy lies.
    """
    series, z_mm = pd.factorize(table["series_id"])[0], table["z_mm"].to_numpy(dtype=np.float64)
    order = np.lexsort((np.nan_to_num(z_mm), series))
    starts = np.flatnonzero(np.diff(series[order], prepend=-1))
    members = np.split(order, starts[1:])  # of each series, in position order
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.repeat(starts, [len(rows) for rows in members])
    rows = np.array([pair if series[pair[0]] <= series[pair[1]] else pair[::-1] for pair in _credible(table, found)])
    matched = pd.DataFrame(rows.reshape(-1, 2), columns=["a", "b"])
    wanted: set[Pair] = set()
    for (one, two), pairs in matched.groupby([series[matched["a"]], series[matched["b"]]]):
        first, second = members[one], members[two]
        known = pairs.assign(x=place[pairs["a"]], y=place[pairs["b"]]).groupby("x")["y"].median()
        if one == two or min(len(first), len(second)) < FEW or len(known) < 2:
            continue
        x, y = known.index.to_numpy(dtype=float), known.to_numpy()
        slope, at_zero = np.polyfit(x, y, 1)
        missing = np.setdiff1d(np.arange(len(first)), known.index)
        inside = (missing > x[0]) & (missing < x[-1])
        expected = np.where(inside, np.interp(missing, x, y), slope * missing + at_zero).round().astype(np.int64)
        for step in (-1, 0, 1):
            near = expected + step
            there = (near >= 0) & (near < len(second))
            paired = np.sort(np.stack([first[missing[there]], second[near[there]]]), axis=0)
            wanted.update(zip(*paired.tolist(), strict=True))
    return sorted(wanted)


def _credible(table: pd.DataFrame, found: Mapping[Pair, tuple[str, float]]) -> list[Pair]:
    """Leave out near pairs of two series that share too few slices.

    Near the vertex and below the skull base slices hold so little detail that those of two people may agree. A series
    under another name agrees in many slices; of series of five slices and more a fifth is asked for.
    """
    series = pd.factorize(table["series_id"])[0]
    sizes = np.bincount(series)
    between: dict[tuple[int, int], set[int]] = {}
    for a, b in found:
        first, second = sorted((int(series[a]), int(series[b])))
        between.setdefault((first, second), set()).add(a if series[a] == first else b)
    good = []
    for pair, (kind, _) in found.items():
        first, second = sorted((int(series[pair[0]]), int(series[pair[1]])))
        least = min(sizes[first], sizes[second])
        if kind == "exact" or least < FEW or len(between[first, second]) >= SHARED * least:
            good.append(pair)
    return good


def likely_copies(theirs: pd.DataFrame, ours: pd.DataFrame) -> NDArray[np.int64]:
    """Rows of ``ours`` that are pictures of ``theirs`` by file content or perceptual hash alone: no pixel is looked at.

    Of two series of five slices or more a fifth must lie within 40 of 256 bits; of shorter ones each slice within 30,
    which no two patients' slices of CT-ICH do.

    Args:
        theirs: Columns series_id, frame, content and phash, as of a manifest.
        ours: As ``theirs``.
    """
    import faiss

    same = pd.MultiIndex.from_frame(ours[["content", "frame"]]).isin(
        pd.MultiIndex.from_frame(theirs[["content", "frame"]])
    )
    rows = [np.flatnonzero((table["phash"] != "").to_numpy()) for table in (theirs, ours)]
    if any(len(found) == 0 for found in rows):
        return np.flatnonzero(same)
    codes = [
        np.frombuffer(bytes.fromhex("".join(table["phash"].iloc[found])), np.uint8).reshape(len(found), -1)
        for table, found in zip((theirs, ours), rows, strict=True)
    ]
    index = faiss.IndexBinaryFlat(codes[0].shape[1] * 8)
    index.add(codes[0])
    ends, bits, known = index.range_search(codes[1], FAR_BITS + 1)  # strictly below
    limits: NDArray[np.int64] = ends.astype(np.int64)
    asked = rows[1][np.repeat(np.arange(len(rows[1])), limits[1:] - limits[:-1])]
    series = [pd.factorize(table["series_id"])[0] for table in (theirs, ours)]
    pairs = pd.DataFrame({"bits": bits, "row": asked, "from": series[0][rows[0][known]], "to": series[1][asked]})
    shared = pairs.groupby(["from", "to"])["row"].transform("nunique")
    least = np.minimum(np.bincount(series[0])[pairs["from"]], np.bincount(series[1])[pairs["to"]])
    good = np.where(least < FEW, pairs["bits"] <= SURE_BITS, shared >= SHARED * least)
    return np.union1d(np.flatnonzero(same), pairs["row"].to_numpy()[good])


def kept_duplicate_pairs(manifest: Manifest, level: str, cache_dir: str | os.PathLike[str]) -> pd.DataFrame:
    """:func:`duplicate_pairs`, kept in the cache folder by the slices' content, so that a sweep compares them once."""
    table = manifest.table
    columns = table[["slice_id", "patient_id", "content", "frame", "phash"]].to_csv(index=False)
    key = sha256(f"{level}:{_VERSION}:{VERSION}\n{columns}")[:32]
    file = Path(cache_dir) / "duplicates" / f"{key}.parquet"
    known = load_table(file, ["slice_a", "slice_b", "kind", "similarity"])
    if known is None:
        known = duplicate_pairs(manifest, level, cache_dir=cache_dir)
        save_table(file, known)
    return known


def opposite_labels(manifest: Manifest, pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs that are the same picture and have a label that is 0 in one and 1 in the other.

    Labels of whole series are left out: slices of two series may be alike where neither shows anything.

    Returns:
        Columns slice_a, slice_b, label; one row per pair, with the first such label.
    """
    table = manifest.table.set_index("slice_id")
    labels = list(manifest.labels) if manifest.label_level == "slice" else []
    same = pairs[(pairs["kind"] == "exact").to_numpy() & (table["phash"].loc[pairs["slice_a"]] != "").to_numpy()]
    first, second = (table.loc[same[name], labels].to_numpy(dtype=np.float64) for name in ("slice_a", "slice_b"))
    opposed = np.abs(first - second) == 1
    rows = opposed.any(axis=1)
    names = [labels[k] for k in opposed[rows].argmax(axis=1)] if rows.any() else []
    return same.loc[rows, ["slice_a", "slice_b"]].assign(label=names).reset_index(drop=True)


def duplicate_groups(
    manifest: Manifest, level: str = "near", *, n_jobs: int | None = None, pairs: pd.DataFrame | None = None
) -> pd.Series[int]:
    """Number the groups of slices that are joined by duplicate pairs, directly or through others.

    Args:
        manifest: The data set.
        level: See :func:`duplicate_pairs`.
        n_jobs: Workers; None: all cores.
        pairs: The result of :func:`duplicate_pairs` where it is known already.

    Returns:
        One group number per manifest row, indexed like ``manifest.table``; a slice without duplicates is a
        group of its own.
    """
    found = duplicate_pairs(manifest, level, n_jobs=n_jobs) if pairs is None else pairs
    row = pd.Series(np.arange(len(manifest.table)), index=manifest.table["slice_id"].to_numpy(dtype=object))
    labels = connected(
        len(row), row.loc[found["slice_a"]].to_numpy(np.int64), row.loc[found["slice_b"]].to_numpy(np.int64)
    )
    return pd.Series(labels, index=manifest.table.index, name="duplicate_group")


def connected(size: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the connected components (0, 1, ...) of ``size`` nodes joined by the edges first-second."""
    edges = sparse.coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(size, size))
    labels = sparse.csgraph.connected_components(edges, directed=False)[1]
    return np.asarray(labels, dtype=np.int64)


def _within(groups: NDArray[Any]) -> list[Pair]:
    """Return all pairs of rows of one group; in a group of more than 16 rows only each row with the next."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    out: list[Pair] = []
    for members in np.split(order, starts[1:]):
        if len(members) > 1:
            rows = members.tolist()
            out += combinations(rows, 2) if len(rows) <= 16 else pairwise(rows)
    return out


def _equal(table: pd.DataFrame) -> list[Pair]:
    """Pairs of rows with equal hashes."""
    rows = np.flatnonzero((table["phash"] != "").to_numpy())
    chain = _within(pd.factorize(table["phash"].to_numpy(dtype=object)[rows])[0])
    return sorted((int(rows[a]), int(rows[b])) for a, b in chain)


def _candidates(table: pd.DataFrame, copies: Sequence[Pair], *, progress: bool = False) -> list[Pair]:
    """Pairs of rows that may be near copies: of two patients, with close hashes, of series that share enough of them.

    Args:
        table: The manifest's.
        copies: Pairs with equal content, which count as shared too.
        progress: Show how far the search is.

    Returns:
        (lower, higher) row, the closest first.
    """
    rows = np.flatnonzero((table["phash"] != "").to_numpy())
    if len(rows) == 0:
        return []
    codes = np.frombuffer(bytes.fromhex("".join(table["phash"].iloc[rows])), np.uint8).reshape(len(rows), -1)
    patients, series = (pd.factorize(table[name])[0] for name in ("patient_id", "series_id"))
    large = len(rows) > LARGE
    found = _close(codes, patients[rows], FAR_BITS if large else MAX_BITS, progress and large)
    found[1:] = rows[found[1:]]
    kept, noticed = _sharing(found, np.array(copies, np.int64).reshape(-1, 2).T, series)
    if large:  # of the series that were noticed within the wider limit, each slice's likeliest copies
        between = [_between(codes, rows, series[rows], *two) for two in noticed]
        kept = _closest(np.unique(np.concatenate([kept, *between], axis=1), axis=1), series)
    bits, first, second = kept
    order = np.lexsort([second, first, bits])
    limit = max(MAX_CONFIRM, len(rows) // 10)
    if len(order) > limit:
        logger.warning(
            "%d pairs of slices look alike; only the %d closest (up to %d of %d hash bits apart) are compared "
            "by pixels",
            len(order),
            limit,
            bits[order[limit - 1]],
            HASH_SIDE**2,
        )
    return list(zip(first[order[:limit]].tolist(), second[order[:limit]].tolist(), strict=True))


def _sharing(
    found: NDArray[np.int64], copies: NDArray[np.int64], series: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[Pair]]:
    """Of the candidates those that :func:`_credible` may yet keep, and the pairs of longer series that share enough.

    Args:
        found: (3, pairs) bits apart, and two rows.
        copies: (2, pairs) rows with equal content, which count as shared too.
        series: Of every row, 0, 1, ...
    """
    sizes = np.bincount(series)
    left, right = np.concatenate([found[1:], copies], axis=1)
    low, high = np.minimum(series[left], series[right]), np.maximum(series[left], series[right])
    pairs = pd.DataFrame({"low": low, "high": high, "row": np.where(series[left] == low, left, right)})
    shared = pairs.groupby(["low", "high"], sort=False)["row"].transform("nunique").to_numpy()
    least = np.minimum(sizes[low], sizes[high])
    enough, few, known = shared >= SHARED * least, least < FEW, found.shape[1]
    longer = pairs.loc[enough & ~few, ["low", "high"]].drop_duplicates()
    kept = found[:, (enough | few)[:known] | (found[0] == 0)]
    return kept, [(int(one), int(two)) for one, two in longer.to_numpy()]


def _between(
    codes: NDArray[np.uint8], rows: NDArray[np.int64], series: NDArray[np.int64], one: int, two: int
) -> NDArray[np.int64]:
    """(3, pairs) bits apart and rows (lower, higher) of the slices of two series within MAX_BITS."""
    first, second = np.flatnonzero(series == one), np.flatnonzero(series == two)
    bits = np.unpackbits(codes[first, None] ^ codes[None, second], axis=-1).sum(axis=-1, dtype=np.int64)
    a, b = np.nonzero(bits <= MAX_BITS)
    return np.stack([bits[a, b], *np.sort([rows[first[a]], rows[second[b]]], axis=0)])


def _closest(found: NDArray[np.int64], series: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of ``found`` (bits apart, and two rows) each slice's NEAREST in every other series."""
    pairs = pd.DataFrame({"bits": found[0], "a": found[1], "b": found[2]})
    pairs = pairs.assign(of_a=series[found[1]], of_b=series[found[2]])
    ranks = [pairs.groupby(by)["bits"].rank(method="first") for by in (["a", "of_b"], ["b", "of_a"])]
    return found[:, (np.minimum(*ranks) <= NEAREST).to_numpy()]


def _close(
    codes: NDArray[np.uint8], patients: NDArray[np.int64], within: int, progress: bool = False
) -> NDArray[np.int64]:
    """All pairs of two patients within so many bits (exact): (3, pairs) of bits apart, lower and higher place."""
    import faiss  # loaded late: a third of a second

    out = []
    for start in track(range(0, len(codes), _BLOCK), "Comparing perceptual hashes", show=progress):
        index = faiss.IndexBinaryFlat(codes.shape[1] * 8)
        index.add(codes[start:])
        ends, bits, second = index.range_search(codes[start : start + _BLOCK], within + 1)  # strictly below
        limits: NDArray[np.int64] = ends.astype(np.int64)
        first = np.repeat(np.arange(len(limits) - 1), limits[1:] - limits[:-1])
        keep = (first < second) & (patients[first + start] != patients[second + start])
        out.append(np.stack([bits[keep], first[keep] + start, second[keep] + start]).astype(np.int64))
    return np.concatenate(out, axis=1)


class _Picture(NamedTuple):
    """A slice to be compared; ``shown`` and ``thumbnail`` (see :class:`kept.Pixels`) are empty where not kept."""

    path: Path
    frame: int
    modality: str
    shown: str
    thumbnail: bytes

    def look(self) -> tuple[str, NDArray[np.uint8] | None]:
        """Hash of the slice as on a screen, and its thumbnail."""
        if self.thumbnail:
            return self.shown, np.frombuffer(self.thumbnail, np.uint8).reshape(SIDE, SIDE)
        reader = reader_for(self.path)
        display = to_display(reader.decode(self.path, self.frame, self.modality), reader.unit_of(self.modality))
        return shown_hash(display), head_thumbnail(display)


def _tasks(
    manifest: Manifest, candidates: Sequence[Pair], cache_dir: str | os.PathLike[str] | None
) -> list[tuple[list[Pair], dict[int, _Picture]]]:
    """Fifty pairs each, with what :func:`_compare` needs of their slices."""
    if not candidates:
        return []
    rows = sorted({row for pair in candidates for row in pair})
    table = manifest.table.iloc[rows]
    columns = [table[name].tolist() for name in ("path", "frame", "modality")]
    known = zip(rows, *columns, *thumbnails(table, manifest.root, cache_dir), strict=True)
    pictures = {row: _Picture(manifest.root / path, *rest) for row, path, *rest in known}
    chunks = [list(candidates[start : start + 50]) for start in range(0, len(candidates), 50)]
    return [(chunk, {row: pictures[row] for pair in chunk for row in pair}) for chunk in chunks]


def _compare(pairs: Sequence[Pair], pictures: dict[int, _Picture]) -> list[tuple[tuple[int, int], bool, float]]:
    """Return for each pair: the pair, whether its decoded pixels are equal, and the correlation of detail."""
    seen = {row: picture.look() for row, picture in pictures.items()}
    out = []
    for a, b in pairs:
        (first, one), (second, two) = seen[a], seen[b]
        detail = detail_correlation(one, two) if one is not None and two is not None else 0.0
        out.append(((a, b), first == second, 1.0 if first == second else detail))
    return out


@cache
def _grid() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    u, v = (columns - SIDE / 2) / SIDE, (rows - SIDE / 2) / SIDE
    return columns, rows, np.stack([np.ones_like(u), u, v], axis=-1), u**2 + v**2 < 0.36**2


def _standard(image: NDArray[Any]) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = image - image.mean()
    return centred / (float(np.sqrt((centred**2).mean())) + 1e-9)


def detail_correlation(one: NDArray[np.uint8], two: NDArray[np.uint8], *, steps: int = 12) -> float:
    """Register ``two`` to ``one`` and correlate their fine detail in the middle of the head.

    Args:
        one: (64, 64) equalised head.
        two: (64, 64) equalised head.
        steps: Gauss-Newton steps of the affine search at most.

    Returns:
        Pearson correlation, -1 to 1, of the band between 0.7 and 2 pixels.
    """
    columns, rows, basis, inside = _grid()
    fixed, moving = (_standard(ndimage.gaussian_filter(image.astype(np.float64), 1.0)) for image in (one, two))
    down, right = (np.asarray(gradient) for gradient in np.gradient(fixed))
    slope = np.concatenate([right[..., None] * basis, down[..., None] * basis], axis=-1).reshape(-1, 6) * SIDE
    normal = slope.T @ slope
    # The gradients of the fixed image serve all steps, hence a damped solver that is factorised once.
    solver = np.linalg.inv(normal + 1e-3 * np.trace(normal) / 6 * np.eye(6) + 1e-9 * np.eye(6)) @ slope.T
    affine: NDArray[np.float64] = np.zeros(6)
    best = affine
    score = -1.0
    for step in range(steps):
        where = [rows + SIDE * (basis @ affine[3:]), columns + SIDE * (basis @ affine[:3])]
        warped = _standard(ndimage.map_coordinates(moving, where, order=1, mode="nearest"))
        agreement = float((warped * fixed).mean())
        if agreement > score + 1e-4:
            score, best = agreement, affine
        elif step > 3:
            break
        affine = np.asarray(affine + solver @ (fixed - warped).ravel())
    where = [rows + SIDE * (basis @ best[3:]), columns + SIDE * (basis @ best[:3])]
    warped = ndimage.map_coordinates(two.astype(np.float64), where, order=1, mode="nearest")
    bands = [
        (ndimage.gaussian_filter(image, 0.7) - ndimage.gaussian_filter(image, 2.0))[inside]
        for image in (one.astype(np.float64), warped)
    ]
    return float((_standard(bands[0]) * _standard(bands[1])).mean())
