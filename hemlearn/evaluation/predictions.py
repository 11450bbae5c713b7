"""The predictions file: one row per evaluated slice, from which every table, test and figure is computed.

Columns: ``split``, ``patient_id``, ``series_id``, ``slice_id``, ``z_mm``, then ``label_<c>`` (0, 1 or NaN for unknown)
and ``prob_<c>`` for each label ``c`` of the task, in the task's order. Families may follow, each for all labels:

* ``series_prob_<c>``: a sequence model's own output for the whole series, the same on every slice of it;
* ``position_prob_<c>``: the position-only baseline's output, see :mod:`hemlearn.audits.baselines`;
* ``size_prob_<c>``, ``metadata_prob_<c>``, ``border_prob_<c>``: those of the baselines that see image size, all file
  facts and the image's border alone, see :mod:`hemlearn.audits.baselines`;
* ``csf_prob_<c>``, ``evans_prob_<c>``: of hydrocephalus on MRI, two measures of a plain segmentation, see
  :mod:`hemlearn.audits.ventricles`.

The file of a run whose test patients also trained says so in its schema (``hemlearn: {"leaky": true}``) and, for
pandas, in ``DataFrame.attrs["leaky"]``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemlearn.config.schema import TaskConfig
from hemlearn.evaluation.auroc import Floats
from hemlearn.evaluation.pooling import HOW, Pool, places, unit_probs
from hemlearn.util.documents import load_json
from hemlearn.util.errors import RunError
from hemlearn.util.files import whole_file, writing

IDS = ("split", "patient_id", "series_id", "slice_id")
SPLITS = ("train", "val", "test")
LEVELS = ("slice", "series", "patient")
SERIES, POSITION = "series_prob", "position_prob"
SIZE, METADATA, BORDER = "size_prob", "metadata_prob", "border_prob"
CSF, EVANS = "csf_prob", "evans_prob"
OPTIONAL = (SERIES, POSITION, SIZE, METADATA, BORDER, CSF, EVANS)
_META = b"hemlearn"
_REMEDY = "write predictions with hemlearn; do not edit them by hand"


def label_names(columns: Sequence[str]) -> list[str]:
    """Labels in the order of the ``label_*`` columns."""
    return [c.removeprefix("label_") for c in columns if c.startswith("label_")]


def label_array(df: pd.DataFrame, labels: Sequence[str]) -> Floats:
    """(N, L) labels 0, 1 or NaN."""
    return _floats(df, [f"label_{c}" for c in labels])


def prob_array(df: pd.DataFrame, labels: Sequence[str], family: str = "prob") -> Floats:
    """(N, L) probabilities: those of the slice, or of another column family, one of ``OPTIONAL``."""
    return _floats(df, [f"{family}_{c}" for c in labels])


def has_family(df: pd.DataFrame, family: str) -> bool:
    """Whether the table carries the columns of one of the ``OPTIONAL`` families, such as ``series_prob_*``."""
    return any(str(c).startswith(f"{family}_") for c in df.columns)


def levels_of(task: TaskConfig) -> tuple[str, ...]:
    """Levels a task can be judged at: labels that describe a series say nothing about its single slices."""
    return LEVELS if task.level == "slice" else LEVELS[1:]


def _floats(df: pd.DataFrame, columns: list[str]) -> Floats:
    # Column by column: choosing several columns of a small table at once costs pandas a hundred times as much.
    values = [df[c].to_numpy(dtype=np.float64, na_value=np.nan) for c in columns]
    return np.stack(values, axis=1) if values else np.zeros((len(df), 0))


def check_predictions(df: pd.DataFrame, where: str, labels: Sequence[str] | None = None) -> list[str]:
    """Check the columns and values of a predictions table and return its labels.

    A RunError names the slice and the value: a column is missing, an identifier null, a slice listed twice, a split
    unknown, a label outside {0, 1, null}, a probability outside [0, 1], or a series' probability changes inside it.
    """

    def refuse(problem: str) -> RunError:
        return RunError(f"{where}: {problem}", remedy=_REMEDY)

    names = list(labels) if labels is not None else label_names(list(df.columns))
    wanted = [*IDS, "z_mm", *(f"label_{c}" for c in names), *(f"prob_{c}" for c in names)]
    families = [family for family in OPTIONAL if has_family(df, family)]
    wanted += [f"{family}_{c}" for family in families for c in names]
    missing = [c for c in wanted if c not in df.columns]
    if missing or not names:
        raise refuse(f"no column {', '.join(missing) or 'label_*'}; columns are {', '.join(df.columns)}")
    for column in IDS:
        null = df[column].isna().to_numpy()
        if null.any():
            raise refuse(f"column {column}, row {int(null.argmax())}: null")
    ids = df["slice_id"]
    if not ids.is_unique:
        raise refuse(f"slice {ids[ids.duplicated()].iloc[0]!r} is listed more than once")
    unknown = set(df["split"].unique()) - set(SPLITS)
    if unknown:
        raise refuse(f"split {min(map(str, unknown))!r} is none of {', '.join(SPLITS)}")
    y = label_array(df, names)
    tables = {family: prob_array(df, names, family) for family in ("prob", *families)}
    checks = [("label", y, ~(np.isnan(y) | (y == 0) | (y == 1)))]
    checks += [(family, p, ~((p >= 0) & (p <= 1))) for family, p in tables.items()]
    for kind, values, bad in checks:
        if bad.any():
            row, column = np.argwhere(bad)[0]
            value = f"{kind}_{names[column]}={values[row, column]:g}"
            allowed = "0, 1 or null" if kind == "label" else "a probability from 0 to 1"
            raise refuse(f"slice {ids.iloc[row]!r}: {value} is not {allowed}")
    if SERIES in tables and len(df):
        values = tables[SERIES]
        series = df.groupby(["split", "patient_id", "series_id"], sort=False).ngroup().to_numpy()
        start = np.unique(series, return_index=True)[1][series]
        bad = np.abs(values - values[start]) > 1e-9
        if bad.any():
            row, column = np.argwhere(bad)[0]
            name, one, other = df["series_id"].iloc[row], values[row, column], values[start[row], column]
            raise refuse(
                f"slice {ids.iloc[row]!r}: {SERIES}_{names[column]}={one:g}, but another slice of series "
                f"{name!r} has {other:g}"
            )
    return names


def as_predictions(df: pd.DataFrame, labels: Sequence[str], family: str) -> pd.DataFrame:
    """The table with the probabilities of a column family (``position_prob``) in the place of the slices' own."""
    out = df[[*IDS, "z_mm", *(f"label_{c}" for c in labels)]].reset_index(drop=True)
    for index, label in enumerate(labels):
        out[f"prob_{label}"] = prob_array(df, labels, family)[:, index]
    return out


