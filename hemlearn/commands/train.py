"""``hemlearn train``: one run, or a Hydra multirun of many."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hemlearn.commands import help_text
from hemlearn.util import interrupts
from hemlearn.util.errors import ConfigError, HemlearnError, Pruned
from hemlearn.util.files import disk_error, writing
from hemlearn.util.notes import FOLDER, TABLE, note, noting
from hemlearn.util.secrets import mask

if TYPE_CHECKING:
    from omegaconf import DictConfig

logger = logging.getLogger("hemlearn")
_PROGRAM = "HEMLEARN_PROGRAM"  # the executable, for jobs that run in worker processes


def train(argv: list[str]) -> int:
    """Check the whole command line, then run one job or a sweep; 1 when any job failed."""
    from hemlearn.config.compose import check_command, conf_dir, quote_paths, refuse_sweep

    if "-h" in argv or "--help" in argv:
        print(help_text("train", _groups(conf_dir())))
        return 0
    from hydra._internal.utils import get_args_parser
    from hydra.types import RunMode

    from hemlearn.commands.sweep import Sweep, Watch, jobs_of, notes_folder

    argv = quote_paths(argv)
    args = get_args_parser().parse_intermixed_args(argv)
    composed, own, words = check_command(args.overrides, args.config_dir)
    if not args.multirun:
        refuse_sweep(args.overrides)
    words = [*sweep_direction(composed, own, args.overrides), *words]
    flags = [text for text in argv if text not in args.overrides]
    argv = flags + _without_overruled_sweeps(own, words, args.multirun)  # Hydra wants its flags first
    if args.cfg == "job" and not (args.package or args.multirun):  # composed already: Hydra would do it again
        from omegaconf import OmegaConf

        print(mask(OmegaConf.to_yaml(composed, resolve=args.resolve)), end="")
        return 0
    if args.multirun and (args.cfg or args.info):
        raise ConfigError("--cfg shows one run's configuration, -m makes several runs", remedy="leave one of them out")
    if own.job.chdir:
        raise ConfigError(
            "hydra.job.chdir=true: relative paths would no longer mean what they meant where the command was given",
            remedy="leave it out: every run has a folder of its own below output_dir",
        )
    if args.cfg or args.info:
        _run_hydra(argv)
        return 0
    _check_writable(Path(str(composed.output_dir)))
    with notes_folder(own, Path(str(composed.output_dir))) as folder:
        if not (args.multirun or own.mode == RunMode.MULTIRUN):
            sweep = Sweep(folder, 1)
            _run_hydra([*argv, _environment(FOLDER, folder)])
            sweep.read()
        else:
            sweep = Sweep(folder, *jobs_of(own, [text for text in argv if text not in flags], args.config_dir))
            with Watch(sweep) as watch:
                drawn = [_environment(TABLE, 1)] if watch.draws else []
                _run_hydra([*argv, _environment(FOLDER, folder), *drawn])
    return 1 if sweep.failed else 0


def _environment(name: str, value: object) -> str:
    """The word that sets a variable of the environment for each job, wherever it runs."""
    from hemlearn.config.compose import quote

    return f"++hydra.job.env_set.{name}={quote(str(value))}"


def _run_hydra(argv: list[str]) -> None:
    import hydra

    from hemlearn.config.compose import PRIMARY, conf_dir

    before = sys.argv
    os.environ[_PROGRAM] = before[0]
    sys.argv = [before[0], *argv]
    try:
        hydra.main(config_path=str(conf_dir()), config_name=PRIMARY, version_base="1.3")(_job)()
    finally:
        sys.argv = before


def _without_overruled_sweeps(own: DictConfig, overrides: list[str], multirun: bool) -> list[str]:
    """``overrides``, so that a key on the command line replaces what an experiment or preset sweeps over for it.

    Hydra would combine both, and make each run as often as the preset has values.
    """
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    params = OmegaConf.select(own, "sweeper.params") or {}
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    if not given & set(params) or not (multirun or own.mode == RunMode.MULTIRUN):
        return overrides
    kept = [f"{key}={value}" for key, value in params.items() if key not in given]
    return ["hydra.sweeper.params=null", *kept, *overrides]


def sweep_direction(composed: DictConfig, own: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The word that makes a sweeper look for the better end of ``task.monitor``: without it Optuna minimises.

    Raises:
        ConfigError: The command line asks for the other direction, which would look for the worst run.
    """
    from omegaconf import OmegaConf

    from hemlearn.config.schema import MONITORS, from_dict

    given = OmegaConf.select(own, "sweeper.direction")
    if not isinstance(given, str):  # a sweeper without an objective, or with several
        return []
    mode = MONITORS.get(str(composed.task.monitor))
    if mode is None:  # a user's metric, whose class says it
        from hemlearn.tasks.metrics import build_metrics, direction

        config = from_dict(cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)))
        mode = direction(build_metrics(config.metrics, config.task), config.task.monitor)
    wanted = "maximize" if mode == "max" else "minimize"
    asked = next((text for text in overrides if text.lstrip("+").startswith("hydra.sweeper.direction=")), None)
    if asked and asked.partition("=")[2] != wanted:
        raise ConfigError(
            f"{asked}: would look for the worst task.monitor={composed.task.monitor}",
            remedy=f"leave it out: hydra.sweeper.direction={wanted} follows from the metric",
        )
    return [] if given == wanted else [f"hydra.sweeper.direction={wanted}"]


