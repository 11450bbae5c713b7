"""Subgroups of test cases in `hemlearn compare` and of single runs."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from hemlearn.commands.runs import compare as main
from hemlearn.compare.comparison import compare
from hemlearn.compare.subgroups import subgroups_of, write_subgroups
from hemlearn.config.requests import Subgrouping
from hemlearn.data.covariates import IDS
from hemlearn.evaluation.auroc import auroc_interval
from hemlearn.training.run import Run
from hemlearn.util.errors import CallError, ConfigError, DataError, RunError
from tests.conftest import seal

from .conftest import configuration, predictions, write_run

PATIENTS = 80


def ages():
    """Years, a fraction that no cut point has; two patients' are not known."""
    years = np.round(np.linspace(3, 90, PATIENTS) + 0.137, 3)
    years[[5, 50]] = np.nan
    return years


def run(root, name="a" * 12, slices=1, noise=2.0, **columns):
    """A run of as many test patients, with covariates by patient, or by slice where they are longer."""
    config = configuration()
    test = predictions(config, range(PATIENTS), slices, noise)
    val = predictions(config, range(100, 130), slices, noise, seed=1, split="val")
    folder = write_run(root, name, config, pd.concat([val, test], ignore_index=True))
    if columns:
        table = test.assign(study_id=test["patient_id"])[list(IDS)]
        for column, values in columns.items():
            values = np.asarray(values)
            table[f"covariate_{column}"] = values if len(values) == len(table) else np.repeat(values, slices)
        table.to_parquet(folder / "covariates.parquet")
        seal(folder)
    return folder


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    sex = np.array((["F", "M", "M", ""] * PATIENTS)[:PATIENTS], dtype=object)
    return run(tmp_path_factory.mktemp("known"), age=ages(), sex=sex, site=["one"] * PATIENTS)


def asked(*texts):
    return [Subgrouping.parse(text) for text in texts]


def test_figures_are_those_of_the_groups_own_cases(known):
    study = subgroups_of(known, asked("sex", "age=18|65"))
    table = study.table().set_index(["covariate", "group"])
    assert list(table.index) == [
        *(("sex", name) for name in ("F", "M", "unknown")),
        *(("age", name) for name in ("under 18", "18 to under 65", "65 or more", "unknown")),
    ]
    rows = pd.read_parquet(known / "predictions.parquet").query("split == 'test'").reset_index(drop=True)
    men = rows[pd.read_parquet(known / "covariates.parquet")["covariate_sex"] == "M"]
    area = auroc_interval(men["label_hemorrhage"], men["prob_hemorrhage"])
    own = table.loc[("sex", "M")]
    assert own[["auroc", "auroc_low", "auroc_high"]].tolist() == pytest.approx([area.value, area.low, area.high])
    assert (own["n"], own["positives"]) == (40, men["label_hemorrhage"].sum())
    assert (table.loc[("age", "unknown"), ["n", "refused"]] != [0, ""]).all()
    tests = [test for _, test in study.tests]
    assert len(tests) == 8
    smallest = min(test.p for test in tests)
    assert min(test.p_holm for test in tests) == pytest.approx(min(1.0, 8 * smallest))  # over both covariates


def test_a_comparison_writes_them_and_names_no_age(known, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(known), "subgroups=[sex,age]", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    line = next(text for text in printed.splitlines() if text.startswith("subgroups? "))
    assert "8 tests of interaction" in line
    assert "1 of 7 groups too small" in line
    assert {"subgroups.csv", "subgroups.png"} <= {file.name for file in out.iterdir()}
    told = json.loads((out / "compare.json").read_text())["subgroups"]
    assert told["summary"] in line
    assert len(told["groups"]) == 7
    page, notes = (out / "compare.html").read_text(), " ".join(told["notes"])
    assert 'id="subgroups"' in page
    assert "the tertiles of patients" in notes
    page = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)  # coordinates of curves are no ages
    for text in (page, json.dumps(told), (out / "subgroups.csv").read_text(), (out / "compare.md").read_text()):
        assert "under" in text
        assert not [age for age in ages() if f"{age:g}" in text]


def test_a_covariate_that_nobody_knows_or_that_has_no_groups(known, tmp_path):
    with pytest.raises(ConfigError, match="no covariate 'sexx' of these runs; did you mean 'sex'") as error:
        subgroups_of(known, asked("sexx"))
    assert "they know age, sex, site" in error.value.remedy
    with pytest.raises(ConfigError, match="sex is a text, such as 'F', and has no cut points"):
        subgroups_of(known, asked("sex=3"))
    names = tmp_path / "names.csv"
    names.write_text("patient_id,name\n" + "".join(f"p{k:03},n{k % 25}\n" for k in range(PATIENTS)))
    with pytest.raises(ConfigError, match="name: 25 different texts, more than 20"):
        subgroups_of(known, asked("name"), names)
    assert "name: 25 different texts, more than 20: no groups" in subgroups_of(known, asked("all"), names).notes
    names.write_text("patient_id,name,half\n" + "".join(f"p{k:03},n{k},{'AB'[k % 2]}\n" for k in range(PATIENTS)))
    study = subgroups_of(known, [], names)  # nobody asked for groups of names
    assert set(study.table()["covariate"]) == {"half"}
    assert "name: no text that 3 patients share: no groups" in study.notes
    few = tmp_path / "few.csv"
    few.write_text("patient_id,ward\n" + "".join(f"p{k:03},{'A' if k < 40 else f'w{k % 15}'}\n" for k in range(50)))
    groups = subgroups_of(known, asked("ward"), few).table()["group"].tolist()
    assert groups == ["A", "rarer values", "unknown"]  # each other ward has one patient
    few.write_text("patient_id,ward\n" + "".join(f"p{k:03},w{k}\n" for k in range(10)))
    with pytest.raises(ConfigError, match="ward: no text that 3 patients share"):
        subgroups_of(known, asked("ward"), few)
    for wrong in ("age=", "age=a|b", "age=65|18", "=3"):
        with pytest.raises(ValueError, match="give"):
            Subgrouping.parse(wrong)
    with pytest.raises(CallError, match="subgroups=age=65"):
        main([str(known), "subgroups=age=65|18"])
    with pytest.raises(CallError, match=r"covariates=nowhere.csv: no such file"):
        main([str(known), "covariates=nowhere.csv"])


