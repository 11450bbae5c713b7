"""CT-ICH (PhysioNet): head CTs of 82 people with five subtypes per slice, as JPG pictures or as NIfTI volumes.

Hssayeni M et al. Intracranial hemorrhage segmentation using a deep convolutional model. Data 2020;5:14.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hemlearn.data.covariates import PREFIX, read_covariates
from hemlearn.data.manifest import Manifest
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.datamodules.rsna import LABELS, SUBTYPES, contradictions
from hemlearn.util.errors import DataError, count
from hemlearn.util.tables import label_table, read_flags, refuse_rows

_JPG, _NIFTI = "hemorrhage_diagnosis.csv", "hemorrhage_diagnosis_raw_ct.csv"
_DEMOGRAPHICS = "patient_demographics.csv"  # patient, age in years, sex
_COLUMNS = {name.capitalize(): name for name in SUBTYPES}
SLICE_MM = 5.0  # slice thickness as published; the pictures carry no geometry of their own


class CTICHDataModule(SliceDataModule):
    """Version 1.0.0 (``Patients_CT/049/brain/1.jpg``) or 1.3.1 (``ct_scans/049.nii``); the latter where both lie.

    The pictures show the brain window; bone windows and segmentations beside them are not read. They have no
    positions: slice n is put at (n - 1) x 5 mm, the published slice thickness, slice 1 being the lowest. In the NIfTI
    layout slice n is the n-th plane of the array's slice axis, and its position comes from the affine. ``any`` is the
    opposite of ``No_Hemorrhage``. Where ``patient_demographics.csv`` (patient, age, sex) lies beside the labels, its
    columns are covariates. Arguments are those of :class:`hemlearn.datamodules.base.SliceDataModule`.

    Example:
        >>> CTICHDataModule(image_size=96, labels=["any"]).display_window
        (40.0, 120.0)
    """

    name = "ct_ich"
    layout = "ct_ich"
    default_labels = LABELS
    display_window = (40.0, 120.0)  # of the published pictures

    def read(self, root: Path) -> Manifest:
        """The manifest of either layout."""
        if (root / _NIFTI).is_file() and (root / "ct_scans").is_dir():
            return self._nifti(root)
        if (root / _JPG).is_file():
            return self._jpg(root)
        raise DataError(
            f"{root}: holds neither {_JPG} nor {_NIFTI} with ct_scans/",
            remedy=f"data.root must hold {_JPG} and Patients_CT/049/brain/1.jpg ..., "
            f"or {_NIFTI} and ct_scans/049.nii ...",
        )

    def _jpg(self, root: Path) -> Manifest:
        labels, notes = _labels(root / _JPG)
        folder = root / "Patients_CT"
        labels["path"] = [
            f"Patients_CT/{patient}/brain/{number}.jpg"
            for patient, number in zip(labels["patient_id"], labels["number"], strict=True)
        ]
        labels["frame"] = 0
        labels["z_mm"] = (labels["number"] - 1) * SLICE_MM
        labels["thickness_mm"] = SLICE_MM
        notes.append(f"the pictures have no positions: slices stand {SLICE_MM:g} mm apart, the published thickness")
        pictures = [path for path in folder.glob("*/*/*.jpg") if path.is_file()]
        masks = [path for path in pictures if path.stem.endswith("_HGE_Seg")]
        other = {path for path in pictures if path.parent.name != "brain"}
        if masks:
            notes.append(f"{count(len(masks), 'segmentation')} (*_HGE_Seg.jpg): not read")
        if other - set(masks):
            kinds = ", ".join(sorted({path.parent.name for path in other}))
            notes.append(f"{count(len(other - set(masks)), 'picture')} of other windows ({kinds}): not read")
        images = [path.relative_to(root).as_posix() for path in pictures if path not in other and path not in masks]
        present = labels["path"].isin(images)
        # Geometry describes what is there; rows without a picture are recorded by their missing file.
        geometry = self.arrange(labels[present])
        rows = _with_demographics(pd.concat([geometry.rows, labels[~present]], ignore_index=True), root)
        return self.build(rows, root, images=images, series=geometry.series, skipped=[geometry.skipped], notes=notes)

    def _nifti(self, root: Path) -> Manifest:
        labels, notes = _labels(root / _NIFTI)
        volumes = {
            path.name.split(".")[0]: path.relative_to(root).as_posix()
            for path in sorted((root / "ct_scans").glob("*.nii*"))
        }
        if not volumes:
            raise DataError(f"{root / 'ct_scans'}: no NIfTI file", remedy="it must hold 049.nii ...")
        if (root / "masks").is_dir():
            notes.append("segmentations (masks/) are not read")
        known = set(labels["patient_id"])
        used = [name for name in volumes if name in known]
        skipped = [(volumes[name], "image without label") for name in volumes if name not in used]
        headers, lost = self.headers([volumes[name] for name in used], root, nifti="CT")
        headers["patient_id"] = headers["path"].map({path: name for name, path in volumes.items()})
        headers = headers.assign(series_id=headers["patient_id"], study_id=headers["patient_id"], modality="CT")
        headers["number"] = headers["plane"] + 1
        arranged = self.arrange(headers)
        key = ["patient_id", "number"]
        rows = arranged.rows.merge(labels[[*key, "slice_id", *LABELS]], on=key, how="left")
        rows = _with_demographics(rows, root)
        open_ = rows["slice_id"].isna()
        skipped += [(f"{row.path}#{row.frame}", "image without label") for row in rows[open_].itertuples()]
        found = set(zip(headers["patient_id"], headers["number"], strict=True))
        missing = [pair not in found for pair in zip(labels["patient_id"], labels["number"], strict=True)]
        skipped += [
            (
                row.slice_id,
                f"label without image: ct_scans/{row.patient_id}.nii has no slice {row.number}"
                if row.patient_id in volumes
                else f"label without image: no ct_scans/{row.patient_id}.nii",
            )
            for row in labels[missing].itertuples()
        ]
        if open_.all():
            raise DataError(
                f"{root}: no slice of {count(len(used), 'volume')} has a label in {_NIFTI}",
                remedy="check that PatientNumber and SliceNumber belong to these volumes",
            )
        return self.build(
            rows[~open_], root, series=arranged.series, notes=notes, skipped=(lost, arranged.skipped, skipped)
        )


def _with_demographics(rows: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The rows with the age and sex of their patients, where the data set tells them."""
    file = root / _DEMOGRAPHICS
    if not file.is_file():
        return rows
    _, known = read_covariates(file, "patient")
    known.index = pd.Index([name.zfill(3) for name in known.index])
    return rows.assign(**{PREFIX + str(name): rows["patient_id"].map(known[name]) for name in known})


