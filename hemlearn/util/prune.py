"""What can be made again and may go: ``hemlearn prune`` shows and frees it, ``hemlearn doctor`` counts it.

A thing is known by where it lies, by its name and by what is in it, never by one of these alone: what has the name but
not the content, or holds a file that hemlearn does not write, is left alone and named. So is whatever a process of this
machine makes or reads, and a checkpoint that another run names as its weights. No link is followed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hemlearn.util.disk import is_open, used
from hemlearn.util.documents import read_document
from hemlearn.util.errors import HemlearnError
from hemlearn.util.files import draft_of, is_abandoned
from hemlearn.util.run_files import (
    BEST,
    JOURNAL,
    LAST,
    PLACE,
    PROVENANCE,
    STATUS,
    SUMMARY,
    parse_yaml,
    read_json,
    read_provenance,
    tested,
)

KINDS = {  # kind -> how it is made again
    "stores": "by whatever reads the data set at that size; `hemlearn prepare`",
    "embeddings": "by the next run that needs them",
    "squares": "by the next reading of the data set",
    "tables": "by the next reading of the data set, which opens every file once more",
    "phantoms": "by the next command without data.root",
    "checkpoints": "by the command that made the run, with force=true; `Run.history` and runs that name one read them",
    "journals": "by `hemlearn predict`, which then predicts every series again",
    "leftovers": "by nobody: nothing reads them",
}
RECENT = 3600  # seconds in which what has no lock may still be written
_HEX = "[0-9a-f]"
_DRAFT = r"\.[^/]*\.part\."
_BLOCK = re.compile(rf"({_DRAFT})?((slices|vectors)\.bin|complete\.json|stamps\.json|part-\d{{8,}}\.json)")
_SQUARES = re.compile(rf"({_DRAFT})?{_HEX}{{32}}\.(bin|parquet)")
_NOTES = re.compile(rf"{_HEX}{{32}}-\d+-of-\d+")
_ANEW = re.compile(rf"\.({_HEX}{{12}})\.(old|anew)")
_RUN = re.compile(  # what `hemlearn train` writes
    rf"({_DRAFT})?(\.lock|config\.yaml|train\.log|(split|series)\.csv|predictions\.parquet|pseudonyms(-\w+)?\.key"
    rf"|(status|provenance|metrics|calibration)\.json|checkpoints/[^/]*\.ckpt|figures/({_DRAFT})?\w+\.png"
    r"|(csv|tensorboard)/(metrics\.csv|hparams\.yaml|events\.out\.tfevents\.[^/]+)|wandb/.+)"
)
_NOTE = re.compile(r"written by hemlearn's phantom \(layout (\w+), (\d+) patients?, seed (\d+)\)")
_PHANTOMS = {  # layout -> files beside PHANTOM.txt and phantom.csv
    "head_ct": r"labels\.csv|(head_ct/head_ct|masks)/\d+\.png",
    "rsna": rf"stage_2_(train|sample_submission)\.csv|stage_2_(train|test)/ID_{_HEX}+\.dcm",
    "ct_ich": r"hemorrhage_diagnosis\.csv|Patients_CT/\d+/brain/\w+\.jpg",
    "ct_ich_nifti": r"hemorrhage_diagnosis_raw_ct\.csv|(ct_scans|masks)/\d+\.nii",
    "cq500": r"reads\.csv|CQ500CT\d+ CQ500CT\d+/Unknown Study/CT [^/]+/CT\d+\.dcm",
    "basal_ganglia": r"labels\.csv|P\d+/IM\d+\.dcm",
    "six_class": r"(normal|epidural|intraparenchymal|intraventricular|subarachnoid|subdural)/P\d+_\d+\.dcm",
    "hydrocephalus_mri": r"labels\.csv|P\d+/T[12](/IM\d+\.dcm|\.nii\.gz)",
}
_UNKNOWN = "not known to be hemlearn's: "


@dataclass(frozen=True)
class Item:
    """Something that may go.

    Args:
        kind: One of :data:`KINDS`.
        path: The file or folder.
        look: Looks at ``path`` again.
        lock: Lock file of whoever makes it; None: it has none, and must not have been written just now.
        busy: Why it is left alone; "": it is not.
    """

    kind: str
    path: Path
    look: Callable[[Path], Item | None]
    lock: Path | None = None
    busy: str = ""

    @cached_property
    def bytes(self) -> int:
        """What it takes on the disk."""
        return used(self.path)

    @property
    def known(self) -> bool:
        """Whether hemlearn has written it, all of it."""
        return not self.busy.startswith(_UNKNOWN)


def find(folder: Path, kinds: Collection[str] = KINDS, also: Iterable[Path] = ()) -> list[Item]:
    """Everything below a folder that may go, or is left alone for a reason; the largest first.

    Args:
        folder: Where to look.
        kinds: Of :data:`KINDS`.
        also: Further folders of runs, which may name checkpoints below ``folder`` as their weights.
    """
    found = [item for item in _walk(folder) if item.kind in kinds]
    runs = {item.path.parents[3] for item in found if item.kind == "checkpoints"}  # OUT/NAME/HASH/checkpoints/last.ckpt
    if runs or any(item.kind == "leftovers" and item.path.is_dir() for item in found):
        named = _weights({folder, *also}, runs)
        found = [
            replace(item, busy=item.busy or next((why for file, why in named.items() if _within(file, item.path)), ""))
            for item in found
        ]
    return sorted(found, key=lambda item: (-item.bytes, str(item.path)))


def _weights(folders: Iterable[Path], roots: Iterable[Path]) -> dict[Path, str]:
    """Files that runs name as their weights, and who does: runs anywhere below ``folders``, and of ``roots``."""
    named: dict[Path, str] = {}
    runs = {Path(name) for folder in folders for name, _, files in os.walk(folder) if "config.yaml" in files}
    for run in runs | {file.parent for root in roots for file in root.glob("*/*/config.yaml")}:
        places: list[Any] = []
        with suppress(HemlearnError):  # of a run that has not begun, or is damaged: its config.yaml tells
            places.append(read_json(run / PROVENANCE).get(PLACE))
        with suppress(OSError, ValueError):  # whatever else is called config.yaml
            group = parse_yaml(read_document(run / "config.yaml")).get("backbone")
            places.append(group.get("weights") if isinstance(group, dict) else None)
        for place in places:
            if isinstance(place, str) and place and "\0" not in place:
                for file in (run / place, Path(place).expanduser()):
                    named.setdefault(file.resolve(), f"the frozen weights of the run {run} lie in it")
    return named


def _within(file: Path, place: Path) -> bool:
    return file.is_relative_to(place.resolve())


def _walk(folder: Path) -> Iterator[Item]:
    for name, folders, files in os.walk(folder):
        here = Path(name)
        run = STATUS in files and "config.yaml" in files
        looks = [_abandoned, _replaced, *_CACHES.get(here.name, ())]
        for other in [*folders, *files]:
            path = here / other
            item = None if path.is_symlink() else next(filter(None, (look(path) for look in looks)), None)
            if item is not None:
                yield item
            if item is not None or (run and other != "checkpoints") or _ANEW.fullmatch(other):
                folders[:] = [inner for inner in folders if inner != other]
        for own in (here / LAST if run else None, here / JOURNAL if SUMMARY in files else None):
            if own is not None and (item := (_last if run else _journal)(own)) is not None:
                yield item


# --- what a thing is known by -------------------------------------------------------------------------------------


def _block(kind: str) -> Callable[[Path], Item | None]:
    def look(path: Path) -> Item | None:
        key = path.name.removesuffix(".building")
        data = path / ("slices.bin" if kind == "stores" else "vectors.bin")
        if not re.fullmatch(f"{_HEX}{{32}}", key) or not path.is_dir() or not data.exists():
            return None
        told = _foreign(path, _BLOCK) or ("" if _is_block(path, key, kind) else "no complete.json of it")
        item = _unlocked(kind, path, look, told, path.with_name(f"{key}.lock"))  # it is opened after it was made
        return item if told or not is_open(data) else replace(item, busy="a running command reads it")

    return look


def _is_block(path: Path, key: str, kind: str) -> bool:
    """Whether a folder holds what is written of a block file: its marker, or of an unfinished one a part's journal."""
    from hemlearn.util.block_file import MARKER  # which needs numpy, and `--help` names the kinds above

    marker, parts = _told(path / MARKER), path.glob("part-*.json") if path.suffix else ()
    if isinstance(marker, dict):
        named = marker.get("key") == key if kind == "stores" else {"format", "shape"} <= marker.keys()
        return named and isinstance(marker.get("parts"), list) and any(map(_is_part, marker["parts"]))
    return any(_is_part(told := _told(file)) and file.name == f"part-{told['start']:08d}.json" for file in parts)


