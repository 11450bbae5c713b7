"""What each group cost: training time, speed and size, from what its runs wrote down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.evaluation.statistics import NAN
from hemlearn.reports.comparison.rows import Entry
from hemlearn.reports.comparison.runs import Run

COLUMNS = (
    "group",
    "runs",
    "fit_seconds",
    "fit_seconds_total",
    "wall_seconds",
    "images_per_second",
    "parameters",
    "epochs",
    "device",
)


def cost_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row per group: means over its runs, the sum of their training times, and what they ran on.

    ``fit_seconds`` is the time inside the fit loop, ``wall_seconds`` that of the whole run (reading, training, testing,
    figures); ``images_per_second`` that of training. What no run wrote down is NaN.
    """
    rows = []
    for entry in entries:
        runs = next(iter(entry.cases.values())).used if entry.cases else entry.group.runs
        told = [cost for cost in (run.provenance.get("cost") for run in runs) if isinstance(cost, dict)]
        fit = _numbers(told, "fit_seconds")
        devices = {str(run.provenance["device"]) for run in runs if run.provenance.get("device")}
        rows.append(
            {
                "group": entry.name,
                "runs": len(runs),
                "fit_seconds": _mean(fit),
                "fit_seconds_total": float(sum(fit)) if fit else NAN,
                "wall_seconds": _mean(_wall(runs)),
                "images_per_second": _mean(_numbers(told, "slices_per_second")),
                "parameters": _mean(_numbers(told, "parameters")),
                "epochs": _mean(_numbers(told, "epochs")),
                "device": "; ".join(sorted(devices)),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _numbers(told: Iterable[dict[str, Any]], key: str) -> list[float]:
    values = [cost.get(key) for cost in told]
    return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else NAN


def _wall(runs: Iterable[Run]) -> list[float]:
    """Seconds from start to end of each run whose status tells both."""
    found = []
    for run in runs:
        try:
            start, end = (datetime.fromisoformat(str(run.status[key])) for key in ("started", "finished"))
        except (KeyError, ValueError):
            continue  # a run that was not told when it began: the mean is over the others
        found.append((end - start).total_seconds())
    return found
