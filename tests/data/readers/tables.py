"""The tables of experiments/readers/README.md: what is read, beside what other programs read.

python -m tests.data.readers.tables pixels
python -m tests.data.readers.tables orientations [RUN]     RUN: a trained run, for its probabilities
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom.uid import UID

from hemlearn.__main__ import main as hemlearn
from hemlearn.data.readers.dicom import read_dicom
from tests.attack.series import head as attack_head
from tests.data.readers.files import stored_head, write
from tests.data.readers.pixel_cases import PixelCase, pixel_cases
from tests.data.readers.test_orientation import ARRANGEMENTS, POSITIONS, dcm2niix, ours, simple_itk
from tests.data.readers.test_pixels import gdcm


def pixels(work: Path) -> Iterator[str]:
    """One row per transfer syntax."""
    yield "| transfer syntax | stored | files | largest difference from what was stored | from SimpleITK (GDCM) |"
    yield "|---|---|---:|---:|---:|"
    groups: dict[UID, list[PixelCase]] = {}
    for case in pixel_cases():
        groups.setdefault(case.syntax, []).append(case)
    for syntax, cases in groups.items():
        bits = ", ".join(map(str, sorted({case.bits for case in cases})))
        signs = " and ".join("signed" if sign else "unsigned" for sign in sorted({case.signed for case in cases}))
        stored, theirs = [], []
        for case in cases:
            path = write(work / "a.dcm", case.make())
            found, other = read_dicom(path, 0), gdcm(path)
            stored.append(int(np.abs(found - case.hu).max()))
            theirs.append(-1 if other is None else int(np.abs(found - np.rint(other)).max()))
        name = "GE private" if syntax.is_private else syntax.name
        against = "not read there" if min(theirs) < 0 else f"{max(theirs)} HU"
        yield f"| {name} ({syntax}) | {bits} bits {signs} | {len(cases)} | {max(stored)} HU | {against} |"


def orientations(work: Path, run: str = "") -> Iterator[str]:
    """One row per arrangement; all positions of the patient in it."""
    head = attack_head()
    more = " probabilities |" if run else ""
    yield f"| columns, rows | patient | hemlearn | SimpleITK | dcm2niix |{more}"
    yield "|---|---|---|---|---|" + ("---:|" if run else "")
    words = {(0, 1): "left", (0, -1): "right", (1, 1): "posterior", (1, -1): "anterior"}
    reference = None
    for orientation in ARRANGEMENTS:
        ends = [words[(int(np.abs(part).argmax()), int(np.sum(part)))] for part in np.reshape(orientation, (2, 3))]
        equal, chances = [], []
        for position in POSITIONS:
            folder = work / "".join(map(str, (*orientation, position)))
            stored_head(folder / "in", head, orientation, position, downwards=position.startswith("FF"))
            found = ours(folder / "in")
            equal.append([np.array_equal(found, item) for item in (head, simple_itk(folder / "in"), dcm2niix(folder))])
            if run:
                status = hemlearn(["predict", f"run={run}", f"input={folder / 'in'}", f"out={folder / 'out'}"])
                table = pd.read_csv(folder / "out" / "slices.csv") if status == 0 else pd.DataFrame()
                chances.append(table.select_dtypes("number").to_numpy())
        reference = chances[0] if run and reference is None else reference
        row = " | ".join("equal" if all(item) else "DIFFERENT" for item in zip(*equal, strict=True))
        if run and reference is not None:
            same = all(np.array_equal(item, reference, equal_nan=True) and item.size for item in chances)
            row += " | equal" if same else " | DIFFERENT"
        yield f"| towards {ends[0]}, {ends[1]} | {', '.join(POSITIONS)} | {row} |"


def main(arguments: Sequence[str]) -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as work:
        rows = pixels(Path(work)) if arguments[0] == "pixels" else orientations(Path(work), *arguments[1:])
        print("\n".join(list(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
