"""What a study must report: ``hemlearn compare RUNS report=claim``."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from hemlearn.__main__ import main
from hemlearn.compare.comparison import compare
from hemlearn.compare.material import claim
from hemlearn.compare.triage import triage_rows
from hemlearn.data.covariates import write_covariates
from hemlearn.reports.guidelines import CLAIM, TRIPOD
from hemlearn.reports.study_facts import ALWAYS, FACTS
from hemlearn.util.errors import RunError
from hemlearn.util.privacy import Pseudonyms
from tests.conftest import seal

from .conftest import kfold_run

DATA = {
    **{"source": "six_class", "root": "/home/jane/secret/data", "synthetic": False, "modality": ["CT"]},
    **{"slices": 120, "series": 60, "patients": 60, "geometry": {"gap": 2}},
    "labels": {"hemorrhage": {"positive": 60, "negative": 55, "unknown": 5}},
    "skipped": {"unreadable": 7, "label without image": 3},
}
MADE = {
    **{"data": DATA, "leaky_split": False, "python": "3.11.7", "device": "cpu, 1 thread", "git_commit": "abc123"},
    **{"packages": {"torch": "2.15.0"}, "cost": {"fit_seconds": 30.0, "epochs": 7, "parameters": 1_500_000}},
    "weights": "file /home/jane/secret/weights.pth",
}


def read(text):
    """The answers of a report by guideline and item, and its sections."""
    parts = dict(re.findall(r"## (.+)\n\n((?:(?!\n## ).|\n(?!## ))*)", text))
    answers = {}
    for name in ("CLAIM 2024", "TRIPOD+AI"):
        lines = parts[f"{name}: what the runs answer"].splitlines()[2:]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line]
        answers[name] = {number: answer for number, _, answer in cells}
    return answers, parts


def report(runs, folder):
    """The report alone, without the other files."""
    result = compare(runs)
    return claim(result.entries, result.contrasts, result.notes, Pseudonyms(folder, show=True))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Five folds whose folders say much, compared with the report."""
    root = tmp_path_factory.mktemp("claim")
    for fold in range(5):
        kfold_run(root / "runs", f"c{fold}" * 6, fold, patients=60, provenance=MADE, task__triage_error=0.25)
    assert main(["compare", str(root / "runs"), "report=claim", f"out={root / 'out'}"]) == 0
    return root / "out"


def test_facts_of_the_folders_stand_at_their_items(told):
    answers, _ = read((told / "claim.md").read_text())
    claimed, tripod = answers["CLAIM 2024"], answers["TRIPOD+AI"]
    assert claimed["7"] == "Data set six_class: 120 slices, 60 series, 60 patients; CT."
    assert "left out while the data were read: 7 (unreadable), 3 (label without image)" in claimed["10"]
    assert "slices with an unknown label: hemorrhage 5" in claimed["12"].lower()
    assert "gap 2 series" in claimed["13"]
    assert "cross-validation in 5 folds" in claimed["19"]
    assert "patients of a run: training 36, validation 12, test 12" in claimed["19"]
    assert claimed["20"].startswith("By patient: no patient stands on two sides")
    assert "60 slices of 60 patients" in claimed["21"]
    assert "1.5 M parameters" in claimed["22"]
    assert claimed["23"] == "Python 3.11.7, torch 2.15.0."
    assert "weights.pth" in claimed["24"]
    assert "at most" in claimed["25"]
    assert "(7 done)" in claimed["25"]
    assert "Trained on cpu, 1 thread, 30 s per run" in claimed["25"]
    assert "AUROC by delong" in claimed["29"]
    assert "None among these runs" in claimed["33"]
    assert "abc123" in tripod["18f"]
    assert "c0c0c0c0c0c0" in tripod["22"]


def test_flow_and_results_are_tables(told):
    _, parts = read((told / "claim.md").read_text())
    flow = parts["Flow of patients"]
    for line in ("| read | 60 | 120 |", "| left out while reading | unknown | unknown | 7: unreadable |"):
        assert line in flow
    assert "| test | 12 |" in flow
    assert "| tested, all runs together, slices | 60 |" in flow
    found = json.loads((told / "compare.json").read_text())["table"][0]
    assert f"{found['auroc']:.3f} ({found['auroc_low']:.3f}-{found['auroc_high']:.3f})" in parts["Results"]
    assert "are not calibrated" in parts["Limits"]


