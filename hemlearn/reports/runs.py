"""Finished run folders, found and read.

Only the small files are read, and each only when asked for, so that ten thousand runs are listed in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hemlearn.errors import RunError
from hemlearn.schema import Config

if TYPE_CHECKING:
    import pandas as pd

POOLED = ("split.fold", "split.seed", "seed")  # repetitions of one experiment, not different experiments
# Keys that say where and how a job ran, or repeat in words what other keys define.
BOOKKEEPING = (
    "name", "output_dir", "experiment", "logger", "data.cache_dir", "data.num_workers", "augmentation.note",
    "backbone.note", "split.file", "trainer.name", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "trainer.strategy", "trainer.log_every_n_steps", "trainer.threads", "trainer.compile", "trainer.channels_last",
    "trainer.deterministic", "trainer.options",
)  # fmt: skip
# Where the data lay; it matters only if the data themselves differ.
_LOCATION = ("data.root", "data.manifest", "data.phantom_patients", "data.phantom_seed")
# Content that a key does not show, from the provenance: files may change while their names stay.
_CONTENT = ("data.checksum", "backbone.weights_checksum", "split.checksum")
_TRAIN_AGAIN = "delete that run folder and train it again"


class Skipped(NamedTuple):
    """A run folder that was not used, and why."""

    folder: str
    reason: str


@dataclass(frozen=True)
class RunSet:
    """The finished runs below some folders, in an order that does not depend on where the folders lie."""

    runs: list[Run]
    skipped: list[Skipped]


class Run:
    """One complete run folder; its files are read on first use.

    Args:
        path: The folder.
        shown: Its name in messages: the path as the user gave it.
        status: Content of ``status.json``.
    """

    def __init__(self, path: Path, shown: str, status: Mapping[str, Any]) -> None:
        self.path = path
        self.shown = shown
        self.status = status

    def __repr__(self) -> str:
        return f"Run({self.shown!r})"

    @property
    def hash(self) -> str:
        """Name of the run: a digest of everything that determines its result."""
        return str(self.status.get("hash") or self.path.name)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of ``config.yaml``.

        Raises:
            RunError: The file is missing or not a YAML mapping.
        """
        file = self.path / "config.yaml"
        try:
            content = parse_yaml(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise RunError(f"{file}: {str(error).splitlines()[0]}", remedy=_TRAIN_AGAIN) from error
        return content

    @cached_property
    def keys(self) -> dict[str, Any]:
        """Every configuration key with its dotted name, and checksums of content (``data.checksum`` ...).

        Keys this version adds hold their default.
        """
        found = _defaults() | flatten(self.config)
        sums = self.provenance.get("checksums", {})
        split = sums.get("split") if found.get("split.name") == "file" else None
        values = (sums.get("manifest"), sums.get("weights"), split)
        return found | {key: value and str(value)[:8] for key, value in zip(_CONTENT, values, strict=True)}

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Content of ``metrics.json`` (raises :class:`RunError` when missing or not JSON)."""
        return _json(self.path / "metrics.json")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Content of ``provenance.json``, empty when there is none."""
        file = self.path / "provenance.json"
        return _json(file) if file.exists() else {}

    def predictions(self, splits: Sequence[str] | None = None) -> pd.DataFrame:
        """Checked rows of ``predictions.parquet`` (raises :class:`RunError`)."""
        from hemlearn.evaluation.predictions import read_predictions

        return read_predictions(self.path / "predictions.parquet", splits)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{file}: {str(error).splitlines()[0]}", remedy=_TRAIN_AGAIN) from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not a JSON object", remedy=_TRAIN_AGAIN)
    return content


# --- finding ------------------------------------------------------------------------------------------------------


def find_runs(folders: Sequence[Path | str]) -> RunSet:
    """All run folders at or below ``folders``.

    A folder with ``status.json`` or ``config.yaml`` is a run; nothing below it is searched. Runs that are not complete,
    lack a file, or repeat another run's hash are not returned but listed with the reason.

    Raises:
        RunError: A folder does not exist, or none holds a complete run.
    """
    seen: dict[Path, None] = {}
    by_hash: dict[str, str] = {}
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for top in map(Path, folders):
        if not top.is_dir():
            raise RunError(f"{top}: no such folder", remedy="give the folder that training wrote, such as runs/NAME")
        for path in _walk(top):
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
        raise RunError(f"{where}: no complete run ({len(skipped)} skipped){reasons}{more}",
                       remedy="train first, or run the same `hemlearn train` command again: it completes what is "
                              "missing")  # fmt: skip
    runs.sort(key=lambda run: run.hash)  # the same runs in another folder give the same table to the last digit
    return RunSet(runs, sorted(skipped))


