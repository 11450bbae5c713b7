"""``hemlearn predict`` without its command line: find, decode, predict, write down, tabulate."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn import __version__
from hemlearn.config.requests import PredictRequest
from hemlearn.data.manifest import Manifest
from hemlearn.datamodules.rsna import LABELS as RSNA
from hemlearn.evaluation.predictions import is_leaky
from hemlearn.reading.engine import Predictor, choose_device
from hemlearn.reading.find import find_input
from hemlearn.reading.results import Journal, Results, combine, run_frames, series_key
from hemlearn.reading.scored import METRICS, UNMATCHED, Scores, read_truth, score
from hemlearn.reading.series import ROW, Found, InputRules, Series
from hemlearn.reading.stacks import shown_as
from hemlearn.training.folder import command_line
from hemlearn.training.run import Run, load_runs
from hemlearn.util.console import track
from hemlearn.util.errors import ConfigError, DataError, count
from hemlearn.util.files import (
    acquire,
    nothing_left,
    now,
    refuse_to_replace,
    whole_file,
    write_json,
    write_text,
    writing,
)
from hemlearn.util.privacy import Pseudonyms
from hemlearn.util.run_files import JOURNAL, SUMMARY
from hemlearn.util.tables import csv_text

logger = logging.getLogger(__name__)
TABLES, LISTS = ("slices", "series", "patients"), ("failures", "left_out")
DECIMALS = 6  # of the probabilities in the tables; the journal and a submission file keep every digit
_MOST = 12  # notes about pixels
NOTE = "Research use only: not a medical device."


@dataclass(frozen=True)
class Predicted:
    """What :func:`predict_series` found.

    Args:
        lines: Of the journal, one per predicted series.
        series: They, in the same order.
        failures: (item, reason): series refused, slices that could not be read.
        now: Series predicted now; an earlier call had predicted the others.
        notes: How intensities were brought to those of the runs; what is odd about pixels.
    """

    lines: list[dict[str, Any]]
    series: list[Series]
    failures: list[tuple[str, str]]
    now: int
    notes: list[str]


@dataclass
class Report:
    """What was done.

    Args:
        results: The tables.
        found: What the input held.
        runs: The runs.
        made: The predicted series, in the order of the table.
        device: Where they were predicted.
        names: What patients and files are called on pages and in ``predict.json``.
        scores: What the predictions are worth, where labels are given.
        failures: (item, reason) of everything that should have been predicted and was not.
        files: What was written.
    """

    results: Results
    found: Found
    runs: list[Run]
    made: Predicted
    device: str
    names: Pseudonyms
    scores: Scores | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def predict_input(request: PredictRequest) -> Iterator[Report]:
    """Predict everything at a path; yields the report once, while unpacked files are still there.

    Raises:
        ConfigError: Options that do not fit each other or the runs.
        DataError: Nothing can be predicted.
        RunError: A run that cannot be used, or an output folder that cannot be written.
    """
    runs = load_runs(request.runs, trust=request.trust)
    _check(request, runs)
    truth = None if request.labels is None else read_truth(request.labels, runs[0].config.task)
    device = choose_device(request.device)
    names = [f"{name}.{suffix}" for name in (*TABLES, *LISTS) for suffix in ("csv", "parquet")]
    refuse_to_replace(
        request.out, [*names, "submission.csv", METRICS, UNMATCHED, "index.html", SUMMARY], SUMMARY, request.input
    )
    with nothing_left(request.out, JOURNAL), _locked(request.out) as scratch:
        found = find_input(request.input, InputRules.of(runs[0], every=request.series == "all"), scratch)
        predictor = Predictor(runs, device, request.batch_size)
        made = predict_found(found, predictor, request.out)
        found.notes += made.notes
        results, failures = combine(made.lines, runs, request.calibrated), [*found.failures, *made.failures]
        scores = None if truth is None or not made.lines else score(truth, results, made.lines, runs, found.series)
        pseudonyms = _names(request, found, failures)
        report = Report(results, found, runs, made, str(device), pseudonyms, scores, failures)
        _write(request, report)
        yield report


def _names(request: PredictRequest, found: Found, failures: Sequence[tuple[str, str]]) -> Pseudonyms:
    """Pseudonyms that know every id and file of the input."""
    names = Pseudonyms(request.out, show=request.show_patient)
    for item in found.series:
        ids = {name: getattr(item, name) for name in ("patient_id", "study_id", "series_id")}
        names.learn_table(item.rows[["slice_id", "path"]].assign(**ids))
    items = [item for item, _ in (*failures, *found.skip_reasons)]
    names.learn([*items, *(Path(item).name for item in items)], "file")
    names.learn([request.input, request.input.name], "input")
    for root in {item.root for item in found.series}:
        names.place(root, "input")
    return names


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """Hold the output folder; yields the place of unpacked files."""
    from filelock import FileLock

    scratch = out / ".unpacked"
    with writing(f"out={out}", "give a writable folder"):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        acquire(lock, f"out={out}: another process predicts into it now")
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed call
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.release()


def _check(request: PredictRequest, runs: list[Run]) -> None:
    labels = runs[0].config.task.labels
    if request.format == "rsna" and set(labels) != set(RSNA):
        raise ConfigError(
            f"format=rsna: the run predicts {', '.join(labels)}; wanted are {', '.join(RSNA)}",
            remedy="use a run of task=subtypes, or format=csv",
        )
    if request.page:
        from hemlearn.reading.explain.cams import check_cams  # MONAI's, 1.4 s that tables need not wait for

        check_cams(runs[0].model)
    if request.calibrated:
        _check_calibrated(runs)


def _check_calibrated(runs: Sequence[Run]) -> None:
    bare = [str(run.path) for run in runs if run.calibration is None or run.calibration.method == "none"]
    if bare:
        raise ConfigError(
            f"calibrated=true: {', '.join(bare)} does not calibrate slices",
            remedy="train with task.calibration=temperature, or leave calibrated out",
        )


def predict_series(series: Sequence[Series], predictor: Predictor, folder: Path | None) -> Predicted:
    """Predict series, writing each down in ``folder`` at once; those that stand there already are not repeated.

    Raises:
        DataError: Memory does not suffice.
        RunError: The folder cannot be written.
    """
    journal = Journal(folder)
    keys = [series_key(item, predictor.runs) for item in series]
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
            journal.add(keys[index], stack, output)
            now_done += 1
    good = [index for index, key in enumerate(keys) if key in journal]
    lines = [journal.get(keys[index]) for index in good]
    failures += [(item, reason) for line in lines for item, reason in line["failures"]]
    notes = sorted({note for index in good for note in shown_as(series[index], predictor.steps)})
    notes += _about_pixels(lines)
    return Predicted(lines, [series[index] for index in good], failures, now_done, notes)


def predict_found(found: Found, predictor: Predictor, folder: Path | None) -> Predicted:
    """Predict what was found; where the chosen series of a study cannot be, the next best one is, and that is noted."""
    parts, todo = [predict_series(found.series, predictor, folder)], list(found.series)
    while todo := found.instead(_refused(todo, parts[-1].failures)):
        parts.append(predict_series(todo, predictor, folder))
        found.series += todo
    return Predicted(
        [line for part in parts for line in part.lines],
        [item for part in parts for item in part.series],
        [item for part in parts for item in part.failures],
        sum(part.now for part in parts),
        list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _refused(series: Sequence[Series], failures: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    ids = {item.series_id for item in series}
    return [item for item in failures if item[0] in ids]


def _about_pixels(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Notes on slices that show nothing or repeat each other, and on equal pictures of two patients."""
    notes = [f"series {line['series_id']}: {text}" for line in lines for text in line["remarks"]]
    known: dict[str, dict[str, Any]] = {}
    for line in lines:
        first = known.setdefault(line["content"], line)
        if first["patient_id"] != line["patient_id"]:
            notes.append(
                f"the pictures of patient {line['patient_id']} (series {line['series_id']}) are those of patient "
                f"{first['patient_id']} (series {first['series_id']})"
            )
    more = [f"and {len(notes) - _MOST} more series with slices that show nothing, or are those of others"]
    return notes[:_MOST] + (more if len(notes) > _MOST else [])


