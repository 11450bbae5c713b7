"""The model card as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hemlearn.evaluation.scoring import METRICS, WEIGHTED
from hemlearn.reports.model_card import NULLS
from hemlearn.reports.summary import format_entry


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    run, model, split = card["run"], card["model"], card["split"]
    parts = [f"# Model card: {_text(run['name'])} / {_text(run['hash'])}", f"**{card['intended_use']}**"]
    parts += [
        "## Model",
        _items(
            {
                "predicts": f"{', '.join(model['labels'])} ({model['kind']}, per {model['level']})",
                "network": model["backbone"],
                "parameters": model["parameters"],
                "weights started from": model["weights"],
                "licence of those weights": model["licence_of_weights"],
                "features": model["features"],
                "sequence model": model["sequence"],
                "channels": model["channels"],
                "image size": f"{model['image_size']} px",
                "finished": run["finished"],
            }
        ),
    ]
    parts += ["## Data", _items({key: value for key, value in card["data"].items() if key != "notes"})]
    patients = split.get("patients") or {}
    sides = ", ".join(f"{part} {count}" for part, count in patients.items())
    fold = f"{split['fold']} of {split['folds']}" if split["name"] == "kfold" else ""
    parts += [
        "## Split",
        _items(
            {
                "kind": f"{split['name']}, by {split['by']}",
                "fold": fold,
                "patients": sides or None,
                "duplicates kept together": split["duplicates"],
                "leaky": split["leaky"],
            }
        ),
    ]
    parts += ["## Test results", "95 % intervals in brackets; n is the number of cases.", *_results(card)]
    parts += ["## What a model without the anatomy reaches", _nulls(card)]
    rest = {key: value for key, value in card["audits"].items() if key not in ("nulls", "verdict")}
    if rest:
        parts += ["## Audits", _items(rest)]
    parts += ["## Thresholds", _thresholds(card["thresholds"])]
    parts += ["## Calibration", _calibration(card["calibration"])]
    parts += ["## Limits", "\n".join(f"- {_text(line)}" for line in card["limits"])]
    parts += ["## How it was trained", _items({key: value for key, value in card["training"].items() if value})]
    if card["export"]:
        parts += ["## The exported file", *_export(card["export"])]
    listed = "\n".join(f"- {_text(line)}" for line in card["missing"]) or "Nothing."
    return "\n\n".join([*parts, "## Missing from the run folder", listed]) + "\n"


def _text(value: Any) -> str:
    """A value on one line, with nothing that Markdown or HTML would read as markup."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}: {_text(item) or 'none'}" for key, item in value.items())
        return text if len(value) != 0 else "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    text = " ".join(str(value).split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`")):
        text = text.replace(sign, safe)
    return text


def _items(values: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in values.items() if value != ""}
    return (
        "\n".join(
            f"- {key.replace('_', ' ')}: {'missing' if value is None else _text(value)}" for key, value in shown.items()
        )
        or "missing"
    )


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _results(card: Mapping[str, Any]) -> list[str]:
    found = []
    for level, scores in _distinct(card["metrics"] or {}).items():
        labels = scores.get("labels", {})
        columns = {"all labels" if len(labels) > 1 else "value": scores, **(labels if len(labels) > 1 else {})}
        rows = []
        for name in (*METRICS, WEIGHTED):
            cells = [
                f"{format_entry(name, own[name])}, n={own[name].get('n', '?')}" if name in own else ""
                for own in columns.values()
            ]
            if any(cells):
                unit = " %" if name in ("accuracy", "sensitivity", "specificity") else ""
                rows.append([name.replace("_", " ") + unit, *cells])
        found += [f"### per {level}", _grid(["metric", *map(_text, columns)], rows)]
    return found or ["missing"]


def _distinct(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Scores by level; levels that hold the same cases with the same scores are told once."""
    found: dict[str, Any] = {}
    for level, scores in metrics.items():
        same = next((name for name, known in found.items() if known == scores), None)
        if same is None:
            found[level] = scores
        else:
            found = {f"{name} = {level}" if name == same else name: known for name, known in found.items()}
    return found


def _nulls(card: Mapping[str, Any]) -> str:
    rows = []
    for name, null in card["audits"]["nulls"].items():
        for level, entries in null["test"].items():
            own = (card["metrics"] or {}).get(level, {}).get("auroc")
            if "auroc" in entries:
                rows.append(
                    [
                        NULLS[name],
                        level,
                        format_entry("auroc", entries["auroc"]),
                        format_entry("auroc", own) if own else "missing",
                    ]
                )
    return _grid(["sees only", "per", "AUROC", "AUROC of this model"], rows) if rows else "missing"


def _thresholds(thresholds: Mapping[str, Any] | None) -> str:
    if thresholds is None:
        return "missing"
    rows = [
        [
            level,
            _text(label),
            "missing" if entry.get("value") is None else f"{entry['value']:.4g}",
            _text(entry.get("rule", "")),
            _text(entry.get("note") or ""),
        ]
        for level, labels in thresholds.items()
        for label, entry in labels.items()
    ]
    if not rows:
        return "None: the most probable class is called."
    return _grid(["per", "label", "positive from", "rule, on validation", "note"], rows)


def _calibration(found: Mapping[str, Any]) -> str:
    if "maps" not in found:
        return f"- method: {_text(found['method'])}"
    rows = [
        [
            level,
            _text(label),
            f"{own['slope']:.3g}",
            f"{own['shift']:.3g}",
            str(len(own["steps"])),
            str(own["positives"]),
            str(own["patients"]),
            _text(own["note"]),
        ]
        for level, maps in found["maps"].items()
        for label, own in maps.items()
    ]
    head = ["of", "label", "slope", "shift", "isotonic steps", "positive cases", "patients with one", "note"]
    return f"- method: {_text(found['method'])}, fitted on validation patients\n\n{_grid(head, rows)}"


def _export(about: Mapping[str, Any]) -> list[str]:
    rows = [
        [kind, name, " x ".join(map(str, own["shape"])), own["type"], _text(own["meaning"])]
        for kind in ("inputs", "outputs")
        for name, own in about[kind].items()
    ]
    parity = about["parity"]
    lines = [
        _items(
            {
                "file": about["file"]["name"],
                "SHA-256": about["file"]["sha256"],
                "format": about["format"],
                "versions": about["versions"],
                "labels": about["labels"],
            }
        ),
        _grid(["", "name", "shape", "type", "meaning"], rows),
    ]
    for title, steps in (("Inside the file:", about["inside"]), ("Left to the caller:", about["caller"])):
        lines.append(title + "\n\n" + "\n".join(f"{place}. {_text(step)}" for place, step in enumerate(steps, 1)))
    if not parity["slices"]:
        return [*lines, f"Agreement with the run: {_text(parity['note'])}."]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in parity["speed"]["images_per_second"].items())
    shape = " x ".join(map(str, parity["speed"]["input"]))
    lines.append(
        f"Agreement with the run: largest difference {parity['largest_difference']:.1e} on {parity['slices']} "
        f"test slices. Images per second (input {shape}, {parity['speed']['threads']} CPU threads): "
        f"{rates}."
    )
    return lines
