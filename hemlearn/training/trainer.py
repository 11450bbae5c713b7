"""The ``trainer`` and ``callbacks`` groups become Lightning's Trainer, its callbacks, checkpoints and device."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, EarlyStopping, LearningRateMonitor, RichProgressBar, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import StrategyRegistry
from torch._dynamo.exc import TorchDynamoException

from hemlearn.config.schema import Config, TrainerConfig, is_volume, is_volume3d
from hemlearn.models.lean import to_leave_out
from hemlearn.plugins import supplied, target_of
from hemlearn.tasks.base import Classification
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.training.callbacks import BestAndLast, WarmEMA
from hemlearn.training.folder import RunFolder
from hemlearn.training.study import Pruning
from hemlearn.util.console import on_terminal
from hemlearn.util.errors import ConfigError, hint


def build_callbacks(config: Config, task: Classification, tracked: bool) -> list[Callback]:
    """The callbacks that the ``trainer`` group asks for, then those of the ``callbacks`` group.

    The latter are offered ``monitor`` and ``mode`` of the metric that picks the best checkpoint.

    Raises:
        ConfigError: One that cannot be built, or is no Lightning callback.
    """
    fit = config.trainer
    monitor = f"val/{'log_loss' if config.task.monitor == 'last' else config.task.monitor}"
    chosen: list[Callback] = [*Pruning.of_job(monitor)]
    if fit.ema_decay is not None:
        chosen.append(WarmEMA(fit.ema_decay))
    if fit.early_stopping_patience is not None:
        chosen.append(EarlyStopping(monitor, mode=task.mode, patience=fit.early_stopping_patience))
    own = {name: node for name, node in config.callbacks.items() if node is not None}
    if tracked and not any(target_of(node) == _RATES for node in own.values()):
        chosen.append(LearningRateMonitor(logging_interval="epoch"))
    if on_terminal():
        chosen.append(RichProgressBar(leave=False))
    for name, node in own.items():
        if tracked or target_of(node) not in (_RATES, _STATISTICS):  # these two refuse to run without a tracker
            chosen.append(supplied(node, f"callbacks.{name}", kind=Callback, monitor=monitor, mode=task.mode))
    if sum(isinstance(item, WeightAveraging) for item in chosen) > 1:
        raise ConfigError(
            "two callbacks average the weights", remedy="set trainer.ema_decay=null, or leave one out of callbacks"
        )
    return chosen


_RATES = "pytorch_lightning.callbacks.LearningRateMonitor"
_STATISTICS = "pytorch_lightning.callbacks.DeviceStatsMonitor"


def build_checkpoints(config: Config, folder: RunFolder, task: Classification) -> BestAndLast:
    """The callback that writes ``best.ckpt`` and ``last.ckpt`` of a run, each signed before it has its name."""
    monitor = None if config.task.monitor == "last" else f"val/{config.task.monitor}"
    shipped = target_of(config.task) is None and not config.checkpoints.whole
    left = to_leave_out(task.backbone, task.policy) if shipped else None
    task.train(task.training)  # what was asked of the policy has moved it
    return BestAndLast(folder.best.parent, monitor, task.mode, folder.hash, left, folder.announce)


def check_trainer(fit: TrainerConfig) -> None:
    """Refuse a strategy or an option that Lightning does not have.

    Raises:
        ConfigError: With the nearest name.
    """
    known = ["auto", *StrategyRegistry.available_strategies()]
    if fit.strategy not in known:
        raise ConfigError(
            f"trainer.strategy={fit.strategy}: Lightning has no such strategy{hint(fit.strategy, known)}",
            remedy=f"use one of {', '.join(known)}",
        )
    takes = [name for name in inspect.signature(pl.Trainer).parameters if name not in _SET_HERE]
    for name in fit.options:
        if name not in takes:
            why = (
                "is set by hemlearn" if name in _SET_HERE else f"is no option of Lightning's Trainer{hint(name, takes)}"
            )
            raise ConfigError(f"trainer.options.{name} {why}", remedy=f"it takes {', '.join(takes)}")


_SET_HERE = (
    *("max_epochs", "accelerator", "devices", "num_nodes", "strategy", "precision", "gradient_clip_val"),
    *(
        "accumulate_grad_batches",
        "deterministic",
        "benchmark",
        "log_every_n_steps",
        "limit_train_batches",
        "num_sanity_val_steps",
    ),
    *("enable_model_summary", "enable_progress_bar", "callbacks", "logger", "use_distributed_sampler"),
)


def build_trainer(config: Config, loggers: list[Logger], callbacks: list[Callback]) -> pl.Trainer:
    """Lightning's Trainer as the ``trainer`` group describes it.

    Raises:
        ConfigError: Lightning refuses the values, such as a device that is not there.
    """
    try:
        return _trainer(config, loggers, callbacks)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(
            f"the trainer group: {error}", remedy="correct trainer.*; `hemlearn doctor` lists the devices"
        ) from error


def _trainer(config: Config, loggers: list[Logger], callbacks: list[Callback]) -> pl.Trainer:
    fit = config.trainer
    return pl.Trainer(
        max_epochs=fit.max_epochs,
        accelerator=fit.accelerator,
        devices=fit.devices,
        num_nodes=fit.num_nodes,
        strategy=fit.strategy,
        precision=fit.precision,  # type: ignore[arg-type]
        gradient_clip_val=fit.gradient_clip,
        accumulate_grad_batches=fit.accumulate_grad_batches,
        deterministic="warn" if fit.deterministic else False,
        benchmark=not fit.deterministic,
        log_every_n_steps=fit.log_every_n_steps,
        limit_train_batches=fit.limit_train_batches,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=on_terminal(),
        callbacks=callbacks,
        logger=loggers or False,
        use_distributed_sampler=not (is_volume(config.sequence) or is_volume3d(config.backbone)),
        **fit.options,
    )


@contextmanager
def training_errors(config: Config, batch_size: int) -> Iterator[None]:
    """Say what to do about what a network, a device or a compiler cannot."""
    batch = f"data.batch_size={batch_size} and data.image_size={config.data.image_size}"
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"{batch}: BatchNorm has one value per channel, whose variance it cannot take",
            remedy="take more slices per batch, larger images, or freeze.freeze_batchnorm=true",
        ) from error
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{batch}: the device's memory does not suffice ({str(error).partition(chr(10))[0]})",
            remedy="lower one of them (of series: sequence.series_per_batch, sequence.chunk), or set "
            "data.resident=disk; trainer.find_batch_size=true finds what fits",
        ) from error
    except TorchDynamoException as error:
        raise ConfigError(
            f"trainer.compile=true: this network is not compiled here ({str(error).strip().partition(chr(10))[0]})",
            remedy="set trainer.compile=false; compiling needs a C++ compiler, for a GPU also the package triton",
        ) from error


@contextmanager
def compiled(task: Classification, wanted: bool) -> Iterator[None]:
    """Run the backbone through torch.compile meanwhile (``trainer.compile``); afterwards it is the plain network again.

    It is compiled in place: names in checkpoints and what is copied from it stay as they are, so that a compiled run is
    resumed, predicted with, explained and exported like any other, also where there is no compiler.

    Slices come in few sizes of batch, each of which gets kernels of its own; series in any, which share theirs.
    """
    if not wanted:
        yield
        return
    task.backbone.compile(dynamic=isinstance(task, VolumeClassification))
    try:
        yield
    finally:
        task.backbone._compiled_call_impl = None
        torch.compiler.reset()  # the graphs of one run are of no use to the next


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """Compute with so many threads, whatever this machine has; afterwards as before.

    Only those within an operation count: what torch runs beside one another (inter-op) is each computed as it is alone.

    Example:
        >>> before = torch.get_num_threads()
        >>> with limited_threads(3):
        ...     torch.get_num_threads()
        3
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_device(config: Config) -> torch.device:
    """The device of this process."""
    if config.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        asked = config.trainer.devices
        listed = asked.split(",") if isinstance(asked, str) and "," in asked else asked
        return torch.device("cuda", int(listed[rank]) if isinstance(listed, list) else rank)
    if config.trainer.accelerator == "mps":
        return torch.device("mps")
    return torch.device("cpu")
