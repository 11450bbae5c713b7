"""``index.html`` of ``hemlearn predict page=true``: every predicted series in a row, with a link to its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.preprocess import resize_square
from hemlearn.data.readers import AIR, reader_for
from hemlearn.evaluation.auroc import CHANCE, WEAK
from hemlearn.evaluation.predictions import is_leaky
from hemlearn.reading.case import NOTE, WINDOWS, as_json, pack_slice, self_contained, signal_ends
from hemlearn.reading.predict import Report
from hemlearn.reading.series import Series
from hemlearn.reports.model_card import FEW
from hemlearn.reports.tables import format_entry
from hemlearn.training.run import Run
from hemlearn.util.errors import DataError, count
from hemlearn.util.files import write_text

INDEX = "index.html"
_ASSETS = ("page.css", "data.css", "unpack.js", "data.js", "sort.js")
_SIDE, _PICTURES = 112, 400  # pixels of a thumbnail; series with one, the most suspicious


def cautions(runs: Sequence[Run]) -> list[str]:
    """What the runs' own folders say against believing their answers, the gravest first, a sentence each."""
    found: dict[str, None] = {}
    for run in runs:
        data: Mapping[str, Any] = run.provenance.get("data", {})
        if data.get("synthetic"):
            found["SYNTHETIC: learnt from heads that a computer has drawn; nothing follows for a person."] = None
        if is_leaky(run.path / "predictions.parquet"):
            found["LEAKY: its test patients are also in training; its own figures say nothing about new patients."] = (
                None
            )
        if data.get("patients_known") is False:
            found["No patient ids in its data: images counted as people, and its figures may be too good."] = None
        elif (patients := data.get("patients")) is not None and patients < FEW:
            found[f"FEW PATIENTS: its data set holds {count(patients, 'patient')}, training, validation and test."] = (
                None
            )
        if text := _weak(run):
            found[text] = None
    return list(found)


def _weak(run: Run) -> str:
    level, entry = test_auroc(run)
    if not level:
        return ""
    told = f"test AUROC {format_entry('auroc', entry)} per {level}"
    if entry.get("low") is not None and entry["low"] <= CHANCE:
        return f"WEAK MODEL: {told}, not shown to be better than chance."
    if entry["value"] < WEAK:
        return f"WEAK MODEL: {told}."
    return f"TOO FEW TEST CASES: {told}, n = {entry['n']}, has no interval." if entry.get("low") is None else ""


def test_auroc(run: Run) -> tuple[str, dict[str, Any]]:
    """Level and entry of the AUROC on the run's own test patients, of whole series where there is one; "" without."""
    for level in ("series", "patient", "slice"):
        entry: dict[str, Any] = run.metrics.get("test", {}).get(level, {}).get("auroc", {})
        if entry.get("value") is not None:
            return level, entry
    return "", {}


def write_index(out: Path, report: Report, pages: Mapping[str, str], *, title: str) -> Path:
    """Write ``index.html``, whole or not at all.

    Args:
        out: Folder of the output.
        report: What was predicted.
        pages: Series id -> page, relative to ``out``.
        title: What was predicted, for the heading.

    Returns:
        The file.
    """
    labels = list(report.runs[0].config.task.labels)
    rows = sorted(
        (_row(report, series, labels, pages) for series in report.made.series),
        key=lambda row: (-row["called"], -row["top"]),
    )
    thumbs: list[list[Any]] = []
    for row in rows[:_PICTURES]:
        made = _thumb(*row["slice"])
        if made is not None:
            row["thumb"] = len(thumbs)
            thumbs.append(made)
    results = report.results
    text = self_contained(
        "predicted.html.j2",
        _ASSETS,
        note=NOTE,
        title=report.names.text(title),
        cautions=[*([report.scores.leaky] if report.scores and report.scores.leaky else []), *cautions(report.runs)],
        rows=rows,
        labels=labels,
        pictures=_PICTURES,
        patients=len(results.patients) if report.found.patients_known else None,
        slices=len(results.slices),
        several=len(report.runs),
        score="series" in results.scores,
        failures=[[report.names.text(item), report.names.text(why)] for item, why in report.failures],
        left=len(report.found.skip_reasons),
        against=_against(report),
        thumbs=as_json(thumbs),
        hounsfield=any(one[3] is None for one in thumbs),
        windows=WINDOWS,
    )
    write_text(out / INDEX, text)
    return out / INDEX


def _row(report: Report, series: Series, labels: Sequence[str], pages: Mapping[str, str]) -> dict[str, Any]:
    """One series: names, values of its labels, and where its most suspicious slice lies."""
    results, names = report.results, report.names
    whole = results.series[results.series["series_id"] == series.series_id].iloc[0]
    slices = results.slices[results.slices["series_id"] == series.series_id]
    values = [float(whole[f"prob_{label}"]) for label in labels]
    called = [_called(whole, label) for label in labels]
    # As the page does: of the findings that reach their operating point, else of all, the likeliest.
    among = [k for k, hit in enumerate(called) if hit] or list(range(len(labels)))
    top = max(among, key=lambda k: values[k])
    worst = slices.iloc[int(slices[f"prob_{labels[top]}"].to_numpy(dtype=np.float64).argmax())]
    place = int(slices["slice_id"].tolist().index(worst["slice_id"])) + 1
    modality = series.rows.set_index("slice_id")["modality"].get(worst["slice_id"], "CT")
    return {
        "patient": names.of(series.patient_id, "patient"),
        "series": names.of(series.series_id, "series"),
        "description": names.text(series.description),
        "page": pages.get(series.series_id, ""),
        "slices": int(whole["n_slices"]),
        "cells": [
            {
                "value": value,
                "low": _number(whole.get(f"low_{label}")),
                "high": _number(whole.get(f"high_{label}")),
                "called": hit,
                "triage": str(whole.get(f"triage_{label}", "") or ""),
            }
            for label, value, hit in zip(labels, values, called, strict=True)
        ],
        "top": values[top],
        "called": any(called),
        "label": labels[top],
        "place": place,
        "thumb": None,
        "slice": (series, str(worst["path"]), int(worst["frame"]), str(modality)),
    }


def _called(whole: pd.Series[Any], label: str) -> bool:
    return bool(whole.get(f"call_{label}") == 1 or whole.get("call") == label)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _thumb(series: Series, path: str, frame: int, modality: str) -> list[Any] | None:
    """A slice packed for the page, as in the data page; None where its file can no longer be read."""
    file = series.root / path
    try:
        reader = reader_for(file)
        pixels = reader.decode(file, frame, modality)
    except (DataError, OSError):
        return None
    unit = reader.unit_of(modality)
    small = resize_square(pixels, _SIDE, "letterbox", AIR[unit])
    ends = {"HU": (None, None), "display": (0.0, 255.0)}.get(unit) or signal_ends(pixels)
    return [pack_slice(small.astype(np.int16)), _SIDE, _SIDE, *ends]


def _against(report: Report) -> list[str]:
    """Level, n and AUROC of the predictions, where labels are given."""
    if report.scores is None:
        return []
    found = report.scores.metrics
    name = report.names.text(found["about"]["labels"])
    return [
        f"against {name}, per {level}: AUROC {format_entry('auroc', own['auroc'])}, n = {own['auroc']['n']}"
        for level, own in found["test"].items()
    ]
