"""What the writers of all layouts share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hemlearn.phantom.slab import Grid

T = TypeVar("T")
Row = dict[str, object]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What a writer is asked for.

    Attributes:
        out: An empty folder.
        patients: Number of patients.
        seed: Seed.
        n_jobs: Processes.
        progress: Called with (patients done, patients) after each.
        grid: Sampling to use instead of the layout's own.
    """

    out: Path
    patients: int
    seed: int
    n_jobs: int = 1
    progress: Progress | None = None
    grid: Grid | None = None


@dataclass
class PhantomSummary:
    """What was written.

    Attributes:
        layout: Name of the layout.
        out: Folder.
        patients: Number of patients.
        images: Number of images.
        positives: Number of images that show blood, or are of a patient with the finding.
        seed: Seed.
        subtypes: Subtype (or class, or kind of patient) -> number of images that show it.
        finding: What ``positives`` are, in words.
    """

    layout: str
    out: Path
    patients: int
    images: int
    positives: int
    seed: int
    subtypes: dict[str, int] = field(default_factory=dict)
    finding: str = "with blood"


Writer = Callable[[Job], PhantomSummary]


def window_8bit(hu: NDArray[np.int16], centre: float, width: float) -> NDArray[np.uint8]:
    """HU to 8-bit grey through a window of ``centre`` and ``width`` HU."""
    grey = (hu.astype(np.float32) - (centre - width / 2)) * (255.0 / width)
    picture: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return picture


def is_abnormal(seed: int, patient: int) -> bool:
    """Whether this patient bleeds: exactly one of each pair (2k, 2k + 1), which of them by chance."""
    first = bool(np.random.default_rng(np.random.SeedSequence([seed, patient // 2, 7])).integers(2))
    return first == (patient % 2 == 0)


def patient_name(seed: int, patient: int) -> str:
    """What the truth calls a patient."""
    return f"phantom-{seed}-{patient:05d}"


def summarize(layout: str, job: Job, rows: Sequence[Row], patients: int | None = None) -> PhantomSummary:
    """Count the rows of the truth."""
    names = [name for row in rows for name in str(row["subtypes"]).split("|") if name]
    positives = sum(int(str(row["hemorrhage"])) for row in rows)
    counts = {name: names.count(name) for name in sorted(set(names))}
    return PhantomSummary(layout, job.out, patients or job.patients, len(rows), positives, job.seed, counts)


def write_truth(path: Path, rows: list[dict[str, object]]) -> None:
    """Write the table of what was drawn, one row per image, as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def each_patient(work: Callable[..., T], job: Job, patients: Sequence[int] | None = None) -> Iterator[T]:
    """Run ``work(job.out, job.seed, patient, job.grid)`` for every patient, in order, in ``job.n_jobs`` processes.

    Args:
        work: A module-level function.
        job: What to write; each patient done is reported to its ``progress``.
        patients: Indices of the patients; by default 0 to ``job.patients`` - 1.
    """
    every = range(job.patients) if patients is None else patients
    if job.n_jobs == 1:
        results: Generator[T, None, None] = (work(job.out, job.seed, k, job.grid) for k in every)
    else:
        from joblib import Parallel, delayed

        parallel = Parallel(n_jobs=job.n_jobs, return_as="generator")
        results = parallel(delayed(work)(job.out, job.seed, k, job.grid) for k in every)
    # Closing stops the workers when the caller is interrupted, so that none writes into a folder being removed.
    with closing(results):
        for done, row in enumerate(results, start=1):
            if job.progress is not None:
                job.progress(done, len(every))
            yield row
