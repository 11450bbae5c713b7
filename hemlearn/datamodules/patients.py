"""Data sets laid out as one folder per patient beside one label table; and whose image a file is."""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from hemlearn.data.geometry import cut_band
from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import PICTURES
from hemlearn.data.rows import slice_ids
from hemlearn.data.sources import discover
from hemlearn.datamodules.base import SliceDataModule, skipped_table
from hemlearn.util.console import NOTED
from hemlearn.util.errors import ConfigError, DataError, count

# --- Whose image it is: signs that a rule for patients merges several people, or parts one.


logger = logging.getLogger(__name__)
NAME_RULE = r"(?P<patient>[^/]+)_[^/_]*$"  # data.patient_pattern of conf/data/six_class.yaml: nobody chose it
_RULE = "a file's name up to its last underscore names the patient"
_ON_PURPOSE = "data.patient_pattern='([^/]+)_[^/_]*$'"  # the same rule, chosen by the user
_REMEDY = (
    "set data.patient_pattern to a regular expression that finds the patient in the path, or name the patients "
    "in labels.csv (path,class,patient_id)"
)
_DICOM = "data.patient_pattern=null takes the PatientID (0010,0020) of DICOM files"


def check_name_rule(root: Path, owners: Mapping[str, str], no_patient: Callable[[str], bool]) -> None:
    """Refuse patients (by path) that names give wrongly: one for all images, or one of a name that cannot be his."""
    counts = pd.Series(list(owners.values()), dtype=object).value_counts()
    wrong = [name for name, number in counts.items() if number > 1 and (len(counts) == 1 or no_patient(str(name)))]
    if not wrong:
        return
    paths = [path for path, name in owners.items() if name == wrong[0]]
    share = "all" if len(counts) == 1 else f"{len(paths)} of"
    raise DataError(
        f"{root}: {share} {len(owners)} images would be of one patient, {wrong[0]!r}, for example "
        f"{paths[0]!r} and {paths[-1]!r}: {_RULE}",
        remedy=f"{_REMEDY}; {_DICOM}; if the names are right, {_ON_PURPOSE} says so",
    )


def repeated_numbers(owners: Mapping[str, str], classes: Mapping[str, str]) -> list[str]:
    """Notes on names whose numbering seems to begin anew in every class, also logged."""
    table = pd.DataFrame({"path": list(owners), "patient": list(owners.values())})
    table["word"] = table["path"].map(classes)
    table["name"] = table["path"].map(lambda path: PurePosixPath(path).name)
    number, found = table["word"].nunique(), table.groupby("patient", sort=False)["word"].nunique()
    if number > 1 and len(found) > 1 and (found == number).all():
        what, same = f"each of the {len(found)} patients has images of all {number} classes", table
    else:
        same = table[table.groupby("name")["word"].transform("nunique") > 1]
        if same.empty:
            return []
        what = f"{count(same['name'].nunique(), 'file name stands', 'file names stand')} in several classes"
    one = same[same["patient"] == same["patient"].iloc[0]].drop_duplicates("word")
    first, second = one["path"].iloc[0], one["path"].iloc[1]
    text = (
        f"{what}; {first!r} and {second!r} count as one patient, {one['patient'].iloc[0]!r}: {_RULE}. If the "
        f"numbers begin anew in every folder, patients are merged: {_REMEDY}"
    )
    logger.warning(text, extra=NOTED)
    return [text]


def merged_ids(headers: pd.DataFrame, owners: Mapping[str, str], root: Path, refuse: bool) -> list[str]:
    """Notes on patients whose DICOM files have several PatientIDs (0010,0020); with ``refuse`` an error."""
    known = headers[headers["patient_id"] != headers["study_id"]]  # else the file has none: its study stands for it
    pairs = pd.DataFrame({"path": known["path"], "id": known["patient_id"], "owner": known["path"].map(owners)})
    pairs = pairs.drop_duplicates(["owner", "id"])
    merged = pairs[pairs["owner"].duplicated(keep=False)]
    if merged.empty:
        return []
    one = merged[merged["owner"] == merged["owner"].iloc[0]]
    have = count(merged["owner"].nunique(), "patient has", "patients have")
    text = (
        f"{have} files of several PatientIDs (0010,0020); the first is "
        f"{one['owner'].iloc[0]!r} with {len(one)}, for example {one['id'].iloc[0]!r} in {one['path'].iloc[0]!r} "
        f"and {one['id'].iloc[1]!r} in {one['path'].iloc[1]!r}"
    )
    if refuse:
        raise DataError(
            f"{root}: {text}: {_RULE}", remedy=f"{_DICOM}; or {_REMEDY}; if the names are right, {_ON_PURPOSE} says so"
        )
    logger.warning(text, extra=NOTED)
    return [text]


