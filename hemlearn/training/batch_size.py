"""``trainer.find_batch_size``: the largest batch that the device's memory holds, and the learning rate for it.

Sizes are powers of two, tried by real training steps with a tenth of the memory kept free. The rate follows the batch:
linearly for SGD (Goyal et al. 2017, arXiv 1706.02677), by the square root for Adam and the other optimisers that divide
by a moving average of the gradient (Malladi et al. 2022, arXiv 2205.10287).
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from hemlearn.config.schema import Config
from hemlearn.data.batches import Batch, SliceDataset, as_is
from hemlearn.plugins import target_of
from hemlearn.tasks.base import Classification
from hemlearn.training.trainer import build_callbacks, build_trainer
from hemlearn.util import interrupts
from hemlearn.util.errors import ConfigError

logger = logging.getLogger(__name__)
MARGIN = 0.1  # of the device's memory that stays free while sizes are tried: validation and fragments need some
STEPS = 4  # of each size: the optimiser's state exists from the second on
_STILL = 1e-12  # learning rate of the trial: what is random must not run away


def scaled_rate(config: Config, size: int) -> float:
    """The learning rate of batches of ``size`` slices, where ``optimizer.lr`` is that of ``data.batch_size``.

    Example:
        >>> config = Config(optimizer={"name": "sgd", "lr": 0.01}, data={"batch_size": 16})
        >>> scaled_rate(config, 64)
        0.04
        >>> scaled_rate(config.changed({"optimizer.name": "adamw"}), 64)
        0.02
    """
    factor = size / config.data.batch_size
    return config.optimizer.lr * (factor if _is_linear(config) else math.sqrt(factor))


def _is_linear(config: Config) -> bool:
    name = str(target_of(config.optimizer) or config.optimizer.name).rpartition(".")[2].lower()
    return name.startswith(("sgd", "momentum", "nesterov"))


def find_batch_size(config: Config, task: Classification, slices: SliceDataset, known: Any = None) -> tuple[int, float]:
    """Slices per step and learning rate; task and random state are as before.

    A run that goes on keeps what it has found, on another machine too; a new run of the same hash finds its own there.

    Args:
        config: Of the run.
        task: As it will be trained.
        slices: To train on; there are never more in a batch. Their pixels lie where they will in training.
        known: Batch size that an earlier start of this run has found; anything but a size that can be is searched anew.

    Raises:
        ConfigError: Not even one slice fits.
    """
    most = len(slices)
    if type(known) is int and 1 <= known <= most:
        logger.info("trainer.find_batch_size: %d slices, as found when this run began", known)
        return known, scaled_rate(config, known)
    device = build_trainer(config, [], []).strategy.root_device
    slices.reside(config.data.resident, device)
    size = 1 << (min(config.data.batch_size, most).bit_length() - 1)
    with isolate_rng(), _margin(device), _quiet():
        fits = _fits(config, task, slices, size)
        while fits and 2 * size <= most and _fits(config, task, slices, 2 * size):
            size *= 2
        while not fits and size > 1:
            size //= 2
            fits = _fits(config, task, slices, size)
    if not fits:
        raise ConfigError(
            f"trainer.find_batch_size: not even one slice of {config.data.image_size} pixels fits into {device}",
            remedy="lower data.image_size, take a smaller backbone, freeze layers, or set data.resident=disk",
        )
    rate = scaled_rate(config, size)
    logger.info(
        "trainer.find_batch_size: %d slices (%s; %.0f %% of %s stay free), optimizer.lr %g -> %g (%s rule)",
        size,
        f"of {most}" if 2 * size > most else f"{2 * size} do not fit",
        100 * MARGIN,
        device,
        config.optimizer.lr,
        rate,
        "linear" if _is_linear(config) else "square root",
    )
    return size, rate


def _fits(config: Config, task: Classification, slices: SliceDataset, size: int) -> bool:
    """Whether a copy of the task takes some training steps with batches of ``size`` random slices."""
    try:
        _steps(config, copy.deepcopy(task), _batch(slices, size))
        return True
    except torch.OutOfMemoryError:
        return False
    finally:  # what the steps held is garbage by now, in circles
        gc.collect()
        torch.cuda.empty_cache()


def _steps(config: Config, probe: Classification, batch: Batch) -> None:
    if hasattr(probe.parts["optimizer"], "model_copy"):
        probe.parts["optimizer"] = probe.parts["optimizer"].model_copy(update={"lr": _STILL})
    changes = {"max_epochs": 1, "limit_train_batches": STEPS, "options": {"enable_checkpointing": False}}
    changes["accumulate_grad_batches"] = min(config.trainer.accumulate_grad_batches, 2)
    trial = config.changed({f"trainer.{key}": value for key, value in changes.items()})
    averages = [item for item in build_callbacks(config, probe, False) if isinstance(item, WeightAveraging)]
    trainer = build_trainer(trial, [], [_Signals(), *averages])
    trainer.fit(probe, DataLoader([batch] * STEPS, batch_size=None, collate_fn=as_is))  # type: ignore[arg-type]


class _Signals(Callback):
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has just taken them."""
        interrupts.take_again()


def _batch(slices: SliceDataset, size: int) -> Batch:
    """Random pixels with the labels and rows of real slices."""
    rows = torch.from_numpy(np.arange(size) % len(slices))
    shape = (size, *slices.stack.shape[1:], *slices.array.shape[1:])
    dtype = slices[0]["image"].dtype
    image = torch.randint(0, 128, shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return Batch(image=image, label=slices.labels[rows], index=slices.index[rows])


@contextmanager
def _margin(device: torch.device) -> Iterator[None]:
    """Let torch run out of memory while some of it is left."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_per_process_memory_fraction(device)
    torch.cuda.set_per_process_memory_fraction(min(before, 1 - MARGIN), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's account of each trial."""
    noisy = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    before = [item.level for item in noisy]
    for item in noisy:
        item.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for item, level in zip(noisy, before, strict=True):
            item.setLevel(level)
