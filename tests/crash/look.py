"""What a command has left in its folder, in a form in which two folders can be compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

NOW = ("counts.kept", "counts.predicted_now")  # what one call of several has done
Seen = dict[str, dict[str, Any]]  # file -> what is in it, by key


def look(folder: Path) -> Seen:
    """Every file below a folder; folders without a file count too, as ``NAME/``."""
    found: Seen = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith("cache/squares/"):  # pixels that wait for a store, under random names
            continue
        name = re.sub(r"tfevents\..*\.(\d)$", r"tfevents.\1", name)  # time, machine and process
        if path.is_file():
            found[name] = _content(path)
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = {}
    return found


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".json":
            return _flat(json.loads(path.read_text()))
        if path.suffix == ".ckpt":
            import torch

            tensors = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}
        if path.suffix in (".parquet", ".csv") and path.stat().st_size:
            table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
            table = table.astype(object).where(table.notna(), None)  # a column of nothing has any type
            return {str(name): table[name].tolist() for name in table}
    except Exception as error:  # noqa: BLE001  # a file that cannot be read is what is looked for
        return {"unreadable": repr(error)[:200]}
    return {"bytes": hashlib.sha256(path.read_bytes()).hexdigest()}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, Mapping) and node:
        return {key: value for name, own in node.items() for key, value in _flat(own, f"{prefix}{name}.").items()}
    return {prefix.rstrip(".") or "content": node}


@dataclass
class Difference:
    """Of a folder from the undisturbed one.

    Args:
        files: Files whose content differs, with the keys.
        largest: Difference of a number in a table.
        leftovers: Files that the undisturbed command does not leave.
        missing: Files that it does leave.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    largest: float = 0.0
    leftovers: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.files and not self.missing


class Reference:
    """Two undisturbed folders of the same command: what differs between them (times, logs) is not compared."""

    def __init__(self, folders: Sequence[Path]) -> None:
        first, *others = (look(folder) for folder in folders)
        self.seen = first
        self.varies: dict[str, set[str]] = {}
        self.names = set(first).union(*others)
        for other in others:
            for name in set(first) & set(other):
                if keys := _unequal(first[name], other[name]):
                    self.varies.setdefault(name, set()).update(keys)
        self.varies.setdefault("out/predict.json", set()).update(NOW)

    def compare(self, folder: Path) -> Difference:
        """Of a folder where the command has come to its end after all."""
        found, out = look(folder), Difference()
        out.leftovers = sorted(set(found) - self.names)
        out.missing = sorted(set(self.seen) - set(found))
        for name in sorted(set(found) & set(self.seen)):
            keys = _unequal(self.seen[name], found[name]) - self.varies.get(name, set())
            if keys:
                out.files[name] = sorted(keys)
                for key in keys:
                    out.largest = max(out.largest, _gap(self.seen[name].get(key), found[name].get(key)))
        return out


def _unequal(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    keys = set(one) | set(other)
    clock = ("cost.fit_seconds", "cost.slices_per_second")  # rounded: two undisturbed runs may agree by chance
    return {key for key in keys if key not in clock and repr(one.get(key, "none")) != repr(other.get(key, "none"))}


def _gap(one: Any, other: Any) -> float:
    """Largest difference of two columns of numbers; infinite where they are none, or not as many."""
    try:
        a, b = (np.asarray(item, dtype=float) for item in (one, other))
    except (TypeError, ValueError):
        return float("inf")
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0)) if a.size else 0.0
