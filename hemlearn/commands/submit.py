"""``hemlearn submit``: a Kaggle RSNA 2019 submission from a finished run."""

from __future__ import annotations

from hemlearn.commands import read
from hemlearn.config.requests import SubmitRequest
from hemlearn.util.errors import DataError

HELP = """usage: hemlearn submit run=DIR data.root=DIR out=FILE.csv [sample=FILE.csv]

Predict the test folder of an RSNA 2019 data set (stage_2_test/*.dcm) with a finished run, and write its probabilities
in the rows and the order of stage_2_sample_submission.csv. Uploading the file is left to you.

options:
{options}

example:
  hemlearn submit run=runs/rsna/0123456789ab data.root=/data/rsna out=submission.csv
"""


def main(argv: list[str]) -> int:
    """Predict and write the file."""
    request = read(SubmitRequest, argv, HELP)
    if request is None:
        return 0
    from hemlearn.datamodules.rsna import RSNADataModule
    from hemlearn.evaluation.predictions import is_leaky
    from hemlearn.reading.predict import predict_manifest
    from hemlearn.reading.submission import write_submission
    from hemlearn.training.build import build_datamodule
    from hemlearn.training.run import load
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    run = load(request.run, trust=request.trust)
    config = run.config
    _ = run.model  # before the data are read
    moved = {"data.name": "rsna", "data.root": request.root, "data.manifest": None}
    module = build_datamodule(config.changed(moved))
    assert isinstance(module, RSNADataModule)
    sample = request.sample or module.folder / "stage_2_sample_submission.csv"
    if not sample.is_file():  # said before a long prediction, not after it
        raise DataError(f"{sample}: no such file", remedy="give the challenge's sample submission with sample=FILE")
    frame = predict_manifest(run, module.test_manifest())
    done = write_submission(frame, sample, request.out, config.task.labels)
    print(
        f"{done.path}: {done.rows} rows of {done.slices} slices in the order of {sample.name}; {done.extra} further "
        "slices were predicted and left out"
    )
    if is_leaky(run.path / "predictions.parquet"):
        print("LEAKY run: its test patients are also in training; its own figures say nothing about new patients")
    return 0
