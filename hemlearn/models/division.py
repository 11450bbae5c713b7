"""A backbone in two parts: frozen layers, whose output can be computed once, and the layers that train."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from hemlearn.errors import ConfigError
from hemlearn.models.backbone import Backbone
from hemlearn.models.groups import module_groups

_TOLERANCE = 1e-3  # relative, between the whole network and its two parts; float32 summation differs by far less


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward pass at the border
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Division:
    """The two parts of a backbone, sharing its tensors: ``upper(lower(x))`` equals ``backbone(x)``.

    The border lies before the first layer of the trained groups. Architectures whose trained layers need more than
    the output of the layer before (a vision transformer's position embedding, added by the model itself) cannot be
    divided there; this is found by trying, not by name.

    Args:
        backbone: In any mode; its modes decide how the parts behave.
        trainable: How many of the last groups train; 0 puts the border behind the backbone.
        image_size: Side of the square images, for the trial.

    Attributes:
        shape: Of the lower part's output for one image: ``(C, h, w)``, or ``(D,)`` behind the backbone.

    Raises:
        ConfigError: The backbone cannot be divided there, or nothing of it is frozen.
    """

    def __init__(self, backbone: Backbone, trainable: int, image_size: int) -> None:
        if trainable >= len(backbone.groups):
            raise ConfigError(
                "freeze.cached_draws: every layer trains, so that nothing can be cached",
                remedy="freeze some layers (freeze.trainable=N), or freeze.cached_draws=0",
            )
        self.backbone = backbone
        self._copies: list[tuple[nn.Module, nn.Module]] = []
        self._border: nn.Module | None = None
        self._top: nn.Module | None = None
        modes = [(module, module.training) for module in backbone.modules()]
        device = next(backbone.parameters()).device
        trial = torch.rand(
            2,
            backbone.in_chans,
            image_size,
            image_size,
            device=device,
            generator=torch.Generator(device).manual_seed(0),
        )
        backbone.eval()
        try:
            with torch.no_grad():
                if trainable:
                    self._divide(trainable, trial[:1])
                below = self.lower(trial)
                self._check(trial, below)
        finally:
            for module, mode in modes:
                module.training = mode
        self.shape = tuple(below.shape[1:])

    def lower(self, images: Tensor) -> Tensor:
        """Output ``(B, *shape)`` of the frozen part for images ``(B, C, S, S)`` in [0, 1]."""
        if self._border is None:
            return cast(Tensor, self.backbone(images))
        with self._border.register_forward_pre_hook(_stop):
            try:
                self.backbone(images)
            except _Reached as reached:
                return reached.value
        raise RuntimeError("the first trained layer was not reached")  # it was when the backbone was divided

    def upper(self, below: Tensor) -> Tensor:
        """Embeddings ``(B, D)`` of the frozen part's output ``(B, *shape)``."""
        if self._top is None:
            return below
        for clone, original in self._copies:
            clone.training = original.training
        return cast(Tensor, self._top(below))

    def _divide(self, trainable: int, trial: Tensor) -> None:
        model = self.backbone.model
        place = module_groups(model, self.backbone.groups)
        first = len(self.backbone.groups) - trainable
        trains = {
            module
            for name, module in model.named_modules()
            if place[name] >= first and next(module.parameters(), None) is not None
        }
        leaves = [module for module in model.modules() if next(module.children(), None) is None]
        order: list[nn.Module] = []
        handles = [leaf.register_forward_pre_hook(lambda module, _: order.append(module)) for leaf in leaves]
        try:
            self.backbone(trial)
        finally:
            for handle in handles:
                handle.remove()
        start = next((index for index, leaf in enumerate(order) if leaf in trains), None)
        if start is None:
            raise self._refusal(f"none of the layers of the last {trainable} groups is a module of its own")
        self._border = order[start]
        after = set(order[start:])
        self._top = self._prune(model, set(order[:start]) - after, after)

    def _prune(self, module: nn.Module, before: set[nn.Module], after: set[nn.Module]) -> nn.Module:
        """``module`` without the parts that run before the border only; what trains is shared, not copied."""
        below = set(module.modules())
        if not below & before:
            return module
        if not below & after and module is not self.backbone.model:
            return nn.Identity()
        clone = copy.copy(module)
        parts = {name: child and self._prune(child, before, after) for name, child in module._modules.items()}
        clone.__dict__["_modules"] = parts
        self._copies.append((clone, module))
        return clone

    def _check(self, trial: Tensor, below: Tensor) -> None:
        whole = self.backbone(trial)
        try:
            parts = self.upper(below)
        except Exception as error:  # whatever the architecture does with a wrong input: it cannot be divided
            raise self._refusal(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        if parts.shape != whole.shape:
            raise self._refusal(f"shape {tuple(parts.shape)} in place of {tuple(whole.shape)}")
        gap = float((parts - whole).norm() / whole.norm().clamp_min(1e-12))
        if not gap < _TOLERANCE:
            raise self._refusal(f"its parts differ from the whole by {gap:.2g}")

    def _refusal(self, why: str) -> ConfigError:
        name = self.backbone.model.__class__.__name__
        return ConfigError(
            f"freeze.cached_draws: this {name} cannot be divided below its trained layers ({why})",
            remedy="take another freeze.trainable or backbone, or freeze.cached_draws=0",
        )


def _stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise _Reached(inputs[0])
