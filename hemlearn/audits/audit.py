"""Could a result be a shortcut or a leak? The audits of a run, of an external evaluation and of a data set.

All give the same dictionary. ``size``, ``metadata``, ``border`` and ``position`` hold the AUROC of a baseline that
sees no brain, ``csf`` and ``evans`` (hydrocephalus on MRI) of one that measures it without a network, per level and
label: under ``test`` for a run and for an external evaluation (fitted on the run's training patients), under ``cv`` for
a data set (cross-validated by patient, copies joined, see :mod:`hemlearn.audits.partitions`), with p and, for all
labels and baselines of a level, corrected p. ``duplicates`` and ``split`` say what stands on two sides, ``labels``
counts per split, and ``verdict`` says in sentences what follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.audits.baselines import (
    adjust,
    baseline_aurocs,
    fit_predict,
    metadata_features,
    position_basis,
    relative_position,
    thinned,
    verdicts,
    with_position,
)
from hemlearn.audits.facts import SIZE, border_features, slice_facts
from hemlearn.audits.partitions import repeated, some_rows
from hemlearn.audits.seen import seen_by_weights
from hemlearn.audits.ventricles import ventricle_features
from hemlearn.config.schema import TaskConfig
from hemlearn.data.duplicates import duplicate_groups, kept_duplicate_pairs, opposite_labels
from hemlearn.data.manifest import Manifest
from hemlearn.data.splits import PARTS, Split, units_of
from hemlearn.data.store import open_store, scanned_store
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.predictions import (
    BORDER,
    CSF,
    EVANS,
    LEVELS,
    METADATA,
    POSITION,
    has_family,
    label_array,
    levels_of,
)
from hemlearn.evaluation.predictions import SIZE as SIZE_FAMILY
from hemlearn.util.errors import ConfigError, SplitError, count

Rows = NDArray[np.int64]
NOBODY = "no patient ids: images count as people, so that a person may stand on two sides and intervals are of images"
MEASURED = {"csf": CSF, "evans": EVANS}  # of hydrocephalus on MRI; nothing is fitted
FAMILY = {"size": SIZE_FAMILY, "metadata": METADATA, "border": BORDER, "position": POSITION, **MEASURED}
_ALL_PAIRS = 5000  # slices up to which near copies are sought even where the split does not ask for them
_NAMED = 20  # pairs listed by name
_IDS = ["patient_id", "series_id", "slice_id", "z_mm"]


def audit_run(
    data: SliceDataModule, frame: pd.DataFrame, task: TaskConfig, calibration: Calibration, weights: str | None = None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fit the baselines on a run's training patients and judge them on its test patients, beside the run itself."""
    manifest, labels = data.manifest, list(task.labels)
    table = manifest.table
    patients = table["patient_id"].to_numpy(dtype=object)
    target = pd.Index(table["slice_id"]).get_indexer(frame["slice_id"]).astype(np.int64)
    train = thinned(patients, data.rows("train"))
    used = np.union1d(train, target)
    features = fact_features(slice_facts(manifest, cache_dir=data.cache, rows=used), table)
    features["border"] = border_features(data.store, table, used, data.fit)
    y, learnt = data.labels.astype(np.float64)[used], np.searchsorted(used, train)
    out = _with_baselines(frame, features, y, patients[used], learnt, np.searchsorted(used, target), labels)
    out = _with_ventricles(out, labels, data, target)
    audits: dict[str, Any] = {name: _about(name, columns, len(train)) for name, columns in features.items()}
    audits |= {
        name: {"features": ["measured, not learnt"]} for name, family in MEASURED.items() if has_family(out, family)
    }
    for name, found in _judged(out[out["split"] == "test"], task, calibration).items():
        audits.setdefault(name, {})["test"] = found
    adjust(audits)
    sides = data.split.apply(manifest)
    audits |= _sides(manifest, sides, _pairs(data), data.split.leaky)
    seen = seen_by_weights(weights, data)
    if len(seen):
        audits["split"] |= {"leaky": True, "seen_by_weights": len(seen)}
    audits["labels"] = _counts(data.labels, labels, sides)
    unknown = [] if manifest.patients_known else [NOBODY]
    return out, audits | {"verdict": [*unknown, *verdicts(audits, "test")]}


