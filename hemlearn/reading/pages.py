"""One HTML page per predicted series."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hemlearn import __version__
from hemlearn.config.requests import PredictRequest
from hemlearn.evaluation.triage import asked_text
from hemlearn.reading.case import Case, write_case_page
from hemlearn.reading.engine import stacked
from hemlearn.reading.explain.drawing import SeriesMaps, explain_series
from hemlearn.reading.explain.scores import SERIES
from hemlearn.reading.predict import Report
from hemlearn.reading.predicted_page import cautions, test_auroc, write_index
from hemlearn.reading.results import Results
from hemlearn.reading.scored import slice_truth
from hemlearn.reading.series import Series
from hemlearn.reading.stacks import Preprocessing, Stack, full_pixels, read_stack, shown_as, unit_of
from hemlearn.training.run import Run
from hemlearn.util.console import track
from hemlearn.util.errors import count
from hemlearn.util.files import sha256, write_text
from hemlearn.util.tables import csv_text

logger = logging.getLogger(__name__)
_METHODS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++"}
_BUT = "; BUT "  # in the reason of a choice that something speaks against


def write_pages(request: PredictRequest, report: Report) -> None:
    """Write ``pages/*.html`` and ``pages.csv``, which says which page is which series; pages that are there stay.

    The maps and slice shares are those of the first run of an ensemble, and the page says so.

    Raises:
        DataError: A page cannot be written.
    """
    failed = dict(report.failures)
    run = report.runs[0]
    labelled = "" if report.scores is None else sha256(report.scores.truth.to_csv())
    step = Preprocessing.of(run)
    made = []
    pages: dict[str, str] = {}
    todo = list(zip(report.made.series, report.made.lines, strict=True))
    for series, line in track(todo, "Writing pages", len(todo), show=len(todo) > 1):
        recipe = json.dumps([line["key"], request.calibrated, report.names.mark, __version__, labelled])
        name = f"{sha256(recipe)[:12]}.html"  # no name of a person, whatever the files say
        file = request.out / "pages" / name
        made.append((series.patient_id, series.series_id, f"pages/{name}"))
        pages[series.series_id] = f"pages/{name}"
        if not file.is_file():
            stack = read_stack(series, [step], keep=True)
            if stack.refused:  # it was read a moment ago
                report.failures.append((series.series_id, f"no page: {stack.refused}"))
                del pages[series.series_id]
                continue
            case = _case(request, report, stack, series_maps(run, stack, step, report.device), failed)
            write_case_page(file, case, show_patient=request.show_patient, names=report.names)
        report.files.append(file)
    table = pd.DataFrame(made, columns=["patient_id", "series_id", "page"], dtype=object)
    write_text(request.out / "pages.csv", csv_text(table))
    report.files.append(write_index(request.out, report, pages, title=request.input.name or str(request.input)))


def series_maps(run: Run, stack: Stack, step: Preprocessing, device: str) -> SeriesMaps:
    """Maps and slice shares of every label of a series."""
    z_mm = stack.series.rows["z_mm"].to_numpy(dtype=np.float64)
    raw = torch.from_numpy(stacked(stack, step, run.config.channels.neighbours))
    position = None if np.isnan(z_mm).any() else torch.from_numpy(z_mm.astype(np.float32)).to(device)
    pool = None if run.calibration is None else run.calibration.pool("series")
    return explain_series(run.model.to(device), raw, position, pool=pool)


def _case(request: PredictRequest, report: Report, stack: Stack, maps: SeriesMaps, failed: dict[str, str]) -> Case:
    results, runs, series = report.results, report.runs, stack.series
    labels = list(runs[0].config.task.labels)
    slices = results.slices[results.slices["series_id"] == series.series_id].set_index("slice_id")
    slices = slices.loc[series.rows["slice_id"]]
    whole = results.series[results.series["series_id"] == series.series_id].iloc[0]
    several = len(runs) > 1
    step = Preprocessing.of(runs[0])
    first = f" of the first of {len(runs)} runs" if several else ""
    reason = report.found.chosen.get(series.series_id, "")  # why it is the one of its study
    why = {} if not reason or _BUT in reason else {"Chosen": reason}
    what = "the series' score" if maps.of == SERIES else "each slice's score"
    return Case(
        series=series.series_id,
        patient=series.patient_id,
        hu=full_pixels(stack),
        z_mm=None if series.rows["z_mm"].isna().any() else series.rows["z_mm"].to_numpy(dtype=np.float64),
        labels=labels,
        slice_probs=slices[[f"prob_{c}" for c in labels]].to_numpy(dtype=np.float64),
        series_probs=np.array([whole[f"prob_{c}"] for c in labels], dtype=np.float64),
        intervals=np.array([[whole[f"low_{c}"], whole[f"high_{c}"]] for c in labels]) if several else None,
        cams=maps.as_uint8(),
        attribution=maps.attribution,
        cam_boxes=stack.boxes[step],
        unit=unit_of(series),
        ground={"Input": request.input.name, "Slices": str(len(series.rows)), **_spacing(series), **why},
        pixel_mm=series.pixel_mm,
        **_points(request, runs, results),
        calls={label: bool(whole[f"call_{label}"]) for label in labels if f"call_{label}" in whole},
        triage={c: str(whole[f"triage_{c}"]) for c in labels if f"triage_{c}" in whole},
        triage_note=_triage(results),
        score="series" in results.scores,
        calibration=_calibration(request, runs, results),
        card=run_card(runs),
        cautions=cautions(runs),
        sides=series.sides,
        upward=series.upward,
        truth=slice_truth(report.scores, series.rows["slice_id"].tolist()),
        warnings=_warnings(series, stack, failed, report),
        interval_note=f"Least and largest probability of {len(runs)} runs; no confidence interval." if several else "",
        cam_note=f"{_METHODS.get(maps.method, maps.method)} of {what}{first}"
        + (f", layer {maps.layer}" if maps.layer else ""),
    )


def _points(request: PredictRequest, runs: list[Run], results: Results) -> dict[str, Any]:
    """Operating points of the series' and of a slice's probability, where these are on the scale of what is shown.

    Those that no run could choose are not drawn.
    """
    assumed = results.assumed
    return {
        key: {c: value for c, value in results.thresholds.get(level, {}).items() if c not in assumed.get(level, ())}
        for key, level in (("thresholds", "series"), ("slice_thresholds", "slice"))
        if _scaled(request, runs, level)
    }


def _triage(results: Results) -> str:
    cuts = results.triage.get("series", {})
    told = "; ".join(dict.fromkeys(asked_text(cut) for cut in cuts.values()))
    return told and f"Positive, negative or undecided: {told}."


def _scaled(request: PredictRequest, runs: list[Run], level: str) -> bool:
    """Whether what is shown of a level is on the scale of the operating points."""
    return request.calibrated or all(
        run.calibration is None or run.calibration.method == "none" or level in run.calibration.units for run in runs
    )


def _calibration(request: PredictRequest, runs: list[Run], results: Results) -> str:
    """What was done to the probabilities, and what the operating points are worth."""
    units = all(run.calibration is not None and "series" in run.calibration.units for run in runs)
    slices = _scaled(request, runs, "slice")
    if request.calibrated:
        told = "Probabilities are calibrated on the run's validation patients."
    elif slices:
        told = "Probabilities are not calibrated: compare them with each other and with the operating point, not with "
        told += "rates."
    else:
        told = (
            "Probabilities are not calibrated: compare them with each other, not with rates. The run's operating "
            "points are calibrated ones (calibrated=true); orange findings reach theirs."
        )
    if units and not request.calibrated:
        told = "The series' probability is calibrated on the run's validation patients; those of its slices are not."
    if "series" in results.scores:
        told += (
            " The series' value is a score, put together from its slices and not calibrated: it ranks series, and is "
            "no probability that this one has the finding."
        )
    assumed = results.assumed.get("series", [])
    if assumed:
        told += (
            f" No operating point could be chosen for {', '.join(assumed)}: validation patients lacked a class; "
            "0.5 is assumed."
        )
    return told


def _spacing(series: Series) -> dict[str, str]:
    steps = np.diff(np.sort(series.rows["z_mm"].to_numpy(dtype=np.float64)))
    if not len(steps) or np.isnan(steps).any():
        return {}
    text = f"{np.median(steps):.2f} mm"
    return {"Slice distance": text if np.ptp(steps) < 0.1 else f"{text} ({steps.min():.2f} to {steps.max():.2f})"}


def _warnings(series: Series, stack: Stack, failed: dict[str, str], report: Report) -> list[str]:
    told = [f"{item} could not be read: {reason}" for item, reason in stack.failures]
    told += [
        f"{name} could not be read: {failed[name]}"
        for name in failed
        if Path(name).parent.as_posix() in {Path(path).parent.as_posix() for path in series.rows["path"]}
        and name not in dict(stack.failures)
    ][:10]
    reason, odd = (found.get(series.series_id, "") for found in (report.found.chosen, report.found.problems))
    told += [f"This series is {reason}"] if _BUT in reason else []
    told += [f"Slices: {odd}"] if odd else []
    return told + shown_as(series, list(stack.squares))


def run_card(runs: list[Run]) -> dict[str, str]:
    """What a reader must know of the runs, in a few lines."""
    run = runs[0]
    config, told = run.config, run.provenance.get("data", {})
    card = {
        "Run": ", ".join(item.hash for item in runs),
        "Task": f"{config.task.kind}: {', '.join(config.task.labels)}",
        "Learnt from": f"{told.get('source', config.data.name)}: {count(told.get('slices', '?'), 'slice')}"
        + (f" of {count(told['patients'], 'patient')}" if "patients" in told else ", patients not known")
        + (", SYNTHETIC" if told.get("synthetic") else ""),
        "Network": config.backbone.name + (f", sequence model {config.sequence.name}" if run.of_series else ""),
    }
    level, entry = test_auroc(run)
    if level:
        span = "" if entry.get("low") is None else f" (95 % interval {entry['low']:.3f} to {entry['high']:.3f})"
        many = "" if len(config.task.labels) == 1 else ", mean over labels"
        card[f"Test AUROC per {level}{many}"] = f"{entry['value']:.3f}{span}, n = {entry['n']}"
    return card
