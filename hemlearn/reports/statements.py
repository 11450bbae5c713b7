"""What many runs say, each statement once: those that differ in their figures alone become one with ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NUMBER = r"<?[+-]?\d+(?:\.\d+)?"
_INTERVAL = re.compile(rf" \({_NUMBER}(?:-| to ){_NUMBER}\)")
_LEVELS = ("slice", "series", "patient")
_PLACE = re.compile(
    rf"(?<![\w.<+-])(?P<number>{_NUMBER})(?:(?P<of> for [\w -]+?)? per (?P<level>{'|'.join(_LEVELS)}))?(?!\w)"
)
_BETTER, _NOT = "above it by", "NOT shown to be better, difference"
_BESIDE = re.compile(rf"; the run is (?P<verdict>{_BETTER}|{_NOT}) ")  # how a run stands to a baseline
_HIGHEST = re.compile(r"; [^;()]+, the highest of")


def merged(said: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Statements, and how many runs say each, the most frequent first.

    Statements are one where they differ in numbers and in the level of a number alone: of numbers the range is told,
    for each level apart; intervals, and which label was the highest, are left to the runs' own folders. Of how runs
    stand to a baseline it is told in how many they are above it.

    Args:
        said: The statements of each run.

    >>> runs = [["AUROC 0.7 (0.5-0.8) per slice", "few"], ["AUROC 0.65 (0.5-0.7) per slice", "AUROC 0.5 per patient"]]
    >>> merged(runs)
    [('AUROC 0.65 to 0.7 per slice, 0.5 per patient', 2), ('few', 1)]
    >>> not_shown = "size: 0.7; the run is NOT shown to be better, difference 0"
    >>> merged([["size: 0.8; the run is above it by +0.1"], [not_shown]])
    [('size: 0.7 to 0.8; the run is above it in 1 of 2 runs, difference 0 to +0.1', 2)]
    """
    alike: dict[str, dict[str, set[int]]] = {}  # shape -> text -> runs
    for run, texts in enumerate(said):
        for text in texts:
            shape = _PLACE.sub(_slot, _BESIDE.sub("\2", _plain(text)))
            alike.setdefault(shape, {}).setdefault(text, set()).add(run)
    found = [
        (next(iter(texts)) if len(texts) == 1 else _joined(texts), len(set().union(*texts.values())))
        for texts in alike.values()
    ]
    return sorted(found, key=lambda item: -item[1])


def _plain(text: str) -> str:
    return _HIGHEST.sub("; the highest of", _INTERVAL.sub("", text))


def _slot(found: re.Match[str]) -> str:
    return "\0" + (found["of"] or "") + ("\1" if found["level"] else "")


def _joined(texts: Mapping[str, set[int]]) -> str:
    """One statement of several that have the same shape."""
    said = {text: found["verdict"] for text in texts if (found := _BESIDE.search(text))}
    plain = [_BESIDE.sub("\2", _plain(text)) for text in texts]
    columns = zip(*(list(_PLACE.finditer(text)) for text in plain), strict=True)
    ranges = iter([_range(column) for column in columns])
    joined = _PLACE.sub(lambda _: next(ranges), plain[0])
    if not said:
        return joined
    above = set[int]().union(*(texts[text] for text, verdict in said.items() if verdict == _BETTER))
    every = set[int]().union(*texts.values())
    verdict = f"above it in {len(above)} of {len(every)} runs, difference" if above else _NOT
    return joined.replace("\2", f"; the run is {verdict} ")


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
