"""Readers beside runs: ``hemlearn compare RUN readers=FILE.csv``."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from hemlearn.__main__ import main
from hemlearn.compare.comparison import compare
from hemlearn.compare.readers import read_readings
from hemlearn.evaluation.auroc import auroc_interval, clustered_wilson
from hemlearn.evaluation.readers import between_modalities, matched_sensitivity, model_against_readers
from hemlearn.evaluation.significance import mcnemar, paired_auroc_matrix
from hemlearn.util.errors import ConfigError, DataError

from .conftest import kfold_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Five folds over sixty patients with one slice each."""
    root = tmp_path_factory.mktemp("readers") / "runs"
    for fold in range(5):
        kfold_run(root, f"e{fold}" * 6, fold, noise=3.0, patients=60)
    return root


def truth(numbers):
    return (np.random.default_rng(0).random(1000)[numbers] < 0.5).astype(float)


def reads(folder, readers=3, *, decide=True, patients=60, change=None, modalities=("",)):
    """A table of reads of every patient, and the scores (modalities, readers, patients)."""
    who = np.arange(patients)
    rng = np.random.default_rng(7)
    scores = 2 * truth(who) + rng.normal(size=(len(modalities), readers, patients))
    scores = (scores > 1).astype(float) if decide else np.round(2 * scores)
    rows = [
        {"case": f"p{i:03}", "reader": f"Dr Name {chr(65 + j)}", "score": f"{scores[m, j, i]:g}", "modality": modality}
        for m, modality in enumerate(modalities)
        for j in range(readers)
        for i in who
    ]
    table = pd.DataFrame(rows if change is None else change(rows))
    if modalities == ("",):
        table = table.drop(columns="modality")
    file = folder / "reads.csv"
    table.to_csv(file, index=False)
    return file, scores


def cases_of(result):
    cases = result.entries[0].cases["slice"]
    order = np.argsort(cases.patient)
    return cases.y[order, 0], cases.p[order, 0], cases.decision[order, 0]


def of(result, kind):
    return {(c.second, c.metric): c for c in result.contrasts if c.kind == kind}


def test_decisions_beside_a_run(runs, tmp_path, capsys):
    file, scores = reads(tmp_path)
    assert main(["compare", str(runs), f"readers={file}", f"out={tmp_path / 'out'}"]) == 0
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("readers? ")]
    for part in ("all runs and the mean of the readers, sensitivity: ", ", specificity: ", "adjusted p"):
        assert part in line
    assert line.removeprefix("readers? all ") in (tmp_path / "out" / "compare.md").read_text().replace("\\", "")
    result = compare(runs, readers=file)
    y, p, call = cases_of(result)
    sick, each = y == 1, of(result, "reader")
    assert list(dict.fromkeys(name for name, _ in each)) == ["reader 1", "reader 2", "reader 3"]
    for j in range(3):
        own = scores[0, j]
        expected = {
            "sensitivity": mcnemar(call[sick], own[sick]),
            "specificity": mcnemar(~call[~sick], 1 - own[~sick]),
            "sensitivity_at_specificity": matched_sensitivity(y, p, own),
        }
        for metric, test in expected.items():
            found = each[f"reader {j + 1}", metric]
            assert (found.difference, found.low, found.high, found.p) == pytest.approx(
                (test.difference, test.low, test.high, test.p)
            )
        row = result.readers.rows[j]
        right = own[sick] == 1
        assert row["sensitivity"] == right.mean()
        bounds = clustered_wilson(right, np.flatnonzero(sick))[0]
        assert (row["sensitivity_low"], row["sensitivity_high"]) == bounds
        assert row["specificity"] == (own[~sick] == 0).mean()
    over = of(result, "readers")
    for metric in ("sensitivity", "specificity"):
        test = model_against_readers(y, call, scores[0], metric).test
        found = over["mean of the readers", metric]
        assert (found.difference, found.p) == pytest.approx((test.difference, test.p))
        assert "3 readers; t with" in found.note
    made = [c for c in result.contrasts if c.made]
    assert all(c.p_holm >= c.p for c in made)
    assert f"{len(made)} p values" in "\n".join(result.notes)  # Holm over these and all others together
    out = tmp_path / "out"
    page = (out / "compare.html").read_text()
    assert "Beside readers" in page
    assert "reader 2" in page
    assert "Against the mean of the readers" in page
    for name in ("compare.html", "compare.md", "compare.json", "tests.csv", "readers.csv", "compare.tex"):
        assert "Name" not in (out / name).read_text()
    assert (out / "readers.png").stat().st_size > 10_000
    told = json.loads((out / "compare.json").read_text())["readers"]
    assert told["readers"][0]["sensitivity"] == pytest.approx(result.readers.rows[0]["sensitivity"])
    assert main(["compare", str(runs), f"out={out}"]) == 0  # without readers: none of an earlier call stay
    assert not (out / "readers.csv").exists()


