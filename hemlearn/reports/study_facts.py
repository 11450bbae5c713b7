"""What the runs of a group say about their study, each fact as a text; empty where their folders do not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hemlearn.evaluation.auroc import FEWEST, NAN
from hemlearn.evaluation.pooling import TOP_K, described
from hemlearn.reports.tables import amount, seconds
from hemlearn.reports.triage import triage_text
from hemlearn.util.errors import count

_TRIAGE_ROWS = 3  # told in a sentence
_KINDS = 8  # values of a covariate that are counted one by one
PARTS = {"train": "training", "val": "validation", "test": "test"}
_Tree = Mapping[str, Any]


class Run(NamedTuple):
    """What is used of a run."""

    card: _Tree  # content of its model card
    settings: _Tree  # config.yaml
    made: _Tree  # provenance.json


class Group(NamedTuple):
    """Runs of one recipe."""

    name: str
    runs: Sequence[Run]
    rows: Sequence[_Tree]  # its rows of the comparison's table: over labels, and of ``any``
    people: pd.DataFrame | None = None  # a row per tested patient, his covariates as columns; None: the runs keep none
    triage: Sequence[_Tree] = ()  # rows of hemlearn.compare.triage


def _of_runs(group: Group, text: Callable[[Run], str]) -> str:
    """What the runs say, each answer once."""
    return "; ".join(dict.fromkeys(filter(None, map(text, group.runs))))


def _first(group: Group, key: str) -> _Tree:
    found = group.runs[0].settings.get(key)
    return found if isinstance(found, Mapping) else {}


def _name(section: _Tree) -> str:
    """The name of a part, or the user's own class."""
    return str(section.get("_target_") or section.get("name") or "")


def range_text(values: Sequence[float]) -> str:
    """``3``, or ``3 to 5``."""
    low, high = min(values), max(values)
    return f"{low:.10g}" if low == high else f"{low:.10g} to {high:.10g}"


def _data(group: Group) -> str:
    def one(run: Run) -> str:
        data = run.card["data"]
        if not data:
            return ""
        nameless = data.get("patients_known") is False
        units = ("slices", "series") if nameless else ("slices", "series", "patients")
        sizes = [f"{data[key]} {key}" for key in units if key in data]
        kind = ", ".join(data.get("modality") or [])
        if nameless:
            sizes.append("no patient ids, so that images count as people")
        drawn = "; synthetic images, which say nothing about patients" if data.get("synthetic") else ""
        return f"data set {data.get('source', 'unknown')}: {', '.join(sizes)}{f'; {kind}' if kind else ''}{drawn}"

    return _of_runs(group, one)


def _labels(group: Group) -> str:
    def one(run: Run) -> str:
        counts = run.card["data"].get("labels") or {}
        told = [f"{c} {own['positive']} positive, {own['negative']} negative" for c, own in counts.items()]
        task = run.settings["task"]
        return f"labels per {task['level']}, as the data set gives them; slices: {'; '.join(told)}" if told else ""

    return _of_runs(group, one)


def _left_out(group: Group) -> str:
    def one(run: Run) -> str:
        skipped = run.card["data"].get("skipped")
        if skipped is None:
            return ""
        told = ", ".join(f"{n} ({reason})" for reason, n in skipped.items())
        return f"left out while the data were read: {told or 'nothing'}"

    return _of_runs(group, one)


def _missing(group: Group) -> str:
    def one(run: Run) -> str:
        counts = run.card["data"].get("labels") or {}
        unknown = [f"{c} {own['unknown']}" for c, own in counts.items() if own.get("unknown")]
        if not counts:
            return ""
        told = f"slices with an unknown label: {', '.join(unknown)}" if unknown else "no label is unknown"
        return f"{told}; an unknown label enters neither the loss nor a figure, and nothing is imputed"

    return _of_runs(group, one)


