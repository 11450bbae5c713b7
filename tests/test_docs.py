"""README, the site's pages and the studies say what is true: their commands and Python are such as would run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from docs.hooks import commands, configuration, python_reference, site_pages, studies, type_text
from hemlearn.__main__ import COMMANDS
from hemlearn.config import requests
from hemlearn.config.compose import check_command
from hemlearn.config.schema import schema_keys
from hemlearn.tasks import SliceClassification
from hemlearn.util.errors import CallError, ConfigError
from tests.conftest import PROJECT

PAGES = sorted({PROJECT / "README.md", *(PROJECT / place for place in site_pages())})
COMPOSED = ("README.md", "docs/index.md", "docs/getting-started.md", "docs/howto")  # elsewhere keys alone are held
OPEN = ("mypkg", "my_conf", "--config-dir", "TINY", "...", "$W")  # words of the reader's own
KINDS = {kind.command: kind for kind in vars(requests).values() if getattr(kind, "command", "")}
# What stands for the reader's own, and what this machine has not got.
ABSENT = re.compile(r"no such file|no such folder|not a folder|needs the CSV|is not installed: pip install")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of the code of a page: fenced (also inside tabs), or indented by four spaces."""
    fenced = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.M | re.S)
    for found in fenced.finditer(text):
        width = len(found["indent"])
        yield found["language"], "\n".join(line[width:] for line in found["body"].splitlines())
    rest = fenced.sub("", text)
    for found in re.finditer(r"(?:^    .*\n?)+", rest, re.M):
        yield "", "\n".join(line[4:] for line in found[0].splitlines())


def calls(page: Path) -> Iterator[list[str]]:
    """The words of every ``hemlearn`` command on a page; values of the reader's own make it one that is left out."""
    for language, body in blocks(page.read_text(encoding="utf-8")):
        if language not in ("", "bash"):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            if line.strip().startswith("hemlearn "):
                yield shlex.split(line, comments=True)[1:]


CALLS = [(page.relative_to(PROJECT).as_posix(), call) for page in PAGES for call in calls(page)]
UNIQUE = {" ".join(call): (page, call) for page, call in CALLS}.values()


def jobs(words: list[str]) -> list[str]:
    """The first job of a sweep."""
    parsed = OverridesParser.create().parse_overrides(words)
    return list(BasicSweeper.split_arguments(parsed, max_batch_size=None)[0][0])


def refuse(page: str, check: Callable[[list[str]], object], words: list[str]) -> None:
    """Fail where words are not taken for another reason than that a file of the reader's own is absent here."""
    try:
        check(words)
    except (CallError, ConfigError) as error:
        if not ABSENT.search(error.problem):
            pytest.fail(f"{page}: {' '.join(words)}: {error}")


@pytest.mark.parametrize(("page", "call"), UNIQUE, ids=[" ".join(call)[:60] for _, call in UNIQUE])
def test_commands_on_the_pages_would_be_taken(page: str, call: list[str]) -> None:
    command, *words = call
    assert command in COMMANDS or command in ("COMMAND", "--help"), f"{page}: no such command"
    if command not in COMMANDS or any(mark in word for mark in OPEN for word in words):
        return
    words = [word for word in words if word not in ("-m", "--help", "&&") and not word.startswith("--cfg")]
    if command not in ("train", "prepare", "index"):
        refuse(page, KINDS[command].parse, words)
        return
    own = {*KINDS[command].model_fields, "shard"} if command in KINDS else set()
    words = [word for word in words if word.partition("=")[0] not in own]
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        known = key in schema_keys() or key in ("experiment", "sweep") or key.startswith("hydra")
        parent = key.rpartition(".")[0]
        assert (
            known
            or parent.startswith(("data.parts", "stage.set", "backbone.options", "trainer.options"))
            or (key.partition(".")[0] in ("callbacks", "metrics"))
        ), f"{page}: {key} is no key"
    if page.startswith(COMPOSED) and not any("hydra/launcher" in word for word in words):
        refuse(page, check_command, jobs(words))


