"""Parts by ``_target_`` and by name: what is built, what is refused, and which code it was."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hemlearn.config.compose import compose, conf_dir
from hemlearn.plugins import (
    Registry,
    check,
    fingerprints,
    foreign_targets,
    load_plugins,
    plugin_conf_dirs,
    resolve,
    target_of,
    untrusted_targets,
)
from hemlearn.training.checks import check_parts
from hemlearn.util.errors import ConfigError

CODE = """
from hemlearn.util.errors import DataError
CONSTANT = 3

class Base:
    def __init__(self, gamma, labels=(), *, inner=None):
        self.gamma, self.labels, self.inner = gamma, labels, inner

class Mine(Base):
    pass

class Broken:
    def __init__(self, size=1):
        raise RuntimeError(f"no size {size}")

class Refusing:
    def __init__(self):
        raise DataError("a.png: broken", remedy="replace it")

class Free:
    def __init__(self, **options):
        self.options = options

def keywords(**given):
    return given

def function(a, b=2):
    return a, b
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's package ``guestpkg`` with a module ``parts`` and a ``conf`` folder."""
    folder = tmp_path / "site" / "guestpkg"
    (folder / "conf" / "loss").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "parts.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder.parent))
    for name in [name for name in sys.modules if name.startswith("guestpkg")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def build(target: str, where: str = "loss", offered: dict[str, Any] | None = None, **arguments: Any) -> Any:
    return resolve({"_target_": f"guestpkg.{target}", **arguments}, where, **(offered or {}))


def test_builds_nested_parts_and_offers_what_the_signature_takes(package: Path) -> None:
    inner = {"_target_": "guestpkg.parts.Mine", "gamma": 1}
    made = build("parts.Mine", gamma=2, inner=[{"deep": inner}], offered={"labels": ["a"], "width": 7})
    assert (made.gamma, made.labels, made.inner[0]["deep"].gamma) == (2, ["a"], 1)
    assert build("parts.Mine", gamma=2, labels="own", offered={"labels": ["a"]}).labels == "own"
    assert build("parts.Free", a=1, offered={"width": 7}).options == {"a": 1}  # named by none of its constructors
    assert build("parts.keywords", a=1, offered={"width": 7}) == {"a": 1, "width": 7}
    assert build("parts.function", _args_=[5]) == (5, 2)
    later = resolve({"_target_": "guestpkg.parts.function", "b": 4}, "here", partial=True)
    assert isinstance(later, functools.partial)
    assert later(1) == (1, 4)
    assert build("parts.function", _partial_=True, b=3)(1) == (1, 3)
    words = {"_convert_": "all", "_recursive_": False}  # Hydra's: neither keeps nodes inside from being built
    assert build("parts.Mine", gamma=inner, **words).gamma.gamma == 1
    assert build("parts.Free", a=1, **words).options == {"a": 1}


@pytest.mark.parametrize(
    ("target", "arguments", "parts"),
    [
        ("parts.Mien", {}, ["loss._target_='guestpkg.parts.Mien'", "did you mean 'Mine'"]),
        ("prats.Mine", {}, ["guestpkg has no 'prats'", "did you mean 'parts'"]),
        ("parts.CONSTANT", {}, ["is a int, not a class or function"]),
        ("parts.Mine", {}, ["lacks the argument 'gamma'", "loss.gamma=VALUE"]),
        ("parts.Mine", {"gama": 1}, ["unknown argument 'gama'; did you mean 'gamma'", "gamma, labels, inner"]),
        ("parts.Mine", {"gamma": 1, "inner": {"_target_": "guestpkg.parts.Base"}}, ["loss.inner", "lacks"]),
        ("parts.Broken", {"size": 4}, ["loss (guestpkg.parts.Broken): RuntimeError: no size 4"]),
        ("parts.Refusing", {}, ["loss (guestpkg.parts.Refusing): a.png: broken", "replace it"]),
    ],
)
def test_a_target_that_cannot_be_built(package: Path, target: str, arguments: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(target, **arguments)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("nowhere_at_all.Class", "no package 'nowhere_at_all'"),
        ("torhc.nn.ReLU", "did you mean 'torch'"),
        ("ReLU", "not a dotted name"),
    ],
)
def test_a_target_that_is_nowhere(target: str, part: str) -> None:
    with pytest.raises(ConfigError, match=r"here\._target_") as caught:
        resolve({"_target_": target}, "here")
    assert part in str(caught.value)


