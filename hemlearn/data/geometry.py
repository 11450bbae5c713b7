"""Slices to series: order by position, and what a radiologist would remark about the stack.

Positions are those of :mod:`hemlearn.data.readers.headers`: ImagePositionPatient (0020,0032) projected on the slice
normal, which is the distance between slices that counts. A tilted gantry makes the table travel farther than that
(distance / cos(tilt)); texts give both, since consoles show the travel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.config.schema import GeometryConfig
from hemlearn.data.series import Stack, Stacks
from hemlearn.data.series_parts import remarks_of, slices_of, some
from hemlearn.util.console import ON_DATA
from hemlearn.util.errors import ConfigError, count

# --- What is unusual about a stack of slices, in the words of a report.


_REMARKS = 12  # that are logged
TILT_DEG = 0.5  # from here on a gantry counts as tilted
_RUNS = 6  # more runs of equal spacing than this are summed up
_STEEP_DEG = 45.0  # beyond this a slice is not axial, and a tilt tells nothing about table travel


def series_notes(stacks: Stacks, stack: Stack) -> str:
    """Everything unusual about a series, joined by semicolons; "" when there is nothing to say."""
    found = []
    if len(stack.patients) > 1:
        found.append(f"slices of {len(stack.patients)} patients ({', '.join(stack.patients[:5])}) under one series id")
    if len(stack.rows) == 1:
        found.append("a single slice")
    if len(stack.aside):
        found.append(f"{count(len(stack.aside), 'slice')} in another orientation")
    if stack.missing:
        found.append(
            f"{count(stack.missing, 'slice')} without a position of their own: ordered by {stack.order}, z unknown"
        )
    if stack.repeats.any():
        found.append(f"{count(int(stack.repeats.sum()), 'slice')} at a position that another slice has")
    tilt = stacks.middle("tilt_deg", stack)
    if uneven(stack.steps):
        found.append(_spacing(stack.steps, tilt))
    if abs(tilt) > _STEEP_DEG:
        found.append(f"not axial: slices stand {abs(tilt):.1f} degrees off the axial plane")
    elif abs(tilt) >= TILT_DEG:
        found.append(f"gantry tilt {tilt:.1f} degrees")
    low, high = _range(stacks.numbers("thickness_mm", stack))
    if high > 1.1 * low:
        found.append(f"slice thickness {low:g} to {high:g} mm")
    sizes = sorted(set(_sizes(stacks, stack)))
    if len(sizes) > 1:
        shown = ", ".join(f"{rows} x {columns}" for rows, columns in sizes[:4])
        found.append(f"mixed matrix sizes ({shown}{', ...' if len(sizes) > 4 else ''})")
    low, high = _range(stacks.numbers("pixel", stack))
    if high > 1.01 * low:
        found.append(f"pixel size {low:.3f} to {high:.3f} mm")
    table = pd.DataFrame({name: stacks.strings(name)[stack.rows] for name in ("path", "remark")})
    table["frame"] = np.nan_to_num(stacks.array("frame")[stack.rows])
    return "; ".join([*found, *remarks_of(table)])


def _spacing(along: NDArray[np.float64], tilt: float) -> str:
    tilted = TILT_DEG <= abs(tilt) <= _STEEP_DEG
    shown = along / np.cos(np.deg2rad(tilt)) if tilted else along
    middle = float(np.median(shown))
    text = f"spacing {shown.min():.2f} to {shown.max():.2f} mm"
    runs = _runs(shown)
    if len(runs) <= _RUNS:
        text += f" (in order: {', '.join(runs)})"
    else:
        wide = int((shown > 1.5 * middle).sum())
        text += f" (median {middle:.2f} mm, {count(wide, 'interval')} above 1.5 times that)"
    if tilted:
        text += f" of table travel, {along.min():.2f} to {along.max():.2f} mm along the slice normal"
    return text


def _runs(steps: NDArray[np.float64]) -> list[str]:
    """``13 x 4.22``, ``1 x 1.14``: consecutive distances that are equal within 2 %."""
    out: list[list[float]] = []
    for step in steps.tolist():
        if out and abs(step - out[-1][0]) <= 0.02 * out[-1][0]:
            out[-1].append(step)
        else:
            out.append([step])
    return [f"{len(run)} x {np.median(run):.2f}" for run in out]


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)


# Column -> type of the table of series, as it is saved.
SERIES_COLUMNS = {
    "series_id": "str",
    "patient_id": "str",
    "study_id": "str",
    "modality": "str",
    "slices": "int64",
    "kept": "int64",
    "spacing_mm": "float64",
    "spacing_min": "float64",
    "spacing_max": "float64",
    "gaps": "int64",
    "overlaps": "int64",
    "duplicates": "int64",
    "tilt_deg": "float64",
    "thickness_mm": "float64",
    "pixel_mm": "float64",
    "rows": "int64",
    "columns": "int64",
    "mixed_size": "bool",
    "mixed_orientation": "int64",
    "missing_position": "int64",
    "manufacturer": "str",
    "kernel": "str",
    "description": "str",
    "problems": "str",
}


def no_series() -> pd.DataFrame:
    """The table of series of a data set whose files tell no geometry."""
    return pd.DataFrame({name: pd.Series(dtype=_dtype(kind)) for name, kind in SERIES_COLUMNS.items()})


def series_geometry(headers: pd.DataFrame) -> pd.DataFrame:
    """One row per series, in order of appearance.

    Args:
        headers: One row per slice, columns of ``readers.headers.Header``; series_id and patient_id are needed, any
            other may be absent (unknown).

    Returns:
        ``SERIES_COLUMNS``: slices are all that were found, kept those that :func:`apply_geometry` leaves (here the
        same); spacings (mm) are between neighbouring positions along the slice normal; gaps and overlaps are intervals
        above 1.5 and below 0.5 times their median, duplicates slices within 0.01 mm of another; tilt_deg, thickness_mm
        and pixel_mm are medians, rows and columns the commonest size; mixed_orientation counts slices that lie
        otherwise than most, missing_position those without one; problems says what is unusual.
    """
    stacks = Stacks(headers)
    found = [_describe(stacks, stack) for stack in stacks]
    if not found:
        return no_series()
    return pd.DataFrame(found)[list(SERIES_COLUMNS)].astype({k: _dtype(v) for k, v in SERIES_COLUMNS.items()})


def apply_geometry(headers: pd.DataFrame, cfg: GeometryConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put slices in order and leave out what the configuration, or reason, refuses.

    Series stand in order of appearance, their slices by position. A series in which a slice has no position is
    ordered by instance number (0020,0013), else by file name, and its z_mm is unknown throughout: half a z axis
    would mislead. A series id that two patients share is refused, since nothing tells whose slices they are; of
    two orientations the rarer is left out.

    Args:
        headers: As for :func:`series_geometry`, with ``path`` and ``frame``.
        cfg: What to do about duplicates, gaps, tilt and short series.

    Returns:
        The rows that stay (z_mm as used), and a table (item, reason) of the others.
    """
    stacks = Stacks(headers)
    kept: list[NDArray[np.int64]] = []
    z_mm: list[NDArray[np.float64]] = []
    lost: list[tuple[str, str]] = []
    for stack in stacks:
        left, reasons = _judge(stacks, stack, cfg)
        kept.append(stack.rows[left])
        z_mm.append(stack.z_mm[left])
        lost += [(stacks.item(row), reason) for row, reason in reasons]
    order = np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
    out = headers.iloc[order].reset_index(drop=True)
    out["z_mm"] = np.concatenate(z_mm) if z_mm else np.empty(0)
    return out, pd.DataFrame(lost, columns=["item", "reason"], dtype=object)


