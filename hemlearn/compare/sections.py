"""The page's sections on tests: which groups differ, what a leak pretends, what was published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from hemlearn.compare.contrasts import Contrast
from hemlearn.compare.formats import (
    count,
    difference_text,
    endpoint_name,
    interval_text,
    metric_name,
    p_text,
    seconds,
    span,
)
from hemlearn.compare.notes import Audits
from hemlearn.compare.paired import ALL_PAIRS, best, endpoints, primary
from hemlearn.compare.pooling import ANY, NULLS, Entry, confusion

if TYPE_CHECKING:
    from hemlearn.compare.result import Comparison


# --- Pieces of the comparison's page. Every text of a run is escaped where it enters a tag.


LISTED = 80  # rows of one table on the page; the CSV files have all


@dataclass
class Keys:
    """Letters and colours of the groups.

    Attributes:
        known: Name -> letter and colour (None where the group is in no figure).
    """

    known: Mapping[str, tuple[str, str | None]]

    def letter(self, name: str) -> str:
        """The letter of a group; other names as they are."""
        return self.known[name][0] if name in self.known else name

    def chip(self, name: str) -> str:
        """The letter on its colour, as HTML; empty for what is no group."""
        if name not in self.known:
            return ""
        letter, colour = self.known[name]
        style = f' style="background:{colour}"' if colour else ""
        return f'<span class="key"{style} title="{escape(name, quote=True)}">{escape(letter)}</span>'

    def named(self, name: str) -> str:
        """Letter and name, as HTML."""
        return f'<span class="named">{self.chip(name)} {escape(name)}</span>'

    def legend(self, names: Iterable[str]) -> str:
        """Which letter is which group."""
        return (
            '<p class="small">' + " ".join(f'<span class="name">{self.named(name)}</span>' for name in names) + "</p>"
        )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], first: int, classes: Sequence[str] = ()) -> str:
    """A table that scrolls inside its own box. Cells are HTML already; the header is text.

    Args:
        header: Column titles.
        rows: Cells.
        first: Columns from here on hold figures.
        classes: Of the rows.
    """
    head = "".join(f"<th{_class('n') if i >= first else ''}>{escape(name)}</th>" for i, name in enumerate(header))
    lines = []
    for index, row in enumerate(rows):
        kinds = ["n" if i >= first else "setting" if i else "" for i in range(len(row))]
        cells = "".join(f"<td{_class(kind)}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr{_class(classes[index] if classes else '')}>{cells}</tr>")
    body = "".join(lines)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def tests_section(result: Comparison, keys: Keys) -> str:
    """Matrices of paired tests (lists beyond twelve groups), then non-inferiority, other tests and what was refused.

    The endpoint of the headline stands open, the others are folded.
    """
    out = []
    made = sum(c.made for c in result.contrasts)
    pairs = [c for c in result.contrasts if c.kind in ("paired", "unpaired")]
    if pairs:
        told = f"Row minus column; then p, and p corrected by Holm for all {made} p values of this comparison."
        out.append(f'<p class="small">{told} Green: the corrected p is below 0.05. Rates in percentage points.</p>')
        out.append(keys.legend(entry.name for entry in result.entries[:ALL_PAIRS]))
    shown: list[str] = []
    folded: list[str] = []
    for end in dict.fromkeys((c.level, c.label, c.metric) for c in pairs):
        own = [c for c in pairs if (c.level, c.label, c.metric) == end]
        if any(c.made for c in own):
            (shown if is_main(result, own[0]) else folded).append(_block(own, result, keys))
    out += shown
    over = [c for c in result.contrasts if c.kind == "resampled" and (c.made or c.refused)]
    for level in dict.fromkeys(c.level for c in over):
        own = [c for c in over if c.level == level]
        covers = "; ".join(dict.fromkeys(c.covers for c in own if c.covers))
        text = f"<h3>Training again: AUROC of the runs themselves, {escape(endpoint_name(level, ''))}</h3>"
        text += f'<p class="small">Nadeau and Bengio. {escape(covers)}.</p>' if covers else ""
        folded.append(text + _pairs(own, result, keys))
    margin = [c for c in result.contrasts if c.kind == "non-inferiority"]
    if margin:
        out.append(f"<h3>Non-inferiority to {keys.named(margin[0].second)}</h3>" + contrast_list(margin, keys))
    if folded:
        out.append(f"<details><summary>{len(folded)} more endpoints</summary>{''.join(folded)}</details>")
    out.append(_refused(pairs, keys))
    return "".join(out)


def is_main(result: Comparison, contrast: Contrast) -> bool:
    """Whether a comparison is made at the endpoint of the headline."""
    entries = [entry for entry in result.entries if entry.name in (contrast.first, contrast.second)]
    main = primary(endpoints(entries))
    return (contrast.level, contrast.label) == (main.level, main.label)


def _block(contrasts: Sequence[Contrast], result: Comparison, keys: Keys) -> str:
    """One endpoint with its title."""
    c = contrasts[0]
    several = any(len(entry.group.labels) > 1 for entry in result.entries)
    title = f"{escape(metric_name(c.metric))}, {escape(endpoint_name(c.level, c.label, several))}"
    how = "; ".join(dict.fromkeys(c.method for c in contrasts if c.method))
    return f'<h3>{title} <span class="small">{escape(how)}</span></h3>{_pairs(contrasts, result, keys)}'


def _pairs(contrasts: Sequence[Contrast], result: Comparison, keys: Keys) -> str:
    return contrast_list(contrasts, keys) if result.tested_against else _matrix(contrasts, result.entries, keys)


def _refused(pairs: Sequence[Contrast], keys: Keys) -> str:
    refused = list(dict.fromkeys((c.refused, c.first, c.second) for c in pairs if c.refused))
    if not refused:
        return ""
    items = "".join(
        f"<li>{keys.chip(a) or escape(a)} and {keys.chip(b) or escape(b)}: {escape(reason)}</li>"
        for reason, a, b in refused[:LISTED]
    )
    more = f"<li>and {len(refused) - LISTED} more, in tests.csv</li>" if len(refused) > LISTED else ""
    return f"<h3>Paired tests refused</h3><ul>{items}{more}</ul>"


def _matrix(contrasts: Sequence[Contrast], entries: Sequence[Entry], keys: Keys) -> str:
    """Every group against every other: difference with p; green where the corrected p is below 0.05."""
    found = {(c.first, c.second): c for c in contrasts}
    found |= {(c.first, c.second): c for c in contrasts if c.made}  # an unpaired test in the place of a refused one
    names = [entry.name for entry in entries if any(entry.name in pair for pair in found)]
    rows = []
    for one in names:
        cells = [f"<th>{keys.chip(one)}</th>"]
        for other in names:
            contrast, sign = found.get((one, other)), 1
            if contrast is None:
                contrast, sign = found.get((other, one)), -1
            cells.append(_matrix_cell(contrast, sign) if one != other else '<td class="self"></td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f'<th class="n">{keys.chip(name)}</th>' for name in names)
    return (
        '<div class="scroll" tabindex="0"><table><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _matrix_cell(contrast: Contrast | None, sign: int) -> str:
    if contrast is None:
        return "<td></td>"
    if not contrast.made:
        reason = escape(contrast.refused or contrast.note or "undefined", quote=True)
        return f'<td class="n no" title="{reason}">{"refused" if contrast.refused else "undefined"}</td>'
    shown = contrast if sign > 0 else turned(contrast)
    star = "<br>unpaired" if contrast.kind == "unpaired" else ""
    told = escape(f"{difference_text(shown)}; {contrast.method}; {contrast.note}".rstrip("; "), quote=True)
    kind = "yes" if contrast.differs else "no"
    p = f'<span class="small">p {p_text(contrast.p)}<br>corr. {p_text(contrast.p_holm)}</span>'
    return f'<td class="n {kind}" title="{told}">{difference_text(shown, False)}<br>{p}{star}</td>'


def turned(contrast: Contrast) -> Contrast:
    """The same comparison, second minus first."""
    return Contrast(
        contrast.kind,
        contrast.level,
        contrast.label,
        contrast.metric,
        contrast.second,
        contrast.first,
        difference=-contrast.difference,
        low=-contrast.high,
        high=-contrast.low,
    )


def contrast_list(contrasts: Sequence[Contrast], keys: Keys) -> str:
    """Comparisons one below the other, the clearest first; a note that all share stands above them once."""
    ordered = sorted(contrasts, key=lambda c: (not c.made, c.p_holm if c.made else 0.0))[:LISTED]
    notes = {c.note for c in ordered if c.made}
    common = notes.pop() if len(notes) == 1 else ""
    header = ["first", "second", "where", "metric", "difference (95 %)", "p", "p corrected", "how"]
    rows = []
    for c in ordered:
        where = [
            keys.named(c.first),
            keys.named(c.second),
            escape(endpoint_name(c.level, c.label)),
            escape(metric_name(c.metric)),
        ]
        if not c.made:
            reason = f"refused: {c.refused}" if c.refused else f"undefined: {c.note}"
            rows.append([*where, difference_text(c) if not c.refused else "", "", "", _small(reason)])
            continue
        verdict = f"; margin {c.margin:g}: {c.verdict}" if c.verdict else ""
        how = f"{c.method}{verdict}" + (f"; {c.note}" if c.note and c.note != common else "")
        marked = f'<span class="{"yes" if c.differs else ""}">{p_text(c.p_holm)}</span>'
        rows.append([*where, _line(difference_text(c)), _line(p_text(c.p)), marked, _small(how)])
    told = f'<p class="small">{escape(common)}.</p>' if common else ""
    return told + table(header, rows, 99)


def _line(text: str) -> str:
    return f'<span class="line">{escape(text)}</span>'


def _small(text: str) -> str:
    return f'<span class="small how">{escape(text)}</span>'


def leak_section(result: Comparison, keys: Keys) -> str:
    """Leaky groups beside their twins split by patient."""
    own = [c for c in result.contrasts if c.kind == "leak"]
    if not own:
        if not result.leaky:
            return ""
        return "<p>Groups split by slice are among these, but none split by patient with the same settings.</p>"
    rows = []
    for c in own:
        values = [_value(result, name, c) for name in (c.first, c.second)]
        rows.append(
            [
                keys.named(c.first),
                keys.named(c.second),
                escape(endpoint_name(c.level, c.label)),
                escape(metric_name(c.metric)),
                *values,
                _line(difference_text(c)),
                p_text(c.p_holm),
                _small(f"{c.method}; {c.note}"),
            ]
        )
    header = [
        "split by slice",
        "split by patient",
        "where",
        "metric",
        "by slice",
        "by patient",
        "inflation (95 %)",
        "p corrected",
        "how",
    ]
    told = (
        "The same settings, once with slices of one patient in training and test, once without. The difference is "
        "what the leak pretends."
    )
    return f"<p>{told}</p>{table(header, rows, 99)}"


def _value(result: Comparison, name: str, c: Contrast) -> str:
    rows = [
        row
        for entry in result.entries
        if entry.name == name
        for row in entry.rows
        if (row["level"], row["label"]) == (c.level, c.label)
    ]
    return _line(interval_text(rows[0], c.metric)) if rows else ""


def published_section(result: Comparison, keys: Keys) -> str:
    """Published figures beside ours."""
    if not result.published:
        return ""
    rows = []
    for item in result.published:
        figure, row, c = item["figure"], item["row"], item["contrast"]
        theirs = _line(span(figure.value, figure.interval.low, figure.interval.high, figure.metric))
        theirs += f"<br>{figure.x} of {figure.n}" if figure.x is not None else ""
        how = c.refused or "; ".join(filter(None, [c.method, c.note]))
        rows.append(
            [
                escape(figure.study),
                escape(metric_name(figure.metric)),
                theirs,
                keys.named(row["group"]),
                escape(endpoint_name(row["level"], row["label"])),
                _line(interval_text(row, figure.metric)),
                difference_text(c),
                p_text(c.p_holm) if c.made else "",
                _small(how),
            ]
        )
    header = ["study", "metric", "published", "group", "where", "ours", "ours minus theirs", "p corrected", "how"]
    studies = "".join(f"<li>{escape(s.title)}: {escape(s.citation)} {escape(s.note)}</li>" for s in result.studies)
    told = "Other patients, scanners and labels than ours: a difference is not of the models alone."
    return f"<p>{told}</p>{table(header, rows, 99)}<ul class='small'>{studies}</ul>"


# --- The page's sections on each label, confusion, shortcuts, errors and cost.


_FAILURES = 8  # errors shown per label and side


def labels_section(result: Comparison, keys: Keys) -> str:
    """Every label of every group at its first level."""
    names = {entry.name for entry in result.entries}
    rows, classes = [], []
    for row in result.table.to_dict("records"):
        first = next((e for e in result.entries if e.name == row["group"]), result.entries[0])
        blind = row["source"] in NULLS
        if not row["label"] or row["level"] != first.rows[0]["level"] or not (row["group"] in names or blind):
            continue
        figures = [interval_text(row, m) for m in ("auroc", "sensitivity", "specificity")]
        figures += [f"{row[m]:.3f}" if row[m] == row[m] else "undefined" for m in ("ap", "brier", "ece")]
        told = ["" if blind and f == "undefined" else f for f in figures]
        rows.append([keys.named(row["group"]), escape(row["label"]), str(row["n"]), str(row["positives"]), *told])
        classes.append("null" if blind else "")
    if not rows:
        return ""
    more = f'<p class="small">The first {4 * LISTED} of {len(rows)} rows.</p>' if len(rows) > 4 * LISTED else ""
    header = [
        "group",
        "label",
        "n",
        "positive",
        "AUROC",
        "sensitivity %",
        "specificity %",
        "average precision",
        "Brier",
        "ECE",
    ]
    return table(header, rows[: 4 * LISTED], 2, classes) + more


def confusion_section(result: Comparison, keys: Keys) -> str:
    """Confusion counts of each group at its first level; true classes in rows."""
    out = []
    for entry in result.entries[:ALL_PAIRS]:
        level, cases = next(iter(entry.cases.items()))
        for label, item in confusion(entry.group, cases).items():
            head = "".join(f'<th class="n">{escape(str(name))}</th>' for name in item["names"])
            lines = []
            for name, counts in zip(item["names"], item["counts"], strict=True):
                total = sum(counts)
                shares = [f"{100 * n / total:.0f} %" if total else "" for n in counts]
                cells = "".join(
                    f'<td class="n">{n}<br><span class="small">{share}</span></td>'
                    for n, share in zip(counts, shares, strict=True)
                )
                lines.append(f"<tr><th>{escape(str(name))}</th>{cells}</tr>")
            title = f"{keys.chip(entry.name)} {escape(label)} <span class='small'>{escape(level)}</span>"
            out.append(
                f"<div><h3>{title}</h3><table><thead><tr><th>true \\ called</th>{head}</tr></thead>"
                f"<tbody>{''.join(lines)}</tbody></table></div>"
            )
    inside = f'<div class="confusions">{"".join(out)}</div>'
    return inside if len(out) <= 8 else f"<details><summary>{len(out)} tables</summary>{inside}</details>"


def audit_section(result: Comparison, audits: Audits, keys: Keys) -> str:
    """Nulls, verdicts, duplicates and label counts."""
    out = []
    nulls = [c for c in result.contrasts if c.kind == "null" and c.made]
    if nulls:
        out.append("<h3>Each group against models that see no pixel inside the head</h3>")
        main = [c for c in nulls if is_main(result, c)]
        rest = [c for c in nulls if not is_main(result, c)]
        out.append(contrast_list(main, keys) if main else "")
        if rest:
            out.append(f"<details><summary>{len(rest)} more endpoints</summary>{contrast_list(rest, keys)}</details>")
    else:
        out.append("<p>These runs hold no predictions of a null (position, metadata or border only).</p>")
    if not audits.told:
        out.append(f"<p>None of the {audits.runs} runs holds audits (duplicates, label counts).</p>")
        return "".join(out)
    out.append(f"<h3>Audits of {audits.told} of {audits.runs} runs</h3>")
    if audits.verdicts:
        said = [f'<li>{escape(text)} <span class="small">({n} runs)</span></li>' for text, n in audits.verdicts[:20]]
        out.append(f"<ul>{''.join(said)}</ul>")
    told = [f"{name} {n}" for name, n in audits.duplicates.items() if n is not None]
    out.append(f"<p>Duplicates, most in one run: {escape(', '.join(told))}.</p>" if told else "")
    sides = ("positive", "negative", "unknown")
    rows = [
        [escape(source), escape(split), escape(label), *(escape(str(c.get(side, ""))) for side in sides)]
        for source, splits in audits.labels.items()
        for split, labels in splits.items()
        if isinstance(labels, dict)
        for label, c in labels.items()
        if isinstance(c, dict)
    ]
    if rows:
        out.append(table(["data", "split", "label", *sides], rows, 3))
    return "".join(out)


def failure_section(result: Comparison, failures: pd.DataFrame, keys: Keys) -> str:
    """The most confident errors of the group of highest AUROC, as identifiers."""
    top = best(result.entries)
    own = failures[(failures["group"] == top.name) & (failures["rank"] <= _FAILURES)]
    if own.empty:
        return f"<p>{keys.named(top.name)} called every test case rightly.</p>"
    rows = [
        [
            *(escape(str(row[key])) for key in ("label", "error", "case", "patient")),
            f"{row['probability']:.3f}",
            f"{row['groups_wrong']} of {row['groups']}",
        ]
        for row in own.to_dict("records")
    ]
    told = (
        f"<p>Most confident errors of {keys.named(top.name)}, at most {_FAILURES} per label and side; failures.csv "
        "has all groups. What every group gets wrong is hard, or labelled wrongly.</p>"
    )
    header = ["label", "error", str(own["level"].iloc[0]), "patient", "probability", "groups wrong"]
    main = [r for r in rows if r[0] == ANY]
    if not main or len(main) == len(rows):
        return told + table(header, rows, 4)
    other = table(header, [r for r in rows if r[0] != ANY], 4)
    return told + table(header, main, 4) + f"<details><summary>the other labels</summary>{other}</details>"


def cost_section(costs: pd.DataFrame, keys: Keys) -> str:
    """Training time, speed and size."""
    if costs.empty:
        return ""
    rows = [
        [
            keys.named(row["group"]),
            str(row["runs"]),
            seconds(row["fit_seconds"]),
            seconds(row["fit_seconds_total"]),
            seconds(row["wall_seconds"]),
            count(row["images_per_second"]),
            count(row["parameters"]),
            count(row["epochs"]),
            f'<span class="small">{escape(row["device"])}</span>',
        ]
        for row in costs.to_dict("records")
    ]
    header = [
        "group",
        "runs",
        "training per run",
        "training together",
        "wall time per run",
        "images per second",
        "parameters",
        "epochs",
        "device",
    ]
    return table(header, rows, 1)
