from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import pytest
import torch
import yaml
from torch import nn

from hemlearn.config.compose import conf_dir, option
from hemlearn.config.schema import AugmentationConfig, TaskConfig
from hemlearn.transforms import Augment, side_permutation
from hemlearn.transforms.augment import build_augment
from hemlearn.transforms.geometry import draw_matrices, is_affine, mirrored, warp
from hemlearn.util.errors import ConfigError


def made(cfg: AugmentationConfig, task: TaskConfig) -> Augment:
    return build_augment(cfg, task.labels, task.sides)


CONF = conf_dir() / "augmentation"
SHIPPED = [
    "none",
    "flip_rotate",
    "geometric_intensity",
    "viritaromero",
    "altuve2022",
    "burduja2020",
    "desai2017",
    "demyanchuk2019",
    "mr",
    "strong",
    "views",
]
SIDES = TaskConfig(kind="multilabel", labels=["right", "none", "left"], sides=[["left", "right"]])
SIZE = 32


def load(file: Path) -> AugmentationConfig:
    """The group as it comes out of a composed run: checked by the schema, interpolations resolved."""
    return option("augmentation", file.stem, data={"image_size": SIZE})


def steps(*targets: str | dict[str, Any], **other: Any) -> AugmentationConfig:
    """A configuration of kornia steps; a bare name is applied to every sample."""
    full = [{"_target_": t, "p": 1.0} if isinstance(t, str) else t for t in targets]
    for step in full:
        step["_target_"] = step["_target_"] if "." in step["_target_"] else "kornia.augmentation." + step["_target_"]
    return AugmentationConfig(steps=full, **other)


def marked(count: int) -> torch.Tensor:
    """Heads with a bright patch in the left half of the image and a dimmer one at the top."""
    images = torch.zeros(count, 1, SIZE, SIZE)
    images[:, :, 12:20, 4:10] = 1.0
    images[:, :, 2:5, 14:18] = 0.5
    return images


