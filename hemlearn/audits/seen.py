"""Has a run, from whose weights another one starts, learnt from patients who validate or test there?

A run on the same data says it by its split. Pretraining may have learnt from any folder: beside its weights it leaves
patients, file checksums and perceptual hashes of what it has learnt from (``seen.parquet``), which are compared with
those of the data here. Neither its data nor any pixel is read for that.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from hemlearn.data.duplicates import likely_copies
from hemlearn.data.splits import Split
from hemlearn.datamodules import trait
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.models.weights import run_of
from hemlearn.util.errors import RunError
from hemlearn.util.files import whole_file, writing
from hemlearn.util.run_files import AGAIN, PLACE, REMADE, SEEN, problems, read_provenance

_COLUMNS = ["patient_id", "series_id", "slice_id", "frame", "content", "phash"]
_ANYBODY = ("dicom", "table")  # data sets that may be a copy of another one, or of a part of it


def write_seen(data: SliceDataModule, folder: Path) -> None:
    """Write down in a run folder whom and what a run has learnt from: its training and validation slices."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sides = data.split.apply(data.manifest)
    made = data.manifest.table[_COLUMNS].assign(split=sides)[sides != "test"].reset_index(drop=True)
    file = folder / SEEN
    with writing(file, "choose a writable folder with free space: output_dir=DIR"), whole_file(file) as draft:
        pq.write_table(pa.Table.from_pandas(made, preserve_index=False), draft)


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
        return found[[*_COLUMNS, "split"]].astype(dict.fromkeys(("patient_id", "series_id", "content", "phash"), str))
    except (OSError, pa.ArrowException, TypeError, ValueError, KeyError) as error:
        raise RunError(f"{file}: no table of slices ({error})", remedy=AGAIN) from error


def seen_by_weights(weights: str | None, data: SliceDataModule, above: frozenset[Path] = frozenset()) -> dict[str, str]:
    """Patients who validate or test here, and from whom the run that gave the weights has learnt.

    Only a run on the same data, or on the same part of several data sets, can tell, and pretraining on any: with other
    data equal names of patients mean nothing. The run that gave that run its weights, where it is there, is asked too.

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
    if known == data.manifest.checksum:
        return found
    if not told.get("pretraining"):
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
    rows = likely_copies(learnt, asked)
    found = {str(name): "the same pictures" for name in asked["patient_id"].iloc[rows].unique()}
    theirs = told.get("sources") or ({} if synthetic else {"": str(told.get("source"))})
    ids, known = asked["patient_id"].astype(str), learnt["patient_id"]
    for (before, source), (there, other) in product(data.sources.items(), theirs.items()):
        alike = source == other or source in _ANYBODY or other in _ANYBODY
        if alike and all(trait(name, "patients_known") for name in (source, other)):
            learnt_from = set(known[known.str.startswith(there)].str.removeprefix(there))
            inside = ids[ids.str.startswith(before)]
            same = set(inside[inside.str.removeprefix(before).isin(learnt_from)])
            found |= dict.fromkeys(sorted(same - set(found)), "the same patient_id")
    return found
