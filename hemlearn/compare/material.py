"""What the files of a comparison show beside its tables: curves, cost, the most confident errors, the runs' audits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemlearn.compare.cases import Pooled
from hemlearn.compare.contrasts import KINDS, Contrast, best
from hemlearn.compare.groups import ANY, Entry
from hemlearn.compare.runs import ComparedRun
from hemlearn.compare.subgroups import SubgroupStudy
from hemlearn.data.covariates import IDS, load_covariates
from hemlearn.evaluation.auroc import NAN, Floats
from hemlearn.evaluation.bootstrap import block_size, draws, tail_of, units_of
from hemlearn.reports.claim import claim_markdown
from hemlearn.reports.figures import Band, Curve, confusion_counts
from hemlearn.reports.statements import merged
from hemlearn.reports.study_facts import Group, Run
from hemlearn.util.console import NOTICED, track
from hemlearn.util.privacy import Pseudonyms
from hemlearn.util.run_files import COVARIATES

# --- The curves of the best groups, one over the other, with pointwise bands.


DRAWN = 8  # groups in a figure: as many as the palette tells apart
BANDS = 3  # curves of one panel that get a band; more hide each other
REPLICATES = 500
GRID = np.linspace(0.0, 1.0, 101)
_CUTS = 2000  # thresholds at which a replicate is evaluated, at most
Panels = dict[str, list[Curve]]


def drawn(entries: Sequence[Entry], most: int = DRAWN) -> list[Entry]:
    """The groups of highest AUROC, in the order given."""
    areas = [entry.auroc for entry in entries]
    ranked = sorted(range(len(entries)), key=lambda i: -areas[i] if areas[i] == areas[i] else 9.0)
    return [entries[i] for i in sorted(ranked[:most])]


def curves_at(
    entries: Sequence[Entry], baseline: Entry | None, level: str | None = None, brief: bool = False
) -> Panels:
    """Curves of each label: panel title -> one per group.

    All curves of a panel with few have a band, else those of the best group and of the baseline.
    """
    chosen = {best(entries).name, *([baseline.name] if baseline else [])}
    panels: Panels = {}
    for index, entry in enumerate(entries):
        at = level or entry.first[0]
        cases = entry.cases.get(at)
        for j, label in enumerate(entry.group.labels if cases is not None else []):
            row = entry.row(at, label)
            if cases is None or row is None:
                continue
            known = ~np.isnan(cases.y[:, j])
            spot = (1 - row["specificity"], row["sensitivity"])
            figures = (row["auroc"], row["auroc_low"], row["auroc_high"])
            curve = Curve(entry.name, cases.y[known, j], cases.p[known, j], *figures)
            point = spot if all(v == v for v in spot) else None
            panels.setdefault(label, []).append(replace(curve, point=point, patient=cases.code[known], index=index))
    if brief and ANY in panels:
        panels = {ANY: panels[ANY]}
    return {
        label: [_banded(c) if len(curves) <= BANDS or c.name in chosen else c for c in curves]
        for label, curves in panels.items()
    }


def _banded(curve: Curve) -> Curve:
    bands = curve_bands(curve.y, curve.p, curve.patient) if curve.defined and curve.patient is not None else None
    return curve if bands is None else replace(curve, roc_band=bands[0], pr_band=bands[1])


def curve_bands(
    y: Floats, p: Floats, cluster: npt.NDArray[np.intp], replicates: int = REPLICATES, seed: int = 0
) -> tuple[Band, Band] | None:
    """Bands of the ROC and of the precision-recall curve from the same resamples of patients, as percentiles.

    Shapes: y (N,), p (N,), cluster (N,).
    """
    _, code = np.unique(cluster, return_inverse=True)
    units, refused = units_of(y, code)
    if refused or units < 2:
        return None
    order = np.argsort(-p, kind="stable")
    truth, score, who = y[order], p[order], code[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    if len(ends) > _CUTS:  # beyond what a figure can show
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, _CUTS).round().astype(int))]
    roc, pr = [], []
    blocks = draws(int(code.max()) + 1, replicates, seed, block_size(len(y)))
    for weights in track(blocks, "Resampling patients for a band", after=NOTICED):
        drawn = weights[:, who]
        true = np.cumsum(drawn * truth, axis=1)[:, ends]
        called = np.cumsum(drawn, axis=1)[:, ends]
        for tp, all_called in zip(true, called, strict=True):
            fp = all_called - tp
            if tp[-1] > 0 and fp[-1] > 0:
                roc.append(_sensitivity_at(fp / fp[-1], tp / tp[-1]))
                pr.append(_precision_at(tp / tp[-1], tp, all_called))
    if len(roc) * 2 < replicates:
        return None
    tail = tail_of(units)
    roc_low, roc_high = np.quantile(roc, [tail, 1 - tail], axis=0)
    pr_low, pr_high = np.quantile(pr, [tail, 1 - tail], axis=0)
    return Band(GRID, roc_low, roc_high), Band(GRID, pr_low, pr_high)


def _sensitivity_at(false: Floats, true: Floats) -> Floats:
    """Sensitivity at each false positive rate of the grid, the upper end of a vertical step."""
    x, y = np.append(0.0, false), np.append(0.0, true)
    left = np.searchsorted(x, GRID, side="right") - 1
    right = np.minimum(left + 1, len(x) - 1)
    run = x[right] - x[left]
    share = np.divide(GRID - x[left], run, out=np.zeros_like(GRID), where=run > 0)
    return np.asarray(y[left] + share * (y[right] - y[left]))


def _precision_at(recall: Floats, true: Floats, called: Floats) -> Floats:
    """Precision at the highest threshold that reaches each recall of the grid."""
    first = int(np.argmax(called > 0))
    at = np.maximum(np.minimum(np.searchsorted(recall, GRID - 1e-12, side="left"), len(recall) - 1), first)
    return np.asarray(true[at] / called[at])


def metric_of(panels: Panels, entries: Sequence[Entry], metric: str, level: str | None = None) -> Panels:
    """The same curves with another metric (``ap``, ``ece``) in the legend; it has no interval there."""
    by_name = {entry.name: entry for entry in entries}

    def value(curve: Curve, label: str) -> float:
        entry = by_name[curve.name]
        return float((entry.row(level or entry.first[0], label) or {})[metric])

    blank: Any = {"low": NAN, "high": NAN}
    found = {c: [replace(curve, value=value(curve, c), **blank) for curve in curves] for c, curves in panels.items()}
    if metric != "ece":
        return found
    # Scores in the place of probabilities have no calibration curve.
    return {c: [curve for curve in curves if curve.value == curve.value] for c, curves in found.items()}


def confusion_of(entry: Entry, level: str) -> dict[str, Any]:
    """Confusion counts of a group at a level, see :func:`hemlearn.reports.figures.confusion_counts`."""
    cases = entry.cases[level]
    return confusion_counts(cases.y, cases.decision, entry.group.labels, entry.group.kind)


# --- What each group cost: training time, speed and size, from what its runs wrote down.


def cost_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row per group: means over its runs, the sum of their training times, and what they ran on.

    ``fit_seconds`` is the time inside the fit loop, ``wall_seconds`` that of the whole run (reading, training, testing,
    figures); ``images_per_second`` that of training. What no run wrote down is NaN.
    """
    names = {"slices_per_second": "images_per_second"}
    rows = []
    for entry in entries:
        runs = entry.first[1].used if entry.cases else entry.group.runs
        costs = pd.DataFrame([_cost(run) for run in runs], columns=list(_COSTS), dtype=float)
        devices = {str(run.provenance["device"]) for run in runs if run.provenance.get("device")}
        row: dict[str, Any] = {"group": entry.name, "runs": len(runs)}
        for key in _COSTS:
            row[names.get(key, key)] = float(costs[key].mean())
            if key == "fit_seconds":
                row["fit_seconds_total"] = float(costs[key].sum(min_count=1))
        rows.append(row | {"device": "; ".join(sorted(devices))})
    return pd.DataFrame(rows)


