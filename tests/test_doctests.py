"""The examples in the docstrings run, and every public class has one."""

from __future__ import annotations

import doctest
import inspect
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import hemlearn

PACKAGE = Path(hemlearn.__file__).parent
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text(encoding="utf-8")]
NAMES = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for file in FILES]


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # of a command that ran before: its lines are no part of a result
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed


def public_classes() -> list[Any]:
    rooms = (hemlearn, import_module("hemlearn.datamodules"), import_module("hemlearn.tasks"))
    found = (getattr(room, name) for room in rooms for name in room.__all__)
    return sorted({item for item in found if inspect.isclass(item)}, key=lambda item: item.__name__)


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_public_classes_show_how_they_are_used(cls: Any) -> None:
    assert ">>> " in (cls.__doc__ or ""), f"{cls.__module__}.{cls.__qualname__}: no example in its docstring"
    assert not {"config", "cfg"} & set(inspect.signature(cls).parameters), "public classes take keyword arguments"
