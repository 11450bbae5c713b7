"""Pretraining without labels through the real command line: its folder, its weights in other runs, and its leaks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hemlearn.compare.runs import find_runs
from hemlearn.config.compose import compose
from hemlearn.config.identity import run_hash
from hemlearn.config.schema import Config
from hemlearn.tasks import Pretraining
from hemlearn.training.build import build_datamodule
from hemlearn.training.run import Run, load
from hemlearn.training.stages import check_weights_split, stage_config
from hemlearn.util.errors import ConfigError, RunError
from hemlearn.util.run_files import SEEN
from tests.conftest import seal
from tests.end_to_end.conftest import run_folders

Train = Callable[..., int]
STEPS = ["trainer.limit_train_batches=2", "task.monitor=last", "data.batch_size=8"]
PRETRAIN = ["experiment=pretrain", "data=head_ct", "task.labels=[hemorrhage]", *STEPS]
OTHER = {"unlabelled": ["stage.set.data.root=/scans"]}
DINO = ["task.method=dino", "task.projection=16"]


def state(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    return found


def test_a_stage_without_labels_gives_a_run_its_weights(train: Train) -> None:
    small = "{trainer: {max_epochs: 2, limit_train_batches: 2}, optimizer: {schedule: {warmup_epochs: 0}}, "
    small += "data: {batch_size: 8}, task: {method: dino, projection: 16}}"
    assert train("stage=self_supervised", f"stage.set={small}", "trainer.max_epochs=1") == 0
    run, stage = (next(Path("runs").glob(f"{name}/*/status.json")).parent for name in ("default", "pretrain"))
    config = Run(run).config
    assert (config.stage.name, Path(str(config.backbone.weights)).resolve()) == ("self_supervised", stage.resolve())
    assert config.stage.set["backbone"] == {"pretrained": False}  # what the stage has started from
    assert (run / "split.csv").read_text() == (stage / "split.csv").read_text()
    # The folder is whole, and says what the weights have learnt from: nobody who is tested.
    assert Run(stage).problems() == {}
    assert Run(stage).ours
    assert Run(stage).provenance["pretraining"] == "dino"
    seen, sides = pd.read_parquet(stage / SEEN), pd.read_csv(stage / "split.csv", dtype=str)
    assert set(seen["patient_id"]) == set(sides.loc[sides["split"] != "test", "patient_id"])
    metrics = Run(stage).metrics
    assert metrics["val"]["slice"]["log_loss"]["value"] > 0
    assert 0 <= metrics["pretraining"]["probe"]["auroc"]["hemorrhage"]["value"] <= 1
    # The teacher's weights are handed on.
    own, tensors = state(run), state(stage)
    (stem,) = (name for name in own if name.endswith("conv_stem.weight"))
    assert not torch.equal(tensors[stem], tensors[f"teacher.{stem}"])
    assert torch.allclose(own[stem], tensors[f"teacher.{stem}"], atol=0.05)
    # It predicts nothing, and every command that needs predictions says so.
    with pytest.raises(RunError, match=r"pretraining \(dino\), which predicts nothing"):
        load(stage)
    assert [item.reason for item in find_runs(["runs"]).skipped] == ["pretraining, which predicts nothing"]
    (stage / SEEN).unlink()  # it can no longer tell
    assert Run(stage).problems() == {SEEN: "missing"}


def test_a_broken_off_run_ends_as_an_undisturbed_one(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*PRETRAIN, *DINO]
    step = Pretraining.training_step

    def fails(task: Pretraining, batch: object, number: int) -> torch.Tensor:
        if task.current_epoch == 1:
            raise RuntimeError("broken off")
        return step(task, batch, number)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "training_step", fails)
        assert train(*words) == 1
    assert train(*words) == 0
    assert train(*words, "output_dir=straight") == 0
    ((one,), (two,)) = (run_folders(Path(name)) for name in ("runs", "straight"))
    assert "resuming from" in (one / "train.log").read_text()
    mine, straight = state(one), state(two)
    assert {name for name in mine if not torch.equal(mine[name], straight[name])} == set()
    assert Run(one).metrics == Run(two).metrics


def table(phantom_root: Path, folder: Path, *, turned: bool) -> list[str]:
    """The phantom's pictures at another brightness and under other ids; or turned, which makes others of them."""
    folder.mkdir()
    rows = []
    for number in range(40):
        picture = np.asarray(Image.open(phantom_root / "head_ct" / "head_ct" / f"{number:03d}.png").convert("L"))
        changed = np.ascontiguousarray(np.rot90(picture)) if turned else (picture * 0.9 + 5).astype(np.uint8)
        Image.fromarray(changed).save(folder / f"{number}.png")
        rows.append((f"{number}.png", f"Miller-{number}", number % 2))
    pd.DataFrame(rows, columns=["path", "patient_id", "hemorrhage"]).to_csv(folder / "all.csv", index=False)
    return ["data=table", f"data.manifest={folder / 'all.csv'}", "data.modality=CT"]


