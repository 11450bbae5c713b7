"""SIGINT (Ctrl-C) and SIGTERM (a scheduler, ``timeout``): a command that gets one ends with 128 and its number.

The handler raises, so that whatever runs is left at once and the state on disk is what the same command goes on from.
An exception that is raised inside somebody's bare ``except`` or ``__del__`` is lost, and Lightning turns one into an
exit with status 1: what has come is therefore written down too, :func:`check` raises it again, and :func:`received`
decides the exit status of the command.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_received: list[int] = []


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM: the whole command must end, not its present job alone."""


def received() -> int | None:
    """Number of the first signal of this command; None: none has come."""
    return _received[0] if _received else None


def describe(number: int) -> str:
    """``interrupted`` or ``terminated``."""
    return _NAMES[signal.Signals(number)]


def check() -> None:
    """Raise the signal again that has come.

    Raises:
        Interrupted: One has.
    """
    if _received:
        raise Interrupted


def _raise(number: int, _frame: object) -> NoReturn:
    _received.append(number)
    raise Interrupted


@contextmanager
def handled() -> Iterator[None]:
    """Take both signals meanwhile; one that is ignored, as of a shell's background job, stays ignored.

    Lightning's own handler of SIGTERM, which it would install without one, sets a flag that a job near its end never
    looks at; a sweep would go on with the next job.
    """
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NAMES}
    mine = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in mine:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


@contextmanager
def passed_on() -> Iterator[None]:
    """Let what another library makes of an interrupt, such as an exit with status 1, be the interrupt again."""
    try:
        yield
    except Exception as error:  # such as of a loader's worker that got the signal too
        if _received:
            raise Interrupted from error
        raise
    except SystemExit as error:
        raise Interrupted from error
