"""The ordered layer groups of any timm model, stem first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from timm.models._manipulate import group_parameters
from torch import nn


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Parameter names of a timm model in ordered groups, stem first; every parameter is in exactly one.

    Parameters that timm's matcher does not name, such as a final norm, form or join the last group. A module without
    ``group_matcher`` has one group per child with parameters.
    """
    names = [name for name, _ in model.named_parameters()]
    if hasattr(model, "group_matcher"):
        matcher = cast(Any, model).group_matcher
        try:
            found = group_parameters(model, matcher(coarse=True), reverse=True)
        except (AssertionError, NotImplementedError):  # a few architectures have only the fine grouping
            found = group_parameters(model, matcher(coarse=False), reverse=True)
        place = {str(name): int(group) for name, group in found.items()}
    else:
        children = list(dict.fromkeys(name.partition(".")[0] for name in names))
        place = {name: children.index(name.partition(".")[0]) for name in names}
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(place[name], []).append(name)
    return [groups[key] for key in sorted(groups)]


def module_groups(model: nn.Module, groups: Sequence[Sequence[str]]) -> dict[str, int]:
    """Group of every module, also of those without parameters (dropout, BatchNorm without affine weights).

    A module with parameters below it belongs to the last group among them. One without belongs to its nearest parent
    if all of that is in one group, else to the group of the parameter registered before it.
    """
    place = {name: index for index, group in enumerate(groups) for name in group}
    spans: dict[str, tuple[int, int]] = {}
    for name, index in place.items():
        parts = name.split(".")
        for depth in range(len(parts)):
            prefix = ".".join(parts[:depth])
            low, high = spans.get(prefix, (index, index))
            spans[prefix] = (min(low, index), max(high, index))
    result: dict[str, int] = {}
    last = 0
    for name, module in model.named_modules():
        if name in spans:
            result[name] = spans[name][1]
        else:
            parent = name
            while parent and parent not in spans:
                parent = parent.rpartition(".")[0]
            low, high = spans.get(parent, (0, 0))
            result[name] = high if low == high else last
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
        last = max((place[key] for key in own if key in place), default=last)
    return result
