"""What the answers of triage were worth, as text: for a terminal, the tables of a comparison and a study's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hemlearn.reports.tables import UNDEFINED, format_entry, levels_once

TRIAGE = {  # figures of triage, shown in percent
    **{"missed": "missed", "false_alarm": "false alarms", "undecided_positive": "undecided: positives"},
    **{"undecided_negative": "undecided: negatives", "ppv": "PPV", "npv": "NPV"},
}


def triage_once(triage: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Level, label, cut and test figures of ``metrics.json``'s triage; levels where all is the same share a title."""
    asked = ("error", "value", "positives", "negatives", "note")  # the cuts themselves may differ by calibration
    kept: dict[str, Any] = {}
    for level, own in triage.get("test", {}).items():
        cuts = triage["cuts"][level]
        kept[level] = {label: [{key: cuts[label][key] for key in asked}, found] for label, found in own.items()}
    return [
        (title, label, triage["cuts"][level][label], found)
        for title, level, own in levels_once(kept)
        for label, (_, found) in own.items()
    ]


_TOLD = {"answered": "answered"} | {name: TRIAGE[name] for name in ("missed", "false_alarm", "ppv", "npv")}
TRIAGE_HEADER = (
    *("group", "run", "where", "asked", "validation +, -", "test cases"),
    *(f"{name} %" for name in _TOLD.values()),
    "remark",
)


def triage_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of :func:`hemlearn.compare.triage.triage_rows` as text, under ``TRIAGE_HEADER``."""
    asked = [f"error {100 * row['error']:.4g} %"] if row["error"] is not None else []
    asked += [f"PPV, NPV {100 * row['value']:.4g} %"] if row["value"] is not None else []
    where = [row["group"], row["run"], f"{row['level']}, {row['label']}", "; ".join(asked)]
    texts = [format_entry("sensitivity", row[name]) for name in _TOLD]
    counts = [f"{row['positives']}, {row['negatives']}", str(row["n"])]
    return [*where, *counts, *("" if text == UNDEFINED else text for text in texts), row["remark"]]


def triage_text(row: Mapping[str, Any]) -> str:
    """The same in a sentence, without the group."""
    cells = triage_cells(row)
    figures = [f"{name} {text} %" for name, text in zip(_TOLD.values(), cells[6:-1], strict=True) if text]
    told = f"run {row['run']}, {row['level']}, {row['label']} ({cells[3]} asked): {', '.join(figures)}"
    return f"{told} ({row['remark']})" if row["remark"] else told
