"""RSNA 2019 Intracranial Hemorrhage Detection (Kaggle, stage 2): one DICOM file per slice, six labels per slice.

Flanders AE et al. Construction of a machine learning dataset through collaboration: the RSNA 2019 brain CT
hemorrhage challenge. Radiol Artif Intell 2020;2:e190211.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.data.geometry import arrange
from hemlearn.data.manifest import Manifest
from hemlearn.datamodules.base import SliceDataModule, skipped_table
from hemlearn.evaluation.predictions import label_names, prob_array
from hemlearn.util.errors import DataError, RunError, count
from hemlearn.util.files import write_text, writing
from hemlearn.util.tables import refuse_rows

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
            logger.warning(notes[-1])
    return notes


_TABLE, _TRAIN, _TEST = "stage_2_train.csv", "stage_2_train", "stage_2_test"
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

    def test_manifest(self) -> Manifest:
        """The test folder: every slice that can be read, all labels unknown.

        Whatever ``geometry`` says, no slice is left out for its position, since a submission needs them all.
        """
        base = _base(self.root)
        images = _files(base / _TEST)
        if not images:
            raise DataError(f"{base / _TEST}: no .dcm file", remedy=f"unpack the test images to {_TEST}/")
        rows, series, lost = self._slices(self.root, base / _TEST, sorted(images), everything=True)
        rows[list(LABELS)] = np.nan
        return self.build(rows, self.root, series=series, skipped=[lost], synthetic=_synthetic(self.root, base))

    def _slices(
        self, root: Path, folder: Path, images: list[str], everything: bool = False
    ) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Rows in order, series and skipped items of some images of a folder."""
        place = folder.relative_to(root).as_posix()
        headers, lost = self.headers([f"{place}/{item}.dcm" for item in images], root)
        cfg = self.geometry
        if everything:
            cfg = type(cfg)(duplicates="keep", gaps="keep", tilt="keep", min_slices=1)
        geometry = arrange(headers, cfg)
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
            f"{file}, row {row + 2}: {names[image]}_{LABELS[label]} is {values[row]:g} here and {flat[cells[row]]:g} "
            f"in an earlier row ({count(int(differs.sum()), 'such row')})",
            remedy="decide for one label per image and remove the other row",
        )
    seen = np.bincount(cells, minlength=len(flat)).reshape(-1, len(LABELS))
    notes = []
    if (seen > 1).any():
        again, images = int((seen - 1).clip(0).sum()), int((seen > 1).any(axis=1).sum())
        agree = "agrees and counts" if again == 1 else "agree and count"
        notes.append(f"{file.name}: {count(again, 'repeated row')} ({count(images, 'image')}) {agree} once")
    if (seen == 0).any():
        notes.append(f"{file.name}: {int((seen == 0).sum())} of {len(flat)} labels are missing: taken as unknown")
        logger.warning(notes[-1])
    return pd.DataFrame(flat.reshape(seen.shape), index=pd.Index(names, dtype=object), columns=list(LABELS)), notes


