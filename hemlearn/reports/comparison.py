"""The result of a comparison, and how it is printed and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hemlearn.errors import RunError
from hemlearn.evaluation.scoring import WEIGHTED
from hemlearn.reports.pooling import PER_RUN
from hemlearn.reports.runs import Skipped
from hemlearn.runs import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from hemlearn.reports.figures import Curve

INTERVALS = ("accuracy", "auroc", WEIGHTED, "sensitivity", "specificity")  # of the printed table, with intervals
ANY = "any"  # the label of any hemorrhage, whose AUROC stands beside the mean over labels
POSITION_ONLY = "position only"
_TITLES = {"auroc": "AUROC", WEIGHTED: "weighted log loss"}
DRAWN = 8  # groups in the figure: as many as the palette tells apart
_PERCENT = ("accuracy", "sensitivity", "specificity")
_SHOWN = 50  # rows printed; the files hold all
_LISTED = 10  # skipped runs printed by name
_NEVER = "undefined"


@dataclass
class Comparison:
    """Result of :func:`hemlearn.reports.compare.compare`.

    Attributes:
        table: One row per group, level and label (label ``""``: over all labels), deterministic in order and content.
        keys: The differing keys, columns of ``table``.
        notes: What a reader must know to read the table rightly.
        skipped: Run folders that were not used, with the reason.
        groups: Number of groups.
        runs: Number of runs used.
        curves: Panel title -> ROC curves of the best groups.
        files: Files written.
    """

    table: pd.DataFrame
    keys: list[str]
    notes: list[str]
    skipped: list[Skipped]
    groups: int
    runs: int
    curves: dict[str, list[Curve]]
    files: list[Path]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the printed table, as text."""
        rows = _merged(self.table[self.table["label"] == ""])
        levels = rows["level"].nunique() > 1
        metrics = [metric for metric in INTERVALS if metric != WEIGHTED or rows[metric].notna().any()]
        titles = dict(_TITLES)
        if "auroc_any" in rows:
            metrics.insert(metrics.index("auroc"), "auroc_any")
            titles |= {"auroc_any": f"AUROC {ANY}", "auroc": "mean AUROC"}
        repeated = bool((rows["predictions_per_case"] > 1).any())
        header = [key.removesuffix(".name") for key in self.keys] or ["group"]
        header += ["level"] * levels + ["runs", "n"]
        header += [f"{titles.get(m, m)}{' %' if m in _PERCENT else ''}" for m in metrics]
        header += [f"{m} by run" for m in ("accuracy %", "AUROC")] if repeated else []
        lines = []
        for row in rows.to_dict("records"):
            blind = row["source"] == POSITION_ONLY
            line = [str(row[key]) for key in self.keys] or [POSITION_ONLY if blind else "all runs"]
            line += [str(row["level"])] * levels + [str(row["runs"]), str(row["n"])]
            line += ["" if blind and metric in _PERCENT else _interval_text(row, metric) for metric in metrics]
            line += ["" if blind else _spread_text(row, metric) for metric in PER_RUN] if repeated else []
            lines.append(line)
        return header, lines

    def _shown(self) -> tuple[list[str], list[list[str]], str | None]:
        """What is printed of :meth:`cells`: beyond 50 rows the best by AUROC, with a line that says so."""
        header, lines = self.cells()
        if len(lines) <= _SHOWN:
            return header, lines, None
        rows = _merged(self.table[self.table["label"] == ""])
        best = rows["auroc"].fillna(-1.0).sort_values(ascending=False, kind="stable").index[:_SHOWN]
        return header, [lines[i] for i in best], f"the {_SHOWN} rows of highest AUROC; {len(lines)} are in compare.csv"

    def rich_table(self) -> Table:
        """The table for a terminal."""
        from rich.table import Table

        header, lines, more = self._shown()
        table = Table(title=f"test, {self.runs} runs in {self.groups} groups, 95 % intervals", caption=more)
        first = header.index("runs")
        for index, name in enumerate(header):
            # Settings are folded, never cut: two long values may differ at their end only. Figures stay whole.
            if index < first:
                table.add_column(name, overflow="fold")
            else:
                table.add_column(name, justify="right", no_wrap=True)
        for line in lines:
            table.add_row(*line[:first], *(cell.replace(" (", "\n(") for cell in line[first:]))
        return table

    def text(self) -> str:
        """The table in aligned columns of plain text."""
        header, lines, more = self._shown()
        first = header.index("runs")
        widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
        rule = ["-" * width for width in widths]
        aligned = [
            "  ".join(
                c.ljust(w) if i < first else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in [header, rule, *lines]
        ]
        title = f"test, {self.runs} runs in {self.groups} groups, 95 % intervals"
        return "\n".join([title, *(line.rstrip() for line in aligned), *([more] if more else [])])

    def remarks(self) -> str:
        """Notes and skipped runs, a line each."""
        lines = [f"note: {note}" for note in self.notes]
        if self.skipped:
            lines.append(f"skipped: {len(self.skipped)} run folder{'s' * (len(self.skipped) > 1)}")
            lines += [f"  {item.folder}: {item.reason}" for item in self.skipped[:_LISTED]]
            if len(self.skipped) > _LISTED:
                lines.append(f"  ... and {len(self.skipped) - _LISTED} more, all in compare.md")
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table, notes and every skipped run as Markdown."""
        header, lines = self.cells()
        first = header.index("runs")
        rule = ["---" if index < first else "---:" for index in range(len(header))]
        out = ["# Comparison", "", f"{self.runs} runs in {self.groups} groups; test cases; 95 % intervals.", ""]
        out += ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in [header, rule, *lines]]
        if self.notes:
            out += ["", "## Notes", "", *(f"- {note}" for note in self.notes)]
        if self.skipped:
            out += ["", f"## Skipped ({len(self.skipped)})", ""]
            out += [f"- `{item.folder}`: {item.reason}" for item in self.skipped]
        return "\n".join(out) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write ``compare.csv``, ``compare.md`` and ``roc.png`` into ``folder``.

        Raises:
            RunError: The folder cannot be written.
        """
        from hemlearn.reports.figures import roc_figure

        note = "dots: calls of all runs, each at its own threshold"
        if self.groups > DRAWN:
            note += f"\n{DRAWN} of {self.groups} groups, those of highest AUROC"
        figure = roc_figure(self.curves, title="test, pooled", note=note)
        files = [folder / name for name in ("compare.csv", "compare.md", "roc.png")]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(files[0], self.table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
            write_text(files[1], self.markdown())
            figure.savefig(files[2])
        except OSError as error:
            raise RunError(f"{folder}: cannot be written ({error.strerror or error})",
                           remedy="give a writable folder with out=DIR") from error  # fmt: skip
        self.files = files
        return files


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


def _interval_text(row: Mapping[Any, Any], metric: str) -> str:
    value, low, high = row[metric], row[f"{metric}_low"], row[f"{metric}_high"]
    if value != value:
        return _NEVER
    scale, digits = (100, 1) if metric in _PERCENT else (1, 3)
    bounds = f" ({low * scale:.{digits}f}-{high * scale:.{digits}f})" if low == low else ""
    return f"{value * scale:.{digits}f}{bounds}"


def _spread_text(row: Mapping[Any, Any], metric: str) -> str:
    mean, sd = row[f"{metric}_run_mean"], row[f"{metric}_run_sd"]
    if mean != mean:
        return _NEVER
    scale, digits = (100, 1) if metric in _PERCENT else (1, 3)
    return f"{mean * scale:.{digits}f}" + (f" ± {sd * scale:.{digits}f}" if sd == sd else "")
