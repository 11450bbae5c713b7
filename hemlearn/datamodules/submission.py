"""The submission file of RSNA 2019, in the row order of its sample: one line ``ID_<image>_<label>,probability`` each.

The challenge is closed, but late submissions are still scored, and the file is what its solutions share.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.evaluation.predictions import label_names, prob_array
from hemlearn.util.errors import DataError, RunError
from hemlearn.util.files import write_text, writing
from hemlearn.util.tables import csv_text, read_csv, row_number

logger = logging.getLogger(__name__)
_SHOWN = 5  # missing slices named in an error
FILLS = ("neighbours", "mean")


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


def sample_slices(sample: Path) -> list[str]:
    """The slices that a sample submission asks for, in its order.

    Raises:
        DataError: The sample cannot be read, has other columns, an ID without a label, or an ID twice.
    """
    return list(dict.fromkeys(_read_sample(sample).str.rpartition("_")[0]))


def refuse_missing(wanted: Sequence[str], known: Sequence[str], skipped: pd.DataFrame) -> None:
    """Refuse a test folder that lacks slices, before the others are predicted.

    Args:
        wanted: Slices of the sample.
        known: Slices that can be predicted.
        skipped: Columns item, reason: what cannot, and why.

    Raises:
        RunError: A wanted slice is not known.
    """
    missing = pd.Index(wanted).difference(pd.Index(known), sort=False)
    if len(missing):
        names = skipped["item"].str.rpartition("/")[2].str.removesuffix(".dcm")
        why = dict(zip(names, skipped["reason"], strict=True))
        shown = "; ".join(f"{name} ({why.get(name, 'no such file')})" for name in missing[:_SHOWN])
        shown += "; ..." if len(missing) > _SHOWN else ""
        raise RunError(
            f"{len(missing)} of {len(wanted)} slices cannot be predicted: {shown}",
            remedy="copy these files again, or fill=neighbours (the mean of the slices beside) or fill=mean (of all)",
        )


def fill_missing(
    predictions: pd.DataFrame, wanted: Sequence[str], places: pd.DataFrame, how: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Give every wanted slice without a prediction the mean of others.

    Args:
        predictions: As for :func:`write_submission`.
        wanted: Slices of the sample.
        places: slice_id, series_id and z_mm (mm) of the slices, as far as their headers can be read.
        how: ``neighbours``: the mean of the next predicted slice below and above in the series (of one where there is
            no other), else as ``mean``: the mean of all predictions.

    Returns:
        slice_id and ``prob_<label>`` of all slices; filled slice -> what it was filled with.
    """
    names = [name for name in predictions if name.startswith("prob_")]
    known = predictions.set_index("slice_id")[names]
    rows, told = {}, {}
    for name in pd.Index(wanted).difference(known.index, sort=False):
        beside: list[str] = []
        place = places[places["slice_id"] == name]
        if how == "neighbours" and len(place) and pd.notna(z := place["z_mm"].iloc[0]):
            series = places[places["series_id"] == place["series_id"].iloc[0]]
            series = series[series["slice_id"].isin(known.index)].sort_values("z_mm")
            beside = [*series.loc[series["z_mm"] < z, "slice_id"][-1:], *series.loc[series["z_mm"] > z, "slice_id"][:1]]
        rows[name] = known.loc[beside].mean() if beside else known.mean()
        told[name] = " and ".join(beside) or f"the mean of all {len(known)} predictions"
    filled = pd.DataFrame.from_dict(rows, orient="index", columns=names)
    whole = pd.concat([known, filled]) if rows else known
    return whole.rename_axis("slice_id").reset_index(), told


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
            f"{sample}, line {row_number(sample, row)}: ID {ids.iloc[row]!r} asks for the label "
            f"{wanted_label.iloc[row]!r}; predicted are {', '.join(names)}",
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
        shown = ", ".join(lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
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
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, csv_text(table, decimals="%.9g"))
    return Submission(out, len(table), slices, extra)


def _labels(predictions: pd.DataFrame) -> list[str]:
    known = label_names(list(predictions.columns))
    return known or [c.removeprefix("prob_") for c in predictions.columns if c.startswith("prob_")]


def _read_sample(path: Path) -> pd.Series:
    remedy = "give the challenge's stage_2_sample_submission.csv"
    table = read_csv(path)
    if list(table.columns) != ["ID", "Label"]:
        raise DataError(f"{path}: columns are {', '.join(map(str, table.columns))}, not ID,Label", remedy=remedy)
    ids = table["ID"]
    odd = ~ids.str.match(r".+_[^_]+$")
    if odd.any():
        row = int(odd.to_numpy().argmax())
        raise DataError(
            f"{path}, line {row_number(path, row)}: ID {ids.iloc[row]!r} is not <slice id>_<label>", remedy=remedy
        )
    if not ids.is_unique:
        twice = int(ids.duplicated().to_numpy().argmax())
        raise DataError(
            f"{path}, line {row_number(path, twice)}: ID {ids.iloc[twice]!r} is listed more than once", remedy=remedy
        )
    return ids
