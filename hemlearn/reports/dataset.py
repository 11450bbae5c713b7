"""The report of ``hemlearn index``: what a data set holds, how its series lie, and what was left out."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hemlearn.console import on_terminal
from hemlearn.data.duplicates import duplicate_pairs
from hemlearn.data.manifest import Manifest
from hemlearn.data.remarks import count

_ROWS_SHOWN = 20
_PLAIN_WIDTH = 400


def print_manifest(manifest: Manifest, duplicates: str) -> None:
    """Print counts, labels, geometry, what was skipped and why, and duplicates.

    Args:
        manifest: The data set.
        duplicates: Which to look for: near, exact or none.
    """
    # A terminal has its own width; elsewhere lines are not cut or wrapped.
    console = Console() if on_terminal() else Console(width=_PLAIN_WIDTH, soft_wrap=True)
    table, summary = manifest.table, manifest.summary()
    kind = "SYNTHETIC, " if manifest.synthetic else ""
    _say(console, f"{manifest.source} ({kind}{manifest.root})")
    _say(console, f"{count(summary['slices'], 'slice')}, {count(summary['series'], 'series')}, "
                  f"{count(summary['patients'], 'patient')}, checksum {manifest.checksum[:16]}")  # fmt: skip
    for note in manifest.notes:
        _say(console, f"note: {note}")
    if manifest.labels:
        _labels(console, manifest)
    else:
        _say(console, "labels: none")
    sizes = table.groupby(["height", "width"]).size()
    _say(console, f"image sizes: {len(sizes)} different, height {table['height'].min()}-{table['height'].max()}, "
                  f"width {table['width'].min()}-{table['width'].max()}")  # fmt: skip
    if len(manifest.series):
        _geometry(console, manifest, summary["geometry"])
    _skipped(console, manifest)
    if duplicates != "none":
        pairs = duplicate_pairs(manifest, duplicates)
        kept = ", each kept on one side of every split" if len(pairs) else ""
        _say(console, f"duplicates: {len(pairs)} pairs{kept}")
        for pair in pairs.head(_ROWS_SHOWN).itertuples():
            _say(console, f"  {pair.kind}: {pair.slice_a} = {pair.slice_b} (similarity {pair.similarity:.4f})")
        _rest(console, len(pairs), "pairs")


def _labels(console: Console, manifest: Manifest) -> None:
    table = manifest.table
    level = "" if manifest.label_level == "slice" else " (labels describe whole series)"
    out = _table(f"labels{level}", ("label", "positive slices", "negative", "unknown", "positive series",
                                    "positive patients"))  # fmt: skip
    for label in manifest.labels:
        values = table[label]
        hits = table[values == 1]
        numbers = (len(hits), int((values == 0).sum()), int(values.isna().sum()), hits["series_id"].nunique(),
                   hits["patient_id"].nunique())  # fmt: skip
        out.add_row(escape(label), *map(str, numbers))
    console.print(out)


def _geometry(console: Console, manifest: Manifest, kinds: dict[str, int]) -> None:
    """How series lie: all in figures, then those that are unusual in words."""
    series = manifest.series
    counts = series["kept"][series["kept"] > 0]
    _say(console, "series:")
    if len(counts):
        _say(console, f"  slices {_spread(counts)}")
    steps = series[["spacing_mm", "spacing_min", "spacing_max"]].dropna()
    if len(steps):
        text = _spread(steps["spacing_mm"], 2, steps["spacing_min"].min(), steps["spacing_max"].max())
        _say(console, f"  spacing along the slice normal {text} mm")
    for column, name, digits in (("thickness_mm", "slice thickness", 2), ("pixel_mm", "pixel size", 3)):
        known = series[column].dropna()
        if len(known):
            _say(console, f"  {name} {_spread(known, digits)} mm")
    tilt = series["tilt_deg"].dropna()
    if len(tilt) and tilt.abs().max() > 0:
        _say(console, f"  gantry tilt {_spread(tilt, 1)} degrees")
    for column, name in (("manufacturer", "manufacturer"), ("kernel", "kernel")):
        values = series.loc[series[column] != "", column].value_counts()
        if len(values):
            more = f", and {len(values) - 8} more" if len(values) > 8 else ""
            listed = ", ".join(f"{value} ({number})" for value, number in values.head(8).items())
            _say(console, f"  {name}: {listed}{more}")
    odd = series[series["problems"] != ""]
    if odd.empty:
        _say(console, "  all evenly spaced, upright and complete")
        return
    out = _table(f"unusual: {len(odd)} of {count(len(series), 'series')}", ("kind", "series"))
    for name, number in kinds.items():
        out.add_row(name, str(number))
    console.print(out)
    # The rarest findings are shown first: a tilt that every series has is no news.
    shown = odd.assign(rank=[-_weight(row) for row in odd.to_dict("records")]).sort_values("rank", kind="stable")
    for row in shown.head(_ROWS_SHOWN).to_dict("records"):
        used = "" if row["kept"] == row["slices"] else f" ({row['kept']} used)"
        told = math.isnan(row["thickness_mm"]) or "slice thickness" in row["problems"]
        thick = "" if told else f", {row['thickness_mm']:g} mm thick"
        held = "" if row["slices"] == 1 else f"{count(row['slices'], 'slice')}{used}{thick}: "
        name = f"patient {row['patient_id']}"
        name += "" if row["series_id"] == row["patient_id"] else f", series {row['series_id']}"
        _say(console, f"  {name}: {held}{row['problems']}")
    _rest(console, len(odd), "series")


def _weight(row: dict[str, Any]) -> int:
    """How much a series calls for a look: slices lost, then order unknown, then uneven, then the rest."""
    signs = (row["slices"] == 1, row["gaps"] + row["overlaps"] > 0, row["missing_position"] > 0,
             row["kept"] < row["slices"])  # fmt: skip
    return sum(2**place for place in range(len(signs)) if signs[place])


def _spread(values: Any, digits: int = 0, lowest: float | None = None, highest: float | None = None) -> str:
    """``28`` where all are equal, else ``5.00 (median), 0.62 to 7.38``; the ends are those of ``values`` by default."""
    ends = (values.min() if lowest is None else lowest, values.max() if highest is None else highest)
    low, middle, high = (f"{value:.{digits}f}" for value in (ends[0], values.median(), ends[1]))
    return low if low == high else f"{middle} (median), {low} to {high}"


def _skipped(console: Console, manifest: Manifest) -> None:
    skipped = manifest.skipped
    _say(console, f"skipped: {len(skipped)}")
    # Reasons read "kind: particulars"; the kinds are counted, the particulars listed.
    for reason, number in manifest.summary()["skipped"].items():
        _say(console, f"  {number} x {reason}")
    for row in skipped.head(_ROWS_SHOWN).itertuples():
        _say(console, f"  {row.item}: {row.reason}")
    _rest(console, len(skipped), "items")


def _rest(console: Console, number: int, what: str) -> None:
    if number > _ROWS_SHOWN:
        _say(console, f"  ... and {number - _ROWS_SHOWN} more {what} (out=DIR writes all of them)")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    out = Table(title=title) if on_terminal() else Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        out.add_column(column, justify="right" if position else "left")
    return out
