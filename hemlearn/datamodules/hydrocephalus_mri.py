"""Hydrocephalus on brain MRI, per patient (the task of Demyanchuk 2019, arXiv 1909.10473)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hemlearn.data.series import mixed_contrasts, read_times
from hemlearn.datamodules.patients import Labels, PatientFolders, need_column, one_row_each
from hemlearn.util.errors import DataError
from hemlearn.util.tables import read_csv

LABEL = "hydrocephalus"


class HydrocephalusMRIDataModule(PatientFolders):
    """One folder per patient and a table of labels.

    ::

        ROOT/labels.csv                patient_id,hydrocephalus
                                       P001,1
                                       P002,0
        ROOT/P001/T2/IM0001.dcm ...    axial MR series, DICOM; or ROOT/P001/T2.nii.gz, ROOT/P001.nii.gz

    ``hydrocephalus`` is 0, 1 or empty (not known). A patient may have several series, also of different contrasts;
    all of them carry the patient's label, and the patient's score is the aggregate over their slices
    (``task.aggregate``). Put only the contrasts there that shall be used.

    Use ``channels=mr`` (percentile scaling) and ``task=hydrocephalus``. ``data.band`` keeps the slices around the
    lateral ventricles, as shares of the series' length from below. What happens to series that are not as they should
    be: without pixel spacing or positions they are used in the order of their numbers, and noted; with slices of
    different contrasts under one series id (echo, repetition or inversion time) they are left out with the reason, as
    are series with no slice in the band; CT is left out. ``data.geometry`` decides about repeated positions, gaps and
    short series.
    """

    layout = "hydrocephalus_mri"
    source = "hydrocephalus_mri"
    modality = "MR"
    labels_ = (LABEL,)

    def read_labels(self, file: Path) -> Labels:
        """The table of labels.

        Raises:
            DataError: A missing column, a label other than 0, 1 and nothing, a patient with two labels.
        """
        table = read_csv(file)
        for column in ("patient_id", LABEL):
            need_column(table, column, file, f"the header is patient_id,{LABEL}")
        wrong = ~table[LABEL].isin(("0", "1", ""))
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise DataError(
                f"{file}, row {row + 2}: {LABEL}={table[LABEL].iloc[row]!r}",
                remedy="labels are 0, 1 or empty (unknown)",
            )
        keys = table["patient_id"]
        notes = one_row_each(keys, table[LABEL], file, "patient_id", LABEL)
        known = table[LABEL].map({"0": 0.0, "1": 1.0, "": np.nan}).to_numpy(dtype=np.float64)
        out = pd.DataFrame({LABEL: known}, index=pd.Index(keys, dtype=object))
        return Labels(out[~keys.duplicated().to_numpy()], None, tuple(notes))

    def unfit(self, rows: pd.DataFrame, root: Path) -> dict[str, str]:
        """Series that mix contrasts."""
        times = read_times(rows["path"].tolist(), root, cache_dir=self.cache)
        return {name: f"mixed contrasts: {what}" for name, what in mixed_contrasts(rows, times).items()}