def write_predictions(df: pd.DataFrame, path: Path | str, *, leaky: bool = False) -> None:
    """Check ``df`` and write it as Parquet, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    names = check_predictions(df, str(path))
    families = ["label", "prob", *(family for family in OPTIONAL if has_family(df, family))]
    columns = [*IDS, "z_mm", *(f"{family}_{c}" for family in families for c in names)]
    table = df[columns].astype(dict.fromkeys(IDS, "str") | dict.fromkeys(columns[len(IDS) :], "float64"))
    table.attrs = {"leaky": True} if leaky else {}
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), _META: json.dumps({"leaky": leaky})})
    with writing(path, "choose a writable folder with free space: output_dir=DIR"), whole_file(path) as draft:
        pq.write_table(arrow, draft)


def read_predictions(path: Path | str, splits: Sequence[str] | None = None) -> pd.DataFrame:
    """Read and check a predictions file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        # One small file per run: no threads, no data set discovery, which would cost more than the reading.
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read(use_threads=False)
        df: pd.DataFrame = table.to_pandas(use_threads=False)
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file", remedy="train the run again") from error
    except (OSError, pa.ArrowException, TypeError, ValueError, KeyError) as error:  # the last three: pandas' metadata
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RunError(f"{path}: not a readable Parquet file ({reason})", remedy="train the run again") from error
    for field in table.schema:
        texts, numbers = field.name in IDS, field.name.startswith(("label_", "prob_", *OPTIONAL))
        kind = str(field.type).removeprefix("large_")
        if (texts and kind != "string") or (numbers and not kind.startswith(("double", "float", "int", "null"))):
            wanted = "texts" if texts else "numbers"
            raise RunError(f"{path}: column {field.name} holds {field.type}, not {wanted}", remedy=_REMEDY)
    check_predictions(df, str(path))
    return df if splits is None else df[df["split"].isin(list(splits))].reset_index(drop=True)


