"""Decision thresholds, chosen on validation cases only.

A case is called positive when its probability is at least the threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hemlearn.errors import ConfigError
from hemlearn.evaluation.statistics import NAN

RULES = ("youden", "accuracy", "f1")


def choose_threshold(y: npt.ArrayLike, p: npt.ArrayLike, rule: Any) -> float:
    """The threshold that a rule prefers.

    Every cut between two neighbouring scores, below the lowest and above the highest is judged. A cut is placed in
    the middle of its gap, where it is least sensitive to new cases; among equally good cuts the one nearest to 0.5
    wins. Cases with a null label are left out.

    Args:
        y: (N,) labels 0, 1 or NaN.
        p: (N,) probabilities.
        rule: ``youden`` (sensitivity + specificity - 1), ``accuracy``, ``f1``, or a number from 0 to 1.

    Returns:
        The threshold; NaN when the rule has no answer (no case; youden and f1 also without a positive, youden without a
        negative).

    Raises:
        ConfigError: ``rule`` is neither a known name nor a number from 0 to 1.
    """
    if isinstance(rule, int | float) and not isinstance(rule, bool) and 0 <= rule <= 1:
        return float(rule)
    if rule not in RULES:
        raise ConfigError(f"task.threshold={rule!r}: unknown rule",
                          remedy=f"use a number from 0 to 1, or one of {', '.join(RULES)}")  # fmt: skip
    truth, score = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    known = ~np.isnan(truth)
    truth, score = truth[known], score[known]
    positives = float(truth.sum())
    negatives = len(truth) - positives
    if not len(truth) or (rule != "accuracy" and not positives) or (rule == "youden" and not negatives):
        return NAN
    values, inverse = np.unique(score, return_inverse=True)
    at = np.bincount(inverse, minlength=len(values)).astype(float)
    positive_at = np.bincount(inverse, weights=truth, minlength=len(values))
    # Cut k calls values[k:] positive; cut len(values) calls none.
    tp = np.append(np.cumsum(positive_at[::-1])[::-1], 0.0)
    fp = np.append(np.cumsum((at - positive_at)[::-1])[::-1], 0.0)
    if rule == "youden":
        gain = tp * negatives - fp * positives  # times a constant, in whole numbers: ties are exact
    elif rule == "accuracy":
        gain = tp - fp
    else:
        gain = 2 * tp / (positives + tp + fp)
    edges = np.concatenate([[min(0.0, values[0])], values, [max(1.0, values[-1])]])
    middle = (edges[:-1] + edges[1:]) / 2
    # A middle must lie above the lower score, or rounding between neighbouring floats would change the decision.
    middle[1:-1] = np.where(middle[1:-1] > values[:-1], middle[1:-1], values[1:])
    if values[-1] >= 1:
        middle[-1] = np.nextafter(values[-1], 2.0)  # nothing is called positive
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(middle[best[np.argmin(np.abs(middle[best] - 0.5))]])
