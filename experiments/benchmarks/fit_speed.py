"""Slices per second of ``trainer.fit`` beside a bare forward/backward/step loop on the same tensors, on the CPU.

    python experiments/benchmarks/fit_speed.py [KEY=VALUE ...]            # overrides of hemlearn train
    python experiments/benchmarks/fit_speed.py augmentation=none          # this one alone

Both sides train the same network with the same optimiser; they take turns, epoch by epoch, so that a busy machine slows
both. The bare loop holds finished tensors in memory: it neither loads, shows through a window nor augments them, which
trainer.fit does. Without ``augmentation`` both the default and none are measured. On a GPU: gpu.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from turns import ROUNDS, Speed, clocks, seconds, table

from hemlearn.config.compose import compose
from hemlearn.config.schema import Config
from hemlearn.tasks.slices import SliceClassification
from hemlearn.training.build import build_datamodule, build_task
from hemlearn.training.callbacks import EpochLog
from hemlearn.training.trainer import build_trainer
from hemlearn.util.console import silence_libraries

DEFAULT = (
    *("logger=none", f"trainer.max_epochs={ROUNDS + 1}", "data.phantom_patients=50", "data.image_size=224"),
    *("data.batch_size=32", "split.val_fraction=0.05", "split.test_fraction=0.05"),
)


class Turns(Callback):
    """Times each training epoch and lets the bare loop have its turn after it."""

    def __init__(self, bare: Callable[[], int], slices: int) -> None:
        self.bare = bare
        self.slices = slices
        self.pairs: list[tuple[float, ...]] = []  # slices per second and per processor second; those of the bare loop

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._start = np.array(clocks())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop, then run the bare loop over as many slices."""
        fit = np.array(clocks()) - self._start
        done, *bare = seconds(self.bare)
        assert done == self.slices
        self.pairs.append(tuple(self.slices / spent for spent in (*fit, *bare)))


def measure(config: Config) -> str:
    """A table of both rates and their ratio."""
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
    criterion = other.loss
    assert isinstance(criterion, torch.nn.Module)
    optimizer = torch.optim.AdamW(other.parameter_groups(), lr=config.optimizer.lr, fused=True)
    layout = torch.channels_last if config.trainer.channels_last else torch.contiguous_format
    with torch.no_grad():
        tensors = [
            (other.channels(batch["image"]).contiguous(memory_format=layout), batch["label"])
            for batch in data.train_dataloader()
        ]

    def bare() -> int:
        for image, label in tensors:
            loss = criterion(other.head(other.backbone(image)), label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return sum(len(label) for _, label in tensors)

    turns = Turns(bare, sum(len(label) for _, label in tensors))
    trainer = build_trainer(config, [], [EpochLog(), turns])
    trainer.limit_val_batches = 0
    with tempfile.TemporaryDirectory() as folder:
        trainer._default_root_dir = folder  # type: ignore[attr-defined]  # Lightning keeps a checkpoint of its own
        trainer.fit(build(), train_dataloaders=data.train_dataloader())
    pairs = np.array(turns.pairs[1:])  # the first warms up
    middle = np.median(pairs, axis=0)
    speeds = {"trainer.fit": Speed(*middle[:2]), "bare loop": Speed(*middle[2:])}
    return table(speeds, {"bare loop": Speed(*np.median(pairs[:, :2] / pairs[:, 2:], axis=0))}, "slices")


def main() -> None:
    """Measure and print."""
    silence_libraries()
    given = sys.argv[1:]
    asked = any(word.startswith("augmentation=") for word in given)
    for words in [[]] if asked else [["augmentation=none"], ["augmentation=geometric_intensity"]]:
        report(compose([*DEFAULT, *words, *given]))


def report(config: Config) -> None:
    """Measure one configuration and print what it is."""
    made = measure(config)
    what = f"{config.backbone.name}, {config.data.image_size} px, batches of {config.data.batch_size}"
    print(f"{what}, augmentation {config.augmentation.name}\n\n{made}\n", flush=True)


if __name__ == "__main__":
    main()
