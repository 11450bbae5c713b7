"""Tasks, models and transforms from keyword arguments, in a notebook's way: no configuration in sight."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryF1Score

import hemlearn
from hemlearn.config.schema import OptimizerConfig, ScheduleConfig
from hemlearn.datamodules import HeadCTDataModule
from hemlearn.models.freeze import FreezePolicy
from hemlearn.plugins import load_plugins
from hemlearn.tasks import SliceClassification, VolumeClassification
from hemlearn.tasks.metrics import build_metrics, score
from hemlearn.tasks.optimizers import build_optimizer, build_schedule, check_optimizer
from hemlearn.transforms import Augment, Channels
from hemlearn.util.errors import ConfigError, TrainingError, WeightsError


@pytest.fixture(scope="module", autouse=True)
def headlab() -> None:
    """The package of tests/plugin puts a loss, a metric, a callback and a backbone under names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "plugin"))
        load_plugins(["headlab"])


FLAT = nn.Sequential(nn.Conv2d(1, 2, 64), nn.Flatten())
SMALL: dict[str, Any] = {"pretrained": False, "image_size": 64}


def test_a_plain_trainer_fits_validates_tests_predicts_and_loads(tmp_path: Path) -> None:
    data = HeadCTDataModule(image_size=32, phantom_patients=40, split=hemlearn.Holdout())
    task = SliceClassification(
        ["hemorrhage"],
        "test_efficientnet",
        pretrained=False,
        augmentation=[{"_target_": "monai.transforms.RandGibbsNoise", "prob": 1.0}],
        optimizer=functools.partial(torch.optim.SGD, lr=0.01),
        schedule="constant",
        metrics=[BinaryF1Score()],
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(task, datamodule=data)
    assert (task.unit, task.channels.unit) == ("display", "display")
    assert task.positives == data.label_counts("train")[0]
    (found,) = trainer.validate(task, datamodule=data, verbose=False)
    assert {"val/auroc", "val/log_loss", "val/binary_f1_score"} <= set(found)
    assert "test/auroc" in trainer.test(task, datamodule=data, verbose=False)[0]
    half: Any = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    mixed = pl.Trainer(max_steps=1, accelerator="cpu", enable_checkpointing=False, **half, **quiet)
    mixed.fit(SliceClassification(["hemorrhage"], "test_efficientnet", pretrained=False), datamodule=data)
    batches = trainer.predict(task, datamodule=data)
    assert batches is not None
    assert sum(len(prob) for prob, _ in batches) == len(data.manifest.table)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    again = SliceClassification.load_from_checkpoint(tmp_path / "task.ckpt", weights_only=True)
    assert again.unit == "display"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), task.parameters(), strict=True))


class Last(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.out(x)


def test_every_part_may_be_a_name_a_dictionary_an_object_a_class_or_a_node() -> None:
    ways: list[dict[str, Any]] = [
        {"channels": "brain", "loss": "focal", "optimizer": "adamw", "freeze": "head"},
        {"channels": {"windows": [[40, 80]]}, "loss": {"name": "focal"}, "freeze": {"trainable": "head"}},
        {"channels": Channels(), "loss": nn.BCEWithLogitsLoss(), "freeze": FreezePolicy("head")},
        {"channels": Channels, "loss": nn.BCEWithLogitsLoss, "freeze": FreezePolicy, "optimizer": torch.optim.Adam},
        {
            "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"},
            "backbone": nn.Sequential(nn.Conv2d(1, 2, 64), nn.Flatten()),
        },
    ]
    for way in ways:
        task = SliceClassification(["a"], **{"backbone": "test_efficientnet", **way}, unit="HU", **SMALL)
        assert task.eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 1)
    task = VolumeClassification(["a"], "test_efficientnet", sequence=Last, unit="HU", **SMALL)
    assert type(task.head).__name__ == "OwnSequence"

    with pytest.raises(ConfigError, match="did you mean 'lstm'"):
        VolumeClassification(["a"], "test_efficientnet", sequence="lsmt", unit="HU", **SMALL)
    with pytest.raises(ConfigError, match="did you mean 'lstm'"):
        VolumeClassification(["a"], "test_efficientnet", sequence="gru+lsmt", unit="HU", **SMALL)
    joined = VolumeClassification(["a"], "test_efficientnet", sequence="mean+slice", unit="HU", **SMALL)
    assert type(joined.head).__name__ == "SequenceModel"


