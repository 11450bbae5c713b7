"""What a trained run says: predictions of validation and test, calibration, metrics, figures."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn

from hemlearn.audits.audit import audit_run
from hemlearn.audits.baselines import relative_position, with_position
from hemlearn.audits.seen import seen_by_weights, write_seen
from hemlearn.config.schema import MONITORS, PRETRAINING, Config
from hemlearn.data.covariates import write_covariates
from hemlearn.datamodules.base import SliceDataModule, VolumeDataModule
from hemlearn.evaluation.auroc import auroc_interval, none_if_nan
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.predictions import IDS, label_array, prob_array, write_predictions
from hemlearn.reports.figures import write_run_figures
from hemlearn.tasks.base import Classification
from hemlearn.tasks.metrics import OWN, score
from hemlearn.tasks.pretrain import NEIGHBOURS, knn_probe
from hemlearn.training.folder import RunFolder
from hemlearn.training.loggers import log_results
from hemlearn.training.trainer import run_device
from hemlearn.util.files import write_json

logger = logging.getLogger(__name__)
Module = SliceDataModule | VolumeDataModule


def predict(config: Config, data: SliceDataModule, module: Module, task: Classification, part: str) -> pd.DataFrame:
    """Predictions of one part of the split, in the columns of ``predictions.parquet``."""
    columns = _outputs(config, module, task, part)
    rows = columns[1].numpy()
    # Whole series come along as context; only the slices of this part are its predictions.
    order = np.flatnonzero(np.isin(rows, data.rows(part)))
    order = order[np.argsort(rows[order], kind="stable")]
    rows = rows[order]
    frame = data.manifest.table.iloc[rows][[*IDS[1:], "z_mm"]].reset_index(drop=True)
    frame.insert(0, "split", part)
    for j, label in enumerate(config.task.labels):
        frame[f"label_{label}"] = data.labels[rows, j]
    for kind, values in zip(("prob", "series_prob"), (columns[0], *columns[2:]), strict=False):
        for j, label in enumerate(config.task.labels):
            frame[f"{kind}_{label}"] = values[order, j].double().numpy()
    return frame


def _outputs(config: Config, module: Module, task: Classification, part: str) -> list[torch.Tensor]:
    """What ``predict_step`` gives for one part of the split.

    One device does it, whatever the training used: a distributed sampler would repeat slices.
    """
    device = run_device(config)
    trainer = pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=[device.index] if device.type == "cuda" else 1,
        logger=False,
        enable_checkpointing=False,
        precision=config.trainer.precision,  # type: ignore[arg-type]
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = trainer.predict(task, module.eval_dataloader(part)) or []
    return [torch.cat(column).cpu() for column in zip(*batches, strict=True)]


def _judge_pretraining(
    config: Config, data: SliceDataModule, folder: RunFolder, task: Classification, history: pd.DataFrame
) -> dict[str, Any]:
    """What pretraining leaves: its loss, and what a probe of its embeddings finds.

    The probe asks the training patients' nearest neighbours for the labels of validation patients; test patients are
    not looked at.
    """
    found: dict[str, Any] = {"method": config.task.method}
    if data.label_names:
        (known, rows), (asked, own) = (_outputs(config, data, task, part) for part in ("train", "val"))
        shares = knn_probe(known, torch.from_numpy(data.labels[rows.numpy()]), asked)
        truth, who = data.labels[own.numpy()], data.manifest.table["patient_id"].to_numpy()[own.numpy()]
        found["probe"] = {"neighbours": NEIGHBOURS, "split": "val", "auroc": {}}
        for j, label in enumerate(data.label_names):
            fine = ~np.isnan(truth[:, j]) & ~np.isnan(shares[:, j])
            area = auroc_interval(truth[fine, j], shares[fine, j], who[fine])
            values = (none_if_nan(value) for value in (area.value, area.low, area.high))
            found["probe"]["auroc"][label] = {
                **dict(zip(("value", "low", "high"), values, strict=True)),
                "n": int(fine.sum()),
            }
            logger.info("probe of %d neighbours, validation patients: %s AUROC %.3f", NEIGHBOURS, label, area.value)
    best = best_values(history, task.monitor, task.mode).get("val/log_loss")
    loss = {"value": best, "low": None, "high": None, "n": len(data.rows("val")), "method": None}
    leaky = bool(data.split.leaky or seen_by_weights(config.backbone.weights, data))
    metrics = {"val": {task.level: {"log_loss": loss}}, "leaky": leaky, "pretraining": found}
    write_json(folder.path / "metrics.json", metrics, indent=2, allow_nan=False)
    return metrics


def evaluate_run(
    config: Config,
    data: SliceDataModule,
    module: Module,
    folder: RunFolder,
    task: Classification,
    loggers: list[Logger],
    history: pd.DataFrame,
) -> dict[str, Any]:
    """Predict validation and test once, score, audit, draw, and hand the results to the trackers.

    Where test patients have trained too, every output says so. Pretraining is judged without them.
    """
    write_seen(data, folder.path)
    if config.task.kind == PRETRAINING:
        return _judge_pretraining(config, data, folder, task, history)
    frame = pd.concat([predict(config, data, module, task, part) for part in ("val", "test")], ignore_index=True)
    calibration = Calibration.fit(frame[frame["split"] == "val"], config.task, labelled(config, data, "train"))
    frame = calibration.apply(frame)
    if not calibration.empty:
        write_json(folder.path / "calibration.json", calibration.to_dict(), indent=2)
        for note in calibration.notes():
            logger.info("calibration, %s", note)
    if frame["series_id"].duplicated().any() and frame["z_mm"].notna().any():
        frame = _with_position(config, data, frame)
    frame, audits = audit_run(data, frame, config.task, calibration, config.backbone.weights)
    leaky = bool(audits["split"]["leaky"])
    write_predictions(frame, folder.path / "predictions.parquet", leaky=leaky)
    write_covariates(data.manifest.table, data.manifest.series, frame["slice_id"], folder.path)
    audits = folder.names.tree(audits)  # pairs of slices that are one picture under opposite labels
    metrics = evaluate(frame, config.task, calibration=calibration) | {"leaky": leaky, "audits": audits}
    _add_own_metrics(frame, task, metrics, calibration)
    if task.monitor not in MONITORS:  # a user's metric, whose direction its class alone knows
        metrics["monitor"] = {"name": task.monitor, "mode": task.mode}
    write_json(folder.path / "metrics.json", metrics, indent=2, allow_nan=False)
    known = data.manifest.patients_known
    write_run_figures(frame, config.task, metrics, history, folder.figures, calibration, patients_known=known)
    best = best_values(history, task.monitor, task.mode)
    log_results(loggers, metrics, frame, folder, best, int(history.attrs.get("steps", 0)))
    return metrics


def best_values(history: pd.DataFrame, monitor: str, mode: str) -> dict[str, float]:
    """Validation values of the epoch whose checkpoint the run keeps as its best, and that epoch's number."""
    if history.empty:
        return {}
    column = history.get(f"val/{monitor}")
    if column is None or column.isna().all():
        row = history.iloc[-1]
    else:
        row = history.loc[column.idxmin() if mode == "min" else column.idxmax()]
    return {str(key): float(value) for key, value in row.items() if str(key).startswith("val/") or key == "epoch"}


