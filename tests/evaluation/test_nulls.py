from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from hemlearn.audits.baselines import relative_position, with_position
from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.metrics import evaluate
from hemlearn.util.errors import DataError
from tests.conftest import real_data
from tests.evaluation.written_out import position_table

NAN = float("nan")


def volumes(patients, seed=0, name="p"):
    """Series of 12 to 36 slices; half of the patients have a lesion in the middle third."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(patients):
        n = int(rng.integers(12, 37))
        place = np.arange(n) / (n - 1)
        inside = (np.abs(place - 0.5) < 0.17) & (rng.random() < 0.5)
        frame = pd.DataFrame({"z_mm": -300 + 5.0 * np.arange(n), "label_any": inside.astype(float)})
        frame["slice_id"] = [f"{name}{i}-{k}" for k in range(n)]
        frame["patient_id"] = frame["series_id"] = f"{name}{i}"
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def test_relative_position_is_the_rank_inside_a_series():
    df = pd.DataFrame({"patient_id": ["a"] * 5 + ["b", "c", "c"], "series_id": ["1"] * 3 + ["2"] * 2 + ["1"] * 3})
    df["z_mm"] = [-10.0, 900.0, 7.0, 5.0, NAN, 3.0, NAN, NAN]
    np.testing.assert_allclose(relative_position(df), [0, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_position_separates_slices_and_not_patients():
    train, test = volumes(60), volumes(80, seed=1, name="t")
    found = position_table(train, test, ["any"])
    metrics = evaluate(found, TaskConfig(labels=["any"]), replicates=100)["test"]
    assert metrics["slice"]["auroc"]["value"] > 0.75
    assert metrics["slice"]["auroc"]["low"] < metrics["slice"]["auroc"]["value"] < metrics["slice"]["auroc"]["high"]
    assert abs(metrics["patient"]["auroc"]["value"] - 0.5) < 0.2
    assert metrics["slice"]["log_loss"]["value"] < 0.45  # the rate is known: 0.16 positive, its entropy 0.44
    # Labels of the test rows are carried along, not used.
    flipped = position_table(train, test.assign(label_any=1 - test["label_any"]), ["any"])
    np.testing.assert_array_equal(flipped["prob_any"], found["prob_any"])


def test_mirrored_and_shuffled_series():
    train, test = volumes(30), volumes(20, seed=1, name="t")
    order = np.random.default_rng(0).permutation(len(test))
    plain = position_table(train, test, ["any"])["prob_any"].to_numpy()
    np.testing.assert_allclose(position_table(train, test.iloc[order], ["any"])["prob_any"], plain[order])
    scaled = test.assign(z_mm=0.1 * test["z_mm"] + 40)  # other spacing, other origin
    np.testing.assert_allclose(position_table(train, scaled, ["any"])["prob_any"], plain)


def test_nulls_stand_in_the_metrics():
    train, test = volumes(40), volumes(30, seed=1, name="t")
    frame = test.assign(split="test", label_none=0.0)
    frame["prob_any"], frame["prob_none"] = 0.3, 0.1
    frame = with_position(frame, train.assign(label_none=0.0), ["any", "none"])
    assert (frame["position_prob_none"] == 0).all()
    task = TaskConfig(kind="multilabel", labels=["any", "none"], label_weights=[2.0, 1.0])
    found = evaluate(frame, task, replicates=100)
    null = found["nulls"]["position"]["test"]
    assert set(null) == {"slice", "series", "patient"}
    area = roc_auc_score(frame["label_any"], frame["position_prob_any"])
    assert null["slice"]["labels"]["any"]["auroc"]["value"] == pytest.approx(area)
    assert null["slice"]["labels"]["none"]["auroc"]["value"] is None
    weighted = null["slice"]["weighted_log_loss"]
    assert weighted["low"] < weighted["value"] < weighted["high"]
    assert "accuracy" not in null["slice"]
    assert found["test"]["slice"]["labels"]["any"]["auroc"]["value"] == pytest.approx(0.5)
    assert "nulls" not in evaluate(frame.drop(columns=["position_prob_any", "position_prob_none"]), task, replicates=0)


def test_bad_tables_are_named(caplog):
    train, test = volumes(10), volumes(5, seed=1, name="t")
    with pytest.raises(DataError, match="no column z_mm"):
        position_table(train.drop(columns="z_mm"), test, ["any"])
    assert (position_table(train.assign(label_any=NAN), test, ["any"])["prob_any"] == 0.5).all()
    assert "no training slice has a known label 'any'" in caplog.text


def cross_validated(df, labels, folds=5):
    """Out-of-fold predictions from position, folds of whole patients."""
    patients, code = np.unique(df["patient_id"].to_numpy(dtype=object), return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(patients)) % folds)[code]
    parts = [position_table(df[fold != k], df[fold == k], labels) for k in range(folds)]
    rows = np.concatenate([np.flatnonzero(fold == k) for k in range(folds)])
    return pd.concat(parts).iloc[np.argsort(rows)].reset_index(drop=True)


def test_ct_ich_position_alone():
    """57 patients: the position tells slices apart (about 0.73), and patients not at all (below chance by pooling)."""
    root = real_data("ct_ich")
    table = pd.read_csv(root / "hemorrhage_diagnosis.csv", encoding="utf-8-sig")
    rows = zip(table["PatientNumber"], table["SliceNumber"], strict=True)
    table = table[[(root / f"Patients_CT/{p:03}/brain/{s}.jpg").exists() for p, s in rows]]
    names = ["Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural"]
    df = pd.DataFrame({"patient_id": table["PatientNumber"].astype(str), "z_mm": 5.0 * table["SliceNumber"]})
    df["series_id"] = df["patient_id"]
    df["slice_id"] = df["patient_id"] + "/" + table["SliceNumber"].astype(str)
    for name in names:
        df[f"label_{name}"] = table[name].astype(float)
    df["label_any"] = table[names].max(axis=1).astype(float)
    assert (len(df), df["patient_id"].nunique()) == (1712, 57)
    labels = [*names, "any"]
    found = cross_validated(df, labels)
    assert found["slice_id"].tolist() == df["slice_id"].tolist()
    metrics = evaluate(found, TaskConfig(kind="multilabel", labels=labels), replicates=100)["test"]
    slices, patients = (metrics[level]["labels"]["any"]["auroc"] for level in ("slice", "patient"))
    assert 0.68 < slices["value"] < 0.78
    assert slices["low"] < slices["value"] < slices["high"]
    assert 0.3 < patients["value"] < 0.5
