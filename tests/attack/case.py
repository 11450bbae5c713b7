"""A case, what came of it, and the judges."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import pandas as pd

SECONDS = 40.0  # beside another process on two cores; the slowest right case takes 6 s
MEMORY = 2.5 * 2**30  # bytes above what a process has loaded before it begins
TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^Fatal Python error|Segmentation fault", re.M)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x9b\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
TOLERANCE = 1e-5  # of probabilities


class Verdict(StrEnum):
    """How a case ended."""

    RIGHT = "right"
    ERROR = "clear error"
    FAULT = "fault"


@dataclass(frozen=True)
class Trained:
    """What the cases find ready: finished runs, and their answers for good input.

    Args:
        work: Folder of the session.
        runs: Run folders by name: ``ct`` (HU, slices) and ``pictures``.
        reference: Of the run ``ct``, the probabilities of the slices of :func:`tests.attack.series.head`.
    """

    work: Path
    runs: dict[str, Path]
    reference: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a command left.

    Args:
        folder: Where it worked: the input and what was written.
        status: Exit status; negative: the signal that ended it; None: it was stopped after ``SECONDS``.
        out: Standard output.
        err: Standard error.
        memory: Peak beyond what was loaded before, bytes.
        seconds: Of processor time.
        trained: The session's runs.
    """

    folder: Path
    status: int | None
    out: str
    err: str
    memory: float
    seconds: float
    trained: Trained

    @cached_property
    def told(self) -> str:
        """All that a user is told: what is printed, and the lists of what was refused or left out."""
        lists = [self.folder / "out" / name for name in ("failures.csv", "left_out.csv", "skipped.csv")]
        return "\n".join([self.out, self.err, *(file.read_text("utf-8") for file in lists if file.is_file())])

    def table(self, name: str) -> pd.DataFrame:
        """A table of ``predict``."""
        return pd.read_csv(self.folder / "out" / f"{name}.csv", dtype={"patient_id": str, "series_id": str})

    @property
    def probabilities(self) -> dict[str, list[float]]:
        """Of each series, those of the last label (any, the sole one) of its slices, from the lowest up."""
        table = self.table("slices").sort_values("z_mm", kind="stable")
        column = [name for name in table.columns if name.startswith("prob_")][-1]
        return {str(name): part[column].tolist() for name, part in table.groupby("series_id")}


Judge = Callable[[Outcome], str]  # "" or the fault


@dataclass(frozen=True)
class Case:
    """One input and one command.

    Args:
        kind: Group in the table of counts.
        name: Of the case, unique within its kind.
        build: Writes the input into an empty folder and returns the arguments of ``hemlearn``, which works there.
        judge: What is right: the fault in words, or "".
        pixels: Keep what ``index`` decoded in ``pixels.npz`` (see :mod:`tests.attack.session`).
    """

    kind: str
    name: str
    build: Callable[[Path, Trained], Sequence[str]]
    judge: Judge
    pixels: bool = False
    seconds: float = SECONDS
    environment: dict[str, str] = field(default_factory=dict)


def verdict(case: Case, got: Outcome) -> tuple[Verdict, str]:
    """Right, clear error or fault, with the fault in words."""
    fault = ill(got) or case.judge(got)
    if fault:
        return Verdict.FAULT, fault
    return (Verdict.RIGHT if got.status == 0 else Verdict.ERROR), ""


def ill(got: Outcome) -> str:
    """What is a fault whatever the input."""
    if got.status is None:
        return "hang"
    if got.status < 0:
        return f"ended by signal {-got.status}"
    if found := TRACEBACK.search(got.out + got.err):
        last = (got.out + got.err)[found.start() :].strip().splitlines()
        return f"traceback: {last[-1][:160]}"
    if got.memory > MEMORY:
        return f"{got.memory / 2**30:.1f} GiB of memory"
    if found := CONTROL.search(got.out + got.err):
        return f"control character {found[0]!r} printed"
    listed = got.told[len(got.out) + len(got.err) + 2 :].count("\n") > 2  # more than the heads of predict's lists
    if got.status and not listed and not re.search(r"Fix: |^usage: |^hemlearn: ", got.out + got.err, re.M):
        return f"exit status {got.status} without a message that helps: {(got.err or got.out)[-160:]!r}"
    return ""


# --- judges -------------------------------------------------------------------------------------------------------


def silent(got: Outcome, *words: str) -> str:
    """The first of the patterns that nothing told the user of."""
    return next((word for word in words if not re.search(word, got.told, re.I)), "")


def told(*words: str) -> Judge:
    """Whatever the exit status, the patterns are in what the user reads."""

    def judge(got: Outcome) -> str:
        missing = silent(got, *words)
        return f"exit status {got.status} and not a word of {missing!r}" if missing else ""

    return judge


def refused(*words: str) -> Judge:
    """An error that says so."""

    def judge(got: Outcome) -> str:
        if got.status == 0:
            return "accepted"
        missing = silent(got, *words)
        return f"refused without a word of {missing!r}" if missing else ""

    return judge


def accepted(*words: str) -> Judge:
    """Exit status 0 (and the patterns are told)."""

    def judge(got: Outcome) -> str:
        if got.status:
            return f"exit status {got.status}: {(got.err or got.out)[-300:]!r}"
        missing = silent(got, *words)
        return f"accepted without a word of {missing!r}" if missing else ""

    return judge


def either(*judges: Judge) -> Judge:
    """One of them is content."""

    def judge(got: Outcome) -> str:
        faults = [judge(got) for judge in judges]
        return "" if "" in faults else "; or ".join(faults)

    return judge


def both(*judges: Judge) -> Judge:
    """All are content."""

    def judge(got: Outcome) -> str:
        return next((fault for judge in judges if (fault := judge(got))), "")

    return judge


def same(key: str = "head", series: int = 1) -> Judge:
    """``predict`` answers as for the good input ``key``, for each of ``series`` series; other commands are content."""

    def judge(got: Outcome) -> str:
        if got.status:
            return f"exit status {got.status}: {(got.err or got.out)[-300:]!r}"
        if not (got.folder / "out/slices.csv").is_file():
            return ""
        found, wanted = list(got.probabilities.values()), got.trained.reference[key]
        if len(found) != series:
            return f"{len(found)} series instead of {series}"
        for values in found:
            if len(values) != len(wanted):
                return f"{len(values)} slices instead of {len(wanted)}"
            off = [i for i, pair in enumerate(zip(values, wanted, strict=True)) if abs(pair[0] - pair[1]) > TOLERANCE]
            if off:
                return f"slices {off}: {values[off[0]]:.6f} instead of {wanted[off[0]]:.6f}"
        return ""

    return judge


def same_or_told(*words: str, key: str = "head") -> Judge:
    """The answer of the good input, or a word about what differs."""
    return either(same(key), told(*words))
