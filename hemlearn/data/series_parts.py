"""Which slices are one series: series ids that stand for a slice, for two stacks, or for slices that do not belong."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.util.console import ON_DATA
from hemlearn.util.errors import count

logger = logging.getLogger(__name__)

SAME_MM = 0.01  # positions this close are one position; no scanner steps less
_FEW = 3  # slices below which nothing tells a stack from single pictures
# What all slices of a series have in common (DICOM PS3.3 C.7.3.1, C.7.4.1): column -> its name in a report.
_COMMON = {"modality": "modality", "study_id": "StudyInstanceUID", "frame_id": "FrameOfReferenceUID"}


def true_series(headers: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put slices into the series that they are.

    Series of one slice each that make one evenly spaced stack of a study are one series. Slices of another modality,
    study or frame of reference than most of their series are left out where they are one or two, and are a series of
    their own where they are more. Acquisitions of one series that lie at the same positions are a series each.

    Args:
        headers: One row per slice: columns of ``readers.headers.Header``, every slice with ids.

    Returns:
        The rows that stay, ``remark`` completed by what differs within a series; and a table (item, reason) of the
        others.
    """
    headers = _joined(headers)
    headers, lost = _without_strangers(headers)
    headers = _by_acquisition(headers)
    return _compared(headers), lost


def _joined(headers: pd.DataFrame) -> pd.DataFrame:
    """Series of one slice each that together are one even stack: some archives give every slice a series id."""
    alone = headers.groupby("series_id")["path"].transform("size") == 1
    if alone.sum() < _FEW:
        return headers
    same = ["patient_id", "study_id", "modality", "description", "kernel", "rows", "columns", "thickness_mm"]
    exact = headers[["normal", "pixel_mm"]].astype(str)
    for _, group in headers[alone].groupby([*same, exact["normal"], exact["pixel_mm"]], sort=False, dropna=False):
        z_mm = np.sort(group["z_mm"].to_numpy(dtype=np.float64))
        steps = np.diff(z_mm)
        if len(group) < _FEW or np.isnan(z_mm).any() or steps.min() <= SAME_MM or np.ptp(steps) > 0.1 * steps.mean():
            continue
        name = group["series_id"].iloc[0]
        headers.loc[group.index, "series_id"] = name
        logger.warning(
            "patient %s: %d series of one slice each lie evenly spaced in one study: taken for one series, %s",
            group["patient_id"].iloc[0],
            len(group),
            name,
            extra=ON_DATA,
        )
    return headers


