"""One run through the real command line: its folder, its repeat, its resume, its failures."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hemlearn.__main__ import main
from hemlearn.compare.comparison import compare
from hemlearn.compare.material import claim
from hemlearn.compare.runs import ComparedRun
from hemlearn.config.compose import from_dict
from hemlearn.config.schema import Config
from hemlearn.models.backbone import Backbone
from hemlearn.tasks import SliceClassification
from hemlearn.training import batch_size, runner
from hemlearn.training.build import build_datamodule, build_task
from hemlearn.training.run import Run
from hemlearn.training.runner import is_helper_process
from hemlearn.util.errors import ConfigError
from hemlearn.util.privacy import Pseudonyms
from tests.end_to_end.conftest import SMALL, run_folders, status_of
from tests.forked import spawn

Train = Callable[..., int]


def only_run(tmp_path: Path) -> Path:
    (folder,) = run_folders(tmp_path / "runs")
    return folder


@pytest.fixture(scope="module")
def trained(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``runs`` and ``cache`` of one finished run; only read."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["train", f"data.root={phantom_root}", *SMALL]) == 0
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """Run folder of a copy, which ``train()`` finds."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return only_run(tmp_path)


def test_run_folder_holds_what_the_contract_names(finished: Path) -> None:
    folder = finished
    for name in (
        "config.yaml",
        "status.json",
        "provenance.json",
        "split.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "predictions.parquet",
        "metrics.json",
        "train.log",
    ):
        assert (folder / name).is_file(), name
    assert {path.stem for path in (folder / "figures").glob("*.png")} >= {"roc", "pr", "reliability", "confusion"}
    status = status_of(folder)
    assert status["state"] == "complete"
    assert status["hash"] == folder.name
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["packages"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["checksums"]["manifest"]
    assert provenance["data"]["synthetic"] is True
    predictions = pd.read_parquet(folder / "predictions.parquet")
    nulls = [f"{name}_prob_hemorrhage" for name in ("size", "metadata", "border")]
    assert list(predictions) == [
        "split",
        "patient_id",
        "series_id",
        "slice_id",
        "z_mm",
        "label_hemorrhage",
        "prob_hemorrhage",
        *nulls,
    ]
    split = pd.read_csv(folder / "split.csv", dtype=str)
    assert split["patient_id"].is_unique
    held_out = split[split["split"] != "train"].set_index("patient_id")["split"]
    assert dict(predictions.set_index("patient_id")["split"]) == dict(held_out)
    metrics = json.loads((folder / "metrics.json").read_text())
    test = predictions[predictions["split"] == "test"]
    from sklearn.metrics import roc_auc_score

    expected = roc_auc_score(test["label_hemorrhage"], test["prob_hemorrhage"])
    assert metrics["test"]["slice"]["auroc"]["value"] == pytest.approx(expected, abs=1e-9)
    sides = metrics["audits"]["split"]  # images count as patients, under the same keys
    assert (sides["patients"], sides["patients_on_two_sides"]) == (len(test), 0)
    assert sides["parts"]["train"]["patients"] == (split["split"] == "train").sum()
    assert provenance["data"]["patients"] == len(split)


def test_checkpoint_loads_without_unpickling_and_gives_the_recorded_predictions(train: Train, tmp_path: Path) -> None:
    assert train("task.tta=[horizontal]", "trainer.max_epochs=1") == 0
    folder = only_run(tmp_path)
    torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    run = Run(folder)
    task = run.model
    data = build_datamodule(run.config)
    recorded = pd.read_parquet(folder / "predictions.parquet").query("split == 'test'").set_index("slice_id")
    with torch.inference_mode():
        for batch in data.eval_dataloader("test"):
            ids = data.manifest.table["slice_id"].iloc[batch["index"].numpy()]
            again = task.probabilities(batch["image"])[:, 0].numpy()
            np.testing.assert_allclose(again, recorded.loc[ids, "prob_hemorrhage"], atol=1e-6)


def test_finished_run_is_not_repeated(train: Train, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = finished / "checkpoints" / "best.ckpt"
    before = best.stat().st_mtime_ns
    assert train("logger=csv", "data.num_workers=1") == 0  # neither changes the result
    assert best.stat().st_mtime_ns == before
    assert "skipped" in capsys.readouterr().out


def killed_after_an_epoch(phantom_root: Path, tmp_path: Path, *overrides: str) -> Path:
    """Start a run in a fork, which has its packages loaded, kill -9 it once an epoch is saved, return its folder."""
    with Path(os.devnull).open("wb") as nothing:
        words = ["train", f"data.root={phantom_root}", *SMALL, *overrides]
        process = spawn(lambda: main(words), tmp_path, nothing, nothing)
    deadline = time.monotonic() + 300
    try:
        while not list((tmp_path / "runs").glob("*/*/checkpoints/last.ckpt")):
            assert os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    folder = only_run(tmp_path)
    assert status_of(folder)["state"] == "running"
    return folder


def terminated_after_two_epochs(train: Train, tmp_path: Path, *overrides: str) -> Path:
    """Train in this process until SIGTERM comes in the third epoch."""
    start = SliceClassification.on_train_epoch_start

    def third(task: Any) -> None:
        if task.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        start(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SliceClassification, "on_train_epoch_start", third)
        assert train(*overrides) == 143
    folder = only_run(tmp_path)
    assert "terminated; the same command goes on" in str(status_of(folder)["error"])
    return folder


def check_resumed_equals_undisturbed(train: Train, tmp_path: Path, folder: Path, overrides: list[str]) -> Path:
    done = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 1
    moved = shutil.move(tmp_path / "runs", tmp_path / "elsewhere")  # as when a cluster mounts it under another name
    assert train(*overrides, "output_dir=elsewhere") == 0
    log = (Path(moved) / folder.relative_to(tmp_path / "runs") / "train.log").read_text()
    resumed_log = log.partition("resuming from")[2]
    assert f"epoch {done + 1}/" in resumed_log
    assert f"epoch {done}/" not in resumed_log  # nothing was trained twice
    assert train(*overrides, "output_dir=undisturbed") == 0
    (one,), (two,) = run_folders(tmp_path / "elsewhere"), run_folders(tmp_path / "undisturbed")
    assert one.name == two.name == folder.name
    resumed, straight = (pd.read_parquet(path / "predictions.parquet") for path in (one, two))
    pd.testing.assert_frame_equal(resumed, straight, check_exact=True)
    assert (one / "csv" / "metrics.csv").read_text() == (two / "csv" / "metrics.csv").read_text()
    return one


def test_killed_run_resumes_in_mid_schedule_and_equals_an_undisturbed_one(
    phantom_root: Path, train: Train, tmp_path: Path
) -> None:
    overrides = ["trainer.max_epochs=8", "trainer.ema_decay=0.9", "augmentation=geometric_intensity"]
    overrides += ["freeze.trainable=head", "freeze.schedule={4: 1}", "logger=csv"]
    folder = killed_after_an_epoch(phantom_root, tmp_path, *overrides)
    resumed = check_resumed_equals_undisturbed(train, tmp_path, folder, overrides)
    before = initial_state(resumed)
    moved = {key for key in before if not torch.equal(before[key], states(resumed)[0][key])}
    backbone = {key for key in before if key.startswith("backbone.")}
    assert moved & backbone  # the last group was opened after the resume
    below = ("conv_stem.", "bn1.", *(f"blocks.{i}." for i in range(4)))
    stem = {key for key in backbone if key.removeprefix("backbone.model.").startswith(below)}
    assert stem
    assert not moved & stem


def test_terminated_run_resumes_its_plateau_and_its_best_epoch(train: Train, tmp_path: Path) -> None:
    overrides = ["trainer.max_epochs=5", "optimizer=plateau", "optimizer.schedule.patience=0", "optimizer.lr=0.02"]
    overrides += ["task.monitor=auroc", "augmentation=none", "logger=csv", "data.num_workers=1"]
    folder = terminated_after_two_epochs(train, tmp_path, *overrides)
    check_resumed_equals_undisturbed(train, tmp_path, folder, overrides)


def test_run_that_stopped_early_and_died_before_testing_is_only_tested(train: Train, tmp_path: Path) -> None:
    overrides = ["trainer.max_epochs=30", "trainer.early_stopping_patience=1", "optimizer.lr=0.02", "augmentation=none"]
    overrides.append("logger=csv")
    assert train(*overrides) == 0
    folder = only_run(tmp_path)
    epochs = json.loads((folder / "provenance.json").read_text())["cost"]["epochs"]
    assert epochs < 30
    before = pd.read_parquet(folder / "predictions.parquet")
    curves = (folder / "csv" / "metrics.csv").read_text()
    status = {**status_of(folder), "state": "running"}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "predictions.parquet").unlink()
    assert train(*overrides) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "predictions.parquet"), before)
    assert (folder / "csv" / "metrics.csv").read_text() == curves
    assert json.loads((folder / "provenance.json").read_text())["cost"]["epochs"] == epochs


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_an_empty_checkpoint_after_a_power_loss_is_made_again(train: Train, finished: Path, name: str) -> None:
    folder = finished
    before = pd.read_parquet(folder / "predictions.parquet")
    (folder / "status.json").write_text(json.dumps({**status_of(folder), "state": "running"}))
    (folder / "checkpoints" / name).write_bytes(b"")
    assert train() == 0
    assert f"{name}: cut or empty, as after a power loss: trained from the start" in (folder / "train.log").read_text()
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "predictions.parquet"), before, check_exact=True)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet"])
def test_complete_run_that_lost_a_file_gets_it_back(
    train: Train, finished: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished
    before = pd.read_parquet(folder / "predictions.parquet")
    (folder / name).unlink()
    capsys.readouterr()
    assert train() == 0
    printed = capsys.readouterr().out
    assert f"{name}: missing" in printed
    assert "epoch 1/" not in printed
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "predictions.parquet"), before)


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x41
    file.write_bytes(bytes(raw))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "config.yaml": lambda file: edit(file, "image_size: 64", "image_size: 96"),
    "split.csv": lambda file: edit(file, ",train", ",test"),
    "metrics.json": lambda file: edit(file, '"value": 0.', '"value": 0.9'),
    "predictions.parquet": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "checkpoints/best.ckpt": flip,
    "checkpoints/last.ckpt": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_was_changed_is_used_by_no_command(
    finished: Path, phantom_root: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE[name](finished / name)
    out = f"out={tmp_path / 'out'}"
    calls = [["predict", f"run={finished}", f"input={phantom_root / 'head_ct'}", out], ["doctor", f"run={finished}"]]
    calls += [["evaluate", f"run={finished}", "data=head_ct", f"data.root={phantom_root}", out]]
    calls += [["explain", f"run={finished}", out], ["export", f"run={finished}", f"{out}.onnx"]]
    if not name.startswith(("checkpoints", "split")):
        calls += [["compare", str(finished), out]]
    for call in calls:
        capsys.readouterr()
        assert main(call) == 1, call
        printed = capsys.readouterr()
        assert name in printed.out + printed.err, call
        assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("config.yaml", "split.csv", "metrics.json"), ("checkpoints/best.ckpt",)])
