"""Whether maps depend on what was learnt: weights are randomised from the output down, and the maps are drawn again.

The cascading test of Adebayo et al. 2018 (arXiv 1810.03292): a map that looks the same when the head, then more and
more of the backbone hold random weights, explains the image and not the network. Each weight tensor is shuffled, which
keeps its distribution, so that activations stay in range; BatchNorm statistics are then measured anew on the images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.functional.image import structural_similarity_index_measure

from hemlearn.evaluation.auroc import none_if_nan
from hemlearn.reading.explain.cams import upsampled
from hemlearn.tasks.base import Classification

STAGES = 5  # of the backbone, beside the head


@dataclass(frozen=True)
class Stage:
    """How far the randomisation has come.

    Attributes:
        name: What was randomised last.
        share: Of all parameters, those randomised so far.
        spearman: Mean rank correlation with the maps of the trained network, over slices.
        ssim: Mean structural similarity, each map scaled to its own range.
        n: Slices with a correlation: a map that is constant has none.
        extra: What the caller measured on the maps of this stage.
    """

    name: str
    share: float
    spearman: float
    ssim: float
    n: int
    extra: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """Plain values; null where undefined."""
        return {
            "randomised": self.name,
            "share": self.share,
            "spearman": none_if_nan(self.spearman),
            "ssim": none_if_nan(self.ssim),
            "n": self.n,
            **self.extra,
        }


def cascade(
    task: Classification,
    draw: Callable[[Classification], Tensor],
    images: Tensor,
    *,
    size: int,
    seed: int = 0,
    measure: Callable[[Tensor], dict[str, Any]] | None = None,
) -> list[Stage]:
    """Randomise the head, then the backbone from its last groups to its stem, and compare the maps at each stage.

    Args:
        task: The trained network; it is copied and not changed.
        draw: Maps ``(N, h, w)`` of a network.
        images: ``(N, C, S, S)`` channels in [0, 1], on which BatchNorm statistics are measured.
        size: Side in pixels at which SSIM compares.
        seed: Of the shuffles.
        measure: Further figures of each stage's maps.

    Returns:
        The trained network first (with itself, hence 1), then every stage.
    """
    further = measure or (lambda _: {})
    before = draw(task)
    total = sum(p.numel() for p in task.parameters())
    stages = [Stage("nothing", 0.0, 1.0, 1.0, len(before), further(before))]
    other = copy.deepcopy(task)
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for name, parameters in _order(other):
        done += _shuffle(parameters, generator)
        _measure_statistics(other, images)
        after = draw(other)
        ranks, known = rank_correlation(before, after)
        stages.append(Stage(name, done / max(total, 1), ranks, similarity(before, after, size), known, further(after)))
    return stages


def _order(task: Classification) -> list[tuple[str, list[nn.Parameter]]]:
    """The head, then the backbone's groups in about ``STAGES`` steps from the last to the stem."""
    inside = dict(task.backbone.model.named_parameters())
    own = {id(parameter) for parameter in inside.values()}
    head = [parameter for parameter in task.parameters() if id(parameter) not in own]
    groups = task.backbone.groups
    found = [("head", head)]
    for part in np.array_split(np.arange(len(groups))[::-1], min(STAGES, len(groups))):
        first, last = int(part.min()) + 1, int(part.max()) + 1
        name = f"group {first} of {len(groups)}" if first == last else f"groups {first} to {last} of {len(groups)}"
        found.append((name, [inside[key] for group in part for key in groups[group]]))
    return found


@torch.no_grad()
def _shuffle(parameters: Sequence[nn.Parameter], generator: torch.Generator) -> int:
    for parameter in parameters:
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return sum(parameter.numel() for parameter in parameters)


@torch.no_grad()
def _measure_statistics(task: Classification, images: Tensor) -> None:
    """BatchNorm statistics of the changed network; those of the trained one would let activations overflow."""
    norms = [module for module in task.backbone.modules() if isinstance(module, _BatchNorm)]
    if not norms or len(images) < 2:
        return
    kept = [(norm, norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        for part in torch.tensor_split(images, -(-len(images) // 32)):
            task.backbone(part)
    finally:
        for norm, momentum in kept:
            norm.momentum, norm.training = momentum, False


def rank_correlation(first: Tensor, second: Tensor) -> tuple[float, int]:
    """Mean over slices of Spearman's correlation of two maps ``(N, h, w)``, and the slices where it is defined."""
    found = []
    for one, two in zip(_flat(first), _flat(second), strict=True):
        if np.ptp(one) > 0 and np.ptp(two) > 0:
            found.append(float(spearmanr(one, two).statistic))
    return (float(np.mean(found)) if found else float("nan")), len(found)


def similarity(first: Tensor, second: Tensor, size: int) -> float:
    """Mean SSIM over slices of maps ``(N, h, w)`` seen at ``size`` pixels, each scaled to [0, 1] by itself."""
    one, two = (_unit(upsampled(found.float().cpu(), size))[:, None] for found in (first, second))
    value = structural_similarity_index_measure(one, two, data_range=1.0)
    return float(value) if isinstance(value, Tensor) else float(value[0])


def between_slices(maps: Tensor) -> float:
    """Spearman's correlation of each map with that of the next slice: what two maps of one network share anyway."""
    return rank_correlation(maps, maps.roll(1, 0))[0] if len(maps) > 1 else float("nan")


def _flat(found: Tensor) -> NDArray[np.float64]:
    return found.double().cpu().flatten(1).numpy()


def _unit(found: Tensor) -> Tensor:
    low, high = (getattr(found.flatten(1), how)(1).view(-1, 1, 1) for how in ("amin", "amax"))
    return torch.where(high > low, (found - low) / (high - low).clamp_min(1e-30), 0.0)
