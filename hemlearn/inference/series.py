"""The series that are predicted, and what is said of the files and series that are not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.data.geometry import arrange
from hemlearn.data.readers.header import read_headers
from hemlearn.datamodules.dicom import slice_ids
from hemlearn.inference.choice import choose
from hemlearn.schema import GeometryConfig

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
