"""Compose, check and resolve a run's configuration.

Hydra composes YAML groups; the result is held against :mod:`hemlearn.config.schema`, and *every* error of one command
is reported together. The defaults of all keys are in ``conf/schema.yaml``, so that ``hydra.compose`` in a script of
one's own needs nothing but ``initialize_config_dir(str(conf_dir()))``, and :func:`to_config` on what it returns.
"""

from __future__ import annotations

import itertools
import os
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hemlearn.config.base import Problem, raise_problems
from hemlearn.config.schema import Config, Group, Section, from_dict, schema_keys, to_dict
from hemlearn.plugins import REGISTRY, load_plugins, plugin_conf_dirs
from hemlearn.util.documents import check_yaml
from hemlearn.util.errors import ConfigError, hint

PRIMARY = "train"
_PATHS = (
    "data.root",
    "data.manifest",
    "data.cache_dir",
    "output_dir",
    "split.file",
    "backbone.weights",
    "logger.tracking_uri",
)
_MAX_DEPTH = 30  # brackets in each other in one word of a command line
_PATTERNS = ("data.patient_pattern",)
_OPTIONAL = ("experiment", "sweep")  # groups that may be left out
_SEVERAL = (*_OPTIONAL, "callbacks", "metrics")  # groups of which several files, or none, may be taken


def _when(condition: Any, then: Any, otherwise: Any) -> Any:
    """Resolver ``${when:CONDITION,THEN,ELSE}``: a value that follows from another key."""
    if not isinstance(condition, bool):
        raise ValueError(f"when: {condition!r} is neither true nor false")
    return then if condition else otherwise


OmegaConf.register_new_resolver("when", _when, replace=True)


def conf_dir() -> Path:
    """Folder of the shipped configuration: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def to_config(composed: DictConfig) -> Config:
    """The checked configuration of one job, as Hydra composed it; its ``plugins`` are imported.

    Raises:
        ConfigError: Listing every unknown key, value of a wrong type and value out of range together.
    """
    plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        tree = OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)
    except RecursionError as error:
        raise ConfigError("a value is nested too deeply", remedy="correct the ${...}") from error
    except OmegaConfBaseException as error:
        raise _unresolved(plain, error) from error
    assert isinstance(tree, dict)
    if isinstance(tree.get("plugins"), list):
        load_plugins(map(str, tree["plugins"]))
    return from_dict(typing.cast("dict[str, Any]", tree))


def _unresolved(composed: DictConfig, error: OmegaConfBaseException) -> ConfigError:
    """The error of a ``${...}`` that means nothing: its key, what stands there, and the nearest key."""
    key = str(error.full_key or "")
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    for part in re.findall(r"[^.\[\]]+", key):
        raw = raw[int(part)] if isinstance(raw, list) else raw.get(part)
    text = str(error).splitlines()[0]
    remedy = "give the key a value, or correct the ${...}: it names a key from the top, such as ${data.image_size}"
    if found := re.search(r"Interpolation key '(.*)' not found", text):
        text = f"there is no key {found[1]}{hint(found[1], schema_keys())}"
    elif found := re.search(r"Environment variable '(.*)' not found", text):
        text = f"the environment variable {found[1]} is not set"
        remedy = f"export {found[1]}=VALUE, or give a default: ${{oc.env:{found[1]},VALUE}}"
    return ConfigError(f"{key}={raw}: {text}", remedy=remedy)


def compose(overrides: Sequence[str], config_dir: str | None = None, own: Sequence[str] = ()) -> Config:
    """One job's configuration from the words of a command line, for commands that are not sweeps.

    Raises:
        ConfigError: As :func:`check_command`; or a word with several values.
    """
    words = quote_paths(overrides)
    refuse_sweep(words)
    return to_config(check_command(words, config_dir, own).composed)


def refuse_sweep(overrides: Sequence[str]) -> None:
    """Refuse a word with several values where one run is meant.

    Raises:
        ConfigError: Also says how a comma inside a path is written.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for text in overrides:
        try:
            swept = OverridesParser.create().parse_override(text).is_sweep_override()
        except HydraException:  # told with all other errors
            continue
        if swept:
            key, _, value = text.partition("=")
            remedy = "give one value, or make a run of each with `hemlearn train -m`"
            if key.lstrip("+") in _PATHS:
                remedy += f"; a comma that belongs to the path stands in quotes: '{key}=\"{value}\"'"
            raise ConfigError(f"{text}: several values, and one run has one", remedy=remedy)