def _walk(top: Path) -> Iterator[Path]:
    """Run folders at or below ``top`` in name order; hidden folders are not searched."""
    with os.scandir(top) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    if any(entry.name in ("status.json", "config.yaml") for entry in listed):
        yield top
        return
    for entry in listed:
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _walk(top / entry.name)


def _open(path: Path) -> Run | Skipped:
    shown = path.as_posix()
    if not (path / "status.json").exists():
        return Skipped(shown, "no status.json")
    try:
        status = _json(path / "status.json")
    except RunError as error:
        return Skipped(shown, error.problem)
    state = status.get("state")
    if state != "complete":
        lines = str(status.get("error") or "").splitlines()
        return Skipped(shown, f"state {state}" + (f": {lines[0]}" if lines else ""))
    missing = [n for n in ("config.yaml", "metrics.json", "predictions.parquet") if not (path / n).exists()]
    if missing:
        return Skipped(shown, f"complete, but without {', '.join(missing)}")
    return Run(path, shown, status)


# --- configuration keys -------------------------------------------------------------------------------------------


def parse_yaml(text: str) -> dict[str, Any]:
    """Parse a block-style mapping, such as ``config.yaml``.

    Runs of one sweep share most of their lines, so each top-level section is parsed once and remembered.

    Raises:
        ValueError: The text is not a YAML mapping.
    """
    if not any(mark in text for mark in ("&", "*", "\t", "---", "%")):
        sections: list[list[str]] = []
        for line in text.splitlines(keepends=True):
            if sections and (line[:1] in " #-\n" or not line.strip()):
                sections[-1].append(line)
            else:
                sections.append([line])
        try:
            parts = [_section("".join(lines)) for lines in sections]
        except ValueError:
            parts = []
        keys = [key for part in parts for key in part]
        if parts and all(len(part) == 1 for part in parts) and len(set(keys)) == len(keys):
            return {key: value for part in parts for key, value in part.items()}
    return _section(text)


@lru_cache(maxsize=4096)
def _section(text: str) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise ValueError("not a YAML mapping")
    return content


@cache
def _template() -> dict[str, Any]:
    return dataclasses.asdict(Config())


@cache
def _defaults() -> dict[str, Any]:
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


def _covers(parents: Sequence[str], key: str) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def differing_keys(runs: Sequence[Run], pool: Sequence[str] = POOLED) -> list[str]:
    """Keys whose values differ among runs, in the order of the schema.

    Left out are the pooled keys, bookkeeping, and the place of the data when the runs' provenance says that their
    content is the same. A key that merely follows from its group's name (``augmentation.steps`` from
    ``augmentation.name``) is left out too; one that follows only partly stays. Data, weights or a split file whose
    content changed under the same name count as a differing key of their own.
    """
    if not runs:
        return []
    names = list(dict.fromkeys(key for run in runs for key in run.keys))
    first = runs[0].keys
    differ = []
    for key in names:
        if _covers(pool, key) or _covers(BOOKKEEPING, key) or key in _CONTENT:
            continue
        reference = first.get(key)
        if any(run.keys.get(key) != reference for run in runs) and len({canonical(r.keys.get(key)) for r in runs}) > 1:
            differ.append(key)
    if len({run.keys["data.checksum"] for run in runs}) == 1 and first["data.checksum"] is not None:
        differ = [key for key in differ if key not in _LOCATION]
    differ = [key for key in differ if not _follows(key, differ, runs)]
    for key in _CONTENT:
        cells: dict[tuple[str, ...], set[str]] = {}
        for run in runs:
            cells.setdefault(tuple(canonical(run.keys.get(k)) for k in differ), set()).add(canonical(run.keys[key]))
        if any(len(values) > 1 for values in cells.values()):
            differ.append(key)
    return differ


def _follows(key: str, differ: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether ``key`` is a function of the ``name`` of a section around it, which differs as well."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        leader = ".".join([*parts[:depth], "name"])
        if key == leader or leader not in differ:
            continue
        pairs = {(canonical(run.keys.get(leader)), canonical(run.keys.get(key))) for run in runs}
        if len(pairs) == len({name for name, _ in pairs}):
            return True
    return False
