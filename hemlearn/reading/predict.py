"""``hemlearn predict`` without its command line: find, decode, predict, write down, tabulate."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn import __version__
from hemlearn.evaluation.predictions import read_predictions
from hemlearn.reading.engine import Predictor, choose_device
from hemlearn.reading.find import find_input
from hemlearn.reading.members import Member, load_members
from hemlearn.reading.results import Journal, Results, combine, series_key
from hemlearn.reading.select_series import Found, Series, Wanted
from hemlearn.reading.stacks import shown_as
from hemlearn.training.run import command_line
from hemlearn.util.console import track
from hemlearn.util.errors import ConfigError, RunBusyError, RunError
from hemlearn.util.files import cache_dir, now, write_json, write_text

logger = logging.getLogger(__name__)
FORMATS = ("csv", "parquet", "rsna")
RSNA = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
NOTE = "Research use only: not a medical device."


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        runs: Run folders; several are averaged.
        input: File, folder, archive or table.
        out: Where results go.
        calibrated: Write calibrated probabilities.
        format: csv, parquet or rsna (csv, and a submission file).
        device: auto, cpu or cuda.
        every: All axial series of a study, not the chosen one.
        batch_size: Slices at once; None: found by itself.
    """

    runs: tuple[Path, ...]
    input: Path
    out: Path
    calibrated: bool = False
    format: str = "csv"
    device: str = "auto"
    every: bool = False
    batch_size: int | None = None


@dataclass
class Report:
    """What was done.

    Args:
        results: The tables.
        found: What the input held.
        members: The runs.
        predicted: Series predicted now.
        kept: Series that an earlier call had predicted.
        failures: (item, reason) of everything that should have been predicted and was not.
        files: What was written.
        series: The predicted series, in the order of the table.
        keys: Their keys in the journal.
        device: Where they were predicted.
    """

    results: Results
    found: Found
    members: list[Member]
    predicted: int = 0
    kept: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    device: str = "cpu"


@dataclass(frozen=True)
class Predicted:
    """What :func:`predict_series` found.

    Args:
        lines: Of the journal, one per predicted series.
        series: They, in the same order.
        failures: (item, reason): series refused, slices that could not be read.
        now: Series predicted now, not before.
        notes: How intensities were brought to those of the runs.
    """

    lines: list[dict[str, Any]]
    series: list[Series]
    failures: list[tuple[str, str]]
    now: int
    notes: list[str]


def predict_input(request: Request, members: list[Member] | None = None) -> Iterator[Report]:
    """Predict everything at a path; yields the report once, while unpacked files are still there.

    Args:
        request: What is asked for.
        members: The runs, where they are loaded already.

    Raises:
        ConfigError: An impossible wish.
        DataError: Nothing can be predicted.
        RunError: A run that cannot be used, or an output folder that cannot be written.
    """
    from filelock import FileLock, Timeout

    runs = load_members(request.runs) if members is None else members
    _check(request, runs)
    device = choose_device(request.device)
    out = request.out
    scratch = out / ".unpacked"
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RunBusyError(
            f"out={out}: another process predicts into it now", remedy="wait for it, or give another folder"
        ) from error
    except OSError as error:
        raise RunError(
            f"out={out}: cannot be written ({error.strerror or error})", remedy="give a writable folder"
        ) from error
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed call
        config = runs[0].run.config
        wanted = Wanted(
            config.channels.kind,
            config.data.geometry,
            run_spacing(runs[0].folder),
            request.every,
            cache_dir(config.data.cache_dir),
        )
        found = find_input(request.input, wanted, scratch)
        yield _predict(request, runs, found, Predictor(runs, device, request.batch_size))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.release()


def _check(request: Request, members: list[Member]) -> None:
    if request.format not in FORMATS:
        raise ConfigError(f"format={request.format}: unknown", remedy=f"use one of {', '.join(FORMATS)}")
    labels = members[0].run.config.task.labels
    if request.format == "rsna" and set(labels) != set(RSNA):
        raise ConfigError(
            f"format=rsna: the run predicts {', '.join(labels)}; wanted are {', '.join(RSNA)}",
            remedy="use a run of task=subtypes, or format=csv",
        )
    bare = [str(member.folder) for member in members if member.run.calibration is None]
    if request.calibrated and bare:
        raise ConfigError(
            f"calibrated=true: {', '.join(bare)} holds no calibration.json",
            remedy="train with task.calibration=temperature, or leave calibrated out",
        )


def run_spacing(folder: Path) -> float:
    """Median distance of slices in a run's own data, mm; NaN where positions are unknown."""
    frame = read_predictions(folder / "predictions.parquet")[["series_id", "z_mm"]]
    steps = frame.sort_values(["series_id", "z_mm"]).groupby("series_id")["z_mm"].diff()
    return float(steps[steps > 0].median())


