from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hemlearn.evaluation.predictions import aggregate, is_leaky, prob_array, read_predictions, write_predictions
from hemlearn.util.errors import RunError

NAN = float("nan")


def frame():
    return pd.DataFrame(
        {
            "split": ["val", "test", "test", "test", "test"],
            "patient_id": ["a", "b", "b", "b", "c"],
            "series_id": ["a1", "b1", "b1", "b2", "c1"],
            "slice_id": ["s0", "s1", "s2", "s3", "s4"],
            "z_mm": [NAN, 0.0, 5.0, 0.0, NAN],
            "label_any": [0, 0, 1, 0, NAN],
            "label_epidural": [0, NAN, NAN, 0, NAN],
            "prob_any": [0.1, 0.2, 0.8, 0.3, 0.4],
            "prob_epidural": [0.0, 0.5, 0.1, 1.0, 0.2],
        }
    )


def test_round_trip_and_split_choice(tmp_path):
    path = tmp_path / "predictions.parquet"
    write_predictions(frame(), path)
    back = read_predictions(path)
    assert list(back.columns) == list(frame().columns)
    np.testing.assert_array_equal(back["label_any"], frame()["label_any"])
    assert read_predictions(path, ["test"])["slice_id"].tolist() == ["s1", "s2", "s3", "s4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.parquet"]


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("label_any", 2, 2.0, "'s2': label_any=2 is not 0, 1 or null"),
        ("prob_any", 3, 1.2, "'s3': prob_any=1.2 is not a probability"),
        ("prob_epidural", 1, NAN, "'s1': prob_epidural=nan"),
        ("slice_id", 4, "s1", "'s1' is listed more than once"),
        ("split", 0, "valid", "split 'valid' is none of train, val, test"),
        ("patient_id", 3, None, "column patient_id, row 3: null"),
    ],
)
def test_bad_values_are_named(tmp_path, column, row, value, message):
    df = frame().astype({"patient_id": object})
    df.loc[row, column] = value
    with pytest.raises(RunError, match=message):
        write_predictions(df, tmp_path / "predictions.parquet")
    df.to_parquet(tmp_path / "edited.parquet")
    with pytest.raises(RunError, match=message):
        read_predictions(tmp_path / "edited.parquet")


def test_missing_columns_and_files(tmp_path):
    with pytest.raises(RunError, match="no column prob_any"):
        write_predictions(frame().drop(columns="prob_any"), tmp_path / "p.parquet")
    with pytest.raises(RunError, match=r"no column label_\*"):
        write_predictions(frame()[["split", "patient_id", "series_id", "slice_id", "z_mm"]], tmp_path / "p.parquet")
    with pytest.raises(RunError, match="no such file"):
        read_predictions(tmp_path / "p.parquet")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(RunError, match="not a readable Parquet file"):
        read_predictions(tmp_path / "p.parquet")


def test_aggregate_to_series_and_patient():
    series = aggregate(frame(), "series")
    assert series["series_id"].tolist() == ["a1", "b1", "b2", "c1"]
    assert series["n_slices"].tolist() == [1, 2, 1, 1]
    np.testing.assert_array_equal(series["label_any"], [0, 1, 0, NAN])
    np.testing.assert_array_equal(series["label_epidural"], [0, NAN, 0, NAN])
    patient = aggregate(frame(), "patient")
    assert patient["patient_id"].tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(patient["label_any"], [0, 1, NAN])
    np.testing.assert_array_equal(patient["label_epidural"], [0, 0, NAN])
    np.testing.assert_allclose(patient["prob_any"], [0.1, (0.2 + 0.8 + 0.3) / 3, 0.4])
    np.testing.assert_allclose(aggregate(frame(), "patient", "max")["prob_any"], [0.1, 0.8, 0.4])
    with pytest.raises(ValueError, match="median"):
        aggregate(frame(), "patient", "median")


def test_a_patient_of_two_classes_has_no_class():
    df = frame()
    df["label_any"], df["label_epidural"] = [1.0, 1, 0, 1, 1], [0.0, 0, 1, 0, 0]
    df["prob_epidural"] = 1 - df["prob_any"]
    found = aggregate(df, "patient", "max", "multiclass")
    np.testing.assert_array_equal(found["label_any"], [1, NAN, 1])
    np.testing.assert_allclose(found["prob_any"] + found["prob_epidural"], 1)


