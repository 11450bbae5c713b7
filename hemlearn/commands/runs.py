"""What finished runs say together: ``hemlearn runs``, ``compare`` and ``plan``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn.commands import read
from hemlearn.config.requests import CompareRequest, PlanRequest, RunsRequest
from hemlearn.util.console import on_terminal, print_table, rich_console, set_up_logging, tell
from hemlearn.util.errors import ConfigError, RunError, count, printable
from hemlearn.util.files import sha256

if TYPE_CHECKING:
    from hemlearn.evaluation.planning import Resolution, Size
    from hemlearn.training.run import Run


_IGNORED = ("output_dir", "force", "logger", "checkpoints", "stage", "backbone.note", "augmentation.note")
_LONGEST = 40  # characters of a setting


def runs(argv: list[str]) -> int:
    """Print the table; 1 when a run has failed or was changed after its end.

    Raises:
        RunError: There is no run.
    """
    request = read(RunsRequest, argv, "runs")
    if request is None:
        return 0
    from rich.markup import escape
    from rich.table import Table

    from hemlearn.training.run import Run, pick_run, unsigned
    from hemlearn.util.run_files import AGAIN, STATUS

    found = sorted({file.parent for folder in request.folders for file in folder.rglob("status.json")})
    runs = [Run(path) for path in found if not path.name.startswith(".")]
    if not runs:
        raise RunError(
            f"{', '.join(map(str, request.folders))}: no run in it", remedy="name a folder that `hemlearn train` wrote"
        )
    best = set()
    for folder in request.folders:
        try:
            best.add(pick_run(folder / "best"))
        except RunError:  # none is finished
            continue
    complete = [run for run in runs if run.status.get("state") == "complete"]
    told = unsigned(complete)
    foreign = {run for run in complete if not run.ours} if told else set()
    settings = [_flat(run) for run in runs]
    keys = _differing(settings)
    titles = ["run", "state", *(_short(key, keys) for key in keys), "validation", "test AUROC"]
    plain: dict[str, Any] = {} if on_terminal() else {"box": None, "pad_edge": False}
    table = Table(title=f"{count(len(runs), 'run')}; * is the best on validation", title_justify="left", **plain)
    for title in titles:
        table.add_column(escape(title))
    for run, own in zip(runs, settings, strict=True):
        mark = "*" if run.path in best else ""
        state = str(run.status.get("state", "unknown"))
        cells = [f"{run.path.parent.name}/{run.path.name}{mark}", f"{state}, unsigned" if run in foreign else state]
        cells += [_cut(own.get(key, "")) for key in keys]
        table.add_row(*map(escape, [*cells, *_figures(run, request.level)]))
    print_table(table)
    failed = [run for run in runs if run.status.get("state") == "failed"]
    for run in failed:
        tell(printable(f"{run.shown}: {str(run.status.get('error')).partition(chr(10))[0]}"))
    if failed:
        tell("  Fix: mend that; the same `hemlearn train` command goes on")
    if told:
        tell(printable(told))
    damaged = [f"{run.shown}: {STATUS}: {run.misplaced}" for run in runs if run.misplaced]
    damaged += [
        f"{run.shown}: {name}: {problem}"
        for run in complete
        for name, problem in run.problems("config.yaml", "metrics.json").items()
    ]
    if damaged:
        tell("\n".join([*damaged, f"  Fix: {AGAIN}"]))
    return 1 if failed or damaged else 0


def _flat(run: Run) -> dict[str, str]:
    """Settings by dotted key; empty where the configuration cannot be read."""
    found: dict[str, str] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in _IGNORED:
                continue
            if isinstance(value, dict) and value:
                walk(value, f"{key}.")
            else:
                found[key] = "" if value in ({}, None) else str(value)

    try:
        walk(run.settings, "")
        if code := run.provenance.get("code"):
            found["code.checksum"] = sha256(json.dumps(code, sort_keys=True))[:8]
    except RunError:
        return {}
    return found


def _differing(settings: Sequence[dict[str, str]]) -> list[str]:
    known = [own for own in settings if own]
    keys = dict.fromkeys(key for own in known for key in own)
    differ = [key for key in keys if len({own.get(key, "") for own in known}) > 1]
    return [key for key in differ if not _follows(key, differ, known)]


def _follows(key: str, differ: Sequence[str], known: Sequence[dict[str, str]]) -> bool:
    """Whether the name of a section around ``key``, which differs too, says its value."""
    parts = key.split(".")
    for leader in (".".join([*parts[:depth], "name"]) for depth in range(1, len(parts))):
        pairs = {(own.get(leader, ""), own.get(key, "")) for own in known}
        if leader != key and leader in differ and len(pairs) == len({name for name, _ in pairs}):
            return True
    return False


def _short(key: str, keys: Sequence[str]) -> str:
    tail = key.rpartition(".")[2]
    return tail if tail != "name" and sum(other.rpartition(".")[2] == tail for other in keys) == 1 else key


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _figures(run: Run, level: str | None) -> list[str]:
    """The monitored metric on validation and the AUROC on test; empty where there is none yet."""
    if not (Path(run.path) / "metrics.json").is_file():
        return ["", ""]
    task = run.settings.get("task") or {}
    place = level or ("series" if task.get("level") == "series" else "slice")
    monitor = str(task.get("monitor", "log_loss")).replace("last", "log_loss")
    try:
        val, test = (run.metrics.get(split, {}).get(place, {}) for split in ("val", "test"))
    except RunError:
        return ["metrics.json changed since", ""]
    shown = [_value(val.get(monitor)), _value(test.get("auroc"))]
    return [f"{monitor} {shown[0]}" if shown[0] else "", shown[1]]


def _value(entry: dict[str, Any] | None) -> str:
    if not entry or entry.get("value") is None:
        return ""
    bounds = f" ({entry['low']:.3f}-{entry['high']:.3f})" if entry.get("low") is not None else ""
    return f"{entry['value']:.3f}{bounds}"


def compare(argv: list[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        ConfigError: No folder, or an unknown option or value.
        RunError: See :func:`hemlearn.compare.comparison.compare`.
    """
    request = read(CompareRequest, argv, "compare")
    if request is None:
        return 0

    from hemlearn.compare.comparison import compare
    from hemlearn.compare.files import ASKED, FILES
    from hemlearn.util.files import refuse_to_replace

    taken = {"pool", "level", "baseline", "margin", "labels", "prevalence", "reference", "readers", "show_patient"}
    asked = request.model_dump(include=taken)
    set_up_logging()
    out = request.out or request.folders[0] / "compare"
    if request.out is None and out.is_symlink():
        raise RunError(f"{out}: is a link, which others may have laid", remedy="say where with out=DIR")
    refuse_to_replace(out, (*FILES, *ASKED), "compare.json")
    more: dict[str, Any] = {"subgroups": request.subgroups, "covariates": request.covariates}
    result = compare(request.folders, common=request.cases == "common", **asked, **more)
    pictures = None
    if request.pictures:
        from hemlearn.reading.errors import pictures_of

        pictures = partial(pictures_of, result, out, trust=request.trust, show_patient=request.show_patient)
    options = request.model_dump(include={"show_patient", "report", "figures"})
    result.write(out, pictures=pictures, **options)
    tell(*(f"WARNING: {text}" for text in result.headline.warnings))
    if on_terminal():
        for table in result.rich_tables(rich_console()):
            print_table(table)
    else:
        tell(result.text())
    for text in (result.summary(), "\n".join(f"wrote {path}" for path in result.files)):
        if text:
            tell(text)
    if request.wandb:
        from hemlearn.compare.wandb_report import log_report

        place = log_report(result, result.files, request.wandb_project, request.wandb_entity)
        tell(f"W&B: {place}" if place else "W&B is disabled: nothing logged")
    return 0


