"""What is unusual about a stack of slices, in the words of a report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TILT_DEG = 0.5  # from here on a gantry counts as tilted
_RUNS = 6  # more runs of equal spacing than this are summed up
_STEEP_DEG = 45.0  # beyond this a slice is not axial, and a tilt tells nothing about table travel


@dataclass(frozen=True)
class Facts:
    """What :func:`remarks` speaks about; lengths in mm, angles in degrees, ``steps`` along the slice normal."""

    patients: list[str]
    slices: int
    aside: int
    missing: int
    order: str
    repeats: int
    steps: NDArray[np.float64]
    uneven: bool
    tilt: float
    thickness: NDArray[np.float64]
    sizes: list[tuple[int, int]]
    pixels: NDArray[np.float64]


def remarks(facts: Facts) -> str:
    """Everything unusual, joined by semicolons; "" when there is nothing to say."""
    found = []
    if len(facts.patients) > 1:
        found.append(f"slices of {len(facts.patients)} patients ({', '.join(facts.patients[:5])}) under one series id")
    if facts.slices == 1:
        found.append("a single slice")
    if facts.aside:
        found.append(f"{count(facts.aside, 'slice')} in another orientation")
    if facts.missing:
        found.append(f"{count(facts.missing, 'slice')} without a position: ordered by {facts.order}, z unknown")
    if facts.repeats:
        found.append(f"{count(facts.repeats, 'slice')} at a position that another slice has")
    if facts.uneven:
        found.append(_spacing(facts))
    if abs(facts.tilt) > _STEEP_DEG:
        found.append(f"not axial: slices stand {abs(facts.tilt):.1f} degrees off the axial plane")
    elif abs(facts.tilt) >= TILT_DEG:
        found.append(f"gantry tilt {facts.tilt:.1f} degrees")
    low, high = _range(facts.thickness)
    if high > 1.1 * low:
        found.append(f"slice thickness {low:g} to {high:g} mm")
    if len(facts.sizes) > 1:
        shown = ", ".join(f"{rows} x {columns}" for rows, columns in facts.sizes[:4])
        found.append(f"mixed matrix sizes ({shown}{', ...' if len(facts.sizes) > 4 else ''})")
    low, high = _range(facts.pixels)
    if high > 1.01 * low:
        found.append(f"pixel size {low:.3f} to {high:.3f} mm")
    return "; ".join(found)


def count(number: int, noun: str) -> str:
    """``1 slice``, ``2 slices``; ``series`` stays as it is."""
    return f"{number} {noun}" if number == 1 or noun.endswith("s") else f"{number} {noun}s"


def _spacing(facts: Facts) -> str:
    along = facts.steps
    tilted = TILT_DEG <= abs(facts.tilt) <= _STEEP_DEG
    shown = along / np.cos(np.deg2rad(facts.tilt)) if tilted else along
    middle = float(np.median(shown))
    text = f"spacing {shown.min():.2f} to {shown.max():.2f} mm"
    runs = _runs(shown)
    if len(runs) <= _RUNS:
        text += f" (in order: {', '.join(runs)})"
    else:
        wide = int((shown > 1.5 * middle).sum())
        text += f" (median {middle:.2f} mm, {count(wide, 'interval')} above 1.5 times that)"
    if tilted:
        text += f" of table travel, {along.min():.2f} to {along.max():.2f} mm along the slice normal"
    return text


def _runs(steps: NDArray[np.float64]) -> list[str]:
    """``13 x 4.22``, ``1 x 1.14``: consecutive distances that are equal within 2 %."""
    out: list[list[float]] = []
    for step in steps.tolist():
        if out and abs(step - out[-1][0]) <= 0.02 * out[-1][0]:
            out[-1].append(step)
        else:
            out.append([step])
    return [f"{len(run)} x {np.median(run):.2f}" for run in out]


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
