"""Two processes, however they are started, make the run that one process makes (all: tests/attack/launchers.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack import launchers


@pytest.mark.parametrize(("launcher", "kind"), [("slurm", "head"), ("torchrun_two_nodes", "cached")])
def test_two_processes_make_the_run_of_one(launcher: str, kind: str, tmp_path: Path) -> None:
    root = launchers.data(tmp_path / "data")
    one = launchers.one_process(kind, root, tmp_path)
    assert launchers.try_launcher(launcher, kind, root, tmp_path, one) < launchers.TOLERANCE
