"""Optimisers by name (those of timm.optim) or by class, and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from hemlearn.config.schema import OptimizerConfig, ScheduleConfig
from hemlearn.models.loading import check_tensors
from hemlearn.plugins import REGISTRY, call, check, find, resolve, target_of
from hemlearn.util.errors import ConfigError, WeightsError, hint

_LIKE_WEIGHTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of the shape of their parameter
_BETAS = (0.9, 0.999)


def check_optimizer(spec: Any) -> None:
    """Refuse an optimiser that no one knows before any data are read.

    Raises:
        ConfigError: With the nearest name; or a ``_target_`` that cannot be imported.
    """
    if target_of(spec) is not None:
        check(spec, "optimizer")
    elif isinstance(spec, OptimizerConfig) and spec.name not in ("adamw", "adam", "sgd"):
        from timm.optim import list_optimizers

        names = [*list_optimizers(), *REGISTRY.names("optimizer")]
        if spec.name not in names and not spec.name.startswith("lookahead_"):
            raise ConfigError(
                f"optimizer.name={spec.name!r}: timm.optim has no such optimiser{hint(spec.name, names)}",
                remedy="see timm.optim.list_optimizers(), or name a class with optimizer._target_",
            )


def build_optimizer(spec: Any, groups: list[dict[str, Any]], *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimiser over parameter groups that carry their own ``lr`` and ``weight_decay``.

    Args:
        spec: Option object of group ``optimizer`` (adamw, adam, sgd, or any name of ``timm.optim``); a node
            ``{_target_: ...}`` without the parameters; or a callable of them, such as a ``functools.partial``.
        groups: Of :meth:`~hemlearn.models.freeze.FreezePolicy.parameter_groups`.
        fused: Use torch's fused kernels on a CPU, which halve the step's cost; Lightning cannot clip gradients with
            them under mixed precision.

    Raises:
        ConfigError: Unknown name, or arguments it does not take.

    Examples:
        >>> groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.1, "weight_decay": 0.0}]
        >>> type(build_optimizer(OptimizerConfig(name="lion"), groups)).__name__
        'Lion'
    """
    kind = torch.optim.Optimizer
    if target_of(spec) is not None:
        made = resolve(spec, "optimizer", partial=True)
        return call(made, "optimizer", {}, args=(groups,), kind=kind)  # type: ignore[no-any-return]
    if not isinstance(spec, OptimizerConfig):
        return call(spec, "optimizer", {}, args=(groups,), kind=kind)  # type: ignore[no-any-return]
    check_optimizer(spec)
    if spec.name in REGISTRY.parts.get("optimizer", {}):
        own = REGISTRY.get("optimizer", spec.name)
        return call(own, "optimizer", {}, args=(groups,), kind=kind)  # type: ignore[no-any-return]
    fused = fused and all(p.device.type == "cpu" for group in groups for p in group["params"])
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0, fused=fused)
    if spec.name in ("adamw", "adam"):
        plain = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
        return plain(groups, lr=spec.lr, betas=(spec.betas[0], spec.betas[1]), fused=fused)
    from timm.optim import create_optimizer_v2, get_optimizer_info

    info = get_optimizer_info(spec.name.removeprefix("lookahead_"))
    extra = {"betas": tuple(spec.betas)} if info.has_betas and tuple(spec.betas) != _BETAS else {}
    made = create_optimizer_v2(
        groups, opt=spec.name, lr=spec.lr, weight_decay=spec.weight_decay, momentum=spec.momentum, **extra
    )
    assert isinstance(made, torch.optim.Optimizer)
    return made


