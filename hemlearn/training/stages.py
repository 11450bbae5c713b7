"""The run that is made first and gives another one its weights: its configuration, and whose patients it has seen.

A sequence run builds on a slice run of the same patients; a slice run on pretraining, which may be of other data.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from hemlearn.audits.seen import leaves_table, seen_by_weights
from hemlearn.config.compose import compose, conf_dir
from hemlearn.config.parts import PROPORTIONAL
from hemlearn.config.schema import PRETRAINING, Config, from_dict, is_volume, to_dict
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.models.weights import run_of
from hemlearn.util.errors import ConfigError, SplitError, count, hint
from hemlearn.util.privacy import Pseudonyms
from hemlearn.util.run_files import read_provenance

logger = logging.getLogger(__name__)


def origin(config: Config) -> dict[str, Any] | None:
    """The stage run behind a run, for its provenance."""
    if config.stage.experiment is None or config.backbone.weights is None:
        return None
    return {"experiment": config.stage.experiment, "run": str(Path(config.backbone.weights))}


def check_weights_split(config: Config, data: SliceDataModule) -> None:
    """Refuse weights of a run that has learnt from patients who are tested here.

    Raises:
        SplitError: Such a patient, by pseudonym; ``split.allow_leak=true`` accepts it with a warning.
    """
    found = seen_by_weights(config.backbone.weights, data)
    folder = run_of(config.backbone.weights)
    if folder is not None and not leaves_table(read_provenance(folder)):
        logger.warning(
            "backbone.weights=%s: made by an earlier version, which did not write down what it has learnt from: "
            "patients of other data who are tested here too are not noticed",
            config.backbone.weights,
        )
    if not found:
        return
    who = count(len(found), "patient who validates or tests", "patients who validate or test")
    patient, how = next(iter(found.items()))
    names = Pseudonyms(Path(config.output_dir, config.name, "run"), show=config.logger.show_patient)
    text = (
        f"backbone.weights={config.backbone.weights} has learnt from {who} here, the first {names.of(patient)!r} "
        f"({how})"
    )
    if not config.split.allow_leak:
        raise SplitError(
            text,
            remedy="use the same split for both runs (a stage does), or split.allow_leak=true"
            if how == "the same data"
            else "pretrain without them: pseudonyms.key beside the runs says who they are; or split.allow_leak=true",
        )
    logger.warning("%s: results are optimistic", text)


# What both runs must have in common for the sequence to read what the slice run has learnt.
_SHARED = ("data", "channels", "split", "logger", "seed", "output_dir")
_SHARED_BACKBONE = ("name", "pretrained", "weights", "options")
_SHARED_TASK = ("name", "kind", "labels", "level", "sides", "label_weights")
# Keys of the data at hand that mean nothing to another data set.
_NOT_SHARED: dict[str, Any] = {
    **dict.fromkeys(("root", "manifest", "labels", "label_key", "series", "modality", "band", "patient_pattern")),
    **{"covariates": [], "parts": {}, "part_weights": PROPORTIONAL},
}
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
    """Configuration of the slice run, or pretraining, that ``config.stage`` names.

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
    own = ("name", "kind", "label_weights") if tree["task"]["kind"] == PRETRAINING else ()
    tree["task"] |= {key: ours["task"][key] for key in _SHARED_TASK if key not in own}
    tree["trainer"] |= {key: ours["trainer"][key] for key in _SHARED_TRAINER}
    for key in ("data", "split", "seed") if is_volume(config.sequence) else ():
        if key in config.stage.set:
            raise ConfigError(
                f"stage.set.{key}: both runs need the same patients on the same sides",
                remedy=f"set {key} for the whole command",
            )
    given = config.stage.set.get("data")
    asked, known_as = given if isinstance(given, dict) else {}, ours["data"]["name"]
    if asked.get("name", known_as) != known_as:
        tree["data"] = ours["data"] | copy.deepcopy(_NOT_SHARED)
    elif "root" in asked and asked["root"] is None and known_as in ("multi", "table"):
        raise ConfigError(
            f"stage={config.stage.name} draws synthetic patients (stage.set.data.root=null), which data={known_as} has "
            "not",
            remedy="name the data set in whose layout they are drawn: stage.set.data.name=ct_ich",
        )
    _merge(tree, dict(config.stage.set), "stage.set")
    if tree["name"] == Config().name:  # an experiment that does not say how its runs are called
        tree["name"] = name
    if stage_monitor_unfit(tree["task"]):
        tree["task"]["monitor"] = "log_loss"
    try:
        stage = from_dict(tree)
    except ConfigError as error:
        text = f"the run that stage.experiment={name!r} makes first: {error.problem}"
        raise ConfigError(text, remedy="stage.set.KEY=VALUE sets a key of that run alone") from error
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
    # Built anew from the values alone: the rule that a stage and given weights exclude each other is met already.
    made = {"backbone.pretrained": True, "backbone.weights": str(folder)}
    if not config.backbone.pretrained:  # what the stage run has started from, which the same words must find again
        before = config.stage.set.get("backbone") or {}
        made["stage.set"] = {**config.stage.set, "backbone": {"pretrained": False, **before}}
    return config.changed(made)


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
