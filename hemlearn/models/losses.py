"""Training losses for binary, multilabel and multiclass tasks, with unknown labels masked.

All of them take logits and float targets of the same shape, where NaN means unknown and values between 0 and 1 come
from mixup. Weights follow the convention of the torch function of the same name, so that figures stay comparable:
the binary loss divides by the number of known entries (a weight of 2 doubles a label's share and its gradient), the
softmax loss by the summed weight of the classes that occur.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hemlearn.plugins import supplied
from hemlearn.util.errors import ConfigError, count

_FITS = {"bce": ("binary", "multilabel"), "cross_entropy": ("multiclass",)}
# Keeps the slope of x ** gamma finite at 0 for gamma below 1.
_TINY = 1e-12


class BinaryLoss(nn.Module):
    """Binary cross-entropy per label, optionally focal (Lin et al. 2017, arXiv 1708.02002).

    The focal factor is ``|y - p| ** gamma``: for a hard label that is the paper's ``(1 - p_t) ** gamma``, and it
    also holds for soft ones.

    Args:
        label_weights: (L,) factor of each label's loss.
        positive_weight: (L,) further factor of the positive term, so that rare positives count more.
        label_smoothing: s moves each target y to ``y * (1 - s) + s / 2``.
        gamma: Focal exponent; 0 is plain cross-entropy.
    """

    weight: Tensor
    positive_weight: Tensor

    def __init__(
        self, label_weights: Tensor, positive_weight: Tensor, label_smoothing: float = 0.0, gamma: float = 0.0
    ) -> None:
        super().__init__()
        # Buffers travel to the device with the module; a checkpoint has no use for them.
        self.register_buffer("weight", label_weights.float(), persistent=False)
        self.register_buffer("positive_weight", positive_weight.float(), persistent=False)
        self.label_smoothing = label_smoothing
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the known entries of (B, L) logits and targets; 0 where all are unknown."""
        logits, clean, known = _known(logits, target)
        clean = clean * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = F.binary_cross_entropy_with_logits(
            logits, clean, weight=self.weight, pos_weight=self.positive_weight, reduction="none"
        )
        if self.gamma:
            loss = loss * (clean - logits.sigmoid()).abs().clamp_min(_TINY).pow(self.gamma)
        return torch.where(known, loss, 0.0).sum() / known.sum().clamp_min(1)


