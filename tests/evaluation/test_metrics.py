from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from sklearn import metrics as sk

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import auroc_interval, wilson
from hemlearn.evaluation.bootstrap import BRIER_PARTS
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.metrics import evaluate, fast_metrics, scalars
from hemlearn.evaluation.scoring import METRICS, decide, summarise
from hemlearn.util.errors import ConfigError
from tests.evaluation.written_out import weighted_log_loss

NAN = float("nan")


def frame(seed=0, patients=60, slices=1, labels=("h",), split="test", multiclass=False):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), slices)
    n = len(who)
    logit = 1.5 * rng.normal(size=(patients, len(labels)))[who] + rng.normal(size=(n, len(labels)))
    noisy = logit + rng.normal(size=logit.shape)
    if multiclass:
        y = np.eye(len(labels))[logit.argmax(axis=1)]
        p = np.exp(noisy) / np.exp(noisy).sum(axis=1, keepdims=True)
    else:
        y, p = (logit > 0.5).astype(float), 1 / (1 + np.exp(-noisy))
    df = pd.DataFrame({"split": split, "patient_id": [f"{split}{i}" for i in who]})
    df["series_id"] = df["patient_id"]
    df["slice_id"] = [f"{split}-{i}" for i in range(n)]
    df["z_mm"] = NAN
    for j, label in enumerate(labels):
        df[f"label_{label}"] = y[:, j]
    for j, label in enumerate(labels):
        df[f"prob_{label}"] = p[:, j]
    return df


def both(**kwargs):
    parts = [frame(seed=s, split=split, **kwargs) for s, split in enumerate(("val", "test"))]
    return pd.concat(parts, ignore_index=True)


def test_binary_values_and_closed_form_intervals():
    df = both()
    found = evaluate(df, TaskConfig(labels=["h"]), replicates=200)
    t = found["thresholds"]["slice"]["h"]["value"]
    test = df[df["split"] == "test"]
    y, p = test["label_h"].to_numpy(), test["prob_h"].to_numpy()
    slice_ = found["test"]["slice"]
    assert slice_["accuracy"]["value"] == pytest.approx(((p >= t) == y).mean())
    hits = int(((p >= t) & (y == 1)).sum())
    bounds = slice_["sensitivity"]
    assert (bounds["low"], bounds["high"]) == pytest.approx(wilson(hits, y.sum()))
    assert bounds["n"] == y.sum()
    assert bounds["method"] == "wilson"
    delong = auroc_interval(y, p)
    assert (slice_["auroc"]["value"], slice_["auroc"]["low"]) == pytest.approx((delong.value, delong.low))
    assert slice_["auroc"]["method"] == "delong"
    assert slice_["labels"]["h"]["ap"] == slice_["ap"]
    assert set(slice_) == {*METRICS, *BRIER_PARTS, "labels"}
    for metric in METRICS:
        entry = slice_[metric]
        if metric == "ece":  # of sixty cases most of it is noise
            assert entry["value"] > 0
            assert entry["low"] is None
        else:
            assert entry["low"] <= entry["value"] <= entry["high"], metric
    assert found["test"]["patient"] == slice_  # one slice per patient
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found == evaluate(df, TaskConfig(labels=["h"]), replicates=200)


def test_thresholds_come_from_validation_alone():
    df = both()
    found = evaluate(df, TaskConfig(labels=["h"]), replicates=0)
    df.loc[df["split"] == "test", "label_h"] = 1 - df.loc[df["split"] == "test", "label_h"]
    assert evaluate(df, TaskConfig(labels=["h"]), replicates=0)["thresholds"] == found["thresholds"]
    external = frame(seed=9, patients=30)
    kept = evaluate(external, TaskConfig(labels=["h"]), thresholds=found["thresholds"], replicates=0)
    assert kept["thresholds"] == found["thresholds"]
    alone = evaluate(external, TaskConfig(labels=["h"]), replicates=0)["thresholds"]["slice"]["h"]
    assert alone["value"] == 0.5
    assert "0.5 taken" in alone["note"]


