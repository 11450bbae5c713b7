"""The notebooks run from the first cell to the last in an empty folder, on less data than a reader's.

``HEMLEARN_NOTEBOOKS=full`` runs them as they are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = [
    "01_quick_start",
    "02_pretrained_vs_scratch",
    "03_volume_explained",
    "04_extend_without_python",
    "05_in_python",
]
LESS = {
    "01_quick_start": {"phantom_patients=120": "phantom_patients=40", "max_epochs=4": "max_epochs=1"},
    "02_pretrained_vs_scratch": {
        "phantom_patients=60": "phantom_patients=30",
        "image_size=96": "image_size=64",
        "max_epochs=4": "max_epochs=1",
        "folds=3 split.fold=0,1,2": "folds=2 split.fold=0,1",
    },
    "03_volume_explained": {"image_size=128": "image_size=64"},
    "04_extend_without_python": {"patients=48": "patients=30", "image_size=96": "image_size=64"},
    "05_in_python": {
        "phantom_patients=120": "phantom_patients=40",
        "image_size=96": "image_size=64",
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


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = load(name)
    if os.environ.get("HEMLEARN_NOTEBOOKS") != "full":
        for old, new in LESS[name].items():
            assert any(old in cell.source for cell in notebook.cells), old
            for cell in notebook.cells:
                cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = json.dumps(notebook.cells)
    assert "Traceback" not in text
    statuses = list((tmp_path / "runs").glob("*/*/status.json"))
    assert statuses
    assert all(json.loads(file.read_text())["state"] == "complete" for file in statuses)
    if name.startswith(("01", "03")):
        assert "image/png" in text
    if name.startswith("04"):
        assert "did you mean 'my_labels'" in text