def _labels(file: Path) -> tuple[pd.DataFrame, list[str]]:
    """patient_id ("049"), series_id, slice_id ("049_01"), number and the six labels of a label file; and notes."""
    header = "give the label file as it comes from PhysioNet"
    columns = ("PatientNumber", "SliceNumber", "No_Hemorrhage", *_COLUMNS)
    table = label_table(file, columns, layout=header, header=header)
    for column in columns[:2]:
        refuse_rows(
            ~table[column].str.fullmatch(r"0*[1-9]\d*"),
            file,
            lambda row, column=column: f"{column}={table[column].iloc[row]!r} is no whole number above 0",  # type: ignore[misc]
            "correct the row",
        )
    flags = {column: read_flags(table, column, file) for column in columns[2:]}
    number = table["SliceNumber"].astype(int)
    patient = table["PatientNumber"].astype(int).astype(str).str.zfill(3)
    out = pd.DataFrame({"patient_id": patient, "study_id": patient, "series_id": patient, "number": number})
    out["slice_id"] = patient + "_" + number.astype(str).str.zfill(2)
    refuse_rows(
        out["slice_id"].duplicated(),
        file,
        lambda row: f"{out['slice_id'].iloc[row]} (patient, slice) has a row already",
        "give every slice one row",
    )
    out["modality"] = "CT"
    for column, label in _COLUMNS.items():
        out[label] = flags[column]
    out["any"] = 1.0 - flags["No_Hemorrhage"]
    return out, contradictions(out, out["slice_id"].tolist(), file.name)