def test_slices_of_a_patient_are_not_independent():
    one = frame(patients=60)
    many = pd.concat([one.assign(slice_id=one["slice_id"] + f"-{k}") for k in range(8)], ignore_index=True)
    task = TaskConfig(labels=["h"], threshold=0.5)
    single, copied = (evaluate(df, task, replicates=400)["test"] for df in (one, many))
    for metric in METRICS:
        a, b = single["slice"][metric], copied["slice"][metric]
        assert a["value"] == pytest.approx(b["value"], abs=0.02), metric
        if metric == "ece":
            continue
        # Eight copies of a slice must not narrow the interval (naively by a factor of 2.8).
        assert b["high"] - b["low"] > 0.75 * (a["high"] - a["low"]), metric
    assert copied["slice"]["auroc"]["method"] == "obuchowski"
    assert copied["slice"]["accuracy"]["method"] == "clustered wilson"
    assert copied["slice"]["accuracy"]["n"] == 480
    assert copied["patient"]["auroc"] == single["patient"]["auroc"]
    assert copied["patient"]["accuracy"]["method"] == "wilson"


def test_the_prevalence_is_part_of_what_varies():
    """Held within strata of the label, the interval of the Brier score would be far too narrow."""
    y = np.r_[np.ones(20), np.zeros(37)]
    p = np.where(y == 1, 0.4, 0.2)  # without spread inside a class: all the variance is the prevalence's
    found = summarise(y[:, None], p[:, None], p[:, None] > 0.5, np.arange(57), ["h"], "binary")["brier"]
    assert found["value"] == pytest.approx((20 * 0.36 + 37 * 0.04) / 57)
    error = 0.32 * np.sqrt(20 / 57 * 37 / 57 / 57)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(student.ppf(0.975, 19) * error, rel=0.15)


def test_one_rule_for_labels_of_few_patients():
    rng = np.random.default_rng(2)
    y = np.zeros((60, 2))
    y[:25, 0], y[:2, 1] = 1, 1
    p = np.clip(0.3 * y + 0.6 * rng.random((60, 2)), 0, 1)
    found = summarise(y, p, p > 0.5, np.arange(60), ["a", "rare"], "multilabel", replicates=200)
    for metric in ("auroc", "ap", "f1", "brier", "log_loss"):
        assert found["labels"]["a"][metric]["low"] is not None
        assert found["labels"]["rare"][metric]["low"] is found["labels"]["rare"][metric]["method"] is None
    for metric in ("auroc", "ap", "f1", "sensitivity"):
        assert found[metric]["low"] is None, metric
    assert found["labels"]["rare"]["sensitivity"]["method"] == "wilson"
    assert found["weighted_log_loss"]["low"] is not None
    y[2, 1] = 1
    assert summarise(y, p, p > 0.5, np.arange(60), ["a", "rare"], "multilabel", replicates=200)["auroc"]["low"]


def test_patient_threshold_differs_from_slice_threshold():
    df = pd.concat([frame(0, 60, 6, split="val"), frame(1, 60, 1)], ignore_index=True)
    found = evaluate(df, TaskConfig(labels=["h"], aggregate="max"), replicates=0)
    at = {level: found["thresholds"][level]["h"]["value"] for level in ("slice", "patient")}
    assert at["patient"] > at["slice"]
    test = df[df["split"] == "test"]
    for level, t in at.items():  # one test slice per patient, yet each level calls by its own threshold
        expected = ((test["prob_h"] >= t) == (test["label_h"] == 1)).mean()
        assert found["test"][level]["accuracy"]["value"] == pytest.approx(expected)


def test_macro_over_defined_labels_only():
    df = both(labels=("a", "b", "c"))
    df.loc[df["split"] == "test", "label_b"] = 0.0
    df.loc[df["split"] == "test", "label_c"] = NAN
    found = evaluate(df, TaskConfig(kind="multilabel", labels=["a", "b", "c"]), replicates=100)["test"]["slice"]
    a, b, c = (found["labels"][k] for k in "abc")
    assert b["auroc"] == {"value": None, "low": None, "high": None, "n": 60, "method": None}
    assert (b["sensitivity"]["value"], b["sensitivity"]["n"]) == (None, 0)
    assert (c["accuracy"]["value"], c["accuracy"]["n"]) == (None, 0)
    assert found["auroc"]["value"] == pytest.approx(a["auroc"]["value"])
    assert (found["auroc"]["n_defined"], found["auroc"]["n_labels"]) == (1, 3)
    expected = (a["specificity"]["value"] + b["specificity"]["value"]) / 2
    assert found["specificity"]["value"] == pytest.approx(expected)
    assert found["specificity"]["n_defined"] == 2


