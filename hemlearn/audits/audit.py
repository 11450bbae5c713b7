"""Could a result be a shortcut or a leak? The audits of a run and of a data set.

Both give the same dictionary. ``size``, ``metadata``, ``border`` and ``position`` hold a null's AUROC per level and
label, under ``test`` for a run (fitted on its training patients) and under ``cv`` for a data set (cross-validated by
patient, copies joined); ``duplicates`` and ``split`` tell what stands on two sides, ``labels`` counts per part, and
``verdict`` says in sentences what follows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.audits.baselines import cross_validated, fit_predict, folds_of, metadata_features, null_aurocs, thinned
from hemlearn.audits.facts import SIZE, border_features, slice_facts
from hemlearn.audits.position import fit_position, relative_position
from hemlearn.audits.verdicts import verdicts
from hemlearn.config.schema import Config, DataConfig
from hemlearn.data.duplicates import duplicate_groups, kept_duplicate_pairs
from hemlearn.data.manifest import Manifest
from hemlearn.data.splits import PARTS, Split, make_split, ranks, units_of
from hemlearn.data.store import open_store
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.evaluation.predictions import BORDER, LEVELS, METADATA, POSITION, has_family, levels_of
from hemlearn.evaluation.predictions import SIZE as SIZE_FAMILY
from hemlearn.util.errors import ConfigError, SplitError

logger = logging.getLogger(__name__)
Rows = NDArray[np.int64]
FAMILY = {"size": SIZE_FAMILY, "metadata": METADATA, "border": BORDER, "position": POSITION}
_ALL_PAIRS = 5000  # slices up to which near copies are sought even where the split does not ask for them
_DECODED = 5000  # slices that a look at a data set decodes for the border; of more, patients are drawn
_NAMED = 20  # pairs told by name


def audit_run(config: Config, data: SliceDataModule, frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Fit the nulls on a run's training patients and judge them on its test patients.

    Args:
        config: The run.
        data: Its slices, with split and store.
        frame: Its predictions on validation and test, with ``position_prob_*`` where positions are known.

    Returns:
        ``frame`` with ``metadata_prob_*``, ``border_prob_*`` and, where image sizes differ, ``size_prob_*``; and the
        content of ``audits`` in ``metrics.json``.
    """
    manifest, labels = data.manifest, list(config.task.labels)
    table = manifest.table
    patients = table["patient_id"].to_numpy(dtype=object)
    place = pd.Series(np.arange(len(table)), index=table["slice_id"].to_numpy(dtype=object))
    target = place.loc[frame["slice_id"].to_numpy(dtype=object)].to_numpy(np.int64)
    train = thinned(patients, data.rows("train"))
    used = np.union1d(train, target)
    inside = {"train": np.searchsorted(used, train), "target": np.searchsorted(used, target)}
    facts = slice_facts(manifest, cache_dir=data.cache, rows=used)
    features = fact_features(facts, table)
    features["border"] = border_features(data.store, table, used, config.data.fit)
    y, who = data.labels.astype(np.float64)[used], patients[used]
    out = frame.copy()
    audits: dict[str, Any] = {}
    levels = levels_of(config.task)
    task = config.task
    for name, columns in features.items():
        probs = fit_predict(columns, y, who, inside["train"], inside["target"])
        for j, label in enumerate(labels):
            out[f"{FAMILY[name]}_{label}"] = probs[:, j]
        audits[name] = _about(name, columns, len(train))
    tested = out[out["split"] == "test"]
    for name in FAMILY:
        if has_family(out, FAMILY[name]):
            audits.setdefault(name, {})["test"] = null_aurocs(
                tested, labels, task.kind, task.aggregate, levels, FAMILY[name], beside=True
            )
    parts = data.split.apply(manifest)
    audits |= _sides(manifest, parts, _pairs(config, manifest, data.cache), data.split.leaky)
    seen = seen_by_weights(config, data)
    if len(seen):
        audits["split"] |= {"leaky": True, "seen_by_weights": len(seen)}
    audits["labels"] = _counts(data.labels, labels, parts)
    return out, audits | {"verdict": verdicts(audits, "test")}


