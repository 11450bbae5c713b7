"""The module of a run as a file, ONNX or ``torch.export``, and such a file as a function of arrays."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim

from hemlearn.data.readers.image import MIN_SIDE
from hemlearn.reading.export.model import SeriesModel, SliceModel
from hemlearn.util.errors import RunError

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
DTYPES = {"float32": torch.float32, "int16": torch.int16}
OPSET = 20  # of ONNX, 2023
_META = "hemlearn"  # key of the description inside the file
_EXAMPLE = (3, 96, 80)  # slices, height and width traced with; none of them is fixed by that
Arrays = dict[str, NDArray[Any]]
Caller = Callable[[Arrays], Arrays]


def axes(model: SliceModel | SeriesModel) -> dict[str, list[int | str]]:
    """Name -> shape of every input and output, free sizes by name."""
    labels, neighbours = len(model.task.labels), model.task.channels.in_slices
    first = "batch" if isinstance(model, SliceModel) else "slices"
    known: dict[str, list[int | str]] = {
        "image": [first, neighbours, "height", "width"],
        "z_mm": [first],
        "probability": [first, labels],
        "slice_probability": [first, labels],
        "series_probability": [labels],
    }
    return {name: known[name] for name in (*model.inputs, *model.outputs)}


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
                torch.export.save(program, file, extra_files={_META: json.dumps(about)})
        except OSError as error:
            raise RunError(
                f"{file}: cannot be written ({error.strerror or error})",
                remedy="choose a writable folder with free space",
            ) from error
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
