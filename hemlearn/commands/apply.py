"""Finished runs applied: ``hemlearn predict``, ``evaluate``, ``explain``, ``errors``, ``export`` and ``submit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn.commands import read
from hemlearn.config.requests import (
    ErrorsRequest,
    EvaluateRequest,
    ExplainRequest,
    ExportRequest,
    PredictRequest,
    SubmitRequest,
)
from hemlearn.util.console import print_table, tell
from hemlearn.util.errors import ConfigError, DataError, count

if TYPE_CHECKING:
    from hemlearn.reading.predict import Report


_LEAKY = "its test patients are also in training; its own figures say nothing about new patients"
_SHOWN = 20  # lines of each list on the screen; the files hold all


def predict(argv: list[str]) -> int:
    """Predict, write the tables and say what happened; 1 when something could not be predicted.

    Raises:
        ConfigError: A missing, unknown or impossible option.
        DataError: Nothing can be predicted.
        RunError: A run that cannot be used, or an output folder that cannot be written.
    """
    request = read(PredictRequest, argv, "predict")
    if request is None:
        return 0
    from hemlearn.reading.predict import predict_input
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    status = 0
    for report in predict_input(request):  # one report, while the files of an archive are still unpacked
        if request.page:
            from hemlearn.reading.pages import write_pages

            write_pages(request, report)
        _show(request, report)
        status = 1 if report.failures else 0
    return status


def plain(text: object) -> str:
    """A name from a file, safe to print: control characters could drive the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(text))


def _show(request: PredictRequest, report: Report) -> None:
    from rich.markup import escape
    from rich.table import Table

    from hemlearn.evaluation.predictions import is_leaky
    from hemlearn.reading.predict import NOTE
    from hemlearn.util.console import on_terminal

    labels = list(report.runs[0].config.task.labels)
    _print(report.found.notes, "and {} in predict.json", "more remark")
    rows = report.results.series
    if len(rows):
        units = all(run.calibration is not None and "series" in run.calibration.units for run in report.runs)
        kind = "calibrated probability" if request.calibrated or units else "probability"
        if "series" in report.results.scores:
            kind = "score (put together from slices, no probability)"
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
            ids = [escape(plain(row[name])) for name in ("patient_id", "series_id")]
            table.add_row(*ids, str(row["n_slices"]), *cells)
        print_table(table)
        if len(rows) > _SHOWN:
            tell(f"and {len(rows) - _SHOWN} more series")
    _show_triage(report)
    _show_scores(report)
    found = report.results
    whose = f"{count(len(found.patients), 'patient')}, " if report.found.patients_known else ""
    counts = f"{whose}{len(rows)} series, {count(len(found.slices), 'slice')}"
    tell(
        f"{counts} ({report.made.now} series predicted now, {len(report.made.lines) - report.made.now} before); "
        f"{count(len(report.found.skip_reasons), 'item')} left out (left_out.csv)"
    )
    if report.failures:
        tell(f"{len(report.failures)} could not be predicted (failures.csv):")
        _print([f"  {item}: {reason}" for item, reason in report.failures], "  and {}", "more failure")
    _print([f"wrote {file}" for file in report.files], "and {}", "more file")
    for run in report.runs:
        if is_leaky(run.path / "predictions.parquet"):
            tell(f"LEAKY run {run.hash}: {_LEAKY}")
    tell(NOTE)


def _show_scores(report: Report) -> None:
    """What the predictions are worth, where labels are given, and what had no label."""
    if report.scores is None:
        return
    from hemlearn.reports.tables import print_scores

    about = report.scores.metrics["about"]
    print_scores(f"against {plain(about['labels'])}", report.scores.metrics)
    _print([f"note: {note}" for note in report.scores.notes], "and {}", "more note")
    lost = report.scores.unmatched
    if lost:
        tell(f"{count(len(lost), 'item')} without a counterpart (unmatched.csv):")
        _print([f"  {item}: {reason}" for item, reason in lost], "  and {}", "more item")


def _show_triage(report: Report) -> None:
    """How many patients were answered, and what the answers promise."""
    from hemlearn.evaluation.triage import ANSWERS, asked_text

    for label, cut in report.results.triage.get("patient", {}).items():
        said = report.results.patients[f"triage_{label}"]
        counts = ", ".join(f"{(said == answer).sum()} {answer}" for answer in reversed(ANSWERS))
        tell(f"triage of patients, {plain(label)}: {counts} ({asked_text(cut)})")
    asked = [run for run in report.runs if run.triage]
    if asked and len(report.runs) > 1:
        tell("triage: none, since the mean of several runs has no guarantee; predict with one run")


