"""Whole series from any data module of slices, as cached embeddings or as images."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from hemlearn.data.datasets import as_is
from hemlearn.data.packing import LengthBatches, SeriesBatch, SeriesDataset
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.models.embeddings import Embeddings


class VolumeDataModule(pl.LightningDataModule):
    """The series of a data set.

    Args:
        slices: Its slices, with manifest, split and store.
        embeddings: Cached embeddings of all of them; None hands out images.
    """

    def __init__(self, slices: SliceDataModule, embeddings: Embeddings | None) -> None:
        super().__init__()
        self.slices = slices
        self.config = slices.config
        self.embeddings = embeddings

    @cached_property
    def series(self) -> list[NDArray[np.int64]]:
        """Manifest rows of every series in position order; slices without a position keep the manifest's order."""
        return position_order(self.slices)

    def dataset(self, part: str) -> SeriesDataset:
        """Series with at least one labelled slice in a part of the split, all their slices included."""
        used = np.zeros(len(self.slices.labels), dtype=bool)
        used[self.slices.rows(part)] = True
        chosen = [rows for rows in self.series if used[rows].any()]
        z_mm = self.slices.manifest.table["z_mm"].to_numpy(dtype=np.float64)
        if self.embeddings is not None:
            return SeriesDataset(chosen, self.slices.labels, used, z_mm, vectors=self.embeddings.array)
        return SeriesDataset(chosen, self.slices.labels, used, z_mm, slices=self.slices.all_slices())

    def train_dataloader(self) -> DataLoader[SeriesBatch]:
        """Batches of training series by length."""
        data = self.dataset("train")
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self._loader(
            data, LengthBatches(data.lengths, self.config.sequence.series_per_batch, self.config.seed, share)
        )

    def eval_dataloader(self, part: str) -> DataLoader[SeriesBatch]:
        """Batches of ``val`` or ``test`` series in manifest order."""
        data = self.dataset(part)
        return self._loader(data, LengthBatches(data.lengths, self.config.sequence.series_per_batch, None))

    def val_dataloader(self) -> DataLoader[SeriesBatch]:
        """Batches of the validation series."""
        return self.eval_dataloader("val")

    def _loader(self, data: SeriesDataset, batches: LengthBatches) -> DataLoader[SeriesBatch]:
        workers = self.config.data.num_workers
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.config.trainer.accelerator != "cpu",
        )


def position_order(slices: SliceDataModule) -> list[NDArray[np.int64]]:
    """Manifest rows of every series, lowest slice first."""
    slices.check_positions()
    table = slices.manifest.table
    codes = np.unique(table["series_id"].to_numpy(dtype=object).astype(str), return_inverse=True)[1]
    z_mm = np.nan_to_num(table["z_mm"].to_numpy(dtype=np.float64), nan=0.0)
    order = np.lexsort((np.arange(len(table)), z_mm, codes)).astype(np.int64)
    return list(np.split(order, np.flatnonzero(np.diff(codes[order])) + 1))
