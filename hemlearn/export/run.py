"""``hemlearn export``: load, describe, write, compare with the run, and only then put the files in place."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hemlearn.config_rules import hint
from hemlearn.errors import ConfigError, DataError, RunError
from hemlearn.export.describe import describe
from hemlearn.export.formats import DTYPES, FORMATS, OPSET, module_caller, need, open_model, write_model
from hemlearn.export.model import exportable
from hemlearn.export.parity import TOLERANCE, compare, speed, test_cases
from hemlearn.inference import load_run
from hemlearn.reports.model_card import model_card
from hemlearn.reports.model_card_text import card_markdown
from hemlearn.runs import write_text


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        run: Finished run folder.
        out: File to write; its description goes to ``OUT.json``, its model card to ``OUT.md``.
        form: ``onnx`` or ``torch``.
        calibrated: Put the run's calibration inside; None: where it has one.
        check: Test slices compared with the run; 0: none.
        dtype: Type of the input ``image``: float32 or int16.
        root: Where the run's data set lies now; None: where the run found it.
        overwrite: Replace files that exist.
    """

    run: Path
    out: Path
    form: str = "onnx"
    calibrated: bool | None = None
    check: int = 100
    dtype: str = "float32"
    root: str | None = None
    overwrite: bool = False

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """Model, description, model card."""
        return self.out, self.out.with_name(f"{self.out.name}.json"), self.out.with_name(f"{self.out.name}.md")

    def check_values(self) -> None:
        """Refuse what cannot be done, before anything is loaded.

        Raises:
            ConfigError: An unknown format or type, or a file that exists.
            RunError: A package of the format is missing.
        """
        for key, value, known in (("format", self.form, FORMATS), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise ConfigError(
                    f"{key}={value}: unknown{hint(value, known)}", remedy=f"use {key}={' or '.join(known)}"
                )
        if self.form == "onnx":
            need("onnx", "onnxscript", "onnxruntime")
        if self.out.is_dir():
            raise ConfigError(
                f"out={self.out}: a folder", remedy=f"name a file, such as {self.out / 'model'}" + FORMATS[self.form]
            )
        there = [str(file) for file in self.files if file.exists()]
        if there and not self.overwrite:
            raise ConfigError(f"{', '.join(there)}: there already", remedy="give another out=FILE, or overwrite=true")


def export_run(options: Options) -> dict[str, Any]:
    """Export a finished run; returns the content of ``OUT.json``.

    Raises:
        ConfigError: See :meth:`Options.check_values`; or ``calibrated=true`` for a run without calibration.
        RunError: The run is incomplete, a layer cannot be exported, the exported model differs from the run by more
            than 1e-4 (nothing is kept), or the files cannot be written.
        DataError: The test slices of the run cannot be found.
    """
    options.check_values()
    config, task, calibration = load_run(options.run)
    if options.calibrated and calibration is None:
        raise ConfigError(
            f"calibrated=true: the run {options.run} has no calibration (task.calibration={config.task.calibration})",
            remedy="train with task.calibration=temperature, or leave calibrated out",
        )
    inside = None if options.calibrated is False else calibration
    # The check comes first: data that cannot be found are told before the long export, not after.
    metrics = json.loads((options.run / "metrics.json").read_text(encoding="utf-8"))
    cases = None
    model = exportable(config, task, inside)
    if options.check:
        try:
            cases = test_cases(
                options.run,
                config,
                task,
                inside,
                count=options.check,
                inputs=model.inputs,
                dtype=options.dtype,
                root=options.root,
            )
        except DataError as error:
            raise DataError(error.problem, remedy=f"{error.remedy}; check=0 leaves the comparison out") from error
        if not cases.given:
            raise RunError(
                f"{options.run}: no test slice could be compared ({cases.left_out})",
                remedy="check=0 leaves the check out",
            )
    facts = {"name": options.run.parent.name, "hash": options.run.name, "thresholds": metrics.get("thresholds")}
    about = describe(config, model, inside, options.form, options.dtype, facts)
    out, description, card = options.files
    part = out.with_name(f".{out.name}.{os.getpid()}.part{FORMATS[options.form]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_model(model, options.form, part, options.dtype, about)
        parity: dict[str, Any] = {"slices": 0, "note": "check=0: not compared with the run"}
        if cases is not None:
            call = open_model(part, options.form, torch.get_num_threads())
            parity = compare(call, cases)
            worst = parity.pop("worst_slice")  # an id of the data set, which is not handed on
            if not parity["largest_difference"] <= TOLERANCE:
                raise RunError(
                    f"{out}: the exported model differs from the run by {parity['largest_difference']:.2g} "
                    f"on slice {worst!r}, more than {TOLERANCE:g}: not written",
                    remedy=f"try another format ({', '.join(FORMATS)})",
                )
            runtime = "onnxruntime" if options.form == "onnx" else "torch.export"
            parity["speed"] = speed({"pytorch": module_caller(model), runtime: call}, cases)
        report = {
            **about,
            "file": {"name": out.name, "bytes": part.stat().st_size, "sha256": _sha256(part)},
            "versions": _versions(options.form),
            "parity": parity,
        }
        made = model_card(options.run, report)
        part.replace(out)
        told = {**report, "model_card": {key: value for key, value in made.items() if key != "export"}}
        write_text(description, json.dumps(told, indent=2) + "\n")
        write_text(card, card_markdown(made))
    except OSError as error:
        raise RunError(
            f"{error.filename or out}: cannot be written ({error.strerror or error})",
            remedy="choose a writable folder with free space",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return report


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _versions(form: str) -> dict[str, Any]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime") if form == "onnx" else ("torch",)
    return {name: metadata.version(name) for name in names} | ({"opset": OPSET} if form == "onnx" else {})
