"""Parts that the package puts under names: a backbone of timm's registry, a loss of hemlearn's."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from timm.models import register_model
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError

from hemlearn.plugins import register


class Squares(nn.Module):
    """Mean intensity of a grid of squares: as many features."""

    pretrained_cfg: ClassVar = {"mean": (0.5,), "std": (0.5,), "fixed_input_size": False}

    def __init__(self, num_classes: int = 0, in_chans: int = 1, grid: int = 4) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_chans, 2, 1)
        self.pool = nn.AdaptiveAvgPool2d(grid)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.mix(x)).flatten(1)


@register_model
def headlab_squares(pretrained: bool = False, **arguments: object) -> Squares:
    """timm's way to add a model."""
    keys = ("num_classes", "in_chans")
    return Squares(**{key: arguments[key] for key in keys if key in arguments})  # type: ignore[arg-type]


@register("metrics", "headlab_gap")
class GapError(MeanAbsoluteError):
    """Mean distance of probability and label, times a factor."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def compute(self) -> Tensor:
        return self.scale * super().compute()


@register("callbacks", "headlab_note")
class Note(Callback):
    """Writes a line when the fit is over."""

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        logging.getLogger("hemlearn").info("headlab: a note of %d epochs", trainer.current_epoch)


@register("loss", "headlab_hinge")
class Hinge(nn.Module):
    """Squared hinge of the known labels."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        known = ~torch.isnan(target)
        side = torch.where(known, target, 0.0) * 2 - 1
        return (F.relu(1 - logits * side) ** 2 * known).sum() / known.sum().clamp_min(1)
