from __future__ import annotations

import dataclasses
import hashlib
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2
from statsmodels.stats.multitest import multipletests

from hemlearn.compare.comparison import FULL, compare
from hemlearn.compare.contrasts import PRIMARY, Contrast, adjust
from hemlearn.evaluation.auroc import auroc_interval
from hemlearn.util.errors import ConfigError, RunError
from tests.conftest import seal
from tests.evaluation.written_out import auroc_test

from .conftest import configuration, kfold_run, predictions, write_run

LABELS = ["any", "subdural", "epidural"]


def contrasts_of(result, **wanted):
    return [c for c in result.contrasts if all(getattr(c, key) == value for key, value in wanted.items())]


def pooled(root, runs):
    frame = pd.concat([pd.read_parquet(root / run / "predictions.parquet").query("split == 'test'") for run in runs])
    return frame.sort_values("slice_id").reset_index(drop=True)


def test_pairs_of_the_four_cells_equal_the_tests_on_their_files(four_cells):
    result = compare([four_cells])
    paired = contrasts_of(result, kind="paired", metric="auroc")
    assert len(paired) == 6
    names = {
        "augmentation=none, pretrained=true": "0",
        "augmentation=flips, pretrained=true": "1",
        "augmentation=none, pretrained=false": "2",
        "augmentation=flips, pretrained=false": "3",
    }
    for c in paired:
        frames = [pooled(four_cells, [f"{names[name]}{fold}" * 6 for fold in range(5)]) for name in (c.first, c.second)]
        y = frames[0]["label_hemorrhage"]
        expected = auroc_test(y, *(frame["prob_hemorrhage"] for frame in frames))
        assert (c.difference, c.statistic, c.p) == pytest.approx(tuple(expected), abs=1e-12)
        assert c.low < c.difference < c.high
        assert (c.method, c.n, c.patients, c.refused) == ("DeLong", 100, 100, "")
    strong = [c for c in paired if ("true" in c.first) != ("true" in c.second)]
    assert len(strong) == 4
    assert all(c.p_holm < 0.001 and c.differs for c in strong)


