"""``hemlearn compare``: one table, files and a figure from finished run folders."""

from __future__ import annotations

from pathlib import Path

from hemlearn.errors import ConfigError

HELP = """usage: hemlearn compare DIR [DIR ...] [out=DIR] [level=slice|series|patient] [pool=KEY,KEY]

Read every finished run below the folders, find the configuration keys in which they differ, pool folds and seeds,
and print one table of test results: n, accuracy, AUROC, sensitivity and specificity with 95 % intervals. Failed,
interrupted and repeated runs are skipped, counted and listed.

Writes compare.csv (all metrics, all labels), compare.md and roc.png.

options:
  out=DIR     where the files go (default: folder `compare` in the first DIR)
  level=L     slice, series or patient (default: slices, and patients too where a patient has several slices)
  pool=KEYS   keys that are repetitions, not differences (default: split.fold,split.seed,seed); pool= pools nothing

examples:
  hemlearn compare runs/default
  hemlearn compare runs/head_ct out=tables/head_ct
  hemlearn compare runs/frozen runs/finetuned level=patient
  hemlearn compare runs/sweep pool=split.fold            # one row per seed
"""
_LEVELS = ("slice", "series", "patient")


def main(argv: list[str]) -> int:
    """Run the command and return its exit status.

    Raises:
        ConfigError: No folder, or an unknown option or value.
        RunError: See :func:`hemlearn.reports.compare.compare`.
    """
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    options: dict[str, str | None] = {"out": None, "level": None, "pool": None}
    folders: list[str] = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            folders.append(argument)
        elif key in options:
            options[key] = value
        else:
            from hemlearn.config_rules import hint

            raise ConfigError(f"{argument}: unknown option '{key}'{hint(key, options)}",
                              remedy="hemlearn compare --help lists the options")  # fmt: skip
    if not folders:
        raise ConfigError(
            "hemlearn compare: no folder given", remedy="name the folder of the runs, such as runs/default"
        )
    level, pool = options["level"], options["pool"]
    if level is not None and level not in _LEVELS:
        raise ConfigError(f"level={level}: unknown level", remedy=f"use one of {', '.join(_LEVELS)}")
    from hemlearn.reports.compare import compare
    from hemlearn.reports.runs import POOLED

    keys = POOLED if pool is None else tuple(key for key in pool.split(",") if key)
    _check_keys(keys)
    result = compare(folders, Path(options["out"] or Path(folders[0]) / "compare"), keys, level)
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(result.rich_table())
    else:
        print(result.text())
    for text in (result.remarks(), "\n".join(f"wrote {path}" for path in result.files)):
        if text:
            print(text)
    return 0


def _check_keys(keys: tuple[str, ...]) -> None:
    from hemlearn.config_rules import hint, schema_keys

    for key in keys:
        if key not in schema_keys():
            raise ConfigError(f"pool={','.join(keys)}: unknown key '{key}'{hint(key, schema_keys())}",
                              remedy="`hemlearn train --cfg job` prints every key")  # fmt: skip
