"""Data modules in a script of one's own: real arguments, any LightningModule, and a stranger's data sets and splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

from hemlearn.config.compose import compose
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.splits import Split
from hemlearn.datamodules import DATAMODULES, HeadCTDataModule, SliceDataModule, VolumeDataModule, datamodule_class
from hemlearn.datamodules.table import TableDataModule
from hemlearn.training.build import build_datamodule
from hemlearn.util.errors import ConfigError, DataError, SplitError
from tests.datamodules.test_datamodules import head_ct_folder


class Linear(pl.LightningModule):
    """The smallest task: it says what it asks of its data."""

    def __init__(self, labels: Sequence[str] = ("hemorrhage",), unit: str | None = None) -> None:
        super().__init__()
        self.labels, self.kind, self.level, self.unit = list(labels), "binary", "slice", unit
        self.layer = nn.LazyLinear(len(labels))
        self.seen: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image.float().flatten(1) / 255)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self(batch["image"]), batch["label"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch["image"])

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self(batch["image"]).sigmoid(), batch["index"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self(torch.zeros(1, 1, 32, 32))
        return torch.optim.SGD(self.parameters(), 1e-3)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet, **options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen patients of two pictures each, with ``mine.csv``."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(32):
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(root / f"{i:02d}.png")
        rows.append((f"s{i:02d}", f"p{i // 2:02d}", f"{i:02d}.png", i // 2 % 2))
    pd.DataFrame(rows, columns=["slice_id", "patient_id", "path", "bleed"]).to_csv(root / "mine.csv", index=False)
    return root


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures in the layout of Head-CT."""
    return head_ct_folder(tmp_path_factory.mktemp("heads") / "set", 40)


class Mine(SliceDataModule):
    """A stranger's data set: one method."""

    name = "mine"

    def __init__(self, root: str | Path | None = None, *, scale: int = 1, **options: Any) -> None:
        super().__init__(root, **options)
        self.scale = scale

    def read(self, root: Path) -> Manifest:
        return self.build(pd.read_csv(root / "mine.csv", dtype=str), root, labels=["bleed"])


class Raising(Mine):
    """Its method, or its constructor, is wrong."""

    def __init__(self, root: str | Path | None = None, *, early: bool = False, **options: Any) -> None:
        if early:
            raise KeyError("early")
        super().__init__(root, **options)

    def read(self, root: Path) -> Manifest:
        return pd.read_csv(root / "mine.csv")["bled"]


class Foreign(pl.LightningDataModule):
    """A stranger's data module of another kind, which has a manifest."""

    def __init__(self, root: str, halves: bool = False) -> None:
        super().__init__()
        self.root, self.halves = Path(root), halves
        self.manifest: Any = None
        self.split: Split | None = None

    def setup(self, stage: str | None = None) -> None:
        rows = pd.read_csv(self.root / "mine.csv", dtype=str)
        self.manifest = build_manifest(rows, root=self.root, labels=["bleed"], source="foreign")
        if self.halves:
            sides = ["train", "test", "val"] * 11
            self.split = Split(pd.DataFrame({"slice_id": rows["slice_id"], "split": sides[: len(rows)]}))


def test_a_plain_trainer_fits_validates_tests_and_predicts(heads: Path) -> None:
    data = HeadCTDataModule(heads, image_size=32, batch_size=16)
    task = Linear()
    fit = trainer()
    fit.fit(task, datamodule=data)
    fit.validate(task, datamodule=data, verbose=False)
    fit.test(task, datamodule=data, verbose=False)
    found = fit.predict(task, datamodule=data)
    assert found is not None
    index = torch.cat([rows for _, rows in found])
    assert index.tolist() == list(range(len(data.manifest.table)))
    assert data.label_names == ["hemorrhage"]
    assert (data.kind, data.level, data.neighbours, data.unit) == ("binary", "slice", 0, "display")
    ones, zeros = data.label_counts("train")
    assert ones[0] + zeros[0] == len(data.rows("train")) == len(data.dataset("train"))


def test_what_is_left_open_follows_the_task_and_what_is_given_stays(pictures: Path) -> None:
    data = TableDataModule(pictures / "mine.csv", image_size=32)
    assert data.label_names == ["bleed"]  # the only column of zeros and ones
    assert data.level == "slice"
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(labels=["haemorrhage"], unit=None))
    with pytest.raises(DataError, match="no column 'haemorrhage'"):
        data.setup("fit")
    kept = TableDataModule(pictures / "mine.csv", image_size=32, labels=["bleed"])
    kept.trainer = data.trainer
    kept.setup("fit")
    assert kept.label_names == ["bleed"]
    kept.trainer = SimpleNamespace(lightning_module=SimpleNamespace(labels=["a", "b"]))
    with pytest.raises(ConfigError, match="the task has 2"):
        kept.setup("fit")


