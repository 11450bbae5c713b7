"""A finished run on a labelled data set of another origin: external validation."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hemlearn.audits.audit import audit_external
from hemlearn.config.compose import compose
from hemlearn.config.requests import EvaluateRequest
from hemlearn.config.schema import Config, DataConfig, TaskConfig, to_dict
from hemlearn.data.covariates import write_covariates
from hemlearn.data.manifest import Manifest
from hemlearn.data.rows import BAND as OUTSIDE
from hemlearn.datamodules.base import SliceDataModule
from hemlearn.evaluation.calibration import Calibration
from hemlearn.evaluation.metrics import evaluate
from hemlearn.evaluation.predictions import label_names, write_predictions
from hemlearn.reading.engine import Predictor, choose_device
from hemlearn.reading.overlap import Overlap, find_overlap, training_manifest
from hemlearn.reading.predict import check_modality, manifest_series, predict_series
from hemlearn.reading.results import run_frames
from hemlearn.reports.figures import write_run_figures
from hemlearn.training.build import build_datamodule
from hemlearn.training.folder import RunFolder
from hemlearn.training.run import Run, load, unsigned
from hemlearn.util.errors import ConfigError, DataError, RunError, SplitError, count, hint
from hemlearn.util.files import nothing_left, sha256, write_json, write_text
from hemlearn.util.run_files import JOURNAL
from hemlearn.util.tables import csv_text

logger = logging.getLogger(__name__)
OVERLAPS = ("refuse", "exclude", "allow")
_VERSION = 3  # raised when the same run and data would give other figures
_DECIDED = ("image_size", "fit", "band")  # keys of data that the run decides, and those that it gives by default
_FROM_RUN = (*_DECIDED, "batch_size", "num_workers", "resident", "cache_dir", "cache_limit", "geometry")
_FILES = ("config.yaml", "calibration.json", "metrics.json", "predictions.parquet", "provenance.json")


@dataclass(frozen=True)
class External:
    """What came of it.

    Args:
        folder: The folder, laid out as that of a run, without a checkpoint.
        metrics: Content of ``metrics.json``.
        notes: What a reader should know, a sentence each.
        failures: (item, reason) of what could not be predicted.
        skipped: Whether an earlier call had made it.
    """

    folder: Path
    metrics: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    skipped: bool = False


def evaluate_external(request: EvaluateRequest) -> External:
    """Predict a data set with a run and score it with the run's own calibration and operating points.

    Raises:
        ConfigError: Labels that do not match, an unknown key, a key that the run decides.
        DataError: The data cannot be read, or nothing of it predicted.
        RunError: The run cannot be used.
        SplitError: The run has seen patients or pictures of the data.
    """
    for key, value, choices in (
        ("overlap", request.overlap, OVERLAPS),
        ("duplicates", request.duplicates, ("near", "exact", "none")),
    ):
        if value not in choices:
            raise ConfigError(f"{key}={value}: unknown", remedy=f"use one of {', '.join(choices)}")
    device = choose_device(request.device)
    run = load(request.run, trust=request.trust)
    _ = run.model  # before the data are read
    given = parse_map(request.labels, run.config.task)
    module, data, outside = open_data(run, request.overrides, list(dict.fromkeys(given.values())))
    manifest, name = module.manifest, data.name
    pairs = match_labels(given, run.config.task, manifest.labels, name)
    training, reason = training_manifest(run)
    sets = {"contents": module.contents, "sources": module.sources}
    overlap = find_overlap(run, manifest, training, request.duplicates, **sets)
    notes = [*overlap.notes, *([reason] if reason else []), *manifest.notes]
    absent = [label for label in run.config.task.labels if label not in pairs]
    if absent:
        notes.append(f"labels of the run that the data do not hold are left out: {', '.join(absent)}")
    used = _without_overlap(request, manifest, overlap, notes)
    if outside:
        low, high = run.config.data.band or (0.0, 1.0)
        notes.append(f"{count(outside, 'slice')} outside the run's data.band=[{low:g}, {high:g}]: left out")
    config = _config(run, module, data, pairs, manifest.label_level)
    folder = _folder(run, request, config, manifest, pairs, used)
    with nothing_left(folder.path, JOURNAL):
        if not _complete(folder):
            with folder.alone():  # another process may be making it
                pass
        if _complete(folder):
            earlier = Run(folder.path)
            notes += [text] if (text := unsigned([earlier])) else []
            return External(folder.path, earlier.metrics, notes, skipped=True)
        notes += check_modality(run, manifest.table.loc[used], f"data={name}")
        folder.names.learn_manifest(manifest)
        with folder.open(to_dict(config)):
            began = time.perf_counter()
            made = predict_series(manifest_series(manifest, used), Predictor([run], device), folder.path)
            seconds = time.perf_counter() - began
            if not made.lines:
                raise DataError(
                    f"data={name}: nothing could be predicted; the first: {made.failures[0][1]}",
                    remedy="give data of the run's modality and unit",
                )
            (frame,) = run_frames(made.lines, [run], calibrated=True)
            frame = _labelled(frame, module, config, pairs)
            maps = (run.calibration or Calibration.none(run.config.task)).narrowed(list(pairs), config.task.kind)
            shared = int(overlap.pairs["slice_data"].isin(frame["slice_id"]).sum()) if len(overlap.pairs) else 0
            sought: Any = {"split": run.split, "duplicates": request.duplicates, "shared": shared}
            frame, audits = audit_external(frame, config.task, maps, module, training=training, **sought)
            write_predictions(frame, folder.path / "predictions.parquet")
            write_covariates(manifest.table, manifest.series, frame["slice_id"], folder.path)
            if not maps.empty:  # its slices are calibrated already; whoever puts them together needs the rest
                write_json(folder.path / "calibration.json", maps.to_dict(), indent=2)
            points = {
                level: {label: own[label] for label in pairs if label in own} for level, own in run.points.items()
            }
            cuts = dict(run.triage) or None
            for known in (points, cuts or {}):  # where labels of series alone have trained, theirs hold for slices
                known.setdefault("slice", known.get("series", {}))
            metrics = evaluate(frame, config.task, thresholds=points, calibration=maps, triage=cuts) | {
                "audits": folder.names.tree(audits)
            }
            write_json(folder.path / "metrics.json", metrics, indent=2, allow_nan=False)
            told: Any = {"calibration": maps, "patients_known": manifest.patients_known}
            write_run_figures(frame, config.task, metrics, pd.DataFrame({"epoch": [0]}), folder.figures, **told)
            (folder.figures / "learning_curves.png").unlink(missing_ok=True)  # nothing was learnt here
            _lists(folder, manifest, made.failures, overlap, used)
            notes += made.notes
            cost = {"predict_seconds": round(seconds, 2), "slices": len(frame)}
            seen = {"choice": request.overlap, "patients": len(overlap.patients), "findings": overlap.findings}
            seen |= {"looked_at": request.duplicates}
            facts = {"device": str(device), "cost": cost, "overlap": seen, "labels": pairs, "notes": notes}
            _provenance(folder, run, manifest, module.cache, facts | {"failures": len(made.failures)})
        (folder.path / "checkpoints").rmdir()  # an evaluation has none
        (folder.path / JOURNAL).unlink()  # its lines stand in predictions.parquet now
        return External(folder.path, metrics, notes, made.failures)


def _complete(folder: RunFolder) -> bool:
    if folder.status().get("state") != "complete":
        return False
    damaged = Run(folder.path).problems(*_FILES)
    for name, problem in damaged.items():
        logger.warning("%s: %s: it is made again", folder.path / name, problem)
    return not damaged


def open_data(
    run: Run, overrides: Sequence[str], labels: Sequence[str] = ()
) -> tuple[SliceDataModule, DataConfig, int]:
    """Another data set with everything that the run decides taken from the run.

    Args:
        run: The run.
        overrides: ``data=NAME``, ``data.root=DIR`` and further keys of the data group.
        labels: Labels that a table is read for; none: those of the run.

    Returns:
        The data module, its options, and how many slices it has left out as outside the run's ``data.band``.

    Raises:
        ConfigError: An unknown key, or one that the run decides.
    """
    fixed = {f"data.{key}" for key in _DECIDED}
    decided = [text for text in overrides if text.lstrip("+").partition("=")[0] in fixed]
    if decided:
        raise ConfigError(
            f"{decided[0]}: how slices are prepared is taken from the run",
            remedy="leave it out; another preparation needs another run",
        )
    config = run.config
    told = any(text.lstrip("+").startswith("data.geometry") for text in overrides)
    taken = {key: getattr(config.data, key) for key in _FROM_RUN if not (told and key == "geometry")}
    data = compose(list(overrides)).data.model_copy(update=taken)
    asked = labels if data.name == "table" and labels else config.task.labels  # a table has the labels asked of it
    module = build_datamodule(config.changed({"data": data, "task.labels": list(asked)}))
    reasons = module.manifest.skipped["reason"].astype(str)
    return module, data, int(reasons.str.startswith(OUTSIDE).sum())


def _without_overlap(
    request: EvaluateRequest, manifest: Manifest, overlap: Overlap, notes: list[str]
) -> NDArray[np.bool_]:
    """``(N,)`` which rows are evaluated."""
    everything = np.ones(len(manifest.table), dtype=bool)
    if not overlap.findings:
        return everything
    text = "; ".join(overlap.findings)
    if request.overlap == "refuse":
        raise SplitError(
            f"data of the run itself: {text}: results would be optimistic",
            remedy="give other data, or overlap=exclude to leave those patients out (overlap=allow keeps "
            "them and says so)",
        )
    if request.overlap == "allow":
        notes.append(f"OPTIMISTIC, overlap=allow: {text}")
        logger.warning(notes[-1])
        return everything
    keep: NDArray[np.bool_] = ~manifest.table["patient_id"].astype(str).isin(overlap.patients).to_numpy(dtype=bool)
    if not keep.any():
        raise SplitError(f"overlap=exclude leaves no patient: {text}", remedy="give data of other patients")
    notes.append(f"{count(len(overlap.patients), 'patient was', 'patients were')} left out: {text}")
    return keep


def _config(run: Run, module: SliceDataModule, data: DataConfig, pairs: dict[str, str], label_level: str) -> Config:
    """That of the run, with the data and the labels of the evaluation."""
    config = run.config
    level = label_level if config.task.labels_from == "series" else config.task.level
    level = "series" if label_level == "series" else level
    task = narrowed(config.task, list(pairs), level)
    # The module checks the labels by the data set's names, at the level they describe.
    module.select(labels=[pairs[label] for label in task.labels], kind=task.kind, level=task.level)
    split = config.split
    if split.name == "leave_one_out":  # these data have no such part; all of them are tested anyway
        split = split.changed({"name": "holdout", "left_out": None})
    changes = {"data": data, "split": split, "task": task, "name": f"{run.path.parent.name}_on_{data.name}"}
    return config.changed(changes)


def _folder(
    run: Run, request: EvaluateRequest, config: Config, manifest: Manifest, pairs: dict[str, str], used: NDArray[Any]
) -> RunFolder:
    patients = manifest.table["patient_id"].astype(str)
    kept = set(patients[used])
    out = sorted(set(patients) - kept)
    identity = [_VERSION, run.hash, manifest.checksum, pairs, out, config.task.level, request.overlap]
    digest = sha256(json.dumps(identity))[:12]
    folder = RunFolder(run.path.resolve().parent.parent, config.name, digest)
    if request.out is not None:
        folder.path = request.out
        made = folder.status()
        if made and made.get("hash") != digest:
            raise ConfigError(
                f"out={request.out}: holds run {made.get('hash')}, this is {digest}", remedy="give a new folder"
            )
    elif folder.path.is_symlink() or folder.path.parent.is_symlink():
        raise RunError(f"{folder.path}: is a link, which others may have laid", remedy="say where with out=DIR")
    return folder


def _labelled(frame: pd.DataFrame, module: SliceDataModule, config: Config, pairs: dict[str, str]) -> pd.DataFrame:
    """The predictions with the labels of the data, under the run's names; slices of which none is known are left out.

    As in a run: a multiclass slice has exactly one class.
    """
    rows = pd.Index(module.manifest.table["slice_id"]).get_indexer(frame["slice_id"])
    known = module.labels[rows]
    others = set(label_names(list(frame.columns))) - set(pairs)
    dropped = [f"{kind}_{label}" for label in others for kind in ("label", "prob", "series_prob")]
    frame = frame.drop(columns=dropped, errors="ignore")
    for j, label in enumerate(config.task.labels):
        frame[f"label_{label}"] = known[:, j].astype(np.float64)
    return frame.loc[~np.isnan(known).all(axis=1)].reset_index(drop=True)


def _lists(
    folder: RunFolder, manifest: Manifest, failures: list[tuple[str, str]], overlap: Overlap, used: NDArray[Any]
) -> None:
    patients = pd.DataFrame({"patient_id": manifest.table.loc[used, "patient_id"].drop_duplicates(), "split": "test"})
    tables = {"split": patients, "failures": pd.DataFrame(failures, columns=["item", "reason"], dtype=object)}
    for name, table in {**tables, **({"overlap": overlap.pairs} if len(overlap.pairs) else {})}.items():
        write_text(folder.path / f"{name}.csv", csv_text(table))


def _provenance(folder: RunFolder, run: Run, manifest: Manifest, cache: Path, facts: dict[str, Any]) -> None:
    sums = run.provenance.get("checksums", {})
    made = {"folder": str(run.path), "hash": run.hash, "data": run.provenance.get("data", {}), "checksums": sums}
    data = {"source": manifest.source, "root": str(manifest.root), "synthetic": manifest.synthetic}
    checksums = {"manifest": manifest.checksum, "weights": sums.get("weights")}
    weights, told = run.provenance.get("weights"), {"evaluated": "external", "run": made}
    data |= manifest.summary()
    facts = {**told, "data": data, "checksums": checksums, "weights": weights, "cache": str(cache), **facts}
    folder.write_provenance(**facts)


# --- Which label of a run is which label of a data set.


def parse_map(text: str | None, task: TaskConfig) -> dict[str, str]:
    """``labels=hemorrhage:any,bleed:any`` as run label -> data label; nothing given: empty.

    Raises:
        ConfigError: A part that is no pair, a label that the run does not have, or one named twice.
    """
    found: dict[str, str] = {}
    for part in (text or "").strip("[]{} ").split(","):
        if not part.strip():
            continue
        ours, colon, theirs = (item.strip() for item in part.partition(":"))
        if not colon or not ours or not theirs:
            raise ConfigError(
                f"labels={text}: {part!r} is not RUN_LABEL:DATA_LABEL", remedy="for example labels=hemorrhage:any"
            )
        if ours not in task.labels:
            raise ConfigError(
                f"labels={text}: the run has no label '{ours}'{hint(ours, task.labels)}; it predicts "
                f"{', '.join(task.labels)}",
                remedy="name the run's label first",
            )
        if ours in found:
            raise ConfigError(f"labels={text}: '{ours}' twice", remedy="give every label of the run once")
        found[ours] = theirs
    return found


def match_labels(given: dict[str, str], task: TaskConfig, held: Sequence[str], name: str) -> dict[str, str]:
    """Run label -> data label of everything that can be judged, in the order of the run's labels.

    Without ``given`` every label of the run must be there by its own name. With it, labels of the run that are neither
    given nor there are left out.

    Raises:
        ConfigError: Naming both lists.
    """
    pairs = {label: given.get(label, label) for label in task.labels}
    absent = [label for label, theirs in pairs.items() if theirs not in held]
    lists = f"the run predicts {', '.join(task.labels)}; data={name} holds {', '.join(held) or 'no labels'}"
    wrong = [label for label in absent if label in given]
    if wrong:
        theirs = given[wrong[0]]
        text = f"labels={wrong[0]}:{theirs}: data={name} has no label '{theirs}'{hint(theirs, held)}; {lists}"
        raise ConfigError(text, remedy="after the colon stands a label of the data set")
    kept = {label: theirs for label, theirs in pairs.items() if label not in absent}
    if absent and (not given or task.kind == "multiclass" or not kept):
        shown = held[-1] if held else "LABEL"
        raise ConfigError(
            f"labels do not match: {lists}; without a partner: {', '.join(absent)}",
            remedy=f"say which belong together: labels={absent[0]}:{shown}",
        )
    return kept


def narrowed(task: TaskConfig, labels: Sequence[str], level: str) -> TaskConfig:
    """The task with some of its labels, judged at ``level``."""
    if list(labels) == list(task.labels) and level == task.level:
        return task
    weights = task.label_weights
    if weights is not None:
        weights = [weight for weight, label in zip(weights, task.labels, strict=True) if label in labels]
    kind = "binary" if task.kind == "multilabel" and len(labels) == 1 else task.kind
    monitor = "log_loss" if kind == "binary" and task.monitor == "weighted_log_loss" else task.monitor
    sides = [pair for pair in task.sides if set(pair) <= set(labels)]
    weights = None if kind == "binary" else weights
    changes = {"labels": list(labels), "level": level, "kind": kind, "monitor": monitor}
    return task.changed({**changes, "label_weights": weights, "sides": sides})
