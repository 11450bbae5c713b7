"""Which series of a study shows the head as the run knows it, and why the others do not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.config.schema import GeometryConfig
from hemlearn.data.geometry import arrange
from hemlearn.data.rows import slice_ids
from hemlearn.data.scan import read_headers
from hemlearn.datamodules.cq500 import SLICES

FIELD_MM = (140.0, 360.0)  # width of the picture; a head fills 180 to 260 mm, a body 350 to 500
COVERED_MM = 80.0  # from the lowest to the highest slice; a head has 130 to 180
_ELSEWHERE = re.compile(
    r"\b(neck|c-?spine|cervical|thora\w*|chest|lungs?|abd\w*|pelvi\w*|lumbar|spine|knee|hip|cardiac|sinus(es)?|orbits?"
    r"|petrous|temporal bones?|mandib\w*|teeth|dental)\b",
    re.I,
)
_HEAD = re.compile(r"\b(head|brain|cerebr\w*|crani\w*|skull|schaedel|kopf|encephal\w*)\b", re.I)
# Kernels that sharpen bone: their noise hides blood. Siemens H60 to H80 by number, the others by name.
_SHARP = re.compile(r"bone|edge|lung|sharp|\b[hj]r?[6-8]\d|\bfc[358]\d\b|\by[bcde]\b", re.I)
_PLAIN = re.compile(r"plain|\bpre\b|\bnon?[ -]?c|without|w/o|unenhanced", re.I)
_CONTRAST = re.compile(r"contrast|\bpost\b|\bc\+|angio|\bcta\b|venous|arterial|perfusion|\d ?cc\b", re.I)


@dataclass(frozen=True)
class Choice:
    """The series of one study that is predicted.

    Args:
        patient_id: The patient.
        study_id: The study.
        series_id: The chosen series.
        reason: Why, in words.
        others: (series id, reason) of each series that is not predicted.
    """

    patient_id: str
    study_id: str
    series_id: str
    reason: str
    others: tuple[tuple[str, str], ...]


def choose(series: pd.DataFrame, rows: pd.DataFrame, spacing_mm: float) -> list[Choice]:
    """Choose one series of every study.

    What counts, the heaviest first: a part of the body other than the head (series description), a field of view that
    is no head's, fewer than 10 or more than 600 slices, less than 80 mm covered, a picture derived from slices,
    contrast medium, a kernel that sharpens bone. Among equals the slice distance nearest to that of the run's own data
    decides, then the number of slices.

    Args:
        series: Table of series (``geometry.SERIES_COLUMNS``) with ``kept``, all of the run's modality.
        rows: Their usable slices with series_id, z_mm, image_type and path.
        spacing_mm: Median slice distance in the run's own data, mm; NaN: unknown.
    """
    usable = series[series["kept"] > 0]
    groups = rows.groupby("series_id", sort=False)
    span = groups["z_mm"].agg(lambda z: float(z.max() - z.min()) if z.notna().all() and len(z) > 1 else np.nan)
    first = rows.drop_duplicates("series_id").set_index("series_id")["image_type"]
    usable = usable.assign(span=usable["series_id"].map(span), image_type=usable["series_id"].map(first))
    chosen = []
    for (patient, study), group in usable.groupby(["patient_id", "study_id"], sort=False):
        items = group.to_dict("records")
        faults = [_faults(item) for item in items]
        apart = [_apart(item["spacing_mm"], spacing_mm) for item in items]
        order = sorted(
            range(len(items)), key=lambda k: ([bool(text) for text in faults[k]], apart[k], -items[k]["kept"])
        )
        best = order[0]
        told = [text for text in faults[best] if text]
        named = _HEAD.search(str(items[best]["description"]))
        if len(items) == 1:
            reason = "the only axial series"
        else:
            reason = f"the best of {len(items)} axial series"
            if not told:
                reason += f": {_praise(items[best], spacing_mm)}"
        if named:
            reason += f", described as {named.group().lower()}"
        if told:
            reason += f"; BUT {', '.join(told)}"
        others = [(str(items[k]["series_id"]), _why_not(items[k], items[best], faults[k])) for k in order[1:]]
        chosen.append(Choice(str(patient), str(study), str(items[best]["series_id"]), reason, tuple(others)))
    return chosen


def _faults(item: dict[str, Any]) -> list[str]:
    """What speaks against a series, the worst first; "" for each thing that does not."""
    text = str(item["description"]).replace("_", " ")
    elsewhere = _ELSEWHERE.search(text)
    field = item["pixel_mm"] * max(item["rows"], item["columns"])
    sharp = _SHARP.search(f"{item['kernel']} {text}")
    return [
        f"described as {elsewhere.group().lower()}" if elsewhere and not _HEAD.search(text) else "",
        f"a field of view of {field:.0f} mm" if field == field and not FIELD_MM[0] <= field <= FIELD_MM[1] else "",
        "" if SLICES[0] <= item["kept"] <= SLICES[1] else f"{item['kept']} slice{'s' * (item['kept'] != 1)}",
        f"only {item['span']:.0f} mm covered" if item["span"] < COVERED_MM else "",
        "derived from other images" if "DERIVED" in str(item["image_type"]).upper() else "",
        "contrast medium" if _CONTRAST.search(text) and not _PLAIN.search(text) else "",
        f"a sharp kernel ({sharp.group()})" if sharp else "",
    ]


def _apart(spacing: float, wanted: float) -> float:
    """How far two slice distances are apart, on a log scale in steps of a tenth; unknown ones come last."""
    if not spacing > 0 or not wanted > 0:
        return 99.0 if wanted > 0 else 0.0
    return round(abs(float(np.log2(spacing / wanted))), 1)


def _praise(item: dict[str, Any], wanted: float) -> str:
    spacing = item["spacing_mm"]
    told = f"{item['kept']} slices"
    if spacing == spacing:
        told += f" every {spacing:.1f} mm"
    return told + (f" (the run learnt from slices every {wanted:.1f} mm)" if wanted == wanted else "")


def _why_not(item: dict[str, Any], best: dict[str, Any], faults: list[str]) -> str:
    told = [text for text in faults if text]
    if not told:
        told = [_praise(item, np.nan)]
    return f"another series of this study is predicted ({best['series_id']}): here {', '.join(told)}"


# --- The series that are predicted, and what is said of the files and series that are not.


KINDS = {"ct": "CT", "mr": "MR"}  # modality of a run -> DICOM (0008,0060)
_ROW = ["slice_id", "path", "frame", "z_mm", "modality"]


@dataclass(frozen=True)
class Series:
    """The slices that are predicted together.

    Args:
        patient_id: Whose they are.
        study_id: Their study.
        series_id: Their series.
        root: Folder that ``path`` starts from.
        rows: One row per slice, in order: slice_id, path, frame, z_mm (mm; NaN: unknown), modality.
        stamp: What tells that the files are the same as in an earlier call; "": their sizes and times do.
        pixel_mm: Row and column spacing; None: unknown.
    """

    patient_id: str
    study_id: str
    series_id: str
    root: Path
    rows: pd.DataFrame
    stamp: str = ""
    pixel_mm: tuple[float, float] | None = None


@dataclass
class Found:
    """What there is to predict, and what is not predicted.

    Args:
        series: In the order they were found.
        failures: (item, reason): files and series that should have been predicted and cannot be.
        left_out: (item, reason): files and series that are no head slices, or not the chosen ones.
        remarks: What a reader should know: patients, chosen series and why.
        chosen: Series id -> why it is the one of its study that is predicted.
        problems: Series id -> what is odd about its slices (gaps, tilt ...); "" where nothing is.
    """

    series: list[Series] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What the run asks of its input.

    Args:
        kind: ``ct`` or ``mr``.
        geometry: What it did about gaps, tilt and repeated positions in training.
        spacing_mm: Median slice distance of its own data, mm; NaN: unknown.
        every: Predict every series of a study, not the chosen one.
        cache_dir: Where headers are kept.
    """

    kind: str
    geometry: GeometryConfig
    spacing_mm: float
    every: bool
    cache_dir: Path


