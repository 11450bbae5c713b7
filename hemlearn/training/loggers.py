"""Experiment trackers: one tracker run per job, named by the run's hash so that a resumed job continues it."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import pandas as pd
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from hemlearn.config.schema import Config, to_dict
from hemlearn.plugins import resolve, target_of
from hemlearn.training.folder import RunFolder, git_commit
from hemlearn.util.errors import ConfigError
from hemlearn.util.files import write_text
from hemlearn.util.privacy import shown, wandb_settings
from hemlearn.util.secrets import mask

logger = logging.getLogger(__name__)


def wandb_mode(configured: str) -> str:
    """``online`` or ``offline`` for mode ``auto``: online exactly when the user is logged in with a key of its form."""
    # Set before the import: wandb would otherwise print notices about Lightning's use of its older arguments.
    os.environ.setdefault("WANDB_SILENT", "true")
    if configured != "auto":
        return configured
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    import wandb

    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except Exception as error:  # noqa: BLE001 - it raises errors of many kinds; most are about the key
        logger.warning("W&B: %s: logged offline; `wandb login` again", _first_line(error))
        return "offline"


CONNECT = 5.0  # seconds that a tracking server has to answer in
_given_up: set[str] = set()  # servers that could not be used by an earlier job of this process


@cache
def reachable(url: str) -> bool:
    """Whether the host of a tracking server, or the proxy before it, takes a connection; asked once in a process."""
    parts = urlsplit(url)
    proxy = {} if proxy_bypass(parts.hostname or "") else getproxies()
    place = urlsplit(proxy.get(parts.scheme, url))
    port = place.port or (80 if place.scheme == "http" else 443)
    answers: list[bool] = []

    def ask() -> None:
        with suppress(OSError, UnicodeError):
            socket.create_connection((place.hostname or "", port), timeout=CONNECT).close()
            answers.append(True)

    # A resolver without a network may take longer than any connection, and has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(CONNECT)
    return bool(answers)


def _usable(url: str) -> bool:
    return url not in _given_up and reachable(url)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def build_loggers(config: Config, folder: RunFolder) -> list[Logger]:
    """The trackers of ``logger.kinds``, or the one that ``logger._target_`` names.

    A tracker of one's own is offered ``save_dir``, ``name``, ``version`` (the run's hash) and ``project``. Every one
    is told the settings, the commit and the kind of job.

    Raises:
        ConfigError: A tracker's package is not installed.
    """
    if target_of(config.logger) is not None:
        save_dir, version = str(folder.path), folder.hash
        built = [resolve(config.logger, "logger", kind=Logger, save_dir=save_dir, name=config.name, version=version)]
    else:
        built = [_made(kind, _MAKERS[kind], config, folder) for kind in dict.fromkeys(config.logger.kinds)]
    for item in built:
        _outlive(item)
        if not isinstance(item, WandbLogger):  # its run begins with the first call, and has them from the start
            with _forgiven(item, "the settings"):
                item.log_hyperparams(_about(folder))
    return built


JOB_TYPE = "train"


def _about(folder: RunFolder) -> dict[str, Any]:
    return {"git_commit": git_commit(), "job_type": JOB_TYPE, "run_hash": folder.hash}


def _made(kind: str, make: Callable[[Config, RunFolder], Logger], config: Config, folder: RunFolder) -> Logger:
    try:
        return make(config, folder)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"logger.kinds: {kind} needs a package that is not installed ({error})",
            remedy=f"pip install 'hemlearn[{kind}]'",
        ) from error


def _wandb(config: Config, folder: RunFolder) -> Logger:
    mode = wandb_mode(config.logger.mode)
    import wandb

    if mode != "online":
        return _wandb_logger(config, folder, mode)
    url, why = str(wandb.setup().settings.base_url), "cannot be reached"
    if _usable(url):
        made = _wandb_logger(config, folder, mode)
        try:
            _ = made.experiment  # begins the run: what the server refuses shows here, not after the first epoch
        except Exception as error:  # noqa: BLE001 - it raises errors of many kinds
            why = _first_line(error)
            with suppress(Exception):
                wandb.teardown()
        else:
            return made
    _given_up.add(url)
    place = folder.path / "wandb"
    logger.warning("W&B: %s: %s; this run is logged offline, later: wandb sync %s/offline-run-*", url, why, place)
    return _wandb_logger(config, folder, "offline")


def _wandb_logger(config: Config, folder: RunFolder, mode: str) -> WandbLogger:
    cfg = config.logger
    # Console capture would write a second copy of train.log and swallow the progress bar. Without a limit the end of a
    # run would wait for a network that has gone.
    settings = wandb_settings(x_disable_stats=False, finish_timeout=300.0, finish_timeout_raises=True)
    tags = [config.data.name, config.backbone.name, config.task.name, *cfg.tags]
    made = WandbLogger(
        project=cfg.project,
        entity=cfg.entity,
        name=f"{config.name}-{folder.hash}",
        # A W&B sweep agent has chosen the run's id; otherwise the hash lets a resumed job continue its run.
        id=None if os.environ.get("WANDB_SWEEP_ID") else folder.hash,
        group=config.name,
        job_type=JOB_TYPE,
        tags=list(dict.fromkeys(shown(tag)[:64] for tag in tags if tag.strip())),
        save_dir=folder.path,
        mode=mode,
        resume="allow",
        config={**shown(to_dict(config)), **_about(folder)},
        settings=settings,
    )
    made._wandb_init.pop("anonymous", None)  # wandb warns of every value, None too
    return made


def _tensorboard(folder: Path) -> Logger:
    for old in (folder / "tensorboard").glob("events.*"):  # its readers would show what is logged again twice
        old.unlink()
    return TensorBoardLogger(folder, name="", version="tensorboard")


def _mlflow(config: Config, folder: RunFolder) -> Logger:
    if config.logger.tracking_uri is None:
        # MLflow asks for this word before it writes plain files, which need no server and no database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    own = (folder.path / "mlflow").resolve().as_uri()
    asked = config.logger.tracking_uri or own
    if asked.startswith("http") and not _usable(asked):
        return _mlflow_inside(asked, "cannot be reached", config, folder, own)
    try:
        return _mlflow_logger(asked, config, folder)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if asked == own:
            raise
        return _mlflow_inside(asked, _first_line(error), config, folder, own)


def _mlflow_inside(asked: str, why: str, config: Config, folder: RunFolder, own: str) -> Logger:
    _given_up.add(asked)
    place = folder.path / "mlflow"
    logger.warning("logger.tracking_uri=%s: %s; this run is logged below %s: mlflow ui --backend-store-uri %s",
                   asked, why, place, own)  # fmt: skip
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return _mlflow_logger(own, config, folder)


def _mlflow_logger(uri: str, config: Config, folder: RunFolder) -> Logger:
    noted = folder.path / ".mlflow_run"  # a resumed job continues its run
    known = noted.read_text(encoding="utf-8") if noted.is_file() and folder.last.exists() else None
    place, _, run_id = (known or "").rpartition("\n")
    tags = {"git_commit": git_commit() or "unknown", "job_type": JOB_TYPE, "hemlearn_hash": folder.hash}
    tags |= {"mlflow.user": "", "mlflow.source.name": "hemlearn"}  # else the user's name and the program's place
    run_id = run_id if place in ("", mask(uri)) else ""  # of another server
    made = MLFlowLogger(config.name, run_name=folder.hash, tracking_uri=uri, tags=tags, run_id=run_id or None)
    write_text(noted, f"{mask(uri)}\n{made.run_id}")
    return made


_MAKERS: dict[str, Callable[[Config, RunFolder], Logger]] = {
    "csv": lambda _, folder: CSVLogger(folder.path, name="", version="csv"),
    "wandb": _wandb,
    "tensorboard": lambda _, folder: _tensorboard(folder.path),
    "mlflow": _mlflow,
}


def continue_tracking(
    loggers: list[Logger], folder: RunFolder, logged: Sequence[tuple[int, dict[str, float]]], steps: int
) -> None:
    """Let the trackers of a resumed run go on after its last checkpoint, with no epoch logged twice.

    An offline run of W&B, a CSV file and TensorBoard's are written anew, with every value that the checkpoint holds.
    Online runs of W&B and MLflow's keep what they have, and receive no step again that they hold.

    Args:
        loggers: The run's trackers.
        folder: Of the run.
        logged: Steps and values that the checkpoint holds.
        steps: Optimiser steps in the checkpoint.
    """
    for item in loggers:
        if isinstance(item, WandbLogger) and item._wandb_init.get("mode") == "offline" and item._experiment is None:
            for old in (folder.path / "wandb").glob(f"offline-run-*-{folder.hash}"):
                shutil.rmtree(old, ignore_errors=True)
        known = _last_step(item)
        if isinstance(item, MLFlowLogger):
            _skip_values(item)
        for step, values in logged:
            if step > known:
                item.log_metrics(dict(values), step=step)
        if not isinstance(item, MLFlowLogger):
            _skip_known(item, max(known, steps - 1))


def _last_step(item: Logger) -> int:
    """The last step that a tracker holds already; -1 where it holds none."""
    if isinstance(item, CSVLogger | TensorBoardLogger | MLFlowLogger):
        return -1  # files that begin anew; MLflow knows each value's steps
    if isinstance(item, WandbLogger):
        with _forgiven(item, "its last step"):
            found = item.experiment.summary.get("trainer/global_step")
            return -1 if found is None else int(found)
        return -1
    return sys.maxsize  # appends


def _outlive(item: Logger) -> None:
    """Let the training go on where a tracker fails in the middle of it; such a tracker is not asked again."""
    log, gone = item.log_metrics, False

    def once(metrics: Any, step: int | None = None) -> None:
        nonlocal gone
        if not gone:
            gone = True
            with _forgiven(item, f"values of step {step}, nor any after it"):
                log(metrics, step)
                gone = False

    item.log_metrics = once  # type: ignore[method-assign]


def _skip_values(item: MLFlowLogger) -> None:
    """Let an MLflow run receive no value again that it holds for a step, by the metric's name."""
    last: dict[str, int] = {}
    with _forgiven(item, "its last steps"):
        run_id = str(item.run_id)
        for name in item.experiment.get_run(run_id).data.metrics:
            last[name] = max(value.step for value in item.experiment.get_metric_history(run_id, name))
    log = item.log_metrics

    def once(metrics: Any, step: int | None = None) -> None:
        log({key: value for key, value in metrics.items() if step is None or step > last.get(key, -1)}, step)

    item.log_metrics = once  # type: ignore[method-assign]


