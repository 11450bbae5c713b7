from __future__ import annotations

import pytest
import torch

from hemlearn.config.compose import option
from hemlearn.models.sequence import OwnSequence, build_sequence
from hemlearn.models.smoothing import GaussianSmoothing
from hemlearn.util.errors import ConfigError


def smooth(answers: torch.Tensor, z_mm: torch.Tensor | None, lengths: list[int] | None = None) -> torch.Tensor:
    """Log odds of slices (B, S, L) as the model of 5 mm gives them."""
    lengths = lengths or [answers.shape[1]] * len(answers)
    model = build_sequence(option("sequence", "smoothed"), width=2, outputs=answers.shape[2])
    assert isinstance(model, OwnSequence)
    return model(answers.new_zeros(*answers.shape[:2], 2), torch.tensor(lengths), answers, z_mm).slices


def test_neighbours_count_by_their_distance_in_mm() -> None:
    odds = torch.tensor([[[2.0], [-1.0], [0.5]]])
    near, far = torch.exp(torch.tensor([-0.5, -0.5 * 9])).tolist()  # 5 and 15 mm at a width of 5 mm
    first = (2.0 - near + far * 0.5) / (1 + near + far)
    found = smooth(odds.sigmoid(), torch.tensor([[10.0, 15.0, 25.0]]))
    assert found[0, 0, 0].item() == pytest.approx(first, abs=1e-5)
    # Slices far apart keep their own answers.
    torch.testing.assert_close(smooth(odds.sigmoid(), torch.tensor([[0.0, 90.0, 180.0]])), odds)


def test_a_series_gets_the_same_alone_and_beside_a_longer_one() -> None:
    answers, z_mm = torch.rand(2, 6, 3), torch.arange(6.0).mul(4).repeat(2, 1)
    padded = answers.clone()
    padded[1, 4:] = torch.nan
    both = smooth(padded, z_mm, [6, 4])
    torch.testing.assert_close(both[1, :4], smooth(answers[1:, :4], z_mm[1:, :4])[0])
    assert (both[1, 4:] == 0).all()


def test_series_of_unknown_positions_are_evenly_spaced() -> None:
    answers = torch.rand(1, 4, 2)
    even = smooth(answers, torch.arange(4.0)[None] * 5)
    torch.testing.assert_close(smooth(answers, None), even)
    torch.testing.assert_close(smooth(answers, torch.tensor([[0.0, torch.nan, 1.0, 2.0]])), even)


def test_a_series_is_as_positive_as_its_most_positive_slice_and_the_shift_learns() -> None:
    model = GaussianSmoothing(outputs=2)
    slices, series = model(torch.zeros(1, 3, 1), torch.tensor([3]), torch.rand(1, 3, 2))
    torch.testing.assert_close(series, slices.amax(1))
    slices.sum().backward()
    assert model.shift.grad is not None
    assert model.shift.grad.tolist() == [3.0, 3.0]


def test_what_cannot_be_smoothed_is_refused() -> None:
    with pytest.raises(ConfigError, match="no probabilities of a slice run"):
        GaussianSmoothing(outputs=1)(torch.zeros(1, 2, 1), torch.tensor([2]))
    for key in ("width_mm", "spacing_mm"):
        with pytest.raises(ConfigError, match=rf"sequence\.{key}=-1"):
            GaussianSmoothing(outputs=1, **{key: -1})
