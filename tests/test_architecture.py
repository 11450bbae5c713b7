"""The house plan as a contract: imports point down the list of rooms, never in a circle; every room says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hemlearn"
# From low to high: a room imports rooms further up in this list only.
ROOMS = (
    "util",
    "plugins",
    "config",
    "phantom",
    "data",
    "transforms",
    "models",
    "evaluation",
    "datamodules",
    "audits",
    "tasks",
    "reports",
    "training",
    "compare",
    "reading",
    "commands",
)
# A run predicts through the reading room: the one import upward, inside the methods that need it.
UPWARD = {("hemlearn.training.run", "reading")}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports(file: Path, *, lazy: bool) -> Iterator[str]:
    """Modules of hemlearn that a file imports: at its top, or anywhere with ``lazy`` (type checking apart)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if lazy else list(tree.body)
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes:
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names if item.name.split(".")[0] == "hemlearn")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hemlearn":
            for item in node.names:
                whole = f"{node.module}.{item.name}"
                yield whole if whole in MODULES else str(node.module)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


@pytest.mark.parametrize("module", [name for name in MODULES if room(name)])
def test_imports_point_downward(module: str) -> None:
    own = room(module)
    assert own is not None
    wrong = [
        target
        for target in imports(MODULES[module], lazy=True)
        if (other := room(target)) and ROOMS.index(other) > ROOMS.index(own) and (module, other) not in UPWARD
    ]
    assert not wrong, f"{module} imports {wrong}, which lie in rooms above its own"


def test_no_module_imports_in_a_circle() -> None:
    graph = {name: {item for item in imports(file, lazy=False) if item in MODULES} for name, file in MODULES.items()}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name] - {"hemlearn"}):
                walk(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())


@pytest.mark.parametrize("name", [name for name in ROOMS if (PACKAGE / name).is_dir()])
def test_every_room_says_what_is_in_it(name: str) -> None:
    file = PACKAGE / name / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    sentences = [part for part in text.replace("\n", " ").split(". ") if part.strip()]
    assert len(sentences) >= 3, f"{file}: say in three sentences what is here"