def test_the_readers_points_lie_in_the_figure(runs, tmp_path):
    file, scores = reads(tmp_path)
    result = compare(runs, readers=file)
    y, *_ = cases_of(result)
    curves = result.readers.panels(result.entries, None)["hemorrhage"]
    assert [bool(curve.marker) for curve in curves] == [False, True, True, True]
    own = scores[0, 0]
    assert curves[1].point == pytest.approx((own[y == 0].mean(), own[y == 1].mean()))
    low, high = curves[1].bars[2:]
    assert low < curves[1].point[1] < high
    # More readers than there are markers have one line of the legend together.
    result.readers.curves = {"hemorrhage": 4 * curves[1:]}
    _, first, *others = result.readers.panels(result.entries, None)["hemorrhage"]
    assert first.text.startswith("12 readers: sens. ")
    assert {one.text for one in others} == {"_"}


def test_scores_are_compared_by_their_areas(runs, tmp_path):
    file, scores = reads(tmp_path, decide=False)
    result = compare(runs, readers=file, show_patient=True)
    y, p, _ = cases_of(result)
    found = of(result, "reader")["Dr Name B", "auroc"]
    test = paired_auroc_matrix(y, np.stack([p, scores[0, 1]]))[0, 1]
    assert (found.difference, found.p) == pytest.approx((test.difference, test.p))
    over = model_against_readers(y, p, scores[0]).test
    found = of(result, "readers")["mean of the readers", "auroc"]
    assert (found.difference, found.low, found.p) == pytest.approx((over.difference, over.low, over.p))
    area = auroc_interval(y, scores[0, 1])
    row = result.readers.rows[1]
    assert (row["auroc"], row["auroc_low"]) == pytest.approx((area.value, area.low))
    assert math.isnan(row["sensitivity"])


def test_two_modalities(runs, tmp_path):
    file, scores = reads(tmp_path, decide=False, modalities=("CT", "MR"))
    result = compare(runs, readers=file)
    y, *_ = cases_of(result)
    (found,) = [c for c in result.contrasts if c.kind == "modalities"]
    test = between_modalities(y, scores[0], scores[1]).test
    assert (found.first, found.second) == ("CT", "MR")
    assert (found.difference, found.p) == pytest.approx((test.difference, test.p))
    assert {second for second, _ in of(result, "readers")} == {"mean of the readers, CT", "mean of the readers, MR"}
    assert ("reader 1, MR", "auroc") in of(result, "reader")


