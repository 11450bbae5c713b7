"""Slices per second of an exported model in onnxruntime beside the run's own network in torch, on one thread.

    python experiments/benchmarks/export_speed.py [--size 224] [--batch 8]

Both take the same batch of slices as files hold them, resize it and give probabilities; they take turns, and their
results are compared. The network is EfficientNet-Lite0, trained on a synthetic set for one epoch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from turns import hemlearn, in_turns, table

import hemlearn as package
from hemlearn.reading.export.model import Arrays, Caller, exportable
from hemlearn.reading.export.run import module_caller, open_model


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="pixels of the network's input")
    parser.add_argument("--batch", type=int, default=8, help="slices")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HEMLEARN_CACHE"] = str(folder / "cache")  # whose key has signed the run
        words = ("freeze=head", "augmentation=none", "trainer.max_epochs=1", "logger=none", "data.phantom_patients=20")
        runs = folder / "runs"
        hemlearn("train", *words, f"data.image_size={given.size}", f"output_dir={runs}", cache=folder / "cache")
        (run,) = (runs / "default").glob("*/")
        hemlearn("export", f"run={run}", f"out={folder / 'model.onnx'}", "check=4", cache=folder / "cache")
        loaded = package.load(run)
        model = exportable(loaded.config, loaded.model, loaded.calibration)
        callers = {"onnxruntime": open_model(folder / "model.onnx", "onnx", 1), "torch": module_caller(model)}
        rng = np.random.default_rng(0)
        batch: Arrays = {"image": rng.integers(0, 256, (given.batch, 1, 400, 320)).astype(np.float32)}
        first, second = (call(batch)["probability"] for call in callers.values())

        def side(call: Caller) -> Callable[[], int]:
            return lambda: sum(len(call(batch)["probability"]) for _ in range(4))

        speeds, ratios = in_turns({name: side(call) for name, call in callers.items()})
        print(f"EfficientNet-Lite0 at {given.size} px, batches of {given.batch} from 400 x 320 pixels, one thread")
        print(table(speeds, ratios, "slices"))
        print(f"largest difference of a probability: {np.abs(first - second).max():.1e}")


if __name__ == "__main__":
    main()
