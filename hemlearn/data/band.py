"""The part of each series that a task is about: slices between two shares of its length."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.errors import ConfigError

LOGGER = logging.getLogger(__name__)


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


def cut_band(rows: pd.DataFrame, band: Sequence[float] | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the slices of each series that stand within a band of its length.

    Args:
        rows: Columns path, frame, series_id, patient_id and z_mm, the slices of a series in order
            (``geometry.arrange``).
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
        LOGGER.warning("%s; the series is left out (%s ...)", reason, rows.loc[row, "path"])
    several = rows["frame"] > 0
    items = rows["path"].where(~several, rows["path"] + "#" + rows["frame"].astype(str))
    lost = pd.DataFrame({"item": items[~inside], "reason": reasons[~inside]}, dtype=object).reset_index(drop=True)
    return rows[inside].reset_index(drop=True), lost
