"""The command on a small trained run: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.__main__ import main as hemlearn
from hemlearn.commands.apply import errors
from hemlearn.commands.apply import explain as main
from hemlearn.commands.runs import compare
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.training.run import load
from hemlearn.util.errors import ConfigError, DataError, RunError

SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=8",
    "trainer.max_epochs=1",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
    "augmentation=none",
    "data=ct_ich",
    "split.duplicates=none",
    "task=hemorrhage",
    "task.labels=[any]",
    "split.test_fraction=0.4",
    "split.val_fraction=0.4",
]
GRID = Grid(rows=64, cols=64, pixel_mm=3.6, slices=8, samples=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ct_ich`` with masks, and two runs on it: slices and series."""
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(out / "cache"))
        patch.chdir(out)
        write_phantom("ct_ich_nifti", out / "ct_ich", patients=12, seed=1, grid=GRID)
        for name, extra in (("slices", []), ("series", ["sequence=gru", "sequence.hidden=8", "freeze=head"])):
            status = hemlearn(["train", *SMALL, f"data.root={out / 'ct_ich'}", f"name={name}", *extra])
            assert status == 0
    return out


@pytest.fixture(autouse=True)
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the user who has made the runs."""
    monkeypatch.setenv("HEMLEARN_CACHE", str(place / "cache"))


def run_of(place: Path, name: str) -> Path:
    return next((place / "runs" / name).glob("*/status.json")).parent


@pytest.mark.parametrize("name", ["slices", "series"])
def test_overlays_and_checks_are_written(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([f"run={run_of(place, name)}", f"out={out}", "slices=3", "check=true", "cells=4"]) == 0
    said = capsys.readouterr().out
    content = json.loads((out / "explain.json").read_text())
    assert content["label"] == "any"
    assert content["synthetic"] is True
    assert content["explained"] == ("series" if name == "series" else "slice")
    assert "(4 x 4)" in content["layer"] or "(8 x 8)" in content["layer"]
    assert len(content["slices"]) == 3
    for item in content["slices"]:
        assert Image.open(out / item["file"]).size[0] > 400
        assert item["kind"] in ("hit", "miss", "false alarm")
        if name == "series":
            assert (out / item["series"]["file"]).is_file()
            assert len(item["series"]["most"]) == 5
    game = content["checks"]["pointing"]
    assert game["map"]["n"] == game["centre"]["n"] == game["mean_mask"]["n"] > 5
    assert 0 <= game["map"]["hit_rate"] <= 1
    stages = content["checks"]["randomised"]["stages"]
    assert stages[0]["spearman"] == 1
    assert stages[-1]["share"] == pytest.approx(1.0)
    assert {"hit_rate", "energy_inside"} <= set(stages[-1])
    for text in ("hit rate", "image centre", "randomised head", "rank correlation"):
        assert text in said


def test_a_phantom_without_masks_is_to_be_drawn_anew(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, out = tmp_path / "moved", tmp_path / "out"
    shutil.copytree(place / "ct_ich", moved, ignore=shutil.ignore_patterns("masks"))
    words = [f"run={run_of(place, 'slices')}", f"out={out}", "slices=1", "check=true", "cells=4", f"data.root={moved}"]
    assert main(words) == 0
    checks = json.loads((out / "explain.json").read_text())["checks"]
    assert checks["pointing"] is None
    assert checks["randomised"] is not None
    assert "no pointing game: the phantom has no lesion masks" in checks["note"]
    assert "delete that folder" in capsys.readouterr().out


def test_other_data_can_be_explained(place: Path, tmp_path: Path) -> None:
    write_phantom("ct_ich_nifti", tmp_path / "other", patients=2, seed=9, grid=GRID)
    out = tmp_path / "out"
    assert (
        main(
            [
                f"run={run_of(place, 'slices')}",
                f"out={out}",
                "slices=2",
                "data=ct_ich",
                f"data.root={tmp_path / 'other'}",
                "method=gradcam++",
            ]
        )
        == 0
    )
    content = json.loads((out / "explain.json").read_text())
    assert content["data_root"] == "other"
    assert content["method"] == "gradcam++"


def test_a_runs_own_data_are_found_where_they_lie_now(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "ct_ich", tmp_path / "moved")
    run = run_of(place, "slices")
    words = ["slices=99", f"data.root={tmp_path / 'moved'}", "show_patient=true"]
    assert main([f"run={run}", f"out={tmp_path / 'out'}", *words]) == 0
    content = json.loads((tmp_path / "out" / "explain.json").read_text())
    own = pd.read_parquet(run / "predictions.parquet").set_index("slice_id")
    assert content["data_root"] == "moved"
    for item in content["slices"]:  # of its test patients alone, as it predicted them
        assert own.loc[item["slice_id"], "split"] == "test"
        assert item["probability"] == own.loc[item["slice_id"], "prob_any"]


def test_wrong_calls_are_refused(place: Path, tmp_path: Path) -> None:
    run = f"run={run_of(place, 'slices')}"
    out = f"out={tmp_path / 'out'}"
    for arguments, message in (
        ([out], "run is not set"),
        ([run], "out is not set"),
        ([run, out, "labell=x"], "unknown key 'labell'"),
        ([run, out, "label=subdurall"], "label=subdurall: the run predicts any"),
        ([run, out, "slices=0"], "slices=0"),
        ([run, out, "method=cam"], "method=cam"),
        ([run, out, "check=yes"], "check=yes"),
        ([run, out, "part=train"], "part=train"),
        ([run, out, "cells=900"], "cells=900"),
        ([run, out, "input=/data/case"], "input=/data/case: explain looks at labelled"),
    ):
        with pytest.raises(ConfigError, match=message):
            main(arguments)
    with pytest.raises(RunError, match="no run folder"):
        main([f"run={tmp_path}", out])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        main([run, f"out={tmp_path / 'file' / 'x'}"])
    assert not (tmp_path / "out").exists()


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "hemlearn explain run=" in capsys.readouterr().out


# --- hemlearn errors, on the same runs ---


@pytest.mark.parametrize("name", ["slices", "series"])
def test_errors_are_shown_as_pictures(
    place: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "out", load(run_of(place, name))
    extra = ["figures=pdf,svg"] if name == "slices" else ["pages=false"]
    assert errors([f"run={run.path}", f"out={out}", "each=2", *extra]) == 0
    said = capsys.readouterr().out
    assert "WARNING: SYNTHETIC data" in said
    table = pd.read_csv(out / "errors.csv", keep_default_na=False)
    assert 0 < len(table) <= 6
    units = run.calibration.aggregate(
        run.predictions[run.predictions["split"] == "test"], "series", run.config.task.aggregate
    )
    threshold = run.thresholds["series"]["any"]
    wrong = (units["prob_any"] >= threshold) != (units["label_any"] == 1)
    assert f"{int((wrong & (units['label_any'] == 1)).sum())} missed of {int((units['label_any'] == 1).sum())}" in said
    missed, false = (table[table["kind"] == kind] for kind in ("missed", "false alarm"))
    assert (missed["probability"].astype(float) < threshold).all()
    assert (false["probability"].astype(float) >= threshold).all()
    assert len(missed) + len(false) == min(2, int((wrong & (units["label_any"] == 1)).sum())) + min(
        2, int((wrong & (units["label_any"] == 0)).sum())
    )
    near = table[table["kind"] == "borderline"]["probability"].astype(float)
    others = units["prob_any"][~units["prob_any"].round(6).isin(table["probability"].astype(float).round(6))]
    if len(near) and len(others):
        reach = (np.log(near / (1 - near)) - np.log(threshold / (1 - threshold))).abs().max()
        assert reach <= (np.log(others / (1 - others)) - np.log(threshold / (1 - threshold))).abs().min() + 1e-6
    page = (out / "errors.html").read_text()
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#|pages/)', page)
    assert page.count("brain window, centre 40, width 80 HU") >= len(table)
    assert not [slice_id for slice_id in run.predictions["series_id"].unique() if f">{slice_id}<" in page]
    for row in table.to_dict("records"):
        assert Image.open(out / row["figure"]).size[0] > 400
        assert (out / row["figure"].replace(".png", "_by_slice.png")).is_file()
        if name == "slices":
            assert "page.html" not in row["page"]
            assert "pixels0" in (out / row["page"]).read_text()
            assert (out / row["figure"]).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
            assert "<svg" in (out / row["figure"]).with_suffix(".svg").read_text()
        else:
            assert row["page"] == ""


def test_errors_at_the_level_of_slices_and_on_other_data(place: Path, tmp_path: Path) -> None:
    words = [f"run={run_of(place, 'slices')}", "each=1", "pages=false"]
    assert errors([*words, f"out={tmp_path / 'a'}", "level=slice", "part=val"]) == 0
    assert set(pd.read_csv(tmp_path / "a" / "errors.csv")["level"]) == {"slice"}
    with pytest.raises(ConfigError, match="label=an: the run predicts any; did you mean 'any'"):
        errors([*words, f"out={tmp_path / 'b'}", "label=an"])
    with pytest.raises(ConfigError, match="figures=gif: expected pdf or svg"):
        errors([*words, f"out={tmp_path / 'b'}", "figures=gif"])
    assert not (tmp_path / "b").exists()


def test_a_comparison_shows_the_errors_of_its_best_group(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compare([str(place / "runs" / "slices"), f"out={out}", "pictures=true"]) == 0
    page = (out / "compare.html").read_text()
    assert "brain window, centre 40, width 80 HU" in page
    links = set(re.findall(r'href="(cases/[0-9a-f]+\.html)"', page))
    assert links
    assert all((out / link).is_file() for link in links)
    assert len(list((out / "cases").iterdir())) == len(links)
