"""The weighted log loss of the RSNA 2019 intracranial hemorrhage challenge, as a function and as a torchmetrics Metric.

For each slice the binary log losses of its labels are averaged with weights (``any`` 2, each of five subtypes 1, hence
divided by 7); the score is the mean over slices, lower is better. Probabilities are clipped to [1e-15, 1 - 1e-15].
Unknown labels (NaN) take their weight out of the average: the loss summed over all known entries is divided by the
summed weight of those entries, which for fully labelled slices is the mean over slices.

Source: Flanders et al. 2020, Radiology: AI 2(3):e190211, and the challenge's evaluation page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from hemlearn.evaluation.bootstrap import WEIGHTED_TINY, label_weights, weighted_log_loss_terms
from hemlearn.evaluation.statistics import NAN


def weighted_log_loss(y: npt.ArrayLike, p: npt.ArrayLike, weights: Sequence[float] | None = None) -> float:
    """The weighted log loss of all cases together.

    Args:
        y: (N, L) labels 0, 1 or NaN (unknown).
        p: (N, L) probabilities.
        weights: L weights; None: equal ones.

    Returns:
        The loss; NaN where no label of positive weight is known.

    Raises:
        ConfigError: The weights do not fit the labels.
        ValueError: Shapes differ, a label is none of the above, or a probability lies outside [0, 1].
    """
    truth, prob = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if truth.shape != prob.shape or truth.ndim != 2:
        raise ValueError(f"y {truth.shape} and p {prob.shape} must be equal (N, L) shapes")
    if not (np.isnan(truth) | (truth == 0) | (truth == 1)).all():
        raise ValueError("y holds values other than 0, 1 and NaN")
    if not ((prob >= 0) & (prob <= 1)).all():
        raise ValueError("p holds values outside [0, 1]")
    factors = label_weights(weights, [f"label {j}" for j in range(truth.shape[1])])
    loss, total = (float(part.sum()) for part in weighted_log_loss_terms(truth, prob, factors))
    return loss / total if total > 0 else NAN


class WeightedLogLoss(Metric):
    """:func:`weighted_log_loss` over batches and processes.

    The states are two sums (loss, weight), so that processes with different numbers of cases add up rightly. They are
    float64, which every device but Apple's ``mps`` has; there the metric belongs on the CPU.

    Args:
        labels: L names, for messages.
        weights: L weights; None: equal ones.
        options: Further arguments of :class:`torchmetrics.Metric`.

    Raises:
        ConfigError: The weights do not fit the labels.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    weights: Tensor
    loss: Tensor
    total: Tensor

    def __init__(self, labels: Sequence[str], weights: Sequence[float] | None = None, **options: Any) -> None:
        super().__init__(**options)
        factors = torch.from_numpy(label_weights(weights, labels).copy())
        self.register_buffer("weights", factors, persistent=False)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("loss", default=zero.clone(), dist_reduce_fx="sum")
        self.add_state("total", default=zero.clone(), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            preds: (B, L) probabilities.
            target: (B, L) labels 0, 1 or NaN (unknown).

        Raises:
            ValueError: Shapes differ from each other or from the labels, or a probability lies outside [0, 1].
        """
        if preds.shape != target.shape or preds.ndim != 2 or preds.shape[1] != len(self.weights):
            raise ValueError(
                f"preds {tuple(preds.shape)} and target {tuple(target.shape)} must be equal (B, L) shapes "
                f"with L={len(self.weights)}"
            )
        p = preds.detach().to(torch.float64)
        if not bool(((p >= 0) & (p <= 1)).all()):
            raise ValueError("preds holds values outside [0, 1]")
        known = ~torch.isnan(target)
        truth = torch.where(known, target, 0.0).to(torch.float64)
        bound = float(np.log(WEIGHTED_TINY))
        right, wrong = p.log().clamp_min(bound), torch.log1p(-p).clamp_min(bound)
        loss = torch.where(known, -(truth * right + (1 - truth) * wrong), 0.0)
        self.loss += (loss * self.weights).sum()
        self.total += (known * self.weights).sum()

    def compute(self) -> Tensor:
        """The loss of everything added; NaN before the first known label."""
        return self.loss / self.total
