"""``hemlearn evaluate``: a finished run on another labelled data set."""

from __future__ import annotations

from hemlearn.commands import read
from hemlearn.config.requests import EvaluateRequest

HELP = """usage: hemlearn evaluate run=DIR data=NAME data.root=DIR [data.KEY=VALUE ...] [KEY=VALUE ...]

External validation: predict every patient of a data set with a finished run and score it. Preparation of the slices,
data.geometry unless it is given, calibration and operating points are those of the run; nothing is fitted on the new
data. Writes a folder that is laid
out as that of a run (without a checkpoint) beside it, NAME_on_DATA/HASH, so that `hemlearn compare` reads it: config,
predictions, metrics with 95 % intervals, figures, provenance.

Labels are matched by name; labels=hemorrhage:any says that the run's `hemorrhage` is the data set's `any`. Labels of
the run that the data do not hold are then left out.

The data are compared with what the run has learnt from: the same data set, patient ids of the same source, pictures
that are equal or nearly so (where the run's own data are still at hand).

options:
{options}

examples:
  hemlearn evaluate run=runs/head_ct/0123456789ab data=ct_ich data.root=/data/ct-ich labels=hemorrhage:any
  hemlearn evaluate run=runs/ct_ich/0123456789ab data=cq500 data.root=/data/cq500
  hemlearn evaluate run=runs/rsna/0123456789ab data=table data.manifest=my.csv labels=any:bleed
  hemlearn compare runs/head_ct_on_ct_ich
"""


def main(argv: list[str]) -> int:
    """Evaluate, print the table; 1 when something could not be predicted.

    Raises:
        ConfigError: A missing, unknown or wrong option, labels that do not match.
        DataError: The data cannot be read.
        RunError: The run cannot be used.
        SplitError: The run has seen patients of the data.
    """
    request = read(EvaluateRequest, argv, HELP)
    if request is None:
        return 0
    from hemlearn.reading.external import evaluate_external
    from hemlearn.reports.tables import print_run
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    done = evaluate_external(request)
    if done.skipped:
        print(f"{done.folder} is complete: skipped")
    print_run(done.folder, done.metrics)
    for note in done.notes:
        print(f"note: {note}")
    if done.failures:
        print(
            f"{len(done.failures)} could not be predicted ({done.folder / 'failures.csv'}); the first: "
            f"{done.failures[0][0]}: {done.failures[0][1]}"
        )
    return 1 if done.failures else 0
