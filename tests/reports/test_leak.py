from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from hemlearn.compare.comparison import compare
from hemlearn.compare.pairs import bootstrap_difference
from hemlearn.util.errors import RunError
from tests.conftest import seal

from .conftest import configuration, predictions, write_run


def leaky_pair(root, folds, slices=4, **changes):
    """The same settings split by patient (noisy) and by slice (too good), over ``folds`` of five."""
    numbers = np.arange(60)
    for by, noise in (("patient", 4.0), ("slice", 2.0)):
        for fold in range(folds):
            config = configuration(
                split__name="kfold", split__fold=fold, split__by=by, split__allow_leak=by == "slice", **changes
            )
            every = predictions(config, numbers, slices, noise)
            if by == "slice":
                frame = every[np.arange(len(every)) % 5 == fold]
            else:
                frame = every[np.repeat(numbers, slices) % 5 == fold]
            write_run(root, f"{by[0]}{fold}{len(changes)}", config, frame.reset_index(drop=True))


def leaks(result, **wanted):
    rows = [c for c in result.contrasts if c.kind == "leak"]
    return [c for c in rows if all(getattr(c, key) == value for key, value in wanted.items())]


def test_all_folds_of_both_hold_the_same_slices_and_are_paired(tmp_path):
    leaky_pair(tmp_path, 5)
    result = compare([tmp_path], tmp_path / "out")
    assert result.keys == ["split.by"]
    c = leaks(result, level="slice", metric="auroc")[0]
    assert (c.first, c.second) == ("by=slice", "by=patient")
    frames = {
        by: pd.concat([pd.read_parquet(tmp_path / f"{by}{k}0" / "predictions.parquet") for k in range(5)])
        for by in "sp"
    }
    areas = {by: roc_auc_score(f["label_hemorrhage"], f["prob_hemorrhage"]) for by, f in frames.items()}
    assert c.difference == pytest.approx(areas["s"] - areas["p"])
    assert c.low < c.difference < c.high
    assert c.note.startswith("the same cases, paired")
    assert "clustered by patient" in c.method
    assert (c.n, c.patients) == (240, 60)
    accuracy = leaks(result, level="slice", metric="accuracy")[0]
    assert "McNemar" in accuracy.method
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Inflation by the leak" in page
    assert "Split by slice in 1 of 2 groups" in page
    assert result.headline.warnings
    assert "Splitting by slice" in result.headline.shortcut
    assert "by=patient has AUROC" in result.headline.better or "one group" in result.headline.better


def test_other_slices_of_shared_patients_are_resampled_by_patient(tmp_path):
    leaky_pair(tmp_path, 2)
    result = compare([tmp_path])
    c = leaks(result, level="slice", metric="auroc")[0]
    assert c.method == "patient bootstrap"
    assert "shared patients" in c.note
    assert c.low < c.difference < c.high
    table = result.table.set_index(["split.by", "level"])
    assert c.difference == pytest.approx(
        table.loc[("slice", "slice"), "auroc"] - table.loc[("patient", "slice"), "auroc"]
    )
    accuracy = leaks(result, level="slice", metric="accuracy")[0]
    expected = table.loc[("slice", "slice"), "accuracy"] - table.loc[("patient", "slice"), "accuracy"]
    assert accuracy.difference == pytest.approx(expected)


def test_a_leaky_group_without_its_twin_is_only_stamped(tmp_path):
    leaky_pair(tmp_path, 2)
    for fold in range(2):
        config = configuration(
            split__name="kfold", split__fold=fold, split__by="slice", split__allow_leak=True, optimizer__lr=0.3
        )
        write_run(tmp_path, f"x{fold}", config, predictions(config, range(20), 4))
    result = compare([tmp_path])
    assert {(c.first, c.second) for c in leaks(result)} == {("by=slice, lr=0.0005", "by=patient, lr=0.0005")}
    assert len(result.about.leaky) == 2


def test_the_bootstrap_sees_what_two_sets_share(tmp_path):
    """Two disjoint halves vary more against each other than the same patients seen twice."""
    config = configuration()
    frames = [predictions(config, numbers, 3, noise=4.0) for numbers in (range(80), range(80), range(80, 160))]
    for i, frame in enumerate(frames):
        kept = frame[frame["slice_id"].str.endswith(("0", "1") if i != 1 else ("2",))]
        write_run(tmp_path / str(i), "r", config, kept)
    first, second, third = (compare([tmp_path / str(i)]).entries[0].cases["slice"] for i in range(3))
    labels, kind = ["hemorrhage"], "binary"
    same = bootstrap_difference(first, first, labels, kind)["auroc"]
    assert same.difference == 0
    assert np.isnan(same.p)  # nothing varies: no test is made up
    shared = bootstrap_difference(first, second, labels, kind)["auroc"]
    apart = bootstrap_difference(first, third, labels, kind)["auroc"]
    assert shared.clusters == 80
    assert apart.clusters == 160
    assert "80 shared patients" in shared.note
    assert 0 < shared.p <= 1
    assert apart.low < apart.difference < apart.high


def test_folds_of_slices_never_speak_of_patients(tmp_path):
    """A patient's bleeding slices may stand in one fold alone: the folds would disagree about the patient."""
    numbers = np.arange(30)
    for fold in range(2):
        config = configuration(
            split__name="kfold", split__folds=2, split__fold=fold, split__by="slice", split__allow_leak=True
        )
        frame = predictions(config, numbers, 4)
        frame["label_hemorrhage"] = (frame["slice_id"].str.endswith("0")).astype(float)
        half = frame["slice_id"].str.endswith(("0", "1") if fold == 0 else ("2", "3"))
        write_run(tmp_path, f"f{fold}", config, frame[half])
    result = compare([tmp_path])
    assert result.table["level"].tolist() == ["slice"]
    assert result.table["n"].tolist() == [120]
    assert "judged on slices only" in result.notes[0]
    with pytest.raises(RunError, match="split by slice: no result per patient"):
        compare([tmp_path], level="patient")


def test_weights_that_have_seen_the_test_patients_are_a_warning(tmp_path):
    config = configuration()
    folder = write_run(tmp_path, "a", config, predictions(config, range(40)))
    metrics = json.loads((folder / "metrics.json").read_text())
    split = {"leaky": True, "seen_by_weights": 7}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"audits": {"split": split}}))
    seal(folder)
    result = compare([tmp_path])
    assert result.about.seen == ["all runs"]
    assert "had seen its test patients" in result.headline.warnings[0]
    assert result.notes[0].startswith("LEAKY: the weights")