def test_what_was_changed_is_made_again(
    train: Train, finished: Path, names: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (finished / name).read_bytes() for name in DAMAGE if not name.startswith("checkpoints")}
    for name in names:
        DAMAGE[name](finished / name)
    capsys.readouterr()
    assert train() == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: changed" in printed for name in names)
    assert {name: (finished / name).read_bytes() for name in before} == before
    assert main(["doctor", f"run={finished}"]) == 0


def test_odd_folder_names_need_no_quotes(
    train: Train, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "a=b with space and ü (1)"
    (tmp_path / "runs").rename(tmp_path / place)
    assert train(f"output_dir={place}") == 0
    assert "skipped" in capsys.readouterr().out  # it was found there
    assert len(run_folders(tmp_path / place)) == 1


SLURM = {"SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "2"}


@pytest.mark.parametrize(
    ("launcher", "helper"),
    [
        ({}, False),
        ({"LOCAL_RANK": "1"}, True),  # Lightning's own
        ({"NODE_RANK": "1"}, True),
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "0", "GROUP_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, True),
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "0", "GROUP_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", **SLURM}, True),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", **SLURM}, False),
    ],
)
def test_the_launcher_says_which_process_writes(
    launcher: dict[str, str], helper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert is_helper_process(Config().changed({"trainer.devices": 2})) is helper
    if "SLURM_NTASKS" in launcher:  # several jobs of one allocation, each a run of its own
        assert not is_helper_process(Config())


def test_a_batch_of_one_value_per_channel_is_told(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("data.batch_size=1", "data.image_size=32") == 1
    shown = capsys.readouterr().out
    assert "data.batch_size=1 and data.image_size=32: BatchNorm has one value per channel" in shown
    assert "freeze.freeze_batchnorm=true" in shown


def states(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return last["state_dict"], last.get("current_model_state", last["state_dict"])


def initial_state(folder: Path) -> dict[str, torch.Tensor]:
    import pytorch_lightning as pl

    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    pl.seed_everything(0, verbose=False)
    kept = {key: value for key, value in last["hyper_parameters"].items() if key != "load_weights"}
    return build_task(from_dict(kept.pop("config")), **kept).state_dict()


KEPT_RANDOM = "they keep random weights"  # of layers that nothing has pretrained, and that are frozen


@pytest.mark.parametrize("ema", ["null", "0.9"])
def test_frozen_backbone_is_byte_identical_after_fit(train: Train, tmp_path: Path, ema: str) -> None:
    assert train("freeze=head", f"trainer.ema_decay={ema}", "trainer.max_epochs=1") == 0
    folder = only_run(tmp_path)
    before = initial_state(folder)
    for state in states(folder):
        moved = [key for key in before if not torch.equal(before[key], state[key])]
        assert moved
        assert all(key.startswith("head.") for key in moved), moved
    assert KEPT_RANDOM in (folder / "train.log").read_text()


def failed(tmp_path: Path) -> tuple[dict[str, object], str]:
    folder = only_run(tmp_path)
    status = status_of(folder)
    assert status["state"] == "failed"
    return status, (folder / "train.log").read_text()


def test_not_finite_loss_stops_the_run(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip=null", "trainer.max_epochs=4") == 1
    status, log = failed(tmp_path)
    assert "not finite" in str(status["error"]) or "training loss is" in str(status["error"])
    assert "lower optimizer.lr" in str(status["error"])
    assert "Traceback" in log
    assert json.loads((only_run(tmp_path) / "provenance.json").read_text())["cost"] is None
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("backbone.name=resnet81", ("resnet81", "resnet18")),
        ("augmentation.steps=[{_target_: kornia.augmentation.RandomAfine}]", ("augmentation.steps[0]", "RandomAffine")),
        ("task.labels=[bleeding]", ("bleeding", "hemorrhage")),
        ("backbone.weights=/nowhere/weights.pth", ("weights.pth",)),
    ],
)
def test_wrong_parts_fail_with_names_and_remedy(
    train: Train, tmp_path: Path, override: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["backbone.pretrained=true"] if "weights" in override else []
    assert train(override, *extra) == 1
    status, _ = failed(tmp_path)
    for part in (*parts, "Fix:"):
        assert part in str(status["error"])
    assert parts[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer=gpu", "trainer.accelerator=gpu: torch sees no GPU Fix: use trainer=cpu"),
        ("trainer.find_batch_size=true", "trainer.find_batch_size=true: cpu tells no limit of its memory Fix:"),
    ],
)
def test_a_device_that_cannot_is_told_before_data_are_read(
    train: Train, tmp_path: Path, override: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train(override, root=tmp_path / "nowhere") == 1
    status, _ = failed(tmp_path)
    assert told in " ".join(str(status["error"]).split())


def test_a_found_batch_size_is_kept_and_compared(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward, seen = Backbone.forward, []

    def small(self: Backbone, x: torch.Tensor) -> torch.Tensor:
        """A device that holds four slices."""
        if x.device.type != "meta" and self.training:
            if len(x) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Backbone, "forward", small)

    monkeypatch.setattr(runner, "check_device", lambda _: None)
    asked = ["trainer.find_batch_size=true", "trainer.max_epochs=1", "optimizer=sgd", "optimizer.lr=0.01"]
    asked += ["trainer.limit_train_batches=2"]
    assert train(*asked) == 0
    run = ComparedRun(only_run(tmp_path))
    assert run.provenance["batch"] == {"data.batch_size": 4, "optimizer.lr": 0.005}
    assert (run.keys["data.batch_size"], run.keys["optimizer.lr"], run.config.data.batch_size) == (4, 0.005, 8)
    assert set(seen[batch_size.STEPS : -1]) == {4}
    optimizer = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["initial_lr"] for group in optimizer["param_groups"]} == {0.005}
    (run.path / "metrics.json").unlink()
    found: list[Any] = []

    def taken(*arguments: Any) -> None:
        found.append(arguments[-1])
        raise ConfigError("enough", remedy="")

    monkeypatch.setattr(runner, "find_batch_size", taken)
    assert train(*asked) == 1
    assert found == [4]  # it goes on with what it had
    assert train("name=other") == 1
    told = "data.batch_size=8 and data.image_size=64: the device's memory does not suffice (CUDA out of memory."
    assert told in " ".join(capsys.readouterr().out.split())


def test_output_folder_that_cannot_be_written(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    assert train("output_dir=taken") == 1
    printed = capsys.readouterr().err
    assert "output_dir=taken" in printed
    assert "output_dir=DIR" in printed


def test_a_full_disk_is_told_with_its_free_space_and_leaves_no_half_file(
    train: Train,
    phantom_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(_: int) -> None:  # the disk takes what it is given, and has no room for it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    index = ["index", "data=head_ct", f"data.root={phantom_root}", "data.image_size=64", f"out={tmp_path / 'index'}"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert train("logger=csv") == 1
        assert main(index) == 1
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert re.search(r": the disk is full: \S+ (MB|GB) are free", text), text
        assert "Fix: free some space" in text
    assert "Traceback" not in printed.out + printed.err
    assert not list(tmp_path.rglob("*.part.*"))
    assert not [file for file in (tmp_path / "index").glob("*") if file.is_file()]
    assert main(index) == 0


def test_workers_change_no_bit_and_threads_nothing_but_the_last(
    train: Train, finished: Path, phantom_root: Path, tmp_path: Path
) -> None:
    assert train("data.num_workers=2", "data.resident=memory", "output_dir=workers") == 0
    (other,) = run_folders(tmp_path / "workers")
    pd.testing.assert_frame_equal(Run(other).predictions, Run(finished).predictions, check_exact=True)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(Run(finished).predict(phantom_root / "head_ct" / "head_ct", device="cpu")["prob_hemorrhage"])
    torch.set_num_threads(before)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5)


def test_missing_data_root_leaves_a_failed_run(train: Train, tmp_path: Path) -> None:
    assert train(root=tmp_path / "nothing") == 1
    status, _ = failed(tmp_path)
    assert "no such folder" in str(status["error"])


def test_split_of_one_run_is_used_by_the_next(train: Train, finished: Path, tmp_path: Path) -> None:
    first = finished
    sides = pd.read_csv(first / "split.csv", dtype=str)
    sides["split"] = sides["split"].map({"train": "train", "val": "test", "test": "val"})
    sides.to_csv(first / "split.csv", index=False)
    assert train("split=file", f"split.file={first / 'split.csv'}", "name=again", "trainer.max_epochs=1") == 0
    (second,) = (path for path in run_folders(tmp_path / "runs") if path.parent.name == "again")
    assert pd.read_csv(second / "split.csv").equals(pd.read_csv(first / "split.csv"))


def test_a_leak_is_refused_unless_it_is_allowed(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("split.by=slice") == 1  # test_leaky.py allows it
    assert "split.by='slice': puts slices of one pat" in capsys.readouterr().err


def test_cached_frozen_layers_change_nothing_but_the_time(train: Train, tmp_path: Path) -> None:
    for draws in (0, 1):  # without augmentation the one draw is the slice itself
        assert (
            train(
                "freeze.trainable=2",
                "augmentation=none",
                "task.tta=[horizontal]",
                "trainer.ema_decay=0.9",
                f"freeze.cached_draws={draws}",
            )
            == 0
        )
    frames = {}
    for folder in run_folders(tmp_path / "runs"):
        cached = "cached_draws: 1" in (folder / "config.yaml").read_text()
        assert cached == ("embeddings" in (folder / "train.log").read_text())
        frames[cached] = pd.read_parquet(folder / "predictions.parquet")
    without, cached = (frames[key]["prob_hemorrhage"].to_numpy() for key in (False, True))
    np.testing.assert_allclose(cached, without, atol=1e-4)
    assert np.ptp(cached) > 3e-4


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("freeze.trainable=all", "every layer trains"),
        ("augmentation.mixup=0.2", "mixes images"),
        ("sequence=slice", "by themselves"),
        ("trainer.devices=2", "trainer.devices=1"),
        ("freeze.schedule={0:1,1:2}", "changes what is frozen"),
    ],
)
def test_cached_frozen_layers_where_they_cannot_be_are_refused(
    train: Train, override: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("freeze.trainable=2", "freeze.cached_draws=4", override) != 0
    shown = capsys.readouterr()
    assert "freeze.cached_draws" in shown.err + shown.out
    assert text in shown.err + shown.out


def test_layers_that_train_sooner_or_later_are_not_called_random(train: Train, finished: Path) -> None:
    assert KEPT_RANDOM not in (finished / "train.log").read_text()  # all train from the start
    assert train("freeze.schedule={0:head,1:all}", "trainer.max_epochs=1", "name=later") == 0
    (folder,) = Path("runs/later").iterdir()
    assert KEPT_RANDOM not in (folder / "train.log").read_text()


def test_a_trained_run_answers_what_a_paper_must_report(trained: Path, tmp_path: Path) -> None:
    result = compare(trained / "runs")
    text = claim(result.entries, result.contrasts, result.notes, Pseudonyms(tmp_path))
    unknown = [line for line in text.splitlines() if "nknown: the run folders do not say" in line]
    assert unknown
    assert all("characteristics" in line for line in unknown)  # the synthetic set has neither age nor sex
    assert "| test | unknown | 8 |" in text  # images: the layout has no patient ids
    assert "Random initialisation" in text
    assert str(trained) not in text
