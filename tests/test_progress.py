import io
import logging
import sys
import threading

import pytest
from pytorch_lightning import Trainer

from hemlearn.util import console as progress
from hemlearn.util.console import run_parallel, set_up_logging, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    assert list(track([[1, 2], [3]], "Reading", 3, size=len)) == [[1, 2], [3]]
    assert [line.split()[1] for line in caplog.messages] == ["0/3", "2/3", "3/3", "3/3"]
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