_TEST = ("correlation", "power", "alpha")
_BEFORE = ("auroc", "prevalence", "patients", "icc")  # which a run answers by itself


def plan(argv: list[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        ConfigError: An unknown option, or a number that is missing or out of its range.
        RunError: The run folder is incomplete or cannot be read.
    """
    request = read(PlanRequest, argv or ["--help"], "plan")
    if request is None:
        return 0 if argv else 2
    tell(_of_study(request.numbers) if request.run is None else _of_run(request.run, request.numbers))
    return 0


# --- before a study -----------------------------------------------------------------------------------------------


def _of_study(numbers: dict[str, float]) -> str:
    from hemlearn.evaluation.planning import check_study, design_effect, size_for_difference, size_for_half_width

    missing = [key for key in ("auroc", "prevalence") if key not in numbers]
    asked = [key for key in ("half_width", "difference", "patients") if key in numbers]
    if missing or not asked:
        lacks = " and ".join(f"{key}=" for key in missing) or "half_width=, difference= or patients="
        raise ConfigError(
            f"hemlearn plan: {lacks} not given",
            remedy="such as: hemlearn plan auroc=0.90 prevalence=0.3 half_width=0.03",
        )
    auroc, prevalence, per_patient = numbers["auroc"], numbers["prevalence"], numbers["slices_per_patient"]
    if per_patient > 1 and "icc" not in numbers:
        raise ConfigError(
            f"slices_per_patient={per_patient:g}: icc= not given",
            remedy="slices of a patient are alike: give their correlation, such as icc=0.5",
        )
    icc = numbers.get("icc", 0.0)
    check_study(auroc, prevalence, per_patient, icc)
    clustered = {"slices_per_patient": per_patient, "icc": icc}
    unit = "slices" if per_patient > 1 else "patients"
    lines = [f"expected AUROC {auroc:g}, {100 * prevalence:g} % positive {unit}"]
    if per_patient > 1:
        effect = design_effect(per_patient, icc)
        lines.append(f"{per_patient:g} slices per patient, intraclass correlation {icc:g}: design effect {effect:g}")
    if "half_width" in numbers:
        half = numbers["half_width"]
        size = size_for_half_width(auroc, prevalence, half, numbers["confidence"], **clustered)
        goal = f"a {100 * numbers['confidence']:g} % interval of +-{half:g}"
        lines.append(f"{goal}: {_size(size, unit)}; half-width {size.reached:.4f}")
    if "difference" in numbers:
        size = size_for_difference(
            auroc, numbers["difference"], prevalence, *(numbers[key] for key in _TEST), **clustered
        )
        goal = f"{auroc:g} against {auroc + numbers['difference']:g}, {_test(numbers)}"
        each = "" if numbers["correlation"] > 0 else ", for each of two samples"
        lines.append(f"{goal}: {_size(size, unit)}{each}; power {size.reached:.3f}")
    if "patients" in numbers:
        lines += _at_hand(numbers, per_patient, icc)
    return "\n".join(lines)


def _size(size: Size, unit: str) -> str:
    from hemlearn.evaluation.planning import FEW

    cases = f"{size.positives} positive and {size.negatives} negative {unit}"
    rough = ", so few that the formula is rough" if min(size.positives, size.negatives) < FEW else ""
    return f"{count(size.patients, 'patient')} ({cases}{rough})"


def _test(numbers: dict[str, float]) -> str:
    how = f"power {numbers['power']:g} at two-sided alpha {numbers['alpha']:g}"
    return f"{how}, correlation of scores {numbers['correlation']:g}"


def _at_hand(numbers: dict[str, float], per_patient: float, icc: float) -> list[str]:
    from hemlearn.evaluation.planning import check_test, design_effect, detectable_difference, half_width

    auroc, prevalence, patients = numbers["auroc"], numbers["prevalence"], numbers["patients"]
    cases = patients * per_patient / design_effect(per_patient, icc)
    check_test(auroc, (1 - auroc) / 2, numbers["correlation"], numbers["power"], numbers["alpha"])
    if not min(prevalence, 1 - prevalence) * patients * per_patient >= 1:
        raise ConfigError(
            f"patients={patients:g}: less than one case of a class at prevalence={prevalence:g}",
            remedy="give more patients",
        )
    classes = cases * prevalence, cases * (1 - prevalence)
    half = half_width(auroc, *classes, numbers["confidence"])
    gain = detectable_difference(auroc, *classes, numbers["correlation"], numbers["power"], numbers["alpha"])
    found = "none: even 1.0 would not stand out"
    if gain == gain:
        found = f"{gain:.3f} (a second model of {auroc + gain:.3f})"
    return [
        f"{patients:g} patients give a {100 * numbers['confidence']:g} % interval of +-{half:.4f}",
        f"smallest gain they find, {_test(numbers)}: {found}",
    ]


# --- after a run --------------------------------------------------------------------------------------------------


def _of_run(folder: str, numbers: dict[str, float]) -> str:
    from hemlearn.compare.runs import find_runs
    from hemlearn.evaluation.planning import resolution
    from hemlearn.evaluation.predictions import LEVELS, check_predictions
    from hemlearn.training.run import pick_run

    given = [key for key in _BEFORE if key in numbers]
    if given or numbers["slices_per_patient"] != 1 or numbers["confidence"] != 0.95:
        named = ", ".join(given) or "slices_per_patient or confidence"
        raise ConfigError(
            f"run={folder} together with {named}: the run's own predictions say that",
            remedy="leave them out; half_width, difference, correlation, power, alpha fit",
        )
    runs = find_runs([pick_run(Path(folder).expanduser())]).runs
    if len(runs) > 1:
        raise ConfigError(
            f"run={folder}: {len(runs)} finished runs below it", remedy=f"name one, such as run={runs[0].shown}"
        )
    keys = runs[0].keys
    labels, levels = list(keys["task.labels"]), LEVELS if keys["task.level"] == "slice" else LEVELS[1:]
    test, kind, how = runs[0].read_predictions(["test"]), str(keys["task.kind"]), str(keys["task.aggregate"])
    file = str(runs[0].path / "predictions.parquet")
    check_predictions(test, file, labels)
    if test.empty:
        raise RunError(f"{file}: no test rows", remedy="train that run again")
    asked = {key: numbers[key] for key in _TEST}
    rows = resolution(test, labels, kind, how, levels, calibration=runs[0].calibration, **asked)
    head = (
        f"{runs[0].shown}: what its test set can resolve\ndetectable: smallest difference between two models on "
        f"these cases, {_test(numbers)}"
    )
    notes = dict.fromkeys(f"{row.level}, {row.label}: {row.note}" for row in rows if row.note)
    return "\n".join([head, _table(rows, numbers), *notes])


def _table(rows: list[Resolution], numbers: dict[str, float]) -> str:
    titles = ["level", "label", "positive", "negative", "patients"]
    titles += ["AUROC (95 % interval)", "half-width", "design effect", "detectable"]
    asked = [key for key in ("half_width", "difference") if key in numbers]
    for key in asked:
        if not numbers[key]:
            raise ConfigError(f"{key}=0: nothing to resolve", remedy=f"give a number such as {key}=0.03")
        titles.append(f"patients for {'+-' if key == 'half_width' else 'difference '}{abs(numbers[key]):g}")
    lines = [titles]
    for row in rows:
        counts = ["-", "-"] if row.label == "mean" else [str(row.positives), str(row.negatives)]
        area = "undefined" if row.auroc != row.auroc else f"{row.auroc:.3f}"
        area += f" ({row.low:.3f}-{row.high:.3f})" if row.low == row.low else ""
        figures = ((row.half_width, 3), (row.design_effect, 1), (row.detectable, 3))
        shown = [f"{value:.{digits}f}" if value == value else "-" for value, digits in figures]
        cells = [row.level, row.label, *counts, str(row.patients), area, *shown]
        for key in asked:  # a variance falls with the number of patients
            now = row.half_width if key == "half_width" else row.detectable
            needed = row.patients * (now / numbers[key]) ** 2
            cells.append(str(math.ceil(needed)) if needed == needed else "-")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    return "\n".join("  ".join(f"{c:{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
