"""``hemlearn runs``: what lies in a folder of runs, finished or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemlearn.commands import read
from hemlearn.config.requests import RunsRequest
from hemlearn.util.errors import RunError, count
from hemlearn.util.files import sha256

if TYPE_CHECKING:
    from hemlearn.training.run import Run

HELP = """usage: hemlearn runs DIR [DIR ...] [KEY=VALUE ...]

List every run below the folders, whatever its state: its hash, the settings in which the runs differ, the validation
metric that picked its checkpoint, and its AUROC on test. The best by that validation metric is marked with *; it is
what run=DIR/best means wherever a run is named, and run=DIR/latest is the one that was finished last. The exit status
is 1 when a run has failed.

options:
{options}

examples:
  hemlearn runs runs/default
  hemlearn predict run=runs/default/best input=slice.png out=predicted
  hemlearn train data=ct_ich data.root=/data/ct-ich backbone.weights=runs/head_ct/best
"""
_IGNORED = ("output_dir", "force", "logger", "stage", "backbone.note", "augmentation.note", "trainer.threads")
_LONGEST = 40  # characters of a setting


def main(argv: list[str]) -> int:
    """Print the table; 1 when a run has failed.

    Raises:
        RunError: There is no run.
    """
    request = read(RunsRequest, argv, HELP)
    if request is None:
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from hemlearn.training.run import Run, pick_run
    from hemlearn.util.console import on_terminal

    found = sorted({file.parent for folder in request.folders for file in folder.rglob("status.json")})
    runs = [Run(path) for path in found if not path.name.startswith(".")]
    if not runs:
        raise RunError(
            f"{', '.join(map(str, request.folders))}: no run in it", remedy="name a folder that `hemlearn train` wrote"
        )
    best = set()
    for folder in request.folders:
        try:
            best.add(pick_run(folder / "best"))
        except RunError:  # none is finished
            continue
    settings = [_flat(run) for run in runs]
    keys = _differing(settings)
    titles = ["run", "state", *(_short(key, keys) for key in keys), "validation", "test AUROC"]
    plain: dict[str, Any] = {} if on_terminal() else {"box": None, "pad_edge": False}
    table = Table(title=f"{count(len(runs), 'run')}; * is the best on validation", title_justify="left", **plain)
    for title in titles:
        table.add_column(escape(title))
    for run, own in zip(runs, settings, strict=True):
        mark = "*" if run.path in best else ""
        cells = [f"{run.path.parent.name}/{run.path.name}{mark}", str(run.status.get("state", "unknown"))]
        cells += [_cut(own.get(key, "")) for key in keys]
        table.add_row(*map(escape, [*cells, *_figures(run, request.level)]))
    (Console() if on_terminal() else Console(width=400, soft_wrap=True)).print(table)
    failed = [run for run in runs if run.status.get("state") == "failed"]
    for run in failed:
        print(f"{run.shown}: {str(run.status.get('error')).splitlines()[0]}")
    return 1 if failed else 0


def _flat(run: Run) -> dict[str, str]:
    """Settings by dotted key; empty where the configuration cannot be read."""
    found: dict[str, str] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in _IGNORED:
                continue
            if isinstance(value, dict) and value:
                walk(value, f"{key}.")
            else:
                found[key] = "" if value in ({}, None) else str(value)

    try:
        walk(run.settings, "")
        if code := run.provenance.get("code"):
            found["code.checksum"] = sha256(json.dumps(code, sort_keys=True))[:8]
    except RunError:
        return {}
    return found


def _differing(settings: Sequence[dict[str, str]]) -> list[str]:
    known = [own for own in settings if own]
    keys = dict.fromkeys(key for own in known for key in own)
    return [key for key in keys if len({own.get(key, "") for own in known}) > 1]


def _short(key: str, keys: Sequence[str]) -> str:
    tail = key.rpartition(".")[2]
    return tail if tail != "name" and sum(other.rpartition(".")[2] == tail for other in keys) == 1 else key


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _figures(run: Run, level: str | None) -> list[str]:
    """The monitored metric on validation and the AUROC on test; empty where there is none yet."""
    if not (Path(run.path) / "metrics.json").is_file():
        return ["", ""]
    task = run.settings.get("task") or {}
    place = level or ("series" if task.get("level") == "series" else "slice")
    monitor = str(task.get("monitor", "log_loss")).replace("last", "log_loss")
    val, test = (run.metrics.get(split, {}).get(place, {}) for split in ("val", "test"))
    shown = [_value(val.get(monitor)), _value(test.get("auroc"))]
    return [f"{monitor} {shown[0]}" if shown[0] else "", shown[1]]


def _value(entry: dict[str, Any] | None) -> str:
    if not entry or entry.get("value") is None:
        return ""
    bounds = f" ({entry['low']:.3f}-{entry['high']:.3f})" if entry.get("low") is not None else ""
    return f"{entry['value']:.3f}{bounds}"
