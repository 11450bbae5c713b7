"""The skull: vault, base and sinuses, and what lies outside it, in head coordinates (mm) and HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hemlearn.phantom.anatomy import Array, Head, cover, ellipsoid, most, sigmoid

VAULT_CENTRE_Z = 6.0
LOWER_HEIGHT = 105.0
CORTICAL_HU, DIPLOE_HU = 1350.0, 720.0
MUSCLE_HU, FAT_HU, SKIN_HU, SINUS_AIR_HU = 54.0, -95.0, 62.0, -960.0


@dataclass
class Vault:
    """Distance from the inner table of the vault and the point of it that lies radially outward.

    Attributes:
        distance: Signed distance in mm, negative inside the cranial cavity; shape (N,).
        surface: Head coordinates (mm) of the radial projection on the inner table, three arrays (N,).
        radial: Unit vectors that point outward, three arrays (N,).
    crest: How far (mm) the inner table bulges inward in the midline.
    """

    distance: Array
    surface: tuple[Array, Array, Array]
    radial: tuple[Array, Array, Array]
    crest: Array

    def take(self, index: NDArray[np.intp]) -> Vault:
        """The same at a subset of the points."""
        (a, b, c), (d, e, f) = self.surface, self.radial
        return Vault(
            self.distance[index], (a[index], b[index], c[index]), (d[index], e[index], f[index]), self.crest[index]
        )


def vault(head: Head, x: Array, y: Array, z: Array) -> Vault:
    """Distance to the inner table: a superellipse in the axial plane, wider behind, an ellipse along z."""
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


def floor_height(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Height z (mm) of the skull base under (x, y).

    Returns:
        The floor; the weight of the posterior fossa in [0, 1]; the distance (mm) to the nearest of the ridges'
        bodies: the petrous pyramid and, thinner, the lesser wing of the sphenoid.
    """
    ax = np.abs(x)
    wing = -21.0 - 0.62 * ax + 0.0042 * ax * ax + 1.2 * np.sin(0.16 * ax)
    petrous = 2.0 + 0.62 * (ax - 10.0) - 0.0028 * (ax - 10.0) ** 2 + 1.2 * np.sin(0.13 * ax + 0.8)
    orbit = np.exp(-(((ax - 29.0) / 15.0) ** 2) - ((y + 56.0) / 20.0) ** 2)
    anterior = -27.0 + 10.0 * orbit - 0.16 * (y + 50.0) - 3.0 * np.exp(-((x / 6.0) ** 2))
    lateral = -43.0 + 0.018 * ((ax - 38.0) ** 2 + 0.5 * (y + 8.0) ** 2)
    sella = -25.0 - 1.1 * np.maximum(ax - 12.0, 0.0)
    middle = np.maximum(lateral, sella)
    posterior = -64.0 + 0.012 * (x * x + 0.8 * (y - 38.0) ** 2)
    behind_wing = sigmoid((y - wing) / 1.5)
    behind = sigmoid((y - petrous) / 2.0)
    floor = anterior * (1 - behind_wing) + behind_wing * (middle * (1 - behind) + posterior * behind)
    ridge = np.where((ax > 13) & (ax < 80), -22.0 - 1.25 * np.abs(y - petrous), -200.0)
    lesser = np.where(ax > 9, -15.5 - 0.11 * ax - 1.5 * np.abs(y - wing), -200.0)
    floor = np.maximum(np.maximum(floor, ridge), lesser)
    foramen = np.sqrt(x * x + (y - 30.0) ** 2) < 15.0
    floor = np.where(foramen, -300.0, floor)
    gap = np.minimum(np.abs(y - petrous), np.abs(y - wing) + 6.5)
    return floor.astype(np.float32), behind.astype(np.float32), gap.astype(np.float32)


