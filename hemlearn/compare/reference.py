"""Published figures beside ours: ``reference=study.yaml``.

The file describes one study, or a list of them::

    title: Altuve and Perez 2022, ResNet-18          # its name in the tables
    citation: Physica Medica 99:113
    figures:
      - metric: accuracy        # accuracy, sensitivity, specificity, auroc, ap, f1, brier, ece, log_loss,
                                # weighted_log_loss
        x: 3837                 # either x of n right ...
        n: 4000
        note: 100 Monte-Carlo splits of 200 images
      - metric: auroc
        value: 0.94             # ... or the value, with what is known of its precision:
        interval: [0.92, 0.97]  # 95 %, or n (proportions), or positives and negatives (AUROC)
        label: any              # optional: one label of a multilabel task
        level: slice            # optional: slice | series | patient; default: the first level of the group
        group: {backbone.pretrained: true}   # optional: only groups with these settings

A proportion published as x of n, or as a value with n, is compared with ours by a test of two proportions where every
patient of ours has one case. Otherwise two intervals are compared: ours allows for several cases of a patient. What was
published without n and without an interval stands beside ours and is not tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hemlearn.compare.contrasts import Contrast
from hemlearn.compare.groups import Entry, short_key, show
from hemlearn.compare.runs import canonical
from hemlearn.config.schema import schema_keys
from hemlearn.evaluation.auroc import NAN, Interval, newcombe, wilson
from hemlearn.evaluation.predictions import LEVELS
from hemlearn.evaluation.scoring import METRICS, WEIGHTED
from hemlearn.evaluation.significance import difference_of_intervals, two_proportions
from hemlearn.reports.tables import PERCENT, value_text
from hemlearn.util.documents import load_yaml
from hemlearn.util.errors import ConfigError, hint
from hemlearn.util.run_files import parse_yaml

BOUNDED = (*PERCENT, "auroc", "ap", "f1", "brier", "ece")
_STUDY = ("title", "citation", "figures", "note")
_FIGURE = ("metric", "value", "x", "n", "interval", "positives", "negatives", "label", "level", "group", "note")
_COVERS = "two samples of patients: theirs and ours; data, scanners and labels differ as well as the model"


@dataclass(frozen=True)
class Figure:
    """One published figure."""

    study: str  # title of its study
    where: str  # file and place, for messages
    metric: str  # what it is
    value: float  # as published, rates as shares of 1
    interval: Interval  # 95 %, given or derived from the counts; NaN where neither is known
    x: int | None  # successes; None where unknown
    n: int | None  # trials; None where unknown
    label: str  # label it is about; ``""`` for all
    level: str  # slice | series | patient; ``""`` takes the group's first level
    group: Mapping[str, Any]  # settings of the groups it stands beside; empty for all
    note: str = ""  # free text

    def text(self) -> str:
        """The value with its interval."""
        return value_text(self.value, *self.interval, self.metric)


@dataclass(frozen=True)
class Study:
    """A publication with its figures."""

    title: str
    citation: str
    note: str
    figures: tuple[Figure, ...]


class Published(NamedTuple):
    """A published figure beside a group: the group's row of the table, and ours minus theirs."""

    figure: Figure
    row: dict[str, Any]
    contrast: Contrast


