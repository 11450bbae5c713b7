"""AUROCs of clustered cases against the published formula written out, and against what clustering does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hemlearn.evaluation.auroc import (
    auroc_interval,
    degrees_of_freedom,
    logit_interval,
    macro_auroc_covariance,
    newcombe,
    obuchowski_covariance,
    too_few,
)
from tests.evaluation.test_statistics import naive
from tests.evaluation.written_out import auroc_test


def problem(rng, models=3, clusters=12, sizes=(1, 6)):
    """Labels of both classes, scores with many ties, patients with several cases."""
    who = np.repeat(np.arange(clusters), rng.integers(*sizes, clusters))
    y = (rng.random(len(who)) < 0.4).astype(float)
    y[:2], y[-2:] = (0, 1), (1, 0)
    scores = np.round(rng.normal(size=(models, len(who))) + y, int(rng.integers(0, 3)))
    return y, scores, rng.permutation(clusters)[who]


def written_out(y, scores, who):
    """Obuchowski 1997 in her own terms, pair by pair and patient by patient."""
    models, patients = len(scores), np.unique(who)
    m, n = int((y == 1).sum()), int((y == 0).sum())
    areas, x_sums, y_sums = [], [], []
    for score in scores:
        kernel = (score[y == 1][:, None] > score[y == 0]) + 0.5 * (score[y == 1][:, None] == score[y == 0])
        area = kernel.mean()
        areas.append(area)
        v10, v01 = kernel.mean(axis=1), kernel.mean(axis=0)
        x_sums.append([sum(v10[who[y == 1] == g] - area) for g in patients])
        y_sums.append([sum(v01[who[y == 0] == g] - area) for g in patients])
    i = len(patients)
    i10, i01 = len(set(who[y == 1])), len(set(who[y == 0]))
    covariance = np.zeros((models, models))
    for r in range(models):
        for s in range(models):
            s10 = i10 / ((i10 - 1) * m) * sum(a * b for a, b in zip(x_sums[r], x_sums[s], strict=True))
            s01 = i01 / ((i01 - 1) * n) * sum(a * b for a, b in zip(y_sums[r], y_sums[s], strict=True))
            s11 = i / (i - 1) * sum(a * b for a, b in zip(x_sums[r], y_sums[s], strict=True))
            back = i / (i - 1) * sum(a * b for a, b in zip(x_sums[s], y_sums[r], strict=True))
            covariance[r, s] = s10 / m + s01 / n + (s11 + back) / (m * n)
    return np.array(areas), covariance


def test_covariance_equals_the_published_formula_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(40):
        y, scores, who = problem(rng)
        areas, covariance = obuchowski_covariance(y, scores, who)
        expected_areas, expected = written_out(y, scores, who)
        np.testing.assert_allclose(areas, expected_areas, atol=1e-12)
        np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_one_case_per_patient_is_delong():
    rng = np.random.default_rng(1)
    for _ in range(50):
        y, scores, _ = problem(rng, sizes=(1, 2), clusters=30)
        for who in (None, rng.permutation(len(y))):
            areas, covariance = obuchowski_covariance(y, scores, who)
            expected_areas, expected = naive(y, scores)
            np.testing.assert_allclose(areas, expected_areas, atol=1e-12)
            np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_copies_of_a_patients_slice_tell_nothing_new():
    rng = np.random.default_rng(2)
    y = (rng.random(80) < 0.5).astype(float)
    scores = rng.normal(size=(2, 80)) + y
    once = auroc_test(y, scores[0], scores[1])
    many = auroc_test(np.repeat(y, 9), *np.repeat(scores, 9, axis=1), np.repeat(np.arange(80), 9))
    assert many == pytest.approx(once, abs=1e-9)
    unclustered = auroc_test(np.repeat(y, 9), *np.repeat(scores, 9, axis=1))
    assert abs(unclustered.z) > 2.9 * abs(many.z)


def test_naive_test_on_clustered_null_data_is_inflated_and_the_clustered_one_is_not():
    rng = np.random.default_rng(3)
    who = np.repeat(np.arange(80), 12)
    unclustered = clustered = 0
    for _ in range(400):
        sick = rng.normal(size=80)
        y = (sick[who] + rng.normal(size=960) > 0.8).astype(float)
        patient = rng.normal(size=(2, 80))[:, who]  # each model errs on whole patients
        scores = y + patient + rng.normal(size=(2, 960))
        unclustered += auroc_test(y, *scores).p < 0.05
        clustered += auroc_test(y, *scores, who).p < 0.05
    assert unclustered / 400 > 0.12
    assert 0.02 <= clustered / 400 <= 0.09  # 0.05 with three standard errors of 400


def test_undefined_and_refused():
    y, p = np.array([0, 0, 1, 1.0]), np.array([0.1, 0.6, 0.4, 0.9])
    for truth, who in ((np.zeros(4), [0, 1, 2, 3]), (np.ones(4), [0, 1, 2, 3]), (np.zeros(0), [])):
        found = auroc_interval(truth, p[: len(truth)], who)
        assert all(math.isnan(v) for v in found[:4])
    one_patient = auroc_interval(y, p, ["a"] * 4)
    assert one_patient.value == 0.75
    assert all(math.isnan(v) for v in one_patient[1:4])
    positives_of_one = auroc_interval(y, p, ["a", "b", "c", "c"])
    assert all(math.isnan(v) for v in positives_of_one[1:4])
    # the rule of every command: three patients of either class
    assert positives_of_one.note == too_few(1, 2) == "positive cases of 1 patient only: no interval below 3"
    two = auroc_interval([1, 1, 0, 0, 0], [0.9, 0.2, 0.1, 0.3, 0.4])
    assert (two.variance > 0, math.isnan(two.low), two.note) == (True, True, too_few(2, 3))
    assert math.isfinite(auroc_interval([1, 1, 1, 0, 0, 0], [0.9, 0.2, 0.6, 0.1, 0.3, 0.4]).low)
    test = auroc_test(y, p, 1 - p, ["a"] * 4)
    assert test.difference == 0.5
    assert math.isnan(test.p)
    for scores in ([0.1, math.nan, 0.2, 0.3], [0.1, math.inf, 0.2, 0.3]):
        with pytest.raises(ValueError, match="NaN or infinity"):
            obuchowski_covariance(y, scores, None)
    with pytest.raises(ValueError, match="cluster has shape"):
        obuchowski_covariance(y, p, [1, 2])


def test_constant_and_separable_scores():
    y = np.tile([0.0, 1.0], 30)
    who = np.repeat(np.arange(20), 3)
    constant = auroc_interval(y, np.full(60, 0.3), who)
    assert (constant.value, constant.variance) == (0.5, 0.0)
    assert constant[2:4] == pytest.approx(newcombe(0.5, 20, 20))  # patients are the cases, not the 60 slices
    perfect = auroc_interval(y, y, who)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(newcombe(1.0, 20, 20).low)
    assert auroc_test(y, y, 5 * y, who) == (0.0, 0.0, 1.0)
    opposite = auroc_test(y, y, -y, who)
    assert opposite.difference == 1.0
    assert math.isnan(opposite.p)


def test_interval_is_delongs_for_single_cases_and_wider_in_clusters():
    rng = np.random.default_rng(4)
    y = (rng.random(300) < 0.4).astype(float)
    p = rng.normal(size=300) + y
    assert auroc_interval(y, p, np.arange(300)) == pytest.approx(auroc_interval(y, p), abs=1e-12)
    alike = np.repeat(rng.normal(size=30), 10)
    sick = np.repeat((rng.random(30) < 0.5).astype(float), 10)
    clustered, unclustered = (
        auroc_interval(sick, alike + sick, np.repeat(np.arange(30), 10)),
        auroc_interval(sick, alike + sick),
    )
    assert clustered.variance > 5 * unclustered.variance
    assert clustered.low < unclustered.low < unclustered.high < clustered.high


def test_a_hundred_thousand_rows():
    rng = np.random.default_rng(5)
    who = np.char.add("patient", rng.integers(0, 3000, 100_000).astype(str))
    y = (rng.random(100_000) < 0.1).astype(float)
    scores = np.round(rng.normal(size=(2, 100_000)) + y, 2)
    test = auroc_test(y, *scores, who)
    assert abs(test.z) < 5
    assert math.isfinite(test.p)


def test_clustered_intervals_have_the_degrees_of_freedom_of_the_rarer_class():
    rng = np.random.default_rng(8)
    who = np.repeat(np.arange(12), 4)
    y = (who < 5).astype(float)  # five patients with the finding, seven without
    p = rng.normal(size=48) + y + rng.normal(size=12)[who]
    assert degrees_of_freedom(y, who) == 4
    assert degrees_of_freedom(y, np.arange(48)) == math.inf
    found = auroc_interval(y, p, who)
    assert found.method == "obuchowski"
    assert (found.low, found.high) == logit_interval(found.value, found.variance, df=4)
    reach = math.log(found.high / (1 - found.high)) - math.log(found.value / (1 - found.value))
    error = math.sqrt(found.variance) / (found.value * (1 - found.value))
    assert reach / error == pytest.approx(stats.t.ppf(0.975, 4))
    uneven = np.r_[np.zeros(4), 1, 2, np.arange(3, 9)].astype(int)  # 4, 1 and 1 positives are worth 36 / 18 patients
    assert degrees_of_freedom([1] * 6 + [0] * 6, uneven) == pytest.approx(1)


# --- several labels -------------------------------------------------------------------------------------------------


def test_macro_of_one_label_is_delong_and_of_equal_labels_is_that_label():
    rng = np.random.default_rng(6)
    y, scores, who = problem(rng, models=2, clusters=40)
    areas, covariance = obuchowski_covariance(y, scores)
    one = macro_auroc_covariance(y[:, None], scores[:, :, None])
    np.testing.assert_allclose(one.macro, areas, atol=1e-14)
    np.testing.assert_allclose(one.covariance, covariance, atol=1e-14)
    alone = macro_auroc_covariance(y[:, None], scores[:, :, None], who)
    thrice = macro_auroc_covariance(np.tile(y[:, None], 3), np.tile(scores[:, :, None], 3), who)
    np.testing.assert_allclose(thrice.covariance, alone.covariance, atol=1e-14)
    np.testing.assert_allclose(alone.covariance, obuchowski_covariance(y, scores, who)[1], rtol=0.05, atol=1e-5)


def test_macro_rests_on_the_patients_of_its_labels_not_on_all():
    rng = np.random.default_rng(9)
    y = np.zeros((60, 2))
    y[:20, 0], y[30:34, 1] = 1, 1
    scores = y + rng.normal(size=y.shape)
    found = macro_auroc_covariance(y, scores)
    assert (found.units, found.df) == (12, 11)  # 20 and 4 positive patients
    area = found.interval()
    assert (area.low, area.high) == logit_interval(area.value, area.variance, df=11)
    y[32:34, 1] = 0
    refused = macro_auroc_covariance(y, scores)
    assert math.isnan(refused.interval().low)
    assert refused.note == "label 2: positive cases of 2 patients only: no interval below 3"


def test_macro_covariance_agrees_with_leaving_patients_out():
    rng = np.random.default_rng(7)
    who = np.repeat(np.arange(60), 5)
    logit = rng.normal(size=(60, 3))[who] + rng.normal(size=(300, 3))
    y = np.eye(3)[logit.argmax(axis=1)]
    scores = logit + rng.normal(size=(2, 300, 3))
    found = macro_auroc_covariance(y, scores, who)
    left = np.stack([macro_auroc_covariance(y[who != g], scores[:, who != g]).macro for g in range(60)])
    jackknife = np.cov(left.T, bias=True) * 59
    np.testing.assert_allclose(found.covariance, jackknife, rtol=0.08)
    for j in range(3):
        np.testing.assert_allclose(found.areas[:, j], obuchowski_covariance(y[:, j], scores[:, :, j])[0])


def test_macro_leaves_undefined_labels_out_and_counts():
    rng = np.random.default_rng(8)
    y = (rng.random((50, 3)) < 0.4).astype(float)
    scores = rng.random((2, 50, 3))
    y[:, 1] = 0  # no positive
    y[:20, 2] = math.nan  # unknown
    found = macro_auroc_covariance(y, scores)
    assert (found.n_defined, found.n, found.clusters) == (2, 50, 50)
    assert np.isnan(found.areas[:, 1]).all()
    expected = [
        obuchowski_covariance(y[20:, 2], scores[:, 20:, 2])[0],
        obuchowski_covariance(y[:, 0], scores[:, :, 0])[0],
    ]
    np.testing.assert_allclose(found.macro, np.mean(expected, axis=0))
    single = y.copy()
    single[:, 2] = np.r_[1.0, np.zeros(49)]  # one positive: an area, no variance
    found = macro_auroc_covariance(single, scores)
    assert np.isfinite(found.macro).all()
    assert np.isnan(found.covariance).all()
    nothing = macro_auroc_covariance(np.zeros((5, 2)), scores[:, :5, :2])
    assert nothing.n_defined == 0
    assert np.isnan(nothing.macro).all()
    with pytest.raises(ValueError, match="expected"):
        macro_auroc_covariance(y, scores[:, :, :2])