def test_multiclass_against_sklearn():
    labels = ["x", "y", "z"]
    df = both(labels=labels, multiclass=True, patients=90)
    df.loc[100, "label_y"] = NAN  # the whole row is masked
    found = evaluate(df, TaskConfig(kind="multiclass", labels=labels), replicates=100)
    test = df[(df["split"] == "test") & df["label_y"].notna()]
    y = test[[f"label_{c}" for c in labels]].to_numpy().argmax(axis=1)
    p = test[[f"prob_{c}" for c in labels]].to_numpy()
    slice_ = found["test"]["slice"]
    assert found["thresholds"]["slice"] == {}
    assert slice_["accuracy"]["value"] == pytest.approx(sk.accuracy_score(y, p.argmax(axis=1)))
    assert slice_["accuracy"]["method"] == "wilson"
    assert slice_["log_loss"]["value"] == pytest.approx(sk.log_loss(y, p))
    assert slice_["brier"]["value"] == pytest.approx(((p - np.eye(3)[y]) ** 2).sum(axis=1).mean())
    assert slice_["auroc"]["value"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr", average="macro"))
    assert slice_["sensitivity"]["value"] == pytest.approx(sk.recall_score(y, p.argmax(axis=1), average="macro"))
    assert slice_["f1"]["value"] == pytest.approx(sk.f1_score(y, p.argmax(axis=1), average="macro"))
    assert slice_["auroc"]["low"] < slice_["auroc"]["value"] < slice_["auroc"]["high"]
    assert found["about"]["counts"]["test"]["patient"]["without_one_class"] == 1


def test_one_patient_has_values_but_no_interval():
    df = frame(patients=1, slices=30)
    df["label_h"] = [0.0, 1.0] * 15
    found = evaluate(df, TaskConfig(labels=["h"], threshold=0.5), replicates=50)["test"]["slice"]
    for metric in ("accuracy", "sensitivity", "ap", "brier"):
        assert found[metric]["value"] is not None
        assert found[metric]["low"] is None


def test_perfect_scores_keep_a_sane_interval():
    y = np.repeat([0.0, 1.0], 60)[:, None]
    who = np.repeat(np.arange(24), 5)
    found = summarise(y, 0.2 + 0.6 * y, y > 0, who, ["h"], "binary", replicates=100)
    for metric in ("accuracy", "auroc", "sensitivity"):
        assert found[metric]["value"] == 1
        assert 0.6 < found[metric]["low"] < 0.97  # 24 patients, not 120 slices
    assert found["ap"]["low"] is None  # resampling cannot tell


def test_scalars_are_flat_and_defined():
    found = scalars(evaluate(both(labels=("a", "b")), TaskConfig(kind="multilabel", labels=["a", "b"]), replicates=0))
    assert {"test/slice/auroc", "test/slice/auroc/a", "val/patient/brier/b"} <= set(found)
    assert all(isinstance(v, float) for v in found.values())


def test_fast_metrics():
    df = frame(labels=("a", "b"), patients=80)
    y, p = df[["label_a", "label_b"]].to_numpy().copy(), df[["prob_a", "prob_b"]].to_numpy()
    y[:20, 1] = NAN
    found = fast_metrics(y, p, "multilabel")
    aucs = [sk.roc_auc_score(y[:, 0], p[:, 0]), sk.roc_auc_score(y[20:, 1], p[20:, 1])]
    assert found["auroc"] == pytest.approx(np.mean(aucs))
    losses = [sk.log_loss(y[:, 0], p[:, 0]), sk.log_loss(y[20:, 1], p[20:, 1])]
    assert found["log_loss"] == pytest.approx(np.mean(losses))
    assert set(found) == {"auroc", "ap", "accuracy", "log_loss", "brier", "weighted_log_loss"}
    assert found["weighted_log_loss"] == pytest.approx((80 * losses[0] + 60 * losses[1]) / 140)
    tripled = fast_metrics(y, p, "multilabel", [3.0, 1.0])["weighted_log_loss"]
    assert tripled == pytest.approx((3 * 80 * losses[0] + 60 * losses[1]) / (3 * 80 + 60))
    assert set(fast_metrics(y[:, :1], p[:, :1], "binary")) == set(found) - {"weighted_log_loss"}
    assert np.isnan(fast_metrics(np.zeros((5, 1)), np.full((5, 1), 0.3), "binary")["auroc"])
    assert all(np.isnan(v) for v in fast_metrics(y, np.full_like(p, NAN), "multilabel").values())
    assert all(np.isnan(v) for v in fast_metrics(y[:0], p[:0], "multilabel").values())


def test_decide():
    p = np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
    np.testing.assert_array_equal(decide(p, [], "multiclass"), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(decide(p, [0.4, 0.5, 0.1], "multilabel"), [[0, 1, 1], [1, 0, 1]])


def test_weighted_log_loss_at_each_level():
    labels = ["a", "b", "any"]
    df = both(labels=labels, slices=6, patients=40)
    df.loc[df.index[::7], "label_b"] = NAN
    task = TaskConfig(kind="multilabel", labels=labels, label_weights=[1.0, 1.0, 2.0])
    maps = Calibration.fit(df[df["split"] == "val"], task)
    found = evaluate(df, task, calibration=maps, replicates=200)
    test = df[df["split"] == "test"]
    for level, rows in (("slice", test), ("patient", maps.aggregate(test, "patient", "mean"))):
        y, p = rows[[f"label_{c}" for c in labels]], rows[[f"prob_{c}" for c in labels]]
        entry = found["test"][level]["weighted_log_loss"]
        assert entry["value"] == pytest.approx(weighted_log_loss(y, p, task.label_weights))
        assert entry["low"] < entry["value"] < entry["high"]
        assert entry["method"] == "patient bootstrap"
        assert entry["n"] == len(rows)
        assert "weighted_log_loss" not in found["test"][level]["labels"]["a"]
    # Six copies of each slice must not narrow the interval (naively by a factor of 2.4).
    copies = pd.concat([test.assign(slice_id=test["slice_id"] + f"-{k}") for k in range(6)], ignore_index=True)
    entry, copied = (
        found["test"]["slice"]["weighted_log_loss"],
        evaluate(copies, task, replicates=200)["test"]["slice"]["weighted_log_loss"],
    )
    assert copied["value"] == pytest.approx(entry["value"])
    assert copied["high"] - copied["low"] == pytest.approx(entry["high"] - entry["low"])
    equal = evaluate(test, TaskConfig(kind="multilabel", labels=labels), replicates=0)["test"]["slice"]
    assert equal["weighted_log_loss"]["value"] != pytest.approx(entry["value"], abs=1e-4)
    assert scalars(found)["test/patient/weighted_log_loss"] == found["test"]["patient"]["weighted_log_loss"]["value"]
    assert "test/slice/weighted_log_loss/a" not in scalars(found)
    with pytest.raises(ConfigError, match="one number of 0 or more per label"):
        evaluate(df, TaskConfig(kind="multilabel", labels=labels, label_weights=[1.0, 2.0]), replicates=0)


def test_series_labels_have_no_slice_level():
    df = both(slices=5, patients=40)
    df["label_h"] = df.groupby("patient_id")["label_h"].transform("max")
    task = TaskConfig(labels=["h"], level="series")
    found = evaluate(df, task, replicates=50)
    assert set(found["test"]) == set(found["thresholds"]) == {"series", "patient"}
    assert set(found["about"]["counts"]["test"]) == {"series", "patient"}
    assert found["test"]["series"] == found["test"]["patient"]
    assert not any("/slice/" in name for name in scalars(found))
    assert set(evaluate(df, task, levels=["patient"], replicates=0)["test"]) == {"patient"}
    assert set(evaluate(df, TaskConfig(labels=["h"]), levels=["slice", "series"], replicates=0)["test"]) == {
        "slice",
        "series",
    }
    with pytest.raises(ValueError, match="expected some of"):
        evaluate(df, task, levels=["scan"])


def test_the_series_output_judges_series_and_patients():
    df = both(slices=4, patients=50)
    truth = df.groupby("patient_id")["label_h"].transform("max")
    df["series_prob_h"] = 0.2 + 0.6 * truth  # perfect, unlike the slices
    found = evaluate(df, TaskConfig(labels=["h"], aggregate="model"), replicates=50)["test"]
    assert found["patient"]["auroc"]["value"] == found["series"]["auroc"]["value"] == 1
    assert found["slice"]["auroc"]["value"] < 1
    one = both(slices=1, patients=50)  # series of one slice still have an output of their own
    one["series_prob_h"] = 0.2 + 0.6 * one["label_h"]
    found = evaluate(one, TaskConfig(labels=["h"], aggregate="model"), replicates=0)["test"]
    assert found["slice"]["auroc"]["value"] < found["series"]["auroc"]["value"] == 1