def shared_ids(headers: pd.DataFrame, owners: Mapping[str, str]) -> list[str]:
    """Notes on PatientIDs (0010,0020) that several patients of the layout share, also logged: they may be one person.

    One id throughout, as some de-identification tools leave it, says nothing.
    """
    pairs = pd.DataFrame({"id": headers["patient_id"], "owner": headers["path"].map(owners)}).drop_duplicates()
    shared = pairs[pairs["id"].duplicated(keep=False)]
    if shared.empty or pairs["id"].nunique() < 2:
        return []
    name = shared["id"].iloc[0]
    who = ", ".join(map(repr, shared.loc[shared["id"] == name, "owner"].head(5)))
    text = (
        f"{shared['id'].nunique()} PatientIDs stand in the files of several patients; the first is {name!r}, of "
        f"{who}: if they are one person, name them alike, or training and test share a person"
    )
    logger.warning(text, extra=NOTED)
    return [text]


TABLE = "labels.csv"
LAYOUT = f"data.root must hold {TABLE} and one folder per patient"
OWN = (TABLE, "PHANTOM.txt", "phantom.csv")  # files of a layout that are no images and no news


@dataclass(frozen=True)
class Labels:
    """A label table.

    Args:
        table: One float column per label (0, 1, NaN), indexed by patient or, for labels of slices, by path.
        patients: For labels of slices the patient of each path; None: the labels describe patients.
        notes: What a reader should know, one sentence each.
    """

    table: pd.DataFrame
    patients: pd.Series[str] | None = None
    notes: tuple[str, ...] = ()


