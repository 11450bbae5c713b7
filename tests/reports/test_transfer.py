"""The transfer matrix of `hemlearn compare`: trained on the row, tested on the column."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from hemlearn.commands.runs import compare as main
from hemlearn.compare.comparison import compare
from hemlearn.evaluation.auroc import auroc_interval

from .conftest import configuration, predictions, write_run


def run(root, name, parts, trained, *, left_out=None, evaluated="", **changes):
    """A run tested on patients of some data sets, trained on others; or an evaluation of such a run on another set."""
    config = configuration(split__left_out=left_out, data__name=evaluated or "multi", **changes)
    tests = []
    for k, part in enumerate(parts):
        rows = predictions(config, range(100 * k, 100 * k + 60), 3, 2.0 + k)
        if not evaluated:
            for column in ("slice_id", "series_id", "patient_id"):
                rows[column] = f"{part}/" + rows[column]
        tests.append(rows)
    val = predictions(config, range(400, 430), 3, seed=1, split="val")
    made = {"source": "multi", "parts": {"train": trained, "test": parts}}
    told = {"data": made}
    if evaluated:
        told = {"evaluated": "external", "run": {"data": made}, "data": {"source": evaluated}}
    checksums = {"checksums": {"manifest": evaluated or "m"}}
    return write_run(root, name * 12, config, pd.concat([val, *tests], ignore_index=True), provenance=told | checksums)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    run(folder, "a", ["ours"], ["theirs", "toy"], left_out="ours")
    run(folder, "b", ["theirs"], ["ours", "toy"], left_out="theirs")
    run(folder, "c", ["ours"], ["theirs", "toy"], left_out="ours", evaluated="cq500")
    run(folder, "d", ["ours", "toy"], ["ours", "toy"], split__seed=7)
    return folder


def test_cells_are_the_cases_of_their_data_set(root):
    cells = compare(root).transfer.table().set_index(["trained", "tested", "level"])
    assert {key for key in cells.index if key[2] == "slice"} == {
        ("theirs + toy", "ours", "slice"),
        ("ours + toy", "theirs", "slice"),
        ("theirs + toy", "cq500", "slice"),
        ("ours + toy", "ours", "slice"),
        ("ours + toy", "toy", "slice"),
    }
    assert cells.loc[("ours + toy", "toy", "slice"), "own"]
    own = cells.loc[("ours + toy", "ours", "slice")]
    frame = pd.read_parquet(root / ("d" * 12) / "predictions.parquet").query("split == 'test'")
    rows = frame[frame["patient_id"].str.startswith("ours/")]
    area = auroc_interval(rows["label_hemorrhage"], rows["prob_hemorrhage"], rows["patient_id"])
    assert own[["auroc", "auroc_low", "auroc_high"]].tolist() == pytest.approx([area.value, area.low, area.high])
    assert own[["n", "patients"]].tolist() == [180, 60]


def test_every_output_shows_the_matrix(root, tmp_path, capsys):
    assert main([str(root), f"out={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "transfer, slices" in shown
    assert "n = 180 of 60 patients" in shown
    for name in ("compare.html", "compare.md"):
        text = (tmp_path / name).read_text()
        assert "Transfer between data sets" in text
        assert "theirs + toy" in text
    told = json.loads((tmp_path / "compare.json").read_text())["transfer"]
    assert len(told) == len(pd.read_csv(tmp_path / "transfer.csv")) == 10


def test_none_where_every_run_was_tested_on_its_own_data(root, tmp_path):
    made = compare(root / ("d" * 12), tmp_path)
    assert made.transfer is None
    assert not (tmp_path / "transfer.csv").exists()


def test_two_recipes_have_a_matrix_each(root, tmp_path):
    for name, size in (("e", 64), ("f", 96)):
        run(tmp_path, name, ["ours"], ["theirs"], left_out="ours", backbone__drop_rate=size / 100)
    titles = [title for title, *_ in compare(tmp_path).transfer.sheets()]
    assert titles == [f"drop_rate={rate}, {level}" for rate in (0.64, 0.96) for level in ("slices", "patients")]


def test_where_the_parts_lay_makes_no_group(tmp_path):
    for name, seed, place in (("e", 0, "/there"), ("f", 1, "/elsewhere")):
        parts = {"ours": {"root": place}, "theirs": None}
        run(tmp_path, name, ["ours"], ["theirs"], left_out="ours", data__parts=parts, seed=seed)
    assert len(compare(tmp_path).entries) == 1


@pytest.mark.parametrize(
    ("source", "made", "tested"),
    [
        ("table", {"source": "table"}, ("table", "table, other files", False)),
        (
            "ct_ich",
            {"source": "multi", "parts": {"train": ["ours"]}, "contents": {"k": "ours/"}},
            ("ours", "ours", True),
        ),
    ],
)
def test_an_evaluation_is_called_by_its_content(tmp_path, source, made, tested):
    """Another table is other data, whatever it is called; a part is the same data under another name."""
    config = configuration()
    rows = pd.concat([predictions(config, range(400, 430), 3, split="val"), predictions(config, range(60), 3)])
    for name, theirs in (("e", made), ("f", {"source": "multi", "parts": {"train": ["toy"]}})):
        told = {
            "evaluated": "external",
            "run": {"data": theirs, "checksums": {"manifest": "m"}},
            "data": {"source": source},
        }
        told |= {"checksums": {"manifest": "k"}}
        write_run(
            tmp_path,
            name * 12,
            configuration(seed=ord(name), backbone__drop_rate=0.1 if name == "e" else 0.2),
            rows,
            provenance=told,
        )
    cells = compare(tmp_path).transfer.table()
    assert tested in set(cells[["trained", "tested", "own"]].itertuples(index=False, name=None))
