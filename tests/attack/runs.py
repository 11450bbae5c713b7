"""Finished runs of which a file was damaged, edited, lost or exchanged: commands name it, ``train`` makes it again."""

from __future__ import annotations

import hmac
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tests.attack.case import Case, Judge, Outcome, Trained, either, refused, told
from tests.attack.session import MADE

KIND = "runs: changed"
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
Damage = Callable[[Path, Path], object]  # edits a file; the second is the same file of another run


def copied(folder: Path, trained: Trained, name: str = "calibrated", *, ours: bool = True) -> Path:
    """A copy of a run in ``runs`` of the case's folder, and beside it the key and the caches of who made it."""
    source = trained.runs[name]
    run = folder / "runs" / name / source.name
    shutil.copytree(source, run)
    if ours:
        shutil.copytree(trained.work / "cache", folder / "cache", dirs_exist_ok=True)
    return run


def seal(run: Path, *, files: bool = True, key: bytes = b"") -> None:
    """Checksums as somebody makes them who wants the edited folder to be taken for good.

    ``files``: those of the run's files too; False: of ``provenance.json`` alone. ``key``: of who signs; none: nobody.
    """
    file, last = run / "provenance.json", run / "status.json"
    if files:
        names = json.loads(file.read_text("utf-8"))["files"]
        sums = {name: _digest(run / name) for name in names if (run / name).is_file()}
        content(lambda tree: {**tree, "files": sums})(file, run)
    if isinstance(json.loads(last.read_text("utf-8")), dict):
        content(lambda tree: tree.update(provenance=_digest(file)))(last, run)
    if key:
        content(lambda tree: tree.update(signature=_signed(tree, key)))(last, run)


def _signed(status: dict, key: bytes) -> str:  # type: ignore[type-arg]
    plain = json.dumps({name: value for name, value in status.items() if name != "signature"}, sort_keys=True)
    return hmac.new(key, f"run\0{plain}".encode(), "sha256").hexdigest()


def input_of(folder: Path) -> Path:
    """A grey picture to predict."""
    from PIL import Image

    from tests.attack.pictures import grey

    (folder / "in").mkdir(exist_ok=True)
    Image.fromarray(grey()).save(folder / "in/a.png")
    return folder / "in"


# --- what is done to a file --------------------------------------------------------------------------------------


def _flip(file: Path, other: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))


def _zeroed(file: Path, other: Path) -> None:
    raw = bytearray(file.read_bytes())
    third = len(raw) // 3
    raw[third : 2 * third] = bytes(third)
    file.write_bytes(bytes(raw))


def _in_place(make: Callable[[Path, Path], object]) -> Damage:
    def damage(file: Path, other: Path) -> None:
        file.unlink()
        make(file, other)

    return damage


def sparse(file: Path, size: int = 3 << 30) -> None:
    with file.open("wb") as stream:
        stream.truncate(size)


DAMAGES: dict[str, Damage] = {
    "cut": lambda file, other: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file, other: file.write_bytes(b""),
    "one bit flipped": _flip,
    "a third zeroed": _zeroed,
    "bytes at random": lambda file, other: file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size)),
    "deleted": _in_place(lambda file, other: None),
    "another run's": lambda file, other: shutil.copyfile(other, file),
    "a folder": _in_place(lambda file, other: file.mkdir()),
    "a link to another run's": _in_place(lambda file, other: file.symlink_to(other)),
    "a link to nothing": _in_place(lambda file, other: file.symlink_to("/nowhere")),
    "a pipe": _in_place(lambda file, other: os.mkfifo(file)),
    "3 GiB of zeros": lambda file, other: sparse(file),
    "in UTF-16": lambda file, other: file.write_bytes(file.read_bytes().decode("latin-1").encode("utf-16")),
    "a byte at its end": lambda file, other: file.write_bytes(file.read_bytes() + b"\n"),
}
BIG = "3 GiB of zeros"  # reading 3 GiB for a checksum takes two seconds: of text alone, which is not read that far


def text(old: str, new: str) -> Damage:
    """The first place where the pattern stands."""

    def damage(file: Path, other: Path) -> None:
        before = file.read_text("utf-8")
        after = re.sub(old, new, before, count=1)
        assert after != before, f"{file}: no {old}"
        file.write_text(after, "utf-8")

    return damage


def content(change: Callable[[dict], object]) -> Damage:  # type: ignore[type-arg]
    """Of a JSON file."""

    def damage(file: Path, other: Path) -> None:
        tree = json.loads(file.read_text("utf-8"))
        made = change(tree)
        file.write_text(json.dumps(tree if made is None else made), "utf-8")

    return damage


