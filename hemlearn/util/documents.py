"""YAML and JSON of strangers: what is nested too deeply, or unfolds to too much, is refused before it is built."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from hemlearn.util.files import special_file

MAX_DEPTH = 100  # levels; a configuration has six
MAX_NODES = 1_000_000  # values with every alias unfolded
MAX_BYTES = 64 << 20  # of a document; the metrics of a run with many labels take one


def read_document(file: Path) -> str:
    """The text of a document. A pipe is not waited for, and what never ends is not begun.

    Raises:
        OSError: It cannot be read.
        ValueError: No file, too long, or not UTF-8.
    """
    check_file(file)
    return file.read_bytes().decode("utf-8")


def check_file(file: Path, most: int = MAX_BYTES) -> None:
    """Refuse what is no file, or too long, before it is opened.

    Raises:
        OSError: It cannot be reached.
        ValueError: A pipe, a device, or more than ``most`` bytes.
    """
    info = file.stat()
    if what := special_file(info.st_mode):
        raise ValueError(what)
    if info.st_size > most:
        raise ValueError(f"{info.st_size} bytes long; no more than {most} are read")


def load_yaml(text: str) -> Any:
    """What a YAML document says.

    Raises:
        ValueError: It is no YAML, nested too deeply, holds a key twice, or its aliases unfold to too much.

    Example:
        >>> load_yaml("a: [1, 2]")
        {'a': [1, 2]}
    """
    import yaml

    check_yaml(text)
    try:
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, AttributeError, KeyError) as error:  # the last two: tags on values they do not fit
        raise ValueError(f"not YAML ({(str(error) or type(error).__name__).splitlines()[0]})") from error


@cache
def _loader() -> Any:
    """The safe loader, which takes the last of equal keys, but a reader sees the first: they are refused."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            if isinstance(node, yaml.MappingNode):
                _once((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            found: dict[Hashable, Any] = super().construct_mapping(node, deep)
            return found

    return Loader


def _once(keys: Iterable[tuple[str, str]]) -> None:
    seen: set[tuple[str, str]] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {key[1]!r} stands there twice")
        seen.add(key)


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


def dump_yaml(tree: Any) -> str:
    r"""A tree of plain values as YAML; ``${...}`` is text like any other.

    Example:
        >>> dump_yaml({"name": "${oc.env:HOME", "windows": []})
        'name: ${oc.env:HOME\nwindows: []\n'
    """
    import yaml

    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def load_json(text: str | bytes) -> Any:
    """What a JSON document says.

    Raises:
        ValueError: It is no JSON, nested too deeply, or holds a key twice.

    Example:
        >>> load_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: nested too deeply
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _once(("", key) for key, _ in pairs)
    return found
