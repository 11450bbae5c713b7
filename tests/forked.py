"""Commands of hemlearn in forked processes: the third-party packages are loaded once, so that a command starts at once.

Used by ``golden.py`` and ``attack``. Nothing of hemlearn is imported here: each child imports it anew.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import runpy
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

# What the commands load anyway; one that is not installed is left to them.
PRELOADED = (
    "numpy", "pandas", "pyarrow.parquet", "scipy.stats", "scipy.optimize", "scipy.ndimage", "torch", "torchvision",
    "timm", "pytorch_lightning", "torchmetrics", "kornia.augmentation", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "sklearn.linear_model", "hydra", "hydra._internal.hydra", "omegaconf",
    "rich.table", "pydicom", "nibabel", "PIL.Image", "imagehash", "joblib", "filelock", "pandera.pandas",
    "monai.visualize.class_activation_maps",
)  # fmt: skip


def preload(names: Sequence[str] = PRELOADED) -> None:
    """Import the packages; collecting garbage in a child need not walk them again."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    gc.collect()
    gc.freeze()


def hemlearn(argv: Sequence[str]) -> Callable[[], object]:
    """What ``python -m hemlearn ARGV`` does."""

    def run() -> object:
        sys.argv = ["hemlearn", *argv]
        runpy.run_module("hemlearn", run_name="__main__", alter_sys=True)
        return 0

    return run


def spawn(target: Callable[[], object], cwd: Path, out: BinaryIO, err: BinaryIO) -> int:
    """Fork; the child works in ``cwd`` and writes to the two files. Returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status: object = 1
    try:
        os.setsid()  # the child and all that it starts can be ended together
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.path[0] = str(cwd)
        try:
            status = target()
        except SystemExit as stop:
            status = stop.code
        except BaseException:  # noqa: BLE001  # as the interpreter would
            traceback.print_exc()
        getattr(threading, "_shutdown")()  # noqa: B009  # as the interpreter ends: worker processes are let go first
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)
