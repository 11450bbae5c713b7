"""Foundation backbones: two steps from random weights, and their weights files in every layout that is read."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hemlearn.config.compose import compose, conf_dir
from hemlearn.config.schema import BackboneConfig
from hemlearn.models.backbone import Backbone, build_backbone
from hemlearn.tasks import SliceClassification
from hemlearn.util.errors import WeightsError

TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}
THREE = (("query", "key", "value"), "qkv")
STEMS = ("biomedclip", "dinov2_base", "dinov2_small", "dinov3_base", "dinov3_small", "rad_dino")
STATISTICS = {"biomedclip": (0.4815, 0.2686), "rad_dino": (0.5307, 0.2583)}  # of the first channel


def shipped(stem: str, **changes: Any) -> BackboneConfig:
    content = yaml.safe_load((conf_dir() / "backbone" / f"{stem}.yaml").read_text("utf-8"))
    options = {**content.get("options", {}), **TINY}
    return BackboneConfig(**{**content, "pretrained": False, "options": options, **changes})


@pytest.mark.parametrize("stem", STEMS)
def test_a_foundation_backbone_trains_from_random_weights(stem: str) -> None:
    size = 42 if "14" in shipped(stem).name else 48
    # The real small one once, the others two blocks deep.
    spec = shipped(stem, **({"options": {"global_pool": "token"}} if stem == "dinov3_small" else {}))
    torch.manual_seed(0)
    task = SliceClassification(["bleed"], spec, channels="brain_subdural_soft", image_size=size, unit="HU")
    found = tuple(float(value.flatten()[0]) for value in (task.backbone.mean, task.backbone.std))
    assert found == pytest.approx(STATISTICS.get(stem, (0.485, 0.229)), abs=1e-4)
    optim = torch.optim.SGD(task.parameter_groups(), lr=0.1)
    before = {name: value.clone() for name, value in task.named_parameters()}
    task.train()
    for _ in range(2):
        logits = task(torch.randint(0, 80, (2, 1, size, size)).float())
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([[0.0], [1.0]]))
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert torch.isfinite(loss)
    moved = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("backbone.model.blocks.0.") for name in moved)


@pytest.mark.parametrize("stem", STEMS)
def test_each_names_its_licence_and_absent_weights_say_how_to_get_them(stem: str) -> None:
    assert compose([f"backbone={stem}"]).backbone.note.startswith("weights ")
    with pytest.raises(WeightsError, match="are not available") as caught:
        build_backbone(shipped(stem, pretrained=True), in_chans=1, image_size=112)
    assert re.search(r"hf download \S+ \S+\.(bin|safetensors)` .* backbone\.weights=FILE", caught.value.remedy)


def in_transformers(state: dict[str, Tensor], recent: bool = False) -> dict[str, Tensor]:
    """A timm state dict under the names of transformers' Dinov2Model, of version 4 or 5."""
    names = (
        (r"^(cls_token)$", r"embeddings.\1"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^norm\.", "layernorm."),
        (r"^blocks\.", "encoder.layer."),
        (r"\.attn\.proj\.", ".attention.o_proj." if recent else ".attention.output.dense."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    )
    found: dict[str, Tensor] = {"embeddings.mask_token": torch.zeros(1, 32)}
    for name, value in state.items():
        for pattern, new in names:
            name = re.sub(pattern, new, name)
        if ".attn.qkv." in name:
            own = (f"attention.{part}_proj." if recent else f"attention.attention.{part}." for part in THREE[recent])
            found |= {
                name.replace("attn.qkv.", new): third.clone() for new, third in zip(own, value.chunk(3), strict=True)
            }
        else:
            found[name] = value
    return found


def in_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A timm state dict as the image tower of an open_clip model."""
    tower = {f"visual.trunk.{name}": value for name, value in state.items()}
    rest = {"logit_scale": torch.tensor(2.0), "visual.head.proj.weight": torch.zeros(8, 32)}
    return {**rest, **tower, "text.transformer.embeddings.word_embeddings.weight": torch.zeros(3, 4)}


def source(stem: str, size: int) -> Backbone:
    torch.manual_seed(7)
    backbone = build_backbone(shipped(stem), in_chans=3, image_size=size).eval()
    with torch.no_grad():
        for name, value in backbone.model.named_parameters():
            if ".ls" in name or name.endswith(("bias", "cls_token")):
                value.normal_()
    return backbone


@pytest.mark.parametrize(
    ("stem", "layout"),
    [
        ("rad_dino", in_transformers),
        ("dinov2_small", partial(in_transformers, recent=True)),
        ("biomedclip", in_open_clip),
        ("dinov3_small", dict),
    ],
)
def test_weights_are_read_from_a_file_in_the_layout_of_their_publishers(stem: str, layout: Any, tmp_path: Path) -> None:
    size = 56 if "14" in shipped(stem).name else 64
    original = source(stem, size)
    torch.save(layout(dict(original.model.state_dict())), file := tmp_path / "weights.bin")
    loaded = build_backbone(shipped(stem, pretrained=True, weights=str(file)), in_chans=3, image_size=size).eval()
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), original(images))
    other = build_backbone(shipped(stem, pretrained=True, weights=str(file)), in_chans=1, image_size=2 * size)
    assert torch.equal(other.model.blocks[1].attn.qkv.weight, original.model.blocks[1].attn.qkv.weight)
    state = {**original.model.state_dict(), "blocks.1.norm1.bias": torch.ones(9)}
    torch.save(layout(state), file)
    with pytest.raises(WeightsError, match=r"does not fit .*"):
        build_backbone(shipped(stem, pretrained=True, weights=str(file)), in_chans=3, image_size=size)
