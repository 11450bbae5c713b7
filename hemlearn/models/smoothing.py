"""A slice run's answers, smoothed along the series: the model over slices that has nothing to overfit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hemlearn.models.series_layers import masked_max, slice_mask
from hemlearn.util.errors import ConfigError

_CLIP = 1e-6


class GaussianSmoothing(nn.Module):
    """Log odds of a slice run, averaged over neighbouring slices with Gaussian weights of their distance.

    A finding reaches over several slices, a false alarm often over one. A learned model over the slices sees, of the
    patients it is trained on, the answers of a network that has learnt these very patients; on few patients it learns
    to trust them. A width that is given cannot. A series is as positive as its most positive slice.

    Args:
        outputs: Number of logits L.
        width_mm: Standard deviation of the Gaussian, mm.
        spacing_mm: Distance of neighbouring slices whose position is unknown, mm.

    Raises:
        ConfigError: A width or spacing that is not above 0.

    Examples:
        >>> model = GaussianSmoothing(outputs=1, width_mm=5.0)
        >>> answers = torch.tensor([[[0.1], [0.9], [0.1]]])
        >>> slices, series = model(torch.zeros(1, 3, 4), torch.tensor([3]), answers, torch.tensor([[0.0, 5.0, 10.0]]))
        >>> slices.sigmoid().squeeze().tolist(), series.shape
        ([0.33915..., 0.44731..., 0.33915...], torch.Size([1, 1]))
    """

    def __init__(self, outputs: int, width_mm: float = 5.0, spacing_mm: float = 5.0) -> None:
        super().__init__()
        for key, value in (("width_mm", width_mm), ("spacing_mm", spacing_mm)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ConfigError(f"sequence.{key}={value}", remedy="give a length in mm above 0")
        self.width_mm, self.spacing_mm = float(width_mm), float(spacing_mm)
        self.shift = nn.Parameter(torch.zeros(outputs))  # all that is trained

    def forward(
        self, x: Tensor, lengths: Tensor, probabilities: Tensor | None = None, z_mm: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of slices ``(B, S, L)`` and series ``(B, L)``.

        Args:
            x: (B, S, D) embeddings, of which only the shape counts.
            lengths: (B,) slices of each series.
            probabilities: (B, S, L) of the slice run.
            z_mm: (B, S) positions along the slice normal, mm; NaN where unknown.

        Raises:
            ConfigError: There is no slice run.
        """
        if probabilities is None:
            raise ConfigError(
                "sequence=smoothed: there are no probabilities of a slice run to smooth",
                remedy="train one first (stage.experiment=NAME), or give its folder (backbone.weights=RUN)",
            )
        mask = slice_mask(lengths, x.shape[1])
        place = self._places(mask, z_mm)
        weights = torch.exp(-0.5 * ((place[:, :, None] - place[:, None, :]) / self.width_mm) ** 2) * mask[:, None, :]
        weights = weights / weights.sum(2, keepdim=True).clamp_min(_CLIP)
        odds = torch.logit(probabilities.float().masked_fill(~mask[..., None], 0.5), _CLIP)
        slices = torch.bmm(weights, odds) + self.shift
        return slices, masked_max(slices, mask)

    def _places(self, mask: Tensor, z_mm: Tensor | None) -> Tensor:
        """(B, S) places in mm, evenly spaced in a series of which a position is unknown."""
        even = self.spacing_mm * torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32).expand(mask.shape)
        if z_mm is None:
            return even
        known = (z_mm.isfinite() | ~mask).all(1, keepdim=True)
        return torch.where(known & mask, z_mm.to(even), even)

    def extra_repr(self) -> str:
        """The lengths, as shown by ``print``."""
        return f"width_mm={self.width_mm}, spacing_mm={self.spacing_mm}"