def checkpoint(change: Callable[[dict], object]) -> Damage:  # type: ignore[type-arg]
    def damage(file: Path, other: Path) -> None:
        tree = torch.load(file, weights_only=True)
        made = change(tree)
        torch.save(tree if made is None else made, file)

    return damage


def table(change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Damage:
    """Of a Parquet file; its stamp stays."""

    def damage(file: Path, other: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        old = pq.read_table(file)
        frame = old.to_pandas()
        made = change(frame)
        new = pa.Table.from_pandas(frame if made is None else made, preserve_index=False)
        pq.write_table(
            new.replace_schema_metadata({**(old.schema.metadata or {}), **(new.schema.metadata or {})}), file
        )

    return damage


def first_weight(tree: dict, change: Callable[[torch.Tensor], torch.Tensor]) -> None:  # type: ignore[type-arg]
    name = next(name for name in tree["state_dict"] if name.endswith("conv_stem.weight"))
    tree["state_dict"][name] = change(tree["state_dict"][name])


def optimizer(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """What the optimiser remembers of its first weights."""

    def edit(tree: dict) -> None:  # type: ignore[type-arg]
        own = next(iter(tree["optimizer_states"][0]["state"].values()))
        own[key] = change(own[key])

    return checkpoint(edit)


def thresholds(value: object) -> Damage:
    def change(tree: dict) -> None:  # type: ignore[type-arg]
        for own in tree["thresholds"].values():
            for item in own.values():
                item["value"] = value

    return content(change)


# File, edit of a value: nothing looks damaged.
VALUES: dict[str, tuple[str, Damage]] = {
    "image size": ("config.yaml", text("image_size: 64", "image_size: 96")),
    "windows": ("config.yaml", text("- - 40.0", "- - 60.0")),
    "fit": ("config.yaml", text("fit: letterbox", "fit: head")),
    "aggregate": ("config.yaml", text("aggregate: mean", "aggregate: max")),
    "label": ("config.yaml", text("- hemorrhage", "- bleed")),
    "kind of channels": ("config.yaml", text("kind: ct", "kind: mr")),
    "comment": ("config.yaml", lambda file, other: file.write_text("# mine\n" + file.read_text())),
    "thresholds": ("metrics.json", thresholds(0.01)),
    "an AUROC": ("metrics.json", text(r'"auroc": \{\s*"value": [\d.]+', '"auroc": {"value": 0.999')),
    "the temperature": ("calibration.json", text(r"\d\.\d+", "9.75")),
    "a patient's side": ("split.csv", text("(?m)train$", "test")),
    "a probability": ("predictions.parquet", table(lambda t: t.assign(prob_hemorrhage=1 - t["prob_hemorrhage"]))),
    "labels": ("predictions.parquet", table(lambda t: t.assign(label_hemorrhage=1 - t["label_hemorrhage"]))),
    "rows": ("predictions.parquet", table(lambda t: t.iloc[1:])),
    "a weight": (BEST, checkpoint(lambda t: first_weight(t, lambda w: w * 1.5))),
    "the unit": (BEST, checkpoint(lambda t: t["hyper_parameters"].update(unit="HU"))),
    "the last weights": (LAST, checkpoint(lambda t: first_weight(t, lambda w: w * 1.5))),
    "no checksum of it": ("provenance.json", content(lambda t: t["files"].pop(BEST) and None)),
    "no checksums": ("provenance.json", content(lambda t: t.pop("files") and None)),
    "checksums of nothing": ("provenance.json", content(lambda t: t.update(files={}))),
    "another checksum": ("provenance.json", content(lambda t: t["files"].update({"predictions.parquet": "0" * 64}))),
    "checksum of the data": ("provenance.json", content(lambda t: t["checksums"].update(manifest="0" * 64))),
    "no checksums of the data": ("provenance.json", content(lambda t: t.pop("checksums") and None)),
    "root of the data": ("provenance.json", content(lambda t: t["data"].update(root="/"))),
    "modality": ("provenance.json", content(lambda t: t["data"].update(modality=["MR"]))),
    "synthetic": ("provenance.json", content(lambda t: t["data"].update(synthetic=not t["data"]["synthetic"]))),
    "leaky split": ("provenance.json", content(lambda t: t.update(leaky_split=not t["leaky_split"]))),
    "weights' source": ("provenance.json", content(lambda t: t.update(weights="run /elsewhere"))),
    "cost": ("provenance.json", content(lambda t: t["cost"].update(fit_seconds=0.01))),
    "checksum of provenance": ("status.json", content(lambda t: t.update(provenance="0" * 64))),
    "no checksum of provenance": ("status.json", content(lambda t: t.pop("provenance") and None)),
    "checksum of provenance a list": ("status.json", content(lambda t: t.update(provenance=[1]))),
}


# --- what is asked of the run ------------------------------------------------------------------------------------

ALL = ("config.yaml", "split.csv", BEST, LAST, "predictions.parquet", "metrics.json", "calibration.json",
       "provenance.json", "status.json")  # fmt: skip
SHOWN = ("config.yaml", "metrics.json", "predictions.parquet", "provenance.json", "status.json")
# Command -> its arguments, and the files of which it makes use.
COMMANDS: dict[str, tuple[Callable[[Path, Trained, Path], Sequence[str]], Sequence[str]]] = {
    "predict": (lambda f, t, run: ["predict", f"run={run}", f"input={input_of(f)}", "out=out"], ALL),
    "train": (lambda f, t, run: trained_again(t, "calibrated"), ALL),
    "evaluate": (lambda f, t, run: ["evaluate", f"run={run}", "data=head_ct", f"data.root={t.work / 'others'}"], ALL),
    "compare": (lambda f, t, run: ["compare", str(run), str(t.runs["pictures"]), "out=out"], SHOWN),
    "explain": (lambda f, t, run: ["explain", f"run={run}", "out=out", f"data.root={t.work / 'pictures'}"], ALL),
    "doctor": (lambda f, t, run: ["doctor", f"run={run}"], ALL),
    "plan": (lambda f, t, run: ["plan", f"run={run}"], (*SHOWN[:1], *SHOWN[2:])),
    "export": (lambda f, t, run: ["export", f"run={run}", "out=m.pt2", "format=torch", "check=0"], ALL),
    "runs": (lambda f, t, run: ["runs", str(run.parent)], ("config.yaml", "metrics.json", "status.json")),
}
ALIKE = ("predict", "evaluate", "explain", "export")


def trained_again(trained: Trained, name: str, *words: str) -> list[str]:
    """The command that has made a run, in the folder of the case."""
    root = {"calibrated": "pictures", "volumes": "ct"}.get(name, name)
    moved = [word for word in MADE[name] if not word.startswith("data.root")]
    return ["train", *moved, f"data.root={trained.work / root}", f"name={name}", *words]


def repaired(name: str = "calibrated", file: str = "") -> Judge:
    """``train`` ends with the run that was there before, every file of it; and has named ``file``."""

    def judge(got: Outcome) -> str:
        if got.status:
            return f"exit status {got.status}: {(got.err or got.out)[-300:]!r}"
        old = got.trained.runs[name]
        run = got.folder / "runs" / name / old.name
        if not run.is_dir():
            return f"no run {run.name}: {sorted(item.name for item in run.parent.iterdir())}"
        sums = json.loads((run / "provenance.json").read_text())["files"]
        before = json.loads((old / "provenance.json").read_text())["files"]
        if sorted(sums) != sorted(before):
            return f"checksums of {sorted(sums)}"
        wrong = [item for item in sums if _digest(run / item) != sums[item]]
        if wrong:
            return f"checksums are not those of {wrong}"
        if fault := _other(run, old):
            return fault
        return f"not a word of {file}" if file and file not in got.told else ""

    return judge


def _digest(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() and not file.is_symlink() else "none"


def _other(run: Path, old: Path) -> str:
    """How two runs differ in what they say."""
    for name in ("metrics.json", "calibration.json"):
        if (old / name).exists() and _numbers(run / name) != _numbers(old / name):
            return f"{name} differs from that of the undisturbed run"
    frames = [pd.read_parquet(folder / "predictions.parquet") for folder in (run, old)]
    try:
        pd.testing.assert_frame_equal(*frames, rtol=0, atol=1e-6)
    except AssertionError as error:
        return f"predictions.parquet differs: {str(error).splitlines()[0]}"
    states = [torch.load(folder / BEST, weights_only=True)["state_dict"] for folder in (run, old)]
    if any(not torch.allclose(states[0][key], states[1][key], atol=1e-6) for key in states[1]):
        return "other weights than the undisturbed run's"
    return "" if (run / "split.csv").read_text() == (old / "split.csv").read_text() else "another split.csv"


def _numbers(file: Path) -> str:
    return re.sub(r"(\.\d{6})\d+", r"\1", file.read_text())


def judge_of(command: str, file: str) -> Judge:
    """What is right where ``file`` was changed: a command that cannot repair it ends with an error that names it."""
    name = re.escape(Path(file).name) + ("|no run" if file == "status.json" else "")
    if command == "train":
        if file == "status.json":
            return either(repaired(), refused(name))
        # A flipped bit may leave a provenance.json that says something else of no file: nothing is to be repaired.
        return repaired(file=Path(file).name if file != "provenance.json" else "")
    if command in ("compare", "runs"):  # go on without the run, or with what is left of it
        return told(name)
    return refused(name)


def damage(run: Path, trained: Trained, file: str, change: Damage) -> None:
    others = [trained.runs["pictures"] / file, trained.runs["ct"] / file, trained.runs["pictures"] / "metrics.json"]
    own = (run / file).read_bytes()
    change(run / file, next(other for other in others if other.exists() and other.read_bytes() != own))


def case(name: str, command: str, file: str, change: Damage, judge: Judge | None = None) -> Case:
    def build(folder: Path, trained: Trained) -> Sequence[str]:
        run = copied(folder, trained)
        damage(run, trained, file, change)
        return COMMANDS[command][0](folder, trained, run)

    return Case(KIND, f"{command}: {name}", build, judge or judge_of(command, file))


def _damaged() -> Iterator[Case]:
    """Every damage of every file, and every file in every command that reads it; the two rotate."""
    commands = list(COMMANDS)
    for i, file in enumerate(ALL):
        for j, (name, change) in enumerate(DAMAGES.items()):
            if name == BIG and not file.endswith((".yaml", ".json")):
                continue
            if name == "deleted" and file == LAST:
                continue  # it may go at any time, see `hemlearn prune`
            if name == "a byte at its end" and file in ("provenance.json", "status.json"):
                continue  # a line end after it says nothing else
            reading = [command for command in commands if file in COMMANDS[command][1]]
            yield case(f"{file} {name}", reading[(i + j) % len(reading)], file, change)


def _edited() -> Iterator[Case]:
    commands = [*ALIKE[:1], "train", "compare", "evaluate", "plan", "doctor", "explain", "runs", "export"]
    for i, (name, (file, change)) in enumerate(VALUES.items()):
        reading = [command for command in commands if file in COMMANDS[command][1]]
        for k in range(2):
            command = reading[(i + 4 * k) % len(reading)]
            judge = None
            if file in ("provenance.json", "status.json"):
                judge = repaired(file="provenance.json") if command == "train" else told("provenance.json")
            yield case(f"{name} edited", command, file, change, judge)


# --- a run that was interrupted ----------------------------------------------------------------------------------


def interrupted(run: Path) -> None:
    """As a kill leaves it: no results, no checksums, the last checkpoint there."""
    for name in ("predictions.parquet", "metrics.json", "calibration.json"):
        (run / name).unlink()
    content(lambda t: t.pop("files") and None)(run / "provenance.json", run)
    sealed = ("provenance", "signature")
    content(lambda t: {k: v for k, v in t.items() if k not in sealed} | {"state": "running", "finished": None})(
        run / "status.json", run
    )


RESUMED: dict[str, tuple[str, Damage, Judge]] = {
    "as a kill leaves it": (LAST, lambda file, other: None, repaired()),
    "last.ckpt cut": (LAST, DAMAGES["cut"], told("last.ckpt")),
    "last.ckpt emptied": (LAST, DAMAGES["emptied"], told("last.ckpt")),
    "last.ckpt, one bit flipped": (LAST, DAMAGES["one bit flipped"], told("last.ckpt")),
    "last.ckpt another run's": (LAST, DAMAGES["another run's"], told("last.ckpt")),
    "last.ckpt deleted": (LAST, DAMAGES["deleted"], repaired()),
    "last.ckpt a folder": (LAST, DAMAGES["a folder"], told("last.ckpt")),
    "last.ckpt a pipe": (LAST, DAMAGES["a pipe"], told("last.ckpt")),
    "last.ckpt with NaN": (LAST, checkpoint(lambda t: first_weight(t, lambda w: w * float("nan"))), told("last.ckpt")),
    "last.ckpt without its weights": (LAST, checkpoint(lambda t: t.pop("state_dict") and None), told("last.ckpt")),
    "last.ckpt without callbacks": (LAST, checkpoint(lambda t: t.pop("callbacks") and None), told("last.ckpt")),
    "last.ckpt of another shape": (
        LAST, checkpoint(lambda t: first_weight(t, lambda w: w[:, :, :1])), told("last.ckpt|conv_stem")),
    "last.ckpt, of the optimiser another shape": (
        LAST, optimizer("exp_avg", lambda m: m[:1]), refused("last.ckpt", "exp_avg", "another shape", "train this")),
    "last.ckpt, of the optimiser NaN": (
        LAST, optimizer("exp_avg", lambda m: m * float("nan")), refused("exp_avg", "NaN")),
    "last.ckpt, of the optimiser infinite": (LAST, optimizer("exp_avg_sq", lambda m: m / 0), refused("exp_avg_sq")),
    "last.ckpt, of the optimiser below 0": (
        LAST, optimizer("exp_avg_sq", lambda m: m - 1), refused("exp_avg_sq", "below 0")),
    "last.ckpt, of the optimiser float8": (
        LAST, optimizer("exp_avg", lambda m: m.to(torch.float8_e4m3fn)), refused("exp_avg", "float8")),
    "last.ckpt, of the optimiser sparse": (
        LAST, optimizer("exp_avg", lambda m: m.to_sparse()), refused("exp_avg", "sparse")),
    "last.ckpt, optimiser of fewer weights": (
        LAST, checkpoint(lambda t: t["optimizer_states"][0]["param_groups"][0]["params"].pop() and None),
        refused("last.ckpt", "parameters")),
    "last.ckpt, a learning rate of NaN": (
        LAST, checkpoint(lambda t: t["optimizer_states"][0]["param_groups"][0].update(lr=float("nan"))),
        refused("optimizer_states holds NaN")),
    "last.ckpt, optimiser a list": (LAST, checkpoint(lambda t: t.update(optimizer_states=[[1]])), refused("last.ckpt")),
    "last.ckpt, schedule with NaN": (
        LAST, checkpoint(lambda t: t["lr_schedulers"][0].update(base_lrs=[float("nan")])), refused("lr_schedulers")),
    "best.ckpt cut": (BEST, DAMAGES["cut"], told("best.ckpt")),
    "best.ckpt emptied": (BEST, DAMAGES["emptied"], told("best.ckpt")),
    "best.ckpt deleted": (BEST, DAMAGES["deleted"], told("best.ckpt")),
    "best.ckpt another run's": (BEST, DAMAGES["another run's"], told("best.ckpt")),
    "split.csv cut": ("split.csv", DAMAGES["cut"], told("split.csv")),
    "split.csv at random": ("split.csv", DAMAGES["bytes at random"], told("split.csv")),
    "split.csv another split": ("split.csv", VALUES["a patient's side"][1], told("split.csv")),
    "config.yaml cut": ("config.yaml", DAMAGES["cut"], repaired()),
    "provenance.json emptied": ("provenance.json", DAMAGES["emptied"], repaired()),
    "status.json cut": ("status.json", DAMAGES["cut"], told("status.json")),
}  # fmt: skip


def _resumed() -> Iterator[Case]:
    for name, (file, change, judge) in RESUMED.items():

        def build(folder: Path, trained: Trained, file: str = file, change: Damage = change) -> Sequence[str]:
            run = copied(folder, trained)
            interrupted(run)
            damage(run, trained, file, change)
            return trained_again(trained, "calibrated")

        # A clear error, or the run that would have been: never another one.
        yield Case(KIND, f"train goes on: {name}", build, _right_or(judge))


def _right_or(judge: Judge) -> Judge:
    def judged(got: Outcome) -> str:
        return repaired()(got) if got.status == 0 else judge(got)

    return judged


# --- shared by other rooms ---------------------------------------------------------------------------------------


def no_canary(got: Outcome) -> str:
    """Nothing was made under that name, in the folder of the case or beside it."""
    places = (got.folder, *list(got.folder.parents)[:2])
    found = [place / "canary" for place in places if (place / "canary").exists()]
    found += [file for file in got.folder.rglob("canary*") if not file.is_symlink()]
    return f"{found[0]}: made" if found else ""


def as_before(got: Outcome) -> str:
    """Probabilities and calls of the picture, as the run gives them."""
    found = pd.read_csv(got.folder / "out/series.csv")
    wanted = got.trained.reference["picture"]
    values = [float(found["prob_hemorrhage"].iloc[0]), float(found["call_hemorrhage"].iloc[0])]
    if "calibrated=true" in got.out + got.err:
        return ""
    return "" if np.allclose(values, wanted[:2], atol=1e-6) else f"{values} instead of {wanted[:2]}"


def picture_reference(run: Path, folder: Path) -> list[str]:
    return ["predict", f"run={run}", f"input={input_of(folder)}", f"out={folder / 'out'}"]


def cases() -> list[Case]:
    """Changed later; interrupted."""
    return [*_damaged(), *_edited(), *_resumed()]
