"""Any files: a CSV with one row per image, slice or volume, or a folder of DICOM and NIfTI files without labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.covariates import PREFIX, typed
from hemlearn.data.geometry import no_series
from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import has_header
from hemlearn.data.rows import UNKNOWN, normalise, read_numbers, slice_ids, unknown_values
from hemlearn.data.sources import discover
from hemlearn.datamodules.base import SliceDataModule, skipped_table
from hemlearn.util.errors import ConfigError, DataError, count, hint
from hemlearn.util.tables import read_csv

logger = logging.getLogger(__name__)
_OPTIONAL = ("slice_id", "study_id", "series_id", "z_mm", "frame", "modality")


class DicomDataModule(SliceDataModule):
    """``data=dicom data.root=DIR``: whatever series lie in a folder, to look at or to predict; there are no labels.

    Files are found by their content, at any depth; slices belong together by SeriesInstanceUID (0020,000E) and are
    ordered by position. ``slice_id`` is the path, with ``#frame`` for files of several slices.

    Args:
        root: The folder.
        modality: ``CT`` (also None) or ``MR``, of NIfTI files: their headers do not say what was measured.
        **options: Those of :class:`hemlearn.datamodules.base.SliceDataModule`.

    Example:
        >>> DicomDataModule("my-series", image_size=96).modality
        'CT'
    """

    name = "dicom"

    def __init__(self, root: str | Path | None = None, *, modality: str | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        self.modality = modality or "CT"

    def read(self, root: Path) -> Manifest:
        """The manifest of a folder of mixed files."""
        found = discover(root)
        headers, lost = self.headers(found.files, root, nifti="CT" if self.modality == "CT" else "OT")
        geometry = self.arrange(headers)
        rows = geometry.rows
        rows["slice_id"] = slice_ids(rows)
        return self.build(
            rows, root, skipped=(found.skipped, lost, geometry.skipped), series=geometry.series, synthetic=False
        )


class TableDataModule(SliceDataModule):
    """A CSV with a path, a patient and one column per label.

    Paths name PNG, JPG, DICOM or NIfTI files, relative to ``root``, or to the CSV's folder where no root is given.
    Optional columns: ``slice_id`` (default: the path, with ``#frame`` where the frame is not the first), ``study_id``,
    ``series_id``, ``z_mm``, ``frame``, ``modality``; of DICOM and NIfTI files they come from the headers where the
    table has no such column. Without ``frame``, a row that names a file of several slices stands for all of them: its
    labels then describe the whole series. ``geometry`` applies to slices of DICOM and NIfTI files.

    Args:
        manifest: The CSV.
        root: Folder that its paths start from; None: the CSV's.
        path_column: Its column of paths.
        patient_column: Its column of patients.
        covariates: Its columns of covariates (age, sex ...), see :mod:`hemlearn.data.covariates`.
        modality: ``CT`` or ``MR``, of files that do not say: pictures and NIfTI. None: unknown (``OT``) of pictures,
            ``CT`` of NIfTI.
        **options: Those of :class:`hemlearn.datamodules.base.SliceDataModule`. Without ``labels`` and without a task,
            all further columns that hold nothing but 0, 1 and unknown are labels, covariates apart.

    Example:
        >>> TableDataModule("my.csv", patient_column="who", labels=["bleed"]).splitter.name
        'holdout'
    """

    name = "table"

    def __init__(
        self,
        manifest: str | Path | None = None,
        root: str | Path | None = None,
        *,
        path_column: str = "path",
        patient_column: str = "patient_id",
        covariates: Sequence[str] = (),
        modality: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if manifest is None:
            raise ConfigError(
                "data=table: no CSV file is given", remedy="data.manifest=FILE, or manifest=FILE in Python"
            )
        self.file = Path(manifest).expanduser()
        self.path_column, self.patient_column = path_column, patient_column
        self.covariates = tuple(covariates)
        self.modality, self._nifti = modality or "OT", modality or "CT"

    @cached_property
    def root(self) -> Path:
        """The given root, else the CSV's folder."""
        folder = self.file.parent if self._root is None else Path(self._root).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.root={folder}: no such folder", remedy="give the folder the paths start from")
        return folder

    def _forget(self) -> None:
        super()._forget()
        for name in ("manifest", "store"):  # the rows hold the labels that were asked for
            self.__dict__.pop(name, None)

    def _labels(self, table: pd.DataFrame) -> Sequence[str]:
        wanted = self._choice("labels")
        if wanted is not None:
            return tuple(wanted)
        known = (self.path_column, self.patient_column, *_OPTIONAL, *self.covariates)
        others = [name for name in table if name not in known]
        return tuple(name for name in others if table[name].str.lower().isin(("0", "1", "0.0", "1.0", *UNKNOWN)).all())

    def read(self, root: Path) -> Manifest:
        """The manifest of the CSV's rows."""
        if not self.file.is_file():
            raise DataError(f"data.manifest={self.file}: no such file", remedy="give the CSV with data.manifest=FILE")
        table = read_csv(self.file)
        columns, labels = [str(name) for name in table.columns], self._labels(table)
        for key, name in (
            ("data.path_column", self.path_column),
            ("data.patient_column", self.patient_column),
            *(("task.labels", label) for label in labels),
            *(("data.covariates", name) for name in self.covariates),
        ):
            if name not in columns:
                raise DataError(
                    f"{self.file}: no column '{name}' ({key}){hint(name, columns)}; found: {', '.join(columns)}",
                    remedy=f"add the column, or name the right one with {key}",
                )
        rows = pd.DataFrame({"path": table[self.path_column], "patient_id": table[self.patient_column]})
        for name in (*_OPTIONAL, *labels):
            if name in table:
                rows[name] = table[name]
        for name in self.covariates:
            rows[PREFIX + name] = typed(table[name], name, self.file, lambda row: f"row {row + 2}")
        # Faults name their row in the file, which is not known once headers have completed the rows.
        normalise(_with_ids(rows), root, labels, self.modality, self.file)
        series, skipped, level = None, skipped_table(), "slice"
        if any(has_header(rows["path"], root)):
            rows, series, skipped, level = self._completed(root, rows)
        found = self.build(
            _with_ids(rows), root, labels=labels, label_level=level, series=series, skipped=[skipped], synthetic=False
        )
        unknown = found.table["modality"] == "OT"
        if not unknown.any():
            return found
        note = (
            f"{self.file.name}: {count(int(unknown.sum()), 'picture does', 'pictures do')} not say whether CT or MR: "
            "data.modality=CT or MR, or a column modality, keeps runs from being applied to the other"
        )
        logger.warning(note)
        return replace(found, notes=(*found.notes, note))

    def _completed(self, root: Path, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, str]:
        """Rows completed from headers and in order; series; skipped items; the level of the labels."""
        if "frame" in rows:
            rows["frame"] = read_numbers(rows["frame"], whole=True)[0].fillna(0).astype(np.int64)
        # Pictures, and files that do not exist, go on as they are: opening them tells what is wrong.
        there = pd.Series(has_header(rows["path"], root), rows.index) & rows["path"].map(
            lambda path: (root / path).is_file()
        )
        given, others = rows[there], _named(rows[~there])
        if given.empty:
            return others, no_series(), skipped_table(), "slice"
        whole = "frame" not in given  # a table that names slices of a volume need not name them all
        headers, unread = self.headers(list(dict.fromkeys(given["path"])), root, nifti=self._nifti, whole=whole)
        keys = [name for name in ("path", "frame") if name in given]
        more = headers.drop(columns=[name for name in given if name in headers and name not in keys])
        both = given.merge(more, on=keys, how="left", indicator=True)
        absent = (both["_merge"] == "left_only") & ~both["path"].isin(set(unread["item"]))
        lost = [
            (f"{row.path}#{row.frame}", "label without image: the file has no such frame")
            for row in both[absent].itertuples()
        ]
        found = both[both["_merge"] == "both"].drop(columns="_merge")
        found["frame"] = found["frame"].astype(np.int64)
        whole = "frame" not in given and bool((found["frame"] > 0).any())
        if whole and "slice_id" in found:
            found["slice_id"] = found["slice_id"] + "#" + found["frame"].astype(str)
        if "modality" in given:  # where the row does not say, the header does
            own = found[keys := ["path", "frame"]].merge(headers[[*keys, "modality"]], on=keys, how="left")["modality"]
            found["modality"] = found["modality"].where(~unknown_values(found["modality"]), own.to_numpy())
        if "z_mm" in given:
            found["z_mm"] = pd.to_numeric(found["z_mm"], errors="coerce")
        geometry = self.arrange(found)
        skipped = skipped_table(unread, lost, geometry.skipped)
        rows = pd.concat([geometry.rows, others], ignore_index=True)
        return rows, geometry.series, skipped, "series" if whole else "slice"


def _with_ids(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a slice_id: where the table has none the path, with the frame if that is not the first."""
    if "slice_id" in rows:
        return rows
    frame = rows["frame"] if "frame" in rows else pd.Series(0, index=rows.index)
    number, wrong, _ = read_numbers(frame, whole=True)
    frame = number.where(~wrong, 0.0).fillna(0).astype(np.int64)
    return rows.assign(slice_id=rows["path"].where(frame == 0, rows["path"] + "#" + frame.astype(str)))


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the ids that their patient stands for where the table has none."""
    return rows.assign(**{name: rows["patient_id"] for name in ("study_id", "series_id") if name not in rows})
