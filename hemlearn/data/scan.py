"""One opening per file: header, facts, content hash, perceptual hash, head box and pixels, kept between commands.

Whatever hemlearn knows of a file is read in one opening, by :func:`read_headers`, :func:`fingerprints` or
:func:`file_facts`, and kept in ``CACHE/scan`` by path, size, modification time and reader version. While a data module
reads its manifest inside :func:`keeping_squares`, the decoded slices go to ``CACHE/squares`` in the same opening, and
the slice store is put together from there; without them (another size, no space) it decodes the files again.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.data.preprocess import HEAD, head_box
from hemlearn.data.readers import NIFTI_SUFFIXES, FileFacts, SliceFile, reader_for, to_display
from hemlearn.data.readers.headers import Header
from hemlearn.data.scan_cache import (
    FLAT,
    KEY,
    PIXELS,
    PLACE,
    ROW,
    SAVED,
    TABLE,
    Pixels,
    Place,
    ShardMarks,
    Squares,
    Writer,
    digest_of,
    flat,
    head_thumbnail,
    phash_of,
    shown_hash,
    unflatten,
)
from hemlearn.util.console import run_parallel, track
from hemlearn.util.disk import room
from hemlearn.util.errors import DataError, name_problem
from hemlearn.util.files import file_stamp, load_table, save_table, special_file, table_cache
from hemlearn.util.shards import Shard, ShardsMissing, listed, present

logger = logging.getLogger(__name__)
_CHUNK = 64  # slices per task
_MANY = 1500  # slices from which worker processes pay for their start
_WITH_PICTURES = 20_000  # slices in a scan up to which their thumbnails are kept, for the search for copies
_squares: ContextVar[tuple[int, str] | None] = ContextVar("squares", default=None)


@contextmanager
def keeping_squares(size: int, fit: str) -> Iterator[None]:
    """Whatever is scanned inside is decoded in the same opening, and its pixels are kept for the slice store.

    Args:
        size: ``data.image_size``.
        fit: ``data.fit``.
    """
    token = _squares.set((size, fit))
    try:
        yield
    finally:
        _squares.reset(token)


# --- Scanning.


class _Job(NamedTuple):
    """A file to be opened: its row in the table of files, and the slices to be decoded (None: all that are usable)."""

    row: int
    path: str
    frames: tuple[int, ...] | None
    modality: str


def read_headers(
    paths: Sequence[str],
    root: Path,
    *,
    n_jobs: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    nifti: str = "OT",
    whole: bool = False,
) -> pd.DataFrame:
    """What the headers of many files say.

    Args:
        paths: Files, POSIX paths relative to ``root``.
        root: Folder of the data set.
        n_jobs: Workers; None: all cores.
        cache_dir: Where everything is kept by path, size, modification time and reader version; None: nowhere.
        progress: Show progress.
        nifti: Modality of NIfTI volumes, which do not tell.
        whole: Every usable slice will be used: inside :func:`keeping_squares` it is decoded in the same opening.

    Returns:
        One row per slice, files in the given order: the columns of :class:`Header`, and reason ("" or why the file
        cannot be read at all; such a file has one row).
    """
    files = _stat(paths, root, "cannot be opened: No such file or directory")
    decode = whole and _squares.get() is not None and cache_dir is not None
    scan = _Scan(root, n_jobs, cache_dir, progress)
    table = scan.rows(files, [None] * len(files), [nifti] * len(files), "headers", headers=True, pixels=decode)
    lost = files.loc[files["reason"] != "", ["row", "path", "reason"]].reset_index(drop=True)
    empty = pd.DataFrame([flat(Header(name)) for name in lost["path"]], columns=FLAT).drop(columns="path")
    parts = [part for part in (table, lost.join(empty)) if len(part)]
    both = pd.concat(parts, ignore_index=True) if parts else table
    both = unflatten(both.sort_values(["row", "frame"], kind="stable").reset_index(drop=True))
    is_nifti = both["path"].str.lower().str.endswith(NIFTI_SUFFIXES)
    return both.assign(modality=both["modality"].where(~is_nifti, nifti))


def fingerprints(
    table: pd.DataFrame, root: Path, *, n_jobs: int | None, cache_dir: str | os.PathLike[str] | None, progress: bool
) -> pd.DataFrame:
    """What the pixels of every slice say; files that were scanned before are not opened again.

    Args:
        table: Columns path (relative to ``root``, "": no file) and frame; modality (CT, MR, OT) where it is not CT.
        root: Folder of the data set.
        n_jobs: Workers; None: all cores.
        cache_dir: Where everything is kept; None: nowhere.
        progress: Show progress.

    Returns:
        Indexed like ``table``: content (hash of the bytes), phash, head_box, height, width (0 where unusable) and
        reason ("" or why the file cannot be used).
    """
    modality = table["modality"] if "modality" in table else pd.Series("CT", index=table.index)
    wanted = pd.DataFrame({"path": table["path"], "frame": table["frame"], "asked": modality}).reset_index(drop=True)
    frames: dict[tuple[str, str], dict[int, None]] = {}
    for path, frame, asked in wanted.itertuples(index=False, name=None):
        frames.setdefault((path, asked), {})[frame] = None
    asked_as = [asked for _, asked in frames]
    files = _stat([path for path, _ in frames], root)
    each = [tuple(own) for own in frames.values()]
    found = _Scan(root, n_jobs, cache_dir, progress).rows(files, each, asked_as, "images", pixels=True)
    found = found[["path", "frame", *(name for name in PIXELS if name != "thumbnail")]].drop_duplicates(
        ["path", "frame", "asked"]
    )
    out = wanted.merge(found, on=["path", "frame", "asked"], how="left")
    told = files.assign(asked=asked_as)[["path", "asked", "reason"]]
    reason = wanted.merge(told, on=["path", "asked"], how="left")["reason"].fillna("")
    out["reason"] = reason.where(reason != "", out["why"].fillna(""))
    good = (out["reason"] == "").to_numpy()
    for name in ("content", "phash", "head_box", "reason"):
        out[name] = out[name].where(good | (name == "reason"), "").fillna("").astype(str)
    for name in ("height", "width"):
        out[name] = out[name].where(good, 0).fillna(0).astype(np.int64)
    return out[["content", "phash", "head_box", "height", "width", "reason"]].set_axis(table.index, axis=0)


def file_facts(
    paths: Sequence[str], root: Path, *, n_jobs: int | None, cache_dir: str | os.PathLike[str] | None, progress: bool
) -> pd.DataFrame:
    """What files tell of themselves without their pixels.

    Args:
        paths: Different files, relative to ``root``.
        root: Folder of the data set.
        n_jobs: Workers; None: all cores.
        cache_dir: Where everything is kept; None: nowhere.
        progress: Show progress.

    Returns:
        One row per file: path, bytes (0: gone), the columns of :class:`FileFacts`, and reason ("" or why nothing is
        known).
    """
    files = _stat(paths, root)
    scan = _Scan(root, n_jobs, cache_dir, progress)
    found = scan.rows(files, [()] * len(files), ["OT"] * len(files), "file facts")
    first = found.drop_duplicates("row").set_index("row").reindex(files.index)
    out = pd.DataFrame({"path": files["path"], "bytes": files["size"]})
    for name, default in FileFacts()._asdict().items():
        out[name] = first[f"file_{name}"].fillna(default).to_numpy()
    out["reason"] = files["reason"].mask(files["size"] == 0, "gone")
    return out


def thumbnails(
    table: pd.DataFrame, root: Path, cache_dir: str | os.PathLike[str] | None
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Hash of each slice as on a screen, and its thumbnail as bytes, as far as they are kept; "" and empty elsewhere.

    Args:
        table: Of a manifest: path, frame, modality, content.
        root: Folder of the data set.
        cache_dir: Where scans are kept.
    """
    key_of = ["path", "frame", "asked", "content"]
    known = None if cache_dir is None else load_table(_kept(root, cache_dir), [*key_of, "shown", "thumbnail"])
    if known is None:
        return np.full(len(table), "", dtype=object), np.full(len(table), b"", dtype=object)
    key = table[["path", "frame", "content"]].assign(asked=table["modality"].to_numpy())
    found = key.merge(known, on=key_of, how="left")
    shown = found["shown"].fillna("").to_numpy(dtype=object)
    pictures = [item if isinstance(item, bytes) else b"" for item in found["thumbnail"]]
    return shown, np.array([*pictures, None], dtype=object)[:-1]


