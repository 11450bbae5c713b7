"""What the runs' own audits say: duplicates, label counts, verdicts; put together for a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hemlearn.reports.comparison.rows import Entry
from hemlearn.reports.comparison.runs import Run

DUPLICATES = ("exact", "near", "straddling")


@dataclass
class Audits:
    """What the runs of a comparison wrote under ``audits`` in their ``metrics.json``.

    Attributes:
        runs: Runs asked.
        told: Runs that have audits.
        duplicates: Largest count of each sort over the runs; None where no run tells.
        labels: Data source -> split -> label -> counts, of the first run of each source.
        verdicts: Sentence and the number of runs that say it, the most frequent first.
        features: What the metadata null was given.
    """

    runs: int = 0
    told: int = 0
    duplicates: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(DUPLICATES))
    labels: dict[str, dict[str, dict[str, dict[str, int]]]] = field(default_factory=dict)
    verdicts: list[tuple[str, int]] = field(default_factory=list)
    features: list[str] = field(default_factory=list)


def audits_of(entries: Sequence[Entry]) -> Audits:
    """The audits of all runs that a comparison used; runs of versions without audits are counted, not guessed."""
    found = Audits()
    said: Counter[str] = Counter()
    features: dict[str, None] = {}
    for run in _used(entries):
        found.runs += 1
        audit = run.metrics.get("audits")
        if not isinstance(audit, dict):
            continue
        found.told += 1
        duplicates = audit.get("duplicates")
        for name, known in found.duplicates.items():
            count = duplicates.get(name) if isinstance(duplicates, dict) else None
            if isinstance(count, int):
                found.duplicates[name] = max(count, known or 0)
        verdict = audit.get("verdict")
        said.update(str(text) for text in (verdict if isinstance(verdict, list) else [verdict] if verdict else []))
        labels = audit.get("labels")
        if isinstance(labels, dict):
            found.labels.setdefault(_source(run), labels)
        metadata = audit.get("metadata")
        if isinstance(metadata, dict):
            features |= dict.fromkeys(map(str, metadata.get("features") or []))
    found.verdicts = sorted(said.items(), key=lambda item: (-item[1], item[0]))
    found.features = list(features)
    return found


def _used(entries: Sequence[Entry]) -> Iterable[Run]:
    for entry in entries:
        if entry.cases:
            yield from next(iter(entry.cases.values())).used


def _source(run: Run) -> str:
    data: Any = run.provenance.get("data") or {}
    return str(data.get("source") or run.keys.get("data.name"))
