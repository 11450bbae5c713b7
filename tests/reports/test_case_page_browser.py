"""The page in a real browser: Chromium, from the file system, without network, at laptop and phone width."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hemlearn.reading.case import Case, write_case_page
from tests.conftest import real_data
from tests.reports.cases import case

LAPTOP, PHONE = (1280, 800), (390, 844)


class Opened:
    """A page, with everything that went wrong in it and every address it asked for."""

    def __init__(self, browser: Any, file: Path, size: tuple[int, int], touch: bool) -> None:
        viewport = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=viewport, has_touch=touch, is_mobile=touch, offline=True)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.problems.append(dialog.message), dialog.dismiss()))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready=true]", timeout=60_000)

    def drawn(self) -> tuple[int, int, int, str, float]:
        """Slice, centre, width, label of the map, and opacity of what the canvas shows now."""
        index, centre, width, label, opacity = self._drawn()
        return int(index), round(float(centre)), round(float(width)), label, float(opacity)

    def _drawn(self) -> list[str]:
        return str(self.page.get_attribute("#canvas", "data-drawn")).split("|")

    def shows(self, place: int, value: Any) -> None:
        """Wait until part ``place`` of :meth:`drawn` is ``value``; drawing is asynchronous."""
        # Asked again from here: the page's content policy forbids a predicate that the page itself would repeat.
        until = time.monotonic() + 20
        while self._drawn()[place] != str(value) and time.monotonic() < until:
            self.page.wait_for_timeout(20)
        assert self._drawn()[place] == str(value)

    def pixels(self) -> np.ndarray:
        """(H, W, 3) of the canvas, read back from the browser."""
        text = (
            "() => { const c = document.getElementById('canvas'); const d = c.getContext('2d').getImageData(0, 0, "
            "c.width, c.height).data; let s = ''; for (let k = 0; k < d.length; k += 8192) "
            "s += String.fromCharCode(...d.subarray(k, k + 8192)); "
            "return [c.width, c.height, btoa(s)]; }"
        )
        width, height, values = self.page.evaluate(text)
        return np.frombuffer(base64.b64decode(values), dtype=np.uint8).reshape(height, width, 4)[..., :3]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    opened: list[Opened] = []

    def call(made: Case, size: tuple[int, int] = LAPTOP, touch: bool = False, **options: Any) -> Opened:
        write_case_page(tmp_path / "page.html", made, **options)
        opened.append(Opened(browser, tmp_path / "page.html", size, touch))
        return opened[-1]

    yield call
    for one in opened:
        one.context.close()


@pytest.mark.parametrize(("size", "touch"), [(LAPTOP, False), (PHONE, True)])
def test_it_opens_without_network_error_or_sideways_scrolling(
    open_page: Any, size: tuple[int, int], touch: bool
) -> None:
    opened = open_page(case(), size, touch)
    assert opened.problems == []
    assert [url for url in opened.asked if not url.startswith("file://")] == []
    assert len(opened.asked) == 1
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    canvas = opened.page.locator("#canvas").bounding_box()
    assert canvas["width"] >= min(size[0] * 0.4, 300)
    assert opened.page.locator("text=Research use only").first.is_visible()


def test_it_starts_at_the_likeliest_slice_of_the_likeliest_finding(open_page: Any) -> None:
    opened = open_page(case())
    assert opened.drawn() == (5, 40, 80, "any", 0.55)
    assert "6 / 9" in opened.page.text_content("#number")
    assert "z 5.0 mm" in opened.page.text_content("#number")


def test_it_starts_at_a_finding_that_reaches_its_operating_point(open_page: Any) -> None:
    """Probabilities that are not calibrated have no line to stand against: the caller says what reaches its point."""
    opened = open_page(case(thresholds={}, calls={"any": False, "epidural": True, "subdural": False}))
    assert opened.drawn()[3] == "epidural"
    assert opened.page.locator("#cam").is_checked()
    fills = "all => all.map(e => e.getAttribute('fill'))"
    colours = opened.page.eval_on_selector_all("#findings svg rect:first-child", fills)
    assert [colour == "#ffb454" for colour in colours] == [False, True, False]
    assert "Orange: reaches the operating point." in opened.page.text_content("#findings-note")


def test_no_map_is_shown_at_first_where_nothing_is_found(open_page: Any) -> None:
    opened = open_page(case(thresholds={"any": 0.99}, calls={"any": False, "epidural": False, "subdural": False}))
    assert opened.drawn()[3] == ""
    assert "no finding reaches its operating point" in opened.page.text_content("#cam-note")
    opened.page.keyboard.press("m")
    opened.shows(3, "any")


def test_facts_have_room_on_a_phone(open_page: Any) -> None:
    """Long names of facts once left the texts beside them a column of a few letters."""
    made = case(card={"Test AUROC per series, mean over labels": "0.756 (95 % interval 0.611 to 0.868), n = 12"})
    opened = open_page(made, PHONE, True)
    assert opened.page.locator("#card dd").bounding_box()["width"] > 180


def test_the_canvas_shows_the_window_in_grey(open_page: Any) -> None:
    made = case()
    opened = open_page(made)
    opened.page.keyboard.press("m")
    opened.shows(3, "")
    for key, (centre, width) in enumerate([(40, 80), (80, 200), (40, 40), (600, 2800), (40, 380)], start=1):
        opened.page.keyboard.press(str(key))
        opened.shows(2, width)
        grey = np.clip((made.hu[5] - (centre - width / 2)) * 255.0 / width, 0, 255)
        seen = opened.pixels()
        assert (seen[..., 0] == seen[..., 1]).all()
        assert np.abs(seen[..., 0] - grey).max() <= 1


def test_keys_wheel_slider_and_buttons_change_the_slice(open_page: Any) -> None:
    opened = open_page(case())
    page = opened.page
    for key, expected in (
        ("ArrowUp", 6),
        ("ArrowRight", 7),
        ("ArrowDown", 6),
        ("ArrowLeft", 5),
        ("PageUp", 8),
        ("PageDown", 3),
        ("Home", 0),
        ("ArrowDown", 0),
        ("End", 8),
        ("ArrowUp", 8),
    ):
        page.keyboard.press(key)
        opened.shows(0, expected)
    page.hover("#canvas")
    page.mouse.wheel(0, 100)
    opened.shows(0, 7)
    page.mouse.wheel(0, -100)
    opened.shows(0, 8)
    page.fill("#slice", "2")
    opened.shows(0, 1)
    page.focus("#slice")
    page.keyboard.press("ArrowUp")
    opened.shows(0, 2)
    page.click("#next")
    opened.shows(0, 3)
    page.click("#previous")
    opened.shows(0, 2)
    assert page.get_attribute("#slice", "aria-valuetext").startswith("slice 3 / 9")
    page.focus("#centre")
    page.keyboard.press("ArrowUp")  # belongs to the field, not to the slices
    assert opened.drawn()[0] == 2


def test_swipes_change_the_slice_on_a_phone(open_page: Any) -> None:
    opened = open_page(case(), PHONE, True)
    box = opened.page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = opened.context.new_cdp_session(opened.page)
    step = box["height"] / 9
    for kind, dy in (("touchStart", 0), ("touchMove", step), ("touchMove", 2.2 * step), ("touchEnd", 0)):
        points = [] if kind == "touchEnd" else [{"x": x, "y": y + dy}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    opened.shows(0, 3)  # down the screen is down the head


def test_the_chart_follows_and_leads(open_page: Any) -> None:
    opened = open_page(case())
    page = opened.page
    box = page.locator("#chart svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 11, box["y"] + 60)
    opened.shows(0, 8)
    first = float(page.get_attribute("#here", "x1"))
    page.keyboard.press("Home")
    opened.shows(0, 0)
    assert float(page.get_attribute("#here", "x1")) < first
    assert page.locator("#chart .dot").count() == 9
    assert page.locator("#chart .limit").count() == 1
    assert page.locator("#chart .for").count() + page.locator("#chart .against").count() == 9
    assert "highest 92.0 % in slice 6" in page.get_attribute("#chart svg", "aria-label")


def test_the_map_is_coloured_where_it_speaks(open_page: Any) -> None:
    made = case()
    opened = open_page(made)
    opened.page.keyboard.press("]")
    opened.shows(4, 0.65)
    lit = opened.pixels().astype(int)
    colour = lit.max(axis=2) - lit.min(axis=2)
    row, column = np.unravel_index(colour.argmax(), colour.shape)
    assert row < 40
    assert column < 40  # the map of `any` is brightest in the upper left of its 6 x 6 places
    assert colour[70:, 70:].max() == 0
    opened.page.click("#findings li:nth-child(2) button")
    opened.shows(3, "epidural")
    moved = opened.pixels().astype(int)
    colour = moved.max(axis=2) - moved.min(axis=2)
    assert 25 <= np.unravel_index(colour.argmax(), colour.shape)[1] <= 60
    opened.page.uncheck("#cam")
    opened.shows(3, "")
    plain = opened.pixels()
    assert (plain[..., 0] == plain[..., 2]).all()


def test_the_map_covers_the_part_the_network_saw(open_page: Any) -> None:
    cams = {"any": np.full((9, 4, 4), 255, dtype=np.uint8)}
    opened = open_page(case(cams=cams, cam_boxes=np.array([[48.0, 48.0, 40.0, 40.0]] * 9)))
    lit = opened.pixels().astype(int)
    colour = lit.max(axis=2) - lit.min(axis=2) > 20
    rows, columns = np.nonzero(colour)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (48, 87, 48, 87)


def test_dragging_changes_the_window(open_page: Any) -> None:
    opened = open_page(case())
    box = opened.page.locator("#canvas").bounding_box()
    opened.page.mouse.move(box["x"] + 100, box["y"] + 100)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 160, box["y"] + 140)
    opened.page.mouse.up()
    _, centre, width, _, _ = opened.drawn()
    assert centre > 40
    assert width > 80
    assert opened.page.get_attribute("#windows button:nth-of-type(1)", "aria-pressed") == "false"
    opened.page.fill("#width", "250")
    opened.page.keyboard.press("Enter")
    opened.shows(2, 250)


def test_hostile_text_is_shown_as_text(open_page: Any) -> None:
    nasty = "</script><img src=x onerror=alert(1)><b>bold</b>"
    made = case(
        series=nasty,
        ground={nasty: nasty},
        card={"Data": nasty},
        warnings=[nasty],
        calibration=nasty,
        labels=("any", nasty, "subdural"),
        cams={},
    )
    opened = open_page(made)
    page = opened.page
    assert opened.problems == []
    assert page.locator("img").count() == 0
    assert page.locator("b").count() == 0
    assert page.text_content("#series") == nasty
    assert page.text_content("#facts dd") == nasty
    assert nasty in page.title()
    assert page.locator("#cam-controls").is_hidden()  # there are no maps to show


def test_the_patient_is_not_on_the_page(open_page: Any) -> None:
    opened = open_page(case())
    assert "DOE" not in opened.page.content()
    assert "JANE" not in opened.page.content()
    shown = open_page(case(), show_patient=True)
    assert "DOE^JANE" in shown.page.text_content("#summary")


def test_one_slice_without_position_and_an_unknown_probability(open_page: Any) -> None:
    made = case()
    one = case(
        hu=made.hu[:1],
        slice_probs=np.array([[np.nan, 0.2, 0.1]]),
        series_probs=np.array([np.nan, 0.2, 0.1]),
        z_mm=None,
        cams={},
        attribution=None,
        intervals=None,
        calibration="",
        card={},
    )
    opened = open_page(one)
    assert opened.problems == []
    assert opened.drawn()[0] == 0
    assert "not known" in opened.page.text_content("#findings li:nth-child(1)")
    assert "One model, hence no interval" in opened.page.text_content("#findings-note")
    assert opened.page.locator("#s-card").is_hidden()


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(open_page: Any) -> None:
    opened = open_page(case())
    tree = opened.page.evaluate("""() => [...document.querySelectorAll('button, input')].map((e) =>
        [e.id, e.type, (e.getAttribute('aria-label') || e.textContent || (e.labels && e.labels[0] &&
        e.labels[0].textContent) || '').trim(), e.tabIndex])""")
    assert all(name and place >= 0 for _, _, name, place in tree), tree
    reached = set()
    opened.page.focus("#canvas")
    for _ in range(len(tree) + 4):
        reached.add(opened.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        opened.page.keyboard.press("Tab")
    assert {"canvas", "slice", "cam", "opacity", "centre", "width", "next"} <= reached


def test_texts_have_contrast(open_page: Any) -> None:
    """WCAG 2 AA: 4.5 to 1 against the nearest background that is not transparent."""
    opened = open_page(case(warnings=["a warning"]))
    worst = opened.page.evaluate("""() => {
      const parse = (c) => c.match(/[\\d.]+/g).map(Number);
      const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      let worst = [99, ''];
      for (const e of document.querySelectorAll('p, h1, h2, li span, dt, dd, label, legend, button, summary, output')) {
        if (!e.textContent.trim() || !e.offsetParent || e.disabled || e.closest('.corner')) continue;
        let box = e, back = [0, 0, 0, 0];
        for (; box; box = box.parentElement) {
          const c = parse(getComputedStyle(box).backgroundColor);
          if (c.length < 4 || c[3] > 0.99) { back = c; break; }
        }
        const a = light(parse(getComputedStyle(e).color)), b = light(back);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst[0]) worst = [ratio, e.textContent.trim().slice(0, 40)];
      }
      return worst; }""")
    assert worst[0] >= 4.5, worst


def test_a_real_series_at_full_resolution(open_page: Any, tmp_path: Path) -> None:
    """Slices of 512 x 512 in HU: a few MB, every pixel as it was."""
    from hemlearn.data.readers.dicom import read_dicom

    files = sorted(real_data("ge_head_ct_series").glob("*.dcm"))[::4]
    hu = np.stack([read_dicom(file, 0, "CT") for file in files])
    count = len(hu)
    made = case(slices=count, hu=hu)
    opened = open_page(made, max_side=None)
    assert (tmp_path / "page.html").stat().st_size < 15e6 * count / 40
    assert opened.problems == []
    opened.page.uncheck("#cam")
    opened.shows(3, "")
    index = opened.drawn()[0]
    grey = np.clip(hu[index] * (255.0 / 80), 0, 255)
    assert np.abs(opened.pixels()[..., 0] - grey).max() <= 1
