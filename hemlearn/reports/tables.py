"""Numbers as text, templates, and the tables that commands print: a run's metrics, the report of ``hemlearn index``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from hemlearn.audits.baselines import BASELINES, different_levels, figure, person_of
from hemlearn.data.manifest import Manifest
from hemlearn.evaluation.auroc import NAN
from hemlearn.evaluation.scoring import METRICS, WEIGHTED
from hemlearn.evaluation.triage import asked_text
from hemlearn.util.console import on_terminal, print_table, tell
from hemlearn.util.errors import count

if TYPE_CHECKING:
    from jinja2 import Environment

# --- How numbers read in every file, on every page and on the console.


PERCENT = ("accuracy", "sensitivity", "specificity")
UNDEFINED = "undefined"
UNITS = {"slice": "slices", "series": "series", "patient": "patients"}
_NAMES = {
    **{"auroc": "AUROC", "ap": "average precision", "ece": "ECE", "f1": "F1", "brier": "Brier score"},
    "sensitivity_at_specificity": "sensitivity at the reader's specificity",
    **{"log_loss": "log loss", "weighted_log_loss": "weighted log loss"},
    "observed_minus_predicted": "observed minus predicted",
}


def value_text(value: float, low: float, high: float, metric: str) -> str:
    """A value with its interval, in the unit of its metric; NaN is undefined.

    >>> value_text(0.9534, 0.9211, 0.9758, "auroc"), value_text(0.5, float("nan"), float("nan"), "accuracy")
    ('0.953 (0.921-0.976)', '50.0')
    """
    if value != value:
        return UNDEFINED
    scale, digits = scale_of(metric)
    to = " to " if low < 0 else "-"  # -0.2 to 0.1, not -0.2-0.1
    bounds = f" ({low * scale:.{digits}f}{to}{high * scale:.{digits}f})" if low == low else ""
    return f"{value * scale:.{digits}f}{bounds}"


def scale_of(metric: str) -> tuple[int, int]:
    """Factor and decimals: rates are shown in percent."""
    return (100, 1) if metric.endswith(PERCENT) else (1, 3)


def interval_text(row: Mapping[Any, Any], metric: str) -> str:
    """The same for a row with columns ``auroc``, ``auroc_low`` and ``auroc_high``."""
    low, high = (row.get(f"{metric}_{side}", NAN) for side in ("low", "high"))
    return value_text(float(row[metric]), low, high, metric)


def format_entry(name: str, entry: Mapping[str, Any]) -> str:
    """The same for an entry of ``metrics.json``: ``value``, ``low`` and ``high``, of which each may be None."""
    value, low, high = (NAN if entry.get(key) is None else entry[key] for key in ("value", "low", "high"))
    return value_text(value, low, high, name)


def p_text(p: float) -> str:
    """``0.032``, ``<0.001``, ``undefined``."""
    if p != p:
        return UNDEFINED
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def signed(value: float, digits: int) -> str:
    """A number with its sign; 0 has none."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def metric_name(metric: str) -> str:
    """``AUROC`` for ``auroc``."""
    return _NAMES.get(metric, metric)


def in_people(text: str, person: str) -> str:
    """A text on patients, in the word for what its figures count; settings and paths in it stay.

    >>> in_people("split.by=patient: no test patients in runs/patients", "image")
    'split.by=patient: no test images in runs/patients'
    """
    return re.sub(r"(?<![\w./=-])patient(?=s?(?![\w/=]))", person, text)


def amount(number: float) -> str:
    """``3.45 M``, ``12.3 k`` or the number itself."""
    if number != number:
        return ""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def seconds(value: float) -> str:
    """``41 s``, ``12 min``, ``3.4 h``."""
    if value != value:
        return ""
    if value < 120:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


# --- Templates: every value is escaped on its way in, by the rule of its format.


