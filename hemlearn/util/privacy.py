"""What tells who somebody is, where he works or how he logs in, taken out of what is shown, sent or logged.

Ids of patients, studies, series and slices become pseudonyms (:class:`Pseudonyms`): a keyed hash, so that nobody
without the key file can find or guess the id. Absolute paths become their last part (:func:`shown`). Working tables,
such as those of ``hemlearn predict``, keep the user's own ids: they are joined to his records and stay with him.
"""

from __future__ import annotations

import getpass
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from hemlearn.util.errors import RunError
from hemlearn.util.files import full_disk, made_once
from hemlearn.util.secrets import mask, masked
from hemlearn.util.signatures import is_signed, sign

logger = logging.getLogger(__name__)
KEY_FILE = "pseudonyms.key"
KEY_FILES = "pseudonyms*.key"  # those of other users beside it
STAYS_MARK = "stays-here"  # of a page with pictures and ids of patients, whatever it is called
NO_IDS = ("salt", "signature")  # what the first line of a key file holds
_SALT = re.compile("[0-9a-f]{64}")
_DIGITS = 12  # hexadecimal ones of a pseudonym: 48 bits, so that a million slices share none
_KINDS = {"patient_id": "patient", "study_id": "study", "series_id": "series", "slice_id": "slice", "path": "file"}
_PATH = re.compile(
    r"(?:(?<=file://)|(?<![\w.~/:<-]))(?:/|~/|[A-Za-z]:\\|\\\\(?=\w))[^\s:,;'\"()<>|=]+"
)  # an absolute one in a text
_WORD = re.compile(r"[^\s'\"`,;:()\[\]{}<>=|]+")
_MANY = 200_000  # slices; of more, texts are not searched for single ones
_SHORT, _SHORT_NUMBER = 3, 5
_NAMED = re.compile(r"\b(patients?|series|study|studies|slices?) ([^\s'\"`,;:()\[\]{}<>=|]+)")  # an id in a sentence
_COMMON = {
    *("data", "input", "series", "slice", "slices", "dicom", "image", "images", "study", "patient", "patients", "head"),
    *("brain", "train", "val", "test", "any", "left", "right", "all", "none", "file", "folder", "table"),
}


def shown(value: Any) -> Any:
    """A value, a text, or all texts of a tree without secrets and without the folders of absolute paths.

    >>> shown({"root": "/home/jane/data/head_ct", "uri": "https://jane:secret@host"})
    {'root': 'head_ct', 'uri': 'https://***@host'}
    """
    return _each(masked(value), _without_folders)


def _without_folders(text: str) -> str:
    if text.startswith(("/", "~/", "\\\\")) and ": " not in text and "\n" not in text:
        # Nothing but a path; it may hold blanks.
        return _last(text)
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    return _PATH.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_each(item, change) for item in value)
    return value


def tells_somebody(given: str) -> bool:
    """Whether an id may tell who somebody is; a shorter or common word tells nobody, and stands for much else."""
    return len(given) >= (_SHORT_NUMBER if given.isdigit() else _SHORT) and given.lower() not in _COMMON


def folders_of_one(table: Any) -> list[str]:
    """Names of the folders of a pandas table's files (``path``) that hold one patient's alone."""
    owners: dict[str, set[str]] = {}
    if "path" in table and "patient_id" in table:
        places = table["path"].astype(str).str.rpartition("/")[0]
        for folder, patient in dict.fromkeys(zip(places, table["patient_id"], strict=True)):
            for part in folder.split("/"):
                owners.setdefault(part, set()).add(patient)
    return [part for part, patients in owners.items() if len(patients) == 1]


