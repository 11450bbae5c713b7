"""Array jobs that share the reading of a data set: their store is that of one process, whatever is killed or broken."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hemlearn.__main__ import main
from hemlearn.data import scan
from hemlearn.phantom.layouts import write_phantom
from hemlearn.util import block_file
from tests.data.test_scan import dicom_set


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("set") / "heads"
    write_phantom("head_ct", folder, patients=12, seed=0)
    broken = folder / "head_ct/head_ct/001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return folder


def prepare(root: Path, cache: Path, *words: str) -> int:
    return main(["prepare", f"data.root={root}", "data.image_size=32", f"data.cache_dir={cache}", *words])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened, in their order."""
    names: list[str] = []
    real = scan._open_file

    def spy(path: Path, *task: Any) -> Any:
        names.append(path.name)
        return real(path, *task)

    monkeypatch.setattr(scan, "_open_file", spy)
    return names


def store_of(cache: Path) -> tuple[str, bytes, dict[str, Any]]:
    """Key, pixels and marker of the one store of a cache folder, in which nothing else is left of it."""
    (folder,) = (path for path in (cache / "stores").iterdir() if path.is_dir())
    assert not list((cache / "squares").glob("*"))
    return folder.name, (folder / "slices.bin").read_bytes(), json.loads((folder / "complete.json").read_text())


def test_shards_in_any_order_make_the_store_of_one(
    tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    names = [*dicom_set(tmp_path / "set"), "01a.dcm"]  # the third of nine
    (tmp_path / "set" / "01a.dcm").write_bytes(b"no DICOM" * 40)
    assert prepare(tmp_path / "set", tmp_path / "one", "data=dicom") == 0
    wanted, read = store_of(tmp_path / "one"), []
    for number, told in ((3, "shards 1, 2 of 3"), (1, "shard 2 of 3"), (2, "8 slices of 32 x 32")):
        capsys.readouterr()
        opened.clear()
        assert prepare(tmp_path / "set", tmp_path / "all", "data=dicom", f"shard={number}/3") == 0
        assert told in capsys.readouterr().out
        read.append(set(opened))
    assert store_of(tmp_path / "all") == wanted
    # Each has opened its own three; the last one the broken one too, to say why it is left out.
    assert list(map(len, read)) == [3, 3, 4]
    assert not read[0] & read[1]
    assert read[2] & (read[0] | read[1]) == {"01a.dcm"}
    assert set().union(*read) == set(names)


def test_a_killed_shard_is_given_again_and_a_missing_one_is_named(
    root: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scan, "_CHUNK", 2)
    real, seen = scan._open_files, []

    def killed(*task: Any) -> Any:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*task)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "_open_files", killed)
        patch.setattr(scan, "run_parallel", lambda function, tasks, **_: (scan._open_files(*task) for task in tasks))
        assert prepare(root, tmp_path / "all", "shard=1/2") != 0
    (done,) = opened
    opened.clear()
    assert prepare(root, tmp_path / "all", "shard=1/2") == 0
    assert len(opened) == 5
    assert done not in opened
    opened.clear()
    assert prepare(root, tmp_path / "all") == 0  # without shard: the rest
    assert "shard 2 of 2: not done" in capsys.readouterr().out
    assert len(opened) == 6
    assert prepare(root, tmp_path / "one") == 0
    assert store_of(tmp_path / "all") == store_of(tmp_path / "one")


def test_shards_of_several_numbers_in_one_cache_count_together(
    root: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(root, tmp_path, "shard=1/2") == 0  # the first six
    opened.clear()
    assert prepare(root, tmp_path, "shard=2/3") == 0  # the fifth to the eighth
    assert sorted(opened) == ["006.png", "007.png"]
    assert "missing: shard 3 of 3" in capsys.readouterr().out
    opened.clear()
    assert prepare(root, tmp_path) == 0
    assert "shard 3 of 3: not done" in capsys.readouterr().out
    assert len(opened) == 4


def test_shards_of_another_size_divide_what_is_decoded_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files are known, their pixels at this size are not: parts of the store are divided."""
    from hemlearn.data import store

    monkeypatch.setattr(store, "PART_BYTES", 2 * 40 * 40)
    cache = tmp_path / "cache"
    assert prepare(root, cache) == 0
    shutil.rmtree(cache / "stores")
    capsys.readouterr()
    assert prepare(root, cache, "data.image_size=40", "shard=1/2") == 0
    assert "missing: shard 2 of 2" in capsys.readouterr().out
    (building,) = (cache / "stores").glob("*.building")
    assert len(list(building.glob("part-*.json"))) == 3
    part = building / "part-00000002.json"
    told = json.loads(part.read_text())
    part.write_text(json.dumps(told | {"sha256": "0" * 64}))  # as after a power loss
    assert prepare(root, cache, "data.image_size=40", "shard=2/2") == 0
    assert "missing: shard 1 of 2" in capsys.readouterr().out
    assert prepare(root, cache, "data.image_size=40", "shard=1/2") == 0
    assert prepare(root, tmp_path / "one", "data.image_size=40") == 0
    assert store_of(cache) == store_of(tmp_path / "one")


@pytest.mark.parametrize("word", ["0/4", "5/4", "3", "a/b", "1/0", "1/13", "-1/4", "1/2/3"])
def test_impossible_shards(word: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = 1 if word == "1/13" else 2  # a word that cannot be meant is a wrong call
    assert prepare(root, tmp_path / "cache", f"shard={word}") == status
    printed = capsys.readouterr().err
    assert "shard=" in printed
    assert "Fix:" in printed
    assert "Traceback" not in printed
    assert word.partition("/")[2] != "13" or "there are 12 files to divide" in printed


def test_a_shard_does_not_mind_that_all_is_built_meanwhile(root: Path, tmp_path: Path) -> None:
    import numpy as np

    from hemlearn.util.shards import Shard

    file = block_file.BlockFile(tmp_path / "cache" / "stores" / "x", "data.bin", (4, 2), "<i2")

    def fill(missing: Any) -> Any:
        for rows in missing:
            yield file.write(rows.start, np.ones((len(rows), 2), "<i2"))

    def late(missing: Any) -> Any:
        file.build(fill, step=1, what="x")
        yield from fill(missing)

    file.build(late, step=1, what="x", shard=Shard(1, 2))
    assert file.is_complete(whole=True)
    assert file.array.sum() == 8