# --- from Python --------------------------------------------------------------------------------------------------


def predict_frame(run: Run, path: Path, *, calibrated: bool = False, device: str = "auto") -> pd.DataFrame:
    """One row per slice of what lies at a path (see :meth:`hemlearn.training.run.Run.predict`).

    Raises:
        DataError: Nothing can be predicted.
    """
    if calibrated:
        _check_calibrated([run])
    with _found_at(run, path) as found:
        made = predict_found(found, Predictor([run], choose_device(device)), None)
    _say(made.failures, path, bool(made.lines))
    return combine(made.lines, [run], calibrated).slices


def embed_input(run: Run, path: Path, *, device: str = "auto") -> NDArray[np.float32]:
    """Embeddings ``(N, D)`` of the slices that :func:`predict_frame` lists, in its order."""
    predictor = Predictor([run], choose_device(device))
    with _found_at(run, path) as found:
        stacks, todo = [], found.series
        while todo:
            stacks += (part := list(predictor.read(todo)))
            todo = found.instead([(stack.series.series_id, stack.refused) for stack in part if stack.refused])
    good = [stack for stack in stacks if not stack.refused]
    _say([(stack.series.series_id, stack.refused) for stack in stacks if stack.refused], path, bool(good))
    return np.concatenate(predictor.embed(good))


