"""The manifest: one validated table that is the data set, with everything that was left out and why."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn.data.covariates import PREFIX, covariates_of, with_covariates
from hemlearn.data.geometry import SERIES_COLUMNS, geometry_counts, no_series
from hemlearn.data.ids import id_notes
from hemlearn.data.readers import PICTURES
from hemlearn.data.rows import (
    BAND,
    LEVELS,
    MODALITIES,
    by_kind,
    check_rows,
    gravest_first,
    in_order,
    normalise,
    one_patient_each,
    skip_reasons,
    why_nothing_is_left,
    with_slice_ids,
)
from hemlearn.data.scan import fingerprints
from hemlearn.util.console import NOTED, ON_DATA
from hemlearn.util.documents import load_json
from hemlearn.util.errors import DataError, count, hint, printable
from hemlearn.util.files import sha256, whole_file, write_text
from hemlearn.util.tables import csv_text, unescaped

logger = logging.getLogger(__name__)
COLUMNS = (
    "slice_id",
    "patient_id",
    "study_id",
    "series_id",
    "z_mm",
    "path",
    "frame",
    "modality",
    "height",
    "width",
    "content",
    "phash",
    "head_box",
)
FILES = (_FILE, _SKIPPED, _SERIES) = "manifest.parquet", "skipped.csv", "series.csv"
_VERSION = 3
_META = b"hemlearn"


@dataclass(frozen=True)
class Manifest:
    """A data set as a table.

    Args:
        table: One row per slice: slice_id (unique), patient_id, study_id, series_id (text); z_mm (position
            along the body axis in mm, NaN: unknown); path (POSIX, relative to ``root``); frame (index in a
            file of several slices, else 0); modality (CT, MR, OT; DICOM (0008,0060)); height, width (pixels);
            content (hash of the file's bytes); phash (perceptual hash, "" where there is none);
            head_box (first row, row after the last, first column, column after the last; "": not found); and one float
            column per label: 0, 1 or NaN (unknown: masked out of loss and metrics). Columns ``covariate_*`` may
            follow: numbers (NaN: unknown) or texts ("": unknown), see :mod:`hemlearn.data.covariates`. The slices of
            a series stand in order of position.
        skipped: Columns item, reason: every row and file that is not in ``table``, and why; gravest reasons first.
        labels: Names of the label columns.
        root: Folder that ``path`` starts from.
        source: Kind of data set (``head_ct``, ``table``, ...).
        synthetic: True for phantoms.
        series: One row per series with its geometry (``geometry.SERIES_COLUMNS``); no rows where files tell none.
        label_level: ``slice``, or ``series``: the labels describe the whole series, and each slice repeats them.
        notes: What a reader of results should know of this data set, one sentence each.
        patients_known: Whether ``patient_id`` names people; else images, or series, stand for them.

    Raises:
        DataError: The table breaks one of these rules.

    Example:
        >>> import tempfile, numpy as np
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.fromarray(np.eye(16, dtype=np.uint8)).save(root / "a.png")
        >>> rows = pd.DataFrame({"slice_id": ["a"], "patient_id": ["p"], "path": ["a.png"], "bleed": [1]})
        >>> made = build_manifest(rows, root=root, labels=["bleed"], source="mine", progress=False)
        >>> made.table[["slice_id", "height", "width", "bleed"]].values.tolist(), len(made.skipped)
        ([['a', 16, 16, 1.0]], 0)
    """

    table: pd.DataFrame
    skipped: pd.DataFrame
    labels: tuple[str, ...]
    root: Path
    source: str
    synthetic: bool = False
    series: pd.DataFrame = field(default_factory=no_series)
    label_level: str = "slice"
    notes: tuple[str, ...] = ()
    patients_known: bool = True

    def __post_init__(self) -> None:
        _validate(self.table, self.labels)
        one_patient_each(self.table["series_id"], self.table["patient_id"], "the manifest")
        _check_level(self.table, self.labels, self.label_level)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over ids, labels, positions, file hashes and the level of the labels.

        Not over covariates, which determine no result, nor over places and times; over the order of slices only where
        they have no position, since it then is what makes them neighbours. ``series`` follows from the same files and
        adds nothing.
        """
        columns = [name for name in COLUMNS if name not in ("path", "phash", "head_box")] + list(self.labels)
        table = self.table[columns]
        # Pictures of which nobody says what they show were taken for CT once; a run of them is the same run.
        unsaid = (table["modality"] == "OT") & self.table["path"].str.lower().str.endswith(PICTURES)
        if unsaid.any():
            table = table.assign(modality=table["modality"].where(~unsaid, "CT"))
        place = table.groupby("series_id").cumcount().where(table["z_mm"].isna(), 0)
        if place.any():
            table = table.assign(place=place)
        text = table.sort_values("slice_id").to_csv(index=False, float_format="%.6g", lineterminator="\n")
        if self.label_level != "slice":
            text += f"label_level={self.label_level}\n"
        return sha256(text)

    @property
    def covariates(self) -> pd.DataFrame:
        """(N, C) what is known of each slice beside its labels: columns ``covariate_*``, and what its series tells."""
        return covariates_of(self.table, self.series)

    @property
    def person(self) -> str:
        """What a ``patient_id`` names: ``patient``, or ``image`` where nobody knows whose the images are."""
        return "patient" if self.patients_known else "image"

    def summary(self) -> dict[str, Any]:
        """Return counts.

        Slices, series, patients (with ``patients_known``: False where images count as such); per label positive,
        negative and unknown slices; skipped per reason; geometry: per kind of problem the number of series that have
        it.
        """
        values = self.table[list(self.labels)]
        return {
            "slices": len(self.table),
            "series": int(self.table["series_id"].nunique()),
            "patients": int(self.table["patient_id"].nunique()),
            **({} if self.patients_known else {"patients_known": False}),
            "labels": {
                label: {
                    "positive": int((values[label] == 1).sum()),
                    "negative": int((values[label] == 0).sum()),
                    "unknown": int(values[label].isna().sum()),
                }
                for label in self.labels
            },
            "skipped": {kind: len(rows) for kind, rows in by_kind(self.skipped).items()},
            "geometry": geometry_counts(self.series),
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.parquet``, ``skipped.csv`` and ``series.csv`` into ``folder``, each whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        meta = {
            "version": _VERSION,
            "labels": list(self.labels),
            "root": str(self.root),
            "source": self.source,
            "synthetic": self.synthetic,
            "checksum": self.checksum,
            "label_level": self.label_level,
            "notes": list(self.notes),
            "patients_known": self.patients_known,
        }
        arrow = pa.Table.from_pandas(self.table, preserve_index=False)
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), _META: json.dumps(meta).encode()})
        with whole_file(folder / _FILE) as draft:
            pq.write_table(arrow, draft)
        for name, table in ((_SKIPPED, self.skipped), (_SERIES, self.series)):
            write_text(folder / name, csv_text(table))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Manifest:
        """Read a saved manifest.

        Raises:
            DataError: The files are missing, damaged, of another version, or do not match their checksum.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        remedy = "write the manifest again: hemlearn index"
        try:
            arrow = pq.read_table(folder / _FILE)
            meta = load_json((arrow.schema.metadata or {}).get(_META, b"{}"))
            if meta.get("version") != _VERSION:
                raise DataError(f"{folder / _FILE}: version {meta.get('version')}, expected {_VERSION}", remedy=remedy)
            skipped, series = (
                pd.read_csv(folder / name, dtype=str, keep_default_na=False).map(unescaped)
                for name in (_SKIPPED, _SERIES)
            )
            kinds = {name: kind if kind.endswith("64") else object for name, kind in SERIES_COLUMNS.items()}
            empty = {name: {"": "nan"} for name, kind in kinds.items() if kind is not object}
            series = series.replace(empty).astype(kinds)
            series["mixed_size"] = series["mixed_size"] == "True"
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            raise DataError(f"{folder}: no readable manifest: {error}", remedy=remedy) from error
        manifest = cls(
            arrow.to_pandas(),
            skipped,
            tuple(meta["labels"]),
            Path(meta["root"]),
            meta["source"],
            meta["synthetic"],
            series[list(SERIES_COLUMNS)],
            meta["label_level"],
            tuple(meta["notes"]),
            bool(meta.get("patients_known", True)),
        )
        if manifest.checksum != meta["checksum"]:
            raise DataError(f"{folder / _FILE}: its content does not match its checksum", remedy=remedy)
        return manifest


def build_manifest(
    rows: pd.DataFrame,
    *,
    root: str | os.PathLike[str],
    labels: Sequence[str],
    source: str,
    modality: str = "CT",
    n_jobs: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    skipped: pd.DataFrame | None = None,
    images: Sequence[str] | None = None,
    synthetic: bool = False,
    series: pd.DataFrame | None = None,
    label_level: str = "slice",
    notes: Sequence[str] = (),
    patients_known: bool = True,
) -> Manifest:
    """Check an adapter's rows, open every file and make the manifest.

    Nothing is dropped silently: a row without its file, a file without its row and a file that cannot be used
    each go to ``skipped`` with the reason.

    Args:
        rows: Columns patient_id, path (absolute, or relative to ``root``; null or "": no file) and one per label
            (0, 1, or null as number or text). Optional: slice_id (default: the path, with ``#frame`` where the
            frame is not the first), study_id and series_id (default: the patient), z_mm (mm), frame (default 0),
            modality, and covariates: ``covariate_NAME``.
        root: Folder of the data set.
        labels: Names of the label columns.
        source: Kind of data set.
        modality: CT, MR or OT, of rows that do not say.
        n_jobs: Workers; None: all cores.
        cache_dir: Where fingerprints are kept, so that an unchanged file (path, size and modification time) is
            not opened again; None: they are not kept.
        progress: Show progress.
        skipped: Columns item, reason: what the adapter has left out already.
        images: All image files of the layout, relative to ``root``; those no row names are recorded.
        synthetic: True for phantoms.
        series: Geometry per series (``geometry.series_geometry``); its ``kept`` is counted here. None: no rows.
        label_level: What the labels describe: ``slice`` or ``series``.
        notes: What a reader of results should know, one sentence each.
        patients_known: Whether ``patient_id`` names people.

    Returns:
        The manifest: series in order of appearance, their slices by position (without one: as given).

    Raises:
        DataError: Missing folder, missing column, no rows, an id that is empty or given twice, a label other
            than 0, 1 and null, a series of two patients, or no file that could be used.
    """
    root = Path(root).absolute()
    if rows.empty and skipped is not None and len(skipped):
        why, remedy = why_nothing_is_left(skipped)
        raise DataError(f"{root}: every image was left out ({count(len(skipped), 'item')}); {why}", remedy=remedy)
    rows = with_slice_ids(rows)
    check_rows(rows, root, labels, modality)
    table = in_order(with_covariates(normalise(rows, root, labels, modality), rows, root))
    lost = [] if skipped is None else [skipped[["item", "reason"]].astype(str)]
    if images is not None:
        stray = sorted(set(images) - set(table["path"]))
        lost.append(pd.DataFrame({"item": stray, "reason": "image without label"}, dtype=object))
    known = fingerprints(table, root, n_jobs=n_jobs, cache_dir=cache_dir, progress=progress)
    bad = known["reason"] != ""
    named = table["path"].where(table["path"] != "", table["slice_id"])
    unusable = pd.DataFrame({"item": named[bad], "reason": known.loc[bad, "reason"]})
    lost.append(unusable.drop_duplicates())  # once for a volume, not for each of its slices
    dropped = gravest_first(pd.concat(lost, ignore_index=True))
    dropped["item"] = dropped["item"].map(printable)
    if bad.all():
        reasons = known["reason"].value_counts()
        raise DataError(
            f"{root}: none of {count(len(table), 'image')} can be used; most often: {reasons.index[0]} "
            f"({count(reasons.iloc[0], 'time')}, first {table['slice_id'].iloc[0]!r})",
            remedy="check data.root and that the folder holds the images of this layout",
        )
    if len(dropped):
        level = logging.INFO if (dropped["reason"].astype(str).str.startswith(BAND)).all() else logging.WARNING
        logger.log(level, "%s: %s", root, skip_reasons(dropped), extra=ON_DATA)
    table = table.assign(**{name: known[name] for name in ("height", "width", "content", "phash", "head_box")})
    more = [name for name in table if str(name).startswith(PREFIX) and name not in labels]
    table = table.loc[~bad, [*COLUMNS, *labels, *more]].reset_index(drop=True)
    doubts = id_notes(table["patient_id"].unique()) if patients_known else [_nobody_known(table)]
    for note in doubts:
        logger.warning("%s: %s", root, note, extra=NOTED)
    notes = [*notes, *doubts, *_nothing_to_see(table, root)]
    known_series = no_series() if series is None else series.reset_index(drop=True)
    kept = known_series["series_id"].map(table["series_id"].value_counts()).fillna(0).astype("int64")
    return Manifest(
        table,
        dropped,
        tuple(labels),
        root,
        source,
        synthetic,
        known_series.assign(kept=kept),
        label_level,
        tuple(notes),
        patients_known,
    )


def _nobody_known(table: pd.DataFrame) -> str:
    people = table["patient_id"].nunique()
    what = count(people, "series" if people < len(table) else "image")
    return (
        f"no patient ids: each of {what} is taken for a person of its own; copies and neighbouring slices of one "
        "person may stand on two sides of a split, and intervals and tests count images, never patients"
    )


_MUCH_AIR, _FEW_SLICES = 1 / 3, 2  # share and number of empty slices that are told


def _nothing_to_see(table: pd.DataFrame, root: Path) -> list[str]:
    """Notes on series of one grey level as seen in the brain window (CT), wholly or a third of them; also logged.

    A slice or two of air above a head are nothing strange.
    """
    flat, series = table["phash"] == "", table["series_id"]
    shares = flat.groupby(series, sort=False)
    whole = shares.transform("all")
    much = (shares.transform("mean") >= _MUCH_AIR) & (shares.transform("sum") > _FEW_SLICES)
    found = []
    if whole.any():
        shows = count(series[whole].nunique(), "series shows", "series show")
        found.append((table[whole].iloc[0], f"{shows} nothing"))
    if (some := flat & much & ~whole).any():
        shows = count(int(some.sum()), "slice shows", "slices show")
        found.append((table[some].iloc[0], f"{shows} nothing in {count(series[some].nunique(), 'series')}"))
    notes = [
        f"{text} (every pixel alike, on CT in the brain window); the first is of patient {first['patient_id']!r}: "
        f"{first['path']}" + (f"#{first['frame']}" if first["frame"] else "")
        for first, text in found
    ]
    for note in notes:
        logger.warning("%s: %s", root, note, extra=NOTED)
    return notes


def _check_level(table: pd.DataFrame, labels: Sequence[str], level: str) -> None:
    if level not in LEVELS:
        raise DataError(f"label_level={level!r}", remedy=f"use one of {', '.join(LEVELS)}")
    if level == "series" and labels:
        values = table.groupby("series_id")[list(labels)].agg(lambda column: column.nunique(dropna=False))
        wrong = values > 1
        if wrong.any(axis=None):
            name, label = wrong.stack().idxmax()
            raise DataError(
                f"series {name!r}: its slices differ in label {label!r}, though the labels describe whole series",
                remedy="give every slice of a series the same labels, or label slices",
            )


def _validate(table: pd.DataFrame, labels: Sequence[str]) -> None:
    import pandera.pandas as pa

    if not isinstance(table, pd.DataFrame) or table.empty:
        what = "has no rows" if isinstance(table, pd.DataFrame) else f"is a {type(table).__name__}, not a table"
        raise DataError(f"the manifest {what}", remedy="give a table with one row per slice")
    text = {name: pa.Column(str, coerce=True) for name in ("study_id", "series_id", "content", "phash", "head_box")}
    filled = pa.Check.str_length(min_value=1)
    schema = pa.DataFrameSchema(
        {
            "slice_id": pa.Column(str, filled, unique=True),
            "patient_id": pa.Column(str, filled),
            **text,
            "path": pa.Column(str, filled),
            "z_mm": pa.Column(float, nullable=True),
            "frame": pa.Column("int64", pa.Check.ge(0)),
            "modality": pa.Column(str, pa.Check.isin(MODALITIES)),
            "height": pa.Column("int64", pa.Check.ge(1)),
            "width": pa.Column("int64", pa.Check.ge(1)),
            **{name: pa.Column(nullable=True) for name in table if str(name).startswith(PREFIX)},
            **{label: pa.Column(float, pa.Check.isin((0.0, 1.0)), nullable=True) for label in labels},
        },
        strict=True,
    )
    try:
        schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        problem, remedy = _broken(error.failure_cases.iloc[0].to_dict(), table, labels)
        raise DataError(f"the manifest's {problem}", remedy=remedy) from error


def _broken(case: dict[str, Any], table: pd.DataFrame, labels: Sequence[str]) -> tuple[str, str]:
    """What a failure case of the schema means, and what to do about it."""
    rule, name, value = case["check"], case["column"], case["failure_case"]
    if rule == "column_in_dataframe":
        has = f"table has no column {value!r}{hint(value, map(str, table))}; it has {', '.join(map(str, table))}"
        return has, f"add it, or leave {value!r} out of labels" if value in labels else "make it with build_manifest"
    if rule == "column_in_schema":
        return (
            f"table has a column {value!r}, which is no label{hint(str(value), labels)}",
            "drop it, or name it a label",
        )
    where = f"column {name!r}"
    if case["index"] is not None:
        row = list(table.index).index(case["index"])
        where += f", row {row}" + (f" ({table['slice_id'].iloc[row]!r})" if name != "slice_id" else "")
    if rule == "field_uniqueness":
        number = int((table[name] == value).sum())
        return f"{where}: {value!r} stands in {number} rows", "give every slice a row and an id of its own"
    wanted = "0, 1 or NaN, as numbers" if name in labels else _WANTED.get(name, "text that is not empty")
    return f"{where}: {getattr(value, 'item', lambda: value)()!r}", f"give {wanted}"


_WANTED = {
    "z_mm": "a number, or NaN where it is unknown",
    "frame": "whole numbers from 0",
    "modality": f"one of {', '.join(MODALITIES)}",
    "height": "whole numbers from 1",
    "width": "whole numbers from 1",
}