def thickness(head: Head, shell: Vault) -> Array:
    """Thickness (mm) of the vault at points of the inner table: thin at the temples, thick in the midline."""
    sx, sy, sz = shell.surface
    temple = np.exp(-(((sy + 18.0) / 28.0) ** 2) - ((sz + 5.0) / 22.0) ** 2) * np.clip(np.abs(sx) / 60.0, 0, 1)
    middle = np.exp(-((sx / 14.0) ** 2)) * (0.25 + 0.35 * (sy > 0) * np.exp(-(((sz + 14.0) / 16.0) ** 2)))
    factor = 1.0 - 0.42 * temple + middle + 0.09 * head.relief(sy, sz, sx)
    thick: Array = head.skull_mm * factor + shell.crest
    return thick


def paint_outside(
    head: Head, hu: Array, place: tuple[Array, Array, Array], shell: Vault, floor: tuple[Array, Array, Array]
) -> Array:
    """Draw scalp, face, vault, base and sinuses over ``hu`` (N,), in place.

    Args:
        head: The head.
        hu: Attenuation of the points, already drawn inside the cavity.
        place: Head coordinates (mm), three arrays (N,).
        shell: From :func:`vault`.
        floor: From :func:`floor_height`.

    Returns:
        Coverage of the cranial cavity, (N,), bone excluded.
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
    under = cover(np.abs(above + 1.6) - 1.6, 1.0) * cover(out, 1.0)
    bone = np.maximum(ring, under)
    if low:
        petrous = cover(above) * cover(ridge_gap - 9.0, 2.5) * (ax > 11) * (z > -50) * cover(out)
        clivus = cover(ellipsoid(x, y, z, (0.0, -6.0, -36.0), (11.0, 8.0, 15.0))) * cover(above)
        bone = most(bone, petrous, clivus)
    depth = np.minimum(out, thick - out)
    diploe = np.clip((depth - 1.6) / 1.2, 0, 1) * ring * np.clip((thick - 3.5) / 2.0, 0, 1)
    density = CORTICAL_HU - (CORTICAL_HU - DIPLOE_HU) * diploe + 60.0 * speckle
    density = np.where(ring > 0.5, density, 900.0 + 150.0 * speckle)
    hu[:] = hu * (1 - bone) + density * bone

    air = _air(head, x, y, z, out, thick, above)
    hu[:] = hu * (1 - air) + SINUS_AIR_HU * air
    outside = cover(beyond - scalp, 1.0)
    hu[:] = hu * outside - 1000.0 * (1 - outside)
    free: Array = cavity * (1 - np.maximum(bone, air))
    return free


def _air(head: Head, x: Array, y: Array, z: Array, out: Array, thick: Array, above: Array) -> Array:
    """Coverage of pneumatised bone: frontal, ethmoid and sphenoid sinuses, mastoid cells."""
    air = np.zeros_like(x)
    if head.frontal_sinus_mm > 1.0:
        half = 0.5 * thick
        span = cover(np.abs(np.abs(x) - 11.0) - 9.0 - head.relief(z, x, y), 1.0)
        tall = cover(np.abs(z + 12.0) - 8.0 - head.frontal_sinus_mm, 2.0)
        air = cover(np.abs(out - half) - half + 1.6, 0.8) * span * tall * (y < 0)
    if float(z.min()) > -10.0:
        return air
    below = above < -2.0
    sphenoid = cover(ellipsoid(np.abs(x), y, z, (6.0, -20.0, -40.0), (5.2, 11.0, 9.0)))
    ethmoid = cover(ellipsoid(x, y, z, (0.0, -52.0, -38.0), (12.0, 19.0, 12.0)))
    ethmoid *= np.abs(head.wander(x * 2.2, y * 2.2, z * 2.2)) > 0.28
    cells = np.clip((np.abs(x) - 40.0) / 6.0, 0, 1) * np.clip((y - 4.0) / 6.0, 0, 1) * (y < 44) * (z > -60) * (z < -22)
    cells = cells * (head.wander(x * 2.6, y * 2.6, z * 2.6) > 0.35) * (out < thick - 1.5)
    nose = cover(ellipsoid(x, y, z, (0.0, -72.0, -52.0), (9.0, 22.0, 16.0)))
    antrum = cover(ellipsoid(np.abs(x), y, z, (27.0, -58.0, -66.0), (14.0, 15.0, 14.0)))
    return np.maximum(air, most(sphenoid, ethmoid, cells, nose, antrum) * below)
