"""The configuration becomes objects: data module and task, with the embeddings that feed it.

Only this module and ``trainer.py`` translate :class:`~hemlearn.config.schema.Config` into keyword arguments.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from hemlearn.config.schema import MAX_WIDTH, PRETRAINING, Config, SplitConfig, is_volume, is_volume3d, to_dict
from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import DTYPES
from hemlearn.data.volumes import check_volumes
from hemlearn.datamodules import datamodule_class
from hemlearn.datamodules.base import ManifestDataModule, SliceDataModule, VolumeDataModule
from hemlearn.models.adapters import merged
from hemlearn.models.embeddings import (
    BATCH,
    Division,
    Embeddings,
    Encoder,
    FrozenEncoder,
    FrozenLayers,
    open_embeddings,
)
from hemlearn.models.loading import fit_state, read_slice_head
from hemlearn.plugins import REGISTRY, call, calling, find, resolve, target_of
from hemlearn.tasks.base import Classification
from hemlearn.tasks.pretrain import Pretraining
from hemlearn.tasks.slices import SliceClassification
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.tasks.volumes3d import Volume3DClassification
from hemlearn.training.stages import check_weights_split
from hemlearn.training.trainer import run_device
from hemlearn.transforms.augment import side_permutation
from hemlearn.util.errors import ConfigError, DataError, WeightsError, count, hint
from hemlearn.util.privacy import shown
from hemlearn.util.run_files import BEST

logger = logging.getLogger(__name__)


def build_datamodule(config: Config) -> SliceDataModule:
    """The data module that ``config.data`` describes: a shipped one by name, or a class of the user's own.

    A class that is no :class:`SliceDataModule` needs an attribute ``manifest``; where it has a ``split`` too, that is
    used instead of ``config.split``.

    Raises:
        ConfigError: An unknown name, with the nearest known one, arguments that the class does not take, or an object
            that is no data module.
        DataError: Its ``manifest`` is none.
    """
    data, options = config.data, slice_options(config)
    more: dict[str, Any] = {
        "root": data.root,
        "patient_pattern": data.patient_pattern,
        "manifest": data.manifest,
        "label_file": data.labels,
        "label_key": data.label_key,
        "series": data.series,
        "path_column": data.path_column,
        "patient_column": data.patient_column,
        "covariates": data.covariates,
        "parts": data.parts,
        "part_weights": data.part_weights,
    }
    modality = data.modality or ("MR" if config.channels.kind == "mr" else None)
    target = target_of(data)
    theirs = find(target, "data") if target else REGISTRY.parts.get("data", {}).get(data.name)
    if theirs is None:
        cls = datamodule_class(data.name)
        return cls(**options, **_named(cls, more | {"modality": modality}))
    more["modality"] = modality or "CT"
    ours = isinstance(theirs, type) and issubclass(theirs, SliceDataModule)
    names = _names(theirs)
    for key in data.model_extra or {}:
        if ours and key not in names and not key.startswith("_"):
            raise ConfigError(
                f"data ({target}): unknown argument '{key}'{hint(key, names)}",
                remedy=f"it takes {', '.join(sorted(names - {'self', 'options'}))}",
            )
    kind = options.pop("kind")  # a word of resolve itself
    offered = options | _named(theirs, more) if ours else _named(theirs, options | more)
    made = resolve(data, "data", **offered) if target else call(theirs, "data", {}, **offered)
    found: SliceDataModule = made if isinstance(made, SliceDataModule) else _adopted(made, options)
    found.select(kind=kind)
    return found


def _names(cls: Any) -> set[str]:
    """What the constructors of a class and of its bases name."""
    owners = [base for base in cls.__mro__ if "__init__" in base.__dict__] if isinstance(cls, type) else [cls]
    found = (inspect.signature(getattr(owner, "__init__", owner)).parameters.values() for owner in owners)
    return {item.name for items in found for item in items if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)}


def _named(cls: Any, offered: dict[str, Any]) -> dict[str, Any]:
    names = _names(cls)
    return {key: value for key, value in offered.items() if key in names}


def _adopted(made: Any, options: dict[str, Any]) -> ManifestDataModule:
    """A data module of slices around somebody else's, which has a manifest."""
    where = f"data._target_={type(made).__module__}.{type(made).__qualname__}"
    if inspect.getattr_static(made, "manifest", inspect) is inspect:
        raise ConfigError(
            f"{where}: no data module: it is no SliceDataModule and has no manifest",
            remedy="subclass hemlearn.datamodules.SliceDataModule and write read(root), or set self.manifest",
        )
    with calling(made, "manifest"):
        manifest = made.manifest
    if manifest is None:  # read in setup, as Lightning suggests
        with calling(made, "prepare_data"):
            made.prepare_data()
        with calling(made, "setup"):
            made.setup("fit")
            manifest = made.manifest
    if not isinstance(manifest, Manifest):
        raise DataError(
            f"{where}: manifest is a {type(manifest).__name__}, not a hemlearn Manifest",
            remedy="make it with hemlearn.data.manifest.build_manifest",
        )
    with calling(made, "split"):
        split = getattr(made, "split", None)
    return ManifestDataModule(manifest, **options | {"split": options["split"] if split is None else split})


