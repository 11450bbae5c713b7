"""What checkpoints need not hold of a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from hemlearn.config.schema import BackboneConfig
from hemlearn.models.backbone import Backbone, build_backbone
from hemlearn.models.freeze import FreezePolicy
from hemlearn.models.lean import leave_out, put_back, to_leave_out
from hemlearn.util.errors import WeightsError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "start.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    return file


def build(weights: Path | None, channels: int = 3) -> Backbone:
    cfg = BackboneConfig(name="test_resnet", pretrained=weights is not None, weights=str(weights) if weights else None)
    return build_backbone(cfg, in_chans=channels, image_size=64)


def policy(backbone: Backbone, *arguments: Any, **options: Any) -> FreezePolicy:
    made = FreezePolicy(*arguments, **options)
    made.attach(backbone)
    return made


def test_what_is_trained_at_some_epoch_stays(weights: Path) -> None:
    backbone = build(weights)
    groups = len(backbone.groups)
    names = set(backbone.model.state_dict())
    assert policy(backbone, "head").never_trained(backbone) == names
    late = policy(backbone, "head", {2: 1, 4: 2})
    lower = {name for group in backbone.groups[: groups - 2] for name in group}
    still = late.never_trained(backbone)
    assert lower < still  # with the statistics of these layers
    assert not still & {name for group in backbone.groups[groups - 2 :] for name in group}
    assert not policy(backbone, "head", {3: "all"}).never_trained(backbone)


def test_a_run_that_trains_everything_holds_everything(weights: Path) -> None:
    backbone = build(weights)
    assert to_leave_out(backbone, policy(backbone, "all")) is None
    # Statistics of BatchNorm alone would save little, and the file would need another one.
    assert to_leave_out(backbone, policy(backbone, "all", freeze_batchnorm=True)) is None


def test_random_numbers_and_an_adapted_stem_stay(weights: Path) -> None:
    random = build(None)
    assert to_leave_out(random, policy(random, "head")) is None
    for channels, kept in ((3, set()), (1, {"backbone.model.conv1.0.weight"})):
        backbone = build(weights, channels)
        left = to_leave_out(backbone, policy(backbone, "head"))
        assert left is not None
        assert {f"backbone.model.{name}" for name in backbone.model.state_dict()} - set(left["names"]) == kept


def test_a_checkpoint_whose_frozen_tensors_moved_stays_whole_and_others_come_back(weights: Path) -> None:
    backbone = build(weights)
    left = to_leave_out(backbone, policy(backbone, "head"))
    assert left is not None
    state = {f"backbone.model.{name}": value for name, value in backbone.model.state_dict().items()}
    moved = {name: value + (name == left["names"][3]) for name, value in state.items()}
    tree: dict[str, Any] = {"state_dict": dict(moved)}
    leave_out(tree, left)
    assert set(tree["state_dict"]) == set(state)
    tree = {"state_dict": dict(state)}
    leave_out(tree, left)
    assert not tree["state_dict"]
    put_back(tree, build(weights))
    assert all(torch.equal(tree["state_dict"][name], value) for name, value in state.items())
    leave_out(tree, left)
    with pytest.raises(WeightsError, match=r"of the weights that it started from are others now \(random init"):
        put_back(tree, build(None))
    with pytest.raises(WeightsError, match="left_out names no tensors"):
        put_back({"left_out": {"names": 3}}, backbone)
