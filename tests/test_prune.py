"""``hemlearn prune`` and the limit of a cache folder."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from hemlearn.__main__ import main
from hemlearn.config.schema import Config
from hemlearn.datamodules.head_ct import HeadCTDataModule
from hemlearn.phantom.layouts import NOTE
from hemlearn.util.block_file import BlockFile
from hemlearn.util.disk import hold_open, parse_size, set_limit
from hemlearn.util.errors import ConfigError, StoreError
from hemlearn.util.files import draft_of, save_table, sha256
from hemlearn.util.prune import KINDS, find, free
from hemlearn.util.run_files import BEST, LAST

KEY, RUN, PHANTOM = "0123456789abcdef" * 2, "0123456789ab", "head_ct-v2-40-0"


def store(cache: Path, kind: str = "stores", key: str = KEY) -> BlockFile:
    identity = {"key": key} if kind == "stores" else {"format": 1}
    name = "slices.bin" if kind == "stores" else "vectors.bin"
    file = BlockFile(cache / kind / key, name, (4, 1000), "<i2", identity)

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
    head, told = f"phantom/{PHANTOM}", {"version": "0.1", "runs": [], "show_patient": False}
    for name, content in {
        f"squares/{KEY[:16]}-v15-64-letterbox/{KEY}.bin": "x" * 3000,
        f"{head}/PHANTOM.txt": NOTE.format(layout="head_ct", patients="40 patients", seed=0),
        f"{head}/head_ct/head_ct/001.png": "x" * 3000,
        "../predicted/journal.jsonl": json.dumps({"key": "a", "sum": "b"}) + "\n",
        "../predicted/predict.json": json.dumps(told),
    }.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(content)
    rows = pd.DataFrame(columns=["path", "size", "reader", "part", "offset"])
    for name in (f"squares/{KEY[:16]}-v15-64-letterbox/{KEY}.parquet", f"scan/{KEY[:16]}-v15.parquet"):
        save_table(cache / name, rows)
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


OTHERS = {  # files of somebody else where hemlearn's lie, under names of hemlearn's
    f"search/embeddings/{KEY}/vectors.bin": "my vectors",
    f"shop/stores/{KEY}/slices.bin": "mine",
    f"shop/stores/{KEY[::-1]}/slices.bin": "mine",
    f"shop/stores/{KEY[::-1]}/complete.json": json.dumps({"parts": ["first"], "shape": [1], "key": "another"}),
    f"shop/stores/{'a' * 32}.building/slices.bin": "mine",
    f"shop/stores/{'a' * 32}.building/part-00000000.json": "[]",
    f"shop/squares/{KEY[:16]}-v1-64-pad/{KEY}.bin": "mine",
    f"study/index/{KEY}.parquet": "mine",
    f"study/headers/{KEY}.parquet": "mine",
    f"study/scan/{KEY[:16]}-v15.shards/{KEY}-1-of-2": "mine",
    "thesis/phantom/water-v1-2-3/PHANTOM.txt": "a measured phantom",
    "thesis/phantom/water-v1-2-3/raw_scan.dcm": "irreplaceable",
    f"ours/cache/phantom/{PHANTOM}/raw_scan.dcm": "irreplaceable",
    "other_project/predict.json": "{}",
    "other_project/journal.jsonl": '{"my": "journal"}',
    f"ours/runs/name/.{RUN}.old/thesis.docx": "mine",
    f"runs/{RUN}/status.json": json.dumps({"hash": RUN, "state": "complete"}),
    f"runs/.{RUN}.old/thesis.docx": "mine",
    f"runs/.{RUN}.anew/config.yaml": "mine",
}


def test_only_what_is_proven_by_its_content_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything(tmp_path / "ours")
    for name, text in OTHERS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    save_table(tmp_path / "study" / "duplicates" / f"{KEY}.parquet", pd.DataFrame({"a": [1]}))
    for path in tmp_path.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert main(["prune", str(tmp_path), "apply=true"]) == 0
    assert OTHERS.keys() <= files(tmp_path)
    assert (tmp_path / "study" / "duplicates" / f"{KEY}.parquet").exists()
    told = capsys.readouterr().out
    assert told.count("not known to be hemlearn's: ") == 14
    assert f"{PHANTOM} (" in told
    assert "not known to be hemlearn's: raw_scan.dcm" in told
    assert "not known to be hemlearn's: thesis.docx" in told


@pytest.mark.parametrize("how", ["place", "config", "beside", "elsewhere"])
def test_a_checkpoint_that_another_run_starts_from_stays(tmp_path: Path, how: str) -> None:
    parent = run(tmp_path / "runs" / "parent")
    told = {"weights_place": f"../../parent/{RUN}/{LAST}"} if how != "config" else {}
    child = run(tmp_path / ("other" if how == "elsewhere" else "runs") / "child", "c" * 12, **told)
    if how == "elsewhere":
        (child / "provenance.json").write_text(json.dumps({"weights_place": os.path.relpath(parent / LAST, child)}))
    if how == "config":
        (child / "config.yaml").write_text(f"backbone:\n  weights: {parent / LAST}\n")
    folder = tmp_path / "runs" / ("parent" if how in ("beside", "elsewhere") else "")
    gone, left = free(find(folder, ["checkpoints"], [tmp_path / "other"] if how == "elsewhere" else []))
    assert (parent / LAST).exists()
    assert [str(child) in why for why in left.values()] == [True]
    assert [item.path for item in gone] == ([child / LAST] if folder.name == "runs" else [])


def test_a_phantom_that_was_just_drawn_or_is_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = everything(tmp_path) / "cache" / "phantom" / PHANTOM
    os.utime(folder)
    assert [item.busy for item in find(tmp_path, ["phantoms"])] == ["written within the last hour"]
    os.utime(folder, (1e9, 1e9))
    monkeypatch.setattr("hemlearn.phantom.layouts.PHANTOM_VERSION", 2)
    data = HeadCTDataModule(cache_dir=tmp_path / "cache", phantom_patients=40)
    assert data.root == folder
    pickle.dumps(data)
    assert [item.busy for item in find(tmp_path, ["phantoms"])] == ["a running command reads it"]
    del data
    gc.collect()
    assert [item.busy for item in find(tmp_path, ["phantoms"])] == [""]


def test_half_a_removal_is_known_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything(tmp_path)
    monkeypatch.setattr("hemlearn.util.prune.shutil.rmtree", lambda path: None)  # killed before the first file went
    free(find(tmp_path, ["phantoms", "stores"]))
    assert not find(tmp_path, ["phantoms", "stores"])
    assert not (tmp_path / "cache" / "stores" / KEY).exists()


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
        (lambda root: hold_open(root / "cache" / "phantom" / PHANTOM / "PHANTOM.txt"), "phantoms"),
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
    assert main(["prune"]) == 2
    assert " runs`, the cache and all runs" in capsys.readouterr().err
    assert main(["prune", str(tmp_path), "only=store"]) == 2
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
