"""Predictions per slice, series and patient, averaged over the members of an ensemble."""

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
from hemlearn.evaluation.predictions import SERIES, aggregate, prob_array
from hemlearn.evaluation.scoring import decide
from hemlearn.reading.engine import Output
from hemlearn.reading.members import Member
from hemlearn.reading.select_series import Series
from hemlearn.util.errors import RunError
from hemlearn.util.files import sha256

_IDS = ["patient_id", "study_id", "series_id"]


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
    """

    slices: pd.DataFrame
    series: pd.DataFrame
    patients: pd.DataFrame
    thresholds: dict[str, dict[str, float]]
    assumed: dict[str, list[str]] = field(default_factory=dict)


def member_frames(lines: Sequence[dict[str, Any]], members: Sequence[Member], calibrated: bool) -> list[pd.DataFrame]:
    """One table per member in the columns of ``predictions.parquet``, without labels.

    Args:
        lines: Of the journal.
        members: The runs, in the order of the arrays of ``lines``.
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
    for k, member in enumerate(members):
        labels = member.run.config.task.labels
        frame = ids.copy()
        own = np.concatenate([line["slices"][k] for line in lines])
        for j, label in enumerate(labels):
            frame[f"label_{label}"] = np.nan
            frame[f"prob_{label}"] = own[:, j]
        if member.of_series:
            whole = np.repeat(np.stack([line["whole"][k] for line in lines]), sizes, axis=0)
            for j, label in enumerate(labels):
                frame[f"{SERIES}_{label}"] = whole[:, j]
        frames.append(member.run.calibration.apply(frame) if calibrated and member.run.calibration else frame)
    return frames


def combine(lines: Sequence[dict[str, Any]], members: Sequence[Member], calibrated: bool) -> Results:
    """Average the members at every level, and call what reaches their operating points.

    The interval is the range over the members: it tells how far the runs disagree and is no confidence interval.

    Args:
        lines: Of the journal, in the order of the tables.
        members: The runs.
        calibrated: Whether the probabilities written are calibrated. The calls are always made on the scale on which
            the runs chose their operating points.
    """
    task = members[0].run.config.task
    labels = list(task.labels)
    shown, judged = (member_frames(lines, members, choice) for choice in (calibrated, True))
    study = {line["series_id"]: line["study_id"] for line in lines}
    tables: dict[str, pd.DataFrame] = {}
    points: dict[str, dict[str, float]] = {}
    for level in ("slice", "series", "patient"):
        units = [
            aggregate(frame, level, member.run.config.task.aggregate, task.kind)
            for frame, member in zip(shown, members, strict=True)
        ]
        table = _averaged(units, labels)
        if level == "series":
            table.insert(1, "study_id", table["series_id"].map(study))
        if level == "patient":
            counts = shown[0].groupby("patient_id", sort=False)["series_id"].nunique()
            table.insert(1, "n_series", table["patient_id"].map(counts).to_numpy())
        points[level] = _points(members, level, labels)
        if level != "slice":
            exact = [
                aggregate(frame, level, member.run.config.task.aggregate, task.kind)
                for frame, member in zip(judged, members, strict=True)
            ]
            p = np.mean([prob_array(unit, labels) for unit in exact], axis=0)
            _call(table, p, points[level], labels, task.kind)
        tables[level] = table
    assumed = {
        level: [label for label in found if not _chosen(members, level, label)] for level, found in points.items()
    }
    return Results(
        tables["slice"],
        tables["series"],
        tables["patient"],
        {k: v for k, v in points.items() if v},
        {level: found for level, found in assumed.items() if found},
    )


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


def _points(members: Sequence[Member], level: str, labels: Sequence[str]) -> dict[str, float]:
    """Mean operating point of each label over the runs that could choose it; none where a run has none at all.

    A run whose validation patients lacked a class took a default, which says nothing about the others' choice.
    """
    every = [member.thresholds.get(level, {}) for member in members]
    if not all(set(labels) <= set(found) for found in every):
        return {}
    found = {label: _chosen(members, level, label) or members for label in labels}
    return {label: float(np.mean([member.thresholds[level][label] for member in found[label]])) for label in labels}


