"""The slice store: every slice decoded once into one memory-mapped array.

A store lies in ``CACHE/stores/KEY``: ``slices.bin`` (N x S x S), and ``complete.json``, written last. The key is
a hash of the slices' contents in order and of everything that decides about their pixels, so that a stale store
is never found (:mod:`hemlearn.util.block_file` says how it is written).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemlearn.data.manifest import Manifest
from hemlearn.data.preprocess import HEAD, Preprocess, Square, head_squares
from hemlearn.data.readers import DTYPES, NIFTI_SUFFIXES, reader_for
from hemlearn.data.readers.nifti import read_nifti
from hemlearn.data.scan import content_of
from hemlearn.data.scan_cache import Place, Squares
from hemlearn.util.block_file import BlockFile, Part
from hemlearn.util.console import run_parallel, track
from hemlearn.util.disk import room
from hemlearn.util.errors import DataError, StoreError
from hemlearn.util.files import sha256
from hemlearn.util.shards import present

logger = logging.getLogger(__name__)
FORMAT = 1
PART_BYTES = 4 << 20  # about this much is decoded, written and journalled at a time
_MEND = "`hemlearn prepare` with the words of this command makes them again from the files"
_MANY = 1500  # slices from which worker processes pay for their start


@dataclass(frozen=True)
class SliceStore:
    """Decoded slices on disk.

    Args:
        file: Where they lie: (N, S, S), int16 (HU, signal) or uint8 (display), with ``folder``, ``array``, ``verify``.
        unit: ``HU``, ``signal`` or ``display``.
        slice_ids: Slice id of each row.

    Example:
        >>> import tempfile, pandas as pd
        >>> from PIL import Image
        >>> from hemlearn.data.manifest import build_manifest
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.fromarray(np.eye(16, dtype=np.uint8)).save(root / "a.png")
        >>> rows = pd.DataFrame({"slice_id": ["a"], "patient_id": ["p"], "path": ["a.png"]})
        >>> manifest = build_manifest(rows, root=root, labels=[], source="mine", progress=False)
        >>> store = open_store(manifest, size=8, fit="letterbox", cache_dir=root / "cache", progress=False)
        >>> store.array.shape, store.unit, store.rows
        ((1, 8, 8), 'display', {'a': 0})
    """

    file: BlockFile
    unit: str
    slice_ids: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the store lies."""
        return self.file.folder

    @property
    def key(self) -> str:
        """Its content key."""
        return self.file.folder.name

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S)."""
        return self.file.shape

    @property
    def array(self) -> NDArray[Any]:
        """(N, S, S) read-only memory map, uint8 (display) or int16 (HU, signal)."""
        return self.file.array

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each slice id."""
        return {slice_id: row for row, slice_id in enumerate(self.slice_ids)}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "rows"}

    def verify(self) -> None:
        """Read the whole store and compare it with the checksums taken when it was built.

        Raises:
            StoreError: A part has changed.
        """
        self.file.is_complete(whole=True, mend=_MEND)


class Source(NamedTuple):
    """Where a slice comes from.

    ``several``: other slices come from the same file; ``cut``: its square for ``fit=head``; ``place``: where the scan
    has left its pixels.
    """

    path: str
    frame: int
    content: str
    modality: str
    several: bool
    cut: Square | None
    place: Place | None


