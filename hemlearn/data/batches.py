"""Batches of whole series: slices in position order, packed one series after the other without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from hemlearn.data.resident import Pixels, loader_workers, reside
from hemlearn.util.files import PageBudget

# --- Batches from the slice store: one gather per batch, no per-sample Python objects.


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
    """Slices of a store with their labels; its pixels may be moved by :meth:`reside`.

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
        self.array: Pixels = array
        self.pages = PageBudget(array)
        self.stack = stack
        self.labels = torch.from_numpy(np.array(labels, dtype=np.float32))  # a copy: a table's own may be read-only
        self.index = torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.stack)

    def reside(self, asked: str, device: torch.device) -> bool:
        """Take the pixels from where ``data.resident`` asks for them; whether batches then are on the device."""
        if not isinstance(self.array, Tensor):
            self.array = found = reside(self.array, asked, device)
            self.pages = PageBudget(np.empty(0) if isinstance(found, Tensor) else found)
        return isinstance(self.array, Tensor)

    def __getitem__(self, item: int) -> Batch:
        batch = self.__getitems__([item])
        return Batch(image=batch["image"][0], label=batch["label"][0], index=batch["index"][0])

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """A whole batch in one read; torch's loader calls this instead of one ``__getitem__`` per sample."""
        rows = self.stack[np.asarray(items, dtype=np.int64)]
        if isinstance(self.array, Tensor):
            there = torch.from_numpy(rows.reshape(-1)).to(self.array.device, non_blocking=True)
            image = self.array.index_select(0, there).view(*rows.shape, *self.array.shape[1:])
        else:
            image = torch.from_numpy(np.ascontiguousarray(self.array[rows]))
            self.pages.spend(image.nbytes)
        chosen = torch.as_tensor(items, dtype=torch.int64)
        return Batch(image=image, label=self.labels[chosen], index=self.index[chosen])


def as_is(batch: Any) -> Any:
    """Collate function for batches that the data set has already put together."""
    return batch