def _skip_known(item: Logger, known: int) -> None:
    if known == sys.maxsize:
        return
    log = item.log_metrics

    def once(metrics: Any, step: int | None = None) -> None:
        if step is None or step > known:
            log(metrics, step)

    item.log_metrics = once  # type: ignore[method-assign]


def result_values(metrics: dict[str, Any], best: dict[str, float]) -> dict[str, float]:
    """What a finished run tells its trackers, by name: test metrics with intervals, baselines, the best epoch.

    Args:
        metrics: Content of ``metrics.json``.
        best: Validation values of the best checkpoint's epoch.
    """
    found = {f"best/{name}": value for name, value in best.items()}
    audits = {**metrics.get("audits", {}), **metrics.get("nulls", {})}
    baselines = {name: content for name, content in audits.items() if isinstance(content, dict) and "test" in content}
    tables = {"test": metrics.get("test", {})}
    tables |= {f"baseline/{name}": content["test"] for name, content in baselines.items()}
    for prefix, levels in tables.items():
        for level, scores in levels.items():
            for name, score in scores.items():
                for key in ("value", "low", "high") if isinstance(score, dict) and "value" in score else ():
                    if score.get(key) is not None:
                        found[f"{prefix}/{level}/{name}" + ("" if key == "value" else f"_{key}")] = float(score[key])
    return found


