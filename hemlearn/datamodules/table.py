"""Any data set that a CSV describes: one row per PNG or JPG image."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hemlearn.config_rules import hint
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.tables import read_csv
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.errors import DataError

_OPTIONAL = ("slice_id", "study_id", "series_id", "z_mm")


class TableDataModule(SliceDataModule):
    """``data.manifest=FILE.csv`` with a path, a patient and one column per label of the task.

    Paths are relative to ``data.root``, or to the CSV's folder when it is not set. Optional columns: ``slice_id``
    (default: the path), ``study_id``, ``series_id``, ``z_mm``.
    """

    @property
    def _file(self) -> Path:
        return Path(str(self.config.data.manifest)).expanduser()

    @property
    def root(self) -> Path:
        """``data.root``, else the CSV's folder."""
        data = self.config.data
        folder = self._file.parent if data.root is None else Path(data.root).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.root={folder}: no such folder", remedy="give the folder the paths start from")
        return folder

    def read(self, root: Path) -> Manifest:
        """The manifest of the CSV's rows.

        Raises:
            DataError: Missing file or column, bad label, duplicated image, no usable image.
        """
        data, labels = self.config.data, tuple(self.config.task.labels)
        if not self._file.is_file():
            raise DataError(f"data.manifest={self._file}: no such file", remedy="give the CSV with data.manifest=FILE")
        table = read_csv(self._file)
        columns = [str(name) for name in table.columns]
        for key, name in (("data.path_column", data.path_column), ("data.patient_column", data.patient_column),
                          *(("task.labels", label) for label in labels)):  # fmt: skip
            if name not in columns:
                raise DataError(f"{self._file}: no column '{name}' ({key}){hint(name, columns)}; "
                                f"found: {', '.join(columns)}",
                                remedy=f"add the column, or name the right one with {key}")  # fmt: skip
        rows = pd.DataFrame({"path": table[data.path_column], "patient_id": table[data.patient_column]})
        rows["slice_id"] = table["slice_id"] if "slice_id" in table else table[data.path_column]
        for name in (*_OPTIONAL[1:], *labels):
            if name in table:
                rows[name] = table[name]
        return build_manifest(rows, root=root, labels=labels, source="table", modality="CT", cache_dir=self.cache)