def _kept(root: Path, cache_dir: str | os.PathLike[str]) -> Path:
    return table_cache(cache_dir, "scan", root, TABLE)


def _stat(paths: Sequence[str], root: Path, absent: str = "label without image: {} does not exist") -> pd.DataFrame:
    """Path, size, stamp, reader and reason ("" or why it cannot be opened) of every file."""
    base, rows = os.fspath(root), []
    for path in paths:
        size, mark, key, reason = 0, "", "", ""
        try:
            if not path:
                reason = "label without image: the row names no file"
            elif not (reason := name_problem(path)):
                full = os.path.join(base, path)  # noqa: PTH118 - hundreds of thousands of files
                info = os.stat(full)  # noqa: PTH116
                size, mark, reason = info.st_size, file_stamp(info), special_file(info.st_mode)
                if not reason:
                    reader = reader_for(full)
                    key, reason = reader.key, reader.too_large(size)
        except FileNotFoundError:
            reason = absent.format(path)
        except OSError as error:
            reason = f"cannot be opened: {error.strerror or error}"
        except DataError as error:
            reason = error.problem.removeprefix(f"{full}: ")
        rows.append((path, size, mark, key, reason))
    out = pd.DataFrame(rows, columns=[*KEY, "reason"])
    return out.astype({"size": np.int64, **dict.fromkeys(("path", "stamp", "reader", "reason"), object)})


