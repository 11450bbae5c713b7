"""Maps and slice attributions of one series, or of single slices, ready for overlays and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hemlearn.config_rules import hint
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.datamodules.volume import position_order
from hemlearn.errors import ConfigError
from hemlearn.explain.attribution import slice_attribution
from hemlearn.explain.cams import maps
from hemlearn.explain.layers import Layer, find_layer
from hemlearn.explain.scores import Scores
from hemlearn.tasks.base import Classification

Floats = NDArray[np.float32]
_BLOCK = 128  # slices drawn at once


@dataclass(frozen=True)
class SeriesMaps:
    """What a run saw in a series of T slices.

    Attributes:
        cams: Label -> ``(T, h, w)`` maps, at least 0; see :func:`hemlearn.explain.cams.maps`.
        attribution: Label -> ``(T,)`` shares; see :func:`hemlearn.explain.attribution.slice_attribution`.
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
) -> SeriesMaps:
    """Explain all slices of one series.

    Args:
        task: Network of a finished run, on the device that shall compute.
        raw: ``(T, K, S, S)`` stored slices, lowest first, as a data module hands them out.
        z_mm: ``(T,)`` positions, mm; None: unknown.
        labels: Labels to explain; None: all.
        method: gradcam | gradcam++ | occlusion.
        cells: Places wanted along a side of the maps; None: see :func:`hemlearn.explain.layers.find_layer`.
        attribution: gradient | attention | removal.

    Raises:
        ConfigError: An unknown label or method, or too many cells.
    """
    names = list(task.config.task.labels)
    chosen = label_places(names, labels)
    scores = Scores(task, z_mm)
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


class Drawer:
    """Maps of any slices of a data set, each series of a sequence run being read as a whole.

    Args:
        data: The slices.
        label: Index of the label.
        method: gradcam | gradcam++ | occlusion.
        cells: Places wanted along a side.
        device: Where to compute.
    """

    def __init__(self, data: SliceDataModule, label: int, method: str, cells: int | None, device: torch.device) -> None:
        self.slices = data.all_slices()
        self.label, self.method, self.cells, self.device = label, method, cells, device
        self.z_mm = torch.from_numpy(data.manifest.table["z_mm"].to_numpy(dtype=np.float32).copy())
        self.order = position_order(data)
        self.series_of = np.empty(len(self.slices), dtype=np.int64)
        for number, rows in enumerate(self.order):
            self.series_of[rows] = number

    def raw(self, rows: NDArray[np.int64]) -> Tensor:
        """``(N, K, S, S)`` stored slices."""
        return self.slices.__getitems__(rows.tolist())["image"]

    def images(self, task: Classification, rows: NDArray[np.int64]) -> Tensor:
        """``(N, C, S, S)`` channels on the device."""
        with torch.no_grad():
            found: Tensor = cast(Any, task).channels(self.raw(rows).to(self.device))
        return found

    def draw(self, task: Classification, rows: NDArray[np.int64]) -> Tensor:
        """``(N, h, w)`` maps of some slices, on the CPU."""
        layer = None if self.method == "occlusion" else find_layer(task.backbone, self.cells)
        if not Scores(task).of_series:
            scores = Scores(task)
            parts = np.array_split(rows, max(1, -(-len(rows) // _BLOCK)))
            drawn = [
                maps(scores, self.images(task, part), [self.label], method=self.method, layer=layer)[0]
                for part in parts
            ]
            return torch.cat([one.cpu() for one in drawn])
        out: dict[int, Tensor] = {}
        for number in dict.fromkeys(self.series_of[rows].tolist()):
            whole = self.order[number]
            scores = Scores(task, self.z_mm[whole])
            found = maps(scores, self.images(task, whole), [self.label], method=self.method, layer=layer)[0].cpu()
            out |= {int(row): values for row, values in zip(whole, found, strict=True)}
        return torch.stack([out[int(row)] for row in rows])

    def attribution(self, task: Classification, row: int, method: str = "gradient") -> tuple[NDArray[np.int64], Floats]:
        """The slices of a row's series in order, and their shares in its score."""
        whole = self.order[self.series_of[row]]
        found = slice_attribution(Scores(task, self.z_mm[whole]), self.images(task, whole), method)
        return whole, _numpy(found[:, self.label])


def _numpy(values: Tensor) -> Floats:
    return np.asarray(values.detach().cpu().numpy(), dtype=np.float32)