def _is_part(told: Any) -> bool:
    from hemlearn.util.block_file import Part

    try:
        return bool(re.fullmatch(f"{_HEX}{{64}}", Part.read(told).sha256))
    except (KeyError, TypeError, ValueError):
        return False


def _told(file: Path) -> Any:
    """Content of a JSON file; None where there is none."""
    try:
        return json.loads(read_document(file))
    except (OSError, ValueError):
        return None


def _squares(path: Path) -> Item | None:
    if not re.fullmatch(rf"{_HEX}{{16}}-v\d+-\d+-\w+", path.name) or not path.is_dir():
        return None
    told = _foreign(path, _SQUARES)
    if not (told or any(_has_columns(file, _SCANNED, {"part", "offset"}) for file in path.glob("*.parquet"))):
        told = "no table of what lies in it"
    return _unlocked("squares", path, _squares, told)


def _table(path: Path) -> Item | None:
    if re.fullmatch(rf"{_HEX}{{16}}-v\d+\.shards", path.name) and path.is_dir():
        told = _foreign(path, _NOTES) or next((item.name for item in path.iterdir() if item.stat().st_size), "")
        return _unlocked("tables", path, _table, told)
    if not (re.fullmatch(rf"({_HEX}{{16}}-v\d+|{_HEX}{{32}})\.parquet", path.name) and _is_file(path)):
        return None
    known = _has_columns(path, _PAIRS if path.parent.name == "duplicates" else _SCANNED)
    return _unlocked("tables", path, _table, "" if known else "other columns")


