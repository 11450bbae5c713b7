"""Kaggle "Head CT - hemorrhage" (felipekitamura): 200 PNG slices of 200 people, one label."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hemlearn.data.manifest import Manifest
from hemlearn.data.rows import normalise
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.util.tables import label_table, refuse_rows

_IMAGES = Path("head_ct") / "head_ct"


class HeadCTDataModule(SliceDataModule):
    """``ROOT/labels.csv`` with ``id, hemorrhage`` and ``ROOT/head_ct/head_ct/000.png``.

    The set has no patient ids: each image is taken as one patient, and duplicated images are kept together by the
    split. Arguments are those of :class:`hemlearn.datamodules.base.SliceDataModule`.

    Example:
        >>> from hemlearn.data.splits import KFold
        >>> data = HeadCTDataModule("DIR", image_size=96, batch_size=8, split=KFold(folds=5, fold=2))
        >>> data.splitter.fold, data.image_size, data.default_labels
        (2, 96, ('hemorrhage',))
    """

    name = "head_ct"
    layout = "head_ct"
    default_labels = ("hemorrhage",)
    patients_known = False

    def read(self, root: Path) -> Manifest:
        """The manifest of the Kaggle layout."""
        file = root / "labels.csv"
        table = label_table(
            file,
            ("id", "hemorrhage"),
            layout="data.root must hold labels.csv and head_ct/head_ct/*.png",
            header="the header of this data set is 'id, hemorrhage'",
        )
        refuse_rows(
            ~table["id"].str.fullmatch(r"\d+"),
            file,
            lambda row: f"id={table['id'].iloc[row]!r} is not a whole number",
            "ids are the numbers of the image files",
        )
        ids = table["id"].str.zfill(3)
        rows = pd.DataFrame({"slice_id": ids, "patient_id": ids, "hemorrhage": table["hemorrhage"]})
        rows["path"] = [(_IMAGES / f"{item}.png").as_posix() for item in ids]
        normalise(rows, root, self.default_labels, "CT", file)  # so that faults name their row in the file
        present = sorted(path.relative_to(root).as_posix() for path in (root / _IMAGES).glob("*") if path.is_file())
        return self.build(rows, root, images=present)
