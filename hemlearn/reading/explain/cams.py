"""Class activation maps of any backbone, one per slice and label: Grad-CAM, Grad-CAM++ and occlusion sensitivity.

MONAI computes them (:mod:`monai.visualize`). What is added here is what it leaves to its user: the layer, tokens
reshaped to maps, frozen backbones, one gradient through a sequence model for all slices of a series, and test-time
flips.

Sources: Selvaraju et al. 2017, arXiv 1610.02391 (Grad-CAM); Chattopadhay et al. 2018, arXiv 1710.11063 (Grad-CAM++);
Zeiler and Fergus 2014, arXiv 1311.2901 (occlusion).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from monai.visualize.class_activation_maps import GradCAM, GradCAMpp, ModelWithHooks
from monai.visualize.occlusion_sensitivity import OcclusionSensitivity
from torch import Tensor, nn

from hemlearn.models.backbone import Backbone
from hemlearn.models.embeddings import FLIP_AXIS
from hemlearn.reading.explain.scores import SERIES, SLICE, Scores, check_maps, eval_mode
from hemlearn.tasks.base import Classification
from hemlearn.transforms.augment import side_permutation
from hemlearn.util.errors import ConfigError, hint

# --- Where in a network the maps are taken: the deepest layer with enough places, found without layer names.


MAPS, CHANNELS_LAST, TOKENS = "maps", "channels_last", "tokens"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DEPTH = 4  # containers within containers that are looked into
_ENOUGH = 6  # places along a side
_PREFIX = 8  # class and register tokens at most


@dataclass(frozen=True)
class Layer:
    """A layer with places.

    Args:
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


def check_cams(task: Classification) -> None:
    """Refuse a task for whose slices there is no Grad-CAM.

    Raises:
        ConfigError: A 3D network, or one without a layer that keeps places in the image.
    """
    check_maps(task)
    if not layers_with_places(task.backbone):
        raise ConfigError(
            f"{type(task.backbone.model).__name__}: no layer keeps places in the image, so there is no Grad-CAM of it",
            remedy="leave page=true or pictures out; `hemlearn explain method=occlusion` draws maps without a layer",
        )


def find_layer(backbone: Backbone, cells: int | None = None) -> Layer:
    """The layer for maps.

    Args:
        backbone: Any backbone.
        cells: Places wanted along a side: the deepest layer with at least as many is taken. None: 6 where some layer
            has them, as the deepest of the usual networks has at 192 pixels and more. Deeper means more meaning per
            place and fewer places: of 4 x 4, the largest cannot be told to lie on a lesion or beside it.

    Raises:
        ConfigError: The network has no layer with places, or none with as many.
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
        with eval_mode(backbone), torch.inference_mode(False), torch.enable_grad():
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


METHODS = ("gradcam", "gradcam++", "occlusion")
_PATCH = 6  # the occluded square is this share of the image's side
_OVERLAP = 0.5
# MONAI adds 1e-7 to a term that holds squared gradients. A tap that shrinks the maps raises their gradient by as much;
# the maps stay what they are, and the constant no longer drowns small gradients.
_SHRINK = 2.0**-12


def maps(
    scores: Scores,
    images: Tensor,
    labels: Sequence[int],
    *,
    method: str = "gradcam",
    of: str | None = None,
    layer: Layer | None = None,
) -> Tensor:
    """Maps of what speaks for a label, averaged over the run's test-time flips.

    Args:
        scores: The run's scores; its backbone is left as it is.
        images: ``(T, C, S, S)`` channels of slices in [0, 1]; the slices of one series in order where a sequence model
            reads them.
        labels: Indices of the labels.
        method: gradcam | gradcam++ | occlusion.
        of: ``slice``: each slice's own score; ``series``: their series' score; None: see :meth:`Scores.default`.
        layer: Where the maps are taken; None: see :func:`find_layer`. Not used by occlusion.

    Returns:
        ``(len(labels), T, h, w)``, at least 0, in units of log odds. Larger speaks more for the label; maps of one
        label can be compared between the slices of one call.

    Raises:
        ConfigError: Unknown method, no suitable layer, or a label the network has no output for.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method}{hint(method, METHODS)}", remedy=f"take one of {', '.join(METHODS)}")
    task = scores.task
    names = task.labels
    outside = [label for label in labels if not 0 <= label < len(names)]
    if outside:
        raise ConfigError(
            f"label {outside[0]}: the network has {len(names)} outputs ({', '.join(names)})",
            remedy="give each target an output of its own",
        )
    chosen = of or scores.default()
    make = _occlusion if method == "occlusion" else _gradients
    if method != "occlusion":
        layer = layer or find_layer(task.backbone)
    total: Tensor | None = None
    views = [None, *task.options.tta]
    with eval_mode(task):
        for view in views:
            order = side_permutation(names, task.options.sides) if view else list(range(len(names)))
            seen = images if view is None else images.flip(FLIP_AXIS[view])
            # In a mirrored head the left side's label is the right side's output.
            found = make(scores, seen, [order[label] for label in labels], method, chosen, layer)
            found = found if view is None else found.flip(FLIP_AXIS[view])
            total = found if total is None else total + found
    assert total is not None
    return total / len(views)


