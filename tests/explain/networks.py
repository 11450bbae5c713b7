"""Small runs to explain: untrained networks, and one whose evidence is known by construction."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from hemlearn.config.compose import compose
from hemlearn.tasks.slices import SliceClassification
from hemlearn.tasks.volumes import VolumeClassification
from hemlearn.training.build import build_task

SIDE = 64
_SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    f"data.image_size={SIDE}",
    "task=subtypes",
    "augmentation=none",
]


def slice_run(*overrides: str) -> SliceClassification:
    torch.manual_seed(0)
    config = compose([*_SMALL, *overrides])
    n = len(config.task.labels)
    return cast(SliceClassification, build_task(config, unit="HU", positives=[5.0] * n, negatives=[9.0] * n).eval())


def volume_run(*overrides: str, slice_head: list[int] | None = None) -> VolumeClassification:
    torch.manual_seed(0)
    config = compose([*_SMALL, "sequence=gru", "sequence.hidden=8", "freeze=head", *overrides])
    n = len(config.task.labels)
    task = build_task(
        config, unit="HU", positives=[[5.0] * n, [3.0] * n], negatives=[[50.0] * n, [9.0] * n], slice_head=slice_head
    )
    width = task.backbone.embedding_dim
    values = np.random.default_rng(0).normal(size=(40, width)).astype(np.float32)
    task.features.fit(values, np.zeros((40, n)), np.arange(40))
    return cast(VolumeClassification, task.eval())


class BrightCells(nn.Module):
    """A backbone's model whose embedding is the mean brightness above one half: its evidence is where bright cells lie.

    The weights are written, not learnt: 8 x 8 means, then one channel for bright and one for dark.
    """

    def __init__(self, in_chans: int = 1, stride: int = 8) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(stride)
        self.mix = nn.Conv2d(in_chans, 2, 1)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            self.mix.weight[:] = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1) / in_chans
            self.mix.bias[:] = torch.tensor([-0.5, 0.5])

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.act(self.mix(self.cells(x)))).flatten(1)


def bright_run(*overrides: str) -> SliceClassification:
    """One label, ``hemorrhage``: the brighter, the likelier; darkness speaks against it."""
    task = slice_run("task=hemorrhage", *overrides)
    backbone = task.backbone
    backbone.model = BrightCells(backbone.in_chans)
    backbone.mean, backbone.std = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    backbone.groups = [["mix.weight", "mix.bias"]]
    head = nn.Linear(2, 1)
    with torch.no_grad():
        head.weight[:] = torch.tensor([[20.0, -1.0]])
        head.bias[:] = -2.0
    task.head = nn.Sequential(head)
    return task


def images(count: int, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.rand((count, channels, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


def spots(places: list[tuple[int, int]]) -> Tensor:
    """Dark images ``(N, 1, S, S)``, each with one bright square of 8 pixels at a place of the 8 x 8 grid."""
    out = torch.full((len(places), 1, SIDE, SIDE), 0.1)
    for image, (row, column) in zip(out, places, strict=True):
        image[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
    return out
