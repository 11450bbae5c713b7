"""Kaggle "Head CT - hemorrhage" (felipekitamura): 200 PNG slices of 200 people, one label."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.rows import normalise
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.util.errors import DataError
from hemlearn.util.tables import read_csv

_IMAGES = Path("head_ct") / "head_ct"


class HeadCTDataModule(SliceDataModule):
    """``ROOT/labels.csv`` with ``id, hemorrhage`` and ``ROOT/head_ct/head_ct/000.png``.

    The set has no patient ids: each image is taken as one patient, and duplicated images are kept together by
    ``split.duplicates``.
    """

    layout = "head_ct"

    def read(self, root: Path) -> Manifest:
        """The manifest of the Kaggle layout.

        Raises:
            DataError: Missing or malformed ``labels.csv``, a duplicated id, no usable image.
        """
        file = root / "labels.csv"
        if not file.is_file():
            raise DataError(f"{file}: no such file", remedy="data.root must hold labels.csv and head_ct/head_ct/*.png")
        table = read_csv(file)
        for column in ("id", "hemorrhage"):
            if column not in table:
                raise DataError(
                    f"{file}: no column '{column}' (found: {', '.join(map(str, table.columns))})",
                    remedy="the header of this data set is 'id, hemorrhage'",
                )
        bad = table.loc[~table["id"].str.fullmatch(r"\d+")]
        if len(bad):
            raise DataError(
                f"{file}, row {bad.index[0] + 2}: id={bad['id'].iloc[0]!r} is not a whole number",
                remedy="ids are the numbers of the image files",
            )
        ids = table["id"].str.zfill(3)
        rows = pd.DataFrame({"slice_id": ids, "patient_id": ids, "hemorrhage": table["hemorrhage"]})
        rows["path"] = [(_IMAGES / f"{item}.png").as_posix() for item in ids]
        normalise(rows, root, ("hemorrhage",), "CT", file)  # faults are told with their row in the file
        folder = root / _IMAGES
        present = sorted(path.relative_to(root).as_posix() for path in folder.glob("*") if path.is_file())
        return build_manifest(
            rows,
            root=root,
            labels=("hemorrhage",),
            source="head_ct",
            modality="CT",
            images=present,
            cache_dir=self.cache,
            synthetic=(root / "PHANTOM.txt").is_file(),
        )
