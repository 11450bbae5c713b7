"""Slices packed for a page: lossless, small, and cheap to unpack in a browser.

Each pixel is predicted from its left, upper and upper-left neighbours (the median edge detector of LOCO-I, Weinberger
et al. 2000); the signed error, folded to an unsigned number, is split into a plane of low and one of high bytes, and
both are deflated (zlib, RFC 1950, which browsers unpack by themselves) and written in base64. A head CT of 512 x 512
takes about 0.2 MB a slice in 16 bits of HU.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemlearn import __version__
from hemlearn.reports.tables import render
from hemlearn.util.errors import DataError
from hemlearn.util.files import write_text, writing
from hemlearn.util.privacy import Pseudonyms


def pack_slice(pixels: NDArray[np.int16]) -> str:
    """A slice ``(H, W)`` as base64 text."""
    values = pixels.astype(np.int32)
    error = (values - _predict(values)).astype(np.int16).astype(np.int32)  # the difference wraps as the sum will
    folded = ((error << 1) ^ (error >> 15)).astype(np.uint16)
    planes = np.concatenate([(folded & 255).astype(np.uint8).ravel(), (folded >> 8).astype(np.uint8).ravel()])
    return pack_bytes(planes)


def pack_bytes(values: NDArray[np.uint8]) -> str:
    """Bytes as base64 text of a zlib stream."""
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")


def _predict(values: NDArray[np.int32]) -> NDArray[np.int32]:
    left, up, corner = (np.empty_like(values) for _ in range(3))
    left[:, 1:] = values[:, :-1]
    up[1:] = values[:-1]
    left[0, 0] = 0
    left[1:, 0] = values[:-1, 0]
    up[0] = left[0]
    corner[1:, 1:] = values[:-1, :-1]
    corner[0], corner[1:, 0] = up[0], up[1:, 0]
    high, low = np.maximum(left, up), np.minimum(left, up)
    return np.where(corner >= high, low, np.where(corner <= low, high, left + up - corner))


def reduced(pixels: NDArray[np.int16], side: int | None) -> NDArray[np.int16]:
    """Slices ``(S, H, W)`` with their longer side at most ``side`` pixels, averaged over areas; None: as they are."""
    height, width = pixels.shape[1:]
    if side is None or max(height, width) <= side:
        return pixels
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    images = [Image.fromarray(one.astype(np.float32)).resize(size, Image.Resampling.BOX) for one in pixels]
    return np.asarray(np.rint(np.stack([np.asarray(image) for image in images])), dtype=np.int16)


# --- The page of one case: a self-contained HTML file with a series, what a model said of it, and where the model
# looked.


HU, SIGNAL, DISPLAY = "HU", "signal", "display"
WINDOWS = (("Brain", 40, 80), ("Subdural", 80, 200), ("Stroke", 40, 40), ("Bone", 600, 2800), ("Soft", 40, 380))
WITHHELD = "[withheld]"
NOTE = "Research use only. Not a medical device, not for diagnosis."
_ASSETS = ("page.css", "unpack.js", "view.js", "chart.js", "controls.js")
_PERSONAL = ("patient", "birth", "birthdate", "accession", "physician", "operator", "operators")  # in names of facts
_OPEN = ("age", "sex", "position", "orientation")  # facts about a patient that do not tell who it is


@dataclass(frozen=True)
class Case:
    """One series with S slices, lowest first, and the probabilities of L labels.

    Attributes:
        series: Its name.
        patient: Who it is; not shown unless asked.
        hu: ``(S, H, W)`` int16 (or uint8) intensities; row 0 anterior, column 0 the patient's right.
        z_mm: ``(S,)`` positions, mm, NaN where unknown.
        labels: Names of the labels.
        slice_probs: ``(S, L)`` probabilities; NaN where a slice has none.
        series_probs: ``(L,)`` probabilities of the series.
        intervals: ``(L, 2)`` of the series' probabilities, from an ensemble; None without one.
        cams: Label -> ``(S, h, w)`` uint8 maps, 255 the largest value of the label in the series.
        attribution: Share of each slice in the series' score: ``(S,)``, or label -> ``(S,)``; None: not computed.
        ground: Facts on the series, name -> text.
        cam_boxes: ``(S, 4)`` first row, first column, height and width in pixels of ``hu`` that the maps cover; None:
            the whole slice.
        unit: ``HU``, ``signal`` (MR) or ``display`` (grey levels of a picture).
        pixel_mm: Row and column spacing; None: unknown, pixels are shown square.
        thresholds: Label -> operating point of the series' probability.
        truth: ``(S, L)`` known labels 1, 0 or NaN; None: not known.
        calibration: What was done to the probabilities, one sentence.
        interval_note: What the intervals are.
        cam_note: How the maps were made.
        card: Summary of the model, name -> text.
        warnings: What a reader must know, such as slices that could not be read.
        slice_thresholds: Label -> operating point of a slice's probability, drawn in the chart.
        calls: Label -> whether the series reaches its operating point; where it is missing, ``thresholds`` decide.
        triage: Label -> positive, negative or undecided, where the run gives such answers.
        triage_note: What they promise.
        score: Whether the series' values are no probabilities: put together from slices, and not calibrated.
        sides: Whether column 0 is known to be the patient's right, and row 0 to be anterior.
        upward: Whether the slices are known to run from the feet to the head.
        cautions: What speaks against believing the model at all; stands at the top.
    """

    series: str
    patient: str
    hu: NDArray[Any]
    z_mm: NDArray[Any] | None
    labels: Sequence[str]
    slice_probs: NDArray[Any]
    series_probs: NDArray[Any]
    intervals: NDArray[Any] | None = None
    cams: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    attribution: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None
    ground: Mapping[str, str] = field(default_factory=dict)
    cam_boxes: NDArray[Any] | None = None
    unit: str = HU
    pixel_mm: tuple[float, float] | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    truth: NDArray[Any] | None = None
    calibration: str = ""
    interval_note: str = ""
    cam_note: str = ""
    card: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    slice_thresholds: Mapping[str, float] = field(default_factory=dict)
    calls: Mapping[str, bool] = field(default_factory=dict)
    triage: Mapping[str, str] = field(default_factory=dict)
    triage_note: str = ""
    score: bool = False
    sides: bool = False
    upward: bool = False
    cautions: Sequence[str] = ()


def write_case_page(
    path: Path | str,
    case: Case,
    *,
    max_side: int | None = 512,
    show_patient: bool = False,
    names: Pseudonyms | None = None,
) -> int:
    """Write the page of a case, whole or not at all.

    Args:
        path: The HTML file.
        case: What to show.
        max_side: Longer side of the slices in the page, pixels; larger ones are averaged down, and the page says so.
            None: full resolution.
        show_patient: Name the patient, and show facts that tell who it is.
        names: What patient, series and files are called otherwise; None: the patient is not named at all.

    Returns:
        Size of the file in bytes.

    Raises:
        ValueError: Arrays of the case do not fit each other.
        DataError: The file cannot be written.
    """
    _check(case)
    path = Path(path)
    text = render_case_page(case, max_side=max_side, show_patient=show_patient, names=names)
    with writing(path, kind=DataError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return path.stat().st_size


def render_case_page(
    case: Case, *, max_side: int | None = 512, show_patient: bool = False, names: Pseudonyms | None = None
) -> str:
    """The page as text; arguments as in :func:`write_case_page`."""
    shown = reduced(np.ascontiguousarray(case.hu).astype(np.int16), max_side)
    content = _content(case, shown, _Cleaner(case.patient, show_patient, names))
    return self_contained(
        "page.html.j2",
        _ASSETS,
        title=f"{content['series']} - hemlearn",
        note=NOTE,
        cautions=case.cautions,
        case=as_json(content),
        pixels=[pack_slice(one) for one in shown],
    )


def self_contained(template: str, assets: Sequence[str], **view: Any) -> str:
    """A page with its styles and scripts in it, whose policy allows these and nothing from outside.

    Args:
        template: Of this room's ``templates``; it puts ``policy``, ``style`` and ``script`` in their places.
        assets: Styles and scripts beside it, in their order; the scripts share one scope.
        view: What else the template shows.
    """
    texts = {name: files(__package__).joinpath("templates", name).read_text(encoding="utf-8") for name in assets}
    style = "".join(text for name, text in texts.items() if name.endswith(".css"))
    script = "\n".join(text for name, text in texts.items() if name.endswith(".js"))
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'"
    policy += "; base-uri 'none'; form-action 'none'"
    return render(__package__, template, policy=policy, style=style, script=script, version=__version__, **view)


def _digest(text: str) -> str:
    """Of a script or style, as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def as_json(content: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _content(case: Case, shown: NDArray[np.int16], clean: _Cleaner) -> dict[str, Any]:
    count, (height, width) = len(shown), shown.shape[1:]
    scale = np.array([height / case.hu.shape[1], width / case.hu.shape[2]] * 2)
    boxes = np.array([[0.0, 0.0, *case.hu.shape[1:]]] * count) if case.cam_boxes is None else np.asarray(case.cam_boxes)
    facts = clean.facts(case.ground)
    if shown.shape[1:] != case.hu.shape[1:]:
        facts["Shown at"] = f"{width} x {height} of {case.hu.shape[2]} x {case.hu.shape[1]} pixels"
    attribution = case.attribution
    if attribution is not None and not isinstance(attribution, Mapping):
        attribution = dict.fromkeys(case.labels, attribution)
    return {
        "series": clean.id(case.series, "series"),
        "patient": case.patient if clean.show else clean.id(case.patient, "patient") if clean.names else "",
        "unit": case.unit,
        "slices": count,
        "height": height,
        "width": width,
        "ratio": _ratio(case),
        "z": _list(case.z_mm),
        "labels": list(case.labels),
        "slice_probs": [_list(column) for column in np.asarray(case.slice_probs).T],
        "series_probs": _list(case.series_probs),
        "intervals": None if case.intervals is None else [_list(pair) for pair in np.asarray(case.intervals)],
        **{
            name: {label: float(found[label]) for label in case.labels if label in found}
            for name, found in (("thresholds", case.thresholds), ("slice_thresholds", case.slice_thresholds))
        },
        "calls": {label: bool(case.calls[label]) for label in case.labels if label in case.calls},
        "triage": {label: str(case.triage[label]) for label in case.labels if label in case.triage},
        "triage_note": clean.text(case.triage_note),
        "score": case.score,
        "truth": None if case.truth is None else [_list(column) for column in np.asarray(case.truth).T],
        "attribution": {label: _list(values) for label, values in (attribution or {}).items()},
        "cams": {
            label: {"h": cam.shape[1], "w": cam.shape[2], "data": pack_bytes(np.ascontiguousarray(cam))}
            for label, cam in case.cams.items()
        },
        "boxes": np.round(boxes * scale, 3).tolist(),
        "windows": _windows(case),
        "colours": _colours(),
        "calibration": clean.text(case.calibration),
        "interval_note": clean.text(case.interval_note).rstrip(". "),
        "cam_note": clean.text(case.cam_note),
        "facts": facts,
        "card": {clean.text(key): clean.text(value) for key, value in case.card.items()},
        "warnings": [clean.text(text) for text in case.warnings],
        "sides": case.sides,
        "upward": case.upward,
    }


class _Cleaner:
    """Takes a patient's name out of texts.

    Args:
        patient: Name or id; ``DOE^JANE`` is both of its parts.
        show: Leave everything as it is.
        names: Pseudonyms of ids and files; None: the patient's name alone is taken out.
    """

    def __init__(self, patient: str, show: bool, names: Pseudonyms | None = None) -> None:
        parts = {patient.strip(), *re.split(r"[\^=,;\s]+", patient)} if patient else set()
        # A short number is no name, and stands for much else in a text.
        words = sorted((part for part in parts if len(part) >= (5 if part.isdigit() else 2)), key=len, reverse=True)
        self.show, self.names = show, names
        self.pattern = (
            None
            if show or not words
            else re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, words))})(?![A-Za-z0-9])", re.IGNORECASE)
        )

    def text(self, value: object) -> str:
        """A text without the patient's name."""
        text = str(value) if self.names is None else self.names.text(value)
        return text if self.pattern is None else self.pattern.sub(WITHHELD, text)

    def id(self, given: str, kind: str) -> str:
        """An id under its pseudonym."""
        return self.text(given) if self.names is None else self.names.of(given, kind)

    def facts(self, found: Mapping[str, str]) -> dict[str, str]:
        """Facts without those that tell who the patient is."""
        return {self.text(key): WITHHELD if self._private(key) else self.text(value) for key, value in found.items()}

    def _private(self, key: str) -> bool:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+", " ", str(key)).lower().split()
        about = any(word in _PERSONAL for word in words) or words == ["name"]
        return not self.show and about and words[-1] not in _OPEN