def log_results(
    loggers: list[Logger],
    metrics: dict[str, Any],
    predictions: pd.DataFrame,
    folder: RunFolder,
    best: dict[str, float],
    steps: int,
) -> None:
    """Send a finished run's results to every tracker; figures and predictions, under pseudonyms, where it takes them.

    Args:
        loggers: The run's trackers, which have their curves already.
        metrics: Content of ``metrics.json``.
        predictions: The predictions table.
        folder: Of the run.
        best: Validation values of the best checkpoint's epoch.
        steps: Optimiser steps of the run.
    """
    values = result_values(metrics, best)
    for item in loggers:
        with _forgiven(item, f"the results (they are in {folder.path})"):
            if isinstance(item, WandbLogger):
                table = folder.names.table(predictions)
                _log_to_wandb(item.experiment, values, metrics, table, folder.figures, best)
            else:
                item.log_metrics(values, step=steps)
                item.save()


def _log_to_wandb(
    run: Any, values: dict[str, float], metrics: dict[str, Any], predictions: pd.DataFrame, figures: Path, best: Any
) -> None:
    import wandb

    pictures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted(figures.glob("*.png"))}
    run.log({"predictions": wandb.Table(dataframe=predictions), **pictures})
    # The summary holds the values of the best checkpoint, not those of the last epoch.
    run.summary.update({**{name: value for name, value in best.items() if name.startswith("val/")}, **values})
    run.summary["leaky"] = bool(metrics.get("leaky"))
    run.summary["audit"] = "\n".join(metrics.get("audits", {}).get("verdict", []))


@contextmanager
def _forgiven(item: Logger, what: str) -> Iterator[None]:
    """A tracker that has gone away costs its record, not the run."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - trackers raise errors of many kinds
        logger.error("%s did not take %s: %s", type(item).__name__, what, error)


def close_loggers(loggers: list[Logger], success: bool) -> None:
    """End every tracker's run, so that the next job of a sweep in this process starts its own.

    A W&B service that has died is replaced for the jobs to come, and costs this one no more than its W&B record.
    """
    for item in loggers:
        if not isinstance(item, WandbLogger):
            with _forgiven(item, "the end of the run"):
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
