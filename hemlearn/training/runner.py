"""One run from configuration to run folder: fit, pick the best checkpoint, test once, write everything down."""

from __future__ import annotations

import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from hemlearn.audits.seen import seen_by_weights
from hemlearn.config.compose import compose
from hemlearn.config.identity import DRAWING, draws_patients, run_hash
from hemlearn.config.schema import MONITORS, PRETRAINING, Config, is_parallel, to_dict
from hemlearn.data.splits import PART, Split, given_split
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.models.embeddings import Embeddings
from hemlearn.models.lean import put_back
from hemlearn.models.loading import check_state, fit_state, read_checkpoint
from hemlearn.models.weights import weights_checksum
from hemlearn.plugins import calling, load_plugins
from hemlearn.tasks.base import Classification
from hemlearn.tasks.optimizers import check_optimizer_state
from hemlearn.training.batch_size import find_batch_size
from hemlearn.training.build import assemble, build_datamodule, check_series
from hemlearn.training.callbacks import BestAndLast, EpochLog, Recorder
from hemlearn.training.checks import check_backbone_weights, check_device, check_parts, check_triage, check_values
from hemlearn.training.folder import RunFolder, remove
from hemlearn.training.loggers import build_loggers, close_loggers, continue_tracking
from hemlearn.training.results import Module, evaluate_run, labelled
from hemlearn.training.run import Run, pick_run
from hemlearn.training.stages import origin, stage_config, with_stage
from hemlearn.training.study import Pruning, no_trial
from hemlearn.training.trainer import (
    build_callbacks,
    build_checkpoints,
    build_trainer,
    compiled,
    limited_threads,
    run_device,
    training_errors,
)
from hemlearn.util import interrupts
from hemlearn.util.console import silence_libraries
from hemlearn.util.errors import ConfigError, HemlearnError, RunError, WeightsError, count
from hemlearn.util.run_files import PLACE, PROVENANCE, UNSIGNED, is_ours, read_provenance, signs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        folder: The run folder.
        state: ``complete`` (made now), ``skipped`` (was complete already) or ``helper`` (a further device's process).
        metrics: Content of ``metrics.json``.
        objective: The monitored metric on validation, for hyper-parameter sweepers.
        monitor: Its name.
        mode: ``min`` or ``max``: which end of it is good.
    """

    folder: Path
    state: str
    metrics: dict[str, Any]
    objective: float = math.nan
    monitor: str = ""
    mode: str = "max"


def run(config: Config) -> Outcome:
    """Make the run, or resume it, or skip it when it is complete; the run it builds on comes first.

    With ``config.force`` a complete run is made anew; the old result stays in place until the new one is complete.

    Raises:
        HemlearnError: Anything the user can mend; the run folder is then ``failed`` and holds the traceback.
    """
    config = _with_weights(config, _run_stage)
    data, folder = _identify(config)
    if not is_helper_process(config):
        folder.finish_taking(folder.aside())
    complete = folder.is_complete
    made = folder.aside() if complete and config.force else folder
    if is_helper_process(config):
        with limited_threads(config.trainer.threads):
            _fit(config, data, made, [])
        return Outcome(folder.path, "helper", {})
    if complete and not config.force:
        return _skipped(config, folder)
    with made.alone() as waited:
        if waited and made is folder and folder.is_complete:
            return _skipped(config, folder)
        metrics = _make(config, data, made)
        if made is not folder:
            folder.take(made)
    return _outcome(config, folder, "complete", metrics)


def _with_weights(config: Config, find_stage: Callable[[Config], Path]) -> Config:
    """The configuration, checked, with the folder of the run that it starts from, if it starts from one."""
    silence_libraries()
    load_plugins(config.plugins)  # in every process that makes a run
    weights = config.backbone.weights
    if weights is not None and Path(weights).name in ("best", "latest"):
        config = config.changed({"backbone.weights": str(pick_run(Path(weights).expanduser()))})
    if config.stage.experiment is not None and config.backbone.weights is None:
        config = with_stage(config, find_stage(stage_config(config)))
    check_parts(config)
    return config


def embed(config: Config) -> Embeddings:
    """Compute the embeddings that the run reads, and train nothing; inside ``working_on`` only those of a shard.

    Raises:
        ConfigError: The run computes its embeddings anew in each epoch.
        RunError: The slice run whose network it reads is not complete.
        ShardsMissing: This shard's are there, those of others are not.
    """
    config = _with_weights(config, _finished_stage)
    check_values(config)
    check_device(config)
    check_backbone_weights(config)
    with limited_threads(config.trainer.threads):
        pl.seed_everything(config.seed, workers=True, verbose=False)
        data = build_datamodule(config)
        with calling(data, "prepare_data"):
            data.prepare_data()
        task, module = assemble(config, data)
    found = getattr(module, "embeddings", None)
    if frozen := getattr(task, "frozen", None):
        found = frozen.cache
    if not isinstance(found, Embeddings):
        raise ConfigError(
            "embeddings=true: this run has no embeddings that stay the same in every epoch",
            remedy="a sequence model with freeze=head augmentation=none has them, or freeze.cached_draws=N",
        )
    return found


def _finished_stage(config: Config) -> Path:
    folder = _identify(config)[1]
    if not folder.is_complete:
        raise RunError(
            f"{folder.path}: the slice run {config.name}, whose network makes the embeddings, is not complete",
            remedy="make it first, with `hemlearn train` and the words of this command; or backbone.weights=RUN",
        )
    return folder.path


def _skipped(config: Config, folder: RunFolder) -> Outcome:
    metrics = json.loads((folder.path / "metrics.json").read_text(encoding="utf-8"))
    folder.drop_let_go()
    if config.checkpoints.whole:
        folder.make_whole()
    if signs() and not is_ours(folder.path):
        logger.warning("%s is complete: skipped; %s; force=true makes it again", folder.path, UNSIGNED)
    else:
        logger.info("%s is complete: skipped", folder.path)
    return _outcome(config, folder, "skipped", metrics)


def _make(config: Config, data: SliceDataModule, made: RunFolder) -> dict[str, Any]:
    """Train, test and write down; the content of ``metrics.json``."""
    with made.open(to_dict(config)), limited_threads(config.trainer.threads):
        logger.info("run folder %s", made.path)
        loggers: list[Logger] = build_loggers(config, made)
        done = False
        try:
            with interrupts.passed_on():
                task, module, clock = _fit(config, data, made, loggers)
            history = pd.DataFrame(clock.history)
            history.attrs["steps"] = clock.steps
            with interrupts.passed_on():
                metrics = evaluate_run(config, data, module, made, task, loggers, history)
            done = True
        finally:
            close_loggers(loggers, done)
        _provenance(config, data, made, task, _cost(clock, task))
    return metrics


def train(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> Run:
    """Make, resume or find the run that the words of ``hemlearn train`` describe.

    Args:
        overrides: Such as ``["experiment=head_ct", "data.root=DIR"]``.
        config_dir: A folder of YAML groups of one's own.

    Raises:
        HemlearnError: As :func:`run`; or a list of values, which is a sweep.
    """
    return Run(run(compose(overrides, config_dir)).folder)


def _run_stage(config: Config) -> Path:
    """The finished slice run; waits where another job of the sweep is making it."""
    logger.info("the run %s comes first", config.name)
    with no_trial():
        return run(config).folder


def is_helper_process(config: Config) -> bool:
    """Whether this is the process of a further device or node; only the first one writes the folder.

    Ranks are those of the launcher that Lightning will find: torchrun, Slurm, or Lightning itself.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment().global_rank() > 0
    fit = config.trainer
    if is_parallel(fit) and SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        return SLURMEnvironment().global_rank() > 0
    return LightningEnvironment().local_rank() > 0 or LightningEnvironment().node_rank() > 0


def _identify(config: Config) -> tuple[SliceDataModule, RunFolder]:
    """The data, and the run folder that they, configuration, weights and split file determine."""
    try:
        check_values(config)
        check_device(config)  # before the data, which may take minutes to read; as the weights
        check_backbone_weights(config)
        data = build_datamodule(config)
        check_series(config, data)
        given = given_split(config.split, data.manifest)
        weights = weights_checksum(config.backbone)
        identity = run_hash(config, manifest=data.manifest.checksum, weights=weights, split_file=given)
    except HemlearnError as error:
        # Without readable data there is no full identity; the failure is recorded under the configuration's own.
        folder = RunFolder(config.output_dir, config.name, run_hash(config, manifest="", weights=None, split_file=None))
        with folder.open(to_dict(config)):
            raise error
    return data, RunFolder(config.output_dir, config.name, identity)


def _fit(
    config: Config, data: SliceDataModule, folder: RunFolder, loggers: list[Logger]
) -> tuple[Classification, Module, EpochLog]:
    """Train (or continue); the task with the best checkpoint's weights, its loaders and the account of epochs."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    with calling(data, "prepare_data"):
        data.prepare_data()
    counts = {part: len(data.rows(part)) for part in ("train", "val", "test")}
    folder.names.learn_manifest(data.manifest)
    if not is_helper_process(config):
        _check_split(folder, data)
        data.split.save(folder.path / "split.csv")
        check_triage(config.task, labelled(config, data, "val"), data.split.leaky)
    logger.info("slices: %s", ", ".join(f"{part} {count}" for part, count in counts.items()))
    task, module = assemble(config, data)
    if config.trainer.find_batch_size:
        file = folder.path / PROVENANCE
        known = (read_provenance(folder.path, sealed=False).get("batch") or {}) if file.is_file() else {}
        slices = data.dataset("train")  # training finds them where the search has left them, as long as this is held
        with training_errors(config, data.batch_size):
            size, rate = find_batch_size(config, task, slices, known.get("data.batch_size"))
        data.batch_size, task.parts["optimizer"] = size, task.parts["optimizer"].model_copy(update={"lr": rate})
    if not is_helper_process(config):
        _provenance(config, data, folder, task, None)  # a run that fails later leaves its origin behind too
    clock = EpochLog()
    callbacks = [
        clock,
        *build_callbacks(config, task, bool(loggers)),
        keeper := build_checkpoints(config, folder, task),
    ]
    trainer = build_trainer(config, [*loggers, Recorder(clock)] if loggers else [], callbacks)
    if config.force and not is_helper_process(config):
        for file in (folder.last, folder.best):
            file.unlink(missing_ok=True)
    resume = folder.last if _whole_checkpoints(folder) else None
    kept = _read_checkpoint(resume, task, clock, keeper) if resume else {"callbacks": {}}
    states = kept["callbacks"]
    if resume:
        data.first_epoch = int(kept["epoch"]) + 1
        clock.load_state_dict(states[clock.state_key])
        continue_tracking(loggers, folder, clock.logged, kept["global_step"])
    if any(key.startswith("EarlyStopping") and state.get("stopped_epoch", 0) > 0 for key, state in states.items()):
        logger.info("%s had stopped early: only testing is left", resume)
    else:
        if resume:
            logger.info("resuming from %s", resume)
        with training_errors(config, data.batch_size), compiled(task, config.trainer.compile):
            trainer.fit(task, datamodule=module, ckpt_path=resume, weights_only=True)
    for item in callbacks:
        if isinstance(item, Pruning):
            item.raise_pruned(not is_helper_process(config))
    if not is_helper_process(config):  # the first process may still be writing it, and it alone tests
        fit_state(task, _read_checkpoint(folder.best, task, clock, keeper)["state_dict"], folder.best)
        rest = [value for name, value in task.named_parameters() if not name.startswith("backbone.")]
        clock.trained = sum(value.numel() for value in rest if value.requires_grad)
        clock.trained += task.policy.trained_parameters(task.backbone)
        task.policy.merge(task.backbone)  # what is tested is what `predict` builds
        task.train(task.training)
    return task, module, clock


def _check_split(folder: RunFolder, data: SliceDataModule) -> None:
    """Refuse to go on with a run whose patients stood on other sides when it was interrupted."""
    file = folder.path / "split.csv"
    if folder.last.exists() and file.exists() and Split.load(file).checksum != data.split.checksum:
        raise RunError(
            f"{file}: the interrupted run had another split, made by another version of hemlearn",
            remedy=f"delete {folder.path} to train this run from the start",
        )


def _whole_checkpoints(folder: RunFolder) -> bool:
    """Whether the run goes on from a checkpoint; one that is cut or empty, as after a power loss, is taken away."""
    found = [file for file in (folder.last, folder.best) if file.exists()]
    torn = [file for file in found if not _is_whole(file)]
    for file in torn:
        logger.warning("%s: cut or empty, as after a power loss: trained from the start", file)
    for file in found if torn or len(found) < 2 else ():
        remove(file)  # both: one without the other would give another result
    return len(found) == 2 and not torn


def _is_whole(file: Path) -> bool:
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def _read_checkpoint(file: Path, task: Classification, clock: EpochLog, keeper: BestAndLast) -> dict[str, Any]:
    """A checkpoint's content.

    Raises:
        RunError: The file is missing, damaged, holds pickled code, lacks a part, is of another run, or holds
            tensors that the task cannot take.
    """
    remedy = f"delete {file.parent} to train this run from the start"
    try:
        content: dict[str, Any] = read_checkpoint(file)
        states, _ = content["callbacks"], content["loops"]["fit_loop"]
        lacks = [key for key in ("epoch", "global_step", "optimizer_states", "lr_schedulers") if key not in content]
        EpochLog().load_state_dict(states[clock.state_key])
        run = states[keeper.state_key]["run"]
        put_back(content, task.backbone, file)
        check_state(task, content["state_dict"], file)
        if "current_model_state" in content:  # those that are trained, where the others are averaged
            check_state(task, content["current_model_state"], file)
        known = type(task).configure_optimizers is Classification.configure_optimizers
        if not lacks:
            check_optimizer_state(task, task.parameter_groups() if known else None, content, file)
    except WeightsError as error:
        raise RunError(error.problem, remedy=remedy) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{file}: no checkpoint of a run ({type(error).__name__}: {error})", remedy=remedy) from error
    if lacks or run != keeper.run:
        told = f"lacks {', '.join(lacks)}" if lacks else f"of run {run}, not of {keeper.run}"
        raise RunError(f"{file}: {told}", remedy=remedy)
    return content


def _provenance(
    config: Config, data: SliceDataModule, folder: RunFolder, task: Classification, cost: dict[str, Any] | None
) -> None:
    """Write down what the run is made from; ``cost`` is known only at its end."""
    if config.trainer.accelerator in ("gpu", "cuda") and torch.cuda.is_available():
        device = torch.cuda.get_device_name(run_device(config))
    else:
        device = f"{config.trainer.accelerator}, {count(torch.get_num_threads(), 'thread')}"
    batch = {"data.batch_size": data.batch_size, "optimizer.lr": getattr(task.parts["optimizer"], "lr", None)}
    sums = {
        "manifest": data.manifest.checksum,
        "split": data.split.checksum,
        "store": data.store.key,
        "weights": task.backbone.weights_checksum,
    }
    weights = config.backbone.weights if config.backbone.pretrained else None
    folder.write_provenance(
        keep=None if cost is None else config.checkpoints.keep,
        **({PLACE: os.path.relpath(weights, folder.path)} if weights and Path(weights).exists() else {}),
        device=device,
        cost=cost,
        data={
            "source": data.manifest.source,
            "root": str(data.root),
            "synthetic": data.manifest.synthetic,
            "modality": sorted(set(data.manifest.table["modality"])),
            **_parts(data),
            **data.manifest.summary(),
        },
        checksums=sums,
        **({"batch": batch} if config.trainer.find_batch_size else {}),
        weights=task.backbone.weights_source,
        weights_licence=task.backbone.weights_licence,
        stage=origin(config),
        **({"pretraining": config.task.method} if config.task.kind == PRETRAINING else {}),
        **({"split_drawing": DRAWING} if draws_patients(config) else {}),
        leaky_split=data.split.leaky or bool(seen_by_weights(config.backbone.weights, data)),
    )


def _parts(data: SliceDataModule) -> dict[str, Any]:
    """Which data sets of several stand on which side, for ``compare``'s transfer matrix, and what they hold."""
    if data.manifest.source != "multi":
        return {}
    found = data.manifest.table[PART].astype(str).groupby(data.split.apply(data.manifest)).unique()
    sides = {str(side): sorted(names) for side, names in found.items()}
    return {"parts": sides, "contents": data.contents, "sources": data.sources}


def _cost(clock: EpochLog, task: Classification) -> dict[str, Any]:
    return {
        "fit_seconds": round(clock.seconds, 2),
        "slices_per_second": round(clock.speed, 2),
        "epochs": len(clock.history),
        "parameters": sum(p.numel() for p in task.parameters()),
        "trained_parameters": clock.trained,
    }


def _outcome(config: Config, folder: RunFolder, state: str, metrics: dict[str, Any]) -> Outcome:
    name = "log_loss" if config.task.monitor == "last" else config.task.monitor
    value = metrics.get("val", {}).get(config.task.trained_level, {}).get(name, {}).get("value")
    mode = MONITORS.get(name) or metrics.get("monitor", {}).get("mode", "max")
    return Outcome(folder.path, state, metrics, math.nan if value is None else float(value), name, mode)
