"""Faults put there on purpose: a harness that does not see them sees nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.attack import runs, security, series, stores
from tests.attack.case import Case, Outcome, Trained, refused, same, told
from tests.attack.fuzz import as_others

KIND = "planted"

# Run as `hemlearn`, which is found in the folder where the command works before any other.
FAULTS = {
    "a traceback": "raise ValueError('planted')",
    "a traceback with status 0": "print('Traceback (most recent call last):')",
    "a hang": "import time\ntime.sleep(1000)",
    "a hang that ignores SIGTERM": "import signal as s, time\ns.signal(s.SIGTERM, s.SIG_IGN)\ntime.sleep(1000)",
    "four gigabytes": "bytearray(4 << 30)",
    "status 3 without a word": "raise SystemExit(3)",
    "an escape sequence printed": "print('\\x1b[31m')",
    "a signal": "import os\nos.abort()",
}

# Run before the command: a check that hemlearn makes is taken away.
SWITCHED_OFF = """
import sys
sys.path.append(sys.path.pop(0))
from importlib import import_module
for module in {modules}:
    place, _, kind = module.partition(":")
    setattr(getattr(import_module(place), kind) if kind else import_module(place), {name!r}, {instead})
from hemlearn.__main__ import main
sys.exit(main())
"""
CHECKS: dict[str, tuple[Case, list[str], str, str]] = {
    "checksums switched off": (
        runs.case("a weight edited", "predict", *runs.VALUES["a weight"]),
        ["hemlearn.training.run"], "problems", "lambda *given: {}"),
    "checksums switched off, train": (
        runs.case("a probability edited", "train", *runs.VALUES["a probability"]),
        ["hemlearn.training.folder"], "problems", "lambda *given: {}"),
    "names of code not looked at": (
        security.stranger(
            "a shell below hemlearn", "predict",
            security.as_key("backbone", security.EVIL["a shell below hemlearn"]), told("")),
        ["hemlearn.plugins"], "untrusted_targets", "lambda tree: []"),
    "anybody is this user": (
        security.stranger("a plug-in", "predict", security.PLUGGED, told(""), write=security.plug()),
        ["hemlearn.training.run:Run"], "ours", "True"),
    "stores not looked at": (
        next(case for case in stores.cases() if case.name == "prepare: slices, its middle zeroed"),
        ["hemlearn.util.block_file:BlockFile"], "is_complete",
        "lambda self, **how: (self.folder / 'complete.json').exists()"),
}  # fmt: skip


def cases() -> list[Case]:
    """Each has to be judged a fault."""

    def written(name: str, code: str) -> Case:
        def build(folder: Path, trained: Trained) -> list[str]:
            (folder / "hemlearn.py").write_text(code, "utf-8")
            return ["index"]

        seconds = 3 if "hang" in name else 30
        return Case(KIND, name, build, lambda got: "", seconds=seconds)

    def switched_off(name: str, case: Case, modules: list[str], part: str, instead: str) -> Case:
        def build(folder: Path, trained: Trained) -> list[str]:
            argv = [*case.build(folder, trained)]
            (folder / "hemlearn.py").write_text(
                SWITCHED_OFF.format(modules=modules, name=part, instead=instead), "utf-8")  # fmt: skip
            return argv

        return Case(KIND, name, build, case.judge, environment=case.environment)

    def other_head(folder: Path, trained: Trained) -> list[str]:
        series.dicom(folder / "in", series.head(1)[:, :, ::-1])
        return series.predict(trained, folder)

    def good(folder: Path, trained: Trained) -> list[str]:
        series.dicom(folder / "in")
        return series.predict(trained, folder)

    def one_off(got: Outcome) -> str:
        kept = dict(np.load(got.folder / "pixels.npz"))
        kept["array"] = kept["array"] + 4  # HU
        np.savez(got.folder / "pixels.npz", **kept)
        return as_others(got)

    def indexed(folder: Path, trained: Trained) -> list[str]:
        series.dicom(folder / "in")
        return series.index(folder)

    return [
        Case(KIND, "pixels 4 HU off", indexed, one_off, pixels=True),
        *(switched_off(name, *check) for name, check in CHECKS.items()),
        *(written(name, code) for name, code in FAULTS.items()),
        Case(KIND, "another head's answer", other_head, same()),
        Case(KIND, "no refusal", good, refused("anything")),
        Case(KIND, "no word of it", good, told("a word that nobody says")),
    ]
