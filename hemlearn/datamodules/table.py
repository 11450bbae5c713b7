"""Any data set that a CSV describes: one row per image, slice or volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.data.geometry import arrange, no_series
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.readers import DICOM_SUFFIXES, NIFTI_SUFFIXES
from hemlearn.data.rows import normalise
from hemlearn.data.series import usable_headers
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.util.errors import DataError, hint
from hemlearn.util.tables import read_csv

_OPTIONAL = ("slice_id", "study_id", "series_id", "z_mm", "frame", "modality")


class TableDataModule(SliceDataModule):
    """``data.manifest=FILE.csv`` with a path, a patient and one column per label of the task.

    Paths name PNG, JPG, DICOM or NIfTI files, relative to ``data.root``, or to the CSV's folder when it is not set.
    Optional columns: ``slice_id`` (default: the path, with ``#frame`` where the frame is not the first), ``study_id``,
    ``series_id``, ``z_mm``, ``frame``, ``modality``; of DICOM and NIfTI files they come from the headers where the
    table has no such column. Without ``frame``, a row that names a file of several slices stands for all of them: its
    labels then describe the whole series. ``data.geometry`` applies to slices of DICOM and NIfTI files.
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
        for key, name in (
            ("data.path_column", data.path_column),
            ("data.patient_column", data.patient_column),
            *(("task.labels", label) for label in labels),
        ):
            if name not in columns:
                raise DataError(
                    f"{self._file}: no column '{name}' ({key}){hint(name, columns)}; found: {', '.join(columns)}",
                    remedy=f"add the column, or name the right one with {key}",
                )
        rows = pd.DataFrame({"path": table[data.path_column], "patient_id": table[data.patient_column]})
        for name in (*_OPTIONAL, *labels):
            if name in table:
                rows[name] = table[name]
        # Faults are told with their row in the file, which is not known once headers have completed the rows.
        normalise(_with_ids(rows), root, labels, self._modality, self._file)
        series, skipped, level = None, None, "slice"
        if _with_header(rows["path"]).any():
            rows, series, skipped, level = self._completed(root, rows)
        return build_manifest(
            _with_ids(rows),
            root=root,
            labels=labels,
            source="table",
            cache_dir=self.cache,
            label_level=level,
            modality=self._modality,
            series=series,
            skipped=skipped,
        )

    @property
    def _modality(self) -> str:
        """What files are that do not say: NIfTI and pictures."""
        return "MR" if self.config.channels.kind == "mr" else "CT"

    def _completed(self, root: Path, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, str]:
        """Rows completed from headers and in order; series; skipped items; the level of the labels."""
        if "frame" in rows:
            rows["frame"] = _frames(rows["frame"], self._file)
        # Pictures, and files that do not exist, go on as they are: opening them tells what is wrong.
        there = _with_header(rows["path"]) & rows["path"].map(lambda path: (root / path).is_file())
        given, others = rows[there], _named(rows[~there])
        if given.empty:
            return others, no_series(), _lost([]), "slice"
        headers, unread = usable_headers(list(dict.fromkeys(given["path"])), root, cache_dir=self.cache)
        is_nifti = _ends(headers["path"], NIFTI_SUFFIXES)
        headers["modality"] = headers["modality"].where(~is_nifti, self._modality)
        keys = [name for name in ("path", "frame") if name in given]
        told = headers.drop(columns=[name for name in given if name in headers and name not in keys])
        both = given.merge(told, on=keys, how="left", indicator=True)
        absent = (both["_merge"] == "left_only") & ~both["path"].isin(set(unread["item"]))
        lost = _lost(
            [
                (f"{row.path}#{row.frame}", "label without image: the file has no such frame")
                for row in both[absent].itertuples()
            ]
        )
        found = both[both["_merge"] == "both"].drop(columns="_merge")
        found["frame"] = found["frame"].astype(np.int64)
        whole = "frame" not in given and bool((found["frame"] > 0).any())
        if whole and "slice_id" in found:
            found["slice_id"] = found["slice_id"] + "#" + found["frame"].astype(str)
        if "z_mm" in given:
            found["z_mm"] = pd.to_numeric(found["z_mm"], errors="coerce")
        geometry = arrange(found, self.config.data.geometry)
        skipped = pd.concat([unread, lost, geometry.skipped], ignore_index=True)
        rows = pd.concat([geometry.rows, others], ignore_index=True)
        return rows, geometry.series, skipped, "series" if whole else "slice"


def _ends(paths: pd.Series[str], endings: tuple[str, ...]) -> pd.Series[bool]:
    return paths.str.lower().str.endswith(endings)


def _with_header(paths: pd.Series[str]) -> pd.Series[bool]:
    return _ends(paths, (*DICOM_SUFFIXES, *NIFTI_SUFFIXES))


def _with_ids(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a slice_id: where the table has none the path, with the frame if that is not the first."""
    if "slice_id" in rows:
        return rows
    frame = rows["frame"] if "frame" in rows else pd.Series(0, index=rows.index)
    frame = pd.to_numeric(frame, errors="coerce").fillna(0).astype(np.int64)
    return rows.assign(slice_id=rows["path"].where(frame == 0, rows["path"] + "#" + frame.astype(str)))


def _lost(items: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(items, columns=["item", "reason"], dtype=object)


def _frames(frames: pd.Series[str], file: Path) -> pd.Series[int]:
    number = pd.to_numeric(frames.where(frames != "", "0"), errors="coerce")
    wrong = number.isna() | (number % 1 != 0) | (number < 0)
    if wrong.any():
        row = int(frames.index[wrong.to_numpy()][0])
        raise DataError(f"{file}, row {row + 2}: frame={frames[row]!r}", remedy="frames are whole numbers from 0")
    return number.astype(np.int64)


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the ids that their patient stands for where the table has none."""
    return rows.assign(**{name: rows["patient_id"] for name in ("study_id", "series_id") if name not in rows})
