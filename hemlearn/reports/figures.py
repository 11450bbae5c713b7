"""Figures from predictions: ROC, precision-recall, reliability, confusion and learning curves.

Every function returns a :class:`matplotlib.figure.Figure` that draws without a display and leaves no global state;
the caller saves it. Colours are those of Okabe and Ito, told apart in the common forms of colour blindness; line
styles and marks differ as well, so that a grey print stays readable.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import NAN, Floats, roc_points
from hemlearn.evaluation.calibration import Calibration, reliability_curve
from hemlearn.evaluation.decision import DRAWS, decision_curve
from hemlearn.evaluation.predictions import label_array, levels_of, prob_array
from hemlearn.evaluation.scoring import LOWER_IS_BETTER, decide
from hemlearn.util.errors import count
from hemlearn.util.files import save_figure


class Band(NamedTuple):
    """Pointwise 95 % bounds: of sensitivity at each false positive rate, or of precision at each recall."""

    x: Floats
    low: Floats
    high: Floats


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
STYLES = ("-", "--", "-.", ":")
MARKERS = "os^DvPX*"
DPI = 200
STYLE: Any = {
    **{"font.size": 9.0, "axes.titlesize": 9.5, "axes.labelsize": 9.0},
    **{"legend.fontsize": 8.0, "xtick.labelsize": 8.0, "ytick.labelsize": 8.0},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"lines.linewidth": 1.6, "legend.frameon": False, "figure.dpi": DPI},
}
_PANEL, _AXES = 3.5, 2.8  # inches: one column of a paper, and the square inside it
_LEGEND_WIDTH = 46  # characters
_NOTE_WIDTH = 17  # letters of the note below, per inch of the figure
_CORNERS = 2000


@dataclass(frozen=True)
class Curve:
    """One line of a figure."""

    name: str  # legend entry
    y: npt.NDArray[np.float64]  # (N,) labels 0 or 1, no NaN
    p: npt.NDArray[np.float64]  # (N,) probabilities
    value: float = NAN  # summary to print (AUROC, AP or ECE); NaN leaves it out
    low: float = NAN  # its lower bound; NaN prints no interval
    high: float = NAN  # its upper bound
    threshold: float = NAN  # operating point to mark; NaN for none
    point: tuple[float, float] | None = None  # (false positive rate, sensitivity) where no one threshold leads to it
    patient: npt.NDArray[np.intp] | None = None  # (N,) codes for the intervals of a reliability curve
    roc_band: Band | None = None  # pointwise bounds drawn behind a ROC
    pr_band: Band | None = None  # pointwise bounds drawn behind a precision-recall curve
    index: int | None = None  # place in the palette; None takes the place in the panel
    marker: str = ""  # a reader: drawn in grey with this marker, his point or the points of his scores
    bars: tuple[float, float, float, float] | None = None  # intervals of the reader's point: x low, high, y low, high
    text: str = ""  # legend entry in place of the name and summary; one that starts with _ is none
    layer: str = ""  # id of all that is drawn of the curve, by which a page can hide it

    @property
    def defined(self) -> bool:
        """Whether both classes are present."""
        return bool((self.y == 1).any() and (self.y == 0).any())

    def summary(self, metric: str) -> str:
        """Legend text: name, value and interval, in lines that fit below a panel."""
        bounds = f" ({self.low:.3f}-{self.high:.3f})" if self.low == self.low else ""
        figure = f"{metric} {self.value:.3f}{bounds}"
        if self.value != self.value:
            figure = f"undefined (one class, n = {len(self.y)})"
        line = self.text or f"{self.name}: {figure}"
        if len(line) <= _LEGEND_WIDTH:
            return line
        return "\n".join([*textwrap.wrap(self.text or self.name, _LEGEND_WIDTH), *([] if self.text else [figure])])


Panels = Sequence[Curve] | Mapping[str, Sequence[Curve]]


def _line(index: int, curve: Curve | None = None) -> dict[str, Any]:
    index = index if curve is None or curve.index is None else curve.index
    marks = {"marker": MARKERS[index % len(MARKERS)], "markersize": 4.5, "markevery": []}  # in the legend alone
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": style_of(index)} | marks


def style_of(index: int) -> str:
    """Line style of a place in the palette: another one where the colours come again.

    >>> style_of(0), style_of(len(COLOURS))
    ('-', '--')
    """
    return STYLES[(index + index // len(COLOURS)) % len(STYLES)]


@contextmanager
def _layer(axes: Axes, curve: Curve) -> Generator[None]:
    """Give everything that is drawn meanwhile the curve's id."""
    before = set(map(id, axes.get_children()))
    yield
    for artist in axes.get_children() if curve.layer else ():
        if id(artist) not in before:
            artist.set_gid(curve.layer)


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(color="0.92", linewidth=0.6)


