"""Slices per second of ``trainer.fit`` beside a bare forward/backward/step loop on the same tensors.

    python experiments/benchmarks/fit_speed.py [KEY=VALUE ...]            # overrides of hemlearn train
    python experiments/benchmarks/fit_speed.py augmentation=none

Both sides train the same network with the same optimiser; they take turns, so that a busy machine slows both. The bare
loop holds its tensors in memory and does not augment them. On a GPU: gpu.py.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback

from hemlearn.config.compose import compose
from hemlearn.tasks.slices import SliceClassification
from hemlearn.training.build import build_datamodule, build_task
from hemlearn.training.callbacks import EpochLog
from hemlearn.training.trainer import build_trainer
from hemlearn.util.console import silence_libraries

ROUNDS = 5


class Clock(Callback):
    """Times each training epoch and lets the bare loop have its turn after it."""

    def __init__(self, bare: Any) -> None:
        self.bare = bare
        self.pairs: list[tuple[float, float, float, float]] = []  # seconds, processor seconds; of the bare loop

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._start = now()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop, then run the bare loop over as many slices."""
        half = now()
        self.bare()
        end = now()
        self.pairs.append((*(half - self._start), *(end - half)))


def now() -> NDArray[np.float64]:
    """Wall clock and processor seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    """Measure and print both rates and their ratio."""
    silence_libraries()
    default = ["logger=none", f"trainer.max_epochs={ROUNDS + 1}", "data.phantom_patients=240"]
    config = compose([*default, *sys.argv[1:]])
    torch.set_num_threads(config.trainer.threads)
    data = build_datamodule(config)
    data.prepare_data()
    labels = data.labels[data.rows("train")]
    counts = {name: (labels == value).sum(axis=0).tolist() for name, value in (("positives", 1), ("negatives", 0))}

    def build() -> SliceClassification:
        pl.seed_everything(0, verbose=False)
        task = build_task(config, unit=data.store.unit, **counts)
        assert isinstance(task, SliceClassification)
        return task

    other = build().train()
    optimizer = torch.optim.AdamW(other.parameter_groups(), lr=config.optimizer.lr, fused=True)
    layout = torch.channels_last if config.trainer.channels_last else torch.contiguous_format
    with torch.no_grad():
        tensors = [
            (other.channels(batch["image"]).contiguous(memory_format=layout), batch["label"])
            for batch in data.train_dataloader()
        ]
    slices = sum(len(label) for _, label in tensors)

    def bare() -> None:
        for image, label in tensors:
            loss = other.loss(other.head(other.backbone(image)), label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    clock = Clock(bare)
    trainer = build_trainer(config, [], [EpochLog(), clock])
    trainer.limit_val_batches = 0
    with tempfile.TemporaryDirectory() as folder:
        trainer._default_root_dir = folder  # Lightning keeps a checkpoint of its own
        trainer.fit(build(), train_dataloaders=data.train_dataloader())
    pairs = np.array(clock.pairs[1:])  # the first warms up
    wall, cpu, bare_wall, bare_cpu = slices / np.median(pairs, axis=0)
    ratios = np.median(pairs[:, 2:] / pairs[:, :2], axis=0)
    size = config.data.image_size
    print(f"{config.backbone.name}, {size} px, batch {config.data.batch_size}, {config.augmentation.name}")
    print(f"trainer.fit {wall:.1f} slices/s ({cpu:.1f} per processor second)", end="   ")
    print(f"bare loop {bare_wall:.1f} ({bare_cpu:.1f})   ratio {ratios[0]:.3f} ({ratios[1]:.3f})")


if __name__ == "__main__":
    main()
