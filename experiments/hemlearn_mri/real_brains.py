"""Does a run rank real brains by the size of their ventricles: also flipped, rescaled, or stored in another order?

python experiments/hemlearn_mri/real_brains.py RUN[,RUN...] [data=../shared/data/mri_t1] [work=DIR]

The data folder has ``patients.csv`` (patient_id, path of a NIfTI volume, lateral_ventricles_ml). Each volume is read as
it is and after every change of ``CHANGES``, with ``hemlearn predict``; a row of the table is one change of all
volumes: Spearman's correlation of the patient's score with the measured volume, and the pairs at least 10 ml apart
whose order is right. The last column changes one volume at a time: of how many is the order right in most of its pairs
with the others as stored? The last two rows need no network: :mod:`hemlearn.audits.ventricles` on the same slices.
Nothing is fitted here.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hemlearn.audits.ventricles import measure_ventricles
from hemlearn.commands.apply import predict
from hemlearn.training.run import Run
from hemlearn.util.errors import HemlearnError

APART_ML = 10.0
Volume: TypeAlias = nibabel.Nifti1Image


def _array(image: Volume) -> NDArray[np.float32]:
    return np.asarray(image.dataobj, dtype=np.float32)


def _axis(image: Volume, name: str) -> int:
    """The axis of an array along L-R, P-A or I-S."""
    return next(k for k, code in enumerate(nibabel.aff2axcodes(image.affine)) if code in name)


def _flipped(name: str) -> Callable[[Volume], Volume]:
    """The pixels mirrored under the same header, as a wrong header or an upside-down head would have them."""
    return lambda image: Volume(np.flip(_array(image), _axis(image, name)), image.affine)


def _scaled(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Volume], Volume]:
    return lambda image: Volume(change(_array(image)), image.affine)


def _gamma(values: NDArray[np.float32]) -> NDArray[np.float32]:
    top = np.percentile(values, 99.5)
    return np.asarray(1000.0 * np.clip(values / top, 0.0, 1.0) ** 0.7, dtype=np.float32)


CHANGES: dict[str, Callable[[Volume], Volume]] = {
    "as stored": lambda image: image,
    "left and right flipped": _flipped("LR"),
    "front and back flipped": _flipped("AP"),
    "top and bottom flipped": _flipped("IS"),
    "rescaled, x 3 + 40": _scaled(lambda values: 3 * values + 40),
    "rescaled, x 0.2": _scaled(lambda values: 0.2 * values),
    "gamma 0.7": _scaled(_gamma),
    "reoriented to R/A/S": nibabel.as_closest_canonical,
    "reoriented to P/I/R": lambda image: image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt("PIR")
        )
    ),
}


def scores(runs: str, volumes: dict[str, Volume], work: Path) -> NDArray[np.float64]:
    """The patients' scores, in the order of ``volumes``."""
    folder, out = work / "volumes", work / "out"
    folder.mkdir(parents=True)
    for name, image in volumes.items():
        nibabel.save(image, folder / f"{name}.nii.gz")
    if predict([f"run={runs}", f"input={folder}", f"out={out}"]) != 0:
        raise SystemExit(1)
    table = pd.read_csv(out / "patients.csv", dtype={"patient_id": str}).set_index("patient_id")
    return np.asarray(table["prob_hydrocephalus"].loc[[f"{name}.nii.gz" for name in volumes]], dtype=np.float64)


def measured(image: Volume, band: Sequence[float]) -> tuple[float, float]:
    """Share of fluid and Evans index on the band of slices that a run reads."""
    stack = np.flip(_array(nibabel.as_closest_canonical(image)).transpose(2, 1, 0), 1)
    place = np.arange(len(stack)) / (len(stack) - 1)
    return measure_ventricles(np.ascontiguousarray(stack[(place >= band[0]) & (place <= band[1])]))


def agreement(score: NDArray[np.float64], ml: NDArray[np.float64], stored: NDArray[np.float64]) -> str:
    """Cells of a row: Spearman, pairs in the right order, volumes that alone are changed and stay in order."""
    apart = np.subtract.outer(ml, ml)
    far = np.abs(apart) >= APART_ML
    right = np.subtract.outer(score, score) * np.sign(apart) > 0
    one = np.subtract.outer(score, stored) * np.sign(apart) > 0
    stay = (one & far).sum(axis=1) > far.sum(axis=1) / 2
    first = np.triu(far)
    return f"{spearmanr(score, ml).statistic:.3f} | {right[first].sum()} of {first.sum()} | {stay.sum()} of {len(ml)}"


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    options: dict[str, Any] = dict(text.split("=", 1) for text in arguments[1:])
    if not arguments or not set(options) <= {"data", "work"}:
        print(__doc__, file=sys.stderr)
        return 2
    data = Path(options.get("data", "../shared/data/mri_t1"))
    table = pd.read_csv(data / "patients.csv")
    images = {row.patient_id: nibabel.load(data / row.path) for row in table.itertuples()}
    ml = table["lateral_ventricles_ml"].to_numpy(dtype=np.float64)
    band = Run(Path(arguments[0].split(",")[0])).config.data.band or (0.0, 1.0)
    rows, stored = [], np.zeros(len(ml))
    with tempfile.TemporaryDirectory(dir=options.get("work")) as work:
        for number, (name, change) in enumerate(CHANGES.items()):
            found = scores(
                arguments[0], {key: change(image) for key, image in images.items()}, Path(work) / str(number)
            )
            stored = stored if number else found
            rows.append(f"| {name} | {agreement(found, ml, stored)} |")
            if not number:
                own = [
                    f"{key} {volume:g} ml: {score:.3f}" for key, volume, score in zip(images, ml, found, strict=True)
                ]
                print("\n".join(own), file=sys.stderr)
    for name, values in zip(
        ("CSF share", "Evans index"), np.array([measured(i, band) for i in images.values()]).T, strict=True
    ):
        rows.append(f"| without a network: {name} | {agreement(values, ml, values)} |")
    print("\n".join([f"| {len(ml)} volumes | Spearman | pairs in order | each alone |", "|---|---:|---:|---:|", *rows]))
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except HemlearnError as error:
        raise SystemExit(f"ERROR {error}") from error