_SCANNED, _PAIRS = {"path", "size", "reader"}, {"slice_a", "slice_b", "kind", "similarity"}


def _has_columns(file: Path, *columns: set[str]) -> bool:
    import pyarrow.parquet as pq

    try:
        return set().union(*columns) <= set(pq.read_schema(file).names)
    except (OSError, ValueError):  # pyarrow's errors are these
        return False


def _phantom(path: Path) -> Item | None:
    note = path / "PHANTOM.txt"
    if not re.fullmatch(r"\w+-v\d+-\d+-\d+", path.name) or not _is_file(note):
        return None
    found = _NOTE.search(note.read_bytes()[:1000].decode(errors="replace"))
    layout, patients, seed = found.groups() if found else ("", "", "")
    known = re.fullmatch(rf"{layout}-v\d+-{patients}-{seed}", path.name) and layout in _PHANTOMS
    names = re.compile(rf"PHANTOM\.txt|phantom\.csv|{_PHANTOMS.get(layout)}")
    told = _foreign(path, names) if known else "another PHANTOM.txt"
    item = _unlocked("phantoms", path, _phantom, told, path.with_name(f".{path.name}.lock"))
    return replace(item, busy=item.busy or ("a running command reads it" if is_open(note) else ""))


def _journal(path: Path) -> Item | None:
    if not (_is_file(path) and _is_file(path.with_name(SUMMARY))):
        return None
    told = _told(path.with_name(SUMMARY))
    known = isinstance(told, dict) and {"version", "runs", "show_patient"} <= told.keys()
    with path.open("rb") as file:
        try:
            first = json.loads(file.readline(_LINE) or "{}")
        except ValueError:
            first = None
    known = known and isinstance(first, dict) and (not first or {"key", "sum"} <= first.keys())
    return Item("journals", path, _journal, path.with_name(".lock"), "" if known else f"{_UNKNOWN}other content")


_LINE = 64 << 20  # bytes; no series has a longer line


