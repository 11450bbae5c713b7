"""Batches of whole series: order, labels, and batches that are a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest

from hemlearn.data.batches import LengthBatches, SeriesDataset, series_label

SERIES = [np.array([3, 1, 0]), np.array([5]), np.array([2, 4])]
Z = np.arange(6.0)


def small(**more: object) -> SeriesDataset:
    labels = np.array([[0, 1], [1, np.nan], [0, 0], [0, np.nan], [np.nan, np.nan], [1, 0]], dtype=np.float32)
    vectors = np.arange(6 * 2, dtype=np.float32).reshape(6, 1, 2)
    return SeriesDataset(SERIES, labels, np.ones(6, dtype=bool), Z, vectors=vectors, **more)  # type: ignore[arg-type]


def test_a_batch_is_packed_in_position_order() -> None:
    batch = small().__getitems__([0, 2])
    assert batch["index"].tolist() == [3, 1, 0, 2, 4]
    assert batch["lengths"].tolist() == [3, 2]
    assert batch["z_mm"].tolist() == [3, 1, 0, 2, 4]
    assert batch["vector"][:, 0, 0].tolist() == [6, 2, 0, 4, 8]
    np.testing.assert_array_equal(batch["label"][3:].numpy(), [[0, 0], [np.nan, np.nan]])


def test_labels_of_a_series() -> None:
    np.testing.assert_array_equal(small().series_labels, [[1, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(series_label(np.array([[np.nan, 0.0], [np.nan, np.nan]], np.float32)), [np.nan, 0])


def test_slices_of_another_part_are_context_without_labels() -> None:
    used = np.array([True, False, True, True, True, True])
    labels = np.ones((6, 1), dtype=np.float32)
    data = SeriesDataset(SERIES, labels, used, Z, vectors=np.zeros((6, 1, 2), dtype=np.float32))
    batch = data.__getitems__([0])
    assert batch["index"].tolist() == [3, 1, 0]
    np.testing.assert_array_equal(batch["label"][:, 0].numpy(), [1, np.nan, 1])


def test_slices_or_vectors() -> None:
    with pytest.raises(ValueError, match="either"):
        SeriesDataset(SERIES, np.zeros((6, 1), np.float32), np.ones(6, dtype=bool), Z)


@pytest.mark.parametrize("size", [1, 4, 7, 50])
def test_every_series_once_in_batches_of_equal_size(size: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 41)
    batches = LengthBatches(lengths, size, seed=3)
    found = list(batches)
    assert len(found) == len(batches)
    assert sorted(item for batch in found for item in batch) == list(range(41))
    sizes = {len(batch) for batch in found}
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 41)

    def orders(seed: int) -> list[list[list[int]]]:
        batches = LengthBatches(lengths, 4, seed)
        found = []
        for epoch in (0, 1, 0):
            # Lightning sets the epoch of a batch sampler's sampler, not of the batch sampler.
            batches.sampler.set_epoch(epoch)
            found.append(list(batches))
        return found

    first, second, again = orders(0)
    assert first == again
    assert first != second
    assert first != orders(1)[0]
    assert next(iter(LengthBatches(lengths, 4, None))) == [0, 1, 2, 3]


def test_batches_hold_series_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 400)

    def padding(batches: list[list[int]]) -> float:
        return float(sum(lengths[b].max() * len(b) for b in batches) / lengths.sum())

    rng = np.random.default_rng(1)
    mixed = [part.tolist() for part in np.array_split(rng.permutation(400), 50)]
    # Over the real slices the sorted pools add less than half of the padding that random batches do.
    assert padding(list(LengthBatches(lengths, 8, 0))) - 1 < 0.5 * (padding(mixed) - 1)


def test_processes_share_the_batches() -> None:
    lengths = np.arange(1, 11)
    shares = [list(LengthBatches(lengths, 2, 0, (rank, 2))) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 3
    assert {item for share in shares for batch in share for item in batch} == set(range(10))
