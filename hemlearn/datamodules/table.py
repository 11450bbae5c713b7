"""Any files: a table (CSV or spreadsheet) with one row per image, slice, volume or folder of them."""

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
from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import has_header
from hemlearn.data.rows import UNKNOWN, normalise, read_numbers, unknown_values, with_slice_ids
from hemlearn.data.series import natural
from hemlearn.data.sources import discover
from hemlearn.datamodules.base import SliceDataModule, skipped_table
from hemlearn.util.console import NOTED
from hemlearn.util.errors import ConfigError, DataError, count, hint
from hemlearn.util.tables import no_header, read_table, refuse_rows, row_number

logger = logging.getLogger(__name__)
_FOLDER = "in_folder"  # column: the folder that a row of a folder has given way to; "": none
_OPTIONAL = ("slice_id", "study_id", "series_id", "z_mm", "frame", "modality")


class TableDataModule(SliceDataModule):
    """A table (CSV or ``.xlsx``) with a path, a patient and one column per label.

    Paths name PNG, JPG, DICOM or NIfTI files, or folders of them, relative to ``root``, or to the table's folder where
    no root is given. Optional columns: ``slice_id`` (default: the path, with ``#frame`` where the frame is not the
    first), ``study_id``, ``series_id``, ``z_mm``, ``frame``, ``modality``; of DICOM and NIfTI files they come from the
    headers where the table has no such column. Without ``frame``, a row that names a file of several slices, or a
    folder, stands for all of them: its labels then describe whole series. ``geometry`` and ``band`` apply to slices
    with a position: those of DICOM and NIfTI files, and pictures with ``series_id`` and ``z_mm``.

    Args:
        manifest: The table.
        root: Folder that its paths start from; None: the table's.
        path_column: Its column of paths.
        patient_column: Its column of patients. None: it has none; DICOM files then go by their PatientID (0010,0020),
            and every other image, or series, is taken for a person of its own, which every output says.
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
        patient_column: str | None = "patient_id",
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
        known = (self.path_column, self.patient_column or "", *_OPTIONAL, *self.covariates)
        others = [name for name in table if name not in known]
        return tuple(name for name in others if table[name].str.lower().isin(("0", "1", "0.0", "1.0", *UNKNOWN)).all())

    def _used(self, name: str) -> bool:
        wanted = self._choice("labels")
        return wanted is None or name in (
            *(self.path_column, self.patient_column, *_OPTIONAL, *self.covariates),
            *wanted,
        )

    def read(self, root: Path) -> Manifest:
        """The manifest of the table's rows."""
        if not self.file.is_file():
            raise DataError(f"data.manifest={self.file}: no such file", remedy="give the CSV with data.manifest=FILE")
        table = read_table(self.file, self._used)
        columns, labels = [str(name) for name in table.columns], self._labels(table)
        for key, name in (
            ("data.path_column", self.path_column),
            *([("data.patient_column", self.patient_column)] if self.patient_column is not None else []),
            *(("task.labels", label) for label in labels),
            *(("data.covariates", name) for name in self.covariates),
        ):
            if name not in columns:
                remedy = f"add the column, or name the right one with {key}"
                if key == "data.patient_column":
                    remedy += "; data.patient_column=null where nobody knows whose images they are"
                raise DataError(
                    f"{self.file}: no column '{name}' ({key}){hint(name, columns)}; found: {', '.join(columns)}"
                    f"{no_header(columns)}",
                    remedy=remedy,
                )
        rows = pd.DataFrame({"path": table[self.path_column]})
        for name in (*_OPTIONAL, *labels):
            if name in table:
                rows[name] = table[name]
        rows["patient_id"] = self._whose(table, rows)
        for name in self.covariates:
            rows[PREFIX + name] = typed(table[name], name, self.file, lambda row: f"row {row_number(self.file, row)}")
        # Faults name their row in the file, which is not known once headers have completed the rows.
        normalise(with_slice_ids(rows), root, labels, self.modality, self.file)
        rows, empty, folders = _with_folders(rows, root, self.file)
        series, skipped, level = None, skipped_table(), "slice"
        if any(has_header(rows["path"], root)):
            rows, series, skipped, level = self._completed(root, rows)
        else:
            rows, series, skipped = self._placed(_named(rows))
        rows = rows.drop(columns=_FOLDER)
        level = "series" if folders else level
        found = self.build(
            rows, root, labels=labels, label_level=level, series=series, skipped=[empty, skipped], synthetic=False
        )
        unknown = found.table["modality"] == "OT"
        if not unknown.any():
            return found
        note = (
            f"{self.file.name}: {count(int(unknown.sum()), 'picture does', 'pictures do')} not say whether CT or MR: "
            "data.modality=CT or MR, or a column modality, keeps runs from being applied to the other"
        )
        logger.warning(note, extra=NOTED)
        return replace(found, notes=(*found.notes, note))

    def _whose(self, table: pd.DataFrame, rows: pd.DataFrame) -> pd.Series[str]:
        """The patient of each row; where nobody is named, the series or image stands for one."""
        if self.patient_column is not None:
            return table[self.patient_column]
        self.patients_known = False
        own = rows["path"].str.replace("\\", "/", regex=False).str.rstrip("/")
        return rows["series_id"].where(rows["series_id"] != "", own) if "series_id" in rows else own

    def _completed(self, root: Path, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame, str]:
        """Rows completed from headers and in order; series; skipped items; the level of the labels."""
        if "frame" in rows:
            rows["frame"] = read_numbers(rows["frame"], whole=True)[0].fillna(0).astype(np.int64)
        # Pictures, and files that do not exist, go on as they are: opening them tells what is wrong.
        there = pd.Series(has_header(rows["path"], root), rows.index) & rows["path"].map(
            lambda path: (root / path).is_file()
        )
        others, series, odd = self._placed(_named(rows[~there]))
        given = rows[there]
        if given.empty:
            return others, series, odd, "slice"
        whole = "frame" not in given  # a table that names slices of a volume need not name them all
        headers, unread = self.headers(list(dict.fromkeys(given["path"])), root, nifti=self._nifti, whole=whole)
        if self.patient_column is None:
            given = self._by_header(given, headers)
            self.patients_known &= others.empty
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
        skipped = skipped_table(unread, lost, geometry.skipped, odd)
        rows = pd.concat([geometry.rows, others], ignore_index=True)
        tables = [geometry.series, *([] if series is None else [series])]
        return rows, pd.concat(tables, ignore_index=True), skipped, "series" if whole else "slice"

    def _by_header(self, given: pd.DataFrame, headers: pd.DataFrame) -> pd.DataFrame:
        """Rows whose patients are those of their files' headers, where these name them."""
        named = headers[headers["patient_id"] != headers["study_id"]].drop_duplicates("path").set_index("path")
        owner = given["path"].map(named["patient_id"])
        self.patients_known = bool(owner[given["path"].isin(headers["path"])].notna().all())
        return given.assign(patient_id=owner.fillna(given["patient_id"]))

    def _placed(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None, pd.DataFrame]:
        """Pictures in order, their series and what ``geometry`` refuses, where the table gives their positions."""
        if not {"z_mm", "series_id"} <= set(rows):
            return rows, None, skipped_table()
        z_mm = pd.to_numeric(rows["z_mm"], errors="coerce")
        known = z_mm.notna().groupby(rows["series_id"]).transform("all")
        if not known.any():
            return rows, None, skipped_table()
        frame = 0 if "frame" not in rows else read_numbers(rows["frame"], whole=True)[0].fillna(0).astype(np.int64)
        own = rows.assign(z_mm=z_mm, frame=frame)[known].reset_index(drop=True)
        geometry = self.arrange(own)
        return pd.concat([geometry.rows, rows[~known]], ignore_index=True), geometry.series, geometry.skipped


