from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hemlearn.reading.explain.cams import find_layer, maps
from hemlearn.reading.explain.checks import between_slices, cascade, rank_correlation, similarity
from hemlearn.reading.explain.scores import Scores
from hemlearn.tasks.base import Classification
from tests.explain.networks import SIDE, bright_run, images, slice_run, spots


def test_randomised_weights_change_the_maps_and_not_the_network() -> None:
    task = slice_run("backbone.name=resnet18")
    before = {key: value.clone() for key, value in task.state_dict().items()}
    x = images(4)

    def draw(net: Classification) -> Tensor:
        return maps(Scores(net), x, [0], layer=find_layer(net.backbone, 8))[0]

    stages = cascade(task, draw, x, size=SIDE, measure=lambda found: {"top": float(found.max())})
    assert [stage.name for stage in stages][:2] == ["nothing", "head"]
    assert stages[-1].name.startswith("group")
    assert stages[-1].share == pytest.approx(1.0)
    assert [stage.share for stage in stages] == sorted(stage.share for stage in stages)
    assert (stages[0].spearman, stages[0].ssim) == (1.0, 1.0)
    assert abs(stages[-1].spearman) < 0.6
    assert all(np.isfinite(stage.extra["top"]) for stage in stages), "activations overflowed"
    assert all(torch.equal(before[key], value) for key, value in task.state_dict().items())


def test_a_map_that_does_not_ask_the_network_is_found_out() -> None:
    """An edge detector in the place of a map stays what it is, whatever the weights."""
    x = images(3)
    edges = (x[:, 0, 1:, 1:] - x[:, 0, :-1, :-1]).abs()
    stages = cascade(slice_run(), lambda _: edges, x, size=SIDE)
    assert all(stage.spearman == pytest.approx(1.0) for stage in stages)
    assert all(stage.ssim == pytest.approx(1.0, abs=1e-5) for stage in stages)


def test_random_draws_can_be_repeated() -> None:
    task, x = slice_run(), images(3)
    rows = [
        [stage.row() for stage in cascade(task, lambda net: maps(Scores(net), x, [0])[0], x, size=SIDE, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_constant_maps_have_no_correlation() -> None:
    one, two = torch.rand(3, 6, 6), torch.rand(3, 6, 6)
    two[1] = 0.5
    value, known = rank_correlation(one, two)
    assert known == 2
    assert np.isfinite(value)
    assert np.isnan(rank_correlation(one, torch.zeros(3, 6, 6))[0])
    assert rank_correlation(one, one * 3 + 1) == (pytest.approx(1.0), 3)


def test_similarity_does_not_see_the_scale() -> None:
    one = torch.rand(2, 6, 6)
    assert similarity(one, 7 * one, SIDE) == pytest.approx(1.0, abs=1e-5)
    assert similarity(one, 1 - one, SIDE) < 0.5


def test_what_slices_share_anyway_is_measured() -> None:
    same = torch.rand(1, 6, 6).repeat(4, 1, 1)
    assert between_slices(same) == pytest.approx(1.0)
    found = maps(Scores(bright_run()), spots([(0, 0), (4, 4), (7, 1)]), [0])[0]
    assert between_slices(found) < 0.5
    assert np.isnan(between_slices(same[:1]))
