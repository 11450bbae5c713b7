"""An exported model beside the run it came from, on the run's own test slices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hemlearn.config.schema import Config
from hemlearn.data.batches import SeriesDataset
from hemlearn.data.preprocess import HEAD, Preprocess, head_squares
from hemlearn.data.readers import reader_for
from hemlearn.datamodules.base import SliceDataModule, position_order
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.predictions import SERIES, prob_array
from hemlearn.reading.export.formats import Arrays, Caller
from hemlearn.tasks.base import Classification
from hemlearn.tasks.slices import SliceClassification
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import DataError, RunError

TOLERANCE = 1e-4
_BATCH = 8  # slices of one size that pass a slice model at once
_SECONDS = 1.0  # each side of the speed comparison runs at least this long


@dataclass(frozen=True)
class Cases:
    """What the model gets, and what the run says to it.

    Attributes:
        given: Inputs of each call, as files hold them.
        wanted: Outputs of the run's network on its own preprocessing, calibrated.
        stored: Outputs as ``predictions.parquet`` holds them; None where they are calibrated otherwise.
        slices: Ids of the slices of each call.
        left_out: Slices chosen but not taken, and why.
    """

    given: list[Arrays]
    wanted: list[Arrays]
    stored: list[Arrays] | None
    slices: list[list[str]]
    left_out: dict[str, int]


def test_cases(
    folder: Path,
    config: Config,
    task: Classification,
    calibration: Calibration | None,
    *,
    count: int,
    inputs: tuple[str, ...],
    dtype: str,
    root: str | None,
) -> Cases:
    """Slices of a run's test set, spread evenly over it; whole series for a sequence model.

    Args:
        folder: The run folder.
        config: Of the run.
        task: Its network, in evaluation mode.
        calibration: What the exported model applies; None: nothing.
        count: Slices wanted; series are added until they hold as many.
        inputs: Names of the model's inputs.
        dtype: Type of the input ``image``.
        root: Where the data set lies now; None: where the run found it.

    Raises:
        DataError: The data are not where they were, or hold other slices than the run was tested on.
    """
    data = build_datamodule(config if root is None else config.changed({"data.root": root}))
    frame = pd.read_parquet(folder / "predictions.parquet")
    frame = frame[frame["split"] == "test"].set_index("slice_id")
    table = data.manifest.table
    row_of = pd.Series(np.arange(len(table)), index=table["slice_id"])
    absent = frame.index.difference(row_of.index)
    if len(absent) or not len(frame):
        raise DataError(
            f"{data.root}: {len(absent)} of the run's {len(frame)} test slices are not in it"
            + (f", the first {absent[0]!r}" if len(absent) else ""),
            remedy="give the run's own data set with data.root=DIR",
        )
    rows = np.sort(row_of[frame.index].to_numpy(dtype=np.int64))
    files = _Files(data, dtype)
    if isinstance(task, SliceClassification):
        found = _slice_cases(data, task, rows, count, files)
    else:
        assert isinstance(task, VolumeClassification)
        found = _series_cases(data, task, rows, count, files, inputs)
    labels = config.task.labels
    wanted = [_calibrated(item, labels, calibration) for item in found.wanted]
    applied = config.task.calibration if calibration is not None else "none"
    stored = None
    if applied == config.task.calibration:
        stored = [_arrays(frame.reindex(ids), labels, item) for ids, item in zip(found.slices, wanted, strict=True)]
    return replace(found, wanted=wanted, stored=stored, left_out=files.left_out)


class _Files:
    """Slices as their files hold them, in the unit of the run."""

    def __init__(self, data: SliceDataModule, dtype: str) -> None:
        self.data, self.dtype, self.unit = data, dtype, data.store.unit
        self.stack = data.all_slices().stack
        self.left_out: dict[str, int] = {}
        self.preprocess = Preprocess(data.image_size, data.fit, self.unit)
        self.squares = head_squares(data.manifest.table) if data.fit == HEAD else None

    def stacked(self, rows: NDArray[np.int64]) -> NDArray[Any] | None:
        """``(S, N, H, W)`` of slices with their neighbours; None, counted, where they differ in size."""
        parts = [[self._pixels(int(row)) for row in self.stack[item]] for item in rows]
        if len({part.shape for own in parts for part in own}) > 1:
            reason = "slices of different height or width in one stack"
            self.left_out[reason] = self.left_out.get(reason, 0) + len(rows)
            return None
        return np.array(parts).astype(self.dtype)

    def _pixels(self, row: int) -> NDArray[Any]:
        manifest = self.data.manifest
        item = manifest.table.iloc[row]
        path = manifest.root / item["path"]
        reader = reader_for(path)
        pixels = reader.decode(path, int(item["frame"]), item["modality"])
        cut = None if self.squares is None else self.squares[row]
        return self.preprocess.region(pixels, reader.unit_of(item["modality"]), cut)


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` of the rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64))]


def _slice_cases(
    data: SliceDataModule, task: SliceClassification, rows: NDArray[np.int64], count: int, files: _Files
) -> Cases:
    by_shape: dict[tuple[int, ...], list[tuple[int, NDArray[Any]]]] = {}
    for row in _spread(rows, count):
        image = files.stacked(np.array([row]))
        if image is not None:
            by_shape.setdefault(image.shape, []).append((int(row), image[0]))
    cases = Cases([], [], [], [], {})
    for items in by_shape.values():
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            chosen = [row for row, _ in part]
            with torch.inference_mode():
                prob = task.probabilities(data.all_slices().__getitems__(chosen)["image"])
            cases.given.append({"image": np.stack([image for _, image in part])})
            cases.wanted.append({"probability": prob.numpy()})
            cases.slices.append(data.manifest.table["slice_id"].iloc[chosen].tolist())
    return cases


def _series_cases(
    data: SliceDataModule,
    task: VolumeClassification,
    rows: NDArray[np.int64],
    count: int,
    files: _Files,
    inputs: tuple[str, ...],
) -> Cases:
    tested = np.zeros(len(data.manifest.table), dtype=bool)
    tested[rows] = True
    series = [own for own in position_order(data) if tested[own].any()]
    cases, taken = Cases([], [], [], [], {}), 0
    z_mm = data.manifest.table["z_mm"].to_numpy(dtype=np.float64)
    for index in _scattered(len(series)):
        if taken >= count:
            break
        own = series[index]
        image = files.stacked(own)
        if image is None:
            continue
        batch = SeriesDataset([own], data.labels, tested, z_mm, slices=data.all_slices())[0]
        with torch.inference_mode():
            slices, whole = task.probabilities(batch)
        if data.level != "slice":
            slices = whole.expand(slices.shape)
        given: Arrays = {"image": image, "z_mm": z_mm[own].astype(np.float32)}
        cases.given.append({name: given[name] for name in inputs})
        cases.wanted.append({"slice_probability": slices.numpy(), "series_probability": whole[0].numpy()})
        cases.slices.append(data.manifest.table["slice_id"].iloc[own].tolist())
        taken += len(own)
    return cases


def _scattered(size: int) -> NDArray[np.int64]:
    """All of 0 to size - 1 in an order whose every beginning is spread over the whole: a fixed shuffle."""
    return np.random.default_rng(0).permutation(size).astype(np.int64)


def _calibrated(found: Arrays, labels: list[str], calibration: Calibration | None) -> Arrays:
    if calibration is None:
        return found
    one = next(iter(found.values()))
    series = found.get("series_probability")
    columns = {f"prob_{label}": one[:, j].astype(np.float64) for j, label in enumerate(labels)}
    if series is not None:
        columns |= {f"{SERIES}_{label}": np.full(len(one), float(series[j])) for j, label in enumerate(labels)}
    return _arrays(calibration.apply(pd.DataFrame(columns)), labels, found)


def _arrays(frame: pd.DataFrame, labels: list[str], like: Arrays) -> Arrays:
    """Columns of a predictions table as the model's outputs; NaN for slices that are not in it."""
    found: Arrays = {next(iter(like)): prob_array(frame, labels)}
    if "series_probability" in like:
        found["series_probability"] = np.nanmax(prob_array(frame, labels, SERIES), axis=0)  # the same on every slice
    return found


