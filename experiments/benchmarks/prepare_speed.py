"""Seconds, peak memory, openings and decodes of `hemlearn index` followed by `hemlearn prepare` on one data set.

hemlearn phantom layout=rsna out=/tmp/slices patients=66                       # about 2,000 DICOM slices
python experiments/benchmarks/prepare_speed.py data=rsna data.root=/tmp/slices
python experiments/benchmarks/prepare_speed.py count data=rsna data.root=/tmp/slices    # openings and decodes per file

Every measurement starts from an empty cache. Memory is the largest sum over a command's processes of what each holds
for itself (unique set size), sampled ten times a second. Counting runs in one process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

COMMANDS = ("index", "prepare")


def measure(overrides: list[str]) -> None:
    """Run both commands one after the other on a fresh cache, as a user would, and print what each took."""
    import psutil

    cache = tempfile.mkdtemp()
    try:
        for command in COMMANDS:
            argv = [sys.executable, "-m", "hemlearn", command, *overrides, f"data.cache_dir={cache}"]
            began, peak = time.perf_counter(), 0
            process = psutil.Popen(argv, stdout=subprocess.DEVNULL)
            used: dict[int, float] = {}
            while process.poll() is None:
                peak = max(peak, _unique_bytes(process))
                for item in (process, *_children(process)):
                    try:
                        times = item.cpu_times()
                        used[item.pid] = times.user + times.system
                    except psutil.Error:
                        continue
                time.sleep(0.1)
            if process.returncode:
                sys.exit(f"hemlearn {command} failed with {process.returncode}")
            print(
                f"{command}: {time.perf_counter() - began:.1f} s, {sum(used.values()):.1f} s of processor time, "
                f"peak {peak / 2**20:.0f} MiB",
                flush=True,
            )
    finally:
        shutil.rmtree(cache)


def _children(process: object) -> list[object]:
    import psutil

    try:
        return list(process.children(recursive=True))  # type: ignore[attr-defined]
    except psutil.Error:
        return []


def _unique_bytes(process: object) -> int:
    import psutil

    total = 0
    for item in (process, *_children(process)):
        try:
            total += item.memory_full_info().uss  # type: ignore[attr-defined]
        except psutil.Error:
            continue
    return total


def count(overrides: list[str]) -> None:
    """Count how often each file of the data set is opened and each slice is decoded by both commands together."""
    from hemlearn.__main__ import main
    from hemlearn.data import readers

    root = next(Path(text.partition("=")[2]).resolve() for text in overrides if text.startswith("data.root="))
    opened: Counter[str] = Counter()
    decoded: Counter[tuple[str, int]] = Counter()

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            opened[os.fsdecode(args[0])] += 1

    real = readers.Reader.decode

    def decode(self: readers.Reader, path: Path, frame: int, *rest: object, **more: object) -> object:
        decoded[str(path), frame] += 1
        return real(self, path, frame, *rest, **more)  # type: ignore[arg-type]

    readers.Reader.decode = decode  # type: ignore[method-assign, assignment]
    os.environ["LOKY_MAX_CPU_COUNT"] = "1"  # one worker: everything happens in this process
    cache = tempfile.mkdtemp()
    sys.addaudithook(hook)
    for command in COMMANDS:
        if status := main([command, *overrides, f"data.cache_dir={cache}"]):
            sys.exit(status)
    shutil.rmtree(cache)
    images = {path for path, _ in decoded}
    times = Counter(number for path, number in opened.items() if path in images)
    assert all(Path(path).resolve().is_relative_to(root) for path in images)
    print(f"{len(images)} files; openings -> files: {dict(sorted(times.items()))}")
    print(f"{len(decoded)} slices; decodes -> slices: {dict(sorted(Counter(decoded.values()).items()))}")


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["count"]:
        count(words[1:])
    else:
        measure(words)