def test_python_on_the_pages_names_what_exists() -> None:
    seen = 0
    for page in PAGES:
        for language, body in blocks(page.read_text(encoding="utf-8")):
            if language != "python":
                continue
            for node in ast.walk(ast.parse(body)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hemlearn"):
                    module = import_module(str(node.module))
                    assert all(hasattr(module, name.name) for name in node.names), f"{page}: {ast.unparse(node)}"
                    seen += 1
    assert seen > 5


def test_parts_on_the_page_of_own_parts_work_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (PROJECT / "docs" / "howto" / "own-parts.md").read_text(encoding="utf-8")
    classes = [body for language, body in blocks(page) if language == "python" and "\nclass " in body]
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "parts.py").write_text("\n\n".join(classes))
    monkeypatch.syspath_prepend(tmp_path)
    parts = import_module("mypkg.parts")
    rows = [("path", "patient_id", "bleed"), *((f"{number}.png", f"P{number}", number % 2) for number in range(12))]
    random = np.random.default_rng(0)
    for path, _, bleed in rows[1:]:
        Image.fromarray((random.uniform(0, 200, (40, 40)) + 50 * int(bleed)).astype(np.uint8)).save(tmp_path / path)
    (tmp_path / "mine.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))

    data = parts.Pictures(tmp_path, image_size=32, batch_size=4, cache_dir=tmp_path / "cache")
    task = SliceClassification(labels=["bleed"], backbone=parts.SmallNet, loss=parts.AsymmetricLoss(focus=1.0))
    pl.Trainer(fast_dev_run=True, accelerator="cpu", logger=False, enable_progress_bar=False).fit(task, datamodule=data)
    assert sorted(data.manifest.table["slice_id"]) == sorted(path for path, *_ in rows[1:])
    logits = parts.Trend(16, 1)(torch.zeros(2, 3, 16), torch.tensor([3, 2]))
    assert logits.shape == (2, 3, 1)


def test_the_reference_holds_every_key_command_and_public_name() -> None:
    text = configuration()
    leaves = [key for key in schema_keys() if not any(other.startswith(f"{key}.") for other in schema_keys())]
    assert [key for key in leaves if f"`{key}` |" not in text] == []
    assert all(f"\n## {name}\n" in commands() for name in COMMANDS)
    pages = dict(python_reference())
    for name in ("hemlearn.datamodules", "hemlearn.tasks"):
        listed = [item for item in import_module(name).__all__ if item[0].isupper() and item != "DATAMODULES"]
        assert [item for item in listed if f".{item}\n" not in pages[name.rpartition(".")[2]]] == []


def test_every_page_of_experiments_is_on_the_site() -> None:
    nav = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page, _ in studies() if f": {page}\n" not in nav] == []


def test_messages_that_are_explained_are_those_that_are_raised() -> None:
    text = (PROJECT / "docs" / "reference" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "".join(
        re.sub(r'"\n\s*f?"', "", file.read_text(encoding="utf-8")) for file in (PROJECT / "hemlearn").rglob("*.py")
    )
    quoted = [part for row in re.findall(r"^\| (`[^|]*) \|", text, re.M) for part in re.findall(r"`([^`]+)`", row)]
    pieces = [piece.strip("' ") for part in quoted for piece in part.split("...") if len(piece.strip("' ")) > 3]
    assert len(pieces) > 30
    assert [piece for piece in pieces if piece not in source] == []


def test_types_in_words() -> None:
    from hemlearn.config.schema import DataConfig

    fields = DataConfig.model_fields
    told = {name: type_text(fields[name].annotation, fields[name].metadata) for name in fields if name != "target_"}
    assert told["fit"] == "`letterbox`, `squash`, `crop`, `head`"
    assert told["image_size"] == "whole number, at least 32, at most 4096"
    assert told["modality"] == "`CT`, `MR`, or null"
    assert told["band"] == "list: number, or null"