def test_one_patient_in_two_splits_is_two_units():
    df = frame()
    df["patient_id"] = "a"
    assert aggregate(df, "patient")["split"].tolist() == ["val", "test"]


def with_series(df):
    """A series output, the same on all slices of a series."""
    return df.assign(series_prob_any=[0.1, 0.7, 0.7, 0.2, 0.6], series_prob_epidural=[0.0, 0.3, 0.3, 0.9, 1.0])


def test_series_outputs_are_kept_and_aggregated(tmp_path):
    df = with_series(frame()).assign(position_prob_any=0.2, position_prob_epidural=0.1)
    write_predictions(df, tmp_path / "p.parquet")
    back = read_predictions(tmp_path / "p.parquet")
    assert list(back.columns) == list(df.columns)
    np.testing.assert_array_equal(back["series_prob_any"], df["series_prob_any"])
    series = aggregate(back, "series", "model")
    np.testing.assert_allclose(series["prob_any"], [0.1, 0.7, 0.2, 0.6])
    patient = aggregate(back, "patient", "model")
    np.testing.assert_allclose(patient["prob_any"], [0.1, 0.7, 0.6])
    np.testing.assert_allclose(patient["prob_epidural"], [0.0, 0.9, 1.0])
    np.testing.assert_array_equal(patient["label_any"], [0, 1, NAN])
    plain = aggregate(frame(), "patient")["prob_any"]
    np.testing.assert_allclose(aggregate(back, "patient", "mean")["prob_any"], plain)
    with pytest.raises(RunError, match="no column series_prob_any"):
        aggregate(frame(), "series", "model")


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("series_prob_any", 2, 0.8, "'s2': series_prob_any=0.8, but another slice of series 'b1' has 0.7"),
        ("series_prob_any", 3, 1.2, "'s3': series_prob_any=1.2 is not a probability"),
        ("series_prob_epidural", 0, NAN, "'s0': series_prob_epidural=nan"),
    ],
)
def test_bad_series_outputs_are_named(tmp_path, column, row, value, message):
    df = with_series(frame())
    df.loc[row, column] = value
    with pytest.raises(RunError, match=message):
        write_predictions(df, tmp_path / "p.parquet")


def test_series_outputs_come_for_all_labels_or_none(tmp_path):
    with pytest.raises(RunError, match="no column series_prob_epidural"):
        write_predictions(with_series(frame()).drop(columns="series_prob_epidural"), tmp_path / "p.parquet")


def test_families_of_the_nulls_are_kept_and_checked(tmp_path):
    df = frame()
    names = [c.removeprefix("label_") for c in df if c.startswith("label_")]
    for family in ("size_prob", "metadata_prob", "border_prob"):
        for name in names:
            df[f"{family}_{name}"] = 0.25
    write_predictions(df, tmp_path / "p.parquet")
    found = read_predictions(tmp_path / "p.parquet")
    assert found[f"border_prob_{names[0]}"].eq(0.25).all()
    assert prob_array(found, names, "metadata_prob").shape == (len(df), len(names))
    df.loc[0, f"border_prob_{names[0]}"] = 1.5
    with pytest.raises(RunError, match=rf"border_prob_{names[0]}=1\.5"):
        write_predictions(df, tmp_path / "p.parquet")


def test_a_leaky_file_is_stamped_and_reads_as_any_other(tmp_path):
    df = frame()
    plain, leaky = tmp_path / "plain.parquet", tmp_path / "leaky.parquet"
    write_predictions(df, plain)
    write_predictions(df, leaky, leaky=True)
    assert (is_leaky(plain), is_leaky(leaky)) == (False, True)
    assert pd.read_parquet(leaky).attrs == {"leaky": True}
    assert read_predictions(leaky).attrs == {"leaky": True}
    assert read_predictions(plain).attrs == {}
    pd.testing.assert_frame_equal(read_predictions(plain), read_predictions(leaky))
    # A table that was read from a leaky file and cleaned is not stamped by what clings to it.
    write_predictions(read_predictions(leaky), plain)
    assert pd.read_parquet(plain).attrs == {}
    with pytest.raises(RunError, match="not a readable Parquet file"):
        is_leaky(tmp_path / "absent.parquet")
