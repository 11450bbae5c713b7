"""What a data set left out, by kind of reason: counted, told with the gravest first, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

BAND = "outside the band"  # a cut that the configuration asks for, no loss
_SHOWN = 6  # kinds told in one line
# Kind -> rank; what is not listed here is a file that cannot be read, and the gravest.
_RANKS = {
    "label without image": 1,
    "no patient": 1,
    "no slice in the band": 1,
    "mixed contrasts": 1,
    "short series": 1,
    "two patients in one series": 1,
    "duplicate positions": 1,
    "uneven spacing": 1,
    "gantry tilt": 1,
    "modality": 2,
    "image without label": 2,
    "duplicate position": 2,
    "other orientation": 2,
    "not axial": 3,
    "localiser": 3,
    "secondary capture": 3,
    "derived": 3,
    "screen capture": 3,
    "derived map": 3,
    "colour": 3,
    "1-bit image": 3,
    "non-image object": 3,
    "no pixels": 3,
    "another series of this patient is used": 3,
    "neither DICOM nor NIfTI": 4,
    "no DICOM mark in a file without an ending": 4,
    "a hidden file": 4,
    "a table of contents": 4,
    BAND: 5,
}
_BESIDE = ("image without label", "label without image")  # never the only reason that nothing is left
_REMEDIES = {
    BAND: "widen data.band (null: all slices)",
    "no slice in the band": "widen data.band (null: all slices)",
    "short series": "lower data.geometry.min_slices",
    "duplicate positions": "set data.geometry.duplicates=first",
    "uneven spacing": "set data.geometry.gaps=keep",
    "gantry tilt": "set data.geometry.tilt=keep",
    "modality": "give images of the modality that the data set has, or choose the data set (data=NAME) of these images",
    "mixed contrasts": "export every contrast as a series of its own",
    "two patients in one series": "give the series of each patient an id of their own (0020,000E)",
    "no patient": "name the patients in labels.csv, or set data.patient_pattern",
    "label without image": "name images or patients in the table as the files are named",
    "image without label": "add these images to the table of labels",
}
_MEND = "copy or export the files again"
_AXIAL = "export the axial slices as CT or MR images"


def kind_of(reason: str) -> str:
    """The kind of a reason that reads ``kind: particulars``; for example ``short series`` or ``modality MR``."""
    return re.split(r": | \(| than most of series ", reason, maxsplit=1)[0]


def by_kind(left_out: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Kind -> its rows, the gravest kind first, of equal ones the commoner."""
    kinds = left_out["reason"].astype(str).map(kind_of)
    groups = {str(kind): rows for kind, rows in left_out.groupby(kinds, sort=False)}
    return dict(sorted(groups.items(), key=lambda pair: (_rank(pair[0]), -len(pair[1]))))


def gravest_first(left_out: pd.DataFrame) -> pd.DataFrame:
    """The same rows, kind by kind as in :func:`by_kind`."""
    parts = list(by_kind(left_out).values())
    return pd.concat(parts, ignore_index=True) if parts else left_out


def told(left_out: pd.DataFrame) -> str:
    """One sentence: each kind of loss with its number and an example, and the slices outside the band as a number."""
    groups = by_kind(left_out)
    band = len(groups.pop(BAND, ()))
    parts = [
        f"{len(rows)} x {kind}, e.g. {rows['item'].iloc[0]} ({rows['reason'].iloc[0]})" for kind, rows in groups.items()
    ]
    more = sum(len(rows) for rows in list(groups.values())[_SHOWN:])
    parts = parts[:_SHOWN] + ([f"{more} more for {len(groups) - _SHOWN} other reasons"] if more else [])
    lost = len(left_out) - band
    text = f"{lost} items left out: {'; '.join(parts)}" if lost else "nothing left out"
    return f"{text}{'; besides ' if lost else ' but '}{band} slices outside the band" if band else text


def why_nothing_is_left(left_out: pd.DataFrame) -> tuple[str, str]:
    """The commonest kind, with a reason and an item of it, and what to do about the kinds that left nothing.

    Files that are no images, and rows and files without each other, explain it only where nothing else does.
    """
    groups = by_kind(left_out)
    causes = {kind: rows for kind, rows in groups.items() if _rank(kind) < 4 and kind not in _BESIDE} or groups
    common = sorted(causes, key=lambda kind: -len(causes[kind]))
    first = causes[common[0]].iloc[0]
    problem = f"most often: {first['reason']} ({len(causes[common[0]])} times, first {first['item']!r})"
    return problem, "; ".join(dict.fromkeys(_remedies(common[:3])))


def _remedies(kinds: Sequence[str]) -> list[str]:
    ranks = [(kind, _rank(kind)) for kind in kinds]
    return [_REMEDIES.get(_plain(kind), _AXIAL if rank in (2, 3) else _MEND) for kind, rank in ranks]


def _rank(kind: str) -> int:
    return _RANKS.get(_plain(kind), 0)


def _plain(kind: str) -> str:
    """``modality MR`` and ``modality CT`` are one kind to mend."""
    return "modality" if kind.startswith("modality ") else kind
