"""Files with headers (DICOM, NIfTI) to usable slices with ids of patient, study and series."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from hemlearn.data.readers.header import read_headers
from hemlearn.errors import DataError


def usable_headers(
    paths: Sequence[str],
    root: Path,
    *,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool = True,
    n_jobs: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read headers and keep what is an axial image.

    De-identified files may lack ids. Without a SeriesInstanceUID (0020,000E) the files of one folder are one series,
    without a StudyInstanceUID (0020,000D) the series is its own study, and without a PatientID (0010,0020) the study
    stands for the patient: better one patient taken for two studies than two patients taken for one.

    Args:
        paths: Files, relative to ``root``, POSIX.
        root: Folder of the data set.
        cache_dir: Where headers are kept between calls; None: nowhere.
        progress: Show progress.
        n_jobs: Workers; None: all cores.

    Returns:
        The usable rows (columns of ``slice_header.Header``, ids filled in), and a table (item, reason) of the others.

    Raises:
        DataError: There is no file, or none that can be used; the commonest reason is told.
    """
    if not paths:
        raise DataError(f"{root}: no DICOM or NIfTI file", remedy="check data.root")
    headers = read_headers(paths, root, cache_dir=cache_dir, progress=progress, n_jobs=n_jobs)
    why = headers["reason"].where(headers["reason"] != "", headers["set_aside"])
    out = headers.loc[why == ""].reset_index(drop=True)
    lost = pd.DataFrame({"item": headers["path"], "reason": why}).loc[why != ""].drop_duplicates()
    if out.empty:
        reasons = lost["reason"].value_counts()
        raise DataError(
            f"{root}: none of {len(paths)} files is an axial image that can be read; most often: {reasons.index[0]} "
            f"({reasons.iloc[0]} times, first {lost['item'].iloc[0]!r})",
            remedy="check data.root and that the folder holds the images of this layout",
        )
    folder = out["path"].map(lambda path: f"folder:{PurePosixPath(path).parent}")
    series = out["series_id"].where(out["series_id"] != "", folder)
    study = out["study_id"].where(out["study_id"] != "", series)
    patient = out["patient_id"].where(out["patient_id"] != "", study)
    return out.assign(series_id=series, study_id=study, patient_id=patient), lost.reset_index(drop=True)
