"""Two processes make the run that one process makes: one launcher here, all of them by `make launchers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemlearn.__main__ import main
from tests.attack import launchers


def test_two_processes_make_the_run_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = launchers.data(tmp_path / "data")
    alone = launchers.command("cached", root, tmp_path / "one")
    assert main([*alone, "trainer.accumulate_grad_batches=2"]) == 0  # here: all is loaded
    one = launchers.finished(tmp_path / "one")
    assert launchers.try_launcher("slurm", "cached", root, tmp_path, one) < launchers.TOLERANCE