class PatientFolders(SliceDataModule):
    """``ROOT/labels.csv`` and ``ROOT/<patient>/...``, any depth below, DICOM, NIfTI or pictures.

    The patient of an image is what ``patient_pattern`` finds in its path, else the folder just below ``ROOT``; a file
    that lies in ``ROOT`` itself stands for a patient of its own name up to the first dot. A subclass says in
    :meth:`read_labels` what the labels are.

    Args:
        root: Folder of the data set; None: a synthetic phantom.
        patient_pattern: Regular expression with a group ``patient`` (or one group) that is searched for in the path.
        **options: Those of :class:`hemlearn.datamodules.base.SliceDataModule`.

    Example:
        >>> from hemlearn.datamodules import HydrocephalusMRIDataModule
        >>> HydrocephalusMRIDataModule("DIR", band=[0.4, 0.7]).band
        (0.4, 0.7)
    """

    def __init__(self, root: str | Path | None = None, *, patient_pattern: str | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        self.patient_pattern = patient_pattern

    @abstractmethod
    def read_labels(self, file: Path) -> Labels:
        """The label table of a file."""

    def unfit(self, headers: pd.DataFrame) -> dict[str, str]:
        """Series that this data set cannot use, by id, with the reason; none by default."""
        del headers
        return {}

    def read(self, root: Path) -> Manifest:
        """The manifest; refused without a label table, an image of a labelled patient, or one that is usable."""
        file = root / TABLE
        labels = self.read_labels(file)
        images, skipped = find_images(root)
        by_path = labels.patients is not None
        if labels.patients is None:
            owners, nobody = owners_of(root, images, self.patient_pattern)
            skipped += nobody
            keys, what = owners, "no row of patient"
        else:
            owners, what = labels.patients.to_dict(), "no row of path"
            keys = {path: path for path in images}
        known = [path for path in images if keys.get(path) in labels.table.index]
        skipped += [
            (path, f"image without label: {what} {keys[path]!r} in {TABLE}")
            for path in images
            if path in keys and keys[path] not in labels.table.index
        ]
        absent = labels.table.index.difference([keys[path] for path in known], sort=False)
        if not known:
            raise DataError(
                _no_match(file, labels, images, keys),
                remedy="name the folders as the rows of the table, or set data.patient_pattern to a "
                "regular expression that finds the patient in the path",
            )
        skipped += [(str(name), "label without image: no file of this name or patient") for name in absent]
        rows, lost, notes = self._slices(root, known, owners)
        geometry = self.arrange(rows)
        kept, outside = cut_band(geometry.rows, self.band)
        kept["slice_id"] = slice_ids(kept)
        if by_path and (kept["frame"] > 0).any():
            name = kept.loc[kept["frame"] > 0, "path"].iloc[0]
            raise DataError(
                f"{file}: path {name!r} is a file of several slices and has one label",
                remedy="label its patient instead: leave the column path out",
            )
        return self.build(
            kept.join(labels.table, on="path" if by_path else "patient_id"),
            root,
            skipped=(skipped, lost, geometry.skipped, outside),
            series=geometry.series,
            label_level="slice" if by_path else "series",
            notes=[*labels.notes, *notes, *_missing_geometry(geometry.series)],
        )

    def _slices(
        self, root: Path, known: Sequence[str], owners: dict[str, str]
    ) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
        """Rows of every slice with ids and geometry; (item, reason) of what cannot be used; notes."""
        pictures = [path for path in known if path.lower().endswith(PICTURES)]
        others = [path for path in known if path not in set(pictures)]
        parts, lost, notes = [], [], []
        if others:
            headers, unread = self.headers(others, root, nifti=self.modality)
            notes = shared_ids(headers, owners)
            headers, wrong = self.of_modality(headers)
            unfit = self.unfit(headers)
            bad = headers["series_id"].isin(list(unfit))
            names = headers["series_id"].map(lambda name: f"series {name!r}")
            names += headers["path"].map(lambda path: f" of patient {owners[path]!r}")
            reasons = headers.loc[bad, "series_id"].map(unfit)
            for row in headers[bad].assign(name=names[bad]).drop_duplicates("series_id").to_dict("records"):
                logger.warning("%s (%s ...) is left out: %s", row["name"], row["path"], unfit[row["series_id"]])
            lost = [unread, wrong, _lost(headers[bad], reasons + " in " + names[bad])]
            parts.append(headers[~bad])
        if pictures:
            folders = [f"{owners[path]}:{PurePosixPath(path).parent}" for path in pictures]
            ids = {"path": pictures, "series_id": folders, "study_id": folders}
            parts.append(pd.DataFrame(ids | {"frame": 0, "modality": self.modality}))
        rows = pd.concat(parts, ignore_index=True)
        rows["patient_id"] = rows["path"].map(owners)
        return rows, skipped_table(*lost), notes


def find_images(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """DICOM, NIfTI and picture files below a folder, and (item, reason) of the other files."""
    found = discover(root)
    known = {*OWN, *found.pictures}
    return sorted([*found.files, *found.pictures]), [pair for pair in found.skipped if pair[0] not in known]


def patient_finder(pattern: str | None) -> Callable[[str], str]:
    """The function from a path, relative and with forward slashes, to its patient; "" where the pattern finds none."""
    if pattern is None:
        return lambda path: path.split("/")[0] if "/" in path else path.split(".")[0]
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"data.patient_pattern={pattern!r}: no regular expression ({error})", remedy="e.g. (?P<patient>P[0-9]+)"
        ) from error
    if compiled.groups < 1:
        raise ConfigError(
            f"data.patient_pattern={pattern!r}: it has no group, so nothing says what the patient is",
            remedy="put round brackets around the patient: (?P<patient>P[0-9]+)",
        )
    group = "patient" if "patient" in compiled.groupindex else 1

    def find(path: str) -> str:
        match = compiled.search(path)
        return "" if match is None else match.group(group) or ""

    return find


def owners_of(root: Path, images: Sequence[str], pattern: str | None) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Path -> patient, and (item, reason) of images whose path names none; refused where the pattern fits no image."""
    find = patient_finder(pattern)
    found = {path: find(path) for path in images}
    nobody = [path for path, name in found.items() if not name]
    if images and len(nobody) == len(images):
        raise DataError(
            f"{root}: data.patient_pattern={pattern!r} fits none of {count(len(images), 'image')}, "
            f"for example {images[0]!r}",
            remedy="change the expression so that its group names the patient in such a path",
        )
    reason = f"no patient: data.patient_pattern={pattern!r} does not fit the path"
    return {path: name for path, name in found.items() if name}, [(path, reason) for path in nobody]


def _no_match(file: Path, labels: Labels, images: Sequence[str], keys: dict[str, str]) -> str:
    if not images:
        return f"{file.parent}: no DICOM, NIfTI or picture file"
    path, first = images[0], labels.table.index[0]
    whose = "" if labels.patients is not None else f" is of patient {keys.get(path)!r}"
    return (
        f"{file.parent}: none of {count(len(images), 'image')} belongs to a row of {TABLE}: the image {path!r}{whose}, "
        f"the first row is {first!r}"
    )


def _lost(rows: pd.DataFrame, reasons: pd.Series[str]) -> pd.DataFrame:
    return pd.DataFrame({"item": rows["path"], "reason": reasons}, dtype=object).drop_duplicates()


def _missing_geometry(series: pd.DataFrame) -> list[str]:
    """Notes on series whose files tell no pixel spacing or no positions."""
    notes = []
    for lacks, what in (
        (series["pixel_mm"].isna(), "no pixel spacing (0028,0030): lengths in mm are not known"),
        (
            series["missing_position"] > 0,
            "no positions (0020,0032): slices stand in the order of their "
            "numbers or names, and data.band counts slices",
        ),
    ):
        if lacks.any():
            notes.append(
                f"{int(lacks.sum())} of {len(series)} series have {what}; "
                f"the first is {series.loc[lacks, 'series_id'].iloc[0]!r}"
            )
    return notes
