from __future__ import annotations

import pandas as pd
import pytest

from hemlearn.compare.comparison import compare
from hemlearn.compare.reference import read_studies
from hemlearn.evaluation.auroc import wilson
from hemlearn.evaluation.significance import difference_of_intervals, two_proportions
from hemlearn.util.errors import ConfigError

from .conftest import configuration, kfold_run, predictions, write_run

STUDY = """
title: Altuve and Perez 2022
citation: Physica Medica 99:113
figures:
  - metric: accuracy
    x: 3837
    n: 4000
    group: {backbone.pretrained: true, augmentation: none}
    note: 100 Monte-Carlo splits
  - {metric: auroc, value: 0.99, interval: [0.98, 0.995], group: {pretrained: true, augmentation.name: none}}
  - {metric: sensitivity, value: 0.93, group: {pretrained: false, augmentation: none}}
  - {metric: brier, value: 0.05, group: {pretrained: false, augmentation: none}}
"""


def written(tmp_path, text):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return file


def test_published_figures_stand_beside_ours(four_cells, tmp_path):
    options = {"reference": [written(tmp_path, STUDY)]}
    result = compare([four_cells], tmp_path / "out", **options)
    rows = result.table.set_index("group")
    name = "augmentation=none, pretrained=true"
    first, second, third, fourth = (c for c in result.contrasts if c.kind == "published")
    ours = rows.loc[name]
    right = int(ours["tp"] + ours["tn"])
    assert (first.first, first.second) == (name, "Altuve and Perez 2022")
    assert first.difference == pytest.approx(right / 100 - 3837 / 4000)
    expected = two_proportions(right, 100, 3837, 4000)
    assert (first.low, first.high, first.p) == (expected.low, expected.high, expected.p)
    assert first.made
    assert "100 Monte-Carlo splits" in first.note
    test = difference_of_intervals((ours["auroc"], ours["auroc_low"], ours["auroc_high"]), (0.99, 0.98, 0.995))
    assert (second.difference, second.p) == pytest.approx((test.difference, test.p))
    assert third.refused.startswith("published without an interval or n")
    assert third.difference == pytest.approx(rows.loc["augmentation=none, pretrained=false", "sensitivity"] - 0.93)
    assert not fourth.made
    for name in ("compare.html", "compare.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "Altuve and Perez 2022" in text
        assert "Physica Medica 99:113" in text
        assert "3837" in text


def test_clustered_cases_are_compared_by_their_intervals(tmp_path):
    for fold in range(5):
        kfold_run(tmp_path, f"a{fold}", fold, slices=4, noise=4.0)
    study = written(
        tmp_path,
        "title: T\nfigures: [{metric: accuracy, x: 90, n: 100, level: slice},\n"
        "  {metric: accuracy, value: 0.9, n: 100, level: patient}]\n",
    )
    result = compare([tmp_path], reference=(study,))
    slices, patients = (c for c in result.contrasts if c.kind == "published")
    row = result.table.iloc[0]
    test = difference_of_intervals(
        (row["accuracy"], row["accuracy_low"], row["accuracy_high"]), (0.9, *wilson(90, 100))
    )
    assert (slices.low, slices.high) == pytest.approx((test.low, test.high))
    assert patients.method != slices.method  # one case per patient: two proportions


def test_a_label_of_several_is_chosen(tmp_path):
    config = configuration(task__kind="multilabel", task__labels=["any", "subdural"])
    write_run(tmp_path, "a", config, predictions(config, range(60), noise=3.0))
    text = "- title: A\n  figures: [{metric: auroc, value: 0.9, positives: 30, negatives: 70, label: subdural}]\n"
    result = compare([tmp_path], reference=(written(tmp_path, text),))
    c = next(c for c in result.contrasts if c.kind == "published")
    assert c.label == "subdural"
    area = result.table.set_index("label").loc["subdural", "auroc"]
    assert c.difference == pytest.approx(area - 0.9)
    assert c.made  # the interval of the published area comes from its class sizes
    wrong = written(tmp_path, text.replace("label: subdural", "label: epidural"))
    with pytest.raises(ConfigError, match="label=epidural: group 'all runs' has no such result"):
        compare([tmp_path], reference=(wrong,))


FIGURE = "title: T\nfigures:\n  - {%s}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: T\nfigurs: []\n", "unknown key 'figurs'; did you mean 'figures'"),
        ("figures: []\n", "no key 'title'"),
        ("title: T\nfigures: 3\n", "figures=3: not a list"),
        ("title: [1\n", "not YAML"),
        ("[]\n", "no study|not a YAML mapping"),
        (FIGURE % "metric: auc, value: 0.9", r"figures\[0\]: metric=auc: unknown; did you mean 'auroc'"),
        (FIGURE % "value: 0.9", "no key 'metric'"),
        (FIGURE % "metric: accuracy", "neither value nor x and n"),
        (FIGURE % "metric: accuracy, value: 95", "value=95: accuracy lies from 0 to 1"),
        (FIGURE % "metric: accuracy, value: high", "value='high': not a number"),
        (FIGURE % "metric: accuracy, x: 41, n: 40", "x=41 of n=40: more than all"),
        (FIGURE % "metric: accuracy, x: 4.5, n: 40", "x=4.5: not a count"),
        (FIGURE % "metric: accuracy, x: 38, n: 40, value: 0.99", r"value=0.99, but x/n = 38/40"),
        (FIGURE % "metric: auroc, x: 38, n: 40", "needs n, and a proportion as metric"),
        (
            FIGURE % "metric: auroc, value: 0.9, interval: [0.91, 0.95]",
            r"interval=\[0.91, 0.95\] does not hold value=0.9",
        ),
        (FIGURE % "metric: auroc, value: 0.9, interval: 0.1", "not two numbers"),
        (FIGURE % "metric: auroc, value: 0.9, level: scan", "level=scan: unknown"),
        (FIGURE % "metric: auroc, value: 0.9, group: yes", "group=True: not a mapping"),
    ],
)
def test_errors_name_key_and_value(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_studies(written(tmp_path, text))
    assert "study.yaml" in caught.value.problem
    assert caught.value.remedy


def test_a_selector_with_an_unknown_key_is_refused(four_cells, tmp_path):
    study = written(tmp_path, FIGURE % "metric: auroc, value: 0.9, group: {backbone.pretraind: true}")
    with pytest.raises(ConfigError, match=r"unknown key 'backbone\.pretraind'; did you mean 'backbone\.pretrained'"):
        compare([four_cells], reference=(study,))


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ("{pretrained: 7}", "none has pretrained=7 (there: true, false)"),
        ("{augmentation: mixup}", "none has augmentation=mixup (there: "),
        ("{pretrained: true, augmentation: mixup}", "none has augmentation=mixup (there: "),
    ],
)
def test_a_figure_of_a_group_that_was_not_run_is_noted_and_the_rest_is_compared(four_cells, tmp_path, group, told):
    other = "  - {metric: auroc, value: 0.8, interval: [0.7, 0.9], group: {pretrained: true}}\n"
    study = written(tmp_path, FIGURE % f"metric: auroc, value: 0.9, group: {group}" + other)
    result = compare([four_cells], reference=(study,))
    (line,) = [note for note in result.notes if told in note]
    assert "its auroc of 0.9 stands beside no group" in line
    assert {item.figure.value for item in result.published} == {0.8}


def test_the_runs_own_mean_stands_beside_a_figure_of_averaged_predictions(tmp_path, four_cells):
    study = written(tmp_path, FIGURE % "metric: accuracy, value: 0.9, n: 100")
    for seed in range(2):
        config = configuration(seed=seed)
        frames = [predictions(config, range(80), noise=3), predictions(config, range(80, 120), seed=1, split="val")]
        write_run(tmp_path / "runs", f"s{seed}", config, pd.concat(frames))
    options = {"reference": [study]}
    result = compare([tmp_path / "runs"], **options)
    (item,) = result.published
    mean = item.row["accuracy_run_mean"]
    assert item.row["predictions_per_case"] == 2
    assert f"ours is that of an ensemble: the runs' own mean is {mean * 100:.1f} %" in item.contrast.note
    assert all("ensemble" not in one.contrast.note for one in compare([four_cells], **options).published)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        read_studies(tmp_path / "absent.yaml")
