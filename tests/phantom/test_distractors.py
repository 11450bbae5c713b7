"""Look-alikes show in one slice and change no label; real hemorrhages span slices."""

from __future__ import annotations

import numpy as np
import pytest

from hemlearn.phantom.anatomy import draw_head
from hemlearn.phantom.lesions import SUBTYPES
from hemlearn.phantom.pictures import head_ct_slice
from hemlearn.phantom.slab import LOOK_ALIKES, SHOWN_MM2, Grid, draw_look_alike
from hemlearn.phantom.volume import MIN_SLICES, draw_conspicuity, draw_volume, make_head, orientation
from hemlearn.util.errors import ConfigError

GRID = Grid(rows=64, cols=64, pixel_mm=3.6, slices=28, samples=1)


def _slices(volume):
    """Indices of the slices with a look-alike."""
    levels = np.array(volume.z_mm)
    return sorted({int(np.abs(levels - item.z_mm).argmin()) for item in volume.distractors})


@pytest.mark.parametrize("conspicuity", [None, 0.3])
def test_a_distractor_changes_its_one_slice_and_no_label(conspicuity):
    shape = {"conspicuity": conspicuity, "grid": GRID, "min_slices": 2}
    plain, busy = make_head(3, 4, **shape), make_head(3, 4, distractors=3, **shape)
    changed = [k for k in range(28) if not np.array_equal(plain.hu[k], busy.hu[k])]
    assert len(busy.distractors) == 3
    assert changed == _slices(busy)
    assert np.diff(changed).min() > 1, "two look-alikes in neighbouring slices would be a lesion"
    for name, shown in plain.labels().items():
        assert np.array_equal(shown, busy.labels()[name])
    for k in changed:
        brighter = busy.hu[k].astype(int) - plain.hu[k] > 6
        assert brighter.sum() * GRID.pixel_mm**2 >= SHOWN_MM2
        assert 42 < np.median(busy.hu[k][brighter]) < 95
        assert (busy.hu[k].astype(int) - plain.hu[k]).min() > -30, "it must not push or darken the brain"


@pytest.fixture(scope="module")
def series():
    """Ten patients, half of whom bleed."""
    return [draw_volume(0, patient, GRID) for patient in range(10)]


def test_distractors_keep_clear_of_blood(series):
    seen = 0
    for volume in series:
        blood = np.flatnonzero(volume.labels()["any"])
        for k in _slices(volume):
            assert np.abs(blood - k).min(initial=99) > 1
            seen += 1
    assert seen >= 8
    assert sum(bool(volume.lesions) and bool(volume.distractors) for volume in series) >= 3


def test_hemorrhages_span_neighbouring_slices_even_when_faint():
    for patient in range(4):
        volume = make_head(2, patient, conspicuity=0.05, grid=GRID, min_slices=MIN_SLICES)
        labels = volume.labels()
        assert labels["any"].any()
        for name in SUBTYPES:
            shown = labels[name]
            assert not shown.any() or np.any(shown[1:] & shown[:-1]), f"{name} shows in one slice only"


def test_a_small_set_has_every_subtype_and_half_bleeds(series):
    mains, bleeding, alike = set(), 0, 0
    for volume in series:
        bleeding += bool(volume.labels()["any"].any())
        mains |= {lesion.subtype for lesion in volume.lesions[:1]}
        alike += bool(volume.distractors)
    assert alike >= 8, "bleeding or not, heads have look-alikes"
    assert bleeding == 5
    assert mains == set(SUBTYPES)


def test_bleeding_or_not_the_series_is_taken_alike():
    for patient in range(2):
        bled, normal = (draw_volume(5, patient, GRID, abnormal=abnormal) for abnormal in (True, False))
        assert bled.labels()["any"].any()
        assert not normal.labels()["any"].any()
        assert (bled.scanner, bled.z_mm, bled.tilt_deg) == (normal.scanner, normal.z_mm, normal.tilt_deg)


