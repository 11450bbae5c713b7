"""``hemlearn doctor run=DIR share=true``: what tells who a patient or the user is, looked for in every file."""

from __future__ import annotations

import html
import io
import json
import logging
import re
import zipfile
import zlib
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.data.readers import reader_for
from hemlearn.data.readers.dicom_file import open_dicom
from hemlearn.data.readers.dicom_personal import PERSONAL, personal
from hemlearn.reading.overlap import training_manifest
from hemlearn.training.run import Run
from hemlearn.util.documents import load_json
from hemlearn.util.errors import HemlearnError, RunError
from hemlearn.util.privacy import KEY_FILE, tells_somebody, user_names
from hemlearn.util.secrets import mask
from hemlearn.util.tables import read_csv

# Files that are not made to be handed on, and what they are.
WORKING = {
    **dict.fromkeys(("config.yaml", "provenance.json"), "says where data lie"),
    **dict.fromkeys(("split.csv", "predictions.parquet"), "table of ids"),
    **dict.fromkeys(("slices.*", "series.*", "patients.*", "pages.csv", "submission.csv"), "table of ids"),
    **dict.fromkeys(("failures.csv", "left_out.csv", "skipped.csv", "overlap.csv", "duplicates.csv"), "list of ids"),
    **dict.fromkeys(("manifest.parquet", "audits.json", "journal.jsonl"), "working file"),
    **dict.fromkeys((".mlflow_run", "meta.yaml", "debug*.log"), "of the tracker on this machine"),
    KEY_FILE: "gives back the ids that pseudonyms stand for",
    ".lock": "lock",
    "*.wandb": "sent by `wandb sync`, which leaves out where its parts lie here",
}
_SHOWN = {"failures.csv": "compare.json"}  # a file of that name is made to be shown where the other lies beside it
IDS, NAMES, PLACES, USER, SECRETS = "ids", "names from headers", "absolute paths", "user name", "secrets"
UNSEEN = "not looked into"
_COLUMNS = ("patient_id", "study_id", "series_id", "slice_id", "path", "item")
_HEADERS = 500  # patients whose headers are read
_WORDS = re.compile(rb"[^\s\x00-\x20'\"`,;:()\[\]{}<>=|&\\]+")
_PLACE = re.compile(rb"(?<![\w.:/])/(?:home|Users|root|mnt|data|srv|media|private|tmp|var)/[\w.-]|[A-Z]:\\\\?Users\\")
_ADDRESS = re.compile(rb"://[^\s/'\"@<>]{1,200}:[^\s/'\"@<>*]{1,200}@")
_MOST = 64 << 20  # bytes of one piece that are looked at


@dataclass(frozen=True)
class Finding:
    """One file.

    Args:
        name: Relative to the folder.
        what: Kind of what identifies -> how many different ones.
        working: Why it is not made to be handed on; "" where it is.
    """

    name: str
    what: dict[str, int]
    working: str = ""

    @property
    def clean(self) -> bool:
        """Whether it is as it should be: a working file may hold ids and places, nothing may hold a secret."""
        return not (SECRETS in self.what or (self.what and not self.working))


@dataclass
class Wanted:
    """What is looked for: whole words, other texts, and the kind of each."""

    words: dict[bytes, str] = field(default_factory=dict)
    texts: dict[bytes, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, values: Iterable[object], kind: str) -> None:
        """Look for values, and for how JSON, HTML and messages write them."""
        for value in dict.fromkeys(map(str, values)):
            if not tells_somebody(value):
                continue
            for form in {value, json.dumps(value)[1:-1], html.escape(value), ascii(value)[1:-1]}:
                raw = form.encode(errors="surrogatepass")
                (self.words if _WORDS.fullmatch(raw) else self.texts).setdefault(raw.lower(), kind)

    def found(self, raw: bytes) -> Iterator[tuple[str, bytes]]:
        """Kind and value of everything that stands in some bytes."""
        raw_case, raw = raw, raw.lower()
        for word in set(_WORDS.findall(raw)):
            # A path may be of others; in binary files the length of a text stands before it, as a letter at times.
            for part in {word, word.strip(b"."), word[1:], word[2:], *word.split(b"/"), *re.split(rb"[/_-]", word)}:
                if part in self.words:
                    yield self.words[part], part
        yield from ((kind, text) for text, kind in self.texts.items() if text in raw)
        yield from ((PLACES, found[0]) for found in _PLACE.finditer(raw_case))
        yield from ((SECRETS, b"") for _ in _ADDRESS.finditer(raw_case))


