"""``Run``: one door to a finished run for every reader, from Python, and closed to code of strangers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from hemlearn.__main__ import main as hemlearn
from hemlearn.commands import apply
from hemlearn.config.schema import schema_keys
from hemlearn.phantom.layouts import write_phantom
from hemlearn.phantom.slab import Grid
from hemlearn.plugins import fingerprints
from hemlearn.reading.find import find_input
from hemlearn.reading.predict import predict_manifest
from hemlearn.reading.series import InputRules
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import Run, load, load_runs
from hemlearn.util.errors import ConfigError, HemlearnError, RunError
from tests.conftest import real_data, seal

SMALL = [
    "backbone.name=test_efficientnet",
    "backbone.pretrained=false",
    "data.image_size=64",
    "data.batch_size=16",
    "logger=none",
    "optimizer.schedule.warmup_epochs=0",
    "trainer.max_epochs=1",
    "augmentation=none",
    "split.val_fraction=0.3",
    "split.test_fraction=0.3",
]
BAND = (0.3, 0.7)
GRID = Grid(rows=64, cols=64, pixel_mm=3.6, slices=12, thickness_mm=12, samples=1)


class Made:
    """Runs of CT volumes (slices with neighbours; series) and of MR volumes on a band of slices, and other volumes."""

    def __init__(self, root: Path) -> None:
        self.ct, self.mr, self.other, self.patients = (root / name for name in ("ct", "mr", "other", "patients"))
        write_phantom("ct_ich_nifti", self.ct, patients=12, seed=2, grid=GRID)
        write_phantom("ct_ich_nifti", self.other, patients=3, seed=7, grid=GRID)
        write_phantom("hydrocephalus_mri", self.mr, patients=12, seed=3, grid=GRID)
        write_phantom("hydrocephalus_mri", self.patients, patients=3, seed=6, grid=GRID)
        call = ["data=ct_ich", f"data.root={self.ct}", *SMALL, "task=subtypes", "task.labels=[any]", "task.kind=binary"]
        call += ["task.calibration=platt", "split.duplicates=none", "task.monitor=log_loss", "task.label_weights=null"]
        assert hemlearn(["train", *call, "name=slices", "channels.neighbours=1", "task.tta=[horizontal]"]) == 0
        assert hemlearn(["train", *call, "name=series", "sequence=gru", "sequence.hidden=8", "freeze=head"]) == 0
        mr = ["data=hydrocephalus_mri", f"data.root={self.mr}", "channels=mr", "task=hydrocephalus", *SMALL]
        assert hemlearn(["train", *mr, "name=mr", f"data.band=[{BAND[0]},{BAND[1]}]", "split.duplicates=none"]) == 0
        self.slices, self.series, self.band = (
            next((root / "runs" / name).glob("*/status.json")).parent for name in ("slices", "series", "mr")
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMLEARN_CACHE", str(root / "cache"))
        patch.chdir(root)
        yield Made(root)


@pytest.fixture(autouse=True)
def cache(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEMLEARN_CACHE", str(made.ct.parent / "cache"))


def copy_of(run: Path, out: Path) -> Path:
    """The same run under another roof."""
    folder = out / run.parent.name / run.name
    shutil.copytree(run, folder)
    return folder


def change(folder: Path, **values: Any) -> Path:
    """Set dotted keys (``__`` for the dot) of a run's config.yaml."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in values.items():
        *parts, last = key.split("__")
        node = config
        for part in parts:
            node = node[part]
        node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    seal(folder)  # as a stranger could
    return folder


# --- from Python --------------------------------------------------------------------------------------------------


def calibrate(folder: Path) -> Run:
    """The run with maps that change probabilities: few patients leave them next to what they were."""
    maps = json.loads((folder / "calibration.json").read_text())
    for own in maps["maps"].values():
        own["any"] |= {"slope": 2.0, "shift": 0.5}
    (folder / "calibration.json").write_text(json.dumps(maps))
    seal(folder)
    return load(folder)


