"""Lightning callbacks of a run: averaged weights, checkpoints, history and cost."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, WeightAveraging
from pytorch_lightning.loggers import Logger
from torch import Tensor

from hemlearn.models.lean import leave_out
from hemlearn.util import interrupts
from hemlearn.util.errors import ConfigError, TrainingError, hint
from hemlearn.util.files import settle
from hemlearn.util.notes import note

logger = logging.getLogger(__name__)
SPARED = 5.0  # seconds


class WarmEMA(WeightAveraging):
    """Exponential moving average of weights and buffers whose decay warms up.

    The decay at update ``t`` is ``min(decay, (1 + t) / (10 + t))``, so that a short fine-tuning run is not held back
    by its untrained head. Frozen tensors stay byte-identical: interpolating between equal numbers returns them.

    Args:
        decay: Final decay per optimiser step.
    """

    def __init__(self, decay: float) -> None:
        def average(kept: Any, current: Any, updates: Any) -> None:
            step = float(updates)
            weight = 1.0 - min(decay, (1.0 + step) / (10.0 + step))
            if torch.is_floating_point(kept[0]):
                torch._foreach_lerp_(kept, current, weight)
            else:
                for old, new in zip(kept, current, strict=True):  # counters such as BatchNorm's num_batches_tracked
                    old.copy_(new)

        super().__init__(use_buffers=True, multi_avg_fn=average)


class StochasticWeightAveraging(WeightAveraging):
    """The mean of weights and buffers over the steps from one epoch on (Izmailov et al. 2018, arXiv 1803.05407).

    Unlike Lightning's callback of that name it validates and saves the mean, so that the best checkpoint holds it.

    Args:
        start: First epoch whose steps are averaged, or its share of all epochs as a float below 1.

    Raises:
        ConfigError: ``start`` is negative.

    Examples:
        >>> StochasticWeightAveraging(start=0.75).first(max_epochs=8)
        6
    """

    def __init__(self, start: float = 0.75) -> None:
        if start < 0:
            raise ConfigError(f"start={start}: below 0", remedy="give a share of the epochs, or an epoch")
        self.start = start
        self._averaged = 0  # steps in the mean; 0: the weights of the moment
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    def first(self, max_epochs: int) -> int:
        """The first epoch whose steps are averaged."""
        return int(self.start * max_epochs) if isinstance(self.start, float) and self.start < 1 else int(self.start)

    def _average(self, kept: Any, current: Any, updates: Any) -> None:
        weight = 1.0 / max(self._averaged, 1)
        for old, new in zip(kept, current, strict=True):
            if torch.is_floating_point(old):
                old.lerp_(new, weight)
            else:
                old.copy_(new)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the step into the mean."""
        if (
            trainer.current_epoch >= self.first(trainer.max_epochs or 1)
            and trainer.global_step > self._latest_update_step
        ):
            self._averaged += 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """How many steps are in the mean."""
        return {**super().state_dict(), "averaged": self._averaged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        super().load_state_dict(state_dict)
        self._averaged = int(state_dict["averaged"])


class BestAndLast(Checkpoint):
    """Writes ``last.ckpt`` after every epoch and ``best.ckpt`` after every epoch that is the best so far.

    Epochs of a fraction of a second (sequence models on cached embeddings) would spend most of their time on it: within
    :data:`SPARED` seconds of the last one only a better epoch and the final one are written. What a kill then costs is
    these seconds, since a resumed run repeats its epochs exactly.

    Lightning's ModelCheckpoint writes its last file only together with a best one, and forgets the best score when the
    folder has been moved; a resume would then lose epochs or replace the best by a worse one.

    Args:
        folder: Where both files go.
        monitor: Logged metric such as ``val/log_loss``; None makes every epoch the best so far.
        mode: ``min`` or ``max``.
        run: Hash of the run, by which its checkpoints are known from those of another.
        left: What they need not hold, see :func:`hemlearn.models.lean.to_leave_out`; None: they hold everything.
        announce: Called with the names of files and the draft of their content before they get these names.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str | None,
        mode: str,
        run: str = "",
        left: Mapping[str, Any] | None = None,
        announce: Callable[[Sequence[Path], Path], None] | None = None,
    ) -> None:
        self.folder = folder
        self.run = run
        self.left = left
        self.announce = announce
        self.monitor = monitor
        self.sign = -1.0 if mode == "min" else 1.0
        self.best = -math.inf
        self._written = -math.inf  # seconds of time.monotonic

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save; runs after all other callbacks, so that their state is this epoch's."""
        if self.monitor is None:
            better = True
        else:
            known = trainer.callback_metrics
            if self.monitor not in known:
                raise TrainingError(
                    f"task.monitor={self.monitor.removeprefix('val/')}: validation gives no such value"
                    f"{hint(self.monitor, known)}",
                    remedy="name one of " + ", ".join(key[4:] for key in known if key.startswith("val/")),
                )
            score = self.sign * float(known[self.monitor])
            # An undefined metric (NaN) never wins over a defined one; until there is one, the newest epoch is the best.
            undefined = score != score and self.best == -math.inf
            if undefined:
                logger.warning(
                    "%s is undefined on validation: the newest epoch is taken until it is defined", self.monitor
                )
            better = score > self.best or undefined or not (self.folder / "best.ckpt").exists()
            self.best = max(self.best, score) if score == score else self.best
        steps = trainer.max_steps if trainer.max_steps is not None and trainer.max_steps >= 0 else math.inf
        final = (
            trainer.should_stop
            or trainer.current_epoch + 1 >= (trainer.max_epochs or math.inf)
            or trainer.global_step >= steps
        )
        wanted = better if self.monitor is not None else not (self.folder / "best.ckpt").exists()
        skip = time.monotonic() - self._written < SPARED and not (wanted or final)
        # Saving is a joint act of all devices, and only the first one's clock and folder count.
        better, skip = trainer.strategy.broadcast((better, skip))
        if skip:
            return
        self._written = time.monotonic()
        part = self.folder / ".last.ckpt"
        trainer.save_checkpoint(part)
        if not trainer.is_global_zero:
            return
        best, last = self.folder / "best.ckpt", self.folder / "last.ckpt"
        if better:  # a copy costs a tenth of writing it anew
            shutil.copyfile(part, self.folder / ".best.ckpt")
        if self.announce is not None:
            self.announce([best, last] if better else [last], part)
        if better:
            settle(self.folder / ".best.ckpt", best)
        settle(part, last)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out what can be had again; Lightning asks checkpoint callbacks last, behind averaged weights."""
        if self.left is not None:
            leave_out(checkpoint, self.left)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and whose it is."""
        return {"best": self.best, "run": self.run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self.best = float(state_dict["best"])


class EpochLog(Callback):
    """One log line per epoch; keeps the run's cost and history, also over resumes."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.slices = 0
        self.steps = 0
        self.trained = 0  # parameters that any epoch trains
        self.logged: list[tuple[int, dict[str, float]]] = []  # what trackers were told: step, values by name
        self._start: float | None = None
        self._seen = 0

    @property
    def speed(self) -> float:
        """Training slices per second over all epochs, validation included."""
        return self.slices / max(self.seconds, 1e-9)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals end the command: Lightning has just taken them."""
        interrupts.take_again()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the epoch's clock (Lightning skips ``on_train_epoch_start`` right after a resume)."""
        if self._start is None:
            self._start, self._seen = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count slices."""
        interrupts.check()
        self._seen += len(batch["index"]) * trainer.world_size

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the epoch's account; runs before the checkpoint is written, which keeps it."""
        if self._start is not None:
            self.seconds += time.perf_counter() - self._start
            self.slices += self._seen
        self._start = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's loss and validation metrics."""
        row = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if isinstance(value, Tensor) and name.startswith(("train/", "val/"))
        }
        self.steps = trainer.global_step
        self.history = [old for old in self.history if old["epoch"] != trainer.current_epoch]
        self.history.append({"epoch": float(trainer.current_epoch), **row})
        if not trainer.is_global_zero:
            return
        note("epoch", epoch=trainer.current_epoch + 1, epochs=trainer.max_epochs)
        scores = "  ".join(f"{name} {value:.4f}" for name, value in sorted(row.items()))
        logger.info("epoch %d/%s  %s  %.1f slices/s", trainer.current_epoch + 1, trainer.max_epochs, scores, self.speed)

    def state_dict(self) -> dict[str, Any]:
        """Cost and history so far."""
        kept = {"seconds": self.seconds, "slices": self.slices, "history": list(self.history), "steps": self.steps}
        return {**kept, "logged": list(self.logged)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the account of an interrupted run."""
        self.seconds, self.slices = float(state_dict["seconds"]), int(state_dict["slices"])
        self.history, self.steps = list(state_dict["history"]), int(state_dict.get("steps", 0))
        self.logged = [(int(step), dict(values)) for step, values in state_dict.get("logged", ())]
        # Lightning tells the trackers an epoch's training loss when its checkpoint is written already.
        last = {key: value for key, value in (self.history or [{}])[-1].items() if key.startswith("train/")}
        if last and self.logged:
            self.logged.append((self.steps - 1, {**last, "epoch": int(self.history[-1]["epoch"])}))


class Recorder(Logger):
    """Keeps what the trackers are told, for the checkpoint: a resumed run tells it again.

    Args:
        clock: The callback whose state holds it.
    """

    name, version = "recorder", ""

    def __init__(self, clock: EpochLog) -> None:
        super().__init__()
        self.clock = clock

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep the values of one step."""
        values = {key: value.item() if hasattr(value, "item") else value for key, value in metrics.items()}
        self.clock.logged.append((-1 if step is None else step, values))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Settings are told when a tracker is built."""