def batch_loader(
    data: SliceDataset | SeriesDataset,
    device: torch.device,
    *,
    resident: str = "disk",
    num_workers: int | None = None,
    processes: int = 1,
    pin_memory: bool = False,
    **options: Any,
) -> DataLoader[Any]:
    """A loader of ready-made batches; those that are gathered on the device need no processes and no pinning.

    Args:
        data: What to load.
        device: That the batches are for.
        resident: As ``data.resident``, see :func:`hemlearn.data.resident.reside`.
        num_workers: As ``data.num_workers``, see :func:`hemlearn.data.resident.loader_workers`.
        processes: Training processes on this machine.
        pin_memory: Page-locked memory, for copies to a GPU.
        **options: Of torch's loader: ``batch_size`` and ``sampler``, or ``batch_sampler``.
    """
    there = data.reside(resident, device)
    workers = 0 if there else loader_workers(num_workers, device, processes)
    options |= {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": pin_memory and not there}
    return DataLoader(data, collate_fn=as_is, **options)


class EpochSampler(DistributedSampler[int]):
    """Shuffled (or class-balanced) order that is a pure function of seed and epoch.

    A resumed run therefore sees the very batches an undisturbed one would have seen, and several processes take
    together what one would take alone. Lightning calls :meth:`set_epoch`, and shares out no sampler of this kind once
    more: its own way would draw the balanced slices of the first epoch in every one.

    Args:
        size: Number of samples.
        seed: Seed of the run.
        weights: ``(size,)`` draw probabilities (need not sum to 1); None shuffles without replacement.
        share: (rank, processes): this process takes every so manieth sample; all take equally many.
    """

    def __init__(
        self, size: int, seed: int, weights: NDArray[np.float64] | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        super().__init__(range(size), num_replicas=share[1], rank=share[0], seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.weights = weights

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            order = rng.permutation(self.size)
        else:
            order = rng.choice(self.size, size=self.size, p=self.weights / self.weights.sum())
        # The last ones that are missing for equal shares are the first ones again.
        yield from np.resize(order, self.total_size)[self.rank :: self.num_replicas].tolist()


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


_POOL = 4  # batches within which series are sorted by length


class SeriesBatch(TypedDict):
    """B series with T slices in all.

    Attributes:
        index: ``(T,)`` manifest rows, series after series, each in position order.
        lengths: ``(B,)`` slices per series; they sum to T.
        label: ``(T, L)`` float, 0 / 1 / NaN (unknown, or not in this part of a leaky split).
        series_label: ``(B, L)`` float: 1 if a slice has it, 0 if none known has it, NaN if it is known of none.
        z_mm: ``(T,)`` positions, mm; NaN where unknown.
        pixel_mm: ``(T, 2)`` height and width of a pixel in mm, NaN where unknown; of a 3D network alone.
        vector: ``(T, V, D + L)`` cached embeddings and logits, one per view; absent end to end.
        image: ``(T, K, S, S)`` stored slices; absent with cached embeddings.
    """

    index: Tensor
    lengths: Tensor
    label: Tensor
    series_label: Tensor
    z_mm: Tensor
    pixel_mm: NotRequired[Tensor]
    vector: NotRequired[Tensor]
    image: NotRequired[Tensor]


class SeriesDataset(Dataset[SeriesBatch]):
    """Series of one part of a split.

    Args:
        series: Manifest rows of each series in position order.
        labels: ``(N, L)`` labels of all manifest rows; NaN for unknown.
        used: ``(N,)`` whether a row's labels belong to this part; the others are context only.
        z_mm: ``(N,)`` positions.
        slices: All N slices, for training end to end; None with ``vectors``.
        vectors: ``(N, V, D + L)`` memory map of embeddings; None end to end.
        pixel_mm: ``(N, 2)`` of a stored pixel; None: not handed out.
    """

    def __init__(
        self,
        series: Sequence[NDArray[np.int64]],
        labels: NDArray[np.float32],
        used: NDArray[np.bool_],
        z_mm: NDArray[np.float64],
        *,
        slices: SliceDataset | None = None,
        vectors: NDArray[np.float32] | None = None,
        pixel_mm: NDArray[np.float32] | None = None,
    ) -> None:
        if (slices is None) == (vectors is None):
            raise ValueError("give either slices or vectors")
        self.series = list(series)
        self.lengths = np.array([len(rows) for rows in self.series], dtype=np.int64)
        self.labels = np.where(used[:, None], labels, np.nan).astype(np.float32)
        self.series_labels = np.stack([series_label(self.labels[rows]) for rows in self.series])
        self.z_mm = z_mm.astype(np.float32)
        self.slices = slices
        self.vectors = vectors
        self.pixel_mm = pixel_mm
        self.pages = None if vectors is None else PageBudget(vectors)

    def __len__(self) -> int:
        return len(self.series)

    def reside(self, asked: str, device: torch.device) -> bool:
        """As :meth:`SliceDataset.reside`; cached embeddings stay on the disk."""
        return self.slices is not None and self.slices.reside(asked, device)

    def __getitem__(self, item: int) -> SeriesBatch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> SeriesBatch:
        """A whole batch in one read; torch's loader calls this instead of one ``__getitem__`` per series."""
        chosen = np.asarray(items, dtype=np.int64)
        rows = np.concatenate([self.series[item] for item in chosen])
        batch = SeriesBatch(
            index=torch.from_numpy(rows),
            lengths=torch.from_numpy(self.lengths[chosen]),
            label=torch.from_numpy(self.labels[rows]),
            series_label=torch.from_numpy(self.series_labels[chosen]),
            z_mm=torch.from_numpy(self.z_mm[rows]),
        )
        if self.pixel_mm is not None:
            batch["pixel_mm"] = torch.from_numpy(self.pixel_mm[rows])
        if self.vectors is not None:
            batch["vector"] = torch.from_numpy(np.ascontiguousarray(self.vectors[rows]))
        if self.pages is not None:
            self.pages.spend(batch["vector"].nbytes)
        if self.slices is not None:
            batch["image"] = self.slices.__getitems__(rows.tolist())["image"]
        return batch


def series_label(labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(L,)`` label of a series from ``(S, L)`` labels of its slices, NaN where no slice is known."""
    best = np.where(np.isnan(labels), -1.0, labels).max(axis=0)
    return np.where(best < 0, np.nan, best).astype(np.float32)


class LengthBatches(Sampler[list[int]]):
    """Batches of series of like length, in an order that is a pure function of seed and epoch.

    Shuffled series are sorted by length within pools of four batches, then the batches are shuffled: little is padded,
    and batches stay mixed. Sorting all of them would put scanners and protocols together (measured on CT-ICH: weighted
    log loss 0.149 instead of 0.144). Lightning calls :meth:`set_epoch`.

    Args:
        lengths: ``(M,)`` slices per series.
        size: Series per batch.
        seed: Seed of the run; None keeps the given order (evaluation).
        share: (rank, processes): this process takes every so manieth batch; all take equally many.
    """

    def __init__(
        self, lengths: NDArray[np.int64], size: int, seed: int | None, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.lengths = lengths
        self.size = size
        self.seed = seed
        self.share = share
        self.epoch = 0

    @property
    def sampler(self) -> LengthBatches:
        """Itself: Lightning tells the epoch to a batch sampler's sampler only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches = -(-len(self.lengths) // self.size)
        return -(-batches // self.share[1])

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.lengths))
        rng = None if self.seed is None else np.random.default_rng([self.seed, self.epoch])
        if rng is not None:
            pools = np.array_split(rng.permutation(len(order)), -(-len(order) // (_POOL * self.size)))
            order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        # Of equal size as far as possible: a last batch of one series would give that series the weight of a batch.
        count = -(-len(order) // self.size)
        batches = [part.tolist() for part in np.array_split(order, max(count, 1))]
        if rng is not None:
            rng.shuffle(batches)
        rank, world = self.share
        wanted = len(self) * world
        yield from list(islice(cycle(batches), wanted))[rank::world]
