"""The slice run that a sequence run builds on: composed from its own experiment, shared by all jobs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hemlearn.config import compose, conf_dir, from_dict, to_dict
from hemlearn.config_rules import hint
from hemlearn.errors import ConfigError
from hemlearn.schema import Config

# What both runs must have in common for the sequence to read what the slice run has learnt.
_SHARED = ("data", "channels", "split", "logger", "seed", "output_dir")
_SHARED_BACKBONE = ("name", "pretrained", "weights", "options")
_SHARED_TASK = ("name", "kind", "labels", "level", "sides", "label_weights")
_SHARED_TRAINER = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "precision",
    "channels_last",
    "compile",
    "deterministic",
    "threads",
    "options",
)


def stage_config(config: Config) -> Config:
    """Configuration of the slice run that ``config.stage`` names.

    Data, channels, split, backbone, labels, logger, seed and devices are those of ``config``; augmentation, freezing,
    loss, optimiser and epochs come from the stage's experiment; ``stage.set`` has the last word.

    Raises:
        ConfigError: No such experiment, an unknown key in ``stage.set``, or an experiment that is no slice run.
    """
    name = str(config.stage.experiment)
    folders = [conf_dir(), *user_config_dirs()]
    known = sorted(file.stem for folder in folders for file in (folder / "experiment").glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"stage.experiment={name!r}: no such experiment{hint(name, known)}", remedy=f"use one of {', '.join(known)}"
        )
    tree = to_dict(compose([f"experiment={name}"], str(folders[1]) if len(folders) > 1 else None))
    ours = to_dict(config)
    tree |= {key: ours[key] for key in _SHARED}
    tree["backbone"] |= {key: ours["backbone"][key] for key in _SHARED_BACKBONE}
    tree["task"] |= {key: ours["task"][key] for key in _SHARED_TASK}
    tree["trainer"] |= {key: ours["trainer"][key] for key in _SHARED_TRAINER}
    for key in ("data", "split", "seed"):
        if key in config.stage.set:
            raise ConfigError(
                f"stage.set.{key}: both runs need the same patients on the same sides",
                remedy=f"set {key} for the whole command",
            )
    _merge(tree, dict(config.stage.set), "stage.set")
    if tree["name"] == Config.name:  # an experiment that does not say how its runs are called
        tree["name"] = name
    if stage_monitor_unfit(tree["task"]):
        tree["task"]["monitor"] = "log_loss"
    stage = from_dict(tree)
    if stage.sequence.name != "none":
        raise ConfigError(
            f"stage.experiment={name!r} is itself a sequence run (sequence={stage.sequence.name})",
            remedy="name an experiment of slices: sequence=none",
        )
    return stage


def stage_monitor_unfit(task: dict[str, Any]) -> bool:
    """Whether an experiment made for several labels monitors what a task of one label does not have."""
    return bool(task["monitor"] == "weighted_log_loss" and task["kind"] != "multilabel")


def with_stage(config: Config, folder: Path) -> Config:
    """``config`` with its backbone's weights taken from the finished stage run ``folder``."""
    backbone = dataclasses.replace(config.backbone, pretrained=True, weights=str(folder))
    # Built anew from the values alone: the rule that a stage and given weights exclude each other is met already.
    return dataclasses.replace(config, backbone=backbone)


def user_config_dirs() -> list[Path]:
    """The ``--config-dir`` of the running command, if it has one."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    return [Path(item.path) for item in sources if item.provider == "command-line"]


def _merge(tree: dict[str, Any], changes: dict[str, Any], where: str) -> None:
    for key, value in changes.items():
        if key not in tree:
            raise ConfigError(
                f"{where}.{key}: unknown key{hint(str(key), tree)}", remedy="use the keys of `hemlearn train --cfg job`"
            )
        if isinstance(value, dict) and isinstance(tree[key], dict):
            _merge(tree[key], value, f"{where}.{key}")
        else:
            tree[key] = value
