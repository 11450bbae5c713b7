"""Run folders of somebody who means harm: code to run, variables to tell, places to write to, names to show.

Every folder is sealed: its checksums fit. What must never appear without ``trust=true`` is called ``canary``; the value
of the variable ``SECRET`` is never printed or written.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.attack.case import Case, Judge, Outcome, Trained, accepted, both, refused, told
from tests.attack.runs import (
    BEST,
    COMMANDS,
    LAST,
    Damage,
    as_before,
    checkpoint,
    content,
    copied,
    interrupted,
    no_canary,
    seal,
    table,
    trained_again,
)
from tests.attack.splits import TRAIN
from tests.attack.tables import manifest

KIND = "security"
SECRET = "hunter2-b7e1"
APPLIED = ("predict", "evaluate", "explain", "export")
EVERY = (*APPLIED, "compare", "plan", "runs", "doctor")


def setting(key: str, value: Any) -> Damage:
    """A key of config.yaml; a number in it is a place of a list."""

    def damage(file: Path, other: Path) -> None:
        tree = node = yaml.safe_load(file.read_text("utf-8"))
        *way, last = key.split(".")
        for part in way:
            node = node.setdefault(part, {})
        node[last] = value
        file.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")

    return damage


def as_key(key: str, value: Any) -> list[tuple[str, Damage]]:
    """The edit of one key of config.yaml."""
    return [("config.yaml", setting(key, value))]


def quiet(got: Outcome) -> str:
    """The variable's value is nowhere."""
    if SECRET in got.out + got.err:
        return "the variable's value is printed"
    wrote = [file for file in got.folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    return f"the variable's value stands in {wrote[0].name}" if wrote else ""


def ran(got: Outcome) -> str:
    """The code was trusted, so that it has run."""
    return "" if list(got.folder.glob("canary*")) else "trusted, but the code was not imported"


def stranger(
    name: str,
    command: str,
    edits: Sequence[tuple[str, Damage]],
    judge: Judge,
    *words: str,
    ours: bool = False,
    signed: bool = False,
    write: Callable[[Path, Path], object] | None = None,
) -> Case:
    """A command on a sealed copy of a run with some files edited; ``signed``: by this user, last of all."""

    def build(folder: Path, trained: Trained) -> Sequence[str]:
        run = copied(folder, trained, ours=ours)
        for file, change in edits:
            change(run / file, run / file)
        seal(run)
        if write is not None:
            write(folder, run)
            seal(run, files=False, key=(folder / "cache/run.key").read_bytes() if signed else b"")
        return [*COMMANDS[command][0](folder, trained, run), *words]

    return Case(KIND, f"{command}: {name}", build, both(no_canary, quiet, judge), environment={"SECRET": SECRET})


# --- names of code -----------------------------------------------------------------------------------------------

MKDIR = {"_target_": "os.mkdir", "path": "canary"}
SHELL = {"_target_": "torch.utils.collect_env.run", "command": "mkdir canary"}
FLIP = "kornia.augmentation.RandomHorizontalFlip"
EVIL: dict[str, dict[str, Any]] = {
    "os.mkdir": MKDIR,
    "by position": {"_target_": "os.mkdir", "_args_": ["canary"]},
    "a partial": {**MKDIR, "_partial_": True},
    "functools.partial": {"_target_": "functools.partial", "_args_": [MKDIR]},
    "Hydra's get_method": {"_target_": "hydra.utils.get_method", "path": "os.mkdir"},
    "Hydra's instantiate": {"_target_": "hydra.utils.instantiate", "config": MKDIR},
    "a shell in a flip's argument": {"_target_": FLIP, "p": SHELL},
    "a shell deep in a flip's argument": {"_target_": FLIP, "p": [{"a": [SHELL]}]},
    "a shell below torch.optim": {"_target_": "torch.optim.optimizer.torch.os.system", "command": "mkdir canary"},
    "a shell below torch.nn": {"_target_": "torch.nn.modules.module.torch.os.mkdir", "path": "canary"},
    "a shell below timm.optim": {"_target_": "timm.optim.optim_factory.torch.os.mkdir", "path": "canary"},
    "a shell below hemlearn": {"_target_": "hemlearn.util.files.os.mkdir", "path": "canary"},
    "a function of hemlearn": {"_target_": "hemlearn.util.files.write_text", "path": "canary", "text": "x"},
    "a phantom": {"_target_": "hemlearn.phantom.layouts.write_phantom", "layout": "head_ct", "out": "canary"},
    "torchvision's Lambda": {"_target_": "torchvision.transforms.Lambda", "lambd": MKDIR},
    "MONAI's Lambda": {"_target_": "monai.transforms.Lambda", "func": {**MKDIR, "_partial_": True}},
    "MONAI's reader of a class's name": {"_target_": "monai.transforms.LoadImage", "reader": "os.mkdir"},
    "Lightning's callback of functions": {"_target_": "pytorch_lightning.callbacks.LambdaCallback", "setup": MKDIR},
    "exec": {"_target_": "builtins.exec", "_args_": ["import os; os.mkdir('canary')"]},
    "a list of names": {"_target_": ["os.mkdir"], "path": "canary"},
    "blanks around": {"_target_": " os.mkdir ", "path": "canary"},
    "a colon": {"_target_": "os:mkdir", "path": "canary"},
    "a module that is not there": {"_target_": "nobody.nothing.Class"},
}
PLACES = ("augmentation.steps", "loss", "optimizer", "optimizer.schedule", "backbone", "channels", "freeze", "features",
          "sequence", "task", "metrics.mine", "callbacks.mine", "split", "data", "logger", "backbone.options.x",
          "trainer.options.x", "stage.set.x")  # fmt: skip
NAMED = r"names code|_target_|nobody|os.mkdir|cannot be|damaged"


def _code() -> Iterator[Case]:
    for i, (name, node) in enumerate(EVIL.items()):
        command = APPLIED[i % 4]
        place = setting("augmentation.steps", [node])
        yield stranger(f"{name} in an augmentation", command, [("config.yaml", place)], refused(NAMED))
    for i, key in enumerate(PLACES):
        value = [MKDIR] if key.endswith("steps") else MKDIR
        edits = as_key(key, value)
        yield stranger(f"os.mkdir as {key}", APPLIED[i % 4], edits, refused(NAMED))
    for command in ("compare", "plan", "runs", "doctor"):  # these import nothing
        edits = as_key("loss", MKDIR)
        yield stranger("os.mkdir as loss", command, edits, told("os.mkdir|_target_") if command == "doctor" else any_)
    # The hyper-parameters in a checkpoint name code: they are not asked.
    for i, name in enumerate(("os.mkdir", "a shell in a flip's argument", "a partial", "a shell below hemlearn")):
        hidden = checkpoint(lambda tree, name=name: tree["hyper_parameters"]["config"].update(loss=EVIL[name]) or tree)
        judge = accepted() if i else as_before
        yield stranger(f"{name} in the checkpoint", APPLIED[i], [(BEST, hidden), (LAST, hidden)], judge)
    for name in ("_target_", "_instantiator"):
        hidden = checkpoint(lambda tree, name=name: tree["hyper_parameters"].update({name: "os.mkdir"}) or tree)
        yield stranger(f"{name} beside the hyper-parameters", "predict", [(BEST, hidden)], as_before)
    hidden = checkpoint(lambda tree: tree.update(hparams_name="x", **{"hparams_type": "os.mkdir"}) or tree)
    yield stranger("a type of hyper-parameters", "predict", [(BEST, hidden)], as_before)


def any_(got: Outcome) -> str:
    """What matters is what did not happen."""
    return ""


# --- variables ---------------------------------------------------------------------------------------------------

ASKED = ("${oc.env:SECRET}", "${oc.decode:${oc.env:SECRET}}", "${oc.env:NOPE,${oc.env:SECRET}}", "x${oc.env:SECRET}y")
ASKING = ("name", "output_dir", "data.root", "data.cache_dir", "backbone.name", "backbone.note", "backbone.options.x",
          "augmentation.note", "split.file", "logger.project", "logger.tags", "stage.experiment",
          "experiment")  # fmt: skip


def _variables() -> Iterator[Case]:
    for i, key in enumerate(ASKING):
        value: Any = ASKED[i % len(ASKED)]
        edits = [("config.yaml", setting(key, [value] if key.endswith("tags") else value))]
        yield stranger(f"a variable asked for in {key}", EVERY[i % len(EVERY)], edits, any_)
    for i, key in enumerate(("task.labels", "plugins")):
        yield stranger(f"a variable asked for in {key}", EVERY[i], as_key(key, ASKED[:1]), any_)
    for file in ("metrics.json", "status.json", "provenance.json"):
        edits = [(file, content(lambda tree: tree.update(note=ASKED[0], version=ASKED[0], name=ASKED[0])))]
        yield stranger(f"a variable asked for in {file}", "export" if file[0] == "m" else "runs", edits, any_)
    hidden = checkpoint(lambda tree: tree["hyper_parameters"].update(config={"loss": ASKED[0]}) or tree)
    yield stranger("a variable asked for in the checkpoint", "predict", [(BEST, hidden)], as_before)


# --- files that hold code ----------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes the folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.mkdir, ("canary",))


def _script(file: Path, other: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)


def _extension(file: Path, other: Path) -> None:
    """A Parquet file whose column is of an Arrow type kept as a pickle, which old versions of pyarrow unpickle."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    old = pq.read_table(file)
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Evil())}
    fields = [field.with_metadata(metadata) if field.name == "z_mm" else field for field in old.schema]
    pq.write_table(old.cast(pa.schema(fields, metadata=old.schema.metadata)), file)


def _pandas(file: Path, other: Path) -> None:
    """Metadata of pandas that names a type of its own for a column."""
    import pyarrow.parquet as pq

    old = pq.read_table(file)
    meta = json.loads(old.schema.metadata[b"pandas"])
    for column in meta["columns"]:
        column["numpy_type"], column["pandas_type"] = "os.mkdir", "os.mkdir"
    pq.write_table(old.replace_schema_metadata({**old.schema.metadata, b"pandas": json.dumps(meta).encode()}), file)


PICKLES: dict[str, Damage] = {
    "a bare pickle": lambda file, other: file.write_bytes(pickle.dumps(Evil())),
    "an object in the checkpoint": checkpoint(lambda tree: {**tree, "more": Evil()}),
    "an object among the weights": checkpoint(lambda tree: tree["state_dict"].update(more=Evil()) or tree),
    "an object in the hyper-parameters": checkpoint(lambda tree: tree["hyper_parameters"].update(more=Evil()) or tree),
    "TorchScript": _script,
    "a pickle behind a zip's head": lambda file, other: file.write_bytes(b"PK\x03\x04" + pickle.dumps(Evil())),
}


def _pickles() -> Iterator[Case]:
    for i, (name, change) in enumerate(PICKLES.items()):
        yield stranger(f"{name} as best.ckpt", APPLIED[i % 4], [(BEST, change)], refused("best.ckpt"))
        yield _weights(f"{name} in a run as weights", change, refused("best.ckpt"))
    for name in ("an object in the checkpoint", "a bare pickle"):

        def resumed(folder: Path, trained: Trained, name: str = name) -> Sequence[str]:
            run = copied(folder, trained)
            interrupted(run)
            PICKLES[name](run / LAST, run / LAST)
            return trained_again(trained, "calibrated")

        # This user has not signed it: it is not opened, and training begins anew.
        anew = both(no_canary, accepted("last.ckpt"))
        yield Case(KIND, f"train goes on: {name} as last.ckpt", resumed, anew)
    for name, change in {"an Arrow type": _extension, "a type of pandas'": _pandas}.items():
        for command in ("compare", "plan"):
            yield stranger(f"{name} in predictions.parquet", command, [("predictions.parquet", change)], any_)
    for suffix in (".onnx", ".pkl", ".joblib", ".npz"):

        def given(folder: Path, trained: Trained, suffix: str = suffix) -> Sequence[str]:
            (folder / f"w{suffix}").write_bytes(pickle.dumps(Evil()))
            return _with_weights(folder, f"w{suffix}")

        yield Case(KIND, f"train: a pickle called {suffix} as weights", given, both(no_canary, refused(f"w{suffix}")))


def _with_weights(folder: Path, weights: str) -> list[str]:
    words = [word for word in TRAIN if "pretrained" not in word]
    return ["train", "data=table", f"data.manifest={manifest(folder / 'in')}", *words, "backbone.pretrained=true",
            "data.image_size=64", f"backbone.weights={weights}"]  # fmt: skip


def _weights(name: str, change: Damage, judge: Judge) -> Case:
    def build(folder: Path, trained: Trained) -> Sequence[str]:
        run = copied(folder, trained, ours=False)
        change(run / BEST, run / BEST)
        seal(run)
        return _with_weights(folder, str(run))

    return Case(KIND, f"train: {name}", build, both(no_canary, judge))


# --- places and names --------------------------------------------------------------------------------------------

UP = "../../../canary"
MARKUP = "<img src=x onerror=alert(1)>"


def ids(column: str, *values: str) -> Damage:
    """The first rows of each split of predictions.parquet are called so."""

    def change(frame: Any) -> None:
        for part, value in zip(("test", "val"), values, strict=False):
            old = frame.loc[frame["split"] == part, column].iloc[0]
            frame.loc[frame[column] == old, column] = value

    return table(change)


def unmarked(got: Outcome) -> str:
    """No page holds the markup as such."""
    pages = [file for file in got.folder.rglob("*") if file.suffix in (".html", ".md", ".svg")]
    bad = [file.name for file in pages if MARKUP in file.read_text("utf-8", errors="replace")]
    return f"{bad[0]}: markup of a name as such" if bad else ""


def _outside(folder: Path, run: Path) -> Path:
    place = folder / "elsewhere"
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    return place


def untouched(got: Outcome) -> str:
    """What a link in the run's folder leads to is as it was."""
    place = got.folder / "elsewhere"
    found = sorted(item.name for item in place.iterdir())
    text = (place / "mine.txt").read_text()
    return "" if (found, text) == (["mine.txt"], "mine") else f"written through a link: {found}, {text[:40]!r}"


def _places() -> Iterator[Case]:
    for i, key in enumerate(("name", "output_dir", "data.cache_dir", "data.root", "data.manifest", "split.file")):
        for command in (APPLIED[i % 4], APPLIED[(i + 1) % 4]):
            yield stranger(f"{key} leads away", command, as_key(key, UP), any_)
    for name, change in {
        "hash": content(lambda tree: tree.update(hash=UP)),
        "version": content(lambda tree: tree.update(version=UP)),
        "error": content(lambda tree: tree.update(state="failed", error="\x1b[31m[red]" + MARKUP)),
    }.items():
        for command in ("evaluate", "runs"):
            yield stranger(f"status.json, {name} leads away", command, [("status.json", change)], any_)
    listed = content(lambda tree: tree["files"].update({UP: "0" * 64, "/etc/passwd": "0" * 64}))
    for command in ("doctor", "predict"):
        yield stranger(
            "names that lead away among the checksums", command, [], any_,
            write=lambda folder, run: listed(run / "provenance.json", run),
        )  # fmt: skip
    for column in ("slice_id", "patient_id", "series_id"):
        for command in ("explain", "compare"):
            edits = [("predictions.parquet", ids(column, UP, "/" + UP))]
            yield stranger(f"{column} leads away", command, edits, any_)
        edits = [("predictions.parquet", ids(column, MARKUP, "=cmd|' /C calc'!A0"))]
        yield stranger(f"{column} is markup", "compare", edits, unmarked)
    for key in ("name", "backbone.note", "data.name"):
        edits = as_key(key, MARKUP)
        yield stranger(f"{key} is markup", "export" if key == "name" else "compare", edits, unmarked)
    sides = lambda file, other: file.write_text(file.read_text().replace("\n", f"\n{UP},train\n", 1))  # noqa: E731
    yield stranger("a patient who leads away", "evaluate", [("split.csv", sides)], any_)
    for name in ("train.log", "figures", "checkpoints", ".lock", "config.yaml", "status.json"):

        def linked(folder: Path, trained: Trained, name: str = name) -> Sequence[str]:
            run = copied(folder, trained)
            interrupted(run)
            place = _outside(folder, run)
            if (run / name).is_dir():
                shutil.rmtree(run / name)
                (run / name).symlink_to(place)
            else:
                (run / name).unlink(missing_ok=True)
                (run / name).symlink_to(place / "mine.txt")
            return trained_again(trained, "calibrated")

        yield Case(KIND, f"train goes on: {name} is a link", linked, both(no_canary, untouched))


# --- classes of one's own ----------------------------------------------------------------------------------------

PLUG = "from pathlib import Path\nPath('canary').touch()\n"
CODE = {"plug": {"version": "unknown", "sha256": hashlib.sha256(b"plug.py\n" + PLUG.encode()).hexdigest()}}
PLUGGED = as_key("plugins", ["plug"])


def plug(text: str = PLUG, code: Any = CODE) -> Callable[[Path, Path], None]:
    """A package of the user's beside the run, which names it; ``code``: its fingerprint in provenance."""

    def write(folder: Path, run: Path) -> None:
        (folder / "plug.py").write_text(text)
        told_of = {} if code is None else {"code": code}
        content(lambda tree: {**tree, **told_of})(run / "provenance.json", run)

    return write


def _plugins() -> Iterator[Case]:
    elsewhere = refused("made elsewhere", "plug", "trust=true")
    for command in APPLIED:
        yield stranger("a plug-in", command, PLUGGED, elsewhere, write=plug())
        yield _trusting(f"{command}: a plug-in, trusted", command, plug(), both(accepted(), ran))
    for command in ("compare", "plan", "runs", "doctor"):
        yield stranger("a plug-in", command, PLUGGED, any_, write=plug())
    changed = plug(PLUG + "x = 1\n")
    yield stranger("a changed plug-in", "predict", PLUGGED, elsewhere, write=changed)
    yield _trusting("predict: a changed plug-in, trusted", "predict", changed, refused("plug has changed"))
    yield _trusting("predict: a plug-in of one's own", "predict", plug(), both(accepted(), ran), ours=True)
    yield _trusting("predict: a changed plug-in of one's own", "predict", plug(PLUG + "x = 1\n"),
                    refused("plug has changed"), ours=True)  # fmt: skip
    for name, signature in {
        "none": None,
        "empty": "",
        "a list": [],
        "not ASCII": "\u00e9" * 64,
        "zeros": "0" * 64,
    }.items():
        forged = content(lambda tree, s=signature: {**tree, "signature": s})
        yield stranger(
            f"a plug-in, the signature {name}", "predict", PLUGGED, elsewhere, ours=True,
            write=lambda folder, run, forged=forged: (plug()(folder, run), forged(run / "status.json", run)),
        )  # fmt: skip
    yield stranger("a plug-in without its fingerprint", "predict", PLUGGED, elsewhere, write=plug(code=None))
    # trust= imports code and does nothing else: checksums still hold.
    yield stranger("a changed file, trusted", "predict", [], refused("metrics.json"), "trust=true",
                   write=lambda folder, run: (run / "metrics.json").write_text("{}"))  # fmt: skip
    yield stranger("nothing changed", "predict", [], as_before)
    yield stranger("nothing changed, trusted", "predict", [], as_before, "trust=true")
    for command in APPLIED[1:]:
        yield stranger("nothing changed", command, [], accepted())


def _trusting(name: str, command: str, write: Callable[[Path, Path], None], judge: Judge, ours: bool = False) -> Case:
    words = () if ours else ("trust=true",)
    made = stranger(name, command, PLUGGED, judge, *words, ours=ours, signed=ours, write=write)
    return Case(KIND, name, made.build, judge)


# --- what leaves the house ---------------------------------------------------------------------------------------

PERSON = "MEIERHUBER_1961"
SAID = f"{PERSON}, token={SECRET}"


def _member(run: Path) -> None:
    with zipfile.ZipFile(run / BEST, "a") as packed:
        packed.writestr("archive/data/99", SAID)


HIDDEN: dict[str, Callable[[Path], object]] = {
    "in a page": lambda run: (run / "page.html").write_text(SAID),
    "in a compressed log": lambda run: (run / "old.log.gz").write_bytes(gzip.compress(SAID.encode())),
    "in UTF-16": lambda run: (run / "notes.txt").write_bytes(SAID.encode("utf-16")),
    "in base64": lambda run: (run / "page.html").write_bytes(b"data:;base64," + base64.b64encode(SAID.encode())),
    "among the weights": _member,
    "behind 70 MB": lambda run: (run / "big.bin").write_bytes(bytes(70_000_000) + SAID.encode()),
    "in a folder's name": lambda run: (run / SAID).mkdir() or (run / SAID / "x").write_text(""),
}


def _shared() -> Iterator[Case]:
    def build(folder: Path, trained: Trained, hide: Callable[[Path], object] | None) -> Sequence[str]:
        run = copied(folder, trained)
        with (run / "split.csv").open("a") as file:
            file.write(f"{PERSON},train\n")
        if hide is not None:
            hide(run)
        return ["doctor", f"run={run}", "share=true"]

    def unsaid(got: Outcome) -> str:
        return "printed" if SECRET in got.told.replace(SAID, "") else ""

    for name, hide in HIDDEN.items():
        found = both(refused("NOT CLEAN: 1", r"ids \(1\)", r"secrets \(", "Fix:"), unsaid)
        yield Case(KIND, f"doctor share=true: a name and a token {name}", partial(build, hide=hide), found)
    damage = lambda run: (run / "predictions.parquet").write_bytes((run / "predictions.parquet").read_bytes()[:-9])  # noqa: E731
    yield Case(KIND, "doctor share=true: a damaged table", partial(build, hide=damage), refused("NOT SEEN"))
    yield Case(KIND, "doctor share=true: nothing hidden", partial(build, hide=None), accepted("NOT CLEAN: 0"))


def cases() -> list[Case]:
    """All of them."""
    return [*_code(), *_variables(), *_pickles(), *_places(), *_plugins(), *_shared()]
