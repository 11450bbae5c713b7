"""``hemlearn explain``: the telling slices of a finished run with their maps, and checks of what the maps mean."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from hemlearn.data.manifest import Manifest
from hemlearn.evaluation.auroc import none_if_nan
from hemlearn.evaluation.predictions import read_predictions
from hemlearn.reading.explain.cams import METHODS, find_layer, upsampled
from hemlearn.reading.explain.drawing import (
    Drawer,
    label_places,
    layer_text,
    telling_slices,
    write_overlay,
    write_shares,
)
from hemlearn.reading.explain.pointing import has_masks, lesion_masks, play, pointing_game
from hemlearn.reading.explain.sanity import between_slices, cascade
from hemlearn.reading.manifest import UnseenSlices, predict_manifest
from hemlearn.reading.members import Member, load_members
from hemlearn.tasks.base import Classification
from hemlearn.training.build import build_datamodule
from hemlearn.util.console import track
from hemlearn.util.errors import ConfigError, DataError, RunError
from hemlearn.util.files import write_json

logger = logging.getLogger(__name__)
CHECKED = 64  # slices that the sanity test draws at every stage
POINTED = 1000  # slices that play the pointing game


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        run: The run folder.
        out: Folder to write.
        data: Name of another data set; None: the run's own.
        root: Its folder; None: that of the run.
        part: Part of the run's own split.
        label: Label to explain; None: the first of the task, or ``any`` where there is one.
        slices: Overlays.
        method: gradcam | gradcam++ | occlusion.
        cells: Places wanted along a side of the maps.
        attribution: gradient | attention | removal.
        check: Randomise the weights, and play the pointing game where the data set has lesion masks.
    """

    run: Path
    out: Path
    data: str | None = None
    root: str | None = None
    part: str = "test"
    label: str | None = None
    slices: int = 12
    method: str = "gradcam"
    cells: int | None = None
    attribution: str = "gradient"
    check: bool = False


@dataclass
class Subject:
    """A loaded run and the slices it is explained on.

    Attributes:
        member: The run.
        data: All slices of the data set.
        frame: Predictions of those looked at; the index is the row in the manifest.
        task: The network, on its device.
    """

    member: Member
    data: UnseenSlices
    frame: pd.DataFrame
    task: Classification

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.task.backbone.mean.device


def explain_run(wanted: Wanted) -> dict[str, Any]:
    """Write overlays, ``explain.json`` and, when checked, what the checks say.

    Raises:
        ConfigError: An unknown label or method.
        RunError: No finished run, or its data have changed since.
        DataError: No slice to explain, or ``out`` cannot be written.
    """
    if wanted.method not in METHODS:
        raise ConfigError(f"method={wanted.method}", remedy=f"take one of {', '.join(METHODS)}")
    subject = _open(wanted)
    config = subject.member.run.config
    labels = list(config.task.labels)
    label = wanted.label or ("any" if "any" in labels else labels[0])
    place = label_places(labels, [label])[0]
    threshold = subject.member.thresholds.get("slice", {}).get(label, 0.5)
    chosen = telling_slices(subject.frame, label, wanted.slices, threshold)
    if chosen.empty:
        raise DataError(f"{wanted.part}: no slice to explain", remedy="give another part or data set")
    layer = None if wanted.method == "occlusion" else find_layer(subject.task.backbone, wanted.cells)
    _make(wanted.out)
    drawer = Drawer(subject.data, place, wanted.method, wanted.cells, subject.device)
    content: dict[str, Any] = {
        "run": str(wanted.run),
        "hash": subject.member.hash,
        "data": wanted.data or config.data.name,
        "data_root": str(subject.data.root),
        "synthetic": subject.data.manifest.synthetic,
        "part": wanted.part,
        "label": label,
        "threshold": threshold,
        "method": wanted.method,
        "layer": layer_text(layer),
        "explained": "series" if subject.member.of_series else "slice",
        "image_size": config.data.image_size,
        "slices": _overlays(subject, drawer, chosen, wanted, label),
    }
    if wanted.check:
        content["checks"] = _checks(subject, drawer, label, threshold)
    write_json(wanted.out / "explain.json", content, indent=2, allow_nan=False)
    return content


