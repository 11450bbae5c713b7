"""What a ruler tells of a head: backbones without weights, for models that are to meet other heads.

* :class:`TissueMeasures` of slices of head CT: bright spots, differences between the sides, how much brain there is.
  Blood is brighter than brain and rarely on both sides alike, in every picture of a head, whoever exported it.
* :class:`FluidMeasures` of series of brain MRI: how much of the middle of the head is fluid.

These numbers are measured, not learnt: they say the same of synthetic and of real heads, where a network's embeddings
differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 144  # pixels at which is measured; the head fills them (data.fit=head)
_WHITE = 0.99  # quantile of an image's pixels that becomes white: in a wide window bone is grey
_BONE, _AIR = 0.92, 0.08  # of what is white
_LEAST_WHITE, _STEP = 0.5, 3  # an image darker than that stays dark; every third pixel is looked at
_LEAST = 200  # pixels of tissue below which nothing is measured
_LEAST_SPREAD = 0.03  # of the window: tissue evener than that is not made uneven
_SPOTS = (3, 7, 13, 21)  # sides of the squares over which spots are averaged, pixels
_HOT, _HOTTER, _COLD = 1.5, 2.5, -1.5  # interquartile ranges from the median
_BRIGHT, _UNLIKE = (0.05, 0.5, 0.9, 0.95, 0.98, 0.995), (0.98, 0.995)  # shares of the tissue
_MOSTLY = 0.7  # of such a square is tissue
_RIM = 15  # side of the square whose reach is the rim of the tissue, pixels


class TissueMeasures(nn.Module):
    """Measures of intracranial tissue as an embedding: a backbone without weights.

    Tissue is what has bone on all four sides, is neither air nor bone, and lies a little inside. Brightness is counted
    in interquartile ranges from the median of the slice's own tissue, so that window and exporter cancel out; the other
    side is the mirror image about the middle of the tissue.

    Args:
        in_chans: Input channels.
        channel: The one that is measured; it shows tissue in grey, bone brighter than all else and air black.

    Examples:
        >>> rows, columns = torch.meshgrid(torch.arange(-72, 72), torch.arange(-72, 72), indexing="ij")
        >>> away = (rows**2 + columns**2) ** 0.5
        >>> head = torch.where(away < 68, 1.0, 0.0).where(away > 60, 0.4)
        >>> bleed = head.clone()
        >>> bleed[60:75, 100:115] = 0.7
        >>> measures = TissueMeasures()
        >>> without, with_it = measures(torch.stack([head, bleed])[:, None])
        >>> names = measures.names
        >>> [round(float(each[names.index("unlike_98")]), 1) for each in (without, with_it)]
        [0.0, 2.4]
    """

    revision = 2  # to be raised whenever a number comes out differently
    names = (
        "share",
        "median",
        "spread",
        *(f"bright_{100 * share:g}" for share in _BRIGHT),
        "hot",
        "hotter",
        "cold",
        *(f"spot_{side}" for side in _SPOTS),
        *(f"unlike_{100 * share:g}" for share in _UNLIKE),
        "unlike_mean",
        "rim_98",
        "rim_unlike_98",
    )

    def __init__(self, in_chans: int = 1, channel: int = 0) -> None:
        super().__init__()
        self.in_chans, self.channel = in_chans, channel

    def extra_repr(self) -> str:
        """What is measured how: cached embeddings are known by it, since there are no weights to tell."""
        return f"in_chans={self.in_chans}, channel={self.channel}, revision={self.revision}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """``(B, len(names))`` of images ``(B, C, H, W)`` in [0, 1]; 0 where there is no tissue."""
        image = images[:, self.channel : self.channel + 1].float()
        if (step := image.shape[-1] // _SIDE) > 1:
            image = F.avg_pool2d(image, step)
        if image.shape[-1] != _SIDE:
            image = F.interpolate(image, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
        white = image.flatten(1)[:, ::_STEP].quantile(_WHITE, dim=1).clamp_min(_LEAST_WHITE)
        image = (image / white.view(-1, 1, 1, 1)).clamp_max(1.0)
        mask = _tissue(image)
        count = mask.flatten(1).sum(1)
        low, middle, high = _quantiles(image, mask, (0.25, 0.5, 0.75))
        spread = (high - low).clamp_min(_LEAST_SPREAD)
        z = (image - middle.view(-1, 1, 1, 1)) / spread.view(-1, 1, 1, 1)
        smooth = _mean(z, mask, 5)
        unlike, both = _against_mirror(_mean(z, mask, 7), mask)
        inner = _shrunk(mask, _RIM)
        rim, rim_both = mask * (1 - inner), both * (1 - inner)
        area = mask[0].numel()
        found = [
            count / area,
            middle,
            spread,
            *_quantiles(smooth, mask, _BRIGHT),
            *(_share(smooth > cut, mask) for cut in (_HOT, _HOTTER)),
            _share(smooth < _COLD, mask),
            *(_largest(z, mask, side) for side in _SPOTS),
            *_quantiles(unlike, both, _UNLIKE),
            _share(unlike.abs(), both),
            *_quantiles(smooth, rim, (0.98,)),
            *_quantiles(unlike, rim_both, (0.98,)),
        ]
        # Tails are drawn in: one hot pixel more or less at the rim of a skull base is no hemorrhage.
        measured = torch.asinh(torch.stack(found, 1))
        return torch.where((count >= _LEAST)[:, None], measured, 0.0)


# Half axes of ellipses around the middle of the head, as shares of its length and width: brain without skull and scalp,
# the ventricles and what lies between them, and the bodies of the ventricles alone.
_BRAIN, _MIDDLE, _CORE = (0.34, 0.34), (0.28, 0.18), (0.22, 0.16)
_CUTS = (0.6, 0.7, 0.8)  # of the way from brain to fluid
_BELOW_VERTEX = (32.0, 102.0)  # mm: from above the ventricles to the third of them
# Head is what lies, after smoothing, at least a share (_HEAD) of the way from air to the usual signal; both are
# quantiles, of the margins and of a wide middle in slices that are not dim. A row or column counts that is filled with
# head to _FILLED.
_MARGIN, _AIR_SHARE, _CENTRE, _USUAL, _BRIGHTEST, _SMOOTH, _HEAD, _FILLED = 4, 0.1, 0.375, 0.6, 0.25, 3, 0.25, 0.05
# Sections. The head begins at a share of the largest (_NONE). Of a large one: a series that begins with more than
# _START, or has more than _ABRUPT _TAPER mm farther in, begins within the head; a dome is _WHOLE within _DOME mm, a
# neck at least _LONGER mm later.
_NONE, _LARGE, _START, _ABRUPT, _TAPER, _WHOLE, _DOME, _LONGER = 0.1, 0.9, 0.25, 0.5, 8.0, 0.8, 48.0, 8.0
_PROFILE = ((0.1, 0.5, 0.6, 0.8, 1.0), (0.0, 18.0, 24.0, 40.0, 70.0))  # of a dome: sections, and mm below its top
_DIM = 0.02  # a usual signal below that is none


class FluidMeasures(nn.Module):
    """Shares of fluid in the middle of a head on MRI, as the embedding of a series: a 3D backbone without weights.

    The head is found in the series, and its vertex: the end at which its section tapers off. Between 32 and 102 mm
    below that, ellipses stand in one place for all slices, where the head is in most of them. Brain is a slice's median
    around the middle; fluid is what lies beyond a cut on the way from there to the signal's extreme, which is the dark
    one (T1) where it is farther away, as a ratio, than the bright one (T2). Scale and flips in the plane cancel out;
    contrast, the length of the neck and the order of slices matter little. The head should lie in the field of view.

    Args:
        in_chans: Input channels.
        channel: The one that is measured; its signal starts at 0.
        spacing: Of the voxels, depth (lowest slice first), height and width, mm.

    Raises:
        ValueError: No spacing, or no such channel.

    Examples:
        >>> z, y, x = torch.meshgrid(torch.arange(60), torch.arange(-50, 50), torch.arange(-50, 50), indexing="ij")
        >>> dome = ((z - 10) / 45).clamp_min(0) ** 2 + (y / 45) ** 2 + (x / 36) ** 2 < 1
        >>> horns = ((x.abs() - 6).abs() < 3) & (y.abs() < 14) & ((z - 30).abs() < 10)
        >>> t1, t2 = (dome * (0.6 + (signal - 0.6) * horns) for signal in (0.1, 1.0))
        >>> found = FluidMeasures(spacing=(2.0, 2.0, 2.0))(torch.stack([0.6 * dome, t1, t2])[:, None])
        >>> [round(float(share), 1) for share in found[:, FluidMeasures.names.index("middle_60")]]
        [0.0, 1.2, 1.2]
    """

    names = tuple(f"{place}_{100 * cut:g}" for place in ("middle", "core") for cut in _CUTS)

    def __init__(self, in_chans: int = 1, channel: int = 0, *, spacing: Sequence[float] | None) -> None:
        super().__init__()
        if spacing is None:
            raise ValueError("how far below the vertex a slice lies cannot be told without a spacing in mm")
        if not 0 <= channel < in_chans:
            raise ValueError(f"channel={channel}: the input has {in_chans}")
        self.in_chans, self.channel, self.spacing = in_chans, channel, tuple(spacing)

    @torch.no_grad()
    def forward(self, volumes: Tensor) -> Tensor:
        """``(B, len(names))`` tenths of the ellipses that are fluid, of volumes ``(B, C, D, H, W)`` in [0, 1]."""
        found = torch.stack([self._measured(volume) for volume in volumes[:, self.channel].float()])
        return found.to(volumes.dtype)

    def _measured(self, volume: Tensor) -> Tensor:
        """Of (D, H, W)."""
        head = _head(volume)
        weight = _below_vertex(head.flatten(1).sum(1), self.spacing[0])
        planes, head, weight = volume[weight > 0][:, None], head[weight > 0], weight[weight > 0]
        if not len(planes):
            return volume.new_zeros(len(self.names))
        ends = []
        for filled in ((head.mean(2) > _FILLED).int(), (head.mean(1) > _FILLED).int()):
            ends += [filled.argmax(1), filled.shape[1] - 1 - filled.flip(1).argmax(1)]
        box = torch.stack(ends, 1).float().median(0).values
        brain, middle, core = (_ellipse(planes, box, half) for half in (_BRAIN, _MIDDLE, _CORE))
        (usual,) = _quantiles(planes, brain * (1 - middle), (0.5,), step=1)
        lowest, low, high, highest = _quantiles(planes, brain, (0.01, 0.05, 0.95, 0.99), step=1)
        # Quotients, since fluid is black on T1 where white matter is as far above the median as fluid below.
        dark = usual * usual > low * high
        end = torch.where(dark, lowest, highest)
        beyond = (planes - usual.view(-1, 1, 1, 1)) / _not_none(end - usual).view(-1, 1, 1, 1)
        found = torch.stack([_share((beyond > cut).float(), where) for where in (middle, core) for cut in _CUTS], 1)
        return 10 * (torch.where((usual > _DIM)[:, None], found, 0.0) * weight[:, None]).sum(0) / weight.sum()


def _head(volume: Tensor) -> Tensor:
    """(D, H, W) of 0 and 1: where in a volume the head is."""
    shown = volume[volume.flatten(1).amax(1) > 0]
    if not len(shown):
        return torch.zeros_like(volume)
    margins = (shown[:, :_MARGIN], shown[:, -_MARGIN:], shown[:, :, :_MARGIN], shown[:, :, -_MARGIN:])
    (air,) = _quantile(torch.cat([margin.flatten() for margin in margins])[None], _AIR_SHARE)
    rows, columns = (slice(start := int(_CENTRE * side), side - start) for side in shown.shape[1:])
    centre = shown[:, rows, columns].flatten(1)
    level = _quantile(centre, _USUAL)
    (usual,) = _quantile(centre[level >= _BRIGHTEST * level.max()].flatten()[None], _USUAL)
    above: Tensor = _around(volume[:, None], _SMOOTH)[:, 0] > air + _HEAD * (usual - air)
    return above.to(volume.dtype)


def _quantile(values: Tensor, share: float) -> Tensor:
    """Of each row, without a limit to their length."""
    found: Tensor = values.sort(1).values[:, int(share * (values.shape[1] - 1))]
    return found


def _below_vertex(sections: Tensor, step: float) -> Tensor:
    """(D,) shares of the slices that lie at the depth below the vertex that is measured; all of the head where none is.

    The vertex is where the section comes to a tenth, between two slices, or above the last where a series ends before.

    Args:
        sections: (D,) size of the head in each slice, lowest first.
        step: From slice to slice, mm.
    """
    share = sections / sections.max().clamp_min(1)
    head = share >= _NONE
    places = head.nonzero()[:, 0]
    if not len(places):
        return share
    low, high = int(places[0]), int(places[-1])
    large = share[low : high + 1] / _quantile(share[None, low : high + 1], _LARGE)  # shoulders may be the largest
    upwards, downwards = _rise(large, step), _rise(large.flip(0), step)
    # Slices in the wrong order, or a head upside down: it tapers at the low end, as a dome and not as a neck.
    turned = upwards is not None and (upwards <= _DOME if downwards is None else upwards + _LONGER < downwards)
    index = torch.arange(len(share), device=share.device)
    above = float(np.interp(float(large[0 if turned else -1]), *_PROFILE))
    below = (index - low if turned else high - index) * step + above
    first, last = _BELOW_VERTEX
    within = ((below + step / 2).clamp_max(last) - (below - step / 2).clamp_min(first)).clamp_min(0) / step * head
    return within if within.any() else head.to(share.dtype)


def _rise(share: Tensor, step: float) -> float | None:
    """How far from the first slice the head is whole, mm; None where the series begins within it.

    Args:
        share: Sections from there on, as shares of a large one.
        step: From slice to slice, mm.
    """
    near = round(_TAPER / step)
    if len(share) <= near or share[0] > _START or share[near] > _ABRUPT:
        return None
    return float((share >= _WHOLE).int().argmax()) * step


def _ellipse(planes: Tensor, box: Tensor, half: tuple[float, float]) -> Tensor:
    """Mask (S, 1, H, W) of 0 and 1 of an ellipse in the middle of a box, the same in each of ``planes``.

    Args:
        planes: (S, 1, H, W).
        box: First and last row, first and last column.
        half: Half axes as shares of the box's sides, along rows and columns.
    """
    away = torch.zeros(1, device=planes.device)
    for axis, size in enumerate(planes.shape[-2:]):
        first, last = box[2 * axis : 2 * axis + 2]
        place = torch.arange(size, device=planes.device, dtype=planes.dtype).view((-1, 1) if axis == 0 else (1, -1))
        away = away + ((place - (first + last) / 2) / (half[axis] * (last - first + 1))) ** 2
    return (away < 1).to(planes.dtype).expand_as(planes)


def _not_none(values: Tensor) -> Tensor:
    """The values, no nearer to 0 than a thousandth."""
    return torch.where(values.abs() < 1e-3, torch.where(values < 0, -1e-3, 1e-3), values)


def _tissue(image: Tensor) -> Tensor:
    """Mask (B, 1, H, W) of 0 and 1: bone above, below, left and right, neither air nor bone, a little inside."""
    bone = (image > _BONE).float()
    inside = torch.ones_like(bone)
    for axis in (2, 3):
        inside = inside * (bone.cumsum(axis) > 0) * (bone.flip(axis).cumsum(axis).flip(axis) > 0)
    inside = inside * (1 - _grown(bone, 3))
    inside = _grown(_shrunk(inside, 5), 5)  # without bridges and specks
    return _shrunk(inside, 7) * (image > _AIR) * (image < _BONE)


def _grown(mask: Tensor, side: int) -> Tensor:
    """Rows first, then columns, which is the square at a fraction of its cost; so below."""
    return F.max_pool2d(F.max_pool2d(mask, (1, side), 1, (0, side // 2)), (side, 1), 1, (side // 2, 0))


def _shrunk(mask: Tensor, side: int) -> Tensor:
    return 1 - _grown(1 - mask, side)


def _around(values: Tensor, side: int) -> Tensor:
    """Mean of the square around each pixel, zeros beyond the edge."""
    return F.avg_pool2d(F.avg_pool2d(values, (1, side), 1, (0, side // 2)), (side, 1), 1, (side // 2, 0))


def _mean(values: Tensor, mask: Tensor, side: int) -> Tensor:
    """Mean of the tissue in the square around each pixel."""
    return _around(values * mask, side) / _around(mask, side).clamp_min(1e-6)


def _largest(z: Tensor, mask: Tensor, side: int) -> Tensor:
    """Largest mean (B,) of squares that are mostly tissue."""
    share = _around(mask, side)
    means = _around(z * mask, side) / share.clamp_min(1e-6)
    return torch.where((mask > 0) & (share > _MOSTLY), means, -1.0).flatten(1).amax(1)


def _share(what: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,) over the mask."""
    return (what * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)


