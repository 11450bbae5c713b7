"""Sequence runs through the real command line: a slice run trained first and shared by a sweep, and end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from hemlearn.__main__ import main
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.reading.predict import predict_manifest
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import load
from hemlearn.util.errors import RunError
from tests.end_to_end.conftest import check_complete, run_folders

SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=16",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
    "split.val_fraction=0.3",
    "split.test_fraction=0.3",
    "trainer.max_epochs=1",
    "task.threshold=0.5",
]
COARSE = Grid(rows=64, cols=64, pixel_mm=3.6, slices=12, thickness_mm=12, samples=1)
LABELS = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
STAGE = ["stage.set.trainer.max_epochs=1", "stage.set.augmentation.steps=[]"]


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "rsna"
    write_phantom("rsna", out, patients=14, seed=0, grid=COARSE)
    return out


@pytest.fixture
def train(rsna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HEMLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(
        [
            "train",
            *[a for a in arguments if a.startswith("-")],
            f"data.root={rsna}",
            *SMALL,
            *[a for a in arguments if not a.startswith("-")],
        ]
    )


def by_name(name: str) -> list[Path]:
    return [folder for folder in run_folders(Path("runs")) if folder.parent.name == name]


def test_one_command_trains_both_stages_and_a_sweep_shares_the_first(train, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    sweep = [
        "-m",
        "experiment=burduja2020",
        "features=pca",
        "features.k=4,8",
        "sequence.hidden=8",
        "sequence.layers=1",
        *STAGE,
    ]
    assert train(*sweep) == 0
    slices, sequences = by_name("burduja2020_slices"), by_name("burduja2020")
    assert (len(slices), len(sequences)) == (1, 2)
    for folder in (*slices, *sequences):
        check_complete(folder, LABELS)
    for folder in sequences:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert Path(config["backbone"]["weights"]).resolve() == slices[0].resolve()
        assert json.loads((folder / "provenance.json").read_text())["stage"]["experiment"] == "burduja2020_slices"
        frame = pd.read_parquet(folder / "predictions.parquet")
        assert frame["series_id"].nunique() >= 6
        assert (frame.groupby("series_id")["series_prob_any"].nunique() == 1).all()
        metrics = json.loads((folder / "metrics.json").read_text())
        for level in ("slice", "series", "patient"):
            assert metrics["test"][level]["weighted_log_loss"]["value"] > 0
            assert metrics["nulls"]["position"]["test"][level]["labels"]["any"]["auroc"]["value"] is not None
    # The stage and the sequence run test the same patients, and no patient stands on two sides.
    splits = [pd.read_csv(folder / "split.csv", dtype=str) for folder in (*slices, *sequences)]
    assert all(split.equals(splits[0]) for split in splits)
    assert splits[0]["patient_id"].is_unique
    capsys.readouterr()
    assert train(*sweep) == 0
    assert "2 jobs: 0 complete, 2 skipped" in capsys.readouterr().out
    accounts = list(Path("cache/embeddings").glob("*/complete.json"))
    assert len(accounts) == 1  # one pass for both jobs and both sweeps


@pytest.fixture(scope="module")
def finished(rsna: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the runs of ``experiment=rsna``: the slice run and the calibrated sequence run; only read."""
    folder = tmp_path_factory.mktemp("finished")
    words = ["experiment=rsna", "sequence.hidden=8", "task.calibration=platt", *STAGE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["train", f"data.root={rsna}", *SMALL, *words]) == 0
    made = run_folders(folder / "runs")
    assert sorted(path.parent.name for path in made) == ["rsna", "rsna_slices"]
    for path in made:
        check_complete(path, LABELS)
    return folder


def _predicts_as_tested(folder: Path) -> None:
    run = load(folder)
    again = predict_manifest(run, build_datamodule(run.config).manifest).set_index("slice_id")
    for row in pd.read_parquet(folder / "predictions.parquet").itertuples():
        found = again.loc[row.slice_id]
        for label in run.config.task.labels:  # the run read cached embeddings, this ran the network
            assert found[f"prob_{label}"] == pytest.approx(getattr(row, f"prob_{label}"), abs=1e-4)
            assert found[f"series_prob_{label}"] == pytest.approx(getattr(row, f"series_prob_{label}"), abs=1e-4)


