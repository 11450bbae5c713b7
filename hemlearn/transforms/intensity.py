"""Intensity augmentations with per-sample parameters for images in [0, 1].

They stand beside kornia's because of what a window means: 0 and 1 hold everything beyond its edges. They are also
several times cheaper on a CPU, since only the drawn samples are touched. All parameters come from torch's global CPU
generator, so a GPU is never waited for; only the noise field itself is drawn on the device of the images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _PerSample(nn.Module, ABC):
    """Changes a random share ``p`` of the samples of a batch and clips them to [0, 1].

    ``keeps_sides`` tells :class:`hemlearn.transforms.Augment` that left stays left.
    """

    keeps_sides = True

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p}: not a probability")
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to the same; the input is left as it was."""
        chosen = (torch.rand(images.shape[0]) < self.p).nonzero().flatten()
        if len(chosen) == 0:
            return images
        if len(chosen) == images.shape[0]:
            return self._change(images).clamp_(0.0, 1.0)
        chosen = chosen.to(images.device, non_blocking=True)
        changed = self._change(images.index_select(0, chosen)).clamp_(0.0, 1.0)
        return images.index_copy(0, chosen, changed)

    @abstractmethod
    def _change(self, images: Tensor) -> Tensor:
        """Every sample of (n, C, H, W), changed by parameters of its own, in a new tensor."""

    def _uniform(self, low: float, high: float, like: Tensor) -> Tensor:
        drawn = torch.empty(like.shape[0], 1, 1, 1).uniform_(low, high)
        return drawn.to(like.device, like.dtype, non_blocking=True)


class RandomBrightnessContrast(_PerSample):
    """``x * (1 + c) + b`` with c and b drawn together: a jitter of the window's width and centre.

    Args:
        brightness: b is uniform in +-brightness, as a share of the full range.
        contrast: c is uniform in +-contrast.
        p: Share of samples changed.
    """

    def __init__(self, brightness: float = 0.2, contrast: float = 0.2, p: float = 0.5) -> None:
        super().__init__(p)
        if brightness < 0 or not 0 <= contrast < 1:
            raise ValueError(f"brightness={brightness}, contrast={contrast}: need brightness >= 0, 0 <= contrast < 1")
        self.brightness = brightness
        self.contrast = contrast

    def _change(self, images: Tensor) -> Tensor:
        factor = self._uniform(1 - self.contrast, 1 + self.contrast, images)
        return (images * factor).add_(self._uniform(-self.brightness, self.brightness, images))


class RandomGamma(_PerSample):
    """``x ** g``, g drawn log-uniformly, so that brightening and darkening are equally likely for [1/a, a].

    Args:
        gamma: Lowest and highest exponent, above 0.
        p: Share of samples changed.
    """

    def __init__(self, gamma: Sequence[float] = (0.8, 1.25), p: float = 0.5) -> None:
        super().__init__(p)
        if len(gamma) != 2 or not 0 < gamma[0] <= gamma[1]:
            raise ValueError(f"gamma={list(gamma)}: need [low, high] with 0 < low <= high")
        self.gamma = (float(gamma[0]), float(gamma[1]))

    def _change(self, images: Tensor) -> Tensor:
        exponent = self._uniform(math.log(self.gamma[0]), math.log(self.gamma[1]), images).exp_()
        return images.clamp_min(0.0).pow_(exponent)


class RandomNoise(_PerSample):
    """Gaussian noise with a standard deviation drawn per sample, inside the window only.

    Pixels at exactly 0 or 1 (air, padding, bone) keep their value: they stand for intensities far beyond the window,
    which noise of a few HU does not bring back.

    Args:
        std: Lowest and highest standard deviation, as a share of the full range.
        p: Share of samples changed.
    """

    def __init__(self, std: Sequence[float] = (0.0, 0.03), p: float = 0.5) -> None:
        super().__init__(p)
        if len(std) != 2 or not 0 <= std[0] <= std[1]:
            raise ValueError(f"std={list(std)}: need [low, high] with 0 <= low <= high")
        self.std = (float(std[0]), float(std[1]))

    def _change(self, images: Tensor) -> Tensor:
        noise = torch.randn_like(images).mul_(self._uniform(*self.std, images))
        noise.masked_fill_((images <= 0) | (images >= 1), 0.0)
        return noise.add_(images)


class RandomBlur(_PerSample):
    """Gaussian blur by a separable three-tap kernel: a smoother reconstruction kernel or a larger voxel.

    Args:
        sigma: Lowest and highest standard deviation in pixels, at most 1 (three taps cannot carry more).
        p: Share of samples changed.
    """

    def __init__(self, sigma: Sequence[float] = (0.3, 1.0), p: float = 0.5) -> None:
        super().__init__(p)
        if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1] <= 1:
            raise ValueError(f"sigma={list(sigma)}: need [low, high] with 0 < low <= high <= 1")
        self.sigma = (float(sigma[0]), float(sigma[1]))

    def _change(self, images: Tensor) -> Tensor:
        tap = self._uniform(*self.sigma, images).pow_(-2).mul_(-0.5).exp_()
        both = 2 * tap / (1 + 2 * tap)  # share of the two outer taps together
        for dim, border in ((-1, (1, 1, 0, 0)), (-2, (0, 0, 1, 1))):
            size = images.shape[dim]
            padded = F.pad(images, border, mode="replicate")
            sides = (padded.narrow(dim, 0, size) + padded.narrow(dim, 2, size)).mul_(0.5)
            images = images.lerp(sides, both)
        return images
