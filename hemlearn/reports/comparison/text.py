"""How figures, intervals and p values read in every file and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hemlearn.reports.comparison.contrasts import Contrast

PERCENT = ("accuracy", "sensitivity", "specificity")
UNDEFINED = "undefined"
NAMES = {
    "auroc": "AUROC",
    "ap": "average precision",
    "ece": "ECE",
    "brier": "Brier score",
    "log_loss": "log loss",
    "weighted_log_loss": "weighted log loss",
    "f1": "F1",
}


def interval_text(row: Mapping[Any, Any], metric: str) -> str:
    """``0.953 (0.921-0.976)``, rates in percent, ``undefined`` where a metric has no value."""
    low, high = (row.get(f"{metric}_{side}", float("nan")) for side in ("low", "high"))
    return span(float(row[metric]), low, high, metric)


def span(value: float, low: float, high: float, metric: str) -> str:
    """A value with its interval, in the unit of its metric."""
    if value != value:
        return UNDEFINED
    scale, digits = (100, 1) if metric in PERCENT else (1, 3)
    bounds = f" ({low * scale:.{digits}f}-{high * scale:.{digits}f})" if low == low else ""
    return f"{value * scale:.{digits}f}{bounds}"


def p_text(p: float) -> str:
    """``0.032``, ``<0.001``, ``undefined``."""
    if p != p:
        return UNDEFINED
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference_text(contrast: Contrast, bounds: bool = True) -> str:
    """``+0.031 (-0.004 to +0.066)``; differences of rates in percentage points."""
    if contrast.difference != contrast.difference:
        return UNDEFINED
    scale, digits = (100, 1) if contrast.metric in PERCENT else (1, 3)
    text, low, high = (_signed(v * scale, digits) for v in (contrast.difference, contrast.low, contrast.high))
    return f"{text} ({low} to {high})" if bounds and contrast.low == contrast.low else text


def _signed(value: float, digits: int) -> str:
    """A number with its sign; 0 has none."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def metric_name(metric: str) -> str:
    """``AUROC`` for ``auroc``."""
    return NAMES.get(metric, metric)


def endpoint_name(level: str, label: str, several: bool = False) -> str:
    """``patients, any`` or ``slices, mean over labels``."""
    unit = {"slice": "slices", "series": "series", "patient": "patients"}.get(level, level)
    return unit + (f", {label}" if label else ", mean over labels" if several else "")


def count(number: float) -> str:
    """``3.45 M``, ``12.3 k`` or the number itself."""
    if number != number:
        return ""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def seconds(value: float) -> str:
    """``41 s``, ``12 min``, ``3.4 h``."""
    if value != value:
        return ""
    if value < 120:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
