"""What runs keep on the disk: checkpoints without the frozen weights they started from, and what stays at the end."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
import yaml

from hemlearn.__main__ import main
from hemlearn.models.weights import resolve_weights
from hemlearn.training.callbacks import BestAndLast
from hemlearn.training.run import Run, load
from hemlearn.util.errors import RunError, WeightsError
from hemlearn.util.files import settle
from tests.conftest import seal
from tests.end_to_end.conftest import SMALL, run_folders, status_of

Train = Callable[..., int]
FROZEN = ["backbone.pretrained=true", "backbone.weights=start.pth", "freeze=head", "trainer.ema_decay=0.9"]
CHECKPOINTS = ("best.ckpt", "last.ckpt")


@pytest.fixture(scope="module")
def trained(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``start.pth``, and ``runs`` with a frozen run that started from it; only read."""
    folder = tmp_path_factory.mktemp("lean")
    torch.manual_seed(3)
    torch.save(timm.create_model("test_efficientnet", num_classes=0).state_dict(), folder / "start.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["train", f"data.root={phantom_root}", *SMALL, *FROZEN]) == 0
    return folder


@pytest.fixture
def frozen(trained: Path, tmp_path: Path, train: Train) -> Path:
    """The run in a copy, in the working folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (folder,) = run_folders(tmp_path / "runs")
    return folder


def content(folder: Path, name: str = "best.ckpt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / name, weights_only=True)
    return found


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in Run(folder).model.state_dict().items()}


def test_checkpoints_of_a_frozen_run_hold_what_it_trained(frozen: Path) -> None:
    start = torch.load("start.pth", weights_only=True)
    for name in CHECKPOINTS:
        kept = content(frozen, name)
        for state in (kept["state_dict"], kept["current_model_state"]):
            assert not {f"backbone.model.{key}" for key in start} & set(state) - {"backbone.model.conv_stem.weight"}
            assert {"head.1.weight", "backbone.mean"} <= set(state)
        assert (frozen / "checkpoints" / name).stat().st_size < Path("start.pth").stat().st_size / 3
    state = torch.random.get_rng_state()
    assert Run(frozen).frozen_layers().startswith("those of file start.pth, as they were")
    assert torch.equal(
        torch.random.get_rng_state(), state
    )  # a run that starts from it draws as it would from a whole one
    found = weights_of(frozen)
    start.pop("conv_stem.weight")  # adapted to one channel
    assert all(torch.equal(found[f"backbone.model.{key}"], value) for key, value in start.items())


def stop_and_go_on(train: Train, folder: Path, words: list[str]) -> None:
    """Stop a run after its first epoch, and give its command again."""
    save = BestAndLast.on_train_epoch_end

    def once(self: BestAndLast, *arguments: Any) -> None:
        save(self, *arguments)
        raise RuntimeError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestAndLast, "on_train_epoch_end", once)
        assert train(*words) == 1
    assert content(folder, "last.ckpt")["epoch"] == 0
    assert train(*words) == 0


def test_a_stopped_lora_run_goes_on_to_the_same_end_and_is_read_as_the_plain_network(
    train: Train, frozen: Path, tmp_path: Path
) -> None:
    words = [word.replace("freeze=head", "freeze=lora") for word in FROZEN]
    words += ["freeze.rank=2", "freeze.dropout=0.2", "name=lora"]
    assert train(*words) == 0
    (folder,) = (path for path in run_folders(tmp_path / "runs") if path.parent.name == "lora")
    before, best = pd.read_parquet(folder / "predictions.parquet"), content(folder)
    names = {name for name in best["state_dict"] if name.startswith("backbone.model.")}
    assert {name for name in names if ".lora_" not in name} == {
        "backbone.model.conv_stem.base_layer.weight"
    }  # 1 channel
    cost = json.loads((folder / "provenance.json").read_text())["cost"]
    assert 0 < cost["trained_parameters"] < cost["parameters"] / 4
    model = Run(folder).model
    assert not [name for name in model.state_dict() if "lora" in name or "base_layer" in name]
    assert set(model.state_dict()) == set(Run(frozen).model.state_dict())
    shutil.rmtree(folder)
    stop_and_go_on(train, folder, words)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "predictions.parquet"), before, check_exact=True)
    again = content(folder)
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in best["state_dict"].items())


def test_an_interrupted_frozen_run_goes_on_to_the_same_end(train: Train, frozen: Path) -> None:
    before, best = pd.read_parquet(frozen / "predictions.parquet"), content(frozen)
    shutil.rmtree(frozen)
    stop_and_go_on(train, frozen, FROZEN)
    assert "resuming from" in (frozen / "train.log").read_text()
    pd.testing.assert_frame_equal(pd.read_parquet(frozen / "predictions.parquet"), before, check_exact=True)
    again = content(frozen)
    assert again["left_out"] == best["left_out"]
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in best["state_dict"].items())


def test_a_complete_run_is_made_whole_and_stays_the_same(
    train: Train, frozen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def source() -> str:
        return str(resolve_weights(Run(frozen).config.backbone.model_copy(update={"weights": str(frozen)})).checksum())

    weights, checksum = weights_of(frozen), source()
    assert train(*FROZEN, "checkpoints.whole=true") == 0
    assert "skipped" in capsys.readouterr().out
    Path("start.pth").unlink()
    assert all("left_out" not in content(frozen, name) for name in CHECKPOINTS)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(frozen).items())
    assert checksum == source()  # runs that started from it are still found
    assert Run(frozen).ours
    assert main(["doctor", f"run={frozen}"]) == 0


def test_a_run_that_was_not_made_whole_in_time_is_sound(
    train: Train, frozen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settled = []

    def until_the_checkpoint(draft: Path, path: Path) -> None:
        if path.suffix == ".ckpt":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        settled.append(path.name)
        settle(draft, path)

    with monkeypatch.context() as patch:
        patch.setattr("hemlearn.util.files.settle", until_the_checkpoint)
        assert train(*FROZEN, "checkpoints.whole=true") == 1
        assert "the disk is full" in capsys.readouterr().out
        assert settled == ["status.json", "provenance.json"]
    assert main(["doctor", f"run={frozen}"]) == 0
    assert train(*FROZEN, "checkpoints.whole=true") == 0
    assert all("left_out" not in content(frozen, name) for name in CHECKPOINTS)


@pytest.mark.parametrize("lost", [True, False])
def test_other_weights_than_those_at_the_start_are_refused(
    train: Train, frozen: Path, lost: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if lost:
        Path("start.pth").unlink()
        told = "backbone.weights=start.pth: no such file"
    else:
        changed = torch.load("start.pth", weights_only=True)
        next(reversed(changed.values())).add_(1)
        torch.save(changed, "start.pth")
        told = "weights that it started from are others now"
    with pytest.raises(RunError, match=told) as caught:
        _ = load(frozen).model
    assert "checkpoints.whole=true" in str(caught.value)
    asked = ["backbone.pretrained=true", f"backbone.weights={frozen}"]
    assert train(*asked, root=Path("no data here")) == 1
    assert told in "".join(capsys.readouterr())


def test_the_weights_are_found_from_elsewhere_and_beside_a_moved_run(
    frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(frozen)
    monkeypatch.chdir(tmp_path.parent)
    shutil.copytree(tmp_path, tmp_path / "moved", dirs_exist_ok=True, ignore=shutil.ignore_patterns("moved"))
    (tmp_path / "start.pth").unlink()
    there = tmp_path / "moved" / frozen.relative_to(tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(there).items())


def test_a_strangers_run_reads_no_file_that_it_names(frozen: Path, tmp_path: Path) -> None:
    seal(frozen)
    with pytest.raises(RunError, match=r"made elsewhere: backbone\.weights=start\.pth is read with trust=true alone"):
        _ = load(frozen).model
    assert load(frozen, trust=True).model.labels
    shutil.move(tmp_path / "start.pth", frozen / "start.pth")  # sent together
    seal(frozen, weights_place="start.pth")
    assert load(frozen).model.labels
    for weights in ("../../start.pth", "../start.pth"):  # in no run, though below the folder of runs
        shutil.copy(frozen / "start.pth", frozen / weights)
        seal(frozen, weights_place=weights)
        with pytest.raises(RunError, match="is read with trust=true alone"):
            _ = load(frozen).model


@pytest.mark.parametrize("name", ["local-dir:/etc", "hf-hub:somebody/model"])
def test_a_strangers_run_asks_no_address_whatever_weights_it_names(frozen: Path, name: str) -> None:
    file = frozen / "config.yaml"
    config = yaml.safe_load(file.read_text())
    told = {"name": name, "weights": "package:efficientnet_lite0"}
    file.write_text(yaml.safe_dump({**config, "backbone": {**config["backbone"], **told}}))
    seal(frozen)
    with pytest.raises(RunError, match=f"backbone.name={name} is asked with trust=true alone"):
        Run(frozen).frozen_layers()


@pytest.mark.parametrize(("keep", "stays"), [("best", ["best.ckpt"]), ("last", ["last.ckpt"]), ("none", [])])
def test_what_of_the_weights_is_kept(
    train: Train, frozen: Path, keep: str, stays: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    same = (frozen / "checkpoints" / "best.ckpt").read_bytes() == (frozen / "checkpoints" / "last.ckpt").read_bytes()
    (frozen / "status.json").write_text(json.dumps({**status_of(frozen), "state": "running"}))
    assert train(*FROZEN, f"checkpoints.keep={keep}") == 0  # all epochs were made: it tests and ends
    assert sorted(item.name for item in (frozen / "checkpoints").iterdir()) == sorted(stays)
    assert main(["doctor", f"run={frozen}"]) == 0
    assert load(frozen).metrics
    capsys.readouterr()
    assert train(*FROZEN) == 0
    assert "skipped" in capsys.readouterr().out
    if "best.ckpt" in stays or (stays and same):
        assert load(frozen).model.labels
    else:
        with pytest.raises(RunError, match=f"checkpoints.keep={keep}.*\n.*force=true checkpoints.keep=both"):
            _ = load(frozen).model
        with pytest.raises(WeightsError, match=f"has not kept .*checkpoints.keep={keep}"):
            resolve_weights(Run(frozen).config.backbone.model_copy(update={"weights": str(frozen)}))


def test_a_strangers_checkpoint_as_weights_runs_no_code_of_its_folder(
    train: Train, frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, file = tmp_path / "made_by_a_stranger", frozen / "config.yaml"
    node = {"_target_": "os.mkdir", "path": str(place)}
    config = yaml.safe_load(file.read_text())
    for group, told in (("backbone", node), ("loss", node)):
        file.write_text(yaml.safe_dump({**config, group: {**config[group], **told}}))
        seal(frozen)
        weights = f"backbone.weights={frozen / 'checkpoints' / 'best.ckpt'}"
        assert train("backbone.pretrained=true", weights, root=Path("no data here")) == 1
        assert "are not those of a shipped backbone" in "".join(capsys.readouterr())
    assert not place.exists()
