"""The correlation of a score with a measured number of the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.hemlearn_mri.evans import correlation, main, patient_scores, report
from hemlearn.compare.runs import find_runs
from hemlearn.util.errors import DataError
from tests.reports.conftest import kfold_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for fold in range(5):
        kfold_run(tmp_path / "runs", f"{fold}" * 12, fold, slices=3, provenance={"data": {"root": str(data)}})
    scores = patient_scores(find_runs([tmp_path / "runs"]).runs)
    assert len(scores) == 100
    truth = scores.assign(evans_index=scores["network"] ** 3)  # rises with the score, not in a line
    twice = pd.concat([truth, truth])  # one row per slice, as a phantom writes them
    twice[["patient_id", "evans_index"]].to_csv(data / "phantom.csv", index=False)
    return tmp_path


def test_all_folds_are_joined_with_the_truth(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {(row["patients"], row["measure"]): row for row in report([str(runs / "runs")], None, "evans_index")}
    assert rows["all", "Spearman"]["n"] == 100
    assert rows["all", "Spearman"]["value"] == pytest.approx(1.0)
    pearson = rows["all", "Pearson"]
    assert pearson["low"] < pearson["value"] < pearson["high"] < 1.0
    assert rows["label 1", "Pearson"]["n"] + rows["label 0", "Pearson"]["n"] == 100
    assert "100 tested patients, 0 of them without evans_index" in capsys.readouterr().out


def test_the_interval_holds_the_correlation_it_was_drawn_from() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 300).T
    value, low, high = correlation(x, y, "Pearson")
    assert low < 0.6 < high
    assert value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert np.isnan(correlation(x[:9], y[:9], "Pearson")).all()
    assert np.isnan(correlation(np.ones(20), y[:20], "Spearman")).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.rename(columns={"evans_index": "evans"}), "no column 'evans_index'"),
        (lambda t: t.assign(evans_index=np.arange(len(t))), "has two values"),
        (lambda t: t.assign(evans_index="wide"), "evans_index='wide' of patient 'p"),
    ],
)
def test_a_bad_table_is_refused(runs: Path, change: object, text: str) -> None:
    file = runs / "data" / "phantom.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)  # type: ignore[operator]
    with pytest.raises(DataError, match=text):
        report([str(runs / "runs")], None, "evans_index")


def test_unknown_patients_are_counted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "some.csv"
    pd.read_csv(runs / "data" / "phantom.csv").drop_duplicates().head(40).to_csv(file, index=False)
    assert main([str(runs / "runs"), f"truth={file}"]) == 0
    assert "100 tested patients, 60 of them without evans_index" in capsys.readouterr().out


def test_no_run_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    (tmp_path / "runs").mkdir()
    assert main([str(tmp_path / "runs")]) == 1
    assert "ERROR" in capsys.readouterr().err
