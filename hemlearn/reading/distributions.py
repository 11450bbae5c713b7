"""How the measures of a data set are distributed, with and without a finding: numbers that a page draws as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.audits.baselines import relative_position
from hemlearn.data.covariates import PREFIX
from hemlearn.data.manifest import Manifest

BINS = 16  # of numbers with more different values
MOST = 12  # names of one column that have a bar of their own
GROUPS = ("with a finding", "without", "not known")


@dataclass(frozen=True)
class Bar:
    """One bar: its label, and how many units of each of :data:`GROUPS` it counts."""

    label: str
    counts: tuple[int, int, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts)


@dataclass(frozen=True)
class Distribution:
    """One measure.

    Args:
        title: What is measured, with its unit.
        of: What is counted: slices, series or patients.
        bars: In order of value, or of size for names.
        numbers: Whether the bars stand along an axis of numbers.
        text: Median and range, or how many different names; what is not known.

    Example:
        >>> made = of_numbers("age (years)", "patients", pd.Series([30.0, 40.0]), pd.Series([1.0, 0.0]))
        >>> made.text, [(bar.label, bar.counts) for bar in made.bars]
        ('median 35, 30 to 40', [('30', (1, 0, 0)), ('40', (0, 1, 0))])
    """

    title: str
    of: str
    bars: list[Bar]
    numbers: bool
    text: str

    @property
    def highest(self) -> int:
        """The largest count of a bar."""
        return max((bar.total for bar in self.bars), default=1)


def of_numbers(title: str, of: str, values: pd.Series[float], found: pd.Series[float]) -> Distribution | None:
    """Bars of a number per unit; None where nothing is known of it.

    Args:
        title: What it is.
        of: What is counted.
        values: One per unit, NaN where unknown.
        found: 1, 0 or NaN, in the same order.
    """
    known = values.notna().to_numpy()
    number = values.to_numpy(dtype=np.float64)[known]
    if not len(number):
        return None
    codes = _groups(found)[known]
    different = np.unique(number.round(6))
    if len(different) <= MOST:
        bars = [Bar(_short(value), _counted(codes[np.isclose(number, value, atol=1e-6)])) for value in different]
    else:
        whole = bool((number % 1 == 0).all()) and np.ptp(number) < 3 * BINS
        edges = (
            np.arange(number.min(), number.max() + 2, max(1, round(np.ptp(number) / BINS)))
            if whole
            else np.linspace(number.min(), number.max(), BINS + 1)
        )
        place = np.clip(np.searchsorted(edges, number, side="right") - 1, 0, len(edges) - 2)
        bars = [
            Bar(f"{_short(low)} to {_short(high)}", _counted(codes[place == at]))
            for at, (low, high) in enumerate(pairwise(edges))
        ]
    low, high = number.min(), number.max()
    text = f"all {_short(low)}" if low == high else f"median {_short(float(np.median(number)))}, "
    text += "" if low == high else f"{_short(low)} to {_short(high)}"
    return Distribution(title, of, bars, True, text + _unknown(known))


def of_names(title: str, of: str, values: pd.Series[str], found: pd.Series[float]) -> Distribution | None:
    """Bars of a name per unit ("": unknown), the commonest first; None where nothing is known of it."""
    known = (values.notna() & (values != "")).to_numpy()
    if not known.any():
        return None
    names, codes = values.to_numpy(dtype=object)[known].astype(str), _groups(found)[known]
    sizes = pd.Series(names).value_counts()
    bars = [Bar(str(name), _counted(codes[names == name])) for name in sizes.index[:MOST]]
    if len(sizes) > MOST:
        bars.append(Bar(f"{len(sizes) - MOST} others", _counted(codes[~np.isin(names, sizes.index[:MOST].tolist())])))
    text = f"all {sizes.index[0]}" if len(sizes) == 1 else f"{len(sizes)} different"
    return Distribution(title, of, bars, False, text + _unknown(known))


def any_finding(table: pd.DataFrame, labels: Sequence[str]) -> pd.Series[float]:
    """(N,) whether a slice has any of the labels: 1, 0, or NaN where that is not known.

    >>> any_finding(pd.DataFrame({"a": [0, 1, 0], "b": [0, float("nan"), float("nan")]}), ["a", "b"]).tolist()
    [0.0, 1.0, nan]
    """
    values = table[list(labels)].astype(float)
    if not len(labels):
        return pd.Series(np.nan, index=table.index)
    return values.max(axis=1).where((values == 1).any(axis=1) | values.notna().all(axis=1))


def distributions(manifest: Manifest) -> list[Distribution]:
    """Sizes, spacings, scanners, positions and covariates of a data set, as far as its files tell them."""
    table, series = manifest.table, manifest.series
    slices = any_finding(table, manifest.labels)
    of_series = slices.groupby(table["series_id"].to_numpy()).max()
    of_patient = slices.groupby(table["patient_id"].to_numpy()).max()
    out = [
        of_numbers("image height (pixels)", "slices", table["height"].astype(float), slices),
        of_numbers("image width (pixels)", "slices", table["width"].astype(float), slices),
    ]
    sizes = table.groupby("series_id", sort=False).size().astype(float)
    if (sizes > 1).any():
        place = pd.Series(relative_position(table), index=table.index).where(table["z_mm"].notna())
        out.append(of_numbers("position in the series (0 lowest, 1 topmost)", "slices", place, slices))
        out.append(of_numbers("slices of a series", "series", sizes, of_series.reindex(sizes.index)))
    owned = table.groupby("patient_id", sort=False).size().astype(float)
    if (owned > 1).any() and len(owned) != len(sizes):
        out.append(of_numbers("slices of a patient", "patients", owned, of_patient.reindex(owned.index)))
    if len(series):
        kept = series[series["kept"] > 0]
        own = kept["series_id"].map(of_series)
        for name, title in _SERIES.items():
            made = (of_numbers if kept[name].dtype.kind == "f" else of_names)(title, "series", kept[name], own)
            out.append(made)
    out += _covariates(table, of_patient)
    return [item for item in out if item is not None]


_SERIES = {
    "spacing_mm": "slice spacing (mm, median of the series)",
    "thickness_mm": "slice thickness (mm)",
    "pixel_mm": "pixel size (mm)",
    "tilt_deg": "gantry tilt (degrees)",
    "manufacturer": "manufacturer",
    "kernel": "kernel",
}


def _covariates(table: pd.DataFrame, found: pd.Series[float]) -> list[Distribution | None]:
    """What a table or headers say of patients: the first row of each counts."""
    first = table.drop_duplicates("patient_id").set_index("patient_id")
    out = []
    for name in [name for name in first if str(name).startswith(PREFIX)]:
        make = of_numbers if first[name].dtype.kind == "f" else of_names
        out.append(make(str(name).removeprefix(PREFIX), "patients", first[name], found.reindex(first.index)))
    return out


def _groups(found: pd.Series[float]) -> NDArray[np.int64]:
    """Place in :data:`GROUPS` of each unit."""
    values = found.to_numpy(dtype=np.float64)
    return np.where(np.isnan(values), 2, np.where(values == 1, 0, 1)).astype(np.int64)


def _counted(codes: NDArray[np.int64]) -> tuple[int, int, int]:
    one, two, three = np.bincount(codes, minlength=3).tolist()
    return one, two, three


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _unknown(known: NDArray[np.bool_]) -> str:
    return "" if known.all() else f"; {int((~known).sum())} not known"
