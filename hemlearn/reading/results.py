"""Predictions per slice, series and patient, averaged over the runs of an ensemble, and the journal of an output."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn import __version__
from hemlearn.data.readers import reader_for
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.predictions import SERIES, prob_array
from hemlearn.evaluation.scoring import decide
from hemlearn.evaluation.triage import ANSWERS, answers, supported
from hemlearn.reading.engine import Output
from hemlearn.reading.series import Series
from hemlearn.reading.stacks import Stack
from hemlearn.training.run import Run
from hemlearn.util.errors import RunError
from hemlearn.util.files import file_stamp, sha256, writing
from hemlearn.util.run_files import JOURNAL

logger = logging.getLogger(__name__)
_IDS = ["patient_id", "study_id", "series_id"]
FORMAT = 2  # raised when the same files and runs would give other lines


@dataclass(frozen=True)
class Results:
    """What is written.

    Args:
        slices: patient_id, study_id, series_id, slice_id, path, frame, z_mm; ``prob_<c>``; with several runs
            ``low_<c>`` and ``high_<c>``, the least and the largest of their probabilities.
        series: patient_id, study_id, series_id, n_slices, the same, and ``call_<c>``: whether the probability reaches
            the operating point that the run chose on its validation patients (multiclass: ``call``, the class).
        patients: patient_id, n_series, n_slices, and the same.
        thresholds: Level -> label -> operating point, the mean over the runs that could choose one; on the scale of
            ``calibrated`` ones where the runs are calibrated.
        assumed: Level -> labels for which no run could: a default stands in ``thresholds``.
        triage: Level -> label -> cuts of the run that was asked for triage, by which ``triage_<c>`` of series and
            patients is positive, negative or undecided; none of several runs, whose mean has no guarantee.
        scores: Levels whose values are no probabilities: means or maxima over slices, which a run has not calibrated.
    """

    slices: pd.DataFrame
    series: pd.DataFrame
    patients: pd.DataFrame
    thresholds: dict[str, dict[str, float]]
    assumed: dict[str, list[str]] = field(default_factory=dict)
    scores: list[str] = field(default_factory=list)
    triage: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


def run_frames(lines: Sequence[dict[str, Any]], runs: Sequence[Run], calibrated: bool) -> list[pd.DataFrame]:
    """One table per run in the columns of ``predictions.parquet``, without labels.

    Args:
        lines: Of the journal.
        runs: In the order of the arrays of ``lines``.
        calibrated: Apply each run's own calibration.
    """
    sizes = [len(line["slice_id"]) for line in lines]
    ids = pd.DataFrame(
        {
            "split": "test",
            **{name: np.repeat(np.array([line[name] for line in lines], dtype=object), sizes) for name in _IDS},
            **{name: [item for line in lines for item in line[name]] for name in ("slice_id", "path", "frame", "z_mm")},
        }
    )
    frames = []
    for k, run in enumerate(runs):
        labels, frame = run.config.task.labels, ids.copy()
        own = np.concatenate([line["slices"][k] for line in lines])
        for j, label in enumerate(labels):
            frame[f"label_{label}"] = np.nan
            frame[f"prob_{label}"] = own[:, j]
        if run.of_series:
            whole = np.repeat(np.stack([line["whole"][k] for line in lines]), sizes, axis=0)
            for j, label in enumerate(labels):
                frame[f"{SERIES}_{label}"] = whole[:, j]
        frames.append(run.calibration.apply(frame) if calibrated and run.calibration else frame)
    return frames


def combine(lines: Sequence[dict[str, Any]], runs: Sequence[Run], calibrated: bool) -> Results:
    """Average the runs at every level, and call what reaches their operating points.

    The interval is the range over the runs: it tells how far they disagree and is no confidence interval.

    Args:
        lines: Of the journal, in the order of the tables.
        runs: The ensemble.
        calibrated: Whether the probabilities of slices, and those that a sequence model gives for a series, are
            calibrated. Series and patients that are means or maxima over slices always are, where their run can. The
            calls are made on the scale on which the runs chose their operating points.
    """
    if not lines:
        nothing = pd.DataFrame({"patient_id": pd.Series(dtype=str)})
        return Results(nothing, nothing, nothing, {})
    task = runs[0].config.task
    labels = list(task.labels)
    study = {line["series_id"]: line["study_id"] for line in lines}
    frames = {choice: run_frames(lines, runs, choice) for choice in {calibrated, True}}
    tables: dict[str, pd.DataFrame] = {}
    points: dict[str, dict[str, float]] = {}
    scores: list[str] = []
    triage = supported(runs[0].triage) if len(runs) == 1 else {}
    for level in ("slice", "series", "patient"):
        units = {
            choice: [
                _maps(run).aggregate(frames[choice or level in _maps(run).units][k], level, run.config.task.aggregate)
                for k, run in enumerate(runs)
            ]
            for choice in frames
        }
        ranks = (_maps(run).only_ranks(frames[True][k], level, run.config.task.aggregate) for k, run in enumerate(runs))
        scores += [level] if any(ranks) else []
        table = _averaged(units[calibrated], labels)
        points[level] = _points(runs, level, labels)
        if level == "series":
            table.insert(1, "study_id", table["series_id"].map(study))
        if level == "patient":
            counts = frames[calibrated][0].groupby("patient_id", sort=False)["series_id"].nunique()
            table.insert(1, "n_series", table["patient_id"].map(counts).to_numpy())
        if level != "slice":
            _call(
                table, np.mean([prob_array(u, labels) for u in units[True]], axis=0), points[level], labels, task.kind
            )
        for label, cut in triage.get(level, {}).items():
            own = prob_array(units[True][0], labels)[:, labels.index(label)]
            table[f"triage_{label}"] = np.array(ANSWERS, dtype=object)[answers(own, cut)]
        tables[level] = table
    assumed = {level: [label for label in own if not _chosen(runs, level, label)] for level, own in points.items()}
    return Results(
        tables["slice"],
        tables["series"],
        tables["patient"],
        {level: own for level, own in points.items() if own},
        {level: own for level, own in assumed.items() if own},
        scores,
        triage,
    )


def _maps(run: Run) -> Calibration:
    return run.calibration or Calibration.none(run.config.task)


def _averaged(units: Sequence[pd.DataFrame], labels: Sequence[str]) -> pd.DataFrame:
    first = units[0]
    names = [c for c in first if c != "split" and not c.startswith(("label_", "prob_", f"{SERIES}_"))]
    table = first[names].reset_index(drop=True).copy()
    p: NDArray[np.float64] = np.stack([prob_array(unit, labels) for unit in units])
    for j, label in enumerate(labels):
        table[f"prob_{label}"] = p[:, :, j].mean(axis=0)
    if len(units) > 1:
        for j, label in enumerate(labels):
            table[f"low_{label}"], table[f"high_{label}"] = p[:, :, j].min(axis=0), p[:, :, j].max(axis=0)
    return table


def _points(runs: Sequence[Run], level: str, labels: Sequence[str]) -> dict[str, float]:
    """Mean operating point of each label over the runs that could choose it; none where a run has none at all.

    A run whose validation patients lacked a class took a default, which says nothing about the others' choice.
    """
    own = [run.thresholds.get(level, {}) for run in runs]
    if not all(set(labels) <= set(found) for found in own):
        return {}
    found = {label: _chosen(runs, level, label) or runs for label in labels}
    return {label: float(np.mean([run.thresholds[level][label] for run in found[label]])) for label in labels}


def _chosen(runs: Sequence[Run], level: str, label: str) -> list[Run]:
    """The runs that chose this operating point on their validation patients."""
    return [run for run in runs if label not in run.assumed.get(level, ())]


def _call(
    table: pd.DataFrame, p: NDArray[np.float64], points: dict[str, float], labels: Sequence[str], kind: str
) -> None:
    if kind == "multiclass":
        table["call"] = np.array(labels, dtype=object)[p.argmax(axis=1)] if len(p) else []
    elif points:
        calls = decide(p, [points[label] for label in labels], kind)
        for j, label in enumerate(labels):
            table[f"call_{label}"] = calls[:, j].astype(np.int64)


# --- What was predicted already: one line per series in the output folder, so that a call goes on where one stopped.


def series_key(series: Series, runs: Sequence[Run]) -> str:
    """Digest of the runs and of the files' names, sizes and times: equal keys, equal predictions."""
    stamps: dict[str, str] = {}
    place = "" if series.stamp else str(series.root.resolve())  # equal names, sizes and times elsewhere: other files
    for name in series.rows["path"].unique():
        if series.stamp:
            stamps[name] = series.stamp
            continue
        try:
            file = series.root / name
            stamps[name] = f"{file_stamp(file.stat())}:{reader_for(file).key}"
        except OSError as error:
            stamps[name] = str(error.strerror)
    columns = series.rows[["slice_id", "path", "frame", "modality"]]
    rows = [[*row, stamps[row[1]]] for row in columns.itertuples(index=False, name=None)]
    z_mm = [None if z != z else z for z in series.rows["z_mm"].tolist()]
    made = [f"{run.hash}:{file_stamp(run.weights.stat())}" for run in runs]
    identity = [FORMAT, __version__, made, place, series.series_id, series.patient_id, rows, z_mm]
    return sha256(json.dumps(identity, default=str))[:24]


