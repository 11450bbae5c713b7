"""Finished runs, found below folders, and their settings as dotted keys.

Only the small files are read, and each only when asked for, so that ten thousand runs are listed in seconds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hemlearn.config.requests import POOLED
from hemlearn.config.schema import Config, to_dict
from hemlearn.training.run import Run
from hemlearn.util.console import NOTICED, track
from hemlearn.util.errors import RunError
from hemlearn.util.files import sha256
from hemlearn.util.run_files import STATUS

logger = logging.getLogger(__name__)
# Keys that say where and how a job ran, or repeat in words what other keys define.
BOOKKEEPING = (
    *("name", "output_dir", "experiment", "force", "logger", "data.cache_dir", "data.num_workers", "augmentation.note"),
    "data.covariates",
    *("checkpoints", "data.cache_limit", "data.resident"),
    *("backbone.note", "split.file", "split.allow_leak", "trainer.name", "trainer.accelerator", "trainer.devices"),
    *("trainer.num_nodes", "trainer.strategy", "trainer.log_every_n_steps", "trainer.threads", "trainer.compile"),
    *("trainer.channels_last", "trainer.deterministic", "trainer.options"),
)
# Where the data lay; it matters only if the data themselves differ.
LOCATION = (
    *("data.root", "data.manifest", "data.labels", "data.label_key", "data.series"),
    *("data.parts", "data.phantom_patients", "data.phantom_seed"),
)
# Content that a key does not show, from the provenance: files may change while their names stay.
CONTENT = ("data.checksum", "backbone.weights_checksum", "split.checksum", "split.drawing", "code.checksum")
_FOUND = ("data.batch_size", "optimizer.lr")
SEQUENCE_ONLY = ("sequence", "features")  # groups that mean nothing to a run over slices


class Skipped(NamedTuple):
    """A run folder that was not used, and why."""

    folder: str
    reason: str


class RunSet(NamedTuple):
    """The finished runs below some folders, in an order that does not depend on where the folders lie."""

    runs: list[ComparedRun]
    skipped: list[Skipped]


class ComparedRun(Run):
    """A finished run with its settings as dotted keys."""

    above: frozenset[Path] = frozenset()  # the runs whose weights led here

    @property
    def patients_known(self) -> bool:
        """Whether the patient ids of what it was tested on name people."""
        return self.provenance.get("data", {}).get("patients_known") is not False

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Every configuration key with its dotted name, and checksums of content (``data.checksum`` ...).

        Keys this version adds hold their default. Backbone weights that come from another run, as a stage or by
        ``backbone.weights``, are described by what that run was made from, not by its folder and bytes, which differ
        from fold to fold.
        """
        found = defaults() | flatten(self.settings)
        batch = self.provenance.get("batch") or {}  # what trainer.find_batch_size has found
        found |= {key: batch[key] for key in _FOUND if isinstance(batch.get(key), int | float)}
        sums, code = self.provenance.get("checksums") or {}, self.provenance.get("code")
        split = sums.get("split") if found.get("split.name") == "file" else None
        weights, source = sums.get("weights"), self._weights_run(found)
        if source is not None:
            found["backbone.weights"], weights = source
        elif found.get("stage.experiment") is not None:
            found["backbone.weights"], weights = None, None
        drawing = self.provenance.get("split_drawing")  # of how patients are drawn, see config.identity
        values = (sums.get("manifest"), weights, split, drawing, code and sha256(json.dumps(code, sort_keys=True)))
        return found | {key: value and str(value)[:8] for key, value in zip(CONTENT, values, strict=True)}

    def _weights_run(self, keys: Mapping[str, Any]) -> tuple[str, str] | None:
        """Name and recipe of the run whose checkpoint gave the backbone its weights, if it can still be read."""
        told = str(self.provenance.get("weights") or "")
        named = told.removeprefix("run ") if told.startswith("run ") else keys.get("backbone.weights")
        if not named:
            return None
        folder = Path(str(named))
        # A relative path started where training was called; beside this run's own folder it is found as well.
        for place in (folder, self.path.resolve().parent.parent / folder.parent.name / folder.name):
            if (place / "status.json").is_file() and (place / "config.yaml").is_file():
                try:
                    source = ComparedRun(place)
                    source.above = self.above | {self.path.resolve()}
                    if place.resolve() in source.above:
                        raise RunError(f"{place}: its weights come from itself", remedy="train it again")
                    return f"run {place.parent.name}", source.recipe
                except RunError as error:
                    logger.warning("%s: the run that gave the weights cannot be read: %s", self.shown, error.problem)
        return None

    @cached_property
    def recipe(self) -> str:
        """Digest of everything that determines the run but folds, seeds and bookkeeping: equal over a group's folds."""
        kept = {k: canonical(v) for k, v in self.keys.items() if not covers((*POOLED, *BOOKKEEPING, *LOCATION), k)}
        return sha256(json.dumps(kept, sort_keys=True))


