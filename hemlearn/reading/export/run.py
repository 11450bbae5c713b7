"""``hemlearn export``: load, describe, write, compare with the run, and only then put the files in place."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

import torch

from hemlearn import __version__
from hemlearn.config.requests import ExportRequest
from hemlearn.config.schema import Config
from hemlearn.evaluation.calibration import Calibration
from hemlearn.reading.export.formats import FORMATS, OPSET, axes, module_caller, need, open_model, write_model
from hemlearn.reading.export.model import SeriesModel, SliceModel, exportable
from hemlearn.reading.export.parity import TOLERANCE, compare, speed, test_cases
from hemlearn.reports.model_card import INTENDED_USE, card_markdown
from hemlearn.training.run import load
from hemlearn.util.errors import ConfigError, DataError, RunError
from hemlearn.util.files import now, sha256, write_json, write_text

# --- What an exported model takes, does itself, leaves to its caller and gives, in words and numbers.


_UNITS = {
    "HU": "Hounsfield units",
    "signal": "MR signal as stored, rescaled by the file's own slope and intercept",
    "display": "grey levels from 0 (black) to 255 (white)",
}
_FITS = {
    "letterbox": "resizing to {0} x {0} pixels, aspect kept, padded with air",
    "squash": "resizing to {0} x {0} pixels, both sides stretched",
    "crop": "the largest central square, resized to {0} x {0} pixels",
    "head": "resizing of the given square to {0} x {0} pixels",
}


def describe(
    config: Config,
    model: SliceModel | SeriesModel,
    calibration: Calibration | None,
    form: str,
    dtype: str,
    run: dict[str, Any],
) -> dict[str, Any]:
    """The description that is stored in the model (``form``, input ``dtype``) and beside it.

    ``calibration`` are the maps inside, None: none; ``run`` holds name, hash and thresholds of the run.
    """
    shapes, unit = axes(model), model.task.channels.unit
    types = {"image": dtype, "z_mm": "float32"}
    return {
        "format": form,
        "hemlearn": __version__,
        "made": now(),
        "run": {key: run[key] for key in ("name", "hash")},
        "intended_use": INTENDED_USE,
        "labels": list(config.task.labels),
        "kind": config.task.kind,
        "unit": unit,
        "inputs": {
            name: {"shape": shapes[name], "type": types[name], "meaning": _input(name, config, unit)}
            for name in model.inputs
        },
        "outputs": {
            name: {"shape": shapes[name], "type": "float32", "meaning": _output(name, config)} for name in model.outputs
        },
        "inside": _inside(config, model, calibration, unit),
        "caller": _caller(config, model, unit, bool(run["thresholds"]) and config.task.kind != "multiclass"),
        "thresholds": run["thresholds"],
    }


def _input(name: str, config: Config, unit: str) -> str:
    if name == "z_mm":
        return "position of each slice along the slice normal, mm; NaN where unknown"
    count = config.channels.neighbours
    if config.data.fit == "head":
        return f"{_UNITS[unit]}, the square cut out around the head{_stacked(count)}"
    return f"{_UNITS[unit]}, whole slices in the size of their files{_stacked(count)}"


def _stacked(count: int) -> str:
    return f"; per slice {count} below it, itself, {count} above it" if count else ""


def _output(name: str, config: Config) -> str:
    labels = "one column per label, in the order of the labels"
    if name == "series_probability":
        return f"probability of the whole series; {labels.replace('column', 'value')}"
    if name == "slice_probability" and config.task.level != "slice":
        return f"the series' probability on each of its slices (the run's labels describe series); {labels}"
    return f"probability of each slice; {labels}"


def _inside(config: Config, model: SliceModel | SeriesModel, calibration: Calibration | None, unit: str) -> list[str]:
    channels, task = config.channels, config.task
    limits = "0 to 255" if unit == "display" else "-32768 to 32767"
    steps = [f"rounding to whole numbers, limits {limits}", _FITS[config.data.fit].format(config.data.image_size)]
    if channels.kind == "mr":
        low, high = channels.percentiles
        steps.append(f"scaling of percentiles {low:g} and {high:g} of the pixels that are not 0 to [0, 1]")
    elif unit == "HU":
        windows = ", ".join(f"{centre:g}/{width:g}" for centre, width in channels.windows)
        steps.append(f"CT windows (centre/width in HU) {windows} to [0, 1]")
    else:
        steps.append("grey level / 255")
    statistics = (model.task.backbone.mean, model.task.backbone.std)
    mean, std = (" ".join(f"{value:.4g}" for value in part.flatten().tolist()) for part in statistics)
    steps.append(f"normalisation by mean {mean} and standard deviation {std} per channel")
    steps.append(f"network {config.backbone.name}")
    if isinstance(model, SeriesModel):
        features = config.features
        chosen = "all features" if features.name == "none" else f"{features.name} to {model.task.features.k} features"
        steps.append(f"feature selection: {chosen}")
        steps.append(f"sequence model {config.sequence.name}")
    if task.tta:
        steps.append(f"mean over the plain image and its flips: {', '.join(task.tta)}")
    steps.append("softmax" if task.kind == "multiclass" else "sigmoid")
    method = calibration.method if calibration is not None else "none"
    steps.append(f"calibration: {method}" + (", fitted on validation patients" if method != "none" else ""))
    return steps


def _caller(config: Config, model: SliceModel | SeriesModel, unit: str, thresholds: bool) -> list[str]:
    steps = {
        "HU": "decode the file to HU: RescaleSlope and RescaleIntercept applied, pixel padding set to -1000",
        "signal": "decode the file to signal: rescale applied where the file has one, pixel padding set to 0",
        "display": "decode the image to 8-bit grey (ITU-R BT.601), transparency on black",
    }
    found = [steps[unit] + "; as hemlearn.data.readers does"]
    if config.data.fit == "head":
        found.append(
            "cut the square around the head out of all slices of a series, filled with air beyond the image "
            "(hemlearn.data.preprocess: head_box on the brain window, series_square, cut_square)"
        )
    if config.data.band is not None:
        low, high = config.data.band
        found.append(f"keep the slices between {low:g} and {high:g} of the length of each series, from below")
    series = isinstance(model, SeriesModel)
    if series or config.channels.neighbours:
        found.append("order the slices of a series by position along the slice normal, lowest first")
    if config.channels.neighbours:
        found.append("stack each slice with its neighbours; at the ends of a series repeat the last slice")
    if series:
        found.append("give one series per call")
    else:
        how = "mean" if config.task.aggregate == "model" else config.task.aggregate
        found.append(f"for a series or patient take the {how} over its slices, as the run's metrics do")
    if thresholds:
        found.append("compare with the thresholds where a yes or no is needed")
    return found


def check_export(request: ExportRequest) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Raises:
        ConfigError: A file that exists.
        RunError: A package of the format is missing.
    """
    if request.form == "onnx":
        need("onnx", "onnxscript", "onnxruntime")
    if request.out.is_dir():
        raise ConfigError(
            f"out={request.out}: a folder",
            remedy=f"name a file, such as {request.out / 'model'}" + FORMATS[request.form],
        )
    there = [str(file) for file in request.files if file.exists()]
    if there and not request.overwrite:
        raise ConfigError(f"{', '.join(there)}: there already", remedy="give another out=FILE, or overwrite=true")


