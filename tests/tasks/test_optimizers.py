"""What a checkpoint says of an optimiser is looked at before training goes on from it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hemlearn.tasks.optimizers import check_optimizer_state
from hemlearn.util.errors import WeightsError


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def groups(net: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p for p in net.parameters() if p.ndim == size], "lr": 0.1} for size in (2, 1)]


@pytest.fixture
def content(net: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(groups(net))
    net(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return {"optimizer_states": [copy.deepcopy(optimizer.state_dict())], "lr_schedulers": [{"base_lrs": [0.1]}]}


def put(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], Any]:
    """Of the second parameter of the first group, ``1.weight``."""

    def edit(content: dict[str, Any]) -> None:
        own = content["optimizer_states"][0]["state"][1]
        own[key] = change(own[key])

    return edit


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (
            put("exp_avg", lambda m: m.T),
            r"1\.weight\.exp_avg of the optimiser is of another shape: \(2, 1\) for \(1, 2",
        ),
        (put("exp_avg", lambda m: m * math.nan), r"1\.weight\.exp_avg holds NaN"),
        (put("exp_avg_sq", lambda m: m + math.inf), r"1\.weight\.exp_avg_sq holds NaN or infinity"),
        (put("exp_avg_sq", lambda m: m - 1e9), r"1\.weight\.exp_avg_sq holds values below 0"),
        (put("exp_avg", lambda m: m.to(torch.float8_e5m2)), r"1\.weight\.exp_avg holds float8_e5m2"),
        (lambda c: c["optimizer_states"].append(c["optimizer_states"][0]), "for "),
        (lambda c: c["optimizer_states"][0]["param_groups"].pop(), r"parameters, for \[\[2, 2\]\]"),
        (lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=math.nan), "optimizer_states holds NaN"),
        (lambda c: c["lr_schedulers"][0].update(base_lrs=[math.nan]), "lr_schedulers holds NaN"),
    ],
)
def test_a_state_that_training_cannot_go_on_from(
    net: nn.Module, content: dict[str, Any], edit: Callable[[dict[str, Any]], Any], told: str
) -> None:
    check_optimizer_state(net, groups(net), content, Path("last.ckpt"))
    edit(content)
    with pytest.raises(WeightsError, match=rf"last\.ckpt: .*{told}"):
        check_optimizer_state(net, groups(net), content, Path("last.ckpt"))


def test_optimisers_that_a_task_makes_itself_are_held_against_nan_alone(
    net: nn.Module, content: dict[str, Any]
) -> None:
    put("exp_avg", lambda m: m.T)(content)
    check_optimizer_state(net, None, content, Path("last.ckpt"))
    put("exp_avg", lambda m: m * math.nan)(content)
    with pytest.raises(WeightsError, match=r"optimizer_states\.0\.1\.exp_avg holds NaN"):
        check_optimizer_state(net, None, content, Path("last.ckpt"))
