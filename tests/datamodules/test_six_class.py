"""Class folders and tables of single slices, and their faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hemlearn.config import compose
from hemlearn.datamodules import build_datamodule
from hemlearn.datamodules.six_class import CLASSES, class_of
from hemlearn.errors import DataError
from tests.datamodules.slices import reasons, write_slice


def six(root: Path, *overrides: str) -> Any:
    return build_datamodule(compose(["data=six_class", f"data.root={root}", "task=six_class", "loss=cross_entropy",
                                     *overrides]))  # fmt: skip


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
    assert reasons(data.manifest) == {"normal/stray.png": "no patient: data.patient_pattern="
                                      f"{data.config.data.patient_pattern!r} does not fit the path"}  # fmt: skip


@pytest.mark.parametrize(("word", "name"), [
    ("Epidural", "epidural"), ("SDH", "subdural"), ("Intra-Ventricular", "intraventricular"), ("sah", "subarachnoid"),
    ("subdural hemorrhage", "subdural"), ("tumour", None), ("", None),
])  # fmt: skip
def test_words_for_classes(word: str, name: str | None) -> None:
    assert class_of(word) == name


def test_a_misspelt_folder_is_named_with_the_nearest_class(tmp_path: Path) -> None:
    folders(tmp_path)
    picture(tmp_path / "subdurall" / "P9_1.png", 77)
    with pytest.raises(DataError, match=r"subdurall: no class; did you mean 'subdural'\? \(1 images\)"):
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
    with pytest.raises(DataError, match=r"one image in two classes: 'normal/P7_1.png' \(normal\) and "
                                        r"'subdural/P2_0.png' \(subdural\)"):  # fmt: skip
        six(tmp_path).read(tmp_path)


def test_a_table_names_classes_and_patients(tmp_path: Path) -> None:
    for k in range(4):
        picture(tmp_path / "img" / f"x{k}.png", k)
    (tmp_path / "labels.csv").write_text("path,class,patient_id\nimg/x0.png,normal,ann\nimg/x1.png,EDH,bob\n"
                                         "img/x2.png,SAH,\nimg/x9.png,SAH,eve\n")  # fmt: skip
    manifest = six(tmp_path).read(tmp_path)
    assert manifest.table.set_index("slice_id")["patient_id"].to_dict() == {"img/x0.png": "ann", "img/x1.png": "bob"}
    assert manifest.table["epidural"].tolist() == [0, 1]
    found = reasons(manifest)
    assert found["img/x2.png"] == "no patient: patient_id is empty in labels.csv"
    assert found["img/x3.png"] == "image without label"
    assert found["img/x9.png"] == "label without image: no such file"


@pytest.mark.parametrize(("text", "words"), [
    ("path,class\nimg/x0.png,epidurl\n", r"row 2: class='epidurl' is no class; did you mean 'epidural'"),
    ("path,class\nimg/x0.png,normal\nimg/x0.png,EDH\n", r"'img/x0.png' has two labels: class='normal' in row 2, "
                                                         "class='epidural' in row 3"),
    ("path,klass\nimg/x0.png,normal\n", r"no column 'class'"),
    ("path,class\nimg/y0.png,normal\n", r"none of its 1 files exists, for example 'img/y0.png'"),
])  # fmt: skip
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
        ["epidural/b.dcm", "ann", 0.0], ["normal/a.dcm", "ann", 5.0]]  # fmt: skip
    assert reasons(manifest) == {"subdural/c.dcm": "modality MR: six_class is CT"}
    picture(tmp_path / "normal" / "d.png", 1)
    with pytest.raises(DataError, match=r"nothing says whose image 'normal/d.png' is"):
        six(tmp_path, "data.patient_pattern=null").read(tmp_path)


def test_volumes_are_refused(tmp_path: Path) -> None:
    from tests.datamodules.slices import write_volume

    write_volume(tmp_path / "normal" / "P1_1.nii.gz", 3)
    with pytest.raises(DataError, match=r"P1_1\.nii\.gz: a volume"):
        six(tmp_path).read(tmp_path)
