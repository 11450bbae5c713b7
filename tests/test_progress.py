import io
import logging
import sys
import threading

import pytest
from pytorch_lightning import Trainer

from hemlearn.util import console as progress
from hemlearn.util.console import run_parallel, set_up_logging, tell, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    assert list(track([[1, 2], [3]], "Reading", 3, size=len)) == [[1, 2], [3]]
    assert [line.split()[1] for line in caplog.messages] == ["0/3", "2/3", "3/3"]
    assert "done in" in caplog.messages[-1]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(track(range(3), "Reading")) == [0, 1, 2]
    assert "Reading" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert caplog.messages == []


def test_nothing_is_shown_when_not_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert list(track(range(3), "Reading", show=False)) == [0, 1, 2]
    assert caplog.messages == []


def test_a_short_loop_says_nothing_and_a_long_one_does(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    assert list(track(range(3), "Pooling groups", after=60)) == [0, 1, 2]
    assert caplog.messages == []
    now = iter(range(0, 100, 3))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    list(track(range(2), "Pooling groups", after=progress.NOTICED))
    assert caplog.messages[-1].startswith("Pooling groups: 2/2 done in")


def test_a_bar_on_a_terminal_waits_until_it_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    list(track(range(3), "Quick", after=60))
    assert screen.getvalue() == ""
    monkeypatch.setattr(progress, "NOTICED", 0.0)
    list(track(range(3), "Slow", after=progress.NOTICED))
    assert "Slow" in screen.getvalue()


def test_a_loop_inside_another_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in track(range(2), "Outer"):
        assert list(track(range(2), "Inner")) == [0, 1]
    assert [text.split(":")[0] for text in caplog.messages] == ["Outer"]
    list(track(range(1), "Next"))
    assert caplog.messages[-1].startswith("Next")


def test_lines_are_folded_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = "note: " + "word " * 30 + "/a/path/that/is/longer/than/the/terminal/is/wide/by/far.csv"
    screen, file = Terminal(), io.StringIO()
    tell(long, "short", file=screen)
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= 40 or " " not in line.strip() for line in lines)
    assert lines[1].startswith("  word")
    assert lines[-1] == "short"
    assert " ".join(screen.getvalue().split()) == " ".join(f"{long} short".split())
    tell(long, file=file)  # where a program reads them, lines stay whole
    assert file.getvalue() == long + "\n"


def double(value: int) -> tuple[int, int]:
    if value < 0:
        raise ValueError(f"negative {value}")
    return 2 * value, threading.get_ident()


@pytest.mark.parametrize("workers", [1, 2])
def test_parallel_results_and_errors(workers: int) -> None:
    out = list(run_parallel(double, [(value,) for value in range(20)], n_jobs=workers, processes=False))
    assert sorted(value for value, _ in out) == list(range(0, 40, 2))
    assert (threading.get_ident() in {thread for _, thread in out}) == (workers == 1)
    with pytest.raises(ValueError, match="negative -1"):
        list(run_parallel(double, [(1,), (-1,)], n_jobs=workers, processes=False))
    assert list(run_parallel(double, [], n_jobs=workers, processes=False)) == []


def test_lightnings_notices_are_silent_once_a_command_logs(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.INFO)  # as Lightning leaves it
    caplog.set_level(logging.INFO)
    set_up_logging()
    Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    assert "GPU available" not in caplog.text
    assert "Tip" not in caplog.text
