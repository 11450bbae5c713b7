"""What is refused, or told, before any data are read: parts that cannot be used, keys that change nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import pandas as pd
import torch

from hemlearn.config.schema import DATA_SETS, FEATURES, PRETRAINING, SEQUENCES, Config, Section, TaskConfig, is_volume3d
from hemlearn.evaluation.label_maps import unit_counts
from hemlearn.evaluation.triage import unsupported
from hemlearn.models.backbone import build_backbone, check_backbone, check_weights, own_module
from hemlearn.models.freeze import build_freeze
from hemlearn.models.losses import build_loss
from hemlearn.models.networks3d import build_network3d
from hemlearn.models.sequence import ATTENTION, check_sequence
from hemlearn.plugins import REGISTRY, check, target_of
from hemlearn.tasks.metrics import build_metrics, direction
from hemlearn.tasks.optimizers import check_optimizer
from hemlearn.tasks.pretrain import check_lightly
from hemlearn.training.trainer import check_trainer, run_device
from hemlearn.transforms.augment import build_augment
from hemlearn.transforms.channels import build_channels
from hemlearn.util.errors import ConfigError

logger = logging.getLogger(__name__)
_IGNORED = {  # key -> the key of a choice, and the choices that do not read it
    **dict.fromkeys(("data.path_column", "data.patient_column"), ("data.name", set(DATA_SETS) - {"table"})),
    "backbone.weights": ("backbone.pretrained", {"false"}),
    "channels.windows": ("channels.kind", {"mr"}),
    "channels.percentiles": ("channels.kind", {"ct"}),
    "data.part_weights": ("data.name", set(DATA_SETS) - {"multi"}),
    "split.fold": ("split.name", {"holdout", "leave_one_out", "file"}),
    "split.folds": ("split.name", {"holdout", "monte_carlo", "leave_one_out", "file"}),
    "split.test_fraction": ("split.name", {"kfold", "leave_one_out", "file"}),
    "split.val_fraction": ("split.name", {"file"}),
    "split.left_out": ("split.name", {"holdout", "kfold", "monte_carlo", "file"}),
    "split.file": ("split.name", {"holdout", "kfold", "monte_carlo", "leave_one_out"}),
    "features.strength": ("features.name", set(FEATURES) - {"l1"}),
    "task.top_k": ("task.aggregate", {"mean", "max", "noisy_or", "model"}),
    "sequence.heads": ("sequence.name", set(SEQUENCES) - {"transformer", *ATTENTION}),
    "sequence.steps": ("sequence.name", set(SEQUENCES) - {"smooth_attention"}),
    "sequence.instances": ("sequence.name", set(SEQUENCES) - {"clam"}),
    "sequence.instance_weight": ("sequence.name", set(SEQUENCES) - {"clam"}),
    "sequence.kernel": ("sequence.name", set(SEQUENCES) - {"conv_gru"}),
    "sequence.bidirectional": ("sequence.name", set(SEQUENCES) - {"lstm", "gru", "conv_gru"}),
    **dict.fromkeys(
        [
            f"sequence.{name}"
            for name in ("hidden", "layers", "dropout", "members", "series_per_batch", "series_weight")
        ],
        ("sequence.name", {"none"}),
    ),
    **dict.fromkeys(("freeze.rank", "freeze.alpha", "freeze.dropout"), ("freeze.method", {"full", "bitfit", "norm"})),
    "loss.gamma": ("loss.name", {"bce", "cross_entropy"}),
    "optimizer.momentum": ("optimizer.name", {"adamw", "adam"}),
    "optimizer.betas": ("optimizer.name", {"sgd"}),
    "optimizer.schedule.step_epochs": ("optimizer.schedule.name", {"constant", "cosine", "plateau"}),
    "optimizer.schedule.factor": ("optimizer.schedule.name", {"constant", "cosine"}),
    "optimizer.schedule.patience": ("optimizer.schedule.name", {"constant", "cosine", "step"}),
    "optimizer.schedule.min_lr_ratio": ("optimizer.schedule.name", {"constant", "step", "plateau"}),
    **dict.fromkeys(
        [f"task.{name}" for name in ("method", "projection", "temperature", "momentum")],
        ("task.kind", {"binary", "multiclass", "multilabel"}),
    ),
    "logger.tracking_uri": ("logger.kinds", {"wandb", "csv", "tensorboard"}),
}


def without_effect(config: Config) -> list[str]:
    """A line for each key that was changed although what is chosen does not read it.

    Example:
        >>> without_effect(Config(optimizer={"name": "adamw", "momentum": 0.5}))
        ['optimizer.momentum=0.5 has no effect: optimizer.name=adamw does not read it']
    """

    def of(tree: Section, dotted: str) -> Any:
        return reduce(getattr, dotted.split("."), tree)

    lines, usual = [], Config()
    for dotted, (choice, ignoring) in _IGNORED.items():
        value, chosen = of(config, dotted), of(config, choice)
        chosen = str(chosen).lower() if isinstance(chosen, bool) else chosen
        names = chosen.split("+") if isinstance(chosen, str) else list(chosen)
        own = getattr(of(config, dotted.rpartition(".")[0]), "target_", None)
        if own is None and value != of(usual, dotted) and ignoring.issuperset(names):
            lines.append(f"{dotted}={value} has no effect: {choice}={'+'.join(names)} does not read it")
    for name, value in () if is_volume3d(config.backbone) else config.volume:
        if value != getattr(usual.volume, name):
            lines.append(f"volume.{name}={value} has no effect: backbone.name={config.backbone.name} does not read it")
    return lines


def check_device(config: Config) -> None:
    """Refuse a device that is not there, or not what a key needs, before anything is read or computed.

    Raises:
        ConfigError: No GPU; or a search for the largest batch where torch reports no limit of the memory.
    """
    fit = config.trainer
    if fit.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator={fit.accelerator}: torch sees no GPU",
            remedy="use trainer=cpu; `hemlearn doctor` lists the devices",
        )
    if fit.find_batch_size and run_device(config).type != "cuda":
        raise ConfigError(
            f"trainer.find_batch_size=true: {fit.accelerator} tells no limit of its memory",
            remedy="set it with trainer=gpu, or give data.batch_size",
        )


def check_parts(config: Config) -> None:
    """Refuse classes that cannot be imported or do not take their arguments, before any data are read.

    Raises:
        ConfigError: All such parts, an optimiser that no one knows, and a metric that cannot be built or monitored.
    """
    groups = ("data", "split", "channels", "augmentation", "backbone", "freeze", "features", "sequence", "task", "loss")
    nodes = {group: getattr(config, group) for group in groups}
    nodes["optimizer.schedule"] = config.optimizer.schedule
    nodes |= {f"callbacks.{name}": node for name, node in config.callbacks.items()}
    nodes |= {f"metrics.{name}": node for name, node in config.metrics.items()}
    _raise_all(
        partial(check_optimizer, config.optimizer),
        partial(_check_metrics, config),
        partial(_check_backbone, config),
        *(partial(check, node, key) for key, node in nodes.items()),
    )


def check_values(config: Config) -> None:
    """Refuse shipped parts whose arguments they do not take, before any data are read; tell what has no effect.

    Raises:
        ConfigError: A network, loss, augmentation, strategy or option that there is not, or that cannot work.
    """
    _raise_all(
        partial(_check_shipped_backbone, config),
        partial(_check_loss, config),
        partial(_check_augmentation, config),
        partial(_check_sequence, config),
        partial(check_trainer, config.trainer),
    )
    _check_freeze(config)
    for line in without_effect(config):
        logger.warning("%s", line)


def check_triage(task: TaskConfig, val: pd.DataFrame, leaky: bool = False) -> None:
    """Refuse triage that the validation patients cannot support for any label, before training; tell for which.

    Args:
        task: ``triage_error`` and ``triage_value``.
        val: ``patient_id``, ``series_id`` and ``label_*`` of the validation slices.
        leaky: Whether the split may put a patient on two sides: cuts from patients of the training promise nothing.

    Raises:
        ConfigError: With the number of patients needed, or because the split is leaky.
    """
    asked = {name: getattr(task, name) for name in ("triage_error", "triage_value")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return
    given = ", ".join(f"task.{name}={value:.10g}" for name, value in asked.items())
    if leaky:
        why = "slices of validation patients are in training, so that no error rate or predictive value can be promised"
        raise ConfigError(f"{given}: a LEAKY split: {why}", remedy="split by patient, or leave triage out")
    positive, known = unit_counts(val, "patient", task)
    counts = zip(task.labels, positive.astype(int), (known - positive).astype(int), strict=True)
    found = {label: unsupported(with_it, without, task) for label, with_it, without in counts}
    refused = {label: reason for label, reason in found.items() if reason}
    if len(refused) == len(found):
        label, reason = next(iter(refused.items()))
        raise ConfigError(
            f"{given}: {label}: {reason}" + (f" (and so for {len(found) - 1} more labels)" if len(found) > 1 else ""),
            remedy="ask for less, or validate on more patients (split.val_fraction)",
        )
    for label, reason in refused.items():
        logger.warning("triage: %s stays undecided: %s", label, reason)


def _raise_all(*looks: Callable[[], Any]) -> None:
    """One error of all that is found."""
    found: dict[str, ConfigError] = {}  # two looks may meet one fault
    for look in looks:
        try:
            look()
        except ConfigError as error:
            found.setdefault(str(error), error)
    faults = list(found.values())
    if len(faults) > 1:
        listed = "\n".join(f"  - {error.problem} (Fix: {error.remedy})" for error in faults)
        raise ConfigError(f"{len(faults)} parts cannot be used:\n{listed}", remedy="correct the parts above")
    if faults:
        raise faults[0]


def _check_sequence(config: Config) -> None:
    """Values of a shipped sequence model that do not go together."""
    spec = config.sequence
    if target_of(spec) is None and spec.name != "none" and set(spec.name.split("+")) <= set(SEQUENCES):
        check_sequence(spec.name, spec.layers, spec.heads, spec.hidden)


def _check_metrics(config: Config) -> None:
    if target_of(config.task) is None and config.task.kind != PRETRAINING:  # a task of one's own may make others
        direction(build_metrics(config.metrics, config.task), config.task.monitor)


def _check_backbone(config: Config) -> None:
    """Build a module of the user's once to look at it; what it draws at random is not missed by the run's own."""
    if target_of(config.backbone) is not None:
        channels = build_channels(config.channels, None)
        with torch.random.fork_rng(devices=[]):
            own_module(config.backbone, channels.out_channels, config.data.image_size)


def _check_shipped_backbone(config: Config) -> None:
    if is_volume3d(config.backbone):
        return  # built whole by `check_backbone_weights`
    if target_of(config.backbone) is None and config.backbone.name not in REGISTRY.parts.get("backbone", {}):
        check_backbone(config.backbone, config.data.image_size)


def _grid(config: Config) -> dict[str, Any]:
    """Of the volumes that a 3D network sees."""
    return {"size": config.volume.size, "spacing": config.volume.spacing}


def _check_freeze(config: Config) -> None:
    """Try a method that names layers on the network, without its weights."""
    if config.freeze.method == "full" or target_of(config.freeze) is not None:
        return
    random = config.backbone.model_copy(update={"pretrained": False, "weights": None})
    width = build_channels(config.channels, None).out_channels
    with torch.random.fork_rng(devices=[]):
        if is_volume3d(config.backbone):
            backbone = build_network3d(random, in_chans=width, **_grid(config))
        else:
            backbone = build_backbone(random, in_chans=width, image_size=config.data.image_size)
        build_freeze(config.freeze, backbone)


def check_backbone_weights(config: Config) -> None:
    """Refuse weights that cannot be loaded into the network, before any data are read.

    Raises:
        WeightsError: Absent, damaged, not finite, or of another network.
    """
    chans = build_channels(config.channels, None).out_channels
    if is_volume3d(config.backbone):
        with torch.random.fork_rng(devices=[]):
            build_network3d(config.backbone, in_chans=chans, **_grid(config))
        return
    check_weights(config.backbone, chans, config.data.image_size)


def _check_loss(config: Config) -> None:
    if config.task.kind == PRETRAINING:
        check_lightly()
    elif target_of(config.loss) is None and config.loss.name not in REGISTRY.parts.get("loss", {}):
        build_loss(config.loss, labels=config.task.labels, kind=config.task.kind, positives=None, negatives=None)


def _check_augmentation(config: Config) -> None:
    """Try the steps on a grey batch: what is no map of images to images fails here, not in the first epoch."""
    steps = build_augment(config.augmentation, config.task.labels, config.task.sides)
    if len(steps.steps):
        size, width = config.data.image_size, build_channels(config.channels, None).out_channels
        with torch.random.fork_rng(devices=[]):
            steps.train()(torch.full((2, width, size, size), 0.5), torch.zeros(2, len(config.task.labels)))