def add_pictures(found: Found, names: list[str], root: Path) -> None:
    """Every picture is a series of one slice."""
    for name in names:
        rows = pd.DataFrame({"slice_id": [name], "path": [name], "frame": [0], "z_mm": [np.nan], "modality": ["CT"]})
        found.series.append(Series(name, name, name, root, rows))


def add_lost(found: Found, lost: pd.DataFrame, root: Path) -> None:
    """Tell files that cannot be read from those that are no slices."""
    names = list(dict.fromkeys(lost["item"]))
    broken = read_headers(names, root, progress=False) if names else None
    unreadable = set() if broken is None else set(broken.loc[broken["reason"] != "", "path"])
    for item, reason in lost[["item", "reason"]].itertuples(index=False):
        (found.failures if item in unreadable else found.left_out).append((item, reason))


def add_arranged(
    found: Found,
    headers: pd.DataFrame,
    root: Path,
    wanted: Wanted,
    *,
    every: bool,
    stamp: str = "",
    named: bool = False,
) -> None:
    """Add the series of a table of headers (columns of ``readers.slice_header.Header``).

    A series of another modality is left out where it was merely found, and a failure where it was ``named``.
    """
    kind = KINDS[wanted.kind]
    other = headers["modality"] != kind
    for name, rows in headers[other].groupby("series_id", sort=False):
        (found.failures if named else found.left_out).append(
            (
                str(name),
                f"refused: {len(rows)} slices of modality {rows['modality'].iloc[0]} (first "
                f"{rows['path'].iloc[0]}), but the run has learnt from {kind}",
            )
        )
    headers = headers[~other].reset_index(drop=True)
    if headers.empty:
        return
    geometry = arrange(headers, wanted.geometry)
    for item, reason in geometry.skipped[["item", "reason"]].itertuples(index=False):
        (found.failures if reason.startswith("two patients") else found.left_out).append((item, reason))
    table = geometry.rows
    if table.empty:
        return
    if "slice_id" not in table:
        table["slice_id"] = slice_ids(table)
    groups = dict(list(table.groupby("series_id", sort=False)))
    taken = list(groups)
    if not every:
        choices = choose(geometry.series, table, wanted.spacing_mm)
        taken = [choice.series_id for choice in choices]
        for choice in choices:
            found.left_out += choice.others
            found.chosen[choice.series_id] = choice.reason
            if choice.others or len(choices) <= 3:
                found.remarks.append(f"patient {choice.patient_id}: series {choice.series_id}, {choice.reason}")
    problems = geometry.series.set_index("series_id")["problems"]
    for name in taken:
        rows = groups[name]
        found.problems[str(name)] = problems[name]
        if problems[name] and len(taken) <= 3:
            found.remarks.append(f"series {name}: {problems[name]}")
        first = rows.iloc[0]
        found.series.append(
            Series(
                str(first["patient_id"]),
                str(first["study_id"]),
                str(name),
                root,
                rows[_ROW].reset_index(drop=True),
                stamp,
                first.get("pixel_mm"),
            )
        )
