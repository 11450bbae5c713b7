"""The page's sections on each label, confusion, shortcuts, errors and cost."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from hemlearn.reports.comparison.files.page_parts import LISTED, Keys, table
from hemlearn.reports.comparison.files.page_tests import contrast_list, is_main
from hemlearn.reports.comparison.paired import ALL_PAIRS, best
from hemlearn.reports.comparison.pooling import NULLS
from hemlearn.reports.comparison.rows import ANY, confusion
from hemlearn.reports.comparison.shortcuts import Audits
from hemlearn.reports.comparison.text import count, interval_text, seconds

if TYPE_CHECKING:
    from hemlearn.reports.comparison.result import Comparison

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
