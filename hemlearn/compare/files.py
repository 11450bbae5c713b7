"""The files of a comparison, and their way to Weights & Biases."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn import __version__
from hemlearn.compare.contrasts import KINDS, Endpoint, endpoints, primary
from hemlearn.compare.material import (
    BANDS,
    DRAWN,
    Panels,
    audits_of,
    cost_table,
    curves_at,
    drawn,
    failure_table,
    metric_of,
)
from hemlearn.compare.page import page
from hemlearn.evaluation.auroc import CONFIDENCE
from hemlearn.reports.figures import confusion_counts, pr_figure, reliability_figure, roc_figure
from hemlearn.reports.tables import render
from hemlearn.util.errors import RunError
from hemlearn.util.files import write_text

if TYPE_CHECKING:
    import pandas as pd

    from hemlearn.compare.comparison import Comparison

logger = logging.getLogger(__name__)
FILES = (
    "compare.csv",
    "tests.csv",
    "failures.csv",
    "compare.md",
    "compare.tex",
    "compare.json",
    "compare.html",
    "roc.png",
    "pr.png",
    "calibration.png",
)
_PACKAGE = "hemlearn.compare"
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "µ": r"$\mu$",
    "\n": " ",
    "\t": " ",
}


def write(result: Comparison, folder: Path) -> list[Path]:
    """Write every file of a comparison.

    ``compare.csv`` (all metrics, levels, labels), ``tests.csv`` (every test), ``failures.csv`` (most confident errors),
    ``compare.md``, ``compare.tex``, ``compare.json`` (everything, for programs), ``compare.html`` (one page, nothing
    outside it), ``roc.png``, ``pr.png`` and ``calibration.png`` (best groups, with pointwise bands).
    """
    curves = curves_at(drawn(result.entries), result.baseline)
    figures = _figures(result, curves)
    failures = failure_table(result.entries)
    view = {
        "result": result,
        "tests": sorted((c for c in result.contrasts if c.made), key=lambda c: c.p_holm),
        "audits": audits_of(result.entries),
        "costs": cost_table(result.entries).to_dict("records"),
        "kinds": KINDS,
        "kind_name": lambda kind: "baseline model" if kind == "null" else kind,
    }
    content = json.dumps(plain(as_dict(**view)), indent=1, allow_nan=False, ensure_ascii=False)
    main = primary(endpoints(result.entries))
    printed = [c for c in view["tests"] if c.kind in ("leak", "published") or Endpoint(c.level, c.label) == main]
    texts = {
        "compare.csv": _csv(result.table),
        "tests.csv": _csv(result.tests),
        "failures.csv": _csv(failures),
        "compare.md": render(_PACKAGE, "compare.md.j2", _cell, **view).rstrip() + "\n",
        "compare.tex": render(_PACKAGE, "compare.tex.j2", tex, **view | {"tests": printed}),
        "compare.json": content + "\n",
        "compare.html": page(curves=curves, failures=failures, **view),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
        for name, figure in figures.items():
            figure.savefig(folder / name)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error})", remedy="give a writable folder with out=DIR"
        ) from error
    return [folder / name for name in FILES]


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


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _csv(table: pd.DataFrame) -> str:
    """Six decimals, but p values with as many digits as they need."""
    out = table.copy()
    for name in ("p", "p_holm"):
        if name in out:
            out[name] = [f"{value:.6g}" if value == value else "" for value in out[name]]
    return str(out.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def _figures(result: Comparison, curves: Panels) -> dict[str, Any]:
    note = "dots: calls of all runs, each at its own threshold"
    if any(curve.roc_band is not None for panel in curves.values() for curve in panel):
        note += "\nshaded: pointwise 95 % band by resampling patients"
        if any(len(panel) > BANDS for panel in curves.values()):
            note += ", of the best group" + (" and the baseline" if result.baseline else "")
    if result.groups > DRAWN:
        note += f"\n{DRAWN} of {result.groups} groups, those of highest AUROC"
    ap, ece = (metric_of(curves, result.entries, name) for name in ("ap", "ece"))
    calibration = "bars: 95 % intervals of the observed frequency, clustered by patient; ten bins of equal mass"
    return {
        "roc.png": roc_figure(curves, title="test, pooled", note=note),
        "pr.png": pr_figure(ap, title="test, pooled", note=note.replace("dots: ", "dotted: prevalence; dots: ")),
        "calibration.png": reliability_figure(ece, title="test, pooled", note=calibration),
    }


# --- Everything a comparison found, for programs.


def as_dict(result: Comparison, audits: Any, costs: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
    """Plain values (NaN still NaN, see :func:`plain`)."""
    head = result.headline
    return {
        "version": __version__,
        "confidence": CONFIDENCE,
        "headline": asdict(head),
        "keys": result.keys,
        "groups": [
            {
                "name": entry.name,
                "settings": entry.group.values,
                "kind": entry.group.kind,
                "labels": entry.group.labels,
                "leaky": entry.group.leaky,
                "runs": [run.hash for run in entry.group.runs],
                "confusion": {
                    level: confusion_counts(cases.y, cases.decision, entry.group.labels, entry.group.kind)
                    for level, cases in entry.cases.items()
                },
            }
            for entry in result.entries
        ],
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
        "audits": {
            "runs": audits.runs,
            "with_audits": audits.with_audits,
            "duplicates": audits.duplicates,
            "labels": audits.labels,
            "verdicts": [{"text": t, "runs": n} for t, n in audits.verdicts],
        },
        "cost": costs,
        "notes": result.notes,
        "skipped": [item._asdict() for item in result.skipped],
    }


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


# --- Its page as a report and its files as one artifact of Weights & Biases.


def log_report(result: Comparison, files: Sequence[Path], project: str, entity: str | None = None) -> Path | None:
    """Log the page and every file of a comparison as one artifact of type ``report``.

    Online where the user is logged in, else offline; ``WANDB_MODE`` decides when it is set (``disabled`` logs nothing).
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # before the import, which would print otherwise
    import wandb

    # As in hemlearn.training.loggers, which would import the whole training stack.
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    if mode == "disabled":
        logger.info("W&B is disabled: the report stays in %s", files[0].parent)
        return None
    folder = files[0].parent.resolve()
    try:
        run = wandb.init(
            project=project,
            entity=entity,
            job_type="compare",
            dir=folder,
            mode=mode,  # type: ignore[arg-type]
            config={"keys": result.keys, "groups": result.groups, "runs": result.runs},
            settings=wandb.Settings(console="off", silent=True),
        )
        artifact = wandb.Artifact("comparison", type="report", description=result.headline.better[:1000])
        for file in files:
            artifact.add_file(str(file), name=file.name)
        page = next(file for file in files if file.suffix == ".html")
        run.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
        run.log_artifact(artifact)
        where = Path(run.dir).parent
        run.finish()
    except (OSError, RuntimeError, ValueError, wandb.Error) as error:
        raise RunError(
            f"W&B did not take the report ({error}); the files are in {folder}",
            remedy="log in with `wandb login`, or set WANDB_MODE=offline",
        ) from error
    return where
