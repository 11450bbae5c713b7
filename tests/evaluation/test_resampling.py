"""The bootstrap of any metric and of differences against closed forms and against itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.resampling import NAMED, bootstrap_difference, bootstrap_metric
from hemlearn.evaluation.significance import paired_auroc_matrix
from tests.evaluation.test_metrics import both


def cases(seed=0, patients=60, slices=4):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), slices)
    y = (rng.normal(size=patients)[who] + rng.normal(size=len(who)) > 0.5).astype(float)
    p = 1 / (1 + np.exp(-(1.5 * y + rng.normal(size=(2, patients))[:, who] + rng.normal(size=(2, len(who))))))
    return y, p, who


def test_a_function_and_its_name_give_the_same():
    y, (p, other), who = cases()
    for name, function in (("auroc", sk.roc_auc_score), ("ap", sk.average_precision_score)):
        named = bootstrap_metric(name, y, p, who, replicates=60, seed=3)
        called = bootstrap_metric(function, y, p, who, replicates=60, seed=3)
        assert named == pytest.approx(called, abs=1e-9)
        one = bootstrap_difference(name, y, p, other, who, replicates=60, seed=3)
        two = bootstrap_difference(function, y, p, other, who, replicates=60, seed=3)
        assert one[1:4] == pytest.approx(two[1:4], abs=1e-9)
        assert one.p == two.p
    own = bootstrap_metric(lambda t, q: float(np.median(q[t == 1])), y, p, who, replicates=60)
    assert own.low < own.value < own.high


def test_it_is_the_interval_of_the_metrics():
    df = both(slices=3)
    found = evaluate(df, TaskConfig(labels=["h"], threshold=0.5), replicates=200)["test"]["slice"]
    test = df[df["split"] == "test"]
    for name in ("ap", "brier", "ece", "f1", "log_loss", "brier_resolution"):
        mine = bootstrap_metric(name, test["label_h"], test["prob_h"], test["patient_id"], replicates=200)
        entry = found[name]
        assert mine[:3] == pytest.approx((entry["value"], entry["low"], entry["high"]), abs=1e-12), name


def test_difference_agrees_with_the_clustered_test():
    y, p, who = cases(1, patients=150)
    p[1] = 1 / (1 + np.exp(-(np.log(p[1] / (1 - p[1])) - 0.6 * y)))
    test = bootstrap_difference("auroc", y, *p, who, replicates=2000)
    closed = paired_auroc_matrix(y, p, who)[0, 1]
    assert test.difference == pytest.approx(closed.difference, abs=1e-12)
    assert test.high - test.low == pytest.approx(closed.high - closed.low, rel=0.12)
    assert test.p < 0.01
    assert closed.p < 0.01
    mirrored = bootstrap_difference("auroc", y, p[1], p[0], who, replicates=2000)
    assert (mirrored.low, mirrored.high, mirrored.p) == pytest.approx((-test.high, -test.low, test.p), abs=1e-9)


def test_undefined_one_patient_and_refused():
    y, (p, other), who = cases(2, patients=30)
    same = bootstrap_difference("brier", y, p, p, who, replicates=50)
    assert same[1:4] == (0.0, 0.0, 0.0)
    assert (same.p, same.note) == (1.0, "the two never differ")
    single = bootstrap_difference("auroc", y, p, other, np.zeros(len(y)), replicates=50)
    assert single.difference == pytest.approx(sk.roc_auc_score(y, p) - sk.roc_auc_score(y, other))
    assert math.isnan(single.p)
    assert "one patient" in single.note
    nothing = bootstrap_metric("auroc", np.zeros(20), np.linspace(0, 1, 20), replicates=50)
    assert math.isnan(nothing.value)
    assert (nothing.undefined, nothing.n) == (50, 20)
    constant = bootstrap_metric("auroc", y, np.full(len(y), 0.3), who, replicates=50)
    assert constant.value == 0.5
    assert math.isnan(constant.low)
    assert math.isnan(bootstrap_metric("brier", [], []).value)
    holes = bootstrap_metric("ap", np.r_[y, math.nan], np.r_[p, 0.9], np.r_[who, 99], replicates=50)
    assert holes == bootstrap_metric("ap", y, p, who, replicates=50)
    with pytest.raises(ValueError, match="expected a function or one of"):
        bootstrap_metric("auc", y, p, who)
    with pytest.raises(ValueError, match="NaN or infinity"):
        bootstrap_metric("auroc", y, np.r_[p[1:], math.nan], who)
    with pytest.raises(ValueError, match="other than"):
        bootstrap_metric("auroc", y + 2, p, who)


def test_every_named_metric_has_a_difference():
    y, (p, other), who = cases(3)
    for name in NAMED:
        test = bootstrap_difference(name, y, p, other, who, replicates=40)
        assert math.isfinite(test.difference), name
        assert test.clusters == 60
