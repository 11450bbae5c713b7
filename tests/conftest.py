"""Fixtures of the whole suite: where real data lie, and a cache of its own for every test."""

from __future__ import annotations

import gc
import hashlib
import json
import os

# One thread per process: the suite runs in several processes, and threads that wait for each other would stall them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]


def real_data(name: str) -> Path:
    """Folder of a real data set; the test is skipped, with the reason, where it is absent."""
    places = [Path(place) for place in (os.environ.get("HEMLEARN_TEST_DATA", ""),) if place]
    places.append(PROJECT.parent / "shared" / "data")
    for place in places:
        if (place / name).is_dir():
            return place / name
    pytest.skip(f"the real data set {name} is not here; looked in {', '.join(map(str, places))}")


def seal(folder: Path, *, ours: bool = False, **told: Any) -> None:
    """Write down the checksums of a run folder's files, as a run does at its end.

    ``ours``: as this user, whose signature ``status.json`` then has; else as a stranger could. ``told``: keys of
    ``provenance.json`` that are changed before.
    """
    from hemlearn.util.run_files import checksums, signature

    file, last = folder / "provenance.json", folder / "status.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **told, "files": checksums(folder)}))
    if last.exists():
        status = {**json.loads(last.read_text()), "provenance": hashlib.sha256(file.read_bytes()).hexdigest()}
        last.write_text(json.dumps({**status, "signature": signature(status) if ours else "none"}))


@pytest.fixture(scope="session")
def head_ct_root() -> Path:
    """Kaggle Head-CT: labels.csv and head_ct/head_ct/000.png."""
    return real_data("head_ct")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HEMLEARN_CACHE", str(folder))
    return folder


def pytest_collection_finish() -> None:
    """What the imports have made stays: collecting garbage (each run and Trainer does it) need not walk it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
