"""A finished run as one module: preprocessing, network, test-time flips, probabilities and calibration in one graph.

And that module in words and numbers, as the description beside an exported file has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hemlearn import __version__
from hemlearn.config.schema import Config, is_volume3d
from hemlearn.data.preprocess import FITS
from hemlearn.data.readers import AIR
from hemlearn.evaluation.bootstrap import CLIP
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.label_maps import LabelMap
from hemlearn.evaluation.pooling import recipe
from hemlearn.reports.model_card import INTENDED_USE
from hemlearn.tasks.base import Classification
from hemlearn.tasks.slices import SliceClassification
from hemlearn.tasks.volumes import VolumeClassification, smoothed
from hemlearn.transforms.augment import side_permutation
from hemlearn.util.errors import ConfigError, RunError
from hemlearn.util.files import now

Arrays = dict[str, NDArray[Any]]
Caller = Callable[[Arrays], Arrays]  # a model as a function of arrays by input name

# --- Resizing of slices as tensor operations: the numbers of :func:`hemlearn.data.preprocess.resize_square`.


_LIMITS = {"HU": (-32768, 32767), "signal": (-32768, 32767), "display": (0, 255)}  # of the slice store's types
_FIXED_POINT = 2.0**22  # Pillow resamples 8-bit images with whole numbers of this scale
_Place = tuple[Tensor, Tensor]  # first position and number of positions


class SquareResize(nn.Module):
    """Slices of any size to ``(..., size, size)``, as the slice store holds them.

    Args:
        size: Side of the result, pixels.
        fit: ``letterbox``, ``squash`` or ``crop``, or ``head``: the square around the head is cut out before, so what
            remains is to stretch it.
        unit: ``HU``, ``signal`` or ``display``.

    Raises:
        ConfigError: ``fit`` is none of these.
    """

    def __init__(self, size: int, fit: str, unit: str) -> None:
        super().__init__()
        if fit not in (*FITS, "head"):
            raise ConfigError(f"data.fit is {fit!r}", remedy=f"use one of {', '.join(FITS)}, head")
        self.size, self.fit, self.unit = size, fit, unit

    def forward(self, x: Tensor) -> Tensor:
        """``(..., H, W)`` of any type to ``(..., size, size)`` float32 holding whole numbers.

        Values are first rounded and limited as in the store (int16 for HU and signal, uint8 for display).
        """
        values = x.to(torch.float64).round().clamp(*_LIMITS[self.unit])
        rows, columns = (torch.arange(values.shape[axis], dtype=torch.float64, device=x.device) for axis in (-2, -1))
        height, width = rows[-1] + 1, columns[-1] + 1
        down, used_rows = self._matrix(rows, *self._places(height, width))
        across, used_columns = self._matrix(columns, *self._places(width, height))
        if self.unit == "display":
            out = _eight_bit(down, _eight_bit(across, values.mT).mT)
        else:
            # Pillow keeps float32 between its two passes.
            out = torch.matmul(values, across.mT).to(torch.float32).to(torch.float64)
            out = torch.matmul(down, out).to(torch.float32).round().clamp(*_LIMITS[self.unit])
        inside = used_rows[:, None] & used_columns[None, :]
        return torch.where(inside, out.to(torch.float32), float(AIR[self.unit]))

    def _places(self, length: Tensor, other: Tensor) -> tuple[_Place, _Place]:
        """What is taken of an axis of the slice, and where it lies in the result; ``other``: the other axis' length."""
        zero, whole = torch.zeros_like(length), torch.full_like(length, float(self.size))
        if self.fit == "letterbox":
            count = (length * (whole / torch.maximum(length, other))).round().clamp_min(1.0)
            return (zero, length), (((whole - count) / 2).floor(), count)
        if self.fit == "crop":
            shortest = torch.minimum(length, other)
            return (((length - shortest) / 2).floor(), shortest), (zero, whole)
        return (zero, length), (zero, whole)

    def _matrix(self, place: Tensor, taken: _Place, put: _Place) -> tuple[Tensor, Tensor]:
        """Weights ``(size, n)`` of one axis, and which rows ``(size,)`` hold image and not padding."""
        target = torch.arange(self.size, dtype=torch.float64, device=place.device) - put[0]
        source = (place - taken[0])[None, :]
        scale = taken[1] / put[1]
        shrinks = scale > 1
        filter_scale = scale.clamp_min(1.0)
        support = torch.where(shrinks, 0.5, 1.0) * filter_scale
        centre = ((target + 0.5) * scale)[:, None]
        near = (source >= (centre - support + 0.5).trunc().clamp_min(0.0)) & (
            source < torch.minimum((centre + support + 0.5).trunc(), taken[1])
        )
        away = (source - centre + 0.5) * (1.0 / filter_scale)
        box = ((away > -0.5) & (away <= 0.5)).to(torch.float64)
        triangle = (1.0 - away.abs()).clamp_min(0.0)
        used = (target >= 0) & (target < put[1])
        weight = torch.where(near & used[:, None], torch.where(shrinks, box, triangle), 0.0)
        total = weight.sum(1, keepdim=True)
        return weight / torch.where(total > 0, total, 1.0), used


