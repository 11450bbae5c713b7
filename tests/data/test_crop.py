"""Cutting the head out of its slice."""

from __future__ import annotations

import numpy as np

from hemlearn.data.preprocess import cut_square, head_box, series_square


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: int, grey: int = 120) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return (inside * grey).astype(np.uint8)


def test_the_box_holds_the_head_and_not_the_table() -> None:
    picture = disc((512, 512), (230, 280), 100)
    picture[440:446, 100:460] = 255  # table, thin and apart
    top, bottom, left, right = head_box(picture) or (0, 0, 0, 0)
    for found, wanted in ((top, 130), (bottom, 331), (left, 180), (right, 381)):
        assert abs(found - wanted) <= 8


def test_air_has_no_box() -> None:
    assert head_box(np.zeros((64, 64), dtype=np.uint8)) is None


def test_one_square_for_all_slices_of_a_series() -> None:
    boxes = [(100, 300, 120, 280)] * 8 + [(180, 200, 190, 210), None]  # vertex: a small box; one slice of air
    top, left, side = series_square(boxes, (512, 512))
    assert 200 <= side <= 215
    assert abs(top + side / 2 - 200) < 5
    assert abs(left + side / 2 - 200) < 5
    assert series_square([None], (60, 80)) == (-12, -2, 83)


def test_cutting_beyond_the_edge_gives_air() -> None:
    pixels = np.arange(16, dtype=np.int16).reshape(4, 4)
    out = cut_square(pixels, (-1, 2, 4), -1000)
    assert out.tolist() == [[-1000] * 4, [2, 3, -1000, -1000], [6, 7, -1000, -1000], [10, 11, -1000, -1000]]
    assert (cut_square(pixels, (10, 10, 3), -1000) == -1000).all()
