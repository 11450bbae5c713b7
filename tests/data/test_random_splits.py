"""Repeated splits are random draws: how often a unit is tested agrees with chance, and strata stay even."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from hemlearn.config.schema import SplitConfig
from hemlearn.data.duplicates import duplicate_groups
from hemlearn.data.manifest import Manifest
from hemlearn.data.splits import draw_folds, draw_part, make_split, strata, units_of
from hemlearn.util.tables import read_csv
from tests.conftest import real_data
from tests.data.heads import bare_manifest

DRAWS = 200
Units = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]  # unit, patient and labels of each slice
SUBTYPES = ["Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural"]


def ct_ich() -> Units:
    table = read_csv(real_data("ct_ich") / "hemorrhage_diagnosis.csv")
    patient = np.unique(table["PatientNumber"], return_inverse=True)[1].astype(np.int64)
    return patient, patient, table[SUBTYPES].to_numpy(dtype=np.float64)


def head_ct() -> Units:
    table = read_csv(real_data("head_ct") / "labels.csv")
    copies = np.arange(len(table))  # one picture a patient, some of them one picture
    for a, b in ((188, 189), (198, 199), (11, 61)):
        copies[b] = copies[a]
    each = np.arange(len(table), dtype=np.int64)
    return units_of(each, copies), each, table[["hemorrhage"]].to_numpy(dtype=np.float64)


def drawn_table() -> Units:
    """90 patients of 1 to 60 slices, labels of rates 0.5, 0.2 and 0.04, some unknown; every ninth two are joined."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 61, 90)
    patient = np.repeat(np.arange(90), sizes)
    labels = (rng.random((90, 3)) < [0.5, 0.2, 0.04]).astype(float)
    labels[rng.random((90, 3)) < 0.05] = np.nan
    joined = np.unique(np.where(np.arange(90) % 9 == 1, np.arange(90) - 1, np.arange(90)), return_inverse=True)[1]
    return joined.astype(np.int64)[patient], patient, labels[patient]


def held_out(units: Units, seed: int) -> NDArray[np.bool_]:
    salt = f"holdout:{seed}"
    stratum, slices = strata(*units, salt)
    return draw_part(stratum, slices, list(map(str, range(len(slices)))), 0.2, salt)


def first_fold(units: Units, seed: int) -> NDArray[np.bool_]:
    salt = f"kfold:{seed}"
    stratum, slices = strata(*units, salt)
    return draw_folds(stratum, slices, list(map(str, range(len(slices)))), 5, salt) == 0


def validated(units: Units, seed: int) -> NDArray[np.bool_]:
    """Drawn from a fixed four fifths."""
    stratum, slices = strata(*units, f"val:{seed}")
    rest = np.arange(len(slices)) % 5 > 0
    names = list(map(str, np.flatnonzero(rest)))
    return draw_part(stratum[rest], slices[rest], names, 0.15, f"val:{seed}")


@pytest.mark.parametrize(("draw", "chance"), [(held_out, 0.2), (first_fold, 0.2), (validated, 0.15)])
@pytest.mark.parametrize("table", [ct_ich, head_ct, drawn_table])
def test_every_unit_has_the_same_chance(
    table: Callable[[], Units], draw: Callable[[Units, int], NDArray[np.bool_]], chance: float
) -> None:
    unit, patient, labels = table()
    small = pd.DataFrame(labels).groupby(patient).max().to_numpy(dtype=np.float64)  # one row a patient, for speed
    home = pd.Series(unit).groupby(patient).first().to_numpy(dtype=np.int64)
    drawn = np.array([draw((home, np.arange(len(home)), small), seed) for seed in range(DRAWS)]).astype(np.float64)
    times = drawn.sum(axis=0)
    assert times.min() > 0
    assert times.max() < DRAWS
    # Each count is binomial, so the sum of their squared standard scores has mean U. Its variance is 2 sum(r^2) over
    # the correlations r between units, which systematic sampling makes: estimated, less what sampling adds to r^2.
    size = len(times)
    chi_square = ((times - DRAWS * chance) ** 2).sum() / (DRAWS * chance * (1 - chance))
    squares = (np.corrcoef(drawn.T) ** 2).sum() - size * (size - 1) / DRAWS
    assert abs(chi_square - size) < 3.5 * np.sqrt(2 * squares), (chi_square, size, squares)


