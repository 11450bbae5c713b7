"""The result of a comparison, and how its table is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hemlearn.compare.contrasts import Contrast, as_table
from hemlearn.compare.formats import PERCENT, UNDEFINED, interval_text
from hemlearn.compare.pooling import ANY, INTERVALS, NULLS, PER_RUN, Entry
from hemlearn.compare.runs import Skipped
from hemlearn.evaluation.scoring import WEIGHTED

if TYPE_CHECKING:
    from rich.table import Table

    from hemlearn.compare.comparison import Options
    from hemlearn.compare.reference import Study


_TITLES = {"auroc": "AUROC", WEIGHTED: "weighted log loss"}
_SHOWN = 50  # rows printed; the files hold all
_LISTED = 10  # skipped runs printed by name
POSITION_ONLY = next(iter(NULLS))


@dataclass
class Headline:
    """The sentences at the top of the page.

    Attributes:
        compared: What was compared.
        better: Whether one group is better than the others, on patients where they are judged.
        shortcut: Whether something that sees no pixel inside the head comes near.
        warnings: What forbids to read the rest at face value.
    """

    compared: str
    better: str
    shortcut: str
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a terminal, a line each."""
        return [
            *(f"WARNING: {text}" for text in self.warnings),
            f"compared: {self.compared}",
            f"better? {self.better}",
            f"shortcut? {self.shortcut}",
        ]