def _cells(file: Path) -> tuple[list[str], NDArray[np.int64], NDArray[np.float32]]:
    """Images in order of appearance; of every row its cell (image x 6 + label) and value."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    text = pa.string()
    convert = csv.ConvertOptions(column_types={"ID": text, "Label": text})
    try:
        table = csv.read_csv(file, csv.ReadOptions(use_threads=False, block_size=4 << 20), convert_options=convert)
    except (OSError, pa.ArrowException) as error:
        remedy = "give the file as it comes: UTF-8, header ID,Label, commas"
        raise DataError(f"{file}: cannot be read as a table: {error}", remedy=remedy) from error
    for column in ("ID", "Label"):
        if column not in table.column_names:
            found = ", ".join(table.column_names)
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


# --- The submission file, in the row order of its sample: one line ``ID_<image>_<label>,probability`` per slice and
# label. The challenge is closed, but late submissions are still scored, and the file is what its solutions share.

_SHOWN = 5  # missing slices named in an error


@dataclass(frozen=True)
class Submission:
    """What was written.

    Attributes:
        path: The file.
        rows: Lines without the header.
        slices: Slices in it.
        extra: Predicted slices that the sample does not ask for, left out.
    """

    path: Path
    rows: int
    slices: int
    extra: int


def write_submission(
    predictions: pd.DataFrame, sample: Path | str, out: Path | str, labels: Sequence[str] | None = None
) -> Submission:
    """Write the predicted probabilities in the rows, and the order, of a sample submission.

    Args:
        predictions: One row per slice: ``slice_id`` as in the sample (``ID_000012eaf``) and ``prob_<label>``.
        sample: ``stage_2_sample_submission.csv``: columns ``ID,Label``, an ID being ``<slice id>_<label>``.
        out: The file to write, whole or not at all.
        labels: Labels predicted; None takes those of the columns ``prob_*``.

    Raises:
        DataError: The sample cannot be read, has other columns, an ID without a label, or an ID twice.
        RunError: A slice or label that the sample asks for was not predicted, a slice was predicted twice, a
            probability lies outside [0, 1], or ``out`` cannot be written.
    """
    sample, out = Path(sample), Path(out)
    names = list(labels) if labels is not None else _labels(predictions)
    ids = _read_sample(sample)
    parts = ids.str.rsplit("_", n=1, expand=True)
    wanted_slice, wanted_label = parts[0], parts[1]
    column = pd.Index(names).get_indexer(wanted_label)
    if (column < 0).any():
        row = int((column < 0).argmax())
        raise RunError(
            f"{sample}, line {row + 2}: ID {ids.iloc[row]!r} asks for the label {wanted_label.iloc[row]!r}; "
            f"predicted are {', '.join(names)}",
            remedy="train with task=subtypes",
        )
    have = predictions["slice_id"].astype(str)
    if not have.is_unique:
        raise RunError(
            f"predictions: slice {have[have.duplicated()].iloc[0]!r} is listed more than once",
            remedy="predict every slice once",
        )
    row_of = pd.Index(have).get_indexer(wanted_slice)
    if (row_of < 0).any():
        lacking = wanted_slice[row_of < 0].unique()
        shown = ", ".join(lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
        remedy = "predict the whole test folder; `hemlearn index` tells what was skipped and why"
        raise RunError(
            f"{sample}: {len(lacking)} of {wanted_slice.nunique()} slices were not predicted: {shown}", remedy=remedy
        )
    prob = prob_array(predictions, names)
    bad = ~((prob >= 0) & (prob <= 1))
    if bad.any():
        row, j = np.argwhere(bad)[0]
        raise RunError(
            f"predictions, slice {have.iloc[row]!r}: prob_{names[j]}={prob[row, j]:g} is not a probability from 0 to 1",
            remedy="predict again with hemlearn",
        )
    slices = wanted_slice.nunique()
    extra = len(have) - slices
    if extra:
        logger.info("%s: %d predicted slices are not in it and were left out", sample, extra)
    table = pd.DataFrame({"ID": ids, "Label": prob[row_of, column]})
    text = table.to_csv(index=False, float_format="%.9g", lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    return Submission(out, len(table), slices, extra)


def _labels(predictions: pd.DataFrame) -> list[str]:
    known = label_names(list(predictions.columns))
    return known or [c.removeprefix("prob_") for c in predictions.columns if c.startswith("prob_")]


def _read_sample(path: Path) -> pd.Series:
    remedy = "give the challenge's stage_2_sample_submission.csv"
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", remedy=remedy) from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path}: not a CSV file ({str(error).splitlines()[0]})", remedy=remedy) from error
    if list(table.columns) != ["ID", "Label"]:
        raise DataError(f"{path}: columns are {', '.join(map(str, table.columns))}, not ID,Label", remedy=remedy)
    ids = table["ID"]
    odd = ~ids.str.match(r".+_[^_]+$")
    if odd.any():
        row = int(odd.to_numpy().argmax())
        raise DataError(f"{path}, line {row + 2}: ID {ids.iloc[row]!r} is not <slice id>_<label>", remedy=remedy)
    if not ids.is_unique:
        twice = int(ids.duplicated().to_numpy().argmax())
        raise DataError(f"{path}, line {twice + 2}: ID {ids.iloc[twice]!r} is listed more than once", remedy=remedy)
    if not len(ids):
        raise DataError(f"{path}: no rows", remedy=remedy)
    return ids