@contextmanager
def _found_at(run: Run, path: Path) -> Iterator[Found]:
    run.check()
    with tempfile.TemporaryDirectory() as folder:
        found = find_input(path.expanduser(), InputRules.of(run), Path(folder).resolve() / "unpacked")
        _say(found.failures, path, True)
        for note in found.notes:
            logger.info(note)
        yield found


def _say(failures: Sequence[tuple[str, str]], path: Path, any_left: bool) -> None:
    if failures and not any_left:
        raise DataError(f"{path}: nothing could be predicted; the first: {failures[0][1]}", remedy="give head slices")
    for item, reason in failures:
        logger.warning("%s could not be predicted: %s", item, reason)


def manifest_series(manifest: Manifest, rows: NDArray[Any] | None = None) -> list[Series]:
    """The series of a data set, for :func:`predict_series`; ``rows``: its slices that count, by number or as a mask."""
    table = manifest.table if rows is None else manifest.table.iloc[rows]
    told = manifest.series[["series_id", "pixel_mm"]].dropna().itertuples(index=False) if len(manifest.series) else ()
    pixel = {str(name): (float(side), float(side)) for name, side in told}

    def made(name: str, own: pd.DataFrame) -> Series:
        patient, study = (str(own[key].iloc[0]) for key in ("patient_id", "study_id"))
        return Series(patient, study, name, manifest.root, own[ROW], pixel_mm=pixel.get(name))

    return [
        made(str(name), own)
        for name, own in ((name, own.reset_index(drop=True)) for name, own in table.groupby("series_id", sort=False))
    ]


def check_modality(run: Run, table: pd.DataFrame, what: str) -> list[str]:
    """Notes on rows of a manifest that do not say what they show, or of which the run does not know whether it fits.

    Raises:
        DataError: Rows of another modality than the run has learnt from.
    """
    known = table[table["modality"].isin(("CT", "MR"))]
    other = known[known["modality"] != run.modality]
    if len(other) and run.modality:
        first = other.iloc[0]
        raise DataError(
            f"{what}: {count(len(other), 'slice')} of modality {first['modality']} (first {first['slice_id']!r}), but "
            f"the run has learnt from {run.modality}",
            remedy="give data of the run's modality",
        )
    if len(other):
        told = " and ".join(sorted(set(other["modality"])))
        return [f"the run has learnt from pictures that did not say whether they showed CT or MR; {what} is {told}"]
    if len(known) < len(table) and run.modality:
        return [f"pictures of {what} do not say whether they show CT or MR; the run has learnt from {run.modality}"]
    return []


def predict_manifest(run: Run, manifest: Manifest, device: str = "auto", *, partial: bool = False) -> pd.DataFrame:
    """Predictions of every slice of a manifest, calibrated where the run is, in the columns of ``predictions.parquet``.

    Args:
        run: The run.
        manifest: The slices.
        device: Where the network runs.
        partial: Leave out, with a warning, what cannot be predicted.

    Raises:
        DataError: A slice cannot be read, or is of another unit than those the run was trained on.
    """
    for note in check_modality(run, manifest.table, str(manifest.root)):
        logger.warning(note)
    made = predict_series(manifest_series(manifest), Predictor([run], choose_device(device)), None)
    for item, reason in made.failures if partial else ():
        logger.warning("%s could not be predicted: %s", item, reason)
    if made.failures and not (partial and made.lines):
        item, reason = made.failures[0]
        raise DataError(
            f"{manifest.root}: {len(made.failures)} series or slices cannot be predicted; the first, {item}: {reason}",
            remedy="give the same kind of files as in training",
        )
    (frame,) = run_frames(made.lines, [run], calibrated=True)
    order = pd.Index(frame["slice_id"]).get_indexer(manifest.table["slice_id"])
    table = manifest.table[order >= 0]
    frame = frame.iloc[order[order >= 0]].reset_index(drop=True)
    for label in run.config.task.labels:
        if label in manifest.labels:
            frame[f"label_{label}"] = table[label].to_numpy(dtype=np.float32).astype(np.float64)
    return frame


