"""What the trackers receive: each epoch once over a resume, results with intervals, the best epoch's values."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger

from hemlearn.training.loggers import continue_tracking, log_results, result_values
from hemlearn.training.results import best_values
from hemlearn.training.run import RunFolder

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
    continue_tracking([again], folder, HISTORY[:2], steps=10)
    again.log_metrics({"val/auroc": 0.1}, step=9)  # known already
    again.log_metrics(HISTORY[2], step=14)
    log_results([again], METRICS, pd.DataFrame(), folder.figures, {"val/auroc": 0.9}, 15)
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
    continue_tracking([again], folder, HISTORY[:1], steps=5)
    for index in range(1, 3):
        again.log_metrics(HISTORY[index], step=5 * index + 4)
    held = again.experiment.get_metric_history(str(again.run_id), "val/auroc")
    assert [value.step for value in held] == [4, 9, 14]
