"""The manifest: one validated table that is the data set, with everything that was left out and why."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn.data.fingerprints import fingerprints
from hemlearn.data.rows import MODALITIES, check_rows, normalise
from hemlearn.errors import DataError

LOGGER = logging.getLogger(__name__)
COLUMNS = (
    "slice_id", "patient_id", "study_id", "series_id", "z_mm", "path", "frame", "modality", "height", "width",
    "content", "phash",
)  # fmt: skip
_FILE, _SKIPPED, _VERSION = "manifest.parquet", "skipped.csv", 1
_META = b"hemlearn"


@dataclass(frozen=True)
class Manifest:
    """A data set as a table.

    Args:
        table: One row per slice: slice_id (unique), patient_id, study_id, series_id (text); z_mm (position
            along the body axis in mm, NaN: unknown); path (POSIX, relative to ``root``); frame (index in a
            file of several slices, else 0); modality (CT, MR, OT; DICOM (0008,0060)); height, width (pixels);
            content (hash of the file's bytes); phash (perceptual hash, "" where there is none); and one float
            column per label: 0, 1 or NaN (unknown: masked out of loss and metrics).
        skipped: Columns item, reason: every row and file that is not in ``table``, and why.
        labels: Names of the label columns.
        root: Folder that ``path`` starts from.
        source: Kind of data set (``head_ct``, ``table``, ...).
        synthetic: True for phantoms.

    Raises:
        DataError: The table breaks one of these rules.
    """

    table: pd.DataFrame
    skipped: pd.DataFrame
    labels: tuple[str, ...]
    root: Path
    source: str
    synthetic: bool = False

    def __post_init__(self) -> None:
        _validate(self.table, self.labels)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over ids, labels, positions and file hashes; not over places, times or the order of rows."""
        columns = [name for name in COLUMNS if name not in ("path", "phash")] + list(self.labels)
        table = self.table[columns].sort_values("slice_id")
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return counts: slices, patients, per label positive/negative/unknown slices, skipped per reason."""
        values = self.table[list(self.labels)]
        kinds = self.skipped["reason"].astype(str).str.split(": ", n=1).str[0]
        return {
            "slices": len(self.table),
            "patients": int(self.table["patient_id"].nunique()),
            "labels": {
                label: {
                    "positive": int((values[label] == 1).sum()),
                    "negative": int((values[label] == 0).sum()),
                    "unknown": int(values[label].isna().sum()),
                }
                for label in self.labels
            },
            "skipped": {str(kind): int(count) for kind, count in kinds.value_counts().items()},
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.parquet`` and ``skipped.csv`` into ``folder``, each at once or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        meta = {
            "version": _VERSION, "labels": list(self.labels), "root": str(self.root), "source": self.source,
            "synthetic": self.synthetic, "checksum": self.checksum,
        }  # fmt: skip
        arrow = pa.Table.from_pandas(self.table, preserve_index=False)
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), _META: json.dumps(meta).encode()})
        part = folder / f".{_FILE}.{os.getpid()}"
        pq.write_table(arrow, part)
        part.replace(folder / _FILE)
        part = folder / f".{_SKIPPED}.{os.getpid()}"
        self.skipped.to_csv(part, index=False)
        part.replace(folder / _SKIPPED)

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
            skipped = pd.read_csv(folder / _SKIPPED, dtype=str, keep_default_na=False)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise DataError(f"{folder}: no readable manifest: {error}", remedy=remedy) from error
        meta = json.loads((arrow.schema.metadata or {}).get(_META, b"{}"))
        if meta.get("version") != _VERSION:
            raise DataError(
                f"{folder / _FILE}: version {meta.get('version')}, expected {_VERSION}", remedy=remedy
            )
        manifest = cls(
            arrow.to_pandas(), skipped, tuple(meta["labels"]), Path(meta["root"]), meta["source"], meta["synthetic"]
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
) -> Manifest:
    """Check an adapter's rows, open every file and make the manifest.

    Nothing is dropped silently: a row without its file, a file without its row and a file that cannot be used
    each go to ``skipped`` with the reason.

    Args:
        rows: Columns slice_id, patient_id, path (absolute, or relative to ``root``; null or "": no file) and
            one per label (0, 1, or null as number or text). Optional: study_id and series_id (default: the
            patient), z_mm (mm), frame (default 0).
        root: Folder of the data set.
        labels: Names of the label columns.
        source: Kind of data set.
        modality: CT, MR or OT.
        n_jobs: Workers; None: all cores.
        cache_dir: Where fingerprints are kept, so that an unchanged file (path, size and modification time) is
            not opened again; None: they are not kept.
        progress: Show progress.
        skipped: Columns item, reason: what the adapter has left out already.
        images: All image files of the layout, relative to ``root``; those no row names are recorded.
        synthetic: True for phantoms.

    Returns:
        The manifest, rows in the given order.

    Raises:
        DataError: Missing folder, missing column, no rows, an id that is empty or given twice, a label other
            than 0, 1 and null, or no file that could be used.
    """
    root = Path(root).absolute()
    check_rows(rows, root, labels, modality)
    table = normalise(rows, root, labels, modality)
    lost = [] if skipped is None else [skipped[["item", "reason"]].astype(str)]
    if images is not None:
        stray = sorted(set(images) - set(table["path"]))
        lost.append(pd.DataFrame({"item": stray, "reason": "image without label"}, dtype=object))
    known = fingerprints(table, root, n_jobs=n_jobs, cache_dir=cache_dir, progress=progress)
    bad = known["reason"] != ""
    named = table["path"].where(table["path"] != "", table["slice_id"])
    lost.append(pd.DataFrame({"item": named[bad], "reason": known.loc[bad, "reason"]}))
    left_out = pd.concat(lost, ignore_index=True)
    if bad.all():
        reasons = known["reason"].value_counts()
        raise DataError(
            f"{root}: none of {len(table)} images can be used; most often: {reasons.index[0]} "
            f"({reasons.iloc[0]} times, first {table['slice_id'].iloc[0]!r})",
            remedy="check data.root and that the folder holds the images of this layout",
        )
    if len(left_out):
        LOGGER.warning("%s: %d items left out, e.g. %s (%s)", root, len(left_out), *left_out.iloc[0])
    table = table.assign(**{name: known[name] for name in ("height", "width", "content", "phash")})
    table = table.loc[~bad, [*COLUMNS, *labels]].reset_index(drop=True)
    return Manifest(table, left_out, tuple(labels), root, source, synthetic)


def _validate(table: pd.DataFrame, labels: Sequence[str]) -> None:
    import pandera.pandas as pa

    text = {name: pa.Column(str, coerce=True) for name in ("study_id", "series_id", "content", "phash")}
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
            **{label: pa.Column(float, pa.Check.isin((0.0, 1.0)), nullable=True) for label in labels},
        },
        strict=True,
    )
    try:
        schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        first = error.failure_cases.iloc[0]
        raise DataError(
            f"the manifest breaks its schema: column {first['column']!r}, rule {first['check']}, "
            f"value {first['failure_case']!r}",
            remedy="mend the rows that the data set's adapter hands over",
        ) from error
