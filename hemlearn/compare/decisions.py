"""What each group's decisions are worth: a rate at the other, likelihood ratios, predictive values at a prevalence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hemlearn.compare.groups import ANY, Entry
from hemlearn.evaluation.decision import Rate, likelihood_ratios, rate_at

SPECIFICITY, SENSITIVITY = 0.9, 0.95  # at which the other one is told
_LINES = 10  # on a terminal
FIGURES = ("sensitivity_at", "specificity_at", "lr_positive", "lr_negative", "ppv", "npv")


def decision_rows(entries: Sequence[Entry], prevalence: float | None) -> list[dict[str, Any]]:
    """One row per group, level and main label (``any``, or the first): :data:`FIGURES` and the prevalence meant.

    Likelihood ratios and predictive values are those of the calls, each run's at its own threshold.

    Args:
        entries: The groups.
        prevalence: Of patients, at which predictive values per patient are told; None, and of cases of which a patient
            has several: that of the test cases.
    """
    rows: list[dict[str, Any]] = []
    for entry in entries:
        labels = entry.group.labels
        label = ANY if ANY in labels else labels[0]
        j = labels.index(label)
        for level, cases in entry.cases.items():
            known = ~np.isnan(cases.y[:, j])
            y, p, called, who = (
                values[known] for values in (cases.y[:, j], cases.p[:, j], cases.decision[:, j], cases.code)
            )
            if not 0 < y.sum() < len(y):
                continue
            of_patients = len(np.unique(who)) == len(who)
            at = prevalence if prevalence is not None and of_patients else float(y.mean())
            ratios = likelihood_ratios(y, called, who)
            values = (
                rate_at(y, p, SPECIFICITY, who),
                rate_at(y, p, SENSITIVITY, who, of="specificity"),
                *ratios,
                *ratios.predictive_values(at),
            )
            row: dict[str, Any] = {"group": entry.name, "level": level, "label": label, "n": len(y), "prevalence": at}
            row |= dict(zip(FIGURES, values, strict=True))
            last = rows[-1] if rows else {}
            if level == "patient" and last.get("level") == "series" and _same(last, row):
                last["level"] = "series = patient"  # the same cases
            else:
                rows.append(row)
    return rows


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return repr({**one, "level": ""}) == repr({**other, "level": ""})


def rate_text(rate: Rate, percent: bool) -> str:
    """``92.3 (85.1-96.0)`` of a share in percent, ``4.50 (3.03-6.69)`` of a ratio.

    >>> rate_text(Rate(0.5, float("nan"), float("nan")), True), rate_text(Rate(4.5, 3.03, 6.69), False)
    ('50.0', '4.50 (3.03-6.69)')
    """
    scale, digits = (100, 1) if percent else (1, 2)
    if rate.value != rate.value:
        return "undefined"
    bounds = f" ({rate.low * scale:.{digits}f}-{rate.high * scale:.{digits}f})" if rate.low == rate.low else ""
    return f"{rate.value * scale:.{digits}f}{bounds}"


def cells(row: dict[str, Any]) -> list[str]:
    """The figures of a row as text."""
    return [rate_text(row[name], not name.startswith("lr_")) for name in FIGURES]


def at_prevalence(rows: Sequence[dict[str, Any]], prevalence: float) -> list[str]:
    """Predictive values of the calls of patients at a prevalence that was asked for, a line per group."""
    asked = [row for row in rows if row["prevalence"] == prevalence]
    told = [(row, dict(zip(FIGURES, cells(row), strict=True))) for row in asked]
    if not told:
        return [f"prevalence {prevalence:g}: no level has one case per patient, so that it says nothing of these calls"]
    lines = [
        f"prevalence {prevalence:g}, {row['level']}, {row['label']}: {row['group']} has PPV {text['ppv']} % and NPV "
        f"{text['npv']} %"
        for row, text in told[:_LINES]
    ]
    more = len(told) - _LINES
    return lines + ([f"  ... and {more} more, all in compare.md"] if more > 0 else [])
