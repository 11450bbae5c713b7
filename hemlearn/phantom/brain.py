"""The brain and the spaces around it: cortex, sulci, nuclei, ventricles, cisterns, falx and tentorium."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hemlearn.phantom.anatomy import Array, Head, chain, cover, ellipsoid, sigmoid, smooth_min, union
from hemlearn.phantom.skull import Vault

CORTEX_MM = 3.2
TENTORIUM_APEX = (0.0, 27.0, 0.0)
# Lateral ventricle of one side as (|x|, y, z, radius): frontal horn, body, atrium, then the two horns. The
# chain is measured with z halved, which makes the tubes taller than wide.
_HORN = ((15.0, -33.0, 2.0, 1.6), (10.5, -27.0, 7.0, 4.2), (7.2, -15.0, 12.0, 4.3), (5.6, -4.0, 17.0, 3.8))
_BODY = ((6.5, -14.0, 20.0, 4.2), (9.0, 6.0, 23.0, 4.8), (15.0, 23.0, 20.0, 5.2), (23.5, 34.0, 9.0, 5.8))
_OCCIPITAL = ((23.5, 34.0, 9.0, 5.8), (25.0, 46.0, 5.0, 3.6), (21.0, 60.0, 4.0, 1.5))
_TEMPORAL = ((23.5, 34.0, 9.0, 5.4), (33.0, 21.0, -10.0, 2.6), (32.0, 2.0, -20.0, 1.9), (28.0, -8.0, -22.0, 1.4))


@dataclass
class Spaces:
    """What the lesions need to know about the inside of the head; arrays of shape (N,).

    Attributes:
        hu: Attenuation.
        csf: Coverage of subarachnoid space: sulci, fissures, cisterns.
        csf_mm: Signed distance to that space, mm.
        ventricle: Coverage of the ventricles.
        depth: Depth under the inner table and over the base, mm.
        midline: Distance from the falx plane, mm, where the fissure exists, else large.
        tentorium: Signed height over the tentorium, mm.
        supratentorial: Coverage of the part above the tentorium.
    """

    hu: Array
    csf: Array
    csf_mm: Array
    ventricle: Array
    depth: Array
    midline: Array
    tentorium: Array
    supratentorial: Array


def lateral_ventricles(head: Head, x: Array, y: Array, z: Array) -> Array:
    """Signed distance (mm) to the lateral ventricles, with the person's size and asymmetry."""
    ax, zz = np.abs(x), 0.5 * z
    side = np.where(x > 0, np.float32(head.ventricle_sides[0]), np.float32(head.ventricle_sides[1]))
    size = head.ventricles * side

    def tube(knots: tuple[tuple[float, float, float, float], ...], grow: float) -> Array:
        # A larger ventricle bulges outward, away from the septum.
        spread = 1.0 + 0.10 * (head.ventricles - 1.0)
        half = [(kx * spread, ky, 0.5 * kz, kr) for kx, ky, kz, kr in knots]
        lean = [(a, b, c, 0.0) for a, b, c, _ in half]
        mean = float(np.mean([k[3] for k in half]))
        inner = chain(ax, y, zz, [(a, b, c, r - mean) for (a, b, c, _), (_, _, _, r) in zip(lean, half, strict=True)])
        return inner - mean * (1.0 + grow * (size - 1.0))

    main = smooth_min(tube(_HORN, 1.0), tube(_BODY, 1.0), 3.0)
    rear = smooth_min(tube(_OCCIPITAL, 1.3), tube(_TEMPORAL, 1.1), 2.0)
    both = smooth_min(main, rear, 4.0) + 0.45 * head.relief(3.0 * x, 3.0 * y, 1.5 * z)
    septum = 0.7 - ax
    return np.maximum(both, septum).astype(np.float32, copy=False)


