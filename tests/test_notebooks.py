"""The notebooks: outputs are stored, true and of the code beside them; all run in an empty folder, on less data.

``HEMLEARN_NOTEBOOKS=full`` runs them as they are.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from hemlearn.phantom.layouts import PHANTOM_VERSION, write_phantom
from hemlearn.phantom.slab import Grid
from tests.notebooks import FOLDER, KEY, NAMES, code_of, environment, execute, load, shown_text, told_places

COARSE = Grid(rows=64, cols=64, pixel_mm=3.6, slices=10, thickness_mm=14, samples=1)
SHORT = '"trainer.max_epochs=1", "trainer.limit_train_batches=2"'
LESS = {
    "01_quick_start": {
        "phantom_patients=120": "phantom_patients=30",
        "image_size=128": "image_size=64",
        '"trainer.max_epochs=4"': SHORT,
    },
    "02_pretrained_vs_scratch": {
        "phantom_patients=60": "phantom_patients=30",
        "image_size=96": "image_size=64",
        '"trainer.max_epochs=4"': SHORT,
        "FOLDS = 3": "FOLDS = 2",
    },
    "03_volume_explained": {"image_size=128": "image_size=64", "max_epochs=5": "max_epochs=1"},
    "04_extend": {
        "PATIENTS = 40": "PATIENTS = 20",
        "phantom_patients=20": "phantom_patients=10",
        "max_epochs=4": "max_epochs=1",
        '"trainer.max_epochs=2"': SHORT,
    },
    "05_reading_a_comparison": {
        "phantom_patients=100": "phantom_patients=30",
        "image_size=96": "image_size=64",
        "max_epochs=8": "max_epochs=1",
        '"letterbox", "squash", "head"': '"letterbox", "squash"',
    },
}
# Words of a result: prose that uses one must name the output that it rests on, <!-- says: TEXT -->.
RESULT = re.compile(
    r"\b(favou?rs?|outperforms?|beats|wins|is (better|worse|higher|lower)|are (better|worse)|"
    r"significant(ly)?|improves?|reaches)\b|\bp ?[=<] ?0?\.\d|\d+\.\d+ ?(%|AUROC)|AUROC (of )?0?\.\d",
    re.IGNORECASE,
)


def claims(name: str) -> list[tuple[str, list[str]]]:
    """Each cell of prose, without its marks, and the texts that it says are shown."""
    found = []
    for cell in load(name).cells:
        if cell.cell_type == "markdown":
            marks = re.findall(r"<!-- says: (.*?) -->", cell.source)
            found.append((re.sub(r"<!-- says: .*? -->", "", cell.source), marks))
    return found


def test_all_notebooks_are_known() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.ipynb")) == NAMES
    for name in NAMES:
        for target in re.findall(r"\]\(([^)]+\.ipynb)\)", "".join(text for text, _ in claims(name))):
            assert (FOLDER / target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stored_of_the_code_beside_them_and_tell_no_place(name: str) -> None:
    notebook = load(name)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata[KEY]["code"] == code_of(notebook), f"{name} has changed: make notebooks NAME={name}"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), f"{name}: make notebooks"
    assert any(output.output_type == "display_data" or output.get("data") for c in cells for output in c.outputs)
    text = "\n".join(map(shown_text, cells))
    assert not told_places(text)
    assert not told_places(json.dumps([cell.source for cell in notebook.cells]))
    for word in ("Traceback", "Warning", "ConfigError"):
        assert word not in text, word
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 600_000


@pytest.mark.parametrize("name", NAMES)
def test_what_prose_says_of_a_result_stands_in_the_outputs(name: str) -> None:
    shown = " ".join("\n".join(map(shown_text, load(name).cells)).split())
    for text, marks in claims(name):
        for mark in marks:
            assert mark in shown, f"{name}: no output says {mark!r}, but the prose does:\n{text}"
        said = [found.group(0) for found in RESULT.finditer(text) if not _asks(text, found)]
        assert marks or not said, (
            f"{name}: {said} states a result; print it from the figures, or mark its output:\n{text}"
        )


def _asks(text: str, found: re.Match[str]) -> bool:
    """Whether the sentence that holds a word is a question."""
    end = re.search(r"[.?!](\s|$)", text[found.end() :])
    return bool(end and text[found.end() :][end.start()] == "?")


@pytest.mark.parametrize(
    ("text", "is_result"),
    [
        ("Four epochs favour the pretrained network.", True),
        ("The first is better than the second.", True),
        ("It has an AUROC of 0.91 here.", True),
        ("Which network is better, and may one say so?", False),
        ("Read the intervals before the values.", False),
    ],
)
def test_statements_of_results_are_recognised(text: str, is_result: bool) -> None:
    assert any(not _asks(text, found) for found in RESULT.finditer(text)) == is_result


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Any]]]:
    """Folder and executed cells of every notebook: one kernel runs them all, each in an empty folder and namespace."""
    root = tmp_path_factory.mktemp("notebooks")
    whole, lengths = nbformat.v4.new_notebook(), {}
    for name in NAMES:
        (root / name).mkdir()
        cells = load(name).cells
        if os.environ.get("HEMLEARN_NOTEBOOKS") != "full":
            for old, new in LESS[name].items():
                assert any(old in cell.source for cell in cells), old
                for cell in cells:
                    cell.source = cell.source.replace(old, new)
        start = f"%reset -f\nimport os\nos.chdir({str(root / name)!r})\ndel os"
        whole.cells += [nbformat.v4.new_code_cell(start), *cells]
        lengths[name] = len(cells)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment(root).items():
            patch.setenv(key, value)
        if os.environ.get("HEMLEARN_NOTEBOOKS") != "full":  # the volumes they would draw, sampled coarsely
            for layout in ("rsna", "ct_ich"):
                folder = root / "cache" / "phantom" / f"{layout}-v{PHANTOM_VERSION}-10-0"
                write_phantom(layout, folder, patients=10, grid=COARSE)
        execute(whole, root)
    rest = iter(whole.cells)
    return {name: (root / name, list(itertools.islice(rest, 1 + lengths[name]))) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(executed: dict[str, tuple[Path, list[Any]]], name: str) -> None:
    folder, cells = executed[name]
    for cell in cells:
        failed = any(output.output_type == "error" for output in cell.get("outputs", ()))
        assert not failed, "\n".join([cell.source, shown_text(cell)])
    text = json.dumps(cells)
    assert "Traceback" not in text
    statuses = list((folder / "runs").glob("*/*/status.json"))
    assert statuses
    assert all(json.loads(file.read_text())["state"] == "complete" for file in statuses)
    if name.startswith(("01", "02", "03")):
        assert "image/png" in text
    if name.startswith("04"):
        assert "disc" in text
        assert "wrong.csv" in text, "the faulty table is refused with its name"
    if name.startswith("05"):
        assert "non-inferior" in text