@pytest.mark.parametrize("name", [name for name in DATAMODULES if name not in ("dicom", "table", "multi")])
def test_every_data_set_is_built_alike_from_python_and_from_the_configuration(name: str) -> None:
    cls, data = datamodule_class(name), build_datamodule(compose([f"data={name}", "seed=3"]))
    assert type(data) is cls
    mine = cls(image_size=data.image_size, batch_size=data.batch_size, phantom_patients=data.phantom_patients, seed=3)
    own = {"_asked", "splitter"}
    assert {k: v for k, v in vars(data).items() if k not in own} == {
        k: v for k, v in vars(mine).items() if k not in own
    }


def test_the_same_batches_as_a_run(heads: Path) -> None:
    given: dict[str, Any] = {"root": str(heads), "image_size": 32, "batch_size": 8}
    run = build_datamodule(compose([*(f"data.{key}={value}" for key, value in given.items()), "seed=3"]))
    mine = HeadCTDataModule(seed=3, **given)
    for theirs, ours in zip(run.train_dataloader(), mine.train_dataloader(), strict=True):
        assert torch.equal(theirs["index"], ours["index"])
        assert torch.equal(theirs["image"], ours["image"])


def test_a_data_set_of_ones_own(pictures: Path) -> None:
    data = Mine(pictures, image_size=32)
    trainer().fit(Linear(["bleed"]), datamodule=data)
    assert data.manifest.source == "mine"
    volumes = VolumeDataModule(Mine(pictures, image_size=32), series_per_batch=4)
    assert [len(loader()) for loader in (volumes.train_dataloader, volumes.test_dataloader)] == [3, 1]
    assert sum(len(batch["lengths"]) for batch in volumes.predict_dataloader()) == 16


def test_it_is_refused_with_a_reason(pictures: Path) -> None:
    class Without(Mine):
        def read(self, root: Path) -> Any:
            return pd.read_csv(root / "mine.csv")

    with pytest.raises(DataError, match=r"Without\.read returned DataFrame, not a hemlearn Manifest"):
        _ = Without(pictures).manifest
    with pytest.raises(DataError, match=r"Raising\.read raised KeyError: 'bled' \(test_in_python\.py, line \d+\)"):
        _ = Raising(pictures).manifest
    with pytest.raises(ConfigError, match=r"\['hemorrhage'\]: not among the labels of data=mine \(bleed\)"):
        trainer().fit(Linear(), datamodule=Mine(pictures, image_size=32))
    with pytest.raises(DataError, match="slices in display, but the network was trained on HU"):
        trainer().test(Linear(["bleed"], unit="HU"), datamodule=Mine(pictures, image_size=32))


class Halves:
    """A stranger's split by slice."""

    def split(self, manifest: Manifest, **_: Any) -> Any:
        sides = ["train", "test", "val"] * len(manifest.table)
        return Split(pd.DataFrame({"slice_id": manifest.table["slice_id"], "split": sides[: len(manifest.table)]}))


class ByPatient(Halves):
    def split(self, manifest: Manifest, **_: Any) -> Any:
        patients = sorted(manifest.table["patient_id"].unique())
        sides = ["train", "test", "val", "train"] * len(patients)
        return Split(pd.DataFrame({"patient_id": patients, "split": sides[: len(patients)]}))


class Lists(Halves):
    def split(self, manifest: Manifest, **_: Any) -> Any:
        return ["train"]


class Forgetful(Halves):
    def split(self, manifest: Manifest, **_: Any) -> Any:
        patients = manifest.table["patient_id"]  # each as often as it has slices
        return Split(pd.DataFrame({"patient_id": patients, "split": "train"}))


class Broken(Halves):
    def split(self, manifest: Manifest, **_: Any) -> Any:
        return manifest.table["folds"]


class Careless(Mine):
    """Makes its split by itself."""

    @property
    def split(self) -> Any:
        return Halves().split(self.manifest)


