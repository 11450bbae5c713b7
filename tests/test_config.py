"""Configuration: one list of keys, all faults at once, identity of a run."""

from __future__ import annotations

import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hemlearn.compare.reference import read_studies
from hemlearn.config.compose import check_command, compose, conf_dir, option, quote_paths
from hemlearn.config.identity import result_keys, run_hash
from hemlearn.config.schema import (
    DATA_SETS,
    BackboneConfig,
    Config,
    DataConfig,
    SequenceConfig,
    TaskConfig,
    from_dict,
    schema_keys,
    schema_text,
    to_dict,
)
from hemlearn.datamodules import DATAMODULES
from hemlearn.models.weights import resolve_weights
from hemlearn.training.checks import check_values, without_effect
from hemlearn.training.run import Run
from hemlearn.util.documents import load_yaml
from hemlearn.util.errors import ConfigError, DataError, RunError, WeightsError
from tests.attack.config_walk import cases, judge
from tests.conftest import seal


def problems(*overrides: str, config_dir: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        check_command(list(overrides), config_dir)
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
    composed = check_command(
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
    ).composed
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
        ("seed=-1", "[0, 4294967295]"),
        ("seed=99999999999", "4294967295"),
        ("split.seed=-1", "[0, 4294967295]"),
        ("name=..", "do not start with a dot"),
        ("output_dir=", "output_dir='': expected text"),
        ("data.manifest=a.csv", "data=head_ct does not read it"),
        ("data=null", "such as data=basal_ganglia"),
        ("loss=null", "such as loss=bce"),
        ("callbacks=null", "callbacks=none"),
        ("data=[]", "a group needs one of its files"),
        ("trainer.devices=0", "how many (1, 2, ...)"),
        ("data.root=${dta.root}", "there is no key dta.root; did you mean 'data.root'?"),
        ("data.root=${oc.env:NO_SUCH_VARIABLE}", "data.root=${oc.env:NO_SUCH_VARIABLE}: the environment variable"),
    ],
)
def test_values_that_cannot_be_meant(override: str, part: str) -> None:
    assert part in problems(override)


def test_every_key_takes_what_can_be_meant_and_names_what_cannot() -> None:
    """An eighth of them; ``python -m tests.attack.config_walk`` tries all."""
    judged = [(f"{key}={value!r}", judge(key, value)) for key, value in list(cases())[::8]]
    assert [(case, verdict) for case, verdict in judged if verdict.startswith("fault")] == []
    assert len(judged) > 400


def test_the_names_of_data_sets_are_those_of_the_data_modules() -> None:
    assert set(DATA_SETS) == set(DATAMODULES)


def test_groups_that_may_be_left_out() -> None:
    assert compose(["experiment=null", "sweep=null"]) == compose([])


def test_a_comma_in_a_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'data\.root=\"/a,b\"'"):  # neither a sweep nor left out
        compose(["data.root=/a,b"])
    there = tmp_path / "a,b"
    there.mkdir()
    assert compose([f"data.root={there}"]).data.root == str(there)
    assert compose(['data.root="/a,b"']).data.root == "/a,b"


def test_a_key_that_nothing_reads_is_told() -> None:
    words = ["sequence.name=gru+transformer", "sequence.heads=8", "sequence.kernel=5", "loss.gamma=1", "task.top_k=5"]
    words += ["volume.size=[16,64,64]"]
    told = without_effect(compose(words))
    assert [line.partition("=")[0] for line in told] == ["task.top_k", "sequence.kernel", "loss.gamma", "volume.size"]
    assert without_effect(compose(["experiment=burduja2020"])) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["augmentation.steps=[{_target_: torch.nn.Linear, in_features: 2, out_features: 2}]"], "torch.nn.Linear"),
        (["augmentation.steps=[1]"], "steps[0] (int) is a int"),
        (["backbone.name=efficientnet_lite9"], "timm knows no such model"),
        (["trainer.strategy=dpd"], "did you mean 'ddp'"),
        (["trainer.options={overfit_batch: 1}"], "did you mean 'overfit_batches'"),
        (["trainer.options={max_epochs: 1}"], "is set by hemlearn"),
        (["loss.label_weights=[1,1]"], "2 numbers for 1 label"),
    ],
)
def test_parts_that_cannot_be_used_are_refused_before_data_are_read(words: list[str], part: str) -> None:
    config = compose(words)
    with pytest.raises(ConfigError) as caught:
        check_values(config)
    assert part in str(caught.value)


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