def _thinned(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """At most 2000 corners of a curve: more than a figure can show, and a picture that stays small."""
    if len(x) <= _CORNERS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, _CORNERS).round().astype(int))
    return x[kept], y[kept]


def _mark(axes: Axes, point: tuple[float, float], line: Mapping[str, Any]) -> None:
    edge: Any = {"markeredgecolor": "white", "markeredgewidth": 0.9}
    axes.plot(*point, marker=line["marker"], markersize=6, color=line["color"], clip_on=False, zorder=5, **edge)


def _reader(axes: Axes, curve: Curve) -> None:
    """A reader's point with its intervals, or the points of his scores joined by a thin line."""
    x, y = ([v] for v in curve.point) if curve.point else roc_points(curve.y, curve.p) if curve.defined else ([], [])
    style: Any = {"color": "0.25", "marker": curve.marker, "markersize": 5, "markeredgecolor": "white"}
    if curve.bars is not None:
        left, right, low, high = curve.bars
        axes.plot([left, right], [y[0], y[0]], color="0.25", alpha=0.35, linewidth=0.8, zorder=4)
        axes.plot([x[0], x[0]], [low, high], color="0.25", alpha=0.35, linewidth=0.8, zorder=4)
    style["linewidth"] = 0.0 if curve.point else 0.6
    axes.plot(x, y, label=curve.summary("AUROC"), **style, clip_on=False, zorder=6)


def _shade(axes: Axes, band: Band | None, line: Mapping[str, Any]) -> None:
    if band is not None:
        axes.fill_between(band.x, band.low, band.high, color=line["color"], alpha=0.16, linewidth=0, zorder=1)


def _panels(
    panels: Panels, draw: Callable[[Axes, Sequence[Curve]], None], metric: str, title: str | None, note: str | None
) -> Figure:
    """One square panel per entry, at most three in a row, its legend below it where it hides no curve.

    Curves with a layer have none: their page says what each is, and hides that with the curve.
    """
    named = panels if isinstance(panels, Mapping) else {"": panels}
    columns = min(3, max(1, len(named)))
    rows = math.ceil(len(named) / columns)
    legend = 0.0
    for curves in named.values():
        open_ones = [curve for curve in curves if not curve.layer]
        texts = [text for curve in open_ones if not (text := curve.summary(metric)).startswith("_")]
        legend = max(legend, 0.14 * sum(1 + text.count("\n") for text in texts) + 0.06 * len(texts))
    # Placed by hand, in inches: automatic layout lets long legends squeeze an axis whose aspect is fixed.
    above = 0.3 if any(named) else 0.12
    row_height = above + _AXES + 0.52 + legend + 0.08
    width = columns * _PANEL + 0.05
    lines = [part for line in (note or "").splitlines() for part in textwrap.wrap(line, int(_NOTE_WIDTH * width))]
    top, bottom = 0.32 if title else 0.0, 0.12 + 0.13 * len(lines) if lines else 0.0
    height = rows * row_height + top + bottom
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        for index, (name, curves) in enumerate(named.items()):
            row, column = divmod(index, columns)
            low = height - top - row * row_height - above - _AXES
            axes = figure.add_axes(((column * _PANEL + 0.55) / width, low / height, _AXES / width, _AXES / height))
            draw(axes, curves)
            axes.set_title(name)
            if not any(curve.layer for curve in curves):
                place: Any = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.5 / _AXES)}
                axes.legend(**place, handlelength=2.4, borderaxespad=0.0)
        if title:
            figure.text(0.5, 1 - 0.1 / height, title, fontsize=10, ha="center", va="top")
        if lines:
            figure.text(0.5, 0.08 / height, "\n".join(lines), fontsize=7.5, color="0.35", ha="center", va="bottom")
    return figure