def _windows(case: Case) -> list[tuple[str, float, float]]:
    """Name, centre and width of the window presets."""
    if case.unit == HU:
        return [(name, float(centre), float(width)) for name, centre, width in WINDOWS]
    if case.unit == DISPLAY:
        return [("As stored", 127.5, 255.0)]
    used = case.hu[case.hu != 0]
    pairs = [np.percentile(used, pair) if used.size else np.array([0.0, 1.0]) for pair in ((1, 99), (0, 100))]
    return [
        (name, float((low + high) / 2), max(float(high - low), 1.0))
        for name, (low, high) in zip(("1st-99th percentile", "Full range"), pairs, strict=True)
    ]


def signal_ends(signal: NDArray[Any]) -> tuple[float, float]:
    """What is black and what is white of MR signal: the 1st and 99th percentile of what is not 0.

    >>> signal_ends(np.array([0, 0, 5, 5]))
    (5.0, 6.0)
    """
    used = signal[signal != 0]
    low, high = np.percentile(used, (1, 99)).tolist() if used.size else (0.0, 1.0)
    return low, max(high, low + 1.0)


def _ratio(case: Case) -> float:
    """Width over height of the anatomy that a slice shows."""
    rows, columns = case.pixel_mm or (1.0, 1.0)
    return float(case.hu.shape[2] * columns / (case.hu.shape[1] * rows))


