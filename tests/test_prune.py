"""``hemlearn prune`` and the limit of a cache folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from hemlearn.__main__ import main
from hemlearn.config.schema import Config
from hemlearn.util.block_file import BlockFile
from hemlearn.util.disk import parse_size, set_limit
from hemlearn.util.errors import ConfigError, StoreError
from hemlearn.util.files import draft_of, sha256
from hemlearn.util.prune import KINDS, find, free
from hemlearn.util.run_files import BEST, LAST

KEY, RUN = "0123456789abcdef" * 2, "0123456789ab"


def store(cache: Path, kind: str = "stores", key: str = KEY) -> BlockFile:
    file = BlockFile(cache / kind / key, "slices.bin" if kind == "stores" else "vectors.bin", (4, 1000), "<i2")

    def fill(missing: Any) -> Any:
        return [file.write(rows.start, np.ones((len(rows), 1000), "<i2")) for rows in missing]

    file.build(fill, step=2, what="the slice store")
    return file


def run(folder: Path, name: str = RUN, state: str = "complete", **told: Any) -> Path:
    for file in (BEST, LAST, "config.yaml", "predictions.parquet", "csv/metrics.csv", "figures/roc.png"):
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_bytes(b"x" * 5000)
    text = json.dumps({"hash": name, **told})
    (folder / name / "provenance.json").write_text(text)
    status = {"hash": name, "state": state, "provenance": sha256(text)}
    (folder / name / "status.json").write_text(json.dumps(status))
    return folder / name


def everything(root: Path) -> Path:
    """A cache and runs with one thing of each kind, all written long ago."""
    cache, runs = root / "cache", root / "runs" / "name"
    store(cache)
    store(cache, "embeddings")
    for name in (
        *(f"squares/{KEY[:16]}-v15-64-letterbox/{KEY}.bin", f"scan/{KEY[:16]}-v15.parquet"),
        *("phantom/head_ct-v2-40-0/PHANTOM.txt", "phantom/head_ct-v2-40-0/a/b.png"),
        "../predicted/journal.jsonl",
        "../predicted/predict.json",
    ):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(b"x" * 3000)
    run(runs)
    shutil.copytree(runs / RUN, runs / f".{RUN}.old")
    dead = draft_of(runs / RUN / "metrics.json")
    dead.with_name(dead.name.replace(f"-{os.getpid()}.", "-99999999.")).write_text("x")
    (cache / "run.key").write_text("x")
    long_ago = time.time() - 7200
    for path in root.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    return root


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() or path.is_symlink()}


def test_what_can_be_made_again_is_shown_and_goes_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(everything(tmp_path))
    assert main(["prune", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{kind}: " in f"\n{shown}" for kind in KINDS)
    assert files(tmp_path) == before
    assert main(["prune", str(tmp_path), "only=stores,journals", "apply=true"]) == 0
    assert {item.kind for item in find(tmp_path)} == set(KINDS) - {"stores", "journals"}
    assert main(["prune", str(tmp_path), str(tmp_path / "cache"), "apply=true"]) == 0
    assert "freed: " in capsys.readouterr().out
    kept = {BEST, "config.yaml", "status.json", "provenance.json", "predictions.parquet"}
    kept |= {"csv/metrics.csv", "figures/roc.png"}
    left = {name for name in files(tmp_path) if not name.endswith(".lock")}
    assert left == {f"runs/name/{RUN}/{name}" for name in kept} | {"cache/run.key", "predicted/predict.json"}
    assert not find(tmp_path)


def test_other_peoples_files_and_links_stay(tmp_path: Path) -> None:
    root = everything(tmp_path / "ours")
    (root / "cache" / "stores" / KEY / "notes.txt").write_text("mine")
    (root / "cache" / "embeddings" / KEY / "vectors.bin").rename(tmp_path / "vectors.bin")
    (root / "cache" / "embeddings" / KEY / "vectors.bin").symlink_to(tmp_path / "vectors.bin")
    shutil.copytree(root / "cache" / "stores", root / "elsewhere")
    (root / "runs" / "name" / RUN / LAST).unlink()
    (root / "runs" / "name" / RUN / LAST).symlink_to(tmp_path / "vectors.bin")
    run(root / "runs" / "name", "f" * 12, keep="last", tested=None)
    other = run(root / "runs" / "name", "e" * 12)
    (other / "status.json").write_text(json.dumps({"hash": "d" * 12, "state": "complete"}))
    (root / "link").symlink_to(everything(tmp_path / "theirs"))
    before = files(tmp_path)
    free(find(root, ["stores", "embeddings", "checkpoints"]))
    assert files(tmp_path) == before


@pytest.mark.parametrize("kind", ["old", "anew"])
def test_the_only_copy_of_a_run_stays(tmp_path: Path, kind: str) -> None:
    made = run(tmp_path)
    made.rename(tmp_path / f".{RUN}.{kind}")
    assert not find(tmp_path)
    run(tmp_path, state="running")
    assert not find(tmp_path)


@pytest.mark.parametrize(
    ("hold", "kind"),
    [
        (lambda root: FileLock(root / "runs" / "name" / RUN / ".lock").acquire(), "checkpoints"),
        (lambda root: FileLock(root / "cache" / "stores" / f"{KEY}.lock").acquire(), "stores"),
        (lambda root: store(root / "cache").array, "stores"),
    ],
)
def test_what_a_running_command_holds_is_left_alone(
    tmp_path: Path, hold: Callable[[Path], Any], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held = hold(everything(tmp_path))
    assert main(["prune", str(tmp_path), f"only={kind}", "apply=true"]) == 0
    assert "left alone: " in (printed := capsys.readouterr().out)
    assert "a running command" in printed
    assert held is not None
    assert [item.kind for item in find(tmp_path, [kind])] == [kind]


def test_a_full_disk_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything(tmp_path)
    lock, calls = FileLock.acquire, []

    def full(self: FileLock, *arguments: Any, **options: Any) -> Any:
        calls.append(self.lock_file)
        if len(calls) < 3:  # until something has been removed there is no room for a lock
            raise OSError(errno.ENOSPC, "No space left on device")
        return lock(self, *arguments, **options)

    monkeypatch.setattr("filelock.FileLock.acquire", full)
    assert main(["prune", str(tmp_path), "apply=true"]) == 0
    assert "cannot be removed" not in capsys.readouterr().out
    assert not find(tmp_path)


def test_a_folder_that_is_missing_and_a_kind_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(tmp_path / "none")]) == 1
    assert main(["prune", str(tmp_path), "only=store"]) == 1
    assert "did you mean 'stores'" in capsys.readouterr().err
    assert main(["prune", str(tmp_path)]) == 0
    assert "nothing to free" in capsys.readouterr().out


def test_a_cache_over_its_limit_takes_no_further_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path)
    set_limit(tmp_path, "9kB")
    with pytest.raises(StoreError, match=r"holds \d+ bytes of the 9000 bytes .*the slice store needs 8000 bytes more"):
        store(tmp_path, key=KEY[::-1])
    assert not list((tmp_path / "stores").glob("*.building"))
    assert made.is_complete()
    set_limit(tmp_path, None)
    monkeypatch.setenv("HEMLEARN_CACHE_LIMIT", "1 GB")
    store(tmp_path, key=KEY[::-1])
    monkeypatch.setenv("HEMLEARN_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match=r"\$HEMLEARN_CACHE_LIMIT='much': no size"):
        store(tmp_path, "embeddings")


@pytest.mark.parametrize("text", ["20", "-1GB", "1e3", "20 GBB", "GB", "nan"])
def test_a_limit_that_is_no_size_is_refused(text: str) -> None:
    if text == "20":
        assert parse_size(text) == 20
        return
    with pytest.raises(ConfigError, match=r"data\.cache_limit=.*no size; write it as 500MB"):
        Config.check("", data={"cache_limit": text})