def _print(lines: list[str], rest: str, what: str) -> None:
    """The first lines of a list, and how many more there are."""
    for text in lines[:_SHOWN]:
        tell(plain(text))
    if len(lines) > _SHOWN:
        tell(rest.format(count(len(lines) - _SHOWN, what)))


def _cell(row: dict[str, object], label: str) -> str:
    text = f"{row[f'prob_{label}']:.3f}"
    if f"low_{label}" in row:
        text += f" ({row[f'low_{label}']:.3f}-{row[f'high_{label}']:.3f})"
    called = row.get(f"call_{label}") == 1 or row.get("call") == label
    return text + ("*" if called else "")


def evaluate(argv: list[str]) -> int:
    """Evaluate, print the table; 1 when something could not be predicted.

    Raises:
        ConfigError: A missing, unknown or wrong option, labels that do not match.
        DataError: The data cannot be read.
        RunError: The run cannot be used.
        SplitError: The run has seen patients of the data.
    """
    request = read(EvaluateRequest, argv, "evaluate")
    if request is None:
        return 0
    from hemlearn.reading.external import evaluate_external
    from hemlearn.reports.tables import print_run
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    done = evaluate_external(request)
    if done.skipped:
        tell(f"{done.folder} is complete: skipped")
    print_run(done.folder, done.metrics)
    for note in done.notes:
        tell(f"note: {note}")
    if request.subgroups or request.covariates:
        from hemlearn.compare.subgroups import subgroups_of, write_subgroups

        study = subgroups_of(done.folder, request.subgroups, request.covariates)
        tell("\n".join(study.lines()))
        tell("\n".join(f"wrote {file}" for file in write_subgroups(study, done.folder)))
    if done.failures:
        tell(
            f"{len(done.failures)} could not be predicted ({done.folder / 'failures.csv'}); the first: "
            f"{done.failures[0][0]}: {done.failures[0][1]}"
        )
    return 1 if done.failures else 0


def explain(argv: list[str]) -> int:
    """Write overlays and checks, print what was found."""
    given = next((text for text in argv if text.startswith("input=")), None)
    if given is not None:
        raise ConfigError(
            f"{given}: explain looks at labelled test slices; a new case is explained on its page",
            remedy=f"hemlearn predict run=DIR {given} out=DIR page=true",
        )
    request = read(ExplainRequest, argv, "explain")
    if request is None:
        return 0
    from hemlearn.reading.explain.study import explain_run
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    tell("\n".join(_report(explain_run(request), request.out)))
    return 0


def _report(content: dict[str, Any], out: Path) -> list[str]:
    """What was written and found, in lines."""
    kinds = [item["kind"] for item in content["slices"]]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    layer = "" if content["layer"] is None else f", layer {content['layer']}"
    lines = [f"{out}: {count(len(kinds), 'slice')} of {content['label']} ({counts}); {content['method']}{layer}"]
    checks = content.get("checks")
    if not checks:
        return lines
    game, random = checks["pointing"], checks["randomised"]
    if game:
        lines += [
            line
            for name, found in (("all positive", game), ("detected", game["detected"]))
            if found
            for line in _pointing(name, found)
        ]
        lines.append(
            f"lesions cover {100 * game['lesion_share']:.1f} % of these slices; "
            f"{count(game['without_mask'], 'positive slice has', 'positive slices have')} no mask at this size"
        )
    if random:
        for stage in random["stages"]:
            hit = "" if "hit_rate" not in stage else f", hit rate {_number(stage['hit_rate'])}"
            likeness = f"rank correlation {_number(stage['spearman'])}, SSIM {_number(stage['ssim'])}"
            lines.append(
                f"randomised {stage['randomised']:20} ({100 * stage['share']:5.1f} % of weights): {likeness}{hit}"
            )
        lines.append(
            "maps of different slices of the trained network have a rank correlation of "
            f"{_number(random['between_slices'])}"
        )
    if checks["left_out"]:
        more = count(checks["left_out"], "further positive slice was", "further positive slices were")
        lines.append(f"{more} not checked: those above are spread evenly")
    return [*lines, *([checks["note"]] if "note" in checks else [])]


def _pointing(which: str, game: dict[str, Any]) -> list[str]:
    one = game["map"]
    lines = [f"pointing game, {count(one['n'], f'{which} slice')} of {count(one['patients'], 'patient')}:"]
    for name, text in (("map", "the map"), ("centre", "image centre"), ("mean_mask", "mean lesion of the others")):
        one = game[name]
        lines.append(f"  {text:25} hit rate {_interval(one)}, energy inside {_number(one['energy_inside'])}")
    return lines


