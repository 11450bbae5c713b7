"""The file of a case page: what it holds, what it leaves out, and that nothing in it can become markup or script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hemlearn.reading.case import WITHHELD, as_json, pack_bytes, pack_slice, reduced, render_case_page, write_case_page
from hemlearn.util.errors import DataError
from tests.reports.cases import case

NASTY = "</script><img src=x onerror=alert(1)><!-- \u2028 & \" ' {{script}} \\u003c"


def unpack_slice(text: str, shape: tuple[int, int]) -> NDArray[np.int16]:
    """What :func:`pack_slice` packed."""
    height, width = shape
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).astype(np.int32)
    folded = (planes[: height * width] | (planes[height * width :] << 8)).reshape(shape)
    error = (folded >> 1) ^ -(folded & 1)
    out = np.zeros(shape, dtype=np.int32)
    for row in range(height):
        for column in range(width):
            a = out[row, column - 1] if column else (out[row - 1, column] if row else 0)
            b = out[row - 1, column] if row else a
            c = out[row - 1, column - 1] if row and column else b
            guess = min(a, b) if c >= max(a, b) else max(a, b) if c <= min(a, b) else a + b - c
            out[row, column] = ((guess + error[row, column] + 32768) & 65535) - 32768
    return out.astype(np.int16)


class Reader(HTMLParser):
    """Elements and the text of scripts, as a browser would take them apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.policy = self.title = self.code = self.style = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self._open = tag
        if tag == "script":
            self._open = f"script:{found.get('id', 'code')}"
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])

    def handle_data(self, data: str) -> None:
        kind, _, name = self._open.partition(":")
        if kind == "script" and name == "code":
            self.code += data
        elif kind == "script":
            self.scripts[name] = self.scripts.get(name, "") + data
        elif kind == "style":
            self.style += data
        elif kind == "title":
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def content_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Reader(text).scripts["case"])
    return found


def test_slices_come_back_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    for pixels in (
        rng.integers(-32768, 32768, (33, 21)),
        rng.normal(40, 8, (20, 50)),
        np.full((4, 4), -1000),
        np.array([[-32768, 32767], [32767, -32768]]),
    ):
        exact = np.rint(pixels).astype(np.int16)
        assert np.array_equal(unpack_slice(pack_slice(exact), exact.shape), exact)


def test_a_head_is_packed_well_below_its_size() -> None:
    made = case(slices=2, side=256)
    packed = sum(len(pack_slice(one)) for one in made.hu)
    assert packed < 0.5 * made.hu.nbytes


def test_bytes_are_a_zlib_stream() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert zlib.decompress(base64.b64decode(pack_bytes(values))) == values.tobytes()


def test_reduction_averages_and_is_told() -> None:
    made = case(side=96)
    small = reduced(made.hu, 48)
    assert small.shape == (9, 48, 48)
    np.testing.assert_allclose(small[0, 20:28, 20:28].mean(), made.hu[0, 40:56, 40:56].mean(), atol=1)
    assert reduced(made.hu, None) is made.hu
    content = content_of(render_case_page(made, max_side=48))
    assert content["facts"]["Shown at"] == "48 x 48 of 96 x 96 pixels"
    assert content["boxes"][0] == [0, 0, 48, 48]
    assert "Shown at" not in content_of(render_case_page(made))["facts"]


def test_the_page_holds_the_case(tmp_path: Path) -> None:
    made = case()
    size = write_case_page(tmp_path / "sub" / "page.html", made)
    text = (tmp_path / "sub" / "page.html").read_text(encoding="utf-8")
    assert size == len(text.encode())
    content = content_of(text)
    assert content["slices"] == 9
    assert content["labels"] == ["any", "epidural", "subdural"]
    np.testing.assert_allclose(content["slice_probs"][0], made.slice_probs[:, 0], atol=1e-6)
    np.testing.assert_allclose(content["intervals"], made.intervals, atol=1e-6)
    assert set(content["cams"]) == {"any", "epidural", "subdural"}
    packed = Reader(text).scripts["pixels3"]
    assert np.array_equal(unpack_slice(packed, (96, 96)), made.hu[3])
    assert "Research use only" in text
    assert [name for name, _, _ in content["windows"]] == ["Brain", "Subdural", "Stroke", "Bone", "Soft"]
    assert list(tmp_path.joinpath("sub").iterdir()) == [tmp_path / "sub" / "page.html"]


def test_no_text_becomes_markup_or_script() -> None:
    made = case(
        series=NASTY,
        ground={NASTY: NASTY},
        card={NASTY: NASTY},
        warnings=[NASTY],
        calibration=NASTY,
        cam_note=NASTY,
        interval_note=NASTY,
        labels=("any", NASTY, "subdural"),
        cams={},
        patient="",
    )
    text = render_case_page(made)
    plain = render_case_page(case(warnings=["x"]))
    reader = Reader(text)
    assert reader.tags == Reader(plain).tags
    assert NASTY in reader.title
    content = json.loads(reader.scripts["case"])
    assert content["series"] == NASTY
    assert content["labels"][1] == NASTY
    assert content["warnings"] == [NASTY]
    raw = text[text.index('id="case"') : text.index("</script>", text.index('id="case"'))].partition(">")[2]
    assert not re.search(r"[<>&\u2028]", raw)


