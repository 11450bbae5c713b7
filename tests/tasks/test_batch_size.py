"""The search for the largest batch, on a device that is made to hold few slices; the rate that goes with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hemlearn.config.compose import compose
from hemlearn.config.identity import run_hash
from hemlearn.config.schema import Config
from hemlearn.data.batches import SliceDataset
from hemlearn.models.backbone import Backbone
from hemlearn.training.batch_size import find_batch_size, scaled_rate
from hemlearn.training.build import build_task
from hemlearn.util.errors import ConfigError

TINY = ["backbone.name=test_efficientnet", "backbone.pretrained=false", "data.image_size=32", "data.batch_size=4"]
COUNT = 12


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``search(limit)``: size and rate that are found where ``limit`` slices fit, and the sizes that were tried."""
    rows = np.arange(COUNT)
    images = np.zeros((COUNT, 32, 32), dtype=np.uint8)
    slices = SliceDataset(images, rows[:, None], (rows[:, None] % 2).astype(np.float32), rows)
    forward = Backbone.forward

    def call(limit: int, known: Any = None, *more: str) -> tuple[tuple[int, float], list[int]]:
        tried: list[int] = []

        def bounded(self: Backbone, x: torch.Tensor) -> torch.Tensor:
            tried.append(len(x))
            if len(x) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, x)

        config = compose([*TINY, *more])
        task = build_task(config, unit="display", positives=[6.0], negatives=[6.0])
        monkeypatch.setattr(Backbone, "forward", bounded)
        before = {name: value.clone() for name, value in task.state_dict().items()}
        states = torch.get_rng_state(), np.random.get_state()[1]
        found = find_batch_size(config, task, slices, known)
        monkeypatch.setattr(Backbone, "forward", forward)
        assert torch.equal(torch.get_rng_state(), states[0])
        np.testing.assert_array_equal(np.random.get_state()[1], states[1])
        assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
        assert task._trainer is None
        return found, list(dict.fromkeys(tried))

    return call


def test_the_largest_power_of_two_that_fits(search: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="hemlearn")
    assert search(2, None, "optimizer=sgd", "optimizer.lr=0.01") == ((2, 0.005), [4, 2])
    assert "2 slices (4 do not fit; 10 % of cpu stay free), optimizer.lr 0.01 -> 0.005 (linear rule)" in caplog.text


def test_no_more_than_the_training_slices(search: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="hemlearn")
    (size, rate), tried = search(99, "16", "optimizer.lr=0.01", "trainer.ema_decay=0.9")  # a size that cannot be
    assert (size, tried) == (8, [4, 8])
    assert rate == pytest.approx(0.01 * 2**0.5)
    assert "8 slices (of 12; " in caplog.text


def test_what_was_found_before_is_taken(search: Any) -> None:
    assert search(0, 8, "optimizer.lr=0.01", "optimizer=sgd", "data.batch_size=8") == ((8, 0.01), [])


def test_not_even_one(search: Any) -> None:
    with pytest.raises(ConfigError, match="not even one slice of 32 pixels fits into cpu"):
        search(0)


@pytest.mark.parametrize(
    ("name", "factor"), [("sgd", 4.0), ("sgdw", 4.0), ("momentum", 4.0), ("adamw", 2.0), ("lion", 2.0)]
)
def test_the_rate_follows_the_batch(name: str, factor: float) -> None:
    config = Config(optimizer={"name": name, "lr": 0.01}, data={"batch_size": 8})
    assert scaled_rate(config, 32) == pytest.approx(0.01 * factor)


@pytest.mark.parametrize(
    "more", ["sequence=gru freeze=head augmentation=none", "trainer.devices=2", "freeze=head freeze.cached_draws=2"]
)
def test_where_it_cannot_be_searched(more: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.find_batch_size=True: "):
        compose(["trainer.find_batch_size=true", *more.split()])


def test_it_is_part_of_the_hash_only_where_it_is_asked_for() -> None:
    before, off, on = (
        run_hash(compose(more), manifest="m", weights=None, split_file=None)
        for more in ([], ["trainer.find_batch_size=false"], ["trainer.find_batch_size=true"])
    )
    assert before == off != on
