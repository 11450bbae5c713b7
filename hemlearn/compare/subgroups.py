"""Does each group of runs do as well in every group of patients: covariates of their test cases, figures and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from hemlearn.compare.cases import Pooled, pool
from hemlearn.compare.contrasts import ALL_PAIRS, best, endpoints, primary
from hemlearn.compare.groups import ANY, Entry, group_runs
from hemlearn.compare.runs import find_runs
from hemlearn.config.requests import Subgrouping
from hemlearn.data.covariates import IDS, load_covariates, read_covariates
from hemlearn.data.rows import unknown_values
from hemlearn.evaluation.auroc import FEWEST, NAN
from hemlearn.evaluation.subgroups import (
    METRICS,
    MOST,
    UNKNOWN,
    Interaction,
    Subgroup,
    Subgroups,
    adjusted,
    compare_subgroups,
    cut,
)
from hemlearn.reports.forest import forest_figure
from hemlearn.reports.tables import UNITS, interval_text, metric_name, p_text, scale_of
from hemlearn.util.errors import ConfigError, RunError, count, hint
from hemlearn.util.files import save_figure, write_text, writing
from hemlearn.util.run_files import COVARIATES
from hemlearn.util.tables import csv_text

RARE = "rarer values"  # texts of fewer than FEWEST patients each, as one group
_KEY = {"slice": "slice_id", "series": "series_id", "patient": "patient_id"}
_HEADER = ["covariate", "group", "cases", "patients", "positive", "negative"]
_TESTS = ["of", "covariate", "metric", "groups", "spread", "statistic", "p", "p corrected", "how"]
NOTE = "in brackets: patients with a positive and with a negative case; bars: 95 % intervals; dashed: all cases"


@dataclass(frozen=True)
class Finding:
    """One covariate in one group of runs."""

    entry: str
    level: str
    label: str
    result: Subgroups


@dataclass
class SubgroupStudy:
    """Figures of every subgroup and the tests of interaction, corrected together (Holm)."""

    findings: list[Finding] = field(default_factory=list)
    overall: dict[tuple[str, str, str], Subgroup] = field(default_factory=dict)  # (entry, level, label): all cases
    notes: list[str] = field(default_factory=list)
    known: dict[str, pd.DataFrame] = field(default_factory=dict)  # group of runs -> its slices with covariates

    @property
    def tests(self) -> list[tuple[Finding, Interaction]]:
        """Every test, the clearest first."""
        every = [(finding, test) for finding in self.findings for test in finding.result.tests]
        return sorted(every, key=lambda pair: (pair[1].p != pair[1].p, pair[1].p if pair[1].p == pair[1].p else 0.0))

    @property
    def line(self) -> str:
        """Whether the classifier does as well in every group, in one sentence."""
        made = [(finding, test) for finding, test in self.tests if test.p == test.p]
        names = ", ".join(dict.fromkeys(finding.result.covariate for finding in self.findings))
        small = sum(len(finding.result.small) for finding in self.findings)
        every = sum(len(finding.result.groups) for finding in self.findings)
        few = f"; {small} of {count(every, 'group')} too small to be judged" if small else ""
        if not made:
            return f"{names}: no test is possible{few}"
        tests = f"{count(len(made), 'test')} of interaction"
        clear = [(finding, test) for finding, test in made if test.differs]
        if not clear:
            least = min(test.p_holm for _, test in made)
            return f"{names}: no difference stands out ({tests}, smallest p {p_text(least)} by Holm){few}"
        several = len({finding.entry for finding in self.findings}) > 1
        told = [
            f"{metric_name(test.metric)} differs by {finding.result.covariate} "
            f"({test.smallest} lowest, {test.largest} highest, p {p_text(test.p_holm)} by Holm"
            + (f"; {finding.entry}" if several else "")
            + ")"
            for finding, test in clear
        ]
        return f"{'; '.join(told)}; {tests}{few}"

    def lines(self) -> list[str]:
        """For a terminal: the tables in aligned columns, the sentence, the notes."""
        found = []
        for title, header, rows in self.sheets():
            widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
            lines = ["  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) for cells in (header, *rows)]
            found += [f"subgroups, {title}", *(line.rstrip() for line in lines)]
        return [*found, f"subgroups? {self.line}", *(f"note: {note}" for note in self.notes)]

    def table(self) -> pd.DataFrame:
        """A row per subgroup, as ``subgroups.csv`` has it."""
        rows = []
        for finding in self.findings:
            table = finding.result.table
            tests = {test.metric: test for test in finding.result.tests}
            for metric in METRICS:
                for key in ("p", "p_holm"):
                    table[f"{metric}_{key}"] = getattr(tests[metric], key) if metric in tests else NAN
            rows.append(table.assign(runs=finding.entry, level=finding.level, label=finding.label))
        found = pd.concat(rows, ignore_index=True)
        first = ["runs", "level", "label"]
        return found[[*first, *(name for name in found if name not in first)]]

    def as_dict(self) -> dict[str, Any]:
        """What ``compare.json`` says of them: groups and counts, no value of a single patient."""
        tests = [finding.result.test_table.assign(runs=finding.entry) for finding in self.findings]
        return {
            "summary": self.line,
            "groups": self.table().to_dict("records"),
            "tests": pd.concat(tests, ignore_index=True).to_dict("records"),
            "notes": self.notes,
        }

    def parts(self) -> Iterator[tuple[tuple[str, str, str], list[Subgroups]]]:
        """The covariates of each group of runs, level and label."""
        for key in self.overall:
            yield key, [f.result for f in self.findings if (f.entry, f.level, f.label) == key]

    def sheets(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Title, header and lines of a table for each group of runs, level and label."""
        for (entry, level, label), studies in self.parts():
            metrics = [m for m in METRICS if getattr(self.overall[entry, level, label], m)] or [METRICS[0]]
            lines = []
            for row in (row for study in studies for row in study.table.to_dict("records")):
                cells = [interval_text(row, m) for m in metrics]
                if row["refused"]:
                    cells = ["not judged", *[""] * (len(metrics) - 1)]
                counts = [str(row[key]) for key in ("n", "patients", "positives", "negatives")]
                lines.append([str(row["covariate"]), str(row["group"]), *counts, *cells])
            titles = [f"{metric_name(m)}{' %' if scale_of(m)[0] == 100 else ''}" for m in metrics]
            yield _title(entry, level, label), [*_HEADER, *titles], lines

    def test_sheet(self) -> tuple[list[str], list[list[str]]]:
        """Header and lines of the table of tests: those that were made, then those that were not."""
        several = len(self.overall) > 1
        lines = []
        for finding, test in self.tests:
            where = f"{finding.entry}, {finding.label}".strip(", ") if several else finding.label
            reference = "" if test.p != test.p else f"{test.statistic:.2f} ({_df(test)})"
            spread = ""
            if test.spread == test.spread:
                scale, digits = scale_of(test.metric)
                spread = f"{test.spread * scale:.{digits}f}"
                if test.low == test.low:
                    spread += f" ({test.low * scale:.{digits}f} to {test.high * scale:.{digits}f})"
                spread += f"; lowest: {test.smallest}; highest: {test.largest}" if test.smallest else ""
            figures = [spread, reference, *(p_text(p) if p == p else "" for p in (test.p, test.p_holm))]
            lines.append(
                [where, finding.result.covariate, metric_name(test.metric), str(test.groups), *figures, test.note]
            )
        kept = [i for i in range(len(_TESTS)) if i == len(_TESTS) - 1 or any(line[i] for line in lines)]
        return [_TESTS[i] for i in kept], [[line[i] for i in kept] for line in lines]

    def figure(self) -> Figure:
        """The forest plot of the first group of runs, all metrics side by side."""
        key, studies = next(self.parts())
        return forest_figure(studies, self.overall[key], title=_title(*key), note=NOTE)

    def pictures(self) -> Iterator[tuple[str, Figure]]:
        """A forest plot per metric for a page, with its caption."""
        for key, studies in self.parts():
            for metric in METRICS:
                if getattr(self.overall[key], metric):
                    yield f"{metric_name(metric)}, {_title(*key)}", forest_figure(studies, self.overall[key], [metric])