def test_json_for_a_script_is_still_json() -> None:
    assert json.loads(as_json({"a": NASTY})) == {"a": NASTY}
    with pytest.raises(ValueError):
        as_json({"a": float("nan")})


def test_the_policy_allows_this_script_and_style_and_nothing_else() -> None:
    reader = Reader(render_case_page(case()))
    for kind, text in (("script", reader.code), ("style", reader.style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in reader.policy
    assert "default-src 'none'" in reader.policy
    assert "unsafe" not in reader.policy
    assert "style=" not in re.sub(r"<script.*?</script>", "", render_case_page(case()), flags=re.DOTALL)


def test_nothing_is_fetched_from_elsewhere() -> None:
    text = render_case_page(case())
    assert not re.search(r"(?:src|href)\s*=", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    addresses = set(re.findall(r"https?://[^\s\"']+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a namespace, not an address that is asked


def test_patients_are_not_named_unless_asked() -> None:
    made = case(
        series="folder/Doe_Jane/1.dcm",
        warnings=["DOE^JANE: slice 4 is damaged"],
        card={"Data": "Doe collection"},
        ground={
            "PatientName": "DOE^JANE",
            "Patient's Birth Date": "19600101",
            "PatientAge": "061Y",
            "Patients": "1",
            "ReferringPhysicianName": "HOUSE",
            "Note": "scan of jane doe, Janet",
            "Spacing": "5 mm",
        },
    )
    text = render_case_page(made)
    assert not re.search(r"(?i)doe|\bjane\b|19600101|HOUSE", json.dumps(content_of(text)))
    content = content_of(text)
    assert content["facts"]["PatientName"] == WITHHELD
    assert content["facts"]["PatientAge"] == "061Y"
    assert content["facts"]["Patients"] == "1"
    assert content["facts"]["Note"] == f"scan of {WITHHELD} {WITHHELD}, Janet"
    assert content["facts"]["Spacing"] == "5 mm"
    assert content["series"] == f"folder/{WITHHELD}_{WITHHELD}/1.dcm"
    shown = content_of(render_case_page(made, show_patient=True))
    assert shown["patient"] == "DOE^JANE"
    assert shown["facts"]["PatientName"] == "DOE^JANE"
    assert not re.search(r"(?i)doe", Reader(text).title)


def test_a_short_number_is_no_name() -> None:
    found = content_of(render_case_page(case(patient="28", series="28", ground={"Slices": "28"})))
    assert (found["series"], found["facts"]["Slices"]) == ("28", "28")
    found = content_of(render_case_page(case(patient="0012345", series="study 0012345 / 2")))
    assert found["series"] == f"study {WITHHELD} / 2"


def test_what_is_undefined_is_null() -> None:
    made = case()
    probs = made.slice_probs.copy()
    probs[2] = np.nan
    z = made.z_mm.astype(float)  # type: ignore[union-attr]
    z[0] = np.nan
    content = content_of(render_case_page(case(slice_probs=probs, z_mm=z, intervals=None, attribution=None)))
    assert content["slice_probs"][0][2] is None
    assert content["z"][0] is None
    assert content["intervals"] is None
    assert content["attribution"] == {}


def test_pictures_and_mr_have_windows_of_their_own() -> None:
    grey = np.clip(case().hu, 0, 255).astype(np.uint8)
    assert content_of(render_case_page(case(hu=grey, unit="display")))["windows"] == [["As stored", 127.5, 255.0]]
    found = content_of(render_case_page(case(hu=(case().hu + 1100).astype(np.int16), unit="signal")))["windows"]
    assert [name for name, _, _ in found] == ["1st-99th percentile", "Full range"]
    assert all(width >= 1 for _, _, width in found)


def test_oblong_pixels_keep_the_shape_of_the_head() -> None:
    assert content_of(render_case_page(case(pixel_mm=(0.5, 1.0))))["ratio"] == 2.0
    assert content_of(render_case_page(case(pixel_mm=None)))["ratio"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slice_probs": np.zeros((4, 3))}, r"slice_probs has shape \(4, 3\), expected \(9, 3\)"),
        ({"series_probs": np.zeros(2)}, "series_probs"),
        ({"z_mm": np.zeros(3)}, "z_mm"),
        ({"cams": {"any": np.zeros((8, 6, 6), np.uint8)}}, "cams any"),
        ({"cams": {"x": np.zeros((9, 6, 6), np.uint8)}}, "maps of"),
        ({"attribution": np.zeros(3)}, "attribution"),
        ({"hu": np.zeros((9, 4), np.int16)}, "hu has shape"),
        ({"unit": "K"}, "unit 'K'"),
        ({"labels": ("a", "a", "b")}, "labels"),
        ({"intervals": np.zeros((3, 3))}, "intervals"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_case_page(tmp_path / "page.html", case(**change))
    assert not (tmp_path / "page.html").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_case_page(tmp_path / "file" / "page.html", case())
