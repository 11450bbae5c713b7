from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from hemlearn.compare.comparison import compare
from hemlearn.compare.contrasts import Endpoint
from hemlearn.compare.pairs import difference_over_patients, t_of_pulls
from hemlearn.evaluation.auroc import auroc_interval
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
    assert c.method == "t over patients"
    assert (c.n, c.patients) == (240, 60)
    accuracy = leaks(result, level="slice", metric="accuracy")[0]
    assert accuracy.n == 240
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "Inflation by the leak" in page
    assert "Split by slice in 1 of 2 groups" in page
    assert result.headline.warnings
    assert "Splitting by slice" in result.headline.shortcut
    assert "by=patient has AUROC" in result.headline.better or "one group" in result.headline.better


def test_other_slices_of_shared_patients_are_tested_by_patient(tmp_path):
    leaky_pair(tmp_path, 2)
    result = compare([tmp_path])
    c = leaks(result, level="slice", metric="auroc")[0]
    assert c.method == "t over patients"
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


def test_means_are_compared_over_the_labels_that_both_sets_have(tmp_path):
    """Of the patients one set has no case of the second label: its mean is that of the first."""
    for by, noise in (("patient", 3.0), ("slice", 2.0)):
        options = {"task__kind": "multilabel", "task__labels": ["a", "b"], "split__by": by}
        config = configuration(**options, split__allow_leak=by == "slice")
        frame = predictions(config, range(40 if by == "slice" else 41), 4, noise)
        frame["prob_b"] = np.where(frame["label_b"] == 1, 0.99, 0.01)
        write_run(tmp_path, by, config, frame.assign(label_b=0.0) if by == "patient" else frame)
    result = compare([tmp_path], labels=["a"])
    leaky, honest = (next(e for e in result.entries if e.name == f"by={by}") for by in ("slice", "patient"))
    mean, alone = (difference_over_patients(leaky, honest, Endpoint("slice", c))["auroc"] for c in ("", "a"))
    assert (mean.difference, mean.p) == pytest.approx((alone.difference, alone.p))
    assert "without b, of which a class is absent in one" in mean.note
    assert "without" not in alone.note


def test_the_headline_says_why_few_patients_have_no_test(tmp_path):
    """Three patients: a difference, but nothing to test it with."""
    for by, noise in (("patient", 4.0), ("slice", 2.0)):
        config = configuration(split__by=by, split__allow_leak=by == "slice")
        write_run(tmp_path, by, config, predictions(config, range(3), 8, noise))
    told = compare([tmp_path]).headline.shortcut
    assert "Splitting by slice" in told
    assert "without a test" in told
    assert "undefined" not in told.partition("Splitting")[2]


def test_the_test_sees_what_two_sets_share(tmp_path):
    """Two disjoint halves vary more against each other than the same patients seen twice."""
    config = configuration()
    frames = [predictions(config, numbers, 3, noise=4.0) for numbers in (range(80), range(80), range(80, 160))]
    for i, frame in enumerate(frames):
        kept = frame[frame["slice_id"].str.endswith(("0", "1") if i != 1 else ("2",))]
        write_run(tmp_path / str(i), "r", config, kept)
    first, second, third = (compare([tmp_path / str(i)]).entries[0] for i in range(3))
    end = Endpoint("slice", "")
    same = difference_over_patients(first, first, end)["auroc"]
    assert same.difference == 0
    assert (same.low, same.high, same.p) == (0, 0, 1)
    shared = difference_over_patients(first, second, end)["auroc"]
    apart = difference_over_patients(first, third, end)["auroc"]
    assert shared.clusters == 80
    assert apart.clusters == 160
    assert "80 shared patients" in shared.note
    assert 0 < shared.p <= 1
    assert apart.low < apart.difference < apart.high
    # apart, the variances add up; the t of their units makes p and interval one
    cases = (e.cases["slice"] for e in (first, third))
    areas = [auroc_interval(c.y[:, 0], c.p[:, 0], c.code) for c in cases]
    assert apart.difference / apart.statistic == pytest.approx(np.sqrt(sum(a.variance for a in areas)), rel=0.02)
    for test in (shared, apart):
        assert (test.p < 0.05) == (test.low > 0 or test.high < 0)


def test_the_t_of_few_patients_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    for n in (5, 20):
        own = rng.normal(0.3, 1, n)
        pull = (own - own.mean()) / n * np.sqrt(n / (n - 1))
        test, plain = t_of_pulls(own.mean(), pull, n), stats.ttest_1samp(own, 0)
        assert (test.statistic, test.p) == pytest.approx((plain.statistic, plain.pvalue))
        assert (test.low, test.high) == pytest.approx(tuple(plain.confidence_interval()))
    few = t_of_pulls(0.4, np.array([0.1, -0.05, -0.05]), 3)
    assert np.isnan([few.p, few.low, few.high]).all()
    assert few.note == "worth 3 patients of equal weight: no test below 4"


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
