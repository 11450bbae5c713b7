"""What every command shows on a terminal of 80 columns, on one tiny run."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from rich.cells import cell_len

from hemlearn.__main__ import main
from tests.end_to_end.conftest import SMALL, run_folders

WIDTH = 80
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\].*?\x1b\\")
COMMANDS = {
    "train": ["train", *SMALL, "trainer.max_epochs=1", "seed=2", "data.root={root}"],
    "runs": ["runs", "runs"],
    "compare": ["compare", "runs", "out={out}"],
    "plan": ["plan", "run={run}", "difference=0.05"],
    "predict": ["predict", "run={run}", "input={root}", "out={out}"],
    "explain": ["explain", "run={run}", "out={out}", "slices=2"],
    "errors": ["errors", "run={run}", "out={out}", "each=1", "pages=false"],
    "index": ["index", "data=head_ct", "data.root={root}"],
    "doctor": ["doctor", "run={run}"],
    "share": ["doctor", "run={run}", "share=true"],
    "prune": ["prune", "runs"],
    "failing": ["compare", "a folder that is not there, with a rather long name, so that the message has to be folded"],
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def trained(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["train", f"data.root={phantom_root}", *SMALL, "trainer.max_epochs=1"]) == 0
    return folder


@contextmanager
def terminal() -> Iterator[tuple[Terminal, Terminal]]:
    """Standard output and error of a terminal, of a process that has just begun."""
    before, logging.root.handlers = logging.root.handlers, []
    try:
        with redirect_stdout(Terminal()) as out, redirect_stderr(Terminal()) as err:
            yield out, err
    finally:
        logging.root.handlers = before


@pytest.mark.parametrize("name", list(COMMANDS))
def test_no_line_is_wider_than_the_terminal(
    name: str, trained: Path, phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("HEMLEARN_CACHE", str(trained / "cache"))
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("TERM", "xterm-256color")
    run = run_folders(trained / "runs")[0].relative_to(trained)
    words = [text.format(run=run, root=phantom_root, out=tmp_path / "out") for text in COMMANDS[name]]
    with terminal() as screen:
        status = main(words)
    assert status == (1 if name == "failing" else 0) or name == "share"
    lines = [_CONTROL.sub("", line).rstrip() for part in screen for line in re.split("[\r\n]", part.getvalue())]
    assert any(lines)
    # A path or another word that is longer stays whole: the terminal breaks it, and it can be copied.
    wide = [line for line in lines if cell_len(line) > WIDTH and " " in line.strip()]
    assert not wide
    told = "\n".join(lines)
    if name == "compare":  # what forbids to take the figures at face value stands above them
        assert told.index("WARNING: synthetic data") < told.index("AUROC")
        assert re.search(r"few images: \d+ with hemorrhage, \d+ without", told[: told.index("compared:")])
        whole = " ".join(told.split())
        assert "patients" not in whole.replace("not of patients", "").replace("nothing about patients", "")
    if name == "errors":  # the layout has no patient ids: every image stands for itself
        assert re.search(r"Few images: \d+ with hemorrhage, \d+ without\b", " ".join(told.split()))
