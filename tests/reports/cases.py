"""Small cases to make pages of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hemlearn.reading.case import Case

LABELS = ("any", "epidural", "subdural")


def case(slices: int = 9, side: int = 96, **changes: Any) -> Case:
    """A disc of brain with a bright spot that wanders upwards, and probabilities that peak in slice 6."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    radius = np.hypot(x, y)
    hu = np.full((slices, side, side), -1000.0)
    hu[:, radius < 0.46 * side] = 1000
    hu[:, radius < 0.42 * side] = 32
    for k in range(slices):
        hu[k][np.hypot(x - 10, y - 4 * (k - slices / 2)) < 6] = 68
    hu += rng.normal(0, 3, hu.shape)
    peak = np.exp(-(((np.arange(slices) - 5) / 1.5) ** 2))
    probs = np.stack([0.92 * peak, 0.5 * peak, 0.05 + 0 * peak], axis=1)
    cams = {}
    for n, label in enumerate(LABELS):
        cam = np.zeros((slices, 6, 6))
        cam[:, n, 2 * n] = peak
        cams[label] = np.rint(255 * cam).astype(np.uint8)
    made = Case(
        series="series 1",
        patient="DOE^JANE",
        hu=np.rint(hu).astype(np.int16),
        z_mm=5.0 * np.arange(slices) - 20,
        labels=LABELS,
        slice_probs=probs,
        series_probs=probs.max(0),
        intervals=np.stack([0.8 * probs.max(0), np.minimum(1, 1.1 * probs.max(0))], axis=1),
        cams=cams,
        attribution=peak - 0.1,
        ground={"Slices": str(slices), "PatientName": "DOE^JANE"},
        thresholds={"any": 0.4},
        slice_thresholds={"any": 0.6},
        calibration="Temperature scaling.",
        interval_note="lowest and highest of 5 runs",
        cam_note="Grad-CAM",
        card={"Backbone": "resnet18"},
        pixel_mm=(0.5, 0.5),
    )
    return replace(made, **changes)