@pytest.mark.parametrize("table", [ct_ich, head_ct, drawn_table])
@pytest.mark.parametrize("folds", [2, 5, 10])
def test_strata_and_labels_are_shared_evenly(table: Callable[[], Units], folds: int) -> None:
    units = table()
    value = pd.DataFrame(units[2]).groupby(units[0]).max().to_numpy(dtype=np.float64)
    for seed in range(10):
        salt = f"even:{seed}"
        stratum, slices = strata(*units, salt)
        names = [f"u{item}" for item in range(len(slices))]
        combinations = pd.factorize(pd.Series(map(bytes, np.nan_to_num(value, nan=2).astype(np.uint8))))[0]
        assert pd.Series(combinations).groupby(stratum).nunique().max() == 1
        fold = draw_folds(stratum, slices, names, folds, salt)
        part = draw_part(stratum, slices, names, 1 / folds, salt)
        for counts in (np.bincount(fold, minlength=folds), pd.crosstab(stratum, fold).to_numpy()):
            assert np.ptp(counts, axis=-1).max() <= 1
        assert abs(part.sum() - len(part) / folds) < 1
        for number in range(stratum.max() + 1):
            assert abs(part[stratum == number].sum() - (stratum == number).sum() / folds) < 1
        for label in (value == 1).T:
            spread = np.bincount(fold[label], minlength=folds) - label.sum() / folds
            assert np.abs(spread).max() < 3
        assert folds > 5 or np.abs(np.bincount(fold, weights=slices) * folds / slices.sum() - 1).max() < 0.3


def test_monte_carlo_repetitions_are_such_draws() -> None:
    names = [f"p{item:02d}" for item in range(30)]
    manifest = bare_manifest(pd.DataFrame({"bleed": [item % 3 == 0 for item in range(30)]}), names)
    groups = duplicate_groups(manifest, "none")
    every = [SplitConfig(name="monte_carlo", fold=item) for item in range(25)]
    every += [SplitConfig(name="holdout", seed=item) for item in range(25)]
    made = [make_split(manifest, cfg, groups=groups).assignment["split"].to_numpy() for cfg in every]
    parts = np.array(made)
    assert len({row.tobytes() for row in parts == "test"}) > 40
    for part, most in (("test", 21), ("val", 18)):  # 10 and 6 expected
        times = (parts == part).sum(axis=0)
        assert 0 < times.min() < times.max() < most


@pytest.mark.parametrize("size", [3, 4, 6])
def test_of_few_units_one_is_drawn_at_least(size: int) -> None:
    names = [f"p{item}" for item in range(size)]
    for seed in range(20):
        drawn = draw_part(np.zeros(size, np.int64), np.ones(size, np.int64), names, 0.1, f"{seed}")
        assert drawn.sum() == 1


def test_a_draw_by_slice_spreads_slices(volume: Manifest) -> None:
    cfg = SplitConfig(by="slice", allow_leak=True)
    parts = make_split(volume, cfg, groups=duplicate_groups(volume, "none")).apply(volume)
    assert abs((parts == "test").sum() - 0.2 * len(parts)) < 1
    for label in volume.labels:
        positive = volume.table[label] == 1
        assert abs((parts[positive] == "test").sum() - 0.2 * positive.sum()) <= 2


@pytest.fixture
def volume() -> Manifest:
    rng = np.random.default_rng(0)
    labels = pd.DataFrame((rng.random((600, 2)) < [0.3, 0.05]).astype(float), columns=["a", "b"])
    return bare_manifest(labels, [f"p{item // 30:02d}" for item in range(600)])
