"""Multiple-instance learning over the slices of a series: smoothing along the stack, TransMIL, CLAM's clustering.

What is told of padding in :mod:`hemlearn.models.series_layers` holds for these layers too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NEAREST, _FARTHEST = 0.1, 10.0  # limits of a gap between neighbours, in mean gaps of its series


class Smooth(nn.Module):
    """The operator Sm of Castro-Macias et al. 2024 (arXiv 2410.03276) on the chain of a series' slices.

    ``steps`` times ``g = (1 - alpha) x + alpha A g``, with a trained alpha in (0, 1) and the normalised adjacency A of
    neighbouring slices. Their weight is the inverse of their distance in mm, or equal throughout a series in which a
    position is unknown. The only slice of a series stays as it is.

    Args:
        steps: How often neighbours are averaged: about as far as a slice reaches.

    Examples:
        >>> smooth = Smooth(10)
        >>> x = torch.tensor([[[0.0], [1.0], [0.0]]])
        >>> [round(value, 2) for value in smooth(x, torch.ones(1, 3, dtype=torch.bool)).flatten().tolist()]
        [0.24, 0.67, 0.24]
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.strength = nn.Parameter(torch.zeros(()))  # log odds of alpha

    def forward(self, x: Tensor, mask: Tensor, z_mm: Tensor | None = None) -> Tensor:
        """``x`` (B, S, W) smoothed along its series; ``mask`` and ``z_mm`` (B, S), NaN where a position is unknown."""
        weight = neighbour_weights(mask, z_mm).to(x.dtype)
        ends = F.pad(weight, (1, 1))
        degree = ends[:, :-1] + ends[:, 1:]
        root = degree.clamp_min(torch.finfo(x.dtype).tiny).rsqrt()
        edge = (weight * root[:, :-1] * root[:, 1:])[..., None]
        alone = (degree == 0)[..., None]  # without a neighbour: its own
        alpha = self.strength.sigmoid()
        out = x
        for _ in range(self.steps):
            near = F.pad(edge * out[:, 1:], (0, 0, 0, 1)) + F.pad(edge * out[:, :-1], (0, 0, 1, 0))
            out = (1 - alpha) * x + alpha * torch.where(alone, out, near)
        return out.masked_fill(~mask[..., None], 0)


def neighbour_weights(mask: Tensor, z_mm: Tensor | None) -> Tensor:
    """(B, S - 1) weights of the pairs of neighbours: the mean gap of the series over the pair's own, 0 at padding."""
    both = mask[:, 1:] & mask[:, :-1]
    if z_mm is None:
        return both.float()
    z = z_mm.float()
    gap = (z[:, 1:] - z[:, :-1]).abs().masked_fill(~both, 0)
    mean = gap.sum(1, keepdim=True) / both.sum(1, keepdim=True).clamp_min(1)
    relative = (gap / mean).clamp(_NEAREST, _FARTHEST)
    known = (z.isfinite() | ~mask).all(1, keepdim=True) & (mean > 0)
    return torch.where(known, 1 / relative, 1.0).masked_fill(~both, 0)


