"""Slice stores, embeddings and tables of files in a damaged cache: made again or told of, never used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.attack.case import Case, Judge, Outcome, Trained, either, refused
from tests.attack.runs import content, repaired, trained_again

KIND = "stores"
Damage = Callable[[Path], object]  # edits a store's folder
DATA = {"stores": "slices.bin", "embeddings": "vectors.bin"}
PREPARE = ["prepare", "data=head_ct", "data.image_size=64", "data.fit=letterbox"]


def place(cache: Path, kind: str) -> Path:
    """The pictures' slices, or the only embeddings."""
    found = sorted(file.parent for file in (cache / kind).glob("*/complete.json"))
    if kind == "stores":
        found = [item for item in found if json.loads((item / "complete.json").read_text())["unit"] == "display"]
    (one,) = found
    return one


def data_of(store: Path) -> Path:
    return next(store / name for name in DATA.values() if (store / name).exists())


def edited(change: Callable[[bytearray], object], stamp: bool = True) -> Damage:
    """Bytes of the data; ``stamp``: the file's time is put back, as bit rot and a careful hand leave it."""

    def damage(store: Path) -> None:
        file = data_of(store)
        info, raw = file.stat(), bytearray(file.read_bytes())
        change(raw)
        file.write_bytes(bytes(raw))
        if stamp:
            os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))

    return damage


