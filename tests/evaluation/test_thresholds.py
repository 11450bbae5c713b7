from __future__ import annotations

import math

import numpy as np
import pytest

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.metrics import choose_threshold, evaluate
from hemlearn.util.errors import ConfigError
from tests.evaluation.test_metrics import both


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
    for rule in ("yuden", 1.5, True, None):
        with pytest.raises(ConfigError, match="threshold="):
            choose_threshold([0, 1], [0.1, 0.9], rule)


def problems(count):
    rng = np.random.default_rng(1)
    for _ in range(count):
        n = int(rng.integers(2, 40))
        y = np.r_[1.0, 0.0, (rng.random(n) < 0.4)]
        yield y, np.round(np.clip(rng.random(n + 2) * 0.8 + 0.3 * y, 0, 1), int(rng.integers(1, 4)))


@pytest.mark.parametrize("target", [0.01, 0.3, 0.5, 0.9, 0.95, 1.0])
def test_fixed_sensitivity_is_the_highest_cut_that_reaches_it(target):
    for y, p in problems(40):
        t = choose_threshold(y, p, f"sensitivity:{target}")
        assert (p[y == 1] >= t).mean() >= target - 1e-12
        higher = np.unique(p)[np.unique(p) >= t][1:]  # every cut above the one taken falls short
        assert all((p[y == 1] >= cut).mean() < target for cut in [*higher, 2.0])


@pytest.mark.parametrize("target", [0.01, 0.3, 0.5, 0.9, 0.95, 1.0])
def test_fixed_specificity_is_the_lowest_cut_that_reaches_it(target):
    for y, p in problems(40):
        t = choose_threshold(y, p, f"specificity:{target}")
        assert (p[y == 0] < t).mean() >= target - 1e-12
        lower = np.unique(p)[np.unique(p) < t]
        assert all((p[y == 0] < cut).mean() < target for cut in lower)


@pytest.mark.parametrize("cost", [0.2, 1, 5, 40])
def test_no_cut_costs_less(cost):
    for y, p in problems(40):

        def paid(t, y=y, p=p):
            return cost * ((p < t) & (y == 1)).sum() + ((p >= t) & (y == 0)).sum()

        assert paid(choose_threshold(y, p, f"cost:{cost}")) == pytest.approx(min(map(paid, [*np.unique(p), 2.0])))


def test_targets_that_rounding_must_not_miss():
    y, p = np.r_[np.ones(10), np.zeros(10)], np.r_[np.linspace(0.55, 1.0, 10), np.linspace(0.0, 0.45, 10)]
    assert (p[:10] >= choose_threshold(y, p, "sensitivity:0.7")).sum() == 7  # 0.7 x 10 is 7.000000000000001 at worst
    assert (p[10:] < choose_threshold(y, p, "specificity:0.3")).sum() == 3
    assert choose_threshold(y, p, "sensitivity:1") == pytest.approx(0.5)
    assert choose_threshold(y, p, "specificity:1") == pytest.approx(0.5)


def test_constant_scores():
    y, p = np.array([0.0, 1, 0, 1]), np.full(4, 0.3)
    assert choose_threshold(y, p, "sensitivity:0.5") <= 0.3  # all or none: all
    assert choose_threshold(y, p, "specificity:0.5") > 0.3
    ones = np.ones(4)
    assert choose_threshold(y, ones, "specificity:0.9") > 1
    assert choose_threshold(y, np.zeros(4), "sensitivity:0.9") <= 0


def test_rules_with_a_number_are_undefined_without_their_class():
    only_negative, only_positive = ([0, 0], [0.2, 0.4]), ([1, 1], [0.2, 0.4])
    assert math.isnan(choose_threshold(*only_negative, "sensitivity:0.9"))
    assert math.isnan(choose_threshold(*only_positive, "specificity:0.9"))
    assert choose_threshold(*only_positive, "sensitivity:0.9") <= 0.2
    assert choose_threshold(*only_negative, "specificity:0.9") > 0.4
    for cases in (only_negative, only_positive):
        assert math.isnan(choose_threshold(*cases, "cost:5"))
    assert math.isnan(choose_threshold([], [], "sensitivity:0.9"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        choose_threshold([0, 1], [0.1, math.nan], "youden")


def test_rules_are_read_and_refused():
    for rule, told in (
        ("sensitivity:95", "a share above 0"),
        ("sensitivity:0", "a share above 0"),
        ("cost:0", "the cost of a missed positive"),
        ("cost:inf", "the cost of a missed positive"),
        ("specificity:high", "a share above 0"),
        ("sensitivity", "expected one of"),
        ("precision:0.9", "expected one of"),
        ("f1:0.3", "expected one of"),
    ):
        with pytest.raises(ConfigError, match=told):
            choose_threshold([0, 1], [0.1, 0.9], rule)


@pytest.mark.parametrize("rule", ["sensitivity:0.95", "specificity:0.9", "cost:5"])
def test_rules_are_fitted_on_validation_and_reported_on_test(rule):
    df = both(patients=200)
    found = evaluate(df, TaskConfig(labels=["h"], threshold=rule), replicates=0)
    chosen = found["thresholds"]["slice"]["h"]
    validation, test = (df[df["split"] == split] for split in ("val", "test"))
    assert chosen["value"] == choose_threshold(validation["label_h"], validation["prob_h"], rule)
    assert chosen["rule"] == rule
    if not rule.startswith("cost"):
        name, _, target = rule.partition(":")
        assert found["val"]["slice"][name]["value"] >= float(target)
        side = test[test["label_h"] == (name == "sensitivity")]
        called = side["prob_h"] >= chosen["value"]
        expected = called.mean() if name == "sensitivity" else 1 - called.mean()
        assert found["test"]["slice"][name]["value"] == pytest.approx(expected)
