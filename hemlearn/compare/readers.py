"""Readers of the same cases beside the runs: ``readers=FILE.csv``.

The table has a row per read::

    case,reader,score          # case: patient_id, series_id or slice_id of the test cases
    p012,Smith,1               # score: decision 0 or 1 throughout, or a score (ordinal or continuous; more is surer)
    p013,Smith,                # empty: not read
    p012,Jones,0

``modality`` (a reader read the same cases in two) and ``label`` (of a task with several; else ``any``, or the only one)
are further columns that it may have. Readers are called reader 1, reader 2 ... in the order of the table unless
patients are shown by their names too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemlearn.compare.cases import Pooled
from hemlearn.compare.contrasts import Contrast
from hemlearn.compare.groups import ANY, Entry
from hemlearn.compare.material import Panels, curves_at, drawn
from hemlearn.evaluation.auroc import NAN, Floats, Interval, auroc_interval, clustered_wilson
from hemlearn.evaluation.predictions import LEVELS
from hemlearn.evaluation.readers import (
    AUROC,
    RATES,
    OverReaders,
    against_reader,
    between_modalities,
    model_against_readers,
)
from hemlearn.reports.figures import Curve
from hemlearn.reports.tables import UNDEFINED, UNITS, interval_text, metric_name
from hemlearn.util.errors import ConfigError, count, hint
from hemlearn.util.tables import label_table, refuse_rows, row_number

COLUMNS = ("case", "reader", "score")
_TABLE = "give the columns case, reader and score, and modality and label where they are needed"
_ONE = "other patients; this reader and the trained model are taken as they are"
_ALL = "other readers and other patients; the trained model is taken as it is"
_SAID = 6  # tests in one sentence
_MARKERS = "s^DvPX<>*h"
_HEADER = ["reader", "modality", "label", "read", "missed", "positive", "sensitivity %", "specificity %", "AUROC"]
POINTS = "grey: readers; bars: 95 % intervals, clustered by patient\ncoloured dots: the models at their own thresholds"
_Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Reading:
    """What one reader gave for one label in one modality."""

    reader: str
    modality: str  # "" where the table has none
    label: str  # "" where the table has none
    score: dict[str, float]  # case -> decision or score

    @property
    def name(self) -> str:
        """Such as ``reader 2, CT``."""
        return ", ".join(filter(None, (self.reader, self.modality)))


@dataclass
class ReaderStudy:
    """Readers beside the groups of a comparison."""

    file: str  # name of the table
    level: str  # slice | series | patient: what was read
    decides: bool  # whether the readers decided (else they gave scores)
    rows: list[dict[str, Any]] = field(default_factory=list)  # figures of every reader
    contrasts: list[Contrast] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    curves: dict[str, list[Curve]] = field(default_factory=dict)  # label -> readers in the figure

    def panels(self, entries: Sequence[Entry], baseline: Entry | None) -> Panels:
        """The ROC curves of the best groups at the readers' level, and the readers in the same panels."""
        curves = curves_at(drawn(entries), baseline, self.level)
        return {label: [*curves.get(label, []), *_in_legend(own)] for label, own in self.curves.items()}

    def table(self) -> pd.DataFrame:
        """A row per reader, modality and label, as ``readers.csv`` has it."""
        return pd.DataFrame(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """What ``compare.json`` says of them."""
        return {"file": self.file, "level": self.level, "decisions": self.decides, "readers": self.rows}

    @property
    def line(self) -> str:
        """Whether the models do better than the readers, in one sentence."""
        told, over = [], [c for c in self.contrasts if c.kind == "readers"]
        for one in over if any(c.made for c in over) else [c for c in self.contrasts if c.kind == "reader"] or over:
            what = f"{one.first} and {'the ' * (one.kind == 'readers')}{one.second}, {metric_name(one.metric)}"
            if not one.made:
                told.append(f"{what}: not tested ({one.refused or one.note})")
                continue
            word = "no difference shown"
            if one.differs:
                word = f"the {'model is' if one.difference > 0 else 'readers are'} better"
            told.append(f"{what}: {word} ({one.text()}, {one.p_words})")
        more = f"; {len(told) - _SAID} more in tests.csv" if len(told) > _SAID else ""
        return "; ".join(told[:_SAID]) + more if told else "no test was made"

    def sheet(self) -> tuple[list[str], list[list[str]]]:
        """Header and lines of the table, without columns that are empty throughout."""
        lines = []
        for row in self.rows:
            texts = [interval_text(row, metric) for metric in (*RATES, AUROC)]
            names = [str(row[key]) for key in ("reader", "modality", "label", "n", "missed", "positives")]
            lines.append(names + ["" if text == UNDEFINED else text for text in texts])
        kept = [i for i in range(len(_HEADER)) if any(line[i] for line in lines)]
        return [_HEADER[i] for i in kept], [[line[i] for i in kept] for line in lines]


def _in_legend(readers: Sequence[Curve]) -> list[Curve]:
    """Readers of a panel with a marker and a line of the legend each; more than there are markers share one."""
    if len(readers) <= len(_MARKERS):
        return list(readers)
    figures = {"AUROC": [one.value for one in readers if one.value == one.value]}
    spots = [one.point for one in readers if one.point is not None]
    figures |= {"sens.": [100 * y for _, y in spots], "spec.": [100 - 100 * x for x, _ in spots]}
    told = [
        f"{name} {min(v):.3f} to {max(v):.3f}" if name == "AUROC" else f"{name} {min(v):.1f} to {max(v):.1f} %"
        for name, v in figures.items()
        if v
    ]
    texts = [f"{len(readers)} readers: {', '.join(told)} (each: readers.csv)", *["_"] * (len(readers) - 1)]
    return [replace(one, text=text, marker=_MARKERS[0]) for one, text in zip(readers, texts, strict=True)]


def read_readings(path: Path | str, *, show: bool = False) -> list[Reading]:
    """Read and check a table of reads; ``show``: readers by the names of the table.

    Raises:
        DataError: No such file or column, an empty field, a score that is no number, or a case that a reader read twice
            in one modality.
    """
    path = Path(path)
    table = label_table(path, COLUMNS, layout="give a CSV file with a row per read: readers=FILE.csv", header=_TABLE)
    for column in ("modality", "label"):
        table[column] = table.get(column, "")
    for column in ("case", "reader"):
        refuse_rows(table[column] == "", path, lambda _, c=column: f"{c} is empty", "name the case and its reader")  # type: ignore[misc]
    given, score = table["score"], pd.to_numeric(table["score"], errors="coerce").astype(float)
    refuse_rows(
        (given != "") & ~np.isfinite(score),
        path,
        lambda row: f"score={given.iloc[row]!r} is not a number",
        "give decisions 0 and 1, or scores; leave the score of a case that was not read empty",
    )
    who = ["reader", "modality", "label"]
    keys = table[["case", *who]].agg("\x00".join, axis=1)

    def twice(row: int) -> str:
        first = int((keys == keys.iloc[row]).to_numpy().argmax())
        named = f"reader={table['reader'].iloc[row]!r} read case={table['case'].iloc[row]!r}"
        return (
            f"{named} before, in row {row_number(path, first)} (score {given.iloc[first]!r}, here {given.iloc[row]!r})"
        )

    refuse_rows(keys.duplicated(), path, twice, "keep one read of each case, or tell reads apart by modality")
    numbers = {name: f"reader {i + 1}" for i, name in enumerate(dict.fromkeys(table["reader"]))}
    found = []
    for (reader, modality, label), part in table[given != ""].groupby(who, sort=False):
        scores = dict(zip(part["case"], score[part.index], strict=True))
        found.append(Reading(str(reader) if show else numbers[str(reader)], str(modality), str(label), scores))
    if not found:
        raise ConfigError(f"readers={path}: every score is empty", remedy="give decisions 0 and 1, or scores")
    return found


def beside_readers(
    path: Path | str, readings: Sequence[Reading], entries: Sequence[Entry], common: bool = False
) -> ReaderStudy:
    """The readers of a table beside every group.

    A reader who did not read all cases of a group is not tested against it, unless ``common``: then on those he read,
    with their number.

    Raises:
        ConfigError: A case that no group was tested on (``common`` leaves it out), or a label that no group has.
    """
    level = _level(path, readings, entries)
    values = {value for reading in readings for value in reading.score.values()}
    study = ReaderStudy(Path(path).name, level, values <= {0.0, 1.0})
    at = [entry for entry in entries if level in entry.cases]
    known = {name for entry in at for name in _places(entry.cases[level])}
    strange = [case for reading in readings for case in reading.score if case not in known]
    if strange and not common:
        others = f"; {len(set(strange)) - 1} more" if len(set(strange)) > 1 else ""
        raise ConfigError(
            f"readers={path}: case={strange[0]!r} is none of the {len(known)} that these runs were tested on{others}",
            remedy="correct it, or leave such cases out with cases=common",
        )
    people, ways = ({getattr(item, key) for item in readings} for key in ("reader", "modality"))
    told = f"{study.file}: {count(len(people), 'reader')}"
    told += f", {len(ways)} modalities" if len(ways) > 1 else ""
    study.notes.append(f"{told}, {'decisions' if study.decides else 'scores'} on {UNITS[level]}")
    if strange:
        study.notes.append(f"{study.file}: {count(len(set(strange)), 'case')} that no run was tested on left out")
    seen: set[tuple[Any, ...]] = set()
    for given in dict.fromkeys(reading.label for reading in readings):
        own = [reading for reading in readings if reading.label == given]
        for entry, label in _labelled(path, given, at):
            sitting = _Sitting(study, entry, label, own, common)
            cases = (label, tuple(sitting.units))
            sitting.add(cases not in seen)
            seen.add(cases)
    return study


def _level(path: Path | str, readings: Sequence[Reading], entries: Sequence[Entry]) -> str:
    """The level at which most cases of the table are test cases."""
    cases = {case for reading in readings for case in reading.score}
    hits = {}
    for level in reversed(LEVELS):
        places = [_places(entry.cases[level]) for entry in entries if level in entry.cases]
        hits[level] = len(cases.intersection(*[set().union(*places)])) if places else 0
    level = max(hits, key=lambda name: hits[name])
    if not hits[level]:
        tested = next(iter(entries[0].cases.values()))
        raise ConfigError(
            f"readers={path}: none of its {len(cases)} cases was tested, such as {min(cases)!r}",
            remedy=f"give ids of tested cases, such as {tested.unit[0]!r}, or of their patients",
        )
    return level


def _places(cases: Pooled) -> dict[str, int]:
    """Where each case is; of one case per patient also by his id."""
    found = {} if cases.clustered else {str(name): i for i, name in enumerate(cases.patient)}
    return found | {str(name): i for i, name in enumerate(cases.unit)}


def _labelled(path: Path | str, given: str, entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """The groups with the label that was read: the one named, the only one, or ``any``."""
    asked = [(entry, given or (entry.group.labels[0] if len(entry.group.labels) == 1 else ANY)) for entry in entries]
    found = [(entry, label) for entry, label in asked if label in entry.group.labels]
    if not found:
        labels = list(dict.fromkeys(label for entry in entries for label in entry.group.labels))
        what = f"label={given!r}: no label of the runs{hint(given, labels)}" if given else "no column 'label'"
        raise ConfigError(f"readers={path}: {what}", remedy=f"name one of {', '.join(labels)} in a column label")
    return found


class _Sitting:
    """The readers of one label beside one group."""

    def __init__(self, study: ReaderStudy, entry: Entry, label: str, readings: Sequence[Reading], common: bool) -> None:
        cases, j = entry.cases[study.level], entry.group.labels.index(label)
        known = np.flatnonzero(~np.isnan(cases.y[:, j]))
        self.study, self.entry, self.readings, self.common, self.panel = study, entry, list(readings), common, label
        self.label = label if len(entry.group.labels) > 1 else ""
        self.units, self.code = cases.unit[known], cases.code[known]
        self.y, self.p, self.call = cases.y[known, j], cases.p[known, j], cases.decision[known, j]
        inverse = {int(i): k for k, i in enumerate(known)}
        places = {name: inverse[i] for name, i in _places(cases).items() if i in inverse}
        self.scores = np.full((len(self.readings), len(known)), NAN)
        for row, reading in zip(self.scores, self.readings, strict=True):
            for case, value in reading.score.items():
                if case in places:
                    row[places[case]] = value

    def add(self, new: bool) -> None:
        """Its rows, tests and notes; ``new``: no group before was tested on these cases."""
        study = self.study
        for i, reading in enumerate(self.readings):
            if new:
                self._row(reading, self.scores[i])
            study.contrasts += self._tests(reading, self.scores[i])
        for modality in dict.fromkeys(reading.modality for reading in self.readings):
            rows = [i for i, reading in enumerate(self.readings) if reading.modality == modality]
            study.contrasts += self._against_all(modality, rows)
        if new:
            study.contrasts += self._modalities()

    def _blank(self, kind: str, metric: str, first: str, second: str) -> Contrast:
        return Contrast(kind, self.study.level, self.label, metric, first, second)

    @property
    def _metrics(self) -> tuple[str, ...]:
        return RATES if self.study.decides else (AUROC,)

    def _missed(self, rows: Sequence[int]) -> str:
        """Who did not read all cases."""
        gaps = {self.readings[i].name: int(np.isnan(self.scores[i]).sum()) for i in rows}
        told = [f"{name} did not read {n} of {len(self.y)}" for name, n in gaps.items() if n]
        return "; ".join(told)

    def _chosen(self, rows: Sequence[int]) -> tuple[_Rows, str, str]:
        """Cases that all of some readers read, a note on them, and why there is no test."""
        shared = np.flatnonzero(~np.isnan(self.scores[list(rows)]).any(axis=0))
        missed = self._missed(rows)
        if missed and not self.common:
            return shared, "", f"{missed} {UNITS[self.study.level]} (cases=common tests on those that were read)"
        if not len(shared):
            return shared, "", "no case was read"
        note = f"on {len(shared)} of {len(self.y)} {UNITS[self.study.level]}: {missed}" if missed else ""
        return shared, note, ""

    def _tests(self, reading: Reading, score: Floats) -> Iterator[Contrast]:
        name = self.entry.name
        shared, note, refused = self._chosen([self.readings.index(reading)])
        if refused:
            blank = self._blank("reader", self._metrics[0], name, reading.name)
            blank.refused = refused
            yield blank
            return
        given = (self.y[shared], self.p[shared], self.call[shared], score[shared])
        for metric, test in against_reader(*given, self.study.decides, self.code[shared]).items():
            blank = self._blank("reader", metric, name, reading.name)
            blank.note = note
            yield blank.take(test, _ONE)

    def _against_all(self, modality: str, rows: Sequence[int]) -> Iterator[Contrast]:
        second = ", ".join(filter(None, ("mean of the readers", modality)))
        shared, note, refused = self._chosen(rows)
        for metric in self._metrics:
            blank = self._blank("readers", metric, self.entry.name, second)
            if refused:
                blank.refused = refused
                yield blank
                return
            model = self.p if metric == AUROC else self.call
            given = (self.y[shared], model[shared].astype(float), self.scores[np.ix_(np.asarray(rows), shared)])
            yield self._over(blank, note, model_against_readers(*given, metric, self.code[shared]))

    def _modalities(self) -> Iterator[Contrast]:
        place = {(reading.reader, reading.modality): i for i, reading in enumerate(self.readings)}
        for one, two in combinations(dict.fromkeys(modality for _, modality in place), 2):
            both = [who for who, modality in place if modality == one and (who, two) in place]
            rows = [[place[who, modality] for who in both] for modality in (one, two)]
            shared, note, refused = self._chosen(rows[0] + rows[1])
            refused = refused if both else "no reader read both"
            for metric in self._metrics:
                blank = self._blank("modalities", metric, one, two)
                if refused:
                    blank.refused = refused
                    yield blank
                    break
                first, second = (self.scores[np.ix_(np.asarray(part), shared)] for part in rows)
                found = between_modalities(self.y[shared], first, second, metric, self.code[shared])
                yield self._over(blank, note, found)

    @staticmethod
    def _over(blank: Contrast, note: str, found: OverReaders) -> Contrast:
        scale, digits = (1, 3) if blank.metric == AUROC else (100, 1)
        one, two = (f"{value * scale:.{digits}f}" for value in found.means)
        blank.note = "; ".join(filter(None, (f"{one} and {two}" if found.means[0] == found.means[0] else "", note)))
        return blank.take(found.test, _ALL)

    # --- figures of the reader himself ---
    def _row(self, reading: Reading, score: Floats) -> None:
        read = np.flatnonzero(~np.isnan(score))
        y, own, code = self.y[read], score[read], self.code[read]
        level = self.study.level
        missed = len(score) - len(read)
        row: dict[str, Any] = {"level": level, "label": self.label, "reader": reading.reader}
        row |= {"modality": reading.modality, "n": len(read), "missed": missed, "patients": len(np.unique(code))}
        row["positives"] = int((y == 1).sum())
        figures = {metric: (NAN, Interval(NAN, NAN)) for metric in (*RATES, AUROC)}
        if self.study.decides:
            for metric, wanted in zip(RATES, (1, 0), strict=True):
                right, who = own[y == wanted] == wanted, code[y == wanted]
                figures[metric] = (float(right.mean()) if len(right) else NAN, clustered_wilson(right, who)[0])
        elif len(read):
            area = auroc_interval(y, own, code)
            figures[AUROC] = (area.value, Interval(area.low, area.high))
        for metric, (value, bounds) in figures.items():
            row |= {metric: value, f"{metric}_low": bounds.low, f"{metric}_high": bounds.high}
        self.study.rows.append(row)
        if missed:
            self.study.notes.append(f"{self._missed([self.readings.index(reading)])} {UNITS[level]}")
        if len(read) > 1 and np.ptp(own) == 0:
            self.study.notes.append(f"{reading.name} gave every case the same: {own[0]:g}")
        self._draw(reading, y, own, row)

    def _draw(self, reading: Reading, y: Floats, own: Floats, row: dict[str, Any]) -> None:
        curves = self.study.curves.setdefault(self.panel, [])
        marker, name = _MARKERS[len(curves) % len(_MARKERS)], reading.name
        if not self.study.decides:
            figures = (row["auroc"], row["auroc_low"], row["auroc_high"])
            curves.append(Curve(name, y, own, *figures, marker=marker))
            return
        spot = (1 - row["specificity"], row["sensitivity"])
        if any(value != value for value in spot):
            return
        across = (1 - row["specificity_high"], 1 - row["specificity_low"])
        bars = (*across, row["sensitivity_low"], row["sensitivity_high"])
        text = f"{name}: sens. {100 * spot[1]:.1f} %, spec. {100 - 100 * spot[0]:.1f} %"
        curves.append(Curve(name, y, own, point=spot, marker=marker, bars=bars, text=text))