class _Tapped(nn.Module):
    """Images to one row of scores ``(1, L)``, with the layer's maps sent through taps that MONAI can hook.

    The backbone is called in chunks (``calls``), hence one tap per call. The scores are shifted to 0: Grad-CAM++
    multiplies by their exponential, a constant that overflows. The sum over slices is taken so that each keeps its own
    gradient. MONAI calls once per label; the images pass the network once, and every label has its own backward pass.
    """

    def __init__(self, score: Callable[[Tensor], Tensor], layer: Layer, calls: int) -> None:
        super().__init__()
        self.score = score
        self.layer = layer
        self.taps = nn.ModuleList(nn.Identity() for _ in range(calls))
        self.seen: Tensor | None = None
        self.found: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Scores less their own value; the same graph again for the images of the call before."""
        if self.found is None or self.seen is not images:
            self.seen, self.found = images, self._forward(images)
        return self.found

    def _forward(self, images: Tensor) -> Tensor:
        count = 0

        def through(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            nonlocal count
            maps = self.layer.to_maps(out) * _SHRINK
            # Nothing before the layer needs a gradient: the graph starts here, even in a frozen backbone.
            maps = maps if maps.requires_grad else maps.detach().requires_grad_()
            maps = self.taps[count](maps)
            count += 1
            return self.layer.from_maps(maps / _SHRINK, out)

        handle = self.layer.module.register_forward_hook(through)
        try:
            found = self.score(images)
        finally:
            handle.remove()
        if count != len(self.taps):
            raise RuntimeError(f"the layer {self.layer.name} ran {count} times, {len(self.taps)} were expected")
        return (found - found.detach()).sum(0, keepdim=True)


class _Joined(ModelWithHooks):  # type: ignore[misc]
    """MONAI's hooks, with the chunks put together."""

    def __call__(self, x: Tensor, class_idx: int | None = None, retain_graph: bool = False, **kwargs: Any) -> Any:
        """Scores, maps ``(T, C, h, w)`` and their gradient, each the only one in its tuple."""
        with warnings.catch_warnings():  # MONAI only warns of a tap without gradient; it must not pass for a map
            warnings.filterwarnings("error", message="Backward hook for")
            logits, activation, gradient = super().__call__(x, class_idx, retain_graph, **kwargs)
        return logits, (torch.cat(activation).detach(),), (torch.cat(gradient),)


def _gradients(
    scores: Scores, images: Tensor, labels: Sequence[int], method: str, of: str, layer: Layer | None
) -> Tensor:
    assert layer is not None
    calls = scores.chunks(len(images))
    kind = GradCAMpp if method == "gradcam++" else GradCAM
    with torch.inference_mode(False), torch.enable_grad():
        plain = images.clone() if images.is_inference() else images
        tapped = _Tapped(lambda x: scores(x, of), layer, calls)
        hooked = _Joined(tapped, [f"taps.{k}" for k in range(calls)], register_forward=True, register_backward=True)
        cam = kind(hooked, "taps.0")
        drawn = [
            cam.compute_map(plain, class_idx=label, retain_graph=k < len(labels) - 1)[:, 0].detach()
            for k, label in enumerate(labels)
        ]
        return torch.stack(drawn)


class _Occluded(nn.Module):
    """Versions of one slice to the scores ``(B, L)`` of that slice or of its series."""

    def __init__(self, scores: Scores, vectors: Tensor, place: int, of: str) -> None:
        super().__init__()
        self.scores, self.vectors, self.place, self.of = scores, vectors, place, of

    def forward(self, images: Tensor) -> Tensor:
        """Scores, the other slices of the series being as they are."""
        own = self.scores.encode(images)
        versions = self.vectors[None].repeat(len(images), 1, 1)
        versions[:, self.place] = own
        found = self.scores.from_vectors(versions, self.of)
        return found[:, self.place] if self.of == SLICE else found


@torch.no_grad()
def _occlusion(scores: Scores, images: Tensor, labels: Sequence[int], _: str, of: str, __: Layer | None) -> Tensor:
    """How far the log odds fall where a smooth patch of the slice is blackened (0: the window's lower end)."""
    patch = max(4, images.shape[-1] // _PATCH)
    plain = scores.encode(images)
    reference = scores.from_vectors(plain[None], of)
    out = []
    for place in range(len(images)):
        before = reference[0, place] if of == SLICE else reference[0]
        model = _Occluded(scores, plain, place, of)
        occlusion = OcclusionSensitivity(
            model, mask_size=patch, n_batch=16, verbose=False, overlap=_OVERLAP, activate=False
        )
        after = cast(Tensor, occlusion(images[place : place + 1].contiguous())[0])
        drop = before[:, None, None] - torch.as_tensor(after).as_subclass(Tensor)[0]
        out.append(drop[list(labels)].clamp_min(0))
    return torch.stack(out, dim=1)


def upsampled(found: Tensor, size: int) -> Tensor:
    """Maps ``(..., h, w)`` at ``(..., size, size)``, linearly between the centres of their places."""
    flat = found.reshape(-1, 1, *found.shape[-2:]).float()
    return F.interpolate(flat, size=(size, size), mode="bilinear", align_corners=False).reshape(
        *found.shape[:-2], size, size
    )


__all__ = ["METHODS", "SERIES", "SLICE", "maps", "upsampled"]