def _without_strangers(headers: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Series without the slices that belong elsewhere, and (item, reason) of these."""
    lost: list[tuple[str, str]] = []
    out: list[int] = []
    # A series of two patients is refused as a whole elsewhere; a study that was not named is called as its series.
    alone = headers.groupby("series_id")["patient_id"].transform("nunique") == 1
    for column, title in _COMMON.items():
        known = headers[alone & (headers[column] != "") & (headers[column] != headers["series_id"])]
        several = known.groupby("series_id", sort=False)[column].nunique()
        for name in several.index[several > 1]:
            rows = known[known["series_id"] == name]
            sizes = rows[column].value_counts()
            if sizes.iloc[0] < _FEW:
                continue  # nothing tells which is the stack
            for value in sizes.index[1:]:
                own = rows.index[rows[column] == value]
                text = f"{title} {value} in series {name}, of which {count(int(sizes.iloc[0]), 'slice')} have "
                text += str(sizes.index[0])
                first = rows.loc[own[0], "path"]
                if len(own) < _FEW:
                    out += own.tolist()
                    lost += [(path, text) for path in rows.loc[own, "path"]]
                    logger.warning("%s of %s: left out (%s)", count(len(own), "slice"), text, first, extra=ON_DATA)
                else:
                    new = _free(headers, f"{name}-{value}")
                    headers.loc[own, "series_id"] = new
                    logger.warning("%s of %s: taken for a series of their own, %s", len(own), text, new, extra=ON_DATA)
    left = headers.drop(index=sorted(set(out))).reset_index(drop=True) if out else headers
    return left, pd.DataFrame(lost, columns=["item", "reason"], dtype=object)


def _by_acquisition(headers: pd.DataFrame) -> pd.DataFrame:
    """Acquisitions, or temporal phases, that lie at the same positions within one series, as a series each."""
    several = headers[headers["acquisition"] != ""].groupby("series_id", sort=False)["acquisition"].nunique()
    for name in several.index[several > 1]:
        rows = headers[headers["series_id"] == name]
        sizes = rows["acquisition"].value_counts()
        apart = rows.groupby("acquisition")["z_mm"]
        within = sum(_repeats(part.to_numpy(dtype=np.float64)) for _, part in apart)
        # Acquisitions that follow one another along the body may overlap at their ends: those are one stack.
        most = _repeats(rows["z_mm"].to_numpy(dtype=np.float64)) - within
        if sizes.iloc[-1] < _FEW or 2 * most < len(rows) - sizes.iloc[0]:
            continue
        for value in list(dict.fromkeys(rows["acquisition"]))[1:]:
            own = rows.index[rows["acquisition"] == value]
            headers.loc[own, "series_id"] = _free(headers, f"{name}-{str(value).replace('/', '-')}")
        logger.warning(
            "series %s of patient %s holds %d acquisitions (0020,0012) or phases (0020,0100) at the same positions: "
            "each is taken for a series",
            name,
            rows["patient_id"].iloc[0],
            len(sizes),
            extra=ON_DATA,
        )
    return headers


def _repeats(z_mm: NDArray[np.float64]) -> int:
    """How many positions (mm) have been taken by another slice."""
    known = np.sort(z_mm[~np.isnan(z_mm)])
    return int((np.diff(known) <= SAME_MM).sum())


def _free(headers: pd.DataFrame, name: str) -> str:
    taken, free, number = set(headers["series_id"]), name, 1
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _compared(headers: pd.DataFrame) -> pd.DataFrame:
    """The rows, each slice that is stored otherwise than most of its series with a word in ``remark``."""
    series = headers["series_id"]
    told = headers["remark"].astype(object)
    stored = headers["storage"].where(headers["storage"] != "")
    several = stored.groupby(series).nunique()
    for name in several.index[several > 1]:
        rows = stored[series == name]
        most = rows.value_counts().index[0]
        for row in rows.index[rows.notna() & (rows != most)]:
            told[row] = _with(told[row], f"stored as {rows[row]}, most of the series as {most}")
    known = headers["instance_id"] != ""
    again = known & headers[known].duplicated(["series_id", "instance_id", "frame"], keep="first").reindex(
        headers.index, fill_value=False
    )
    for row in headers.index[again]:
        told[row] = _with(told[row], "SOPInstanceUID (0008,0018) of another slice")
    return headers.assign(remark=told)


def _with(remark: str, more: str) -> str:
    return f"{remark}; {more}" if remark else more


def slices_of(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each thing that is remarked about some slices -> the rows that it is said of."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(rows["remark"].fillna("")):
        for remark in text.split("; ") if text else ():
            places.setdefault(remark, []).append(place)
    return {remark: rows.iloc[found] for remark, found in places.items()}


def remarks_of(rows: pd.DataFrame) -> list[str]:
    """What is remarked about the slices of a series, each once: with their number where it is not all of them."""
    found = slices_of(rows)
    return [remark if len(own) == len(rows) else f"{remark} ({some(own)})" for remark, own in found.items()]


def some(rows: pd.DataFrame) -> str:
    """How many slices, and which is the first."""
    first, frame = rows["path"].iloc[0], int(rows["frame"].iloc[0]) if "frame" in rows else 0
    return f"{count(len(rows), 'slice')}, first {first}{f'#{frame}' if frame else ''}"
