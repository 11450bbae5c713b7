"""Models over the slices of a series: from slice embeddings to per-slice and per-series logits.

All are invariant to padding and to what else is in the batch (:mod:`hemlearn.models.sequence_layers`), so that
series of different length train together and a series gets the same result alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hemlearn.config.schema import SequenceConfig
from hemlearn.models.sequence_layers import (
    ConvRecurrent,
    GatedAttention,
    Perceptron,
    Pool,
    Recurrent,
    SelfAttention,
    masked_max,
    reverse_series,
    slice_mask,
)
from hemlearn.util.errors import ConfigError, hint

NAMES = ("slice", "mean", "max", "lstm", "gru", "attention", "transformer", "conv_gru")
PROBABILITIES = ("none", "in", "out", "both")
_POOLED = ("mean", "max", "attention")  # models whose only context is the pooled vector
_WAVELENGTHS_MM = (20.0, 40.0, 80.0, 160.0, 320.0)  # from a few slices to more than a head
_WAVELENGTHS_SLICES = (4.0, 8.0, 16.0, 32.0, 64.0)
POSITION_WIDTH = 3 + 2 * (len(_WAVELENGTHS_MM) + len(_WAVELENGTHS_SLICES))


class SequenceOutput(NamedTuple):
    """Logits of padded series; :meth:`SequenceModel.each` puts the members in front of every shape."""

    slices: Tensor  # (B, S, L) logits, 0 at padding
    series: Tensor  # (B, L) logits
    attention: Tensor | None  # (B, S) weights that sum to 1 over the real slices, 0 at padding; only name=attention


class SequenceNet(nn.Module):
    """One network: encoder over the slices, pooling, and two linear output layers.

    Args:
        cfg: Group ``sequence``.
        width: Width of the assembled input (embedding and what the options add).
        outputs: Number of logits L.
    """

    def __init__(self, cfg: SequenceConfig, width: int, outputs: int) -> None:
        super().__init__()
        self.name = cfg.name
        self.takes_probabilities = cfg.probabilities in ("out", "both")
        self.encoder = _encoder(cfg, width)
        states = self.encoder.width
        self.pool: Pool | GatedAttention
        if cfg.name == "attention":
            self.pool = GatedAttention(states, cfg.hidden, cfg.heads)
        else:
            self.pool = Pool(cfg.name if cfg.name in _POOLED else "mean_max", states)
        # A linear layer on [state, pooled] could only shift all slices of a series alike: one hidden layer mixes them.
        self.mix = (
            nn.Sequential(nn.Linear(states + self.pool.width, cfg.hidden), nn.ReLU()) if cfg.name in _POOLED else None
        )
        extra = outputs if self.takes_probabilities else 0
        self.dropout = nn.Dropout(cfg.dropout if cfg.output_dropout is None else cfg.output_dropout)
        self.slice_output = nn.Linear((cfg.hidden if self.mix else states) + extra, outputs)
        self.series_output = None if cfg.name == "slice" else nn.Linear(self.pool.width + extra, outputs)

    def forward(self, x: Tensor, mask: Tensor, lengths: Tensor, probabilities: Tensor | None) -> SequenceOutput:
        """Output for the assembled input ``x`` (B, S, width), zero at padding."""
        states = self.encoder(x, mask, lengths)
        pooled, weights = self.pool(states, mask)
        if self.mix is not None:
            states = self.mix(torch.cat([states, pooled[:, None].expand(-1, states.shape[1], -1)], -1))
        if self.takes_probabilities and probabilities is not None:
            states = torch.cat([states, probabilities], -1)
            pooled = torch.cat([pooled, masked_max(probabilities, mask)], -1)
        slices = self.slice_output(self.dropout(states))
        # With no context at all, a series is as positive as its most positive slice.
        output = self.series_output
        series = masked_max(slices, mask) if output is None else output(self.dropout(pooled))
        return SequenceOutput(slices.masked_fill(~mask[..., None], 0), series, weights)


class SequenceModel(nn.Module):
    """``cfg.members`` networks of each name in ``cfg.name`` (joined by ``+``), each from its own initialisation.

    Train them with :meth:`each`: the sum over the members of each one's own loss gives every member the gradient it
    would have alone. Calling the model gives the mean of the members' logits (whose log loss is at most the mean of
    theirs); an average of probabilities can be taken from :meth:`each`. With ``cfg.reverse_tta`` and in evaluation
    mode, every output is the mean over the series and the series reversed. ``reverse_tta`` reverses the order in
    which slices are read; each slice keeps its probabilities and its position.

    The series output layer gets no gradient when only ``slices`` enters the loss, and the reverse.

    Args:
        cfg: Group ``sequence``.
        width: Embedding width D.
        outputs: Number of logits L.
    """

    def __init__(self, cfg: SequenceConfig, width: int, outputs: int) -> None:
        super().__init__()
        self.width, self.outputs = width, outputs
        self.differences, self.position, self.reverse_tta = cfg.differences, cfg.position, cfg.reverse_tta
        self.probabilities = cfg.probabilities
        assembled = width * (3 if cfg.differences else 1) + (POSITION_WIDTH if cfg.position else 0)
        assembled += outputs if cfg.probabilities in ("in", "both") else 0
        kinds = [cfg.model_copy(update={"name": name}) for name in names_of(cfg.name)]
        self.members = nn.ModuleList(
            SequenceNet(kind, assembled, outputs) for kind in kinds for _ in range(cfg.members)
        )

    def forward(
        self, x: Tensor, lengths: Tensor, probabilities: Tensor | None = None, z_mm: Tensor | None = None
    ) -> SequenceOutput:
        """Mean over the members.

        Args:
            x: (B, S, D) embeddings, slices in order from the lowest; the padding may hold anything.
            lengths: (B,) number of real slices of each series, at least 1.
            probabilities: (B, S, L) of the slice run; needed unless ``cfg.probabilities`` is none.
            z_mm: (B, S) positions along the slice normal in mm; NaN where unknown, None if all are.

        Raises:
            ConfigError: ``sequence.probabilities`` asks for probabilities and there are none.
            ValueError: A length is below 1 or above S.
        """
        slices, series, weights = self.each(x, lengths, probabilities, z_mm)
        return SequenceOutput(slices.mean(0), series.mean(0), None if weights is None else weights.mean(0))

    def each(
        self, x: Tensor, lengths: Tensor, probabilities: Tensor | None = None, z_mm: Tensor | None = None
    ) -> SequenceOutput:
        """Each member's own output: shapes (M, B, S, L), (M, B, L) and (M, B, S). Arguments as in :meth:`forward`."""
        lengths = lengths.to(x.device)
        if not torch.compiler.is_compiling() and not 1 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]:
            raise ValueError(f"lengths from {int(lengths.min())} to {int(lengths.max())}, not within 1 to {x.shape[1]}")
        if self.probabilities == "none":
            probabilities = None
        elif probabilities is None:
            raise ConfigError(
                f"sequence.probabilities={self.probabilities}: there are no probabilities of a slice run",
                remedy="set sequence.probabilities=none, or train the slice run first (stage.experiment)",
            )
        mask = slice_mask(lengths, x.shape[1])
        x = x.masked_fill(~mask[..., None], 0)
        if probabilities is not None:
            probabilities = probabilities.to(x.dtype).masked_fill(~mask[..., None], 0)
        # Made before any reversal, so that a slice keeps its place in the head.
        place = encode_position(z_mm, mask).to(x.dtype) if self.position else None
        output = self._run(x, mask, lengths, probabilities, place)
        if not self.reverse_tta or self.training:
            return output
        turned = [None if part is None else reverse_series(part, lengths) for part in (x, probabilities, place)]
        assert turned[0] is not None
        slices, series, weights = self._run(turned[0], mask, lengths, turned[1], turned[2])
        slices = torch.stack([reverse_series(part, lengths) for part in slices])
        if weights is not None and output.attention is not None:
            weights = torch.stack([reverse_series(part, lengths) for part in weights])
            weights = (output.attention + weights) / 2
        return SequenceOutput((output.slices + slices) / 2, (output.series + series) / 2, weights)

    def _run(
        self, x: Tensor, mask: Tensor, lengths: Tensor, probabilities: Tensor | None, place: Tensor | None
    ) -> SequenceOutput:
        parts = [x]
        if self.differences:
            parts += neighbour_differences(x, mask)
        if probabilities is not None and self.probabilities in ("in", "both"):
            parts.append(probabilities)
        if place is not None:
            parts.append(place)
        joined = torch.cat(parts, -1)
        found = [member(joined, mask, lengths, probabilities) for member in self.members]
        weights = [one.attention for one in found if one.attention is not None]
        return SequenceOutput(
            torch.stack([one.slices for one in found]),
            torch.stack([one.series for one in found]),
            torch.stack(weights) if weights else None,
        )


