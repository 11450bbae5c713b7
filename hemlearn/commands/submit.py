"""``hemlearn submit``: a Kaggle RSNA 2019 submission from a finished run."""

from __future__ import annotations

from pathlib import Path

from hemlearn.commands.options import parse_options
from hemlearn.util.errors import ConfigError, DataError

HELP = """usage: hemlearn submit run=DIR data.root=DIR out=FILE.csv [sample=FILE.csv]

Predict the test folder of an RSNA 2019 data set (stage_2_test/*.dcm) with a finished run, and write its probabilities
in the rows and the order of stage_2_sample_submission.csv. Uploading the file is left to you.

example:
  hemlearn submit run=runs/rsna/0123456789ab data.root=/data/rsna out=submission.csv
"""


def main(argv: list[str]) -> int:
    """Predict and write the file."""
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    options = parse_options(argv, {"run": None, "data.root": None, "out": None, "sample": None}, "submit")
    absent = [key for key in ("run", "data.root", "out") if not options[key]]
    if absent:
        raise ConfigError(f"{', '.join(absent)} is not set", remedy="hemlearn submit --help shows an example")
    from hemlearn.datamodules.rsna import RSNADataModule
    from hemlearn.evaluation.predictions import is_leaky
    from hemlearn.reading.predict import predict_manifest
    from hemlearn.reading.submission import write_submission
    from hemlearn.training.build import build_datamodule
    from hemlearn.training.run import load
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    run = load(str(options["run"]))
    config = run.config
    _ = run.model  # before the data are read
    moved = {"data.name": "rsna", "data.root": str(options["data.root"]), "data.manifest": None}
    module = build_datamodule(config.changed(moved))
    assert isinstance(module, RSNADataModule)
    sample = Path(options["sample"] or module.folder / "stage_2_sample_submission.csv").expanduser()
    if not sample.is_file():  # told before, not after, a long prediction
        raise DataError(f"{sample}: no such file", remedy="give the challenge's sample submission with sample=FILE")
    frame = predict_manifest(run, module.test_manifest())
    done = write_submission(frame, sample, Path(str(options["out"])).expanduser(), config.task.labels)
    print(
        f"{done.path}: {done.rows} rows of {done.slices} slices in the order of {sample.name}; {done.extra} further "
        "slices were predicted and left out"
    )
    if is_leaky(run.path / "predictions.parquet"):
        print("LEAKY run: its test patients are also in training; its own figures say nothing about new patients")
    return 0