def test_a_run_in_python(made: Made, tmp_path: Path) -> None:
    run = load(made.slices)
    assert run.config.task.labels == ["any"]
    assert run.metrics["test"]["slice"]["auroc"]["n"] == (run.predictions["split"] == "test").sum()
    assert not run.model.training
    assert run.unit == "HU"
    assert run.history["epoch"].tolist() == [0.0]
    assert run.thresholds["slice"]["any"] == run.metrics["thresholds"]["slice"]["any"]["value"]
    file = sorted((made.other / "ct_scans").glob("*.nii*"))[0]
    frame = run.predict(file)
    assert len(frame) == 12
    assert frame["prob_any"].between(0, 1).all()
    assert (np.diff(frame["z_mm"]) > 0).all()
    calibrated = calibrate(copy_of(made.slices, tmp_path)).predict(file, calibrated=True)
    assert not np.allclose(calibrated["prob_any"], frame["prob_any"], atol=1e-4)
    with pytest.raises(ConfigError, match="does not calibrate slices"):
        load(made.band).predict(file, calibrated=True)
    vectors = run.embed(file)
    assert vectors.shape == (12, run.model.backbone.embedding_dim)
    task = run.model  # without flips the head on the embeddings gives the network's own probabilities
    assert np.isfinite(vectors).all()
    assert task.head is not None
    assert load(made.series).embed(str(file)).shape[0] == 12
    assert repr(Run("runs/a/b")) == "Run('runs/a/b')"


def test_best_and_latest_pick_a_run(made: Made) -> None:
    assert load(made.slices.parent / "latest").hash == load(made.slices.parent / "best").hash == made.slices.name
    with pytest.raises(RunError, match="no finished run"):
        load(made.ct / "latest")


# --- one engine ---------------------------------------------------------------------------------------------------


def frames(made: Made, run: Path, layout: str, root: Path, out: Path) -> dict[str, pd.Series]:
    """Probabilities of one data set as predict, evaluate and explain reach them, calibrated where the run is."""
    label = load(run).config.task.labels[0]
    calibrated = str(load(run).config.task.calibration != "none").lower()
    images = root / "ct_scans" if layout == "ct_ich" else root
    call = [f"run={run}", f"input={images}", f"out={out / 'predict'}", "series=all", f"calibrated={calibrated}"]
    assert apply.predict(call) == 0
    data = [f"data={layout}", f"data.root={root}"]
    assert apply.evaluate([f"run={run}", *data, f"out={out / 'evaluate'}", "duplicates=none", "overlap=allow"]) == 0
    shown = ["slices=8", "show_patient=true"]
    assert apply.explain([f"run={run}", *data, f"out={out / 'explain'}", *shown]) == 0
    own = pd.read_parquet(out / "evaluate" / "predictions.parquet")
    told = pd.DataFrame(json.loads((out / "explain" / "explain.json").read_text())["slices"])
    return {
        "predict": pd.read_csv(out / "predict" / "slices.csv")[f"prob_{label}"],
        "evaluate": own.set_index("slice_id")[f"prob_{label}"],
        "explain": told.set_index("slice_id")["probability"],
    }


@pytest.mark.parametrize("name", ["slices", "series", "band"])
def test_predict_evaluate_and_explain_say_the_same_of_every_slice(made: Made, tmp_path: Path, name: str) -> None:
    run = copy_of(getattr(made, name), tmp_path / "runs")
    if name != "band":
        calibrate(run)
    layout, root = ("hydrocephalus_mri", made.patients) if name == "band" else ("ct_ich", made.other)
    found = frames(made, run, layout, root, tmp_path)
    np.testing.assert_allclose(sorted(found["predict"]), sorted(found["evaluate"]), atol=1e-6)
    np.testing.assert_allclose(found["explain"], found["evaluate"].loc[found["explain"].index], atol=1e-6)
    assert len(found["explain"]) > 3


