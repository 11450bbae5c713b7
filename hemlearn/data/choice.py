"""Which axial series of a study shows the head best: the one rule of data sets and of ``hemlearn predict``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.util.errors import count

SLICES = (10, 600)  # fewer do not cover a head; more are several passes or a dynamic study
FIELD_MM = (140.0, 360.0)  # width of the picture; a head fills 180 to 260 mm, a body 350 to 500
COVERED_MM = 80.0  # from the lowest to the highest slice; a head has 130 to 180
_ELSEWHERE = re.compile(
    r"\b(neck|c-?spine|cervical|thora\w*|chest|lungs?|abd\w*|pelvi\w*|lumbar|spine|knee|hip|cardiac|sinus(es)?|orbits?"
    r"|petrous|temporal bones?|mandib\w*|teeth|dental)\b",
    re.I,
)
HEAD = re.compile(r"\b(head|brain|cerebr\w*|crani\w*|skull|schaedel|kopf|encephal\w*)\b", re.I)
# Kernels that sharpen bone and lung: their noise hides blood. Siemens H60 to H80 by number, the others by name.
_SHARP = re.compile(r"bone|edge|lung|sharp|\b[hj]r?[6-8]\d|\bfc[358]\d\b|\by[bcde]\b", re.I)
_PLAIN = re.compile(r"plain|\bpre\b|\bnon?[ -]?c|without|w/o|unenhanced", re.I)
_CONTRAST = re.compile(r"contrast|\bpost\b|\bc\+|angio|\bcta\b|venous|arterial|perfusion|\d ?cc\b", re.I)


def _text(item: Mapping[str, Any]) -> str:
    return f"{item['description']} {item.get('folder', '')}".replace("_", " ")


def _elsewhere(item: Mapping[str, Any]) -> str:
    found = _ELSEWHERE.search(_text(item))
    return f"described as {found.group().lower()}" if found and not HEAD.search(_text(item)) else ""


def _field(item: Mapping[str, Any]) -> str:
    field = item["pixel_mm"] * max(item["rows"], item["columns"])
    return f"a field of view of {field:.0f} mm" if field == field and not FIELD_MM[0] <= field <= FIELD_MM[1] else ""


def _count(item: Mapping[str, Any]) -> str:
    kept = item["kept"]
    return "" if SLICES[0] <= kept <= SLICES[1] else count(kept, "slice")


def _sharp(item: Mapping[str, Any]) -> str:
    found = _SHARP.search(f"{item['kernel']} {_text(item)}")
    return f"a sharp kernel ({found.group()})" if found else ""


# What speaks against a series, the heaviest first; "" where nothing does.
CHECKS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "anatomy": _elsewhere,
    "field": _field,
    "slices": _count,
    "span": lambda item: f"only {item['span']:.0f} mm covered" if item["span"] < COVERED_MM else "",
    "derived": lambda item: "derived from other images" if "DERIVED" in str(item["image_type"]).upper() else "",
    "contrast": lambda item: (
        "contrast medium" if _CONTRAST.search(_text(item)) and not _PLAIN.search(_text(item)) else ""
    ),
    "kernel": _sharp,
}


def rank_series(
    items: Sequence[Mapping[str, Any]], *, spacing_mm: float = float("nan"), checks: Sequence[str] = tuple(CHECKS)
) -> tuple[list[int], list[list[str]]]:
    """Rank the series of one study.

    The heaviest fault decides first: a part of the body other than the head (by the description), a field of view that
    is no head's, fewer than 10 or more than 600 slices, less than 80 mm covered, a picture derived from slices,
    contrast medium, a kernel that sharpens bone. Among equals the slice distance nearest to ``spacing_mm`` decides,
    then the number of slices.

    Args:
        items: One per series: ``kept`` (usable slices), ``description``, ``kernel``, ``image_type``, for the checks
            that need them ``pixel_mm``, ``rows``, ``columns``, ``span`` (mm), ``spacing_mm``; optional ``folder``.
        spacing_mm: Slice distance wanted, mm; NaN: any.
        checks: The faults that count.

    Returns:
        Places in ``items``, the best first; of each item its faults in words, the heaviest first.

    Example:
        >>> thin = {"kept": 40, "description": "head", "kernel": "H70", "image_type": "ORIGINAL"}
        >>> soft = {"kept": 30, "description": "head", "kernel": "H31", "image_type": "ORIGINAL"}
        >>> rank_series([thin, soft], checks=["slices", "derived", "contrast", "kernel"])
        ([1, 0], [['a sharp kernel (H70)'], []])
    """
    found = [[CHECKS[name](item) for name in checks] for item in items]
    apart = [_apart(item.get("spacing_mm", np.nan), spacing_mm) for item in items]
    order = sorted(range(len(items)), key=lambda k: ([bool(text) for text in found[k]], apart[k], -items[k]["kept"]))
    return order, [[text for text in own if text] for own in found]


def _apart(spacing: float, wanted: float) -> float:
    """How far two slice distances are apart, on a log scale in steps of a tenth; unknown ones come last."""
    if not spacing > 0 or not wanted > 0:
        return 99.0 if wanted > 0 else 0.0
    return round(abs(float(np.log2(spacing / wanted))), 1)


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
    """Choose one series of every study (see :func:`rank_series`).

    Args:
        series: Table of series (``geometry.SERIES_COLUMNS``) with ``kept``, all of the run's modality.
        rows: Their usable slices with series_id, z_mm, image_type and path.
        spacing_mm: Median slice distance in the run's own data, mm; NaN: unknown.
    """
    usable = series[series["kept"] > 0]
    span = rows.groupby("series_id", sort=False)["z_mm"].agg(
        lambda z: float(z.max() - z.min()) if z.notna().all() and len(z) > 1 else np.nan
    )
    first = rows.drop_duplicates("series_id").set_index("series_id")["image_type"]
    usable = usable.assign(span=usable["series_id"].map(span), image_type=usable["series_id"].map(first))
    chosen = []
    for (patient, study), group in usable.groupby(["patient_id", "study_id"], sort=False):
        items = [{str(key): value for key, value in item.items()} for item in group.to_dict("records")]
        order, faults = rank_series(items, spacing_mm=spacing_mm)
        best = items[order[0]]
        reason = "the only axial series"
        if len(items) > 1:
            reason = f"the best of {len(items)} axial series"
            reason += "" if faults[order[0]] else f": {_slices(best, spacing_mm)}"
        if named := HEAD.search(str(best["description"])):
            reason += f", described as {named.group().lower()}"
        if faults[order[0]]:
            reason += f"; BUT {', '.join(faults[order[0]])}"
        why = f"another series of this study is predicted ({best['series_id']}): here"
        others = [
            (str(items[k]["series_id"]), f"{why} {', '.join(faults[k]) or _slices(items[k], np.nan)}")
            for k in order[1:]
        ]
        chosen.append(Choice(str(patient), str(study), str(best["series_id"]), reason, tuple(others)))
    return chosen


def _slices(item: dict[str, Any], wanted_mm: float) -> str:
    spacing, text = item["spacing_mm"], count(item["kept"], "slice")
    if spacing == spacing:
        text += f" every {spacing:.1f} mm"
    return text + (f" (the run learnt from slices every {wanted_mm:.1f} mm)" if wanted_mm == wanted_mm else "")
