"""The 2D task: flips at test time, sides, schedules, exact identity of order and randomness."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from hemlearn.config.compose import compose
from hemlearn.config.schema import Config, ScheduleConfig
from hemlearn.tasks.optimizers import build_optimizer, schedule_factor
from hemlearn.tasks.slices import build_head
from hemlearn.training.build import build_task
from hemlearn.training.callbacks import BestAndLast, WarmEMA
from hemlearn.training.trainer import build_trainer, compiled, run_device, training_errors
from hemlearn.util.errors import ConfigError

TINY = ["backbone.name=test_efficientnet", "backbone.pretrained=false", "data.image_size=64"]


def build(*overrides: str) -> Any:
    config = compose([*TINY, *overrides])
    n = len(config.task.labels)
    return build_task(config, unit="display", positives=[5.0] * n, negatives=[5.0] * n)


class HalfMeans(nn.Module):
    """Mean intensity of the left and of the right image half: an embedding whose truth is plain."""

    embedding_dim = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = x.shape[-1] // 2
        return torch.stack([x[..., :middle].mean(dim=(1, 2, 3)), x[..., middle:].mean(dim=(1, 2, 3))], dim=1)


def test_flip_tta_exchanges_sides_back() -> None:
    task = build(
        "task.kind=multilabel",
        "task.labels=[left,right]",
        "task.sides=[[left,right]]",
        "task.tta=[horizontal]",
        "freeze=none",
    ).eval()
    task.backbone = HalfMeans()  # type: ignore[assignment]
    task.policy.apply = lambda *_: None  # type: ignore[method-assign]
    task.head = nn.Identity()  # type: ignore[assignment]
    raw = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    raw[..., :32] = 255
    plain = torch.tensor([[1.0, 0.0]]).sigmoid()
    # Mirrored, the halves change places; with the labels changed back both views say the same.
    torch.testing.assert_close(task.probabilities(raw), plain)


def test_tta_is_the_mean_of_the_views() -> None:
    torch.manual_seed(0)
    task = build("task.tta=[horizontal,vertical]").eval()
    raw = torch.randint(0, 255, (3, 1, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        views = [task(raw.flip(axis)) if axis else task(raw) for axis in ((), (-1,), (-2,))]
        torch.testing.assert_close(task.probabilities(raw), torch.stack([v.sigmoid() for v in views]).mean(dim=0))


def test_multiclass_probabilities_sum_to_one() -> None:
    task = build("task=six_class", "loss=cross_entropy").eval()
    prob = task.probabilities(torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8))
    torch.testing.assert_close(prob.sum(dim=1), torch.ones(2))


def test_frozen_part_stays_in_eval_mode_whatever_calls_train() -> None:
    task = build("freeze=head")
    task.train()
    assert not any(module.training for module in task.backbone.model.modules())
    assert task.head.training
    assert not any(p.requires_grad for p in task.backbone.parameters())


def test_head_has_the_asked_layers() -> None:
    head = build_head(10, 3, [7], 0.2)
    assert [tuple(m.weight.shape) for m in head if isinstance(m, nn.Linear)] == [(7, 10), (3, 7)]
    assert head(torch.zeros(4, 10)).shape == (4, 3)


def factors(cfg: ScheduleConfig, epochs: int = 10, steps: int = 5) -> list[float]:
    return [schedule_factor(cfg, step, steps, epochs) for step in range(epochs * steps + 1)]


def test_cosine_warms_up_then_falls_to_the_floor() -> None:
    curve = factors(ScheduleConfig(name="cosine", warmup_epochs=2, min_lr_ratio=0.1))
    peak = int(np.argmax(curve))
    assert peak == 10
    assert curve[peak] == pytest.approx(1.0)
    assert np.all(np.diff(curve[: peak + 1]) > 0)
    assert np.all(np.diff(curve[peak:]) < 0)
    assert curve[-1] == pytest.approx(0.1)


def test_step_multiplies_every_so_many_epochs() -> None:
    curve = factors(ScheduleConfig(name="step", step_epochs=4, factor=0.5))
    assert [curve[epoch * 5] for epoch in (0, 3, 4, 7, 8)] == [1, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(("name", "cls"), [("adamw", "AdamW"), ("adam", "Adam"), ("sgd", "SGD")])
def test_optimizer_follows_the_config(name: str, cls: str) -> None:
    config = compose([f"optimizer={name}", "optimizer.lr=0.3"]).optimizer
    group = {"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1, "weight_decay": 0.0}
    made = build_optimizer(config, [group])
    assert type(made).__name__ == cls
    assert made.param_groups[0]["lr"] == 0.1  # the group's own rate is kept


def test_average_warms_up_and_keeps_equal_tensors_byte_identical() -> None:
    from torch.optim.swa_utils import AveragedModel

    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = AveragedModel(model, use_buffers=True, multi_avg_fn=WarmEMA(0.99)._kwargs["multi_avg_fn"])
    frozen = model[0].weight.detach().clone()
    average.update_parameters(model)
    with torch.no_grad():
        model[1].bias += 1.0
    model[1].num_batches_tracked += 7
    average.update_parameters(model)
    assert torch.equal(average.module[0].weight, frozen)
    assert average.module[1].num_batches_tracked == 7
    # one update so far: decay (1 + 1) / (10 + 1)
    torch.testing.assert_close(average.module[1].bias, torch.full((3,), 1 - 2 / 11))


class Saver:
    """Stands in for a trainer: writes the epoch's number as a checkpoint."""

    is_global_zero = True
    should_stop = False
    max_steps, global_step = -1, 0
    max_epochs = 100

    def __init__(self, epoch: int, score: float) -> None:
        self.epoch = self.current_epoch = epoch
        self.strategy = self
        self.callback_metrics = {"val/auroc": torch.tensor(score)}

    def broadcast(self, value: object) -> object:
        return value

    def save_checkpoint(self, file: Path) -> None:
        file.write_text(str(self.epoch))