@pytest.mark.parametrize("name", ["slices", "series", "band"])
def test_the_engine_says_what_the_test_of_the_training_run_has_said(made: Made, name: str) -> None:
    run = load(getattr(made, name))
    label = run.config.task.labels[0]
    again = predict_manifest(run, build_datamodule(run.config).manifest).set_index("slice_id")
    own = run.predictions.set_index("slice_id")  # through the slice store
    np.testing.assert_allclose(again.loc[own.index, f"prob_{label}"], own[f"prob_{label}"], atol=1e-5)


def test_a_run_on_a_band_of_slices_is_applied_to_that_band(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = next(path for path in sorted(made.patients.iterdir()) if path.is_dir())
    out = tmp_path / "out"
    assert apply.predict([f"run={made.band}", f"input={folder}", f"out={out}"]) == 0
    run = load(made.band)
    everything = find_input(folder, InputRules(**{**vars(InputRules.of(run)), "band": None}), tmp_path / "x")
    (series,) = everything.series
    z_mm = series.rows["z_mm"].to_numpy()
    share = (z_mm - z_mm.min()) / np.ptp(z_mm)
    inside = (share >= BAND[0] - 1e-9) & (share <= BAND[1] + 1e-9)
    slices = pd.read_csv(out / "slices.csv")
    np.testing.assert_allclose(slices["z_mm"], z_mm[inside], atol=1e-4)
    left_out = pd.read_csv(out / "left_out.csv")
    assert (left_out["reason"] == "outside the band: data.band=[0.3, 0.7]").sum() == (~inside).sum()
    assert (
        f"{inside.sum()} of {len(inside)} slices lie within the run's data.band=[0.3, 0.7]" in capsys.readouterr().out
    )
    patients = pd.read_csv(out / "patients.csv")
    mean = np.array([[slices["prob_hydrocephalus"].mean()]])
    mapped = run.calibration.of_units(mean, "patient")[0, 0]
    assert mapped != pytest.approx(mean[0, 0], abs=1e-4)
    assert patients["prob_hydrocephalus"].iloc[0] == pytest.approx(mapped, abs=1e-5)
    assert len(run.predict(folder)) == len(run.embed(folder)) == inside.sum()


def test_a_band_is_cut_from_data_sets_that_know_of_none(made: Made, tmp_path: Path) -> None:
    files = sorted(path.relative_to(made.patients) for path in made.patients.glob("*/**/*.*") if path.is_file())
    rows = pd.DataFrame({"path": [f.as_posix() for f in files], "patient_id": [f.parts[0] for f in files]})
    rows["hydrocephalus"] = (pd.factorize(rows["patient_id"])[0] % 2).astype(int)
    rows.to_csv(made.patients / "rows.csv", index=False)
    out = tmp_path / "out"
    data = ["data=table", f"data.manifest={made.patients / 'rows.csv'}", f"data.root={made.patients}"]
    assert apply.evaluate([f"run={made.band}", *data, f"out={out}", "duplicates=none"]) == 0
    (made.patients / "rows.csv").unlink()
    own = load(made.band)
    expected = sum(len(own.predict(path)) for path in sorted(made.patients.iterdir()) if path.is_dir())
    assert len(pd.read_parquet(out / "predictions.parquet")) == expected
    notes = json.loads((out / "provenance.json").read_text())["notes"]
    assert any("slices outside the run's data.band=[0.3, 0.7]: left out" in note for note in notes)


def test_ventricles_are_measured_alike_in_training_and_evaluation(made: Made, tmp_path: Path) -> None:
    data = ["data=hydrocephalus_mri", f"data.root={made.mr}", "overlap=allow", "duplicates=none"]
    assert apply.evaluate([f"run={made.band}", *data, f"out={tmp_path}"]) == 0
    own, again = (pd.read_parquet(f / "predictions.parquet").set_index("slice_id") for f in (made.band, tmp_path))
    own = own[own["split"] == "test"]
    for name in ("csf_prob_hydrocephalus", "evans_prob_hydrocephalus"):
        assert own[name].nunique() > 1
        np.testing.assert_array_equal(again.loc[own.index, name], own[name])


# Who reads a key of a run when it is applied to other images. `network`: it is in the network that the checkpoint
# restores, or in its predict_step. `input`: it decides which slices are predicted and what the network sees of them;
# the test below changes it. `result`: it decides what is made of the probabilities. `training`: only making the run
# needs it. `where`: names and places. A new key must be given its reader here.
READERS = {
    "network": "channels.windows channels.percentiles channels.name backbone features sequence task.hidden task.tta "
    "channels.tone task.sides trainer.channels_last task.dropout",
    "input": "data.modality channels.kind channels.neighbours data.image_size data.fit data.band data.geometry "
    "trainer.precision trainer.accelerator volume",
    "result": "task.labels task.kind task.level task.aggregate task.calibration task.threshold task.label_weights "
    "task.monitor task.triage_error task.triage_value task.top_k task.labels_from",
    "training": "augmentation freeze loss optimizer split stage seed data.batch_size data.sampler data.num_workers "
    "task.method task.projection task.temperature task.momentum data.parts data.part_weights "
    "data.phantom_patients data.phantom_seed data.patient_pattern data.path_column data.patient_column trainer "
    "callbacks metrics data.resident data.covariates",
    "where": "name output_dir logger data.name data.root data.manifest data.labels data.label_key data.series "
    "data.cache_dir data.cache_limit task.name plugins force checkpoints",
}


def test_every_key_of_a_run_has_its_reader() -> None:
    parents = {parent: reader for reader, text in READERS.items() for parent in text.split()}
    for key in schema_keys():
        found = [parent for parent in parents if f"{key}.".startswith(f"{parent}.") or parent.startswith(f"{key}.")]
        assert found, f"{key}: which reader of a finished run uses it?"


@pytest.mark.parametrize(
    ("values", "same_slices"),
    [
        ({"data__band": [0.2, 0.8]}, False),
        ({"data__geometry": {"duplicates": "first", "gaps": "keep", "tilt": "keep", "min_slices": 99}}, None),
        ({"data__fit": "head"}, True),
        ({"trainer__precision": "bf16-mixed"}, True),
    ],
)
def test_keys_that_decide_about_the_input_reach_the_prediction(
    made: Made, tmp_path: Path, values: dict[str, Any], same_slices: bool | None
) -> None:
    if "data__band" in values:  # a data set of its own kind has the key
        values = {**values, "data__name": "hydrocephalus_mri"}
    run = change(copy_of(made.slices, tmp_path), **values)
    file = sorted((made.other / "ct_scans").glob("*.nii*"))[0]
    if same_slices is None:
        with pytest.raises(HemlearnError, match="short series"):
            load(run).predict(file)
        return
    before, after = load(made.slices).predict(file), load(run).predict(file)
    assert (len(before) == len(after)) == same_slices
    if same_slices:
        assert not np.array_equal(before["prob_any"], after["prob_any"])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"data__band": [0.1, 0.9]}, r"data\.band=\[0\.1, 0\.9\]"),
        ({"data__geometry__min_slices": 5}, r"data\.geometry=.*min_slices=5"),
    ],
)
def test_runs_on_different_slices_are_not_averaged(
    made: Made, tmp_path: Path, values: dict[str, Any], problem: str
) -> None:
    other = change(copy_of(made.band, tmp_path), **values)
    status = json.loads((other / "status.json").read_text())
    (other / "status.json").write_text(json.dumps({**status, "hash": "other"}))
    seal(other, hash="other")
    with pytest.raises(RunError, match=problem):
        load_runs([made.band, other])