_FILTERS: dict[str, Callable[..., str]] = {
    "entry": lambda entry, name: format_entry(name, entry),
    **{"interval": interval_text, "p": p_text, "metric": metric_name, "amount": amount, "seconds": seconds},
    "counted": count,
}
_LATEX = {"block": ("<%", "%>"), "variable": ("<<", ">>"), "comment": ("<#", "#>")}  # since braces are LaTeX's own


def markdown(value: object) -> str:
    r"""A value on one line with nothing in it that Markdown or HTML would read as markup.

    >>> print(markdown("<b>a|b</b> [x](y) `z`"), markdown("p <0.001"))
    &lt;b&gt;a\|b&lt;/b&gt; \[x\](y) \`z\` p <0.001
    """
    text = " ".join(str(value).split()).translate(_MARKDOWN)
    text = re.sub(r"&lt;(?=\d)", "<", text)  # no tag begins with a digit
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)  # within a word it is no emphasis


_MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {sign: f"\\{sign}" for sign in "\\`*|[]~"})


@cache
def _environment(package: str, escape: Callable[[Any], str] | None, latex: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    options: dict[str, Any] = {}
    if latex:
        for name, marks in _LATEX.items():
            options |= {f"{name}_start_string": marks[0], f"{name}_end_string": marks[1]}
    if escape is not None:
        options["finalize"] = lambda value: value if isinstance(value, Markup) else Markup(escape(value))
    options |= {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    made = Environment(loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, **options)
    made.filters |= _FILTERS
    return made


def render(package: str, template: str, escape: Callable[[Any], str] | None = None, **values: Any) -> str:
    """Fill a template of ``package``'s folder ``templates``."""
    latex = template.endswith(".tex.j2")
    return _environment(package, escape, latex).get_template(template).render(values)


# --- What the commands print when they are done: a run's metrics, and what they must be read beside.


def _table(title: str, columns: Sequence[str]) -> Table:
    out = Table(title=title) if on_terminal() else Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        out.add_column(escape(column), justify="right" if position else "left")
    return out


def levels_once(metrics: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Title, level and scores; levels that hold the same cases with the same scores share one title.

    >>> levels_once({"slice": {"n": 3}, "series": {"n": 1}, "patient": {"n": 1}})
    [('slice', 'slice', {'n': 3}), ('series = patient', 'series', {'n': 1})]
    """
    found: list[tuple[str, str, dict[str, Any]]] = []
    for level, scores in metrics.items():
        same = next((i for i, item in enumerate(found) if item[2] == scores), None)
        if same is None:
            found.append((level, level, scores))
        else:
            found[same] = (f"{found[same][0]} = {level}", found[same][1], scores)
    return found


def _triage(triage: Mapping[str, Any]) -> None:
    """What the answers of triage were worth on test patients, per label and level, and what was promised of them."""
    from hemlearn.reports.triage import TRIAGE, triage_once  # which has its figures from here

    told: dict[str, None] = {}
    out = _table("triage of test cases, %, 95 % interval", ("label", "level", *TRIAGE.values()))
    for level, label, cut, found in triage_once(triage):
        notes = [f"triage, {level}, {label}: {cut['note']}"] if cut["note"] else []
        told |= dict.fromkeys([f"triage: {asked_text(cut)}", *notes])
        if (cut["negative_below"], cut["positive_above"]) != (None, None):
            out.add_row(escape(label), level, *(format_entry("sensitivity", found[name]) for name in TRIAGE))
    if out.row_count:
        print_table(out)
    for text in told:
        tell(text)


def scores_text(metrics: Mapping[str, Any]) -> str:
    """Which levels have scores in the place of probabilities; "" where none has."""
    levels = [level for level in metrics.get("about", {}).get("scores", ()) if level in metrics.get("test", {})]
    if not levels:
        return ""
    told = f"{', '.join(levels)}: scores (put together from slices or series), which rank and are no probabilities"
    return f"{told}: no log loss, Brier score or ECE"


def print_run(folder: Path, metrics: dict[str, Any]) -> None:
    """The table at the end of ``hemlearn train``: test metrics with 95 % intervals, per level and label, and audits.

    Pretraining has none: its line says how to start from its weights.
    """
    if "pretraining" in metrics:
        tell(f"pretraining has ended; to start from its weights: backbone.weights={folder}")
        return
    audits = metrics.get("audits", {})
    position = metrics.get("nulls", {}).get("position", {}).get("test", {})
    blind = {f"position only: {name}": (position, name) for name in ("auroc", "log_loss", WEIGHTED)}
    others = [name for name in BASELINES if name != "position"]
    blind |= {f"{name} only: auroc": (audits.get(name, {}).get("test", {}), "auroc") for name in others}
    leaky = "LEAKY " if metrics.get("leaky", False) else ""
    print_table(_scores(f"{leaky}test, 95 % interval", metrics.get("test", {}), blind))
    if told := scores_text(metrics):
        tell(told)
    _triage(metrics.get("triage", {}))
    if position:
        tell("position only: a model that knows where in its series a slice lies, and sees no pixel")
    for text in audits.get("verdict", []):
        tell(f"audit: {text}")
    tell(f"run folder: {folder}")


def print_scores(title: str, metrics: Mapping[str, Any]) -> None:
    """The metrics of predictions whose labels are known (``test`` and ``about`` of ``metrics.json``)."""
    print_table(_scores(f"{title}, 95 % interval", metrics["test"], {}))
    if told := scores_text(metrics):
        tell(told)


def _scores(heading: str, test: Mapping[str, Any], more: Mapping[str, tuple[Mapping[str, Any], str]]) -> Table:
    """Metrics per level and label; ``more``: title of a further row -> its scores per level, and the metric."""
    columns: list[tuple[str, str, str | None]] = []  # title, level, label
    for index, (title, level, scores) in enumerate(levels_once(test)):
        columns.append((f"{title} (n={scores['accuracy']['n']})", level, None))
        if len(scores["labels"]) > 1 and index == 0:
            columns += [(label, level, label) for label in scores["labels"]]

    def cells(scores: Mapping[str, Any], metric: str) -> list[str]:
        own = [scores.get(level, {}) for _, level, _ in columns]
        own = [s.get("labels", {}).get(c[2], {}) if c[2] else s for s, c in zip(own, columns, strict=True)]
        return [format_entry(metric, entries[metric]) if metric in entries else "" for entries in own]

    rows = {name + (" %" if name in PERCENT else ""): cells(test, name) for name in (*METRICS, WEIGHTED)}
    rows |= {name: cells(scores, metric) for name, (scores, metric) in more.items()}
    table = _table(heading, ("metric", *(name for name, _, _ in columns)))
    for name, row in rows.items():
        if any(row):
            table.add_row(name, *row)
    return table


# --- The report of `hemlearn index`.


_ROWS_SHOWN = 20


def print_manifest(manifest: Manifest) -> None:
    """Print counts, labels, geometry, and what was skipped and why."""
    table, summary = manifest.table, manifest.summary()
    kind = "SYNTHETIC, " if manifest.synthetic else ""
    tell(f"{manifest.source} ({kind}{manifest.root})")
    tell(
        f"{count(summary['slices'], 'slice')}, {count(summary['series'], 'series')}, "
        + (f"{count(summary['patients'], 'patient')}, " if manifest.patients_known else "")
        + f"checksum {manifest.checksum[:16]}"
    )
    for note in manifest.notes:
        tell(f"note: {note}")
    if manifest.labels:
        _labels(manifest)
    else:
        tell("labels: none")
    sizes = table.groupby(["height", "width"]).size()
    tell(
        f"image sizes: {len(sizes)} different, height {table['height'].min()}-{table['height'].max()}, "
        f"width {table['width'].min()}-{table['width'].max()}"
    )
    if len(manifest.series):
        _geometry(manifest, summary["geometry"])
    _skipped(manifest)


def print_audits(audits: Mapping[str, Any], name: str) -> None:
    """Print duplicates, the split that would be made, the cross-validated baselines, and the verdict."""
    _duplicates(audits["pairs"], audits["duplicates"])
    if audits["split"].get("note"):
        tell(f"split {name}: cannot be made: {audits['split']['note']}")
    else:
        _split(audits, name)
    blind = {name: audits[name]["cv"] for name in BASELINES if audits.get(name, {}).get("cv")}
    for level in different_levels(next(iter(blind.values()), {})):
        _baselines({name: found[level] for name, found in blind.items()}, level)
    if audits.get("note"):
        tell(audits["note"])
    tell("verdict:")
    for text in audits["verdict"]:
        tell(f"  {text}")


def _duplicates(pairs: pd.DataFrame, found: Mapping[str, Any]) -> None:
    kept = ", each kept on one side of this split" if len(pairs) and found["straddling"] == 0 else ""
    tell(f"duplicates: {count(len(pairs), 'pair')} ({count(found['sought'], 'copy', 'copies')} sought){kept}")
    for pair in pairs.head(_ROWS_SHOWN).itertuples():
        tell(f"  {pair.kind}: {pair.slice_a} = {pair.slice_b} (similarity {pair.similarity:.4f})")
    _rest(len(pairs), "pairs")
    for a, b, label in found.get("opposite_labels", ()):
        tell(f"  OPPOSITE LABELS of one picture: {a} and {b} differ in {label}: one of them is wrong")


def _split(audits: Mapping[str, Any], name: str) -> None:
    mark = "LEAKY " if audits["split"]["leaky"] else ""
    labels = list(audits["labels"]["train"])
    columns = ("split", f"{person_of(audits['split'])}s", "slices", *labels)
    out = _table(f"{mark}split {name}, slices with each label", columns)
    for name, sizes in audits["split"]["parts"].items():
        found = audits["labels"][name]
        cells = [f"{found[c]['positive']} of {found[c]['positive'] + found[c]['negative']}" for c in labels]
        out.add_row(name, str(sizes["patients"]), str(sizes["slices"]), *cells)
    print_table(out)


def _baselines(blind: Mapping[str, Any], level: str) -> None:
    """AUROC of each baseline at one level, a row per label."""
    labels = next(iter(blind.values()))["labels"]
    n = max(entry["auroc"]["n"] for entry in labels.values())
    how = next(iter(labels.values()))["auroc"]["method"]
    out = _table(
        f"AUROC without seeing the brain, per {level} (n={n}), cross-validated by patient: mean and {how}",
        ("label", *(f"{name} only" for name in blind)),
    )
    for label in labels:
        out.add_row(escape(label), *(figure(found["labels"][label]["auroc"]) for found in blind.values()))
    if len(labels) > 1:
        out.add_row("(mean)", *(figure(found["auroc"]) for found in blind.values()))
    print_table(out)


def _labels(manifest: Manifest) -> None:
    table = manifest.table
    level = "" if manifest.label_level == "slice" else " (labels describe whole series)"
    people = ("positive patients",) if manifest.patients_known else ()
    columns = ("label", "positive slices", "negative", "unknown", "positive series", *people)
    out = _table(f"labels{level}", columns)
    for label in manifest.labels:
        values = table[label]
        hits = table[values == 1]
        counts = (len(hits), int((values == 0).sum()), int(values.isna().sum()))
        whose = [hits["series_id"].nunique(), hits["patient_id"].nunique()][: 1 + len(people)]
        out.add_row(escape(label), *map(str, (*counts, *whose)))
    print_table(out)


def _geometry(manifest: Manifest, kinds: dict[str, int]) -> None:
    """How series lie: all in figures, then those that are unusual in words."""
    series = manifest.series
    counts = series["kept"][series["kept"] > 0]
    tell("series:")
    if len(counts):
        tell(f"  slices {_spread(counts)}")
    steps = series[["spacing_mm", "spacing_min", "spacing_max"]].dropna()
    if len(steps):
        text = _spread(steps["spacing_mm"], 2, steps["spacing_min"].min(), steps["spacing_max"].max())
        tell(f"  spacing along the slice normal {text} mm")
    for column, name, digits in (("thickness_mm", "slice thickness", 2), ("pixel_mm", "pixel size", 3)):
        known = series[column].dropna()
        if len(known):
            tell(f"  {name} {_spread(known, digits)} mm")
    tilt = series["tilt_deg"].dropna()
    if len(tilt) and tilt.abs().max() > 0:
        tell(f"  gantry tilt {_spread(tilt, 1)} degrees")
    for column, name in (("manufacturer", "manufacturer"), ("kernel", "kernel")):
        values = series.loc[series[column] != "", column].value_counts()
        if len(values):
            more = f", and {len(values) - 8} more" if len(values) > 8 else ""
            listed = ", ".join(f"{value} ({number})" for value, number in values.head(8).items())
            tell(f"  {name}: {listed}{more}")
    odd = series[series["problems"] != ""]
    if odd.empty:
        tell("  all evenly spaced, upright and complete")
        return
    out = _table(f"unusual: {len(odd)} of {count(len(series), 'series')}", ("kind", "series"))
    for name, number in kinds.items():
        out.add_row(name, str(number))
    if kinds:
        print_table(out)
    # The rarest findings are shown first: a tilt that every series has is no news.
    shown = odd.assign(rank=[-_weight(row) for row in odd.to_dict("records")]).sort_values("rank", kind="stable")
    for row in shown.head(_ROWS_SHOWN).to_dict("records"):
        used = "" if row["kept"] == row["slices"] else f" ({row['kept']} used)"
        known = math.isnan(row["thickness_mm"]) or "slice thickness" in row["problems"]
        thick = "" if known else f", {row['thickness_mm']:g} mm thick"
        held = "" if row["slices"] == 1 else f"{count(row['slices'], 'slice')}{used}{thick}: "
        name = f"patient {row['patient_id']}"
        name += "" if row["series_id"] == row["patient_id"] else f", series {row['series_id']}"
        tell(f"  {name}: {held}{row['problems']}")
    _rest(len(odd), "series")


def _weight(row: dict[str, Any]) -> int:
    """How much a series calls for a look: slices lost, then order unknown, then uneven, then the rest."""
    uneven, unordered = row["gaps"] + row["overlaps"] > 0, row["missing_position"] > 0
    signs = (row["slices"] == 1, uneven, unordered, row["kept"] < row["slices"])
    return sum(2**place for place, sign in enumerate(signs) if sign)


def _spread(values: Any, digits: int = 0, lowest: float | None = None, highest: float | None = None) -> str:
    """``28`` where all are equal, else ``5.00 (median), 0.62 to 7.38``; the ends are those of ``values`` by default."""
    ends = (values.min() if lowest is None else lowest, values.max() if highest is None else highest)
    low, middle, high = (f"{value:.{digits}f}" for value in (ends[0], values.median(), ends[1]))
    return low if low == high else f"{middle} (median), {low} to {high}"


def _skipped(manifest: Manifest) -> None:
    skipped = manifest.skipped
    tell(f"skipped: {len(skipped)}")
    # Reasons read "kind: particulars"; the kinds are counted, the particulars listed.
    for reason, number in manifest.summary()["skipped"].items():
        tell(f"  {number} x {reason}")
    for row in skipped.head(_ROWS_SHOWN).itertuples():
        tell(f"  {row.item}: {row.reason}")
    _rest(len(skipped), "items")


def _rest(number: int, what: str) -> None:
    if number > _ROWS_SHOWN:
        tell(f"  ... and {number - _ROWS_SHOWN} more {what} (out=DIR writes all of them)")