@dataclass
class Comparison:
    """Result of :func:`hemlearn.compare.comparison.compare`.

    Attributes:
        table: One row per group, level and label (label ``""``: over all labels), deterministic in order and content;
            the nulls below.
        keys: The differing keys, columns of ``table``.
        notes: What a reader must know to read the table rightly.
        skipped: Run folders that were not used, with the reason.
        groups: Number of groups.
        runs: Number of runs used.
        entries: The groups that have tests and figures, with their cases.
        contrasts: Every test, also refused ones.
        baseline: The group named as baseline, if one was.
        tested_against: The one group that the others were tested against; empty where every pair was tested.
        published: Published figures beside ours (see :func:`hemlearn.compare.reference.beside`).
        studies: The publications.
        leaky: Names of groups split by slice.
        seen: Names of groups whose starting weights had seen their test patients.
        synthetic: Names of groups on synthetic data.
        options: What was asked.
        files: Files written.
        headline: What was compared, whether one group is better, whether a shortcut could explain it, in plain words.
    """

    table: pd.DataFrame
    keys: list[str]
    notes: list[str]
    skipped: list[Skipped]
    groups: int
    runs: int
    entries: list[Entry]
    contrasts: list[Contrast]
    baseline: Entry | None = None
    tested_against: str = ""
    published: list[dict[str, Any]] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    leaky: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    synthetic: list[str] = field(default_factory=list)
    options: Options | None = None
    files: list[Path] = field(default_factory=list)
    headline: Headline = field(init=False)

    @property
    def tests(self) -> pd.DataFrame:
        """Every test as a row, in the columns of ``tests.csv``."""
        return as_table(self.contrasts)

    @property
    def tasks(self) -> list[str]:
        """Kinds and labels of the tasks compared; each has a table of its own."""
        return list(dict.fromkeys(self.table["task"]))

    def rows(self, task: str | None = None) -> pd.DataFrame:
        """The rows that are printed: over labels, series and patients in one where they are the same."""
        rows = self.table[self.table["label"] == ""]
        return _merged(rows if task is None else rows[rows["task"] == task])

    def cells(self, task: str | None = None) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a printed table, as text.

        Args:
            task: One of :attr:`tasks`; None takes all rows.
        """
        rows = self.rows(task)
        keys = [key for key in self.keys if len(self.tasks) == 1 or key not in ("task.labels", "task.kind")]
        levels = rows["level"].nunique() > 1
        metrics = [metric for metric in INTERVALS if metric != WEIGHTED or rows[metric].notna().any()]
        titles = dict(_TITLES)
        if "auroc_any" in rows and rows["auroc_any"].notna().any():
            metrics.insert(metrics.index("auroc"), "auroc_any")
            titles |= {"auroc_any": f"AUROC {ANY}", "auroc": "mean AUROC"}
        repeated = bool((rows["predictions_per_case"] > 1).any())
        header = [key.removesuffix(".name") for key in keys] or ["group"]
        header += ["level"] * levels + ["runs", "n"]
        header += [f"{titles.get(m, m)}{' %' if m in PERCENT else ''}" for m in metrics]
        header += [f"{m} by run" for m in ("accuracy %", "AUROC")] if repeated else []
        lines = []
        for row in rows.to_dict("records"):
            blind = row["source"] in NULLS
            line = [str(row[key]) for key in keys] or [row["source"] if blind else "all runs"]
            if blind:
                line[0] = row["source"]
            line += [str(row["level"])] * levels + [str(row["runs"]), str(row["n"])]
            line += ["" if blind and metric in PERCENT else interval_text(row, metric) for metric in metrics]
            line += ["" if blind else _spread_text(row, metric) for metric in PER_RUN] if repeated else []
            lines.append(line)
        return header, lines

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, header and rows of each task's table; one task needs no title."""
        tasks = self.tasks
        return [(task if len(tasks) > 1 else "", *self.cells(task)) for task in tasks]

    def _shown(self, task: str) -> tuple[list[str], list[list[str]], str | None]:
        """What is printed of :meth:`cells`: beyond 50 rows the best by AUROC, with a line that says so."""
        header, lines = self.cells(task)
        if len(lines) <= _SHOWN:
            return header, lines, None
        best = self.rows(task)["auroc"].fillna(-1.0).sort_values(ascending=False, kind="stable").index[:_SHOWN]
        return header, [lines[i] for i in best], f"the {_SHOWN} rows of highest AUROC; {len(lines)} are in compare.csv"

    @property
    def _title(self) -> str:
        return f"test, {self.runs} runs in {self.groups} groups, 95 % intervals"

    def rich_tables(self) -> list[Table]:
        """The tables for a terminal."""
        from rich.table import Table

        made = []
        for task in self.tasks:
            header, lines, more = self._shown(task)
            named = f"{self._title}\n{task}" if len(self.tasks) > 1 else self._title
            table = Table(title=named, caption=more)
            first = header.index("runs")
            for index, name in enumerate(header):
                # Settings are folded, never cut: two long values may differ at their end only. Figures stay whole.
                if index < first:
                    table.add_column(name, overflow="fold")
                else:
                    table.add_column(name, justify="right", no_wrap=True)
            for line in lines:
                table.add_row(*line[:first], *(cell.replace(" (", "\n(") for cell in line[first:]))
            made.append(table)
        return made

    def text(self) -> str:
        """The tables in aligned columns of plain text."""
        out = [self._title]
        for task in self.tasks:
            header, lines, more = self._shown(task)
            first = header.index("runs")
            widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
            rule = ["-" * width for width in widths]
            out += ["", task] if len(self.tasks) > 1 else []
            for line in [header, rule, *lines]:
                left = [cell.ljust(width) for cell, width in zip(line[:first], widths[:first], strict=True)]
                right = [cell.rjust(width) for cell, width in zip(line[first:], widths[first:], strict=True)]
                out.append("  ".join([*left, *right]).rstrip())
            out += [more] if more else []
        return "\n".join(out)

    def remarks(self) -> str:
        """The headline, notes and skipped runs, a line each."""
        lines = [*self.headline.lines(), *(f"note: {note}" for note in self.notes)]
        if self.skipped:
            lines.append(f"skipped: {len(self.skipped)} run folder{'s' * (len(self.skipped) > 1)}")
            lines += [f"  {item.folder}: {item.reason}" for item in self.skipped[:_LISTED]]
            if len(self.skipped) > _LISTED:
                lines.append(f"  ... and {len(self.skipped) - _LISTED} more, all in compare.md")
        return "\n".join(lines)


def _merged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row in place of two where series and patients are the same cases with the same figures."""
    kept: list[dict[Any, Any]] = []
    for row in rows.to_dict("records"):
        last = kept[-1] if kept else {}
        told = [name for name in row if name != "level"]
        if row["level"] == "patient" and last.get("level") == "series" and _same(last, row, told):
            kept[-1] = last | {"level": "series = patient"}
        else:
            kept.append(row)
    return pd.DataFrame(kept, columns=rows.columns)


def _same(first: Mapping[Any, Any], second: Mapping[Any, Any], names: Sequence[Any]) -> bool:
    return all(first[n] == second[n] or (first[n] != first[n] and second[n] != second[n]) for n in names)


def _spread_text(row: Mapping[Any, Any], metric: str) -> str:
    mean, sd = row[f"{metric}_run_mean"], row[f"{metric}_run_sd"]
    if mean != mean:
        return UNDEFINED
    scale, digits = (100, 1) if metric in PERCENT else (1, 3)
    return f"{mean * scale:.{digits}f}" + (f" ± {sd * scale:.{digits}f}" if sd == sd else "")