def test_other_data_are_arranged_as_the_runs_own_unless_asked(made: Made, tmp_path: Path) -> None:
    run = change(copy_of(made.slices, tmp_path), data__geometry__min_slices=99)
    words = [f"run={run}", "data=ct_ich", f"data.root={made.other}", "duplicates=none", f"out={tmp_path / 'out'}"]
    with pytest.raises(HemlearnError, match="no slice of 3 volumes"):
        apply.evaluate(words)
    assert apply.evaluate([*words, "data.geometry.min_slices=1"]) == 0


def test_a_volume_is_scored_alike_rescaled_or_stored_in_another_order(made: Made, tmp_path: Path) -> None:
    run, found = load(made.band), []
    image = nibabel.load(next(iter(sorted(made.mr.glob("*/T?.nii.gz")))))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt("PIR")
    )
    scaled = nibabel.Nifti1Image((np.asarray(image.dataobj) * 4).astype(np.int16), image.affine)
    for name, other in {"plain": image, "turned": image.as_reoriented(turn), "scaled": scaled}.items():
        folder = tmp_path / name
        folder.mkdir()
        nibabel.save(other, folder / "P1.nii.gz")
        found.append(run.predict(folder)["prob_hydrocephalus"].to_numpy())
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-3)  # no more than rounding


