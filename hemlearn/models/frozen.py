"""What the frozen layers make of every slice: computed once for a set of augmented views, shared by all runs.

A partly frozen network spends much of its time in layers that never change. With ``freeze.cached_draws=K`` each slice
is augmented K times, once and for all; the output of the frozen layers is cached for these K views, the plain one and
the test-time flips, and a training step draws one of the K. The views depend on neither split, fold nor seed, so that
all runs of a study share one pass. What changes is the augmentation: K views of a slice instead of a new one per epoch.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hemlearn.models.division import Division
from hemlearn.models.embeddings import FLIP_AXIS, Embeddings, Encoder
from hemlearn.transforms.augment import Augment

BATCH = 32  # slices that are augmented together: part of what the draws are, so it is not the user's batch size


class FrozenEncoder(Encoder):
    """Stored slices to the frozen layers' output: the plain view, the flips, then the augmented draws.

    Behind each view's flat output stand L numbers: the order of the labels in it. A mirrored head has its sides
    exchanged.

    Args:
        whole: Encoder of the run.
        division: Of its backbone.
        augment: Drawn from.
        recipe: What describes the augmentation, for the key of the cache.
        labels: Number of labels L.
        draws: Number of augmented views K.
        orders: Per flip of ``whole`` the order of the labels in it.
    """

    def __init__(
        self,
        whole: Encoder,
        division: Division,
        augment: Augment,
        recipe: Any,
        *,
        labels: int,
        draws: int,
        orders: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(whole.channels, whole.backbone, None, whole.flips, whole.channels_last)
        self.division = division
        self.augment = augment
        self.labels, self.draws = labels, draws
        self._recipe = recipe
        self._orders = [list(range(labels)), *map(list, orders)]

    @property
    def outputs(self) -> int:
        """Numbers behind the flat output: the order of the labels."""
        return self.labels

    @property
    def views(self) -> int:
        """Views of each slice."""
        return 1 + len(self.flips) + self.draws

    @property
    def width(self) -> int:
        """Values per view."""
        return int(np.prod(self.division.shape)) + self.labels

    def forward(self, raw: Tensor) -> Tensor:
        """``(T, V, D + L)`` of stored slices ``(T, K, S, S)``."""
        images = self.channels(raw)
        views = [images, *(images.flip(FLIP_AXIS[flip]) for flip in self.flips)]
        same = torch.arange(self.labels, dtype=torch.float32, device=images.device).expand(len(images), -1)
        found = [self._row(view, same[:, order]) for view, order in zip(views, self._orders, strict=True)]
        # The draws are a function of the slices, so that every machine and every resumed pass has the same ones.
        seed = zlib.crc32(raw.cpu().numpy().tobytes())
        self.augment.train()
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            torch.manual_seed(seed)
            found += [self._row(*self.augment(images, same)) for _ in range(self.draws)]
        return torch.stack(found, dim=1)

    def _row(self, images: Tensor, order: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return torch.cat([self.division.lower(images).flatten(1), order], dim=1)

    def digest(self) -> str:
        """Hash of every number that decides about the output."""
        found = hashlib.sha256(super().digest().encode())
        told = [list(self.division.shape), self._recipe, self.draws, self._orders, BATCH]
        found.update(json.dumps(told, sort_keys=True, default=str).encode())
        return found.hexdigest()


class FrozenLayers:
    """The cached output of frozen layers, and the layers above them.

    Not a module: it holds nothing that is not the run's own, and checkpoints do not know of it.

    Args:
        division: Of the run's backbone.
        cache: As :class:`FrozenEncoder` makes it.
        draws: Number of augmented views; the last ones of the cache.
        channels_last: Memory layout.
    """

    def __init__(self, division: Division, cache: Embeddings, draws: int, channels_last: bool) -> None:
        self.division = division
        self.cache = cache
        self.draws = draws
        self.channels_last = channels_last

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenLayers:
        return self  # weight averaging copies the task; the cache stays on disk, once

    def drawn(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings ``(B, D)`` of one random augmented view of each manifest row ``(B,)``, and its label order."""
        chosen = torch.randint(self.draws, (len(rows),)) + self.cache.shape[1] - self.draws
        return self._embed(rows, chosen.numpy())

    def view(self, rows: Tensor, view: int) -> tuple[Tensor, Tensor]:
        """Embeddings ``(B, D)`` of the plain view (0) or a test-time flip (1, ...), and its label order."""
        return self._embed(rows, np.full(len(rows), view))

    def _embed(self, rows: Tensor, views: Any) -> tuple[Tensor, Tensor]:
        found = torch.from_numpy(self.cache.array[rows.cpu().numpy(), views]).to(rows.device)
        below, order = found[:, : self.cache.width], found[:, self.cache.width :].long()
        below = below.reshape(-1, *self.division.shape)
        if self.channels_last and below.ndim == 4:
            below = below.contiguous(memory_format=torch.channels_last)
        return self.division.upper(below), order
