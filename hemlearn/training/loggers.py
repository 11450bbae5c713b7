"""Experiment trackers: one tracker run per job, named by the run's hash so that a resumed job continues it."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from hemlearn.config.schema import Config, to_dict
from hemlearn.training.run import RunFolder
from hemlearn.util.errors import ConfigError

logger = logging.getLogger(__name__)


def wandb_mode(configured: str) -> str:
    """``online`` or ``offline`` for mode ``auto``: online exactly when the user is logged in."""
    # Set before the import: wandb would otherwise print notices about Lightning's use of its older arguments.
    os.environ.setdefault("WANDB_SILENT", "true")
    if configured != "auto":
        return configured
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    import wandb

    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def build_loggers(config: Config, folder: RunFolder) -> list[Logger]:
    """The trackers of ``logger.kinds``.

    Raises:
        ConfigError: A tracker's package is not installed.
    """
    cfg = config.logger
    tags = [config.data.name, config.backbone.name, config.task.name, *cfg.tags]
    built: list[Logger] = []
    for kind in cfg.kinds:
        if kind == "csv":
            built.append(CSVLogger(folder.path, name="", version="csv"))
        elif kind == "wandb":
            mode = wandb_mode(cfg.mode)
            # A W&B sweep agent has chosen the run's id; otherwise the hash lets a resumed job continue its run.
            run_id = None if os.environ.get("WANDB_SWEEP_ID") else folder.hash
            built.append(
                WandbLogger(
                    project=cfg.project,
                    entity=cfg.entity,
                    name=f"{config.name}-{folder.hash}",
                    id=run_id,
                    group=config.name,
                    tags=list(dict.fromkeys(tags)),
                    save_dir=folder.path,
                    mode=mode,
                    resume="allow",
                    config=to_dict(config),
                    settings=_wandb_settings(),
                )
            )
        elif kind == "tensorboard":
            built.append(_optional(kind, partial(_tensorboard, folder.path)))
        elif kind == "mlflow":
            if cfg.tracking_uri is None:
                # MLflow asks for this word before it writes plain files, which need no server and no database.
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = cfg.tracking_uri or (folder.path / "mlflow").resolve().as_uri()
            built.append(_optional(kind, partial(_mlflow, config, folder.hash, uri)))
    return built


def _wandb_settings() -> Any:
    import wandb

    # Console capture would write a second copy of train.log and swallow the progress bar.
    return wandb.Settings(console="off", silent=True, x_disable_stats=False)


def _optional(kind: str, build: Any) -> Logger:
    try:
        made: Logger = build()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"logger.kinds: {kind} needs a package that is not installed ({error})",
            remedy=f"pip install 'hemlearn[{kind}]'",
        ) from error
    return made


def _tensorboard(folder: Path) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="", version="tensorboard")


def _mlflow(config: Config, run_hash: str, uri: str) -> Logger:
    from pytorch_lightning.loggers import MLFlowLogger

    return MLFlowLogger(experiment_name=config.name, run_name=run_hash, tracking_uri=uri)


def log_results(loggers: list[Logger], metrics: dict[str, Any], predictions: pd.DataFrame, figures: Path) -> None:
    """Send a finished run's test summary, figures and predictions to W&B.

    Args:
        loggers: The run's trackers; all but W&B have their curves already.
        metrics: Content of ``metrics.json``.
        predictions: The predictions table.
        figures: Folder of PNG files.
    """
    for item in loggers:
        if not isinstance(item, WandbLogger):
            continue
        import wandb

        try:
            _log_results(item.experiment, metrics, predictions, figures)
        except (OSError, RuntimeError, wandb.Error) as error:
            # The results are on disk; a tracker that has gone away must not cost the run.
            logger.error("W&B did not take the results (%s); they are in %s", error, figures.parent)


def _log_results(run: Any, metrics: dict[str, Any], predictions: pd.DataFrame, figures: Path) -> None:
    import wandb

    run.summary["leaky"] = bool(metrics.get("leaky"))
    run.summary["audit"] = "\n".join(metrics.get("audits", {}).get("verdict", []))
    for level, scores in metrics.get("test", {}).items():
        for name, score in scores.items():
            if isinstance(score, dict) and "value" in score:
                run.summary[f"test/{level}/{name}"] = score["value"]
    pictures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted(figures.glob("*.png"))}
    run.log({"predictions": wandb.Table(dataframe=predictions), **pictures})


def close_loggers(loggers: list[Logger], success: bool) -> None:
    """End every tracker's run, so that the next job of a sweep in this process starts its own.

    A W&B service that has died is replaced for the jobs to come, and costs this one no more than its W&B record.
    """
    for item in loggers:
        if not isinstance(item, WandbLogger):
            item.finalize("success" if success else "failed")
            continue
        import wandb

        try:
            item.finalize("success" if success else "failed")
            if wandb.run is not None:
                wandb.finish(exit_code=0 if success else 1)
        except (OSError, RuntimeError, wandb.Error) as error:
            logger.error("W&B could not end run %s (%s); `wandb sync` its offline folder", item.version, error)
            try:
                wandb.teardown()
            except (OSError, RuntimeError, wandb.Error) as gone:
                logger.error("W&B's service could not be stopped (%s)", gone)