def test_real_volumes_are_scored_on_the_runs_band_alone(made: Made, tmp_path: Path) -> None:
    """Real T1 brains, whose axes are stored in another order than those of the phantom."""
    source = real_data("mri_t1")
    table = pd.read_csv(source / "patients.csv").iloc[:3]
    root = tmp_path / "t1"
    root.mkdir()
    expected = {}
    for item in table.itertuples():
        shutil.copy(source / item.path, root / f"{item.patient_id}.nii.gz")
        axes = nibabel.orientations.io_orientation(nibabel.load(source / item.path).affine)[:, 0]
        count = nibabel.load(source / item.path).shape[int(np.flatnonzero(axes == 2)[0])]
        place = np.arange(count) / (count - 1)
        expected[item.patient_id] = np.flatnonzero((place >= BAND[0] - 1e-9) & (place <= BAND[1] + 1e-9)).tolist()
    labels = table.rename(columns={"large_ventricles": "hydrocephalus"})[["patient_id", "hydrocephalus"]]
    labels.to_csv(root / "labels.csv", index=False)
    data = ["data=hydrocephalus_mri", f"data.root={root}"]
    assert apply.predict([f"run={made.band}", f"input={root}", f"out={tmp_path / 'predict'}"]) == 0
    assert apply.evaluate([f"run={made.band}", *data, f"out={tmp_path / 'evaluate'}"]) == 0
    assert (
        apply.explain([f"run={made.band}", *data, f"out={tmp_path / 'explain'}", "slices=4", "show_patient=true"]) == 0
    )
    predicted = pd.read_csv(tmp_path / "predict" / "slices.csv")
    evaluated = pd.read_parquet(tmp_path / "evaluate" / "predictions.parquet")
    both = predicted.merge(evaluated, on="slice_id", suffixes=("", "_own"), validate="one_to_one")
    assert len(both) == len(predicted) == len(evaluated) == sum(map(len, expected.values()))
    np.testing.assert_allclose(both["prob_hydrocephalus"], both["prob_hydrocephalus_own"], atol=1e-6)
    for patient, frames_of in expected.items():
        assert sorted(predicted.loc[predicted["path"] == f"{patient}.nii.gz", "frame"]) == frames_of
    for folder in (tmp_path / "evaluate", made.band):
        audits = json.loads((folder / "metrics.json").read_text())["audits"]
        assert all(audits[name]["test"]["patient"]["auroc"] for name in ("csf", "evans"))
    own = evaluated.set_index("slice_id")["prob_hydrocephalus"]
    for item in json.loads((tmp_path / "explain" / "explain.json").read_text())["slices"]:
        assert item["probability"] == pytest.approx(own[item["slice_id"]], abs=1e-6)


# --- trust --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that names a class of a package that tells when it is imported."""
    package = tmp_path / "site" / "strangers_code.py"
    package.parent.mkdir()
    package.write_text(
        textwrap.dedent("""
        import pathlib
        from torch import nn
        pathlib.Path(__file__).with_name("imported").touch()
        class Blur(nn.Module):
            def forward(self, x):
                return x
        """)
    )
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "strangers_code", raising=False)
    run = copy_of(made.slices, tmp_path / "runs")
    steps = [{"_target_": "strangers_code.Blur"}]
    return change(run, augmentation__steps=steps)


