"""What every data module shares: root or phantom -> manifest -> split -> store -> loaders."""

from __future__ import annotations

import logging
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, SequentialSampler

from hemlearn.config.compose import conf_dir
from hemlearn.config.schema import Config
from hemlearn.data.batches import (
    Batch,
    EpochSampler,
    LengthBatches,
    SeriesBatch,
    SeriesDataset,
    SliceDataset,
    as_is,
    balanced_weights,
    neighbour_stack,
)
from hemlearn.data.duplicates import duplicate_groups, kept_duplicate_pairs
from hemlearn.data.manifest import Manifest
from hemlearn.data.splits import Split, make_split
from hemlearn.data.store import SliceStore, open_store
from hemlearn.models.embeddings import Embeddings
from hemlearn.util.console import counter
from hemlearn.util.errors import ConfigError, DataError
from hemlearn.util.files import cache_dir

# --- Which of the shipped tasks a data set's labels are those of, as it is given on the command line.


def tasks_of(manifest: Manifest) -> list[str]:
    """For example ``["task=six_class loss=cross_entropy"]``.

    Args:
        manifest: The data set.

    Returns:
        Tasks of ``conf/task`` whose labels are those of the data set, with what else they need: the loss of exclusive
        classes, the channels of MR, slices where these labels describe slices. No such task: those that need only
        some of the labels.
    """
    exact, part = [], []
    for file in sorted((conf_dir() / "task").glob("*.yaml")):
        task = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(task, dict)
        words = [f"task={file.stem}"]
        if task.get("level") == "series" and task.get("kind") == "multiclass" and manifest.label_level == "slice":
            words.append("task.level=slice")
        if task.get("level", "slice") == "slice" and manifest.label_level == "series":
            words.append("task.level=series")
        if task.get("kind") == "multiclass":
            words.append("loss=cross_entropy")
        if set(manifest.table["modality"]) == {"MR"}:
            words.append("channels=mr")
        labels = set(task.get("labels", ()))
        if labels == set(manifest.labels):
            exact.append(" ".join(words))
        elif labels and labels < set(manifest.labels):
            part.append(" ".join(words))
    return exact or part


logger = logging.getLogger(__name__)


