"""Writers of synthetic data sets in the on-disk layouts of real ones.

Every writer gets patients as :class:`~hemlearn.phantom.head.HeadVolume` objects; a new layout adds one function
to :data:`LAYOUTS` and nothing else.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemlearn.errors import ConfigError, DataError
from hemlearn.phantom.head import Grid, HeadVolume, Streams, make_head

Progress = Callable[[int, int], None]
BRAIN_WINDOW = (40.0, 80.0)
PHANTOM_VERSION = 1  # raised when the same seed would draw other pictures, so that a cached set is not mistaken

NOTE = """This data set is SYNTHETIC: computer-drawn heads, no patient was scanned.
It was written by hemlearn's phantom (layout {layout}, {patients} patients, seed {seed}) in the on-disk layout of
a real data set. phantom.csv holds the truth of every image. Figures obtained on it say that software works;
they say nothing about the diagnosis of people.
"""


@dataclass
class PhantomSummary:
    """What was written.

    Attributes:
        layout: Name of the layout.
        out: Folder.
        patients: Number of patients.
        images: Number of images.
        positives: Number of images that show blood.
        seed: Seed.
        subtypes: Subtype -> number of images that show it.
    """

    layout: str
    out: Path
    patients: int
    images: int
    positives: int
    seed: int
    subtypes: dict[str, int] = field(default_factory=dict)


Writer = Callable[[Path, int, int, int, Progress | None], PhantomSummary]


def window_8bit(hu: NDArray[np.int16], centre: float, width: float) -> NDArray[np.uint8]:
    """HU to 8-bit grey through a window of ``centre`` and ``width`` HU."""
    grey = (hu.astype(np.float32) - (centre - width / 2)) * (255.0 / width)
    picture: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return picture


def is_abnormal(seed: int, patient: int) -> bool:
    """Whether this patient bleeds: exactly one of each pair (2k, 2k + 1), which of them by chance."""
    first = bool(np.random.default_rng(np.random.SeedSequence([seed, patient // 2, 7])).integers(2))
    return first == (patient % 2 == 0)


def _conspicuity(rng: np.random.Generator) -> float:
    """How visible the blood is: mostly plain, as in a collection of teaching figures, with a tail of faint cases."""
    return float(0.02 + 0.98 * rng.uniform() ** 0.36)


def head_ct_slice(seed: int, patient: int, grid: Grid | None = None,
                  abnormal: bool | None = None) -> tuple[NDArray[np.uint8], HeadVolume]:
    """One patient of the ``head_ct`` layout.

    Args:
        seed: Seed of the data set.
        patient: Index of the patient.
        grid: Sampling before the resampling to a picture; its slice position is not used.
        abnormal: Whether the patient bleeds; None for :func:`is_abnormal`. The same slice of the same head with
            and without blood differs in nothing else.

    Returns:
        The windowed image, uint8 (height, width), cropped and resampled as a figure in a collection would be;
        and the single-slice volume it was made of.
    """
    rng = Streams.of(seed, patient).layout
    # Everything about the image is drawn before, and without regard to, the label.
    z = float(rng.uniform(-12.0, 46.0))
    width = int(rng.integers(180, 321))
    margins = rng.uniform(0.0, 0.36, size=4) * rng.uniform()
    squash = float(rng.uniform(0.94, 1.06))
    grade = _conspicuity(rng)
    bleeds = is_abnormal(seed, patient) if abnormal is None else abnormal
    conspicuity = grade if bleeds else None
    grid = replace(grid or Grid(), z_mm=(z,))
    volume = make_head(seed, patient, conspicuity=conspicuity, grid=grid, meet_z=z)
    image = window_8bit(volume.hu[0], *BRAIN_WINDOW)
    box = _skull_box(volume.hu[0], margins)
    height = max(2, round(width * squash * (box[3] - box[1]) / (box[2] - box[0])))
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(picture), volume


def _skull_box(hu: NDArray[np.int16], margins: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Box (left, top, right, bottom) around the bone, widened by ``margins`` as shares of its size."""
    rows, cols = np.nonzero(hu > 300)
    top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
    high, wide = bottom - top, right - left
    limit_y, limit_x = hu.shape
    return (
        float(max(0.0, left - margins[0] * wide)),
        float(max(0.0, top - margins[1] * high)),
        float(min(limit_x, right + margins[2] * wide)),
        float(min(limit_y, bottom + margins[3] * high)),
    )


def _head_ct_patient(out: Path, seed: int, patient: int) -> dict[str, object]:
    image, volume = head_ct_slice(seed, patient)
    name = f"{patient:03d}.png"
    Image.fromarray(image).save(out / "head_ct" / "head_ct" / name)
    labels = volume.labels()
    shown = [key for key, seen in labels.items() if key != "any" and bool(seen[0])]
    return {
        "id": patient,
        "patient": f"phantom-{seed}-{patient:05d}",
        "hemorrhage": int(bool(labels["any"][0])),
        "subtypes": "|".join(shown),
        "sites": "|".join(lesion.site for lesion in volume.lesions),
        "conspicuity": "|".join(f"{lesion.conspicuity:.3f}" for lesion in volume.lesions),
        "area_mm2": round(float(sum(m.sum() for m in volume.masks.values()) * volume.spacing[1] ** 2), 1),
        "z_mm": round(volume.z_mm[0], 2),
        "age": round(volume.head.age, 1),
        "noise_hu": round(volume.scanner.noise_hu, 2),
        "seed": seed,
    }


def _write_head_ct(out: Path, patients: int, seed: int, n_jobs: int, progress: Progress | None) -> PhantomSummary:
    """The Kaggle Head-CT layout: labels.csv and head_ct/head_ct/NNN.png, one slice per patient."""
    (out / "head_ct" / "head_ct").mkdir(parents=True)
    rows = list(_each(_head_ct_patient, out, seed, patients, n_jobs, progress))
    with (out / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("id, hemorrhage\n")
        file.writelines(f"{row['id']},{row['hemorrhage']}\n" for row in rows)
    _write_truth(out / "phantom.csv", rows)
    names = [name for row in rows for name in str(row["subtypes"]).split("|") if name]
    counts = {name: names.count(name) for name in sorted(set(names))}
    positives = sum(int(str(row["hemorrhage"])) for row in rows)
    return PhantomSummary("head_ct", out, patients, len(rows), positives, seed, counts)


def _write_truth(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _each(work: Callable[[Path, int, int], dict[str, object]], out: Path, seed: int, patients: int, n_jobs: int,
          progress: Progress | None) -> Iterator[dict[str, object]]:
    """Run ``work`` for every patient, in order, in ``n_jobs`` processes; report each as it comes."""
    if n_jobs == 1:
        results: Generator[dict[str, object], None, None] = (work(out, seed, k) for k in range(patients))
    else:
        from joblib import Parallel, delayed

        parallel = Parallel(n_jobs=n_jobs, return_as="generator")
        results = parallel(delayed(work)(out, seed, k) for k in range(patients))
    # Closing stops the workers when the caller is interrupted, so that none writes into a folder being removed.
    with closing(results):
        for done, row in enumerate(results, start=1):
            if progress is not None:
                progress(done, patients)
            yield row


LAYOUTS: dict[str, Writer] = {"head_ct": _write_head_ct}


def write_phantom(layout: str, out: Path, patients: int = 24, seed: int = 0, progress: Progress | None = None,
                  n_jobs: int = 1) -> PhantomSummary:
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
        summary = LAYOUTS[layout](draft, patients, seed, n_jobs, progress)
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
