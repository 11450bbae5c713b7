"""Figures per subgroup and tests of interaction, against computations by other means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency, ttest_ind_from_stats
from statsmodels.stats.oneway import anova_generic

from hemlearn.evaluation.auroc import auroc_interval, clustered_wilson
from hemlearn.evaluation.significance import two_proportions, unpaired_auroc
from hemlearn.evaluation.subgroups import UNKNOWN, adjusted, compare_subgroups, cut


def drawn(sizes=(60, 80), seed=0, shift=1.5):
    rng = np.random.default_rng(seed)
    group = np.repeat([f"g{i}" for i in range(len(sizes))], sizes).astype(object)
    y = rng.integers(0, 2, len(group)).astype(float)
    return y, 1 / (1 + np.exp(-rng.normal(shift * y - shift / 2))), group


def placements(y, p):
    """DeLong's area and variance, every pair written out."""
    high, low = p[y == 1], p[y == 0]
    won = (high[:, None] > low).astype(float) + 0.5 * (high[:, None] == low)
    return won.mean(), won.mean(axis=1).var(ddof=1) / len(high) + won.mean(axis=0).var(ddof=1) / len(low)


def by(found):
    return {test.metric: test for test in found.tests}


@pytest.mark.parametrize("sizes", [(60, 80), (40, 60, 90)])
def test_areas_are_compared_as_welch_compares_means(sizes):
    y, p, group = drawn(sizes)
    test = by(compare_subgroups(y, p, group))["auroc"]
    areas, variances = np.transpose([placements(y[group == g], p[group == g]) for g in sorted(set(group))])
    n = np.array(sizes)
    if len(sizes) == 2:  # as pROC's roc.test(paired = FALSE)
        other = ttest_ind_from_stats(
            areas[0], np.sqrt(variances * n)[0], n[0], areas[1], np.sqrt(variances * n)[1], n[1], equal_var=False
        )
        same = unpaired_auroc(areas[0], variances[0], areas[1], variances[1], df=(n[0] - 1, n[1] - 1))
        bounds = (same.low, same.high) if same.difference > 0 else (-same.high, -same.low)  # highest minus lowest
        assert (test.p, test.low, test.high) == pytest.approx((same.p, *bounds))
        assert (test.statistic, test.p) == pytest.approx((other.statistic**2, other.pvalue))
    else:
        other = anova_generic(areas, variances * n, n, use_var="unequal")
        assert (test.statistic, test.df2, test.p) == pytest.approx((other.statistic, other.df[1], other.pvalue))
    assert test.spread == pytest.approx(np.ptp(areas))
    assert np.isnan(test.low) == (len(sizes) > 2)


def test_proportions_are_compared_by_pearsons_test():
    y, p, group = drawn((50, 70, 60))
    for metric, side in (("sensitivity", 1), ("specificity", 0)):
        test = by(compare_subgroups(y, p, group, threshold=0.4))[metric]
        hit = (p >= 0.4) == (y == 1)
        table = [
            [(hit & (y == side) & (group == g)).sum(), (~hit & (y == side) & (group == g)).sum()]
            for g in ("g0", "g1", "g2")
        ]
        n = np.sum(table)
        assert test.statistic == pytest.approx(chi2_contingency(table, correction=False).statistic * (n - 1) / n)
        assert test.df1 == 2
        assert test.df2 == np.inf
        two = by(compare_subgroups(*(v[group != "g2"] for v in (y, p, group)), threshold=0.4))[metric]
        assert two.p == pytest.approx(two_proportions(table[0][0], sum(table[0]), table[1][0], sum(table[1])).p)


def test_figures_of_a_group_are_those_of_its_cases_alone():
    rng = np.random.default_rng(4)
    who = np.repeat(np.arange(40), 5)
    y, p, _ = drawn((200,), seed=1)
    sex = np.where(who % 2 == 0, "F", "M").astype(object)
    found = compare_subgroups(y, p, sex, who, covariate="sex")
    own = sex == "F"
    area = auroc_interval(y[own], p[own], who[own])
    hit = p[own & (y == 1)] >= 0.5
    group = found.groups[0]
    assert tuple(group.auroc) == pytest.approx((area.value, area.low, area.high, 100))
    assert tuple(group.sensitivity)[1:3] == pytest.approx(clustered_wilson(hit, who[own & (y == 1)])[0])
    assert group.observed_minus_predicted.value == pytest.approx(np.mean(y[own] - p[own]))
    assert group.patients == 20
    assert compare_subgroups(y, p, sex, who, scores=True).groups[0].observed_minus_predicted is None
    # The order of cases and the names of patients do not matter.
    order = rng.permutation(200)
    other = compare_subgroups(y[order], p[order], sex[order], [f"p{w:03}" for w in who[order]], covariate="sex")
    assert [t.p for t in other.tests] == pytest.approx([t.p for t in found.tests])


