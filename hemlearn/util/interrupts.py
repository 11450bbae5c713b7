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
_taken: list[int] = []  # signals that raise now


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM: the whole command must end, not its present job alone."""


def received() -> int | None:
    """Number of the first signal of this command; None: none has come."""
    return _received[0] if _received else None


def forget() -> None:
    """The command has ended: what comes after it in this process is not interrupted."""
    _received.clear()


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
    """Take both signals meanwhile; one that is ignored, as of a shell's background job, stays ignored."""
    forget()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NAMES}
    outside = list(_taken)
    _taken[:] = mine = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    take_again()
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
        _taken[:] = outside


def take_again() -> None:
    """Take the signals of :func:`handled` from a library that has put its own handler in place.

    Lightning's tells its other processes by a collective call, which waits for ever where these are in another one,
    and sets a flag that a job near its end never looks at.
    """
    for number in _taken:
        signal.signal(number, _raise)


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
