"""The page's sections on tests: which groups differ, what a leak pretends, what was published."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from hemlearn.reports.comparison.contrasts import Contrast
from hemlearn.reports.comparison.files.page_parts import LISTED, Keys, table
from hemlearn.reports.comparison.paired import ALL_PAIRS, endpoints, primary
from hemlearn.reports.comparison.rows import Entry
from hemlearn.reports.comparison.text import difference_text, endpoint_name, interval_text, metric_name, p_text, span

if TYPE_CHECKING:
    from hemlearn.reports.comparison.result import Comparison


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
