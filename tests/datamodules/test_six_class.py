"""Class folders and tables of single slices, and their faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hemlearn.__main__ import main
from hemlearn.config.compose import compose
from hemlearn.datamodules.patients import NAME_RULE
from hemlearn.datamodules.six_class import CLASSES, class_of
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import DataError
from tests.datamodules.slices import reasons, write_slice


def six(root: Path, *overrides: str) -> Any:
    return build_datamodule(
        compose(["data=six_class", f"data.root={root}", "task=six_class", "loss=cross_entropy", *overrides])
    )


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32), dtype=np.uint8)).save(file)


def folders(root: Path) -> Path:
    for number, name in enumerate(CLASSES):
        for k in range(2):
            picture(root / name / f"P{number}_{k}.png", 10 * number + k)
    return root


def test_folders_are_classes_and_names_tell_patients(tmp_path: Path) -> None:
    folders(tmp_path)
    picture(tmp_path / "normal" / "P1_9.png", 99)  # a patient with images of two classes
    picture(tmp_path / "normal" / "stray.png", 98)  # no patient in its name
    data = six(tmp_path)
    table = data.manifest.table
    assert len(table) == 13
    assert (data.labels.sum(axis=1) == 1).all()
    assert data.manifest.label_level == "slice"
    own = table.loc[table["patient_id"] == "P1", ["normal", "epidural"]]
    assert sorted(own.to_numpy().tolist()) == [[0, 1], [0, 1], [1, 0]]
    assert reasons(data.manifest) == {
        "normal/stray.png": f"no patient: data.patient_pattern={data.patient_pattern!r} does not fit the path"
    }


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Epidural", "epidural"),
        ("SDH", "subdural"),
        ("Intra-Ventricular", "intraventricular"),
        ("sah", "subarachnoid"),
        ("subdural hemorrhage", "subdural"),
        ("tumour", None),
        ("", None),
    ],
)
def test_words_for_classes(word: str, name: str | None) -> None:
    assert class_of(word) == name


def test_a_misspelt_folder_is_named_with_the_nearest_class(tmp_path: Path) -> None:
    folders(tmp_path)
    picture(tmp_path / "subdurall" / "P9_1.png", 77)
    with pytest.raises(DataError, match=r"subdurall: no class; did you mean 'subdural'\? \(1 image\)"):
        six(tmp_path).read(tmp_path)


def test_an_image_outside_the_folders_is_refused(tmp_path: Path) -> None:
    folders(tmp_path)
    picture(tmp_path / "P9_1.png", 77)
    with pytest.raises(DataError, match=r"P9_1\.png: an image outside the class folders"):
        six(tmp_path).read(tmp_path)


def test_a_pattern_that_fits_nothing_shows_a_path(tmp_path: Path) -> None:
    folders(tmp_path)
    with pytest.raises(DataError, match=r"fits none of 12 images, for example 'epidural/P1_0.png'"):
        six(tmp_path, "data.patient_pattern='(case[0-9]+)'").read(tmp_path)


def test_one_image_in_two_classes_is_refused(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "normal" / "P7_1.png").write_bytes((tmp_path / "subdural" / "P2_0.png").read_bytes())
    with pytest.raises(
        DataError,
        match=r"one image in two classes: 'normal/P7_1.png' \(normal\) and "
        r"'subdural/P2_0.png' \(subdural\)",
    ):
        six(tmp_path).read(tmp_path)


def test_a_table_names_classes_and_patients(tmp_path: Path) -> None:
    for k in range(4):
        picture(tmp_path / "img" / f"x{k}.png", k)
    (tmp_path / "labels.csv").write_text(
        "path,class,patient_id\nimg/x0.png,normal,ann\nimg/x1.png,EDH,bob\nimg/x2.png,SAH,\nimg/x9.png,SAH,eve\n"
    )
    manifest = six(tmp_path).read(tmp_path)
    assert manifest.table.set_index("slice_id")["patient_id"].to_dict() == {"img/x0.png": "ann", "img/x1.png": "bob"}
    assert manifest.table["epidural"].tolist() == [0, 1]
    found = reasons(manifest)
    assert found["img/x2.png"] == "no patient: patient_id is empty in labels.csv"
    assert found["img/x3.png"] == "image without label"
    assert found["img/x9.png"] == "label without image: no such file"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,class\nimg/x0.png,epidurl\n", r"row 2: class='epidurl' is no class; did you mean 'epidural'"),
        (
            "path,class\nimg/x0.png,normal\nimg/x0.png,EDH\n",
            r"'img/x0.png' has two labels: class='normal' in row 2, "
            "class='epidural' in row 3",
        ),
        ("path,klass\nimg/x0.png,normal\n", r"no column 'class'"),
        ("path,class\nimg/y0.png,normal\n", r"none of its 1 file exists, for example 'img/y0.png'"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, words: str) -> None:
    picture(tmp_path / "img" / "x0.png", 0)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        six(tmp_path).read(tmp_path)


def test_dicom_goes_by_its_own_patient_without_a_pattern(tmp_path: Path) -> None:
    write_slice(tmp_path / "normal" / "a.dcm", 5.0, patient="ann", series="1.1")
    write_slice(tmp_path / "epidural" / "b.dcm", 0.0, patient="ann", series="1.1")
    write_slice(tmp_path / "subdural" / "c.dcm", 0.0, patient="bob", series="1.2", Modality="MR")
    manifest = six(tmp_path, "data.patient_pattern=null").read(tmp_path)
    assert manifest.table[["slice_id", "patient_id", "z_mm"]].to_numpy().tolist() == [
        ["epidural/b.dcm", "ann", 0.0],
        ["normal/a.dcm", "ann", 5.0],
    ]
    assert reasons(manifest) == {"subdural/c.dcm": "modality MR: six_class is CT"}
    picture(tmp_path / "normal" / "d.png", 1)
    with pytest.raises(DataError, match=r"nothing says whose image 'normal/d.png' is"):
        six(tmp_path, "data.patient_pattern=null").read(tmp_path)


def test_volumes_are_refused(tmp_path: Path) -> None:
    from tests.datamodules.slices import write_volume

    write_volume(tmp_path / "normal" / "P1_1.nii.gz", 3)
    with pytest.raises(DataError, match=r"P1_1\.nii\.gz: a volume"):
        six(tmp_path).read(tmp_path)


def test_numbers_that_begin_anew_in_every_class_are_noted(tmp_path: Path) -> None:
    for number, name in enumerate(CLASSES):
        for k in range(4):
            picture(tmp_path / name / f"{k // 2:02d}_{k % 2}.png", 10 * number + k)
    (note,) = six(tmp_path).read(tmp_path).notes
    assert note.startswith("each of the 2 patients has images of all 6 classes; 'epidural/00_0.png' and ")
    assert "count as one patient, '00'" in note
    assert "data.patient_pattern" in note
    picture(tmp_path / "normal" / "07_0.png", 99)  # one class is longer: not all patients have all classes
    (note,) = six(tmp_path).read(tmp_path).notes
    assert note.startswith("4 file names stand in several classes; 'epidural/00_0.png' and ")
    assert six(tmp_path, "data.patient_pattern='/([0-9]+)_'").read(tmp_path).notes == ()  # chosen by the user


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["normal/img_0001.png", "epidural/img_0002.png"],
            r"all 2 images would be of one patient, 'img', for example 'epidural/img_0002.png' and "
            r"'normal/img_0001.png'",
        ),
        (
            ["normal/normal_1.png", "normal/normal_2.png", "epidural/epidural_1.png"],
            r"2 of 3 images would be of one patient, 'normal'",
        ),
        (
            ["normal/EDH_1.png", "epidural/EDH_2.png", "subdural/P1_1.png"],
            r"2 of 3 images would be of one patient, 'EDH'",
        ),
    ],
)
def test_names_without_patients_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    for seed, name in enumerate(names):
        picture(tmp_path / name, seed)
    with pytest.raises(DataError, match=words) as caught:
        six(tmp_path).read(tmp_path)
    assert "data.patient_pattern" in caught.value.remedy
    assert "labels.csv (path,class,patient_id)" in caught.value.remedy
    same = "data.patient_pattern='([^/]+)_[^/_]*$'"  # who chooses the rule is believed
    assert same in caught.value.remedy
    assert len(six(tmp_path, same).read(tmp_path).table) == len(names)


def test_the_rule_that_nobody_chose_is_the_shipped_one() -> None:
    assert compose(["data=six_class"]).data.patient_pattern == NAME_RULE


def test_names_that_merge_patient_ids_are_refused(tmp_path: Path) -> None:
    for k, (folder, who) in enumerate((("normal", "ann"), ("epidural", "bob"), ("normal", "eve"))):
        write_slice(tmp_path / folder / f"{'IM' if k < 2 else 'P3'}_{k}.dcm", 5.0 * k, patient=who, series=f"1.{k}")
    words = (
        r"1 patient has files of several PatientIDs \(0010,0020\); the first is 'IM' with 2, for example "
        r"'bob' in 'epidural/IM_1\.dcm' and 'ann' in 'normal/IM_0\.dcm'"
    )
    with pytest.raises(DataError, match=words) as caught:
        six(tmp_path).read(tmp_path)
    assert caught.value.remedy.startswith("data.patient_pattern=null takes the PatientID")
    assert six(tmp_path, "data.patient_pattern=null").read(tmp_path).table["patient_id"].nunique() == 3
    (note,) = six(tmp_path, "data.patient_pattern='([^/]+)_[^/_]*$'").read(tmp_path).notes
    assert note.startswith("1 patient has files of several PatientIDs")


def test_dicom_without_patient_ids_goes_by_its_name(tmp_path: Path) -> None:
    for k, folder in enumerate(("normal", "epidural", "normal")):
        write_slice(tmp_path / folder / f"P{k // 2}_{k}.dcm", 5.0 * k, patient="", series=f"1.{k}")
    manifest = six(tmp_path).read(tmp_path)
    assert manifest.table["patient_id"].tolist() == ["P0", "P0", "P1"]
    assert manifest.notes == ()


def test_an_empty_column_of_patients_does_not_fall_back_on_names(tmp_path: Path) -> None:
    for k in range(2):
        picture(tmp_path / "img" / f"x_{k}.png", k)
    table = tmp_path / "labels.csv"
    table.write_text("path,class,patient_id\nimg/x_0.png,normal,\nimg/x_1.png,EDH,\n")
    with pytest.raises(DataError, match=r"labels\.csv: patient_id is empty in all 2 rows"):
        six(tmp_path).read(tmp_path)
    table.write_text("path,class,patient_id\nimg/x_0.png,normal,\nimg/x_1.png,EDH,\nimg/gone.png,SAH,eve\n")
    with pytest.raises(DataError, match=r"no patient: patient_id is empty in labels\.csv \(2 times") as caught:
        six(tmp_path).read(tmp_path)
    assert caught.value.remedy.startswith("name the patients in labels.csv")


def test_index_names_the_task_and_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "data=six_class", f"data.root={folders(tmp_path / 'set')}"]) == 0
    assert (
        "to train on it, use task=six_class loss=cross_entropy (task=hemorrhage wants hemorrhage, which it does "
        "not have)"
    ) in capsys.readouterr().out