def audit_external(
    frame: pd.DataFrame,
    task: TaskConfig,
    calibration: Calibration,
    data: SliceDataModule,
    *,
    training: Manifest | None,
    split: Split,
    duplicates: str,
    shared: int,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """As :func:`audit_run`, of a run's predictions on another data set, whose slices are prepared as the run's are."""
    labels, manifest, cache = list(task.labels), data.manifest, data.cache
    out = frame if training is None else _with_external(frame, labels, manifest, training, split, cache)
    target = pd.Index(manifest.table["slice_id"]).get_indexer(frame["slice_id"]).astype(np.int64)
    out = _with_ventricles(out, labels, data, target)
    note, judged = "fitted on the run's training slices", _judged(out, task, calibration)
    audits: dict[str, Any] = {
        name: {"test": found} | ({} if name in MEASURED else {"note": note}) for name, found in judged.items()
    }
    adjust(audits)
    audits["labels"] = {"test": label_counts(label_array(out, labels), labels)}
    if duplicates == "none":
        unknown = {"duplicates": {"exact": 0, "near": 0, "straddling": shared, "sought": "no"}}
        return out, audits | {"verdict": verdicts(audits | unknown, "test", manifest.person)[1:]}
    audits["duplicates"] = _kinds(kept_duplicate_pairs(manifest, duplicates, cache), duplicates, shared)
    return out, audits | {"verdict": verdicts(audits, "test", manifest.person)}


def _with_external(
    frame: pd.DataFrame, labels: list[str], manifest: Manifest, training: Manifest, split: Split, cache: Path
) -> pd.DataFrame:
    rows = np.flatnonzero((split.apply(training) == "train").to_numpy()).astype(np.int64)
    if all(item["series_id"].duplicated().any() and item["z_mm"].notna().any() for item in (frame, training.table)):
        known = training.table.iloc[rows]
        frame = with_position(frame, _frame(known, known[labels].to_numpy(dtype=np.float64), labels), labels)
    rows = thinned(training.table["patient_id"].to_numpy(dtype=object), rows)
    target = pd.Index(manifest.table["slice_id"]).get_indexer(frame["slice_id"]).astype(np.int64)
    parts = [(training, rows), (manifest, target)]
    facts = pd.concat([slice_facts(item, cache_dir=cache, rows=own) for item, own in parts], ignore_index=True)
    known = training.table.iloc[rows]
    y = np.full((len(facts), len(labels)), np.nan)
    y[: len(rows)] = known[labels].to_numpy(dtype=np.float64)
    patients = np.concatenate([item["patient_id"].to_numpy(dtype=object) for item in (known, frame)])
    learnt, asked = np.arange(len(rows)), np.arange(len(rows), len(facts))
    return _with_baselines(frame, fact_features(facts, known), y, patients, learnt, asked, labels)


def audit_manifest(data: SliceDataModule) -> dict[str, Any]:
    """Cross-validate the baselines on a whole data set, and look at the split that the data module would make.

    Beside the audits stand ``pairs`` (copies) and ``sides`` (the split of every slice; None: none can be made).
    """
    manifest, labels = data.manifest, list(data.manifest.labels)
    pairs = _pairs(data)
    groups = duplicate_groups(manifest, pairs=pairs)
    audits: dict[str, Any] = {"pairs": pairs, "sides": None}
    try:
        split = data.divide(labels, groups if _joins(data) else None)
        audits["sides"] = sides = split.apply(manifest)
        audits |= _sides(manifest, sides, pairs, split.leaky)
        audits["labels"] = _counts(manifest.table[labels].to_numpy(dtype=np.float64), labels, sides)
    except (SplitError, ConfigError) as error:  # too few patients, say: the data set can be looked at all the same
        audits |= _sides(manifest, None, pairs, False)
        audits["split"]["note"] = error.problem
    if labels:
        audits |= _cross_validate(data, np.asarray(groups, dtype=np.int64))
    audits["verdict"] = verdicts(audits, "cv")
    return audits


def _cross_validate(data: SliceDataModule, groups: Rows) -> dict[str, Any]:
    manifest = data.manifest
    table, labels = manifest.table, list(manifest.labels)
    y = table[labels].to_numpy(dtype=np.float64)
    patients = table["patient_id"].to_numpy(dtype=object)
    units = units_of(np.unique(patients.astype(str), return_inverse=True)[1].astype(np.int64), groups)
    if units.max() < 1:
        return {"note": "one patient: no baseline can be cross-validated"}
    levels = LEVELS if manifest.label_level == "slice" else LEVELS[1:]
    chosen = some_rows(patients)
    part = replace(manifest, table=table.iloc[chosen].reset_index(drop=True))
    facts = slice_facts(manifest, cache_dir=data.cache, rows=chosen, progress=True)
    features = fact_features(facts, part.table)
    store = scanned_store(manifest, size=data.image_size, fit=data.fit, cache_dir=data.cache)
    if store is None:  # only what is looked at is decoded
        store = open_store(part, size=data.image_size, fit=data.fit, cache_dir=data.cache)
    features["border"] = border_features(store, table, chosen, data.fit)
    found = {name: _about(name, columns, len(chosen)) for name, columns in features.items()}
    if len(chosen) < len(table):
        looked = f"on {count(len(chosen), 'slice')} of {count(part.table['patient_id'].nunique(), manifest.person)}"
        found = {name: about | {"note": looked} for name, about in found.items()}
    if table["series_id"].duplicated().any() and table["z_mm"].notna().any():
        place = position_basis(table.assign(place=relative_position(table)))[chosen]
        features["position"] = pd.DataFrame(place)
    every = repeated(features, part.table, y[chosen], units[chosen], labels, levels)
    return {name: found.get(name, {}) | {"cv": table} for name, table in every.items()}


def _with_baselines(
    frame: pd.DataFrame,
    features: Mapping[str, pd.DataFrame],
    y: NDArray[np.float64],
    patients: NDArray[Any],
    train: Rows,
    target: Rows,
    labels: Sequence[str],
) -> pd.DataFrame:
    """``frame`` with the probabilities of the baselines: fitted on rows ``train`` of the features, at ``target``."""
    out = frame.copy()
    for name, columns in features.items():
        probs = fit_predict(columns, y, patients, train, target)
        for j, label in enumerate(labels):
            out[f"{FAMILY[name]}_{label}"] = probs[:, j]
    return out


def _with_ventricles(frame: pd.DataFrame, labels: list[str], data: SliceDataModule, target: Rows) -> pd.DataFrame:
    """``frame`` with measures of the ventricles, at rows ``target`` of the manifest, where hydrocephalus is sought.

    They are taken on the squares that the network sees, in training and evaluation alike.
    """
    if labels != ["hydrocephalus"] or set(data.manifest.table["modality"]) != {"MR"}:
        return frame
    found = ventricle_features(data.store, data.manifest.table, target)
    return frame.assign(**{f"{family}_{labels[0]}": found[name].to_numpy() for name, family in MEASURED.items()})


def _judged(frame: pd.DataFrame, task: TaskConfig, calibration: Calibration) -> dict[str, Any]:
    """AUROC of each baseline that a table of predictions holds, beside the network's."""
    how = (list(task.labels), task.kind, task.aggregate, levels_of(task))
    return {
        name: baseline_aurocs(frame, *how, family, beside=calibration)
        for name, family in FAMILY.items()
        if has_family(frame, family)
    }


def fact_features(facts: pd.DataFrame, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Features of the baselines that need no pixel; ``size`` only where the images of ``table`` differ in it."""
    found = {"metadata": metadata_features(facts)}
    if len(table[["height", "width"]].drop_duplicates()) > 1:
        return {"size": metadata_features(facts, SIZE), **found}
    return found


def _about(name: str, columns: pd.DataFrame, slices: int) -> dict[str, Any]:
    """What a baseline was given."""
    named = ["ring of 1/16 of the shorter side: brightness of 32 segments, spread of 4 sides"]
    found = {"features": named if name == "border" else list(columns), "n_train": slices}
    return found if columns.shape[1] else found | {"note": "every slice has the same facts"}


def _frame(
    table: pd.DataFrame, y: NDArray[np.float64], labels: Sequence[str], probs: NDArray[np.float64] | None = None
) -> pd.DataFrame:
    frame = table[_IDS].reset_index(drop=True)
    frame.insert(0, "split", "test")
    for j, label in enumerate(labels):
        frame[f"label_{label}"] = y[:, j]
        if probs is not None:
            frame[f"prob_{label}"] = probs[:, j]
    return frame


# --- sides of the split -------------------------------------------------------------------------------------------


def _joins(data: SliceDataModule) -> bool:
    return getattr(data.splitter, "duplicates", "near") == "near"


def _pairs(data: SliceDataModule) -> pd.DataFrame:
    """Copies among the slices, sought as far as the split seeks them, and farther where that is cheap."""
    level = "near" if _joins(data) or len(data.manifest.table) <= _ALL_PAIRS else "exact"
    found = kept_duplicate_pairs(data.manifest, level, data.cache)
    found.attrs["level"] = level
    return found


def _kinds(pairs: pd.DataFrame, level: str, straddling: int | None) -> dict[str, Any]:
    """How many copies there are, and how many stand on two sides."""
    counts = pairs["kind"].value_counts()
    sought = "exact and near" if level == "near" else "exact"
    found = {kind: int(counts.get(kind, 0)) for kind in ("exact", "near")}
    return {**found, "straddling": straddling, "sought": sought}


def _sides(manifest: Manifest, sides: pd.Series[str] | None, pairs: pd.DataFrame, leaky: bool) -> dict[str, Any]:
    """Duplicates and patients, and how many of them stand on two sides."""
    duplicates = _kinds(pairs, pairs.attrs["level"], None)
    opposed = opposite_labels(manifest, pairs)
    if len(opposed):
        duplicates["opposite_labels"] = opposed.head(_NAMED).to_numpy().tolist()
    split: dict[str, Any] = {"leaky": leaky}
    if sides is None:
        return {"duplicates": duplicates, "split": split}
    table = manifest.table
    side = pd.Series(sides.to_numpy(), index=table["slice_id"].to_numpy(dtype=object))
    apart = pairs[(side.loc[pairs["slice_a"]].to_numpy() != side.loc[pairs["slice_b"]].to_numpy())]
    duplicates["straddling"] = len(apart)
    duplicates["pairs"] = [[a, b, side[a], side[b]] for a, b in apart[["slice_a", "slice_b"]].head(_NAMED).to_numpy()]
    tested = set(table.loc[(sides == "test").to_numpy(), "patient_id"])
    others = set(table.loc[(sides != "test").to_numpy(), "patient_id"])
    split |= {"patients": len(tested), "patients_on_two_sides": len(tested & others)}
    if not manifest.patients_known:  # images count as patients then, under the same keys
        split["patients_known"] = False
    each = {part: table.loc[(sides == part).to_numpy(), "patient_id"] for part in PARTS}
    split["parts"] = {part: {"slices": len(who), "patients": int(who.nunique())} for part, who in each.items()}
    return {"duplicates": duplicates, "split": split}


def _counts(y: NDArray[Any], labels: Sequence[str], sides: pd.Series[str]) -> dict[str, Any]:
    """Slices with, without and of unknown label, per split."""
    return {part: label_counts(y[(sides == part).to_numpy()], labels) for part in PARTS}


def label_counts(y: NDArray[Any], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Slices with, without and of unknown label, of ``(N, L)`` labels 1, 0 and NaN."""
    masks = {"positive": y == 1, "negative": y == 0, "unknown": np.isnan(y)}
    return {c: {side: int(mask[:, j].sum()) for side, mask in masks.items()} for j, c in enumerate(labels)}
