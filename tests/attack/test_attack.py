"""One case in 120 of the attack, and all faults that were planted for it to see; `make attack` runs the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.attack import planted
from tests.attack.run import all_cases
from tests.conftest import PROJECT


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Verdicts of one case in 120."""
    out = tmp_path_factory.mktemp("attack") / "judged.json"
    command = [sys.executable, "-m", "tests.attack", "--share", "120", "--jobs", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=1800)
    assert out.is_file(), done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(out.read_text("utf-8"))
    return found


def test_there_are_enough_cases() -> None:
    assert len(all_cases()) >= 1500


def test_every_planted_fault_is_seen(judged: list[dict[str, Any]]) -> None:
    seen = {item["name"]: item["verdict"] for item in judged if item["kind"] == planted.KIND}
    assert len(seen) >= 10
    assert set(seen.values()) == {"fault"}, seen


def test_no_case_ends_in_a_fault(judged: list[dict[str, Any]]) -> None:
    real = [item for item in judged if item["kind"] != planted.KIND]
    assert len(real) >= 18
    assert {item["verdict"] for item in real} == {"right", "clear error"}, "\n".join(
        f"{item['kind']}/{item['name']}: {item['fault']}" for item in real if item["verdict"] == "fault"
    )
