from __future__ import annotations

import numpy as np
import pandas as pd

from hemlearn.reading.explain.drawing import telling_slices


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "slice_id": list("abcdefgh"),
            "series_id": ["1", "1", "2", "2", "3", "3", "4", "4"],
            "label_x": [1, 1, 1, 0, 0, 0, np.nan, 1],
            "prob_x": [0.9, 0.95, 0.7, 0.8, 0.6, 0.1, 0.5, 0.2],
        },
        index=range(10, 18),
    )


def test_hits_misses_and_false_alarms_take_turns() -> None:
    found = telling_slices(frame(), "x", 4)
    assert found["slice_id"].tolist() == ["b", "h", "d", "g"]
    assert found["kind"].tolist() == ["hit", "miss", "false alarm", "unlabelled"]
    assert found.index.tolist() == [11, 17, 13, 16]


def test_one_large_lesion_does_not_fill_the_list() -> None:
    found = telling_slices(frame(), "x", 8)
    hits = found[found["kind"] == "hit"]["slice_id"].tolist()
    assert hits == ["b", "c", "a"]  # a is less likely than c only in the order of series 1
    assert "f" not in found["slice_id"].tolist(), "a right rejection shows nothing"


def test_the_threshold_is_the_runs_own() -> None:
    assert telling_slices(frame(), "x", 8, 0.15)["kind"].tolist().count("miss") == 0
    assert telling_slices(frame(), "x", 8, 0.99)["kind"].tolist().count("hit") == 0
    assert len(telling_slices(frame(), "x", 0)) == 0