def look(folder: Path) -> tuple[list[Finding], list[str]]:
    """What identifies in every file below a folder, and notes on what could not be looked for.

    Raises:
        RunError: No folder, or an empty one.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() or file.is_symlink())
    if not files:
        raise RunError(f"run={folder}: no folder with files", remedy="give a run folder, or what a command wrote")
    logging.disable(logging.CRITICAL)  # what the readers warn of names ids
    try:
        wanted = _wanted(folder, files)
    finally:
        logging.disable(logging.NOTSET)
    return [_look(file, folder, wanted) for file in files], wanted.notes


def _look(file: Path, folder: Path, wanted: Wanted) -> Finding:
    name = file.relative_to(folder).as_posix()
    found: dict[str, set[bytes]] = {}
    try:
        if file.is_symlink():
            raise OSError("a link: what it names is not part of this folder")
        for piece in (name.encode(errors="surrogateescape"), *_pieces(file.name, file.read_bytes())):
            for kind, value in wanted.found(piece):
                found.setdefault(kind, set()).add(value)
            if len(piece) < 1 << 22 and b"\0" not in piece and mask(text := piece.decode(errors="replace")) != text:
                found.setdefault(SECRETS, set()).add(b"")
    except (OSError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        wanted.notes.append(f"{name}: could not be looked into ({error})")
        found.setdefault(UNSEEN, set()).add(b"")
    why = next((why for pattern, why in WORKING.items() if fnmatch(file.name, pattern)), "")
    mark = _SHOWN.get(file.name)
    if mark and (file.parent / mark).is_file():
        why = ""
    return Finding(name, {kind: len(values) for kind, values in found.items()}, why)


def _pieces(name: str, raw: bytes) -> Iterator[bytes]:
    """The bytes of a file, and what is packed in it; weights of networks are numbers and are passed over."""
    if name.endswith(".parquet"):
        table = pd.read_parquet(io.BytesIO(raw))
        for column in table.select_dtypes(exclude="number"):
            yield "\n".join(map(str, table[column].unique())).encode(errors="surrogateescape")
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            for item in packed.infolist():
                yield item.filename.encode()
                if not re.search(r"(^|/)data/\d+$|/weights/", item.filename) and item.file_size <= _MOST:
                    yield from _pieces(item.filename, packed.read(item))
        return
    yield raw[:_MOST]
    if name.endswith(".png"):
        for found in re.finditer(rb"(?:zTXt|iTXt)[^\0]*\0+(x\x9c.*)", raw, re.DOTALL):
            with suppress(zlib.error):
                yield zlib.decompressobj().decompress(found[1], _MOST)
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=]{64,})", raw):
        with suppress(ValueError):
            yield b64decode(found[1])


def _wanted(folder: Path, files: list[Path]) -> Wanted:
    wanted, home = Wanted(), Path.home()
    wanted.add(user_names(), USER)
    wanted.add({str(home), str(folder.resolve()), str(Path.cwd())} - {"/"}, PLACES)
    for file in [*files, folder.absolute().parent / KEY_FILE]:
        with suppress(OSError, ValueError, HemlearnError):
            if file.name == KEY_FILE:
                lines = [load_json(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
                ids = [(key, str(value)) for line in lines for key, value in line.items() if key != "salt"]
                # A folder of input is called `one` or `case` at times, which stands everywhere and tells nobody.
                wanted.add((v for key, v in ids if not (key.startswith(("input-", "folder-")) and v.isalpha())), IDS)
            elif any(fnmatch(file.name, pattern) for pattern in WORKING) and file.suffix in (".csv", ".parquet"):
                table = pd.read_parquet(file) if file.suffix == ".parquet" else read_csv(file)
                for name in _COLUMNS:
                    if name in table and not (name == "item" and (file.parent / _SHOWN["failures.csv"]).is_file()):
                        wanted.add(table[name].unique(), IDS)
    run = Run(folder)
    if run.status:
        _headers(run, wanted)
    return wanted


def _headers(run: Run, wanted: Wanted) -> None:
    """What the headers of the run's data say of people, of a file of each patient."""
    data = run.provenance.get("data", {})
    if data.get("synthetic"):
        return
    wanted.add([data.get("root", "")], PLACES)
    try:
        manifest, why = training_manifest(run)
    except HemlearnError as error:
        manifest, why = None, error.problem
    if manifest is None:
        wanted.notes.append(f"names in the headers of the data were not looked for: {why}")
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
        wanted.notes.append(f"names in headers are those of {len(rows)} of {len(first)} patients")


def report(folder: Path) -> tuple[str, bool]:
    """What ``hemlearn doctor`` prints, and whether everything that may be shared is clean."""
    found, notes = look(folder)
    lines = [f"{folder}: {len(found)} files looked into"]
    groups = {
        "safe to share": [item for item in found if item.clean and not item.working],
        "leave out (working files)": [item for item in found if item.clean and item.working],
        "NOT CLEAN": [item for item in found if not item.clean],
    }
    for title, items in groups.items():
        lines.append(f"{title}: {len(items)}")
        short = Counter(item.name.partition("/")[0] + "/" for item in items if "/" in item.name and not item.what)
        shown = [(f"{name} ({number} files)", "") for name, number in short.items() if number > _FOLDED]
        shown += [
            (item.name, ", ".join(filter(None, (item.working, *(f"{k} ({n})" for k, n in item.what.items())))))
            for item in items
            if item.what or short[item.name.partition("/")[0] + "/"] <= _FOLDED
        ]
        lines += [f"  {name:32}  {what}".rstrip() for name, what in shown]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)]), not groups["NOT CLEAN"]


_FOLDED = 6  # files of one folder that are listed one by one
