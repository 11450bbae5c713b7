"""The files of a comparison."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn import __version__
from hemlearn.compare.contrasts import record
from hemlearn.compare.curves import BANDS, DRAWN, curves_at, drawn, metric_of, with_bands
from hemlearn.compare.formats import latex, markdown
from hemlearn.compare.notes import audits_of, cost_table, failure_table
from hemlearn.compare.page import Material, page
from hemlearn.compare.paired import best
from hemlearn.compare.pooling import confusion
from hemlearn.evaluation.auroc import CONFIDENCE
from hemlearn.reports.figures import pr_figure, reliability_figure, roc_figure
from hemlearn.util.errors import RunError
from hemlearn.util.files import write_text

if TYPE_CHECKING:
    import pandas as pd

    from hemlearn.compare.result import Comparison


# --- A comparison handed to Weights & Biases: its page as a report, its files as one artifact.


logger = logging.getLogger(__name__)
NAME, KIND = "comparison", "report"


def log_report(result: Comparison, files: Sequence[Path], project: str, entity: str | None = None) -> Path | None:
    """Log the page and every file of a comparison as one artifact of type ``report``.

    Online where the user is logged in, else offline; ``WANDB_MODE`` decides when it is set (``disabled`` logs nothing).

    Args:
        result: The comparison, already written.
        files: What was written; the page is ``compare.html``.
        project: W&B project.
        entity: W&B entity; None takes the user's own.

    Returns:
        Folder of the W&B run beside the files (``wandb sync`` uploads an offline one); None where W&B is disabled.

    Raises:
        RunError: W&B refuses, such as an unknown entity.
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
        artifact = wandb.Artifact(NAME, type=KIND, description=result.headline.better[:1000])
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


def write(result: Comparison, folder: Path) -> list[Path]:
    """Write every file of a comparison.

    ``compare.csv`` (all metrics, levels, labels), ``tests.csv`` (every test), ``failures.csv`` (most confident errors),
    ``compare.md``, ``compare.tex``, ``compare.json`` (everything, for programs), ``compare.html`` (one page, nothing
    outside it), ``roc.png``, ``pr.png`` and ``calibration.png`` (best groups, with pointwise bands).

    Args:
        result: The comparison.
        folder: Made where it does not exist.

    Raises:
        RunError: The folder cannot be written.
    """
    shown = drawn(result.entries)
    chosen = {best(shown).name, *([result.baseline.name] if result.baseline else [])}
    curves = with_bands(curves_at(shown), sorted(chosen))
    figures = _figures(result, curves)
    material = Material(curves, audits_of(result.entries), cost_table(result.entries), failure_table(result.entries))
    content = json.dumps(plain(as_dict(result, material)), indent=1, allow_nan=False, ensure_ascii=False)
    texts = {
        "compare.csv": _csv(result.table),
        "tests.csv": _csv(result.tests),
        "failures.csv": _csv(material.failures),
        "compare.md": markdown(result, material),
        "compare.tex": latex(result),
        "compare.json": content + "\n",
        "compare.html": page(result, material),
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


def _csv(table: pd.DataFrame) -> str:
    """Six decimals, but p values with as many digits as they need."""
    out = table.copy()
    for name in ("p", "p_holm"):
        if name in out:
            out[name] = [f"{value:.6g}" if value == value else "" for value in out[name]]
    return str(out.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def _figures(result: Comparison, curves: Mapping[str, Any]) -> dict[str, Any]:
    note = "dots: calls of all runs, each at its own threshold"
    bands = any(curve.roc_band is not None for panel in curves.values() for curve in panel)
    banded = "shaded: pointwise 95 % band by resampling patients"
    if any(len(panel) > BANDS for panel in curves.values()):
        banded += ", of the best group" + (" and the baseline" if result.baseline else "")
    note += f"\n{banded}" if bands else ""
    if result.groups > DRAWN:
        note += f"\n{DRAWN} of {result.groups} groups, those of highest AUROC"
    ap, ece = (metric_of(dict(curves), result.entries, name) for name in ("ap", "ece"))
    calibration = "bars: 95 % intervals of the observed frequency, clustered by patient; ten bins of equal mass"
    return {
        "roc.png": roc_figure(curves, title="test, pooled", note=note),
        "pr.png": pr_figure(ap, title="test, pooled", note=note.replace("dots: ", "dotted: prevalence; dots: ")),
        "calibration.png": reliability_figure(ece, title="test, pooled", note=calibration),
    }


def as_dict(result: Comparison, material: Material) -> dict[str, Any]:
    """Everything a comparison found, as plain values (NaN still NaN, see :func:`plain`)."""
    head = result.headline
    audits = material.audits
    return {
        "version": __version__,
        "confidence": CONFIDENCE,
        "headline": {
            "compared": head.compared,
            "better": head.better,
            "shortcut": head.shortcut,
            "warnings": head.warnings,
        },
        "keys": result.keys,
        "groups": [
            {
                "name": entry.name,
                "settings": {key: entry.group.values[key] for key in entry.group.values},
                "kind": entry.group.kind,
                "labels": entry.group.labels,
                "leaky": entry.group.leaky,
                "runs": [run.hash for run in entry.group.runs],
                "confusion": {level: confusion(entry.group, cases) for level, cases in entry.cases.items()},
            }
            for entry in result.entries
        ],
        "baseline": result.baseline.name if result.baseline else None,
        "table": result.table.to_dict("records"),
        "tests": [record(contrast) for contrast in result.contrasts],
        "published": [
            {
                "study": item["figure"].study,
                "metric": item["figure"].metric,
                "value": item["figure"].value,
                "low": item["figure"].interval.low,
                "high": item["figure"].interval.high,
                "x": item["figure"].x,
                "n": item["figure"].n,
                "note": item["figure"].note,
                "group": item["row"]["group"],
                "level": item["row"]["level"],
                "label": item["row"]["label"],
                "ours": item["row"][item["figure"].metric],
                "test": record(item["contrast"]),
            }
            for item in result.published
        ],
        "audits": {
            "runs": audits.runs,
            "with_audits": audits.told,
            "duplicates": audits.duplicates,
            "labels": audits.labels,
            "verdicts": [{"text": t, "runs": n} for t, n in audits.verdicts],
        },
        "cost": material.costs.to_dict("records"),
        "notes": result.notes,
        "skipped": [{"folder": item.folder, "reason": item.reason} for item in result.skipped],
    }


def plain(value: Any) -> Any:
    """The value in types that JSON knows; what is undefined becomes null."""
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
