"""What went wrong, where, and the remedy.

Every error a user can cause is a :class:`HemlearnError`. Its message names the file, row or key with the
offending value, and its remedy says what to do next. Commands print it without a traceback; anything else that
escapes is a defect of hemlearn and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from hemlearn.util.secrets import mask

# Control characters, marks that reorder a line of text (Unicode bidi) and halves of characters: a terminal obeys the
# first, a reader is misled by the second, and no file in UTF-8 can hold the third.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""A file's, stranger's or table's text as it can be shown: what a terminal or a log would obey becomes an escape.

    Args:
        text: Any text.
        keep: Characters that stay as they are, such as line ends of a message of several lines.

    Example:
        >>> print(printable("a\x1b[31m\rb"))
        a\x1b[31m\rb
    """
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda m: m[0] if m[0] in keep else m[0].encode("unicode_escape").decode("ascii"), text)


def name_problem(name: str) -> str:
    """Why a file of this name cannot be listed in a table or a log; "" where it can."""
    if printable(name) == name:
        return ""
    kind = "is not UTF-8" if re.search("[\ud800-\udfff]", name) else "holds a control character"
    return f"its name {kind}: rename it"


class HemlearnError(Exception):
    """A problem a user can mend.

    Args:
        problem: What is wrong, naming the file, row or key and its value.
        remedy: What the user can do about it.
    """

    exit_status = 1  # of a command

    def __init__(self, problem: str, *, remedy: str) -> None:
        problem, remedy = mask(printable(problem, keep="\n\t")), mask(remedy)
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  Fix: {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # The default reduction calls cls(*args), which a keyword-only argument breaks; joblib pickles errors.
        return (_rebuild, (type(self), self.problem, self.remedy))


def _rebuild(cls: type[HemlearnError], problem: str, remedy: str) -> HemlearnError:
    return cls(problem, remedy=remedy)


class ConfigError(HemlearnError):
    """A key, value or combination of the configuration is wrong."""


class CallError(ConfigError):
    """A command is not called as its help says."""

    exit_status = 2


class DataError(HemlearnError):
    """Files or labels of a data set are missing, unreadable or contradict each other."""


class SplitError(HemlearnError):
    """A split cannot be made, or would let one patient stand on two sides."""


class StoreError(HemlearnError):
    """The slice store cannot be written or read."""


class WeightsError(HemlearnError):
    """Backbone weights are unavailable, refused or of another architecture."""


class RunError(HemlearnError):
    """A run folder is incomplete, of another version or cannot be written."""


class TrainingError(HemlearnError):
    """Training diverged or cannot go on."""


class Pruned(HemlearnError):  # noqa: N818 - nothing is wrong
    """A study has ended the run early: its state is ``pruned``, and it can be gone on with."""


def nearest(word: str, choices: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The choices spelt most like ``word``; for dotted keys the last part decides among equals.

    >>> nearest("optimizer.lrr", ["optimizer.lr", "optimizer.betas"])
    ['optimizer.lr']
    """
    pool = sorted(choices)
    close = difflib.get_close_matches(word, pool, n=n, cutoff=cutoff)
    if close:
        return close
    tail = word.rpartition(".")[2]
    by_tail = {key.rpartition(".")[2]: key for key in reversed(pool)}
    return [by_tail[hit] for hit in difflib.get_close_matches(tail, sorted(by_tail), n=n, cutoff=cutoff)]


def hint(word: str, choices: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest choice, or nothing when none is near."""
    found = nearest(word, choices)
    return f"; did you mean '{found[0]}'?" if found else ""


def count(number: float | str, noun: str, plural: str = "") -> str:
    """``1 slice``, ``2 slices``; ``series`` stays as it is, and ``plural`` says what an s alone does not.

    >>> count(1, "slice is", "slices are"), count(2, "image")
    ('1 slice is', '2 images')
    """
    return f"{number} {noun if number == 1 else plural or (noun if noun.endswith('s') else noun + 's')}"
