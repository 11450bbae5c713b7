from __future__ import annotations

import json
import shutil

import pytest
import yaml

from hemlearn.__main__ import main
from hemlearn.compare.comparison import compare
from hemlearn.compare.groups import differing_keys, kind_keys
from hemlearn.compare.runs import find_runs, flatten
from hemlearn.config.schema import to_dict
from hemlearn.util.errors import RunError
from hemlearn.util.run_files import parse_yaml
from tests.conftest import seal

from .conftest import configuration, kfold_run, predictions, write_run


def test_incomplete_runs_are_skipped_with_the_reason(tmp_path):
    good = kfold_run(tmp_path, "a" * 12, 0)
    config = configuration()
    write_run(tmp_path, "failed", config, None, state="failed")
    write_run(tmp_path, "running", config, None, state="running")
    torn = kfold_run(tmp_path, "torn", 1)
    (torn / "predictions.parquet").unlink()
    broken = kfold_run(tmp_path, "broken", 2)
    (broken / "status.json").write_text("{")
    (tmp_path / "copy").mkdir()
    kfold_run(tmp_path / "copy", "b", 0)
    (tmp_path / "copy" / "b" / "status.json").write_text(json.dumps({"state": "complete", "hash": "a" * 12}))
    seal(tmp_path / "copy" / "b")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.yaml").write_text("seed: 1\n")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 1\n")
    found = find_runs([tmp_path, good, tmp_path / "copy"])
    assert [run.path for run in found.runs] == [good]
    reasons = {item.folder.rpartition("/")[2]: item.reason for item in found.skipped}
    assert set(reasons) == {"failed", "running", "torn", "broken", "b", "bare"}
    assert reasons["failed"] == "state failed: TrainingError: loss is NaN"
    assert reasons["running"] == "state running"
    assert "without predictions.parquet" in reasons["torn"]
    assert "status.json" in reasons["broken"]
    assert "repeats run aaaaaaaaaaaa" in reasons["b"]


def test_nothing_left_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        find_runs([tmp_path / "absent"])
    with pytest.raises(RunError, match="no complete run"):
        find_runs([tmp_path])
    write_run(tmp_path, "failed", configuration(), None, state="failed")
    with pytest.raises(RunError, match=r"1 skipped.*\n.*state failed: TrainingError") as caught:
        find_runs([tmp_path])
    assert "train" in caught.value.remedy


def test_differing_keys_ignore_repetition_and_bookkeeping(four_cells):
    runs = find_runs([four_cells]).runs
    assert len(runs) == 20
    assert differing_keys(runs) == ["augmentation.name", "backbone.pretrained"]  # steps follow from the name
    assert differing_keys(runs, pool=["seed"]) == ["split.fold", "augmentation.name", "backbone.pretrained"]
    assert differing_keys(runs[:1]) == []


def test_the_table_of_runs_leaves_out_what_follows_from_a_name(four_cells, capsys):
    main(["runs", str(four_cells)])
    titles = capsys.readouterr().out.splitlines()[1].split()
    assert titles[:5] == ["run", "state", "fold", "augmentation.name", "pretrained"]
    assert "steps" not in titles


def test_a_key_that_does_not_follow_from_its_name_stays(tmp_path):
    for i, (name, lr) in enumerate([("adamw", 1e-3), ("adamw", 1e-4), ("sgd", 1e-3)]):
        kfold_run(tmp_path, f"r{i}", 0, optimizer__name=name, optimizer__lr=lr, logger__tags=[str(i)], name=str(i))
    assert differing_keys(find_runs([tmp_path]).runs) == ["optimizer.name", "optimizer.lr"]


def test_the_place_of_equal_data_is_no_difference(tmp_path):
    for i, checksum in enumerate(["c1", "c1", "c2"]):
        config = configuration(data__root=f"/data/{i}", seed=i)
        frame = predictions(config, range(30))
        write_run(tmp_path, f"r{i}", config, frame, provenance={"checksums": {"manifest": checksum}})
    runs = find_runs([tmp_path]).runs
    assert differing_keys(runs[:2]) == []
    assert differing_keys(runs) == ["data.root"]


def test_changed_code_is_a_difference(tmp_path):
    for i, checksum in enumerate(["c1", "c1", "c2"]):
        config = configuration(seed=i)
        code = {"mypkg.Loss": {"version": "1.0", "sha256": checksum}}
        write_run(tmp_path, f"r{i}", config, predictions(config, range(30)), provenance={"code": code})
    runs = find_runs([tmp_path]).runs
    assert differing_keys(runs[:2]) == []
    assert differing_keys(runs) == ["code.checksum"]


def stage_pair(root, name, fold, stage_lr, **changes):
    """A slice run and a sequence run upon it, whose weights are that run's checkpoint."""
    stage = kfold_run(root / name, f"{name}-s{fold}-{stage_lr}", fold, slices=2, optimizer__lr=stage_lr)
    config = configuration(
        split__name="kfold",
        split__fold=fold,
        sequence__name="lstm",
        optimizer__lr=1e-3,
        backbone__weights=str(stage),
        **changes,
    )
    frame = predictions(config, range(20), 2)
    folder = write_run(root / "volume", f"v-{name}-{fold}-{stage_lr}", config, frame)
    sums = {"checksums": {"manifest": "m", "weights": f"{fold}{stage_lr}"}, "weights": f"run {stage}"}
    (folder / "provenance.json").write_text(json.dumps(sums))
    seal(folder)
    return stage, folder


