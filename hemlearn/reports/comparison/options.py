"""What is asked of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hemlearn.reports.comparison.runs import POOLED


@dataclass(frozen=True)
class Options:
    """What is asked of a comparison.

    Attributes:
        pool: Keys that are repetitions, not differences.
        level: slice | series | patient; None takes slices, and series and patients too where a patient has several
            slices.
        margin: Non-inferiority margin of AUROC, above 0; None makes no such test.
        baseline: Settings of the group the others are held against, such as ``backbone.pretrained=false``.
        labels: Labels that get tests of their own beside the mean and ``any``.
        common: Test groups with different cases on those they share.
        references: Files with published figures.
    """

    pool: tuple[str, ...] = POOLED
    level: str | None = None
    margin: float | None = None
    baseline: str | None = None
    labels: tuple[str, ...] = ()
    common: bool = False
    references: tuple[Path, ...] = field(default_factory=tuple)
