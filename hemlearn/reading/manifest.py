"""A finished run on a whole manifest, through the slice store."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd

from hemlearn.config.schema import Config
from hemlearn.data.manifest import Manifest
from hemlearn.datamodules.base import ManifestDataModule, VolumeDataModule
from hemlearn.evaluation.calibration import Calibration
from hemlearn.tasks.base import Classification
from hemlearn.training.build import slice_options
from hemlearn.training.results import predict


class UnseenSlices(ManifestDataModule):
    """Every slice of a given manifest, whatever its labels.

    Args:
        config: Of the run that predicts.
        manifest: The slices.
    """

    def __init__(self, config: Config, manifest: Manifest) -> None:
        super().__init__(manifest, **slice_options(config))

    @cached_property
    def label_names(self) -> list[str]:
        """Those of the run, whether the manifest has them or not."""
        return list(self._asked["labels"])

    @cached_property
    def labels(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """``(N, L)``: the labels the manifest has, NaN for the others."""
        table = self.given.table
        known = [
            table[label] if label in self.given.labels else pd.Series(np.nan, index=table.index)
            for label in self.label_names
        ]
        return np.stack([column.to_numpy(dtype=np.float32) for column in known], axis=1)

    def rows(self, split: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """All of them are ``test``."""
        return np.arange(len(self.given.table) if split == "test" else 0, dtype=np.int64)


def predict_manifest(
    config: Config, task: Classification, manifest: Manifest, calibration: Calibration | None = None
) -> pd.DataFrame:
    """Predictions of every slice of a manifest, in the columns of ``predictions.parquet``, all as split ``test``.

    Raises:
        DataError: The slices are of another unit than those the run was trained with (screen images or HU).
    """
    data = UnseenSlices(config, manifest)
    data.expect_unit(str(task.hparams["unit"]))
    module = (
        data
        if config.sequence.name == "none"
        else VolumeDataModule(data, series_per_batch=config.sequence.series_per_batch)
    )
    frame = predict(config, data, module, task, "test")
    return frame if calibration is None else calibration.apply(frame)
