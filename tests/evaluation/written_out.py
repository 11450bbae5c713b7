"""Formulas that the tests hold hemlearn's results against, and short forms of its functions."""

from __future__ import annotations

import numpy as np

from hemlearn.audits.baselines import with_position
from hemlearn.evaluation.auroc import contrast, obuchowski_covariance
from hemlearn.evaluation.bootstrap import label_weights, weighted_log_loss_terms
from hemlearn.evaluation.predictions import POSITION, as_predictions


def auroc_test(y, first, second, cluster=None):
    """Test that two scores of the same cases have one AUROC."""
    both = np.stack([np.asarray(first, float), np.asarray(second, float)])
    return contrast(*obuchowski_covariance(y, both, cluster), 0, 1)


def position_table(train, test, labels):
    """Predictions of the position baseline as a table."""
    split = test.get("split", "test")
    return as_predictions(with_position(test.assign(split=split), train, labels), labels, POSITION)


def weighted_log_loss(y, p, weights=None):
    """Weighted log loss of all cases as the run's scores compute it."""
    truth, prob = np.asarray(y, float), np.asarray(p, float)
    factors = label_weights(weights, [f"label {j}" for j in range(truth.shape[1])])
    loss, total = (part.sum() for part in weighted_log_loss_terms(truth, prob, factors))
    return loss / total if total > 0 else float("nan")
