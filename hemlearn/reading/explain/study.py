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

from hemlearn.config.requests import ErrorsRequest, ExplainRequest
from hemlearn.data.manifest import Manifest
from hemlearn.data.store import has_masks, lesion_masks, masks_are_lost
from hemlearn.evaluation.auroc import none_if_nan
from hemlearn.evaluation.predictions import check_predictions
from hemlearn.reading.explain.cams import check_cams, find_layer, upsampled
from hemlearn.reading.explain.checks import between_slices, cascade, play, pointing_game
from hemlearn.reading.explain.drawing import (
    Drawer,
    Slices,
    label_places,
    layer_text,
    telling_slices,
    write_overlay,
    write_shares,
)
from hemlearn.reading.explain.scores import check_maps
from hemlearn.reading.external import open_data
from hemlearn.reading.overlap import own_data
from hemlearn.reading.predict import predict_manifest
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import Run, load
from hemlearn.util.console import track
from hemlearn.util.errors import DataError, RunError
from hemlearn.util.files import check_writable, nothing_left, write_json, writing
from hemlearn.util.privacy import Pseudonyms, shown
from hemlearn.util.run_files import AGAIN

logger = logging.getLogger(__name__)
CHECKED = 64  # slices that the sanity test draws at every stage
POINTED = 1000  # slices that play the pointing game


@dataclass
class Subject:
    """A run and the slices it is explained on.

    Args:
        run: The run, its network on its device.
        data: All slices of the data set.
        frame: Predictions of those looked at; the index is the row in the manifest.
        names: What slices and series are called in pictures, their names and ``explain.json``.
    """

    run: Run
    data: Slices
    frame: pd.DataFrame
    names: Pseudonyms


def explain_run(request: ExplainRequest) -> dict[str, Any]:
    """Write overlays, ``explain.json`` and, when checked, what the checks say.

    Raises:
        ConfigError: An unknown label or method.
        RunError: No finished run, or its data have changed since.
        DataError: No slice to explain, or ``out`` cannot be written.
    """
    with nothing_left(request.out):
        return _explained(request)


def _explained(request: ExplainRequest) -> dict[str, Any]:
    names = Pseudonyms(request.out, show=request.show_patient)
    subject = open_subject(request, request.out / "overlays", names)
    run, config = subject.run, subject.run.config
    labels = list(config.task.labels)
    label = request.label or ("any" if "any" in labels else labels[0])
    place = label_places(labels, [label])[0]
    threshold = run.thresholds.get("slice", {}).get(label, 0.5)
    chosen = telling_slices(subject.frame, label, request.slices, threshold)
    if chosen.empty:
        raise DataError(f"{request.part}: no slice to explain", remedy="give another part or data set")
    layer = None if request.method == "occlusion" else find_layer(run.model.backbone, request.cells)
    check_writable(request.out / "overlays", f"out={request.out}", DataError)
    pool = None if run.calibration is None else run.calibration.pool("series")
    drawer = Drawer(subject.data, place, request.method, request.cells, run.model.backbone.mean.device, pool)
    content: dict[str, Any] = {
        "run": shown(str(request.run)),
        "hash": run.hash,
        "data": request.data or config.data.name,
        "data_root": subject.data.manifest.root.name,
        "synthetic": subject.data.manifest.synthetic,
        "part": request.part,
        "label": label,
        "threshold": threshold,
        "method": request.method,
        "layer": layer_text(layer),
        "explained": "series" if run.of_series else "slice",
        "image_size": config.data.image_size,
        "show_patient": request.show_patient,
        "slices": _overlays(subject, drawer, chosen, request, label),
    }
    if request.check:
        content["checks"] = _checks(subject, drawer, label, threshold)
    with writing(f"out={request.out}", "free some space", DataError):
        write_json(request.out / "explain.json", content, indent=2, allow_nan=False)
    return content


