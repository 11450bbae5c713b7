"""Stored slices -> network channels: CT windows, MR percentile scaling and neighbouring slices (2.5D).

A window with centre c and width w (HU) shows c - w/2 as 0 and c + w/2 as 1 (DICOM tags 0028,1050 and 0028,1051; here
the plain linear map). Everything runs on the device that holds the batch: the store keeps int16 HU, and only a batch
becomes float.

Channel order is slice-major: all windows of the lowest slice, then all windows of the next one. With three windows
and one neighbour on each side that is ``z-1: w1 w2 w3, z: w1 w2 w3, z+1: w1 w2 w3``, so each run of three channels
has the order that a repeated three-channel stem of a pretrained network expects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hemlearn.config.schema import ChannelsConfig
from hemlearn.plugins import supplied
from hemlearn.util.errors import ConfigError

UNITS = ("HU", "display", "signal")  # Hounsfield units | 8-bit grey levels of an image file | MR signal, no unit
_PERCENTILE_PIXELS = 1 << 16  # more pixels than this per image are thinned on a regular grid before sorting
_TONE_PIXELS = 1 << 14  # the same for the tone, whose quartiles need fewer
_TISSUE = (0.08, 0.92)  # of the window: what lies between is neither air nor bone
_TONE_GAIN = 3.0  # the contrast is raised or lowered by this factor at most
_LEAST_TISSUE = 0.02  # share of an image; with less of it nothing is known of its tone


class Channels(nn.Module):
    """Maps a batch of stored slices to input channels in [0, 1].

    ========  ============  =========================================================================
    kind      unit          result
    ========  ============  =========================================================================
    ct        HU            one channel per window and slice
    ct        display       grey level / 255, one channel per slice (its window was applied by whoever
                            made the image; several windows cannot be had back)
    mr        signal,       percentile scaling per sample over its slices together, clipped to [0, 1]
              display
    ========  ============  =========================================================================

    Args:
        kind: ``ct`` or ``mr``.
        windows: ``[centre, width]`` in HU, one per channel (ct).
        neighbours: Slices added on each side (2.5D).
        percentiles: What becomes 0 and 1 (mr).
        tone: Median and interquartile range that the tissue of each sample is brought to (ct, one window); None: as
            the window shows it.
        unit: What the stored numbers are: ``HU``, ``display`` or ``signal``; None until :meth:`adopt` says so.

    Attributes:
        in_slices: Number K of slices expected per sample, ``2 * neighbours + 1``.
        out_channels: Number C of channels made.

    Raises:
        ConfigError: Unknown kind, malformed window or percentiles, or a kind that does not suit the unit.

    Examples:
        >>> brain = Channels(windows=[[40, 80]], unit="HU")
        >>> brain(torch.tensor([[[[0.0, 40.0, 80.0, 500.0]]]])).flatten().tolist()
        [0.0, 0.5, 1.0, 1.0]
    """

    low: Tensor
    width: Tensor

    def __init__(
        self,
        kind: str = "ct",
        windows: Sequence[Sequence[float]] = ((40.0, 80.0),),
        neighbours: int = 0,
        percentiles: Sequence[float] = (1.0, 99.0),
        tone: Sequence[float] | None = None,
        *,
        unit: str | None = None,
    ) -> None:
        super().__init__()
        options = ChannelsConfig(
            kind=kind,
            windows=[list(w) for w in windows],
            neighbours=neighbours,
            percentiles=list(percentiles),
            tone=None if tone is None else list(tone),
        )
        self.tone = options.tone
        self.kind, self.windows = kind, options.windows
        self.in_slices = 2 * neighbours + 1
        self.percentiles = (percentiles[0] / 100.0, percentiles[1] / 100.0) if kind == "mr" else (0.0, 1.0)
        # Not part of a checkpoint's weights: the configuration stored beside them says the same.
        self.register_buffer("low", torch.zeros(1, 1, 1, 1, 1), persistent=False)
        self.register_buffer("width", torch.full((1, 1, 1, 1, 1), 255.0), persistent=False)
        self.out_channels = self.in_slices * (len(self.windows) if kind == "ct" else 1)
        self.unit = ""  # not known yet
        if unit is not None:
            self.adopt(unit)

    def adopt(self, unit: str) -> None:
        """Take the unit of the data: ``HU``, ``display`` or ``signal``.

        Raises:
            ConfigError: The kind or the windows do not suit it.
        """
        if unit not in UNITS:
            raise ValueError(f"unit={unit!r}: expected one of {UNITS}")
        _check_unit(self.kind, self.windows, unit)
        self.unit = unit
        if self.kind == "ct" and unit == "HU":
            windows = torch.tensor(self.windows, dtype=torch.float32, device=self.low.device)
            self.low = (windows[:, 0] - windows[:, 1] / 2).view(1, 1, -1, 1, 1)
            self.width = windows[:, 1].view(1, 1, -1, 1, 1)

    def forward(self, raw: Tensor) -> Tensor:
        """Channels of a batch.

        Args:
            raw: (B, K, H, W) stored numbers of any integer or float type, lowest slice first, K = ``in_slices``.

        Returns:
            (B, C, H, W) float32 in [0, 1], C = ``out_channels``.
        """
        if raw.ndim != 4 or raw.shape[1] != self.in_slices:
            raise ValueError(f"expected (B, {self.in_slices}, H, W), got {tuple(raw.shape)}")
        if not self.unit:
            raise ConfigError(
                "the unit of the slices is not known", remedy="give unit='HU', 'display' or 'signal', or a data module"
            )
        values = raw.to(torch.float32)
        if self.kind == "mr":
            return _scale_percentiles(values, *self.percentiles)
        # Subtracting before dividing keeps whole HU exact; the result is a new tensor, so it may be changed in place.
        windowed = (values.unsqueeze(2) - self.low).div_(self.width).clamp_(0.0, 1.0)
        made = windowed.flatten(1, 2)
        return made if self.tone is None else _bring_tone(made, *self.tone)

    def of_series(self, raw: Tensor) -> Tensor:
        """Channels (S, C, H, W) of a whole series (S, 1, H, W), of which percentiles are taken together.

        Slice by slice the air above a head would become as bright as the head.
        """
        if self.kind != "mr":
            made: Tensor = self(raw)
            return made
        return _scale_percentiles(raw.to(torch.float32).transpose(0, 1), *self.percentiles).transpose(0, 1)

    def extra_repr(self) -> str:
        """Kind, unit and the numbers of slices and channels, as shown by ``print``."""
        return f"kind={self.kind}, unit={self.unit}, in_slices={self.in_slices}, out_channels={self.out_channels}"


def build_channels(spec: Any, unit: str | None) -> Channels:
    """The channels of group ``channels``, or a module of one's own.

    A module of one's own maps (B, K, H, W) stored numbers to (B, C, H, W) in [0, 1] and has the attribute
    ``out_channels``; ``in_slices``, ``kind``, ``neighbours`` and ``adopt(unit)`` where it needs them.

    Args:
        spec: Option object of the group; a module, class or node ``{_target_: ...}``, which are offered ``unit``.
        unit: HU, display or signal; None while it is not known.

    Raises:
        ConfigError: As :class:`Channels`, or a module without ``out_channels``.
    """
    own: Any = supplied(spec, "channels", kind=nn.Module, unit=unit)
    if own is None:
        return Channels(spec.kind, spec.windows, spec.neighbours, spec.percentiles, spec.tone, unit=unit)
    if not isinstance(getattr(own, "out_channels", None), int):
        raise ConfigError(
            f"channels ({type(own).__name__}): it does not say how many channels it makes",
            remedy="give your module the attribute out_channels",
        )
    for key, value in (("in_slices", 1), ("kind", "ct"), ("unit", unit), ("adopt", _nothing)):
        if not hasattr(own, key):
            setattr(own, key, value)
    if unit is not None:
        own.adopt(unit)
    return own  # type: ignore[no-any-return]


def _nothing(unit: str) -> None:
    """A module of one's own that takes every unit."""


