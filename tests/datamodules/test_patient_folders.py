"""Private layouts with one folder per patient: basal ganglia on CT, hydrocephalus on MR, and their faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from hemlearn.config.compose import compose
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import ConfigError, DataError
from tests.datamodules.slices import reasons, write_slice

SIDES = ["none", "left", "right"]


def ganglia(root: Path, *overrides: str) -> Any:
    return build_datamodule(
        compose(
            [
                "data=basal_ganglia",
                f"data.root={root}",
                "task=basal_ganglia",
                "loss=cross_entropy",
                "data.band=null",
                *overrides,
            ]
        )
    )


def mri(root: Path, *overrides: str) -> Any:
    return build_datamodule(
        compose(
            [
                "data=hydrocephalus_mri",
                f"data.root={root}",
                "task=hydrocephalus",
                "channels=mr",
                "data.band=null",
                *overrides,
            ]
        )
    )


def ct_series(root: Path, patient: str, count: int = 3, **tags: Any) -> None:
    for k in range(count):
        write_slice(
            root / patient / f"IM{k}.dcm", 5.0 * k, patient=patient, series=f"1.{patient[1:]}", number=k, **tags
        )


def mr_series(
    root: Path, patient: str, folder: str = "T2", count: int = 3, number: int = 2, z: bool = True, **tags: Any
) -> None:
    for k in range(count):
        own = {"EchoTime": 100.0, "RepetitionTime": 4000.0} | {
            name: value[k] if isinstance(value, tuple) else value for name, value in tags.items()
        }
        write_slice(
            root / patient / folder / f"{k}.dcm",
            5.0 * k if z else None,
            patient=patient,
            number=count - k,
            series=f"1.{patient[1:]}.{number}",
            Modality="MR",
            **own,
        )


def test_sides_become_three_classes_of_whole_series(tmp_path: Path) -> None:
    for name in ("P1", "P2", "P3", "P4", "P5"):
        ct_series(tmp_path, name)
    (tmp_path / "labels.csv").write_text("patient_id,side\nP1,left\nP2,Right\nP3,none\nP4,\nP9,left\n")
    (tmp_path / "readme.txt").write_text("x")
    data = ganglia(tmp_path)
    table = data.manifest.table
    assert data.manifest.label_level == "series"
    assert len(table) == 12
    values = table.drop_duplicates("patient_id").set_index("patient_id")[SIDES]
    assert np.array_equal(values.to_numpy(), [[0, 1, 0], [0, 0, 1], [1, 0, 0], [np.nan] * 3], equal_nan=True)
    assert np.isnan(data.labels[9:]).all()
    found = reasons(data.manifest)
    assert found["P9"].startswith("label without image")
    assert found["P5/IM0.dcm"] == "image without label: no row of patient 'P5' in labels.csv"
    assert "readme.txt" in found
    assert "labels.csv" not in found


def test_sides_may_be_two_columns(tmp_path: Path) -> None:
    for name in ("P1", "P2", "P3", "P4"):
        ct_series(tmp_path, name)
    (tmp_path / "labels.csv").write_text("patient_id,left,right\nP1,1,0\nP2,0,1\nP3,0,0\nP4,,0\n")
    table = ganglia(tmp_path).manifest.table.drop_duplicates("patient_id")
    assert np.array_equal(table[SIDES], [[0, 1, 0], [0, 0, 1], [1, 0, 0], [np.nan] * 3], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patient_id,left,right\nP1,0,1\nP2,1,1\n", r"labels\.csv, row 3: both sides set \(left=1, right=1\).*'P2'"),
        (
            "patient_id,side,left,right\nP1,left,1,0\nP2,right,1,1\n",
            r"row 3: side='right' and left='1', right='1' contradict each other \(1 such rows\)",
        ),
        ("patient_id,side,left\nP1,right,1\n", r"row 2: side='right' and left='1' contradict"),
        ("patient_id,side,left,right\nP1,,0,0\n", r"row 2: side='' and left='0', right='0' contradict"),
        ("patient_id,side,left,right\nP1,left,yes,0\n", r"row 2: left='yes'"),
        ("patient_id,side\nP1,both\n", r"row 2: side='both': both sides set"),
        ("patient_id,side\nP1,left+right\n", r"side='left\+right': both sides set"),
        ("patient_id,side\nP1,R/L\n", r"side='R/L': both sides set"),
        ("patient_id,side\nP1,lfet\n", r"row 2: side='lfet': no side; did you mean 'left'\?"),
        ("patient_id,side\nP1,2\n", r"side='2': no side"),
        ("patient_id,left,right\nP1,yes,0\n", r"row 2: left='yes'"),
        (
            "patient_id,side\nP1,left\nP2,none\nP1,right\n",
            r"'P1' has two labels: side='left' in row 2, side='right' in row 4",
        ),
        ("patient_id,sides\nP1,left\n", r"no column 'side'; did you mean 'sides'"),
        ("id,side\nP1,left\n", r"no column 'patient_id'"),
        ("patient_id,side\n,left\n", r"row 2: patient_id is empty"),
        ("patient_id,side\nQ1,left\n", r"none of 3 images belongs to a row.*'P1/IM0.dcm' is of patient 'P1'.*'Q1'"),
    ],
)
def test_wrong_side_tables_name_the_row_and_the_value(tmp_path: Path, text: str, words: str) -> None:
    ct_series(tmp_path, "P1")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        ganglia(tmp_path).read(tmp_path)


def test_rows_that_repeat_themselves_count_once(tmp_path: Path) -> None:
    ct_series(tmp_path, "P1")
    (tmp_path / "labels.csv").write_text("patient_id,side\nP1,left\nP1,L\n")
    manifest = ganglia(tmp_path).manifest
    assert "1 repeated row agrees" in manifest.notes[0]


def test_pictures_and_volumes_lie_beside_dicom(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(12):
        file = tmp_path / "P1" / f"{k}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(file)
    (tmp_path / "labels.csv").write_text("patient_id,side\nP1,left\nP2,none\n")
    voxels = rng.integers(-100, 100, (40, 40, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.5, 0.5, 5.0, 1.0])), tmp_path / "P2.nii.gz")
    table = ganglia(tmp_path).manifest.table
    assert table.loc[table["patient_id"] == "P1", "path"].tolist() == [f"P1/{k}.png" for k in range(12)]
    assert table.loc[table["patient_id"] == "P2", "slice_id"].tolist()[1:] == [f"P2.nii.gz#{k}" for k in (1, 2, 3)]
    assert (table["modality"] == "CT").all()


def test_sides_and_flags_that_agree_are_read(tmp_path: Path) -> None:
    for name in ("P1", "P2", "P3", "P4"):
        ct_series(tmp_path, name)
    (tmp_path / "labels.csv").write_text("patient_id,side,left,right\nP1,L,1,0\nP2,right,,1\nP3,none,0,0\nP4,,,0\n")
    table = ganglia(tmp_path).read(tmp_path).table.drop_duplicates("patient_id")
    assert np.array_equal(table[SIDES], [[0, 1, 0], [0, 0, 1], [1, 0, 0], [np.nan] * 3], equal_nan=True)


def test_a_column_path_labels_single_slices(tmp_path: Path) -> None:
    ct_series(tmp_path, "P1")
    ct_series(tmp_path, "P2")
    (tmp_path / "labels.csv").write_text(
        "path,patient_id,side\nP1/IM0.dcm,ann,none\nP1/IM1.dcm,ann,left\nP2/IM1.dcm,bob,none\nP2/IM9.dcm,bob,none\n"
    )
    # The table names the patients: a pattern has nothing to say.
    manifest = ganglia(tmp_path, "task.level=slice", "data.patient_pattern='(nobody)'").manifest
    assert manifest.label_level == "slice"
    assert manifest.table[["patient_id", *SIDES]].to_numpy().tolist() == [
        ["ann", 1, 0, 0],
        ["ann", 0, 1, 0],
        ["bob", 1, 0, 0],
    ]
    found = reasons(manifest)
    assert found["P2/IM9.dcm"].startswith("label without image")
    assert found["P1/IM2.dcm"] == "image without label: no row of path 'P1/IM2.dcm' in labels.csv"
    (tmp_path / "labels.csv").write_text("path,patient_id,side\nP1/IM7.dcm,ann,none\n")
    with pytest.raises(DataError, match=r"the image 'P1/IM0.dcm', the first row is 'P1/IM7.dcm'"):
        ganglia(tmp_path).read(tmp_path)


def test_a_pattern_finds_the_patient_in_any_tree(tmp_path: Path) -> None:
    for name in ("P1", "P2"):
        ct_series(tmp_path / "site" / "2019", name)
    (tmp_path / "labels.csv").write_text("patient_id,side\nP1,left\nP2,none\n")
    manifest = ganglia(tmp_path, r"data.patient_pattern='2019/(?P<patient>P\d+)/'").manifest
    assert manifest.table["patient_id"].unique().tolist() == ["P1", "P2"]
    with pytest.raises(DataError, match=r"fits none of 6 images, for example 'site/2019/P1/IM0.dcm'"):
        ganglia(tmp_path, r"data.patient_pattern='(X\d+)'").read(tmp_path)
    for pattern, words in (("'P[0-9]+'", "no group"), ("'(P'", "no regular expression")):
        with pytest.raises(ConfigError, match=words):
            ganglia(tmp_path, f"data.patient_pattern={pattern}").read(tmp_path)


def test_two_folders_of_one_person_are_told(tmp_path: Path) -> None:
    for name in ("P1", "P2", "P3"):
        ct_series(tmp_path, name, PatientID="ann" if name != "P3" else "bob")
    (tmp_path / "labels.csv").write_text("patient_id,side\nP1,left\nP2,none\nP3,none\n")
    assert any("'ann', of 'P1', 'P2'" in note for note in ganglia(tmp_path).manifest.notes)


def test_mr_patients_with_several_series(tmp_path: Path) -> None:
    mr_series(tmp_path, "P1")
    mr_series(tmp_path, "P1", "T1", number=1, EchoTime=12.0, RepetitionTime=500.0)
    mr_series(tmp_path, "P2")
    ct_series(tmp_path / "P2" / "ct", "P2")
    (tmp_path / "labels.csv").write_text("patient_id,hydrocephalus\nP1,1\nP2,0\n")
    data = mri(tmp_path)
    table = data.manifest.table
    assert table.groupby("patient_id")["series_id"].nunique().to_dict() == {"P1": 2, "P2": 1}
    assert table.groupby("patient_id")["hydrocephalus"].unique().map(list).to_dict() == {"P1": [1.0], "P2": [0.0]}
    assert reasons(data.manifest)["P2/ct/P2/IM0.dcm"] == "modality CT: hydrocephalus_mri is MR"
    assert data.store.unit == "signal"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "patient_id,hydrocephalus\nP1,1\nP1,0\n",
            r"'P1' has two labels: hydrocephalus='1' in row 2, hydrocephalus='0' in row 3",
        ),
        ("patient_id,hydrocephalus\nP1,yes\n", r"row 2: hydrocephalus='yes'"),
        ("patient_id,hydrocefalus\nP1,1\n", r"no column 'hydrocephalus'; did you mean 'hydrocefalus'"),
    ],
)
def test_wrong_mr_tables(tmp_path: Path, text: str, words: str) -> None:
    mr_series(tmp_path, "P1")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        mri(tmp_path).read(tmp_path)


def test_mixed_contrasts_in_one_series_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mr_series(tmp_path, "P1", EchoTime=(12.0, 100.0, 100.0))
    mr_series(tmp_path, "P2")
    mr_series(tmp_path, "P3", EchoTime=(98.0, 100.0, 101.0))
    (tmp_path / "labels.csv").write_text("patient_id,hydrocephalus\nP1,1\nP2,0\nP3,1\n")
    for _ in range(2):  # the second time from the cache
        manifest = mri(tmp_path).read(tmp_path)
        assert manifest.table["patient_id"].unique().tolist() == ["P2", "P3"]
        reason = "mixed contrasts: echo time 12 and 100 ms in series '1.1.2' of patient 'P1'"
        assert {reasons(manifest)[f"P1/T2/{k}.dcm"] for k in range(3)} == {reason}
    assert "series '1.1.2' of patient 'P1' (P1/T2/0.dcm ...) is left out: mixed contrasts" in caplog.text


def test_inversion_time_tells_contrasts_apart(tmp_path: Path) -> None:
    mr_series(tmp_path, "P1", InversionTime=(2500.0, 900.0, 2500.0))
    mr_series(tmp_path, "P2", InversionTime=0.0)
    (tmp_path / "labels.csv").write_text("patient_id,hydrocephalus\nP1,1\nP2,0\n")
    manifest = mri(tmp_path).read(tmp_path)
    assert "inversion time 900 and 2500 ms" in reasons(manifest)["P1/T2/0.dcm"]


def test_mr_without_spacing_or_positions_is_used_and_noted(tmp_path: Path) -> None:
    mr_series(tmp_path, "P1", z=False, PixelSpacing=None)
    mr_series(tmp_path, "P2")
    (tmp_path / "labels.csv").write_text("patient_id,hydrocephalus\nP1,1\nP2,0\n")
    manifest = mri(tmp_path, "data.band=[0.4,0.6]").manifest
    own = manifest.table[manifest.table["patient_id"] == "P1"]
    assert own["path"].tolist() == ["P1/T2/1.dcm"]
    assert own["z_mm"].isna().all()
    assert any("1 of 2 series have no pixel spacing" in note for note in manifest.notes)
    assert any("1 of 2 series have no positions" in note for note in manifest.notes)


def test_a_volume_with_no_slice_in_the_band_is_named(tmp_path: Path) -> None:
    mr_series(tmp_path, "P1", count=2)
    mr_series(tmp_path, "P2", count=5)
    (tmp_path / "labels.csv").write_text("patient_id,hydrocephalus\nP1,1\nP2,0\n")
    manifest = mri(tmp_path, "data.band=[0.4,0.6]").manifest
    assert manifest.table["path"].tolist() == ["P2/T2/2.dcm"]
    assert reasons(manifest)["P1/T2/0.dcm"].startswith(
        "no slice in the band: none of the 2 of series '1.1.2' of patient 'P1'"
    )
    assert manifest.series.set_index("patient_id")["kept"].to_dict() == {"P1": 0, "P2": 1}
    with pytest.raises(DataError, match=r"every image was left out.*first 'P[12]/T2/0\.dcm'") as caught:
        mri(tmp_path, "data.band=[0.1,0.2]").read(tmp_path)
    assert caught.value.remedy == "widen data.band (null: all slices)"


def test_a_folder_without_a_table_says_what_is_missing(tmp_path: Path) -> None:
    mr_series(tmp_path, "P1")
    with pytest.raises(DataError, match=r"labels\.csv: no such file") as caught:
        mri(tmp_path).read(tmp_path)
    assert "one folder per patient" in caught.value.remedy