TORCHMETRICS = "torchmetrics.classification"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"channels": "brian"}, "did you mean 'brain'"),
        ({"channels": {"widnows": []}}, "did you mean 'channels.windows'"),
        ({"backbone": "hf-hub:nobody/nothing"}, "not available"),
        ({"backbone": "local-dir:/nowhere"}, "no such folder"),
        ({"backbone": nn.Conv2d(1, 3, 3)}, "not one vector"),
        ({"backbone": {"_target_": "torch.nn.Flattn"}}, "did you mean 'Flatten'"),
        ({"metrics": {"auroc": BinaryF1Score()}}, "a metric of hemlearn has that name"),
        ({"backbone": nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten())}, "layer '0' is lazy"),
        ({"metrics": ["headlab_gapp"]}, "did you mean 'headlab_gap'"),
        ({"metrics": {"gap": {"name": "headlab_gap", "scael": 2}}}, "unknown argument 'scael'; did you mean 'scale'"),
        ({"metrics": {"odd": {"_target_": f"{TORCHMETRICS}.BinaryRecallAtFixedPrecision"}}}, "lacks .*'min_precision'"),
        ({"metrics": {"odd": {"_target_": f"{TORCHMETRICS}.BinaryRecal"}}}, "did you mean 'BinaryRecall'"),
        ({"tta": ["diagonal"], "level": "slcie"}, "2 errors"),
        ({"monitor": "acuracy"}, "did you mean 'accuracy'"),
        ({"metrics": {"overlap": BinaryF1Score()}, "monitor": "overlp"}, "did you mean 'overlap'"),
        ({"metrics": {"mean": MeanMetric()}, "monitor": "mean"}, "does not say which way is better"),
        ({"optimizer": "adamww"}, "did you mean"),
        ({"loss": "bec"}, "did you mean 'bce'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"freeze": "haed"}, "did you mean 'head'"),
        ({"aggregate": "maen"}, "did you mean 'mean'"),
    ],
)
def test_what_cannot_be_built_is_named(given: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ConfigError, WeightsError), match=problem):
        SliceClassification(["a"], **{"backbone": "test_efficientnet", **given}, **SMALL)


def test_optimizers_by_name_and_schedules_by_class() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1, "weight_decay": 0.0}]
    for name in ("lion", "adan", "lookahead_adamw", "nadamw"):
        assert build_optimizer(OptimizerConfig(name=name), [dict(groups[0])]).param_groups[0]["lr"] == 0.1
    with pytest.raises(ConfigError, match="did you mean 'lion'"):
        check_optimizer(OptimizerConfig(name="lionn"))
    optimizer = torch.optim.SGD(groups, lr=0.1)
    node = ScheduleConfig(**{"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 1.0})
    made, interval = build_schedule(node, optimizer, steps_per_epoch=5, epochs=2, mode="min")
    assert (type(made).__name__, interval) == ("OneCycleLR", "step")
    made, interval = build_schedule(
        torch.optim.lr_scheduler.CosineAnnealingLR, optimizer, steps_per_epoch=5, epochs=2, mode="min"
    )
    assert interval == "epoch"


def test_metrics_see_known_cases_and_one_that_raises_is_named() -> None:
    task = SliceClassification(["a", "b"], "test_efficientnet", unit="HU", **SMALL).options
    metrics = build_metrics(None, task)
    prob, label = torch.tensor([[0.9, 0.2], [0.1, 0.8]]), torch.tensor([[1.0, 0.0], [torch.nan, 1.0]])
    assert score(metrics, prob, label, task)["accuracy"] == 1.0
    own = build_metrics({"jaccard": {"_target_": "torchmetrics.JaccardIndex", "average": "none"}}, task)
    found = score(own, prob, label, task)
    assert {"jaccard/a", "jaccard/b"} <= set(found)
    broken = BinaryF1Score()
    broken.compute = lambda: 1 / 0  # type: ignore[method-assign]
    binary = task.model_copy(update={"kind": "binary"})
    with pytest.raises(TrainingError, match=r"metrics\.odd \(BinaryF1Score\) raised ZeroDivisionError"):
        score(build_metrics({"odd": broken}, binary), prob[:, :1], label[:, :1], binary)


@pytest.mark.parametrize("name", ["RandBiasField", "RandGibbsNoise", "RandRicianNoise"])
def test_mr_artefacts_of_monai_are_steps_that_a_seed_fixes(name: str) -> None:
    step = Augment([{"_target_": f"monai.transforms.{name}", "prob": 1.0}], labels=["l", "r"], sides=[["l", "r"]])
    images, labels = torch.rand(3, 2, 32, 32), torch.eye(3)[:, :2]
    torch.manual_seed(0)
    first, same = step(images, labels)
    torch.manual_seed(0)
    assert torch.equal(step(images, labels)[0], first)
    assert not torch.equal(step(images, labels)[0], first)
    assert first.shape == images.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert torch.equal(same, labels)  # they never mirror


def test_a_metric_of_ones_own_picks_the_checkpoint() -> None:
    arguments: dict[str, Any] = {"backbone": "test_efficientnet", "metrics": {"overlap": BinaryF1Score()}, **SMALL}
    assert SliceClassification(["a"], monitor="overlap", **arguments).mode == "max"
    arguments["metrics"] = ["headlab_gap", {"_target_": f"{TORCHMETRICS}.BinaryF1Score"}]
    task = SliceClassification(["a"], monitor="headlab_gap", **arguments)
    assert task.mode == "min"
    assert "binary_f1_score" in task.metrics
