"""What the site's build adds to the pages of this folder: those that are written from the code, and the studies.

MkDocs calls ``on_files`` and ``on_post_build``. The configuration is written from its schema and ``conf``, commands
from their help texts, the Python reference from the packages' public names, studies from ``experiments``: nothing
stands in two places. A built page that would make a request is an error.
"""

from __future__ import annotations

import ast
import importlib
import json
import posixpath
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from hemlearn.__main__ import COMMANDS
from hemlearn.config import requests
from hemlearn.config.schema import Config, Section

PROJECT = Path(__file__).resolve().parent.parent
EXPERIMENTS = PROJECT / "experiments"
MEASURED = ("attack", "benchmarks", "clusters", "cq500", "crashes", "privacy", "readers", "reading")  # under Evidence
LIMITS = {"Ge": "at least {}", "Gt": "above {}", "Le": "at most {}", "Lt": "below {}"}
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping", Any: "any value"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written from the code."""
    pages = {
        "reference/configuration.md": configuration(),
        "reference/commands.md": commands(),
        **{f"reference/python/{name}.md": text for name, text in python_reference()},
        **dict(studies()),
    }
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Link the functions that the page for reviewers names to the Python reference."""
    if page.file.src_uri != "evidence/reviewers.md":
        return markdown
    return re.sub(r"`((?:evaluation|audits)\.[\w.]+)`", r"[`\1`][hemlearn.\1]", markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Let the search work from the disk; refuse a page that would load anything from elsewhere."""
    index = Path(config.site_dir) / "search" / "search_index.json"  # from the disk only scripts can be loaded
    index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")
    asked = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        found = [url for url in asked.findall(page.read_text(encoding="utf-8")) if 'rel="canonical"' not in url]
        if found:
            raise PluginError(f"{page.relative_to(config.site_dir)} would load {found[0]}")


# --- configuration ------------------------------------------------------------------------------------------------


def configuration() -> str:
    """A table of keys for each group, with the options that ``conf`` ships for it."""
    chosen = _chosen()
    top = [row for row in _rows(Config, "") if "." not in row[0]]
    lines = [
        "# Configuration",
        "",
        "A run is described by these keys. On the command line a key is given as `KEY=VALUE` and a group as",
        "`GROUP=OPTION`; in Python the same words go to [`hemlearn.train`](python/hemlearn.md). `null` always means",
        "*not set*. The defaults are those of the schema; options of a group, and experiments, replace them.",
        "`hemlearn train --cfg job` followed by your words prints what a run would use. A misspelt key is an error",
        "that names the nearest one.",
        "",
        "This page is written from `hemlearn/config/schema.py` and `conf` when the site is built.",
        "",
    ]
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            continue
        lines += [f"## {name}", "", _sentence(kind.__doc__), ""]
        if "_target_" in kind.key_names():
            lines += ["Takes a class of your own by `_target_`: [Your own parts](../howto/own-parts.md).", ""]
        lines += [*_table(_rows(kind, f"{name}.")), *_options(name, chosen.get(name)), ""]
    lines += ["## Callbacks and metrics", "", *_table([row for row in top if row[0] in ("callbacks", "metrics")])]
    for name in ("callbacks", "metrics"):
        lines += _options(name, chosen.get(name))
    lines += ["", "## The run itself", ""]
    lines += _table([row for row in top if row[0] not in ("callbacks", "metrics")])
    for group in ("experiment", "sweep"):
        lines += ["", f"## {group}", "", _ABOUT[group], *_options(group, None)]
    return "\n".join([*lines, ""])


_ABOUT = {
    "experiment": "A file that sets many groups at once: `experiment=NAME`. See [Studies](../studies/index.md).",
    "sweep": "What a multirun varies: `hemlearn train -m sweep=NAME`.",
}