def _open(wanted: Wanted) -> Subject:
    member = load_members([wanted.run])[0]
    config, task, calibration = member.run
    if wanted.data is None and wanted.root is None:
        manifest, frame = _own(member, wanted.part)
    else:
        name = wanted.data or config.data.name
        moved = config.changed({"data.name": name, "data.root": wanted.root, "data.manifest": None})
        manifest = build_datamodule(moved).manifest
        frame = predict_manifest(config, task, manifest, calibration)
    frame.index = pd.Index(manifest.table["slice_id"]).get_indexer(frame["slice_id"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Subject(member, UnseenSlices(config, manifest), frame, task.to(device))


def _own(member: Member, part: str) -> tuple[Manifest, pd.DataFrame]:
    manifest = build_datamodule(member.run.config).manifest
    if manifest.checksum != member.provenance["checksums"]["manifest"]:
        raise RunError(
            f"run={member.folder}: the data in {manifest.root} are not those it was trained on",
            remedy="give data=NAME data.root=DIR to explain it on other data",
        )
    frame = read_predictions(member.folder / "predictions.parquet", [part])
    if frame.empty:
        raise DataError(f"part={part}: the run predicted no such slices", remedy="take part=test or part=val")
    return manifest, frame


def _make(out: Path) -> None:
    try:
        (out / "overlays").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"out={out}: cannot be written ({error.strerror or error})", remedy="name a folder you may write in"
        ) from error


def _overlays(
    subject: Subject, drawer: Drawer, chosen: pd.DataFrame, wanted: Wanted, label: str
) -> list[dict[str, Any]]:
    rows = chosen.index.to_numpy(dtype=np.int64)
    config, data = subject.member.run.config, subject.data
    size = config.data.image_size
    found = drawer.draw(subject.task, rows)
    large = upsampled(found, size).numpy()
    pixels = drawer.raw(rows)
    middle = pixels[:, pixels.shape[1] // 2].numpy()
    masks = lesion_masks(data.manifest, rows, size, config.data.fit) if has_masks(data.manifest) else None
    out = []
    for k, item in enumerate(track(chosen.itertuples(), "Drawing overlays", len(chosen))):
        name = f"{k + 1:03d}_{re.sub(r'[^A-Za-z0-9]+', '-', item.kind)}_{_safe(item.slice_id)}.png"
        prob = float(getattr(chosen, f"prob_{label}").iloc[k])
        title = f"{item.slice_id} | {item.kind}: probability of {label} {prob:.3f}"
        write_overlay(
            wanted.out / "overlays" / name,
            middle[k],
            data.store.unit,
            large[k],
            title=title,
            label=label,
            top=float(large[k].max()),
            mask=None if masks is None else masks[k],
        )
        entry: dict[str, Any] = {
            "file": f"overlays/{name}",
            "slice_id": item.slice_id,
            "series_id": item.series_id,
            "kind": item.kind,
            "probability": prob,
            "evidence": float(found[k].sum()),
        }
        if subject.member.of_series:
            entry["series"] = _shares(subject, drawer, int(rows[k]), name, wanted, label)
        out.append(entry)
    return out


def _shares(subject: Subject, drawer: Drawer, row: int, name: str, wanted: Wanted, label: str) -> dict[str, Any]:
    whole, shares = drawer.attribution(subject.task, row, wanted.attribution)
    table = subject.data.manifest.table
    z = table["z_mm"].to_numpy(dtype=np.float64)[whole]
    z = np.arange(len(whole), dtype=np.float64) if np.isnan(z).any() else z
    prob = subject.frame[f"prob_{label}"].reindex(whole).to_numpy(dtype=np.float64)
    here = int(np.flatnonzero(whole == row)[0])
    file = name.replace(".png", "_series.png")
    write_shares(wanted.out / "overlays" / file, z.tolist(), shares, prob, here, label)
    order = np.argsort(-shares, kind="stable")[:5]
    top = [{"slice_id": str(table["slice_id"].iloc[whole[k]]), "share": float(shares[k])} for k in order]
    return {"file": f"overlays/{file}", "attribution": wanted.attribution, "most": top}


def _safe(text: str) -> str:
    """A file name without anything a shell, a browser or a file system could read as more than a name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[-80:].lstrip(".") or "slice"


# --- checks ---
def _checks(subject: Subject, drawer: Drawer, label: str, threshold: float) -> dict[str, Any]:
    """Pointing game on all positive slices with a mask; randomised weights on at most ``CHECKED`` slices."""
    config, data, frame = subject.member.run.config, subject.data, subject.frame
    size = config.data.image_size
    positive = frame.index[frame[f"label_{label}"] == 1].to_numpy(dtype=np.int64)
    out: dict[str, Any] = {"pointing": None, "left_out": max(0, len(positive) - POINTED)}
    positive = _spread(positive, POINTED)
    masks: NDArray[np.bool_] | None = None
    if has_masks(data.manifest) and len(positive):
        masks = lesion_masks(data.manifest, positive, size, config.data.fit)
        shown = masks.any(axis=(1, 2))
        small = int((~shown).sum())
        positive, masks = positive[shown], masks[shown]
        if len(positive):
            out["pointing"] = {**_pointing(subject, drawer, positive, masks, label, threshold), "without_mask": small}
    if not len(positive):
        out["randomised"] = None
        out["note"] = f"no positive slice of {label} here: neither check was made"
        return out
    take = _spread(np.arange(len(positive)), CHECKED)
    rows = positive[take]
    kept = None if masks is None else masks[take]

    def measure(found: torch.Tensor) -> dict[str, Any]:
        if kept is None:
            return {}
        game = pointing_game("map", upsampled(found, size).double().numpy(), kept)
        return {
            "hit_rate": float(game.hit.mean()),
            "energy_inside": none_if_nan(float(np.nanmean(game.inside))) if (~np.isnan(game.inside)).any() else None,
        }

    images = drawer.images(subject.task, rows)
    stages = cascade(subject.task, lambda task: drawer.draw(task, rows), images, size=size, measure=measure)
    out["randomised"] = {
        "slices": len(rows),
        "stages": [stage.row() for stage in stages],
        "between_slices": none_if_nan(between_slices(drawer.draw(subject.task, rows))),
    }
    return out


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)
    return np.asarray(rows[np.unique(places)], dtype=np.int64)


def _pointing(
    subject: Subject, drawer: Drawer, rows: NDArray[np.int64], masks: NDArray[np.bool_], label: str, threshold: float
) -> dict[str, Any]:
    size = subject.member.run.config.data.image_size
    patients = subject.data.manifest.table["patient_id"].to_numpy(dtype=object)[rows].astype(str)
    found = upsampled(drawer.draw(subject.task, rows), size).double().numpy()
    games = play(found, masks, patients)
    # A map can only show what the network has seen: the slices it calls positive are told apart.
    seen = subject.frame.loc[rows, f"prob_{label}"].to_numpy() >= threshold
    return {
        **{game.name: game.summary(patients) for game in games},
        "lesion_share": float(masks.mean()),
        "detected": {game.name: game.of(seen).summary(patients[seen]) for game in games} if seen.any() else None,
    }
