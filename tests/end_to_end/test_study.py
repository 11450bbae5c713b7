"""A study prunes by validation; a pruned run is neither failed nor complete, and can be gone on with."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hemlearn.config import compose
from hemlearn.config.compose import check_command
from hemlearn.util.errors import ConfigError
from tests.end_to_end.conftest import run_folders, status_of

Train = Callable[..., int]


@pytest.mark.parametrize(
    ("word", "extra"),
    [
        ("hydra/launcher=slurm", "slurm"),
        ("hydra/launcher=submitit", "slurm"),
        ("hydra/launcher=submitit_local", "slurm"),
        ("hydra/launcher=ray", "ray"),
        ("hydra/sweeper=optuna_study", "optuna"),
        ("sweep=optuna", "optuna"),
    ],
)
def test_a_plug_in_that_is_not_installed_is_told_with_its_extra(
    word: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "submitit" if extra == "slurm" else extra
    if extra == "slurm" and importlib.util.find_spec(package):
        pytest.skip("submitit is installed")
    monkeypatch.setattr(compose, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_command([word])
    assert f"{package} is not installed: pip install 'hemlearn[{extra}]'" in str(caught.value)


def test_a_study_prunes_and_goes_on(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'hemlearn[optuna]'")
    words = [
        "hydra/sweeper=optuna_study",
        "optimizer.lr=tag(log, interval(1e-4, 1e-2))",
        "trainer.max_epochs=3",
        "trainer.threads=1",
    ]
    pruner = ["hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.upper=0"]
    pruner += ["~hydra.sweeper.pruner.n_startup_trials", "hydra.sweeper.pruner.n_warmup_steps=1"]
    assert train("-m", *words, *pruner, "hydra.sweeper.n_trials=2") == 0
    assert "0 failed, 2 pruned" in capsys.readouterr().out
    folders = run_folders(tmp_path / "runs")
    assert {status_of(folder)["state"] for folder in folders} == {"pruned"}
    assert "pruned after epoch 2: val/" in status_of(folders[0])["error"]
    (storage,) = (tmp_path / "runs").glob("*/study.db")
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{storage}")
    trials = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{storage}").trials
    assert [trial.state.name for trial in trials] == ["PRUNED", "PRUNED"]
    assert [sorted(trial.intermediate_values) for trial in trials] == [[0, 1], [0, 1]]
    assert train("-m", *words, *pruner, "hydra.sweeper.n_trials=2") == 0  # nothing is left
    assert len(run_folders(tmp_path / "runs")) == len(folders)
    # Without the study its words train it to the end.
    rate = trials[0].params["optimizer.lr"]
    assert train(f"optimizer.lr={rate!r}", "trainer.max_epochs=3", "trainer.threads=1") == 0
    (done,) = (folder for folder in run_folders(tmp_path / "runs") if status_of(folder)["state"] == "complete")
    assert done in folders
    assert "resuming from" in (done / "train.log").read_text()
    assert json.loads((done / "metrics.json").read_text())["val"]