def test_modules_that_cannot_be_imported_say_why(package: Path) -> None:
    (package / "raises.py").write_text("1 / 0")
    (package / "needs.py").write_text("import nowhere_at_all")
    with pytest.raises(ConfigError, match=r"importing guestpkg\.raises raised ZeroDivisionError"):
        build("raises.Class")
    with pytest.raises(ConfigError, match=r"guestpkg\.needs needs nowhere_at_all"):
        build("needs.Class")
    with pytest.raises(ConfigError, match=r"plugins=\[guestpkg.raises\]: cannot be imported \(ZeroDivisionError"):
        load_plugins(["guestpkg.raises"])
    with pytest.raises(ConfigError, match="did you mean 'torch'"):
        load_plugins(["torhc"])
    with pytest.raises(ConfigError, match="not the name of a package"):
        load_plugins([".evil"])
    (package / "twice.py").write_text(
        "from hemlearn.plugins import register\nclass A: ...\nclass B: ...\n"
        "register('loss', 'guest_twice')(A)\nregister('loss', 'guest_twice')(B)"
    )
    for load in (lambda: load_plugins(["guestpkg.twice"]), lambda: build("twice.A")):
        with pytest.raises(ConfigError, match="would take the name of") as caught:
            load()
        assert str(caught.value).count("Fix:") == 1


