"""The slices that tell most about a run: what it found, what it missed, and where it cried wolf."""

from __future__ import annotations

from itertools import chain, zip_longest

import pandas as pd

HIT, MISS, FALSE_ALARM, OPEN = "hit", "miss", "false alarm", "unlabelled"


def telling_slices(
    predictions: pd.DataFrame, label: str, count: int, threshold: float = 0.5, apart: int = 1
) -> pd.DataFrame:
    """Slices to look at, hits, misses and false alarms in turn, each kind from its plainest case down.

    Args:
        predictions: Rows with ``series_id``, ``label_<label>`` and ``prob_<label>``.
        label: The label.
        count: Slices wanted; fewer where there are fewer.
        threshold: Operating point of the probability.
        apart: At most so many slices of one kind per series, so that one large lesion does not fill the list.

    Returns:
        The chosen rows with their old index and a column ``kind``: ``hit``, ``miss``, ``false alarm`` or
        ``unlabelled`` (its label is unknown; the most probable first).
    """
    truth, prob = predictions[f"label_{label}"], predictions[f"prob_{label}"]
    positive = prob >= threshold
    groups = {
        HIT: predictions[(truth == 1) & positive].sort_values(f"prob_{label}", ascending=False, kind="stable"),
        MISS: predictions[(truth == 1) & ~positive].sort_values(f"prob_{label}", kind="stable"),
        FALSE_ALARM: predictions[(truth == 0) & positive].sort_values(f"prob_{label}", ascending=False, kind="stable"),
        OPEN: predictions[truth.isna()].sort_values(f"prob_{label}", ascending=False, kind="stable"),
    }
    queues = []
    for kind, rows in groups.items():
        first = rows.groupby("series_id", sort=False).cumcount() < apart
        queues.append([(index, kind) for index in (*rows.index[first], *rows.index[~first])])
    turns = [item for item in chain.from_iterable(zip_longest(*queues)) if item is not None][:count]
    return predictions.loc[[index for index, _ in turns]].assign(kind=[kind for _, kind in turns])