def _chosen() -> dict[str, str]:
    """Group -> the option that is taken when none is named."""
    listed = yaml.safe_load((PROJECT / "conf" / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    return {name: str(option) for item in listed if isinstance(item, dict) for name, option in item.items()}


def _rows(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of every key of a section, those of sections inside it too."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            if prefix:
                yield from _rows(kind, f"{prefix}{name}.")
        elif name != "target_":
            yield f"{prefix}{name}", type_text(kind, field.metadata), json.dumps(field.default), field.description or ""


def _table(rows: typing.Iterable[tuple[str, str, str, str]]) -> list[str]:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, meaning in rows:
        cells = (kind, f"`{default}`", meaning)
        shown = " | ".join(_cell(cell) for cell in cells)
        lines.append(f'| <span id="{name}"></span>`{name}` | {shown} |')
    return lines


def _options(group: str, chosen: str | None) -> list[str]:
    """What ``conf/GROUP`` holds: the option, and the first sentence of the file's comment."""
    files = sorted((PROJECT / "conf" / group).glob("*.yaml"))
    if not files:
        return []
    lines = ["", "| option | is |", "|---|---|"]
    for file in files:
        about = _first_sentence(_comment(file)) + (" (taken when none is named)" if file.stem == chosen else "")
        lines.append(f"| `{group}={file.stem}` | {_cell(about)} |")
    return lines


def _comment(file: Path) -> str:
    """The comment at a YAML file's head; lines that are examples are left out."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append("" if line.startswith("#   ") else line.removeprefix("#").strip())
    return " ".join(lines).strip()


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z0-9)\]])[.:] (?=[A-Z`(]|$)", text, maxsplit=1)[0].rstrip(".:")


def type_text(kind: Any, metadata: typing.Sequence[Any] = ()) -> str:
    """A field's type in words, with its choices or limits.

    >>> type_text(int | None), type_text(list[float])
    ('whole number, or null', 'list: number')
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return type_text(inner[0], [*inner[1:], *metadata])
    if origin in (Union, UnionType):
        others = [part for part in inner if part is not type(None)]
        text = " or ".join(type_text(part, metadata) for part in others)
        return f"{text}, or null" if len(others) < len(inner) else text
    flat = [deep for item in metadata for deep in (item, *getattr(item, "metadata", ()))]
    choices = next((item.func.choices for item in flat if hasattr(getattr(item, "func", None), "choices")), None)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    limits = [
        LIMITS[name].format(f"{getattr(item, name.lower()):g}")
        for item in flat
        if (name := type(item).__name__) in LIMITS
    ]
    if origin is list:
        text = f"list: {type_text(inner[0])}"
    else:
        text = WORDS.get(origin or kind, getattr(kind, "__name__", str(kind)))
    return ", ".join([text, *limits])


# --- commands -----------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command: its help text as paragraphs, a table of its options, its examples."""
    lines = [
        "# Commands",
        "",
        "`hemlearn COMMAND [OPTIONS]`, also `python -m hemlearn COMMAND`. Options are `KEY=VALUE`; `--help` prints",
        "what stands here. What an exit status means: [The run folder](run-folder.md#exit-status).",
        "",
        "| command | does |",
        "|---|---|",
        *(f"| [`hemlearn {name}`](#{name}) | {_cell(about)} |" for name, about in COMMANDS.items()),
        "",
    ]
    kinds = {kind.command: kind for kind in vars(requests).values() if getattr(kind, "command", "")}
    for name in COMMANDS:
        text = (PROJECT / "hemlearn" / "commands" / "help" / f"{name}.txt").read_text(encoding="utf-8")
        table = list(_request_table(kinds[name])) if name in kinds else ["[The configuration](configuration.md)."]
        lines += [f"## {name}", "", *_help_lines(text, table), ""]
    return "\n".join(lines)


def _request_table(kind: Any) -> Iterator[str]:
    yield "| option | default | meaning |"
    yield "|---|---|---|"
    for name, field in kind.model_fields.items():
        if name in ("overrides", kind.free):
            continue
        default = (
            "required" if field.is_required() else "" if field.default in (None, ()) else f"`{_plain(field.default)}`"
        )
        if name == "jobs":
            default = "one per core"
        yield f"| `{field.alias or name}` | {default} | {_cell(field.description or '')} |"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _help_lines(text: str, table: list[str]) -> Iterator[str]:
    """A help text as Markdown: indented lines are code, ``{options}`` is the table."""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        head, *rest = block.split("\n")
        if head.startswith("usage: "):
            yield from ("```text", block.removeprefix("usage: ").replace("\n       ", "\n"), "```", "")
        elif "{options}" in block:
            yield from (*table, "")
        elif re.fullmatch(r"(examples?|options):", head):
            language = "bash" if head.startswith("example") else "text"
            yield from (f"**{head[0].upper()}{head[1:-1]}**", "", f"```{language}", _dedent(rest), "```", "")
        else:
            yield from _paragraphs(block.split("\n"))


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Prose as it stands, runs of indented lines as code, each in their order."""
    code: list[str] = []
    prose: list[str] = []
    for line in [*lines, "\0"]:
        indented = line.startswith("  ")
        if (prose and indented) or line == "\0":
            yield from (*(_cell(text).replace("\\|", "|") for text in prose), "")
            prose = []
        if (code and not indented) or line == "\0":
            yield from ("```text", _dedent(code), "```", "") if code else ()
            code = []
        if line != "\0":
            (code if indented else prose).append(line)


def _dedent(lines: list[str]) -> str:
    return "\n".join(line.removeprefix("  ") for line in lines)


# --- Python -------------------------------------------------------------------------------------------------------


_DOCTEST = re.compile(r"^(>>> .*(?:\n(?!\s*$).+)*)", re.MULTILINE)  # examples outside of a section
_RULED = re.compile(r"^(=+(?: +=+)+\n(?:.+\n)+?=+(?: +=+)+\n(?:.+\n)+?=+(?: +=+)+)$", re.MULTILINE)  # tables of reST


class PlainRoles(griffe.Extension):
    """Docstrings as Markdown shows them: roles are code, examples and tables of reST stand in fences."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that was found."""
        if obj.docstring:
            text = re.sub(r":(?:func|class|mod|meth|data|attr):`~?\.*([^`<]+)`", _last_name, obj.docstring.value)
            text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
            text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
            for drawn, language in ((_DOCTEST, "python"), (_RULED, "text")):
                text = drawn.sub(rf"\n```{language}\n\1\n```\n", text)
            obj.docstring.value = text


def _last_name(found: re.Match[str]) -> str:
    whole = found.group(0)
    return f"`{found.group(1).rpartition('.')[2] if '~' in whole or ':mod:' not in whole else found.group(1)}`"


def python_reference() -> Iterator[tuple[str, str]]:
    """Page -> text of the Python reference: public names where a package lists them, else its modules."""
    yield "hemlearn", _page("hemlearn", public("hemlearn"))
    for name in ("datamodules", "tasks", "transforms"):
        yield name, _page(f"hemlearn.{name}", public(f"hemlearn.{name}"))
    for name in ("models", "evaluation", "audits", "compare"):
        folder = PROJECT / "hemlearn" / name
        modules = [file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"]
        yield name, _page(f"hemlearn.{name}", [f"hemlearn.{name}.{file.stem}" for file in modules], whole=True)


def public(package: str) -> list[str]:
    """Dotted names of what a package's ``__all__`` lists, each in the module that defines it.

    >>> "hemlearn.tasks.slices.SliceClassification" in public("hemlearn.tasks")
    True
    """
    folder = PROJECT.joinpath(*package.split("."))
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(package)
        for alias in node.names
    }
    defined = {
        node.name: f"{package}.{file.stem}.{node.name}"
        for file in sorted(folder.glob("*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and file.stem != "__init__"
    }
    names = importlib.import_module(package).__all__ if package == "hemlearn.datamodules" else sorted(imported)
    return [place for name in names if (place := imported.get(name) or defined.get(name))]


def _page(package: str, places: list[str], whole: bool = False) -> str:
    """A page of mkdocstrings' directives; ``whole``: each place is a module, all of whose public names are shown."""
    about = ast.get_docstring(ast.parse((PROJECT.joinpath(*package.split(".")) / "__init__.py").read_text("utf-8")))
    lines = [f"# {package}", "", str(about).partition("\n")[0], ""]
    for place in places:
        lines += [f"::: {place}", ""]
        if whole:
            lines[-1:] = ["    options:", "      show_root_full_path: true", "      show_root_toc_entry: true", ""]
    return "\n".join(lines)


# --- studies ------------------------------------------------------------------------------------------------------


def studies() -> Iterator[tuple[str, str]]:
    """Page -> text of every page of ``experiments``, its links turned to where they lead on the site."""
    for place, page in site_pages().items():
        if place.startswith("docs/"):
            continue
        text = (PROJECT / place).read_text(encoding="utf-8")
        yield page, re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", lambda found: _link(found, place, page), text)  # noqa: B023


def site_pages() -> dict[str, str]:
    """File of the repository -> page of the site that is made of it."""
    pages = {
        "experiments/README.md": "studies/index.md",
        "experiments/layouts.md": "howto/layouts.md",
        "CONTRIBUTING.md": "contributing.md",
        "CHANGELOG.md": "changelog.md",
    }
    for file in sorted(EXPERIMENTS.glob("*/README.md")):
        name = file.parent.name
        pages[f"experiments/{name}/README.md"] = f"{'evidence' if name in MEASURED else 'studies'}/{name}.md"
    for file in sorted((PROJECT / "docs").rglob("*.md")):
        own = file.relative_to(PROJECT / "docs").as_posix()
        pages.setdefault(f"docs/{own}", own)
    return pages


def _link(found: re.Match[str], place: str, page: str) -> str:
    """A link of a file of the repository, as it is on its page of the site; to a file that is no page: its path."""
    text, target = found.groups()
    if "://" in target or target.startswith(("#", "mailto:")):
        return found.group(0)
    file, hash_, anchor = target.partition("#")
    whole = posixpath.normpath(posixpath.join(posixpath.dirname(place), file))
    if whole == "README.md":
        whole = "docs/index.md"
    leads = site_pages().get(whole)
    if leads is None:
        if not (PROJECT / whole).exists():
            raise PluginError(f"{place}: links to {target}, which does not exist")
        return f"{text} (`{whole}`)" if text.strip("`") != whole else f"`{whole}`"
    return f"[{text}]({posixpath.relpath(leads, posixpath.dirname(page))}{hash_}{anchor})"


def _sentence(text: str | None) -> str:
    return _first_line(text).replace("``", "`")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _cell(text: str) -> str:
    """Text in a cell of a table: nothing that Markdown or HTML would read as markup, code as it is."""
    parts = text.replace("``", "`").split("`")
    for index in range(0, len(parts), 2):  # what stands outside of code
        for mark in ("\\", "*", "_", "[", "]", "<", ">"):
            parts[index] = parts[index].replace(mark, {"<": "&lt;", ">": "&gt;"}.get(mark, f"\\{mark}"))
    return "`".join(parts).replace("|", "\\|").replace("\n", " ")
