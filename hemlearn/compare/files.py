"""The files of a comparison, and their way to Weights & Biases."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn import __version__
from hemlearn.compare import material
from hemlearn.compare.contrasts import KINDS, Endpoint, endpoints, primary
from hemlearn.compare.decisions import cells as decision_cells
from hemlearn.compare.groups import Entry
from hemlearn.compare.material import BANDS, DRAWN, Panels, curves_at, drawn, metric_of
from hemlearn.compare.page import Pictures, page
from hemlearn.compare.readers import POINTS
from hemlearn.compare.runs import Skipped
from hemlearn.compare.transfer import NOTE as TRANSFER
from hemlearn.compare.triage import triage_table
from hemlearn.evaluation.auroc import CONFIDENCE
from hemlearn.evaluation.decision import Rate
from hemlearn.reports.figures import decision_figure, pr_figure, reliability_figure, roc_figure
from hemlearn.reports.tables import markdown, render
from hemlearn.reports.triage import TRIAGE_HEADER, triage_cells
from hemlearn.util.files import save_figure, write_text, writing
from hemlearn.util.privacy import Pseudonyms
from hemlearn.util.tables import csv_text

if TYPE_CHECKING:
    import pandas as pd

    from hemlearn.compare.comparison import Comparison

logger = logging.getLogger(__name__)
_TABLES = ("compare.csv", "tests.csv", "failures.csv", "compare.md", "compare.tex", "compare.json", "compare.html")
# Written where they are asked for, or where there is something of the kind.
_FIGURES = ("roc", "pr", "calibration", "decision", "readers", "subgroups")
ASKED = (
    *("readers.csv", "readers.png", "subgroups.csv", "subgroups.png", "transfer.csv", "triage.csv", "claim.md"),
    *(f"{name}.{form}" for name in _FIGURES for form in ("pdf", "svg")),
)
FILES = (*_TABLES, "roc.png", "pr.png", "calibration.png", "decision.png")
_PACKAGE = "hemlearn.compare"
_ALWAYS = ("leak", "published", "reader", "readers", "modalities")  # tests printed at every endpoint
_TEX = {char: f"\\{char}" for char in "{}$&#%_"} | {"\n": " ", "\t": " ", '"': "''", "–": "--", "—": "---"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "…": r"\ldots{}"}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_TEX |= {"±": r"$\pm$", "·": r"$\cdot$", "×": r"$\times$", "µ": r"$\mu$"}


def write(
    result: Comparison,
    folder: Path,
    *,
    show_patient: bool = False,
    report: Sequence[str] = (),
    figures: Sequence[str] = (),
    pictures: Callable[[Pseudonyms], Pictures] | None = None,
) -> list[Path]:
    """Write every file of a comparison; cases have pseudonyms unless ``show_patient``.

    ``compare.csv`` (all metrics, levels, labels), ``tests.csv`` (every test), ``failures.csv`` (most confident errors),
    ``compare.md``, ``compare.tex``, ``compare.json`` (everything, for programs), ``compare.html`` (one page, nothing
    outside it), ``roc.png``, ``pr.png`` and ``calibration.png`` (best groups, with pointwise bands); where there are
    readers ``readers.csv`` and ``readers.png`` (their points on the curves), of subgroups ``subgroups.csv`` and
    ``subgroups.png`` (a forest plot); where runs met data that they were not trained on ``transfer.csv``; of runs that
    were asked for triage ``triage.csv``; of ``report=claim`` ``claim.md``. ``figures``: ``pdf`` and ``svg``, in which
    the figures are written beside the PNG. ``pictures`` draws errors of the best group, see
    :func:`hemlearn.reading.errors.pictures_of`.
    """
    ranked = result.ranked
    curves = curves_at(drawn(ranked), result.baseline)
    beside = {} if result.readers is None else result.readers.panels(ranked, result.baseline)
    drawings = _figures(result, curves, beside)
    names = Pseudonyms(folder, show=show_patient)
    shown = pictures(names) if pictures is not None else None
    for entry in result.entries:
        for level, cases in entry.cases.items():
            names.learn(cases.patient, "patient")
            names.learn(cases.unit, level)
    failures = material.failure_table(ranked)
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
        "tests": sorted((c for c in result.contrasts if c.made), key=lambda c: (c.p_holm, c.p)),
        "audits": material.audits_of(result.entries),
        "families": result.families,
        "decisions": result.decisions,
        "decision_cells": decision_cells,
        "triage": result.triage,
        "triage_header": TRIAGE_HEADER,
        "triage_cells": triage_cells,
        "costs": material.cost_table(ranked).to_dict("records"),
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
        "compare.html": page(beside=beside, failures=failures, pictures=shown, **view),
    }
    if result.subgroups is not None:
        texts["subgroups.csv"] = _csv(result.subgroups.table(), names)
        drawings["subgroups.png"] = result.subgroups.figure()
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
    kept = set(texts)
    with writing(folder, "give a writable folder with out=DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "compare.json", content)  # first: it says whose the others are
        for name, text in texts.items():
            write_text(folder / name, text)
        for name, figure in drawings.items():
            for form in ("png", *figures):
                save_figure(figure, folder / name.replace("png", form))
                kept.add(name.replace("png", form))
        for name in ASKED:  # of an earlier call
            if name not in kept:
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


_WORTH = "dotted: treat all; 0: treat none; probabilities are assumed to be calibrated"


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
        note += f"\nshaded: pointwise 95 % band by resampling {result.about.person}s"
        if any(len(panel) > BANDS for panel in curves.values()):
            note += ", of the best group" + (" and the baseline" if result.baseline else "")
    if result.groups > DRAWN:
        note += f"\n{DRAWN} of {result.groups} groups, those of highest AUROC"
    ap, ece = (metric_of(curves, result.entries, name) for name in ("ap", "ece"))
    by = ", clustered by patient" if result.about.person == "patient" else ""
    calibration = f"bars: 95 % intervals of the observed frequency{by}; ten bins of equal mass"
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
        "families": result.families,
        "factors": [found.as_dict() for found in result.factors],
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
    counts = {level: material.confusion_of(entry, level) for level in entry.cases}
    return found | {"leaky": group.leaky, "runs": runs, "confusion": counts}


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
