"""Has a run, from whose weights another one starts, learnt from patients who validate or test there?

A run on the same data says it by its split. Others may have learnt from any folder: beside its weights every run leaves
patients, file checksums and perceptual hashes of what it has learnt from (``seen.parquet``), which are compared with
those of the data here. Neither its data nor any pixel is read for that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.data.duplicates import likely_copies
from hemlearn.data.splits import Split
from hemlearn.datamodules import trait
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.models.weights import run_of
from hemlearn.util.errors import RunError
from hemlearn.util.files import whole_file, writing
from hemlearn.util.run_files import AGAIN, PLACE, REMADE, SEEN, problems, read_provenance

_COLUMNS = ["patient_id", "series_id", "frame", "content", "phash", "split"]
_DIGITS = 32  # of the checksum of a file's content: 128 bits tell all files apart
_SIZES = {"content": _DIGITS, "phash": None}  # column of bytes -> digits kept
_ANYBODY = ("dicom", "table")  # data sets that may be a copy of another one, or of a part of it


def write_seen(data: SliceDataModule, folder: Path) -> None:
    """Write down in a run folder whom and what a run has learnt from: its training and validation slices.

    About 50 bytes each: series are numbers, checksums and hashes bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sides = data.split.apply(data.manifest).to_numpy()
    table = data.manifest.table[sides != "test"]
    codes = {name: [bytes.fromhex(text) for text in table[name].str[:size]] for name, size in _SIZES.items()}
    columns = {
        "patient_id": pa.array(table["patient_id"].astype(str)).dictionary_encode(),
        "series_id": pa.array(pd.factorize(table["series_id"])[0].astype(np.int32)),
        "frame": pa.array(table["frame"].to_numpy().astype(np.int32)),
        **{name: pa.array(values, pa.binary()) for name, values in codes.items()},
        "split": pa.array(sides[sides != "test"].astype(str)).dictionary_encode(),
    }
    file = folder / SEEN
    with writing(file, "choose a writable folder with free space: output_dir=DIR"), whole_file(file) as draft:
        pq.write_table(pa.table(columns), draft, compression="zstd", use_dictionary=["patient_id", "split"])