def _judge(stacks: Stacks, stack: Stack, cfg: GeometryConfig) -> tuple[NDArray[np.bool_], list[tuple[int, str]]]:
    """Which slices of a stack stay (mask over ``stack.rows``), and (row, reason) of every slice that does not."""
    nothing = np.zeros(len(stack.rows), dtype=bool)
    everything = [*stack.rows.tolist(), *stack.aside.tolist()]
    name = repr(stack.series_id)
    if len(stack.patients) > 1:
        who = ", ".join(map(repr, stack.patients[:5])) + (", ..." if len(stack.patients) > 5 else "")
        reason = f"two patients in one series: series {name} holds slices of {who}"
        return nothing, [(row, reason) for row in everything]
    lost = [(row, f"other orientation than most of series {name}") for row in stack.aside.tolist()]
    repeats = stack.repeats
    left = ~nothing
    if repeats.any() and cfg.duplicates == "first":
        left = ~repeats
        first = stack.rows[np.maximum.accumulate(np.where(repeats, 0, np.arange(len(repeats))))]
        lost += [
            (int(row), f"duplicate position: z = {z:.2f} mm, as {stacks.item(int(same))}")
            for row, z, same in zip(stack.rows[repeats], stack.z_mm[repeats], first[repeats], strict=True)
        ]
    refusal = _refusal(stacks, stack, int(left.sum()), cfg)
    if refusal:
        already = {row for row, _ in lost}
        return nothing, lost + [(row, refusal) for row in everything if row not in already]
    return left, lost