def _predict(request: Request, members: list[Member], found: Found, predictor: Predictor) -> Report:
    made = predict_series(found.series, members, predictor, request.out)
    found.remarks += made.notes
    results = _combined(made.lines, members, request.calibrated)
    report = Report(
        results,
        found,
        members,
        made.now,
        len(made.lines) - made.now,
        [*found.failures, *made.failures],
        series=made.series,
        keys=[str(line["key"]) for line in made.lines],
        device=str(predictor.device),
    )
    _write(request, report)
    return report


def predict_series(
    series: Sequence[Series], members: Sequence[Member], predictor: Predictor, folder: Path
) -> Predicted:
    """Predict series, writing each down in ``folder`` at once; those that stand there already are not repeated.

    Raises:
        DataError: Memory does not suffice.
        RunError: The folder cannot be written.
    """
    journal = Journal(folder)
    keys = [series_key(item, members) for item in series]
    todo = [index for index, key in enumerate(keys) if key not in journal]
    failures: list[tuple[str, str]] = []
    now_done = 0
    # The outputs come in the order of the input.
    outputs = zip(todo, predictor.run(series[index] for index in todo), strict=True)
    for index, (stack, output) in track(outputs, "Predicting series", len(todo), show=len(todo) > 1):
        if output is None:
            failures.append((series[index].series_id, stack.refused))
            failures += stack.failures
        else:
            journal.add(keys[index], stack.series, output, stack.failures)
            now_done += 1
    good = [index for index, key in enumerate(keys) if key in journal]
    lines = [journal.get(keys[index]) for index in good]
    failures += [(item, reason) for line in lines for item, reason in line["failures"]]
    notes = sorted({note for index in good for note in shown_as(series[index], predictor.steps)})
    return Predicted(lines, [series[index] for index in good], failures, now_done, notes)


def _combined(lines: list[dict[str, Any]], members: list[Member], calibrated: bool) -> Results:
    if lines:
        return combine(lines, members, calibrated)
    nothing = pd.DataFrame({"patient_id": pd.Series(dtype=str)})
    return Results(nothing, nothing, nothing, {})


def _write(request: Request, report: Report) -> None:
    tables = {"slices": report.results.slices, "series": report.results.series, "patients": report.results.patients}
    lists = {"failures": report.failures, "left_out": report.found.left_out}
    suffix = "parquet" if request.format == "parquet" else "csv"
    try:
        for name, table in tables.items():
            _table(table, request.out / f"{name}.{suffix}", report)
        for name, items in lists.items():
            _table(pd.DataFrame(items, columns=["item", "reason"], dtype=object), request.out / f"{name}.csv", report)
        if request.format == "rsna":
            _table(_submission(report.results.slices), request.out / "submission.csv", report)
        file = request.out / "predict.json"
        write_json(file, _summary(request, report), indent=2, allow_nan=False)
        report.files.append(file)
    except OSError as error:
        raise RunError(
            f"{request.out}: cannot be written ({error.strerror or error})",
            remedy="free some space; the same command goes on from what is there",
        ) from error


def _table(table: pd.DataFrame, file: Path, report: Report) -> None:
    if file.suffix == ".parquet":
        part = file.with_name(f".{file.name}.part")
        table.to_parquet(part, index=False)
        part.replace(file)
    else:
        write_text(file, table.to_csv(index=False, lineterminator="\n", float_format="%.9g"))
    report.files.append(file)


def _submission(slices: pd.DataFrame) -> pd.DataFrame:
    """``ID,Label``: one line per slice and label; a slice is called as its file, which is its id in the challenge.

    Files of one name in several folders keep their folders in it.
    """
    stems = slices["path"].map(lambda path: Path(str(path)).stem)
    files = slices.assign(stem=stems).groupby("stem")["path"].transform("nunique")
    stems = stems.where(files == 1, slices["path"].map(lambda path: Path(str(path)).with_suffix("").as_posix()))
    several = slices["frame"] > 0
    stems = stems.where(~several, stems + "#" + slices["frame"].astype(str))
    parts = [
        pd.DataFrame({"ID": stems + f"_{label}", "Label": slices[f"prob_{label}"], "row": range(len(slices))})
        for label in RSNA
    ]
    return pd.concat(parts).sort_values("row", kind="stable")[["ID", "Label"]]


def _summary(request: Request, report: Report) -> dict[str, Any]:
    runs = [
        {
            "folder": str(member.folder),
            "hash": member.hash,
            "data": member.provenance.get("data", {}).get("source"),
            "synthetic": member.provenance.get("data", {}).get("synthetic"),
        }
        for member in report.members
    ]
    results = report.results
    return {
        "note": NOTE,
        "command": command_line(),
        "version": __version__,
        "finished": now(),
        "runs": runs,
        "input": str(request.input),
        "calibrated": request.calibrated,
        "interval": "least and largest probability over the runs" if len(runs) > 1 else None,
        "thresholds": results.thresholds,
        "thresholds_assumed": results.assumed,
        "counts": {
            "patients": len(results.patients),
            "series": len(results.series),
            "slices": len(results.slices),
            "predicted_now": report.predicted,
            "kept": report.kept,
            "failures": len(report.failures),
            "left_out": len(report.found.left_out),
        },
        "remarks": report.found.remarks,
    }