def test_missed_cases_are_refused_or_left_out_with_their_number(runs, tmp_path):
    def without(rows):
        return [row for row in rows if not (row["reader"].endswith("B") and row["case"] in ("p003", "p007", "p011"))]

    file, scores = reads(tmp_path, change=without)
    result = compare(runs, readers=file)
    told = "reader 2 did not read 3 of 60"
    refused = of(result, "reader")["reader 2", "sensitivity"].refused
    assert refused.startswith(told)
    assert "cases=common" in refused
    assert of(result, "reader")["reader 1", "sensitivity"].made
    assert of(result, "readers")["mean of the readers", "sensitivity"].refused.startswith(told)
    assert any(told in note for note in result.notes)
    assert result.readers.rows[1]["missed"] == 3
    common = compare(runs, readers=file, common=True)
    y, _, call = cases_of(common)
    kept = ~np.isin(np.arange(60), (3, 7, 11))
    found = of(common, "reader")["reader 2", "sensitivity"]
    assert found.note.startswith("on 57 of 60 slices: reader 2 did not read 3 of 60")
    assert found.p == pytest.approx(mcnemar(call[(y == 1) & kept], scores[0, 1][(y == 1) & kept]).p)
    over = of(common, "readers")["mean of the readers", "sensitivity"]
    assert over.n == 57
    assert of(common, "reader")["reader 1", "sensitivity"].n == (y == 1).sum()


def edited(**cells):
    """A change of the fifth row of the table."""
    return lambda rows: [row | cells if i == 4 else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (edited(score="malignant"), "row 6: score='malignant' is not a number"),
        (edited(score="nan"), "row 6: score='nan' is not a number"),
        (edited(score="inf"), "row 6: score='inf' is not a number"),
        (edited(reader=""), "row 6: reader is empty"),
        (edited(case="p001"), "row 6: reader='Dr Name A' read case='p001' before, in row 3"),
    ],
)
def test_wrong_tables_are_refused_with_their_row(tmp_path, change, problem):
    file, _ = reads(tmp_path, change=change)
    with pytest.raises(DataError) as error:
        read_readings(file)
    assert problem in error.value.problem
    assert error.value.remedy


def test_a_table_without_its_columns(tmp_path):
    file = tmp_path / "reads.csv"
    file.write_text("case,readers,score\np001,A,1\n")
    with pytest.raises(DataError, match="no column 'reader'; did you mean 'readers'"):
        read_readings(file)
    file.write_text("case,reader,score\np001,A,\n")
    with pytest.raises(ConfigError, match="every score is empty"):
        read_readings(file)


def test_cases_that_nobody_tested(runs, tmp_path):
    file, _ = reads(tmp_path, change=edited(case="p999"))
    with pytest.raises(ConfigError, match=r"case='p999' is none of the \d+ that these runs were tested on"):
        compare(runs, readers=file)
    result = compare(runs, readers=file, common=True)
    assert any("1 case that no run was tested on left out" in note for note in result.notes)
    file, _ = reads(tmp_path, change=lambda rows: [row | {"case": f"x{row['case']}"} for row in rows])
    with pytest.raises(ConfigError, match="none of its 60 cases was tested"):
        compare(runs, readers=file, common=True)


def test_one_constant_reader(runs, tmp_path):
    file, _ = reads(tmp_path, readers=1, change=lambda rows: [row | {"score": "1"} for row in rows])
    result = compare(runs, readers=file)
    assert any("reader 1 gave every case the same: 1" in note for note in result.notes)
    row = result.readers.rows[0]
    assert (row["sensitivity"], row["specificity"]) == (1, 0)
    over = of(result, "readers")["mean of the readers", "sensitivity"]
    assert not over.made
    assert "1 reader: how readers vary is not known" in over.note
    assert of(result, "reader")["reader 1", "specificity"].made


def test_no_positive_among_what_was_read(runs, tmp_path):
    healthy = {f"p{i:03}" for i in np.flatnonzero(truth(np.arange(60)) == 0)}
    file, _ = reads(tmp_path, change=lambda rows: [row for row in rows if row["case"] in healthy])
    result = compare(runs, readers=file, common=True)
    each = of(result, "reader")
    assert not each["reader 1", "sensitivity"].made
    assert each["reader 1", "specificity"].made
    assert math.isnan(result.readers.rows[0]["sensitivity"])
    assert not of(result, "readers")["mean of the readers", "sensitivity"].made


def test_the_command_line_says_what_is_missing(runs, tmp_path, capsys):
    assert main(["compare", str(runs), f"readers={tmp_path / 'no.csv'}"]) == 2
    assert "no such file; give a CSV file of case, reader, score" in capsys.readouterr().err