def read_seen(folder: Path) -> pd.DataFrame:
    """What :func:`write_seen` has written.

    Raises:
        RunError: It is missing, damaged or was changed since.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / SEEN
    for problem in problems(folder, read_provenance(folder), [SEEN]).values():
        raise RunError(f"{file}: {problem}", remedy=REMADE)
    try:
        with file.open("rb") as opened:
            found: pd.DataFrame = pq.ParquetFile(opened).read(use_threads=False).to_pandas(use_threads=False)
        for name, size in _SIZES.items():  # texts in tables of earlier versions
            found[name] = [value.hex() if isinstance(value, bytes) else str(value)[:size] for value in found[name]]
        return found[_COLUMNS].astype(dict.fromkeys(("patient_id", "series_id", "split"), str))
    except (OSError, pa.ArrowException, TypeError, ValueError, KeyError) as error:
        raise RunError(f"{file}: no table of slices ({error})", remedy=AGAIN) from error


def leaves_table(provenance: Mapping[str, Any]) -> bool:
    """Whether a run says what it has learnt from; supervised ones of earlier versions do not."""
    return bool(provenance.get("pretraining")) or SEEN in (provenance.get("files") or {})


def shared_ids(
    ours: pd.Series[str],
    sources: Mapping[str, str],
    theirs: Collection[str],
    others: Mapping[str, str],
    anybody: Collection[str] = (),
) -> set[str]:
    """Ids of patients here that mean the same people there.

    Args:
        ours: Ids here.
        sources: What stands before the ids of each data set here -> its source.
        theirs: Ids there.
        others: As ``sources``, there.
        anybody: Sources whose ids may be those of any other source; else both must be of one source.
    """
    found: set[str] = set()
    ids = set(ours)
    for (here, source), (there, other) in product(sources.items(), others.items()):
        alike = source == other or source in anybody or other in anybody
        if alike and all(trait(name, "patients_known") for name in (source, other)):
            known = {name.removeprefix(there) for name in theirs if name.startswith(there)}
            found |= {name for name in ids if name.startswith(here) and name.removeprefix(here) in known}
    return found


def seen_by_weights(weights: str | None, data: SliceDataModule, above: frozenset[Path] = frozenset()) -> dict[str, str]:
    """Patients who validate or test here, and from whom the run that gave the weights has learnt.

    A run on the same data, or on the same part of several data sets, is asked for its split; of other data pictures are
    compared, and ids of patients where they mean the same people. The run that gave that run its weights, where it is
    there, is asked too.

    Args:
        weights: ``backbone.weights``.
        data: The data, divided.
        above: Run folders on the way here.

    Returns:
        Patient -> how that is known.

    Raises:
        RunError: The run does not say what it was made from.
    """
    folder = run_of(weights)
    if folder is None or folder.resolve() in above:
        return {}
    told = read_provenance(folder)
    known = (told.get("checksums") or {}).get("manifest")
    if known is None:
        raise RunError(
            f"{folder / 'provenance.json'}: holds no checksum of the data: whether patients who are tested here have "
            "trained that run cannot be told",
            remedy=AGAIN,
        )
    parent = told.get(PLACE)
    found = seen_by_weights(str(folder / str(parent)), data, above | {folder.resolve()}) if parent else {}
    table, ours = data.manifest.table, data.split.apply(data.manifest)
    # Content of a data set -> what stands before its patients' ids, there and here.
    before = {known: "", **((told.get("data") or {}).get("contents") or {})}
    shared = [(before[content], own) for content, own in data.contents.items() if content in before]
    split = Split.load(folder / "split.csv") if shared else data.split
    for there, here in shared:
        inside = split.assignment[split.assignment[split.unit].str.startswith(there)]
        known_as = dict(zip(here + inside[split.unit].str.removeprefix(there), inside["split"], strict=True))
        theirs = table[split.unit].map(known_as)
        seen = ((ours == "test") & theirs.isin(("train", "val"))) | ((ours == "val") & (theirs == "train"))
        found |= {str(name): "the same data" for name in table.loc[seen, "patient_id"].unique()}
    if known == data.manifest.checksum or not leaves_table(told):
        return found
    learnt = read_seen(folder)
    for side, parts in (("test", ["train", "val"]), ("val", ["train"])):
        asked, trained = table[(ours == side).to_numpy()], learnt[learnt["split"].isin(parts)]
        found |= _other_data(asked, trained, data, dict(told.get("data") or {}))
    return found


def _other_data(
    asked: pd.DataFrame, learnt: pd.DataFrame, data: SliceDataModule, told: dict[str, Any]
) -> dict[str, str]:
    """Patients of ``asked`` who are in ``learnt``, a table of other data, by their id or by their pictures."""
    synthetic = bool(told.get("synthetic"))
    if synthetic and not data.manifest.synthetic:  # nobody's pictures
        return {}
    rows = likely_copies(learnt, asked.assign(content=asked["content"].str[:_DIGITS]))
    found = {str(name): "the same pictures" for name in asked["patient_id"].iloc[rows].unique()}
    ids = asked["patient_id"].astype(str)
    same = shared_ids(ids, data.sources, set(learnt["patient_id"]), sources_of(told), _ANYBODY)
    return found | dict.fromkeys(sorted(same - set(found)), "the same patient_id")


def sources_of(told: Mapping[str, Any]) -> dict[str, str]:
    """What stands before the ids of each data set of a run -> its source, by entry ``data`` of its provenance."""
    nobody = told.get("synthetic") or told.get("patients_known") is False
    return told.get("sources") or ({} if nobody else {"": str(told.get("source"))})
