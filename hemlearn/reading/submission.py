"""The submission file of the RSNA 2019 challenge, in the row order of its sample.

One line per slice and label, ``ID_<image>_<label>,probability``; the challenge is closed, but late submissions are
still scored, and the file is the common currency of its solutions.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.evaluation.predictions import label_names, prob_array
from hemlearn.util.errors import DataError, RunError
from hemlearn.util.files import write_text

logger = logging.getLogger(__name__)
_COLUMNS = ["ID", "Label"]
_NAMED = 5  # missing slices told by name


@dataclass(frozen=True)
class Submission:
    """What was written.

    Attributes:
        path: The file.
        rows: Lines without the header.
        slices: Slices in it.
        extra: Predicted slices that the sample does not ask for, left out.
    """

    path: Path
    rows: int
    slices: int
    extra: int


def write_submission(
    predictions: pd.DataFrame, sample: Path | str, out: Path | str, labels: Sequence[str] | None = None
) -> Submission:
    """Write the predicted probabilities in the rows, and the order, of a sample submission.

    Args:
        predictions: One row per slice: ``slice_id`` as in the sample (``ID_000012eaf``) and ``prob_<label>``.
        sample: ``stage_2_sample_submission.csv``: columns ``ID,Label``, an ID being ``<slice id>_<label>``.
        out: The file to write, whole or not at all.
        labels: Labels predicted; None takes those of the columns ``prob_*``.

    Raises:
        DataError: The sample cannot be read, has other columns, an ID without a label, or an ID twice.
        RunError: A slice or label that the sample asks for was not predicted, a slice was predicted twice, a
            probability lies outside [0, 1], or ``out`` cannot be written.
    """
    sample, out = Path(sample), Path(out)
    names = list(labels) if labels is not None else _labels(predictions)
    ids = _read_sample(sample)
    parts = ids.str.rsplit("_", n=1, expand=True)
    wanted_slice, wanted_label = parts[0], parts[1]
    column = pd.Index(names).get_indexer(wanted_label)
    if (column < 0).any():
        row = int((column < 0).argmax())
        raise RunError(
            f"{sample}, line {row + 2}: ID {ids.iloc[row]!r} asks for the label {wanted_label.iloc[row]!r}; "
            f"predicted are {', '.join(names)}",
            remedy="train with task=subtypes",
        )
    have = predictions["slice_id"].astype(str)
    if not have.is_unique:
        raise RunError(
            f"predictions: slice {have[have.duplicated()].iloc[0]!r} is listed more than once",
            remedy="predict every slice once",
        )
    row_of = pd.Index(have).get_indexer(wanted_slice)
    if (row_of < 0).any():
        lacking = wanted_slice[row_of < 0].unique()
        shown = ", ".join(lacking[:_NAMED]) + (", ..." if len(lacking) > _NAMED else "")
        remedy = "predict the whole test folder; `hemlearn index` tells what was skipped and why"
        raise RunError(
            f"{sample}: {len(lacking)} of {wanted_slice.nunique()} slices were not predicted: {shown}", remedy=remedy
        )
    prob = prob_array(predictions, names)
    bad = ~((prob >= 0) & (prob <= 1))
    if bad.any():
        row, j = np.argwhere(bad)[0]
        raise RunError(
            f"predictions, slice {have.iloc[row]!r}: prob_{names[j]}={prob[row, j]:g} is not a probability from 0 to 1",
            remedy="predict again with hemlearn",
        )
    slices = wanted_slice.nunique()
    extra = len(have) - slices
    if extra:
        logger.info("%s: %d predicted slices are not in it and were left out", sample, extra)
    table = pd.DataFrame({"ID": ids, "Label": prob[row_of, column]})
    text = table.to_csv(index=False, float_format="%.9g", lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written ({error.strerror or error})", remedy="choose a writable folder with free space"
        ) from error
    return Submission(out, len(table), slices, extra)


def _labels(predictions: pd.DataFrame) -> list[str]:
    known = label_names(list(predictions.columns))
    return known or [c.removeprefix("prob_") for c in predictions.columns if c.startswith("prob_")]


def _read_sample(path: Path) -> pd.Series:
    remedy = "give the challenge's stage_2_sample_submission.csv"
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", remedy=remedy) from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path}: not a CSV file ({str(error).splitlines()[0]})", remedy=remedy) from error
    if list(table.columns) != _COLUMNS:
        raise DataError(f"{path}: columns are {', '.join(map(str, table.columns))}, not ID,Label", remedy=remedy)
    ids = table["ID"]
    odd = ~ids.str.match(r".+_[^_]+$")
    if odd.any():
        row = int(odd.to_numpy().argmax())
        raise DataError(f"{path}, line {row + 2}: ID {ids.iloc[row]!r} is not <slice id>_<label>", remedy=remedy)
    if not ids.is_unique:
        twice = int(ids.duplicated().to_numpy().argmax())
        raise DataError(f"{path}, line {twice + 2}: ID {ids.iloc[twice]!r} is listed more than once", remedy=remedy)
    if not len(ids):
        raise DataError(f"{path}: no rows", remedy=remedy)
    return ids