class TransMIL(nn.Module):
    """The transformer of Shao et al. 2021 (arXiv 2106.00908) over a class token and the slices of a series.

    As published, the slices fill a square row by row (the first ones once more where it has room), and convolutions of
    7, 5 and 3 places over that square give them their position before the second layer. Attention is exact: the
    published approximation is for thousands of tokens, a series has some tens.

    Args:
        width: Of the input.
        hidden: Of the states.
        layers: Of attention, 2 as published.
        heads: Divide ``hidden``.
        dropout: Of each layer's output.
    """

    def __init__(self, width: int, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width, self.heads = hidden, heads
        self.project = nn.Linear(width, hidden)
        self.token = nn.Parameter(torch.randn(1, 1, hidden))
        self.places = nn.ModuleList(
            nn.Conv2d(hidden, hidden, size, padding=size // 2, groups=hidden) for size in (7, 5, 3)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        self.attentions = nn.ModuleList(nn.Linear(hidden, 3 * hidden, bias=False) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, mask: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, S, hidden), the class token (B, hidden), and its attention (B, S), which sums to 1 over slices."""
        size = x.shape[1]
        side = lengths.to(torch.float64).sqrt().ceil().long()[:, None]
        place = torch.arange((math.isqrt(size - 1) + 1) ** 2, device=x.device)
        source = torch.where(place < lengths[:, None], place, place - lengths[:, None]).clamp(0, size - 1)
        real = place < side**2
        tokens = _take(self.project(x), source).masked_fill(~real[..., None], 0)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        keys = F.pad(real, (1, 0), value=True)
        weights = tokens
        for index, (norm, attention) in enumerate(zip(self.norms, self.attentions, strict=True)):
            if index == min(1, len(self.norms) - 1):
                tokens = torch.cat([tokens[:, :1], self._placed(tokens[:, 1:], side, real)], 1)
            found, weights = self._attend(attention(norm(tokens)), keys)
            tokens = tokens + self.dropout(found)
        tokens = self.norm(tokens)
        seen = weights.mean(1)[:, 0, 1 : size + 1].masked_fill(~mask, 0)
        return tokens[:, 1 : size + 1].masked_fill(~mask[..., None], 0), tokens[:, 0], seen / seen.sum(1, keepdim=True)

    def _placed(self, tokens: Tensor, side: Tensor, real: Tensor) -> Tensor:
        """Tokens (B, T, W) and their convolutions over the square of their series, (B, 1) places to a ``side``."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        most = math.isqrt(tokens.shape[1])
        row, column = place // most, place % most
        inside = (row < side) & (column < side)
        grid = _take(tokens, torch.where(inside, row * side + column, 0)).masked_fill(~inside[..., None], 0)
        grid = grid.transpose(1, 2).reshape(len(tokens), -1, most, most)
        near = torch.stack([convolution(grid) for convolution in self.places]).sum(0).flatten(2).transpose(1, 2)
        back = torch.where(real, place // side * most + place % side, 0)
        return (tokens + _take(near, back)).masked_fill(~real[..., None], 0)

    def _attend(self, joined: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Output (B, T, W) of queries, keys and values (B, T, 3 W), and the weights (B, heads, T, T)."""
        shape = (*joined.shape[:2], self.heads, -1)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~keys[:, None, None], -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2), weights


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, T) of ``x`` (B, S, W): (B, T, W)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def most_and_least(weights: Tensor, mask: Tensor, lengths: Tensor, count: int) -> Tensor:
    """(B, S): 1 at the ``count`` slices of the largest attention, -1 at those of the least, else 0.

    At most half of a series' slices are of either kind.
    """
    order = weights.detach().masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    some = (lengths // 2).clamp(max=count)[:, None]
    return (rank < some).to(weights.dtype) - ((rank >= lengths[:, None] - some) & mask).to(weights.dtype)


def clustering_loss(logits: Tensor, chosen: Tensor, label: Tensor) -> Tensor:
    """CLAM's loss of instances (Lu et al. 2021, arXiv 2004.09666), the mean over series and labels known.

    Each label has a classifier of slices for its absence and one for its presence. The one that fits the series tells
    its most attended slices (1) from its least attended ones (0); the other one calls the most attended ones 0.

    Args:
        logits: (M, B, S, L, 2) of the two classifiers.
        chosen: (M, B, S) of :func:`most_and_least`.
        label: (B, L) labels of series, NaN where unknown.
    """
    most, least = ((chosen == sign).to(logits.dtype)[..., None] for sign in (1, -1))
    fits = label.nan_to_num().long()[None, :, None, :, None].expand(*logits.shape[:-1], 1)
    own, other = logits.gather(-1, fits)[..., 0], logits.gather(-1, 1 - fits)[..., 0]
    size = most.sum(2)
    loss = (F.softplus(-own) * most + F.softplus(own) * least).sum(2) / (2 * size).clamp_min(1)
    loss = loss + (F.softplus(other) * most).sum(2) / size.clamp_min(1)
    known = (~label.isnan())[None] & (size > 0)
    return (loss * known).sum() / known.sum().clamp_min(1)


def instance_logits(own: Tensor, weights: Tensor | None) -> Tensor:
    """Scores of slices from labels of series alone: the log odds of p times the slice's attention over the largest.

    Args:
        own: (B, S, L) log odds of p, what the series' output layer says of the slice alone.
        weights: (B, S) attention; None: the log odds of p themselves.
    """
    if weights is None:
        return own
    share = (weights / weights.amax(1, keepdim=True)).clamp_min(1e-30)[..., None]
    log_p = (F.logsigmoid(own.float()) + share.float().log()).clamp(max=-1e-30)
    return log_p - torch.log(-torch.expm1(log_p))
