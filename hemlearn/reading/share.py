"""``hemlearn doctor run=DIR share=true``: what tells who a patient or the user is, looked for in every file."""

from __future__ import annotations

import logging
import mmap
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.readers import reader_for
from hemlearn.data.readers.dicom_file import open_dicom
from hemlearn.data.readers.dicom_personal import PERSONAL, personal
from hemlearn.models.loading import KEY, read_checkpoint
from hemlearn.reading.formats import EXPANDED, FAILURES, batches, parquet
from hemlearn.reading.overlap import training_manifest
from hemlearn.reading.views import DEPTH, Views
from hemlearn.reading.wanted import IDS, NAMES, PLACES, SECRETS, USER, Wanted
from hemlearn.training.run import Run
from hemlearn.util.console import NOTICED, track
from hemlearn.util.documents import check_file, load_json, load_yaml, read_document
from hemlearn.util.errors import HemlearnError, RunError, count, printable
from hemlearn.util.privacy import KEY_FILES, NO_IDS, STAYS_MARK, folders_of_one, user_names
from hemlearn.util.privacy import shown as hidden
from hemlearn.util.secrets import of_environment
from hemlearn.util.tables import read_csv

# Files that are not made to be handed on, and what they are.
WORKING = {
    **dict.fromkeys(("config.yaml", "provenance.json"), "says where data lie"),
    **dict.fromkeys(("split.csv", "predictions.parquet", "covariates.parquet", "seen.parquet"), "table of ids"),
    **dict.fromkeys(("slices.*", "series.*", "patients.*", "pages.csv", "submission.csv"), "table of ids"),
    **dict.fromkeys(
        ("failures.csv", "left_out.csv", "skipped.csv", "unmatched.csv", "overlap.csv", "duplicates.csv"), "list of ids"
    ),
    **dict.fromkeys(("manifest.parquet", "audits.json", "journal.jsonl"), "working file"),
    **dict.fromkeys((".mlflow_run", "meta.yaml", "debug*.log"), "of the tracker on this machine"),
    "run.key": "makes a run one of this user's",
    KEY_FILES: "gives back the ids that pseudonyms stand for",
    ".lock": "lock",
    "*.wandb": "sent by `wandb sync`, which leaves out where its parts lie here",
}
_SHOWN = {"failures.csv": "compare.json"}  # a file of that name is made to be shown where the other lies beside it
UNSEEN, AWAY, SHOWN = "NOT SEEN", "a link that leads out of this folder", "made with show_patient=true"
PICTURES = "pictures and ids of a data set, made for this disk alone"
_SUMMARIES = ("predict.json", "explain.json", "compare.json", "config.yaml")
_AGAIN = "make it again without show_patient=true"
# Kinds of what was found (None: any), files, and what to do; the first line that fits counts.
_REMEDIES: tuple[tuple[set[str] | None, str, str], ...] = (
    ({SECRETS}, "*", "change that password or token; give it through the environment, and make the file again"),
    ({PICTURES}, "*", "leave it out: `hemlearn index page=true` makes such a page for whoever has the data"),
    ({AWAY}, "*", "leave it out: what it leads to was not looked into, and may be sent in its place"),
    ({UNSEEN}, "*", "leave it out, or unpack it and look again"),
    ({IDS, NAMES, SHOWN}, "*.html", _AGAIN),
    ({IDS, NAMES, SHOWN}, "predict.json", _AGAIN),
    ({IDS, NAMES, SHOWN}, "explain.json", _AGAIN),
    ({IDS, NAMES, SHOWN}, "overlays/*", _AGAIN),
    ({IDS, NAMES, SHOWN}, "compare.*", _AGAIN),
    ({IDS, NAMES, SHOWN}, "failures.csv", _AGAIN),
    ({IDS, NAMES}, "*.log", "leave it out, or train again with logger.show_patient=false"),
    ({IDS, NAMES}, "wandb/*", "leave it out, or train again with logger.show_patient=false"),
    ({IDS, NAMES}, "*tfevents*", "leave it out, or train again with logger.show_patient=false"),
    ({PLACES, USER}, "*.ckpt", "leave it out: another version made it; train again, or export the run"),
    (None, "*", "no command leaves that in such a file: leave it out, or take that out and look again"),
)
_MARK = f'<meta name="hemlearn" content="{STAYS_MARK}">'.encode()
_PLACES_SHOWN = 3  # of each kind in a file
_COLUMNS = ("patient_id", "study_id", "series_id", "slice_id", "path", "item")
_TABLE = 1 << 30  # bytes of a table of ids, or of a key file, which is read as a whole
_HEADERS = 500  # patients whose headers are read


