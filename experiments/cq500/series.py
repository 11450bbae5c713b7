"""Which series of a CQ500 patient hemlearn takes by name, beside the series that a person took.

python experiments/cq500/series.py TABLES

TABLES holds ``series_names.csv`` (one row per series: ``CQ500CT12_CT-Plain.png``, column ID) and
``chosen_series.txt`` (``CQ500-CT-12/Unknown Study/CT Plain``, one line per patient). Names alone are judged: no header,
no pixels; the real choice also knows kernels, image types and slice counts. Series of a patient whose names differ by
their last number alone (``CT Plain``, ``CT Plain-2``) count as one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hemlearn.data.choice import rank_series, says_plain
from hemlearn.datamodules.cq500 import SPACING_MM, patient_of
from hemlearn.util.errors import DataError, HemlearnError
from hemlearn.util.tables import read_csv

CHECKS = ("anatomy", "contrast", "kernel")  # those that a name can fail
THICK_MM = 5.0  # what head CT is read at: slices of a name that tells no thickness
_THIN_MM, _HEAD_MM = 1.0, 150.0
# "5mm", "0.625 MM"; "55mm", "2.55mm" and "3.753.75mm" are thickness and distance in one, the distance last.
_MM = re.compile(r"(?:\d\.\d+?|\d)?(\d(?:\.\d+)?) ?mm", re.I)
# What does not make another kind of series: thickness, the usual soft kernel, and that it is a head, as all are.
_SAME_KIND = re.compile(r"\b(ct|thin|[\d.]+ ?(mm)?|stn?d|stand|soft|brain)(?!\w)", re.I)


@dataclass(frozen=True)
class Patient:
    """One patient: the names of the series and the one that a person took.

    Args:
        name: ``CQ500-CT-<number>``.
        series: Names without the number that repeats one (``-2``), in order, each once.
        taken: The person's.
    """

    name: str
    series: tuple[str, ...]
    taken: str


def read(tables: Path) -> list[Patient]:
    """The patients of both tables.

    Raises:
        DataError: A table that is missing, or without a patient of the other.
    """
    names = read_csv(tables / "series_names.csv")
    series: dict[str, set[str]] = {}
    for item in names["ID"]:
        patient, _, name = item.removesuffix(".png").removeprefix("WEIRD").lstrip("-_").partition("_")
        # Hyphens stand for the spaces of the folders' names.
        series.setdefault(patient_of(f"{patient}/"), set()).add(_once(name).replace("-", " "))
    chosen = {}
    for line in (tables / "chosen_series.txt").read_text(encoding="utf-8").splitlines():
        patient, _, name = line.strip().partition("/")
        chosen[patient_of(f"{patient}/")] = _once(name.rpartition("/")[2])
    both = [Patient(who, tuple(sorted(series[who])), chosen[who]) for who in series if who in chosen]
    if not both:
        raise DataError(f"{tables}: no patient in both tables", remedy="give the folder of the CQ500 tables")
    return both


def _once(name: str) -> str:
    return re.sub(r"-\d$", "", name)


def spacing(name: str) -> float:
    """Slice distance in mm that a name tells: its number, 1 for ``thin``, else 5."""
    found = _MM.search(name)
    if found:
        return float(found.group(1))
    bare = re.search(r"\b\d\.\d+\b", name)
    return float(bare.group()) if bare else _THIN_MM if re.search(r"\bthin\b", name, re.I) else THICK_MM


def kind(name: str) -> str:
    """A name without thickness, soft kernel and head, in lower case: equal for series that show the same."""
    return " ".join(_SAME_KIND.sub(" ", name).lower().split())


def choose_name(names: Sequence[str], wanted_mm: float = float("nan")) -> tuple[str, list[str]]:
    """The best name and its faults; without a wanted distance the longest of equals wins, which is the thinnest."""
    items = [
        {"description": name, "kernel": "", "spacing_mm": spacing(name), "kept": round(_HEAD_MM / spacing(name))}
        for name in names
    ]
    order, faults = rank_series(items, spacing_mm=wanted_mm, checks=CHECKS)
    return names[order[0]], faults[order[0]]


def why(patient: Patient, ours: str) -> str:
    """Why the person's series is of another kind than hemlearn's; "" where it is not."""
    if kind(ours) == kind(patient.taken):
        return ""
    if found := choose_name([patient.taken])[1]:
        return f"the person's has a fault: {', '.join(found)}"
    return "hemlearn's says that it is plain, the person's does not" if says_plain(ours) else "nothing in the names"


def report(patients: Sequence[Patient]) -> list[str]:
    """Lines: the agreement, and the disagreements."""
    lines = []
    for wanted, how in ((SPACING_MM, "nearest to 5 mm, as data=cq500"), (float("nan"), "most slices")):
        ours = {one.name: choose_name(one.series, wanted)[0] for one in patients}
        several = [one for one in patients if len(one.series) > 1]
        for group, what in ((patients, "patients"), (several, "of them with series of several names")):
            same = sum(ours[one.name].lower() == one.taken.lower() for one in group)
            alike = sum(not why(one, ours[one.name]) for one in group)
            lines.append(
                f"{how}, {len(group)} {what}: same series {same} ({100 * same / len(group):.1f} %), "
                f"same but for thickness {alike} ({100 * alike / len(group):.1f} %)"
            )
    best = {one.name: choose_name(one.series, SPACING_MM) for one in patients}
    clean = sum(not choose_name([one.taken])[1] for one in patients)
    lines.append(
        f"without a fault by name: the person's series of {clean}, hemlearn's of "
        f"{sum(not faults for _, faults in best.values())} of {len(patients)} patients"
    )
    lines += [
        f"{one.name}: hemlearn {best[one.name][0]!r}, person {one.taken!r}: {reason}"
        for one in patients
        if (reason := why(one, best[one.name][0]))
    ]
    return lines


def main(arguments: Sequence[str]) -> int:
    """Print the report; 2 for arguments or tables that cannot be used."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print("\n".join(report(read(Path(arguments[0])))))
    except HemlearnError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