def _acquisition(group: Group) -> str:
    def one(run: Run) -> str:
        data = run.card["data"]
        odd = ", ".join(f"{kind} {n} series" for kind, n in (data.get("geometry") or {}).items())
        kind = ", ".join(data.get("modality") or [])
        return f"modality {kind}; geometry: {odd or 'nothing unusual found'}" if kind and "geometry" in data else ""

    return _of_runs(group, one)


def _preprocessing(group: Group) -> str:
    data, channels = _first(group, "data"), _first(group, "channels")
    if channels.get("kind") == "ct":
        windows = ", ".join(f"level {w[0]:g} width {w[1]:g}" for w in channels.get("windows") or [])
        scale = f"windows in HU ({windows})"
    else:
        low, high = channels.get("percentiles") or (NAN, NAN)
        scale = f"signal scaled between its {low:g} and {high:g} percentiles"
    beside = channels.get("neighbours") or 0
    near = f"; {count(beside, 'neighbouring slice')} on either side as channels" if beside else ""
    return f"{scale}{near}; slices resized to {data.get('image_size')} pixels ({data.get('fit')})"


def _subset(group: Group) -> str:
    data = _first(group, "data")
    geometry = data.get("geometry") or {}
    band = f"slices of the band {data['band']}" if data.get("band") else "all slices of the series that were read"
    rules = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in geometry.items())
    told = _left_out(group)
    return f"{band}; rules for series: {rules}" + (f"; {told}" if told else "")


def _quality(group: Group) -> str:
    def one(run: Run) -> str:
        found = run.card["audits"].get("duplicates") or {}
        told = [f"{name} {found[name]}" for name in ("exact", "near", "straddling") if found.get(name) is not None]
        return f"pairs of duplicate images: {', '.join(told)}" if told else ""

    return _of_runs(group, one)


def _split(group: Group) -> str:
    chosen = _first(group, "split")
    name, unit = _name(chosen), people_of(group) if chosen.get("by") == "patient" else chosen.get("by")
    kinds = {
        "holdout": f"{chosen.get('test_fraction'):.0%} for testing, {chosen.get('val_fraction'):.0%} of the rest to "
        "validate",
        "kfold": f"cross-validation in {chosen.get('folds')} folds, {chosen.get('val_fraction'):.0%} of the rest to "
        "validate",
        "monte_carlo": f"repeated random splits, {chosen.get('test_fraction'):.0%} for testing",
        "leave_one_out": f"all of {chosen.get('left_out')} for testing, {chosen.get('val_fraction'):.0%} of the rest "
        "to validate",
        "file": f"a given table of {people_of(group)}s",
    }
    seeds = ", ".join(dict.fromkeys(str(run.settings["split"].get("seed")) for run in group.runs))
    drawn = any(run.made.get("split_drawing") for run in group.runs)
    how = "stratified systematic sampling with a random start" if drawn and name != "file" else ""
    parts = [f"scheme {name}: {kinds.get(name, 'a scheme of the author')}, by {unit}", how, f"seed {seeds}"]
    return "; ".join([*filter(None, parts), _sizes(group)]).rstrip("; ")


def _sizes(group: Group) -> str:
    sides = [run.card["split"].get("patients") or {} for run in group.runs]
    if not all(sides):
        return ""
    told = [f"{word} {range_text([side[part] for side in sides])}" for part, word in PARTS.items()]
    return f"{people_of(group)}s {'of a run' if len(sides) > 1 else 'in'}: {', '.join(told)}"


def people_of(group: Group) -> str:
    """``patient``, or ``image`` where the data do not say whose the images are."""
    return "image" if any(run.card["data"].get("patients_known") is False for run in group.runs) else "patient"


