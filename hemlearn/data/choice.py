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
COVERED_MM = (80.0, 320.0)  # from the lowest to the highest slice; a head has 130 to 180, with its neck 300
# Descriptions are public vocabulary of scanners and technicians; `folder` names count where headers say nothing.
# Body parts that may lie beside a whole head in one series: a fault only where the head is not named.
_BODY = re.compile(
    r"\b(neck|c-?spine|cervical|thora\w*|chest|lungs?|abd\w*|pelvi\w*|lumbar|spine|knee|hip|cardiac|carotids?)\b", re.I
)
# Parts of the head that have protocols of their own; "head" beside them does not make the series a whole head.
_PART = re.compile(
    r"\b(hrct|sinus(es)?|pns|\w*orbits?|petrous|temporal bones?|iac|mandib\w*|teeth|dental|facial|maxillo\w*|sella)\b",
    re.I,
)
HEAD = re.compile(r"\b(head|brain|cerebr\w*|crani\w*|skull|schaedel|kopf|encephal\w*)\b", re.I)
# Kernels that sharpen bone and lung: their noise hides blood. Siemens H60 to H80 by number, the others by name.
_SHARP = re.compile(r"bone|edge|lung|sharp|hi-?res|\b[hj]r?[6-8]\d|\bfc[358]\d\b|\by[bcde]\b", re.I)
# "pre-op" and "post-op" speak of an operation, "post fossa" of a place, "C-SPINE" of a bone and "C-2" is a second "C".
_OTHER = r"(?![ .-]*(?:op|surg|trauma|fossa|evac)\w*)"
_AGENT = r"(?:(?:i\.?v\.?|oral) )*(?:[ck]ontrast\w*|c(?!\w)|ce|enhance\w*|km|iv|inj\w*)"
_PLAIN = re.compile(
    rf"(?<!\w)(?:plain|nativ\w*|unenhanced|ncct|nect|nc|pre{_OTHER}(?:[ -]?{_AGENT})?|non?[ -]?{_AGENT}|c-(?=\s|$)"
    rf"|(?:without|w/?o|sans|ohne|sin|sem)(?: {_AGENT})?)(?!\w)",
    re.I,
)
_CONTRAST = re.compile(
    rf"(?<!\w)(?:[ck]ontrast\w*|post{_OTHER}|enhanced|cect|ce|\+ ?c|c(?=\s|\+|-\d|$)|km|oral|i\.?v|bolus|angio\w*|cta"
    r"|venous|arterial|perfusion)(?!\w)|\d ?cc\b",
    re.I,
)


# What the headers' own elements say, in the words of the DICOM reader's remarks.
_TOLD_PART = re.compile(r"BodyPartExamined \(0018,0015\) (.*?): not the head")
_TOLD_AGENT = re.compile(r"ContrastBolusAgent \(0018,0010\) (.*?): contrast medium")


def _text(item: Mapping[str, Any]) -> str:
    return f"{item['description']} {item.get('folder', '')}".replace("_", " ")


def _elsewhere(item: Mapping[str, Any]) -> str:
    text = _text(item)
    if found := _PART.search(text) or (None if HEAD.search(text) else _BODY.search(text)):
        return f"described as {found.group().lower()}"
    told = None if HEAD.search(text) else _TOLD_PART.search(item.get("remark", ""))
    return f"body part {told[1].lower()}" if told else ""


def _contrast(item: Mapping[str, Any]) -> str:
    """What is left when "without contrast", "pre contrast" and the like are taken away."""
    found = _CONTRAST.search(_PLAIN.sub(" ", _text(item)))
    if found:
        return f"contrast medium ({found.group().strip()})"
    told = None if says_plain(_text(item)) else _TOLD_AGENT.search(item.get("remark", ""))
    return f"contrast medium ({told[1]})" if told else ""


def says_plain(text: str) -> bool:
    """Tell whether a description says that no contrast medium was given (or not yet)."""
    return bool(_PLAIN.search(text))


def _field(item: Mapping[str, Any]) -> str:
    field = item["pixel_mm"] * max(item["rows"], item["columns"])
    return f"a field of view of {field:.0f} mm" if field == field and not FIELD_MM[0] <= field <= FIELD_MM[1] else ""


def _count(item: Mapping[str, Any]) -> str:
    kept = item["kept"]
    return "" if SLICES[0] <= kept <= SLICES[1] else count(kept, "slice")


def _span(item: Mapping[str, Any]) -> str:
    least, most = COVERED_MM
    text = f"{item['span']:.0f} mm covered"
    return f"only {text}" if item["span"] < least else f"{text}, more than a head has" if item["span"] > most else ""


def _sharp(item: Mapping[str, Any]) -> str:
    found = _SHARP.search(f"{item['kernel']} {_text(item)}")
    return f"a sharp kernel ({found.group()})" if found else ""


