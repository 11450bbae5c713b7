"""Several data sets as one: common labels, ids of their own, one input, sampling by part, and one part left out."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import hemlearn
from hemlearn.config.compose import compose
from hemlearn.config.identity import result_keys
from hemlearn.config.schema import LossConfig
from hemlearn.data.batches import EpochSampler
from hemlearn.datamodules import CTICHDataModule, HeadCTDataModule, MultiDataModule
from hemlearn.models.losses import build_loss
from hemlearn.reading.overlap import find_overlap, own_data
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import ConfigError, DataError, RunError, SplitError
from hemlearn.util.privacy import Pseudonyms
from tests.datamodules.slices import write_volume
from tests.datamodules.test_ct_ich import write_labels, write_picture
from tests.datamodules.test_datamodules import head_ct_folder

MAP = {"hemorrhage": "any"}
HEADS = "data.parts.head_ct={labels: {hemorrhage: any}}"
TWO = ("data=multi", "task.labels=[any]", "data.parts.ct_ich.root=null", HEADS)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twenty pictures as Head-CT, four patients of three slices as CT-ICH, two volumes in HU with labels of series."""
    base = tmp_path_factory.mktemp("parts")
    ich, table = base / "ich", base / "table"
    slices = [(49 + p, k, "Epidural" if p % 2 and k == 2 else "") for p in range(4) for k in (1, 2, 3)]
    write_labels(ich / "hemorrhage_diagnosis.csv", slices)
    for patient, number, _ in slices:
        write_picture(ich / "Patients_CT" / f"{patient:03d}" / "brain" / f"{number}.jpg", 100 * patient + number)
    for name, spacing in (("p1", 5.0), ("p2", 4.0)):
        write_volume(table / f"{name}.nii", 3, spacing=spacing)
    (table / "labels.csv").write_text("path,patient_id,bleed,age\np1.nii,049,1,\np2.nii,2,0,44\n")
    return {"head_ct": head_ct_folder(base / "heads"), "ct_ich": ich, "table": table}


def made(roots: dict[str, Path], *, map_: Any = MAP, **options: Any) -> MultiDataModule:
    parts = {"head_ct": {"root": roots["head_ct"], "labels": map_}, "ct_ich": {"root": roots["ct_ich"]}}
    return MultiDataModule(parts, **{"labels": ["any"], "image_size": 32, "batch_size": 4} | options)


def test_labels_ids_and_covariates_of_all_parts(roots: dict[str, Path]) -> None:
    data = made(roots, labels=["epidural", "any"])
    table = data.manifest.table
    inside = {name: (table["covariate_part"] == name).to_numpy() for name in ("head_ct", "ct_ich")}
    assert {name: int(rows.sum()) for name, rows in inside.items()} == {"head_ct": 20, "ct_ich": 12}
    for column in ("slice_id", "patient_id", "series_id", "study_id"):
        assert all((table.loc[rows, column].str.startswith(f"{name}/")).all() for name, rows in inside.items())
    own = HeadCTDataModule(roots["head_ct"], image_size=32)
    np.testing.assert_array_equal(data.labels[inside["head_ct"], 1], own.labels[:, 0])
    assert np.isnan(data.labels[inside["head_ct"], 0]).all()
    assert int(np.nansum(data.labels[inside["ct_ich"], 0])) == 2
    assert list(data.manifest.covariates["part"].unique()) == ["head_ct", "ct_ich"]
    told = "part head_ct: data=head_ct, 20 slices, each picture taken for a patient; unknown there: epidural"
    assert any(note.startswith(told) for note in data.manifest.notes)
    assert any(note.startswith("head_ct: no patient ids: each of 20 images") for note in data.manifest.notes)
    image = data.store.array[np.flatnonzero(inside["head_ct"])[3]]
    np.testing.assert_array_equal(image, own.store.array[3])
    # An unknown label adds nothing to the loss, whatever is predicted.
    loss = build_loss(LossConfig(name="focal"), labels=["a", "b"], kind="multilabel", positives=None, negatives=None)
    target = torch.tensor([[torch.nan, 1.0]])
    assert loss(torch.tensor([[9.0, 0.5]]), target) == loss(torch.tensor([[-9.0, 0.5]]), target)