def neighbour_differences(x: Tensor, mask: Tensor) -> list[Tensor]:
    """Differences of each slice of ``x`` (B, S, D) to the slice below and to the slice above, 0 where there is none."""
    step = (x[:, 1:] - x[:, :-1]).masked_fill(~(mask[:, 1:] & mask[:, :-1])[..., None], 0)
    end = torch.zeros_like(x[:, :1])
    return [torch.cat([end, step], 1), torch.cat([-step, end], 1)]


def encode_position(z_mm: Tensor | None, mask: Tensor) -> Tensor:
    """Where each slice stands in its series: (B, S, ``POSITION_WIDTH``), zero at padding.

    Whether its z is known; the distance in mm from the lowest slice of known z, as a number (in units of 100 mm) and
    as sines and cosines of 20 to 320 mm (all zero where z is unknown); the slice's rank from 0 to 1 and sines and
    cosines of its index, which need no z.

    Args:
        z_mm: (B, S) positions in mm, NaN where unknown; None if all are.
        mask: (B, S) true at real slices.
    """
    index = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32).expand(mask.shape)
    z = torch.full_like(index, torch.nan) if z_mm is None else z_mm.to(index)
    known = z.isfinite() & mask
    lowest = z.masked_fill(~known, torch.inf).amin(1, keepdim=True)
    height = torch.where(known, z - lowest, 0.0)
    rank = index / (mask.sum(1, keepdim=True) - 1).clamp(min=1)
    in_mm = torch.cat([(height / 100)[..., None], _waves(height, _WAVELENGTHS_MM)], -1) * known[..., None]
    in_slices = torch.cat([rank[..., None], _waves(index, _WAVELENGTHS_SLICES)], -1)
    return torch.cat([known[..., None].float(), in_mm, in_slices], -1).masked_fill(~mask[..., None], 0)


