import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemlearn.data.duplicates import duplicate_pairs
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.readers import Reader
from hemlearn.util.tables import read_csv


@pytest.fixture(scope="session")
def head_ct(head_ct_root: Path) -> Manifest:
    """The real Head-CT set."""
    table = read_csv(head_ct_root / "labels.csv")
    names = table["id"].str.zfill(3)
    rows = pd.DataFrame({"slice_id": names, "patient_id": names, "hemorrhage": table["hemorrhage"]})
    rows["path"] = "head_ct/head_ct/" + names + ".png"
    return build_manifest(rows, root=head_ct_root, labels=["hemorrhage"], source="head_ct", progress=False)


@pytest.fixture(scope="session")
def head_ct_pairs(head_ct: Manifest) -> pd.DataFrame:
    """Its duplicate pairs."""
    return duplicate_pairs(head_ct)


@dataclass
class Counts:
    """Openings of each file and decodes of each (file, frame) in this process, by the file's name."""

    opened: Counter[str] = field(default_factory=Counter)
    decoded: Counter[tuple[str, int]] = field(default_factory=Counter)

    def clear(self) -> None:
        self.opened.clear()
        self.decoded.clear()


_watching: list[tuple[Path, Counts]] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _watching and isinstance(args[0], str | bytes | os.PathLike):
        root, counts = _watching[-1]
        path = Path(os.fsdecode(args[0]))
        if path.is_dir() or ".part." in path.name:  # opened to be written to the disk for good
            return
        if path.is_relative_to(root) and "r" in str(args[1] or "r"):
            counts.opened[path.name] += 1


sys.addaudithook(_watch)


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    """Counts what is read below ``tmp_path``; everything runs in this process, one after the other."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    found = Counts()
    real = Reader.decode

    def decode(self: Reader, path: Path, frame: int, *rest: Any) -> Any:
        found.decoded[path.name, frame] += 1
        return real(self, path, frame, *rest)

    monkeypatch.setattr(Reader, "decode", decode)
    _watching.append((tmp_path, found))
    yield found
    _watching.pop()
