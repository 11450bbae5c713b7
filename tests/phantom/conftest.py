"""Heads drawn once per session: a patient of a seed is always the same, whatever layout writes it."""

from __future__ import annotations

import csv
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from hemlearn.phantom import archives, patients, pictures
from hemlearn.phantom.files import PhantomSummary
from hemlearn.phantom.layouts import PHANTOM_VERSION, write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.util.prune import find

COARSE = Grid(rows=64, cols=64, pixel_mm=3.6, slices=26, samples=1)
# Layout -> number of patients, sampling.
SETS = {
    **dict.fromkeys(("rsna", "ct_ich", "ct_ich_nifti", "cq500"), (8, COARSE)),
    "basal_ganglia": (6, Grid(rows=64, cols=64, pixel_mm=3.6, slices=15, samples=1)),
    "six_class": (6, Grid(rows=96, cols=96, pixel_mm=2.4, samples=1)),
    "hydrocephalus_mri": (10, Grid(rows=64, cols=64, pixel_mm=3.7, slices=13)),
}
SEED = 2
DRAWERS = ("draw_volume", "draw_ganglia", "draw_images", "draw_exam")


@pytest.fixture(scope="package")
def drawn_once() -> Iterator[dict[str, Callable]]:
    """The functions that draw a patient, by name; each patient is drawn once, by writers too."""
    with pytest.MonkeyPatch.context() as patch:
        known = {}
        for module in (archives, pictures, patients):
            for name in DRAWERS:
                if hasattr(module, name):
                    known.setdefault(name, cache(getattr(module, name)))
                    patch.setattr(module, name, known[name])
        yield known


@pytest.fixture(scope="package")
def write(
    tmp_path_factory: pytest.TempPathFactory, drawn_once: dict[str, Callable]
) -> Callable[[str], tuple[Path, PhantomSummary, list[dict[str, str]]]]:
    """Write a layout once; gives its folder, summary and truth."""

    @cache
    def once(layout: str) -> tuple[Path, PhantomSummary, list[dict[str, str]]]:
        out = tmp_path_factory.mktemp(layout) / "set"
        count, grid = SETS[layout]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            summary = write_phantom(layout, out, patients=count, seed=SEED, grid=grid)
        with (out / "phantom.csv").open() as file:
            return out, summary, list(csv.DictReader(file))

    return once


def prunable(out: Path, layout: str, place: Path) -> bool:
    """Whether ``hemlearn prune`` knows every file of a set, once it lies where a cache has it."""
    name = f"{layout}-v{PHANTOM_VERSION}-{SETS[layout][0]}-{SEED}"
    shutil.copytree(out, place / "phantom" / name, copy_function=os.link)
    return [item.known for item in find(place, ["phantoms"])] == [True]
