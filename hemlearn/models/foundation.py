"""Image towers of two medical foundation models as timm models, and weights in the layout of transformers.

Importing this module registers ``biomedclip_vit_base_patch16`` (arXiv 2303.00915) and ``rad_dino_vit_base_patch14``
(arXiv 2401.10815) with timm: vision transformers of timm's own, with the address, licence and input statistics of these
weights. BiomedCLIP's file is an open_clip state dict, whose image tower timm takes out itself. RAD-DINO's is one of
transformers' ``Dinov2Model``, for which :func:`from_transformers` has the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models import create_model, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

_COMMON = {"num_classes": 0, "fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}
_COMMON |= {"interpolation": "bicubic", "crop_pct": 1.0, "license": "mit"}

default_cfgs = generate_default_cfgs(
    {
        "biomedclip_vit_base_patch16.pmc15m": dict(
            hf_hub_id="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            hf_hub_filename="open_clip_pytorch_model.bin",
            input_size=(3, 224, 224),
            mean=OPENAI_CLIP_MEAN,
            std=OPENAI_CLIP_STD,
            **_COMMON,
        ),
        "rad_dino_vit_base_patch14.cxr": dict(
            hf_hub_id="microsoft/rad-dino",
            input_size=(3, 518, 518),
            mean=(0.5307, 0.5307, 0.5307),
            std=(0.2583, 0.2583, 0.2583),
            **_COMMON,
        ),
    }
)


def _vit(architecture: str, own: str, options: dict[str, Any]) -> VisionTransformer:
    named, overlay = (options.pop(key, None) for key in ("pretrained_cfg", "pretrained_cfg_overlay"))
    record = resolve_pretrained_cfg(own, named, overlay)
    return cast(VisionTransformer, create_model(architecture, pretrained_cfg=record, **options))


def biomedclip_vit_base_patch16(**kwargs: Any) -> VisionTransformer:
    """Image tower of BiomedCLIP: ViT-B/16 without the projection onto the texts' space; embeddings are 768 wide."""
    return _vit("vit_base_patch16_224", "biomedclip_vit_base_patch16", kwargs)


def rad_dino_vit_base_patch14(**kwargs: Any) -> VisionTransformer:
    """RAD-DINO: DINOv2's ViT-B/14, trained further on chest radiographs; embeddings are 768 wide."""
    return _vit("vit_base_patch14_dinov2", "rad_dino_vit_base_patch14", kwargs)


register_model(biomedclip_vit_base_patch16)
register_model(rad_dino_vit_base_patch14)

_NAMES = (  # transformers' Dinov2Model -> timm, in this order; attention as version 4 saved it, then as version 5 does
    (r"^dinov2\.", ""),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.([qkv])(uery|ey|alue)\.", r".attention.\1_proj."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_THREE = tuple(f".attention.{part}_proj." for part in "qkv")


def _renamed(name: str) -> str:
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name


def from_transformers(tensors: Mapping[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """A state dict of transformers' ``Dinov2Model`` under timm's names, resampled to the size of ``model``.

    Raises:
        KeyError: It is no such state dict.
    """
    named = {_renamed(name): value for name, value in tensors.items()}
    found: dict[str, Tensor] = {}
    for name, value in named.items():
        if _THREE[0] in name:
            parts = [named[name.replace(_THREE[0], part)] for part in _THREE]
            found[name.replace(_THREE[0], ".attn.qkv.")] = torch.cat(parts)
        elif not any(part in name for part in _THREE) and name != "mask_token":
            found[name] = value
    if "patch_embed.proj.weight" not in found or "cls_token" not in found:
        raise KeyError("embeddings.cls_token")
    return dict(checkpoint_filter_fn(found, model))
