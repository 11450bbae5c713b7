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

import torch
from torch import Tensor, nn

from hemlearn.config.schema import ChannelsConfig
from hemlearn.util.errors import ConfigError, hint

KINDS = ("ct", "mr")
UNITS = ("HU", "display", "signal")  # Hounsfield units | 8-bit grey levels of an image file | MR signal, no unit
_PERCENTILE_PIXELS = 1 << 16  # more pixels than this per image are thinned on a regular grid before sorting


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
        cfg: Group ``channels``.
        unit: What the stored numbers are: ``"HU"``, ``"display"`` or ``"signal"``.

    Attributes:
        in_slices: Number K of slices expected per sample, ``2 * neighbours + 1``.
        out_channels: Number C of channels made.

    Raises:
        ConfigError: Unknown kind, malformed window or percentiles, or a kind that does not suit the unit.
    """

    low: Tensor
    width: Tensor

    def __init__(self, cfg: ChannelsConfig, unit: str) -> None:
        super().__init__()
        if unit not in UNITS:
            raise ValueError(f"unit={unit!r}: expected one of {UNITS}")
        _check(cfg, unit)
        self.kind = cfg.kind
        self.unit = unit
        self.in_slices = 2 * cfg.neighbours + 1
        self.percentiles = (cfg.percentiles[0] / 100.0, cfg.percentiles[1] / 100.0) if cfg.kind == "mr" else (0.0, 1.0)
        if cfg.kind == "ct" and unit == "HU":
            windows = torch.tensor(cfg.windows, dtype=torch.float32)
            low, width = windows[:, 0] - windows[:, 1] / 2, windows[:, 1]
        else:
            low, width = torch.zeros(1), torch.full((1,), 255.0)
        # Not part of a checkpoint's weights: the configuration stored beside them says the same.
        self.register_buffer("low", low.view(1, 1, -1, 1, 1), persistent=False)
        self.register_buffer("width", width.view(1, 1, -1, 1, 1), persistent=False)
        self.out_channels = self.in_slices * int(low.numel())

    def forward(self, raw: Tensor) -> Tensor:
        """Channels of a batch.

        Args:
            raw: (B, K, H, W) stored numbers of any integer or float type, lowest slice first, K = ``in_slices``.

        Returns:
            (B, C, H, W) float32 in [0, 1], C = ``out_channels``.
        """
        if raw.ndim != 4 or raw.shape[1] != self.in_slices:
            raise ValueError(f"expected (B, {self.in_slices}, H, W), got {tuple(raw.shape)}")
        values = raw.to(torch.float32)
        if self.kind == "mr":
            return _scale_percentiles(values, *self.percentiles)
        # Subtracting before dividing keeps whole HU exact; the result is a new tensor, so it may be changed in place.
        windowed = (values.unsqueeze(2) - self.low).div_(self.width).clamp_(0.0, 1.0)
        return windowed.flatten(1, 2)

    def extra_repr(self) -> str:
        """Kind, unit and the numbers of slices and channels, as shown by ``print``."""
        return f"kind={self.kind}, unit={self.unit}, in_slices={self.in_slices}, out_channels={self.out_channels}"


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


def _order_statistic(ordered: Tensor, count: Tensor, share: float) -> Tensor:
    """Linear interpolation between the neighbouring order statistics of the last ``count`` values of each row."""
    last = ordered.shape[1] - 1
    place = (ordered.shape[1] - count).to(torch.float32) + share * (count - 1).to(torch.float32)
    below = place.floor().long().clamp(0, last)
    above = (below + 1).clamp(max=last)
    fraction = (place - below).to(ordered.dtype)
    start = ordered.gather(1, below)
    return torch.where(count > 0, start + fraction * (ordered.gather(1, above) - start), 0.0)


def _check(cfg: ChannelsConfig, unit: str) -> None:
    if cfg.kind not in KINDS:
        raise ConfigError(
            f"channels.kind={cfg.kind!r}: unknown{hint(cfg.kind, KINDS)}", remedy="use channels.kind=ct or mr"
        )
    if cfg.neighbours < 0:
        raise ConfigError(f"channels.neighbours={cfg.neighbours}: below 0", remedy="give 0 for single slices")
    if cfg.kind == "mr":
        if unit == "HU":
            raise ConfigError(
                f"channels={cfg.name} (kind mr) on CT slices in HU",
                remedy="use channels=brain or another CT choice; percentiles would discard the HU scale",
            )
        pair = cfg.percentiles
        if len(pair) != 2 or not 0 <= pair[0] < pair[1] <= 100:
            raise ConfigError(
                f"channels.percentiles={pair}: not two rising numbers from 0 to 100", remedy="e.g. [1, 99]"
            )
        return
    if unit == "signal":
        raise ConfigError(f"channels={cfg.name} (kind ct) on MR slices, which have no HU", remedy="use channels=mr")
    if not cfg.windows:
        raise ConfigError("channels.windows=[]: no window", remedy="give at least one, e.g. [[40, 80]]")
    for window in cfg.windows:
        if len(window) != 2 or not all(math.isfinite(v) for v in window) or window[1] <= 0:
            raise ConfigError(
                f"channels.windows: {window} is not [centre, width] in HU with a width above 0",
                remedy="e.g. [40, 80] for brain",
            )
    if unit == "display" and len(cfg.windows) > 1:
        raise ConfigError(
            f"channels={cfg.name}: {len(cfg.windows)} windows on images that hold display grey levels, not HU",
            remedy="use channels=brain (one window, shown as stored), or data that keeps HU (DICOM, NIfTI)",
        )
