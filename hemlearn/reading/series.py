"""Files to the series that a run predicts, as they were made in training.

``data.geometry`` arranges their slices, of each study the axial head series is chosen, and ``data.band`` keeps the
slices that the run has learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.config.schema import GeometryConfig
from hemlearn.data.choice import choose
from hemlearn.data.geometry import arrange, cut_band
from hemlearn.data.ids import header_notes, id_notes
from hemlearn.data.readers.headers import LEFT_RIGHT
from hemlearn.data.rows import is_nifti, slice_ids
from hemlearn.data.scan import read_headers
from hemlearn.data.series import usable_headers
from hemlearn.training.run import MODALITY_OF, Run
from hemlearn.util.errors import DataError, count
from hemlearn.util.files import cache_dir

ROW = ["slice_id", "path", "frame", "z_mm", "modality"]
_FEW = 3  # studies up to which every choice and oddity is a note


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
        description: DICOM (0008,103E); "": unknown.
        sides: Whether its headers tell right from left, so that slices are shown from below, right on the left.
        upward: Whether its slices are known to run from the feet to the head.
    """

    patient_id: str
    study_id: str
    series_id: str
    root: Path
    rows: pd.DataFrame
    stamp: str = ""
    pixel_mm: tuple[float, float] | None = None
    description: str = ""
    sides: bool = False
    upward: bool = False


@dataclass
class Found:
    """What there is to predict, and what is not predicted.

    Args:
        series: In the order they were found.
        failures: (item, reason): files and series that should have been predicted and cannot be.
        skip_reasons: (item, reason): files, slices and series that are no head slices, or not the chosen ones.
        notes: What a reader should know: patients, chosen series and why.
        chosen: Series id -> why it is the one of its study that is predicted.
        problems: Series id -> what is odd about its slices (gaps, tilt ...); "" where nothing is.
        spare: Series id -> the next best series of its study, and what makes it.
        patients_known: Whether patient ids name people; else images, or series, stand for them.
    """

    series: list[Series] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    skip_reasons: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    spare: dict[str, tuple[str, Callable[[], Series | None]]] = field(default_factory=dict)
    patients_known: bool = True

    def instead(self, refused: Iterable[tuple[str, str]]) -> list[Series]:
        """The next best series of each study whose chosen one cannot be predicted; each is told in ``notes``.

        Args:
            refused: (series id, reason).
        """
        out = []
        for name, reason in refused:
            item: Series | None = None
            place = name
            while item is None and place in self.spare:
                place, make = self.spare.pop(place)
                item = make()
            if item is not None:
                self.skip_reasons = [other for other in self.skip_reasons if other[0] != place]
                self.chosen[place] = f"the next best of its study: {name} cannot be predicted"
                self.notes.append(f"patient {item.patient_id}: series {place} is predicted instead of {name}: {reason}")
                out.append(item)
        return out


@dataclass(frozen=True)
class InputRules:
    """What a run asks of its input.

    Args:
        modality: ``CT`` or ``MR``: what it has learnt from; "": its pictures did not say.
        default: Modality of files that do not say.
        geometry: What it did about gaps, tilt and repeated positions in training.
        spacing_mm: Median slice distance of its own data, mm; NaN: unknown.
        cache_dir: Where headers are kept.
        band: ``data.band``: the slices of each series that it has learnt from; None: all.
        every: Predict every series of a study, not the chosen one.
        sides: Whether it has labels of left and right (``task.sides``).
    """

    modality: str
    default: str
    geometry: GeometryConfig
    spacing_mm: float
    cache_dir: Path
    band: tuple[float, float] | None = None
    every: bool = False
    sides: bool = False

    @classmethod
    def of(cls, run: Run, *, every: bool = False) -> InputRules:
        """Those of a run."""
        data = run.config.data
        band = None if data.band is None else (float(data.band[0]), float(data.band[1]))
        default, sides = run.modality or MODALITY_OF[run.config.channels.kind], bool(run.config.task.sides)
        cache = cache_dir(data.cache_dir)
        return cls(run.modality, default, data.geometry, run.spacing_mm, cache, band, every, sides)


def add_pictures(found: Found, names: list[str], root: Path, rules: InputRules) -> None:
    """Every picture is a series of one slice."""
    note_unsaid(found, rules)
    found.patients_known = False
    for name in names:
        row = {"slice_id": name, "path": name, "frame": 0, "z_mm": np.nan, "modality": rules.default}
        rows = pd.DataFrame([row])
        found.series.append(Series(name, name, name, root, rows))


def note_unsaid(found: Found, rules: InputRules) -> None:
    """A note on pictures that do not say what they show, for a run that knows what it has learnt from."""
    if rules.modality:
        found.notes.append(f"pictures do not say whether they show CT or MR; the run has learnt from {rules.modality}")


def add_headers(found: Found, names: list[str], root: Path, rules: InputRules, *, stamp: str = "") -> None:
    """Group DICOM and NIfTI files into series, and choose among those of a study.

    Raises:
        DataError: None of the files is an axial image.
    """
    try:
        headers = found_headers(found, names, root, rules)
    except DataError as error:  # its remedy is for data sets
        raise DataError(error.problem, remedy="give axial slices of the run's modality") from error
    found.notes += id_notes(headers["patient_id"].unique())
    add_arranged(found, headers, root, rules, stamp=stamp)


