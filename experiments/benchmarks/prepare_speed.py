"""Seconds, peak memory, openings and decodes of `hemlearn index` followed by `hemlearn prepare` on one data set.

    python experiments/benchmarks/prepare_speed.py turns [PATIENTS]       # beside a bare loop, on a synthetic set
    hemlearn phantom layout=rsna out=/tmp/slices patients=66              # about 2,000 DICOM slices
    python experiments/benchmarks/prepare_speed.py data=rsna data.root=/tmp/slices
    python experiments/benchmarks/prepare_speed.py count data=rsna data.root=/tmp/slices    # openings, decodes per file

Every measurement starts from an empty cache. Memory is the largest sum over a command's processes of what each holds
for itself (unique set size), sampled ten times a second. Counting runs in one process. The bare loop reads, decodes
and resizes each slice with pydicom and Pillow and writes one array, in as many workers. Each side runs in a process of
its own that has its modules already; the workers of both start anew.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COMMANDS, SIDE = ("index", "prepare"), 256


def measure(overrides: list[str]) -> None:
    """Run both commands one after the other on a fresh cache, as a user would, and print what each took."""
    import psutil  # type: ignore[import-untyped]

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
        with contextlib.redirect_stdout(sys.stderr):  # what the commands tell is no part of the page
            status = main([command, *overrides, f"data.cache_dir={cache}"])
        if status:
            sys.exit(status)
    shutil.rmtree(cache)
    images = {path for path, _ in decoded}
    times = Counter(number for path, number in opened.items() if path in images)
    assert all(Path(path).resolve().is_relative_to(root) for path in images)
    print(f"{len(images)} files; openings -> files: {dict(sorted(times.items()))}")
    print(f"{len(decoded)} slices; decodes -> slices: {dict(sorted(Counter(decoded.values()).items()))}")


def beside_a_loop(patients: int) -> None:
    """Slices per second of both commands together and of the bare loop, in turns, and how often files are opened."""
    import multiprocessing

    import joblib  # noqa: F401 - for both sides, as the rest
    import pydicom  # noqa: F401
    from turns import hemlearn, in_turns, table

    from hemlearn.__main__ import main
    from hemlearn.audits import audit  # noqa: F401
    from hemlearn.data import store  # noqa: F401
    from hemlearn.reports import tables  # noqa: F401
    from hemlearn.training import build  # noqa: F401

    fork = multiprocessing.get_context("fork")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "rsna"
        # In a process of its own: what forks from this one must not inherit a pool of workers.
        hemlearn("phantom", "layout=rsna", f"out={root}", f"patients={patients}", cache=folder / "cache")
        files = sorted(root.rglob("*.dcm"))
        words = ["data=rsna", f"data.root={root}", f"data.image_size={SIDE}", f"data.cache_dir={folder / 'cache'}"]

        def ours() -> None:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - until this process ends
            for command in COMMANDS:
                if main([command, *words]):
                    os._exit(1)

        def bare() -> None:
            from joblib import Parallel, delayed

            chunks = [files[start : start + 32] for start in range(0, len(files), 32)]
            out = np.memmap(folder / "bare.bin", np.int16, "w+", shape=(len(files), SIDE, SIDE))
            made = Parallel(n_jobs=cores, return_as="generator")(delayed(squares)(chunk) for chunk in chunks)
            for start, found in zip(range(0, len(files), 32), made, strict=True):
                out[start : start + len(found)] = found
            out.flush()

        def whole(work: Callable[[], None]) -> None:
            from joblib.externals.loky import get_reusable_executor

            work()
            get_reusable_executor().shutdown(wait=True)  # workers that have ended are counted

        def side(work: Callable[[], None]) -> Callable[[], int]:
            def run() -> int:
                shutil.rmtree(folder / "cache", ignore_errors=True)
                process = fork.Process(target=whole, args=(work,))
                process.start()
                process.join()
                if process.exitcode:
                    sys.exit(f"{work.__name__}: exit status {process.exitcode}")
                return len(files)

            return run

        speeds, ratios = in_turns({"index + prepare": side(ours), "bare loop": side(bare)})
        print(f"{len(files)} DICOM slices of RSNA's layout to {SIDE} px, {cores} workers")
        print(table(speeds, ratios, "slices"), flush=True)
        count(words[:-1])


def squares(files: list[Path]) -> NDArray[np.int16]:
    """Slices in HU, (N, 256, 256)."""
    import pydicom
    from PIL import Image

    made = []
    for file in files:
        found = pydicom.dcmread(file)
        hu = found.pixel_array.astype(np.float32) * float(found.RescaleSlope) + float(found.RescaleIntercept)
        made.append(np.asarray(Image.fromarray(hu).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(np.int16))
    return np.stack(made)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["count"]:
        count(words[1:])
    elif words[:1] == ["turns"]:
        beside_a_loop(int(words[1]) if len(words) > 1 else 30)
    else:
        measure(words)