class Grows(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(images, scale_factor=2)


class Inverts(nn.Module):
    keeps_sides = True

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 1 - images


class GivesList(nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


# --- shipped choices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_choice_runs_reproducibly_and_per_sample(name, channels):
    augment = made(load(CONF / f"{name}.yaml"), TaskConfig())
    torch.manual_seed(0)
    image = torch.rand(1, channels, SIZE, SIZE)
    images, labels = image.repeat(16, 1, 1, 1), torch.ones(16, 1)
    torch.manual_seed(7)
    out, out_labels = augment(images, labels)
    torch.manual_seed(7)
    again, _ = augment(images, labels)
    assert torch.equal(out, again)
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(out_labels, labels)
    assert torch.equal(images, image.repeat(16, 1, 1, 1)), "the input was written to"
    distinct = len(torch.unique(out.flatten(1), dim=0))
    assert distinct == 1 if name == "none" else distinct > 8
    assert not augment.state_dict()


def test_every_shipped_file_is_tested():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(SHIPPED)


def test_none_costs_nothing():
    images, labels = torch.rand(2, 1, 8, 8), torch.zeros(2, 1)
    out, out_labels = made(load(CONF / "none.yaml"), TaskConfig())(images, labels)
    assert out is images
    assert out_labels is labels


def test_viritaromero_has_the_published_order_and_its_jitter_does_nothing():
    cfg = load(CONF / "viritaromero.yaml")
    names = [step["_target_"].rpartition(".")[2] for step in cfg.steps]
    assert names == ["RandomRotation", "RandomResizedCrop", "ColorJitter", "RandomHorizontalFlip"]
    assert cfg.steps[1]["size"] == [SIZE, SIZE]
    images = torch.rand(4, 3, 8, 8)
    jitter = made(AugmentationConfig(steps=[cfg.steps[2]]), TaskConfig())
    assert torch.equal(jitter(images, torch.zeros(4, 1))[0], images)


def test_altuve_ranges():
    augment = made(load(CONF / "altuve2022.yaml"), TaskConfig())
    torch.manual_seed(0)
    affine = draw_matrices([augment.steps[2]], torch.Size((2000, 1, 224, 224)))[0]
    scale = torch.linalg.det(affine).sqrt()
    assert 0.8 <= scale.min() < 0.81
    assert 1.19 < scale.max() <= 1.2001
    angle = torch.atan2(affine[:, 1, 0], affine[:, 0, 0])
    assert torch.histc(angle, 12, -math.pi, math.pi).min() > 100
    centre = torch.tensor([111.5, 111.5, 1.0])
    shift = (affine @ centre)[:, :2] - 111.5
    assert 48 < shift.abs().max() <= 50.01


def test_a_users_own_file_works(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nsteps:\n"
        "  - {_target_: kornia.augmentation.RandomErasing, p: 1.0, scale: [0.1, 0.2]}\n"
        "  - {_target_: torch.nn.Dropout2d, p: 0.0}\nmixup: 0.2\n"
    )
    images = torch.ones(8, 1, SIZE, SIZE)
    cfg = AugmentationConfig(**yaml.safe_load(file.read_text("utf-8")))
    out, labels = made(cfg, TaskConfig())(images, torch.ones(8, 1))
    assert (out < 1).flatten(1).any(1).all()
    torch.testing.assert_close(labels, torch.ones(8, 1))


# --- geometry -----------------------------------------------------------------------------------------------------


def test_one_warp_equals_kornias_own():
    step = K.RandomAffine(20.0, (0.1, 0.1), (0.8, 1.2), 8.0, align_corners=True, p=0.7)
    images = torch.rand(6, 2, 24, 30)
    torch.manual_seed(4)
    expected = step(images)
    torch.manual_seed(4)
    out = warp(images, draw_matrices([step], images.shape)[0])
    torch.testing.assert_close(out, expected, atol=2e-4, rtol=0)


def test_a_resized_crop_in_the_warp_equals_kornias_own():
    step = K.RandomResizedCrop((24, 30), scale=(0.3, 0.8))
    images = torch.rand(6, 1, 24, 30)
    torch.manual_seed(4)
    expected = step(images)
    torch.manual_seed(4)
    torch.testing.assert_close(warp(images, draw_matrices([step], images.shape)[0]), expected, atol=2e-4, rtol=0)


def test_neighbouring_steps_are_one_resampling():
    there = {"_target_": "RandomRotation", "degrees": [37.0, 37.0], "p": 1.0}
    back = {"_target_": "RandomRotation", "degrees": [-37.0, -37.0], "p": 1.0}
    images = torch.rand(3, 1, SIZE, SIZE)
    out, _ = made(steps(there, back), TaskConfig())(images, torch.zeros(3, 1))
    # Two separate warps would blur the noise and cut the corners off.
    torch.testing.assert_close(out, images, atol=1e-4, rtol=0)


def test_the_order_of_steps_is_kept():
    shift = {"_target_": "RandomTranslate", "translate_x": [0.25, 0.25], "translate_y": [0.0, 0.0], "p": 1.0}
    images = marked(1)
    first, _ = made(steps("RandomHorizontalFlip", copy.deepcopy(shift)), TaskConfig())(images, torch.zeros(1, 1))
    second, _ = made(steps(shift, "RandomHorizontalFlip"), TaskConfig())(images, torch.zeros(1, 1))
    torch.testing.assert_close(first, images.flip(-1).roll(8, -1) * (torch.arange(SIZE) >= 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(second, images.roll(8, -1).flip(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "dims"), [("RandomHorizontalFlip", [-1]), ("RandomVerticalFlip", [-2])])
def test_flips_are_exact(name, dims):
    images = torch.rand(3, 1, 9, 9)
    out, _ = made(steps(name), TaskConfig())(images, torch.zeros(3, 1))
    assert torch.equal(out, images.flip(dims))


def test_corners_are_air():
    cfg = steps({"_target_": "RandomRotation", "degrees": [45.0, 45.0], "p": 1.0})
    out, _ = made(cfg, TaskConfig())(torch.ones(2, 1, SIZE, SIZE), torch.zeros(2, 1))
    assert out[:, :, 0, 0].max() == 0
    assert out[:, :, 16, 16].min() == 1


def test_steps_with_another_border_or_sampling_keep_their_own():
    border = K.RandomAffine(45.0, padding_mode="border", p=1.0)
    assert not is_affine(border)
    assert not is_affine(K.RandomRotation(10.0, resample="nearest"))
    assert not is_affine(K.RandomAffine(10.0, fill_value=1.0))
    assert is_affine(K.RandomAffine(10.0, fill_value=0.0))
    cfg = steps({"_target_": "RandomAffine", "degrees": [45.0, 45.0], "padding_mode": "border", "p": 1.0})
    out, _ = made(cfg, TaskConfig())(torch.ones(2, 1, SIZE, SIZE), torch.zeros(2, 1))
    assert out.min() > 0.99


def test_mixed_precision_does_not_move_pixels():
    augment = made(load(CONF / "flip_rotate.yaml"), TaskConfig())
    images, labels = torch.rand(4, 1, 64, 64), torch.zeros(4, 1)
    torch.manual_seed(0)
    plain, _ = augment(images, labels)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = augment(images, labels)
    assert torch.equal(plain, mixed)


def test_evaluation_mode_passes_through_and_the_module_travels():
    augment = made(load(CONF / "geometric_intensity.yaml"), SIDES)
    images, labels = torch.rand(2, 1, SIZE, SIZE), torch.zeros(2, 3)
    augment.eval()
    assert augment(images, labels)[0] is images
    twin = pickle.loads(pickle.dumps(augment.train()))
    torch.manual_seed(1)
    first = augment(images, labels)[0]
    torch.manual_seed(1)
    assert torch.equal(twin(images, labels)[0], first)


# --- laterality ---------------------------------------------------------------------------------------------------

TURN = {"_target_": "RandomRotation", "degrees": [180.0, 180.0], "p": 1.0}
TILT = {"_target_": "RandomAffine", "degrees": 30.0, "scale": [0.8, 1.2], "shear": 10.0, "p": 1.0}
BORDER = {"_target_": "RandomAffine", "degrees": 30.0, "padding_mode": "border", "p": 1.0}
BEND = {"_target_": "RandomPerspective", "distortion_scale": 0.3, "p": 1.0}
NOISE = {"_target_": "RandomGaussianNoise", "std": 0.1, "p": 1.0}


@pytest.mark.parametrize(
    ("chain", "exchanged"),
    [
        ([], False),
        (["RandomHorizontalFlip"], True),
        (["RandomVerticalFlip"], True),
        (["RandomHorizontalFlip", "RandomVerticalFlip"], False),
        ([TURN], False),
        ([TURN, "RandomHorizontalFlip"], True),
        ([TILT], False),
        ([TILT, "RandomHorizontalFlip"], True),
        ([BORDER, "RandomHorizontalFlip"], True),
        ([BEND], False),
        (["RandomHorizontalFlip", BEND], True),
        (["RandomHorizontalFlip", NOISE, "RandomVerticalFlip"], False),
        (["RandomHorizontalFlip", NOISE, "RandomHorizontalFlip"], False),
        ([{"_target_": "torchvision.transforms.ColorJitter", "brightness": 0.2}, "RandomHorizontalFlip"], True),
    ],
)
def test_sides_follow_the_determinant(chain, exchanged):
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [float("nan"), 1.0, 0.0]])
    _, out = made(steps(*copy.deepcopy(chain)), SIDES)(marked(3), labels)
    expected = labels.flip(1) if exchanged else labels
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=0, atol=0)


def test_sides_are_exchanged_for_exactly_the_flipped_samples():
    torch.manual_seed(0)
    images, labels = marked(64), torch.tensor([[0.0, 0.0, 1.0]]).repeat(64, 1)
    cfg = steps({"_target_": "RandomHorizontalFlip", "p": 0.5}, {"_target_": "RandomAffine", "degrees": 10.0, "p": 0.5})
    out, changed = made(cfg, SIDES)(images, labels)
    in_right_half = out[..., SIZE // 2 :].sum((1, 2, 3)) > out[..., : SIZE // 2].sum((1, 2, 3))
    assert 10 < int(in_right_half.sum()) < 54
    assert torch.equal(changed[:, 0] == 1, in_right_half)
    assert torch.equal(changed[:, 2] == 0, in_right_half)


def test_without_sides_labels_stay():
    task = TaskConfig(kind="multilabel", labels=["left", "right"])
    labels = torch.tensor([[1.0, 0.0]])
    _, out = made(steps("RandomHorizontalFlip"), task)(marked(1), labels)
    assert torch.equal(out, labels)


def test_mirrored_ignores_the_scale_of_a_projective_matrix():
    flipped = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    assert mirrored(torch.stack([flipped, -flipped, torch.eye(3), -2 * torch.eye(3)])).tolist() == [1, 1, 0, 0]


def test_steps_of_unknown_effect_on_sides_are_refused_unless_they_say_so():
    here = f"{__name__}.Inverts"
    for target in ("torchvision.transforms.RandomHorizontalFlip", "torch.nn.Identity"):
        made(AugmentationConfig(steps=[{"_target_": target}]), TaskConfig())
        with pytest.raises(ConfigError, match=r"augmentation.steps\[0\].*mirrors"):
            made(AugmentationConfig(steps=[{"_target_": target}]), SIDES)
    nested = {"_target_": "kornia.augmentation.ImageSequential"}
    with pytest.raises(ConfigError, match="mirrors"):
        made(AugmentationConfig(steps=[nested]), SIDES)
    out, _ = made(AugmentationConfig(steps=[{"_target_": here}]), SIDES)(torch.ones(1, 1, 4, 4), torch.ones(1, 3))
    assert torch.equal(out, torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    "sides", [[["left"]], [["left", "left"]], [["left", "top"]], [["left", "right"], ["right", "none"]]]
)
def test_bad_pairs_are_refused(sides):
    with pytest.raises(ConfigError, match=r"task.sides"):
        side_permutation(SIDES.labels, sides)


def test_side_permutation_is_its_own_inverse():
    order = side_permutation(["a", "l1", "r1", "r2", "l2"], [["l1", "r1"], ["l2", "r2"]])
    assert order == [0, 2, 1, 4, 3]


# --- mixup --------------------------------------------------------------------------------------------------------


def test_mixup_blends_images_and_labels_alike():
    torch.manual_seed(0)
    values = torch.linspace(0, 1, 32)
    images, labels = values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4), torch.stack([values, 1 - values], 1)
    out, soft = made(AugmentationConfig(mixup=0.4), TaskConfig())(images, labels)
    torch.testing.assert_close(soft[:, 0], out[:, 0, 0, 0])
    torch.testing.assert_close(soft.sum(1), torch.ones(32))
    assert ((soft[:, 0] - values).abs() > 0.01).sum() > 10


def test_mixup_draws_a_weight_per_sample():
    torch.manual_seed(0)
    images = torch.eye(16).view(16, 1, 1, 16)  # sample i is 1 at place i alone, so the blend shows both weights
    out, soft = made(AugmentationConfig(mixup=1.0), TaskConfig())(images, torch.eye(16))
    torch.testing.assert_close(out.view(16, 16), soft)
    assert len(torch.unique(soft.diagonal().round(decimals=3))) > 12


def test_mixup_with_an_unknown_label_is_unknown():
    torch.manual_seed(0)
    labels = torch.zeros(8, 2)
    labels[3, 1] = float("nan")
    _, soft = made(AugmentationConfig(mixup=1.0), TaskConfig())(torch.rand(8, 1, 4, 4), labels)
    assert 1 <= int(soft[:, 1].isnan().sum()) <= 2
    assert soft[3, 1].isnan()
    assert not soft[:, 0].isnan().any()


# --- what a user can get wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (steps("RandomHorizontalFlipp"), ["augmentation.steps[0]", "RandomHorizontalFlip'"]),
        (steps("RandomVerticalFlip", {"_target_": "RandomRotation", "degres": 5}), ["augmentation.steps[1]", "degres"]),
        (AugmentationConfig(steps=[{"p": 1.0}]), ["augmentation.steps[0]", "_target_"]),
        (AugmentationConfig(steps=["RandomVerticalFlip"]), ["augmentation.steps[0]", "_target_"]),
        (AugmentationConfig(steps=[{"_target_": "builtins.dict"}]), ["augmentation.steps[0]", "dict"]),
        (steps("RandomMixUpV2"), ["augmentation.steps[0]", "augmentation.mixup"]),
        (steps({"_target_": "hemlearn.transforms.RandomGamma", "gamma": [2.0, 1.0]}), ["gamma=[2.0, 1.0]"]),
    ],
)
def test_a_wrong_step_is_named_when_it_is_built(cfg, words):
    with pytest.raises(ConfigError, match=r"augmentation\.mixup=-1\.0"):
        AugmentationConfig(mixup=-1.0)
    with pytest.raises(ConfigError) as caught:
        made(cfg, TaskConfig())
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"_target_": "RandomResizedCrop", "size": [16, 16]}, ["(16, 16)", "(32, 32)", "data.image_size"]),
        ({"_target_": f"{__name__}.Grows"}, ["(64, 64)", "(32, 32)", "data.image_size"]),
        ({"_target_": "RandomHue", "hue": [-0.1, 0.1], "p": 1.0}, ["RandomHue", "(2, 1, 32, 32)", "three channels"]),
        ({"_target_": f"{__name__}.GivesList"}, ["list"]),
    ],
)
def test_a_step_that_does_not_suit_the_images_is_named(step, words):
    augment = made(steps("RandomVerticalFlip", step), TaskConfig())
    with pytest.raises(ConfigError) as caught:
        augment(torch.rand(2, 1, SIZE, SIZE), torch.zeros(2, 1))
    for word in ["augmentation.steps[1]", *words]:
        assert word in str(caught.value)
