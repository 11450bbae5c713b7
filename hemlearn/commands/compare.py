"""``hemlearn compare``: one table, tests, a page and figures from finished run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hemlearn.util.errors import ConfigError, hint

HELP = """usage: hemlearn compare DIR [DIR ...] [OPTIONS]

Read every finished run below the folders, find the configuration keys in which they differ, pool folds and seeds,
print one table of test results with 95 % intervals, and test the groups against each other: every pair on the same
test cases (DeLong; Obuchowski's clustered test where patients have several cases; McNemar), all p values corrected
together (Holm). Failed, interrupted, repeated and hand-edited runs are skipped, counted and listed. Groups tested on
other patients are never paired.

Writes compare.html (one page, nothing outside it), compare.csv, tests.csv, failures.csv, compare.md, compare.tex,
compare.json, roc.png, pr.png and calibration.png.

options:
  out=DIR             where the files go (default: folder `compare` in the first DIR)
  level=L             slice, series or patient (default: slices, and series and patients too where a patient has
                      several slices)
  pool=KEYS           keys that are repetitions, not differences (default: split.fold,split.seed,seed); pool= none
  baseline=KEY=VALUE  the group the others are held against: settings that name one group, separated by commas
  margin=0.02         non-inferiority: the largest loss of AUROC that does not matter, against the baseline
                      (without one: against the group of highest AUROC)
  labels=NAMES        labels with tests of their own, beside the mean over labels and `any`; all: every label
  cases=common        test groups that were tested on different cases on those they share (default: refuse)
  reference=FILES     published figures to stand beside ours, YAML:
                          title: Altuve and Perez 2022
                          citation: Physica Medica 99:113
                          figures:
                            - {metric: accuracy, x: 3837, n: 4000, group: {backbone.pretrained: true}}
                            - {metric: auroc, value: 0.94, interval: [0.92, 0.97], label: any, level: patient}
  wandb=true          log the page and files to Weights & Biases as an artifact (offline unless logged in;
                      WANDB_MODE decides when set); wandb_project=NAME (default hemlearn), wandb_entity=NAME

examples:
  hemlearn compare runs/default
  hemlearn compare runs/head_ct out=tables/head_ct reference=altuve2022.yaml
  hemlearn compare runs/frozen runs/finetuned level=patient
  hemlearn compare runs/ablation baseline=pretrained=false,augmentation=none margin=0.02
  hemlearn compare runs/sweep pool=split.fold            # one row per seed
"""
_LEVELS = ("slice", "series", "patient")
_KEYS = (
    "out",
    "level",
    "pool",
    "baseline",
    "margin",
    "labels",
    "cases",
    "reference",
    "wandb",
    "wandb_project",
    "wandb_entity",
)


def main(argv: list[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        ConfigError: No folder, or an unknown option or value.
        RunError: See :func:`hemlearn.compare.comparison.compare`.
    """
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    folders, given = _parse(argv)
    request = _request(given)
    wanted = _one_of(given, "wandb", ("true", "false")) == "true"
    from hemlearn.compare.comparison import compare

    out = Path(given.get("out") or Path(folders[0]) / "compare")
    result = compare(folders, out, **request)
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        for table in result.rich_tables():
            console.print(table)
    else:
        print(result.text())
    for text in (result.remarks(), "\n".join(f"wrote {path}" for path in result.files)):
        if text:
            print(text)
    if wanted:
        from hemlearn.compare.files import log_report

        place = log_report(result, result.files, given.get("wandb_project") or "hemlearn", given.get("wandb_entity"))
        print(f"W&B: {place}" if place else "W&B is disabled: nothing logged")
    return 0


def _parse(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Folders and options of a command line."""
    given: dict[str, str] = {}
    folders: list[str] = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            folders.append(argument)
        elif key in _KEYS:
            given[key] = value
        else:
            raise ConfigError(
                f"{argument}: unknown option '{key}'{hint(key, _KEYS)}",
                remedy="hemlearn compare --help lists the options",
            )
    if not folders:
        raise ConfigError(
            "hemlearn compare: no folder given", remedy="name the folder of the runs, such as runs/default"
        )
    return folders, given


def _request(given: dict[str, str]) -> dict[str, Any]:
    """Arguments of :func:`hemlearn.compare.comparison.compare`, which checks what is asked of the runs."""
    references = _list(given.get("reference"))
    for name in references:
        if not Path(name).is_file():
            raise ConfigError(f"reference={name}: no such file", remedy="give a YAML file of published figures")
    found: dict[str, Any] = {
        "level": _one_of(given, "level", _LEVELS),
        "common": _one_of(given, "cases", ("common", "same")) == "common",
        "margin": _margin(given.get("margin")),
        "baseline": given.get("baseline") or None,
        "labels": _list(given.get("labels")),
        "reference": references,
    }
    return found | ({"pool": _list(given["pool"])} if "pool" in given else {})


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _one_of(given: dict[str, str], key: str, allowed: tuple[str, ...]) -> str | None:
    value = given.get(key)
    if value is not None and value not in allowed:
        raise ConfigError(
            f"{key}={value}: unknown {key}{hint(value, allowed)}", remedy=f"use one of {', '.join(allowed)}"
        )
    return value


def _margin(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        margin = float(text)
    except ValueError:
        margin = float("nan")
    if not 0 < margin < 1:
        raise ConfigError(
            f"margin={text}: not a number between 0 and 1",
            remedy="state the largest loss of AUROC that does not matter, such as margin=0.02",
        )
    return margin
