from __future__ import annotations

import pandas as pd
import pytest

from hemlearn.datamodules.submission import fill_missing, refuse_missing, sample_slices, write_submission
from hemlearn.util.errors import DataError, RunError
from tests.conftest import real_data

LABELS = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]


def predicted(slices):
    df = pd.DataFrame({"slice_id": slices})
    for j, label in enumerate(LABELS):
        df[f"prob_{label}"] = [(i + 1) / 100 + j / 10 for i in range(len(slices))]
    return df


def sample(path, slices, labels=LABELS):
    lines = [f"{s}_{c},0.5" for s in slices for c in labels]
    path.write_text("\n".join(["ID,Label", *lines]) + "\n")
    return path


def test_rows_and_order_are_those_of_the_sample(tmp_path):
    file = sample(tmp_path / "sample.csv", ["ID_b", "ID_a"], ["any", "subdural", "epidural"])
    done = write_submission(predicted(["ID_a", "ID_x", "ID_b"]), file, tmp_path / "out" / "s.csv")
    assert (done.rows, done.slices, done.extra) == (6, 2, 1)
    assert done.path.read_text() == (
        "ID,Label\nID_b_any,0.53\nID_b_subdural,0.43\nID_b_epidural,0.03\n"
        "ID_a_any,0.51\nID_a_subdural,0.41\nID_a_epidural,0.01\n"
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["s.csv"]


def test_the_real_sample(tmp_path):
    root = real_data("rsna")
    file = root / "stage_2_sample_submission.csv"
    slices = sorted((p.stem for p in (root / "stage_2_test").iterdir()), reverse=True)
    done = write_submission(predicted(slices), file, tmp_path / "s.csv", LABELS)
    assert (done.rows, done.slices, done.extra) == (24, 4, 0)
    ours, theirs = pd.read_csv(done.path), pd.read_csv(file)
    assert ours["ID"].tolist() == theirs["ID"].tolist()
    assert ours["Label"].nunique() == 24
    with pytest.raises(RunError, match=f"2 of 4 slices were not predicted: {slices[3]}, {slices[2]}"):
        write_submission(predicted(slices[:2]), file, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


def test_small_probabilities_keep_their_digits(tmp_path):
    df = predicted(["ID_a"]).assign(prob_any=1.234567891e-12)
    write_submission(df, sample(tmp_path / "sample.csv", ["ID_a"], ["any"]), tmp_path / "s.csv")
    assert pd.read_csv(tmp_path / "s.csv")["Label"][0] == pytest.approx(1.234567891e-12, rel=1e-8)


def test_bad_predictions_are_named(tmp_path):
    file = sample(tmp_path / "sample.csv", ["ID_a", "ID_b"])
    df = predicted(["ID_a", "ID_b"])
    cases = [
        (df.drop(columns="prob_any"), r"line 7: ID 'ID_a_any' asks for the label 'any'"),
        (df.assign(slice_id="ID_a"), "'ID_a' is listed more than once"),
        (df.assign(prob_any=[0.5, float("nan")]), "'ID_b': prob_any=nan"),
        (df.assign(prob_any=[1.5, 0.5]), "'ID_a': prob_any=1.5"),
    ]
    for frame, message in cases:
        with pytest.raises(RunError, match=message):
            write_submission(frame, file, tmp_path / "s.csv")
    (tmp_path / "blocked").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_submission(df, file, tmp_path / "blocked" / "s.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,Label\n", "no rows"),
        ("id,label\nID_a_any,0.5\n", "columns are id, label"),
        ("ID,Label\nIDany,0.5\n", "line 2: ID 'IDany' is not"),
        ("ID,Label\nID_a_any,0.5\nID_a_any,0.5\n", "line 3: ID 'ID_a_any' is listed more than once"),
        ("ID,Label\n\nID_a_any,0.5\n\nID_a_any,0.5\n", "line 5: ID 'ID_a_any' is listed more than once"),
        ("", "an empty file"),
    ],
)
def test_bad_samples_are_named(tmp_path, text, message):
    file = tmp_path / "sample.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        write_submission(predicted(["ID_a"]), file, tmp_path / "s.csv")
    with pytest.raises(DataError, match="No such file"):
        write_submission(predicted(["ID_a"]), tmp_path / "absent.csv", tmp_path / "s.csv")


def test_missing_slices_are_filled_and_named(tmp_path):
    slices = ["a", "b", "c", "d", "e", "f"]
    assert sample_slices(sample(tmp_path / "sample.csv", slices)) == slices
    places = pd.DataFrame(
        {
            "slice_id": ["c", "b", "a", "e", "d"],
            "series_id": ["1", "1", "1", "2", "2"],
            "z_mm": [10.0, 5.0, 0.0, 0.0, 5.0],
        }
    )
    have = predicted(["a", "c", "d"])
    whole, told = fill_missing(have, slices, places, "neighbours")
    given = have.set_index("slice_id")["prob_any"]
    assert whole.set_index("slice_id")["prob_any"].to_dict() == pytest.approx(
        given.to_dict() | {"b": (given["a"] + given["c"]) / 2, "e": given["d"], "f": given.mean()}
    )
    assert told == {"b": "a and c", "e": "d", "f": "the mean of all 3 predictions"}
    whole, told = fill_missing(have, slices, places, "mean")
    assert whole.set_index("slice_id")["prob_any"]["b"] == pytest.approx(given.mean())
    write_submission(whole, tmp_path / "sample.csv", tmp_path / "s.csv")
    assert len(pd.read_csv(tmp_path / "s.csv")) == 36
    skipped = pd.DataFrame({"item": ["stage_2_test/b.dcm"], "reason": ["truncated"]})
    with pytest.raises(RunError, match=r"3 of 6 slices cannot be predicted: b \(truncated\); e \(no such") as caught:
        refuse_missing(slices, ["a", "c", "d"], skipped)
    assert "fill=neighbours" in caught.value.remedy
