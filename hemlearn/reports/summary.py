"""What the commands print when they are done: a run's metrics, and what they must be read beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hemlearn.console import on_terminal
from hemlearn.evaluation.scoring import METRICS, WEIGHTED
from hemlearn.evaluation.verdicts import NULLS

_PERCENT = ("accuracy", "sensitivity", "specificity")
_PLAIN_WIDTH = 400


def format_entry(name: str, entry: dict[str, Any]) -> str:
    """``0.953 (0.921-0.976)``, rates in percent, ``undefined`` where a metric has no value."""
    if entry.get("value") is None:
        return "undefined"
    scale, digits = (100, 1) if name in _PERCENT else (1, 3)
    text = f"{entry['value'] * scale:.{digits}f}"
    if entry.get("low") is not None:
        text += f" ({entry['low'] * scale:.{digits}f}-{entry['high'] * scale:.{digits}f})"
    return text


def _console() -> Console:
    """A terminal has its own width; elsewhere lines are not cut or wrapped."""
    return Console() if on_terminal() else Console(width=_PLAIN_WIDTH, soft_wrap=True)


def _table(title: str) -> Table:
    return Table(title=title) if on_terminal() else Table(title=title, title_justify="left", box=None, pad_edge=False)


def _cell(name: str, entries: dict[str, Any]) -> str:
    return format_entry(name, entries[name]) if name in entries else ""


def _columns(metrics: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Title, level and scores of each column; levels that hold the same cases with the same scores share one."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for level, scores in metrics.get("test", {}).items():
        if found and found[-1][2] == scores:
            title, first, _ = found[-1]
            found[-1] = (f"{title} = {level}", first, scores)
        else:
            found.append((level, level, scores))
    return found


def print_run(folder: Path, metrics: dict[str, Any]) -> None:
    """The table at the end of ``hemlearn train``: test metrics with 95 % intervals, per level and label, and audits."""
    console = _console()
    shown = _columns(metrics)
    leaky = metrics.get("leaky", False)
    table = _table("LEAKY test, 95 % interval" if leaky else "test, 95 % interval")
    table.add_column("metric")
    audits = metrics.get("audits", {})
    nulls = metrics.get("nulls", {}).get("position", {}).get("test", {})
    columns: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    alone: dict[str, list[dict[str, Any]]] = {name: [] for name in NULLS if name != "position"}
    for index, (title, level, scores) in enumerate(shown):
        table.add_column(f"{title} (n={scores['accuracy']['n']})", justify="right")
        columns.append(scores)
        beside.append(nulls.get(level, {}))
        for name, cells in alone.items():
            cells.append(_null(audits, name, level))
        if len(scores["labels"]) > 1 and index == 0:
            for label, entries in scores["labels"].items():
                table.add_column(label, justify="right")
                columns.append(entries)
                beside.append(nulls.get(level, {}).get("labels", {}).get(label, {}))
                for name, cells in alone.items():
                    cells.append(_null(audits, name, level).get("labels", {}).get(label, {}))
    for name in (*METRICS, WEIGHTED):
        unit = " %" if name in _PERCENT else ""
        if any(name in column for column in columns):
            table.add_row(name + unit, *(_cell(name, column) for column in columns))
    for name in ("auroc", "log_loss", WEIGHTED):
        if any(name in column for column in beside):
            table.add_row(f"position only: {name}", *(_cell(name, column) for column in beside))
    for name, cells in alone.items():
        if any(cells):
            table.add_row(f"{name} only: auroc", *(_cell("auroc", column) for column in cells))
    console.print(table)
    if nulls:
        console.print(
            "position only: a model that knows where in its series a slice lies, and sees no pixel", soft_wrap=True
        )
    for text in audits.get("verdict", []):
        console.print(f"audit: {text}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"run folder: {folder}", soft_wrap=True)


def _null(audits: dict[str, Any], name: str, level: str) -> dict[str, Any]:
    found: dict[str, Any] = audits.get(name, {}).get("test", {}).get(level, {})
    return found