def read_studies(path: Path | str) -> list[Study]:
    """Read and check a reference file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = load_yaml(text) if text.lstrip().startswith("-") else parse_yaml(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise _refuse(f"reference={path}: {reason}", "give a YAML file: `hemlearn compare --help` shows one") from error
    studies = content if isinstance(content, list) else [content]
    if not studies:
        raise _refuse(f"reference={path}: no study in it", "give title, citation and figures")
    return [_study(item, str(path)) for item in studies]


def _refuse(problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, remedy=remedy)


def _study(content: Any, where: str) -> Study:
    _keys(content, _STUDY, ("title", "figures"), where)
    title, figures = str(content["title"]), content["figures"]
    if not isinstance(figures, list) or not figures:
        raise _refuse(f"{where}: figures={figures!r}: not a list", "list one mapping per published figure")
    read = tuple(_figure(item, title, f"{where}: figures[{i}]") for i, item in enumerate(figures))
    return Study(title, str(content.get("citation") or ""), str(content.get("note") or ""), read)


def _keys(content: Any, known: Sequence[str], needed: Sequence[str], where: str) -> None:
    if not isinstance(content, dict):
        raise _refuse(f"{where}: {content!r}: not a mapping", f"give the keys {', '.join(known)}")
    for key in content:
        if key not in known:
            raise _refuse(f"{where}: unknown key '{key}'{hint(str(key), known)}", f"the keys are {', '.join(known)}")
    for key in needed:
        if content.get(key) is None:
            raise _refuse(f"{where}: no key '{key}'", f"the keys are {', '.join(known)}")


def _figure(content: Any, study: str, where: str) -> Figure:
    _keys(content, _FIGURE, ("metric",), where)

    def one_of(key: str, known: Sequence[str]) -> str:
        value = str(content.get(key) or "")
        if value and value not in known:
            raise _refuse(f"{where}: {key}={value}: unknown{hint(value, known)}", f"use one of {', '.join(known)}")
        return value

    def counted(key: str) -> int | None:
        value = content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (key != "x" and value < 1):
            raise _refuse(f"{where}: {key}={value!r}: not a count", "give a whole number")
        return value

    def number(value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _refuse(f"{where}: {key}={value!r}: not a number", "give a number, such as 0.959")
        return float(value)

    metric = one_of("metric", (*METRICS, WEIGHTED))
    x, n = counted("x"), counted("n")
    value = number(content["value"], "value") if content.get("value") is not None else None
    if x is not None and (n is None or metric not in PERCENT):
        raise _refuse(f"{where}: x={x}: needs n, and a proportion as metric (not {metric})", "give x of n, or value")
    if x is not None and n is not None:
        if x > n:
            raise _refuse(f"{where}: x={x} of n={n}: more than all", "x is the number right among n")
        if value is not None and abs(value - x / n) > 0.0051:
            raise _refuse(f"{where}: value={value:g}, but x/n = {x}/{n} = {x / n:.4f}", "give one of them")
        value = x / n
    if value is None:
        raise _refuse(f"{where}: neither value nor x and n", "give value=, or x= and n=")
    if metric in BOUNDED and not 0 <= value <= 1:
        raise _refuse(f"{where}: value={value:g}: {metric} lies from 0 to 1", "give 0.95 for 95 %")
    level, label = one_of("level", LEVELS), str(content.get("label") or "")
    if x is None and n is not None and metric in PERCENT:
        x = round(value * n)
    interval, given = Interval(NAN, NAN), content.get("interval")
    sides = counted("positives"), counted("negatives")
    if given is not None:
        if not isinstance(given, list) or len(given) != 2:
            raise _refuse(f"{where}: interval={given!r}: not two numbers", "give [low, high]")
        low, high = (number(v, "interval") for v in given)
        if not low <= value <= high:
            raise _refuse(f"{where}: interval=[{low:g}, {high:g}] does not hold value={value:g}", "give [low, high]")
        interval = Interval(low, high)
    elif x is not None and n is not None:
        interval = wilson(x, n)
    elif metric == "auroc" and sides[0] is not None and sides[1] is not None:
        interval = newcombe(value, sides[0], sides[1])
    group = content.get("group") or {}
    if not isinstance(group, dict):
        raise _refuse(f"{where}: group={group!r}: not a mapping", "give settings, such as {backbone.pretrained: true}")
    return Figure(study, where, metric, value, interval, x, n, label, level, group, str(content.get("note") or ""))


# --- Beside ours.


def beside(studies: Sequence[Study], entries: Sequence[Entry]) -> tuple[list[Published], list[str]]:
    """Each published figure with ours, once per group that it stands beside."""
    found: list[Published] = []
    alone: list[str] = []
    for figure in (figure for study in studies for figure in study.figures):
        matching, why = _matching(figure, entries)
        if why:
            alone.append(f"{figure.study}: its {figure.metric} of {figure.value:g} stands beside no group: {why}")
        rows = [entry.row(figure.level or entry.first_level, figure.label) for entry in matching]
        if matching and not any(rows):
            key, value = ("label", figure.label) if figure.label else ("level", figure.level)
            entry = matching[0]
            raise _refuse(
                f"{figure.where}: {key}={value}: group {entry.name!r} has no such result (labels "
                f"{', '.join(entry.group.labels)}; levels {', '.join(dict.fromkeys(r['level'] for r in entry.rows))})",
                "name a label and level that compare.csv shows",
            )
        found += [Published(figure, row, _contrast(figure, row)) for row in rows if row is not None]
    return found, alone


def _matching(figure: Figure, entries: Sequence[Entry]) -> tuple[list[Entry], str]:
    """The groups with a figure's settings; where there is none, what was asked and what there is."""
    left = list(entries)
    for key, value in figure.group.items():
        differ = list(dict.fromkeys(k for entry in entries for k in entry.group.values))
        named = [k for k in differ if key in (k, short_key(k), k.removesuffix(".name"))]
        if not named:
            named = [k for k in schema_keys() if k == (f"{key}.name" if f"{key}.name" in schema_keys() else key)]
        if len(named) != 1:
            raise _refuse(
                f"{figure.where}: group: unknown key '{key}'{hint(str(key), [*differ, *schema_keys()])}",
                "use the keys by which the groups differ",
            )
        kept = [e for e in left if canonical(e.group.runs[0].keys.get(named[0])) == canonical(value)]
        if not kept:
            values = ", ".join(dict.fromkeys(show(e.group.runs[0].keys.get(named[0])) for e in left))
            return [], f"none has {key}={show(value)} (there: {values})"
        left = kept
    return left, ""


