"""Hydra's plug-in ``hydra/sweeper=optuna_study``: a study whose trials are jobs of any launcher, with pruning."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

logger = logging.getLogger("hemlearn")


class OptunaSweeper(Sweeper):
    """Asks Optuna for values, runs the jobs, and tells it what validation has given.

    A trial that a killed command has left is given again first, with its values: it goes on from its checkpoint. The
    sampler of each trial is seeded by its number, so that such a study, one trial at a time, is that of an undisturbed
    command.

    Args:
        n_trials: Finished trials wanted in all; failed ones do not count, and are not tried again.
        n_jobs: Trials at a time.
        direction: ``minimize`` or ``maximize``.
        storage: URL of Optuna's storage, or journal:FILE; None: SQLite in the folder of the runs.
        seed: Of the sampler.
        pruner: ``_target_`` of an Optuna pruner with its arguments; None: no pruning.
        params: Key -> range, in Hydra's grammar, beside the words of the command.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        direction: str,
        storage: str | None,
        seed: int,
        pruner: Any,
        params: dict[str, str] | None,
    ) -> None:
        self.n_trials, self.n_jobs, self.direction, self.storage, self.seed = n_trials, n_jobs, direction, storage, seed
        self.pruner = OmegaConf.to_container(pruner) if OmegaConf.is_config(pruner) else pruner
        self.params = params or {}

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Called by Hydra."""
        shared = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
        self.config = config
        self.launcher: Any = Plugins.instance().instantiate_launcher(**shared)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that are missing."""
        import optuna

        from hemlearn.training.study import STUDY, TRIAL, open_study
        from hemlearn.util.files import hold_lock, sha256

        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = OverridesParser.create().parse_overrides(words)
        fixed = [str(item.input_line) for item in parsed if not item.is_sweep_override()]
        space = {item.get_key_element(): _distribution(item) for item in parsed if item.is_sweep_override()}
        assert self.config is not None
        name = str(self.config.name)
        folder = Path(str(self.config.output_dir)).absolute() / name
        folder.mkdir(parents=True, exist_ok=True)
        # Other words or ranges are another study.
        recipe = json.dumps([sorted(fixed), {key: repr(space[key]) for key in sorted(space)}])
        settings = {
            "storage": self.storage or f"sqlite:///{folder / 'study.db'}",
            "study_name": f"{name}-{sha256(recipe)[:12]}",
            "pruner": self.pruner,
        }
        states = optuna.trial.TrialState
        with hold_lock(folder / "study"):
            study = open_study(settings, direction=self.direction)
            os.environ[STUDY] = json.dumps(settings)
            left = study.get_trials(deepcopy=False, states=(states.RUNNING,))
            wanted = self.n_trials - len(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))
            started = 0
            while started < wanted:
                batch: list[Any] = []
                while len(batch) < min(self.n_jobs, wanted - started):
                    if left:
                        batch.append(left.pop(0))
                        continue
                    study.sampler = optuna.samplers.TPESampler(
                        seed=self.seed + len(study.get_trials(deepcopy=False)), constant_liar=self.n_jobs > 1
                    )
                    batch.append(study.ask(space))
                jobs = [
                    [
                        *fixed,
                        *(f"{key}={trial.params[key]}" for key in space),
                        f"++hydra.job.env_set.{TRIAL}='{trial.number}'",
                    ]
                    for trial in batch
                ]
                for trial, job in zip(batch, self.launcher.launch(jobs, initial_job_idx=started), strict=True):
                    value = float(job.return_value)
                    state = states.COMPLETE if value == value else states.FAIL
                    study.tell(trial.number, value if value == value else None, state, skip_if_finished=True)
                started += len(batch)
            os.environ.pop(STUDY)
            _report(study, states)


def _distribution(item: Override) -> Any:
    """What Optuna draws from for a range of Hydra's grammar."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from hemlearn.util.errors import ConfigError

    sweep: Any = item.value()
    if isinstance(sweep, IntervalSweep | RangeSweep):
        low: Any = sweep.start
        high: Any = sweep.end if isinstance(sweep, IntervalSweep) else sweep.stop
        log, step = "log" in sweep.tags, getattr(sweep, "step", None)
        whole = all(isinstance(value, int) for value in (low, high, *([] if step is None else [step])))
        if isinstance(sweep, RangeSweep):
            high -= step  # Hydra's range ends before its stop
        if log and step not in (None, 1):
            raise ConfigError(
                f"{item.input_line}: a logarithmic range has no step", remedy="use tag(log, interval(a, b))"
            )
        if whole and (isinstance(sweep, RangeSweep) or "int" in sweep.tags):
            return IntDistribution(low, high, log=log, step=1 if log or step is None else step)
        return FloatDistribution(float(low), float(high), log=log, step=None if log else step)
    assert isinstance(sweep, ChoiceSweep)
    return CategoricalDistribution(list(item.sweep_string_iterator()))


def _report(study: Any, states: Any) -> None:
    """Say how the trials have ended, and which is the best."""
    trials = study.get_trials(deepcopy=False)
    number = {state.name.lower(): sum(trial.state == state for trial in trials) for state in states}
    told = ", ".join(f"{count} {name}" for name, count in number.items() if count)
    logger.info("study %s: %d trials (%s)", study.study_name, len(trials), told)
    if number["complete"]:
        best = study.best_trial
        words = " ".join(f"{key}={value}" for key, value in best.params.items())
        logger.info("best on validation: trial %d, %.4f: %s", best.number, best.value, words)
