"""Slices between two shares of a series' length."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hemlearn.data.geometry import cut_band, shares
from hemlearn.util.errors import ConfigError


def rows(**series: list[float | None]) -> pd.DataFrame:
    """Slices of series by their positions."""
    items = [(name, f"{name}/{k}.dcm", 0, z) for name, levels in series.items() for k, z in enumerate(levels)]
    table = pd.DataFrame(items, columns=["series_id", "path", "frame", "z_mm"]).astype({"z_mm": float})
    return table.assign(patient_id="of " + table["series_id"])


def test_shares_follow_positions_and_else_the_order() -> None:
    table = rows(even=[0, 5, 10, 15, 20], gap=[-10, -9, 90], unknown=[None, None, None], one=[3], same=[4, 4])
    assert np.allclose(shares(table), [0, 0.25, 0.5, 0.75, 1, 0, 0.01, 1, 0, 0.5, 1, 0.5, 0, 1])


def test_what_lies_outside_is_recorded_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    table = rows(a=[0, 5, 10, 15, 20], b=[0, 100])
    kept, lost = cut_band(table, [0.25, 0.75])
    assert kept["path"].tolist() == ["a/1.dcm", "a/2.dcm", "a/3.dcm"]
    told = dict(zip(lost["item"], lost["reason"], strict=True))
    assert told["a/0.dcm"] == "outside the band: data.band=[0.25, 0.75]"
    reason = "no slice in the band: none of the 2 of series 'b' of patient 'of b' lies within data.band=[0.25, 0.75]"
    assert told["b/0.dcm"] == reason
    assert caplog.messages == [f"{reason}; the series is left out (b/0.dcm ...)"]
    assert len(told) == 4


def test_frames_are_named_and_no_band_keeps_all() -> None:
    table = rows(v=[0, 1, 2]).assign(path="v.nii", frame=[0, 1, 2])
    assert cut_band(table, [0.4, 0.6])[1]["item"].tolist() == ["v.nii", "v.nii#2"]
    kept, lost = cut_band(table, None)
    assert kept is table
    assert lost.empty


@pytest.mark.parametrize("band", [[0.5], [0.6, 0.4], [-0.1, 0.5], [0.2, 1.2], [0.3, 0.3], ["low", "high"]])
def test_a_band_that_is_none_is_refused(band: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"data\.band="):
        cut_band(rows(a=[0, 1]), band)
