from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

from hemlearn.audits.baselines import (
    baseline_aurocs,
    cross_validated,
    fit_predict,
    folds_of,
    metadata_features,
    thinned,
)
from hemlearn.audits.facts import FACTS, SIZE
from hemlearn.data.splits import units_of
from hemlearn.evaluation.auroc import auroc_interval
from hemlearn.util.errors import DataError
from tests.evaluation.written_out import auroc_test

NAN = float("nan")


def facts_of(n, seed=0):
    """Facts that tell nothing about anything."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(200, 500, n).astype(float), rng.integers(200, 400, n).astype(float)
    found = pd.DataFrame({"height": height, "width": width, "aspect": width / height})
    found["bytes"] = rng.lognormal(11, 0.3, n)
    found["bytes_per_pixel"] = found["bytes"] / (height * width)
    found["encoding"] = rng.choice(["PNG L", "PNG RGB"], n)
    found["manufacturer"] = rng.choice(["GE", "SIEMENS", ""], n)
    found["kernel"] = ""
    found["thickness_mm"] = rng.choice([5.0, 2.5, NAN], n)
    found["pixel_mm"], found["tilt_deg"], found["slices"] = NAN, 0.0, 1.0
    return found[list(FACTS)]


def halves(n, seed=0):
    order = np.random.default_rng(seed).permutation(n)
    return order[: n // 2], order[n // 2 :]


def names(n):
    return np.array([f"p{i:04d}" for i in range(n)], dtype=object)


def alone(facts, y, columns=FACTS, seed=0):
    """Cross-validated AUROC of single images of single patients."""
    who = names(len(y))
    fold = folds_of(y, who, np.random.default_rng(seed).permutation(len(y)).astype(np.int64))
    p = cross_validated(partial(fit_predict, metadata_features(facts, columns), y, who), y, fold)
    return [auroc_interval(y[:, j], p[:, j]) for j in range(y.shape[1])]


def test_features_are_what_differs():
    facts = facts_of(50)
    found = metadata_features(facts)
    assert list(found) == [
        "height",
        "width",
        "aspect",
        "bytes",
        "bytes_per_pixel",
        "encoding",
        "manufacturer",
        "thickness_mm",
    ]
    np.testing.assert_allclose(found["height"], np.log(facts["height"]))
    assert list(metadata_features(facts, SIZE)) == list(SIZE)
    assert metadata_features(facts.assign(**dict.fromkeys(FACTS, 1.0))).shape == (50, 0)
    tilted = facts.assign(tilt_deg=np.where(np.arange(50) % 2, -12.0, 0.0))
    assert metadata_features(tilted)["tilt_deg"].tolist() == tilted["tilt_deg"].tolist()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("height", lambda y, rng: 300 + 60 * y + rng.normal(0, 40, len(y))),
        (
            "manufacturer",
            lambda y, rng: np.where(rng.random(len(y)) < 0.8, np.where(y == 1, "GE", "TOSHIBA"), "PHILIPS"),
        ),
        ("thickness_mm", lambda y, rng: np.where((y == 1) & (rng.random(len(y)) < 0.7), NAN, 5.0)),  # unknown tells too
        ("bytes", lambda y, rng: np.where(y == 1, rng.uniform(4e4, 6e4, len(y)), rng.choice([2e4, 9e4], len(y)))),
    ],
)
def test_a_shortcut_of_any_kind_is_found(column, values):
    """By size, by word, by a missing value, and by a band that no linear model sees."""
    rng = np.random.default_rng(1)
    y = (rng.random(200) < 0.4).astype(float)
    found = alone(facts_of(200).assign(**{column: values(y, rng)}), y[:, None])[0]
    assert found.low > 0.65, found
    assert alone(facts_of(200), y[:, None])[0].value < 0.62  # without it nothing is found


def test_nothing_to_find_is_chance_on_average():
    """Pooled folds do not score below chance either, though each fold's rate is that of the others turned round."""
    areas = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        y = (rng.random((60, 1)) < 0.3).astype(float)
        areas.append(alone(facts_of(60, seed), y, seed=seed)[0].value)
    assert abs(np.mean(areas) - 0.5) < 0.08  # standard error about 0.03
    constant = facts_of(60).assign(**dict.fromkeys(FACTS, 1.0))
    y = (np.arange(60) % 7 == 0).astype(float)[:, None]
    assert alone(constant, y)[0].value == pytest.approx(0.5)