def option(group: str, name: str, **others: Any) -> Any:
    """The option object that the shipped ``conf/GROUP/NAME.yaml``, or one of a plug-in, describes.

    Args:
        group: Such as ``channels``.
        name: Such as ``brain``.
        others: Groups that its ``${...}`` refer to, where they are not the defaults.

    Raises:
        ConfigError: No such option (names the nearest), or wrong keys in it.

    Example:
        >>> option("channels", "brain").windows
        [[40.0, 80.0]]
    """
    folders = [conf_dir(), *plugin_conf_dirs()]
    file = next((f for folder in folders if (f := folder / group / f"{name}.yaml").is_file()), None)
    if file is None or name != Path(name).name:  # a path leads out of the group
        known = [*_options(group, folders), *REGISTRY.names(group)]
        raise ConfigError(
            f"{group}={name!r}: no such option{hint(name, known)}",
            remedy=f"use one of {', '.join(known)}" if known else f"there is no group {group}",
        )
    tree = OmegaConf.create({**to_dict(Config()), **others})
    tree[group] = OmegaConf.load(file)
    found = typing.cast("dict[str, Any]", OmegaConf.to_container(tree[group], resolve=True))
    kind = schema_keys()[group]
    return kind.check(group, **found) if isinstance(kind, type) and issubclass(kind, Section) else found


# --- the words of a command line ---------------------------------------------------------------------------------


class Command(NamedTuple):
    """A checked command line.

    Attributes:
        composed: The configuration composed from everything but sweep values.
        hydra: Hydra's own section of it.
        overrides: The words for Hydra: free keys (arguments of a class in ``_target_``, inner keys of dictionaries)
            need no ``+`` of the user's.
    """

    composed: DictConfig
    hydra: DictConfig
    overrides: list[str]


def check_command(overrides: Sequence[str], config_dir: str | None = None, own: Sequence[str] = ()) -> Command:
    """Refuse a command line with unknown keys, unknown group options or wrong values, naming all of them.

    Sweep values (``a=1,2``) are checked one by one. What is right is composed too, so that errors inside YAML files
    and combinations show in the same message. ``own``: keys of the command beside those of the configuration.

    Raises:
        ConfigError: With one line per error and the nearest known name.
    """
    from hydra.errors import HydraException

    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder", remedy="give a folder of YAML groups")
    own_folders = [conf_dir(), *([Path(config_dir).resolve()] if config_dir else [])]
    shipped = plugin_conf_dirs(_plugins(overrides, own_folders))
    folders = [*own_folders, *shipped]
    problems = [problem for folder in folders[1:] for problem in _file_problems(folder)]
    raise_problems(problems, Config.what(), Config.remedy())
    usable: list[str] = []
    words: list[str] = []
    swept: list[str] = []
    for text in overrides:
        problem, word, key = _override(text, folders, own)
        if problem:
            problems.append(problem)
        elif word:
            words.append(word)
            if key:
                swept.append(key)
            else:
                usable.append(word)
    if shipped and not any(word.startswith("hydra.searchpath=") for word in words):
        words.insert(0, _search_path(shipped))
    composed, hydra = OmegaConf.create(), OmegaConf.create()
    try:
        composed = _compose([*([_search_path(folders[1:])] if folders[1:] else []), *usable])
    except HydraException as error:
        text = str(error).splitlines()[0]
        problems.append(_not_installed(text) or Problem("", text))
    except YAMLError as error:
        problems.append(Problem("", f"a YAML file cannot be read: {' '.join(str(error).split())}"))
    else:
        # A sweep preset holds overrides too.
        preset = OmegaConf.to_container(OmegaConf.select(composed, "hydra.sweeper.params") or OmegaConf.create())
        assert isinstance(preset, dict)
        for name, value in preset.items():
            problem, _, _ = _override(f"{name!s}={value}", folders, ())
            problems += [problem] if problem else []
            swept.append(str(name).lstrip("+"))
        hydra = composed.hydra
        for part in ("launcher", "sweeper"):
            target = str(OmegaConf.select(hydra, f"{part}._target_"))
            problems += [problem] if (problem := _not_installed(f"hydra/{part}: {target}")) else []
        composed = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        problems += _composed_problems(composed, swept)
    raise_problems(problems, Config.what(), Config.remedy())
    return Command(composed, hydra, words)