@dataclass(frozen=True)
class Finding:
    """One file.

    Args:
        name: Relative to the folder.
        what: Kind of what identifies -> where each different one stands first.
        working: Why it is not made to be handed on; "" where it is.
    """

    name: str
    what: dict[str, list[str]]
    working: str = ""

    @property
    def clean(self) -> bool:
        """Whether it is as it should be.

        A working file may hold ids and places; nothing may hold a secret, and whatever could not be opened may.
        """
        excused = {SHOWN, AWAY, IDS, NAMES, PLACES, USER} if self.working else set()
        if self.name.endswith(".wandb"):  # sent as it is, but for places
            excused = {PLACES, USER}
        return not set(self.what) - excused

    @property
    def remedies(self) -> list[str]:
        """What to do about it."""
        own = {self.name, self.name.rpartition("/")[2]}
        left, found = set(self.what), []
        for kinds, pattern, text in _REMEDIES:
            if hit := left & (kinds or left) if any(fnmatch(name, pattern) for name in own) else set():
                found.append(f"{self.working}: leave it out" if self.working and not hit & {SECRETS, UNSEEN} else text)
                left -= hit
        return list(dict.fromkeys(found))


def look(folder: Path) -> tuple[list[Finding], list[str]]:
    """What identifies in every file below a folder, and notes on what could not be looked for.

    Raises:
        RunError: No folder, or an empty one.
    """
    files = sorted(filter(_is_leaf, folder.rglob("*")))
    if not files:
        raise RunError(f"run={folder}: no folder with files", remedy="give a run folder, or what a command wrote")
    notes: list[str] = []
    logging.disable(logging.CRITICAL)  # what the readers warn of names ids
    try:
        wanted, unread = _wanted(folder, files, notes)
    finally:
        logging.disable(logging.NOTSET)
    looked = track(files, "Looking through files", len(files), after=NOTICED)
    return [_look(file, folder, wanted, unread.get(file, "")) for file in looked], notes


def _is_leaf(path: Path) -> bool:
    """A file, a link, a folder with nothing in it (its name tells too) or one that cannot be listed."""
    try:
        return path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    except OSError:
        return True


def _look(file: Path, folder: Path, wanted: Wanted, unread: str) -> Finding:
    name = file.relative_to(folder).as_posix()
    views, found = Views(), dict[str, dict[Any, str]]()
    unseen, shows = [unread] if unread else [], False
    for view in views.of(name.encode(errors="surrogateescape"), "its name: ", lambda _: "its name"):
        _note(found, wanted, view)
    try:
        shows = file.name in _SUMMARIES and not file.is_symlink() and _shows(file)
        with _content(file) as content:
            for view in views.of(content):
                _note(found, wanted, view)
                if _MARK in view.data:
                    found.setdefault(PICTURES, {})[file] = ""
    except FAILURES as error:
        unseen.append(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}")
    what = {kind: list(places.values()) for kind, places in found.items()}
    if unseen := [*unseen, *dict.fromkeys(views.unseen)]:
        what[UNSEEN] = unseen
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        what[AWAY] = [""]
    if shows:
        what[SHOWN] = [""]
    why = next((why for pattern, why in WORKING.items() if fnmatch(file.name, pattern)), "")
    mark = _SHOWN.get(file.name)
    if mark and (file.parent / mark).is_file():
        why = ""
    return Finding(name, what, why)


def _note(found: dict[str, dict[Any, str]], wanted: Wanted, view: Any) -> None:
    for kind, value, at in wanted.found(view):
        places = found.setdefault(kind, {})
        if value is None:  # a secret: each place is one; decoded, it has most often been seen before
            place = view.locate(at) if len(places) < _PLACES_SHOWN else ""
            if not places or not place.endswith(", decoded"):
                places[place or len(places)] = place
        elif value not in places:
            places[value] = view.locate(at) if len(places) < _PLACES_SHOWN else ""


