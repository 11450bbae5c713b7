"""What `train` goes on from, and what it skips, is what this user's run has written: never an edited or another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hemlearn.training.folder import RunFolder
from hemlearn.training.run import Run, unsigned
from hemlearn.util.files import settle
from tests.conftest import seal

HASH, CHECKPOINTS = "0123456789ab", ("best.ckpt", "last.ckpt")


def write(folder: RunFolder, content: str, *, until: str = "") -> None:
    """Both checkpoints, as a run writes them; ``until``: killed before that file gets its name."""
    files = [folder.best, folder.last]
    draft = folder.best.with_name(".draft")
    draft.write_text(content)
    folder.announce(files, draft)
    for file in files:
        if file.name == until:
            return
        part = file.with_name(f".{file.name}")
        part.write_text(content)
        settle(part, file)


def begun(root: Path, *, until: str = "") -> RunFolder:
    """A run that failed after two epochs."""
    folder = RunFolder(root, "name", HASH)
    with suppress(KeyboardInterrupt), folder.open({"seed": 0}):
        write(folder, "epoch 1")
        write(folder, "epoch 2", until=until)
        raise KeyboardInterrupt
    return folder


def ended(root: Path) -> RunFolder:
    folder = RunFolder(root, "name", HASH)
    with folder.open({"seed": 0}):
        write(folder, "epoch 1")
        for name in ("split.csv", "predictions.parquet", "metrics.json"):
            (folder.path / name).write_text("{}")
        folder.write_provenance(keep="both")
    return folder


def left(root: Path) -> list[str]:
    """The checkpoints that the same command goes on from."""
    folder = RunFolder(root, "name", HASH)
    with suppress(KeyboardInterrupt), folder.open({"seed": 0}):
        found = [name for name in CHECKPOINTS if (folder.best.parent / name).exists()]
        raise KeyboardInterrupt
    return found


def told(folder: RunFolder, **changes: object) -> None:
    status = {**folder.status(), **changes}
    (folder.path / "status.json").write_text(json.dumps(status))


@pytest.mark.parametrize("until", ["", *CHECKPOINTS])
def test_a_run_goes_on_from_what_it_wrote_wherever_it_was_killed(tmp_path: Path, until: str) -> None:
    begun(tmp_path, until=until)
    for _ in range(2):  # signatures are carried over
        assert left(tmp_path) == [*CHECKPOINTS]


CHANGES: dict[str, Callable[[RunFolder, pytest.MonkeyPatch], object]] = {
    "best edited": lambda folder, patch: folder.best.write_text("poison"),
    "last edited": lambda folder, patch: folder.last.write_text("poison"),
    "no signature": lambda folder, patch: told(folder, checkpoints=None),
    "no table": lambda folder, patch: told(folder, checkpoints=dict.fromkeys(CHECKPOINTS, 3)),
    "another key": lambda folder, patch: patch.setenv("HEMLEARN_CACHE", str(folder.path / "other")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_edited_run_is_trained_from_the_start(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    CHANGES[name](begun(tmp_path), monkeypatch)
    assert left(tmp_path) == []
    assert "no signature of yours fits: changed since, written under another run.key" in caplog.text
    assert "earlier version" in caplog.text


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_finished_run_cannot_be_laundered(tmp_path: Path, state: str, sealed: bool) -> None:
    folder = ended(tmp_path)
    for file in (folder.best, folder.last):
        file.write_text("poison")
    if sealed:
        seal(folder.path)
    told(folder, state=state)
    assert left(tmp_path) == []


def test_an_older_run_is_sealed_but_not_signed(tmp_path: Path) -> None:
    folder = ended(tmp_path)
    told(folder, provenance=None, signature=None, checkpoints=None)
    assert not folder.is_complete
    ended_again = RunFolder(tmp_path, "name", HASH)
    with ended_again.open({"seed": 0}):
        assert folder.last.read_text() == "epoch 1"  # no epoch is trained again
        for name in ("split.csv", "predictions.parquet", "metrics.json"):
            (folder.path / name).write_text("{}")
        ended_again.write_provenance(keep="both")
    assert folder.is_complete
    assert not Run(folder.path).ours


def test_without_a_key_nothing_is_signed_and_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(_: object) -> Path:
        raise OSError("read-only")

    monkeypatch.setattr("hemlearn.util.signatures.cache_dir", read_only)
    begun(tmp_path)
    assert left(tmp_path) == [*CHECKPOINTS]
    assert unsigned([Run(ended(tmp_path / "other").path)]) == ""


def test_a_resealed_run_is_told(tmp_path: Path) -> None:
    folder = ended(tmp_path)
    assert unsigned([Run(folder.path)]) == ""
    (folder.path / "metrics.json").write_text('{"edited": 1}')
    seal(folder.path)
    assert unsigned([Run(folder.path)] * 3) == f"run {HASH} and 2 more: not signed by you: somebody else's, or edited"


def test_a_run_that_was_copied_over_another_is_not_that_one(tmp_path: Path) -> None:
    ended(tmp_path)
    other = RunFolder(tmp_path, "name", "ba9876543210")
    shutil.copytree(tmp_path / "name" / HASH, other.path)
    shutil.copytree(other.path, mine := tmp_path / "my model")
    assert Run(other.path).misplaced == f"of run {HASH}, but the folder is named as run {other.hash}: copied over it"
    assert [Run(path).misplaced for path in (mine, tmp_path / "name" / HASH)] == ["", ""]
    assert not other.is_complete
    with suppress(KeyboardInterrupt), other.open({"seed": 1}):
        assert not other.last.exists()
        assert not (other.path / "predictions.parquet").exists()
        raise KeyboardInterrupt
    assert other.status()["hash"] == other.hash
