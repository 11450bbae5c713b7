from __future__ import annotations

import pytest
import torch

from hemlearn.config.compose import conf_dir
from hemlearn.config.schema import NETWORKS_3D, BackboneConfig
from hemlearn.models.backbone import Backbone, build_backbone
from hemlearn.models.tissue import TissueMeasures
from hemlearn.reading.explain.cams import check_cams, find_layer, layers_with_places
from hemlearn.tasks import SliceClassification
from hemlearn.util.errors import ConfigError
from tests.conftest import measures

SHALLOW = {"depth": 3, "embed_dim": 32, "num_heads": 2}


def build(name: str, size: int) -> Backbone:
    torch.manual_seed(0)
    options = SHALLOW if "dino" in name else {}
    return build_backbone(BackboneConfig(name=name, pretrained=False, options=options), in_chans=1, image_size=size)


@pytest.mark.parametrize(
    ("name", "size", "layout", "grid"),
    [
        ("tf_efficientnet_lite0", 96, "maps", 3),
        ("resnet18", 96, "maps", 3),
        ("densenet121", 64, "maps", 2),
        ("mobilenetv3_large_100", 96, "maps", 3),
        ("convnext_atto", 64, "maps", 2),
        ("googlenet", 96, "maps", 3),
        ("alexnet", 127, "maps", 6),
        ("test_vit", 64, "tokens", 4),
        ("rad_dino_vit_base_patch14", 56, "tokens", 4),
        ("vit_small_patch16_dinov3", 64, "tokens", 4),
        ("vit_small_patch16_224", 96, "tokens", 6),
        ("swin_tiny_patch4_window7_224", 224, "channels_last", 7),
    ],
)
def test_the_deepest_layer_with_places_is_found(name: str, size: int, layout: str, grid: int) -> None:
    layer = find_layer(build(name, size), 1)
    assert (layer.layout, layer.grid) == (layout, (grid, grid))


def test_every_kind_of_backbone_in_the_config_set_is_covered() -> None:
    known = {
        "efficientnet_lite0",
        "efficientnet_lite1",
        "efficientnet_lite2",
        "efficientnet_b0",
        "resnet18",
        "resnet50",
        "resnet152",
        "resnext101_32x8d",
        "densenet121",
        "mobilenetv3_large",
        "convnext_tiny",
        "googlenet",
        "alexnet",
        "vit_small",
        "swin_tiny",
        *("dinov2_small", "dinov2_base", "dinov3_small", "dinov3_base", "biomedclip", "rad_dino"),
    }
    found = {file.stem for file in (conf_dir() / "backbone").glob("*.yaml")} - {*NETWORKS_3D, *measures()}
    assert found <= known, "add the new family to this file"


def test_behind_the_last_block_of_a_vit_only_the_class_token_acts() -> None:
    """Its places have no gradient there, and a map of them would be 0 everywhere."""
    backbone = build("test_vit", 64)
    blocks = len(backbone.model.blocks)  # type: ignore[arg-type, union-attr]
    assert find_layer(backbone).name == f"blocks.{blocks - 2}"


def test_a_finer_layer_can_be_asked_for() -> None:
    backbone = build("resnet18", 96)
    assert find_layer(backbone, 6).grid == (6, 6)
    assert find_layer(backbone, 5).grid == (6, 6)
    assert find_layer(backbone, 6).name.startswith("layer3")
    with pytest.raises(ConfigError, match=r"cells=500.*48 places"):
        find_layer(backbone, 500)


def test_small_images_take_a_layer_with_places_enough() -> None:
    """At 128 px, maps of 4 x 4 point no better than the image's centre; 8 x 8 do (experiments/reading)."""
    backbone = build("tf_efficientnet_lite0", 128)
    assert find_layer(backbone, 1).grid == (4, 4)
    assert find_layer(backbone).grid == (8, 8)
    assert find_layer(build("tf_efficientnet_lite0", 192)).grid == (6, 6)


def test_a_network_without_places_is_refused() -> None:
    backbone = build("resnet18", 32)  # one place is left at the end, but there are more before
    assert find_layer(backbone, 1).grid == (2, 2)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    plain = Backbone(flat, mean=(0.0,), std=(1.0,), image_size=8, weights_source="", weights_checksum=None)
    with pytest.raises(ConfigError, match="no layer keeps places"):
        find_layer(plain)
    task = SliceClassification(labels=["hemorrhage"], backbone=TissueMeasures(), image_size=64, channels="brain")
    with pytest.raises(ConfigError, match="TissueMeasures: no layer keeps places") as told:
        check_cams(task)
    assert "method=occlusion" in str(told.value.remedy)


def test_looking_changes_nothing() -> None:
    backbone = build("tf_efficientnet_lite0", 64).train()
    backbone.model.conv_stem.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in backbone.parameters()]
    layers_with_places(backbone)
    assert backbone.training
    assert wanted == [parameter.requires_grad for parameter in backbone.parameters()]
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert not backbone.model.conv_stem._forward_hooks  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_to_maps_and_back_is_the_same(name: str) -> None:
    backbone = build(name, 64).eval()
    layer = find_layer(backbone)
    seen: list[torch.Tensor] = []
    handle = layer.module.register_forward_hook(lambda *found: seen.append(found[2]))
    with torch.no_grad():
        backbone(torch.rand(2, 1, 64, 64))
    handle.remove()
    maps = layer.to_maps(seen[0])
    assert maps.shape[0] == 2
    assert maps.shape[2:] == layer.grid
    assert torch.equal(layer.from_maps(maps, seen[0]), seen[0])
