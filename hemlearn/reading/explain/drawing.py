"""Maps and slice attributions of one series, or of single slices, ready for overlays and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from hemlearn.data.batches import neighbour_stack
from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import to_display
from hemlearn.evaluation.pooling import Pool
from hemlearn.reading.explain.cams import Layer, find_layer, maps
from hemlearn.reading.explain.scores import Scores, slice_attribution
from hemlearn.reading.predict import manifest_series
from hemlearn.reading.stacks import Preprocessing, read_stack
from hemlearn.tasks.base import Classification
from hemlearn.training.run import Run
from hemlearn.util.console import NOTICED, track
from hemlearn.util.errors import ConfigError, DataError, hint
from hemlearn.util.files import save_figure

# --- Pictures of slices with their maps.


NOTE = "Research use only, not for diagnosis"
_OPACITY = 0.55
_MAP = "inferno"


def write_overlay(
    path: Path,
    pixels: NDArray[Any],
    unit: str,
    cam: NDArray[np.float32],
    *,
    title: str,
    label: str,
    top: float,
    mask: NDArray[np.bool_] | None = None,
) -> None:
    """Write the slice, and beside it the slice with its map and a colour bar, as PNG.

    Args:
        path: The file.
        pixels: ``(S, S)`` stored slice of ``unit``; HU is shown through the brain window (centre 40, width 80).
        unit: ``HU``, ``display`` or ``signal``.
        cam: ``(S, S)`` map in log odds, at least 0; ``top`` stands at the upper end of the colour bar.
        title: Shown above, as it is: no part of it is read as a formula.
        label: The label that is explained.
        top: See ``cam``.
        mask: ``(S, S)`` lesion, outlined.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from hemlearn.reports.figures import COLOURS, STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        grey = to_display(pixels, unit)
        for axes in (left, right):
            axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.axis("off")
            if mask is not None and mask.any():
                axes.contour(mask, levels=[0.5], colors=COLOURS[4], linewidths=1.0)
        high = top if top > 0 else 1.0
        share = np.clip(cam / high, 0, 1)
        right.imshow(cam, cmap=_MAP, vmin=0, vmax=high, alpha=_OPACITY * np.sqrt(share), interpolation="nearest")
        # The bar has the map's own colours: on the slice they are mixed with grey.
        bar = figure.colorbar(ScalarMappable(Normalize(0, high), _MAP), ax=right, fraction=0.046, pad=0.03)
        bar.set_label(f"speaks for {label} (log odds per place)", fontsize=8, parse_math=False)
        bar.ax.tick_params(labelsize=7)
        figure.suptitle(title, fontsize=9, x=0.02, ha="left", parse_math=False)
        figure.supxlabel(NOTE, fontsize=7, x=0.98, ha="right", color="0.35")
        save_figure(figure, path, dpi=110, metadata={"Software": "hemlearn"})


