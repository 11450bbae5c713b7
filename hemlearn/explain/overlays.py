"""Pictures of slices with their maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemlearn.data.readers import to_display

NOTE = "Research use only, not for diagnosis"
_OPACITY = 0.55
_MAP = "inferno"


def write_overlay(
    path: Path,
    pixels: NDArray[Any],
    unit: str,
    cam: NDArray[np.float32],
    *,
    title: str,
    label: str,
    top: float,
    mask: NDArray[np.bool_] | None = None,
) -> None:
    """Write the slice, and beside it the slice with its map and a colour bar, as PNG.

    Args:
        path: The file.
        pixels: ``(S, S)`` stored slice; HU is shown through the brain window (centre 40, width 80).
        unit: ``HU``, ``display`` or ``signal``.
        cam: ``(S, S)`` map in log odds, at least 0.
        title: Shown above, as it is: no part of it is read as a formula.
        label: The label that is explained.
        top: Value at the upper end of the colour bar.
        mask: ``(S, S)`` lesion, outlined.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    grey = to_display(pixels, unit)
    for axes in (left, right):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.axis("off")
        if mask is not None and mask.any():
            axes.contour(mask, levels=[0.5], colors="#38bdf8", linewidths=1.0)
    high = top if top > 0 else 1.0
    share = np.clip(cam / high, 0, 1)
    right.imshow(cam, cmap=_MAP, vmin=0, vmax=high, alpha=_OPACITY * np.sqrt(share), interpolation="nearest")
    # The bar has the map's own colours: on the slice they are mixed with grey.
    bar = figure.colorbar(ScalarMappable(Normalize(0, high), _MAP), ax=right, fraction=0.046, pad=0.03)
    bar.set_label(f"speaks for {label} (log odds per place)", fontsize=8, parse_math=False)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9, x=0.02, ha="left", parse_math=False)
    figure.supxlabel(NOTE, fontsize=7, x=0.98, ha="right", color="#555555")
    figure.savefig(path, dpi=110, metadata={"Software": "hemlearn"})


def write_shares(
    path: Path, z: Sequence[float], shares: NDArray[np.float32], prob: NDArray[np.float64], here: int, label: str
) -> None:
    """Write the probability of every slice of a series and its share in the series' score, as PNG.

    Args:
        path: The file.
        z: Position of each slice, mm, or its number.
        shares: ``(T,)`` see :func:`hemlearn.explain.attribution.slice_attribution`.
        prob: ``(T,)`` probabilities; NaN where a slice has none.
        here: Place of the slice that is shown beside.
        label: The label that is explained.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(z, prob, marker="o", markersize=3, linewidth=1.2, color="#1d4ed8")
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel(f"probability of {label}", fontsize=8, parse_math=False)
    width = 0.8 * float(np.median(np.diff(z))) if len(z) > 1 else 1.0
    lower.bar(z, shares, width=width, color=np.where(shares >= 0, "#b45309", "#6b7280"))
    lower.axhline(0, color="black", linewidth=0.6)
    lower.set_ylabel("share in the series' score", fontsize=8)
    lower.set_xlabel("position, mm", fontsize=8)
    for axes in (upper, lower):
        axes.axvline(z[here], color="#dc2626", linewidth=1.0, linestyle="--")
        axes.tick_params(labelsize=7)
    figure.supxlabel(NOTE, fontsize=7, x=0.98, ha="right", color="#555555")
    figure.savefig(path, dpi=110, metadata={"Software": "hemlearn"})