def _check_writable(folder: Path) -> None:
    """Refuse an output folder that cannot be written before Hydra trips over it."""
    with writing(f"output_dir={folder}", "choose a writable folder with output_dir=DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def _groups(root: Path) -> str:
    found = {
        folder.relative_to(root).as_posix(): ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        for folder in sorted(path for path in root.rglob("*") if path.is_dir())
    }
    return "\n".join(f"  {name:14} {options}" for name, options in found.items() if options)


def _job(composed: DictConfig) -> float:
    """One job. Its failure is logged and noted, and does not stop the rest of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from hemlearn.util.console import set_up_logging

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    with noting(hydra.job.num if hydra.mode == RunMode.MULTIRUN else 0, overrides):
        set_up_logging()
        interrupts.check()
        # The command of this one job: it goes into the provenance, and Lightning starts further devices with it.
        own = [text for text in overrides if not text.lstrip("+").startswith("sweep=")]
        sys.argv = [os.environ.get(_PROGRAM, "hemlearn"), "train", *_config_dir_flag(), *own]
        return _make(composed)


def _make(composed: DictConfig) -> float:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from hemlearn.config.compose import to_config

    started = time.perf_counter()
    try:
        config = to_config(composed)
        from hemlearn.training.runner import run

        outcome = run(config)
    except Pruned as pruned:
        logger.info("%s", pruned.problem)
        note("end", state="pruned", seconds=time.perf_counter() - started)
        return math.nan
    except Exception as raised:
        interrupts.check()
        error: Exception = raised
        if isinstance(raised, OSError):
            error = disk_error(raised, Path(str(composed.output_dir))) or raised
        if isinstance(error, HemlearnError):
            logger.error("%s", error)
        else:
            logger.exception("unexpected error; the same command resumes this job once its cause is gone")
        note("end", state="failed", error=str(error) or repr(error), seconds=time.perf_counter() - started)
        return math.nan
    note(
        "end",
        state=outcome.state,
        folder=str(outcome.folder),
        metric=outcome.monitor,
        mode=outcome.mode,
        value=outcome.objective,
        seconds=time.perf_counter() - started,
    )
    if HydraConfig.get().mode != RunMode.MULTIRUN and outcome.state != "helper":
        from hemlearn.reports.tables import print_run

        print_run(outcome.folder, outcome.metrics)
    return outcome.objective


def _config_dir_flag() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    sources = HydraConfig.get().runtime.config_sources
    return [f"--config-dir={item.path}" for item in sources if item.provider == "command-line"]