def test_triage_is_told_run_by_run(told):
    answers, parts = read((told / "claim.md").read_text())
    rows = [line for line in parts["Triage"].splitlines() if line.startswith("| all runs |")]
    assert [line.split(" | ")[1] for line in rows] == [f"c{fold}" * 6 for fold in range(5)]
    fold, *_ = json.loads((told / "compare.json").read_text())["triage"]
    assert fold["answered"]["value"] == pytest.approx(1 - fold["undecided"]["value"])
    assert fold["answered"]["low"] == pytest.approx(1 - fold["undecided"]["high"])
    assert f"error 25 % | {fold['positives']}, {fold['negatives']} | {fold['n']} | " in rows[0]
    missed = fold["missed"]
    assert f"{100 * missed['value']:.1f} ({100 * missed['low']:.1f}-{100 * missed['high']:.1f})" in rows[0]
    for name, item in (("CLAIM 2024", "22"), ("TRIPOD+AI", "15")):
        assert "with the finding at most 25 % are called negative" in answers[name][item]
        assert "see Triage above, run by run" in answers[name][item]
    table = pd.read_csv(told / "triage.csv")
    assert table["missed_high"].tolist()[0] == pytest.approx(missed["high"], abs=1e-6)
    for name in ("compare.md", "compare.html"):
        assert "error 25 %" in (told / name).read_text()


def test_triage_of_one_leaky_run_is_told_as_such(tmp_path):
    folder = kfold_run(tmp_path / "runs", "e" * 12, 0, patients=60, task__triage_error=0.25)
    content = json.loads((folder / "metrics.json").read_text()) | {"leaky": True}
    (folder / "metrics.json").write_text(json.dumps(content))
    seal(folder)
    result = compare(tmp_path / "runs")
    rows = triage_rows(result.entries)
    text = claim(result.entries, [], [], Pseudonyms(tmp_path, show=True), triage=rows)
    assert "LEAKY: its patients have trained it, and nothing is promised" in text
    assert "LEAKY, so that nothing is promised: 1 of 1 rows" in read(text)[0]["TRIPOD+AI"]["15"]
    del content["triage"]["cuts"]["slice"]["hemorrhage"]["note"]
    (folder / "metrics.json").write_text(json.dumps(content))
    seal(folder)
    with pytest.raises(RunError, match=r"metrics.json: triage cannot be read \(KeyError\('note'\)\)"):
        triage_rows(compare(tmp_path / "runs").entries)


def test_what_several_runs_say_is_told_once(told):
    limits = read((told / "claim.md").read_text())[1]["Limits"]
    assert limits.count("patients were tested") == 1
    assert "- Only 12 patients were tested. (5 of 5 runs)" in limits


def test_no_path_no_patient_and_no_secret(told):
    text = (told / "claim.md").read_text()
    assert "jane" not in text
    assert "secret" not in text
    assert not re.search(r"\bp0\d\d\b", text)


def test_what_only_the_author_knows_is_left_open(told):
    text = (told / "claim.md").read_text()
    answers, parts = read(text)
    for name, items in (("CLAIM 2024", CLAIM), ("TRIPOD+AI", TRIPOD)):
        numbers = {item.number for item in items}
        assert set(answers[name]) == {item.number for item in items if item.facts}
        lines = parts[f"{name}: only the author can answer"].strip().splitlines()
        asked = [re.match(rf"- \[ \] {re.escape(name)} ([^ :]+).*: ____$", line) for line in lines]
        blanks = {found[1] for found in asked if found}
        assert set(answers[name]) | blanks == numbers  # every item is answered or asked
    assert text.count("____") == sum(bool(item.author) for item in (*CLAIM, *TRIPOD))


def test_the_lists_are_those_of_the_guidelines():
    assert [item.number for item in CLAIM] == [str(i) for i in range(1, 45)]
    assert len(TRIPOD) == 52
    assert len({item.number.rstrip("abcdefg") for item in TRIPOD}) == 27
    known = {*FACTS, *ALWAYS, "tests"}
    assert {name for item in (*CLAIM, *TRIPOD) for name in item.facts} == known


