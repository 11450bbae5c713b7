"""Pictures of cases that a run gets wrong: windows, maps, the probability along the series, a page of the series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from hemlearn.data.readers import to_display
from hemlearn.data.store import has_masks, lesion_masks
from hemlearn.evaluation.calibration import Calibration
from hemlearn.reading.case import NOTE, WINDOWS, Case, write_case_page
from hemlearn.reading.explain.cams import upsampled
from hemlearn.reading.explain.drawing import Drawer, label_places
from hemlearn.reading.explain.study import Subject
from hemlearn.reading.pages import run_card, series_maps
from hemlearn.reading.predict import manifest_series
from hemlearn.reading.predicted_page import cautions
from hemlearn.reading.stacks import Preprocessing, full_pixels, read_stack, unit_of
from hemlearn.reports.figures import COLOURS, STYLE
from hemlearn.util.console import NOTICED, track
from hemlearn.util.errors import DataError
from hemlearn.util.files import sha256

MISSED, FALSE_ALARM, BORDERLINE = KINDS = ("missed", "false alarm", "borderline")
_OPACITY, _MAP, _OUTLINE = 0.55, "inferno", (86, 180, 233)
Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Pick:
    """A case to look at."""

    kind: str  # one of :data:`KINDS`
    level: str  # slice | series
    case: str  # id of the slice or series
    series: str
    patient: str
    label: str
    truth: float  # 1, 0 or NaN
    probability: float
    threshold: float  # NaN where classes exclude each other
    distance: float  # from the threshold in log odds; of exclusive classes between the label and the next
    row: int  # of the slice that is shown, in the manifest
    subject: Subject = field(compare=False)  # the run that predicted it


@dataclass(frozen=True)
class Shown:
    """A case as it is shown."""

    pick: Pick
    images: list[tuple[str, NDArray[np.uint8]]]  # caption, (S, S) grey or (S, S, 3) colours
    chart: Figure | None  # probability by slice; None of a series of one slice
    where: str  # which slice is shown, in words
    page: str = ""  # link to the page of its series


def units_of(subject: Subject, level: str) -> pd.DataFrame:
    """The predictions of a run per slice or series, as the run puts them together."""
    task = subject.run.config.task
    maps = subject.run.calibration or Calibration.none(task)
    return maps.aggregate(subject.frame, level, task.aggregate)


def draw(picks: Sequence[Pick], out: Path, *, pages: str | None, show_patient: bool) -> list[Shown]:
    """Every case with its pictures; with ``pages`` also a page of its series in that folder of ``out``."""
    shown: dict[int, Shown] = {}
    made: dict[tuple[int, str], str] = {}
    for subject, own in _by_subject(picks):
        pictures = dict(zip(own, _pictures(subject, [picks[i] for i in own]), strict=True))
        for i in track(own, "Drawing cases", len(own), after=NOTICED):
            pick, page = picks[i], ""
            if pages is not None:
                known = (id(subject), pick.series)
                if known not in made:
                    made[known] = _page(subject, pick, out, pages, show_patient)
                page = made[known]
            images = pictures[i]
            shown[i] = Shown(pick, images, _chart(subject, pick), _where(subject, pick), page)
    return [shown[i] for i in range(len(picks))]


def _by_subject(picks: Sequence[Pick]) -> Iterable[tuple[Subject, list[int]]]:
    found: dict[int, tuple[Subject, list[int]]] = {}
    for i, pick in enumerate(picks):
        found.setdefault(id(pick.subject), (pick.subject, []))[1].append(i)
    return found.values()


def _drawer(subject: Subject, label: str) -> Drawer:
    run = subject.run
    place = label_places(list(run.config.task.labels), [label])[0]
    pool = None if run.calibration is None else run.calibration.pool("series")
    return Drawer(subject.data, place, "gradcam", None, run.model.backbone.mean.device, pool)


def _pictures(subject: Subject, picks: Sequence[Pick]) -> list[list[tuple[str, NDArray[np.uint8]]]]:
    """Captions and images of the slice of each case: its windows, and the map on the first of them."""
    run, size = subject.run, subject.run.config.data.image_size
    drawer = _drawer(subject, picks[0].label)
    rows = np.array([pick.row for pick in picks], dtype=np.int64)
    large = upsampled(drawer.draw(run.model, rows), size).numpy()
    raw = drawer.raw(rows)
    middle = raw[:, raw.shape[1] // 2].numpy()
    manifest = subject.data.manifest
    masks = lesion_masks(manifest, rows, size, run.config.data.fit) if has_masks(manifest) else None
    found = []
    for k, pixels in enumerate(middle):
        views = _windows(pixels, run.unit)
        mask = None if masks is None else masks[k]
        told = "map of what speaks for it (Grad-CAM)" + (", lesion outlined" if mask is not None and mask.any() else "")
        found.append([*views, (told, _overlay(views[0][1], large[k], mask))])
    return found


def _windows(pixels: NDArray[Any], unit: str) -> list[tuple[str, Grey]]:
    """The slice as it is looked at: CT in the brain and the subdural window, others as they are shown."""
    if unit == "HU":
        return [
            (f"{name.lower()} window, centre {centre}, width {width} HU", _window(pixels, centre, width))
            for name, centre, width in WINDOWS[:2]
        ]
    told = "grey levels as stored" if unit == "display" else "1st to 99th percentile of the slice"
    return [(told, to_display(pixels, unit))]


def _window(pixels: NDArray[Any], centre: float, width: float) -> Grey:
    scaled = (pixels.astype(np.float32) - (centre - width / 2)) * (255.0 / width)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def _overlay(grey: Grey, cam: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """The slice with its map, 255 for the largest value of this slice, and the outline of a lesion mask."""
    from matplotlib import colormaps

    top = float(cam.max())
    share = np.clip(cam / top, 0, 1) if top > 0 else np.zeros_like(cam)
    alpha = (_OPACITY * np.sqrt(share))[..., None]
    colours = colormaps[_MAP](share)[..., :3] * 255
    mixed = np.rint(grey[..., None] * (1 - alpha) + colours * alpha).astype(np.uint8)
    if mask is not None and mask.any():
        mixed[mask & ~binary_erosion(mask)] = _OUTLINE
    return np.asarray(mixed, dtype=np.uint8)


def _series(subject: Subject, pick: Pick) -> tuple[NDArray[np.int64], NDArray[np.float64], bool]:
    """Rows of a case's series, lowest first, their positions, and whether these are in mm."""
    data = subject.data
    whole = data.order[data.series_of[pick.row]]
    z = data.z_mm[whole].astype(np.float64)
    return (whole, z, True) if not np.isnan(z).any() else (whole, np.arange(1.0, len(whole) + 1), False)