def _interval(item: dict[str, Any]) -> str:
    return f"{_number(item['hit_rate'])} ({_number(item['low'])} to {_number(item['high'])})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def errors(argv: list[str]) -> int:
    """Write the page of a run's errors, print what is on it."""
    request = read(ErrorsRequest, argv, "errors")
    if request is None:
        return 0
    from hemlearn.reading.error_pictures import KINDS
    from hemlearn.reading.errors import study_errors
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    done = study_errors(request)
    for text in done.cautions:
        tell(f"WARNING: {text}")
    tell(done.counts)
    kinds = [item.pick.kind for item in done.shown]
    tell("shown: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS))
    for file in done.files:
        tell(f"wrote {file}")
    return 0


def export(argv: list[str]) -> int:
    """Export and say how well the file agrees with the run."""
    request = read(ExportRequest, argv, "export")
    if request is None:
        return 0
    from hemlearn.reading.export.run import export_run
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    report = export_run(request)
    tell("\n".join([*_summary(report), *(f"wrote {file}" for file in request.files)]))
    return 0


def _summary(report: dict[str, Any]) -> list[str]:
    """The comparison with the run, side by side."""
    parity = report["parity"]
    if not parity["slices"]:
        return [parity["note"]]
    speed = parity["speed"]
    shape = " x ".join(map(str, speed["input"]))
    lines = [
        f"largest difference to the run on {count(parity['slices'], 'test slice')}: {parity['largest_difference']:.1e} "
        f"(limit {parity['tolerance']:g})"
    ]
    if parity["to_predictions_file"] is not None:
        lines.append(f"largest difference to its predictions.parquet: {parity['to_predictions_file']:.1e}")
    lines += [f"left out of the comparison: {count(n, 'slice')}, {reason}" for reason, n in parity["left_out"].items()]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in speed["images_per_second"].items())
    lines.append(f"images per second, input {shape}, {count(speed['threads'], 'thread')}: {rates}")
    return lines


def submit(argv: list[str]) -> int:
    """Predict and write the file."""
    request = read(SubmitRequest, argv, "submit")
    if request is None:
        return 0
    from hemlearn.datamodules.rsna import RSNADataModule
    from hemlearn.datamodules.submission import fill_missing, refuse_missing, sample_slices, write_submission
    from hemlearn.evaluation.predictions import is_leaky
    from hemlearn.reading.predict import predict_manifest
    from hemlearn.training.build import build_datamodule
    from hemlearn.training.run import load
    from hemlearn.util.console import set_up_logging
    from hemlearn.util.files import check_writable, nothing_left

    set_up_logging()
    if request.out.exists() and request.out.resolve().is_relative_to(Path(request.root).resolve()):
        raise ConfigError(f"out={request.out}: a file of the data set", remedy="give a file outside data.root")
    run = load(request.run, trust=request.trust)
    config = run.config
    _ = run.model  # before the data are read
    moved = {"data.name": "rsna", "data.root": request.root, "data.manifest": None}
    module = build_datamodule(config.changed(moved))
    assert isinstance(module, RSNADataModule)
    sample = request.sample or module.folder / "stage_2_sample_submission.csv"
    if not sample.is_file():  # said before a long prediction, not after it
        raise DataError(f"{sample}: no such file", remedy="give the challenge's sample submission with sample=FILE")
    filled: dict[str, str] = {}
    with nothing_left(request.out.parent):
        check_writable(request.out.parent, request.out)
        manifest, wanted = module.test_manifest(), sample_slices(Path(sample))
        if request.fill is None:
            refuse_missing(wanted, manifest.table["slice_id"], manifest.skipped)
            frame = predict_manifest(run, manifest)
        else:
            frame = predict_manifest(run, manifest, partial=True)
            frame, filled = fill_missing(frame, wanted, module.test_slices[0], request.fill)
        done = write_submission(frame, sample, request.out, config.task.labels)
    tell(
        f"{done.path}: {count(done.rows, 'row')} of {count(done.slices, 'slice')} in the order of {sample.name}; "
        f"{count(done.extra, 'further slice was', 'further slices were')} predicted and left out"
    )
    if filled:
        tell(f"{count(len(filled), 'slice')} without a prediction of its own, filled:")
        _print([f"  {name}: {source}" for name, source in filled.items()], "  and {}", "more slice")
    if is_leaky(run.path / "predictions.parquet"):
        tell(f"LEAKY run: {_LEAKY}")
    return 0