class SoftmaxLoss(nn.Module):
    """Cross-entropy over exclusive classes, optionally focal with factor ``(1 - p_c) ** gamma`` per class.

    Args:
        class_weights: (C,) factor of each class.
        label_smoothing: s moves each target row y to ``y * (1 - s) + s / C``.
        gamma: Focal exponent; 0 is plain cross-entropy.
    """

    weight: Tensor

    def __init__(self, class_weights: Tensor, label_smoothing: float = 0.0, gamma: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", class_weights.float(), persistent=False)
        self.label_smoothing = label_smoothing
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted mean over the rows of (B, C) without an unknown entry; 0 where there is none."""
        logits, clean, known = _known(logits, target)
        rows = known.all(1)
        logp = logits.log_softmax(1)
        share = clean * (1 - self.label_smoothing) + self.label_smoothing / clean.shape[1]
        terms = -self.weight * share * logp
        if self.gamma:
            terms = terms * (1 - logp.exp()).clamp_min(_TINY).pow(self.gamma)
        total = torch.where(rows, terms.sum(1), 0.0).sum()
        scale = torch.where(rows, (self.weight * clean).sum(1), 0.0).sum()
        # Nothing known, or only classes of weight 0: such a batch must not move the network.
        return total * torch.where(scale > 0, 1.0 / scale.clamp_min(_TINY), 0.0)


def _known(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and targets in float32 with unknown targets set to 0, and the mask of the known ones.

    A NaN must be gone before the loss is computed: masking afterwards would still leave a NaN gradient.
    """
    if logits.shape != target.shape or logits.ndim != 2:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must be equal (B, L) shapes")
    known = ~torch.isnan(target)
    return logits.float(), torch.where(known, target, 0.0).float(), known


def build_loss(
    spec: Any, *, labels: Sequence[str], kind: str, positives: Tensor | None, negatives: Tensor | None
) -> nn.Module:
    """The training loss of a task.

    ========== ====================================== =====================================
    kind       name                                   weights
    ========== ====================================== =====================================
    binary,    bce, focal                             label_weights, positive_weight
    multilabel
    multiclass cross_entropy, focal                   label_weights (one per class)
    ========== ====================================== =====================================

    Args:
        spec: Option object of group ``loss`` (``positive_weight: balanced`` means negatives / positives per label); or
            a module, a class or a node ``{_target_: ...}`` of one's own, which are offered ``labels``, ``kind``,
            ``positives`` and ``negatives`` and see NaN where a label is unknown.
        labels: L names.
        kind: binary, multilabel or multiclass.
        positives: (L,) number of training slices labelled 1, per label; None while they are not known: balanced
            weights are then 1.
        negatives: (L,) number of training slices labelled 0, per label.

    Returns:
        Module of (logits (B, L), target (B, L)) -> scalar.

    Raises:
        ConfigError: Unknown loss, one that does not suit the task, weights of the wrong length or value, or balanced
            weights for a label that is never positive or never negative in the training slices.

    Examples:
        >>> from hemlearn.config.schema import LossConfig
        >>> loss = build_loss(LossConfig(), labels=["bleed"], kind="binary", positives=None, negatives=None)
        >>> round(float(loss(torch.zeros(2, 1), torch.tensor([[1.0], [torch.nan]]))), 3)
        0.693
    """
    own: nn.Module | None = supplied(
        spec, "loss", kind=nn.Module, labels=list(labels), positives=positives, negatives=negatives
    )
    if own is not None:
        return own
    loss = spec
    if kind not in _FITS.get(loss.name, (kind,)):
        fitting = "cross_entropy or focal" if kind == "multiclass" else "bce or focal"
        raise ConfigError(f"loss.name={loss.name} does not suit task.kind={kind}", remedy=f"use loss={fitting}")
    gamma = loss.gamma if loss.name == "focal" else 0.0
    weights = _weights("label_weights", loss.label_weights, labels)
    if kind == "multiclass":
        if loss.positive_weight is not None:
            raise ConfigError(
                f"loss.positive_weight={loss.positive_weight!r}: exclusive classes have no negatives to weigh against",
                remedy="set loss.label_weights, one per class",
            )
        return SoftmaxLoss(weights, loss.label_smoothing, gamma)
    if loss.positive_weight == "balanced":
        known = positives is not None and negatives is not None
        positive_weight = _balanced(labels, positives, negatives) if known else torch.ones(len(labels))
    else:
        positive_weight = _weights("positive_weight", loss.positive_weight, labels)
    return BinaryLoss(weights, positive_weight, loss.label_smoothing, gamma)


def _weights(key: str, values: object, labels: Sequence[str]) -> Tensor:
    if values is None:
        return torch.ones(len(labels))
    example = [1.0] * len(labels)
    if not isinstance(values, list | tuple):
        options = "a list" if key == "label_weights" else "a list or 'balanced'"
        raise ConfigError(f"loss.{key}={values!r}: neither null nor {options}", remedy=f"e.g. {example}")
    if len(values) != len(labels):
        raise ConfigError(
            f"loss.{key}={values}: {count(len(values), 'number')} for {count(len(labels), 'label')} "
            f"({', '.join(labels)})",
            remedy=f"give one per label in that order, e.g. {example}",
        )
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numeric or not all(math.isfinite(v) and v >= 0 for v in values) or not any(values):
        raise ConfigError(
            f"loss.{key}={values}: needs finite numbers of 0 or more, not all 0", remedy=f"e.g. {example}"
        )
    return torch.tensor([float(v) for v in values])


def _balanced(labels: Sequence[str], positives: Tensor | None, negatives: Tensor | None) -> Tensor:
    assert positives is not None
    assert negatives is not None
    if len(positives) != len(labels) or len(negatives) != len(labels):
        raise ValueError(f"{len(positives)} positive and {len(negatives)} negative counts for {len(labels)} labels")
    for label, ones, zeros in zip(labels, positives.tolist(), negatives.tolist(), strict=True):
        if ones <= 0 or zeros <= 0:
            raise ConfigError(
                f"loss.positive_weight=balanced: label '{label}' has {ones:g} positive and {zeros:g} negative "
                "training slices, so no balance exists",
                remedy="drop the label from task.labels, change the split, or give loss.positive_weight as a list",
            )
    return negatives.float() / positives.float()
