"""Synthetic data sets in the on-disk layouts of real ones.

A new layout adds a writer and a line to :data:`LAYOUTS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from hemlearn.phantom.archives import write_cq500, write_rsna
from hemlearn.phantom.files import Job, PhantomSummary, Progress
from hemlearn.phantom.patients import write_basal_ganglia, write_hydrocephalus_mri, write_six_class
from hemlearn.phantom.pictures import write_ct_ich, write_ct_ich_nifti, write_head_ct
from hemlearn.phantom.slab import Grid
from hemlearn.util.errors import ConfigError, DataError, count, hint
from hemlearn.util.files import draft_of, full_disk, remove_drafts

PHANTOM_VERSION = 2  # raised when the same seed would draw other pictures, so that a cached set is not mistaken
_REDRAWN = {"hydrocephalus_mri": 3}  # layouts that alone have changed since


def phantom_version(layout: str) -> int:
    """The version of a layout's pictures."""
    return _REDRAWN.get(layout, PHANTOM_VERSION)


NOTE = """This data set is SYNTHETIC: computer-drawn heads, no patient was scanned.
It was written by hemlearn's phantom (layout {layout}, {patients}, seed {seed}) in the on-disk layout of
a real data set. phantom.csv holds the truth of every image. Figures obtained on it say that software works;
they say nothing about the diagnosis of people.
"""

LAYOUTS: dict[str, Callable[[Job], PhantomSummary]] = {
    "head_ct": write_head_ct,
    "rsna": write_rsna,
    "ct_ich": write_ct_ich,
    "ct_ich_nifti": write_ct_ich_nifti,
    "cq500": write_cq500,
    "basal_ganglia": write_basal_ganglia,
    "six_class": write_six_class,
    "hydrocephalus_mri": write_hydrocephalus_mri,
}


def write_phantom(
    layout: str,
    out: Path,
    patients: int = 24,
    seed: int = 0,
    progress: Progress | None = None,
    n_jobs: int = 1,
    grid: Grid | None = None,
) -> PhantomSummary:
    """Write a synthetic data set in the on-disk layout of a real one.

    The set appears at ``out`` complete or not at all. Patient ``k`` of a seed is the same whatever the number of
    patients or processes.

    Args:
        layout: A key of :data:`LAYOUTS`.
        out: Folder to create; it may exist only when empty.
        patients: Number of patients, at least 2.
        seed: Seed, >= 0.
        progress: Called with (patients done, patients) after each.
        n_jobs: Processes, as in joblib: -1 for all cores.
        grid: Sampling instead of the layout's own, for small sets in tests; its ``z_mm`` and tilt are not used.

    Returns:
        What was written.

    Raises:
        ConfigError: Unknown layout, too few patients, negative seed or no processes.
        DataError: ``out`` is a file, holds files already, or cannot be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> out = Path(mkdtemp()) / "heads"
        >>> write_phantom("head_ct", out, patients=2, grid=Grid(rows=64, cols=64, pixel_mm=3.6, samples=1)).positives
        1
        >>> sorted(path.name for path in out.iterdir())
        ['PHANTOM.txt', 'head_ct', 'labels.csv', 'masks', 'phantom.csv']
    """
    out = Path(out)
    if layout not in LAYOUTS:
        problem = f"phantom layout={layout!r} is unknown{hint(layout, LAYOUTS)}"
        raise ConfigError(problem, remedy=f"choose one of: {', '.join(LAYOUTS)}")
    for wrong, problem, remedy in (
        (patients < 2, f"patients={patients} is too few", "give at least 2, one of each class"),
        (seed < 0, f"seed={seed} is negative", "give a seed of 0 or more"),
        (n_jobs == 0, "n_jobs=0 means no process", "give 1 or more, or -1 for all cores"),
    ):
        if wrong:
            raise ConfigError(f"phantom {problem}", remedy=remedy)
    if out.exists() and not out.is_dir():
        raise DataError(f"phantom out={out} is a file", remedy="name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        remedy = "name a new folder, or delete this one if it is not needed"
        raise DataError(f"phantom out={out} is not empty", remedy=remedy)
    draft = draft_of(out.absolute())  # worker processes may have another working directory
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(out.parent)
        draft.mkdir()
        summary = LAYOUTS[layout](Job(draft, patients, seed, n_jobs, progress, grid))
        note = NOTE.format(layout=layout, patients=count(patients, "patient"), seed=seed)
        (draft / "PHANTOM.txt").write_text(note, encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        draft.rename(out)
    except OSError as error:
        if (full := full_disk(error, DataError, draft.parent, remedy=", or name another folder")) is not None:
            raise full from error
        raise DataError(
            f"phantom out={out} cannot be written: {error.strerror or error}",
            remedy="free some space or name a folder you may write in",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    summary.out = out
    return summary
