from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hemlearn.audits.baselines import (
    adjust,
    baseline_aurocs,
    chance_p,
    fit_predict,
    metadata_features,
    position_basis,
    stands_out,
    thinned,
)
from hemlearn.audits.facts import FACTS, SIZE
from hemlearn.audits.partitions import folds_of, permuted, repeated, some_rows
from hemlearn.config.schema import TaskConfig
from hemlearn.data.splits import units_of
from hemlearn.evaluation.auroc import auroc_interval
from hemlearn.evaluation.calibration import Calibration
from hemlearn.util.errors import DataError
from tests.evaluation.written_out import auroc_test

NAN = float("nan")
NONE = Calibration.none(TaskConfig(labels=["l0"]))


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


def alone(facts, y, columns=FACTS):
    """The entry of a baseline cross-validated on single images, in fewer draws than an audit makes."""
    who = names(len(y))
    table = pd.DataFrame({"slice_id": who, "series_id": who, "patient_id": who, "z_mm": NAN})
    features = {"metadata": metadata_features(facts, columns)}
    given = (table, y[:, None], np.arange(len(y)), ["bleed"], ["slice"])
    return repeated(features, *given, partitions=3, permutations=39)["metadata"]["slice"]["auroc"]


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
    facts, (train, target) = facts_of(200).assign(**{column: values(y, rng)}), halves(200)
    p = fit_predict(metadata_features(facts), y[:, None], names(200), train, target)[:, 0]
    assert auroc_interval(y[target], p).low > 0.6
    found = alone(facts, y)
    assert found["value"] > found["low"] > 0.65, found
    assert found["p_adjusted"] == 1 / 40
    assert stands_out(found)
    assert not stands_out(alone(facts_of(200), y))  # without it nothing is found


def test_nothing_to_find_is_chance_on_average():
    """Folds do not score below chance, though each fold's rate is that of the others turned round; p is uniform."""
    found = []
    for seed in range(12):
        y = (np.random.default_rng(seed).random(60) < 0.3).astype(float)
        found.append(alone(facts_of(60, seed), y))
    assert abs(np.mean([item["value"] for item in found]) - 0.5) < 0.08  # standard error about 0.03
    p = np.array([item["p"] for item in found])
    assert 0.25 < p.mean() < 0.75  # standard error 0.08
    assert sum(map(stands_out, found)) <= 2
    constant = facts_of(60).assign(**dict.fromkeys(FACTS, 1.0))
    blind = alone(constant, (np.arange(60) % 7 == 0).astype(float))
    assert (blind["value"], blind["p"]) == (0.5, 1.0)


def volumes(own, y, slices):
    """Repeated cross-validation per slice and patient of features that a patient's slices share."""
    who = names(len(y)).repeat(slices)
    place = np.tile(np.arange(slices), len(y))
    table = pd.DataFrame({"patient_id": who, "series_id": who, "z_mm": place.astype(float)})
    table["slice_id"] = [f"{name}/{item}" for name, item in zip(who, place, strict=True)]
    given = (table, y.repeat(slices)[:, None], np.arange(len(y)).repeat(slices), ["bleed"], ["slice", "patient"])
    return repeated({"size": pd.DataFrame({"f": own})}, *given, partitions=3, permutations=39)["size"]


def test_facts_of_a_series_do_not_count_as_many_patients():
    """40 patients of 8 slices, one pixel size each that says nothing: many slices of few patients are no evidence."""
    rng = np.random.default_rng(3)
    stood = 0
    for _ in range(6):
        y = rng.permutation(np.arange(40) < 16).astype(float)
        found = volumes(rng.normal(size=40).repeat(8), y, 8)
        stood += sum(stands_out(found[level]["labels"]["bleed"]["auroc"]) for level in ("slice", "patient"))
    assert stood <= 3
    strong = volumes((y + rng.normal(0, 0.5, 40)).repeat(8), y, 8)
    assert strong["patient"]["auroc"] == strong["patient"]["labels"]["bleed"]["auroc"]
    assert stands_out(strong["slice"]["auroc"])
    assert stands_out(strong["patient"]["auroc"])
    assert (strong["slice"]["auroc"]["n"], strong["patient"]["auroc"]["n"]) == (320, 40)


def test_position_is_found_per_slice_though_every_patient_is_alike():
    """Labels in the middle of each series: rotated permutations keep their number, and lose their place."""
    y = np.tile((np.abs(np.arange(8) - 3.5) < 2).astype(float), 30)
    place = np.tile(np.linspace(0, 1, 8), 30)
    who = names(30).repeat(8)
    table = pd.DataFrame({"patient_id": who, "series_id": who, "z_mm": place, "slice_id": np.arange(240).astype(str)})
    features = {"position": pd.DataFrame(position_basis(pd.DataFrame({"place": place})))}
    given = (table, y[:, None], np.arange(30).repeat(8), ["bleed"], ["slice", "patient"])
    found = repeated(features, *given, partitions=2, permutations=39)["position"]
    assert found["slice"]["auroc"]["value"] > 0.9
    assert stands_out(found["slice"]["auroc"])
    assert found["patient"]["auroc"]["value"] is None  # every patient is positive