def test_what_the_folders_do_not_say_is_unknown(tmp_path):
    kfold_run(tmp_path / "runs", "d" * 12, 0, patients=60)
    answers, parts = read(report(tmp_path / "runs", tmp_path))
    for number in ("7", "13", "20", "23", "24"):
        assert answers["CLAIM 2024"][number].startswith("Unknown: the run folders do not say"), number
    assert "not known to be disjoint" in answers["CLAIM 2024"]["32"]
    assert "| read | unknown | unknown |" in parts["Flow of patients"]
    assert "incomplete: all runs: no result of fold 1, 2, 3, 4 of 5" in parts["Limits"]


def test_groups_that_differ_are_told_apart(tmp_path):
    flips = [{"_target_": "x.Flip", "p": 0.5}]
    kfold_run(tmp_path / "runs", "f" * 12, 0, patients=60)
    kfold_run(tmp_path / "runs", "a" * 12, 0, patients=60, augmentation__name="flips", augmentation__steps=flips)
    answers, parts = read(report(tmp_path / "runs", tmp_path))
    assert "(augmentation=flips) augmentation in training: Flip (p 0.5)" in answers["CLAIM 2024"]["25"]
    assert "two groups on the same test cases: DeLong, McNemar (2)" in answers["CLAIM 2024"]["29"]
    assert parts["Results"].count("| slice |") == 2


def test_characteristics_of_the_tested_patients(tmp_path):
    folder = kfold_run(tmp_path / "runs", "b" * 12, 0, patients=60)
    who = [f"p{i:03}" for i in range(0, 60, 5)]
    table = pd.DataFrame({"slice_id": [f"{name}-0" for name in who]})
    table = table.assign(series_id=who, study_id=who, patient_id=who)
    table = table.assign(covariate_age=np.arange(12) + 40.0, covariate_sex=["F", "M", ""] * 4)
    table["covariate_site"] = ["here"] * 10 + ["ACC-777", "Dr Roe"]
    write_covariates(table, pd.DataFrame({"series_id": []}), table["slice_id"], folder)
    seal(folder)
    answers, _ = read(report(tmp_path / "runs", tmp_path))
    told = answers["TRIPOD+AI"]["20b"]
    assert "age mean 45.5, standard deviation 3.61; sex F 4, M 4 (unknown of 4); site here 10, rarer values 2" in told
    assert not re.search("40|51|ACC|Roe", told)  # what one patient alone has
    assert "Of 12 patients tested" in answers["CLAIM 2024"]["36"]


def test_covariates_of_a_table_and_subgroups_are_answers_too(tmp_path):
    folder = kfold_run(tmp_path / "runs", "e" * 12, 0, patients=60, provenance=MADE)
    own = pd.read_parquet(folder / "predictions.parquet").query("split == 'test'")["patient_id"].unique()
    table, out = tmp_path / "more.csv", tmp_path / "out"
    born = [f"1950-01-{day + 1:02d}" for day in range(len(own))]
    pd.DataFrame({"patient_id": own, "site": np.resize(["A", "B"], len(own)), "born": born}).to_csv(table, index=False)
    asked = ["subgroups=site,site", f"covariates={table}", "report=claim", f"out={out}"]
    assert main(["compare", str(tmp_path / "runs"), *asked]) == 0
    text = (out / "claim.md").read_text()
    claims = read(text)[0]["CLAIM 2024"]
    half = len(own) // 2
    assert f"site A {half}, B {half}" in claims["36"]
    line = json.loads((out / "compare.json").read_text())["subgroups"]["summary"]
    assert f"by subgroup (subgroups.csv): {line}" in claims["37"]
    assert len(pd.read_csv(out / "subgroups.csv")) == 2  # what is asked twice is judged once
    assert "not signed by you" in read(text)[1]["Limits"]
    assert not [date for date in born if date in text]


def test_a_leaky_run_says_so(tmp_path):
    kfold_run(tmp_path / "runs", "e" * 12, 0, patients=60, provenance=MADE | {"leaky_split": True})
    answers, parts = read(report(tmp_path / "runs", tmp_path))
    assert "LEAKY" in answers["CLAIM 2024"]["20"]
    assert "one patient stand on two sides" in parts["Limits"]


def test_another_report_is_a_wrong_call(tmp_path, capsys):
    assert main(["compare", str(tmp_path), "report=stard"]) == 2
    assert "report=stard: expected claim" in capsys.readouterr().err
