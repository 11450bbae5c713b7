"""Batches from the slice store: one gather per batch, no per-sample Python objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hemlearn.data.files import PageBudget


class Batch(TypedDict):
    """What a data module yields.

    Attributes:
        image: ``(B, K, S, S)`` stored intensities (HU or display), K slices centred on the labelled one.
        label: ``(B, L)`` float, 0 / 1 / NaN (unknown).
        index: ``(B,)`` row of the manifest.
    """

    image: Tensor
    label: Tensor
    index: Tensor


class SliceDataset(Dataset[Batch]):
    """Slices of a memory-mapped store with their labels.

    Args:
        array: ``(N, S, S)`` memory map, uint8 (display) or int16 (HU).
        stack: ``(M, K)`` rows of ``array`` that make each sample, neighbours included.
        labels: ``(M, L)`` with NaN for unknown.
        index: ``(M,)`` manifest row of each sample.
    """

    def __init__(
        self,
        array: NDArray[np.generic],
        stack: NDArray[np.int64],
        labels: NDArray[np.float32],
        index: NDArray[np.int64],
    ) -> None:
        self.array = array
        self.pages = PageBudget(array)
        self.stack = stack
        self.labels = torch.from_numpy(np.array(labels, dtype=np.float32))  # a copy: a table's own may be read-only
        self.index = torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, item: int) -> Batch:
        batch = self.__getitems__([item])
        return Batch(image=batch["image"][0], label=batch["label"][0], index=batch["index"][0])

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """A whole batch in one read; torch's loader calls this instead of one ``__getitem__`` per sample."""
        rows = self.stack[np.asarray(items, dtype=np.int64)]
        image = torch.from_numpy(np.ascontiguousarray(self.array[rows]))
        self.pages.spend(image.nbytes)
        chosen = torch.as_tensor(items, dtype=torch.int64)
        return Batch(image=image, label=self.labels[chosen], index=self.index[chosen])


def as_is(batch: Any) -> Any:
    """Collate function for batches that the data set has already put together."""
    return batch


class EpochSampler(Sampler[int]):
    """Shuffled (or class-balanced) order that is a pure function of seed and epoch.

    A resumed run therefore sees the very batches an undisturbed one would have seen. Lightning calls
    :meth:`set_epoch`.

    Args:
        size: Number of samples.
        seed: Seed of the run.
        weights: ``(size,)`` draw probabilities (need not sum to 1); None shuffles without replacement.
    """

    def __init__(self, size: int, seed: int, weights: NDArray[np.float64] | None = None) -> None:
        self.size = size
        self.seed = seed
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            order = rng.permutation(self.size)
        else:
            order = rng.choice(self.size, size=self.size, p=self.weights / self.weights.sum())
        yield from order.tolist()


def balanced_weights(labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Draw weights that give every combination of labels the same total.

    Args:
        labels: ``(M, L)``; NaN counts as a value of its own.
    """
    keys = np.nan_to_num(labels, nan=-1.0)
    _, group, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    return 1.0 / counts[group.reshape(-1)].astype(np.float64)


def neighbour_stack(
    series: NDArray[np.object_], z_mm: NDArray[np.float64], rows: NDArray[np.int64], neighbours: int
) -> NDArray[np.int64]:
    """Store rows of each slice and its neighbours in position order; a volume's edge repeats its last slice.

    Args:
        series: ``(M,)`` series ids.
        z_mm: ``(M,)`` slice positions, mm; NaN keeps the given order.
        rows: ``(M,)`` rows of the store.
        neighbours: Slices on each side.

    Returns:
        ``(M, 2 * neighbours + 1)`` rows of the store.
    """
    if neighbours == 0:
        return rows[:, None]
    size = len(rows)
    codes = np.unique(series.astype(str), return_inverse=True)[1]
    order = np.lexsort((np.arange(size), np.nan_to_num(z_mm, nan=0.0), codes))
    sorted_codes = codes[order]
    first = np.searchsorted(sorted_codes, sorted_codes, side="left")
    last = np.searchsorted(sorted_codes, sorted_codes, side="right") - 1
    steps = np.arange(-neighbours, neighbours + 1)
    places = np.clip(np.arange(size)[:, None] + steps, first[:, None], last[:, None])
    stack = np.empty((size, len(steps)), dtype=np.int64)
    stack[order] = rows[order][places]
    return stack
