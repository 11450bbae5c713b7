"""What is explained: the log odds behind every probability that a run reports, as a function of images.

Log odds, because a probability near 0 or 1 has no gradient left. For a binary or multilabel run they are the network's
own logits; for exclusive classes, the log odds of a class against all others together; for an average (over members,
or over the slices of a series) the log odds of the averaged probability. Calibration is a monotone map on top of them
and changes no order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hemlearn.config.schema import SequenceConfig
from hemlearn.data.batches import SeriesBatch
from hemlearn.evaluation.pooling import Pool
from hemlearn.models.embeddings import FLIP_AXIS
from hemlearn.models.sequence import ATTENTION
from hemlearn.tasks.base import Classification
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.tasks.volumes3d import Volume3DClassification
from hemlearn.transforms.augment import side_permutation
from hemlearn.util.errors import ConfigError, hint

# --- A network that is looked at and not changed.


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of parameters; modes and ``requires_grad`` are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for module, _ in modes:
        module.training = False  # not eval(): a task's own train() would freeze and seed again
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, value in wanted:
            parameter.requires_grad_(value)


SLICE, SERIES = "slice", "series"


def log_parts(logits: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """``log p`` and ``log (1 - p)`` of logits ``(..., L)``, without loss where p is near 0 or 1."""
    logits = logits.float()
    if kind != "multiclass":
        return F.logsigmoid(logits), F.logsigmoid(-logits)
    own = logits.log_softmax(-1)
    others = own[..., None, :].expand(*own.shape, own.shape[-1])
    itself = torch.eye(own.shape[-1], dtype=torch.bool, device=own.device)
    return own, others.masked_fill(itself, -torch.inf).logsumexp(-1)


def mean_parts(parts: tuple[Tensor, Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """The same of the probabilities averaged over ``dim``."""
    shift = math.log(parts[0].shape[dim])
    return parts[0].logsumexp(dim) - shift, parts[1].logsumexp(dim) - shift


def _features(odds: Tensor, k: int) -> Tensor:
    """``(B, L, 4)`` features of log odds ``(B, T, L)``, as :func:`hemlearn.evaluation.pooling.features`."""
    near, weight = odds.clone(), torch.ones_like(odds)
    for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        near[:, here] = near[:, here] + 0.5 * odds[:, there]
        weight[:, here] += 0.5
    most = odds.topk(min(k, odds.shape[1]), 1).values
    return torch.stack([odds.amax(1), most.mean(1), odds.mean(1), (near / weight).amax(1)], -1)


def check_maps(task: nn.Module) -> None:
    """Refuse a task for whose slices there are no maps.

    Raises:
        ConfigError: A 3D network.
    """
    if isinstance(task, Volume3DClassification):
        raise ConfigError(
            "explain: a 3D network reads whole volumes, for which there are no maps of slices",
            remedy="explain a run of a 2D backbone on the same series",
        )


class Scores:
    """Log odds of slices and of their series, for either kind of run.

    Args:
        task: Of a finished run, in evaluation mode.
        z_mm: ``(T,)`` positions of the slices of the series that is explained, mm; None: unknown. Only a sequence
            model reads them.
        pool: What ``task.aggregate`` needs for a series; None: equal weights.
    """

    def __init__(self, task: Classification, z_mm: Tensor | None = None, pool: Pool | None = None) -> None:
        check_maps(task)
        self.task = task
        self.pool = Pool(task.options.top_k) if pool is None else pool
        self.kind = task.kind
        self.z_mm = z_mm
        made_from = getattr(task, "config", None)  # a slice task has no chunk of its own, but its run has
        default = SequenceConfig() if made_from is None else made_from.sequence
        self.size: int = getattr(task, "chunk", default.chunk)

    @property
    def of_series(self) -> bool:
        """Whether a sequence model reads the slices."""
        return isinstance(self.task, VolumeClassification)

    def default(self) -> str:
        """What is explained unless asked otherwise: the series of a sequence run, else each slice by itself."""
        return SERIES if self.of_series else SLICE

    def chunks(self, count: int) -> int:
        """Calls of the backbone for ``count`` slices."""
        return -(-count // self.size)

    def __call__(self, images: Tensor, of: str) -> Tensor:
        """Log odds ``(T, L)`` of each slice, or ``(1, L)`` of their series, from images ``(T, C, S, S)`` in [0, 1].

        Raises:
            ConfigError: Scores of slices from a run whose labels describe whole series.
        """
        return self.from_vectors(self.encode(images)[None], of)[0 if of == SLICE else slice(None)]

    def encode(self, images: Tensor) -> Tensor:
        """``(T, V)``: embeddings (and a slice run's logits) for a sequence model, else the slices' logits."""
        return torch.cat([self._encode(part) for part in torch.tensor_split(images, self.chunks(len(images)))])

    def _encode(self, images: Tensor) -> Tensor:
        task = self.task
        if isinstance(task, VolumeClassification):
            return task.encoder.encode(images)
        if task.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        found: Tensor = task.head(task.backbone(images))
        return found

    def from_vectors(self, vectors: Tensor, of: str, rows: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Log odds ``(B, T, L)`` of slices or ``(B, L)`` of series from B versions of a series ``(B, T, V)``.

        Args:
            vectors: See :meth:`encode`.
            of: ``slice`` or ``series``.
            rows: Which slices of the series each version holds; None: all.
        """
        task = self.task
        if isinstance(task, VolumeClassification):
            slices, series = self._sequence(task, vectors, rows)
        else:
            slices, series = log_parts(vectors, self.kind), None
        labelled = task.options.scores_slices
        if of == SLICE:
            if series is not None and not labelled:
                raise ConfigError(
                    f"of=slice: the labels of this run (task.level={task.options.level}) describe "
                    "whole series, so that its slices have no score of their own",
                    remedy="explain the series: of=series",
                )
            return slices[0] - slices[1]
        how = task.options.aggregate if labelled or series is None else "model"
        if how == "max":
            return (slices[0] - slices[1]).amax(1)
        if how == "model" and series is not None:
            return series[0] - series[1]
        if how == "noisy_or":
            none = slices[1].sum(1)
            return (-torch.expm1(none)).clamp_min(torch.finfo(none.dtype).tiny).log() - none
        odds = slices[0] - slices[1]
        if how == "logistic":
            return _features(odds, self.pool.k) @ odds.new_tensor(self.pool.weights)
        if how == "top_k":
            most = odds.topk(min(self.pool.k, odds.shape[1]), 1).indices
            slices = (slices[0].gather(1, most), slices[1].gather(1, most))
        ones, zeros = mean_parts(slices, 1)
        return ones - zeros

    def batch(self, vectors: Tensor, rows: Sequence[Sequence[int]] | None = None) -> SeriesBatch:
        """What a sequence model needs beside the vectors."""
        count, slices = vectors.shape[:2]
        z_mm = torch.full((slices,), torch.nan) if self.z_mm is None else self.z_mm.to(torch.float32)
        places = z_mm.repeat(count) if rows is None else torch.cat([z_mm[list(some)] for some in rows])
        lengths = torch.full((count,), slices)
        found = {"lengths": lengths.to(vectors.device), "z_mm": places.to(vectors.device)}
        return cast(SeriesBatch, found)

    def _sequence(
        self, task: VolumeClassification, vectors: Tensor, rows: Sequence[Sequence[int]] | None
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        out = task.sequence(vectors.flatten(0, 1), self.batch(vectors, rows))
        own, whole = (mean_parts(log_parts(value, self.kind), 0) for value in (out.slices, out.series))
        return own, whole


# --- Which slices drove the score of a series.


METHODS = ("gradient", "attention", "removal")
_VERSIONS = 32  # shortened series that pass the sequence model at once


def slice_attribution(scores: Scores, images: Tensor, method: str = "gradient") -> Tensor:
    """The share of each slice in the series' score, averaged over the run's test-time flips.

    Args:
        scores: The run's scores, with the slices' positions.
        images: ``(T, C, S, S)`` channels of the slices of one series in order, in [0, 1].
        method: gradient | attention | removal.

    Returns:
        ``(T, L)``; of each label the absolute values sum to 1, or all are 0 where no slice matters. Negative: the slice
        speaks against the label. The only slice of a series has 1. Attention has no sign and is the same for all
        labels.

    Raises:
        ConfigError: Unknown method, or attention of a run without an attention model.
    """
    if method not in METHODS:
        raise ConfigError(f"attribution={method}{hint(method, METHODS)}", remedy=f"take one of {', '.join(METHODS)}")
    task, labels = scores.task, scores.task.labels
    sequence = str(getattr(task.parts.get("sequence"), "name", "none"))
    if method == "attention" and not set(ATTENTION) & set(sequence.split("+")):
        raise ConfigError(
            f"attribution=attention: the sequence model of this run ({sequence}) has no attention weights",
            remedy="take gradient or removal",
        )
    if len(images) == 1:
        return torch.ones(1, len(labels))
    make = {"gradient": _gradient, "attention": _attention, "removal": _removal}[method]
    total = torch.zeros(len(images), len(labels))
    with eval_mode(task), torch.inference_mode(False):
        for view in (None, *task.options.tta):
            order = side_permutation(labels, task.options.sides) if view else list(range(len(labels)))
            seen = images if view is None else images.flip(FLIP_AXIS[view])
            with torch.no_grad():
                vectors = scores.encode(seen)
            total += make(scores, vectors)[:, order].cpu()
    size = total.abs().sum(0)
    return torch.where(size > 0, total / size, 0.0)


def _gradient(scores: Scores, vectors: Tensor) -> Tensor:
    columns = []
    with torch.enable_grad():
        inputs = vectors.clone().requires_grad_()
        found = scores.from_vectors(inputs[None], SERIES)[0]
        for label in range(len(found)):
            (gradient,) = torch.autograd.grad(found[label], inputs, retain_graph=True)
            columns.append((gradient * (vectors - vectors.mean(0))).sum(1))
    return torch.stack(columns, dim=1)


@torch.no_grad()
def _removal(scores: Scores, vectors: Tensor) -> Tensor:
    count = len(vectors)
    whole = scores.from_vectors(vectors[None], SERIES)[0]
    left = [[k for k in range(count) if k != gone] for gone in range(count)]
    out = []
    for start in range(0, count, _VERSIONS):
        chosen = left[start : start + _VERSIONS]
        versions = torch.stack([vectors[rows] for rows in chosen])
        out.append(whole - scores.from_vectors(versions, SERIES, chosen))
    return torch.cat(out)


@torch.no_grad()
def _attention(scores: Scores, vectors: Tensor) -> Tensor:
    task = scores.task
    assert isinstance(task, VolumeClassification)
    batch: SeriesBatch = scores.batch(vectors[None])
    weights = task.sequence(vectors, batch).attention
    assert weights is not None
    return weights.mean(0)[0][:, None].expand(-1, len(task.labels))