def _abandoned(path: Path) -> Item | None:
    return Item("leftovers", path, _abandoned) if is_abandoned(path) else None


def _last(path: Path) -> Item | None:
    """The last checkpoint of a complete run that has kept the tested one."""
    run = path.parent.parent
    state = _state(run, run.name)
    if not _is_file(path) or path.parent.is_symlink() or state != "complete" or not _is_file(run / BEST):
        return None
    with suppress(HemlearnError):
        if tested(read_provenance(run)) == BEST:
            return Item("checkpoints", path, _last, run / ".lock")
    return None


def _replaced(path: Path) -> Item | None:
    """What ``force=true`` has left beside a complete run; without that it is the only copy."""
    found = _ANEW.fullmatch(path.name)
    if found is None or not path.is_dir() or _state(path.with_name(found[1]), found[1]) != "complete":
        return None
    if found[2] == "anew" and path.with_name(f".{found[1]}.old").exists():
        return None  # `hemlearn train` puts it into place
    told = _foreign(path, _RUN) or ("" if _state(path, found[1]) else f"no {STATUS} of that run")
    return Item("leftovers", path, _replaced, path / ".lock", told and _UNKNOWN + told)


_CACHES: dict[str, tuple[Callable[[Path], Item | None], ...]] = {
    "stores": (_block("stores"),),
    "embeddings": (_block("embeddings"),),
    "squares": (_squares,),
    "phantom": (_phantom,),
    **dict.fromkeys(("scan", "duplicates", "facts", "headers", "index"), (_table,)),
}


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _foreign(folder: Path, names: re.Pattern[str]) -> str:
    """The first file, link or pipe below a folder that has none of these names; "" where there is none."""
    for here, folders, files in os.walk(folder):
        for path in map(Path(here).joinpath, sorted(files + folders)):
            name, link = path.relative_to(folder).as_posix(), path.is_symlink()
            told = names.fullmatch(name) and (not link or name.startswith("wandb/"))
            if not told and (link or not path.is_dir()):
                return name
    return ""


def _unlocked(kind: str, path: Path, look: Callable[[Path], Item | None], told: str, lock: Path | None = None) -> Item:
    busy = "written within the last hour" if time.time() - path.lstat().st_mtime < RECENT else ""
    return Item(kind, path, look, lock, _UNKNOWN + told if told else busy)


def _state(run: Path, name: str) -> str:
    """State of a run folder; "" where it is none, or of another hash."""
    with suppress(HemlearnError):
        status = read_json(run / STATUS)
        return str(status.get("state", "")) if status.get("hash") == name else ""
    return ""


# --- removal ------------------------------------------------------------------------------------------------------


def free(items: Iterable[Item]) -> tuple[list[Item], dict[Item, str]]:
    """Remove items, each under the lock of whoever would make it; one that cannot be removed stops nothing.

    On a full disk a lock may need the room that other items give, so what failed is tried once more at the end.

    Returns:
        The items that are gone, and those still there with the reason.
    """
    waiting, gone = {item: item.busy for item in items}, []
    for _ in range(2):
        for item in list(waiting):
            waiting[item] = item.busy or _remove(item)
            if not waiting[item]:
                gone.append(item)
                del waiting[item]
    return gone, waiting


def _remove(item: Item) -> str:
    """Remove one item; why not, or ""."""
    from filelock import FileLock, Timeout

    size = item.bytes  # which is told when it is gone
    lock: Any = nullcontext() if item.lock is None else FileLock(item.lock, timeout=0)
    try:
        with lock:
            now = None if item.path.is_symlink() else item.look(item.path)
            if now is None or now.busy:  # made, taken or removed since
                return now.busy if now else "is something else now" if size and item.path.exists() else ""
            if item.path.is_dir():
                part = draft_of(item.path)  # half of it is none, and is known if this process is killed
                shutil.rmtree(item.path if is_abandoned(item.path) else item.path.rename(part))
            else:
                item.path.unlink()
    except Timeout:
        return "a running command holds it"
    except OSError as error:
        return f"cannot be removed: {error.strerror or error}"
    return ""