def _splitter(cfg: SplitConfig) -> Any:
    """The options of a shipped split, or an object of the user's own."""
    if target_of(cfg) is not None:
        return resolve(cfg, "split")
    if cfg.name in REGISTRY.parts.get("split", {}):
        return call(REGISTRY.get("split", cfg.name), "split", dict(cfg.model_extra or {}))
    return cfg


def slice_options(config: Config) -> dict[str, Any]:
    """What every data module of slices takes: arguments of :class:`SliceDataModule` but the root."""
    data, task = config.data, config.task
    return {
        "labels": task.labels,
        "kind": task.kind,
        "level": task.level,
        "split": _splitter(config.split),
        "image_size": data.image_size,
        "fit": data.fit,
        "batch_size": data.batch_size,
        "num_workers": data.num_workers,
        "resident": data.resident,
        "sampler": data.sampler,
        "neighbours": config.channels.neighbours,
        "geometry": data.geometry,
        "band": data.band,
        "cache_dir": data.cache_dir,
        "cache_limit": data.cache_limit,
        "phantom_patients": data.phantom_patients,
        "phantom_seed": data.phantom_seed,
        "seed": config.seed,
        "pin_memory": config.trainer.accelerator != "cpu",
    }


def task_arguments(config: Config) -> dict[str, Any]:
    """The keyword arguments of a task that a configuration stands for."""
    task = {key: value for key, value in vars(config.task).items() if key in _TASK}
    parts = {key: getattr(config, key) for key in ("channels", "augmentation", "backbone", "freeze", "loss")}
    return {
        **task,
        **parts,
        "optimizer": config.optimizer,
        "metrics": config.metrics or None,
        "image_size": config.data.image_size,
        "channels_last": config.trainer.channels_last,
        "seed": config.seed,
    }


_TASK = (
    "labels",
    "kind",
    "level",
    "labels_from",
    "hidden",
    "dropout",
    "tta",
    "monitor",
    "threshold",
    "aggregate",
    "top_k",
    "label_weights",
    "calibration",
    "sides",
)


def build_task(
    config: Config,
    *,
    unit: str,
    positives: Any,
    negatives: Any,
    slice_head: list[int] | None = None,
    load_weights: bool = True,
) -> Classification:
    """The untrained task of a run.

    Args:
        config: Of the run.
        unit: What the stored numbers are: HU, display or signal.
        positives: Known positive training cases per label; of slices and of series for a sequence model.
        negatives: Known negative ones.
        slice_head: Widths of the hidden layers of the slice run's head; None where there is no slice run.
        load_weights: Load the backbone's pretrained weights; False where a checkpoint brings its own.

    Raises:
        HemlearnError: A part that cannot be built.
    """
    arguments = task_arguments(config) | {"unit": unit, "positives": positives, "negatives": negatives}
    if not load_weights:
        arguments["backbone"] = config.backbone.model_copy(update={"pretrained": False, "weights": None})
        if config.freeze.target_ is None:  # it brings adapters as part of the weights
            arguments["freeze"] = config.freeze.model_copy(update={"method": "full", "layers": []})
    kept = {"config": shown(to_dict(config)), "unit": unit, "positives": positives, "negatives": negatives}
    kind: Any = SliceClassification
    if config.task.kind == PRETRAINING:
        kind = Pretraining
        arguments |= {key: getattr(config.task, key) for key in ("method", "projection", "temperature", "momentum")}
    if is_volume(config.sequence):
        kind = VolumeClassification
        arguments |= {"sequence": config.sequence, "features": config.features, "slice_head": slice_head}
        kept["slice_head"] = slice_head
    elif is_volume3d(config.backbone):
        kind = Volume3DClassification
        arguments |= {"spacing": config.volume.spacing, "size": config.volume.size}
    target = target_of(config.task)
    if target is None:
        task = kind(**arguments)
    else:
        theirs = find(target, "task")
        named = _named(theirs, arguments)
        given = {"kind": named.pop("kind")} if "kind" in named else {}
        task = call(theirs, "task", {**given, **(config.task.model_extra or {})}, kind=Classification, **named)
    assert isinstance(task, Classification)
    task.config = config
    task.hparams.clear()
    task.save_hyperparameters({**kept, "load_weights": False})
    return task


