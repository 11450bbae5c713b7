"""``hemlearn plan``: patients that a study of AUROCs needs, and what a finished run's test set can resolve."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hemlearn.commands import read
from hemlearn.config.requests import PlanRequest
from hemlearn.util.errors import ConfigError

if TYPE_CHECKING:
    from hemlearn.evaluation.planning import Resolution, Size

HELP = """usage: hemlearn plan auroc=A prevalence=P half_width=H | difference=D | patients=N  [KEY=VALUE ...]
       hemlearn plan run=DIR [half_width=H] [difference=D] [KEY=VALUE ...]

Before a study: how many patients give an AUROC an interval of plus or minus H, or find a difference D between two
models on the same patients; or what N patients give. Variances are those of Hanley and McNeil.

After a run: what its test set can resolve per level and label, from its own predictions and clustered by patient; with
half_width or difference also how many test patients like these would be needed.

options:
{options}

examples:
  hemlearn plan auroc=0.90 prevalence=0.3 half_width=0.03
  hemlearn plan auroc=0.90 prevalence=0.3 difference=0.03 correlation=0.5 power=0.8
  hemlearn plan auroc=0.90 prevalence=0.13 half_width=0.03 slices_per_patient=30 icc=0.5
  hemlearn plan auroc=0.85 prevalence=0.44 patients=57
  hemlearn plan run=runs/default/3f2a9c1e difference=0.03
"""
_BEFORE = ("auroc", "prevalence", "patients", "icc")  # which a run answers by itself


def main(argv: list[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        ConfigError: An unknown option, or a number that is missing or out of its range.
        RunError: The run folder is incomplete or cannot be read.
    """
    request = read(PlanRequest, argv or ["--help"], HELP)
    if request is None:
        return 0 if argv else 2
    print(_of_study(request.numbers) if request.run is None else _of_run(request.run, request.numbers))
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
    unit = "slices" if per_patient > 1 else "patients"
    lines = [f"expected AUROC {auroc:g}, {100 * prevalence:g} % positive {unit} (Hanley and McNeil)"]
    if per_patient > 1:
        effect = design_effect(per_patient, icc)
        lines.append(f"{per_patient:g} slices per patient, intraclass correlation {icc:g}: design effect {effect:g}")
    if "half_width" in numbers:
        half = numbers["half_width"]
        size = size_for_half_width(
            auroc, prevalence, half, numbers["confidence"], slices_per_patient=per_patient, icc=icc
        )
        goal = f"a {100 * numbers['confidence']:g} % interval of +-{half:g}"
        lines.append(f"{goal}: {_size(size, unit)}; half-width {size.reached:.4f}")
    if "difference" in numbers:
        size = size_for_difference(
            auroc,
            numbers["difference"],
            prevalence,
            numbers["correlation"],
            numbers["power"],
            numbers["alpha"],
            slices_per_patient=per_patient,
            icc=icc,
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
    return f"{size.patients} patients ({cases}{rough})"


def _test(numbers: dict[str, float]) -> str:
    how = f"power {numbers['power']:g} at two-sided alpha {numbers['alpha']:g}"
    return f"{how}, correlation {numbers['correlation']:g}"


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
    from hemlearn.evaluation.predictions import LEVELS
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
    rows = resolution(
        test,
        labels,
        kind,
        how,
        levels,
        correlation=numbers["correlation"],
        power=numbers["power"],
        alpha=numbers["alpha"],
    )
    head = (
        f"{runs[0].shown}: what its test set can resolve\ndetectable: smallest difference between two models on "
        f"these cases, {_test(numbers)}"
    )
    return "\n".join([head, _table(rows, numbers), *dict.fromkeys(_notes(rows))])


def _table(rows: list[Resolution], numbers: dict[str, float]) -> str:
    titles = [
        "level",
        "label",
        "positive",
        "negative",
        "patients",
        "AUROC (95 % interval)",
        "half-width",
        "design effect",
        "detectable",
    ]
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
        cells = [
            row.level,
            row.label,
            *counts,
            str(row.patients),
            area,
            _shown(row.half_width, 3),
            _shown(row.design_effect, 1),
            _shown(row.detectable, 3),
        ]
        for key in asked:  # a variance falls with the number of patients
            now = row.half_width if key == "half_width" else row.detectable
            needed = row.patients * (now / numbers[key]) ** 2
            cells.append(str(math.ceil(needed)) if needed == needed else "-")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    return "\n".join("  ".join(f"{c:{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value == value else "-"


def _notes(rows: list[Resolution]) -> list[str]:
    return [f"{row.level}, {row.label}: {row.note}" for row in rows if row.note]
