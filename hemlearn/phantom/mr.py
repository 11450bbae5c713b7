"""MR examinations of heads with ventricles from normal to hydrocephalic: anatomy, what is measured on it, scanner.

The anatomy is that of the CT phantom as shares of tissue; the brain gives way where the ventricles grow. Whether a
head has hydrocephalus follows from its drawn anatomy (:class:`Measures`). Atrophy enlarges the ventricles too (ex
vacuo) and keeps the Evans index below its limit. Sulci tell nothing: they are wide or narrow with large and with small
ventricles, so that a network has the ventricles alone to go by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from hemlearn.phantom.anatomy import Array, Head, Points, draw_head, pick, sigmoid
from hemlearn.phantom.files import is_abnormal
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.tissue import floor_height, lateral_ventricles, paint_brain, paint_outside, thickness, vault
from hemlearn.phantom.volume import Streams, pixel_axes

Span = tuple[float, float]
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
    """Enlargement of the ventricles of a head."""

    head: Head  # the head with narrow ventricles
    growth_mm: float  # how far the walls of the lateral ventricles are pushed, before the tissue resists
    temporal: float  # share of that in the temporal horns
    third_mm: float  # how far each wall of the third ventricle is pushed

    @cached_property
    def _field(self) -> NDArray[np.float32]:
        """(4, X, Y, Z): distance to the lateral ventricles (mm), and the three parts of its gradient."""
        axes = [np.arange(low, high + 1.0, _STEP, dtype=np.float32) for low, high in _FIELD]
        x, y, z = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        distance = lateral_ventricles(self.head, (x, y, z)).reshape([len(axis) for axis in axes])
        slopes = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.0), _STEP))
        slopes /= np.maximum(np.sqrt((slopes**2).sum(axis=0)), 0.3)
        return np.concatenate([distance[None], slopes]).astype(np.float32)

    def grown(self, growth_mm: float, third: float) -> Dilation:
        """Another growth of the same head; the third ventricle's is a share of it."""
        found = replace(self, growth_mm=growth_mm, third_mm=third * growth_mm)
        found.__dict__["_field"] = self._field  # it depends on the head alone
        return found

    def origin(self, place: Points, depth: Array | None = None) -> Points:
        """Where tissue now at ``place`` (mm) was while the ventricles were narrow; ``depth``: under the skull there."""
        if self.growth_mm <= 0 and self.third_mm <= 0:
            return place
        x, y, z = place
        index = np.stack([(p - low) / _STEP for p, (low, _) in zip(place, _FIELD, strict=True)])
        distance, *normal = (ndimage.map_coordinates(part, index, order=1, mode="nearest") for part in self._field)
        if depth is None:
            depth = -vault(self.head, place).distance
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
    """What a radiologist would measure on the drawn anatomy, mm."""

    frontal_mm: float  # width of the frontal horns where they are widest
    skull_mm: float  # inner width of the skull in the same plane
    third_mm: float  # width of the third ventricle
    temporal_mm: float  # width of the wider temporal horn

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

    ``temporal`` is the share of the growth in the temporal horns, ``third`` that in the third ventricle.
    """
    found = Dilation(head, 0.0, temporal, 0.0)
    low, high = 0.0, _MOST_MM
    for _ in range(8):
        middle = 0.5 * (low + high)
        found = found.grown(middle, third)
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


def _box(across: Span, along: Span, level: float, step: float) -> tuple[Points, tuple[int, int]]:
    """Points of an axial plane, every 2 mm along y, and how many there are along y and x."""
    x, y = np.arange(*across, step, dtype=np.float32), np.arange(*along, 2.0, dtype=np.float32)
    yy, xx = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    return (xx, yy, np.full_like(xx, level)), (len(y), len(x))


def _evans(dilation: Dilation, levels: tuple[float, ...], step: float) -> tuple[float, float, float]:
    """Evans index, width of the frontal horns and inner width of the skull (mm) in the plane of the widest horns."""
    best, level = 0.0, levels[0]
    for z in levels:
        place, shape = _box((-44.0, 44.0), (-40.0, -14.0), z, step)
        inside = lateral_ventricles(dilation.head, dilation.origin(place)) <= 0
        width = _widest(inside.reshape(shape), step)
        if width > best:
            best, level = width, z
    place, shape = _box((-95.0, 95.0), (-60.0, 70.0), level, step)
    skull = float((vault(dilation.head, place).distance.reshape(shape) < 0).sum(axis=1).max()) * step
    return best / skull, best, skull


def _drawn(dilation: Dilation, across: Span, along: Span, level: float) -> NDArray[np.bool_]:
    """Ventricles of the painted brain in a box of an axial plane, steps of 0.5 mm across."""
    place, shape = _box(across, along, level, 0.5)
    return np.asarray(paint_brain(dilation.head, dilation.origin(place)).ventricle.reshape(shape) >= 0.5)


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


# --- One person, and what the head consists of.

SHARES = ("fluid", "grey", "white", "marrow", "fat", "muscle", "ventricle")
_GREY, _DURA = 100.0, -10_000.0
# Attenuation of the CT phantom's outside -> its tissues, as (HU, share of fat, share of muscle); the rest is bone or
# air, which give no signal.
_OUTSIDE = np.array([(-1000.0, 0.0, 0.0), (-95.0, 1.0, 0.0), (54.0, 0.0, 1.0), (75.0, 0.0, 0.8), (180.0, 0.0, 0.0)])
# State -> range of the wanted Evans index, of the ventricles' size before dilation, shares of the dilation in the
# temporal horns and in the third ventricle.
_STATES: dict[str, tuple[Span, Span, tuple[float, float]]] = {
    "normal": ((0.19, 0.272), (0.5, 0.65), (0.1, 0.12)),
    "atrophy": ((0.2, 0.295), (0.5, 0.95), (0.1, 0.12)),
    "hydrocephalus": ((0.307, 0.459), (0.9, 1.15), (0.45, 0.34)),
}
_PRESSED = 0.6  # width of sulci that are pressed against the skull, or of a young brain


@dataclass(frozen=True)
class MRHead:
    """One person."""

    head: Head  # anatomy, with narrow ventricles
    dilation: Dilation  # what enlarges them
    state: str  # normal, atrophy or hydrocephalus
    measures: Measures  # of the drawn anatomy
    # how strongly the white matter around the ventricles is altered, 0 to 1: vessel disease, or fluid pressed into it
    halo: float


def draw_mr_head(rng: Generator, hydrocephalus: bool) -> MRHead:
    """Draw one person, with or without hydrocephalus by the measures of the drawn anatomy.

    Half of those without have atrophy, and half of those with hydrocephalus have the wide sulci of it (as at normal
    pressure). Half of the others have narrow sulci. A fifth of all have ventricles of plainly different size on both
    sides.
    """
    while True:  # a skull may leave no room for the index that was drawn
        person = _draw_person(rng, hydrocephalus)
        if person.measures.hydrocephalus == hydrocephalus and (hydrocephalus or person.measures.evans < EVANS_LIMIT):
            return person


def _draw_person(rng: Generator, hydrocephalus: bool) -> MRHead:
    base = draw_head(rng)
    state = "hydrocephalus" if hydrocephalus else str(rng.choice(("normal", "atrophy")))
    (low, high), size, shares = _STATES[state]
    shrunken = state == "atrophy" or (hydrocephalus and rng.uniform() < 0.5)
    atrophy = 0.5 + 0.5 * float(rng.uniform()) if shrunken else 0.45 * base.atrophy
    width = 1.0 if shrunken or rng.uniform() < 0.5 else _PRESSED
    spread = 0.2 if rng.uniform() < 0.2 else 0.06
    lean = float(rng.uniform(-spread, spread))
    evans = low + (high - low) * float(rng.beta(1.1, 2.2) if hydrocephalus else rng.uniform())
    head = replace(
        base,
        atrophy=atrophy,
        sulcus_mm=width * (0.42 + 1.15 * atrophy + float(rng.uniform(0.0, 0.4))),
        subarachnoid_mm=width * (0.5 + 2.6 * atrophy + float(rng.uniform(0.0, 0.6))),
        ventricles=float(rng.uniform(*size)),
        ventricle_sides=(1.0 + lean, 1.0 - lean),
    )
    temporal, third = (float(share * rng.uniform(0.85, 1.15)) for share in shares)
    dilation = dilate(head, evans, temporal, third)
    halo = 0.9 * rng.uniform() if hydrocephalus else base.small_vessel * rng.uniform(0.2, 1.0)
    return MRHead(head, dilation, state, measure(dilation), float(halo))


def tissue_shares(person: MRHead, place: Points) -> dict[str, Array]:
    """What points (N,) in head coordinates (mm) consist of: shares in [0, 1] by :data:`SHARES`.

    What is missing to 1 is air; ``ventricle`` is a part of ``fluid``.
    """
    head, z = person.head, place[2]
    shell, floor = vault(head, place), floor_height(*place[:2])
    out = {name: np.zeros_like(z) for name in SHARES}
    free = np.ones_like(z)
    outer = np.flatnonzero((shell.distance > -8.0) | (z - floor[0] < 9.0))
    if outer.size:
        own, wall = np.full_like(z[outer], -95.0), shell.take(outer)
        free[outer] = paint_outside(head, own, pick(place, outer), wall, pick(floor, outer))
        rest = 1.0 - free[outer]
        levels, fat, muscle = _OUTSIDE.T
        out["fat"][outer] = rest * np.interp(own, levels, fat)
        out["muscle"][outer] = rest * np.interp(own, levels, muscle)
        thick = thickness(head, wall)
        depth = np.minimum(wall.distance, thick - wall.distance)
        spongy = np.clip((depth - 1.6) / 1.2, 0, 1) * np.clip((thick - 3.5) / 2.0, 0, 1)
        out["marrow"][outer] = np.clip((own - 75.0) / 105.0, 0, 1) * rest * spongy
    inner = np.flatnonzero((shell.distance < 2.0) & (z - floor[0] > -3.0) & (free > 0))
    if inner.size:
        came = person.dilation.origin(pick(place, inner), -shell.distance[inner])
        for name, value in _inside(head, came).items():
            out[name][inner] += free[inner] * value
    return out


def _inside(head: Head, place: Points) -> dict[str, Array]:
    """Shares of fluid, ventricle, grey and white matter in the cranial cavity; dura and sinuses give no signal."""
    # The CT painter mixes attenuations. With white matter at 0, grey at 100 and dura far below, the mixture tells the
    # shares of the tissues.
    coded = replace(head, white_hu=0.0, grey_hu=_GREY, csf_hu=0.0, falx_hu=_DURA, sinus_hu=_DURA, small_vessel=0.0)
    spaces = paint_brain(coded, place)
    dura = np.clip((spaces.hu + 0.1 * _GREY) / _DURA, 0.0, 1.0)
    fluid = np.maximum(spaces.csf, spaces.ventricle) * (1 - dura)
    solid = np.maximum(1.0 - fluid - dura, 0.0)
    grey = np.clip(spaces.hu / _GREY / np.maximum(solid, 0.05), 0.0, 1.0)
    shares = {"fluid": fluid, "ventricle": spaces.ventricle * (1 - dura)}
    return shares | {"grey": solid * grey, "white": solid * (1 - grey)}


# --- The MR scanner: contrast of a spin echo or an inversion, coil sensitivity, Rician noise, a scale without meaning.

# Tissue -> T1 and T2 in ms, proton density. Fat has the long T2 that a train of echoes shows; altered white matter
# holds more water.
TISSUES = {
    "fluid": (2569.0, 329.0, 1.0),
    "grey": (833.0, 83.0, 0.86),
    "white": (500.0, 70.0, 0.77),
    "marrow": (430.0, 60.0, 0.55),
    "fat": (350.0, 105.0, 0.95),
    "muscle": (900.0, 47.0, 0.9),
    "halo": (1100.0, 130.0, 0.9),
}
# Contrast -> ranges of repetition and echo time, ms; its brightest common tissue.
CONTRASTS = {"T2": ((3600.0, 6000.0), (88.0, 112.0), "fluid"), "T1": ((450.0, 620.0), (9.0, 15.0), "fat")}
# T1 of a volume after an inversion pulse, as of elderly heads in research: repetition, echo and inversion time, ms.
PREPARED = ((1900.0, 2400.0), (2.5, 4.5), (820.0, 1000.0))
LARGEST = 4095
SAMPLES = 2  # planes averaged over the thickness of a slice
_BOTTOM_MM = -44.0  # world z where a stack of the brain ends at the latest
_HALO_MM = 9.0


@dataclass(frozen=True)
class Coil:
    """How one series was taken."""

    contrast: str  # one of CONTRASTS
    repetition_ms: float
    echo_ms: float  # effective
    scale: float  # stored value of a signal of 1
    noise: float  # standard deviation of the noise in each channel, as a share of the grey matter's signal
    # (9,) coefficients of the logarithm of the sensitivity over x, y, z, their squares and products
    bias: tuple[float, ...]
    blur_mm: float  # standard deviation of the in-plane point spread
    inversion_ms: float = 0.0  # 0: none

    def signal(self, tissue: str) -> float:
        """Signal of a tissue: density x (1 - exp(-TR / T1)) x exp(-TE / T2).

        After an inversion the magnitude of 1 - 2 exp(-TI / T1) + exp(-TR / T1) takes the place of the second factor.
        """
        t1, t2, density = TISSUES[tissue]
        recovered = 1.0 - math.exp(-self.repetition_ms / t1)
        if self.inversion_ms:
            recovered = abs(2.0 - recovered - 2.0 * math.exp(-self.inversion_ms / t1))
        return density * recovered * math.exp(-self.echo_ms / t2)

    def sensitivity(self, x: Array, y: Array, z: float) -> Array:
        """Receiver sensitivity at positions in mm, about 1."""
        u, v = (np.asarray(place / 100.0, dtype=np.float32) for place in (x, y))
        w = z / 100.0
        terms = (u, v, np.full_like(u, w), u * u, v * v, np.full_like(u, w * w), u * v, u * w, v * w)
        total = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=np.float32)
        for coefficient, term in zip(self.bias, terms, strict=True):
            total += np.float32(coefficient) * term
        return np.asarray(np.exp(total))


def draw_coil(rng: Generator, contrast: str) -> Coil:
    """Draw times, scale, noise and sensitivity at random."""
    *times, brightest = CONTRASTS[contrast]
    if contrast == "T1" and rng.uniform() < 0.6:
        times = [*PREPARED]
    repetition, echo, *inversion = (float(round(rng.uniform(*span), 1)) for span in times)
    bias = tuple(map(float, (*rng.normal(0.0, 0.16, size=3), *rng.normal(0.0, 0.22, size=6))))
    noise, blur = float(rng.uniform(0.02, 0.11)), float(rng.uniform(0.4, 1.1))
    coil = Coil(contrast, repetition, echo, 1.0, noise, bias, blur, *inversion)
    # The brightest common tissue is stored somewhere between 300 and 2500: no two scanners agree.
    return replace(coil, scale=300.0 * float(2.0 ** rng.uniform(0.0, 3.0)) / coil.signal(brightest))


def acquire_mr(
    coil: Coil, rng: Generator, shares: dict[str, Array], halo: Array, pixel_mm: float, z_mm: float
) -> NDArray[np.uint16]:
    """The magnitude image of the slice at world z ``z_mm``: uint16, at most :data:`LARGEST`.

    ``shares`` of tissues, and ``halo``, the altered share of the white matter, are (rows, cols).
    """
    image = np.zeros_like(halo)
    for tissue in TISSUES:
        if tissue == "halo":
            image += shares["white"] * halo * np.float32(coil.signal("halo") - coil.signal("white"))
        else:
            image += shares[tissue] * np.float32(coil.signal(tissue))
    y, x = pixel_axes(image.shape, pixel_mm)
    image = ndimage.gaussian_filter(image, coil.blur_mm / pixel_mm, truncate=3.0) * coil.sensitivity(x, y, z_mm)
    deviation = np.float32(coil.noise * coil.signal("grey"))
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * deviation
    magnitude = np.sqrt((image + real) ** 2 + imaginary**2) * np.float32(coil.scale)
    return np.asarray(np.clip(np.rint(magnitude), 0, LARGEST).astype(np.uint16))


@dataclass
class MRSeries:
    """One contrast."""

    # uint16, shape (slices, rows, cols); slice 0 is the lowest, row 0 anterior, column 0 the patient's right
    signal: NDArray[np.uint16]
    coil: Coil  # how it was taken


@dataclass
class MRExam:
    """One examination with its truth."""

    person: MRHead  # the head
    series: list[MRSeries]  # one per contrast
    z_mm: tuple[float, ...]  # world z of the slice centres
    pixel_mm: float  # in-plane spacing
    thickness_mm: float  # slice thickness; the spacing is larger by the gap
    spacing_mm: float  # distance of neighbouring slices


def draw_exam(seed: int, patient: int, grid: Grid | None = None) -> MRExam:
    """One patient's examination: T2, T1 or both; :func:`is_abnormal` have hydrocephalus.

    Two in five series show the whole head, from the neck to the air above it, the others the brain.

    ``grid`` gives rows, columns, pixel spacing and number of slices instead of the protocol's own.
    """
    streams = Streams.of(seed, patient)
    rng = streams.layout
    # Everything about the examination is drawn before, and without regard to, the label.
    thickness_mm, gap = float(rng.choice((5.0, 6.0))), float(rng.choice((0.5, 1.0, 1.5)))
    pixel, which = round(float(rng.uniform(1.43, 1.53)), 3), float(rng.uniform())
    spacing, drop, bottom = thickness_mm + gap, float(rng.uniform(4.0, 12.0)), _BOTTOM_MM
    if grid is None and rng.uniform() < 0.4:
        drop, bottom = float(rng.uniform(-40.0, 0.0)), _BOTTOM_MM - float(rng.uniform(30.0, 90.0))
    person = draw_mr_head(streams.anatomy, is_abnormal(seed, patient))
    sizes = grid or Grid(rows=160, cols=160, pixel_mm=pixel)
    top = replace(sizes, thickness_mm=spacing, drop_mm=drop, slices=1, z_mm=None).centres(person.head)[0]
    if grid is None:
        count = int((top - bottom) / spacing) + 1
    else:
        count = grid.slices
        spacing = (top - bottom) / (count - 1)
    levels = tuple(round(top - spacing * k, 4) for k in reversed(range(count)))
    wanted = [name for name, share in (("T2", which < 0.7), ("T1", which > 0.4)) if share]
    coils = [draw_coil(streams.scanner, contrast) for contrast in wanted]
    slices = [(*_slice(person, sizes, z, thickness_mm), sizes.pixel_mm, z) for z in levels]
    series = [
        MRSeries(np.stack([acquire_mr(coil, streams.scanner, *drawn) for drawn in slices]), coil) for coil in coils
    ]
    return MRExam(person, series, levels, sizes.pixel_mm, thickness_mm, spacing)


def _slice(person: MRHead, grid: Grid, z_mm: float, thickness_mm: float) -> tuple[dict[str, Array], Array]:
    """Tissue shares of one slice, averaged over its thickness, and the altered share of its white matter."""
    shape = (grid.rows, grid.cols)
    total = {name: np.zeros(grid.rows * grid.cols, dtype=np.float32) for name in SHARES}
    for keep, place, _ in grid.planes(person.head, z_mm, thickness_mm, SAMPLES):
        for name, share in tissue_shares(person, place).items():
            total[name][keep] += share / SAMPLES
    shares: dict[str, Array] = {name: share.reshape(shape) for name, share in total.items()}
    halo = np.zeros(shape, dtype=np.float32)
    fluid = shares["ventricle"] >= 0.5
    if fluid.any() and person.halo > 0:
        gap = ndimage.distance_transform_edt(~fluid).astype(np.float32) * np.float32(grid.pixel_mm)
        halo = np.float32(0.6 * person.halo) * np.clip(1.0 - gap / _HALO_MM, 0.0, 1.0)
    return shares, halo
