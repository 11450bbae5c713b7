"""Measures of the ventricles without a network, on heads whose Evans index is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from hemlearn.audits.ventricles import measure_ventricles, ventricle_features
from hemlearn.phantom.mr import draw_exam
from hemlearn.phantom.slab import Grid

GRID = Grid(rows=80, cols=80, pixel_mm=2.9, slices=16)


@pytest.fixture(scope="module")
def exams():
    return [draw_exam(3, patient, GRID) for patient in (0, 1, 2)]


def test_the_index_is_near_the_truth_and_the_share_ranks_heads(exams):
    truth, found = [], []
    for exam in exams:
        for series in exam.series:
            truth.append(exam.person.measures.evans)
            found.append(measure_ventricles(series.signal.astype(np.float32)))
    share, evans = np.array(found).T
    assert np.abs(evans - truth).max() < 0.06
    large = np.array(truth) > 0.3
    assert share[large].min() > share[~large].max()


def test_measures_do_not_depend_on_scale_contrast_or_side(exams):
    stack = exams[0].series[0].signal.astype(np.float32)
    share, evans = measure_ventricles(stack)
    for other in (stack * 7.5, stack[:, :, ::-1]):
        assert measure_ventricles(other) == pytest.approx((share, evans), abs=0.02)
    assert measure_ventricles(np.zeros_like(stack)) == (0.0, 0.0)
    largest = stack[7:8]
    assert measure_ventricles(np.concatenate([largest, 0 * largest, largest])) == measure_ventricles(largest)
    assert measure_ventricles(stack[:0]) == (0.0, 0.0)


def test_each_slice_has_the_measures_of_its_series(exams):
    stacks = [exam.series[0].signal[4:] for exam in exams[:2]]
    names = [f"{k}-{i}" for k, stack in enumerate(stacks) for i in range(len(stack))]
    table = pd.DataFrame({"slice_id": names, "series_id": [name[0] for name in names], "z_mm": range(len(names))})
    store = SimpleNamespace(rows={name: k for k, name in enumerate(names)}, array=np.concatenate(stacks))
    order = np.random.default_rng(0).permutation(len(names))
    found = ventricle_features(cast(Any, store), table, order)
    expected = [measure_ventricles(stack.astype(np.float32)) for stack in stacks]
    for row, at in enumerate(order):
        assert tuple(found.iloc[row]) == expected[int(names[at][0])]
