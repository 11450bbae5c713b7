"""Data modules: files in, batches out, with the faults of real folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.config.compose import compose
from hemlearn.data.batches import EpochSampler, SliceDataset, balanced_weights, neighbour_stack
from hemlearn.data.manifest import Manifest
from hemlearn.datamodules.base import tasks_of
from hemlearn.datamodules.rsna import SUBTYPES
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import ConfigError, DataError
from tests.data.heads import bare_manifest


def head_ct_folder(root: Path, count: int = 20, labels: str | None = None) -> Path:
    images = root / "head_ct" / "head_ct"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(images / f"{i:03}.png")
    text = labels or "id, hemorrhage\n" + "".join(f"{i},{i % 2}\n" for i in range(count))
    (root / "labels.csv").write_text(text)
    return root


def module(root: Path, *overrides: str):  # type: ignore[no-untyped-def]
    return build_datamodule(compose([f"data.root={root}", "data.image_size=32", "data.batch_size=4", *overrides]))


def test_batches_carry_pixels_labels_and_rows(tmp_path: Path) -> None:
    data = module(head_ct_folder(tmp_path / "set"))
    seen = []
    for part in ("train", "val", "test"):
        for batch in data.eval_dataloader(part):
            assert batch["image"].shape[1:] == (1, 32, 32)
            rows = batch["index"].numpy()
            expected = data.manifest.table["hemorrhage"].to_numpy()[rows]
            np.testing.assert_array_equal(batch["label"][:, 0].numpy(), expected)
            np.testing.assert_array_equal(batch["image"][:, 0].numpy(), data.store.array[rows])
            seen += rows.tolist()
    assert sorted(seen) == list(range(20))


def test_training_order_depends_on_seed_and_epoch_only(tmp_path: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(12, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(0, 0)), tuple(order(0, 1)), tuple(order(1, 0))}) == 3
    assert sorted(order(5, 2)) == list(range(12))


def test_balanced_sampling_draws_classes_equally() -> None:
    labels = np.array([[1.0]] * 10 + [[0.0]] * 90, dtype=np.float32)
    sampler = EpochSampler(100, 0, balanced_weights(labels))
    drawn = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    assert 0.45 < labels[drawn, 0].mean() < 0.55


def test_processes_take_together_what_one_would_take_alone() -> None:
    weights = balanced_weights(np.array([[0.0]] * 90 + [[1.0]] * 11, dtype=np.float32))
    drawn = []
    for epoch in (0, 1):
        one, *two = (EpochSampler(101, 7, weights, share) for share in ((0, 1), (0, 2), (1, 2)))
        for sampler in (one, *two):
            sampler.set_epoch(epoch)
        alone, shares = list(one), [list(sampler) for sampler in two]
        assert [item for pair in zip(*shares, strict=True) for item in pair] == [*alone, alone[0]]
        drawn.append(sorted(alone))
    assert drawn[0] != drawn[1]  # other slices in every epoch


def test_neighbours_follow_position_and_repeat_at_the_edges() -> None:
    series = np.array(["b", "a", "a", "a"], dtype=object)
    z = np.array([0.0, 10.0, 0.0, 5.0])
    stack = neighbour_stack(series, z, np.array([7, 1, 2, 3]), 1)
    assert stack.tolist() == [[7, 7, 7], [3, 1, 1], [2, 2, 3], [2, 3, 1]]


def test_stack_reads_neighbours_as_slices() -> None:
    array = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    data = SliceDataset(array, np.array([[0, 0, 1], [2, 3, 3]]), np.zeros((2, 1), np.float32), np.array([0, 3]))
    assert data[1]["image"][:, 0, 0].tolist() == [2, 3, 3]


def test_slices_without_any_known_label_are_not_used(tmp_path: Path) -> None:
    text = "id, hemorrhage\n" + "".join(f"{i},{'' if i < 4 else i % 2}\n" for i in range(24))
    data = module(head_ct_folder(tmp_path / "set", 24, text))
    used = {int(row) for part in ("train", "val", "test") for row in data.rows(part)}
    assert used == set(range(4, 24))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("id, hemorage\n0,1\n", ("no column 'hemorrhage'", "hemorage")),
        ("id, hemorrhage\n0,1\nx1,0\n", ("row 3", "'x1'")),
        ("id, hemorrhage\n0,1\n1,2\n", ("set/labels.csv: label 'hemorrhage' of row 3 ('001') is '2'",)),
        ("id, hemorrhage\n0,1\n0,1\n", ("set/labels.csv: duplicate id", "'000' in rows 2, 3")),
    ],
)
def test_bad_label_files_name_the_place(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        _ = module(head_ct_folder(tmp_path / "set", 4, text)).manifest
    for part in (*parts, "Fix:"):
        assert part in str(caught.value)


def test_missing_and_stray_images_are_recorded(tmp_path: Path) -> None:
    root = head_ct_folder(tmp_path / "set", 12)
    (root / "head_ct" / "head_ct" / "003.png").unlink()
    Image.new("L", (40, 40)).save(root / "head_ct" / "head_ct" / "099.png")
    skipped = module(root).manifest.skipped
    assert len(skipped) == 2
    assert skipped["reason"].str.contains("label without image").any()
    assert skipped["reason"].str.contains("image without label").any()


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_root_that_is_no_data_set(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("")
    elif kind == "empty":
        root.mkdir()
    with pytest.raises(DataError, match="root"):
        _ = module(root).manifest


def test_unknown_data_module_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="head_ct"):
        build_datamodule(compose(["data.name=head_tc"]))


def table_csv(folder: Path, separator: str = ",") -> Path:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(24):
        name = f"p{i // 2}_{i}.{'jpg' if i % 2 else 'png'}"
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / name)
        rows.append((name, f"p{i // 2}", int(i % 4 < 2), int(i % 4 >= 2)))
    file = folder / "my.csv"
    pd.DataFrame(rows, columns=["file", "who", "bleed", "clear"]).to_csv(file, index=False, sep=separator)
    return file


@pytest.mark.parametrize("separator", [",", ";"])
def test_table_reads_any_csv_and_keeps_patients_together(tmp_path: Path, separator: str) -> None:
    data = build_datamodule(
        compose(
            [
                "data=table",
                f"data.manifest={table_csv(tmp_path, separator)}",
                "data.path_column=file",
                "data.patient_column=who",
                "data.image_size=32",
                "task.kind=multilabel",
                "task.labels=[bleed,clear]",
            ]
        )
    )
    assert len(data.manifest.table) == 24
    parts = data.split.apply(data.manifest)
    assert parts.groupby(data.manifest.table["patient_id"]).nunique().eq(1).all()
    assert data.labels.shape == (24, 2)


def test_table_names_a_missing_column_and_its_key(tmp_path: Path) -> None:
    file = table_csv(tmp_path)
    data = build_datamodule(
        compose(
            [
                "data=table",
                f"data.manifest={file}",
                "data.path_column=fil",
                "data.patient_column=who",
                "task.labels=[bleed]",
            ]
        )
    )
    with pytest.raises(DataError, match=r"no column 'fil' \(data\.path_column\); did you mean 'file'"):
        _ = data.manifest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,patient_id,bleed\na.png,p,1\nb.png,q,2\n", r"label 'bleed' of row 3 \('b\.png'\) is '2'"),
        ("path,patient_id,bleed\n\na.png,p,1\n\nb.png,q,2\n", r"label 'bleed' of row 5 \('b\.png'\) is '2'"),
        ("path,patient_id,bleed\na.png,p,1\n\na.png,q,0\n", r"duplicate id: .*'a\.png' in rows 2, 4"),
        ("path,patient_id,bleed\n\na.dcm,p,1\nb.dcm,,0\n", r"patient_id is empty in row 4 \(1 row\)"),
        ("path,patient_id,bleed\na.png,p,1\na.png,q,0\n", r"duplicate id: .*'a\.png' in rows 2, 3"),
        ("path,patient_id,bleed\na.dcm,p,1\na.dcm,q,0\n", r"duplicate id: .*'a\.dcm' in rows 2, 3"),
        ("path,patient_id,bleed\na.dcm,p,1\nb.dcm,,0\n", r"patient_id is empty in row 3 \(1 row\)"),
        ("path,patient_id,bleed,z_mm\na.dcm,p,1,top\n", r"z_mm of row 2 \('a\.dcm'\) is 'top'"),
        ("path,patient_id,bleed,modality\na.png,p,1,PET\n", r"modality of row 2 \('a\.png'\) is 'PET'"),
    ],
)
def test_table_faults_name_the_file_and_the_row(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "my.csv"
    file.write_text(text)
    data = build_datamodule(compose(["data=table", f"data.manifest={file}", "task.labels=[bleed]"]))
    with pytest.raises(DataError, match=rf"my\.csv: {words}"):
        _ = data.manifest


def test_a_task_without_labels_in_the_data_names_one_that_has(tmp_path: Path) -> None:
    folders = {"normal": 0, "epidural": 1}
    for name, seed in folders.items():
        (tmp_path / name).mkdir()
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / f"P{seed}_1.png")
    data = build_datamodule(compose(["data=six_class", f"data.root={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"\['hemorrhage'\]: not among the labels") as caught:
        _ = data.labels
    assert caught.value.remedy == "use task=six_class loss=cross_entropy"


@pytest.mark.parametrize(
    ("labels", "modality", "level", "words"),
    [
        (("none", "left", "right"), "CT", "series", ["task=basal_ganglia loss=cross_entropy"]),
        (("none", "left", "right"), "CT", "slice", ["task=basal_ganglia task.level=slice loss=cross_entropy"]),
        (("hydrocephalus",), "MR", "series", ["task=hydrocephalus channels=mr"]),
        ((*SUBTYPES, "any"), "CT", "series", ["task=subtypes task.level=series"]),
        ((*SUBTYPES, "any", "fracture"), "CT", "slice", ["task=subtypes"]),
        (("fracture",), "CT", "slice", []),
    ],
)
def test_tasks_that_fit_labels(labels: tuple[str, ...], modality: str, level: str, words: list[str]) -> None:
    table = bare_manifest(pd.DataFrame(np.nan, index=range(2), columns=list(labels)), ["a", "b"]).table
    manifest = Manifest(
        table.assign(modality=modality),
        pd.DataFrame(columns=["item", "reason"]),
        labels,
        Path("/nowhere"),
        "x",
        label_level=level,
    )
    assert tasks_of(manifest) == words


def test_multiclass_labels_must_be_one_of(tmp_path: Path) -> None:
    file = table_csv(tmp_path)
    table = pd.read_csv(file)
    table.loc[5, ["bleed", "clear"]] = 1
    table.to_csv(file, index=False)
    data = build_datamodule(
        compose(
            [
                "data=table",
                f"data.manifest={file}",
                "data.path_column=file",
                "data.patient_column=who",
                "task.kind=multiclass",
                "loss=cross_entropy",
                "task.labels=[bleed,clear]",
            ]
        )
    )
    with pytest.raises(DataError, match=r"exactly one class; the first is 'p2_5.jpg'"):
        _ = data.labels


def test_multiclass_row_with_its_class_open_is_left_out_and_one_hit_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = table_csv(tmp_path)
    table = pd.read_csv(file).astype({"bleed": object, "clear": object})
    table.loc[table["bleed"] == 1, "clear"] = None  # one 1, the other empty: decided
    table.loc[3, ["bleed", "clear"]] = [0, None]  # no 1, one empty: open
    table.to_csv(file, index=False)
    data = build_datamodule(
        compose(
            [
                "data=table",
                f"data.manifest={file}",
                "data.path_column=file",
                "data.patient_column=who",
                "task.kind=multiclass",
                "loss=cross_entropy",
                "task.labels=[bleed,clear]",
            ]
        )
    )
    labels = data.labels
    assert np.isnan(labels[3]).all()
    known = np.delete(labels, 3, axis=0)
    assert (known.sum(axis=1) == 1).all()
    assert "1 slice is left out" in caplog.text


def test_neighbours_refuse_a_series_with_half_its_positions(tmp_path: Path) -> None:
    file = table_csv(tmp_path)
    table = pd.read_csv(file).assign(z_mm=[float(i) if i != 7 else None for i in range(24)])
    table.to_csv(file, index=False)
    columns = ["data.path_column=file", "data.patient_column=who", "task.labels=[bleed]"]
    data = build_datamodule(compose(["data=table", f"data.manifest={file}", "channels=adjacent", *columns]))
    with pytest.raises(DataError, match="'p3'"):
        data.dataset("train")
