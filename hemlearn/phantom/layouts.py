"""Synthetic data sets in the on-disk layouts of real ones.

A new layout adds one module to :mod:`hemlearn.phantom.writers` and one line to :data:`LAYOUTS`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hemlearn.phantom.slab import Grid
from hemlearn.phantom.writers.common import Job, PhantomSummary, Progress, Writer
from hemlearn.phantom.writers.cq500 import write_cq500
from hemlearn.phantom.writers.patients import write_basal_ganglia, write_hydrocephalus_mri
from hemlearn.phantom.writers.series import write_ct_ich, write_ct_ich_nifti, write_rsna
from hemlearn.phantom.writers.slices import write_head_ct, write_six_class
from hemlearn.util.errors import ConfigError, DataError

PHANTOM_VERSION = 2  # raised when the same seed would draw other pictures, so that a cached set is not mistaken

NOTE = """This data set is SYNTHETIC: computer-drawn heads, no patient was scanned.
It was written by hemlearn's phantom (layout {layout}, {patients} patients, seed {seed}) in the on-disk layout of
a real data set. phantom.csv holds the truth of every image. Figures obtained on it say that software works;
they say nothing about the diagnosis of people.
"""

LAYOUTS: dict[str, Writer] = {
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
    """
    out = Path(out)
    if layout not in LAYOUTS:
        raise ConfigError(f"phantom layout={layout!r} is unknown", remedy=f"choose one of: {', '.join(LAYOUTS)}")
    if patients < 2:
        raise ConfigError(f"phantom patients={patients} is too few", remedy="give at least 2, one of each class")
    if seed < 0:
        raise ConfigError(f"phantom seed={seed} is negative", remedy="give a seed of 0 or more")
    if n_jobs == 0:
        raise ConfigError("phantom n_jobs=0 means no process", remedy="give 1 or more, or -1 for all cores")
    if out.exists() and not out.is_dir():
        raise DataError(f"phantom out={out} is a file", remedy="name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise DataError(
            f"phantom out={out} is not empty", remedy="name a new folder, or delete this one if it is not needed"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise DataError(
            f"phantom out={out} cannot be written: {error.strerror or error}", remedy="name a folder you may write in"
        ) from error
    try:
        summary = LAYOUTS[layout](Job(draft, patients, seed, n_jobs, progress, grid))
        note = NOTE.format(layout=layout, patients=patients, seed=seed)
        (draft / "PHANTOM.txt").write_text(note, encoding="utf-8")
        draft.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        draft.rename(out)
    except OSError as error:
        raise DataError(
            f"phantom out={out} cannot be written: {error.strerror or error}",
            remedy="free some space or name a folder you may write in",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    summary.out = out
    return summary