def test_stage_runs_of_folds_are_one_recipe(tmp_path):
    for fold in range(3):
        stage_pair(tmp_path, "stage", fold, 1e-4, stage__experiment="head_ct")
    runs = find_runs([tmp_path / "volume"]).runs
    assert len(runs) == 3
    assert len({run.settings["backbone"]["weights"] for run in runs}) == 3
    assert differing_keys(runs) == []
    # The same stage trained otherwise is another recipe, also where no key of the sequence run tells it.
    for fold in range(3):
        stage_pair(tmp_path, "stage", fold, 1e-2, stage__experiment="head_ct")
    runs = find_runs([tmp_path / "volume"]).runs
    assert differing_keys(runs) == ["backbone.weights_checksum"]
    assert differing_keys(runs, ["split.fold", "backbone"]) == []  # whoever pools networks pools their weights
    assert len({run.keys["backbone.weights_checksum"] for run in runs}) == 2


def test_stage_runs_are_found_after_a_move_and_missed_when_gone(tmp_path, caplog):
    for fold in range(3):
        stage_pair(tmp_path / "here", "stage", fold, 1e-4)
    (tmp_path / "here").rename(tmp_path / "there")
    runs = find_runs([tmp_path / "there" / "volume"]).runs
    assert differing_keys(runs) == []
    assert {run.keys["backbone.weights"] for run in runs} == {"run stage"}
    broken = next((tmp_path / "there" / "stage").iterdir()) / "config.yaml"
    broken.write_text("a: [1\n")
    assert differing_keys(find_runs([tmp_path / "there" / "volume"]).runs) == ["backbone.weights"]
    assert "cannot be read" in caplog.text
    shutil.rmtree(tmp_path / "there" / "stage")
    runs = find_runs([tmp_path / "there" / "volume"]).runs
    # Nothing is known of given weights that are gone: better three rows than one that mixes recipes.
    assert differing_keys(runs) == ["backbone.weights"]
    for fold in range(3):
        stage_pair(tmp_path / "named", "stage", fold, 1e-4, stage__experiment="head_ct")
    shutil.rmtree(tmp_path / "named" / "stage")
    assert differing_keys(find_runs([tmp_path / "named" / "volume"]).runs) == []


def test_keys_between_slice_and_sequence_runs_are_told_apart(tmp_path):
    for fold in range(2):
        stage_pair(tmp_path, "stage", fold, 1e-4, stage__experiment="head_ct", trainer__max_epochs=50)
    runs = find_runs([tmp_path]).runs
    assert len(runs) == 4
    assert differing_keys(runs) == ["sequence.name"]
    assert kind_keys(runs) == ["optimizer.lr", "trainer.max_epochs"]
    kfold_run(tmp_path / "stage", "other", 0, optimizer__lr=1e-5)
    runs = find_runs([tmp_path]).runs
    assert differing_keys(runs) == ["sequence.name", "optimizer.lr"]
    assert kind_keys(runs) == ["trainer.max_epochs"]
    assert kind_keys([run for run in runs if run.of_series]) == []


def test_keys_of_older_runs_hold_the_default(tmp_path):
    folder = kfold_run(tmp_path, "old", 0)
    old = yaml.safe_load((folder / "config.yaml").read_text())
    del old["trainer"]["ema_decay"], old["task"]["tta"]
    (folder / "config.yaml").write_text(yaml.safe_dump(old))
    kfold_run(tmp_path, "new", 1)
    assert differing_keys(find_runs([tmp_path]).runs) == []


def test_free_dictionaries_stay_whole():
    found = flatten({"freeze": {"schedule": {0: "head", 3: "all"}}, "optimizer": {"schedule": {"factor": 0.5}}})
    assert found == {"freeze.schedule": {0: "head", 3: "all"}, "optimizer.schedule.factor": 0.5}


def test_sections_parse_as_the_whole():
    config = to_dict(configuration(freeze__schedule={0: "head"}, augmentation__note="a: b\n\n  c # d"))
    config["augmentation"]["steps"] = [{"_target_": "x.Flip", "p": 0.5}, {"_target_": "y"}]
    for text in (yaml.safe_dump(config, sort_keys=False), yaml.safe_dump(config, indent=4, width=30)):
        assert parse_yaml("# made by hand\n" + text) == config
        assert parse_yaml(text) == config
    assert parse_yaml("a: &x 1\nb: *x\n") == {"a": 1, "b": 1}
    assert parse_yaml("a:\n- 1\n\n- 2\nb: 3") == {"a": [1, 2], "b": 3}
    for bad in ("", "- 1\n", "a: [1\n", "a: 1\n b: 2\n"):
        with pytest.raises(ValueError, match="not"):
            parse_yaml(bad)


def test_unreadable_configuration_names_the_file(tmp_path):
    folder = kfold_run(tmp_path, "a", 0)
    (folder / "config.yaml").write_text("a: [1\n")
    run = find_runs([tmp_path]).runs[0]
    with pytest.raises(RunError, match=r"config\.yaml: not YAML"):
        _ = run.keys


def test_runs_whose_patients_were_drawn_in_another_way_are_not_pooled(tmp_path):
    config = configuration(split__name="kfold", split__folds=2)
    frame = predictions(config, range(20), 2)
    old = {"checksums": {"manifest": "m"}}
    for name, told in (("old", old), ("new", old | {"split_drawing": 2})):
        write_run(tmp_path, name, config, frame, provenance=told)
    assert differing_keys(find_runs([tmp_path]).runs) == ["split.drawing"]


def test_groups_with_a_class_of_ones_own_are_called_by_it(tmp_path):
    for number, own in enumerate(({}, {"loss__target_": "mypkg.parts.Mine", "loss__focus": 1.0})):
        config = configuration(**own)
        write_run(tmp_path, f"{number}", config, predictions(config, range(40), noise=3.0))
    result = compare([tmp_path])
    assert set(result.order) == {"loss=bce", "loss=mypkg.parts.Mine, focus=1"}
    assert compare([tmp_path], baseline="loss=bce").baseline.name == "loss=bce"
