"""Frozen layers whose output is cached: the parts equal the whole, and training on them equals training without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hemlearn.config.schema import BackboneConfig, TaskConfig
from hemlearn.data.batches import SliceDataset
from hemlearn.models.backbone import Backbone, build_backbone
from hemlearn.models.embeddings import BATCH, Division, Encoder, FrozenEncoder, FrozenLayers, open_embeddings
from hemlearn.models.freeze import FreezePolicy
from hemlearn.transforms.augment import Augment
from hemlearn.transforms.channels import Channels
from hemlearn.util.errors import ConfigError

SIDES = TaskConfig(kind="multilabel", labels=["left", "right", "other"], sides=[["left", "right"]])
FLIP = {"_target_": "kornia.augmentation.RandomHorizontalFlip", "p": 0.5}
TURN = {"_target_": "kornia.augmentation.RandomAffine", "degrees": 20.0, "p": 1.0}


def network(name: str = "test_efficientnet", size: int = 64) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(name=name, pretrained=False), in_chans=3, image_size=size)


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet10t", "mobilenetv3_small_050", "regnetx_002"])
@pytest.mark.parametrize("trainable", [0, 1, 3])
def test_two_parts_make_the_whole(name: str, trainable: int) -> None:
    backbone = network(name)
    division = Division(backbone, trainable, 64)
    assert backbone.training, "modes are as they were"
    backbone.eval()
    images = torch.rand(3, 3, 64, 64)
    below = division.lower(images)
    assert tuple(below.shape[1:]) == division.shape
    torch.testing.assert_close(division.upper(below), backbone(images), rtol=1e-4, atol=1e-5)
    if trainable:
        assert len(division.shape) == 3


def test_upper_trains_the_backbone_itself_and_nothing_below() -> None:
    backbone = network()
    policy = FreezePolicy(2, groups=backbone.groups)
    policy.apply(backbone.train(), 0)
    division = Division(backbone, 2, 64)
    below = division.lower(torch.rand(4, 3, 64, 64)).detach()
    division.upper(below).sum().backward()
    first = len(backbone.groups) - 2
    place = {name: index for index, group in enumerate(backbone.groups) for name in group}
    moved = {name for name, tensor in backbone.model.named_parameters() if tensor.grad is not None}
    assert moved == {name for name in place if place[name] >= first}


def test_modes_reach_the_shared_layers() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(
        BackboneConfig(name="test_efficientnet", pretrained=False, drop_rate=0.9), in_chans=3, image_size=64
    )
    division = Division(backbone, 1, 64)
    below = division.lower(torch.rand(2, 3, 64, 64)).detach()
    backbone.eval()
    torch.testing.assert_close(division.upper(below), division.upper(below), rtol=0, atol=0)
    backbone.train()
    assert not torch.equal(division.upper(below), division.upper(below)), "dropout and BatchNorm are on"


@pytest.mark.parametrize(
    ("name", "trainable", "text"),
    [
        ("test_efficientnet", 99, "every layer trains"),
        ("vit_tiny_patch16_224", 2, "this VisionTransformer cannot be divided"),
    ],
)
def test_what_cannot_be_divided_is_refused(name: str, trainable: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Division(network(name), trainable, 64)


def slices(count: int = 6) -> SliceDataset:
    array = np.random.default_rng(0).integers(0, 255, (count, 64, 64)).astype(np.uint8)
    rows = np.arange(count)
    return SliceDataset(array, rows[:, None], np.zeros((count, 3), dtype=np.float32), rows)


def frozen(
    folder: Path,
    steps: list[dict[str, object]],
    draws: int = 4,
    flips: tuple[str, ...] = (),
    data: SliceDataset | None = None,
) -> FrozenLayers:
    torch.manual_seed(0)
    channels = Channels(unit="display")
    backbone = build_backbone(
        BackboneConfig(name="test_efficientnet", pretrained=False), in_chans=channels.out_channels, image_size=64
    )
    division = Division(backbone, 2, 64)
    whole = Encoder(channels, backbone, None, flips, False)
    augment = Augment(steps, labels=SIDES.labels, sides=SIDES.sides)
    encoder = FrozenEncoder(whole, division, augment, steps, labels=3, draws=draws, orders=[[1, 0, 2]] * len(flips))
    cache = open_embeddings(
        encoder.eval(),
        data or slices(),
        content="store",
        cache_dir=folder,
        device=torch.device("cpu"),
        batch_size=BATCH,
    )
    backbone.eval()
    return FrozenLayers(division, cache, draws, False)


def test_views_are_the_plain_slice_and_its_mirror_image(tmp_path: Path) -> None:
    data = slices()
    found = frozen(tmp_path, [TURN], flips=("horizontal",), data=data)
    rows = torch.tensor([4, 1])
    images = Channels(unit="display")(data.__getitems__([4, 1])["image"])
    backbone = found.division.backbone
    with torch.no_grad():
        for view, expected, order in ((0, images, [0, 1, 2]), (1, images.flip(-1), [1, 0, 2])):
            embeddings, labels = found.view(rows, view)
            torch.testing.assert_close(embeddings, backbone(expected), rtol=1e-4, atol=1e-5)
            assert labels.tolist() == [order, order]


def test_draws_are_augmented_differ_and_carry_their_sides(tmp_path: Path) -> None:
    found = frozen(tmp_path, [FLIP], draws=12)
    plain = np.array(found.cache.array[:, 0])
    drawn = np.array(found.cache.array[:, 1:])
    order = drawn[:, :, -3:]
    flipped = order[:, :, 0] == 1
    assert 0.2 < flipped.mean() < 0.8
    assert (order[flipped] == [1, 0, 2]).all()
    assert (order[~flipped] == [0, 1, 2]).all()
    same = np.isclose(drawn[:, :, :-3], plain[:, None, :-3], atol=1e-4).all(axis=2)
    assert (same == ~flipped).all(), "labels are exchanged exactly where the image is mirrored"
    seen = {bool(found.drawn(torch.tensor([0]))[1][0, 0]) for _ in range(40)}
    assert seen == {True, False}, "a training step draws among the augmented views"


def test_draws_depend_on_the_slices_alone(tmp_path: Path) -> None:
    first = np.array(frozen(tmp_path / "a", [FLIP, TURN]).cache.array)
    torch.manual_seed(77)
    again = frozen(tmp_path / "b", [FLIP, TURN])
    np.testing.assert_array_equal(first, again.cache.array)
    reused = frozen(tmp_path / "b", [FLIP, TURN])
    assert reused.cache.folder == again.cache.folder
    assert reused.cache.account()["forwards"] == 6 * 5
    assert frozen(tmp_path / "b", [TURN]).cache.folder != again.cache.folder
    assert frozen(tmp_path / "b", [FLIP, TURN], draws=5).cache.folder != again.cache.folder