def _disjoint(group: Group) -> str:
    def one(run: Run) -> str:
        leaky, kept = run.card["split"]["leaky"], run.card["split"]["duplicates"]
        if leaky is None:
            return ""
        copies = {"near": "exact and near copies kept on one side", "exact": "exact copies kept on one side"}
        if leaky:
            return "not disjoint by patient: LEAKY, patients stand on two sides or had trained the initial weights"
        by, sought = run.settings["split"]["by"], copies.get(kept, "copies not sought")
        return f"by {by}: no {people_of(group)} stands on two sides; {sought}"

    return _of_runs(group, one)


def _tested(group: Group) -> str:
    told = dict.fromkeys(
        f"{row['n']} {cases_of(row)}" + (f" of {row['patients']} patients" if people_of(group) == "patient" else "")
        for row in group.rows
        if not row["label"]
    )
    return f"tested: {'; '.join(told)}" if told else ""


def cases_of(row: _Tree) -> str:
    """What a row of the comparison counts."""
    return {"slice": "slices", "series": "series", "patient": "patient results"}.get(row["level"], "cases")


def _characteristics(group: Group) -> str:
    """Covariates of the tested patients; no figure or word of fewer than three of them."""
    if group.people is None or not len(group.people.columns):
        return ""
    told = []
    for name in group.people:
        known = group.people[name].replace("", np.nan).dropna()
        counts, lacks = known.astype(str).value_counts(), len(group.people) - len(known)
        if pd.api.types.is_numeric_dtype(known) and len(known) >= FEWEST:
            text = f"mean {known.mean():.3g}, standard deviation {known.std():.3g}"
        elif len(counts) > _KINDS:
            text = f"{len(counts)} different values"
        else:
            rare = int(counts[counts < FEWEST].sum())
            shown = [f"{value} {n}" for value, n in counts.items() if n >= FEWEST]
            text = ", ".join([*shown, *([f"rarer values {rare}"] if rare else [])])
        told.append(f"{name} {text}" + (f" (unknown of {lacks})" if lacks else ""))
    who = f"{people_of(group)}s"
    return f"of {len(group.people)} {who} tested: {'; '.join(told)}; of the training {who} the runs keep none"


def _model(group: Group) -> str:
    def one(run: Run) -> str:
        model, task = run.card["model"], run.settings["task"]
        sequence, features = model.get("sequence"), model.get("features")
        parts = [f"network {model['backbone']} on {model['image_size']} pixels"]
        parts += [f"{amount(float(model['parameters']))} parameters"] if model.get("parameters") else []
        parts += [f"features {features}"] if features not in (None, "none") else []
        parts += [f"sequence model {sequence} over the slices"] if sequence not in (None, "none") else []
        parts += [f"{task['kind']} output: {', '.join(task['labels'])}"]
        return "; ".join(parts)

    return _of_runs(group, one)


def _software(group: Group) -> str:
    def one(run: Run) -> str:
        packages = dict(run.card["training"].get("packages") or {})
        told = [f"{name} {version}" for name, version in packages.items()]
        python = f"Python {run.made['python']}" if run.made.get("python") else ""
        return ", ".join(filter(None, [python, *told]))

    return _of_runs(group, one)


def _hardware(group: Group) -> str:
    devices = _of_runs(group, lambda run: str(run.card["training"].get("device") or ""))
    spent = [float((run.card["training"].get("cost") or {}).get("fit_seconds") or NAN) for run in group.runs]
    known = [value for value in spent if value == value]
    return devices and f"trained on {devices}" + (f", {seconds(sum(known) / len(known))} per run" if known else "")


def _weights(group: Group) -> str:
    def one(run: Run) -> str:
        model = run.card["model"]
        licence = f" ({model['licence_of_weights']})" if model.get("licence_of_weights") else ""
        return f"{model['weights']}{licence}" if model.get("weights") else ""

    return _of_runs(group, one)