def _sum(content: dict[str, Any]) -> str:
    """Digest of a line, so that no probability is taken that was changed since."""
    return sha256(json.dumps(content))[:16]


class Journal:
    """The lines of an output folder.

    Args:
        folder: The output folder; it exists. None: lines are kept in memory.

    Raises:
        RunError: The file cannot be read.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / JOURNAL
        self._places: dict[str, int] = {}
        self._memory: dict[str, bytes] = {}
        if self.path is None or not self.path.exists():
            return
        end = 0
        with self._open("rb") as file:
            for line in file:
                try:
                    content = json.loads(line)
                    if content.pop("sum") != _sum(content):
                        raise ValueError("changed")
                    self._places[str(content["key"])] = end
                except (ValueError, KeyError, TypeError, AttributeError):
                    logger.warning("%s: a line is damaged or changed; its series is predicted again", self.path)
                    if not line.endswith(b"\n"):
                        break
                end += len(line)
        if end < self.path.stat().st_size:  # cut the torn line off, or the next one would be glued to it
            with self._open("r+b") as file:
                file.truncate(end)

    def _open(self, mode: str) -> Any:
        assert self.path is not None
        try:
            return self.path.open(mode)
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror or error}", remedy="choose another out=DIR") from error

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._memory

    def add(self, key: str, stack: Stack, output: Output) -> None:
        """Write one series down, at once.

        Raises:
            RunError: The disk is full, or the file cannot be written.
        """
        rows = stack.series.rows
        content = {
            "key": key,
            **{name: getattr(stack.series, name) for name in _IDS},
            **{name: rows[name].tolist() for name in ("slice_id", "path", "frame")},
            "z_mm": [None if z != z else z for z in rows["z_mm"].tolist()],
            "slices": output.slices.tolist(),
            "whole": [None if item is None else item.tolist() for item in output.whole],
            "failures": [list(item) for item in stack.failures],
            "remarks": list(stack.remarks),
            "content": stack.content,
        }
        line = json.dumps(content | {"sum": _sum(content)}).encode() + b"\n"
        if self.path is None:
            self._memory[key] = line
            return
        with self._open("ab") as file:
            place = file.tell()
            with writing(self.path, "free some space; the same command goes on from here"):
                file.write(line)
                file.flush()
        self._places[key] = place

    def get(self, key: str) -> dict[str, Any]:
        """The line of a series; ``slices`` and the items of ``whole`` as arrays."""
        line = self._memory.get(key)
        if line is None:
            with self._open("rb") as file:
                file.seek(self._places[key])
                line = file.readline()
        content: dict[str, Any] = json.loads(line)
        content["slices"] = np.array(content["slices"], dtype=np.float64)
        content["whole"] = [None if item is None else np.array(item, dtype=np.float64) for item in content["whole"]]
        content["z_mm"] = [float("nan") if z is None else float(z) for z in content["z_mm"]]
        return content