def at(share: float, stamp: bool = True) -> Damage:
    """One byte, whose sign or exponent it turns over."""

    def change(raw: bytearray) -> None:
        raw[min(int(share * len(raw)), len(raw) - 1) // 4 * 4 + 3] ^= 0x40

    return edited(change, stamp)


def _zeroed(raw: bytearray) -> None:
    raw[len(raw) // 3 : 2 * len(raw) // 3] = bytes(2 * len(raw) // 3 - len(raw) // 3)


def _swapped(raw: bytearray) -> None:
    half = len(raw) // 2 // 4096 * 4096
    raw[:] = raw[half : 2 * half] + raw[:half] + raw[2 * half :]


def _marker(change: Callable[[dict], object]) -> Damage:  # type: ignore[type-arg]
    return lambda store: content(change)(store / "complete.json", store)


def _instead(make: Callable[[Path], object]) -> Damage:
    def damage(store: Path) -> None:
        file = data_of(store)
        file.unlink()
        make(file)

    return damage


def _building(store: Path) -> None:
    """What a killed build leaves, whose journal does not fit its bytes."""
    left = store.with_name(f"{store.name}.building")
    store.rename(left)
    marker = json.loads((left / "complete.json").read_text())
    (left / "complete.json").unlink()
    for part in marker["parts"]:
        (left / f"part-{part['start']:08d}.json").write_text(json.dumps(part))
    at(0.5)(left)


def _journal(text: str) -> Damage:
    def damage(store: Path) -> None:
        _building(store)
        for file in store.with_name(f"{store.name}.building").glob("part-*.json"):
            file.write_text(text)

    return damage


BYTES: dict[str, Damage] = {
    "a byte flipped in its head": at(0),
    "a byte flipped in its middle": at(0.5),
    "a byte flipped in its tail": at(1),
    "a byte flipped, its time new": at(0.4, stamp=False),
    "its middle zeroed": edited(_zeroed),
    "its halves swapped": edited(_swapped),
    "all zeros": edited(lambda raw: raw.__setitem__(slice(None), bytes(len(raw)))),
    "cut": lambda store: os.truncate(data_of(store), data_of(store).stat().st_size // 2),
    "a byte more": edited(lambda raw: raw.append(0)),
    "emptied": lambda store: data_of(store).write_bytes(b""),
    "deleted": _instead(lambda file: None),
    "a folder": _instead(lambda file: file.mkdir()),
    "a pipe": _instead(lambda file: os.mkfifo(file)),
    "a link to nothing": _instead(lambda file: file.symlink_to("/nowhere")),
}
MARKERS: dict[str, Damage] = {
    "complete.json deleted": lambda store: (store / "complete.json").unlink(),
    "complete.json emptied": lambda store: (store / "complete.json").write_bytes(b""),
    "complete.json cut": lambda store: os.truncate(store / "complete.json", 60),
    "complete.json a list": lambda store: (store / "complete.json").write_text("[1]"),
    "complete.json a pipe": lambda store: ((store / "complete.json").unlink(), os.mkfifo(store / "complete.json")),
    "complete.json deep": lambda store: (store / "complete.json").write_text("[" * 100_000 + "]" * 100_000),
    "complete.json at random": lambda store: (store / "complete.json").write_bytes(bytes(range(256))),
    "complete.json of another shape": _marker(lambda tree: tree.update(shape=[1, 2, 3])),
    "complete.json without parts": _marker(lambda tree: tree.update(parts=[])),
    "complete.json, parts a text": _marker(lambda tree: tree.update(parts="x")),
    "complete.json, other checksums": _marker(lambda tree: tree["parts"][0].update(sha256="0" * 64)),
    "complete.json of another version": _marker(lambda tree: tree.update(format=99)),
    "a build that was killed": _building,
    "a build that was killed, its journal cut": _journal('{"start": 0, "st'),
    "a build that was killed, its journal a list": _journal("[]"),
    "a build that was killed, its journal odd": _journal(
        '{"start": "a", "stop": null, "offset": -5, "bytes": 1e99, "sha256": 3}'
    ),
    "a stale lock": lambda store: store.with_name(f"{store.name}.lock").write_text("12345"),
    "a stale lock that cannot be written": lambda store: store.with_name(f"{store.name}.lock").chmod(0o400),
    "a folder in place of the lock": lambda store: (
        store.with_name(f"{store.name}.lock").unlink(missing_ok=True),
        shutil.rmtree(store),
        store.with_name(f"{store.name}.lock").mkdir(),
    ),
}


def as_built(got: Outcome) -> str:
    """``prepare`` leaves the store as it was, byte for byte."""
    if got.status:
        return f"exit status {got.status}: {(got.err or got.out)[-300:]!r}"
    old = place(got.trained.work / "cache", "stores")
    new = got.folder / "cache/stores" / old.name / "slices.bin"
    same = new.is_file() and new.read_bytes() == (old / "slices.bin").read_bytes()
    return "" if same else "another store than the undisturbed one, without a word"


def _case(name: str, kind: str, change: Damage, words: Callable[[Trained], Sequence[str]], judge: Judge) -> Case:
    def build(folder: Path, trained: Trained) -> Sequence[str]:
        shutil.copytree(trained.work / "cache", folder / "cache", dirs_exist_ok=True)
        change(place(folder / "cache", kind))
        return words(trained)

    return Case(KIND, name, build, judge)


def _stores() -> Iterator[Case]:
    named = refused("stores|slices.bin")
    for i, (name, change) in enumerate([*BYTES.items(), *MARKERS.items()]):
        if i % 2 or name in BYTES:
            yield _case(f"train: slices, {name}", "stores", change, lambda t: trained_again(t, "calibrated"),
                        either(repaired(), named))  # fmt: skip
        yield _case(f"prepare: slices, {name}", "stores", change,
                    lambda t, i=i: [*PREPARE, f"data.root={t.work / 'pictures'}", *["verify=true"][: i % 2]],
                    either(as_built, named))  # fmt: skip
    vectors = either(repaired("volumes"), refused("embeddings|vectors.bin"))
    for i, (name, change) in enumerate([*BYTES.items(), *MARKERS.items()]):
        if i % 2 == 0 or name.startswith("a byte"):
            yield _case(
                f"train: embeddings, {name}", "embeddings", change, lambda t: trained_again(t, "volumes"), vectors
            )


# --- tables of what is known of files ----------------------------------------------------------------------------


def _garbled(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


def _without_columns(file: Path) -> None:
    import pandas as pd

    pd.read_parquet(file).iloc[:, :2].to_parquet(file, index=False)


def _other_table(file: Path) -> None:
    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet(file, index=False)


TABLES: dict[str, Damage] = {
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: file.write_bytes(b""),
    "at random": _garbled,
    "without columns": _without_columns,
    "another table": _other_table,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


def _tables() -> Iterator[Case]:
    for kind in ("scan", "duplicates"):
        for name, change in TABLES.items():

            def build(folder: Path, trained: Trained, kind: str = kind, change: Damage = change) -> Sequence[str]:
                shutil.copytree(trained.work / "cache", folder / "cache", dirs_exist_ok=True)
                for file in (folder / "cache" / kind).glob("*.parquet"):
                    change(file)
                return trained_again(trained, "calibrated")

            judge = either(repaired(), refused("cache|parquet"))
            yield Case(KIND, f"train: tables of {kind}, each {name}", build, judge)


def cases() -> list[Case]:
    """``train`` and ``prepare`` beside a damaged cache."""
    return [*_stores(), *_tables()]
