"""Two ways to do one thing, measured in turns: medians of seconds and of processor seconds, and their ratio."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

ROUNDS = 5


class Speed(NamedTuple):
    """Units per second of wall time and of processor time, medians over the rounds."""

    wall: float
    cpu: float


def seconds(work: Callable[[], int]) -> tuple[int, float, float]:
    """How many units ``work`` did, in how many seconds, of which so many on processors (children included)."""
    began, cpu = time.perf_counter(), processor_seconds()
    done = work()
    return done, time.perf_counter() - began, processor_seconds() - cpu


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


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
    if warm:
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


def table(speeds: Mapping[str, Speed], ratios: Mapping[str, Speed], unit: str) -> str:
    """A Markdown table of :func:`in_turns`."""
    first = next(iter(speeds))
    lines = [
        f"| | {unit}/s | {unit} per processor second | {first} is faster by (processor time; wall) |",
        "|---" * 4 + "|",
    ]
    for name, speed in speeds.items():
        ratio = f"{ratios[name].cpu:.2f} x; {ratios[name].wall:.2f} x" if name in ratios else ""
        lines.append(f"| {name} | {speed.wall:,.0f} | {speed.cpu:,.0f} | {ratio} |")
    return "\n".join(lines)
