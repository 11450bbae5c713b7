"""Sizes of studies against published figures and simulation; what a run's test set resolves; the command."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hemlearn.audits.baselines import baseline_aurocs
from hemlearn.commands.runs import plan as main
from hemlearn.evaluation.auroc import auroc_interval, degrees_of_freedom, newcombe, obuchowski_covariance
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.planning import (
    area_covariance,
    design_effect,
    detectable_difference,
    half_width,
    hanley_mcneil_variance,
    power_for_difference,
    resolution,
    size_for_difference,
    size_for_half_width,
)
from hemlearn.evaluation.significance import paired_auroc_matrix
from hemlearn.util.errors import ConfigError, RunError
from tests.conftest import seal
from tests.reports.conftest import configuration, predictions, write_run


def test_published_standard_error_and_sizes():
    # Hanley and McNeil 1982: 51 abnormal and 58 normal CT images, area 0.893, standard error 0.032
    assert math.sqrt(hanley_mcneil_variance(0.893, 51, 58)) == pytest.approx(0.032, abs=6e-4)
    # their table of sizes per class, one-sided 0.05, which leaves out terms of order 1 / n
    for first, second, published in ((0.70, 0.75, (652, 897, 1131)), (0.70, 0.80, (158, 217, 273))):
        one, two = (200 * hanley_mcneil_variance(area, 200, 200) for area in (first, second))
        for power, cases in zip((0.8, 0.9, 0.95), published, strict=True):
            reach = stats.norm.ppf(0.95) * math.sqrt(2 * one) + stats.norm.ppf(power) * math.sqrt(one + two)
            assert (reach / (second - first)) ** 2 == pytest.approx(cases, rel=0.015)


def test_normal_scores_have_their_covariance():
    rng = np.random.default_rng(1)
    y = np.r_[np.ones(15_000), np.zeros(25_000)]
    shift = math.sqrt(2) * stats.norm.ppf([[0.85], [0.93]])
    scores = shift * y + math.sqrt(0.6) * rng.normal(size=40_000) + math.sqrt(0.4) * rng.normal(size=(2, 40_000))
    areas, covariance = obuchowski_covariance(y, scores)
    assert areas == pytest.approx([0.85, 0.93], abs=0.015)
    for i, j, correlation in ((0, 0, 1.0), (1, 1, 1.0), (0, 1, 0.6)):
        expected = area_covariance((0.85, 0.93)[i], (0.85, 0.93)[j], correlation, 15_000, 25_000)
        assert covariance[i, j] == pytest.approx(expected, rel=0.1)
    assert area_covariance(0.8, 0.8, 1.0, 1, 1) == pytest.approx(0.16)  # a single pair


def test_size_is_the_smallest_that_is_enough():
    for prevalence in (0.1, 0.5, 0.87):
        for half in (0.02, 0.05, 0.1):
            size = size_for_half_width(0.9, prevalence, half)
            assert size.reached <= half
            assert size.patients == size.positives + size.negatives
            assert size.positives / size.patients == pytest.approx(prevalence, abs=1 / size.patients)
            fewer = size.patients - 2
            assert half_width(0.9, fewer * prevalence, fewer * (1 - prevalence)) > half
        wanted = size_for_difference(0.85, 0.04, prevalence, correlation=0.4, power=0.9)
        assert wanted.reached >= 0.9
        fewer = wanted.patients - 2
        assert power_for_difference(0.85, 0.04, fewer * prevalence, fewer * (1 - prevalence), 0.4) < 0.9


def test_more_of_anything_hard_needs_more_patients():
    base = size_for_difference(0.85, 0.05, 0.3).patients
    assert size_for_difference(0.85, 0.05, 0.3, correlation=0.0).patients > base
    assert size_for_difference(0.85, 0.05, 0.3, power=0.9).patients > base
    assert size_for_difference(0.85, 0.05, 0.3, alpha=0.01).patients > base
    assert size_for_difference(0.85, 0.05, 0.05).patients > base
    assert size_for_difference(0.85, 0.03, 0.3).patients > base
    assert size_for_difference(0.85, -0.05, 0.3) == size_for_difference(0.80, 0.05, 0.3)


def test_slices_of_a_patient_count_for_less():
    alone = size_for_half_width(0.9, 0.2, 0.03)
    assert design_effect(30, 0.5) == 15.5
    same = size_for_half_width(0.9, 0.2, 0.03, slices_per_patient=30, icc=1.0)
    assert same.patients == pytest.approx(alone.patients, abs=1)  # copies: as many patients as without them
    independent = size_for_half_width(0.9, 0.2, 0.03, slices_per_patient=30, icc=0.0)
    assert independent.patients == math.ceil(alone.patients / 30)
    between = size_for_half_width(0.9, 0.2, 0.03, slices_per_patient=30, icc=0.5)
    assert between.patients == pytest.approx(alone.patients * 15.5 / 30, abs=1.5)
    assert between.positives + between.negatives == between.patients * 30


@pytest.mark.parametrize(
    ("first", "second", "prevalence", "correlation"), [(0.8, 0.9, 0.4, 0.5), (0.9, 0.98, 0.1, 0.5)]
)
def test_planned_power_is_reached(first, second, prevalence, correlation):
    rng = np.random.default_rng(0)
    size = size_for_difference(first, second - first, prevalence, correlation=correlation)
    y = np.r_[np.ones(size.positives), np.zeros(size.negatives)]
    shift = math.sqrt(2) * stats.norm.ppf([[first], [second]])
    found = 0
    for _ in range(500):
        own = math.sqrt(1 - correlation) * rng.normal(size=(2, len(y)))
        scores = shift * y + math.sqrt(correlation) * rng.normal(size=len(y)) + own
        found += paired_auroc_matrix(y, scores)[0, 1].p < 0.05
    assert found / 500 == pytest.approx(size.reached, abs=0.06)  # 0.03 and two standard errors of 500 sets
    assert 0.8 <= size.reached < 0.815


def test_planned_width_is_reached():
    rng = np.random.default_rng(0)
    size = size_for_half_width(0.8, 0.4, 0.06)
    y = np.r_[np.ones(size.positives), np.zeros(size.negatives)]
    widths = []
    for _ in range(100):  # exponential scores, as the variance assumes
        scores = rng.exponential(np.where(y == 1, 4.0, 1.0))
        widths.append(1.96 * math.sqrt(float(obuchowski_covariance(y, scores)[1][0, 0])))
    assert np.mean(widths) == pytest.approx(size.reached, rel=0.03)


def test_detectable_difference_has_the_power():
    gain = detectable_difference(0.85, 50, 120, correlation=0.3, power=0.9)
    assert power_for_difference(0.85, gain, 50, 120, 0.3) == pytest.approx(0.9)
    assert detectable_difference(0.85, 500, 1200, correlation=0.3, power=0.9) < gain
    assert math.isnan(detectable_difference(0.99, 3, 40))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: size_for_half_width(1.0, 0.3, 0.03), "auroc=1"),
        (lambda: size_for_half_width(0.9, 0.0, 0.03), "prevalence=0"),
        (lambda: size_for_half_width(0.9, 0.3, 0.0), "half_width=0"),
        (lambda: size_for_half_width(0.9, 0.3, 1e-7), "more than 1e"),
        (lambda: size_for_half_width(0.9, 0.3, 0.03, slices_per_patient=0.5), "slices_per_patient"),
        (lambda: size_for_half_width(0.9, 0.3, 0.03, slices_per_patient=5, icc=1.5), "icc=1.5"),
        (lambda: size_for_difference(0.9, 0.2, 0.3), "second AUROC would be 1.1"),
        (lambda: size_for_difference(0.9, 0.0, 0.3), "difference=0"),
        (lambda: size_for_difference(0.9, 0.03, 0.3, correlation=1.0), "correlation=1"),
        (lambda: size_for_difference(0.9, 0.03, 0.3, power=1.0), "power=1"),
        (lambda: size_for_difference(0.9, 0.03, 0.3, alpha=0.0), "alpha=0"),
        (lambda: size_for_half_width(math.nan, 0.3, 0.03), "auroc=nan"),
    ],
)
def test_numbers_that_cannot_be_meant(call, told):
    with pytest.raises(ConfigError) as error:
        call()
    assert told in error.value.problem


# --- a finished run ---------------------------------------------------------------------------------------------------


def test_resolution_is_the_runs_own_variance():
    config = configuration(task__labels=["bleed"])
    frame = predictions(config, range(60), slices=6, noise=3.0)
    rows = resolution(frame, ["bleed"])
    assert [row.level for row in rows] == ["slice", "series = patient"]
    y, p, who = (frame[c].to_numpy() for c in ("label_bleed", "prob_bleed", "patient_id"))
    area = auroc_interval(y, p, who)
    row = rows[0]
    assert (row.auroc, row.low, row.high) == pytest.approx((area.value, area.low, area.high))
    assert row.design_effect == pytest.approx(area.variance / auroc_interval(y, p).variance)
    df = degrees_of_freedom(y, np.unique(who, return_inverse=True)[1])  # the test of clustered cases is one of t
    reach = stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)
    counts = row.positives, row.negatives
    alike, alone = (area_covariance(area.value, area.value, r, *counts) for r in (0.5, 1.0))
    assert 0.4 < alike / alone < 0.5  # scores that correlate by 0.5 give areas that do so by less
    assert row.detectable == pytest.approx(reach * math.sqrt(2 * area.variance * (1 - alike / alone)))
    assert (row.positives + row.negatives, row.patients) == (360, 60)
    assert rows[1].design_effect == pytest.approx(1.0)
    apart = resolution(frame, ["bleed"], correlation=0.0, power=0.9)[0]
    assert apart.detectable > row.detectable


def test_the_same_auroc_has_the_same_interval_everywhere():
    labels = ["a", "b"]
    config = configuration(task__kind="multilabel", task__labels=labels)
    df = predictions(config, range(40), slices=4, noise=3.0)
    df = df.assign(**{f"position_prob_{name}": df[f"prob_{name}"] for name in labels})
    metrics = evaluate(df, config.task, replicates=0)["test"]
    audits = baseline_aurocs(df, labels, "multilabel", "mean", ["slice", "patient"], "position_prob")
    for row in resolution(df, labels, "multilabel"):
        level = row.level.rpartition(" = ")[2]
        for table in (metrics[level], audits[level]):
            entry = (table["labels"][row.label] if row.label in labels else table)["auroc"]
            bounds = entry["value"], entry["low"], entry["high"]
            assert bounds == pytest.approx((row.auroc, row.low, row.high)), (level, row.label)
            assert entry["method"] == ("obuchowski" if level == "slice" else "delong")


def test_exclusive_classes_have_the_same_auroc_everywhere(tmp_path, capsys):
    """A temperature of patients changes the order of cases within a class, and so what its area is."""
    labels = ["a", "b", "c"]
    config = configuration(task__kind="multiclass", task__labels=labels, loss__name="cross_entropy")
    truth, rng = np.eye(3)[np.arange(60) % 3].repeat(6, axis=0), np.random.default_rng(0)
    p = np.exp(truth + rng.normal(size=(360, 3)) + rng.normal(size=(60, 3)).repeat(6, axis=0))
    df = predictions(config, range(60), slices=6)
    df[[f"label_{c}" for c in labels]], df[[f"prob_{c}" for c in labels]] = truth, p / p.sum(axis=1, keepdims=True)
    maps = Calibration.fit(df.assign(split="val"), config.task)
    folder = write_run(tmp_path, "abc", config, df)
    (folder / "calibration.json").write_text(json.dumps(maps.to_dict()))
    seal(folder)
    blind = df.assign(**{f"border_prob_{c}": 1 / 3 for c in labels})
    judged = baseline_aurocs(blind, labels, "multiclass", "mean", ["patient"], "border_prob", beside=maps)["patient"]
    metrics = evaluate(df, config.task, calibration=maps, replicates=0)["test"]["patient"]["labels"]
    assert main([f"run={folder}"]) == 0
    printed = capsys.readouterr().out
    for label in labels:
        area = metrics[label]["auroc"]["value"]
        assert judged["labels"][label]["gain"]["value"] + 0.5 == pytest.approx(area)
        assert re.search(rf"patient +{label} .* {area:.3f} \(", printed)
    plain = [row.auroc for row in resolution(df, labels, "multiclass") if row.label in labels][3:]
    assert plain != pytest.approx([metrics[label]["auroc"]["value"] for label in labels])


def test_resolution_of_several_labels_and_of_nothing():
    config = configuration(task__kind="multilabel", task__labels=["a", "b", "c"])
    df = predictions(config, range(50), slices=3, noise=3.0)
    df["label_b"] = 0.0
    df["prob_c"] = df["label_c"]  # perfect
    rows = {(row.level, row.label): row for row in resolution(df, ["a", "b", "c"], "multilabel")}
    assert {label for _, label in rows} == {"a", "b", "c", "mean"}
    absent = rows["slice", "b"]
    assert (absent.positives, absent.note) == (0, "no positive case: undefined")
    assert all(math.isnan(v) for v in (absent.auroc, absent.half_width, absent.detectable))
    perfect = rows["slice", "c"]
    positives = df.loc[df["label_c"] == 1, "patient_id"].nunique()
    low, high = newcombe(1.0, positives, 50 - positives)
    assert (perfect.low, perfect.high) == pytest.approx((low, high))
    assert perfect.detectable > 0
    assert "perfect separation" in perfect.note
    assert rows["slice", "mean"].note == "mean over 2 of 3 labels: others lack a class"
    one = resolution(df[df["patient_id"] == "p000"], ["a"])
    assert all(math.isnan(row.half_width) for row in one)


# --- the command ------------------------------------------------------------------------------------------------------


def test_plan_prints_sizes(capsys):
    assert main(["auroc=0.90", "prevalence=0.3", "half_width=0.03", "difference=0.03", "patients=200"]) == 0
    printed = capsys.readouterr().out
    size, other = size_for_half_width(0.9, 0.3, 0.03), size_for_difference(0.9, 0.03, 0.3)
    assert f"{size.patients} patients ({size.positives} positive and {size.negatives} negative patients)" in printed
    assert (
        f"0.9 against 0.93, power 0.8 at two-sided alpha 0.05, correlation of scores 0.5: {other.patients} patients"
        in printed
    )
    assert f"200 patients give a 95 % interval of +-{half_width(0.9, 60, 140):.4f}" in printed
    assert f"{detectable_difference(0.9, 60, 140):.3f} (a second model of" in printed
    assert main(["auroc=0.9", "prevalence=0.13", "half_width=0.03", "slices_per_patient=30", "icc=0.5"]) == 0
    printed = capsys.readouterr().out
    assert "design effect 15.5" in printed
    assert "negative slices" in printed
    assert main(["auroc=0.99", "prevalence=0.5", "half_width=0.2"]) == 0
    assert "formula is rough" in capsys.readouterr().out
    assert main(["auroc=0.99", "prevalence=0.05", "patients=40"]) == 0
    assert "none: even 1.0 would not stand out" in capsys.readouterr().out


def test_plan_reads_a_run(tmp_path, capsys):
    config = configuration(task__labels=["bleed"])
    frame = [predictions(config, range(40), 5, 3.0), predictions(config, range(50, 60), 5, 3.0, split="val")]
    folder = write_run(tmp_path, "abc123", config, pd.concat(frame, ignore_index=True))
    assert main([f"run={folder}", "half_width=0.03", "difference=0.02"]) == 0
    printed = capsys.readouterr().out
    rows = resolution(frame[0], ["bleed"])
    for row in rows:
        line = next(text for text in printed.splitlines() if text.startswith(f"{row.level} "))
        assert f"{row.auroc:.3f} ({row.low:.3f}-{row.high:.3f})" in line
        assert line.split()[-2:] == [
            str(math.ceil(40 * (row.half_width / 0.03) ** 2)),
            str(math.ceil(40 * (row.detectable / 0.02) ** 2)),
        ]
    with pytest.raises(ConfigError, match="prevalence"):
        main([f"run={folder}", "prevalence=0.3"])
    with pytest.raises(ConfigError, match="difference=0"):
        main([f"run={folder}", "difference=0"])
    write_run(tmp_path, "def456", config, frame[0])
    with pytest.raises(ConfigError, match="2 finished runs"):
        main([f"run={tmp_path}"])
    failed = write_run(tmp_path / "other", "bad", config, frame[0], state="failed")
    for path in (failed, tmp_path / "nowhere"):
        with pytest.raises(RunError):
            main([f"run={path}"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["auroc=0.9"], "prevalence="),
        (["auroc=0.9", "prevalence=0.3"], "half_width=, difference= or patients="),
        (["auroc=0.9", "prevalnce=0.3"], "did you mean 'prevalence'"),
        (["auroc=high", "prevalence=0.3", "patients=5"], "auroc=high: expected a number"),
        (["auroc=0.9", "prevalence=0.3", "half_width=inf"], "half_width=inf"),
        (["auroc=1.9", "prevalence=0.3", "patients=50"], "auroc=1.9"),
        (["auroc=0.9", "prevalence=0.3", "patients=2"], "less than one case"),
        (["auroc=0.9", "prevalence=0.3", "patients=20", "slices_per_patient=10"], "icc= not given"),
        (["auroc=0.9", "prevalence=0.3", "patients=20", "confidence=95"], "confidence=95"),
        (["auroc=0.9", "prevalence=0.3", "patients=20", "power=80"], "power=80"),
    ],
)
def test_plan_refuses(argv, told):
    with pytest.raises(ConfigError) as error:
        main(argv)
    assert told in error.value.problem


def test_plan_help(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: hemlearn plan")
    assert main([]) == 2
