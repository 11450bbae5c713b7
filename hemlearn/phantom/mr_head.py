"""A head for MR: the anatomy of the CT phantom with ventricles from normal to hydrocephalic, as shares of tissue.

Whether a head has hydrocephalus follows from its drawn anatomy (:class:`hemlearn.phantom.mr_ventricles.Measures`).
Atrophy enlarges the ventricles too (ex vacuo), with wide sulci, and keeps the Evans index below its limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hemlearn.phantom.anatomy import Head, draw_head
from hemlearn.phantom.brain import paint_brain
from hemlearn.phantom.mr_ventricles import EVANS_LIMIT, Dilation, Measures, Points, dilate, measure
from hemlearn.phantom.shapes import Array
from hemlearn.phantom.skull import Vault, floor_height, paint_outside, thickness, vault

SHARES = ("fluid", "grey", "white", "marrow", "fat", "muscle", "ventricle")
_GREY, _DURA = 100.0, -10_000.0
# Attenuation of the CT phantom's outside -> its tissues, as (HU, share of fat, share of muscle); the rest is bone or
# air, which give no signal.
_OUTSIDE = np.array([(-1000.0, 0.0, 0.0), (-95.0, 1.0, 0.0), (54.0, 0.0, 1.0), (75.0, 0.0, 0.8), (180.0, 0.0, 0.0)])


@dataclass(frozen=True)
class _Kind:
    """What tells one state from another.

    Attributes:
        evans: Range of the wanted Evans index.
        ventricles: Range of the size before dilation.
        sulci: Factor of their width; below 1 they are pressed against the skull.
        temporal: Share of the dilation in the temporal horns.
        third: That of the third ventricle.
    """

    evans: tuple[float, float]
    ventricles: tuple[float, float]
    sulci: float
    temporal: float
    third: float


_KINDS = {
    "normal": _Kind((0.2, 0.268), (0.5, 0.65), 1.0, 0.1, 0.12),
    "atrophy": _Kind((0.235, 0.292), (0.7, 0.95), 1.0, 0.1, 0.12),
    "hydrocephalus": _Kind((0.309, 0.459), (0.9, 1.15), 0.6, 0.45, 0.34),
}


@dataclass(frozen=True)
class MRHead:
    """One person.

    Attributes:
        head: Anatomy, with narrow ventricles.
        dilation: What enlarges them.
        state: ``normal``, ``atrophy`` or ``hydrocephalus``.
        measures: Of the drawn anatomy.
        halo: How strongly the white matter around the ventricles is altered, 0 to 1: small vessel disease, or fluid
            pressed into it.
    """

    head: Head
    dilation: Dilation
    state: str
    measures: Measures
    halo: float


def draw_mr_head(rng: np.random.Generator, hydrocephalus: bool) -> MRHead:
    """Draw one person, with or without hydrocephalus by the measures of the drawn anatomy.

    Half of those without have atrophy. A fifth of all have ventricles of plainly different size on both sides.
    """
    while True:  # a skull may leave no room for the index that was drawn
        person = _draw(rng, hydrocephalus)
        if person.measures.hydrocephalus == hydrocephalus and (hydrocephalus or person.measures.evans < EVANS_LIMIT):
            return person


def _draw(rng: np.random.Generator, hydrocephalus: bool) -> MRHead:
    base = draw_head(rng)
    state = "hydrocephalus" if hydrocephalus else str(rng.choice(("normal", "atrophy")))
    kind = _KINDS[state]
    atrophy = 0.5 + 0.5 * float(rng.uniform()) if state == "atrophy" else 0.45 * base.atrophy
    spread = 0.2 if rng.uniform() < 0.2 else 0.06
    lean = float(rng.uniform(-spread, spread))
    evans = kind.evans[0] + (kind.evans[1] - kind.evans[0]) * float(
        rng.beta(1.1, 2.2) if hydrocephalus else rng.uniform()
    )
    head = replace(
        base,
        atrophy=atrophy,
        sulcus_mm=kind.sulci * (0.42 + 1.15 * atrophy + float(rng.uniform(0.0, 0.4))),
        subarachnoid_mm=kind.sulci * (0.5 + 2.6 * atrophy + float(rng.uniform(0.0, 0.6))),
        ventricles=float(rng.uniform(*kind.ventricles)),
        ventricle_sides=(1.0 + lean, 1.0 - lean),
    )
    temporal, third = (float(share * rng.uniform(0.85, 1.15)) for share in (kind.temporal, kind.third))
    dilation = dilate(head, evans, temporal, third)
    halo = 0.9 * rng.uniform() if hydrocephalus else base.small_vessel * rng.uniform(0.2, 1.0)
    return MRHead(head, dilation, state, measure(dilation), float(halo))


def tissue_shares(person: MRHead, x: Array, y: Array, z: Array) -> dict[str, Array]:
    """What points (N,) in head coordinates (mm) consist of.

    Returns:
        Shares in [0, 1] by :data:`SHARES`; what is missing to 1 is air. ``ventricle`` is a part of ``fluid``.
    """
    head = person.head
    shell = vault(head, x, y, z)
    floor = floor_height(x, y)
    out = {name: np.zeros_like(x) for name in SHARES}
    hu = np.full_like(x, -95.0)
    free = np.ones_like(x)
    outer = np.flatnonzero((shell.distance > -8.0) | (z - floor[0] < 9.0))
    if outer.size:
        place, ground = (x[outer], y[outer], z[outer]), (floor[0][outer], floor[1][outer], floor[2][outer])
        own, wall = hu[outer], shell.take(outer)
        free[outer] = paint_outside(head, own, place, wall, ground)
        rest = 1.0 - free[outer]
        levels, fat, muscle = _OUTSIDE.T
        out["fat"][outer] = rest * np.interp(own, levels, fat)
        out["muscle"][outer] = rest * np.interp(own, levels, muscle)
        thick = thickness(head, wall)
        depth = np.minimum(wall.distance, thick - wall.distance)
        spongy = np.clip((depth - 1.6) / 1.2, 0, 1) * np.clip((thick - 3.5) / 2.0, 0, 1)
        hard = np.clip((own - 75.0) / 105.0, 0, 1) * rest
        out["marrow"][outer] = hard * spongy
    inner = np.flatnonzero((shell.distance < 2.0) & (z - floor[0] > -3.0) & (free > 0))
    if inner.size:
        came = person.dilation.origin((x[inner], y[inner], z[inner]), -shell.distance[inner])
        share = _inside(head, came, vault(head, *came), floor_height(came[0], came[1]))
        for name, value in share.items():
            out[name][inner] += free[inner] * value
    return out


def _inside(head: Head, place: Points, shell: Vault, floor: Points) -> dict[str, Array]:
    """Shares of fluid, ventricle, grey and white matter in the cranial cavity; dura and sinuses give no signal."""
    # The CT painter mixes attenuations. With white matter at 0, grey at 100 and dura far below, the mixture tells the
    # shares of the tissues.
    coded = replace(head, white_hu=0.0, grey_hu=_GREY, csf_hu=0.0, falx_hu=_DURA, sinus_hu=_DURA, small_vessel=0.0)
    spaces = paint_brain(coded, *place, shell, floor)
    dura = np.clip((spaces.hu + 0.1 * _GREY) / _DURA, 0.0, 1.0)
    fluid = np.maximum(spaces.csf, spaces.ventricle) * (1 - dura)
    solid = np.maximum(1.0 - fluid - dura, 0.0)
    grey = np.clip(spaces.hu / _GREY / np.maximum(solid, 0.05), 0.0, 1.0)
    ventricle = spaces.ventricle * (1 - dura)
    return {"fluid": fluid, "ventricle": ventricle, "grey": solid * grey, "white": solid * (1 - grey)}