def test_the_headline_tells_what_the_tests_do(four_cells, tmp_path):
    best, second = "augmentation=none, pretrained=true", "augmentation=flips, pretrained=true"
    text = compare([four_cells]).headline.better
    assert text.startswith(("Yes, on these patients: ", "In part: "))
    assert text.split(": ", 1)[1].startswith(f"{best} has AUROC")
    for i in range(4):
        for seed in range(2):
            config = configuration(optimizer__lr=10.0 ** -(i // 2), optimizer__weight_decay=i % 2, seed=10 * i + seed)
            write_run(tmp_path, f"{i}{seed}", config, predictions(config, range(60), noise=3.0))
    result = compare([tmp_path])
    assert result.headline.better.startswith("Not shown: ")
    others = re.search(r"From (.*) the difference may be chance", result.headline.better)
    assert others is not None
    assert len(re.split("; | and ", others[1])) == 3  # a comma stands within a name
    config = configuration(optimizer__lr=0.5)
    write_run(tmp_path, "x", config, predictions(config, range(60, 100), noise=9.0))
    assert "1 group was tested on other cases and cannot be paired" in compare([tmp_path]).headline.better
    assert second in text


def test_mcnemar_counts_the_calls_of_each_run(four_cells):
    result = compare([four_cells])
    cases = {entry.name: entry.cases["slice"] for entry in result.entries}
    for c in contrasts_of(result, kind="paired", metric="accuracy"):
        right = [(cases[name].decision == (cases[name].y == 1))[:, 0] for name in (c.first, c.second)]
        only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
        assert c.difference == pytest.approx((only[0] - only[1]) / 100)
        assert c.p == pytest.approx(chi2.sf((only[0] - only[1]) ** 2 / sum(only), 1))


def test_holm_covers_every_p_value_of_a_family(four_cells, tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text("title: T\nfigures: [{metric: accuracy, x: 90, n: 100}]\n")
    result = compare([four_cells], margin=0.02, reference=(study,))
    p = [c.p for c in result.contrasts if c.p == c.p]
    kinds = {c.kind for c in result.contrasts}
    assert {"paired", "resampled", "non-inferiority", "published"} <= kinds
    for family in {c.family for c in result.contrasts}:
        own = [c for c in result.contrasts if c.family == family and c.made]
        np.testing.assert_allclose([c.p_holm for c in own], multipletests([c.p for c in own], method="holm")[1])
    assert len([c for c in result.contrasts if c.family == PRIMARY]) == 6  # not weakened by the other questions
    assert any(f"{len(p)} p values" in note for note in result.notes)
    assert result.tests.columns[:2].tolist() == ["kind", "level"]


def test_several_slices_of_a_patient_are_tested_by_patient(tmp_path):
    for fold in range(5):
        for i, noise in enumerate((2.0, 3.0)):
            kfold_run(tmp_path, f"{i}{fold}", fold, slices=4, noise=noise, optimizer__lr=10.0**-i)
    result = compare([tmp_path])
    levels = {c.level for c in result.contrasts}
    assert levels == {"slice", "patient"}  # a patient has one series: judged once
    c = contrasts_of(result, kind="paired", metric="auroc", level="slice")[0]
    first = "1" if c.first.endswith("0.1") else "0"
    one, two = (pooled(tmp_path, [f"{i}{fold}" for fold in range(5)]) for i in (first, "0" if first == "1" else "1"))
    expected = auroc_test(one["label_hemorrhage"], one["prob_hemorrhage"], two["prob_hemorrhage"], one["patient_id"])
    assert (c.difference, c.statistic, c.p) == pytest.approx(tuple(expected), abs=1e-12)
    assert "clustered by patient" in c.method
    assert (c.n, c.patients) == (400, 100)
    accuracy = contrasts_of(result, kind="paired", metric="accuracy", level="slice")[0]
    assert "clustered by patient" in accuracy.method
    assert contrasts_of(result, kind="paired", metric="auroc", level="patient")[0].method == "DeLong"


def two_sets(root, first, second, **changes):
    for name, numbers, lr in (("a", first, 1e-3), ("b", second, 1e-4)):
        config = configuration(optimizer__lr=lr, **changes)
        write_run(root, name, config, predictions(config, numbers, noise=3.0))


def test_other_patients_are_refused_as_a_pair_and_tested_unpaired(tmp_path):
    two_sets(tmp_path, range(60), range(60, 140))
    result = compare([tmp_path])
    refused, unpaired = contrasts_of(result, kind="paired")[0], contrasts_of(result, kind="unpaired")[0]
    assert refused.refused == "tested on different cases: 80 and 60, of which 0 are the same"
    assert not refused.made
    frames = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("b", "a")]
    one, two = (auroc_interval(frame["label_hemorrhage"], frame["prob_hemorrhage"]) for frame in frames)
    assert unpaired.first == result.entries[0].name
    assert unpaired.difference == pytest.approx(one.value - two.value)
    assert unpaired.statistic == pytest.approx((one.value - two.value) / np.sqrt(one.variance + two.variance))
    assert (unpaired.n, unpaired.patients) == (140, 140)
    assert result.headline.better.startswith("Not known: ")
    assert "tested on different cases" in result.headline.better


def test_groups_that_share_some_cases_are_tested_on_those_when_asked(tmp_path):
    two_sets(tmp_path, range(60), range(20, 100))
    result = compare([tmp_path])
    assert "of which 40 are the same" in contrasts_of(result, kind="paired")[0].refused
    assert "40 patients are in both samples" in contrasts_of(result, kind="unpaired")[0].note
    result = compare([tmp_path], common=True)
    assert not contrasts_of(result, kind="unpaired")
    c = contrasts_of(result, kind="paired", metric="auroc")[0]
    frames = [pooled(tmp_path, [name]).query("'p020' <= patient_id <= 'p059'") for name in ("b", "a")]
    expected = auroc_test(frames[0]["label_hemorrhage"], *(frame["prob_hemorrhage"] for frame in frames))
    assert (c.difference, c.p) == pytest.approx((expected.difference, expected.p))
    assert "on the 40 cases both were tested on" in c.note


def test_different_labels_stand_in_tables_of_their_own(tmp_path):
    for name, labels, kind in (("a", LABELS, "multilabel"), ("b", ["hemorrhage"], "binary")):
        config = configuration(task__labels=labels, task__kind=kind)
        write_run(tmp_path, name, config, predictions(config, range(60)))
    result = compare([tmp_path], tmp_path / "out")
    assert len(result.sheets()) == 2
    for title, header, lines, *_ in result.sheets():
        assert ("AUROC any" in header) == title.startswith("multilabel")
        assert len(lines) == 1
    refused = contrasts_of(result, kind="paired")
    assert refused
    assert all(c.refused.startswith("different labels: ") for c in refused)
    assert not contrasts_of(result, kind="unpaired")
    text = result.text()
    assert text.count("binary: hemorrhage") == 1
    assert "2 different sets of labels" in result.summary()
    assert "different labels" in (tmp_path / "out" / "compare.html").read_text()


def test_the_same_cases_with_other_labels_are_no_pair(tmp_path):
    for i in range(2):
        config = configuration(optimizer__lr=10.0**-i)
        frame = predictions(config, range(40))
        frame.loc[7, "label_hemorrhage"] = float(i)
        write_run(tmp_path, f"s{i}", config, frame)
    refused = contrasts_of(compare([tmp_path]), kind="paired")
    assert "slice 'p007-0' has other labels" in refused[0].refused


def label_runs(root, kind="multilabel", labels=LABELS, slices=1):
    for i, noise in enumerate((2.0, 4.0)):
        for fold in range(5):
            kfold_run(
                root,
                f"{i}{fold}",
                fold,
                slices=slices,
                noise=noise,
                optimizer__lr=10.0**-i,
                task__kind=kind,
                task__labels=list(labels),
            )
    return root


def test_several_labels_are_tested_by_their_mean_and_any(tmp_path):
    label_runs(tmp_path)
    result = compare([tmp_path])
    assert {c.label for c in contrasts_of(result, kind="paired")} == {"", "any"}
    assert {c.label for c in contrasts_of(result, kind="paired", metric="accuracy")} == {"any"}
    macro = contrasts_of(result, kind="paired", label="", metric="auroc")[0]
    each = compare([tmp_path], labels=("all",))
    parts = [contrasts_of(each, kind="paired", label=c, metric="auroc")[0] for c in LABELS]
    assert macro.difference == pytest.approx(np.mean([c.difference for c in parts]))
    assert "macro" in macro.method
    with pytest.raises(ConfigError, match="unknown label 'subdral'; did you mean 'subdural'"):
        compare([tmp_path], labels=("subdral",))


def test_exclusive_classes_are_compared_by_the_class_called(tmp_path):
    for i, noise in enumerate((0.5, 3.0)):
        config = configuration(optimizer__lr=10.0**-i, task__kind="multiclass", task__labels=LABELS)
        frame = predictions(config, range(90), noise=noise)
        truth = np.random.default_rng(3).integers(0, 3, len(frame))
        rng = np.random.default_rng(i)
        scores = np.exp(2 * (truth[:, None] == np.arange(3)) + noise * rng.normal(size=(len(frame), 3)))
        for j, label in enumerate(LABELS):
            frame[f"label_{label}"] = (truth == j).astype(float)
            frame[f"prob_{label}"] = scores[:, j] / scores.sum(axis=1)
        write_run(tmp_path, f"r{i}", config, frame)
    result = compare([tmp_path], tmp_path / "out")
    c = contrasts_of(result, kind="paired", metric="accuracy", label="")[0]
    rows = result.table[result.table["label"] == ""].set_index("group")
    assert c.difference == pytest.approx(rows.loc[c.first, "accuracy"] - rows.loc[c.second, "accuracy"])
    assert "<th>epidural</th>" in (tmp_path / "out" / "compare.html").read_text()  # one matrix of three classes


def test_what_cannot_be_tested_is_undefined_not_significant(tmp_path):
    for i in range(2):
        config = configuration(optimizer__lr=10.0**-i, task__threshold=0.5)
        frame = predictions(config, range(30))
        frame["label_hemorrhage"] = 0.0
        write_run(tmp_path / "absent", f"a{i}", config, frame)
        frame = predictions(config, range(1), slices=12, noise=2)
        frame["label_hemorrhage"] = (np.arange(12) % 2).astype(float)
        write_run(tmp_path / "one", f"a{i}", config, frame)
        frame = predictions(config, range(40))
        frame["prob_hemorrhage"] = 0.25
        write_run(tmp_path / "constant", f"a{i}", config, frame)
    absent = contrasts_of(compare([tmp_path / "absent"], tmp_path / "o1"), kind="paired", metric="auroc")[0]
    assert np.isnan(absent.p)
    assert "no positive" in absent.note
    one = compare([tmp_path / "one"], tmp_path / "o2")
    for c in contrasts_of(one, kind="paired", level="slice"):
        assert np.isnan(c.p)
        assert "one patient" in c.note or "of 1 patient only" in c.note
    assert "undefined" in (tmp_path / "o2" / "compare.md").read_text()
    constant = contrasts_of(compare([tmp_path / "constant"], tmp_path / "o3"), kind="paired", metric="auroc")[0]
    assert (constant.difference, constant.p, constant.differs) == (0.0, 1.0, False)


def test_scores_that_are_not_numbers_skip_the_run(tmp_path):
    for i in range(2):
        config = configuration(optimizer__lr=10.0**-i)
        write_run(tmp_path, f"a{i}", config, predictions(config, range(30)))
    frame = pd.read_parquet(tmp_path / "a1" / "predictions.parquet")
    frame.loc[4, "prob_hemorrhage"] = np.nan
    frame.to_parquet(tmp_path / "a1" / "predictions.parquet")
    seal(tmp_path / "a1")
    result = compare([tmp_path])
    assert result.groups == 1
    assert "prob_hemorrhage=nan is not a probability" in result.skipped[0].reason


def test_non_inferiority_needs_the_whole_interval(tmp_path):
    for i, noise in enumerate((2.0, 2.01, 8.0)):
        for fold in range(5):
            kfold_run(tmp_path, f"{i}{fold}", fold, noise=noise, patients=400, optimizer__lr=10.0**-i)
    result = compare([tmp_path], margin=0.05, baseline="optimizer.lr=1")
    assert result.baseline.group.values == {"optimizer.lr": 1.0}
    found = {c.first: c for c in contrasts_of(result, kind="non-inferiority")}
    assert {c.second for c in found.values()} == {"lr=1"}
    near, far = found["lr=0.1"], found["lr=0.01"]
    assert near.verdict == ("non-inferior" if near.low > -0.05 else "not shown")
    assert (far.verdict, far.high < 0) == ("not shown", True)
    assert near.p < far.p
    wide = compare([tmp_path], margin=0.5)
    assert all(c.verdict == "non-inferior" for c in contrasts_of(wide, kind="non-inferiority"))
    assert any("no baseline was named" in note for note in wide.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr=1", "no key 'lrr'"),
        ("lr=7", "lr=7 fits no group"),
        ("pretrained=true", "no key 'pretrained'"),
        ("lr", "no key 'lr'"),
    ],
)
def test_a_baseline_that_names_no_group_is_refused(tmp_path, text, message):
    two_sets(tmp_path, range(40), range(40))
    with pytest.raises(ConfigError, match=message):
        compare([tmp_path], baseline=text)


def test_a_baseline_may_be_given_by_name_or_by_some_settings(four_cells):
    for text in ("augmentation=none, pretrained=true", "backbone.pretrained=true,augmentation=none"):
        result = compare([four_cells], baseline=text)
        assert result.baseline.name == "augmentation=none, pretrained=true"
    with pytest.raises(ConfigError, match="2 groups fit"):
        compare([four_cells], baseline="pretrained=true")


def test_folds_are_compared_with_the_correction_and_say_what_they_cover(four_cells):
    result = compare([four_cells])
    c = contrasts_of(result, kind="resampled")[0]
    values = [e.cases["slice"].per_run["auroc"] for e in result.entries[:2]]
    folds = [[run.keys["split.fold"] for run in e.cases["slice"].used] for e in result.entries[:2]]
    d = [values[0][folds[0].index(k)] - values[1][folds[1].index(k)] for k in range(5)]
    spread = np.sqrt((1 / 5 + 20 / 60) * np.var(d, ddof=1))  # 60 train, 20 validate, 20 test
    assert c.difference == pytest.approx(np.mean(d))
    assert c.statistic == pytest.approx(np.mean(d) / spread)
    assert "5 splits of the same patients" in c.covers
    assert "not new patients" in c.covers


def test_folds_without_their_split_are_refused_and_seeds_need_none(tmp_path):
    for seed in range(3):
        for i, noise in enumerate((1.0, 2.0)):
            config = configuration(seed=seed, optimizer__lr=10.0**-i)
            write_run(tmp_path / "seeds", f"{i}{seed}", config, predictions(config, range(60), noise=noise))
            folder = kfold_run(tmp_path / "folds", f"{i}{seed}", seed, noise=noise, optimizer__lr=10.0**-i)
            (folder / "split.csv").unlink()
    c = contrasts_of(compare([tmp_path / "seeds"]), kind="resampled")[0]
    assert c.covers.startswith("3 seeds on one split")
    assert (c.method, c.n) == ("paired t over seeds", 3)
    assert "no split.csv" in contrasts_of(compare([tmp_path / "folds"]), kind="resampled")[0].refused


def test_every_group_is_held_against_the_nulls_of_its_runs(tmp_path):
    for i, noise in enumerate((1.0, 3.0)):
        for fold in range(5):
            config = configuration(split__name="kfold", split__fold=fold, optimizer__lr=10.0**-i)
            numbers = np.arange(80)
            frame = predictions(config, numbers[numbers % 5 == fold], noise=noise)
            rng = np.random.default_rng(fold)
            frame["position_prob_hemorrhage"] = rng.random(len(frame))
            write_run(tmp_path, f"{i}{fold}", config, frame)
            stored = pd.read_parquet(tmp_path / f"{i}{fold}" / "predictions.parquet")
            # A null that knows the answer almost: what a shortcut looks like.
            stored["metadata_prob_hemorrhage"] = 0.1 + 0.8 * stored["label_hemorrhage"]
            stored.to_parquet(tmp_path / f"{i}{fold}" / "predictions.parquet")
            seal(tmp_path / f"{i}{fold}")
    result = compare([tmp_path], tmp_path / "out")
    assert result.table["source"].tolist() == ["runs", "runs", "position only", "metadata only"]
    nulls = {(c.first, c.second): c for c in contrasts_of(result, kind="null")}
    assert len(nulls) == 4
    y, p, blind = (
        pd.concat([pd.read_parquet(tmp_path / f"0{k}" / "predictions.parquet")[name] for k in range(5)])
        for name in ("label_hemorrhage", "prob_hemorrhage", "position_prob_hemorrhage")
    )
    expected = auroc_test(y, p, blind)
    assert nulls["lr=1", "position only"].difference == pytest.approx(expected.difference)
    assert nulls["lr=1", "position only"].p == pytest.approx(expected.p)
    assert "cannot be ruled out" in result.headline.shortcut
    assert "metadata only reaches 1.000" in result.headline.shortcut
    assert "above chance (corrected p <0.001): read every result beside it" in result.headline.shortcut
    assert result.headline.shortcut.count("read every result beside it") == 1  # not beside noise
    assert "sees no pixel" in "\n".join(result.notes)


def test_baselines_are_told_of_the_best_group_at_the_level_judged(tmp_path):
    """Single pictures rank better than the series beside them, and have no patients to be judged by."""
    groups = {0.01: (range(100, 180), 1, 0.5), 0.1: (range(40), 4, 4.0), 1.0: (range(40, 80), 4, 2.0)}
    for rate, (people, slices, noise) in groups.items():
        config = configuration(optimizer__lr=rate)
        frame = predictions(config, people, slices, noise)
        frame["position_prob_hemorrhage"] = np.random.default_rng(0).random(len(frame))
        write_run(tmp_path, str(rate), config, frame)
    result = compare([tmp_path])
    on_patients = result.table[(result.table["level"] == "patient") & (result.table["source"] == "runs")]
    assert len(on_patients) == 2
    best = on_patients.loc[on_patients["auroc"].idxmax(), "group"]
    assert best != "lr=0.01"
    assert f"on patients; {best} minus that" in result.headline.shortcut
    assert f"{best} has AUROC" in result.headline.better


def test_a_null_that_knows_one_label_of_several_is_named(tmp_path):
    labels = list("abcdef")
    config = configuration(task__kind="multilabel", task__labels=labels)
    frame, rng = predictions(config, range(80), noise=3.0), np.random.default_rng(1)
    for label in labels:  # one is known, one the wrong way round, and chance keeps the mean below 0.6
        frame[f"position_prob_{label}"] = rng.random(len(frame))
    frame["position_prob_c"] = 0.1 + 0.8 * frame["label_c"]
    frame["position_prob_d"] = 0.9 - 0.8 * frame["label_d"]
    write_run(tmp_path, "0", config, frame)
    text = compare([tmp_path]).headline.shortcut
    assert "mean over labels, above chance for c (corrected p <0.001): read every result beside it" in text


def test_many_groups_are_tested_against_one(tmp_path):
    for i in range(13):
        config = configuration(optimizer__lr=(i + 1) / 1000)
        write_run(tmp_path, f"r{i:02}", config, predictions(config, range(60), noise=1 + i / 4))
    result = compare([tmp_path], tmp_path / "out")
    assert len(contrasts_of(result, kind="paired", metric="auroc")) == 12
    anchor = max(result.entries, key=lambda e: e.auroc).name
    assert result.tested_against == anchor
    assert all(anchor in (c.first, c.second) for c in result.contrasts)
    assert any("not every pair is tested" in note and anchor in note for note in result.notes)
    named = compare([tmp_path], baseline="lr=0.007")
    assert named.tested_against == "lr=0.007"
    assert "not every pair" in (tmp_path / "out" / "compare.md").read_text()


def test_more_groups_than_are_detailed_keep_their_rows(tmp_path):
    for i in range(FULL + 3):
        config = configuration(optimizer__lr=(i + 1) / 1000, task__kind="multilabel", task__labels=["any", "b"])
        write_run(tmp_path, f"r{i:02}", config, predictions(config, range(50), noise=3 + i / 8))
    result = compare([tmp_path], baseline=f"lr={(FULL + 3) / 1000:g}")
    rows = result.table[(result.table["label"] == "")]
    assert len(rows) == FULL + 3
    resampled = rows.set_index("group")["weighted_log_loss_low"].notna()
    assert resampled.sum() in (FULL, FULL + 1)
    assert resampled[result.baseline.name]  # named, so detailed whatever its rank
    assert any(f"{FULL + 3} groups: intervals by resampling" in note for note in result.notes)


def test_leaky_and_honest_groups_are_no_pair(tmp_path):
    for name, by in (("a", "patient"), ("b", "slice")):
        config = configuration(split__by=by, split__allow_leak=by == "slice")
        write_run(tmp_path, name, config, predictions(config, range(40), slices=2, noise=2))
    result = compare([tmp_path])
    refused = contrasts_of(result, kind="paired")
    assert all("see the inflation" in c.refused for c in refused)
    assert {c.kind for c in result.contrasts if c.made} == {"leak"}


def test_edited_files_are_refused_by_their_checksum(tmp_path):
    import json

    for i in range(3):
        config = configuration(optimizer__lr=10.0**-i)
        write_run(tmp_path, f"r{i}", config, predictions(config, range(30)))
    frame = pd.read_parquet(tmp_path / "r1" / "predictions.parquet")
    frame["prob_hemorrhage"] = 0.02 + 0.96 * frame["label_hemorrhage"]  # valid, and too good to be true
    frame.to_parquet(tmp_path / "r1" / "predictions.parquet")
    metrics = (tmp_path / "r2" / "metrics.json").read_text()
    (tmp_path / "r2" / "metrics.json").write_text(metrics.replace('"value": 0.', '"value": 0.9', 1))
    result = compare([tmp_path])
    assert result.groups == 1
    reasons = {item.folder.rpartition("/")[2]: item.reason for item in result.skipped}
    assert "predictions.parquet: changed after the run had ended" in reasons["r1"]
    assert "metrics.json: changed after the run had ended" in reasons["r2"]
    assert "changed after the run had ended" in result.summary()
    (tmp_path / "r1" / "provenance.json").write_text(json.dumps({"checksums": {"manifest": "m"}}))
    (tmp_path / "r2" / "provenance.json").unlink()
    reasons = {item.folder.rpartition("/")[2]: item.reason for item in compare([tmp_path]).skipped}
    assert "provenance.json: changed after the run had ended" in reasons["r1"]
    assert "provenance.json: missing" in reasons["r2"]
    status = json.loads((tmp_path / "r1" / "status.json").read_text())
    (tmp_path / "r1" / "status.json").write_text(json.dumps({**status, "provenance": None}))
    reasons = {item.folder.rpartition("/")[2]: item.reason for item in compare([tmp_path]).skipped}
    assert "provenance.json: status.json holds no checksum of it" in reasons["r1"], "missing is as bad as wrong"
    sums = hashlib.sha256((tmp_path / "r1" / "provenance.json").read_bytes()).hexdigest()
    (tmp_path / "r1" / "status.json").write_text(json.dumps({**status, "provenance": sums}))
    reasons = {item.folder.rpartition("/")[2]: item.reason for item in compare([tmp_path]).skipped}
    assert "provenance.json holds no checksum of it" in reasons["r1"]


def test_contrasts_are_plain_rows(four_cells):
    result = compare([four_cells])
    table = result.tests
    assert len(table) == len(result.contrasts)
    assert table["p_holm"].notna().sum() == sum(c.made for c in result.contrasts)
    assert dataclasses.asdict(result.contrasts[0]).keys() == set(table.columns)
    with pytest.raises(RunError):
        compare([four_cells / "absent"])


def test_no_interval_of_a_difference_is_wider_than_a_difference_can_be():
    cases = [("sensitivity", -1.095, 1.2), ("log_loss", -1.095, 1.2), ("auroc", np.nan, np.nan)]
    wide = [Contrast("reader", "patient", "", m, "a", "b", low=low, high=high) for m, low, high in cases]
    adjust(wide)
    assert [(c.low, c.high) for c in wide[:2]] == [(-1, 1), (-1.095, 1.2)]
    assert np.isnan([wide[2].low, wide[2].high]).all()