def _where(subject: Subject, pick: Pick) -> str:
    whole, z, known = _series(subject, pick)
    here = int(np.flatnonzero(whole == pick.row)[0])
    text = f"slice {here + 1} of {len(whole)}"
    return text + (f", z {z[here]:.1f} mm" if known and len(whole) > 1 else "")


def _chart(subject: Subject, pick: Pick) -> Figure | None:
    """Probability of every slice of the series; of a sequence run also each slice's share in the series' score."""
    whole, z, known = _series(subject, pick)
    if len(whole) < 2:
        return None
    table, run = subject.frame, subject.run
    prob = table[f"prob_{pick.label}"].reindex(whole).to_numpy(dtype=np.float64)
    truth = table[f"label_{pick.label}"].reindex(whole).to_numpy(dtype=np.float64)
    point = run.thresholds.get("slice", {}).get(pick.label)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.4 if run.of_series else 2.3), layout="constrained")
        panels: Any = figure.subplots(2 if run.of_series else 1, 1, sharex=True, squeeze=False)[:, 0]
        upper = panels[0]
        upper.plot(z, prob, color=COLOURS[0], linewidth=1.2, zorder=2)
        kinds = (("with the label", truth == 1, "s", COLOURS[1]), ("without", truth == 0, "o", "white"))
        for name, which, mark, fill in (*kinds, ("unknown", np.isnan(truth), "x", COLOURS[0])):
            if which.any():
                style: Any = {"markersize": 4.5, "markerfacecolor": fill, "markeredgecolor": "black"}
                upper.plot(z[which], prob[which], mark, label=name, markeredgewidth=0.7, zorder=3, **style)
        if point is not None and run.config.task.kind != "multiclass":
            upper.axhline(point, color="0.4", linewidth=0.9, linestyle="--", label=f"slice threshold {point:.2f}")
        upper.set(ylim=(-0.03, 1.03), ylabel="probability")
        if run.of_series:
            _, shares = _drawer(subject, pick.label).attribution(run.model, pick.row)
            width = 0.8 * float(np.median(np.diff(z)))
            panels[1].bar(z, shares, width=width, color=COLOURS[5], edgecolor="black", linewidth=0.4)
            panels[1].axhline(0, color="black", linewidth=0.6)
            panels[1].set_ylabel("share in the score")
        for axes in panels:
            axes.axvline(z[whole == pick.row][0], color="0.5", linewidth=1.2, linestyle=":", zorder=1)
            axes.grid(color="0.92", linewidth=0.6)
        panels[-1].set_xlabel("position along the series, mm" if known else "slice")
        figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=7.5)
    return figure