def roc_figure(panels: Panels, *, title: str | None = None, note: str | None = None) -> Figure:
    """ROC curves with AUROC and interval in the legend; a dot marks the operating point."""

    def draw(axes: Axes, curves: Sequence[Curve]) -> None:
        _unit_square(axes, "1 - specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=(0, (2, 3)))
        for index, curve in enumerate(curves):
            with _layer(axes, curve):
                if curve.marker:
                    _reader(axes, curve)
                    continue
                line = _line(index, curve)
                x, y = roc_points(curve.y, curve.p) if curve.defined else (np.array([NAN]), np.array([NAN]))
                x, y = _thinned(x, y)
                _shade(axes, curve.roc_band, line)
                axes.plot(x, y, label=curve.summary("AUROC"), **line, clip_on=False, zorder=3)
                point = curve.point
                if point is None and curve.defined and curve.threshold == curve.threshold:
                    called = curve.p >= curve.threshold
                    point = (float(called[curve.y == 0].mean()), float(called[curve.y == 1].mean()))
                if point is not None:
                    _mark(axes, point, line)

    return _panels(panels, draw, "AUROC", title, note)


def pr_figure(panels: Panels, *, title: str | None = None, note: str | None = None) -> Figure:
    """Precision-recall curves with average precision in the legend; the dotted line is the prevalence (chance)."""

    def draw(axes: Axes, curves: Sequence[Curve]) -> None:
        _unit_square(axes, "recall (sensitivity)", "precision")
        for index, curve in enumerate(curves):
            with _layer(axes, curve):
                line = _line(index, curve)
                recall, precision = np.array([NAN]), np.array([NAN])
                _shade(axes, curve.pr_band, line)
                if curve.defined:
                    order = np.argsort(-curve.p, kind="stable")
                    last = np.append(np.flatnonzero(np.diff(curve.p[order])), len(order) - 1)
                    found = np.cumsum(curve.y[order])[last]
                    recall = np.append(0.0, found / curve.y.sum())
                    precision = np.append(found[0] / (last[0] + 1), found / (last + 1))
                    recall, precision = _thinned(recall, precision)
                    axes.axhline(curve.y.mean(), color=line["color"], linewidth=0.8, linestyle=(0, (1, 2)))
                axes.step(recall, precision, where="pre", label=curve.summary("AP"), **line, clip_on=False, zorder=3)
                if curve.defined and curve.threshold == curve.threshold and (curve.p >= curve.threshold).any():
                    called = curve.p >= curve.threshold
                    _mark(axes, (float(called[curve.y == 1].mean()), float(curve.y[called].mean())), line)

    return _panels(panels, draw, "AP", title, note)


def reliability_figure(panels: Panels, *, title: str | None = None, note: str | None = None) -> Figure:
    """Observed frequency against mean predicted probability in ten bins of equal mass.

    Bars are Wilson intervals of the bin's frequency, clustered by patient where a curve knows its patients; the marks
    on the lower edge show where the predictions lie.
    """

    def draw(axes: Axes, curves: Sequence[Curve]) -> None:
        _unit_square(axes, "predicted probability", "observed frequency")
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=(0, (2, 3)))
        for index, curve in enumerate(curves):
            with _layer(axes, curve):
                line = _line(index, curve)
                parts = reliability_curve(curve.y, curve.p, curve.patient)
                x, y = [part.mean_p for part in parts], [part.observed for part in parts]
                low, high = [part.low for part in parts], [part.high for part in parts]
                axes.vlines(x, low, high, color=line["color"], linewidth=1.0, alpha=0.7)
                line |= {"markevery": None}
                axes.plot(x, y, label=curve.summary("ECE"), **line, clip_on=False, zorder=3)
                if len(curves) == 1:
                    axes.plot(
                        curve.p, np.full(len(curve.p), 0.0), "|", color="0.25", markersize=5, alpha=0.25, zorder=2
                    )

    return _panels(panels, draw, "ECE", title, note)


