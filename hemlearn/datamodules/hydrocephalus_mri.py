"""Hydrocephalus on brain MRI, per patient (the task of Demyanchuk 2019, arXiv 1909.10473)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn.data.series import mixed_contrasts
from hemlearn.datamodules.patients import LAYOUT, Labels, PatientFolders
from hemlearn.util.tables import label_table, one_row_each, read_flags

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

    Use ``channels=mr`` (percentile scaling) and ``task=hydrocephalus``. ``band`` keeps the slices around the lateral
    ventricles, as shares of the series' length from below. What happens to series that are not as they should be:
    without pixel spacing or positions they are used in the order of their numbers, and noted; with slices of
    different contrasts under one series id (echo, repetition or inversion time) they are skipped with the reason, as
    are series with no slice in the band; CT is skipped. ``geometry`` decides about repeated positions, gaps and short
    series.

    Example:
        >>> HydrocephalusMRIDataModule(band=(0.4, 0.6)).band
        (0.4, 0.6)
    """

    name = "hydrocephalus_mri"
    layout = "hydrocephalus_mri"
    modality = "MR"
    default_labels = (LABEL,)

    def __init__(
        self, root: str | Path | None = None, *, band: Sequence[float] | None = (0.35, 0.65), **options: Any
    ) -> None:
        super().__init__(root, band=band, **options)

    def read_labels(self, file: Path) -> Labels:
        """The table of labels."""
        table = label_table(file, ("patient_id", LABEL), layout=LAYOUT, header=f"the header is patient_id,{LABEL}")
        known = read_flags(table, LABEL, file)
        keys = table["patient_id"]
        notes = one_row_each(keys, table[LABEL], file, "patient_id", LABEL)
        out = pd.DataFrame({LABEL: known.to_numpy()}, index=pd.Index(keys, dtype=object))
        return Labels(out[~keys.duplicated().to_numpy()], None, tuple(notes))

    def unfit(self, headers: pd.DataFrame) -> dict[str, str]:
        """Series that mix contrasts."""
        return {name: f"mixed contrasts: {what}" for name, what in mixed_contrasts(headers).items()}
