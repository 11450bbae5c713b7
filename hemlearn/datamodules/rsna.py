"""RSNA 2019 Intracranial Hemorrhage Detection (Kaggle, stage 2): one DICOM file per slice, six labels per slice.

Flanders AE et al. Construction of a machine learning dataset through collaboration: the RSNA 2019 brain CT
hemorrhage challenge. Radiol Artif Intell 2020;2:e190211.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from csv import Error as CSVError
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.config.schema import GeometryConfig
from hemlearn.data.geometry import arrange
from hemlearn.data.manifest import Manifest
from hemlearn.datamodules.base import SliceDataModule, skipped_table
from hemlearn.util.console import NOTED
from hemlearn.util.errors import DataError, count
from hemlearn.util.tables import delimiter_of, encoding_of, read_text, refuse_rows, row_number

# --- The six labels that RSNA 2019, CT-ICH and CQ500 share, and the check that they do not contradict each other.


logger = logging.getLogger(__name__)
SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
LABELS = (*SUBTYPES, "any")  # the order of RSNA's columns and of conf/task/subtypes.yaml


def contradictions(table: pd.DataFrame, ids: Sequence[str], place: str) -> list[str]:
    """A note for each way in which ``any`` contradicts the subtypes of rows ``ids``, also logged."""
    subtypes, any_ = table[list(SUBTYPES)].to_numpy(dtype=np.float32), table["any"].to_numpy(dtype=np.float32)
    positive, negative = (subtypes == 1).any(axis=1), (subtypes == 0).all(axis=1)
    notes = []
    for wrong, what in (
        ((any_ == 0) & positive, "no hemorrhage (any = 0) beside a subtype"),
        ((any_ == 1) & negative, "a hemorrhage (any = 1) without a subtype"),
    ):
        if wrong.any():
            first = ids[int(wrong.argmax())]
            notes.append(
                f"{place}: {int(wrong.sum())} of {count(len(table), 'row')} state {what}; the first is {first}; "
                "they are used as given"
            )
            logger.warning(notes[-1], extra=NOTED)
    return notes


_TABLE, _TRAIN, _TEST = "stage_2_train.csv", "stage_2_train", "stage_2_test"
_HEAD_BYTES = 4096  # of the line that names the columns
_KAGGLE = "rsna-intracranial-hemorrhage-detection"  # the folder that Kaggle's archive unpacks to


class RSNADataModule(SliceDataModule):
    """``ROOT/stage_2_train.csv`` (``ID_<image>_<label>,Label``), ``stage_2_train/*.dcm`` and ``stage_2_test/*.dcm``.

    The train folder is the data set; :meth:`test_manifest` is the test folder, whose labels are not public. Patient,
    study and series come from the DICOM headers. The files may also lie one level deeper, in the folder that Kaggle's
    archive unpacks to. Arguments are those of :class:`hemlearn.datamodules.base.SliceDataModule`.

    Example:
        >>> RSNADataModule(image_size=96, sampler="balanced").default_labels[-1]
        'any'
    """

    name = "rsna"
    layout = "rsna"
    default_labels = LABELS

    def read(self, root: Path) -> Manifest:
        """The manifest of the train folder."""
        base = _base(root)
        file = base / _TABLE
        if not file.is_file():
            raise DataError(
                f"{file}: no such file", remedy=f"data.root must hold {_TABLE}, {_TRAIN}/*.dcm and {_TEST}/*.dcm"
            )
        labels, notes = read_labels(file)
        notes += contradictions(labels, labels.index.tolist(), _TABLE)
        images = _files(base / _TRAIN)
        present = labels.index.isin(images)
        absent = [(item, f"label without image: {_TRAIN}/{item}.dcm does not exist") for item in labels.index[~present]]
        stray = [(f"{_TRAIN}/{item}.dcm", "image without label") for item in sorted(set(images) - set(labels.index))]
        if not present.any():
            raise DataError(
                f"{base / _TRAIN}: holds none of the {count(len(labels), 'image')} that {_TABLE} names "
                f"({count(len(images), '.dcm file')}; first label {labels.index[0]!r})",
                remedy=f"unpack the images to {_TRAIN}/",
            )
        rows, series, lost = self._slices(root, base / _TRAIN, labels.index[present].tolist())
        return self.build(
            rows.join(labels, on="slice_id"),
            root,
            series=series,
            skipped=(absent, stray, lost),
            notes=notes,
            synthetic=_synthetic(root, base),
        )

    @property
    def folder(self) -> Path:
        """``data.root``, or the challenge's own folder inside it."""
        return _base(self.root)

    @cached_property
    def test_slices(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Rows of the test folder in order, series and skipped items, by the headers alone."""
        base = _base(self.root)
        images = _files(base / _TEST)
        if not images:
            raise DataError(f"{base / _TEST}: no .dcm file", remedy=f"unpack the test images to {_TEST}/")
        return self._slices(self.root, base / _TEST, sorted(images), everything=True)

    def test_manifest(self) -> Manifest:
        """The test folder: every slice that can be read, all labels unknown.

        Whatever ``geometry`` and ``band`` say, no slice is left out for its place, since a submission needs them all.
        """
        base = _base(self.root)
        rows, series, lost = self.test_slices
        rows = rows.assign(**dict.fromkeys(LABELS, np.nan))
        synthetic = _synthetic(self.root, base)
        return self.build(rows, self.root, series=series, skipped=[lost], synthetic=synthetic, cut=False)

    def _slices(
        self, root: Path, folder: Path, images: list[str], everything: bool = False
    ) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Rows in order, series and skipped items of some images of a folder."""
        place = folder.relative_to(root).as_posix()
        headers, lost = self.headers([f"{place}/{item}.dcm" for item in images], root)
        everything_kept = GeometryConfig(duplicates="keep", gaps="keep", tilt="keep", min_slices=1)
        geometry = arrange(headers, everything_kept) if everything else self.arrange(headers)
        rows = geometry.rows
        # The label file names slices as their files.
        rows["slice_id"] = rows["path"].str.rsplit("/", n=1).str[-1].str.removesuffix(".dcm")
        return rows, geometry.series, skipped_table(lost, geometry.skipped)


def read_labels(file: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the long label file: ``ID_<image>_<label>,Label``, six rows per image.

    The original repeats 24 rows (four images); repeated rows count once when they agree. Columns stay in Arrow's memory
    throughout: 4.5 million rows take seconds and a few hundred MB.

    Returns:
        (images, six labels) as float32, indexed by ``ID_<image>`` in order of appearance, NaN where a row is missing
        or empty; and notes on repeated and missing rows.

    Raises:
        DataError: No such columns, a malformed ID, a label other than 0, 1 and empty, or repeated rows that disagree.
    """
    names, cells, values = _cells(file)
    flat = np.full(len(names) * len(LABELS), np.nan, dtype=np.float32)
    flat[cells[::-1]] = values[::-1]  # the first of repeated rows stays
    differs = ~((flat[cells] == values) | (np.isnan(flat[cells]) & np.isnan(values)))
    if differs.any():
        row = int(differs.argmax())
        image, label = divmod(int(cells[row]), len(LABELS))
        raise DataError(
            f"{file}, row {row_number(file, row)}: {names[image]}_{LABELS[label]} is {values[row]:g} here and "
            f"{flat[cells[row]]:g} in an earlier row ({count(int(differs.sum()), 'such row')})",
            remedy="decide for one label per image and remove the other row",
        )
    seen = np.bincount(cells, minlength=len(flat)).reshape(-1, len(LABELS))
    notes = []
    if (seen > 1).any():
        again, images = int((seen - 1).clip(0).sum()), int((seen > 1).any(axis=1).sum())
        agree = "agrees and counts" if again == 1 else "agree and count"
        notes.append(f"{file.name}: {count(again, 'repeated row')} ({count(images, 'image')}) {agree} once")
    if (seen == 0).any():
        image, label = np.argwhere(seen == 0)[0]
        notes.append(
            f"{file.name}: {int((seen == 0).sum())} of {len(flat)} labels are missing, the first is "
            f"{names[image]}_{LABELS[label]}: taken as unknown"
        )
        logger.warning(notes[-1], extra=NOTED)
    return pd.DataFrame(flat.reshape(seen.shape), index=pd.Index(names, dtype=object), columns=list(LABELS)), notes


def _cells(file: Path) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
    """Images in order of appearance; of every row its cell (image x 6 + label) and value."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    text = pa.string()
    convert = csv.ConvertOptions(column_types={"ID": text, "Label": text})
    remedy = "give the file as it comes: UTF-8, header ID,Label, commas"
    try:
        with file.open("rb") as stream:
            head = stream.readline(_HEAD_BYTES)
        if encoding_of(head) != "utf-8-sig":  # written by a spreadsheet; rare, so memory is no concern
            text_of_file = read_text(file)
            head, source = text_of_file.split("\n", 1)[0].encode(), io.BytesIO(text_of_file.encode())
        else:
            source = file  # type: ignore[assignment]
        parse = csv.ParseOptions(delimiter=delimiter_of(head.decode("utf-8-sig").strip()))
        read = csv.ReadOptions(use_threads=False, block_size=4 << 20)
        table = csv.read_csv(source, read, parse, convert_options=convert)
        names = table.column_names
    except (OSError, pa.ArrowException, UnicodeDecodeError, CSVError) as error:
        raise DataError(f"{file}: cannot be read as a table: {error}", remedy=remedy) from error
    if len(set(names)) < len(names):
        raise DataError(f"{file}: the header names a column twice: {', '.join(names)}", remedy=remedy)
    for column in ("ID", "Label"):
        if column not in names:
            found = ", ".join(names)
            raise DataError(
                f"{file}: no column {column!r} (found: {found})", remedy="the header of this file is ID,Label"
            )
    if not len(table):
        raise DataError(f"{file}: a header but no rows", remedy="give the complete label file")
    ids, given = (pc.utf8_trim_whitespace(table[name]) for name in ("ID", "Label"))
    parts = pc.extract_regex(ids, rf"^(?P<image>ID_[0-9A-Za-z]+)_(?P<label>{'|'.join(LABELS)})$")
    bad = pd.Series(np.asarray(pc.is_null(parts)))
    problem: Callable[[int], str] = lambda row: f"ID={ids[row].as_py()!r} is not ID_<image>_<label>"  # noqa: E731
    refuse_rows(bad, file, problem, f"labels are {', '.join(LABELS)}")
    bad = pd.Series(~np.asarray(pc.is_in(given, pa.array(["0", "1", "0.0", "1.0", ""], text))))
    problem = lambda row: f"Label={given[row].as_py()!r} of {ids[row].as_py()!r}"  # noqa: E731
    refuse_rows(bad, file, problem, "labels are 0, 1 or empty (unknown)")
    values = np.select([np.asarray(pc.starts_with(given, sign)) for sign in ("0", "1")], [0.0, 1.0], np.nan)
    labels = np.asarray(pc.index_in(pc.struct_field(parts, "label"), pa.array(list(LABELS), text)))
    images = pc.struct_field(parts, "image").combine_chunks().dictionary_encode()
    cells = images.indices.to_numpy().astype(np.int64) * len(LABELS) + labels
    return images.dictionary.to_pylist(), cells, values.astype(np.float32)


def _base(root: Path) -> Path:
    inner = root / _KAGGLE
    here = any((root / name).exists() for name in (_TABLE, _TRAIN, _TEST))
    return inner if inner.is_dir() and not here else root


def _files(folder: Path) -> dict[str, None]:
    """Names of the .dcm files of a folder, without the ending."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name[:-4]: None for entry in entries if entry.name.endswith(".dcm")}


def _synthetic(*places: Path) -> bool:
    return any((place / "PHANTOM.txt").is_file() for place in places)
