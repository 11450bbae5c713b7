"""What a sweep says of each setting that it changed: the grid of groups as heat maps, and the settings' main effects.

A heat map shows the AUROC at the primary endpoint for the values of two settings, averaged over all others. A main
effect is the difference between two values of one setting, averaged over pairs of groups that are alike in all other
settings; where these were tested on the same cases, its interval and p come from the joint covariance of their AUROCs
(:func:`hemlearn.evaluation.significance.auroc_contrasts`), which knows that the same patients stand on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hemlearn.compare.contrasts import Contrast, Endpoint, endpoints, primary
from hemlearn.compare.groups import Entry, short_key
from hemlearn.compare.pairs import PATIENTS, same_cases
from hemlearn.evaluation.auroc import NAN
from hemlearn.evaluation.significance import auroc_contrasts
from hemlearn.util.errors import count

_GRIDS = 15  # heat maps of one task: the pairs of six settings


class Cell(NamedTuple):
    """Groups with the same values of two settings."""

    value: float  # their mean AUROC; NaN where there is none
    groups: int  # their number


@dataclass(frozen=True)
class Grid:
    """A heat map."""

    row_key: str
    column_key: str
    rows: list[str]  # values of ``row_key``
    columns: list[str]  # values of ``column_key``
    cells: list[list[Cell]]  # one list per row

    @property
    def values(self) -> list[float]:
        """The means that are defined."""
        return [cell.value for line in self.cells for cell in line if cell.value == cell.value]

    @property
    def spread(self) -> float:
        """Between the smallest and the largest."""
        return max(self.values, default=0.0) - min(self.values, default=0.0)


@dataclass(frozen=True)
class Effect:
    """One value of a setting, averaged over all others."""

    key: str
    value: str
    groups: int  # with this value
    mean: float  # their mean AUROC
    contrast: Contrast | None = None  # against the value that the others are held against; None of that one


@dataclass(frozen=True)
class Factors:
    """The settings of the groups of one task."""

    task: str  # kind and labels
    where: str  # endpoint in words
    low: float  # smallest AUROC of a heat map
    high: float  # largest
    grids: list[Grid]
    effects: list[Effect]
    note: str  # what a reader must know; empty where there is nothing

    @property
    def contrasts(self) -> list[Contrast]:
        """The tests of main effects."""
        return [effect.contrast for effect in self.effects if effect.contrast is not None]

    def shade(self, value: float) -> float:
        """Place of an AUROC between the smallest and the largest of the heat maps, 0 to 1."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def as_dict(self) -> dict[str, Any]:
        """For ``compare.json``; the tests stand among the others."""
        grids = [vars(grid) | {"cells": [[c._asdict() for c in row] for row in grid.cells]} for grid in self.grids]
        effects = [{k: v for k, v in vars(effect).items() if k != "contrast"} for effect in self.effects]
        return {"task": self.task, "where": self.where, "grids": grids, "effects": effects, "note": self.note}


def study_factors(
    table: pd.DataFrame, entries: Sequence[Entry], keys: Sequence[str], baseline: Entry | None
) -> list[Factors]:
    """Heat maps and main effects of every task whose groups differ in at least two settings.

    Args:
        table: The rows of the comparison, see :attr:`.comparison.Comparison.table`.
        entries: Groups with their cases.
        keys: The settings in which groups differ.
        baseline: Its values are those that others are held against; None: the first of each setting.
    """
    found = []
    for task in dict.fromkeys(table["task"]):
        own = [entry for entry in entries if entry.rows[0]["task"] == task]
        rows = table[(table["task"] == task) & (table["source"] == "runs")]
        if not own or len(rows) == 0:
            continue
        end = primary(endpoints(own))
        groups = rows["group"].nunique()
        at = rows[rows["label"] == end.label]
        for level in (end.level, own[0].first_level):  # further groups of many have their first level alone
            part = at[at["level"] == level]
            if len(part) == groups:
                break
        swept = [key for key in keys if not key.startswith("task.") and part[key].nunique() > 1]
        if len(swept) > 1 and len(part) > 2:
            found.append(_study(task, Endpoint(str(part["level"].iloc[0]), end.label), part, own, swept, baseline))
    return found


