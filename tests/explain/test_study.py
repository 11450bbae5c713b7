"""The command on a small trained run: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from hemlearn.__main__ import main as hemlearn
from hemlearn.commands.apply import explain as main
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
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
