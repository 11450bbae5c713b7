"""``hemlearn compare``: one table, tests, a page and figures from finished run folders."""

from __future__ import annotations

from hemlearn.commands import read
from hemlearn.config.requests import CompareRequest

HELP = """usage: hemlearn compare DIR [DIR ...] [OPTIONS]

Read every finished run below the folders, find the configuration keys in which they differ, pool folds and seeds,
print one table of test results with 95 % intervals, and test the groups against each other: every pair on the same
test cases (DeLong; Obuchowski's clustered test where patients have several cases; McNemar), all p values corrected
together (Holm). Failed, interrupted, repeated and hand-edited runs are skipped, counted and listed. Groups tested on
other patients are never paired.

Writes compare.html (one page, nothing outside it), compare.csv, tests.csv, failures.csv, compare.md, compare.tex,
compare.json, roc.png, pr.png and calibration.png.

options:
{options}

A reference file holds published figures:
  title: Altuve and Perez 2022
  citation: Physica Medica 99:113
  figures:
    - {metric: accuracy, x: 3837, n: 4000, group: {backbone.pretrained: true}}
    - {metric: auroc, value: 0.94, interval: [0.92, 0.97], label: any, level: patient}

examples:
  hemlearn compare runs/default
  hemlearn compare runs/head_ct out=tables/head_ct reference=altuve2022.yaml
  hemlearn compare runs/frozen runs/finetuned level=patient
  hemlearn compare runs/ablation baseline=pretrained=false,augmentation=none margin=0.02
  hemlearn compare runs/sweep pool=split.fold            # one row per seed
"""


def main(argv: list[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        ConfigError: No folder, or an unknown option or value.
        RunError: See :func:`hemlearn.compare.comparison.compare`.
    """
    request = read(CompareRequest, argv, HELP)
    if request is None:
        return 0
    from rich.console import Console

    from hemlearn.compare.comparison import compare

    asked = request.model_dump(include={"pool", "level", "baseline", "margin", "labels", "reference"})
    out = request.out or request.folders[0] / "compare"
    result = compare(request.folders, out, common=request.cases == "common", **asked)
    console = Console()
    if console.is_terminal:
        for table in result.rich_tables():
            console.print(table)
    else:
        print(result.text())
    for text in (result.summary(), "\n".join(f"wrote {path}" for path in result.files)):
        if text:
            print(text)
    if request.wandb:
        from hemlearn.compare.files import log_report

        place = log_report(result, result.files, request.wandb_project, request.wandb_entity)
        print(f"W&B: {place}" if place else "W&B is disabled: nothing logged")
    return 0
