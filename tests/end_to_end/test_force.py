"""Making a run anew, listing runs, and picking one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from hemlearn.__main__ import main
from hemlearn.commands.train import sweep_direction
from hemlearn.training.run import pick_run
from hemlearn.util.errors import ConfigError, RunError
from tests.end_to_end.conftest import run_folders, status_of


def test_a_run_is_made_anew_and_the_old_result_stays_until_then(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("trainer.max_epochs=1",)
    assert train(*short) == 0
    (folder,) = run_folders(tmp_path / "runs")
    first, before = status_of(folder), pd.read_parquet(folder / "predictions.parquet")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("hemlearn.training.runner.evaluate_run", broken)
        assert train(*short, "force=true") == 1
    assert status_of(folder) == first
    assert train(*short) == 0  # skipped: the old result is there
    assert status_of(folder) == first
    assert train(*short, "force=true") == 0
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    again = status_of(folder)
    assert (again["state"], again["hash"]) == ("complete", folder.name)
    assert again["pid"] == first["pid"]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "predictions.parquet"), before)

    assert train(*short, "backbone.weights=runs/default/best", "freeze=head", "backbone.pretrained=true") == 0
    other = next(path for path in run_folders(tmp_path / "runs") if path != folder)
    assert f"weights: {Path('runs/default') / folder.name}" in (other / "config.yaml").read_text()
    assert train(*short, "optimizer.lr=1e-3", "task.label_weights=[1]", "loss.positive_weight=[-1]") == 1
    capsys.readouterr()
    assert main(["runs", "runs/default"]) == 1  # one has failed
    printed = capsys.readouterr().out
    for part in (
        "3 runs",
        f"default/{folder.name}",
        "complete",
        "failed",
        "freeze.name",
        "log_loss 0.",
        "loss.positive",
    ):
        assert part in printed
    assert main(["plan", "run=runs/default/latest"]) == 0
    assert other.name in capsys.readouterr().out
    assert pick_run(Path("runs/default/latest")).name == other.name


def test_no_run_to_list_or_pick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match="no finished run"):
        pick_run(tmp_path / "best")
    assert main(["runs", str(tmp_path)]) == 1
    assert "no run in it" in capsys.readouterr().err
    assert main(["runs"]) == 2
    assert "no folders given" in capsys.readouterr().err


def test_a_sweeper_looks_for_the_better_end_of_the_metric() -> None:
    """As hydra-optuna-sweeper configures itself: it minimises what a job returns."""
    optuna = OmegaConf.create({"sweeper": {"_target_": "hydra_plugins...OptunaSweeper", "direction": "minimize"}})
    basic = OmegaConf.create({"sweeper": {"_target_": "hydra._internal...BasicSweeper", "params": None}})

    def words(monitor: str, own: Any = optuna, *overrides: str) -> list[str]:
        return sweep_direction(OmegaConf.create({"task": {"monitor": monitor}}), own, overrides)

    assert words("auroc") == ["hydra.sweeper.direction=maximize"]
    assert words("log_loss") == words("last") == words("auroc", basic) == []
    with pytest.raises(ConfigError, match=r"worst task\.monitor=ap"):
        words("ap", optuna, "hydra.sweeper.direction=minimize")