def test_all_kinds_can_be_drawn():
    rng = np.random.default_rng(0)
    head = draw_head(np.random.default_rng(1))
    kinds = [drawn[0] for _ in range(400) if (drawn := draw_look_alike(rng, head, draw_conspicuity(rng)))]
    assert set(kinds) == set(LOOK_ALIKES)
    assert kinds.count("beam hardening") > kinds.count("streak")


def test_blood_of_series_is_moderately_to_plainly_visible():
    grades = np.array([draw_conspicuity(np.random.default_rng(k)) for k in range(500)])
    assert 0.4 < np.mean(grades < 0.75) < 0.55, "evenly spread"
    assert 0.55 <= grades.min() < 0.57
    assert 0.96 < grades.max() < 0.98


def test_head_ct_pictures_are_those_of_the_first_version():
    # Size, mean, spread and graininess that version 1 had before there were volumes: a cached set must stay what it
    # was. Not a checksum, since a processor's cosine may round a pixel the other way.
    first = [
        (275, 223, 80.202, 87.071, 9.049),
        (321, 281, 87.991, 90.696, 5.138),
        (307, 231, 109.377, 91.424, 11.088),
        (254, 260, 62.857, 80.444, 8.828),
    ]
    for patient, (*size, mean, spread, grain) in enumerate(first):
        image = head_ct_slice(0, patient)[0].astype(float)
        assert list(image.shape) == size
        measured = image.mean(), image.std(), np.abs(np.diff(image, axis=1)).mean()
        assert measured == pytest.approx((mean, spread, grain), abs=0.01)


def test_tilt_is_a_gantry_not_a_turned_head():
    grid = Grid(rows=96, cols=96, pixel_mm=2.4, slices=6, samples=1, tilt_deg=20.0)
    tilted, straight = make_head(0, 1, grid=grid), make_head(0, 1, grid=Grid(96, 96, 2.4, slices=6, samples=1))
    assert tilted.z_mm == straight.z_mm
    assert not np.array_equal(tilted.hu[0], straight.hu[0])
    places = np.array([tilted.position(k) for k in range(6)])
    row, column = np.array(orientation(20.0)[:3]), np.array(orientation(20.0)[3:])
    normal = np.cross(row, column)
    assert np.allclose(places @ normal, tilted.z_mm)
    # The table moves along z only.
    assert np.allclose(np.diff(places[:, :2], axis=0), 0)
    assert np.allclose(np.diff(places[:, 2]), 5.0 / np.cos(np.deg2rad(20.0)))


def test_the_same_anatomy_is_found_through_tilted_headers():
    # The point of the head that a header names must be the point that the picture shows: bone stays bone.
    straight = make_head(0, 3, grid=Grid(160, 160, 1.5, slices=26, samples=1))
    tilted = make_head(0, 3, grid=Grid(160, 160, 1.5, slices=26, samples=1, tilt_deg=12.0))
    for k in (8, 14, 20):
        grid = Grid(tilt_deg=12.0)
        rows = round(grid.centre_y(tilted.z_mm[k]) / 1.5)
        bone = np.roll(tilted.hu[k], rows, axis=0)[20:-20] > 300
        there = straight.hu[k][20:-20] > 300
        assert (bone & there).sum() / (bone | there).sum() > 0.7


def test_impossible_tilt_is_refused():
    with pytest.raises(ConfigError, match=r"tilt_deg=60"):
        Grid(tilt_deg=60.0)


def test_large_bleeding_pushes_the_brain():
    def moved(conspicuity):
        volume = make_head(0, 2, conspicuity=conspicuity, grid=GRID, first="epidural", min_slices=2)
        return volume.displacement()[0]

    assert moved(0.95) > 4.0 > moved(0.05)
    assert make_head(0, 2, grid=GRID).displacement() == (0.0, 0.0)
