"""Hemorrhage of the basal ganglia on head CT: none, left or right (the task of Desai 2017, arXiv 1710.03823)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.readers.headers import LEFT_RIGHT
from hemlearn.datamodules.patients import LAYOUT, Labels, PatientFolders
from hemlearn.util.errors import DataError, hint
from hemlearn.util.tables import label_table, need_columns, one_row_each, read_flags, refuse_rows

SIDES = ("none", "left", "right")
_WORDS = {"l": "left", "r": "right", "": ""} | {side: side for side in SIDES}
_BOTH = re.compile(r"both|bilat|(\bl(eft)?\b.*\br(ight)?\b)|(\br(ight)?\b.*\bl(eft)?\b)")
_EXCLUSIVE = "both sides set; the classes none, left and right exclude each other"
_LEAVE_OUT = "leave patients with hemorrhage on both sides out of the table"


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
    These labels describe the patient's series: ``task.level=series``, and ``band`` keeps the slices that can show the
    ganglia (by default the middle half of the series; None: all). With a further column ``path``
    (``path,patient_id,side``, one row per DICOM file or picture) they describe single slices: ``task.level=slice``.

    Pictures have no positions and stand in the order of their names. ``patient_pattern`` finds the patient in other
    trees (see :class:`hemlearn.datamodules.patients.PatientFolders`).

    Example:
        >>> BasalGangliaDataModule(band=None, image_size=96).default_kind
        'multiclass'
    """

    name = "basal_ganglia"
    layout = "basal_ganglia"
    default_labels = SIDES
    default_kind = "multiclass"

    def __init__(
        self, root: str | Path | None = None, *, band: Sequence[float] | None = (0.25, 0.75), **options: Any
    ) -> None:
        super().__init__(root, band=band, **options)

    def unfit(self, headers: pd.DataFrame) -> dict[str, str]:
        """Volumes whose header does not tell left from right."""
        return dict.fromkeys(
            headers.loc[headers["remark"].str.contains(LEFT_RIGHT, regex=False), "series_id"], LEFT_RIGHT
        )

    def read_labels(self, file: Path) -> Labels:
        """The table of sides."""
        header = "the table has columns patient_id,side (none, left, right), or patient_id,left,right (0, 1)"
        table = label_table(file, ("patient_id",), layout=LAYOUT, header=header)
        if "left" in table and "right" in table and "side" not in table:
            words = _from_flags(table, file)
        else:
            need_columns(table, ("side",), file, header)
            words = _from_words(table["side"], file)
            _check_flags(table, words, file)
        column = "path" if "path" in table else "patient_id"
        keys = table[column].str.replace("\\", "/", regex=False)
        notes = one_row_each(keys, words, file, column, "side")
        flags = {side: np.where(words == "", np.nan, (words == side).astype(float)) for side in SIDES}
        first = (~keys.duplicated()).to_numpy()
        out = pd.DataFrame(flags, index=pd.Index(keys, dtype=object))[first]
        owners = None
        if column == "path":
            one_row_each(keys, table["patient_id"], file, "path", "patient_id")
            owners = pd.Series(table["patient_id"].to_numpy(), index=keys)[first]
            if (owners == "").any():
                raise DataError(
                    f"{file}: patient_id of path={owners[owners == ''].index[0]!r} is empty",
                    remedy="name the patient of every image",
                )
        return Labels(out, owners, tuple(notes))


def _from_words(given: pd.Series[str], file: Path) -> pd.Series[str]:
    words = given.str.lower()
    wrong = ~words.isin(list(_WORDS))
    if wrong.any() and _BOTH.search(words[wrong].iloc[0].replace("_", " ")):
        refuse_rows(wrong, file, lambda row: f"side={given.iloc[row]!r}: {_EXCLUSIVE}", _LEAVE_OUT)
    refuse_rows(
        wrong,
        file,
        lambda row: f"side={given.iloc[row]!r}: no side{hint(words.iloc[row], SIDES)} ({int(wrong.sum())} such rows)",
        "sides are none, left, right, or empty (unknown)",
    )
    return words.map(_WORDS)


def _check_flags(table: pd.DataFrame, words: pd.Series[str], file: Path) -> None:
    """Refuse columns left and right beside ``side`` that say something else."""
    flags = [side for side in ("left", "right") if side in table]
    differ = pd.Series(False, index=table.index)
    for side in flags:
        value = read_flags(table, side, file, "give 0, 1 or nothing (unknown)")
        differ |= ((value == 1) & (words != side)) | ((value == 0) & (words == side))
    if len(flags) == 2:  # only both zeros say that a side is known
        differ |= (table["left"] == "0") & (table["right"] == "0") & (words != "none")

    def problem(row: int) -> str:
        given = ", ".join(f"{side}={table[side].iloc[row]!r}" for side in flags)
        start = f"side={table['side'].iloc[row]!r} and {given} contradict each other"
        return f"{start} ({int(differ.sum())} such rows)"

    refuse_rows(differ, file, problem, "correct the row, or remove the columns left and right: side is enough")


def _from_flags(table: pd.DataFrame, file: Path) -> pd.Series[str]:
    left, right = (read_flags(table, side, file, "give 0, 1 or nothing (unknown)") for side in ("left", "right"))
    refuse_rows(
        (left == 1) & (right == 1),
        file,
        lambda row: _EXCLUSIVE.replace(
            "set;", f"set (left=1, right=1) for patient_id={table['patient_id'].iloc[row]!r};"
        ),
        _LEAVE_OUT,
    )
    words = np.select([left == 1, right == 1, (left == 0) & (right == 0)], ["left", "right", "none"], "")
    return pd.Series(words, index=table.index, dtype=object)