def _study(
    task: str, end: Endpoint, rows: pd.DataFrame, entries: list[Entry], keys: list[str], baseline: Entry | None
) -> Factors:
    values = {key: list(dict.fromkeys(rows[key])) for key in keys}
    grids = [_grid(rows, one, other, values) for one, other in list(combinations(keys, 2))[:_GRIDS]]
    grids.sort(key=lambda grid: -grid.spread)
    shown = [value for grid in grids for value in grid.values]
    effects, tested = _effects(rows, keys, values, entries, end, baseline)
    notes = []
    if tested < len(rows):
        of = count(len(rows), "group")
        notes.append(f"differences are of the {tested} of {of} that were tested on the same cases")
    if math.prod(map(len, values.values())) != len(rows):
        notes.append("the grid is not complete: means of a value are not of like groups, differences over pairs are")
    where = end.name(end.label != "" or len(entries[0].group.labels) > 1)
    return Factors(task, where, min(shown, default=NAN), max(shown, default=NAN), grids, effects, "; ".join(notes))


def _grid(rows: pd.DataFrame, one: str, other: str, values: dict[str, list[str]]) -> Grid:
    """The setting with more values stands in the rows, which a page can grow by."""
    row, column = (one, other) if len(values[one]) >= len(values[other]) else (other, one)
    means = rows.groupby([row, column], sort=False)["auroc"].agg(["mean", "size"])

    def cell(a: str, b: str) -> Cell:
        if (a, b) not in means.index:
            return Cell(NAN, 0)
        return Cell(float(means.loc[(a, b), "mean"]), int(means.loc[(a, b), "size"]))

    cells = [[cell(a, b) for b in values[column]] for a in values[row]]
    return Grid(row, column, values[row], values[column], cells)


def _effects(
    rows: pd.DataFrame,
    keys: list[str],
    values: dict[str, list[str]],
    entries: list[Entry],
    end: Endpoint,
    baseline: Entry | None,
) -> tuple[list[Effect], int]:
    """The effects of every setting, and how many groups their tests could be of."""
    sets = same_cases([entry for entry in entries if end.level in entry.cases], end)
    same = max(sets, key=len, default=[])
    settings = [tuple(entry.group.cell(key) for key in keys) for entry in same]
    effects: list[Effect] = []
    weights: dict[int, tuple[np.ndarray[Any, Any], int]] = {}
    for place, key in enumerate(keys):
        named = short_key(key)
        wanted = baseline.group.cell(key) if baseline is not None and key in baseline.group.values else ""
        reference = wanted if wanted in values[key] else values[key][0]
        for value in values[key]:
            own = rows[rows[key] == value]["auroc"]
            contrast = None
            if value != reference:
                sums, pairs = _pairs(settings, place, value, reference)
                contrast = Contrast("effect", end.level, end.label, "auroc", f"{named}={value}", f"{named}={reference}")
                contrast.note = f"mean over {count(pairs, 'pair')} of groups"
                if pairs:
                    weights[len(effects)] = (sums, pairs)
                else:
                    contrast.refused = "no two groups that are alike in all else were tested on the same cases"
            effects.append(Effect(key, value, len(own), float(own.mean()), contrast))
    if weights:
        for index, test in zip(weights, _tests(same, end, [sums for sums, _ in weights.values()]), strict=True):
            contrast = effects[index].contrast
            assert contrast is not None
            effects[index] = replace(effects[index], contrast=contrast.take(test, PATIENTS))
    return effects, len(same)


def _pairs(settings: list[tuple[str, ...]], place: int, value: str, reference: str) -> tuple[np.ndarray[Any, Any], int]:
    """Weights of the groups in a mean of differences over pairs alike in all but one setting, and the pairs' number."""
    index = {own: i for i, own in enumerate(settings)}
    sums, pairs = np.zeros(len(settings)), 0
    for own, i in index.items():
        partner = index.get((*own[:place], reference, *own[place + 1 :]))
        if own[place] == value and partner is not None:
            sums[i] += 1
            sums[partner] -= 1
            pairs += 1
    return sums / max(pairs, 1), pairs


def _tests(entries: list[Entry], end: Endpoint, weights: list[np.ndarray[Any, Any]]) -> list[Any]:
    cases = [entry.cases[end.level] for entry in entries]
    labels, y, code = entries[0].group.labels, cases[0].y, cases[0].code
    scores = np.stack([item.p for item in cases])
    if end.label == "" and len(labels) > 1:
        return auroc_contrasts(y, scores, weights, code)
    j = labels.index(end.label) if end.label else 0
    known = ~np.isnan(y[:, j])
    return auroc_contrasts(y[known, j], scores[:, known, j], weights, code[known])