def _scale_percentiles(values: Tensor, low: float, high: float) -> Tensor:
    """Scale each sample (all its slices together) so that its two percentiles become 0 and 1, clipped.

    Percentiles are taken over pixels that are not exactly 0: zeros are padding or a removed background, and counting
    them would make the scale depend on how much of the square an image fills. Above 65,536 pixels per sample a
    regular grid of them is sorted instead of all. A sample without contrast becomes 0.
    """
    step = max(1, math.ceil(math.sqrt(values[0].numel() / _PERCENTILE_PIXELS)))
    flat = values[..., ::step, ::step].flatten(1)
    used = flat != 0
    count = used.sum(1, keepdim=True)
    # Unused pixels sort to the front, so the used ones occupy the last `count` places of each row.
    ordered = torch.where(used, flat, -torch.inf).sort(1).values
    bounds = [_order_statistic(ordered, count, share) for share in (low, high)]
    lower, upper = (bound.view(-1, 1, 1, 1) for bound in bounds)
    span = upper - lower
    scaled = (values - lower) / span
    return torch.where(span > 0, scaled, 0.0).clamp_(0.0, 1.0)


def _bring_tone(images: Tensor, level: float, spread: float) -> Tensor:
    """Images whose tissue has the median ``level`` and the interquartile range ``spread``, all slices of one alike.

    Air and bone stay 0 and 1, and what lies between them and tissue goes over smoothly, so that the order of grey
    levels is kept. An image with hardly any tissue stays as it is.

    Args:
        images: (B, C, H, W) in [0, 1].
        level: Wanted median.
        spread: Wanted interquartile range; reached as far as a factor of 3.
    """
    low, high = _TISSUE
    step = max(1, math.ceil(math.sqrt(images[0].numel() / _TONE_PIXELS)))
    flat = images[..., ::step, ::step].flatten(1)
    used = (flat > low) & (flat < high)
    count = used.sum(1, keepdim=True)
    ordered = torch.where(used, flat, -torch.inf).sort(1).values
    first, middle, third = (_order_statistic(ordered, count, share).view(-1, 1, 1, 1) for share in (0.25, 0.5, 0.75))
    gain = (spread / (third - first).clamp_min(1e-3)).clamp(1 / _TONE_GAIN, _TONE_GAIN)
    made = (level + (images - middle) * gain).clamp(0.0, 1.0) * (images / low).clamp(0.0, 1.0)
    made = made + (1.0 - made) * ((images - high) / (1.0 - high)).clamp(0.0, 1.0)
    return torch.where((count >= _LEAST_TISSUE * flat.shape[1]).view(-1, 1, 1, 1), made, images)


