"""What the answers of triage were worth on each run's test patients, beside what was asked of them.

Each run has cuts of its own, so that there is a row per run: figures of several put together judge nobody's promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from hemlearn.compare.groups import Entry
from hemlearn.compare.runs import ComparedRun
from hemlearn.compare.words import seen
from hemlearn.evaluation.triage import asked_text
from hemlearn.reports.triage import triage_once
from hemlearn.util.errors import RunError
from hemlearn.util.run_files import AGAIN

_BOUNDS = ("value", "low", "high")


def triage_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A row per run that was asked for triage, level (equal ones in one; no slices beside patients) and label.

    Keys: ``group``, ``run``, ``level``, ``label``, ``error`` and ``value`` (as asked), ``promise`` (in words),
    ``positives`` and ``negatives`` (validation patients), ``n`` (test cases), ``leaky``, ``remark`` (why the promise
    does not hold here; who is never answered), and entries as in ``metrics.json``: ``answered`` and those of
    :func:`hemlearn.evaluation.triage.triage_metrics`.

    Raises:
        RunError: A run tells its triage in another form.
    """
    rows = []
    for entry in entries:
        for run in entry.first[1].used if entry.cases else ():
            try:
                found = [_row(entry, run, *told) for told in triage_once(run.metrics.get("triage") or {})]
            except (KeyError, TypeError, AttributeError) as error:
                raise RunError(
                    f"{run.path / 'metrics.json'}: triage cannot be read ({error!r})", remedy=AGAIN
                ) from error
            beyond = [row for row in found if row["level"] != "slice"]
            rows += beyond or found
    return rows


def _row(
    entry: Entry, run: ComparedRun, level: str, label: str, cut: Mapping[str, Any], figures: Any
) -> dict[str, Any]:
    remarks = [cut["note"]] if cut["note"] else []
    leaky = bool(entry.group.leaky or run.metrics.get("leaky") or seen(run))
    if leaky:
        remarks.insert(0, "LEAKY: its patients have trained it, and nothing is promised")
    elif run.provenance.get("evaluated") == "external":
        remarks.insert(0, "another data set: the promise is for patients like those of validation")
    undecided = figures["undecided"]
    answered = undecided | {
        key: None if undecided[other] is None else 1 - undecided[other]
        for key, other in (("value", "value"), ("low", "high"), ("high", "low"))
    }
    return {
        **{"group": entry.name, "run": run.hash, "level": level, "label": label},
        **{key: cut[key] for key in ("error", "value", "positives", "negatives")},
        **{"promise": asked_text(cut), "n": undecided["n"], "leaky": leaky, "remark": "; ".join(remarks)},
        **{"answered": answered, **figures},
    }


def triage_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as ``triage.csv`` has them: a column each for value, low and high of a figure."""
    flat = []
    for row in rows:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            figure = isinstance(value, Mapping)
            cells |= {name if k == "value" else f"{name}_{k}": value[k] for k in _BOUNDS} if figure else {name: value}
        flat.append(cells)
    return pd.DataFrame(flat)
