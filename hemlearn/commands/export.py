"""``hemlearn export``: a finished run as one ONNX or torch.export file, with its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hemlearn.commands.options import parse_options, whole_number
from hemlearn.util.errors import ConfigError

HELP = """usage: hemlearn export run=DIR out=FILE [format=onnx|torch] [calibrated=true|false] [check=100]
                       [dtype=float32|int16] [data.root=DIR] [overwrite=true]

Write a finished run as one self-contained model: HU (CT), signal (MR) or grey levels of any height and width in,
calibrated probabilities out. Resizing, windows or percentile scaling, normalisation, network, test-time flips, and for
sequence runs the feature selection and the sequence model, are inside. FILE is compared with the run on its own test
slices and kept only where no probability differs by more than 1e-4.

FILE.json says what goes in and comes out, what the caller has to do, the largest difference and the images per second
of both; FILE.md is the model card.

options:
  format=F        onnx (onnxruntime and others) or torch (torch.export, .pt2); default onnx
  calibrated=B    put the run's calibration inside (default: where the run has one)
  check=N         test slices compared with the run, whole series for a sequence run; 0: none (default 100)
  dtype=T         type of the input: float32 or int16 (default float32)
  data.root=DIR   where the run's data set lies now, if it has moved
  overwrite=true  replace FILE

examples:
  hemlearn export run=runs/rsna/0123456789ab out=rsna.onnx
  hemlearn export run=runs/rsna/0123456789ab out=rsna.pt2 format=torch calibrated=false
"""
_DEFAULTS: dict[str, str | None] = {
    "run": None,
    "out": None,
    "format": "onnx",
    "calibrated": None,
    "check": "100",
    "dtype": "float32",
    "data.root": None,
    "overwrite": "false",
}


def main(argv: list[str]) -> int:
    """Export and say how well the file agrees with the run."""
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    options = parse_options(argv, _DEFAULTS, "export")
    absent = [key for key in ("run", "out") if not options[key]]
    if absent:
        raise ConfigError(f"{', '.join(absent)} is not set", remedy="hemlearn export --help shows an example")
    check, overwrite = whole_number(options, "check", 0), _switch(options, "overwrite")
    calibrated = None if options["calibrated"] is None else _switch(options, "calibrated")
    from hemlearn.reading.export.run import ExportRequest, export_run
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    wanted = ExportRequest(
        run=Path(str(options["run"])).expanduser().absolute(),
        out=Path(str(options["out"])).expanduser(),
        form=str(options["format"]),
        calibrated=calibrated,
        check=check,
        dtype=str(options["dtype"]),
        root=options["data.root"],
        overwrite=overwrite,
    )
    report = export_run(wanted)
    print("\n".join([*_summary(report), *(f"wrote {file}" for file in wanted.files)]))
    return 0


def _switch(options: dict[str, str | None], key: str) -> bool:
    value = str(options[key]).lower()
    if value not in ("true", "false"):
        raise ConfigError(f"{key}={options[key]}: neither true nor false", remedy=f"give {key}=true or {key}=false")
    return value == "true"


def _summary(report: dict[str, Any]) -> list[str]:
    """The comparison with the run, side by side."""
    parity = report["parity"]
    if not parity["slices"]:
        return [parity["note"]]
    speed = parity["speed"]
    shape = " x ".join(map(str, speed["input"]))
    lines = [
        f"largest difference to the run on {parity['slices']} test slices: {parity['largest_difference']:.1e} "
        f"(limit {parity['tolerance']:g})"
    ]
    if parity["to_predictions_file"] is not None:
        lines.append(f"largest difference to its predictions.parquet: {parity['to_predictions_file']:.1e}")
    lines += [f"left out of the comparison: {count} slices, {reason}" for reason, count in parity["left_out"].items()]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in speed["images_per_second"].items())
    lines.append(f"images per second, input {shape}, {speed['threads']} threads: {rates}")
    return lines
