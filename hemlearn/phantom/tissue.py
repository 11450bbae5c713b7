"""The tissues of a head in head coordinates (mm) and HU: skull with what lies outside it, brain with its spaces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hemlearn.phantom.anatomy import (
    Array,
    Head,
    Points,
    chain,
    cover,
    ellipsoid,
    most,
    pick,
    sigmoid,
    smooth_min,
    union,
)

VAULT_CENTRE_Z = 6.0
LOWER_HEIGHT = 105.0
CORTICAL_HU, DIPLOE_HU = 1350.0, 720.0
MUSCLE_HU, FAT_HU, SKIN_HU, SINUS_AIR_HU = 54.0, -95.0, 62.0, -960.0
CORTEX_MM = 3.2
TENTORIUM_APEX = (0.0, 27.0, 0.0)
# Lateral ventricle of one side as (|x|, y, z, radius): frontal horn, body, atrium, then the two horns. The
# chain is measured with z halved, which makes the tubes taller than wide.
_HORN = ((15.0, -33.0, 2.0, 1.6), (10.5, -27.0, 7.0, 4.2), (7.2, -15.0, 12.0, 4.3), (5.6, -4.0, 17.0, 3.8))
_BODY = ((6.5, -14.0, 20.0, 4.2), (9.0, 6.0, 23.0, 4.8), (15.0, 23.0, 20.0, 5.2), (23.5, 34.0, 9.0, 5.8))
_OCCIPITAL = ((23.5, 34.0, 9.0, 5.8), (25.0, 46.0, 5.0, 3.6), (21.0, 60.0, 4.0, 1.5))
_TEMPORAL = ((23.5, 34.0, 9.0, 5.4), (33.0, 21.0, -10.0, 2.6), (32.0, 2.0, -20.0, 1.9), (28.0, -8.0, -22.0, 1.4))


@dataclass
class Vault:
    """The inner table of the vault, seen from N points."""

    distance: Array  # signed distance in mm, negative inside the cranial cavity; shape (N,)
    surface: Points  # head coordinates (mm) of the radial projection on the inner table
    radial: Points  # unit vectors that point outward
    crest: Array  # how far (mm) the inner table bulges inward in the midline

    def take(self, index: NDArray[np.intp]) -> Vault:
        """The same at a subset of the points."""
        return Vault(self.distance[index], pick(self.surface, index), pick(self.radial, index), self.crest[index])


def vault(head: Head, place: Points) -> Vault:
    """Distance to the inner table: a superellipse in the axial plane, wider behind, an ellipse along z."""
    x, y, z = place
    p = head.squareness
    zc = z - VAULT_CENTRE_Z
    height = np.where(zc > 0, np.float32(head.height), np.float32(LOWER_HEIGHT))
    width = head.half_width * (1.0 + head.egg * np.clip(y / head.half_length, -1.1, 1.1))
    u = np.abs(x + head.skew * y) / width + 1e-6
    v = np.abs(y) / head.half_length + 1e-6
    up, vp = u**p, v**p
    m = up + vp
    q = m ** (1.0 / p)
    w = zc / height
    k = np.sqrt(q * q + w * w)
    ring = q * q / (m * k)
    slope_x, slope_y, slope_z = ring * up / u / width, ring * vp / v / head.half_length, w / (k * height)
    slope = np.sqrt(slope_x**2 + slope_y**2 + slope_z**2) + 1e-6
    distance = ((k - 1.0) / slope).astype(np.float32, copy=False)
    scale = 1.0 / np.maximum(k, 1e-3)
    sx, sy, sz = x * scale, y * scale, zc * scale + VAULT_CENTRE_Z
    # Each person's own bumps, the internal occipital protuberance and the frontal crest.
    bumps = 1.1 * head.relief(0.65 * sx, 0.65 * sy, 0.65 * sz)
    middle = np.exp(-((sx / 4.5) ** 2))
    crest = middle * np.where(sy > 0, 5.0 * np.exp(-(((sz + 14.0) / 12.0) ** 2)), 3.0 * sigmoid((20.0 - sz) / 4.0))
    length = np.sqrt(x * x + y * y + zc * zc) + 1e-3
    return Vault(distance + bumps + crest, (sx, sy, sz), (x / length, y / length, zc / length), crest)


def floor_height(x: Array, y: Array) -> Points:
    """The skull base under (x, y): three arrays (N,).

    Its height z (mm); the weight of the posterior fossa in [0, 1]; the distance (mm) to the nearest of its ridges: the
    petrous pyramid and, thinner, the lesser wing of the sphenoid.
    """
    ax = np.abs(x)
    wing = -21.0 - 0.62 * ax + 0.0042 * ax * ax + 1.2 * np.sin(0.16 * ax)
    petrous = 2.0 + 0.62 * (ax - 10.0) - 0.0028 * (ax - 10.0) ** 2 + 1.2 * np.sin(0.13 * ax + 0.8)
    orbit = np.exp(-(((ax - 29.0) / 15.0) ** 2) - ((y + 56.0) / 20.0) ** 2)
    anterior = -27.0 + 10.0 * orbit - 0.16 * (y + 50.0) - 3.0 * np.exp(-((x / 6.0) ** 2))
    lateral = -43.0 + 0.018 * ((ax - 38.0) ** 2 + 0.5 * (y + 8.0) ** 2)
    middle = np.maximum(lateral, -25.0 - 1.1 * np.maximum(ax - 12.0, 0.0))  # the sella between the temporal fossae
    posterior = -64.0 + 0.012 * (x * x + 0.8 * (y - 38.0) ** 2)
    behind_wing, behind = sigmoid((y - wing) / 1.5), sigmoid((y - petrous) / 2.0)
    floor = anterior * (1 - behind_wing) + behind_wing * (middle * (1 - behind) + posterior * behind)
    ridge = np.where((ax > 13) & (ax < 80), -22.0 - 1.25 * np.abs(y - petrous), -200.0)
    lesser = np.where(ax > 9, -15.5 - 0.11 * ax - 1.5 * np.abs(y - wing), -200.0)
    floor = most(floor, ridge, lesser)
    floor = np.where(np.sqrt(x * x + (y - 30.0) ** 2) < 15.0, -300.0, floor)  # foramen magnum
    gap = np.minimum(np.abs(y - petrous), np.abs(y - wing) + 6.5)
    return floor.astype(np.float32), behind.astype(np.float32), gap.astype(np.float32)


def thickness(head: Head, shell: Vault) -> Array:
    """Thickness (mm) of the vault at points of the inner table: thin at the temples, thick in the midline."""
    sx, sy, sz = shell.surface
    temple = np.exp(-(((sy + 18.0) / 28.0) ** 2) - ((sz + 5.0) / 22.0) ** 2) * np.clip(np.abs(sx) / 60.0, 0, 1)
    middle = np.exp(-((sx / 14.0) ** 2)) * (0.25 + 0.35 * (sy > 0) * np.exp(-(((sz + 14.0) / 16.0) ** 2)))
    factor = 1.0 - 0.42 * temple + middle + 0.09 * head.relief(sy, sz, sx)
    return np.asarray(head.skull_mm * factor + shell.crest)


def paint_outside(head: Head, hu: Array, place: Points, shell: Vault, floor: Points) -> Array:
    """Draw scalp, face, vault, base and sinuses over ``hu`` (N,), already drawn inside the cavity, in place.

    ``shell`` and ``floor`` come from :func:`vault` and :func:`floor_height`.
    Returns the coverage of the cranial cavity, (N,), bone excluded.
    """
    x, y, z = place
    base, _, ridge_gap = floor
    out = shell.distance
    thick = thickness(head, shell)
    scalp = head.scalp_mm * (1.0 + 0.12 * head.relief(*shell.surface))
    above = z - base
    cavity = cover(out, 1.0) * cover(-0.7 * above, 1.0)

    # Soft tissue outside: skin over fat, muscle at the temples, nape and face.
    beyond = out - thick
    muscle = np.clip(1.2 - np.abs(y + 22.0) / 30.0, 0, 1) * np.clip((28.0 - z) / 25.0, 0, 1) * (np.abs(x) > 40)
    ax = np.abs(x)
    low = float(z.min()) < -10.0
    if low:
        planes = np.clip(4.5 * np.abs(head.wander(1.4 * x, 1.4 * y, 0.7 * z)) - 0.4, 0, 1)
        muscle = most(muscle, np.clip((-24.0 - z) / 12.0, 0, 1) * planes)
        muscle = muscle * (1 - cover(ellipsoid(ax, y, z, (29.0, -60.0, -38.0), (17.0, 24.0, 16.0))))
    speckle = head.wander(x, y, z)
    soft = FAT_HU + (MUSCLE_HU - FAT_HU) * muscle + 4.0 * speckle
    skin = cover(np.abs(beyond - scalp + 1.2) - 1.2, 1.0)
    if low:
        globe = ellipsoid(ax, y, z, (31.0, -72.0, -38.0), (11.8, 12.0, 11.8))
        soft = soft + cover(globe) * (12.0 + 30.0 * cover(np.abs(globe + 0.8) - 0.8) - soft)
    soft = soft + skin * (SKIN_HU - soft)
    hu[:] = soft * (1 - cavity) + hu * cavity

    # Bone of the vault: two tables with diploe between; below the base only behind.
    wall = np.abs(out - 0.5 * thick) - 0.5 * thick
    facial = sigmoid((-26.0 - z) / 2.0) * sigmoid((-25.0 - y) / 3.0)
    ring = cover(wall, 1.0) * (1 - facial) * (1 - sigmoid((-58.0 - z) / 2.0))
    bone = np.maximum(ring, cover(np.abs(above + 1.6) - 1.6, 1.0) * cover(out, 1.0))
    if low:
        petrous = cover(above) * cover(ridge_gap - 9.0, 2.5) * (ax > 11) * (z > -50) * cover(out)
        clivus = cover(ellipsoid(x, y, z, (0.0, -6.0, -36.0), (11.0, 8.0, 15.0))) * cover(above)
        bone = most(bone, petrous, clivus)
    depth = np.minimum(out, thick - out)
    diploe = np.clip((depth - 1.6) / 1.2, 0, 1) * ring * np.clip((thick - 3.5) / 2.0, 0, 1)
    density = CORTICAL_HU - (CORTICAL_HU - DIPLOE_HU) * diploe + 60.0 * speckle
    density = np.where(ring > 0.5, density, 900.0 + 150.0 * speckle)
    hu[:] = hu * (1 - bone) + density * bone

    air = _air(head, place, out, thick, above)
    hu[:] = hu * (1 - air) + SINUS_AIR_HU * air
    outside = cover(beyond - scalp, 1.0)
    hu[:] = hu * outside - 1000.0 * (1 - outside)
    return np.asarray(cavity * (1 - np.maximum(bone, air)))


def _air(head: Head, place: Points, out: Array, thick: Array, above: Array) -> Array:
    """Coverage of pneumatised bone: frontal, ethmoid and sphenoid sinuses, mastoid cells."""
    x, y, z = place
    ax = np.abs(x)
    air = np.zeros_like(x)
    if head.frontal_sinus_mm > 1.0:
        half = 0.5 * thick
        span = cover(np.abs(ax - 11.0) - 9.0 - head.relief(z, x, y), 1.0)
        tall = cover(np.abs(z + 12.0) - 8.0 - head.frontal_sinus_mm, 2.0)
        air = cover(np.abs(out - half) - half + 1.6, 0.8) * span * tall * (y < 0)
    if float(z.min()) > -10.0:
        return air
    sphenoid = cover(ellipsoid(ax, y, z, (6.0, -20.0, -40.0), (5.2, 11.0, 9.0)))
    ethmoid = cover(ellipsoid(x, y, z, (0.0, -52.0, -38.0), (12.0, 19.0, 12.0)))
    ethmoid *= np.abs(head.wander(x * 2.2, y * 2.2, z * 2.2)) > 0.28
    cells = np.clip((ax - 40.0) / 6.0, 0, 1) * np.clip((y - 4.0) / 6.0, 0, 1) * (y < 44) * (z > -60) * (z < -22)
    cells = cells * (head.wander(x * 2.6, y * 2.6, z * 2.6) > 0.35) * (out < thick - 1.5)
    nose = cover(ellipsoid(x, y, z, (0.0, -72.0, -52.0), (9.0, 22.0, 16.0)))
    antrum = cover(ellipsoid(ax, y, z, (27.0, -58.0, -66.0), (14.0, 15.0, 14.0)))
    return np.maximum(air, most(sphenoid, ethmoid, cells, nose, antrum) * (above < -2.0))


@dataclass
class Spaces:
    """What the lesions need to know about the inside of the head; arrays of shape (N,)."""

    hu: Array  # attenuation
    csf: Array  # coverage of subarachnoid space: sulci, fissures, cisterns
    csf_mm: Array  # signed distance to that space, mm
    ventricle: Array  # coverage of the ventricles
    depth: Array  # depth under the inner table and over the base, mm
    midline: Array  # distance from the falx plane, mm, where the fissure exists, else large
    tentorium: Array  # signed height over the tentorium, mm
    supratentorial: Array  # coverage of the part above the tentorium


def lateral_ventricles(head: Head, place: Points) -> Array:
    """Signed distance (mm) to the lateral ventricles, with the person's size and asymmetry."""
    x, y, z = place
    ax, zz = np.abs(x), 0.5 * z
    side = np.where(x > 0, np.float32(head.ventricle_sides[0]), np.float32(head.ventricle_sides[1]))
    size = head.ventricles * side
    spread = 1.0 + 0.10 * (head.ventricles - 1.0)  # a larger ventricle bulges outward, away from the septum

    def tube(knots: tuple[tuple[float, float, float, float], ...], grow: float) -> Array:
        mean = float(np.mean([radius for *_, radius in knots]))
        inner = chain(ax, y, zz, [(kx * spread, ky, 0.5 * kz, radius - mean) for kx, ky, kz, radius in knots])
        return inner - mean * (1.0 + grow * (size - 1.0))

    main = smooth_min(tube(_HORN, 1.0), tube(_BODY, 1.0), 3.0)
    rear = smooth_min(tube(_OCCIPITAL, 1.3), tube(_TEMPORAL, 1.1), 2.0)
    both = smooth_min(main, rear, 4.0) + 0.45 * head.relief(3.0 * x, 3.0 * y, 1.5 * z)
    return np.maximum(both, 0.7 - ax).astype(np.float32, copy=False)  # without the septum


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
    ambient = most(midbrain - 0.9 - open_mm, 2.0 - y, np.abs(z + 11.0) - 10.0)
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
    insula: Array = np.abs(ax - (39.5 - 0.012 * (y + 4.0) ** 2) + 0.5 * wave)
    insula = most(insula, np.abs(y + 5.0 - 0.35 * z) - 19.0, np.abs(z - 2.0) - 15.0)
    stem: Array = 0.72 * np.abs(y + 15.0 - 0.95 * z - 0.16 * (ax - 39.0) + wave)
    stem = most(stem, 37.0 - ax, np.abs(z - 6.0) - 20.0)
    basal: Array = 0.8 * np.abs(y + 14.0 + 0.25 * (ax - 12.0) + 0.4 * wave)
    basal = most(basal, 10.0 - ax, ax - 40.0, np.abs(z + 14.5) - 3.5)
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