def test_any_text_can_be_drawn(tmp_path):
    long = "transferred from a hospital without a scanner of its own, more than a day after the fall"
    folder = run(tmp_path, dose=np.array(["$\\frac", long] * (PATIENTS // 2), dtype=object))
    study = subgroups_of(folder, asked("dose"))
    write_subgroups(study, folder)
    assert (folder / "subgroups.png").stat().st_size > 10_000
    texts = [text.get_text().replace("\n", " ") for axes in study.figure().axes for text in axes.texts]
    assert any(text.startswith(long) for text in texts)  # no name is cut


def test_a_constant_covariate_is_one_group_and_no_test(known):
    study = subgroups_of(known, asked("site"))
    assert study.table()["group"].tolist() == ["one"]
    assert study.line == "site: no test is possible"


def test_a_table_of_covariates(known, tmp_path):
    file = tmp_path / "more.csv"
    file.write_text("patient_id,dose\n" + "".join(f"p{k:03},{k % 2}\n" for k in range(10, PATIENTS)) + "p999,7\n")
    study = subgroups_of(known, [], file)
    table = study.table().set_index("group")
    assert table["n"].to_dict() == {"0": 35, "1": 35, "unknown": 10}
    assert "more.csv: 10 of 80 patients are not in it: unknown" in study.notes
    file.write_text("patient_id,dose\np001,1\np001,2\n")
    with pytest.raises(DataError, match="patient_id='p001' has two values of dose"):
        subgroups_of(known, [], file)
    file.write_text("patient_id,dose\nq1,1\nq2,2\n")
    with pytest.raises(ConfigError, match="none of its 2 patient_ids was tested, such as 'q1'"):
        subgroups_of(known, [], file)
    file.write_text("slice_id,dose\n" + "".join(f"p{k:03}-0,{k % 2}\n" for k in range(PATIENTS)))
    assert subgroups_of(known, [], file).table()["n"].tolist() == [40, 40]


def test_what_differs_within_a_patient_is_judged_per_slice(tmp_path):
    thick = np.tile([5.0, 5.0, 2.5, 2.5], PATIENTS)
    folder = run(tmp_path, slices=4, thickness=thick, visit=np.repeat(np.arange(PATIENTS) % 2, 4))
    study = subgroups_of(folder, asked("thickness", "visit"))
    levels = {finding.result.covariate: finding.level for finding in study.findings}
    assert levels == {"thickness": "slice", "visit": "patient"}
    assert "thickness differs within 80 patients: not judged per patient" in study.notes
    note = study.findings[0].result.tests[0].note
    assert "80 patients lie in several groups" in note
    # A run without covariates can be asked by a table.
    with pytest.raises(ConfigError) as error:
        subgroups_of(run(tmp_path / "b"), asked("age"))
    assert "they know none; covariates=FILE.csv" in error.value.remedy


def test_changed_covariates_are_refused_and_files_beside_a_run_leave_it_whole(known, tmp_path):
    sex = np.array(["F", "M"] * (PATIENTS // 2), dtype=object)
    folder = run(tmp_path, sex=sex)
    study = subgroups_of(folder, asked("sex"))
    assert [file.name for file in write_subgroups(study, folder)] == ["subgroups.csv", "subgroups.png"]
    assert not Run(folder).problems("predictions.parquet", "covariates.parquet")
    table = pd.read_parquet(folder / "covariates.parquet")
    table.assign(covariate_sex="F").to_parquet(folder / "covariates.parquet")
    with pytest.raises(Exception, match=r"covariates.parquet: changed after the run had ended"):
        subgroups_of(folder, asked("sex"))


def test_runs_of_the_same_cases_of_which_one_knows_no_covariates(tmp_path):
    """Such as one made before runs kept them: it contradicts nothing."""
    sex = np.array(["F", "M"] * (PATIENTS // 2), dtype=object)
    run(tmp_path, "1" * 12, sex=sex)
    run(tmp_path, "2" * 12, noise=1.5)
    study = compare([tmp_path], subgroups=["sex"]).subgroups
    assert study.table()["n"].to_dict() == {0: 40, 1: 40}
    run(tmp_path, "3" * 12, noise=1.2, sex=sex[::-1])
    with pytest.raises(RunError, match="different values of sex for slice 'p000-0'"):
        compare([tmp_path], subgroups=["sex"])


def test_groups_of_runs_are_corrected_together(known, tmp_path):
    one = run(tmp_path / "a", "1" * 12, sex=["F", "M"] * (PATIENTS // 2))
    two = tmp_path / "b"
    config = configuration(backbone__pretrained=False)
    frame = pd.read_parquet(one / "predictions.parquet")
    folder = write_run(two, "2" * 12, config, frame)
    (folder / "covariates.parquet").write_bytes((one / "covariates.parquet").read_bytes())
    seal(folder)
    study = compare([tmp_path], subgroups=["sex"]).subgroups
    assert len(study.tests) == 8
    assert {finding.entry for finding in study.findings} == {"pretrained=true", "pretrained=false"}
