"""What the trackers receive: each epoch once over a resume, results with intervals, the best epoch's values."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, WandbLogger

from hemlearn.config.schema import Config
from hemlearn.training import loggers
from hemlearn.training.folder import RunFolder
from hemlearn.training.loggers import build_loggers, continue_tracking, log_results, result_values, wandb_mode
from hemlearn.training.results import best_values

HISTORY = [{"epoch": 0.0, "val/auroc": 0.7}, {"epoch": 1.0, "val/auroc": 0.9}, {"epoch": 2.0, "val/auroc": 0.8}]
METRICS = {
    "test": {"slice": {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9}, "labels": {}}},
    "audits": {"size": {"test": {"slice": {"auroc": {"value": 0.6, "low": None, "high": None}}}}, "verdict": []},
}


def test_the_best_epoch_is_that_of_the_checkpoint() -> None:
    frame = pd.DataFrame(HISTORY)
    assert best_values(frame, "auroc", "max") == {"epoch": 1.0, "val/auroc": 0.9}
    assert best_values(frame, "auroc", "min")["epoch"] == 0.0
    assert best_values(frame, "last", "min")["epoch"] == 2.0
    assert best_values(frame.assign(**{"val/auroc": float("nan")}), "auroc", "max")["epoch"] == 2.0


def test_results_have_intervals_and_baselines() -> None:
    assert result_values(METRICS, {"val/auroc": 0.9}) == {
        "best/val/auroc": 0.9,
        "test/slice/auroc": 0.8,
        "test/slice/auroc_low": 0.7,
        "test/slice/auroc_high": 0.9,
        "baseline/size/slice/auroc": 0.6,
    }


def test_a_resumed_run_logs_each_epoch_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "name", "0123456789ab")
    first = CSVLogger(folder.path, name="", version="csv")
    first.log_metrics(HISTORY[0], step=4)  # the process was killed before the next one reached the file
    first.save()
    again = CSVLogger(folder.path, name="", version="csv")
    continue_tracking([again], folder, [(4, HISTORY[0]), (9, HISTORY[1])], steps=10)
    again.log_metrics({"val/auroc": 0.1}, step=9)  # known already
    again.log_metrics(HISTORY[2], step=14)
    log_results([again], METRICS, pd.DataFrame(), folder, {"val/auroc": 0.9}, 15)
    table = pd.read_csv(folder.path / "csv" / "metrics.csv")
    assert table["step"].tolist() == [4, 9, 14, 15]
    assert table["val/auroc"].dropna().tolist() == [0.7, 0.9, 0.8]
    assert table["test/slice/auroc_low"].iloc[-1] == 0.7


def test_mlflow_receives_no_epoch_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = RunFolder(tmp_path, "name", "0123456789ab")
    first = MLFlowLogger("name", tracking_uri=tmp_path.as_uri())
    for index in range(2):  # the process was killed after it had logged an epoch that no checkpoint holds
        first.log_metrics(HISTORY[index], step=5 * index + 4)
    again = MLFlowLogger("name", tracking_uri=tmp_path.as_uri(), run_id=first.run_id)
    continue_tracking([again], folder, [(4, HISTORY[0])], steps=5)
    for index in range(1, 3):
        again.log_metrics(HISTORY[index], step=5 * index + 4)
    held = again.experiment.get_metric_history(str(again.run_id), "val/auroc")
    assert [value.step for value in held] == [4, 9, 14]


# --- without a network ---


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a server that is not there; nothing is remembered of earlier ones."""
    monkeypatch.setattr(loggers, "_given_up", set())
    loggers.reachable.cache_clear()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def wandb_at(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """W&B is to be found at an address where there is none."""
    import wandb

    monkeypatch.setenv("WANDB_BASE_URL", nowhere)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    wandb.teardown()  # it reads the variables once
    yield nowhere
    wandb.teardown()


def tracked(kind: str, folder: Path, **more: Any) -> Any:
    """The only tracker of a run."""
    config = Config(logger={"kinds": [kind], **more})
    (made,) = build_loggers(config, RunFolder(folder, "name", "0123456789ab"))
    return made


def test_wandb_without_a_network_goes_on_offline_at_once(
    wandb_at: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.monotonic()
    made = tracked("wandb", tmp_path, mode="online")
    assert isinstance(made, WandbLogger)
    assert made._wandb_init["mode"] == "offline"
    assert time.monotonic() - start < 20  # not the 90 seconds that wandb.init waits
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert wandb_at in line
    assert f"wandb sync {tmp_path / 'name' / '0123456789ab' / 'wandb'}" in line


def test_a_server_that_refuses_is_asked_once_in_a_sweep(
    wandb_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    asked = []

    def init(**_: Any) -> None:
        asked.append(True)
        raise wandb.errors.CommError("failed to get resume status\nof the run")

    monkeypatch.setattr(loggers, "reachable", lambda _: True)
    monkeypatch.setattr(wandb, "init", init)
    for job in ("a", "b"):
        assert tracked("wandb", tmp_path / job, mode="online")._wandb_init["mode"] == "offline"
    assert len(asked) == 1
    assert "failed to get resume status; this run is logged offline" in caplog.text


def test_a_malformed_key_of_wandb_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "xyz")
    assert wandb_mode("auto") == "offline"
    assert "API key must" in caplog.text


def test_an_mlflow_server_that_is_not_there_costs_no_run(
    nowhere: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tracked("mlflow", tmp_path, tracking_uri=nowhere)
    made.log_metrics({"val/auroc": 0.5}, step=1)
    (value,) = made.experiment.get_metric_history(str(made.run_id), "val/auroc")
    assert value.value == 0.5
    assert f"logger.tracking_uri={nowhere}: cannot be reached" in caplog.text
    assert (tmp_path / "name" / "0123456789ab" / "mlflow").is_dir()


def test_a_tracker_that_fails_in_the_middle_is_asked_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent = []

    class Dropped(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            sent.append(step)
            if step == 2:
                raise ConnectionError("no route to host")

    made = Dropped(tmp_path)
    loggers._outlive(made)
    for step in range(5):
        made.log_metrics({"a": 1.0}, step=step)
    assert sent == [0, 1, 2]
    assert caplog.text.count("no route to host") == 1