@dataclass(frozen=True)
class _Scan:
    """How files are scanned: see :func:`read_headers`."""

    root: Path
    n_jobs: int | None
    cache_dir: str | os.PathLike[str] | None
    progress: bool

    def rows(
        self,
        files: pd.DataFrame,
        frames: Sequence[tuple[int, ...] | None],
        modalities: Sequence[str],
        what: str,
        *,
        headers: bool = False,
        pixels: bool = False,
        again: bool = False,
    ) -> pd.DataFrame:
        """Rows of all files, kept ones and those of files that had to be opened; reasons are put into ``files``.

        Args:
            files: From :func:`_stat`.
            frames: Slices of each file to be decoded; None: all that are usable.
            modalities: What they are decoded as, where the file does not say.
            what: Is read, for the progress.
            headers: Whether headers are needed.
            pixels: Whether pixels are needed; a shard opens its own files alone for them.
            again: A shard looks again, after its own, whether the others are there.

        Returns:
            Columns row (of ``files``) and those of the scan but the thumbnail.
        """
        cache = None if self.cache_dir is None else _kept(self.root, self.cache_dir)
        wanted = _squares.get() if pixels else None
        squares = None
        if wanted is not None and self.cache_dir is not None:
            squares = Squares.of(self.root, self.cache_dir, *wanted)
        light = [name for name in ROW if name != "thumbnail"]
        known, unsaved = load_table(cache, [*KEY, *light[1:]]), None
        if squares is not None and squares.folder.is_dir():  # a scan that was killed has not saved its rows
            unsaved = _unknown(squares.table()[SAVED], known)
            known = known if unsaved.empty else _newest(unsaved[[*KEY, *light[1:]]], known)
        files["row"] = np.arange(len(files))
        readable = files.loc[files["reason"] == "", ["row", *KEY]]
        hits = readable.merge(known, on=KEY, how="inner") if known is not None else pd.DataFrame()
        missing = set(readable["row"])
        if len(hits):
            missing -= set(hits["row"])
            if headers:
                missing |= set(hits.loc[~hits["header"].astype(bool), "row"])
            if pixels:
                missing |= _undecoded(hits, frames, modalities)
            hits = hits[~hits["row"].isin(missing)]
        shard, unknown = present(), missing
        if marks := ShardMarks(files, cache) if pixels and cache is not None else None:
            missing = _divided(marks, files, missing, shard, what, again)
        jobs = [_Job(row, files["path"].iloc[row], frames[row], modalities[row]) for row in sorted(missing)]
        fresh = (
            self._open(jobs, files, squares, pixels, what, len(unknown))
            if jobs
            else pd.DataFrame(columns=["row", "reason", *ROW])
        )
        bad = fresh[fresh["reason"] != ""]
        files.loc[bad["row"], "reason"] = bad["reason"].to_numpy()
        fresh = fresh[fresh["reason"] == ""]
        keep = fresh.drop(columns="path").merge(files[["row", *KEY]], on="row")[SAVED]
        if unsaved is not None:
            keep = _newest(keep, unsaved)
        if cache is not None and len(keep):
            # Sorted: a scan that was interrupted leaves the table of an undisturbed one.
            save_table(
                cache,
                keep,
                lambda own: _newest(own, load_table(cache, SAVED)).sort_values(["path", "frame"], kind="stable"),
            )
        if marks is not None and shard is not None and not again:
            marks.note(shard)
            if unknown - missing:  # what the others have done meanwhile
                return self.rows(files, frames, modalities, what, headers=headers, pixels=pixels, again=True)
        parts = [part[["row", *light]] for part in (hits, fresh) if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["row", *light])

    def _open(
        self, jobs: Sequence[_Job], files: pd.DataFrame, squares: Squares | None, pixels: bool, what: str, total: int
    ) -> pd.DataFrame:
        """Rows (row, reason, and those of the scan with their places) of files that are opened now.

        ``total``: number of files that this process and other shards open.
        """
        columns = ["row", "reason", *ROW, *PLACE]
        if not jobs:
            return pd.DataFrame(columns=columns)
        sizes = files["size"].iloc[[job.row for job in jobs]]
        task = _Task(
            self.root,
            pixels,
            squares if squares is not None and _room(squares, sizes) else None,
            total <= _WITH_PICTURES,
        )
        stamps = list(files[KEY].itertuples(index=False, name=None))
        # A volume counts as the slices it may hold.
        weights = [
            max(1, size // 100_000) if job.path.lower().endswith(NIFTI_SUFFIXES) else 1
            for job, size in zip(jobs, sizes, strict=True)
        ]
        bounds = np.cumsum(weights) // _CHUNK
        chunks = [[jobs[item] for item in np.flatnonzero(bounds == bound).tolist()] for bound in np.unique(bounds)]
        tasks = [(task, chunk, [stamps[job.row] for job in chunk]) for chunk in chunks]
        results = run_parallel(_open_files, tasks, n_jobs=self.n_jobs, processes=sum(weights) > _MANY)
        length: Callable[[Any], int] = lambda part: part[1]  # noqa: E731
        # Tables at once: a million rows as Python objects would need gigabytes.
        parts = [
            pd.DataFrame(rows, columns=columns)
            for rows, _ in track(results, f"Reading {what}", len(jobs), size=length, show=self.progress)
        ]
        return pd.concat(parts, ignore_index=True)


def _divided(
    marks: ShardMarks, files: pd.DataFrame, missing: set[int], shard: Shard | None, what: str, again: bool
) -> set[int]:
    """Of the rows of ``files`` that are not known yet, those to be opened by this process now.

    ``again``: a shard has opened its own, and looks whether the others have opened theirs.

    Raises:
        ShardsMissing: They have not.
    """
    done = marks.done()
    shards = max(done, default=0) if shard is None else shard.of
    if not shards:
        return missing
    owners, there = marks.owners(shards), done.get(shards, set())
    owner = {row: owners[files["path"].iloc[row]] for row in missing}
    left = set(owner.values()) - there
    if shard is None:
        if left:
            logger.info("%s of %d: not done; what is left of their %s is read now", listed([*left]), shards, what)
        return missing
    own = {row for row, number in owner.items() if number == shard.number}
    if not again and (own or (missing and shard.number not in there)):
        total = sum(number == shard.number for number in owners.values())
        logger.info("shard %s: %d of %d files, %d of them are read now", shard, total, len(owners), len(own))
        return own
    if left:
        raise ShardsMissing(shard, left, f"reading {what}")
    return missing  # files that their shards could not read


class _Task(NamedTuple):
    """What a worker needs to know beside its files; ``pictures``: thumbnails are kept."""

    root: Path
    pixels: bool
    squares: Squares | None
    pictures: bool


def _unknown(rows: pd.DataFrame, known: pd.DataFrame | None) -> pd.DataFrame:
    """Rows of which the kept table knows nothing yet."""
    if known is None:
        return rows
    key = [*KEY, "frame", "asked"]
    return rows[rows[key].merge(known[key].assign(known=True), on=key, how="left")["known"].isna().to_numpy()]


def _undecoded(hits: pd.DataFrame, frames: Sequence[tuple[int, ...] | None], modalities: Sequence[str]) -> set[int]:
    """Files of which a wanted slice was not decoded, or was decoded as another modality."""
    given = np.array([frames[row] is not None for row in hits["row"]])
    asked = np.array([modalities[row] for row in hits["row"]], dtype=object)
    own = np.where(~given & (hits["modality"] != "OT"), hits["modality"], asked)
    decoded = (hits["asked"] == own).to_numpy()
    out = set(hits.loc[~given & ~decoded & (hits["set_aside"] == "").to_numpy(), "row"])
    done = set(zip(hits.loc[decoded, "row"], hits.loc[decoded, "frame"], strict=True))
    out |= {row for row in hits.loc[given, "row"].unique() if any((row, one) not in done for one in frames[row] or ())}
    return out


def _newest(fresh: pd.DataFrame, known: pd.DataFrame | None) -> pd.DataFrame:
    """Fresh rows before kept ones; of an unchanged file, slices that were decoded before stay decoded."""
    if known is None or known.empty:
        return fresh
    stamp = ["size", "stamp", "reader"]
    both = known[["path", *stamp]].merge(fresh.drop_duplicates("path")[["path", *stamp]], on="path", how="left")
    then, now = (both[[f"{name}_{side}" for name in stamp]].to_numpy() for side in "xy")
    stale = both["reader_y"].notna() & (then != now).any(axis=1)
    joined = pd.concat([fresh, known[~stale.to_numpy()]], ignore_index=True)
    order = np.argsort((joined["asked"] == "").to_numpy(), kind="stable")
    return joined.iloc[order].drop_duplicates(["path", "frame"])


def _room(squares: Squares, sizes: pd.Series[int]) -> bool:
    """Make the folder of the squares; False where it cannot be, or where the disk has no room for store and squares."""
    needed = 4 * len(sizes) * squares.size**2 + (4 * int(sizes.sum()) if squares.fit == HEAD else 0)
    try:
        squares.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(squares.folder).free > needed + (1 << 30) and room(squares.folder.parents[1]) > needed
    except OSError:
        return False


def _open_files(
    task: _Task, jobs: Sequence[_Job], stamps: Sequence[tuple[Any, ...]]
) -> tuple[list[tuple[Any, ...]], int]:
    """Rows of some files, and the number of files; runs in a worker."""
    out: list[tuple[Any, ...]] = []
    writer = None if task.squares is None else Writer(task.squares)
    for job in jobs:
        path = task.root / job.path
        try:
            out += [(job.row, "", *item) for item in _open_file(path, job, task, writer)]
        except DataError as error:
            reason = error.problem.removeprefix(f"{path}: ")
            out.append((job.row, reason, *flat(Header(job.path)), False, *FileFacts(), *Pixels(), *Place()))
    if writer is not None:
        stamp = {job.row: values for job, values in zip(jobs, stamps, strict=True)}
        good = [(*stamp[item[0]], *item[3:]) for item in out if not item[1]]
        writer.finish(pd.DataFrame(good, columns=[*SAVED, *PLACE]))
    return out, len(jobs)


def _open_file(path: Path, job: _Job, task: _Task, writer: Writer | None) -> list[tuple[Any, ...]]:
    """One row per slice: all that the header tells of; else those that are asked for."""
    reader = reader_for(path)
    opened = reader.open(path, pixels=task.pixels)
    try:
        headers, read = opened.headers(job.path), True
    except DataError:
        if job.frames is None:
            raise
        headers, read = [Header(job.path, frame) for frame in job.frames or (0,)], False
    try:
        facts = opened.facts()
    except DataError:
        if job.frames == ():
            raise
        facts = FileFacts()
    known = {header.frame for header in headers}
    headers += [Header(job.path, frame) for frame in job.frames or () if frame not in known]
    rows = []
    for header in headers:
        found, place = Pixels(), Place()
        wanted = header.set_aside == "" if job.frames is None else header.frame in job.frames
        if task.pixels and wanted:
            own = header.modality if job.frames is None and header.modality != "OT" else job.modality
            found, place = _look(opened, header.frame, own, writer, task.pictures)
        rows.append((*flat(header), read, *facts, *found, *place))
    return rows


def _look(opened: SliceFile, frame: int, modality: str, writer: Writer | None, pictures: bool) -> tuple[Pixels, Place]:
    """Decode a slice and take from it everything that is asked later."""
    reader = opened.reader
    try:
        pixels = reader.decode(opened.path, frame, modality, opened)
        content = opened.content
    except DataError as error:
        if opened.raw is None:  # it could not be read at all, which may pass
            raise
        return Pixels(modality, why=error.problem.removeprefix(f"{opened.path}: ")), Place()
    unit = reader.unit_of(modality)
    display = to_display(pixels, unit)
    thumbnail = head_thumbnail(display)
    found = Pixels(
        modality,
        content,
        phash_of(thumbnail),
        " ".join(map(str, head_box(display) or ())),
        pixels.shape[0],
        pixels.shape[1],
        shown_hash(display),
        thumbnail.tobytes() if pictures and thumbnail is not None else b"",
    )
    return found, Place() if writer is None else writer.write(pixels, unit)


def content_of(path: Path) -> str:
    """The hash of a file of several slices, remembered while these are worked through in parts."""
    return _volume_hash(path, file_stamp(path.stat()))


@lru_cache(maxsize=16)
def _volume_hash(path: Path, _stamp: str) -> str:
    return digest_of(path.read_bytes())
