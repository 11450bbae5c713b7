"""``hemlearn index page=true``: one file that makes no request, shows the data as they are, and stays on its disk."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import zipfile
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.__main__ import main
from hemlearn.data.manifest import Manifest
from hemlearn.data.preprocess import resize_square
from hemlearn.data.store import SliceStore, open_store
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.reading.data_page import PAGE, STAYS
from hemlearn.reading.distributions import of_names, of_numbers
from tests.reports.test_case_page_browser import Opened

FLAT = Grid(rows=72, cols=72, pixel_mm=3.2, samples=1)


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    reader.close()
    return reader


def thumbs(file: Path) -> list[list[Any]]:
    found = re.search(r'<script type="application/json" id="thumbs">(.*?)</script>', file.read_text(), re.DOTALL)
    assert found
    return list(json.loads(found[1]))


def unpacked(packed: str, height: int, width: int) -> np.ndarray:
    """What the page's script makes of a thumbnail."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).astype(np.int32)
    folded = planes[: height * width] | (planes[height * width :] << 8)
    error = ((folded >> 1) ^ -(folded & 1)).reshape(height, width)
    out = np.zeros((height, width), np.int64)
    for row in range(height):
        for column in range(width):
            a = out[row, column - 1] if column else out[row - 1, column] if row else 0
            b = out[row - 1, column] if row else a
            c = out[row - 1, column - 1] if row and column else b
            high, low = max(a, b), min(a, b)
            guess = low if c >= high else high if c <= low else a + b - c
            out[row, column] = np.int16(guess + error[row, column])
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head-CT's layout with a copy under another number and label, a picture of its own and a row without one."""
    root = tmp_path_factory.mktemp("data") / "head_ct"
    write_phantom("head_ct", root, patients=24, seed=3, grid=FLAT)
    folder = root / "head_ct" / "head_ct"
    lines = (root / "labels.csv").read_text().splitlines()
    number, label = re.split(r"\s*,\s*", lines[1])
    shutil.copy(next(folder.glob(f"{int(number):03d}.png")), folder / "900.png")
    Image.new("L", (40, 30), 80).save(folder / "901.png")
    (folder / "902.png").write_bytes(b"no picture")
    (root / "labels.csv").write_text("\n".join([*lines, f"900,{1 - int(label)}", "902,1", "903,0"]) + "\n")
    return root