def alias_bomb(levels: int = 9) -> str:
    """A YAML mapping of some lines whose aliases unfold to 10 to the power of ``levels`` values."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "alias bomb": (alias_bomb(), "its aliases unfold to more than 1000000 values"),
    "merge bomb": (
        "a0: &a0 {k: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 10)}]}}\n" for k in range(1, 9)),
        "its aliases unfold to more than 1000000 values",
    ),
    "flow": ("a: " + "[" * 100_000 + "]" * 100_000, "nested more than 100 levels deep"),
    "block": ("\n".join(" " * k + "a:" for k in range(500)), "nested more than 100 levels deep"),
    "dashes": ("- " * 5000 + "x", "nested more than 100 levels deep"),
    "itself": ("a: &a [*a]", "the alias *a stands inside what it refers to"),
    "date": ("a: 2024-99-99", "month must be in 1..12"),
    "tag": ("a: !!python/object/apply:os.system [x]", "not YAML (could not determine a constructor"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    text, reason = HOSTILE[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with pytest.raises(ValueError, match=re.escape(reason)):
        load_yaml(text)
    (tmp_path / "reference.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        read_studies(tmp_path / "reference.yaml")
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "status.json").write_text('{"state": "complete"}')
    (tmp_path / "provenance.json").write_text("{}")
    seal(tmp_path)
    with pytest.raises(RunError, match=r"config\.yaml"):
        _ = Run(tmp_path).config
    with pytest.raises(WeightsError, match=re.escape(reason)):
        resolve_weights(BackboneConfig(name="resnet18", weights=str(tmp_path)))
    (tmp_path / "conf" / "backbone").mkdir(parents=True)
    (tmp_path / "conf" / "backbone" / "mine.yaml").write_text(text)
    if not reason.startswith(("not YAML", "month")):  # the other two Hydra reads, or tells itself
        assert reason in problems("backbone=mine", config_dir=str(tmp_path / "conf"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 5


def test_plain_aliases_and_depth_are_read() -> None:
    assert load_yaml("a: &a {k: [1, 2]}\nb: *a\nc: {<<: *a, m: 3}") == {
        "a": {"k": [1, 2]},
        "b": {"k": [1, 2]},
        "c": {"k": [1, 2], "m": 3},
    }
    assert load_yaml(alias_bomb(4))["l3"][9][9][9][9] == "x"


def test_hostile_json_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": ' + "[" * 200_000)
    with pytest.raises(RunError, match=r"status\.json.*nested too deeply"):
        _ = Run(tmp_path).status


@pytest.mark.parametrize("word", ["name={}{}", "task.labels=[{}{}]", "++optimizer.params={}{}", "data.root=${}{}"])
def test_a_word_of_a_thousand_brackets_is_refused_at_once(word: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    assert "nested more than 30 levels deep" in problems(word.format("[" * 20_000, "]" * 20_000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 5


def test_paths_that_hydra_cannot_read_are_quoted() -> None:
    given = ["data.root=/a b/\u00fc", "output_dir=a=b", "data.root=/plain", "optimizer.lr=0.1", "--cfg", "-m"]
    assert quote_paths(given) == ['data.root="/a b/\u00fc"', 'output_dir="a=b"', *given[2:]]
    assert compose(quote_paths(["output_dir=(1) \u00fc"])).output_dir == "(1) \u00fc"


def test_the_home_folder_in_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert quote_paths(["output_dir=~/runs"]) == [f"output_dir={tmp_path}/runs"]  # Hydra makes that folder too
    assert compose(["output_dir=~/runs"]).output_dir == f"{tmp_path}/runs"  # a script's, or from a YAML file


def test_a_pattern_needs_no_quotes_of_hydra() -> None:
    base = ["data=six_class", "task=six_class", "loss=cross_entropy"]
    parser = OverridesParser.create()

    def read(pattern: str) -> object:
        value = parser.parse_override(quote_paths([f"data.patient_pattern={pattern}"])[0]).value()
        return getattr(value, "text", value)

    for pattern in (r"(X[0-9]+)", "P[0-9]+", r"(?P<patient>P\d+)_", r'a"b\\', r"\.(x|y)$", "plain"):
        assert read(pattern) == pattern
    assert read("'(P[0-9]+)'") == "(P[0-9]+)"
    assert read("null") is None
    assert compose([*base, r"data.patient_pattern=(X\d)\\"]).data.patient_pattern == r"(X\d)\\"


def test_an_empty_root_is_refused_not_taken_for_this_folder() -> None:
    assert "data.root" in problems("data.root=")


def test_every_yaml_of_every_group_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hemlearn.config.compose.find_spec", lambda _: True)  # as if every plug-in were installed
    needs = {
        "data/table": "data.manifest=FILE",
        "data/multi": "name at least two data sets",
        "split/file": "split.file=FILE",
        "split/leave_one_out": "split.left_out=NAME",
    }
    for file in conf_dir().glob("*/*.yaml"):
        group = file.parent.name
        if group == "sweep":
            compose([f"sweep={file.stem}"])
        elif f"{group}/{file.stem}" in needs:
            with pytest.raises(ConfigError, match=needs[f"{group}/{file.stem}"]):
                option(group, file.stem)
        elif group != "experiment":  # tests/test_experiments.py trains them
            assert option(group, file.stem) is not None


def test_schema_survives_a_round_trip() -> None:
    config = compose(["freeze.schedule={0: head, 2: all}"])
    assert from_dict(to_dict(config)) == config
    assert config.freeze.schedule == {0: "head", 2: "all"}
    assert "optimizer.schedule.name" in schema_keys()


def test_the_defaults_in_conf_are_those_of_the_schema() -> None:
    assert (conf_dir() / "schema.yaml").read_text(encoding="utf-8") == schema_text()


def test_hydra_composes_from_a_script_without_anything_registered() -> None:
    code = (
        "import sys; from hydra import compose, initialize_config_dir\n"
        "with initialize_config_dir(sys.argv[1], version_base=None):\n"
        "    cfg = compose('train', ['experiment=head_ct', 'optimizer.lr=0.1'])\n"
        "assert not [name for name in sys.modules if name.startswith('hemlearn')]\n"
        "from hemlearn.config.compose import to_config; print(to_config(cfg).optimizer.lr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(conf_dir())], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "0.1"


def test_each_class_checks_itself_in_a_notebook() -> None:
    with pytest.raises(ConfigError) as caught:
        DataConfig.check("data", image_size=7, fit="sqash", batch_sise=3, band=[1], geometry={"gaps": "x"}, root=" ")
    assert "7 errors" in str(caught.value)
    for part in ("data.batch_size", "did you mean 'squash'", "data.geometry.gaps='x'", "data.band=[1.0]"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.image_size=7: in \[32, 4096\]"):
        DataConfig(image_size=7)
    with pytest.raises(ConfigError, match="expected a whole number"):
        Config(data={"num_workers": True})
    assert DataConfig(_target_="my.Data", colour="red").model_extra == {"colour": "red"}
    assert Config().changed({"data.root": "/x", "data.geometry.gaps": "refuse"}).data.geometry.gaps == "refuse"


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, True, "youdn", "sensitivity:0", "cost:inf", "f2:1", None])
def test_an_operating_point_of_0_or_1_calls_everything_alike_and_is_refused(threshold: object) -> None:
    with pytest.raises(ConfigError, match=r"task\.threshold"):
        TaskConfig(threshold=threshold)


def test_what_a_wrong_key_hides_is_not_reported() -> None:
    """A loss is not held against a kind of task that is misspelt itself."""
    message = problems("task.kind=multclass", "task.labels=[a,b]", "loss=cross_entropy")
    assert "1 error" in message
    assert "did you mean 'multiclass'" in message


def test_a_shipped_option_is_an_object_in_python() -> None:
    assert option("channels", "brain").windows == [[40, 80]]
    assert option("augmentation", "viritaromero", data={"image_size": 64}).steps[1]["size"] == [64, 64]
    assert isinstance(option("sequence", "lstm"), SequenceConfig)
    with pytest.raises(ConfigError, match="did you mean 'brain'"):
        option("channels", "brian")
    with pytest.raises(ConfigError, match="no such option"):
        option("channels", "../channels/brain")


def test_a_group_takes_a_class_of_the_users_and_its_arguments_without_plus(tmp_path: Path) -> None:
    config = compose(
        [
            "loss._target_=my.Loss",
            "loss.beta=2",
            "loss.gamma=3",
            "loss.deep={a: [1]}",
            "optimizer.schedule._target_=my.S",
            "optimizer.schedule.power=2",
        ]
    )
    assert config.loss.model_extra == {"beta": 2, "deep": {"a": [1]}}
    assert (config.loss.target_, config.loss.gamma) == ("my.Loss", 3.0)
    assert config.optimizer.schedule.model_extra == {"power": 2}
    assert from_dict(to_dict(config)) == config
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("_target_: my.Loss\nbeta: 2\n")
    assert compose(["loss=mine"], str(tmp_path)).loss.model_extra == {"beta": 2}
    for words in (["loss.beta=2"], ["+loss.beta=2"]):
        assert "unknown key 'loss.beta'" in problems(*words)
    assert "unknown key 'trainer._target_'" in problems("+trainer._target_=my.Trainer")
    assert "expected {_target_" in problems("+metrics.kappa=3")
    nodes = compose(["callbacks.mine._target_=my.C", "callbacks.mine.n=3"]).callbacks
    assert nodes == {"mine": {"_target_": "my.C", "n": 3}}


def test_plugins_are_imported_and_their_options_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "guest_conf_pkg"
    (folder / "conf" / "loss").mkdir(parents=True)
    (folder / "conf" / "loss" / "guest.yaml").write_text("name: guest\n")
    code = "from hemlearn.plugins import register\n@register('loss', 'guest')\ndef guest(): ...\n"
    (folder / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = compose(["plugins=[guest_conf_pkg]", "loss=guest"])
    assert (config.loss.name, config.plugins) == ("guest", ["guest_conf_pkg"])
    assert run_hash(config, manifest="m", weights=None, split_file=None) != identity()
    assert "plugins=[nowhere_pkg]" in problems("plugins=[nowhere_pkg]")


def identity(*overrides: str, manifest: str = "m") -> str:
    return run_hash(compose(list(overrides)), manifest=manifest, weights=None, split_file=None)


def test_hash_follows_what_changes_the_result_and_nothing_else() -> None:
    base = identity()
    assert (
        identity(
            "output_dir=elsewhere",
            "name=other",
            "force=true",
            "plugins=[]",
            "logger=csv",
            "data.num_workers=2",
            "data.resident=device",
            "data.root=/x",
        )
        == base
    )
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


def test_errors_survive_the_way_back_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(DataError("a.png: broken", remedy="replace it")))
    assert isinstance(error, DataError)
    assert str(error) == "a.png: broken\n  Fix: replace it"


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


def test_threads_are_part_of_the_result_and_no_machine_chooses_them() -> None:
    one, two, unset = (Config(trainer={"threads": number}) for number in (1, 2, None))
    hashes = [run_hash(config, manifest="m", weights=None, split_file=None) for config in (one, two, unset, Config())]
    assert hashes[0] == hashes[2] == hashes[3] != hashes[1]


def test_a_run_of_patients_drawn_in_another_way_is_another_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("patient_id,split\np,train\n")
    drawn, file = ([], ["split=kfold"]), ["split=file", f"split.file={tmp_path / 's.csv'}"]
    before = [identity(*words) for words in (*drawn, file)]
    monkeypatch.setattr("hemlearn.config.identity.DRAWING", 1)
    after = [identity(*words) for words in (*drawn, file)]
    assert [one == two for one, two in zip(before, after, strict=True)] == [False, False, True]