def test_a_label_takes_the_name_of_one_that_is_left_out(roots: dict[str, Path]) -> None:
    parts = {"head_ct": {"root": roots["head_ct"], "labels": MAP}}
    parts["ct_ich"] = {"root": roots["ct_ich"], "labels": {"any": None, "epidural": "any"}}
    data = MultiDataModule(parts, labels=["any"], image_size=32)
    table = data.manifest.table
    assert table.columns.is_unique
    own = table.loc[table["covariate_part"] == "ct_ich", "any"]
    assert sorted(own) == [0.0] * 10 + [1.0] * 2


def test_what_parts_say_of_their_ids_is_hidden_too(roots: dict[str, Path], tmp_path: Path) -> None:
    names = Pseudonyms(tmp_path / "run")
    names.learn_manifest(made(roots).manifest)
    told = names.text("ct_ich: patient 049 is odd, and patient ct_ich/050 too")
    assert not re.search(r"\b(049|050)\b", told), told  # a pseudonym may hold such digits


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=dicom", "data.root=.", "data.labels=/srv/x.csv", "data.label_key=PatientID"], "data.labels=/srv/x.csv"),
        (
            [*TWO, "data.parts.mine={data: dicom, root: ., label_file: /srv/x.csv, label_key: PatientID}"],
            "data.parts.mine.label_file=/srv/x.csv",
        ),
    ],
)
def test_a_strangers_run_opens_no_table_of_labels(words: list[str], told: str) -> None:
    run: Any = SimpleNamespace(config=compose(words), trust=False, ours=False, path="run")
    with pytest.raises(RunError, match="made elsewhere, and its data would be read at") as error:
        own_data(run, None)
    assert told in str(error.value)


def test_a_part_is_known_again_when_a_run_is_evaluated_on_it_alone(roots: dict[str, Path]) -> None:
    data = made(roots, split=hemlearn.LeaveOneOut(left_out="ct_ich", val_fraction=0.2))
    told = {"data": {"source": "multi", "contents": data.contents}}
    whole = data.manifest.checksum
    run: Any = SimpleNamespace(provenance=told, split=data.split, checksum=lambda name: whole)
    trained = HeadCTDataModule(roots["head_ct"], image_size=32).manifest
    found = find_overlap(run, trained, None, "none")
    assert found.patients == set(trained.table["patient_id"])
    assert found.findings == [
        "it is one of the data sets the run was made from (20 of its patients trained or validated it)"
    ]
    left_out = find_overlap(run, data.parts["ct_ich"].manifest, None, "none")
    assert (left_out.patients, left_out.findings) == (set(), [])


def test_a_run_is_known_again_when_it_is_evaluated_on_several_sets_that_hold_its_own(roots: dict[str, Path]) -> None:
    alone, data = CTICHDataModule(roots["ct_ich"], image_size=32).manifest, made(roots)
    whole, learnt = alone.checksum, sorted(alone.table["patient_id"].unique())[:2]
    sides = pd.DataFrame({"patient_id": [*learnt, "051", "052"], "split": ["train", "val", "test", "test"]})
    run: Any = SimpleNamespace(
        provenance={"data": {"source": "ct_ich"}},
        split=SimpleNamespace(leaky=False, assignment=sides),
        checksum=lambda name: whole,
    )
    sets: dict[str, Any] = {"contents": data.contents, "sources": data.sources}
    found = find_overlap(run, data.manifest, None, "none", **sets)
    assert found.patients == {f"ct_ich/{name}" for name in learnt}
    assert found.findings == [
        "its part 'ct_ich' is the data set the run was made from (2 of its patients trained or validated it)"
    ]
    whole = "another release of the same patients"
    found = find_overlap(run, data.manifest, None, "none", **sets)
    assert found.patients == {f"ct_ich/{name}" for name in learnt}
    (told,) = found.findings
    assert told.startswith("2 patient ids stand in the run's training or validation too, the first 'ct_ich/049'")


