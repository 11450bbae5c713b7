"""Models over the slices of a series: from slice embeddings to per-slice and per-series logits.

All are invariant to padding and to what else is in the batch, so that series of different length train together and a
series gets the same result alone.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hemlearn.config.schema import SEQUENCES, SequenceConfig
from hemlearn.models.mil import Smooth, TransMIL, instance_logits, most_and_least
from hemlearn.models.series_layers import (
    POSITION_WIDTH,
    ConvRecurrent,
    GatedAttention,
    Perceptron,
    Pool,
    Recurrent,
    SelfAttention,
    encode_position,
    masked_max,
    neighbour_differences,
    reverse_series,
    slice_mask,
)
from hemlearn.plugins import supplied
from hemlearn.util.errors import ConfigError

NAMES = SEQUENCES[1:]
ATTENTION = ("attention", "smooth_attention", "clam", "transmil")  # models with weights of slices
_POOLED = ("mean", "max", *ATTENTION[:3])  # models whose context is the pooled vector


class SequenceOutput(NamedTuple):
    """Logits of padded series; :meth:`SequenceModel.each` puts the members in front of every shape."""

    slices: Tensor  # (B, S, L) logits, 0 at padding
    series: Tensor  # (B, L) logits
    attention: Tensor | None  # (B, S) weights that sum to 1 over the real slices, 0 at padding; only ATTENTION
    # Of name=clam in training: logits (B, S, L, 2) of its classifiers of slices, and which slices (B, S) train them
    clusters: tuple[Tensor, Tensor] | None = None


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
        steps: int,
        instances: int,
        series_only: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.takes_probabilities = probabilities
        self.instances = instances
        self.encoder: Perceptron | Recurrent | ConvRecurrent | SelfAttention | TransMIL
        if name in ("lstm", "gru"):
            self.encoder = Recurrent(name, width, hidden, layers, bidirectional, dropout)
        elif name == "conv_gru":
            self.encoder = ConvRecurrent(width, hidden, layers, bidirectional, kernel, dropout)
        elif name == "transformer":
            self.encoder = SelfAttention(width, hidden, layers, heads, dropout)
        elif name == "transmil":
            self.encoder = TransMIL(width, hidden, layers, heads, dropout)
        else:
            self.encoder = Perceptron(width, hidden, layers, dropout)
        states = self.encoder.width
        self.smooth = Smooth(steps) if name == "smooth_attention" else None
        self.pool: Pool | GatedAttention | None = None  # the class token of transmil is its own
        if name in _POOLED and name in ATTENTION:
            self.pool = GatedAttention(states, hidden, heads, gated=name != "smooth_attention")
        elif name != "transmil":
            self.pool = Pool(name if name in _POOLED else "mean_max", states)
        pooled = states if self.pool is None else self.pool.width
        # A linear layer on [state, pooled] could only shift all slices of a series alike: one hidden layer mixes them.
        mixes = name in _POOLED and not series_only
        self.mix = nn.Sequential(nn.Linear(states + pooled, hidden), nn.ReLU()) if mixes else None
        extra = outputs if probabilities else 0
        self.dropout = nn.Dropout(output_dropout)
        self.slice_output: nn.Linear | None = None
        if name == "slice" or not series_only:
            self.slice_output = nn.Linear((hidden if self.mix else states) + extra, outputs)
        self.series_output = None if name == "slice" else nn.Linear(pooled + extra, outputs)
        self.clusters = nn.Linear(states, 2 * outputs) if name == "clam" else None

    def forward(
        self, x: Tensor, mask: Tensor, lengths: Tensor, probabilities: Tensor | None, z_mm: Tensor | None = None
    ) -> SequenceOutput:
        """Output for the assembled input ``x`` (B, S, width), zero at padding."""
        weights: Tensor | None
        if isinstance(self.encoder, TransMIL):
            states, pooled, weights = self.encoder(x, mask, lengths)
        else:
            states = self.encoder(x, mask, lengths)
            if self.smooth is not None:
                states = self.smooth(states, mask, z_mm)
            assert self.pool is not None
            pooled, weights = self.pool(states, mask)
        clusters = None
        if self.clusters is not None and weights is not None and self.training:
            clusters = (
                self.clusters(states).reshape(*states.shape[:2], -1, 2),
                most_and_least(weights, mask, lengths, self.instances),
            )
        if self.mix is not None:
            mixed = self.mix(torch.cat([states, pooled[:, None].expand(-1, states.shape[1], -1)], -1))
        else:
            mixed = states
        if self.takes_probabilities and probabilities is not None:
            mixed = torch.cat([mixed, probabilities], -1)
            pooled = torch.cat([pooled, masked_max(probabilities, mask)], -1)
        slices: Tensor
        if self.slice_output is not None:
            slices = self.slice_output(self.dropout(mixed))
        else:
            slices = self._located(states, weights)
        # With no context at all, a series is as positive as its most positive slice.
        output = self.series_output
        series = masked_max(slices, mask) if output is None else output(self.dropout(pooled))
        return SequenceOutput(slices.masked_fill(~mask[..., None], 0), series, weights, clusters)

    def _located(self, states: Tensor, weights: Tensor | None) -> Tensor:
        """Logits (B, S, L) of slices where labels of series alone have trained: see :func:`instance_logits`.

        The series' output layer judges each slice as if it were the whole series. A class token is no weighted mean of
        slices: the slices' own tokens stand in its place, as they are.
        """
        assert self.series_output is not None
        own: Tensor = self.series_output(states if self.pool is None else self.pool.alone(states))
        return own if self.pool is None else instance_logits(own, weights)


class SequenceModel(nn.Module):
    """``members`` networks of each name in ``name`` (joined by ``+``), each from its own initialisation.

    ``slice`` sees each slice alone. ``mean``, ``max`` and ``attention`` (Ilse et al. 2018) see each slice beside a
    pooled vector of its series. ``lstm`` and ``gru`` read the slices in order; ``lstm`` with probabilities in and out
    is that of Burduja et al. 2020 (arXiv 2008.00302). ``transformer`` attends to all slices, ``conv_gru`` follows the
    idea of the RSNA 2019 winner. ``smooth_attention``, ``transmil`` and ``clam`` are those of
    :mod:`hemlearn.models.mil`.

    Train them with :meth:`each`: the sum over the members of each one's own loss gives every member the gradient it
    would have alone. Calling the model gives the mean of the members' logits (whose log loss is at most the mean of
    theirs); an average of probabilities can be taken from :meth:`each`. With ``reverse_tta`` and in evaluation
    mode, every output is the mean over the series and the series reversed: the order in which slices are read is
    reversed, each slice keeps its probabilities and its position.

    The series output layer gets no gradient when only ``slices`` enters the loss, and the reverse. With
    ``series_only`` there is no layer of the slices' own: their scores follow from what the series' label has trained.

    Args:
        name: One of :data:`NAMES`, or several joined by ``+``.
        width: Embedding width D.
        outputs: Number of logits L.
        hidden: Width of the states (per direction).
        layers: Of the encoder.
        heads: Of ``transformer``, ``transmil`` and the attention models; divides ``hidden``.
        kernel: Of ``conv_gru``, odd.
        bidirectional: ``lstm``, ``gru`` and ``conv_gru`` read both ways.
        dropout: Between layers.
        output_dropout: Before the output layers; None: as ``dropout``.
        probabilities: Where the slice run's own probabilities enter: none, in, out or both.
        differences: Add the differences to the slices below and above.
        position: Add where each slice stands, see :func:`encode_position`.
        reverse_tta: Average with the reversed series at evaluation.
        members: Networks of each name.
        steps: Of ``smooth_attention``, see :class:`~hemlearn.models.mil.Smooth`.
        instances: Of ``clam``: slices with the most and with the least attention that its clustering loss takes.
        series_only: Only labels of series train.

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
        steps: int = 10,
        instances: int = 8,
        series_only: bool = False,
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
            steps=steps,
            instances=instances,
        )
        check_sequence(name, layers, heads, hidden)
        if series_only and probabilities != "none":
            raise ConfigError(
                f"sequence.probabilities={probabilities}: learnt from labels of slices, which labels of series exclude",
                remedy="set sequence.probabilities=none",
            )
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
                steps=steps,
                instances=instances,
                series_only=series_only,
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
        slices, series, weights, _ = self.each(x, lengths, probabilities, z_mm)
        return SequenceOutput(slices.mean(0), series.mean(0), None if weights is None else weights.mean(0))

    @property
    def reads_positions(self) -> bool:
        """Whether the positions of the slices in mm matter."""
        return self.position or "smooth_attention" in self.name.split("+")

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
        output = self._run(x, mask, lengths, probabilities, place, z_mm)
        if not self.reverse_tta or self.training:
            return output
        turned = [None if part is None else reverse_series(part, lengths) for part in (probabilities, place, z_mm)]
        slices, series, weights, _ = self._run(reverse_series(x, lengths), mask, lengths, *turned)
        slices = torch.stack([reverse_series(part, lengths) for part in slices])
        if weights is not None and output.attention is not None:
            weights = torch.stack([reverse_series(part, lengths) for part in weights])
            weights = (output.attention + weights) / 2
        return SequenceOutput((output.slices + slices) / 2, (output.series + series) / 2, weights)

    def _run(
        self,
        x: Tensor,
        mask: Tensor,
        lengths: Tensor,
        probabilities: Tensor | None,
        place: Tensor | None,
        z_mm: Tensor | None,
    ) -> SequenceOutput:
        parts = [x]
        if self.differences:
            parts += neighbour_differences(x, mask)
        if probabilities is not None and self.probabilities in ("in", "both"):
            parts.append(probabilities)
        if place is not None:
            parts.append(place)
        joined = torch.cat(parts, -1)
        found = [member(joined, mask, lengths, probabilities, z_mm) for member in self.members]
        weights = [one.attention for one in found if one.attention is not None]
        clusters = [one.clusters for one in found if one.clusters is not None]
        return SequenceOutput(
            torch.stack([one.slices for one in found]),
            torch.stack([one.series for one in found]),
            torch.stack(weights) if weights else None,
            (torch.stack([one for one, _ in clusters]), torch.stack([one for _, one in clusters]))
            if clusters
            else None,
        )


