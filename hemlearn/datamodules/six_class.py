"""Single slices of head CT in six exclusive classes (the task of Zhou 2022, 10.2174/1381612827666211213143357)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn.data.covariates import PREFIX
from hemlearn.data.manifest import Manifest
from hemlearn.data.readers import PICTURES
from hemlearn.data.rows import is_nifti, slice_ids
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.datamodules.patients import (
    NAME_RULE,
    TABLE,
    check_name_rule,
    find_images,
    merged_ids,
    owners_of,
    repeated_numbers,
    shared_ids,
)
from hemlearn.datamodules.rsna import SUBTYPES
from hemlearn.util.errors import DataError, count, hint
from hemlearn.util.tables import label_table, one_row_each, refuse_rows

CLASSES = ("normal", "epidural", "subdural", "intraventricular", "intraparenchymal", "subarachnoid")
assert set(CLASSES) == {"normal", *SUBTYPES}
_WORDS = {name: name for name in CLASSES} | {
    "edh": "epidural",
    "sdh": "subdural",
    "ivh": "intraventricular",
    "ventricular": "intraventricular",
    "iph": "intraparenchymal",
    "parenchymal": "intraparenchymal",
    "intracerebral": "intraparenchymal",
    "sah": "subarachnoid",
}


class SixClassDataModule(SliceDataModule):
    """One folder per class, or a table.

    ::

        ROOT/normal/P001_01.png ...              PNG, JPG or DICOM (.dcm), one slice per file
        ROOT/epidural/P002_01.png ...            likewise subdural, intraventricular, intraparenchymal, subarachnoid

    or, where ``ROOT/labels.csv`` exists, files anywhere below ``ROOT`` and in the table ``path,class``, with an
    optional column ``patient_id``. Class names may be in capitals, and short (EDH, SDH, IVH, IPH, SAH).

    The patient is the column ``patient_id``, else what ``patient_pattern`` finds in the path: by default the
    file's name up to its last underscore. Images of one patient may be of several classes; one image in two classes is
    an error. Images whose path names no patient are skipped with that reason: nothing could keep them on one side of
    the split. With ``patient_pattern=None`` DICOM files go by their PatientID (0010,0020).

    The default pattern is a guess, so names that contradict it are refused: all images of one patient, a patient with
    the name of a class, DICOM files of several PatientIDs in one patient. Numbers that seem to begin anew in every
    class folder are noted.

    Args:
        root: Folder of the data set; None: a synthetic phantom.
        patient_pattern: Regular expression with a group ``patient`` that is searched for in the path; None: PatientID.
        **options: Those of :class:`hemlearn.datamodules.base.SliceDataModule`.

    Example:
        >>> SixClassDataModule(patient_pattern=r"(P[0-9]+)_").default_labels[:2]
        ('normal', 'epidural')
    """

    name = "six_class"
    layout = "six_class"
    default_labels = CLASSES
    default_kind = "multiclass"

    def __init__(
        self, root: str | Path | None = None, *, patient_pattern: str | None = NAME_RULE, **options: Any
    ) -> None:
        super().__init__(root, **options)
        self.patient_pattern = patient_pattern

    def read(self, root: Path) -> Manifest:
        """The manifest; refused for a class that is none, an image in two classes, or patients that names merge."""
        images, skipped = find_images(root)
        if not images:
            raise DataError(f"{root}: no image", remedy=f"it must hold the folders {', '.join(CLASSES)}, or {TABLE}")
        owners: dict[str, str] | None = None
        guessed = False
        if (root / TABLE).is_file():
            classes, owners, stray, notes = _from_table(root / TABLE)
            skipped += [(path, "image without label") for path in images if path not in classes]
            skipped += stray
        else:
            classes, notes = _from_folders(root, images), []
        if owners is not None:
            skipped += [(path, f"no patient: patient_id is empty in {TABLE}") for path in classes if path not in owners]
            classes = {path: classes[path] for path in owners}
        elif self.patient_pattern is not None:
            owners, nobody = owners_of(root, list(classes), self.patient_pattern)
            skipped += nobody
            guessed = self.patient_pattern == NAME_RULE
            if guessed:
                check_name_rule(root, owners, lambda name: class_of(name) is not None)
                notes += repeated_numbers(owners, classes)
        rows, lost, more = self._rows(root, list(classes), owners, guessed)
        rows = rows[rows["patient_id"].notna()].reset_index(drop=True)
        for name in CLASSES:
            rows[name] = (rows["path"].map(classes) == name).astype(float)
        manifest = self.build(rows, root, skipped=(skipped, *lost), notes=[*notes, *more])
        _refuse_two_classes(manifest, classes)
        return manifest

    def _rows(
        self, root: Path, paths: list[str], owners: dict[str, str] | None, guessed: bool
    ) -> tuple[pd.DataFrame, list[pd.DataFrame], list[str]]:
        """One row per image, its patient null where none is known; (item, reason) of what cannot be used; notes."""
        table = pd.DataFrame({"path": paths}, dtype=object)
        table["patient_id"] = table["path"].map(owners or {})
        volumes = is_nifti(table["path"])
        if volumes.any():
            name = table.loc[volumes, "path"].iloc[0]
            raise DataError(
                f"{root / name}: a volume, but each image of six_class is one slice",
                remedy="export its slices, or use data=table with a column frame",
            )
        pictures = table["path"].str.lower().str.endswith(PICTURES)
        orphans = table.loc[pictures & table["patient_id"].isna(), "path"]
        if owners is None and len(orphans):
            raise DataError(
                f"{root}: nothing says whose image {orphans.iloc[0]!r} is ({len(orphans)} such images)",
                remedy="set data.patient_pattern, or give the table a column patient_id",
            )
        parts, lost, notes = [table[pictures].assign(frame=0)], [], []
        if not pictures.all():
            headers, unread = self.headers(table.loc[~pictures, "path"].tolist(), root)
            headers, wrong = self.of_modality(headers)
            lost = [unread, wrong]
            if owners is not None:
                own = headers["path"].map(owners)
                notes = [*merged_ids(headers[own.notna()], owners, root, guessed)]
                notes += shared_ids(headers[own.notna()], owners)
                headers["patient_id"] = own
            kept = ["path", "patient_id", "frame", "z_mm", *(name for name in headers if name.startswith(PREFIX))]
            parts.append(headers[kept])
        out = pd.concat(parts, ignore_index=True)
        out["slice_id"] = slice_ids(out)
        return out, lost, notes


def class_of(word: str) -> str | None:
    """The class a folder or table calls so, or None."""
    return _WORDS.get(word.strip().lower().replace(" ", "").replace("-", "").removesuffix("hemorrhage"))


def _from_folders(root: Path, images: list[str]) -> dict[str, str]:
    """Path -> class by the first folder; refused where that is no class."""
    folders = dict.fromkeys(path.split("/")[0] if "/" in path else "" for path in images)
    remedy = f"class folders are {', '.join(CLASSES)}; other images must not lie below data.root"
    for folder in folders:
        if folder == "":
            name = next(path for path in images if "/" not in path)
            raise DataError(f"{root / name}: an image outside the class folders", remedy=remedy)
        if class_of(folder) is None:
            number = sum(path.startswith(f"{folder}/") for path in images)
            raise DataError(
                f"{root / folder}: no class{hint(folder.lower(), CLASSES)} ({count(number, 'image')})", remedy=remedy
            )
    return {path: str(class_of(path.split("/")[0])) for path in images}


def _from_table(file: Path) -> tuple[dict[str, str], dict[str, str] | None, list[tuple[str, str]], list[str]]:
    """Path -> class; path -> patient (None: no such column); (item, reason) of rows without a file; notes."""
    table = label_table(file, ("path", "class"), layout="", header="the header is path,class or path,class,patient_id")
    words = table["class"].map(class_of)

    def problem(row: int) -> str:
        given = table["class"].iloc[row]
        return f"class={given!r} is no class{hint(given.lower(), CLASSES)}"

    refuse_rows(words.isna(), file, problem, f"classes are {', '.join(CLASSES)}")
    paths = table["path"].str.replace("\\", "/", regex=False)
    notes = one_row_each(paths, words, file, "path", "class")
    owners: dict[str, str] | None = None
    if "patient_id" in table:
        if (table["patient_id"] == "").all():
            raise DataError(
                f"{file}: patient_id is empty in all {count(len(table), 'row')}",
                remedy="name the patients, or remove the column to go by data.patient_pattern",
            )
        one_row_each(paths, table["patient_id"], file, "path", "patient_id")
        owners = {path: name for path, name in zip(paths, table["patient_id"], strict=True) if name}
    there = paths.map(lambda path: (file.parent / path).is_file())
    if not there.any():
        raise DataError(
            f"{file}: none of its {count(len(paths), 'file')} exists, for example {paths.iloc[0]!r}",
            remedy="paths are relative to the folder of the table",
        )
    stray = [(path, "label without image: no such file") for path in dict.fromkeys(paths[~there])]
    known = dict(zip(paths[there], words[there], strict=True))
    there_too = None if owners is None else {path: owners[path] for path in known if path in owners}
    return known, there_too, stray, notes


def _refuse_two_classes(manifest: Manifest, classes: dict[str, str]) -> None:
    """Refuse equal files with different classes."""
    table = manifest.table.assign(word=manifest.table["path"].map(classes))
    several = table.groupby("content")["word"].transform("nunique") > 1
    if several.any():
        same = table[table["content"] == table.loc[several, "content"].iloc[0]].drop_duplicates("word")
        shown = " and ".join(f"{path!r} ({word})" for path, word in zip(same["path"], same["word"], strict=True))
        raise DataError(
            f"{manifest.root}: one image in two classes: {shown} are the same file "
            f"({table.loc[several, 'content'].nunique()} such images)",
            remedy="keep it in the class it belongs to",
        )