def _refusal(stacks: Stacks, stack: Stack, left: int, cfg: GeometryConfig) -> str:
    name = repr(stack.series_id)
    if left < cfg.min_slices:
        return f"short series: {name} has {count(left, 'slice')}, data.geometry.min_slices={cfg.min_slices}"
    if cfg.duplicates == "refuse" and stack.repeats.any():
        return f"duplicate positions: {int(stack.repeats.sum())} in series {name}, data.geometry.duplicates=refuse"
    if stack.patients[0].startswith("folder:") and len(stack.rows) > 2 and 2 * stack.repeats.sum() >= len(stack.rows):
        return f"two slices at every position of {name} and no patient id: two people? Give each a folder of their own"
    steps = stack.steps
    if cfg.gaps == "refuse" and uneven(steps):
        return f"uneven spacing: {steps.min():.2f} to {steps.max():.2f} mm in series {name}, data.geometry.gaps=refuse"
    tilt = stacks.middle("tilt_deg", stack)
    if cfg.tilt == "refuse" and abs(tilt) >= TILT_DEG:
        return f"gantry tilt: {tilt:.1f} degrees in series {name}, data.geometry.tilt=refuse"
    return ""


def uneven(steps: NDArray[np.float64]) -> bool:
    """Whether distances between neighbouring slices (mm) differ by more than a tenth of their median."""
    if len(steps) < 2:
        return False
    return bool(np.abs(steps - np.median(steps)).max() > 0.1 * np.median(steps))


def _describe(stacks: Stacks, stack: Stack) -> dict[str, object]:
    steps = stack.steps
    middle = float(np.median(steps)) if len(steps) else np.nan
    sizes = list(_sizes(stacks, stack))
    size = max(sizes, key=sizes.count) if len(set(sizes)) > 1 else sizes[0]
    thickness = stacks.numbers("thickness_mm", stack)
    return {
        "series_id": stack.series_id,
        "patient_id": stack.patients[0],
        "study_id": stacks.text("study_id", stack),
        "modality": stacks.text("modality", stack),
        "slices": len(stack.rows) + len(stack.aside),
        "kept": len(stack.rows) + len(stack.aside),
        "spacing_mm": middle,
        "spacing_min": float(steps.min()) if len(steps) else np.nan,
        "spacing_max": float(steps.max()) if len(steps) else np.nan,
        "gaps": int((steps > 1.5 * middle).sum()),
        "overlaps": int((steps < 0.5 * middle).sum()),
        "duplicates": int(stack.repeats.sum()),
        "tilt_deg": stacks.middle("tilt_deg", stack),
        "thickness_mm": float(np.quantile(thickness, 0.5, method="lower")) if len(thickness) else np.nan,
        "pixel_mm": stacks.middle("pixel", stack),
        "rows": size[0],
        "columns": size[1],
        "mixed_size": len(set(sizes)) > 1,
        "mixed_orientation": len(stack.aside),
        "missing_position": stack.missing,
        "manufacturer": stacks.text("manufacturer", stack),
        "kernel": stacks.text("kernel", stack),
        "description": stacks.text("description", stack),
        "problems": series_notes(stacks, stack),
    }


def _sizes(stacks: Stacks, stack: Stack) -> Iterator[tuple[int, int]]:
    rows, columns = stacks.array("rows")[stack.rows], stacks.array("columns")[stack.rows]
    return zip(np.nan_to_num(rows).astype(int).tolist(), np.nan_to_num(columns).astype(int).tolist(), strict=True)


def geometry_counts(series: pd.DataFrame) -> dict[str, int]:
    """Kind of problem -> number of series that have it, kinds without any left out."""
    span = series["spacing_max"] > 1.1 * series["spacing_mm"]
    span |= series["spacing_min"] < 0.9 * series["spacing_mm"]
    kinds = {
        "uneven spacing": span,
        "gantry tilt": series["tilt_deg"].abs() >= TILT_DEG,
        "duplicate positions": series["duplicates"] > 0,
        "missing positions": series["missing_position"] > 0,
        "single slice": series["slices"] == 1,
        "mixed orientation": series["mixed_orientation"] > 0,
        "mixed matrix size": series["mixed_size"].astype(bool),
    }
    return {name: int(found.sum()) for name, found in kinds.items() if found.any()}


def _dtype(kind: str) -> object:
    return object if kind == "str" else kind


@dataclass(frozen=True)
class Geometry:
    """Result of :func:`arrange`: slices that stay, in order; their series; what was left out."""

    rows: pd.DataFrame
    series: pd.DataFrame
    skipped: pd.DataFrame