def _colours() -> str:
    """256 colours of the maps, black to yellow, as hexadecimal text."""
    from matplotlib import colormaps

    table = np.rint(colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    return bytes(table).hex()


def _list(values: Any) -> list[float | None] | None:
    """Numbers rounded to six places; null where undefined."""
    if values is None:
        return None
    found = np.asarray(values, dtype=np.float64)
    return [round(float(value), 6) if math.isfinite(value) else None for value in found]


def _check(case: Case) -> None:
    """Refuse a case whose arrays do not fit each other."""
    if case.hu.ndim != 3 or not case.hu.size or case.unit not in (HU, SIGNAL, DISPLAY):
        raise ValueError(f"hu has shape {case.hu.shape} and unit {case.unit!r}")
    count, labels = len(case.hu), len(case.labels)
    shares = case.attribution if isinstance(case.attribution, Mapping) else {"": case.attribution}
    sizes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "slice_probs": (case.slice_probs, (count, labels)),
        "series_probs": (case.series_probs, (labels,)),
        "z_mm": (case.z_mm, (count,)),
        "intervals": (case.intervals, (labels, 2)),
        "truth": (case.truth, (count, labels)),
        "cam_boxes": (case.cam_boxes, (count, 4)),
        **{f"attribution {label}": (values, (count,)) for label, values in shares.items()},
        **{f"cams {label}": (cam, (count, *np.shape(cam)[1:3])) for label, cam in case.cams.items()},
    }
    for name, (values, shape) in sizes.items():
        if values is not None and np.shape(values) != shape:
            raise ValueError(f"{name} has shape {np.shape(values)}, expected {shape}")
    unknown = [label for label in case.cams if label not in case.labels]
    if unknown or len(set(case.labels)) != labels or not labels:
        raise ValueError(f"labels {list(case.labels)}, maps of {list(case.cams)}")