def open_subject(request: ExplainRequest | ErrorsRequest, out: Path, names: Pseudonyms) -> Subject:
    """A run with the slices that a request names.

    Raises:
        ConfigError: A network of whose slices there are no maps.
        RunError: No finished run, or its data have changed since.
        DataError: No slice in that part.
    """
    run = load(request.run, trust=request.trust)
    (check_maps if isinstance(request, ExplainRequest) and request.method == "occlusion" else check_cams)(run.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run.model.to(device)
    manifest, frame = _own(run, request) if request.data is None else (_other(run, request), None)
    if frame is None:
        check_writable(out, f"out={out}", DataError)
        frame = predict_manifest(run, manifest)
    rows = pd.Index(manifest.table["slice_id"]).get_indexer(frame["slice_id"])
    if (rows < 0).any():
        name = frame["slice_id"].iloc[int((rows < 0).argmax())]
        problem = f"{run.path / 'predictions.parquet'}: slice {name!r} is none of the data in {manifest.root}"
        raise RunError(problem, remedy=AGAIN)
    frame.index = pd.Index(rows)
    return Subject(run, Slices(run, manifest), frame, names)


def _other(run: Run, request: ExplainRequest | ErrorsRequest) -> Manifest:
    """The manifest of other data, as ``hemlearn evaluate`` reads it."""
    root = [] if request.root is None else [f"data.root={request.root}"]
    return open_data(run, [f"data={request.data}", *root])[0].manifest


def _own(run: Run, request: ExplainRequest | ErrorsRequest) -> tuple[Manifest, pd.DataFrame | None]:
    """The run's own data, where they lie now, and its predictions of a part; None: ``data.root`` holds other data."""
    manifest = build_datamodule(own_data(run, request.root)).manifest
    if manifest.checksum != run.checksum("manifest"):
        if request.root is not None:
            return manifest, None
        raise RunError(
            f"run={run.path}: the data in {manifest.root} are not those it was trained on",
            remedy="give data=NAME data.root=DIR to explain it on other data",
        )
    frame = run.read_predictions([request.part], check=False)
    check_predictions(frame, str(run.path / "predictions.parquet"), run.config.task.labels)
    if frame.empty:
        raise DataError(f"part={request.part}: the run predicted no such slices", remedy="take part=test or part=val")
    return manifest, frame


def _overlays(
    subject: Subject, drawer: Drawer, chosen: pd.DataFrame, request: ExplainRequest, label: str
) -> list[dict[str, Any]]:
    rows = chosen.index.to_numpy(dtype=np.int64)
    config, data = subject.run.config, subject.data
    size = config.data.image_size
    found = drawer.draw(subject.run.model, rows)
    large = upsampled(found, size).numpy()
    pixels = drawer.raw(rows)
    middle = pixels[:, pixels.shape[1] // 2].numpy()
    masks = lesion_masks(data.manifest, rows, size, config.data.fit) if has_masks(data.manifest) else None
    out = []
    for k, item in enumerate(track(chosen.itertuples(), "Drawing overlays", len(chosen))):
        slice_id = subject.names.of(item.slice_id, "slice")
        # Nothing that a shell, a browser or a file system could read as more than a name.
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", slice_id)[-80:].lstrip(".") or "slice"
        name = f"{k + 1:03d}_{re.sub(r'[^A-Za-z0-9]+', '-', item.kind)}_{safe}.png"
        prob = float(getattr(chosen, f"prob_{label}").iloc[k])
        title = f"{slice_id} | {item.kind}: probability of {label} {prob:.3f}"
        file, mask, top = request.out / "overlays" / name, None if masks is None else masks[k], float(large[k].max())
        write_overlay(file, middle[k], subject.run.unit, large[k], title=title, label=label, top=top, mask=mask)
        entry: dict[str, Any] = {
            "file": f"overlays/{name}",
            "slice_id": slice_id,
            "series_id": subject.names.of(item.series_id, "series"),
            "kind": item.kind,
            "probability": prob,
            "evidence": float(found[k].sum()),
        }
        if subject.run.of_series:
            entry["series"] = _shares(subject, drawer, int(rows[k]), name, request, label)
        out.append(entry)
    return out


def _shares(
    subject: Subject, drawer: Drawer, row: int, name: str, request: ExplainRequest, label: str
) -> dict[str, Any]:
    whole, shares = drawer.attribution(subject.run.model, row, request.attribution)
    table = subject.data.manifest.table
    z = table["z_mm"].to_numpy(dtype=np.float64)[whole]
    z = np.arange(len(whole), dtype=np.float64) if np.isnan(z).any() else z
    prob = subject.frame[f"prob_{label}"].reindex(whole).to_numpy(dtype=np.float64)
    here = int(np.flatnonzero(whole == row)[0])
    file = name.replace(".png", "_series.png")
    write_shares(request.out / "overlays" / file, z.tolist(), shares, prob, here, label)
    order = np.argsort(-shares, kind="stable")[:5]
    ids = subject.names.column((table["slice_id"].iloc[whole[k]] for k in order), "slice")
    top = [{"slice_id": name, "share": float(shares[k])} for name, k in zip(ids, order, strict=True)]
    return {"file": f"overlays/{file}", "attribution": request.attribution, "most": top}


# --- checks ---
def _checks(subject: Subject, drawer: Drawer, label: str, threshold: float) -> dict[str, Any]:
    """Pointing game on all positive slices with a mask; randomised weights on at most ``CHECKED`` slices."""
    config, data, frame = subject.run.config, subject.data, subject.frame
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
    if masks_are_lost(data.manifest):
        out["note"] = (
            "no pointing game: the phantom has no lesion masks (an earlier version drew it); "
            "delete that folder and draw it anew (one in the cache is drawn anew by itself)"
        )
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

    images = drawer.images(subject.run.model, rows)
    stages = cascade(subject.run.model, lambda task: drawer.draw(task, rows), images, size=size, measure=measure)
    out["randomised"] = {
        "slices": len(rows),
        "stages": [stage.row() for stage in stages],
        "between_slices": none_if_nan(between_slices(drawer.draw(subject.run.model, rows))),
    }
    return out


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most ``most`` of the rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)
    return np.asarray(rows[np.unique(places)], dtype=np.int64)


def _pointing(
    subject: Subject, drawer: Drawer, rows: NDArray[np.int64], masks: NDArray[np.bool_], label: str, threshold: float
) -> dict[str, Any]:
    size = subject.run.config.data.image_size
    patients = subject.data.manifest.table["patient_id"].to_numpy(dtype=object)[rows].astype(str)
    found = upsampled(drawer.draw(subject.run.model, rows), size).double().numpy()
    games = play(found, masks, patients)
    # A map can only show what the network has seen: the slices it calls positive are told apart.
    seen = subject.frame.loc[rows, f"prob_{label}"].to_numpy() >= threshold
    return {
        **{game.name: game.summary(patients) for game in games},
        "lesion_share": float(masks.mean()),
        "detected": {game.name: game.of(seen).summary(patients[seen]) for game in games} if seen.any() else None,
    }
