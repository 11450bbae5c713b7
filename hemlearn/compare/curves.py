"""The curves of a comparison's best groups, one over the other, with pointwise bands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from hemlearn.compare.pooling import ANY, Entry
from hemlearn.evaluation.auroc import NAN
from hemlearn.reports.figures import Curve, curve_bands

DRAWN = 8  # groups in a figure: as many as the palette tells apart
BANDS = 3  # curves of one panel that get a band; more hide each other


def drawn(entries: Sequence[Entry]) -> list[Entry]:
    """The groups of highest AUROC, in the order of the table."""
    place = {id(entry): i for i, entry in enumerate(entries)}
    ranked = sorted(entries, key=lambda e: (-e.auroc if e.auroc == e.auroc else 9.0, place[id(e)]))[:DRAWN]
    return sorted(ranked, key=lambda entry: place[id(entry)])


def curves_at(entries: Sequence[Entry], level: str | None = None) -> dict[str, list[Curve]]:
    """Curves of each label: panel title -> one per group.

    Args:
        entries: The groups to draw.
        level: slice | series | patient; None takes each group's first level.
    """
    panels: dict[str, list[Curve]] = {}
    for index, entry in enumerate(entries):
        at = level or (next(iter(entry.cases)) if entry.cases else "")
        cases = entry.cases.get(at)
        if cases is None:
            continue
        rows = {row["label"]: row for row in entry.rows if row["level"] == at}
        for j, label in enumerate(entry.group.labels):
            row = rows.get(label, rows[""])
            known = ~np.isnan(cases.y[:, j])
            spot = (1 - row["specificity"], row["sensitivity"])
            marked = spot if all(v == v for v in spot) else None
            curve = Curve(
                entry.name,
                cases.y[known, j],
                cases.p[known, j],
                row["auroc"],
                row["auroc_low"],
                row["auroc_high"],
                point=marked,
                patient=cases.code[known],
                index=index,
            )
            panels.setdefault(label, []).append(curve)
    return panels


def metric_of(
    panels: dict[str, list[Curve]], entries: Sequence[Entry], metric: str, level: str | None = None
) -> dict[str, list[Curve]]:
    """The same curves with another metric (``ap``, ``ece``) in the legend; it has no interval there."""
    found: dict[str, list[Curve]] = {}
    for label, curves in panels.items():
        made = []
        for curve in curves:
            entry = next(entry for entry in entries if entry.name == curve.name)
            at = level or next(iter(entry.cases))
            rows = {row["label"]: row for row in entry.rows if row["level"] == at}
            made.append(dataclasses.replace(curve, value=rows.get(label, rows[""])[metric], low=NAN, high=NAN))
        found[label] = made
    return found


def with_bands(panels: dict[str, list[Curve]], chosen: Sequence[str]) -> dict[str, list[Curve]]:
    """The same curves with bands: all of a panel with few, else those of the ``chosen`` groups."""
    found: dict[str, list[Curve]] = {}
    for label, curves in panels.items():
        made = []
        for curve in curves:
            bands = None
            if (len(curves) <= BANDS or curve.name in chosen) and curve.patient is not None and curve.defined:
                bands = curve_bands(curve.y, curve.p, curve.patient)
            made.append(curve if bands is None else dataclasses.replace(curve, roc_band=bands[0], pr_band=bands[1]))
        found[label] = made
    return found


def panel_of(panels: dict[str, list[Curve]]) -> dict[str, list[Curve]]:
    """The panels that tell most where room is short: of ``any`` alone, else all of them."""
    return {ANY: panels[ANY]} if ANY in panels else panels