_EXTRAS = {"submitit": "slurm", "ray": "ray", "optuna": "optuna"}  # package that a launcher or sweeper needs -> extra


def _not_installed(text: str) -> Problem | None:
    """What is missing where a launcher or sweeper that ``text`` names needs a package that is not there."""
    for package, extra in _EXTRAS.items():
        if re.search(rf"hydra/(launcher|sweeper).*(?<![a-z]){package}(?![a-z])", text) and find_spec(package) is None:
            return Problem("", f"{text}: {package} is not installed: pip install 'hemlearn[{extra}]'")
    return None


def _file_problems(folder: Path) -> Iterator[Problem]:
    """YAML files of a folder of groups that Hydra would never have done with; other faults it tells itself."""
    for file in sorted(file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}.yaml")):
        try:
            check_yaml(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        except ValueError as error:
            if not str(error).startswith("not YAML"):
                yield Problem("", f"{file}: {error}")


def _composed_problems(composed: DictConfig, swept: Sequence[str]) -> Iterable[Problem]:
    try:
        to_config(composed)
    except ConfigError as error:
        lines = [line.strip()[2:] for line in error.problem.splitlines() if line.startswith("  - ")]
        for line in lines or [error.problem]:
            # A key given by the sweep is not there yet when the rest is composed alone.
            if not any(line.startswith((f"{key}=", f"{key}.")) for key in swept):
                yield Problem("", line)


def _plugins(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Plug-ins that the command line, or an experiment it names, asks for: their folders are searched too."""
    found: list[str] = []
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key == "plugins":
            found += [part.strip("\"' ") for part in value.strip("[]").split(",")]
        for folder in folders if key == "experiment" else ():
            file = folder / "experiment" / f"{value}.yaml"
            if file.is_file():
                asked = re.search(r"^plugins:\s*\[(.*)\]", file.read_text(encoding="utf-8"), re.MULTILINE)
                found += [part.strip("\"' ") for part in asked[1].split(",")] if asked else []
    return [name for name in found if name]


def _search_path(folders: Iterable[Path]) -> str:
    listed = ",".join(quote(f"file://{folder}") for folder in folders)
    return f"hydra.searchpath=[{listed}]"


def _compose(overrides: Sequence[str]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    running = GlobalHydra.instance().hydra  # a job may compose the configuration of the run it builds on
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose(PRIMARY, overrides=list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = running


def quote_paths(overrides: Sequence[str]) -> list[str]:
    """Put quotes around file names that Hydra's grammar cannot read (``=``, parentheses, ü), and around patterns."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()

    def quoted(text: str) -> str:
        key, _, value = text.partition("=")
        name = key.lstrip("+")
        if name not in (*_PATHS, *_PATTERNS):
            return text
        if name == "output_dir" and value.startswith("~"):  # Hydra, too, makes this folder
            text, value = f"{key}={os.path.expanduser(value)}", os.path.expanduser(value)  # noqa: PTH111
        # A pattern may be valid grammar and yet mean something else: P(x) is a call, [0-9] a list. So may a path: a,b.
        if (
            (name in _PATHS and not ("," in value and Path(value).expanduser().exists()))
            or value in ("", "null")
            or value[0] in "\"'"
        ):
            try:
                parser.parse_override(text)
            except HydraException:
                pass
            else:
                return text
        return f"{key}={quote(value)}"

    return [quoted(text) for text in overrides]


def quote(value: str) -> str:
    """A text in double quotes as Hydra's grammar has it: only backslashes before a quote are special."""
    inner = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ("\\" if found[2] else "") + found[2], value)
    return f'"{inner}"'


def _options(group: str, folders: Sequence[Path]) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _is_free(key: str) -> bool:
    """Whether ``key`` lies below a dictionary, a list or a group, whose inner names may be a user's own."""
    keys, parent = schema_keys(), key
    while "." in parent:
        parent = parent.rpartition(".")[0]
        kind = keys.get(parent)
        if kind is not None:
            open_group = isinstance(kind, type) and issubclass(kind, Group)
            return open_group or typing.get_origin(kind) in (dict, list) or kind is Any
    return False


def _depth(text: str) -> int:
    """The deepest nesting of brackets."""
    return max(itertools.accumulate((char in "[{(") - (char in "]})") for char in text), default=0)


def _override(text: str, folders: Sequence[Path], own: Sequence[str]) -> tuple[Problem | None, str, str | None]:
    """The error of one word (or None), the word as Hydra shall read it, and its key where it is a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    if _depth(text) > _MAX_DEPTH:  # Hydra would parse for minutes, and then give up without a reason
        return Problem(text, f"{text[:60]}...: nested more than {_MAX_DEPTH} levels deep"), "", None
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        return Problem(text, f"{text}: not of the form key=value, or a value that needs quotes ({reason})"), "", None
    key = parsed.key_or_group
    if not key:
        return Problem(text, f"{text}: no key stands before '='"), "", None
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return None, text, None
    keys = schema_keys()
    is_group = any((folder / key).is_dir() for folder in folders)
    if not is_group and key not in keys and not _is_free(key):
        return Problem(key, f"unknown key '{key}'{hint(key, [*keys, 'experiment', 'sweep', *own])}"), "", None
    if parsed.is_delete():
        return None, text, None
    closed = is_group or (key in keys and typing.get_origin(keys[key]) is not dict)
    word = text if closed else f"++{text.lstrip('+')}"  # Hydra adds keys to a dictionary with it alone
    elements: list[Any] = [parsed.value()]
    if parsed.is_sweep_override():
        elements = list(elements[0].list) if isinstance(elements[0], ChoiceSweep) else []
    for element in elements:
        value: Any = getattr(element, "text", element)  # quoted strings carry their text
        if is_group and not isinstance(value, dict):
            choices = _options(key, folders)
            if value is None and key in _OPTIONAL and not parsed.is_sweep_override():
                return None, "", None  # as if it were not there
            for name in value if isinstance(value, list) and (value or key in _SEVERAL) else [value]:
                if name in (None, []):
                    none = "none" if "none" in choices else choices[0] if choices else "NAME"
                    wrong = f"{text}: a group needs one of its files, such as {key}={none} (there are: "
                    return Problem(key, f"{wrong}{', '.join(choices)})"), "", None
                if str(name) not in choices:
                    listed = ", ".join(choices)
                    wrong = f"unknown {key} '{name}'{hint(str(name), choices)} (there are: {listed})"
                    return Problem(key, wrong), "", None
        elif parsed.is_sweep_override() and key in keys and not (isinstance(value, str) and "${" in value):
            problems = _value_problems(key, value)
            if problems:
                return problems[0], "", None
    return None, word, key if parsed.is_sweep_override() else None


def _value_problems(key: str, value: Any) -> list[Problem]:
    """What is wrong with a value for the schema's ``key``, whatever the other keys are."""
    section, _, name = key.rpartition(".")
    kind = schema_keys()[section] if section else Config
    return list(kind.attempt({name: value}, f"{section}." if section else "", rules_of={name})[1])
