"""YAML and JSON of strangers: what is nested too deeply, or unfolds to too much, is refused before it is built."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100  # levels; a configuration has six
MAX_NODES = 1_000_000  # values with every alias unfolded


def load_yaml(text: str) -> Any:
    """What a YAML document says.

    Raises:
        ValueError: It is no YAML, nested too deeply, or its aliases unfold to too much.

    Example:
        >>> load_yaml("a: [1, 2]")
        {'a': [1, 2]}
    """
    import yaml

    check_yaml(text)
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, AttributeError, KeyError) as error:  # the last two: tags on values they do not fit
        raise ValueError(f"not YAML ({(str(error) or type(error).__name__).splitlines()[0]})") from error


def check_yaml(text: str) -> None:
    """Refuse a document by its events, which no nesting and no alias makes expensive.

    Raises:
        ValueError: As :func:`load_yaml`.
    """
    import yaml

    sizes: dict[str, int] = {}  # of what an anchor stands for
    inside: list[tuple[str | None, int]] = []  # anchors that are still open, and the nodes before each
    nodes = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in inside):
                    raise ValueError(f"the alias *{event.anchor} stands inside what it refers to")
                nodes += sizes.get(str(event.anchor), 1)
            elif isinstance(event, yaml.CollectionStartEvent):
                inside.append((event.anchor, nodes))
                nodes += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = inside.pop()
                if anchor is not None:
                    sizes[anchor] = nodes - before
            elif isinstance(event, yaml.ScalarEvent):
                nodes += 1
            if len(inside) > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            if nodes > MAX_NODES:
                raise ValueError(f"its aliases unfold to more than {MAX_NODES} values")
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({str(error).splitlines()[0]})") from error


def load_json(text: str | bytes) -> Any:
    """What a JSON document says.

    Raises:
        ValueError: It is no JSON, or nested too deeply.

    Example:
        >>> load_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
