"""Tissues have the attenuation and the place they have in people."""

from __future__ import annotations

import numpy as np
import pytest

from hemlearn.phantom.anatomy import Waves, cover, draw_head, ellipsoid
from hemlearn.phantom.slab import Grid, draw_slab
from hemlearn.phantom.tissue import floor_height, nuclei, paint_brain, vault
from hemlearn.phantom.volume import Scanner, acquire, draw_scanner, make_head
from hemlearn.util.errors import ConfigError

GRID = Grid(rows=128, cols=128, pixel_mm=1.8, samples=1)
SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def slabs():
    heads = [draw_head(np.random.default_rng(seed)) for seed in SEEDS]
    return [(head, draw_slab(head, (), GRID, float(head.to_world((0.0, 0.0, 14.0))[2]))) for head in heads]


def test_ventricles_hold_fluid_and_tissue_is_brain(slabs):
    for head, slab in slabs:
        fluid = slab.hu[slab.spaces["ventricle"] > 0.98]
        assert fluid.size > 30
        assert np.median(fluid) == pytest.approx(head.csf_hu, abs=3.0)
        deep = (slab.spaces["depth"] > 25) & (slab.spaces["ventricle"] + slab.spaces["csf"] < 0.02)
        tissue = slab.hu[deep & (slab.hu < 60)]
        assert 20 < np.percentile(tissue, 2) < np.percentile(tissue, 98) < 45


def test_grey_matter_is_denser_than_white(slabs):
    for seed in SEEDS:
        head = draw_head(np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        x, y, z = (rng.uniform(-50, 50, 40000).astype(np.float32) for _ in range(3))
        z = z * 0.1 + 5.0
        spaces = paint_brain(head, (x, y, z), vault(head, (x, y, z)), floor_height(x, y))
        free = (spaces.csf + spaces.ventricle < 0.01) & (spaces.depth > 0)
        deep = nuclei(x, y, z)
        grey = spaces.hu[free & (deep < -3.0)]
        white = spaces.hu[free & (deep > 3.0) & (deep < 6.0) & (spaces.csf_mm > 6.0)]
        assert 34 < np.median(grey) < 43
        assert 20 < np.median(white) < 33
        assert np.median(grey) - np.median(white) > 4


def test_bone_scalp_and_air(slabs):
    for _, slab in slabs:
        assert 1000 < slab.hu.max() < 1700
        assert slab.hu[0, 0] == slab.hu[-1, -1] == slab.hu[0, -1] == -1000
        inside = slab.spaces["cavity"] > 0.99
        assert slab.hu[inside].min() > -10
        assert np.any((slab.hu < -60) & (slab.hu > -130)), "no fat in the scalp"


def test_skull_encloses_the_brain_without_a_gap(slabs):
    for _, slab in slabs:
        rows, cols = np.nonzero(slab.spaces["cavity"] > 0.9)
        centre_row, centre_col = int(rows.mean()), int(cols.mean())
        for angle in np.arange(0, 360, 5):
            steps = np.arange(0, 64)
            r = np.clip(np.rint(centre_row + steps * np.sin(np.deg2rad(angle))).astype(int), 0, 127)
            c = np.clip(np.rint(centre_col + steps * np.cos(np.deg2rad(angle))).astype(int), 0, 127)
            assert slab.hu[r, c].max() > 400, f"no bone at {angle} degrees"


def test_older_heads_have_more_fluid():
    heads = [draw_head(np.random.default_rng(seed)) for seed in range(40)]
    heads.sort(key=lambda head: head.atrophy)

    def fluid(head):
        slab = draw_slab(head, (), GRID, float(head.to_world((0.0, 0.0, 14.0))[2]))
        inside = slab.spaces["cavity"] > 0.5
        return float((slab.spaces["csf"] + slab.spaces["ventricle"])[inside].mean())

    young, old = np.mean([fluid(h) for h in heads[:4]]), np.mean([fluid(h) for h in heads[-4:]])
    assert old > 1.8 * young


def test_calcifications_are_dense_and_in_place():
    found = {}
    for seed in range(60):
        head = draw_head(np.random.default_rng(seed))
        for spot in head.calcifications:
            found.setdefault(spot.name, []).append((head, spot))
    assert {"pineal", "choroid plexus", "basal ganglia", "falx"} <= set(found)
    head, spot = max(found["choroid plexus"], key=lambda item: item[1].hu)
    slab = draw_slab(head, (), Grid(samples=1), float(head.to_world(spot.centre)[2]))
    wx, wy, _ = head.to_world(spot.centre)
    row, col = round(wy / 0.9 + 127.5), round(wx / 0.9 + 127.5)
    assert slab.hu[row - 2 : row + 3, col - 2 : col + 3].max() > 0.6 * spot.hu


def test_head_and_world_coordinates_are_inverse():
    head = draw_head(np.random.default_rng(5))
    wx, wy, wz = (np.array([v], dtype=np.float32) for v in head.to_world((10.0, -20.0, 30.0)))
    back = [float(v[0]) for v in head.to_head(wx, wy, wz)]
    assert back == pytest.approx([10.0, -20.0, 30.0], abs=1e-3)
    assert np.allclose(head.rotation @ head.rotation.T, np.eye(3))


def test_a_slab_does_not_depend_on_the_grid_around_it():
    head = draw_head(np.random.default_rng(3))
    small = draw_slab(head, (), Grid(rows=64, cols=64, pixel_mm=1.8, samples=1), 10.0)
    large = draw_slab(head, (), GRID, 10.0)
    assert np.allclose(small.hu, large.hu[32:96, 32:96], atol=0.5)


def test_a_whole_volume_covers_the_head_and_repeats():
    grid = Grid(rows=64, cols=64, pixel_mm=3.6, slices=28, samples=1)
    first, again = make_head(4, 7, grid=grid), make_head(4, 7, grid=grid)
    assert first.hu.shape == (28, 64, 64)
    assert first.hu.dtype == np.int16
    assert first.spacing == (5.0, 3.6, 3.6)
    assert np.array_equal(first.hu, again.hu)
    assert np.all(np.diff(first.z_mm) == 5.0)
    brain = [(abs(s.astype(int) - 30) < 20).mean() for s in first.hu]
    assert brain[14] > 0.2
    assert (first.hu[-1] > 300).sum() < 0.2 * (first.hu[14] > 300).sum(), "the vertex is cut off"
    assert not np.array_equal(first.hu, make_head(4, 8, grid=grid).hu)
    assert not any(mask.any() for mask in first.masks.values())


def test_slices_without_a_head_are_air():
    volume = make_head(0, 0, grid=Grid(rows=32, cols=32, pixel_mm=7.0, z_mm=(150.0,), samples=1))
    assert np.median(volume.hu) < -900


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="rows=0"):
        Grid(rows=0)
    with pytest.raises(ConfigError, match="pixel_mm=-1"):
        Grid(pixel_mm=-1)


