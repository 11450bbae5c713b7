"""Could a shortcut explain an external result? Models that see no brain, learnt where the run has learnt.

A run can only use what separates the classes of its own training data. So the nulls of image size, file facts and
slice position are fitted on the run's training slices and judged on the new data: what they reach there is what a
shortcut would carry over. The border needs both data sets in one unit and is not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.audits import FAMILY, fact_features, label_counts
from hemlearn.data.duplicates import kept_duplicate_pairs
from hemlearn.data.facts import slice_facts
from hemlearn.data.manifest import Manifest
from hemlearn.data.splits import Split
from hemlearn.evaluation.nulls import with_position
from hemlearn.evaluation.predictions import has_family, label_array, label_names, levels_of
from hemlearn.evaluation.shortcuts import fit_predict, null_aurocs, thinned
from hemlearn.evaluation.verdicts import verdicts
from hemlearn.inference.loading import Member
from hemlearn.schema import TaskConfig

_NOTE = "fitted on the run's training slices"


def with_nulls(
    frame: pd.DataFrame, member: Member, training: Manifest | None, manifest: Manifest, cache: Path
) -> pd.DataFrame:
    """``frame`` with the probabilities of the nulls; as it is where the run's own data are not at hand.

    Args:
        frame: Labelled predictions on the data set.
        member: The run.
        training: The run's own data; None: not at hand.
        manifest: The data set.
        cache: Cache folder.
    """
    if training is None:
        return frame
    labels = label_names(list(frame.columns))
    rows = np.flatnonzero((Split.load(member.folder / "split.csv").apply(training) == "train").to_numpy())
    if all(map(_stacked, (frame, training.table))):
        frame = with_position(frame, _known(training, rows, labels), labels)
    rows = thinned(training.table["patient_id"].to_numpy(dtype=object), rows.astype(np.int64))
    target = pd.Index(manifest.table["slice_id"]).get_indexer(frame["slice_id"]).astype(np.int64)
    facts = pd.concat(
        [slice_facts(training, cache_dir=cache, rows=rows), slice_facts(manifest, cache_dir=cache, rows=target)],
        ignore_index=True,
    )
    learnt = np.arange(len(rows))
    y = np.full((len(facts), len(labels)), np.nan)
    y[learnt] = training.table[labels].to_numpy(dtype=np.float64)[rows]
    patients = np.concatenate(
        [training.table["patient_id"].to_numpy(dtype=object)[rows], frame["patient_id"].to_numpy(dtype=object)]
    )
    out = frame.copy()
    for name, columns in fact_features(facts, training.table.iloc[rows]).items():
        probs = fit_predict(columns, y, patients, learnt, np.arange(len(rows), len(facts)))
        for j, label in enumerate(labels):
            out[f"{FAMILY[name]}_{label}"] = probs[:, j]
    return out


def external_audits(
    frame: pd.DataFrame, task: TaskConfig, manifest: Manifest, level: str, shared: int, cache: Path
) -> dict[str, Any]:
    """The content of ``audits`` in ``metrics.json``, as :func:`hemlearn.audits.audit_run` lays it out.

    Args:
        frame: Result of :func:`with_nulls`.
        task: Labels, kind and level of the evaluation.
        manifest: The data set.
        level: near, exact or none: which pictures count as the same.
        shared: Pairs of a picture evaluated and one that the run has learnt from.
        cache: Cache folder.
    """
    labels, levels = list(task.labels), levels_of(task)
    audits: dict[str, Any] = {}
    for name, family in FAMILY.items():
        if has_family(frame, family):
            found = null_aurocs(frame, labels, task.kind, task.aggregate, levels, family, beside=True)
            audits[name] = {"test": found, "note": _NOTE}
    audits["labels"] = {"test": label_counts(label_array(frame, labels), labels)}
    duplicates: dict[str, Any] = {"exact": 0, "near": 0, "straddling": shared, "sought": "no"}
    if level != "none":
        kinds = kept_duplicate_pairs(manifest, level, cache)["kind"].value_counts()
        duplicates |= {kind: int(kinds.get(kind, 0)) for kind in ("exact", "near")}
        duplicates["sought"] = "exact and near" if level == "near" else "exact"
    told = verdicts(audits | {"duplicates": duplicates}, "test")
    return (
        audits
        | ({"duplicates": duplicates} if level != "none" else {})
        | {"verdict": told if level != "none" else told[1:]}
    )


def _stacked(table: pd.DataFrame) -> bool:
    """Whether slices have a place in a series, so that position can tell something."""
    return bool(table["series_id"].duplicated().any() and table["z_mm"].notna().any())


def _known(training: Manifest, rows: np.ndarray[Any, Any], labels: list[str]) -> pd.DataFrame:
    """Positions and labels of the run's training slices."""
    table = training.table.iloc[rows]
    frame = table[["patient_id", "series_id", "slice_id", "z_mm"]].reset_index(drop=True)
    for label in labels:
        frame[f"label_{label}"] = table[label].to_numpy(dtype=np.float64)
    return frame
