"""One record per test of a comparison, its endpoints (level and label), and which groups are held against which."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from hemlearn.compare.groups import ANY, Entry
from hemlearn.evaluation.auroc import CONFIDENCE, NAN
from hemlearn.evaluation.significance import Test, holm
from hemlearn.reports.tables import UNDEFINED, UNITS, p_text, scale_of, signed

LEVEL = 1 - CONFIDENCE  # below it, an adjusted p is called a difference
ALL_PAIRS = 12  # groups of which every pair is tested; beyond, each is tested against one
KINDS = {
    "paired": "two groups on the same test cases",
    "unpaired": "two groups on different test cases",
    "resampled": "two groups over folds or seeds",
    "null": "a group against a model that sees no pixel inside the head",
    "leak": "split by slice against split by patient",
    "published": "a group against a published figure",
    "reader": "a group against one reader of the same cases",
    "readers": "a group against the mean of the readers, who stand for all readers (Obuchowski-Rockette)",
    "modalities": "two modalities, read by the same readers (Obuchowski-Rockette)",
    "non-inferiority": "a group against the baseline, one-sided, with the margin",
    "effect": "two values of one setting, averaged over pairs of groups that are alike in all others",
}
PRIMARY = "groups, primary endpoint"  # the family of tests that the headline rests on
_FAMILIES = {
    **{"paired": "groups, other endpoints", "unpaired": "groups, other endpoints", "resampled": "folds and seeds"},
    **{"null": "models without pixels", "leak": "leak", "published": "published figures", "effect": "main effects"},
    **dict.fromkeys(("reader", "readers", "modalities"), "readers"),
    "non-inferiority": "non-inferiority",
}
Pair = tuple[Entry, Entry]


@dataclass
class Contrast:
    """One comparison: made, undefined or refused. A row of ``tests.csv``, in this order of columns."""

    kind: str  # one of :data:`KINDS`
    level: str  # slice | series | patient
    label: str  # label compared; ``""`` is the mean over labels, or the only one
    metric: str  # auroc | accuracy | sensitivity | specificity | sensitivity_at_specificity
    first: str  # name of the first group
    second: str  # name of the second group, baseline model or published figure
    method: str = ""  # what was computed
    difference: float = NAN  # first minus second
    low: float = NAN  # lower end of its 95 % interval
    high: float = NAN  # upper end
    statistic: float = NAN  # z or t
    p: float = NAN  # two-sided (one-sided for non-inferiority)
    p_holm: float = NAN  # corrected for all p values of its family
    family: str = ""  # the tests it is corrected with, see :func:`adjust`
    n: int = 0  # cases it rests on (resamples, for kind ``resampled``)
    patients: int = 0  # patients it rests on; 0 where that does not apply
    margin: float = NAN  # of a non-inferiority test
    verdict: str = ""  # of a non-inferiority test
    covers: str = ""  # which variation it speaks of
    refused: str = ""  # why it was not made; empty where it was
    note: str = ""  # what a reader must know

    @property
    def made(self) -> bool:
        """Whether there is a p value."""
        return self.p == self.p

    @property
    def differs(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p_holm < LEVEL

    def take(self, test: Test, covers: str = "") -> Contrast:
        """This comparison with the outcome of a test."""
        note = "; ".join(filter(None, [self.note, test.note]))
        same: dict[str, Any] = {
            name: getattr(test, name) for name in ("difference", "low", "high", "statistic", "p", "n")
        }
        taken = replace(self, method=test.name, patients=test.clusters, note=note, covers=covers or self.covers)
        return replace(taken, **same)

    def turned(self) -> Contrast:
        """The same comparison, second minus first."""
        note = self.note
        if note.startswith("discordant pairs "):
            counts, _, rest = note.removeprefix("discordant pairs ").partition(";")
            note = f"discordant pairs {':'.join(reversed(counts.split(':')))}" + (f";{rest}" if rest else "")
        turned = replace(self, first=self.second, second=self.first, low=-self.high, high=-self.low, note=note)
        return replace(turned, difference=-self.difference, statistic=-self.statistic)

    @property
    def where(self) -> str:
        """Its endpoint in words, such as ``patients, any``."""
        return Endpoint(self.level, self.label).name()

    @property
    def p_words(self) -> str:
        """The p of the interval beside it, then that adjusted within its family: ``p 0.012, adjusted p 0.048``."""
        return f"p {p_text(self.p)}, adjusted p {p_text(self.p_holm)}"

    def text(self, bounds: bool = True) -> str:
        """``+0.031 (-0.004 to +0.066)``; differences of rates in percentage points."""
        if self.difference != self.difference:
            return UNDEFINED
        scale, digits = scale_of(self.metric)
        text, low, high = (signed(v * scale, digits) for v in (self.difference, self.low, self.high))
        return f"{text} ({low} to {high})" if bounds and self.low == self.low else text


def adjust(contrasts: Sequence[Contrast], is_main: Callable[[Contrast], bool] | None = None) -> dict[str, int]:
    """Set the p of every comparison made that is corrected for its family (Holm); returns the size of each family.

    A family is the tests that answer one question: AUROCs of the groups at the primary endpoint, which the headline
    rests on; groups at all other endpoints and by other metrics; over folds and seeds; against models without pixels;
    and so on. Between families nothing is corrected.

    Intervals end where a difference must: one of t does not know that areas and rates lie between 0 and 1.

    Args:
        contrasts: The comparisons.
        is_main: Whether one is made at the primary endpoint; None: at none.
    """
    families: dict[str, list[Contrast]] = {}
    for contrast in contrasts:
        between = contrast.kind in ("paired", "unpaired") and contrast.metric == "auroc"
        first = between and is_main is not None and is_main(contrast)
        contrast.family = PRIMARY if first else _FAMILIES[contrast.kind]
        families.setdefault(contrast.family, []).append(contrast)
        if not contrast.metric.endswith("log_loss"):
            contrast.low, contrast.high = max(contrast.low, -1.0), min(contrast.high, 1.0)
    for own in families.values():
        for contrast, p in zip(own, holm([c.p for c in own]), strict=True):
            contrast.p_holm = float(p)
    sizes = {name: sum(c.made for c in own) for name, own in families.items()}
    order = dict.fromkeys((PRIMARY, *_FAMILIES.values()))
    return {name: sizes[name] for name in order if sizes.get(name)}


def as_table(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """One row per comparison."""
    names = [field.name for field in dataclasses.fields(Contrast)]
    return pd.DataFrame([dataclasses.asdict(c) for c in contrasts], columns=names)


# --- What is compared.


@dataclass(frozen=True)
class Endpoint:
    """A level and a label (``""``: the only one, or the mean over labels)."""

    level: str
    label: str

    def name(self, several: bool = False) -> str:
        """``patients, any`` or ``slices, mean over labels``."""
        unit = UNITS.get(self.level, self.level)
        return unit + (f", {self.label}" if self.label else ", mean over labels" if several else "")


def endpoints(entries: Sequence[Entry], wanted: Sequence[str] = ()) -> list[Endpoint]:
    """Levels and labels to be tested: the label itself; of several their mean, ``any`` and those ``wanted``.

    A level whose cases and probabilities are those of another level is left out: nothing new would be compared.
    """
    found: list[Endpoint] = []
    for level in dict.fromkeys(level for entry in entries for level in entry.cases):
        at = [entry for entry in entries if level in entry.cases]
        if level == "series" and all(_same_as_patient(entry) for entry in at):
            continue
        several = [entry.group.labels for entry in at if len(entry.group.labels) > 1]
        labels = dict.fromkeys(label for labels in several for label in labels)
        found += [Endpoint(level, name) for name in ("", *(c for c in labels if c == ANY or c in wanted))]
    return found


def primary(ends: Sequence[Endpoint]) -> Endpoint:
    """The endpoint of the headline: patients where they are judged, and label ``any`` where there is one."""
    level = "patient" if any(end.level == "patient" for end in ends) else ends[0].level
    at = [end for end in ends if end.level == level]
    return next((end for end in at if end.label == ANY), at[0])


def is_main(contrast: Contrast, entries: Sequence[Entry]) -> bool:
    """Whether a comparison is made at the endpoint of the headline."""
    own = [entry for entry in entries if entry.name in (contrast.first, contrast.second)]
    return bool(own) and Endpoint(contrast.level, contrast.label) == primary(endpoints(own))


def _same_as_patient(entry: Entry) -> bool:
    """Whether every patient has one series, called alike."""
    series, patient = entry.cases["series"], entry.cases.get("patient")
    if patient is None or series.p.shape != patient.p.shape or series.clustered:
        return False
    order = np.argsort(series.patient, kind="stable")
    return bool((series.decision[order] == patient.decision).all() and (series.p[order] == patient.p).all())


def chosen_pairs(entries: Sequence[Entry], anchor: Entry) -> list[Pair]:
    """Every pair of up to twelve groups; of more, each group with the ``anchor``."""
    if len(entries) <= ALL_PAIRS:
        return list(combinations(entries, 2))
    return [(entry, anchor) for entry in entries if entry is not anchor]


def best(entries: Iterable[Entry], end: Endpoint | None = None) -> Entry:
    """The group of highest AUROC; leaky ones only where there is no other, the first among equals.

    Args:
        entries: The groups.
        end: Where the AUROC is looked up, by those that have it, as pictures have no patients; None: each group's own.
    """
    listed = list(entries)
    found = {entry: entry.auroc for entry in listed}
    if end is not None:
        rows = [(entry, entry.row(end.level, end.label)) for entry in listed]
        found = {entry: float(row["auroc"]) for entry, row in rows if row is not None} or found
    honest = [entry for entry in found if not entry.group.leaky] or list(found)
    return max(honest, key=lambda entry: found[entry] if found[entry] == found[entry] else -1.0)