def _df(test: Interaction) -> str:
    return f"chi-squared, {test.df1} df" if np.isinf(test.df2) else f"F, {test.df1} and {test.df2:.0f} df"


def _title(entry: str, level: str, label: str) -> str:
    return ", ".join(filter(None, (entry, UNITS[level], label)))


def write_subgroups(study: SubgroupStudy, folder: Path) -> list[Path]:
    """Write ``subgroups.csv`` and ``subgroups.png`` into a folder."""
    files = [folder / "subgroups.csv", folder / "subgroups.png"]
    with writing(folder, "give a writable folder"):
        write_text(files[0], csv_text(study.table(), decimals="%.6g"))
        save_figure(study.figure(), files[1])
    return files


# --- Covariates of the cases.


def study_subgroups(
    wanted: Sequence[Subgrouping], file: Path | str | None, entries: Sequence[Entry], labels: Sequence[str] = ()
) -> SubgroupStudy:
    """The subgroups asked for, in every group of runs (of more than twelve: in that of highest AUROC).

    Cases are patients where a covariate is the same for all cases of a patient, else series or slices.

    Args:
        wanted: The covariates; one named ``all``: every one. None: all columns of ``file``.
        file: CSV file of covariates, see :func:`hemlearn.data.covariates.read_covariates`.
        entries: The groups of runs.
        labels: Labels beside ``any`` or the only one.

    Raises:
        ConfigError: A covariate that nobody knows, or of which no groups can be made; a file of other patients.
        DataError: The file cannot be read.
        RunError: The covariates of a run were changed, or two runs contradict each other.
    """
    study = SubgroupStudy()
    table = read_covariates(Path(file)) if file is not None else None
    chosen = [best(entries)] if len(entries) > ALL_PAIRS else list(entries)
    if len(chosen) < len(entries):
        study.notes.append(f"subgroups of {chosen[0].name} alone, the best of {len(entries)} groups of runs")
    study.known = known = {entry.name: _known(entry, table, file, study) for entry in chosen}
    names = list(dict.fromkeys(name for own in known.values() for name in own if name not in IDS))
    asked = list(dict.fromkeys(one for one in wanted if one.name != "all"))  # twice: its tests would count twice
    every = any(one.name == "all" for one in wanted)
    if table is not None and not wanted:  # free text among its columns is no mistake
        asked = [Subgrouping(str(name)) for name in table[1]]
    asked += [Subgrouping(name) for name in names if every and name not in {one.name for one in asked}]
    for one in asked:
        if one.name not in names:
            raise ConfigError(
                f"subgroups={one.name}: no covariate {one.name!r} of these runs{hint(one.name, names)}",
                remedy=f"they know {', '.join(names) or 'none'}; covariates=FILE.csv adds columns by patient_id",
            )
    for entry in chosen:
        for one in asked:
            _judge(study, entry, one, known[entry.name], labels, optional=every or not wanted)
    if not study.findings:
        raise ConfigError(
            "subgroups: nothing to compare" + (f": {study.notes[-1]}" if study.notes else ""),
            remedy="name covariates with subgroups=, or give a table of them with covariates=FILE.csv",
        )
    found = iter(adjusted(test for finding in study.findings for test in finding.result.tests))
    study.findings = [
        replace(f, result=replace(f.result, tests=[next(found) for _ in f.result.tests])) for f in study.findings
    ]
    study.notes = list(dict.fromkeys(study.notes))
    return study