def arrange(headers: pd.DataFrame, cfg: GeometryConfig) -> Geometry:
    """:func:`series_geometry` and :func:`apply_geometry` at once, with the number of slices kept per series."""
    series = series_geometry(headers)
    _warn(headers)
    rows, skipped = apply_geometry(headers, cfg)
    kept = series["series_id"].map(rows["series_id"].value_counts()) if len(rows) else pd.Series(0, series.index)
    return Geometry(rows, series.assign(kept=kept.fillna(0).astype("int64")), skipped)


def _warn(headers: pd.DataFrame) -> None:
    """Log what is remarked about slices that are used, once per remark."""
    if "remark" not in headers:
        return
    found = slices_of(headers)
    for remark, rows in list(found.items())[:_REMARKS]:
        names = rows["series_id"].unique()
        logger.warning(
            "%s, the first %s: %s (%s)", count(len(names), "series"), names[0], remark, some(rows), extra=ON_DATA
        )
    if len(found) > _REMARKS:
        logger.warning("and %d more remarks: see `hemlearn index`", len(found) - _REMARKS, extra=ON_DATA)


# --- The part of each series that a task is about: slices between two shares of its length.


logger = logging.getLogger(__name__)


def shares(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Where each slice stands in its series: 0 for the lowest, 1 for the topmost, 0.5 for the only one.

    Positions decide where they are known, so that gaps do not shift the shares; else the order of the rows does.

    Args:
        rows: Columns series_id and z_mm (mm; NaN throughout a series: unknown), the slices of a series in order.
    """
    group = rows.groupby("series_id", sort=False)["z_mm"]
    place, size = group.cumcount().to_numpy(dtype=np.float64), group.transform("size").to_numpy(dtype=np.float64)
    lowest, highest = (group.transform(name).to_numpy(dtype=np.float64) for name in ("min", "max"))
    by_order = np.where(size > 1, place / np.maximum(size - 1, 1), 0.5)
    span = highest - lowest
    with np.errstate(invalid="ignore", divide="ignore"):
        by_position = (rows["z_mm"].to_numpy(dtype=np.float64) - lowest) / span
    return np.where(span > 0, by_position, by_order)


PLACE = "place_in_series"  # column of rows that know the share of their series' length already


def placed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with :data:`PLACE`, which stays what it is when other slices of the series are taken away."""
    return rows.assign(**{PLACE: shares(rows) if len(rows) else np.empty(0)})


def cut_band(rows: pd.DataFrame, band: Sequence[float] | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the slices of each series that stand within a band of its length.

    Args:
        rows: Columns path, frame, series_id, patient_id and z_mm, the slices of a series in order
            (``geometry.arrange``), or with their :data:`PLACE`.
        band: ``data.band``: lowest and highest share, both included; None keeps all.

    Returns:
        The rows that stay, and a table (item, reason) of the others. A series with no slice in the band is left out as
        a whole, with that reason, and told in the log.

    Raises:
        ConfigError: The band is not two rising numbers from 0 to 1.
    """
    lost = pd.DataFrame(columns=["item", "reason"], dtype=object)
    if band is None:
        return rows, lost
    good = len(band) == 2 and all(isinstance(value, int | float) for value in band)
    if not (good and 0 <= band[0] < band[1] <= 1):
        raise ConfigError(
            f"data.band={list(band)}: not two rising shares from 0 (lowest slice) to 1 (topmost)",
            remedy="e.g. data.band=[0.35,0.65], or data.band=null for all slices",
        )
    if rows.empty:
        return rows, lost
    text = f"data.band=[{band[0]:g}, {band[1]:g}]"
    where = shares(rows)
    if PLACE in rows:
        where = rows[PLACE].fillna(pd.Series(where, index=rows.index)).to_numpy(dtype=np.float64)
    inside = pd.Series((where >= band[0] - 1e-9) & (where <= band[1] + 1e-9), index=rows.index)
    empty = ~inside.groupby(rows["series_id"]).transform("any")
    size = rows.groupby("series_id")["path"].transform("size")
    reasons = pd.Series(f"outside the band: {text}", index=rows.index, dtype=object)
    reasons[empty] = [
        f"no slice in the band: none of the {count} of series {name!r} of patient {patient!r} lies within {text}"
        for name, patient, count in zip(
            rows.loc[empty, "series_id"], rows.loc[empty, "patient_id"], size[empty], strict=True
        )
    ]
    for row, reason in reasons[empty].drop_duplicates().items():
        logger.warning("%s; the series is left out (%s ...)", reason, rows.loc[row, "path"], extra=ON_DATA)
    several = rows["frame"] > 0
    items = rows["path"].where(~several, rows["path"] + "#" + rows["frame"].astype(str))
    lost = pd.DataFrame({"item": items[~inside], "reason": reasons[~inside]}, dtype=object).reset_index(drop=True)
    return rows[inside].reset_index(drop=True), lost