@pytest.fixture(scope="module")
def page(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "indexed"
    words = [f"data.root={pictures}", f"out={out}", "page=true", "data.image_size=64"]
    assert main(["index", *words, f"data.cache_dir={out.parent / 'cache'}"]) == 0
    return out / PAGE


def test_the_page_is_one_file_that_asks_for_nothing_and_says_what_it_is(page: Path) -> None:
    found = read(page)
    for tag, attributes in found.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith("#"), f"<{tag} {name}={attributes[name]}>"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(own["content"] for tag, own in found.tags if own.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert STAYS in found.text
    assert "SYNTHETIC" in found.text
    assert found.text.count("patient ") == 0 or "25 patients" not in found.text  # Head-CT has no patient ids


def test_the_page_counts_what_the_manifest_holds(page: Path) -> None:
    text, manifest = read(page).text, Manifest.load(page.parent)
    assert f"{len(manifest.table)} slices" in text
    positive = int((manifest.table["hemorrhage"] == 1).sum())
    assert re.search(rf"hemorrhage {positive} {len(manifest.table) - positive} 0", text)
    assert f"Left out: {len(manifest.skipped)}" in text
    for item, reason in manifest.skipped[["item", "reason"]].itertuples(index=False):
        assert f"{item}: {reason}" in text
    assert "opposite labels: hemorrhage" in text
    assert "similarity 1.000" in text
    sides = pd.Series({part: text.count(f"{part}: ") for part in ("train", "val", "test")})
    assert (sides >= 2).all(), "a contact sheet of each class in each split"


def test_pictures_are_those_of_the_store_and_of_what_was_left_out(page: Path, pictures: Path) -> None:
    manifest = Manifest.load(page.parent)
    store: SliceStore = open_store(manifest, size=64, fit="letterbox", cache_dir=page.parent.parent / "cache")
    packed, found = thumbs(page), read(page)
    shown = [
        (str(own["aria-label"]), int(str(own["data-thumb"])))
        for tag, own in found.tags
        if tag == "canvas" and own.get("data-thumb")
    ]
    assert {number for _, number in shown} == set(range(len(packed))), "every picture is packed once and shown"
    name, number = shown[0]
    row = store.rows[name.partition(";")[0]]
    data, height, width, low, high = packed[number]
    assert (low, high) == (0.0, 255.0), "8-bit pictures are shown as they are stored"
    np.testing.assert_array_equal(unpacked(data, height, width), resize_square(store.array[row], 64, "squash", 0))
    loose = next(number for name, number in shown if name.startswith("head_ct/head_ct/901.png"))
    data, height, width, *_ = packed[loose]
    assert (unpacked(data, height, width) == 80).mean() == pytest.approx(0.75, abs=0.02), "40 x 30, letterboxed"
    assert not [name for name, _ in shown if "902.png" in name], "a file that is no picture has none"


def test_the_page_is_not_safe_to_share_whatever_it_is_called(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(page, "notes.html")
    shutil.copy(page, tmp_path / "harmless.html")
    assert main(["doctor", f"run={tmp_path}", "share=true"]) == 1
    said = capsys.readouterr().out
    assert said.count("pictures and ids of a data set, made for this disk alone") == 2
    assert "NOT CLEAN: 2" in said


def test_series_windows_and_headers_of_dicom(tmp_path: Path) -> None:
    write_phantom("rsna", tmp_path / "rsna", patients=10, seed=1, grid=FLAT)
    words = ["data=rsna", f"data.root={tmp_path / 'rsna'}", "task=subtypes", "data.image_size=64"]
    assert main(["index", *words, f"out={tmp_path / 'out'}", "page=true"]) == 0
    file = tmp_path / "out" / PAGE
    found, manifest = read(file), Manifest.load(tmp_path / "out")
    names = [own["data-centre"] for tag, own in found.tags if tag == "button" and own.get("data-centre")]
    assert {"40", "600"} <= set(names), "HU have windows to choose"
    assert all(low is None for *_, low, _ in thumbs(file))
    assert "Series" in found.text
    assert f"of {manifest.table['series_id'].nunique()} series with several slices" in found.text
    for title in ("slice spacing (mm", "pixel size", "position in the series"):
        assert title in found.text
    assert "none of these" in found.text
    assert "position only" in found.text


def test_what_is_drawn_is_bounded_and_counted(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for k in range(420):
        Image.fromarray(rng.integers(0, 255, (24, 24), np.uint8)).save(tmp_path / "images" / f"{k}.png")
        rows.append({"path": f"images/{k}.png", "patient_id": f"p{k // 3}", "bleed": k % 2})
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    words = ["data=table", f"data.manifest={tmp_path / 'rows.csv'}", "task.labels=[bleed]", "data.image_size=32"]
    assert main(["index", *words, f"out={tmp_path / 'out'}", "page=true", "split.duplicates=none"]) == 0
    file = tmp_path / "out" / PAGE
    assert len(thumbs(file)) <= 2 * 3 * 24 + 16 * 14
    assert re.search(r"train: 24 of \d+ slices, \d+ patients", read(file).text)
    assert "16 of 140 series with several slices" in read(file).text


def test_distributions_count_each_unit_once() -> None:
    found = pd.Series([1.0, 0.0, np.nan, 0.0])
    numbers = of_numbers("age", "patients", pd.Series([1.0, 2.0, 2.0, np.nan]), found)
    assert numbers is not None
    assert numbers.text == "median 2, 1 to 2; 1 not known"
    assert [(bar.label, bar.counts) for bar in numbers.bars] == [("1", (1, 0, 0)), ("2", (0, 1, 1))]
    many = of_numbers("z", "slices", pd.Series(np.linspace(0, 1, 200)), pd.Series(np.zeros(200)))
    assert many is not None
    assert len(many.bars) == 16
    assert sum(bar.total for bar in many.bars) == 200
    names = of_names("kernel", "series", pd.Series([f"k{k}" for k in range(20)]), pd.Series(np.zeros(20)))
    assert names is not None
    assert names.bars[-1].label == "8 others"
    assert names.bars[-1].counts == (0, 8, 0)
    assert of_names("kernel", "series", pd.Series(["", ""]), pd.Series([1.0, 0.0])) is None


def right_edge(box: Any) -> float:
    """Brightness of the last pixels of an element, above its texts."""
    with Image.open(io.BytesIO(box.screenshot())) as image:
        return float(np.asarray(image.convert("L"))[:6, -3:].mean())


@pytest.mark.parametrize(("size", "touch"), [((1400, 900), False), ((390, 844), True)])
def test_the_page_in_a_browser(browser: Any, page: Path, size: tuple[int, int], touch: bool) -> None:
    opened = Opened(browser, page, size, touch)
    first = opened.page.locator("canvas[data-thumb]").first
    first.scroll_into_view_if_needed()
    opened.page.wait_for_selector("canvas[data-drawn]", timeout=20_000)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing is clipped or scrolls"
    table = opened.page.locator("#labels .scroll")
    goes_on = table.evaluate("box => box.scrollWidth > box.clientWidth")
    assert goes_on is (size[0] == 390)
    before = right_edge(table)
    table.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    assert (before > right_edge(table) + 15) is goes_on, "a shade says that there is more to the right"
    first.click()
    assert opened.page.locator("#large").is_visible()
    opened.page.wait_for_selector("#large-picture[data-drawn]", timeout=20_000)
    assert opened.problems == []
    assert opened.asked == [page.as_uri()]
    opened.context.close()