def subgroups_of(
    folder: Path, wanted: Sequence[Subgrouping], file: Path | str | None = None, labels: Sequence[str] = ()
) -> SubgroupStudy:
    """The subgroups of one finished run or evaluation, without the rest of a comparison."""
    (group,) = group_runs(find_runs([folder]).runs, [])
    cases, skipped = pool(group, None, baselines=False)
    if not cases:
        raise RunError(f"{folder}: {skipped[0].reason}", remedy="make it again")
    return study_subgroups(wanted, file, [Entry(group.name, group, cases)], labels)


def _known(
    entry: Entry, table: tuple[str, pd.DataFrame] | None, file: Path | str | None, study: SubgroupStudy
) -> pd.DataFrame:
    """A row per test slice: its ids, and every covariate that its runs or the table know."""
    parts, runs = [], next(iter(entry.cases.values())).used
    for run in runs:
        ids = run.read_predictions(["test"], check=False)[["slice_id", "series_id", "patient_id"]]
        run.verify(COVARIATES)
        own = load_covariates(run.path)
        if not own.empty:
            ids = ids.merge(own.drop(columns=["series_id", "patient_id"]), on="slice_id", how="left")
        parts.append(ids)
    every = pd.concat(parts, ignore_index=True).replace("", np.nan).drop_duplicates()
    slices = every.groupby("slice_id", sort=False)
    differ = slices.nunique() > 1  # what a run does not know, such as one made before there were covariates, counts not
    if differ.to_numpy().any():
        who = differ.index[differ.any(axis=1)][0]
        name = differ.columns[differ.loc[who]][0]
        raise RunError(
            f"{entry.name}: its runs hold different values of {name} for slice {who!r}",
            remedy="train them again on one version of the data, or give covariates=FILE.csv",
        )
    found = slices.first().reset_index()
    if table is None:
        return found
    key, more = table
    if key not in found:
        raise ConfigError(
            f"covariates={file}: the runs know no {key}", remedy="name whom each row is about by patient_id or slice_id"
        )
    there = found[key].isin(more.index)
    if not there.any():
        raise ConfigError(
            f"covariates={file}: none of its {len(more)} {key}s was tested, such as {more.index[0]!r}",
            remedy=f"give ids of tested cases, such as {found[key].iloc[0]!r}",
        )
    missing, all_of = found.loc[~there, key].nunique(), found[key].nunique()
    if missing:
        named = key.removesuffix("_id")
        study.notes.append(
            f"{Path(str(file)).name}: {missing} of {all_of} {UNITS.get(named, named)} are not in it: unknown"
        )
    return found.assign(**{str(name): found[key].map(more[name]) for name in more})


