"""Sweeps: failures stay alone, what is missing is completed, trackers keep jobs apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hemlearn.__main__ import main
from tests.end_to_end.conftest import run_folders, status_of

Train = Callable[..., int]


def test_failing_job_does_not_stop_the_others(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "backbone.name=test_efficientnet,resnet81,test_resnet") == 1
    printed = capsys.readouterr().out
    assert "3 jobs: 2 complete, 0 skipped, 1 failed" in printed
    assert "failed: " in printed
    by_state = {status_of(folder)["state"]: folder for folder in run_folders(tmp_path / "runs")}
    assert set(by_state) == {"complete", "failed"}
    log = (by_state["failed"] / "train.log").read_text()
    assert "Traceback" in log
    assert "resnet81" in log


def test_relaunch_completes_only_what_is_missing(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("-m", "seed=0,1") == 0
    stamps = {folder: (folder / "predictions.parquet").stat().st_mtime_ns for folder in run_folders(tmp_path / "runs")}
    capsys.readouterr()
    assert train("-m", "seed=0,1,2") == 0
    assert "3 jobs: 1 complete, 2 skipped, 0 failed" in capsys.readouterr().out
    commands = [json.loads((f / "provenance.json").read_text())["command"] for f in run_folders(tmp_path / "runs")]
    assert sorted(command.rpartition(" ")[2] for command in commands) == ["seed=0", "seed=1", "seed=2"]
    assert all((folder / "predictions.parquet").stat().st_mtime_ns == stamp for folder, stamp in stamps.items())


def test_joblib_launcher_gives_the_same_predictions(train: Train, tmp_path: Path) -> None:
    assert train("-m", "seed=0,1", "trainer.threads=1") == 0
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "output_dir=parallel"]
    assert train("-m", "seed=0,1", "trainer.threads=1", *joblib) == 0
    serial, parallel = run_folders(tmp_path / "runs"), run_folders(tmp_path / "parallel")
    assert [folder.name for folder in serial] == [folder.name for folder in parallel]
    for one, two in zip(serial, parallel, strict=True):
        frames = [pd.read_parquet(folder / "predictions.parquet") for folder in (one, two)]
        pd.testing.assert_frame_equal(*frames, check_exact=False, rtol=0, atol=1e-6)


def test_sweep_preset_and_compare_end_in_one_table(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "mine" / "sweep"
    preset.mkdir(parents=True)
    (preset / "two_by_two.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      augmentation: none,flip_rotate\n      split: kfold\n      split.fold: 0,1\n      split.folds: 2\n"
    )
    assert train("--config-dir=mine", "sweep=two_by_two") == 0
    assert "4 jobs: 4 complete" in capsys.readouterr().out
    assert main(["compare", "runs/default", "out=table"]) == 0
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
    assert train("--config-dir=mine", "sweep=seeds", "seed=7", "augmentation=none") == 0
    (folder,) = run_folders(tmp_path / "runs")
    log = (folder / "train.log").read_text()
    assert "skipped" not in log
    assert log.count("run folder") == 1  # made once, not once per value of the preset


def test_wandb_keeps_jobs_apart_and_names_them_by_hash(train: Train, tmp_path: Path) -> None:
    assert train("-m", "seed=0,1", "logger=wandb", "logger.project=test", "logger.tags=[mine]") == 0
    for folder in run_folders(tmp_path / "runs"):
        (offline,) = (folder / "wandb").glob("offline-run-*")
        assert offline.name.endswith(folder.name)
        assert (offline / f"run-{folder.name}.wandb").stat().st_size > 0


def test_other_loggers_write_into_the_run_folder(train: Train, tmp_path: Path) -> None:
    assert train("logger.kinds=[csv,tensorboard,mlflow]") == 0
    (folder,) = run_folders(tmp_path / "runs")
    curves = pd.read_csv(folder / "csv" / "metrics.csv")
    assert curves["val/auroc"].notna().sum() == 2
    assert list((folder / "tensorboard").glob("events.*"))
    assert list((folder / "mlflow").rglob("meta.yaml"))


def test_resolved_config_can_be_read_back(train: Train, tmp_path: Path) -> None:
    assert train("freeze.schedule={1: all}") == 0
    (folder,) = run_folders(tmp_path / "runs")
    from hemlearn.config.schema import from_dict

    config = from_dict(yaml.safe_load((folder / "config.yaml").read_text()))
    assert config.freeze.schedule == {1: "all"}
    assert config.backbone.name == "test_efficientnet"