def write_shares(
    path: Path, z: Sequence[float], shares: NDArray[np.float32], prob: NDArray[np.float64], here: int, label: str
) -> None:
    """Write the probability ``(T,)`` of every slice of a series and its share ``(T,)`` in the series' score, as PNG.

    ``z`` are positions in mm, or numbers; the slice at ``here`` is marked; a slice without probability has NaN.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from hemlearn.reports.figures import COLOURS, STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(z, prob, marker="o", markersize=3, linewidth=1.2, color=COLOURS[0])
        upper.set_ylim(-0.02, 1.02)
        upper.set_ylabel(f"probability of {label}", fontsize=8, parse_math=False)
        width = 0.8 * float(np.median(np.diff(z))) if len(z) > 1 else 1.0
        fill = np.where(shares >= 0, COLOURS[5], COLOURS[7])
        lower.bar(z, shares, width=width, color=fill, edgecolor="black", linewidth=0.4)
        lower.axhline(0, color="black", linewidth=0.6)
        lower.set_ylabel("share in the series' score", fontsize=8)
        lower.set_xlabel("position, mm", fontsize=8)
        for axes in (upper, lower):
            axes.axvline(z[here], color=COLOURS[1], linewidth=1.0, linestyle="--")
            axes.tick_params(labelsize=7)
        figure.supxlabel(NOTE, fontsize=7, x=0.98, ha="right", color="0.35")
        save_figure(figure, path, dpi=110, metadata={"Software": "hemlearn"})


# --- The slices that tell most about a run: hits, misses and false alarms.


HIT, MISS, FALSE_ALARM, OPEN = "hit", "miss", "false alarm", "unlabelled"


def telling_slices(
    predictions: pd.DataFrame, label: str, count: int, threshold: float = 0.5, apart: int = 1
) -> pd.DataFrame:
    """At most ``count`` rows to look at: hits, misses and false alarms in turn, each from its plainest case down.

    Args:
        predictions: Rows with ``series_id``, ``label_<label>`` and ``prob_<label>``.
        label: The label.
        count: Slices wanted.
        threshold: Operating point of the probability.
        apart: Slices of one kind per series that come first, so that one large lesion does not fill the list.

    Returns:
        The rows with their old index and a column ``kind``: ``hit``, ``miss``, ``false alarm`` or ``unlabelled``.
    """
    truth, prob = predictions[f"label_{label}"], predictions[f"prob_{label}"]
    positive = prob >= threshold
    groups = {
        HIT: predictions[(truth == 1) & positive].sort_values(f"prob_{label}", ascending=False, kind="stable"),
        MISS: predictions[(truth == 1) & ~positive].sort_values(f"prob_{label}", kind="stable"),
        FALSE_ALARM: predictions[(truth == 0) & positive].sort_values(f"prob_{label}", ascending=False, kind="stable"),
        OPEN: predictions[truth.isna()].sort_values(f"prob_{label}", ascending=False, kind="stable"),
    }
    queues = []
    for kind, rows in groups.items():
        first = rows.groupby("series_id", sort=False).cumcount() < apart
        queues.append([(index, kind) for index in (*rows.index[first], *rows.index[~first])])
    turns = [item for item in chain.from_iterable(zip_longest(*queues)) if item is not None][:count]
    return predictions.loc[[index for index, _ in turns]].assign(kind=[kind for _, kind in turns])


Floats = NDArray[np.float32]
_BLOCK = 128  # slices drawn at once
_KEPT = 80  # decoded series, or blocks of slices: the stages of a check draw the same ones


@dataclass(frozen=True)
class SeriesMaps:
    """What a run saw in a series of T slices.

    Args:
        cams: Label -> ``(T, h, w)`` maps, at least 0; see :func:`hemlearn.reading.explain.cams.maps`.
        attribution: Label -> ``(T,)`` shares; see :func:`hemlearn.reading.explain.scores.slice_attribution`.
        method: How the maps were made.
        of: ``slice`` or ``series``: whose score they explain.
        layer: Name and places of the layer; None for occlusion.
    """

    cams: dict[str, Floats]
    attribution: dict[str, Floats]
    method: str
    of: str
    layer: str | None

    def as_uint8(self) -> dict[str, NDArray[np.uint8]]:
        """The maps with 255 for the largest value of a label within the series; all 0 where there is none."""
        return {label: to_uint8(values) for label, values in self.cams.items()}


def to_uint8(values: Floats) -> NDArray[np.uint8]:
    """Values of at least 0 with their largest at 255."""
    top = float(values.max(initial=0))
    scaled = np.zeros_like(values) if top <= 0 else values * (255.0 / top)
    return np.asarray(np.rint(scaled), dtype=np.uint8)


def explain_series(
    task: Classification,
    raw: Tensor,
    z_mm: Tensor | None = None,
    *,
    labels: Sequence[str] | None = None,
    method: str = "gradcam",
    cells: int | None = None,
    attribution: str = "gradient",
    pool: Pool | None = None,
) -> SeriesMaps:
    """Explain all slices of one series.

    Args:
        task: Network of a finished run, on the device that shall compute.
        raw: ``(T, K, S, S)`` stored slices, lowest first, as a data module hands them out.
        z_mm: ``(T,)`` positions, mm; None: unknown.
        labels: Labels to explain; None: all.
        method: gradcam | gradcam++ | occlusion.
        cells: Places wanted along a side of the maps; None: see :func:`hemlearn.reading.explain.cams.find_layer`.
        attribution: gradient | attention | removal.
        pool: What ``task.aggregate`` needs for a series.

    Raises:
        ConfigError: An unknown label or method, or too many cells.
    """
    names = task.labels
    chosen = label_places(names, labels)
    scores = Scores(task, z_mm, pool)
    layer = None if method == "occlusion" else find_layer(task.backbone, cells)
    with torch.no_grad():
        images: Tensor = cast(Any, task).channels(raw.to(task.backbone.mean.device))
    found = maps(scores, images, chosen, method=method, layer=layer)
    shares = slice_attribution(scores, images, attribution)
    return SeriesMaps(
        {names[label]: _numpy(values) for label, values in zip(chosen, found, strict=True)},
        {names[label]: _numpy(shares[:, label]) for label in chosen},
        method,
        scores.default(),
        layer_text(layer),
    )


def label_places(names: Sequence[str], labels: Sequence[str] | None) -> list[int]:
    """Indices of labels.

    Raises:
        ConfigError: A label the run does not predict.
    """
    for label in labels or ():
        if label not in names:
            raise ConfigError(
                f"label={label}: the run predicts {', '.join(names)}{hint(label, names)}", remedy="take one of them"
            )
    return [list(names).index(label) for label in (names if labels is None else labels)]


def layer_text(layer: Layer | None) -> str | None:
    """A layer in words."""
    return None if layer is None else f"{layer.name} ({layer.grid[0]} x {layer.grid[1]})"


class Slices:
    """The slices of a data set as a run reads them, decoded when they are asked for.

    Args:
        run: The run.
        manifest: The data set.
    """

    def __init__(self, run: Run, manifest: Manifest) -> None:
        self.manifest, self.step = manifest, Preprocessing.of(run)
        self.neighbours = run.config.channels.neighbours
        self.z_mm = manifest.table["z_mm"].to_numpy(dtype=np.float32, copy=True)
        self.series_of = pd.factorize(manifest.table["series_id"])[0].astype(np.int64)
        # Rows of each series; a manifest holds them lowest first.
        self.order = np.split(np.argsort(self.series_of, kind="stable"), np.cumsum(np.bincount(self.series_of))[:-1])
        self.raw = lru_cache(maxsize=_KEPT)(self._raw)

    def _raw(self, rows: tuple[int, ...]) -> Tensor:
        """``(N, K, S, S)`` squares of some rows, with their neighbours."""
        found: dict[int, NDArray[Any]] = {}
        for number in dict.fromkeys(self.series_of[list(rows)].tolist()):
            whole = self.order[number]
            places = np.flatnonzero(np.isin(whole, rows))
            z_mm = self.z_mm[whole].astype(np.float64)
            here = np.arange(len(whole), dtype=np.int64)
            near = neighbour_stack(np.zeros(len(whole), dtype=object), z_mm, here, self.neighbours)[places]
            used = here if self.step.fit == "head" else np.unique(near)  # the square around the head is the series'
            found |= dict(
                zip(whole[places].tolist(), self._squares(whole[used])[np.searchsorted(used, near)], strict=True)
            )
        return torch.from_numpy(np.stack([found[row] for row in rows]))

    def _squares(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        (series,) = manifest_series(self.manifest, rows)
        stack = read_stack(series, [self.step])
        if stack.refused or stack.failures:
            reason = stack.refused or f"{stack.failures[0][0]}: {stack.failures[0][1]}"
            raise DataError(
                f"{self.manifest.root}, series {series.series_id}: {reason}", remedy="copy the data set again"
            )
        return stack.squares[self.step]


class Drawer:
    """Maps of any slices of a data set for one label, each series of a sequence run being read as a whole."""

    def __init__(
        self, slices: Slices, label: int, method: str, cells: int | None, device: torch.device, pool: Pool | None = None
    ) -> None:
        self.slices, self.pool = slices, pool
        self.label, self.method, self.cells, self.device = label, method, cells, device

    def raw(self, rows: NDArray[np.int64]) -> Tensor:
        """``(N, K, S, S)`` stored slices."""
        return self.slices.raw(tuple(rows.tolist()))

    def images(self, task: Classification, rows: NDArray[np.int64]) -> Tensor:
        """``(N, C, S, S)`` channels on the device."""
        with torch.no_grad():
            found: Tensor = cast(Any, task).channels(self.raw(rows).to(self.device))
        return found

    def scores(self, task: Classification, rows: NDArray[np.int64]) -> Scores:
        """The scores of one series."""
        return Scores(task, torch.from_numpy(self.slices.z_mm[rows]), self.pool)

    def draw(self, task: Classification, rows: NDArray[np.int64]) -> Tensor:
        """``(N, h, w)`` maps of some slices, on the CPU."""
        layer = None if self.method == "occlusion" else find_layer(task.backbone, self.cells)
        if Scores(task).of_series:
            parts = [self.slices.order[number] for number in dict.fromkeys(self.slices.series_of[rows].tolist())]
        else:
            parts = np.array_split(rows, max(1, -(-len(rows) // _BLOCK)))
        out: dict[int, Tensor] = {}
        for part in track(parts, "Drawing maps", len(parts), after=NOTICED):
            images = self.images(task, part)
            found = maps(self.scores(task, part), images, [self.label], method=self.method, layer=layer)[0].cpu()
            out |= {int(row): values for row, values in zip(part, found, strict=True)}
        return torch.stack([out[int(row)] for row in rows])

    def attribution(self, task: Classification, row: int, method: str = "gradient") -> tuple[NDArray[np.int64], Floats]:
        """The slices of a row's series in order, and their shares in its score."""
        whole = self.slices.order[self.slices.series_of[row]]
        found = slice_attribution(self.scores(task, whole), self.images(task, whole), method)
        return whole, _numpy(found[:, self.label])


def _numpy(values: Tensor) -> Floats:
    return np.asarray(values.detach().cpu().numpy(), dtype=np.float32)
