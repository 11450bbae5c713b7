"""The model card of a finished run (Mitchell et al. 2019, arXiv 1810.03993), from what its folder holds.

Nothing is filled in: what the folder does not hold is listed as missing. Local paths (``data.root``, the command) stay
in the run folder, since a card is made to be handed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hemlearn.evaluation.pooling import TOP_K, described
from hemlearn.evaluation.scoring import METRICS, WEIGHTED
from hemlearn.models.weights import NO_WEIGHTS, RANDOM
from hemlearn.reports.tables import PERCENT, format_entry, levels_once, markdown, metric_name, render, scores_text
from hemlearn.util.errors import count

INTENDED_USE = (
    "Research use only. This is not a medical device. It is not for diagnosis, triage or any decision about a patient."
)
_BASELINES = {
    "position": "place of the slice in its series",
    "size": "image size",
    "metadata": "file facts (size, bytes, encoding, scanner)",
    "border": "image border without the head",
    "csf": "share of fluid around the centre of the head",
    "evans": "Evans index of a plain segmentation",
}
FEW = 100  # patients below which figures are those of few: tested, on the card; of a whole data set, on other pages


def model_card(
    run: Mapping[str, Any],
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    status: Mapping[str, Any],
    made_from: Mapping[str, Any],
    maps: Mapping[str, Any] | None,
    patients: Mapping[Any, int] | None,
    export: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Content of the card (see :meth:`hemlearn.training.run.Run.card`).

    Args:
        run: Name and hash.
        config: Content of ``config.yaml``.
        metrics: Of ``metrics.json``.
        status: Of ``status.json``; empty: there is none.
        made_from: Of ``provenance.json``; empty: there is none.
        maps: Of ``calibration.json``; None: there is none.
        patients: Split -> patients; None: not known.
        export: What is said of an exported file.
    """
    missing = [name for name, found in (("status.json", status), ("provenance.json", made_from)) if not found]
    data = {key: value for key, value in (made_from.get("data") or {}).items() if key != "root"}
    task, backbone = config["task"], config["backbone"]

    def known(source: Mapping[str, Any], name: str, where: str) -> Any:
        if source.get(name) in (None, "", {}):
            missing.append(f"{name.replace('_', ' ')} ({where})")
        return source.get(name)

    if not data:
        missing.append("data (provenance.json)")
    audits = _audits(metrics, missing)
    card = {
        "run": {**run, "state": status.get("state"), "finished": known(status, "finished", "status.json")},
        "intended_use": INTENDED_USE,
        "model": {
            **{"labels": list(task["labels"]), "kind": task["kind"], "level": task["level"]},
            "backbone": backbone["name"],
            "weights": known(made_from, "weights", "provenance.json"),
            "licence_of_weights": _licence(backbone, made_from, missing),
            **{group: config[group]["name"] for group in ("sequence", "features", "channels")},
            "image_size": config["data"]["image_size"],
            "parameters": known(made_from.get("cost") or {}, "parameters", "provenance.json, cost"),
        },
        "data": data,
        "split": _split(patients, config["split"], made_from, metrics, missing),
        "training": {
            "commit": known(made_from, "git_commit", "provenance.json"),
            **{name: made_from.get(name) for name in ("packages", "cost", "device")},
            "seed": config["seed"],
            "stage": (made_from.get("stage") or {}).get("experiment"),
        },
        "metrics": known(metrics, "test", "metrics.json"),
        "about_metrics": metrics.get("about"),
        "thresholds": known(metrics, "thresholds", "metrics.json") if task["kind"] != "multiclass" else {},
        "calibration": _calibration(maps, task),
        "audits": audits,
        "export": dict(export) if export else None,
    }
    if not maps and task["calibration"] != "none":
        missing.append("calibration maps (calibration.json)")
    return {**card, "limits": _limits(card), "missing": missing}


