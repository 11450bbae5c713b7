"""Models over the slices of a series: from slice embeddings to per-slice and per-series logits.

All are invariant to padding and to what else is in the batch, so that series of different length train together and a
series gets the same result alone.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hemlearn.config.schema import SEQUENCES, SequenceConfig
from hemlearn.plugins import supplied
from hemlearn.util.errors import ConfigError

NAMES = SEQUENCES[1:]
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
    """One network: encoder over the slices, pooling, and two linear output layers (arguments of `SequenceModel`)."""

    def __init__(
        self,
        name: str,
        width: int,
        outputs: int,
        *,
        hidden: int,
        layers: int,
        heads: int,
        kernel: int,
        bidirectional: bool,
        dropout: float,
        output_dropout: float,
        probabilities: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.takes_probabilities = probabilities
        self.encoder: Perceptron | Recurrent | ConvRecurrent | SelfAttention
        if name in ("lstm", "gru"):
            self.encoder = Recurrent(name, width, hidden, layers, bidirectional, dropout)
        elif name == "conv_gru":
            self.encoder = ConvRecurrent(width, hidden, layers, bidirectional, kernel, dropout)
        elif name == "transformer":
            self.encoder = SelfAttention(width, hidden, layers, heads, dropout)
        else:
            self.encoder = Perceptron(width, hidden, layers, dropout)
        states = self.encoder.width
        self.pool: Pool | GatedAttention
        if name == "attention":
            self.pool = GatedAttention(states, hidden, heads)
        else:
            self.pool = Pool(name if name in _POOLED else "mean_max", states)
        # A linear layer on [state, pooled] could only shift all slices of a series alike: one hidden layer mixes them.
        self.mix = nn.Sequential(nn.Linear(states + self.pool.width, hidden), nn.ReLU()) if name in _POOLED else None
        extra = outputs if probabilities else 0
        self.dropout = nn.Dropout(output_dropout)
        self.slice_output = nn.Linear((hidden if self.mix else states) + extra, outputs)
        self.series_output = None if name == "slice" else nn.Linear(self.pool.width + extra, outputs)

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
    """``members`` networks of each name in ``name`` (joined by ``+``), each from its own initialisation.

    ``slice`` sees each slice alone. ``mean``, ``max`` and ``attention`` (Ilse et al. 2018) see each slice beside a
    pooled vector of its series. ``lstm`` and ``gru`` read the slices in order; ``lstm`` with probabilities in and out
    is that of Burduja et al. 2020 (arXiv 2008.00302). ``transformer`` attends to all slices, ``conv_gru`` follows the
    idea of the RSNA 2019 winner.

    Train them with :meth:`each`: the sum over the members of each one's own loss gives every member the gradient it
    would have alone. Calling the model gives the mean of the members' logits (whose log loss is at most the mean of
    theirs); an average of probabilities can be taken from :meth:`each`. With ``reverse_tta`` and in evaluation
    mode, every output is the mean over the series and the series reversed: the order in which slices are read is
    reversed, each slice keeps its probabilities and its position.

    The series output layer gets no gradient when only ``slices`` enters the loss, and the reverse.

    Args:
        name: One of :data:`NAMES`, or several joined by ``+``.
        width: Embedding width D.
        outputs: Number of logits L.
        hidden: Width of the states (per direction).
        layers: Of the encoder.
        heads: Of ``transformer`` and ``attention``; divides ``hidden``.
        kernel: Of ``conv_gru``, odd.
        bidirectional: ``lstm``, ``gru`` and ``conv_gru`` read both ways.
        dropout: Between layers.
        output_dropout: Before the output layers; None: as ``dropout``.
        probabilities: Where the slice run's own probabilities enter: none, in, out or both.
        differences: Add the differences to the slices below and above.
        position: Add where each slice stands, see :func:`encode_position`.
        reverse_tta: Average with the reversed series at evaluation.
        members: Networks of each name.

    Raises:
        ConfigError: Unknown name, or a value the network cannot be built with; the message names the key.

    Examples:
        >>> model = SequenceModel("gru", width=4, outputs=2, hidden=8).eval()
        >>> out = model(torch.zeros(3, 5, 4), torch.tensor([5, 2, 1]))
        >>> out.slices.shape, out.series.shape
        (torch.Size([3, 5, 2]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        name: str = "lstm",
        *,
        width: int,
        outputs: int,
        hidden: int = 128,
        layers: int = 1,
        heads: int = 4,
        kernel: int = 3,
        bidirectional: bool = True,
        dropout: float = 0.3,
        output_dropout: float | None = None,
        probabilities: str = "none",
        differences: bool = False,
        position: bool = False,
        reverse_tta: bool = False,
        members: int = 1,
    ) -> None:
        super().__init__()
        SequenceConfig(
            name=name,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kernel=kernel,
            dropout=dropout,
            output_dropout=output_dropout,
            probabilities=probabilities,
            members=members,
        )
        check_sequence(name, layers, heads, hidden)
        self.name = name
        self.width, self.outputs = width, outputs
        self.differences, self.position, self.reverse_tta = differences, position, reverse_tta
        self.probabilities = probabilities
        assembled = width * (3 if differences else 1) + (POSITION_WIDTH if position else 0)
        assembled += outputs if probabilities in ("in", "both") else 0
        self.members = nn.ModuleList(
            SequenceNet(
                kind,
                assembled,
                outputs,
                hidden=hidden,
                layers=layers,
                heads=heads,
                kernel=kernel,
                bidirectional=bidirectional,
                dropout=dropout,
                output_dropout=dropout if output_dropout is None else output_dropout,
                probabilities=probabilities in ("out", "both"),
            )
            for kind in name.split("+")
            for _ in range(members)
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


def check_sequence(name: str, layers: int, heads: int, hidden: int) -> None:
    """Rules that tie several keys together, or a key to the model's name."""
    names = name.split("+")
    if name == "none":
        raise ConfigError("sequence.name=none has no model over the series", remedy=f"take one of {', '.join(NAMES)}")
    if layers < 1 and not set(names) <= {"slice", "mean", "max"}:
        raise ConfigError(f"sequence.layers={layers}", remedy=f"{name} needs 1 or more")
    for one in sorted({"transformer", "attention"} & set(names)):
        if hidden % heads:
            raise ConfigError(
                f"sequence.heads={heads}", remedy=f"{one} divides sequence.hidden={hidden} among them: take a divisor"
            )


class OwnSequence(nn.Module):
    """A sequence model of a user's own, with the interface of :class:`SequenceModel`.

    Args:
        model: Called with (x (B, S, D), lengths (B,)) and, where its signature names them, ``probabilities``
            (B, S, L) and ``z_mm`` (B, S). It returns logits of slices (B, S, L), or a pair of these and those of
            the series (B, L).
        outputs: Number of logits L.
    """

    probabilities = "none"

    def __init__(self, model: nn.Module, outputs: int) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.members = nn.ModuleList([model])
        names = inspect.signature(model.forward).parameters
        self._takes = [name for name in ("probabilities", "z_mm") if name in names]

    def each(
        self, x: Tensor, lengths: Tensor, probabilities: Tensor | None = None, z_mm: Tensor | None = None
    ) -> SequenceOutput:
        """As :meth:`SequenceModel.each`, with one member.

        Raises:
            ConfigError: The model's output has another shape.
        """
        given = {"probabilities": probabilities, "z_mm": z_mm}
        mask = slice_mask(lengths.to(x.device), x.shape[1])
        x = x.masked_fill(~mask[..., None], 0)
        out = self.model(x, lengths.to(x.device), **{name: given[name] for name in self._takes})
        slices, series = (out[0], out[1]) if isinstance(out, tuple | list) else (out, None)
        wanted = (*x.shape[:2], self.outputs)
        if not isinstance(slices, Tensor) or tuple(slices.shape) != wanted:
            raise ConfigError(
                f"sequence ({type(self.model).__name__}) gives {tuple(getattr(slices, 'shape', ()))} for slices",
                remedy=f"return logits (B, S, L), here {wanted}, or a pair with those of the series (B, L)",
            )
        series = masked_max(slices, mask) if series is None else series
        return SequenceOutput(slices.masked_fill(~mask[..., None], 0)[None], series[None], None)

    def forward(
        self, x: Tensor, lengths: Tensor, probabilities: Tensor | None = None, z_mm: Tensor | None = None
    ) -> SequenceOutput:
        """As :meth:`SequenceModel.forward`."""
        out = self.each(x, lengths, probabilities, z_mm)
        return SequenceOutput(out.slices[0], out.series[0], None)


_KEYS = tuple(key for key in inspect.signature(SequenceModel).parameters if key not in ("width", "outputs"))


def build_sequence(spec: Any, *, width: int, outputs: int) -> SequenceModel | OwnSequence:
    """The sequence model of group ``sequence``, or a module of one's own (:class:`OwnSequence`).

    Args:
        spec: Option object of the group; a module, a class or a node ``{_target_: ...}``, which are offered
            ``width`` and ``outputs``.
        width: Embedding width D.
        outputs: Number of logits L.

    Raises:
        ConfigError: As :class:`SequenceModel`.
    """
    own: nn.Module | None = supplied(spec, "sequence", kind=nn.Module, width=width, outputs=outputs)
    if own is None:
        known = {key: value for key, value in vars(spec).items() if key in _KEYS}
        return SequenceModel(**known, width=width, outputs=outputs)
    return own if isinstance(own, SequenceModel) else OwnSequence(own, outputs)


# --- Layers: what turns the slices of padded series into states, and states into one vector. Every layer takes padded
# series of shape (B, S, W) with a mask (B, S), true at real slices, and gives at the real slices what it would give
# for each series alone: no result and no gradient depends on the padding or on the other series of the batch (dropout
# in training aside). States at padded places are zero.


def slice_mask(lengths: Tensor, size: int) -> Tensor:
    """(B, size) booleans, true at the first ``lengths[b]`` places of row b."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def reverse_series(x: Tensor, lengths: Tensor) -> Tensor:
    """The series of ``x`` (B, S, ...) from last to first real slice; padding stays at the end. Its own inverse."""
    place = torch.arange(x.shape[1], device=x.device)
    index = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)
    return x.gather(1, index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand_as(x))


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Maximum of ``x`` (B, S, W) over the real slices: (B, W)."""
    return x.masked_fill(~mask[..., None], -torch.inf).amax(1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` (B, S, W) over the real slices: (B, W)."""
    weights = mask.to(x.dtype)
    return (x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


class Perceptron(nn.Module):
    """The same ``layers`` hidden layers (ReLU, dropout) for every slice; 0 layers pass the input on."""

    def __init__(self, width: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = hidden if layers else width
        self.layers = nn.Sequential()
        for index in range(layers):
            self.layers.append(nn.Linear(width if index == 0 else hidden, hidden))
            self.layers.append(nn.ReLU())
            self.layers.append(nn.Dropout(dropout))

    def forward(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """States (B, S, width)."""
        states: Tensor = self.layers(x)
        return states.masked_fill(~mask[..., None], 0)


class Recurrent(nn.Module):
    """LSTM or GRU, with dropout between its layers.

    The backward direction runs forward over each series reversed in its own length, so that it starts at the last
    real slice. This equals packing, and needs neither lengths on the host nor cells of changing batch size: measured
    on one CPU core in batches of 8 to 32 series, it trains up to 1.8 times as fast as the packed form.
    """

    def __init__(self, cell: str, width: int, hidden: int, layers: int, bidirectional: bool, dropout: float) -> None:
        super().__init__()
        make = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
        self.width = hidden * (1 + bidirectional)
        sizes = [width, *[self.width] * (layers - 1)]
        self.forwards = nn.ModuleList(make(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(make(size, hidden, batch_first=True) for size in sizes if bidirectional)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """States (B, S, width): the forward, then the backward direction's."""
        # cuDNN keeps no state for a backward pass in evaluation mode, which Grad-CAM through a sequence model needs.
        plain = x.is_cuda and not self.training and torch.is_grad_enabled()
        with torch.backends.cudnn.flags(enabled=False) if plain else contextlib.nullcontext():
            for index, ahead in enumerate(self.forwards):
                if index:
                    x = F.dropout(x, self.dropout, self.training)
                states = [ahead(x)[0]]
                if len(self.backwards):
                    back = self.backwards[index](reverse_series(x, lengths))[0]
                    states.append(reverse_series(back, lengths))
                x = torch.cat(states, -1)
        return x.masked_fill(~mask[..., None], 0)


class ConvRecurrent(nn.Module):
    """1D convolution over neighbouring slices, then a GRU over the whole series; the states hold both."""

    def __init__(self, width: int, hidden: int, layers: int, bidirectional: bool, kernel: int, dropout: float) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, hidden, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(hidden)  # per slice: batch statistics would tie the series of a batch together
        self.dropout = nn.Dropout(dropout)
        self.recurrent = Recurrent("gru", hidden, hidden, layers, bidirectional, dropout)
        self.width = hidden + self.recurrent.width

    def forward(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """States (B, S, width). Beyond the ends of a series the convolution sees zeros, as padding holds them."""
        near = F.relu(self.norm(self.convolution(x.transpose(1, 2)).transpose(1, 2)))
        near = self.dropout(near).masked_fill(~mask[..., None], 0)
        return torch.cat([near, self.recurrent(near, mask, lengths)], -1)


class SelfAttention(nn.Module):
    """Transformer encoder (pre-norm). By itself it knows no order; the position encoding brings it in."""

    def __init__(self, width: int, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = hidden
        self.project = nn.Linear(width, hidden)
        layer = nn.TransformerEncoderLayer(
            hidden, heads, 2 * hidden, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(hidden), enable_nested_tensor=False)
        for parameter in self.encoder.layers.parameters():  # the layers are copies of one: draw each anew
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """States (B, S, hidden)."""
        states: Tensor = self.encoder(self.project(x), src_key_padding_mask=~mask)
        return states.masked_fill(~mask[..., None], 0)


class Pool(nn.Module):
    """One vector per series from its states: ``mean``, ``max``, or ``mean_max`` (both, side by side)."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.width = 2 * width if kind == "mean_max" else width

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, width) and no weights."""
        parts = [masked_mean(states, mask)] if self.kind.startswith("mean") else []
        if self.kind.endswith("max"):
            parts.append(masked_max(states, mask))
        return torch.cat(parts, -1), None


class GatedAttention(nn.Module):
    """Attention pooling with a gate (Ilse et al. 2018, arXiv 1802.04712, equation 9).

    With more than one head each has weights of its own and pools its share of the states.
    """

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, heads)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, width), and the weights (B, S): they sum to 1 over the real slices; heads are averaged."""
        scores = self.score(torch.tanh(self.value(states)) * torch.sigmoid(self.gate(states)))
        weights = scores.masked_fill(~mask[..., None], -torch.inf).softmax(1)
        shares = states.reshape(*states.shape[:2], self.heads, -1)
        return (weights[..., None] * shares).sum(1).flatten(1), weights.mean(-1)
