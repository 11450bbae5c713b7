"""How slices become a series or patient, against the definitions written out."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import log_loss

from hemlearn.config.identity import run_hash
from hemlearn.config.schema import Config, TaskConfig
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.pooling import EVEN, HOW, Pool, features, fit_weights, places, recipe, unit_probs
from hemlearn.evaluation.predictions import aggregate
from hemlearn.util.errors import ConfigError, RunError
from tests.evaluation.test_calibration import LABELS, task, volumes


def slices(seed=0, units=5):
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(units), [1, 2, 4, 7, 9][:units]))
    return rng.uniform(0.01, 0.99, (len(group), 2)), group, rng.permutation(len(group)).astype(float)


def test_scores_are_as_written_out():
    p, group, z_mm = slices()
    found = {how: unit_probs(p, group, how, pool=Pool(k=3)) for how in ("mean", "max", "top_k", "noisy_or")}
    found["logistic"] = unit_probs(p, group, "logistic", place=places(group, z_mm), pool=Pool(2, (0.4, 0.3, 0.2, 0.1)))
    for unit in range(5):
        own = p[group == unit][np.argsort(z_mm[group == unit])]
        expected = {
            "mean": own.mean(axis=0),
            "max": own.max(axis=0),
            "top_k": np.sort(own, axis=0)[::-1][:3].mean(axis=0),
            "noisy_or": 1 - np.prod(1 - own, axis=0),
        }
        z, near = logit(own), []
        for i in range(len(z)):
            beside = [z[k] for k in (i - 1, i + 1) if 0 <= k < len(z)]
            near.append((z[i] + 0.5 * sum(beside)) / (1 + 0.5 * len(beside)))
        most = np.sort(z, axis=0)[::-1]
        parts = 0.4 * most[0] + 0.3 * most[:2].mean(axis=0) + 0.2 * z.mean(axis=0) + 0.1 * np.max(near, axis=0)
        expected["logistic"] = expit(parts)
        for how, value in expected.items():
            np.testing.assert_allclose(found[how][unit], value, rtol=1e-9, err_msg=how)
    whole = unit_probs(p, group, "top_k", "multiclass")
    np.testing.assert_allclose(whole.sum(axis=1), 1)
    assert {how for how in HOW if how != "model"} == {how for how in HOW if how != "model" and recipe(how)}


def test_neighbours_end_with_their_series():
    """A patient's series are smoothed apart; where positions are not known, slices keep their order."""
    p = expit(np.array([[4.0], [0.0], [-4.0], [4.0], [-4.0]]))
    apart = features(p, np.zeros(5, dtype=int), place=places(np.array([0, 0, 0, 1, 1]), np.full(5, np.nan)))
    assert apart[0, 0, 3] == pytest.approx(4 / 1.5)
    together = features(p, np.zeros(5, dtype=int))
    assert together[0, 0, 3] == pytest.approx(4 / 1.5)
    assert features(p[2:], np.zeros(3, dtype=int))[0, 0, 3] == pytest.approx((4 - 2 - 2) / 2)


def test_weights_stay_equal_unless_patients_show_otherwise():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (300, 1)).astype(float)
    x = rng.normal(size=(300, 1, 4)) * 2
    x[:, :, 2] += 3 * (y - 0.5)  # the mean tells, the others are noise
    who, weight = np.arange(300).astype(str).astype(object), np.ones(300)
    found = np.array(fit_weights(x, y, weight, who))
    assert found[2] == found.max() > 0.5
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)
    assert fit_weights(x[:5], y[:5], weight[:5], who[:5]) == EVEN
    assert fit_weights(x, np.full_like(y, np.nan), weight, who) == EVEN


@pytest.mark.parametrize("how", ["top_k", "noisy_or", "logistic"])
def test_patients_get_probabilities_that_survive_a_file(how):
    val, test = volumes(40, 2), volumes(200, 9, split="test")
    made = Calibration.fit(val, task("temperature", aggregate=how, top_k=2), volumes(40, 3))
    assert made.pool("patient").k == 2
    assert set(made.weights) == ({"series", "patient"} if how == "logistic" else set())
    after = made.apply(test)
    units = made.aggregate(after, "patient", how)
    raw = aggregate(after, "patient", how, "multilabel", Pool(2))
    truth = units["label_common"]
    assert log_loss(truth, units["prob_common"]) < log_loss(truth, raw["prob_common"])
    assert log_loss(truth, units["prob_common"]) < log_loss(truth, np.full(len(units), truth.mean()))
    back = Calibration.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)))
    pd.testing.assert_frame_equal(back.aggregate(after, "patient", how), units)
    pd.testing.assert_frame_equal(
        made.narrowed(["common"], "binary").aggregate(after.filter(regex="^(?!.*(medium|rare))"), "patient", how),
        units.filter(regex="^(?!.*(medium|rare))"),
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"aggregate='noisy_or': exclusive classes .* mean, max or top_k"):
        TaskConfig.check("task", kind="multiclass", labels=LABELS, aggregate="noisy_or")
    with pytest.raises(ConfigError, match=r"task\.top_k"):
        TaskConfig.check("task", top_k=0)
    good = Calibration.fit(volumes(20, 0), task("none", aggregate="logistic")).to_dict()
    for bad in ({"top_k": 0}, {"weights": {"patient": [1, -1, 1, 0]}}, {"weights": {"patient": [1.0]}}, {"weights": 3}):
        with pytest.raises(RunError, match="not what hemlearn wrote"):
            Calibration.from_dict(good | {"pooling": good["pooling"] | bad})


def test_runs_of_before_keep_their_names():
    def digest(**more):
        config = Config.check("", task=more)
        return run_hash(config, manifest="m", weights=None, split_file=None)

    assert digest() == digest(top_k=3)
    assert len({digest(), digest(aggregate="top_k"), digest(aggregate="top_k", top_k=5)}) == 3