def found_headers(found: Found, names: list[str], root: Path, rules: InputRules) -> pd.DataFrame:
    """The usable headers of some files; those that cannot be read are told from those that are no slices."""
    headers, lost = usable_headers(names, root, cache_dir=rules.cache_dir)
    names = list(dict.fromkeys(lost["item"]))
    broken = read_headers(names, root, progress=False) if names else None
    unreadable = set() if broken is None else set(broken.loc[broken["reason"] != "", "path"])
    for item, reason in lost[["item", "reason"]].itertuples(index=False):
        (found.failures if item in unreadable else found.skip_reasons).append((item, reason))
    headers["modality"] = headers["modality"].where(~is_nifti(headers["path"]), rules.default)
    found.notes += header_notes(headers)
    return headers


def add_arranged(
    found: Found, headers: pd.DataFrame, root: Path, rules: InputRules, *, stamp: str = "", named: bool = False
) -> None:
    """Add the series of a table of headers (columns of ``readers.slice_header.Header``).

    A series of another modality is skipped where it was merely found, and a failure where it was ``named``.
    """
    other = pd.Series(False, headers.index) if not rules.modality else headers["modality"] != rules.modality
    if not rules.modality:
        told = " and ".join(sorted(set(headers["modality"])))
        found.notes.append(
            f"the run has learnt from pictures that did not say whether they showed CT or MR; these are {told}: train "
            "with data.modality=CT or MR to have others refused"
        )
    for name, rows in headers[other].groupby("series_id", sort=False):
        what = f"{count(len(rows), 'slice')} of modality {rows['modality'].iloc[0]} (first {rows['path'].iloc[0]})"
        reason = f"refused: {what}, but the run has learnt from {rules.modality}"
        (found.failures if named else found.skip_reasons).append((str(name), reason))
    sideless = ~other & rules.sides & headers["remark"].str.contains(LEFT_RIGHT, regex=False)
    found.failures += [(str(name), f"refused: {LEFT_RIGHT}") for name in headers.loc[sideless, "series_id"].unique()]
    headers = headers[~other & ~sideless].reset_index(drop=True)
    if headers.empty:
        return
    geometry = arrange(headers, rules.geometry)
    for item, reason in geometry.skipped[["item", "reason"]].itertuples(index=False):
        (found.failures if reason.startswith("two patients") else found.skip_reasons).append((item, reason))
    table = geometry.rows
    if table.empty:
        return
    if "slice_id" not in table:
        table["slice_id"] = slice_ids(table)
    taken, choices = table["series_id"].drop_duplicates().tolist(), []
    if not (rules.every or named):
        choices = choose(geometry.series, table, rules.spacing_mm)
        taken = [choice.series_id for choice in choices]
        for choice in choices:
            why = f"another series of this study is predicted ({choice.series_id}): here"
            found.skip_reasons += [(name, f"{why} {reason}") for name, reason in choice.others]
            found.chosen[choice.series_id] = choice.reason
            if choice.others or len(choices) <= _FEW:
                found.notes.append(f"patient {choice.patient_id}: series {choice.series_id}, {choice.reason}")
    problems = geometry.series.set_index("series_id")["problems"]
    tell = len(taken) <= _FEW

    def made(name: str) -> Series | None:
        found.problems[name] = problems[name]
        if problems[name] and tell:
            found.notes.append(f"series {name}: {problems[name]}")
        kept = in_band(found, table[table["series_id"] == name].reset_index(drop=True), rules.band, tell=tell)
        if kept.empty:
            return None
        first = kept.iloc[0]
        ids = (str(first["patient_id"]), str(first["study_id"]), name)
        return Series(*ids, root, kept[ROW].reset_index(drop=True), stamp, first.get("pixel_mm"), **_told(kept, first))

    for choice in choices:
        chain = [choice.series_id, *(name for name, _ in choice.others)]
        found.spare |= {name: (after, partial(made, after)) for name, after in pairwise(chain)}
    found.series += [item for name in taken if (item := made(str(name))) is not None]


def _told(rows: pd.DataFrame, first: pd.Series[Any]) -> dict[str, Any]:
    """What the headers of a series say of it as a whole."""
    oriented = "normal" in rows and bool(rows["normal"].notna().all())
    doubtful = "remark" in rows and bool(rows["remark"].str.contains(LEFT_RIGHT, regex=False).any())
    upward = oriented and len(rows) > 1 and bool(rows["z_mm"].notna().all())
    return {
        "description": str(first.get("description", "") or ""),
        "sides": oriented and not doubtful,
        "upward": upward,
    }


def in_band(found: Found, rows: pd.DataFrame, band: tuple[float, float] | None, *, tell: bool) -> pd.DataFrame:
    """The slices of one series within ``data.band``, as training has cut it; the others get their reasons."""
    if band is None or len(rows) == 1:  # a slice alone does not tell its place in a series
        return rows
    kept, outside = cut_band(rows, band)
    lost = list(outside.itertuples(index=False, name=None))
    name = str(rows["series_id"].iloc[0])
    if kept.empty:
        found.failures.append((name, lost[0][1]))
    elif tell and lost:
        found.notes.append(
            f"series {name}: {len(kept)} of {count(len(rows), 'slice')} lie within the run's data.band=[{band[0]:g}, "
            f"{band[1]:g}] and are predicted; the others are in left_out.csv"
        )
    found.skip_reasons += lost
    return kept