# What speaks against a series, the heaviest first; "" where nothing does.
CHECKS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "anatomy": _elsewhere,
    "field": _field,
    "slices": _count,
    "span": _span,
    "derived": lambda item: "derived from other images" if "DERIVED" in str(item["image_type"]).upper() else "",
    "contrast": _contrast,
    "kernel": _sharp,
}


def rank_series(
    items: Sequence[Mapping[str, Any]], *, spacing_mm: float = float("nan"), checks: Sequence[str] = tuple(CHECKS)
) -> tuple[list[int], list[list[str]]]:
    """Rank the series of one study.

    The heaviest fault decides first: a part of the body other than the head (by the description), a field of view that
    is no head's, fewer than 10 or more than 600 slices, less than 80 or more than 320 mm covered, a picture derived
    from slices, contrast medium, a kernel that sharpens bone. Among equals a series that says that it is plain
    (``PRE``, ``without contrast``) comes before one that does not say, then the slice distance nearest to
    ``spacing_mm`` decides, then the number of slices.

    Args:
        items: One per series: ``kept`` (usable slices), ``description``, ``kernel``, ``image_type``, for the checks
            that need them ``pixel_mm``, ``rows``, ``columns``, ``span`` (mm), ``spacing_mm``; optional ``folder`` and
            ``remark``.
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
    unsaid = [not says_plain(_text(item)) for item in items]
    order = sorted(
        range(len(items)), key=lambda k: ([bool(text) for text in found[k]], unsaid[k], apart[k], -items[k]["kept"])
    )
    return order, [[text for text in own if text] for own in found]


def _apart(spacing: float, wanted: float) -> float:
    """How far two slice distances are apart, on a log scale in steps of a tenth; unknown ones come last."""
    if not spacing > 0 or not wanted > 0:
        return 99.0 if wanted > 0 else 0.0
    return round(abs(float(np.log2(spacing / wanted))), 1)


@dataclass(frozen=True)
class Choice:
    """The series of one study that is used.

    Args:
        patient_id: The patient.
        study_id: The study.
        series_id: The chosen series.
        reason: Why, in words.
        faults: What speaks against it all the same, the heaviest first.
        others: (series id, what it is behind for) of each other series.
    """

    patient_id: str
    study_id: str
    series_id: str
    reason: str
    faults: tuple[str, ...]
    others: tuple[tuple[str, str], ...]


def choose(series: pd.DataFrame, rows: pd.DataFrame, spacing_mm: float = float("nan")) -> list[Choice]:
    """Choose one series of every study (see :func:`rank_series`); what data sets and ``predict`` use.

    The last folder of a series' files counts like its description where the series of a study lie in folders of
    their own.

    Args:
        series: Table of series (``geometry.SERIES_COLUMNS``) with ``kept``, all of one modality.
        rows: Their usable slices with series_id, z_mm, image_type, path and, where known, remark.
        spacing_mm: Slice distance wanted (median of a run's own data), mm; NaN: any, the series with most slices.
    """
    usable = series[series["kept"] > 0]
    span = rows.groupby("series_id", sort=False)["z_mm"].agg(
        lambda z: float(z.max() - z.min()) if z.notna().all() and len(z) > 1 else np.nan
    )
    told = [name for name in ("image_type", "path", "remark") if name in rows]
    first = rows.drop_duplicates("series_id").set_index("series_id")[told]
    usable = usable.assign(span=usable["series_id"].map(span)).join(first, on="series_id")
    usable["folder"] = usable["path"].astype(str).str.rpartition("/")[0]
    chosen = []
    for (patient, study), group in usable.groupby(["patient_id", "study_id"], sort=False):
        apart = group["folder"].is_unique and len(group) > 1
        last = group["folder"].str.rpartition("/")[2]
        folder = last.where(last.str.len() > 2, "") if apart else ""  # series folders A, B, C say nothing
        items = [
            {str(key): value for key, value in item.items()} for item in group.assign(folder=folder).to_dict("records")
        ]
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
        others = tuple((str(items[k]["series_id"]), _behind(items[k], faults[k], best)) for k in order[1:])
        chosen.append(Choice(str(patient), str(study), str(best["series_id"]), reason, tuple(faults[order[0]]), others))
    return chosen


def _behind(item: dict[str, Any], faults: Sequence[str], best: dict[str, Any]) -> str:
    """Why a series comes after the best one."""
    if faults:
        return ", ".join(faults)
    if says_plain(_text(best)) and not says_plain(_text(item)):
        return "not said to be plain, as the other is"
    return f"{_slices(item, float('nan'))}, the other has {_slices(best, float('nan'))}"


def _slices(item: dict[str, Any], wanted_mm: float) -> str:
    spacing, text = item["spacing_mm"], count(item["kept"], "slice")
    if spacing == spacing:
        text += f" every {spacing:.1f} mm"
    return text + (f" (the run learnt from slices every {wanted_mm:.1f} mm)" if wanted_mm == wanted_mm else "")