def _add_own_metrics(
    frame: pd.DataFrame, task: Classification, metrics: dict[str, Any], calibration: Calibration
) -> None:
    """Add the values of the ``metrics`` group to those of slices, or of series where these are labelled."""
    own = nn.ModuleDict({name: metric for name, metric in task.metrics.items() if name != OWN})
    level = task.options.trained_level
    for split in ("val", "test") if len(own) else ():
        units = calibration.aggregate(frame[frame["split"] == split], level, task.options.aggregate)
        prob, label = prob_array(units, task.labels), label_array(units, task.labels)
        found = score(own.cpu(), torch.from_numpy(prob).float(), torch.from_numpy(label).float(), task.options)
        for name, value in found.items():
            known = None if value != value else value
            metrics[split][level][name] = {"value": known, "low": None, "high": None, "n": len(units), "method": None}


def _with_position(config: Config, data: SliceDataModule, frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with the position-only null, fitted on the training slices.

    Positions are taken in the whole series, of which a part of the split may hold a few slices only.
    """
    table = data.manifest.table
    place = relative_position(table)
    train = labelled(config, data, "train").assign(place=place[data.rows("train")])
    at = pd.Series(place, index=table["slice_id"].to_numpy(dtype=object))
    here = frame.assign(place=at.loc[frame["slice_id"].to_numpy(dtype=object)].to_numpy())
    return with_position(here, train, config.task.labels).drop(columns="place")


def labelled(config: Config, data: SliceDataModule, part: str) -> pd.DataFrame:
    """Identifiers, positions and labels of a part's slices."""
    rows = data.rows(part)
    found = data.manifest.table.iloc[rows][[*IDS[1:], "z_mm"]].reset_index(drop=True)
    for j, label in enumerate(config.task.labels):
        found[f"label_{label}"] = data.labels[rows, j]
    return found