def test_scanner_noise_has_the_declared_size_and_grain():
    flat = np.full((200, 200), 30.0, dtype=np.float32)
    scanner = Scanner(psf_mm=0.6, noise_hu=4.0, grain_mm=0.8, sharpen=0.0, ring_hu=0.0)
    image = acquire(scanner, np.random.default_rng(0), flat, 0.9).astype(float)
    assert image.mean() == pytest.approx(30.0, abs=0.3)
    assert 2.8 < image.std() < 4.8
    middle = image[60:140, 60:140] - image[60:140, 60:140].mean()
    neighbours = (middle[:, 1:] * middle[:, :-1]).mean() / middle.var()
    distant = (middle[:, 12:] * middle[:, :-12]).mean() / middle.var()
    assert neighbours > 0.3
    assert abs(distant) < 0.1


def test_scanner_stores_int16_within_range():
    image = acquire(
        draw_scanner(np.random.default_rng(1)),
        np.random.default_rng(0),
        np.full((16, 16), 9000.0, dtype=np.float32),
        1.0,
    )
    assert image.dtype == np.int16
    assert image.max() == 3071


def test_shapes_measure_millimetres():
    x = np.linspace(1, 41, 81, dtype=np.float32)
    zero = np.zeros_like(x)
    assert np.allclose(ellipsoid(x, zero, zero, (0, 0, 0), (10, 10, 10)), x - 10, atol=0.01)
    assert cover(np.array([-1.0, 0.0, 1.0], dtype=np.float32)).tolist() == [1.0, 0.5, 0.0]
    waves = Waves(np.random.default_rng(0), (20.0, 30.0), 16)
    values = waves(x, zero, zero)
    change = np.flatnonzero(np.diff(np.sign(values)))
    crease = waves.crease(x, zero, zero)
    assert change.size
    assert np.all(np.minimum(crease[change], crease[change + 1]) < 0.5)
