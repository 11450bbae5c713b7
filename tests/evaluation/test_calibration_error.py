"""Calibration error, the parts of the Brier score and reliability curves, and the parts in metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import clustered_wilson, wilson
from hemlearn.evaluation.bootstrap import BRIER_PARTS, LabelCases, equal_mass_bins
from hemlearn.evaluation.calibration import reliability_curve
from hemlearn.evaluation.metrics import evaluate
from tests.evaluation.test_metrics import both


def cases(seed=0, n=400, digits=6):
    rng = np.random.default_rng(seed)
    p = np.round(rng.beta(1, 2, n), digits)
    return (rng.random(n) < p**1.5).astype(float), p


def scores(y, p):
    """Metrics of cases that are patients of their own."""
    y, p = np.asarray(y, float), np.asarray(p, float)
    found = LabelCases.build(y, p, p >= 0.5, np.arange(len(y)), len(y)).values(np.ones((1, len(y))))
    return {name: float(value[0]) for name, value in found.items()}


def ece(y, p):
    return scores(y, p)["ece"]


def brier_parts(y, p):
    found = scores(y, p)
    return [found["brier"], *(found[name] for name in BRIER_PARTS)]


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_parts_are_those_of_the_papers_and_add_up(digits):
    y, p = cases(digits, digits=digits)
    brier, *parts = brier_parts(y, p)
    assert brier == pytest.approx(np.mean((p - y) ** 2), abs=1e-14)
    assert parts[0] - parts[1] + parts[2] + parts[3] == pytest.approx(brier, abs=1e-14)
    code = equal_mass_bins(p)
    reliability = resolution = within = 0.0
    for k in np.unique(code):  # Murphy 1973; variance and covariance inside the bins by Stephenson et al. 2008
        q, t = p[code == k], y[code == k]
        reliability += len(q) * (q.mean() - t.mean()) ** 2
        resolution += len(q) * (t.mean() - y.mean()) ** 2
        within += ((q - q.mean()) ** 2).sum() - 2 * ((q - q.mean()) * (t - t.mean())).sum()
    expected = [reliability / len(y), resolution / len(y), y.mean() * (1 - y.mean()), within / len(y)]
    assert parts == pytest.approx(expected, abs=1e-12)


def test_constant_forecasts_and_a_class_alone():
    y = np.r_[np.ones(30), np.zeros(70)]
    prior = brier_parts(y, np.full(100, 0.3))
    assert prior == pytest.approx((0.21, 0, 0, 0.21, 0), abs=1e-12)
    assert ece(y, np.full(100, 0.5)) == pytest.approx(0.2)
    right = brier_parts(y, y)
    assert right[0] == 0
    assert right[2] == pytest.approx(right[3])
    negatives = brier_parts(np.zeros(50), np.full(50, 0.1))
    assert negatives == pytest.approx((0.01, 0.01, 0, 0, 0), abs=1e-12)


def test_calibration_error_by_hand_and_against_the_bootstraps_own():
    p, y = np.repeat([0.1, 0.9], 50), np.r_[np.ones(10), np.zeros(40), np.ones(30), np.zeros(20)]
    assert ece(y, p) == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    df = both()
    found = evaluate(df, TaskConfig(labels=["h"]), replicates=0)["test"]["slice"]
    test = df[df["split"] == "test"]
    assert ece(test["label_h"], test["prob_h"]) == pytest.approx(found["ece"]["value"], abs=1e-12)


@pytest.mark.parametrize(
    ("n", "digits", "expected"),
    [
        (57, 6, 0.148768736842),
        (57, 1, 0.140350877193),
        (23, 6, 0.228580608696),
        (101, 2, 0.089801980198),
        (7, 6, 0.272832857143),
        (200, 6, 0.099381895),
        (9, 1, 0.244444444444),
    ],
)
def test_bins_that_do_not_divide_the_cases_are_those_of_uncertainty_calibration(n, digits, expected):
    """``plugin_ce(bin(data, get_equal_bins(p, 10)), power=1)`` of uncertainty-calibration 0.1.4."""
    i = np.arange(n)
    p = np.round((i * 0.6180339887498949) % 1, digits)
    y = ((i * 0.7548776662466927) % 1 < p**1.5).astype(float)
    assert ece(y, p) == pytest.approx(expected, abs=1e-10)


def test_calibrated_probabilities_have_a_small_error():
    rng = np.random.default_rng(3)
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(float)
    assert ece(y, p) < 0.02
    assert brier_parts(y, p)[1] < 1e-3
    assert ece(y, p**2) > 0.1


def test_unknown_labels_are_left_out_and_bad_values_refused():
    y, p = cases()
    holes = np.r_[y, [math.nan] * 5]
    assert len(reliability_curve(holes, np.r_[p, np.full(5, 0.9)], np.arange(405))) == 10
    assert reliability_curve([], []) == []
    for truth, prob, message in (
        ([0, 1], [0.1, math.nan], "outside"),
        ([0, 1], [0.1, 1.2], "outside"),
        ([0, 2], [0.1, 0.2], "other than"),
        ([0, 1], [0.1], "expected"),
    ):
        with pytest.raises(ValueError, match=message):
            reliability_curve(truth, prob)
    with pytest.raises(ValueError, match="cluster"):
        reliability_curve(y, p, [1, 2])


def test_reliability_curve_has_wilson_intervals_clustered_by_patient():
    y, p = cases(4, 500)
    rows = reliability_curve(y, p)
    assert [row.n for row in rows] == [50] * 10
    assert [row.mean_p for row in rows] == sorted(row.mean_p for row in rows)
    order = np.argsort(p, kind="stable")[:50]
    assert rows[0].observed == pytest.approx(y[order].mean())
    assert (rows[0].low, rows[0].high) == pytest.approx(wilson(y[order].sum(), 50))
    assert rows[0].clusters == 50
    many = reliability_curve(np.repeat(y, 4), np.repeat(p, 4), np.repeat(np.arange(500), 4))
    assert (many[3].n, many[3].clusters) == (200, 50)
    assert many[3].high - many[3].low > 0.9 * (rows[3].high - rows[3].low)  # copies do not narrow it
    assert clustered_wilson(np.repeat(y[order], 4), np.repeat(order, 4))[0] == pytest.approx(
        (many[0].low, many[0].high)
    )
    one = reliability_curve([1, 0, 1], [0.5, 0.5, 0.5], ["a", "a", "a"])
    assert (len(one), one[0].n, one[0].clusters) == (1, 3, 1)
    assert math.isnan(one[0].low)


@pytest.mark.parametrize(
    ("kind", "labels"), [("binary", ("h",)), ("multilabel", ("a", "b", "c")), ("multiclass", ("a", "b", "c"))]
)
def test_parts_stand_in_the_metrics_and_add_up_over_labels(kind, labels):
    df = both(labels=labels, slices=3, multiclass=kind == "multiclass")
    scores = evaluate(df, TaskConfig(kind=kind, labels=list(labels), threshold=0.5), replicates=50)["test"]
    assert not set(BRIER_PARTS) & set(scores["patient"])  # a mean over slices is no probability
    for level in ("slice",):
        for table in (scores[level], *scores[level]["labels"].values()):
            reliability, resolution, uncertainty, within = (table[name]["value"] for name in BRIER_PARTS)
            assert reliability - resolution + uncertainty + within == pytest.approx(table["brier"]["value"], abs=1e-12)
            for name in BRIER_PARTS[:2]:
                assert table[name]["low"] <= table[name]["value"] <= table[name]["high"]
            assert table["brier_uncertainty"]["low"] is table["brier_within_bin"]["low"] is None
    test = df[df["split"] == "test"]
    alone = brier_parts(test[f"label_{labels[0]}"], test[f"prob_{labels[0]}"])
    found = scores["slice"]["labels"][labels[0]]
    assert [found[name]["value"] for name in BRIER_PARTS] == pytest.approx(alone[1:], abs=1e-12)
