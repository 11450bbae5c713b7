"""What maps are worth: do they point at the lesion, and do they depend on what was learnt?

Pointing game (Zhang et al. 2018, IJCV 126:1084): a map hits where its largest value lies on the lesion, or within a
tolerance of 15 pixels at 224. Overlap: the share of the map's energy inside the lesion (Wang et al. 2020,
arXiv 1910.01279). Both are given for the image's centre and for the mean mask of all other patients too: priors that
see no image, the second of which knows where lesions use to be.

Cascading randomisation (Adebayo et al. 2018, arXiv 1810.03292): a map that looks the same when the head, then more and
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
from scipy import ndimage
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.functional.image import structural_similarity_index_measure

from hemlearn.evaluation.auroc import clustered_wilson, none_if_nan
from hemlearn.reading.explain.cams import upsampled
from hemlearn.tasks.base import Classification

Floats = NDArray[np.float64]
TOLERANCE = 15 / 224  # of the image's side
_SPREAD = 0.25  # standard deviation of the centre prior, of the image's side
_BLUR = 0.05  # of the mean mask
STAGES = 5  # of the backbone, beside the head


# --- the pointing game --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pointing:
    """One way to point, over N slices.

    Args:
        name: ``map``, ``centre`` or ``mean_mask``.
        hit: ``(N,)`` whether the largest value lies on the lesion or within the tolerance; False for a blank map.
        exact: ``(N,)`` the same without tolerance.
        inside: ``(N,)`` share of the energy inside the lesion; NaN for a blank map (0 everywhere).
    """

    name: str
    hit: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    inside: Floats

    @property
    def blank(self) -> int:
        """Maps that are 0 everywhere."""
        return int(np.isnan(self.inside).sum())

    def of(self, chosen: NDArray[np.bool_]) -> Pointing:
        """The same over some of the slices."""
        return Pointing(self.name, self.hit[chosen], self.exact[chosen], self.inside[chosen])

    def summary(self, patients: NDArray[Any]) -> dict[str, Any]:
        """Rates with 95 % intervals that count patients, not slices; null where undefined."""
        (low, high), _ = clustered_wilson(self.hit, patients)
        known = self.inside[~np.isnan(self.inside)]
        found = {
            "hit_rate": self.hit.mean() if len(self.hit) else np.nan,
            "low": low,
            "high": high,
            "hit_rate_exact": self.exact.mean() if len(self.exact) else np.nan,
            "energy_inside": known.mean() if len(known) else np.nan,
        }
        counts = {"n": len(self.hit), "patients": len(np.unique(patients)), "blank": self.blank}
        return {key: none_if_nan(float(value)) for key, value in found.items()} | counts


def pointing_game(name: str, maps: Floats, masks: NDArray[np.bool_], tolerance: float = TOLERANCE) -> Pointing:
    """Play it with maps ``(N, S, S)``, at least 0, and one lesion mask each; ``tolerance`` is a share of S.

    Raises:
        ValueError: Numbers or sizes of maps and masks differ, or a mask is empty: no pair is left out silently.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps {maps.shape} and masks {masks.shape} differ")
    if not masks.any(axis=(1, 2)).all():
        raise ValueError(f"mask {int(np.argmin(masks.any(axis=(1, 2))))} is empty")
    reach = tolerance * maps.shape[-1]
    hit, exact = np.zeros(len(maps), dtype=bool), np.zeros(len(maps), dtype=bool)
    inside = np.full(len(maps), np.nan)
    for k, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        if not values.max(initial=0) > 0:
            continue
        # Ties (a plateau) are settled by the middle of the places that tie, not by the first in reading order.
        tied = np.argwhere(values >= values.max())
        row, column = tied[np.argmin(np.linalg.norm(tied - tied.mean(axis=0), axis=1))]
        hit[k] = ndimage.distance_transform_edt(~mask)[row, column] <= reach
        exact[k] = mask[row, column]
        inside[k] = values[mask].sum() / values.sum()
    return Pointing(name, hit, exact, inside)


def centre_prior(count: int, size: int) -> Floats:
    """``(N, S, S)``: a Gaussian at the centre of every image."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    line = np.exp(-0.5 * (axis / _SPREAD) ** 2)
    return np.broadcast_to(np.outer(line, line), (count, size, size))


def mean_mask_prior(masks: NDArray[np.bool_], patients: NDArray[Any]) -> Floats:
    """``(N, S, S)``: for each slice the mean lesion of all other patients, smoothed; blank where there is no other."""
    codes = np.unique(patients, return_inverse=True)[1]
    totals = np.stack([masks[codes == code].sum(axis=0, dtype=np.float64) for code in range(codes.max() + 1)])
    others = [ndimage.gaussian_filter(totals.sum(axis=0) - own, _BLUR * masks.shape[-1]) for own in totals]
    return np.stack([np.maximum(others[code], 0) for code in codes])


def play(maps: Floats, masks: NDArray[np.bool_], patients: NDArray[Any]) -> list[Pointing]:
    """The maps, the centre prior and the mean mask of the others, on the same slices."""
    priors = {"centre": centre_prior(*masks.shape[:2]), "mean_mask": mean_mask_prior(masks, patients)}
    return [pointing_game(name, values, masks) for name, values in {"map": maps, **priors}.items()]


# --- randomised weights -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """How far the randomisation has come.

    Args:
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
        found = {"spearman": none_if_nan(self.spearman), "ssim": none_if_nan(self.ssim)}
        return {"randomised": self.name, "share": self.share, **found, "n": self.n, **self.extra}


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
    found = [("head", [parameter for parameter in task.parameters() if id(parameter) not in own])]
    groups = task.backbone.groups
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
    momenta = [(norm, norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        for part in torch.tensor_split(images, -(-len(images) // 32)):
            task.backbone(part)
    finally:
        for norm, momentum in momenta:
            norm.momentum, norm.training = momentum, False


def rank_correlation(first: Tensor, second: Tensor) -> tuple[float, int]:
    """Mean over slices of Spearman's correlation of two maps ``(N, h, w)``, and the slices where it is defined."""
    pairs = zip(*(maps.double().cpu().flatten(1).numpy() for maps in (first, second)), strict=True)
    found = [float(spearmanr(one, two).statistic) for one, two in pairs if np.ptp(one) > 0 and np.ptp(two) > 0]
    return (float(np.mean(found)) if found else float("nan")), len(found)


def similarity(first: Tensor, second: Tensor, size: int) -> float:
    """Mean SSIM over slices of maps ``(N, h, w)`` seen at ``size`` pixels, each scaled to [0, 1] by itself."""
    one, two = (_unit(upsampled(found.float().cpu(), size))[:, None] for found in (first, second))
    value = structural_similarity_index_measure(one, two, data_range=1.0)
    return float(value) if isinstance(value, Tensor) else float(value[0])


def between_slices(maps: Tensor) -> float:
    """Spearman's correlation of each map with that of the next slice: what two maps of one network share anyway."""
    return rank_correlation(maps, maps.roll(1, 0))[0] if len(maps) > 1 else float("nan")


def _unit(found: Tensor) -> Tensor:
    low, high = (getattr(found.flatten(1), how)(1).view(-1, 1, 1) for how in ("amin", "amax"))
    return torch.where(high > low, (found - low) / (high - low).clamp_min(1e-30), 0.0)