def _quantiles(values: Tensor, mask: Tensor, shares: tuple[float, ...], step: int = 2) -> list[Tensor]:
    """Quantiles (B,) over the mask, of which every ``step``-th pixel each way is looked at."""
    values, mask = values[..., ::step, ::step], mask[..., ::step, ::step]
    used = mask.flatten(1) > 0
    ordered = torch.where(used, values.flatten(1), -torch.inf).sort(1).values
    size, count = ordered.shape[1], used.sum(1, keepdim=True)
    places = [size - count + (share * (count - 1)).round().long() for share in shares]
    found = [ordered.gather(1, place.clamp(0, size - 1))[:, 0] for place in places]
    return [torch.where(count[:, 0] > 0, one, 0.0) for one in found]


def _against_mirror(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Values minus those of the other side, and where both sides are tissue; the middle is that of each row's mask."""
    columns = torch.arange(mask.shape[3], device=mask.device, dtype=values.dtype)
    whole = mask.sum((1, 2, 3)).clamp_min(1)
    middle = (mask * columns).sum((1, 2, 3)) / whole
    place = (2 * middle.view(-1, 1) - columns).round().long()
    within = ((place >= 0) & (place < mask.shape[3])).to(mask.dtype)
    index = place.clamp(0, mask.shape[3] - 1)[:, None, None, :].expand_as(mask)
    both = mask * mask.gather(3, index) * within[:, None, None, :]
    return (values - values.gather(3, index)) * both, both