def _waves(x: Tensor, wavelengths: tuple[float, ...]) -> Tensor:
    angle = x[..., None] * (2 * math.pi / torch.tensor(wavelengths, device=x.device))
    return torch.cat([angle.sin(), angle.cos()], -1)


def _encoder(cfg: SequenceConfig, width: int) -> Perceptron | Recurrent | ConvRecurrent | SelfAttention:
    if cfg.name in ("lstm", "gru"):
        return Recurrent(cfg.name, width, cfg.hidden, cfg.layers, cfg.bidirectional, cfg.dropout)
    if cfg.name == "conv_gru":
        return ConvRecurrent(width, cfg.hidden, cfg.layers, cfg.bidirectional, cfg.kernel, cfg.dropout)
    if cfg.name == "transformer":
        return SelfAttention(width, cfg.hidden, cfg.layers, cfg.heads, cfg.dropout)
    return Perceptron(width, cfg.hidden, cfg.layers, cfg.dropout)


def names_of(name: str) -> list[str]:
    """The models of an average such as ``slice+attention+gru``."""
    return name.split("+")


def build_sequence(cfg: SequenceConfig, *, width: int, outputs: int) -> SequenceModel:
    """The sequence model of group ``sequence``.

    ``slice`` sees each slice alone. ``mean``, ``max`` and ``attention`` (Ilse et al. 2018) see each slice beside a
    pooled vector of its series. ``lstm`` and ``gru`` read the slices in order; ``lstm`` with probabilities in and out
    is that of Burduja et al. 2020 (arXiv 2008.00302). ``transformer`` attends to all slices, ``conv_gru`` follows the
    idea of the RSNA 2019 winner.

    Args:
        cfg: Group ``sequence``.
        width: Embedding width D.
        outputs: Number of logits L.

    Raises:
        ConfigError: Unknown name, or a value the network cannot be built with; the message names the key.
    """

    def need(ok: bool, key: str, value: object, remedy: str) -> None:
        if not ok:
            raise ConfigError(f"sequence.{key}={value}", remedy=remedy)

    if cfg.name == "none":
        raise ConfigError("sequence.name=none has no model over the series", remedy=f"take one of {', '.join(NAMES)}")
    listed = f"one of {', '.join(NAMES)}"
    names = names_of(cfg.name)
    for name in names:
        need(name in NAMES, "name", cfg.name, f"take {listed}, or several joined by +{hint(name, NAMES)}")
    near = hint(cfg.probabilities, PROBABILITIES)
    need(
        cfg.probabilities in PROBABILITIES,
        "probabilities",
        cfg.probabilities,
        f"take one of {', '.join(PROBABILITIES)}{near}",
    )
    least = 0 if set(names) <= {"slice", "mean", "max"} else 1
    need(cfg.layers >= least, "layers", cfg.layers, f"{cfg.name} needs {least} or more")
    need(cfg.hidden >= 1, "hidden", cfg.hidden, "give 1 or more")
    need(cfg.members >= 1, "members", cfg.members, "give 1 or more")
    need(0 <= cfg.dropout < 1, "dropout", cfg.dropout, "give a number in [0, 1)")
    need(
        "conv_gru" not in names or (cfg.kernel >= 1 and cfg.kernel % 2 == 1),
        "kernel",
        cfg.kernel,
        "conv_gru needs an odd number, so that a slice has as many neighbours below as above",
    )
    for name in sorted({"transformer", "attention"} & set(names)):
        whole = cfg.heads >= 1 and cfg.hidden % cfg.heads == 0
        need(whole, "heads", cfg.heads, f"{name} divides sequence.hidden={cfg.hidden} among them: take a divisor")
    return SequenceModel(cfg, width, outputs)