def _training(group: Group) -> str:
    optimizer, trainer, loss = (_first(group, key) for key in ("optimizer", "trainer", "loss"))
    data, freeze = _first(group, "data"), _first(group, "freeze")
    schedule = _name(optimizer.get("schedule") or {})
    epochs = [run.card["training"]["cost"].get("epochs") for run in group.runs if run.card["training"].get("cost")]
    ran = f" ({range_text([float(n) for n in epochs if n])} done)" if any(epochs) else ""
    patience = trainer.get("early_stopping_patience")
    parts = [
        f"optimizer {_name(optimizer)}, learning rate {optimizer.get('lr'):g}",
        f"weight decay {optimizer.get('weight_decay'):g}",
        f"schedule {schedule}" if schedule else "",
        f"loss {_name(loss)}",
        f"batches of {data.get('batch_size')}",
        f"at most {trainer.get('max_epochs')} epochs{ran}",
        f"stopped after {patience} epochs without gain" if patience else "",
        f"precision {trainer.get('precision')}",
        f"layers frozen: {_name(freeze)}" if _name(freeze) not in ("", "none") else "all layers trained",
        f"seeds {', '.join(dict.fromkeys(str(run.settings.get('seed')) for run in group.runs))}",
    ]
    return "; ".join(filter(None, parts))


def _augmentation(group: Group) -> str:
    chosen = _first(group, "augmentation")
    steps = []
    for step in chosen.get("steps") or []:
        options = [f"{key} {value}" for key, value in step.items() if key != "_target_"]
        steps.append(f"{str(step.get('_target_')).rpartition('.')[2]} ({', '.join(options)})")
    mixed = f"; mixup {chosen['mixup']:g}" if chosen.get("mixup") else ""
    return f"augmentation in training: {', '.join(steps) or 'none'}{mixed}"


def _selection(group: Group) -> str:
    task = _first(group, "task")
    monitor = task.get("monitor")
    epoch = "the last epoch" if monitor == "last" else f"the epoch of best {monitor} on validation"
    return f"{epoch}; thresholds by {task.get('threshold')} on validation; the test part was predicted once"


def _ensemble(group: Group) -> str:
    most = max((int(row["predictions_per_case"]) for row in group.rows), default=1)
    views = _first(group, "task").get("tta") or []
    told = f"probabilities of {most} runs averaged per case" if most > 1 else "each case is predicted by one run"
    return told + (f"; averaged over views: {', '.join(map(str, views))}" if views else "")


def _intervals(group: Group) -> str:
    told = []
    for what, key in (("AUROC", "auroc_interval"), ("accuracy, sensitivity and specificity", "rate_interval")):
        methods = ", ".join(dict.fromkeys(str(row[key]) for row in group.rows if row[key]))
        told += [f"{what} by {methods}"] if methods else []
    return f"95 % intervals: {'; '.join([*told, f'all others by resampling {people_of(group)}s'])}"


def _robustness(group: Group) -> str:
    def one(run: Run) -> str:
        blind = run.card["audits"].get("nulls") or {}
        return f"models that see no brain beside it: {', '.join(blind)}" if blind else ""

    spread = [
        f"AUROC per {row['level']} over {row['runs']} runs: standard deviation {row['auroc_run_sd']:.3f}"
        for row in group.rows
        if not row["label"] and row["auroc_run_sd"] == row["auroc_run_sd"]
    ]
    return "; ".join(filter(None, [*spread, _of_runs(group, one)]))


def _internal(group: Group) -> str:
    if _is_external(group):
        return "none among these runs"
    if any(run.card["split"]["leaky"] is not False for run in group.runs):
        return "tested on the data set that trained it; the parts are not known to be disjoint by patient"
    who, which = ("images", "which") if people_of(group) == "image" else ("patients", "who")
    return f"tested on {who} of the data set that trained it, {which} neither trained nor validated it"


def _is_external(group: Group) -> bool:
    return any(run.made.get("evaluated") == "external" for run in group.runs)


def _external(group: Group) -> str:
    if _is_external(group):
        return "tested on another data set than it was trained on; thresholds and calibration stay those of the run"
    return "none among these runs (hemlearn evaluate makes one)"


