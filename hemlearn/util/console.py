"""What a person sees of a command: log lines, progress of long loops; and the one way to spread work over cores."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from hemlearn.util import interrupts
from hemlearn.util.errors import printable
from hemlearn.util.secrets import mask

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

logger = logging.getLogger(__name__)
T = TypeVar("T")
_PLAIN_WIDTH = 400  # columns of a table where there is no terminal
# Extra of log lines on a data set, which every job of a sweep would repeat; those of NOTED are among its notes.
ON_DATA, NOTED = {"on_data": "fact"}, {"on_data": "note"}
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
        from rich import get_console
        from rich.logging import RichHandler

        # The console of Lightning's bar too, which lets lines stand above it.
        chosen: logging.Handler = RichHandler(console=get_console(), show_path=False, log_time_format="[%X]")
    else:
        chosen = _Stdout()
        chosen.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.setLogRecordFactory(_Record)
    chosen.addFilter(_new_on_data)
    chosen.hemlearn = True  # type: ignore[attr-defined]
    root.addHandler(chosen)
    root.setLevel(logging.INFO)
    for noisy in ("hydra", "matplotlib", "PIL", "fsspec", "urllib3", "numexpr", "faiss", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


_notes_apart: list[bool] = []  # while a command prints the notes of a data set itself


@contextmanager
def notes_apart() -> Generator[None]:
    """Show no log line that is among the notes of a data set, which the command prints."""
    _notes_apart.append(True)
    try:
        yield
    finally:
        _notes_apart.pop()


def _new_on_data(record: logging.LogRecord) -> bool:
    """Whether a line is to be shown: of those on data each once in a sweep, whose jobs read the same data."""
    from hemlearn.util.notes import is_first

    kind = getattr(record, "on_data", None)
    if kind is None:
        return True
    return not (kind == NOTED["on_data"] and _notes_apart) and is_first(record.getMessage())


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


def folded(text: str, width: int) -> str:
    """Lines no longer than ``width`` columns, broken between words; what follows is set in by two more columns.

    A word that is longer (a path, say) stays whole: the terminal breaks it, and it can be copied.

    >>> print(folded("note: one two three four", 12))
    note: one
      two three
      four
    """
    lines = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        start = line[: len(line) - len(line.lstrip(" "))]
        options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
        lines += textwrap.wrap(line, width, initial_indent="", subsequent_indent=f"{start}  ", **options)
    return "\n".join(lines)


def tell(*texts: object, file: TextIO | None = None) -> None:
    """Print a line each, folded to the width of a terminal; elsewhere, where programs read them, lines stay whole.

    Args:
        texts: Of one or more lines each.
        file: Where to; None: standard output.
    """
    stream = sys.stdout if file is None else file
    for text in texts:
        whole = str(text)
        print(folded(whole, shutil.get_terminal_size().columns) if stream.isatty() else whole, file=stream)


def rich_console() -> Console:
    """Where tables are printed: a terminal has its own width; elsewhere lines are neither cut nor folded."""
    from rich.console import Console

    return Console() if on_terminal() else Console(width=_PLAIN_WIDTH, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table; on a terminal that is too narrow for it, a paragraph per row, so that nothing is cut."""
    from rich.measure import Measurement
    from rich.text import Text

    console = rich_console()
    least = Measurement.get(console, console.options.update(width=10_000), table).minimum
    if not on_terminal() or least <= console.width:
        console.print(table)
        return
    titles, *rows = ([Text.from_markup(str(cell)).plain for cell in line] for line in _lines_of(table))
    tell(*([Text.from_markup(str(table.title)).plain] if table.title else []))
    for row in rows:
        told = [f"{title} {cell}".strip() for title, cell in zip(titles[1:], row[1:], strict=True) if cell]
        tell(f"{row[0]}: {'; '.join(told)}")


def _lines_of(table: Table) -> list[list[Any]]:
    """Titles of the columns, then the cells of each row."""
    cells = zip(*(column.cells for column in table.columns), strict=True)
    return [[column.header for column in table.columns], *map(list, cells)]


NOTICED = 2.0  # seconds that a person waits without asking whether anything happens
_open: list[str] = []  # loops that are shown; those inside them are not


@contextmanager
def counter(description: str, *, after: float = 0.0) -> Generator[Callable[[int, int | None], None]]:
    """A callback ``(done, total)`` that shows how far a loop is that runs elsewhere.

    On a terminal this is a live bar on stderr; elsewhere a log line every ten seconds and one at the end. A loop inside
    another that is shown says nothing.

    Args:
        description: What is being done: letters, blanks and hyphens, the first a capital.
        after: Seconds before anything is shown; a loop that ends before says nothing.
    """
    if _open:
        yield _nothing
        return
    _open.append(description)
    try:
        with (_bar if sys.stderr.isatty() else _lines)(description, after) as step:
            yield step
    finally:
        _open.clear()


def _nothing(done: int, total: int | None) -> None:
    """Of a loop that is not shown."""


@contextmanager
def _bar(description: str, after: float) -> Generator[Callable[[int, int | None], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    started, task = time.monotonic(), progress.add_task(description, total=None)

    def step(done: int, total: int | None) -> None:
        progress.update(task, completed=done, total=total)
        if not progress.live.is_started and time.monotonic() - started >= after:
            progress.start()

    try:
        if not after:
            progress.start()
        yield step
    finally:
        progress.stop()


@contextmanager
def _lines(description: str, after: float) -> Generator[Callable[[int, int | None], None]]:
    started = last = time.monotonic()
    state = "0"

    def step(done: int, total: int | None) -> None:
        nonlocal last, state
        state = f"{done}" if total is None else f"{done}/{total}"
        now = time.monotonic()
        if done != total and now - last >= LOG_EVERY and now - started >= after:  # the end has a line of its own
            last = now
            logger.info("%s: %s after %.0f s", description, state, now - started)

    yield step
    seconds = time.monotonic() - started
    if seconds >= after:
        logger.info("%s: %s done in %.1f s", description, state, seconds)


def track(
    iterable: Iterable[T],
    description: str,
    total: int | None = None,
    *,
    size: Callable[[T], int] | None = None,
    show: bool = True,
    after: float = 0.0,
) -> Generator[T, None, None]:
    """Yield the items of ``iterable`` and show how far the loop is, as :func:`counter` does.

    Args:
        iterable: What is looped over.
        description: What is being done, for example ``Decoding slices``.
        total: Number of units in all; None: unknown, or the length of ``iterable`` where it has one.
        size: Units that one item stands for (a chunk of 64 files: 64); None: each item is one unit.
        show: False yields the items and shows nothing.
        after: Seconds before anything is shown, such as :data:`NOTICED`; a loop that ends before says nothing.

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
    with counter(description, after=after) as update:
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