def test_only_cases_of_one_fold_are_compared():
    """Written out: pairs of a positive and a negative case within each fold, over all such pairs."""
    rng = np.random.default_rng(0)
    y = (rng.random(50) < 0.4).astype(float)
    x = pd.DataFrame({"f": rng.normal(size=50) + y})
    who = names(50)
    table = pd.DataFrame({"slice_id": who, "series_id": who, "patient_id": who, "z_mm": NAN})
    units = np.arange(50)
    value = repeated({"size": x}, table, y[:, None], units, ["l"], ["slice"], 1, 1)["size"]["slice"]["auroc"]["value"]
    fold = folds_of(y[:, None], who, units, salt="partition 0")
    right = pairs = 0.0
    for k in range(5):
        train, target = fold != k, fold == k
        scores = x.to_numpy()[target, 0]  # one column: a ridge with bumps keeps its order nearly
        truth = y[target] == 1
        gaps = scores[truth][:, None] - scores[~truth]
        right, pairs = right + (gaps > 0).sum() + 0.5 * (gaps == 0).sum(), pairs + gaps.size
        assert train.sum() == 40
    assert value == pytest.approx(right / pairs, abs=0.08)


def test_permuted_labels_are_those_of_other_units():
    units = np.repeat([0, 1, 2, 3], [4, 2, 1, 8])
    seen = set()
    for seed in range(40):
        rows = permuted(units, seed)
        taken = [set(units[rows[units == unit]]) for unit in range(4)]
        assert all(len(theirs) == 1 for theirs in taken)  # a unit takes the labels of one other
        assert set.union(*taken) == {0, 1, 2, 3}
        same = rows[units == 0]
        if taken[0] == {0}:
            assert sorted(same) == [0, 1, 2, 3]
            seen.add(tuple(same))
    assert seen <= {(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)}
    assert len(seen) > 1
    np.testing.assert_array_equal(permuted(units, 3), permuted(units, 3))


def test_few_patients_are_not_judged():
    rng = np.random.default_rng(0)
    y = np.r_[np.ones(4), np.zeros(60)]
    found = alone(facts_of(64).assign(height=300 + 200 * y), y)
    assert found["value"] > 0.9
    assert (found["p"], found["p_adjusted"]) == (None, None)
    assert np.isnan(chance_p(y, y + rng.normal(size=64), np.arange(64)))
    y[4] = 1
    assert chance_p(y, y, np.arange(64)) < 0.001  # separated: no variance, and yet no chance
    assert chance_p(y, np.zeros(64), np.arange(64)) == 1


def test_p_and_interval_are_of_one_statistic_and_holm_counts_all():
    rng = np.random.default_rng(5)
    for _ in range(40):
        who = np.repeat(np.arange(30), rng.integers(1, 6, 30))
        y = (rng.random(len(who)) < 0.5).astype(float)
        p = rng.random(len(who)) + 0.25 * y
        area = auroc_interval(y, p, who)
        assert (chance_p(y, p, who) < 0.05) == (not area.low < 0.5 < area.high)
    labels = {"a": {"auroc": {"p": 0.01}}, "b": {"auroc": {"p": 0.04}}}
    other = {"a": {"auroc": {"p": None}}, "b": {"auroc": {"p": 0.03}}}
    audits = {"size": {"test": {"slice": {"labels": labels}}}, "border": {"test": {"slice": {"labels": other}}}}
    adjust(audits)
    assert [labels[c]["auroc"]["p_adjusted"] for c in "ab"] == pytest.approx([0.03, 0.06])
    assert [other[c]["auroc"]["p_adjusted"] for c in "ab"] == [None, pytest.approx(0.06)]


def test_a_large_table_is_looked_at_in_part():
    who = np.repeat(names(400), 40)
    rows = some_rows(who)
    assert len(rows) == 300 * 5
    assert (np.unique(who[rows], return_counts=True)[1] == 5).all()
    few = np.repeat(names(3), [4, 40, 25])
    assert np.unique(few[some_rows(few)], return_counts=True)[1].tolist() == [4, 10, 10]


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
    found = baseline_aurocs(frame(y, own, null), ["l0"], "binary", "mean", ["slice"], "border_prob", beside=NONE)[
        "slice"
    ]
    entry, gain = found["auroc"], found["labels"]["l0"]["gain"]
    single = auroc_interval(y[:, 0], null[:, 0])
    assert (entry["value"], entry["low"], entry["high"]) == pytest.approx((single.value, single.low, single.high))
    assert (entry["n"], entry["method"]) == (80, "delong")
    test = auroc_test(y[:, 0], own[:, 0], null[:, 0])
    assert (gain["value"], gain["p"]) == pytest.approx((test.difference, test.p))
    assert gain["low"] < gain["value"] < gain["high"]
    same = baseline_aurocs(frame(y, null, null), ["l0"], "binary", "mean", ["slice"], "border_prob", beside=NONE)
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
        "p": None,
    }
    assert found["patient"]["labels"]["l0"]["auroc"]["n"] == 25