class Pseudonyms:
    """Names that tell nobody, for the ids of one output; equal ids have equal names as long as the key file is there.

    Args:
        folder: What is written: the key file lies beside it, so that the folder can be handed on; inside it where
            nothing can be written beside. Runs of one experiment share theirs. A key that this user has not made is
            not used: somebody who knows it could find out who is meant.
        show: Give every id as it is (``show_patient=true``).
    """

    def __init__(self, folder: Path | str, *, show: bool = False) -> None:
        self.folder = Path(folder)
        self.show = show
        self._known: dict[str, tuple[str, str]] = {}  # what may stand in a text -> the id it is, and its kind
        self._short: dict[str, tuple[str, str]] = {}  # the same of words that count where they are called an id
        self._odd: list[str] = []  # those that are no single word
        self._places: dict[str, str] = {}

    @cached_property
    def file(self) -> Path:
        """The key file of this user, made where there is none, readable by its owner alone.

        Raises:
            RunError: It can neither be read nor made.
        """
        full = None
        for place in dict.fromkeys((self.folder.absolute().parent, self.folder)):
            try:
                place.mkdir(parents=True, exist_ok=True)
                return _own_key(place)
            except OSError as error:
                logger.debug("%s: %s", place, error)
                full = full_disk(error, RunError, place / KEY_FILE)
        raise full or RunError(
            f"{self.folder.absolute().parent / KEY_FILE}: the key of the pseudonyms cannot be written, or not be read",
            remedy="give an output folder of your own, or show_patient=true",
        )

    @cached_property
    def _content(self) -> tuple[bytes, dict[str, str]]:
        """The salt, and pseudonym -> id of all that were given before; a line that was not finished is none."""
        first, *lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
        found: dict[str, Any] = {}
        for line in lines:
            with suppress(ValueError):
                content = json.loads(line)
                found |= content if isinstance(content, dict) else {}
        return bytes.fromhex(json.loads(first)["salt"]), found

    @property
    def ids(self) -> dict[str, str]:
        """Pseudonym -> id of all that were given so far."""
        return dict(self._content[1])

    @property
    def mark(self) -> str:
        """What tells these names from those of another key; "" where ids are shown."""
        return "" if self.show else self._hash("")

    def _hash(self, text: str) -> str:
        return hmac.new(self._content[0], text.encode(errors="surrogatepass"), "sha256").hexdigest()[:_DIGITS]

    def of(self, given: object, kind: str = "patient") -> str:
        """The pseudonym of an id: ``patient-3f9a2c71b0de``.

        Args:
            given: The id.
            kind: What it names: patient, study, series, slice, file ...
        """
        return self.column([given], kind)[0]

    def column(self, values: Iterable[object], kind: str) -> list[str]:
        """The pseudonyms of many ids, written down at once."""
        texts = [str(value) for value in values]
        if self.show:
            return texts
        _, table = self._content
        names = {text: f"{kind}-{self._hash(text)}" for text in dict.fromkeys(texts)}
        fresh = {name: text for text, name in names.items() if name not in table}
        if fresh:
            table.update(fresh)
            lines = "".join(json.dumps({name: text}) + "\n" for name, text in fresh.items())
            with self.file.open("ab", buffering=0) as file:  # one write: those of other processes stand before or after
                content = b"\n" + lines.encode()
                while content:  # a disk that fills up takes a part of it without an error
                    content = content[file.write(content) :]
        return [names[text] for text in texts]

    def table(self, table: Any) -> Any:
        """A pandas table with pseudonyms in its columns of ids."""
        kinds = {name: kind for name, kind in _KINDS.items() if name in table}
        return table.assign(**{name: self.column(table[name], kind) for name, kind in kinds.items()})

    # --- texts ---
    def learn(self, ids: Iterable[object], kind: str) -> None:
        """Take ids out of the texts to come."""
        for given in ids:
            for text in dict.fromkeys((str(given), ascii(given)[1:-1])):  # messages show letters by their codes
                if text in self._known:
                    continue
                if not tells_somebody(text):
                    self._short[text] = (str(given), kind)
                    continue
                self._known[text] = (str(given), kind)
                if not _WORD.fullmatch(text):
                    self._odd.append(text)
        self._odd.sort(key=len, reverse=True)

    def learn_table(self, table: Any) -> None:
        """Take the ids and files of a pandas table out of the texts to come, and folders that are one patient's."""
        for name, kind in _KINDS.items():
            if name in table and (len(table) <= _MANY or name not in ("slice_id", "path")):
                self.learn(dict.fromkeys(table[name]), kind)
        self.learn(folders_of_one(table), "folder")

    def learn_manifest(self, manifest: Any) -> None:
        """Take the ids and files of a data set out of the texts to come, those that were left out too."""
        self.learn_table(manifest.table)
        self.learn(manifest.skipped["item"], "file")
        self.place(manifest.root, "DATA")
        if manifest.source == "multi":  # what its parts say of their own ids has no part's name in front
            bare = {name: [x.partition("/")[2] for x in manifest.table[name]] for name in _KINDS if name != "path"}
            self.learn_table(manifest.table.assign(**bare))
            self.learn([str(item).partition("/")[2] for item in manifest.skipped["item"]], "file")

    def place(self, path: Path | str, name: str) -> None:
        """Call a folder by a name in the texts to come; what lies in it is a file that tells nobody."""
        self._places[str(Path(path).expanduser().absolute())] = name

    def text(self, given: object) -> str:
        """A text without the ids that are known, without absolute paths and without secrets."""
        text = mask(str(given))
        if not self.show:
            text = self._without_places(text)
            for item in self._odd:
                if item in text:
                    text = text.replace(item, self.of(*self._known[item]))
            if self._known:
                text = _WORD.sub(lambda found: self._word(found[0]), text)
            if self._short:
                text = _NAMED.sub(lambda found: f"{found[1]} {self._named(found[2])}", text)
        return str(shown(text))

    def _without_places(self, text: str) -> str:
        for path in sorted(self._places, key=len, reverse=True):
            if path in text:
                name, pattern = self._places[path], re.compile(re.escape(path) + r"(/[^:'\"\n]*[^:'\"\n.,;)\s])?")
                text = pattern.sub(lambda found, name=name: self._inside(name, found[1]), text)  # type: ignore[misc]
        return text

    def _inside(self, name: str, rest: str | None) -> str:
        inner = (rest or "").strip("/")
        return name if not inner else f"{name}/{self.of(*self._known.get(inner, (inner, 'file')))}"

    def _named(self, word: str) -> str:
        bare = word.rstrip(".")
        return word if bare not in self._short else self.of(*self._short[bare]) + word[len(bare) :]

    def _word(self, word: str) -> str:
        known = self._known.get(word)
        if known is None:
            bare = word.rstrip(".")  # the end of a sentence
            if bare != word and bare in self._known:
                return self._word(bare) + word[len(bare) :]
            whole, sign, frame = word.partition("#")
            if sign and whole in self._known:
                return f"{self._word(whole)}#{frame}"
            if "/" in word and any(part in self._known for part in word.split("/")):
                return self.of(word, "file")
            return word
        return self.of(*known)

    def tree(self, value: Any) -> Any:
        """All texts of a tree, by :meth:`text`."""
        return _each(masked(value), self.text)