def test_a_split_of_ones_own_keeps_patients_on_one_side(pictures: Path) -> None:
    data = Mine(pictures, image_size=32, split=ByPatient())
    assert len(data.rows("val")) == 8
    with pytest.raises(SplitError, match=r"patient 'p00'.* stands on two sides"):
        _ = Mine(pictures, split=Halves()).split
    with pytest.raises(SplitError, match=r"Lists\.split returned list, not a Split"):
        _ = Mine(pictures, split=Lists()).split
    with pytest.raises(SplitError, match=r"patient_id 'p00', .* more than once: 'p00' in data row 1 \(train\)"):
        _ = Mine(pictures, split=Forgetful()).split
    with pytest.raises(SplitError, match=r"Broken\.split raised KeyError: 'folds' \(test_in_python\.py, line"):
        _ = Mine(pictures, split=Broken()).split
    with pytest.raises(SplitError, match="stands on two sides"):
        Careless(pictures).setup("fit")
    with pytest.raises(ConfigError, match="split='kfold': no split"):
        Mine(pictures, split="kfold")
    table = data.manifest.table
    for split, problem in ((None, "no patient in train, val"), ("train", "lacks 15 of the data set's patient_ids")):
        given = Split(
            pd.DataFrame({"patient_id": table["patient_id"].unique(), "split": split or "test"})[: 1 if split else 16]
        )
        with pytest.raises(SplitError, match=problem):
            _ = Mine(pictures, split=given).split


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"slice_id": "s00"}, r"column 'slice_id', row 0: 's00' stands in 32 rows"),
        ({"bleed": None}, r"no column 'bleed'; it has slice_id"),
        ({"bleed": 2.0}, r"column 'bleed', row 0 \('s00'\): 2.0"),
        ({"modality": "PET"}, r"column 'modality', row 0 \('s00'\): 'PET'"),
        ({"series_id": "one"}, r"two patients in one series: series_id 'one'"),
        ({"empty": True}, "the manifest has no rows"),
    ],
)
def test_a_manifest_of_ones_own_is_checked(pictures: Path, change: dict[str, Any], problem: str) -> None:
    class Changed(Mine):
        def read(self, root: Path) -> Manifest:
            made = super().read(root)
            table = made.table.assign(**change).drop(columns=[key for key, value in change.items() if value is None])
            return replace(made, table=table[:0] if "empty" in change else table)

    with pytest.raises(DataError, match=problem) as caught:
        Changed(pictures, image_size=32, cache_dir=pictures / "cache").setup("fit")
    assert caught.value.remedy


def test_all_arguments_out_of_range_are_reported_together() -> None:
    wrong: dict[str, Any] = {"image_size": 7, "fit": "strech", "batch_size": 0, "kind": "binry", "neighbours": -1}
    with pytest.raises(ConfigError) as caught:
        HeadCTDataModule(**wrong, geometry={"gap": "keep"})
    for part in ("data.image_size", "data.fit", "data.batch_size", "task.kind", "channels.neighbours", "gaps"):
        assert part in str(caught.value)


HERE = "data._target_=tests.datamodules.test_in_python"


def test_a_class_of_ones_own_stands_in_the_configuration(pictures: Path) -> None:
    own = [f"{HERE}.Mine", f"data.root={pictures}", "data.scale=3", "data.image_size=32", "task.labels=[bleed]"]
    data = build_datamodule(compose(own))
    assert isinstance(data, Mine)
    assert (data.scale, data.image_size, data.label_names) == (3, 32, ["bleed"])
    assert len(data.dataset("test")) in (6, 8)  # 3 or 4 of 16 patients
    with pytest.raises(ConfigError, match=r"hemorrhage.*not among the labels of data=mine"):
        _ = build_datamodule(compose(own[:-1])).label_names
    foreign = build_datamodule(compose([f"{HERE}.Foreign", *own[1:2], *own[3:]]))
    assert foreign.manifest.source == "foreign"
    assert len(foreign.dataset("test")) in (6, 8)
    halves = build_datamodule(compose([f"{HERE}.Foreign", "data.halves=true", *own[1:2], *own[3:]]))
    with pytest.raises(SplitError, match="stands on two sides"):
        _ = halves.split


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([".Mine", "data.scael=3"], "unknown argument 'scael'; did you mean 'scale'"),
        ([".Linear"], "no data module"),
        ([".Table"], "manifest is a DataFrame, not a hemlearn Manifest"),
        ([".Mime"], "Mime"),
        ([".Raising", "data.early=true"], r"Raising\): KeyError: 'early' \(test_in_python\.py, line"),
        ([".Late"], r"Late\.setup raised ZeroDivisionError"),
    ],
)
def test_a_class_that_is_none_is_refused(pictures: Path, words: list[str], problem: str) -> None:
    with pytest.raises((ConfigError, DataError), match=problem):
        build_datamodule(compose([f"{HERE}{words[0]}", *words[1:], f"data.root={pictures}"])).dataset("test")


class Late(Foreign):
    def setup(self, stage: str | None = None) -> None:
        self.manifest = 1 / 0


class Table(Foreign):
    def setup(self, stage: str | None = None) -> None:
        self.manifest = pd.read_csv(self.root / "mine.csv")