def find_runs(folders: Sequence[Path | str]) -> RunSet:
    """All run folders at or below ``folders``.

    A folder with ``status.json`` or ``config.yaml`` is a run; nothing below it is searched. Runs that are not complete,
    lack a file, or repeat another run's hash are not returned but listed with the reason.
    """
    seen: dict[Path, None] = {}
    by_hash: dict[str, str] = {}
    runs: list[ComparedRun] = []
    skipped: list[Skipped] = []
    for top in map(Path, folders):
        if not top.is_dir():
            raise RunError(f"{top}: no such folder", remedy="give the folder that training wrote, such as runs/NAME")
        for path in track(_walk(top), "Reading run folders", after=NOTICED):
            resolved = path.resolve()
            if resolved in seen:
                continue
            seen[resolved] = None
            run = _open(path)
            if isinstance(run, Skipped):
                skipped.append(run)
            elif run.hash in by_hash:
                skipped.append(Skipped(run.shown, f"repeats run {run.hash} in {by_hash[run.hash]}"))
            else:
                by_hash[run.hash] = run.shown
                runs.append(run)
    if not runs:
        where = ", ".join(map(str, folders))
        reasons = "".join(f"\n    {item.folder}: {item.reason}" for item in skipped[:5])
        more = f"\n    and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise RunError(
            f"{where}: no complete run ({len(skipped)} skipped){reasons}{more}",
            remedy="train first, or run the same `hemlearn train` command again: it completes what is missing",
        )
    runs.sort(key=lambda run: run.hash)  # the same runs in another folder give the same table to the last digit
    return RunSet(runs, sorted(skipped))


def _walk(top: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Run folders at or below ``top`` in name order; hidden folders, and links back to one above, are not searched."""
    real = top.resolve()
    if real in above:
        return
    with os.scandir(top) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    if any(entry.name in ("status.json", "config.yaml") for entry in listed):
        yield top
        return
    for entry in listed:
        if not entry.name.startswith(".") and (top / entry.name).is_dir():
            yield from _walk(top / entry.name, (*above, real))


def _open(path: Path) -> ComparedRun | Skipped:
    run = ComparedRun(path)
    try:
        state = run.status.get("state")
    except RunError as error:
        return Skipped(run.shown, error.problem)
    if not run.status:
        return Skipped(run.shown, f"no {STATUS}")
    if run.misplaced:
        return Skipped(run.shown, f"{STATUS}: {run.misplaced}")
    if state != "complete":
        lines = str(run.status.get("error") or "").splitlines()
        return Skipped(run.shown, f"state {state}" + (f": {lines[0]}" if lines else ""))
    missing = [n for n in ("config.yaml", "metrics.json", "predictions.parquet") if not (path / n).exists()]
    try:
        pretraining = run.provenance.get("pretraining")
    except RunError as error:
        return Skipped(run.shown, error.problem)
    if missing == ["predictions.parquet"] and pretraining:
        return Skipped(run.shown, "pretraining, which predicts nothing")
    if missing:
        return Skipped(run.shown, f"complete, but without {', '.join(missing)}")
    return run


# --- Settings as dotted keys and plain values.


@cache
def _template() -> dict[str, Any]:
    return to_dict(Config())


@cache
def defaults() -> dict[str, Any]:
    """Every dotted key of the schema with its default."""
    return flatten(_template())


def flatten(config: dict[str, Any], template: dict[str, Any] | None = None, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values. Sections of the schema are opened; free dictionaries (options, schedules) stay whole."""
    known = _template() if template is None else template
    found: dict[str, Any] = {}
    for key, value in config.items():
        if type(value) is dict and value:  # thousands of runs: isinstance with an abstract class is ten times slower
            inner = known.get(key, {})
            if key not in known or (isinstance(inner, dict) and inner):
                found |= flatten(value, inner, f"{prefix}{key}.")
                continue
        found[f"{prefix}{key}"] = value
    return found


def canonical(value: Any) -> str:
    """Text that two values share exactly when they are the same setting (1 and 1.0 are)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def covers(parents: Sequence[str], key: str) -> bool:
    """Whether ``key`` is one of ``parents`` or lies below one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)
