"""Finished run folders, found and read.

Only the small files are read, and each only when asked for, so that ten thousand runs are listed in seconds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hemlearn.config.schema import Config, to_dict
from hemlearn.util.errors import RunError
from hemlearn.util.files import sha256

if TYPE_CHECKING:
    import pandas as pd


# --- Configuration files of runs as dotted keys and plain values, read fast enough for ten thousand of them.


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


logger = logging.getLogger(__name__)
POOLED = ("split.fold", "split.seed", "seed")  # repetitions of one experiment, not different experiments
# Keys that say where and how a job ran, or repeat in words what other keys define.
BOOKKEEPING = (
    "name",
    "output_dir",
    "experiment",
    "logger",
    "data.cache_dir",
    "data.num_workers",
    "augmentation.note",
    "backbone.note",
    "split.file",
    "split.allow_leak",
    "trainer.name",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.log_every_n_steps",
    "trainer.threads",
    "trainer.compile",
    "trainer.channels_last",
    "trainer.deterministic",
    "trainer.options",
)
# Where the data lay; it matters only if the data themselves differ.
LOCATION = ("data.root", "data.manifest", "data.phantom_patients", "data.phantom_seed")
# Content that a key does not show, from the provenance: files may change while their names stay.
CONTENT = ("data.checksum", "backbone.weights_checksum", "split.checksum")
SEQUENCE_ONLY = ("sequence", "features", "stage")  # groups that mean nothing to a run over slices
# Files that carry results, and the key of their checksum in provenance.json.
CHECKED = {"predictions": "predictions.parquet", "metrics": "metrics.json"}
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

        Keys this version adds hold their default. Backbone weights that come from another run, as a stage or by
        ``backbone.weights``, are told by what that run was made from, not by its folder and bytes, which differ from
        fold to fold.
        """
        found = defaults() | flatten(self.config)
        sums = self.provenance.get("checksums", {})
        split = sums.get("split") if found.get("split.name") == "file" else None
        weights, source = sums.get("weights"), self._weights_run(found)
        if source is not None:
            found["backbone.weights"], weights = source
        elif found.get("stage.experiment") is not None:
            found["backbone.weights"], weights = None, None
        values = (sums.get("manifest"), weights, split)
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
                    return f"run {place.parent.name}", Run(place, place.as_posix(), {}).recipe
                except RunError as error:
                    logger.warning("%s: the run that gave the weights cannot be read: %s", self.shown, error.problem)
        return None

    @property
    def of_series(self) -> bool:
        """Whether the run has a model over the slices of a series."""
        return bool(self.keys["sequence.name"] != "none")

    @cached_property
    def recipe(self) -> str:
        """Digest of everything that determines the run but folds, seeds and bookkeeping: equal over a group's folds."""
        kept = {k: canonical(v) for k, v in self.keys.items() if not covers((*POOLED, *BOOKKEEPING, *LOCATION), k)}
        return sha256(json.dumps(kept, sort_keys=True))

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
        """Checked rows of ``predictions.parquet``.

        Raises:
            RunError: See :func:`~hemlearn.evaluation.predictions.read_predictions` and :meth:`check_files`.
        """
        from hemlearn.evaluation.predictions import read_predictions

        self.check_files()
        return read_predictions(self.path / "predictions.parquet", splits)

    def check_files(self) -> None:
        """Compare the files that carry results with the checksums the run wrote down; runs without them pass.

        Raises:
            RunError: A file was changed after the run had ended.
        """
        sums = self.provenance.get("checksums") or {}
        for key, name in CHECKED.items():
            told = sums.get(key)
            if told is None:
                continue
            try:
                content = (self.path / name).read_bytes()
            except OSError as error:
                raise RunError(f"{self.path / name}: {error.strerror}", remedy=_TRAIN_AGAIN) from error
            if (is_now := sha256(content)) != str(told):
                raise RunError(
                    f"{self.path / name}: changed after the run had ended (its SHA-256 is {is_now[:12]}, "
                    f"provenance.json says {str(told)[:12]})",
                    remedy=_TRAIN_AGAIN,
                )


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
        raise RunError(
            f"{where}: no complete run ({len(skipped)} skipped){reasons}{more}",
            remedy="train first, or run the same `hemlearn train` command again: it completes what is missing",
        )
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


# --- The configuration keys in which runs differ: what their comparison is about.


def differing_keys(runs: Sequence[Run], pool: Sequence[str] = POOLED) -> list[str]:
    """Keys whose values differ among runs, in the order of the schema.

    Left out are the pooled keys, bookkeeping, and the place of the data when the runs' provenance says that their
    content is the same. A key that merely follows from its group's name (``augmentation.steps`` from
    ``augmentation.name``) is left out too; one that follows only partly stays. Data, weights or a split file whose
    content changed under the same name count as a differing key of their own.

    Runs over slices and runs of a sequence model are trained in different ways throughout. Beside each other they are
    told apart by ``sequence.name``; of the other keys only those count that differ among runs of one kind
    (:func:`kind_keys` has the rest).
    """
    if not runs:
        return []
    first = runs[0].keys
    kinds = [part for part in ([r for r in runs if not r.of_series], [r for r in runs if r.of_series]) if part]
    differ = _varying(runs, pool)
    if len(kinds) > 1:
        inside = {"sequence.name"} | {key for part in kinds for key in _varying(part, pool)}
        differ = [key for key in differ if key in inside]
    if len({run.keys["data.checksum"] for run in runs}) == 1 and first["data.checksum"] is not None:
        differ = [key for key in differ if key not in LOCATION]
    differ = [key for key in differ if not _follows(key, differ, runs)]
    for key in CONTENT:
        cells: dict[tuple[str, ...], set[str]] = {}
        for run in runs:
            cells.setdefault(tuple(canonical(run.keys.get(k)) for k in differ), set()).add(canonical(run.keys[key]))
        if any(len(values) > 1 for values in cells.values()):
            differ.append(key)
    return differ


def _varying(runs: Sequence[Run], pool: Sequence[str]) -> list[str]:
    """Keys with more than one value, without pooled ones, bookkeeping and checksums."""
    first = runs[0].keys
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.keys):
        if covers(pool, key) or covers(BOOKKEEPING, key) or key in CONTENT:
            continue
        reference = first.get(key)
        if any(run.keys.get(key) != reference for run in runs) and len({canonical(r.keys.get(key)) for r in runs}) > 1:
            found.append(key)
    return found


def kind_keys(runs: Sequence[Run], pool: Sequence[str] = POOLED) -> list[str]:
    """Keys in which runs over slices and sequence runs differ, beyond those of the sequence model itself."""
    if len({run.of_series for run in runs}) < 2:
        return []
    shown, varying = differing_keys(runs, pool), _varying(runs, pool)
    hidden = [key for key in varying if key not in (*shown, *LOCATION) and not _follows(key, varying, runs)]
    return [key for key in hidden if not covers((*SEQUENCE_ONLY, "backbone.weights", "task.aggregate"), key)]


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
