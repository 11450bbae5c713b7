"""Watching a sweep: what jobs note, drawn as a table, as plain lines and as the summary."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from hemlearn.commands.sweep import Sweep, Watch, jobs_of
from hemlearn.config.compose import check_command, conf_dir
from hemlearn.util.console import on_terminal
from hemlearn.util.notes import FOLDER, HOST, TABLE, note, noting

ROOT = "data.root=/home/jane/patients/ct"


def ended(state: str, value: float = float("nan"), seconds: float = 0.0, **others: Any) -> dict[str, Any]:
    scored = {"metric": "auroc", "mode": "max", "value": value} if value == value else {}
    return {"event": "end", "state": state, "seconds": seconds, **scored, **others}


@pytest.fixture
def notes(tmp_path: Path) -> Callable[..., Path]:
    """Write what a job notes: its number, its swept words, its notes."""

    def write(number: int, words: list[str], *facts: dict[str, Any], pid: int = os.getpid(), host: str = HOST) -> Path:
        start = {"event": "start", "overrides": [ROOT, *words], "pid": pid, "host": host}
        with (tmp_path / f"{number:06d}.jsonl").open("a") as file:
            file.writelines(json.dumps(fact) + "\n" for fact in (start, *facts))
        return tmp_path

    return write


@pytest.fixture
def recorded(notes: Callable[..., Path]) -> Path:
    """Six jobs of eight: two complete, one skipped, one failed, one pruned, one running."""
    notes(0, ["seed=0"], ended("complete", 0.71, 100.0, folder="runs/a/00"))
    notes(1, ["seed=1"], ended("complete", 0.93, 140.0, folder="runs/a/01"))
    notes(2, ["seed=2"], ended("skipped", 0.88, 0.2, folder="runs/a/02"))
    error = {"event": "error", "error": "split.file: patient-3f9a2c71b0de stands twice\n  Fix: name each once"}
    own = ended("failed", 0.0, 3.0, error="split.file: JANE stands twice")
    notes(3, ["seed=3"], {"event": "folder", "folder": "runs/a/03"}, error, own)
    notes(4, ["seed=4"], ended("pruned", 0.99, 60.0))  # not a finished run's value
    return notes(5, ["seed=5"], {"event": "epoch", "epoch": 2, "epochs": 9})


def drawn(sweep: Sweep, width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    sweep.read()
    console.print(sweep.table())
    return console.export_text()


def test_table_says_counts_best_time_left_and_epoch(recorded: Path) -> None:
    text = drawn(Sweep(recorded, 8, ["seed"]))
    assert "5 of 8 jobs: 2 complete, 1 skipped, 1 failed, 1 pruned, 1 running" in text
    assert "ETA 5 min" in text  # three jobs of 100 s, one at a time
    assert "best val/auroc 0.9300: job 1 seed=1" in text
    row = next(line for line in text.splitlines() if "seed=5" in line).split()
    assert row[:4] == ["5", "seed=5", "running", "2/9"]
    assert "jane" not in text


@pytest.mark.parametrize("width", [20, 40])
def test_narrow_terminal_folds_the_table(recorded: Path, width: int) -> None:
    lines = drawn(Sweep(recorded, 8, ["seed"]), width).splitlines()
    assert max(map(len, lines)) <= width
    assert "5" in "".join(lines)


def test_summary_names_each_failed_job_with_error_and_log(recorded: Path, notes: Callable[..., Path]) -> None:
    notes(6, ["seed=6"], ended("failed", error="ValueError: what\n" + "line\n" * 20))
    sweep = Sweep(recorded, None, ["seed"])
    sweep.read()
    text = sweep.summary()
    assert text.startswith("6 jobs: 2 complete, 1 skipped, 2 failed, 1 pruned, 1 running")
    assert (
        "failed: job 3 seed=3\n      runs/a/03/train.log\n      split.file: patient-3f9a2c71b0de stands twice" in text
    )
    assert "Fix: name each once" in text
    assert "failed: job 6 seed=6\n      ValueError: what" in text
    assert text.count("line") < 10
    assert "hemlearn compare runs/a" in text
    assert "JANE" not in text
    assert "jane" not in text


def test_equal_errors_are_told_once(notes: Callable[..., Path]) -> None:
    for number in range(3):
        own = f"runs/a/{number}"
        folder = notes(number, [f"seed={number}"], ended("failed", error="no such model", folder=own))
    sweep = Sweep(folder, 3, ["seed"])
    sweep.read()
    assert sweep.summary().count("no such model") == 1
    assert sweep.summary().count("failed: job") == 3
    assert "hemlearn compare" not in sweep.summary()  # there is nothing to compare


def test_a_line_for_each_job_where_there_is_no_terminal(
    recorded: Path, notes: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with Watch(Sweep(recorded, 8, ["seed"])):
        notes(5, ["seed=5"], ended("complete", 0.8, 90.0))
    printed = capsys.readouterr().out
    assert "sweep: 1 of 8  complete  100 s  seed=0  val/auroc 0.7100  best 0.7100  ETA 12 min\n" in printed
    assert printed.count("sweep: ") == 6
    assert "6 of 8 jobs: 3 complete" in printed


def test_a_killed_job_has_no_result(notes: Callable[..., Path]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    notes(0, ["seed=0"], pid=gone.pid)
    notes(1, ["seed=1"], pid=gone.pid, host="elsewhere")  # another machine's processes are not known here
    sweep = Sweep(notes(2, ["seed=2"], ended("complete", 0.5, 9.0), pid=gone.pid), 3, ["seed"])
    for _ in range(2):  # a last note may come just before the process ends
        sweep.read()
    assert [job.state for job in sweep.jobs.values()] == ["without a result", "running", "complete"]
    assert [job.number for job in sweep.failed] == [0]
    assert "kill -9" in sweep.summary()


def test_the_lower_loss_is_the_best(notes: Callable[..., Path]) -> None:
    for number, loss in enumerate((0.4, 0.3, 0.6)):
        folder = notes(number, [f"seed={number}"], ended("complete", loss, 5.0, metric="log_loss", mode="min"))
    sweep = Sweep(folder, 3)  # a sweeper that names no keys: what differs is shown
    sweep.read()
    assert "best val/log_loss 0.3000: job 1 seed=1" in sweep.summary()
    assert "data.root" not in sweep.summary()


def test_jobs_that_do_not_see_the_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "elsewhere"))
    with noting(0, ["seed=0"]):
        note("end", state="complete")
    sweep = Sweep(tmp_path, 2)
    assert "starting the first job" in drawn(sweep)
    assert sweep.read() == []
    assert "0 of 2 jobs" in sweep.summary()
    assert "no job has noted how it ended" in sweep.summary()


def test_what_a_job_prints_stands_above_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv(TABLE, "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console = Console(record=True, width=100, file=io.StringIO())
    with Watch(Sweep(tmp_path, 1), console):
        with noting(0, ["seed=0"]):
            print("wandb: \x1b[1mhttps://jane:secret@host")
            assert not on_terminal()  # no bar of its own
            note("end", state="complete")
        assert on_terminal()
    text = console.export_text()
    assert r"wandb: \x1b[1mhttps://***@host" in text


LITE = len(list((conf_dir() / "backbone").glob("efficientnet_lite*.yaml")))
OPTUNA = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", "n_trials": 30}


@pytest.mark.parametrize(
    ("words", "sweeper", "expected"),
    [
        (["seed=0,1,2", "data=head_ct", "backbone=glob(efficientnet_lite*)"], None, (LITE * 3, ["seed", "backbone"])),
        (["seed=range(0,5)", "hydra/launcher=joblib"], None, (5, ["seed"])),
        (["sweep=freeze"], None, (25, ["freeze", "split.fold"])),
        (["sweep=freeze", "split.fold=0"], None, (5, ["freeze"])),
        (["optimizer.lr=interval(1e-5,1e-2)"], OPTUNA, (30, ["optimizer.lr"])),
        (["seed=0,1"], {"_target_": "mine.Sweeper"}, (None, ["seed"])),
    ],
)
def test_number_of_jobs(
    words: list[str], sweeper: dict[str, Any] | None, expected: tuple[int | None, list[str]]
) -> None:
    own: DictConfig = check_command(words).hydra
    if sweeper is not None:
        own = OmegaConf.create({"sweeper": sweeper})
    assert jobs_of(own, words) == expected
