from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import log_loss, roc_auc_score

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.predictions import aggregate
from hemlearn.util.errors import ConfigError, RunError
from tests.evaluation.written_out import weighted_log_loss

LABELS = ["common", "medium", "rare"]
RATES = (0.4, 0.2, 0.02)  # patients that have the label


def volumes(patients, seed, stretch=1.0, shift=0.0, split="val", slices=25, rates=RATES):
    """Log odds of slices, right up to a patient's own offset, then made too steep and moved."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), slices)
    has = rng.random((patients, len(rates))) < rates
    y = (has[who] & (rng.random((len(who), len(rates))) < 0.4)).astype(float)
    prior = logit(0.4 * np.array(RATES))
    signal = 1.7 * y + rng.normal(size=y.shape) + 0.4 * rng.normal(size=has.shape)[who]
    z = prior + stretch * 1.5 * (signal - 0.85) + shift
    df = pd.DataFrame({"split": split, "patient_id": [f"{split}{i}" for i in who], "z_mm": 0.0})
    df["series_id"] = df["patient_id"]
    df["slice_id"] = [f"{split}-{k}" for k in range(len(who))]
    for j, label in enumerate(LABELS[: len(rates)]):
        df[f"label_{label}"], df[f"prob_{label}"] = y[:, j], expit(z[:, j])
    return df


def task(method, **more):
    return TaskConfig(kind="multilabel", labels=LABELS, calibration=method, **more)


def loss(df, labels=LABELS, family="prob"):
    return weighted_log_loss(df[[f"label_{c}" for c in labels]], df[[f"{family}_{c}" for c in labels]])


def test_none_is_the_default_and_changes_nothing():
    df = volumes(10, 0)
    made = Calibration.fit(df, TaskConfig(kind="multilabel", labels=LABELS))
    assert made.method == "none"
    pd.testing.assert_frame_equal(made.apply(df), df)


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_too_steep_probabilities_get_better(method):
    test = volumes(300, 9, stretch=2.5, split="test")
    for patients, gain in ((8, 0.03), (60, 0.05)):
        made = Calibration.fit(volumes(patients, 1, stretch=2.5), task(method))
        after = made.apply(test)
        assert loss(after) < loss(test) - gain, patients
        assert (after["label_common"] == test["label_common"]).all()
        for label in LABELS:
            before = roc_auc_score(test[f"label_{label}"], test[f"prob_{label}"])
            assert roc_auc_score(after[f"label_{label}"], after[f"prob_{label}"]) == pytest.approx(before, abs=0.02)
            assert after[f"prob_{label}"].between(0, 1, inclusive="neither").all()
        slopes = [made.maps["slice"][label].slope for label in LABELS]
        assert all(0.2 < slope < 1 for slope in slopes)


def test_many_patients_recover_the_truth():
    made = Calibration.fit(volumes(500, 2, stretch=2.0, shift=0.8), task("platt")).maps["slice"]["common"]
    z = np.array([-3.0, 0.0, 3.0])
    found = logit(made(expit(z)))
    # The map undoes z = prior + 2 * (right - prior) + 0.8; the patients' own offsets flatten it a little further.
    prior = logit(0.4 * RATES[0])
    expected = prior + (z - 0.8 - prior) / 2
    assert np.polyfit(z, found, 1)[0] == pytest.approx(0.5, abs=0.12)
    np.testing.assert_allclose(found, expected, atol=0.5)


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_a_label_without_validation_patients_is_not_harmed(method):
    """Seven patients, none with the rare label: on average and at worst, its loss stays where it was."""
    changes = {1.0: [], 2.5: []}
    for stretch, found in changes.items():
        test = volumes(400, 5, stretch=stretch, split="test")
        before = loss(test, ["rare"])
        for seed in range(12):
            val = volumes(7, 100 + seed, stretch=stretch, rates=(0.5, 0.3, 0.0))
            made = Calibration.fit(val, task(method))
            found.append(loss(made.apply(test), ["rare"]) - before)
            assert "0 validation patients with it" in made.maps["slice"]["rare"].note
            assert any("slice rare: " in note for note in made.notes())
            assert made.maps["slice"]["rare"].shift == 0
    assert np.mean(changes[1.0]) < 0.001
    assert max(changes[1.0]) < 0.005
    assert max(changes[2.5]) < 0  # what the other labels tell about steepness helps it


def test_well_calibrated_probabilities_are_left_nearly_alone():
    test = volumes(300, 5, split="test")
    for method in ("temperature", "platt", "isotonic"):
        changes = [loss(Calibration.fit(volumes(7, s), task(method)).apply(test)) - loss(test) for s in range(10)]
        assert np.mean(changes) < 0.004, method


def test_isotonic_falls_back_and_says_so():
    few = Calibration.fit(volumes(7, 3), task("isotonic"))
    assert all("platt in place of isotonic" in m.note and not m.steps for m in few.maps["slice"].values())
    many = Calibration.fit(volumes(200, 3), task("isotonic")).maps["slice"]["common"]
    assert many.note == ""
    assert many.steps
    x = np.linspace(0, 1, 400)
    assert (np.diff(many(x)) > 0)[1:-1].all()  # no plateau: ranks are kept
    assert 0.5 < many.share < 1


def test_series_outputs_have_maps_of_their_own():
    val, test = volumes(80, 1), volumes(200, 2, split="test")
    for frame, seed in ((val, 3), (test, 4)):
        rng = np.random.default_rng(seed)
        for label in LABELS:
            truth = frame.groupby("series_id")[f"label_{label}"].transform("max")
            noise = dict(zip(frame["series_id"].unique(), rng.normal(size=frame["series_id"].nunique()), strict=True))
            frame[f"series_prob_{label}"] = expit(4 * (truth - 0.5) + 2 * frame["series_id"].map(noise))
    made = Calibration.fit(val, task("platt"))
    assert set(made.maps) == {"slice", "series"}
    after = made.apply(test)
    assert made.maps["series"]["common"].positives == val.groupby("series_id")["label_common"].max().sum()
    assert not np.allclose(after["series_prob_common"], test["series_prob_common"])
    assert (after.groupby("series_id")["series_prob_common"].nunique() == 1).all()
    truth = test.groupby("series_id")[[f"label_{c}" for c in LABELS]].max()
    before, later = (f.groupby("series_id")[[f"series_prob_{c}" for c in LABELS]].first() for f in (test, after))
    assert weighted_log_loss(truth, later) < weighted_log_loss(truth, before)
    without = Calibration.fit(val.drop(columns=[f"series_prob_{c}" for c in LABELS]), task("platt"))
    with pytest.raises(RunError, match="no map for the columns series_prob"):
        without.apply(test)


def test_unknown_labels_and_no_cases():
    val = volumes(40, 1, stretch=2.0)
    val.loc[::2, "label_common"] = np.nan
    kept = Calibration.fit(val[val["label_common"].notna()], task("platt")).maps["slice"]["common"]
    some = Calibration.fit(val, task("platt")).maps["slice"]["common"]
    assert some.positives == kept.positives
    assert some.centre == pytest.approx(kept.centre)
    val["label_common"] = np.nan
    none = Calibration.fit(val, task("platt")).maps["slice"]["common"]
    assert (none.positives, none.patients) == (0, 0)
    assert none.note
    empty = Calibration.fit(val.iloc[:0], task("platt"))
    np.testing.assert_allclose(empty.apply(val)["prob_medium"], val["prob_medium"])


def test_multiclass_has_one_temperature():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(600, 3))
    y = np.eye(3)[(z + rng.gumbel(size=z.shape)).argmax(axis=1)]
    p = np.exp(3 * z) / np.exp(3 * z).sum(axis=1, keepdims=True)
    df = pd.DataFrame({"split": "val", "patient_id": np.arange(600).astype(str), "series_id": "s"})
    for j, c in enumerate("xyz"):
        df[f"label_{c}"], df[f"prob_{c}"] = y[:, j], p[:, j]
    config = TaskConfig(kind="multiclass", labels=list("xyz"), calibration="temperature")
    made = Calibration.fit(df, config)
    assert made.maps["slice"]["x"].slope == pytest.approx(1 / 3, abs=0.05)
    after = made.apply(df)[[f"prob_{c}" for c in "xyz"]]
    np.testing.assert_allclose(after.sum(axis=1), 1)
    assert (after.to_numpy().argmax(axis=1) == p.argmax(axis=1)).all()
    config.calibration = "platt"
    with pytest.raises(ConfigError, match=r"use task\.calibration=temperature"):
        Calibration.fit(df, config)


# --- Patients, whose mean over slices is no probability.


def patients(df, maps=None, how="mean", label="common"):
    """Truth and value of each patient."""
    units = aggregate(df, "patient", how) if maps is None else maps.aggregate(df, "patient", how)
    return units[f"label_{label}"].to_numpy(), units[f"prob_{label}"].to_numpy()


@pytest.mark.parametrize("method", ["none", "platt"])
@pytest.mark.parametrize("how", ["mean", "max"])
def test_an_aggregate_becomes_a_probability(method, how):
    test = volumes(400, 9, split="test")
    y, raw = patients(test, how=how)
    losses = {"raw": log_loss(y, raw), "rate": log_loss(y, np.full(len(y), 0.4))}
    for count, seed in ((7, 1), (60, 2)):
        made = Calibration.fit(volumes(count, seed), task(method, aggregate=how), volumes(40, 3))
        assert set(made.units) == {"series", "patient"}
        _, p = patients(made.apply(test), made, how)
        losses[count] = log_loss(y, p)
        assert roc_auc_score(y, p) == pytest.approx(roc_auc_score(y, patients(made.apply(test), how=how)[1]))
    assert losses[60] < losses[7] < losses["rate"]
    assert losses[60] < losses["raw"]
    assert p.mean() == pytest.approx(y.mean(), abs=0.05)


def test_validation_patients_average_their_rate_and_lean_on_that_of_training():
    val = volumes(20, 1)
    made = Calibration.fit(val, task("none"))
    y, p = patients(val, made)
    assert p.mean() == pytest.approx((y.sum() + 0.5) / (len(y) + 1))  # slopes move, the mean does not
    # Training says that 1 patient in 20 has it: odds and not probabilities move, as under another prevalence.
    train = volumes(200, 2)
    first = train["patient_id"].isin([f"val{i}" for i in range(10)])
    train["label_common"] = (first & (train.groupby("patient_id").cumcount() == 0)).astype(float)
    leaned = Calibration.fit(val, task("none"), train)
    rate = (y.sum() + 10 + 0.5) / (20 + 200 + 1)
    moved = leaned.units["patient"]["common"].shift - made.units["patient"]["common"].shift
    assert moved == pytest.approx(logit(rate) - logit((y.sum() + 0.5) / 21))
    assert leaned.units["patient"]["common"].slope == made.units["patient"]["common"].slope


def test_patients_of_labels_that_validation_lacks():
    val, test = volumes(12, 1, rates=(0.5, 0.3, 0.0)), volumes(100, 2, split="test")
    made = Calibration.fit(val, task("none"), volumes(100, 3))
    own = made.units["patient"]["rare"]
    assert "the slope shared by all labels" in own.note
    assert patients(test, made, label="rare")[1].mean() < 0.1
    val["label_rare"] = np.nan  # not known of anybody: the values move to the rate in training
    unknown = Calibration.fit(val, task("none"), volumes(100, 3))
    truth = volumes(100, 3).groupby("patient_id")["label_rare"].max()
    p = patients(val, unknown, label="rare")[1]
    assert p.mean() == pytest.approx((truth.sum() + 0.5) / (len(truth) + 1))
    assert Calibration.fit(val, task("none")).units["patient"]["rare"].note == "no patient known: as is"
    assert Calibration.fit(val.iloc[:0], task("none")).units == {}


def test_what_is_a_probability_of_its_own_has_no_such_map():
    single = volumes(20, 1, slices=1)
    assert Calibration.fit(single, task("none")).empty
    val = volumes(20, 1)
    for label in LABELS:
        val[f"series_prob_{label}"] = val.groupby("patient_id")[f"prob_{label}"].transform("max")
    assert Calibration.fit(val, task("none", aggregate="model")).empty
    assert set(Calibration.fit(val, task("none")).units) == {"series", "patient"}


def test_scores_have_no_log_loss():
    df = pd.concat([volumes(20, 1), volumes(20, 2, split="test")], ignore_index=True)
    config = task("none")
    bare = evaluate(df, config, replicates=0)
    assert bare["about"]["scores"] == ["series", "patient"]
    for level in ("series", "patient"):
        own = bare["test"][level]
        assert not {"log_loss", "brier", "ece", "weighted_log_loss", "brier_reliability"} & own.keys()
        assert not {"log_loss", "brier", "ece"} & own["labels"]["common"].keys()
        assert own["auroc"]["value"] > 0.7
    maps = Calibration.fit(df[df["split"] == "val"], config)
    found = evaluate(df, config, calibration=maps, replicates=0)
    assert found["about"]["scores"] == []
    assert found["test"]["patient"]["auroc"] == bare["test"]["patient"]["auroc"]
    y, p = patients(df[df["split"] == "test"], maps)
    assert found["test"]["patient"]["labels"]["common"]["log_loss"]["value"] == pytest.approx(log_loss(y, p))
    point = found["thresholds"]["patient"]["common"]["value"]  # chosen on the scale on which it is applied
    sensitivity = found["test"]["patient"]["labels"]["common"]["sensitivity"]["value"]
    assert sensitivity == (p[y == 1] >= point).mean()


def test_patients_of_exclusive_classes():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"split": "val", "patient_id": np.repeat(np.arange(90), 4).astype(str), "z_mm": 0.0})
    df["series_id"], df["slice_id"] = df["patient_id"], np.arange(360).astype(str)
    truth = np.eye(3)[rng.integers(0, 3, 90)].repeat(4, axis=0)
    p = np.exp(truth + rng.normal(size=(360, 3)))
    for j, c in enumerate("xyz"):
        df[f"label_{c}"], df[f"prob_{c}"] = truth[:, j], (p / p.sum(axis=1, keepdims=True))[:, j]
    made = Calibration.fit(df, TaskConfig(kind="multiclass", labels=list("xyz")))
    assert made.units["patient"]["x"].slope > 1  # four slices know more than their mean says
    after = made.aggregate(df, "patient", "mean")[[f"prob_{c}" for c in "xyz"]].to_numpy()
    np.testing.assert_allclose(after.sum(axis=1), 1)
    assert (after.argmax(axis=1) == aggregate(df, "patient")[[f"prob_{c}" for c in "xyz"]].to_numpy().argmax(1)).all()


@pytest.mark.parametrize("method", ["none", "temperature", "platt", "isotonic"])
def test_round_trip_through_json(method):
    val, test = volumes(60, 1, stretch=2.0), volumes(20, 2, split="test")
    made = Calibration.fit(val, task(method))
    back = Calibration.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)))
    assert back == made
    pd.testing.assert_frame_equal(back.apply(test), made.apply(test))
    pd.testing.assert_frame_equal(back.aggregate(test, "patient", "mean"), made.aggregate(test, "patient", "mean"))
    older = Calibration.from_dict({key: value for key, value in made.to_dict().items() if key != "units"})
    assert older.units == {}
    assert older.maps == made.maps
    part = made.narrowed(["rare"], "binary")
    assert part.units["patient"] == {"rare": made.units["patient"]["rare"]}


def test_wrong_calls_are_refused():
    with pytest.raises(ConfigError, match="expected one of"):
        Calibration.fit(volumes(5, 0), task("beta"))
    with pytest.raises(ValueError, match="validation rows only"):
        Calibration.fit(volumes(5, 0, split="test"), task("platt"))
    good = Calibration.fit(volumes(20, 0), task("platt")).to_dict()
    for bad in (
        {},
        good | {"method": "beta"},
        good | {"labels": ["x"]},
        good | {"maps": {}},
        {**good, "maps": 3},
        good | {"units": {"slice": {}}},
    ):
        with pytest.raises(RunError, match="not what hemlearn wrote"):
            Calibration.from_dict(bad)
