"""``hemlearn predict labels=FILE``: what the predictions are worth where the truth is known."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.audits.seen import leaves_table, read_seen
from hemlearn.config.schema import TaskConfig
from hemlearn.data.label_rows import (
    ACCESSION,
    ACCESSION_TAG,
    SPELLINGS,
    alike_note,
    column_of,
    element_of,
    flag_columns,
    label_rows,
    owners,
    placed,
    plain_name,
    some_ids,
    unplaced,
)
from hemlearn.data.scan_cache import digest_of
from hemlearn.evaluation.auroc import CONFIDENCE
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.predictions import LEVELS, label_array, prob_array
from hemlearn.evaluation.scoring import decide, summarise
from hemlearn.reading.results import Results, run_frames
from hemlearn.reading.series import Series
from hemlearn.training.run import Run
from hemlearn.util.errors import DataError, count, hint
from hemlearn.util.tables import no_header, read_table

METRICS, UNMATCHED = "metrics.json", "unmatched.csv"
HALF = 0.5  # where a run has no operating point
_LEVELS = {
    "slice_id": LEVELS,
    "path": LEVELS,
    "series_id": LEVELS[1:],
    "study_id": LEVELS[1:],
    ACCESSION: LEVELS[1:],
    "patient_id": LEVELS[2:],
}
SEEN = (
    "files were compared, byte for byte, with those that the run has learnt from; copies saved anew, and other images "
    "of the same patients, are what `hemlearn evaluate` finds"
)


@dataclass(frozen=True)
class Truth:
    """A table of labels.

    Args:
        file: Where it comes from.
        key: What its ids stand for: a column of the predictions, or the AccessionNumber of their files.
        table: One float column per label (0, 1, NaN), indexed by the id.
    """

    file: Path
    key: str
    table: pd.DataFrame

    @property
    def labels(self) -> list[str]:
        """Those of the run that the table has."""
        return list(map(str, self.table.columns))


@dataclass(frozen=True)
class Scores:
    """What came of it.

    Args:
        metrics: Content of ``metrics.json``: ``test`` by level, ``about``.
        notes: What a reader should know, one sentence each.
        unmatched: (item, reason) of rows without a prediction and predictions without a row.
        truth: Slice id -> labels, where the table labels slices; else none.
        leaky: What is said where a run has learnt from files that are scored; "" where it has not.
    """

    metrics: dict[str, Any]
    notes: list[str]
    unmatched: list[tuple[str, str]]
    truth: pd.DataFrame = field(default_factory=pd.DataFrame)
    leaky: str = ""


def read_truth(file: Path, task: TaskConfig, but: Collection[str] = ()) -> Truth:
    """Read a table of labels of what is predicted: CSV or ``.xlsx``.

    Its ids are those of slices, files, series, studies, accessions or patients, the finest that it has; its labels
    those of the run, by name; each 0, 1 or nothing.

    Args:
        file: The table.
        task: Whose labels are wanted.
        but: Kinds of ids that are left out.

    Raises:
        DataError: No such file, no column of ids or of a label; an empty or repeated id, a label that is none, with
            the row.
    """
    if not file.is_file():
        raise DataError(f"labels={file}: no such file", remedy="give a CSV or .xlsx file of labels")
    wanted = {key: spellings for key, spellings in SPELLINGS.items() if key not in but}
    keys = {spelling for spellings in wanted.values() for spelling in spellings}
    table = read_table(file, lambda name: name in task.labels or plain_name(name) in keys)
    names = list(map(str, table.columns))
    found = ((key, column_of(table, file, spellings, key)) for key, spellings in wanted.items())
    key, column = next(((key, name) for key, name in found if name is not None), ("", None))
    if column is None:
        raise DataError(
            f"{file}: no column of ids; found: {', '.join(names)}{no_header(names)}",
            remedy=f"call the column {', '.join(wanted)}",
        )
    labels = [label for label in task.labels if label in names]
    absent = [label for label in task.labels if label not in names]
    if not labels or (absent and task.kind == "multiclass"):
        flags = [name for name in flag_columns(table) if name != column]
        remedy = f"call its columns as the run does: {', '.join(task.labels)}"
        near = hint(absent[0], names)
        told = f"; its columns of 0 and 1 are: {', '.join(flags)}" if flags else ""
        raise DataError(f"{file}: no column of the run's label {absent[0]!r}{near}{told}", remedy=remedy)
    return Truth(file, key, label_rows(table, column, labels, file))


def score(
    truth: Truth, results: Results, lines: Sequence[dict[str, Any]], runs: Sequence[Run], series: Sequence[Series]
) -> Scores:
    """Metrics of predictions with 95 % intervals, at the level of the labels and above.

    What is scored is what the tables call: calibrated probabilities where the runs have such, the mean over the runs of
    an ensemble, and their operating points. Patients are resampled, never single slices of them.

    Raises:
        DataError: No prediction has a row.
    """
    frames = run_frames(lines, runs, calibrated=True)
    notes: list[str] = []
    ids = _ids(truth.key, frames[0], series)
    if truth.key == ACCESSION and not ids.any():  # pictures, say: the table's other ids are all there is
        notes.append(f"{truth.file.name}: no file has an {ACCESSION_TAG}, so that its other ids are matched")
        truth = read_truth(truth.file, runs[0].config.task, but=(ACCESSION,))
        ids = _ids(truth.key, frames[0], series)
    place, alike, told = _places(truth, ids)
    notes += told
    known = place.notna().to_numpy()
    if not known.any():
        where = f"in the files, {ACCESSION_TAG}" if truth.key == ACCESSION else "in slices.csv"
        raise DataError(
            f"{truth.file}: none of its {count(len(truth.table), 'row')} is about what was predicted: its {truth.key} "
            f"are {some_ids(truth.table.index)}; predicted were {some_ids(dict.fromkeys(ids))}",
            remedy=f"write the ids as they stand {where}",
        )
    for frame in frames:
        for label in truth.labels:
            frame[f"label_{label}"] = truth.table[label].reindex(place).to_numpy()
    task, labels = runs[0].config.task, list(runs[0].config.task.labels)
    columns = [labels.index(label) for label in truth.labels]
    found: dict[str, Any] = {}
    thresholds: dict[str, dict[str, float]] = {}
    assumed: list[str] = []
    for level in _LEVELS[truth.key]:
        how = task.aggregate
        units = [_maps(run).aggregate(frame, level, how) for run, frame in zip(runs, frames, strict=True)]
        y = label_array(units[0], labels)[:, columns]
        p = np.mean([prob_array(unit, labels) for unit in units], axis=0)
        own = results.thresholds.get(level, {})
        assumed += [level] if not own and task.kind != "multiclass" else []
        points = [own.get(label, HALF) for label in labels]
        decision = decide(p, points, task.kind)[:, columns]
        some = ~np.isnan(y).all(axis=1)
        if not some.any():
            continue
        thresholds[level] = {label: points[column] for label, column in zip(truth.labels, columns, strict=True)}
        weights = task.label_weights
        found[level] = summarise(
            y[some],
            p[some][:, columns],
            decision[some],
            units[0].loc[some, "patient_id"].to_numpy(),
            truth.labels,
            task.kind,
            label_weights=None if weights is None else [weights[column] for column in columns],
            scores=level in results.scores,
        )
    unmatched = _unmatched(truth, ids, place, frames[0]["series_id"])
    notes += alike_note(truth.file, truth.key, alike, truth.table.index)
    absent = [label for label in labels if label not in truth.labels]
    if absent:
        notes.append(f"labels of the run that {truth.file.name} does not hold are left out: {', '.join(absent)}")
    if assumed:
        notes.append(f"no operating point of {', '.join(assumed)}: called from {HALF:g} on")
    rows = len(truth.table) - sum(reason.startswith("label") for _, reason in unmatched)
    about = {
        "labels": truth.file.name,
        "key": truth.key,
        "rows": len(truth.table),
        "rows_used": rows,
        "slices": int(known.sum()),
        "slices_without_label": int((~known).sum()),
        "confidence": CONFIDENCE,
        "thresholds": thresholds,
        "scores": [level for level in results.scores if level in found],
    }
    files = {item.root / path for item in series for path in item.rows["path"]}
    seen, unknown = _learnt_from(files, runs)
    about |= {"files": len(files), "files_seen": seen}
    leaky = (
        f"LEAKY: {seen} of {count(len(files), 'file')} scored trained or validated the run: these figures are not of "
        "new patients"
        if seen
        else ""
    )
    of_slices = truth.key in ("slice_id", "path")
    marked = frames[0].set_index("slice_id")[[f"label_{label}" for label in labels]] if of_slices else pd.DataFrame()
    notes = [*([leaky] if leaky else []), *notes, *unknown, SEEN]
    return Scores({"test": found, "leaky": bool(seen), "about": about}, notes, unmatched, marked, leaky)


def _learnt_from(files: Collection[Path], runs: Sequence[Run]) -> tuple[int, list[str]]:
    """How many of the files some run has trained or validated with, and what cannot be told."""
    known: set[str] = set()
    notes: list[str] = []
    for run in runs:
        if leaves_table(run.provenance):
            known |= set(read_seen(run.path)["content"])
        else:
            notes.append(f"run {run.hash}, of an earlier version, does not say which files it has learnt from")
    return sum(digest_of(file.read_bytes()) in known for file in files) if known else 0, notes


def _maps(run: Run) -> Calibration:
    return run.calibration or Calibration.none(run.config.task)


def _ids(key: str, frame: pd.DataFrame, series: Sequence[Series]) -> pd.Series[str]:
    """Of each slice the id by which a table may call it; "": it has none."""
    if key != ACCESSION:
        return frame[key].astype(str)
    told = {one.series_id: element_of(one.root / one.rows["path"].iloc[0], "AccessionNumber") for one in series}
    return frame["series_id"].map(told).fillna("").astype(str)


def _places(truth: Truth, ids: pd.Series[str]) -> tuple[pd.Series[Any], list[tuple[str, str]], list[str]]:
    """Of each slice the id that its labels have in the table; ids that are alike; notes."""
    rows = list(truth.table.index)
    if truth.key == "path" and not set(ids) & set(rows):  # the table's folders are others, or it names none
        for part in ("name", "stem"):
            names = pd.Series([getattr(PurePosixPath(path), part) for path in ids], index=ids.index)
            given = {getattr(PurePosixPath(str(row).replace("\\", "/")), part): row for row in rows}
            found, alike = owners(list(given), list(dict.fromkeys(names)))
            if found and names.nunique() == ids.nunique() and len(given) == len(rows):
                told = f"{truth.file.name}: files are matched by their names, whatever their folders"
                return names.map(found).map(given), alike, [told]
    return *placed(rows, ids), []


def _unmatched(
    truth: Truth, ids: pd.Series[str], place: pd.Series[Any], series: pd.Series[str]
) -> list[tuple[str, str]]:
    lost = unplaced(truth.file, truth.table.index, place, f"label without prediction: no {truth.key}")
    left = dict.fromkeys(ids[place.isna() & (ids != "")])
    lost += [(name, f"prediction without label: no such {truth.key} in {truth.file.name}") for name in left]
    nameless = dict.fromkeys(series[ids == ""].astype(str))
    return lost + [(name, f"prediction without label: its files have no {ACCESSION_TAG}") for name in nameless]


def slice_truth(scores: Scores | None, slice_ids: Sequence[str]) -> NDArray[np.float64] | None:
    """(S, L) labels of some slices; None where they are not known slice by slice."""
    if scores is None or scores.truth.empty:
        return None
    return np.asarray(scores.truth.reindex(slice_ids).to_numpy(dtype=np.float64))
