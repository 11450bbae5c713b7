"""The rules of ``data.parts``: the data sets that ``data=multi`` puts together, each described by keys of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hemlearn.config.base import Found, Problem, Wrong
from hemlearn.util.errors import hint

PROPORTIONAL, EQUAL = "proportional", "equal"
# Keys of the group ``data`` that a part may have; the others belong to the whole.
OWN = (
    *("root", "manifest", "path_column", "patient_column", "covariates", "modality", "patient_pattern", "band"),
    *("geometry", "phantom_patients", "phantom_seed"),
    *("label_file", "label_key", "series"),  # data.labels of one data set: here ``labels`` gives their common names
)
KEYS = ("data", "labels", *OWN)
PLACES = (  # see config.identity
    *("root", "manifest", "modality", "covariates", "phantom_patients", "phantom_seed"),
    *("label_file", "label_key", "series"),
)
_EXAMPLE = (
    "data.parts.ct_ich.root=DIR, or 'data.parts.NAME={data: head_ct, root: DIR, labels: {hemorrhage: any}}'; "
    "root=null is a synthetic set"
)


def part_data(name: str, spec: Any) -> Any:
    """The data set of a part: its key ``data``, else its own name."""
    return spec.get("data", name) if isinstance(spec, Mapping) else name


def part_problems(
    parts: Mapping[str, Any],
    weights: Any,
    known: Collection[str],
    attempt: Callable[[Mapping[str, Any], str], tuple[Any, list[Problem]]],
) -> Found:
    """What is wrong with the parts of ``data=multi`` and their weights.

    Args:
        parts: Name -> the keys of the part; None: none but its name.
        weights: ``data.part_weights``.
        known: Names of data sets.
        attempt: Checks keys of the group ``data`` under a prefix.
    """
    if len(parts) < 2:
        yield Wrong("parts", dict(parts), f"name at least two data sets, each by {_EXAMPLE}")
    places: dict[tuple[Any, ...], str] = {}
    for name, given in parts.items():
        where, spec = f"parts.{name}", {} if given is None else given
        if not re.fullmatch(r"[\w+-]{1,60}", name):
            yield Wrong(where, given, "a part's name has letters, digits, _, + and - alone")
        if not isinstance(spec, Mapping):
            yield Wrong(where, given, f"expected keys such as {{data: {name}, root: DIR, labels: {{theirs: common}}}}")
            continue
        data = part_data(name, spec)
        if data not in known:
            text = f"no data set of this name{hint(str(data), known)}; there are {', '.join(known)}"
            yield Wrong(f"{where}.data", data, text)
            continue
        for key in [key for key in spec if key not in KEYS]:
            yield Wrong(f"{where}.{key}", spec[key], f"a part has no such key{hint(str(key), KEYS)}: {', '.join(KEYS)}")
        yield from _labels(where, spec.get("labels"))
        own = {key: value for key, value in spec.items() if key in OWN and value is not None}
        if "label_file" in own:
            own["labels"] = own.pop("label_file")
        for key, text in attempt({"name": data, **own}, "")[1]:
            given_as = "label_file" if key == "labels" else key
            value: Any = spec
            for step in given_as.split("."):
                value = value.get(step) if isinstance(value, Mapping) else None
            told = text.removeprefix(f"{key}={value!r}: ").replace("data.labels", "label_file")
            yield Wrong(f"{where}.{given_as}", value, told.replace("data.label_key", "label_key"))
        place = _place(data, spec)
        if (other := places.setdefault(place, name)) != name:
            key = "root" if spec.get("root") else "phantom_seed"
            remedy = "give each part files of its own" if spec.get("root") else "give one of them another seed"
            yield Wrong(f"{where}.{key}", spec.get(key), f"the images of part {other!r} once more; {remedy}")
    yield from weight_problems(weights, parts)


def _labels(where: str, labels: Any) -> Found:
    if labels is None:
        return
    words = isinstance(labels, Mapping) and all(
        isinstance(key, str) and (value is None or (isinstance(value, str) and value.strip()))
        for key, value in labels.items()
    )
    if not words:
        text = "expected {OWN_LABEL: COMMON_LABEL}, such as {hemorrhage: any}; null leaves a label out"
        if isinstance(labels, str):
            text += "; a table of labels (data: dicom) is label_file: FILE, with label_key"
        yield Wrong(f"{where}.labels", labels, text)
        return
    targets = [value for value in labels.values() if value is not None]
    if len(set(targets)) < len(targets):
        yield Wrong(f"{where}.labels", dict(labels), "two labels of a part cannot become one")


def _place(data: str, spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for parts that would read the same files."""
    if spec.get("root") or spec.get("manifest"):
        manifest = spec.get("manifest") if data == "table" else None
        return tuple(
            os.path.realpath(os.path.expanduser(str(place))) if place else ""  # noqa: PTH111
            for place in (spec.get("root"), manifest)
        )
    return (data, spec.get("phantom_patients"), spec.get("phantom_seed"))


def weight_problems(weights: Any, parts: Mapping[str, Any]) -> Found:
    """What is wrong with ``data.part_weights``."""
    if isinstance(weights, Mapping):
        for name, value in weights.items():
            if name not in parts:
                text = f"no part of this name{hint(str(name), parts)}; there are {', '.join(parts) or 'none'}"
                yield Wrong(f"part_weights.{name}", value, text)
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                yield Wrong(f"part_weights.{name}", value, "a number above 0")
        if missing := [name for name in parts if name not in weights]:
            yield Wrong("part_weights", dict(weights), f"no weight of {', '.join(missing)}")
    elif weights not in (PROPORTIONAL, EQUAL):
        yield Wrong("part_weights", weights, f"{PROPORTIONAL}, {EQUAL}, or a number for each part: {{head_ct: 1}}")
