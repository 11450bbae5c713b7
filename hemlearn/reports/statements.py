"""What many runs say, each statement once: those that differ in their figures alone become one with ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = r"<?[+-]?\d+(?:\.\d+)?"
_INTERVAL = re.compile(rf" \({_NUMBER}(?:-| to ){_NUMBER}\)")
_LEVELS = ("slice", "series", "patient")
_PLACE = re.compile(
    rf"(?<![\w.<+-])(?P<number>{_NUMBER})(?:(?P<of> for [\w -]+?)? per (?P<level>{'|'.join(_LEVELS)}))?(?!\w)"
)
_HIGHEST = re.compile(r"; [^;()]+, the highest of")


def merged(said: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Statements, and how many runs say each, the most frequent first.

    Statements are one where they differ in numbers and in the level of a number alone: of numbers the range is told,
    for each level apart; intervals, and which label was the highest, are left to the runs' own folders.

    Args:
        said: The statements of each run.

    >>> runs = [["AUROC 0.7 (0.5-0.8) per slice", "few"], ["AUROC 0.65 (0.5-0.7) per slice", "AUROC 0.5 per patient"]]
    >>> merged(runs)
    [('AUROC 0.65 to 0.7 per slice, 0.5 per patient', 2), ('few', 1)]
    """
    alike: dict[str, dict[str, set[int]]] = {}  # shape -> text -> runs
    for run, texts in enumerate(said):
        for text in texts:
            alike.setdefault(_PLACE.sub(_slot, _plain(text)), {}).setdefault(text, set()).add(run)
    found = [
        (next(iter(texts)) if len(texts) == 1 else _joined(list(texts)), len(set().union(*texts.values())))
        for texts in alike.values()
    ]
    return sorted(found, key=lambda item: -item[1])


def _plain(text: str) -> str:
    return _HIGHEST.sub("; the highest of", _INTERVAL.sub("", text))


def _slot(found: re.Match[str]) -> str:
    return "\0" + (found["of"] or "") + ("\1" if found["level"] else "")


def _joined(texts: Sequence[str]) -> str:
    """One statement of several that have the same shape."""
    plain = [_plain(text) for text in texts]
    columns = zip(*(list(_PLACE.finditer(text)) for text in plain), strict=True)
    ranges = iter([_range(column) for column in columns])
    return _PLACE.sub(lambda _: next(ranges), plain[0])


def _range(column: Sequence[re.Match[str]]) -> str:
    by_level: dict[str, list[str]] = {}
    for found in column:
        by_level.setdefault(found["level"] or "", []).append(found["number"])
    told = []
    for level in sorted(by_level, key=("", *_LEVELS).index):
        numbers = sorted(by_level[level], key=lambda number: float(number.removeprefix("<")))
        low, high = numbers[0], numbers[-1]
        text = low if low == high else f"{low} to {high}"
        told.append(text + (column[0]["of"] or "") + (f" per {level}" if level else ""))
    return ", ".join(told)
