"""Which series of a study shows the head as the run knows it, and why the others do not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

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
