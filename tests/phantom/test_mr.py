"""MR heads: ventricles of the wanted size, truth that agrees with the picture, physics of contrast and noise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from hemlearn.phantom.anatomy import draw_head
from hemlearn.phantom.mr import (
    EVANS_LIMIT,
    SHARES,
    TISSUES,
    Coil,
    Dilation,
    acquire_mr,
    dilate,
    draw_coil,
    draw_exam,
    draw_mr_head,
    measure,
    tissue_shares,
)
from hemlearn.phantom.slab import Grid
from hemlearn.phantom.tissue import vault

COARSE = Grid(rows=64, cols=64, pixel_mm=3.7, slices=14)


@pytest.fixture(scope="module")
def people():
    return [draw_mr_head(np.random.default_rng([17, k]), hydrocephalus=k % 2 == 0) for k in range(12)]


def _narrow(seed):
    return dataclasses.replace(draw_head(np.random.default_rng(seed)), ventricles=0.8, ventricle_sides=(1.0, 1.0))


def test_hydrocephalus_is_a_matter_of_the_drawn_anatomy(people):
    for k, person in enumerate(people):
        measures = person.measures
        assert measures.hydrocephalus == (k % 2 == 0) == (person.state == "hydrocephalus")
        assert (measures.evans > EVANS_LIMIT) == measures.hydrocephalus
        assert measures.evans == measures.frontal_mm / measures.skull_mm
        assert 95 < measures.skull_mm < 165
    assert {person.state for person in people} == {"normal", "atrophy", "hydrocephalus"}
    index = {state: [p.measures.evans for p in people if p.state == state] for state in ("normal", "hydrocephalus")}
    assert 0.17 < min(index["normal"]) < max(index["normal"]) < 0.28
    assert max(index["hydrocephalus"]) > 0.34
    # The classes lie close enough together that a threshold on anything crude does not tell them apart.
    assert min(index["hydrocephalus"]) - max(p.measures.evans for p in people if p.state != "hydrocephalus") < 0.05


def test_sulci_are_wide_and_narrow_with_and_without_hydrocephalus(people):
    for side in (True, False):
        sulci = [p.head.sulcus_mm for p in people if p.measures.hydrocephalus == side]
        assert max(sulci) > 1.2 > 0.6 > min(sulci)


@pytest.mark.parametrize("wanted", [0.25, 0.31, 0.38])
def test_the_wanted_index_is_reached(wanted):
    assert measure(dilate(_narrow(3), wanted, 0.3, 0.2)).evans == pytest.approx(wanted, abs=0.012)


def test_growth_widens_everything_and_none_changes_nothing():
    head = _narrow(4)
    grown = [measure(Dilation(head, growth, 0.5, 0.25 * growth)) for growth in (0.0, 6.0, 14.0)]
    for name in ("frontal_mm", "third_mm", "temporal_mm"):
        widths = [getattr(item, name) for item in grown]
        assert widths[0] < widths[1] < widths[2]
    assert len({item.skull_mm for item in grown}) == 1
    place = tuple(np.linspace(-60, 60, 50, dtype=np.float32) for _ in range(3))
    assert Dilation(head, 0.0, 0.5, 0.0).origin(place) is place


def test_tissue_is_pushed_away_from_the_ventricles_and_never_over_the_midline():
    head = _narrow(4)
    dilation = Dilation(head, 14.0, 0.5, 3.0)
    rng = np.random.default_rng(0)
    x, y, z = (rng.uniform(low, high, 4000).astype(np.float32) for low, high in ((-62, 62), (-75, 75), (-40, 60)))
    came = dilation.origin((x, y, z))
    moved = np.sqrt(sum((a - b) ** 2 for a, b in zip(came, (x, y, z), strict=True)))
    assert moved.max() > 5.0
    assert (np.sign(came[0]) * np.sign(x) >= -1e-6)[np.abs(x) > 16].all()
    depth = -vault(head, (x, y, z)).distance
    third = (np.abs(y - 2.0) < 19.0) & (np.abs(z + 1.0) < 14.0)  # between the walls pushed by the third ventricle
    assert moved[(depth < 0) & ~third].max() == 0.0
    assert moved[(z < -30) & (y > 40) & (np.abs(x) < 40)].max() < 0.5  # the posterior fossa


def test_shares_are_shares(people):
    rng = np.random.default_rng(1)
    for person in people[:3]:
        place = [rng.uniform(-95, 95, 6000).astype(np.float32) for _ in range(3)]
        shares = tissue_shares(person, place)
        assert set(shares) == set(SHARES)
        total = sum(value for name, value in shares.items() if name != "ventricle")
        assert min(float(value.min()) for value in shares.values()) >= 0
        assert float(total.max()) <= 1.001
        assert (shares["ventricle"] <= shares["fluid"] + 1e-5).all()


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_index_can_be_measured_on_the_drawn_slices(people, k):
    person = people[k]
    x = np.arange(-90, 90, 0.75, dtype=np.float32)
    y = np.arange(-44, -14, 2.0, dtype=np.float32)
    yy, xx = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    best = (0.0, 0.0)
    for level in (2.0, 6.0, 10.0, 14.0, 18.0):
        zz = np.full_like(xx, level)
        horns = tissue_shares(person, (xx, yy, zz))["ventricle"].reshape(len(y), -1) >= 0.5
        columns = np.flatnonzero(horns.any(axis=0))
        if len(columns) and x[columns[-1]] - x[columns[0]] > best[0]:
            best = (float(x[columns[-1]] - x[columns[0]]), level)
    rows = np.arange(-50, 60, 5.0, dtype=np.float32)
    yy, xx = (axis.ravel() for axis in np.meshgrid(rows, x, indexing="ij"))
    shares = tissue_shares(person, (xx, yy, np.full_like(xx, best[1])))
    brain = (shares["grey"] + shares["white"] + shares["fluid"]).reshape(len(rows), -1) >= 0.5
    skull = max(float(x[line.nonzero()[0][-1]] - x[line.nonzero()[0][0]]) for line in brain if line.any())
    assert best[0] / skull == pytest.approx(person.measures.evans, abs=0.02)


def test_contrast_is_that_of_a_spin_echo():
    t1, t2, density = TISSUES["white"]
    coil = Coil("T1", 500.0, 12.0, 1.0, 0.0, (0.0,) * 9, 0.0)
    assert coil.signal("white") == pytest.approx(density * (1 - math.exp(-500 / t1)) * math.exp(-12 / t2))
    order = {
        contrast: sorted(("fluid", "grey", "white"), key=draw_coil(np.random.default_rng(0), contrast).signal)
        for contrast in ("T1", "T2")
    }
    assert order == {"T1": ["fluid", "grey", "white"], "T2": ["white", "grey", "fluid"]}
    prepared = dataclasses.replace(coil, repetition_ms=2000.0, echo_ms=3.0, inversion_ms=900.0)
    recovered = 1 - 2 * math.exp(-900 / t1) + math.exp(-2000 / t1)
    assert prepared.signal("white") == pytest.approx(density * recovered * math.exp(-3 / t2))
    assert prepared.signal("fluid") < 0.3 * prepared.signal("grey") < 0.3 * prepared.signal("white")


def test_noise_is_that_of_a_magnitude_image():
    coil = Coil("T2", 4000.0, 100.0, 1000.0, 0.2, (0.0,) * 9, 0.0)
    shares = {name: np.zeros((128, 128), dtype=np.float32) for name in SHARES}
    air = acquire_mr(coil, np.random.default_rng(0), shares, np.zeros((128, 128), np.float32), 1.5, 0.0).astype(float)
    sigma = 0.2 * coil.signal("grey") * 1000
    assert air.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.03)  # Rayleigh without signal
    shares["fluid"] += 1.0
    water = acquire_mr(coil, np.random.default_rng(0), shares, np.zeros((128, 128), np.float32), 1.5, 0.0).astype(float)
    assert water.std() == pytest.approx(sigma, rel=0.05)


def test_patients_and_contrasts_differ_in_scale_and_sensitivity():
    coils = [draw_coil(np.random.default_rng(k), "T2") for k in range(20)]
    levels = [coil.scale * coil.signal("fluid") for coil in coils]
    assert max(levels) > 3 * min(levels)
    grid = np.linspace(-90, 90, 20, dtype=np.float32)
    fields = [coil.sensitivity(grid[None], grid[:, None], 10.0) for coil in coils]
    assert all(field.shape == (20, 20) for field in fields)
    assert np.median([field.max() / field.min() for field in fields]) > 1.3


def test_an_exam_is_the_same_whenever_it_is_drawn_and_bright_where_fluid_is():
    exam, again = draw_exam(3, 3, COARSE), draw_exam(3, 3, COARSE)
    assert (exam.series[0].signal == again.series[0].signal).all()
    assert exam.series[0].coil.contrast == "T2"
    assert len(exam.z_mm) == 14
    assert list(exam.z_mm) == sorted(exam.z_mm)
    assert exam.series[0].signal.shape == (14, 64, 64)
    small = dataclasses.replace(COARSE, rows=40, cols=40, pixel_mm=6.0, slices=8)
    both = draw_exam(3, 2, small)  # the first patient with two contrasts
    assert len(both.series) == 2
    t2, t1 = (series.signal[3:5].astype(float) for series in both.series)
    bright = t2 >= np.quantile(t2, 0.985)
    assert np.median(t1[bright]) < np.median(t1[t1 > np.quantile(t1, 0.7)])
