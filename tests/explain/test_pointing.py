from __future__ import annotations

import numpy as np
import pytest

from hemlearn.reading.explain.checks import centre_prior, mean_mask_prior, play, pointing_game

S = 56  # a tolerance of 15 at 224 is 3.75 pixels here


def square(row: int, column: int, side: int = 6) -> np.ndarray:
    out = np.zeros((S, S), dtype=bool)
    out[row : row + side, column : column + side] = True
    return out


def peak(row: int, column: int) -> np.ndarray:
    out = np.zeros((S, S))
    out[row, column] = 1.0
    return out


def test_a_hit_lies_on_the_lesion_or_within_the_tolerance() -> None:
    masks = np.stack([square(10, 10)] * 4)
    maps = np.stack([peak(12, 12), peak(18, 12), peak(21, 12), peak(40, 40)])
    found = pointing_game("map", maps, masks)
    assert found.hit.tolist() == [True, True, False, False]  # 0, 3 and 6 pixels from the lesion's last row
    assert found.exact.tolist() == [True, False, False, False]
    assert found.inside.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_energy_is_the_share_inside() -> None:
    values = np.ones((1, S, S))
    found = pointing_game("map", values, square(0, 0, 14)[None])
    assert found.inside[0] == pytest.approx(14 * 14 / (S * S))


def test_a_plateau_points_at_its_middle() -> None:
    """The first of equal places would be the upper left corner of the image."""
    assert pointing_game("map", np.ones((1, S, S)), square(0, 0)[None]).hit.tolist() == [False]
    assert pointing_game("map", np.ones((1, S, S)), square(25, 25)[None]).hit.tolist() == [True]


def test_a_blank_map_is_a_miss_and_is_counted() -> None:
    found = pointing_game("map", np.zeros((2, S, S)), np.stack([square(10, 10)] * 2))
    summary = found.summary(np.array(["a", "b"]))
    assert summary["hit_rate"] == 0
    assert summary["blank"] == 2
    assert summary["energy_inside"] is None


def test_nothing_is_left_out_silently() -> None:
    masks = np.stack([square(1, 1), square(9, 9)])
    with pytest.raises(ValueError, match=r"maps \(3, 56, 56\) and masks \(2, 56, 56\) differ"):
        pointing_game("map", np.ones((3, S, S)), masks)
    masks[1] = False
    with pytest.raises(ValueError, match="mask 1 is empty"):
        pointing_game("map", np.ones((2, S, S)), masks)


def test_priors_see_no_image_and_no_own_patient() -> None:
    masks = np.stack([square(5, 5), square(5, 6), square(40, 40)])
    patients = np.array(["a", "a", "b"])
    centre = centre_prior(3, S)
    assert np.unravel_index(centre[0].argmax(), (S, S)) in [(27, 27), (27, 28), (28, 27), (28, 28)]
    mean = mean_mask_prior(masks, patients)
    assert not mean[0][square(5, 5)].max() > 1e-3, "patient a was shown its own lesion"
    assert np.unravel_index(mean[0].argmax(), (S, S))[0] > 35
    assert np.unravel_index(mean[2].argmax(), (S, S))[0] < 15
    assert not mean_mask_prior(masks[:1], patients[:1]).any()


def test_intervals_count_patients() -> None:
    masks = np.stack([square(10, 10)] * 40)
    maps = np.stack([peak(12, 12)] * 20 + [peak(50, 50)] * 20)
    game = pointing_game("map", maps, masks)
    apart, together = (game.summary(patients) for patients in (np.arange(40), np.arange(40) // 10))
    assert apart["hit_rate"] == together["hit_rate"] == 0.5
    assert together["high"] - together["low"] > 1.5 * (apart["high"] - apart["low"])
    some = game.of(np.arange(40) < 20).summary(np.arange(20))
    assert (some["hit_rate"], some["n"]) == (1.0, 20)


def test_all_three_are_played() -> None:
    masks = np.stack([square(5, 5), square(40, 40)])
    names = [game.name for game in play(masks.astype(float), masks, np.array(["a", "b"]))]
    assert names == ["map", "centre", "mean_mask"]
