"""Elements of a DICOM data set as numbers and text; what is no value counts as absent."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from pydicom.datadict import tag_for_keyword

from hemlearn.data.readers.dicom_file import functional_group
from hemlearn.util.errors import printable

Scale = tuple[float | None, float | None]  # slope and intercept; None: not given
_AGE = re.compile(r"(\d{3})([DWMY])")  # an Age String (PS3.5 6.2)
_A_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12, "Y": 1}
_INTEGER = 1 << 31  # an Integer String lies below (PS3.5 6.2)


_tag = cache(tag_for_keyword)


class Elements:
    """A data set whose elements are asked for by keyword many times: one that is absent costs nothing.

    pydicom answers ``get`` for an absent keyword by an exception, which takes as long as reading the header.

    Args:
        data: A pydicom data set; its other attributes are had through this object too.

    Example:
        >>> from pydicom import Dataset
        >>> data = Dataset()
        >>> data.Modality = "CT"
        >>> Elements(data).get("Modality"), Elements(data).get("Rows", 0)
        ('CT', 0)
    """

    def __init__(self, data: Any) -> None:
        self._data, self._there = data, data.keys()

    def get(self, keyword: str, default: Any = None) -> Any:
        """The value of an element; ``default`` where it is absent."""
        return self._data[tag].value if (tag := _tag(keyword)) in self._there else default

    def __contains__(self, tag: Any) -> bool:
        return tag in self._there

    def __getitem__(self, tag: Any) -> Any:
        return self._data[tag]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def text_of(value: Any) -> str:
    """An element as text that can be shown, its values joined by backslashes; "" where it is absent."""
    if value is None:
        return ""
    items = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
    return "\\".join(printable(str(item).strip(" \0")) for item in items)


def age_years(text: str) -> float:
    """An Age String in years; NaN where it is none.

    >>> age_years("063Y"), age_years("018M"), age_years("old")
    (63.0, 1.5, nan)
    """
    found = _AGE.fullmatch(text)
    return int(found[1]) / _A_YEAR[found[2]] if found else math.nan


def whole(value: Any) -> int | None:
    """A whole number of 32 bits; None where an element is absent, empty or another."""
    found = numbers(value, 1)
    return int(found[0]) if found is not None and abs(found[0]) < _INTEGER else None


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers, or None where the element is absent, empty or has other than so many."""
    if value in (None, ""):
        return None
    items = [value] if isinstance(value, str | int | float) else list(value)
    if count == 1:
        items = items[:1]
    try:
        found = tuple(float(item) for item in items)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def first_number(value: Any, *, positive: bool = False) -> float:
    """The first number of an element; NaN where there is none, or where it is not above 0 and ``positive``."""
    items = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    try:
        found = float(next(iter(items), math.nan))
    except (TypeError, ValueError):  # empty, or text that is no number: as good as absent
        return math.nan
    return found if math.isfinite(found) and (found > 0 or not positive) else math.nan


def rescale(data: Any, frame: int) -> Scale:
    """RescaleSlope (0028,1053) and RescaleIntercept (0028,1052) of a frame; None: not given.

    Raises:
        ValueError: One of them is no number.
    """
    source = functional_group(data, frame, "PixelValueTransformationSequence") or data
    values = (source.get(name, None) for name in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = (None if value in (None, "") else float(value) for value in values)
    return slope, intercept


def pixel_spacing(data: Any, frame: int) -> tuple[float, float] | None:
    """Spacing of rows and of columns as they are stored, mm, DICOM (0028,0030); None where that is no size."""
    inner = functional_group(data, frame, "PixelMeasuresSequence")
    found = None if inner is None else inner.get("PixelSpacing", None)
    spacing = numbers(data.get("PixelSpacing", None) if found in (None, "") else found, 2)
    return (spacing[0], spacing[1]) if spacing is not None and min(spacing) > 0 else None


def slice_orientation(data: Any, frame: int) -> tuple[float, ...] | None:
    """ImageOrientationPatient (0020,0037) of a frame; None where it is absent or not six numbers."""
    inner = functional_group(data, frame, "PlaneOrientationSequence")
    found = None if inner is None else inner.get("ImageOrientationPatient", None)
    return numbers(data.get("ImageOrientationPatient", None) if found in (None, "") else found, 6)