def _chosen(members: Sequence[Member], level: str, label: str) -> list[Member]:
    """The runs that chose this operating point on their validation patients."""
    return [member for member in members if label not in member.assumed.get(level, ())]


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


logger = logging.getLogger(__name__)
FORMAT = 1  # raised when the same files and runs would give other lines
NAME = "journal.jsonl"


def series_key(series: Series, members: Sequence[Member]) -> str:
    """Digest of the runs and of the files' names, sizes and times: equal keys, equal predictions."""
    stamps: dict[str, str] = {}
    place = "" if series.stamp else str(series.root.resolve())  # equal names, sizes and times elsewhere: other files
    for name in series.rows["path"].unique():
        if series.stamp:
            stamps[name] = series.stamp
            continue
        try:
            info = (series.root / name).stat()
            stamps[name] = f"{info.st_size}:{info.st_mtime_ns}:{reader_for(name).key}"
        except OSError as error:
            stamps[name] = str(error.strerror)
    rows = [
        [*row, stamps[row[1]]]
        for row in series.rows[["slice_id", "path", "frame", "modality"]].itertuples(index=False, name=None)
    ]
    z_mm = [None if z != z else z for z in series.rows["z_mm"].tolist()]
    identity = [
        FORMAT,
        __version__,
        [_stamp(member) for member in members],
        place,
        series.series_id,
        series.patient_id,
        rows,
        z_mm,
    ]
    return sha256(json.dumps(identity, default=str))[:24]


def _stamp(member: Member) -> str:
    info = (member.folder / "checkpoints" / "best.ckpt").stat()
    return f"{member.hash}:{info.st_size}:{info.st_mtime_ns}"


class Journal:
    """The lines of an output folder.

    Args:
        folder: The output folder; it exists.

    Raises:
        RunError: The file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._places: dict[str, int] = {}
        if not self.path.exists():
            return
        end = 0
        with self._open("rb") as file:
            for line in file:
                try:
                    self._places[str(json.loads(line)["key"])] = end
                except (ValueError, KeyError, TypeError):
                    logger.warning(
                        "%s: a line is damaged, as a killed call leaves it; its series is predicted again", self.path
                    )
                    if not line.endswith(b"\n"):
                        break
                end += len(line)
        if end < self.path.stat().st_size:  # cut the torn line off, or the next one would be glued to it
            with self._open("r+b") as file:
                file.truncate(end)

    def _open(self, mode: str) -> Any:
        try:
            return self.path.open(mode)
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror or error}", remedy="choose another out=DIR") from error

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, series: Series, output: Output, failures: Sequence[tuple[str, str]]) -> None:
        """Write one series down, at once.

        Raises:
            RunError: The disk is full, or the file cannot be written.
        """
        rows = series.rows
        content = {
            "key": key,
            "patient_id": series.patient_id,
            "study_id": series.study_id,
            "series_id": series.series_id,
            "slice_id": rows["slice_id"].tolist(),
            "path": rows["path"].tolist(),
            "frame": rows["frame"].tolist(),
            "z_mm": [None if z != z else z for z in rows["z_mm"].tolist()],
            "slices": output.slices.tolist(),
            "whole": [None if item is None else item.tolist() for item in output.whole],
            "failures": [list(item) for item in failures],
        }
        line = json.dumps(content).encode() + b"\n"
        with self._open("ab") as file:
            place = file.tell()
            try:
                file.write(line)
                file.flush()
            except OSError as error:
                raise RunError(
                    f"{self.path}: cannot be written ({error.strerror or error})",
                    remedy="free some space; the same command goes on from here",
                ) from error
        self._places[key] = place

    def get(self, key: str) -> dict[str, Any]:
        """The line of a series; ``slices`` and the members of ``whole`` as arrays."""
        with self._open("rb") as file:
            file.seek(self._places[key])
            content: dict[str, Any] = json.loads(file.readline())
        content["slices"] = np.array(content["slices"], dtype=np.float64)
        content["whole"] = [None if item is None else np.array(item, dtype=np.float64) for item in content["whole"]]
        content["z_mm"] = [float("nan") if z is None else float(z) for z in content["z_mm"]]
        return content
