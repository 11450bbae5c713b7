"""The notebooks run from the first cell to the last in an empty folder, on less data than a reader's.

``HEMLEARN_NOTEBOOKS=full`` runs them as they are.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from hemlearn.phantom.layouts import PHANTOM_VERSION, write_phantom
from hemlearn.phantom.slab import Grid

COARSE = Grid(rows=64, cols=64, pixel_mm=3.6, slices=10, thickness_mm=14, samples=1)
FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = [
    "01_quick_start",
    "02_pretrained_vs_scratch",
    "03_volume_explained",
    "04_extend_without_python",
    "05_in_python",
]
LESS = {
    "01_quick_start": {
        "patients=120": "patients=30",
        "image_size=128": "image_size=64",
        "max_epochs=4": "max_epochs=1 trainer.limit_train_batches=2",
    },
    "02_pretrained_vs_scratch": {
        "phantom_patients=60": "phantom_patients=30",
        "image_size=96": "image_size=64",
        "max_epochs=4": "max_epochs=1 trainer.limit_train_batches=2",
        "folds=3 split.fold=0,1,2": "folds=2 split.fold=0,1",
    },
    "03_volume_explained": {"image_size=128": "image_size=64", "max_epochs=5": "max_epochs=1"},
    "04_extend_without_python": {"patients=48": "patients=30", "image_size=96": "image_size=64"},
    "05_in_python": {
        "phantom_patients=120": "phantom_patients=30",
        "phantom_patients=20": "phantom_patients=10",
        "image_size=96": "image_size=64",
        '"trainer.max_epochs=4"': '"trainer.max_epochs=1", "trainer.limit_train_batches=2"',
        "max_epochs=4": "max_epochs=1",
    },
}
LIMIT = 600  # seconds per cell: the suite runs several processes on each core, a reader's machine runs one


def load(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_all_notebooks_are_known_and_committed_clean() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.ipynb")) == NAMES
    for name in NAMES:
        notebook = load(name)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert cell.outputs == [], f"{name}: commit it without outputs"
                assert cell.execution_count is None, f"{name}: commit it without outputs"


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
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patch.setenv("HEMLEARN_CACHE", str(root / "cache"))
        if os.environ.get("HEMLEARN_NOTEBOOKS") != "full":  # the volumes they would draw, sampled coarsely
            for layout in ("rsna", "ct_ich"):
                folder = root / "cache" / "phantom" / f"{layout}-v{PHANTOM_VERSION}-10-0"
                write_phantom(layout, folder, patients=10, grid=COARSE)
        NotebookClient(whole, timeout=LIMIT, allow_errors=True, resources={"metadata": {"path": str(root)}}).execute()
    rest = iter(whole.cells)
    return {name: (root / name, list(itertools.islice(rest, 1 + lengths[name]))) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(executed: dict[str, tuple[Path, list[Any]]], name: str) -> None:
    folder, cells = executed[name]
    for cell in cells:
        outputs = cell.get("outputs", ())
        failed = any(output.output_type == "error" for output in outputs)
        assert not failed, "\n".join([cell.source, *(output.get("text", "") for output in outputs)])
    text = json.dumps(cells)
    assert "Traceback" not in text
    statuses = list((folder / "runs").glob("*/*/status.json"))
    assert statuses
    assert all(json.loads(file.read_text())["state"] == "complete" for file in statuses)
    if name.startswith(("01", "03")):
        assert "image/png" in text
    if name.startswith("04"):
        assert "did you mean 'my_labels'" in text