def imported(run: Path) -> bool:
    return (run.parents[2] / "site" / "imported").exists()


def test_code_of_strangers_is_not_imported_without_trust(made: Made, stranger: Path) -> None:
    for use in (load, lambda path: Run(path).model, lambda path: load_runs([path])):
        with pytest.raises(RunError, match=r"made elsewhere.*strangers_code\.Blur") as caught:
            use(stranger)
        assert "trust=true" in caught.value.remedy
    assert not imported(stranger)
    assert Run(stranger).metrics["test"]  # figures are no code
    with pytest.raises(RunError, match=r"provenance\.json: does not say which strangers_code\.Blur"):
        load(stranger, trust=True)
    seal(stranger, code=fingerprints({"_target_": "strangers_code.Blur"}))
    assert load(stranger, trust=True).hash == made.slices.name
    assert imported(stranger)


def test_an_address_of_a_stranger_is_not_looked_up_without_trust(made: Made, tmp_path: Path) -> None:
    there = f"local-dir:{tmp_path}"
    run = change(copy_of(made.slices, tmp_path), backbone__name=there)
    with pytest.raises(RunError, match="made elsewhere, and its backbone is described at local-dir:"):
        load(run)
    assert load(run, trust=True).hash == made.slices.name


@pytest.mark.parametrize("file", ["config.yaml", "provenance.json", "status.json"])
def test_a_signed_run_is_ours_until_it_changes(made: Made, stranger: Path, file: str) -> None:
    seal(stranger, ours=True, code=fingerprints({"_target_": "strangers_code.Blur"}))
    assert load(stranger).ours
    if file == "status.json":
        status = json.loads((stranger / file).read_text())
        (stranger / file).write_text(json.dumps({**status, "version": "0.0.1"}))
    elif file == "provenance.json":
        seal(stranger, leaky_split=True)  # as somebody could who has no key
    else:
        change(stranger, augmentation__note="tampered")
    with pytest.raises(RunError, match="made elsewhere"):
        load(stranger)