def test_the_same_from_a_command_line_and_its_hash_knows_no_place(roots: dict[str, Path]) -> None:
    words = ["data=multi", "task.labels=[any]", "data.image_size=32", "data.fit=letterbox"]
    words += [f"data.parts.head_ct={{root: {roots['head_ct']}, labels: {{hemorrhage: any}}}}"]
    config = compose([*words, f"data.parts.ct_ich.root={roots['ct_ich']}"])
    assert build_datamodule(config).manifest.checksum == made(roots).manifest.checksum
    assert str(roots["head_ct"]) not in str(result_keys(config))
    assert "part" not in str(result_keys(compose([])))


def test_pictures_beside_hu_are_all_shown_in_the_brain_window(roots: dict[str, Path]) -> None:
    table = {"data": "table", "manifest": roots["table"] / "labels.csv", "labels": {"bleed": "any"}}
    parts = {"ct_ich": {"root": roots["ct_ich"]}, "ours": table}
    with pytest.raises(DataError, match=r"task\.level=slice: labels of slices beside labels of whole"):
        _ = MultiDataModule(parts, labels=["any"], level="slice", image_size=32).manifest
    data = MultiDataModule(parts, labels=["any"], level="series", image_size=32)
    assert data.unit == "display"
    assert data.manifest.label_level == "series"
    table = data.manifest.table
    series = table.groupby("patient_id")["any"].agg(["min", "max"])
    assert series.loc["ct_ich/050"].tolist() == [1, 1]  # one of its slices has it
    assert series.loc["ct_ich/049"].tolist() == [0, 0]
    assert set(table["patient_id"]) >= {"ct_ich/049", "ours/049"}  # two people
    hu = MultiDataModule({"a": table_part(roots, "p1"), "b": table_part(roots, "p2")}, level="series", image_size=32)
    assert hu.unit == "HU"
    rows = (table["covariate_part"] == "ours").to_numpy()
    expected = np.clip(hu.store.array.astype(float) / 80 * 255, 0, 255)
    np.testing.assert_allclose(data.store.array[rows], expected, atol=2)


def table_part(roots: dict[str, Path], name: str) -> dict[str, Any]:
    file = roots["table"] / f"{name}.csv"
    rows = pd.read_csv(roots["table"] / "labels.csv", dtype=str)
    rows[rows["path"] == f"{name}.nii"].to_csv(file, index=False)
    return {"data": "table", "manifest": file, "labels": {"bleed": "any"}}


@pytest.mark.parametrize(
    ("weights", "share"), [("proportional", 20 / 32), ("equal", 0.5), ({"head_ct": 1, "ct_ich": 3}, 0.25)]
)
def test_parts_are_drawn_as_asked(roots: dict[str, Path], weights: Any, share: float) -> None:
    data = made(roots, part_weights=weights)
    every = data.all_slices()
    drawn: list[int] = []
    for epoch in range(40):
        sampler = EpochSampler(len(every), 0, data.draw_weights(every))
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    owner = data.manifest.table["covariate_part"].to_numpy()
    assert abs((owner[drawn] == "head_ct").mean() - share) < 0.05


def test_the_part_left_out_is_tested_alone_and_its_copies_with_it(roots: dict[str, Path], tmp_path: Path) -> None:
    data = made(roots, split=hemlearn.LeaveOneOut(left_out="ct_ich", val_fraction=0.2))
    sides = data.split.apply(data.manifest).groupby(data.manifest.table["covariate_part"]).agg(set)
    assert sides["ct_ich"] == {"test"}
    assert sides["head_ct"] == {"train", "val"}
    heads = head_ct_folder(tmp_path / "heads")
    with Image.open(roots["ct_ich"] / "Patients_CT/049/brain/1.jpg") as image:
        image.save(heads / "head_ct/head_ct/004.png")
    copied = made(roots | {"head_ct": heads}, split=hemlearn.LeaveOneOut(left_out="ct_ich"))
    tested = set(copied.split.assignment.query("split == 'test'")["patient_id"])
    assert {name for name in tested if not name.startswith("ct_ich/")} == {"head_ct/004"}


