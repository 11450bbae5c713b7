"""The comparison as one HTML page that needs nothing outside itself: no script, no font, no picture, no request."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl

from hemlearn import __version__
from hemlearn.compare.cases import BASELINES
from hemlearn.compare.contrasts import ALL_PAIRS, Contrast, Endpoint, best, endpoints, primary
from hemlearn.compare.groups import ANY, Entry
from hemlearn.compare.material import Panels, curves_at, drawn, metric_of
from hemlearn.evaluation.auroc import NAN
from hemlearn.reports.figures import COLOURS, confusion_counts, pr_figure, reliability_figure, roc_figure
from hemlearn.reports.tables import UNDEFINED, UNITS, interval_text, metric_name, render, value_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from hemlearn.compare.comparison import Comparison, Sheet

LISTED = 80  # rows of one table on the page; the CSV files have all
_FAILURES = 8  # errors shown per label and side


class Block(NamedTuple):
    """Tests of one endpoint under a title."""

    title: str
    method: str
    covers: str
    contrasts: list[Contrast]


def page(result: Comparison, curves: Panels, failures: pd.DataFrame, **view: Any) -> str:
    """The whole page."""
    shown = drawn(result.entries)
    colours = {entry.name: COLOURS[i % len(COLOURS)] for i, entry in enumerate(shown)}
    letters = [chr(ord("A") + i) if i < 26 else f"G{i + 1}" for i in range(len(result.entries))]
    keys = {
        entry.name: (letter, colours.get(entry.name)) for letter, entry in zip(letters, result.entries, strict=True)
    }
    open_tests, folded_tests = _tests(result)
    pairs = [c for c in result.contrasts if c.kind in ("paired", "unpaired")]
    blind = [c for c in result.contrasts if c.kind == "null" and c.made]
    return render(
        "hemlearn.compare",
        "compare.html.j2",
        version=__version__,
        title="Comparison: " + (", ".join(key.removesuffix(".name") for key in result.keys) or "one group"),
        keys=keys,
        sheets=[_short(sheet, result.entries) for sheet in result.sheets()],
        open_tests=open_tests,
        folded_tests=folded_tests,
        pairs=pairs,
        refused=list(dict.fromkeys((c.refused, c.first, c.second) for c in pairs if c.refused)),
        matrix=lambda contrasts: _matrix(contrasts, result.entries),
        ordered=lambda contrasts: sorted(contrasts, key=lambda c: (not c.made, c.p_holm if c.made else 0.0))[:LISTED],
        of_kind=lambda kind: [c for c in result.contrasts if c.kind == kind],
        against_baselines=[[c for c in blind if _is_main(result, c) is main] for main in (True, False)],
        entry={entry.name: entry for entry in result.entries},
        drawn=shown,
        figures=_figures(result, shown, curves, keys),
        labels=_labels(result),
        label_cells=_label_cells,
        confusions=[
            (entry, entry.first[0], confusion_counts(cases.y, cases.decision, entry.group.labels, entry.group.kind))
            for entry in result.entries[:ALL_PAIRS]
            for cases in [entry.first[1]]
        ],
        best=best(result.entries).name,
        failures=_failures(failures, best(result.entries).name),
        blind=tuple(BASELINES),
        all_pairs=ALL_PAIRS,
        listed=LISTED,
        per_side=_FAILURES,
        result=result,
        **view,
    )


def _is_main(result: Comparison, contrast: Contrast) -> bool:
    """Whether a comparison is made at the endpoint of the headline."""
    entries = [entry for entry in result.entries if entry.name in (contrast.first, contrast.second)]
    return Endpoint(contrast.level, contrast.label) == primary(endpoints(entries))


def _short(sheet: Sheet, entries: Sequence[Entry]) -> Sheet:
    """The table without the groups that have no tests, where there are thousands: they do not belong on a page."""
    if len(sheet.lines) <= len(entries) * 4:
        return sheet
    names = {entry.name for entry in entries}
    kept = [i for i, row in enumerate(sheet.rows) if row["group"] in names or row["source"] in BASELINES]
    return sheet._replace(lines=[sheet.lines[i] for i in kept], rows=[sheet.rows[i] for i in kept])


def _tests(result: Comparison) -> tuple[list[Block], list[Block]]:
    """The paired tests at the endpoint of the headline, and those at others with the tests over folds and seeds."""
    several = any(len(entry.group.labels) > 1 for entry in result.entries)
    blocks: dict[tuple[str, str, str], list[Contrast]] = {}
    for c in result.contrasts:
        if c.kind in ("paired", "unpaired"):
            blocks.setdefault((c.level, c.label, c.metric), []).append(c)
        elif c.kind == "resampled" and (c.made or c.refused):
            blocks.setdefault((c.level, "", ""), []).append(c)
    shown: list[Block] = []
    folded: list[Block] = []
    again: list[Block] = []
    for (level, label, metric), own in blocks.items():
        where = Endpoint(level, label)
        if not metric:
            title = f"Training again: AUROC of the runs themselves, {where.name()}"
            again.append(Block(title, "", "; ".join(dict.fromkeys(c.covers for c in own if c.covers)), own))
        elif any(c.made for c in own):
            method = "; ".join(dict.fromkeys(c.method for c in own if c.method))
            block = Block(f"{metric_name(metric)}, {where.name(several)}", method, "", own)
            (shown if _is_main(result, own[0]) else folded).append(block)
    return shown, folded + again


def _matrix(contrasts: Sequence[Contrast], entries: Sequence[Entry]) -> dict[str, Any]:
    """Names of the groups, and the comparison of every ordered pair of them: row minus column."""
    found = {(c.first, c.second): c for c in contrasts}
    found |= {(c.first, c.second): c for c in contrasts if c.made}  # an unpaired test in the place of a refused one
    names = [entry.name for entry in entries if any(entry.name in pair for pair in found)]
    return {"names": names, "cells": {(c.second, c.first): c.turned() for c in found.values()} | found}


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
    figures += [value_text(row[metric], NAN, NAN, metric) for metric in ("ap", "brier", "ece")]
    blind = row["source"] in BASELINES
    cells = ["" if blind and text == UNDEFINED else text for text in figures]
    return [row["label"], str(row["n"]), str(row["positives"]), *cells]


def _failures(failures: pd.DataFrame, name: str) -> list[list[dict[Any, Any]]]:
    """The most confident errors of one group: of label ``any`` and of the others; in one list where none is ``any``."""
    own = failures[(failures["group"] == name) & (failures["rank"] <= _FAILURES)].to_dict("records")
    main = [row for row in own if row["label"] == ANY]
    return [main or own, [row for row in own if row["label"] != ANY] if main else []]


# --- Curves: on patients where they are judged, then at the first level; of several labels all but `any` are folded.


def _figures(
    result: Comparison, shown: Sequence[Entry], curves: Panels, keys: dict[str, tuple[str, str | None]]
) -> list[dict[str, Any]]:
    """A title, the open figures and the folded ones of each level."""
    first = shown[0].first[0]
    levels: list[tuple[str, Panels, str | None]] = [(first, curves, None)]
    if first != "patient" and any("patient" in entry.cases for entry in shown):
        levels.insert(0, ("patient", curves_at(shown, result.baseline, "patient", brief=True), "patient"))
    made = []
    for level, panels, at in levels:
        main = [ANY] if ANY in panels else list(panels) if len(panels) == 1 else list(panels)[:1]
        pictures = {
            label: [
                picture
                for metric, (draw, title) in {
                    "auroc": (roc_figure, "ROC curves"),
                    "ap": (pr_figure, "Precision-recall curves"),
                    "ece": (reliability_figure, "Calibration"),
                }.items()
                for chosen in [panels if metric == "auroc" else metric_of(panels, result.entries, metric, at)]
                for lines in [[replace(curve, name=keys[curve.name][0]) for curve in chosen[label]]]
                for picture in [(f"{title}, {UNITS[level]}, {label}", _picture(draw({label: lines})))]
            ]
            for label in panels
        }
        folded = [name for name in panels if name not in main]
        made.append(
            {
                "title": UNITS[level].capitalize(),
                "main": [p for name in main for p in pictures[name]],
                "labels": len(folded),
                "folded": [p for name in folded for p in pictures[name]],
            }
        )
    return made


def _picture(figure: Figure) -> str:
    """A figure as an SVG in a data address; glyphs are paths, so that no font is needed."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "hemlearn"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
