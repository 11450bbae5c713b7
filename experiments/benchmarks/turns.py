"""Two ways to do one thing, measured in turns: medians of seconds and of processor seconds, and their ratio."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROUNDS = int(os.environ.get("ROUNDS", "5"))  # 1: whether a script works, no measurement


class Speed(NamedTuple):
    """Units per second of wall time and of processor time, medians over the rounds."""

    wall: float
    cpu: float


def clocks() -> tuple[float, float]:
    """Now, by wall clock and by processor time of this process and of its children that have ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(item.ru_utime + item.ru_stime for item in used)


def seconds(work: Callable[[], int]) -> tuple[int, float, float]:
    """How many units ``work`` did, in how many seconds, of which so many on processors (children included)."""
    began, cpu = clocks()
    done = work()
    now, used = clocks()
    return done, now - began, used - cpu


def in_turns(
    sides: Mapping[str, Callable[[], int]], rounds: int = ROUNDS, *, warm: bool = True
) -> tuple[dict[str, Speed], dict[str, Speed]]:
    """Run every side once per round, so that a busy machine slows all of them alike.

    Args:
        sides: Name -> function that does the work and returns how many units it did.
        rounds: Rounds that count.
        warm: Run each once before, without counting.

    Returns:
        Units per second of every side, and of every side but the first the ratio first / side, the median of its
        rounds' ratios.
    """
    if warm and rounds > 1:
        for work in sides.values():
            work()
    rates = {name: np.empty((rounds, 2)) for name in sides}
    for turn in range(rounds):
        for name, work in sides.items():
            done, wall, cpu = seconds(work)
            rates[name][turn] = done / wall, done / max(cpu, 1e-9)
    first, *others = sides
    speeds = {name: Speed(*np.median(found, axis=0)) for name, found in rates.items()}
    return speeds, {name: Speed(*np.median(rates[first] / rates[name], axis=0)) for name in others}


def hemlearn(*words: object, cache: Path) -> str:
    """Run ``hemlearn WORDS`` as a user does, on one thread, with a cache of its own; what it printed.

    Raises:
        SystemExit: It failed.
    """
    call = [sys.executable, "-m", "hemlearn", *map(str, words)]
    env = {**os.environ, "HEMLEARN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(call)}: exit status {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def table(speeds: Mapping[str, Speed], ratios: Mapping[str, Speed], unit: str, *, seconds: bool = False) -> str:
    """A Markdown table of :func:`in_turns`; ``seconds``: of each ``unit`` instead of rates."""
    first = next(iter(speeds))
    head = f"seconds per {unit} | processor seconds" if seconds else f"{unit}/s | {unit} per processor second"
    lines = [f"| | {head} | {first} is faster by (processor time; wall) |", "|---" * 4 + "|"]
    for name, speed in speeds.items():
        ratio = f"{ratios[name].cpu:.2f} x; {ratios[name].wall:.2f} x" if name in ratios else ""
        wall, cpu = (f"{1 / rate:.2f}" if seconds else f"{rate:,.{max(0, 2 - len(str(int(rate))))}f}" for rate in speed)
        lines.append(f"| {name} | {wall} | {cpu} | {ratio} |")
    return "\n".join(lines)
