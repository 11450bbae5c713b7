"""The pictures of README and the site, from synthetic data alone: ``make pictures``.

Two small trainings on the phantom (a quarter of an hour on two cores; what is finished is skipped), one new series
predicted, one comparison; then what a browser shows of the pages, and the figures. Nothing of a patient can get into
them: no command here is given a ``data.root`` but that of a phantom.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from hemlearn.__main__ import main
from hemlearn.util.errors import ConfigError
from tests.browser import INSTALL, NoBrowserError, browser_path

PROJECT = Path(__file__).resolve().parent.parent
OUT = PROJECT / "docs" / "images"
WORK = PROJECT / ".out" / "pictures"
LARGEST = 250_000  # bytes of a picture
LOOK = ("data=rsna", "data.root=set", "task=subtypes", "data.image_size=128", "data.fit=head")
CASE = (
    *("train", *LOOK, "channels=brain_subdural_soft"),
    *("augmentation=geometric_intensity", "freeze.trainable=5", "task.calibration=temperature"),
    *("split.val_fraction=0.25", "trainer.max_epochs=5", "logger=csv", "name=case"),
)
GRID = (
    *("train", "-m", "data=head_ct", "data.phantom_patients=120", "data.image_size=64", "split=kfold", "split.folds=3"),
    *(
        "split.fold=0,1,2",
        "backbone.pretrained=true,false",
        "augmentation=none,flip_rotate,geometric_intensity",
        "trainer.max_epochs=4",
    ),
    *("logger=csv", "name=grid"),
)


def hemlearn(*words: str) -> None:
    """Run a command; a failed one ends the script with its own message."""
    if status := main(list(words)):
        sys.exit(status)


def make() -> None:
    """Data, runs, pages and the comparison, in the present folder."""
    if not Path("set").is_dir():
        hemlearn("phantom", "layout=rsna", "out=set", "patients=48", "seed=1")
    if not Path("new").is_dir():  # other heads than those of the training
        hemlearn("phantom", "layout=rsna", "out=new", "patients=4", "seed=77")
    hemlearn("index", *LOOK, "out=indexed", "page=true")
    hemlearn(*CASE)
    hemlearn(*GRID)
    hemlearn("predict", "run=runs/case/best", "input=new/stage_2_train", "out=read", "page=true")
    hemlearn("errors", "run=runs/case/best", "out=errors", "label=any")
    hemlearn("compare", "runs/grid", "out=compared")


def shoot(browser: Any, page: Path, name: str, size: tuple[int, int], act: Callable[[Any], None] | None = None) -> None:
    """Save what a browser shows of a page, after ``act`` has used it."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, offline=True)
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    if act:
        act(tab)
    tab.screenshot(path=f"{name}.png")
    context.close()
    publish(Path(f"{name}.png"), name)


def publish(picture: Path, name: str) -> None:
    """Put a picture into ``docs/images``, with few colours, as small as a page wants it.

    Raises:
        ConfigError: It is too large all the same.
    """
    made = Image.open(picture).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    OUT.mkdir(exist_ok=True)
    file = OUT / f"{name}.png"
    made.save(file, optimize=True)
    if file.stat().st_size > LARGEST:
        raise ConfigError(f"{file}: {file.stat().st_size} bytes", remedy="show less, or fewer colours")
    print(f"{file.relative_to(PROJECT)}  {made.width} x {made.height}  {file.stat().st_size // 1000} kB")


def likeliest(folder: Path) -> Path:
    """The page of the series that is most likely positive."""
    series = pd.read_csv(folder / "series.csv").set_index("series_id")["prob_any"]
    pages = pd.read_csv(folder / "pages.csv").set_index("series_id")
    return folder / str(pages.loc[series.idxmax(), "page"])


def _with_map(tab: Any) -> None:
    """Show the map of any hemorrhage on the slice where the page opens."""
    tab.wait_for_selector("html[data-ready=true]", timeout=60_000)
    tab.click("#findings button:has-text('any')")
    tab.set_checked("#cam", True)


def at(heading: str) -> Callable[[Any], None]:
    """Scroll to a heading of the second level."""
    found = f"[...document.querySelectorAll('h2')].find(h => h.textContent.trim() === '{heading}')"

    def scroll(tab: Any) -> None:
        tab.evaluate(f"window.scrollTo(0, {found}.getBoundingClientRect().top - 90)")
        tab.wait_for_timeout(1500)  # pictures are drawn when they come into view

    return scroll


def pictures() -> None:
    """Everything, from nothing to ``docs/images``."""
    path = browser_path()
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    os.environ.setdefault("WANDB_MODE", "offline")
    make()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        shoot(browser, likeliest(Path("read")), "case", (1180, 960), _with_map)
        shoot(browser, Path("compared/compare.html"), "compare", (1280, 960))
        shoot(browser, Path("errors/errors.html"), "errors", (1180, 900), at("Pictures"))
        shoot(browser, Path("indexed/data.html"), "data", (1180, 900), at("Contact sheets"))
        browser.close()
    for name in ("roc", "calibration"):
        publish(Path("compared") / f"{name}.png", name)


if __name__ == "__main__":
    try:
        pictures()
    except ConfigError as error:
        sys.exit(f"pictures: {error}")
    except NoBrowserError as error:
        sys.exit(f"pictures: {error}: {INSTALL}")
