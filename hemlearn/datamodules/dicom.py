"""Any folder of DICOM or NIfTI files: grouped into series, without labels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hemlearn.data.geometry import arrange
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.data.readers import NIFTI_SUFFIXES
from hemlearn.data.series import usable_headers
from hemlearn.data.sources import discover
from hemlearn.datamodules.base import SliceDataModule


class DicomDataModule(SliceDataModule):
    """``data=dicom data.root=DIR``: whatever series lie in a folder, to look at or to predict; there are no labels.

    Files are found by their content, at any depth; slices belong together by SeriesInstanceUID (0020,000E) and are
    ordered by position. ``slice_id`` is the path, with ``#frame`` for files of several slices. NIfTI files are taken
    for CT in HU unless ``channels`` are those of MR.
    """

    def read(self, root: Path) -> Manifest:
        """The manifest of a folder of mixed files.

        Raises:
            DataError: No file, or none that is an axial image.
        """
        found = discover(root)
        headers, lost = usable_headers(found.files, root, cache_dir=self.cache)
        if self.config.channels.kind == "ct":  # a NIfTI header does not say what was measured
            headers["modality"] = headers["modality"].where(~nifti(headers["path"]), "CT")
        geometry = arrange(headers, self.config.data.geometry)
        other = pd.DataFrame(list(found.left_out), columns=["item", "reason"], dtype=object)
        skipped = pd.concat([other, lost, geometry.skipped], ignore_index=True)
        rows = geometry.rows
        rows["slice_id"] = slice_ids(rows)
        return build_manifest(
            rows, root=root, labels=(), source="dicom", cache_dir=self.cache, skipped=skipped, series=geometry.series
        )


def slice_ids(rows: pd.DataFrame) -> pd.Series[str]:
    """The path of each slice, with ``#frame`` where its file holds several."""
    several = rows["path"].duplicated(keep=False) | (rows["frame"] > 0)
    return rows["path"].where(~several, rows["path"] + "#" + rows["frame"].astype(str))


def nifti(paths: pd.Series[str]) -> pd.Series[bool]:
    """Which paths name NIfTI files."""
    return paths.str.lower().str.endswith(NIFTI_SUFFIXES)