# --- comparison ---
def compare(call: Caller, cases: Cases) -> dict[str, Any]:
    """Largest differences of probabilities between an exported model and its run.

    Returns:
        ``slices`` and ``calls`` compared, ``largest_difference`` to the run's network, ``worst_slice`` (its id),
        ``to_predictions_file`` (None where that file is calibrated otherwise), ``left_out`` (reason -> slices).

    Raises:
        RunError: An output is not finite or has another shape.
    """
    largest, worst, stored = 0.0, None, None if cases.stored is None else 0.0
    for index, (given, wanted) in enumerate(zip(cases.given, cases.wanted, strict=True)):
        found = call(given)
        for name, value in wanted.items():
            if found[name].shape != value.shape or not np.isfinite(found[name]).all():
                raise RunError(
                    f"the exported model gives {name} of shape {found[name].shape} for "
                    f"{value.shape}, finite: {bool(np.isfinite(found[name]).all())}",
                    remedy="try the other format, and report the backbone",
                )
            away = np.abs(found[name].astype(np.float64) - value)
            if worst is None or away.max() > largest:
                row = int(away.max(axis=1).argmax()) if away.ndim == 2 else 0
                largest, worst = float(away.max()), cases.slices[index][row]
            if cases.stored is not None and stored is not None:
                stored = max(stored, float(np.nanmax(np.abs(found[name] - cases.stored[index][name]))))
    return {
        "slices": sum(map(len, cases.slices)),
        "calls": len(cases.given),
        "tolerance": TOLERANCE,
        "largest_difference": largest,
        "worst_slice": worst,
        "to_predictions_file": stored,
        "left_out": cases.left_out,
    }


def speed(callers: dict[str, Caller], cases: Cases) -> dict[str, Any]:
    """Images per second of several functions on the same input, the largest call of the check.

    They take turns, so that a machine that slows down slows all of them; each has one call before the clock starts.
    """
    given = max(cases.given, key=lambda item: item["image"].size)
    shape = given["image"].shape
    spent, calls = dict.fromkeys(callers, 0.0), dict.fromkeys(callers, 0)
    for call in callers.values():
        call(given)
    for name in _turns(spent):
        start = time.perf_counter()
        callers[name](given)
        spent[name] += time.perf_counter() - start
        calls[name] += 1
    rates = {name: round(shape[0] * calls[name] / spent[name], 2) for name in callers}
    return {"input": list(shape), "threads": torch.get_num_threads(), "images_per_second": rates}


def _turns(spent: dict[str, float]) -> Iterator[str]:
    while min(spent.values()) < _SECONDS:
        yield from spent
