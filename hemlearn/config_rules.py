"""What can be wrong with the keys of a configuration: unknown ones, wrong types, options that do not exist.

Values out of range are :mod:`hemlearn.config_ranges`'s matter. Each function returns plain sentences, so that
:mod:`hemlearn.config` can report all faults of one command together.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hemlearn.schema import Config

_GROUP_CHOICE_ONLY = ("experiment", "sweep")  # groups that fill other groups and hold no keys of their own


@cache
def schema_keys() -> dict[str, Any]:
    """Dotted name of every key (sections included) and its type."""
    found: dict[str, Any] = {}

    def walk(cls: type, prefix: str) -> None:
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            name = f"{prefix}{item.name}"
            found[name] = hints[item.name]
            if dataclasses.is_dataclass(hints[item.name]):
                walk(typing.cast(type, hints[item.name]), name + ".")

    walk(Config, "")
    return found


def _is_free(key: str) -> bool:
    """Whether ``key`` lies below a dictionary or list, whose inner names the schema leaves open."""
    parent = key
    while "." in parent:
        parent = parent.rpartition(".")[0]
        kind = schema_keys().get(parent)
        if kind is not None:
            return typing.get_origin(kind) in (dict, list) or kind is Any
    return False


def nearest(word: str, choices: Iterable[str], n: int = 1) -> list[str]:
    """The choices spelt most like ``word``; for dotted keys the last part decides among equals."""
    pool = sorted(choices)
    close = difflib.get_close_matches(word, pool, n=n, cutoff=0.6)
    if close:
        return close
    tail = word.rpartition(".")[2]
    by_tail = {key.rpartition(".")[2]: key for key in reversed(pool)}
    return [by_tail[hit] for hit in difflib.get_close_matches(tail, sorted(by_tail), n=n, cutoff=0.6)]


def hint(word: str, choices: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest choice, or nothing when none is near."""
    found = nearest(word, choices)
    return f"; did you mean '{found[0]}'?" if found else ""


def _options(group: str, folders: Sequence[Path]) -> list[str]:
    names = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    return sorted(names)


@cache
def _trial(section: str) -> DictConfig:
    """A typed copy of one section; building the whole tree for each value would take seconds."""
    cls = typing.cast(type, schema_keys()[section]) if section else Config
    return typing.cast(DictConfig, OmegaConf.structured(cls))


def _value_problem(key: str, value: Any) -> str | None:
    """What is wrong with ``value`` for the schema's ``key``, or None."""
    section, _, name = key.rpartition(".")
    try:
        _trial(section)[name] = value  # OmegaConf converts or refuses; the trial copy is never read
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        kind = schema_keys().get(key)
        expected = getattr(kind, "__name__", None) if typing.get_origin(kind) is None else None
        if expected is None or expected == "Union":
            expected = str(kind).replace("typing.", "")
        return f"{key}={value!r}: expected {expected} ({str(error).splitlines()[0]})"
    return None


def override_problem(text: str, folders: Sequence[Path]) -> tuple[str | None, bool]:
    """The fault of one command-line override (or None), and whether composing can still use the override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        return f"{text}: not of the form key=value, or a value that needs quotes ({reason})", False
    key = parsed.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return None, True
    keys = schema_keys()
    is_section = dataclasses.is_dataclass(keys.get(key)) or key in _GROUP_CHOICE_ONLY
    if not is_section and key not in keys and not _is_free(key):
        return f"unknown key '{key}'{hint(key, [*keys, *_GROUP_CHOICE_ONLY])}", False
    if parsed.is_delete():
        return None, True
    if parsed.is_sweep_override():
        raw = parsed.value()
        elements: list[Any] = list(raw.list) if isinstance(raw, ChoiceSweep) else []
    else:
        elements = [parsed.value()]
    for element in elements:
        value: Any = getattr(element, "text", element)  # quoted strings carry their text
        if is_section:
            if isinstance(value, dict):
                continue
            choices = _options(key, folders)
            for name in value if isinstance(value, list) else [value]:
                if name is not None and str(name) not in choices:
                    listed = ", ".join(choices)
                    return f"unknown {key} '{name}'{hint(str(name), choices)} (there are: {listed})", False
        elif key in keys and not (isinstance(value, str) and "${" in value):
            problem = _value_problem(key, value)
            if problem:
                return problem, False
    return None, True


def tree_problems(tree: dict[str, Any]) -> list[str]:
    """Unknown keys and values of the wrong type in a composed configuration."""
    keys = schema_keys()
    problems: list[str] = []

    def walk(node: dict[Any, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            kind = keys.get(key)
            if kind is None:
                problems.append(f"unknown key '{key}'{hint(key, keys)}")
            elif dataclasses.is_dataclass(kind):
                if isinstance(value, dict):
                    walk(value, key + ".")
                else:
                    problems.append(f"{key}={value!r}: expected a group of keys, not a value")
            else:
                problem = _value_problem(key, value)
                if problem:
                    problems.append(problem)

    walk(tree, "")
    return problems
