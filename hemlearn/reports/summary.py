"""What the commands print when they are done: a run's metrics, a data set's manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hemlearn.console import on_terminal
from hemlearn.data.duplicates import duplicate_pairs
from hemlearn.data.manifest import Manifest
from hemlearn.evaluation.scoring import METRICS

_PERCENT = ("accuracy", "sensitivity", "specificity")
_ROWS_SHOWN = 20
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


def print_run(folder: Path, metrics: dict[str, Any]) -> None:
    """The table at the end of ``hemlearn train``: test metrics with 95 % intervals, per level and label."""
    console = _console()
    levels = metrics.get("test", {})
    counts = {level: metrics["about"]["counts"]["test"][level]["n"] for level in levels}
    # Levels that hold the same cases say the same; one column is enough.
    if counts["slice"] == counts["patient"]:
        shown = {"slice = patient": levels["slice"]}
    elif counts["series"] == counts["patient"]:
        shown = {level: levels[level] for level in ("slice", "patient")}
    else:
        shown = levels
    table = _table("test, 95 % interval")
    table.add_column("metric")
    columns: list[dict[str, Any]] = []
    for level, scores in shown.items():
        table.add_column(f"{level} (n={scores['accuracy']['n']})", justify="right")
        columns.append(scores)
        if len(scores["labels"]) > 1 and level.startswith("slice"):
            for label, entries in scores["labels"].items():
                table.add_column(label, justify="right")
                columns.append(entries)
    for name in METRICS:
        unit = " %" if name in _PERCENT else ""
        table.add_row(name + unit, *(format_entry(name, column[name]) for column in columns))
    console.print(table)
    console.print(f"run folder: {folder}", soft_wrap=True)


def print_manifest(manifest: Manifest, duplicates: str) -> None:
    """The report of ``hemlearn index``: counts, what was skipped and why, duplicates."""
    console = _console()
    table = manifest.table
    kind = "SYNTHETIC, " if manifest.synthetic else ""
    console.print(f"{manifest.source} ({kind}{manifest.root})", soft_wrap=True)
    series, patients = table["series_id"].nunique(), table["patient_id"].nunique()
    console.print(f"{len(table)} slices, {series} series, {patients} patients, checksum {manifest.checksum[:16]}",
                  soft_wrap=True)  # fmt: skip
    counts = _table("labels")
    for column in ("label", "positive slices", "negative", "unknown", "positive patients"):
        counts.add_column(column, justify="left" if column == "label" else "right")
    for label in manifest.labels:
        values = table[label]
        people = table.loc[values == 1, "patient_id"].nunique()
        numbers = (int((values == 1).sum()), int((values == 0).sum()), int(values.isna().sum()), people)
        counts.add_row(label, *map(str, numbers))
    console.print(counts)
    sizes = table.groupby(["height", "width"]).size()
    console.print(f"image sizes: {len(sizes)} different, height {table['height'].min()}-{table['height'].max()}, "
                  f"width {table['width'].min()}-{table['width'].max()}")  # fmt: skip
    _print_skipped(console, manifest)
    if duplicates != "none":
        pairs = duplicate_pairs(manifest, duplicates)
        kept = ", each kept on one side of every split" if len(pairs) else ""
        console.print(f"duplicates: {len(pairs)} pairs{kept}")
        for pair in pairs.head(_ROWS_SHOWN).itertuples():
            console.print(f"  {pair.kind}: {pair.slice_a} = {pair.slice_b} (similarity {pair.similarity:.4f})")
        _print_rest(console, len(pairs))


def _print_skipped(console: Console, manifest: Manifest) -> None:
    skipped = manifest.skipped
    console.print(f"skipped: {len(skipped)}")
    for reason, count in skipped["reason"].value_counts().items():
        console.print(f"  {count} x {reason}", markup=False, soft_wrap=True)
    for row in skipped.head(_ROWS_SHOWN).itertuples():
        console.print(f"  {row.item}: {row.reason}", markup=False, soft_wrap=True)
    _print_rest(console, len(skipped))


def _print_rest(console: Console, count: int) -> None:
    if count > _ROWS_SHOWN:
        console.print(f"  ... and {count - _ROWS_SHOWN} more (out=DIR writes all of them)")
