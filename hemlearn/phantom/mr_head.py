"""A head for MR: the anatomy of the CT phantom with ventricles from normal to hydrocephalic, as shares of tissue.

Whether a head has hydrocephalus follows from its drawn anatomy (:class:`hemlearn.phantom.mr_head.Measures`).
Atrophy enlarges the ventricles too (ex vacuo), with wide sulci, and keeps the Evans index below its limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.phantom.anatomy import Array, Head, draw_head, sigmoid
from hemlearn.phantom.brain import lateral_ventricles, paint_brain
from hemlearn.phantom.skull import Vault, floor_height, paint_outside, thickness, vault

# --- Ventricles from narrow to hydrocephalic: the brain around them is pushed aside, and what a radiologist measures.


Points = tuple[Array, Array, Array]
EVANS_LIMIT = 0.3
THIRD_MM, TEMPORAL_MM = 6.5, 5.0  # widths from which the third ventricle counts as round, and a temporal horn as wide
_STEP = 4.0  # mm, of the grid that holds the distance to the ventricles; the field is smooth
_FIELD = ((-76.0, 76.0), (-76.0, 88.0), (-48.0, 68.0))
_FADE_MM = 34.0  # tissue this far away is pushed by a third of what the ventricle's wall is
_RIGID_MM = 24.0  # nearer than this to the skull tissue gives way less
_CORE_MM = 2.0  # points deeper in a ventricle than this stay where they are
_MOST_MM = 32.0


@dataclass(frozen=True)
class Dilation:
    """Enlargement of the ventricles of a head.

    Attributes:
        head: The head with narrow ventricles.
        growth_mm: How far the walls of the lateral ventricles are pushed, before the tissue resists.
        temporal: Share of that in the temporal horns.
        third_mm: How far each wall of the third ventricle is pushed.
    """

    head: Head
    growth_mm: float
    temporal: float
    third_mm: float

    @cached_property
    def _field(self) -> NDArray[np.float32]:
        """(4, X, Y, Z): distance to the lateral ventricles (mm), and the three parts of its gradient."""
        axes = [np.arange(low, high + 1.0, _STEP, dtype=np.float32) for low, high in _FIELD]
        x, y, z = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        distance = lateral_ventricles(self.head, x, y, z).reshape([len(axis) for axis in axes])
        slopes = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.0), _STEP))
        slopes /= np.maximum(np.sqrt((slopes**2).sum(axis=0)), 0.3)
        return np.concatenate([distance[None], slopes]).astype(np.float32)

    def origin(self, place: Points, depth: Array | None = None) -> Points:
        """Where tissue now lies in the head with narrow ventricles.

        Args:
            place: Head coordinates, mm.
            depth: Depth under the inner table there, mm, where it is known already.
        """
        if self.growth_mm <= 0 and self.third_mm <= 0:
            return place
        x, y, z = place
        index = np.stack([(p - low) / _STEP for p, (low, _) in zip(place, _FIELD, strict=True)])
        distance, *normal = (ndimage.map_coordinates(part, index, order=1, mode="nearest") for part in self._field)
        if depth is None:
            depth = -vault(self.head, x, y, z).distance
        near = np.clip(depth / _RIGID_MM, 0.0, 1.0)
        left, right = self.head.ventricle_sides
        amount = np.where(x > 0, np.float32(2 * left - 1), np.float32(2 * right - 1)) * self.growth_mm
        amount = amount * (self.temporal + (1 - self.temporal) * sigmoid((z + 0.35 * y - 2.0) / 5.0))
        # Under the tentorium, and under the temporal lobes in front of it, nothing is pushed.
        behind = sigmoid((y - 8.0 - 0.5 * np.abs(x)) / 4.0)
        tent = -0.5 * np.sqrt(0.9 * x * x + 0.55 * (y - 27.0) ** 2 + 4.0)
        amount = amount * sigmoid((z + 26.0 - behind * (tent + 26.0)) / 3.0)
        amount = amount * np.exp(-np.maximum(distance, 0.0) / _FADE_MM) * near
        amount = np.clip(np.minimum(amount, distance + _CORE_MM), 0.0, None)
        x, y, z = (p - n * amount for p, n in zip((x, y, z), normal, strict=True))
        level = np.clip(1.0 - ((y - 2.0) / 19.0) ** 2 - ((z + 1.0) / 14.0) ** 2, 0.0, 1.0)
        push = self.third_mm * np.sqrt(level) * np.exp(-np.abs(x) / 18.0)
        x = np.sign(x) * np.maximum(np.abs(x) - push, 0.0)
        return x.astype(np.float32), y.astype(np.float32), z.astype(np.float32)


@dataclass(frozen=True)
class Measures:
    """What a radiologist would measure on the drawn anatomy, mm.

    Attributes:
        frontal_mm: Width of the frontal horns where they are widest.
        skull_mm: Inner width of the skull in the same plane.
        third_mm: Width of the third ventricle.
        temporal_mm: Width of the wider temporal horn.
    """

    frontal_mm: float
    skull_mm: float
    third_mm: float
    temporal_mm: float

    @property
    def evans(self) -> float:
        """Evans index."""
        return self.frontal_mm / self.skull_mm

    @property
    def hydrocephalus(self) -> bool:
        """Whether the anatomy is that of hydrocephalus: index above 0.3, round third ventricle, wide temporal horns."""
        return self.evans > EVANS_LIMIT and self.third_mm >= THIRD_MM and self.temporal_mm >= TEMPORAL_MM


def dilate(head: Head, evans: float, temporal: float, third: float) -> Dilation:
    """The dilation that gives an Evans index, within 0.003 where it can be reached; none where the head has more.

    Args:
        head: The head with narrow ventricles.
        evans: Wanted index.
        temporal: Share of the growth in the temporal horns.
        third: Growth of the third ventricle per growth of the lateral ones.
    """
    found = Dilation(head, 0.0, temporal, 0.0)
    field = found._field
    low, high = 0.0, _MOST_MM
    for _ in range(8):
        middle = 0.5 * (low + high)
        found = replace(found, growth_mm=middle, third_mm=third * middle)
        found.__dict__["_field"] = field  # the field depends on the head alone
        if _evans(found, (4.0, 8.0, 12.0, 16.0), 1.0)[0] < evans:
            low = middle
        else:
            high = middle
    return found


def measure(dilation: Dilation) -> Measures:
    """Measure the drawn anatomy in planes of constant head z."""
    _, frontal, skull = _evans(dilation, (0.0, 4.0, 8.0, 12.0, 16.0, 20.0), 0.5)
    third = max(_widest(_drawn(dilation, (-16.0, 16.0), (-6.0, 8.0), level), 0.5) for level in (-4.0, -1.0))
    temporal = max(
        _longest(_drawn(dilation, side, (-6.0, 16.0), level), 0.5)
        for side in ((18.0, 50.0), (-50.0, -18.0))
        for level in (-20.0, -15.0)
    )
    return Measures(frontal, skull, third, temporal)


def _box(
    across: tuple[float, float], along: tuple[float, float], level: float, step: float
) -> tuple[Points, tuple[int, int]]:
    x = np.arange(across[0], across[1], step, dtype=np.float32)
    y = np.arange(along[0], along[1], 2.0, dtype=np.float32)
    yy, xx = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    return (xx, yy, np.full_like(xx, level)), (len(y), len(x))


def _evans(dilation: Dilation, levels: tuple[float, ...], step: float) -> tuple[float, float, float]:
    """Evans index, width of the frontal horns and inner width of the skull (mm) in the plane of the widest horns."""
    best, level = 0.0, levels[0]
    for z in levels:
        place, shape = _box((-44.0, 44.0), (-40.0, -14.0), z, step)
        inside = lateral_ventricles(dilation.head, *dilation.origin(place)) <= 0
        width = _widest(inside.reshape(shape), step)
        if width > best:
            best, level = width, z
    skull = 0.0
    place, shape = _box((-95.0, 95.0), (-60.0, 70.0), level, step)
    skull = float((vault(dilation.head, *place).distance.reshape(shape) < 0).sum(axis=1).max()) * step
    return best / skull, best, skull


def _drawn(
    dilation: Dilation, across: tuple[float, float], along: tuple[float, float], level: float
) -> NDArray[np.bool_]:
    """Ventricles of the painted brain in a box of an axial plane, steps of 0.5 mm across."""
    place, shape = _box(across, along, level, 0.5)
    came = dilation.origin(place)
    shell, floor = vault(dilation.head, *came), floor_height(came[0], came[1])
    return np.asarray(paint_brain(dilation.head, *came, shell, floor).ventricle.reshape(shape) >= 0.5)


def _widest(rows: NDArray[np.bool_], step: float) -> float:
    """From the outermost to the outermost point of the widest row, mm."""
    first, last = rows.argmax(axis=1), rows.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)
    return float(np.where(rows.any(axis=1), step * (last - first + 1), 0.0).max())


def _longest(rows: NDArray[np.bool_], step: float) -> float:
    """The longest run of points in a row, mm."""
    best = run = np.zeros(len(rows))
    for column in rows.T:
        run = np.where(column, run + 1, 0)
        best = np.maximum(best, run)
    return step * float(best.max())


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