def export_run(request: ExportRequest) -> dict[str, Any]:
    """Export a finished run; returns the content of ``OUT.json``.

    Raises:
        ConfigError: See :func:`check_export`; or ``calibrated=true`` for a run without calibration.
        RunError: The run is incomplete, a layer cannot be exported, the exported model differs from the run by more
            than 1e-4 (nothing is kept), or the files cannot be written.
        DataError: The test slices of the run cannot be found.
    """
    check_export(request)
    run = load(request.run, trust=request.trust)
    config, calibration = run.config, run.calibration
    if request.calibrated and calibration is None:
        raise ConfigError(
            f"calibrated=true: the run {request.run} has no calibration (task.calibration={config.task.calibration})",
            remedy="train with task.calibration=temperature, or leave calibrated out",
        )
    inside = None if request.calibrated is False else calibration
    # The check comes first: data that cannot be found are told before the long export, not after.
    cases = None
    model = exportable(config, run.model, inside)
    if request.check:
        try:
            wanted: dict[str, Any] = {"count": request.check, "dtype": request.dtype, "root": request.root}
            cases = test_cases(run, inside, inputs=model.inputs, **wanted)
        except DataError as error:
            raise DataError(error.problem, remedy=f"{error.remedy}; check=0 leaves the comparison out") from error
        if not cases.given:
            raise RunError(
                f"{request.run}: no test slice could be compared ({cases.skip_reasons})",
                remedy="check=0 leaves the check out",
            )
    facts: dict[str, Any] = {"name": run.path.parent.name, "hash": run.path.name, "thresholds": {}}
    if inside is calibration:  # operating points are calibrated where the run is
        facts["thresholds"] = run.metrics.get("thresholds")
    about = describe(config, model, inside, request.form, request.dtype, facts)
    out, description, card = request.files
    part = out.with_name(f".{out.name}.{os.getpid()}.part{FORMATS[request.form]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_model(model, request.form, part, request.dtype, about)
        parity: dict[str, Any] = {"slices": 0, "note": "check=0: not compared with the run"}
        if cases is not None:
            call = open_model(part, request.form, torch.get_num_threads())
            parity = compare(call, cases)
            worst = parity.pop("worst_slice")  # an id of the data set, which is not handed on
            if not parity["largest_difference"] <= TOLERANCE:
                raise RunError(
                    f"{out}: the exported model differs from the run by {parity['largest_difference']:.2g} "
                    f"on slice {worst!r}, more than {TOLERANCE:g}: not written",
                    remedy=f"try another format ({', '.join(FORMATS)})",
                )
            runtime = "onnxruntime" if request.form == "onnx" else "torch.export"
            parity["speed"] = speed({"pytorch": module_caller(model), runtime: call}, cases)
        report = {
            **about,
            "file": {"name": out.name, "bytes": part.stat().st_size, "sha256": sha256(part)},
            "versions": _versions(request.form),
            "parity": parity,
        }
        made = run.card(report)
        part.replace(out)
        told = {**report, "model_card": {key: value for key, value in made.items() if key != "export"}}
        write_json(description, told, indent=2)
        write_text(card, card_markdown(made))
    except OSError as error:
        raise RunError(
            f"{error.filename or out}: cannot be written ({error.strerror or error})",
            remedy="choose a writable folder with free space",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return report


def _versions(form: str) -> dict[str, Any]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime") if form == "onnx" else ("torch",)
    return {name: metadata.version(name) for name in names} | ({"opset": OPSET} if form == "onnx" else {})