@pytest.mark.parametrize(
    ("labels", "left_out", "words"),
    [(["any"], "ctich", ["split.left_out=ctich: no part", "did you mean 'ct_ich'", "head_ct"])],
)
def test_a_part_that_cannot_be_left_out(
    roots: dict[str, Path], labels: list[str], left_out: str, words: list[str]
) -> None:
    with pytest.raises(SplitError) as told:
        _ = made(roots, labels=labels, split=hemlearn.LeaveOneOut(left_out=left_out)).split
    assert all(word in str(told.value) for word in words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"map_": None}, ["data.parts.head_ct shares no label", "data.parts.head_ct.labels={hemorrhage: any}"]),
        ({"map_": {"hemorhage": "any"}}, ["has no label 'hemorhage'", "did you mean 'hemorrhage'"]),
        ({"map_": {"hemorrhage": "ayn"}}, ["shares no label", "{hemorrhage: any}"]),
        ({"map_": {"hemorrhage": ""}}, ["data.parts.head_ct.labels", "{OWN_LABEL: COMMON_LABEL}"]),
        ({"labels": ["epidural"]}, ["data.parts.head_ct shares no label", "task.labels=['epidural']"]),
        ({"part_weights": {"head_ct": 1}}, ["data.part_weights", "no weight of ct_ich"]),
        ({"part_weights": {"head_ct": 0, "ct_ich": 1}}, ["data.part_weights.head_ct=0", "above 0"]),
        ({"part_weights": "even"}, ["data.part_weights='even'", "proportional, equal"]),
        (
            {"labels": ["any", "epidural"], "split": hemlearn.LeaveOneOut(left_out="ct_ich")},
            ["split.left_out=ct_ich: no other part has 'epidural'", "task.labels=[any]"],
        ),
    ],
)
def test_bad_mappings_and_weights_before_data_are_read(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ConfigError, SplitError)) as told:
        made({"head_ct": Path("nowhere"), "ct_ich": Path("nowhere else")}, **changes)
    assert all(word in str(told.value) for word in words), str(told.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.parts.mine.root=x"], "data.parts.mine.data='mine': no data set of this name"),
        (["data.parts.ct_ich.data=ct_ihc"], "did you mean 'ct_ich'"),
        (["data.parts.ct_ich.rot=x"], "data.parts.ct_ich.rot='x': a part has no such key; did you mean 'root'?: data"),
        (["data.parts.head_ct.band=[0.2,0.5]"], "data.parts.head_ct.band=[0.2, 0.5]: data=head_ct has single slices"),
        (["data.parts.head_ct.root=/x", "data.parts.ct_ich.root=/x/"], "the images of part 'ct_ich' once more"),
        (["data.parts.two={data: ct_ich}"], "data.parts.two.phantom_seed=None: the images of part 'ct_ich' once more"),
        (["~data.parts.ct_ich"], "name at least two data sets, each by data.parts.ct_ich.root=DIR"),
        (["split=leave_one_out"], "split.left_out=NAME"),
        (["split=leave_one_out", "split.left_out=rsna"], "split.left_out='rsna': no part of this name"),
        (["data=head_ct", "split=leave_one_out", "split.left_out=x"], "data=head_ct has no parts"),
        (["sequence=lstm", "data.part_weights=equal"], "data.part_weights='equal': a sequence model"),
    ],
)
def test_bad_parts_on_the_command_line(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([*(TWO if "data=head_ct" not in words else TWO[1:2]), *words])
    assert told in str(error.value), str(error.value)


def test_there_are_no_parts_but_those_that_are_named() -> None:
    with pytest.raises(ConfigError) as error:
        compose(["data=multi", "task.labels=[any]"])
    assert "data.parts={}: name at least two data sets, each by data.parts.ct_ich.root=DIR" in str(error.value)
    mine = [f"data.parts.{name}={{data: table, manifest: {name}.csv}}" for name in ("ours", "theirs")]
    assert list(compose(["data=multi", "task.labels=[any]", *mine]).data.parts) == ["ours", "theirs"]
    assert list(compose(["experiment=transfer"]).data.parts) == ["head_ct", "ct_ich", "phantom"]