_COSTS = ("fit_seconds", "wall_seconds", "slices_per_second", "parameters", "trained_parameters", "epochs")


def _cost(run: ComparedRun) -> dict[str, float]:
    """What a run wrote down of its cost, with the seconds from its start to its end."""
    given = run.provenance.get("cost")
    numbers = given.items() if isinstance(given, dict) else ()
    found = {k: float(v) for k, v in numbers if isinstance(v, int | float) and not isinstance(v, bool)}
    try:
        start, end = (datetime.fromisoformat(str(run.status[key])) for key in ("started", "finished"))
    except (KeyError, ValueError):
        return found
    return found | {"wall_seconds": (end - start).total_seconds()}


# --- Where to look: the most confident errors of each group, as identifiers, without a picture.


SIDES = ("missed", "false alarm")
PER_SIDE = 20  # errors listed per group, label and side
ERROR_COLUMNS = ("group", "level", "label", "error", "rank", "case", "patient", "probability", "groups_wrong", "groups")


def failure_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """The most confident errors at each group's first level.

    A missed case was called negative, a false alarm positive; the first are those whose probability contradicts the
    label most. In a multiclass task a missed case is one whose own class was not called.
    """
    rows: list[dict[str, Any]] = []
    for entry in entries:
        level, cases = entry.first
        for j, label in enumerate(entry.group.labels):
            for side in SIDES:
                found = np.flatnonzero(_wrong(cases, j, side))
                p = cases.p[found, j] * (-1 if side == "false alarm" else 1)
                first = found[np.lexsort((cases.unit[found].astype(str), p))][:PER_SIDE]
                for rank, i in enumerate(first, 1):
                    case = (cases.unit[i], cases.patient[i], float(cases.p[i, j]))
                    cells = (entry.name, level, label, side, rank, *case, 0, 0)
                    rows.append(dict(zip(ERROR_COLUMNS, cells, strict=True)))
    for entry in entries:
        level, cases = entry.first
        place = {label: j for j, label in enumerate(entry.group.labels)}
        wrong = {(c, side): _wrong(cases, j, side) for c, j in place.items() for side in SIDES}
        where = {unit: i for i, unit in enumerate(cases.unit)}
        for row in rows:
            label, i = row["label"], where.get(row["case"])
            if i is None or row["level"] != level or label not in place or np.isnan(cases.y[i, place[label]]):
                continue
            row["groups"] += 1
            row["groups_wrong"] += int(wrong[label, row["error"]][i])
    return pd.DataFrame(rows, columns=list(ERROR_COLUMNS))


