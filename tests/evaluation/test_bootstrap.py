"""The vectorised clustered bootstrap: values against scikit-learn, replicates against a plain loop, coverage."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as sk

from hemlearn.evaluation.bootstrap import LabelCases, draws, equal_mass_bins, percentile, units_of


def cases(rng, n=120, patients=30, ties=False):
    y = (rng.random(n) < 0.4).astype(float)
    p = np.clip(0.5 * y + rng.random(n) * 0.6, 0.01, 0.99)
    return y, np.round(p, 1 if ties else 6), rng.integers(0, patients, n)


@pytest.mark.parametrize("ties", [False, True])
def test_unit_weights_give_the_textbook_values(ties):
    y, p, cluster = cases(np.random.default_rng(0), ties=ties)
    called = p >= 0.5
    found = LabelCases.build(y, p, called, cluster, 30).values(np.ones((1, 30)))
    expected = {
        "accuracy": sk.accuracy_score(y, called),
        "sensitivity": sk.recall_score(y, called),
        "specificity": sk.recall_score(1 - y, ~called),
        "f1": sk.f1_score(y, called),
        "brier": sk.brier_score_loss(y, p),
        "log_loss": sk.log_loss(y, np.clip(p, 1e-7, 1 - 1e-7)),
        "auroc": sk.roc_auc_score(y, p),
        "ap": sk.average_precision_score(y, p),
    }
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, abs=1e-12), name


def test_weighted_values_equal_repeated_rows():
    rng = np.random.default_rng(1)
    y, p, cluster = cases(rng, ties=True)
    weights = next(draws(30, 20, 7, 20))
    found = LabelCases.build(y, p, p >= 0.5, cluster, 30).values(weights)
    for r, w in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(len(y)), w[cluster])
        assert found["auroc"][r] == pytest.approx(sk.roc_auc_score(y[rows], p[rows]), abs=1e-12)
        assert found["ap"][r] == pytest.approx(sk.average_precision_score(y[rows], p[rows]), abs=1e-12)
        assert found["brier"][r] == pytest.approx(np.mean((y[rows] - p[rows]) ** 2), abs=1e-12)
        assert found["f1"][r] == pytest.approx(sk.f1_score(y[rows], p[rows] >= 0.5), abs=1e-12)


def test_calibration_error_of_equal_mass_bins():
    p = np.repeat([0.1, 0.9], 50)
    y = np.r_[np.ones(10), np.zeros(40), np.ones(30), np.zeros(20)]
    found = LabelCases.build(y, p, p > 0.5, np.arange(100), 100).values(np.ones((1, 100)))
    assert found["ece"][0] == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    bins = equal_mass_bins(np.random.default_rng(0).random(1000))
    assert (np.bincount(bins) == 100).all()


def test_draws_are_of_as_many_patients_and_follow_the_seed():
    first = np.concatenate(list(draws(57, 300, 3, 7)))
    assert first.shape == (300, 57)
    assert (first.sum(axis=1) == 57).all()
    assert first.mean(axis=0) == pytest.approx(np.ones(57), abs=0.3)
    # free: the share of any class varies as a binomial one does
    assert first[:, :20].sum(axis=1).std() == pytest.approx(math.sqrt(57 * 20 / 57 * 37 / 57), rel=0.15)
    np.testing.assert_array_equal(first, np.concatenate(list(draws(57, 300, 3, 100))))
    assert (first != np.concatenate(list(draws(57, 300, 4, 7)))).any()


def test_undefined_is_nan_never_zero():
    n = np.zeros(4)
    found = LabelCases.build(n, np.array([0.1, 0.6, 0.3, 0.2]), n > 0, np.arange(4), 4).values(np.ones((1, 4)))
    assert {k for k, v in found.items() if np.isnan(v[0])} == {"sensitivity", "f1", "auroc", "ap"}
    empty = LabelCases.build(np.zeros(0), np.zeros(0), np.zeros(0, bool), np.zeros(0, int), 3).values(np.ones((2, 3)))
    assert all(np.isnan(v).all() for v in empty.values())


def test_percentile_without_spread_or_with_too_few_replicates_is_nan():
    assert all(math.isnan(v) for v in percentile(np.ones(100), 1.0))
    assert all(math.isnan(v) for v in percentile(np.r_[np.full(60, np.nan), np.arange(40)], 20.0))
    assert percentile(np.arange(1001.0), 500.0) == pytest.approx((25, 975))
    shifted = percentile(np.arange(1001.0) + 10, 500.0, shift_bias=True)
    assert shifted == pytest.approx((15, 975))  # the lower end twice


def test_few_patients_widen_the_interval():
    values = np.random.default_rng(0).normal(size=4001)
    plain = percentile(values, 0.0)
    assert percentile(values, 0.0, units=10**6) == pytest.approx(plain, abs=1e-4)
    widths = [np.diff(percentile(values, 0.0, units=g))[0] for g in (200, 40, 12, 5, 2)]
    assert widths == sorted(widths)
    # of a normal spread: t with 11 degrees of freedom, and the variance that resampling 12 units leaves out
    assert widths[2] == pytest.approx(2 * 2.201 * math.sqrt(12 / 11), rel=0.06)
    assert all(math.isnan(v) for v in percentile(values, 0.0, units=1))
    y, who = np.array([1.0, 1, 0, 0, 0]), np.array([0, 0, 0, 1, 2])
    assert units_of(y, who) == (1, "positive cases of 1 patient only: no interval below 3")
    assert units_of(np.tile([0.0, 1], 20), np.repeat(np.arange(10), 4))[0] == pytest.approx(10)
    assert units_of(np.ones(3), np.arange(3)) == (3, "")  # one class alone
    uneven = np.array([0, 0, 0, 1, 2, 3, 4, 5, 6])
    assert units_of(np.array([1.0] * 5 + [0.0] * 4), uneven)[0] == pytest.approx(25 / 11)  # of 3, 1 and 1 positives


def test_clustered_bootstrap_covers():
    rng = np.random.default_rng(5)
    area, hits, runs = 0.85, 0, 100
    shift = math.sqrt(2) * norm.ppf(area)
    cluster = np.repeat(np.arange(80), 6)
    sick = np.repeat([0.0, 1.0], 40)
    for run in range(runs):
        # Half of the variance belongs to the patient: slices are far from independent.
        score = (rng.normal(size=80)[cluster] + rng.normal(size=480)) / math.sqrt(2) + shift * sick[cluster]
        label = LabelCases.build(sick[cluster], 1 / (1 + np.exp(-score)), score > 0, cluster, 80)
        values = np.concatenate([label.values(w)["auroc"] for w in draws(80, 200, run, 200)])
        low, high = percentile(values, 0.5, units=40)
        hits += low <= area <= high
    assert 0.88 <= hits / runs <= 0.99


def test_ten_thousand_rows_take_seconds():
    y, p, cluster = cases(np.random.default_rng(6), n=10_000, patients=300)
    label = LabelCases.build(y, p, p >= 0.5, cluster, 300)
    start = time.process_time()
    values = np.concatenate([label.values(w)["auroc"] for w in draws(300, 400, 0, 200)])
    assert time.process_time() - start < 8  # about half a second
    assert values.std() > 0