def _judge(
    study: SubgroupStudy, entry: Entry, one: Subgrouping, known: pd.DataFrame, labels: Sequence[str], optional: bool
) -> None:
    """Add one covariate of one group of runs."""
    if one.name not in known:
        study.notes.append(f"{entry.name}: its runs do not know {one.name}")
        return
    slices, names, note = _grouped(one, known)
    told = f"{one.name}: {len(names)} different texts, more than {MOST}" if len(names) > MOST else ""
    if names == [RARE]:
        told = f"{one.name}: no text that {FEWEST} patients share"
    if told:
        if not optional:
            raise ConfigError(f"subgroups={told}", remedy="put them together in covariates=FILE.csv")
        study.notes.append(f"{told}: no groups")
        return
    order: list[str] = [level for level in ("patient", "series", "slice") if level in entry.cases]
    first = primary(endpoints([entry])).level
    for level in order[order.index(first) :]:
        units, several = _of_units(slices, known[_KEY[level]])
        if not several:
            break
        study.notes.append(f"{one.name} differs within {count(several, level)}: not judged per {level}")
    else:
        return
    if note:
        study.notes.append(f"{one.name} {note}")
    cases = entry.cases[level]
    groups = np.array([units.get(str(unit), UNKNOWN) for unit in cases.unit], dtype=object)
    held = entry.group.labels
    main = [ANY] if ANY in held else list(held)
    for label in [*main, *(c for c in held if c not in main and ("all" in labels or c in labels))]:
        j, shown = held.index(label), label if len(held) > 1 else ""
        options: dict[str, Any] = {"calls": cases.decision[:, j], "scores": "prob" in cases.scores}
        given = (cases.y[:, j], cases.p[:, j])
        found = compare_subgroups(*given, groups, cases.code, covariate=one.name, names=names, note=note, **options)
        study.findings.append(Finding(entry.name, level, shown, found))
        if (key := (entry.name, level, shown)) not in study.overall:
            study.overall[key] = _overall(cases, given, options)


def _overall(cases: Pooled, given: tuple[Any, Any], options: dict[str, Any]) -> Subgroup:
    return compare_subgroups(*given, ["all"] * len(cases.unit), cases.code, **options).groups[0]


def _grouped(one: Subgrouping, known: pd.DataFrame) -> tuple[npt.NDArray[np.object_], list[str], str]:
    """The group of each test slice, all groups in order, and how they were made."""
    values = known[one.name]
    if pd.api.types.is_numeric_dtype(values):
        return cut(values, one.cuts, known["patient_id"])
    if one.cuts is not None:
        example = values[~unknown_values(values)].iloc[0]
        raise ConfigError(
            f"subgroups={one.text}: {one.name} is a text, such as {example!r}, and has no cut points",
            remedy=f"leave them out: subgroups={one.name}",
        )
    text = values.where(~unknown_values(values), UNKNOWN).astype(str)
    holders = known["patient_id"].groupby(text.to_numpy()).nunique()
    rare = set(holders.index[holders < FEWEST]) - {UNKNOWN}  # an accession number, a ward: it may tell who somebody is
    text = text.where(~text.isin(rare), RARE)
    names = sorted(set(text) - {UNKNOWN, RARE})
    return text.to_numpy(dtype=object), [*names, RARE] if rare else names, ""


def _of_units(group: npt.NDArray[np.object_], unit: pd.Series[Any]) -> tuple[dict[str, str], int]:
    """Unit -> its group, and how many units lie in several; what is unknown of some slices of a unit counts not."""
    pairs = pd.DataFrame({"unit": unit.astype(str).to_numpy(), "group": group})
    pairs = pairs[pairs["group"] != UNKNOWN].drop_duplicates()
    return dict(zip(pairs["unit"], pairs["group"], strict=True)), int(pairs["unit"].duplicated().sum())