def _inner_ventricles(head: Head, x: Array, y: Array, z: Array) -> Array:
    """Signed distance (mm) to the third and fourth ventricles with foramina and aqueduct."""
    size = head.ventricles
    third = ellipsoid(x, y, z, (0.0, 2.0, -1.0), (1.0 + 1.9 * size, 15.0, 11.0))
    monro = chain(np.abs(x), y, z, [(0.0, -9.0, 5.0, 1.0), (5.0, -11.0, 9.0, 1.2)])
    aqueduct = chain(x, y, z, [(0.0, 17.0, -6.0, 0.9), (0.0, 24.0, -20.0, 0.9)])
    fourth = ellipsoid(x, y, z, (0.0, 29.0, -33.0), (4.5 + 3.0 * size, 3.0 + 1.8 * size, 12.0))
    return union(third, monro, aqueduct, fourth)


def _cisterns(head: Head, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Signed distances (mm) to the basal cisterns and to the brainstem within them."""
    ax = np.abs(x)
    open_mm = 0.8 + 1.7 * head.atrophy
    midbrain = ellipsoid(x, y, z, (0.0, 12.0, -13.0), (15.5, 12.5, 13.0))
    peduncles = ellipsoid(ax, y, z, (9.0, 4.0, -15.0), (6.5, 7.5, 11.0))
    pons = ellipsoid(x, y, z, (0.0, 13.5, -31.0), (16.5, 13.0, 14.0))
    medulla = chain(x, y, z, [(0.0, 19.0, -42.0, 9.0), (0.0, 25.0, -75.0, 6.5)])
    stem = smooth_min(smooth_min(np.minimum(midbrain, peduncles), pons, 5.0), medulla, 4.0)
    # Suprasellar star: its rays run to the Sylvian fissures, the midline and the ambient cisterns.
    reach = np.sqrt(x * x + (y + 6.0) ** 2)
    angle = np.arctan2(y + 6.0, x)
    star = reach - (9.5 + 1.2 * open_mm + 3.8 * np.cos(5.0 * (angle + np.pi / 2.0)))
    star = np.maximum(star, np.abs(z + 17.0) - 8.0)
    ambient = np.maximum(midbrain - 0.9 - open_mm, np.maximum(2.0 - y, np.abs(z + 11.0) - 10.0))
    plate = ellipsoid(x, y, z, (0.0, 27.0, -4.0), (7.0 + 2.0 * open_mm, 3.5 + open_mm, 8.0))
    prepontine = np.maximum(pons - 2.2 - 1.6 * open_mm, y - 12.0)
    angle_cistern = ellipsoid(ax, y, z, (20.0, 11.0, -33.0), (7.0, 2.0 + open_mm, 7.0))
    magna = ellipsoid(x, y, z, (0.0, 52.0, -55.0), (12.0, 9.0, 7.0))
    cord = np.maximum(medulla - 4.0, z + 40.0)
    return union(star, ambient, plate, prepontine, angle_cistern, magna, cord), stem


def _sylvian(wander: Array, x: Array, y: Array, z: Array) -> Array:
    """Distance (mm) to the Sylvian fissure's sheets: over the insula, and out to the surface."""
    ax = np.abs(x)
    wave = 1.6 * wander
    insula = np.abs(ax - (39.5 - 0.012 * (y + 4.0) ** 2) + 0.5 * wave)
    insula = np.maximum(insula, np.maximum(np.abs(y + 5.0 - 0.35 * z) - 19.0, np.abs(z - 2.0) - 15.0))
    stem = 0.72 * np.abs(y + 15.0 - 0.95 * z - 0.16 * (ax - 39.0) + wave)
    stem = np.maximum(stem, np.maximum(37.0 - ax, np.abs(z - 6.0) - 20.0))
    basal = 0.8 * np.abs(y + 14.0 + 0.25 * (ax - 12.0) + 0.4 * wave)
    basal = np.maximum(basal, np.maximum(np.maximum(10.0 - ax, ax - 40.0), np.abs(z + 14.5) - 3.5))
    return union(insula, stem, basal)


def nuclei(x: Array, y: Array, z: Array) -> Array:
    """Signed distance (mm) to the deep grey matter: caudate head, lentiform nucleus and thalamus."""
    ax = np.abs(x)
    caudate = ellipsoid(ax, y, z, (14.0, -21.0, 8.0), (5.0, 9.5, 11.0))
    lean = np.float32(0.34)
    u, v = (ax - 24.5) - lean * (y + 3.0) * 0.35, (y + 3.0) + lean * (ax - 24.5)
    lentiform = ellipsoid(u, v, z, (0.0, 0.0, 3.0), (6.8, 17.0, 10.5))
    thalamus = ellipsoid(ax - 0.28 * (y - 9.0), y, z, (10.0, 9.0, 5.0), (7.6, 14.0, 10.0))
    return union(caudate, lentiform, thalamus)


def paint_brain(head: Head, x: Array, y: Array, z: Array, shell: Vault, floor: tuple[Array, Array, Array]) -> Spaces:
    """Draw everything inside the cranial cavity.

    Args:
        head: The head.
        x: Head coordinates in mm after displacement by mass effect; y and z likewise, shape (N,).
        y: See ``x``.
        z: See ``x``.
        shell: From ``vault`` at the same coordinates.
        floor: From ``floor_height`` at the same coordinates.

    Returns:
        Attenuation and spaces; outside the cavity the values mean nothing.
    """
    base, behind, _ = floor
    ax = np.abs(x)
    # Structures that this plane cannot meet are not evaluated.
    lowest, highest = float(z.min()), float(z.max())
    far = np.full(x.shape, 99.0, dtype=np.float32)
    above = np.minimum(0.75 * (z - base), 60.0)
    depth = np.minimum(-shell.distance, above)
    apex = TENTORIUM_APEX
    span = np.sqrt(0.9 * x * x + 0.55 * (y - apex[1]) ** 2 + 4.0)
    tent = 0.85 * (z - (apex[2] - 0.5 * span))
    supra = np.maximum(cover(-tent), 1.0 - behind)

    # Midline: the fissure stays out of the corpus callosum and what lies under it.
    bend = 1.0 * head.relief(0 * x + 40.0, y, z) * cover(-depth + 15.0, 20.0)
    mx = x + bend
    ring = np.sqrt(((y + 1.0) / 43.0) ** 2 + (np.maximum(z - 6.0, 0.25 * (z - 6.0)) / 25.0) ** 2)
    inside_ring = (1.0 - ring) * 26.0
    gap = np.abs(mx)
    midline = np.maximum(gap, inside_ring)
    midline = np.where(z < -24, 99.0, midline) + 99.0 * (1.0 - np.clip(supra, 0, 1))
    fissure_mm = 0.45 + 0.9 * head.atrophy + 0.5 * (y < 0) * head.atrophy

    # Depth under the pia, from whichever surface is nearest, and the point of that surface.
    sas = head.subarachnoid_mm * (1.0 + 0.35 * head.relief(z, x, y) + 0.35 * np.clip(-y / 80.0, -0.5, 1.0))
    sas = np.maximum(sas * (0.5 + 0.5 * supra), 0.25)
    outer = depth - sas
    medial = midline - fissure_mm
    lower = np.where(behind > 0.5, np.abs(tent) - 0.6, 99.0)
    pial = union(outer, medial, lower)
    side = np.where(medial < outer, 0.0, 1.0).astype(np.float32)
    push = np.clip(depth, 0.0, 40.0) * side
    wx, wy = head.wander(x, y, z), head.wander(y, z, x)
    sx = np.where(side > 0, x + shell.radial[0] * push, np.sign(x) * 9.0) + 1.7 * wx
    sy, sz = y + shell.radial[1] * push + 1.7 * wy, z + shell.radial[2] * push

    infra = 1.0 - supra
    # Only the outer shell of the brain has sulci; the rest is spared the cost.
    shallow = np.flatnonzero((pial < 27.0) & (pial > -2.0) & (supra > 0.3))
    crease = np.full(x.shape, 99.0, dtype=np.float32)
    reach = np.full(x.shape, 1.0, dtype=np.float32)
    if shallow.size:
        at = (sx[shallow], sy[shallow], sz[shallow])
        crease[shallow] = head.sulci.crease(*at)
        reach[shallow] = np.clip(14.0 + 5.0 * head.wander(at[2], at[0], at[1]), 5.0, 24.0) * (0.6 + 0.4 * side[shallow])
    breadth = head.sulcus_mm * (0.75 + 0.55 * head.relief(sy, sz, sx)) * (1.25 - 0.7 * np.clip(pial / reach, 0, 1))
    breadth = np.maximum(breadth, 0.05)
    sulcus = np.maximum(crease - breadth, pial - reach)
    sylvian_mm = 0.35 + 1.9 * head.atrophy
    sylvian = far if lowest > 30.0 else _sylvian(wx, x, y, z) - sylvian_mm * (0.8 + 0.3 * wx)
    sylvian = np.where(supra > 0.5, sylvian, 99.0)
    cistern, stem = _cisterns(head, x, y, z) if lowest < 14.0 else (far, far)
    cistern = cistern + 0.3 * wx

    ventricle_mm = lateral_ventricles(head, x, y, z) if lowest < 45.0 and highest > -32.0 else far
    inner_mm = _inner_ventricles(head, x, y, z) if lowest < 16.0 else far
    ventricle = np.maximum(cover(ventricle_mm) * supra, cover(inner_mm))

    # White matter first, cortex along every pial surface, then the nuclei.
    to_pia = np.minimum(np.minimum(pial, sulcus), sylvian)
    grey = cover(to_pia - CORTEX_MM, 2.2)
    if lowest < 22.0 and highest > -12.0:
        grey = np.maximum(grey, cover(nuclei(x, y, z) + 0.8 * wy, 1.8))
    tissue = head.white_hu + (head.grey_hu - head.white_hu) * grey
    lesser = head.small_vessel * 6.5 * (1 - grey) * np.clip(1.0 - np.maximum(ventricle_mm, 0) / 13.0, 0, 1)
    tissue = tissue - lesser
    # Cerebellum: folia too fine to resolve leave faint concentric bands.
    folia = np.sin(1.5 * np.minimum(depth, lower * 1.2) + 2.0 * wx)
    vermis = cover(ax - 6.0, 4.0)
    cerebellum = head.grey_hu - 2.5 + 1.3 * folia + 2.0 * vermis - 2.5 * cover(7.0 - depth, 8.0) * (1 - vermis)
    tissue = tissue * supra + cerebellum * infra
    stem_cover = cover(stem)
    tissue = tissue + stem_cover * (head.white_hu + 3.5 - tissue)
    tissue = tissue + 1.1 * head.grain(x, y, z)

    csf_mm = np.maximum(union(pial, sulcus, sylvian, cistern), -stem)
    csf = cover(csf_mm) * (1 - stem_cover)
    front_fossa = infra * sigmoid((9.0 - y + 0.2 * ax) / 1.0) * (1 - stem_cover)
    csf = np.maximum(csf, front_fossa) * (1 - ventricle)
    fluid = np.maximum(csf, ventricle)
    hu = tissue + (head.csf_hu - tissue) * fluid

    # Dura and venous sinuses last: normally denser than brain.
    falx = cover(gap - 0.8, 0.9) * np.clip(ring * 3.0 - 3.2, 0, 1) * (supra > 0.5) * (z > -20)
    hu = hu + falx * (head.falx_hu - hu)
    sheet = cover(np.abs(tent) - 0.6, 0.9) * (behind > 0.5) * (y > apex[1] - 18.0 + 0.25 * ax)
    hu = hu + 0.8 * sheet * (head.falx_hu - hu)
    sagittal = cover(gap - np.maximum(4.2 - 0.75 * depth, 0.0)) * (depth < 6.0) * ((z > 20) | (y > 40)) * (supra > 0.3)
    straight = chain(x, y, z, [(0, 30, 2, 1.6), (0, 68, -14, 2.2)])
    transverse = chain(ax, y, z, [(0, 76, -17, 3.5), (40, 62, -19, 3.0), (56, 36, -22, 3.2)])
    veins = np.maximum(sagittal, cover(np.minimum(straight, np.maximum(transverse, depth - 9.0))))
    hu = hu + veins * (head.sinus_hu - hu)
    csf = csf * (1 - np.maximum(np.maximum(falx, veins), 0.8 * sheet))
    return Spaces(hu.astype(np.float32, copy=False), csf, csf_mm, ventricle, depth, midline, tent, supra)