def _contrast(figure: Figure, row: Mapping[str, Any]) -> Contrast:
    metric = figure.metric
    note = "; ".join(filter(None, [figure.note, _averaged(metric, row)]))
    blank = Contrast("published", row["level"], row["label"], metric, row["group"], figure.study, note=note)
    ours, low, high = (float(row.get(name, NAN)) for name in (metric, f"{metric}_low", f"{metric}_high"))
    blank.difference = ours - figure.value
    if ours != ours:
        blank.refused = f"our {metric} is undefined"
        return blank
    if figure.x is not None and figure.n is not None and row["rate_interval"] == "wilson" and row["tp"] == row["tp"]:
        tp, fn, fp, tn = (int(row[name]) for name in ("tp", "fn", "fp", "tn"))
        counts = {"accuracy": (tp + tn, tp + fn + fp + tn), "sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp)}
        return blank.take(two_proportions(*counts[metric], figure.x, figure.n), _COVERS)
    if figure.interval.low != figure.interval.low:
        blank.refused = "published without an interval or n: shown beside, not tested"
    elif low != low:
        blank.refused = f"our {metric} has no interval: shown beside, not tested"
    else:
        test = difference_of_intervals((ours, low, high), (figure.value, *figure.interval))
        people = row["patients"] if row["patients"] == row["patients"] else row["n"]
        return blank.take(test._replace(n=int(row["n"]), clusters=int(people)), _COVERS)
    return blank


def _averaged(metric: str, row: Mapping[str, Any]) -> str:
    """What to read beside a published mean over splits, where ours averages the predictions of a case."""
    mean = float(row.get(f"{metric}_run_mean", NAN))
    if not row["predictions_per_case"] > 1 or mean != mean:
        return ""
    own = f"{mean * 100:.1f} %" if metric in PERCENT else f"{mean:.3f}"
    return f"ours is that of an ensemble: the runs' own mean is {own}"
