"""``hemlearn export``: write a run's module to a file, compare that with the run, put it in place."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from hemlearn.config.requests import ExportRequest
from hemlearn.data.readers.image import MIN_SIDE
from hemlearn.reading.export.model import Arrays, Caller, SeriesModel, SliceModel, axes, describe, exportable
from hemlearn.reading.export.parity import TOLERANCE, Cases, compare, speed, test_cases
from hemlearn.reports.model_card import card_markdown
from hemlearn.training.run import load
from hemlearn.util.documents import load_json, read_document
from hemlearn.util.errors import ConfigError, DataError, RunError
from hemlearn.util.files import (
    check_writable,
    nothing_left,
    remove_drafts,
    sha256,
    whole_file,
    write_json,
    write_text,
    writing,
)
from hemlearn.util.privacy import shown

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
DTYPES = {"float32": torch.float32, "int16": torch.int16}
OPSET = 20  # of ONNX, 2023
_META = "hemlearn"  # key of the description inside the file
_EXAMPLE = (3, 96, 80)  # slices, height and width traced with; none of them is fixed by that


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
    if there and not request.overwrite and not _killed(request):
        raise ConfigError(f"{', '.join(there)}: there already", remedy="give another out=FILE, or overwrite=true")


def _killed(request: ExportRequest) -> bool:
    """Whether what lies there was left by a killed export to this place: the model comes last."""
    out, description, _ = request.files
    if out.exists() or not description.is_file():
        return False
    try:
        told = load_json(read_document(description))
    except (OSError, ValueError):
        return False
    file = told.get("file") if isinstance(told, dict) else None
    return isinstance(file, dict) and file.get("name") == out.name


def export_run(request: ExportRequest) -> dict[str, Any]:
    """Export a finished run; returns the content of ``OUT.json``.

    Raises:
        ConfigError: See :func:`check_export`; or ``calibrated=true`` for a run without calibration.
        RunError: The run is incomplete, a layer cannot be exported, the exported model differs from the run by more
            than 1e-4 (nothing is kept), or the files cannot be written.
        DataError: The test slices of the run cannot be found.
    """
    check_export(request)
    with nothing_left(request.out.parent):
        return _exported(request)


def _exported(request: ExportRequest) -> dict[str, Any]:
    run = load(request.run, trust=request.trust)
    config, calibration = run.config, run.calibration
    if request.calibrated and (calibration is None or calibration.method == "none"):
        raise ConfigError(
            f"calibrated=true: the run {request.run} has no calibration (task.calibration={config.task.calibration})",
            remedy="train with task.calibration=temperature, or leave calibrated out",
        )
    inside = None if request.calibrated is False else calibration
    out, description, card = request.files
    check_writable(out.parent, out)
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
        maps = {} if inside is None else inside.to_dict()
        facts |= {"thresholds": run.points, "units": maps.get("units"), "pooling": maps.get("pooling")}
    about = shown(describe(config, model, inside, request.form, request.dtype, facts))
    with writing(out, "choose a writable folder with free space"):
        remove_drafts(out.parent)
        with whole_file(out) as draft:
            report = _written(draft, model, about, request, cases)
            made = run.card(report)
            told = {**report, "model_card": {key: value for key, value in made.items() if key != "export"}}
            write_json(description, told, indent=2)
            write_text(card, card_markdown(made))
    return report


def _written(
    draft: Path, model: SliceModel | SeriesModel, about: dict[str, Any], request: ExportRequest, cases: Cases | None
) -> dict[str, Any]:
    """Write the model and compare it with the run; what is said of it."""
    out = request.files[0]
    write_model(model, request.form, draft, request.dtype, about)
    parity: dict[str, Any] = {"slices": 0, "note": "check=0: not compared with the run"}
    if cases is not None:
        call = open_model(draft, request.form, torch.get_num_threads())
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
    return {
        **about,
        "file": {"name": out.name, "bytes": draft.stat().st_size, "sha256": sha256(draft)},
        "versions": _versions(request.form),
        "parity": parity,
    }


def _versions(form: str) -> dict[str, Any]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime") if form == "onnx" else ("torch",)
    return {name: metadata.version(name) for name in names} | ({"opset": OPSET} if form == "onnx" else {})


# --- The module as a file, and such a file as a function of arrays.


def write_model(model: SliceModel | SeriesModel, form: str, file: Path, dtype: str, about: Mapping[str, Any]) -> None:
    """Write a module (in evaluation mode, on the CPU) with its weights and the description ``about``.

    Raises:
        RunError: A layer has no counterpart in the format (named), a package is missing, or the disk refuses.
    """
    size, height, width = _EXAMPLE
    image = torch.zeros(size, model.task.channels.in_slices, height, width, dtype=DTYPES[dtype])
    arguments = (image, torch.arange(size, dtype=torch.float32))[: len(model.inputs)]
    first = Dim(str(axes(model)["image"][0]), min=1)
    free: dict[str, Any] = {"image": {0: first, 2: Dim("height", min=MIN_SIDE), 3: Dim("width", min=MIN_SIDE)}}
    if "z_mm" in model.inputs:
        free["z_mm"] = {0: first}
    with _quiet():
        try:
            if form == "onnx":
                _write_onnx(model, arguments, free, file, about)
            else:
                with _loops():
                    program = torch.export.export(model, arguments, dynamic_shapes=free, strict=False)
                for part in program.graph_module.modules():
                    for node in getattr(getattr(part, "graph", None), "nodes", ()):
                        node.meta.pop("stack_trace", None)  # places of source files, such as a home folder's
                packed = io.BytesIO()  # torch's own writer ends the process where the disk is full
                torch.export.save(program, packed, extra_files={_META: json.dumps(about)})
                file.write_bytes(packed.getbuffer())
        except OSError:  # told by who gave the file's name
            raise
        except Exception as error:
            raise _refused(model, form, error) from error


def _write_onnx(
    model: SliceModel | SeriesModel,
    arguments: tuple[Tensor, ...],
    free: dict[str, Any],
    file: Path,
    about: Mapping[str, Any],
) -> None:
    need("onnx", "onnxscript", "onnxruntime")
    program = torch.onnx.export(
        model,
        arguments,
        dynamo=True,
        input_names=list(model.inputs),
        output_names=list(model.outputs),
        dynamic_shapes=free,
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    inner = (node for function in program.model.functions.values() for node in function.all_nodes())
    for node in (*program.model.graph.all_nodes(), *inner):
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # places of source files
    program.model.metadata_props[_META] = json.dumps(about)
    program.save(file, external_data=False)


def _refused(model: SliceModel | SeriesModel, form: str, error: Exception) -> RunError:
    """The operator that stands in the way where the exporter names one, and the first cause it gives."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    text = "\n".join(map(str, chain))
    named = re.search(r"op='([\w.:]+)'", text) or re.search(r"target=torch\.ops\.([\w.]+)", text)
    what = f"the operator {named.group(1)} cannot be exported" if named else "a layer cannot be exported"
    reason = next((line.strip() for line in str(chain[-1]).splitlines() if line.strip()), type(chain[-1]).__name__)
    other = next(name for name in FORMATS if name != form)
    return RunError(
        f"format={form}: {what} (backbone {model.task.parts['backbone'].name}): {reason}",
        remedy=f"try format={other}, or another backbone or sequence model",
    )