def _with_folders(rows: pd.DataFrame, root: Path, file: Path) -> tuple[pd.DataFrame, list[tuple[str, str]], bool]:
    """The rows with the files of a folder in the place of the folder; (item, reason) of its other files; any folder?"""
    inside = rows["path"].map(lambda path: bool(path) and (root / path).is_dir())
    rows = rows.assign(**{_FOLDER: ""})
    if not inside.any():
        return rows, [], False
    for name in ("frame", "slice_id", "z_mm"):
        given = inside & ~unknown_values(rows[name]) if name in rows else inside & False
        text = f"path={{}} is a folder, whose files have {name}s of their own"
        remedy = f"leave {name} empty in this row, or name single files"
        refuse_rows(given, file, lambda row, text=text: text.format(repr(rows["path"].iloc[row])), remedy)  # type: ignore[misc]
    parts: list[dict[str, Any]] = []
    skipped: list[tuple[str, str]] = []
    for row in rows.to_dict("records"):
        folder = str(row["path"]).replace("\\", "/").rstrip("/")
        if not (folder and (root / folder).is_dir()):
            parts.append(row)
            continue
        found = discover(root / folder)
        files = sorted([*found.files, *found.pictures], key=natural)
        parts += [row | {"path": f"{folder}/{name}", _FOLDER: _parent(f"{folder}/{name}")} for name in files]
        skipped += [(f"{folder}/{name}", why) for name, why in found.skipped if name not in found.pictures]
        if not files:
            skipped.append((folder, "label without image: the folder holds no DICOM, NIfTI or picture file"))
    if not parts:
        raise DataError(f"{file}: its folders hold no image, the first {skipped[0][0]!r}", remedy="check data.root")
    out = pd.DataFrame(parts)
    if "slice_id" in out:
        out["slice_id"] = out["slice_id"].where(out[_FOLDER] == "", out["path"])
    return out, skipped, True


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the ids that their patient, or their folder, stands for where the table has none."""
    own = rows["patient_id"].where(rows[_FOLDER] == "", rows[_FOLDER])
    return rows.assign(**{name: own for name in ("study_id", "series_id") if name not in rows})
