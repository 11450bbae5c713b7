"""Work that array jobs share: which part is whose, and which parts are still missing.

A shard is a job that does the k-th of n parts of a command, waits for none of the others, and leaves its part where all
of them find it (``hemlearn prepare shard=3/16``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from hemlearn.util.errors import HemlearnError


class Shard(NamedTuple):
    """The ``number``-th, from 1, of ``of`` equal parts.

    >>> Shard.parse("3/16"), str(Shard(3, 16))
    (Shard(number=3, of=16), '3/16')
    >>> [Shard(1, 3).owner(place, 5) for place in range(5)]
    [1, 1, 2, 2, 3]
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard ``K/N``.

        Raises:
            ValueError: It is none, and why.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if found is None:
            raise ValueError("expected K/N, such as 3/16: the third of sixteen parts")
        number, of = int(found[1]), int(found[2])
        if not 1 <= number <= of:
            raise ValueError(f"expected K from 1 to N={of}" if of else "expected N of at least 1")
        return cls(number, of)

    def owner(self, place: int, total: int) -> int:
        """The number of the shard that does item ``place`` of ``total`` in their order; each has a run of them."""
        return 1 + place * self.of // total

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class ShardsMissing(HemlearnError):  # noqa: N818 - the shard itself has not failed
    """This shard has done its part, and others have not.

    Args:
        shard: The one that is done.
        missing: Numbers of the others.
        what: They all make.
    """

    def __init__(self, shard: Shard, missing: Iterable[int], what: str) -> None:
        self.shard, self.missing = shard, sorted(missing)
        super().__init__(
            f"{what}: shard {shard} is done; missing: {listed(self.missing)} of {shard.of}",
            remedy="run these, in any order; or the command without shard, which does what is left",
        )


def listed(numbers: Sequence[int]) -> str:
    """Numbers in words, runs of them shortened.

    >>> listed([2]), listed([1, 2, 4, 5, 6, 9])
    ('shard 2', 'shards 1, 2, 4 to 6, 9')
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"shard{'s' if len(numbers) != 1 else ''} {', '.join(words)}"


_present: ContextVar[Shard | None] = ContextVar("shard", default=None)


@contextmanager
def working_on(shard: Shard | None) -> Iterator[None]:
    """Whatever is scanned, decoded or embedded inside is divided, and this process does its own part alone."""
    token = _present.set(shard)
    try:
        yield
    finally:
        _present.reset(token)


def present() -> Shard | None:
    """The shard that this process works on."""
    return _present.get()