def decision_figure(panels: Panels, *, title: str | None = None, note: str | None = None) -> Figure:
    """Net benefit of treating from each threshold probability on, beside treating all (dotted) and none (0).

    Curves that have a band of their ROC have one here, from the same kind of draws.
    """

    def draw(axes: Axes, curves: Sequence[Curve]) -> None:
        top = 0.05
        for index, curve in enumerate(curves):
            with _layer(axes, curve):
                line = _line(index, curve)
                found = decision_curve(curve.y, curve.p, curve.patient, draws=DRAWS if curve.roc_band else 0)
                _shade(axes, Band(found.threshold, found.low, found.high) if curve.roc_band else None, line)
                top = max(top, *found.model, *found.high[~np.isnan(found.high)])
                name = "\n".join(textwrap.wrap(curve.name, _LEGEND_WIDTH))
                axes.plot(found.threshold, found.model, label=name, **line, zorder=3)
                axes.plot(found.threshold, found.treat_all, color="0.45", linewidth=0.9, linestyle=(0, (1, 2)))
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        axes.set(xlim=(0, 1), ylim=(-0.15 * top, 1.05 * top), xlabel="threshold probability", ylabel="net benefit")
        axes.grid(color="0.92", linewidth=0.6)

    return _panels(panels, draw, "net benefit", title, note)


def confusion_counts(
    y: Floats, called: npt.NDArray[Any], labels: Sequence[str], kind: str
) -> dict[str, dict[str, Any]]:
    """Confusion counts: ``{"names": [...], "counts": [[...]]}`` of each label, or of all exclusive classes together.

    Shapes: y (N, L), called (N, L).
    """

    def table(names: list[str], truth: npt.NDArray[Any], call: npt.NDArray[Any]) -> dict[str, Any]:
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(counts, (truth.astype(int), call.astype(int)), 1)
        return {"names": names, "counts": counts.tolist()}

    known = ~np.isnan(y)
    if kind == "multiclass":
        rows = known.all(axis=1)
        return {"": table(list(labels), y[rows].argmax(axis=1), called[rows].argmax(axis=1))}
    return {c: table(["no", "yes"], y[known[:, j], j], called[known[:, j], j]) for j, c in enumerate(labels)}


