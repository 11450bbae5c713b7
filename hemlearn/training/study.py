"""A trial of an Optuna study: validation is reported after each epoch, and a poor run ends early, to be gone on with.

The sweeper (``hydra/sweeper=optuna_study``) says in the environment which study and trial a job is.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from hemlearn.util.errors import Pruned

logger = logging.getLogger(__name__)
STUDY = "HEMLEARN_STUDY"  # JSON: storage, study_name, pruner
TRIAL = "HEMLEARN_TRIAL"  # number of the trial


@contextmanager
def no_trial() -> Iterator[None]:
    """Runs made inside, which a trial builds on, are none themselves."""
    number = os.environ.pop(TRIAL, None)
    try:
        yield
    finally:
        if number is not None:
            os.environ[TRIAL] = number


def open_study(settings: dict[str, Any], **more: Any) -> Any:
    """The study (``optuna.Study``) of some settings, made where there is none.

    Args:
        settings: storage (a URL of Optuna, or journal:FILE, which machines can share), study_name, and pruner: a
            ``_target_`` with its arguments, or None.
        more: Further arguments of ``optuna.create_study``.
    """
    import optuna
    from hydra.utils import instantiate

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind, _, file = settings["storage"].partition(":")
    if kind == "journal":
        from optuna.storages.journal import JournalFileBackend

        settings = {**settings, "storage": optuna.storages.JournalStorage(JournalFileBackend(file))}
    pruner = instantiate(settings["pruner"]) if settings["pruner"] else optuna.pruners.NopPruner()
    if "direction" not in more:
        return optuna.load_study(study_name=settings["study_name"], storage=settings["storage"], pruner=pruner)
    names = {key: settings[key] for key in ("study_name", "storage")}
    return optuna.create_study(**names, pruner=pruner, load_if_exists=True, **more)


class Pruning(Callback):
    """Reports the monitored metric to the study and stops the run where that says so.

    The run's checkpoint is written first: the same words without the study go on from it.

    Args:
        monitor: Logged metric such as ``val/log_loss``.
        number: Of the trial.
    """

    def __init__(self, monitor: str, number: int) -> None:
        self.monitor, self.number = monitor, number
        self.epoch: int | None = None  # after which it was stopped
        self._trial: Any = None

    @classmethod
    def of_job(cls, monitor: str) -> list[Pruning]:
        """The callback of this job; none where it is no trial."""
        number = os.environ.get(TRIAL)
        return [cls(monitor, int(number))] if number and os.environ.get(STUDY) else []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report; the first process of several decides for all."""
        stop = trainer.is_global_zero and self._poor(trainer)
        if trainer.strategy.broadcast(stop) and not trainer.should_stop:
            if trainer.current_epoch + 1 < (trainer.max_epochs or math.inf):
                self.epoch = trainer.current_epoch
            trainer.should_stop = True

    def _poor(self, trainer: pl.Trainer) -> bool:
        import optuna

        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if self._trial is None:
            study = open_study(json.loads(os.environ[STUDY]))
            self._trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[self.number]._trial_id)
        if value == value and trainer.current_epoch not in self._known:
            self._trial.report(value, trainer.current_epoch)
        return bool(self._trial.should_prune())

    @property
    def _known(self) -> dict[int, float]:
        """What was reported of this trial, by a killed process perhaps."""
        found: dict[int, float] = self._trial.study.get_trials(deepcopy=False)[self.number].intermediate_values
        return found

    def raise_pruned(self, rank_zero: bool) -> None:
        """End the run where the study has stopped it, and tell the study.

        Raises:
            Pruned: It has.
        """
        if self.epoch is None:
            return
        if rank_zero:
            import optuna

            self._trial.study.tell(self.number, state=optuna.trial.TrialState.PRUNED, skip_if_finished=True)
        raise Pruned(
            f"pruned after epoch {self.epoch + 1}: {self.monitor} is worse than that of earlier trials",
            remedy="nothing, or train it to its end: the words of this job without the study go on from its checkpoint",
        )
