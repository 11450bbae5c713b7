"""What a person sees of a command: log lines, progress of long loops; and the one way to spread work over cores."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from hemlearn.util import interrupts
from hemlearn.util.errors import printable
from hemlearn.util.secrets import mask

logger = logging.getLogger(__name__)
T = TypeVar("T")
LOG_EVERY = 10.0  # seconds between two lines where there is no terminal


def on_terminal() -> bool:
    """Whether standard output is a terminal; elsewhere bars and colours give way to plain log lines."""
    return sys.stdout.isatty()


def set_up_logging() -> None:
    """Send log lines to standard output: coloured on a terminal, plain elsewhere. Repeated calls change nothing."""
    silence_libraries()
    root = logging.getLogger()
    if any(getattr(handler, "hemlearn", False) for handler in root.handlers):
        return
    for handler in list(root.handlers):  # Hydra's own console handler would write each line twice
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
    if on_terminal():
        from rich.console import Console
        from rich.logging import RichHandler

        chosen: logging.Handler = RichHandler(console=Console(), show_path=False, log_time_format="[%X]")
    else:
        chosen = _Stdout()
        chosen.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.setLogRecordFactory(_Record)
    chosen.hemlearn = True  # type: ignore[attr-defined]
    root.addHandler(chosen)
    root.setLevel(logging.INFO)
    for noisy in ("hydra", "matplotlib", "PIL", "fsspec", "urllib3", "numexpr", "faiss"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def silence_libraries() -> None:
    """Silence the notices of Lightning and torch that no user of hemlearn can act on."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*treespec.*LeafSpec.*",
        ".*Checkpoint directory .* exists.*",
        ".*lr_scheduler.step.*",
        ".*WeightAveraging.*",
        ".*Starting from v1.9.0.*",
        ".*module.s. in eval mode at the start.*",
        ".*custom batch sampler.*",
        ".*GPU available but not used.*",
        ".*Experiment logs directory .* exists.*",
    ):
        warnings.filterwarnings("ignore", message=text)


class _Record(logging.LogRecord):
    """A message that no file name or id in it can use to steer a terminal or to forge a line; without secrets."""

    def getMessage(self) -> str:  # noqa: N802 - logging's own name
        return mask(printable(super().getMessage(), keep="\n\t"))


_lost: list[OSError] = []  # why log lines could not be shown


def console_error() -> OSError | None:
    """Why log lines of this process could not be shown, where that is so; asked once."""
    found = _lost[0] if _lost else None
    _lost.clear()
    return found


def abandon_stdout() -> None:
    """Send what is still to come on standard output nowhere, so that nothing fails on it again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _Stdout(logging.Handler):
    """Writes to whatever ``sys.stdout`` is at the time, so that redirected output is followed.

    A run does not end because nobody reads its lines: they stand in its ``train.log``, and the exit status tells.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < getattr(sys.stdout, "lowest", 0):  # of a job of a sweep that is drawn as a table
            return
        try:
            say(self.format(record))  # a traceback may hold a secret
        except ValueError:
            self.handleError(record)


def say(text: str) -> None:
    """Write a line, without secrets, to standard output; where it takes none, the exit status tells."""
    try:
        sys.stdout.write(mask(text) + "\n")
        sys.stdout.flush()
    except OSError as error:
        _lost.append(error)
        abandon_stdout()


@contextmanager
def counter(description: str) -> Generator[Callable[[int, int | None], None]]:
    """A callback ``(done, total)`` that shows how far a loop is that runs elsewhere.

    On a terminal this is a live bar on stderr; elsewhere a log line every ten seconds and one at the end.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(description, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    started = last = time.monotonic()
    state = "0"

    def step(done: int, total: int | None) -> None:
        nonlocal last, state
        state = f"{done}" if total is None else f"{done}/{total}"
        now = time.monotonic()
        if now - last >= LOG_EVERY:
            last = now
            logger.info("%s: %s after %.0f s", description, state, now - started)

    yield step
    logger.info("%s: %s done in %.1f s", description, state, time.monotonic() - started)


def track(
    iterable: Iterable[T],
    description: str,
    total: int | None = None,
    *,
    size: Callable[[T], int] | None = None,
    show: bool = True,
) -> Generator[T, None, None]:
    """Yield the items of ``iterable`` and show how far the loop is, as :func:`counter` does.

    Args:
        iterable: What is looped over.
        description: What is being done, for example ``Decoding slices``.
        total: Number of units in all; None: unknown, or the length of ``iterable`` where it has one.
        size: Units that one item stands for (a chunk of 64 files: 64); None: each item is one unit.
        show: False yields the items and shows nothing.

    Example:
        >>> list(track("abc", "Reading letters", show=False))
        ['a', 'b', 'c']
    """
    if not show:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sequence):
        total = len(iterable)
    done = 0
    with counter(description) as update:
        update(done, total)
        for item in iterable:
            yield item
            interrupts.check()
            done += size(item) if size else 1
            update(done, total)


def run_parallel(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], *, n_jobs: int | None, processes: bool
) -> Generator[Any, None, None]:
    """Yield ``function(*task)`` of every task as it is finished, in no fixed order.

    Args:
        function: A module-level function (it travels to other processes by name).
        tasks: Positional arguments, one tuple per call.
        n_jobs: Workers; None: as many as this process may use cores, at most 8.
        processes: True starts worker processes (about 1-2 s, then unhindered by the interpreter's lock);
            False uses threads, which suit a few hundred files since decoders release the lock.

    Raises:
        Whatever ``function`` raises; the other tasks are then given up.
    """
    import joblib

    wanted = min(joblib.cpu_count(), 8) if n_jobs is None else n_jobs
    workers = max(1, min(wanted, len(tasks)))
    if workers == 1:
        for task in tasks:
            yield function(*task)
        return
    backend = "loky" if processes else "threading"
    pool = joblib.Parallel(n_jobs=workers, backend=backend, return_as="generator_unordered")
    yield from pool(joblib.delayed(function)(*task) for task in tasks)
