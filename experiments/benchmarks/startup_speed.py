"""Seconds until hemlearn answers and trains, beside importing PyTorch Lightning alone.

    python experiments/benchmarks/startup_speed.py

Each is a process of its own, on one thread, with byte code that is compiled already: `hemlearn --help`; `hemlearn train
--cfg job`, which composes and checks a whole configuration; and `hemlearn train` on a prepared store until the first
batch has been learnt from.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from turns import hemlearn, in_turns, table

WORDS = ("data.phantom_patients=20", "data.image_size=64", "data.batch_size=8", "logger=none")
FIRST = """
import os, sys
from hemlearn.__main__ import main
from hemlearn.training.callbacks import EpochLog
EpochLog.on_train_batch_end = lambda *_: os._exit(0)
main(sys.argv[1:])
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"
        hemlearn("prepare", *WORDS[:2], cache=cache)
        # The process ends in the middle of a run: what it leaves behind goes with the folder.
        env = {**os.environ, "HEMLEARN_CACHE": str(cache), "OMP_NUM_THREADS": "1", "TMPDIR": name}

        def side(*words: str) -> Callable[[], int]:
            def work() -> int:
                subprocess.run([sys.executable, *words], env=env, check=True, capture_output=True)
                return 1

            return work

        sides = {
            "import pytorch_lightning": side("-c", "import pytorch_lightning"),
            "hemlearn --help": side("-m", "hemlearn", "--help"),
            "hemlearn train --cfg job": side("-m", "hemlearn", "train", "--cfg", "job"),
            "hemlearn train, first step": side("-c", FIRST, "train", *WORDS, f"output_dir={folder / 'runs'}"),
        }
        print(table(*in_turns(sides), "start", seconds=True))


if __name__ == "__main__":
    main()
