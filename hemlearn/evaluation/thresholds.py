"""Decision thresholds, chosen on validation cases only.

A case is called positive when its probability is at least the threshold.

Sources: Youden 1950; Metz 1978, Semin. Nucl. Med. 8:283 (the operating point that costs least).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from hemlearn.evaluation.auroc import NAN, Floats
from hemlearn.util.errors import ConfigError

RULES = ("youden", "accuracy", "f1")
TARGETED = ("sensitivity", "specificity", "cost")  # written with a number: sensitivity:0.95
_SAME = 1e-12


def parse_rule(rule: Any) -> tuple[str, float]:
    """Name and number of a threshold rule: ``("sensitivity", 0.95)``, ``("youden", nan)``, ``("fixed", 0.3)``."""
    if isinstance(rule, int | float) and not isinstance(rule, bool) and 0 <= rule <= 1:
        return "fixed", float(rule)
    if rule in RULES:
        return str(rule), NAN
    name, colon, text = str(rule).partition(":") if isinstance(rule, str) else ("", "", "")
    if name not in TARGETED or not colon:
        raise ConfigError(
            f"task.threshold={rule!r}: unknown rule",
            remedy=f"use a number from 0 to 1, or one of {', '.join(RULES)}, sensitivity:0.95, specificity:0.9, cost:5",
        )
    try:
        value = float(text)
    except ValueError:
        value = NAN
    if name == "cost" and not (value > 0 and math.isfinite(value)):
        raise ConfigError(
            f"task.threshold={rule!r}: {text!r} is not a cost",
            remedy="give what a missed positive costs if a false alarm costs 1: cost:5",
        )
    if name != "cost" and not 0 < value <= 1:
        raise ConfigError(
            f"task.threshold={rule!r}: {text!r} is not a {name}",
            remedy=f"give a share above 0 and up to 1, such as {name}:0.95",
        )
    return name, value


def choose_threshold(y: npt.ArrayLike, p: npt.ArrayLike, rule: Any) -> float:
    """The threshold that a rule prefers.

    Every cut between two neighbouring scores, below the lowest and above the highest is judged. A cut is placed in
    the middle of its gap, where it is least sensitive to new cases; among equally good cuts the one nearest to 0.5
    wins. Cases with a null label are left out.

    Args:
        y: (N,) labels 0, 1 or NaN.
        p: (N,) probabilities.
        rule: One of

            * ``youden``: greatest sensitivity + specificity - 1;
            * ``accuracy``, ``f1``: greatest of these;
            * ``sensitivity:S``: the highest cut whose sensitivity is at least S;
            * ``specificity:S``: the lowest cut whose specificity is at least S;
            * ``cost:C``: least cost, a missed positive costing C and a false alarm 1;
            * a number from 0 to 1: itself.

    Returns:
        The threshold; NaN when the rule has no answer: no case, or a class is absent on which it rests (accuracy rests
        on neither, f1 and sensitivity on positives, specificity on negatives, youden and cost on both).

    Raises:
        ConfigError: An unknown rule, or a number out of its range.
        ValueError: A score is NaN or infinite.
    """
    name, target = parse_rule(rule)
    if name == "fixed":
        return target
    truth, score = np.asarray(y, dtype=float), np.asarray(p, dtype=float)
    known = ~np.isnan(truth)
    truth, score = truth[known], score[known]
    if not np.isfinite(score).all():
        raise ValueError("scores hold NaN or infinity")
    positives = float(truth.sum())
    negatives = len(truth) - positives
    rests_on = {"accuracy": (), "f1": (positives,), "sensitivity": (positives,), "specificity": (negatives,)}
    if not len(truth) or not all(rests_on.get(name, (positives, negatives))):
        return NAN
    values, inverse = np.unique(score, return_inverse=True)
    at = np.bincount(inverse, minlength=len(values)).astype(float)
    positive_at = np.bincount(inverse, weights=truth, minlength=len(values))
    # Cut k calls values[k:] positive; cut len(values) calls none.
    tp = np.append(np.cumsum(positive_at[::-1])[::-1], 0.0)
    fp = np.append(np.cumsum((at - positive_at)[::-1])[::-1], 0.0)
    middle = _middles(values)
    if name == "sensitivity":
        return float(middle[np.flatnonzero(tp >= target * positives * (1 - _SAME))[-1]])
    if name == "specificity":
        return float(middle[np.flatnonzero(negatives - fp >= target * negatives * (1 - _SAME))[0]])
    if name == "youden":
        gain = tp * negatives - fp * positives  # times a constant, in whole numbers: ties are exact
    elif name == "accuracy":
        gain = tp - fp
    elif name == "cost":
        gain = target * tp - fp
    else:
        gain = 2 * tp / (positives + tp + fp)
    best = np.flatnonzero(gain >= gain.max() - _SAME * max(1.0, abs(gain.max())))
    return float(middle[best[np.argmin(np.abs(middle[best] - 0.5))]])


def _middles(values: Floats) -> Floats:
    """(K + 1,) thresholds of the cuts below, between and above K ascending scores."""
    edges = np.concatenate([[min(0.0, values[0])], values, [max(1.0, values[-1])]])
    middle = (edges[:-1] + edges[1:]) / 2
    # A middle must lie above the lower score, or rounding between neighbouring floats would change the decision.
    middle[1:-1] = np.where(middle[1:-1] > values[:-1], middle[1:-1], values[1:])
    if values[-1] >= 1:
        middle[-1] = np.nextafter(values[-1], 2.0)  # nothing is called positive
    return np.asarray(middle)
