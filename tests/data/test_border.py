from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hemlearn.audits.facts import COLUMNS, _ring, border_features
from hemlearn.data.manifest import Manifest
from hemlearn.data.store import open_store
from tests.data.heads import build, folder_of_heads, head, save

SIDE = 64


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Heads of 100 to 106 rows and 90 to 94 columns; the first two are bright all over, one upright and one wide."""
    rows = folder_of_heads(tmp_path / "data", 6)
    save(tmp_path / "data/img/000.png", np.full((128, 64), 200, dtype=np.uint8))
    save(tmp_path / "data/img/001.png", np.full((64, 128), 200, dtype=np.uint8))
    return build(tmp_path / "data", rows)


def features(manifest: Manifest, cache: Path, fit: str = "letterbox") -> np.ndarray:
    store = open_store(manifest, size=SIDE, fit=fit, cache_dir=cache, progress=False)
    return border_features(store, manifest.table, np.arange(len(manifest.table)), fit).to_numpy()


@pytest.mark.parametrize("fit", ["letterbox", "squash", "crop"])
def test_the_bars_of_a_letterbox_are_not_the_border(manifest: Manifest, own_cache: Path, fit: str) -> None:
    found = features(manifest, own_cache, fit)
    bright = np.tile([200.0] * 8 + [0.0], 4)
    np.testing.assert_allclose(found[:2], [bright, bright])
    assert (found[2:, :8].mean(axis=1) < 100).all()


def test_only_the_ring_counts(manifest: Manifest, own_cache: Path) -> None:
    rng = np.random.default_rng(0)
    outer = rng.integers(0, 255, (1, SIDE, SIDE)).astype(np.float32)
    inner = outer.copy()
    inner[:, 4:-4, 4:-4] = 0  # 64 / 16 = 4 pixels are the ring
    np.testing.assert_array_equal(_ring(outer, "display"), _ring(inner, "display"))
    touched = outer.copy()
    touched[:, 3, 30] += 50
    assert (_ring(outer, "display") != _ring(touched, "display")).any()
    assert _ring(outer, "display").shape == (1, len(COLUMNS))


def test_columns_say_where_they_lie() -> None:
    image = np.zeros((1, SIDE, SIDE), dtype=np.float32)
    image[0, -4:, :8] = 80.0  # lower left corner
    found = dict(zip(COLUMNS, _ring(image, "display")[0], strict=True))
    assert found["bottom_0"] == 80.0
    assert found["left_7"] == pytest.approx(40.0)  # half of the last eighth of the left side
    assert {name for name, value in found.items() if value} == {"bottom_0", "left_7", "bottom_spread", "left_spread"}


def test_units() -> None:
    air = np.full((1, SIDE, SIDE), -1000, dtype=np.float32)
    np.testing.assert_array_equal(_ring(air, "HU"), _ring(air - 2000, "HU"))  # air is air, padding or not
    signal = np.random.default_rng(0).uniform(50, 900, (1, SIDE, SIDE)).astype(np.float32)
    np.testing.assert_allclose(_ring(signal, "signal"), _ring(7 * signal, "signal"), rtol=1e-5)  # no unit
    np.testing.assert_array_equal(_ring(0 * signal, "signal"), 0)


def test_rows_in_any_order_and_few(manifest: Manifest, own_cache: Path) -> None:
    store = open_store(manifest, size=SIDE, fit="letterbox", cache_dir=own_cache, progress=False)
    every = border_features(store, manifest.table, np.arange(6), "letterbox")
    some = border_features(store, manifest.table, np.array([4, 1]), "letterbox")
    np.testing.assert_array_equal(some, every.iloc[[4, 1]])
    assert border_features(store, manifest.table, np.array([], dtype=np.int64), "letterbox").shape == (0, len(COLUMNS))


def test_a_sliver_of_an_image(tmp_path: Path, own_cache: Path) -> None:
    rows = folder_of_heads(tmp_path / "data", 4)
    save(tmp_path / "data/img/000.png", head(9, 400, 12))  # two columns are left of it in the square
    assert np.isfinite(features(build(tmp_path / "data", rows), own_cache)).all()