def is_leaky(path: Path | str) -> bool:
    """Whether a predictions file is stamped as that of a run whose test patients also trained; only its end is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stamp = load_json((pq.read_schema(path).metadata or {}).get(_META, b"{}"))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise RunError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})", remedy="train the run again"
        ) from error
    return bool(stamp.get("leaky", False))


def unit_labels(y: Floats, group: npt.NDArray[np.intp], kind: str) -> Floats:
    """(U, L) labels of units from those of their slices; ``group`` (N,): the unit of each slice, 0..U-1."""
    best = np.full((int(group.max()) + 1 if len(group) else 0, y.shape[1]), -1.0)
    np.maximum.at(best, group, np.where(np.isnan(y), -1.0, y))
    best[best < 0] = np.nan
    if kind == "multiclass":
        best[np.nansum(best, axis=1) > 1] = np.nan
    return best


def unit_groups(df: pd.DataFrame, level: str) -> npt.NDArray[np.intp]:
    """(N,) series or patient of each slice, 0..U-1 in order of first appearance."""
    keys = ["split", "patient_id", "series_id"][: 3 if level == "series" else 2]
    return np.asarray(df.groupby(keys, sort=False).ngroup().to_numpy(), dtype=np.intp)


def mixes(p: Floats, group: npt.NDArray[np.intp]) -> bool:
    """Whether a unit has slices of different probabilities, of which none is that of the unit.

    The mean over a patient's slices of "this slice bleeds" is the share of bleeding slices, not the probability that
    the patient bleeds. Shapes: p (N, L), group (N,).
    """
    first = np.unique(group, return_index=True)[1]
    return bool((p != p[first][group]).any())


def is_aggregate(df: pd.DataFrame, level: str, how: str) -> bool:
    """Whether the values of a level are made of several slices' probabilities, which are no probabilities.

    Series outputs of a sequence model (``how="model"``) are probabilities of series themselves.
    """
    if level == "slice" or how == "model" or not len(df):
        return False
    return mixes(prob_array(df, label_names(list(df.columns))), unit_groups(df, level))


def aggregate(
    df: pd.DataFrame,
    level: str,
    how: str = "mean",
    kind: str = "binary",
    pool: Pool = Pool(),  # noqa: B008 - a constant
) -> pd.DataFrame:
    """Predictions per slice, series or patient.

    A label of a series or patient is 1 if any slice has it, 0 if no slice known has it, null if it is known of none.
    With ``kind="multiclass"`` a unit whose slices carry different classes has no class of its own: its labels are null.
    Probabilities are put together as :mod:`hemlearn.evaluation.pooling` says, or are the series outputs of a sequence
    model (``model``: columns ``series_prob_*``, a patient taking the maximum over its series). What is no mean is
    rescaled to sum 1 in a multiclass task.

    Returns:
        One row per unit in order of first appearance: ``split``, ``patient_id``, ``series_id`` (not for patients),
        ``slice_id`` (level slice) or ``n_slices``, labels and probabilities.
    """
    if level not in LEVELS or how not in HOW:
        raise ValueError(f"level {level!r} / how {how!r}: expected one of {LEVELS} and one of {HOW}")
    names = label_names(list(df.columns))
    if level == "slice":
        return df.reset_index(drop=True)
    family = SERIES if how == "model" else "prob"
    if how == "model" and not has_family(df, SERIES):
        raise RunError(
            f"task.aggregate=model: the predictions have no column {SERIES}_{names[0]}",
            remedy="choose a sequence model (sequence=lstm), or task.aggregate=mean",
        )
    keys = ["split", "patient_id", "series_id"][: 3 if level == "series" else 2]
    group = unit_groups(df, level)
    labels = unit_labels(label_array(df, names), group, kind)
    place = places(unit_groups(df, "series"), _floats(df, ["z_mm"])[:, 0]) if how == "logistic" else None
    probs = unit_probs(prob_array(df, names, family), group, how, kind, pool, place)
    first = np.unique(group, return_index=True)[1]
    out = df[keys].iloc[first].reset_index(drop=True)
    out["n_slices"] = np.bincount(group)
    for index, name in enumerate(names):
        out[f"label_{name}"] = labels[:, index]
    for index, name in enumerate(names):
        out[f"prob_{name}"] = np.clip(probs[:, index], 0.0, 1.0)
    return out