def test_patients_in_several_groups_are_no_independent_samples():
    """Each patient has the same cases in both groups: nothing differs, however different patients are."""
    y, p, _ = drawn((60,), seed=2)
    rng = np.random.default_rng(0)
    who, twice = np.tile(np.arange(60), 2), np.tile(y, 2)
    noisy = np.clip(np.tile(p, 2) + rng.normal(0, 0.02, 120), 0, 1)
    thick = np.repeat(["thin", "thick"], 60).astype(object)
    paired = by(compare_subgroups(twice, noisy, thick, who))["auroc"]
    apart = by(compare_subgroups(twice, noisy, thick))["auroc"]
    assert "60 patients lie in several groups" in paired.note
    assert paired.p < apart.p  # the same spread, against a smaller variance
    assert paired.df2 < apart.df2
    assert all(t.p == 1 for t in compare_subgroups(twice, np.tile(p, 2), thick, who).tests)


def test_rejections_of_a_true_null_are_about_one_in_twenty():
    rejected = dict.fromkeys(("auroc", "sensitivity", "specificity", "observed_minus_predicted"), 0)
    for seed in range(60):
        y, p, group = drawn((30, 30), seed=seed)
        for test in compare_subgroups(y, p, group).tests:
            rejected[test.metric] += test.p < 0.05
    assert all(count <= 8 for count in rejected.values()), rejected  # 3 expected; 1 in 200 has more than 8
    assert sum(rejected.values()) >= 3


def test_small_unlabelled_and_unknown_groups_are_named_and_not_tested():
    y, p, group = drawn((40, 40, 1, 6, 5))
    y[group == "g3"] = np.nan
    group[group == "g4"] = UNKNOWN
    y[-5:] = [0, 1, 0, 1, 1]
    found = compare_subgroups(y, p, group, names=["g9"])
    told = {g.name: (g.n, g.refused) for g in found.groups}
    assert list(told) == ["g9", "g0", "g1", "g2", "g3", UNKNOWN]
    assert told["g9"] == told["g3"] == (0, "no case with a known label")
    assert told["g2"][0] == 1
    assert told["g2"][1] in ("positive cases of 1 patient only: no interval below 3", "no positive case: undefined")
    assert told[UNKNOWN] == (5, "negative cases of 2 patients only: no interval below 3")
    assert all(test.groups == 2 for test in found.tests)
    assert len(found.small) == 4
    assert np.isnan(found.table.set_index("group").loc["g2", "auroc"])
    p[-5:], y[-5:] = 0.5, [0, 1, 0, 1, 0]
    y, p, group = np.r_[y, 1], np.r_[p, 0.5], np.append(group, UNKNOWN)
    enough = compare_subgroups(y, p, group)
    assert enough.groups[-1].auroc.value == 0.5  # it has figures
    assert [t.p for t in enough.tests] == pytest.approx([t.p for t in found.tests])  # and no part in the tests


def test_a_constant_covariate_is_no_test():
    y, p, group = drawn((50,))
    found = compare_subgroups(y, p, group)
    assert {test.note for test in found.tests} == {"fewer than two groups that can be judged"}
    assert all(np.isnan(test.p) and np.isnan(test.p_holm) for test in found.tests)


def test_a_separable_group_is_tested_by_newcombes_interval():
    y, p, group = drawn((40, 40))
    p = np.where(group == "g0", 0.25 + y / 2, p)
    test = by(compare_subgroups(y, p, group))["auroc"]
    assert "no variance in g0" in test.note
    assert 0 < test.p < 1
    p[40:] = np.random.default_rng(0).random(40)
    assert by(compare_subgroups(y, p, group))["auroc"].p < 0.001


def test_holm_corrects_all_tests_together():
    first, second = (compare_subgroups(*drawn(seed=seed)).tests for seed in (0, 1))
    both = adjusted([*first, *second])
    smallest = min(both, key=lambda test: test.p)
    assert smallest.p_holm == pytest.approx(min(1, 8 * smallest.p))


def test_numbers_are_cut_where_no_patient_is_named():
    age = np.array([*range(20, 80), np.nan]) + 0.37
    groups, names, told = cut(age)
    assert [np.sum(groups == name) for name in (*names, UNKNOWN)] == [20, 20, 20, 1]
    assert names == ["under 40", "40 to under 60", "60 or more"]
    assert told == "cut at 40 and 60, the tertiles of patients"
    assert not set(told.replace(",", "").split()) & set(map(str, age))
    # Slices of a patient count once: sixty of the first do not move the cut points.
    who = np.r_[np.zeros(60), np.arange(61)]
    assert cut(np.r_[np.full(60, age[0]), age], patient=who)[1] == names
    assert cut([1.0] * 9 + [2.0, 3.0, 4.0, 5.0, 6.0])[2] == "cut at 1.5, where both tertiles of patients fall"
    assert cut([5.0, 5.0, 5.0, 2.5, 2.5, 2.5])[1] == ["2.5", "5"]
    assert cut([1.0, 0.0, 0.0, 0.0])[1] == ["under 0.5", "0.5 or more"]
    assert cut([7.0] * 4)[1] == ["7"]
    assert cut([30.0, 40.0])[1] == ["under 35", "35 or more"]
    assert cut([1.0, 9.0], [5])[0].tolist() == ["under 5", "5 or more"]
    for wrong in ([], [65, 18], [1, float("nan")]):
        with pytest.raises(ValueError, match="give numbers that rise"):
            cut(age, wrong)


def test_arguments_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"expected \(N,\)"):
        compare_subgroups([0, 1], [0.1, 0.2], ["a"])
