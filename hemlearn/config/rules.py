"""Ranges: values of the right type that cannot be meant, and combinations that cannot work together."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hemlearn.config.schema import Config
from hemlearn.util.errors import hint

# --- What can be wrong with the keys of a configuration: unknown ones, wrong types, options that do not exist.


_GROUP_CHOICE_ONLY = ("experiment", "sweep")  # groups that fill other groups and hold no keys of their own


@cache
def schema_keys() -> dict[str, Any]:
    """Dotted name of every key (sections included) and its type."""
    found: dict[str, Any] = {}

    def walk(cls: type, prefix: str) -> None:
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            name = f"{prefix}{item.name}"
            found[name] = hints[item.name]
            if dataclasses.is_dataclass(hints[item.name]):
                walk(typing.cast(type, hints[item.name]), name + ".")

    walk(Config, "")
    return found


def _is_free(key: str) -> bool:
    """Whether ``key`` lies below a dictionary or list, whose inner names the schema leaves open."""
    parent = key
    while "." in parent:
        parent = parent.rpartition(".")[0]
        kind = schema_keys().get(parent)
        if kind is not None:
            return typing.get_origin(kind) in (dict, list) or kind is Any
    return False


def _options(group: str, folders: Sequence[Path]) -> list[str]:
    names = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    return sorted(names)


@cache
def _trial(section: str) -> DictConfig:
    """A typed copy of one section; building the whole tree for each value would take seconds."""
    cls = typing.cast(type, schema_keys()[section]) if section else Config
    return typing.cast(DictConfig, OmegaConf.structured(cls))


def _value_problem(key: str, value: Any) -> str | None:
    """What is wrong with ``value`` for the schema's ``key``, or None."""
    section, _, name = key.rpartition(".")
    try:
        _trial(section)[name] = value  # OmegaConf converts or refuses; the trial copy is never read
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        kind = schema_keys().get(key)
        expected = getattr(kind, "__name__", None) if typing.get_origin(kind) is None else None
        if expected is None or expected == "Union":
            expected = str(kind).replace("typing.", "")
        return f"{key}={value!r}: expected {expected} ({str(error).splitlines()[0]})"
    return None


