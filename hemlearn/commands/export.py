"""``hemlearn export``: a finished run as one ONNX or torch.export file, with its model card."""

from __future__ import annotations

from typing import Any

from hemlearn.commands import read
from hemlearn.config.requests import ExportRequest

HELP = """usage: hemlearn export run=DIR out=FILE [KEY=VALUE ...]

Write a finished run as one self-contained model: HU (CT), signal (MR) or grey levels of any height and width in,
calibrated probabilities out. Resizing, windows or percentile scaling, normalisation, network, test-time flips, and for
sequence runs the feature selection and the sequence model, are inside. FILE is compared with the run on its own test
slices and kept only where no probability differs by more than 1e-4.

FILE.json says what goes in and comes out, what the caller has to do, the largest difference and the images per second
of both; FILE.md is the model card.

options:
{options}

examples:
  hemlearn export run=runs/rsna/0123456789ab out=rsna.onnx
  hemlearn export run=runs/rsna/0123456789ab out=rsna.pt2 format=torch calibrated=false
"""


def main(argv: list[str]) -> int:
    """Export and say how well the file agrees with the run."""
    request = read(ExportRequest, argv, HELP)
    if request is None:
        return 0
    from hemlearn.reading.export.run import export_run
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    report = export_run(request)
    print("\n".join([*_summary(report), *(f"wrote {file}" for file in request.files)]))
    return 0


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