def test_fast_epochs_write_what_is_better_and_the_final_one_alone(tmp_path: Path) -> None:
    for monitor, expected in (("val/auroc", ["00", "00", "22", "22", "24"]), (None, ["00", "00", "00", "00", "44"])):
        keeper = BestAndLast(tmp_path / str(monitor).replace("/", "_"), monitor, "max")
        keeper.folder.mkdir()
        found = []
        for epoch, score in enumerate((0.5, 0.4, 0.6, 0.5, 0.5)):
            saver = Saver(epoch, score)
            saver.max_epochs = 5
            keeper.on_train_epoch_end(saver, None)  # type: ignore[arg-type]
            found.append("".join((keeper.folder / name).read_text() for name in ("best.ckpt", "last.ckpt")))
        assert found == expected


def test_last_is_written_every_epoch_and_best_only_when_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemlearn.training.callbacks.SPARED", 0.0)  # as when an epoch takes its time
    keeper = BestAndLast(tmp_path, "val/auroc", "max")
    found = []
    for epoch, score in enumerate((float("nan"), 0.5, 0.4, float("nan"), 0.6)):
        keeper.on_train_epoch_end(Saver(epoch, score), None)  # type: ignore[arg-type]
        found.append("".join((tmp_path / name).read_text() for name in ("best.ckpt", "last.ckpt")))
    assert found == ["00", "11", "12", "13", "44"]  # undefined scores never beat a defined one
    again = BestAndLast(tmp_path, "val/auroc", "max")
    again.load_state_dict(keeper.state_dict())
    again.on_train_epoch_end(Saver(5, 0.55), None)  # type: ignore[arg-type]
    assert [(tmp_path / name).read_text() for name in ("best.ckpt", "last.ckpt")] == ["4", "5"]
    assert len(list(tmp_path.iterdir())) == 2


def test_compiled_only_while_it_trains_and_under_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compiles(function: Any, **how: Any) -> Any:
        def run(*arguments: Any) -> Any:
            calls.append(f"dynamic={how['dynamic']}")
            return function(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", compiles)
    task, images = build().eval(), torch.rand(2, 1, 64, 64)
    names, plain = list(task.state_dict()), task.backbone(images)
    with compiled(task, True):
        torch.testing.assert_close(task.backbone(images), plain, rtol=0, atol=0)
        assert list(task.state_dict()) == names
        copy.deepcopy(task).backbone(images)  # as weight averaging keeps it: a plain network
    with compiled(task, False):
        task.backbone(images)
    task.backbone(images)
    assert calls == ["dynamic=False"]


def test_a_network_that_is_not_compiled_is_told() -> None:
    told = r"trainer\.compile=true: this network is not compiled here \(no g\+\+\)"
    with pytest.raises(ConfigError, match=told), training_errors(Config(), 8):
        raise TorchDynamoException("no g++\nmore")


def test_a_gpu_takes_the_fastest_kernels_unless_the_same_numbers_are_asked_for() -> None:
    before = torch.backends.cudnn.benchmark
    try:
        for preset, asked, fast in (
            ("gpu", [], True),
            ("gpu", ["trainer.deterministic=true"], False),
            ("cpu", [], False),
        ):
            config = compose([f"trainer={preset}", *asked, "trainer.accelerator=cpu", "trainer.precision=32-true"])
            build_trainer(config, [], [])
            assert torch.backends.cudnn.benchmark is fast
            assert torch.are_deterministic_algorithms_enabled() is not fast
    finally:
        torch.backends.cudnn.benchmark = before
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("devices", "rank", "expected"),
    [(1, None, "cuda:0"), ([3], None, "cuda:3"), ("2,5", "1", "cuda:5"), (-1, "2", "cuda:2")],
)
def test_a_process_uses_the_device_that_was_asked_for(
    devices: Any, rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(run_device(Config(trainer={"accelerator": "gpu", "devices": devices}))) == expected
