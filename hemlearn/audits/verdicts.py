"""What the audits mean, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NULLS = ("size", "metadata", "border", "position")
_SUBJECT = {
    "size": ("image size alone", "reaches", "is"),
    "metadata": ("file facts alone (size, bytes, encoding, scanner)", "reach", "are"),
    "border": ("the image border alone", "reaches", "is"),
    "position": ("slice position alone", "reaches", "is"),
}
_READ_BESIDE = 0.6  # AUROC from which, when its interval excludes chance, results must be read beside a null


def figure(entry: Mapping[str, Any]) -> str:
    """``0.80 (0.73-0.86)``, or ``undefined``."""
    if entry.get("value") is None:
        return "undefined"
    text = f"{entry['value']:.2f}"
    return text if entry.get("low") is None else f"{text} ({entry['low']:.2f}-{entry['high']:.2f})"


def stands_out(entry: Mapping[str, Any]) -> bool:
    """Whether an AUROC is clearly above chance: 0.6 or more, with an interval that lies above 0.5."""
    value, low = entry.get("value"), entry.get("low")
    return value is not None and low is not None and value >= _READ_BESIDE and low > 0.5


def null_verdict(name: str, table: Mapping[str, Any], level: str) -> str:
    """One sentence about a null at one level."""
    who, reaches, is_ = _SUBJECT[name]
    labels: Mapping[str, Any] = table["labels"]
    known = {c: found["auroc"] for c, found in labels.items() if found["auroc"].get("value") is not None}
    if not known:
        return f"{who}: undefined per {level} (a class is absent)"
    out = {c: entry for c, entry in known.items() if stands_out(entry)}
    sure = {c: entry for c, entry in known.items() if entry.get("low") is not None}
    if not sure:
        return f"{who}: no interval per {level} (each label has a class from a single patient)"
    best = max(out or sure, key=lambda c: known[c]["value"])
    if not out:
        told = f" ({best}, the highest of {len(sure)} labels)" if len(labels) > 1 else ""
        return f"{who} {is_} not clearly above chance: AUROC {figure(known[best])} per {level}{told}"
    named = [best] if "any" not in sure else list(dict.fromkeys(("any", best)))
    areas = ", ".join(figure(known[c]) + (f" for {c}" if len(labels) > 1 else "") for c in named)
    return f"{who} {reaches} AUROC {areas} per {level}: read every result beside it{_against(labels[best])}"


def _against(found: Mapping[str, Any]) -> str:
    """How the run stands to the null, where that is known."""
    gain = found.get("gain")
    if gain is None or gain.get("low") is None:
        return ""
    bounds = f"{gain['value']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})"
    if gain["low"] > 0:
        return f"; the run is above it by {bounds}"
    return f"; the run is NOT shown to be better, difference {bounds}"


def duplicate_verdict(found: Mapping[str, Any]) -> str:
    """One sentence about duplicates and the split."""
    pairs = found["exact"] + found["near"]
    if not pairs:
        return f"no duplicated image found ({found['sought']} copies sought)"
    named = f"{pairs} pairs of duplicated images ({found['exact']} exact, {found['near']} near)"
    if found.get("straddling") is None:
        return named
    if not found["straddling"]:
        return f"{named}, none on two sides of the split"
    return f"{named}, {found['straddling']} on two sides of the split: results on them are memory, not diagnosis"


def leak_verdict(split: Mapping[str, Any]) -> str:
    """The sentence that marks a leaky run."""
    seen = split.get("seen_by_weights")
    if seen:
        return (
            f"LEAKY: the weights come from a run that has learnt from {seen} of the patients who validate or test "
            "here; these figures say nothing about new patients"
        )
    both, tested = split["patients_on_two_sides"], split["patients"]
    if not both:
        return "LEAKY by its settings (split by slice), though here no test patient stands on two sides"
    return (
        f"LEAKY: {both} of {tested} test patients also train or validate; these figures say nothing about new patients"
    )


def verdicts(audits: Mapping[str, Any], part: str) -> list[str]:
    """All sentences of one set of audits: the leak first, duplicates, then the nulls."""
    said: list[str] = []
    split = audits.get("split")
    if split and split["leaky"]:
        said.append(leak_verdict(split))
    said.append(duplicate_verdict(audits["duplicates"]))
    for name in NULLS:
        found = audits.get(name, {})
        note = f" ({found['note']})" if found.get("note") else ""
        if found.get(part):
            told = [null_verdict(name, found[part][level], level) for level in different_levels(found[part])]
            said += [text + note for text in told]
    return said


def different_levels(levels: Mapping[str, Any]) -> Sequence[str]:
    """Levels that judge different cases: where a patient has one slice, slices stand for patients."""
    if not levels:
        return []
    sizes = {level: found["auroc"].get("n") for level, found in levels.items()}
    names = list(levels)
    chosen = [names[0]]
    if "patient" in sizes and sizes["patient"] != sizes[names[0]]:
        chosen.append("patient")
    return chosen
