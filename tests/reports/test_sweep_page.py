"""The comparison of a sweep: order, main effects and heat maps, families of tests, and a page that is worked with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from hemlearn.compare.comparison import Comparison, compare
from hemlearn.compare.contrasts import PRIMARY
from hemlearn.compare.page import triangle
from hemlearn.evaluation.auroc import components

from .conftest import kfold_run


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """Three backbones, with and without pretraining, two folds of each: six groups of two slices a patient."""
    root = tmp_path_factory.mktemp("swept")
    names = [("resnet18", True), ("resnet18", False), ("swin", True), ("swin", False), ("vit", True), ("vit", False)]
    for i, (backbone, pretrained) in enumerate(names):
        for fold in range(2):
            noise = 1.5 + (0.0 if pretrained else 3.0) + 0.6 * (i // 2)
            settings: dict[str, Any] = {"backbone__name": backbone, "backbone__pretrained": pretrained}
            kfold_run(root / "runs", f"{i}{fold}" * 6, fold, slices=2, noise=noise, **settings)
    return compare(root / "runs", root / "out", figures=("pdf", "svg")), root / "out"


def test_groups_stand_in_the_order_of_the_headline_metric(swept: tuple[Comparison, Path]) -> None:
    result, _ = swept
    patient = result.table[(result.table["level"] == "patient") & (result.table["label"] == "")]
    areas = patient.set_index("group")["auroc"]
    assert [areas[name] for name in result.order] == sorted(areas, reverse=True)
    (sheet,) = result.sheets()
    assert list(dict.fromkeys(row["group"] for row in sheet.rows)) == result.order
    assert list(dict.fromkeys(row["group"] for row in result.decisions)) == result.order


def test_a_main_effect_is_the_mean_difference_with_the_variance_of_the_whole(swept: tuple[Comparison, Path]) -> None:
    result, _ = swept
    (found,) = result.factors
    effect = next(e for e in found.effects if e.key == "backbone.pretrained" and e.contrast is not None)
    c = effect.contrast
    assert c is not None
    assert (c.first, c.second, c.note) == ("pretrained=false", "pretrained=true", "mean over 3 pairs of groups")
    cases = [entry.cases["patient"] for entry in result.entries]
    sign = np.array([1 if entry.group.cell("backbone.pretrained") == "false" else -1 for entry in result.entries]) / 3
    areas, with_finding, without = components(cases[0].y[:, 0], np.stack([item.p[:, 0] for item in cases]))
    assert c.difference == pytest.approx(sign @ areas)
    # DeLong's variance of the weighted sum: that of the patients' own contributions.
    variance = sum(np.var(sign @ part, ddof=1) / part.shape[1] for part in (with_finding, without))
    assert c.p == pytest.approx(2 * norm.sf(abs(sign @ areas) / np.sqrt(variance)), rel=1e-6)
    assert (c.high - c.low) / 2 == pytest.approx(norm.ppf(0.975) * np.sqrt(variance))
    means = {e.value: e.mean for e in found.effects if e.key == "backbone.pretrained"}
    assert means["false"] - means["true"] == pytest.approx(c.difference)  # the grid is complete


def test_a_heat_map_holds_the_grid(swept: tuple[Comparison, Path]) -> None:
    result, out = swept
    (grid,) = result.factors[0].grids
    assert (grid.row_key, grid.rows) == ("backbone.name", ["resnet18", "swin", "vit"])
    assert (grid.column_key, grid.columns) == ("backbone.pretrained", ["true", "false"])
    rows = result.table[(result.table["level"] == "patient") & (result.table["label"] == "")]
    for name, line in zip(grid.rows, grid.cells, strict=True):
        for pretrained, cell in zip(grid.columns, line, strict=True):
            own = rows[(rows["backbone.name"] == name) & (rows["backbone.pretrained"] == pretrained)]
            assert (cell.value, cell.groups) == (pytest.approx(own["auroc"].iloc[0]), 1)
    told = json.loads((out / "compare.json").read_text())["factors"][0]
    assert told["grids"][0]["cells"][0][0]["groups"] == 1


def test_p_values_are_corrected_within_the_question_they_answer(swept: tuple[Comparison, Path]) -> None:
    result, _ = swept
    assert result.families[PRIMARY] == 15  # every pair of six groups
    for family, size in result.families.items():
        own = [c for c in result.contrasts if c.family == family and c.made]
        assert len(own) == size
        np.testing.assert_allclose([c.p_holm for c in own], multipletests([c.p for c in own], method="holm")[1])
    assert {c.metric for c in result.contrasts if c.family == PRIMARY} == {"auroc"}
    assert {c.level for c in result.contrasts if c.family == PRIMARY} == {"patient"}
    assert result.tests["family"].iloc[0] in result.families


def test_a_matrix_only_where_it_tells_something(swept: tuple[Comparison, Path]) -> None:
    result, _ = swept
    pairs = [c for c in result.contrasts if c.family == PRIMARY]
    found = triangle(pairs, result.ranked)
    assert found is not None
    assert len(found["cells"]) == 15  # each pair once
    assert all(c.difference >= 0 for c in found["cells"].values())  # the better group first
    alike = [replace(c, p_holm=1.0) for c in pairs]
    assert triangle(alike, result.ranked) is None  # no pair differs


def test_figures_for_a_paper_lie_beside_the_pictures(swept: tuple[Comparison, Path]) -> None:
    result, out = swept
    for name in ("roc", "pr", "calibration", "decision"):
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (out / f"{name}.svg").read_text()
    assert out / "roc.pdf" in result.files
    before = (out / "roc.pdf").read_bytes(), (out / "roc.svg").read_bytes()
    result.write(out, figures=("pdf", "svg"))
    assert before == ((out / "roc.pdf").read_bytes(), (out / "roc.svg").read_bytes())
    result.write(out)  # those of an earlier call go
    assert not (out / "roc.pdf").exists()


@pytest.fixture(params=[(1400, 900), (390, 844)])
def opened(swept: tuple[Comparison, Path], browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    _, out = swept
    context = browser.new_context(viewport=dict(zip(("width", "height"), request.param, strict=True)), offline=True)
    page = context.new_page()
    page.problems, page.asked = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto((out / "compare.html").as_uri())
    yield page
    assert page.problems == []
    assert len(page.asked) == 1  # the file itself
    context.close()


def test_the_table_is_sorted_filtered_and_its_columns_chosen(opened: Any, swept: tuple[Comparison, Path]) -> None:
    result, _ = swept
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.viewport_size["width"]
    rows = opened.locator("table.results tbody tr:visible")
    opened.locator(".levels").select_option("")
    assert rows.count() == len(result.sheets()[0].rows)
    opened.locator(".filter").fill("swin -false")
    texts = rows.all_inner_texts()
    assert len(texts) == 2
    assert all("swin" in text and "true" in text for text in texts)  # slices, and series = patients
    opened.locator(".filter").fill("backbone=swin, pretrained=true")  # as groups are called elsewhere on the page
    assert rows.all_inner_texts() == texts
    opened.locator(".filter").fill("")
    button = opened.locator("table.results th button").filter(has_text=re.compile("^AUROC$"))
    button.focus()  # by the keyboard
    opened.keyboard.press("Enter")
    place = button.evaluate("b => b.parentElement.cellIndex")
    cells = [float(t.split()[0]) for t in opened.locator(f"table.results td:nth-child({place + 1})").all_inner_texts()]
    assert cells == sorted(cells, reverse=True)
    assert button.evaluate("b => b.parentElement.getAttribute('aria-sort')") == "descending"
    button.locator("xpath=..").click(position={"x": 2, "y": 12})  # beside the words
    assert button.evaluate("b => b.parentElement.getAttribute('aria-sort')") == "ascending"
    assert not opened.get_by_role("columnheader", name="Brier score").is_visible()
    opened.locator(".choose summary").click()
    opened.get_by_label("Brier score").check()
    assert opened.locator("table.results th", has_text="Brier score").evaluate("h => !h.hidden")


def test_a_group_is_hidden_in_every_plot_at_once(opened: Any) -> None:
    plots = opened.locator(".plot:has(.g0)").count()
    assert plots >= 6  # four of slices, two of patients
    assert opened.locator(".plot .g0.off").count() == 0
    opened.locator("[data-layer=g0]").uncheck()
    assert opened.locator(".plot .g0:not(.off)").count() == 0
    assert opened.locator(".curves .g0:not(.off)").count() == 0
    assert opened.locator(".plot .g1:not(.off)").count() > 0
    opened.locator("[data-show=all]").click()
    assert opened.locator(".plot .off").count() == 0
