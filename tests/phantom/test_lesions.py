"""Each subtype bleeds where it bleeds in people, and its mask is where it was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hemlearn.phantom.anatomy import draw_head
from hemlearn.phantom.lesions import SUBTYPES, bone_plate, draw_lesion, draw_lesions, mass_effect
from hemlearn.phantom.slab import Grid, draw_slab
from hemlearn.phantom.tissue import vault
from hemlearn.phantom.volume import Streams, make_head
from hemlearn.util.errors import ConfigError

GRID = Grid(rows=168, cols=168, pixel_mm=1.4, samples=1)
CASES = 7


def _cases(subtype, conspicuity, site=None):
    """Heads with one lesion, drawn at the level of its centre, and head coordinates of the bloody pixels."""
    found = 0
    for seed in range(60):
        rng = np.random.default_rng([seed, 9])
        head = draw_head(rng)
        lesion = draw_lesion(rng, head, subtype, conspicuity)
        if lesion is None or (site is not None and lesion.site != site):
            continue
        z = float(head.to_world(lesion.centre)[2])
        slab = draw_slab(head, (lesion,), GRID, z)
        mask = slab.blood[subtype] > 0.5
        if mask.sum() < 4:
            continue
        rows, cols = (v.astype(np.float32) for v in np.nonzero(mask))
        wx, wy = ((v - 83.5) * np.float32(1.4) for v in (cols, rows))
        place = head.to_head(wx, wy, np.full(wx.shape, z, dtype=np.float32))
        yield head, lesion, slab, mask, place
        found += 1
        if found == CASES:
            return
    assert found >= 3, f"only {found} cases of {subtype}"


def test_epidural_lies_on_the_inner_table_within_one_bone():
    for head, lesion, slab, mask, place in _cases("epidural", 0.8):
        shell = vault(head, place)
        assert (-shell.distance).min() < 2.0
        assert (-shell.distance).max() < lesion.thickness + 1.5
        plates = bone_plate(shell.surface)
        assert np.unique(plates).size == 1, "crosses a suture"
        assert slab.spaces["cavity"][mask].min() > 0.5
        # A lens: thickest at its centre, thin at its rim.
        rho = np.sqrt(sum((s - c) ** 2 for s, c in zip(shell.surface, lesion.centre, strict=True)))
        rim = rho > 0.8 * lesion.radius
        if rim.any():
            assert (-shell.distance[rim]).max() < 0.55 * lesion.thickness + 1.0


def test_subdural_follows_the_inner_table_of_one_side_and_ignores_sutures():
    plates = []
    for head, lesion, slab, mask, place in _cases("subdural", 0.9, "convexity"):
        shell = vault(head, place)
        assert (-shell.distance).max() < 1.6 * lesion.thickness + 1.5
        assert np.percentile(-shell.distance, 10) < 3.0
        assert np.unique(np.sign(place[0])).size == 1, "crosses the falx"
        plates.append(np.unique(bone_plate(shell.surface)).size)
        assert slab.spaces["cavity"][mask].min() > 0.5
    assert max(plates) > 1


def test_subdural_along_the_falx_touches_the_midline():
    for _, lesion, _, _, place in _cases("subdural", 0.9, "falx"):
        assert np.abs(place[0]).min() < 2.5
        assert np.abs(place[0]).max() < lesion.thickness + 2.5


def test_intraventricular_blood_is_inside_the_ventricles():
    for _, _, slab, mask, _ in _cases("intraventricular", 0.8):
        assert slab.spaces["ventricle"][mask].min() > 0.45


def test_layering_blood_is_dependent():
    for _, lesion, slab, mask, _ in _cases("intraventricular", 0.4, "layering"):
        rows = np.nonzero(mask)[0]
        assert ((rows - 83.5) * 1.4).min() > lesion.level - 2.5
        clear = np.nonzero((slab.spaces["ventricle"] > 0.9) & (slab.blood["intraventricular"] < 0.1))[0]
        assert clear.size == 0 or clear.mean() < rows.mean()


def test_subarachnoid_blood_fills_fluid_spaces():
    shares = []
    for _, _, slab, mask, _ in _cases("subarachnoid", 0.7):
        fluid = ndimage.binary_dilation(slab.spaces["csf"] > 0.15)
        shares.append(fluid[mask].mean())
        assert fluid[slab.spaces["cavity"] > 0.9].mean() < 0.75, "fluid everywhere: the check above is void"
        assert slab.spaces["ventricle"][mask].max() < 0.6
    # What is not fluid is the falx, a sinus or a sulcus finer than a pixel.
    assert min(shares) > 0.8
    assert np.mean(shares) > 0.93


def test_intraparenchymal_blood_is_inside_the_brain_and_pushes_it():
    for head, lesion, slab, mask, _ in _cases("intraparenchymal", 0.9):
        assert slab.spaces["depth"][mask].min() > 0
        assert 48 < np.median(slab.hu[mask]) < 85
        x, y, z = (
            np.array([c + s], dtype=np.float32)
            for c, s in zip(lesion.centre, (1.2 * max(lesion.radii), 0.0, 0.0), strict=True)
        )
        came = mass_effect((lesion,), (x, y, z), vault(head, (x, y, z)))
        assert came is not None
        assert came[0][0] <= x[0], "tissue beside the clot must come from nearer its centre"


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_conspicuity_grades_contrast_and_size(subtype):
    def strength(grade):
        total = 0.0
        for seed in range(8):
            rng = np.random.default_rng([seed, 3])
            head = draw_head(rng)
            lesion = draw_lesion(rng, head, subtype, grade)
            if lesion is None:
                continue
            z = float(head.to_world(lesion.centre)[2])
            with_blood = draw_slab(head, (lesion,), Grid(rows=96, cols=96, pixel_mm=2.4, samples=1), z)
            total += float((with_blood.blood[subtype] * np.clip(with_blood.hu - 36.0, 0.0, 60.0)).sum())
        return total

    assert strength(0.95) > 3.0 * strength(0.1)


def test_faint_blood_is_nearly_isodense_and_plain_blood_is_not():
    for subtype in SUBTYPES:
        head = draw_head(np.random.default_rng(0))
        faint = [draw_lesion(np.random.default_rng(k), head, subtype, 0.02) for k in range(12)]
        plain = [draw_lesion(np.random.default_rng(k), head, subtype, 1.0) for k in range(12)]
        assert np.mean([lesion.hu for lesion in faint if lesion]) < 50
        assert 58 < np.mean([lesion.hu for lesion in plain if lesion]) < 80


def test_lesions_span_slices_and_masks_give_slice_truth():
    grid = Grid(rows=96, cols=96, pixel_mm=2.4, slices=28, samples=1)
    volume = make_head(2, 5, conspicuity=0.9, grid=grid)
    labels = volume.labels()
    assert set(labels) == {*SUBTYPES, "any"}
    assert labels["any"].sum() >= 2
    for name, mask in volume.masks.items():
        assert mask.shape == volume.hu.shape
        assert np.array_equal(labels[name], mask.sum(axis=(1, 2)) * 2.4**2 >= 14.0)
    assert {lesion.subtype for lesion in volume.lesions} >= {n for n, m in volume.masks.items() if m.any()}


def test_blood_changes_neither_anatomy_nor_scanner():
    grid = Grid(rows=64, cols=64, pixel_mm=3.6, z_mm=(12.0,), samples=1)
    normal = make_head(1, 3, grid=grid)
    bled = make_head(1, 3, conspicuity=0.5, grid=grid, meet_z=12.0)
    assert bled.lesions
    assert not normal.lesions
    for key in ("age", "half_width", "skull_mm", "calcifications", "falx_hu"):
        assert getattr(normal.head, key) == getattr(bled.head, key)
    assert normal.scanner == bled.scanner
    bone = (normal.hu > 900) & (bled.hu > 900)
    assert np.array_equal(normal.hu[bone], bled.hu[bone]), "the noise differs"
    assert bled.labels()["any"][0]


def test_every_subtype_and_several_at_once_occur():
    seen, counts = set(), set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = draw_lesions(rng, draw_head(rng), 0.5, meet_z=8.0)
        seen |= {lesion.subtype for lesion in found}
        counts.add(len(found))
        assert len({lesion.subtype for lesion in found}) == len(found)
    assert seen == set(SUBTYPES)
    assert {1, 2} <= counts


def test_a_slice_that_cannot_bleed_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr("hemlearn.phantom.volume.ATTEMPTS", 2)
    with pytest.raises(ConfigError, match="z = 150") as caught:
        make_head(0, 0, conspicuity=0.5, meet_z=150.0, grid=Grid(rows=16, cols=16, pixel_mm=14, z_mm=(150.0,)))
    assert "slice" in caught.value.remedy


def test_streams_of_patients_differ():
    a, b = Streams.of(0, 1), Streams.of(0, 2)
    assert a.anatomy.uniform() != b.anatomy.uniform()
    assert Streams.of(0, 1).layout.uniform() == Streams.of(0, 1).layout.uniform()
