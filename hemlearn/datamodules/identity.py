"""Whose image it is: signs that a rule for patients merges several people, or parts one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import pandas as pd

from hemlearn.errors import DataError

LOGGER = logging.getLogger(__name__)
NAME_RULE = r"(?P<patient>[^/]+)_[^/_]*$"  # data.patient_pattern of conf/data/six_class.yaml: nobody chose it
_RULE = "a file's name up to its last underscore names the patient"
_ON_PURPOSE = "data.patient_pattern='([^/]+)_[^/_]*$'"  # the same rule, chosen by the user
_REMEDY = (
    "set data.patient_pattern to a regular expression that finds the patient in the path, or name the patients "
    "in labels.csv (path,class,patient_id)"
)
_DICOM = "data.patient_pattern=null takes the PatientID (0010,0020) of DICOM files"


def check_name_rule(root: Path, owners: Mapping[str, str], no_patient: Callable[[str], bool]) -> None:
    """Refuse names that the rule of file names plainly takes for patients wrongly.

    Args:
        root: Folder of the data set.
        owners: Path -> patient by :data:`NAME_RULE`.
        no_patient: Whether a name cannot be a patient's, for example because it is that of a class.

    Raises:
        DataError: All of several images are of one patient, or a patient of several images has such a name.
    """
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
    """Notes on names that look as if their numbering began anew in every class, also logged.

    Args:
        owners: Path -> patient by :data:`NAME_RULE`.
        classes: Path -> class.
    """
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
        what = f"{same['name'].nunique()} file names stand in several classes"
    one = same[same["patient"] == same["patient"].iloc[0]].drop_duplicates("word")
    first, second = one["path"].iloc[0], one["path"].iloc[1]
    text = (
        f"{what}; {first!r} and {second!r} count as one patient, {one['patient'].iloc[0]!r}: {_RULE}. If the "
        f"numbers begin anew in every folder, patients are merged: {_REMEDY}"
    )
    LOGGER.warning(text)
    return [text]


def merged_ids(headers: pd.DataFrame, owners: Mapping[str, str], root: Path, refuse: bool) -> list[str]:
    """Notes on patients whose DICOM files have several PatientIDs (0010,0020), also logged.

    Args:
        headers: Columns path, patient_id and study_id, of files with a patient (``series.usable_headers``).
        owners: Path -> patient.
        root: Folder of the data set.
        refuse: Whether that is an error, since nobody chose how names tell patients.

    Raises:
        DataError: There is such a patient and ``refuse``.
    """
    told = headers[headers["patient_id"] != headers["study_id"]]  # else the file has none, and its study stands for it
    pairs = pd.DataFrame({"path": told["path"], "id": told["patient_id"], "owner": told["path"].map(owners)})
    pairs = pairs.drop_duplicates(["owner", "id"])
    merged = pairs[pairs["owner"].duplicated(keep=False)]
    if merged.empty:
        return []
    one = merged[merged["owner"] == merged["owner"].iloc[0]]
    text = (
        f"{merged['owner'].nunique()} patients have files of several PatientIDs (0010,0020); the first is "
        f"{one['owner'].iloc[0]!r} with {len(one)}, for example {one['id'].iloc[0]!r} in {one['path'].iloc[0]!r} "
        f"and {one['id'].iloc[1]!r} in {one['path'].iloc[1]!r}"
    )
    if refuse:
        raise DataError(
            f"{root}: {text}: {_RULE}", remedy=f"{_DICOM}; or {_REMEDY}; if the names are right, {_ON_PURPOSE} says so"
        )
    LOGGER.warning(text)
    return [text]


def shared_ids(headers: pd.DataFrame, owners: Mapping[str, str]) -> list[str]:
    """Notes on PatientIDs (0010,0020) that several patients of the layout share, also logged: they may be one person.

    One id throughout, as some de-identification tools leave it, tells nothing and is not remarked.
    """
    pairs = pd.DataFrame({"id": headers["patient_id"], "owner": headers["path"].map(owners)}).drop_duplicates()
    if pairs["id"].nunique() < 2:
        return []
    shared = pairs[pairs["id"].duplicated(keep=False)]
    if shared.empty:
        return []
    name = shared["id"].iloc[0]
    who = ", ".join(map(repr, shared.loc[shared["id"] == name, "owner"].head(5)))
    text = (
        f"{shared['id'].nunique()} PatientIDs stand in the files of several patients; the first is {name!r}, of "
        f"{who}: if they are one person, name them alike, or training and test share a person"
    )
    LOGGER.warning(text)
    return [text]