def _eight_bit(matrix: Tensor, values: Tensor) -> Tensor:
    """One pass of Pillow over 8-bit pixels: weights and sums are whole numbers, exact in float64."""
    whole = torch.matmul((matrix * _FIXED_POINT + 0.5).floor(), values)
    return ((whole + _FIXED_POINT / 2) / _FIXED_POINT).floor().clamp(0.0, 255.0)


# A graph is traced for sizes that are not 0 or 1. Sequence models look at up to S - 1 places and their results do not
# depend on padding, so two padded places let a traced graph take series of any length.
_PADDING = 2


class ProbabilityMap(nn.Module):
    """The calibration of one level as tensor operations, in float64 as :meth:`Calibration.apply`.

    ``maps`` are in the order of the task's labels; ``kind`` is binary, multiclass or multilabel.
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
            values = [float(getattr(item, name)) if name != "share" or item.steps else 0.0 for item in items]
            self._constant(name, values)
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
    """Slices as files hold them to calibrated probabilities; ``calibration=None``: as the network gives them.

    It takes over ``task``, in evaluation mode: augmentation and losses are taken off it.
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
    """One series as files hold it to calibrated probabilities of its slices and of itself; as :class:`SliceModel`."""

    outputs = ("slice_probability", "series_probability")

    def __init__(self, config: Config, task: VolumeClassification, calibration: Calibration | None) -> None:
        super().__init__()
        self.resize = SquareResize(config.data.image_size, config.data.fit, task.channels.unit)
        task.augment = task.slice_loss = task.series_loss = nn.Identity()  # type: ignore[assignment]
        self.task = task
        self.encoder = task.encoder
        self.calibrate_slices = probability_map(calibration, "slice")
        self.calibrate_series = probability_map(calibration, "series")
        self.scores_slices, self.smoothing = config.task.scores_slices, config.sequence.smoothing
        labels, sides = config.task.labels, config.task.sides
        self.orders = [list(range(len(labels))), *[side_permutation(labels, sides)] * len(config.task.tta)]
        self.inputs = ("image", "z_mm") if task.head.reads_positions else ("image",)

    def forward(self, image: Tensor, z_mm: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(S, L)`` and ``(L,)`` probabilities of one series, lowest slice first.

        Args:
            image: ``(S, N, H, W)`` slices with their neighbours.
            z_mm: ``(S,)`` positions along the slice normal, mm; NaN where unknown. An input where the sequence model
                reads positions: with ``sequence.position``, ``smooth_attention``, and one's own that takes them.
        """
        views = self.encoder(self.resize(image))
        found = [self._view(views[:, index], z_mm, order) for index, order in enumerate(self.orders)]
        slices, series = (torch.stack(parts).mean(0) for parts in zip(*found, strict=True))
        if not self.scores_slices:  # their own output was never trained
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
    """The module that is exported, in evaluation mode on the CPU. It takes over ``task``.

    Raises:
        ConfigError: A 3D network, whose resampling no format holds; or TransMIL, whose square grows with the series.
    """
    if "transmil" in config.sequence.name.split("+"):
        raise ConfigError(
            f"sequence.name={config.sequence.name}: not exported, since TransMIL's square grows with the series",
            remedy="predict with the run folder, or export a run of another sequence model",
        )
    if is_volume3d(config.backbone):
        raise ConfigError(
            f"backbone.name={config.backbone.name}: 3D networks are not exported (resampling to mm is a part of them)",
            remedy="predict with the run folder, or export a run of a 2D backbone",
        )
    kind: Any = SliceModel if isinstance(task, SliceClassification) else SeriesModel
    model: SliceModel | SeriesModel = kind(config, task.cpu(), calibration)
    return model.eval().requires_grad_(False)


# --- What an exported model takes, does itself, leaves to its caller and gives, in words and numbers.


_UNITS = {
    "HU": "Hounsfield units",
    "signal": "MR signal as stored, rescaled by the file's own slope and intercept",
    "display": "grey levels from 0 (black) to 255 (white)",
}
_FITS = {
    "letterbox": "resizing to {0} x {0} pixels, aspect kept, padded with air",
    "squash": "resizing to {0} x {0} pixels, both sides stretched",
    "crop": "the largest central square, resized to {0} x {0} pixels",
    "head": "resizing of the given square to {0} x {0} pixels",
}


def axes(model: SliceModel | SeriesModel) -> dict[str, list[int | str]]:
    """Name -> shape of every input and output, free sizes by name."""
    labels, neighbours = len(model.task.labels), model.task.channels.in_slices
    first = "batch" if isinstance(model, SliceModel) else "slices"
    known: dict[str, list[int | str]] = {
        "image": [first, neighbours, "height", "width"],
        "z_mm": [first],
        "probability": [first, labels],
        "slice_probability": [first, labels],
        "series_probability": [labels],
    }
    return {name: known[name] for name in (*model.inputs, *model.outputs)}


def describe(
    config: Config,
    model: SliceModel | SeriesModel,
    calibration: Calibration | None,
    form: str,
    dtype: str,
    run: dict[str, Any],
) -> dict[str, Any]:
    """The description that is stored in the model (``form``, input ``dtype``) and beside it.

    ``calibration`` are the maps inside, None: none; ``run`` holds name, hash and thresholds of the run, and the maps
    of its series and patients, and weights of ``logistic``, where these are put together from slices.
    """
    shapes, unit = axes(model), model.task.channels.unit
    types = {"image": dtype, "z_mm": "float32"}
    return {
        "format": form,
        "hemlearn": __version__,
        "made": now(),
        "run": {key: run[key] for key in ("name", "hash")},
        "intended_use": INTENDED_USE,
        "labels": list(config.task.labels),
        "kind": config.task.kind,
        "unit": unit,
        "inputs": {
            name: {"shape": shapes[name], "type": types[name], "meaning": _input(name, config, unit)}
            for name in model.inputs
        },
        "outputs": {
            name: {"shape": shapes[name], "type": "float32", "meaning": _output(name, config)} for name in model.outputs
        },
        "inside": _inside(config, model, calibration, unit),
        "caller": _caller(config, model, unit, run),
        "thresholds": run["thresholds"],
        **{key: run[key] for key in ("pooling", "units") if run.get(key)},
    }


def _input(name: str, config: Config, unit: str) -> str:
    if name == "z_mm":
        return "position of each slice along the slice normal, mm; NaN where unknown"
    count, whole = config.channels.neighbours, config.data.fit != "head"
    what = "whole slices in the size of their files" if whole else "the square cut out around the head"
    return f"{_UNITS[unit]}, {what}" + (f"; per slice {count} below it, itself, {count} above it" if count else "")


def _output(name: str, config: Config) -> str:
    labels = "one column per label, in the order of the labels"
    if name == "series_probability":
        return f"probability of the whole series; {labels.replace('column', 'value')}"
    if name == "slice_probability" and not config.task.scores_slices:
        return f"the series' probability on each of its slices (the run's labels describe series); {labels}"
    return f"probability of each slice; {labels}"


def _inside(config: Config, model: SliceModel | SeriesModel, calibration: Calibration | None, unit: str) -> list[str]:
    channels, task = config.channels, config.task
    limits = "0 to 255" if unit == "display" else "-32768 to 32767"
    steps = [f"rounding to whole numbers, limits {limits}", _FITS[config.data.fit].format(config.data.image_size)]
    if channels.kind == "mr":
        low, high = channels.percentiles
        steps.append(f"scaling of percentiles {low:g} and {high:g} of the pixels that are not 0 to [0, 1]")
    elif unit == "HU":
        windows = ", ".join(f"{centre:g}/{width:g}" for centre, width in channels.windows)
        steps.append(f"CT windows (centre/width in HU) {windows} to [0, 1]")
    else:
        steps.append("grey level / 255")
    if channels.tone is not None:
        level, spread = channels.tone
        steps.append(f"tone: tissue to a median of {level:g} and an interquartile range of {spread:g}")
    statistics = (model.task.backbone.mean, model.task.backbone.std)
    mean, std = (" ".join(f"{value:.4g}" for value in part.flatten().tolist()) for part in statistics)
    steps.append(f"normalisation by mean {mean} and standard deviation {std} per channel")
    steps.append(f"network {config.backbone.name}")
    if isinstance(model, SeriesModel):
        features = config.features
        chosen = "all features" if features.name == "none" else f"{features.name} to {model.task.features.k} features"
        steps += [f"feature selection: {chosen}", f"sequence model {config.sequence.name}"]
    if task.tta:
        steps.append(f"mean over the plain image and its flips: {', '.join(task.tta)}")
    steps.append("softmax" if task.kind == "multiclass" else "sigmoid")
    method = calibration.method if calibration is not None else "none"
    steps.append(f"calibration: {method}" + (", fitted on validation patients" if method != "none" else ""))
    return steps


def _caller(config: Config, model: SliceModel | SeriesModel, unit: str, run: Mapping[str, Any]) -> list[str]:
    steps = {
        "HU": "decode the file to HU: RescaleSlope and RescaleIntercept applied, pixel padding set to -1000",
        "signal": "decode the file to signal: rescale applied where the file has one, pixel padding set to 0",
        "display": "decode the image to 8-bit grey (ITU-R BT.601), transparency on black",
    }
    found = [steps[unit] + "; as hemlearn.data.readers does"]
    if config.data.fit == "head":
        found.append(
            "cut the square around the head out of all slices of a series, filled with air beyond the image "
            "(hemlearn.data.preprocess: head_box on the brain window, series_square, cut_square)"
        )
    if config.data.band is not None:
        low, high = config.data.band
        found.append(f"keep the slices between {low:g} and {high:g} of the length of each series, from below")
    series = isinstance(model, SeriesModel)
    if series or config.channels.neighbours:
        found.append("order the slices of a series by position along the slice normal, lowest first")
    if config.channels.neighbours:
        found.append("stack each slice with its neighbours; at the ends of a series repeat the last slice")
    if series:
        found.append("give one series per call")
    if not series or run.get("units"):
        how = "mean" if config.task.aggregate == "model" else config.task.aggregate
        found.append(f"for a series or patient {recipe(how, config.task.top_k)}, as the run's metrics do")
        if not run.get("units"):
            found[-1] += ": a score where it has several, no probability"
        elif config.task.kind == "multiclass":
            found.append("its probabilities are softmax(slope * log(p)), with the slope of `units`")
        else:
            found.append("its probability is 1 / (1 + exp(-(slope * log(p / (1 - p)) + shift))), by `units`")
    yes_or_no = run["thresholds"] and config.task.kind != "multiclass"
    return found + (["compare with the thresholds where a yes or no is needed"] if yes_or_no else [])