class SliceDataModule(pl.LightningDataModule):
    """A data set of labelled slices.

    A subclass says how its files become a manifest; splitting, decoding and loading are shared.

    Args:
        config: The run's configuration; ``data``, ``channels``, ``split``, ``task`` and ``seed`` are read.
    """

    layout: ClassVar[str | None] = None  # phantom layout that stands in when data.root is not set

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.cache = cache_dir(config.data.cache_dir)

    @abstractmethod
    def read(self, root: Path) -> Manifest:
        """The manifest of the files under ``root``."""

    @cached_property
    def root(self) -> Path:
        """Folder of the data set; the phantom is written on first use when ``data.root`` is not set.

        Raises:
            DataError: The folder does not exist or is no folder.
        """
        data = self.config.data
        if data.root is None:
            return self._phantom()
        root = Path(data.root).expanduser()
        if not root.is_dir():
            raise DataError(
                f"data.root={data.root}: {'not a folder' if root.exists() else 'no such folder'}",
                remedy=f"give the folder of the {data.name} data set, or leave data.root out "
                "to use the synthetic phantom",
            )
        return root

    def _phantom(self) -> Path:
        from filelock import FileLock

        from hemlearn.phantom.layouts import PHANTOM_VERSION, write_phantom

        data = self.config.data
        if self.layout is None:
            raise ConfigError(f"data={data.name}: data.root is not set", remedy="give the folder with data.root=DIR")
        name = f"{self.layout}-v{PHANTOM_VERSION}-{data.phantom_patients}-{data.phantom_seed}"
        folder = self.cache / "phantom" / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{name}.lock"):
            if not folder.is_dir():
                with counter("Drawing synthetic heads") as progress:
                    write_phantom(
                        self.layout,
                        folder,
                        patients=data.phantom_patients,
                        seed=data.phantom_seed,
                        progress=progress,
                        n_jobs=-1,
                    )
        logger.warning("data.root is not set: using SYNTHETIC phantom data (%s), not patients", folder)
        return folder

    @cached_property
    def manifest(self) -> Manifest:
        """One row per slice (see :class:`hemlearn.data.manifest.Manifest`)."""
        return self.read(self.root)

    @cached_property
    def _task_labels(self) -> list[str]:
        """Labels of the task.

        Raises:
            ConfigError: The data set has no such label, or its labels describe whole series and the task's slices.
        """
        task, name = self.config.task, self.config.data.name
        absent = [label for label in task.labels if label not in self.manifest.labels]
        if absent:
            fit = " or ".join(tasks_of(self.manifest))
            raise ConfigError(
                f"task.labels={absent}: not among the labels of data={name} ({', '.join(self.manifest.labels)})",
                remedy=f"use {fit}" if fit else "choose a task whose labels the data set has: task=NAME",
            )
        if self.manifest.label_level == "series" and task.level == "slice":
            raise ConfigError(
                f"task.level=slice: the labels of data={name} describe whole series", remedy="set task.level=series"
            )
        return list(task.labels)

    @cached_property
    def split(self) -> Split:
        """Who trains, validates and tests."""
        cfg, labels = self.config.split, self._task_labels
        pairs = kept_duplicate_pairs(self.manifest, cfg.duplicates, self.cache)
        return make_split(self.manifest, cfg, labels=labels, groups=duplicate_groups(self.manifest, pairs=pairs))

    @cached_property
    def store(self) -> SliceStore:
        """Decoded slices, built on first use."""
        data = self.config.data
        return open_store(self.manifest, size=data.image_size, fit=data.fit, cache_dir=self.cache)

    @cached_property
    def labels(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """``(N, L)`` labels of the task, in its order; NaN is unknown."""
        table = self.manifest.table[self._task_labels]
        found = np.asarray(table.to_numpy(dtype=np.float32), dtype=np.float32)
        return self._one_class(found) if self.config.task.kind == "multiclass" else found

    def _one_class(
        self, labels: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Rows with one class: a single 1 decides the row; a row that leaves its class open is unknown as a whole."""
        hits = (labels == 1).sum(axis=1)
        table = self.manifest.table
        wrong = np.flatnonzero((hits > 1) | ((hits == 0) & ~np.isnan(labels).any(axis=1)))
        if len(wrong):
            names = [name for name, value in zip(self.config.task.labels, labels[wrong[0]], strict=True) if value == 1]
            item = table["slice_id"].iloc[wrong[0]]
            raise DataError(
                f"{len(wrong)} slices do not have exactly one class; the first is {item!r} with {names}",
                remedy="correct the labels, or use a task of kind multilabel",
            )
        unknown = hits == 0
        if unknown.any():
            logger.warning("%d slices are left out: their class is not known", int(unknown.sum()))
        decided = np.where(np.isnan(labels), np.float32(0), labels)
        decided[unknown] = np.nan
        return decided

    def prepare_data(self) -> None:
        """Write what all processes of a run share: phantom, manifest cache and store."""
        _ = self.store

    def rows(self, part: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Manifest rows of ``train``, ``val`` or ``test`` with at least one known label."""
        chosen = (self.split.apply(self.manifest) == part).to_numpy()
        return np.flatnonzero(chosen & ~np.isnan(self.labels).all(axis=1)).astype(np.int64)

    def dataset(self, part: str) -> SliceDataset:
        """The data set of one part of the split."""
        rows = self.rows(part)
        return SliceDataset(self.store.array, self._stack[rows], self.labels[rows], rows)

    def all_slices(self) -> SliceDataset:
        """Every slice of the manifest in its order, whatever its part and labels."""
        rows = np.arange(len(self.labels), dtype=np.int64)
        return SliceDataset(self.store.array, self._stack, self.labels, rows)

    @cached_property
    def _stack(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """``(N, K)`` rows of the store that make each sample, neighbours included."""
        table = self.manifest.table
        if self.config.channels.neighbours:
            self.check_positions()
        store_rows = np.array([self.store.rows[item] for item in table["slice_id"]], dtype=np.int64)
        return neighbour_stack(
            table["series_id"].to_numpy(dtype=object),
            table["z_mm"].to_numpy(dtype=np.float64),
            store_rows,
            self.config.channels.neighbours,
        )

    def check_positions(self) -> None:
        """Order needs positions: of a series all slices have one, or none (then the order of the files counts)."""
        missing = self.manifest.table["z_mm"].isna().groupby(self.manifest.table["series_id"])
        share = missing.mean()
        broken = share[(share > 0) & (share < 1)]
        if len(broken):
            raise DataError(
                f"{len(broken)} series have slices without z_mm beside slices with it; the first is "
                f"{broken.index[0]!r}",
                remedy="fill the column for all slices of a series, or for none",
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled or balanced batches; the last incomplete batch is kept unless it holds a single slice."""
        data = self.dataset("train")
        weights = balanced_weights(data.labels.numpy()) if self.config.data.sampler == "balanced" else None
        size = self.config.data.batch_size
        # BatchNorm cannot normalise a batch of one.
        drop_last = len(data) > size and len(data) % size == 1
        return self._loader(data, EpochSampler(len(data), self.config.seed, weights), drop_last)

    def eval_dataloader(self, part: str) -> DataLoader[Batch]:
        """Batches of ``val`` or ``test`` in manifest order."""
        data = self.dataset(part)
        return self._loader(data, SequentialSampler(data), False)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the validation patients."""
        return self.eval_dataloader("val")

    def _loader(
        self, data: SliceDataset, sampler: EpochSampler | SequentialSampler, drop_last: bool
    ) -> DataLoader[Batch]:
        workers = self.config.data.num_workers
        return DataLoader(
            data,
            batch_size=self.config.data.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.config.trainer.accelerator != "cpu",
        )


# --- Whole series from any data module of slices, as cached embeddings or as images.


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
