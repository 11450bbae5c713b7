"""Where to look: the most confident errors of each group, as identifiers, without a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemlearn.reports.comparison.pooling import Pooled
from hemlearn.reports.comparison.rows import Entry

SIDES = ("missed", "false alarm")
PER_SIDE = 20  # errors listed per group, label and side
COLUMNS = ("group", "level", "label", "error", "rank", "case", "patient", "probability", "groups_wrong", "groups")


def failure_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """The most confident errors at each group's first level.

    A missed case was called negative, a false alarm positive; the first are those whose probability contradicts the
    label most. In a multiclass task a missed case is one whose own class was not called.

    Args:
        entries: Groups with their cases.

    Returns:
        Rows sorted by group, label, side and rank. ``groups_wrong`` of ``groups`` made the same error on the case: what
        every group gets wrong is hard, or labelled wrongly.
    """
    rows: list[dict[str, object]] = []
    for entry in entries:
        level, cases = next(iter(entry.cases.items()))
        for j, label in enumerate(entry.group.labels):
            for side in SIDES:
                found = np.flatnonzero(_wrong(cases, j, side))
                p = cases.p[found, j] * (-1 if side == "false alarm" else 1)
                first = found[np.lexsort((cases.unit[found].astype(str), p))][:PER_SIDE]
                rows += [
                    {
                        "group": entry.name,
                        "level": level,
                        "label": label,
                        "error": side,
                        "rank": rank + 1,
                        "case": cases.unit[i],
                        "patient": cases.patient[i],
                        "probability": float(cases.p[i, j]),
                    }
                    for rank, i in enumerate(first)
                ]
    _count(rows, entries)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _wrong(cases: Pooled, label: int, side: str) -> npt.NDArray[np.bool_]:
    truth, called = cases.y[:, label], cases.decision[:, label]
    return np.asarray((truth == 1) & ~called if side == "missed" else (truth == 0) & called)


def _count(rows: Sequence[dict[str, object]], entries: Sequence[Entry]) -> None:
    """Set how many groups judged each listed case, and how many made the same error."""
    for row in rows:
        row |= {"groups_wrong": 0, "groups": 0}
    for entry in entries:
        level, cases = next(iter(entry.cases.items()))
        place = {label: j for j, label in enumerate(entry.group.labels)}
        wrong = {(c, side): _wrong(cases, j, side) for c, j in place.items() for side in SIDES}
        where = {unit: i for i, unit in enumerate(cases.unit)}
        for row in rows:
            label, i = str(row["label"]), where.get(row["case"])
            if i is None or row["level"] != level or label not in place or np.isnan(cases.y[i, place[label]]):
                continue
            row["groups"] = int(str(row["groups"])) + 1
            row["groups_wrong"] = int(str(row["groups_wrong"])) + int(wrong[label, str(row["error"])][i])
