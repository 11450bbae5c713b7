"""How well do runs carry over: trained on some data sets, tested on another, as a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hemlearn.compare.cases import Pooled
from hemlearn.compare.contrasts import endpoints, primary
from hemlearn.compare.groups import Entry, metric_rows, short_key, show
from hemlearn.compare.runs import ComparedRun, covers
from hemlearn.reports.tables import UNITS, interval_text
from hemlearn.util.errors import count

# Keys that say which data a run has learnt and met, not how it was made.
_OF_DATA = (
    "data",
    "split",
    "name",
    *(f"task.{key}" for key in ("labels", "kind", "monitor", "label_weights", "sides")),
)
NOTE = (
    "Trained on the row, tested on the column: AUROC (95 % interval, clustered by patient) and its cases; * other "
    "patients of the same data set have trained it"
)


class Cell(NamedTuple):
    """Runs of one recipe, trained on some data sets and tested on one."""

    recipe: str
    trained: str
    tested: str
    level: str
    label: str
    own: bool  # whether it is one of those that it was trained on
    n: int
    patients: int
    positives: int
    auroc: float
    auroc_low: float
    auroc_high: float


@dataclass
class Transfer:
    """Every combination of training and test data among the runs of a comparison."""

    cells: list[Cell]

    def table(self) -> pd.DataFrame:
        """A row per cell, as ``transfer.csv`` has it."""
        return pd.DataFrame(self.cells, columns=Cell._fields)

    def sheets(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Title, header and lines of a matrix for each recipe, level and label."""
        for key in dict.fromkeys((cell.recipe, cell.level, cell.label) for cell in self.cells):
            cells = [cell for cell in self.cells if (cell.recipe, cell.level, cell.label) == key]
            columns = list(dict.fromkeys(cell.tested for cell in cells))
            lines = []
            for trained in dict.fromkeys(cell.trained for cell in cells):
                texts = {cell.tested: _text(cell) for cell in cells if cell.trained == trained}
                lines.append([trained, *(texts.get(name, "") for name in columns)])
            recipe, level, label = key
            yield ", ".join(filter(None, (recipe, UNITS[level], label))), ["trained on", *columns], lines

    def lines(self) -> list[str]:
        """For a terminal: the matrices in aligned columns."""
        found = []
        for title, header, rows in self.sheets():
            widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
            shown = ["  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) for cells in (header, *rows)]
            found += ["", f"transfer, {title}", *(line.rstrip() for line in shown)]
        return [*found, f"({NOTE})"]


def _text(cell: Cell) -> str:
    mark = "*" if cell.own else ""
    whose = f" of {count(cell.patients, 'patient')}" if cell.patients == cell.patients else ""
    return f"{interval_text(cell._asdict(), 'auroc')}{mark}, n = {cell.n}{whose}"


def study_transfer(entries: Sequence[Entry]) -> Transfer | None:
    """The matrix of some groups of runs; None where each was tested on data that it was trained on.

    Parts of ``data=multi`` are told by the names they have there, other data sets by their own. Cases of several parts
    are judged part by part. Groups that differ in more than their data stand in matrices of their own.

    Args:
        entries: Groups of runs with their cases.
    """
    end = primary(endpoints(entries))
    cells: list[Cell] = []
    for entry in entries:
        told = {key: value for key, value in entry.group.values.items() if not covers(_OF_DATA, key)}
        recipe = ", ".join(f"{short_key(key)}={show(value)}" for key, value in told.items())
        for level, cases in entry.cases.items():
            if level not in (entry.first_level, end.level):
                continue
            trained = sorted(set().union(*map(trained_on, cases.used)))
            for tested, units in _parts(cases).items():
                row = _row(entry, level, cases.restricted(units))
                numbers = (row[key] for key in ("n", "patients", "positives", "auroc", "auroc_low", "auroc_high"))
                own = tested in trained
                cell = Cell(recipe, " + ".join(trained), tested, level, row["label"], own, *numbers)
                taken = sum(
                    (c.recipe, c.trained.partition(" (")[0], c.tested, c.level) == (recipe, cell.trained, tested, level)
                    for c in cells
                )
                cells.append(cell._replace(trained=f"{cell.trained} ({taken + 1})") if taken else cell)
    return None if all(cell.own for cell in cells) else Transfer(cells)


def _row(entry: Entry, level: str, cases: Pooled) -> dict[str, Any]:
    """The row of label `any` where there is one, else over all labels."""
    rows = metric_rows(entry.group, entry.name, level, cases)
    return next((row for row in rows if row["label"] == "any"), rows[0])


def trained_on(run: ComparedRun) -> list[str]:
    """Names of the data sets that have trained a run, or the run that an evaluation has applied."""
    made = run.provenance
    if made.get("evaluated") == "external":
        made = made.get("run") or {}
    data = made.get("data") or {}
    parts = (data.get("parts") or {}).get("train")
    return [str(name) for name in parts] if parts else [str(data.get("source", "?"))]


def _parts(cases: Pooled) -> dict[str, np.ndarray[Any, Any]]:
    """Name of each data set that was tested -> its cases; those of a part of several have its name in front."""
    data = cases.used[0].provenance.get("data") or {}
    if data.get("source") != "multi":
        return {_tested_name(cases.used[0], str(data.get("source", "?"))): cases.unit}
    owner = np.array([str(name).partition("/")[0] for name in cases.patient], dtype=object)
    return {name: cases.unit[owner == name] for name in sorted(set(owner.tolist()))}


def _tested_name(run: ComparedRun, source: str) -> str:
    """What a data set is called that a run was tested on: as in training where it is the same, else by its source."""
    made = run.provenance
    if made.get("evaluated") != "external":
        return source
    theirs, content = made.get("run") or {}, (made.get("checksums") or {}).get("manifest")
    data = theirs.get("data") or {}
    if part := (data.get("contents") or {}).get(content):
        return str(part).rstrip("/") or source
    other = (theirs.get("checksums") or {}).get("manifest") != content
    # Two tables, or folders, are two data sets.
    return f"{source}, other files" if other and source == data.get("source") in ("table", "dicom") else source