def test_weights_that_have_seen_tested_patients_elsewhere_are_refused(
    train: Train, phantom_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unlabelled folder that holds them under other ids; and other pictures of the same people."""
    unlabelled = table(phantom_root, tmp_path / "unlabelled", turned=False)
    words = ["experiment=pretrain", *unlabelled, *STEPS, "trainer.max_epochs=1"]
    assert train(*words, root=tmp_path / "unlabelled") == 0
    weights = ["backbone.pretrained=true", "backbone.weights=runs/pretrain/latest", "trainer.max_epochs=1"]
    others = table(phantom_root, tmp_path / "others", turned=True)
    rows = pd.read_csv(tmp_path / "others" / "all.csv").head(4)
    rows.assign(patient_id=["a", "b", "c", "d"]).to_csv(tmp_path / "others" / "few.csv", index=False)
    several = ["data=multi"]
    several += [f"data.parts.{n}={{data: table, manifest: {tmp_path / 'others' / n}.csv}}" for n in ("all", "few")]
    for more, root, how in (
        ([], phantom_root, "the same pictures"),
        (others, tmp_path / "others", "the same patient_id"),
        (several, tmp_path / "others", "the same patient_id"),
    ):
        capsys.readouterr()
        assert train(*weights, *more, f"name=again{len(more)}", root=root) == 1
        told = capsys.readouterr().out
        assert "has learnt from" in told
        assert how in told
        assert "the first 'patient-" in told
        assert "pretrain without them" in told
        assert "Miller" not in told


def test_supervised_weights_that_have_seen_tested_patients_elsewhere_are_refused_too(
    train: Train,
    phantom_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = table(phantom_root, tmp_path / "others", turned=False)
    assert train(*others, *STEPS, "trainer.max_epochs=1", "name=others", root=tmp_path / "others") == 0
    (run,) = run_folders(Path("runs"))
    seen, sides = pd.read_parquet(run / SEEN), pd.read_csv(run / "split.csv", dtype=str)
    assert set(zip(seen["patient_id"], seen["split"], strict=True)) == set(
        sides.query("split != 'test'").itertuples(index=False, name=None)
    )
    assert {len(value) for value in seen["content"]} == {16}  # bytes: a slice takes some fifty
    capsys.readouterr()
    assert train("backbone.pretrained=true", f"backbone.weights={run}", "trainer.max_epochs=1") == 1
    told = capsys.readouterr().out
    assert "has learnt from" in told
    assert "the same pictures" in told
    # A run of an earlier version cannot tell, and that is said.
    facts = json.loads((run / "provenance.json").read_text())
    del facts["files"][SEEN]
    (run / "provenance.json").write_text(json.dumps(facts))
    (run / SEEN).unlink()
    seal(run)
    config = compose([f"data.root={phantom_root}", "backbone.pretrained=true", f"backbone.weights={run}"])
    said: list[str] = []
    monkeypatch.setattr("hemlearn.training.stages.logger.warning", lambda text, *values: said.append(text % values))
    check_weights_split(config, build_datamodule(config))
    (warning,) = said
    assert "made by an earlier version, which did not write down what it has learnt from" in warning


def test_pretraining_on_the_phantom_is_one_for_all_folds_and_shares_patients_where_it_must() -> None:
    def known_by(made: Config) -> str:
        return run_hash(made, manifest="", weights=None, split_file=None)

    for name, root, kind, labels in (
        ("phantom", None, "multilabel", 6),
        ("self_supervised", "/data", "self_supervised", 6),
        ("unlabelled", "/scans", "self_supervised", 0),
    ):
        words = ["data=ct_ich", "data.root=/data", "task=subtypes", "split=kfold", f"stage={name}"]
        config = compose([*words, *OTHER.get(name, ())])
        made = stage_config(config)
        assert (made.data.root, made.task.kind, len(made.task.labels)) == (root, kind, labels)
        if name == "phantom":
            assert known_by(made) == known_by(stage_config(config.changed({"split.fold": 3})))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["experiment=transfer"], ["stage=unlabelled", *OTHER["unlabelled"]]),
        (["data=table", "data.manifest=a.csv", "data.modality=CT"], ["stage=phantom", "stage.set.data.name=ct_ich"]),
    ],
)
def test_a_stage_of_other_data_takes_nothing_of_these(data: list[str], words: list[str]) -> None:
    """Not the real images that `root: null` does not take away, nor keys that the other data set does not read."""
    with pytest.raises(ConfigError, match=r"draws synthetic patients .*, which data=(multi|table) has not"):
        stage_config(compose([*data, "stage=phantom"]))
    made = stage_config(compose([*data, *words]))
    assert (made.data.parts, made.data.manifest, made.split.left_out) == ({}, None, None)


def test_a_stage_without_labels_is_not_balanced_and_errors_say_whose_they_are() -> None:
    config = compose(["data.sampler=balanced", "stage=self_supervised"])
    assert stage_config(config).data.sampler == "shuffle"
    with pytest.raises(ConfigError, match=r"stage\.experiment='pretrain' makes first: .*\n.*data\.batch_size=1"):
        stage_config(config.changed({"stage.set": {"data": {"batch_size": 1}}}))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("sequence=lstm", r"sequence\.name='lstm': pretraining is of slices"),
        ("augmentation=none", r"augmentation\.steps=\[\]: two equal views teach nothing: augmentation=views"),
        ("data.batch_size=1", r"data\.batch_size=1: slices are told apart within a batch"),
        ("trainer.devices=2", r"trainer\.devices=2: pretraining runs on one device"),
        ("task.monitor=auroc", r"task\.monitor='auroc': pretraining is watched by log_loss"),
        ("task.method=moco", r"task\.method='moco'.*simclr, dino"),
        ("task.temperature=0", r"task\.temperature=0"),
    ],
)
def test_what_pretraining_cannot_do_is_refused(words: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        compose(["experiment=pretrain", words])


def test_without_lightly_an_error_says_what_to_install(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lightly", None)  # as if it were not installed
    assert train(*PRETRAIN, root=Path("no-such-folder")) == 1  # before the data are looked for
    assert "pip install 'hemlearn[pretrain]'" in capsys.readouterr().out