def _counts(value: Any) -> bool:
    """Numbers of cases per label; of slices and of series for a sequence model."""
    return value is None or (
        isinstance(value, list)
        and all(_counts(one) if isinstance(one, list) else isinstance(one, int | float) for one in value)
    )


# What the data have determined, beside the configuration: name in a checkpoint -> whether a value can be meant.
_DETERMINED: dict[str, Callable[[Any], bool]] = {
    "unit": lambda unit: isinstance(unit, str) and unit in DTYPES,
    "positives": _counts,
    "negatives": _counts,
    "slice_head": lambda hidden: (
        hidden is None
        or (isinstance(hidden, list) and all(isinstance(width, int) and 0 < width <= MAX_WIDTH for width in hidden))
    ),
}


def load_task(checkpoint: dict[str, Any], config: Config, file: Path) -> Classification:
    """The task of a run's checkpoint, with its weights, in evaluation mode.

    Args:
        checkpoint: Content of ``best.ckpt`` or ``last.ckpt``: only plain facts and tensors are taken from it.
        config: The run's ``config.yaml``, which alone says what is built.
        file: The checkpoint, for messages.

    Raises:
        WeightsError: Tensors or facts that the network cannot take.
    """
    facts = {key: value for key, value in checkpoint["hyper_parameters"].items() if key in _DETERMINED}
    for name, value in facts.items():
        if not _DETERMINED[name](value):
            raise WeightsError(f"{file}: hyper_parameters.{name}={value!r:.80} says nothing of data", remedy="")
    task = build_task(config, **facts, load_weights=False)
    fit_state(task, merged(checkpoint["state_dict"], file), file)
    return task.eval()


def assemble(config: Config, data: SliceDataModule) -> tuple[Classification, SliceDataModule | VolumeDataModule]:
    """The untrained task of a run, and the data module that feeds it.

    Embeddings are computed here where they are needed and not cached yet.
    """
    check_weights_split(config, data)
    if is_volume3d(config.backbone):
        series = _volumes(config, data)
        counts: dict[str, Any] = dict(zip(("positives", "negatives"), series.label_counts("train"), strict=True))
        return build_task(config, unit=data.unit, **counts), series
    if not is_volume(config.sequence):
        ones, zeros = data.label_counts("train")
        slices = build_task(config, unit=data.unit, positives=ones, negatives=zeros)
        _tell_of_random_layers(config, slices)
        if config.freeze.cached_draws:
            assert isinstance(slices, SliceClassification)
            slices.frozen = _frozen_layers(config, data, slices)
        return slices, data
    tensors, hidden = read_slice_head(config.backbone, config.task)
    if hidden is None and config.sequence.probabilities != "none":
        raise ConfigError(
            f"sequence.probabilities={config.sequence.probabilities}: backbone.weights={config.backbone.weights} has "
            "no head for these labels",
            remedy="give a slice run of the same labels (stage.experiment=NAME or backbone.weights=RUN), "
            "or sequence.probabilities=none",
        )
    size = config.sequence.series_per_batch
    volumes = VolumeDataModule(data, series_per_batch=size)
    positives, negatives = volumes.label_counts("train")
    task = build_task(config, unit=data.unit, positives=positives, negatives=negatives, slice_head=hidden)
    assert isinstance(task, VolumeClassification)
    _check_volume(config, task)
    if task.slice_head is not None:
        fit_state(task.slice_head, tensors, Path(str(config.backbone.weights)) / BEST)
    _tell_of_random_layers(config, task)
    if not task.reads_cache:
        cast(Any, task.features).pass_through()
        return task, volumes
    vectors = _cached(config, data, task.encoder, config.data.batch_size)
    volumes = VolumeDataModule(data, vectors, series_per_batch=size)
    for note in task.fit_features(volumes):
        logger.info("%s", note)
    return task, volumes


