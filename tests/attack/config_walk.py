"""Every key of the configuration with values that a slip of the hand gives it: meant, or refused by its name.

``python -m tests.attack.config_walk`` tries all of them; nothing is trained.
"""

from __future__ import annotations

import math
import sys
import typing
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hemlearn.config.schema import Config, Section, from_dict, schema_keys, to_dict
from hemlearn.training.checks import check_values
from hemlearn.util.errors import ConfigError

VALUES: tuple[Any, ...] = (
    *(-1, 0, 2, -0.5, 1.5, math.nan, math.inf, 1e30, 10**30, True, None),
    *("", " ", "word", "..", ".", "/a/b", "nan", "-1"),
    *([], [1], [0], [-5], [math.nan], ["a", "a"], [[]], {}, {"a": 1}),
)
_FREE = ("augmentation.steps", "backbone.options", "trainer.options", "stage.set")  # held against their classes later
_NAMED = ("callbacks", "metrics")  # empty where none is wanted


def cases() -> Iterator[tuple[str, Any]]:
    """Each key with each value."""
    for key in schema_keys():
        for value in VALUES:
            yield key, value


def judge(key: str, value: Any) -> str:
    """``right``, ``clear error`` or ``fault: ...`` of a configuration that has ``value`` for ``key``."""
    tree = to_dict(Config())
    *path, last = key.split(".")
    node = tree
    for part in path:
        node = node[part]
    node[last] = value
    try:
        config = from_dict(tree)
        if key.startswith("loss."):
            check_values(config)
    except ConfigError as error:
        name = key.rpartition(".")[2]
        lines = [line for line in str(error).splitlines() if name in line and (":" in line or "unknown" in line)]
        return "clear error" if lines and "Fix: " in str(error) else f"fault: {error}"
    except Exception as error:  # noqa: BLE001 - whatever else is raised is the fault looked for
        return f"fault: {type(error).__name__}: {error}"
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return "right" if _meant(key, found) else f"fault: accepted as {found!r}"


def _meant(key: str, found: Any) -> bool:
    """Whether a value that was accepted can be meant, by its kind alone."""
    if isinstance(found, Section) or key in _FREE:
        return True
    if isinstance(found, bool):
        return schema_keys()[key] is bool
    if isinstance(found, int | float):
        most = math.inf if key == "optimizer.lr" else 2**32  # a rate that is too high is told when the loss is lost
        return math.isfinite(found) and found < most and (found >= 0 or (key, found) == ("trainer.devices", -1))
    if isinstance(found, str):
        return (bool(found.strip()) or key.endswith(".note")) and (key != "name" or not found.startswith("."))
    if isinstance(found, list):
        numbers = [item for item in found if isinstance(item, int | float)]
        twice = len({str(item) for item in found}) < len(found) and key in (
            "task.labels",
            "task.tta",
            "trainer.devices",
        )
        signed = key in ("channels.percentiles", "channels.windows")  # of CT nothing reads the one, the other is in HU
        return not twice and all(math.isfinite(item) and (item >= 0 or signed) for item in numbers)
    if isinstance(found, dict):
        return not found and (key in _NAMED or typing.get_origin(schema_keys()[key]) is dict)
    return (found is None and type(None) in typing.get_args(schema_keys()[key])) or key == "loss.positive_weight"


def main() -> int:
    """Try everything; 1 where something is a fault."""
    counts: Counter[str] = Counter()
    for key, value in cases():
        verdict = judge(key, value)
        counts[verdict.partition(":")[0]] += 1
        if verdict.startswith("fault"):
            print(f"{key}={value!r}: {verdict}")
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if counts["fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