def open_store(
    manifest: Manifest,
    *,
    size: int,
    fit: str,
    cache_dir: str | os.PathLike[str],
    n_jobs: int | None = None,
    progress: bool = True,
    repair: bool = False,
    verify: bool = False,
) -> SliceStore:
    """Return the store of a data set at one size; build it first where it is missing.

    Args:
        manifest: The data set; row i of the store is row i of its table.
        size: Side of the square slices, pixels.
        fit: See :class:`hemlearn.data.preprocess.Preprocess`.
        cache_dir: Cache folder.
        n_jobs: Workers; None: all cores.
        progress: Show progress.
        repair: Make damaged parts again; else they are an error.
        verify: Read the whole of a store that is there.

    Raises:
        ConfigError: ``size`` or ``fit`` is impossible.
        DataError: A file has changed since the manifest was made, or cannot be read any more.
        StoreError: The store is damaged, the disk is full or the folder cannot be written.
        ShardsMissing: This process is a shard that has decoded its own slices, and others have not.
    """
    store, step, cuts = _planned(manifest, size, fit, cache_dir)
    file, squares = store.file, Squares.of(manifest.root, cache_dir, size, fit)
    check: Any = {"whole": verify, "mend": None if repair else _MEND}
    if file.is_complete(**check):
        squares.remove()
        return store
    columns = [manifest.table[name].tolist() for name in ("path", "frame", "content", "modality")]
    several = manifest.table["path"].duplicated(keep=False).tolist()
    sources = [Source(*item) for item in zip(*columns, several, cuts, _places(manifest, squares, file), strict=True)]
    rows = max(1, min(PART_BYTES // file.row_bytes, 256))

    def decode(missing: Sequence[range]) -> Iterable[Part]:
        tasks = [(file, step, manifest.root, squares, part.start, sources[part.start : part.stop]) for part in missing]
        many = sum(source.place is None for source in sources) > _MANY and len(tasks) * rows > _MANY
        results = run_parallel(_write_part, tasks, n_jobs=n_jobs, processes=many)
        total = sum(map(len, missing))
        yield from track(
            results, "Decoding slices", total, size=lambda part: int(part.stop - part.start), show=progress
        )

    file.build(
        decode,
        step=rows,
        what="the slice store",
        extra={"format": FORMAT, "unit": step.unit, "fit": fit},
        remedy=", or lower data.image_size",
        # What the scan has decoded is only copied: the shard that comes last does it.
        shard=present() if any(source.place is None for source in sources) else None,
        **check,
    )
    squares.remove()
    return store


def scanned_store(manifest: Manifest, *, size: int, fit: str, cache_dir: str | os.PathLike[str]) -> SliceStore | None:
    """The store where no file need be opened for it: it is there, or the scan has decoded all of its slices.

    A cache that cannot hold it is reported, and None is returned: a data set can be looked at all the same.

    Raises:
        StoreError: It is there and damaged.
    """
    store = _planned(manifest, size, fit, cache_dir)[0]
    if not store.file.is_complete(mend=_MEND):
        known = Squares.of(manifest.root, cache_dir, size, fit).table()
        place = known.loc[known["part"] != "", ["path", "frame"]].drop_duplicates()
        if len(manifest.table[["path", "frame"]].merge(place)) < len(manifest.table):
            return None
    try:
        return open_store(manifest, size=size, fit=fit, cache_dir=cache_dir)
    except StoreError as error:
        logger.warning("no slice store: %s", error)
        return None


def _planned(
    manifest: Manifest, size: int, fit: str, cache_dir: str | os.PathLike[str]
) -> tuple[SliceStore, Preprocess, list[Square | None]]:
    """The store that is to be, how slices come into it, and what is cut from each."""
    names = ("path", "frame", "content", "modality", "slice_id")
    paths, frames, contents, modalities, ids = (manifest.table[name].tolist() for name in names)
    readers = [reader_for(manifest.root / path) for path in paths]
    own = [reader.unit_of(modality) for reader, modality in zip(readers, modalities, strict=True)]
    units = sorted(set(own))
    # A set that mixes screen images, HU and MR signal can only be shown as on a screen: HU cannot be won back.
    step = Preprocess(size, fit, units[0] if len(units) == 1 else "display")
    slices = [f"{content}:{frame}" for content, frame in zip(contents, frames, strict=True)]
    if len(units) > 1:
        slices = [f"{item}:{unit}" for item, unit in zip(slices, own, strict=True)]
    cuts: list[Square | None] = [None] * len(paths)
    if fit == HEAD:
        cuts = [*head_squares(manifest.table)]
        slices = [f"{item}:{square}" for item, square in zip(slices, cuts, strict=True)]
    content = sha256("\n".join(slices))
    recipe = [FORMAT, size, fit, step.unit, sorted({reader.key for reader in readers}), content]
    key = sha256(json.dumps(recipe))[:32]
    shape = (len(paths), size, size)
    file = BlockFile(Path(cache_dir) / "stores" / key, "slices.bin", shape, DTYPES[step.unit], {"key": key})
    return SliceStore(file, step.unit, tuple(ids)), step, cuts


def _places(manifest: Manifest, squares: Squares, file: BlockFile) -> list[Place | None]:
    """Where the scan has left the pixels of each slice; None where it has not."""
    nowhere: list[Place | None] = [None] * len(manifest.table)
    if not squares.folder.is_dir():
        return nowhere
    if room(squares.folder.parents[1]) < file.shape[0] * file.row_bytes:
        squares.remove()  # the store needs their room
        return nowhere
    found = squares.table()
    found = found[found["part"] != ""].drop_duplicates(["path", "frame", "asked", "content"])
    key = manifest.table[["path", "frame", "content"]].assign(asked=manifest.table["modality"].to_numpy())
    merged = key.merge(found, on=["path", "frame", "asked", "content"], how="left")
    columns = [merged[name].tolist() for name in Place._fields]
    return [
        Place(part, int(offset), int(rows), int(width), digest) if isinstance(part, str) else None
        for part, offset, rows, width, digest in zip(*columns, strict=True)
    ]


def _write_part(
    file: BlockFile, step: Preprocess, root: Path, squares: Squares, start: int, sources: Sequence[Source]
) -> Part:
    """Bring some slices into their place in the file; runs in a worker."""
    block = np.empty((len(sources), step.size, step.size), dtype=step.dtype)
    last = ""
    for row, source in enumerate(sources):
        path = root / source.path
        reader = reader_for(path)
        unit = reader.unit_of(source.modality)
        kept = None
        if source.place is not None and (source.cut is not None or unit == step.unit):
            kept = squares.read(source.place, unit)
        if kept is not None and source.cut is None:
            block[row] = kept
            continue
        block[row] = step.square(_pixels(path, source, last) if kept is None else kept, unit, source.cut)
        last = source.path if kept is None else ""
    return file.write(start, block)


def _pixels(path: Path, source: Source, last: str) -> NDArray[Any]:
    """A slice, decoded from its file, which must be as it was; one of several slices is checked for the first."""
    reader = reader_for(path)
    if not source.several:
        opened = reader.open(path)
        pixels, content = reader.decode(path, source.frame, source.modality, opened), opened.content
    else:
        pixels = reader.decode(path, source.frame, source.modality)
        content = source.content if source.path == last else content_of(path)
    if content != source.content:
        raise DataError(
            f"{path}: its content has changed since the manifest was made", remedy="run hemlearn index again"
        )
    return pixels


# --- Lesion masks, in the squares of the store.

# Where scans lie -> how their masks end; the folder masks/ lies beside the first of them. CT-ICH v1.3.1, and the
# phantom in the layout of Head-CT.
MASKS = {"ct_scans": NIFTI_SUFFIXES, "head_ct/head_ct": (".png",)}


def named_masks(names: Iterable[str]) -> set[str]:
    """Of the files of a folder those that are lesion masks of others, by the layouts that have them.

    Example:
        >>> sorted(named_masks(["a/1.jpg", "a/1_HGE_Seg.jpg", "head_ct/head_ct/1.png", "masks/1.png", "b/masks/1.png"]))
        ['a/1_HGE_Seg.jpg', 'masks/1.png']
    """
    known = set(names)
    found: set[str] = set()
    for path in map(PurePosixPath, known):
        own = [f"{_mask_folder(path, scans) / path.name.split('.')[0]}{end}" for scans, end in _ends(path)]
        found.update(name for name in (*own, str(path.with_stem(f"{path.stem}_HGE_Seg"))) if name in known)
    return found


def has_masks(manifest: Manifest) -> bool:
    """Whether every file of the data set has its lesion mask beside it."""
    return all(_mask_path(manifest.root, path) is not None for path in manifest.table["path"].unique())


def masks_are_lost(manifest: Manifest) -> bool:
    """Whether this is a phantom in a layout that is drawn with masks, but without them, as earlier versions drew it."""
    kinds = {str(PurePosixPath(path).parent) for path in manifest.table["path"].unique()}
    drawn = all(any(PurePosixPath(kind).match(scans) for scans in MASKS) for kind in kinds)
    return manifest.synthetic and drawn and not has_masks(manifest)


def lesion_masks(manifest: Manifest, rows: NDArray[np.int64], size: int, fit: str) -> NDArray[np.bool_]:
    """Lesions of some rows, ``(len(rows), S, S)``, as an input of ``size`` and ``fit`` shows them.

    True where at least half of a pixel is lesion. A lesion smaller than that vanishes.

    Raises:
        DataError: There is no mask (:data:`MASKS`), or it is of another size than the slice.
    """
    table = manifest.table
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
    return np.asarray(read_nifti(path, frame, "OT", labels=True) > 0)


def _mask_path(root: Path, name: str) -> Path | None:
    path = PurePosixPath(name)
    stem = path.name.split(".")[0]
    files = (root / _mask_folder(path, scans) / f"{stem}{end}" for scans, end in _ends(path))
    return next((file for file in files if file.is_file()), None)


def _ends(path: PurePosixPath) -> list[tuple[str, str]]:
    """Where a scan lies by :data:`MASKS`, and each ending that its mask may have."""
    return [(scans, end) for scans, suffixes in MASKS.items() if path.parent.match(scans) for end in suffixes]


def _mask_folder(path: PurePosixPath, scans: str) -> PurePosixPath:
    return path.parents[scans.count("/") + 1] / "masks"