def check_sequence(name: str, layers: int, heads: int, hidden: int) -> None:
    """Rules that tie several keys together, or a key to the model's name."""
    names = name.split("+")
    if name == "none":
        raise ConfigError("sequence.name=none has no model over the series", remedy=f"take one of {', '.join(NAMES)}")
    if layers < 1 and not set(names) <= {"slice", "mean", "max"}:
        raise ConfigError(f"sequence.layers={layers}", remedy=f"{name} needs 1 or more")
    for one in sorted({"transformer", *ATTENTION} & set(names)):
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
        self.reads_positions = "z_mm" in names

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


_GIVEN = ("width", "outputs", "series_only")
_KEYS = tuple(key for key in inspect.signature(SequenceModel).parameters if key not in _GIVEN)


def build_sequence(spec: Any, *, width: int, outputs: int, series_only: bool = False) -> SequenceModel | OwnSequence:
    """The sequence model of group ``sequence``, or a module of one's own (:class:`OwnSequence`).

    Args:
        spec: Option object of the group; a module, a class or a node ``{_target_: ...}``, which are offered
            ``width`` and ``outputs``.
        width: Embedding width D.
        outputs: Number of logits L.
        series_only: Only labels of series train; a module of one's own says how that gives scores of slices.

    Raises:
        ConfigError: As :class:`SequenceModel`.
    """
    own: nn.Module | None = supplied(spec, "sequence", kind=nn.Module, width=width, outputs=outputs)
    if own is None:
        known = {key: value for key, value in vars(spec).items() if key in _KEYS}
        return SequenceModel(**known, width=width, outputs=outputs, series_only=series_only)
    return own if isinstance(own, SequenceModel) else OwnSequence(own, outputs)
