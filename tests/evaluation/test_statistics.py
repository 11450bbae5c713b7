"""Closed-form statistics against independent implementations, textbook values and their own coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from hemlearn.evaluation.auroc import (
    auroc_interval,
    clustered_wilson,
    newcombe,
    obuchowski_covariance,
    roc_points,
    wilson,
)
from tests.evaluation.written_out import auroc_test


def naive(y, scores):
    """DeLong by its definition: every pair of a positive and a negative, O(n^2)."""
    rows = np.atleast_2d(scores)
    v10, v01 = [], []
    for p in rows:
        kernel = (p[y == 1][:, None] > p[y == 0]) + 0.5 * (p[y == 1][:, None] == p[y == 0])
        v10.append(kernel.mean(axis=1))
        v01.append(kernel.mean(axis=0))
    m, n = int(y.sum()), int((y == 0).sum())
    cov = np.cov(np.atleast_2d(v10)) / m + np.cov(np.atleast_2d(v01)) / n
    return np.mean(v10, axis=1), np.atleast_2d(cov)


def problem(rng, n=None, models=1):
    n = n or int(rng.integers(6, 60))
    y = np.zeros(n)
    y[: int(rng.integers(2, n - 1))] = 1
    rng.shuffle(y)
    digits = int(rng.integers(1, 4))  # one digit makes many ties
    return y, np.round(rng.random((models, n)) * 0.6 + 0.4 * y * rng.random(), digits)


def test_delong_equals_the_quadratic_definition_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(100):
        y, scores = problem(rng, models=3)
        areas, cov = obuchowski_covariance(y, scores)
        expected_areas, expected_cov = naive(y, scores)
        np.testing.assert_allclose(areas, expected_areas, atol=1e-12)
        np.testing.assert_allclose(cov, expected_cov, atol=1e-12)
        assert areas[0] == pytest.approx(roc_auc_score(y, scores[0]), abs=1e-12)


def test_delong_test_equals_an_independent_package():
    from MLstatkit import Delong_test

    rng = np.random.default_rng(1)
    compared = 0
    for _ in range(60):
        y, scores = problem(rng, n=40, models=2)
        ours = auroc_test(y, scores[0], scores[1])
        if ours.z != ours.z or ours.z == 0:
            continue
        z, p = Delong_test(y.astype(int), scores[0], scores[1], return_ci=False, return_auc=False)
        assert abs(ours.z) == pytest.approx(abs(z), abs=1e-9)
        assert ours.p == pytest.approx(p, abs=1e-9)
        compared += 1
    assert compared > 40


def test_delong_sign_identity_and_no_variance():
    y = np.array([0, 0, 1, 1, 0, 1])
    good, bad = np.array([0.1, 0.2, 0.8, 0.9, 0.3, 0.7]), np.array([0.9, 0.2, 0.4, 0.1, 0.5, 0.7])
    assert auroc_test(y, good, bad).difference > 0
    assert auroc_test(y, good, bad).z == pytest.approx(-auroc_test(y, bad, good).z)
    assert auroc_test(y, good, good) == (0.0, 0.0, 1.0)
    opposite = auroc_test(y, good, 1 - good)
    assert opposite.difference == 1.0
    assert math.isnan(opposite.p)


def test_delong_undefined_and_refused():
    assert all(math.isnan(v) for v in auroc_interval([1, 1, 1], [0.1, 0.2, 0.3])[:4])
    assert all(math.isnan(v) for v in auroc_interval([], [])[:4])
    single = auroc_interval([1, 0, 0, 0], [0.9, 0.1, 0.95, 0.3])  # one positive: an area, no DeLong variance
    assert single.value == pytest.approx(2 / 3)
    assert math.isnan(single.variance)
    assert math.isnan(single.low)
    assert single.note == "positive cases of 1 patient only: no interval below 3"
    with pytest.raises(ValueError, match="NaN or infinity"):
        auroc_interval([0, 1], [0.1, math.nan])
    with pytest.raises(ValueError, match="other than 0 and 1"):
        auroc_interval([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="shape"):
        auroc_interval([0, 1, 1], [0.1, 0.2])


def test_perfect_area_keeps_an_interval_that_narrows_with_n():
    low = []
    for n in (5, 50, 500):
        y = np.r_[np.zeros(n), np.ones(n)]
        found = auroc_interval(y, y * 0.5 + 0.1)
        assert (found.value, found.high) == (1.0, 1.0)
        low.append(found.low)
    assert 0.5 < low[0] < low[1] < low[2] < 1
    constant = auroc_interval(np.r_[np.zeros(20), np.ones(20)], np.full(40, 0.3))
    assert constant.value == 0.5
    assert constant.low == pytest.approx(1 - constant.high, abs=1e-9)
    assert 0.2 < constant.low < 0.45


def test_newcombe_is_symmetric_and_contains_its_estimate():
    for area in (0.0, 0.1, 0.5, 0.93, 1.0):
        low, high = newcombe(area, 12, 30)
        assert 0 <= low <= area <= high <= 1
        mirrored = newcombe(1 - area, 12, 30)
        assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize("area", [0.8, 0.95, 0.99])
def test_auroc_interval_covers(area):
    rng = np.random.default_rng(int(area * 100))
    shift, hits, runs = math.sqrt(2) * norm.ppf(area), 0, 500
    y = np.r_[np.ones(60), np.zeros(90)]
    for _ in range(runs):
        found = auroc_interval(y, rng.normal(size=150) + shift * y)
        hits += found.low <= area <= found.high
    assert 0.90 <= hits / runs <= 0.985


def test_wilson_values_and_edges():
    assert wilson(192, 200) == pytest.approx((0.9231, 0.9796), abs=5e-5)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(10, 10)[0] == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert all(math.isnan(v) for v in wilson(0, 0))


def test_clustered_wilson_equals_wilson_for_single_cases_and_widens_with_copies():
    rng = np.random.default_rng(3)
    hit = rng.random(80) < 0.8
    plain, n = clustered_wilson(hit, np.arange(80))
    assert plain == wilson(hit.sum(), 80)
    assert n == 80
    copied, effective = clustered_wilson(np.repeat(hit, 10), np.repeat(np.arange(80), 10))
    assert effective == pytest.approx(80, rel=0.03)  # ten identical slices tell no more than one
    assert copied == pytest.approx(plain, abs=0.006)
    independent, effective = clustered_wilson(rng.random(800) < 0.8, np.repeat(np.arange(80), 10))
    assert effective > 400
    assert independent.high - independent.low < plain.high - plain.low


def test_clustered_wilson_unanimous_and_single_patient():
    unanimous, effective = clustered_wilson(np.ones(100), np.repeat(np.arange(20), 5))
    assert effective == 20
    assert unanimous == wilson(20, 20, df=19)
    two, _ = clustered_wilson([1, 1, 0, 1], ["a", "a", "b", "b"])  # of one degree of freedom: hardly anything is known
    assert two.low < 0.05
    assert 0.95 < two.high < 1
    single, _ = clustered_wilson([1, 0, 1], ["a", "a", "a"])
    assert all(math.isnan(v) for v in single)


def test_clustered_wilson_covers_where_the_plain_one_does_not():
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(40), 20)
    clustered = plain = 0
    for _ in range(300):
        rate = rng.beta(8, 2, 40)  # patients differ
        hit = rng.random(800) < rate[cluster]
        low, high = clustered_wilson(hit, cluster)[0]
        clustered += low <= 0.8 <= high
        low, high = wilson(hit.sum(), 800)
        plain += low <= 0.8 <= high
    assert clustered / 300 > 0.91
    assert plain / 300 < 0.85


def test_roc_points_equal_sklearn():
    rng = np.random.default_rng(5)
    for _ in range(10):
        y, scores = problem(rng)
        x, t = roc_points(y, scores[0])
        fpr, tpr, _ = roc_curve(y, scores[0], drop_intermediate=False)
        np.testing.assert_allclose(x, fpr)
        np.testing.assert_allclose(t, tpr)
        assert np.trapezoid(t, x) == pytest.approx(roc_auc_score(y, scores[0]))
