"""Slices per second of ``trainer.fit`` beside a bare forward/backward/step loop on the same tensors.

Run: ``python experiments/benchmarks/fit_speed.py [KEY=VALUE ...]`` with the overrides of ``hemlearn train``. Both
sides train the same network with the same optimiser; they take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from hemlearn.config.compose import compose
from hemlearn.config.schema import to_dict
from hemlearn.tasks.slices import SliceClassification
from hemlearn.training.build import build_datamodule
from hemlearn.training.callbacks import EpochLog
from hemlearn.training.runner import build_trainer

ROUNDS = 5


class Clock(Callback):
    """Times each training epoch and lets the bare loop have its turn after it."""

    def __init__(self, bare: Any) -> None:
        self.bare = bare
        self.fit: list[float] = []
        self.loop: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._start = now()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop, then run the bare loop over as many slices."""
        self.fit.append(now() - self._start)
        self.loop.append(self.bare())


def now() -> float:
    """Wall clock with the GPU's queue empty."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure and print both rates and their ratio."""
    default = ["logger=none", f"trainer.max_epochs={ROUNDS + 1}", "data.phantom_patients=240"]
    config = compose([*default, *sys.argv[1:]])
    data = build_datamodule(config)
    data.prepare_data()
    labels = data.labels[data.rows("train")]
    counts = [[float((labels == value).sum(axis=0)[0])] * labels.shape[1] for value in (1, 0)]
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    bf16 = config.trainer.precision == "bf16-mixed"

    def build() -> SliceClassification:
        pl.seed_everything(0, verbose=False)
        return SliceClassification(to_dict(config), data.store.unit, *counts)

    other = build().to(device).train()
    optim = config.optimizer
    groups = other.policy.parameter_groups(other.backbone, other.head, lr=optim.lr, weight_decay=optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, fused=True)
    with torch.no_grad():
        tensors = [
            (other._layout(other.channels(batch["image"].to(device))), batch["label"].to(device))
            for batch in data.train_dataloader()
        ]
    slices = sum(len(label) for _, label in tensors)

    def bare() -> float:
        start = now()
        for image, label in tensors:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = other.loss(other.head(other.backbone(image)), label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return now() - start

    clock = Clock(bare)
    trainer = build_trainer(config, [], [EpochLog(), clock])
    trainer.limit_val_batches = 0
    trainer.fit(build(), train_dataloaders=data.train_dataloader())
    fit, loop = (slices / float(np.median(times[1:])) for times in (clock.fit, clock.loop))  # the first warms up
    size = config.data.image_size
    print(f"{config.backbone.name}, {size} px, batch {config.data.batch_size}, {config.augmentation.name}, {device}")
    print(f"trainer.fit {fit:.1f} slices/s   bare loop {loop:.1f} slices/s   ratio {fit / loop:.3f}")


if __name__ == "__main__":
    main()
