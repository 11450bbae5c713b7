"""``hemlearn predict``: probabilities of any DICOM, NIfTI, PNG or JPG file from finished runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hemlearn.commands import read
from hemlearn.config.requests import PredictRequest

if TYPE_CHECKING:
    from hemlearn.reading.predict import Report

HELP = """usage: hemlearn predict run=DIR[,DIR...] input=PATH out=DIR [KEY=VALUE ...]

Predict a DICOM, NIfTI, PNG or JPG file, a folder (mixed series are grouped, and of each study the axial head series is
chosen, with the reason), a zip archive, or a table of files (CSV or Parquet with a column `path`, and patient_id,
series_id, z_mm, frame where they are known). How a slice is prepared is taken from the run. Several runs, such as the
folds of one experiment, are averaged; their least and largest probability stand beside the mean.

Writes slices, series and patients (csv or parquet), failures.csv, left_out.csv and predict.json into out. The same
command given again predicts only what is new or has changed. The exit status is 0 when everything was predicted, 1
when something could not be (it is listed, and in failures.csv; the rest is predicted).

options:
{options}

examples:
  hemlearn predict run=runs/ct_ich/0123456789ab input=/data/patient out=predicted
  hemlearn predict run=runs/ct_ich/0123456789ab,runs/ct_ich/ba9876543210 input=study.zip out=predicted calibrated=true
  hemlearn predict run=runs/head_ct/0123456789ab input=slice.png out=predicted page=true
  hemlearn predict run=runs/rsna/0123456789ab input=series.csv out=predicted format=parquet

Research use only: not a medical device.
"""
_SHOWN = 20  # lines of each list on the screen; the files hold all


def main(argv: list[str]) -> int:
    """Predict, write the tables and say what happened; 1 when something could not be predicted.

    Raises:
        ConfigError: A missing, unknown or impossible option.
        DataError: Nothing can be predicted.
        RunError: A run that cannot be used, or an output folder that cannot be written.
    """
    request = read(PredictRequest, argv, HELP)
    if request is None:
        return 0
    from hemlearn.reading.predict import predict_input
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    status = 0
    for report in predict_input(request):  # one report, while the files of an archive are still unpacked
        if request.page:
            from hemlearn.reading.pages import write_pages

            write_pages(request, report, show_patient=request.show_patient)
        _show(request, report)
        status = 1 if report.failures else 0
    return status


def plain(text: object) -> str:
    """A name from a file, safe to print: control characters could drive the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(text))


def _show(request: PredictRequest, report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from hemlearn.reading.predict import NOTE
    from hemlearn.util.console import on_terminal

    console = Console() if on_terminal() else Console(width=400, soft_wrap=True)
    labels = list(report.runs[0].config.task.labels)
    for text in report.found.notes[:_SHOWN]:
        print(plain(text))
    if len(report.found.notes) > _SHOWN:
        print(f"and {len(report.found.notes) - _SHOWN} more remarks in predict.json")
    rows = report.results.series
    if len(rows):
        kind = "calibrated probability" if request.calibrated else "probability"
        if len(report.runs) > 1:
            kind += f", mean (range) of {len(report.runs)} runs"
        table = Table(
            title=f"{kind} per series; * reaches the run's operating point",
            title_justify="left",
            **({} if on_terminal() else {"box": None, "pad_edge": False}),  # type: ignore[arg-type]
        )
        for name in ("patient", "series", "slices", *labels):
            table.add_column(escape(name), justify="left" if name in ("patient", "series") else "right")
        for row in rows.head(_SHOWN).to_dict("records"):
            cells = [_cell(row, label) for label in labels]
            table.add_row(
                escape(plain(row["patient_id"])), escape(plain(row["series_id"])), str(row["n_slices"]), *cells
            )
        console.print(table)
        if len(rows) > _SHOWN:
            print(f"and {len(rows) - _SHOWN} more series")
    counts = f"{len(report.results.patients)} patients, {len(rows)} series, {len(report.results.slices)} slices"
    print(
        f"{counts} ({report.predicted} series predicted now, {report.kept} before); "
        f"{len(report.found.skip_reasons)} items left out (left_out.csv)"
    )
    if report.failures:
        print(f"{len(report.failures)} could not be predicted (failures.csv):")
        for item, reason in report.failures[:_SHOWN]:
            print(f"  {plain(item)}: {plain(reason)}")
        if len(report.failures) > _SHOWN:
            print(f"  and {len(report.failures) - _SHOWN} more")
    for file in report.files[:_SHOWN]:
        print(f"wrote {plain(file)}")
    if len(report.files) > _SHOWN:
        print(f"and {len(report.files) - _SHOWN} more files")
    print(NOTE)


def _cell(row: dict[str, object], label: str) -> str:
    text = f"{row[f'prob_{label}']:.3f}"
    if f"low_{label}" in row:
        text += f" ({row[f'low_{label}']:.3f}-{row[f'high_{label}']:.3f})"
    called = row.get(f"call_{label}") == 1 or row.get("call") == label
    return text + ("*" if called else "")
