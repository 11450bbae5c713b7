"""What a folder says that nobody of ours has signed: keys of pseudonyms, places of data, runs of before signatures."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.attack import series
from tests.attack.case import Case, Judge, Outcome, Trained, accepted, both, refused, told
from tests.attack.runs import COMMANDS, VALUES, content, copied, damage, repaired, seal, trained_again
from tests.attack.security import setting
from tests.attack.splits import TRAIN

KIND = "strangers"
SALT = "0" * 64
PLANTED: dict[str, str] = {
    "a known salt": json.dumps({"salt": SALT}),
    "a known salt, signed by another": json.dumps({"salt": SALT, "signature": "f" * 64}),
    "a known salt, the signature a list": json.dumps({"salt": SALT, "signature": [1]}),
    "no salt": "{}",
    "a list": "[1]",
    "half a megabyte in one line": json.dumps({"salt": SALT, "x": "x" * 500_000}),
}
NAMING = ("predict", "explain", "compare")


def _planted() -> Iterator[Case]:
    for i, (name, text) in enumerate(PLANTED.items()):
        command = NAMING[i % len(NAMING)]

        def build(folder: Path, trained: Trained, text: str = text, command: str = command) -> Sequence[str]:
            run = copied(folder, trained, ours=False)
            (folder / "out").mkdir()
            for place in (folder, folder / "out"):
                (place / "pseudonyms.key").write_text(text + "\n")
            return COMMANDS[command][0](folder, trained, run)

        judge = both(accepted("made by somebody else"), _other_names(text))
        yield Case(KIND, f"{command}: the key is {name}", build, judge)


def _other_names(text: str) -> Judge:
    """The planted key is as it was, and no name that is written follows from it."""

    def judge(got: Outcome) -> str:
        if (got.folder / "pseudonyms.key").read_text() != text + "\n":
            return "the planted key is written to"
        keys = list(got.folder.glob("pseudonyms-*.key"))
        if len(keys) != 1:
            return f"{len(keys)} keys of this user"
        ids = {k: v for line in keys[0].read_text().splitlines() if line for k, v in json.loads(line).items()}
        ids = {name: given for name, given in ids.items() if name not in ("salt", "signature")}
        known = [hmac.new(bytes.fromhex(SALT), str(v).encode(), "sha256").hexdigest()[:12] for v in ids.values()]
        wrote = "".join(f.read_text("utf-8", errors="replace") for f in (got.folder / "out").rglob("*") if f.is_file())
        if any(name in wrote for name in known):
            return "names follow from the planted salt"
        return "" if any(name in wrote for name in ids) else "no pseudonym is written"

    return judge


def _of_its_data(command: str, how: str, words: Sequence[str], judge: Judge, key: str = "data.root") -> Case:
    """A run whose config.yaml and provenance.json name a folder of this machine."""

    def build(folder: Path, trained: Trained) -> Sequence[str]:
        run, root = copied(folder, trained, ours=how == "ours"), str(trained.work / "pictures")
        setting(key, root)(run / "config.yaml", run)
        content(lambda tree: tree["data"].update(root=root))(run / "provenance.json", run)
        seal(run)
        seal(run, files=False, key=(folder / "cache/run.key").read_bytes() if how == "ours" else b"")
        argv = [word for word in COMMANDS[command][0](folder, trained, run) if not word.startswith("check=")]
        if command == "explain":
            argv = [word for word in argv if not word.startswith("data.root")]
        given = {"GIVEN": f"data.root={root}"}
        return [*argv, *(given.get(word, word) for word in words), *(["check=4"] if command == "export" else [])]

    return Case(KIND, f"{command}: data where a run says, {how}{' '.join(['', *words])}", build, judge)


def _data() -> Iterator[Case]:
    away = refused("made elsewhere", "data.root=", "trust=true")
    for command in ("explain", "export"):
        yield _of_its_data(command, "elsewhere", [], away)
        yield _of_its_data(command, "elsewhere", ["trust=true"], accepted())
        yield _of_its_data(command, "elsewhere", ["GIVEN"], accepted())
        yield _of_its_data(command, "ours", [], accepted())
    yield _of_its_data("evaluate", "elsewhere", [], accepted("not looked for", "trust=true"))
    yield _of_its_data("evaluate", "ours", [], accepted())


# --- runs made before provenance had a checksum ------------------------------------------------------------------


def _older(trained: Trained, folder: Path, change: Callable[[Path], object] = lambda run: None) -> Path:
    run = copied(folder, trained)
    change(run)
    content(lambda t: {k: v for k, v in t.items() if k not in ("provenance", "signature")})(run / "status.json", run)
    return run


def _not_trained(got: Outcome) -> str:
    return "its epochs were trained again" if "epoch 1/1" in got.out + got.err else ""


def _of_before() -> Iterator[Case]:
    for command in ("predict", "evaluate", "explain", "export", "compare", "doctor", "plan", "runs"):
        yield Case(
            KIND, f"{command}: an older run", lambda folder, trained, c=command: COMMANDS[c][0](
                folder, trained, _older(trained, folder)), told("provenance.json", "older runs"))  # fmt: skip

    def again(folder: Path, trained: Trained) -> Sequence[str]:
        _older(trained, folder)
        return trained_again(trained, "calibrated")

    yield Case(KIND, "train: an older run", again, both(repaired(file="older runs"), _not_trained))

    def edited(folder: Path, trained: Trained) -> Sequence[str]:
        _older(trained, folder, lambda run: damage(run, trained, *VALUES["a weight"]))
        return trained_again(trained, "calibrated")

    yield Case(KIND, "train: an older run with a weight edited", edited, repaired(file="best.ckpt"))


# --- names in headers, and weights that nobody reads -------------------------------------------------------------


def _named() -> Iterator[Case]:
    for command in ("index", "prepare", "train"):

        def build(folder: Path, trained: Trained, command: str = command) -> Sequence[str]:
            series.dicom(folder / "in", PatientName="Doe^Jane", PatientBirthDate="19500102")
            return [command, *series.index(folder)[1:]]

        yield Case(KIND, f"{command}: names in headers", build, both(told("tell who people are"), _no_name))

    def not_read(folder: Path, trained: Trained) -> Sequence[str]:
        return ["train", *TRAIN, "data.root=nowhere", "backbone.weights=mine.pth"]

    yield Case(KIND, "train: weights without pretrained", not_read,
               told("backbone.weights=mine.pth has no effect: backbone.pretrained=false"))  # fmt: skip


def _no_name(got: Outcome) -> str:
    return "the name is printed" if "Jane" in got.out + got.err else ""


def cases() -> list[Case]:
    """All of them."""
    return [*_planted(), *_data(), *_of_before(), *_named()]
