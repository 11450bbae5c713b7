"""Optimisers and learning-rate schedules from configuration."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from hemlearn.schema import OptimizerConfig, ScheduleConfig


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
