"""Hydra's plug-in ``hydra/launcher=ray``: each job of a sweep is a task of Ray.

The published launcher (hydra-ray-launcher 1.2) wants a cloudpickle that joblib no longer works with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher


class RayLauncher(JoblibLauncher):  # type: ignore[misc]
    """Runs the jobs of a sweep as tasks of Ray.

    Args:
        init: Arguments of ``ray.init``, where Ray does not run yet.
        task: Options of each task, such as ``num_cpus`` and ``num_gpus``.
    """

    def __init__(self, init: dict[str, Any], task: dict[str, Any]) -> None:
        super().__init__()
        self.init, self.task = dict(init), dict(task)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and give back what they return, in their order."""
        import ray
        from hydra_plugins.hydra_joblib_launcher._core import execute_job

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        variables = {key: value for key, value in os.environ.items() if key.startswith("HEMLEARN_")}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send some home
        own = not ray.is_initialized()
        if own:
            ray.init(runtime_env={"env_vars": variables}, **self.init)
        try:
            job = ray.remote(**self.task)(execute_job)
            how = (self.hydra_context, self.config, self.task_function, Singleton.get_state())
            found = [job.remote(number, words, *how) for number, words in enumerate(job_overrides, initial_job_idx)]
            return list(ray.get(found))
        finally:
            if own:
                ray.shutdown()
