"""Where in a network the maps are taken: the deepest layer with enough places, found without layer names.

One random image is sent through the network. Every module along its trunk (the children of the model, and those of
plain containers) whose output has a grid of places is a candidate, whatever its layout: ``(B, C, h, w)`` of
convolutional networks, ``(B, h, w, C)`` of Swin, or ``(B, N, C)`` tokens of ViT behind their class tokens. The last one
whose places still act upon the embedding is taken; behind the last block of a ViT only the class token does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hemlearn.errors import ConfigError
from hemlearn.explain.quiet import quiet
from hemlearn.models.backbone import Backbone

MAPS, CHANNELS_LAST, TOKENS = "maps", "channels_last", "tokens"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DEPTH = 4  # containers within containers that are looked into
_ENOUGH = 6  # places along a side
_PREFIX = 8  # class and register tokens at most


@dataclass(frozen=True)
class Layer:
    """A layer with places.

    Attributes:
        name: Its name in the backbone, for reports.
        module: The module whose output it is.
        layout: ``maps`` (B, C, h, w), ``channels_last`` (B, h, w, C) or ``tokens`` (B, prefix + h * w, C).
        grid: (h, w).
        prefix: Tokens in front of those of the places.
    """

    name: str
    module: nn.Module
    layout: str
    grid: tuple[int, int]
    prefix: int = 0

    def to_maps(self, out: Tensor) -> Tensor:
        """The layer's output as ``(B, C, h, w)``."""
        if self.layout == MAPS:
            return out
        if self.layout == CHANNELS_LAST:
            return out.permute(0, 3, 1, 2)
        return out[:, self.prefix :].transpose(1, 2).reshape(len(out), -1, *self.grid)

    def from_maps(self, maps: Tensor, out: Tensor) -> Tensor:
        """``out`` with its places taken from ``maps`` ``(B, C, h, w)``."""
        if self.layout == MAPS:
            return maps
        if self.layout == CHANNELS_LAST:
            return maps.permute(0, 2, 3, 1)
        return torch.cat([out[:, : self.prefix], maps.flatten(2).transpose(1, 2)], dim=1)


def layers_with_places(backbone: Backbone) -> list[Layer]:
    """Every layer of the trunk whose places act upon the embedding, from the stem to the deepest."""
    model = backbone.model
    names = {id(module): name for name, module in model.named_modules()}
    for depth in range(_DEPTH):
        modules = list(_trunk(model, depth))
        found = _probe(backbone, modules, names)
        if found:
            return found
    return []


def find_layer(backbone: Backbone, cells: int | None = None) -> Layer:
    """The layer for maps.

    Args:
        backbone: Any backbone.
        cells: Places wanted along a side: the deepest layer with at least so many is taken. None: 6 where some layer
            has them, as the deepest of the usual networks has at 192 pixels and more. Deeper means more meaning per
            place and fewer places: of 4 x 4, the largest cannot be told to lie on a lesion or beside it.

    Raises:
        ConfigError: The network has no layer with places, or none with so many.
    """
    found = layers_with_places(backbone)
    if not found:
        raise ConfigError(
            f"{type(backbone.model).__name__}: no layer keeps places in the image",
            remedy="use method=occlusion, which needs none",
        )
    fitting = [layer for layer in found if min(layer.grid) >= (cells or _ENOUGH)]
    if not fitting and cells is None:
        fitting = found
    if not fitting:
        most = max(min(layer.grid) for layer in found)
        raise ConfigError(
            f"cells={cells}: the finest layer of {type(backbone.model).__name__} at "
            f"{backbone.image_size} px has {most} places along a side",
            remedy=f"set cells to {most} or less",
        )
    return fitting[-1]


def _trunk(model: nn.Module, depth: int) -> Iterator[nn.Module]:
    """The children of a model; plain containers are looked into, and other modules down to ``depth``."""
    for child in model.children():
        yield child
        if type(child) in _CONTAINERS:
            yield from _trunk(child, depth)
        elif depth:
            yield from _trunk(child, depth - 1)


def _probe(backbone: Backbone, modules: list[nn.Module], names: dict[int, str]) -> list[Layer]:
    model = cast(Any, backbone.model)
    prefix = getattr(model, "num_prefix_tokens", None)
    last = "NHWC" in str(getattr(model, "output_fmt", ""))
    outputs: list[tuple[Layer, Tensor]] = []

    def keep(module: nn.Module, _: Any, out: Any) -> None:
        layer = _recognise(names[id(module)], module, out, prefix, last)
        if layer is not None:
            outputs.append((layer, out))

    handles = [module.register_forward_hook(keep) for module in modules]
    generator = torch.Generator().manual_seed(0)
    size = backbone.image_size
    try:
        with quiet(backbone), torch.inference_mode(False), torch.enable_grad():
            image = torch.rand((1, backbone.in_chans, size, size), generator=generator).to(backbone.mean.device)
            embedding = backbone(image.requires_grad_())
            weights = torch.randn(embedding.shape, generator=generator).to(embedding.device)
            # Seen from behind, so that an output that was changed in place later on is no obstacle.
            tensors = [out for _, out in outputs]
            gradients = torch.autograd.grad((embedding * weights).sum(), tensors, allow_unused=True) if tensors else ()
    finally:
        for handle in handles:
            handle.remove()
    return [
        layer
        for (layer, _), gradient in zip(outputs, gradients, strict=True)
        if gradient is not None and bool(layer.to_maps(gradient).any())
    ]


def _recognise(name: str, module: nn.Module, out: Any, prefix: int | None, channels_last: bool) -> Layer | None:
    """The layout of an output for one square image; None where it has no grid of places."""
    if not isinstance(out, Tensor) or not out.requires_grad or not out.is_floating_point():
        return None
    if out.ndim == 4:
        _, a, b, c = out.shape
        first, second = b == c and b > 1, a == b and a > 1
        if first and not (second and channels_last):
            return Layer(name, module, MAPS, (b, c))
        return Layer(name, module, CHANNELS_LAST, (a, b)) if second else None
    if out.ndim == 3:
        for count in range(_PREFIX) if prefix is None else (prefix,):
            places = out.shape[1] - count
            side = math.isqrt(max(places, 0))
            if side > 1 and side * side == places:
                return Layer(name, module, TOKENS, (side, side), count)
    return None
