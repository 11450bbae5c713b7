"""The notebooks: what they are called, how they are run, and (``make notebooks``) how their outputs are stored.

    python -m tests.notebooks [NAME ...]        # run as they are, each in an empty folder, and store what they show

The cache and the folder of such a run are temporary: stored outputs name the usual ones. What fails, or tells another
folder or a user of the machine, is refused and left in .out/notebooks. Each notebook holds the checksum of the code
that made its outputs, by which a test sees that they are up to date.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = ["01_quick_start", "02_pretrained_vs_scratch", "03_volume_explained", "04_extend", "05_reading_a_comparison"]
KEY = "hemlearn"  # of a notebook's metadata
LIMIT = 1200  # seconds per cell: the suite runs several processes on each core, a reader's machine runs one
_PLACES = r"/(?:home|root|tmp|work|private|Users|mnt|opt|usr|var)/\w+|[A-Z]:\\\\"


def load(name: str) -> Any:
    """A notebook as it is stored."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_of(notebook: Any) -> str:
    """Checksum of the code whose outputs a notebook holds."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def shown_text(cell: Any) -> str:
    """What a cell's outputs show as text, one after the other."""
    found = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        found.append(str(output.get("text") or data.get("text/plain") or ""))
        found += [str(data[kind]) for kind in ("text/html", "text/markdown") if kind in data]
        found += list(map(str, output.get("traceback", ())))
    return "\n".join(found)


def told_places(text: str) -> list[str]:
    """Folders and users of a machine that a text tells."""
    found = re.findall(_PLACES, text)
    user = getpass.getuser()
    return found + ([user] if len(user) > 4 and user in text else [])  # "root" and "user" are words as well


def environment(folder: Path) -> dict[str, str]:
    """Variables of the process that runs notebooks: no tracker, a cache of its own."""
    return {
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "HEMLEARN_CACHE": str(folder / "cache"),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, where ipywidgets is not installed
    }


def execute(notebook: Any, folder: Path) -> None:
    """Run every cell in one kernel; a failing cell's traceback becomes its output."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=LIMIT, allow_errors=True, record_timing=False, resources=resources).execute()


def _elsewhere(notebook: Any, folder: Path) -> Any:
    """The notebook with the temporary folders of this run written as those of a reader."""
    text = json.dumps(notebook)
    for place, usual in ((f"{folder}/cache", "~/.cache/hemlearn"), (str(folder), ".")):
        text = text.replace(place, usual)
    return nbformat.from_dict(json.loads(text))


def store(name: str) -> float:
    """Run a notebook as it is and write it back with its outputs; seconds it took.

    Raises:
        SystemExit: A cell failed, or shows a folder or a user of this machine.
    """
    notebook, start = load(name), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(environment(Path(folder)))
        (Path(folder) / name).mkdir()
        execute(notebook, Path(folder) / name)
    notebook = _elsewhere(notebook, Path(folder))
    made = FOLDER.parent / ".out" / "notebooks" / f"{name}.ipynb"  # to look at where it is refused
    made.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, made)
    for cell in notebook.cells:
        text = shown_text(cell)
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            raise SystemExit(f"{name}: a cell failed\n{cell.source}\n{text}")
        if places := told_places(text):
            raise SystemExit(f"{name}: an output tells {', '.join(sorted(set(places)))}\n{cell.source}\n{text}")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        KEY: {"code": code_of(notebook)},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")
    return time.perf_counter() - start


if __name__ == "__main__":
    for chosen in sys.argv[1:] or NAMES:
        print(f"{store(chosen):6.0f} s  {chosen}", flush=True)
