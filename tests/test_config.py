"""Configuration: one list of keys, all faults at once, identity of a run."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hemlearn.config.compose import (
    check_overrides,
    compose,
    conf_dir,
    from_dict,
    instantiate,
    quote_paths,
    result_keys,
    run_hash,
    to_dict,
)
from hemlearn.config.rules import schema_keys
from hemlearn.util.errors import ConfigError, DataError


def problems(*overrides: str, config_dir: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        check_overrides(list(overrides), config_dir)
    return str(caught.value)


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_misspelt_key_names_the_nearest_with_and_without_plus(plus: str) -> None:
    message = problems(f"{plus}backbone.pretrianed=true")
    assert "backbone.pretrianed" in message
    assert "did you mean 'backbone.pretrained'" in message


def test_key_without_its_group_finds_the_group() -> None:
    assert "did you mean 'optimizer.lr'" in problems("lr=3")
    assert "did you mean 'data.batch_size'" in problems("batch_size=3")


def test_misspelt_option_names_the_nearest_and_lists_all() -> None:
    message = problems("augmentation=flip_rotat")
    assert "did you mean 'flip_rotate'" in message
    assert "geometric_intensity" in message


def test_all_errors_are_reported_together() -> None:
    message = problems(
        "backbone.pretrianed=1",
        "data=hed_ct",
        "optimizer.lr=fast",
        "split.fold=0,x",
        "trainer.max_epochs=0",
        "data.fit=sqash",
        "nonsense",
    )
    assert "7 errors" in message
    for part in (
        "backbone.pretrianed",
        "hed_ct",
        "optimizer.lr='fast'",
        "split.fold='x'",
        "trainer.max_epochs=0",
        "data.fit='sqash'",
        "nonsense",
    ):
        assert part in message


def test_unknown_key_in_a_users_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("name: adam\nlearning_rate: 0.1\nlr: soon\n")
    message = problems("optimizer=mine", config_dir=str(tmp_path))
    assert "optimizer.learning_rate" in message
    assert "optimizer.lr='soon'" in message


def test_users_config_folder_adds_a_backbone(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "mine.yaml").write_text("name: convnext_nano\npretrained: false\n")
    config = compose(["backbone=mine"], str(tmp_path))
    assert config.backbone.name == "convnext_nano"


def test_right_overrides_pass_with_sweeps_and_free_dictionaries() -> None:
    composed = check_overrides(
        [
            "backbone.pretrained=true,false",
            "augmentation=none,geometric_intensity",
            "split=kfold",
            "split.fold=0,1,2",
            "freeze.schedule={0: head, 3: all}",
            "trainer.options={overfit_batches: 1}",
            "+backbone.options.act_layer=relu",
            "seed=range(0,3)",
            "trainer.max_epochs=3",
        ]
    )
    assert composed.trainer.max_epochs == 3
    assert composed.trainer.options == {"overfit_batches": 1}
    assert composed.backbone.options == {"act_layer": "relu"}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("split.by=slice", "split.allow_leak=true"),
        ("split.val_fraction=1.5", "strictly between 0 and 1"),
        ("task.threshold=2", "between 0 and 1"),
        ("name=a/b", "letters"),
        ("data=table", "data.manifest=FILE"),
        ("split=file", "split.file=FILE"),
        ("task.labels=[a,b]", "exactly one label"),
        ("trainer.accelerator=gpux", "expected one of cpu"),
        ("trainer.precision=bf17", "bf16-mixed"),
        ("optimizer.betas=[0.9]", "two numbers"),
        ("freeze.schedule={1: most}", "freeze.schedule.1"),
        ("channels.windows=[[40]]", "channels.windows"),
        ("trainer.limit_train_batches=0", "number of batches"),
        ("loss=cross_entropy", "loss=bce or loss=focal"),
        ("seed=-1", "0 or more"),
    ],
)
def test_values_that_cannot_be_meant(override: str, part: str) -> None:
    assert part in problems(override)


def test_broken_yaml_and_misspelt_sweep_presets_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "mine, \u00fc"
    (folder / "sweep").mkdir(parents=True)
    (folder / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      frezee: head,none\n"
    )
    assert "did you mean 'freeze'" in problems("sweep=mine", config_dir=str(folder))
    (folder / "task").mkdir()
    (folder / "task" / "mine.yaml").write_text("name: [broken")
    assert "mine.yaml" in problems("task=mine", config_dir=str(folder))


def test_paths_that_hydra_cannot_read_are_quoted() -> None:
    given = ["data.root=/a b/\u00fc", "output_dir=a=b", "data.root=/plain", "optimizer.lr=0.1", "--cfg", "-m"]
    assert quote_paths(given) == ['data.root="/a b/\u00fc"', 'output_dir="a=b"', *given[2:]]
    assert compose(quote_paths(["output_dir=(1) \u00fc"])).output_dir == "(1) \u00fc"


def test_a_pattern_needs_no_quotes_of_hydra() -> None:
    base = ["data=six_class", "task=six_class", "loss=cross_entropy"]
    for pattern in (r"(X[0-9]+)", "P[0-9]+", r"(?P<patient>P\d+)_", r'a"b\\', r"\.(x|y)$", "plain"):
        assert compose([*base, f"data.patient_pattern={pattern}"]).data.patient_pattern == pattern
    assert compose([*base, "data.patient_pattern='(P[0-9]+)'"]).data.patient_pattern == "(P[0-9]+)"
    assert compose([*base, "data.patient_pattern=null"]).data.patient_pattern is None


def test_an_empty_root_is_refused_not_taken_for_this_folder() -> None:
    assert "data.root" in problems("data.root=")


def test_every_yaml_composes() -> None:
    needs = {
        "data/table": ["data.manifest=x.csv"],
        "split/file": ["split.file=x.csv"],
        "task/six_class": ["loss=cross_entropy"],
        "task/basal_ganglia": ["loss=cross_entropy"],
        "loss/cross_entropy": ["task=six_class"],
    }
    for folder in (path for path in conf_dir().iterdir() if path.is_dir()):
        for file in folder.glob("*.yaml"):
            more = ["sequence=lstm"] if folder.name == "features" else needs.get(f"{folder.name}/{file.stem}", [])
            config = compose([f"{folder.name}={file.stem}", *more])
            named = getattr(getattr(config, folder.name, None), "name", None)
            assert named is not None or folder.name in ("experiment", "sweep")


def test_schema_survives_a_round_trip() -> None:
    config = compose(["freeze.schedule={0: head, 2: all}"])
    assert from_dict(to_dict(config)) == config
    assert config.freeze.schedule == {0: "head", 2: "all"}
    assert "optimizer.schedule.name" in schema_keys()


def identity(*overrides: str, manifest: str = "m") -> str:
    return run_hash(compose(list(overrides)), manifest=manifest, weights=None, split_file=None)


def test_hash_follows_what_changes_the_result_and_nothing_else() -> None:
    base = identity()
    assert identity("output_dir=elsewhere", "name=other", "logger=csv", "data.num_workers=2", "data.root=/x") == base
    changed = [
        identity("seed=1"),
        identity("optimizer.lr=0.1"),
        identity("backbone.pretrained=false"),
        identity("split.fold=1"),
        identity("data.fit=squash"),
        identity(manifest="n"),
    ]
    assert len({base, *changed}) == 1 + len(changed)
    assert "logger" not in result_keys(compose([]))


def test_instantiate_names_the_place_and_the_nearest_class() -> None:
    with pytest.raises(ConfigError, match=r"augmentation\.steps\[1\].*RandomHorizontalFlip"):
        instantiate({"_target_": "kornia.augmentation.RandomHorizontalFlp"}, "augmentation.steps[1]")
    with pytest.raises(ConfigError, match="no _target_"):
        instantiate({"p": 1}, "augmentation.steps[0]")
    with pytest.raises(ConfigError, match="wrong"):
        instantiate({"_target_": "torch.nn.ReLU", "wrong": 1}, "here")


def test_errors_survive_the_way_back_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(DataError("a.png: broken", remedy="replace it")))
    assert isinstance(error, DataError)
    assert str(error) == "a.png: broken\n  remedy: replace it"


@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 0.5), (["train", "--cfg", "job"], 2.0)])
def test_light_commands_import_no_torch_and_are_fast(arguments: list[str], limit: float) -> None:
    code = (
        "import sys; from hemlearn.__main__ import main; status = main(sys.argv[1:]); "
        "sys.exit(status or ' '.join({'torch', 'pandas', 'timm'} & set(sys.modules)) or 0)"
    )
    times = []
    for _ in range(4):  # processor time, the quickest of four: it is about hemlearn, not about a busy machine
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if times[-1] < limit:
            break
    assert min(times) < limit
