from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from hemlearn.evaluation.decision import decision_curve, likelihood_ratios, rate_at

Y = np.array([1.0] * 8 + [0.0] * 12)
P = np.array(
    [
        0.91,
        0.84,
        0.77,
        0.63,
        0.55,
        0.48,
        0.31,
        0.22,
        0.72,
        0.51,
        0.44,
        0.39,
        0.33,
        0.28,
        0.21,
        0.18,
        0.12,
        0.09,
        0.05,
        0.02,
    ]
)


def test_equal_to_dcurves():
    """Dcurves 1.1.7, ``dca(...)`` of these twenty cases."""
    found = decision_curve(Y, P, thresholds=np.array([0.1, 0.2, 0.3, 0.5, 0.7]))
    np.testing.assert_allclose(found.model, [0.35, 0.3125, 0.242857, 0.15, 0.033333], atol=1e-6)
    np.testing.assert_allclose(found.treat_all, [0.333333, 0.25, 0.142857, -0.2, -1.0], atol=1e-6)
    assert (found.low <= found.model).all()
    assert (found.model <= found.high).all()


def test_bands_draw_patients():
    """Five copies of each case under its patient tell nothing new."""
    rng = np.random.default_rng(0)
    y = (rng.random(60) < 0.4).astype(float)
    p = 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(size=60))))
    one = decision_curve(y, p)
    copies = decision_curve(np.repeat(y, 5), np.repeat(p, 5), np.repeat(np.arange(60), 5))
    as_if = decision_curve(np.repeat(y, 5), np.repeat(p, 5))
    np.testing.assert_allclose(copies.model, one.model)
    np.testing.assert_allclose(copies.high - copies.low, one.high - one.low)
    assert (as_if.high - as_if.low)[:50].mean() < 0.6 * (one.high - one.low)[:50].mean()
    unknown = decision_curve(np.r_[y, np.nan], np.r_[p, 0.9], draws=0)
    np.testing.assert_allclose(unknown.model, one.model)
    assert np.isnan(unknown.low).all()


def test_one_rate_at_the_other():
    found = rate_at(Y, P, 0.9)  # one of twelve negatives may be called: 0.72; above 0.51 lie five positives
    assert found.value == 5 / 8
    assert 0 <= found.low < found.value < found.high <= 1
    assert rate_at(Y, P, 1.0).value == 3 / 8
    assert rate_at(Y, P, 1.0, of="specificity").value == 6 / 12  # 0.22 is called, and six negatives lie below
    assert rate_at(Y, np.full(20, 0.5), 0.9).value == 0  # a tie is called as a whole
    assert math.isnan(rate_at(Y[:8], P[:8], 0.9).value)
    few = rate_at(np.r_[1, 1, Y[8:]], np.r_[0.9, 0.8, P[8:]], 0.9)
    assert few.value == 1
    assert math.isnan(few.low)  # two patients with the finding have no interval


def test_likelihood_ratios_and_predictive_values():
    y, called = np.r_[np.ones(100), np.zeros(100)], np.r_[np.ones(90), np.zeros(10), np.ones(20), np.zeros(80)]
    found = likelihood_ratios(y, called)
    assert found.positive.value == pytest.approx(4.5)
    assert found.negative.value == pytest.approx(0.125)
    spread = 1.959964 * math.sqrt(0.1 / 90 + 0.8 / 20)  # Simel 1991
    assert found.positive.low == pytest.approx(4.5 * math.exp(-spread), rel=1e-5)
    ppv, npv = found.predictive_values(0.1)
    assert ppv.value == pytest.approx(0.9 * 0.1 / (0.9 * 0.1 + 0.2 * 0.9))
    assert npv.value == pytest.approx(0.8 * 0.9 / (0.8 * 0.9 + 0.1 * 0.1))
    for rate in (ppv, npv):
        assert 0 < rate.low < rate.value < rate.high < 1
    for bad in (0, 1, -0.5, 2):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            found.predictive_values(bad)
    several = likelihood_ratios(np.repeat(y, 3), np.repeat(called, 3), np.repeat(np.arange(200), 3))
    assert several.positive.value == pytest.approx(4.5)
    assert several.positive.low == pytest.approx(found.positive.low, rel=0.15)
    perfect = likelihood_ratios([1, 1, 0, 0], [1, 1, 0, 0])
    assert perfect.positive.value == math.inf
    assert math.isnan(perfect.positive.low)
    assert perfect.predictive_values(0.2)[0].value == 1
    assert math.isnan(likelihood_ratios([1, 1], [1, 0]).positive.value)


def test_no_interval_of_ratios_where_a_class_has_one_or_two_patients():
    slices, alarms = np.ones(20), np.tile([1, 0, 0, 0], 30)
    y, called = np.r_[slices, np.zeros(120)], np.r_[slices[:15], 0 * slices[15:], alarms]
    for one in (np.zeros(20), np.arange(20) % 2):  # each draw would have the same share of one patient's slices
        found = likelihood_ratios(y, called, np.r_[one, 2 + np.repeat(np.arange(30), 4)])
        assert (found.positive.value, found.negative.value) == pytest.approx((3.0, 1 / 3))
        assert np.isnan([found.positive.low, found.negative.high]).all()
    assert math.isnan(likelihood_ratios([1, 1, *[0] * 30], [1, 0, *[1] * 3, *[0] * 27]).positive.low)


def test_intervals_of_clustered_ratios_cover_with_ten_patients_a_class():
    rng, held = np.random.default_rng(0), 0
    y, who = np.repeat([1.0, 0.0], 80), np.repeat(np.arange(20), 8)
    true = ndtr(0.75 / math.sqrt(1.49)) / ndtr(-0.75 / math.sqrt(1.49))
    for seed in range(200):
        score = np.repeat(rng.normal(size=20), 8) + 1.5 * y + rng.normal(0, 0.7, 160)
        found = likelihood_ratios(y, score > 0.75, who, draws=300, seed=seed).positive
        held += found.low <= true <= found.high
    assert held >= 184  # of 200; 0.90 with plain percentiles


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        decision_curve(Y, P, thresholds=np.array([0.0]))
    with pytest.raises(ValueError, match="outside"):
        decision_curve(Y, 2 * P)
    with pytest.raises(ValueError, match="expected"):
        decision_curve(Y, P[:3])
    with pytest.raises(ValueError, match="up to 1"):
        rate_at(Y, P, 0.0)