def _volumes(config: Config, data: SliceDataModule) -> VolumeDataModule:
    return VolumeDataModule(data, series_per_batch=config.volume.series_per_batch, in_mm=True)


def check_series(config: Config, data: SliceDataModule) -> None:
    """Refuse series that are no volumes for the run's 3D network, if it has one, before their pixels are read.

    Raises:
        DataError: As :func:`hemlearn.data.volumes.check_volumes`.
    """
    if is_volume3d(config.backbone):
        found = _volumes(config, data)
        assert found.pixel_mm is not None
        check_volumes(data.title, found.series, data.manifest.table, found.pixel_mm, config.volume.spacing)


def _tell_of_random_layers(config: Config, task: Classification) -> None:
    """Warn of layers that keep random weights: a comparison of pretrained with scratch would be an unfair one."""
    count = len(task.backbone.groups) - max(task.policy.trainable(epoch) for epoch in (0, *task.policy.changes_at()))
    few = config.freeze.method != "full"
    if (count or few) and not config.backbone.pretrained:
        logger.warning(
            "backbone.pretrained=false, and %s: they keep random weights (freeze=none trains everything)",
            f"freeze.method={config.freeze.method} freezes most layers"
            if few
            else f"{count} of {len(task.backbone.groups)} layer groups are frozen",
        )


def _check_volume(config: Config, task: VolumeClassification) -> None:
    """Refuse what a sequence run cannot do."""
    if (config.features.name != "none" or target_of(config.features)) and not task.reads_cache:
        raise ConfigError(
            f"features.name={config.features.name}: features are selected once, but here the embeddings change while "
            f"training (freeze.trainable={config.freeze.trainable}, augmentation={config.augmentation.name})",
            remedy="use freeze=head augmentation=none, or features=none",
        )
    if config.augmentation.mixup:
        raise ConfigError(
            f"augmentation.mixup={config.augmentation.mixup} would mix slices of different series",
            remedy="set augmentation.mixup=0 for sequence models",
        )


def _frozen_layers(config: Config, data: SliceDataModule, task: SliceClassification) -> FrozenLayers:
    """The frozen layers' output of every slice, see :class:`hemlearn.models.embeddings.FrozenEncoder`."""
    setting, labels = config.task, config.task.labels
    division = Division(task.backbone, task.policy.trainable(0), config.data.image_size)
    whole = Encoder(task.channels, task.backbone, None, setting.tta, config.trainer.channels_last)
    orders = [side_permutation(labels, setting.sides)] * len(setting.tta)
    encoder = FrozenEncoder(
        whole,
        division,
        task.augment,
        task.augment.recipe,
        labels=len(labels),
        draws=config.freeze.cached_draws,
        orders=orders,
    )
    return FrozenLayers(
        division, _cached(config, data, encoder, BATCH), config.freeze.cached_draws, config.trainer.channels_last
    )


def _cached(config: Config, data: SliceDataModule, encoder: Encoder, batch_size: int) -> Embeddings:
    with torch.backends.cudnn.flags(enabled=True, benchmark=not config.trainer.deterministic):
        found = open_embeddings(
            encoder.eval(),
            data.all_slices(),
            content=data.store.key,
            cache_dir=data.cache,
            device=run_device(config),
            precision=config.trainer.precision,
            batch_size=batch_size,
            num_workers=config.data.num_workers,
            resident=config.data.resident,
        )
    account = found.account()
    logger.info(
        "embeddings %s: %s, %s, %.1f s",
        found.folder,
        count(found.shape[0], "slice"),
        count(account["forwards"], "forward"),
        account["seconds"],
    )
    return found