def case_figure(item: Shown, title: str) -> Figure:
    """One case for a paper: its images, and the probability by slice below them."""
    columns = len(item.images)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * columns, 3.05), layout="constrained")
        for axes, (caption, image) in zip(figure.subplots(1, columns, squeeze=False)[0], item.images, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(caption.replace(", ", "\n", 1), fontsize=8, parse_math=False)
            axes.axis("off")
            if item.pick.subject.run.unit != "display":  # which a picture does not tell
                axes.text(0.02, 0.5, "R", transform=axes.transAxes, color="white", fontsize=8, va="center")
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", parse_math=False)
        figure.supxlabel(NOTE, fontsize=6.5, x=0.99, ha="right", color="0.35")
    return figure


def _page(subject: Subject, pick: Pick, out: Path, folder: str, show_patient: bool) -> str:
    """Write the page of a case's series; returns its link."""
    run, data, frame = subject.run, subject.data, subject.frame
    whole, z, known = _series(subject, pick)
    (series,) = manifest_series(data.manifest, whole)
    step = Preprocessing.of(run)
    stack = read_stack(series, [step], keep=True)
    if stack.refused or stack.failures:
        reason = stack.refused or f"{stack.failures[0][0]}: {stack.failures[0][1]}"
        raise DataError(f"series {pick.series}: {reason}", remedy="copy the data set again")
    labels = list(run.config.task.labels)
    maps = series_maps(run, stack, step, str(run.model.backbone.mean.device))
    units = units_of(subject, "series")
    own = units[units["series_id"].astype(str) == pick.series].iloc[0]
    slices = frame.reindex(whole)
    truth = slices[[f"label_{c}" for c in labels]].to_numpy(dtype=np.float64)
    layer = f", layer {maps.layer}" if maps.layer else ""
    case = Case(
        series=pick.series,
        patient=pick.patient,
        hu=full_pixels(stack),
        z_mm=z if known else None,
        labels=labels,
        slice_probs=slices[[f"prob_{c}" for c in labels]].to_numpy(dtype=np.float64),
        series_probs=np.array([own[f"prob_{c}"] for c in labels], dtype=np.float64),
        cams=maps.as_uint8(),
        attribution=maps.attribution,
        cam_boxes=stack.boxes[step],
        unit=unit_of(series),
        ground={"Slices": str(len(whole)), "Shown for": f"{pick.kind}, {pick.label}"},
        pixel_mm=series.pixel_mm,
        thresholds=run.thresholds.get("series", {}),
        slice_thresholds=run.thresholds.get("slice", {}),
        truth=truth if data.manifest.label_level == "slice" else None,
        calibration="Probabilities are those of the run's own predictions.",
        card=run_card([run]),
        cautions=cautions([run]),
        sides=run.unit != "display",  # which a picture does not tell
        upward=known and run.unit != "display",
        cam_note=f"Grad-CAM{layer}",
        score=(run.calibration or Calibration.none(run.config.task)).only_ranks(
            frame, "series", run.config.task.aggregate
        ),
    )
    link = f"{folder}/{sha256(subject.names.of(pick.series, 'series') + run.hash)[:12]}.html"
    write_case_page(out / link, case, show_patient=show_patient, names=subject.names)
    return link
