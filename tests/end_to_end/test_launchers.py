"""Two processes make the run that one process makes: one launcher here, all of them by `make launchers`."""

from __future__ import annotations

from pathlib import Path

from tests.attack import launchers


def test_two_processes_make_the_run_of_one(tmp_path: Path) -> None:
    root = launchers.data(tmp_path / "data")
    one = launchers.one_process("cached", root, tmp_path)
    assert launchers.try_launcher("slurm", "cached", root, tmp_path, one) < launchers.TOLERANCE
