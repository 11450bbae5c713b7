"""Configuration files of runs as dotted keys and plain values, read fast enough for ten thousand of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from hemlearn.schema import Config


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