def _wrong(cases: Pooled, label: int, side: str) -> npt.NDArray[np.bool_]:
    truth, called = cases.y[:, label], cases.decision[:, label]
    return np.asarray((truth == 1) & ~called if side == "missed" else (truth == 0) & called)


# --- What the runs' own audits say: duplicates, label counts, verdicts; put together for a comparison.


@dataclass
class Audits:
    """What the runs of a comparison wrote under ``audits`` in their ``metrics.json``."""

    runs: int = 0  # runs asked
    with_audits: int = 0  # runs that have audits
    duplicates: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(("exact", "near", "straddling")))
    labels: dict[str, dict[str, dict[str, dict[str, int]]]] = field(default_factory=dict)
    said: list[list[str]] = field(default_factory=list)  # verdicts of each run

    @property
    def verdicts(self) -> list[tuple[str, int]]:
        """Each verdict, word for word, and the number of runs that say it."""
        every = Counter(text for texts in self.said for text in texts)
        return sorted(every.items(), key=lambda item: (-item[1], item[0]))

    @property
    def statements(self) -> list[tuple[str, int]]:
        """The same for readers: verdicts that differ in figures alone in one."""
        return merged(self.said)

    @property
    def duplicate_text(self) -> str:
        """``exact 1, near 2``."""
        return ", ".join(f"{name} {n}" for name, n in self.duplicates.items() if n is not None)

    def label_rows(self) -> list[list[str]]:
        """Source, split, label and its counts."""
        return [
            [source, split, label, *(str(counts.get(side, "")) for side in ("positive", "negative", "unknown"))]
            for source, splits in self.labels.items()
            for split, labels in splits.items()
            if isinstance(labels, dict)
            for label, counts in labels.items()
            if isinstance(counts, dict)
        ]


def audits_of(entries: Sequence[Entry]) -> Audits:
    """The audits of all runs that a comparison used; runs of versions without audits are counted, not guessed."""
    found = Audits()
    for run in (run for entry in entries if entry.cases for run in entry.first[1].used):
        found.runs += 1
        audit = run.metrics.get("audits")
        if not isinstance(audit, dict):
            continue
        found.with_audits += 1
        duplicates = audit.get("duplicates")
        for name, known in found.duplicates.items():
            count = duplicates.get(name) if isinstance(duplicates, dict) else None
            if isinstance(count, int):
                found.duplicates[name] = max(count, known or 0)
        verdict = audit.get("verdict")
        found.said.append([str(t) for t in (verdict if isinstance(verdict, list) else [verdict] if verdict else [])])
        if isinstance(audit.get("labels"), dict):
            data = run.provenance.get("data") or {}
            found.labels.setdefault(str(data.get("source") or run.keys.get("data.name")), audit["labels"])
    return found


# --- The study's facts, with the items of the reporting guidelines.


def claim(
    entries: Sequence[Entry],
    contrasts: Sequence[Contrast],
    notes: Sequence[str],
    names: Pseudonyms,
    subgroups: SubgroupStudy | None = None,
    triage: Sequence[Mapping[str, Any]] = (),
) -> str:
    """``claim.md``: what the runs answer of CLAIM 2024 and TRIPOD+AI (see :mod:`hemlearn.reports.claim`)."""
    groups = []
    for entry in entries:
        used = entry.first[1].used
        runs = [Run(*(names.tree(item) for item in (run.card(), run.settings, run.provenance))) for run in used]
        rows = [row for row in entry.rows if row["label"] in ("", ANY)]
        answers = [row for row in triage if row["group"] == entry.name]
        groups.append(Group(entry.name, runs, rows, _people(entry, subgroups), answers))
    made = [c for c in contrasts if c.made]
    tests: dict[str, tuple[int, Sequence[str]]] = {}
    for kind, what in KINDS.items():
        own = [c for c in made if c.kind == kind]
        if own:
            tests[what] = (len(own), list(dict.fromkeys(c.method for c in own)))
    return claim_markdown(groups, tests, len(made), notes, subgroups.line if subgroups is not None else "")


def _people(entry: Entry, subgroups: SubgroupStudy | None) -> pd.DataFrame | None:
    """Covariates of the tested patients, a row each; None where neither a run nor ``covariates=`` knows any."""
    cases, tables = entry.first[1], []
    if subgroups is not None and entry.name in subgroups.known:
        tables.append(subgroups.known[entry.name])
    else:
        for run in cases.used:
            run.verify(COVARIATES)
            tables.append(load_covariates(run.path))
    found = pd.concat(tables, ignore_index=True)
    if found.empty:
        return None
    tested = found["patient_id"].isin(set(cases.patient.tolist()))
    found = found[tested].replace("", np.nan).groupby("patient_id", sort=True).first()
    return found.drop(columns=[name for name in found if name in IDS])
