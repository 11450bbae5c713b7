"""Hemorrhage of the basal ganglia on head CT: none, left or right (the task of Desai 2017, arXiv 1710.03823)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.datamodules.patients import Labels, PatientFolders, need_column, one_row_each
from hemlearn.util.errors import DataError, hint
from hemlearn.util.tables import read_csv

SIDES = ("none", "left", "right")
_WORDS = {"l": "left", "r": "right", "": ""} | {side: side for side in SIDES}
_BOTH = re.compile(r"both|bilat|(\bl(eft)?\b.*\br(ight)?\b)|(\br(ight)?\b.*\bl(eft)?\b)")
_LAYOUT = "columns patient_id,side (none, left, right), or patient_id,left,right (0, 1)"


class BasalGangliaDataModule(PatientFolders):
    """One folder per patient and a table of sides.

    ::

        ROOT/labels.csv             patient_id,side
                                    P001,left
                                    P002,none
        ROOT/P001/IM0001.dcm ...    DICOM slices; or ROOT/P001/head.nii.gz, ROOT/P001/01.png ..., ROOT/P001.nii.gz

    ``side`` is ``none``, ``left`` or ``right`` (the patient's), or empty: not known. Columns ``left`` and ``right``
    with 0 and 1 serve as well, and must agree with ``side`` where the table has both; a hemorrhage on both sides is an
    error, since the three classes exclude each other.
    These labels describe the patient's series: ``task.level=series``, and ``data.band`` keeps the slices that can show
    the ganglia (by default the middle half of the series; null: all). With a further column ``path``
    (``path,patient_id,side``, one row per DICOM file or picture) they describe single slices: ``task.level=slice``.

    Pictures have no positions and stand in the order of their names. ``data.patient_pattern`` finds the patient in
    other trees (see :class:`hemlearn.datamodules.patients.PatientFolders`).
    """

    layout = "basal_ganglia"
    source = "basal_ganglia"
    modality = "CT"
    labels_ = SIDES

    def read_labels(self, file: Path) -> Labels:
        """The table of sides.

        Raises:
            DataError: A missing column, a word that is no side, both sides set, flags that contradict the side, two
                labels for one patient or path.
        """
        table = read_csv(file)
        need_column(table, "patient_id", file, f"the table has {_LAYOUT}")
        if "left" in table and "right" in table and "side" not in table:
            words = _from_flags(table, file)
        else:
            need_column(table, "side", file, f"the table has {_LAYOUT}")
            words = _from_words(table["side"], file)
            _check_flags(table, words, file)
        column = "path" if "path" in table else "patient_id"
        keys = table[column].str.replace("\\", "/", regex=False)
        notes = one_row_each(keys, words, file, column, "side")
        flags = {side: np.where(words == "", np.nan, (words == side).astype(float)) for side in SIDES}
        first = ~keys.duplicated()
        out = pd.DataFrame(flags, index=pd.Index(keys, dtype=object))[first.to_numpy()]
        owners = None
        if column == "path":
            one_row_each(keys, table["patient_id"], file, "path", "patient_id")
            owners = pd.Series(table["patient_id"].to_numpy(), index=keys)[first.to_numpy()]
            if (owners == "").any():
                raise DataError(
                    f"{file}: patient_id of path={owners[owners == ''].index[0]!r} is empty",
                    remedy="name the patient of every image",
                )
        return Labels(out, owners, tuple(notes))


def _from_words(given: pd.Series[str], file: Path) -> pd.Series[str]:
    words = given.str.lower()
    wrong = ~words.isin(list(_WORDS))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        where = f"{file}, row {row + 2}: side={given.iloc[row]!r}"
        if _BOTH.search(words.iloc[row].replace("_", " ")):
            raise DataError(
                f"{where}: both sides set; the classes none, left and right exclude each other",
                remedy="leave patients with hemorrhage on both sides out of the table",
            )
        raise DataError(
            f"{where}: no side{hint(words.iloc[row], SIDES)} ({int(wrong.sum())} such rows)",
            remedy="sides are none, left, right, or empty (unknown)",
        )
    return words.map(_WORDS)


def _check_flags(table: pd.DataFrame, words: pd.Series[str], file: Path) -> None:
    """Refuse columns left and right beside ``side`` that say something else."""
    flags = [side for side in ("left", "right") if side in table]
    if not flags:
        return
    differ = pd.Series(False, index=table.index)
    for side in flags:
        _refuse_other_than_flags(table, side, file)
        differ |= (table[side] == "1") & (words != side)
        differ |= (table[side] == "0") & (words == side)
    if len(flags) == 2:  # only both zeros tell that a side is known
        differ |= (table["left"] == "0") & (table["right"] == "0") & (words != "none")
    if differ.any():
        row = int(differ.to_numpy().argmax())
        given = ", ".join(f"{side}={table[side].iloc[row]!r}" for side in flags)
        raise DataError(
            f"{file}, row {row + 2}: side={table['side'].iloc[row]!r} and {given} contradict each other "
            f"({int(differ.sum())} such rows)",
            remedy="correct the row, or remove the columns left and right: side is enough",
        )


def _refuse_other_than_flags(table: pd.DataFrame, side: str, file: Path) -> None:
    wrong = ~table[side].isin(("0", "1", ""))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(
            f"{file}, row {row + 2}: {side}={table[side].iloc[row]!r}", remedy="give 0, 1 or nothing (unknown)"
        )


def _from_flags(table: pd.DataFrame, file: Path) -> pd.Series[str]:
    for side in ("left", "right"):
        _refuse_other_than_flags(table, side, file)
    both = (table["left"] == "1") & (table["right"] == "1")
    if both.any():
        row = int(both.to_numpy().argmax())
        raise DataError(
            f"{file}, row {row + 2}: both sides set (left=1, right=1) for patient_id="
            f"{table['patient_id'].iloc[row]!r}; the classes none, left and right exclude each other",
            remedy="leave patients with hemorrhage on both sides out of the table",
        )
    neither = (table["left"] == "0") & (table["right"] == "0")
    words = np.select([table["left"] == "1", table["right"] == "1", neither], ["left", "right", "none"], "")
    return pd.Series(words, index=table.index, dtype=object)
