"""Sweeps: failures stay alone, what is missing is completed, trackers keep jobs apart."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hemlearn.__main__ import main
from hemlearn.config.schema import from_dict
from tests.end_to_end.conftest import SMALL, run_folders, status_of

Train = Callable[..., int]
FOLDS = ["split=kfold", "split.folds=2", "split.fold=0,1"]
SHARED = ["trainer.max_epochs=1", "trainer.threads=1"]


@pytest.fixture(scope="module")
def swept(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two augmentations and two folds from a preset of the user's, with every tracker; only read."""
    folder = tmp_path_factory.mktemp("sweep")
    preset = folder / "mine" / "sweep"
    preset.mkdir(parents=True)
    (preset / "two_by_two.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      augmentation: none,flip_rotate\n      split: kfold\n      split.fold: 0,1\n      split.folds: 2\n"
    )
    trackers = ["logger.kinds=[wandb,csv,tensorboard,mlflow]", "logger.project=test", "logger.tags=[mine]"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("HEMLEARN_CACHE", str(folder / "cache"))
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(folder)
        call = ["train", "--config-dir=mine", "sweep=two_by_two", f"data.root={phantom_root}", *SMALL, *SHARED]
        assert main([*call, *trackers]) == 0
    assert "4 jobs: 4 complete" in printed.getvalue()
    assert printed.getvalue().count("no patient ids: each of") == 1, (
        "what all jobs would say of their data is said once"
    )
    return folder


def test_failing_job_does_not_stop_the_others(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "backbone.name=resnet81,test_resnet", "freeze.schedule={0: all}", *SHARED) == 1
    printed = capsys.readouterr().out
    assert "2 jobs: 1 complete, 0 skipped, 1 failed" in printed
    assert "failed: job 0 backbone.name=resnet81\n" in printed
    assert "sweep: 2 of 2  complete" in printed
    assert "data.root" not in printed  # what all of them have
    by_state = {status_of(folder)["state"]: folder for folder in run_folders(tmp_path / "runs")}
    assert set(by_state) == {"complete", "failed"}
    log = (by_state["failed"] / "train.log").read_text()
    assert "Traceback" in log
    assert "resnet81" in log
    # The resolved configuration of the other can be read back, with the numbers that are keys.
    config = from_dict(yaml.safe_load((by_state["complete"] / "config.yaml").read_text()))
    assert config.freeze.schedule == {0: "all"}
    assert config.backbone.name == "test_resnet"


def test_relaunch_completes_only_what_is_missing(
    swept: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(swept / "runs", tmp_path / "runs")
    (gone,) = (
        folder
        for folder in run_folders(tmp_path / "runs")
        if (config := from_dict(yaml.safe_load((folder / "config.yaml").read_text()))).augmentation.name == "none"
        and config.split.fold == 1
    )
    shutil.rmtree(gone)
    stamps = {folder: (folder / "predictions.parquet").stat().st_mtime_ns for folder in run_folders(tmp_path / "runs")}
    assert len(stamps) == 3
    assert train("-m", *FOLDS, "augmentation=none,flip_rotate", *SHARED) == 0
    assert "4 jobs: 1 complete, 3 skipped, 0 failed" in capsys.readouterr().out
    folders = run_folders(tmp_path / "runs")
    assert folders == sorted([*stamps, gone])
    assert all((folder / "predictions.parquet").stat().st_mtime_ns == stamp for folder, stamp in stamps.items())
    commands = {folder: json.loads((folder / "provenance.json").read_text())["command"].split() for folder in folders}
    for folder, words in commands.items():  # each names its own values and no list
        config = from_dict(yaml.safe_load((folder / "config.yaml").read_text()))
        assert f"split.fold={config.split.fold}" in words
        assert f"augmentation={config.augmentation.name}" in words


def test_sweep_preset_and_compare_end_in_one_table(swept: Path, tmp_path: Path) -> None:
    assert main(["compare", str(swept / "runs" / "default"), f"out={tmp_path / 'table'}"]) == 0
    table = pd.read_csv(tmp_path / "table" / "compare.csv").query("source == 'runs'")  # and the nulls' rows
    assert len(table) == 2
    assert (table["n"] == 40).all()  # both folds pooled: every patient was tested once
    assert (tmp_path / "table" / "compare.md").is_file()
    assert (tmp_path / "table" / "roc.png").is_file()


def test_a_key_on_the_command_line_replaces_what_a_preset_sweeps_over(train: Train, tmp_path: Path) -> None:
    preset = tmp_path / "mine" / "sweep"
    preset.mkdir(parents=True)
    (preset / "seeds.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      seed: 0,1,2\n      augmentation: none,flip_rotate\n"
    )
    assert train("--config-dir=mine", "sweep=seeds", "seed=7", "augmentation=none", *SHARED) == 0
    (folder,) = run_folders(tmp_path / "runs")
    log = (folder / "train.log").read_text()
    assert "skipped" not in log
    assert log.count("run folder") == 1  # made once, not once per value of the preset


def test_wandb_keeps_jobs_apart_and_names_them_by_hash(swept: Path) -> None:
    for folder in run_folders(swept / "runs"):
        (offline,) = (folder / "wandb").glob("offline-run-*")
        assert offline.name.endswith(folder.name)
        assert (offline / f"run-{folder.name}.wandb").stat().st_size > 0


def test_other_loggers_write_into_the_run_folder(swept: Path) -> None:
    for folder in run_folders(swept / "runs"):
        curves = pd.read_csv(folder / "csv" / "metrics.csv")
        assert curves["val/auroc"].notna().sum() == 1
        assert list((folder / "tensorboard").glob("events.*"))
        assert list((folder / "mlflow").rglob("meta.yaml"))
