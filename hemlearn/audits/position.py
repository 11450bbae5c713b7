"""What a slice's place in its series tells without any pixel: the null beside which results on volumes are read.

Hemorrhage is rare at the vertex and the skull base, so position alone separates slices; it says little about patients.
A model that has not seen a pixel should therefore stand beside every result per slice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from hemlearn.evaluation.auroc import Floats
from hemlearn.evaluation.predictions import POSITION, label_array
from hemlearn.util.errors import DataError

logger = logging.getLogger(__name__)
_KNOTS = np.linspace(0.0, 1.0, 5)  # of the relative position
_WIDTH = 0.2  # standard deviation of the bump around each
_ID_COLUMNS = ("patient_id", "series_id", "slice_id", "z_mm")


def relative_position(df: pd.DataFrame) -> Floats:
    """(N,) place of each slice in its series, 0 lowest to 1 highest.

    It is the rank of ``z_mm`` among the series' slices, not millimetres, which would tell scanners and protocols apart.
    Where it is unknown, or the series has one slice, it is 0.5.
    """
    groups = df.groupby(["patient_id", "series_id"], sort=False)["z_mm"]
    known = groups.transform("count").to_numpy(dtype=np.float64)
    rank = groups.rank(method="average").to_numpy(dtype=np.float64) - 1
    place = np.divide(rank, known - 1, out=np.full(len(df), 0.5), where=known > 1)
    return np.where(np.isnan(place), 0.5, place)


def _place(df: pd.DataFrame) -> Floats:
    return df["place"].to_numpy(dtype=np.float64) if "place" in df else relative_position(df)


def _basis(place: Floats) -> Floats:
    """(N, 5) smooth bumps along the series, whose weighted sum is the log odds of a label by position."""
    return np.asarray(np.exp(-(((place[:, None] - _KNOTS) / _WIDTH) ** 2) / 2))


def position_null(train: pd.DataFrame, test: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Predict the labels of ``test`` from the relative slice position, by logistic regression on ``train``."""
    probs = fit_position(train, test, labels)
    split = test["split"].to_numpy() if "split" in test else np.full(len(test), "test", dtype=object)
    out = pd.DataFrame({"split": split, **{c: test[c].to_numpy() for c in _ID_COLUMNS}})
    for name in labels:
        out[f"label_{name}"] = test[f"label_{name}"].to_numpy(dtype=np.float64, na_value=np.nan)
    for j, name in enumerate(labels):
        out[f"prob_{name}"] = probs[:, j]
    return out


def with_position(df: pd.DataFrame, train: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """``df`` with the columns ``position_prob_<c>`` of the null fitted on ``train`` (see :func:`position_null`)."""
    out = df.copy()
    probs = fit_position(train, df, labels)
    for j, name in enumerate(labels):
        out[f"{POSITION}_{name}"] = probs[:, j]
    return out


def fit_position(train: pd.DataFrame, test: pd.DataFrame, labels: Sequence[str]) -> Floats:
    """(N, L) probabilities of ``test``, see :func:`position_null`."""
    from sklearn.linear_model import LogisticRegression

    for where, frame in (("training", train), ("evaluation", test)):
        missing = [c for c in (*_ID_COLUMNS, *(f"label_{c}" for c in labels)) if c not in frame]
        if missing:
            raise DataError(
                f"position-only null, {where} rows: no column {', '.join(missing)}",
                remedy="give one row per slice with ids, z_mm and label_* columns",
            )
    x, target = _basis(_place(train)), _basis(_place(test))
    y = label_array(train, labels)
    out = np.empty((len(test), len(labels)))
    for j, name in enumerate(labels):
        known = ~np.isnan(y[:, j])
        truth = y[known, j]
        if not len(truth):
            logger.warning("position-only null: no training slice has a known label %r: 0.5 taken", name)
            out[:, j] = 0.5
            continue
        if truth.min() == truth.max():
            out[:, j] = truth[0]
            continue
        model = LogisticRegression(C=1.0, max_iter=300).fit(x[known], truth)
        out[:, j] = model.predict_proba(target)[:, 1]
    return out