def test_facts_of_a_series_do_not_count_as_many_patients():
    """40 patients of 20 slices, one pixel size each that says nothing: by patient it cannot be learnt by heart."""
    rng = np.random.default_rng(3)
    patient = np.repeat(np.arange(40), 20)
    own = rng.normal(size=40)
    sick = rng.permutation(np.arange(40) < 20)
    y = sick[patient].astype(float)[:, None]
    features = pd.DataFrame({"pixel_mm": own[patient], "noise": rng.normal(size=800)})
    who = names(40)[patient]
    inside = {}
    units = {"patient": patient.astype(np.int64), "slice": np.arange(800)}
    for unit, code in units.items():
        fold = folds_of(y, who if unit == "patient" else names(800), code)
        p = cross_validated(partial(fit_predict, features, y, who), y, fold)[:, 0]
        inside[unit] = auroc_interval(y[:, 0], p).value
    assert abs(inside["patient"] - 0.5) < 0.2
    assert inside["slice"] > max(0.6, inside["patient"] + 0.1)  # what a leak by slice makes of the same facts


def test_folds_keep_units_whole_and_labels_even():
    rng = np.random.default_rng(0)
    member = np.sort(rng.integers(0, 100, 600))
    y = (rng.random((600, 2)) < [0.3, 0.05]).astype(float)
    copies = np.arange(600)
    copies[member == 7] = copies[member == 3][0]  # two patients joined by one picture
    units = units_of(np.unique(member, return_inverse=True)[1], copies)
    fold = folds_of(y, names(100)[member], units)
    assert pd.Series(fold).groupby(member).nunique().max() == 1
    assert len(set(fold[(member == 7) | (member == 3)])) == 1
    assert np.bincount(fold).min() > 60
    with pytest.raises(DataError, match="1 patient"):
        folds_of(y[:3], np.array(["a"] * 3, dtype=object), np.zeros(3, dtype=np.int64))
    assert set(folds_of(y[:3], names(3), np.arange(3))) == {0, 1, 2}


def test_labels_of_the_predicted_are_not_used_and_results_repeat():
    y = (np.random.default_rng(0).random((80, 2)) < 0.5).astype(float)
    train, target = halves(80)
    features = metadata_features(facts_of(80))
    first = fit_predict(features, y, names(80), train, target)
    turned = y.copy()
    turned[target] = 1 - turned[target]
    np.testing.assert_array_equal(fit_predict(features, turned, names(80), train, target), first)
    assert ((first >= 0) & (first <= 1)).all()
    turned[train] = 1 - turned[train]  # other labels to learn: nothing remembered
    assert np.abs(fit_predict(features, turned, names(80), train, target) - first).max() > 0.05


def test_the_jobs_of_a_sweep_fit_a_baseline_once(monkeypatch):
    y = (np.random.default_rng(3).random((80, 1)) < 0.5).astype(float)
    given = (metadata_features(facts_of(80, seed=3)), y, names(80), *halves(80))
    first = fit_predict(*given)
    monkeypatch.setattr("sklearn.ensemble.RandomForestClassifier.fit", lambda *_, **__: pytest.fail("fitted again"))
    np.testing.assert_array_equal(fit_predict(*given), first)


