"""Covariates in tables, manifests and run folders."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hemlearn.data.covariates import load_covariates, read_covariates, typed, write_covariates
from hemlearn.data.geometry import no_series
from hemlearn.util.errors import DataError, RunError


def column(*values, name="age"):
    return typed(pd.Series(values), name, "my.csv", lambda row: f"row {row + 2}")


def test_a_column_is_numbers_or_texts():
    assert column("35", "", "063Y", "018M", "n/a").tolist()[::2] == pytest.approx([35, 63, np.nan], nan_ok=True)
    assert column("35", "", "018M")[2] == 1.5
    assert column("F", "M", "", "NA").tolist() == ["F", "M", "", ""]
    assert column("1", "x", "y").tolist() == ["1", "x", "y"]
    with pytest.raises(DataError, match=r"my.csv: age of row 4 is 'sixty', and 2 other values are numbers"):
        column("35", "40", "sixty")
    with pytest.raises(DataError, match="age of row 3 is 'inf'"):
        column("35", "inf", "40")


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_is_read_by_its_finest_id(tmp_path):
    file = table(tmp_path / "a.csv", "patient_id,slice_id,dose\np,s1,2\np,s2,\n")
    key, found = read_covariates(file)
    assert (key, list(found), found.loc["s1", "dose"]) == ("slice_id", ["dose"], 2.0)
    assert np.isnan(found.loc["s2", "dose"])
    # Rows that agree count once; an empty cell contradicts nothing.
    file = table(tmp_path / "b.csv", "patient_id,age,sex\np,35,\np,35,F\nq,,M\np,,F\n")
    assert read_covariates(file)[1].reset_index().to_numpy().tolist()[0] == ["p", 35.0, "F"]
    assert read_covariates(file)[1].loc["q", "sex"] == "M"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("patient,age\np,3\n", "no column slice_id or series_id or study_id or patient_id; did you mean 'patient'"),
        ("patient_id\np\n", "no column beside patient_id"),
        ("patient_id,age\np,3\n,4\n", "row 3: patient_id is empty"),
        ("patient_id,age\np,3\nq,5\np,4\n", "patient_id='p' has two values of age: '3' in row 2, '4' in row 4"),
        ("\npatient_id,age\n\np,3\nq,5\n\np,4\n", "two values of age: '3' in row 4, '4' in row 7"),
        ("patient_id;age\n\np;30\nq;45,5\nr;5,1\n", "age of row 4 is '45,5', with a decimal comma"),
        (",patient_id,age\n0,p,3\n1,q,5\n", "column 1 has no name"),
        ("patient_id;age\np;30\nq;45,5\nr;5,1\n", "age of row 3 is '45,5', with a decimal comma"),
        (
            "patient_id,age\np,3\nq,999\nr,-1\n",
            "age of row 3 is '999', which cannot be (plausible: 0 to 120 years); 2 such rows",
        ),
        ("patient_id,Age (years)\np,3\nq,-1\n", "Age (years) of row 3 is '-1', which cannot be"),
        ("patient_id,slice_thickness\np,5\nq,0\n", "'0', which cannot be (plausible: above 0, up to 100 mm)"),
        ("patient_id,GCS\np,15\nq,99\n", "GCS of row 3 is '99', which cannot be (plausible: 3 to 15 points)"),
        ("patient_id,age\np,3\nq,old\nr,5\n", "age of row 3 is 'old', and 2 other values are numbers"),
    ],
)
def test_tables_that_say_nothing_or_contradict_themselves(tmp_path, text, told):
    with pytest.raises(DataError) as error:
        read_covariates(table(tmp_path / "a.csv", text))
    assert told in error.value.problem
    assert "a.csv" in error.value.problem


@pytest.mark.parametrize(
    ("ages", "wanted"),
    [
        (("756", "30"), "; if these are months, divide them by 12, or write them as 009M"),
        (("23011", "7"), "; if these are days, divide them by 365.25, or write them as 009D"),
        (("756", "-1"), "(unknown)"),
        (("99999", "3"), "(unknown)"),
    ],
)
def test_ages_that_may_be_in_another_unit_are_refused_with_what_to_do(tmp_path, ages, wanted):
    rows = "".join(f"p{number},{age}\n" for number, age in enumerate(ages))
    with pytest.raises(DataError, match="which cannot be") as error:
        read_covariates(table(tmp_path / "a.csv", f"patient_id,age\n{rows}"))
    assert error.value.remedy.endswith(wanted)


def test_a_run_folder_keeps_those_of_its_slices(tmp_path):
    rows = pd.DataFrame({"slice_id": ["a", "b", "c"], "series_id": ["s", "s", "t"], "study_id": "u"})
    rows = rows.assign(patient_id=["p", "p", "q"], covariate_sex=["F", "F", ""], covariate_none="")
    series = no_series().reindex([0, 1]).assign(series_id=["s", "t"], thickness_mm=[5.0, 2.5], manufacturer=["", "GE"])
    write_covariates(rows, series, ["a", "c"], tmp_path)
    found = load_covariates(tmp_path)
    assert found.drop(columns="study_id").to_dict("list") == {
        **{"slice_id": ["a", "c"], "series_id": ["s", "t"], "patient_id": ["p", "q"]},
        **{"manufacturer": ["", "GE"], "thickness_mm": [5.0, 2.5], "sex": ["F", ""]},
    }
    (tmp_path / "covariates.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="not a readable Parquet file"):
        load_covariates(tmp_path)
    odd = found.rename(columns={"sex": "covariate_sex"}).drop(columns=["manufacturer", "thickness_mm"])
    odd.assign(covariate_sex="\x1b[2J").to_parquet(tmp_path / "covariates.parquet")  # a stranger's
    assert load_covariates(tmp_path)["sex"].tolist() == ["\\x1b[2J"] * 2
    found.to_parquet(tmp_path / "covariates.parquet")
    with pytest.raises(RunError, match="no table of covariates"):
        load_covariates(tmp_path)


def test_nothing_known_leaves_no_file(tmp_path):
    rows = pd.DataFrame({"slice_id": ["a"], "series_id": ["s"], "study_id": ["u"], "patient_id": ["p"]})
    write_covariates(rows, no_series(), ["a"], tmp_path)
    assert not list(tmp_path.iterdir())
    assert load_covariates(tmp_path).empty