def confusion_figure(
    matrices: Mapping[str, npt.NDArray[np.int64]], names: Sequence[str], *, title: str | None = None
) -> Figure:
    """Confusion matrices, true classes in rows: counts, and shares of the row which the shade shows.

    Shapes: matrices (K, K).
    """
    columns = min(3, max(1, len(matrices)))
    rows = math.ceil(len(matrices) / columns)
    side = max(2.6, 0.75 * len(names) + 1.1)
    turned = max(map(len, names)) > 8 and len(names) > 2
    with mpl.rc_context(STYLE):
        size = (columns * side + 0.3, rows * (side - 0.2) + (0.35 if title else 0.0))
        figure = Figure(figsize=size, layout="constrained")
        grid = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
        for axes in grid[len(matrices) :]:
            axes.set_visible(False)
        for axes, (name, counts) in zip(grid, matrices.items(), strict=False):
            total = counts.sum(axis=1, keepdims=True)
            share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (i, j), count in np.ndenumerate(counts):
                colour = "white" if share[i, j] > 0.55 else "black"
                text = f"{count}\n{100 * share[i, j]:.1f} %"
                axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color=colour)
            axes.set_xticks(range(len(names)), names, rotation=35 if turned else 0, ha="right" if turned else "center")
            axes.set_yticks(range(len(names)), names)
            axes.set(xlabel="predicted", ylabel="true")
            axes.set_title(name)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def learning_curves(
    history: pd.DataFrame, *, monitor: str | None = None, lower_is_better: bool = True, title: str | None = None
) -> Figure:
    """Losses and validation metrics by epoch."""
    # Of each epoch the last value logged that is not null.
    by_epoch = history.apply(pd.to_numeric, errors="coerce").groupby("epoch").last()
    losses = [c for c in by_epoch.columns if c.partition("/")[2] in ("loss", "log_loss", "weighted_log_loss")]
    metrics = [c for c in by_epoch.columns if c.startswith("val/") and c not in losses]
    metrics = [c for c in metrics if by_epoch[c].notna().any() and by_epoch[c].max() <= 1.0]
    shown = [group for group in (losses, metrics) if group]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * max(1, len(shown)), 3.0 + (0.25 if title else 0)), layout="constrained")
        grid = np.asarray(figure.subplots(1, max(1, len(shown)), squeeze=False)).ravel()
        best = None
        key = monitor if monitor is None or "/" in monitor else f"val/{monitor}"
        if key in by_epoch and by_epoch[key].notna().any():
            best = by_epoch[key].idxmin() if lower_is_better else by_epoch[key].idxmax()
        for axes, columns in zip(grid, shown, strict=False):
            for index, column in enumerate(columns):
                known = by_epoch[column].dropna()
                style = _line(index) | {"markevery": None if len(known) < 30 else [], "markersize": 3.5}
                axes.plot(known.index, known, label=column, **style)
            if best is not None:
                label = f"best {key} (epoch {int(best)})" if columns is shown[0] else None
                axes.axvline(best, color="0.4", linewidth=0.9, linestyle=(0, (4, 2)), zorder=1, label=label)
            axes.set(xlabel="epoch", ylabel="loss" if columns is losses else "validation metric")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(color="0.92", linewidth=0.6)
            axes.legend()
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def inline_svg(figure: Figure) -> str:
    """A figure as an SVG element of a page; glyphs are paths, so that no font is needed, and layers are classes."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "hemlearn"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = file.getvalue().decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]  # ids are unique in the page
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    referenced = {name for pair in used for name in pair if name}

    def renamed(found: re.Match[str]) -> str:
        name = found[1]
        if re.fullmatch(r"g\d+", name):
            return f'class="{name}"'
        return f'id="{mark}-{name}"' if name in referenced else ""

    text = re.sub(r'\bid="([^"]+)"', renamed, text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{mark}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{mark}-\1"', text)
    return re.sub(r"<svg [^>]*?(viewBox=\"[^\"]+\")[^>]*>", r"<svg \1>", text, count=1)


# --- The figures of one run folder, from its predictions on test and its history.


LEAKY = "LEAKY: test patients are also in training"


def write_run_figures(
    frame: pd.DataFrame,
    task: TaskConfig,
    metrics: dict[str, Any],
    history: pd.DataFrame,
    folder: Path,
    calibration: Calibration | None = None,
    *,
    patients_known: bool = True,
) -> None:
    """Write ROC, PR, reliability, confusion and learning curves as PNG into ``folder``; a leaky run's say so.

    Scores that are no probabilities have no reliability curve. ``patients_known``: whether the data have their ids.
    """
    level = levels_of(task)[0]
    rows = (calibration or Calibration.none(task)).aggregate(frame[frame["split"] == "test"], level, task.aggregate)
    y, p = label_array(rows, task.labels), prob_array(rows, task.labels)
    thresholds = {label: item["value"] for label, item in metrics["thresholds"][level].items()}
    scores = metrics["test"][level]["labels"]

    def curves(metric: str) -> list[Curve]:
        made = []
        for j, label in enumerate(task.labels):
            known = ~np.isnan(y[:, j])
            entry = {key: NAN if value is None else value for key, value in scores[label][metric].items()}
            figures = (entry["value"], entry["low"], entry["high"], thresholds.get(label, NAN))
            made.append(Curve(label, y[known, j], p[known, j], *figures))
        return made

    ranks = level in metrics["about"]["scores"]
    note = f"test, {count(len(rows), level)}"
    note += f" of {count(rows['patient_id'].nunique(), 'patient')}" if patients_known else ""
    # A picture is passed on without its run: the mark stands in each.
    title = LEAKY if metrics.get("leaky") else None
    best = None if task.monitor == "last" else task.monitor
    lower = best in LOWER_IS_BETTER or metrics.get("monitor", {}).get("mode") == "min"
    figures = {
        "roc": roc_figure(curves("auroc"), note=note, title=title),
        "pr": pr_figure(curves("ap"), note=note, title=title),
        **({} if ranks else {"reliability": reliability_figure(curves("ece"), note=note, title=title)}),
        "confusion": _confusion(task, y, p, thresholds, title),
        "learning_curves": learning_curves(history, monitor=best, lower_is_better=lower, title=title),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png", dpi=DPI, metadata={"Title": title} if title else None)


def _confusion(task: TaskConfig, y: Floats, p: Floats, thresholds: dict[str, float], title: str | None) -> Figure:
    calls = decide(p, [thresholds[label] for label in task.labels] if thresholds else [], task.kind)
    found = confusion_counts(y, calls, task.labels, task.kind)
    names = next(iter(found.values()))["names"]
    return confusion_figure({c: np.array(item["counts"]) for c, item in found.items()}, names, title=title)