def need(*packages: str) -> None:
    """Raise :class:`RunError` naming the packages of the ONNX format that are not installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise RunError(
            f"format=onnx needs {', '.join(absent)}, not installed",
            remedy=f"pip install {' '.join(absent)}, or format=torch",
        )


def open_model(file: Path, form: str, threads: int) -> Caller:
    """A written model as a function from arrays by input name to arrays by output name."""
    if form == "onnx":
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_outputs()]
        return lambda given: dict(zip(names, session.run(names, given), strict=True))
    extra = {_META: ""}
    module = torch.export.load(file, extra_files=extra).module()
    outputs = list(json.loads(extra[_META])["outputs"])
    return _torch_caller(module, outputs)


def module_caller(model: SliceModel | SeriesModel) -> Caller:
    """The module itself, before export, as such a function."""
    return _torch_caller(model, list(model.outputs))


def _torch_caller(module: Callable[..., Any], outputs: list[str]) -> Caller:
    def call(given: Arrays) -> Arrays:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(np.ascontiguousarray(value)) for value in given.values()))
        found = found if isinstance(found, tuple) else (found,)
        return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}

    return call


@contextmanager
def _loops() -> Iterator[None]:
    """Let LSTMs and GRUs run over any number of slices: torch.export alone unrolls them for the length traced with.

    torch.onnx.export does the same by itself.
    """
    try:
        from torch.export._patches import register_gru_while_loop_decomposition, register_lstm_while_loop_decomposition
    except ImportError:  # an older torch: runs with such a layer are then refused by torch.export
        yield
        return
    with register_gru_while_loop_decomposition(), register_lstm_while_loop_decomposition():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' notices, and the listing of a whole graph that a refusal prints."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [item.level for item in loggers]
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fused transformer layer has no counterpart outside torch.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for item in loggers:
            item.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for item, level in zip(loggers, levels, strict=True):
            item.setLevel(level)