def adopt_position(audits: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Give the position-only null the intervals that ``metrics["nulls"]`` has, so that one figure has one interval."""
    for level, scores in metrics.get("nulls", {}).get("position", {}).get("test", {}).items():
        found = audits["position"]["test"][level]
        found["auroc"] = scores["auroc"]
        for label, table in scores["labels"].items():
            found["labels"][label]["auroc"] = table["auroc"]
    audits["verdict"] = verdicts(audits, "test")


def seen_by_weights(config: Config, data: SliceDataModule) -> list[str]:
    """Patients who validate or test here, and from whom the run that gave the weights has learnt.

    Only a run on the same data can tell; with other data equal names of patients mean nothing.
    """
    folder = Path(config.backbone.weights) if config.backbone.weights else None
    if folder is None or not (folder / "split.csv").is_file() or not (folder / "provenance.json").is_file():
        return []
    known = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["checksums"]["manifest"]
    if known != data.manifest.checksum:
        return []
    theirs, ours = Split.load(folder / "split.csv").apply(data.manifest), data.split.apply(data.manifest)
    seen = ((ours == "test") & (theirs != "test")) | ((ours == "val") & (theirs == "train"))
    return [str(name) for name in data.manifest.table.loc[seen, "patient_id"].unique()]


def audit_manifest(config: Config, manifest: Manifest, cache: Path) -> dict[str, Any]:
    """Cross-validate the nulls on a whole data set, and look at the split that the configuration would make.

    Args:
        config: ``data`` (image size and fit of the border's pixels), ``split`` and ``task`` are read.
        manifest: The data set.
        cache: Cache folder.
    """
    pairs = _pairs(config, manifest, cache)
    groups = duplicate_groups(manifest, pairs=pairs)
    labels = list(manifest.labels)
    audits: dict[str, Any] = {"pairs": pairs}
    try:
        split = make_split(manifest, config.split, labels=labels, groups=groups if _joins(config) else None)
        parts = split.apply(manifest)
        audits |= _sides(manifest, parts, pairs, split.leaky)
        audits["labels"] = _counts(manifest.table[labels].to_numpy(dtype=np.float64), labels, parts)
    except (SplitError, ConfigError) as error:  # too few patients, say: the data set can be looked at all the same
        audits |= _sides(manifest, None, pairs, False)
        audits["split"]["note"] = error.problem
    if labels:
        audits |= _cross_validate(config.data, manifest, cache, np.asarray(groups, dtype=np.int64))
    audits["verdict"] = verdicts(audits, "cv")
    return audits


def _cross_validate(cfg: DataConfig, manifest: Manifest, cache: Path, groups: Rows) -> dict[str, Any]:
    table, labels = manifest.table, list(manifest.labels)
    y = table[labels].to_numpy(dtype=np.float64)
    patients = table["patient_id"].to_numpy(dtype=object)
    units = units_of(np.unique(patients.astype(str), return_inverse=True)[1].astype(np.int64), groups)
    if units.max() < 1:
        return {"note": "one patient: no null can be cross-validated"}
    levels = LEVELS if manifest.label_level == "slice" else LEVELS[1:]
    kind = "binary" if len(labels) == 1 else "multilabel"
    found: dict[str, Any] = {}

    def judge(name: str, probs: NDArray[np.float64], chosen: Rows) -> None:
        frame = _frame(table.iloc[chosen], y[chosen], labels, probs)
        found.setdefault(name, {})["cv"] = null_aurocs(frame, labels, kind, "mean", levels, "prob")

    every = np.arange(len(table), dtype=np.int64)
    fold = folds_of(y, patients, units)
    for name, facts in fact_features(slice_facts(manifest, cache_dir=cache, progress=True), table).items():
        found[name] = _about(name, facts, len(table))
        judge(name, cross_validated(partial(fit_predict, facts, y, patients), y, fold), every)
    chosen = _some_patients(patients)
    part = manifest if len(chosen) == len(table) else replace(manifest, table=table.iloc[chosen].reset_index(drop=True))
    store = open_store(part, size=cfg.image_size, fit=cfg.fit, cache_dir=cache)
    columns = border_features(store, part.table, np.arange(len(chosen), dtype=np.int64), cfg.fit)
    found["border"] = _about("border", columns, len(chosen))
    if len(chosen) < len(table):
        found["border"]["note"] = f"on {part.table['patient_id'].nunique()} of {len(set(patients))} patients"
    fit = partial(fit_predict, columns, y[chosen], patients[chosen])
    judge("border", cross_validated(fit, y[chosen], fold[chosen]), chosen)
    if table["series_id"].duplicated().any() and table["z_mm"].notna().any():
        frame = _frame(table, y, labels).assign(place=relative_position(table))
        at = cross_validated(lambda a, b: fit_position(frame.iloc[a], frame.iloc[b], labels), y, fold)
        judge("position", at, every)
    return found


def fact_features(facts: pd.DataFrame, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Features of the nulls that need no pixel; ``size`` only where the images of ``table`` differ in it."""
    found = {"metadata": metadata_features(facts)}
    if len(table[["height", "width"]].drop_duplicates()) > 1:
        return {"size": metadata_features(facts, SIZE), **found}
    return found


def _about(name: str, columns: pd.DataFrame, slices: int) -> dict[str, Any]:
    """What a null was given."""
    named = ["ring of 1/16 of the shorter side: brightness of 32 segments, spread of 4 sides"]
    told = {"features": named if name == "border" else list(columns), "n_train": slices}
    return told if columns.shape[1] else told | {"note": "every slice has the same facts"}


def _frame(
    table: pd.DataFrame, y: NDArray[np.float64], labels: Sequence[str], probs: NDArray[np.float64] | None = None
) -> pd.DataFrame:
    frame = table[["patient_id", "series_id", "slice_id", "z_mm"]].reset_index(drop=True)
    frame.insert(0, "split", "test")
    for j, label in enumerate(labels):
        frame[f"label_{label}"] = y[:, j]
        if probs is not None:
            frame[f"prob_{label}"] = probs[:, j]
    return frame


def _some_patients(patients: NDArray[Any]) -> Rows:
    """Rows of all patients, or of as many as stay within ``_DECODED`` slices, drawn by their names."""
    if len(patients) <= _DECODED:
        return np.arange(len(patients), dtype=np.int64)
    names, code, sizes = np.unique(patients.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(ranks(names.tolist(), "border"))
    kept = order[: max(2, int(np.searchsorted(np.cumsum(sizes[order]), _DECODED, side="right")))]
    return np.flatnonzero(np.isin(code, kept)).astype(np.int64)


# --- sides of the split -------------------------------------------------------------------------------------------


def _joins(config: Config) -> bool:
    return config.split.duplicates == "near"


def _pairs(config: Config, manifest: Manifest, cache: Path) -> pd.DataFrame:
    """Copies among the slices, sought as far as the split seeks them, and farther where that is cheap."""
    near = config.split.duplicates == "near" or len(manifest.table) <= _ALL_PAIRS
    found = kept_duplicate_pairs(manifest, "near" if near else "exact", cache)
    found.attrs["sought"] = "exact and near" if near else "exact"
    return found


def _sides(manifest: Manifest, parts: pd.Series[str] | None, pairs: pd.DataFrame, leaky: bool) -> dict[str, Any]:
    """Duplicates and patients, and how many of them stand on two sides."""
    kinds = pairs["kind"].value_counts()
    duplicates: dict[str, Any] = {
        "exact": int(kinds.get("exact", 0)),
        "near": int(kinds.get("near", 0)),
        "straddling": None,
        "sought": pairs.attrs["sought"],
    }
    split: dict[str, Any] = {"leaky": leaky}
    if parts is None:
        return {"duplicates": duplicates, "split": split}
    table = manifest.table
    side = pd.Series(parts.to_numpy(), index=table["slice_id"].to_numpy(dtype=object))
    apart = pairs[(side.loc[pairs["slice_a"]].to_numpy() != side.loc[pairs["slice_b"]].to_numpy())]
    duplicates["straddling"] = len(apart)
    duplicates["pairs"] = [[a, b, side[a], side[b]] for a, b in apart[["slice_a", "slice_b"]].head(_NAMED).to_numpy()]
    tested = set(table.loc[(parts == "test").to_numpy(), "patient_id"])
    others = set(table.loc[(parts != "test").to_numpy(), "patient_id"])
    split |= {"patients": len(tested), "patients_on_two_sides": len(tested & others)}
    split["parts"] = {
        part: {
            "slices": int((parts == part).sum()),
            "patients": int(table.loc[(parts == part).to_numpy(), "patient_id"].nunique()),
        }
        for part in PARTS
    }
    return {"duplicates": duplicates, "split": split}


def _counts(y: NDArray[Any], labels: Sequence[str], parts: pd.Series[str]) -> dict[str, Any]:
    """Slices with, without and of unknown label, per part."""
    return {part: label_counts(y[(parts == part).to_numpy()], labels) for part in PARTS}


def label_counts(y: NDArray[Any], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Slices with, without and of unknown label, of ``(N, L)`` labels 1, 0 and NaN."""
    return {
        label: {
            "positive": int((column == 1).sum()),
            "negative": int((column == 0).sum()),
            "unknown": int(np.isnan(column).sum()),
        }
        for label, column in zip(labels, y.T, strict=True)
    }