@contextmanager
def _content(file: Path) -> Iterator[Any]:
    """The bytes of a file; of a link, where it leads: what lies there in this folder is looked at itself."""
    if file.is_symlink():
        yield bytes(file.readlink())
        return
    if file.is_dir():
        any(file.iterdir())  # an error where it cannot be listed
        yield b""
        return
    if not file.is_file():
        raise OSError("no plain file")
    with file.open("rb") as opened:
        # Closed with the last stretch of it that is looked at.
        yield memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)) if file.stat().st_size else b""


def _shows(file: Path) -> bool:
    """Whether the summary of an output says that it names patients."""
    text = read_document(file)
    content = load_yaml(text) if file.suffix == ".yaml" else load_json(text)
    inner = content.get("logger") if isinstance(content, dict) else None
    said = inner if isinstance(inner, dict) else content
    return isinstance(said, dict) and said.get("show_patient") is True


def _wanted(folder: Path, files: list[Path], notes: list[str]) -> tuple[Wanted, dict[Path, str]]:
    """What is looked for, and the tables of ids that could not be read."""
    wanted, home, unread = Wanted(), Path.home(), dict[Path, str]()
    wanted.add(of_environment(), SECRETS)
    wanted.add(user_names(), USER)
    wanted.add({str(home), str(folder.resolve()), str(Path.cwd())} - {"/"}, PLACES)
    for file in [*files, *folder.absolute().parent.glob(KEY_FILES)]:
        try:
            _learn(file, wanted)
        except FileNotFoundError:
            continue
        except (*FAILURES, HemlearnError) as error:
            unread[file] = f"its ids are not known, and were not looked for ({type(error).__name__})"
            if file not in files:
                notes.append(f"{file.name} beside the folder could not be read: its ids were not looked for")
    if IDS not in wanted.kinds:
        notes.append(
            "no id of more than 2 letters or 4 digits is in a table of this folder, or in a key beside it: "
            "ids were not looked for"
        )
    _headers(Run(folder), wanted, notes)
    return wanted, unread


