from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hemlearn.compare.cases import read_rows
from hemlearn.evaluation.predictions import aggregate, as_predictions, label_array, prob_array, write_predictions
from hemlearn.util.errors import RunError

LABELS = ["any", "b"]
UNIT = {"slice": "slice_id", "series": "series_id", "patient": "patient_id"}


def frame(kind="multilabel", seed=0, n=120):
    """Slices of patients with one to three series, unknown labels among them."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, 15, n)
    series = rng.integers(0, 3, n)
    df = pd.DataFrame({"split": rng.choice(["val", "test"], n), "patient_id": [f"p{i}" for i in patient]})
    df["series_id"] = [f"p{i}-s{k}" for i, k in zip(patient, series, strict=True)]
    df["slice_id"] = [f"x{i:03}" for i in rng.permutation(n)]
    df["z_mm"] = rng.normal(size=n)
    y = (rng.random((n, 2)) < 0.3).astype(float)
    if kind == "multiclass":
        y[:, 1] = 1 - y[:, 0]
    elif kind == "multilabel":
        y[rng.random((n, 2)) < 0.2] = np.nan
    for j, label in enumerate(LABELS):
        df[f"label_{label}"] = y[:, j]
    for family in ("prob", "series_prob", "position_prob", "border_prob"):
        p = rng.random((n, 2))
        p = p / p.sum(axis=1, keepdims=True) if kind == "multiclass" else p
        for j, label in enumerate(LABELS):
            df[f"{family}_{label}"] = p[:, j]
    keys = ["split", "patient_id", "series_id"]
    columns = [f"series_prob_{label}" for label in LABELS]
    df[columns] = df.groupby(keys)[columns].transform("first")
    return df


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
@pytest.mark.parametrize("how", ["mean", "max", "model", "top_k", "noisy_or", "logistic"])
@pytest.mark.parametrize("level", ["slice", "series", "patient"])
def test_arrays_follow_the_rules_of_the_tables(tmp_path, kind, how, level):
    df = frame(kind)
    write_predictions(df, tmp_path / "p.parquet")
    test = df[df["split"] == "test"]
    rows = read_rows(tmp_path / "p.parquet", LABELS, how)
    assert rows.several
    cases = rows.at(level, how, kind)
    expected = aggregate(test, level, how, kind)
    assert cases.unit.tolist() == expected[UNIT[level]].tolist()
    assert cases.patient.tolist() == expected["patient_id"].tolist()
    np.testing.assert_array_equal(cases.y, label_array(expected, LABELS))
    np.testing.assert_allclose(cases.p["prob"], prob_array(expected, LABELS), rtol=0, atol=1e-15)
    own = "max" if how == "max" else "mean"
    for family in ("position_prob", "border_prob"):
        blind = aggregate(as_predictions(test, LABELS, family), level, own, kind)
        np.testing.assert_allclose(cases.p[family], prob_array(blind, LABELS), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob_any": 1.5}, "prob_any=1.5 is not a probability"),
        ({"prob_b": np.nan}, "prob_b=nan is not a probability"),
        ({"label_any": 2.0}, "label_any=2 is not 0, 1 or null"),
        ({"position_prob_b": -0.1}, "position_prob_b=-0.1"),
        ({"split": "tests"}, "split 'tests' is none of"),
        ({"patient_id": None}, "column patient_id, row 4: null"),
        ({"slice_id": "x000"}, "listed more than once"),
        ({"series_prob_any": 0.123}, "but another slice of series"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, message):
    df = frame()
    if "slice_id" in change:
        df.loc[0, "slice_id"] = "x000"
    for column, value in change.items():
        df.loc[4, column] = value
    df.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(RunError, match=message):
        read_rows(tmp_path / "p.parquet", LABELS, "mean")


def test_what_a_task_needs_is_asked_for(tmp_path):
    df = frame().drop(columns=["series_prob_any", "series_prob_b"])
    write_predictions(df, tmp_path / "p.parquet")
    assert len(read_rows(tmp_path / "p.parquet", ["b"], "mean").y) == (df["split"] == "test").sum()
    with pytest.raises(RunError, match=r"task\.aggregate=model, but no column series_prob_any"):
        read_rows(tmp_path / "p.parquet", LABELS, "model")
    with pytest.raises(RunError, match="no column prob_c"):
        read_rows(tmp_path / "p.parquet", ["c"], "mean")
    df["split"] = "val"
    write_predictions(df, tmp_path / "v.parquet")
    with pytest.raises(RunError, match="no test rows"):
        read_rows(tmp_path / "v.parquet", LABELS, "mean")
    with pytest.raises(RunError, match="no such file"):
        read_rows(tmp_path / "absent.parquet", LABELS, "mean")
    (tmp_path / "torn.parquet").write_bytes(b"torn")
    with pytest.raises(RunError, match="not a readable Parquet file"):
        read_rows(tmp_path / "torn.parquet", LABELS, "mean")
