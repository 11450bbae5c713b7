"""An exported model beside the run it came from, on the run's own test slices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hemlearn.data.batches import neighbour_stack
from hemlearn.data.manifest import Manifest
from hemlearn.data.preprocess import HEAD, Square
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.predictions import SERIES, prob_array
from hemlearn.reading.engine import Output, Predictor
from hemlearn.reading.export.model import Arrays, Caller
from hemlearn.reading.overlap import own_data
from hemlearn.reading.predict import manifest_series
from hemlearn.reading.stacks import unit_of
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import Run
from hemlearn.util.console import NOTICED, track
from hemlearn.util.errors import DataError, RunError

TOLERANCE = 1e-4
_BATCH = 8  # slices of one size that pass a slice model at once
_UNEVEN: NDArray[Any] = np.empty(0)  # instead of slices that differ in size
_SECONDS = 1.0  # each side of the speed comparison runs at least this long


@dataclass(frozen=True)
class Cases:
    """What the model gets, and what the run says to it, call by call.

    Args:
        given: Inputs, as files hold them.
        wanted: Outputs of the run's network on its own preprocessing, calibrated.
        stored: Outputs as ``predictions.parquet`` holds them; None where they are calibrated otherwise.
        slices: Ids of the slices.
        skip_reasons: Slices chosen but not taken, and why.
    """

    given: list[Arrays]
    wanted: list[Arrays]
    stored: list[Arrays] | None
    slices: list[list[str]]
    skip_reasons: dict[str, int]


def test_cases(
    run: Run, calibration: Calibration | None, *, count: int, inputs: tuple[str, ...], dtype: str, root: str | None
) -> Cases:
    """At least ``count`` slices of a run's test set, spread evenly over it; whole series for a sequence model.

    Args:
        run: The run.
        calibration: What the exported model applies; None: nothing.
        count: Slices wanted.
        inputs: Names of the model's inputs.
        dtype: Type of the input ``image``.
        root: Where the data set lies now; None: where the run found it.

    Raises:
        DataError: The data are not where they were, or hold other slices than the run was tested on.
        RunError: See :func:`hemlearn.reading.overlap.own_data`.
    """
    config, labels = run.config, run.config.task.labels
    data = build_datamodule(own_data(run, root))
    frame = run.read_predictions(["test"], check=False).set_index("slice_id")
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
    files = _Files(run, data.manifest, dtype)
    found = _series_cases(files, rows, count, inputs) if run.of_series else _slice_cases(files, rows, count)
    wanted = [_calibrated(item, labels, calibration) for item in found.wanted]
    applied = config.task.calibration if calibration is not None else "none"
    stored = None
    if applied == config.task.calibration:
        stored = [_arrays(frame.reindex(ids), labels, item) for ids, item in zip(found.slices, wanted, strict=True)]
    return replace(found, wanted=wanted, stored=stored, skip_reasons=files.skip_reasons)


class _Files:
    """Series of the test set: their slices as the files hold them, in the unit of the run, and what the run says."""

    def __init__(self, run: Run, manifest: Manifest, dtype: str) -> None:
        self.run, self.manifest, self.dtype = run, manifest, dtype
        self.predictor = Predictor([run], torch.device("cpu"))
        self.skip_reasons: dict[str, int] = {}
        self.series = list(manifest.table.groupby("series_id", sort=False).indices.values())

    def read(self, rows: NDArray[np.int64]) -> tuple[list[NDArray[Any]], Output]:
        """Per slice ``(N, H, W)`` of itself and its neighbours, and the run's probabilities of slices of one series.

        Raises:
            DataError: A slice cannot be read.
        """
        (stack,) = self.predictor.read(manifest_series(self.manifest, rows), keep=True)
        if stack.refused or stack.failures:
            reason = stack.refused or f"{stack.failures[0][0]}: {stack.failures[0][1]}"
            raise DataError(f"{self.manifest.root}: {reason}", remedy="give the run's own data set with data.root=DIR")
        step = self.predictor.steps[0]
        cuts: list[Square | None] = [None] * len(rows)
        if step.fit == HEAD:
            cuts = [(int(top), int(left), int(side)) for top, left, side, _ in stack.boxes[step]]
        own = unit_of(stack.series)
        pixels = [step.region(found, own, cut) for found, cut in zip(stack.pixels, cuts, strict=True)]
        order = np.arange(len(rows), dtype=np.int64)
        z_mm = self.manifest.table["z_mm"].to_numpy(dtype=np.float64)[rows]
        near = neighbour_stack(np.zeros(len(rows), dtype=object), z_mm, order, self.run.config.channels.neighbours)
        stacks = [[pixels[k] for k in places] for places in near]
        images = [np.array(found) if len({item.shape for item in found}) == 1 else _UNEVEN for found in stacks]
        return images, self.predictor([stack])[0]

    def skip(self, slices: int) -> None:
        """Count slices that cannot be stacked."""
        reason = "slices of different height or width in one stack"
        self.skip_reasons[reason] = self.skip_reasons.get(reason, 0) + slices

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Names of slices."""
        return [str(item) for item in self.manifest.table["slice_id"].iloc[list(rows)]]


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` of the rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64))]


def _slice_cases(files: _Files, rows: NDArray[np.int64], count: int) -> Cases:
    config = files.run.config
    chosen = _spread(rows, count)
    whole = bool(config.channels.neighbours) or config.data.fit == HEAD
    by_shape: dict[tuple[int, ...], list[tuple[int, NDArray[Any], NDArray[Any]]]] = {}
    for own in files.series:
        wanted = own[np.isin(own, chosen)]
        if not len(wanted):
            continue
        used = own if whole else wanted
        images, output = files.read(used)
        for place in np.flatnonzero(np.isin(used, wanted)):
            if images[place] is _UNEVEN:
                files.skip(1)
                continue
            item = (int(used[place]), images[place].astype(files.dtype), output.slices[0][place].astype(np.float32))
            by_shape.setdefault(item[1].shape, []).append(item)
    cases = Cases([], [], [], [], {})
    for items in by_shape.values():
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            cases.given.append({"image": np.stack([image for _, image, _ in part])})
            cases.wanted.append({"probability": np.stack([prob for _, _, prob in part])})
            cases.slices.append(files.ids([row for row, _, _ in part]))
    return cases


def _series_cases(files: _Files, rows: NDArray[np.int64], count: int, inputs: tuple[str, ...]) -> Cases:
    series = [own for own in files.series if np.isin(own, rows).any()]
    cases, taken = Cases([], [], [], [], {}), 0
    z_mm = files.manifest.table["z_mm"].to_numpy(dtype=np.float32)
    for index in np.random.default_rng(0).permutation(len(series)):  # every beginning is spread over the whole
        if taken >= count:
            break
        own = series[index]
        images, output = files.read(own)
        if len({image.shape for image in images}) > 1 or images[0] is _UNEVEN:
            files.skip(len(own))
            continue
        whole = output.whole[0]
        assert whole is not None
        given: Arrays = {"image": np.array(images).astype(files.dtype), "z_mm": z_mm[own]}
        cases.given.append({name: given[name] for name in inputs})
        slices = output.slices[0].astype(np.float32)
        cases.wanted.append({"slice_probability": slices, "series_probability": whole.astype(np.float32)})
        cases.slices.append(files.ids(own))
        taken += len(own)
    return cases


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
    pairs = list(zip(cases.given, cases.wanted, strict=True))
    for index, (given, wanted) in enumerate(track(pairs, "Comparing the export with the run", after=NOTICED)):
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
        "left_out": cases.skip_reasons,
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
    while min(spent.values()) < _SECONDS:
        for name, call in callers.items():
            start = time.perf_counter()
            call(given)
            spent[name] += time.perf_counter() - start
            calls[name] += 1
    rates = {name: round(shape[0] * calls[name] / spent[name], 2) for name in callers}
    return {"input": list(shape), "threads": torch.get_num_threads(), "images_per_second": rates}