def test_code_that_is_gone_or_has_changed_says_so(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(stranger, code={"strangers_code.Blur": {"version": "1.0", "sha256": "0" * 64}})
    with pytest.raises(RunError, match=r"strangers_code\.Blur has changed since the run \(version 1\.0 then"):
        load(stranger, trust=True)
    gone = change(stranger, augmentation__steps=[{"_target_": "no_such_package.Blur"}])
    with pytest.raises(RunError, match="cannot be imported"):
        load(gone, trust=True)


def test_no_interpolation_of_a_run_is_resolved(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "swordfish")
    run = change(copy_of(made.slices, tmp_path), data__root="${oc.env:SECRET_OF_MINE}")
    assert load(run).config.data.root == "${oc.env:SECRET_OF_MINE}"


def test_wrong_runs_say_why(made: Made, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="the same run"):
        load_runs([made.slices, made.slices])
    run = copy_of(made.slices, tmp_path)
    (run / "metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json: changed after the run had ended"):
        load(run)


SHELLS = [
    {"_target_": "hemlearn.training.run.os.system", "command": "touch HERE"},
    {"_target_": "torch.optim.optimizer.torch.os.mkdir", "path": "HERE"},
    {"_target_": "torch.optim.optimizer.torch.utils.collect_env.run", "command": "touch HERE"},
    {"_target_": "hemlearn.util.files.write_text", "path": "HERE", "text": ""},
    {"_target_": "kornia.augmentation.RandomHorizontalFlip", "p": {"_target_": "builtins.exec", "_args_": ["1"]}},
    {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.mkdir", "path": "HERE"}]},
    {"_target_": ["os.mkdir"], "path": "HERE"},
    {"_target_": "torch.nn.Sequential", "_convert_": "all", "x": {"_target_": "os.mkdir", "path": "HERE"}},
    {"_target_": "torch.nn.Sequential", "_recursive_": {"_target_": "os.mkdir", "path": "HERE"}},
    {"_target_": "monai.transforms.LoadImage", "reader": "subprocess.Popen"},
    {"_target_": "monai.transforms.Lambda", "func": {"_target_": "os.mkdir", "path": "HERE", "_partial_": True}},
    {"_target_": "hemlearn.tasks.slices.SliceClassification", "labels": ["a"], "backbone": "hf-hub:owner/model"},
    {"_target_": "hemlearn.datamodules.head_ct.HeadCTDataModule", "cache_dir": "HERE"},
    {"_target_": "torch.nn.Identity", "x": {"target_": "os.mkdir", "path": "HERE"}},
    {
        "_target_": "hemlearn.plugins.call",
        "function": {"_target_": "hemlearn.plugins.find", "target": "os.system", "where": "x"},
        "_args_": ["touch HERE"],
    },
]


@pytest.mark.parametrize("node", SHELLS, ids=lambda node: str(node["_target_"]))
def test_trusted_packages_are_no_way_around(made: Made, tmp_path: Path, node: dict[str, Any]) -> None:
    place = tmp_path / "made_by_a_stranger"
    run = copy_of(made.slices, tmp_path / "runs")
    steps = json.loads(json.dumps([node]).replace("HERE", str(place)))
    change(run, augmentation__steps=steps)
    with pytest.raises(RunError, match="made elsewhere"):
        _ = Run(run).model
    assert not place.exists()


@pytest.mark.parametrize("group", ["loss", "channels", "data", "split"])
def test_a_field_is_no_other_way_to_name_code(made: Made, tmp_path: Path, group: str) -> None:
    place = tmp_path / "made_by_a_stranger"
    run = change(
        copy_of(made.slices, tmp_path / "runs"), **{f"{group}__target_": "os.mkdir", f"{group}__path": str(place)}
    )
    with pytest.raises(RunError, match=r"made elsewhere.*os\.mkdir"):
        load(run)
    with pytest.raises(RunError, match=rf"unknown key '{group}\.target_'"):
        _ = Run(run).config
    assert not place.exists()


def test_the_look_before_sharing_runs_nothing(made: Made, tmp_path: Path) -> None:
    from hemlearn.reading.share import report

    place = tmp_path / "made_by_a_stranger"
    run = copy_of(made.slices, tmp_path / "runs")
    change(run, **{"data___target_": "os.system", "data__command": f"touch {place}"})
    told = json.loads((run / "provenance.json").read_text())
    seal(run, data={**told["data"], "synthetic": False, "root": str(tmp_path)})
    assert "made elsewhere" in report(run)[0]
    assert not place.exists()


def test_a_network_that_answers_nan_calls_nobody_negative(made: Made, tmp_path: Path) -> None:
    run = copy_of(made.slices, tmp_path / "runs")
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    for name, value in content["state_dict"].items():
        if name.endswith("weight"):
            content["state_dict"][name] = torch.full_like(value, 3e38)
    torch.save(content, file)
    seal(run)
    with pytest.raises(RunError, match="its network answers NaN for series"):
        load(run).predict(next(made.other.rglob("*.nii*")))


def test_a_checkpoint_names_no_code(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "made_by_a_stranger"
    run = copy_of(made.slices, tmp_path / "runs")
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    node = {"_target_": "os.mkdir", "path": str(place)}
    content["hyper_parameters"]["config"]["augmentation"]["steps"] = [node]
    content["hyper_parameters"] |= {"loss": node, "backbone": node}
    torch.save(content, file)
    seal(run)
    assert Run(run).model.labels
    assert not place.exists()


def test_somebody_elses_run_does_not_say_where_to_write(made: Made, tmp_path: Path) -> None:
    assert Run(made.slices).config.data.cache_dir is None
    run = change(copy_of(made.slices, tmp_path), data__cache_dir=str(tmp_path / "theirs"))
    assert Run(run).config.data.cache_dir is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("data", "x", "data='x' is no table"),
        ("checksums", [1], r"checksums=\[1\] is no table"),
        ("code", {"a": 1}, "is no table of tables"),
        ("data", {"contents": {"a": 1}}, r"data\.contents=.* is not as the run wrote it"),
        ("files", "config.yaml", "files='config.yaml' is no table"),
        ("hash", None, r"status\.json: of run \w+, but provenance\.json of run None"),
    ],
)
def test_a_provenance_that_says_odd_things_is_refused(
    made: Made, tmp_path: Path, key: str, value: Any, told: str
) -> None:
    run = copy_of(made.slices, tmp_path)
    content = json.loads((run / "provenance.json").read_text()) | {key: value}
    (run / "provenance.json").write_text(json.dumps(content))
    digest = hashlib.sha256((run / "provenance.json").read_bytes()).hexdigest()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "provenance": digest, "signature": "\u00fc"}))
    assert not Run(run).ours
    with pytest.raises(RunError, match=told):
        load(run)