def _calibration(maps: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
    if not maps:
        return {"method": task["calibration"]}
    how = described(task["aggregate"], task.get("top_k", TOP_K))
    units = {f"{level} ({how} of slices)": own for level, own in maps.get("units", {}).items()}
    return {"method": maps["method"], "labels": maps["labels"], "maps": {**maps["maps"], **units}}


def _licence(backbone: Mapping[str, Any], made_from: Mapping[str, Any], missing: list[str]) -> str | None:
    if made_from.get("weights") == RANDOM:
        return "none: the network started from random weights"
    if made_from.get("weights") == NO_WEIGHTS:
        return "none: the backbone measures and has no weights"
    for found in (made_from.get("weights_licence"), backbone.get("note")):
        if found:
            return str(found)
    missing.append("licence of the pretrained weights (of a file of your own: config.yaml, backbone.note)")
    return None


_Tree = Mapping[str, Any]


def _split(
    patients: Mapping[Any, int] | None, chosen: _Tree, made_from: _Tree, metrics: _Tree, missing: list[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {key: chosen[key] for key in ("name", "by", "fold", "folds", "seed", "duplicates")}
    audited = ((metrics.get("audits") or {}).get("split") or {}).get("leaky")
    known = [value for value in (made_from.get("leaky_split"), metrics.get("leaky"), audited) if value is not None]
    found["leaky"] = any(known) if known else None
    if not known:
        missing.append("whether the split is leaky (provenance.json)")
    if patients is None:
        missing.append("split.csv")
        return found
    return found | {"patients": {part: int(patients.get(part, 0)) for part in ("train", "val", "test")}}


def _audits(metrics: Mapping[str, Any], missing: list[str]) -> dict[str, Any]:
    """What models without the anatomy reach on the test set, per baseline and level, and the rest of the audits."""
    audits = dict(metrics.get("audits") or {})
    baselines = {}
    for name in _BASELINES:
        found = audits.pop(name, None) or {}
        found = (metrics.get("nulls") or {}).get(name) or found  # with intervals where both are there
        if found.get("test"):
            baselines[name] = found
        elif name not in ("csf", "evans"):  # of hydrocephalus alone
            why = f": {found['note']}" if found.get("note") else ""
            missing.append(f"baseline that sees nothing but the {_BASELINES[name]} (metrics.json){why}")
    if isinstance(audits.get("duplicates"), Mapping):  # pairs name slices, which are not handed on
        audits["duplicates"] = {
            key: value for key, value in audits["duplicates"].items() if key not in ("pairs", "opposite_labels")
        }
    if not audits:
        missing.append("audits (metrics.json)")
    return {"nulls": baselines, **audits}


def _limits(card: Mapping[str, Any]) -> list[str]:
    """What the folder itself says against trusting the figures too far."""
    data, split, metrics = card["data"], card["split"], card["metrics"] or {}
    nameless = data.get("patients_known") is False
    who = "images" if nameless else "patients"
    found = [f"Tested on {who} of the training data set's own source; this folder holds no result on other data."]
    if data.get("synthetic"):
        found.append("Trained and tested on synthetic images: the figures say nothing about patients.")
    if split["leaky"]:
        found.append("The split lets one patient stand on two sides: the figures are optimistic.")
    tested = (split.get("patients") or {}).get("test")
    if nameless:
        found.append("No patient ids: images count as people; intervals are of images, and leaks cannot be told.")
    elif tested is not None and tested < FEW:
        found.append(f"Only {count(tested, 'patient was', 'patients were')} tested.")
    undefined: dict[tuple[str, str], list[str]] = {}  # label and its metrics -> levels
    for level, scores in metrics.items():
        for label, entries in scores.get("labels", {}).items():
            names = [name for name, entry in entries.items() if name in METRICS and entry.get("value") is None]
            if names:
                undefined.setdefault((label, ", ".join(map(metric_name, sorted(names)))), []).append(level)
    found += [
        f"Undefined on the test set: {names} of {label} ({', '.join(levels)})."
        for (label, names), levels in sorted(undefined.items())
    ]
    for name, blind in card["audits"]["nulls"].items():
        for level, entries in blind["test"].items():
            ours, theirs = (_auroc(source) for source in (metrics.get(level), entries))
            if ours and theirs and theirs["value"] >= (ours["low"] if ours["low"] is not None else ours["value"]):
                found.append(
                    f"A model that sees nothing but the {_BASELINES[name]} reaches AUROC "
                    f"{format_entry('auroc', theirs)} per {level}, within the interval of this model "
                    f"({format_entry('auroc', ours)}) or above it."
                )
    found += [str(line) for line in card["audits"].get("verdict", [])]
    if card["calibration"]["method"] == "none":
        found.append("Probabilities of slices are not calibrated: they rank cases, and need not equal frequencies.")
    if ranks := scores_text({"about": card["about_metrics"] or {}, "test": metrics}):
        found.append(f"{ranks[0].upper()}{ranks[1:]}.")
    found += [str(line) for line in data.get("notes", [])]
    return found


def _auroc(entries: Mapping[str, Any] | None) -> dict[str, Any] | None:
    entry = (entries or {}).get("auroc")
    return dict(entry) if entry and entry.get("value") is not None else None


# --- The model card as Markdown.


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    audits, metrics = card["audits"], card["metrics"] or {}
    baselines = [
        [_BASELINES[name], level, _cell("auroc", entries), _cell("auroc", metrics.get(level, {})) or "missing"]
        for name, found in audits["nulls"].items()
        for level, entries in found["test"].items()
        if "auroc" in entries
    ]
    known = card["data"].get("patients_known") is not False
    return render(
        "hemlearn.reports",
        "card.md.j2",
        _text,
        **card,
        data_left=_named({key: value for key, value in card["data"].items() if key != "notes"}, known),
        results=_results(metrics),
        baselines=baselines,
        audits_left=_named({key: value for key, value in audits.items() if key not in ("nulls", "verdict")}, known),
        trained={key: value for key, value in card["training"].items() if value},
    )


def _named(tree: Any, known: bool) -> Any:
    """The same with images in the names of keys, where they count as patients."""
    if known or not isinstance(tree, Mapping):
        return tree
    return {
        key if key == "patients_known" else re.sub("^patients", "images", key): _named(value, known)
        for key, value in tree.items()
    }


def _text(value: Any) -> str:
    """A value on one line, with nothing that Markdown or HTML would read as markup."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(item) or 'none'}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return markdown(value)


def _cell(name: str, entries: Mapping[str, Any]) -> str:
    return format_entry(name, entries[name]) if name in entries else ""


def _results(metrics: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Level, columns and rows of each table; levels that hold the same cases with the same scores share one."""
    found = []
    for level, _, scores in levels_once(metrics):
        labels = scores.get("labels", {})
        columns = {"all labels": scores, **labels} if len(labels) > 1 else {"value": scores}
        rows = []
        for name in (*METRICS, WEIGHTED):
            figures = [(_cell(name, own), own.get(name, {}).get("n", "?")) for own in columns.values()]
            cells = [text and f"{text}, n={n}" for text, n in figures]
            if any(cells):
                rows.append([name.replace("_", " ") + (" %" if name in PERCENT else ""), *cells])
        found.append((level, list(columns), rows))
    return found
