"""The page of a comparison: one file, which asks for nothing outside itself and is whole without its script.

The script sorts, filters, chooses columns and hides groups in every plot at once; what it works on stands in the page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from hemlearn import __version__
from hemlearn.compare.cases import BASELINES
from hemlearn.compare.contrasts import ALL_PAIRS, PRIMARY, Contrast, Endpoint, endpoints, is_main, primary
from hemlearn.compare.groups import ANY, INTERVALS, Entry, Sheet, figure_text, letter
from hemlearn.compare.material import Panels, confusion_of, curves_at, drawn, metric_of
from hemlearn.compare.readers import POINTS
from hemlearn.compare.subgroups import NOTE
from hemlearn.evaluation.auroc import NAN
from hemlearn.evaluation.scoring import METRICS
from hemlearn.reports.figures import (
    COLOURS,
    Curve,
    decision_figure,
    inline_svg,
    pr_figure,
    reliability_figure,
    roc_figure,
    style_of,
)
from hemlearn.reports.tables import PERCENT, UNDEFINED, UNITS, interval_text, metric_name, render
from hemlearn.util.console import NOTICED, track

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from hemlearn.compare.comparison import Comparison

LISTED = 80  # rows of one table on the page; the CSV files have all
DRAWN = 16  # groups in a plot of the page, where they can be hidden; the first of them are shown
SHOWN = 6  # ... at once
_FAILURES = 8  # errors shown per label and side
_MATRIX = 6  # groups of which every pair stands in a matrix
_CURVES = (
    ("auroc", roc_figure, "ROC curves"),
    ("ap", pr_figure, "Precision-recall curves"),
    ("ece", reliability_figure, "Calibration"),
    ("ece", decision_figure, "Decision curves"),
)
_DASHES = {"-": "none", "--": "5 2.5", "-.": "6 2 1.5 2", ":": "1.5 2"}


class Key(NamedTuple):
    """How a group is called and drawn on the page."""

    letter: str
    layer: str  # id of its curves; empty where it has none
    colour: str  # of its curves
    ink: str  # colour that can be read on it
    dashes: str  # as SVG writes its line
    hollow: bool  # whether its colour is that of another group too, with another line
    shown: bool  # whether its curves are shown at first


class Pictures(NamedTuple):
    """Errors of a group as pictures."""

    cards: str  # HTML
    style: str  # CSS of them
    pages: Mapping[str, str]  # id of a case -> link to its page


class Block(NamedTuple):
    """Tests of one endpoint under a title."""

    title: str
    method: str
    covers: str
    contrasts: list[Contrast]


class Column(NamedTuple):
    """A column of the table of results."""

    title: str
    numbers: bool  # whether it holds figures
    extra: bool  # whether it is hidden until it is chosen


class Line(NamedTuple):
    """A row of the table of results."""

    group: str
    level: str
    blind: bool  # of a model without pixels
    cells: list[tuple[str, float | str]]  # text, and what it is sorted by


def page(
    result: Comparison, beside: Panels, failures: pd.DataFrame, pictures: Pictures | None = None, **view: Any
) -> str:
    """The whole page.

    Args:
        result: The comparison.
        beside: Curves beside readers.
        failures: See :func:`hemlearn.compare.material.failure_table`.
        pictures: Errors of the best group.
        view: Values that other formats show too.
    """
    entries = result.ranked
    shown = drawn(entries, DRAWN)
    keys = _keys(entries, shown)
    curves = curves_at(shown, result.baseline)
    open_tests, folded_tests = _tests(result)
    pairs = [c for c in result.contrasts if c.kind in ("paired", "unpaired")]
    blind = [c for c in result.contrasts if c.kind == "null" and c.made]
    _, script, digest = assets()
    return render(
        "hemlearn.compare",
        "compare.html.j2",
        version=__version__,
        title="Comparison: " + (", ".join(key.removesuffix(".name") for key in result.keys) or "one group"),
        script=script,
        digest=digest,
        keys=keys,
        entries=entries,
        sheets=[(sheet.title, *_results(_short(sheet, entries)), _start(sheet, entries)) for sheet in result.sheets()],
        heat=heat,
        open_tests=open_tests,
        folded_tests=folded_tests,
        primary=PRIMARY,
        pairs=pairs,
        refused=list(dict.fromkeys((c.refused, c.first, c.second) for c in pairs if c.refused)),
        triangle=lambda contrasts: triangle(contrasts, entries),
        ordered=lambda contrasts: sorted(contrasts, key=lambda c: (not c.made, c.p if c.made else 0.0))[:LISTED],
        of_kind=lambda kind: [c for c in result.contrasts if c.kind == kind],
        against_baselines=[[c for c in blind if is_main(c, result.entries) is main] for main in (True, False)],
        entry={entry.name: entry for entry in entries},
        drawn=shown,
        figures=_level_figures(result, shown, curves, keys),
        reader_figures=[
            (f"ROC curve and readers, {label}", inline_svg(roc_figure({label: _lettered(own, keys)})), [])
            for label, own in beside.items()
        ],
        reader_note=result.about.said(POINTS),
        subgroup_figures=[(c, inline_svg(f), []) for c, f in result.subgroups.pictures()] if result.subgroups else [],
        subgroup_note=result.about.said(NOTE),
        labels=_labels(result),
        label_cells=_label_cells,
        confusions=[(entry, entry.first[0], confusion_of(entry, entry.first[0])) for entry in entries[:ALL_PAIRS]],
        best=entries[0].name,
        failures=_failures(failures, entries[0].name),
        shown_errors=pictures,
        blind=tuple(BASELINES),
        all_pairs=ALL_PAIRS,
        listed=LISTED,
        per_side=_FAILURES,
        result=result,
        **view,
    )


def assets() -> tuple[str, str, str]:
    """Style and script of the page, and the script's digest, by which a page allows it and no other."""
    style, script = (
        files("hemlearn.compare").joinpath(f"templates/compare.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js")
    )
    return style, script, base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _keys(entries: Sequence[Entry], shown: Sequence[Entry]) -> dict[str, Key]:
    """Letters in the order of the table; colours and lines of the groups that are drawn."""
    places = {entry.name: i for i, entry in enumerate(shown)}
    found = {}
    for i, entry in enumerate(entries):
        place = places.get(entry.name)
        if place is None:
            found[entry.name] = Key(letter(i), "", "#59636e", "#fff", "none", True, False)
            continue
        colour = COLOURS[place % len(COLOURS)]
        dashes = _DASHES[style_of(place)]
        hollow = place >= len(COLOURS)
        found[entry.name] = Key(letter(i), f"g{place}", colour, _ink(colour), dashes, hollow, place < SHOWN)
    return found