def _order_statistic(ordered: Tensor, count: Tensor, share: float) -> Tensor:
    """Linear interpolation between the neighbouring order statistics of the last ``count`` values of each row."""
    last = ordered.shape[1] - 1
    place = (ordered.shape[1] - count).to(torch.float32) + share * (count - 1).to(torch.float32)
    below = place.floor().long().clamp(0, last)
    above = (below + 1).clamp(max=last)
    fraction = (place - below).to(ordered.dtype)
    start = ordered.gather(1, below)
    return torch.where(count > 0, start + fraction * (ordered.gather(1, above) - start), 0.0)


def _check_unit(kind: str, windows: list[list[float]], unit: str) -> None:
    if kind == "mr" and unit == "HU":
        raise ConfigError(
            "channels.kind=mr on CT slices in HU",
            remedy="use channels=brain or another CT choice; percentiles would discard the HU scale",
        )
    if kind == "ct" and unit == "signal":
        raise ConfigError("channels.kind=ct on MR slices, which have no HU", remedy="use channels=mr")
    if kind == "ct" and unit == "display" and len(windows) > 1:
        raise ConfigError(
            f"channels.windows: {len(windows)} windows on images that hold display grey levels, not HU",
            remedy="use channels=brain (one window, shown as stored), or data that keeps HU (DICOM, NIfTI)",
        )
