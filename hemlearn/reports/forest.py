"""Forest plots: one metric of several groups below each other, each with its interval."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hemlearn.evaluation.subgroups import CALIBRATION, METRICS, Estimate, Subgroup, Subgroups
from hemlearn.reports.figures import COLOURS, STYLE
from hemlearn.reports.tables import metric_name, scale_of, value_text

_ROW, _PANEL, _TEXT = 0.2, 1.7, 1.35  # inches: a line, the axis, the figures
_NAMES, _CHARACTER, _LONGEST = 2.15, 0.066, 60  # inches: names of groups at least, a character; characters of a line
_FIRST = "all"


def forest_figure(
    studies: Sequence[Subgroups],
    overall: Subgroup | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    title: str | None = None,
    note: str | None = None,
) -> Figure:
    """A panel per metric: a line per group, in brackets its patients with a positive and with a negative case.

    The dashed line is the figure of all cases together. Groups that are not judged say so and have no mark.

    Args:
        studies: Covariates, one below the other.
        overall: All cases together.
        metrics: Of ``hemlearn.evaluation.subgroups.METRICS``.
        title: Above the panels.
        note: Below them.
    """
    lines: list[tuple[str, Subgroup | None]] = [] if overall is None else [(_FIRST, overall)]
    for study in studies:
        lines += [(study.covariate, None), *((group.name, group) for group in study.groups)]
    names = [_name(*line) for line in lines]
    sizes = [1 + name.count("\n") for name in names]
    places = [sum(sizes[:row]) + (size - 1) / 2 for row, size in enumerate(sizes)]
    left_of = max(_NAMES, 0.15 + _CHARACTER * max(len(part) for name in names for part in name.split("\n")))
    above, below = (0.5 if title else 0.28), 0.5 + (0.14 * (1 + note.count("\n")) if note else 0.0)
    tall = _ROW * (sum(sizes) + 0.5)
    width, height = left_of + len(metrics) * (_PANEL + _TEXT), above + tall + below
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        for index, metric in enumerate(metrics):
            left = (left_of + index * (_PANEL + _TEXT)) / width
            axes: Any = figure.add_axes((left, below / height, _PANEL / width, tall / height))
            scale = scale_of(metric)[0]
            xlabel = metric_name(metric) + (" %" if scale == 100 else "")
            axes.set(ylim=(sum(sizes) - 0.25, -0.75), xlabel=xlabel, yticks=[])
            axes.grid(axis="x", color="0.92", linewidth=0.6)
            axes.spines["left"].set_visible(False)
            axes.set_xlim(*_limits(metric, lines))
            line = None if overall is None else getattr(overall, metric)
            if line is not None:
                axes.axvline(line.value * scale, color="0.45", linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
            for row, text, (name, group) in zip(places, names, lines, strict=True):
                if index == 0:
                    indent = 0.06 if group is not None and name != _FIRST else 0.0
                    place = (-left_of / _PANEL + 0.03 + indent, row)
                    style: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "left", "fontsize": 8}
                    axes.text(*place, text, **style, parse_math=False, fontweight="bold" if group is None else "normal")
                if group is not None:
                    _draw(axes, row, metric, group, first=name == _FIRST)
        if title:
            figure.text(0.5, 1 - 0.1 / height, title, fontsize=10, ha="center", va="top", parse_math=False)
        if note:
            figure.text(0.5, 0.06 / height, note, fontsize=7.5, color="0.35", ha="center", va="bottom")
    return figure


def _name(name: str, group: Subgroup | None) -> str:
    """A line of the plot, with the patients of either class; long ones in several lines."""
    text = name if group is None else f"{name} ({group.positives}, {group.negatives})"
    return "\n".join(textwrap.wrap(text, _LONGEST)) or text


def _draw(axes: Any, row: float, metric: str, group: Subgroup, *, first: bool) -> None:
    found: Estimate | None = getattr(group, metric)
    text = "too few" if found is None else value_text(found.value, found.low, found.high, metric)
    if group.refused == "" and found is None:
        text = "no probability"
    grey = "0.5" if found is None else "black"
    axes.text(1.05, row, text, transform=axes.get_yaxis_transform(), va="center", ha="left", fontsize=7.5, color=grey)
    if found is None:
        return
    colour, scale = "black" if first else COLOURS[0], scale_of(metric)[0]
    bounds, value = [found.low * scale, found.high * scale], found.value * scale
    axes.plot(bounds, [row, row], color=colour, linewidth=1.4, solid_capstyle="butt", zorder=2)
    axes.plot(value, row, marker="D" if first else "s", markersize=5, color=colour, zorder=3, clip_on=False)


def _limits(metric: str, lines: Sequence[tuple[str, Subgroup | None]]) -> tuple[float, float]:
    found = [e for _, group in lines if group is not None and (e := getattr(group, metric)) is not None]
    bounds = [b for e in found for b in (e.value, e.low, e.high) if b == b]
    if metric == CALIBRATION:
        reach = max([abs(b) for b in bounds] + [0.1]) * 1.05
        return -reach, reach
    scale = scale_of(metric)[0]
    return max(0.0, min([*bounds, 0.5]) - 0.03) * scale, 1.02 * scale