def paint_brain(head: Head, place: Points, shell: Vault | None = None, floor: Points | None = None) -> Spaces:
    """Draw everything inside the cranial cavity; outside it the values mean nothing.

    ``place`` (mm) is where the tissue lay before mass effect displaced it, and ``shell`` and ``floor``, where they are
    known, are those of it.
    """
    x, y, z = place
    shell = shell or vault(head, place)
    base, behind, _ = floor or floor_height(x, y)
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
    ring = np.sqrt(((y + 1.0) / 43.0) ** 2 + (np.maximum(z - 6.0, 0.25 * (z - 6.0)) / 25.0) ** 2)
    gap = np.abs(x + bend)
    midline = np.maximum(gap, (1.0 - ring) * 26.0)
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
    crease, reach = far.copy(), np.ones_like(far)
    if shallow.size:
        ux, uy, uz = pick((sx, sy, sz), shallow)
        crease[shallow] = head.sulci.crease(ux, uy, uz)
        reach[shallow] = np.clip(14.0 + 5.0 * head.wander(uz, ux, uy), 5.0, 24.0) * (0.6 + 0.4 * side[shallow])
    breadth = head.sulcus_mm * (0.75 + 0.55 * head.relief(sy, sz, sx)) * (1.25 - 0.7 * np.clip(pial / reach, 0, 1))
    sulcus = np.maximum(crease - np.maximum(breadth, 0.05), pial - reach)
    sylvian_mm = 0.35 + 1.9 * head.atrophy
    sylvian = far if lowest > 30.0 else _sylvian(wx, x, y, z) - sylvian_mm * (0.8 + 0.3 * wx)
    sylvian = np.where(supra > 0.5, sylvian, 99.0)
    cistern, stem = _cisterns(head, x, y, z) if lowest < 14.0 else (far, far)
    cistern = cistern + 0.3 * wx

    ventricle_mm = lateral_ventricles(head, place) if lowest < 45.0 and highest > -32.0 else far
    inner_mm = _inner_ventricles(head, x, y, z) if lowest < 16.0 else far
    ventricle = np.maximum(cover(ventricle_mm) * supra, cover(inner_mm))

    # White matter first, cortex along every pial surface, then the nuclei.
    grey = cover(union(pial, sulcus, sylvian) - CORTEX_MM, 2.2)
    if lowest < 22.0 and highest > -12.0:
        grey = np.maximum(grey, cover(nuclei(x, y, z) + 0.8 * wy, 1.8))
    tissue = head.white_hu + (head.grey_hu - head.white_hu) * grey
    tissue = tissue - head.small_vessel * 6.5 * (1 - grey) * np.clip(1.0 - np.maximum(ventricle_mm, 0) / 13.0, 0, 1)
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
    hu = tissue + (head.csf_hu - tissue) * np.maximum(csf, ventricle)

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
    csf = csf * (1 - most(falx, veins, 0.8 * sheet))
    return Spaces(hu.astype(np.float32, copy=False), csf, csf_mm, ventricle, depth, midline, tent, supra)