def test_without_a_target_and_of_another_kind(package: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps\[0\].*no _target_"):
        resolve({"p": 1}, "steps[0]")
    with pytest.raises(ConfigError, match="is a tuple, not a list or dict"):
        resolve({"_target_": "guestpkg.parts.function", "a": 1}, "here", kind=(list, dict))
    assert target_of({"_target_": 3}) is None
    with pytest.raises(ConfigError, match=r"^loss: .*no _target_|^loss=.*no _target_"):
        resolve({"_target_": ["guestpkg.parts.Mine"], "gamma": 1}, "loss")
    with pytest.raises(ConfigError, match="not a dotted name"):
        fingerprints({"loss": {"_target_": ["guestpkg.parts.Mine"]}})


def test_entry_points_are_imported_and_ship_their_configuration(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plugin_conf_dirs(["guestpkg", "nowhere_at_all"]) == [package / "conf"]
    told = tmp_path / "installed" / "guest-1.0.dist-info"
    told.parent.mkdir()
    monkeypatch.syspath_prepend(told.parent)
    assert plugin_conf_dirs() == []
    told.mkdir()  # installed while a notebook runs
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[hemlearn.plugins]\nguest = guestpkg.parts:Mine\n")
    assert plugin_conf_dirs() == [package / "conf"]
    assert "guestpkg" not in sys.modules  # looking for the folder imports nothing
    load_plugins()
    load_plugins(["guestpkg"])
    assert "guestpkg.parts" in sys.modules


def test_foreign_code_has_a_fingerprint_and_ours_has_none(package: Path) -> None:
    tree: dict[str, Any] = {
        "augmentation": {"steps": [{"_target_": "kornia.augmentation.RandomRotation"}]},
        "loss": {"_target_": "guestpkg.parts.Mine", "base": {"_target_": "torch.nn.ReLU"}},
    }
    assert foreign_targets(tree) == ["guestpkg.parts.Mine"]
    assert foreign_targets({"loss": {"_target_": "hemlearnx.Loss"}}) == ["hemlearnx.Loss"]
    assert foreign_targets({"plugins": ["guestpkg"]}) == ["guestpkg"]
    for odd in (["torch.nn.ReLU"], {"_target_": "torch.nn.ReLU"}, 3):  # no name at all
        assert untrusted_targets({"loss": {"base": [{"_target_": odd}]}}) == [repr(odd)]
    for word in ("_convert_", "_recursive_"):
        node = {"_target_": "torch.nn.ReLU", word: {"_target_": "os.mkdir"}}
        assert untrusted_targets({"loss": node}) == ["os.mkdir"]
    assert untrusted_targets({"loss": {"_target_": None}, "x": {"_target_": "torch.nn.ReLU", "_convert_": "all"}}) == []
    assert fingerprints({"augmentation": tree["augmentation"], "plugins": []}) == {}
    (found,) = fingerprints(tree).values()
    assert found["version"] == "unknown"
    assert fingerprints(tree) == {"guestpkg.parts.Mine": found}
    code = (
        "import json, sys; from hemlearn.plugins import fingerprints; "
        "print(fingerprints(json.loads(sys.argv[1]))['guestpkg.parts.Mine']['sha256'])"
    )

    def again() -> str:
        import json
        import os

        where = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
        call = [sys.executable, "-c", code, json.dumps(tree)]
        done = subprocess.run(call, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": where})
        return done.stdout.strip()

    assert again() == found["sha256"]
    (package / "parts.py").write_text(CODE.replace("a, b=2", "a, b=3"))
    assert again() == found["sha256"]  # another function of the module
    (package / "parts.py").write_text(CODE.replace("= gamma, labels", "= 2 * gamma, labels"))
    assert again() != found["sha256"]  # a base class of the same package


def test_a_shipped_part_is_no_strangers_code() -> None:
    files = [file for file in conf_dir().rglob("*.yaml") if "hydra" not in file.parts]  # launchers stand in no run
    named = {file.name: found for file in files if (found := untrusted_targets(yaml.safe_load(file.read_text())))}
    assert len(files) > 100
    assert not named


def test_two_parts_under_one_name_are_refused_and_unknown_names_find_the_nearest() -> None:
    registry = Registry()
    registry.register("backbone", "mine")(Registry)
    registry.register("backbone", "mine")(Registry)  # the same again: a module that is imported twice
    with pytest.raises(ConfigError, match=r"backbone=mine: hemlearn\.util\.errors\.ConfigError would take the name of"):
        registry.register("backbone", "mine")(ConfigError)
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        registry.get("backbone", "mnie")
    assert registry.names("loss") == []


def test_importing_it_brings_no_torch() -> None:
    code = "import sys, hemlearn.plugins; sys.exit(' '.join({'torch', 'pandas', 'hydra'} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_faults_are_told_under_the_key_they_stand_at(package: Path) -> None:
    with pytest.raises(ConfigError, match=r"^loss\.base\[1\]\._target_='nosuch\.Loss'"):
        fingerprints({"loss": {"base": [1, {"_target_": "nosuch.Loss"}]}})


def test_code_that_exits_does_not_end_the_command(package: Path) -> None:
    (package / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    (package / "polite.py").write_text("class Bye:\n    def __init__(self):\n        raise SystemExit('bye')\n")
    with pytest.raises(ConfigError, match=r"loss\._target_.*SystemExit: 3"):
        resolve({"_target_": "guestpkg.leaving.X"}, "loss")
    with pytest.raises(ConfigError, match="SystemExit: 3"):
        load_plugins(["guestpkg.leaving"])
    with pytest.raises(ConfigError, match=r"loss \(guestpkg\.polite\.Bye\): SystemExit: bye"):
        resolve({"_target_": "guestpkg.polite.Bye"}, "loss")


@pytest.mark.parametrize(("group", "name"), [("loss", "bce"), ("sequence", "lstm"), ("backbone", "efficientnet_lite0")])
def test_a_shipped_name_is_not_taken(group: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{group}={name}: .* that hemlearn ships") as caught:
        Registry().register(group, name)(dict)
    assert "another name" in caught.value.remedy


def test_arguments_are_checked_without_building_anything(package: Path) -> None:
    check({"_target_": "guestpkg.parts.Broken", "size": 2}, "loss")  # its constructor raises
    check({"_target_": "guestpkg.parts.Mine"}, "loss")  # gamma may be offered later
    with pytest.raises(ConfigError, match=r"loss .*unknown argument 'gama'; did you mean 'gamma'"):
        check({"_target_": "guestpkg.parts.Mine", "gama": 2}, "loss")
    with pytest.raises(ConfigError) as caught:
        check_parts(compose(["backbone._target_=guestpkg.parts.Mine", "+backbone.gama=2"]))
    assert str(caught.value).count("unknown argument 'gama'") == 1
