"""A folder of DICOM and NIfTI files as it comes, and a spreadsheet of labels per patient, accession or series."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn.data.choice import choose
from hemlearn.data.label_rows import (
    ACCESSION,
    SPELLINGS,
    alike_note,
    column_of,
    element_of,
    flag_columns,
    label_rows,
    placed,
    plain_name,
    some_ids,
    unplaced,
)
from hemlearn.data.manifest import Manifest
from hemlearn.data.rows import slice_ids
from hemlearn.data.sources import discover
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.util.console import NOTED
from hemlearn.util.errors import ConfigError, DataError, count
from hemlearn.util.tables import need_columns, read_table

logger = logging.getLogger(__name__)
TAGS = {"PatientID": "(0010,0020)", "AccessionNumber": "(0008,0050)", "SeriesInstanceUID": "(0020,000E)"}
_KEYS = {"PatientID": "patient_id", "AccessionNumber": ACCESSION, "SeriesInstanceUID": "series_id"}


class DicomDataModule(SliceDataModule):
    """``data=dicom data.root=DIR``: whatever series lie in a folder, with labels from a table or without any.

    Files are found by their content, at any depth; slices belong together by SeriesInstanceUID (0020,000E) and are
    ordered by position. ``slice_id`` is the path, with ``#frame`` for files of several slices. Localisers, reformats,
    dose reports and what else is no axial image are set aside with the reason.

    With a table (CSV or ``.xlsx``: a column of ids, and a column of 0, 1 or nothing per label) each row labels every
    series that has its id; labels then describe whole series (``task.level=series``). Ids are compared as they are, and
    where that finds nobody without leading zeros, case and ``.0``, which spreadsheets change. Rows without a series and
    series without a row are skipped, with the reason; two rows of one id are an error.

    Args:
        root: The folder.
        label_file: The table; None: no labels.
        label_key: What its ids are: ``PatientID``, ``AccessionNumber`` or ``SeriesInstanceUID``; the column is called
            so.
        series: ``one``: of each study the axial head series that ``hemlearn predict`` would choose; ``all``; None:
            ``one`` where labels describe patients or accessions, else ``all``.
        modality: ``CT`` (also None) or ``MR``, of NIfTI files: their headers do not say what was measured. With labels
            the other modality is left out.
        **options: Those of :class:`hemlearn.datamodules.base.SliceDataModule`. Without ``labels`` and without a task,
            all further columns that hold nothing but 0, 1 and unknown are labels.

    Example:
        >>> DicomDataModule("my-series", label_file="labels.xlsx", label_key="PatientID", image_size=96).series
        'one'
    """

    name = "dicom"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        label_file: str | Path | None = None,
        label_key: str | None = None,
        series: str | None = None,
        modality: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if label_file is not None and label_key not in TAGS:
            raise ConfigError(
                f"data.label_key={label_key}: {label_file} does not say whom its rows are about",
                remedy=f"give data.label_key={'|'.join(TAGS)}",
            )
        self.label_file = None if label_file is None else Path(label_file).expanduser()
        self.label_key = label_key
        self.series = series or ("one" if label_file is not None and label_key != "SeriesInstanceUID" else "all")
        self.modality = modality or "CT"

    def _forget(self) -> None:
        super()._forget()
        if self.label_file is not None:
            for name in ("manifest", "store"):  # the rows hold the labels that were asked for
                self.__dict__.pop(name, None)

    def read(self, root: Path) -> Manifest:
        """The manifest of a folder of mixed files."""
        # Read first: what is wrong with a small table is said before a large folder is looked through.
        labels = None if self.label_file is None else read_labels(self.label_file, self._key, self._choice("labels"))
        found = discover(root)
        skipped = [pair for pair in found.skipped if labels is None or root / pair[0] != labels.file]
        nifti = "CT" if self.modality == "CT" else "OT"
        headers, lost = self.headers(found.files, root, nifti=nifti, whole=labels is None and self.series == "all")
        more: dict[str, Any] = {}
        if labels is not None:
            headers, other = self.of_modality(headers)
            of_series, unmatched, notes = labels.matched(headers, root)
            headers = headers[headers["series_id"].isin(of_series.index)].reset_index(drop=True)
            lost = pd.concat([lost, other, unmatched], ignore_index=True)
            more = {"labels": labels.names, "notes": notes, "label_level": "series"}
        geometry = self.arrange(headers)
        rows, series = geometry.rows, geometry.series
        others: list[tuple[str, str]] = []
        if self.series == "one" and len(rows):
            rows, others = _chosen(series, rows)
            series = series[series["series_id"].isin(rows["series_id"])]
        rows["slice_id"] = slice_ids(rows)
        if labels is not None:
            rows = rows.join(of_series, on="series_id")
        return self.build(
            rows, root, skipped=(skipped, lost, geometry.skipped, others), series=series, synthetic=False, **more
        )

    @property
    def _key(self) -> str:
        return str(self.label_key)


def _chosen(series: pd.DataFrame, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The rows of one series of each study, and (series id, reason) of the others."""
    taken: list[str] = []
    lost: list[tuple[str, str]] = []
    for modality in series["modality"].unique():
        own = series[series["modality"] == modality]
        for choice in choose(own, rows[rows["series_id"].isin(own["series_id"])]):
            taken.append(choice.series_id)
            lost += [
                (name, f"another series of this study is used: {choice.series_id}; here {why}")
                for name, why in choice.others
            ]
    return rows[rows["series_id"].isin(taken)].reset_index(drop=True), lost