def _imbalance(group: Group) -> str:
    loss, data = _first(group, "loss"), _first(group, "data")
    weight, sampler = loss.get("positive_weight"), data.get("sampler")
    told = [f"batches drawn by {sampler}"] if sampler not in (None, "shuffle") else []
    told += [f"positive cases weighted {weight} in the loss"] if weight not in (None, 1.0) else []
    return f"against class imbalance: {', '.join(told) or 'nothing'}"


def _output(group: Group) -> str:
    def one(run: Run) -> str:
        task = run.settings["task"]
        if task["kind"] == "multiclass":
            return "a probability per class; the most probable one is called"
        points = [
            f"{label} per {level} {own['value']:.3g}"
            for level, labels in (run.card["thresholds"] or {}).items()
            for label, own in labels.items()
            if own.get("value") is not None
        ]
        return f"probabilities, called positive from a threshold on: {', '.join(points)}" if points else ""

    task = _first(group, "task")
    how = described(str(task.get("aggregate")), task.get("top_k", TOP_K))
    calibration = ", ".join(dict.fromkeys(str(run.card["calibration"]["method"]) for run in group.runs))
    shown = (
        one(group.runs[0]) if len(group.runs) == 1 else "probabilities, called positive from each run's threshold on"
    )
    triage = _answers(group.triage, people_of(group))
    return f"{shown}; series and patients: {how} of the slices; calibration: {calibration}{triage}"


def _answers(rows: Sequence[_Tree], person: str) -> str:
    """What triage promises, and what it was worth on test patients."""
    if not rows:
        return ""
    promises = "; ".join(dict.fromkeys(str(row["promise"]) for row in rows))
    told = f"; triage (positive, negative or undecided): {promises}; on test {person}s "
    few = "; ".join(map(triage_text, rows)) if len(rows) <= _TRIAGE_ROWS else "see Triage above, run by run"
    leaky = sum(bool(row["leaky"]) for row in rows)
    return told + few + (f"; LEAKY, so that nothing is promised: {leaky} of {len(rows)} rows" if leaky else "")


def _code(group: Group) -> str:
    commit = _of_runs(group, lambda run: str(run.card["training"].get("commit") or ""))
    hashes = ", ".join(str(run.card["run"]["hash"]) for run in group.runs[:10])
    more = f" and {len(group.runs) - 10} more" if len(group.runs) > 10 else ""
    return f"made with hemlearn{f', git commit {commit}' if commit else ''}; runs {hashes}{more}"


FACTS: dict[str, Callable[[Group], str]] = {
    **{"data": _data, "labels": _labels, "left_out": _left_out, "missing": _missing, "acquisition": _acquisition},
    "characteristics": _characteristics,
    **{"preprocessing": _preprocessing, "subset": _subset, "quality": _quality, "split": _split},
    **{"disjoint": _disjoint, "tested": _tested, "model": _model, "software": _software, "hardware": _hardware},
    **{"weights": _weights, "training": _training, "augmentation": _augmentation, "selection": _selection},
    **{"ensemble": _ensemble, "intervals": _intervals, "robustness": _robustness, "internal": _internal},
    **{"external": _external, "imbalance": _imbalance, "output": _output, "code": _code},
}
ALWAYS = {  # of every run of hemlearn
    "input": "the pixels of the images; no clinical variable enters the model",
    "metrics": "AUROC, average precision, accuracy, sensitivity, specificity, F1, Brier score, log loss, calibration "
    "error (compare.csv); ROC, precision-recall and reliability curves",
    "updating": "none: thresholds, calibration and weights are those of the training",
    "flow": "see Flow of patients above",
    "results": "see Results above; compare.csv has every label and level",
    "failures": "confusion matrices in compare.html; the most confident errors in failures.csv",
    "limits": "see Limits above",
}
