"""What the jobs of one command note for it, in whatever process they run: how far they are, and how they end.

Each job appends lines of JSON to a file of its own in one folder, so that nothing is lost where appending is not atomic
between machines. The command reads them (:class:`Notes`) while they are written.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hemlearn.util.console import on_terminal
from hemlearn.util.errors import printable
from hemlearn.util.secrets import mask

logger = logging.getLogger(__name__)
FOLDER = "HEMLEARN_NOTES"  # where the jobs of the running command write
TABLE = "HEMLEARN_TABLE"  # set: the command draws on this terminal, and its jobs leave that to it
HOST = platform.node()
_file: list[Path] = []  # of the present job


@contextmanager
def noting(number: int, overrides: list[str]) -> Iterator[None]:
    """Let :func:`note` write for this job meanwhile.

    Where the command draws a table, what the job prints is noted too, and shown above it.

    Args:
        number: Of the job in its command, from 0.
        overrides: Its words.
    """
    with ExitStack() as stack:
        if folder := os.environ.get(FOLDER):
            _file.append(Path(folder) / f"{number:06d}.jsonl")
            stack.callback(_file.pop)
            note("start", overrides=[mask(text) for text in overrides], pid=os.getpid(), host=HOST)
        if os.environ.get(TABLE) and on_terminal():
            stack.enter_context(redirect_stdout(_Lines()))
            stack.enter_context(redirect_stderr(_Lines()))
        yield


def note(event: str, **facts: Any) -> None:
    """Write down what has come about in the present job; nothing where none of a command is running.

    Args:
        event: ``start``, ``folder``, ``epoch``, ``line``, ``error`` or ``end``.
        facts: What JSON can hold.
    """
    if not _file:
        return
    try:
        with _file[-1].open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, **facts}) + "\n")
    except OSError as error:  # on a machine that does not see the folder, or a full disk
        logger.debug("%s: %s", _file[-1], error)


def is_first(text: str) -> bool:
    """Whether no job of the running command has said this before; True where there is none."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return True
    try:
        Path(folder, f"{hashlib.sha256(text.encode(errors='replace')).hexdigest()}.said").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError as error:  # on a machine that does not see the folder
        logger.debug("%s: %s", folder, error)
    return True


class _Lines(io.TextIOBase):
    """A stream whose lines become notes."""

    lowest = logging.WARNING  # of log lines: the others stand in the run's own log
    encoding = "utf-8"  # libraries ask for it

    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            shown = line.rstrip().rpartition("\r")[2]
            if shown:
                note("line", text=mask(printable(shown)))
        return len(text)


class Notes:
    """Reads what jobs note, each line once.

    Args:
        folder: Where they write.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "000003.jsonl").write_text('{"event": "start"}' + chr(10) + '{"event": "ep')
        ...     notes = Notes(Path(folder))
        ...     notes.read(), notes.read()
        ([(3, {'event': 'start'})], [])
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, int] = {}  # file -> bytes that are read

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """Number of the job and note, of every whole line that has come since."""
        found = []
        for file in sorted(self.folder.glob("*.jsonl")):
            start = self._read.get(file.name, 0)
            if file.stat().st_size <= start:
                continue
            with file.open("rb") as stream:
                stream.seek(start)
                content = stream.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._read[file.name] = start + len(whole)
            for line in whole.splitlines():
                with suppress(ValueError):  # a job was killed in the middle of it, and went on
                    found.append((int(file.stem), json.loads(line)))
        return found