def test_odd_labels_and_words():
    rng = np.random.default_rng(0)
    y = np.column_stack([rng.random(60) < 0.5, np.zeros(60), np.full(60, NAN), rng.random(60) < 0.5]).astype(float)
    y[:50:2, 3] = NAN
    train, target = np.arange(50), np.arange(50, 60)
    facts = facts_of(60)
    facts.loc[55, "manufacturer"] = "never seen in training"
    facts.loc[:49, "pixel_mm"] = NAN  # known of the predicted alone
    facts.loc[50:, "pixel_mm"] = 0.4
    found = fit_predict(metadata_features(facts), y, names(60), train, target)
    assert np.isfinite(found).all()
    assert (found[:, 1] == 0).all()
    assert (found[:, 2] == 0.5).all()
    assert len(np.unique(found[:, 0])) > 3
    assert not np.array_equal(found[:, 0], found[:, 3])
    rate = fit_predict(pd.DataFrame(index=range(60)), y, names(60), train, target)
    np.testing.assert_allclose(rate[:, 0], y[:50, 0].mean())


def test_thinning_keeps_every_patient():
    who = np.repeat(names(30), 400)
    rows = thinned(who, np.arange(12000))
    assert len(rows) <= 5000
    assert (np.unique(who[rows], return_counts=True)[1] == 5000 // 30).all()
    assert (np.diff(rows) > 0).all()
    few = np.arange(100)
    assert thinned(who, few) is few


def frame(y, own, null, slices=1):
    n = len(y)
    who = names(n // slices).repeat(slices)
    df = pd.DataFrame({"split": "test", "patient_id": who, "series_id": who, "z_mm": NAN})
    df["slice_id"] = [f"s{i}" for i in range(n)]
    for j in range(y.shape[1]):
        df[f"label_l{j}"], df[f"prob_l{j}"], df[f"border_prob_l{j}"] = y[:, j], own[:, j], null[:, j]
    return df


def test_the_gain_over_a_null_is_delongs_on_single_cases():
    rng = np.random.default_rng(0)
    y = (rng.random((80, 1)) < 0.5).astype(float)
    own, null = (1 / (1 + np.exp(-(k * y + rng.normal(size=y.shape)))) for k in (2.0, 0.5))
    found = baseline_aurocs(frame(y, own, null), ["l0"], "binary", "mean", ["slice"], "border_prob", beside=True)[
        "slice"
    ]
    entry, gain = found["auroc"], found["labels"]["l0"]["gain"]
    single = auroc_interval(y[:, 0], null[:, 0])
    assert (entry["value"], entry["low"], entry["high"]) == pytest.approx((single.value, single.low, single.high))
    assert (entry["n"], entry["method"]) == (80, "delong")
    test = auroc_test(y[:, 0], own[:, 0], null[:, 0])
    assert (gain["value"], gain["p"]) == pytest.approx((test.difference, test.p))
    assert gain["low"] < gain["value"] < gain["high"]
    same = baseline_aurocs(frame(y, null, null), ["l0"], "binary", "mean", ["slice"], "border_prob", beside=True)
    assert same["slice"]["labels"]["l0"]["gain"]["value"] == 0
    assert same["slice"]["labels"]["l0"]["gain"]["p"] == 1


def test_levels_labels_and_what_is_undefined():
    rng = np.random.default_rng(1)
    y = np.column_stack([rng.random(120) < 0.3, np.zeros(120)]).astype(float)
    y[:20, 0] = NAN
    p = rng.random((120, 2))
    found = baseline_aurocs(
        frame(y, p, p, slices=4), ["l0", "l1"], "multilabel", "max", ["slice", "patient"], "border_prob"
    )
    top = found["slice"]["auroc"]
    assert (top["n_defined"], top["n_labels"]) == (1, 2)
    assert top["value"] == pytest.approx(found["slice"]["labels"]["l0"]["auroc"]["value"])
    assert found["slice"]["labels"]["l0"]["auroc"]["method"] == "obuchowski"
    assert found["slice"]["labels"]["l0"]["auroc"]["n"] == 100
    assert found["slice"]["labels"]["l1"]["auroc"] == {
        "value": None,
        "low": None,
        "high": None,
        "n": 120,
        "method": None,
    }
    assert found["patient"]["labels"]["l0"]["auroc"]["n"] == 25
