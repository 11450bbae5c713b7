"""Watching a sweep: what its jobs note becomes a live table, plain lines, and a summary of how all of them ended."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn.util import interrupts
from hemlearn.util.console import on_terminal, say
from hemlearn.util.files import draft_of, remove_drafts
from hemlearn.util.notes import HOST, Notes
from hemlearn.util.privacy import shown

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console, RenderableType
    from rich.live import Live

EVERY = 0.5  # seconds between two looks at the notes
RUNNING, LOST = "running", "without a result"
STYLES = {"complete": "green", "failed": "bold red", LOST: "bold red", RUNNING: "cyan", "skipped": "dim"}
_HERE = ("BasicLauncher", "JoblibLauncher")  # launchers whose jobs share this machine's temporary files
_LONG = 8  # lines of an error
_ENDED = 8  # jobs of the table that have ended


def jobs_of(own: DictConfig, words: Sequence[str], config_dir: str | None = None) -> tuple[int | None, list[str]]:
    """Number of jobs of a sweep, and the keys that differ between them.

    Args:
        own: Hydra's section of the configuration.
        words: Of the command line, as Hydra reads it.
        config_dir: The user's own folder of groups, for patterns such as ``backbone=glob(resnet*)``.

    Returns:
        The number is None where it is the sweeper's secret.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra._internal.utils import create_config_search_path
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from hemlearn.config.compose import conf_dir

    path = create_config_search_path(str(conf_dir()))
    if config_dir:
        path.prepend("command-line", f"file://{Path(config_dir).resolve()}")
    params = {} if "hydra.sweeper.params=null" in words else OmegaConf.select(own, "sweeper.params") or {}
    listed = [f"{key}={value}" for key, value in params.items()]
    listed += [text for text in words if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    overrides = OverridesParser.create(config_loader=ConfigLoaderImpl(path)).parse_overrides(listed)
    swept = {item.key_or_group: item.is_sweep_override() for item in overrides}  # of several the last counts
    keys = [key for key, several in swept.items() if several]
    sweeper = str(OmegaConf.select(own, "sweeper._target_"))
    if sweeper.endswith(".BasicSweeper"):
        (batch,) = BasicSweeper.split_arguments(overrides, None)
        return len(batch), keys
    goes_on = sweeper.startswith("hydra_plugins.hemlearn_optuna.")  # with what earlier calls have left of its trials
    trials = None if goes_on else OmegaConf.select(own, "sweeper.n_trials")
    return trials if isinstance(trials, int) else None, keys


@contextmanager
def notes_folder(own: DictConfig, output_dir: Path) -> Iterator[Path]:
    """A folder for notes that the jobs can see; removed afterwards, as are those of killed commands."""
    here = str(own.launcher.get("_target_")).endswith(_HERE)
    base = Path(tempfile.gettempdir()) if here else output_dir
    remove_drafts(base)
    folder = draft_of(base / "hemlearn")
    folder.mkdir(mode=0o700, parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(eq=False)
class Job:
    """What is known of one job."""

    number: int
    overrides: list[str] = field(default_factory=list)
    state: str = RUNNING
    epoch: int = 0
    epochs: int | None = None
    folder: str | None = None
    error: str | None = None
    seconds: float = 0.0
    metric: str = ""
    mode: str = "max"
    value: float = math.nan
    pid: int = 0
    host: str = ""
    since: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.state != RUNNING

    @property
    def worth(self) -> float:
        """Its validation value, larger being better."""
        return self.value if self.mode == "max" else -self.value

    @property
    def score(self) -> str:
        """Its validation value, with its name."""
        return f"val/{self.metric} {self.value:.4f}" if not math.isnan(self.value) else ""

    def take(self, fact: dict[str, Any]) -> None:
        """Learn from a note."""
        event = fact.pop("event")
        if event == "start":  # also once more, as of a job that a scheduler has put back
            self.state, self.epoch, self.error, self.since = RUNNING, 0, None, time.monotonic()
        if event == "end" and self.error:  # the run's own words for it, which name no patient
            fact.pop("error", None)
        for key, value in fact.items():
            if key in Job.__dataclass_fields__:
                setattr(self, key, value)

    def is_gone(self) -> bool:
        """Whether its process, on this machine, has been killed."""
        import psutil  # type: ignore[import-untyped]

        if self.ended or self.host != HOST or self.pid == os.getpid():
            return False
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


class Sweep:
    """The jobs of one command as their notes tell of them.

    Args:
        folder: Of the notes.
        total: Number of jobs; None: not known.
        keys: That differ between them, the only words that are shown.
    """

    def __init__(self, folder: Path, total: int | None = None, keys: Sequence[str] = ()) -> None:
        self.notes = Notes(folder)
        self.total = total
        self.keys = set(keys)
        self.jobs: dict[int, Job] = {}
        self.parallel = 1  # jobs that have run at once
        self.ended: list[Job] = []  # in this order
        self.lines: list[str] = []  # on each of them, as things were then

    def read(self) -> list[str]:
        """Learn what has come; lines that jobs have printed."""
        gone = [job for job in self.jobs.values() if job.is_gone()]  # first: a last note may stand there
        lines = []
        for number, fact in self.notes.read():
            job = self.jobs.setdefault(number, Job(number))
            if fact.get("event") == "line":
                lines.append(str(fact["text"]))
                continue
            job.take(fact)
            if not job.ended and job in self.ended:  # put back by a scheduler
                self.ended.remove(job)
            if job.ended and job not in self.ended:
                self._end(job)
        for job in gone:
            if not job.ended:
                self.lose(job)
        self.parallel = max(self.parallel, len(self.running))
        return lines

    def lose(self, job: Job) -> None:
        """A job has ended without saying how."""
        if interrupts.received() is not None:
            job.state, job.error = "interrupted", None
        else:
            job.state, job.error = LOST, "its process has ended without a result, as by kill -9 or for want of memory"
        job.seconds = time.monotonic() - job.since
        self._end(job)

    def _end(self, job: Job) -> None:
        self.ended.append(job)
        self.lines.append(self.line(job))

    @property
    def running(self) -> list[Job]:
        """Jobs that run now."""
        return [job for job in self.jobs.values() if not job.ended]

    @property
    def failed(self) -> list[Job]:
        """Jobs that failed, or have ended without a result."""
        return [job for job in self.jobs.values() if job.state in ("failed", LOST)]

    def settings(self, job: Job) -> str:
        """The words of a job that another one does not have."""
        keys, common = self.keys, set[str]()
        if not keys:  # a sweeper that says nothing of its own
            common = set.intersection(*(set(item.overrides) for item in self.jobs.values()))
        words = [(text.lstrip("+").partition("=")[0], text) for text in job.overrides if text not in common]
        return " ".join(shown(text) for key, text in words if not keys or key in keys)

    def name(self, job: Job) -> str:
        """Number and settings of a job."""
        return f"job {job.number} {self.settings(job)}".rstrip()

    def counts(self) -> str:
        """``12 of 40 jobs: 10 complete, 1 skipped, 1 failed``."""
        states = Counter({"complete": 0, "skipped": 0, "failed": 0})
        states.update(job.state for job in self.jobs.values())
        known = f" of {self.total}" if self.total not in (None, len(self.ended)) else ""
        noun = "jobs" if known or len(self.ended) != 1 else "job"
        return f"{len(self.ended)}{known} {noun}: " + ", ".join(f"{number} {state}" for state, number in states.items())

    def best(self) -> list[Job]:
        """The best finished run so far by validation, of each monitored metric."""
        found: dict[str, Job] = {}
        for job in self.ended:
            old = found.get(job.metric)
            whole = job.state in ("complete", "skipped") and not math.isnan(job.value)
            if whole and (old is None or job.worth > old.worth):
                found[job.metric] = job
        return list(found.values())

    def eta(self) -> str:
        """Time left, from the median of the jobs that were made and the number that run at once; "" where unknown."""
        made = [job.seconds for job in self.ended if job.state not in ("skipped", "failed", LOST)]
        if self.total is None or not made or len(self.ended) >= self.total:
            return ""
        one, now = statistics.median(made), time.monotonic()
        begun = sum(min(one, now - job.since) for job in self.running)
        left = (self.total - len(self.ended)) * one - begun
        return f"ETA {duration(left / min(self.parallel, self.total - len(self.ended)))}"

    def line(self, job: Job) -> str:
        """One line on a job that has ended, where there is no table."""
        of = f" of {self.total}" if self.total is not None else ""
        best = next((item for item in self.best() if item.metric == job.metric), None)
        parts = [
            f"{self.ended.index(job) + 1}{of}",
            job.state,
            duration(job.seconds),
            self.settings(job),
            job.score,
            f"best {best.value:.4f}" if best else "",
            self.eta(),
        ]
        return "sweep: " + "  ".join(part for part in parts if part)

    def summary(self) -> str:
        """How all jobs have ended: counts, the best, those that failed with error and folder."""
        lines = [self.counts()]
        lines += [f"best {job.score}: {self.name(job)}" for job in self.best()]
        by_error: dict[str, list[Job]] = {}
        for job in self.failed:
            by_error.setdefault(job.error or "no error was noted", []).append(job)
        for error, jobs in by_error.items():
            for job in jobs:
                lines.append(f"  {job.state}: {self.name(job)}")
                lines += [f"      {Path(job.folder) / 'train.log'}"] if job.folder else []
            told = error.splitlines()
            lines += [f"      {text.strip()}" for text in told[:_LONG]]
            lines += ["      ..."] if len(told) > _LONG else []
        if self.failed:
            lines.append("the same command makes again what has failed, and skips what is complete")
        if not self.jobs and self.total:
            lines.append("no job has noted how it ended, as where another machine does not see output_dir")
        folders = sorted({str(Path(job.folder).parent) for job in self.jobs.values() if job.folder})
        if folders and any(job.state in ("complete", "skipped") for job in self.jobs.values()):
            lines.append(f"one table of all: hemlearn compare {' '.join(folders)}")
        return "\n".join(lines)

    def table(self, height: int = 24) -> RenderableType:
        """What is drawn on a terminal of so many lines."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        head = [Text("  ".join(part for part in (self.counts(), self.eta()) if part), style="bold")]
        head += [Text(f"best {job.score}: {self.name(job)}") for job in self.best()]
        if not self.jobs:
            return Group(*head, Text("starting the first job"))
        now = self.running[: max(height - len(head) - 4, 1)]
        before = min(_ENDED, max(height - len(head) - 4 - len(now), 0))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        metrics = {job.metric for job in self.jobs.values() if job.metric}
        only = f"val/{metrics.pop()}" if len(metrics) == 1 else ""  # it stands above its values
        for title in ("job", "settings", "state", "epoch", only or "validation", "time"):
            table.add_column(title, overflow="fold", justify="right" if title in ("job", "time", only) else "left")
        for job in [*self.ended[max(len(self.ended) - before, 0) :], *now]:
            seconds = job.seconds if job.ended else time.monotonic() - job.since
            epoch = f"{job.epoch}/{job.epochs}" if job.epochs else ""
            score = job.score.removeprefix(f"{only} ") if only else job.score
            cells = (str(job.number), self.settings(job), job.state, epoch, score, duration(seconds))
            table.add_row(*(Text(text) for text in cells), style=STYLES.get(job.state, "yellow"))
        return Group(*head, table)


def duration(seconds: float) -> str:
    """A time as people read it.

    >>> duration(4.2), duration(850), duration(9000)
    ('4 s', '14 min', '2 h 30 min')
    """
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


class Watch:
    """Shows a sweep while it runs: a table on a terminal, else a line for each job that has ended; then the summary.

    Args:
        sweep: What is shown.
        console: Where the table goes; None: standard output.

    Attributes:
        draws: Whether standard output is a terminal.
    """

    def __init__(self, sweep: Sweep, console: Console | None = None) -> None:
        self.sweep = sweep
        self.draws = console is not None or on_terminal()
        self._console = console
        self._live: Live | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._said = 0  # lines

    def __enter__(self) -> Watch:
        if self.draws:
            from rich.console import Console
            from rich.live import Live

            # Bound to the stream of now: what jobs in this process print goes elsewhere.
            self._console = self._console or Console(file=sys.stdout)
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        try:
            self._thread.join()
            self._show()
        finally:
            if self._live is not None:
                self._live.stop()
        for job in self.sweep.running:
            self.sweep.lose(job)
        say("\n" + self.sweep.summary())

    def _run(self) -> None:
        while not self._end.wait(EVERY):
            self._show()

    def _show(self) -> None:
        lines = self.sweep.read()
        if self._live is None:
            for text in self.sweep.lines[self._said :]:
                say(text)
            self._said = len(self.sweep.lines)
            return
        from rich.text import Text

        if lines:
            self._live.console.print(Text("\n".join(lines)))
        self._live.update(self.sweep.table(self._live.console.height), refresh=True)