# --- the output folder --------------------------------------------------------------------------------------------


def _write(request: PredictRequest, report: Report) -> None:
    results = report.results
    tables = dict(zip(TABLES, (results.slices, results.series, results.patients), strict=True))
    lists = dict(zip(LISTS, (report.failures, report.found.skip_reasons), strict=True))
    suffix = "parquet" if request.format == "parquet" else "csv"
    with writing(request.out, "free some space; the same command goes on from what is there"):
        file = request.out / SUMMARY  # first: it says whose the others are
        write_json(file, _summary(request, report), indent=2, allow_nan=False)
        for name, table in tables.items():
            _table(_rounded(table), request.out / f"{name}.{suffix}", report)
        for name, items in lists.items():
            _table(pd.DataFrame(items, columns=["item", "reason"], dtype=object), request.out / f"{name}.csv", report)
        _write_scores(request.out, report)
        if request.format == "rsna":
            _table(_submission(results.slices), request.out / "submission.csv", report)
        report.files.append(file)


def _write_scores(out: Path, report: Report) -> None:
    """Metrics and unmatched ids; without labels those of an earlier call are taken away."""
    if report.scores is None:
        for name in (METRICS, UNMATCHED):
            (out / name).unlink(missing_ok=True)
        return
    content = {**report.scores.metrics, "notes": report.scores.notes}
    write_json(out / METRICS, report.names.tree(content), indent=2, allow_nan=False)
    report.files.append(out / METRICS)
    lost = pd.DataFrame(report.scores.unmatched, columns=["item", "reason"], dtype=object)
    _table(lost, out / UNMATCHED, report)


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Probabilities to :data:`DECIMALS`: another batch size, device or number of threads changes what lies behind."""
    names = [name for name in table if str(name).startswith(("prob_", "low_", "high_"))]
    return table.assign(**{name: table[name].round(DECIMALS) for name in names})


def _table(table: pd.DataFrame, file: Path, report: Report) -> None:
    if file.suffix == ".parquet":
        with whole_file(file) as draft:
            table.to_parquet(draft, index=False)
    else:
        write_text(file, csv_text(table, decimals="%.9g"))
    report.files.append(file)


def _submission(slices: pd.DataFrame) -> pd.DataFrame:
    """``ID,Label``: one line per slice and label; a slice is called as its file, which is its id in the challenge.

    Files of one name in several folders keep their folders in it.
    """
    stems = slices["path"].map(lambda path: Path(str(path)).stem)
    files = slices.assign(stem=stems).groupby("stem")["path"].transform("nunique")
    stems = stems.where(files == 1, slices["path"].map(lambda path: Path(str(path)).with_suffix("").as_posix()))
    stems = stems.where(slices["frame"] == 0, stems + "#" + slices["frame"].astype(str))
    parts = [
        pd.DataFrame({"ID": stems + f"_{label}", "Label": slices[f"prob_{label}"], "row": range(len(slices))})
        for label in RSNA
    ]
    return pd.concat(parts).sort_values("row", kind="stable")[["ID", "Label"]]


def _summary(request: PredictRequest, report: Report) -> dict[str, Any]:
    data = [run.provenance.get("data", {}) for run in report.runs]
    results = report.results
    content = {
        "note": NOTE,
        "command": command_line({"input": report.names.of(request.input, "input"), "out": "DIR"}),
        "version": __version__,
        "finished": now(),
        "runs": [
            {
                **{"folder": str(run.path), "hash": run.hash, "leaky": is_leaky(run.path / "predictions.parquet")},
                **{"data": own.get("source"), "synthetic": own.get("synthetic")},
            }
            for run, own in zip(report.runs, data, strict=True)
        ],
        "input": str(request.input),
        "calibrated": request.calibrated,
        "show_patient": request.show_patient,
        "interval": "least and largest probability over the runs" if len(report.runs) > 1 else None,
        "thresholds": results.thresholds,
        "thresholds_assumed": results.assumed,
        "scores": results.scores,
        "triage": results.triage,
        "counts": {
            **({"patients": len(results.patients)} if report.found.patients_known else {}),
            "series": len(results.series),
            "slices": len(results.slices),
            "predicted_now": report.made.now,
            "kept": len(report.made.lines) - report.made.now,
            "failures": len(report.failures),
            "left_out": len(report.found.skip_reasons),
        },
        "remarks": report.found.notes,
    }
    return dict(report.names.tree(content))