def override_problem(text: str, folders: Sequence[Path]) -> tuple[str | None, bool]:
    """The fault of one command-line override (or None), and whether composing can still use the override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        return f"{text}: not of the form key=value, or a value that needs quotes ({reason})", False
    key = parsed.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return None, True
    keys = schema_keys()
    is_section = dataclasses.is_dataclass(keys.get(key)) or key in _GROUP_CHOICE_ONLY
    if not is_section and key not in keys and not _is_free(key):
        return f"unknown key '{key}'{hint(key, [*keys, *_GROUP_CHOICE_ONLY])}", False
    if parsed.is_delete():
        return None, True
    if parsed.is_sweep_override():
        raw = parsed.value()
        elements: list[Any] = list(raw.list) if isinstance(raw, ChoiceSweep) else []
    else:
        elements = [parsed.value()]
    for element in elements:
        value: Any = getattr(element, "text", element)  # quoted strings carry their text
        if is_section:
            if isinstance(value, dict):
                continue
            choices = _options(key, folders)
            for name in value if isinstance(value, list) else [value]:
                if name is not None and str(name) not in choices:
                    listed = ", ".join(choices)
                    return f"unknown {key} '{name}'{hint(str(name), choices)} (there are: {listed})", False
        elif key in keys and not (isinstance(value, str) and "${" in value):
            problem = _value_problem(key, value)
            if problem:
                return problem, False
    return None, True


def tree_problems(tree: dict[str, Any]) -> list[str]:
    """Unknown keys and values of the wrong type in a composed configuration."""
    keys = schema_keys()
    problems: list[str] = []

    def walk(node: dict[Any, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            kind = keys.get(key)
            if kind is None:
                problems.append(f"unknown key '{key}'{hint(key, keys)}")
            elif dataclasses.is_dataclass(kind):
                if isinstance(value, dict):
                    walk(value, key + ".")
                else:
                    problems.append(f"{key}={value!r}: expected a group of keys, not a value")
            else:
                problem = _value_problem(key, value)
                if problem:
                    problems.append(problem)

    walk(tree, "")
    return problems


FEATURES = ("none", "pca", "variance", "anova", "mutual_info", "l1", "random_projection")
SEQUENCES = ("none", "slice", "mean", "max", "lstm", "gru", "attention", "transformer", "conv_gru")
TARGETS = {"sensitivity": 0.95, "specificity": 0.9, "cost": 5.0}  # threshold rules with a number; an example of each


def range_problems(config: Config) -> list[str]:
    """Values of the right type that cannot be meant."""
    found: list[str] = []

    def need(ok: bool, key: str, value: object, rule: str) -> None:
        if not ok:
            found.append(f"{key}={value!r}: {rule}")

    def one_of(key: str, value: str, choices: Sequence[str]) -> None:
        if value not in choices:
            found.append(f"{key}={value!r}: expected one of {', '.join(choices)}{hint(str(value), choices)}")

    data, split, task, optim, fit = config.data, config.split, config.task, config.optimizer, config.trainer
    many = fit.devices not in (1, "1", [0]) or fit.num_nodes > 1
    one_of("data.fit", data.fit, ("letterbox", "squash", "crop", "head"))
    one_of("data.sampler", data.sampler, ("shuffle", "balanced"))
    need(data.image_size >= 32, "data.image_size", data.image_size, "at least 32 pixels")
    need(data.batch_size >= 1, "data.batch_size", data.batch_size, "at least 1")
    need(data.num_workers >= 0, "data.num_workers", data.num_workers, "0 or more")
    need(data.phantom_patients >= 10, "data.phantom_patients", data.phantom_patients, "at least 10")
    need(
        data.root is None or bool(data.root.strip()),
        "data.root",
        data.root,
        "a folder; leave data.root out for synthetic data",
    )
    need(
        data.name != "table" or data.manifest is not None,
        "data.manifest",
        data.manifest,
        "data=table needs the CSV file: data.manifest=FILE",
    )
    band = data.band
    good = band is None or (len(band) == 2 and 0 <= band[0] < band[1] <= 1)
    need(good, "data.band", band, "two rising shares from 0 (lowest slice) to 1 (topmost), or null")
    need(
        band is None or data.name in ("basal_ganglia", "hydrocephalus_mri"),
        "data.band",
        band,
        f"data={data.name} does not read it",
    )
    need(
        data.patient_pattern is None or data.name in ("basal_ganglia", "hydrocephalus_mri", "six_class"),
        "data.patient_pattern",
        data.patient_pattern,
        f"data={data.name} does not read it",
    )
    one_of("split.name", split.name, ("holdout", "kfold", "monte_carlo", "file"))
    one_of("split.by", split.by, ("patient", "slice"))
    one_of("split.duplicates", split.duplicates, ("near", "exact", "none"))
    need(split.folds >= 2, "split.folds", split.folds, "at least 2")
    if split.name == "kfold":
        inside = 0 <= split.fold < split.folds
        need(inside, "split.fold", split.fold, f"0 to {split.folds - 1} (split.folds={split.folds})")
    need(split.fold >= 0, "split.fold", split.fold, "0 or more")
    for key in ("test_fraction", "val_fraction"):
        value = getattr(split, key)
        need(0.0 < value < 1.0, f"split.{key}", value, "strictly between 0 and 1")
    need(
        split.name != "file" or split.file is not None,
        "split.file",
        split.file,
        "split=file needs a CSV with patient_id,split: split.file=FILE",
    )
    need(
        split.by == "patient" or split.allow_leak,
        "split.by",
        split.by,
        "puts slices of one patient on both sides; say split.allow_leak=true to do it knowingly",
    )
    need(
        not (split.by == "slice" and task.level == "series"),
        "split.by",
        split.by,
        "task.level=series judges whole series, which a split by slice divides; use split.by=patient",
    )
    one_of("channels.kind", config.channels.kind, ("ct", "mr"))
    need(config.channels.neighbours >= 0, "channels.neighbours", config.channels.neighbours, "0 or more")
    one_of("task.kind", task.kind, ("binary", "multiclass", "multilabel"))
    one_of("task.level", task.level, ("slice", "series"))
    one_of("task.aggregate", task.aggregate, ("mean", "max", "model"))
    one_of("task.calibration", task.calibration, ("none", "temperature", "platt", "isotonic"))
    for flip in task.tta:
        one_of("task.tta", flip, ("horizontal", "vertical"))
    n = len(task.labels)
    need(len(set(task.labels)) == n and n > 0, "task.labels", task.labels, "at least one label, each once")
    need(task.kind != "binary" or n == 1, "task.labels", task.labels, "a binary task has exactly one label")
    need(task.kind == "binary" or n >= 2, "task.labels", task.labels, f"a {task.kind} task has two labels or more")
    for pair in task.sides:
        need(len(pair) == 2 and set(pair) <= set(task.labels), "task.sides", pair, "pairs of task.labels")
    monitors = ("log_loss", "weighted_log_loss", "auroc", "ap", "accuracy", "brier", "last")
    one_of("task.monitor", task.monitor, monitors)
    need(
        task.monitor != "weighted_log_loss" or task.kind == "multilabel",
        "task.monitor",
        task.monitor,
        f"a {task.kind} task has no label weights: use log_loss",
    )
    _threshold_rule(task.threshold, need, one_of)
    one_of("loss.name", config.loss.name, ("bce", "cross_entropy", "focal"))
    need(0 <= config.loss.label_smoothing < 1, "loss.label_smoothing", config.loss.label_smoothing, "in [0, 1)")
    need(config.loss.gamma >= 0, "loss.gamma", config.loss.gamma, "0 or more")
    need(config.augmentation.mixup >= 0, "augmentation.mixup", config.augmentation.mixup, "0 (off) or more")
    multiclass = task.kind == "multiclass"
    need(
        config.loss.name != "bce" or not multiclass,
        "loss.name",
        config.loss.name,
        "a multiclass task needs loss=cross_entropy or loss=focal",
    )
    need(
        config.loss.name != "cross_entropy" or multiclass,
        "loss.name",
        config.loss.name,
        f"a {task.kind} task needs loss=bce or loss=focal",
    )
    need(0 <= task.dropout < 1, "task.dropout", task.dropout, "in [0, 1)")
    for key, value in (("drop_rate", config.backbone.drop_rate), ("drop_path_rate", config.backbone.drop_path_rate)):
        need(0 <= value < 1, f"backbone.{key}", value, "in [0, 1)")
    for epoch, trainable in {0: config.freeze.trainable, **config.freeze.schedule}.items():
        key = "freeze.trainable" if epoch == 0 and 0 not in config.freeze.schedule else f"freeze.schedule.{epoch}"
        number = isinstance(trainable, int) and not isinstance(trainable, bool) and trainable >= 0
        need(number or trainable in ("all", "head"), key, trainable, "all, head, or a number of groups from 0")
    draws = config.freeze.cached_draws
    need(draws >= 0, "freeze.cached_draws", draws, "0 (off) or more")
    for ok, why in (
        (config.sequence.name == "none", "sequence models cache embeddings by themselves"),
        (not config.freeze.schedule, "freeze.schedule changes what is frozen"),
        (not config.augmentation.mixup, "augmentation.mixup mixes images, not what is cached of them"),
        (not many, "use trainer.devices=1"),
    ):
        need(draws <= 0 or ok, "freeze.cached_draws", draws, why)
    for window in config.channels.windows:
        good = isinstance(window, list) and len(window) == 2 and all(isinstance(v, int | float) for v in window)
        need(good and window[1] > 0, "channels.windows", window, "[centre, width] in HU with a width above 0")
    need(config.seed >= 0, "seed", config.seed, "0 or more")
    need(
        len(optim.betas) == 2 and all(0 <= beta < 1 for beta in optim.betas),
        "optimizer.betas",
        optim.betas,
        "two numbers in [0, 1)",
    )
    need(optim.schedule.step_epochs >= 1, "optimizer.schedule.step_epochs", optim.schedule.step_epochs, "at least 1")
    need(optim.schedule.patience >= 0, "optimizer.schedule.patience", optim.schedule.patience, "0 or more")
    one_of("trainer.accelerator", fit.accelerator, ("cpu", "gpu", "cuda", "mps", "tpu", "auto"))
    one_of("trainer.precision", fit.precision, ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"))
    need(fit.threads is None or fit.threads >= 1, "trainer.threads", fit.threads, "at least 1")
    need(fit.accumulate_grad_batches >= 1, "trainer.accumulate_grad_batches", fit.accumulate_grad_batches, "at least 1")
    limit = fit.limit_train_batches
    whole = isinstance(limit, int) and limit >= 1
    need(
        whole or (isinstance(limit, float) and 0 < limit <= 1),
        "trainer.limit_train_batches",
        limit,
        "a share in (0, 1] or a number of batches",
    )
    one_of("optimizer.name", optim.name, ("adamw", "adam", "sgd"))
    need(optim.lr > 0, "optimizer.lr", optim.lr, "above 0")
    one_of("optimizer.schedule.name", optim.schedule.name, ("constant", "cosine", "step", "plateau"))
    need(fit.max_epochs >= 1, "trainer.max_epochs", fit.max_epochs, "at least 1")
    need(
        not (many and config.freeze.schedule),
        "freeze.schedule",
        config.freeze.schedule,
        "several devices synchronise only what trains from the start; use trainer.devices=1",
    )
    need(
        not many or config.stage.experiment is None or config.backbone.weights is not None,
        "stage.experiment",
        config.stage.experiment,
        "with several devices train the slice run by a command of its own and give its "
        "folder: stage.experiment=null backbone.weights=RUN",
    )
    need(fit.ema_decay is None or 0 < fit.ema_decay < 1, "trainer.ema_decay", fit.ema_decay, "between 0 and 1")
    for kind in config.logger.kinds:
        one_of("logger.kinds", kind, ("wandb", "csv", "tensorboard", "mlflow"))
    one_of("logger.mode", config.logger.mode, ("auto", "online", "offline", "disabled"))
    _volume_rules(config, need, one_of)
    need(re.fullmatch(r"[\w.+-]+", config.name) is not None, "name", config.name, "letters, digits and . _ + - only")
    return found


def _threshold_rule(rule: Any, need: Callable[..., None], one_of: Callable[..., None]) -> None:
    """A number, a criterion, or a criterion with its target, such as ``sensitivity:0.95``."""
    if not isinstance(rule, str):
        number = isinstance(rule, int | float) and not isinstance(rule, bool)
        need(number and 0 < rule < 1, "task.threshold", rule, "a number between 0 and 1")
        return
    name, colon, text = rule.partition(":")
    if not colon:
        one_of("task.threshold", rule, ("youden", "accuracy", "f1", *(f"{n}:{v:g}" for n, v in TARGETS.items())))
        return
    one_of("task.threshold", name, tuple(TARGETS))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if name == "cost":
        need(
            0 < value < math.inf,
            "task.threshold",
            rule,
            "the cost of a missed positive when a false alarm costs 1, such as cost:5",
        )
    elif name in TARGETS:
        need(0 < value <= 1, "task.threshold", rule, f"a share above 0 and up to 1, such as {name}:{TARGETS[name]:g}")


def _volume_rules(config: Config, need: Callable[..., None], one_of: Callable[..., None]) -> None:
    """Rules of series geometry, feature selection, sequence models and the stage they build on."""
    geometry, features, sequence, task = config.data.geometry, config.features, config.sequence, config.task
    one_of("data.geometry.duplicates", geometry.duplicates, ("first", "keep", "refuse"))
    one_of("data.geometry.gaps", geometry.gaps, ("keep", "refuse"))
    one_of("data.geometry.tilt", geometry.tilt, ("keep", "refuse"))
    need(geometry.min_slices >= 1, "data.geometry.min_slices", geometry.min_slices, "at least 1")
    one_of("features.name", features.name, FEATURES)
    need(features.k is None or features.k >= 1, "features.k", features.k, "at least 1, or null for all")
    need(features.strength > 0, "features.strength", features.strength, "above 0")
    for name in sequence.name.split("+"):  # several joined by + are averaged
        one_of("sequence.name", name, SEQUENCES if name == sequence.name else SEQUENCES[1:])
    one_of("sequence.probabilities", sequence.probabilities, ("none", "in", "out", "both"))
    need(sequence.layers >= 0, "sequence.layers", sequence.layers, "0 or more")
    for key in ("hidden", "heads", "kernel", "members", "series_per_batch", "chunk"):
        need(getattr(sequence, key) >= 1, f"sequence.{key}", getattr(sequence, key), "at least 1")
    need(sequence.kernel % 2 == 1, "sequence.kernel", sequence.kernel, "an odd number, so that it has a centre")
    for key in ("dropout", "input_dropout", "output_dropout"):
        value = getattr(sequence, key)
        need(value is None or 0 <= value < 1, f"sequence.{key}", value, "in [0, 1)")
    need(sequence.smoothing >= 0, "sequence.smoothing", sequence.smoothing, "0 or more slices on each side")
    need(sequence.series_weight >= 0, "sequence.series_weight", sequence.series_weight, "0 or more")
    volume = sequence.name != "none"
    need(
        volume or features.name == "none",
        "features.name",
        features.name,
        "feature selection needs a sequence model: sequence=slice, lstm, ...",
    )
    need(
        volume or task.aggregate != "model",
        "task.aggregate",
        task.aggregate,
        "only a sequence model has a series output: use mean or max, or set sequence=...",
    )
    need(
        volume or config.stage.experiment is None,
        "stage.experiment",
        config.stage.experiment,
        "a stage feeds a sequence model: set sequence=...",
    )
    need(not volume or task.kind != "multiclass", "task.kind", task.kind, "a sequence model needs binary or multilabel")
    weights = task.label_weights
    fits = weights is None or (len(weights) == len(task.labels) and all(w >= 0 for w in weights) and sum(weights) > 0)
    need(fits, "task.label_weights", weights, "one number of 0 or more per label, not all 0")
