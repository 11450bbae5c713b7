"""What every task shares: freezing, seeding, optimiser, learning-rate schedule and validation metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from hemlearn.config.schema import Config, OptimizerConfig, ScheduleConfig, from_dict
from hemlearn.evaluation.metrics import fast_metrics
from hemlearn.models.backbone import Backbone
from hemlearn.models.freeze import FreezePolicy
from hemlearn.util.errors import TrainingError

# --- Optimisers and learning-rate schedules from configuration.


def build_optimizer(cfg: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser over parameter groups that carry their own ``lr`` and ``weight_decay``."""
    # The fused CPU kernels halve the step's cost; on a GPU they would forbid clipping under float16 scaling.
    fused = all(p.device.type == "cpu" for group in groups for p in group["params"])
    if cfg.name == "sgd":
        return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.momentum > 0, fused=fused)
    kind = torch.optim.AdamW if cfg.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=cfg.lr, betas=(cfg.betas[0], cfg.betas[1]), fused=fused)


def schedule_factor(cfg: ScheduleConfig, step: int, steps_per_epoch: int, max_epochs: int) -> float:
    """Learning-rate factor at an optimiser step; a pure function, so that a resumed run continues the same curve.

    Args:
        cfg: The schedule (``plateau`` follows validation instead).
        step: Optimiser steps taken so far.
        steps_per_epoch: Optimiser steps in an epoch.
        max_epochs: Planned epochs.
    """
    epoch = step / max(steps_per_epoch, 1)
    if epoch < cfg.warmup_epochs:
        return (step + 1) / (cfg.warmup_epochs * steps_per_epoch + 1)
    if cfg.name == "step":
        return float(cfg.factor ** int(epoch // cfg.step_epochs))
    if cfg.name == "cosine":
        span = max(max_epochs - cfg.warmup_epochs, 1e-9)
        progress = min((epoch - cfg.warmup_epochs) / span, 1.0)
        return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def build_curve(
    cfg: ScheduleConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int, max_epochs: int
) -> LambdaLR:
    """The per-step learning-rate curve of every schedule but ``plateau``."""
    return LambdaLR(optimizer, lambda step: schedule_factor(cfg, step, steps_per_epoch, max_epochs))


def build_plateau(cfg: ScheduleConfig, optimizer: torch.optim.Optimizer, mode: str) -> ReduceLROnPlateau:
    """The schedule that watches a validation metric, stepped once an epoch."""
    return ReduceLROnPlateau(
        optimizer, mode="min" if mode == "min" else "max", factor=cfg.factor, patience=cfg.patience
    )


LOWER_IS_BETTER = ("log_loss", "weighted_log_loss", "brier")


class Classification(pl.LightningModule):
    """A classifier with a frozen, partly frozen or trained backbone.

    A subclass sets ``backbone``, ``head`` and ``policy``, and calls :meth:`keep` in its ``validation_step``.

    Args:
        config: The run's configuration as plain dictionaries, so that checkpoints load with ``weights_only=True``.
    """

    backbone: Backbone
    head: nn.Module
    policy: FreezePolicy

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config: Config = from_dict(config)
        self.monitor = self.config.task.monitor
        self._validation: list[tuple[Tensor, Tensor, Tensor]] = []
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None
        self._policy_epoch = 0
        self._begun = -1

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities ``(..., L)``: softmax over classes, or one sigmoid per label."""
        logits = logits.float()
        return logits.softmax(dim=-1) if self.config.task.kind == "multiclass" else logits.sigmoid()

    # --- training ---
    def train(self, mode: bool = True) -> Classification:
        """Switch modes, then freeze again what this epoch keeps frozen (``train()`` alone would wake BatchNorm)."""
        super().train(mode)
        self.policy.apply(self.backbone, self._policy_epoch)
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """At an epoch's first batch, freeze and seed as pure functions of the epoch, hence the same after a resume.

        Lightning calls no ``on_train_epoch_start`` in the first epoch after a resume.
        """
        if self._begun == self.current_epoch:
            return
        self._begun = self._policy_epoch = self.current_epoch
        self.train()
        entropy = np.random.SeedSequence([self.config.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))

    def checked(self, loss: Tensor, batch_idx: int, size: int) -> Tensor:
        """Log the training loss of ``size`` slices and hand it on.

        Raises:
            TrainingError: It is not finite.
        """
        every = self.config.trainer.log_every_n_steps
        # Reading the value stalls a GPU, so it is checked at each step only where that is free.
        if (loss.device.type == "cpu" or batch_idx % every == 0) and not torch.isfinite(loss):
            raise TrainingError(
                f"epoch {self.current_epoch}, batch {batch_idx}: the training loss is {loss.item()}",
                remedy="lower optimizer.lr, set trainer.gradient_clip, or use trainer.precision=32-true",
            )
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser parameter groups, frozen ones included, so that they are the same at every epoch."""
        optim = self.config.optimizer
        return self.policy.parameter_groups(self.backbone, self.head, lr=optim.lr, weight_decay=optim.weight_decay)

    def configure_optimizers(self) -> Any:
        """Optimiser with the freeze policy's parameter groups, and the schedule."""
        optim = self.config.optimizer
        optimizer = build_optimizer(optim, self.parameter_groups())
        if optim.schedule.name == "plateau":
            self._plateau = build_plateau(optim.schedule, optimizer, self.mode)
            self._plateau.load_state_dict(self._plateau_state or {})
            return optimizer
        total, epochs = int(self.trainer.estimated_stepping_batches), max(self.trainer.max_epochs or 1, 1)
        curve = build_curve(optim.schedule, optimizer, max(total // epochs, 1), epochs)
        return [optimizer], [{"scheduler": curve, "interval": "step"}]

    def on_train_epoch_end(self) -> None:
        """Step a plateau schedule here: Lightning would do it after the checkpoint, and a resume would lose it."""
        if self._plateau is not None:
            name = "log_loss" if self.monitor == "last" else self.monitor
            self._plateau.step(float(self.trainer.callback_metrics[f"val/{name}"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the plateau schedule's memory."""
        if self._plateau is not None:
            kept = self._plateau.state_dict()
            checkpoint["plateau"] = {key: value for key, value in kept.items() if isinstance(value, int | float)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the memory until the optimiser, which it needs, has been built."""
        self._plateau_state = checkpoint.get("plateau")

    @property
    def mode(self) -> str:
        """``min`` or ``max``: which end of the monitored metric is good."""
        return "min" if self.monitor in (*LOWER_IS_BETTER, "last") else "max"

    # --- validation ---
    def keep(self, prob: Tensor, label: Tensor, index: Tensor) -> None:
        """Keep one batch's probabilities ``(T, L)``, labels and manifest rows ``(T,)`` until the epoch's end."""
        self._validation.append((prob.detach(), label, index))

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, each case counted once whatever the number of processes."""
        parts = [torch.cat(column) for column in zip(*self._validation, strict=True)]
        self._validation.clear()
        if self.trainer.world_size > 1:
            parts = [cast(Tensor, self.all_gather(part)).flatten(0, 1) for part in parts]
        prob, label, index = (
            part.float().cpu().numpy() if part.is_floating_point() else part.cpu().numpy() for part in parts
        )
        first = np.unique(index, return_index=True)[1]
        if not np.isfinite(prob).all():
            raise TrainingError(
                f"epoch {self.current_epoch}: the network's validation output is not finite",
                remedy="lower optimizer.lr or set trainer.gradient_clip",
            )
        task = self.config.task
        scores = fast_metrics(label[first], prob[first], task.kind, task.label_weights)
        self.log_dict({f"val/{name}": value for name, value in scores.items()}, rank_zero_only=False)


def flip_order(labels: Sequence[str], sides: Sequence[Sequence[str]]) -> list[int]:
    """Order of the labels after a horizontal flip: a mirrored head has its sides exchanged."""
    order = list(range(len(labels)))
    for left, right in sides:
        i, j = labels.index(left), labels.index(right)
        order[i], order[j] = j, i
    return order