def check_optimizer_state(module: nn.Module, groups: list[dict[str, Any]] | None, content: Any, path: Path) -> None:
    """Refuse what a checkpoint says of the optimiser, and of its schedule, where training cannot go on from it.

    Args:
        module: Whose parameters are trained.
        groups: Their groups, of a single optimiser; None: not known, since the task makes its optimisers itself.
        content: Of the checkpoint, with ``optimizer_states`` and ``lr_schedulers``.
        path: The checkpoint, for messages.

    Raises:
        WeightsError: Names the parameter and what is wrong: another shape, NaN, infinity, a square below 0.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    parameters = [parameter for group in groups or () for parameter in group["params"]]
    states, tensors = content["optimizer_states"], {}
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in states]
    wanted = [[len(group["params"]) for group in groups or ()]]
    if groups is not None and sizes != wanted:
        raise _no_state(path, f"holds optimiser states of {sizes} parameters, for {wanted}")
    for number, state in enumerate(states):
        for index, own in state["state"].items():
            name = f"optimizer_states.{number}.{index}" if groups is None else names[id(parameters[index])]
            for key, value in own.items():
                if not isinstance(value, Tensor):
                    continue
                tensors[f"{name}.{key}"] = value
                if groups is not None and key in _LIKE_WEIGHTS and value.shape != parameters[index].shape:
                    shapes = f"{tuple(value.shape)} for {tuple(parameters[index].shape)}"
                    raise _no_state(path, f"{name}.{key} of the optimiser is of another shape: {shapes}")
    check_tensors(tensors, path)
    for key in ("optimizer_states", "lr_schedulers"):
        if _holds_nan(content[key]):
            raise _no_state(path, f"{key} holds NaN")


def _no_state(path: Path, fault: str) -> WeightsError:
    return WeightsError(f"{path}: {fault}", remedy="train from the start")


def _holds_nan(tree: Any) -> bool:
    if isinstance(tree, Mapping):
        return any(map(_holds_nan, tree.values()))
    return any(map(_holds_nan, tree)) if isinstance(tree, list | tuple) else isinstance(tree, float) and tree != tree


def schedule_factor(cfg: ScheduleConfig, step: int, steps_per_epoch: int, max_epochs: int) -> float:
    """Learning-rate factor at an optimiser step; a pure function, so that a resumed run continues the same curve.

    Args:
        cfg: The schedule (``plateau`` follows validation instead).
        step: Optimiser steps taken so far.
        steps_per_epoch: Optimiser steps in an epoch.
        max_epochs: Planned epochs.

    Examples:
        >>> [schedule_factor(ScheduleConfig(name="cosine"), step, 1, 2) for step in (0, 1, 2)]
        [1.0, 0.5, 0.0]
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


def build_schedule(
    spec: Any, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int, epochs: int, mode: str
) -> tuple[LRScheduler, str]:
    """The learning-rate schedule, and whether it is stepped every ``step`` or ``epoch``.

    Args:
        spec: Option object of ``optimizer.schedule``; or a node, class or callable of one's own, which is offered
            ``optimizer``, ``total_steps``, ``steps_per_epoch``, ``epochs``, ``T_max`` and ``mode``. It is stepped
            every epoch unless it takes ``total_steps``, or the node says ``interval: step``.
        optimizer: Whose rates it changes.
        steps_per_epoch: Optimiser steps in an epoch.
        epochs: Planned epochs.
        mode: ``min`` or ``max``: which end of the monitored metric is good; ``plateau`` watches it, once an epoch.

    Raises:
        ConfigError: A class of one's own that cannot be built, or is no schedule.
    """
    target = target_of(spec)
    if target is None and not isinstance(spec, ScheduleConfig):
        function, given = spec, {}
    elif target is not None:
        extra = spec if isinstance(spec, Mapping) else spec.model_extra or {}
        function, given = find(target, "optimizer.schedule"), {k: v for k, v in extra.items() if k != "_target_"}
    elif spec.name in REGISTRY.parts.get("optimizer.schedule", {}):
        function, given = REGISTRY.get("optimizer.schedule", spec.name), {}
    elif spec.name == "plateau":
        end: Literal["min", "max"] = "min" if mode == "min" else "max"
        return ReduceLROnPlateau(optimizer, mode=end, factor=spec.factor, patience=spec.patience), "epoch"
    else:
        return LambdaLR(optimizer, lambda step: schedule_factor(spec, step, steps_per_epoch, epochs)), "step"
    every = "step" if "total_steps" in inspect.signature(function).parameters else "epoch"
    interval = str(given.pop("interval", every))
    if interval not in ("step", "epoch"):
        raise ConfigError(f"optimizer.schedule.interval={interval!r}", remedy="give step or epoch")
    made: LRScheduler = call(
        function,
        "optimizer.schedule",
        given,
        kind=LRScheduler,
        optimizer=optimizer,
        total_steps=steps_per_epoch * epochs,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        T_max=epochs if interval == "epoch" else steps_per_epoch * epochs,
        mode=mode,
    )
    return made, interval
