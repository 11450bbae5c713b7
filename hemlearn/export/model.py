"""A finished run as one module: preprocessing, network, test-time flips, probabilities and calibration in one graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hemlearn.errors import RunError
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.calibration_maps import CLIP, LabelMap
from hemlearn.export.resize import SquareResize
from hemlearn.schema import Config
from hemlearn.tasks.base import Classification, flip_order
from hemlearn.tasks.slice_classification import SliceClassification
from hemlearn.tasks.volume_classification import VolumeClassification, smoothed

# A graph is traced for sizes that are not 0 or 1. Sequence models look at up to S - 1 places and their results do not
# depend on padding, so two padded places let a traced graph take series of any length.
_PADDING = 2


class ProbabilityMap(nn.Module):
    """The calibration of one level as tensor operations, in float64 as :meth:`Calibration.apply`.

    Args:
        maps: Label -> map, in the order of the task's labels.
        kind: binary | multiclass | multilabel.
    """

    slope: Tensor
    centre: Tensor
    shift: Tensor
    share: Tensor
    untouched: Tensor
    start: Tensor
    knot: Tensor
    width: Tensor
    rise: Tensor

    def __init__(self, maps: Mapping[str, LabelMap], kind: str) -> None:
        super().__init__()
        items = list(maps.values())
        self.multiclass, self.isotonic = kind == "multiclass", any(item.steps for item in items)
        for name in ("slope", "centre", "shift", "share"):
            self._constant(
                name, [float(getattr(item, name)) if name != "share" or item.steps else 0.0 for item in items]
            )
        plain = [item.slope == 1 and item.shift == 0 and not item.steps for item in items]
        self.register_buffer("untouched", torch.tensor(plain))
        # An isotonic map is a sum of ramps: from each knot over `width` it rises by `rise`.
        count = max(1, *(len(item.steps) - 1 for item in items)) if items else 1
        ramps: list[list[tuple[float, float, float]]] = []
        for item in items:
            pairs = zip(item.steps[:-1], item.steps[1:], strict=True)
            own = [(low[0], max(high[0] - low[0], 1e-300), high[1] - low[1]) for low, high in pairs]
            ramps.append(own + [(0.0, 1.0, 0.0)] * (count - len(own)))
        self._constant("start", [item.steps[0][1] if item.steps else 0.0 for item in items])
        for index, name in enumerate(("knot", "width", "rise")):
            self._constant(name, [[ramp[index] for ramp in own] for own in ramps])

    def _constant(self, name: str, values: Any) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def forward(self, p: Tensor) -> Tensor:
        """``(..., L)`` probabilities, float32."""
        given = p.to(torch.float64)
        if self.multiclass:
            mapped = (self.slope * given.clamp(CLIP, 1.0).log()).log_softmax(-1).exp()
            return mapped.clamp(0.0, 1.0).to(torch.float32)
        safe = given.clamp(CLIP, 1 - CLIP)
        odds = safe.log() - (1 - safe).log()
        mapped = (self.centre + self.slope * (odds - self.centre) + self.shift).sigmoid()
        if self.isotonic:
            ramps = ((given[..., None] - self.knot) / self.width).clamp(0.0, 1.0) * self.rise
            mapped = self.share * (self.start + ramps.sum(-1)) + (1 - self.share) * mapped
        return torch.where(self.untouched, given, mapped).clamp(0.0, 1.0).to(torch.float32)


def probability_map(calibration: Calibration | None, level: str) -> nn.Module:
    """The map of ``slice`` or ``series`` probabilities; the identity where there is no calibration.

    Raises:
        RunError: The calibration has no map of that level.
    """
    if calibration is None or calibration.method == "none":
        return nn.Identity()
    found = calibration.maps.get(level)
    if found is None:
        raise RunError(
            f"calibration.json: no map of {level} probabilities, only of {', '.join(calibration.maps)}",
            remedy="export with calibrated=false, or train the run again",
        )
    return ProbabilityMap({label: found[label] for label in calibration.labels}, calibration.kind)


class SliceModel(nn.Module):
    """Slices as files hold them to calibrated probabilities.

    Args:
        config: Of the run.
        task: Its network, in evaluation mode; augmentation and losses are taken off it.
        calibration: Its maps; None: probabilities as the network gives them.
    """

    outputs = ("probability",)
    inputs = ("image",)

    def __init__(self, config: Config, task: SliceClassification, calibration: Calibration | None) -> None:
        super().__init__()
        self.resize = SquareResize(config.data.image_size, config.data.fit, task.channels.unit)
        task.augment, task.loss = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.task = task
        self.calibrate = probability_map(calibration, "slice")

    def forward(self, image: Tensor) -> Tensor:
        """``(B, L)`` probabilities of ``(B, N, H, W)`` slices with their neighbours."""
        return cast(Tensor, self.calibrate(self.task.probabilities(self.resize(image))))


class SeriesModel(nn.Module):
    """One series as files hold it to calibrated probabilities of its slices and of itself.

    Args:
        config: Of the run.
        task: Its network, in evaluation mode; augmentation and losses are taken off it.
        calibration: Its maps; None: probabilities as the network gives them.
    """

    outputs = ("slice_probability", "series_probability")

    def __init__(self, config: Config, task: VolumeClassification, calibration: Calibration | None) -> None:
        super().__init__()
        self.resize = SquareResize(config.data.image_size, config.data.fit, task.channels.unit)
        task.augment = task.slice_loss = task.series_loss = nn.Identity()  # type: ignore[assignment]
        self.task = task
        self.encoder = task.encoder
        self.calibrate_slices = probability_map(calibration, "slice")
        self.calibrate_series = probability_map(calibration, "series")
        self.level, self.smoothing = config.task.level, config.sequence.smoothing
        views = len(config.task.tta)
        plain = list(range(len(config.task.labels)))
        self.orders = [plain] + [flip_order(config.task.labels, config.task.sides)] * views
        self.inputs = ("image", "z_mm") if config.sequence.position else ("image",)

    def forward(self, image: Tensor, z_mm: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(S, L)`` and ``(L,)`` probabilities of one series, lowest slice first.

        Args:
            image: ``(S, N, H, W)`` slices with their neighbours.
            z_mm: ``(S,)`` positions along the slice normal, mm; NaN where unknown. Read by runs with
                ``sequence.position`` alone.
        """
        views = self.encoder(self.resize(image))
        found = [self._view(views[:, index], z_mm, order) for index, order in enumerate(self.orders)]
        slices, series = (torch.stack(parts).mean(0) for parts in zip(*found, strict=True))
        if self.level != "slice":  # the slices' own output was never trained
            slices = series.expand(slices.shape)
        return self.calibrate_slices(slices), self.calibrate_series(series)

    def _view(self, vector: Tensor, z_mm: Tensor | None, order: list[int]) -> tuple[Tensor, Tensor]:
        """``(S, L)`` and ``(L,)`` probabilities of one test-time view, averaged over the members."""
        task, width = self.task, self.task.backbone.embedding_dim
        count = vector.shape[0]
        lengths = torch.arange(count, device=vector.device)[-1:] + 1
        vector = functional.pad(vector, (0, 0, 0, _PADDING))
        features = smoothed(task.features(vector[:, :width])[None], lengths, self.smoothing)
        own = task.activate(vector[:, width:])[None] if task.slice_head is not None else None
        place = None if z_mm is None else functional.pad(z_mm, (0, _PADDING), value=torch.nan)[None]
        out = task.head.each(features, lengths, own, place)
        slices, series = (task.activate(value).mean(0)[0] for value in (out.slices, out.series))
        return slices[:count, order], series[order]


def exportable(config: Config, task: Classification, calibration: Calibration | None) -> SliceModel | SeriesModel:
    """The module that is exported, in evaluation mode on the CPU. It takes over ``task``."""
    kind: Any = SliceModel if isinstance(task, SliceClassification) else SeriesModel
    model: SliceModel | SeriesModel = kind(config, task.cpu(), calibration)
    return model.eval().requires_grad_(False)
