"""Which slices drove the score of a series.

``gradient`` (gradient x input, Shrikumar et al. 2016, arXiv 1605.01713) on the slices' embeddings, the input being
measured from the series' own mean slice: how far the score moves, to first order, because this slice differs from an
average slice of this head. ``attention``: the weights of an attention model. ``removal``: how far the log odds fall
when the slice is left out, which is no approximation and costs one pass of the sequence model per slice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hemlearn.config_rules import hint
from hemlearn.data.packing import SeriesBatch
from hemlearn.errors import ConfigError
from hemlearn.explain.quiet import quiet
from hemlearn.explain.scores import SERIES, Scores
from hemlearn.models.embeddings import FLIP_AXIS
from hemlearn.tasks.base import flip_order
from hemlearn.tasks.volume_classification import VolumeClassification

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
    task, labels = scores.task, scores.task.config.task.labels
    if method == "attention" and "attention" not in task.config.sequence.name.split("+"):
        raise ConfigError(
            f"attribution=attention: the sequence model of this run ({task.config.sequence.name}) has no "
            "attention weights",
            remedy="take gradient or removal",
        )
    if len(images) == 1:
        return torch.ones(1, len(labels))
    make = {"gradient": _gradient, "attention": _attention, "removal": _removal}[method]
    total = torch.zeros(len(images), len(labels))
    with quiet(task), torch.inference_mode(False):
        for view in (None, *task.config.task.tta):
            order = flip_order(labels, task.config.task.sides) if view else list(range(len(labels)))
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
    return weights.mean(0)[0][:, None].expand(-1, len(task.config.task.labels))
