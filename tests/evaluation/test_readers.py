"""Readers beside a model, against the printed results of MRMCaov and OR-DBM MRMC and against sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hemlearn.evaluation.readers import (
    against_reader,
    between_modalities,
    figures,
    matched_sensitivity,
    model_against_readers,
    over_readers,
)
from hemlearn.evaluation.significance import mcnemar, paired_auroc_matrix
from tests.evaluation.van_dyke import CINE, SPIN_ECHO, TRUTH

BOTH = np.vstack([CINE, SPIN_ECHO])


def jackknife(y, scores):
    """Covariance of AUROCs by leaving out one case at a time, as OR-DBM MRMC has it."""
    n = len(y)
    areas = np.array([figures(np.delete(y, i), np.delete(scores, i, axis=1))[0] for i in range(n)])
    return (n - 1) / n * (areas - areas.mean(axis=0)).T @ (areas - areas.mean(axis=0))


def components(covariance):
    """Error variance and Cov1, Cov2, Cov3 of five readers in two modalities: means over the blocks of the matrix."""
    own, cross = [covariance[:5, :5], covariance[5:, 5:]], covariance[:5, 5:]
    off = ~np.eye(5, dtype=bool)
    return np.trace(covariance) / 10, np.diag(cross).mean(), np.mean([c[off].mean() for c in own]), cross[off].mean()


def test_areas_of_van_dyke_are_those_printed():
    printed = [0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066]
    printed += [0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169]
    assert figures(TRUTH, BOTH)[0] == pytest.approx(printed, abs=5e-9)  # OR-DBM MRMC 2.51


def test_two_modalities_equal_mrmcaov_with_delong_covariances():
    _, covariance, df, why = figures(TRUTH, BOTH)
    assert not why
    assert df == pytest.approx(44)  # patients with a dissection, less 1: more than Hillis' 15
    assert components(covariance) == pytest.approx([0.0007921325, 0.0003420090, 0.0003395265, 0.0002358497], abs=6e-11)
    found = between_modalities(TRUTH, CINE, SPIN_ECHO)
    test = found.test
    assert (test.difference, found.error, found.df) == pytest.approx((-0.04380032, 0.0206825, 15.06611), rel=3e-6)
    assert (test.low, test.high) == pytest.approx((-0.0878671960, 0.0002665519), abs=6e-11)
    assert (test.statistic, test.p) == pytest.approx((-2.117747, 0.05123303), rel=3e-7)  # F 4.484854
    assert found.means == pytest.approx((0.8970370, 0.9408374), abs=6e-8)
    assert (test.n, test.clusters, found.readers) == (114, 114, 5)


def test_two_modalities_equal_or_dbm_mrmc_with_jackknife_covariances():
    covariance = jackknife(TRUTH, BOTH)
    assert components(covariance) == pytest.approx([0.00080229, 0.00034661, 0.00034407, 0.00023903], abs=6e-9)
    change = np.hstack([np.eye(5), -np.eye(5)])
    found = over_readers(change @ figures(TRUTH, BOTH)[0], change @ covariance @ change.T)
    assert (found.error, found.df, found.test.p) == pytest.approx((0.02075, 15.26, 0.0517), rel=1e-3)
    assert (found.test.low, found.test.high) == pytest.approx((-0.08796, 0.00036), abs=6e-6)


@pytest.mark.parametrize(
    ("ratings", "area", "error", "df", "low", "high"),
    [
        (CINE, 0.8970370, 0.03307642, 12.59597, 0.8253461, 0.9687280),
        (SPIN_ECHO, 0.9408374, 0.02150464, 12.56530, 0.8942155, 0.9874592),
    ],
)
def test_one_modality_equals_mrmcaov(ratings, area, error, df, low, high):
    """A model of figure 0 without variance leaves the single-modality analysis of Hillis 2007, section 5.3."""
    found = over_readers(*figures(TRUTH, ratings)[:2])
    assert (found.test.difference, found.error, found.df) == pytest.approx((area, error, df), rel=4e-7)
    assert (found.test.low, found.test.high) == pytest.approx((low, high), abs=6e-8)


def test_sensitivity_over_readers_equals_mrmcaov():
    """Decisions from 3 on."""
    values, covariance, *_ = figures(TRUTH, BOTH >= 3, "sensitivity")
    assert values == pytest.approx([0.889, 0.778, 0.822, 0.933, 0.689, 0.978, 0.822, 0.911, 1, 0.889], abs=6e-4)
    assert components(covariance) == pytest.approx([0.0023681257, 0.0009943883, 0.0010145903, 0.0006604938], abs=6e-11)
    change = np.hstack([np.eye(5), -np.eye(5)])
    found = over_readers(change @ values, change @ covariance @ change.T)
    assert (found.test.difference, found.error, found.df) == pytest.approx(
        (-0.09777778, 0.03780451, 15.71732), rel=4e-7
    )
    assert (found.test.low, found.test.high, found.test.p) == pytest.approx(
        (-0.1780371, -0.0175185, 0.02008822), rel=3e-6
    )


def test_a_model_beside_readers_is_a_modality_in_which_all_readers_are_the_model():
    """Kooi et al. 2016: the algorithm repeated as a second modality gives the same t, degrees of freedom and p."""
    model, readers = CINE[3], SPIN_ECHO
    one = model_against_readers(TRUTH, model, readers)
    two = between_modalities(TRUTH, np.tile(model, (5, 1)), readers)
    assert one.test[1:7] == pytest.approx(two.test[1:7])
    assert (one.df, one.means) == (pytest.approx(two.df), pytest.approx(two.means))
    areas, covariance, *_ = figures(TRUTH, np.vstack([model, readers]))
    d = areas[0] - areas[1:]
    c = covariance[0, 0] - covariance[0, 1:][:, None] - covariance[0, 1:] + covariance[1:, 1:]
    mean_c = np.mean([c[j, k] for j in range(5) for k in range(5) if j != k])
    assert one.error == pytest.approx(math.sqrt((d.var(ddof=1) + 5 * mean_c) / 5))


def test_patients_with_several_cases_widen_the_test():
    twice = np.repeat(np.arange(114), 2)
    once = model_against_readers(TRUTH, CINE[3], SPIN_ECHO)
    again = model_against_readers(TRUTH[twice], CINE[3, twice], SPIN_ECHO[:, twice], cluster=twice)
    assert again.test.difference == pytest.approx(once.test.difference)
    assert again.error == pytest.approx(once.error)  # the same patients, shown twice
    assert (again.test.n, again.test.clusters) == (228, 114)
    assert again.df <= 44  # effective patients with a dissection, less 1
    rate = figures(TRUTH, CINE >= 3, "specificity")
    doubled = figures(TRUTH[twice], CINE[:, twice] >= 3, "specificity", twice)
    assert doubled[1] == pytest.approx(rate[1])
    assert (rate[2], doubled[2]) == pytest.approx((68, 68))


def test_one_reader_says_nothing_about_others():
    found = model_against_readers(TRUTH, CINE[0], CINE[1:2])
    assert math.isnan(found.test.p)
    assert found.test.note == "1 reader: how readers vary is not known"
    assert found.means == pytest.approx((0.91964573, 0.85877617))


def test_without_a_positive_there_is_no_test():
    found = model_against_readers(np.zeros(20), np.arange(20), np.arange(40).reshape(2, 20))
    assert math.isnan(found.test.p)
    assert found.test.note == "no positive case: undefined"
    tests = against_reader(np.zeros(20), np.arange(20), np.ones(20), np.ones(20), True)
    assert math.isnan(tests["sensitivity"].p)
    assert tests["specificity"].p == 1
    assert math.isnan(tests["sensitivity_at_specificity"].difference)


def test_one_reader_is_tested_as_two_models_are():
    score, reader = CINE[0], SPIN_ECHO[2]
    scores = against_reader(TRUTH, score, score >= 4, reader, False)
    assert scores == {"auroc": paired_auroc_matrix(TRUTH, np.stack([score, reader]))[0, 1]}
    calls = against_reader(TRUTH, score, score >= 4, reader >= 4, True)
    sick = TRUTH == 1
    assert calls["sensitivity"] == mcnemar(score[sick] >= 4, reader[sick] >= 4)
    assert calls["specificity"] == mcnemar(score[~sick] < 4, reader[~sick] < 4)


def test_a_constant_reader_has_an_area_of_a_half():
    found = against_reader(TRUTH, CINE[0], CINE[0] >= 4, np.full(114, 3.0), False)["auroc"]
    assert found.difference == pytest.approx(0.91964573 - 0.5)
    assert found.p < 1e-10


def test_sensitivity_at_the_readers_specificity():
    score = np.array([0.9, 0.8, 0.7, 0.4, 0.6, 0.5, 0.3, 0.2, 0.1, 0.05])
    y = np.repeat([1, 0], (4, 6))
    decision = np.array([1, 1, 0, 0, 1, 1, 0, 0, 0, 0])  # specificity 4 of 6, sensitivity 2 of 4
    found = matched_sensitivity(y, score, decision)
    assert found.difference == pytest.approx(1.0 - 0.5)  # at 2 of 6 false alarms the model finds all 4
    assert found.low < found.difference < found.high
    assert (found.p < 0.05) == (found.low > 0)
    assert matched_sensitivity(y, score, score >= 0.65).difference == 0


def test_a_reader_like_the_model_is_not_found_different_too_often():
    """Two readings of equal accuracy: type I error of the matched sensitivity over 30 sets (seeded)."""
    rng, found = np.random.default_rng(5), 0
    for _ in range(30):
        y = np.repeat([0, 1], (60, 40))
        shared = rng.normal(size=100) + 1.5 * y
        model, reader = (shared + rng.normal(size=100) for _ in range(2))
        found += matched_sensitivity(y, model, reader > 1.2).p < 0.05
    assert found <= 5  # 1.5 expected; P(6 or more) 0.3 %
