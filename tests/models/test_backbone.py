"""Backbones: every shipped configuration, their width, channels, sizes and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import yaml

from hemlearn.config.compose import conf_dir
from hemlearn.config.schema import NETWORKS_3D, BackboneConfig
from hemlearn.models.backbone import build_backbone, layer_groups
from hemlearn.util.errors import ConfigError
from tests.conftest import measures

WIDTHS = {
    "alexnet": 4096,
    "biomedclip": 768,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "dinov2_base": 768,
    "dinov2_small": 384,
    "dinov3_base": 768,
    "dinov3_small": 384,
    "efficientnet_b0": 1280,
    "efficientnet_lite0": 1280,
    "efficientnet_lite1": 1280,
    "efficientnet_lite2": 1280,
    "googlenet": 1024,
    "mobilenetv3_large": 1280,
    "rad_dino": 768,
    "resnet152": 2048,
    "resnet18": 512,
    "resnet50": 2048,
    "resnext101_32x8d": 2048,
    "swin_tiny": 768,
    "vit_small": 384,
}
SMALL = ("efficientnet_lite0", "googlenet", "mobilenetv3_large", "resnet18", "vit_small", "alexnet")


def shipped(stem: str) -> BackboneConfig:
    return BackboneConfig(**yaml.safe_load((conf_dir() / "backbone" / f"{stem}.yaml").read_text("utf-8")))


def scratch(name: str, **changes) -> BackboneConfig:
    return BackboneConfig(name=name, pretrained=False, **changes)


def test_every_file_of_the_group_is_covered_here():
    assert {file.stem for file in (conf_dir() / "backbone").glob("*.yaml")} == {*WIDTHS, *NETWORKS_3D, *measures()}


@pytest.mark.parametrize("stem", sorted(WIDTHS))
def test_shipped_backbone_has_its_width_and_ordered_groups(stem):
    cfg = shipped(stem)
    assert cfg.pretrained, "a shipped file stands for weights"
    assert timm.models.get_pretrained_cfg(cfg.name).has_weights
    cfg.pretrained = False
    with torch.device("meta"):  # shapes without numbers: the largest has 87 million parameters
        backbone = build_backbone(cfg, in_chans=3, image_size=112)  # 7 of 16 pixels, 8 of 14
    assert backbone.embedding_dim == WIDTHS[stem]
    assert backbone.weights_checksum is None
    names = [name for group in backbone.groups for name in group]
    assert sorted(names) == sorted(name for name, _ in backbone.model.named_parameters())
    assert len(backbone.groups) >= 5
    stem_layer = backbone.model.pretrained_cfg["first_conv"]
    assert f"{stem_layer}.weight" in backbone.groups[0]


@pytest.mark.parametrize("stem", SMALL)
def test_the_probed_width_is_that_of_a_real_forward_pass(stem):
    cfg = shipped(stem)
    cfg.pretrained = False
    backbone = build_backbone(cfg, in_chans=3, image_size=64).eval()
    with torch.no_grad():
        out = backbone(torch.rand(2, 3, 64, 64))
    assert out.shape == (2, backbone.embedding_dim)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "googlenet", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("in_chans", [1, 3, 9])
def test_any_number_of_channels(name, in_chans):
    backbone = build_backbone(scratch(name), in_chans=in_chans, image_size=64).eval()
    assert backbone.mean.shape == backbone.std.shape == (1, in_chans, 1, 1)
    with torch.no_grad():
        assert backbone(torch.rand(1, in_chans, 64, 64)).shape == (1, backbone.embedding_dim)


def test_an_image_with_other_channels_is_refused_and_not_broadcast():
    backbone = build_backbone(scratch("resnet18"), in_chans=3, image_size=32)
    with pytest.raises(ValueError, match="got 1 channel, the backbone was built for 3"):
        backbone(torch.rand(1, 1, 32, 32))


def test_normalisation_is_inside_and_is_that_of_the_weights():
    backbone = build_backbone(scratch("resnet18"), in_chans=3, image_size=32).eval()
    record = timm.models.get_pretrained_cfg("resnet18")
    x = torch.rand(2, 3, 32, 32)
    by_hand = (x - torch.tensor(record.mean).view(3, 1, 1)) / torch.tensor(record.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), backbone.model(by_hand))
    assert {"mean", "std"} <= set(backbone.state_dict())


def test_statistics_can_be_overridden_for_foreign_weights():
    overlay = {"pretrained_cfg_overlay": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    backbone = build_backbone(scratch("resnet18", options=overlay), in_chans=3, image_size=32)
    assert backbone.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 96), ("swin_tiny_patch4_window7_224", 96)])
def test_image_size_reaches_models_whose_weights_depend_on_it(name, size):
    with torch.device("meta"):
        backbone = build_backbone(scratch(name), in_chans=3, image_size=size)
    assert tuple(backbone.model.patch_embed.img_size) == (size, size)


def test_an_image_size_the_network_cannot_take():
    with pytest.raises(ConfigError, match=r"backbone\.name=alexnet .*data\.image_size=32.*") as caught:
        build_backbone(scratch("alexnet"), in_chans=3, image_size=32)
    assert "at least 63" in caught.value.remedy


def test_building_leaves_training_mode_and_statistics_alone():
    backbone = build_backbone(scratch("resnet18"), in_chans=1, image_size=32)
    assert backbone.training
    assert int(backbone.model.bn1.num_batches_tracked) == 0


def test_regularisation_reaches_the_model_or_is_refused():
    backbone = build_backbone(scratch("resnet18", drop_rate=0.3, drop_path_rate=0.2), in_chans=1, image_size=32)
    assert backbone.model.drop_rate == 0.3
    assert any(getattr(m, "drop_prob", 0.0) > 0 for m in backbone.model.modules())
    with pytest.raises(ConfigError, match=r"backbone\.drop_path_rate=0\.1: alexnet"):
        build_backbone(scratch("alexnet", drop_path_rate=0.1), in_chans=1, image_size=64)
    with torch.device("meta"):
        build_backbone(scratch("hrnet_w18_small"), in_chans=1, image_size=64)  # takes no drop_path_rate; 0 is no harm


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("resnt18", "resnt18", "resnet18"),
        ("efficientnet_lit0", "efficientnet_lit0", "backbone=efficientnet_lite0"),
        ("resnet18.a9_in1k", "no weights tagged a9_in1k", "resnet18.a1_in1k"),
        ("timm/resnet18", "neither a timm name", "local-dir:"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, problem, remedy):
    with pytest.raises(ConfigError) as caught:
        build_backbone(scratch(name), in_chans=1, image_size=32)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_options_reach_timm_and_wrong_ones_are_named():
    backbone = build_backbone(scratch("resnet18", options={"global_pool": "max"}), in_chans=1, image_size=32)
    assert "pool_type=max" in repr(backbone.model.global_pool)
    with pytest.raises(ConfigError, match=r"backbone\.options\.poool=3"):
        build_backbone(scratch("resnet18", options={"poool": 3}), in_chans=1, image_size=32)
    with pytest.raises(ConfigError, match=r"backbone\.options\.in_chans"):
        build_backbone(scratch("resnet18", options={"in_chans": 3}), in_chans=1, image_size=32)
    with pytest.raises(ConfigError, match="not one vector"):
        build_backbone(scratch("resnet18", options={"global_pool": ""}), in_chans=1, image_size=32)


def test_groups_of_a_module_that_timm_does_not_know():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 3))
    assert layer_groups(model) == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]


def test_no_yaml_names_a_key_the_schema_lacks():
    for folder in ("backbone", "freeze"):
        for file in sorted(Path(conf_dir() / folder).glob("*.yaml")):
            assert yaml.safe_load(file.read_text("utf-8")), file


def test_patches_that_do_not_fill_the_image_are_refused_with_the_nearest_sizes() -> None:
    for stem, size, remedy in (("dinov2_small", 192, "182 or 196"), ("dinov3_base", 8, "16")):
        with pytest.raises(ConfigError, match=rf"data\.image_size={size}: .*patches of 1[46] x 1[46] pixels") as caught:
            build_backbone(shipped(stem), in_chans=1, image_size=size)  # before weights are looked for
        assert caught.value.remedy == f"set data.image_size to {remedy}"
