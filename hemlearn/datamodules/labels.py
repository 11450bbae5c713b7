"""The six labels that RSNA 2019, CT-ICH and CQ500 share, and the check that they do not contradict each other."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

LOGGER = logging.getLogger(__name__)
SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
LABELS = (*SUBTYPES, "any")  # the order of RSNA's columns and of conf/task/subtypes.yaml


def contradictions(table: pd.DataFrame, ids: Sequence[str], place: str) -> list[str]:
    """Tell of rows whose ``any`` contradicts their subtypes; they are used as given.

    Args:
        table: The six labels, 0, 1 or NaN.
        ids: Name of each row.
        place: The file, for the text.

    Returns:
        One sentence per kind of contradiction, also logged.
    """
    subtypes, any_ = table[list(SUBTYPES)].to_numpy(dtype=np.float32), table["any"].to_numpy(dtype=np.float32)
    positive, negative = (subtypes == 1).any(axis=1), (subtypes == 0).all(axis=1)
    told = []
    for wrong, what in (
        ((any_ == 0) & positive, "no hemorrhage (any = 0) beside a subtype"),
        ((any_ == 1) & negative, "a hemorrhage (any = 1) without a subtype"),
    ):
        if wrong.any():
            first = ids[int(wrong.argmax())]
            told.append(
                f"{place}: {int(wrong.sum())} of {len(table)} rows state {what}; the first is {first}; "
                "they are used as given"
            )
            LOGGER.warning(told[-1])
    return told
