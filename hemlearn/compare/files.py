"""The files of a comparison, and their way to Weights & Biases."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl

from hemlearn import __version__
from hemlearn.compare import material
from hemlearn.compare.cases import BASELINES
from hemlearn.compare.contrasts import ALL_PAIRS, KINDS, Contrast, Endpoint, best, endpoints, primary
from hemlearn.compare.decisions import cells as decision_cells
from hemlearn.compare.groups import ANY, Entry, Sheet, figure_text
from hemlearn.compare.material import BANDS, DRAWN, Panels, curves_at, drawn, metric_of
from hemlearn.compare.readers import POINTS
from hemlearn.compare.runs import Skipped
from hemlearn.compare.subgroups import NOTE
from hemlearn.compare.transfer import NOTE as TRANSFER
from hemlearn.compare.triage import triage_table
from hemlearn.evaluation.auroc import CONFIDENCE
from hemlearn.evaluation.decision import Rate
from hemlearn.reports.figures import (
    COLOURS,
    Curve,
    confusion_counts,
    decision_figure,
    pr_figure,
    reliability_figure,
    roc_figure,
)
from hemlearn.reports.tables import UNDEFINED, UNITS, interval_text, markdown, metric_name, render
from hemlearn.reports.triage import TRIAGE_HEADER, triage_cells
from hemlearn.util.files import save_figure, write_text, writing
from hemlearn.util.privacy import Pseudonyms
from hemlearn.util.tables import csv_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from hemlearn.compare.comparison import Comparison

logger = logging.getLogger(__name__)
_TABLES = ("compare.csv", "tests.csv", "failures.csv", "compare.md", "compare.tex", "compare.json", "compare.html")
# Written where they are asked for, or where there is something of the kind.
ASKED = (*("readers.csv", "readers.png", "subgroups.csv", "subgroups.png"), *("transfer.csv", "triage.csv", "claim.md"))
FILES = (*_TABLES, "roc.png", "pr.png", "calibration.png", "decision.png")
_PACKAGE = "hemlearn.compare"
_ALWAYS = ("leak", "published", "reader", "readers", "modalities")  # tests printed at every endpoint
_TEX = {char: f"\\{char}" for char in "{}$&#%_"} | {"\n": " ", "\t": " ", '"': "''", "–": "--", "—": "---"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "…": r"\ldots{}"}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_TEX |= {"±": r"$\pm$", "·": r"$\cdot$", "×": r"$\times$", "µ": r"$\mu$"}


def write(result: Comparison, folder: Path, *, show_patient: bool = False, report: Sequence[str] = ()) -> list[Path]:
    """Write every file of a comparison; cases have pseudonyms unless ``show_patient``.

    ``compare.csv`` (all metrics, levels, labels), ``tests.csv`` (every test), ``failures.csv`` (most confident errors),
    ``compare.md``, ``compare.tex``, ``compare.json`` (everything, for programs), ``compare.html`` (one page, nothing
    outside it), ``roc.png``, ``pr.png`` and ``calibration.png`` (best groups, with pointwise bands); where there are
    readers ``readers.csv`` and ``readers.png`` (their points on the curves), of subgroups ``subgroups.csv`` and
    ``subgroups.png`` (a forest plot); where runs met data that they were not trained on ``transfer.csv``; of runs that
    were asked for triage ``triage.csv``; of ``report=claim`` ``claim.md``.
    """
    curves = curves_at(drawn(result.entries), result.baseline)
    beside = {} if result.readers is None else result.readers.panels(result.entries, result.baseline)
    figures = _figures(result, curves, beside)
    names = Pseudonyms(folder, show=show_patient)
    for entry in result.entries:
        for level, cases in entry.cases.items():
            names.learn(cases.patient, "patient")
            names.learn(cases.unit, level)
    failures = material.failure_table(result.entries)
    for own in result.entries:
        rows = (failures["group"] == own.name).to_numpy()
        failures.loc[rows, "case"] = names.column(failures.loc[rows, "case"], own.first_level)
    failures["patient"] = names.column(failures["patient"], "patient")
    result = copy(result)
    result.notes = [names.text(note) for note in result.notes]
    result.skipped = [Skipped(*map(names.text, item)) for item in result.skipped]
    view = {
        "result": result,
        "transfer_note": TRANSFER,
        "tests": sorted((c for c in result.contrasts if c.made), key=lambda c: c.p_holm),
        "audits": material.audits_of(result.entries),
        "decisions": result.decisions,
        "decision_cells": decision_cells,
        "triage": result.triage,
        "triage_header": TRIAGE_HEADER,
        "triage_cells": triage_cells,
        "costs": material.cost_table(result.entries).to_dict("records"),
        "kinds": KINDS,
        "kind_name": lambda kind: "baseline model" if kind == "null" else kind,
    }
    told = {**names.tree(plain(as_dict(**view))), "show_patient": show_patient}
    content = json.dumps(told, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    main = primary(endpoints(result.entries))
    printed = [c for c in view["tests"] if c.kind in _ALWAYS or Endpoint(c.level, c.label) == main]
    texts = {
        "compare.csv": _csv(result.table, names),
        "tests.csv": _csv(result.tests, names),
        "failures.csv": _csv(failures, names),
        "compare.md": render(_PACKAGE, "compare.md.j2", markdown, **view).rstrip() + "\n",
        "compare.tex": render(_PACKAGE, "compare.tex.j2", tex, **view | {"tests": printed}),
        "compare.html": page(curves=curves, beside=beside, failures=failures, **view),
    }
    if result.subgroups is not None:
        texts["subgroups.csv"] = _csv(result.subgroups.table(), names)
        figures["subgroups.png"] = result.subgroups.figure()
    if result.transfer is not None:
        texts["transfer.csv"] = _csv(result.transfer.table(), names)
    if result.readers is not None:
        texts["readers.csv"] = _csv(result.readers.table(), names)
    if result.triage:
        texts["triage.csv"] = _csv(triage_table(result.triage), names)
    if "claim" in report:
        told_of = re.compile("LEAKY|incomplete|.*not signed by you")
        lacks = [text for text in result.notes if told_of.match(text)]
        lacks += [f"{item.folder}: {item.reason}" for item in result.skipped]
        texts["claim.md"] = material.claim(
            result.entries, result.contrasts, lacks, names, result.subgroups, triage=result.triage
        )
    with writing(folder, "give a writable folder with out=DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "compare.json", content)  # first: it says whose the others are
        for name, text in texts.items():
            write_text(folder / name, text)
        for name, figure in figures.items():
            save_figure(figure, folder / name)
        for name in ASKED:  # of an earlier call
            if name not in (*texts, *figures):
                (folder / name).unlink(missing_ok=True)
    return [folder / name for name in (*FILES, *ASKED) if name in FILES or (folder / name).exists()]


def tex(text: object) -> str:
    r"""Text as LaTeX prints it; what pdfLaTeX's fonts lack is written as its code point.

    >>> print(tex("a_b & 50 % 頭"))
    a\_b \& 50 \% U+982D
    """
    return "".join(_TEX.get(char) or _plain_tex(char) for char in str(text))


def _plain_tex(char: str) -> str:
    if char.isascii():
        return char if char.isprintable() else "?"
    return char if "À" <= char <= "ÿ" else f"U+{ord(char):04X}"


def _csv(table: pd.DataFrame, names: Pseudonyms) -> str:
    """Six decimals, but p values with as many digits as they need."""
    out = table.copy()
    for name in out.columns:
        if name in ("p", "p_holm") or str(name).endswith(("_p", "_p_holm")):
            out[name] = [f"{value:.6g}" if value == value else "" for value in out[name]]
    for name in out.columns:
        out[name] = [names.text(item) if isinstance(item, str) else item for item in out[name]]
    return csv_text(out, decimals="%.6f")


def _figures(result: Comparison, curves: Panels, beside: Panels) -> dict[str, Any]:
    note = "dots: calls of all runs, each at its own threshold"
    if any(curve.roc_band is not None for panel in curves.values() for curve in panel):
        note += "\nshaded: pointwise 95 % band by resampling patients"
        if any(len(panel) > BANDS for panel in curves.values()):
            note += ", of the best group" + (" and the baseline" if result.baseline else "")
    if result.groups > DRAWN:
        note += f"\n{DRAWN} of {result.groups} groups, those of highest AUROC"
    ap, ece = (metric_of(curves, result.entries, name) for name in ("ap", "ece"))
    calibration = "bars: 95 % intervals of the observed frequency, clustered by patient; ten bins of equal mass"
    more = {"readers.png": roc_figure(beside, title="readers beside the model", note=POINTS)} if beside else {}
    return more | {
        "roc.png": roc_figure(curves, title="test, pooled", note=note),
        "pr.png": pr_figure(ap, title="test, pooled", note=note.replace("dots: ", "dotted: prevalence; dots: ")),
        "calibration.png": reliability_figure(ece, title="test, pooled", note=calibration),
        "decision.png": decision_figure(ece, title="test, pooled", note=_WORTH),
    }


# --- Everything a comparison found, for programs.


def as_dict(
    result: Comparison,
    audits: Any,
    costs: list[dict[str, Any]],
    decisions: list[dict[str, Any]],
    triage: list[dict[str, Any]],
    **_: Any,
) -> dict[str, Any]:
    """Plain values (NaN still NaN, see :func:`plain`)."""
    head = result.headline
    return {
        "version": __version__,
        "confidence": CONFIDENCE,
        "headline": asdict(head),
        "keys": result.keys,
        "groups": [_group(entry) for entry in result.entries],
        "baseline": result.baseline.name if result.baseline else None,
        "table": result.table.to_dict("records"),
        "tests": [asdict(contrast) for contrast in result.contrasts],
        "published": [
            {"study": figure.study, "metric": figure.metric, "value": figure.value}
            | figure.interval._asdict()
            | {"x": figure.x, "n": figure.n, "note": figure.note}
            | {key: row[key] for key in ("group", "level", "label")}
            | {"ours": row[figure.metric], "test": asdict(contrast)}
            for figure, row, contrast in result.published
        ],
        "readers": None if result.readers is None else result.readers.as_dict(),
        "subgroups": None if result.subgroups is None else result.subgroups.as_dict(),
        "transfer": None if result.transfer is None else result.transfer.table().to_dict("records"),
        "audits": {key: value for key, value in vars(audits).items() if key != "said"}
        | {"verdicts": [{"text": t, "runs": n} for t, n in audits.verdicts]},
        "decisions": [{k: v._asdict() if isinstance(v, Rate) else v for k, v in row.items()} for row in decisions],
        "triage": triage,
        "cost": costs,
        "notes": result.notes,
        "skipped": [item._asdict() for item in result.skipped],
    }


def _group(entry: Entry) -> dict[str, Any]:
    group, runs = entry.group, [run.hash for run in entry.group.runs]
    found = {"name": entry.name, "settings": group.values, "kind": group.kind, "labels": group.labels}
    counts = {level: _confusion(entry, level) for level in entry.cases}
    return found | {"leaky": group.leaky, "runs": runs, "confusion": counts}


def _confusion(entry: Entry, level: str) -> dict[str, Any]:
    cases = entry.cases[level]
    return confusion_counts(cases.y, cases.decision, entry.group.labels, entry.group.kind)


def plain(value: Any) -> Any:
    """The value in types that JSON knows; what is undefined becomes null.

    >>> plain({"a": float("nan"), "b": (1, True)})
    {'a': None, 'b': [1, True]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


# --- The page: nothing outside itself, no script, no font, no picture, no request.


LISTED = 80  # rows of one table on the page; the CSV files have all
_FAILURES = 8  # errors shown per label and side
_CURVES = (
    ("auroc", roc_figure, "ROC curves"),
    ("ap", pr_figure, "Precision-recall curves"),
    ("ece", reliability_figure, "Calibration"),
    ("ece", decision_figure, "Decision curves"),
)


_WORTH = "dotted: treat all; 0: treat none; probabilities are assumed to be calibrated"


class Block(NamedTuple):
    """Tests of one endpoint under a title."""

    title: str
    method: str
    covers: str
    contrasts: list[Contrast]


def page(result: Comparison, curves: Panels, beside: Panels, failures: pd.DataFrame, **view: Any) -> str:
    """The whole page."""
    shown = drawn(result.entries)
    colours = {entry.name: COLOURS[i % len(COLOURS)] for i, entry in enumerate(shown)}
    letters = [chr(ord("A") + i) if i < 26 else f"G{i + 1}" for i in range(len(result.entries))]
    names = [entry.name for entry in result.entries]
    keys = {name: (letter, colours.get(name)) for letter, name in zip(letters, names, strict=True)}
    open_tests, folded_tests = _tests(result)
    pairs = [c for c in result.contrasts if c.kind in ("paired", "unpaired")]
    blind = [c for c in result.contrasts if c.kind == "null" and c.made]
    return render(
        "hemlearn.compare",
        "compare.html.j2",
        version=__version__,
        title="Comparison: " + (", ".join(key.removesuffix(".name") for key in result.keys) or "one group"),
        keys=keys,
        sheets=[_short(sheet, result.entries) for sheet in result.sheets()],
        open_tests=open_tests,
        folded_tests=folded_tests,
        pairs=pairs,
        refused=list(dict.fromkeys((c.refused, c.first, c.second) for c in pairs if c.refused)),
        matrix=lambda contrasts: _matrix(contrasts, result.entries),
        ordered=lambda contrasts: sorted(contrasts, key=lambda c: (not c.made, c.p_holm if c.made else 0.0))[:LISTED],
        of_kind=lambda kind: [c for c in result.contrasts if c.kind == kind],
        against_baselines=[[c for c in blind if _is_main(result, c) is main] for main in (True, False)],
        entry={entry.name: entry for entry in result.entries},
        drawn=shown,
        figures=_level_figures(result, shown, curves, keys),
        reader_figures=[
            (f"ROC curve and readers, {label}", _picture(roc_figure({label: _lettered(own, keys)})))
            for label, own in beside.items()
        ],
        reader_note=POINTS,
        subgroup_figures=[(c, _picture(f)) for c, f in result.subgroups.pictures()] if result.subgroups else [],
        subgroup_note=NOTE,
        labels=_labels(result),
        label_cells=_label_cells,
        confusions=[(entry, entry.first[0], _confusion(entry, entry.first[0])) for entry in result.entries[:ALL_PAIRS]],
        best=best(result.entries).name,
        failures=_failures(failures, best(result.entries).name),
        blind=tuple(BASELINES),
        all_pairs=ALL_PAIRS,
        listed=LISTED,
        per_side=_FAILURES,
        result=result,
        **view,
    )


def _is_main(result: Comparison, contrast: Contrast) -> bool:
    """Whether a comparison is made at the endpoint of the headline."""
    entries = [entry for entry in result.entries if entry.name in (contrast.first, contrast.second)]
    return Endpoint(contrast.level, contrast.label) == primary(endpoints(entries))


def _short(sheet: Sheet, entries: Sequence[Entry]) -> Sheet:
    """The table without the groups that have no tests, where there are thousands: they do not belong on a page."""
    if len(sheet.lines) <= len(entries) * 4:
        return sheet
    names = {entry.name for entry in entries}
    kept = [i for i, row in enumerate(sheet.rows) if row["group"] in names or row["source"] in BASELINES]
    return sheet._replace(lines=[sheet.lines[i] for i in kept], rows=[sheet.rows[i] for i in kept])


def _tests(result: Comparison) -> tuple[list[Block], list[Block]]:
    """The paired tests at the endpoint of the headline, and those at others with the tests over folds and seeds."""
    several = any(len(entry.group.labels) > 1 for entry in result.entries)
    blocks: dict[tuple[str, str, str], list[Contrast]] = {}
    for c in result.contrasts:
        if c.kind in ("paired", "unpaired"):
            blocks.setdefault((c.level, c.label, c.metric), []).append(c)
        elif c.kind == "resampled" and (c.made or c.refused):
            blocks.setdefault((c.level, "", ""), []).append(c)
    shown, folded, again = [list[Block]() for _ in range(3)]
    for (level, label, metric), own in blocks.items():
        where = Endpoint(level, label)
        if not metric:
            title = f"Training again: AUROC of the runs themselves, {where.name()}"
            again.append(Block(title, "", "; ".join(dict.fromkeys(c.covers for c in own if c.covers)), own))
        elif any(c.made for c in own):
            method = "; ".join(dict.fromkeys(c.method for c in own if c.method))
            block = Block(f"{metric_name(metric)}, {where.name(several)}", method, "", own)
            (shown if _is_main(result, own[0]) else folded).append(block)
    return shown, folded + again


def _matrix(contrasts: Sequence[Contrast], entries: Sequence[Entry]) -> dict[str, Any]:
    """Names of the groups, and the comparison of every ordered pair of them: row minus column."""
    found = {(c.first, c.second): c for c in contrasts}
    found |= {(c.first, c.second): c for c in contrasts if c.made}  # an unpaired test in the place of a refused one
    names = [entry.name for entry in entries if any(entry.name in pair for pair in found)]
    return {"names": names, "cells": {(c.second, c.first): c.turned() for c in found.values()} | found}


def _labels(result: Comparison) -> list[dict[Any, Any]]:
    """Rows of every label of every group at its first level."""
    entries = {entry.name: entry for entry in result.entries}
    rows = result.table[result.table["label"] != ""].to_dict("records")
    return [
        row
        for row in rows
        if row["level"] == entries.get(row["group"], result.entries[0]).first_level
        and (row["group"] in entries or row["source"] in BASELINES)
    ]


def _label_cells(row: dict[Any, Any]) -> list[str]:
    figures = [interval_text(row, metric) for metric in ("auroc", "sensitivity", "specificity")]
    figures += [figure_text(row, metric) for metric in ("ap", "brier", "ece")]
    blind = row["source"] in BASELINES
    cells = ["" if blind and text == UNDEFINED else text for text in figures]
    return [row["label"], str(row["n"]), str(row["positives"]), *cells]


def _failures(failures: pd.DataFrame, name: str) -> list[list[dict[Any, Any]]]:
    """The most confident errors of one group: of label ``any`` and of the others; in one list where none is ``any``."""
    own = failures[(failures["group"] == name) & (failures["rank"] <= _FAILURES)].to_dict("records")
    main = [row for row in own if row["label"] == ANY]
    return [main or own, [row for row in own if row["label"] != ANY] if main else []]


# --- Curves: on patients where they are judged, then at the first level; of several labels all but `any` are folded.


def _level_figures(
    result: Comparison, shown: Sequence[Entry], curves: Panels, keys: dict[str, tuple[str, str | None]]
) -> list[dict[str, Any]]:
    """A title, the open figures and the folded ones of each level."""
    first = shown[0].first[0]
    levels: list[tuple[str, Panels, str | None]] = [(first, curves, None)]
    if first != "patient" and any("patient" in entry.cases for entry in shown):
        levels.insert(0, ("patient", curves_at(shown, result.baseline, "patient", brief=True), "patient"))
    made = []
    for level, panels, at in levels:
        main = [ANY] if ANY in panels else list(panels) if len(panels) == 1 else list(panels)[:1]
        pictures: dict[str, list[tuple[str, str]]] = {label: [] for label in panels}
        for metric, draw, title in _CURVES:
            chosen = panels if metric == "auroc" else metric_of(panels, result.entries, metric, at)
            for label, own in pictures.items():
                lines = _lettered(chosen[label], keys)
                if lines:
                    own.append((f"{title}, {UNITS[level]}, {label}", _picture(draw({label: lines}))))
        folded = [name for name in panels if name not in main]
        shown_first, rest = ([p for name in names for p in pictures[name]] for names in (main, folded))
        title = UNITS[level].capitalize()
        made.append({"title": title, "main": shown_first, "labels": len(folded), "folded": rest})
    return made


def _lettered(curves: Sequence[Curve], keys: dict[str, tuple[str, str | None]]) -> list[Curve]:
    """Curves of groups by their letters; those of readers keep their names."""
    return [curve if curve.marker else replace(curve, name=keys[curve.name][0]) for curve in curves]


def _picture(figure: Figure) -> str:
    """A figure as an SVG in a data address; glyphs are paths, so that no font is needed."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "hemlearn"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