def test_answers_of_a_slice_run_are_smoothed_along_the_series(
    finished: Path, rsna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("HEMLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = ["experiment=rsna", "sequence=smoothed", "sequence.width_mm=12", "name=smoothed", *STAGE]
    assert main(["train", f"data.root={rsna}", *SMALL, *words]) == 0
    (folder,), (own,) = by_name("smoothed"), by_name("rsna_slices")
    _predicts_as_tested(folder)
    plain, smooth = (pd.read_parquet(f / "predictions.parquet").set_index("slice_id") for f in (own, folder))
    rough = [frame.groupby("series_id")["prob_any"].apply(lambda p: p.diff().abs().sum()) for frame in (plain, smooth)]
    assert (rough[1] < rough[0]).all()


def test_a_finished_run_predicts_as_it_was_tested_and_submits(
    finished: Path, rsna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (folder,) = by_name("rsna")
    assert load(folder).calibration is not None
    _predicts_as_tested(folder)
    assert main(["submit", f"run={folder}", f"data.root={rsna}", "out=out/submission.csv"]) == 0
    sample, made = (pd.read_csv(file) for file in (rsna / "stage_2_sample_submission.csv", "out/submission.csv"))
    assert made["ID"].tolist() == sample["ID"].tolist()
    assert made["Label"].between(0, 1).all()
    assert made["Label"].nunique() > 10
    (folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(RunError, match=r"best\.ckpt"):
        load(folder)


def test_weights_that_have_seen_the_test_patients_are_refused(  # type: ignore[no-untyped-def]
    finished: Path, train, capsys: pytest.CaptureFixture[str]
) -> None:
    """On its own split the sequence run took these weights (``finished``); with the sides exchanged it may not."""
    (weights,) = (folder for folder in run_folders(finished / "runs") if folder.parent.name == "rsna_slices")
    use = ["experiment=rsna", "stage.experiment=null", f"backbone.weights={weights}", "backbone.pretrained=true"]
    sides = pd.read_csv(weights / "split.csv", dtype=str)
    sides["split"] = sides["split"].map({"train": "test", "test": "train", "val": "val"})
    sides.to_csv("turned.csv", index=False)
    assert train(*use, "sequence.hidden=8", "split=file", "split.file=turned.csv") == 1
    assert "has learnt from" in capsys.readouterr().out


def test_series_labels_alone_reach_the_predictions(train) -> None:  # type: ignore[no-untyped-def]
    assert (
        train(
            "experiment=rsna",
            "stage.experiment=null",
            "sequence.probabilities=none",
            "task.level=series",
            "sequence.hidden=8",
        )
        == 0
    )
    (folder,) = by_name("rsna")
    frame = pd.read_parquet(folder / "predictions.parquet")
    np.testing.assert_allclose(frame["prob_any"], frame["series_prob_any"])
    assert set(json.loads((folder / "metrics.json").read_text())["test"]) == {"series", "patient"}


def test_labels_of_slices_judge_what_labels_of_series_have_trained(train) -> None:  # type: ignore[no-untyped-def]
    weak = ["task.labels_from=series", "task.aggregate=model", "sequence=clam", "features=anova", "features.k=8"]
    assert train("data=rsna", "task=subtypes", "freeze=head", "augmentation=none", *weak, "name=weak") == 0
    (folder,) = by_name("weak")
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert (frame["prob_any"] <= frame.groupby("series_id")["prob_any"].transform("max")).all()
    assert frame.groupby("series_id")["prob_any"].nunique().max() > 3
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["slice"]["labels"]["any"]["auroc"]["value"] is not None
    assert metrics["thresholds"]["slice"] == metrics["thresholds"]["series"]  # chosen without labels of slices


def test_a_3d_network_stands_beside_the_others(  # type: ignore[no-untyped-def]
    train, rsna: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data=rsna", "task=volume3d", "task.labels=[any]", "channels=brain_subdural_soft", "augmentation=none"]
    tiny = ["backbone=resnet18_3d", "backbone.options={block_inplanes: [4, 4, 4, 8]}", "volume.size=[8, 32, 32]"]
    tiny += ["backbone.name=resnet18_3d", "volume.spacing=[20, 7, 7]"]
    assert train(*words, *tiny, "name=deep") == 0
    (folder,) = by_name("deep")
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert set(json.loads((folder / "metrics.json").read_text())["test"]) == {"series", "patient"}
    assert (frame["prob_any"] == frame["series_prob_any"]).all()
    assert main(["predict", f"run={folder}", f"input={rsna / 'stage_2_train'}", "out=out"]) == 0
    found = pd.read_csv("out/series.csv").set_index("series_id")
    for row in frame.drop_duplicates("series_id").itertuples():
        assert found.loc[row.series_id, "prob_any"] == pytest.approx(row.series_prob_any, abs=1e-5)
    _predicts_as_tested(folder)
    capsys.readouterr()
    for command in (["predict", f"input={rsna}", "page=true"], ["explain"]):
        assert main([*command, f"run={folder}", "out=maps"]) == 1
        assert "there are no maps of slices" in capsys.readouterr().err
        assert not Path("maps").exists()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save("one.png")
    Path("mine.csv").write_text("path,patient_id\none.png,p\n")
    assert main(["predict", f"run={folder}", "input=mine.csv", "out=pictures"]) == 1
    assert "a 3D network needs a whole series whose spacing is known: give DICOM or NIfTI" in capsys.readouterr().out
    assert main(["export", f"run={folder}", "out=model.onnx", "check=0"]) == 1
    assert "3D networks are not exported" in capsys.readouterr().err
    assert train(*words, *tiny, "volume.spacing=[100, 7, 7]", "name=other") == 1
    assert "thinner than the 4 voxels of 100 mm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["experiment=rsna", "stage.experiment=rsna_slice"], "did you mean 'rsna_slices'"),
        (["experiment=rsna", "stage.set.trainer.max_epoch=1"], "stage.set.trainer.max_epoch: unknown key"),
        (["experiment=rsna", "stage.experiment=burduja2020"], "itself a sequence run"),
        (["experiment=rsna", "stage.experiment=null"], "it reads a slice run's probabilities"),
        (["experiment=burduja2020", "augmentation=flip_rotate", *STAGE], "features.name=pca"),
        (["features=pca"], "needs a sequence model"),
        (["task.labels_from=series"], "only a sequence model learns from labels of series"),
        (["experiment=rsna", "task.labels_from=series"], "stage.experiment"),
        (["sequence=mean", "task.labels_from=series", "split.by=slice", "split.allow_leak=true"], "whole series"),
        (["sequence=smoothed", "task.labels_from=series"], "use smooth_attention or another"),
        (["sequence=mean", "task.labels_from=series"], "train the series' own output: use model"),
        (["sequence=gruu"], "gru"),
    ],
)
def test_impossible_combinations_say_why(
    train,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,  # type: ignore[no-untyped-def]
    arguments: list[str],
    wanted: str,
) -> None:
    assert train(*arguments) != 0
    captured = capsys.readouterr()
    assert wanted in captured.out + captured.err + caplog.text
