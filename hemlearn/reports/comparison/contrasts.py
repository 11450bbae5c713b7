"""What every test of a comparison leaves behind, and the correction for how many there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hemlearn.evaluation.significance import Test, holm
from hemlearn.evaluation.statistics import CONFIDENCE, NAN
from hemlearn.reports.comparison.pooling import Pooled

LEVEL = 1 - CONFIDENCE  # below it, an adjusted p is called a difference
KINDS = {
    "paired": "two groups on the same test cases",
    "unpaired": "two groups on different test cases",
    "resampled": "two groups over folds or seeds",
    "null": "a group against a model that sees no pixel inside the head",
    "leak": "split by slice against split by patient",
    "published": "a group against a published figure",
    "non-inferiority": "a group against the baseline, one-sided, with the margin",
}


@dataclass
class Contrast:
    """One comparison: made, undefined or refused.

    Attributes:
        kind: One of :data:`KINDS`.
        level: slice | series | patient.
        label: Label compared; ``""`` is the mean over labels, or the only one.
        metric: auroc | accuracy | sensitivity | specificity ...
        first: Name of the first group.
        second: Name of the second group, null or published figure.
        method: What was computed.
        difference: First minus second.
        low: Lower end of its 95 % interval.
        high: Upper end.
        statistic: z or t.
        p: Two-sided (one-sided for non-inferiority).
        p_holm: Corrected for all p values of the comparison.
        n: Cases it rests on (resamples, for kind ``resampled``).
        patients: Patients it rests on; 0 where that does not apply.
        margin: Of a non-inferiority test.
        verdict: Of a non-inferiority test.
        covers: Which variation it speaks of.
        refused: Why it was not made; empty where it was.
        note: What a reader must know.
    """

    kind: str
    level: str
    label: str
    metric: str
    first: str
    second: str
    method: str = ""
    difference: float = NAN
    low: float = NAN
    high: float = NAN
    statistic: float = NAN
    p: float = NAN
    p_holm: float = NAN
    n: int = 0
    patients: int = 0
    margin: float = NAN
    verdict: str = ""
    covers: str = ""
    refused: str = ""
    note: str = ""

    @property
    def made(self) -> bool:
        """Whether there is a p value."""
        return self.p == self.p

    @property
    def differs(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p_holm < LEVEL

    def take(self, test: Test, covers: str = "") -> Contrast:
        """This comparison with the outcome of a test."""
        return dataclasses.replace(
            self,
            method=test.name,
            difference=test.difference,
            low=test.low,
            high=test.high,
            statistic=test.statistic,
            p=test.p,
            n=test.n,
            patients=test.clusters,
            note="; ".join(filter(None, [self.note, test.note])),
            covers=covers or self.covers,
        )


def adjust(contrasts: Sequence[Contrast]) -> int:
    """Set the Holm-corrected p of every comparison made, all of them together; returns their number."""
    for contrast, p in zip(contrasts, holm([c.p for c in contrasts]), strict=True):
        contrast.p_holm = float(p)
    return sum(contrast.made for contrast in contrasts)


def as_table(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """One row per comparison, the columns in the order of :class:`Contrast`."""
    names = [f.name for f in dataclasses.fields(Contrast)]
    return pd.DataFrame([dataclasses.asdict(c) for c in contrasts], columns=names)


def shared(first: Pooled, second: Pooled) -> int:
    """Number of cases that both hold."""
    return len(set(first.unit.tolist()) & set(second.unit.tolist()))


def record(contrast: Contrast) -> dict[str, Any]:
    """Plain values of a comparison."""
    return dataclasses.asdict(contrast)