def _learn(file: Path, wanted: Wanted) -> None:
    """Look for the ids of a key file or a working table."""
    if fnmatch(file.name, KEY_FILES):
        check_file(file, _TABLE)
        lines = [load_json(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        ids = [(key, str(value)) for line in lines for key, value in line.items() if key not in NO_IDS]
        # A folder of input is called `one` or `case` at times, which stands everywhere and tells nobody.
        wanted.add((v for key, v in ids if not (key.startswith(("input-", "folder-")) and v.isalpha())), IDS)
    elif any(fnmatch(file.name, pattern) for pattern in WORKING) and file.suffix in (".csv", ".parquet"):
        check_file(file, _TABLE)
        table = _ids_of(file)
        for name in table.columns.intersection(_COLUMNS):
            if not (name == "item" and (file.parent / _SHOWN["failures.csv"]).is_file()):
                wanted.add(table[name].dropna().unique(), IDS)
        if "patient_id" in table and table["patient_id"].nunique() > 1:  # of one patient all are his
            wanted.add(folders_of_one(table), IDS)


def _ids_of(file: Path) -> pd.DataFrame:
    """Rows of a table, of Parquet the different ones of its ids."""
    if file.suffix == ".csv":  # no rows, no ids
        return read_csv(file) if len(file.read_bytes().splitlines()) > 1 else pd.DataFrame()
    table, _ = parquet(file)
    names = [name for name in table.schema_arrow.names if name in _COLUMNS]
    parts = [batch.to_pandas().drop_duplicates() for batch in batches(table, names)] if names else []
    return pd.concat([part.astype("string") for part in parts]).drop_duplicates() if parts else pd.DataFrame()


def _headers(run: Run, wanted: Wanted, notes: list[str]) -> None:
    """What the headers of the run's data say of people, of a file of each patient."""
    try:
        if not run.status:
            return
        wanted.add(_places(run.settings), PLACES)
        data = run.provenance.get("data", {})
        if data.get("synthetic"):
            return
        wanted.add({data.get("root", "")} - {"/"}, PLACES)  # of several data sets what they have in common
        manifest, why = training_manifest(run)
    except HemlearnError as error:
        manifest, why = None, error.problem
    if manifest is None:
        notes.append(f"names in the headers of the data were not looked for: {why}")
        return
    first = manifest.table.drop_duplicates("patient_id")
    rows = np.unique(np.linspace(0, len(first) - 1, min(len(first), _HEADERS)).round().astype(np.int64))
    for name in first["path"].iloc[rows]:
        with suppress(HemlearnError):
            if reader_for(manifest.root / name).name == "dicom":
                header = open_dicom(manifest.root / name, pixels=False, tags=(*PERSONAL, "PatientID"))
                told = personal(header)
                wanted.add([part for value in told.values() for part in (value, *re.split(r"[\s^\\]+", value))], NAMES)
                wanted.add([header.get("PatientID", "")], IDS)
    if len(rows) < len(first):
        notes.append(f"names in headers are those of {len(rows)} of {len(first)} patients")


def _places(settings: Any) -> set[str]:
    """Absolute paths that a configuration names, at any depth: data, each of several data sets, tables, weights."""
    if isinstance(settings, dict):
        return set().union(*map(_places, settings.values()))
    if isinstance(settings, list):
        return set().union(*map(_places, settings))
    return {settings.rstrip("/")} if isinstance(settings, str) and settings.startswith("/") else set()


def report(folder: Path) -> tuple[str, bool]:
    """What ``hemlearn doctor`` prints, and whether everything that may be shared is clean."""
    found, notes = look(folder)
    with suppress(HemlearnError):
        # What it says of itself; nothing is built of a stranger's configuration.
        if (run := Run(folder)).status.get("state") == "complete" and KEY in read_checkpoint(run.weights):
            told = printable(str(hidden(run.provenance.get("weights"))))
            notes.append(f"whoever gets this run needs its frozen layers too, those of {told}")
    bad = [item for item in found if not item.clean]
    lines = [f"{folder}: {count(len(found), 'file')} looked into"]
    for title, items in (
        ("safe to share", [item for item in found if item.clean and not item.working]),
        ("leave out (working files)", [item for item in found if item.clean and item.working]),
    ):
        lines += [f"{title}: {len(items)}", *_listed(items, found)]
    lines.append(f"NOT CLEAN: {len(bad)}")
    for item in bad:
        lines.append(f"  {printable(item.name)}" + (f"  ({item.working})" if item.working else ""))
        for kind, places in item.what.items():
            shown = "; ".join(dict.fromkeys(filter(None, places[:_PLACES_SHOWN])))
            more = f" and {len(places) - _PLACES_SHOWN} more" if len(places) > _PLACES_SHOWN else ""
            lines.append(f"    {kind}" + (f" ({len(places)}): {printable(shown)}{more}" if shown else ""))
        lines += [f"    Fix: {text}" for text in item.remedies]
    named = [item.name for item in found if SHOWN in item.what]
    lines.append(f"made with show_patient=true: {', '.join(map(printable, named)) or 'none says so'}")
    lines += [f"note: {note}" for note in notes]
    return "\n".join([*lines, *_LIMITS]), not bad


def _listed(items: list[Finding], found: list[Finding]) -> Iterator[str]:
    """A line per file; one for a folder of many that hold nothing."""
    top = {item.name: item.name.partition("/")[0] + "/" for item in found if "/" in item.name}
    plain = Counter(top[item.name] for item in items if item.name in top and not item.what)
    whole = Counter(top.values())
    folded = {name for name, number in plain.items() if number > _FOLDED and number == whole[name]}
    for name in sorted(folded):
        yield f"  {printable(name):32}  all {plain[name]} files in it"
    for item in items:
        if top.get(item.name) not in folded:
            what = ", ".join(filter(None, (item.working, *(f"{kind} ({len(p)})" for kind, p in item.what.items()))))
            yield f"  {printable(item.name):32}  {what}".rstrip()


_LIMITS = (
    f"looked into: packed parts of a file to {EXPANDED >> 20} MiB and {DEPTH} deep; "
    "what was not opened counts as not clean",
    "not seen: text in pictures, extended attributes, words cut by markup, initials and nicknames, base85, base64 of "
    "fewer than 16 letters without its =, and deflate, zstd or LZ4 in the middle of a file",
)
_FOLDED = 6  # files of one folder that are listed one by one
