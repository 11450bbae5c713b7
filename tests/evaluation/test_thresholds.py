from __future__ import annotations

import math

import numpy as np
import pytest

from hemlearn.errors import ConfigError
from hemlearn.evaluation.thresholds import choose_threshold


def score(y, p, t, rule):
    called = p >= t
    tp, fp = (called & (y == 1)).sum(), (called & (y == 0)).sum()
    if rule == "youden":
        return tp / y.sum() - fp / (1 - y).sum()
    if rule == "accuracy":
        return (called == (y == 1)).mean()
    return 2 * tp / (y.sum() + tp + fp)


@pytest.mark.parametrize("rule", ["youden", "accuracy", "f1"])
def test_no_threshold_is_better(rule):
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(4, 40))
        y = np.r_[1.0, 0.0, (rng.random(n) < 0.4)]
        p = np.round(rng.random(n + 2) * 0.7 + 0.3 * y, int(rng.integers(1, 4)))
        best = max(score(y, p, t, rule) for t in [*np.unique(p), 2.0])
        assert score(y, p, choose_threshold(y, p, rule), rule) == pytest.approx(best)


def test_middle_of_the_gap_and_nearest_to_one_half():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], "youden") == pytest.approx(0.4)
    # cuts in (0.1, 0.3] and in (0.6, 0.8] are equally good: 0.7 is nearer to 0.5 than 0.2
    assert choose_threshold([0, 1, 0, 1], [0.1, 0.3, 0.6, 0.8], "youden") == pytest.approx(0.7)


def test_neighbouring_floats_and_saturated_scores_stay_apart():
    low = 0.5
    high = np.nextafter(low, 1)
    t = choose_threshold([0, 1], [low, high], "accuracy")
    assert low < t <= high
    t = choose_threshold([0, 0, 0, 1], [1.0, 1.0, 1.0, 0.2], "accuracy")
    assert not (np.array([1.0]) >= t).any()  # calling none positive is the best there is


def test_unknown_labels_are_left_out_and_undefined_is_nan():
    nan = math.nan
    assert choose_threshold([0, nan, 1], [0.2, 0.99, 0.4], "youden") == pytest.approx(0.3)
    assert math.isnan(choose_threshold([0, 0], [0.2, 0.4], "youden"))
    assert math.isnan(choose_threshold([1, 1], [0.2, 0.4], "youden"))
    assert math.isnan(choose_threshold([0, 0], [0.2, 0.4], "f1"))
    assert math.isnan(choose_threshold([nan], [0.2], "accuracy"))
    assert choose_threshold([0, 0], [0.2, 0.4], "accuracy") > 0.4


def test_numbers_and_unknown_rules():
    assert choose_threshold([], [], 0.3) == 0.3
    assert choose_threshold([], [], 1) == 1.0
    for rule in ("yuden", 1.5, True, None):
        with pytest.raises(ConfigError, match="unknown rule"):
            choose_threshold([0, 1], [0.1, 0.9], rule)
