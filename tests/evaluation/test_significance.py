"""Tests between classifiers against independent implementations, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar as contingency_mcnemar

from hemlearn.evaluation.auroc import (
    FEWEST,
    auroc_interval,
    contrast,
    degrees_of_freedom,
    obuchowski_covariance,
    variance_of_difference,
)
from hemlearn.evaluation.significance import (
    Test,
    corrected_resampled,
    difference_of_intervals,
    holm,
    mcnemar,
    non_inferiority,
    paired_auroc_matrix,
    paired_macro_matrix,
    two_proportions,
    unpaired_auroc,
)
from hemlearn.util.errors import ConfigError
from tests.evaluation.written_out import auroc_test

Z = stats.norm.ppf(0.975)


def made(difference, se, confidence=0.95):
    reach = stats.norm.ppf(0.5 + confidence / 2) * se
    return Test(
        "made", difference, difference - reach, difference + reach, difference / se, 0.5, 100, 100, "", confidence
    )


# --- AUROC ------------------------------------------------------------------------------------------------------------


def test_two_hundred_problems_with_ties_equal_an_independent_package():
    from MLstatkit import Delong_test

    rng = np.random.default_rng(0)
    compared = ties = 0
    while compared < 200:
        n = int(rng.integers(8, 120))
        y = (rng.random(n) < rng.uniform(0.2, 0.8)).astype(int)
        if not 2 <= y.sum() <= n - 2:
            continue
        scores = np.round(rng.normal(size=(2, n)) * rng.uniform(0.5, 2) + y, int(rng.integers(0, 3)))
        areas, covariance = obuchowski_covariance(y, scores)
        if covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1] < 1e-12:
            continue  # the package then changes to a bootstrap
        ours = contrast(areas, covariance, 0, 1)
        z, p, ci_a, ci_b, area_a, area_b, info = Delong_test(y, scores[0], scores[1], return_ci=True, return_auc=True)
        assert info["method"] == "delong"
        assert areas == pytest.approx((area_a, area_b), abs=1e-9)
        assert (ours.z, ours.p) == pytest.approx((-z, p), abs=1e-9)  # it subtracts the other way round
        assert variance_of_difference(covariance, 0, 1) == pytest.approx(info["var_diff"], abs=1e-9)
        if min(y.sum(), n - y.sum()) >= FEWEST:
            test = paired_auroc_matrix(y, scores)[0, 1]
            assert (test.statistic, test.p) == pytest.approx((-z, p), abs=1e-9)
            assert ((test.high - test.low) / 2 / Z) ** 2 == pytest.approx(info["var_diff"], abs=1e-9)
        for value, variance, (low, high) in zip(areas, np.diag(covariance), (ci_a, ci_b), strict=True):
            assert (low, high) == pytest.approx(np.clip([value - Z * variance**0.5, value + Z * variance**0.5], 0, 1))
        compared += 1
        ties += info["tie_rate_A"] > 0
    assert ties > 100


def test_matrix_is_the_pairwise_test_of_every_pair():
    rng = np.random.default_rng(1)
    y = (rng.random(90) < 0.4).astype(float)
    scores = rng.normal(size=(4, 90)) + y
    who = np.repeat(np.arange(30), 3)
    for cluster, name in ((None, "DeLong"), (np.arange(90), "DeLong"), (who, "Obuchowski, clustered by patient")):
        found = paired_auroc_matrix(y, scores, cluster)
        assert list(found) == [(i, j) for i in range(4) for j in range(i + 1, 4)]
        for (i, j), test in found.items():
            one = auroc_test(y, scores[i], scores[j], cluster)
            assert (test.difference, test.statistic) == pytest.approx(one[:2], abs=1e-9)
            df = degrees_of_freedom(y, who) if cluster is who else 1e12
            assert test.p == pytest.approx(2 * stats.t.sf(abs(one.z), df), abs=1e-9)
            assert test.name == name
            assert (test.n, test.clusters) == (90, 30 if cluster is who else 90)
            assert (test.low > 0 or test.high < 0) == (test.p < 0.05)
    narrow, wide = (paired_auroc_matrix(y, scores, confidence=c)[0, 1] for c in (0.9, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_paired_test_keeps_its_level():
    rng = np.random.default_rng(2)
    hits = 0
    y = np.r_[np.ones(40), np.zeros(80)]
    for _ in range(500):
        shared = rng.normal(size=120)
        scores = y + shared + rng.normal(size=(2, 120))
        hits += paired_auroc_matrix(y, scores)[0, 1].p < 0.05
    assert 0.025 <= hits / 500 <= 0.08  # 0.05 with about three standard errors of 500


def test_pairs_without_an_answer_say_why():
    rng = np.random.default_rng(3)
    y = np.r_[np.ones(30), np.zeros(30)]
    scores = np.stack([y, 2 * y + 1, np.full(60, 0.5), np.full(60, 0.1), rng.normal(size=60) + y])
    found = paired_auroc_matrix(y, scores)
    perfect, constant, real = found[0, 1], found[2, 3], found[0, 4]
    assert (perfect.difference, perfect.p, perfect.note) == (0.0, 1.0, "perfect separation: the variance is 0")
    assert math.isnan(perfect.low)
    assert constant[1:6] == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert real.note == ""
    assert real.difference > 0
    assert math.isfinite(real.low)
    for truth, who, told in (
        (np.zeros(60), None, "no positive case"),
        (np.ones(60), None, "no negative case"),
        (y, np.zeros(60), "positive cases of 1 patient only: no interval below 3"),
        (y, np.repeat(np.arange(4), 15), "positive cases of 2 patients only: no interval below 3"),
        (y, np.repeat(np.arange(12), 5), "only 6 patients on one side"),
    ):
        test = paired_auroc_matrix(truth, scores[3:], who)[0, 1]
        assert told in test.note
        assert math.isnan(test.p) == math.isnan(test.low) == ("only 6" not in told)
    with pytest.raises(ValueError, match="NaN or infinity"):
        paired_auroc_matrix(y, np.stack([y, np.full(60, math.nan)]))
    assert paired_auroc_matrix(y, scores[:1]) == {}


def test_macro_pairs():
    rng = np.random.default_rng(4)
    y = np.eye(3)[rng.integers(0, 3, 150)]
    scores = np.stack([y + rng.normal(size=y.shape), 0.2 * y + rng.normal(size=y.shape)])
    test = paired_macro_matrix(y, scores)[0, 1]
    assert test.low > 0
    assert test.p < 1e-3
    means = [np.mean([auroc_interval(y[:, j], s[:, j]).value for j in range(3)]) for s in scores]
    assert test.difference == pytest.approx(means[0] - means[1])
    y[:, 2] = 0
    part = paired_macro_matrix(y, scores, np.repeat(np.arange(50), 3))[0, 1]
    assert "mean over 2 of 3 labels" in part.note
    assert part.clusters == 50
    nothing = paired_macro_matrix(y * 0, scores)[0, 1]
    assert math.isnan(nothing.p)
    assert "mean over 0 of 3" in nothing.note


def test_unpaired_areas():
    rng = np.random.default_rng(5)
    y = np.r_[np.ones(40), np.zeros(60)]
    first, second = (auroc_interval(y, rng.normal(size=100) + shift * y) for shift in (2.5, 0.5))
    test = unpaired_auroc(first.value, first.variance, second.value, second.variance)
    se = math.sqrt(first.variance + second.variance)
    assert test.statistic == pytest.approx((first.value - second.value) / se)
    assert (test.low, test.high) == pytest.approx((test.difference - Z * se, test.difference + Z * se))
    assert test.p == pytest.approx(2 * stats.norm.sf(abs(test.statistic)))
    # Welch's degrees of freedom as pROC 1.18's roc.test(paired = FALSE) has them: cases less 1 of either sample
    welch = unpaired_auroc(first.value, first.variance, second.value, second.variance, df=(99, 99))
    df = se**4 / (first.variance**2 / 99 + second.variance**2 / 99)
    assert welch.p == pytest.approx(2 * stats.t.sf(abs(test.statistic), df))
    assert welch.high - welch.difference == pytest.approx(stats.t.ppf(0.975, df) * se)
    for variances in ((0.0, 0.0), (math.nan, 0.01)):
        none = unpaired_auroc(1.0, variances[0], 0.9, variances[1])
        assert math.isnan(none.p)
        assert "no variance" in none.note
    assert "perfect separation" in unpaired_auroc(1.0, 0.0, 0.9, 0.001).note


# --- proportions ------------------------------------------------------------------------------------------------------


def test_mcnemar_is_the_score_test():
    rng = np.random.default_rng(6)
    for _ in range(20):
        a, b = rng.random((2, 70)) < [[0.9], [0.75]]
        test = mcnemar(a, b)
        only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
        cells = [[0, only_a], [only_b, 0]]
        assert test.p == pytest.approx(contingency_mcnemar(cells, exact=False, correction=False).pvalue, abs=1e-9)
        assert test.difference == pytest.approx(a.mean() - b.mean())
        assert test.low < test.difference < test.high
        mirrored = mcnemar(b, a)
        assert (mirrored.low, mirrored.high) == pytest.approx((-test.high, -test.low), abs=1e-9)
        assert test.note == f"discordant pairs {only_a}:{only_b}"


def calls(first, second, n):
    """Two rows of calls with so many right by one model alone."""
    rest = n - first - second
    return np.r_[np.ones(first), np.zeros(second), np.ones(rest)], np.r_[np.zeros(first), np.ones(second + rest)]


def test_tangos_interval_inverts_the_score_test():
    # airway hyper-responsiveness (Fagerland, Lydersen and Laake 2014, Statist. Med. 33:2850): Tango -0.517 to -0.026
    published = mcnemar(*calls(1, 7, 21))
    assert (published.low, published.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    for first, second, n in ((1, 7, 21), (0, 5, 12), (9, 4, 60)):
        test = mcnemar(*calls(first, second, n))
        for bound in (test.low, test.high):

            def unlikely(share, d=bound, cells=(first, second, n)):  # of the second kind, were the difference d
                a, b, rest = cells[0], cells[1], cells[2] - cells[0] - cells[1]
                return -(a * np.log(share + d) + b * np.log(share) + rest * np.log(1 - 2 * share - d))

            limits = (max(0.0, -bound) + 1e-12, (1 - bound) / 2 - 1e-12)
            share = minimize_scalar(unlikely, bounds=limits, method="bounded", options={"xatol": 1e-12}).x
            z = (first - second - n * bound) / math.sqrt(n * (2 * share + bound - bound**2))
            assert abs(z) == pytest.approx(Z, abs=1e-4)


def test_interval_of_paired_accuracies_covers_also_near_one():
    rng = np.random.default_rng(7)
    cells = np.array([0.90, 0.06, 0.02, 0.02])  # both, first only, second only, neither
    inside = 0
    for _ in range(500):
        pick = rng.choice(4, 60, p=cells)
        test = mcnemar(pick < 2, (pick == 0) | (pick == 2))
        inside += test.low <= 0.04 <= test.high
    assert 0.92 <= inside / 500 <= 0.995


def test_clustered_mcnemar():
    rng = np.random.default_rng(8)
    a, b = rng.random((2, 60)) < [[0.9], [0.7]]
    once = mcnemar(a, b, np.arange(60))
    assert once.name == "McNemar"
    many = mcnemar(np.repeat(a, 8), np.repeat(b, 8), np.repeat(np.arange(60), 8))
    assert (many.n, many.clusters, many.name) == (480, 60, "McNemar, clustered by patient")
    assert many.difference == pytest.approx(once.difference)
    # McNemar's z, up to the factor 59 / 60: copies of a slice add nothing
    assert many.statistic == pytest.approx(once.statistic * math.sqrt(59 / 60))
    naive = clustered = 0
    for _ in range(400):
        rates = rng.beta(4, 1, size=(2, 50))  # each model errs on whole patients
        right = rng.random((2, 500)) < np.repeat(rates, 10, axis=1)
        naive += mcnemar(*right).p < 0.05
        clustered += mcnemar(*right, np.repeat(np.arange(50), 10)).p < 0.05
    assert naive / 400 > 0.12
    assert 0.02 <= clustered / 400 <= 0.09


def test_mcnemar_edges():
    same = mcnemar([1, 1, 0], [1, 1, 0])
    assert (same.difference, same.p, same.statistic) == (0.0, 1.0, 0.0)
    assert same.low < 0 < same.high  # three cases prove no equality
    agree = mcnemar(np.ones(100), np.ones(100), np.repeat(np.arange(20), 5))
    assert (agree.p, agree.low) == (1.0, pytest.approx(mcnemar(np.ones(20), np.ones(20)).low))
    single = mcnemar([1, 0, 1], [0, 0, 1], ["a", "a", "a"])
    assert math.isnan(single.p)
    assert "one patient" in single.note
    empty = mcnemar([], [])
    assert (empty.n, empty.note) == (0, "no case")
    assert math.isnan(empty.p)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        mcnemar([1, math.nan], [1, 0])
    with pytest.raises(ValueError, match="expected two"):
        mcnemar([1, 0], [1])
    assert "only 4 patients" in mcnemar([1, 0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 1, 0, 1], np.repeat(range(4), 2)).note


def test_two_proportions_are_miettinen_and_nurminens():
    found = two_proportions(192, 200, 176, 200)
    chi2 = stats.chi2_contingency([[192, 8], [176, 24]], correction=False)
    assert found.statistic**2 == pytest.approx(chi2.statistic * 399 / 400)
    # Newcombe 1998, Statist. Med. 17:873, table II, method 6
    for counts, bounds in (
        ((56, 70, 48, 80), (0.0528, 0.3382)),
        ((9, 10, 3, 10), (0.1700, 0.8406)),
        ((5, 56, 0, 29), (-0.0326, 0.1933)),
        ((0, 10, 0, 10), (-0.2879, 0.2879)),
        ((10, 10, 0, 20), (0.7156, 1.0)),
    ):
        test = two_proportions(*counts)
        assert (test.low, test.high) == pytest.approx(bounds, abs=6e-5)
    both_all = two_proportions(10, 10, 20, 20)
    assert (both_all.difference, both_all.p) == (0.0, 1.0)
    assert both_all.low < 0 < both_all.high
    for counts in ((11, 10, 5, 10), (5, 0, 5, 10), (-1, 10, 5, 10), (5.5, 10, 5, 10)):
        with pytest.raises(ConfigError, match="not a count"):
            two_proportions(*counts)


def test_difference_of_published_intervals():
    symmetric = difference_of_intervals((0.9, 0.9 - Z * 0.02, 0.9 + Z * 0.02), (0.8, 0.8 - Z * 0.03, 0.8 + Z * 0.03))
    se = math.hypot(0.02, 0.03)
    assert (symmetric.low, symmetric.high) == pytest.approx((0.1 - Z * se, 0.1 + Z * se))
    assert symmetric.statistic == pytest.approx(0.1 / se)
    at_one = difference_of_intervals((1.0, 0.93, 1.0), (0.95, 0.90, 0.98))
    assert at_one.low == pytest.approx(0.05 - math.hypot(0.07, 0.03))
    assert (at_one.low > 0) == (at_one.p < 0.05)
    unknown = difference_of_intervals((0.9, 0.8, 0.95), (0.7, math.nan, math.nan))
    assert unknown.difference == pytest.approx(0.2)
    assert math.isnan(unknown.p)
    assert unknown.note == "a figure has no interval"
    with pytest.raises(ConfigError, match="outside its interval"):
        difference_of_intervals((97, 0.93, 0.98), (0.9, 0.8, 0.95))


def contradicts(test):
    """A p below 0.05 beside an interval over 0, or the reverse."""
    return not math.isnan(test.p) and not math.isnan(test.low) and (test.p < 0.05) == (test.low <= 0 <= test.high)


def test_no_p_contradicts_its_interval():
    """Thousands of random tables; ten thousand sets of every test in experiments/benchmarks/statistics_checks.py."""
    rng = np.random.default_rng(11)
    for _ in range(500):
        n = int(rng.integers(1, 60))
        first, second = rng.binomial(n, rng.random() * 0.4), 0
        second = rng.binomial(n - first, rng.random() * 0.4)
        assert not contradicts(mcnemar(*calls(first, second, n))), (first, second, n)
        m = int(rng.integers(1, 60))
        counts = rng.binomial(n, rng.random()), n, rng.binomial(m, rng.random()), m
        assert not contradicts(two_proportions(*counts)), counts
    for _ in range(300):
        who = np.repeat(np.arange(rng.integers(2, 15)), rng.integers(1, 6))
        rates = rng.beta(2, 1, size=(2, who.max() + 1))[:, who]
        right = rng.random((2, len(who))) < rates * rng.uniform(0.3, 1, (2, 1))
        assert not contradicts(mcnemar(*right, who)), (right, who)
        y = (rng.random(len(who)) < 0.5).astype(float)
        scores = np.round(rng.normal(size=(2, len(who))) + rng.random() * y * [[1], [0]], 1)
        for test in (*paired_auroc_matrix(y, scores, who).values(), *paired_auroc_matrix(y, scores).values()):
            assert not contradicts(test), (y, scores, who)


# --- many comparisons, margins, resamples -----------------------------------------------------------------------------


def test_holm_by_hand_and_with_undefined():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, math.nan, 0.04]), [0.02, math.nan, 0.04])
    assert np.isnan(holm([math.nan, math.nan])).all()
    assert holm([]).shape == (0,)
    assert holm([0.9, 0.8]).max() == 1.0
    with pytest.raises(ValueError, match="outside"):
        holm([0.1, 1.2])


def test_non_inferiority_reads_the_lower_end():
    for difference in (-0.03, -0.01, 0.0, 0.02):
        test = made(difference, 0.01)
        found = non_inferiority(test, 0.02)
        assert found.non_inferior == (test.low > -0.02)
        assert (found.p < 0.025) == found.non_inferior
        assert found.p == pytest.approx(stats.norm.sf((difference + 0.02) / 0.01))
    assert non_inferiority(made(0.0, 0.01, 0.9), 0.02, 0.9).non_inferior
    undefined = non_inferiority(Test("x", 0.0, math.nan, math.nan, 0.0, 1.0, 5, 5, ""), 0.02)
    assert undefined.non_inferior is None
    assert math.isnan(undefined.p)
    for margin in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="non-inferiority margin"):
            non_inferiority(made(0.0, 0.01), margin)
    with pytest.raises(ValueError, match=r"confidence 0\.95, not 0\.9"):
        non_inferiority(made(0.0, 0.01), 0.02, 0.9)


def test_corrected_resampled_t_by_hand():
    differences = np.array([0.02, 0.05, 0.01, 0.04, 0.03])
    found = corrected_resampled(differences, 0.25)
    se = math.sqrt((1 / 5 + 0.25) * differences.var(ddof=1))
    assert found.statistic == pytest.approx(0.03 / se)
    assert found.p == pytest.approx(2 * stats.t.sf(0.03 / se, 4))
    assert found.high - found.difference == pytest.approx(stats.t.ppf(0.975, 4) * se)
    assert found.p > stats.ttest_1samp(differences, 0).pvalue
    assert "5 training and test sets" in found.note
    part = corrected_resampled([*differences, math.nan], 0.25)
    assert part.p == pytest.approx(found.p)
    assert "1 undefined" in part.note
    for values in ([], [0.1], [0.1, 0.1, 0.1]):
        none = corrected_resampled(values, 0.25)
        assert math.isnan(none.p)
        assert "no difference varies" in none.note or "fewer than two" in none.note
    assert corrected_resampled([0.0, 0.0], 0.25).p == 1.0
    with pytest.raises(ValueError, match="test_share"):
        corrected_resampled(differences, 0.0)


def test_corrected_test_keeps_its_level_on_overlapping_training_sets():
    rng = np.random.default_rng(9)
    corrected = plain = 0
    for _ in range(300):
        # The better of two arbitrary rules: both are the mean of the training half, one by every second patient.
        data = rng.normal(size=60)
        differences = []
        for _ in range(15):
            order = rng.permutation(60)
            train, test = data[order[:48]], data[order[48:]]
            differences.append(np.mean((test - train[::2].mean()) ** 2 - (test - train[1::2].mean()) ** 2))
        corrected += corrected_resampled(differences, 12 / 48).p < 0.05
        plain += stats.ttest_1samp(differences, 0).pvalue < 0.05
    assert corrected / 300 <= 0.08
    assert corrected <= plain


def test_delong_test_still_says_the_same():
    rng = np.random.default_rng(10)
    y = (rng.random(50) < 0.5).astype(float)
    scores = rng.normal(size=(2, 50)) + y
    test = paired_auroc_matrix(y, scores)[0, 1]
    assert (test.difference, test.statistic, test.p) == pytest.approx(auroc_test(y, *scores), abs=1e-9)