def _ink(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour (relative luminance of WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return "#000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#fff"


def heat(share: float) -> tuple[str, str]:
    """Background and ink of a cell of a heat map, light to dark, so that a grey print keeps the order.

    >>> heat(0.0), heat(1.0)
    (('#f7fbff', '#000'), ('#08306b', '#fff'))
    """
    stops = ((247, 251, 255), (158, 202, 225), (49, 130, 189), (8, 48, 107))
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    mixed = (round(a + (b - a) * (at - low)) for a, b in zip(stops[low], stops[low + 1], strict=True))
    colour = "#" + "".join(f"{part:02x}" for part in mixed)
    return colour, _ink(colour)


# --- The table of results: every setting and metric, of which some are hidden until they are chosen.


def _results(sheet: Sheet) -> tuple[list[Column], list[Line]]:
    """Columns and rows of the table, with what each cell is sorted by."""
    extra = [m for m in METRICS if m not in INTERVALS and any(row.get(m, NAN) == row.get(m, NAN) for row in sheet.rows)]
    columns = [Column(name, i >= sheet.first, False) for i, name in enumerate(sheet.header)]
    columns += [Column(metric_name(m) + (" %" if m in PERCENT else ""), True, True) for m in extra]
    people = any(row["patients"] == row["patients"] for row in sheet.rows)  # where their ids are known
    columns += [Column("patients", True, True)] if people else []
    columns += [Column("positive cases", True, True)]
    lines = []
    for cells, row in zip(sheet.lines, sheet.rows, strict=True):
        blind = row["source"] in BASELINES
        values: list[tuple[str, float | str]] = [
            (text, _leading(text) if i >= sheet.first else text) for i, text in enumerate(cells)
        ]
        for metric in extra:
            text = figure_text(row, metric)
            values.append(("" if blind and text == UNDEFINED else text, float(row[metric])))
        values += [_counted(row["patients"])] if people else []
        values += [_counted(row["positives"])]
        lines.append(Line(row["group"], str(row["level"]), blind, values))
    return columns, lines


def _start(sheet: Sheet, entries: Sequence[Entry]) -> str:
    """The level of which rows are shown at first: that of the primary endpoint, among few rows all."""
    own = [entry for entry in entries if entry.rows[0]["task"] == sheet.rows[0]["task"]]
    wanted = primary(endpoints(own)).level if own else ""
    levels = dict.fromkeys(str(row["level"]) for row in sheet.rows)
    return next((level for level in levels if len(sheet.rows) > 12 and wanted in level.split(" = ")), "")


def _counted(number: float) -> tuple[str, float | str]:
    """A whole number and what it is sorted by; nothing where it is not known."""
    return (f"{number:.0f}", float(number)) if number == number else ("", NAN)


def _leading(text: str) -> float:
    """The number that a cell begins with; NaN where it begins with none."""
    found = re.match(r"[-+]?\d+(?:\.\d+)?", text)
    return float(found[0]) if found else NAN


def _short(sheet: Sheet, entries: Sequence[Entry]) -> Sheet:
    """The table without the groups that have no tests, where there are thousands: they do not belong on a page."""
    if len(sheet.lines) <= len(entries) * 4:
        return sheet
    names = {entry.name for entry in entries}
    kept = [i for i, row in enumerate(sheet.rows) if row["group"] in names or row["source"] in BASELINES]
    return sheet._replace(lines=[sheet.lines[i] for i in kept], rows=[sheet.rows[i] for i in kept])


# --- Tests.


def _tests(result: Comparison) -> tuple[list[Block], list[Block]]:
    """The paired tests at the endpoint of the headline, and those at others with the tests over folds and seeds."""
    several = any(len(entry.group.labels) > 1 for entry in result.entries)
    blocks: dict[tuple[str, str, str], list[Contrast]] = {}
    for c in result.contrasts:
        if c.kind in ("paired", "unpaired"):
            blocks.setdefault((c.level, c.label, c.metric), []).append(c)
        elif c.kind == "resampled" and (c.made or c.refused):
            blocks.setdefault((c.level, "", ""), []).append(c)
    shown, folded, again = [list[Block]() for _ in range(3)]
    for (level, label, metric), own in blocks.items():
        where = Endpoint(level, label)
        if not metric:
            title = f"Training again: AUROC of the runs themselves, {where.name()}"
            again.append(Block(title, "", "; ".join(dict.fromkeys(c.covers for c in own if c.covers)), own))
        elif any(c.made for c in own):
            method = "; ".join(dict.fromkeys(c.method for c in own if c.method))
            block = Block(f"{metric_name(metric)}, {where.name(several)}", method, "", own)
            (shown if is_main(own[0], result.entries) else folded).append(block)
    return shown, folded + again


def triangle(contrasts: Sequence[Contrast], entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Every pair of a few groups once, the group of higher rank first; None where a list tells more.

    A list does where there are many groups, where no pair differs, or where some pairs have no test.
    """
    found = {(c.first, c.second): c for c in contrasts}
    found |= {(c.first, c.second): c for c in contrasts if c.made}  # an unpaired test in the place of a refused one
    found = {(c.second, c.first): c.turned() for c in found.values()} | found
    names = [entry.name for entry in entries if any(entry.name in pair for pair in found)]
    upper = {(a, b): found.get((a, b)) for i, a in enumerate(names) for b in names[i + 1 :]}
    whole = all(c is not None and c.made for c in upper.values())
    if not 2 < len(names) <= _MATRIX or not whole or not any(c is not None and c.differs for c in upper.values()):
        return None
    return {"rows": names[:-1], "columns": names[1:], "cells": upper}


# --- Labels and errors.


def _labels(result: Comparison) -> list[dict[Any, Any]]:
    """Rows of every label of every group at its first level."""
    entries = {entry.name: entry for entry in result.entries}
    rows = result.table[result.table["label"] != ""].to_dict("records")
    return [
        row
        for row in rows
        if row["level"] == entries.get(row["group"], result.entries[0]).first_level
        and (row["group"] in entries or row["source"] in BASELINES)
    ]


def _label_cells(row: dict[Any, Any]) -> list[str]:
    figures = [interval_text(row, metric) for metric in ("auroc", "sensitivity", "specificity")]
    figures += [figure_text(row, metric) for metric in ("ap", "brier", "ece")]
    blind = row["source"] in BASELINES
    cells = ["" if blind and text == UNDEFINED else text for text in figures]
    return [row["label"], str(row["n"]), str(row["positives"]), *cells]


def _failures(failures: pd.DataFrame, name: str) -> list[list[dict[Any, Any]]]:
    """The most confident errors of one group: of label ``any`` and of the others; in one list where none is ``any``."""
    own = failures[(failures["group"] == name) & (failures["rank"] <= _FAILURES)].to_dict("records")
    main = [row for row in own if row["label"] == ANY]
    return [main or own, [row for row in own if row["label"] != ANY] if main else []]


# --- Curves: on patients where they are judged, then at the first level; of several labels all but `any` are folded.


def _level_figures(
    result: Comparison, shown: Sequence[Entry], curves: Panels, keys: Mapping[str, Key]
) -> list[dict[str, Any]]:
    """A title, the open figures and the folded ones of each level."""
    first = shown[0].first[0]
    levels: list[tuple[str, Panels, str | None]] = [(first, curves, None)]
    if first != "patient" and any("patient" in entry.cases for entry in shown):
        levels.insert(0, ("patient", curves_at(shown, result.baseline, "patient", brief=True), "patient"))
    made = []
    for level, panels, at in levels:
        main = [ANY] if ANY in panels else list(panels) if len(panels) == 1 else list(panels)[:1]
        pictures: dict[str, list[tuple[str, str, list[tuple[str, str]]]]] = {label: [] for label in panels}
        for metric, draw, title in track(_CURVES, "Drawing curves", after=NOTICED):
            chosen = panels if metric == "auroc" else metric_of(panels, result.entries, metric, at)
            for label, own in pictures.items():
                lines = _lettered(chosen[label], keys)
                if lines:
                    figure = _drawn(draw, label, lines)
                    named = [(c.name, _summary(r, metric, draw)) for c, r in zip(chosen[label], lines, strict=True)]
                    own.append((f"{title}, {UNITS[level]}, {label}", figure, named))
        folded = [name for name in panels if name not in main]
        shown_first, rest = ([p for name in names for p in pictures[name]] for names in (main, folded))
        title = UNITS[level].capitalize()
        made.append({"title": title, "main": shown_first, "labels": len(folded), "folded": rest})
    return made


def _drawn(draw: Callable[..., Figure], label: str, curves: Sequence[Curve]) -> str:
    return inline_svg(draw({label: curves}))


def _summary(curve: Curve, metric: str, draw: Callable[..., Figure]) -> str:
    """The figure of a curve, beside its letter."""
    if draw is decision_figure:
        return ""
    text = replace(curve, name="").summary({"auroc": "AUROC", "ap": "AP", "ece": "ECE"}[metric])
    return text.removeprefix(": ")


def _lettered(curves: Sequence[Curve], keys: Mapping[str, Key]) -> list[Curve]:
    """Curves of groups by their letters, in layers of their own; those of readers keep their names."""
    return [
        curve if curve.marker else replace(curve, name=keys[curve.name].letter, layer=keys[curve.name].layer)
        for curve in curves
    ]