def _own_key(place: Path) -> Path:
    """This user's key file in a folder; one that he has not signed stays where it is, and his own lies beside it.

    Raises:
        OSError: It cannot be read or written.
        RunError: There is one, and nothing to know one's own by.
    """
    made = new_key()
    whose = sign("user", "", make=True)  # None: the cache takes no run.key, so that nobody is known again
    for name in (KEY_FILE, *([f"pseudonyms-{whose[:8]}.key"] if whose else [])):
        file = place / name
        there = file.exists()
        made_once(file, lambda: made.encode() + b"\n")
        with file.open("rb") as stream:
            first = stream.readline(1000).decode(errors="replace").strip()
        if first == made or _is_own(first):
            if not there and name != KEY_FILE:
                logger.warning(
                    "%s: made by somebody else, or before keys were signed: not used; pseudonyms are by %s",
                    KEY_FILE,
                    file,
                )
            return file
    raise RunError(
        f"{place / KEY_FILE}: not signed by this user, and there is no run.key in the cache to sign another with",
        remedy="set $HEMLEARN_CACHE to a folder that can be written, choose another output, or show_patient=true",
    )


def new_key() -> str:
    """First line of a key file: a salt, and this user's signature of it."""
    salt = secrets.token_hex(32)
    return json.dumps({"salt": salt, "signature": sign("pseudonyms", salt, make=True)})


def _is_own(line: str) -> bool:
    try:
        content = json.loads(line)
        salt = str(content["salt"])
        return bool(_SALT.fullmatch(salt)) and is_signed("pseudonyms", salt, content.get("signature"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def wandb_settings(**chosen: Any) -> Any:
    """Settings of Weights & Biases that send no command line, place, host or user beside the run's own values."""
    import wandb

    private = {"x_disable_meta": True, "disable_git": True, "program": "hemlearn", "host": "", "username": ""}
    own = {**private, "console": "off", "silent": True, **chosen}
    return wandb.Settings(**{key: value for key, value in own.items() if key in wandb.Settings.model_fields})


def user_names() -> set[str]:
    """How this user is called by the system and by his home folder, where that tells who he is."""
    found = {Path.home().name}
    with suppress(OSError, KeyError):
        found.add(getpass.getuser())
    return {name for name in found if len(name) > 3} - {"root", "user", "ubuntu", "admin", "home", os.sep}
