"""A finished run on a whole manifest, through the slice store."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.config.schema import Config
from hemlearn.data.manifest import Manifest
from hemlearn.datamodules.base import SliceDataModule, VolumeDataModule
from hemlearn.evaluation.calibration import Calibration
from hemlearn.tasks.base import Classification
from hemlearn.training.results import predict
from hemlearn.util.errors import DataError


class UnseenSlices(SliceDataModule):
    """Every slice of a given manifest, whatever its labels.

    Args:
        config: Of the run that predicts.
        manifest: The slices.
    """

    def __init__(self, config: Config, manifest: Manifest) -> None:
        super().__init__(config)
        self._given = manifest

    def read(self, root: Path) -> Manifest:
        """The given manifest."""
        return self._given

    @cached_property
    def root(self) -> Path:
        """Where its files lie."""
        return self._given.root

    @cached_property
    def labels(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """``(N, L)``: the labels the manifest has, NaN for the others."""
        table = self._given.table
        known = [
            table[label] if label in self._given.labels else pd.Series(np.nan, index=table.index)
            for label in self.config.task.labels
        ]
        return np.stack([column.to_numpy(dtype=np.float32) for column in known], axis=1)

    def rows(self, part: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """All of them are ``test``."""
        return np.arange(len(self._given.table) if part == "test" else 0, dtype=np.int64)


def predict_manifest(
    config: Config, task: Classification, manifest: Manifest, calibration: Calibration | None = None
) -> pd.DataFrame:
    """Predictions of every slice of a manifest, in the columns of ``predictions.parquet``, all as split ``test``.

    Raises:
        DataError: The slices are of another unit than those the run was trained with (screen images or HU).
    """
    data = UnseenSlices(config, manifest)
    trained = str(task.hparams["unit"])
    if data.store.unit != trained:
        raise DataError(
            f"{manifest.root}: slices in {data.store.unit}, but the run was trained on {trained}",
            remedy="give the same kind of files as in training",
        )
    module = data if config.sequence.name == "none" else VolumeDataModule(data, None)
    frame = predict(config, data, module, task, "test")
    return frame if calibration is None else calibration.apply(frame)