@pytest.mark.parametrize("name", ["status.json", "provenance.json", "config.yaml"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(made: Made, tmp_path: Path, name: str) -> None:
    run = copy_of(made.slices, tmp_path)
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(RunError, match=rf"{name}: .*(pipe|missing)"):
        load(run)


HARM: dict[str, tuple[Callable[[Any], Any], str]] = {  # change of a checkpoint's content -> what is told
    "nan": (lambda c: c["state_dict"]["head.1.bias"].fill_(math.nan), r"head\.1\.bias holds NaN"),
    "infinite": (lambda c: c["state_dict"]["backbone.model.conv_stem.weight"].fill_(math.inf), r"conv_stem.* infinity"),
    "no deviation": (lambda c: c["state_dict"]["backbone.std"].zero_(), r"backbone\.std holds values below 0, or 0"),
    "shape": (
        lambda c: _put(c, "head.1.bias", torch.zeros(7)),
        r"1 of another shape \(first: head\.1\.bias \(7,\) for",
    ),
    "whole numbers": (lambda c: _put(c, "head.1.bias", torch.zeros(6).int()), r"head\.1\.bias holds int32"),
    "missing": (lambda c: c["state_dict"].pop("head.1.bias"), r"1 missing \(first: head\.1\.bias"),
    "unexpected": (lambda c: _put(c, "tail.bias", torch.zeros(2)), r"1 unexpected \(first: tail\.bias"),
    "no tensors": (lambda c: c.update(state_dict=[1]), "holds list instead of a state_dict"),
    "unit": (lambda c: c["hyper_parameters"].update(unit=["HU"]), r"hyper_parameters\.unit=\['HU'\]"),
    "counts": (lambda c: c["hyper_parameters"].update(positives="many"), r"hyper_parameters\.positives='many'"),
    "no facts": (lambda c: c.pop("hyper_parameters"), "hyper_parameters"),
}


def _put(content: dict[str, Any], name: str, tensor: torch.Tensor) -> None:
    content["state_dict"][name] = tensor


@pytest.mark.parametrize("harm", HARM)
def test_tensors_that_the_network_cannot_take_are_named(made: Made, tmp_path: Path, harm: str) -> None:
    run = copy_of(made.slices, tmp_path)
    file = run / "checkpoints" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    change_it, told = HARM[harm]
    change_it(content)
    torch.save(content, file)
    seal(run)
    with pytest.raises(RunError, match=rf"best\.ckpt.*{told}"):
        _ = Run(run).model


def test_shipped_parts_of_somebody_elses_run_are_built(made: Made, tmp_path: Path) -> None:
    run = copy_of(made.slices, tmp_path / "runs")
    steps = [
        {"_target_": "kornia.augmentation.RandomHorizontalFlip"},
        {"_target_": "hemlearn.transforms.RandomNoise"},
        {"_target_": "torchvision.transforms.ColorJitter", "contrast": 0.1},
        {"_target_": "monai.transforms.RandBiasField"},
    ]
    change(run, augmentation__steps=steps)
    assert len(Run(run).model.augment.steps) == 4
