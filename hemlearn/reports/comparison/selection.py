"""A group named by its settings on the command line."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from hemlearn.config_rules import hint
from hemlearn.errors import ConfigError
from hemlearn.reports.comparison.keys import canonical
from hemlearn.reports.comparison.pooling import short_key, show
from hemlearn.reports.comparison.rows import Entry


def select(text: str, entries: Sequence[Entry]) -> Entry:
    """The one group that ``text`` names.

    Args:
        text: The group's name as the table shows it (``augmentation=none, pretrained=true``), or settings
            ``KEY=VALUE[,KEY=VALUE]`` with full keys or their last parts, as many as make it one group.
        entries: All groups.

    Raises:
        ConfigError: A key or value fits no group, or several groups are left; names key and value.
    """
    named = [entry for entry in entries if entry.name == text]
    if named:
        return named[0]
    left = list(entries)
    for part in filter(None, (part.strip() for part in _parts(text))):
        key, equals, value = part.partition("=")
        keys = list(entries[0].group.values)
        full = [k for k in keys if key in (k, short_key(k), k.removesuffix(".name"))]
        if not equals or len(full) != 1:
            raise ConfigError(
                f"baseline={text}: no key '{key}' by which the groups differ{hint(key, keys)}",
                remedy=f"the groups differ in {', '.join(keys) or 'nothing'}",
            )
        kept = [e for e in left if _equal(e, full[0], value)]
        if not kept:
            there = ", ".join(dict.fromkeys(show(entry.group.values[full[0]]) for entry in left))
            raise ConfigError(f"baseline={text}: {key}={value} fits no group", remedy=f"there are {there}")
        left = kept
    if len(left) > 1:
        raise ConfigError(
            f"baseline={text}: {len(left)} groups fit: {'; '.join(e.name for e in left[:4])}",
            remedy="add settings until one is left",
        )
    return left[0]


def _parts(text: str) -> list[str]:
    """Settings between commas; a part without ``=`` belongs to the value before it, as in a list."""
    parts: list[str] = []
    for piece in text.split(","):
        if "=" in piece or not parts:
            parts.append(piece)
        else:
            parts[-1] += f",{piece}"
    return parts


def _equal(entry: Entry, key: str, value: str) -> bool:
    if value in (entry.group.cell(key), show(entry.group.values[key])):
        return True
    try:
        return canonical(yaml.safe_load(value)) == canonical(entry.group.values[key])
    except yaml.YAMLError:
        return False