@dataclass(frozen=True)
class LabelRows:
    """A table of labels by patient, accession or series.

    Args:
        file: Where it comes from.
        key: What its ids are, a keyword of DICOM.
        table: One float column per label (0, 1, NaN), indexed by the id, in the order of the file.
    """

    file: Path
    key: str
    table: pd.DataFrame

    @property
    def names(self) -> tuple[str, ...]:
        """Of the labels."""
        return tuple(map(str, self.table.columns))

    def matched(self, headers: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
        """Labels by series id; (item, reason) of series without a row and rows without a series; notes.

        Args:
            headers: One row per slice, columns of ``Header``.
            root: Folder that their paths start from.

        Raises:
            DataError: No row belongs to any series.
        """
        first = headers.drop_duplicates("series_id").set_index("series_id")
        told = first["patient_id"].where(first["patient_id"] != first["study_id"], "")
        ids = told if self.key == "PatientID" else first["path"].map(lambda path: element_of(root / path, self.key))
        place, alike = placed(self.table.index, ids)
        known = place.notna()
        if not known.any():
            raise DataError(
                f"{self.file}: none of its {count(len(self.table), 'row')} belongs to one of {len(ids)} series by "
                f"{self.key} {TAGS[self.key]}: the table has {some_ids(self.table.index)}; the files have "
                f"{some_ids(dict.fromkeys(name for name in ids if name)) or 'none'}",
                remedy="write the ids as they stand in the files, or match by another one with data.label_key=",
            )
        of_series = self.table.loc[place[known]].set_index(place.index[known])
        absent = unplaced(self.file, self.table.index, place, f"label without image: no series has {self.key}")
        lost = absent + [
            (
                str(series),
                f"image without label: no row of {self.key} {name!r} in {self.file.name}"
                if name
                else f"image without label: its files have no {self.key} {TAGS[self.key]}",
            )
            for series, name in ids[~known].items()
        ]
        rows = len(self.table) - len(absent)
        notes = [
            f"{self.file.name}: {rows} of {count(len(self.table), 'row')} label {int(known.sum())} of {len(ids)} "
            f"series by {self.key}; the others are left out"
        ]
        notes += alike_note(self.file, self.key, alike, self.table.index)
        for note in notes:
            logger.info(note, extra=NOTED)
        return of_series, pd.DataFrame(lost, columns=["item", "reason"], dtype=object), notes


def read_labels(file: Path, key: str, wanted: Sequence[str] | None) -> LabelRows:
    """Read a table of labels.

    Args:
        file: CSV or ``.xlsx``.
        key: ``PatientID``, ``AccessionNumber`` or ``SeriesInstanceUID``: a column is called so, in any spelling.
        wanted: Its columns of labels; None: all that hold nothing but 0, 1 and unknown.

    Raises:
        DataError: No such file or column, a row without an id, an id in two rows, or a label that is none; each with
            its row.
    """
    if not file.is_file():
        raise DataError(f"data.labels={file}: no such file", remedy="give a CSV or .xlsx file with data.labels=FILE")
    spellings = SPELLINGS[_KEYS[key]]
    table = read_table(file, lambda name: wanted is None or name in wanted or plain_name(name) in spellings)
    column = column_of(table, file, spellings, key)
    if column is None:
        need_columns(table, (key,), file, f"call the column of ids {key} (data.label_key), or give another key")
    flags = [name for name in flag_columns(table) if name != column]
    labels = list(flags if wanted is None else wanted)
    could = f"its columns of 0 and 1 are: {', '.join(flags)}" if flags else "it has no column of 0 and 1"
    need_columns(table, labels, file, f"name its columns with task.labels=[NAME,...]; {could}")
    if not labels:
        raise DataError(f"{file}: no column of labels", remedy="add a column of 0, 1 or nothing for each finding")
    return LabelRows(file, key, label_rows(table, str(column), labels, file))
