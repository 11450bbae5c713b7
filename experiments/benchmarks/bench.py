"""The page of benchmarks: every part in order, each beside its aim and the command that measures it alone.

    python experiments/benchmarks/bench.py                  # all parts, about 16 minutes; each has a limit
    python experiments/benchmarks/bench.py startup fit      # some
    python experiments/benchmarks/bench.py > page.md

A part that fails, or does not end within its time, is told, and the exit status is 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]
import torch

HERE = Path(__file__).resolve().parent


class Part(NamedTuple):
    """A script with its arguments, what it is to reach, and the seconds it may take."""

    title: str
    aim: str
    call: tuple[str, ...]
    limit: int


PARTS = {
    "startup": Part("Start-up", "stated", ("startup_speed.py",), 240),
    "loader": Part(
        "Loader",
        "pydicom in every epoch 6 x, CacheDataset 5 x, PersistentDataset 7 x; a tenth of CacheDataset's memory",
        ("loader_speed.py", "--patients", "20"),
        180,
    ),
    "prepare": Part(
        "index + prepare of DICOM", "0.85 of the loop; each file opened once", ("prepare_speed.py", "turns", "20"), 240
    ),
    "fit": Part("trainer.fit", "0.95 of the bare loop", ("fit_speed.py",), 300),
    "sequence": Part("Sequence stage", "10 x in float32", ("sequence_speed.py",), 120),
    "jobs": Part(
        "Twenty sequence models", "1.3 embedding passes", ("sweep_speed.py", "sequence", "--series", "16"), 360
    ),
    "sweep": Part("Forty tiny runs", "1.5 s beside the fit", ("sweep_speed.py", "tiny"), 360),
    "export": Part("Exported model", "as before: 2.5 to 3.9 x", ("export_speed.py",), 120),
}


def measure(part: Part) -> bool:
    """Print one section; whether the part ended well."""
    shown = f"python experiments/benchmarks/{' '.join(part.call)}"
    print(f"## {part.title}\n\nAim: {part.aim}. `{shown}`\n", flush=True)
    began = time.perf_counter()
    call = [sys.executable, str(HERE / part.call[0]), *part.call[1:]]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=part.limit, check=False)
    except subprocess.TimeoutExpired:
        print(f"**Did not end within {part.limit} s.**\n", flush=True)
        return False
    print(done.stdout.strip() if done.returncode == 0 else f"**Failed.**\n\n{done.stderr[-2000:]}")
    print(f"\n{time.perf_counter() - began:.0f} s\n", flush=True)
    return done.returncode == 0


def main(names: list[str]) -> int:
    """Print the page; 1 where a part did not end well, 2 where a name is none."""
    if unknown := set(names) - set(PARTS):
        print(f"{', '.join(sorted(unknown))}: no part; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    load = psutil.getloadavg()[0]
    print(f"# Benchmarks\n\n{psutil.cpu_count()} cores, {load:.1f} processes waiting for them at the start; ", end="")
    print(f"torch {torch.__version__}, PyTorch Lightning {version('pytorch-lightning')}\n")
    whole = [measure(PARTS[name]) for name in (names or PARTS)]
    print(f"{sum(whole)} of {len(whole)} parts in {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
